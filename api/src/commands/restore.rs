use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use audit_verify::{Anchor, Code, Demands, Export, Lines, SourceError, Verdict, is_bucket, verify};
use ledger_engine::export::{CheckpointLine, FileKind, Line};
use ledger_engine::hash::{Hash, to_hex};
use ledger_engine::restore::{ArchivedCommit, Restorer, entry_of};
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore};
use ledger_engine::store::sqlite::{DATABASE_FILE, SqliteOptions, SqliteStore};
use ledger_engine::store::{Entry, Store, StoreError};

use crate::directory::{Place, random};
use crate::{CliError, output};

/// Private documents that are read ahead.
const AHEAD: usize = 1024;
/// Commits that are read ahead.
const COMMITS_AHEAD: usize = 16;

/// Make the ledger again from an archive alone, for the day when its database is gone
///
/// The archive is verified first, and refused if anything is wrong with it, or if it does not reach the newest checkpoint that is known. Then
/// entries, commits, checkpoints and projections are as they were when it was exported. Keys are not in archives: put the files of
/// keys/ from your backup into the directory before you write. A restore into PostgreSQL that was interrupted goes on when it is run again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The archive: a directory, or s3://BUCKET[/PREFIX]; or a copy's directory
    #[arg(long, value_name = "DIR|URL")]
    from: String,
    /// The ledger's id
    #[arg(long, value_name = "LEDGER_ID")]
    trust: String,
    /// The newest checkpoint of the ledger that is known anywhere, or `none` if none was kept
    ///
    /// Ask everybody: auditors, clients with proof files, backups, the archive's readers. If the ledger had signed more than the archive holds, a ledger
    /// that went on from here would have two histories.
    #[arg(long, value_name = "FILE|none")]
    newest_checkpoint: String,
}

fn wrong(e: impl std::fmt::Display) -> CliError {
    CliError::Usage(e.to_string())
}

/// What the archive must be, and reach.
struct Wanted {
    from: String,
    trust: Hash,
    anchors: Vec<Anchor>,
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let trust = Hash::from_hex(&args.trust).ok_or_else(|| wrong("--trust: a ledger's id is 64 hex characters"))?;
    let anchors = match args.newest_checkpoint.as_str() {
        "none" => Vec::new(),
        file => Anchor::read(Path::new(file)).map_err(wrong)?,
    };
    let wanted = Wanted { from: args.from, trust, anchors };
    let (place, url) = (place.clone(), place.url()?.map(str::to_owned));
    let restored =
        tokio::task::spawn_blocking(move || restore(&place, url.as_deref(), &wanted)).await.map_err(wrong)?;
    let (into, entries, private_withheld, resumed) = match restored? {
        Restored::Done { into, entries, private_withheld, resumed } => (into, entries, private_withheld, resumed),
        Restored::Refused(report) => {
            if json {
                output::line(&serde_json::json!({ "ok": false, "report": report.to_json() }).to_string())?;
            } else {
                output::line(report.to_text().trim_end())?;
                let short = report.codes().iter().any(|c| c == Code::AnchorBeyondTail.as_str());
                output::line(if short {
                    "nothing was restored: the ledger had signed more than the archive holds. Look for what is missing (the database's own backups, other \
                     archives); this ledger must not go on without it, since it would have two histories"
                } else {
                    "nothing was restored: get the archive again from where it is kept, or another one"
                })?;
            }
            return Ok(1);
        }
    };
    if json {
        let object = serde_json::json!({
            "ok": true, "ledger_id": trust.to_hex(), "into": into, "entries": entries, "resumed": resumed,
            "private_withheld": private_withheld,
        });
        output::line(&object.to_string())?;
        return Ok(0);
    }
    let resumed = if resumed { "; an earlier run had begun it" } else { "" };
    output::line(&format!("restored {entries} entries into {into}{resumed}"))?;
    if private_withheld {
        output::line("private documents were not in the archive: they are as if they were erased")?;
    }
    output::line(&format!("prove it with: audit-verify {into} --trust {trust}"))?;
    output::line("put the ledger's keys into keys/ of its directory before it writes again")?;
    Ok(0)
}

enum Restored {
    Done { into: String, entries: u64, private_withheld: bool, resumed: bool },
    Refused(Box<audit_verify::Report>),
}

fn restore(place: &Place, url: Option<&str>, wanted: &Wanted) -> Result<Restored, CliError> {
    let target = place.dir.join(DATABASE_FILE);
    if url.is_none() && target.exists() {
        return Err(wrong(format!("{} exists already; a ledger is never written over", target.display())));
    }
    let export = if is_bucket(&wanted.from) {
        Export::open_bucket(&wanted.from, Some(wanted.trust), false)
    } else {
        Export::open(Path::new(&wanted.from), Some(wanted.trust))
    };
    let export = export.map_err(wrong)?;
    let demands = Demands { trust: Some(wanted.trust), anchors: &wanted.anchors, ..Demands::default() };
    let report = verify(&wanted.from, &export, demands);
    if report.verdict() != Verdict::Verified || report.exit() != 0 {
        return Ok(Restored::Refused(Box::new(report)));
    }
    let private_withheld = export.manifest().private_withheld;
    if let Some(url) = url {
        let store: Arc<dyn Store> = Arc::new(PostgresStore::open(PostgresOptions::new(url))?);
        if store.ledger_id()?.is_some_and(|id| id != wanted.trust) {
            return Err(wrong("the database holds another ledger; restore into an empty one"));
        }
        let resumed = store.heads()?.iter().any(|head| head.size() > 0);
        let entries = fill(&store, &export, wanted.trust)?;
        store.close()?;
        return Ok(Restored::Done { into: "the database".into(), entries, private_withheld, resumed });
    }
    // Made beside and renamed, so that a failure leaves no half ledger.
    let building = place.dir.join(format!(".restoring-{}", to_hex(&random::<4>()?)));
    let io = |path: &Path| {
        let shown = path.display().to_string();
        move |e| CliError::Io(shown, e)
    };
    std::fs::create_dir_all(&building).map_err(io(&building))?;
    let built = build(&building, &export, wanted.trust);
    let moved = built.and_then(|entries| {
        std::fs::rename(building.join(DATABASE_FILE), &target).map_err(io(&target))?;
        sync(&place.dir)?;
        Ok(entries)
    });
    // What is left of a failed one; the error that matters is the first one.
    let _ = std::fs::remove_dir_all(&building);
    let into = place.dir.display().to_string();
    Ok(Restored::Done { into, entries: moved?, private_withheld, resumed: false })
}

