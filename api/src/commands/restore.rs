use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use audit_verify::{
    Anchor, ChainReport, Code, Demands, Export, Judged, JudgedEntry, Lines, Report, SourceError, Taker, Verdict,
    is_bucket, verify, verify_path, verify_path_with,
};
use ledger_engine::export::record::{ExportEvent, Restored as Recorded};
use ledger_engine::export::{ChainRange, CheckpointLine, FileKind, Line};
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::reader::Reader;
use ledger_engine::restore::{ArchivedCommit, ArchivedEntry, Restorer};
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore};
use ledger_engine::store::sqlite::{DATABASE_FILE, Mark, SqliteOptions, SqliteStore};
use ledger_engine::store::{ChainHead, Entry, Store, StoreError};
use ledger_engine::succession::{Succession, TreeHead};

use crate::directory::{self, Place};
use crate::weighed::{self, Receiver, Sender};
use crate::{CliError, archives, output};

/// Bytes of private documents that are read ahead.
const DOCUMENTS_AHEAD: usize = 4 << 20;
/// Bytes of commits that are read ahead.
const COMMITS_AHEAD: usize = 4 << 20;
/// Bytes of a row besides its body or document, about.
const ROW: usize = 512;

/// Make the ledger again from an archive alone, for the day when its database is gone
///
/// The archive is verified first. Entries, commits, checkpoints and projections are then as they were when it was exported. If it reaches the
/// newest checkpoint that is known, the ledger goes on: an entry says that it was restored. Keys are not in archives: put the files of keys/
/// from your backup into the directory before (none are needed with --drill). If the archive does not reach it, or not all of it is good, the
/// ledger would have two histories: with --accept-loss it is restored as far as it can be, and closed; `ledger init --succeeds` begins another one,
/// whose genesis says what was lost. A restore into PostgreSQL that was interrupted goes on when it is run again.
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
    /// Only try it: nothing is appended, no key is needed, and what is made must never be written to
    #[arg(long, conflicts_with = "accept_loss")]
    drill: bool,
    /// Restore up to the last good commit where entries are missing or damaged, and close the ledger; the text says what was lost, for
    /// everybody who reads the successor's genesis
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    accept_loss: Option<String>,
}

fn wrong(e: impl std::fmt::Display) -> CliError {
    CliError::Usage(e.to_string())
}

/// What the archive must be, and reach.
struct Wanted {
    from: String,
    trust: Hash,
    anchors: Vec<Anchor>,
    drill: bool,
    accept_loss: Option<String>,
}

impl Wanted {
    /// Keys that were in other hands leave a verdict open, and are no reason not to try.
    fn may_be_tried(&self, report: &Report) -> bool {
        self.drill && report.faults() == 0 && report.is_open_for_keys_alone()
    }
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let trust = Hash::from_hex(&args.trust).ok_or_else(|| wrong("--trust: a ledger's id is 64 hex characters"))?;
    let anchors = match args.newest_checkpoint.as_str() {
        "none" => Vec::new(),
        file => Anchor::read(Path::new(file)).map_err(wrong)?,
    };
    let Args { from, drill, accept_loss, .. } = args;
    if let Some(text) = accept_loss.as_ref().filter(|text| text.len() > 1024) {
        return Err(wrong(format!("--accept-loss: {} bytes; at most 1,024", text.len())));
    }
    if !drill && accept_loss.is_none() {
        // Before an hour's work, not after it.
        directory::check_keys(place)?;
        if directory::is_closed(&place.dir) {
            return Err(stays_closed(&place.dir.display().to_string()));
        }
    }
    let accepted = accept_loss.is_some();
    let wanted = Wanted { from, trust, anchors, drill, accept_loss };
    let (place, url) = (place.clone(), place.url()?.map(str::to_owned));
    let restored =
        tokio::task::spawn_blocking(move || restore(&place, url.as_deref(), &wanted)).await.map_err(wrong)?;
    match restored? {
        Restored::Done(done) => {
            done.say(json, trust)?;
            Ok(0)
        }
        Restored::Refused(report) => {
            if json {
                output::line(&serde_json::json!({ "ok": false, "report": report.to_json() }).to_string())?;
            } else {
                output::line(report.to_text().trim_end())?;
                if report.is_open_for_keys_alone() {
                    output::line(
                        "nothing was restored: a key that signed was in other hands then, and nothing says that these entries are not theirs. Give a checkpoint of them \
                         that was kept (--newest-checkpoint), or one that a later key signed, such as those in the archive's last manifest; --drill only tries it",
                    )?;
                    return Ok(report.exit().max(2));
                }
                if report.verdict() != Verdict::Broken {
                    output::line(
                        "nothing was restored: the archive could not be judged for what is said above. Nothing says that it is damaged: mend that, and run this again",
                    )?;
                    return Ok(report.exit().max(2));
                }
                if report.faults_of(Code::LedgerIdMismatch) > 0 {
                    output::line(
                        "nothing was restored: the archive is of another ledger than --trust says; check the id, and where the archive is from",
                    )?;
                    return Ok(report.exit().max(1));
                }
                let short = report.faults_of(Code::AnchorBeyondTail) > 0;
                let contradicted = report.faults_of(Code::AnchorMismatch) > 0;
                output::line(if contradicted {
                    "nothing was restored: the ledger's own key signed a checkpoint that this archive contradicts, so that there are two histories. Find out \
                     which of them is the ledger's, and restore that one; --newest-checkpoint none with --drill only looks at what this one has"
                } else if accepted {
                    "nothing was restored: there is no good commit at the beginning of this archive, so that there is nothing to begin with. Get it again from \
                     where it is kept, or another one"
                } else if short {
                    "nothing was restored: the ledger had signed more than the archive holds. Look for what is missing (the database's own backups, other \
                     archives); this ledger must not go on without it, since it would have two histories. If it is lost, --accept-loss restores what there is \
                     and closes the ledger"
                } else {
                    "nothing was restored: get the archive again from where it is kept, or another one. If there is none, --accept-loss restores it up to the \
                     last good commit and closes the ledger"
                })?;
            }
            Ok(report.exit().max(1))
        }
    }
}

