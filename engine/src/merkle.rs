//! RFC 6962 tree over header bytes: leaf and node hashes, roots, inclusion and consistency proofs, compact range.
//!
//! `leaf = SHA-256(0x00 ‖ data)`, `node = SHA-256(0x01 ‖ left ‖ right)`, split at the largest power of two below
//! the size (RFC 6962 2.1). Proofs are verified by the loops of RFC 9162 2.1.3.2 and 2.1.4.2.

use crate::hash::{Hash, sha256};

/// Width of a tile in hashes (C2SP tlog-tiles).
pub const TILE_WIDTH: u64 = 256;
/// Bytes of a full tile.
pub const TILE_BYTES: usize = 8192;

/// Hash of a leaf over its data.
pub fn leaf_hash(data: &[u8]) -> Hash {
    sha256(&[&[0], data])
}

/// Hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(&left.0);
    bytes[33..].copy_from_slice(&right.0);
    sha256(&[&bytes])
}

/// Root of the empty tree, SHA-256 of nothing.
pub fn empty_root() -> Hash {
    sha256(&[])
}

/// Root over leaf hashes, by the definition.
pub fn root(leaves: &[Hash]) -> Hash {
    let mut range = CompactRange::default();
    for leaf in leaves {
        range.push(*leaf);
    }
    range.root()
}

/// The roots of the full subtrees that a tree of `size` splits into, largest first: all that is needed to
/// append to the tree and to compute its root.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CompactRange {
    size: u64,
    nodes: Vec<Hash>,
}

impl CompactRange {
    /// Reads the stored form: one 32-byte node for each one-bit of `size`, largest subtree first.
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Option<CompactRange> {
        if bytes.len() != size.count_ones() as usize * 32 {
            return None;
        }
        let nodes = bytes.chunks_exact(32).map(Hash::from_slice).collect::<Option<_>>()?;
        Some(CompactRange { size, nodes })
    }

    /// The subtrees of the old tree, as a consistency proof from `old` to a larger size holds them: it leads to the old root through each of
    /// them (RFC 6962 2.1.2). `None`: it does not lead to this root, and says nothing. Whether it leads to the new one is for
    /// [`verify_consistency`].
    pub fn before(old: u64, new: u64, path: &[Hash], old_root: &Hash) -> Option<CompactRange> {
        if old == 0 || old >= new {
            return (old == 0 && path.is_empty() && *old_root == empty_root()).then(CompactRange::default);
        }
        let mut path = path.iter();
        let first = if old.is_power_of_two() { *old_root } else { *path.next()? };
        let height = old.trailing_zeros();
        let (mut node, mut last) = ((old - 1) >> height, (new - 1) >> height);
        // The smallest subtree is on the right; those to its left follow, among the nodes that only the new tree needs.
        let mut nodes = vec![first];
        while node > 0 {
            if node & 1 == 1 || node == last {
                nodes.push(*path.next()?);
                while node & 1 == 0 && node != 0 {
                    (node, last) = (node >> 1, last >> 1);
                }
            } else {
                path.next()?;
            }
            (node, last) = (node >> 1, last >> 1);
        }
        nodes.reverse();
        let range = CompactRange { size: old, nodes };
        (range.nodes.len() == old.count_ones() as usize && range.root() == *old_root).then_some(range)
    }

