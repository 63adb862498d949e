use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ledger_engine::archive::ExportError;
use ledger_engine::archive::check::{self, ArchiveFault};
use ledger_engine::archive::job::{ArchiveRecord, directory_of};
use ledger_engine::archive::place::Archive;
use ledger_engine::export::record::{Completed, ExportEvent, Restored, Retention};
use ledger_engine::time::rfc3339;

use crate::directory::{self, Place};
use crate::{CliError, archives, output};

/// List what was exported, and how its archives keep it now
///
/// With --check every object is looked at and read: whatever is not as it was exported is named, by GAP, MISSING, HIDDEN (by a delete marker),
/// SHADOWED (by another version), UNLOCKED, SHORTENED or ALTERED, and the exit status is 1. It is 2 where not everything could be looked at, where a
/// batch was begun and not completed, and where nothing was exported. Batches that the archive has and the ledger's record does not (after a
/// restore its last one) are checked as well: the next export records them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Look at every object and read it
    #[arg(long)]
    check: bool,
    /// Only of this archive: its directory or URL, or what the record calls it
    #[arg(long, value_name = "DIR|URL")]
    of: Option<String>,
    /// Where it is now, if that is not where the record says
    #[arg(long, value_name = "DIR|URL")]
    at: Option<String>,
}

/// One batch, and what was found of it.
struct Looked {
    done: Completed,
    /// Whether the ledger's record has it.
    recorded: bool,
    /// How its manifest is locked now, or why that is not known.
    lock: Result<Option<Retention>, String>,
    faults: Vec<ArchiveFault>,
    /// Why it could not be looked at.
    trouble: Option<String>,
}

fn look(archive: &dyn Archive, done: Completed, recorded: bool, whole: bool) -> Looked {
    let lock = check::lock_now(archive, &done).map_err(|e| reason(&e));
    let (mut faults, mut trouble) = (Vec::new(), None);
    if whole {
        trouble = check::batch(archive, &done, &mut faults).err().map(|e| reason(&e));
    }
    Looked { done, recorded, lock, faults, trouble }
}

/// Without what only matters to an export.
fn reason(e: &ExportError) -> String {
    match e {
        ExportError::Archive(location, why) | ExportError::Unfit(location, why) => format!("{location}: {why}"),
        ExportError::Io(path, e) => format!("{}: {e}; check the path", path.display()),
        e => e.to_string(),
    }
}

fn say_restored(json: bool, restored: &Restored) -> Result<(), CliError> {
    let entries: u64 = restored.sizes.iter().sum();
    output::line(&if json {
        serde_json::json!({ "restored_from": restored.location, "sizes": restored.sizes }).to_string()
    } else {
        format!("the ledger was restored from {} when it had {entries} entries", output::safe(&restored.location))
    })
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (ledger, _) = directory::reader(place).await?;
    let events = ledger.exports().await?;
    let of = args.of.as_ref().map(|of| archives::location(of, None)).transpose()?;
    let meant = |location: &String| of.as_ref().is_none_or(|of| of == location) || args.of.as_ref() == Some(location);
    let mut archives: BTreeMap<String, ArchiveRecord> = BTreeMap::new();
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for event in &events {
        let location = match event {
            ExportEvent::Restored(restored) => {
                say_restored(json, restored)?;
                &restored.location
            }
            ExportEvent::Started(plan) => &plan.location,
            ExportEvent::Completed(completed) => &completed.plan.location,
        };
        known.insert(location);
        if meant(location) && !archives.contains_key(location) {
            archives.insert(location.clone(), ArchiveRecord::of(location, &events));
        }
    }
    if let (true, Some(of)) = (archives.is_empty(), &args.of) {
        let known: Vec<_> = known.into_iter().collect();
        return Err(CliError::Usage(match known.as_slice() {
            [] => format!("--of {of}: nothing was exported; `ledger export --out …` does it"),
            known => format!("--of {of}: nothing was exported there; the ledger's record has {}", known.join(", ")),
        }));
    }
    if archives.is_empty() {
        if !json {
            output::line("nothing was exported; `ledger export --out …` does it")?;
        }
        return Ok(if args.check { 2 } else { 0 });
    }
    if archives.len() > 1 && args.at.is_some() {
        let known: Vec<_> = archives.into_keys().collect();
        let why =
            format!("--at is where one archive is: say which with --of; the ledger's record has {}", known.join(", "));
        return Err(CliError::Usage(why));
    }
    // What the ledger was restored from may be a copy, or gone since: it matters as long as no batch of anything is recorded.
    let any = archives.values().any(|record| !record.completed.is_empty() || record.open.is_some());
    let mut exit = 0;
    for (location, mut record) in archives {
        let archive = archives::recorded(&location, args.at.as_deref().unwrap_or(&location)).await?;
        if !json {
            output::line(&output::safe(&location))?;
        }
        let gaps = if args.check { check::gaps(&record.completed) } else { Vec::new() };
        for fault in &gaps {
            exit = 1;
            say_fault(json, fault)?;
        }
        let recorded = record.completed.len();
        let only_restored = any && record.completed.is_empty() && record.open.is_none();
        if args.check && !only_restored {
            match ledger.unrecorded_batches(&archive, record.completed.last().cloned()).await {
                Ok(found) => record.completed.extend(found),
                Err(e) => {
                    exit = if exit == 0 { 2 } else { exit };
                    say_trouble(json, &location, &reason(&e))?;
                }
            }
        }
        if record.completed.is_empty() && record.open.is_none() {
            if args.check && exit == 0 && !any {
                exit = 2;
            }
            if !json {
                let found = if args.check && !only_restored { ", and none was found" } else { "" };
                output::line(&format!("  no batch of an export there is recorded{found}"))?;
            }
        }
        for (n, done) in record.completed.into_iter().enumerate() {
            let (looking, whole) = (Arc::clone(&archive), args.check);
            let looked = tokio::task::spawn_blocking(move || look(&*looking, done, n < recorded, whole)).await;
            let looked = looked.map_err(|e| CliError::Usage(e.to_string()))?;
            if !looked.faults.is_empty() {
                exit = 1;
            } else if exit == 0 && (looked.trouble.is_some() || args.check && looked.lock.is_err()) {
                exit = 2;
            }
            say(json, args.check, &looked)?;
        }
        if let Some(open) = record.open {
            if args.check && exit == 0 {
                exit = 2;
            }
            let text = format!(
                "  {:>4}  begun {} and not completed; run the export again",
                open.sequence,
                rfc3339(open.exported_at_us)
            );
            if json {
                let object = serde_json::json!({ "location": location, "sequence": open.sequence, "batch": open.batch, "completed": false });
                output::line(&object.to_string())?;
            } else {
                output::line(&text)?;
            }
        }
    }
    Ok(exit)
}

