//! Makes proof files from a store.

use crate::commit::COMMIT_ENTRIES_MAX;
use crate::hash::Hash;
use crate::merkle;
use crate::proof::{Proof, ProofError, ProvenCommit, ProvenEntry, SignedCheckpoint};
use crate::reader::StoredNodes;
use crate::store::{Entry, Store, StoreError};
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
    let (chain, index) = (entry.header.chain, entry.header.index);
    let from = (index + 1).saturating_sub(COMMIT_ENTRIES_MAX as u64);
    let near = store.commits(chain, from, COMMIT_ENTRIES_MAX)?;
    let holds = |first: u64, size: u64| first <= index && index - first < size;
    let found = near.into_iter().find(|c| holds(c.first_index, c.size));
    let found = found.ok_or_else(|| corrupt(&format!("entry {index} of chain {chain} is in no commit")))?;
    let size = u32::try_from(found.size).map_err(|_| corrupt("a commit is too large"))?;
    let entries = store.entries(chain, found.first_index, size as usize)?;
    let leaves: Vec<Hash> = entries.iter().map(|e| e.header.leaf_hash()).collect();
    let last_hash = entries.last().filter(|_| leaves.len() == size as usize).map(|e| e.entry_hash);
    let last_hash = last_hash.ok_or_else(|| corrupt(&format!("entries from {} are missing", found.first_index)))?;
    let Ok(path) = merkle::inclusion_proof(&leaves[..], index - found.first_index, u64::from(size));
    Ok(ProvenCommit {
        first_index: found.first_index,
        size,
        root: merkle::root(&leaves),
        last_hash,
        registry_size: found.registry_size,
        registry_head: found.registry_head,
        path,
        signatures: found.signatures,
    })
}
