//! Findings, as they are made and as they are listed. However many there are, few are in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use serde::ser::{Error as _, SerializeSeq as _};
use serde::{Serialize, Serializer};
use serde_json::json;

use crate::finding::{Code, Finding};
use crate::ranges::Extent;
use crate::source::SourceError;
use crate::spill::Trouble;

/// Findings in memory. The others lie in a temporary file.
const HELD: usize = 20_000;
/// Bytes that wait to be written.
const BUFFER: usize = 1 << 18;

/// Takes findings as they are made.
#[derive(Default)]
pub(crate) struct Collector {
    held: Vec<Finding>,
    more: More,
    /// Chains of which something is wrong besides the digest of a file.
    faulty: BTreeSet<Option<u64>>,
    extents: BTreeMap<u64, Extent>,
    counts: BTreeMap<Code, u64>,
    trouble: Trouble,
}

/// Chains of which an extent is kept: those of a ledger, and not every one that somebody names.
const CHAINS: u64 = ledger_engine::genesis::CHAINS_MAX as u64;

/// Findings in a file, one after another.
#[derive(Debug, Default)]
struct More {
    file: Option<File>,
    buffer: Vec<u8>,
    /// Bytes in the file.
    flushed: u64,
    runs: Vec<Run>,
    count: u64,
}

/// Neighbours in the file that are of one chain.
#[derive(Clone, Copy, Debug)]
struct Run {
    chain: Option<u64>,
    from: u64,
    to: u64,
}

impl Collector {
    pub(crate) fn report(&mut self, code: Code, chain: Option<u64>, place: String, evidence: String) {
        self.add(Finding { code, chain, place, evidence });
    }

    pub(crate) fn entry_missing(&mut self, chain: u64, from: u64, to: u64) {
        let evidence = match to - from {
            0 => "the chain has none, and begins with one".to_owned(),
            n => format!("{n} entries from index {from}"),
        };
        self.report(Code::EntryMissing, Some(chain), format!("entries/{from}/{to}"), evidence);
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        if finding.code != Code::ExportDigestMismatch {
            self.faulty.insert(finding.chain);
        }
        *self.counts.entry(finding.code).or_default() += 1;
        if let (Some(chain), Some(extent)) = (finding.chain.filter(|c| *c < CHAINS), finding.entries()) {
            self.extents.entry(chain).and_modify(|known| *known = known.join(extent)).or_insert(extent);
        }
        if self.held.len() < HELD && self.more.count == 0 {
            self.held.push(finding);
        } else {
            self.trouble.or_default(self.more.push(&finding));
        }
    }