fn say_trouble(json: bool, location: &str, why: &str) -> Result<(), CliError> {
    output::line(&if json {
        serde_json::json!({ "location": location, "checked": false, "error": why }).to_string()
    } else {
        format!("  what is there besides could not be looked at: {}", output::safe(why))
    })
}

fn lock_now(looked: &Looked) -> String {
    match &looked.lock {
        Err(why) => format!("not known: {why}"),
        Ok(None) if looked.done.lock.is_none() => "no locks there".to_owned(),
        Ok(None) => "NOT LOCKED".to_owned(),
        Ok(Some(lock)) => {
            archives::kept_text(&lock.mode, &rfc3339(lock.until_s.saturating_mul(1_000_000))[..10], lock.legal_hold)
        }
    }
}

fn say(json: bool, checked: bool, looked: &Looked) -> Result<(), CliError> {
    let (done, plan) = (&looked.done, &looked.done.plan);
    let entries: u64 = plan.ranges.iter().map(|r| r.to - r.from).sum();
    if json {
        let lock = looked.lock.as_ref().ok().and_then(Option::as_ref).map(|lock| {
            serde_json::json!({
                "mode": lock.mode, "retain_until": rfc3339(lock.until_s.saturating_mul(1_000_000)),
                "legal_hold": lock.legal_hold,
            })
        });
        let faults: Vec<_> = looked.faults.iter().map(fault_json).collect();
        let object = serde_json::json!({
            "location": plan.location, "sequence": plan.sequence, "batch": plan.batch, "completed": true,
            "exported_at": rfc3339(plan.exported_at_us), "env": plan.env, "entries": entries, "bytes": done.bytes,
            "manifest_sha256": done.manifest_sha256.to_hex(), "manifest_version": done.manifest_version,
            "lock_recorded": archives::lock_json(done.lock.as_ref()), "lock_now": lock,
            "lock_error": looked.lock.as_ref().err(), "checked": checked && looked.trouble.is_none(), "recorded": looked.recorded,
            "error": looked.trouble, "faults": faults,
        });
        return output::line(&object.to_string());
    }
    let unrecorded = if looked.recorded { "" } else { "; not in the ledger's record yet, the next export records it" };
    let state = match (&looked.trouble, looked.faults.len(), checked) {
        (Some(why), 0, _) => format!("; could not be checked: {why}"),
        (Some(why), n, _) => format!("; {n} faults, and not all could be checked: {why}"),
        (None, 0, true) => "; all objects are as they were exported".to_owned(),
        (None, 0, false) => String::new(),
        (None, 1, _) => "; one fault".to_owned(),
        (None, n, _) => format!("; {n} faults"),
    };
    output::line(&output::safe(&format!(
        "  {:>4}  {}  {}  {entries} entries, {} bytes  {}{state}{unrecorded}",
        plan.sequence,
        &rfc3339(plan.exported_at_us)[..19],
        plan.env,
        done.bytes,
        lock_now(looked)
    )))?;
    if checked {
        output::line(&format!("        {}", output::safe(&directory_of(plan))))?;
    }
    looked.faults.iter().try_for_each(|fault| say_fault(false, fault))
}

fn fault_json(fault: &ArchiveFault) -> serde_json::Value {
    serde_json::json!({ "fault": fault.fault.as_str(), "place": fault.place, "what": fault.what })
}

fn say_fault(json: bool, fault: &ArchiveFault) -> Result<(), CliError> {
    if json {
        return output::line(&fault_json(fault).to_string());
    }
    output::line(&output::safe(&format!("        {} {}: {}", fault.fault.as_str(), fault.place, fault.what)))
}
