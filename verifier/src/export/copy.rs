//! The long way through an export: what its files say becomes rows of a temporary database, where they can be ordered and
//! judged like a ledger's, however damaged the files are. What is wrong with the files themselves is found on the way.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use ledger_engine::domain::projection::Cell;
use ledger_engine::export::{ExportFile, LINE_BYTES_MAX, Line};
use ledger_engine::hash::Hash;

use super::{Export, rows};
use crate::finding::{Code, Finding};
use crate::source::{Replica, Replicated, SourceError};

/// Tables that lines can have rows of.
const TABLES: [&str; 6] = ["ledger", "entries", "private_documents", "commits", "commit_signatures", "checkpoints"];
/// Lines of one fault that are listed for one file; one finding more counts the rest.
const LISTED_MAX: u64 = 1000;

/// The rows, and what is wrong with the files.
pub(super) struct Copy {
    pub(super) rows: Replicated,
    pub(super) findings: Vec<Finding>,
}

impl Copy {
    pub(super) fn make(export: &Export) -> Result<Copy, SourceError> {
        let replica = Replica::begin(&export.root, TABLES.to_vec())?;
        let mut findings = Vec::new();
        replica.insert("ledger", &[Cell::Blob(export.manifest.ledger_id.0.to_vec())])?;
        let mut read = BTreeSet::new();
        // One that is named twice is a finding of its own, and its rows are not there twice.
        for file in export.manifest.files.iter().filter(|f| read.insert(&f.name)) {
            Reading {
                export,
                file,
                replica: &replica,
                findings: &mut findings,
                line: 0,
                last: None,
                misplaced: 0,
                undecodable: 0,
            }
            .all()?;
        }
        Ok(Copy { rows: replica.finish()?, findings })
    }
}

fn unreadable(path: std::path::PathBuf, e: &io::Error) -> SourceError {
    SourceError::Unreadable { path, reason: format!("{e}; check the medium and try again") }
}

/// One file on its way into the database.
struct Reading<'a> {
    export: &'a Export,
    file: &'a ExportFile,
    replica: &'a Replica,
    findings: &'a mut Vec<Finding>,
    line: u64,
    /// Where in the chain the last line was: the smallest place that may follow.
    last: Option<u64>,
    misplaced: u64,
    undecodable: u64,
}

impl Reading<'_> {
    fn report(&mut self, code: Code, place: String, evidence: String) {
        self.findings.push(Finding { code, chain: Some(self.file.chain.into()), place, evidence });
    }

    fn all(mut self) -> Result<(), SourceError> {
        let (file, place) = (self.file, format!("files/{}", self.file.name));
        let path = self.export.path_of(file);
        let mut input = match open(&path) {
            Ok(input) => input,
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.export.is_withheld(file) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let evidence = format!("entries {} to {} of the chain", file.from, file.to.saturating_sub(1));
                self.report(Code::ExportFileMissing, place, evidence);
                return Ok(());
            }
            Err(e) => return Err(unreadable(path, &e)),
        };
        let (mut blake3, mut bytes) = (blake3::Hasher::new(), 0u64);
        let mut cut = None;
        let mut line = Vec::new();
        loop {
            line.clear();
            // What the manifest does not account for is not read without end.
            let limit = (file.bytes.saturating_sub(bytes) + 1).min(LINE_BYTES_MAX as u64 + 2);
            match input.by_ref().take(limit).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                    ) =>
                {
                    cut = Some(format!("what is compressed cannot be read beyond line {}: {e}", self.line));
                    break;
                }
                Err(e) => return Err(unreadable(path, &e)),
            }
            bytes += line.len() as u64;
            blake3.update(&line);
            if bytes > file.bytes {
                cut = Some(format!(
                    "it has more than the {} bytes that the manifest says; the rest was not read",
                    file.bytes
                ));
                break;
            }
            self.line += 1;
            self.take(&line)?;
        }
        for (code, count) in
            [(Code::ExportLineUndecodable, self.undecodable), (Code::ExportLineMisplaced, self.misplaced)]
        {
            if count > LISTED_MAX {
                let rest = count - LISTED_MAX;
                self.report(
                    code,
                    place.clone(),
                    format!("{rest} more such lines in this file, which are not listed one by one"),
                );
            }
        }
        let found = (Hash(*blake3.finalize().as_bytes()), bytes, self.line);
        if let Some(why) = cut {
            self.report(Code::ExportDigestMismatch, place, why);
        } else if found != (file.blake3, file.bytes, file.lines) {
            let evidence = format!(
                "the manifest says {} lines, {} bytes, BLAKE3 {}; found {}, {}, {}",
                file.lines, file.bytes, file.blake3, found.2, found.1, found.0
            );
            self.report(Code::ExportDigestMismatch, place, evidence);
        }
        Ok(())
    }

    fn take(&mut self, line: &[u8]) -> Result<(), SourceError> {
        let whole = line.strip_suffix(b"\n");
        let parsed = whole.map(|line| Line::parse(line, &self.export.manifest.ledger_id));
        let parsed = match parsed {
            Some(Ok(parsed)) => parsed,
            Some(Err(e)) => return self.undecodable(e.to_string()),
            None => return self.undecodable(format!("no line feed after {} bytes", line.len())),
        };
        let (chain, place, after) = rows::place(&parsed);
        let ahead = self.last.is_none_or(|last| place >= last);
        if !(ahead && rows::is_of(&parsed, self.file)) {
            self.misplaced += 1;
            if self.misplaced <= LISTED_MAX {
                let what = format!(
                    "a line of chain {chain} at {place}, where {} or later is due",
                    self.last.unwrap_or(self.file.from)
                );
                let place = format!("files/{}/{}", self.file.name, self.line);
                self.report(Code::ExportLineMisplaced, place, what);
            }
        }
        self.last = Some(if ahead { after } else { self.last.unwrap_or_default() });
        match &parsed {
            Line::Entry(e) => self.replica.insert("entries", &rows::entry(e))?,
            Line::Commit(c) => {
                self.replica.insert("commits", &rows::commit(c))?;
                for row in rows::signatures(c) {
                    self.replica.insert("commit_signatures", &row)?;
                }
            }
            Line::Checkpoint(c) => self.replica.insert("checkpoints", &rows::checkpoint(c))?,
            Line::Private(p) => self.replica.insert("private_documents", &rows::private(p))?,
        }
        Ok(())
    }

    fn undecodable(&mut self, why: String) -> Result<(), SourceError> {
        self.undecodable += 1;
        if self.undecodable <= LISTED_MAX {
            let place = format!("files/{}/{}", self.file.name, self.line);
            self.report(Code::ExportLineUndecodable, place, why);
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<BufReader<Box<dyn Read>>> {
    let file = crate::bounded::open(path)?;
    let gzip = path.extension().is_some_and(|e| e == "gz");
    let input: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(BufReader::new(file))) } else { Box::new(file) };
    Ok(BufReader::with_capacity(1 << 20, input))
}
