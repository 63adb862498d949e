//! The engine: a ledger that takes commands, answers when they are durable, and can be read.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::adoption::{self, Adoption, Previous};
use crate::body::{Body, Meta, PrivateDocument};
use crate::documents::AskedOrders;
use crate::domain::Occurrence;
use crate::domain::command::{Action, Command, DeliveryStep, ExpectedRevision, OrderRef, idempotency_hash, is_service};
use crate::domain::decide::{Refusal, RefusalCode};
use crate::domain::sku::Sku;
use crate::environment::Environment;
use crate::genesis::Genesis;
use crate::hash::{EventId, Hash};
use crate::heads;
use crate::json::Object;
use crate::keys::PseudonymKey;
use crate::merkle;
use crate::note::{Checkpoint, Note};
use crate::reader::{Reader, StoredNodes, blocking, load_registry};
use crate::registry::{self, Key, Purpose, Registry, govern_payload};
use crate::signer::SignerError;
use crate::signer::keyring::{Chosen, Keyring};
use crate::store::{ChainHead, CheckpointRow, Entry, Store, StoreError};
use crate::stream::{CaseId, HEADS_STREAM, LEDGER_STREAM, Stream};
use crate::writer::{
    Counters, Job, Message, Shared, Submission, SystemEvent, Work, Writer, is_prefix, load_listings, load_sku,
    no_continuation, registry_changed, run_storer,
};

/// Cuts that are tried while keys are changed.
const CUTS: u32 = 8;
/// Commands that may wait for one chain's writer before callers are held back.
const QUEUE: usize = 8192;

/// Why a command was not appended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The command's fault, or a conflict with what was appended before. Nothing was written.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The signer is away. Nothing was written; try again.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The store's fault; the variant tells whether to try again.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The ledger is shutting down. Nothing was written.
    #[error("the ledger is shutting down; try again")]
    Closed,
}

impl From<StoreError> for AppendError {
    fn from(e: StoreError) -> Self {
        AppendError::Store(Arc::new(e))
    }
}

impl AppendError {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            AppendError::Refused(r) => r.code.as_str(),
            AppendError::Signer(_) => "SIGNING_UNAVAILABLE",
            AppendError::Store(e) => match **e {
                StoreError::Corrupt(_) => "LEDGER_CORRUPT",
                StoreError::WentBack(_) => "HISTORY_WENT_BACK",
                StoreError::Unknown(_) => "OUTCOME_UNKNOWN",
                _ => "STORE_UNAVAILABLE",
            },
            AppendError::Closed => "SHUTTING_DOWN",
        }
    }
}

/// Why a checkpoint was not issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The stored history is shorter or other than what was recorded for signing before.
    #[error(
        "HISTORY_WENT_BACK: chain {chain} has size {size} and root {root}, but size {recorded_size} and root {recorded_root} \
         were recorded; the ledger was rolled back or rewritten, stop writing and verify it against saved checkpoints"
    )]
    HistoryWentBack {
        /// Which chain.
        chain: u32,
        /// Size now.
        size: u64,
        /// Root now.
        root: Hash,
        /// Size recorded before.
        recorded_size: u64,
        /// Root recorded before.
        recorded_root: Hash,
    },
    /// The signer is away.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The store's fault.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `chain.heads` could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Names an entry in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRef {
    /// Place in the chain.
    pub index: u64,
    /// Its stream.
    pub stream: String,
    /// Place in the stream.
    pub revision: u64,
    /// Its type.
    pub event_type: String,
    /// Its id.
    pub event_id: EventId,
    /// Microseconds since the Unix epoch.
    pub recorded_at_us: i64,
    /// Body bytes, exactly as hashed.
    pub body: Arc<[u8]>,
}

impl EntryRef {
    pub(crate) fn of(entry: &Entry) -> EntryRef {
        let h = &entry.header;
        EntryRef {
            index: h.index,
            stream: h.stream.clone(),
            revision: h.revision,
            event_type: h.event_type.clone(),
            event_id: h.id(),
            recorded_at_us: h.recorded_at_us,
            body: entry.body.as_slice().into(),
        }
    }
}

/// A durable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Whether this is the first answer of an idempotency key, given again.
    pub repeated: bool,
    /// Which chain.
    pub chain: u32,
    /// The order or SKU; `None` for events of the ledger itself.
    pub case: Option<CaseId>,
    /// The entries, one or two.
    pub entries: Vec<EntryRef>,
}

