//! A native export as a source: a directory of files with their manifest (FORMAT.md 13).

pub(crate) mod batches;
mod blocks;
#[cfg(feature = "s3")]
mod bucket;
mod copy;
mod feed;
mod judged;
mod rows;

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use ledger_engine::domain::projection::Cell;
use ledger_engine::export::{ChainRange, ExportFile, FileKind, Line, MANIFEST_NAME, Manifest};
use ledger_engine::hash::Hash;
use ledger_engine::header::Header;
use ledger_engine::registry::Registry;

pub(crate) use self::feed::{Fed, Item, channel, feed};
pub use self::judged::{Judged, JudgedEntry, Taker};

use self::batches::{Found, Part, printable};
use self::blocks::Blocks;
use self::copy::Copy;
use crate::anchor::Anchor;
use crate::finding::{Code, Finding};
use crate::is_bucket;
use crate::report::{ChainReport, counted};
use crate::source::{LedgerAndGenesis, SourceError, Tables, Work};
use crate::verify::Demands;

/// A file of an export, and where it is.
pub(crate) struct Located<'a> {
    path: PathBuf,
    file: &'a ExportFile,
    /// Hash of its last entry, as a manifest claims.
    end: Option<Hash>,
}

/// A copy, or the batches of an archive, which are one after another what a copy is at once.
pub struct Export {
    /// By sequence.
    parts: Vec<Part>,
    /// All of them as one.
    manifest: Manifest,
    /// Where each file is.
    places: HashMap<String, PathBuf>,
    unfinished: Vec<String>,
    /// What does not belong.
    strangers: Vec<String>,
    root: PathBuf,
    /// What was found of objects while they were fetched.
    objects: Vec<Finding>,
    /// Removes what was fetched.
    _fetched: Option<tempfile::TempDir>,
    copy: OnceCell<Copy>,
}

/// Whether what was found of a chain is what a manifest says of it.
pub(crate) fn is_of(report: &ChainReport, range: &ChainRange) -> bool {
    let ChainRange { chain, to, last_hash, root, commits, checkpoints, .. } = range;
    let found = (report.chain, report.entries, report.head, report.root, report.commits, report.checkpoints);
    found == (u64::from(*chain), *to, Some(*last_hash), Some(*root), *commits, *checkpoints)
}

impl Export {
    /// Whether a path is an export: its directory or its manifest, or an archive's directory.
    pub fn is_at(path: &Path) -> bool {
        path.join(MANIFEST_NAME).is_file()
            || path.file_name().is_some_and(|n| n == MANIFEST_NAME) && path.is_file()
            || batches::top(path).is_some()
    }

    /// Reads the manifests: of a copy, by its own path or its directory's, or of the batches of an archive. Of an archive of several
    /// ledgers the one that is trusted is meant.
    pub fn open(path: &Path, trust: Option<Hash>) -> Result<Export, SourceError> {
        if let Some(top) = batches::top(path) {
            let Found { parts, unfinished, strangers } = batches::find(&top, trust)?;
            return Ok(Export::join(top, parts, unfinished, strangers));
        }
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let part = Part::read(dir)?;
        if let Some(range) = part.manifest.chains.iter().find(|c| c.from > 0) {
            let reason = format!(
                "chain {} begins at entry {}, and nothing here says what was before; name the archive that the batch is in, the directory with \
                 marketplace/",
                range.chain, range.from
            );
            return Err(SourceError::Unreadable { path: dir.to_owned(), reason });
        }
        Ok(Export::join(dir.to_owned(), vec![part], Vec::new(), Vec::new()))
    }

    /// Opens an archive in S3, by its `s3://` URL. `locks`: how its objects are locked is judged too.
    pub fn open_bucket(url: &str, trust: Option<Hash>, locks: bool) -> Result<Export, SourceError> {
        Export::fetch(url, trust, locks, &(0..=u64::MAX))
    }

    /// Opens an archive, by its directory or URL, in which batches with one of the `numbers` are wanted.
    pub(crate) fn open_batches(
        source: &str,
        numbers: &RangeInclusive<u64>,
        demands: &Demands<'_>,
    ) -> Result<Export, SourceError> {
        if is_bucket(source) {
            return Export::fetch(source, demands.trust, demands.locks, numbers);
        }
        Export::open(Path::new(source), demands.trust)
    }

    #[cfg(feature = "s3")]
    fn fetch(
        url: &str,
        trust: Option<Hash>,
        locks: bool,
        numbers: &RangeInclusive<u64>,
    ) -> Result<Export, SourceError> {
        bucket::open(url, trust, locks, numbers)
    }

