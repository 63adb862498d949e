//! Verification past one machine: batches of an archive are judged each by itself, their summaries are joined into one verdict.
//!
//! What makes that the same verdict: each batch is judged under what its manifest says was before it (tree, last entry, keys), and joining
//! compares each of these with what the batch before was found to end with. Orders, SKUs and adoptions that continue are folded here, from the
//! states in which batches left them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ledger_engine::adoption::{Adopted, Adoption};
use ledger_engine::document::DocumentPlace;
use ledger_engine::export::ChainRange;
use ledger_engine::hash::Hash;
use ledger_engine::header::Header;
use ledger_engine::json::{self, Value};
use ledger_engine::registry::{Purpose, cut_of};
use ledger_engine::stream::Stream;

use crate::anchor::Anchor;
use crate::collector::Collector;
use crate::export::batches::{Part, continuity, signatures};
use crate::export::{Export, batches_in_words, is_of};
use crate::finding::{Code, Finding};
use crate::prove::batch::{ChainFacts, Facts, Held, Key, Later, Link, Tip, Writer, Written, prove_batch};
use crate::prove::{HeadClaim, Stop};
use crate::report::{ChainReport, KeyReport, Part as Portion, Report, Verdict, counted};
use crate::single::{Known, document_code, document_evidence};
use crate::source::SourceError;
use crate::spill::Shelf;
use crate::summary::{self, Head, Outcome, Summary};
use crate::verify::{Demands, compromised, verify};

/// States in memory; one takes about a kilobyte.
const HOT: usize = 32_768;

/// Judges batches of an archive by their numbers, each by itself, and joins what was found of them. Their summaries are left in `keep`.
///
/// What was before the first of them is not judged: the report says what rests on it.
pub fn verify_batches(
    source: &str,
    numbers: &RangeInclusive<u64>,
    keep: Option<&Path>,
    demands: Demands<'_>,
) -> Report {
    let name = crate::name_of(source);
    judge_batches(source, &name, numbers, keep, &demands).unwrap_or_else(|e| Report::unreadable(&name, &e.to_string()))
}