    /// The largest complete subtrees, from the left: level and number of each, and its root.
    pub fn subtrees(&self) -> impl Iterator<Item = (u32, u64, Hash)> + '_ {
        let levels = (0..u64::BITS).rev().filter(|level| self.size >> level & 1 == 1);
        levels.zip(&self.nodes).map(|(level, node)| (level, (self.size >> level) - 1, *node))
    }

    /// The stored form.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.nodes.iter().flat_map(|n| n.0).collect()
    }

    /// How many leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf hash.
    pub fn push(&mut self, leaf: Hash) {
        self.push_with(leaf, |_, _| {});
    }

    /// Appends a leaf hash. `complete` is told each inner node that is complete with it: its level, from 1, and hash.
    pub fn push_with(&mut self, leaf: Hash, mut complete: impl FnMut(u32, Hash)) {
        let mut node = leaf;
        for level in 1..=self.size.trailing_ones() {
            let left = self.nodes.pop().expect("one node for each one-bit of size");
            node = node_hash(&left, &node);
            complete(level, node);
        }
        self.nodes.push(node);
        self.size += 1;
    }

    /// The root of the whole tree.
    pub fn root(&self) -> Hash {
        let mut nodes = self.nodes.iter().rev();
        let Some(last) = nodes.next() else { return empty_root() };
        nodes.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// Source of the roots of complete subtrees, so that a proof needs tiles rather than all leaves.
pub trait Nodes {
    /// Why a node could not be read.
    type Error;
    /// Root of the complete subtree over leaves `[n << level, (n + 1) << level)`.
    fn node(&self, level: u32, n: u64) -> Result<Hash, Self::Error>;
}

impl Nodes for [Hash] {
    type Error = std::convert::Infallible;
    fn node(&self, level: u32, n: u64) -> Result<Hash, Self::Error> {
        let from = (n << level) as usize;
        Ok(root(&self[from..from + (1 << level)]))
    }
}

fn split(size: u64) -> u64 {
    debug_assert!(size > 1);
    1 << (63 - (size - 1).leading_zeros())
}

/// Root of leaves `[from, to)`; `from` must be a multiple of the largest power of two up to `to − from`.
fn range_root<N: Nodes + ?Sized>(nodes: &N, from: u64, to: u64) -> Result<Hash, N::Error> {
    let size = to - from;
    if size == 0 {
        return Ok(empty_root());
    }
    if size.is_power_of_two() {
        let level = size.trailing_zeros();
        return nodes.node(level, from >> level);
    }
    let k = split(size);
    Ok(node_hash(&range_root(nodes, from, from + k)?, &range_root(nodes, from + k, to)?))
}

/// Root of the first `size` leaves.
pub fn root_at<N: Nodes + ?Sized>(nodes: &N, size: u64) -> Result<Hash, N::Error> {
    range_root(nodes, 0, size)
}

/// Inclusion proof of leaf `index` in the tree of the first `size` leaves (RFC 6962 2.1.1), from the leaf's
/// sibling up. `index < size`.
pub fn inclusion_proof<N: Nodes + ?Sized>(nodes: &N, index: u64, size: u64) -> Result<Vec<Hash>, N::Error> {
    assert!(index < size, "a leaf of the tree");
    let (mut from, mut to) = (0, size);
    let mut path = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            path.push(range_root(nodes, middle, to)?);
            to = middle;
        } else {
            path.push(range_root(nodes, from, middle)?);
            from = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// Consistency proof between sizes `old ≤ new` (RFC 6962 2.1.2). Empty when `old` is 0 or equals `new`.
pub fn consistency_proof<N: Nodes + ?Sized>(nodes: &N, old: u64, new: u64) -> Result<Vec<Hash>, N::Error> {
    assert!(old <= new, "an earlier size");
    let mut path = Vec::new();
    if old == 0 || old == new {
        return Ok(path);
    }
    let (mut from, mut to, mut whole) = (0, new, true);
    loop {
        if old == to {
            if !whole {
                path.push(range_root(nodes, from, to)?);
            }
            break;
        }
        let middle = from + split(to - from);
        if old <= middle {
            path.push(range_root(nodes, middle, to)?);
            to = middle;
        } else {
            path.push(range_root(nodes, from, middle)?);
            from = middle;
            whole = false;
        }
    }
    path.reverse();
    Ok(path)
}

/// Checks an inclusion proof (RFC 9162 2.1.3.2). Total: any input gives an answer.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut r) = (index, size - 1, *leaf);
    for p in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            r = node_hash(p, &r);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            r = node_hash(&r, p);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && r == *root
}

/// Checks a consistency proof (RFC 9162 2.1.4.2). Total: any input gives an answer.
pub fn verify_consistency(old: u64, new: u64, path: &[Hash], old_root: &Hash, new_root: &Hash) -> bool {
    if old > new || (old == 0 && *old_root != empty_root()) {
        return false;
    }
    if old == 0 || old == new {
        return path.is_empty() && (old == 0 || old_root == new_root);
    }
    let mut path = path.iter();
    let first = if old.is_power_of_two() { Some(old_root) } else { path.next() };
    let Some(first) = first else { return false };
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut from_old, mut from_new) = (*first, *first);
    for p in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            from_old = node_hash(p, &from_old);
            from_new = node_hash(p, &from_new);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            from_new = node_hash(&from_new, p);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && from_old == *old_root && from_new == *new_root
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::from_hex;

    /// The eight leaves of the RFC 6962 reference tree and their root.
    #[test]
    fn reference_tree() {
        let leaves: Vec<Hash> =
            ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
                .iter()
                .map(|hex| leaf_hash(&from_hex(hex).unwrap()))
                .collect();
        assert_eq!(root(&leaves).to_hex(), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
        assert_eq!(root(&[]), empty_root());
    }

    /// Every index and pair of sizes up to 70: proofs verify, and verify for nothing else.
    #[test]
    fn all_small_proofs() {
        let leaves: Vec<Hash> = (0u64..70).map(|i| leaf_hash(&i.to_le_bytes())).collect();
        let roots: Vec<Hash> = (0..=70).map(|n| root(&leaves[..n])).collect();
        for size in 1..=70u64 {
            assert_eq!(root_at(&leaves[..], size), Ok(roots[size as usize]));
            for index in 0..size {
                let Ok(path) = inclusion_proof(&leaves[..], index, size);
                let r = &roots[size as usize];
                assert!(verify_inclusion(&leaves[index as usize], index, size, &path, r));
                assert!(!verify_inclusion(&leaves[index as usize], index + 1, size, &path, r));
                assert!(!verify_inclusion(&leaves[index as usize], index, size, &path, &roots[size as usize - 1]));
                if let Some((_, short)) = path.split_last() {
                    assert!(!verify_inclusion(&leaves[index as usize], index, size, short, r));
                }
            }
            for old in 0..=size {
                let Ok(path) = consistency_proof(&leaves[..], old, size);
                let (o, n) = (&roots[old as usize], &roots[size as usize]);
                assert!(verify_consistency(old, size, &path, o, n), "{old} {size}");
                if old < size {
                    let mut before = CompactRange::default();
                    leaves[..old as usize].iter().for_each(|leaf| before.push(*leaf));
                    assert_eq!(CompactRange::before(old, size, &path, o).as_ref(), Some(&before), "{old} {size}");
                    for (level, number, node) in before.subtrees() {
                        assert_eq!(leaves.node(level, number), Ok(node), "{old} {level} {number}");
                    }
                }
                if old > 0 && old < size {
                    // Where the old tree is one subtree, its root is all that is said of it.
                    let other = CompactRange::before(old, size, &path, n);
                    assert_eq!(other.is_none(), !old.is_power_of_two(), "{old} {size}");
                    assert!(!verify_consistency(old, size, &path, n, n));
                    assert!(!verify_consistency(old, size, &path, o, o));
                    assert!(!verify_consistency(old, size, &path[1..], o, n));
                }
            }
        }
    }

    #[test]
    fn compact_range_round_trips() {
        let mut range = CompactRange::default();
        for i in 0u64..300 {
            assert_eq!(CompactRange::from_bytes(range.size(), &range.to_bytes()), Some(range.clone()));
            range.push(leaf_hash(&i.to_le_bytes()));
        }
        assert_eq!(CompactRange::from_bytes(3, &[0; 32]), None);
    }
}