enum Restored {
    Done(Box<Done>),
    Refused(Box<Report>),
}

/// What becomes of the ledger.
enum Fate {
    /// It goes on.
    Continued,
    /// It was a drill.
    Drill,
    /// It is closed, and this file says why.
    Closed(PathBuf, Succession),
}

struct Done {
    into: String,
    entries: u64,
    private_withheld: bool,
    /// How many private documents are missing that no entry erased; nothing of a run that went on with another's.
    private_absent: Option<u64>,
    resumed: bool,
    fate: Fate,
}

impl Done {
    fn say(&self, json: bool, trust: Hash) -> Result<(), CliError> {
        let Done { into, entries, private_withheld, private_absent, resumed, fate } = self;
        if json {
            let mut object = serde_json::json!({
                "ok": true, "ledger_id": trust.to_hex(), "into": into, "entries": entries, "resumed": resumed,
                "private_withheld": private_withheld, "private_absent": private_absent,
                "fate": match fate { Fate::Continued => "continued", Fate::Drill => "drill", Fate::Closed(..) => "closed" },
            });
            if let Fate::Closed(file, succession) = fate {
                object["closed"] = serde_json::json!(file);
                object["lost_entries"] = succession.lost_entries().into();
            }
            return output::line(&object.to_string());
        }
        let earlier = if *resumed { "; an earlier run had begun it" } else { "" };
        output::line(&format!("restored {entries} entries into {into}{earlier}"))?;
        match private_absent {
            Some(0) => {}
            Some(1) => {
                output::line("the private document of 1 entry is not in the archive: it is as if it were erased")?
            }
            Some(n) => {
                output::line(&format!(
                    "private documents of {n} entries are not in the archive: they are as if they were erased"
                ))?;
            }
            None if *private_withheld => {
                output::line("private documents were not in the archive: they are as if they were erased")?;
            }
            None => {}
        }
        output::line(&format!("prove it with: audit-verify {into} --trust {trust}"))?;
        match fate {
            Fate::Continued => output::line("an entry says so (ledger.restored); the ledger goes on"),
            Fate::Drill => output::line(
                "this was a drill: it would be a second history of the ledger, and nothing writes to it; leave the ledger's keys away from it",
            ),
            Fate::Closed(file, succession) => {
                if succession.lost.is_empty() {
                    output::line("more had been signed than was restored; nothing that can be believed says how much")?;
                }
                for lost in &succession.lost {
                    let (k, from, last) = (lost.chain, lost.from, lost.to - 1);
                    output::line(&format!("lost of chain {k}: entries {from} to {last} at least"))?;
                }
                let file = file.display();
                output::line(&format!(
                    "the ledger is closed: it is never to be written to again, and {file} says why"
                ))?;
                output::line(&format!(
                    "begin its successor with: ledger --dir NEW init --origin NAME --succeeds {file}"
                ))
            }
        }
    }
}

fn restore(place: &Place, url: Option<&str>, wanted: &Wanted) -> Result<Restored, CliError> {
    let export = if is_bucket(&wanted.from) {
        Export::open_bucket(&wanted.from, Some(wanted.trust), false)
    } else {
        Export::open(Path::new(&wanted.from), Some(wanted.trust))
    };
    // A table that is missing keeps no ledger from being restored.
    let export = export.map_err(wrong)?.without_tables();
    if export.is_lone_batch() && !wanted.drill {
        return Err(wrong(format!(
            "{} is one batch of an archive, and others may follow it: name the archive that it is in, the directory with marketplace/; or only try \
             it, with --drill",
            wanted.from
        )));
    }
    let building = Building::begin(&place.dir)?;
    let database = place.dir.join(DATABASE_FILE);
    let there = url.is_none() && database.exists();
    // What a ledger that was here had not written into its file yet would be taken for part of the one that is made here.
    for suffix in ["-wal", "-journal", "-shm"] {
        let beside = place.dir.join(format!("{DATABASE_FILE}{suffix}"));
        if url.is_none() && !there && beside.exists() {
            return Err(wrong(format!(
                "{} is of a database that is not there any more, and may be the last that is left of it: move it away and keep it, then run this again",
                beside.display()
            )));
        }
    }
    let demands = Demands { trust: Some(wanted.trust), anchors: &wanted.anchors, ..Demands::default() };
    // Nothing but a file that nobody opens is made of what may still be found wrong.
    let (report, made) = if there || url.is_some() {
        (verify(&wanted.from, &export, demands), None)
    } else {
        Making::of(&export, wanted, &building, demands)?
    };
    let good = report.verdict() == Verdict::Verified && report.exit() == 0 || wanted.may_be_tried(&report);
    let doubtful = export.doubtful();
    if good && !doubtful.is_empty() && !wanted.drill && wanted.accept_loss.is_none() {
        return Err(wrong(format!(
            "the ledger had begun to export more than the archive holds, and had signed it: {} has no manifest. This ledger must not go on without it, \
             since it would have two histories. Get the batch from where it is kept, or take it away if it is not the ledger's; if it is lost, \
             --accept-loss restores what there is and closes the ledger; --drill only tries it",
            output::safe(&doubtful.join(", "))
        )));
    }
    // What contradicts a signed checkpoint has two histories: nobody can say of one that the other is what was lost of it.
    let contradicted = report.faults_of(Code::AnchorMismatch) > 0;
    if !good && (wanted.accept_loss.is_none() || report.verdict() != Verdict::Broken || contradicted) {
        return Ok(Restored::Refused(Box::new(report)));
    }
    // Made beside and put there when it is whole, so that a failure leaves no half ledger; what is there is whole.
    if there {
        return there_already(place, wanted, &export, &report);
    }
    build(place, url, wanted, &export, report, (&building.dir, made))
}

