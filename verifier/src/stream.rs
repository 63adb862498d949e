//! One order's, delivery's or SKU's history alone: its entries by their links back, each with its commit, its path to the last
//! checkpoint, and the keys behind them. The cost is that of the history, not of the ledger.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use ledger_engine::body::Body;
use ledger_engine::commit::{COMMIT_SIGNATURES_MAX, CommitSignature};
use ledger_engine::document::SignedDocument;
use ledger_engine::domain::case::{Case, ListingClaim};
use ledger_engine::domain::projection::Cell;
use ledger_engine::domain::sku::Sku;
use ledger_engine::domain::{Illegal, Occurrence};
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::merkle;
use ledger_engine::proof::{ProvenCommit, SignedCheckpoint};
use ledger_engine::stream::{CaseId, Stream};

use crate::anchor::Anchor;
use crate::collector::Collector;
use crate::commits::Commit;
use crate::finding::Code;
use crate::report::{KeyReport, Part, Report, or_none};
use crate::row::{blob, hash, number, read_entry, text};
use crate::single::{Fault, Known, Own, fault, included, private_document};
use crate::source::{SourceError, Tables};
use crate::stored::{Histories, Lost, Read, StoredChain};
use crate::verify::Demands;

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// An order with its deliveries; one of them may have been named.
    Case(CaseId),
    Sku(CaseId),
}

impl Subject {
    fn parse(text: &str) -> Option<Subject> {
        match Stream::parse(text) {
            Some(Stream::Order(case) | Stream::Delivery(case, _)) => Some(Subject::Case(case)),
            Some(Stream::Sku(case)) => Some(Subject::Sku(case)),
            _ => CaseId::parse(text).map(Subject::Case),
        }
    }

    /// The stream that it cannot be without.
    fn stream(self) -> Stream {
        match self {
            Subject::Case(case) => Stream::Order(case),
            Subject::Sku(case) => Stream::Sku(case),
        }
    }
}

/// Judges one history of a ledger: `id` is an order's id, or the name of a stream of an order, a delivery or a SKU.
pub fn verify_stream(path: &Path, id: &str, demands: Demands<'_>) -> Report {
    let name = crate::name_of(&path.display().to_string());
    let Some(subject) = Subject::parse(id) else {
        let why = format!("{id:?} is no order's id (32 hex characters) and no stream of an order, a delivery or a SKU");
        return Report::unreadable(&name, &why);
    };
    match crate::open(path, &demands) {
        Ok(tables) => {
            let judged = judge(&name, &*tables, subject, &demands);
            let judged = judged.unwrap_or_else(|e| Report::unreadable(&name, &e.to_string())).of_kind(tables.kind());
            let judged = match tables.export() {
                Some(export) => judged.of_export(export.to_string()),
                None => judged,
            };
            tables.doubt().map_or(judged, |e| Report::unreadable(&name, &e.to_string()))
        }
        Err(e) => Report::unreadable(&name, &e.to_string()),
    }
}

