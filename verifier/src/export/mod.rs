//! A native export as a source: a directory of files with their manifest (FORMAT.md 13).

mod blocks;
mod copy;
mod feed;
mod rows;

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ledger_engine::domain::projection::Cell;
use ledger_engine::export::{ChainRange, ExportFile, FileKind, Line, MANIFEST_NAME, Manifest};
use ledger_engine::hash::Hash;

pub(crate) use self::feed::{Fed, Item, channel, feed};

use self::blocks::Blocks;
use self::copy::Copy;
use crate::finding::{Code, Finding};
use crate::report::ChainReport;
use crate::source::{LedgerAndGenesis, SourceError, Tables, Work};

/// Largest manifest that is read, in bytes.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// An export's directory.
pub struct Export {
    dir: PathBuf,
    manifest: Manifest,
    /// Files in the directory that the manifest does not name.
    extra: Vec<String>,
    copy: OnceCell<Copy>,
}

impl Export {
    /// Whether a path is an export: its directory or its manifest.
    pub fn is_at(path: &Path) -> bool {
        path.join(MANIFEST_NAME).is_file() || path.file_name().is_some_and(|n| n == MANIFEST_NAME) && path.is_file()
    }

    /// Reads the manifest of an export, by its own path or its directory's.
    pub fn open(path: &Path) -> Result<Export, SourceError> {
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let file = dir.join(MANIFEST_NAME);
        let unreadable = |reason: String| SourceError::Unreadable { path: file.clone(), reason };
        let failed = |e: std::io::Error| unreadable(format!("{e}; check the path"));
        if std::fs::metadata(&file).map_err(failed)?.len() > MANIFEST_BYTES_MAX {
            return Err(unreadable("too large for the manifest of an export".to_owned()));
        }
        let bytes = std::fs::read(&file).map_err(failed)?;
        let manifest = Manifest::decode(&bytes).map_err(|e| {
            unreadable(format!("{e}; it was damaged, or changed: get the export again from where it is kept"))
        })?;
        if let Some(range) = manifest.chains.iter().find(|c| c.from > 0) {
            let what = format!(
                "chain {} begins at entry {}, and nothing here says what was before; verify the ledger, or an export of all of it",
                range.chain, range.from
            );
            return Err(unreadable(what));
        }
        let names: BTreeSet<&str> = manifest.files.iter().map(|f| f.name.as_str()).collect();
        let mut extra = Vec::new();
        for found in std::fs::read_dir(dir).map_err(failed)? {
            let name = found.map_err(failed)?.file_name().to_string_lossy().into_owned();
            // What desktops and copying tools leave behind is no part of anything.
            if name != MANIFEST_NAME && !name.starts_with('.') && !names.contains(name.as_str()) {
                extra.push(name);
            }
        }
        extra.sort();
        Ok(Export { dir: dir.to_owned(), manifest, extra, copy: OnceCell::new() })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many entries the manifest claims.
    pub(crate) fn entries(&self) -> u64 {
        self.manifest.chains.iter().map(|c| c.to).fold(0, u64::saturating_add)
    }

    /// The files of one chain and kind, in order.
    pub(crate) fn files(&self, chain: u32, kind: FileKind) -> Vec<&ExportFile> {
        self.manifest.files.iter().filter(|f| f.chain == chain && f.kind == kind).collect()
    }

    /// Whether files and ranges fit together, before any file was read.
    pub(crate) fn fits(&self) -> bool {
        self.extra.is_empty() && self.layout().is_empty()
    }

    /// What of the manifest does not fit together.
    fn layout(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut report = |chain: u32, what: &str, evidence: String| {
            let (code, place) = (Code::ExportManifestMismatch, format!("manifest/{what}"));
            findings.push(Finding { code, chain: Some(chain.into()), place, evidence });
        };
        for (k, range) in (0..).zip(&self.manifest.chains) {
            if range.chain != k || range.prev_hash != Hash::ZERO {
                report(
                    range.chain,
                    &format!("chains/{k}"),
                    "not the chain of this place, from its beginning".to_owned(),
                );
            }
            let mut at = range.from;
            for file in self.files(range.chain, FileKind::Entries) {
                if file.from != at || file.to < file.from {
                    report(range.chain, &format!("files/{}", file.name), format!("the file before it ends at {at}"));
                }
                at = file.to;
            }
            if at != range.to {
                let evidence = format!("its files end at {at}, its range at {}", range.to);
                report(range.chain, &format!("chains/{k}"), evidence);
            }
        }
        let mut seen = BTreeSet::new();
        for file in &self.manifest.files {
            let unknown = self.manifest.chains.iter().all(|c| c.chain != file.chain);
            if unknown || !seen.insert((file.chain, file.kind, file.from)) {
                report(
                    file.chain,
                    &format!("files/{}", file.name),
                    "named twice, or of no chain of the export".to_owned(),
                );
            }
        }
        findings
    }

    /// Whether a chain is the one that the manifest describes. `report` must be of an undamaged chain.
    pub(crate) fn describes(&self, report: &ChainReport) -> Result<(), String> {
        let range = self.manifest.chains.iter().find(|c| u64::from(c.chain) == report.chain);
        let range = range.ok_or("the manifest does not name the chain")?;
        let ChainRange { to, last_hash, root, commits, checkpoints, .. } = range;
        let found = (report.entries, report.head, report.root, report.commits, report.checkpoints);
        if found == (*to, Some(*last_hash), Some(*root), *commits, *checkpoints) {
            return Ok(());
        }
        let hex = |hash: Option<Hash>| hash.map_or_else(|| "none".to_owned(), Hash::to_hex);
        Err(format!(
            "the manifest says {to} entries, head {last_hash}, root {root}, {commits} commits, {checkpoints} checkpoints; found {}, {}, {}, \
             {}, {}",
            report.entries,
            hex(report.head),
            hex(report.root),
            report.commits,
            report.checkpoints
        ))
    }

    /// What is wrong with the files themselves. Reads all of them.
    pub(crate) fn findings(&self) -> Result<Vec<Finding>, SourceError> {
        let extra = self.extra.iter().map(|name| Finding {
            code: Code::ExportFileUnexpected,
            chain: None,
            place: format!("files/{}", name.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>()),
            evidence: "the manifest does not name it; it was not read".to_owned(),
        });
        let mut all: Vec<Finding> = extra.collect();
        all.extend(self.layout());
        all.extend(self.rows_of_lines()?.findings.iter().cloned());
        Ok(all)
    }

    fn rows_of_lines(&self) -> Result<&Copy, SourceError> {
        if let Some(copy) = self.copy.get() {
            return Ok(copy);
        }
        let made = Copy::make(self)?;
        Ok(self.copy.get_or_init(|| made))
    }
}

/// What the manifest says of the export, as claims.
impl std::fmt::Display for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Manifest { tool, exported_at_us, files, private_withheld, .. } = &self.manifest;
        let tool: String = tool.chars().filter(|c| !c.is_control()).take(100).collect();
        let private = if *private_withheld { ", private documents withheld" } else { "" };
        let at = ledger_engine::time::rfc3339(*exported_at_us);
        write!(f, "{} files, by its manifest (which is not signed) of {at} by {tool}{private}", files.len())
    }
}

