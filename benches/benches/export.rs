//! How fast is an export written, and how fast verified? Every check is made but those of projections, which an export has
//! not: digests of files, hashes, links, canonical bodies, transitions, commits, signatures, checkpoints, private documents.
#![allow(missing_docs)]

use std::sync::Arc;

use audit_verify::{Verdict, verify_path};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ledger_benches::{ENTRIES_PER_ORDER, create, run_orders, tiny};
use ledger_engine::archive::ExportOptions;
use ledger_engine::reader::Reader;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn exports(c: &mut Criterion) {
    let entries: u64 = if tiny() { 1_000 } else { 1_000_000 };
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir_in(".").expect("a directory");
    let ledger = dir.path().join("ledger");
    std::fs::create_dir(&ledger).expect("a directory");
    let reader = rt.block_on(async {
        let writer = create(&ledger).await;
        run_orders(&writer, 1, 0, entries / ENTRIES_PER_ORDER, 256).await;
        writer.shutdown().await.expect("a clean end");
        let store = SqliteStore::open(&ledger, SqliteOptions::default()).expect("a ledger");
        Reader::open(Arc::new(store)).await.expect("a ledger").0
    });
    println!("verified are all checks of FORMAT.md 10 and 13 but those of projections");
    let mut group = c.benchmark_group("export");
    group.sample_size(10).throughput(Throughput::Elements(entries));
    for (name, gzip) in [("plain", false), ("gzip", true)] {
        let options = ExportOptions { gzip, withhold_private: false, exported_at_us: 0, tool: "bench".into() };
        let to = dir.path().join(name);
        group.bench_function(format!("write {name}, {entries} entries"), |b| {
            b.iter(|| {
                // The last one stays, to be verified.
                let _ = std::fs::remove_dir_all(&to);
                rt.block_on(reader.export(options.clone(), &to)).expect("an export")
            });
        });
        group.bench_function(format!("verify {name}, {entries} entries"), |b| {
            b.iter(|| assert_eq!(verify_path(&to, Some(reader.id())).verdict(), Verdict::Verified));
        });
    }
    group.finish();
}

criterion_group!(benches, exports);
criterion_main!(benches);