fn judge_batches(
    source: &str,
    name: &str,
    numbers: &RangeInclusive<u64>,
    keep: Option<&Path>,
    demands: &Demands<'_>,
) -> Result<Report, SourceError> {
    let unreadable = |reason: String| SourceError::Unreadable { path: name.into(), reason };
    let export = Export::open_batches(source, numbers, demands)?;
    let sequence = |part: &Part| part.batch().map(|b| b.sequence);
    let wanted = |(_, part): &(usize, &Part)| sequence(part).is_some_and(|n| numbers.contains(&n));
    let chosen: Vec<usize> = export.batches().iter().enumerate().filter(wanted).map(|(at, _)| at).collect();
    if chosen.is_empty() {
        let last = export.batches().iter().filter_map(sequence).max();
        return Err(unreadable(match last {
            Some(last) => format!("there is no {} here; the last one is {last}", shown(numbers)),
            None => "it is no archive of batches; a copy is verified as a whole".to_owned(),
        }));
    }
    let temporary = tempfile::tempdir().map_err(|e| unreadable(format!("{e}; set TMPDIR to a directory with room")))?;
    let dir = keep.unwrap_or(temporary.path());
    let failed = |e: io::Error| SourceError::Unreadable {
        path: dir.to_owned(),
        reason: format!("{e}; check the path and the room there"),
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut paths = Vec::new();
    for at in chosen {
        let batch = &export.batches()[at];
        // Not by its name, which is anybody's text.
        let (number, digest) = (sequence(batch).unwrap_or_default(), batch.digest.to_hex());
        let path = dir.join(format!("batch-{number:08}-{}.summary", &digest[..16]));
        let file = tempfile::tempfile_in(dir).map_err(failed)?;
        let mut records = file.try_clone().map_err(failed)?;
        let writer = Writer::new(file);
        let head = summarize(source, &export, at, demands, writer)?;
        summary::write(&path, &head, &mut records).map_err(failed)?;
        paths.push(path);
    }
    let all = numbers.end() == &u64::MAX;
    let shown = if all && *numbers.start() <= 1 { name.to_owned() } else { format!("{name}, {}", shown(numbers)) };
    Ok(join(&shown, &paths, Some(numbers), demands))
}

fn shown(numbers: &RangeInclusive<u64>) -> String {
    let (from, to) = (numbers.start(), numbers.end());
    match *to {
        u64::MAX => format!("batches from {from} on"),
        _ if from == to => format!("batch {from}"),
        to => format!("batches {from} to {to}"),
    }
}

/// Judges one batch of an archive.
fn summarize(
    source: &str,
    export: &Export,
    at: usize,
    demands: &Demands<'_>,
    writer: Writer,
) -> Result<Head, SourceError> {
    let part = &export.batches()[at];
    let batch = export.batch(at).ok_or(SourceError::Stopped)?;
    let trusted = |id| demands.trust.is_none_or(|trust| trust == id);
    let keys = export.keys(at);
    let proved = || -> Result<(Facts, u64, Hash), Stop> {
        let keys = keys.as_ref().map_err(|e| Stop::Suspect(e.to_string()))?;
        let from = part.manifest.chains.first().map_or(0, |c| c.from);
        let known = known(keys, |index| index < from).ok_or(Stop::Suspect("the key registry".to_owned()))?;
        if known.ledger_id != part.manifest.ledger_id || !trusted(known.ledger_id) {
            return Err(Stop::Suspect("the ledger's identity".to_owned()));
        }
        prove_batch(&batch, &known, demands, writer)
    };
    let last = export.batches().last().unwrap_or(part);
    let last = (last.batch().map_or(0, |b| b.sequence), last.digest);
    let head = |outcome| Head::new(&part.manifest, last, keys.as_deref().unwrap_or_default(), outcome);
    match proved() {
        Ok((facts, records, digest)) => Ok(head(Outcome::Proved(facts)).with_records(records, digest)),
        // What is wrong is named by judging the archive as it was when this batch was the last.
        Err(Stop::Suspect(what)) => {
            let earlier =
                Export::open_batches(source, &(0..=u64::MAX), demands)?.up_to(at).ok_or(SourceError::Stopped)?;
            let whole = Demands { trust: demands.trust, progress: demands.progress, ..Demands::default() };
            let report = verify(source, &earlier, whole);
            Ok(head(if report.verdict() == Verdict::Broken {
                summary::broken(report.findings())
            } else {
                Outcome::Open(format!("{what}; verify the archive as a whole"))
            }))
        }
        Err(Stop::Spill(what)) => Err(SourceError::Unreadable { path: std::env::temp_dir(), reason: what }),
        Err(Stop::Asked(_)) => Err(SourceError::Stopped),
        Err(Stop::Source(e)) => Err(e),
    }
}

/// The ledger by its registry's entries, as far as they are wanted.
fn known(keys: &[(Header, Vec<u8>)], wanted: impl Fn(u64) -> bool) -> Option<Known> {
    let entries = keys.iter().filter(|(header, _)| header.index == 0 || wanted(header.index));
    Known::from_registry(entries.map(|(header, body)| (header, body.as_slice()))).ok()
}

/// Joins summaries of all batches of an archive, in any order, into one verdict: the one that the whole archive would get.
pub fn combine(paths: &[PathBuf], demands: Demands<'_>) -> Report {
    join("the summaries", paths, None, &demands)
}

/// `numbers`: which batches they are meant to be; otherwise all from the first on.
fn join(name: &str, paths: &[PathBuf], numbers: Option<&RangeInclusive<u64>>, demands: &Demands<'_>) -> Report {
    let joined = || -> Result<Report, SourceError> {
        let mut summaries = paths.iter().map(|path| Summary::read(path)).collect::<Result<Vec<_>, _>>()?;
        summaries.sort_by_key(|s| s.part.batch().map(|b| b.sequence));
        // A job that was run twice says the same twice.
        summaries.dedup_by_key(|s| (s.part.digest, s.head.digest, s.head.records, s.head.findings().len()));
        let Some(last) = summaries.last() else { return Err(SourceError::Stopped) };
        let id = last.part.manifest.ledger_id;
        if let Some(other) = summaries.iter().find(|s| s.part.manifest.ledger_id != id) {
            let reason = format!("of ledger {}, and another summary is of {id}", other.part.manifest.ledger_id);
            return Err(SourceError::Unreadable { path: other.part.dir.clone(), reason });
        }
        let files = summaries.iter().map(|s| s.part.manifest.files.len()).sum();
        let described = batches_in_words(summaries.len(), files, &last.part.manifest);
        let report = Joiner::begin(&summaries, numbers, demands)?.all(name, &summaries, demands)?.of_export(described);
        Ok(match numbers {
            Some(_) => report.of_kind("batches of an archive, each judged by itself".to_owned()),
            None => report.of_kind("summaries of an archive's batches".to_owned()),
        })
    };
    joined().unwrap_or_else(|e| Report::unreadable(name, &e.to_string()))
}

/// What is known where a batch ends.
struct Joiner {
    known: Option<Known>,
    out: Collector,
    /// Number of the first batch that was asked for.
    first: u64,
    /// Number of the last batch that was seen, if it is not among those that were asked for.
    goes_on: Option<u64>,
    /// What was asked for and is not there.
    absent: Option<String>,
    /// Others made the summaries.
    apart: bool,
    states: Shelf<Key, Held>,
    tips: HashMap<(u32, Stream), Tip>,
    /// Of each chain's last entry and last commit: the time, and the registry size that it names.
    ends: HashMap<u32, (i64, u64)>,
    reports: Vec<ChainReport>,
    listed: HashSet<u128>,
    claimed: Vec<(u128, u32, u64)>,
    /// What `chain.heads` says of sizes at which no batch ends.
    heads: Vec<HeadClaim>,
    /// Of each batch, where chain 0 ends in it, and what its `chain.heads` name of the others.
    named: Vec<(u64, Vec<(u32, u64)>)>,
    signers: BTreeMap<(u32, String), u64>,
    adopted: Vec<Adopted>,
    /// Entries that continue what began before the first batch.
    earlier: u64,
    unchecked: Vec<String>,
}

impl Joiner {
    /// Judges what manifests and keys say.
    fn begin(
        summaries: &[Summary],
        numbers: Option<&RangeInclusive<u64>>,
        demands: &Demands<'_>,
    ) -> Result<Joiner, SourceError> {
        let parts: Vec<Part> = summaries.iter().map(|s| s.part.clone()).collect();
        let sequence = |part: &Part| part.batch().map_or(0, |b| b.sequence);
        let first = numbers.map_or(1, |numbers| (*numbers.start()).max(1));
        let mut joiner = Joiner {
            known: None,
            out: Collector::default(),
            first,
            goes_on: None,
            absent: None,
            apart: numbers.is_none(),
            states: Shelf::new(HOT),
            tips: HashMap::new(),
            ends: HashMap::new(),
            reports: Vec::new(),
            listed: HashSet::new(),
            claimed: Vec::new(),
            heads: Vec::new(),
            named: Vec::new(),
            signers: BTreeMap::new(),
            adopted: Vec::new(),
            earlier: 0,
            unchecked: Vec::new(),
        };
        let mut seen = HashSet::new();
        let found = summaries.iter().flat_map(|s| s.head.findings());
        for finding in continuity(&parts, first).into_iter().chain(found) {
            // Batches after a fault find it again.
            if seen.insert((finding.code, finding.chain, finding.place.clone(), finding.evidence.clone())) {
                joiner.out.add(finding);
            }
        }
        // Whoever judged a batch saw which one was the last.
        let seen_last = summaries.iter().map(|s| s.head.last).max_by_key(|(number, _)| *number);
        let joined_last = parts.last().map(|part| (sequence(part), part.digest));
        if let (None, Some((number, digest)), Some((last, _))) = (numbers, seen_last, joined_last)
            && number > last
        {
            joiner.missing(last + 1, format!(
                "no summary of it; the archive went on to number {number}, with a manifest of SHA-256 {digest}, when another one was made"
            ));
        }
        let seen_last = seen_last.map(|(number, _)| number);
        joiner.goes_on =
            numbers.and(seen_last.zip(joined_last)).filter(|(seen, (last, _))| seen > last).map(|(n, _)| n);
        if let Some((end, last)) = numbers.map(|numbers| *numbers.end()).zip(joined_last.map(|(last, _)| last))
            && end != u64::MAX
            && end > last
        {
            // Whoever names a last one knows that it was made.
            match joiner.goes_on {
                Some(goes_on) => {
                    joiner.missing(last + 1, format!("it is not there; the archive goes on to number {goes_on}"));
                }
                None => {
                    let absent = shown(&(last + 1..=end));
                    joiner.absent = Some(format!("{absent}: not there, the last one here is number {last}"));
                }
            }
        }
        for summary in summaries {
            if let Outcome::Open(what) = &summary.head.outcome {
                joiner.unchecked.push(format!("batch {}: {what}", sequence(&summary.part)));
            }
        }
        let keys: Vec<_> = summaries.iter().map(|s| s.head.keys().unwrap_or_default()).collect();
        joiner.known = keys.last().and_then(|keys| known(keys, |_| true));
        let Some(known) = joiner.known.as_ref().filter(|_| joiner.out.is_empty()) else { return Ok(joiner) };
        if demands.trust.is_some_and(|trust| trust != known.ledger_id) {
            let evidence =
                format!("genesis gives {}; pinned is {}", known.ledger_id, demands.trust.unwrap_or_default());
            joiner.out.report(Code::LedgerIdMismatch, None, "ledger".to_owned(), evidence);
            return Ok(joiner);
        }
        for (part, keys) in parts.iter().zip(&keys) {
            let size = part.batch().map_or(0, |b| b.registry.size);
            let same =
                keys.len() as u64 == size && keys.last().map(|(h, _)| h.entry_hash()) == known.registry.head(size);
            if !same || part.manifest.ledger_id != known.ledger_id {
                let evidence = "the keys that it was judged by are not those of the batches before".to_owned();
                joiner.out.report(Code::RegistryInvalid, Some(0), part.place("registry"), evidence);
            }
        }
        signatures(&parts, &known.registry).into_iter().for_each(|finding| joiner.out.add(finding));
        Ok(joiner)
    }

    fn all(mut self, name: &str, summaries: &[Summary], demands: &Demands<'_>) -> Result<Report, SourceError> {
        let whole = self.out.is_empty() && self.unchecked.is_empty();
        let Some(known) = self.known.take().filter(|_| whole) else {
            // What is missing or wrong would be found again in everything that rests on it.
            if self.out.is_empty() && self.unchecked.is_empty() {
                self.unchecked.push("the key registry of the archive; verify it as a whole".to_owned());
            }
            let ledger = summaries.last().map(|s| s.part.manifest.ledger_id);
            return Ok(Report::new(name, ledger, None, demands, self.out.complete()?, Vec::new(), self.unchecked));
        };
        let ends = ends(summaries);
        for summary in summaries {
            self.batch(summary, &known, &ends)?;
        }
        self.listings();
        self.heads(&ends);
        self.retired(&known);
        self.anchored(&known, demands.anchors, summaries);
        self.unchecked.extend(compromised(&known.registry, &mut self.reports));
        self.unchecked.extend(self.absent.take());
        let portion = match self.first > 1 || self.goes_on.is_some() {
            true => Some(self.portion(summaries)),
            false => self.apart.then(|| joined(summaries)),
        };
        let (id, origin) = (Some(known.ledger_id), Some(known.genesis.origin.clone()));
        let report = Report::new(name, id, origin, demands, self.out.complete()?, self.reports, self.unchecked);
        let report = report.with_keys(KeyReport::all(&known.registry)).with_adopted(self.adopted);
        let report = report.with_succession(known.genesis.succeeds.clone());
        Ok(match portion {
            Some(portion) => report.of_part(portion),
            None => report,
        })
    }

    fn missing(&mut self, number: u64, evidence: String) {
        self.out.report(Code::ExportBatchMissing, None, format!("batches/{number}"), evidence);
    }

    fn report(&mut self, code: Code, chain: u32, place: String, evidence: impl Into<String>) {
        self.out.add(Finding { code, chain: Some(chain.into()), place, evidence: evidence.into() });
    }

    fn batch(&mut self, summary: &Summary, known: &Known, ends: &Ends) -> Result<(), SourceError> {
        let Outcome::Proved(facts) = &summary.head.outcome else { return Ok(()) };
        // Whoever wrote it vouches for what it says, but not for what it leaves out.
        let ranges = &summary.part.manifest.chains;
        let same = |(facts, range): (&ChainFacts, &ChainRange)| {
            (facts.chain, facts.from) == (range.chain, range.from) && is_of(&facts.report, range)
        };
        let whole = facts.chains.len() == known.genesis.chains as usize && facts.chains.len() == ranges.len();
        if !whole || !facts.chains.iter().zip(ranges).all(same) {
            return Err(summary.damaged());
        }
        for now in &facts.chains {
            self.chain(now);
        }
        self.listed.extend(&facts.listed);
        let open = facts.claimed.iter().filter(|(claim, ..)| !self.listed.contains(claim));
        self.claimed.extend(open);
        let right = |h: &&HeadClaim| ends.get(&(h.chain, h.size)) == Some(&(h.root, h.last_hash));
        self.heads.extend(facts.heads.iter().filter(|h| !right(h)).cloned());
        self.named.extend(ranges.first().map(|range| (range.to, facts.named.clone())));
        summary.records(|record| match record {
            Written::Held(key, held) => self.begun(key, held),
            Written::Later(later) => self.later(&later, known),
        })
    }

    /// What one batch says of a chain, after what the ones before said.
    fn chain(&mut self, now: &ChainFacts) {
        let (chain, from) = (now.chain, now.from);
        if let Some((time_us, registry_size)) = self.ends.get(&chain).copied() {
            if now.first_time_us.is_some_and(|first| first < time_us) {
                self.report(Code::TimeRegression, chain, format!("entries/{from}"), "");
            }
            if now.first_registry_size.is_some_and(|first| first < registry_size) {
                self.report(Code::RegistryPositionMismatch, chain, format!("commits/{from}"), "");
            }
        }
        for (stream, link, index) in &now.links {
            let tip = self.tips.get(&(chain, *stream)).copied();
            if (tip.is_some() || self.first == 1)
                && let Some((code, evidence)) = misplaced(link, tip.as_ref())
            {
                self.report(code, chain, format!("entries/{index}"), evidence);
            }
        }
        self.tips.extend(now.tips.iter().map(|(stream, tip)| ((chain, *stream), *tip)));
        for (kid, end) in &now.signers {
            self.signed(chain, kid, *end);
        }
        match self.reports.iter_mut().find(|r| r.chain == u64::from(chain)) {
            Some(report) => add(report, &now.report),
            None => self.reports.push(now.report.clone()),
        }
        // A batch in which nothing was added to the chain says nothing of its end.
        if now.first_time_us.is_some() {
            self.ends.insert(chain, (now.last_time_us, now.last_registry_size));
        }
    }

    /// Takes the state of what began in a batch.
    fn begun(&mut self, key: Key, held: Box<Held>) -> io::Result<()> {
        if !self.states.has(&key) {
            return self.states.insert(key, held);
        }
        let first = held.tips.first().map_or(0, |(_, tip)| tip.first);
        let chain = self.chain_of(key);
        self.report(
            Code::RevisionMismatch,
            chain,
            format!("entries/{first}"),
            "the stream had begun in an earlier batch",
        );
        Ok(())
    }

    /// Remembers how far a key signed.
    fn signed(&mut self, chain: u32, kid: &str, end: u64) {
        let last = self.signers.entry((chain, kid.to_owned())).or_default();
        *last = (*last).max(end);
    }

    fn chain_of(&self, (is_sku, case): Key) -> u32 {
        let stream = if is_sku { Stream::Sku(case) } else { Stream::Order(case) };
        stream.chain(self.reports.len() as u32)
    }

    /// Takes an entry of what began in an earlier batch.
    fn later(&mut self, later: &Later, known: &Known) -> io::Result<()> {
        let (chain, place) = (later.chain, format!("entries/{}", later.index));
        let payload = match json::parse(&later.payload) {
            Ok(Value::Object(payload)) => payload,
            _ => return Err(io::Error::other("a summary with a payload that is none; write it again")),
        };
        let event = later.event(&payload);
        let key = match later.stream {
            Stream::Order(case) | Stream::Delivery(case, _) => (false, case),
            Stream::Sku(case) => (true, case),
            stream => {
                self.adoption(stream, later, &place, &event);
                return Ok(());
            }
        };
        let mut held = match (self.states.has(&key), self.first > 1) {
            (true, _) => match self.states.take(&key)? {
                Some(held) => held,
                None => return Err(io::Error::other("a state was lost")),
            },
            (false, true) => {
                self.earlier += 1;
                return Ok(());
            }
            (false, false) => Box::new(Held::new(key)),
        };
        let tip = held.tips.iter().find(|(s, _)| *s == later.stream).map(|(_, tip)| *tip);
        match held.follow(later.stream, &later.link, later.hash, later.index) {
            Some(begins) => {
                if let Some(report) = self.reports.get_mut(chain as usize) {
                    report.streams += u64::from(begins);
                }
            }
            None => {
                let (code, evidence) =
                    misplaced(&later.link, tip.as_ref()).unwrap_or((Code::RevisionMismatch, String::new()));
                self.report(code, chain, place.clone(), evidence);
            }
        }
        match held.apply(&event) {
            Ok(effects) => {
                self.listed.extend(effects.listed);
                self.claimed.extend(effects.claimed.map(|claim| (claim, chain, later.index)));
                if let Some(document) = effects.signed {
                    let (ledger_id, registry_size) = (&known.ledger_id, later.registry_size);
                    let place_of = DocumentPlace { ledger_id, chain, index: later.index, registry_size };
                    if let Err(fault) = document.check(&known.registry, place_of) {
                        self.report(document_code(fault), chain, place, document_evidence(&document, fault));
                    } else {
                        self.signed(chain, &document.kid, later.index + 1);
                    }
                }
            }
            Err(e) => self.report(Code::IllegalTransition, chain, place, e.0),
        }
        self.states.insert(key, held)
    }

    fn adoption(&mut self, stream: Stream, later: &Later, place: &str, event: &ledger_engine::domain::Occurrence<'_>) {
        let tip = self.tips.get(&(later.chain, stream)).copied();
        if tip.is_none() && self.first > 1 {
            self.earlier += 1;
            return;
        }
        if let Some((code, evidence)) = misplaced(&later.link, tip.as_ref()) {
            self.report(code, later.chain, place.to_owned(), evidence);
        }
        match Adoption::follow(self.adopted.last(), event) {
            Ok(next) => self.adopted.push(next),
            Err(e) => self.report(Code::IllegalTransition, later.chain, place.to_owned(), e.0),
        }
        let tip = later.link.tip_after(tip.as_ref(), later.hash, later.index);
        if tip.first == later.index
            && let Some(report) = self.reports.get_mut(later.chain as usize)
        {
            report.streams += 1;
        }
        self.tips.insert((later.chain, stream), tip);
    }

    /// Whether listings say all that orders and deliveries rest on.
    fn listings(&mut self) {
        for (claim, chain, index) in std::mem::take(&mut self.claimed) {
            if self.listed.contains(&claim) {
                continue;
            }
            if self.first > 1 {
                self.earlier += 1;
                continue;
            }
            self.report(
                Code::IllegalTransition,
                chain,
                format!("entries/{index}"),
                "the price, or what the delivery proof says of the manifest, is of no listing of the SKU",
            );
        }
    }

    /// Names what chain 0 says of others, where it is not what they are where batches end.
    fn heads(&mut self, ends: &Ends) {
        for HeadClaim { index, chain, size, .. } in std::mem::take(&mut self.heads) {
            let end = self.reports.get(chain as usize).map_or(0, |r| r.entries);
            match ends.get(&(chain, size)) {
                None if size < end => self.unchecked.push(format!(
                    "entry {index} of chain 0 names chain {chain} at size {size}, where no batch ends; verify the archive as a whole"
                )),
                _ => {
                    let (code, place) = (Code::IllegalTransition, format!("entries/{index}"));
                    self.report(code, 0, place, "the heads are not those of the chains");
                }
            }
        }
    }

    /// What was signed by a key beyond the size at which it was retired in a later batch.
    fn retired(&mut self, known: &Known) {
        for record in known.registry.records() {
            let Some(retired) = &record.retired else { continue };
            let kid = &record.key.kid;
            let signed: Vec<(u32, u64)> =
                self.signers.iter().filter(|((_, k), _)| k == kid).map(|((chain, _), end)| (*chain, *end)).collect();
            for (chain, end) in signed {
                let cut = cut_of(&retired.cut, chain);
                if end > cut {
                    let evidence = format!("kid {kid} was retired at size {cut} and signed up to {end}");
                    let place = match record.key.purpose {
                        Purpose::Checkpoint => format!("checkpoints/{end}"),
                        _ => format!("entries/{}", end.saturating_sub(1)),
                    };
                    self.report(Code::KidNotValid, chain, place, evidence);
                }
            }
        }
    }

    /// Compares what was kept with where batches end.
    fn anchored(&mut self, known: &Known, anchors: &[Anchor], summaries: &[Summary]) {
        let genesis = &known.genesis;
        for anchor in anchors {
            let chain = anchor.chain(&genesis.origin, &known.ledger_id, genesis.chains);
            let (Some(k), None) = (chain, anchor.unusable(chain, &known.registry)) else {
                self.unchecked.extend(anchor.unusable(chain, &known.registry));
                continue;
            };
            let (size, place) = (anchor.size(), format!("checkpoints/{}", anchor.size()));
            let ranges = || summaries.iter().flat_map(|s| &s.part.manifest.chains).filter(|range| range.chain == k);
            let end = ranges().map(|range| range.to).max().unwrap_or(0);
            let name = &anchor.name;
            if size > end {
                let text = format!("{name} covers {size} entries, the chain ends at {end}");
                self.report(Code::AnchorBeyondTail, k, place, text);
                continue;
            }
            match ranges().find(|range| range.to == size) {
                Some(range) if range.root == anchor.root() => {
                    let named = self.named.iter().filter(|(to, _)| k == 0 && *to <= size).flat_map(|(_, named)| named);
                    for (chain, size) in named.chain(&[(k, size)]) {
                        if let Some(report) = self.reports.get_mut(*chain as usize) {
                            report.anchored = report.anchored.max(Some(*size));
                        }
                    }
                }
                Some(range) => {
                    let text = format!("{name} has the root {}, found {}", anchor.root(), range.root);
                    self.report(Code::AnchorMismatch, k, place, text);
                }
                None => self.unchecked.push(format!(
                    "anchor {name}: no batch that was judged ends at its size {size}; verify the archive as a whole to compare it"
                )),
            }
        }
    }

    /// What a run over some batches says of itself.
    fn portion(&self, summaries: &[Summary]) -> Portion {
        let mut portion = Portion::new("batches");
        let last = summaries.last().and_then(|s| s.part.batch()).map_or(self.first, |b| b.sequence);
        portion.checked.push(format!(
            "{}: the files, entries, commits, signatures and checkpoints, under the keys of the registry that they name",
            shown(&(self.first..=last))
        ));
        portion.checked.extend(self.reports.iter().map(
            |r| match r.entries.checked_sub(1).filter(|last| *last >= r.from) {
                Some(last) => format!("chain {}: entries {} to {last}", r.chain, r.from),
                None => format!("chain {}: nothing was added to it", r.chain),
            },
        ));
        if self.first > 1 {
            portion.not_covered.push(format!(
                "batches before number {}, and that what was judged continues them: `audit-verify combine` joins summaries of all (--partial)",
                self.first
            ));
        }
        if let Some(goes_on) = self.goes_on {
            portion.not_covered.push(format!("{}, which the archive has too", shown(&(last + 1..=goes_on))));
        }
        if self.earlier > 0 {
            portion.not_covered.push(format!(
                "whether what rests on orders, SKUs or listings from before was allowed: {}",
                counted(self.earlier, "time")
            ));
        }
        portion
    }
}

/// Root and last entry by chain and size, where batches begin and end.
type Ends = HashMap<(u32, u64), (Hash, Hash)>;

fn ends(summaries: &[Summary]) -> Ends {
    let mut ends = HashMap::new();
    for manifest in summaries.iter().map(|s| &s.part.manifest) {
        for (range, continuation) in manifest.chains.iter().zip(manifest.batch.iter().flat_map(|b| &b.continues)) {
            ends.insert((range.chain, range.from), (continuation.root_before, range.prev_hash));
            ends.insert((range.chain, range.to), (range.root, range.last_hash));
        }
    }
    ends
}

/// What was done where others judged the batches.
fn joined(summaries: &[Summary]) -> Portion {
    let mut portion = Portion::new("summaries");
    let n = summaries.len();
    portion.checked.push(format!(
        "{n} summaries: the manifests' signatures, that each batch continues the tree, the keys, the orders and the SKUs of those before it, and \
         what chains say of each other"
    ));
    portion.not_covered.push(
        "entries, bodies and the signatures of commits were not read by this run: they are as whoever made the summaries found them, and a \
         summary is worth what the machine is that made it"
            .to_owned(),
    );
    portion
}

/// Adds what a later batch counts.
fn add(report: &mut ChainReport, now: &ChainReport) {
    report.entries = now.entries;
    report.streams += now.streams;
    report.commits += now.commits;
    report.signatures += now.signatures;
    report.checkpoints += now.checkpoints;
    report.private_present += now.private_present;
    report.private_redacted += now.private_redacted;
    report.covered = now.covered.or(report.covered);
    if now.checkpoint.is_some() {
        report.checkpoint.clone_from(&now.checkpoint);
    }
    (report.head, report.root) = (now.head, now.root);
    for (kind, n) in &now.by_type {
        *report.by_type.entry(kind.clone()).or_default() += n;
    }
    for (day, n) in &now.by_day {
        *report.by_day.entry(*day).or_default() += n;
    }
}

/// What is wrong with an entry's place in its stream, after its last entry.
fn misplaced(link: &Link, tip: Option<&Tip>) -> Option<(Code, String)> {
    if link.follows(tip) {
        return None;
    }
    let (revision, hash) = tip.map_or((0, Hash::ZERO), |tip| (tip.revision, tip.hash));
    Some(if link.revision != revision + 1 {
        (Code::RevisionMismatch, format!("expected revision {}, found {}", revision + 1, link.revision))
    } else if link.parent_hash != hash {
        (Code::ParentHashMismatch, format!("expected {hash}, found {}", link.parent_hash))
    } else {
        (Code::ParentIndexMismatch, String::new())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A later batch may retire any of them with a smaller size than they signed.
    #[test]
    fn a_batch_says_who_signed_what_in_it() {
        judged(|batches| {
            for batch in batches {
                let signers = &batch.chain().signers;
                let by = |purpose: &str| signers.iter().find(|(kid, _)| kid.starts_with(purpose)).map(|(_, end)| *end);
                // A batch ends at a checkpoint.
                assert!(by("checkpoint").is_some() && by("checkpoint") == by("commit"), "{signers:?}");
            }
        });
    }

    /// A batch as its summary has it.
    struct Batch {
        path: PathBuf,
        head: Head,
        records: Vec<Vec<u8>>,
    }

    impl Batch {
        fn facts(&mut self) -> &mut Facts {
            match &mut self.head.outcome {
                Outcome::Proved(facts) => facts,
                other => panic!("{other:?}"),
            }
        }

        fn chain(&mut self) -> &mut ChainFacts {
            &mut self.facts().chains[0]
        }

        /// Changes the entries that continue something.
        fn later(&mut self, change: impl Fn(&mut Later)) {
            for bytes in &mut self.records {
                if let Ok(Written::Later(mut later)) = postcard::from_bytes(bytes) {
                    change(&mut later);
                    *bytes = postcard::to_allocvec(&crate::prove::batch::Record::Later(later)).unwrap();
                }
            }
        }

        fn write(&self) {
            let mut out = flate2::write::GzEncoder::new(tempfile::tempfile().unwrap(), flate2::Compression::fast());
            let mut blake3 = blake3::Hasher::new();
            for bytes in &self.records {
                for part in [&(bytes.len() as u32).to_le_bytes()[..], bytes] {
                    blake3.update(part);
                    io::Write::write_all(&mut out, part).unwrap();
                }
            }
            let mut file = out.finish().unwrap();
            let copy = postcard::to_allocvec(&self.head).unwrap();
            let head: Head = postcard::from_bytes(&copy).unwrap();
            let head = head.with_records(self.records.len() as u64, Hash(*blake3.finalize().as_bytes()));
            summary::write(&self.path, &head, &mut file).unwrap();
        }
    }

    /// The summaries of an archive of three batches, in the second of which an order goes on, with changes that whoever has all keys could
    /// have made in the history itself.
    fn judged(change: impl FnOnce(&mut [Batch; 3])) -> Report {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/valid/archives");
        let expect: serde_json::Value =
            serde_json::from_slice(&std::fs::read(fixtures.join("whole.expect.json")).unwrap()).unwrap();
        let trust = expect["trust"].as_str().and_then(Hash::from_hex);
        let demands = Demands { trust, ..Demands::default() };
        let dir = tempfile::tempdir().unwrap();
        let whole = verify_batches(&fixtures.join("whole").to_string_lossy(), &(1..=3), Some(dir.path()), demands);
        assert_eq!(whole.exit(), 0, "{}", whole.to_text());
        let mut paths: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).collect();
        paths.sort();
        let mut batches: Vec<Batch> = Vec::new();
        for path in &paths {
            let summary = Summary::read(path).unwrap();
            let mut records = Vec::new();
            summary
                .records(|written| {
                    records.push(match written {
                        Written::Held(key, held) => {
                            postcard::to_allocvec(&crate::prove::batch::Record::Held(key, &held)).unwrap()
                        }
                        Written::Later(later) => {
                            postcard::to_allocvec(&crate::prove::batch::Record::Later(later)).unwrap()
                        }
                    });
                    Ok(())
                })
                .unwrap();
            batches.push(Batch { path: path.clone(), head: summary.head, records });
        }
        let Ok(mut batches) = <[Batch; 3]>::try_from(batches) else { panic!("three batches") };
        change(&mut batches);
        batches.iter().for_each(Batch::write);
        combine(&paths, demands)
    }

    #[test]
    fn what_does_not_fit_over_a_seam_is_found() {
        let whole = judged(|_| {});
        assert_eq!(whole.exit(), 0, "{}", whole.to_text());
        type Change = fn(&mut [Batch; 3]);
        let cases: &[(&str, Change)] = &[
            ("revision_mismatch", |b| b[1].later(|l| l.link.revision += 1)),
            ("parent_hash_mismatch", |b| b[1].later(|l| l.link.parent_hash = Hash([1; 32]))),
            ("parent_index_mismatch", |b| b[1].later(|l| l.link.parent_index = Some(0))),
            ("illegal_transition", |b| b[1].later(|l| l.event_type = "order.finalized".into())),
            ("time_regression", |b| b[1].chain().first_time_us = Some(0)),
            ("registry_position_mismatch", |b| b[1].chain().first_registry_size = Some(0)),
            ("revision_mismatch", |b| b[2].chain().links[0].1.revision += 1),
            ("parent_hash_mismatch", |b| b[2].chain().links[0].1.parent_hash = Hash([1; 32])),
            // The order that goes on begins again.
            ("revision_mismatch", |b| {
                let first = b[0].records.clone();
                b[1].records.extend(first);
            }),
            ("illegal_transition", |b| b[1].facts().claimed.push((7, 0, 20))),
            ("illegal_transition", |b| b[0].facts().listed.clear()),
            ("illegal_transition", |b| {
                let (root, last_hash) = (Hash([1; 32]), Hash([1; 32]));
                b[1].facts().heads.push(HeadClaim { index: 20, chain: 0, size: 14, root, last_hash });
            }),
        ];
        for (n, (code, change)) in cases.iter().enumerate() {
            let report = judged(change);
            assert!(report.codes().iter().any(|c| c == code), "{n}: {code}\n{}", report.to_text());
            assert_eq!(report.exit(), 1, "{n}");
        }
        // The state in which an order was left decides what comes next.
        let report = judged(|b| b[0].records.clear());
        assert_eq!(report.exit(), 1, "{}", report.to_text());
        assert!(report.codes().iter().all(|c| c == "revision_mismatch" || c == "illegal_transition"));
    }
}
