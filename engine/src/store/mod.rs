//! What a store must do. The documentation of [`Store`] is the durability contract.

#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::body::{Body, BodyError};
use crate::commit::{CommitSignature, Statement};
use crate::domain::projection::{Row, Table};
use crate::hash::{EventId, Hash};
use crate::header::Header;
use crate::merkle::CompactRange;

/// A chain's head row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainHead {
    /// Which chain.
    pub chain: u32,
    /// Entry hash of the last entry; zeros for none.
    pub hash: Hash,
    /// The tree of all entries, which also gives the size.
    pub range: CompactRange,
}

impl ChainHead {
    /// How many entries the chain has.
    pub fn size(&self) -> u64 {
        self.range.size()
    }
}

/// An entry as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its header.
    pub header: Header,
    /// Hash of the header.
    pub entry_hash: Hash,
    /// Index of the stream's previous entry.
    pub parent_index: Option<u64>,
    /// Body bytes, exactly as hashed.
    pub body: Vec<u8>,
}

impl Entry {
    /// The body, parsed.
    pub fn parse_body(&self) -> Result<Body, BodyError> {
        Body::decode(&self.body)
    }
}

/// A stream's head row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StreamHead {
    /// Last revision; 0 for a stream without entries.
    pub revision: u64,
    /// Entry hash of its last entry.
    pub hash: Hash,
    /// Index of its last entry.
    pub index: u64,
    /// Index of its first entry, by which the stream's projection row is found.
    pub first_index: u64,
}

/// A complete tile of 256 hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// 0 for leaf hashes.
    pub level: u32,
    /// Which tile of the level.
    pub n: u64,
    /// 8,192 bytes.
    pub hashes: Vec<u8>,
}

/// Everything one commit makes durable.
#[derive(Clone, Debug)]
pub struct CommitBatch {
    /// The head this commit was linked to; the store refuses it if the head is another.
    pub before: ChainHead,
    /// The head after it.
    pub after: ChainHead,
    /// The new entries, ascending.
    pub entries: Vec<Entry>,
    /// Private documents by index.
    pub private: Vec<(u64, Vec<u8>)>,
    /// What the signatures cover.
    pub statement: Statement,
    /// One to four.
    pub signatures: Vec<CommitSignature>,
    /// New heads of the streams that grew.
    pub streams: Vec<(String, StreamHead)>,
    /// Tiles that became complete.
    pub tiles: Vec<Tile>,
    /// Event-id runs that became complete, with their number.
    pub runs: Vec<(u64, Vec<u8>)>,
    /// Projection rows to write, the last state of each.
    pub rows: Vec<Row>,
    /// Private documents to erase.
    pub erase: Vec<u64>,
}

/// A recorded checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRow {
    /// Which chain.
    pub chain: u32,
    /// Tree size.
    pub size: u64,
    /// Tree root.
    pub root: Hash,
    /// The signed note; `None` while recorded but not signed.
    pub note: Option<String>,
}

/// A commit as stored, without its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCommit {
    /// Index of its first entry.
    pub first_index: u64,
    /// How many entries.
    pub size: u64,
    /// How many entries of the key registry the signer knew.
    pub registry_size: u64,
    /// Entry hash of the last of them.
    pub registry_head: Hash,
    /// By kid, ascending.
    pub signatures: Vec<CommitSignature>,
}

/// What [`Store::look_up`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookedUp {
    /// Index of the first entry with each idempotency hash that is known.
    pub keys: HashMap<Hash, u64>,
    /// The streams that there are.
    pub streams: HashSet<String>,
}

/// Why a store could not do what was asked. The variants tell what the writer may do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another writer was first. Nothing was written; link again.
    #[error("another process appended to chain {} first", .0.chain)]
    HeadMoved(Box<ChainHead>),
    /// The commit names fewer entries of the key registry than there are: its key may be retired. Nothing was written; link again.
    #[error("the key registry was changed meanwhile")]
    RegistryMoved,
    /// Nothing was written; the same may succeed later (busy, disk full, I/O error).
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The commit may or may not be durable: ask [`Store::settle`] before anything else.
    #[error("the outcome of the commit is unknown: {0}")]
    Unknown(String),
    /// The store refuses this very data. Nothing was written; the same will fail again.
    #[error("the store refuses the data: {0}")]
    Rejected(String),
    /// What is stored is not what this program writes. Stop and verify the ledger.
    #[error("the stored ledger is damaged: {0}")]
    Corrupt(String),
    /// What is stored is not what this process was told is durable. Nothing more may be written.
    #[error(
        "HISTORY_WENT_BACK: {0}; a failover or a restore lost acknowledged entries, or somebody rewrote them: writing has stopped. Verify the \
         ledger against saved checkpoints, then restart"
    )]
    WentBack(String),
    /// It cannot be opened as it is; the text says what to do.
    #[error("{0}")]
    Unusable(String),
}

