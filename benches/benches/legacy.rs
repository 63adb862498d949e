//! How fast is a legacy chain verified from a file, in order and in none? The paired script `legacy.sh` compares with Node.

use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::path::Path;

use audit_verify::legacy::{File, Signers, verify_legacy};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ledger_benches::legacy::{registry, write_chain, write_shuffled};
use ledger_benches::tiny;

fn verify(path: &Path, signers: &Signers, rows: u64) {
    let mut file = File::open(path, None).expect("the file is there");
    let report = verify_legacy("bench", &mut file, Some(signers), &[]);
    assert_eq!((report.exit(), report.rows), (0, rows));
    black_box(report);
}

fn legacy(c: &mut Criterion) {
    let rows = if tiny() { 3000 } else { 200_000 };
    let signers = Signers::parse(registry().as_bytes()).expect("a registry");
    let mut group = c.benchmark_group("legacy");
    group.throughput(Throughput::Elements(rows)).sample_size(10);
    let write =
        [("in order", write_chain as fn(u64, &mut dyn Write) -> std::io::Result<()>), ("shuffled", write_shuffled)];
    for (name, write) in write {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut out = BufWriter::new(file.as_file());
        write(rows, &mut out).and_then(|()| out.flush()).expect("room for it");
        group.bench_function(name, |b| b.iter(|| verify(file.path(), &signers, rows)));
    }
    group.finish();
}

criterion_group!(benches, legacy);
criterion_main!(benches);