/// What this process's writers did since the ledger was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Commits that are durable.
    pub commits: u64,
    /// Entries in them.
    pub entries: u64,
    /// Time that storing them took, microseconds.
    pub store_us: u64,
    /// Commands in the queues now.
    pub waiting: u64,
}

/// A key that governance admits, with both signatures over [`Reader::enrol_statement`].
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// The key.
    pub key: Key,
    /// Why there is one, of an emergency key.
    pub justification: Option<String>,
    /// Revision of the registry entry that was signed.
    pub revision: u64,
    /// By the governance key.
    pub governance_signature: [u8; 64],
    /// By the key itself.
    pub possession_signature: Vec<u8>,
}

/// What a ledger is opened with.
pub struct Config {
    /// Where entries live.
    pub store: Arc<dyn Store>,
    /// Time and randomness.
    pub environment: Arc<dyn Environment>,
    /// Sign commits, checkpoints and licences. Signers whose keys are not enrolled sign nothing until they are; licences are issued
    /// unsigned for as long as the registry has no key for them.
    pub signers: Arc<Keyring>,
    /// Makes pseudonyms.
    pub pseudonyms: PseudonymKey,
}

/// An open ledger. Cheap to share behind an `Arc`; dropping it stops the writers.
pub struct Ledger {
    pub(crate) shared: Arc<Shared>,
    reader: Reader,
    pub(crate) orders: AskedOrders,
    pseudonyms: PseudonymKey,
    queues: RwLock<Vec<mpsc::Sender<Message>>>,
    writers: Mutex<Vec<JoinHandle<()>>>,
    checkpointing: tokio::sync::Mutex<()>,
}

/// A command on its way: the order it is about, and the answer to come.
#[derive(Debug)]
pub struct Pending {
    /// The order or SKU, known before the answer.
    pub case: CaseId,
    answer: oneshot::Receiver<Result<Appended, AppendError>>,
}

impl Pending {
    /// Waits until the command is durable or refused.
    pub async fn wait(mut self) -> Result<Appended, AppendError> {
        self.answered().await
    }

    /// Like [`Pending::wait`]; cancelling it loses nothing. Not to be called again after it has answered.
    pub async fn answered(&mut self) -> Result<Appended, AppendError> {
        (&mut self.answer).await.unwrap_or(Err(AppendError::Closed))
    }

    /// Whether the answer is at hand.
    pub fn is_ready(&self) -> bool {
        !self.answer.is_empty()
    }
}

impl Ledger {
    /// Writes the genesis entries of all chains into an empty store and opens the ledger.
    pub async fn create(config: Config, genesis: Genesis) -> Result<Ledger, AppendError> {
        let store = Arc::clone(&config.store);
        if blocking(move || store.ledger_id()).await?.is_some() {
            return Err(StoreError::Unusable("the store holds a ledger already".into()).into());
        }
        let body = genesis.to_body();
        let ledger_id = Genesis::ledger_id(&body.encode());
        // The registry prefix of the first commit is empty; this one is replaced when the ledger is opened.
        let registry = Registry::new(genesis.chains, genesis.keys(), Hash::ZERO);
        let first = shared(&config, ledger_id, &genesis, registry);
        append_genesis(&first, 0, Stream::Ledger, "ledger.created", body).await?;
        let registry = load_registry(&*config.store, &genesis, ledger_id)?;
        let rest = shared(&config, ledger_id, &genesis, registry);
        for chain in 1..genesis.chains {
            let payload = Object::new().with("chain", i64::from(chain));
            let body = Body { actor_id: "system".into(), payload, private_sha256: None, meta: None };
            append_genesis(&rest, chain, Stream::Chain(chain), "chain.created", body).await?;
        }
        Ledger::open(config).await
    }

