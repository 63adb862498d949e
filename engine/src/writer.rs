//! One thread per chain drains waiting commands: decide, link, hash, sign once, store once, then answer (group commit).
//!
//! Everything a batch decides is provisional until the store has it: refusals too, since they may rest on an
//! entry of the same batch. So all answers wait for the commit, and a failed batch forgets what it assumed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::{mpsc, oneshot};

use crate::body::{Body, Meta};
use crate::commit::{ALG_ED25519, CommitSignature, Statement};
use crate::document::{DocumentFault, DocumentPlace, SignedDocument};
use crate::documents::Documents;
use crate::domain::case::{Case, Touched};
use crate::domain::command::{Action, ExpectedRevision};
use crate::domain::decide::{
    Refusal, RefusalCode, check_claim, check_manifest_needed, check_revision, check_vouched_for, decide_case,
    decide_create, decide_sku,
};
use crate::domain::projection::{Row, case_row, idempotency_row, needs_idempotency_row, sku_row};
use crate::domain::sku::{Listing, Sku};
use crate::domain::{Event, Illegal, Occurrence};
use crate::environment::Environment;
use crate::genesis::{Genesis, Limits};
use crate::hash::{EventId, Hash, body_hash, entry_hash, sha256};
use crate::header::{FORMAT_VERSION, HEADER_BYTES_MAX, Header};
use crate::heads;
use crate::ledger::{AppendError, Appended, EntryRef};
use crate::merkle::{self, TILE_BYTES, TILE_WIDTH};
use crate::reader::corrupt;
use crate::reader::{StoredNodes, load_registry};
use crate::registry::{Purpose, Registry, RegistryPlace, govern_payload};
use crate::retire::{Authorise, Authority, Retire};
use crate::runs::completed_runs;
use crate::signer::keyring::{Chosen, Keyring};
use crate::signer::{Pending, SignerError};
use crate::store::{
    ChainHead, CheckpointRow, CommitBatch, Entry, LookedUp, Settled, Store, StoreError, StreamHead, Tile,
};
use crate::stream::{CaseId, LEDGER_STREAM, Stream};

/// Cases kept folded in memory, for each chain. A case takes about a kilobyte.
const CASES_CACHED: usize = 16_384;
/// Tries to learn the outcome of a commit before the callers are told that it is unknown.
const SETTLE_TRIES: u32 = 20;
/// Commits of up to this many commands are stored by the writer itself.
const INLINE_JOBS: usize = 8;
/// Commands that a commit may take however few callers there are.
const COMMIT_SHARE_MIN: usize = 64;
/// Tries to link to a moving head before the lock is taken first.
const OPTIMISTIC_TRIES: u32 = 2;

/// A command, prepared as far as it can be without the chain's state.
pub(crate) struct Submission {
    pub(crate) action: Action,
    pub(crate) case: CaseId,
    pub(crate) actor_id: String,
    pub(crate) buyer_id: String,
    pub(crate) expected: ExpectedRevision,
    pub(crate) meta: Option<Meta>,
    pub(crate) private: Option<Vec<u8>>,
    /// The SKU's state where it lies on another chain.
    pub(crate) remote_sku: Option<Option<Sku>>,
    /// The listings of the SKU that a delivery proof names.
    pub(crate) listings: Vec<Listing>,
    pub(crate) documents: Documents,
}

/// An event of the ledger itself.
pub(crate) struct SystemEvent {
    pub(crate) stream: Stream,
    pub(crate) event_type: &'static str,
    pub(crate) body: Body,
    pub(crate) expected: ExpectedRevision,
}

pub(crate) enum Work {
    Command(Box<Submission>),
    System(Box<SystemEvent>),
    /// `chain.heads`, of the heads as they are when it is linked to chain 0.
    Heads,
    /// Answered once everything that was queued before is stored or refused.
    Barrier,
}

pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
}

/// What all writers of a ledger share.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) keyring: Arc<Keyring>,
    /// Where signatures that take a while are waited for.
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) ledger_id: Hash,
    pub(crate) genesis: Genesis,
    pub(crate) limits: Limits,
    pub(crate) registry: RwLock<Registry>,
    /// Set once, when the ledger shuts down or is dropped.
    pub(crate) closing: std::sync::atomic::AtomicBool,
    /// Set once, when the store lost what it had acknowledged: then no chain takes another entry.
    pub(crate) went_back: std::sync::OnceLock<String>,
    pub(crate) counters: Counters,
    /// The last checkpoint that was signed here, by chain.
    pub(crate) published: Mutex<HashMap<u32, CheckpointRow>>,
    /// Size and last hash of each chain as this process was told last that they are durable.
    pub(crate) acknowledged: Mutex<HashMap<u32, (u64, Hash)>>,
}

impl Shared {
    /// Reads the key registry again if somebody changed it. It only grows.
    pub(crate) fn refresh_registry(&self) -> Result<(), StoreError> {
        let stored = self.store.stream_head(0, LEDGER_STREAM)?.map_or(0, |head| head.revision);
        if stored > self.registry.read().unwrap_or_else(PoisonError::into_inner).size() {
            let fresh = load_registry(&*self.store, &self.genesis, self.ledger_id)?;
            let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
            if fresh.size() > registry.size() {
                *registry = fresh;
            }
        }
        Ok(())
    }

    /// The signer for a purpose by the registry as it is now. Blocks when a source has to be asked.
    pub(crate) fn signer(&self, purpose: Purpose) -> Result<Chosen, SignerError> {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        self.keyring.signer(&registry, registry.size(), purpose)
    }

    /// No chain takes another entry. The first reason stays.
    pub(crate) fn stop(&self, why: String) -> StoreError {
        StoreError::WentBack(self.went_back.get_or_init(|| why).clone())
    }

    pub(crate) fn published(&self, chain: u32) -> Option<CheckpointRow> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).get(&chain).cloned()
    }
}

/// Whether the tree that was recorded is a prefix of the tree of `size` entries that is stored.
pub(crate) fn is_prefix(
    store: &dyn Store,
    chain: u32,
    recorded: &CheckpointRow,
    size: u64,
) -> Result<bool, StoreError> {
    Ok(recorded.size <= size && merkle::root_at(&StoredNodes { store, chain }, recorded.size)? == recorded.root)
}

pub(crate) fn no_continuation(chain: u32, size: u64, last: &CheckpointRow) -> String {
    format!("chain {chain} has {size} entries and is no continuation of the {} of its last checkpoint", last.size)
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Order(CaseId),
    Sku(CaseId),
    System(Stream),
}

pub(crate) enum State {
    Case(Box<Case>),
    Sku(Box<Option<Sku>>),
    System,
}

impl State {
    /// Applies an event, if it is allowed. Returns what has to be written of it: rows of a case, or the row of a SKU.
    pub(crate) fn apply(&mut self, event: &Occurrence<'_>) -> Result<Vec<Option<Touched>>, Illegal> {
        Ok(match self {
            State::Case(case) => case.apply(event)?.touched.into_iter().map(Some).collect(),
            State::Sku(sku) => {
                Sku::apply(sku, event)?;
                vec![None]
            }
            State::System => Vec::new(),
        })
    }
}

/// The rows that were touched, as their states are now.
pub(crate) fn touched_rows(
    chain: u32,
    cases: &LruCache<Key, Cached>,
    touched: &[(Key, Option<Touched>)],
    rows: &mut Vec<Row>,
) {
    for (key, touched) in touched {
        match (cases.peek(key).map(|c| &c.state), touched) {
            (Some(State::Case(case)), Some(touched)) => rows.extend(case_row(chain, case, touched)),
            (Some(State::Sku(sku)), _) => rows.extend(sku.iter().map(|sku| sku_row(chain, sku))),
            _ => {}
        }
    }
}

pub(crate) struct Cached {
    pub(crate) state: State,
    pub(crate) heads: HashMap<Stream, StreamHead>,
}

