//! Keys that are elsewhere: each request has a time limit, is repeated a few times, and is not made at all for a while after many that
//! failed. Nothing that comes back is believed before it verifies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{Keeper, Pending, Signer, SignerError, SignerStats};
use crate::commit::verify_ed25519;

/// Why a key that is elsewhere did not sign. The text holds no secret and nothing that was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RemoteError {
    /// What happened.
    pub reason: String,
    /// Whether the same may succeed in a moment: not with a wrong PIN, or without the right to sign.
    pub again: bool,
}

impl RemoteError {
    /// Something that may pass.
    pub fn passing(reason: impl Into<String>) -> RemoteError {
        RemoteError { reason: reason.into(), again: true }
    }

    /// Something that somebody has to mend.
    pub fn lasting(reason: impl Into<String>) -> RemoteError {
        RemoteError { reason: reason.into(), again: false }
    }

    /// Said of a place that could not be asked which keys it has.
    pub fn of(self, place: &str) -> SignerError {
        SignerError { kid: place.to_owned(), reason: format!("{place}: {}", self.reason) }
    }
}

/// A key in a token or behind a service. Calls may be dropped before they answer.
pub trait RemoteKey: Send + Sync {
    /// Whatever comes back for a signature over `message`.
    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<Vec<u8>, RemoteError>>;

    /// Whether it would sign, found out without signing.
    fn check(&self) -> Pending<'_, Result<(), RemoteError>>;

    /// What keeps it.
    fn keeper(&self) -> Keeper;
}

/// How patient a remote signer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long one attempt may take.
    pub attempt: Duration,
    /// Attempts for one signature.
    pub attempts: u32,
    /// Time before the second attempt; twice as long before each one after it.
    pub pause: Duration,
    /// How long all of them may take together.
    pub total: Duration,
    /// After so many signatures in a row that were not given, the key is left alone for a while.
    pub failures: u32,
    /// How long, the first time; twice as long each time that the first request after it fails too.
    pub rest: Duration,
    /// The longest rest.
    pub rest_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            attempt: Duration::from_secs(2),
            attempts: 3,
            pause: Duration::from_millis(50),
            total: Duration::from_secs(5),
            failures: 3,
            rest: Duration::from_millis(500),
            rest_max: Duration::from_secs(15),
        }
    }
}

/// The answer, or that there was none in time.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &str,
    asking: impl Future<Output = Result<T, RemoteError>>,
) -> Result<T, RemoteError> {
    let late = || RemoteError::passing(format!("no {what} within {} ms", limit.as_millis()));
    timeout(limit, asking).await.unwrap_or_else(|_| Err(late()))
}

/// A circuit breaker: closed while `rest` is zero; open until `until`, then half open for one request.
struct Breaker {
    failures: u32,
    rest: Duration,
    until: Option<Instant>,
    trying: bool,
    last: String,
}

/// A signer whose key is elsewhere.
pub struct RemoteSigner {
    public_key: [u8; 32],
    name: String,
    key: Arc<dyn RemoteKey>,
    patience: Patience,
    breaker: Mutex<Breaker>,
    signed: AtomicU64,
    errors: AtomicU64,
    refused: AtomicU64,
    took_us: AtomicU64,
}

impl RemoteSigner {
    /// A signer of the key that has this public key. `name` says in errors where it is, without secrets.
    pub fn new(public_key: [u8; 32], name: String, key: Arc<dyn RemoteKey>, patience: Patience) -> RemoteSigner {
        let breaker = Breaker { failures: 0, rest: Duration::ZERO, until: None, trying: false, last: String::new() };
        let (breaker, zero) = (Mutex::new(breaker), || AtomicU64::new(0));
        let (signed, errors, refused, took_us) = (zero(), zero(), zero(), zero());
        RemoteSigner { public_key, name, key, patience, breaker, signed, errors, refused, took_us }
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn away(&self, reason: impl std::fmt::Display) -> SignerError {
        SignerError { kid: self.name.clone(), reason: format!("{}: {reason}", self.name) }
    }

    /// Lets a request through, or says for how long none is made. While the breaker is open it is the single trial.
    fn admit(&self) -> Result<Option<Trial<'_>>, SignerError> {
        let mut breaker = self.breaker();
        if let Some(until) = breaker.until {
            let now = Instant::now();
            if now < until || breaker.trying {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let left = until.saturating_duration_since(now).as_millis();
                return Err(self.away(format_args!("{} (not asked again for {left} ms)", breaker.last)));
            }
            breaker.trying = true;
            return Ok(Some(Trial(self)));
        }
        Ok(None)
    }

