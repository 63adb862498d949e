//! `audit-verify`: proves or refutes ledgers. Small, read-only, offline.

mod bar;

use std::io::{Read as _, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use audit_verify::legacy::{
    Anchor as LegacyAnchor, File, FileFormat, Gauge, LegacyReport, Signers, Source, verify_adopted,
};
#[cfg(feature = "postgres")]
use audit_verify::legacy::{Table, Window};
use audit_verify::{
    Anchor, Code, Demands, Export, Held, Report, combine, is_bucket, is_database, name_of, replace, verify_batches,
    verify_path_with, verify_proof, verify_proof_and, verify_stream,
};
use clap::{Parser, ValueEnum};
use ledger_engine::adoption::Adopted;
use ledger_engine::hash::Hash;
use ledger_engine::licence::LICENCE_BYTES_MAX;
use ledger_engine::proof::Proof;
use sha2::{Digest as _, Sha256};

use crate::bar::Bar;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Prove or refute a ledger: hashes, links, signatures, keys, checkpoints, transitions, projections.
/// Or the chain of audit_events that came before it: hashes, links, signatures.
#[derive(Parser)]
#[command(name = "audit-verify", version, max_term_width = 100)]
#[command(after_help = "Exit status: 0 verified; 1 broken; 2 could not check, or identity not proven.\n\
    Every fault is listed in one run.\n\nExamples:\n  audit-verify shop --trust 3fd1…\n  \
    audit-verify postgres://auditor@db/shop --trust 3fd1…\n  \
    audit-verify -d postgres://auditor@db/shop -s signers.json\n  \
    audit-verify audit.jsonl.gz -s signers.json --anchor head.json --save-anchor head.json\n  \
    audit-verify shop --trust 3fd1… --anchor kept --save-anchor kept/november --report november.html\n  \
    audit-verify proof order.proof --trust 3fd1…\n  \
    audit-verify s3://audit/shop --trust 3fd1… --batches 7 --partial out && audit-verify combine out/*.summary --trust 3fd1…\n\n\
    The source is only read; writers may go on meanwhile.")]
struct Cli {
    /// A ledger's directory or database (a postgres:// URL), a backup (.db), an archive of exports (a directory or s3://BUCKET/PREFIX), a
    /// copy's directory or a dump (.json); a proof file
    /// (`proof FILE`, or FILE); summaries of batches (`combine FILE…`); or legacy audit events: a file of JSON lines or an export envelope (plain, gzip, zstd; - is
    /// standard input), a directory of events; for a table of them see -d
    source: Vec<String>,
    /// The ledger id you were given, or a file that holds it (64 hex, or JSON with a member ledger_id)
    #[arg(long, value_name = "LEDGER_ID|FILE")]
    trust: Option<String>,
    /// A database with a table of legacy audit events [default without a source: $POSTGRES_URL, then $DATABASE_URL]
    #[arg(short, long, value_name = "URL")]
    database_url: Option<String>,
    /// The public keys of legacy signers; with a ledger, a registry that must agree with its own
    #[arg(short, long, value_name = "FILE")]
    signers: Option<PathBuf>,
    /// The table of legacy audit events, with its schema if need be [default: audit_events]
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// Legacy table: only the newest N rows (and those of the same time as the oldest of them). That an index leaves rows out is seen when the
    /// whole table is read
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Legacy table: only rows from this time on (RFC 3339, or a date)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Take the sources for this, instead of detecting what they are
    #[arg(long)]
    format: Option<Format>,
    /// A checkpoint, legacy head or manifest of an export that was kept, or a directory of them: the source must reach and
    /// contain it
    #[arg(long, value_name = "FILE|DIR")]
    anchor: Vec<PathBuf>,
    /// One history of a ledger alone: an order's id, or a stream of an order, a delivery or a SKU. Its cost is that of the history;
    /// an export is read as a whole to find it
    #[arg(long, value_name = "ID", conflicts_with = "save_anchor")]
    stream: Option<String>,
    /// Judge only what came after the anchors, in time that depends on what is new; what was not read again is named. Where more than a million
    /// entries are new, or more than 65,536 and a quarter of all, all are judged: that takes less
    #[arg(long, requires = "anchor", conflicts_with = "stream")]
    since_anchor: bool,
    /// Only these batches of an archive, each by itself (A-B, A- or A); what rests on earlier ones is named
    #[arg(long, value_name = "A-B", value_parser = parse_batches, conflicts_with_all = ["stream", "since_anchor", "anchor", "save_anchor"])]
    batches: Option<RangeInclusive<u64>>,
    /// Leave a summary of each batch in this directory, for `audit-verify combine FILE…`: many machines can each judge some batches, by
    /// --batches, and one joins what they found
    #[arg(long, value_name = "DIR", conflicts_with_all = ["stream", "since_anchor", "anchor", "save_anchor"])]
    partial: Option<PathBuf>,
    /// An archive in S3: judge also how each object is locked, against what its manifest says
    #[arg(long)]
    locks: bool,
    /// Proof file of a licence's entry: compare the licence as its buyer holds it (JSON) with the one in the entry
    #[arg(long, value_name = "FILE")]
    licence: Option<PathBuf>,
    /// Proof file of the entry that made a delivery ready: compare a file with the artifact, or the delivered file, that the entry names
    #[arg(long, value_name = "FILE", conflicts_with = "licence")]
    artifact: Option<PathBuf>,
    /// Exit 2 if a ledger has entries, or a legacy chain rows, that no anchor (or adoption of the rows) covers
    #[arg(long)]
    require_anchor: bool,
    /// Save the checkpoints of a verified ledger, or the head of a verified legacy chain, for next time
    #[arg(long, value_name = "FILE")]
    save_anchor: Option<PathBuf>,
    /// Write the report as a page for working papers too; of a ledger with a legacy chain, two: FILE.html and FILE-legacy.html
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print the verdict only
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print one JSON object a source
    #[arg(long)]
    json: bool,
    /// List the codes of findings with their meaning
    #[arg(long)]
    list_codes: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A ledger (a directory or a database), a backup, an export or a dump
    Native,
    /// The proof file of one entry
    Proof,
    /// Summaries of an archive's batches, as --partial leaves them
    #[value(skip)]
    Summaries,
    /// Legacy: one event a line
    Lines,
    /// Legacy: {"events": […]}
    Envelope,
    /// Legacy: one event a file
    Directory,
    /// Legacy: a table in PostgreSQL
    Table,
}

impl Format {
    fn is_native(self) -> bool {
        matches!(self, Format::Native | Format::Proof | Format::Summaries)
    }
}

enum Outcome {
    Native(Box<Report>),
    Legacy(Box<LegacyReport>),
}

impl Outcome {
    /// Says what else was to be compared and could not be read.
    fn without(mut self, unreadable: &[String]) -> Outcome {
        for why in unreadable {
            self = match self {
                Outcome::Native(report) => Outcome::Native(Box::new(report.with_unchecked(why.clone()))),
                Outcome::Legacy(report) => Outcome::Legacy(Box::new(report.with_unchecked(why))),
            };
        }
        self
    }

    fn exit(&self) -> u8 {
        match self {
            Outcome::Native(report) => report.exit(),
            Outcome::Legacy(report) => report.exit(),
        }
    }

    fn print(&self, cli: &Cli, out: &mut dyn Write) -> std::io::Result<()> {
        let text = match self {
            Outcome::Native(report) if cli.json => {
                report.write_json(out)?;
                String::new()
            }
            Outcome::Native(report) if cli.quiet => report.headline(),
            // A list of findings can be longer than memory.
            Outcome::Native(report) => return report.write_text(out),
            Outcome::Legacy(report) if cli.json => {
                report.write_json(out)?;
                String::new()
            }
            Outcome::Legacy(report) if cli.quiet => report.headline(),
            Outcome::Legacy(report) => return report.write_text(out),
        };
        writeln!(out, "{}", text.trim_end())
    }

    fn html(&self) -> String {
        match self {
            Outcome::Native(report) => report.to_html(),
            Outcome::Legacy(report) => report.to_html(),
        }
    }

    fn save_anchor(&self, path: &Path) -> Result<(), String> {
        match self {
            Outcome::Native(report) => {
                if report.part().is_some_and(|part| !["tail", "summaries"].contains(&part.kind)) {
                    return Err("--save-anchor needs a whole ledger, or what came after an anchor".to_owned());
                }
                let text = report.anchor().ok_or(
                    "--save-anchor: a chain has no checkpoint yet; `ledger checkpoint` makes one, or anchor the ledger another day",
                )?;
                replace(path, text.as_bytes())
                    .map_err(|e| format!("--save-anchor {}: {e}; check the path", path.display()))
            }
            Outcome::Legacy(report) => {
                let anchor =
                    report.anchor().ok_or("--save-anchor needs the whole chain; leave --limit and --since away")?;
                anchor.save(path).map_err(|e| e.to_string())
            }
        }
    }
}

/// `A`, `A-B`, or `A-` for all from A on.
fn parse_batches(text: &str) -> Result<RangeInclusive<u64>, String> {
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| *n > 0);
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let to = if to.is_empty() { Some(u64::MAX) } else { number(to) };
    let range = number(from).zip(to).map(|(from, to)| from..=to).filter(|range| !range.is_empty());
    range.ok_or_else(|| "batches are counted from 1: A, A-B, or A- for all from A on".to_owned())
}