/// What a writer's inbox takes.
pub(crate) enum Message {
    Job(Job),
    /// The oldest commit on its way is durable, or not.
    Stored(Result<(), StoreError>),
    /// A commit on its way has its signature, or not.
    Signed(u64, Result<[u8; 64], SignerError>),
    /// Look at [`Shared::closing`].
    Close,
}

/// The commit that grows while another one is stored.
#[derive(Default)]
struct Open {
    draft: Option<Draft>,
    jobs: Vec<Job>,
    outcomes: Vec<Outcome>,
    /// Jobs for the commit after it.
    queue: VecDeque<Job>,
}

impl Open {
    fn has_work(&self) -> bool {
        !self.jobs.is_empty() || !self.queue.is_empty()
    }
}

/// What lies between the commit that grows and the answers to those before it.
struct Pipeline<'a> {
    /// The commits that are being signed and stored, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Jobs of failed commits, which are done again when none is on its way.
    failed: VecDeque<Job>,
    /// Where signatures come in.
    signed: &'a mpsc::Sender<Message>,
    storer: &'a std::sync::mpsc::Sender<CommitBatch>,
}

/// A commit on its way.
struct InFlight {
    /// Names it among those of this writer.
    ticket: u64,
    stage: Stage,
    /// Size and hash of the chain with it.
    after: (u64, Hash),
    jobs: Vec<Job>,
    outcomes: Vec<Outcome>,
    idempotency: HashMap<Hash, (Hash, usize)>,
}

/// How far a commit on its way is. Signing takes as long as a remote signer takes, and several are signed at once: a statement
/// rests on the hashes of the commit before it, not on its signature. They are stored one after the other.
enum Stage {
    Signing(Box<CommitBatch>),
    Signed(Box<CommitBatch>),
    Storing,
    Failed(SignerError),
}

/// What the writers of a ledger did, for those who watch it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) entries: AtomicU64,
    pub(crate) store_us: AtomicU64,
}

impl Counters {
    fn stored(&self, batch: &CommitBatch, took: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.entries.fetch_add(batch.entries.len() as u64, Ordering::Relaxed);
        self.store_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }
}

/// Appends, and learns the outcome where the store does not know it: never by a guess.
fn store_settled(shared: &Shared, batch: &CommitBatch) -> Result<(), StoreError> {
    let start = Instant::now();
    let store = &*shared.store;
    settle(store, batch, store.append(batch))?;
    shared.counters.stored(batch, start.elapsed());
    Ok(())
}

fn settle(store: &dyn Store, batch: &CommitBatch, result: Result<(), StoreError>) -> Result<(), StoreError> {
    let Err(StoreError::Unknown(why)) = result else { return result };
    for attempt in 0..SETTLE_TRIES {
        match store.settle(batch) {
            Ok(Settled::Committed) => return Ok(()),
            Ok(Settled::NotCommitted) => return Err(StoreError::Unavailable(why)),
            Err(_) => std::thread::sleep(Duration::from_millis(5 << attempt.min(7))),
        }
    }
    Err(StoreError::Unknown(why))
}

/// Stores commits of one writer and reports each.
pub(crate) fn run_storer(
    shared: &Shared,
    batches: &std::sync::mpsc::Receiver<CommitBatch>,
    inbox: &mpsc::Sender<Message>,
) {
    while let Ok(batch) = batches.recv() {
        let result = store_settled(shared, &batch);
        if inbox.blocking_send(Message::Stored(result)).is_err() {
            return;
        }
    }
}

/// What a job came to, waiting for the commit.
enum Outcome {
    Appended(Appended),
    Failed(AppendError),
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    chain: u32,
    head: ChainHead,
    /// The last head that the store said is durable.
    acknowledged: Option<(u64, Hash)>,
    last_time_us: i64,
    cases: LruCache<Key, Cached>,
    /// What waiting commands asked for together, and the answer.
    looked_up: Option<(HashSet<Hash>, LookedUp)>,
    /// Hashes of the incomplete tile of each level.
    partial: Vec<Vec<Hash>>,
    stale: bool,
    /// Commands that callers have had on their way at once, lately.
    outstanding: usize,
    /// Commands that the next commit takes at most.
    share: usize,
    /// Commits that were on their way.
    tickets: u64,
}

/// A commit under construction.
struct Draft {
    before: ChainHead,
    after: ChainHead,
    entries: Vec<Entry>,
    leaves: Vec<Hash>,
    private: Vec<(u64, Vec<u8>)>,
    bytes: usize,
    streams: HashMap<Stream, StreamHead>,
    tiles: Vec<Tile>,
    touched: Vec<(Key, Option<Touched>)>,
    touched_set: HashSet<(Key, Option<Touched>)>,
    idempotency: HashMap<Hash, (Hash, usize)>,
    /// Idempotency rows to write.
    keys: Vec<(Hash, u64)>,
    erase: Vec<u64>,
    now_us: i64,
    /// How many entries of the key registry the commit names, and by which its documents are judged.
    registry_size: u64,
    /// A change of keys is the last entry of its commit.
    sealed: bool,
}

