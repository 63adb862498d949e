//! The whole judgement of a legacy chain: rows in parallel, then their order, then the anchors.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use ledger_engine::adoption::{Adopted, RowName};
use ledger_engine::hash::Hash;
use rayon::prelude::*;

use super::anchor::Anchor;
use super::gauge::Gauge;
use super::judge::{OTHER_TYPES, Piece, TYPES_MAX, Use, judge, shown};
use super::report::{AdoptionReport, KeyReport, LegacyReport};
use super::resolve::{Extent, LinkFault, Links, Position, Prefix, ROWS_MAX, Resolved, Timed};
use super::row::Rows;
use super::signers::Signers;
use crate::collector::Collector;
use crate::finding::{Code, Finding};
use crate::report::Verdict;
use crate::spill::{Sorter, Texts};

/// Rows judged together by one thread. Signatures of a piece and a key are one batch.
const PIECE_ROWS: usize = 2048;
/// Days that are counted apart.
const DAYS_MAX: usize = 100_000;
/// Whoever watches is asked at least so often.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// Why a source could not be read, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LegacyError {
    /// The source: where, and what.
    #[error("{0}")]
    Source(String),
    /// The place for temporary files.
    #[error("temporary files: {0}; make room, or set TMPDIR to a larger place")]
    Temporary(#[from] io::Error),
    /// More rows than row numbers.
    #[error("the source has more than {ROWS_MAX} rows; verify it in parts")]
    TooManyRows,
    /// Whoever watches asked for it.
    #[error("stopped when asked to")]
    Stopped,
}

/// Told how many rows were judged and how far the source was read; `false` stops the run, which then says what it covered.
pub type Watch<'a> = dyn Fn(u64, &Gauge) -> bool + 'a;

/// Where rows come from, each once.
pub trait Source: Send {
    /// What it is, for the report.
    fn kind(&self) -> String;

    /// How far it was read.
    fn gauge(&self) -> Arc<Gauge>;

    /// Only the newest rows were asked for.
    fn windowed(&self) -> bool {
        false
    }

    /// The number of rows that the source itself claims, once it was read.
    fn stated_count(&self) -> Option<u64> {
        None
    }

    /// What the reader should know of how it was read, once it was.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Which of these hashes are of rows beyond those that were given.
    fn outside(&mut self, hashes: &[Hash]) -> Result<HashSet<Hash>, LegacyError>;

    /// The next rows: some thousand, or some megabytes.
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "sources are this crate's")]
    fn read(&mut self) -> Result<Option<Box<dyn Rows>>, LegacyError>;
}

/// What the pass over the rows leaves.
struct Pass {
    links: Links,
    /// `row number, code, evidence` of findings on rows alone.
    findings: Texts,
    counts: BTreeMap<Code, u64>,
    uses: BTreeMap<usize, Use>,
    types: BTreeMap<String, u64>,
    days: BTreeMap<i64, u64>,
    hashes_compared: u64,
    unread: u64,
    /// Why it ended early.
    stopped: Option<String>,
}

impl Pass {
    fn take(&mut self, piece: Piece) -> Result<(), LegacyError> {
        let first = self.links.len();
        if first + piece.rows.len() as u64 > ROWS_MAX {
            return Err(LegacyError::TooManyRows);
        }
        for (row, id) in piece.rows.iter().zip(&piece.ids) {
            self.links.push(row, id)?;
        }
        for (at, code, evidence) in piece.findings {
            *self.counts.entry(code).or_default() += 1;
            let code = Code::ALL.iter().position(|c| *c == code).unwrap_or_default();
            self.findings.push(&format!("{} {code} {evidence}", first + at as u64))?;
        }
        for (kid, seen) in piece.uses {
            let used = self.uses.entry(kid).or_default();
            used.signatures += seen.signatures;
            used.outside += seen.outside;
            used.first_outside = used.first_outside.or(seen.first_outside);
        }
        for (name, n) in piece.types {
            let name =
                if self.types.len() < TYPES_MAX || self.types.contains_key(&name) { name } else { OTHER_TYPES.into() };
            *self.types.entry(name).or_default() += n;
        }
        for (day, n) in piece.days {
            if self.days.len() < DAYS_MAX || self.days.contains_key(&day) {
                *self.days.entry(day).or_default() += n;
            }
        }
        self.hashes_compared += piece.hashes_compared;
        self.unread += piece.unread;
        Ok(())
    }
}

