//! The RFC 6962 tree of one chain. Roots of whole subtrees of 256 leaves and more are kept, so that the root at any size costs a
//! few hashes; leaves lie in the log of what was seen.

use ledger_engine::hash::Hash;
use ledger_engine::merkle::{CompactRange, Nodes, TILE_WIDTH, root, root_at};

use crate::seen::SeenLog;

/// Height of the subtrees whose roots are kept.
const HEIGHT: u32 = TILE_WIDTH.trailing_zeros();

/// `levels[k][i]` is the root over leaves `[i << (8 + k), (i + 1) << (8 + k))`.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    range: CompactRange,
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    pub(crate) fn push(&mut self, leaf: Hash) {
        let levels = &mut self.levels;
        self.range.push_with(leaf, |level, node| {
            let Some(k) = level.checked_sub(HEIGHT).map(|k| k as usize) else { return };
            if levels.len() == k {
                levels.push(Vec::new());
            }
            levels[k].push(node);
        });
    }

    pub(crate) fn size(&self) -> u64 {
        self.range.size()
    }

    /// Root of the first `size` leaves, if there are so many. `leaves`: the log whose first records they are.
    pub(crate) fn root(&self, leaves: &SeenLog, size: u64) -> Option<Hash> {
        match size {
            _ if size > self.size() => None,
            _ if size == self.size() => Some(self.range.root()),
            _ => root_at(&Kept { tree: self, leaves }, size).ok(),
        }
    }

    /// The compact range of all leaves, as head rows store it.
    pub(crate) fn compact_range(&self) -> Vec<u8> {
        self.range.to_bytes()
    }

    /// All complete tiles: level, number, bytes.
    pub(crate) fn tiles(&self, leaves: &SeenLog, mut give: impl FnMut(u64, u64, Vec<u8>)) {
        let flat = |hashes: &[Hash]| hashes.iter().flat_map(|h| h.0).collect();
        for n in 0..self.size() / TILE_WIDTH {
            give(0, n, flat(&leaves.leaves(n * TILE_WIDTH, TILE_WIDTH)));
        }
        for (level, hashes) in (1..).zip(self.levels.iter().step_by(HEIGHT as usize)) {
            let tiles = hashes.chunks_exact(TILE_WIDTH as usize).zip(0..);
            tiles.for_each(|(tile, n)| give(level, n, flat(tile)));
        }
    }
}

struct Kept<'a> {
    tree: &'a Tree,
    leaves: &'a SeenLog,
}

/// A subtree outside the tree; [`Tree::root`] never asks for one.
#[derive(Debug)]
struct Outside;

impl Nodes for Kept<'_> {
    type Error = Outside;

    fn node(&self, level: u32, n: u64) -> Result<Hash, Outside> {
        match level.checked_sub(HEIGHT) {
            Some(k) => self.tree.levels.get(k as usize).and_then(|l| l.get(n as usize)).copied().ok_or(Outside),
            None => Ok(root(&self.leaves.leaves(n << level, 1 << level))),
        }
    }
}
