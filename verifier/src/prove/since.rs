//! Beginning a chain at an anchor: what lies before it is represented by its tree, and what new entries rest on is looked up and
//! proven to be in that tree. Whatever does not fit is a suspicion, and the ledger is judged as a whole.

use std::collections::{BTreeMap, HashMap, HashSet};

use ledger_engine::adoption::{Adopted, Adoption};
use ledger_engine::body::Body;
use ledger_engine::domain::Occurrence;
use ledger_engine::domain::case::read_delivery_proof;
use ledger_engine::domain::projection::Cell;
use ledger_engine::domain::sku::Sku;
use ledger_engine::genesis::Genesis;
use ledger_engine::hash::{EventId, Hash};
use ledger_engine::json::Value;
use ledger_engine::merkle::{self, TILE_WIDTH};
use ledger_engine::registry::Registry;
use ledger_engine::runs::RUN_ENTRIES;
use ledger_engine::stream::{CaseId, Stream};

use super::history::History;
use super::states::{Held, Key, Tip, said_digest};
use super::{Piece, Stop, check, suspect};
use crate::anchor::Anchor;
use crate::row::{blob, number, text};
use crate::single::Known;
use crate::source::Tables;
use crate::stored::{Histories, Lost, Read, StoredChain};

/// Orders or SKUs that are looked up at once.
const CASES: usize = 1 << 8;

impl From<Lost> for Stop {
    fn from(lost: Lost) -> Stop {
        match lost {
            Lost::Source(e) => Stop::Source(e),
            lost => Stop::Suspect(format!("what lies before the anchor: {}", lost.place())),
        }
    }
}

/// Something from before the anchor that entries of a piece rest on.
pub(super) enum Earlier {
    State(Key, Box<Held>),
    Tip(Stream, Tip),
    Listed(u128),
}

/// Where a walk begins.
pub(super) struct Start {
    pub(super) history: History,
    /// Of the entry before.
    pub(super) last_hash: Hash,
    pub(super) last_time_us: i64,
    /// The ids of the incomplete run.
    pub(super) ids: Vec<[u8; 10]>,
}

/// What is known of a chain up to its anchor.
struct Base<'a> {
    stored: StoredChain<'a>,
    /// The largest anchor of the chain.
    anchor: &'a Anchor,
    /// First index of the commit that reaches the anchor's size: the walk begins there.
    from: u64,
}

/// Loads what lies before the anchors of all chains.
pub(super) struct Loader<'a> {
    /// `None`: this chain is judged from its beginning.
    bases: Vec<Option<Base<'a>>>,
    chains: u32,
    seen: HashSet<Key>,
    listings: HashSet<CaseId>,
    tips: HashSet<Stream>,
    /// How many entries were proven.
    pub(super) proven: u64,
}

impl<'a> Loader<'a> {
    /// Chooses the anchors, and gives the keys as of the one of chain 0. `None`: no anchor can be used.
    pub(super) fn new(
        tables: &'a dyn Tables,
        ledger_id: Hash,
        genesis: &Genesis,
        anchors: &'a [Anchor],
    ) -> Result<Option<(Loader<'a>, Registry)>, Stop> {
        let zero = StoredChain::new(tables, ledger_id, 0);
        let Some((last, _)) = zero.stream("ledger")? else { return suspect("the head of the key registry") };
        let mut entries = Histories::new();
        zero.follow("ledger", last, &mut entries)?;
        // All keys, to know which anchors count; the walk finds by itself what is wrong with entries after them.
        let all = keys(&entries)?;
        let mut bases = Vec::new();
        for chain in 0..genesis.chains {
            let of_chain = |a: &&Anchor| {
                let of = a.chain(&genesis.origin, &ledger_id, genesis.chains);
                of == Some(chain) && a.size() > 0 && a.unusable(of, &all.registry).is_none()
            };
            let stored = StoredChain::new(tables, ledger_id, chain);
            bases.push(match anchors.iter().filter(of_chain).max_by_key(|a| a.size()) {
                Some(anchor) => {
                    let from = stored.commit(anchor.size() - 1)?.first;
                    (from > 0).then_some(Base { stored, anchor, from })
                }
                None => None,
            });
        }
        if bases.iter().all(Option::is_none) {
            return Ok(None);
        }
        let mut loader = Loader {
            bases,
            chains: genesis.chains,
            seen: HashSet::new(),
            listings: HashSet::new(),
            tips: HashSet::new(),
            proven: 0,
        };
        let Some(from) = loader.bases[0].as_ref().map(|b| b.from) else {
            // Chain 0 is walked from its beginning, its registry with it.
            let first = entries.first_key_value().map(|(_, read)| read.row.digests.hash).unwrap_or_default();
            return Ok(Some((loader, Registry::new(genesis.chains, genesis.keys(), first))));
        };
        entries.retain(|index, _| *index < from);
        loader.in_tree(0, &entries)?;
        let known = keys(&entries)?;
        Ok(Some((loader, known.registry)))
    }

