//! Honest legacy chains from a fixed key, and ways to judge them.

use std::path::Path;

use audit_verify::legacy::{Anchor, File, LegacyReport, Signers, verify_legacy};
use base64::Engine as _;
use ed25519_zebra::{SigningKey, VerificationKey};
use ledger_engine::hash::{Hash, sha256};
use serde_json::{Value, json};

pub(crate) const KID: &str = "audit-2025";

pub(crate) fn key() -> SigningKey {
    SigningKey::from([7; 32])
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A registry with the fixed key under its kid.
pub(crate) fn registry() -> Value {
    json!({ "signers": [{ "signer_kid": KID, "public_key": base64(VerificationKey::from(&key()).as_ref()) }] })
}

pub(crate) fn signers() -> Signers {
    Signers::parse(registry().to_string().as_bytes()).unwrap()
}

/// Sets hash, link and signature of a row. Its payload has ASCII keys and small numbers only.
pub(crate) fn seal(row: &mut Value, prev: Option<&str>) {
    let canonical = row["payload"].to_string();
    let link = prev.and_then(Hash::from_hex).map(|h| h.0.to_vec()).unwrap_or_default();
    let digest = sha256(&[canonical.as_bytes(), &link]);
    row["hash"] = json!(digest.to_hex());
    row["prev_hash"] = json!(prev);
    row["signature"] = json!(base64(&<[u8; 64]>::from(key().sign(&digest.0))));
    row["signer_kid"] = json!(KID);
}

pub(crate) fn hash(row: &Value) -> &str {
    row["hash"].as_str().unwrap()
}

/// `count` rows, three at each timestamp.
pub(crate) fn chain(count: usize) -> Vec<Value> {
    let mut rows: Vec<Value> = Vec::new();
    for n in 0..count {
        let second = n / 3;
        let mut row = json!({
            "id": n + 1, "actor_id": format!("user-{}", n % 5), "event_type": "order.paid",
            "payload": { "step": n, "amount": { "currency": "USD", "value": 100 + n }, "tags": ["x", null, true] },
            "created_at": format!("2025-11-{:02}T{:02}:{:02}:{:02}.000Z", 1 + second / 86400 % 28, second / 3600 % 24, second / 60 % 60, second % 60),
        });
        let prev = rows.last().map(|r| hash(r).to_owned());
        seal(&mut row, prev.as_deref());
        rows.push(row);
    }
    rows
}

/// Makes everything after row `from` follow from it again.
pub(crate) fn reseal(rows: &mut [Value], from: usize) {
    for at in from..rows.len() {
        let prev = at.checked_sub(1).map(|before| hash(&rows[before]).to_owned());
        seal(&mut rows[at], prev.as_deref());
    }
}

pub(crate) fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| row.to_string() + "\n").collect()
}

pub(crate) fn shuffle<T>(list: &mut [T], mut seed: u64) {
    for at in (1..list.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        list.swap(at, (seed >> 33) as usize % (at + 1));
    }
}

pub(crate) fn judge_file(path: &Path, signers: Option<&Signers>, anchors: &[Anchor]) -> LegacyReport {
    match File::open(path, None) {
        Ok(mut file) => verify_legacy("test", &mut file, signers, anchors),
        Err(e) => LegacyReport::unreadable("test", "", &e.to_string()),
    }
}

pub(crate) fn judge_bytes(bytes: &[u8], anchors: &[Anchor]) -> LegacyReport {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    judge_file(file.path(), Some(&signers()), anchors)
}

pub(crate) fn judge(rows: &[Value]) -> LegacyReport {
    judge_bytes(lines(rows).as_bytes(), &[])
}

/// `code place` of every fault.
pub(crate) fn found(report: &LegacyReport) -> Vec<String> {
    let place = |p: &str| p.strip_prefix("audit_events/").unwrap_or(p).to_owned();
    report
        .findings()
        .iter()
        .map(|f| format!("{} {}", f.code.as_str().trim_start_matches("legacy_"), place(&f.place)))
        .collect()
}

pub(crate) fn notes(report: &LegacyReport) -> Vec<&str> {
    report.notes.iter().map(|n| n.code.as_str()).collect()
}

#[track_caller]
pub(crate) fn assert_verified(report: &LegacyReport, rows: u64) {
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    assert_eq!((report.rows, report.chain_rows), (rows, rows));
}

#[track_caller]
pub(crate) fn assert_found(report: &LegacyReport, expected: &[&str]) {
    assert_eq!(found(report), expected, "{}", report.to_text());
    assert_eq!(report.exit(), 1);
}
