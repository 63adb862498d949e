//! What `chain.heads` says of the other chains, until they are walked: sorted in temporary files, for there may be one with each checkpoint.

use std::io;

use ledger_engine::hash::Hash;

use crate::spill::{Sorted, Sorter};

/// Chain and size, big-endian, root and last entry.
const CLAIM: usize = 4 + 8 + 32 + 32;
/// Claims in memory.
const RUN: usize = 1 << 16;

#[derive(Default)]
pub(super) struct Claims {
    /// While chain 0 is walked.
    open: Option<Sorter<CLAIM>>,
    sorted: Option<Sorted<CLAIM>>,
    next: Option<Claim>,
}

struct Claim {
    chain: u32,
    size: u64,
    root: Hash,
    last_hash: Hash,
}

impl Claims {
    /// Claims are taken from here on, until [`Claims::sort`].
    pub(super) fn open() -> Claims {
        Claims { open: Some(Sorter::with_run_len(RUN)), ..Claims::default() }
    }

    /// `false`: they are not taken here.
    pub(super) fn push(&mut self, chain: u32, size: u64, root: &Hash, last_hash: &Hash) -> io::Result<bool> {
        let Some(sorter) = &mut self.open else { return Ok(false) };
        let mut record = [0; CLAIM];
        record[..4].copy_from_slice(&chain.to_be_bytes());
        record[4..12].copy_from_slice(&size.to_be_bytes());
        record[12..44].copy_from_slice(&root.0);
        record[44..].copy_from_slice(&last_hash.0);
        sorter.push(record).map(|()| true)
    }

    /// Whether they are taken still.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// No more are taken; they come by chain and size.
    pub(super) fn sort(&mut self) -> io::Result<()> {
        self.sorted = self.open.take().map(Sorter::sorted).transpose()?;
        self.advance()
    }

    fn advance(&mut self) -> io::Result<()> {
        let record = self.sorted.as_mut().map(Sorted::next).transpose()?.flatten();
        self.next = record.map(|record| {
            let number = |range: std::ops::Range<usize>| record[range].iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            let hash = |from: usize| Hash::from_slice(&record[from..from + 32]).unwrap_or_default();
            Claim { chain: number(0..4) as u32, size: number(4..12), root: hash(12), last_hash: hash(44) }
        });
        Ok(())
    }

    /// Takes the next one, if it is of this size of this chain: root and last entry.
    pub(super) fn take(&mut self, chain: u32, size: u64) -> io::Result<Option<(Hash, Hash)>> {
        let Some(claim) = self.next.take_if(|claim| (claim.chain, claim.size) == (chain, size)) else {
            return Ok(None);
        };
        self.advance()?;
        Ok(Some((claim.root, claim.last_hash)))
    }

    /// Whether there is one of this chain that was not taken.
    pub(super) fn left(&self, chain: u32) -> bool {
        self.next.as_ref().is_some_and(|claim| claim.chain == chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_by_chain_and_size_however_many() {
        let (mut claims, hash) = (Claims::open(), |n: u64| Hash([n as u8; 32]));
        let last = RUN as u64 + 7;
        for n in 0..last {
            for chain in [2, 1] {
                // As two writers may append them.
                let size = if n % 5 == 0 { n + 1 } else { n };
                assert!(claims.push(chain, size, &hash(size), &hash(size + 1)).unwrap());
            }
        }
        claims.sort().unwrap();
        for chain in [1, 2] {
            let mut taken = 0;
            for size in 0..=last {
                assert!(claims.left(chain) || size > last - 1);
                while let Some(found) = claims.take(chain, size).unwrap() {
                    assert_eq!(found, (hash(size), hash(size + 1)));
                    taken += 1;
                }
            }
            assert!(taken == last && !claims.left(chain));
        }
        assert!(!Claims::default().push(1, 1, &hash(1), &hash(1)).unwrap());
    }
}
