//! Step 2 as far as one chain's rows decide it: damage, links, streams, taints, the tree, SKUs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ledger_engine::body::Body;
use ledger_engine::domain::Occurrence;
use ledger_engine::domain::money::Money;
use ledger_engine::domain::projection::Cell;
use ledger_engine::domain::sku::Sku;
use ledger_engine::hash::Hash;
use ledger_engine::stream::Stream;
use rayon::prelude::*;

use crate::finding::Code;
use crate::row::{BodyRow, EntryRow, number, read_entry};
use crate::source::{SourceError, Tables};
use crate::tree::Tree;

/// What stays in memory of an entry.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Recomputed; zeros if undecodable.
    pub(crate) hash: Hash,
    /// As stored.
    pub(crate) stored: Hash,
    pub(crate) leaf: Hash,
    pub(crate) damage: Option<Code>,
    pub(crate) stream_fault: Option<Code>,
    /// Header and body.
    pub(crate) bytes: u64,
    /// Set for entries of the key registry.
    pub(crate) registry_revision: Option<u64>,
}

/// The last usable entry of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tip {
    /// Index of the stream's first usable entry.
    pub(crate) first: u64,
    pub(crate) idx: u64,
    pub(crate) revision: u64,
    pub(crate) stored: Hash,
    pub(crate) hash: Hash,
}

/// What the first pass learns of a chain.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) number: u64,
    /// Last index + 1.
    pub(crate) end: u64,
    /// `end`, or where the commits end if the tail is missing.
    pub(crate) known_end: u64,
    pub(crate) rows: u64,
    pub(crate) at: BTreeMap<u64, Seen>,
    pub(crate) gaps: Vec<(u64, u64)>,
    pub(crate) streams: HashMap<String, Tip>,
    pub(crate) tainted: bool,
    /// Entries are missing or undecodable.
    pub(crate) lost: bool,
    pub(crate) tainted_cases: HashSet<String>,
    pub(crate) damaged: BTreeSet<u64>,
    pub(crate) tree: Tree,
    /// Size below which the tree is certain.
    pub(crate) intact: u64,
    pub(crate) documents: HashMap<u64, Option<Vec<u8>>>,
    pub(crate) sku_states: BTreeMap<String, Option<Sku>>,
    pub(crate) sku_refused: HashMap<u64, String>,
    stream_faults: Vec<(u64, String)>,
    /// Revisions of the key registry with their entry hashes.
    pub(crate) registry: HashMap<u64, Vec<Hash>>,
}

/// Prices by SKU stream and revision.
pub(crate) type Prices = HashMap<(String, u64), Money>;

/// The unit of tainting: an order's case, or a stream without one.
pub(crate) fn case_of(stream: &str) -> String {
    match Stream::parse(stream) {
        Some(Stream::Order(case) | Stream::Delivery(case, _)) => case.to_string(),
        _ => stream.to_owned(),
    }
}

/// The index of a row, where it has one.
fn place(cells: &[Cell]) -> Option<u64> {
    cells.get(1).and_then(number)
}

pub(crate) struct Reader<'a> {
    pub(crate) ledger_id: Hash,
    /// The chain count where the registry is known.
    pub(crate) chains: Option<u32>,
    pub(crate) prices: &'a mut Prices,
}

