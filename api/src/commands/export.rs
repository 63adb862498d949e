use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use audit_verify::is_bucket;
use audit_verify::legacy::Window;
use indicatif::{ProgressBar, ProgressStyle};
use ledger_engine::archive::ExportOptions;
use ledger_engine::archive::job::{BatchOptions, Done, Progress, directory_of};
use ledger_engine::environment::{Environment as _, SystemEnvironment};

use crate::archives::{self, Locking};
use crate::directory::{self, Place};
use crate::{CliError, counts, output};

const TOOL: &str = concat!("ledger ", env!("CARGO_PKG_VERSION"));

/// Export what is new since the last export to the same place: signed, read back, and recorded in the ledger
///
/// Writes the next batch of an archive: gzip JSON lines with a signed manifest, under marketplace/yyyy-mm-dd/ (FORMAT.md 13). In S3 every
/// object is locked, read back and found locked, or the export is not done. A job that was killed goes on when it is run again. Writers
/// may go on meanwhile. Check it with `audit-verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The archive: a directory, or s3://BUCKET[/PREFIX] [default: s3:// and S3_AUDIT_BUCKET]
    #[arg(long, value_name = "DIR|URL")]
    out: Option<String>,
    /// The environment that this ledger serves, for those who read the archive
    #[arg(long, env = "LEDGER_ENV", default_value = "dev", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    env: String,
    /// Whether private documents are exported, in files of their own; the archive verifies without them
    #[arg(long, value_enum, default_value_t = Pii::Include)]
    pii: Pii,
    /// Version of the policy that says so
    #[arg(long, default_value = "1", value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pii_policy: String,
    /// What the ledger's record calls the archive, if the directory has been moved since
    #[arg(long, value_name = "TEXT")]
    location: Option<String>,
    /// What was recorded from this time on (RFC 3339, or a date). An archive has no gaps: what is older and not in it yet is exported too
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<i64>,
    /// What was recorded up to this time: the batch ends at the last checkpoint that was signed of it, and the next one goes on from there
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: Option<i64>,
    /// What is new since the last export to the same place. Always so; for those who want to say it
    #[arg(long)]
    since_last: bool,
    /// Say what would be exported, and stop
    #[arg(long)]
    dry_run: bool,
    /// Give up an export that was begun and cannot be finished, and begin it anew
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    locking: Locking,
    /// Add to the counters of exports in this file, for a textfile collector of Prometheus
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Write the entries as tables too, in Parquet beside the lines, for analysts (DuckDB, Spark, Athena)
    #[arg(long)]
    parquet: bool,
    /// Instead copy the whole ledger into a new directory: not signed, not recorded, and no key is needed
    #[arg(long, conflicts_with_all = ["since_last", "dry_run", "restart", "metrics", "parquet", "from", "to"])]
    copy: bool,
    /// Do not compress a copy's files
    #[arg(long, requires = "copy")]
    plain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Pii {
    /// They are
    Include,
    /// They are left out
    Withhold,
}

/// Microseconds since 1970.
fn parse_time(text: &str) -> Result<i64, String> {
    let ms = Window::parse_since(text).and_then(|ms| ms.checked_mul(1000));
    ms.ok_or_else(|| "a time as 2026-11-27T02:00:00Z, or a date as 2026-11-27".to_owned())
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    if args.copy {
        let out = args.out.as_deref().filter(|out| !is_bucket(out));
        let out = out.ok_or_else(|| CliError::Usage("--copy makes a directory: name it with --out".into()))?;
        return copy(place, json, &args, Path::new(out)).await;
    }
    let metrics = args.metrics.clone();
    let dry_run = args.dry_run;
    let result = export(place, json, args).await;
    if let Some(path) = metrics.filter(|_| !dry_run)
        && let Err(e) = counts::export(&path, result.is_ok())
    {
        // What became of the export is what is answered, also where nobody listens.
        let _ = writeln!(std::io::stderr(), "ledger: --metrics: {e}; the run is not counted there, check the path");
    }
    result
}

async fn export(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let named = archives::named(args.out.as_deref())?;
    let options = BatchOptions {
        env: args.env,
        private: args.pii == Pii::Include,
        pii_policy: args.pii_policy,
        tool: TOOL.to_owned(),
        tables: args.parquet,
        until_us: args.to,
        restart: args.restart,
    };
    if args.from.zip(args.to).is_some_and(|(from, to)| from > to) {
        return Err(CliError::Usage("--from is later than --to".into()));
    }
    if args.from.is_some_and(|from| from > SystemEnvironment.now_us()) {
        return Err(CliError::Usage("--from is later than now".into()));
    }
    if args.dry_run {
        return dry_run(place, json, &archives::location(&named, args.location)?, &options).await;
    }
    let archive = archives::open(&named, args.location, &args.locking).await?;
    let ledger = directory::open(place).await?;
    let bar = bar();
    let shown = bar.clone();
    let told = Box::new(move |progress| match progress {
        Progress::Kept(entries, of) => {
            shown.set_length(of);
            shown.set_position(entries);
        }
        Progress::ReadBack(files, of) => shown.set_message(format!("{files} of {of} files read back")),
    });
    let done = ledger.export_batch(Arc::clone(&archive), options, told).await;
    bar.finish_and_clear();
    // Without a checkpoint: one that covers the record of the export would be newer than what the archive reaches, however little is missing. An
    // export that failed is what matters, not closing afterwards.
    let closed = ledger.close().await;
    let done = done?;
    closed?;
    say(json, &ledger.id().to_hex(), &done)
}

