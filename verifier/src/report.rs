//! The report: a verdict, what was checked, what was not, and every finding.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ledger_engine::adoption::Adopted;
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::registry::{KeyRecord, Registry};
use ledger_engine::succession::Succession;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer as _};
use serde_json::json;

use crate::collector::Findings;
use crate::finding::{Code, Finding};
use crate::legacy::{OTHER_TYPES, TYPES_MAX};
use crate::ranges::{Owner, Range, ranges};
use crate::verify::Demands;

/// What judges, in reports.
pub(crate) const TOOL: &str = concat!("audit-verify ", env!("CARGO_PKG_VERSION"));
/// Microseconds of a day.
const DAY_US: i64 = 86_400_000_000;

/// The headline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No fault, and the ledger is the pinned one. Exit 0.
    Verified,
    /// At least one fault. Exit 1.
    Broken,
    /// No fault, but nothing says whose ledger it is. Exit 2.
    IdentityNotProven,
    /// No fault, but something that was asked for could not be checked. Exit 2.
    NotAllChecked,
    /// The source could not be read. Exit 2.
    NotChecked,
}

impl Verdict {
    /// The words.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Verified => "VERIFIED",
            Verdict::Broken => "BROKEN",
            Verdict::IdentityNotProven => "CONSISTENT, IDENTITY NOT PROVEN",
            Verdict::NotAllChecked => "CONSISTENT, NOT ALL CHECKED",
            Verdict::NotChecked => "COULD NOT CHECK",
        }
    }

    /// The exit status.
    pub fn exit(self) -> u8 {
        match self {
            Verdict::Verified => 0,
            Verdict::Broken => 1,
            Verdict::IdentityNotProven | Verdict::NotAllChecked | Verdict::NotChecked => 2,
        }
    }
}

/// What was checked of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs, reason = "counts, named by what they count")]
pub struct ChainReport {
    pub chain: u64,
    pub entries: u64,
    /// First entry that was read; what is counted below is counted from there on. Above 0 only of what came after an anchor.
    pub from: u64,
    pub streams: u64,
    pub commits: u64,
    pub signatures: u64,
    pub checkpoints: u64,
    /// Size of the largest checkpoint that holds, as stored in the ledger.
    pub covered: Option<u64>,
    /// Size that a given anchor proves: entries below it are those that were there when it was saved.
    pub anchored: Option<u64>,
    /// The signed note of the largest checkpoint that holds.
    pub checkpoint: Option<String>,
    /// Entry hash of the last entry, recomputed.
    pub head: Option<Hash>,
    /// RFC 6962 root over all entries, recomputed; `None` where entries are missing or damaged.
    pub root: Option<Hash>,
    /// Entries by event type.
    pub by_type: BTreeMap<String, u64>,
    /// Entries by day, UTC, in days since 1970-01-01.
    pub by_day: BTreeMap<i64, u64>,
    pub private_present: u64,
    pub private_redacted: u64,
    /// `None`: not judged, because the history is damaged.
    pub projection_rows: Option<u64>,
    /// Index after the last row, where rows may be missing.
    #[serde(skip)]
    pub end: u64,
    /// SHA-256 over the rows of entries as they were read, where not all of them are certain (FORMAT.md 10).
    #[serde(skip)]
    pub rows_digest: Option<Hash>,
    /// Entries that rest on a key while it was in other hands: from, and behind the last.
    #[serde(skip)]
    pub doubtful: Vec<(u64, u64)>,
    /// What is known of the keys is not certain: their registry is damaged.
    #[serde(skip)]
    pub registry_doubtful: bool,
}

impl ChainReport {
    /// Counts an entry.
    pub(crate) fn count(&mut self, event_type: &str, recorded_at_us: i64) {
        if let Some(n) = self.by_type.get_mut(event_type) {
            *n += 1;
        } else {
            // Honest entries are of few types.
            let name = if self.by_type.len() < TYPES_MAX { event_type } else { OTHER_TYPES };
            *self.by_type.entry(name.to_owned()).or_default() += 1;
        }
        *self.by_day.entry(recorded_at_us.div_euclid(DAY_US)).or_default() += 1;
    }
}

