//! Step 2 as far as one chain's rows decide it: damage, links, streams, taints, the tree, SKUs.

use std::collections::{HashMap, HashSet};

use ledger_engine::body::Body;
use ledger_engine::domain::Occurrence;
use ledger_engine::domain::case::Case;
use ledger_engine::domain::projection::Cell;
use ledger_engine::domain::sku::Said;
use ledger_engine::domain::sku::Sku;
use ledger_engine::hash::Hash;
use ledger_engine::stream::{CaseId, LEDGER_STREAM, Stream};
use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::finding::Code;
use crate::prove::said_digest;
use crate::row::{BodyRow, EntryRow, number, read_entry, tagged};
use crate::seen::{Documents, Seen, SeenLog};
use crate::source::{SourceError, Tables, watched};
use crate::spill::{Log, Records, Shelf, Trouble};
use crate::tree::Tree;

/// Values of one kind in memory; one takes up to a kilobyte.
const HOT: usize = 16_384;

/// Rows of the key registry that are remembered, of which somebody may have written more: no ledger has so many changes of keys.
const REGISTRY_ROWS: usize = 1 << 18;

/// The last usable entry of a stream.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Tip {
    /// Index of the stream's first usable entry.
    pub(crate) first: u64,
    pub(crate) idx: u64,
    pub(crate) revision: u64,
    pub(crate) stored: Hash,
    pub(crate) hash: Hash,
}

/// A stream with its last usable entry, once there is one.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct StreamTip {
    pub(crate) name: String,
    pub(crate) tip: Option<Tip>,
}

/// What belongs together: an order with its deliveries, or a stream without a case.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// The fold of the second pass.
    pub(crate) case: Option<Case>,
    /// The fold of the first pass.
    pub(crate) sku: Option<Sku>,
    /// One of its entries is damaged, so that nothing that follows from all of them can be judged.
    pub(crate) tainted: bool,
}

/// Values by name: 128 bits of BLAKE3 stand for it.
pub(crate) struct Named<V>(Shelf<[u8; 16], V>, Trouble);

impl<V: Default + Serialize + DeserializeOwned> Named<V> {
    fn new(trouble: &Trouble) -> Named<V> {
        Named(Shelf::new(HOT), trouble.clone())
    }

    /// Lets `work` read and change a value, which is made where there is none.
    pub(crate) fn with<T>(&mut self, name: &str, work: impl FnOnce(&mut V) -> T) -> T {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
        match self.0.get_or(key, V::default) {
            Ok(value) => work(value),
            Err(e) => {
                self.1.note(e);
                work(&mut V::default())
            }
        }
    }

    /// Gives every value, in no order.
    pub(crate) fn each(&self, mut give: impl FnMut(&V)) {
        self.1.or_default(self.0.each(|_, value| give(value)));
    }
}

impl<V: Default + Serialize + DeserializeOwned> Default for Named<V> {
    fn default() -> Self {
        Named::new(&Trouble::default())
    }
}

/// What the first pass learns of a chain. What grows with it lies in temporary files.
#[derive(Default)]
pub(crate) struct Chain {
    pub(crate) number: u64,
    /// Last index + 1.
    pub(crate) end: u64,
    /// `end`, or where the commits end if the tail is missing.
    pub(crate) known_end: u64,
    pub(crate) rows: u64,
    /// Over the rows as they were read.
    digest: Sha256,
    pub(crate) seen: SeenLog,
    /// The entry that was taken last, not in the log yet.
    last: Option<Seen>,
    /// Indexes of missing entries: from, to.
    pub(crate) gaps: Log<16>,
    pub(crate) tips: Named<StreamTip>,
    pub(crate) units: Named<Unit>,
    /// How many streams have a usable entry.
    pub(crate) streams: u64,
    pub(crate) tainted: bool,
    /// How many damaged bodies tainted units. Any other damage taints the chain.
    pub(crate) taints: u64,
    /// Tainted SKUs and the key registry, which other chains ask for.
    pub(crate) tainted_streams: HashSet<String>,
    /// The first place with damage.
    first_damaged: Option<u64>,
    pub(crate) tree: Tree,
    /// Size below which the tree is certain.
    pub(crate) intact: u64,
    pub(crate) documents: Documents,
    /// Why events of SKUs are not allowed, by index.
    pub(crate) refused: Records<String>,
    /// Rows of the stream `ledger` that are remembered.
    registry_rows: usize,
    /// Revisions of the key registry with their entry hashes.
    pub(crate) registry: HashMap<u64, Vec<Hash>>,
}