fn bar() -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} entries kept, {elapsed} {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn say(json: bool, id: &str, done: &Done) -> Result<u8, CliError> {
    let (completed, plan) = (&done.completed, &done.completed.plan);
    let entries: u64 = plan.ranges.iter().map(|r| r.to - r.from).sum();
    let lines: u64 = done.manifest.files.iter().map(|f| f.bytes).sum();
    if json {
        let ranges: Vec<_> = plan.ranges.iter().map(|r| serde_json::json!({ "from": r.from, "to": r.to })).collect();
        let object = serde_json::json!({
            "ok": true, "ledger_id": id, "location": plan.location, "batch": plan.batch, "sequence": plan.sequence,
            "directory": directory_of(plan), "entries": entries, "line_bytes": lines, "stored_bytes": completed.bytes,
            "files": completed.files, "ranges": ranges, "manifest_sha256": completed.manifest_sha256.to_hex(),
            "manifest_version": completed.manifest_version, "lock": archives::lock_json(completed.lock.as_ref()),
            "resumed": done.resumed, "tables": done.manifest.batch.as_ref().map_or(0, |b| b.tables.len()),
        });
        output::line(&object.to_string())?;
        return Ok(0);
    }
    let resumed = if done.resumed { "; it was begun by an earlier run" } else { "" };
    output::line(&format!(
        "exported {entries} entries ({lines} bytes of lines, {} stored, {} files) as batch {} of {}{resumed}",
        completed.bytes, completed.files, plan.sequence, plan.location
    ))?;
    output::line(&format!("manifest    {}/manifest.json", directory_of(plan)))?;
    output::line(&format!("sha256      {}", completed.manifest_sha256))?;
    if let Some(lock) = &completed.lock {
        output::line(&format!("locked      {}", archives::lock_text(lock)))?;
    }
    output::line(&format!("verify it with: audit-verify {} --trust {id}", plan.location))?;
    Ok(0)
}

async fn dry_run(place: &Place, json: bool, location: &str, options: &BatchOptions) -> Result<u8, CliError> {
    let (ledger, _) = directory::reader(place).await?;
    let plan = ledger.export_plan(location, options, SystemEnvironment.now_us()).await?;
    let entries: u64 = plan.ranges.iter().map(|r| r.to - r.from).sum();
    if json {
        let object = serde_json::json!({
            "ok": true, "dry_run": true, "location": plan.location, "sequence": plan.sequence, "entries": entries,
            "directory": directory_of(&plan),
        });
        output::line(&object.to_string())?;
    } else {
        output::line(&format!(
            "would export {entries} entries or more as batch {} of {}, into {}; nothing was written",
            plan.sequence,
            plan.location,
            directory_of(&plan)
        ))?;
    }
    Ok(0)
}

async fn copy(place: &Place, json: bool, args: &Args, out: &Path) -> Result<u8, CliError> {
    let (ledger, _) = directory::reader(place).await?;
    let options = ExportOptions {
        gzip: !args.plain,
        withhold_private: args.pii == Pii::Withhold,
        exported_at_us: SystemEnvironment.now_us(),
        tool: TOOL.to_owned(),
    };
    let manifest = ledger.export(options, out).await?;
    let entries: u64 = manifest.chains.iter().map(|c| c.to - c.from).sum();
    let bytes: u64 = manifest.files.iter().map(|f| f.bytes).sum();
    if json {
        let files: Vec<&str> = manifest.files.iter().map(|f| f.name.as_str()).collect();
        let object = serde_json::json!({
            "ok": true, "out": out, "ledger_id": manifest.ledger_id.to_hex(), "entries": entries, "bytes": bytes,
            "files": files,
        });
        output::line(&object.to_string())?;
        return Ok(0);
    }
    let text = format!(
        "copied {entries} entries ({bytes} bytes of lines, {} files) to {out}\n\
         verify it with: audit-verify {out} --trust {}",
        manifest.files.len(),
        manifest.ledger_id,
        out = out.display(),
    );
    output::line(&text)?;
    Ok(0)
}