/// Judges a source against a registry and saved heads. Without a registry no signature is checked, and the best verdict
/// is that the chain is consistent.
pub fn verify_legacy(
    name: &str,
    source: &mut dyn Source,
    signers: Option<&Signers>,
    anchors: &[Anchor],
) -> LegacyReport {
    verify_legacy_with(name, source, signers, anchors, &|_, _| true)
}

/// Like [`verify_legacy`], watched.
pub fn verify_legacy_with(
    name: &str,
    source: &mut dyn Source,
    signers: Option<&Signers>,
    anchors: &[Anchor],
    watch: &Watch<'_>,
) -> LegacyReport {
    verify_adopted(name, source, signers, anchors, &[], watch)
}

/// Like [`verify_legacy_with`], and compares the rows with what a ledger says that it adopted, by its
/// [`adopted`](crate::Report::adopted).
pub fn verify_adopted(
    name: &str,
    source: &mut dyn Source,
    signers: Option<&Signers>,
    anchors: &[Anchor],
    adopted: &[Adopted],
    watch: &Watch<'_>,
) -> LegacyReport {
    let mut pass = Pass {
        links: Links::new(),
        findings: Texts::new(),
        counts: BTreeMap::new(),
        uses: BTreeMap::new(),
        types: BTreeMap::new(),
        days: BTreeMap::new(),
        hashes_compared: 0,
        unread: 0,
        stopped: None,
    };
    let gauge = source.gauge();
    let read = read_all(source, signers, &mut pass, &|rows| watch(rows, &gauge));
    pass.stopped = read.err().map(|e| format!("{e} ({} rows were read)", pass.links.len()));
    let mut report = LegacyReport::unreadable(name, &source.kind(), "");
    let go_on = |rows: u64| watch(rows, &gauge);
    match conclude(&mut report, source, signers, anchors, adopted, pass, &go_on) {
        Ok(()) => report,
        Err(e) => LegacyReport::unreadable(name, &source.kind(), &e.to_string()),
    }
}

/// One thread reads ahead while the pool judges.
fn read_all(
    source: &mut dyn Source,
    signers: Option<&Signers>,
    pass: &mut Pass,
    go_on: &dyn Fn(u64) -> bool,
) -> Result<(), LegacyError> {
    let gauge = source.gauge();
    std::thread::scope(|scope| {
        let (give, take) = sync_channel(1);
        scope.spawn(move || {
            loop {
                let read = source.read().transpose();
                let Some(read) = read else { return };
                let last = read.is_err();
                if give.send(read).is_err() || last {
                    return;
                }
            }
        });
        let judged = judge_all(&take, signers, pass, go_on);
        if judged.is_err() {
            // The reader may wait for input that never comes, or to hand over what nobody takes any more.
            gauge.stop();
        }
        drop(take);
        judged
    })
}

