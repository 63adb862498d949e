//! The short way: proves in one pass, in memory that does not grow with the ledger, that there is nothing to report.
//!
//! Every check of FORMAT.md 10 is made on one reading of each row. The first thing that does not fit ends the pass with
//! a suspicion, and the whole ledger is judged again the long way (`verify`), which knows how to place and name every
//! fault. So this pass may suspect too much and must never suspect too little: a verdict without findings can rest on it
//! alone. One thread reads, the others hash and fold.

pub(crate) mod batch;
mod claims;
mod history;
mod multiset;
mod since;
mod states;
mod walk;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use ledger_engine::adoption::Adopted;
use ledger_engine::domain::projection::{Cell, TABLES};
use ledger_engine::export::FileKind;
use ledger_engine::genesis::Genesis;
use ledger_engine::hash::Hash;
use ledger_engine::registry::Registry;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::claims::Claims;
use self::multiset::{Kept, Sums};
pub(crate) use self::multiset::{RowKey, Sum};
use self::since::{Earlier, Loader};
pub(crate) use self::states::said_digest;
use self::states::spilled;
pub(crate) use self::walk::Prepared;
use self::walk::{Begin, Standing, Walk};
use crate::anchor::Anchor;
use crate::export::{Export, Taker, channel, feed};
use crate::frequent::FrequentKeys;
use crate::named::Named;
use crate::report::{ChainReport, KeyReport};
use crate::row::number;
use crate::source::{Cursor, SourceError, Tables, bytes_of, sizes, table_names};
use crate::verify::{Demands, Progress};

/// Entries that are handed over at once.
const PIECE: usize = 2048;
/// Or so many bytes of them, and of their documents, and a row more of each.
const PIECE_BYTES: usize = 4 << 20;
/// Rows of another table that a piece can need: four signatures for each entry's commit. More are left for later pieces, where
/// they do not fit.
const ROWS_MAX: usize = 4 * PIECE + 1;
/// Pieces read ahead.
const AHEAD: usize = 2;
/// So many entries are judged from an anchor on, however few there are before them.
const FEW: u64 = 1 << 16;
/// More are judged with all before them, and so are more than a quarter of all: looking up what they rest on takes longer than reading it, and memory.
const NEW_MAX: u64 = 1 << 20;
/// How often it is tried to come near to the end of a ledger that grows.
const ROUNDS: usize = 8;
/// Rows, and bytes of them, that are looked up at once.
const LOOKED_UP: usize = 1 << 10;
const LOOKED_UP_BYTES: usize = 2 << 20;
/// Tables that follow from the entries.
const DERIVED: [&str; 5] = ["chain_heads", "stream_heads", "tiles", "event_id_runs", "cursors"];

/// Why the pass ended early.
pub(crate) enum Stop {
    /// Something does not fit: judge the long way.
    Suspect(String),
    /// Something that the pass itself needs failed, such as its temporary file.
    Spill(String),
    /// The caller asked to stop, after so many entries.
    Asked(u64),
    /// The source failed.
    Source(SourceError),
}

impl From<SourceError> for Stop {
    fn from(e: SourceError) -> Stop {
        Stop::Source(e)
    }
}

pub(crate) fn suspect<T>(what: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Suspect(what.into()))
}

/// `Err(Suspect)` unless `ok`.
pub(crate) fn check(ok: bool, what: &str) -> Result<(), Stop> {
    if ok { Ok(()) } else { suspect(what) }
}

