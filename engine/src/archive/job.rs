//! The export job: the next batch of an archive.
//!
//! 1. One job at a time for a ledger: a lock that goes with the process ([`Store::exclusive`]). In PostgreSQL it goes with a connection, too; a
//!    job that lost it cannot record anything once another one did.
//! 2. Checkpoints of all chains; the batch ends at them. The plan is appended as `audit_export.started`.
//! 3. Files of lines, each kept as soon as it is complete; then all are read back, with their locks.
//! 4. The manifest, signed; read back. Only then `audit_export.completed` is appended.
//!
//! A job that is killed leaves a plan: the next run makes the same files at the same places and goes on. Nothing is called done
//! before the entry that says so is durable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ExportError;
use super::check::{self, Fault};
use super::lines::{ChainExport, Finished};
use super::place::{Archive, BatchTerms, Kept, Metadata, NewObject, Spool};
use crate::body::Body;
use crate::domain::Occurrence;
use crate::domain::command::ExpectedRevision;
use crate::domain::decide::RefusalCode;
use crate::export::batch::{
    Batch, Continuation, ManifestSignature, PreviousBatch, RegistryState, SERVICE, StoredFile, TableFile,
};
use crate::export::record::{Completed, ExportEvent, Plan, PlannedRange, Restored};
use crate::export::{ChainRange, ExportFile, FileKind, MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest};
use crate::hash::{Hash, sha256};
use crate::heads;
use crate::ledger::{AppendError, Ledger};
use crate::merkle;
use crate::note::{Checkpoint, Note};
use crate::reader::{Reader, StoredNodes, blocking};
use crate::registry::{Purpose, Registry};
use crate::signer::SignerError;
use crate::store::{Exclusive, Store, StoreError};
use crate::stream::{HEADS_STREAM, Stream};
use crate::time::rfc3339;
use crate::writer::{SystemEvent, Work};

/// How long the place of a job that is gone may be taken for: a database notices after a moment that a connection was closed.
const GOING: Duration = Duration::from_secs(3);

/// Waits for the ledger's place for jobs, for a moment.
async fn place_of_the_job(store: &Arc<dyn Store>) -> Result<Exclusive, ExportError> {
    let begun = Instant::now();
    loop {
        let store = Arc::clone(store);
        match blocking(move || store.exclusive()).await? {
            Some(held) => return Ok(held),
            None if begun.elapsed() < GOING => tokio::time::sleep(Duration::from_millis(50)).await,
            None => return Err(ExportError::Busy),
        }
    }
}

/// How to make a batch.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// Which environment the ledger serves, such as `prod`.
    pub env: String,
    /// Put private documents in, in files of their own.
    pub private: bool,
    /// Version of the policy that says so.
    pub pii_policy: String,
    /// What the manifest names as the program.
    pub tool: String,
    /// End at the last checkpoint of entries up to this time, microseconds since 1970; otherwise now.
    pub until_us: Option<i64>,
    /// Put entries in as tables too.
    pub tables: bool,
    /// Give up a batch that was begun and not completed, and plan it anew.
    pub restart: bool,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Files with lines of this many entries are kept, of so many in the batch.
    Kept(u64, u64),
    /// This many files were read back, of so many.
    ReadBack(u64, u64),
}

/// A batch that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What the ledger says of it.
    pub completed: Completed,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether it was begun by an earlier run.
    pub resumed: bool,
}

/// Which directory of an archive a batch has.
pub fn directory_of(plan: &Plan) -> String {
    directory(plan.exported_at_us, &plan.batch)
}

fn directory(exported_at_us: i64, batch: &str) -> String {
    format!("{SERVICE}/{}/{batch}", &rfc3339(exported_at_us)[..10])
}

/// The batches of one archive, as the ledger's record has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveRecord {
    /// What is there, in order.
    pub completed: Vec<Completed>,
    /// What was begun since the last of them, and not completed.
    pub open: Option<Plan>,
}

impl ArchiveRecord {
    /// Of the events of the stream `exports`, those of one archive.
    pub fn of(location: &str, events: &[ExportEvent]) -> ArchiveRecord {
        let mut record = ArchiveRecord::default();
        for event in events.iter().filter(|e| e.plan().is_some_and(|plan| plan.location == location)) {
            match event {
                ExportEvent::Restored(_) => {}
                ExportEvent::Started(plan) => record.open = Some(plan.clone()),
                ExportEvent::Completed(completed) => {
                    record.open = None;
                    record.completed.push(completed.clone());
                }
            }
        }
        record
    }
}

