//! One chain, entry by entry.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use compact_str::CompactString;
use ledger_engine::adoption::Adoption;
use ledger_engine::body::{BODY_BYTES_MAX, Body};
use ledger_engine::commit::{ALG_ED25519, COMMIT_BYTES_MAX, COMMIT_SIGNATURES_MAX, Statement};
use ledger_engine::document::{DocumentPlace, SignedDocument};
use ledger_engine::domain::Occurrence;
use ledger_engine::domain::projection::{Cell, TABLES, idempotency_row, needs_idempotency_row};
use ledger_engine::export::record::ExportEvent;
use ledger_engine::genesis::Genesis;
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::header::{Header, Text};
use ledger_engine::json::{Object, Value};
use ledger_engine::merkle::{self, CompactRange};
use ledger_engine::public_key::PublicKey;
use ledger_engine::registry::{KeyRecord, RegistryPlace};
use ledger_engine::runs::RUN_ENTRIES;
use ledger_engine::stream::Stream;
use rayon::prelude::*;

use super::batch::{ChainFacts, Later, Record};
use super::history::History;
use super::multiset::Sums;
use super::since::{Earlier, Start};
use super::states::{Effects, HOT, Key, Link, States, Tip, head_row, spilled};
use super::{HeadClaim, Piece, Prover, Stop, check, suspect};
use crate::commits::{CheckpointJudge, Commit, read_commit};
use crate::export::{Fed, Item, Judged, JudgedEntry};
use crate::report::ChainReport;
use crate::row::{Digests, blob, number, read_entry, text};

/// Pieces whose signatures may still be on their way.
const VERDICTS: usize = 8;
/// Claims about heads of a batch, or of what came after an anchor, in memory. With more the whole is judged.
const CLAIMS_MAX: usize = 1 << 20;
/// Entry hashes kept, for what `chain.heads` says of its own chain.
const RECENT: usize = 16_384;

/// An entry whose own bytes are right.
pub(crate) struct Prepared {
    row: Row,
    stream: Stream,
    body: Body,
    /// Length of header and body.
    bytes: u64,
    /// Header and body as they are, for whoever takes what is judged.
    pub(crate) kept: Option<(Header, Vec<u8>)>,
}

impl Prepared {
    /// Steps 2.3, 2.4, 2.6, 2.9 and the form of the stream, of an entry's columns in range. `None`: one of them fails.
    pub(crate) fn new<S: Text>(
        header: &Header<S>,
        digests: &Digests,
        stated: Hash,
        parent_index: Option<u64>,
        body: &[u8],
    ) -> Option<Prepared> {
        let own = digests.body_ok && digests.id_ok && digests.hash == stated;
        let stream = Stream::parse(header.stream.as_ref()).filter(|_| own)?;
        let bytes = (digests.header_len + body.len()) as u64;
        let event_type = header.event_type.as_ref().into();
        let Header { chain, index, prev_hash, revision, parent_hash, event_id, recorded_at_us, .. } = *header;
        let header = Place { chain, index, prev_hash, revision, parent_hash, event_id, event_type, recorded_at_us };
        let row = Row { header, parent_index, hash: digests.hash, leaf: digests.leaf };
        Some(Prepared { row, stream, body: Body::decode(body).ok()?, bytes, kept: None })
    }

    /// The entry for whoever takes it, with its private document.
    fn judged(self, document: Option<Vec<u8>>) -> Option<JudgedEntry> {
        let Prepared { row: Row { parent_index, hash, leaf, .. }, stream, body, kept, .. } = self;
        let (header, bytes) = kept?;
        Some(JudgedEntry { header, entry_hash: hash, parent_index, bytes, body, stream, leaf, document })
    }

    fn link(&self) -> Link {
        let Place { revision, parent_hash, .. } = self.row.header;
        Link { revision, parent_index: self.row.parent_index, parent_hash: Hash(parent_hash) }
    }

    /// What is left to judge of it where its stream's beginning is not known. The commit says under which registry.
    fn later(&self) -> Later {
        let h = &self.row.header;
        Later {
            chain: h.chain,
            stream: self.stream,
            link: self.link(),
            hash: self.row.hash,
            index: h.index,
            event_type: h.event_type.to_string(),
            recorded_at_us: h.recorded_at_us,
            has_private: self.body.private_sha256.is_some(),
            payload: self.body.payload.to_canonical(),
            registry_size: 0,
        }
    }
}

/// What is left to judge of a row whose own bytes are right.
struct Row {
    header: Place,
    parent_index: Option<u64>,
    hash: Hash,
    leaf: Hash,
}

/// The fields of a header that say where it belongs.
struct Place {
    chain: u32,
    index: u64,
    prev_hash: [u8; 32],
    revision: u64,
    parent_hash: [u8; 32],
    event_id: [u8; 16],
    event_type: CompactString,
    recorded_at_us: i64,
}