/// A key of the registry, as of the whole ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReport {
    /// Its name.
    pub kid: String,
    /// What it may sign.
    pub purpose: &'static str,
    /// `ed25519` or `rsa-sha256`.
    pub alg: &'static str,
    /// Lowercase hex: 32 raw bytes, or SubjectPublicKeyInfo DER.
    pub public_key: String,
    /// Registry size from which it is known.
    pub enrolled: u64,
    /// Registry size from which it is retired, and its cut: a size of each chain.
    pub retired: Option<(u64, Vec<u64>)>,
}

impl KeyReport {
    pub(crate) fn all(registry: &Registry) -> Vec<KeyReport> {
        let report = |r: &KeyRecord| KeyReport {
            kid: r.key.kid.clone(),
            purpose: r.key.purpose.as_str(),
            alg: r.key.public_key.algorithm().as_str(),
            public_key: r.key.public_key.to_hex(),
            enrolled: r.enrolled_size,
            retired: r.retired.as_ref().map(|r| (r.registry_size, r.cut.clone())),
        };
        registry.records().iter().map(report).collect()
    }
}

/// What a judgement is about that is not of a whole ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// `proof`, `stream`, `tail` or `batches`.
    pub kind: &'static str,
    /// What was checked, for people.
    pub checked: Vec<String>,
    /// What was not, and why that is so.
    pub not_covered: Vec<String>,
    /// Names what was judged, where it is not named by chains.
    digest: Option<Hash>,
}

impl Part {
    pub(crate) fn new(kind: &'static str) -> Part {
        Part { kind, ..Part::default() }
    }
}

/// The judgement of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    source: String,
    /// What the source is, and what it says of itself; nothing where it could not be opened.
    kind: Option<String>,
    verdict: Verdict,
    reason: String,
    ledger_id: Option<Hash>,
    origin: Option<String>,
    findings: Findings,
    chains: Vec<ChainReport>,
    /// What was asked for and could not be checked.
    unchecked: Vec<String>,
    keys: Vec<KeyReport>,
    /// Legacy rows that the ledger adopted.
    adopted: Vec<Adopted>,
    /// The legacy source that is compared with them in the same run.
    legacy_source: Option<String>,
    /// The ledger that this one takes the place of.
    succeeds: Option<Succession>,
    /// What the export says of itself, where the source is one.
    export: Option<String>,
    part: Option<Part>,
    /// The caller said which ledger it must be.
    pinned: bool,
    anchors_given: bool,
}

/// Writes the members of a report as one object, with its findings.
pub(crate) fn write_members(
    members: &serde_json::Value,
    findings: &impl Serialize,
    out: &mut dyn std::io::Write,
) -> std::io::Result<()> {
    let mut serializer = serde_json::Serializer::new(out);
    let mut object = serializer.serialize_map(None)?;
    for (name, value) in members.as_object().into_iter().flatten() {
        match name.as_str() {
            "findings" => object.serialize_entry(name, findings)?,
            name => object.serialize_entry(name, value)?,
        }
    }
    Ok(object.end()?)
}