    /// Takes all that another collector has.
    pub(crate) fn append(&mut self, other: Collector) -> Result<(), SourceError> {
        other.trouble.check()?;
        other.held.into_iter().for_each(|finding| self.add(finding));
        let (more, trouble) = (other.more.sealed(), self.trouble.clone());
        for run in &more.runs {
            more.each(run, &mut |finding| {
                self.add(finding);
                Ok(())
            })
            .unwrap_or_else(|e| trouble.note(e));
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether more is wrong with a chain than the digest of a file.
    pub(crate) fn is_faulty(&self, chain: u64) -> bool {
        self.faulty.contains(&Some(chain))
    }

    /// All findings: those of no chain, then chain by chain, in the order in which they were made.
    pub(crate) fn complete(mut self) -> Result<Findings, SourceError> {
        self.held.sort_by_key(|f| f.chain);
        self.more.runs.sort_by_key(|run| run.chain);
        self.trouble.check()?;
        let more = Arc::new(self.more.sealed());
        let mut findings = Findings {
            total: self.held.len() as u64 + more.count,
            first: Vec::new(),
            held: self.held,
            more,
            extents: self.extents,
            counts: self.counts,
        };
        if findings.more.count == 0 {
            findings.first = std::mem::take(&mut findings.held);
            return Ok(findings);
        }
        let mut first = Vec::new();
        let all = findings.each(&mut |finding| {
            first.push(finding.clone());
            if first.len() < HELD { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
        });
        if let Err(e) = all
            && first.len() < HELD
        {
            self.trouble.note(e);
        }
        self.trouble.check()?;
        findings.first = first;
        Ok(findings)
    }
}

impl More {
    fn push(&mut self, finding: &Finding) -> io::Result<()> {
        let Finding { code, chain, place, evidence } = finding;
        let number = *code as u8;
        let bytes = postcard::to_allocvec(&(number, chain, place, evidence)).map_err(io::Error::other)?;
        let from = self.flushed + self.buffer.len() as u64;
        self.buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&bytes);
        let to = self.flushed + self.buffer.len() as u64;
        match self.runs.last_mut().filter(|run| run.chain == *chain) {
            Some(run) => run.to = to,
            None => self.runs.push(Run { chain: *chain, from, to }),
        }
        self.count += 1;
        if self.buffer.len() < BUFFER {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile()?),
        };
        file.write_all(&self.buffer)?;
        self.flushed = to;
        self.buffer.clear();
        Ok(())
    }

    /// As it is, with no room for more.
    fn sealed(mut self) -> More {
        self.buffer.shrink_to_fit();
        self
    }

    fn each(&self, run: &Run, give: &mut dyn FnMut(Finding) -> io::Result<()>) -> io::Result<()> {
        let mut input = BufReader::with_capacity(1 << 16, Bytes { more: self, at: run.from });
        let mut at = run.from;
        let mut bytes = Vec::new();
        while at < run.to {
            let mut len = [0; 4];
            input.read_exact(&mut len)?;
            bytes.resize(u32::from_le_bytes(len) as usize, 0);
            input.read_exact(&mut bytes)?;
            at += 4 + bytes.len() as u64;
            let (code, chain, place, evidence): (u8, Option<u64>, String, String) =
                postcard::from_bytes(&bytes).map_err(io::Error::other)?;
            let code = Code::ALL.get(usize::from(code)).copied().ok_or_else(|| io::Error::other("no code"))?;
            give(Finding { code, chain, place, evidence })?;
        }
        Ok(())
    }
}

/// The bytes of a file of findings, written or not.
struct Bytes<'a> {
    more: &'a More,
    at: u64,
}

impl Read for Bytes<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = match (self.more.flushed.checked_sub(self.at), &self.more.file) {
            (Some(left @ 1..), Some(file)) => {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
                file.read_at(&mut out[..len], self.at)?
            }
            _ => {
                let from = (self.at - self.more.flushed) as usize;
                let rest = self.more.buffer.get(from..).unwrap_or_default();
                let len = rest.len().min(out.len());
                out[..len].copy_from_slice(&rest[..len]);
                len
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}

/// All findings of a report.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// The first, or all.
    pub(crate) first: Vec<Finding>,
    pub(crate) total: u64,
    /// Where there are more, the ones that are not in the file.
    held: Vec<Finding>,
    more: Arc<More>,
    /// Where the entries with faults are, by chain.
    pub(crate) extents: BTreeMap<u64, Extent>,
    /// All faults, by code.
    pub(crate) counts: BTreeMap<Code, u64>,
}

/// Reports are compared by what they hold in memory.
impl PartialEq for Findings {
    fn eq(&self, other: &Findings) -> bool {
        (self.total, &self.first) == (other.total, &other.first)
    }
}

impl Eq for Findings {}

impl Findings {
    /// Puts findings of no chain before the others.
    pub(crate) fn lead(&mut self, found: Vec<Finding>) {
        self.total += found.len() as u64;
        found.iter().for_each(|finding| *self.counts.entry(finding.code).or_default() += 1);
        if self.more.count > 0 {
            self.held.splice(0..0, found.iter().cloned());
        }
        self.first.splice(0..0, found);
    }

