//! What checkpoints of chain 0 say of the other chains: its entries `chain.heads` below them name their heads (FORMAT.md 10, step 5).

use std::collections::BTreeMap;

/// For each size of interest of chain 0, the largest size of each other chain that entries below it name.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Ascending.
    sizes: Vec<u64>,
    /// By the place of the smallest size that covers the naming entry, and by chain.
    named: BTreeMap<(usize, u32), u64>,
}

impl Named {
    pub(crate) fn below(sizes: impl IntoIterator<Item = u64>) -> Named {
        let mut sizes: Vec<u64> = sizes.into_iter().collect();
        sizes.sort_unstable();
        sizes.dedup();
        Named { sizes, named: BTreeMap::new() }
    }

    /// Entry `index` of chain 0 names a chain's head, and the chain has it.
    pub(crate) fn name(&mut self, index: u64, chain: u32, size: u64) {
        let at = self.sizes.partition_point(|covered| *covered <= index);
        if chain > 0 && at < self.sizes.len() {
            let named = self.named.entry((at, chain)).or_default();
            *named = size.max(*named);
        }
    }

    /// Chains and sizes that entries below one of the sizes name.
    pub(crate) fn covered(&self, size: u64) -> impl Iterator<Item = (u32, u64)> {
        let to = self.sizes.partition_point(|covered| *covered <= size);
        self.named.range(..(to, 0)).map(|((_, chain), named)| (*chain, *named))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_covers_what_was_named_below_it() {
        let mut named = Named::below([20, 10, 20]);
        for (index, chain, size) in [(9, 1, 5), (3, 1, 4), (10, 1, 7), (10, 2, 8), (19, 0, 19), (20, 1, 99)] {
            named.name(index, chain, size);
        }
        let most = |size| {
            named.covered(size).fold(BTreeMap::new(), |mut all, (chain, size)| {
                let most: &mut u64 = all.entry(chain).or_default();
                *most = size.max(*most);
                all
            })
        };
        assert_eq!(most(10), BTreeMap::from([(1, 5)]));
        assert_eq!(most(20), BTreeMap::from([(1, 7), (2, 8)]));
        assert!(most(9).is_empty());
    }
}
