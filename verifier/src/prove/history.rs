//! The RFC 6962 tree of a growing chain: its tiles as they become complete, its root now and at recent sizes.

use std::collections::VecDeque;

use ledger_engine::hash::Hash;
use ledger_engine::merkle::{CompactRange, Nodes, TILE_WIDTH, node_hash, root, root_at};

/// Leaves kept, so that the root at a size that is not a multiple of 256 can still be had.
const RECENT: usize = 16_384;
/// Subtrees of 2^8 leaves and more are all kept: 1/128 of the leaves' number.
const LEVEL: u32 = TILE_WIDTH.trailing_zeros();

#[derive(Default)]
pub(super) struct History {
    pub(super) range: CompactRange,
    recent: VecDeque<Hash>,
    levels: Vec<Level>,
    /// Of a tree that was begun from its subtrees, what is known of it before: level, number, root.
    before: Vec<(u32, u64, Hash)>,
}

/// Roots over 2^(8 + k) leaves each, neighbours in order.
#[derive(Default)]
struct Level {
    /// Number of the first that is kept: nothing of what lies before a resumed tree is needed again, but for its last nodes.
    first: u64,
    nodes: Vec<Hash>,
}

impl Level {
    fn len(&self) -> u64 {
        self.first + self.nodes.len() as u64
    }

    fn get(&self, n: u64) -> Option<Hash> {
        self.nodes.get(usize::try_from(n.checked_sub(self.first)?).ok()?).copied()
    }

    /// The last `count` nodes, if so many are kept.
    fn last(&self, count: u64) -> Option<&[Hash]> {
        self.nodes.get(self.nodes.len().checked_sub(count as usize)?..)
    }
}

/// A leaf that is not kept any more.
pub(super) struct Forgotten;

impl Nodes for History {
    type Error = Forgotten;

