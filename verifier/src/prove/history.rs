//! The RFC 6962 tree of a growing chain: its tiles as they become complete, its root now and at recent sizes.

use std::collections::VecDeque;

use ledger_engine::hash::Hash;
use ledger_engine::merkle::{CompactRange, Nodes, TILE_WIDTH, root, root_at};

/// Leaves kept, so that the root at a size that is not a multiple of 256 can still be had.
const RECENT: usize = 16_384;
/// Subtrees of 2^8 leaves and more are all kept: 1/128 of the leaves' number.
const LEVEL: u32 = TILE_WIDTH.trailing_zeros();

#[derive(Default)]
pub(super) struct History {
    pub(super) range: CompactRange,
    recent: VecDeque<Hash>,
    /// `levels[k][i]` is the root over leaves `[i << (8 + k), (i + 1) << (8 + k))`.
    levels: Vec<Vec<Hash>>,
}

/// A leaf that is not kept any more.
pub(super) struct Forgotten;

impl Nodes for History {
    type Error = Forgotten;

    fn node(&self, level: u32, n: u64) -> Result<Hash, Forgotten> {
        if level >= LEVEL {
            return self.levels.get((level - LEVEL) as usize).and_then(|l| l.get(n as usize)).copied().ok_or(Forgotten);
        }
        let kept_from = self.range.size() - self.recent.len() as u64;
        let from = (n << level).checked_sub(kept_from).ok_or(Forgotten)? as usize;
        let leaves: Vec<Hash> = self.recent.range(from..).take(1 << level).copied().collect();
        Ok(root(&leaves))
    }
}

impl History {
    /// Appends a leaf; `tile` takes each tile that becomes complete: level, number, hashes.
    pub(super) fn push(&mut self, leaf: Hash, tile: &mut impl FnMut(u64, u64, Vec<u8>)) {
        let levels = &mut self.levels;
        let mut grown = 0;
        self.range.push_with(leaf, |level, node| {
            let Some(k) = level.checked_sub(LEVEL).map(|k| k as usize) else { return };
            if levels.len() == k {
                levels.push(Vec::new());
            }
            levels[k].push(node);
            grown = k + 1;
        });
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(leaf);
        if self.range.size().is_multiple_of(TILE_WIDTH) {
            let from = self.recent.len() - TILE_WIDTH as usize;
            let leaves: Vec<Hash> = self.recent.range(from..).copied().collect();
            tile(0, self.range.size() / TILE_WIDTH - 1, flat(&leaves));
        }
        for k in (0..grown).step_by(LEVEL as usize) {
            let (level, len) = (&self.levels[k], self.levels[k].len() as u64);
            if len.is_multiple_of(TILE_WIDTH) {
                let hashes = flat(&level[level.len() - TILE_WIDTH as usize..]);
                tile(k as u64 / u64::from(LEVEL) + 1, len / TILE_WIDTH - 1, hashes);
            }
        }
    }

    /// Root at a size up to now, if enough of it is kept.
    pub(super) fn root(&self, size: u64) -> Option<Hash> {
        if size == self.range.size() {
            return Some(self.range.root());
        }
        (size < self.range.size()).then(|| root_at(self, size).ok())?
    }
}

fn flat(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|h| h.0).collect()
}

#[cfg(test)]
mod tests {
    use ledger_engine::hash::sha256;

    use super::*;

    #[test]
    fn roots_and_tiles_are_those_of_the_definition() {
        let leaves: Vec<Hash> = (0..70_000u32).map(|i| sha256(&[&i.to_le_bytes()])).collect();
        let mut history = History::default();
        let mut tiles = Vec::new();
        for leaf in &leaves {
            history.push(*leaf, &mut |level, n, hashes| tiles.push((level, n, hashes)));
        }
        // 273 full tiles of leaves and one of their roots, as C2SP tlog-tiles counts for 70,000.
        assert_eq!(tiles.iter().filter(|t| t.0 == 0).count(), 273);
        let top = tiles.iter().filter(|t| t.0 == 1).collect::<Vec<_>>();
        let roots: Vec<u8> = leaves.chunks(256).take(256).flat_map(|c| root(c).0).collect();
        assert_eq!(top, [&(1, 0, roots)]);
        for size in [0, 256, 512, 65_536, 60_000, 69_999, 70_000] {
            assert_eq!(history.root(size), Some(root(&leaves[..size as usize])), "{size}");
        }
        assert_eq!(history.root(300), None, "leaf 257 is forgotten");
        assert_eq!(history.root(70_001), None);
    }
}