    /// Gives every finding in its order, until `give` fails.
    pub(crate) fn each(&self, give: &mut dyn FnMut(&Finding) -> io::Result<()>) -> io::Result<()> {
        if self.more.count == 0 {
            return self.first.iter().try_for_each(give);
        }
        let (mut held, mut runs) = (&self.held[..], &self.more.runs[..]);
        while let Some(chain) = held.first().map(|f| f.chain).into_iter().chain(runs.first().map(|r| r.chain)).min() {
            let (now, later) = held.split_at(held.partition_point(|f| f.chain <= chain));
            now.iter().try_for_each(&mut *give)?;
            held = later;
            let (now, later) = runs.split_at(runs.partition_point(|r| r.chain <= chain));
            for run in now {
                self.more.each(run, &mut |finding| give(&finding))?;
            }
            runs = later;
        }
        Ok(())
    }
}

/// The array of the JSON report.
impl Serialize for Findings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.array(
            serializer,
            |f| json!({ "code": f.code.as_str(), "chain": f.chain, "place": f.place, "evidence": f.evidence }),
        )
    }
}

/// The same of findings whose chains have no number.
pub(crate) struct Chainless<'a>(pub(crate) &'a Findings);

impl Serialize for Chainless<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.array(serializer, |f| json!({ "code": f.code.as_str(), "place": f.place, "evidence": f.evidence }))
    }
}

impl Findings {
    /// Writes a report's text: its summary, and all findings.
    pub(crate) fn write_text(&self, summary: &str, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(summary.as_bytes())?;
        self.each(&mut |f| writeln!(out, "  {}", f.to_string().replace('\n', "\n  ")))
    }

    /// The same at once.
    pub(crate) fn to_text(&self, summary: &str) -> String {
        let mut out = Vec::new();
        // Writing to a Vec cannot fail; what cannot be read again is named.
        if let Err(e) = self.write_text(summary, &mut out) {
            out.extend_from_slice(format!("  the list ends here: {e}\n").as_bytes());
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    fn array<S: Serializer>(
        &self,
        serializer: S,
        value: impl Fn(&Finding) -> serde_json::Value,
    ) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(usize::try_from(self.total).ok())?;
        let mut failed = None;
        let all = self.each(&mut |f| {
            list.serialize_element(&value(f)).map_err(|e| {
                failed = Some(e);
                io::ErrorKind::Interrupted.into()
            })
        });
        match (failed, all) {
            (Some(e), _) => Err(e),
            (None, Err(e)) => Err(S::Error::custom(e)),
            (None, Ok(())) => list.end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_come_back_in_the_order_of_few() {
        let chains = [Some(1), None, Some(0), Some(1), Some(2)];
        for count in [0, 5, HELD as u64 - 1, HELD as u64, HELD as u64 + 1, 100_000] {
            let (mut out, mut part) = (Collector::default(), Collector::default());
            for n in 0..count {
                // Long stretches of one chain, one after another, and every tenth in a collector of its own.
                let chain = chains[(n / 7_001) as usize % chains.len()];
                let to = if n % 10 == 0 { &mut part } else { &mut out };
                to.report(Code::BodyInvalid, chain, format!("entries/{n}"), "why".into());
            }
            out.append(part).unwrap();
            let findings = out.complete().unwrap();
            let mut wanted: Vec<(Option<u64>, u64, u64)> =
                (0..count).map(|n| (chains[(n / 7_001) as usize % chains.len()], u64::from(n % 10 == 0), n)).collect();
            wanted.sort_unstable();
            let mut found = Vec::new();
            findings
                .each(&mut |f| {
                    found.push((f.chain, f.place.clone()));
                    Ok(())
                })
                .unwrap();
            assert_eq!(findings.total, count);
            let wanted: Vec<_> = wanted.iter().map(|(chain, _, n)| (*chain, format!("entries/{n}"))).collect();
            assert!(found == wanted, "{count}");
            let first = findings.first.iter().map(|f| (f.chain, f.place.clone()));
            assert!(first.eq(wanted.iter().take(HELD).cloned()), "{count}");
            let json = serde_json::to_value(&findings).unwrap();
            assert_eq!(json.as_array().unwrap().len() as u64, count);
        }
    }
}