fn judge_all(
    take: &Receiver<Result<Box<dyn Rows>, LegacyError>>,
    signers: Option<&Signers>,
    pass: &mut Pass,
    go_on: &dyn Fn(u64) -> bool,
) -> Result<(), LegacyError> {
    loop {
        let rows = match take.recv_timeout(WATCH_EVERY) {
            Ok(rows) => Some(rows?),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        if !go_on(pass.links.len()) {
            return Err(LegacyError::Stopped);
        }
        if let Some(rows) = rows {
            let first = pass.links.len();
            let starts: Vec<usize> = (0..rows.len()).step_by(PIECE_ROWS).collect();
            let pieces: Vec<Piece> = starts
                .into_par_iter()
                .map(|from| {
                    let to = (from + PIECE_ROWS).min(rows.len());
                    judge(rows.as_ref(), from..to, first + from as u64, signers)
                })
                .collect();
            pieces.into_iter().try_for_each(|piece| pass.take(piece))?;
        }
    }
}

/// Findings in chain order: the position, the code, and where it was noted, which is in order for one row. What was noted of links comes
/// after what was noted of rows alone.
struct Order(Sorter<22>);

const OF_LINKS: u64 = 1 << 63;
/// Findings that are sorted in memory.
const ORDER_RUN: usize = 1 << 18;

impl Order {
    fn add(&mut self, (elsewhere, first, height, row): Position, code: Code, noted: u64) -> io::Result<()> {
        let mut record = [0; 22];
        record[0] = u8::from(elsewhere);
        for (at, word) in [first, height, row].into_iter().enumerate() {
            record[1 + 4 * at..][..4].copy_from_slice(&word.to_be_bytes());
        }
        record[13] = code as u8;
        record[14..].copy_from_slice(&noted.to_be_bytes());
        self.0.push(record)
    }
}

/// Where in what was noted a finding is, and its row and code.
fn noted(record: &[u8; 22]) -> (u64, u32, Code) {
    let [.., r0, r1, r2, r3, code, n0, n1, n2, n3, n4, n5, n6, n7] = *record;
    let code = Code::ALL[usize::from(code)];
    (u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]), u32::from_be_bytes([r0, r1, r2, r3]), code)
}

