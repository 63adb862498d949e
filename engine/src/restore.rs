//! A ledger from an archive alone: commits are appended as they were signed, and what follows from entries is made again.
//!
//! Whoever calls has verified the archive. What is restored is what was exported, row by row: entries, commits, signatures, checkpoints,
//! private documents that were not erased since, heads, tiles, projections. An interrupted run goes on where it stopped.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use lru::LruCache;

use crate::body::Body;
use crate::commit::Statement;
use crate::domain::Occurrence;
use crate::domain::case::{Case, Touched};
use crate::domain::fields::count;
use crate::domain::projection::{Row, idempotency_row, needs_idempotency_row};
use crate::export::{CheckpointLine, CommitLine, EntryLine};
use crate::hash::{Hash, entry_hash};
use crate::json::Value;
use crate::merkle::{self, CompactRange};
use crate::runs::completed_runs;
use crate::store::{ChainHead, CheckpointRow, CommitBatch, Entry, Store, StoreError, StreamHead, Tile};
use crate::stream::Stream;
use crate::writer::{Cached, Key, State, incomplete_tiles, load, push_tile, touched_rows};

/// Cases that are remembered: those that are used again lie close together.
const CASES: usize = 1 << 13;
/// Entries that are written at once, or a few more.
const WRITTEN_AT_ONCE: usize = 2048;
/// Bytes of bodies and private documents that are written at once, or a commit more.
const BYTES_AT_ONCE: usize = 8 << 20;

/// A commit of an archive, with everything that it made durable.
#[derive(Clone, Debug)]
pub struct ArchivedCommit {
    /// Its line.
    pub commit: CommitLine,
    /// Its entries, by index.
    pub entries: Vec<ArchivedEntry>,
    /// Private documents of them, by index.
    pub private: Vec<(u64, Vec<u8>)>,
}

/// An entry of an archive, with what its bytes say.
#[derive(Clone, Debug)]
pub struct ArchivedEntry {
    /// As it is stored.
    pub entry: Entry,
    /// The stream that its header names.
    pub stream: Stream,
    /// Its body.
    pub body: Body,
    /// Its leaf in the chain's tree.
    pub leaf: Hash,
}

impl ArchivedCommit {
    /// Bytes of its bodies and private documents.
    pub fn weight(&self) -> usize {
        let bodies = self.entries.iter().map(|archived| archived.entry.body.len());
        bodies.chain(self.private.iter().map(|(_, document)| document.len())).sum()
    }
}

impl ArchivedEntry {
    /// The entry that a line holds. Its hash is computed; that the body is the one that the header names is for whoever verified the line.
    pub fn read(line: &EntryLine<'_>) -> Result<ArchivedEntry, StoreError> {
        let (header, index) = (line.header.owned(), line.header.index);
        let encoded = header.encode();
        if entry_hash(&encoded) != line.entry_hash {
            return Err(corrupt(header.chain, index, "its hash is not that of its header"));
        }
        let stream = Stream::parse(&header.stream).ok_or_else(|| corrupt(header.chain, index, "no stream's name"))?;
        let body = Body::decode(line.body).map_err(|_| corrupt(header.chain, index, "no body"))?;
        let (entry_hash, parent_index) = (line.entry_hash, line.parent_index);
        let entry = Entry { header, entry_hash, parent_index, body: line.body.to_vec() };
        Ok(ArchivedEntry { entry, stream, body, leaf: merkle::leaf_hash(&encoded) })
    }
}

fn corrupt(chain: u32, index: u64, why: &str) -> StoreError {
    StoreError::Corrupt(format!("entry {index} of chain {chain} in the archive: {why}; verify it"))
}

/// What is written at once.
struct Portion {
    batches: Vec<CommitBatch>,
    checkpoints: Vec<CheckpointRow>,
}

/// A thread that stores portions while the next ones are made.
struct Storing {
    portions: Option<SyncSender<Portion>>,
    thread: Option<JoinHandle<Result<(), StoreError>>>,
}

impl Storing {
    fn begin(store: Arc<dyn Store>) -> Storing {
        let (portions, waiting) = sync_channel::<Portion>(1);
        let thread = std::thread::spawn(move || {
            for Portion { batches, checkpoints } in waiting {
                store.append_verified(&batches)?;
                for row in checkpoints {
                    store.record_checkpoint(&CheckpointRow { note: None, ..row.clone() })?;
                    store.sign_checkpoint(&row)?;
                }
            }
            Ok(())
        });
        Storing { portions: Some(portions), thread: Some(thread) }
    }

