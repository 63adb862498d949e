//! Puts rows into the order of their links, whatever order they came in.
//!
//! Rows that follow each other in the source, each by the recomputed hash of the one before it, are one **run**, so an ordered
//! chain is a single run and costs no memory. Otherwise the runs' links are joined with all rows' names by sorting both on disk. Memory is 13 bytes a run, and four
//! more at two moments: 10 million rows in no order at all need 170 MB here.

use std::collections::{BTreeMap, HashSet};
use std::io;

use ledger_engine::hash::{Hash, sha256};
use ledger_engine::merkle::CompactRange;
use sha2::{Digest, Sha256};

use super::judge::{Judged, Link};
use crate::finding::Code;
use crate::spill::{Sorter, Spool, Texts};

/// A source may have this many rows.
pub(crate) const ROWS_MAX: u64 = u32::MAX as u64 - 16;
/// Missing predecessors that are looked for outside what was read.
const LOOKUPS_MAX: usize = 1000;

/// Says which of these hashes are of rows outside what was read.
pub(crate) type Outside<'a> = dyn FnMut(&[Hash]) -> HashSet<Hash> + 'a;

/// Bytes of a row's record.
const ROW: usize = 104;
/// Stands for no time, and sorts after all.
const NO_TIME: i64 = i64::MAX;

const GENESIS: u32 = u32::MAX;
const UNKNOWN: u32 = u32::MAX - 1;
const UNREADABLE: u32 = u32::MAX - 2;
const CYCLE: u32 = u32::MAX - 3;
/// The least of the values above, which stand for no row.
const NO_ROW: u32 = CYCLE;
/// Heights not yet known.
const OPEN: u32 = u32::MAX;
const ON_PATH: u32 = u32::MAX - 1;

/// What is wrong between rows. Rows by number in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LinkFault {
    /// No row has this name; there may be a genesis, or this is the chain's first row.
    Missing { prev: Hash, genesis: bool },
    /// `first` has the same predecessor.
    Fork { first: u32, parent: Option<u32> },
    /// The same as `first`.
    Duplicate { first: u32 },
    /// `first` has the same id.
    Id { first: u32 },
    /// The links lead back here.
    Cycle,
}

impl LinkFault {
    pub(crate) fn code(self) -> Code {
        match self {
            LinkFault::Missing { genesis: true, .. } => Code::LegacyLinkBroken,
            LinkFault::Missing { genesis: false, .. } => Code::LegacyGenesisMissing,
            LinkFault::Fork { .. } => Code::LegacyFork,
            LinkFault::Duplicate { .. } => Code::LegacyRowDuplicate,
            LinkFault::Id { .. } => Code::LegacyIdDuplicate,
            LinkFault::Cycle => Code::LegacyCycle,
        }
    }

    fn to_bytes(self, at: u32) -> [u8; 41] {
        let (tag, first, other, hash) = match self {
            LinkFault::Missing { prev, genesis } => (u8::from(genesis), 0, 0, prev),
            LinkFault::Fork { first, parent } => (2, first, parent.unwrap_or(NO_ROW), Hash::ZERO),
            LinkFault::Duplicate { first } => (3, first, 0, Hash::ZERO),
            LinkFault::Id { first } => (4, first, 0, Hash::ZERO),
            LinkFault::Cycle => (5, 0, 0, Hash::ZERO),
        };
        let mut out = [0; 41];
        out[0] = tag;
        out[1..5].copy_from_slice(&at.to_be_bytes());
        // A missing link has a hash and no rows, all others have rows and no hash.
        out[5..37].copy_from_slice(&hash.0);
        if tag > 1 {
            out[5..9].copy_from_slice(&first.to_be_bytes());
            out[9..13].copy_from_slice(&other.to_be_bytes());
        }
        out
    }

    fn from_bytes(bytes: &[u8; 41]) -> (u32, LinkFault) {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let fault = match bytes[0] {
            tag @ 0..=1 => {
                let prev = Hash::from_slice(&bytes[5..37]).unwrap_or_default();
                LinkFault::Missing { prev, genesis: tag == 1 }
            }
            2 => LinkFault::Fork { first: word(5), parent: Some(word(9)).filter(|p| *p < NO_ROW) },
            3 => LinkFault::Duplicate { first: word(5) },
            4 => LinkFault::Id { first: word(5) },
            _ => LinkFault::Cycle,
        };
        (word(1), fault)
    }
}

/// How much of the chain the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// The newest rows, so that one chain may begin elsewhere.
    Window,
    /// The source could not be read to its end: any row may have its predecessor there.
    Partial,
}