/// A commit whose entries are being taken.
struct Open {
    commit: Commit,
    leaves: Vec<Hash>,
    bytes: u64,
    /// First revision of the key registry among its entries.
    own_revision: Option<u64>,
    /// Signed documents of its entries, by index.
    documents: Vec<(u64, SignedDocument)>,
    /// Entries of it that continue what began before the batch.
    later: Vec<Later>,
}

/// What a batch by itself leaves to whoever knows what was before it.
#[derive(Default)]
struct Loose {
    facts: ChainFacts,
    /// Orders and SKUs that began before.
    earlier: HashSet<Key>,
}

/// A signature to verify.
struct Signed {
    public_key: PublicKey,
    message: Vec<u8>,
    signature: Vec<u8>,
}

/// Where a walk begins.
pub(super) enum Begin<'a> {
    /// At the chain's first entry.
    New,
    /// Where an anchor lets it.
    Since(Box<Start>),
    /// Where it was paused.
    Again(Box<Standing<'a>>),
}

pub(super) struct Walk<'p, 'a> {
    prover: &'p mut Prover<'a>,
    now: Standing<'a>,
}

/// How far a chain was walked, and what is known there.
pub(super) struct Standing<'a> {
    chain: u32,
    last_hash: Hash,
    last_time_us: i64,
    history: History,
    recent: VecDeque<Hash>,
    /// Streams that belong to no case.
    system: HashMap<Stream, Tip>,
    states: States<'a>,
    /// The incomplete run of event ids.
    ids: Vec<[u8; 10]>,
    documents: VecDeque<Vec<Cell>>,
    /// Where further private documents come from, if not with the pieces.
    more_documents: Option<Receiver<Fed>>,
    commits: VecDeque<Vec<Cell>>,
    signatures: VecDeque<Vec<Cell>>,
    checkpoints: VecDeque<Vec<Cell>>,
    open: Option<Open>,
    jobs: Vec<Signed>,
    /// Whether the signatures of earlier pieces are good, in turn.
    verdicts: VecDeque<Receiver<bool>>,
    /// Idempotency keys with a row, by a hash under a secret of this run.
    keys: HashSet<u64>,
    secret: RandomState,
    last_key: Option<Hash>,
    /// Largest registry size that a commit named.
    floor: u64,
    /// Anchors of this chain by size, with their place among all.
    anchors: VecDeque<(u64, usize)>,
    /// What chain 0 says of this chain, by size.
    heads: VecDeque<(u64, Hash, Hash)>,
    /// How much of what it says was looked at for that.
    claims: usize,
    /// Rows of projections before this chain.
    rows_before: u64,
    /// Present where a batch is judged by itself.
    loose: Option<Loose>,
    report: ChainReport,
}

impl Standing<'_> {
    /// How many entries of the chain were judged, or lie before where it began.
    pub(super) fn size(&self) -> u64 {
        self.history.range.size()
    }

    /// Whether the chain had this root and this last entry at a size that is not long ago.
    fn was(&self, size: u64, root: &Hash, last_hash: &Hash) -> bool {
        let found = match self.size().checked_sub(size) {
            Some(0) => Some(self.last_hash),
            Some(_) if size == 0 => Some(Hash::ZERO),
            // Entry hashes up to the last one; `back` of them are beyond the size.
            Some(back) => self.recent.len().checked_sub(1 + back as usize).map(|i| self.recent[i]),
            None => None,
        };
        found == Some(*last_hash) && self.history.root(size) == Some(*root)
    }
}

impl<'p, 'a> Walk<'p, 'a> {
    pub(super) fn new(prover: &'p mut Prover<'a>, chain: u32) -> Walk<'p, 'a> {
        let mut heads: Vec<_> =
            prover.heads.iter().filter(|h| h.chain == chain).map(|h| (h.size, h.root, h.last_hash)).collect();
        heads.sort_by_key(|h| h.0);
        let of_chain = prover.anchors.iter().enumerate().filter(|(_, (_, k, _))| *k == Some(chain));
        let mut anchors: Vec<_> = of_chain.map(|(at, (anchor, ..))| (anchor.size(), at)).collect();
        anchors.sort_unstable();
        let rows_before = projection_rows(&prover.sums);
        let hot = if prover.taker.is_some() {
            // Whoever takes the lines remembers states too.
            HOT / 8
        } else if prover.sums.kept.is_some() {
            // Walks of all chains may be paused at once, and what is looked up takes room.
            HOT / 4 / prover.genesis.chains.max(1) as usize
        } else {
            HOT
        };
        let states = States::new(chain, prover.key, hot);
        let now = Standing {
            chain,
            last_hash: Hash::ZERO,
            last_time_us: 0,
            history: History::default(),
            recent: VecDeque::new(),
            system: HashMap::new(),
            states,
            ids: Vec::new(),
            documents: VecDeque::new(),
            more_documents: None,
            commits: VecDeque::new(),
            signatures: VecDeque::new(),
            checkpoints: VecDeque::new(),
            open: None,
            jobs: Vec::new(),
            verdicts: VecDeque::new(),
            keys: HashSet::new(),
            secret: RandomState::new(),
            last_key: None,
            floor: 0,
            anchors: anchors.into(),
            heads: heads.into(),
            claims: prover.heads.len(),
            rows_before,
            loose: None,
            report: ChainReport { chain: chain.into(), ..ChainReport::default() },
        };
        Walk { prover, now }
    }