impl Chain {
    /// Root of the first `size` entries, if there are so many that are certain.
    pub(crate) fn root(&self, size: u64) -> Option<Hash> {
        self.tree.root(&self.seen, size)
    }

    /// Recomputed hash of the last entry.
    pub(crate) fn head(&self) -> Option<Hash> {
        self.seen.at(self.end.checked_sub(1)?).map(|seen| seen.hash)
    }

    /// SHA-256 over the rows of entries in order: of each its cells, each with type and length (FORMAT.md 10).
    pub(crate) fn rows_digest(&self) -> Hash {
        Hash(self.digest.clone().finalize().into())
    }

    fn damaged(&mut self, index: u64) {
        self.first_damaged = Some(self.first_damaged.map_or(index, |first| first.min(index)));
        if let Some(last) = self.last.as_mut().filter(|last| last.index == index) {
            last.spoiled = true;
        }
    }

    fn gap(&mut self, from: u64, to: u64) {
        let mut record = [0; 16];
        record[..8].copy_from_slice(&from.to_le_bytes());
        record[8..].copy_from_slice(&to.to_le_bytes());
        self.gaps.push(&record);
        self.tainted = true;
    }

    /// Remembers the first row of a place.
    fn remember(&mut self, seen: Seen) {
        if let Some(before) = self.last.replace(seen) {
            self.seen.push(before);
        }
        self.end = self.end.max(seen.index + 1);
    }

    /// Judges as certain what can be, once every entry was taken.
    fn complete(&mut self) {
        if let Some(last) = self.last.take() {
            self.seen.push(last);
        }
        let mut tree = Tree::default();
        for seen in self.seen.all() {
            if seen.index != tree.size() || (seen.damage.is_some() && self.tainted) {
                break;
            }
            tree.push(seen.leaf);
        }
        self.intact = self.first_damaged.map_or(tree.size(), |damaged| damaged.min(tree.size()));
        self.tree = tree;
    }
}

/// The missing entries that a record of [`Chain::gaps`] names.
pub(crate) fn gap_of(record: [u8; 16]) -> (u64, u64) {
    let word = |at: usize| record[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    (word(0), word(8))
}

/// What listings say, by SKU and revision.
pub(crate) struct Listings(Shelf<(CaseId, u64), Vec<u128>>, Trouble);

impl Listings {
    pub(crate) fn new(trouble: &Trouble) -> Listings {
        Listings(Shelf::new(HOT), trouble.clone())
    }

    fn put(&mut self, sku: CaseId, revision: u64, said: &[Said]) {
        let said = said.iter().map(|said| said_digest(sku, revision, said)).collect();
        let put = self.0.take(&(sku, revision)).and_then(|_| self.0.insert((sku, revision), Box::new(said)));
        self.1.or_default(put);
    }

    /// Whether the listing of that revision says it.
    pub(crate) fn say(&mut self, sku: CaseId, revision: u64, said: &Said) -> bool {
        if !self.0.has(&(sku, revision)) {
            return false;
        }
        let said = said_digest(sku, revision, said);
        let found = self.0.get_or((sku, revision), Vec::new).map(|all| all.contains(&said));
        self.1.or_default(found)
    }
}

/// The unit of tainting: an order's case, or a stream without one.
pub(crate) fn case_of(stream: &str) -> String {
    match Stream::parse(stream) {
        Some(Stream::Order(case) | Stream::Delivery(case, _)) => case.to_string(),
        _ => stream.to_owned(),
    }
}

/// SHA-256 of a row as it is.
fn row_digest(cells: &[Cell]) -> Hash {
    let mut sha256 = Sha256::new();
    let mut put = |tag: u8, content: &[u8]| {
        sha256.update([tag]);
        sha256.update((content.len() as u64).to_le_bytes());
        sha256.update(content);
    };
    cells.iter().for_each(|cell| tagged(cell, &mut put));
    Hash(sha256.finalize().into())
}

/// The index of a row, where it has one.
fn place(cells: &[Cell]) -> Option<u64> {
    cells.get(1).and_then(number)
}

pub(crate) struct Reader<'a> {
    pub(crate) ledger_id: Hash,
    /// The chain count where the registry is known.
    pub(crate) chains: Option<u32>,
    pub(crate) listings: &'a mut Listings,
    pub(crate) trouble: &'a Trouble,
    /// Told how many entries of the chain were read; `false` stops.
    pub(crate) told: &'a dyn Fn(u64) -> bool,
}

