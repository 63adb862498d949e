//! The RFC 6962 tree of one chain, every complete subtree kept, so that the root at any size costs a few hashes.

use ledger_engine::hash::Hash;
use ledger_engine::merkle::{Nodes, node_hash, root_at};

/// `levels[k][i]` is the root over leaves `[i << k, (i + 1) << k)`.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    pub(crate) fn new(leaves: Vec<Hash>) -> Tree {
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|l| l.len() > 1) {
            let next = below.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
            levels.push(next);
        }
        Tree { levels }
    }

    pub(crate) fn size(&self) -> u64 {
        self.leaves().len() as u64
    }

    pub(crate) fn leaves(&self) -> &[Hash] {
        self.levels.first().map_or(&[], Vec::as_slice)
    }

    /// Root of the first `size` leaves, if there are so many.
    pub(crate) fn root(&self, size: u64) -> Option<Hash> {
        if size > self.size() {
            return None;
        }
        root_at(self, size).ok()
    }

    /// The compact range of all leaves, as head rows store it.
    pub(crate) fn compact_range(&self) -> Vec<u8> {
        let size = self.size();
        let bits = (0..64).rev().filter(|k| size >> k & 1 == 1);
        bits.filter_map(|k| self.levels.get(k)?.get(((size >> k) - 1) as usize)).flat_map(|h| h.0).collect()
    }

    /// All complete tiles: level, number, bytes.
    pub(crate) fn tiles(&self) -> impl Iterator<Item = (u64, u64, Vec<u8>)> + '_ {
        self.levels.iter().enumerate().step_by(8).flat_map(|(k, hashes)| {
            let tiles = hashes.chunks_exact(256).enumerate();
            tiles.map(move |(n, tile)| (k as u64 / 8, n as u64, tile.iter().flat_map(|h| h.0).collect()))
        })
    }
}

/// A subtree outside the tree; [`Tree::root`] never asks for one.
#[derive(Debug)]
pub(crate) struct Outside;

impl Nodes for Tree {
    type Error = Outside;

    fn node(&self, level: u32, n: u64) -> Result<Hash, Outside> {
        self.levels.get(level as usize).and_then(|l| l.get(n as usize)).copied().ok_or(Outside)
    }
}