impl Report {
    pub(crate) fn new(
        source: &str,
        ledger_id: Option<Hash>,
        origin: Option<String>,
        demands: &Demands<'_>,
        findings: Findings,
        chains: Vec<ChainReport>,
        mut unchecked: Vec<String>,
    ) -> Report {
        if demands.require_anchor {
            let loose = chains.iter().filter(|c| c.anchored.unwrap_or(0) < c.entries);
            unchecked.extend(loose.map(|c| {
                let from = c.anchored.unwrap_or(0);
                format!("chain {}: no anchor covers the entries {from} to {}", c.chain, c.entries.saturating_sub(1))
            }));
        }
        let verdict = match (findings.total == 0, demands.trust.is_some()) {
            (false, _) => Verdict::Broken,
            // A run that was stopped judged no chain: that comes before whose it is.
            (true, false) if chains.is_empty() && !unchecked.is_empty() => {
                unchecked.push("whose ledger it is: give --trust with the id you were given".into());
                Verdict::NotAllChecked
            }
            (true, false) => Verdict::IdentityNotProven,
            (true, true) if unchecked.is_empty() => Verdict::Verified,
            (true, true) => Verdict::NotAllChecked,
        };
        Report {
            source: source.to_owned(),
            kind: None,
            verdict,
            reason: String::new(),
            ledger_id,
            origin,
            findings,
            chains,
            unchecked,
            keys: Vec::new(),
            adopted: Vec::new(),
            legacy_source: None,
            succeeds: None,
            export: None,
            part: None,
            pinned: demands.trust.is_some(),
            anchors_given: !demands.anchors.is_empty(),
        }
    }

    pub(crate) fn unreadable(source: &str, reason: &str) -> Report {
        let (findings, chains) = (Findings::default(), Vec::new());
        let verdict = Verdict::NotChecked;
        Report {
            source: source.to_owned(),
            kind: None,
            verdict,
            reason: reason.to_owned(),
            ledger_id: None,
            origin: None,
            findings,
            chains,
            unchecked: Vec::new(),
            keys: Vec::new(),
            adopted: Vec::new(),
            legacy_source: None,
            succeeds: None,
            export: None,
            part: None,
            pinned: false,
            anchors_given: false,
        }
    }

    /// Whether all that keeps it from being verified is that keys were in other hands, and that no anchor covers what they signed then.
    pub fn is_open_for_keys_alone(&self) -> bool {
        let doubtful: usize = self.chains.iter().map(|c| c.doubtful.len()).sum();
        self.verdict == Verdict::NotAllChecked && doubtful > 0 && self.unchecked.len() == doubtful
    }

    /// Adds faults that are not of the source alone.
    pub(crate) fn with_faults(mut self, found: Vec<Finding>) -> Report {
        if !found.is_empty() && self.verdict != Verdict::NotChecked {
            self.verdict = Verdict::Broken;
            self.findings.lead(found);
        }
        self
    }

    /// Adds what was asked for and could not be checked.
    #[must_use]
    pub fn with_unchecked(mut self, what: String) -> Report {
        if self.verdict == Verdict::Verified {
            self.verdict = Verdict::NotAllChecked;
        }
        self.unchecked.push(what);
        self
    }

    pub(crate) fn of_kind(mut self, kind: String) -> Report {
        self.kind = Some(kind);
        self
    }

    /// Says that the source is an export, which has no projections.
    pub(crate) fn of_export(mut self, described: String) -> Report {
        self.export = Some(described);
        self
    }

    pub(crate) fn of_part(mut self, part: Part) -> Report {
        self.part = Some(part);
        self
    }

    /// What is known of each stretch of a chain, in order.
    pub fn ranges(&self, chain: &ChainReport) -> Vec<Range> {
        let owner = match (self.faults_of(Code::LedgerIdMismatch) > 0, self.pinned) {
            (true, _) => Owner::Another,
            (false, true) => Owner::Pinned,
            (false, false) => Owner::Unknown,
        };
        ranges(chain, self.findings.extents.get(&chain.chain).copied(), owner)
    }

    pub(crate) fn with_digest(mut self, digest: Hash) -> Report {
        self.part.iter_mut().for_each(|part| part.digest = Some(digest));
        self
    }

    /// What was judged, where it is not a whole ledger.
    pub fn part(&self) -> Option<&Part> {
        self.part.as_ref()
    }

    /// What the export says of itself, where the source is one.
    pub fn export(&self) -> Option<&str> {
        self.export.as_deref()
    }

    /// What was done about projections.
    pub(crate) fn projections(&self, chain: &ChainReport) -> String {
        match (chain.projection_rows, &self.export) {
            (Some(n), _) => format!("{n} projection rows compared with the fold"),
            (None, Some(_)) => "projections are no part of an export".to_owned(),
            (None, None) => "projections not covered (the history is damaged)".to_owned(),
        }
    }

