//! Digests of multisets of rows, so that a table is compared with what it should hold in any order and in constant memory.
//!
//! Each row is hashed under a key drawn for this run, and the hashes are added lane by lane modulo 2^64. The rows
//! were written before the key was drawn, so unequal multisets give equal sums with a probability below 2^-90 even for
//! rows repeated a trillion times: a sum of independent random vectors with small coefficients, not all zero.

use std::collections::BTreeMap;

use ledger_engine::domain::projection::Cell;
use ledger_engine::hash::Hash;

use crate::row::tagged;
use crate::source::SourceError;
use crate::spill::{Shelf, Trouble};

/// The run's key.
#[derive(Clone)]
pub(crate) struct RowKey([u8; 32]);

impl RowKey {
    /// Draws a key from the operating system.
    pub(crate) fn draw() -> Result<RowKey, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(RowKey(key))
    }

    /// Keyed BLAKE3 of a row: table name, then each cell with its type and length.
    pub(crate) fn digest(&self, table: &str, cells: &[Cell]) -> Hash {
        let mut bytes = Vec::with_capacity(512);
        let mut put = |tag: u8, content: &[u8]| {
            bytes.push(tag);
            bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
            bytes.extend_from_slice(content);
        };
        put(0, table.as_bytes());
        cells.iter().for_each(|cell| tagged(cell, &mut put));
        Hash(*blake3::keyed_hash(&self.0, &bytes).as_bytes())
    }
}

/// Sum over a multiset of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    lanes: [u64; 4],
    pub(crate) rows: u64,
}

impl Sum {
    fn lanes_of(digest: &Hash) -> impl Iterator<Item = u64> + '_ {
        // Chunks of 8 are 8 bytes long.
        digest.0.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default()))
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, digest: &Hash) {
        self.lanes.iter_mut().zip(Self::lanes_of(digest)).for_each(|(l, d)| *l = l.wrapping_add(d));
        self.rows = self.rows.wrapping_add(1);
    }

    /// Takes a row out again.
    pub(crate) fn remove(&mut self, digest: &Hash) {
        self.lanes.iter_mut().zip(Self::lanes_of(digest)).for_each(|(l, d)| *l = l.wrapping_sub(d));
        self.rows = self.rows.wrapping_sub(1);
    }

    /// Both multisets together.
    pub(crate) fn join(mut self, other: Sum) -> Sum {
        self.lanes.iter_mut().zip(other.lanes).for_each(|(l, d)| *l = l.wrapping_add(d));
        self.rows = self.rows.wrapping_add(other.rows);
        self
    }
}

/// What each derived table should hold.
#[derive(Default)]
pub(crate) struct Sums {
    pub(crate) by_table: BTreeMap<&'static str, Sum>,
    /// The rows themselves, where they are looked up one by one instead of comparing whole tables.
    pub(crate) kept: Option<Kept>,
}

/// Rows in memory.
const KEPT: usize = 1 << 14;

/// Rows by their digests, most of them in a temporary file.
pub(crate) struct Kept {
    rows: Shelf<[u8; 32], (String, Vec<Cell>)>,
    trouble: Trouble,
}

impl Kept {
    pub(crate) fn new() -> Kept {
        Kept { rows: Shelf::new(KEPT), trouble: Trouble::default() }
    }

    fn insert(&mut self, digest: &Hash, table: &str, cells: Vec<Cell>) {
        if !self.rows.has(&digest.0) {
            self.trouble.or_default(self.rows.insert(digest.0, Box::new((table.to_owned(), cells))));
        }
    }

    fn remove(&mut self, digest: &Hash) {
        self.trouble.or_default(self.rows.take(&digest.0));
    }

    /// Gives each row with its table, in no order, until `give` fails.
    pub(crate) fn each<E: From<SourceError>>(
        self,
        mut give: impl FnMut(&str, &[Cell]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.trouble.check()?;
        let mut given = Ok(());
        let read = self.rows.each(|_, (table, cells)| {
            if given.is_ok() {
                given = give(table, cells);
            }
        });
        self.trouble.or_default(read);
        self.trouble.check()?;
        given
    }
}

impl Sums {
    pub(crate) fn of(&mut self, table: &'static str) -> &mut Sum {
        self.by_table.entry(table).or_default()
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, key: &RowKey, table: &'static str, cells: &[Cell]) {
        let digest = key.digest(table, cells);
        self.add_digest(table, digest, self.kept.is_some().then(|| cells.to_vec()));
    }

    /// Adds a row whose digest was computed elsewhere; its cells where rows are kept.
    pub(crate) fn add_digest(&mut self, table: &'static str, digest: Hash, cells: Option<Vec<Cell>>) {
        self.of(table).add(&digest);
        if let (Some(kept), Some(cells)) = (&mut self.kept, cells) {
            kept.insert(&digest, table, cells);
        }
    }

    /// Takes a row out again.
    pub(crate) fn remove(&mut self, table: &'static str, digest: &Hash) {
        self.of(table).remove(digest);
        if let Some(kept) = &mut self.kept {
            kept.remove(digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_repeats_do() {
        let key = RowKey([7; 32]);
        let row = |n: i64| key.digest("t", &[Cell::Int(n), Cell::Null]);
        let sum = |rows: &[i64]| {
            let mut sum = Sum::default();
            rows.iter().for_each(|n| sum.add(&row(*n)));
            sum
        };
        assert_eq!(sum(&[1, 2, 3]), sum(&[3, 1, 2]));
        assert_ne!(sum(&[1, 1, 2]), sum(&[1, 2, 2]));
        assert_ne!(sum(&[1]), sum(&[1, 1, 1]));
        let mut back = sum(&[1, 2]);
        back.remove(&row(2));
        assert_eq!(back, sum(&[1]));
        assert_eq!(sum(&[1]).join(sum(&[2])), sum(&[2, 1]));
        assert_ne!(
            key.digest("t", &[Cell::Text("a".into()), Cell::Text("".into())]),
            key.digest("t", &[Cell::Text("".into()), Cell::Text("a".into())])
        );
        assert_ne!(key.digest("t", &[Cell::Text("1".into())]), key.digest("t", &[Cell::Blob(b"1".to_vec())]));
    }
}
