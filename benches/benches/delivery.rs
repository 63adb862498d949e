//! How fast is an artifact encrypted: AES-GCM alone, and with both digests and the writes. Compare with `openssl speed` in the same run
//! (`benches/delivery.sh`).
#![allow(missing_docs)]

use std::io;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ledger_benches::tiny;
use ledger_engine::delivery::ContentKey;
use ledger_engine::delivery::stream::{self, Fresh};

const FRESH: Fresh = Fresh { salt: [1; 32], prefix: [2; 7] };

fn sealing(c: &mut Criterion) {
    let bytes: usize = if tiny() { 3 << 20 } else { 512 << 20 };
    let artifact = vec![0x5a; bytes];
    let key = ContentKey::new([7; 32]);
    let mut group = c.benchmark_group("delivery");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("AES-256-GCM segments alone", |b| {
        b.iter(|| stream::encrypt_only(&key, &FRESH, b"", &artifact).expect("AES-GCM"));
    });
    group.bench_function("digests, AES-256-GCM, no disk", |b| {
        b.iter(|| stream::seal(&key, &FRESH, b"", &artifact[..], &mut io::sink()).expect("it is sealed"));
    });
    group.finish();
}

criterion_group!(benches, sealing);
criterion_main!(benches);
