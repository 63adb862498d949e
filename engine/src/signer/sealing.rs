//! Keys that seal short secrets, where keys that sign are: so the private key of a delivery lies nowhere in the clear.

use zeroize::Zeroizing;

use super::remote::RemoteError;
use super::{Keeper, Pending};

/// A secret, sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Names the key that opens it, for the history: `file:…`, `awskms:ARN` or `pkcs11:…`. Holds no secret.
    pub source: String,
    /// What that key made of it.
    pub bytes: Vec<u8>,
}

/// A secret to come, or the reason why it does not.
pub type Opening<'a> = Pending<'a, Result<Zeroizing<Vec<u8>>, RemoteError>>;

/// Seals secrets of up to 4,096 bytes and opens them again. Calls may be dropped before they answer.
pub trait SealingKey: Send + Sync {
    /// Seals a secret. It opens with the same context only.
    fn seal<'a>(&'a self, secret: &'a [u8], context: &'a [u8]) -> Pending<'a, Result<Sealed, RemoteError>>;

    /// Opens it, also after newer secrets are sealed under another key of the same place.
    fn open<'a>(&'a self, sealed: &'a Sealed, context: &'a [u8]) -> Opening<'a>;

    /// What keeps the key.
    fn keeper(&self) -> Keeper;
}

#[cfg(feature = "remote-signers")]
pub(super) fn elsewhere(source: &str) -> RemoteError {
    RemoteError::lasting(format!("it was sealed under {source}, which is not asked here"))
}