impl Draft {
    /// Whether one more command fits, whatever it is: two entries with bodies and a private document.
    fn has_room(&self, limits: &Limits) -> bool {
        let command_bytes = 2 * (limits.body_bytes + HEADER_BYTES_MAX) + limits.private_bytes;
        let fits = self.entries.len() + 2 <= limits.commit_entries && self.bytes + command_bytes <= limits.commit_bytes;
        !self.sealed && (fits || self.entries.is_empty())
    }
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, chain: u32) -> Result<Writer, StoreError> {
        let capacity = NonZeroUsize::new(CASES_CACHED).unwrap_or(NonZeroUsize::MIN);
        let head = ChainHead { chain, hash: Hash::ZERO, range: merkle::CompactRange::default() };
        let cases = LruCache::new(capacity);
        let mut writer = Writer {
            shared,
            chain,
            head,
            acknowledged: None,
            last_time_us: 0,
            cases,
            looked_up: None,
            partial: Vec::new(),
            stale: true,
            outstanding: 0,
            share: COMMIT_SHARE_MIN,
            tickets: 0,
        };
        writer.reload()?;
        Ok(writer)
    }

    /// Runs until the ledger closes. While one commit is being signed or stored the next one is decided, linked and signed, so
    /// that both cores work; at most one more waits for the store, so that the store never waits. `signed` leads to `inbox`.
    pub(crate) fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        signed: &mpsc::Sender<Message>,
        storer: &std::sync::mpsc::Sender<CommitBatch>,
    ) {
        let mut open = Open::default();
        let mut pipeline = Pipeline { in_flight: VecDeque::with_capacity(2), failed: VecDeque::new(), signed, storer };
        let mut next = None;
        loop {
            let full = open.jobs.len() >= self.share || !open.queue.is_empty();
            let on_its_way = pipeline.in_flight.len();
            let may_flush = open.has_work() && (on_its_way == 0 || (on_its_way == 1 && full && !self.stale));
            let message = match (next.take(), may_flush, full) {
                (Some(message), _, _) => Some(message),
                (None, true, true) => None,
                (None, true, false) => inbox.try_recv().ok(),
                (None, false, _) => inbox.blocking_recv(),
            };
            match message {
                Some(Message::Job(job)) => {
                    open.queue.push_back(job);
                    // All that wait are looked at together.
                    while open.queue.len() < self.share {
                        match inbox.try_recv() {
                            Ok(Message::Job(job)) => open.queue.push_back(job),
                            other => {
                                next = other.ok();
                                break;
                            }
                        }
                    }
                    self.fill(&mut open, &pipeline.in_flight);
                }
                Some(Message::Stored(result)) => {
                    if let Some(stored) = pipeline.in_flight.pop_front() {
                        self.stored(stored, result.map_err(Into::into), &mut pipeline.failed);
                    }
                    self.go_on(&mut open, &mut pipeline);
                }
                Some(Message::Signed(ticket, result)) => {
                    // One that was given up meanwhile is not there any more.
                    if let Some(flight) = pipeline.in_flight.iter_mut().find(|f| f.ticket == ticket) {
                        flight.signed(result);
                    }
                    self.go_on(&mut open, &mut pipeline);
                }
                Some(Message::Close) => {}
                // The inbox is empty, or the commit is full.
                None if may_flush => self.flush(&mut open, &mut pipeline),
                None => return,
            }
            let closing = self.shared.closing.load(std::sync::atomic::Ordering::Acquire);
            if closing && pipeline.in_flight.is_empty() && !open.has_work() && inbox.is_empty() && next.is_none() {
                return;
            }
        }
    }

    /// Answers the callers of a stored commit, or puts aside the jobs that are to be done again. A commit that was linked
    /// to a failed one fails too: the store finds another head than it names.
    fn stored(&mut self, flight: InFlight, result: Result<(), AppendError>, failed: &mut VecDeque<Job>) {
        match result {
            Ok(()) => {
                self.acknowledge(flight.after);
                flight.jobs.into_iter().zip(flight.outcomes).for_each(|(job, outcome)| answer(job, outcome));
            }
            Err(error) => {
                self.stale = true;
                let again = matches!(&error, AppendError::Store(e) if e.may_be_linked_again());
                for (job, outcome) in flight.jobs.into_iter().zip(flight.outcomes) {
                    // What was only repeated or refused may hold without this commit.
                    if again || !matches!(outcome, Outcome::Appended(Appended { repeated: false, .. })) {
                        failed.push_back(job);
                    } else {
                        answer(job, Outcome::Failed(error.clone()));
                    }
                }
            }
        }
    }

    /// Hands what is signed to the store, in order. What was linked to a commit without a signature fails with it.
    fn hand_over(&mut self, pipeline: &mut Pipeline<'_>) {
        for flight in &mut pipeline.in_flight {
            match std::mem::replace(&mut flight.stage, Stage::Storing) {
                Stage::Storing => {}
                Stage::Signed(batch) => {
                    if pipeline.storer.send(*batch).is_err() {
                        let reason = "the storing thread is gone".to_owned();
                        flight.stage = Stage::Failed(SignerError { kid: "commit".into(), reason });
                        break;
                    }
                }
                waiting => {
                    flight.stage = waiting;
                    break;
                }
            }
        }
        let Some(Stage::Failed(error)) = pipeline.in_flight.front().map(|f| &f.stage) else { return };
        let error = AppendError::Signer(error.clone());
        for flight in pipeline.in_flight.drain(..) {
            self.stored(flight, Err(error.clone()), &mut pipeline.failed);
        }
    }

    /// Hands over what is signed; once nothing is on its way, does again what failed. Whether something did.
    fn go_on(&mut self, open: &mut Open, pipeline: &mut Pipeline<'_>) -> bool {
        self.hand_over(pipeline);
        let again = pipeline.in_flight.is_empty() && !pipeline.failed.is_empty();
        if again {
            self.recover(std::mem::take(&mut pipeline.failed), open);
        }
        again
    }

    fn fill(&mut self, open: &mut Open, in_flight: &VecDeque<InFlight>) {
        if self.stale && in_flight.is_empty() && open.jobs.is_empty() {
            // The next commit starts from what is stored; a failure is found again by the slow path.
            let _ = self.reload();
        }
        let room = self.share.saturating_sub(open.jobs.len());
        if !self.stale && room > 0 {
            self.look_up(open.queue.iter().take(room));
        }
        while !self.stale && !open.queue.is_empty() {
            // Made no earlier than its first job, since it reads the clock.
            let draft = open.draft.get_or_insert_with(|| self.new_draft());
            if !draft.has_room(&self.shared.limits) || open.jobs.len() >= self.share {
                return;
            }
            let Some(job) = open.queue.pop_front() else { return };
            let at = open.outcomes.len();
            match self.execute(&job.work, draft, at, &open.outcomes, in_flight) {
                Ok(appended) => open.outcomes.push(Outcome::Appended(appended)),
                Err(Stop::Store(_)) => {
                    open.queue.push_front(job);
                    self.stale = true;
                    return;
                }
                Err(stop) => open.outcomes.push(Outcome::Failed(stop.into())),
            }
            open.jobs.push(job);
        }
    }

    /// Asks the store once for what waiting commands would ask one by one. What it says holds until the head moves, as far
    /// as no commit of this writer changes it, and those are looked at first.
    fn look_up<'a>(&mut self, waiting: impl Iterator<Item = &'a Job>) {
        self.looked_up = None;
        let (mut keys, mut streams, mut new) = (Vec::new(), Vec::new(), Vec::new());
        for job in waiting {
            let Work::Command(submission) = &job.work else { continue };
            let Submission { meta, case, action, .. } = &**submission;
            let order = Stream::Order(*case);
            keys.extend(meta.map(|m| m.idem).filter(|idem| needs_idempotency_row(order, 1, idem)));
            if matches!(action, Action::CreateOrder { .. }) && !self.cases.contains(&Key::Order(*case)) {
                streams.push(order.to_string());
                new.push(*case);
            }
        }
        if keys.len() + streams.len() < 2 {
            return;
        }
        // A failure is found again by whoever needs the answer.
        let Ok(found) = self.shared.store.look_up(self.chain, &keys, &streams) else { return };
        for (case, stream) in new.into_iter().zip(&streams) {
            if !found.streams.contains(stream) {
                let state = State::Case(Box::new(Case::new(case)));
                self.cases.put(Key::Order(case), Cached { state, heads: HashMap::new() });
            }
        }
        self.looked_up = Some((keys.into_iter().collect(), found));
    }

    /// Index of the first entry with an idempotency hash.
    fn first_with(&self, key: &Hash) -> Result<Option<u64>, StoreError> {
        match &self.looked_up {
            Some((asked, found)) if asked.contains(key) => Ok(found.keys.get(key).copied()),
            _ => self.shared.store.idempotency(self.chain, key),
        }
    }

    /// Signs the open commit and hands it to the store.
    fn flush(&mut self, open: &mut Open, pipeline: &mut Pipeline<'_>) {
        // What another chain lost stops this one, too.
        self.stale |= self.shared.went_back.get().is_some();
        if self.stale {
            return self.recover(VecDeque::new(), open);
        }
        let on_their_way = pipeline.in_flight.iter().map(|f| f.jobs.len()).sum::<usize>();
        self.balance(open.jobs.len() + open.queue.len() + on_their_way);
        let (draft, jobs) = (open.draft.take(), std::mem::take(&mut open.jobs));
        let outcomes = std::mem::take(&mut open.outcomes);
        let Some(draft) = draft.filter(|d| !d.entries.is_empty()) else {
            // Refusals and repetitions may rest on the commit before, so they wait for it.
            match pipeline.in_flight.back_mut() {
                Some(last) => {
                    last.jobs.extend(jobs);
                    last.outcomes.extend(outcomes);
                }
                None if self.check_refusals(&outcomes).and_then(|()| self.confirm(&outcomes)).is_ok() => {
                    jobs.into_iter().zip(outcomes).for_each(|(job, outcome)| answer(job, outcome));
                }
                None => return self.recover(jobs.into(), open),
            }
            return self.fill(open, &pipeline.in_flight);
        };
        let after = (draft.after.size(), draft.after.hash);
        self.tickets += 1;
        let (ticket, idempotency, now_us) = (self.tickets, draft.idempotency.clone(), draft.now_us);
        let mut flight = InFlight { ticket, stage: Stage::Storing, after, jobs, outcomes, idempotency };
        match self.finish(draft) {
            Err(e) => self.stored(flight, Err(e.into()), &mut pipeline.failed),
            Ok((batch, mut signing)) => {
                self.advance(&batch, now_us);
                flight.stage = Stage::Signing(Box::new(batch));
                if let Some(result) = self.at_hand(&mut signing) {
                    flight.signed(result);
                } else {
                    let signed = pipeline.signed.clone();
                    self.shared.runtime.spawn(async move {
                        // A writer that is gone has answered nobody with success.
                        let _ = signed.send(Message::Signed(ticket, signing.await)).await;
                    });
                }
                let alone = pipeline.in_flight.is_empty() && flight.jobs.len() <= INLINE_JOBS;
                match std::mem::replace(&mut flight.stage, Stage::Storing) {
                    // A hand-over to the other thread would cost a lone caller more than it wins.
                    Stage::Signed(batch) if alone => {
                        let result = store_settled(&self.shared, &batch).map_err(Into::into);
                        self.stored(flight, result, &mut pipeline.failed);
                    }
                    stage => {
                        flight.stage = stage;
                        pipeline.in_flight.push_back(flight);
                    }
                }
            }
        }
        if !self.go_on(open, pipeline) {
            self.fill(open, &pipeline.in_flight);
        }
    }

    /// After a failed commit: what was assumed is forgotten, and its jobs, with those that built on it, are done again
    /// one commit after the other.
    fn recover(&mut self, mut waiting: VecDeque<Job>, open: &mut Open) {
        self.stale = true;
        let again = std::mem::take(open);
        waiting.extend(again.jobs);
        waiting.extend(again.queue);
        while !waiting.is_empty() {
            self.commit_some(&mut waiting);
        }
    }

    /// The simple way: commits the job and returns when it is answered.
    pub(crate) fn run_once(mut self, job: Job) {
        self.commit_some(&mut VecDeque::from([job]));
    }

    /// Commits take half of what callers keep outstanding: if one took all of it, its callers would wait for the
    /// store and the writer for the callers, in turn.
    fn balance(&mut self, outstanding: usize) {
        self.outstanding = outstanding.max(self.outstanding - self.outstanding / 16);
        self.share =
            (self.outstanding / 2).clamp(COMMIT_SHARE_MIN, self.shared.limits.commit_entries.max(COMMIT_SHARE_MIN));
    }

    /// Reads the head and what appending needs from the store, and forgets the rest.
    fn reload(&mut self) -> Result<(), StoreError> {
        self.stale = true;
        self.cases.clear();
        self.looked_up = None;
        let store = &self.shared.store;
        let empty = ChainHead { chain: self.chain, hash: Hash::ZERO, range: merkle::CompactRange::default() };
        self.head = store.heads()?.into_iter().find(|h| h.chain == self.chain).unwrap_or(empty);
        self.check_acknowledged()?;
        self.load_tail()
    }

    fn acknowledge(&mut self, end: (u64, Hash)) {
        self.acknowledged = Some(end);
        self.shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(self.chain, end);
    }

    /// Compares the head with what was acknowledged before it.
    fn check_acknowledged(&self) -> Result<(), StoreError> {
        if let Some(why) = self.shared.went_back.get() {
            return Err(StoreError::WentBack(why.clone()));
        }
        self.check_published()?;
        let Some((size, hash)) = self.acknowledged else { return Ok(()) };
        let stored = if size == self.head.size() {
            Some(self.head.hash)
        } else {
            self.shared.store.entry(self.chain, size - 1)?.filter(|_| size < self.head.size()).map(|e| e.entry_hash)
        };
        if stored == Some(hash) {
            return Ok(());
        }
        Err(self.shared.stop(format!(
            "chain {} has {} entries and does not continue the {size} that were acknowledged",
            self.chain,
            self.head.size()
        )))
    }

    /// Compares the chain with the last checkpoint that this process signed, which other processes' entries may be under.
    fn check_published(&self) -> Result<(), StoreError> {
        let Some(last) = self.shared.published(self.chain) else { return Ok(()) };
        let store = &*self.shared.store;
        let mut size = self.head.size();
        if last.size > size {
            // It may be of entries that another process added since this head was read.
            let head = store.heads()?.into_iter().find(|head| head.chain == self.chain);
            size = head.map_or(0, |head| head.size());
        }
        if is_prefix(store, self.chain, &last, size)? {
            return Ok(());
        }
        Err(self.shared.stop(no_continuation(self.chain, size, &last)))
    }

    fn load_tail(&mut self) -> Result<(), StoreError> {
        // Who moved the head may know more keys: a commit never names fewer of them than the one before it.
        self.shared.refresh_registry()?;
        let size = self.head.size();
        let store = &self.shared.store;
        self.last_time_us = match size {
            0 => 0,
            n => store.entry(self.chain, n - 1)?.map_or(0, |e| e.header.recorded_at_us),
        };
        self.partial = incomplete_tiles(&**store, self.chain, size)?;
        self.stale = false;
        Ok(())
    }

    /// Commits as many waiting jobs as fit into one commit, and answers them.
    fn commit_some(&mut self, waiting: &mut VecDeque<Job>) {
        let mut tries = 0;
        loop {
            if self.stale
                && let Err(e) = self.reload()
            {
                fail_all(waiting, &AppendError::Store(Arc::new(e)));
                return;
            }
            let result =
                if tries < OPTIMISTIC_TRIES { self.commit_linked(waiting) } else { self.commit_locked(waiting) };
            match result {
                Ok((taken, outcomes)) => {
                    for (job, outcome) in waiting.drain(..taken).zip(outcomes) {
                        answer(job, outcome);
                    }
                    return;
                }
                Err(CommitError::Store(StoreError::HeadMoved(_) | StoreError::RegistryMoved)) => {
                    self.stale = true;
                    tries += 1;
                }
                Err(CommitError::Store(StoreError::Rejected(why))) => {
                    self.stale = true;
                    // One of them is guilty. Alone, only it fails.
                    if waiting.len() > 1 {
                        let mut all = std::mem::take(waiting);
                        while let Some(job) = all.pop_front() {
                            let mut alone = VecDeque::from([job]);
                            self.commit_some(&mut alone);
                        }
                    } else {
                        fail_all(waiting, &AppendError::Store(Arc::new(StoreError::Rejected(why))));
                    }
                    return;
                }
                Err(CommitError::Store(e)) => {
                    self.stale = true;
                    fail_all(waiting, &AppendError::Store(Arc::new(e)));
                    return;
                }
                Err(CommitError::Signer(e)) => {
                    self.stale = true;
                    fail_all(waiting, &AppendError::Signer(e));
                    return;
                }
            }
        }
    }

    fn commit_linked(&mut self, waiting: &VecDeque<Job>) -> Result<(usize, Vec<Outcome>), CommitError> {
        let (taken, outcomes, batch, now_us) = self.prepare(waiting)?;
        let Some(batch) = batch else {
            self.check_refusals(&outcomes)?;
            self.confirm(&outcomes)?;
            return Ok((taken, outcomes));
        };
        store_settled(&self.shared, &batch)?;
        self.acknowledge((batch.after.size(), batch.after.hash));
        self.advance(&batch, now_us);
        Ok((taken, outcomes))
    }

    /// The slow way, for a chain on which other processes write all the time: nothing moves while the lock is held.
    fn commit_locked(&mut self, waiting: &VecDeque<Job>) -> Result<(usize, Vec<Outcome>), CommitError> {
        let (store, start) = (Arc::clone(&self.shared.store), Instant::now());
        let mut made = None;
        let result = store.append_locked(self.chain, &mut |head| {
            let prepared = (|| {
                self.head = head.clone();
                self.check_acknowledged()?;
                self.cases.clear();
                self.looked_up = None;
                self.load_tail()?;
                self.prepare(waiting)
            })();
            let batch = prepared.as_ref().ok().and_then(|p| p.2.clone());
            made = Some(prepared);
            batch
        });
        let (taken, outcomes, batch, now_us) = match made {
            Some(prepared) => prepared?,
            None => {
                return Err(CommitError::Store(
                    result.err().unwrap_or_else(|| StoreError::Unavailable("no lock".into())),
                ));
            }
        };
        let Some(batch) = batch else {
            self.confirm(&outcomes)?;
            return Ok((taken, outcomes));
        };
        settle(&*store, &batch, result)?;
        self.shared.counters.stored(&batch, start.elapsed());
        self.acknowledge((batch.after.size(), batch.after.hash));
        self.advance(&batch, now_us);
        Ok((taken, outcomes))
    }

    /// Retires a key while the heads of all chains are locked.
    pub(crate) fn retire(mut self, retire: &Retire, mut authorise: Authorise) -> Result<Appended, AppendError> {
        let (store, start) = (Arc::clone(&self.shared.store), Instant::now());
        let mut made = None;
        let result = store.append_cut(&mut |heads| {
            let prepared = self.prepare_retirement(heads, retire, &mut authorise);
            let batch = prepared.as_ref().ok().map(|(_, batch)| batch.clone());
            made = Some(prepared);
            batch
        });
        let Some(prepared) = made else {
            return Err(result.err().unwrap_or_else(|| StoreError::Unavailable("no lock".into())).into());
        };
        let (appended, batch) = prepared?;
        settle(&*store, &batch, result)?;
        self.shared.counters.stored(&batch, start.elapsed());
        Ok(appended)
    }

    fn prepare_retirement(
        &mut self,
        heads: &[ChainHead],
        retire: &Retire,
        authorise: &mut Authorise,
    ) -> Result<(Appended, CommitBatch), AppendError> {
        let head = heads.iter().find(|h| h.chain == self.chain);
        self.head = head.cloned().ok_or_else(|| StoreError::Corrupt("chain 0 has no head row".into()))?;
        self.check_acknowledged()?;
        self.cases.clear();
        self.load_tail()?;
        let registry = self.registry().clone();
        retire.check(&registry)?;
        let mut cut: Vec<u64> = heads.iter().map(ChainHead::size).collect();
        if let Some(first) = cut.first_mut() {
            // The entry that says so is still signed by the old key.
            *first += 1;
        }
        let action = retire.action(cut);
        let Some(governance) = registry.current(Purpose::Governance) else {
            return Err(Refusal::new(RefusalCode::KeyRefused, "the ledger has no valid governance key").into());
        };
        let Authority { governance: signature, possession } =
            authorise(&registry.next_statement(&self.shared.ledger_id, &action))?;
        let payload = govern_payload(&action, &governance.kid, &signature, possession.as_deref());
        let body = Body { actor_id: "governance".into(), payload, private_sha256: None, meta: None };
        let expected = ExpectedRevision::Exact(registry.size());
        let event = SystemEvent { stream: Stream::Ledger, event_type: action.event_type(), body, expected };
        let mut draft = self.new_draft();
        let work = Work::System(Box::new(event));
        let appended = self.execute(&work, &mut draft, 0, &[], &VecDeque::new())?;
        Ok((appended, self.finish_signed(draft)?))
    }

    /// A refusal without a commit rests on what this process remembers. Another one may have appended meanwhile what makes it wrong.
    fn check_refusals(&self, outcomes: &[Outcome]) -> Result<(), StoreError> {
        if !outcomes.iter().any(|o| matches!(o, Outcome::Failed(AppendError::Refused(_)))) {
            return Ok(());
        }
        match self.shared.store.heads()?.into_iter().find(|head| head.chain == self.chain) {
            Some(head) if (head.size(), head.hash) != (self.head.size(), self.head.hash) => {
                Err(StoreError::HeadMoved(Box::new(head)))
            }
            _ => Ok(()),
        }
    }

    /// An answer that is given again must be durable too, and what was read need not be: a commit that waits for a standby
    /// can be read once its wait is cut short, or once the server is back from a crash. Answers that come with a commit wait
    /// for that; these have none.
    fn confirm(&mut self, outcomes: &[Outcome]) -> Result<(), StoreError> {
        let repeated = outcomes.iter().filter_map(|o| match o {
            Outcome::Appended(a) if a.repeated => a.entries.last().map(|e| e.index),
            _ => None,
        });
        let Some(last) = repeated.max().filter(|last| self.acknowledged.is_none_or(|(size, _)| *last >= size)) else {
            return Ok(());
        };
        let (size, hash) = (self.head.size(), self.head.hash);
        if last < size && self.shared.store.confirm(self.chain, size, &hash)? {
            self.acknowledge((size, hash));
            return Ok(());
        }
        // It is another process's, or gone: decide again from what is stored.
        Err(StoreError::HeadMoved(Box::new(self.head.clone())))
    }

    fn advance(&mut self, batch: &CommitBatch, now_us: i64) {
        self.head = batch.after.clone();
        self.last_time_us = now_us;
    }

    fn new_draft(&self) -> Draft {
        Draft {
            before: self.head.clone(),
            after: self.head.clone(),
            entries: Vec::with_capacity(256),
            leaves: Vec::with_capacity(256),
            private: Vec::new(),
            bytes: 0,
            streams: HashMap::with_capacity(256),
            tiles: Vec::new(),
            touched: Vec::with_capacity(256),
            touched_set: HashSet::with_capacity(256),
            idempotency: HashMap::new(),
            keys: Vec::new(),
            erase: Vec::new(),
            now_us: self.shared.environment.now_us().max(self.last_time_us).clamp(0, (1 << 53) - 1),
            // Only the very first commit of the ledger names no registry: its keys are those of its own genesis.
            registry_size: if self.chain == 0 && self.head.size() == 0 { 0 } else { self.registry().size() },
            sealed: false,
        }
    }

    fn registry(&self) -> RwLockReadGuard<'_, Registry> {
        self.shared.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides and links as many jobs as fit. Changes cached states and partial tiles: on failure, `stale`.
    #[allow(clippy::type_complexity, reason = "taken, outcomes, the commit, its time: used in two places above")]
    fn prepare(
        &mut self,
        waiting: &VecDeque<Job>,
    ) -> Result<(usize, Vec<Outcome>, Option<CommitBatch>, i64), CommitError> {
        self.stale = true;
        let mut draft = self.new_draft();
        let (none, mut outcomes) = (VecDeque::new(), Vec::with_capacity(waiting.len()));
        for job in waiting {
            if !draft.has_room(&self.shared.limits) {
                break;
            }
            let at = outcomes.len();
            let outcome = match self.execute(&job.work, &mut draft, at, &outcomes, &none) {
                Ok(appended) => Outcome::Appended(appended),
                Err(Stop::Store(e)) => return Err(e.into()),
                Err(stop) => Outcome::Failed(stop.into()),
            };
            outcomes.push(outcome);
        }
        let (taken, now_us) = (outcomes.len(), draft.now_us);
        if draft.entries.is_empty() {
            self.stale = false;
            return Ok((taken, outcomes, None, now_us));
        }
        let batch = self.finish_signed(draft)?;
        self.stale = false;
        Ok((taken, outcomes, Some(batch), now_us))
    }

    fn execute(
        &mut self,
        work: &Work,
        draft: &mut Draft,
        at: usize,
        done: &[Outcome],
        in_flight: &VecDeque<InFlight>,
    ) -> Result<Appended, Stop> {
        match work {
            Work::Command(submission) => {
                if let Some(repeated) = self.repeated(submission, draft, done, in_flight)? {
                    return Ok(repeated);
                }
                self.command(submission, draft, at)
            }
            Work::System(event) => self.system(event, draft),
            Work::Heads => {
                // What an entry before this one rests on was there to be read before it was decided, and is there now; so what any of them
                // rests on is before its own chain's head. This chain's head is what comes right before this entry.
                let mut heads = self.shared.store.heads()?;
                heads.iter_mut().filter(|h| h.chain == self.chain).for_each(|h| h.clone_from(&draft.after));
                let (actor_id, payload) = ("system".into(), heads::to_payload(&heads));
                let body = Body { actor_id, payload, private_sha256: None, meta: None };
                let (stream, expected) = (Stream::Heads, ExpectedRevision::Any);
                let event = SystemEvent { stream, event_type: heads::EVENT_TYPE, body, expected };
                let appended = self.system(&event, draft)?;
                // Checkpoints and batches end there, and they are of whole commits.
                draft.sealed = true;
                Ok(appended)
            }
            Work::Barrier => Ok(Appended { repeated: true, chain: self.chain, case: None, entries: Vec::new() }),
        }
    }

    fn system(&mut self, event: &SystemEvent, draft: &mut Draft) -> Result<Appended, Stop> {
        let key = Key::System(event.stream);
        self.load(key)?;
        let head = self.cases.get(&key).and_then(|cached| cached.heads.get(&event.stream));
        let head = head.copied().unwrap_or_default();
        check_revision(event.expected, event.stream, head.revision)?;
        if event.stream == Stream::Ledger && head.revision > 0 {
            self.check_keys(event, &head, draft.after.size())?;
            draft.sealed = true;
        }
        let bytes = self.within_limit(event.body.encode())?;
        let entry = self.link(key, event.stream, event.event_type, &event.body, bytes, draft)?;
        Ok(Appended { repeated: false, chain: self.chain, case: None, entries: vec![entry] })
    }

    /// Refuses a change of keys that the registry does not allow.
    fn check_keys(&self, event: &SystemEvent, head: &StreamHead, index: u64) -> Result<(), Refusal> {
        let registry = self.registry();
        if registry.size() != head.revision {
            // The change before this one is on its way, and nobody can have signed what follows it.
            return Err(registry_changed());
        }
        let (ledger_id, parent_hash) = (&self.shared.ledger_id, &head.hash);
        let place = RegistryPlace { ledger_id, revision: head.revision + 1, parent_hash, index };
        let checked = registry.check(event.event_type, &event.body.payload, place);
        checked.map(drop).map_err(|e| Refusal::new(RefusalCode::KeyRefused, e.0))
    }

    /// Refuses a document whose signature does not count by the registry that the commit names.
    fn check_document(&self, document: &SignedDocument, s: &Submission, draft: &Draft) -> Result<(), Stop> {
        let registry = self.registry();
        let place = DocumentPlace {
            ledger_id: &self.shared.ledger_id,
            chain: self.chain,
            index: draft.after.size(),
            registry_size: draft.registry_size,
        };
        let judged = match &s.documents.checked {
            // The signature was checked before the command was queued; whether the key may sign can have changed.
            Some((checked, good)) if checked == document => {
                let claimed = document.claim(&registry, place).map(drop);
                claimed.and(if *good { Ok(()) } else { Err(DocumentFault::Signature) })
            }
            _ => document.check(&registry, place),
        };
        let kid = &document.kid;
        judged.map_err(|fault| match document.purpose {
            Purpose::Licence | Purpose::DeliveryProof => {
                let reason = format!("the document for the buyer does not count: {fault}");
                Stop::Signer(SignerError { kid: kid.clone(), reason })
            }
            Purpose::Kernel => Stop::Refused(Refusal::new(
                RefusalCode::InvalidSignature,
                format!("the manifest's signature by {kid} does not count: {fault}"),
            )),
            _ => Stop::Refused(Refusal::new(
                RefusalCode::LedgerProofInvalid,
                format!("the finance proof signed by {kid} does not count: {fault}"),
            )),
        })
    }

    fn within_limit(&self, body: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        let limit = self.shared.limits.body_bytes;
        if body.len() <= limit {
            return Ok(body);
        }
        let message = format!("the body would have {} bytes; the ledger's limit is {limit}", body.len());
        Err(Refusal::new(RefusalCode::BodyTooLarge, message))
    }

    /// The first answer of a known idempotency key.
    fn repeated(
        &mut self,
        s: &Submission,
        draft: &Draft,
        done: &[Outcome],
        in_flight: &VecDeque<InFlight>,
    ) -> Result<Option<Appended>, Stop> {
        let Some(meta) = &s.meta else { return Ok(None) };
        let mismatch = || {
            let message = "this idempotency key was used with another request; use a new key for a new request";
            Stop::Refused(Refusal::new(RefusalCode::IdempotencyMismatch, message))
        };
        // What is not stored yet: the open commit, and the one on its way.
        let unstored = draft.idempotency.get(&meta.idem).map(|found| (found, done));
        let unstored =
            unstored.or_else(|| in_flight.iter().find_map(|f| Some((f.idempotency.get(&meta.idem)?, &f.outcomes[..]))));
        if let Some(((request, at), outcomes)) = unstored {
            if *request != meta.request {
                return Err(mismatch());
            }
            return Ok(match outcomes.get(*at) {
                Some(Outcome::Appended(a)) => Some(Appended { repeated: true, ..a.clone() }),
                _ => None,
            });
        }
        let order = Stream::Order(s.case);
        let index = if needs_idempotency_row(order, 1, &meta.idem) {
            self.first_with(&meta.idem)?
        } else {
            // The key gave the order's id: if it was used, the order is there.
            self.load(Key::Order(s.case))?;
            let cached = self.cases.get(&Key::Order(s.case));
            cached.and_then(|c| c.heads.get(&order)).map(|head| head.first_index)
        };
        let Some(index) = index else { return Ok(None) };
        // A command makes at most two entries, next to each other.
        let entries = self.shared.store.entries(self.chain, index, 2)?;
        let mut refs = Vec::new();
        for entry in &entries {
            let body = entry
                .parse_body()
                .map_err(|e| StoreError::Corrupt(format!("entry {index}: {e}; verify the ledger")))?;
            match body.meta {
                Some(m) if m.idem == meta.idem && m.request != meta.request => return Err(mismatch()),
                Some(m) if m.idem == meta.idem => refs.push(EntryRef::of(entry)),
                _ => break,
            }
        }
        if refs.is_empty() {
            let text = format!("idempotency row of entry {index} is wrong; run `ledger replay --check`");
            return Err(StoreError::Corrupt(text).into());
        }
        Ok(Some(Appended { repeated: true, chain: self.chain, case: Some(s.case), entries: refs }))
    }

    fn command(&mut self, s: &Submission, draft: &mut Draft, at: usize) -> Result<Appended, Stop> {
        let is_sku = matches!(s.action, Action::ListSku { .. } | Action::WithdrawSku { .. });
        let key = if is_sku { Key::Sku(s.case) } else { Key::Order(s.case) };
        self.load(key)?;
        let mut signed = None;
        let events = match &s.action {
            Action::CreateOrder { sku_id, .. } => {
                let sku = match &s.remote_sku {
                    Some(sku) => sku.clone(),
                    None => {
                        let sku_key = Key::Sku(CaseId::of_sku(sku_id));
                        self.load(sku_key)?;
                        match self.cases.get(&sku_key).map(|c| &c.state) {
                            Some(State::Sku(sku)) => (**sku).clone(),
                            _ => None,
                        }
                    }
                };
                let Some(Cached { state: State::Case(case), .. }) = self.cases.get(&key) else { return Err(lost()) };
                let created = decide_create(case, sku.as_ref(), &s.buyer_id, &s.action, s.expected)?;
                if let Some(sku) = &sku {
                    let chain = CaseId::of_sku(sku_id).route(self.shared.genesis.chains);
                    check_vouched_for(&self.registry(), sku, chain)?;
                }
                vec![created]
            }
            action => match self.cases.get(&key).map(|c| &c.state) {
                Some(State::Sku(sku)) => {
                    let decision = decide_sku((**sku).as_ref(), action, s.expected)?;
                    if matches!(action, Action::ListSku { manifest: None, .. }) {
                        check_manifest_needed(&self.registry())?;
                    }
                    signed = decision.signed;
                    decision.events
                }
                Some(State::Case(case)) => {
                    let decision = decide_case(case, action, s.expected)?;
                    if let Some(claim) = &decision.claim {
                        check_claim(claim, &s.listings)?;
                    }
                    signed = decision.signed;
                    decision.events
                }
                _ => return Err(lost()),
            },
        };
        if let Some(document) = &signed {
            self.check_document(document, s, draft)?;
        } else if matches!(s.action, Action::IssueLicense { .. }) && self.registry().current(Purpose::Licence).is_some()
        {
            if let Some(away) = &s.documents.away {
                return Err(Stop::Signer(away.clone()));
            }
            // When the command was queued there was no such order.
            let message = "the order was created meanwhile by another request; try again";
            return Err(Refusal::new(RefusalCode::RevisionConflict, message).into());
        }
        // Encode everything before anything changes, so that a refusal leaves no trace.
        let mut bodies = Vec::with_capacity(events.len());
        for (i, event) in events.iter().enumerate() {
            // The private document belongs to the first entry.
            let private_sha256 = s.private.as_ref().filter(|_| i == 0).map(|p| sha256(&[p]));
            let body =
                Body { actor_id: s.actor_id.clone(), payload: event.payload.clone(), private_sha256, meta: s.meta };
            let bytes = self.within_limit(body.encode())?;
            bodies.push((body, bytes));
        }
        if let Action::EraseSubject { .. } = &s.action
            && let Some(Cached { state: State::Case(case), .. }) = self.cases.get(&key)
        {
            draft.erase.extend(&case.private);
            let erased: HashSet<u64> = case.private.iter().copied().collect();
            draft.private.retain(|(index, _)| !erased.contains(index));
        }
        if let Some(meta) = &s.meta {
            draft.idempotency.insert(meta.idem, (meta.request, at));
            let revision =
                |stream| self.cases.peek(&key).and_then(|c| c.heads.get(stream)).map_or(1, |h| h.revision + 1);
            if events.first().is_some_and(|e| needs_idempotency_row(e.stream, revision(&e.stream), &meta.idem)) {
                draft.keys.push((meta.idem, draft.after.size()));
            }
        }
        let mut entries = Vec::with_capacity(events.len());
        for (i, (Event { stream, event_type, .. }, (body, bytes))) in events.iter().zip(bodies).enumerate() {
            if let Some(private) = s.private.as_ref().filter(|_| i == 0) {
                draft.bytes += private.len();
                draft.private.push((draft.after.size(), private.clone()));
            }
            entries.push(self.link(key, *stream, event_type, &body, bytes, draft)?);
        }
        Ok(Appended { repeated: false, chain: self.chain, case: Some(s.case), entries })
    }

    /// Makes the entry, applies it to the cached state, and adds it to the draft.
    fn link(
        &mut self,
        key: Key,
        stream: Stream,
        event_type: &str,
        body: &Body,
        bytes: Vec<u8>,
        draft: &mut Draft,
    ) -> Result<EntryRef, Stop> {
        let Some(cached) = self.cases.get_mut(&key) else { return Err(lost()) };
        let parent = cached.heads.get(&stream).copied().unwrap_or_default();
        let index = draft.after.size();
        let header = Header {
            format_version: FORMAT_VERSION,
            ledger_id: self.shared.ledger_id.0,
            chain: self.chain,
            index,
            prev_hash: draft.after.hash.0,
            stream: stream.to_string(),
            revision: parent.revision + 1,
            parent_hash: parent.hash.0,
            event_id: EventId::derive(&self.shared.ledger_id, self.chain, index).0,
            event_type: event_type.to_owned(),
            schema_version: 1,
            recorded_at_us: draft.now_us,
            body_hash: body_hash(&bytes).0,
            body_sha256: sha256(&[&bytes]).0,
        };
        let event = Occurrence {
            stream,
            revision: header.revision,
            event_type,
            payload: &body.payload,
            index,
            recorded_at_us: header.recorded_at_us,
            has_private: body.private_sha256.is_some(),
        };
        for t in cached.state.apply(&event).map_err(Refusal::from)? {
            let item = (key, t);
            if draft.touched_set.insert(item.clone()) {
                draft.touched.push(item);
            }
        }
        let encoded = header.encode();
        let (hash, leaf) = (entry_hash(&encoded), merkle::leaf_hash(&encoded));
        let first_index = if parent.revision == 0 { index } else { parent.first_index };
        let head = StreamHead { revision: header.revision, hash, index, first_index };
        cached.heads.insert(stream, head);
        draft.streams.insert(stream, head);
        draft.bytes += encoded.len() + bytes.len();
        draft.leaves.push(leaf);
        draft.after.hash = hash;
        draft.after.range.push(leaf);
        push_tile(&mut self.partial, 0, index, leaf, &mut draft.tiles);
        let parent_index = (parent.revision > 0).then_some(parent.index);
        let entry = Entry { header, entry_hash: hash, parent_index, body: bytes };
        let reference = EntryRef::of(&entry);
        draft.entries.push(entry);
        Ok(reference)
    }

    /// The commit, unsigned, and its signature to come.
    fn finish(&mut self, draft: Draft) -> Result<(CommitBatch, Signing), CommitError> {
        let registry_size = draft.registry_size;
        let registry_head = self.registry().head(registry_size).unwrap_or_default();
        let statement = Statement {
            ledger_id: self.shared.ledger_id,
            chain: self.chain,
            first_index: draft.before.size(),
            size: draft.entries.len() as u32,
            root: merkle::root(&draft.leaves),
            last_hash: draft.after.hash,
            registry_size,
            registry_head,
        };
        let chosen = {
            let registry = self.registry();
            self.shared.keyring.signer(&registry, registry_size, Purpose::Commit).map_err(CommitError::Signer)?
        };
        let kid = chosen.key.kid.clone();
        let message = statement.to_bytes(ALG_ED25519, &kid);
        let mut rows: Vec<Row> = Vec::with_capacity(draft.touched.len() + draft.keys.len());
        touched_rows(self.chain, &self.cases, &draft.touched, &mut rows);
        rows.extend(draft.keys.iter().map(|(idem, index)| idempotency_row(self.chain, idem, *index)));
        let runs = completed_runs(&self.shared.ledger_id, self.chain, draft.before.size(), draft.after.size());
        let signatures = vec![CommitSignature { kid, alg: ALG_ED25519, signature: Vec::new() }];
        let batch = CommitBatch {
            before: draft.before,
            after: draft.after,
            entries: draft.entries,
            private: draft.private,
            statement,
            signatures,
            streams: draft.streams.into_iter().map(|(s, h)| (s.to_string(), h)).collect(),
            tiles: draft.tiles,
            runs,
            rows,
            erase: draft.erase,
        };
        Ok((batch, Box::pin(async move { chosen.sign(&message).await })))
    }

    /// The commit, signed, however long that takes.
    fn finish_signed(&mut self, draft: Draft) -> Result<CommitBatch, CommitError> {
        let (mut batch, mut signing) = self.finish(draft)?;
        let signature = self.at_hand(&mut signing).unwrap_or_else(|| self.shared.runtime.block_on(signing));
        sign(&mut batch, signature.map_err(CommitError::Signer)?);
        Ok(batch)
    }

    /// The signature, if the signer has it at once.
    fn at_hand(&self, signing: &mut Signing) -> Option<Result<[u8; 64], SignerError>> {
        let _entered = self.shared.runtime.enter();
        match signing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    /// Brings a case's state into the cache, folding its entries if it is not there.
    fn load(&mut self, key: Key) -> Result<(), StoreError> {
        if self.cases.get(&key).is_some() {
            return Ok(());
        }
        let cached = load(&*self.shared.store, self.chain, key)?;
        self.cases.put(key, cached);
        Ok(())
    }
}