/// Where an embedded ledger is made, within the directory where it will be.
const BUILDING: &str = ".restoring";
/// In there, what is tried of a damaged archive.
const SALVAGE: &str = "salvage";

/// A directory for what is being made. It goes with everything that was not put elsewhere.
struct Building {
    dir: PathBuf,
    /// What was made for it, from the outside in.
    around: Vec<PathBuf>,
    /// The ledger's directory, locked: one restore into it at a time.
    _alone: std::fs::File,
}

impl Building {
    fn begin(target: &Path) -> Result<Building, CliError> {
        let around = target.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
        let around: Vec<PathBuf> = around.map(Path::to_owned).collect();
        std::fs::create_dir_all(target).map_err(io(target))?;
        let alone = std::fs::File::open(target).map_err(io(target))?;
        match alone.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(wrong(format!(
                    "another restore into {} is under way; see what becomes of it, and run this again only if it fails",
                    target.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(io(target)(e)),
        }
        let dir = target.join(BUILDING);
        // What a run that was killed has left.
        remove_database(&dir.join(SALVAGE))?;
        remove_database(&dir)?;
        for dir in [&dir.join(SALVAGE), &dir] {
            match std::fs::remove_dir(dir) {
                Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                    let dir = dir.display();
                    return Err(wrong(format!(
                        "{dir} has files that no restore made: move them away, and run this again"
                    )));
                }
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(dir)(e)),
                _ => {}
            }
        }
        std::fs::create_dir(&dir).map_err(io(&dir))?;
        Ok(Building { dir, around, _alone: alone })
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // What cannot be removed is in nobody's way; the error that matters is another one.
        let _ = std::fs::remove_dir_all(&self.dir);
        // Those that are empty: nothing was restored.
        self.around.iter().for_each(|dir| drop(std::fs::remove_dir(dir)));
    }
}

/// Removes a database, and what belongs to it.
fn remove_database(dir: &Path) -> Result<(), CliError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let file = dir.join(format!("{DATABASE_FILE}{suffix}"));
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&file)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Puts a file where there is none; two that do it at once do not write over each other.
fn put(made: &Path, target: &Path) -> Result<(), CliError> {
    match std::fs::hard_link(made, target) {
        Ok(()) => Ok(std::fs::remove_file(made).map_err(io(made))?),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(wrong(format!(
            "{} was put there while the archive was restored, and is not written over; see what it is, then run this again",
            target.display()
        ))),
        // A file system without links.
        Err(_) if !target.exists() => std::fs::rename(made, target).map_err(io(target)),
        Err(e) => Err(io(target)(e)),
    }
}

/// A ledger that was closed may have a successor: it never goes on, whatever is found of it later.
fn stays_closed(shown: &str) -> CliError {
    wrong(format!(
        "{shown} holds a ledger that was closed, and that does not go on: its successor takes what is new. To look at what this archive has, restore \
         it into another place with --drill. If the successor was not begun yet, and this archive has what had been lost, restore it into an empty place"
    ))
}

