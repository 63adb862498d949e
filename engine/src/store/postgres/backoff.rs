//! When a server that could not be reached is tried again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After the first failure; it doubles with each one that follows.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// So long, at most, does a server that is back go unnoticed.
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// Once a connection could not be made, one caller at a time waits until the next attempt and makes it; the others are told at
/// once. So a server that is down, or has just come up, is not run over by everybody.
#[derive(Default)]
pub(super) struct Backoff {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In a row; 0 while all is well.
    failures: u32,
    next: Option<Instant>,
    /// Somebody waits for the next attempt, or makes it.
    taken: bool,
    why: String,
}

impl Backoff {
    /// Waits for the leave to connect; an error is why the last attempt failed, while somebody else sees to the next one.
    pub(super) async fn turn(&self) -> Result<Turn<'_>, String> {
        let (mut turn, next) = {
            let mut state = self.state();
            if state.failures == 0 {
                return Ok(Turn { backoff: self, alone: false, tried: true });
            }
            if state.taken {
                return Err(state.why.clone());
            }
            state.taken = true;
            (Turn { backoff: self, alone: true, tried: false }, state.next)
        };
        let wait = next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()));
        tokio::time::sleep(wait).await;
        turn.tried = true;
        Ok(turn)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Its values are whole after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leave to connect once. Dropped without a word, the attempt took too long.
pub(super) struct Turn<'a> {
    backoff: &'a Backoff,
    /// The one that others do not wait for.
    alone: bool,
    tried: bool,
}

impl Turn<'_> {
    pub(super) fn succeeded(mut self) {
        let mut state = self.backoff.state();
        // One that began before the failure says nothing about the server now.
        if self.alone {
            *state = State::default();
        }
        self.tried = false;
        self.alone = false;
    }

    pub(super) fn failed(mut self, why: String) {
        self.note(why);
    }

    fn note(&mut self, why: String) {
        let mut state = self.backoff.state();
        // Of many that began together, the first one counts.
        if self.alone || state.failures == 0 {
            let delay = FIRST_DELAY.saturating_mul(1 << state.failures.min(10)).min(LONGEST_DELAY);
            // Processes that lost the same server do not come back together.
            let part = getrandom::u32().map_or(1.0, |n| 0.5 + f64::from(n) / f64::from(u32::MAX) / 2.0);
            state.failures = state.failures.saturating_add(1);
            state.next = Some(Instant::now() + delay.mul_f64(part));
            state.why = why;
        }
        if self.alone {
            state.taken = false;
        }
        self.tried = false;
        self.alone = false;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.tried {
            self.note("the database did not answer in time".into());
        } else if self.alone {
            self.backoff.state().taken = false;
        }
    }
}