    pub(super) fn begin(prover: &'p mut Prover<'a>, chain: u32, at: Begin<'a>) -> Result<Walk<'p, 'a>, Stop> {
        match at {
            Begin::New => Ok(Walk::new(prover, chain)),
            Begin::Since(start) => Ok(Walk::resume(prover, chain, *start)),
            Begin::Again(now) => Walk::carry_on(prover, *now),
        }
    }

    /// Begins where an anchor lets it.
    fn resume(prover: &'p mut Prover<'a>, chain: u32, start: Start) -> Walk<'p, 'a> {
        let mut walk = Walk::new(prover, chain);
        walk.now.report.entries = start.history.range.size();
        walk.now.report.from = walk.now.report.entries;
        walk.now.history = start.history;
        (walk.now.last_hash, walk.now.last_time_us, walk.now.ids) = (start.last_hash, start.last_time_us, start.ids);
        walk.now.recent.push_back(walk.now.last_hash);
        let from = walk.size();
        // What was said of smaller sizes was compared with the tree before the anchor.
        walk.now.anchors.retain(|(size, _)| *size >= from);
        walk.now.heads.retain(|(size, ..)| *size >= from);
        walk
    }

    /// Stops for now, between two commits. Nothing that ends a chain is judged.
    pub(super) fn pause(mut self) -> Result<Standing<'a>, Stop> {
        check(self.now.open.is_none(), "where what was read first ends")?;
        self.await_verdicts(0)?;
        self.now.rows_before = projection_rows(&self.prover.sums).wrapping_sub(self.now.rows_before);
        self.prover.judged += self.size();
        Ok(self.now)
    }

    /// Goes on after a pause.
    fn carry_on(prover: &'p mut Prover<'a>, mut now: Standing<'a>) -> Result<Walk<'p, 'a>, Stop> {
        now.rows_before = projection_rows(&prover.sums).wrapping_sub(now.rows_before);
        prover.judged -= now.size();
        let claims = prover.heads.get(now.claims..).unwrap_or_default();
        let of_chain = claims.iter().filter(|h| h.chain == now.chain);
        let (before, mut heads): (Vec<_>, Vec<_>) =
            of_chain.map(|h| (h.size, h.root, h.last_hash)).partition(|h| h.0 < now.size());
        for (size, root, last_hash) in before {
            check(now.was(size, &root, &last_hash), "what chain.heads says")?;
        }
        heads.sort_by_key(|h| h.0);
        now.heads.extend(heads);
        now.claims = prover.heads.len();
        Ok(Walk { prover, now })
    }

    /// Begins where a batch does: `range` is the tree before it, `last_hash` its last entry.
    pub(super) fn batch(prover: &'p mut Prover<'a>, chain: u32, range: CompactRange, last_hash: Hash) -> Walk<'p, 'a> {
        let mut walk = Walk::new(prover, chain);
        let from = range.size();
        (walk.now.report.entries, walk.now.report.from, walk.now.last_hash) = (from, from, last_hash);
        walk.now.history = History::begun(range);
        walk.now.recent.push_back(last_hash);
        walk.now.loose = Some(Loose { facts: ChainFacts { chain, from, ..ChainFacts::default() }, ..Loose::default() });
        walk
    }

    /// Takes what lies before the walk began.
    fn earlier(&mut self, earlier: Vec<Earlier>) -> Result<(), Stop> {
        for item in earlier {
            match item {
                Earlier::State(key, held) => self.now.states.put(key, held, &mut self.prover.sums)?,
                Earlier::Tip(stream, tip) => drop(self.now.system.insert(stream, tip)),
                Earlier::Listed(listing) => drop(self.prover.listed.insert(listing)),
            }
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.now.size()
    }

    /// Judges a piece.
    pub(super) fn take(&mut self, piece: Piece) -> Result<(), Stop> {
        self.earlier(piece.earlier)?;
        self.now.documents.extend(piece.documents);
        self.now.commits.extend(piece.commits);
        self.now.signatures.extend(piece.signatures);
        self.now.checkpoints.extend(piece.checkpoints);
        let id = self.prover.ledger_id;
        let prepared: Vec<Option<Prepared>> = piece.entries.par_iter().map(|cells| prepare(cells, &id)).collect();
        drop(piece.entries);
        for entry in prepared {
            let Some(entry) = entry else { return suspect("an entry's own bytes") };
            drop(self.entry(&entry)?);
        }
        self.signed()
    }

    /// Judges lines of an export, which stand exactly where they belong.
    pub(super) fn take_items(&mut self, items: Vec<Item>) -> Result<(), Stop> {
        for item in items {
            match item {
                Item::Entry(entry) => {
                    let document = self.entry(&entry)?;
                    if let Some(entry) = entry.judged(document) {
                        self.hand_over(Judged::Entry(Box::new(entry)))?;
                    }
                }
                Item::Kept(line) => self.hand_over(line)?,
                Item::Commit(first, row, signatures) => {
                    check(self.now.open.is_none() && first == self.size(), "the place of a commit's line")?;
                    self.now.commits.push_back(row);
                    self.now.signatures.extend(signatures);
                }
                Item::Checkpoint(size, row) => {
                    check(size == self.size(), "the place of a checkpoint's line")?;
                    self.now.checkpoints.push_back(row);
                }
                Item::Private(_) => return suspect("a private document among entries"),
                Item::End(size, hash) => {
                    let ends = size == self.size() && hash.is_none_or(|hash| hash == self.now.last_hash);
                    check(ends, "where a file ends")?;
                }
            }
        }
        self.signed()
    }

    /// Gives a line to whoever takes what is judged.
    fn hand_over(&mut self, line: Judged) -> Result<(), Stop> {
        match self.prover.taker {
            Some(taker) if !taker.take(line) => Err(Stop::Asked(self.prover.judged + self.size())),
            _ => Ok(()),
        }
    }

    /// Has the signatures verified that wait, by others: nothing else depends on what they find. All of it is known in the end.
    fn signed(&mut self) -> Result<(), Stop> {
        let jobs = std::mem::take(&mut self.now.jobs);
        if !jobs.is_empty() {
            let (sender, receiver) = sync_channel(1);
            let keys = Arc::clone(&self.prover.keys);
            rayon::spawn(move || {
                let good = jobs.par_iter().all(|j| keys.verify(&j.public_key, &j.message, &j.signature));
                // Nobody waits for it if the walk has stopped.
                let _ = sender.send(good);
            });
            self.now.verdicts.push_back(receiver);
        }
        self.await_verdicts(VERDICTS)
    }

    /// Waits until at most `open` pieces' signatures are not verified.
    fn await_verdicts(&mut self, open: usize) -> Result<(), Stop> {
        while self.now.verdicts.len() > open {
            let Some(first) = self.now.verdicts.pop_front() else { break };
            check(first.recv() == Ok(true), "the signature of a commit or a document")?;
        }
        Ok(())
    }

    /// Private documents come by this channel.
    pub(super) fn with_documents(mut self, documents: Receiver<Fed>) -> Walk<'p, 'a> {
        self.now.more_documents = Some(documents);
        self
    }

    /// Waits until there is a private document, or there are no more.
    fn await_document(&mut self) -> Result<(), Stop> {
        while self.now.documents.is_empty()
            && let Some(more) = &self.now.more_documents
        {
            let Ok(items) = more.recv() else {
                self.now.more_documents = None;
                break;
            };
            for item in items? {
                match item {
                    Item::Private(row) => self.now.documents.push_back(row),
                    Item::End(..) => {}
                    _ => return suspect("a line that is no private document"),
                }
            }
        }
        Ok(())
    }

    /// Tells how far it is. `Err`: the caller asked to stop.
    pub(super) fn tell(&mut self) -> Result<(), Stop> {
        let judged = self.prover.judged + self.size();
        if self.prover.progress.is_none_or(|told| told(judged, self.prover.claimed_size)) {
            return Ok(());
        }
        self.await_verdicts(0)?;
        Err(Stop::Asked(judged))
    }

    /// Judges an entry. Returns its private document, if somebody takes it.
    fn entry(&mut self, entry: &Prepared) -> Result<Option<Vec<u8>>, Stop> {
        let (h, index) = (&entry.row.header, self.size());
        self.at_size()?;
        check(h.index == index && h.chain == self.now.chain, "the place of an entry")?;
        check(h.prev_hash == self.now.last_hash.0, "the link to the entry before")?;
        check(h.recorded_at_us >= self.now.last_time_us, "the time of an entry")?;
        check(entry.stream.chain(self.prover.genesis.chains) == self.now.chain, "the chain of a stream")?;
        let document = self.document(entry)?;
        let bytes = entry.bytes + document.as_ref().map_or(0, |d| d.len() as u64);
        if let Some(meta) =
            entry.body.meta.as_ref().filter(|m| needs_idempotency_row(entry.stream, h.revision, &m.idem))
        {
            self.idempotency(&meta.idem, index)?;
        }
        if let Some(loose) = &mut self.now.loose {
            loose.facts.first_time_us.get_or_insert(h.recorded_at_us);
        }
        let (signed, later) = match self.later(entry) {
            None => (self.fold(entry)?, None),
            later => (None, later),
        };
        let registry = (entry.stream == Stream::Ledger).then_some(h.revision);
        self.commit((index, entry.row.leaf, entry.row.hash), bytes, registry, (signed, later))?;
        self.now.last_hash = entry.row.hash;
        self.now.last_time_us = h.recorded_at_us;
        self.grow(entry)?;
        self.now.report.entries += 1;
        self.now.report.count(&h.event_type, h.recorded_at_us);
        Ok(document.filter(|_| self.prover.taker.is_some()))
    }

    /// What is said of the chain at the size that it now has.
    fn at_size(&mut self) -> Result<(), Stop> {
        let size = self.size();
        while let Some((_, root, last)) = self.now.heads.pop_front_if(|h| h.0 == size) {
            check(root == self.now.history.range.root() && last == self.now.last_hash, "what chain.heads says")?;
        }
        while let Some((root, last)) = self.prover.claims.take(self.now.chain, size).map_err(spilled)? {
            check(root == self.now.history.range.root() && last == self.now.last_hash, "what chain.heads says")?;
        }
        while let Some((_, at)) = self.now.anchors.pop_front_if(|(s, _)| *s == size) {
            let (anchor, _, held) = &mut self.prover.anchors[at];
            *held = Some(anchor.root() == self.now.history.range.root());
        }
        while let Some(cells) = self.now.checkpoints.pop_front_if(|cells| cells.get(1).and_then(number) == Some(size)) {
            let judge = CheckpointJudge {
                ledger_id: self.prover.ledger_id,
                origin: &self.prover.genesis.origin,
                registry: &self.prover.registry,
                chain: self.now.chain,
                doubtful: false,
            };
            let judged = judge.judge(&cells, size, size, |_| Some(self.now.history.range.root()));
            let Ok(signed) = judged else { return suspect("a checkpoint") };
            if let Some(loose) = &mut self.now.loose {
                // A later batch may retire the key with a smaller size.
                judge.signers(&cells).iter().for_each(|kid| loose.facts.signed(kid, size));
            }
            check(self.now.checkpoints.front().is_none_or(|next| next.get(1) != cells.get(1)), "a second checkpoint")?;
            self.now.report.checkpoints += 1;
            if signed.is_some() {
                self.now.report.covered = signed;
                self.now.report.checkpoint = cells.get(3).and_then(text).map(str::to_owned);
            }
        }
        Ok(())
    }

    /// Checks the private document of an entry, and returns it.
    fn document(&mut self, entry: &Prepared) -> Result<Option<Vec<u8>>, Stop> {
        let index = entry.row.header.index;
        if entry.body.private_sha256.is_some() {
            self.await_document()?;
        }
        let found = self.now.documents.pop_front_if(|cells| cells.get(1).and_then(number) == Some(index));
        match (&entry.body.private_sha256, found) {
            (None, None) => Ok(None),
            (Some(_), None) => {
                self.now.report.private_redacted += 1;
                Ok(None)
            }
            (Some(named), Some(cells)) => {
                let document = match cells.into_iter().nth(2) {
                    Some(Cell::Blob(document)) if document.len() <= BODY_BYTES_MAX => Some(document),
                    _ => None,
                };
                check(document.as_ref().is_some_and(|d| sha256(&[d]) == *named), "a private document")?;
                self.now.report.private_present += 1;
                Ok(document)
            }
            (None, Some(_)) => suspect("a private document that no entry names"),
        }
    }

    /// The first entry with a key has a row. A command that made two entries made them next to each other.
    fn idempotency(&mut self, idem: &Hash, index: u64) -> Result<(), Stop> {
        let Some(key) = self.prover.key.filter(|_| self.now.last_key != Some(*idem)) else { return Ok(()) };
        self.now.last_key = Some(*idem);
        check(self.now.keys.insert(self.now.secret.hash_one(idem)), "an idempotency key that comes again")?;
        let row = idempotency_row(self.now.chain, idem, index);
        self.prover.sums.add(key, row.table.name, &row.cells);
        Ok(())
    }

    /// The entry, if it continues an order or SKU that began before the batch.
    fn later(&mut self, entry: &Prepared) -> Option<Later> {
        let loose = self.now.loose.as_mut()?;
        let h = &entry.row.header;
        let (key, begins) = match entry.stream {
            Stream::Order(case) => ((false, case), h.revision == 1),
            Stream::Delivery(case, _) => ((false, case), false),
            Stream::Sku(case) => ((true, case), h.revision == 1),
            Stream::Legacy => return Some(entry.later()),
            _ => return None,
        };
        if !loose.earlier.contains(&key) {
            if begins || self.now.states.has(&key) {
                return None;
            }
            loose.earlier.insert(key);
        }
        Some(entry.later())
    }

    /// Continues the entry's stream and applies its event. Returns the event's signed document.
    fn fold(&mut self, entry: &Prepared) -> Result<Option<SignedDocument>, Stop> {
        let h = &entry.row.header;
        let link = entry.link();
        let event = Occurrence {
            stream: entry.stream,
            revision: h.revision,
            event_type: &h.event_type,
            payload: &entry.body.payload,
            index: h.index,
            recorded_at_us: h.recorded_at_us,
            has_private: entry.body.private_sha256.is_some(),
        };
        if h.index == 0 {
            self.first(entry)?;
        }
        let key = match entry.stream {
            Stream::Order(case) | Stream::Delivery(case, _) => (false, case),
            Stream::Sku(case) => (true, case),
            Stream::Ledger | Stream::Heads | Stream::Legacy | Stream::Exports | Stream::Chain(_) => {
                let tip = self.now.system.get(&entry.stream);
                match &mut self.now.loose {
                    Some(loose) if tip.is_none() && h.revision > 1 => {
                        loose.facts.links.push((entry.stream, link, h.index));
                    }
                    _ => check(link.follows(tip), "the stream's links")?,
                }
                let tip = link.tip_after(tip, entry.row.hash, h.index);
                self.now.report.streams += u64::from(h.revision == 1);
                self.now.system.insert(entry.stream, tip);
                return self.system_event(entry, &event).map(|()| None);
            }
        };
        let held = self.now.states.get(key, &mut self.prover.sums)?;
        let Some(begins) = held.follow(entry.stream, &link, entry.row.hash, h.index) else {
            return suspect("the stream's links");
        };
        self.now.report.streams += u64::from(begins);
        let Ok(Effects { signed, listed, claimed }) = held.apply(&event) else {
            return suspect("an event that is not allowed");
        };
        self.prover.listed.extend(listed);
        if let Some(claim) = claimed.filter(|claim| !self.prover.listed.contains(claim)) {
            self.prover.claimed.entry(claim).or_insert((self.now.chain, h.index));
        }
        Ok(signed)
    }

    /// The genesis entry of a chain.
    fn first(&mut self, entry: &Prepared) -> Result<(), Stop> {
        let h = &entry.row.header;
        let made = match entry.stream {
            Stream::Ledger => {
                h.event_type == "ledger.created"
                    && Genesis::ledger_id(&entry.body.encode()) == self.prover.ledger_id
                    && self.prover.registry.head(1) == Some(entry.row.hash)
            }
            Stream::Chain(k) => {
                let payload = Object::new().with("chain", i64::from(k));
                h.event_type == "chain.created" && entry.body.actor_id == "system" && entry.body.payload == payload
            }
            _ => false,
        };
        check(made, "a genesis entry")
    }

    fn system_event(&mut self, entry: &Prepared, event: &Occurrence<'_>) -> Result<(), Stop> {
        let h = &entry.row.header;
        match (entry.stream, h.event_type.as_str()) {
            (Stream::Ledger, kind) if kind.starts_with("key.") => {
                let (ledger_id, parent_hash) = (self.prover.ledger_id, Hash(h.parent_hash));
                let place = RegistryPlace {
                    ledger_id: &ledger_id,
                    revision: h.revision,
                    parent_hash: &parent_hash,
                    index: h.index,
                };
                let applied = self.prover.registry.apply(kind, &entry.body.payload, place, entry.row.hash);
                check(applied.is_ok(), "a change of keys")
            }
            (Stream::Legacy, _) => {
                let Ok(next) = Adoption::follow(self.prover.adopted.last(), event) else {
                    return suspect("an adoption of legacy rows");
                };
                self.prover.adopted.push(next);
                Ok(())
            }
            (Stream::Exports, _) => {
                check(ExportEvent::read(event, self.prover.genesis.chains).is_ok(), "the record of an export")
            }
            (Stream::Heads, "chain.heads") => self.heads_event(&entry.body.payload),
            _ => check(h.index == 0, "an event of no stream"),
        }
    }

    fn heads_event(&mut self, payload: &Object) -> Result<(), Stop> {
        let chains = self.prover.genesis.chains;
        let items = payload.value("heads").and_then(Value::as_array).filter(|_| payload.len() == 1).unwrap_or_default();
        check(items.len() == chains as usize, "the form of chain.heads")?;
        for (chain, item) in (0..chains).zip(items) {
            let Some(head) = item.as_object().filter(|o| o.len() == 4) else {
                return suspect("the form of chain.heads");
            };
            let int = |name| head.value(name).and_then(Value::as_int).and_then(|n| u64::try_from(n).ok());
            let hash = |name| head.value(name).and_then(Value::as_str).and_then(Hash::from_hex);
            let (Some(number), Some(size), Some(root), Some(last)) =
                (int("chain"), int("size"), hash("root"), hash("head_hash"))
            else {
                return suspect("the form of chain.heads");
            };
            check(number == u64::from(chain), "the form of chain.heads")?;
            if chain > 0 {
                let index = self.size();
                self.prover.named.name(index, chain, size);
                if !self.prover.claims.push(chain, size, &root, &last).map_err(spilled)? {
                    check(self.prover.heads.len() < CLAIMS_MAX, "so much that chain.heads says")?;
                    self.prover.heads.push(HeadClaim { index, chain, size, root, last_hash: last });
                }
                continue;
            }
            check(self.now.was(size, &root, &last), "what chain.heads says")?;
        }
        Ok(())
    }

    fn commit(
        &mut self,
        (index, leaf, entry): (u64, Hash, Hash),
        bytes: u64,
        registry: Option<u64>,
        (signed, later): (Option<SignedDocument>, Option<Later>),
    ) -> Result<(), Stop> {
        if self.now.open.is_none() {
            let Some(commit) = self.now.commits.pop_front().as_deref().and_then(read_commit) else {
                return suspect("an entry in no commit");
            };
            check(commit.first == index, "where a commit begins")?;
            let leaves = Vec::with_capacity(commit.size as usize);
            let (documents, later) = Default::default();
            self.now.open = Some(Open { commit, leaves, bytes: 0, own_revision: None, documents, later });
        }
        let Some(open) = &mut self.now.open else { return suspect("no commit") };
        open.leaves.push(leaf);
        open.bytes += bytes;
        open.own_revision = open.own_revision.or(registry);
        open.documents.extend(signed.map(|document| (index, document)));
        open.later.extend(later);
        let complete = open.leaves.len() as u64 == open.commit.size;
        check(registry.is_none() || complete || index == 0, "a change of keys within a commit")?;
        if complete && let Some(open) = self.now.open.take() {
            self.close(open, entry)?;
        }
        Ok(())
    }

    /// Steps 4.3 to 4.6 for a commit whose entries are all there.
    fn close(&mut self, open: Open, last_hash: Hash) -> Result<(), Stop> {
        let Commit { first, size, registry_size, registry_head } = open.commit;
        check(open.bytes <= COMMIT_BYTES_MAX as u64, "the size of a commit")?;
        let registry = &self.prover.registry;
        let position = if self.now.chain == 0 && first == 0 {
            (registry_size, registry_head) == (0, Hash::ZERO)
        } else {
            registry_size > 0 && registry.head(registry_size) == Some(registry_head)
        };
        let before_own = self.now.chain > 0 || open.own_revision.is_none_or(|own| registry_size < own);
        check(position && registry_size >= self.now.floor && before_own, "a commit's place in the registry")?;
        self.now.floor = registry_size;
        if let Some(loose) = &mut self.now.loose {
            loose.facts.first_registry_size.get_or_insert(registry_size);
        }
        let statement = Statement {
            ledger_id: self.prover.ledger_id,
            chain: self.now.chain,
            first_index: first,
            size: size as u32,
            root: merkle::root(&open.leaves),
            last_hash,
            registry_size,
            registry_head,
        };
        let mut kids: Vec<String> = Vec::new();
        while let Some(cells) = self.now.signatures.pop_front_if(|cells| cells.get(1).and_then(number) == Some(first)) {
            let (Some(kid), Some(alg), Some(signature)) = (
                cells.get(2).and_then(text),
                cells.get(3).and_then(number).and_then(|a| u8::try_from(a).ok()),
                cells.get(4).and_then(blob),
            ) else {
                return suspect("a signature's columns");
            };
            let Ok(key) = registry.commit_key(kid, alg, self.now.chain, first + size, registry_size) else {
                return suspect("a signature's key");
            };
            check(kids.iter().all(|k| k != kid), "a second signature by one key")?;
            kids.push(kid.to_owned());
            if let Some(loose) = &mut self.now.loose {
                loose.facts.signed(kid, first + size);
            }
            let message = statement.to_bytes(ALG_ED25519, kid);
            self.now.jobs.push(Signed { public_key: key.public_key.clone(), message, signature: signature.to_vec() });
        }
        for (index, document) in open.documents {
            let (ledger_id, chain) = (&self.prover.ledger_id, self.now.chain);
            let place = DocumentPlace { ledger_id, chain, index, registry_size };
            let Ok((key, message)) = document.claim(registry, place) else {
                return suspect("the key of a signed document");
            };
            if let Some(loose) = &mut self.now.loose {
                loose.facts.signed(&document.kid, index + 1);
            }
            let (public_key, signature) = (key.public_key.clone(), document.signature);
            self.now.jobs.push(Signed { public_key, message, signature });
        }
        for later in open.later {
            self.prover.loose(&Record::Later(Later { registry_size, ..later }))?;
        }
        check((1..=COMMIT_SIGNATURES_MAX).contains(&kids.len()), "the number of a commit's signatures")?;
        self.now.report.commits += 1;
        self.now.report.signatures += kids.len() as u64;
        Ok(())
    }

    /// Takes the entry into the tree and the runs of ids.
    fn grow(&mut self, entry: &Prepared) -> Result<(), Stop> {
        let (chain, key, sums) = (self.now.chain, self.prover.key, &mut self.prover.sums);
        self.now.history.push(entry.row.leaf, &mut |level, n, hashes| {
            let Some(key) = key else { return };
            let cells = [chain.into(), level.into(), n.into(), Cell::Blob(hashes)];
            sums.add(key, "tiles", &cells);
        });
        if self.now.recent.len() == RECENT {
            self.now.recent.pop_front();
        }
        self.now.recent.push_back(entry.row.hash);
        let Some(key) = key else { return Ok(()) };
        let mut id = [0; 10];
        id[..8].copy_from_slice(&entry.row.header.event_id[..8]);
        id[8..].copy_from_slice(&(self.now.ids.len() as u16).to_le_bytes());
        self.now.ids.push(id);
        if self.now.ids.len() as u64 == RUN_ENTRIES {
            self.now.ids.sort_unstable();
            let run = self.size() / RUN_ENTRIES - 1;
            let cells = [chain.into(), run.into(), Cell::Blob(self.now.ids.concat())];
            self.prover.sums.add(key, "event_id_runs", &cells);
            self.now.ids.clear();
        }
        Ok(())
    }

    /// The end of the chain: nothing may be left over, and its rows of the derived tables are complete.
    pub(super) fn finish(mut self) -> Result<ChainReport, Stop> {
        self.at_size()?;
        self.await_verdicts(0)?;
        self.await_document()?;
        check(self.size() > 0 && self.now.open.is_none(), "the end of the chain")?;
        let compromised = |r: &KeyRecord| r.retired.as_ref().is_some_and(|r| r.compromised_since.is_some());
        // Of a batch, whoever joins it to the others says what rests on such a key.
        let doubtful = self.now.loose.is_none() && self.prover.registry.records().iter().any(compromised);
        check(!doubtful, "a compromised key")?;
        let left =
            self.now.documents.len() + self.now.commits.len() + self.now.signatures.len() + self.now.checkpoints.len();
        let claimed = !self.now.heads.is_empty() || self.prover.claims.left(self.now.chain);
        check(left == 0 && !claimed, "rows beyond the end of the chain")?;
        let (chain, size) = (self.now.chain, self.size());
        self.prover.judged += size;
        self.now.report.head = Some(self.now.last_hash);
        self.now.report.root = Some(self.now.history.range.root());
        if let Some(Loose { mut facts, .. }) = self.now.loose.take() {
            let mut kept = Ok(());
            self.now.states.each(|key, held| {
                if kept.is_ok() {
                    kept = self.prover.loose(&Record::Held(*key, held));
                }
            })?;
            kept?;
            facts.last_time_us = self.now.last_time_us;
            facts.last_registry_size = self.now.floor;
            facts.tips = self.now.system.into_iter().collect();
            facts.tips.sort_by_key(|(_, tip)| tip.index);
            facts.report = self.now.report.clone();
            self.prover.facts.push(facts);
            return Ok(self.now.report);
        }
        let Some(key) = self.prover.key else { return Ok(self.now.report) };
        let sums = &mut self.prover.sums;
        let mut add = |table: &'static str, cells: &[Cell]| sums.add(key, table, cells);
        let head = Cell::Blob(self.now.last_hash.0.to_vec());
        add("chain_heads", &[chain.into(), size.into(), head, Cell::Blob(self.now.history.range.to_bytes())]);
        for table in TABLES {
            add("cursors", &[table.name.into(), chain.into(), size.into()]);
        }
        for (stream, tip) in &self.now.system {
            add("stream_heads", &head_row(chain, *stream, tip));
        }
        self.now.states.finish(sums)?;
        self.now.report.projection_rows = Some(projection_rows(sums).wrapping_sub(self.now.rows_before));
        Ok(self.now.report)
    }
}

fn projection_rows(sums: &Sums) -> u64 {
    TABLES.iter().filter_map(|t| sums.by_table.get(t.name)).map(|s| s.rows).sum()
}

fn prepare(cells: &[Cell], ledger_id: &Hash) -> Option<Prepared> {
    let (row, body) = read_entry(cells, ledger_id)?;
    Prepared::new(&row.header, &row.digests, row.entry_hash, row.parent_index, body)
}