/// What no restore began is not the beginning of one.
fn nothing_to_restore(shown: &str) -> CliError {
    wrong(format!(
        "{shown} holds this ledger, and no restore into it was begun: there is nothing to restore, and nothing was done. To try the archive, give an \
         empty place; to make the ledger again, take what is there away and keep it"
    ))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CliError + use<> {
    let shown = path.display().to_string();
    move |e| CliError::Io(shown, e)
}

fn build(
    place: &Place,
    url: Option<&str>,
    wanted: &Wanted,
    export: &Export,
    report: Report,
    (building, made): (&Path, Option<Made>),
) -> Result<Restored, CliError> {
    // Nothing is wrong with the archive itself but where it ends.
    let whole = report.codes().iter().all(|code| code == Code::AnchorBeyondTail.as_str());
    let (report, limits) = if report.findings().is_empty() {
        (report, None)
    } else if whole {
        // What it says without them, checkpoints too.
        let demands = Demands { trust: Some(wanted.trust), ..Demands::default() };
        (verify(&wanted.from, export, demands), None)
    } else {
        match salvage(export, wanted, building)? {
            Salvaged::Nothing => return Ok(Restored::Refused(Box::new(report))),
            Salvaged::Contradicted(why) | Salvaged::Doubtful(why) => return Ok(Restored::Refused(why)),
            Salvaged::Good(report, sizes) => (*report, Some(sizes)),
        }
    };
    let succession = match &wanted.accept_loss {
        Some(statement) => succession(export, &report, &wanted.anchors, wanted.trust, statement)?,
        None => None,
    };
    if succession.is_none() && !wanted.drill {
        // Nothing that was signed is lost, so that it will go on.
        directory::check_keys(place)?;
    }
    // A successor may begin where it was closed: whoever closes it again does it in the same way.
    let closed_here = directory::is_closed(&place.dir);
    let again = match &succession {
        Some(succession) if closed_here => directory::is_closed_as(&place.dir, succession)?,
        _ => false,
    };
    if closed_here && !again && !wanted.drill {
        return Err(stays_closed(&place.dir.display().to_string()));
    }
    let limits = limits.as_deref();
    let mut held = Held { dir: &place.dir, postgres: None };
    let (store, resumed, filled): (Arc<dyn Store>, bool, Option<Filled>) = match url {
        Some(url) => {
            let store = Arc::new(PostgresStore::open_held(PostgresOptions::new(url))?);
            held.postgres = Some(Arc::clone(&store));
            let store: Arc<dyn Store> = store;
            if store.ledger_id()?.is_some_and(|id| id != wanted.trust) {
                return Err(wrong("the database holds another ledger; restore into an empty one"));
            }
            let begun = store.heads()?.iter().any(|head| head.size() > 0);
            if held.why()?.as_deref() == Some(CLOSED) {
                let wanted: Vec<u64> = match limits {
                    Some(limits) => limits.to_vec(),
                    None => export.manifest().chains.iter().map(|c| c.to).collect(),
                };
                if !again || !store.heads()?.iter().map(ChainHead::size).eq(wanted) {
                    return Err(stays_closed("the database"));
                }
            } else if goes_beyond(&*store, export)? {
                if succession.is_some() {
                    return Err(wrong(
                        "the database holds this ledger with more entries than the archive, and less than was signed: what is closed is closed in an \
                         empty database",
                    ));
                }
                return restored_before(&store, export, "the database", &held, (false, wanted.drill));
            } else if begun && held.why()?.is_none() {
                return Err(nothing_to_restore("the database"));
            } else {
                held.hold(INCOMPLETE)?;
            }
            (store, begun, None)
        }
        None => match made.filter(|_| limits.is_none()) {
            Some(Made { store, filled }) => (store, false, Some(filled)),
            None => (Arc::new(embedded(building)?), false, None),
        },
    };
    let Filled { sizes, absent } = match filled {
        Some(filled) => filled,
        None => fill(&store, export, wanted.trust, limits)?,
    };
    if limits.is_some_and(|limits| limits != sizes) {
        return Err(wrong(
            "the database holds other entries than what is good of this archive; restore what there is of it into an empty database",
        ));
    }
    if let Some(url) = url.filter(|_| resumed) {
        // What was there before this run was not compared with the archive.
        unchanged(url, wanted, "the database")?;
    }
    let entries = sizes.iter().sum();
    let fate = match succession {
        Some(succession) => Fate::Closed(directory::close(&place.dir, &succession)?, succession),
        None if wanted.drill => Fate::Drill,
        None => Fate::Continued,
    };
    let hold = || match &fate {
        Fate::Closed(..) if held.postgres.is_none() => Ok(()),
        Fate::Closed(..) => held.hold(CLOSED),
        Fate::Drill => held.hold(DRILL),
        Fate::Continued => held.hold(INCOMPLETE),
    };
    let (store, into) = match url {
        Some(_) => {
            // Wherever somebody has the keys and the database's URL.
            hold()?;
            (store, "the database".to_owned())
        }
        None => {
            store.close()?;
            drop(store);
            // In the file itself, so that its copies and backups say it too.
            let closed = matches!(fate, Fate::Closed(..));
            SqliteStore::set_mark(building, if closed { Mark::Closed } else { Mark::Held })?;
            let (made, target) = (building.join(DATABASE_FILE), place.dir.join(DATABASE_FILE));
            sync(&made)?;
            put(&made, &target).inspect_err(|_| {
                // It would close a ledger that somebody else put there.
                if let Fate::Closed(file, _) = &fate
                    && !closed_here
                {
                    let _ = std::fs::remove_file(file);
                }
            })?;
            sync(&place.dir)?;
            // The file says it too; nothing is said of one that is somebody else's.
            hold()?;
            let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&place.dir, SqliteOptions::default())?);
            (store, place.dir.display().to_string())
        }
    };
    // Only once it is where it stays: an entry that was signed for a ledger which is made again would be a second history.
    end(place, store, &fate, &held, || record(export, wanted, &report))?;
    let private_withheld = export.manifest().private_withheld;
    let private_absent = (!resumed).then_some(absent);
    Ok(Restored::Done(Box::new(Done { into, entries, private_withheld, private_absent, resumed, fate })))
}

/// What keeps others from writing to a ledger that must not go on, or not yet.
const INCOMPLETE: &str = "a restore of it from an archive has begun and not ended; run `ledger restore` again";
const DRILL: &str = "it was restored as a drill, and would be a second history of the ledger; to go on from it, run `ledger restore` without --drill";
const CLOSED: &str = "it was restored without all that it had signed, and closed; what is new belongs into its successor (`ledger init --succeeds`)";

/// Where it is said.
struct Held<'a> {
    /// Of an embedded ledger.
    dir: &'a Path,
    postgres: Option<Arc<PostgresStore>>,
}

impl Held<'_> {
    fn hold(&self, why: &str) -> Result<(), CliError> {
        match &self.postgres {
            Some(store) => Ok(store.hold(Some(why))?),
            None => directory::hold(self.dir, why),
        }
    }

    fn why(&self) -> Result<Option<String>, CliError> {
        match &self.postgres {
            Some(store) => Ok(store.held()?),
            None => directory::held(self.dir),
        }
    }

    fn release(&self) -> Result<(), CliError> {
        match &self.postgres {
            Some(store) => Ok(store.hold(None)?),
            None => directory::release(self.dir),
        }
    }
}

/// Lets the ledger go on, if that is its fate, and closes the store.
fn end(
    place: &Place,
    store: Arc<dyn Store>,
    fate: &Fate,
    held: &Held<'_>,
    restored: impl FnOnce() -> Recorded,
) -> Result<(), CliError> {
    if !matches!(fate, Fate::Continued) {
        return Ok(store.close()?);
    }
    tokio::runtime::Handle::current().block_on(directory::go_on(place, store, restored()))?;
    held.release()
}

/// Whether a store has more entries than the archive.
fn goes_beyond(store: &dyn Store, export: &Export) -> Result<bool, StoreError> {
    let heads = store.heads()?;
    let beyond = |range: &ChainRange| heads.iter().any(|h| h.chain == range.chain && h.size() > range.to);
    Ok(export.manifest().chains.iter().any(beyond))
}

