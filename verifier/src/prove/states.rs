//! Folded states of one chain's orders and SKUs. The ones used last are in memory, the others in a temporary file, so that
//! memory does not grow with the ledger.

use ledger_engine::document::SignedDocument;
use ledger_engine::domain::case::Case;
use ledger_engine::domain::money::Money;
use ledger_engine::domain::projection::{Cell, case_rows, sku_row};
use ledger_engine::domain::sku::{Said, Sku};
use ledger_engine::domain::{Illegal, Occurrence};
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::stream::{CaseId, Stream};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Stop;
use super::multiset::{RowKey, Sums};
use crate::spill::Shelf;

/// States in memory; one takes about a kilobyte.
pub(super) const HOT: usize = 32_768;
/// This part of them leaves memory at once.
const EVICTED: usize = 4;

/// Last and first entry of a stream.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Tip {
    pub(crate) revision: u64,
    pub(crate) hash: Hash,
    pub(crate) index: u64,
    pub(crate) first: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum State {
    Case(Case),
    Sku(Option<Sku>),
}

/// A state with the tips of its streams.
#[derive(Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) state: State,
    pub(crate) tips: Vec<(Stream, Tip)>,
}

/// Where an entry says that it stands in its stream.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) revision: u64,
    pub(crate) parent_index: Option<u64>,
    pub(crate) parent_hash: Hash,
}

impl Link {
    /// Whether it follows the stream's last entry; none: whether it is the first.
    pub(crate) fn follows(&self, tip: Option<&Tip>) -> bool {
        let (index, revision, parent) = tip.map_or((None, 1, Hash::ZERO), |t| (Some(t.index), t.revision + 1, t.hash));
        (self.parent_index, self.revision, self.parent_hash) == (index, revision, parent)
    }

    /// What the stream's last entry is, once this one with its hash and index follows.
    pub(crate) fn tip_after(&self, tip: Option<&Tip>, hash: Hash, index: u64) -> Tip {
        Tip { revision: self.revision, hash, index, first: tip.map_or(index, |t| t.first) }
    }
}

/// What an event does besides changing a state.
#[derive(Default)]
pub(crate) struct Effects {
    /// A document that is signed by itself.
    pub(crate) signed: Option<SignedDocument>,
    /// What a listing says.
    pub(crate) listed: Vec<u128>,
    /// What an order or a delivery says of a listing.
    pub(crate) claimed: Option<u128>,
}

/// An order or SKU; their ids could be made to meet.
pub(crate) type Key = (bool, CaseId);

/// A row of `stream_heads`.
pub(super) fn head_row(chain: u32, stream: Stream, tip: &Tip) -> Vec<Cell> {
    let name = Cell::Text(stream.to_string());
    let hash = Cell::Blob(tip.hash.0.to_vec());
    vec![chain.into(), name, tip.revision.into(), hash, tip.index.into(), tip.first.into()]
}

impl Held {
    pub(crate) fn new((is_sku, id): Key) -> Held {
        let state = if is_sku { State::Sku(None) } else { State::Case(Case::new(id)) };
        Held { state, tips: Vec::new() }
    }

    /// Takes an entry as the next of its stream: whether it is the first. `None`: it is not the next.
    pub(crate) fn follow(&mut self, stream: Stream, link: &Link, hash: Hash, index: u64) -> Option<bool> {
        let at = self.tips.iter().position(|(s, _)| *s == stream);
        let tip = at.map(|i| &self.tips[i].1);
        if !link.follows(tip) {
            return None;
        }
        let tip = link.tip_after(tip, hash, index);
        match at {
            Some(i) => self.tips[i].1 = tip,
            None => self.tips.push((stream, tip)),
        }
        Some(at.is_none())
    }

    /// Applies an event.
    pub(crate) fn apply(&mut self, event: &Occurrence<'_>) -> Result<Effects, Illegal> {
        let mut effects = Effects::default();
        match &mut self.state {
            State::Sku(sku) => {
                let applied = Sku::apply(sku, event)?;
                effects.signed = applied.signed;
                if let Stream::Sku(case) = event.stream {
                    effects.listed = applied.said.iter().map(|said| said_digest(case, event.revision, said)).collect();
                }
            }
            State::Case(case) => {
                let applied = case.apply(event)?;
                effects.signed = applied.signed;
                effects.claimed =
                    applied.claim.map(|claim| said_digest(CaseId::of_sku(&claim.sku_id), claim.revision, &claim.said));
            }
        }
        Ok(effects)
    }

    /// Every row that this state should have in the derived tables; with its cells if they are to be kept.
    fn digests(&self, chain: u32, key: &RowKey, keep: bool) -> Vec<Digested> {
        let heads = self.tips.iter().map(|(s, tip)| ("stream_heads", head_row(chain, *s, tip)));
        let rows = match &self.state {
            State::Case(case) => case_rows(chain, case),
            State::Sku(sku) => sku.iter().map(|s| sku_row(chain, s)).collect(),
        };
        let rows = rows.into_iter().map(|r| (r.table.name, r.cells));
        heads.chain(rows).map(|(table, cells)| (table, key.digest(table, &cells), keep.then_some(cells))).collect()
    }
}

