//! The power fails: what was answered is on the disk, and the ledger verifies. With `synchronous` OFF it is not, which shows that
//! the test can fail. `kill -9` cannot show this, since the page cache survives the process.
#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::sync::Arc;

use ledger_engine::hash::Hash;
use ledger_engine::ledger::Ledger;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use powercut_vfs::{CutMode, PowerCut};
use support::{config, create, create_line, list_sku, send};

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
