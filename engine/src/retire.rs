//! Rotation and revocation: a change of keys that records every chain's size, so that the old key counts up to there and no further.

use std::sync::Arc;

use crate::domain::decide::{Refusal, RefusalCode};
use crate::ledger::{AppendError, Appended, Ledger};
use crate::registry::{Action, Key, Purpose, Registry};
use crate::signer::SignerError;
use crate::store::StoreError;
use crate::writer::Writer;

/// Which key is to count no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retire {
    /// It makes room for another one of the same purpose.
    Rotate {
        /// The old key.
        old_kid: String,
        /// The key that comes for it.
        key: Key,
    },
    /// It goes without a successor.
    Revoke {
        /// The key.
        kid: String,
        /// Why, for those who read the registry years later.
        reason: String,
        /// Where somebody else may have had the key: a size of each chain, ascending by chain. What it signed from there on is not
        /// covered.
        compromised_since: Option<Vec<u64>>,
    },
}

/// The signatures over the statement of a change of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// By the governance key.
    pub governance: [u8; 64],
    /// By the incoming key, where there is one.
    pub possession: Option<Vec<u8>>,
}

/// Signs the statement of a change of keys. Called while every chain waits: it must be quick, or give up.
pub type Authorise = Box<dyn FnMut(&[u8]) -> Result<Authority, SignerError> + Send>;

impl Retire {
    /// The change as recorded, for chains of these sizes.
    pub(crate) fn action(&self, cut: Vec<u64>) -> Action {
        match self.clone() {
            Retire::Rotate { old_kid, key } => Action::Rotate { old_kid, key, cut },
            Retire::Revoke { kid, reason, compromised_since } => Action::Revoke { kid, reason, cut, compromised_since },
        }
    }

    /// Refuses what would leave a ledger to which nobody can write.
    pub(crate) fn check(&self, registry: &Registry) -> Result<(), Refusal> {
        let Retire::Revoke { kid, .. } = self else { return Ok(()) };
        let Some(record) = registry.record(kid).filter(|r| r.retired.is_none()) else { return Ok(()) };
        let purpose = record.key.purpose;
        let needed = matches!(purpose, Purpose::Governance | Purpose::Commit | Purpose::Checkpoint);
        if !needed || registry.valid(registry.size(), purpose).any(|other| other.key.kid != *kid) {
            return Ok(());
        }
        let message = format!(
            "{kid} is the last valid {} key, and without one nothing can be recorded any more, not even its successor: enrol another one \
             first, or rotate it",
            purpose.as_str()
        );
        Err(Refusal::new(RefusalCode::KeyRefused, message))
    }
}

impl Ledger {
    /// Retires a key. All chains are locked, their sizes are the cut, `authorise` signs, and the change is appended to chain 0. Who
    /// writes with the old key is refused from then on, in every process, and signs again with a key that is valid.
    pub async fn retire(&self, retire: Retire, authorise: Authorise) -> Result<Appended, AppendError> {
        let shared = Arc::clone(&self.shared);
        let retiring = tokio::task::spawn_blocking(move || {
            let writer = Writer::new(Arc::clone(&shared), 0)?;
            let appended = writer.retire(&retire, authorise)?;
            shared.refresh_registry()?;
            Ok(appended)
        });
        retiring.await.unwrap_or_else(|e| Err(StoreError::Unavailable(format!("the task died: {e}")).into()))
    }
}