fn conclude(
    report: &mut LegacyReport,
    source: &mut dyn Source,
    signers: Option<&Signers>,
    anchors: &[Anchor],
    adopted: &[Adopted],
    pass: Pass,
    go_on: &dyn Fn(u64) -> bool,
) -> Result<(), LegacyError> {
    let Pass { links, mut findings, mut counts, uses, types, days, hashes_compared, unread, stopped } = pass;
    report.rows = links.len();
    (report.types, report.days, report.hashes_compared) = (types, days, hashes_compared);
    let extent = match &stopped {
        Some(_) => Extent::Partial,
        None if source.windowed() => Extent::Window,
        None => Extent::Whole,
    };
    // A predecessor that cannot be looked for was not read either.
    let mut outside = |hashes: &[Hash]| source.outside(hashes).unwrap_or_else(|_| hashes.iter().copied().collect());
    let mut resolved = links.resolve(extent, &mut outside)?;
    let one_path = resolved.faults() == 0 && resolved.outside.is_empty() && extent != Extent::Partial;
    // They take memory of their own, which is given back before findings are put in order.
    let whole = extent == Extent::Whole && resolved.outside.is_empty();
    let mut sizes: Vec<u64> = adopted.iter().map(|a| a.adoption.count).filter(|n| *n <= report.rows).collect();
    sizes.push(report.rows);
    let adopted_prefixes = whole.then(|| resolved.prefixes(&sizes)).transpose()?;
    // What was resolved is in memory beside it.
    let mut order = Order(Sorter::with_run_len(ORDER_RUN));
    findings.flush()?;
    findings.each(|at, text| {
        let mut number = text.splitn(3, ' ').map_while(|n| n.parse::<u32>().ok());
        let (row, code) = (number.next().unwrap_or_default(), number.next().unwrap_or_default());
        order.add(resolved.position(row), Code::ALL[code as usize], at)
    })?;
    let mut faults = 0;
    resolved.each_fault(|resolved, row, fault| {
        *counts.entry(fault.code()).or_default() += 1;
        order.add(resolved.position(row), fault.code(), OF_LINKS | faults)?;
        faults += 1;
        Ok(())
    })?;
    let (mut list, mut order) = (Collector::default(), order.0.sorted()?);
    let mut listed = 0_u64;
    while let Some(record) = order.next()? {
        listed += 1;
        // Whoever stopped the reading wants to see what there is.
        if listed.is_multiple_of(1 << 12) && stopped.is_none() && !go_on(report.rows) {
            return Err(LegacyError::Stopped);
        }
        let (at, row, code) = noted(&record);
        let evidence = match at.checked_sub(OF_LINKS) {
            None => findings.at(at)?.splitn(3, ' ').nth(2).unwrap_or_default().to_owned(),
            Some(at) => {
                let fault = resolved.fault_at(at)?;
                describe(&mut resolved, fault)?
            }
        };
        list.report(code, None, place(&mut resolved, row)?, evidence);
    }
    drop((findings, order));
    if let Some((row, hash)) = resolved.head()? {
        report.head = Some(hash);
        report.head_id = resolved.links.ids.at(u64::from(row))?;
        report.chain_rows = u64::from(resolved.position(row).2) + 1;
    }
    let mut fault = |code: Code, place: String, evidence: String| {
        *counts.entry(code).or_default() += 1;
        list.report(code, None, place, evidence);
    };
    if let Some(stated) = source.stated_count().filter(|n| *n != report.rows && extent == Extent::Whole) {
        fault(
            Code::LegacyCountMismatch,
            "export".into(),
            format!("expected {stated} events as the export says, found {}", report.rows),
        );
    }
    let mut anchors: Vec<&Anchor> = anchors.iter().collect();
    anchors.sort_by_key(|a| a.rows);
    let mut prefixes = Vec::new();
    if one_path && report.rows > 0 {
        let (all, some) = resolved.digests(&anchors.iter().map(|a| a.rows).collect::<Vec<_>>())?;
        report.rows_digest = Some(all);
        prefixes = some;
    }
    if extent == Extent::Whole {
        let heads: Vec<Hash> = anchors.iter().map(|a| a.head_hash).collect();
        let found = resolved.links.find(&heads)?;
        for (at, anchor) in anchors.iter().enumerate() {
            let row = found.get(&anchor.head_hash);
            match judge_anchor(anchor, row.map(|r| resolved.position(*r)), prefixes.get(at), report.chain_rows) {
                None => {
                    report.anchors += 1;
                    report.anchored_rows = report.anchored_rows.max(anchor.rows);
                }
                Some((code, evidence)) => fault(code, format!("anchor/{}", anchor.rows), evidence),
            }
        }
    }
    if let Some(prefixes) = adopted_prefixes {
        if let Some(all) = prefixes.last().filter(|_| unread == 0) {
            report.root = Some(all.root);
            (report.first, report.last) = (row_name(&mut resolved, all.first)?, row_name(&mut resolved, all.last)?);
            report.last_hash = Some(all.head);
        }
        for (at, one) in adopted.iter().enumerate() {
            let prefix = prefixes.get(at).filter(|_| one.adoption.count <= report.rows);
            let wrong = judge_adoption(one, prefix, report.rows, &mut resolved)?;
            let (index, count) = (one.index, one.adoption.count);
            let held = wrong.is_none();
            report.adoptions.push(AdoptionReport { index, count, recorded_at_us: one.recorded_at_us, held });
            if let Some(evidence) = wrong {
                fault(
                    Code::LegacyAdoptionMismatch,
                    format!("{}/{index}", ledger_engine::adoption::EVENT_TYPE),
                    evidence,
                );
            }
        }
    }
    report.counts = counts;
    report.findings = list.complete().map_err(|e| LegacyError::Source(e.to_string()))?;
    report.whole = extent != Extent::Partial && resolved.edge.is_none() && resolved.outside.is_empty();
    keys(report, signers, &uses, &mut resolved)?;
    adoption_notes(report, signers, adopted);
    notes(report, source, &mut resolved, signers, extent, anchors.len() as u64)?;
    let not_read = !resolved.outside.is_empty();
    (report.verdict, report.reason) = match stopped {
        _ if !report.counts.is_empty() => (Verdict::Broken, stopped.unwrap_or_default()),
        Some(reason) => (Verdict::NotChecked, reason),
        None if report.rows == 0 => (Verdict::NotChecked, "there are no rows".into()),
        None if not_read => {
            (Verdict::NotChecked, "rows were written meanwhile that others build on; run it again".into())
        }
        None if extent != Extent::Whole && !anchors.is_empty() => {
            (Verdict::NotChecked, "an anchor needs the whole chain; leave --limit and --since away".into())
        }
        None if extent != Extent::Whole && !adopted.is_empty() => {
            (Verdict::NotChecked, "an adoption needs the whole chain; leave --limit and --since away".into())
        }
        None if signers.is_none() => (Verdict::IdentityNotProven, String::new()),
        None => (Verdict::Verified, String::new()),
    };
    Ok(())
}