    /// Says why the quick proof did not do, where there is no finding to say it.
    pub(crate) fn judged_again_for(mut self, what: &str) -> Report {
        if self.findings.total == 0 && self.unchecked.is_empty() && self.reason.is_empty() {
            self.reason = format!("judged the long way, since the quick proof could not do without: {what}");
        }
        self
    }

    /// Why it could not be checked, or what was unusual; empty otherwise.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn with_keys(mut self, keys: Vec<KeyReport>) -> Report {
        self.keys = keys;
        self
    }

    pub(crate) fn with_adopted(mut self, adopted: Vec<Adopted>) -> Report {
        self.adopted = adopted;
        self
    }

    pub(crate) fn with_succession(mut self, succeeds: Option<Succession>) -> Report {
        self.succeeds = succeeds;
        self
    }

    /// What the genesis says of the ledger that this one takes the place of, for people; nothing where there is none.
    pub(crate) fn succession_in_words(&self) -> Vec<String> {
        let Some(Succession { ledger_id, origin, restored, lost, statement, .. }) = &self.succeeds else {
            return Vec::new();
        };
        let kept: u64 = restored.iter().map(|r| r.size).fold(0, u64::saturating_add);
        let mut lines = vec![format!(
            "it takes the place of ledger {ledger_id} ({origin}), which was restored to {kept} entries and closed"
        )];
        lines.extend(lost.iter().map(|l| {
            format!(
                "lost of its chain {}: entries {} to {} at least, of which signed checkpoints tell",
                l.chain,
                l.from,
                l.to.saturating_sub(1)
            )
        }));
        let said: String = statement.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        lines.push(format!("of what was lost is said: {said}"));
        lines
    }

    /// Says that a legacy source is compared in the same run with what the ledger adopted.
    #[must_use]
    pub fn beside_legacy(mut self, source: &str) -> Report {
        self.legacy_source = Some(source.to_owned());
        self
    }

    /// The rows of the system before this one that the ledger adopted, in order.
    pub fn adopted(&self) -> &[Adopted] {
        &self.adopted
    }

    /// What adoptions say, for people; nothing where there is none.
    pub(crate) fn adoptions_in_words(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.adopted.iter().map(adoption_in_words).collect();
        if lines.is_empty() {
            return lines;
        }
        lines.push(
            "an adoption proves the columns of the old rows as of then; rows written after it are not covered by it"
                .into(),
        );
        lines.push(match &self.legacy_source {
            Some(source) => format!("the old rows are compared with it in this run: see the report on {source}"),
            None => "the old rows were not given, so nothing says that they are still the same: add -d URL or an export, with -s FILE".into(),
        });
        lines
    }

    /// The keys of the registry.
    pub fn keys(&self) -> &[KeyReport] {
        &self.keys
    }

    /// Names what was judged: SHA-256 over the ledger id and, for each chain, its size, head hash and root as recomputed.
    /// Two ledgers with the same digest have the same entries. `None` where entries are missing or damaged. Of a proof file, SHA-256
    /// of its bytes.
    pub fn digest(&self) -> Option<Hash> {
        if self.chains.is_empty() {
            return self.part.as_ref()?.digest;
        }
        let mut bytes = b"ledger/source/v1\0".to_vec();
        bytes.extend_from_slice(&self.ledger_id?.0);
        for chain in &self.chains {
            bytes.extend_from_slice(&chain.entries.to_le_bytes());
            bytes.extend_from_slice(&chain.head?.0);
            bytes.extend_from_slice(&chain.root?.0);
        }
        Some(sha256(&[&bytes]))
    }

    /// Where there is no [`Report::digest`], because entries are missing or damaged: SHA-256 over the ledger id and, for each chain, how many
    /// rows of entries were read and the SHA-256 of these rows as they are (FORMAT.md 10). Names the source that was found broken.
    pub fn rows_digest(&self) -> Option<Hash> {
        if self.chains.is_empty() || self.digest().is_some() {
            return None;
        }
        let mut bytes = b"ledger/source-rows/v1\0".to_vec();
        bytes.extend_from_slice(&self.ledger_id?.0);
        for chain in &self.chains {
            bytes.extend_from_slice(&chain.entries.to_le_bytes());
            bytes.extend_from_slice(&chain.rows_digest?.0);
        }
        Some(sha256(&[&bytes]))
    }

    /// The checkpoints to keep as anchors for next time, one of each chain: only of a verified ledger that has them.
    pub fn anchor(&self) -> Option<String> {
        let notes: Option<Vec<&str>> = self.chains.iter().map(|c| c.checkpoint.as_deref()).collect();
        notes.filter(|n| self.verdict == Verdict::Verified && !n.is_empty()).map(|n| n.join("\n"))
    }

    /// The headline.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// 0 verified, 1 broken, 2 could not check.
    pub fn exit(&self) -> u8 {
        self.verdict.exit()
    }

    /// Faults in chain order: all of them, or the first 20,000. All are in the text and in JSON.
    pub fn findings(&self) -> &[Finding] {
        &self.findings.first
    }

    /// How many faults there are.
    pub fn faults(&self) -> u64 {
        self.findings.total
    }

    /// How many faults are of a code, listed in [`Report::findings`] or not.
    pub fn faults_of(&self, code: Code) -> u64 {
        self.findings.counts.get(&code).copied().unwrap_or(0)
    }

    /// What was checked, by chain.
    pub fn chains(&self) -> &[ChainReport] {
        &self.chains
    }

    /// The codes of [`Report::findings`], sorted, with repeats: what a dump's `expect` holds.
    pub fn codes(&self) -> Vec<String> {
        let mut codes: Vec<String> = self.findings.first.iter().map(|f| f.code.as_str().to_owned()).collect();
        codes.sort();
        codes
    }

    /// Verdict and source, one line.
    pub fn headline(&self) -> String {
        format!("{}  {}", self.verdict.as_str(), self.source)
    }

    /// For people.
    pub fn to_text(&self) -> String {
        self.findings.to_text(&self.summary())
    }

    /// Writes what [`Report::to_text`] gives, however long it is.
    pub fn write_text(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        self.findings.write_text(&self.summary(), out)
    }

    fn summary(&self) -> String {
        let mut out = self.headline() + "\n";
        let mut line = |text: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {text}");
        };
        if !self.reason.is_empty() {
            line(self.reason.clone());
        }
        line(format!("tool      {TOOL}"));
        if let Some(kind) = &self.kind {
            line(format!("kind      {kind}"));
        }
        if let Some(id) = self.ledger_id {
            line(format!("ledger id {id}"));
        }
        if let Some(origin) = &self.origin {
            line(format!("origin    {origin}"));
        }
        if let Some(digest) = self.digest() {
            line(format!("digest    {digest} (of what was judged)"));
        }
        if let Some(digest) = self.rows_digest() {
            line(format!("rows      {digest} (digest of the entries as they were read, not all of which are certain)"));
        }
        if let Some(export) = &self.export {
            line(format!("export    {export}"));
        }
        self.succession_in_words().into_iter().for_each(&mut line);
        for c in &self.chains {
            line(format!(
                "chain {}: {} entries in {} streams, {} commits, {} signatures, {} checkpoints",
                c.chain, c.entries, c.streams, c.commits, c.signatures, c.checkpoints
            ));
            if c.from > 0 {
                line(format!(
                    "  of them {} were read, from {} on; all but the first number counts these",
                    c.entries - c.from,
                    c.from
                ));
            }
            line(format!(
                "  {}; private documents: {} checked, {} redacted",
                self.projections(c),
                c.private_present,
                c.private_redacted
            ));
            self.ranges(c).iter().for_each(|range| line(format!("  {}", range.in_words())));
            let there = c.entries.max(c.end);
            if let Some(size) = c.anchored {
                line(format!("  the anchor has the first {size} entries"));
            }
            if c.anchored.is_none_or(|size| size < there) {
                let after = there
                    .checked_sub(1)
                    .map_or("what was there".to_owned(), |last| format!("what came after entry {last}"));
                let checkpoint = match c.covered {
                    Some(size) => format!("the last checkpoint that holds is of {size} entries"),
                    None => "there is no checkpoint that holds".to_owned(),
                };
                let anchor = match (c.anchored, self.anchors_given) {
                    (Some(_), _) => "the anchor says nothing of it",
                    (None, true) => "no anchor that was given covers it",
                    (None, false) => "no anchor was given",
                };
                line(format!("  not covered: {after} and was cut off, if anything was: {checkpoint}, and {anchor}"));
            }
        }
        if let Some(part) = &self.part {
            part.checked.iter().for_each(|what| line(format!("checked: {what}")));
            part.not_covered.iter().for_each(|what| line(format!("not covered: {what}")));
        }
        self.adoptions_in_words().into_iter().for_each(&mut line);
        self.unchecked.iter().for_each(|what| line(format!("could not check: {what}")));
        if self.verdict == Verdict::IdentityNotProven {
            line("Nothing contradicts the ledger, but nothing says that it is yours: give --trust with the id you were given.".into());
        }
        if self.findings.total > 0 {
            line(format!("{}:", counted(self.findings.total, "finding")));
        }
        out
    }

    /// For working papers: one self-contained HTML page.
    pub fn to_html(&self) -> String {
        crate::html::page(self)
    }

    /// Where it came from, as the caller named it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What the source is, where it says more of itself than its name.
    pub fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    /// The id, where the genesis or the caller gives one.
    pub fn ledger_id(&self) -> Option<Hash> {
        self.ledger_id
    }

    /// The genesis's origin base.
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// What was asked for and could not be checked.
    pub fn unchecked(&self) -> &[String] {
        &self.unchecked
    }

    /// For programs: one object, `format` names its version.
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = self.members();
        let findings = serde_json::to_value(&self.findings);
        object["findings"] = findings.unwrap_or_else(|e| e.to_string().into());
        object
    }

    /// Writes what [`Report::to_json`] gives, however long it is.
    pub fn write_json(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        write_members(&self.members(), &self.findings, out)
    }

    /// Everything but the findings.
    fn members(&self) -> serde_json::Value {
        let keys: Vec<_> = self
            .keys
            .iter()
            .map(|k| {
                json!({
                    "kid": k.kid, "purpose": k.purpose, "alg": k.alg, "public_key": k.public_key, "enrolled": k.enrolled,
                    "retired": k.retired.as_ref().map(|r| r.0), "cut": k.retired.as_ref().map(|r| &r.1),
                })
            })
            .collect();
        let chains: Vec<_> = self
            .chains
            .iter()
            .map(|c| {
                json!({
                    "chain": c.chain, "entries": c.entries, "from": c.from, "streams": c.streams, "commits": c.commits,
                    "signatures": c.signatures, "checkpoints": c.checkpoints, "covered_by_checkpoint": c.covered,
                    "anchored": c.anchored, "private_checked": c.private_present, "private_redacted": c.private_redacted,
                    "projection_rows": c.projection_rows, "head": c.head.map(Hash::to_hex), "root": c.root.map(Hash::to_hex),
                    "by_type": c.by_type, "by_day": by_day(c),
                    "ranges": self.ranges(c).iter().map(Range::to_json).collect::<Vec<_>>(),
                })
            })
            .collect();
        let part =
            self.part.as_ref().map(|p| json!({ "kind": p.kind, "checked": p.checked, "not_covered": p.not_covered }));
        json!({
            "format": "audit-report/1", "source": self.source, "kind": self.kind, "exit": self.exit(), "verdict": self.verdict.as_str(),
            "reason": self.reason, "ledger_id": self.ledger_id.map(Hash::to_hex), "origin": self.origin,
            "tool": TOOL, "digest": self.digest().map(Hash::to_hex), "rows_digest": self.rows_digest().map(Hash::to_hex),
            "export": self.export, "part": part, "keys": keys, "chains": chains, "findings": [], "unchecked": self.unchecked,
            "adoptions": self.adopted.iter().map(adoption_to_json).collect::<Vec<_>>(),
            "succeeds": self.succeeds.as_ref().map(|s| {
                serde_json::from_slice::<serde_json::Value>(&s.to_object().to_canonical()).unwrap_or_default()
            }),
            "legacy_source": self.legacy_source, "adoptions_in_words": self.adoptions_in_words(),
        })
    }
}