/// A row of a derived table by its digest.
type Digested = (&'static str, Hash, Option<Vec<Cell>>);

pub(super) struct States<'a> {
    chain: u32,
    /// `None`: no rows are compared.
    key: Option<&'a RowKey>,
    shelf: Shelf<Key, Held>,
}

impl<'a> States<'a> {
    /// `capacity`: how many stay in memory.
    pub(super) fn new(chain: u32, key: Option<&'a RowKey>, capacity: usize) -> States<'a> {
        States { chain, key, shelf: Shelf::new(capacity) }
    }

    /// The state of an order or SKU, a new one if it was never asked for.
    pub(super) fn get(&mut self, key: Key, sums: &mut Sums) -> Result<&mut Held, Stop> {
        if self.shelf.hot(&key).is_none() {
            let held = self.shelf.take_cold(key).map_err(spilled)?.unwrap_or_else(|| Box::new(Held::new(key)));
            for (table, digest, _) in self.key.iter().flat_map(|key| held.digests(self.chain, key, false)) {
                sums.remove(table, &digest);
            }
            self.put(key, held, sums)?;
        }
        self.shelf.hot(&key).ok_or_else(|| Stop::Suspect("a state was lost".into()))
    }

    /// Whether there is a state of this order or SKU.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.shelf.has(key)
    }

    /// Gives every state, in no order.
    pub(super) fn each(&self, give: impl FnMut(&Key, &Held)) -> Result<(), Stop> {
        self.shelf.each(give).map_err(spilled)
    }

    /// Takes a state whose rows were not added, such as one from before the walk began.
    pub(super) fn put(&mut self, key: Key, held: Box<Held>, sums: &mut Sums) -> Result<(), Stop> {
        for item in self.release(self.shelf.surplus(EVICTED), sums) {
            self.shelf.store(&item).map_err(spilled)?;
        }
        self.shelf.put(key, held);
        Ok(())
    }

    /// Adds the rows of every state that is still in memory.
    pub(super) fn finish(mut self, sums: &mut Sums) -> Result<(), Stop> {
        while !self.release(HOT / EVICTED, sums).is_empty() {}
        Ok(())
    }

    /// Takes the states out that were not used for longest, and adds their rows.
    fn release(&mut self, count: usize, sums: &mut Sums) -> Vec<(Key, Box<Held>)> {
        let out: Vec<(Key, Box<Held>)> = (0..count).map_while(|_| self.shelf.pop()).collect();
        let (chain, key) = (self.chain, self.key);
        if let Some(key) = key {
            let keep = sums.kept.is_some();
            let digests: Vec<_> = out.par_iter().flat_map_iter(|(_, held)| held.digests(chain, key, keep)).collect();
            digests.into_iter().for_each(|(table, digest, cells)| sums.add_digest(table, digest, cells));
        }
        out
    }
}

pub(super) fn spilled(e: std::io::Error) -> Stop {
    Stop::Spill(e.to_string())
}

/// Names what a listing says: 128 bits of SHA-256, so that a set of them stays small.
pub(crate) fn said_digest(sku: CaseId, revision: u64, said: &Said) -> u128 {
    let of = |parts: &[&[u8]]| sha256(&[&[&sku.0[..], &revision.to_le_bytes()], parts].concat());
    let digest = match said {
        Said::Price(Money { amount, currency, scale }) => {
            of(&[b"p", &amount.to_le_bytes(), currency.as_bytes(), &[0], &scale.to_le_bytes()])
        }
        Said::Artifact { manifest_sha256, manifest_signature_id, sha256 } => {
            of(&[b"a", &manifest_sha256.0, &manifest_signature_id.0, &sha256.0])
        }
    };
    u128::from_le_bytes(digest.0[..16].try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 300 SKUs, each touched nine times in a scattered order.
    fn sums(key: &RowKey, capacity: usize) -> Sums {
        let (mut states, mut sums) = (States::new(3, Some(key), capacity), Sums::default());
        for step in 0..2700u64 {
            let id = CaseId([(step * 7 % 300 / 2) as u8; 16]);
            let held = states.get((step % 2 == 0, id), &mut sums).ok().unwrap();
            let first = held.tips.first().map_or(step, |(_, tip)| tip.first);
            let revision = held.tips.first().map_or(0, |(_, tip)| tip.revision) + 1;
            held.tips = vec![(Stream::Sku(id), Tip { revision, hash: Hash::ZERO, index: step, first })];
        }
        states.finish(&mut sums).ok().unwrap();
        sums
    }

    #[test]
    fn what_left_memory_counts_as_what_stayed() {
        let key = RowKey::draw().unwrap();
        let all = sums(&key, 1000);
        assert_eq!(all.by_table["stream_heads"].rows, 300);
        for capacity in [1, 4, 50, 299] {
            assert_eq!(sums(&key, capacity).by_table, all.by_table, "{capacity} in memory");
        }
    }
}