    /// Opens an existing ledger without replaying it.
    pub async fn open(config: Config) -> Result<Ledger, AppendError> {
        let (reader, registry) = Reader::open(Arc::clone(&config.store)).await?;
        let (signers, known) = (Arc::clone(&config.signers), registry.clone());
        blocking(move || Ok(check_signers(&signers, &known))).await??;
        let store = Arc::clone(&config.store);
        blocking(move || check_published(&*store)).await?;
        let genesis = reader.genesis();
        let shared = shared(&config, reader.id(), genesis, registry);
        let (mut queues, mut writers) = (Vec::new(), Vec::new());
        for chain in 0..genesis.chains {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let storing = Arc::clone(&shared);
            let shared = Arc::clone(&shared);
            let writer = blocking(move || Writer::new(shared, chain)).await?;
            let (batches, stored) = std::sync::mpsc::channel();
            let inbox = sender.clone();
            let storer = move || run_storer(&storing, &stored, &inbox);
            writers.push(spawn(format!("store-{chain}"), storer)?);
            let signed = sender.clone();
            writers.push(spawn(format!("chain-{chain}"), move || writer.run(receiver, &signed, &batches))?);
            queues.push(sender);
        }
        Ok(Ledger {
            shared,
            reader,
            orders: AskedOrders::default(),
            pseudonyms: config.pseudonyms,
            queues: RwLock::new(queues),
            writers: Mutex::new(writers),
            checkpointing: tokio::sync::Mutex::new(()),
        })
    }

