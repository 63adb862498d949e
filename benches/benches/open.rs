//! How long does opening a ledger of a million entries take? It must not replay it.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use ledger_benches::{ENTRIES_PER_ORDER, create, open, run_orders, tiny};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn opening(c: &mut Criterion) {
    let entries: u64 = if tiny() { 1_000 } else { 1_000_000 };
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir_in(".").expect("a directory");
    rt.block_on(async {
        let ledger = create(dir.path()).await;
        run_orders(&ledger, 1, 0, entries / ENTRIES_PER_ORDER, 256).await;
        ledger.shutdown().await.expect("a clean end");
    });
    let mut group = c.benchmark_group("open");
    group.sample_size(10);
    group.bench_function(format!("{entries} entries"), |b| {
        b.iter(|| rt.block_on(open(dir.path())));
    });
    group.finish();
}

criterion_group!(benches, opening);
criterion_main!(benches);
