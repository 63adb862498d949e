//! How fast does the embedded ledger append durably, and how near is that to SQLite alone?
#![allow(missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ledger_benches::raw::{Recorder, database, write};
use ledger_benches::{
    ENTRIES_PER_ORDER, create, create_on, open_with_distant_key, parsed, run_orders, run_parsed, tiny,
};
use ledger_engine::ledger::Ledger;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 20_261_123;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn begin(c: &mut Criterion, callers: u64, orders: u64) -> Group<'_> {
    let mut group = c.benchmark_group(format!("append/{callers} callers"));
    group.throughput(Throughput::Elements(orders * ENTRIES_PER_ORDER)).sample_size(10);
    group.measurement_time(Duration::from_secs(15));
    group
}

/// Times the orders on a ledger that `open` makes in a new directory.
fn ledger(group: &mut Group<'_>, name: &str, callers: u64, orders: u64, open: impl AsyncFn(&Path) -> Arc<Ledger>) {
    let rt = runtime();
    group.bench_function(name, |b| {
        b.iter_custom(|iterations| {
            let dir = tempfile::tempdir_in(".").expect("a directory on the disk under test");
            let ledger = rt.block_on(open(dir.path()));
            let mut spent = Duration::ZERO;
            for i in 0..iterations {
                let commands = parsed(SEED, i * orders, orders);
                let start = Instant::now();
                rt.block_on(run_parsed(&ledger, commands, callers));
                spent += start.elapsed();
            }
            rt.block_on(ledger.shutdown()).expect("a clean end");
            spent
        });
    });
}

fn group(c: &mut Criterion, callers: u64, orders: u64, entries_per_raw_commit: usize) {
    let orders = if tiny() { 4 } else { orders };
    let mut group = begin(c, callers, orders);
    ledger(&mut group, "ledger", callers, orders, async |dir| create(dir).await);
    let rt = runtime();
    group.bench_function("raw SQLite", |b| {
        b.iter_custom(|iterations| {
            let dir = tempfile::tempdir_in(".").expect("a directory on the disk under test");
            let raw_dir = tempfile::tempdir_in(".").expect("a directory on the disk under test");
            let recorder = Recorder::new(dir.path());
            let ledger = rt.block_on(create_on(recorder.clone()));
            let mut conn = database(raw_dir.path());
            write(&mut conn, &recorder.take(), 1).expect("the beginning");
            let mut spent = Duration::ZERO;
            for i in 0..iterations {
                rt.block_on(run_orders(&ledger, SEED, i * orders, orders, callers));
                let batches = recorder.take();
                let start = Instant::now();
                write(&mut conn, &batches, entries_per_raw_commit).expect("room on the disk");
                spent += start.elapsed();
            }
            rt.block_on(ledger.shutdown()).expect("a clean end");
            spent
        });
    });
    group.finish();
}

/// The commit key is elsewhere: signing one commit must not keep the next ones from being filled and signed.
fn distant(c: &mut Criterion, callers: u64, orders: u64) {
    let orders = if tiny() { 4 } else { orders };
    let mut group = begin(c, callers, orders);
    ledger(&mut group, "a signer that takes 10 ms", callers, orders, async |dir| {
        create(dir).await.shutdown().await.expect("a clean end");
        open_with_distant_key(dir, Duration::from_millis(10)).await
    });
    group.finish();
}

fn append(c: &mut Criterion) {
    group(c, 256, 4096, 256);
    group(c, 1, 100, 1);
    distant(c, 256, 4096);
    distant(c, 1024, 4096);
}

criterion_group!(benches, append);
criterion_main!(benches);