/// A signature to come.
type Signing = Pending<'static, Result<[u8; 64], SignerError>>;

fn sign(batch: &mut CommitBatch, signature: [u8; 64]) {
    for unsigned in &mut batch.signatures {
        unsigned.signature = signature.to_vec();
    }
}

impl InFlight {
    /// It has its signature, or will have none.
    fn signed(&mut self, result: Result<[u8; 64], SignerError>) {
        self.stage = match (std::mem::replace(&mut self.stage, Stage::Storing), result) {
            (Stage::Signing(mut batch), Ok(signature)) => {
                sign(&mut batch, signature);
                Stage::Signed(batch)
            }
            (Stage::Signing(_), Err(error)) => Stage::Failed(error),
            (stage, _) => stage,
        };
    }
}

/// Hashes of the incomplete tile of each level.
pub(crate) fn incomplete_tiles(store: &dyn Store, chain: u32, size: u64) -> Result<Vec<Vec<Hash>>, StoreError> {
    let missing = |what: &str| StoreError::Corrupt(format!("{what} is missing; verify the ledger"));
    let from = size - size % TILE_WIDTH;
    let tail = store.entries(chain, from, TILE_WIDTH as usize)?;
    let leaves: Vec<Hash> = tail.iter().filter(|e| e.header.index < size).map(|e| e.header.leaf_hash()).collect();
    if leaves.len() as u64 != size - from {
        return Err(missing("an entry before the head"));
    }
    let mut partial = vec![leaves];
    let mut full = size / TILE_WIDTH;
    let mut level = 0;
    while full > 0 {
        let mut hashes = Vec::new();
        for n in full - full % TILE_WIDTH..full {
            let tile = store.tile(chain, level, n)?.ok_or_else(|| missing("a tile"))?;
            hashes.push(tile_root(&tile).ok_or_else(|| missing("a whole tile"))?);
        }
        partial.push(hashes);
        full /= TILE_WIDTH;
        level += 1;
    }
    Ok(partial)
}

