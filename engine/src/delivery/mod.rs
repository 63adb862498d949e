//! What a buyer gets: the artifact encrypted under a key of its own ([`stream`]), which is wrapped for the buyer ([`recipient`]). Both are
//! published formats that programs in other languages read; FORMAT.md 19 says which.

pub mod recipient;
pub mod stream;

use std::path::Path;

use zeroize::Zeroizing;

use crate::hash::{Hash, from_hex, to_hex};
use crate::keys::{KeyFileError, read_secret, write_secret};

/// Bytes of a content key.
pub const CONTENT_KEY_BYTES: usize = 32;

/// The key that one delivery is encrypted under. It is made for it, and wiped when it is dropped.
pub struct ContentKey(Zeroizing<[u8; CONTENT_KEY_BYTES]>);

impl ContentKey {
    /// A key from randomness.
    pub fn new(random: [u8; CONTENT_KEY_BYTES]) -> ContentKey {
        ContentKey(Zeroizing::new(random))
    }

    /// Reads a key that encrypts others from a file of 64 hex characters that only its owner may read.
    pub fn read(path: &Path) -> Result<ContentKey, KeyFileError> {
        let bytes = from_hex(read_secret(path)?.trim()).map(Zeroizing::new);
        let bytes = bytes.and_then(|bytes| <[u8; CONTENT_KEY_BYTES]>::try_from(&bytes[..]).ok());
        bytes.map(ContentKey::new).ok_or_else(|| KeyFileError::Malformed {
            path: path.to_owned(),
            reason: "expected 64 hex characters".into(),
        })
    }

    /// Writes that file, which must not exist.
    pub fn write(&self, path: &Path) -> Result<(), KeyFileError> {
        write_secret(path, Zeroizing::new(format!("{}\n", to_hex(&self.0[..]))).as_bytes())
    }
}

/// What a delivery is bound to: the associated data of its stream, and the `info` of HPKE. `"ledger/delivery/v1\0"`, the ledger's id, the
/// delivery's stream name.
pub fn context(ledger_id: &Hash, delivery_id: &str) -> Vec<u8> {
    [b"ledger/delivery/v1\0", &ledger_id.0[..], delivery_id.as_bytes()].concat()
}