/// `None` if the anchor holds.
fn judge_anchor(
    anchor: &Anchor,
    position: Option<Position>,
    prefix: Option<&Hash>,
    chain_rows: u64,
) -> Option<(Code, String)> {
    match position {
        None if chain_rows < anchor.rows => {
            Some((Code::LegacyAnchorBeyondTail, format!("expected at least {} rows, found {chain_rows}", anchor.rows)))
        }
        None => Some((
            Code::LegacyAnchorMismatch,
            format!("expected row {} to have hash {}", anchor.rows, anchor.head_hash),
        )),
        Some((elsewhere, _, height, _)) if elsewhere || u64::from(height) + 1 != anchor.rows => Some((
            Code::LegacyAnchorMismatch,
            format!(
                "expected hash {} at row {} of the chain, found it at row {}",
                anchor.head_hash,
                anchor.rows,
                u64::from(height) + 1
            ),
        )),
        Some(_) => prefix.filter(|found| **found != anchor.rows_digest).map(|found| {
            (
                Code::LegacyAnchorMismatch,
                format!("expected digest {} of rows 1 to {}, found {found}", anchor.rows_digest, anchor.rows),
            )
        }),
    }
}

fn row_name(resolved: &mut Resolved, (row, time_us): Timed) -> io::Result<RowName> {
    let id = resolved.links.ids.at(u64::from(row))?;
    Ok(RowName { id: Some(id).filter(|id| !id.is_empty()), time_us })
}

/// `None` if the rows are those that were adopted.
fn judge_adoption(
    adopted: &Adopted,
    prefix: Option<&Prefix>,
    rows: u64,
    resolved: &mut Resolved,
) -> io::Result<Option<String>> {
    let wanted = &adopted.adoption;
    let n = wanted.count;
    let Some(found) = prefix else { return Ok(Some(format!("expected at least the {n} rows adopted, found {rows}"))) };
    if found.root != wanted.root {
        return Ok(Some(format!("expected root {} over rows 1 to {n}, found {}", wanted.root, found.root)));
    }
    let ends = (row_name(resolved, found.first)?, row_name(resolved, found.last)?);
    let held = (&wanted.first, &wanted.last, wanted.head_hash) == (&ends.0, &ends.1, found.head);
    Ok((!held).then(|| {
        format!(
            "the rows have the root adopted, but not the head or range that the entry names: expected head {}, found {}",
            wanted.head_hash, found.head
        )
    }))
}

/// What the reader must know of adoptions, and of the registry they were made with.
fn adoption_notes(report: &mut LegacyReport, signers: Option<&Signers>, adopted: &[Adopted]) {
    let Some(last) = adopted.last() else { return };
    let place = format!("{}/{}", ledger_engine::adoption::EVENT_TYPE, last.index);
    let mut note = |code, evidence| report.notes.push(Finding { code, chain: None, place: place.clone(), evidence });
    let after = report.rows.saturating_sub(last.adoption.count);
    note(
        Code::LegacyAdoptionAsOf,
        format!(
            "{} rows as of {}; {after} rows after them are not covered by it",
            last.adoption.count,
            ledger_engine::time::rfc3339(last.recorded_at_us)
        ),
    );
    let Some(signers) = signers.filter(|s| s.sha256 != last.adoption.registry.sha256) else { return };
    let same = |kid: &str, fingerprint: &Hash| {
        let found = signers.list.iter().find(|s| shown(&s.kid) == kid);
        found.is_some_and(|s| s.key.as_ref().is_ok_and(|k| k.fingerprint() == *fingerprint))
    };
    let registry = &last.adoption.registry;
    let other: Vec<&str> = registry.keys.iter().filter(|(k, f)| !same(k, f)).map(|(kid, _)| kid.as_str()).collect();
    let keys = if other.is_empty() { "all of its keys are the same".into() } else { format!("other keys: {other:?}") };
    note(
        Code::LegacyAdoptionRegistry,
        format!("expected SHA-256 {}, found {}; {keys}", registry.sha256, signers.sha256),
    );
}