impl Reader {
    /// What was exported, and begun, in order.
    pub async fn exports(&self) -> Result<Vec<ExportEvent>, StoreError> {
        let mut events = Vec::new();
        for entry in self.read_stream(Stream::Exports).await? {
            let corrupt = |e: String| {
                StoreError::Corrupt(format!(
                    "entry {} of the stream exports: {e}; verify the ledger",
                    entry.header.index
                ))
            };
            let body = entry.parse_body().map_err(|e| corrupt(e.to_string()))?;
            let occurrence = Occurrence::of(&entry.header, Stream::Exports, &body);
            events.push(ExportEvent::read(&occurrence, self.genesis().chains).map_err(|e| corrupt(e.0))?);
        }
        Ok(events)
    }

    /// The batches that an archive has after `last`, the last one that is recorded, signed by keys of this ledger: the next export records
    /// them. One of another history is an error. Whether they are whole is not looked at.
    pub async fn unrecorded_batches(
        &self,
        archive: &Arc<dyn Archive>,
        last: Option<Completed>,
    ) -> Result<Vec<Completed>, ExportError> {
        let (store, registry, id) = (Arc::clone(self.store()), self.stored_registry().await?, self.id());
        let looking = Arc::clone(archive);
        let found = in_thread(move || unrecorded(&*store, &*looking, &registry, id, last)).await?;
        Ok(found.into_iter().map(|(completed, _)| completed).collect())
    }

    /// What the next batch of an archive would hold, from the heads as they are now, or why there would be none. Nothing is written.
    pub async fn export_plan(&self, location: &str, options: &BatchOptions, now_us: i64) -> Result<Plan, ExportError> {
        let record = ArchiveRecord::of(location, &self.exports().await?);
        if let Some(open) = record.open.clone().filter(|_| !options.restart) {
            as_begun(&open, options)?;
            return Ok(open);
        }
        let store = Arc::clone(self.store());
        let ends = match options.until_us {
            Some(until_us) => {
                let from = from(&record);
                blocking(move || ends_until(&*store, &from, until_us)).await?
            }
            None => blocking(move || store.heads()).await?.iter().map(|head| head.size()).collect(),
        };
        not_before_all(&ends, location)?;
        Ok(plan(&record, location, self.id(), options, &ends, now_us))
    }
}

/// Where the last batch of an archive ends.
fn from(record: &ArchiveRecord) -> Vec<u64> {
    record.completed.last().map(|done| done.plan.ranges.iter().map(|range| range.to).collect()).unwrap_or_default()
}

/// Where a batch ends that has what was recorded up to a time, and that checkpoints were signed of; `from` where there is nothing new.
fn ends_until(store: &dyn Store, from: &[u64], until_us: i64) -> Result<Vec<u64>, StoreError> {
    let heads = store.heads()?;
    let mut ends: Vec<u64> = heads.iter().map(|head| from.get(head.chain as usize).copied().unwrap_or(0)).collect();
    match &mut ends[..] {
        [end] => *end = last_checkpoint_until(store, *end, until_us)?,
        _ => ends = last_cut_until(store, &ends, until_us)?.unwrap_or(ends),
    }
    Ok(ends)
}

/// Whether the entry before a size was recorded by then.
fn recorded_by(store: &dyn Store, chain: u32, size: u64, until_us: i64) -> Result<bool, StoreError> {
    let last = size.checked_sub(1).map(|index| store.entry(chain, index)).transpose()?.flatten();
    Ok(last.is_some_and(|entry| entry.header.recorded_at_us <= until_us))
}

/// Of the only chain: the size of its last signed checkpoint whose entries were recorded up to a time.
fn last_checkpoint_until(store: &dyn Store, from: u64, until_us: i64) -> Result<u64, StoreError> {
    /// Rows read at a time.
    const PAGE: usize = 1024;
    let mut end = from;
    loop {
        let rows = store.checkpoints(0, end + 1, PAGE)?;
        let Some(last) = rows.last().map(|row| row.size) else { return Ok(end) };
        for row in rows.iter().filter(|row| row.note.is_some() && row.size > 0) {
            if !recorded_by(store, 0, row.size, until_us)? {
                return Ok(end);
            }
            end = row.size;
        }
        if end < last {
            return Ok(end);
        }
    }
}