    #[cfg(not(feature = "s3"))]
    fn fetch(url: &str, _: Option<Hash>, _: bool, _: &RangeInclusive<u64>) -> Result<Export, SourceError> {
        let reason = "this build has no S3; build it with the feature s3".to_owned();
        Err(SourceError::Unreadable { path: url.into(), reason })
    }

    /// At least one part.
    fn join(root: PathBuf, parts: Vec<Part>, unfinished: Vec<String>, strangers: Vec<String>) -> Export {
        let mut manifest = parts[parts.len() - 1].manifest.clone();
        manifest.files = parts.iter().flat_map(|p| p.manifest.files.iter().cloned()).collect();
        manifest.files.sort_by_key(|f| (f.chain, f.kind, f.from));
        for range in &mut manifest.chains {
            let all = || parts.iter().filter_map(|p| p.manifest.chains.iter().find(|c| c.chain == range.chain));
            let commits = all().map(|c| c.commits).fold(0, u64::saturating_add);
            let checkpoints = all().map(|c| c.checkpoints).fold(0, u64::saturating_add);
            // An archive is meant to have everything; what it lacks is for its files to show.
            (range.from, range.prev_hash) =
                (0, all().next().filter(|c| c.from == 0).map_or(Hash::ZERO, |c| c.prev_hash));
            (range.commits, range.checkpoints) = (commits, checkpoints);
        }
        let mut places = HashMap::new();
        for part in &parts {
            for file in &part.manifest.files {
                places.entry(file.name.clone()).or_insert_with(|| part.dir.clone());
            }
        }
        Export {
            parts,
            manifest,
            places,
            unfinished,
            strangers,
            root,
            objects: Vec::new(),
            _fetched: None,
            copy: OnceCell::new(),
        }
    }

    /// The manifest; of an archive, what all its manifests say together.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where a file is.
    pub(crate) fn path_of(&self, file: &ExportFile) -> PathBuf {
        self.places.get(&file.name).unwrap_or(&self.root).join(&file.name)
    }

    /// Without judging the tables beside the lines, from which they follow: for whoever needs the lines alone.
    #[must_use]
    pub fn without_tables(mut self) -> Export {
        self.parts.iter_mut().for_each(|part| part.tables_matter = false);
        let batches = self.parts.iter().filter_map(Part::batch);
        let names: HashSet<&str> = batches.flat_map(|b| &b.tables).map(|table| table.stored.name.as_str()).collect();
        self.objects.retain(|finding| finding.place.rsplit('/').next().is_none_or(|name| !names.contains(name)));
        self
    }

    /// Whether it is one batch by itself, of an archive that may have others.
    pub fn is_lone_batch(&self) -> bool {
        self.is_archive() && self.parts.len() == 1 && self.parts[0].dir == self.root
    }

    /// Whether it is of an archive.
    fn is_archive(&self) -> bool {
        self.parts.iter().any(|p| p.batch().is_some())
    }

    /// The lines of one chain and kind.
    pub fn lines(&self, chain: u32, kind: FileKind) -> Lines {
        let there = self.files(chain, kind).into_iter().filter(|file| !self.is_withheld(file));
        let files = there.map(|file| (self.path_of(file), file.blake3)).collect();
        Lines { files, ledger_id: self.manifest.ledger_id }
    }

    /// What is wrong with the manifests' signatures and registries; none of a copy has any.
    pub(crate) fn signatures(&self, registry: &Registry) -> Vec<Finding> {
        batches::signatures(&self.parts, registry)
    }

    /// Where each batch but the last ends: chain, size, entry hash, and where its manifest says so.
    pub(crate) fn seams(&self) -> impl Iterator<Item = (&ChainRange, String)> {
        let inner = &self.parts[..self.parts.len().saturating_sub(1)];
        inner.iter().flat_map(|part| {
            part.manifest.chains.iter().map(|range| (range, part.place(&format!("chains/{}", range.chain))))
        })
    }

    /// How many entries the manifest claims.
    pub(crate) fn entries(&self) -> u64 {
        self.manifest.chains.iter().map(|c| c.to).fold(0, u64::saturating_add)
    }

    /// The files of one chain and kind, in order.
    pub(crate) fn files(&self, chain: u32, kind: FileKind) -> Vec<&ExportFile> {
        self.manifest.files.iter().filter(|f| f.chain == chain && f.kind == kind).collect()
    }