impl Reader<'_> {
    /// Reads a chain's rows once.
    pub(crate) fn read(&mut self, tables: &dyn Tables, chain_number: u64) -> Result<Chain, SourceError> {
        let trouble = self.trouble;
        let mut chain = Chain {
            number: chain_number,
            seen: SeenLog::new(trouble),
            gaps: Log::new(trouble),
            tips: Named::new(trouble),
            units: Named::new(trouble),
            documents: Documents::new(trouble),
            ..Chain::default()
        };
        let id = self.ledger_id;
        watched(tables, "entries", chain_number, self.told, &mut |piece| {
            let rows: Vec<(Hash, Option<u64>, Option<BodyRow<'_>>)> =
                piece.par_iter().map(|cells| (row_digest(cells), place(cells), read_entry(cells, &id))).collect();
            for (digest, idx, row) in rows {
                chain.digest.update(digest.0);
                self.take(&mut chain, idx, row);
            }
        })?;
        self.tail(tables, &mut chain)?;
        chain.complete();
        Ok(chain)
    }

    fn take(&mut self, chain: &mut Chain, idx: Option<u64>, row: Option<BodyRow<'_>>) {
        chain.rows += 1;
        if let Some(idx) = idx.filter(|i| *i > chain.end) {
            chain.gap(chain.end, idx);
        }
        let Some((row, body)) = row else {
            chain.tainted = true;
            // A row without a place is damage beyond all places.
            chain.damaged(idx.unwrap_or(u64::MAX));
            if let Some(index) = idx.filter(|i| chain.last.is_none_or(|last| last.index != *i)) {
                chain.remember(Seen {
                    index,
                    hash: Hash::ZERO,
                    stored: Hash::ZERO,
                    leaf: Hash::ZERO,
                    damage: Some(Code::EntryUndecodable),
                    stream_fault: None,
                    spoiled: true,
                    bytes: 0,
                    registry_revision: None,
                });
            }
            return;
        };
        let idx = row.header.index;
        let stream = &row.header.stream;
        let damage = damage(chain, &row);
        let body_only = damage == Some(Code::BodyHashMismatch) && row.digests.hash == row.entry_hash;
        if damage.is_some() {
            chain.tainted |= !body_only;
            chain.damaged(idx);
            if damage == Some(Code::EntryDuplicate) {
                // The first row of a place counts; the second is reported by the second pass.
                return;
            }
        }
        if body_only {
            chain.taints += 1;
            chain.units.with(&case_of(stream), |unit| unit.tainted = true);
            if Stream::parse(stream).is_some_and(|s| matches!(s, Stream::Sku(_) | Stream::Ledger)) {
                chain.tainted_streams.insert(stream.clone());
            }
        }
        if stream == LEDGER_STREAM && chain.registry_rows < REGISTRY_ROWS {
            chain.registry_rows += 1;
            let heads = chain.registry.entry(row.header.revision).or_default();
            heads.extend([row.entry_hash, row.digests.hash]);
        }
        let mut stream_fault = None;
        if damage.is_none() || body_only {
            let streams = &mut chain.streams;
            chain.tips.with(stream, |held| {
                stream_fault = stream_fault_of(held.tip.as_ref(), &row).filter(|_| damage.is_none());
                if held.tip.is_none() {
                    held.name.clone_from(stream);
                    *streams += 1;
                }
                let first = held.tip.map_or(idx, |t| t.first);
                let (revision, stored, hash) = (row.header.revision, row.entry_hash, row.digests.hash);
                held.tip = Some(Tip { first, idx, revision, stored, hash });
            });
        }
        if damage.is_none()
            && let Some(stream @ Stream::Sku(sku)) = Stream::parse(&row.header.stream)
        {
            self.sku(chain, (stream, sku), &row, body);
        }
        chain.remember(Seen {
            index: idx,
            hash: row.digests.hash,
            stored: row.entry_hash,
            leaf: row.digests.leaf,
            damage,
            stream_fault,
            spoiled: damage.is_some(),
            bytes: u32::try_from(row.digests.header_len + body.len()).unwrap_or(u32::MAX),
            registry_revision: (row.header.stream == LEDGER_STREAM).then_some(row.header.revision),
        });
    }

    /// Folds a SKU's entry, so that orders of any chain can be judged against it.
    fn sku(&mut self, chain: &mut Chain, (stream, sku): (Stream, CaseId), row: &EntryRow, body: &[u8]) {
        if self.chains.is_some_and(|n| u64::from(stream.chain(n)) != chain.number) {
            return;
        }
        let Ok(body) = Body::decode(body) else { return };
        let event = Occurrence::of(&row.header, stream, &body);
        match chain.units.with(&row.header.stream, |unit| Sku::apply(&mut unit.sku, &event)) {
            Ok(applied) if applied.said.is_empty() => {}
            Ok(applied) => self.listings.put(sku, row.header.revision, &applied.said),
            Err(e) => self.trouble.or_default(chain.refused.push(row.header.index, e.0)),
        }
    }

    /// Entries that commits cover beyond the last row.
    fn tail(&self, tables: &dyn Tables, chain: &mut Chain) -> Result<(), SourceError> {
        chain.known_end = chain.end;
        tables.rows("commits", Some(chain.number), &mut |piece| {
            for cells in piece {
                let (Some(first), Some(size)) = (cells.get(1).and_then(number), cells.get(2).and_then(number)) else {
                    continue;
                };
                let end = first.saturating_add(size);
                if (1..=4096).contains(&size) && first <= chain.known_end && chain.known_end < end {
                    chain.known_end = end;
                }
            }
        })?;
        if chain.known_end > chain.end || chain.rows == 0 {
            chain.gap(chain.end, chain.known_end);
        }
        Ok(())
    }
}