/// More than any file with a ledger's id has.
const TRUST_BYTES_MAX: u64 = 64 << 10;

fn read_trust(text: &str) -> Result<Hash, String> {
    if let Some(id) = Hash::from_hex(text) {
        return Ok(id);
    }
    let mut file = String::new();
    std::fs::File::open(Path::new(text))
        .and_then(|f| f.take(TRUST_BYTES_MAX).read_to_string(&mut file))
        .map_err(|e| format!("--trust {text}: neither 64 hex characters nor a readable file ({e})"))?;
    let json: serde_json::Value = serde_json::from_str(&file).unwrap_or_default();
    let id = json["ledger_id"].as_str().unwrap_or_else(|| file.trim());
    Hash::from_hex(id).ok_or_else(|| format!("--trust {text}: no ledger id in this file"))
}

/// Reads a licence, and no more than a licence can have.
fn read_licence(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let most = LICENCE_BYTES_MAX as u64 + 1;
    let read = std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.map_err(|e| format!("--licence {}: {e}; check the path", path.display()))?;
    if bytes.len() as u64 == most {
        return Err(format!("--licence {}: over {LICENCE_BYTES_MAX} bytes, no licence is that large", path.display()));
    }
    Ok(bytes)
}

/// SHA-256 and length of a file of whatever size.
fn digest(path: &Path) -> Result<(Hash, u64), String> {
    let read = || {
        let (mut file, mut sha256) = (std::fs::File::open(path)?, Sha256::new());
        let (mut piece, mut bytes) = (vec![0; 1 << 20], 0);
        loop {
            match file.read(&mut piece)? {
                0 => return Ok((Hash(sha256.finalize().into()), bytes)),
                n => {
                    sha256.update(&piece[..n]);
                    bytes += n as u64;
                }
            }
        }
    };
    read().map_err(|e: std::io::Error| format!("--artifact {}: {e}; check the path", path.display()))
}