    /// Where the walk of a chain begins.
    pub(super) fn from(&self, chain: u32) -> u64 {
        self.bases.get(chain as usize).and_then(Option::as_ref).map_or(0, |base| base.from)
    }

    /// What was adopted before the anchor of chain 0.
    pub(super) fn adoptions(&mut self) -> Result<Vec<Adopted>, Stop> {
        let mut adopted: Vec<Adopted> = Vec::new();
        let Some(entries) = self.before(0, &[Stream::Legacy])? else { return suspect("so many adoptions") };
        for read in entries.values() {
            let followed = with_event(read, |event| match Adoption::follow(adopted.last(), event) {
                Ok(next) => {
                    adopted.push(next);
                    true
                }
                Err(_) => false,
            });
            check(followed, "an adoption before the anchor")?;
        }
        Ok(adopted)
    }

    /// What the walk of a chain begins with.
    pub(super) fn start(&mut self, chain: u32) -> Result<Option<Start>, Stop> {
        let Some(base) = self.bases.get(chain as usize).and_then(Option::as_ref) else { return Ok(None) };
        let (stored, from) = (&base.stored, base.from);
        let mut tiles = Vec::new();
        for level in 0.. {
            let end = from >> (level * TILE_WIDTH.trailing_zeros());
            if end == 0 {
                break;
            }
            let first = end / TILE_WIDTH * TILE_WIDTH;
            tiles.push(if end > first { stored.neighbours(level, first, end - first)? } else { Vec::new() });
        }
        let Some(history) = History::resume(from, &tiles) else { return suspect("the tree before the anchor") };
        let before = stored.entry(from - 1)?;
        let run = from / RUN_ENTRIES * RUN_ENTRIES;
        let id = |index: u64| {
            let mut id = [0; 10];
            id[..8].copy_from_slice(&EventId::derive(&stored.ledger_id, chain, index).0[..8]);
            id[8..].copy_from_slice(&((index - run) as u16).to_le_bytes());
            id
        };
        let start = Start {
            history,
            last_hash: before.row.digests.hash,
            last_time_us: before.row.header.recorded_at_us,
            ids: (run..from).map(id).collect(),
        };
        self.in_tree(chain, &BTreeMap::from([(from - 1, before)]))?;
        Ok(Some(start))
    }

    /// Whether a chain's tree had this root at an older size.
    pub(super) fn contains(&self, chain: u32, size: u64, root: &Hash) -> Result<bool, Stop> {
        let Some(base) = self.bases.get(chain as usize).and_then(Option::as_ref) else { return Ok(false) };
        let new = base.anchor.size();
        if size > new {
            return Ok(false);
        }
        let proof = merkle::consistency_proof(&base.stored, size, new)?;
        Ok(merkle::verify_consistency(size, new, &proof, root, &base.anchor.root()))
    }

    /// Whether a chain had this root and this last entry at a size before the anchor's.
    pub(super) fn had(&mut self, chain: u32, size: u64, root: &Hash, last_hash: &Hash) -> Result<bool, Stop> {
        let Some(base) = self.bases.get(chain as usize).and_then(Option::as_ref) else { return Ok(false) };
        let Some(index) = size.checked_sub(1) else { return Ok(false) };
        let last = base.stored.entry(index)?;
        let same = last.row.digests.hash == *last_hash;
        self.in_tree(chain, &BTreeMap::from([(index, last)]))?;
        Ok(same && self.contains(chain, size, root)?)
    }

    /// Checks entries from before a chain's anchor by themselves, and that each is in the anchor's tree.
    fn in_tree(&mut self, chain: u32, entries: &Histories) -> Result<(), Stop> {
        let Some(base) = self.bases.get(chain as usize).and_then(Option::as_ref) else {
            return suspect("an entry of a chain without an anchor");
        };
        let (size, root) = (base.anchor.size(), base.anchor.root());
        base.stored.look_ahead(&entries.keys().copied().collect())?;
        for (index, Read { row, .. }) in entries {
            let path = base.stored.path(*index, size)?;
            let own = row.digests.body_ok && row.digests.id_ok && row.digests.hash == row.entry_hash;
            let included = merkle::verify_inclusion(&row.digests.leaf, *index, size, &path, &root);
            check(own && included, "an entry before the anchor")?;
        }
        self.proven += entries.len() as u64;
        Ok(())
    }

