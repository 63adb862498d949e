//! The header codec: fourteen fields, fixed-width little-endian (FORMAT.md 2.3). The only module that uses bincode.
//!
//! bincode's last release is pinned; tests hold its output against `wincode`, which writes the same bytes, so
//! that it can be replaced without a change of format.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use crate::hash::{EventId, Hash, entry_hash};
use crate::merkle::leaf_hash;

/// `format_version` of every header written today.
pub const FORMAT_VERSION: u16 = 1;
/// Largest value of an index, revision or size: below 2^63.
pub const COUNT_MAX: u64 = i64::MAX as u64;
/// Longest possible header: 64 ASCII bytes of stream and of type, and the fixed fields.
pub const HEADER_BYTES_MAX: usize = 2 + 32 + 4 + 8 + 32 + 8 + 64 + 8 + 32 + 16 + 8 + 64 + 2 + 8 + 32 + 32;

/// A string of a header.
pub trait Text: Encode + AsRef<str> {}

impl<T: Encode + AsRef<str>> Text for T {}

/// The header of an entry. Fields are encoded in this order; every one is covered by the entry hash. `S` is a string, or one
/// that is borrowed from a line.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Header<S = String> {
    /// Always [`FORMAT_VERSION`].
    pub format_version: u16,
    /// SHA-256 over the genesis body, FORMAT.md 4.
    pub ledger_id: [u8; 32],
    /// Which chain, from 0.
    pub chain: u32,
    /// Place in the chain, from 0, without gaps.
    pub index: u64,
    /// Entry hash of index − 1; zeros at 0.
    pub prev_hash: [u8; 32],
    /// Stream name, `[a-z][a-z0-9-]{0,63}`.
    pub stream: S,
    /// Place in the stream, from 1, without gaps.
    pub revision: u64,
    /// Entry hash of the stream's previous entry; zeros at revision 1.
    pub parent_hash: [u8; 32],
    /// [`EventId::derive`] of ledger, chain and index.
    pub event_id: [u8; 16],
    /// `[a-z][a-z0-9_.]{0,63}`.
    pub event_type: S,
    /// Which rules judge the entry, from 1.
    pub schema_version: u16,
    /// Microseconds since the Unix epoch; never decreases along a chain.
    pub recorded_at_us: i64,
    /// BLAKE3 of the body, context `ledger 2026 v1 body`.
    pub body_hash: [u8; 32],
    /// SHA-256 of the body.
    pub body_sha256: [u8; 32],
}

/// Why bytes are not a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Too short, a bad length, or not text.
    #[error("not a header: {0}")]
    Malformed(String),
    /// Bytes after the last field.
    #[error("{0} bytes after the header")]
    Trailing(usize),
    /// A field outside its range or grammar.
    #[error("header field {0} is outside its range")]
    Field(&'static str),
}

// `config::legacy()` with a bound, so that a hostile length cannot ask for memory.
const CONFIG: Configuration<LittleEndian, Fixint, Limit<1024>> = bincode::config::legacy().with_limit::<1024>();

impl<S: Text> Header<S> {
    /// The same, with strings of its own.
    pub fn owned(&self) -> Header {
        Header {
            format_version: self.format_version,
            ledger_id: self.ledger_id,
            chain: self.chain,
            index: self.index,
            prev_hash: self.prev_hash,
            stream: self.stream.as_ref().to_owned(),
            revision: self.revision,
            parent_hash: self.parent_hash,
            event_id: self.event_id,
            event_type: self.event_type.as_ref().to_owned(),
            schema_version: self.schema_version,
            recorded_at_us: self.recorded_at_us,
            body_hash: self.body_hash,
            body_sha256: self.body_sha256,
        }
    }

    /// The header's bytes, the input of the entry hash and of the RFC 6962 leaf.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES_MAX);
        self.encode_into(&mut out);
        out
    }

    /// Appends the header's bytes to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail, and the grammar keeps a header far below the limit.
        bincode::encode_into_std_write(self, out, CONFIG).expect("a header encodes");
    }

    /// Puts the header's bytes into `out` and returns them. `None`: its names are longer than the grammar allows.
    pub fn encode_to<'o>(&self, out: &'o mut [u8; HEADER_BYTES_MAX]) -> Option<&'o [u8]> {
        let len = bincode::encode_into_slice(self, out, CONFIG).ok()?;
        Some(&out[..len])
    }

    /// Checks ranges and grammars of all fields.
    pub fn check(&self) -> Result<(), HeaderError> {
        if !is_stream_name(self.stream.as_ref()) {
            return Err(HeaderError::Field("stream"));
        }
        self.check_beside_stream()
    }

    /// Like [`Header::check`], for whoever parses the stream's name anyway.
    pub fn check_beside_stream(&self) -> Result<(), HeaderError> {
        let field = |ok: bool, name| if ok { Ok(()) } else { Err(HeaderError::Field(name)) };
        field(self.format_version == FORMAT_VERSION, "format_version")?;
        field(self.index <= COUNT_MAX, "index")?;
        field((1..=COUNT_MAX).contains(&self.revision), "revision")?;
        field(is_event_type(self.event_type.as_ref()), "event_type")?;
        field(self.schema_version == 1, "schema_version")?;
        field((0..1 << 53).contains(&self.recorded_at_us), "recorded_at_us")
    }

    /// BLAKE3 over the header's bytes.
    pub fn entry_hash(&self) -> Hash {
        entry_hash(&self.encode())
    }

    /// RFC 6962 leaf hash over the header's bytes.
    pub fn leaf_hash(&self) -> Hash {
        leaf_hash(&self.encode())
    }

    /// The id as a type.
    pub fn id(&self) -> EventId {
        EventId(self.event_id)
    }
}

impl Header {
    /// Reads a header. Refuses trailing bytes and any field outside its range, so that what is accepted
    /// re-encodes to the same bytes.
    pub fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        let (header, used): (Header, usize) =
            bincode::decode_from_slice(bytes, CONFIG).map_err(|e| HeaderError::Malformed(e.to_string()))?;
        if used != bytes.len() {
            return Err(HeaderError::Trailing(bytes.len() - used));
        }
        header.check()?;
        Ok(header)
    }
}

/// `[a-z][a-z0-9-]{0,63}`
pub fn is_stream_name(text: &str) -> bool {
    is_name(text, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// `[a-z][a-z0-9_.]{0,63}`
pub fn is_event_type(text: &str) -> bool {
    is_name(text, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.')
}

fn is_name(text: &str, rest: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 64 && bytes.first().is_some_and(u8::is_ascii_lowercase) && bytes[1..].iter().all(|b| rest(*b))
}
