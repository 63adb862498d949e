//! Makes proof files from a store.

use crate::commit::COMMIT_ENTRIES_MAX;
use crate::hash::Hash;
use crate::merkle;
use crate::proof::{Proof, ProofError, ProvenCommit, ProvenEntry, SignedCheckpoint};
use crate::reader::StoredNodes;
use crate::store::{Entry, Store, StoreError, StoredCommit};
use crate::stream::LEDGER_STREAM;

/// Why there is no proof file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProveError {
    /// The caller's fault.
    #[error("chain {chain} has no entry {index}")]
    NoEntry {
        /// Which chain.
        chain: u32,
        /// Which entry.
        index: u64,
    },
    /// Nothing signed says yet that the entry is history.
    #[error("no checkpoint of chain {chain} covers entry {index} yet; `ledger checkpoint` makes one, then ask again")]
    NoCheckpoint {
        /// Which chain.
        chain: u32,
        /// The entry that none covers.
        index: u64,
    },
    /// The store's fault.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be written.
    #[error(transparent)]
    Form(#[from] ProofError),
}

fn corrupt(what: &str) -> ProveError {
    StoreError::Corrupt(format!("{what}; verify the ledger")).into()
}

/// The proof of one entry, to the last signed checkpoint of its chain.
pub(crate) fn prove(store: &dyn Store, chain: u32, index: u64, private: bool) -> Result<Proof, ProveError> {
    let entry = store.entry(chain, index)?.ok_or(ProveError::NoEntry { chain, index })?;
    let private = if private { store.private(chain, index)? } else { None };
    let commit = commit(store, &entry)?;
    // The keys first: a checkpoint that is taken afterwards covers them.
    let keys = store.stream(0, LEDGER_STREAM)?;
    let last_key = keys.last().ok_or_else(|| corrupt("the key registry is empty"))?.header.index;
    let zero = covering(store, 0, if chain == 0 { index.max(last_key) } else { last_key })?;
    let own = if chain == 0 { None } else { Some(covering(store, chain, index)?) };
    let registry = keys.into_iter().map(|e| proven(store, e, zero.checkpoint.size)).collect::<Result<_, _>>()?;
    let (checkpoint, registry_checkpoint) = match own {
        Some(own) => (own, Some(zero)),
        None => (zero, None),
    };
    let entry = proven(store, entry, checkpoint.checkpoint.size)?;
    Ok(Proof { entry, private, commit, checkpoint, registry, registry_checkpoint })
}

/// The last checkpoint, if it covers the entry.
fn covering(store: &dyn Store, chain: u32, index: u64) -> Result<SignedCheckpoint, ProveError> {
    let row = store.last_checkpoint(chain)?;
    let note = row.and_then(|row| row.note).ok_or(ProveError::NoCheckpoint { chain, index })?;
    let found = SignedCheckpoint::parse(&note).ok_or_else(|| corrupt("a checkpoint is malformed"))?;
    if found.checkpoint.size > index { Ok(found) } else { Err(ProveError::NoCheckpoint { chain, index }) }
}

fn proven(store: &dyn Store, entry: Entry, size: u64) -> Result<ProvenEntry, ProveError> {
    let nodes = StoredNodes { store, chain: entry.header.chain };
    let path = merkle::inclusion_proof(&nodes, entry.header.index, size)?;
    Ok(ProvenEntry { header: entry.header, body: entry.body, path })
}

fn commit(store: &dyn Store, entry: &Entry) -> Result<ProvenCommit, ProveError> {
    Ok(Whole::holding(store, entry)?.proven(entry.header.index))
}

/// The commit of each entry, in the order given. Neighbours share the reading of their commit.
pub(crate) fn commits(store: &dyn Store, entries: &[Entry]) -> Result<Vec<ProvenCommit>, ProveError> {
    let mut last: Option<Whole> = None;
    let mut found = Vec::with_capacity(entries.len());
    for entry in entries {
        let whole = match last.take().filter(|whole| whole.holds(entry)) {
            Some(whole) => whole,
            None => Whole::holding(store, entry)?,
        };
        found.push(last.insert(whole).proven(entry.header.index));
    }
    Ok(found)
}

/// A commit with the leaves of its entries.
struct Whole {
    chain: u32,
    stored: StoredCommit,
    size: u32,
    leaves: Vec<Hash>,
    last_hash: Hash,
}

impl Whole {
    fn holding(store: &dyn Store, entry: &Entry) -> Result<Whole, ProveError> {
        let (chain, index) = (entry.header.chain, entry.header.index);
        let from = (index + 1).saturating_sub(COMMIT_ENTRIES_MAX as u64);
        let near = store.commits(chain, from, COMMIT_ENTRIES_MAX)?;
        let holds = |first: u64, size: u64| first <= index && index - first < size;
        let stored = near.into_iter().find(|c| holds(c.first_index, c.size));
        let stored = stored.ok_or_else(|| corrupt(&format!("entry {index} of chain {chain} is in no commit")))?;
        let size = u32::try_from(stored.size).map_err(|_| corrupt("a commit is too large"))?;
        let entries = store.entries(chain, stored.first_index, size as usize)?;
        let leaves: Vec<Hash> = entries.iter().map(|e| e.header.leaf_hash()).collect();
        let last_hash = entries.last().filter(|_| leaves.len() == size as usize).map(|e| e.entry_hash);
        let last_hash =
            last_hash.ok_or_else(|| corrupt(&format!("entries from {} are missing", stored.first_index)))?;
        Ok(Whole { chain, stored, size, leaves, last_hash })
    }

    fn holds(&self, entry: &Entry) -> bool {
        let (first, index) = (self.stored.first_index, entry.header.index);
        entry.header.chain == self.chain && first <= index && index - first < u64::from(self.size)
    }

    fn proven(&self, index: u64) -> ProvenCommit {
        let first_index = self.stored.first_index;
        let Ok(path) = merkle::inclusion_proof(&self.leaves[..], index - first_index, u64::from(self.size));
        ProvenCommit {
            first_index,
            size: self.size,
            root: merkle::root(&self.leaves),
            last_hash: self.last_hash,
            registry_size: self.stored.registry_size,
            registry_head: self.stored.registry_head,
            path,
            signatures: self.stored.signatures.clone(),
        }
    }
}