/// What all chains share.
pub(crate) struct Prover<'a> {
    pub(crate) ledger_id: Hash,
    pub(crate) genesis: &'a Genesis,
    pub(crate) registry: Registry,
    keys: Arc<FrequentKeys>,
    /// `None` where the source has no tables that follow from the entries.
    key: Option<&'a RowKey>,
    sums: Sums,
    /// Listings of SKUs that were seen, and those that orders name and that were not seen yet, as digests.
    listed: HashSet<u128>,
    /// With an order that names it: its chain and index.
    claimed: HashMap<u128, (u32, u64)>,
    /// What `chain.heads` says, where chains are not walked one after the other from their beginning.
    heads: Vec<HeadClaim>,
    /// The same, where they are.
    claims: Claims,
    /// What anchors of chain 0 cover of the others.
    named: Named,
    adopted: Vec<Adopted>,
    /// Each anchor with the chain it is of, and once that chain has its size, whether the root is the same.
    anchors: Vec<(&'a Anchor, Option<u32>, Option<bool>)>,
    progress: Option<&'a Progress<'a>>,
    /// Who takes the lines of an export as they are judged.
    taker: Option<&'a dyn Taker>,
    /// Entries judged so far, and how many the head rows claim.
    judged: u64,
    claimed_size: u64,
    /// Where a batch is judged by itself, what is left to judge goes there.
    loose: Option<batch::Writer>,
    facts: Vec<batch::ChainFacts>,
}

/// What was checked.
pub(crate) struct Proved {
    pub(crate) chains: Vec<ChainReport>,
    /// Why anchors say nothing.
    pub(crate) unusable: Vec<String>,
    pub(crate) keys: Vec<KeyReport>,
    pub(crate) adopted: Vec<Adopted>,
    /// Where chains were begun at anchors: how many entries from before them were looked up.
    pub(crate) since: Option<u64>,
}

/// Proves a ledger whose genesis is known.
pub(crate) fn prove(
    tables: &dyn Tables,
    ledger_id: Hash,
    genesis: &Genesis,
    genesis_hash: Hash,
    demands: &Demands<'_>,
) -> Result<Proved, Stop> {
    let key = RowKey::draw().map_err(|e| Stop::Spill(format!("no random numbers: {e}")))?;
    let registry = Registry::new(genesis.chains, genesis.keys(), genesis_hash);
    let anchors = demands.anchors.iter();
    let of = |anchor: &Anchor| anchor.chain(&genesis.origin, &ledger_id, genesis.chains);
    let of_first = demands.anchors.iter().filter(|anchor| of(anchor) == Some(0));
    let mut prover = Prover {
        key: tables.export().is_none().then_some(&key),
        claimed_size: claimed_size(tables)?,
        taker: demands.taker,
        named: Named::below(of_first.map(Anchor::size)),
        anchors: anchors.map(|a| (a, of(a), None)).collect(),
        ..Prover::new(ledger_id, genesis, registry, demands.progress)
    };
    let since = match demands.since_anchor && tables.export().is_none() {
        true => Loader::new(tables, ledger_id, genesis, demands.anchors)?,
        false => None,
    };
    let since = since.filter(|(loader, _)| {
        let before = (0..genesis.chains).map(|chain| loader.from(chain)).fold(0, u64::saturating_add);
        is_tail(prover.claimed_size.saturating_sub(before), prover.claimed_size)
    });
    let (mut reports, since) = match since {
        Some((loader, registry)) => {
            prover.registry = registry;
            let (reports, proven) = prover.run_since(tables, loader)?;
            (reports, Some(proven))
        }
        None => (prover.run(tables)?, None),
    };
    let unusable = prover.anchored(&mut reports)?;
    let keys = KeyReport::all(&prover.registry);
    Ok(Proved { chains: reports, unusable, keys, adopted: prover.adopted, since })
}

/// Whether the last entries of all are few enough to be judged from an anchor on.
fn is_tail(new: u64, all: u64) -> bool {
    new <= FEW || new <= NEW_MAX && new <= all / 4
}

/// How many entries the source claims.
pub(crate) fn claimed_size(tables: &dyn Tables) -> Result<u64, SourceError> {
    if let Some(export) = tables.export() {
        return Ok(export.entries());
    }
    let mut size = 0u64;
    tables.scan("chain_heads", &mut |rows| {
        let sizes = rows.iter().filter_map(|cells| cells.get(1).and_then(number));
        size = sizes.fold(size, u64::saturating_add);
    })?;
    Ok(size)
}

