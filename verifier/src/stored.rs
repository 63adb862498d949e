//! Single entries of a ledger, looked up by place, and their paths in the tree as its stored tiles have it. Nothing that is looked
//! up is believed: an entry counts once its path leads to a signed root.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use ledger_engine::commit::COMMIT_ENTRIES_MAX;
use ledger_engine::domain::projection::Cell;
use ledger_engine::hash::Hash;
use ledger_engine::header::COUNT_MAX;
use ledger_engine::merkle::{self, Nodes, TILE_BYTES, TILE_WIDTH};

use crate::commits::{Commit, read_commit};
use crate::row::{EntryRow, blob, number, read_entry, text};
use crate::source::{SourceError, Tables};

/// An entry as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) row: EntryRow,
    pub(crate) body: Vec<u8>,
}

/// Why a look-up gave nothing.
pub(crate) enum Lost {
    /// An entry or tile is missing or undecodable: the place.
    Missing(String),
    /// The links of a stream lead to an entry that is not of it.
    Astray(u64),
    /// The source failed.
    Source(SourceError),
}

impl Lost {
    /// The place that was looked for.
    pub(crate) fn place(&self) -> String {
        match self {
            Lost::Missing(place) => place.clone(),
            Lost::Astray(index) => format!("entries/{index}"),
            Lost::Source(e) => e.to_string(),
        }
    }
}

impl From<SourceError> for Lost {
    fn from(e: SourceError) -> Lost {
        Lost::Source(e)
    }
}

/// The hashes of a tile.
type Tile = Rc<Vec<Hash>>;

/// Tiles kept in memory, 8 KiB each.
const TILES: usize = 4096;

/// Bytes of bodies of histories that are followed together.
const HISTORIES_BYTES_MAX: usize = 16 << 20;

/// Computed nodes kept in memory.
const NODES: usize = 65_536;

/// One chain of a ledger.
pub(crate) struct StoredChain<'a> {
    pub(crate) tables: &'a dyn Tables,
    pub(crate) ledger_id: Hash,
    pub(crate) chain: u32,
    tiles: RefCell<HashMap<(u32, u64), Option<Tile>>>,
    /// Roots of subtrees that were computed: those beside the tree's right edge are asked for by every path.
    nodes: RefCell<HashMap<(u32, u64), Hash>>,
}