/// So many of a thing, in words.
pub(crate) fn counted(n: u64, thing: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {thing}{plural}")
}

/// A value in evidence, where there may be none.
pub(crate) fn or_none(value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn adoption_in_words(adopted: &Adopted) -> String {
    let Adopted { index, recorded_at_us, adoption } = adopted;
    let known = match &adoption.findings {
        Some(findings) => format!(", with {}", counted(findings.counts.iter().map(|(_, n)| n).sum(), "finding")),
        None => String::new(),
    };
    format!(
        "entry {index} adopted {} legacy rows on {}{known}: head {}, root {}",
        adoption.count,
        date(recorded_at_us.div_euclid(DAY_US)),
        adoption.head_hash,
        adoption.root
    )
}

fn adoption_to_json(adopted: &Adopted) -> serde_json::Value {
    let payload = adopted.adoption.to_payload().to_canonical();
    json!({
        "index": adopted.index, "recorded_at": ledger_engine::time::rfc3339(adopted.recorded_at_us),
        "payload": serde_json::from_slice::<serde_json::Value>(&payload).unwrap_or_default(),
    })
}

/// `2026-11-23`
pub(crate) fn date(day: i64) -> String {
    ledger_engine::time::rfc3339(day * DAY_US)[..10].to_owned()
}

fn by_day(chain: &ChainReport) -> BTreeMap<String, u64> {
    chain.by_day.iter().map(|(day, n)| (date(*day), *n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_run_says_first_that_it_stopped() {
        let judge = |unchecked: &[&str], chains| {
            let unchecked = unchecked.iter().map(|u| (*u).to_owned()).collect();
            Report::new("shop", None, None, &Demands::default(), Findings::default(), chains, unchecked)
        };
        let stopped = judge(&["stopped when asked to"], Vec::new()).to_text();
        assert!(stopped.starts_with("CONSISTENT, NOT ALL CHECKED  shop\n"), "{stopped}");
        let (why, identity) = (stopped.find("stopped when").unwrap(), stopped.find("give --trust").unwrap());
        assert!(why < identity, "{stopped}");
        let whole = judge(&[], vec![ChainReport::default()]);
        assert_eq!((whole.verdict(), whole.exit()), (Verdict::IdentityNotProven, 2));
    }

    #[test]
    fn every_form_names_the_tool() {
        let (native, legacy) = (Report::unreadable("x", ""), crate::legacy::LegacyReport::unreadable("x", "", ""));
        assert_eq!(native.to_json()["tool"], TOOL);
        assert_eq!(legacy.to_json()["tool"], TOOL);
        assert!(native.to_text().contains(TOOL) && legacy.to_text().contains(TOOL));
    }

    #[test]
    fn json_says_of_adopted_rows_what_text_says() {
        let adoption = ledger_engine::adoption::Adoption {
            count: 3,
            root: Hash::default(),
            head_hash: Hash::default(),
            first: Default::default(),
            last: Default::default(),
            registry: ledger_engine::adoption::AdoptedRegistry { sha256: Hash::default(), keys: Default::default() },
            previous: None,
            findings: None,
        };
        let report = Report::unreadable("x", "").with_adopted(vec![Adopted { index: 9, recorded_at_us: 0, adoption }]);
        let words = report.to_json()["adoptions_in_words"].to_string();
        assert!(words.contains("proves the columns of the old rows as of then"), "{words}");
        assert!(words.contains("the old rows were not given"), "{words}");
    }
}