/// `audit_events/<id>`, or `row/<number from 1>` for one without.
fn place(resolved: &mut Resolved, row: u32) -> io::Result<String> {
    let id = resolved.links.ids.at(u64::from(row))?;
    Ok(if id.is_empty() { format!("row/{}", u64::from(row) + 1) } else { format!("audit_events/{id}") })
}

fn describe(resolved: &mut Resolved, fault: LinkFault) -> io::Result<String> {
    Ok(match fault {
        LinkFault::Missing { prev, .. } => format!("expected a row with hash {prev}, found none"),
        LinkFault::Fork { first, parent: Some(parent) } => {
            format!("{} claims the same predecessor, {}", place(resolved, first)?, place(resolved, parent)?)
        }
        LinkFault::Fork { first, parent: None } => {
            format!("{} claims the same, missing predecessor", place(resolved, first)?)
        }
        LinkFault::Duplicate { first } => {
            format!("the same as {} (row {} of the source)", place(resolved, first)?, u64::from(first) + 1)
        }
        LinkFault::Id { first } => format!("row {} of the source has the same id", u64::from(first) + 1),
        LinkFault::Cycle => String::new(),
    })
}

fn keys(
    report: &mut LegacyReport,
    signers: Option<&Signers>,
    uses: &BTreeMap<usize, Use>,
    resolved: &mut Resolved,
) -> io::Result<()> {
    for (at, signer) in signers.map(|s| s.list.as_slice()).unwrap_or_default().iter().enumerate() {
        let used = uses.get(&at).copied().unwrap_or_default();
        if let Some(row) = used.first_outside {
            let evidence = format!("{} rows, the first {}", used.outside, place(resolved, row as u32)?);
            let place = format!("key/{}", shown(&signer.kid));
            report.notes.push(Finding { code: Code::LegacyOutsideWindow, chain: None, place, evidence });
        }
        report.keys.push(KeyReport {
            kid: shown(&signer.kid),
            key: signer.key.as_ref().map(|k| (k.algorithm(), k.fingerprint())).map_err(ToString::to_string),
            valid_from: signer.valid_from,
            revoked_at: signer.revoked_at,
            signatures: used.signatures,
        });
    }
    Ok(())
}

fn notes(
    report: &mut LegacyReport,
    source: &mut dyn Source,
    resolved: &mut Resolved,
    signers: Option<&Signers>,
    extent: Extent,
    anchors: u64,
) -> io::Result<()> {
    let mut notes = Vec::new();
    let mut note =
        |code: Code, place: String, evidence: String| notes.push(Finding { code, chain: None, place, evidence });
    let covered = report.adopted_rows();
    if covered == 0 || covered < report.rows {
        let which =
            if covered == 0 { "every row".to_owned() } else { format!("every row after the {covered} adopted") };
        let evidence = format!("id, type, actor, time and kid of {which}");
        note(Code::LegacyFieldsNotCovered, "audit_events".into(), evidence);
    }
    if signers.is_none() {
        note(Code::LegacySignaturesNotCovered, "audit_events".into(), String::new());
    }
    if let Some((row, prev)) = resolved.edge {
        let evidence = format!("rows up to the one with hash {prev}, before {}", place(resolved, row)?);
        note(Code::LegacyRangeNotCovered, "audit_events".into(), evidence);
    }
    for row in resolved.outside.clone() {
        note(Code::LegacyRangeNotCovered, place(resolved, row)?, "its predecessor was not read".into());
    }
    for remark in source.remarks() {
        note(Code::LegacyRangeNotCovered, "audit_events".into(), remark);
    }
    if extent == Extent::Partial {
        note(Code::LegacyRangeNotCovered, "audit_events".into(), format!("everything after row {}", report.rows));
    }
    if anchors == 0 || report.anchors < anchors {
        note(
            Code::LegacyTailNotCovered,
            "audit_events".into(),
            report.head.map(|h| format!("after {h}")).unwrap_or_default(),
        );
    }
    report.notes.append(&mut notes);
    Ok(())
}
