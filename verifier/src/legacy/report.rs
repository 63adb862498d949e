//! The report on a legacy chain.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use ledger_engine::adoption::RowName;
use ledger_engine::hash::Hash;
use ledger_engine::time::rfc3339;
use serde_json::json;

use super::anchor::Anchor;
use super::time::print_time;
use crate::collector::{Chainless, Findings};
use crate::finding::{Code, Finding};
use crate::report::{Verdict, counted};

/// A key of the registry and what it was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReport {
    /// Its name in rows.
    pub kid: String,
    /// Algorithm and SHA-256 of the key, or why it may not verify.
    pub key: Result<(&'static str, Hash), String>,
    /// Milliseconds since 1970.
    pub valid_from: Option<i64>,
    /// Milliseconds since 1970.
    pub revoked_at: Option<i64>,
    /// Rows that name it.
    pub signatures: u64,
}

/// Rows that a ledger adopted, compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptionReport {
    /// Index of the ledger's entry, on chain 0.
    pub index: u64,
    /// How many rows it adopted.
    pub count: u64,
    /// When, in microseconds since 1970.
    pub recorded_at_us: i64,
    /// The rows are the same in every column.
    pub held: bool,
}

/// The judgement of one legacy chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyReport {
    /// As named by the user, without a password.
    pub source: String,
    /// What was found there.
    pub kind: String,
    /// The headline.
    pub verdict: Verdict,
    /// Why it could not be checked, or not to its end.
    pub reason: String,
    /// Rows read.
    pub rows: u64,
    /// The chain was read from its genesis to its end.
    pub whole: bool,
    /// Rows on the longest branch.
    pub chain_rows: u64,
    /// Name of the last row of the longest branch.
    pub head: Option<Hash>,
    /// Its id.
    pub head_id: String,
    /// Stored hashes that were compared.
    pub hashes_compared: u64,
    /// SHA-256 over all rows in chain order, where there is one order.
    pub rows_digest: Option<Hash>,
    /// RFC 6962 root over all rows as an adoption records it; none if a row was not read.
    pub root: Option<Hash>,
    /// First row in the order of that tree.
    pub first: RowName,
    /// Last row in that order, which in a verified chain is the head.
    pub last: RowName,
    /// Its hash.
    pub last_hash: Option<Hash>,
    /// What a ledger adopted, compared with the rows.
    pub adoptions: Vec<AdoptionReport>,
    /// Anchors that hold.
    pub anchors: u64,
    /// Rows up to the largest of them.
    pub anchored_rows: u64,
    /// The registry's keys.
    pub keys: Vec<KeyReport>,
    /// Rows by event type.
    pub types: BTreeMap<String, u64>,
    /// Rows by day since 1970 (UTC).
    pub days: BTreeMap<i64, u64>,
    /// Faults in chain order.
    pub(crate) findings: Findings,
    /// All faults, by code.
    pub counts: BTreeMap<Code, u64>,
    /// What was not covered, and what is for the reader to weigh.
    pub notes: Vec<Finding>,
}