fn judge(name: &str, tables: &dyn Tables, subject: Subject, demands: &Demands<'_>) -> Result<Report, SourceError> {
    let mut out = Collector::default();
    if let Some(export) = tables.export() {
        // To find the streams all lines are read, so what is wrong with the files is known.
        export.findings()?.into_iter().for_each(|finding| out.add(finding));
    }
    let mut part = Part::new("stream");
    let mut unchecked = Vec::new();
    let (_, genesis) = tables.ledger_and_genesis()?;
    let body = genesis.as_ref().and_then(|cells| blob(cells.get(14)?)).unwrap_or_default();
    let id = ledger_engine::genesis::Genesis::ledger_id(body);
    let first = genesis.as_ref().and_then(|cells| read_entry(cells, &id)).map(|(row, _)| row);
    let known = first.map(|row| Known::from_genesis(&row.header, body));
    let known = known.unwrap_or_else(|| fault(Code::EntryMissing, "the genesis entry"));
    let Some(mut known) = out.take(known, 0, "entries/0".into()) else {
        return Ok(Report::new(name, None, None, demands, out.complete()?, Vec::new(), unchecked).of_part(part));
    };
    if let Some(trust) = demands.trust.filter(|t| *t != known.ledger_id) {
        let why = format!("the genesis gives {id}; pinned is {trust}");
        out.report(Code::LedgerIdMismatch, None, "ledger".into(), why);
    }
    let mut run =
        Run { tables, id, chains: BTreeMap::new(), reads: BTreeMap::new(), documents: HashMap::new(), whole: true };
    run.registry(&mut known, &mut out)?;
    let stream = subject.stream();
    let home = stream.chain(known.genesis.chains);
    let Some(streams) = run.subject(subject, home, &mut out)? else {
        let why = match tables.export() {
            Some(_) => format!("the export has no entry of {stream}: look for it in another, or in the ledger"),
            None => format!(
                "stream_heads has no {stream}: either there is no such history, or its row was deleted; verify the whole ledger"
            ),
        };
        return Ok(Report::unreadable(name, &why));
    };
    let own: Vec<(u32, u64)> = run.reads.get(&home).into_iter().flatten().map(|(i, _)| (home, *i)).collect();
    let own: Vec<_> = own.into_iter().filter(|(k, i)| streams.contains(&run.reads[k][i].row.header.stream)).collect();
    let (claims, documents) = run.fold(subject, home, &streams, &mut out);
    run.documents = documents;
    for claim in claims {
        run.listing(&claim, &known, &mut out)?;
    }
    let mut hashes = Vec::new();
    let mut covered = Covered::default();
    for chain in run.reads.keys().copied().collect::<Vec<_>>() {
        run.chain((chain, home), &known, demands.anchors, &mut out, &mut covered)?;
    }
    for (chain, index) in &own {
        hashes.extend_from_slice(&run.reads[chain][index].row.digests.hash.0);
        let anchored = covered.anchored.get(chain).is_some_and(|size| index < size);
        let kids = covered.kids.get(&(*chain, *index)).map(Vec::as_slice).unwrap_or_default();
        unchecked.extend(known.compromised(*chain, *index, kids).filter(|_| !anchored));
        if demands.require_anchor && !anchored {
            unchecked.push(format!("chain {chain}: no anchor covers entry {index}"));
        }
    }
    for anchor in demands.anchors {
        let chain = anchor.chain(&known.genesis.origin, &id, known.genesis.chains);
        unchecked.extend(anchor.unusable(chain, &known.registry));
    }
    let read: usize = run.reads.values().map(BTreeMap::len).sum();
    let total = tables.keyed("chain_heads", &[home.into()])?;
    let total = total.first().and_then(|cells| number(cells.get(1)?)).unwrap_or_default();
    part.checked.push(format!(
        "{} entries of {}: hashes, bodies, links, revisions, transitions, private documents, and with each its commit's signatures",
        own.len(),
        streams.join(", ")
    ));
    let cited = read - own.len();
    part.checked.push(format!("{cited} entries that they rest on (key registry, price listings), in the same way"));
    part.checked.extend(covered.checked);
    part.not_covered.extend(covered.not_covered);
    let others = format!("all other entries of the ledger (chain {home} claims {total})");
    part.not_covered.extend(match tables.export() {
        Some(_) => [
            "later revisions of these streams: a history does not show that its end is missing, nor does a manifest that is not signed".to_owned(),
            format!("{others}; verify the export without --stream"),
        ],
        None => [
            "later revisions of these streams: a history does not show that its end is missing, nor does stream_heads prove it".to_owned(),
            format!("{others}, their projections, and the database file as a whole"),
        ],
    });
    let origin = Some(known.genesis.origin.clone());
    let digest = sha256(&[b"ledger/stream/v1\0", &id.0, &hashes]);
    let keys = KeyReport::all(&known.registry);
    let report = Report::new(name, Some(id), origin, demands, out.complete()?, Vec::new(), unchecked);
    Ok(report.with_keys(keys).of_part(part).with_digest(digest))
}

/// What signed roots cover of the entries that were read.
#[derive(Default)]
struct Covered {
    /// Size by chain.
    anchored: BTreeMap<u32, u64>,
    /// Who signed the commit, a document or the checkpoint over it, by place.
    kids: HashMap<(u32, u64), Vec<String>>,
    checked: Vec<String>,
    not_covered: Vec<String>,
}