/// Where a row stands: components that begin at a genesis first, then by their first row; the number of links from
/// there; the row's number.
pub(crate) type Position = (bool, u32, u32, u32);

/// All rows' links, taken in the order of the source.
pub(crate) struct Links {
    /// Name, digest, leaf and time of each row.
    rows: Spool<ROW>,
    pub(crate) ids: Texts,
    /// First row, kind of link, and link of each run.
    runs: Spool<37>,
    /// Stored hashes that differ from the name, with their row.
    aliases: Spool<36>,
    last: Option<Judged>,
    /// The last id while all are growing numbers.
    growing: Option<u64>,
    faults: Spool<41>,
}

impl Links {
    pub(crate) fn new() -> Self {
        Links {
            rows: Spool::new(),
            ids: Texts::new(),
            runs: Spool::new(),
            aliases: Spool::new(),
            last: None,
            growing: Some(0),
            faults: Spool::new(),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.rows.len()
    }

    /// Takes the next row. There are at most [`ROWS_MAX`].
    pub(crate) fn push(&mut self, row: &Judged, id: &str) -> io::Result<()> {
        let number = self.rows.len() as u32;
        let follows = match (row.link, &self.last) {
            (Link::To(prev), Some(last)) => last.recomputed && last.name == prev,
            _ => false,
        };
        if !follows {
            let (kind, prev) = match row.link {
                Link::Genesis => (0, Hash::ZERO),
                Link::To(prev) => (1, prev),
                Link::Unreadable => (2, Hash::ZERO),
            };
            let mut run = [0; 37];
            run[..4].copy_from_slice(&number.to_be_bytes());
            run[4] = kind;
            run[5..].copy_from_slice(&prev.0);
            self.runs.push(&run)?;
        }
        if let Some(alias) = row.alias {
            self.aliases.push(&keyed(&alias, number))?;
        }
        let mut record = [0; ROW];
        record[..32].copy_from_slice(&row.name.0);
        record[32..64].copy_from_slice(&row.digest.0);
        record[64..96].copy_from_slice(&row.leaf.0);
        record[96..].copy_from_slice(&row.time_us.unwrap_or(NO_TIME).to_le_bytes());
        self.rows.push(&record)?;
        self.ids.push(id)?;
        let number = id.parse::<u64>().ok().filter(|n| n.to_string() == id);
        self.growing = self.growing.and_then(|last| number.filter(|n| *n > last));
        self.last = Some(*row);
        Ok(())
    }

    fn name(&mut self, row: u32) -> io::Result<Hash> {
        let record = self.rows.at(u64::from(row))?;
        Ok(Hash::from_slice(&record[..32]).unwrap_or_default())
    }

    /// The rows with these names, the last of several.
    pub(crate) fn find(&mut self, names: &[Hash]) -> io::Result<BTreeMap<Hash, u32>> {
        let wanted: HashSet<&[u8]> = names.iter().map(|name| &name.0[..]).collect();
        let mut found = BTreeMap::new();
        let count = if wanted.is_empty() { 0 } else { self.rows.len() };
        self.rows.each(0, count, |row, record| {
            if wanted.contains(&record[..32]) {
                found.insert(Hash::from_slice(&record[..32]).unwrap_or_default(), row as u32);
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn repeated_ids(&mut self) -> io::Result<()> {
        if self.growing.is_some() {
            return Ok(());
        }
        let mut sorter = Sorter::<36>::new();
        self.ids.each(|row, id| {
            if id.is_empty() { Ok(()) } else { sorter.push(keyed(&sha256(&[id.as_bytes()]), row as u32)) }
        })?;
        let mut sorted = sorter.sorted()?;
        let mut first: Option<[u8; 36]> = None;
        while let Some(record) = sorted.next()? {
            match first.filter(|f| f[..32] == record[..32]) {
                None => first = Some(record),
                Some(before) => {
                    let (row, first) = (row_of(&record), row_of(&before));
                    // The same row twice is found by its link.
                    if self.name(row)? != self.name(first)? {
                        self.faults.push(&LinkFault::Id { first }.to_bytes(row))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Orders what was pushed. `outside` says whether a row of this name exists beyond what was read.
    pub(crate) fn resolve(mut self, extent: Extent, outside: &mut Outside<'_>) -> io::Result<Resolved> {
        self.rows.flush()?;
        self.ids.flush()?;
        self.runs.flush()?;
        self.aliases.flush()?;
        self.repeated_ids()?;
        let runs = self.runs.len() as usize;
        let mut starts = Vec::with_capacity(runs);
        let mut parents = Vec::with_capacity(runs);
        let mut genesis = Vec::with_capacity(runs);
        self.runs.each(0, runs as u64, |_, run| {
            starts.push(row_of(&run[..4]));
            genesis.push(run[4] == 0);
            parents.push([GENESIS, UNKNOWN, UNREADABLE][usize::from(run[4])]);
            Ok(())
        })?;
        let mut resolved = Resolved {
            starts,
            parents,
            heights: Vec::new(),
            genesis,
            rows: self.rows.len() as u32,
            outside: Vec::new(),
            edge: None,
            head: None,
            links: self,
        };
        if runs > 1 || !resolved.genesis.iter().all(|g| *g) {
            resolved.join()?;
            if extent != Extent::Partial {
                resolved.orphans(extent == Extent::Window, outside)?;
            }
        }
        resolved.climb()?;
        resolved.find_head();
        resolved.links.faults.flush()?;
        Ok(resolved)
    }
}

fn keyed(hash: &Hash, row: u32) -> [u8; 36] {
    let mut out = [0; 36];
    out[..32].copy_from_slice(&hash.0);
    out[32..].copy_from_slice(&row.to_be_bytes());
    out
}

/// The row in a record's last four bytes.
fn row_of(record: &[u8]) -> u32 {
    record.last_chunk().map_or(0, |b| u32::from_be_bytes(*b))
}

/// A row by its number, with its time in microseconds.
pub(crate) type Timed = (u32, Option<i64>);

/// The first so many rows, in the order of adoptions.
pub(crate) struct Prefix {
    /// RFC 6962 root over their leaves.
    pub(crate) root: Hash,
    pub(crate) first: Timed,
    pub(crate) last: Timed,
    /// Name of the last.
    pub(crate) head: Hash,
}

fn leaf_of(record: &[u8; ROW]) -> Hash {
    Hash::from_slice(&record[64..96]).unwrap_or_default()
}

fn time_of(record: &[u8; ROW]) -> i64 {
    record.last_chunk().map_or(NO_TIME, |bytes| i64::from_le_bytes(*bytes))
}

/// The ranks of components, by the run where each begins.
enum Ranks {
    /// Ordered by run.
    Few(Vec<(u32, u32)>),
    /// One for each run.
    Many(Vec<u32>),
}

impl Ranks {
    fn of(&self, root: u32) -> u32 {
        match self {
            Ranks::Few(few) => few.binary_search_by_key(&root, |(run, _)| *run).map_or(0, |at| few[at].1),
            Ranks::Many(many) => many[root as usize],
        }
    }
}

/// Rows in the order of their links.
pub(crate) struct Resolved {
    /// First row of each run.
    starts: Vec<u32>,
    /// The row before each run's first; after the climb, the run where its component begins.
    parents: Vec<u32>,
    /// Links from the component's beginning to each run's first row.
    heights: Vec<u32>,
    genesis: Vec<bool>,
    rows: u32,
    /// Rows whose predecessor exists but was not read.
    pub(crate) outside: Vec<u32>,
    /// In a window: the first row of the chain there, and the name of the row before it.
    pub(crate) edge: Option<(u32, Hash)>,
    head: Option<u32>,
    pub(crate) links: Links,
}

impl Resolved {
    fn run_of(&self, row: u32) -> usize {
        if self.starts.len() == self.rows as usize {
            return row as usize;
        }
        self.starts.partition_point(|start| *start <= row) - 1
    }

    fn run_len(&self, run: usize) -> u32 {
        self.starts.get(run + 1).unwrap_or(&self.rows) - self.starts[run]
    }

    fn fault(&mut self, row: u32, fault: LinkFault) -> io::Result<()> {
        self.links.faults.push(&fault.to_bytes(row))
    }

    /// Finds the row before each run, and the rows with one predecessor.
    fn join(&mut self) -> io::Result<()> {
        let mut names = Sorter::<37>::new();
        let tagged = |record: &[u8; 36], tag: u8| {
            let mut out = [0; 37];
            out[..32].copy_from_slice(&record[..32]);
            out[32] = tag;
            out[33..].copy_from_slice(&record[32..]);
            out
        };
        let Links { rows, aliases, runs, .. } = &mut self.links;
        let (row_count, alias_count, run_count) = (rows.len(), aliases.len(), runs.len());
        rows.each(0, row_count, |row, record| {
            let name = Hash::from_slice(&record[..32]).unwrap_or_default();
            names.push(tagged(&keyed(&name, row as u32), 0))
        })?;
        aliases.each(0, alias_count, |_, record| names.push(tagged(record, 1)))?;
        let mut names = names.sorted()?;
        let mut claims = Sorter::<36>::new();
        let mut beginnings = Vec::new();
        runs.each(0, run_count, |number, run| {
            match run[4] {
                0 => beginnings.push(row_of(&run[..4])),
                1 => claims.push(keyed(&Hash::from_slice(&run[5..]).unwrap_or_default(), number as u32))?,
                _ => {}
            }
            Ok(())
        })?;
        let mut claims = claims.sorted()?;
        self.forks(&mut beginnings, None)?;
        drop(beginnings);

        let mut name = names.next()?;
        let mut claim = claims.next()?;
        let mut claimants = Vec::new();
        let hash_of = |record: &[u8]| -> Option<[u8; 32]> { record.first_chunk().copied() };
        loop {
            let (named, claimed) = (name.and_then(|n| hash_of(&n)), claim.and_then(|c| hash_of(&c)));
            // The lesser of the two, where there are two.
            let Some(hash) = named.into_iter().chain(claimed).min() else { return Ok(()) };
            let mut parent = None;
            while let Some(found) = name.filter(|n| n[..32] == hash) {
                let row = row_of(&found);
                parent = parent.or(Some(row));
                // A row of the same run that goes on from here claims it too. It does so by the name.
                if found[32] == 0 && row + 1 < self.rows && self.starts.binary_search(&(row + 1)).is_err() {
                    claimants.push(row + 1);
                }
                name = names.next()?;
            }
            while let Some(other) = claim.filter(|c| c[..32] == hash) {
                let run = row_of(&other) as usize;
                self.parents[run] = parent.unwrap_or(UNKNOWN);
                claimants.push(self.starts[run]);
                claim = claims.next()?;
            }
            self.forks(&mut claimants, parent)?;
            claimants.clear();
        }
    }

    fn forks(&mut self, claimants: &mut [u32], parent: Option<u32>) -> io::Result<()> {
        claimants.sort_unstable();
        let [first, others @ ..] = &*claimants else { return Ok(()) };
        if others.is_empty() {
            return Ok(());
        }
        let name = self.links.name(*first)?;
        for &row in others {
            let same = self.links.name(row)? == name;
            let fork = LinkFault::Fork { first: *first, parent };
            self.fault(row, if same { LinkFault::Duplicate { first: *first } } else { fork })?;
        }
        Ok(())
    }

    /// The predecessor that a run claims.
    fn claimed(&mut self, run: usize) -> io::Result<Hash> {
        Ok(Hash::from_slice(&self.links.runs.at(run as u64)?[5..]).unwrap_or_default())
    }

    /// Judges the runs whose predecessor is not among the rows.
    fn orphans(&mut self, windowed: bool, outside: &mut Outside<'_>) -> io::Result<()> {
        let mut genesis = self.genesis.contains(&true);
        let is_orphan = |parent: &u32| *parent == UNKNOWN;
        // Where the window begins.
        let edge = self.parents.iter().position(is_orphan).filter(|_| windowed && !genesis);
        if let Some(run) = edge {
            self.edge = Some((self.starts[run], self.claimed(run)?));
        }
        let mut asked = Vec::new();
        for run in edge.map_or(0, |run| run + 1)..self.starts.len() {
            if is_orphan(&self.parents[run]) && asked.len() < LOOKUPS_MAX {
                asked.push(self.claimed(run)?);
            }
        }
        let there = if asked.is_empty() { HashSet::new() } else { outside(&asked) };
        let mut lookups = 0;
        for run in edge.map_or(0, |run| run + 1)..self.starts.len() {
            if !is_orphan(&self.parents[run]) {
                continue;
            }
            let (row, prev) = (self.starts[run], self.claimed(run)?);
            lookups += 1;
            if lookups <= LOOKUPS_MAX && there.contains(&prev) {
                self.outside.push(row);
                continue;
            }
            self.fault(row, LinkFault::Missing { prev, genesis: genesis || windowed })?;
            // The chain's beginning is missed once.
            genesis = true;
        }
        Ok(())
    }

    /// Counts the links from each component's beginning. A cycle is cut before its first row.
    fn climb(&mut self) -> io::Result<()> {
        self.heights = vec![OPEN; self.starts.len()];
        let mut path: Vec<u32> = Vec::new();
        for run in 0..self.starts.len() {
            let mut at = run;
            while self.heights[at] >= ON_PATH {
                if self.heights[at] == ON_PATH {
                    let from = path.iter().position(|r| *r as usize == at).unwrap_or_default();
                    let cut = path[from..].iter().copied().min().unwrap_or_default() as usize;
                    self.fault(self.starts[cut], LinkFault::Cycle)?;
                    self.parents[cut] = CYCLE;
                    path.drain(..).for_each(|r| self.heights[r as usize] = OPEN);
                    at = run;
                    continue;
                }
                self.heights[at] = ON_PATH;
                path.push(at as u32);
                match self.parents[at] {
                    row if row < NO_ROW => at = self.run_of(row),
                    _ => break,
                }
            }
            while let Some(next) = path.pop() {
                let next = next as usize;
                let row = self.parents[next];
                if row >= NO_ROW {
                    self.heights[next] = 0;
                    self.parents[next] = next as u32;
                } else {
                    let before = self.run_of(row);
                    let links = (row - self.starts[before]).saturating_add(1);
                    self.heights[next] = self.heights[before].saturating_add(links).min(ON_PATH - 1);
                    self.parents[next] = self.parents[before];
                }
            }
        }
        Ok(())
    }

    /// The component of the genesis; without one, that of the window's edge, or the first.
    fn main(&self) -> Option<usize> {
        let edge = self.edge.map(|(row, _)| self.run_of(row));
        self.genesis.iter().position(|g| *g).or(edge).or_else(|| self.parents.first().map(|root| *root as usize))
    }

    fn find_head(&mut self) {
        let Some(main) = self.main() else { return };
        let mut best: Option<(u32, usize)> = None;
        for run in 0..self.starts.len() {
            if self.parents[run] as usize == main {
                let height = self.heights[run].saturating_add(self.run_len(run) - 1);
                if best.is_none_or(|(h, _)| height > h) {
                    best = Some((height, run));
                }
            }
        }
        self.head = best.map(|(_, run)| self.starts[run] + self.run_len(run) - 1);
    }

    /// Where a row stands.
    pub(crate) fn position(&self, row: u32) -> Position {
        let run = self.run_of(row);
        let root = self.parents[run] as usize;
        (!self.genesis[root], self.starts[root], self.heights[run].saturating_add(row - self.starts[run]), row)
    }

    /// The last row of the longest branch from the beginning, and its name.
    pub(crate) fn head(&mut self) -> io::Result<Option<(u32, Hash)>> {
        self.head.map(|row| Ok((row, self.links.name(row)?))).transpose()
    }

    /// Gives every fault between rows.
    pub(crate) fn each_fault(
        &mut self,
        mut give: impl FnMut(&Resolved, u32, LinkFault) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut faults = std::mem::replace(&mut self.links.faults, Spool::new());
        let count = faults.len();
        let given = faults.each(0, count, |_, record| {
            let (row, fault) = LinkFault::from_bytes(record);
            give(self, row, fault)
        });
        self.links.faults = faults;
        given
    }

    /// A fault by its number, in the order in which they are given.
    pub(crate) fn fault_at(&mut self, number: u64) -> io::Result<LinkFault> {
        Ok(LinkFault::from_bytes(&self.links.faults.at(number)?).1)
    }

    /// How many faults there are between rows.
    pub(crate) fn faults(&self) -> u64 {
        self.links.faults.len()
    }

    /// SHA-256 over the digests of all rows in chain order, and over those of the first rows by each of `counts`
    /// (ascending). To be asked of a chain without faults between rows.
    pub(crate) fn digests(&mut self, counts: &[u64]) -> io::Result<(Hash, Vec<Hash>)> {
        let mut order: Vec<u32> = (0..self.starts.len() as u32).collect();
        order.sort_unstable_by_key(|run| self.heights[*run as usize]);
        let mut hasher = Sha256::new_with_prefix(b"ledger/legacy-rows/v1\0");
        let mut prefixes = Vec::new();
        let mut done = 0;
        for run in order {
            let (start, len) = (self.starts[run as usize], self.run_len(run as usize));
            self.links.rows.each(u64::from(start), u64::from(len), |_, record| {
                while counts.get(prefixes.len()) == Some(&done) {
                    prefixes.push(Hash(hasher.clone().finalize().into()));
                }
                hasher.update(&record[32..64]);
                done += 1;
                Ok(())
            })?;
        }
        let all = Hash(hasher.finalize().into());
        prefixes.resize(counts.len(), all);
        Ok((all, prefixes))
    }

    /// Gives number and leaf of every row in the order of adoptions (FORMAT.md 14): components that begin at a genesis
    /// first, then by time and leaf of their first row; in each by the number of links from there, then by leaf.
    /// No row's place depends on where it stands in the source, and rows that continue the chain come last.
    fn each_in_order(&mut self, mut give: impl FnMut(u32, Hash)) -> io::Result<()> {
        let one_path = self.faults() == 0 && self.parents.iter().all(|root| *root == self.parents[0]);
        if one_path {
            let mut order: Vec<u32> = (0..self.starts.len() as u32).collect();
            order.sort_unstable_by_key(|run| self.heights[*run as usize]);
            for run in order {
                let (start, len) = (self.starts[run as usize], self.run_len(run as usize));
                self.links.rows.each(u64::from(start), u64::from(len), |row, record| {
                    give(row as u32, leaf_of(record));
                    Ok(())
                })?;
            }
            return Ok(());
        }
        let ranks = self.ranks()?;
        let mut sorter = Sorter::<44>::new();
        for run in 0..self.starts.len() {
            let (start, len) = (self.starts[run], self.run_len(run));
            let (rank, height) = (ranks.of(self.parents[run]), self.heights[run]);
            self.links.rows.each(u64::from(start), u64::from(len), |row, record| {
                let mut key = [0; 44];
                key[..4].copy_from_slice(&rank.to_be_bytes());
                key[4..8].copy_from_slice(&height.saturating_add(row as u32 - start).to_be_bytes());
                key[8..40].copy_from_slice(&record[64..96]);
                key[40..].copy_from_slice(&(row as u32).to_be_bytes());
                sorter.push(key)
            })?;
        }
        let mut sorted = sorter.sorted()?;
        while let Some(key) = sorted.next()? {
            give(row_of(&key), Hash::from_slice(&key[8..40]).unwrap_or_default());
        }
        Ok(())
    }

    /// The order of components: those that begin at a genesis first, then by time and leaf of their first row.
    fn ranks(&mut self) -> io::Result<Ranks> {
        let (mut roots, mut count) = (Sorter::<45>::new(), 0);
        for run in (0..self.starts.len()).filter(|run| self.parents[*run] as usize == *run) {
            let record = self.links.rows.at(u64::from(self.starts[run]))?;
            let mut key = [0; 45];
            key[0] = u8::from(!self.genesis[run]);
            // As bytes in the order of numbers.
            key[1..9].copy_from_slice(&(time_of(&record) ^ i64::MIN).to_be_bytes());
            key[9..41].copy_from_slice(&leaf_of(&record).0);
            key[41..].copy_from_slice(&(run as u32).to_be_bytes());
            roots.push(key)?;
            count += 1;
        }
        let (mut roots, mut rank) = (roots.sorted()?, 0);
        let mut ranks = match count * 4 < self.starts.len() {
            true => Ranks::Few(Vec::with_capacity(count)),
            false => Ranks::Many(vec![0; self.starts.len()]),
        };
        while let Some(key) = roots.next()? {
            match &mut ranks {
                Ranks::Few(few) => few.push((row_of(&key), rank)),
                Ranks::Many(many) => many[row_of(&key) as usize] = rank,
            }
            rank += 1;
        }
        if let Ranks::Few(few) = &mut ranks {
            few.sort_unstable();
        }
        Ok(ranks)
    }

    /// What the first rows are by each of `counts`, which ascend from 1 and are at most the number of rows.
    pub(crate) fn prefixes(&mut self, counts: &[u64]) -> io::Result<Vec<Prefix>> {
        let (mut range, mut ends, mut first) = (CompactRange::default(), Vec::new(), None);
        self.each_in_order(|row, leaf| {
            first.get_or_insert(row);
            range.push(leaf);
            while counts.get(ends.len()) == Some(&range.size()) {
                ends.push((range.root(), row));
            }
        })?;
        let Some(first) = first else { return Ok(Vec::new()) };
        let first_time = time_of(&self.links.rows.at(u64::from(first))?);
        let timed = |row, time| (row, Some(time).filter(|t| *t != NO_TIME));
        let mut prefixes = Vec::new();
        for (root, last) in ends {
            let record = self.links.rows.at(u64::from(last))?;
            let head = Hash::from_slice(&record[..32]).unwrap_or_default();
            prefixes.push(Prefix { root, first: timed(first, first_time), last: timed(last, time_of(&record)), head });
        }
        Ok(prefixes)
    }
}