    /// The key registry as of now.
    pub fn registry(&self) -> Registry {
        self.shared.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether licences are signed: the registry has a key for them.
    pub fn signs_licences(&self) -> bool {
        self.shared.registry.read().unwrap_or_else(PoisonError::into_inner).current(Purpose::Licence).is_some()
    }

    /// Whether a signer is held for everything that this process signs: commits, checkpoints and licences.
    pub fn holds_signers(&self) -> bool {
        let registry = self.shared.registry.read().unwrap_or_else(PoisonError::into_inner);
        [Purpose::Commit, Purpose::Checkpoint, Purpose::Licence]
            .iter()
            .all(|p| self.shared.keyring.holds(&registry, *p))
    }

    /// Asks everything that this process signs with whether it would sign now. Nothing is signed.
    pub async fn check_signers(&self) -> Result<(), SignerError> {
        let licences = self.signs_licences().then_some(Purpose::Licence);
        let mut checked: Vec<[u8; 32]> = Vec::new();
        let proofs =
            self.shared.keyring.holds(&self.registry(), Purpose::DeliveryProof).then_some(Purpose::DeliveryProof);
        for purpose in [Purpose::Commit, Purpose::Checkpoint].into_iter().chain(licences).chain(proofs) {
            let shared = Arc::clone(&self.shared);
            let chosen = tokio::task::spawn_blocking(move || shared.signer(purpose)).await;
            let died = |e: tokio::task::JoinError| SignerError { kid: purpose.as_str().into(), reason: e.to_string() };
            let chosen = chosen.map_err(died)??;
            let public_key = chosen.signer.public_key();
            if !checked.contains(&public_key) {
                chosen.signer.check().await.map_err(|e| SignerError { kid: chosen.key.kid.clone(), ..e })?;
                checked.push(public_key);
            }
        }
        Ok(())
    }

    /// The signers of this process.
    pub fn signers(&self) -> &Arc<Keyring> {
        &self.shared.keyring
    }

    /// What the writers did, and what waits for them.
    pub fn stats(&self) -> Stats {
        use std::sync::atomic::Ordering::Relaxed;
        let counters = &self.shared.counters;
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        Stats {
            commits: counters.commits.load(Relaxed),
            entries: counters.entries.load(Relaxed),
            store_us: counters.store_us.load(Relaxed),
            waiting: queues.iter().map(|q| (q.max_capacity() - q.capacity()) as u64).sum(),
        }
    }

    /// A person's pseudonym, or a service's name.
    pub fn actor_id(&self, actor: &str) -> String {
        self.pseudonyms.actor_id(actor)
    }

    /// Appends a command; the answer means that it is durable.
    pub async fn append(&self, command: &Command, method: &str) -> Result<Appended, AppendError> {
        self.submit(command, None, method).await?.wait().await
    }

    /// Queues a command. Commands of one order keep the order in which they are queued. `resolved` is the order behind
    /// a `ref:` label. `method` is the first part of the idempotency scope's route: `SUBMIT`, or an HTTP method.
    pub async fn submit(
        &self,
        command: &Command,
        resolved: Option<CaseId>,
        method: &str,
    ) -> Result<Pending, AppendError> {
        let submission = self.prepare(command, resolved, method).await?;
        let case = submission.case;
        let answer = self.enqueue(case.route(self.genesis().chains), Work::Command(Box::new(submission))).await?;
        Ok(Pending { case, answer })
    }

    pub(crate) async fn enqueue(
        &self,
        chain: u32,
        work: Work,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, AppendError> {
        let queue = self.queues.read().unwrap_or_else(PoisonError::into_inner).get(chain as usize).cloned();
        let (reply, answer) = oneshot::channel();
        queue
            .ok_or(AppendError::Closed)?
            .send(Message::Job(Job { work, reply }))
            .await
            .map_err(|_| AppendError::Closed)?;
        Ok(answer)
    }

    async fn prepare(
        &self,
        command: &Command,
        resolved: Option<CaseId>,
        method: &str,
    ) -> Result<Submission, AppendError> {
        let random = |bytes: &mut [u8]| {
            let why = |e: std::io::Error| StoreError::Unavailable(format!("no randomness: {e}"));
            self.shared.environment.random(bytes).map_err(why)
        };
        let actor_id = self.pseudonyms.actor_id(&command.actor);
        let idem = command.idempotency_key.as_ref().map(|key| idempotency_hash(&actor_id, method, command.name, key));
        let case = match (&command.action, &command.order) {
            (Action::ListSku { sku_id, .. } | Action::WithdrawSku { sku_id, .. }, _) => CaseId::of_sku(sku_id),
            (Action::CreateOrder { .. }, _) => match &idem {
                Some(idem) => CaseId::of_idempotency(idem),
                None => {
                    let mut id = [0; 16];
                    random(&mut id)?;
                    CaseId(id)
                }
            },
            (_, Some(OrderRef::Id(case))) => *case,
            (_, label) => resolved.ok_or_else(|| {
                let label = match label {
                    Some(OrderRef::Label(label)) => label.as_str(),
                    _ => "",
                };
                Refusal::new(
                    RefusalCode::OrderNotFound,
                    format!("no earlier order.create of this input was accepted under ref {label:?}"),
                )
            })?,
        };
        let meta =
            idem.map(|idem| Meta { idem, request: command.request_digest(command.order.as_ref().map(|_| case)) });
        let (buyer_id, buyer) = match &command.action {
            Action::CreateOrder { buyer, .. } => {
                let buyer = buyer.as_ref().unwrap_or(&command.actor);
                (self.pseudonyms.actor_id(buyer), Some(buyer))
            }
            _ => (String::new(), None),
        };
        let mut private = Object::new();
        if !is_service(&command.actor) {
            private.set("actor", command.actor.as_str());
        }
        private.set_some("buyer", buyer.filter(|b| !is_service(b)).map(String::as_str));
        private.set_some("private", command.private.clone());
        let private = if private.is_empty() {
            None
        } else {
            let mut salt = [0; 16];
            random(&mut salt)?;
            Some(PrivateDocument::new(private, salt).as_bytes().to_vec())
        };
        let limit = self.genesis().limits.private_bytes;
        if let Some(size) = private.as_ref().map(Vec::len).filter(|size| *size > limit) {
            let message = format!("the private document would have {size} bytes; the ledger's limit is {limit}");
            return Err(Refusal::new(RefusalCode::BodyTooLarge, message).into());
        }
        let remote_sku = match &command.action {
            Action::CreateOrder { sku_id, .. } => self.remote_sku(case, sku_id).await?,
            _ => None,
        };
        let listings = match &command.action {
            Action::Deliver { step: DeliveryStep::Ready { delivery_proof: Some(proof), .. }, .. } => {
                let sku = CaseId::of_sku(&proof.terms.sku_id);
                let (store, chain) = (Arc::clone(&self.shared.store), sku.route(self.genesis().chains));
                blocking(move || load_listings(&*store, chain, sku)).await?
            }
            _ => Vec::new(),
        };
        if let (Action::CreateOrder { sku_id, .. }, true) = (&command.action, self.signs_licences()) {
            self.orders.asked(case, sku_id, &buyer_id);
        }
        let (action, documents) = self.documents(command, case).await?;
        let expected = command.expected_revision;
        Ok(Submission { action, case, actor_id, buyer_id, expected, meta, private, remote_sku, listings, documents })
    }

    /// Whether an actor's idempotency key was used for a command about a SKU before: then the command is answered as it was.
    pub async fn was_used(
        &self,
        actor: &str,
        method: &str,
        name: &str,
        key: &str,
        sku: CaseId,
    ) -> Result<bool, StoreError> {
        let idem = idempotency_hash(&self.pseudonyms.actor_id(actor), method, name, key);
        let (store, chain) = (Arc::clone(&self.shared.store), sku.route(self.genesis().chains));
        blocking(move || Ok(store.idempotency(chain, &idem)?.is_some())).await
    }

    async fn remote_sku(&self, case: CaseId, sku_id: &str) -> Result<Option<Option<Sku>>, StoreError> {
        let sku = CaseId::of_sku(sku_id);
        let chain = sku.route(self.genesis().chains);
        if chain == case.route(self.genesis().chains) {
            return Ok(None);
        }
        let store = Arc::clone(&self.shared.store);
        blocking(move || load_sku(&*store, chain, sku)).await.map(Some)
    }

    /// Adds the key that governance admits. Refused if the registry allows it not, or has changed since the statement was made
    /// ([`Reader::enrol_statement`]): then the new statement is to be signed. The key may sign from the next commit on.
    pub async fn enrol(&self, enrolment: Enrolment) -> Result<Appended, AppendError> {
        self.refresh_registry().await?;
        let registry = self.registry();
        if enrolment.revision != registry.size() + 1 {
            return Err(registry_changed().into());
        }
        let Some(governance) = registry.current(Purpose::Governance) else {
            return Err(Refusal::new(RefusalCode::KeyRefused, "the ledger has no valid governance key").into());
        };
        let Enrolment { key, justification, governance_signature, possession_signature, .. } = enrolment;
        let action = registry::Action::Enrol { key, justification };
        let payload = govern_payload(&action, &governance.kid, &governance_signature, Some(&possession_signature));
        let body = Body { actor_id: "governance".into(), payload, private_sha256: None, meta: None };
        let expected = ExpectedRevision::Exact(registry.size());
        let event = SystemEvent { stream: Stream::Ledger, event_type: action.event_type(), body, expected };
        let answer = self.enqueue(0, Work::System(Box::new(event))).await?.await;
        let appended = answer.unwrap_or(Err(AppendError::Closed)).map_err(|e| match e {
            AppendError::Refused(r) if r.code == RefusalCode::RevisionConflict => registry_changed().into(),
            e => e,
        })?;
        self.refresh_registry().await?;
        Ok(appended)
    }

    /// Takes over what other processes changed in the key registry.
    pub async fn refresh_registry(&self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.refresh_registry()).await
    }

    /// Issues a checkpoint of every chain, chain 0 last. Returns the notes, ascending by chain.
    ///
    /// Their sizes are a cut: the entries of each chain before them rest on nothing after them, whoever writes meanwhile, and the keys that sign
    /// them are known before it. With several chains the last entry of chain 0 before its checkpoint says the sizes of the others, so that one
    /// checkpoint anchors the whole ledger.
    pub async fn checkpoint(&self) -> Result<Vec<Note>, CheckpointError> {
        let _one_at_a_time = self.checkpointing.lock().await;
        for _ in 0..CUTS {
            if let Some(notes) = self.checkpoint_of(&self.cut().await?).await? {
                return Ok(notes);
            }
        }
        Err(StoreError::Unavailable("keys were changed again and again while a checkpoint was signed".into()).into())
    }

    /// `None`: keys were changed since the cut.
    async fn checkpoint_of(&self, cut: &[CheckpointRow]) -> Result<Option<Vec<Note>>, CheckpointError> {
        let end = cut.first().map_or(0, |row| row.size);
        let mut notes = Vec::new();
        for row in cut.iter().skip(1).chain(cut.first()) {
            match self.checkpoint_at(row.clone(), end).await? {
                Some(note) => notes.push(note),
                None => return Ok(None),
            }
        }
        notes.rotate_right(1);
        Ok(Some(notes))
    }

    /// Sizes and roots of all chains at one moment, the entry `chain.heads` that says so included.
    async fn cut(&self) -> Result<Vec<CheckpointRow>, CheckpointError> {
        let shared = Arc::clone(&self.shared);
        let last = blocking_checkpoint(move || {
            shared.refresh_registry()?;
            let heads = shared.store.heads()?;
            // Before anything is appended: nothing is to be added to a history that went back, nor where nobody can sign.
            heads.iter().try_for_each(|head| check_history(&shared, head.chain, head.size()))?;
            shared.signer(Purpose::Checkpoint)?;
            let unchanged = heads.len() < 2
                || last_cut(&*shared.store)?
                    .is_some_and(|cut| cut.iter().map(|row| row.size).eq(heads.iter().map(ChainHead::size)));
            let row = |head: &ChainHead| CheckpointRow {
                chain: head.chain,
                size: head.size(),
                root: head.range.root(),
                note: None,
            };
            Ok(unchanged.then(|| heads.iter().map(row).collect()))
        });
        if let Some(cut) = last.await? {
            return Ok(cut);
        }
        let answer = self.enqueue(0, Work::Heads).await?;
        let appended = answer.await.unwrap_or(Err(AppendError::Closed))?;
        let store = Arc::clone(&self.shared.store);
        blocking_checkpoint(move || {
            let index = appended.entries.first().map(|entry| entry.index);
            let cut = index.map(|index| cut_at(&*store, index)).transpose()?.flatten();
            Ok(cut
                .ok_or_else(|| StoreError::Corrupt("chain.heads is not what was appended; verify the ledger".into()))?)
        })
        .await
    }

    /// Records the rows of a legacy chain that somebody verified, after what was adopted before: `previous` is set here.
    /// Refused if they are not more rows, or if another adoption was appended meanwhile.
    pub async fn adopt_legacy(&self, adoption: Adoption) -> Result<Appended, AppendError> {
        let before = self.adoptions().await?;
        let previous = before.last().map(|last| Previous { index: last.index, root: last.adoption.root });
        let payload = Adoption { previous, ..adoption }.to_payload();
        let event = Occurrence {
            stream: Stream::Legacy,
            revision: before.len() as u64 + 1,
            event_type: adoption::EVENT_TYPE,
            payload: &payload,
            index: 0,
            recorded_at_us: 0,
            has_private: false,
        };
        Adoption::follow(before.last(), &event).map_err(Refusal::from)?;
        let body = Body { actor_id: "system".into(), payload, private_sha256: None, meta: None };
        let expected = ExpectedRevision::Exact(before.len() as u64);
        let event = SystemEvent { stream: Stream::Legacy, event_type: adoption::EVENT_TYPE, body, expected };
        self.enqueue(0, Work::System(Box::new(event))).await?.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Records, signs and stores a checkpoint. Recording comes first: a signer that dies after signing must not sign another root for the same
    /// size when it is back. `None`: a key was changed after the first `end` entries of chain 0, so that who has these could not know the signer.
    async fn checkpoint_at(&self, row: CheckpointRow, end: u64) -> Result<Option<Note>, CheckpointError> {
        let (shared, base) = (Arc::clone(&self.shared), self.genesis().origin.clone());
        let recorded = blocking_checkpoint(move || record_checkpoint(&shared, &base, row, end));
        let (checkpoint, mut row, chosen) = match recorded.await? {
            Recorded::Signed(note) => return Ok(Some(note)),
            Recorded::KeysMoved => return Ok(None),
            Recorded::New(checkpoint, row, chosen) => (checkpoint, row, chosen),
        };
        let signature = chosen.sign(checkpoint.to_text().as_bytes()).await?;
        let note = checkpoint.to_note(chosen.signer.public_key(), signature.to_vec());
        row.note = Some(note.to_string());
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut published = shared.published.lock().unwrap_or_else(PoisonError::into_inner);
            let last = published.entry(row.chain).or_insert_with(|| row.clone());
            if last.size < row.size {
                last.clone_from(&row);
            }
            drop(published);
            shared.store.sign_checkpoint(&row)
        })
        .await?;
        Ok(Some(note))
    }