impl<'a> StoredChain<'a> {
    pub(crate) fn new(tables: &'a dyn Tables, ledger_id: Hash, chain: u32) -> StoredChain<'a> {
        StoredChain { tables, ledger_id, chain, tiles: RefCell::default(), nodes: RefCell::default() }
    }

    /// The entries from `from` to before `to`, all of them.
    pub(crate) fn entries(&self, from: u64, to: u64) -> Result<Vec<Read>, Lost> {
        let rows = self.tables.span("entries", self.chain.into(), from..to)?;
        let mut found = Vec::with_capacity(rows.len());
        for cells in &rows {
            let read = read_entry(cells, &self.ledger_id);
            let expected = from + found.len() as u64;
            let Some((row, body)) = read.filter(|(row, _)| row.header.index == expected) else {
                return Err(Lost::Missing(format!("entries/{expected}")));
            };
            found.push(Read { row, body: body.to_vec() });
        }
        if found.len() as u64 == to - from {
            return Ok(found);
        }
        Err(Lost::Missing(format!("entries/{}", from + found.len() as u64)))
    }

    /// Some entries, each of them once.
    pub(crate) fn entries_at(&self, indexes: &BTreeSet<u64>) -> Result<Vec<Read>, Lost> {
        let key = |index: &u64| vec![self.chain.into(), (*index).into()];
        let rows = self.tables.keyed_all("entries", &indexes.iter().map(key).collect::<Vec<_>>())?;
        let mut missing = indexes.clone();
        let mut found = Vec::with_capacity(rows.len());
        for cells in &rows {
            // One that is there twice is as good as none.
            if let Some((row, body)) =
                read_entry(cells, &self.ledger_id).filter(|(row, _)| missing.remove(&row.header.index))
            {
                found.push(Read { row, body: body.to_vec() });
            }
        }
        match missing.first() {
            None if found.len() == rows.len() => Ok(found),
            first => Err(Lost::Missing(format!("entries/{}", first.copied().unwrap_or_default()))),
        }
    }

    /// One entry.
    pub(crate) fn entry(&self, index: u64) -> Result<Read, Lost> {
        let end = index.checked_add(1).filter(|end| *end <= COUNT_MAX);
        let missing = || Lost::Missing(format!("entries/{index}"));
        self.entries(index, end.ok_or_else(missing)?)?.pop().ok_or_else(missing)
    }

    /// The commit row that covers an entry.
    pub(crate) fn commit(&self, index: u64) -> Result<Commit, Lost> {
        let row = self.tables.last("commits", self.chain.into(), index)?;
        let found = row.as_deref().and_then(read_commit).filter(|c| index - c.first < c.size);
        found.ok_or_else(|| Lost::Missing(format!("commits/{}", index.saturating_sub(COMMIT_ENTRIES_MAX as u64 - 1))))
    }

    /// What the table of stream heads says of a stream: its last and its first entry.
    pub(crate) fn stream(&self, name: &str) -> Result<Option<(u64, u64)>, SourceError> {
        let rows = self.tables.keyed("stream_heads", &[self.chain.into(), name.into()])?;
        Ok(rows.first().and_then(|cells| Some((number(cells.get(4)?)?, number(cells.get(5)?)?))))
    }

    /// The same of several streams, those that there are, by name.
    pub(crate) fn streams(&self, names: &[String]) -> Result<HashMap<String, (u64, u64)>, SourceError> {
        let key = |name: &String| vec![self.chain.into(), name.as_str().into()];
        let rows = self.tables.keyed_all("stream_heads", &names.iter().map(key).collect::<Vec<_>>())?;
        let head = |cells: &Vec<Cell>| {
            Some((text(cells.get(1)?)?.to_owned(), (number(cells.get(4)?)?, number(cells.get(5)?)?)))
        };
        Ok(rows.iter().filter_map(head).collect())
    }

    /// The size and note of the last signed checkpoint.
    pub(crate) fn checkpoint(&self) -> Result<Option<(u64, String)>, SourceError> {
        let mut to = COUNT_MAX - 1;
        // The newest may be recorded and not signed yet.
        while let Some(cells) = self.tables.last("checkpoints", self.chain.into(), to)? {
            let size = cells.get(1).and_then(number).unwrap_or_default();
            if let Some(note) = cells.get(3).and_then(text) {
                return Ok(Some((size, note.to_owned())));
            }
            let Some(below) = size.checked_sub(1) else { break };
            to = below;
        }
        Ok(None)
    }

    /// Inclusion path of an entry in the tree of `size` leaves.
    pub(crate) fn path(&self, index: u64, size: u64) -> Result<Vec<Hash>, Lost> {
        merkle::inclusion_proof(self, index, size)
    }

    fn tile(&self, level: u32, n: u64) -> Result<Option<Tile>, Lost> {
        if let Some(found) = self.tiles.borrow().get(&(level, n)) {
            return Ok(found.clone());
        }
        let rows = self.tables.keyed("tiles", &[self.chain.into(), level.into(), n.into()])?;
        let found = rows.first().and_then(|cells| tile_of(cells));
        let mut tiles = self.tiles.borrow_mut();
        if tiles.len() == TILES {
            tiles.clear();
        }
        tiles.insert((level, n), found.clone());
        Ok(found)
    }

    /// Looks up the tiles of these leaves together, as far as they are kept.
    pub(crate) fn look_ahead(&self, indexes: &BTreeSet<u64>) -> Result<(), Lost> {
        let mut tiles = self.tiles.borrow_mut();
        let wanted: BTreeSet<u64> = indexes.iter().map(|index| index / TILE_WIDTH).collect();
        let wanted: Vec<u64> = wanted.into_iter().filter(|n| !tiles.contains_key(&(0, *n))).take(TILES / 2).collect();
        if tiles.len() + wanted.len() > TILES {
            tiles.clear();
        }
        let key = |n: &u64| vec![self.chain.into(), 0u64.into(), (*n).into()];
        let rows = self.tables.keyed_all("tiles", &wanted.iter().map(key).collect::<Vec<_>>())?;
        tiles.extend(wanted.iter().map(|n| ((0, *n), None)));
        for cells in &rows {
            if let Some(n) = cells.get(2).and_then(number) {
                tiles.insert((0, n), tile_of(cells));
            }
        }
        Ok(())
    }

    /// `count` neighbours at the bottom of a tile level: leaf hashes at 0, roots of whole tiles of the level below above it.
    pub(crate) fn neighbours(&self, level: u32, first: u64, count: u64) -> Result<Vec<Hash>, Lost> {
        if let Some(tile) = self.tile(level, first / TILE_WIDTH)? {
            let from = (first % TILE_WIDTH) as usize;
            let hashes = tile.get(from..from + count as usize);
            return Ok(hashes.unwrap_or_default().to_vec());
        }
        if level == 0 {
            return Ok(self.entries(first, first + count)?.iter().map(|read| read.row.digests.leaf).collect());
        }
        (first..first + count).map(|n| self.node(level * TILE_WIDTH.trailing_zeros(), n)).collect()
    }
}

/// The hashes of a tile's row.
fn tile_of(cells: &[Cell]) -> Option<Tile> {
    let bytes = blob(cells.get(3)?).filter(|b| b.len() == TILE_BYTES)?;
    Some(Rc::new(bytes.chunks_exact(32).filter_map(Hash::from_slice).collect()))
}

impl Nodes for StoredChain<'_> {
    type Error = Lost;