fn detect(source: &str) -> Option<Format> {
    const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
    const DUMP_FORMAT: &[u8] = b"ledger-dump/1";
    if is_database(source) || is_bucket(source) {
        return Some(Format::Native);
    }
    let path = Path::new(source);
    if Export::is_at(path) {
        return Some(Format::Native);
    }
    if path.is_dir() {
        return path.join("ledger.db").exists().then_some(Format::Native);
    }
    let mut head = Vec::new();
    // What a pipe gives is given once, to whoever judges it; what cannot be read is reported by the reader.
    if path.is_file() {
        let _ = std::fs::File::open(path).map(|f| f.take(4096).read_to_end(&mut head));
    }
    let dump =
        path.extension().is_some_and(|e| e == "json") && head.windows(DUMP_FORMAT.len()).any(|w| w == DUMP_FORMAT);
    if Proof::is_likely(&head) {
        return Some(Format::Proof);
    }
    let native = head.starts_with(SQLITE_MAGIC) || dump || path.extension().is_some_and(|e| e == "db");
    native.then_some(Format::Native)
}

/// What applies to every legacy source.
struct Legacy<'a> {
    cli: &'a Cli,
    signers: Option<Signers>,
    anchors: Vec<LegacyAnchor>,
    since_ms: Option<i64>,
}

