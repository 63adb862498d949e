//! Signers act; kids name their public keys. One signature per commit and per checkpoint.

use ed25519_dalek::{Signer as _, SigningKey};

use crate::registry::{Key, Purpose};

/// A signer cannot sign now. Nothing was stored; the caller may try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signer for {kid} is away: {reason}; nothing was written, try again")]
pub struct SignerError {
    /// Which key.
    pub kid: String,
    /// What happened.
    pub reason: String,
}

/// Something that holds an Ed25519 private key.
pub trait Signer: Send + Sync {
    /// The public key, its kid and purpose.
    fn key(&self) -> &Key;

    /// A signature over `message` (RFC 8032, not pre-hashed).
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignerError>;
}

/// A key in memory, read from a file or made from a seed.
pub struct LocalSigner {
    key: Key,
    signing: SigningKey,
}

impl LocalSigner {
    /// A signer whose kid is made from purpose and public key.
    pub fn new(purpose: Purpose, signing: SigningKey) -> LocalSigner {
        LocalSigner { key: Key::named(purpose, signing.verifying_key().to_bytes()), signing }
    }

    /// From a 32-byte seed.
    pub fn from_seed(purpose: Purpose, seed: &[u8; 32]) -> LocalSigner {
        LocalSigner::new(purpose, SigningKey::from_bytes(seed))
    }
}

impl Signer for LocalSigner {
    fn key(&self) -> &Key {
        &self.key
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignerError> {
        Ok(self.signing.sign(message).to_bytes())
    }
}

impl std::fmt::Debug for LocalSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalSigner").field("kid", &self.key.kid).finish_non_exhaustive()
    }
}