    fn node(&self, level: u32, n: u64) -> Result<Hash, Lost> {
        if let Some(node) = self.nodes.borrow().get(&(level, n)) {
            return Ok(*node);
        }
        let node = self.compute(level, n)?;
        let mut nodes = self.nodes.borrow_mut();
        if nodes.len() == NODES {
            nodes.clear();
        }
        nodes.insert((level, n), node);
        Ok(node)
    }
}

impl StoredChain<'_> {
    fn compute(&self, level: u32, n: u64) -> Result<Hash, Lost> {
        let height = TILE_WIDTH.trailing_zeros();
        let (tile_level, above) = (level / height, level % height);
        // Exactly on a tile level and not in a tile of it yet: the root of the whole tile below.
        if tile_level > 0 && above == 0 && self.tile(tile_level, n / TILE_WIDTH)?.is_none() {
            return Ok(merkle::root(&self.neighbours(tile_level - 1, n * TILE_WIDTH, TILE_WIDTH)?));
        }
        Ok(merkle::root(&self.neighbours(tile_level, n << above, 1 << above)?))
    }
}

/// Entries of some streams of a chain, from their beginnings, by index.
pub(crate) type Histories = BTreeMap<u64, Read>;

impl StoredChain<'_> {
    /// Follows a stream from one of its entries back to its first, by the places that the rows name.
    pub(crate) fn follow(&self, stream: &str, last: u64, into: &mut Histories) -> Result<(), Lost> {
        let mut next = Some(last);
        while let Some(index) = next {
            if let Some(read) = into.get(&index) {
                return if read.row.header.stream == stream { Ok(()) } else { Err(Lost::Astray(index)) };
            }
            let read = self.entry(index)?;
            // A place that does not go back could lead around for ever.
            let back = read.row.parent_index.is_none_or(|parent| parent < index);
            if read.row.header.stream != stream || !back {
                return Err(Lost::Astray(index));
            }
            next = read.row.parent_index;
            into.insert(index, read);
        }
        Ok(())
    }

    /// Follows several streams, each from one of its entries, all of them a step at a time. `None`: they are too long together.
    pub(crate) fn follow_all(&self, streams: &HashMap<String, (u64, u64)>) -> Result<Option<Histories>, Lost> {
        let (mut all, mut bytes) = (Histories::new(), 0);
        let mut next: BTreeMap<u64, &str> = BTreeMap::new();
        for (stream, (last, _)) in streams {
            if next.insert(*last, stream).is_some() {
                return Err(Lost::Astray(*last));
            }
        }
        while !next.is_empty() {
            let indexes: BTreeSet<u64> = next.keys().copied().collect();
            let mut parents = BTreeMap::new();
            for read in self.entries_at(&indexes)? {
                let (index, parent) = (read.row.header.index, read.row.parent_index);
                let stream = next.get(&index).filter(|stream| read.row.header.stream == **stream);
                let (Some(stream), true) = (stream, parent.is_none_or(|parent| parent < index)) else {
                    return Err(Lost::Astray(index));
                };
                bytes += read.body.len();
                all.insert(index, read);
                // No entry is of two streams.
                if let Some(parent) = parent
                    && parents.insert(parent, *stream).is_some()
                {
                    return Err(Lost::Astray(parent));
                }
            }
            if bytes > HISTORIES_BYTES_MAX {
                return Ok(None);
            }
            next = parents;
        }
        Ok(Some(all))
    }

    /// Private documents by index, as stored.
    pub(crate) fn document(&self, index: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let rows = self.tables.keyed("private_documents", &[self.chain.into(), index.into()])?;
        Ok(rows.first().and_then(|cells| blob(cells.get(2)?)).map(<[u8]>::to_vec))
    }

    /// The signatures of a commit: kid, algorithm, bytes.
    pub(crate) fn signatures(&self, first: u64) -> Result<Vec<Vec<Cell>>, SourceError> {
        self.tables.keyed("commit_signatures", &[self.chain.into(), first.into()])
    }
}
