//! Hashes and identifiers: 32-byte digests, hex, and the domain-separated BLAKE3 of FORMAT.md 2.4.

use std::fmt;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

/// 32 raw bytes: a SHA-256 or BLAKE3 digest. Printed as lowercase hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The link of an entry that has no predecessor.
    pub const ZERO: Hash = Hash([0; 32]);

    /// Lowercase hex, 64 characters.
    pub fn to_hex(self) -> String {
        to_hex(&self.0)
    }

    /// Reads exactly 64 lowercase hex characters.
    pub fn from_hex(text: &str) -> Option<Hash> {
        hex_array(text.as_bytes()).map(Hash)
    }

    /// Reads exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Hash> {
        bytes.try_into().ok().map(Hash)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// Lowercase hex of any bytes.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        out.push(char::from(DIGITS[usize::from(b >> 4)]));
        out.push(char::from(DIGITS[usize::from(b & 15)]));
    }
    out
}

/// Reads lowercase hex of even length; anything else is `None`.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let mut out = vec![0; text.len() / 2];
    decode_hex(text.as_bytes(), &mut out).then_some(out)
}

/// Reads exactly 2·N lowercase hex characters.
pub fn hex_array<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    decode_hex(digits, &mut out).then_some(out)
}

fn decode_hex(digits: &[u8], out: &mut [u8]) -> bool {
    let mut seen = 0;
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (HEX[usize::from(pair[0])], HEX[usize::from(pair[1])]);
        seen |= high | low;
        *byte = high << 4 | low;
    }
    digits.len() == 2 * out.len() && seen < 16
}

/// Value of a hex digit, lowercase only; 255 for anything else.
const HEX: [u8; 256] = {
    let mut table = [255; 256];
    let mut n = 0;
    while n < 16 {
        table[b"0123456789abcdef"[n] as usize] = n as u8;
        n += 1;
    }
    table
};

/// SHA-256 over the concatenation of `parts`, in order.
pub fn sha256(parts: &[&[u8]]) -> Hash {
    let mut h = Sha256::new();
    for part in parts {
        h.update(part);
    }
    Hash(h.finalize().into())
}

// Deriving the context key costs as much as hashing a short body, so each is derived once.
static BODY: LazyLock<blake3::Hasher> = LazyLock::new(|| blake3::Hasher::new_derive_key("ledger 2026 v1 body"));
static ENTRY: LazyLock<blake3::Hasher> = LazyLock::new(|| blake3::Hasher::new_derive_key("ledger 2026 v1 entry"));
static EVENT_ID: LazyLock<blake3::Hasher> = LazyLock::new(|| blake3::Hasher::new_derive_key("ledger 2026 v1 event-id"));

fn derive(context: &blake3::Hasher, bytes: &[u8]) -> Hash {
    Hash(*context.clone().update(bytes).finalize().as_bytes())
}

/// BLAKE3 of the body bytes, context `ledger 2026 v1 body`. Covers the body only.
pub fn body_hash(body: &[u8]) -> Hash {
    derive(&BODY, body)
}

/// BLAKE3 of the header bytes, context `ledger 2026 v1 entry`. Covers every header field and, through
/// `body_hash` and `body_sha256`, the body; not the private document's text, nor any signature.
pub fn entry_hash(header: &[u8]) -> Hash {
    derive(&ENTRY, header)
}

/// An entry's id: 16 bytes shaped as UUIDv8 (RFC 9562), derived from the entry's place (FORMAT.md 2.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub [u8; 16]);

impl EventId {
    /// The id of the entry at `index` of `chain`: unique by construction, so no store needs to enforce it.
    pub fn derive(ledger_id: &Hash, chain: u32, index: u64) -> EventId {
        let mut h = EVENT_ID.clone();
        h.update(&ledger_id.0);
        h.update(&chain.to_le_bytes());
        h.update(&index.to_le_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&h.finalize().as_bytes()[..16]);
        id[6] = 0x80 | (id[6] & 0x0f);
        id[8] = 0x80 | (id[8] & 0x3f);
        EventId(id)
    }

    /// Reads the 36-character form, or 32 hex characters without hyphens; hyphens elsewhere are refused.
    pub fn parse(text: &str) -> Option<EventId> {
        let plain: String = text.chars().filter(|c| *c != '-').collect();
        let id = EventId(from_hex(&plain)?.try_into().ok()?);
        (plain == text || id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = to_hex(&self.0);
        write!(f, "{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_refuses_upper_case() {
        let h = sha256(&[b"abc"]);
        assert_eq!(h.to_hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Hash::from_hex(&h.to_hex()), Some(h));
        assert_eq!(Hash::from_hex(&h.to_hex().to_uppercase()), None);
        assert_eq!(from_hex("abc"), None);
    }

    #[test]
    fn event_id_is_a_uuid_v8() {
        let id = EventId::derive(&Hash::ZERO, 0, 7);
        assert_eq!(id.0[6] >> 4, 8);
        assert_eq!(id.0[8] >> 6, 2);
        let text = id.to_string();
        assert_eq!(EventId::parse(&text), Some(id));
        assert_eq!(EventId::parse(&text.replace('-', "")), Some(id));
        assert_eq!(EventId::parse(&format!("{text}-")), None);
    }
}