impl StoreError {
    /// Whether the commands of the commit may be decided, linked and stored again.
    pub fn may_be_linked_again(&self) -> bool {
        matches!(self, StoreError::HeadMoved(_) | StoreError::RegistryMoved | StoreError::Rejected(_))
    }
}

/// Whether a commit of unknown outcome became durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is durable.
    Committed,
    /// It is not, and will never be.
    NotCommitted,
}

/// Kept for as long as no other may come in ([`Store::exclusive`]).
pub type Exclusive = Box<dyn std::any::Any + Send>;
/// Called with a locked head, it gives the commit to append, or `None` to append nothing.
pub type MakeCommit<'a> = dyn FnMut(&ChainHead) -> Option<CommitBatch> + 'a;
/// Called with the locked heads of all chains, it gives the commit to append to chain 0, or `None` to append nothing.
pub type MakeCut<'a> = dyn FnMut(&[ChainHead]) -> Option<CommitBatch> + 'a;

/// Storage of one ledger. Calls block; async callers use a blocking thread.
///
/// **Durability.** When [`Store::append`] returns `Ok`, the whole batch is on stable storage: it survives the death
/// of the process, the kernel and the power supply. On `Unavailable` and `HeadMoved` nothing of it is stored, now or
/// later. On `Unknown` either all of it is or none; [`Store::settle`] tells which, under the head lock. No call makes
/// a part of a batch visible.
///
/// **Order.** Entries of a chain become visible in index order without gaps. `append` compares the head under a
/// lock that excludes every other writer, in this process and in others.
///
/// **History.** Nothing updates or deletes an entry, a commit or a signature. Private documents may be erased, derived
/// tables may be rebuilt.
pub trait Store: Send + Sync {
    /// All chain heads, ascending; empty for a ledger without genesis.
    fn heads(&self) -> Result<Vec<ChainHead>, StoreError>;
    /// The ledger id that the store claims.
    fn ledger_id(&self) -> Result<Option<Hash>, StoreError>;
    /// Appends one commit if the head is still `batch.before` and the stream `ledger` has no more entries than its statement names.
    /// Both are read under the head's lock, so that no commit slips behind a cut ([`Store::append_cut`]).
    fn append(&self, batch: &CommitBatch) -> Result<(), StoreError>;
    /// Locks the chain's head first, then appends what `make` links to it. For chains with busy neighbours.
    fn append_locked(&self, chain: u32, make: &mut MakeCommit<'_>) -> Result<(), StoreError>;
    /// Appends commits of one chain as they were signed before, each where the one before it ends, in as few transactions as suits the
    /// store. For restoring a ledger: whoever calls has verified them, and the registry may be ahead of what they name.
    fn append_verified(&self, batches: &[CommitBatch]) -> Result<(), StoreError> {
        for batch in batches {
            let mut moved = None;
            self.append_locked(batch.before.chain, &mut |head| {
                if *head == batch.before {
                    return Some(batch.clone());
                }
                moved = Some(head.clone());
                None
            })?;
            if let Some(head) = moved {
                return Err(StoreError::HeadMoved(Box::new(head)));
            }
        }
        Ok(())
    }
    /// Locks the heads of all chains, in ascending order, then appends to chain 0 what `make` links to it: a change of keys that records
    /// every chain's size.
    fn append_cut(&self, make: &mut MakeCut<'_>) -> Result<(), StoreError>;
    /// After [`StoreError::Unknown`]: locks the head and compares it with the batch.
    fn settle(&self, batch: &CommitBatch) -> Result<Settled, StoreError>;
    /// Whether the first `size` entries of a chain, at least one, end with this entry hash; `true` only once they are durable.
    /// Where a commit can be read before it is durable, this waits.
    fn confirm(&self, chain: u32, size: u64, hash: &Hash) -> Result<bool, StoreError> {
        Ok(self.entry(chain, size - 1)?.is_some_and(|e| e.entry_hash == *hash))
    }

    /// One entry.
    fn entry(&self, chain: u32, index: u64) -> Result<Option<Entry>, StoreError>;
    /// Up to `limit` entries of a chain from `from`, ascending.
    fn entries(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<Entry>, StoreError>;
    /// All entries of a stream, by revision. `Corrupt` if their links do not hold together.
    fn stream(&self, chain: u32, stream: &str) -> Result<Vec<Entry>, StoreError> {
        // Follows parent indexes back from the head.
        let Some(head) = self.stream_head(chain, stream)? else { return Ok(Vec::new()) };
        let mut next = Some(head.index);
        let mut entries = Vec::new();
        while let Some(index) = next {
            let entry = self.entry(chain, index)?.filter(|e| e.header.stream == stream);
            let entry = entry.filter(|e| e.parent_index.is_none_or(|p| p < index));
            let wrong =
                || StoreError::Corrupt(format!("stream {stream} is broken at entry {index}; verify the ledger"));
            let entry = entry.ok_or_else(wrong)?;
            next = entry.parent_index;
            entries.push(entry);
        }
        entries.reverse();
        Ok(entries)
    }
    /// A stream's head.
    fn stream_head(&self, chain: u32, stream: &str) -> Result<Option<StreamHead>, StoreError>;
    /// Chain and index of an event id.
    fn find_event(&self, id: EventId) -> Result<Option<(u32, u64)>, StoreError>;
    /// Up to `limit` commits of a chain that begin at `from` or later, ascending.
    fn commits(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<StoredCommit>, StoreError>;
    /// Up to `limit` checkpoints of a chain of at least `size`, ascending.
    fn checkpoints(&self, chain: u32, size: u64, limit: usize) -> Result<Vec<CheckpointRow>, StoreError>;
    /// Up to `limit` private documents of a chain with their indexes, from `from`, ascending.
    fn private_documents(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;
    /// A private document.
    fn private(&self, chain: u32, index: u64) -> Result<Option<Vec<u8>>, StoreError>;
    /// Index of the first entry with an idempotency hash, where a row of its own holds it (FORMAT.md section 9).
    fn idempotency(&self, chain: u32, key: &Hash) -> Result<Option<u64>, StoreError>;
    /// [`Store::idempotency`] of many keys, and which of many streams there are, at once.
    fn look_up(&self, chain: u32, keys: &[Hash], streams: &[String]) -> Result<LookedUp, StoreError> {
        let mut found = LookedUp::default();
        for key in keys {
            found.keys.extend(self.idempotency(chain, key)?.map(|index| (*key, index)));
        }
        for stream in streams {
            found.streams.extend(self.stream_head(chain, stream)?.map(|_| stream.clone()));
        }
        Ok(found)
    }
    /// A complete tile's 8,192 bytes.
    fn tile(&self, chain: u32, level: u32, n: u64) -> Result<Option<Vec<u8>>, StoreError>;
    /// The projection row that the entry at `index` made; no row of [`IDEMPOTENCY`](crate::domain::projection::IDEMPOTENCY).
    fn row(&self, table: &'static Table, chain: u32, index: u64) -> Result<Option<Row>, StoreError>;
    /// All rows of a projection on a chain, ordered by key.
    fn rows(&self, table: &'static Table, chain: u32) -> Result<Vec<Row>, StoreError>;
    /// Up to `limit` rows of a projection that is keyed by index, from the index `from`, ordered by key.
    fn rows_from(&self, table: &'static Table, chain: u32, from: u64, limit: usize) -> Result<Vec<Row>, StoreError>;
    /// The rows of orders or deliveries whose keys are in `range` and whose status is among `statuses`, ordered by key.
    fn rows_among(
        &self,
        table: &'static Table,
        chain: u32,
        range: Range<u64>,
        statuses: &[&str],
    ) -> Result<Vec<Row>, StoreError>;
    /// Drops and rewrites the projections of one chain, if its head is still at `size`.
    fn replace_projections(&self, chain: u32, size: u64, rows: &[Row]) -> Result<(), StoreError>;

    /// The checkpoint of the largest recorded size.
    fn last_checkpoint(&self, chain: u32) -> Result<Option<CheckpointRow>, StoreError>;
    /// Records size and root before they are signed. Keeps a row that is there. When it returns `Ok`, the row and the entries
    /// before that size are durable.
    fn record_checkpoint(&self, row: &CheckpointRow) -> Result<(), StoreError>;
    /// Stores the signed note of a recorded checkpoint.
    fn sign_checkpoint(&self, row: &CheckpointRow) -> Result<(), StoreError>;

    /// Takes the one place of an export job, until what is returned is dropped or this process ends, however it does; `None` if another
    /// has it, in this process or elsewhere.
    fn exclusive(&self) -> Result<Option<Exclusive>, StoreError>;
    /// Writes a copy of the ledger into one file.
    fn backup(&self, to: &std::path::Path) -> Result<(), StoreError>;
    /// Makes the files as small and few as they get. Called at shutdown.
    fn close(&self) -> Result<(), StoreError>;
}