impl LegacyReport {
    /// A report on something that could not be read at all.
    pub fn unreadable(source: &str, kind: &str, reason: &str) -> LegacyReport {
        LegacyReport {
            source: source.to_owned(),
            kind: kind.to_owned(),
            verdict: Verdict::NotChecked,
            reason: reason.to_owned(),
            rows: 0,
            whole: false,
            chain_rows: 0,
            head: None,
            head_id: String::new(),
            hashes_compared: 0,
            rows_digest: None,
            root: None,
            first: RowName::default(),
            last: RowName::default(),
            last_hash: None,
            adoptions: Vec::new(),
            anchors: 0,
            anchored_rows: 0,
            keys: Vec::new(),
            types: BTreeMap::new(),
            days: BTreeMap::new(),
            findings: Findings::default(),
            counts: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    /// 0 verified, 1 broken, 2 could not check.
    pub fn exit(&self) -> u8 {
        self.verdict.exit()
    }

    /// How many faults there are.
    pub fn faults(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Faults in chain order: all of them, or the first 20,000. All are in the text and in JSON.
    pub fn findings(&self) -> &[Finding] {
        &self.findings.first
    }

    /// How many rows are those that the ledger adopted, in every column.
    pub fn adopted_rows(&self) -> u64 {
        let all = self.adoptions.iter().all(|a| a.held);
        self.adoptions.last().filter(|_| all).map_or(0, |a| a.count)
    }

    /// Rows that neither an anchor nor an adoption covers make it not all checked.
    #[must_use]
    pub fn require_anchor(mut self) -> LegacyReport {
        let covered = self.anchored_rows.max(self.adopted_rows());
        let held = matches!(self.verdict, Verdict::Verified | Verdict::IdentityNotProven);
        if held && covered < self.rows {
            self.verdict = Verdict::NotAllChecked;
            self.reason = format!(
                "no anchor or adoption covers the last {} of {} rows; give a later --anchor, or run without --require-anchor",
                self.rows - covered,
                self.rows
            );
        }
        self
    }

    /// Says what was asked for and could not be checked.
    #[must_use]
    pub fn with_unchecked(mut self, why: &str) -> LegacyReport {
        if matches!(self.verdict, Verdict::Verified | Verdict::IdentityNotProven) {
            self.verdict = Verdict::NotAllChecked;
        }
        let before = std::mem::take(&mut self.reason);
        self.reason = if before.is_empty() { why.to_owned() } else { format!("{before}; {why}") };
        self
    }

    /// What adoptions show, for people.
    pub(crate) fn adoptions_in_words(&self) -> Vec<String> {
        let word = |a: &AdoptionReport| {
            let held = if a.held { "they are the same in every column" } else { "they are not the same" };
            format!("entry {} of the ledger adopted {} rows at {}: {held}", a.index, a.count, rfc3339(a.recorded_at_us))
        };
        self.adoptions.iter().map(word).collect()
    }

    /// What to keep for next time. Only a verified chain that was read from its genesis has it.
    pub fn anchor(&self) -> Option<Anchor> {
        let rows_digest = self.rows_digest.filter(|_| self.verdict == Verdict::Verified && self.whole)?;
        Some(Anchor { rows: self.chain_rows, head_hash: self.head?, rows_digest })
    }

    /// The line that scripts of the old tool look for.
    pub fn headline(&self) -> String {
        match self.verdict {
            Verdict::Verified => {
                format!("Audit chain verified. Head hash: {}", self.head.map(Hash::to_hex).unwrap_or_default())
            }
            Verdict::Broken => {
                let (n, first) = (self.faults(), self.findings().first());
                let first = first.map(|f| format!("; the first is {} at {}", f.code.as_str(), f.place));
                format!("Audit verification failed: {}{}", counted(n, "finding"), first.unwrap_or_default())
            }
            Verdict::IdentityNotProven => {
                "CONSISTENT, IDENTITY NOT PROVEN: no registry of signers was given".to_owned()
            }
            Verdict::NotAllChecked => format!("COULD NOT CHECK ALL: {}", self.reason),
            Verdict::NotChecked => format!("COULD NOT CHECK: {}", self.reason),
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        self.findings.to_text(&self.summary())
    }

    /// Writes what [`LegacyReport::to_text`] gives, however long it is.
    pub fn write_text(&self, out: &mut dyn io::Write) -> io::Result<()> {
        self.findings.write_text(&self.summary(), out)
    }

    fn summary(&self) -> String {
        let mut out = self.headline() + "\n";
        let mut line = |text: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {text}");
        };
        line(format!("{}  {}", self.verdict.as_str(), self.source));
        line(format!("{}; audit-verify {}", self.kind, env!("CARGO_PKG_VERSION")));
        if !self.reason.is_empty() && !matches!(self.verdict, Verdict::NotChecked | Verdict::NotAllChecked) {
            line(self.reason.clone());
        }
        let signatures: u64 = self.keys.iter().map(|k| k.signatures).sum();
        line(format!(
            "{} read, {} in the chain; {} and {} compared",
            counted(self.rows, "row"),
            self.chain_rows,
            if self.hashes_compared == 1 {
                "1 stored hash".to_owned()
            } else {
                format!("{} stored hashes", self.hashes_compared)
            },
            counted(signatures, "signature")
        ));
        if let Some(head) = self.head {
            line(format!("head {head} (id {})", self.head_id));
        }
        if let Some(digest) = self.rows_digest {
            line(format!("digest of all rows {digest}"));
        }
        if let Some(root) = self.root {
            line(format!("root of all rows {root}"));
        }
        self.adoptions_in_words().into_iter().for_each(&mut line);
        if self.anchors > 0 {
            let hold = if self.anchors == 1 { "holds" } else { "hold" };
            line(format!("{} {hold}", counted(self.anchors, "anchor")));
        }
        if let (Some((first, _)), Some((last, _))) = (self.days.first_key_value(), self.days.last_key_value()) {
            line(format!("days {} to {} by the rows' own times", day(*first), day(*last)));
        }
        for k in &self.keys {
            let key = match &k.key {
                Ok((algorithm, fingerprint)) => format!("{algorithm} SHA-256 {fingerprint}"),
                Err(why) => format!("refused: {why}"),
            };
            let from = k.valid_from.map(|t| format!(", from {}", print_time(t))).unwrap_or_default();
            let until = k.revoked_at.map(|t| format!(", revoked {}", print_time(t))).unwrap_or_default();
            line(format!("key {}: {}, {key}{from}{until}", k.kid, counted(k.signatures, "row")));
        }
        if !self.notes.is_empty() {
            line("not covered, or for you to weigh:".into());
        }
        for n in &self.notes {
            line(n.to_string().replace('\n', "\n  "));
        }
        if self.findings.total > self.findings.first.len() as u64 {
            line(format!("{}, by code:", counted(self.findings.total, "finding")));
            for (code, n) in &self.counts {
                line(format!("  {n:>10} {}", code.as_str()));
            }
            line("one by one:".into());
        } else if self.findings.total > 0 {
            line(format!("{}:", counted(self.findings.total, "finding")));
        }
        out
    }

    /// For working papers: one self-contained HTML page.
    pub fn to_html(&self) -> String {
        crate::html::legacy_page(self)
    }

    /// For programs: one object, `format` names its version.
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = self.members();
        let findings = serde_json::to_value(Chainless(&self.findings));
        object["findings"] = findings.unwrap_or_else(|e| e.to_string().into());
        object
    }

    /// Writes what [`LegacyReport::to_json`] gives, however long it is.
    pub fn write_json(&self, out: &mut dyn io::Write) -> io::Result<()> {
        crate::report::write_members(&self.members(), &Chainless(&self.findings), out)
    }

    /// Everything but the findings.
    fn members(&self) -> serde_json::Value {
        let finding = |f: &Finding| json!({ "code": f.code.as_str(), "place": f.place, "evidence": f.evidence });
        let list = |all: &[Finding]| all.iter().map(finding).collect::<Vec<_>>();
        let keys: Vec<_> = self
            .keys
            .iter()
            .map(|k| {
                let key = k.key.as_ref();
                json!({
                    "kid": k.kid, "algorithm": key.ok().map(|k| k.0), "fingerprint": key.ok().map(|k| k.1.to_hex()),
                    "refused": key.err(), "valid_from": k.valid_from.map(print_time),
                    "revoked_at": k.revoked_at.map(print_time), "signatures": k.signatures,
                })
            })
            .collect();
        let adoption = |a: &AdoptionReport| json!({ "index": a.index, "count": a.count, "recorded_at": rfc3339(a.recorded_at_us), "held": a.held });
        let adoptions: Vec<_> = self.adoptions.iter().map(adoption).collect();
        let counts: BTreeMap<&str, u64> = self.counts.iter().map(|(c, n)| (c.as_str(), *n)).collect();
        let days: BTreeMap<String, u64> = self.days.iter().map(|(d, n)| (day(*d), *n)).collect();
        json!({
            "format": "legacy-audit-report/1", "tool": concat!("audit-verify ", env!("CARGO_PKG_VERSION")), "source": self.source,
            "kind": self.kind, "exit": self.exit(), "verdict": self.verdict.as_str(), "reason": self.reason,
            "rows": self.rows, "chain_rows": self.chain_rows, "head_hash": self.head.map(Hash::to_hex),
            "head_id": self.head_id, "hashes_compared": self.hashes_compared,
            "rows_digest": self.rows_digest.map(Hash::to_hex), "root": self.root.map(Hash::to_hex),
            "adoptions": adoptions, "anchors": self.anchors, "keys": keys,
            "types": self.types, "days": days, "notes": list(&self.notes), "findings": [],
            "finding_counts": counts,
        })
    }
}

fn day(days: i64) -> String {
    const DAY_MS: i64 = 86_400_000;
    print_time(days * DAY_MS)[..10].to_owned()
}