    /// Hands a portion over. Where the thread has ended, why it has.
    fn store(&mut self, portion: Portion) -> Result<(), StoreError> {
        match &self.portions {
            Some(portions) if portions.send(portion).is_ok() => Ok(()),
            _ => Err(self.end().err().unwrap_or_else(|| StoreError::Unavailable("the storing thread is gone".into()))),
        }
    }

    /// Waits until everything is stored.
    fn end(&mut self) -> Result<(), StoreError> {
        self.portions = None;
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

/// One chain that is being restored.
pub struct Restorer {
    store: Arc<dyn Store>,
    ledger_id: Hash,
    chain: u32,
    head: ChainHead,
    /// Hashes of the incomplete tile of each level.
    partial: Vec<Vec<Hash>>,
    cases: LruCache<Key, Cached>,
    waiting: Vec<CommitBatch>,
    entries_waiting: usize,
    bytes_waiting: usize,
    checkpoints: Vec<CheckpointRow>,
    storing: Storing,
    /// One bit an entry: it names a private document that was neither there nor erased later.
    absent: Vec<u64>,
}

impl Restorer {
    /// Begins where the store ends. What it holds must be the beginning of the chain: [`Restorer::continues`].
    pub fn new(store: Arc<dyn Store>, ledger_id: Hash, chain: u32) -> Result<Restorer, StoreError> {
        let empty = ChainHead { chain, hash: Hash::ZERO, range: CompactRange::default() };
        let head = store.heads()?.into_iter().find(|h| h.chain == chain).unwrap_or(empty);
        let partial = incomplete_tiles(&*store, chain, head.size())?;
        Ok(Restorer {
            storing: Storing::begin(Arc::clone(&store)),
            store,
            ledger_id,
            chain,
            partial,
            cases: LruCache::new(NonZeroUsize::new(CASES).unwrap_or(NonZeroUsize::MIN)),
            waiting: Vec::new(),
            entries_waiting: 0,
            bytes_waiting: 0,
            checkpoints: Vec::new(),
            absent: Vec::new(),
            head,
        })
    }

    /// How many entries there are.
    pub fn size(&self) -> u64 {
        self.head.size()
    }

    /// Whether an entry of the archive is the last one that the store has.
    pub fn continues(&self, last: &Entry) -> bool {
        last.header.index + 1 == self.head.size() && last.entry_hash == self.head.hash
    }

    /// Of the entries that were taken, how many name a private document that was not with them, and that no later entry erased.
    pub fn absent_documents(&self) -> u64 {
        self.absent.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn absent(&mut self, index: u64, is: bool) {
        let (word, bit) = ((index / 64) as usize, 1 << (index % 64));
        if is && self.absent.len() <= word {
            self.absent.resize(word + 1, 0);
        }
        match self.absent.get_mut(word) {
            Some(word) if is => *word |= bit,
            Some(word) => *word &= !bit,
            None => {}
        }
    }

    /// Takes the next commit. It is stored with others, in time.
    pub fn commit(&mut self, archived: ArchivedCommit) -> Result<(), StoreError> {
        self.bytes_waiting += archived.weight();
        let ArchivedCommit { commit, entries, private } = archived;
        let chain = self.chain;
        let (before, mut leaves) = (self.head.clone(), Vec::with_capacity(entries.len()));
        let (mut tiles, mut erase): (Vec<Tile>, Vec<u64>) = Default::default();
        let mut streams: HashMap<Stream, StreamHead> = HashMap::new();
        // In the order in which they were touched, each once.
        let mut touched: Vec<(Key, Option<Touched>)> = Vec::new();
        let mut seen: HashSet<(Key, Option<Touched>)> = HashSet::new();
        let mut rows: Vec<Row> = Vec::new();
        let mut keys: HashSet<Hash> = HashSet::new();
        for ArchivedEntry { entry, stream, body, leaf } in &entries {
            let (h, hash, stream, leaf) = (&entry.header, entry.entry_hash, *stream, *leaf);
            if h.chain != chain || h.index != self.head.size() || h.prev_hash != self.head.hash.0 {
                return Err(corrupt(chain, h.index, "it does not follow the one before it"));
            }
            let key = match stream {
                Stream::Order(case) | Stream::Delivery(case, _) => Key::Order(case),
                Stream::Sku(case) => Key::Sku(case),
                other => Key::System(other),
            };
            let event = Occurrence::of(h, stream, body);
            let cached = self.cached(key, stream, h.revision)?;
            let changed = cached.state.apply(&event).map_err(|e| corrupt(chain, h.index, &e.0))?;
            let first_index = cached.heads.get(&stream).map_or(h.index, |head| head.first_index);
            let head = StreamHead { revision: h.revision, hash, index: h.index, first_index };
            cached.heads.insert(stream, head);
            streams.insert(stream, head);
            for item in changed.into_iter().map(|t| (key, t)) {
                if seen.insert(item.clone()) {
                    touched.push(item);
                }
            }
            if let Some(meta) = body.meta.as_ref().filter(|m| needs_idempotency_row(stream, h.revision, &m.idem))
                && keys.insert(meta.idem)
            {
                rows.push(idempotency_row(self.chain, &meta.idem, h.index));
            }
            if body.private_sha256.is_some() && private.binary_search_by_key(&h.index, |(index, _)| *index).is_err() {
                self.absent(h.index, true);
            }
            if h.event_type == "subject.erased" {
                let erased = body.payload.value("entries").and_then(Value::as_array).unwrap_or_default();
                erase.extend(erased.iter().filter_map(count));
            }
            self.head.hash = hash;
            self.head.range.push(leaf);
            push_tile(&mut self.partial, 0, h.index, leaf, &mut tiles);
            leaves.push(leaf);
        }
        erase.iter().for_each(|index| self.absent(*index, false));
        touched_rows(self.chain, &self.cases, &touched, &mut rows);
        let runs = completed_runs(&self.ledger_id, self.chain, before.size(), self.head.size());
        let statement = Statement {
            ledger_id: self.ledger_id,
            chain: self.chain,
            first_index: commit.first_index,
            size: entries.len() as u32,
            root: merkle::root(&leaves),
            last_hash: self.head.hash,
            registry_size: commit.registry_size,
            registry_head: commit.registry_head,
        };
        self.entries_waiting += entries.len();
        self.waiting.push(CommitBatch {
            before,
            after: self.head.clone(),
            entries: entries.into_iter().map(|archived| archived.entry).collect(),
            // What a later entry of the same commit erases was never stored.
            private: private.into_iter().filter(|(index, _)| !erase.contains(index)).collect(),
            statement,
            signatures: commit.signatures,
            streams: streams.into_iter().map(|(s, h)| (s.to_string(), h)).collect(),
            tiles,
            runs,
            rows,
            erase,
        });
        let enough = self.entries_waiting >= WRITTEN_AT_ONCE || self.bytes_waiting >= BYTES_AT_ONCE;
        if enough { self.hand_over() } else { Ok(()) }
    }

    /// Takes a checkpoint of the entries so far.
    pub fn checkpoint(&mut self, line: CheckpointLine) -> Result<(), StoreError> {
        let CheckpointLine { chain, size, root, note } = line;
        self.checkpoints.push(CheckpointRow { chain, size, root, note: Some(note) });
        if self.checkpoints.len() >= WRITTEN_AT_ONCE { self.hand_over() } else { Ok(()) }
    }

    /// The state of a case, from what is stored if it is not remembered.
    fn cached(&mut self, key: Key, stream: Stream, revision: u64) -> Result<&mut Cached, StoreError> {
        if !self.cases.contains(&key) {
            let fresh = match stream {
                Stream::Order(case) if revision == 1 => Some(State::Case(Box::new(Case::new(case)))),
                Stream::Sku(_) if revision == 1 => Some(State::Sku(Box::default())),
                _ => None,
            };
            let cached = match fresh {
                Some(state) => Cached { state, heads: HashMap::new() },
                None => {
                    self.flush()?;
                    let mut cached = load(&*self.store, self.chain, key)?;
                    // A stream without entries has no head.
                    cached.heads.retain(|_, head| head.revision > 0);
                    cached
                }
            };
            self.cases.put(key, cached);
        }
        self.cases.get_mut(&key).ok_or_else(|| StoreError::Unavailable("a case was forgotten at once".into()))
    }

    fn hand_over(&mut self) -> Result<(), StoreError> {
        (self.entries_waiting, self.bytes_waiting) = (0, 0);
        let (batches, checkpoints) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.checkpoints));
        self.storing.store(Portion { batches, checkpoints })
    }

    /// Stores what waits, and comes back when it is stored.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        self.hand_over()?;
        self.storing.end()?;
        self.storing = Storing::begin(Arc::clone(&self.store));
        Ok(())
    }
}