/// Of several chains: the last cut that chain 0 names, beyond `from`, and that checkpoints were signed of. Where each of them ends by itself
/// entries of one could rest on later ones of another.
fn last_cut_until(store: &dyn Store, from: &[u64], until_us: i64) -> Result<Option<Vec<u64>>, StoreError> {
    let mut at = store.stream_head(0, HEADS_STREAM)?.map(|head| head.index);
    while let Some(index) = at {
        let corrupt = || StoreError::Corrupt(format!("entry {index} of chain 0 is no chain.heads; verify the ledger"));
        let entry = store.entry(0, index)?.filter(|e| e.header.stream == HEADS_STREAM).ok_or_else(corrupt)?;
        let rows = heads::rows(&entry.parse_body().map_err(|_| corrupt())?.payload).ok_or_else(corrupt)?;
        if rows.len() != from.len() || entry.parent_index.is_some_and(|parent| parent >= index) {
            return Err(corrupt());
        }
        at = entry.parent_index;
        let Some(cut) = heads::cut(rows, index) else { continue };
        let ends: Vec<u64> = cut.iter().map(|row| row.size).collect();
        if ends.iter().zip(from).any(|(end, from)| end < from) {
            return Ok(None);
        }
        let mut fits = true;
        for (chain, end) in (0..).zip(&ends) {
            let signed = store.checkpoints(chain, *end, 1)?.first().is_some_and(|c| c.size == *end && c.note.is_some());
            fits = fits && signed && recorded_by(store, chain, *end, until_us)?;
        }
        if fits {
            return Ok(Some(ends));
        }
    }
    Ok(None)
}

/// Refuses to finish a batch as something else than it was begun as.
fn as_begun(plan: &Plan, options: &BatchOptions) -> Result<(), ExportError> {
    let documents = |private| if private { "with private documents" } else { "without private documents" };
    let tables = |tables| if tables { "with tables" } else { "without tables" };
    let what = if plan.private != options.private {
        format!("{}, and this run is to be {}", documents(plan.private), documents(options.private))
    } else if plan.tables != options.tables {
        format!("{}, and this run is to be {}", tables(plan.tables), tables(options.tables))
    } else if plan.env != options.env {
        format!("of the environment {:?}, and this run is of {:?}", plan.env, options.env)
    } else {
        return Ok(());
    };
    let why = format!(
        "a batch was begun {what}, and not completed: finish it as it was begun, by the same options, or give it up with --restart"
    );
    Err(ExportError::Unfit(plan.location.clone(), why))
}

/// Refuses a batch that has nothing of some chain.
fn not_before_all(ends: &[u64], location: &str) -> Result<(), ExportError> {
    if ends.contains(&0) {
        let why = "no checkpoint was signed until then of every chain; give a later --to".to_owned();
        return Err(ExportError::Unfit(location.to_owned(), why));
    }
    Ok(())
}

fn plan(
    record: &ArchiveRecord,
    location: &str,
    ledger_id: Hash,
    options: &BatchOptions,
    ends: &[u64],
    now_us: i64,
) -> Plan {
    let last = record.completed.last().map(|done| &done.plan);
    let sequence = last.map_or(1, |plan| plan.sequence + 1);
    let from = from(record).into_iter().chain(std::iter::repeat(0));
    // By time they sort as by number, whatever the clock does.
    let now_us = now_us.max(last.map_or(0, |plan| plan.exported_at_us));
    let time: String = rfc3339(now_us)[11..19].chars().filter(|c| *c != ':').collect();
    Plan {
        batch: format!("{}-{sequence:08}-{time}", &ledger_id.to_hex()[..16]),
        env: options.env.clone(),
        exported_at_us: now_us,
        location: location.to_owned(),
        private: options.private,
        tables: options.tables,
        ranges: from.zip(ends).map(|(from, to)| PlannedRange { from, to: *to }).collect(),
        sequence,
    }
}