/// Whether a store begins with what the archive has.
fn begins_with(store: &dyn Store, export: &Export) -> Result<bool, StoreError> {
    for range in &export.manifest().chains {
        let last = range.to.checked_sub(1).map(|index| store.entry(range.chain, index)).transpose()?.flatten();
        if last.is_none_or(|entry| entry.entry_hash != range.last_hash) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A directory with a ledger: one that was restored from this very archive, which an earlier run did not end with, or somebody's.
fn there_already(place: &Place, wanted: &Wanted, export: &Export, report: &Report) -> Result<Restored, CliError> {
    let shown = place.dir.join(DATABASE_FILE).display().to_string();
    let foreign =
        || wrong(format!("{shown} exists already, and is not this archive restored; a ledger is never written over"));
    let store = SqliteStore::open(&place.dir, SqliteOptions::default())?;
    let mark = store.mark()?;
    let store: Arc<dyn Store> = Arc::new(store);
    if mark == Mark::Closed {
        return Err(stays_closed(&place.dir.display().to_string()));
    }
    if wanted.accept_loss.is_some() || store.ledger_id()? != Some(wanted.trust) || !begins_with(&*store, export)? {
        return Err(foreign());
    }
    let into = place.dir.display().to_string();
    let held = Held { dir: &place.dir, postgres: None };
    if goes_beyond(&*store, export)? {
        return restored_before(&store, export, &into, &held, (mark == Mark::Held, wanted.drill));
    }
    if mark != Mark::Held {
        return Err(nothing_to_restore(&into));
    }
    unchanged(&into, wanted, &into)?;
    let fate = if wanted.drill { Fate::Drill } else { Fate::Continued };
    if let Fate::Continued = fate {
        // It is no drill any more, also for a run that goes on when this one is killed.
        held.hold(INCOMPLETE)?;
    }
    end(place, store, &fate, &held, || record(export, wanted, report))?;
    let (entries, private_withheld) =
        (export.manifest().chains.iter().map(|c| c.to).sum(), export.manifest().private_withheld);
    Ok(Restored::Done(Box::new(Done { into, entries, private_withheld, private_absent: None, resumed: true, fate })))
}

/// That what an earlier run left, or somebody since, is what was signed: nothing is signed on top of anything else.
fn unchanged(source: &str, wanted: &Wanted, shown: &str) -> Result<(), CliError> {
    let report = judged(Path::new(source), wanted);
    if report.exit() == 0 || wanted.may_be_tried(&report) {
        return Ok(());
    }
    let codes = report.codes().join(", ");
    let what = if codes.is_empty() { report.unchecked().join(", ") } else { codes };
    Err(wrong(format!(
        "what an earlier run made in {shown} was changed since ({what}); see it with audit-verify, take it away, and restore into an empty place"
    )))
}

/// The answer again, of a restore that came to its end; or why a database that goes beyond the archive is left alone. `marked`: its file says that
/// it is held. A drill releases nothing.
fn restored_before(
    store: &Arc<dyn Store>,
    export: &Export,
    into: &str,
    held: &Held<'_>,
    (marked, drill): (bool, bool),
) -> Result<Restored, CliError> {
    let runtime = tokio::runtime::Handle::current();
    let (reader, _) = runtime.block_on(Reader::open(Arc::clone(store)))?;
    let events = runtime.block_on(reader.exports())?;
    let sizes: Vec<u64> = export.manifest().chains.iter().map(|c| c.to).collect();
    let last = events.iter().rev().find_map(|event| match event {
        ExportEvent::Restored(restored) => Some(restored),
        _ => None,
    });
    let mut same = last.is_some_and(|restored| restored.sizes == sizes) && begins_with(&**store, export)?;
    match held.why()?.as_deref() {
        _ if drill => same = false,
        None if !marked => {}
        Some(CLOSED) => same = false,
        // A run that was killed there had come to its end, if nothing lies beyond the archive but what the restore itself appended.
        _ if same => {
            let own = |h: &ChainHead| {
                let appended = if h.chain == 0 { OWN_ENTRIES } else { 0 };
                sizes.get(h.chain as usize).is_some_and(|size| h.size() <= size + appended)
            };
            same = store.heads()?.iter().all(own);
            if same {
                held.release()?;
            }
        }
        // A drill of another archive, or what was begun from one.
        _ => same = false,
    }
    store.close()?;
    if !same {
        let held = match held.why()? {
            Some(why) if why == INCOMPLETE && held.postgres.is_none() && !marked => {
                "; if its database was put there after a restore that did not end, take held.txt away"
            }
            _ => "",
        };
        let why = "holds this ledger with other or more entries than the archive; a ledger is never written over";
        return Err(wrong(format!("{into} {why}{held}")));
    }
    let (into, private_withheld) = (into.to_owned(), export.manifest().private_withheld);
    let entries = sizes.iter().sum();
    Ok(Restored::Done(Box::new(Done {
        into,
        entries,
        private_withheld,
        private_absent: None,
        resumed: true,
        fate: Fate::Continued,
    })))
}

/// Entries of chain 0 that let a restored ledger go on: `ledger.restored`, and `chain.heads` of its checkpoint.
const OWN_ENTRIES: u64 = 2;

fn embedded(dir: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::create(dir, SqliteOptions { draft: true, cache_kib: 8 << 10, ..SqliteOptions::default() })
}

fn sync(path: &Path) -> Result<(), CliError> {
    std::fs::File::open(path).and_then(|f| f.sync_all()).map_err(io(path))
}

/// What the first entry of the restored ledger says.
fn record(export: &Export, wanted: &Wanted, report: &Report) -> Recorded {
    let newest = newest_of_each(wanted.anchors.iter().filter_map(|anchor| anchor.tree_head(report)));
    Recorded {
        location: archives::location(&wanted.from, None)
            .unwrap_or_else(|_| wanted.from.clone())
            .chars()
            .take(1024 / 4)
            .collect(),
        manifest_sha256: export.manifest_sha256(),
        sizes: report.chains().iter().map(|c| c.entries).collect(),
        newest,
    }
}

/// The largest of each chain, by chain; of equals the first.
fn newest_of_each(heads: impl Iterator<Item = TreeHead>) -> Vec<TreeHead> {
    let mut newest: Vec<TreeHead> = heads.collect();
    newest.sort_by_key(|head| (head.chain, std::cmp::Reverse(head.size)));
    newest.dedup_by_key(|head| head.chain);
    newest
}

/// What the successor's genesis says. `None`: nothing that was signed is lost, for all that is known.
fn succession(
    export: &Export,
    report: &Report,
    anchors: &[Anchor],
    trust: Hash,
    statement: &str,
) -> Result<Option<Succession>, CliError> {
    let mut restored = Vec::new();
    for c in report.chains() {
        let root = c.root.ok_or_else(|| wrong(format!("chain {} has no root; verify the archive", c.chain)))?;
        restored.push(TreeHead { chain: c.chain as u32, size: c.entries, root, checkpoint: c.checkpoint.clone() });
    }
    let claimed = export.checkpoints();
    let mut known = Vec::new();
    for anchor in anchors {
        known.push(anchor.tree_head(report).ok_or_else(|| {
            let name = &anchor.name;
            wrong(format!("--newest-checkpoint {name}: of another ledger, or signed by no checkpoint key of this one"))
        })?);
    }
    known.extend(claimed.iter().filter_map(|anchor| anchor.tree_head(report)));
    // More was signed, though nothing that can be believed says how much: a ledger goes on only if it has all of it.
    let short =
        |range: &ChainRange| report.chains().iter().any(|c| c.chain == u64::from(range.chain) && c.entries < range.to);
    let more = claimed.iter().any(|anchor| anchor.is_beyond(report))
        || export.manifest().chains.iter().any(short)
        || !export.doubtful().is_empty();
    let restored_to = |chain| restored.iter().find(|r| r.chain == chain).map_or(0, |r: &TreeHead| r.size);
    known.retain(|head| head.size > restored_to(head.chain));
    let newest = newest_of_each(known.into_iter());
    let lost = Succession::lost_between(&restored, &newest);
    let origin = report.origin().unwrap_or_default().to_owned();
    let statement = statement.to_owned();
    Ok((more || !lost.is_empty()).then_some(Succession { ledger_id: trust, origin, restored, newest, lost, statement }))
}

/// What of a damaged archive is good.
enum Salvaged {
    Nothing,
    /// Its good part, and how much of each chain that is.
    Good(Box<Report>, Vec<u64>),
    /// A checkpoint that the ledger signed contradicts it.
    Contradicted(Box<Report>),
    /// Nothing is wrong with its good part, but that a key was in other hands.
    Doubtful(Box<Report>),
}

/// What there is is restored and judged, and cut off where a fault is, until none is left.
fn salvage(export: &Export, wanted: &Wanted, dir: &Path) -> Result<Salvaged, CliError> {
    let trust = wanted.trust;
    let mut limits: Vec<u64> = export.manifest().chains.iter().map(|c| c.to).collect();
    let scratch = dir.join(SALVAGE);
    loop {
        if limits.first().is_none_or(|size| *size == 0) {
            return Ok(Salvaged::Nothing);
        }
        std::fs::create_dir_all(&scratch).map_err(io(&scratch))?;
        let store: Arc<dyn Store> = Arc::new(embedded(&scratch)?);
        let sizes = fill(&store, export, trust, Some(&limits))?.sizes;
        store.close()?;
        drop(store);
        let report = judged(&scratch, wanted);
        let good = report.verdict() == Verdict::Verified;
        let contradicted = if good { contradicted(export, wanted, &report, &scratch) } else { None };
        std::fs::remove_dir_all(&scratch).map_err(io(&scratch))?;
        if let Some(why) = contradicted {
            return Ok(Salvaged::Contradicted(Box::new(why)));
        }
        if good {
            return Ok(Salvaged::Good(Box::new(report), sizes));
        }
        if report.faults() == 0 && report.is_open_for_keys_alone() {
            return Ok(Salvaged::Doubtful(Box::new(report)));
        }
        let mut next = sizes.clone();
        for finding in report.findings() {
            let of = finding.chain.and_then(|chain| next.get_mut(chain as usize));
            if let (Some(limit), Some(index)) = (of, cut_before(&finding.place)) {
                *limit = index.min(*limit);
            }
        }
        if next == sizes {
            // A fault without a place among the entries: back to where the batch before ended.
            next = export.ends_before(&sizes);
        }
        limits = next;
    }
}

/// Whether a ledger has what a checkpoint is of.
fn is_reached(anchor: &Anchor, report: &Report) -> bool {
    let head = anchor.tree_head(report);
    head.is_some_and(|h| report.chains().iter().any(|c| c.chain == u64::from(h.chain) && h.size <= c.entries))
}

/// What was restored, as the checkpoints that were given say it, as far as it reaches them.
fn judged(restored: &Path, wanted: &Wanted) -> Report {
    let alone = verify_path(restored, Some(wanted.trust));
    let anchors: Vec<Anchor> = wanted.anchors.iter().filter(|anchor| is_reached(anchor, &alone)).cloned().collect();
    // Only what is left open can another judgement change.
    if anchors.is_empty() || !alone.is_open_for_keys_alone() {
        return alone;
    }
    verify_path_with(restored, Demands { trust: Some(wanted.trust), anchors: &anchors, ..Demands::default() })
}

/// What the checkpoints of sizes that were restored say against it, where they do: those that were given, and those of the archive's manifests, which
/// may be of a batch that is not among the good ones.
fn contradicted(export: &Export, wanted: &Wanted, report: &Report, restored: &Path) -> Option<Report> {
    let mut known = export.checkpoints();
    known.extend(wanted.anchors.iter().cloned());
    known.retain(|anchor| is_reached(anchor, report));
    let demands = Demands { trust: Some(wanted.trust), anchors: &known, ..Demands::default() };
    let report = verify_path_with(restored, demands);
    (report.faults_of(Code::AnchorMismatch) > 0).then_some(report)
}

/// How many entries lie before what is wrong.
fn cut_before(place: &str) -> Option<u64> {
    let mut parts = place.split('/');
    let table = parts.next()?;
    let number: u64 = parts.next()?.parse().ok()?;
    match table {
        "entries" | "private_documents" | "commits" | "commit_signatures" => Some(number),
        // Its size is one more than the index of its last entry.
        "checkpoints" => number.checked_sub(1),
        _ => None,
    }
}

/// What was restored.
#[derive(Default)]
struct Filled {
    /// Of each chain.
    sizes: Vec<u64>,
    /// How many entries name a private document that the archive does not have and no entry erased.
    absent: u64,
}

/// A ledger of all that an archive has, made while the archive was verified.
struct Made {
    store: Arc<dyn Store>,
    filled: Filled,
}

/// Makes it: lines are taken as they are judged, and stored by another thread.
struct Making {
    store: Arc<dyn Store>,
    trust: Hash,
    state: Mutex<MakingState>,
}

#[derive(Default)]
struct MakingState {
    chain: Option<MakingChain>,
    filled: Filled,
    /// Why nothing more is taken.
    failed: Option<CliError>,
    proved: bool,
}

/// The chain whose lines come.
struct MakingChain {
    number: u32,
    open: Option<ArchivedCommit>,
    out: Sender<Archived>,
    /// Gives how many private documents are absent.
    storing: JoinHandle<Result<u64, CliError>>,
}

impl MakingChain {
    fn begin(store: Arc<dyn Store>, trust: Hash, number: u32) -> MakingChain {
        let (out, archived) = weighed::channel(COMMITS_AHEAD);
        let storing = std::thread::spawn(move || {
            let mut restorer = Restorer::new(store, trust, number)?;
            std::iter::from_fn(|| archived.next()).try_for_each(|item| take(&mut restorer, item))?;
            restorer.flush()?;
            Ok(restorer.absent_documents())
        });
        MakingChain { number, open: None, out, storing }
    }

    /// `false`: it is not taken any more.
    fn take(&mut self, line: Judged) -> bool {
        match line {
            Judged::Commit(commit) => {
                self.open = Some(ArchivedCommit { commit, entries: Vec::new(), private: Vec::new() });
                true
            }
            Judged::Checkpoint(line) => Archived::Checkpoint(line).send(&self.out),
            Judged::Entry(entry) => {
                let JudgedEntry { header, entry_hash, parent_index, bytes, body, stream, leaf, document } = *entry;
                let Some(mut open) = self.open.take() else { return true };
                open.private.extend(document.map(|document| (header.index, document)));
                let entry = Entry { header, entry_hash, parent_index, body: bytes };
                open.entries.push(ArchivedEntry { entry, stream, body, leaf });
                if (open.entries.len() as u64) < open.commit.size {
                    self.open = Some(open);
                    return true;
                }
                Archived::Commit(open).send(&self.out)
            }
        }
    }

    /// Waits until everything is stored.
    fn end(self) -> Result<u64, CliError> {
        drop(self.out);
        self.storing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Making {
    /// Verifies an archive, and makes what it says meanwhile. What was made is given only if there is nothing to report, and if it is what the
    /// report is of.
    fn of(
        export: &Export,
        wanted: &Wanted,
        building: &Building,
        demands: Demands<'_>,
    ) -> Result<(Report, Option<Made>), CliError> {
        let store: Arc<dyn Store> = Arc::new(embedded(&building.dir)?);
        let making = Making { store, trust: wanted.trust, state: Mutex::default() };
        let report = verify(&wanted.from, export, Demands { taker: Some(&making), ..demands });
        let Making { store, state, .. } = making;
        let mut state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.end_chain();
        match state.failed {
            // What is wrong with the archive, the report says.
            Some(CliError::Store(StoreError::Corrupt(_))) => {}
            Some(e) => return Err(e),
            None if state.proved => {
                let heads = store.heads()?;
                let same = |chain: &ChainReport| {
                    let head = heads.iter().find(|head| u64::from(head.chain) == chain.chain);
                    let found = head.map(|h| (h.size(), Some(h.hash), Some(h.range.root())));
                    found == Some((chain.entries, chain.head, chain.root))
                };
                if report.chains().iter().all(same) {
                    let filled = Filled { sizes: heads.iter().map(ChainHead::size).collect(), ..state.filled };
                    return Ok((report, Some(Made { store, filled })));
                }
            }
            None => {}
        }
        // Nobody needs what is in it.
        let _ = store.close();
        drop(store);
        remove_database(&building.dir)?;
        Ok((report, None))
    }
}

impl MakingState {
    fn end_chain(&mut self) {
        let Some(ended) = self.chain.take().map(MakingChain::end) else { return };
        match ended {
            Ok(absent) => self.filled.absent += absent,
            Err(e) => self.failed = self.failed.take().or(Some(e)),
        }
    }
}

impl Taker for Making {
    fn take(&self, line: Judged) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match &line {
            Judged::Commit(line) => line.chain,
            Judged::Checkpoint(line) => line.chain,
            Judged::Entry(entry) => entry.header.chain,
        };
        if state.chain.as_ref().is_some_and(|chain| chain.number != number) {
            state.end_chain();
        }
        if state.failed.is_none() {
            let begin = || MakingChain::begin(Arc::clone(&self.store), self.trust, number);
            if !state.chain.get_or_insert_with(begin).take(line) {
                state.end_chain();
            }
        }
        // What does not fit together is for the judgement to name.
        matches!(state.failed, None | Some(CliError::Store(StoreError::Corrupt(_))))
    }

    fn proved(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).proved = true;
    }
}

/// Restores each chain. `limits`: sizes that are not exceeded, and what comes after a damaged line is left out, private documents one by one.
fn fill(store: &Arc<dyn Store>, export: &Export, trust: Hash, limits: Option<&[u64]>) -> Result<Filled, CliError> {
    let mut filled = Filled::default();
    for range in &export.manifest().chains {
        let mut restorer = Restorer::new(Arc::clone(store), trust, range.chain)?;
        let there = restorer.size();
        let limit = limits.and_then(|limits| limits.get(range.chain as usize)).copied();
        let lines = |kind| export.lines(range.chain, kind);
        let (entry_lines, private_lines) = (lines(FileKind::Entries), lines(FileKind::Private));
        std::thread::scope(|scope| {
            let ((documents, private), (archived, commits)) =
                (weighed::channel(DOCUMENTS_AHEAD), weighed::channel(COMMITS_AHEAD));
            let reading_private = scope.spawn(move || {
                let mut send = |line: Line<'_>| match line {
                    Line::Private(p) => documents.send(p.document.len() + ROW, (p.index, p.document.to_vec())),
                    _ => true,
                };
                if limit.is_some() {
                    private_lines.read_what_there_is(&mut send);
                    return Ok(());
                }
                private_lines.read(&mut send)
            });
            let reading = scope.spawn(move || read(&entry_lines, there, &private, limit.is_some(), &archived));
            let within = |item: &Archived| limit.is_none_or(|limit| item.end() <= limit);
            let mut taken =
                std::iter::from_fn(|| commits.next()).take_while(within).try_for_each(|item| take(&mut restorer, item));
            // Readers that wait for somebody to take what they have must not wait forever.
            drop(commits);
            if limit.is_some() && matches!(taken, Err(CliError::Store(StoreError::Corrupt(_)))) {
                taken = Ok(());
            }
            for thread in [reading, reading_private] {
                let read = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                if taken.is_ok() && limit.is_none() {
                    read.map_err(wrong)?;
                }
            }
            taken
        })?;
        restorer.flush()?;
        filled.absent += restorer.absent_documents();
        let size = store.heads()?.iter().find(|h| h.chain == range.chain).map_or(0, ChainHead::size);
        if limit.is_none() && size != range.to {
            let why = format!("chain {} has {size} entries, the archive {}", range.chain, range.to);
            return Err(StoreError::Corrupt(why).into());
        }
        filled.sizes.push(size);
    }
    Ok(filled)
}

/// What is read of a chain, in order.
enum Archived {
    Commit(ArchivedCommit),
    Checkpoint(CheckpointLine),
    /// The entry that should be the last one that is there already.
    Last(Box<Entry>),
    /// No entry of an archive that was verified.
    Damaged(StoreError),
}

impl Archived {
    /// How many entries the chain has with it.
    fn end(&self) -> u64 {
        match self {
            Archived::Commit(ArchivedCommit { commit, .. }) => commit.first_index + commit.size,
            Archived::Checkpoint(line) => line.size,
            Archived::Last(entry) => entry.header.index + 1,
            Archived::Damaged(_) => 0,
        }
    }

    /// Hands it over; `false` if nobody takes it.
    fn send(self, out: &Sender<Archived>) -> bool {
        let weight = match &self {
            // The bytes, and what they say.
            Archived::Commit(commit) => 3 * commit.weight() + commit.entries.len() * ROW,
            Archived::Checkpoint(line) => line.note.len() + ROW,
            Archived::Last(entry) => entry.body.len() + ROW,
            Archived::Damaged(_) => ROW,
        };
        out.send(weight, self)
    }
}

fn take(restorer: &mut Restorer, item: Archived) -> Result<(), CliError> {
    match item {
        Archived::Commit(commit) => Ok(restorer.commit(commit)?),
        Archived::Checkpoint(line) => Ok(restorer.checkpoint(line)?),
        Archived::Damaged(e) => Err(e.into()),
        Archived::Last(entry) if restorer.continues(&entry) => Ok(()),
        Archived::Last(_) => {
            Err(wrong("what is there is not the beginning of this archive; restore into an empty place"))
        }
    }
}

/// Reads what comes after the first `there` entries of a chain, and the last of these. Of what was not verified, `doubtful`, a document counts if it
/// is the one that its entry names.
fn read(
    lines: &Lines,
    there: u64,
    documents: &Receiver<(u64, Vec<u8>)>,
    doubtful: bool,
    out: &Sender<Archived>,
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
            let entry = match ArchivedEntry::read(&line) {
                Ok(entry) => entry,
                Err(e) => {
                    Archived::Damaged(e).send(out);
                    return false;
                }
            };
            if index + 1 == there && !Archived::Last(Box::new(entry.entry.clone())).send(out) {
                return false;
            }
            loop {
                if next_private.is_none() {
                    next_private = documents.next();
                }
                match next_private.take_if(|(i, _)| *i <= index) {
                    Some(document) if document.0 == index => {
                        let again = reading.private.last().is_some_and(|(last, _)| *last == index);
                        if !doubtful || !again && entry.body.private_sha256 == Some(sha256(&[&document.1])) {
                            reading.private.push(document);
                        }
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            reading.entries.push(entry);
            if (reading.entries.len() as u64) < reading.commit.size {
                return true;
            }
            match open.take().filter(|read| read.commit.first_index >= there) {
                Some(commit) => Archived::Commit(commit).send(out),
                None => true,
            }
        }
        Line::Checkpoint(line) if line.size > there || there == 0 => Archived::Checkpoint(line).send(out),
        Line::Checkpoint(_) | Line::Private(_) => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where two are made at the same moment.
    #[test]
    fn nothing_is_put_over_anything() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["first", "second"] {
            std::fs::write(path(name), name).unwrap();
        }
        put(&path("first"), &path("target")).unwrap();
        let refused = put(&path("second"), &path("target")).unwrap_err().to_string();
        assert!(refused.contains("is not written over"), "{refused}");
        assert_eq!(std::fs::read(path("target")).unwrap(), b"first");
        assert!(!path("first").exists() && path("second").exists());
    }
}
