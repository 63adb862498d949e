//! Stored rows as they are, and what the format makes of them.

use ledger_engine::domain::projection::Cell;
use ledger_engine::hash::{EventId, Hash, body_hash, entry_hash, sha256};
use ledger_engine::header::{FORMAT_VERSION, HEADER_BYTES_MAX, Header, Text, is_event_type};
use ledger_engine::merkle::leaf_hash;

/// Largest integer of the format: below 2^63.
pub(crate) fn number(cell: &Cell) -> Option<u64> {
    match cell {
        Cell::Int(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

/// Gives a cell as a tag of its type and its bytes (FORMAT.md 10).
pub(crate) fn tagged(cell: &Cell, put: &mut dyn FnMut(u8, &[u8])) {
    match cell {
        Cell::Null => put(1, &[]),
        Cell::Int(n) => put(2, &n.to_le_bytes()),
        Cell::Text(text) => put(3, text.as_bytes()),
        Cell::Blob(bytes) => put(4, bytes),
    }
}

pub(crate) fn text(cell: &Cell) -> Option<&str> {
    match cell {
        Cell::Text(t) => Some(t),
        _ => None,
    }
}

pub(crate) fn blob(cell: &Cell) -> Option<&[u8]> {
    match cell {
        Cell::Blob(b) => Some(b),
        _ => None,
    }
}

pub(crate) fn hash(cell: &Cell) -> Option<Hash> {
    blob(cell).and_then(Hash::from_slice)
}

/// An entry row that can be read, with everything that follows from it alone.
#[derive(Clone, Debug)]
pub(crate) struct EntryRow {
    pub(crate) header: Header,
    pub(crate) entry_hash: Hash,
    pub(crate) parent_index: Option<u64>,
    /// Recomputed from the header's columns and the body.
    pub(crate) digests: Digests,
}

/// A row with its body.
pub(crate) type BodyRow<'c> = (EntryRow, &'c [u8]);

/// Reads a row of `entries`, columns in the order of FORMAT.md 8, and gives its body beside it. `None`: a column is outside its type or range.
pub(crate) fn read_entry<'c>(cells: &'c [Cell], ledger_id: &Hash) -> Option<BodyRow<'c>> {
    let [
        chain,
        idx,
        prev,
        stream,
        revision,
        parent,
        event_id,
        event_type,
        schema,
        time,
        body_h,
        body_s,
        entry_h,
        parent_index,
        body,
    ] = cells
    else {
        return None;
    };
    let stream = text(stream).filter(|s| s.is_ascii())?;
    let header = Header {
        format_version: FORMAT_VERSION,
        ledger_id: ledger_id.0,
        chain: u32::try_from(number(chain)?).ok()?,
        index: number(idx)?,
        prev_hash: hash(prev)?.0,
        stream: stream.to_owned(),
        revision: number(revision).filter(|r| *r > 0)?,
        parent_hash: hash(parent)?.0,
        event_id: blob(event_id)?.try_into().ok()?,
        event_type: text(event_type).filter(|t| is_event_type(t))?.to_owned(),
        schema_version: number(schema).filter(|v| *v == 1)? as u16,
        recorded_at_us: number(time).filter(|t| *t < 1 << 53)? as i64,
        body_hash: hash(body_h)?.0,
        body_sha256: hash(body_s)?.0,
    };
    let parent_index = match parent_index {
        Cell::Null => None,
        cell => Some(number(cell)?),
    };
    let body = blob(body)?;
    let entry_hash = hash(entry_h)?;
    // Any ASCII name decodes here; one that is no stream is a routing fault.
    let digests = Digests::of(&header, body);
    Some((EntryRow { header, entry_hash, parent_index, digests }, body))
}

/// What follows from a header and a body whose fields are in range.
#[derive(Clone, Debug)]
pub(crate) struct Digests {
    pub(crate) header_len: usize,
    pub(crate) hash: Hash,
    pub(crate) leaf: Hash,
    pub(crate) body_ok: bool,
    pub(crate) id_ok: bool,
}

impl Digests {
    pub(crate) fn of<S: Text>(header: &Header<S>, body: &[u8]) -> Digests {
        let mut scratch = [0; HEADER_BYTES_MAX];
        let ledger_id = Hash(header.ledger_id);
        let longer;
        let bytes = match header.encode_to(&mut scratch) {
            Some(bytes) => bytes,
            None => {
                longer = header.encode();
                &longer
            }
        };
        Digests {
            header_len: bytes.len(),
            hash: entry_hash(bytes),
            leaf: leaf_hash(bytes),
            body_ok: body_hash(body).0 == header.body_hash && sha256(&[body]).0 == header.body_sha256,
            id_ok: EventId::derive(&ledger_id, header.chain, header.index).0 == header.event_id,
        }
    }
}