    /// Stops the writers after all queued commands are answered, issues a checkpoint, and closes the store.
    pub async fn shutdown(&self) -> Result<Vec<Note>, CheckpointError> {
        let notes = self.checkpoint().await;
        let closed = self.close().await;
        let notes = notes?;
        closed?;
        Ok(notes)
    }

    /// Stops the writers after all queued commands are answered, and closes the store; no checkpoint is signed.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.stop_writers();
        let writers = std::mem::take(&mut *self.writers.lock().unwrap_or_else(PoisonError::into_inner));
        let store = Arc::clone(&self.shared.store);
        blocking(move || {
            for writer in writers {
                // A writer that panicked has answered nobody with success.
                let _ = writer.join();
            }
            store.close()
        })
        .await
    }
}

impl Ledger {
    fn stop_writers(&self) {
        self.shared.closing.store(true, std::sync::atomic::Ordering::Release);
        for queue in self.queues.write().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A full queue needs no message: its writer is awake and looks by itself.
            let _ = queue.try_send(Message::Close);
        }
    }
}

/// Whatever can be read without keys.
impl std::ops::Deref for Ledger {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop_writers();
    }
}

fn spawn(name: String, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new().name(name).spawn(f).map_err(|e| StoreError::Unavailable(e.to_string()))
}