impl Tables for Export {
    fn chains(&self, table: &str) -> Result<BTreeSet<Option<u64>>, SourceError> {
        self.rows_of_lines()?.tables.chains(table)
    }

    fn rows(&self, table: &str, chain: Option<u64>, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        self.rows_of_lines()?.tables.rows(table, chain, each)
    }

    fn side_by_side(&self, chain: u64, tables: &[&str], work: &mut Work<'_>) -> Result<(), SourceError> {
        self.rows_of_lines()?.tables.side_by_side(chain, tables, work)
    }

    fn scan(&self, table: &str, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        self.rows_of_lines()?.tables.scan(table, each)
    }

    fn export(&self) -> Option<&Export> {
        Some(self)
    }

    /// An export has no heads: those of chains are what the manifest says, those of streams follow from the lines.
    fn keyed(&self, table: &str, key: &[Cell]) -> Result<Vec<Vec<Cell>>, SourceError> {
        match (table, key) {
            ("chain_heads", [chain]) => {
                let range = self.manifest.chains.iter().find(|range| Cell::from(range.chain) == *chain);
                let row = |range: &ChainRange| {
                    vec![chain.clone(), range.to.into(), Cell::Blob(range.last_hash.0.to_vec()), Cell::Null]
                };
                Ok(range.map(row).into_iter().collect())
            }
            ("stream_heads", [chain, stream]) => self.rows_of_lines()?.tables.stream_head(chain, stream),
            // A tile that is not stored is computed from the entries.
            ("tiles", _) => Ok(Vec::new()),
            _ => self.rows_of_lines()?.tables.keyed(table, key),
        }
    }

    fn span(&self, table: &str, chain: u64, range: Range<u64>) -> Result<Vec<Vec<Cell>>, SourceError> {
        self.rows_of_lines()?.tables.span(table, chain, range)
    }

    fn last(&self, table: &str, chain: u64, to: u64) -> Result<Option<Vec<Cell>>, SourceError> {
        self.rows_of_lines()?.tables.last(table, chain, to)
    }

    /// The first entry's line, if the first file begins as it should.
    fn ledger_and_genesis(&self) -> Result<LedgerAndGenesis, SourceError> {
        let ledger = vec![vec![Cell::Blob(self.manifest.ledger_id.0.to_vec())]];
        let first = || -> Option<Vec<Cell>> {
            let file = self.files(0, FileKind::Entries).into_iter().next()?;
            let mut blocks = Blocks::open(&self.dir.join(&file.name)).ok()?;
            let lines = blocks.next(Vec::new()).ok()??.into_lines().ok()?;
            lines.split(|b| *b == b'\n').take(2).find_map(|line| match Line::parse(line, &self.manifest.ledger_id) {
                Ok(Line::Entry(entry)) if entry.header.index == 0 => Some(rows::entry(&entry)),
                _ => None,
            })
        };
        match first() {
            Some(cells) => Ok((ledger, Some(cells))),
            // The long way finds it wherever it lies.
            None => self.rows_of_lines()?.tables.ledger_and_genesis(),
        }
    }
}