    /// Whether a file with private documents is not there, and need not be: documents are erased by and by, and nothing that is hashed is in them.
    /// One that is locked until later is missing.
    pub(crate) fn is_withheld(&self, file: &ExportFile) -> bool {
        if file.kind != FileKind::Private || self.path_of(file).exists() {
            return false;
        }
        let of = |part: &&Part| part.manifest.files.iter().any(|f| f.name == file.name);
        let batch = self.parts.iter().find(of).and_then(Part::batch);
        !batch.and_then(|b| b.lock.as_ref()).is_some_and(|lock| lock.keeps(true))
    }

    /// Where the files of one chain and kind are, in order, and with which entry hash each must end, where a manifest says so.
    pub(crate) fn located(&self, chain: u32, kind: FileKind) -> Vec<Located<'_>> {
        let ends: HashMap<u64, Hash> =
            self.seams().filter(|(r, _)| r.chain == chain).map(|(r, _)| (r.to, r.last_hash)).collect();
        let located = |file| Located { path: self.path_of(file), file, end: ends.get(&file.to).copied() };
        self.files(chain, kind).into_iter().filter(|file| !self.is_withheld(file)).map(located).collect()
    }

    /// The batches of an archive, by sequence; of a copy the copy.
    pub(crate) fn batches(&self) -> &[Part] {
        &self.parts
    }

    /// Batches of the ledger that may have more of it than the manifests say: the directories of those that were begun after the last one that has
    /// a manifest, and manifests that cannot be read. Whoever begins a batch has signed checkpoints for it.
    pub fn doubtful(&self) -> Vec<String> {
        let last = self.parts.iter().filter_map(Part::batch).map(|b| b.sequence).max().unwrap_or(0);
        let number = |shown: &&String| {
            let name = shown.rsplit('/').next().unwrap_or_default();
            // A name that says no number may be of any.
            name.split('-').nth(1).and_then(|n| n.parse().ok()).unwrap_or(u64::MAX)
        };
        let begun = self.unfinished.iter().filter(|shown| number(shown) > last);
        let manifests = self.strangers.iter().filter(|shown| shown.ends_with(&format!("/{MANIFEST_NAME}")));
        begun.chain(manifests).map(|shown| printable(shown)).collect()
    }

    /// SHA-256 of the bytes of the last manifest.
    pub fn manifest_sha256(&self) -> Hash {
        self.parts.last().map(|part| part.digest).unwrap_or_default()
    }

    /// The signed checkpoints at which batches say that they end, as claims.
    pub fn checkpoints(&self) -> Vec<Anchor> {
        let batches = self.parts.iter().filter_map(Part::batch);
        let notes = batches.flat_map(|b| b.continues.iter().map(move |c| (&b.name, &c.checkpoint)));
        notes.filter_map(|(name, note)| Anchor::parse(name, note).ok()).flatten().collect()
    }

    /// Where the last batch ends that ends before these sizes: for each chain, how many entries there were. Nothing where there is none.
    pub fn ends_before(&self, sizes: &[u64]) -> Vec<u64> {
        let ends = |part: &Part| -> Vec<u64> { part.manifest.chains.iter().map(|c| c.to).collect() };
        let before = |ends: &Vec<u64>| {
            ends.len() == sizes.len() && ends.iter().zip(sizes).all(|(e, s)| e <= s) && ends[..] != *sizes
        };
        self.parts.iter().rev().map(ends).find(before).unwrap_or_else(|| vec![0; sizes.len()])
    }

    /// One of [`Export::batches`] by itself.
    pub(crate) fn batch(&self, at: usize) -> Option<Export> {
        let part = self.parts.get(at)?.clone();
        let manifest = part.manifest.clone();
        let places = manifest.files.iter().map(|f| (f.name.clone(), part.dir.clone())).collect();
        let (unfinished, strangers, objects) = (Vec::new(), self.strangers.clone(), self.objects.clone());
        let root = part.dir.clone();
        let (parts, copy) = (vec![part], OnceCell::new());
        Some(Export { parts, manifest, places, unfinished, strangers, root, objects, _fetched: None, copy })
    }

    /// The batches up to one of them, as the archive was when that was the last.
    pub(crate) fn up_to(&self, at: usize) -> Option<Export> {
        let parts = self.parts.get(..=at)?.to_vec();
        let mut export = Export::join(self.root.clone(), parts, Vec::new(), self.strangers.clone());
        export.objects.clone_from(&self.objects);
        Some(export)
    }

    /// Header and body of the registry's entries up to the end of a batch. They are bound to each other by their hashes, and by nothing
    /// else here. Only batches that changed keys are read.
    pub(crate) fn keys(&self, at: usize) -> Result<Vec<(Header, Vec<u8>)>, SourceError> {
        let mut keys: Vec<(Header, Vec<u8>)> = Vec::new();
        for part in self.parts.iter().take(at + 1) {
            let due = part.batch().map_or(0, |batch| batch.registry.size);
            if keys.len() as u64 >= due {
                continue;
            }
            let files = part.manifest.files.iter().filter(|f| f.chain == 0 && f.kind == FileKind::Entries);
            let files = files.map(|file| (part.dir.join(&file.name), file.blake3)).collect();
            Lines { files, ledger_id: self.manifest.ledger_id }.read(&mut |line| {
                if let Line::Entry(entry) = line
                    && entry.header.stream == "ledger"
                {
                    keys.push((entry.header.owned(), entry.body.to_vec()));
                }
                (keys.len() as u64) < due
            })?;
        }
        Ok(keys)
    }

    /// Whether the files of one batch fit together, before any file was read. What it has in common with others is theirs to say.
    pub(crate) fn fits_by_itself(&self) -> bool {
        let mut fits = self.objects.is_empty() && self.strangers.is_empty();
        for part in &self.parts {
            fits &= part.tables().is_empty();
            part.tiling(&mut |_, _, _| fits = false);
            let mut seen = BTreeSet::new();
            fits &= part.extra.is_empty() && part.manifest.files.iter().all(|f| seen.insert((f.chain, f.kind, f.from)));
        }
        fits
    }

    /// Whether files and ranges fit together, before any file was read.
    pub(crate) fn fits(&self) -> bool {
        self.objects.is_empty()
            && self.parts.iter().all(|p| p.extra.is_empty())
            && self.strangers.is_empty()
            && self.layout().is_empty()
            && self.parts.iter().all(|part| part.tables().is_empty())
    }

    /// What of the manifest does not fit together.
    fn layout(&self) -> Vec<Finding> {
        let mut findings = batches::continuity(&self.parts, 1);
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
        }
        self.parts.iter().for_each(|part| part.tiling(&mut report));
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
        if is_of(report, range) {
            return Ok(());
        }
        let ChainRange { to, last_hash, root, commits, checkpoints, .. } = range;
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
        let extra = self.parts.iter().flat_map(|p| p.extra.iter());
        let unexpected = |name: &String| Finding {
            code: Code::ExportFileUnexpected,
            chain: None,
            place: format!("files/{}", printable(name)),
            evidence: "no manifest names it; it was not read".to_owned(),
        };
        let mut all: Vec<Finding> = self.strangers.iter().chain(extra).map(unexpected).collect();
        all.extend(self.objects.iter().cloned());
        all.extend(self.layout());
        all.extend(self.parts.iter().flat_map(Part::tables));
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