pub(crate) fn push_tile(partial: &mut Vec<Vec<Hash>>, level: usize, index: u64, hash: Hash, tiles: &mut Vec<Tile>) {
    if partial.len() == level {
        partial.push(Vec::new());
    }
    partial[level].push(hash);
    if partial[level].len() as u64 == TILE_WIDTH {
        let hashes = std::mem::take(&mut partial[level]);
        let n = index / TILE_WIDTH;
        tiles.push(Tile { level: level as u32, n, hashes: hashes.iter().flat_map(|h| h.0).collect() });
        push_tile(partial, level + 1, n, merkle::root(&hashes), tiles);
    }
}

fn tile_root(bytes: &[u8]) -> Option<Hash> {
    let hashes = bytes.chunks_exact(32).map(Hash::from_slice).collect::<Option<Vec<_>>>()?;
    (bytes.len() == TILE_BYTES).then(|| merkle::root(&hashes))
}

/// All entries of an order and its deliveries, in chain order.
pub(crate) fn read_case(store: &dyn Store, chain: u32, case: CaseId) -> Result<Vec<Entry>, StoreError> {
    let mut entries = store.stream(chain, &Stream::Order(case).to_string())?;
    if entries.is_empty() {
        return Ok(entries);
    }
    for n in 1.. {
        let delivery = store.stream(chain, &Stream::Delivery(case, n).to_string())?;
        if delivery.is_empty() {
            break;
        }
        entries.extend(delivery);
    }
    entries.sort_by_key(|e| e.header.index);
    Ok(entries)
}

