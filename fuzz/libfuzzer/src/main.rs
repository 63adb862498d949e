//! Drives one target of `ledger_fuzz`, named by `LEDGER_FUZZ_TARGET`, with libFuzzer.
#![no_main]

use std::sync::LazyLock;

static CHECK: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("LEDGER_FUZZ_TARGET").unwrap_or_default();
    let found = ledger_fuzz::TARGETS.iter().find(|(name, _)| *name == wanted);
    let Some((_, check)) = found else {
        let names: Vec<&str> = ledger_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        eprintln!("LEDGER_FUZZ_TARGET is {wanted:?}; there are {names:?}");
        std::process::exit(2);
    };
    *check
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| CHECK(data));
