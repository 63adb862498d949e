//! What is delivered is read by Tink, which shares no code with it, and what Tink writes is read here.
#![allow(missing_docs)]

use std::process::Command;

use ledger_engine::delivery::ContentKey;
use ledger_engine::delivery::stream::{self, Fresh, SEGMENT_BYTES};
use ledger_engine::hash::sha256;

const KEY: [u8; 32] = [0x4b; 32];
const CONTEXT: &[u8] = b"ledger/delivery/v1\0of this delivery";

#[test]
fn tink_opens_what_is_sealed_and_seals_what_is_opened() {
    let python = std::env::var("LEDGER_PYTHON").expect("the test command makes the Python environment: run .ci/run");
    let dir = tempfile::tempdir().unwrap();
    for len in [0, 1, SEGMENT_BYTES - 57, SEGMENT_BYTES - 56, SEGMENT_BYTES - 55, 3 * SEGMENT_BYTES] {
        let artifact: Vec<u8> = (0..len).map(|i| (i % 253) as u8).collect();
        let mut sealed = Vec::new();
        let fresh = Fresh { salt: [3; 32], prefix: [4; 7] };
        stream::seal(&ContentKey::new(KEY), &fresh, CONTEXT, &artifact[..], &mut sealed).unwrap();
        std::fs::write(dir.path().join("ours"), sealed).unwrap();
        let judge = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tink_judge.py");
        let out = Command::new(&python)
            .args(["-B", judge, &ledger_engine::hash::to_hex(&KEY), &ledger_engine::hash::to_hex(CONTEXT)])
            .arg(dir.path())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(std::fs::read(dir.path().join("opened")).unwrap(), artifact, "{len}: what Tink made of ours");
        let theirs = std::fs::read(dir.path().join("theirs")).unwrap();
        let mut opened = Vec::new();
        let digests = stream::open(&ContentKey::new(KEY), CONTEXT, &mut &theirs[..], &mut opened).unwrap();
        assert_eq!(opened, artifact, "{len}: what we made of Tink's");
        assert_eq!((digests.sealed_sha256, digests.plain_sha256), (sha256(&[&theirs]), sha256(&[&artifact])));
    }
}