impl Ledger {
    /// Makes the next batch of an archive, or finishes the one that was begun. `told` hears how far it is.
    pub async fn export_batch(
        &self,
        archive: Arc<dyn Archive>,
        options: BatchOptions,
        told: Box<dyn Fn(Progress) + Send + Sync>,
    ) -> Result<Done, ExportError> {
        if options.tables && !cfg!(feature = "parquet") {
            let why = "this build writes no tables; build it with the feature parquet".to_owned();
            return Err(ExportError::Unfit(archive.location().to_owned(), why));
        }
        let (store, id) = (Arc::clone(self.store()), self.id());
        let _one_at_a_time = place_of_the_job(&store).await?;
        self.refresh_registry().await?;
        // Before anything is written: without a key, or with an archive that cannot keep it, there is no export.
        let shared = Arc::clone(&self.shared);
        let chosen = blocking(move || Ok(shared.signer(Purpose::Export))).await?.map_err(no_key)?;
        let now_us = self.shared.environment.now_us();
        let fit = Arc::clone(&archive);
        in_thread(move || fit.terms(now_us)).await?;

        let events = self.exports().await?;
        let mut record = ArchiveRecord::of(archive.location(), &events);
        let mut revision = events.len() as u64;
        let begun = record.open.as_ref().map(|plan| plan.batch.clone());
        let taken_over = self.take_over(&archive, &mut record, &mut revision).await?;
        // A batch that was begun may be there, and lack only its record: then it is none that can be made or planned anew.
        if let Some((completed, manifest)) = taken_over.filter(|(done, _)| Some(&done.plan.batch) == begun.as_ref())
            && !options.restart
        {
            return Ok(Done { completed, manifest, resumed: true });
        }
        // Another second, so that what was given up is in another directory.
        let now_us = now_us.max(record.open.as_ref().map_or(0, |given_up| given_up.exported_at_us + 1_000_000));
        let open = record.open.take().filter(|_| !options.restart);
        let resumed = open.is_some();
        if let Some(plan) = &open {
            as_begun(plan, &options)?;
        }
        if let Some(last) = record.completed.last().cloned() {
            let looking = Arc::clone(&archive);
            in_thread(move || there(&*looking, &last)).await?;
        }
        let kid = &chosen.key.kid;
        let (plan, registry) = match open {
            Some(plan) => {
                let registry = self.registry_before(&plan, kid, "give it up and begin anew with --restart").await?;
                (plan, registry)
            }
            None => {
                let ends = match options.until_us {
                    None => self.checkpoint().await?.iter().map(signed_size).collect::<Result<Vec<_>, _>>()?,
                    Some(until_us) => {
                        let (store, from) = (Arc::clone(&store), from(&record));
                        blocking(move || ends_until(&*store, &from, until_us)).await?
                    }
                };
                not_before_all(&ends, archive.location())?;
                let plan = plan(&record, archive.location(), id, &options, &ends, now_us);
                // Before it is recorded: what nobody can sign would be in the way of every export after it.
                let registry = self.registry_before(&plan, kid, "give a later --to").await?;
                self.append_export(&ExportEvent::Started(plan.clone()), &mut revision).await?;
                (plan, registry)
            }
        };
        let previous = record.completed.last().map(|done| PreviousBatch {
            name: done.plan.batch.clone(),
            manifest_sha256: done.manifest_sha256,
            version: done.manifest_version.clone(),
        });
        let unfinished = Unfinished {
            store,
            archive,
            ledger_id: id,
            origin: self.genesis().origin.clone(),
            plan,
            previous,
            registry,
            options,
            told,
        };
        let (unfinished, mut made) = in_thread(move || unfinished.make_files().map(|made| (unfinished, made))).await?;
        let signature = chosen.sign(&made.manifest.statement()).await?;
        made.manifest.signature = Some(ManifestSignature { kid: chosen.key.kid.clone(), signature });
        let (completed, manifest) = in_thread(move || unfinished.keep_manifest(made)).await?;
        self.append_export(&ExportEvent::Completed(completed.clone()), &mut revision).await?;
        Ok(Done { completed, manifest, resumed })
    }

    /// Records batches that the archive has and the ledger's record has not: one whose job was killed before it was recorded, those of a ledger
    /// that was restored from the archive, which ends before the record of its last batch, or of an archive that was moved. A batch of another
    /// history stops the export. Returns the last of them.
    async fn take_over(
        &self,
        archive: &Arc<dyn Archive>,
        record: &mut ArchiveRecord,
        revision: &mut u64,
    ) -> Result<Option<(Completed, Manifest)>, ExportError> {
        let (store, registry, id) = (Arc::clone(self.store()), self.registry(), self.id());
        let (looking, known) = (Arc::clone(archive), record.completed.last().cloned());
        let found = in_thread(move || unrecorded(&*store, &*looking, &registry, id, known)).await?;
        let mut last = None;
        for (mut completed, manifest) in found {
            let begun = record.open.as_ref().filter(|plan| plan.batch == completed.plan.batch);
            let is_begun = begun.is_some();
            // As it was planned, also where there was nothing to make a table of.
            completed.plan = begun.cloned().unwrap_or(completed.plan);
            let (looking, done) = (Arc::clone(archive), completed.clone());
            match in_thread(move || whole(&*looking, &done)).await? {
                Ok(()) => {}
                // What is missing of it is made again.
                Err(_) if is_begun => break,
                Err(why) => return Err(ExportError::Unfit(archive.location().to_owned(), why)),
            }
            self.append_export(&ExportEvent::Completed(completed.clone()), revision).await?;
            record.completed.push(completed.clone());
            record.open = None;
            last = Some((completed, manifest));
        }
        Ok(last)
    }