pub(crate) fn load(store: &dyn Store, chain: u32, key: Key) -> Result<Cached, StoreError> {
    let (entries, mut state) = match key {
        Key::Order(case) => (read_case(store, chain, case)?, State::Case(Box::new(Case::new(case)))),
        Key::Sku(case) => (store.stream(chain, &Stream::Sku(case).to_string())?, State::Sku(Box::default())),
        Key::System(stream) => {
            let head = store.stream_head(chain, &stream.to_string())?.unwrap_or_default();
            return Ok(Cached { state: State::System, heads: HashMap::from([(stream, head)]) });
        }
    };
    let mut heads = HashMap::new();
    for entry in &entries {
        let h = &entry.header;
        let stream = Stream::parse(&h.stream).ok_or_else(|| corrupt(entry, &"no stream name"))?;
        let body = entry.parse_body().map_err(|e| corrupt(entry, &e))?;
        let event = Occurrence::of(h, stream, &body);
        state.apply(&event).map_err(|e| corrupt(entry, &e.0))?;
        let head = heads.entry(stream).or_insert(StreamHead { first_index: h.index, ..StreamHead::default() });
        *head = StreamHead { revision: h.revision, hash: entry.entry_hash, index: h.index, ..*head };
    }
    Ok(Cached { state, heads })
}

