//! Signers hold Ed25519 private keys, here or elsewhere. A signer has no name and no purpose: the key registry gives both to its public
//! key, so that no signer can be used for what governance did not admit it for.

#[cfg(feature = "write")]
pub mod keyring;
#[cfg(feature = "remote-signers")]
pub mod kms;
#[cfg(feature = "remote-signers")]
pub mod pkcs11;
#[cfg(feature = "remote-signers")]
pub mod place;
#[cfg(feature = "remote-signers")]
pub mod proxy;
#[cfg(feature = "write")]
pub mod remote;
#[cfg(feature = "write")]
pub mod sealing;

use std::future::{Future, ready};
use std::pin::Pin;
use std::time::Duration;

use ed25519_dalek::SigningKey;

use crate::hash::to_hex;
use crate::registry::{Key, Purpose};

/// A signer cannot sign now. Nothing was stored; the caller may try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signer for {kid} is away: {reason}; nothing was written, try again")]
pub struct SignerError {
    /// Which key; its purpose where there is none.
    pub kid: String,
    /// What happened.
    pub reason: String,
}

/// An answer to come.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What keeps the private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keeper {
    /// This process: a key file, or a seed.
    Local,
    /// A PKCS#11 token.
    Pkcs11,
    /// AWS KMS.
    Kms,
    /// A signing proxy.
    Proxy,
}

impl Keeper {
    /// Its word in answers, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Keeper::Local => "local",
            Keeper::Pkcs11 => "pkcs11",
            Keeper::Kms => "kms",
            Keeper::Proxy => "proxy",
        }
    }
}

/// What a signer was asked for since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignerStats {
    /// Signatures that were given and verify.
    pub signed: u64,
    /// Attempts that failed: no answer in time, an error, a signature that does not verify.
    pub errors: u64,
    /// Requests refused unasked, since the attempts before them failed.
    pub refused: u64,
    /// Time that the signatures took, in all.
    pub took: Duration,
}

/// Something that holds an Ed25519 private key.
pub trait Signer: Send + Sync {
    /// The public key.
    fn public_key(&self) -> [u8; 32];

    /// A signature over `message` (RFC 8032, not pre-hashed) that verifies. A signer at hand answers when it is first polled.
    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<[u8; 64], SignerError>>;

    /// What keeps the private key.
    fn keeper(&self) -> Keeper {
        Keeper::Local
    }

    /// Whether it would sign now, found out without changing anything.
    fn check(&self) -> Pending<'_, Result<(), SignerError>> {
        Box::pin(ready(Ok(())))
    }

    /// What it was asked for; nothing is counted of keys at hand, which cannot fail.
    fn stats(&self) -> SignerStats {
        SignerStats::default()
    }
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

    /// The public key with the name and purpose that it is enrolled with, unless somebody chose other ones.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// A signature over `message`, at once.
    pub fn signature(&self, message: &[u8]) -> [u8; 64] {
        ed25519_dalek::Signer::sign(&self.signing, message).to_bytes()
    }
}

/// A key in memory is at hand.
impl Signer for SigningKey {
    fn public_key(&self) -> [u8; 32] {
        self.verifying_key().to_bytes()
    }

    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<[u8; 64], SignerError>> {
        Box::pin(ready(Ok(ed25519_dalek::Signer::sign(self, message).to_bytes())))
    }
}

impl Signer for LocalSigner {
    fn public_key(&self) -> [u8; 32] {
        self.signing.public_key()
    }

    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<[u8; 64], SignerError>> {
        Signer::sign(&self.signing, message)
    }
}

impl std::fmt::Debug for LocalSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalSigner").field("kid", &self.key.kid).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for dyn Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({}, {})", self.keeper().as_str(), to_hex(&self.public_key()))
    }
}