    fn node(&self, level: u32, n: u64) -> Result<Hash, Forgotten> {
        if let Some((.., node)) = self.before.iter().find(|b| (b.0, b.1) == (level, n)) {
            return Ok(*node);
        }
        if level >= LEVEL {
            return self.levels.get((level - LEVEL) as usize).and_then(|l| l.get(n)).ok_or(Forgotten);
        }
        let kept_from = self.range.size() - self.recent.len() as u64;
        let Some(from) = (n << level).checked_sub(kept_from).map(|from| from as usize) else {
            // It may lie on both sides of where the tree was begun.
            let below = level.checked_sub(1).filter(|_| !self.before.is_empty()).ok_or(Forgotten)?;
            return Ok(node_hash(&self.node(below, 2 * n)?, &self.node(below, 2 * n + 1)?));
        };
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
                levels.push(Level::default());
            }
            levels[k].nodes.push(node);
            grown = k + 1;
        });
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(leaf);
        if self.range.size().is_multiple_of(TILE_WIDTH)
            && let Some(from) = self.recent.len().checked_sub(TILE_WIDTH as usize)
        {
            let leaves: Vec<Hash> = self.recent.range(from..).copied().collect();
            tile(0, self.range.size() / TILE_WIDTH - 1, flat(&leaves));
        }
        for k in (0..grown).step_by(LEVEL as usize) {
            let (level, len) = (&self.levels[k], self.levels[k].len());
            if len.is_multiple_of(TILE_WIDTH)
                && let Some(hashes) = level.last(TILE_WIDTH)
            {
                tile(k as u64 / u64::from(LEVEL) + 1, len / TILE_WIDTH - 1, flat(hashes));
            }
        }
    }

    /// A tree of which only its subtrees are known. It grows, and has roots at sizes from here on; of tiles only those that begin here.
    pub(super) fn begun(range: CompactRange) -> History {
        let heights = u64::BITS - range.size().leading_zeros();
        let first = |height: u32| Level { first: range.size() >> height, nodes: Vec::new() };
        let (levels, before) = ((LEVEL..heights).map(first).collect(), range.subtrees().collect());
        History { range, recent: VecDeque::new(), levels, before }
    }

    /// A tree of `size` leaves, of which only the incomplete tiles are known: `tiles[l]` holds the hashes at the bottom of tile
    /// level `l` from the last multiple of 256 on. That is all that a tree needs to grow. Whether they are right, the root tells:
    /// every hash is below it.
    pub(super) fn resume(size: u64, tiles: &[Vec<Hash>]) -> Option<History> {
        // The neighbours that end where the tree of whole subtrees of this height ends.
        let last_node = |height: u32| {
            let (level, above) = ((height / LEVEL) as usize, height % LEVEL);
            let tile = tiles.get(level)?;
            let end = ((size >> height << above) % TILE_WIDTH) as usize;
            tile.get(end.checked_sub(1 << above)?..end).map(root)
        };
        let heights = u64::BITS - size.leading_zeros();
        let mut bytes = Vec::new();
        for height in (0..heights).rev().filter(|h| size >> h & 1 == 1) {
            bytes.extend_from_slice(&last_node(height)?.0);
        }
        let mut levels = Vec::new();
        for height in LEVEL..heights {
            let count = size >> height;
            levels.push(if height.is_multiple_of(LEVEL) {
                Level { first: count / TILE_WIDTH * TILE_WIDTH, nodes: tiles.get((height / LEVEL) as usize)?.clone() }
            } else if count & 1 == 1 {
                Level { first: count - 1, nodes: vec![last_node(height)?] }
            } else {
                Level { first: count, nodes: Vec::new() }
            });
        }
        let recent = VecDeque::from(tiles.first().cloned().unwrap_or_default());
        Some(History { range: CompactRange::from_bytes(size, &bytes)?, recent, levels, before: Vec::new() })
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
        // Resumed at any size from the hashes of its incomplete tiles, it grows alike.
        for from in [0, 1, 255, 256, 257, 511, 512, 3_000, 65_535, 65_536, 65_537, 69_120, 69_999] {
            let mut levels = vec![leaves[..from].to_vec()];
            while let Some(below) = levels.last().filter(|l| l.len() >= 256) {
                let next = below.chunks_exact(256).map(root).collect();
                levels.push(next);
            }
            let incomplete: Vec<Vec<Hash>> = levels.iter().map(|l| l[l.len() / 256 * 256..].to_vec()).collect();
            let mut resumed = History::resume(from as u64, &incomplete).unwrap();
            assert_eq!(resumed.range.root(), root(&leaves[..from]), "{from}");
            let mut grown = Vec::new();
            for leaf in &leaves[from..] {
                resumed.push(*leaf, &mut |level, n, hashes| grown.push((level, n, hashes)));
            }
            assert_eq!(grown, tiles[tiles.len() - grown.len()..], "{from}");
            assert_eq!(
                grown.len(),
                tiles.iter().filter(|t| (t.1 + 1) << (8 * (t.0 + 1)) > from as u64).count(),
                "{from}"
            );
            for size in [from.max(60_000), 65_536.max(from), 69_999, 70_000] {
                assert_eq!(resumed.root(size as u64), Some(root(&leaves[..size])), "{from} {size}");
            }
        }
        // So it does from its subtrees alone, but for tiles that begin before.
        for from in [1, 3, 255, 256, 300, 3_000, 65_535, 65_537, 69_000] {
            let mut range = CompactRange::default();
            leaves[..from].iter().for_each(|leaf| range.push(*leaf));
            let mut begun = History::begun(range);
            let end = (from + 1_500).min(70_000);
            for (size, leaf) in (from..end).zip(&leaves[from..]) {
                if (size - from).is_power_of_two() {
                    assert_eq!(begun.root(size as u64), Some(root(&leaves[..size])), "{from} {size}");
                }
                let mut complete = Vec::new();
                begun.push(*leaf, &mut |level, n, hashes| complete.push((level, n, hashes)));
                assert!(complete.iter().all(|tile| tiles.contains(tile)), "{from} {size}");
            }
            for size in [from, from + 1, from + 257, end - 1, end].into_iter().filter(|size| *size <= end) {
                assert_eq!(begun.root(size as u64), Some(root(&leaves[..size])), "{from} {size}");
            }
        }
        assert_eq!(history.root(300), None, "leaf 257 is forgotten");
        assert_eq!(history.root(70_001), None);
    }
}
