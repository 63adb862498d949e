//! The signers that a process has, found by what the key registry says of their public keys.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Keeper, Signer, SignerError};
use crate::registry::{Key, KeyRecord, Purpose, Registry};

/// How often sources are asked for one and the same key that the registry has and the ring has not.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Where signers are found: a directory of key files, a token, a signing service. Asked when a ledger is opened, and again when the
/// registry names a key that is not there: so a rotation is taken over without a restart. Calls block.
pub trait SignerSource: Send + Sync {
    /// All signers that there are now. Those that are not enrolled are kept for the day when they are.
    fn signers(&self) -> Result<Vec<Arc<dyn Signer>>, SignerError>;
}

struct Held {
    signers: Vec<Arc<dyn Signer>>,
    /// When the sources were asked last, by the kid for which.
    asked: HashMap<String, Instant>,
    /// What a source said last, if it could not be asked.
    trouble: Option<SignerError>,
}

/// A signer, and its key as enrolled.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Name, purpose and public key.
    pub key: Key,
    /// Who has the private key.
    pub signer: Arc<dyn Signer>,
    /// Whether the last signature of the ring was not given.
    away: Arc<AtomicBool>,
}

impl Chosen {
    /// A signature over `message`. Errors name the kid.
    pub async fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignerError> {
        let signed = self.signer.sign(message).await;
        self.away.store(signed.is_err(), Ordering::Relaxed);
        signed.map_err(|e| SignerError { kid: self.key.kid.clone(), ..e })
    }
}

/// The signers of a process. Which of them signs follows from the registry: an emergency key for as long as it is held here, else the
/// newest valid key of the purpose that is.
pub struct Keyring {
    held: Mutex<Held>,
    /// Held by whoever asks sources.
    asking: Mutex<()>,
    sources: Vec<Box<dyn SignerSource>>,
    /// What may keep keys that are not for emergencies; anything without this.
    admitted: Option<Vec<Keeper>>,
    away: Arc<AtomicBool>,
}

impl Keyring {
    /// A ring of these signers and no source.
    pub fn new(signers: impl IntoIterator<Item = Arc<dyn Signer>>) -> Keyring {
        let held = Held { signers: signers.into_iter().collect(), asked: HashMap::new(), trouble: None };
        Keyring {
            held: Mutex::new(held),
            asking: Mutex::default(),
            sources: Vec::new(),
            admitted: None,
            away: Arc::default(),
        }
    }

    /// The ring with one more place to look for signers.
    #[must_use]
    pub fn with_source(mut self, source: Box<dyn SignerSource>) -> Keyring {
        self.sources.push(source);
        self
    }

    /// The ring as guarded: nothing signs but what these keep, and emergency keys wherever they are.
    #[must_use]
    pub fn admitting(mut self, keepers: &[Keeper]) -> Keyring {
        self.admitted = Some(keepers.to_vec());
        self
    }

    /// Adds a signer.
    pub fn add(&self, signer: Arc<dyn Signer>) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).add(signer);
    }

    /// Whatever is held now, in no order.
    pub fn signers(&self) -> Vec<Arc<dyn Signer>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).signers.clone()
    }

    /// Asks the sources what there is now. Blocks. A source that cannot be asked does not hide what another one has.
    pub fn refresh(&self) -> Result<(), SignerError> {
        let (mut found, mut trouble) = (Vec::new(), None);
        for source in &self.sources {
            match source.signers() {
                Ok(signers) => found.extend(signers),
                Err(e) => trouble = Some(e),
            }
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        found.into_iter().for_each(|signer| held.add(signer));
        held.trouble.clone_from(&trouble);
        trouble.map_or(Ok(()), Err)
    }

    /// The signer for a purpose, and its key as enrolled, for a statement that names the first `registry_size` entries of the
    /// registry. Blocks when a source has to be asked, which happens at most once a second.
    pub fn signer(&self, registry: &Registry, registry_size: u64, purpose: Purpose) -> Result<Chosen, SignerError> {
        let newest_first: Vec<&KeyRecord> = registry.valid(registry_size, purpose).collect();
        let (emergency, usual): (Vec<&KeyRecord>, Vec<&KeyRecord>) =
            newest_first.into_iter().partition(|record| record.justification.is_some());
        // Emergency keys lie in a safe. They are looked for when there is nothing else.
        let away = self.away.load(Ordering::Relaxed);
        let wanted = usual.first().into_iter().chain(emergency.first().filter(|_| away || usual.is_empty()));
        for record in wanted {
            if self.usable(record).is_some() {
                continue;
            }
            // Who comes while another one asks waits for the answer.
            let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            if self.usable(record).is_none() && self.may_ask(&record.key.kid) {
                // What it says is kept, and said if no other key serves.
                let _ = self.refresh();
            }
        }
        let found = emergency.iter().chain(&usual).find_map(|record| {
            Some(Chosen { signer: self.usable(record)?, key: record.key.clone(), away: Arc::clone(&self.away) })
        });
        found.ok_or_else(|| self.missing(usual.first().or(emergency.first()).copied(), purpose))
    }

    /// Whether a valid key of the purpose is held. No source is asked.
    pub fn holds(&self, registry: &Registry, purpose: Purpose) -> bool {
        registry.valid(registry.size(), purpose).any(|record| self.usable(record).is_some())
    }

    /// The signer of a key, if it is held and admitted.
    fn usable(&self, record: &KeyRecord) -> Option<Arc<dyn Signer>> {
        self.held(&record.key).filter(|signer| record.justification.is_some() || self.admits(signer.keeper()))
    }

    /// Whether what keeps a key may sign.
    pub fn admits(&self, keeper: Keeper) -> bool {
        self.admitted.as_ref().is_none_or(|admitted| admitted.contains(&keeper))
    }

    fn held(&self, key: &Key) -> Option<Arc<dyn Signer>> {
        let public_key = key.public_key.ed25519()?;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.signers.iter().find(|s| s.public_key() == public_key).cloned()
    }

    fn may_ask(&self, kid: &str) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let due = held.asked.get(kid).is_none_or(|at| at.elapsed() >= ASK_AGAIN);
        if due {
            held.asked.insert(kid.to_owned(), Instant::now());
        }
        due
    }

    fn missing(&self, newest: Option<&KeyRecord>, purpose: Purpose) -> SignerError {
        let Some(newest) = newest else {
            let reason = format!("the key registry has no valid {} key", purpose.as_str());
            return SignerError { kid: purpose.as_str().to_owned(), reason };
        };
        if self.held(&newest.key).is_some() {
            let reason = "its private key is kept by what the guards forbid (REQUIRE_KMS, REQUIRE_SIGNING_PROXY)";
            return SignerError { kid: newest.key.kid.clone(), reason: reason.into() };
        }
        let trouble = self.held.lock().unwrap_or_else(PoisonError::into_inner).trouble.clone();
        let reason = match trouble {
            Some(trouble) => trouble.reason,
            None => "no signer of this process has that key".into(),
        };
        SignerError { kid: newest.key.kid.clone(), reason }
    }
}

impl Held {
    fn add(&mut self, signer: Arc<dyn Signer>) {
        let public_key = signer.public_key();
        // The one that is there keeps its sessions and its counters.
        if !self.signers.iter().any(|s| s.public_key() == public_key) {
            self.signers.push(signer);
        }
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.signers()).finish()
    }
}