/// Lines of an export, of one chain and kind.
pub struct Lines {
    /// With the digest of its lines.
    files: Vec<(PathBuf, Hash)>,
    ledger_id: Hash,
}

impl Lines {
    /// Reads them in order, until `each` wants no more. For an export that was verified: an error if a file is not the same any more, when
    /// its lines were handed over.
    pub fn read(&self, each: &mut dyn FnMut(Line<'_>) -> bool) -> Result<(), SourceError> {
        for file in &self.files {
            if !self.read_file(file, each)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads of each file what can be read; what its lines say is as doubtful as the file.
    pub fn read_what_there_is(&self, each: &mut dyn FnMut(Line<'_>) -> bool) {
        for file in &self.files {
            if matches!(self.read_file(file, each), Ok(false)) {
                break;
            }
        }
    }

    /// Whether more is wanted.
    fn read_file(
        &self,
        (path, digest): &(PathBuf, Hash),
        each: &mut dyn FnMut(Line<'_>) -> bool,
    ) -> Result<bool, SourceError> {
        let mut blake3 = blake3::Hasher::new();
        let changed = |why: String| SourceError::Unreadable {
            path: path.clone(),
            reason: format!("{why}; it was changed since it was verified"),
        };
        let mut blocks = Blocks::open(path).map_err(|e| changed(e.to_string()))?;
        while let Some(block) = blocks.next(Vec::new()).map_err(|e| changed(e.to_string()))? {
            let plain = block.into_lines().map_err(&changed)?;
            blake3.update(&plain);
            let mut from = 0;
            for end in memchr::memchr_iter(b'\n', &plain) {
                let line = Line::parse(&plain[from..end], &self.ledger_id);
                if !each(line.map_err(|e| changed(e.to_string()))?) {
                    return Ok(false);
                }
                from = end + 1;
            }
        }
        if Hash(*blake3.finalize().as_bytes()) != *digest {
            return Err(changed("it has other lines".to_owned()));
        }
        Ok(true)
    }
}

/// Batches by their manifests, of which `last` is the last, with so many files.
pub(crate) fn batches_in_words(n: usize, files: usize, last: &Manifest) -> String {
    let at = ledger_engine::time::rfc3339(last.exported_at_us);
    let tool: String = last.tool.chars().filter(|c| !c.is_control()).take(100).collect();
    let private = if last.private_withheld { ", private documents withheld" } else { "" };
    let (batches, files) = (if n == 1 { "batch" } else { "batches" }, counted(files as u64, "file"));
    format!("{n} {batches} with {files}, by their signed manifests, the last of {at} by {tool}{private}")
}

/// What the manifest says of the export, as claims.
impl std::fmt::Display for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Manifest { tool, exported_at_us, files, private_withheld, .. } = &self.manifest;
        let tool: String = tool.chars().filter(|c| !c.is_control()).take(100).collect();
        let private = if *private_withheld { ", private documents withheld" } else { "" };
        let at = ledger_engine::time::rfc3339(*exported_at_us);
        if !self.is_archive() {
            return write!(
                f,
                "{} files, by its manifest (which is not signed) of {at} by {tool}{private}",
                files.len()
            );
        }
        f.write_str(&batches_in_words(self.parts.len(), files.len(), &self.manifest))?;
        match files.iter().filter(|file| self.is_withheld(file)).count() {
            0 => {}
            1 => f.write_str("; 1 of the files, with private documents, is not there")?,
            n => write!(f, "; {n} of the files, with private documents, are not there")?,
        }
        match self.unfinished.len() {
            0 => Ok(()),
            1 => write!(f, "; 1 more has no manifest yet and was not read: {}", printable(&self.unfinished[0])),
            n => write!(f, "; {n} more have no manifest and were not read"),
        }
    }
}

impl Tables for Export {
    fn chains(&self, table: &str) -> Result<BTreeSet<Option<u64>>, SourceError> {
        self.rows_of_lines()?.rows.tables.chains(table)
    }

    fn rows(&self, table: &str, chain: Option<u64>, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        self.rows_of_lines()?.rows.tables.rows(table, chain, each)
    }

    fn side_by_side(&self, chain: u64, tables: &[&str], work: &mut Work<'_>) -> Result<(), SourceError> {
        self.rows_of_lines()?.rows.tables.side_by_side(chain, tables, work)
    }

    fn scan(&self, table: &str, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        self.rows_of_lines()?.rows.tables.scan(table, each)
    }

    fn kind(&self) -> String {
        let place = if is_bucket(&self.root.to_string_lossy()) { "in S3" } else { "in a directory" };
        let what = if self.is_archive() { "an archive of signed batches" } else { "an export (a copy, not signed)" };
        format!("{what}, {place}")
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
            ("stream_heads", [chain, stream]) => self.rows_of_lines()?.rows.tables.stream_head(chain, stream),
            // A tile that is not stored is computed from the entries.
            ("tiles", _) => Ok(Vec::new()),
            _ => self.rows_of_lines()?.rows.tables.keyed(table, key),
        }
    }

    fn span(&self, table: &str, chain: u64, range: Range<u64>) -> Result<Vec<Vec<Cell>>, SourceError> {
        self.rows_of_lines()?.rows.tables.span(table, chain, range)
    }

    fn last(&self, table: &str, chain: u64, to: u64) -> Result<Option<Vec<Cell>>, SourceError> {
        self.rows_of_lines()?.rows.tables.last(table, chain, to)
    }

    /// The first entry's line, if the first file begins as it should.
    fn ledger_and_genesis(&self) -> Result<LedgerAndGenesis, SourceError> {
        let ledger = vec![vec![Cell::Blob(self.manifest.ledger_id.0.to_vec())]];
        let first = || -> Option<Vec<Cell>> {
            let file = self.files(0, FileKind::Entries).into_iter().next()?;
            let mut blocks = Blocks::open(&self.path_of(file)).ok()?;
            let lines = blocks.next(Vec::new()).ok()??.into_lines().ok()?;
            lines.split(|b| *b == b'\n').take(2).find_map(|line| match Line::parse(line, &self.manifest.ledger_id) {
                Ok(Line::Entry(entry)) if entry.header.index == 0 => Some(rows::entry(&entry)),
                _ => None,
            })
        };
        match first() {
            Some(cells) => Ok((ledger, Some(cells))),
            // The long way finds it wherever it lies.
            None => self.rows_of_lines()?.rows.tables.ledger_and_genesis(),
        }
    }
}