fn shared(config: &Config, ledger_id: Hash, genesis: &Genesis, registry: Registry) -> Arc<Shared> {
    Arc::new(Shared {
        store: Arc::clone(&config.store),
        environment: Arc::clone(&config.environment),
        keyring: Arc::clone(&config.signers),
        runtime: tokio::runtime::Handle::current(),
        ledger_id,
        genesis: genesis.clone(),
        limits: genesis.limits,
        registry: RwLock::new(registry),
        closing: std::sync::atomic::AtomicBool::new(false),
        went_back: std::sync::OnceLock::new(),
        counters: Counters::default(),
        published: Mutex::default(),
        acknowledged: Mutex::default(),
    })
}

async fn append_genesis(
    shared: &Arc<Shared>,
    chain: u32,
    stream: Stream,
    event_type: &'static str,
    body: Body,
) -> Result<(), AppendError> {
    let (reply, answer) = oneshot::channel();
    let job = Job {
        work: Work::System(Box::new(SystemEvent { stream, event_type, body, expected: ExpectedRevision::Any })),
        reply,
    };
    let shared = Arc::clone(shared);
    blocking(move || Writer::new(shared, chain).map(|w| w.run_once(job))).await?;
    answer.await.unwrap_or(Err(AppendError::Closed)).map(drop)
}