    /// The registry as the batch's own entries have it: whoever reads the archive up to there can judge the signature.
    async fn registry_before(&self, plan: &Plan, kid: &str, advice: &str) -> Result<RegistryState, ExportError> {
        let end = plan.ranges.first().map_or(0, |range| range.to);
        let entries = self.read_stream(Stream::Ledger).await?;
        let size = entries.iter().filter(|e| e.header.index < end).count() as u64;
        let state = RegistryState::at(&self.registry(), size);
        let state = state.ok_or_else(|| StoreError::Corrupt("the key registry is shorter than its stream".into()))?;
        let known = state.keys.iter().any(|(key, retired)| key.kid == kid && retired.is_none());
        if known {
            return Ok(state);
        }
        let why = format!(
            "{kid} signs exports, and is enrolled after the entries of this batch, or the key of before is retired: nobody who has them could know it; {advice}"
        );
        Err(ExportError::Unfit(plan.location.clone(), why))
    }

    /// Records that the ledger was restored, and goes on. To be its first entry after that.
    pub async fn record_restored(&self, restored: Restored) -> Result<(), ExportError> {
        let mut revision = self.exports().await?.len() as u64;
        self.append_export(&ExportEvent::Restored(restored), &mut revision).await
    }

    /// Appends to the stream as it was when this job read it, of `revision` entries: a job whose lock was lost, and that another one has
    /// overtaken, records nothing.
    async fn append_export(&self, event: &ExportEvent, revision: &mut u64) -> Result<(), ExportError> {
        let body = Body { actor_id: "system".into(), payload: event.to_payload(), private_sha256: None, meta: None };
        let event = SystemEvent {
            stream: Stream::Exports,
            event_type: event.event_type(),
            body,
            expected: ExpectedRevision::Exact(*revision),
        };
        let answer = self.enqueue(0, Work::System(Box::new(event))).await?;
        match answer.await.unwrap_or(Err(AppendError::Closed)) {
            Ok(_) => {
                *revision += 1;
                Ok(())
            }
            Err(AppendError::Refused(refusal)) if refusal.code == RefusalCode::RevisionConflict => {
                Err(ExportError::Overtaken)
            }
            Err(e) => Err(e.into()),
        }
    }
}

fn no_key(e: SignerError) -> SignerError {
    let advice = "a manifest is signed by a key of purpose export: `ledger keys generate` makes one, `ledger keys enrol` admits it";
    SignerError { reason: format!("{}; {advice}", e.reason), ..e }
}

fn signed_size(note: &Note) -> Result<u64, StoreError> {
    Checkpoint::parse(&note.text).map(|c| c.size).map_err(|e| StoreError::Corrupt(e.to_string()))
}