    /// The entries of streams before the anchor, from their head rows back, and for each order those of its deliveries. `None`: they are too long.
    fn before(&mut self, chain: u32, streams: &[Stream]) -> Result<Option<Histories>, Stop> {
        let Some(base) = self.bases.get(chain as usize).and_then(Option::as_ref) else {
            return Ok(Some(Histories::new()));
        };
        let mut heads = HashMap::new();
        let mut wanted = streams.to_vec();
        while !wanted.is_empty() {
            let names: Vec<String> = wanted.iter().map(Stream::to_string).collect();
            let found = base.stored.streams(&names)?;
            // An order's deliveries are numbered from 1.
            let next = wanted.iter().zip(&names).filter(|(_, name)| found.contains_key(*name));
            wanted = next
                .filter_map(|(stream, _)| match stream {
                    Stream::Order(case) => Some(Stream::Delivery(*case, 1)),
                    Stream::Delivery(case, n) => Some(Stream::Delivery(*case, n + 1)),
                    _ => None,
                })
                .collect();
            heads.extend(found);
        }
        let Some(mut entries) = base.stored.follow_all(&heads)? else { return Ok(None) };
        entries.retain(|index, _| *index < base.from);
        self.in_tree(chain, &entries)?;
        Ok(Some(entries))
    }

    /// Gives the same of some orders or SKUs, each by itself, of as many at once as fit.
    fn cases_before(
        &mut self,
        chain: u32,
        keys: &[Key],
        give: &mut dyn FnMut(Key, &Histories) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let stream = |(is_sku, case): &Key| if *is_sku { Stream::Sku(*case) } else { Stream::Order(*case) };
        let streams: Vec<Stream> = keys.iter().map(stream).collect();
        let Some(entries) = self.before(chain, &streams)? else {
            let (left, right) = keys.split_at(keys.len() / 2);
            check(!left.is_empty(), "a history that is too long to be looked up")?;
            self.cases_before(chain, left, give)?;
            return self.cases_before(chain, right, give);
        };
        let mut cases: BTreeMap<Key, Histories> = BTreeMap::new();
        for (index, read) in entries {
            let key = match Stream::parse(&read.row.header.stream) {
                Some(Stream::Order(case) | Stream::Delivery(case, _)) => (false, case),
                Some(Stream::Sku(case)) => (true, case),
                _ => return suspect("a stream before the anchor"),
            };
            cases.entry(key).or_default().insert(index, read);
        }
        cases.iter().try_for_each(|(key, entries)| give(*key, entries))
    }

    /// Adds to a piece what its entries rest on.
    pub(super) fn prepare(&mut self, chain: u32, piece: &mut Piece) -> Result<(), Stop> {
        let mut earlier = Vec::new();
        let (mut cases, mut skus): (Vec<Key>, BTreeMap<u32, Vec<Key>>) = Default::default();
        for cells in &piece.entries {
            let (Some(stream), Some(revision)) =
                (cells.get(3).and_then(text).and_then(Stream::parse), cells.get(4).and_then(number))
            else {
                // The walk suspects it.
                continue;
            };
            if matches!(cells.get(7).and_then(text), Some("order.created" | "delivery.ready")) {
                let sku = sku_of(cells).filter(|sku| self.listings.insert(*sku));
                sku.into_iter().for_each(|sku| skus.entry(sku.route(self.chains)).or_default().push((true, sku)));
            }
            match stream {
                Stream::Order(case) | Stream::Delivery(case, _) => {
                    let first = matches!(stream, Stream::Order(_)) && revision == 1;
                    if self.seen.insert((false, case)) && !first {
                        cases.push((false, case));
                    }
                }
                Stream::Sku(case) => {
                    if self.seen.insert((true, case)) && revision > 1 {
                        cases.push((true, case));
                    }
                }
                Stream::Ledger | Stream::Heads | Stream::Legacy | Stream::Exports | Stream::Chain(_) => {
                    if self.tips.insert(stream) && revision > 1 {
                        earlier.extend(self.tip(chain, stream, cells)?);
                    }
                }
            }
        }
        for keys in cases.chunks(CASES) {
            self.cases_before(chain, keys, &mut |key, entries| {
                earlier.extend(fold(key, entries)?);
                Ok(())
            })?;
        }
        for (home, skus) in &skus {
            for keys in skus.chunks(CASES) {
                self.cases_before(*home, keys, &mut |(_, sku), entries| listings(sku, entries, &mut earlier))?;
            }
        }
        piece.earlier = earlier;
        Ok(())
    }

