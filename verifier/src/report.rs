//! The report: a verdict, what was checked, what was not, and every finding.

use std::fmt::Write as _;

use ledger_engine::hash::Hash;
use serde_json::json;

use crate::finding::Finding;
use crate::verify::Demands;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "counts, named by what they count")]
pub struct ChainReport {
    pub chain: u64,
    pub entries: u64,
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
    pub private_present: u64,
    pub private_redacted: u64,
    /// `None`: not judged, because the history is damaged.
    pub projection_rows: Option<u64>,
}

/// The judgement of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    source: String,
    verdict: Verdict,
    reason: String,
    ledger_id: Option<Hash>,
    origin: Option<String>,
    findings: Vec<Finding>,
    chains: Vec<ChainReport>,
    /// What was asked for and could not be checked.
    unchecked: Vec<String>,
}

impl Report {
    pub(crate) fn new(
        source: &str,
        ledger_id: Option<Hash>,
        origin: Option<String>,
        demands: &Demands<'_>,
        findings: Vec<Finding>,
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
        let verdict = match (findings.is_empty(), demands.trust.is_some()) {
            (false, _) => Verdict::Broken,
            (true, false) => Verdict::IdentityNotProven,
            (true, true) if unchecked.is_empty() => Verdict::Verified,
            (true, true) => Verdict::NotAllChecked,
        };
        Report {
            source: source.to_owned(),
            verdict,
            reason: String::new(),
            ledger_id,
            origin,
            findings,
            chains,
            unchecked,
        }
    }

    pub(crate) fn unreadable(source: &str, reason: &str) -> Report {
        let (findings, chains) = (Vec::new(), Vec::new());
        let verdict = Verdict::NotChecked;
        Report {
            source: source.to_owned(),
            verdict,
            reason: reason.to_owned(),
            ledger_id: None,
            origin: None,
            findings,
            chains,
            unchecked: Vec::new(),
        }
    }

    /// Says why the quick proof did not do, where there is no finding to say it.
    pub(crate) fn judged_again_for(mut self, what: &str) -> Report {
        if self.findings.is_empty() && self.unchecked.is_empty() && self.reason.is_empty() {
            self.reason = format!("judged the long way, since the quick proof could not do without: {what}");
        }
        self
    }

    /// Why it could not be checked, or what was unusual; empty otherwise.
    pub fn reason(&self) -> &str {
        &self.reason
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

    /// Every fault, in chain order.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What was checked, by chain.
    pub fn chains(&self) -> &[ChainReport] {
        &self.chains
    }

    /// The codes of all findings, sorted, with repeats: what a dump's `expect` holds.
    pub fn codes(&self) -> Vec<String> {
        let mut codes: Vec<String> = self.findings.iter().map(|f| f.code.as_str().to_owned()).collect();
        codes.sort();
        codes
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = format!("{}  {}\n", self.verdict.as_str(), self.source);
        let mut line = |text: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {text}");
        };
        if !self.reason.is_empty() {
            line(self.reason.clone());
        }
        if let Some(id) = self.ledger_id {
            line(format!("ledger id {id}"));
        }
        if let Some(origin) = &self.origin {
            line(format!("origin    {origin}"));
        }
        for c in &self.chains {
            line(format!(
                "chain {}: {} entries in {} streams, {} commits, {} signatures, {} checkpoints",
                c.chain, c.entries, c.streams, c.commits, c.signatures, c.checkpoints
            ));
            let rows = c.projection_rows.map_or_else(
                || "projections not covered (the history is damaged)".to_owned(),
                |n| format!("{n} projection rows compared with the fold"),
            );
            line(format!(
                "  {rows}; private documents: {} checked, {} redacted",
                c.private_present, c.private_redacted
            ));
            let (size, anchored) = (c.covered.unwrap_or(0), c.anchored);
            let after = |size: u64| c.entries.saturating_sub(size);
            line(match anchored {
                Some(anchor) => format!("  not covered: {} entries after the anchor (size {anchor})", after(anchor)),
                None => format!(
                    "  not covered: {} entries after the last checkpoint (size {size}); no anchor was given, so nothing says what \
                     was there before",
                    after(size)
                ),
            });
        }
        self.unchecked.iter().for_each(|what| line(format!("could not check: {what}")));
        if self.verdict == Verdict::IdentityNotProven {
            line("Nothing contradicts the ledger, but nothing says that it is yours: give --trust with the id you were given.".into());
        }
        if !self.findings.is_empty() {
            line(format!("{} findings:", self.findings.len()));
        }
        for f in &self.findings {
            line(f.to_string().replace('\n', "\n  "));
        }
        out
    }

    /// For programs: one object, `format` names its version.
    pub fn to_json(&self) -> serde_json::Value {
        let findings: Vec<_> = self
            .findings
            .iter()
            .map(|f| json!({ "code": f.code.as_str(), "chain": f.chain, "place": f.place, "evidence": f.evidence }))
            .collect();
        let chains: Vec<_> = self
            .chains
            .iter()
            .map(|c| {
                json!({
                    "chain": c.chain, "entries": c.entries, "streams": c.streams, "commits": c.commits,
                    "signatures": c.signatures, "checkpoints": c.checkpoints, "covered_by_checkpoint": c.covered,
                    "anchored": c.anchored, "private_checked": c.private_present, "private_redacted": c.private_redacted,
                    "projection_rows": c.projection_rows,
                })
            })
            .collect();
        json!({
            "format": "audit-report/1", "source": self.source, "exit": self.exit(), "verdict": self.verdict.as_str(),
            "reason": self.reason, "ledger_id": self.ledger_id.map(Hash::to_hex), "origin": self.origin,
            "chains": chains, "findings": findings, "unchecked": self.unchecked,
        })
    }
}
