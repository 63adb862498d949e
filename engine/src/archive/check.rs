//! Whether the archives still have what the ledger's record says, as it was put: nothing missing between exports, no object gone,
//! hidden, shadowed, unlocked, shortened or altered. What the lines say is for `audit-verify`.

use std::io::sink;

use super::ExportError;
use super::job::directory_of;
use super::place::Archive;
use crate::export::record::{Completed, Retention};
use crate::export::{FileKind, MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest};

/// What can be wrong with an archive. The texts are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fault {
    /// Entries between two exports are in neither, or in both.
    Gap,
    /// An object is not there.
    Missing,
    /// A delete marker hides an object; its version is still there.
    Hidden,
    /// Another version was put over an object; the one that was exported is still there.
    Shadowed,
    /// An object has no lock.
    Unlocked,
    /// An object's lock is less than it was.
    Shortened,
    /// An object has other bytes.
    Altered,
}

impl Fault {
    /// The stable text.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Gap => "GAP",
            Fault::Missing => "MISSING",
            Fault::Hidden => "HIDDEN",
            Fault::Shadowed => "SHADOWED",
            Fault::Unlocked => "UNLOCKED",
            Fault::Shortened => "SHORTENED",
            Fault::Altered => "ALTERED",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveFault {
    /// What kind.
    pub fault: Fault,
    /// The object, or the batch.
    pub place: String,
    /// What was expected, and what is there.
    pub what: String,
}

/// Whether exports to one archive follow on one another. `completed` is what the ledger's record has of it, in order.
pub fn gaps(completed: &[Completed]) -> Vec<ArchiveFault> {
    let mut faults = Vec::new();
    let mut before: Option<&Completed> = None;
    for done in completed {
        let plan = &done.plan;
        let mut gap = |what: String| {
            faults.push(ArchiveFault { fault: Fault::Gap, place: directory_of(plan), what });
        };
        let due = before.map_or(1, |b| b.plan.sequence + 1);
        if plan.sequence != due {
            gap(format!("it is number {}, and {due} is due", plan.sequence));
        }
        for (chain, range) in plan.ranges.iter().enumerate() {
            let from = before.and_then(|b| b.plan.ranges.get(chain)).map_or(0, |r| r.to);
            if range.from != from {
                gap(format!("chain {chain} begins at entry {}, and the export before ends at {from}", range.from));
            }
        }
        before = Some(done);
    }
    faults
}

/// How the manifest of a batch is locked now.
pub fn lock_now(archive: &dyn Archive, done: &Completed) -> Result<Option<Retention>, ExportError> {
    let key = format!("{}/{MANIFEST_NAME}", directory_of(&done.plan));
    Ok(archive.state(&key, done.manifest_version.as_deref())?.retention)
}

/// Looks at every object of a batch, and reads it. Faults are added to `faults`, also where an error says that not all could be looked at.
pub fn batch(archive: &dyn Archive, done: &Completed, faults: &mut Vec<ArchiveFault>) -> Result<(), ExportError> {
    let dir = directory_of(&done.plan);
    let key = format!("{dir}/{MANIFEST_NAME}");
    let version = done.manifest_version.as_deref();
    if !state(archive, &key, version, done, false, faults)? {
        return Ok(());
    }
    let mut bytes = Vec::new();
    let (found, _) = archive.read(&key, version, MANIFEST_BYTES_MAX, &mut bytes)?;
    if found != done.manifest_sha256 {
        let what = format!("SHA-256 is {found}; {} was recorded", done.manifest_sha256);
        faults.push(ArchiveFault { fault: Fault::Altered, place: key, what });
        return Ok(());
    }
    let manifest = Manifest::decode(&bytes);
    let Some((manifest, batch)) = manifest.ok().and_then(|m| m.batch.clone().map(|b| (m, b))) else {
        let what = "it is no manifest of a batch, though it is what was recorded".to_owned();
        faults.push(ArchiveFault { fault: Fault::Altered, place: key, what });
        return Ok(());
    };
    let lines = manifest.files.iter().zip(&batch.stored).map(|(file, stored)| (stored, file.kind == FileKind::Private));
    let mut trouble = None;
    for (stored, private) in lines.chain(batch.tables.iter().map(|table| (&table.stored, false))) {
        let key = format!("{dir}/{}", stored.name);
        let version = stored.version.as_deref();
        let found = match state(archive, &key, version, done, private, faults) {
            Ok(false) => continue,
            Ok(true) => archive.read(&key, version, stored.bytes, &mut sink()),
            Err(e) => Err(e),
        };
        let found = match found {
            Ok(found) => found,
            // The others are looked at all the same.
            Err(e) => {
                trouble.get_or_insert(e);
                continue;
            }
        };
        if found != (stored.sha256, stored.bytes) {
            let what = format!(
                "{} bytes with SHA-256 {}; the manifest has {} with {}",
                found.1, found.0, stored.bytes, stored.sha256
            );
            faults.push(ArchiveFault { fault: Fault::Altered, place: key, what });
        }
    }
    trouble.map_or(Ok(()), Err)
}

/// Whether the object is there to be read.
fn state(
    archive: &dyn Archive,
    key: &str,
    version: Option<&str>,
    done: &Completed,
    private: bool,
    faults: &mut Vec<ArchiveFault>,
) -> Result<bool, ExportError> {
    let state = archive.state(key, version)?;
    let mut report = |fault, what: String| faults.push(ArchiveFault { fault, place: key.to_owned(), what });
    let shown = version.map_or_else(String::new, |id| format!(" (version {id})"));
    if !state.there {
        if private && done.lock.as_ref().is_some_and(|lock| !lock.keeps(true)) {
            // Documents are kept for a time of their own, and it is over.
            return Ok(false);
        }
        report(Fault::Missing, format!("what was exported{shown} is not there"));
        return Ok(false);
    }
    if state.hidden {
        report(Fault::Hidden, format!("a delete marker hides it; what was exported{shown} is still there"));
    }
    if state.shadowed {
        report(Fault::Shadowed, format!("another version was put over what was exported{shown}, which is still there"));
    }
    if done.lock.is_none() && archive.locks() {
        report(Fault::Unlocked, "its batch was made for a place without locks".to_owned());
    }
    if let Some(lock) = &done.lock {
        let wanted = lock.of(private);
        match (Retention::shortfall(state.retention.as_ref(), &wanted), &state.retention) {
            (Some(why), None) => report(Fault::Unlocked, why),
            (Some(why), Some(_)) => report(Fault::Shortened, why),
            (None, _) => {}
        }
    }
    Ok(true)
}