async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExportError> + Send + 'static,
) -> Result<T, ExportError> {
    let died = |e: tokio::task::JoinError| StoreError::Unavailable(format!("the export's thread died: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(died)?
}

/// The batches that an archive has after the last one that is recorded, with their manifests.
fn unrecorded(
    store: &dyn Store,
    archive: &dyn Archive,
    registry: &Registry,
    ledger_id: Hash,
    mut last: Option<Completed>,
) -> Result<Vec<(Completed, Manifest)>, ExportError> {
    let prefix = format!("{}-", &ledger_id.to_hex()[..16]);
    let number = |key: &str| {
        let name = key.rsplit('/').nth(1)?;
        name.strip_prefix(&prefix)?.split('-').next()?.parse::<u64>().ok()
    };
    let is_ours = |m: &Manifest| m.ledger_id == ledger_id && m.check_signature(registry) == Some(Ok(()));
    let after = last.as_ref().map(|done| directory_of(&done.plan));
    let recorded = last.as_ref().map_or(0, |done| done.plan.sequence);
    let mut found: Vec<_> = archive.manifests(&prefix, after.as_deref())?;
    found.retain(|(key, _)| number(key).is_some_and(|n| n > recorded));
    found.sort_by_key(|(key, _)| number(key));
    let mut taken = Vec::new();
    for (key, version) in found {
        let unfit = |why: &str| {
            let why = format!(
                "{key} is a batch that the ledger's record does not have, and {why}; verify both, and export to another place"
            );
            ExportError::Unfit(archive.location().to_owned(), why)
        };
        let mut bytes = Vec::new();
        archive.read(&key, version.as_deref(), MANIFEST_BYTES_MAX, &mut bytes)?;
        // What our keys did not sign is nobody's batch: whoever may put objects must not stop the exports. Verifiers name it.
        let Some(manifest) = Manifest::decode(&bytes).ok().filter(is_ours) else {
            continue;
        };
        // Nor is a copy of one of ours, put where another one would be; one that was moved there is.
        let place = manifest.batch.as_ref().map(|batch| directory(manifest.exported_at_us, &batch.name));
        let place = place.map(|dir| format!("{dir}/{MANIFEST_NAME}")).unwrap_or_default();
        if place != key {
            let sequence = manifest.batch.as_ref().map_or(0, |batch| batch.sequence);
            if sequence <= recorded || archive.state(&place, None)?.there {
                continue;
            }
            let why = format!("{key} was moved from {place}, where it belongs: put it back");
            return Err(ExportError::Unfit(archive.location().to_owned(), why));
        }
        let digest = sha256(&[&bytes]);
        let completed = take(store, archive.location(), &manifest, last.as_ref())?.map_err(unfit)?;
        let completed = Completed { manifest_sha256: digest, manifest_version: version, ..completed };
        last = Some(completed.clone());
        taken.push((completed, manifest));
    }
    Ok(taken)
}

/// That the archive is where it was, and as it was: a batch is of no use without those before it.
fn there(archive: &dyn Archive, last: &Completed) -> Result<(), ExportError> {
    let (key, version) = (format!("{}/{MANIFEST_NAME}", directory_of(&last.plan)), last.manifest_version.as_deref());
    let unfit = |why| Err(ExportError::Unfit(archive.location().to_owned(), why));
    if !archive.state(&key, version)?.there {
        return unfit(format!(
            "the {} batches before are not here, {key} is missing: is it mounted, and is it the right server? put them back, or export to another \
             place, which begins with all entries",
            last.plan.sequence
        ));
    }
    let (found, _) = archive.read(&key, version, MANIFEST_BYTES_MAX, &mut std::io::sink())?;
    if found != last.manifest_sha256 {
        return unfit(format!(
            "{key} was altered since it was exported, so that nothing can continue it: look at the archive with `ledger exports --check`, put back \
             what was there, or export to another place, which begins with all entries"
        ));
    }
    Ok(())
}

/// That everything of a batch is there, as its manifest says and locked as it says: nothing else is recorded as done.
fn whole(archive: &dyn Archive, done: &Completed) -> Result<Result<(), String>, ExportError> {
    let mut faults = Vec::new();
    check::batch(archive, done, &mut faults)?;
    // Over another version it is there all the same.
    faults.retain(|f| !matches!(f.fault, Fault::Hidden | Fault::Shadowed));
    let Some(first) = faults.first() else { return Ok(Ok(())) };
    let more = match faults.len() - 1 {
        0 => String::new(),
        n => format!(", and {n} more such objects"),
    };
    let why = format!(
        "batch {} is not in the ledger's record, and cannot be recorded: {} {}: {}{more}; put back what is missing, or export to another place",
        done.plan.sequence,
        first.fault.as_str(),
        first.place,
        first.what
    );
    Ok(Err(why))
}

/// What is recorded of a signed batch that is the next after `last`, and of this very history; or why it is not.
fn take(
    store: &dyn Store,
    location: &str,
    manifest: &Manifest,
    last: Option<&Completed>,
) -> Result<Result<Completed, &'static str>, StoreError> {
    let Some(batch) = &manifest.batch else { return Ok(Err("it is a copy")) };
    let follows = match (last, &batch.previous) {
        (None, None) => batch.sequence == 1,
        (Some(last), Some(previous)) => {
            batch.sequence == last.plan.sequence + 1
                && previous.manifest_sha256 == last.manifest_sha256
                && manifest.chains.iter().map(|c| c.from).eq(last.plan.ranges.iter().map(|r| r.to))
        }
        _ => false,
    };
    if !follows {
        return Ok(Err("it does not follow the last one that is recorded"));
    }
    let heads = store.heads()?;
    if heads.len() != manifest.chains.len() {
        return Ok(Err("it has another number of chains"));
    }
    for (head, range) in heads.iter().zip(&manifest.chains) {
        let nodes = StoredNodes { store, chain: head.chain };
        if range.chain != head.chain || range.to > head.size() || merkle::root_at(&nodes, range.to)? != range.root {
            return Ok(Err("it has other entries than this ledger"));
        }
    }
    let plan = Plan {
        batch: batch.name.clone(),
        env: batch.env.clone(),
        exported_at_us: manifest.exported_at_us,
        location: location.to_owned(),
        private: !manifest.private_withheld,
        tables: !batch.tables.is_empty(),
        ranges: manifest.chains.iter().map(|c| PlannedRange { from: c.from, to: c.to }).collect(),
        sequence: batch.sequence,
    };
    let bytes = batch.stored.iter().map(|s| s.bytes).sum();
    let files = manifest.files.len() as u64;
    Ok(Ok(Completed { plan, lock: batch.lock.clone(), files, bytes, ..Completed::default() }))
}

/// A batch whose files are kept and whose manifest is not.
struct Made {
    manifest: Manifest,
    terms: BatchTerms,
    spool: Spool,
}

/// A planned batch.
struct Unfinished {
    store: Arc<dyn Store>,
    archive: Arc<dyn Archive>,
    ledger_id: Hash,
    origin: String,
    plan: Plan,
    previous: Option<PreviousBatch>,
    registry: RegistryState,
    options: BatchOptions,
    told: Box<dyn Fn(Progress) + Send + Sync>,
}

impl Unfinished {
    fn metadata(&self) -> Metadata {
        vec![
            ("service", SERVICE.to_owned()),
            ("env", self.plan.env.clone()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("pii_included", self.plan.private.to_string()),
            ("pii_policy_version", self.options.pii_policy.clone()),
            ("export_ts", rfc3339(self.plan.exported_at_us)),
        ]
    }

    /// Writes, keeps and reads back every file; the manifest says so and is not signed yet.
    fn make_files(&self) -> Result<Made, ExportError> {
        let terms = BatchTerms { lock: self.archive.terms(self.plan.exported_at_us)?, metadata: self.metadata() };
        let spool = self.archive.spool(&self.ledger_id.to_hex()[..16])?;
        let dir = directory_of(&self.plan);
        let (mut chains, mut continues) = (Vec::new(), Vec::new());
        let mut files: Vec<(ExportFile, StoredFile)> = Vec::new();
        let mut tables: Vec<TableFile> = Vec::new();
        let total = self.plan.ranges.iter().map(|r| r.to - r.from).sum();
        let mut kept_entries = 0;
        for (chain, planned) in (0..).zip(&self.plan.ranges) {
            let (range, continuation) = self.range(chain, *planned)?;
            let export = ChainExport {
                store: &*self.store,
                range,
                gzip: true,
                withhold_private: !self.plan.private,
                dir: spool.path(),
            };
            let range = export.write(&mut |finished: Finished| {
                let Finished { file, mut stored, path } = finished;
                if self.plan.tables && file.kind == FileKind::Entries {
                    // Before the file of lines is moved to where it is kept.
                    let mut table = self.table(&path, &file.name)?;
                    let key = format!("{dir}/{}", table.stored.name);
                    let path = spool.path().join(&table.stored.name);
                    table.stored.version =
                        self.archive.put(object(&key, &path, &table.stored, file.kind), &terms)?.version;
                    tables.push(table);
                }
                let key = format!("{dir}/{}", file.name);
                let object = object(&key, &path, &stored, file.kind);
                stored.version = self.archive.put(object, &terms)?.version;
                if file.kind == FileKind::Entries {
                    kept_entries += file.to - file.from;
                    (self.told)(Progress::Kept(kept_entries, total));
                }
                files.push((file, stored));
                Ok(())
            })?;
            chains.push(range);
            continues.push(continuation);
        }
        files.sort_by_key(|(f, _)| (f.chain, f.kind, f.from));
        tables.sort_by(|a, b| a.stored.name.cmp(&b.stored.name));
        let lines = files.iter().map(|(file, stored)| (stored, file.kind));
        let kept = lines.chain(tables.iter().map(|table| (&table.stored, FileKind::Entries)));
        let total = (files.len() + tables.len()) as u64;
        for (n, (stored, kind)) in (1..).zip(kept) {
            let key = format!("{dir}/{}", stored.name);
            let kept = Kept { version: stored.version.clone() };
            self.archive.check(object(&key, spool.path(), stored, kind), &kept, &terms)?;
            (self.told)(Progress::ReadBack(n, total));
        }
        let (files, stored): (Vec<_>, Vec<_>) = files.into_iter().unzip();
        let batch = Batch {
            name: self.plan.batch.clone(),
            sequence: self.plan.sequence,
            service: SERVICE.to_owned(),
            env: self.plan.env.clone(),
            location: self.plan.location.clone(),
            pii_policy: self.options.pii_policy.clone(),
            previous: self.previous.clone(),
            continues,
            stored,
            tables,
            lock: terms.lock.clone(),
            registry: self.registry.clone(),
        };
        let manifest = Manifest {
            ledger_id: self.ledger_id,
            origin: self.origin.clone(),
            exported_at_us: self.plan.exported_at_us,
            tool: self.options.tool.clone(),
            private_withheld: !self.plan.private,
            chains,
            files,
            batch: Some(batch),
            signature: None,
        };
        Ok(Made { manifest, terms, spool })
    }

    /// Makes the table of a file of lines, in the spool.
    #[cfg(feature = "parquet")]
    fn table(&self, lines: &std::path::Path, name: &str) -> Result<TableFile, ExportError> {
        let name = crate::export::batch::table_name_of(name);
        let path = lines.with_file_name(&name);
        let failed = |e| ExportError::Io(path.clone(), e);
        let rows = super::tables::write(lines, &self.ledger_id, &path).map_err(failed)?;
        let (sha256, bytes) = super::place::digest_of(&path).map_err(failed)?;
        Ok(TableFile { stored: StoredFile { name, bytes, sha256, version: None }, rows })
    }

    #[cfg(not(feature = "parquet"))]
    fn table(&self, _: &std::path::Path, _: &str) -> Result<TableFile, ExportError> {
        let why =
            "this build writes no tables; build it with the feature parquet, or begin anew with --restart".to_owned();
        Err(ExportError::Unfit(self.plan.location.clone(), why))
    }

    /// What a chain's range is, and what it continues.
    fn range(&self, chain: u32, planned: PlannedRange) -> Result<(ChainRange, Continuation), ExportError> {
        let (store, PlannedRange { from, to }) = (&*self.store, planned);
        let missing = |what: &str| StoreError::Corrupt(format!("chain {chain}: {what} is missing; verify the ledger"));
        let hash_before = |size: u64| match size.checked_sub(1) {
            None => Ok(Hash::ZERO),
            Some(index) => match store.entry(chain, index)? {
                Some(entry) => Ok(entry.entry_hash),
                None => Err(missing(&format!("entry {index}"))),
            },
        };
        let checkpoint = store.checkpoints(chain, to, 1)?.into_iter().find(|row| row.size == to);
        let checkpoint = checkpoint.and_then(|row| Some((row.root, row.note?)));
        let (root, note) = checkpoint.ok_or_else(|| missing(&format!("the checkpoint of size {to}")))?;
        let nodes = StoredNodes { store, chain };
        let root_before = merkle::root_at(&nodes, from)?;
        let consistency =
            if from == 0 || from == to { Vec::new() } else { merkle::consistency_proof(&nodes, from, to)? };
        let range = ChainRange {
            chain,
            from,
            to,
            prev_hash: hash_before(from)?,
            last_hash: hash_before(to)?,
            root,
            commits: 0,
            checkpoints: 0,
        };
        Ok((range, Continuation { root_before, consistency, checkpoint: note }))
    }

    /// Keeps the signed manifest and reads it back.
    fn keep_manifest(&self, made: Made) -> Result<(Completed, Manifest), ExportError> {
        let Made { manifest, terms, spool } = made;
        let bytes = manifest.encode();
        let path = spool.path().join(MANIFEST_NAME);
        let write = || {
            std::fs::write(&path, &bytes)?;
            std::fs::File::open(&path)?.sync_all()
        };
        write().map_err(|e| ExportError::Io(path.clone(), e))?;
        let key = format!("{}/{MANIFEST_NAME}", directory_of(&self.plan));
        let digest = sha256(&[&bytes]);
        let object = NewObject { key: &key, path: &path, bytes: bytes.len() as u64, sha256: digest, private: false };
        let kept = self.archive.put(object, &terms)?;
        self.archive.check(object, &kept, &terms)?;
        let batch = manifest.batch.as_ref();
        let completed = Completed {
            plan: self.plan.clone(),
            manifest_sha256: digest,
            manifest_version: kept.version,
            lock: terms.lock,
            files: manifest.files.len() as u64,
            bytes: batch.map_or(0, |b| b.stored.iter().map(|s| s.bytes).sum()),
        };
        Ok((completed, manifest))
    }
}

fn object<'a>(key: &'a str, path: &'a std::path::Path, stored: &StoredFile, kind: FileKind) -> NewObject<'a> {
    NewObject { key, path, bytes: stored.bytes, sha256: stored.sha256, private: kind == FileKind::Private }
}