impl Legacy<'_> {
    fn new(cli: &Cli, anchors: Vec<LegacyAnchor>) -> Result<Legacy<'_>, String> {
        let signers = cli.signers.as_deref().map(Signers::read).transpose().map_err(|e| e.to_string())?;
        let since =
            |text: &String| parse_since(text).ok_or_else(|| format!("--since {text}: no RFC 3339 time or date"));
        let since_ms = cli.since.as_ref().map(since).transpose()?;
        Ok(Legacy { cli, signers, anchors, since_ms })
    }

    fn verify(&self, source: &str, format: Option<Format>, adopted: &[Adopted], bar: &Bar) -> LegacyReport {
        let shown = name_of(source);
        match self.open(source, format) {
            Ok(mut opened) => {
                READING.store(true, Ordering::Relaxed);
                let watch = |judged: u64, gauge: &Gauge| {
                    bar.rows(judged, gauge);
                    !STOP.load(Ordering::Relaxed)
                };
                let signers = self.signers.as_ref();
                let report = verify_adopted(&shown, opened.as_mut(), signers, &self.anchors, adopted, &watch);
                if self.cli.require_anchor { report.require_anchor() } else { report }
            }
            Err(e) => LegacyReport::unreadable(&shown, "legacy audit events", &e),
        }
    }

    fn open(&self, source: &str, format: Option<Format>) -> Result<Box<dyn Source>, String> {
        let format = match format {
            Some(Format::Table) => return open_table(source, self),
            Some(Format::Lines) => Some(FileFormat::Lines),
            Some(Format::Envelope) => Some(FileFormat::Envelope),
            Some(Format::Directory) => Some(FileFormat::Directory),
            Some(Format::Native | Format::Proof | Format::Summaries) | None => None,
        };
        if self.cli.limit.is_some() || self.since_ms.is_some() {
            return Err("--limit and --since are for tables; a file is verified as a whole".to_owned());
        }
        let file = File::open(Path::new(source), format).map_err(|e| e.to_string())?;
        Ok(Box::new(file))
    }
}

#[cfg(feature = "postgres")]
fn parse_since(text: &str) -> Option<i64> {
    Window::parse_since(text)
}

#[cfg(not(feature = "postgres"))]
fn parse_since(_: &str) -> Option<i64> {
    None
}

#[cfg(feature = "postgres")]
fn open_table(url: &str, legacy: &Legacy<'_>) -> Result<Box<dyn Source>, String> {
    let window = Window { limit: legacy.cli.limit, since_ms: legacy.since_ms };
    let table =
        Table::open(url, legacy.cli.table.as_deref().unwrap_or("audit_events"), window).map_err(|e| e.to_string())?;
    Ok(Box::new(table))
}

#[cfg(not(feature = "postgres"))]
fn open_table(_: &str, _: &Legacy<'_>) -> Result<Box<dyn Source>, String> {
    Err("this build has no PostgreSQL; build it with the feature postgres".to_owned())
}

fn sources(cli: &Cli) -> Result<Vec<(String, Option<Format>)>, String> {
    let (format, named) = match &cli.source[..] {
        // The word says what the files are; a source that is called so is `./proof`.
        [word, files @ ..] if word == "proof" && !files.is_empty() => (Some(Format::Proof), files),
        // Its files are one source, of which the first stands for all.
        [word, files @ ..] if word == "combine" && !files.is_empty() => (Some(Format::Summaries), &files[..1]),
        all => (cli.format, all),
    };
    let mut list: Vec<(String, Option<Format>)> =
        named.iter().map(|s| (s.clone(), format.or_else(|| detect(s)))).collect();
    list.extend(cli.database_url.iter().map(|url| (url.clone(), Some(Format::Table))));
    if list.is_empty() {
        let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let url = variable("POSTGRES_URL").or_else(|| variable("DATABASE_URL"));
        list.push((url.ok_or("name a source; --help says what can be one")?, Some(Format::Table)));
    }
    if list.len() != 1 && cli.save_anchor.is_some() {
        return Err("--save-anchor is for one source at a time".to_owned());
    }
    let ledgers = list.iter().filter(|(_, format)| format.is_some_and(Format::is_native)).count();
    if cli.report.is_some() && list.len() != 1 && (list.len(), ledgers) != (2, 1) {
        return Err("--report is for one source at a time, or a ledger and the legacy chain that it adopted".to_owned());
    }
    Ok(list)
}