/// The multiset of a table's rows.
fn stored_sum(tables: &dyn Tables, key: &RowKey, table: &str) -> Result<Sum, SourceError> {
    let mut stored = Sum::default();
    tables.scan(table, &mut |rows| {
        let piece = rows.par_iter().map(|cells| key.digest(table, cells));
        let sum = |mut sum: Sum, digest: Hash| {
            sum.add(&digest);
            sum
        };
        stored = stored.join(piece.fold(Sum::default, sum).reduce(Sum::default, Sum::join));
    })?;
    Ok(stored)
}

/// What an entry `chain.heads` says of another chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HeadClaim {
    /// Index of the entry, on chain 0.
    pub(crate) index: u64,
    pub(crate) chain: u32,
    pub(crate) size: u64,
    pub(crate) root: Hash,
    pub(crate) last_hash: Hash,
}

impl<'a> Prover<'a> {
    /// Nothing was judged yet, and no anchors and derived tables are there to be compared.
    fn new(
        ledger_id: Hash,
        genesis: &'a Genesis,
        registry: Registry,
        progress: Option<&'a Progress<'a>>,
    ) -> Prover<'a> {
        Prover {
            ledger_id,
            genesis,
            registry,
            keys: Arc::default(),
            key: None,
            sums: Sums::default(),
            listed: HashSet::new(),
            claimed: HashMap::new(),
            heads: Vec::new(),
            claims: Claims::default(),
            named: Named::default(),
            adopted: Vec::new(),
            anchors: Vec::new(),
            progress,
            taker: None,
            judged: 0,
            claimed_size: 0,
            loose: None,
            facts: Vec::new(),
        }
    }

    /// Marks what usable anchors cover. Returns why others say nothing.
    fn anchored(&self, reports: &mut [ChainReport]) -> Result<Vec<String>, Stop> {
        let mut unusable = Vec::new();
        for (anchor, chain, held) in &self.anchors {
            if let Some(why) = anchor.unusable(*chain, &self.registry) {
                unusable.push(why);
                continue;
            }
            check(*held == Some(true), "an anchor")?;
            let mut cover = |chain: u32, size: u64| {
                if let Some(report) = reports.get_mut(chain as usize) {
                    report.anchored = report.anchored.max(Some(size));
                }
            };
            cover(chain.unwrap_or_default(), anchor.size());
            if *chain == Some(0) {
                self.named.covered(anchor.size()).for_each(|(chain, size)| cover(chain, size));
            }
        }
        Ok(unusable)
    }

    /// Chain 0, which is walked first, has made all its claims.
    fn sort_claims(&mut self) -> Result<(), Stop> {
        if self.claims.is_open() { self.claims.sort().map_err(spilled) } else { Ok(()) }
    }

    /// Whether listings say all that orders and deliveries rest on.
    fn prices(&self) -> Result<(), Stop> {
        let listed = self.claimed.keys().all(|claim| self.listed.contains(claim));
        check(listed, "an order's price, or what a delivery proof says, is of no listing")
    }

    fn run(&mut self, tables: &dyn Tables) -> Result<Vec<ChainReport>, Stop> {
        if let Some(export) = tables.export() {
            return self.export(export);
        }
        for table in table_names() {
            let chains = tables.chains(table)?;
            let inside = |c: &Option<u64>| c.is_some_and(|n| n < u64::from(self.genesis.chains));
            check(chains.iter().all(inside), "a row of no chain of the ledger")?;
        }
        // What changes is read first, so that the source can let go of the moment when it was so.
        let mut stored = Vec::new();
        if let Some(key) = self.key {
            for table in DERIVED.into_iter().chain(TABLES.iter().map(|t| t.name)) {
                stored.push((table, stored_sum(tables, key, table)?));
            }
            if let Some(sizes) = sizes(tables)?.filter(|sizes| sizes.len() == self.genesis.chains as usize) {
                let told = self.progress;
                tables.settle(&sizes, &|copied| told.is_none_or(|told| told(copied, 0)))?;
            }
        }
        let mut reports = Vec::new();
        self.claims = Claims::open();
        for chain in 0..self.genesis.chains {
            reports.push(self.whole_chain(tables, chain, |walk| walk.finish())?);
            self.sort_claims()?;
        }
        self.prices()?;
        for (table, sum) in stored {
            check(sum == *self.sums.of(table), table)?;
        }
        Ok(reports)
    }

    /// Judges what came after the anchors. Rows of derived tables are compared one by one, as far as new entries touch them.
    fn run_since(&mut self, tables: &dyn Tables, mut loader: Loader<'_>) -> Result<(Vec<ChainReport>, u64), Stop> {
        self.sums.kept = Some(Kept::new());
        self.adopted = loader.adoptions()?;
        // Derived rows are those of one moment. It comes when there is little to read up to it.
        let mut paused: Vec<Standing<'a>> = Vec::new();
        for _ in 0..ROUNDS {
            let Some(sizes) = sizes(tables)?.filter(|sizes| sizes.len() == self.genesis.chains as usize) else { break };
            let walked = |chain: u32| paused.get(chain as usize).map_or_else(|| loader.from(chain), Standing::size);
            let new = (0..)
                .zip(&sizes)
                .fold(0u64, |sum, (chain, size)| sum.saturating_add(size.saturating_sub(walked(chain))));
            if !tables.let_go(&sizes, new)? {
                break;
            }
            let mut before = std::mem::take(&mut paused).into_iter();
            for chain in 0..self.genesis.chains {
                paused.push(self.chain_since(tables, (chain, before.next()), &mut loader, |walk| walk.pause())?);
            }
            tables.hold_again()?;
        }
        let mut reports = Vec::new();
        let mut before = paused.into_iter();
        for chain in 0..self.genesis.chains {
            reports.push(self.chain_since(tables, (chain, before.next()), &mut loader, |walk| walk.finish())?);
        }
        self.prices()?;
        if let Some(kept) = self.sums.kept.take() {
            let mut waiting: BTreeMap<String, (Vec<Vec<Cell>>, usize)> = BTreeMap::new();
            let look_up = |table: &str, rows: &[Vec<Cell>]| check(tables.has_exactly(table, rows)?, table);
            kept.each(|table, cells| {
                let (rows, bytes) = waiting.entry(table.to_owned()).or_default();
                *bytes += bytes_of(cells);
                rows.push(cells.to_vec());
                if rows.len() < LOOKED_UP && *bytes < LOOKED_UP_BYTES {
                    return Ok(());
                }
                *bytes = 0;
                look_up(table, &std::mem::take::<Vec<_>>(rows))
            })?;
            waiting.iter().try_for_each(|(table, (rows, _))| look_up(table, rows))?;
        }
        Ok((reports, loader.proven))
    }

    /// Walks a chain from where it was paused or else from its anchor, to where `end` does what is to be done there.
    fn chain_since<T: Send>(
        &mut self,
        tables: &dyn Tables,
        (chain, paused): (u32, Option<Standing<'a>>),
        loader: &mut Loader<'_>,
        end: impl FnOnce(Walk<'_, 'a>) -> Result<T, Stop> + Send,
    ) -> Result<T, Stop> {
        let (from, begin) = match paused {
            Some(now) => (now.size(), Begin::Again(Box::new(now))),
            None => match loader.start(chain)? {
                Some(start) => {
                    let from = start.history.range.size();
                    self.before(chain, from, loader)?;
                    (from, Begin::Since(Box::new(start)))
                }
                // All of it, also what has a place that no entry has.
                None => return self.whole_chain(tables, chain, end),
            },
        };
        let mut stopped = Ok(());
        let judged = self.judged_beside((chain, begin), end, &mut |sender| {
            tables.side_by_side_from(chain.into(), from, &WALKED, &mut |cursors| {
                read_pieces(cursors, sender, &mut |piece| {
                    stopped = loader.prepare(chain, piece);
                    stopped.is_ok()
                })
            })
        });
        stopped?;
        judged
    }

    /// What anchors and `chain.heads` say of sizes before the one where a chain's walk begins.
    fn before(&mut self, chain: u32, from: u64, loader: &mut Loader<'_>) -> Result<(), Stop> {
        for (anchor, of, held) in &mut self.anchors {
            if *of == Some(chain) && anchor.size() < from {
                *held = Some(loader.contains(chain, anchor.size(), &anchor.root())?);
            }
        }
        for head in self.heads.iter().filter(|head| head.chain == chain && head.size < from) {
            check(loader.had(chain, head.size, &head.root, &head.last_hash)?, "what chain.heads says")?;
        }
        Ok(())
    }

    fn export(&mut self, export: &Export) -> Result<Vec<ChainReport>, Stop> {
        check(export.fits(), "the manifest, or the files of the directory")?;
        check(export.manifest().chains.len() == self.genesis.chains as usize, "the number of chains")?;
        let mut reports = Vec::new();
        self.claims = Claims::open();
        for chain in 0..self.genesis.chains {
            let report = self.export_chain(export, chain)?;
            check(export.describes(&report).is_ok(), "what the manifest says of a chain")?;
            reports.push(report);
            self.sort_claims()?;
        }
        check(export.signatures(&self.registry).is_empty(), "the signature of a manifest")?;
        self.prices()?;
        Ok(reports)
    }

    fn export_chain(&mut self, export: &Export, chain: u32) -> Result<ChainReport, Stop> {
        self.export_from(export, chain, |prover| Walk::new(prover, chain))
    }

    /// Judges the files of a chain by a walk that may begin anywhere.
    fn export_from<'p>(
        &'p mut self,
        export: &Export,
        chain: u32,
        begin: impl FnOnce(&'p mut Self) -> Walk<'p, 'a>,
    ) -> Result<ChainReport, Stop> {
        let (id, keep) = (self.ledger_id, self.taker.is_some());
        let files = |kind| export.located(chain, kind);
        let (entries, private) = (files(FileKind::Entries), files(FileKind::Private));
        std::thread::scope(|scope| {
            let ((to_walk, items), (to_documents, documents)) = (channel(), channel());
            scope.spawn(move || feed(&entries, id, keep, &to_walk));
            scope.spawn(move || feed(&private, id, false, &to_documents));
            let mut walk = begin(self).with_documents(documents);
            while let Ok(items) = items.recv() {
                walk.take_items(items?)?;
                walk.tell()?;
            }
            walk.finish()
        })
    }

    fn whole_chain<T: Send>(
        &mut self,
        tables: &dyn Tables,
        chain: u32,
        end: impl FnOnce(Walk<'_, 'a>) -> Result<T, Stop> + Send,
    ) -> Result<T, Stop> {
        self.judged_beside((chain, Begin::New), end, &mut |sender| {
            tables.side_by_side(chain.into(), &WALKED, &mut |cursors| read_pieces(cursors, sender, &mut |_| true))
        })
    }

    /// One thread reads pieces, this one; another walks them.
    fn judged_beside<T: Send>(
        &mut self,
        (chain, begin): (u32, Begin<'a>),
        end: impl FnOnce(Walk<'_, 'a>) -> Result<T, Stop> + Send,
        read: &mut dyn FnMut(&SyncSender<Piece>) -> Result<(), SourceError>,
    ) -> Result<T, Stop> {
        let (sender, receiver) = sync_channel::<Piece>(AHEAD);
        std::thread::scope(|scope| {
            let judge = scope.spawn(move || {
                let mut walk = Walk::begin(self, chain, begin)?;
                while let Ok(piece) = receiver.recv() {
                    walk.take(piece)?;
                    walk.tell()?;
                }
                end(walk)
            });
            let read = read(&sender);
            drop(sender);
            let judged = judge.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            read?;
            judged
        })
    }
}

/// The tables that a walk reads side by side.
const WALKED: [&str; 5] = ["entries", "private_documents", "commits", "commit_signatures", "checkpoints"];

/// Entries in order, with the other rows that belong to their places.
#[derive(Default)]
struct Piece {
    entries: Vec<Vec<Cell>>,
    documents: Vec<Vec<Cell>>,
    commits: Vec<Vec<Cell>>,
    signatures: Vec<Vec<Cell>>,
    checkpoints: Vec<Vec<Cell>>,
    /// What lies before the walk began and is needed from here on.
    earlier: Vec<Earlier>,
}

/// A cursor with a look at its next row.
struct Ahead<'c, 'd> {
    cursor: &'c mut Box<dyn Cursor + 'd>,
    next: Option<Vec<Cell>>,
}

impl Ahead<'_, '_> {
    /// Takes rows while their second column is at most `to`, or no number.
    fn take(&mut self, to: u64, out: &mut Vec<Vec<Cell>>) -> Result<(), SourceError> {
        let mut bytes = 0;
        while out.len() < ROWS_MAX && bytes < PIECE_BYTES {
            let Some(row) = self.next.take_if(|row| row.get(1).and_then(number).is_none_or(|n| n <= to)) else { break };
            bytes += bytes_of(&row);
            out.push(row);
            self.next = self.cursor.next()?;
        }
        Ok(())
    }
}

/// `prepare` sees each piece before it is handed over; `false` stops.
fn read_pieces(
    cursors: &mut [Box<dyn Cursor + '_>],
    sender: &SyncSender<Piece>,
    prepare: &mut dyn FnMut(&mut Piece) -> bool,
) -> Result<(), SourceError> {
    let [entries, rest @ ..] = cursors else { return Ok(()) };
    let mut others = Vec::new();
    for cursor in rest {
        let next = cursor.next()?;
        others.push(Ahead { cursor, next });
    }
    // Entries that were read, whose documents did not fit any more.
    let mut left: Vec<Vec<Cell>> = Vec::new();
    let at = |row: &Vec<Cell>| row.get(1).and_then(number).unwrap_or(u64::MAX);
    loop {
        let mut piece = Piece { entries: std::mem::take(&mut left), ..Piece::default() };
        let mut bytes: usize = piece.entries.iter().map(|row| bytes_of(row)).sum();
        while piece.entries.len() < PIECE && bytes < PIECE_BYTES {
            let Some(row) = entries.next()? else { break };
            bytes += bytes_of(&row);
            piece.entries.push(row);
        }
        let end = piece.entries.is_empty();
        let [documents, commits, signatures, checkpoints] = &mut others[..] else { return Ok(()) };
        // Rows beyond the last entry come with an empty piece.
        let mut to = piece.entries.last().map_or(u64::MAX, at);
        documents.take(to, &mut piece.documents)?;
        if let Some(next) = documents.next.as_ref().map(at).filter(|next| !end && *next <= to) {
            let fit = piece.entries.partition_point(|row| at(row) < next);
            // At least one goes: its document is no part of it where it does not fit alone.
            left = piece.entries.split_off(fit.max(1));
            to = piece.entries.last().map_or(u64::MAX, at);
        }
        commits.take(to, &mut piece.commits)?;
        signatures.take(to, &mut piece.signatures)?;
        // A checkpoint's size is one more than the index of the last entry it covers.
        checkpoints.take(to.saturating_add(1), &mut piece.checkpoints)?;
        // The other side stops at the first suspicion.
        if !prepare(&mut piece) || sender.send(piece).is_err() || end {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_judged_alone_where_that_takes_less() {
        for (new, all, alone) in [
            (0, 0, true),
            (65_536, 65_540, true),
            (65_537, 200_000, false),
            (65_537, 262_148, true),
            (1 << 20, 10_000_000, true),
            (1_048_577, 10_000_000, false),
            (5, 3, true),
        ] {
            assert_eq!(is_tail(new, all), alone, "{new} of {all}");
        }
    }
}