/// The listings of a SKU as committed.
pub(crate) fn load_listings(store: &dyn Store, chain: u32, case: CaseId) -> Result<Vec<Listing>, StoreError> {
    let (stream, mut state, mut listings) = (Stream::Sku(case), None, Vec::new());
    for entry in store.stream(chain, &stream.to_string())? {
        let h = &entry.header;
        let body = entry.parse_body().map_err(|e| corrupt(&entry, &e))?;
        let said = Sku::apply(&mut state, &Occurrence::of(h, stream, &body)).map_err(|e| corrupt(&entry, &e.0))?.said;
        if !said.is_empty() {
            listings.push(Listing { revision: h.revision, said });
        }
    }
    Ok(listings)
}

/// The state of a SKU as committed.
pub(crate) fn load_sku(store: &dyn Store, chain: u32, case: CaseId) -> Result<Option<Sku>, StoreError> {
    match load(store, chain, Key::Sku(case))?.state {
        State::Sku(sku) => Ok(*sku),
        _ => Ok(None),
    }
}

/// A change of keys was signed for another state of the registry.
pub(crate) fn registry_changed() -> Refusal {
    let message = "the key registry was changed meanwhile; get the statement again and have that one signed";
    Refusal::new(RefusalCode::RevisionConflict, message)
}

