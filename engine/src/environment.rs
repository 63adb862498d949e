//! Time and randomness, injected so that a run can be repeated byte for byte.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::hash::sha256;

/// Where the engine takes time and randomness from.
pub trait Environment: Send + Sync {
    /// Microseconds since the Unix epoch.
    fn now_us(&self) -> i64;
    /// Fills `bytes` with randomness fit for salts, nonces and ids.
    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()>;
}

/// The machine's clock and random generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnvironment;

impl Environment for SystemEnvironment {
    fn now_us(&self) -> i64 {
        // A clock before 1970 or beyond the year 2255 is replaced by the chain's last time, see the writer.
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(0))
    }

    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        getrandom::fill(bytes).map_err(std::io::Error::other)
    }
}

/// A clock that moves by a fixed step at each reading, and randomness from a seed: for tests, vectors and examples.
#[derive(Debug)]
pub struct SeededEnvironment {
    now_us: AtomicI64,
    step_us: i64,
    state: Mutex<[u8; 32]>,
}

impl SeededEnvironment {
    /// Starts at `now_us` and adds `step_us` at each reading.
    pub fn new(seed: u64, now_us: i64, step_us: i64) -> SeededEnvironment {
        let state = Mutex::new(sha256(&[b"seeded environment", &seed.to_le_bytes()]).0);
        SeededEnvironment { now_us: AtomicI64::new(now_us), step_us, state }
    }
}

impl Environment for SeededEnvironment {
    fn now_us(&self) -> i64 {
        self.now_us.fetch_add(self.step_us, Ordering::Relaxed)
    }

    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for chunk in bytes.chunks_mut(32) {
            *state = sha256(&[&*state]).0;
            let out = sha256(&[b"out", &*state]);
            chunk.copy_from_slice(&out.0[..chunk.len()]);
        }
        Ok(())
    }
}
