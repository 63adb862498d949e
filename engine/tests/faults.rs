//! Every write is failed both ways: lost, and stored but reported as failed. Whatever the caller was told is true afterwards.
//!
//! The store is the real one; a layer above it loses or misreports the n-th commit. Outcomes that the layer calls unknown are
//! settled by the real store under its lock.
#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ledger_engine::domain::projection::{Row, Table};
use ledger_engine::hash::{EventId, Hash};
use ledger_engine::ledger::Ledger;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use ledger_engine::store::{
    ChainHead, CheckpointRow, CommitBatch, Entry, MakeCommit, MakeCut, Settled, Store, StoreError, StoredCommit,
    StreamHead,
};
use support::{config, create, create_line, list_sku, send};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Nothing is stored; an outage is reported.
    Lost,
    /// Nothing is stored; the outcome is unknown.
    LostUnknown,
    /// Everything is stored; the outcome is unknown.
    StoredUnknown,
    /// Everything is refused as data the store cannot take.
    Rejected,
}

struct Faulty {
    store: SqliteStore,
    fault: Fault,
    /// Commits until the fault.
    countdown: AtomicU64,
}

impl Faulty {
    fn strikes(&self) -> bool {
        self.countdown.fetch_sub(1, Ordering::SeqCst) == 0
    }
}

macro_rules! delegate {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> Result<$out, StoreError> { self.store.$name($($arg),*) })*
    };
}

impl Store for Faulty {
    fn append(&self, batch: &CommitBatch) -> Result<(), StoreError> {
        if !self.strikes() {
            return self.store.append(batch);
        }
        match self.fault {
            Fault::Lost => Err(StoreError::Unavailable("injected".into())),
            Fault::LostUnknown => Err(StoreError::Unknown("injected".into())),
            Fault::Rejected => Err(StoreError::Rejected("injected".into())),
            Fault::StoredUnknown => {
                self.store.append(batch)?;
                Err(StoreError::Unknown("injected".into()))
            }
        }
    }

    delegate! {
        heads() -> Vec<ChainHead>;
        ledger_id() -> Option<Hash>;
        append_locked(chain: u32, make: &mut MakeCommit<'_>) -> ();
        append_cut(make: &mut MakeCut<'_>) -> ();
        settle(batch: &CommitBatch) -> Settled;
        entry(chain: u32, index: u64) -> Option<Entry>;
        entries(chain: u32, from: u64, limit: usize) -> Vec<Entry>;
        stream_head(chain: u32, stream: &str) -> Option<StreamHead>;
        find_event(id: EventId) -> Option<(u32, u64)>;
        commits(chain: u32, from: u64, limit: usize) -> Vec<StoredCommit>;
        checkpoints(chain: u32, size: u64, limit: usize) -> Vec<CheckpointRow>;
        private_documents(chain: u32, from: u64, limit: usize) -> Vec<(u64, Vec<u8>)>;
        private(chain: u32, index: u64) -> Option<Vec<u8>>;
        idempotency(chain: u32, key: &Hash) -> Option<u64>;
        tile(chain: u32, level: u32, n: u64) -> Option<Vec<u8>>;
        row(table: &'static Table, chain: u32, index: u64) -> Option<Row>;
        rows(table: &'static Table, chain: u32) -> Vec<Row>;
        rows_from(table: &'static Table, chain: u32, from: u64, limit: usize) -> Vec<Row>;
        rows_among(table: &'static Table, chain: u32, range: std::ops::Range<u64>, statuses: &[&str]) -> Vec<Row>;
        replace_projections(chain: u32, size: u64, rows: &[Row]) -> ();
        last_checkpoint(chain: u32) -> Option<CheckpointRow>;
        record_checkpoint(row: &CheckpointRow) -> ();
        sign_checkpoint(row: &CheckpointRow) -> ();
        exclusive() -> Option<ledger_engine::store::Exclusive>;
        backup(to: &Path) -> ();
        close() -> ();
    }
}

/// Fails commit `at` in this way, under 40 callers; then every caller tries again with the same key.
async fn round(fault: Fault, at: u64) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let id = ledger.id();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let store = SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap();
    let faulty = Arc::new(Faulty { store, fault, countdown: AtomicU64::new(at) });
    let ledger = Arc::new(Ledger::open(config(faulty.clone())).await.unwrap());
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let ledger = Arc::clone(&ledger);
            tokio::spawn(async move {
                let line = create_line(&format!("k{i}"), "s");
                let first = send(&ledger, &line).await;
                let told_failed = match &first {
                    Ok(_) => false,
                    Err(e) => {
                        assert_eq!(e.code(), "STORE_UNAVAILABLE", "{fault:?}: {e}");
                        true
                    }
                };
                let again = send(&ledger, &line).await.unwrap();
                // Told that it failed means that nothing was written; told that it succeeded, that it is there.
                assert_eq!(again.repeated, !told_failed, "{fault:?} at {at}, caller {i}");
                if let Ok(first) = first {
                    assert_eq!(first.entries, again.entries);
                }
                told_failed
            })
        })
        .collect();
    let mut failed = 0;
    for task in tasks {
        failed += u32::from(task.await.unwrap());
    }
    // How many commits there are depends on scheduling; the first one there always is. Past zero the counter wraps.
    let struck = faulty.countdown.load(Ordering::SeqCst) > u64::MAX / 2;
    assert!(struck || at > 0);
    let lost = matches!(fault, Fault::Lost | Fault::LostUnknown);
    assert_eq!(failed > 0, lost && struck, "{fault:?} at {at}");
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let report = audit_verify::verify_path(dir.path(), Some(id));
    assert_eq!(report.exit(), 0, "{fault:?} at {at}: {}", report.to_text());
    assert_eq!(report.chains()[0].entries, 42);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_commit_fails_both_ways() {
    for fault in [Fault::Lost, Fault::LostUnknown, Fault::StoredUnknown, Fault::Rejected] {
        for at in 0..6 {
            round(fault, at).await;
        }
    }
}
