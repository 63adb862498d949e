//! Every target over its committed corpus and over inputs that a seed makes of it. `LEDGER_FUZZ_INPUTS` sets how many, so a
//! longer run needs no other tool; `LEDGER_FUZZ_SEED` sets another seed.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ledger_fuzz::mutate::mutated;
use ledger_fuzz::{Check, TARGETS};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// Runs one target; what fails is named so that it can be run again.
fn smoke(name: &str, inputs: u64) {
    let check: Check = TARGETS.iter().find(|(n, _)| *n == name).map(|(_, check)| *check).unwrap();
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpus().join(name)).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{name} has no corpus");
    let seeds: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    for (file, bytes) in files.iter().zip(&seeds) {
        run(name, check, bytes, &file.display().to_string());
    }
    let seed = setting("LEDGER_FUZZ_SEED", 1);
    let inputs = setting("LEDGER_FUZZ_INPUTS", inputs);
    println!("{name}: {} files, {inputs} inputs from seed {seed}", files.len());
    for n in 0..inputs {
        run(name, check, &mutated(&seeds, seed, n), &format!("input {n} of seed {seed}"));
    }
}

fn run(name: &str, check: Check, bytes: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| check(bytes))).is_err() {
        let kept = std::env::temp_dir().join(format!("ledger-fuzz-{name}-{}", std::process::id()));
        std::fs::write(&kept, bytes).unwrap();
        panic!("{name}: {what} fails; its bytes are in {}", kept.display());
    }
}

macro_rules! targets {
    ($($name:ident: $inputs:literal),* $(,)?) => {
        $(#[test] fn $name() { smoke(stringify!($name), $inputs); })*
        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! {
    body: 20_000, command: 20_000, delivery_proof: 20_000, dump: 400, genesis: 10_000, header: 40_000, json: 40_000, key: 10_000,
    legacy_canonical: 40_000, legacy_file: 500, legacy_links: 500, legacy_signers: 2_000, legacy_time: 100_000, licence: 10_000, line: 40_000,
    manifest: 20_000, merkle: 4_000, name: 40_000, note: 20_000, proof: 4_000, public_key: 20_000, registry: 4_000, sku_manifest: 20_000, statement: 10_000, verify: 400,
}

/// No target and no corpus is forgotten.
#[test]
fn all_targets_are_tested() {
    let folders = std::fs::read_dir(corpus()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let tested: BTreeSet<String> = TESTED.iter().map(|t| (*t).to_owned()).collect();
    assert_eq!(folders.collect::<BTreeSet<_>>(), tested);
    assert_eq!(TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(), tested);
}