    /// The end of a stream without a state. Only that is needed: where the new entry says that its parent is.
    fn tip(&mut self, chain: u32, stream: Stream, cells: &[Cell]) -> Result<Option<Earlier>, Stop> {
        let Some(base) = self.bases.get(chain as usize).and_then(Option::as_ref) else { return Ok(None) };
        let name = stream.to_string();
        let Some(parent) = cells.get(13).and_then(number).filter(|p| *p < base.from) else { return Ok(None) };
        let Some((_, first)) = base.stored.stream(&name)? else { return suspect("a stream without a head row") };
        let mut entries = Histories::new();
        for index in [parent, first] {
            entries.insert(index, base.stored.entry(index)?);
        }
        self.in_tree(chain, &entries)?;
        let begun = entries.get(&first).is_some_and(|r| r.row.header.stream == name && r.row.header.revision == 1);
        let Some(tip) = entries.get(&parent).filter(|r| begun && r.row.header.stream == name) else {
            return suspect("the links of a stream");
        };
        let (revision, hash) = (tip.row.header.revision, tip.row.digests.hash);
        Ok(Some(Earlier::Tip(stream, Tip { revision, hash, index: parent, first })))
    }
}

/// The SKU that an order, or a delivery's proof, is of.
fn sku_of(cells: &[Cell]) -> Option<CaseId> {
    let body = cells.get(14).and_then(blob).and_then(|b| Body::decode(b).ok())?;
    let member = |name| body.payload.value(name);
    let proof = || Some(read_delivery_proof(member("delivery_proof")?)?.terms.sku_id);
    let sku = member("sku_id").and_then(Value::as_str).map(str::to_owned).or_else(proof);
    sku.as_deref().map(CaseId::of_sku)
}

/// What the listings of a SKU before the anchor say.
fn listings(sku: CaseId, entries: &Histories, earlier: &mut Vec<Earlier>) -> Result<(), Stop> {
    let mut state = None;
    for read in entries.values() {
        let mut said = Vec::new();
        let applied =
            with_event(read, |event| Sku::apply(&mut state, event).map(|applied| said = applied.said).is_ok());
        check(applied, "a SKU's event before the anchor")?;
        let revision = read.row.header.revision;
        earlier.extend(said.iter().map(|said| Earlier::Listed(said_digest(sku, revision, said))));
    }
    Ok(())
}

/// The keys that entries of the registry give.
fn keys(entries: &Histories) -> Result<Known, Stop> {
    let entries = entries.values().map(|read| (&read.row.header, read.body.as_slice()));
    Known::from_registry(entries).or_else(|_| suspect("the key registry before the anchor"))
}

/// Hands the event of an entry to `apply`; `false` too if it has none.
fn with_event(read: &Read, apply: impl FnOnce(&Occurrence<'_>) -> bool) -> bool {
    let h = &read.row.header;
    let (Ok(body), Some(stream)) = (Body::decode(&read.body), Stream::parse(&h.stream)) else { return false };
    apply(&Occurrence::of(h, stream, &body))
}

/// The state that entries before the anchor left. Their prices were judged when the anchor was made.
fn fold(key: Key, entries: &Histories) -> Result<Option<Earlier>, Stop> {
    if entries.is_empty() {
        return Ok(None);
    }
    let mut held = Box::new(Held::new(key));
    for read in entries.values() {
        check(with_event(read, |event| held.apply(event).is_ok()), "an event before the anchor")?;
        let h = &read.row.header;
        let Some(stream) = Stream::parse(&h.stream) else { return suspect("a stream before the anchor") };
        let tips = &mut held.tips;
        let known = tips.iter_mut().find(|(s, _)| *s == stream);
        let after = |first| Tip { revision: h.revision, hash: read.row.digests.hash, index: h.index, first };
        match known {
            Some((_, tip)) => {
                let linked = h.revision == tip.revision + 1 && h.parent_hash == tip.hash.0;
                check(linked, "the links of a stream before the anchor")?;
                *tip = after(tip.first);
            }
            None => {
                check(h.revision == 1, "the beginning of a stream before the anchor")?;
                tips.push((stream, after(h.index)));
            }
        }
    }
    Ok(Some(Earlier::State(key, held)))
}
