//! What a buyer gets: the artifact encrypted under a key of its own ([`stream`]), which is wrapped for the buyer ([`recipient`]). Both are
//! published formats that programs in other languages read; FORMAT.md 19 says which.

pub mod own_key;
pub mod recipient;
pub mod stream;

use zeroize::Zeroizing;

use crate::hash::Hash;

/// Bytes of a content key.
pub const CONTENT_KEY_BYTES: usize = 32;

/// The key that one delivery is encrypted under. It is made for it, and wiped when it is dropped.
pub struct ContentKey(Zeroizing<[u8; CONTENT_KEY_BYTES]>);

impl ContentKey {
    /// A key from randomness.
    pub fn new(random: [u8; CONTENT_KEY_BYTES]) -> ContentKey {
        ContentKey(Zeroizing::new(random))
    }
}

/// What a delivery is bound to: the associated data of its stream, and the `info` of HPKE. `"ledger/delivery/v1\0"`, the ledger's id, the
/// delivery's stream name.
pub fn context(ledger_id: &Hash, delivery_id: &str) -> Vec<u8> {
    [b"ledger/delivery/v1\0", &ledger_id.0[..], delivery_id.as_bytes()].concat()
}
