//! Below the process: the power fails, the disk fills up, writes, truncations and syncs fail. What was answered is on the disk,
//! what was said to have failed is not, nothing is half there, and the ledger verifies. With `synchronous` OFF it is not so, which
//! shows that the tests can fail. `kill -9` cannot show this, since the page cache survives the process.
//!
//! An ordinary run looks at a part of the operations, chosen by their number; `LEDGER_EVERY_WRITE=1` looks at each.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ledger_engine::hash::Hash;
use ledger_engine::ledger::{AppendError, Appended, Ledger};
use ledger_engine::store::sqlite::{DATABASE_FILE, SqliteOptions, SqliteStore};
use powercut_vfs::{CutMode, Fault, PowerCut};
use support::{Acknowledged, busy, check_kept, config, create, create_line, genesis, list_sku, send, unsynced};
use tempfile::TempDir;

fn every_one() -> bool {
    std::env::var_os("LEDGER_EVERY_WRITE").is_some()
}

/// Entries that the image holds, if it is a ledger that verifies.
fn entries_in(image: &Path, id: Hash) -> Option<u64> {
    let report = audit_verify::verify_path(image, Some(id));
    (report.exit() == 0).then(|| report.chains()[0].entries)
}

/// Appends under concurrent callers, cutting the power after each answer. Returns whether every answer was kept in every image.
async fn survives(name: &str, synchronous: &'static str) -> bool {
    let live = tempfile::tempdir().unwrap();
    let ledger = create(live.path(), 1).await;
    list_sku(&ledger, "s").await;
    let id = ledger.id();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let disk = PowerCut::register(name, live.path().to_path_buf(), 7);
    let options =
        SqliteOptions { vfs: Some(name.into()), synchronous, checkpoint_pages: 40, ..SqliteOptions::default() };
    let store = SqliteStore::open(live.path(), options).unwrap();
    let ledger = Arc::new(Ledger::open(config(Arc::new(store))).await.unwrap());
    let mut kept = true;
    for round in 0..12u64 {
        let tasks: Vec<_> = (0..20)
            .map(|i| {
                let ledger = Arc::clone(&ledger);
                tokio::spawn(async move { send(&ledger, &create_line(&format!("k{round}-{i}"), "s")).await.unwrap() })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let answered = 2 + (round + 1) * 20;
        for mode in [CutMode::LoseAllUnsynced, CutMode::Random { seed: round }] {
            let image = tempfile::tempdir().unwrap();
            disk.image(image.path(), mode).unwrap();
            kept &= entries_in(image.path(), id).is_some_and(|n| n >= answered);
        }
    }
    ledger.shutdown().await.unwrap();
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn answered_means_durable() {
    assert!(survives("power-cut-full", "FULL").await, "an answered command was lost in a power cut");
    assert!(!survives("power-cut-off", "OFF").await, "without syncs answers must be lost, or this test shows nothing");
}

/// What the ledger is doing when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Create,
    Append,
    Checkpoint,
    Shutdown,
    Reopen,
}

impl Phase {
    /// One operation in so many is looked at.
    fn step(self) -> u64 {
        match self {
            _ if every_one() => 1,
            Phase::Create => 3,
            Phase::Append | Phase::Reopen => 8,
            Phase::Checkpoint | Phase::Shutdown => 1,
        }
    }
}

/// A disk as a cut left it, and what had been answered by then.
struct Image {
    dir: TempDir,
    phase: Phase,
    what: String,
    id: Option<Hash>,
    acknowledged: Vec<(String, Appended)>,
}

/// Takes images of a disk at its operations, and judges them on a thread of its own.
struct Cuts {
    now: Arc<Mutex<(Phase, Option<Hash>)>>,
    acknowledged: Arc<Acknowledged>,
    images: SyncSender<Image>,
    judge: JoinHandle<BTreeMap<Phase, u64>>,
}

impl Cuts {
    fn new() -> Cuts {
        let (images, inbox) = sync_channel(8);
        Cuts {
            now: Arc::new(Mutex::new((Phase::Create, None))),
            acknowledged: Arc::default(),
            images,
            judge: std::thread::spawn(move || judge(&inbox)),
        }
    }

    fn watch(&self, disk: &PowerCut) {
        let (now, acknowledged, images) = (Arc::clone(&self.now), Arc::clone(&self.acknowledged), self.images.clone());
        disk.watch(move |number, disk| {
            let (phase, id) = *now.lock().unwrap();
            // Spread by a multiplicative hash, so that no step meets the same operation of every commit.
            let picked = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % phase.step() == 0;
            if !picked {
                return;
            }
            let acknowledged = acknowledged.lock().unwrap().clone();
            for mode in [CutMode::LoseAllUnsynced, CutMode::Random { seed: number }] {
                let dir = tempfile::tempdir().unwrap();
                disk.image(dir.path(), mode).unwrap();
                let what = format!("{phase:?}, operation {number}, {mode:?}");
                let image = Image { dir, phase, what, id, acknowledged: acknowledged.clone() };
                // The judge is gone if it found a fault; joining it tells which.
                if images.send(image).is_err() {
                    return;
                }
            }
        });
    }

    fn enter(&self, phase: Phase, id: Hash) {
        *self.now.lock().unwrap() = (phase, Some(id));
    }

    /// How many images of each phase were judged.
    fn finish(self) -> BTreeMap<Phase, u64> {
        drop(self.images);
        self.judge.join().unwrap_or_else(|fault| std::panic::resume_unwind(fault))
    }
}

fn judge(inbox: &Receiver<Image>) -> BTreeMap<Phase, u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut judged = BTreeMap::new();
    for image in inbox {
        *judged.entry(image.phase).or_default() += 1;
        runtime.block_on(async {
            match image.id {
                Some(id) => check_kept(image.dir.path(), id, &image.acknowledged, &image.what).await,
                None => check_unfinished(image.dir.path(), &image.what).await,
            }
        });
    }
    judged
}

/// Nobody was told of a ledger yet. There is a whole one, or opening says that it was never finished and what to do.
async fn check_unfinished(dir: &Path, what: &str) {
    let opened = match SqliteStore::open(dir, unsynced()) {
        Ok(store) => Ledger::open(config(Arc::new(store))).await.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    let said = match opened {
        Ok(ledger) => {
            let id = ledger.id();
            drop(ledger);
            return check_kept(dir, id, &[], what).await;
        }
        Err(said) => said,
    };
    assert!(said.contains("ledger init"), "{what}: {said}");
    assert_ne!(audit_verify::verify_path(dir, None).exit(), 0, "{what}");
    if dir.join(DATABASE_FILE).exists() {
        assert!(said.contains("interrupted"), "{what}: {said}");
        // What the error says to do.
        for file in std::fs::read_dir(dir).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
    }
    let store = SqliteStore::create(dir, unsynced()).unwrap_or_else(|e| panic!("{what}: {e}"));
    Ledger::create(config(Arc::new(store)), genesis(2)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
}

fn options(disk: &PowerCut) -> SqliteOptions {
    SqliteOptions { vfs: Some(disk.name().into()), checkpoint_pages: 60, ..SqliteOptions::default() }
}

/// The whole life of a ledger of two chains: made, written by one and by many, checkpoints signed, the WAL moved into the database
/// many times, shut down, opened again; and opened again after a power cut.
#[tokio::test(flavor = "multi_thread")]
async fn the_power_may_fail_at_every_operation() {
    let live = tempfile::tempdir().unwrap();
    let disk = PowerCut::register("every-operation", live.path().to_path_buf(), 7);
    let cuts = Cuts::new();
    cuts.watch(&disk);
    let store = SqliteStore::create(live.path(), options(&disk)).unwrap();
    let ledger = Arc::new(Ledger::create(config(Arc::new(store)), genesis(2)).await.unwrap());
    let id = ledger.id();
    for round in 0..2 {
        cuts.enter(Phase::Append, id);
        let failed = busy(&ledger, &format!("round{round}"), 24, &cuts.acknowledged).await;
        assert!(failed.is_empty(), "{failed:?}");
        cuts.enter(Phase::Checkpoint, id);
        ledger.checkpoint().await.unwrap();
    }
    let torn = tempfile::tempdir().unwrap();
    disk.image(torn.path(), CutMode::Random { seed: 1 }).unwrap();
    let answered = cuts.acknowledged.lock().unwrap().clone();
    cuts.enter(Phase::Append, id);
    assert!(busy(&ledger, "last", 8, &cuts.acknowledged).await.is_empty());
    cuts.enter(Phase::Shutdown, id);
    ledger.shutdown().await.unwrap();
    drop(ledger);
    cuts.enter(Phase::Reopen, id);
    reopen(live.path(), &disk, &cuts).await;
    disk.unwatch();

    // A second disk, that begins with what a cut left of the first.
    *cuts.acknowledged.lock().unwrap() = answered;
    let disk = PowerCut::register("every-operation-torn", torn.path().to_path_buf(), 8);
    cuts.watch(&disk);
    reopen(torn.path(), &disk, &cuts).await;
    disk.unwatch();
    let judged = cuts.finish();
    println!("images judged: {judged:?}");
    assert_eq!(judged.len(), 5, "a phase without a cut: {judged:?}");
}

async fn reopen(dir: &Path, disk: &PowerCut, cuts: &Cuts) {
    let store = SqliteStore::open(dir, options(disk)).unwrap();
    let ledger = Arc::new(Ledger::open(config(Arc::new(store))).await.unwrap());
    assert!(busy(&ledger, "reopened", 8, &cuts.acknowledged).await.is_empty());
    ledger.shutdown().await.unwrap();
}

/// How many operations of each kind a run had.
struct Operations {
    writes: u64,
    truncations: u64,
    syncs: u64,
}

/// Commands one after the other, then six at once, checkpoints, and a clean end, with the `n`th write, truncation or sync failing.
/// The callers try again, at first in the same process.
async fn failing(name: &str, template: &Path, id: Hash, fault: Option<(u64, Fault)>) -> Operations {
    let live = tempfile::tempdir().unwrap();
    std::fs::copy(template.join(DATABASE_FILE), live.path().join(DATABASE_FILE)).unwrap();
    let disk = PowerCut::register(name, live.path().to_path_buf(), 3);
    if let Some((n, fault)) = fault {
        disk.fail_after(n, fault);
    }
    let what = format!("{fault:?}");
    let store = match SqliteStore::open(live.path(), options(&disk)) {
        Ok(store) => store,
        Err(e) => panic!("{what}: opening writes nothing, but {e}"),
    };
    let ledger = Arc::new(Ledger::open(config(Arc::new(store))).await.unwrap());
    let acknowledged: Arc<Acknowledged> = Arc::default();
    let mut failed: Vec<(String, AppendError)> = Vec::new();
    for i in 0..6 {
        let line = create_line(&format!("k{i}"), "s");
        let answer = send(&ledger, &line).await;
        let modes = match &answer {
            Ok(_) => vec![CutMode::LoseAllUnsynced],
            // Perhaps everything has reached the disk that was written since the last sync.
            Err(_) => {
                [CutMode::LoseAllUnsynced].into_iter().chain((0..8).map(|seed| CutMode::Random { seed })).collect()
            }
        };
        if let Ok(appended) = &answer {
            acknowledged.lock().unwrap().push((line.clone(), appended.clone()));
        }
        for mode in modes {
            let image = tempfile::tempdir().unwrap();
            disk.image(image.path(), mode).unwrap();
            let answered = acknowledged.lock().unwrap().clone();
            // Told that it failed means that it is not there after a cut either.
            let expected = 2 + answered.len() as u64;
            assert_eq!(entries_in(image.path(), id), Some(expected), "{what}, command {i}, {mode:?}: {answer:?}");
        }
        failed.extend(answer.err().map(|e| (line, e)));
    }
    failed.extend(busy(&ledger, "p", 6, &acknowledged).await);
    for (line, e) in &failed {
        // Commands on an order that is not there are refused; all others meet the fault.
        let follows =
            matches!(e, AppendError::Refused(_)) && line.contains("order_id") || line.contains("\"sku_id\":\"p\"");
        assert!(e.code() == "STORE_UNAVAILABLE" || follows, "{what}: {line}: {e}");
    }
    let noted = ledger.checkpoint().await;
    if disk.faults_fired() > 0 {
        disk.clear_faults();
        // Nothing is to be done but to go on: every command is done now, or gives its first answer.
        let answered = acknowledged.lock().unwrap().clone();
        for (line, answer) in &answered {
            let again = send(&ledger, line).await.unwrap_or_else(|e| panic!("{what}: {line}: {e}"));
            assert!(again.repeated && again.entries == answer.entries, "{what}: {line}");
        }
        // A command that was overtaken by a later one of its order, while it failed, may be refused now.
        let failed = busy(&ledger, "p", 6, &acknowledged).await;
        assert!(failed.iter().all(|(_, e)| matches!(e, AppendError::Refused(_))), "{what}: {failed:?}");
        ledger.checkpoint().await.unwrap();
    } else {
        noted.unwrap();
    }
    let ended = ledger.shutdown().await;
    assert!(ended.is_ok() || disk.faults_fired() > 0, "{what}: {ended:?}");
    drop(ledger);
    disk.clear_faults();
    let operations = Operations { writes: disk.writes(), truncations: disk.truncations(), syncs: disk.syncs() };
    let answered = acknowledged.lock().unwrap().clone();
    check_kept(live.path(), id, &answered, &what).await;
    operations
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_truncation_and_sync_may_fail() {
    let template = tempfile::tempdir().unwrap();
    let ledger = create(template.path(), 1).await;
    list_sku(&ledger, "s").await;
    let id = ledger.id();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let total = failing("fault-none", template.path(), id, None).await;
    println!("{} writes, {} truncations, {} syncs", total.writes, total.truncations, total.syncs);
    assert!(total.writes > 100 && total.truncations > 0 && total.syncs > 12);
    for (fault, total) in [
        (Fault::WriteFull, total.writes),
        (Fault::WriteError, total.writes),
        (Fault::WriteTorn, total.writes),
        (Fault::TruncateError, total.truncations),
        (Fault::SyncErrorLost, total.syncs),
        (Fault::SyncErrorStored, total.syncs),
    ] {
        // A prime, so that it meets all of a commit's writes in turn.
        let step = if total < 60 || every_one() { 1 } else { 23 };
        for n in (0..total).step_by(step) {
            failing(&format!("fault-{fault:?}-{n}"), template.path(), id, Some((n, fault))).await;
        }
    }
}

/// A ledger that could not be made says so, or is whole.
#[tokio::test(flavor = "multi_thread")]
async fn making_a_ledger_may_fail_at_every_write_and_sync() {
    let mut made = 0;
    for fault in [Fault::WriteFull, Fault::WriteError, Fault::WriteTorn, Fault::SyncErrorLost, Fault::SyncErrorStored] {
        let step = if every_one() || matches!(fault, Fault::SyncErrorLost | Fault::SyncErrorStored) { 1 } else { 11 };
        for n in (0..).step_by(step) {
            let what = format!("{fault:?} at {n}");
            let live = tempfile::tempdir().unwrap();
            let disk = PowerCut::register(&format!("create-{fault:?}-{n}"), live.path().to_path_buf(), 3);
            disk.fail_after(n, fault);
            let created = match SqliteStore::create(live.path(), options(&disk)) {
                Ok(store) => Ledger::create(config(Arc::new(store)), genesis(2)).await,
                Err(e) => Err(e.into()),
            };
            let fired = disk.faults_fired() > 0;
            disk.clear_faults();
            match created {
                Ok(ledger) => {
                    made += 1;
                    let id = ledger.id();
                    ledger.shutdown().await.unwrap();
                    drop(ledger);
                    check_kept(live.path(), id, &[], &what).await;
                }
                Err(e) => {
                    assert!(fired && e.code() == "STORE_UNAVAILABLE", "{what}: {e}");
                    check_unfinished(live.path(), &what).await;
                }
            }
            if !fired {
                break;
            }
        }
    }
    assert!(made >= 5, "a run without a fault ends each kind");
}