fn build(dir: &Path, export: &Export, trust: Hash) -> Result<u64, CliError> {
    // Nobody relies on it before it is renamed: one sync in the end is enough.
    let options = SqliteOptions { synchronous: "OFF", ..SqliteOptions::default() };
    let store: Arc<dyn Store> = Arc::new(SqliteStore::create(dir, options)?);
    let entries = fill(&store, export, trust)?;
    store.close()?;
    drop(store);
    let path = dir.join(DATABASE_FILE);
    sync(&path)?;
    Ok(entries)
}

fn sync(path: &Path) -> Result<(), CliError> {
    std::fs::File::open(path).and_then(|f| f.sync_all()).map_err(|e| CliError::Io(path.display().to_string(), e))
}

fn fill(store: &Arc<dyn Store>, export: &Export, trust: Hash) -> Result<u64, CliError> {
    let mut entries = 0;
    for range in &export.manifest().chains {
        let mut restorer = Restorer::new(Arc::clone(store), trust, range.chain)?;
        let there = restorer.size();
        let lines = |kind| export.lines(range.chain, kind);
        let (entry_lines, private_lines) = (lines(FileKind::Entries), lines(FileKind::Private));
        std::thread::scope(|scope| {
            let ((documents, private), (archived, commits)) = (sync_channel(AHEAD), sync_channel(COMMITS_AHEAD));
            let reading_private = scope.spawn(move || {
                private_lines.read(&mut |line| match line {
                    Line::Private(p) => documents.send((p.index, p.document.to_vec())).is_ok(),
                    _ => true,
                })
            });
            let reading = scope.spawn(move || read(&entry_lines, there, &private, &archived));
            let filled = commits.iter().try_for_each(|item| take(&mut restorer, item));
            // Readers that wait for somebody to take what they have must not wait forever.
            drop(commits);
            for thread in [reading, reading_private] {
                let read = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                if filled.is_ok() {
                    read.map_err(wrong)?;
                }
            }
            filled
        })?;
        restorer.flush()?;
        if restorer.size() != range.to {
            let why = format!("chain {} has {} entries, the archive {}", range.chain, restorer.size(), range.to);
            return Err(StoreError::Corrupt(why).into());
        }
        entries += range.to;
    }
    Ok(entries)
}

/// What is read of a chain, in order.
enum Archived {
    Commit(ArchivedCommit),
    Checkpoint(CheckpointLine),
    /// The entry that should be the last one that is there already.
    Last(Box<Entry>),
}

fn take(restorer: &mut Restorer, item: Archived) -> Result<(), CliError> {
    match item {
        Archived::Commit(commit) => Ok(restorer.commit(commit)?),
        Archived::Checkpoint(line) => Ok(restorer.checkpoint(line)?),
        Archived::Last(entry) if restorer.continues(&entry) => Ok(()),
        Archived::Last(_) => {
            Err(wrong("what is there is not the beginning of this archive; restore into an empty place"))
        }
    }
}

/// Reads what comes after the first `there` entries of a chain, and the last of these.
fn read(
    lines: &Lines,
    there: u64,
    documents: &Receiver<(u64, Vec<u8>)>,
    out: &SyncSender<Archived>,
) -> Result<(), SourceError> {
    let mut next_private: Option<(u64, Vec<u8>)> = None;
    let mut open: Option<ArchivedCommit> = None;
    lines.read(&mut |line| match line {
        Line::Commit(commit) => {
            open = Some(ArchivedCommit { commit, entries: Vec::new(), private: Vec::new() });
            true
        }
        Line::Entry(line) => {
            let index = line.header.index;
            let Some(reading) = &mut open else { return true };
            if index + 1 == there && out.send(Archived::Last(Box::new(entry_of(&line)))).is_err() {
                return false;
            }
            loop {
                if next_private.is_none() {
                    next_private = documents.recv().ok();
                }
                match next_private.take_if(|(i, _)| *i <= index) {
                    Some(document) if document.0 == index => reading.private.push(document),
                    Some(_) => {}
                    None => break,
                }
            }
            reading.entries.push(entry_of(&line));
            if (reading.entries.len() as u64) < reading.commit.size {
                return true;
            }
            match open.take().filter(|read| read.commit.first_index >= there) {
                Some(commit) => out.send(Archived::Commit(commit)).is_ok(),
                None => true,
            }
        }
        Line::Checkpoint(line) if line.size > there || there == 0 => out.send(Archived::Checkpoint(line)).is_ok(),
        Line::Checkpoint(_) | Line::Private(_) => true,
    })
}