impl Reader<'_> {
    /// Reads a chain's rows once.
    pub(crate) fn read(&mut self, tables: &dyn Tables, chain_number: u64) -> Result<Chain, SourceError> {
        let mut chain = Chain { number: chain_number, ..Chain::default() };
        let id = self.ledger_id;
        tables.rows("entries", Some(chain_number), &mut |piece| {
            let rows: Vec<(Option<u64>, Option<BodyRow<'_>>)> =
                piece.par_iter().map(|cells| (place(cells), read_entry(cells, &id))).collect();
            for (idx, row) in rows {
                self.take(&mut chain, idx, row);
            }
        })?;
        self.tail(tables, &mut chain)?;
        if chain.tainted {
            // Consequences of the damage, not faults of their own; but these cases cannot be judged.
            for (idx, case) in std::mem::take(&mut chain.stream_faults) {
                if let Some(seen) = chain.at.get_mut(&idx) {
                    seen.stream_fault = None;
                }
                chain.tainted_cases.insert(case);
            }
        }
        let certain = chain
            .at
            .iter()
            .enumerate()
            .take_while(|(n, (idx, s))| *n as u64 == **idx && (s.damage.is_none() || !chain.tainted));
        let leaves: Vec<Hash> = certain.map(|(_, (_, s))| s.leaf).collect();
        chain.intact = chain.damaged.first().map_or(leaves.len() as u64, |d| (*d).min(leaves.len() as u64));
        chain.tree = Tree::new(leaves);
        Ok(chain)
    }

    fn take(&mut self, chain: &mut Chain, idx: Option<u64>, row: Option<BodyRow<'_>>) {
        chain.rows += 1;
        if let Some(idx) = idx.filter(|i| *i > chain.end) {
            chain.gaps.push((chain.end, idx));
            (chain.tainted, chain.lost) = (true, true);
        }
        let Some((row, body)) = row else {
            (chain.tainted, chain.lost) = (true, true);
            let key = idx.unwrap_or(u64::MAX);
            chain.damaged.insert(key);
            if let Some(idx) = idx {
                chain.end = chain.end.max(idx + 1);
            }
            let lost = Seen {
                hash: Hash::ZERO,
                stored: Hash::ZERO,
                leaf: Hash::ZERO,
                damage: Some(Code::EntryUndecodable),
                stream_fault: None,
                bytes: 0,
                registry_revision: None,
            };
            chain.at.entry(key).or_insert(lost);
            return;
        };
        let idx = row.header.index;
        let damage = damage(chain, &row);
        let body_only = damage == Some(Code::BodyHashMismatch) && row.digests.hash == row.entry_hash;
        let mut stream_fault = None;
        if let Some(code) = damage {
            chain.tainted |= !body_only;
            chain.tainted_cases.insert(case_of(&row.header.stream));
            if code == Code::EntryDuplicate {
                chain.damaged.insert(idx);
                // The first row of a place counts; the second is reported by the second pass.
                return;
            }
            chain.damaged.insert(idx);
        } else {
            stream_fault = stream_fault_of(chain.streams.get(&row.header.stream), &row);
        }
        if row.header.stream == "ledger" {
            let heads = chain.registry.entry(row.header.revision).or_default();
            heads.extend([row.entry_hash, row.digests.hash]);
        }
        if damage.is_none() || body_only {
            let first = chain.streams.get(&row.header.stream).map_or(idx, |t| t.first);
            let tip = Tip { first, idx, revision: row.header.revision, stored: row.entry_hash, hash: row.digests.hash };
            chain.streams.insert(row.header.stream.clone(), tip);
        }
        if stream_fault.is_some() {
            chain.stream_faults.push((idx, case_of(&row.header.stream)));
        }
        if damage.is_none() && row.header.stream.starts_with("sku-") {
            self.sku(chain, &row, body);
        }
        let seen = Seen {
            hash: row.digests.hash,
            stored: row.entry_hash,
            leaf: row.digests.leaf,
            damage,
            stream_fault,
            bytes: (row.digests.header_len + body.len()) as u64,
            registry_revision: (row.header.stream == "ledger").then_some(row.header.revision),
        };
        chain.at.insert(idx, seen);
        chain.end = chain.end.max(idx + 1);
    }

    /// Folds a SKU's entry, so that orders of any chain can be judged against its price.
    fn sku(&mut self, chain: &mut Chain, row: &EntryRow, body: &[u8]) {
        let Some(stream) = Stream::parse(&row.header.stream) else { return };
        if self.chains.is_some_and(|n| u64::from(stream.chain(n)) != chain.number) {
            return;
        }
        let Ok(body) = Body::decode(body) else { return };
        let event = Occurrence {
            stream,
            revision: row.header.revision,
            event_type: &row.header.event_type,
            payload: &body.payload,
            index: row.header.index,
            recorded_at_us: row.header.recorded_at_us,
            has_private: body.private_sha256.is_some(),
        };
        let state = chain.sku_states.entry(row.header.stream.clone()).or_default();
        match Sku::apply(state, &event) {
            Ok(()) => {
                if let Some(sku) = state.as_ref().filter(|s| s.listed) {
                    self.prices.insert((row.header.stream.clone(), row.header.revision), sku.price.clone());
                }
            }
            Err(e) => {
                chain.sku_refused.insert(row.header.index, e.0);
            }
        }
    }

    /// Entries that commits cover beyond the last row.
    fn tail(&self, tables: &dyn Tables, chain: &mut Chain) -> Result<(), SourceError> {
        let mut commits = Vec::new();
        for cells in tables.all("commits", Some(chain.number))? {
            if let (Some(first), Some(size)) = (cells.get(1).and_then(number), cells.get(2).and_then(number)) {
                commits.push((first, size));
            }
        }
        chain.known_end = chain.end;
        for (first, size) in commits.iter().filter(|(_, size)| (1..=4096).contains(size)) {
            let end = first.saturating_add(*size);
            if *first <= chain.known_end && chain.known_end < end {
                chain.known_end = end;
            }
        }
        if chain.known_end > chain.end || chain.rows == 0 {
            (chain.tainted, chain.lost) = (true, true);
            chain.gaps.push((chain.end, chain.known_end));
        }
        Ok(())
    }
}

/// Steps 2.2 to 2.6.
fn damage(chain: &Chain, row: &EntryRow) -> Option<Code> {
    let h = &row.header;
    let before = h.index.checked_sub(1).map(|i| chain.at.get(&i));
    let linked = match before {
        None => h.prev_hash == Hash::ZERO.0,
        // After a missing or damaged row a broken link is no fault of its own.
        Some(before) => before.is_none_or(|b| b.damage.is_some() || h.prev_hash == b.stored.0),
    };
    if chain.at.contains_key(&h.index) {
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