struct Run<'a> {
    tables: &'a dyn Tables,
    id: Hash,
    chains: BTreeMap<u32, StoredChain<'a>>,
    /// Everything read, by chain and index.
    reads: BTreeMap<u32, Histories>,
    /// Signed documents of the history, by index.
    documents: HashMap<u64, SignedDocument>,
    /// Nothing that a link leads to was missing.
    whole: bool,
}

/// Puts what a stream's links did not lead to among the findings.
fn lost(lost: Result<(), Lost>, chain: u32, stream: &str, out: &mut Collector) -> Result<bool, SourceError> {
    match lost {
        Ok(()) => Ok(true),
        Err(Lost::Missing(place)) => {
            out.report(Code::EntryMissing, Some(chain.into()), place, "a link or a head row leads there".into());
            Ok(false)
        }
        Err(Lost::Astray(index)) => {
            let why = format!("it leads to entry {index}, which is not of this stream");
            out.report(Code::StreamHeadMismatch, Some(chain.into()), format!("stream_heads/{chain}/{stream}"), why);
            Ok(false)
        }
        Err(Lost::Source(e)) => Err(e),
    }
}

impl<'a> Run<'a> {
    fn stored(&mut self, chain: u32) -> &StoredChain<'a> {
        let (tables, id) = (self.tables, self.id);
        self.chains.entry(chain).or_insert_with(|| StoredChain::new(tables, id, chain))
    }

    /// Reads a stream from its head row back. `false`: it has none.
    fn read(&mut self, chain: u32, stream: &str, out: &mut Collector) -> Result<bool, SourceError> {
        let mut into = self.reads.remove(&chain).unwrap_or_default();
        let stored = self.stored(chain);
        let head = stored.stream(stream)?;
        let whole = match head {
            Some((last, _)) => lost(stored.follow(stream, last, &mut into), chain, stream, out)?,
            None => true,
        };
        self.whole &= whole;
        self.reads.insert(chain, into);
        Ok(head.is_some())
    }

    fn entries<'s>(&'s self, chain: u32, streams: &'s [String]) -> impl Iterator<Item = &'s Read> {
        let all = self.reads.get(&chain).into_iter().flat_map(BTreeMap::values);
        all.filter(|read| streams.contains(&read.row.header.stream))
    }

    fn registry(&mut self, known: &mut Known, out: &mut Collector) -> Result<(), SourceError> {
        if !self.read(0, "ledger", out)? {
            out.report(Code::StreamHeadMismatch, Some(0), "stream_heads/0/ledger".into(), "the row is missing".into());
        }
        let streams = ["ledger".to_owned()];
        for read in self.entries(0, &streams).filter(|read| read.row.header.index > 0) {
            let h = &read.row.header;
            let judged = known.own(h, &read.body).and_then(|own| known.admit(h, &own));
            // What follows rests on it.
            if out.take(judged, 0, format!("entries/{}", h.index)).is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Reads the streams of the subject. `None`: there is none.
    fn subject(
        &mut self,
        subject: Subject,
        home: u32,
        out: &mut Collector,
    ) -> Result<Option<Vec<String>>, SourceError> {
        let first = subject.stream().to_string();
        if !self.read(home, &first, out)? {
            return Ok(None);
        }
        let mut streams = vec![first];
        if let Subject::Case(case) = subject {
            for n in 1.. {
                let delivery = Stream::Delivery(case, n).to_string();
                if !self.read(home, &delivery, out)? {
                    break;
                }
                streams.push(delivery);
            }
        }
        Ok(Some(streams))
    }

    /// Step 2.11 along the history. Returns what it says of listings, and what is signed by itself.
    fn fold(
        &self,
        subject: Subject,
        home: u32,
        streams: &[String],
        out: &mut Collector,
    ) -> (Vec<ListingClaim>, HashMap<u64, SignedDocument>) {
        let (mut claims, mut documents) = (Vec::new(), HashMap::new());
        if !self.whole {
            return (claims, documents);
        }
        let mut case = Case::new(match subject {
            Subject::Case(case) | Subject::Sku(case) => case,
        });
        let mut sku = None;
        for read in self.entries(home, streams) {
            let applied = occurrence(read, |event| match subject {
                Subject::Case(_) => case.apply(event).map(|applied| {
                    claims.extend(applied.claim);
                    documents.extend(applied.signed.map(|signed| (event.index, signed)));
                }),
                Subject::Sku(_) => Sku::apply(&mut sku, event)
                    .map(|applied| documents.extend(applied.signed.map(|signed| (event.index, signed)))),
            });
            // A body or a stream that cannot be read is a finding of the entry itself.
            if let Some(Err(e)) = applied {
                let place = format!("entries/{}", read.row.header.index);
                out.report(Code::IllegalTransition, Some(home.into()), place, e.0);
            }
        }
        (claims, documents)
    }

    /// Reads the SKU that an order cites, and compares.
    fn listing(&mut self, claim: &ListingClaim, known: &Known, out: &mut Collector) -> Result<(), SourceError> {
        let sku = CaseId::of_sku(&claim.sku_id);
        let chain = sku.route(known.genesis.chains);
        let stream = Stream::Sku(sku).to_string();
        let there = self.read(chain, &stream, out)?;
        let (mut state, mut listed) = (None, false);
        let streams = [stream.clone()];
        for read in self.entries(chain, &streams) {
            let applied = occurrence(read, |event| Sku::apply(&mut state, event));
            if let (true, Some(Ok(applied))) = (read.row.header.revision == claim.revision, applied) {
                listed = applied.said.contains(&claim.said);
            }
        }
        if !there || !listed {
            out.report(Code::IllegalTransition, Some(chain.into()), stream, claim.refuted());
        }
        Ok(())
    }

    /// Judges every entry that was read of a chain by itself, and its place under signed roots.
    fn chain(
        &mut self,
        (chain, home): (u32, u32),
        known: &Known,
        anchors: &[Anchor],
        out: &mut Collector,
        covered: &mut Covered,
    ) -> Result<(), SourceError> {
        let reads = self.reads.remove(&chain).unwrap_or_default();
        // Of this chain's entries: a history lies on one.
        let documents = if chain == home { std::mem::take(&mut self.documents) } else { HashMap::new() };
        let stored = self.stored(chain);
        let mut roots = Vec::new();
        if let Some(signed) = checkpoint(stored, known, out)? {
            let (size, root) = (signed.checkpoint.size, signed.checkpoint.root);
            let inside = reads.range(..size).count();
            let signers = known.signers_of(chain, &signed.note);
            for (index, _) in reads.range(..size) {
                covered.kids.entry((chain, *index)).or_default().extend(signers.iter().cloned());
            }
            covered.checked.push(format!(
                "whether {inside} of them are in the history of chain {chain} that its last checkpoint signs: size {size}, root {root}"
            ));
            if inside < reads.len() {
                covered.not_covered.push(format!(
                    "chain {chain}: {} entries after the last checkpoint (size {size})",
                    reads.len() - inside
                ));
            }
            roots.push((Code::InclusionMismatch, size, root));
        } else {
            covered.not_covered.push(format!(
                "chain {chain}: it has no checkpoint that holds, so nothing signed says that this is history"
            ));
        }
        for anchor in anchors {
            let of = anchor.chain(&known.genesis.origin, &known.ledger_id, known.genesis.chains);
            if of != Some(chain) || anchor.unusable(of, &known.registry).is_some() {
                continue;
            }
            match anchor.size().checked_sub(1).map(|last| stored.entry(last)) {
                Some(Err(Lost::Source(e))) => return Err(e),
                Some(Err(_)) => {
                    let why =
                        format!("{} covers {} entries, and the last of them is missing", anchor.name, anchor.size());
                    out.report(
                        Code::AnchorBeyondTail,
                        Some(chain.into()),
                        format!("checkpoints/{}", anchor.size()),
                        why,
                    );
                }
                _ => roots.push((Code::AnchorMismatch, anchor.size(), anchor.root())),
            }
        }
        let mut failed = vec![false; roots.len()];
        let mut commits: HashMap<u64, Whole> = HashMap::new();
        let mut tips: HashMap<&str, &Read> = HashMap::new();
        let mut time_us = 0;
        for (index, read) in &reads {
            let h = &read.row.header;
            let tip = tips.insert(&h.stream, read);
            let own = self_judged(read, tip, time_us, known, stored, &reads)?;
            time_us = h.recorded_at_us;
            let Some(own) = out.take(own, chain, format!("entries/{index}")) else { continue };
            match whole_commit(stored, *index, &mut commits) {
                Ok(commit) => {
                    let judged = proven(commit, *index).and_then(|c| known.commit(h, &own, &c).map(|()| c));
                    let place = format!("commits/{}", commit.first);
                    if let Some(commit) = out.take(judged, chain, place) {
                        let document = documents.get(index);
                        if let Some(document) = document {
                            let judged = known.document(document, chain, *index, commit.registry_size);
                            out.take(judged, chain, format!("entries/{index}"));
                        }
                        let kids = commit.signatures.into_iter().map(|s| s.kid).chain(document.map(|d| d.kid.clone()));
                        covered.kids.entry((chain, *index)).or_default().extend(kids);
                    }
                }
                Err(Lost::Source(e)) => return Err(e),
                Err(lost) => {
                    let place = lost.place();
                    let why = format!("the commit of entry {index} is not whole");
                    out.report(Code::CommitTiling, Some(chain.into()), place, why);
                }
            }
            for ((code, size, root), failed) in roots.iter().zip(&mut failed).filter(|((_, size, _), _)| index < size) {
                let why = match stored.path(*index, *size) {
                    Ok(path) => included(&own.leaf, *index, &path, *size, root).err().map(|(_, why)| why),
                    Err(Lost::Source(e)) => return Err(e),
                    Err(lost) => Some(format!("{}, which the path needs, is missing or undecodable", lost.place())),
                };
                if let Some(why) = why {
                    *failed = true;
                    out.report(*code, Some(chain.into()), format!("entries/{index}"), why);
                }
            }
        }
        for ((code, size, _), failed) in roots.iter().zip(failed) {
            if *code == Code::AnchorMismatch && !failed {
                let most = covered.anchored.entry(chain).or_default();
                *most = (*size).max(*most);
            }
        }
        for (stream, read) in tips {
            head_row(stored, stream, read, out)?;
        }
        self.reads.insert(chain, reads);
        Ok(())
    }
}

/// Hands the event of an entry to `apply`. `None`: its body or stream cannot be read.
fn occurrence<T>(read: &Read, apply: impl FnOnce(&Occurrence<'_>) -> Result<T, Illegal>) -> Option<Result<T, Illegal>> {
    let h = &read.row.header;
    let body = Body::decode(&read.body).ok()?;
    let event = Occurrence::of(h, Stream::parse(&h.stream)?, &body);
    Some(apply(&event))
}

/// The last signed checkpoint of a chain, if it holds.
fn checkpoint(
    stored: &StoredChain<'_>,
    known: &Known,
    out: &mut Collector,
) -> Result<Option<SignedCheckpoint>, SourceError> {
    let Some((size, note)) = stored.checkpoint()? else { return Ok(None) };
    let judged = match SignedCheckpoint::parse(&note) {
        None => fault(Code::CheckpointUndecodable, "not a note with one signature"),
        Some(signed) if signed.checkpoint.size != size => {
            fault(Code::CheckpointMismatch, format!("the note says size {}", signed.checkpoint.size))
        }
        Some(signed) => known.checkpoint(stored.chain, &signed).map(|()| signed),
    };
    Ok(out.take(judged, stored.chain, format!("checkpoints/{size}")))
}

/// Steps 2.3 to 2.10 and 2.12 of an entry, as far as it and the stream's entry before it tell.
fn self_judged(
    read: &Read,
    tip: Option<&Read>,
    time_us: i64,
    known: &Known,
    stored: &StoredChain<'_>,
    reads: &Histories,
) -> Result<Result<Own, Fault>, SourceError> {
    let (row, h) = (&read.row, &read.row.header);
    let own = match known.own(h, &read.body) {
        Ok(own) => own,
        Err(fault) => return Ok(Err(fault)),
    };
    if row.digests.hash != row.entry_hash {
        return Ok(fault(Code::EntryHashMismatch, format!("expected {}, found {}", row.entry_hash, row.digests.hash)));
    }
    if h.recorded_at_us < time_us {
        return Ok(fault(Code::TimeRegression, ""));
    }
    let parent = tip.map(|tip| (tip.row.header.index, tip.row.header.revision, tip.row.entry_hash));
    // Where the one before is missing, that is the fault.
    let judgeable = row.parent_index.is_none_or(|parent| reads.contains_key(&parent));
    let (index, revision, hash) =
        parent.map_or((None, 0, Hash::ZERO), |(index, revision, hash)| (Some(index), revision, hash));
    let link = if row.parent_index != index {
        Some((Code::ParentIndexMismatch, format!("expected {}, found {}", or_none(index), or_none(row.parent_index))))
    } else if h.revision != revision + 1 {
        Some((Code::RevisionMismatch, format!("expected {}, found {}", revision + 1, h.revision)))
    } else if h.parent_hash != hash.0 {
        Some((Code::ParentHashMismatch, format!("expected {hash}, found {}", Hash(h.parent_hash))))
    } else {
        None
    };
    if let Some(link) = link.filter(|_| judgeable) {
        return Ok(Err(link));
    }
    let document = if own.body.private_sha256.is_some() { stored.document(h.index)? } else { None };
    Ok(private_document(&own.body, document.as_deref()).map(|()| own))
}

/// A commit with all its leaves.
struct Whole {
    first: u64,
    leaves: Vec<Hash>,
    /// Of every entry, without the path.
    commit: ProvenCommit,
}

fn whole_commit<'c>(
    stored: &StoredChain<'_>,
    index: u64,
    commits: &'c mut HashMap<u64, Whole>,
) -> Result<&'c Whole, Lost> {
    let row = stored.commit(index)?;
    match commits.entry(row.first) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(place) => Ok(place.insert(read_whole(stored, &row)?)),
    }
}