    fn concluded(&self, failure: Option<&RemoteError>) {
        let mut breaker = self.breaker();
        let Some(failure) = failure else {
            (breaker.failures, breaker.rest, breaker.until) = (0, Duration::ZERO, None);
            return;
        };
        breaker.failures = breaker.failures.saturating_add(1);
        breaker.last.clone_from(&failure.reason);
        // What somebody has to mend is not made worse by asking: a token counts wrong PINs, and a service bills.
        if breaker.failures >= self.patience.failures || !failure.again {
            let rest = if breaker.rest.is_zero() { self.patience.rest } else { breaker.rest * 2 };
            breaker.rest = rest.min(self.patience.rest_max);
            breaker.until = Some(Instant::now() + breaker.rest);
        }
    }

    async fn ask(&self, message: &[u8]) -> Result<[u8; 64], RemoteError> {
        let given = within(self.patience.attempt, "answer", self.key.sign(message)).await?;
        let signature = <[u8; 64]>::try_from(given.as_slice());
        let signature =
            signature.map_err(|_| RemoteError::passing(format!("it gave {} bytes, not a signature", given.len())))?;
        if !verify_ed25519(&self.public_key, message, &signature) {
            return Err(RemoteError::passing("its signature does not verify with the key that it should have"));
        }
        Ok(signature)
    }

    async fn attempts(&self, message: &[u8]) -> Result<[u8; 64], RemoteError> {
        let mut pause = self.patience.pause;
        for attempt in 1.. {
            let error = match self.ask(message).await {
                Ok(signature) => return Ok(signature),
                Err(error) => error,
            };
            self.errors.fetch_add(1, Ordering::Relaxed);
            if !error.again || attempt >= self.patience.attempts {
                return Err(error);
            }
            sleep(pause).await;
            pause *= 2;
        }
        Err(RemoteError::passing("not asked"))
    }
}

/// The single request of an open breaker; one that is given up counts as nothing, so that the next one may try.
struct Trial<'a>(&'a RemoteSigner);

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.0.breaker().trying = false;
    }
}

impl Signer for RemoteSigner {
    fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<[u8; 64], SignerError>> {
        Box::pin(async move {
            let trial = self.admit()?;
            let start = Instant::now();
            let result = within(self.patience.total, "signature", self.attempts(message)).await;
            self.concluded(result.as_ref().err());
            drop(trial);
            if result.is_ok() {
                self.signed.fetch_add(1, Ordering::Relaxed);
                self.took_us.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
            }
            result.map_err(|e| self.away(e))
        })
    }

    fn keeper(&self) -> Keeper {
        self.key.keeper()
    }

    fn check(&self) -> Pending<'_, Result<(), SignerError>> {
        Box::pin(async move {
            let resting = {
                let breaker = self.breaker();
                breaker.until.filter(|until| Instant::now() < *until).map(|_| breaker.last.clone())
            };
            if let Some(last) = resting {
                return Err(self.away(last));
            }
            within(self.patience.attempt, "answer", self.key.check()).await.map_err(|e| self.away(e))
        })
    }

    fn stats(&self) -> SignerStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SignerStats {
            signed: of(&self.signed),
            errors: of(&self.errors),
            refused: of(&self.refused),
            took: Duration::from_micros(of(&self.took_us)),
        }
    }
}