/// Refuses to open a ledger for which nobody here could sign.
fn check_signers(signers: &Keyring, registry: &Registry) -> Result<(), StoreError> {
    for purpose in [Purpose::Commit, Purpose::Checkpoint] {
        if signers.signer(registry, registry.size(), purpose).is_ok() {
            continue;
        }
        if signers.refresh().is_err() {
            // What cannot be asked now may have the key: until then whoever needs it is told so, and everybody can read.
            return Ok(());
        }
        signers.signer(registry, registry.size(), purpose).map_err(|e| {
            StoreError::Unusable(format!(
                "{} signs for this ledger, and it is not here: {}. What is here is not a valid key of this ledger: if it is in a token or \
                 behind a service, name that with --signer or LEDGER_SIGNERS; if its file was lost, restore it from your backup",
                e.kid, e.reason
            ))
        })?;
    }
    Ok(())
}

/// Refuses to go on from a history that is shorter or other than what was published.
fn check_published(store: &dyn Store) -> Result<(), StoreError> {
    for chain in store.heads()?.iter().map(|head| head.chain) {
        let Some(last) = store.last_checkpoint(chain)? else { continue };
        // Read after it: another process may have gone on meanwhile.
        let size = head_of(store, chain)?.size();
        if !is_prefix(store, chain, &last, size)? {
            return Err(StoreError::WentBack(no_continuation(chain, size, &last)));
        }
    }
    Ok(())
}

/// A checkpoint that may be signed.
enum Recorded {
    /// It was before.
    Signed(Note),
    /// A key was changed since the cut.
    KeysMoved,
    /// It is recorded; by whom it is to be signed.
    New(Checkpoint, CheckpointRow, Chosen),
}

/// Runs what blocks in a thread for that.
async fn blocking_checkpoint<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, CheckpointError> {
    let died = |e| Err(StoreError::Unavailable(format!("the checkpoint task died: {e}")).into());
    tokio::task::spawn_blocking(work).await.unwrap_or_else(died)
}

/// The cut that the last entry `chain.heads` names.
fn last_cut(store: &dyn Store) -> Result<Option<Vec<CheckpointRow>>, StoreError> {
    let last = store.stream_head(0, HEADS_STREAM)?;
    Ok(last.map(|last| cut_at(store, last.index)).transpose()?.flatten())
}