/// Steps 2.2 to 2.6.
fn damage(chain: &Chain, row: &EntryRow) -> Option<Code> {
    let h = &row.header;
    let last = chain.last.as_ref();
    let before = h.index.checked_sub(1).map(|i| last.filter(|last| last.index == i));
    let linked = match before {
        None => h.prev_hash == Hash::ZERO.0,
        // After a missing or damaged row a broken link is no fault of its own.
        Some(before) => before.is_none_or(|b| b.damage.is_some() || h.prev_hash == b.stored.0),
    };
    if last.is_some_and(|last| last.index == h.index) {
        Some(Code::EntryDuplicate)
    } else if !row.digests.body_ok {
        Some(Code::BodyHashMismatch)
    } else if !row.digests.id_ok {
        Some(Code::EventIdMismatch)
    } else if !linked {
        Some(Code::PrevHashMismatch)
    } else if row.digests.hash != row.entry_hash {
        Some(Code::EntryHashMismatch)
    } else {
        None
    }
}

/// Step 2.8.
fn stream_fault_of(tip: Option<&Tip>, row: &EntryRow) -> Option<Code> {
    let (index, revision, parent) = tip.map_or((None, 1, Hash::ZERO), |t| (Some(t.idx), t.revision + 1, t.stored));
    if row.parent_index != index {
        Some(Code::ParentIndexMismatch)
    } else if row.header.revision != revision {
        Some(Code::RevisionMismatch)
    } else if row.header.parent_hash != parent.0 {
        Some(Code::ParentHashMismatch)
    } else {
        None
    }
}