enum Stop {
    Refused(Refusal),
    Signer(SignerError),
    Store(StoreError),
}

impl From<Stop> for AppendError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(refusal) => AppendError::Refused(refusal),
            Stop::Signer(e) => AppendError::Signer(e),
            Stop::Store(e) => e.into(),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(r: Refusal) -> Self {
        Stop::Refused(r)
    }
}

impl From<StoreError> for Stop {
    fn from(e: StoreError) -> Self {
        Stop::Store(e)
    }
}

enum CommitError {
    Store(StoreError),
    Signer(SignerError),
}

impl From<CommitError> for AppendError {
    fn from(e: CommitError) -> Self {
        match e {
            CommitError::Signer(e) => AppendError::Signer(e),
            CommitError::Store(e) => e.into(),
        }
    }
}

impl From<StoreError> for CommitError {
    fn from(e: StoreError) -> Self {
        CommitError::Store(e)
    }
}

fn lost() -> Stop {
    // Only if the cache were smaller than a batch; then the caller may try again.
    Stop::Store(StoreError::Unavailable("a case left the cache during its batch".into()))
}

fn answer(job: Job, outcome: Outcome) {
    // A caller that went away has its entry all the same; a retry with its idempotency key finds it.
    let _ = job.reply.send(match outcome {
        Outcome::Appended(a) => Ok(a),
        Outcome::Failed(e) => Err(e),
    });
}

fn fail_all(waiting: &mut VecDeque<Job>, error: &AppendError) {
    for job in waiting.drain(..) {
        let _ = job.reply.send(Err(error.clone()));
    }
}