fn read_whole(stored: &StoredChain<'_>, row: &Commit) -> Result<Whole, Lost> {
    let first = row.first;
    let entries = stored.entries(first, row.end())?;
    let leaves: Vec<Hash> = entries.iter().map(|read| read.row.digests.leaf).collect();
    let signature = |cells: &Vec<Cell>| {
        Some(CommitSignature {
            kid: text(cells.get(2)?)?.to_owned(),
            alg: u8::try_from(number(cells.get(3)?)?).ok()?,
            signature: blob(cells.get(4)?)?.to_vec(),
        })
    };
    let signatures = stored.signatures(first)?.iter().map(signature).collect::<Option<Vec<_>>>();
    let commit = ProvenCommit {
        first_index: first,
        size: leaves.len() as u32,
        root: merkle::root(&leaves),
        last_hash: entries.last().map(|read| read.row.digests.hash).unwrap_or_default(),
        registry_size: row.registry_size,
        registry_head: row.registry_head,
        path: Vec::new(),
        signatures: signatures.ok_or_else(|| Lost::Missing(format!("commit_signatures/{first}")))?,
    };
    Ok(Whole { first, leaves, commit })
}

/// The commit with the path of one of its entries.
fn proven(whole: &Whole, index: u64) -> Result<ProvenCommit, Fault> {
    if whole.commit.signatures.len() > COMMIT_SIGNATURES_MAX {
        return fault(Code::CommitUndecodable, "more than four signatures");
    }
    let Ok(path) = merkle::inclusion_proof(&whole.leaves[..], index - whole.first, whole.leaves.len() as u64);
    Ok(ProvenCommit { path, ..whole.commit.clone() })
}

/// That the head row of a stream is of its last entry.
fn head_row(stored: &StoredChain<'_>, stream: &str, last: &Read, out: &mut Collector) -> Result<(), SourceError> {
    let rows = stored.tables.keyed("stream_heads", &[stored.chain.into(), stream.into()])?;
    let h = &last.row.header;
    let (revision, head, index) = (h.revision, last.row.digests.hash, h.index);
    let found = rows
        .first()
        .map(|cells| (cells.get(2).and_then(number), cells.get(3).and_then(hash), cells.get(4).and_then(number)));
    if found != Some((Some(revision), Some(head), Some(index))) || rows.len() != 1 {
        let place = format!("stream_heads/{}/{stream}", stored.chain);
        let evidence = format!("expected one row with revision {revision}, hash {head}, index {index}");
        out.report(Code::StreamHeadMismatch, Some(stored.chain.into()), place, evidence);
    }
    Ok(())
}