/// Where the page on a legacy chain goes if the ledger's has the name: `november.html`, `november-legacy.html`.
fn beside_page(path: &Path) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push("-legacy");
    path.with_file_name(name).with_added_extension(path.extension().unwrap_or_default())
}

/// What tells a saved head of a legacy chain.
const LEGACY_HEAD: &[u8] = b"legacy-head/";

/// Anchors by what they are of: checkpoints are signed notes, legacy heads are JSON.
#[derive(Default)]
struct Anchors {
    native: Vec<Anchor>,
    legacy: Vec<LegacyAnchor>,
    /// Why others cannot be read. The sources are judged all the same.
    unreadable: Vec<String>,
}

impl Anchors {
    fn read(cli: &Cli) -> Anchors {
        let mut anchors = Anchors::default();
        for path in &cli.anchor {
            match anchor_files(path) {
                Ok(files) => files.iter().for_each(|file| {
                    let read = anchors.add(file);
                    anchors.unreadable.extend(read.err());
                }),
                Err(why) => anchors.unreadable.push(why),
            }
        }
        anchors
    }

    fn add(&mut self, file: &Path) -> Result<(), String> {
        let native = |file: &Path| Anchor::read(file).map_err(|e| e.to_string());
        if Export::is_at(file) {
            self.native.extend(native(file)?);
            return Ok(());
        }
        if !file.is_file() && file.exists() {
            // It is read twice.
            return Err(format!(
                "--anchor {}: a pipe, a device or a directory; save it in a file, or name the directory by itself",
                file.display()
            ));
        }
        let mut head = Vec::new();
        let read = std::fs::File::open(file).and_then(|f| f.take(4096).read_to_end(&mut head));
        read.map_err(|e| anchor_lost(file, &e))?;
        // A manifest says so at its end, and a saved head of a legacy chain at its beginning.
        if head.starts_with(b"{") && head.windows(LEGACY_HEAD.len()).any(|w| w == LEGACY_HEAD) {
            self.legacy.extend(LegacyAnchor::read(file).map_err(|e| e.to_string())?);
        } else {
            self.native.extend(native(file)?);
        }
        Ok(())
    }
}

fn anchor_lost(path: &Path, e: &std::io::Error) -> String {
    format!("--anchor {}: {e}; check the path", path.display())
}

/// The files that are meant: those of a directory, unless it is an export.
fn anchor_files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() || Export::is_at(path) {
        return Ok(vec![path.to_owned()]);
    }
    let all: std::io::Result<Vec<PathBuf>> =
        std::fs::read_dir(path).and_then(|list| list.map(|e| Ok(e?.path())).collect());
    // Whatever is no file is named by whoever reads it: an anchor that is passed over would not be missed.
    let mut files = all.map_err(|e| anchor_lost(path, &e))?;
    files.sort();
    if files.is_empty() {
        return Err(format!("--anchor {}: the directory has no files", path.display()));
    }
    Ok(files)
}

/// Set by the first Ctrl-C: the run ends at the next piece and says how far it came.
static STOP: AtomicBool = AtomicBool::new(false);

/// Something was read that there is a word to say about.
static READING: AtomicBool = AtomicBool::new(false);

/// An option without effect would let a run pass for more than it is.
fn check_options(cli: &Cli, sources: &[(String, Option<Format>)]) -> Result<(), String> {
    let any = |fits: fn(Format) -> bool| sources.iter().any(|(_, format)| format.is_some_and(fits));
    let window = cli.limit.is_some() || cli.since.is_some() || cli.table.is_some();
    if window && !any(|format| format == Format::Table) {
        return Err("--limit, --since and --table are for a table of legacy audit events, named by -d URL; \
                    files and ledgers are verified as a whole: leave them away"
            .to_owned());
    }
    if cli.signers.is_some() && (cli.batches.is_some() || cli.partial.is_some()) {
        return Err("--signers is compared with the registry of a whole archive: without --batches and --partial, or by `combine`".to_owned());
    }
    if cli.signers.is_some() && sources.iter().all(|(_, format)| *format == Some(Format::Proof)) {
        return Err("--signers is for ledgers and legacy chains; a proof file brings its ledger's registry".to_owned());
    }
    if cli.trust.is_some() && !any(Format::is_native) {
        return Err("--trust is for a ledger, and no source is one: check the path, or leave it away; \
                    a legacy chain is known by its --signers"
            .to_owned());
    }
    Ok(())
}