/// The cut that an entry `chain.heads` names, itself included.
fn cut_at(store: &dyn Store, index: u64) -> Result<Option<Vec<CheckpointRow>>, StoreError> {
    let body = store.entry(0, index)?.and_then(|entry| entry.parse_body().ok());
    let rows = body.and_then(|body| heads::rows(&body.payload));
    let Some(mut cut) = rows.and_then(|rows| heads::cut(rows, index)) else { return Ok(None) };
    if let Some(own) = cut.first_mut() {
        own.root = merkle::root_at(&StoredNodes { store, chain: 0 }, own.size)?;
    }
    Ok(Some(cut))
}

/// Refuses to go on where the `size` entries that a chain has now are no continuation of what was recorded for signing, or acknowledged.
fn check_history(shared: &Shared, chain: u32, size: u64) -> Result<(), CheckpointError> {
    let store = &*shared.store;
    if let Some(why) = shared.went_back.get() {
        return Err(StoreError::WentBack(why.clone()).into());
    }
    // Another process, or this one, may have added entries since the size was read.
    let reaching = |least: u64| if least > size { head_of(store, chain).map(|head| head.size()) } else { Ok(size) };
    let acknowledged = shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).get(&chain).copied();
    if let Some((least, hash)) = acknowledged {
        let now = reaching(least)?;
        if least > now || store.entry(chain, least - 1)?.map(|entry| entry.entry_hash) != Some(hash) {
            let why =
                format!("chain {chain} has {now} entries and does not continue the {least} that were acknowledged");
            return Err(shared.stop(why).into());
        }
    }
    // The store may have lost what was signed together with what it was signed for.
    for last in shared.published(chain).into_iter().chain(store.last_checkpoint(chain)?) {
        let now = reaching(last.size)?;
        if !is_prefix(store, chain, &last, now)? {
            return Err(went_back(shared, chain, now, &last));
        }
    }
    Ok(())
}

fn head_of(store: &dyn Store, chain: u32) -> Result<ChainHead, StoreError> {
    let head = store.heads()?.into_iter().find(|h| h.chain == chain);
    head.ok_or_else(|| StoreError::Corrupt(format!("chain {chain} has no head row")))
}

fn went_back(shared: &Shared, chain: u32, size: u64, last: &CheckpointRow) -> CheckpointError {
    shared.stop(no_continuation(chain, size, last));
    let root = merkle::root_at(&StoredNodes { store: &*shared.store, chain }, size).unwrap_or_default();
    let (recorded_size, recorded_root) = (last.size, last.root);
    CheckpointError::HistoryWentBack { chain, size, root, recorded_size, recorded_root }
}

/// Records what is to be signed of a size that was read before, and that the chain may have left behind since. `end`: entries of chain 0 that
/// who reads the checkpoint has, and in which its key must be.
fn record_checkpoint(shared: &Shared, base: &str, row: CheckpointRow, end: u64) -> Result<Recorded, CheckpointError> {
    let (store, chain) = (&*shared.store, row.chain);
    shared.refresh_registry()?;
    let now = head_of(store, chain)?.size();
    check_history(shared, chain, now)?;
    if !is_prefix(store, chain, &row, now)? {
        return Err(went_back(shared, chain, now, &row));
    }
    let recorded = store.checkpoints(chain, row.size, 1)?.into_iter().find(|recorded| recorded.size == row.size);
    if let Some(other) = recorded.as_ref().filter(|recorded| recorded.root != row.root) {
        return Err(went_back(shared, chain, now, other));
    }
    if let Some(note) = recorded.and_then(|recorded| recorded.note) {
        let note = Note::parse(note.as_bytes()).map_err(|e| StoreError::Corrupt(e.to_string()))?;
        return Ok(Recorded::Signed(note));
    }
    let known = store.stream_head(0, LEDGER_STREAM)?.filter(|head| head.index < end).map_or(0, |head| head.revision);
    let chosen = {
        let registry = shared.registry.read().unwrap_or_else(PoisonError::into_inner);
        if registry.size() != known {
            return Ok(Recorded::KeysMoved);
        }
        // Without a signer nothing is recorded.
        shared.keyring.signer(&registry, known, Purpose::Checkpoint)?
    };
    store.record_checkpoint(&row).inspect_err(|e| {
        if let StoreError::WentBack(why) = e {
            shared.stop(why.clone());
        }
    })?;
    let origin = Checkpoint::origin_of(base, &shared.ledger_id, chain);
    Ok(Recorded::New(Checkpoint { origin, size: row.size, root: row.root }, row, chosen))
}
