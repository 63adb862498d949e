//! What is remembered of each entry between the passes: a record in a temporary file.

use std::ops::Range;

use ledger_engine::hash::Hash;

use crate::finding::Code;
use crate::spill::{Forward, Log, Trouble};

/// What is known of an entry after the first pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) index: u64,
    /// Recomputed; zeros if undecodable.
    pub(crate) hash: Hash,
    /// As stored.
    pub(crate) stored: Hash,
    pub(crate) leaf: Hash,
    pub(crate) damage: Option<Code>,
    /// Of no account where the chain is tainted.
    pub(crate) stream_fault: Option<Code>,
    /// Something at this place is damaged, if only a second row.
    pub(crate) spoiled: bool,
    /// Header and body.
    pub(crate) bytes: u32,
    /// Set for entries of the key registry.
    pub(crate) registry_revision: Option<u64>,
}

/// Index, three hashes, bytes, registry revision, two codes, spoiled.
const RECORD: usize = 8 + 3 * 32 + 4 + 8 + 2 + 1;

impl Seen {
    fn to_record(self) -> [u8; RECORD] {
        let mut out = [0; RECORD];
        let mut rest = &mut out[..];
        let mut put = |bytes: &[u8]| {
            let (field, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            field.copy_from_slice(bytes);
            rest = after;
        };
        put(&self.index.to_le_bytes());
        put(&self.hash.0);
        put(&self.stored.0);
        put(&self.leaf.0);
        put(&self.bytes.to_le_bytes());
        // A revision is never 0.
        put(&self.registry_revision.unwrap_or(0).to_le_bytes());
        put(&[code_number(self.damage), code_number(self.stream_fault), u8::from(self.spoiled)]);
        out
    }

    fn from_record(record: &[u8; RECORD]) -> Seen {
        let mut rest = &record[..];
        let mut take = |len: usize| {
            let (field, after) = rest.split_at(len);
            rest = after;
            field
        };
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let hash = |bytes: &[u8]| Hash::from_slice(bytes).unwrap_or_default();
        Seen {
            index: number(take(8)),
            hash: hash(take(32)),
            stored: hash(take(32)),
            leaf: hash(take(32)),
            bytes: number(take(4)) as u32,
            registry_revision: Some(number(take(8))).filter(|r| *r > 0),
            damage: code_of(take(1)[0]),
            stream_fault: code_of(take(1)[0]),
            spoiled: take(1)[0] > 0,
        }
    }
}

fn code_number(code: Option<Code>) -> u8 {
    code.map_or(0, |code| code as u8 + 1)
}

fn code_of(number: u8) -> Option<Code> {
    Code::ALL.get(usize::from(number.checked_sub(1)?)).copied()
}

/// Entries in the order of their indexes, each once.
#[derive(Debug, Default)]
pub(crate) struct SeenLog(Log<RECORD>);

impl SeenLog {
    pub(crate) fn new(trouble: &Trouble) -> SeenLog {
        SeenLog(Log::new(trouble))
    }

    pub(crate) fn push(&mut self, seen: Seen) {
        self.0.push(&seen.to_record());
    }

    /// An entry.
    pub(crate) fn at(&self, index: u64) -> Option<Seen> {
        self.0.at(index).map(|record| Seen::from_record(&record))
    }

    /// Entries of a range, as far as they are there.
    pub(crate) fn span(&self, indexes: Range<u64>) -> Vec<Seen> {
        self.0.span(indexes).iter().map(Seen::from_record).collect()
    }

    /// Leaf hashes of `count` entries from the record `from` on.
    pub(crate) fn leaves(&self, from: u64, count: u64) -> Vec<Hash> {
        self.0.read(from, count).iter().map(|record| Seen::from_record(record).leaf).collect()
    }

    /// All entries, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = Seen> + '_ {
        self.0.forward().map(|record| Seen::from_record(&record))
    }

    /// Looks entries up, by ever larger indexes.
    pub(crate) fn forward(&self) -> SeenForward<'_> {
        SeenForward(self.0.forward())
    }
}

/// A reader of [`SeenLog::forward`].
pub(crate) struct SeenForward<'a>(Forward<'a, RECORD>);

impl SeenForward<'_> {
    pub(crate) fn at(&mut self, index: u64) -> Option<Seen> {
        self.0.at(index).map(|record| Seen::from_record(&record))
    }
}

/// A private document: its index, length and digest; none of both where the column holds no bytes.
pub(crate) struct Document {
    pub(crate) len: u32,
    pub(crate) sha256: Option<Hash>,
}

/// Index, length, digest, whether there is one.
const DOCUMENT: usize = 8 + 4 + 32 + 1;

/// Private documents in the order of their indexes, the first of each.
#[derive(Debug, Default)]
pub(crate) struct Documents(Log<DOCUMENT>);

impl Documents {
    pub(crate) fn new(trouble: &Trouble) -> Documents {
        Documents(Log::new(trouble))
    }

    pub(crate) fn push(&mut self, index: u64, document: &Document) {
        let mut record = [0; DOCUMENT];
        record[..8].copy_from_slice(&index.to_le_bytes());
        record[8..12].copy_from_slice(&document.len.to_le_bytes());
        record[12..44].copy_from_slice(&document.sha256.unwrap_or_default().0);
        record[44] = u8::from(document.sha256.is_some());
        self.0.push(&record);
    }

    /// Bytes of all documents of a range.
    pub(crate) fn bytes(&self, indexes: Range<u64>) -> u64 {
        if self.0.len() == 0 {
            return 0;
        }
        self.0.span(indexes).iter().map(|record| u64::from(read_document(record).len)).sum()
    }

    /// Looks documents up, by ever larger indexes.
    pub(crate) fn forward(&self) -> DocumentsForward<'_> {
        DocumentsForward(self.0.forward())
    }
}

/// A reader of [`Documents::forward`].
pub(crate) struct DocumentsForward<'a>(Forward<'a, DOCUMENT>);

impl DocumentsForward<'_> {
    /// Whether there is one at all, from here on.
    pub(crate) fn any(&mut self) -> bool {
        self.0.peek().is_some()
    }

    pub(crate) fn at(&mut self, index: u64) -> Option<Document> {
        self.0.at(index).map(|record| read_document(&record))
    }
}

fn read_document(record: &[u8; DOCUMENT]) -> Document {
    let len = record[8..12].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
    Document { len, sha256: Hash::from_slice(&record[12..44]).filter(|_| record[44] > 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back() {
        for code in Code::ALL.iter().copied().map(Some).chain([None]) {
            let seen = Seen {
                index: 1 << 40,
                hash: Hash([1; 32]),
                stored: Hash([2; 32]),
                leaf: Hash([3; 32]),
                damage: code,
                stream_fault: code.filter(|c| *c != Code::BodyInvalid),
                spoiled: code.is_some(),
                bytes: 70_000,
                registry_revision: code.map(|_| 9),
            };
            assert_eq!(Seen::from_record(&seen.to_record()), seen);
        }
    }
}