fn run(cli: &Cli, out: &mut dyn Write) -> Result<u8, String> {
    let trust = cli.trust.as_deref().map(read_trust).transpose()?;
    let mut sources = sources(cli)?;
    check_options(cli, &sources)?;
    let Anchors { native, legacy, unreadable } = Anchors::read(cli);
    if cli.since_anchor && native.is_empty() && !unreadable.is_empty() {
        return Err(format!("--since-anchor: there is no anchor to begin at: {}", unreadable.join("; ")));
    }
    let of = |native: bool| sources.iter().any(|(_, format)| format.is_some_and(Format::is_native) == native);
    if !native.is_empty() && !of(true) || !legacy.is_empty() && !of(false) {
        return Err(
            "--anchor: a checkpoint is of a ledger and a saved head of a legacy chain; no source is such".to_owned()
        );
    }
    let part = cli.stream.is_some() || cli.since_anchor;
    // What a ledger adopted can be compared however much of it is read again.
    let beside = |format: Option<Format>| cli.since_anchor && !format.is_some_and(Format::is_native);
    if part && (!of(true) || sources.iter().any(|(_, format)| *format != Some(Format::Native) && !beside(*format))) {
        return Err(
            "--stream is for ledgers, and so is --since-anchor: a directory, a database, a backup or an export"
                .to_owned(),
        );
    }
    if (cli.batches.is_some() || cli.partial.is_some()) && !matches!(sources[..], [(_, Some(Format::Native))]) {
        return Err("--batches and --partial are for one archive: its directory, or s3://BUCKET/PREFIX".to_owned());
    }
    let licence = cli.licence.as_deref().map(read_licence).transpose()?;
    if licence.is_some() && !matches!(sources[..], [(_, Some(Format::Proof))]) {
        return Err("--licence is for one proof file, that of the entry which issued the licence".to_owned());
    }
    let artifact = cli.artifact.as_deref().map(digest).transpose()?;
    if artifact.is_some() && !matches!(sources[..], [(_, Some(Format::Proof))]) {
        return Err("--artifact is for one proof file, that of the entry which made the delivery ready".to_owned());
    }
    let held = licence.as_deref().map(Held::Licence).or(artifact.map(|(sha256, bytes)| Held::File(sha256, bytes)));
    let legacy = Legacy::new(cli, legacy)?;
    let mut exits = Vec::new();
    // Whatever becomes of the output, every source is judged, and the status says what was found.
    let fail = |exits: &mut Vec<u8>, e: &str| {
        eprintln!("audit-verify: {e}");
        exits.push(2);
    };
    // Ledgers first: what they adopted is compared with the legacy chain.
    sources.sort_by_key(|(_, format)| !format.is_some_and(Format::is_native));
    let chains: Vec<String> =
        sources.iter().filter(|s| !s.1.is_some_and(Format::is_native)).map(|s| name_of(&s.0)).collect();
    let mut adopted: Vec<Adopted> = Vec::new();
    for (source, format) in &sources {
        let bar = Bar::new(cli.quiet);
        let told = |judged: u64, claimed: u64| {
            bar.entries(judged, claimed);
            !STOP.load(Ordering::Relaxed)
        };
        let (anchors, require_anchor, since_anchor) = (native.as_slice(), cli.require_anchor, cli.since_anchor);
        let locks = cli.locks;
        if locks && !is_bucket(source) {
            fail(&mut exits, &format!("--locks: {} is no archive in S3, and has no locks", name_of(source)));
        }
        let progress: Option<&audit_verify::Progress<'_>> = Some(&told);
        let demands = Demands { trust, anchors, require_anchor, since_anchor, locks, progress, ..Demands::default() };
        let outcome = match format {
            Some(Format::Proof) => Outcome::Native(Box::new(match held {
                Some(held) => verify_proof_and(Path::new(source), held, demands),
                None => verify_proof(Path::new(source), demands),
            })),
            Some(Format::Summaries) => {
                let files: Vec<PathBuf> = cli.source[1..].iter().map(PathBuf::from).collect();
                let report = combine(&files, demands);
                Outcome::Native(Box::new(match &legacy.signers {
                    // What is enrolled in a batch that is not among them would seem to be of no registry.
                    Some(_) if report.part().is_some_and(|part| part.kind == "batches") => report.with_unchecked(
                        "the registry of signers that was given: these are not all batches of the archive".to_owned(),
                    ),
                    Some(signers) => report.with_external_registry(signers),
                    None => report,
                }))
            }
            Some(Format::Native) if cli.batches.is_some() || cli.partial.is_some() => {
                READING.store(true, Ordering::Relaxed);
                let numbers = cli.batches.clone().unwrap_or(1..=u64::MAX);
                Outcome::Native(Box::new(verify_batches(source, &numbers, cli.partial.as_deref(), demands)))
            }
            Some(Format::Native) => {
                READING.store(true, Ordering::Relaxed);
                let path = Path::new(source);
                let mut report = match &cli.stream {
                    Some(id) => verify_stream(path, id, demands),
                    None => verify_path_with(path, demands),
                };
                if let (Some(chain), false) = (chains.first(), report.adopted().is_empty()) {
                    if chains.len() > 1 || !adopted.is_empty() {
                        fail(
                            &mut exits,
                            "a ledger adopted one legacy chain, and it was not compared with any: give one ledger and one \
                             legacy source at a time",
                        );
                    } else {
                        report = report.beside_legacy(chain);
                        adopted = report.adopted().to_vec();
                    }
                }
                // Beside a legacy chain the registry is that chain's, unless it names a ledger.
                if let Some(signers) = legacy.signers.as_ref().filter(|s| chains.is_empty() || s.is_of_a_ledger()) {
                    report = report.with_external_registry(signers);
                }
                Outcome::Native(Box::new(report))
            }
            format => Outcome::Legacy(Box::new(legacy.verify(source, *format, &adopted, &bar))),
        };
        let outcome = outcome.without(&unreadable);
        drop(bar);
        match outcome.print(cli, out).and_then(|()| out.flush()) {
            Ok(()) => {}
            // A reader that has seen enough closes the pipe; the exit status still says what was found.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(e) => fail(&mut exits, &format!("the report could not be printed to its end: {e}")),
        }
        exits.push(outcome.exit());
        if let Outcome::Legacy(report) = &outcome
            && outcome.exit() == 1
        {
            // Where scripts of the old tool look for it.
            eprintln!("{}", report.headline());
        }
        if let Some(path) = &cli.report {
            let second = sources.len() > 1 && matches!(outcome, Outcome::Legacy(_));
            let path = &if second { beside_page(path) } else { path.clone() };
            if let Err(e) = std::fs::write(path, outcome.html()) {
                fail(&mut exits, &format!("--report {}: {e}; check the path", path.display()));
            }
        }
        // Only where the run has nothing to say against it: also that the report is where it was asked for.
        let good = exits.iter().all(|exit| *exit == 0);
        if let Some(path) = cli.save_anchor.as_ref().filter(|_| good)
            && let Err(e) = outcome.save_anchor(path)
        {
            fail(&mut exits, &e);
        }
    }
    Ok([1, 2].into_iter().find(|e| exits.contains(e)).unwrap_or(0))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if cli.list_codes {
        // A closed pipe is no fault.
        let _ = Code::ALL.iter().try_for_each(|c| writeln!(out, "{:<30} {}", c.as_str(), c.meaning()));
        return ExitCode::SUCCESS;
    }
    let stop = || {
        if STOP.swap(true, Ordering::Relaxed) || !READING.load(Ordering::Relaxed) {
            std::process::exit(2);
        }
    };
    if let Err(e) = ctrlc::set_handler(stop) {
        eprintln!("audit-verify: Ctrl-C will end it at once: {e}");
    }
    match run(&cli, &mut out) {
        Ok(exit) => ExitCode::from(exit),
        Err(e) => {
            eprintln!("audit-verify: {e}");
            ExitCode::from(2)
        }
    }
}
