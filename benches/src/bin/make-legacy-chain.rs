//! Writes a legacy chain of `audit_events` as JSON lines, and its registry: `make-legacy-chain ROWS FILE SIGNERS [shuffled]`.
//!
//! Ed25519, a fixed key, payloads of an order's events, ten rows a second. Shuffled rows go through buckets on disk, so
//! that ten million need no memory.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_zebra::{SigningKey, VerificationKey};
use ledger_engine::hash::{Hash, sha256};
use rayon::prelude::*;

const KID: &str = "legacy-bench";
const CHUNK_ROWS: u64 = 16 * 1024;
const BUCKETS: usize = 64;

/// Keys in the order of their UTF-16 code units, so that this text is canonical.
fn payload(n: u64) -> String {
    let order = sha256(&[b"order", &(n / 9).to_le_bytes()]).to_hex();
    format!(
        r#"{{"amount":{},"buyer":{{"country":"PT","id":"user:{}@example.org","name":"Zoë — {n}"}},"currency":"EUR","lines":[{{"price":12.5,"qty":{},"sku":"s-{}"}}],"order_id":"{order}","rate":0.125,"status":"paid","step":{}}}"#,
        1250 + n % 977,
        n % 1000,
        n % 7,
        n % 400,
        n % 9
    )
}

fn time(n: u64) -> String {
    // From 2025-01-01; a month has 28 days here, which no reader minds.
    let s = n / 10;
    let (year, month, day) = (2025 + s / 86_400 / 336, s / 86_400 / 28 % 12 + 1, s / 86_400 % 28 + 1);
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}.000Z", s / 3600 % 24, s / 60 % 60, s % 60)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rows, file, signers, rest @ ..] = arguments.as_slice() else {
        return Err("usage: make-legacy-chain ROWS FILE SIGNERS [shuffled]".into());
    };
    let rows: u64 = rows.parse()?;
    let shuffled = rest.first().is_some_and(|r| r == "shuffled");
    let key = SigningKey::from([42; 32]);
    let public = STANDARD.encode(VerificationKey::from(&key).as_ref());
    std::fs::write(signers, format!("{{\"{KID}\":\"{public}\"}}\n"))?;
    let mut out = BufWriter::with_capacity(1 << 20, File::create(file)?);
    let mut buckets = Vec::new();
    if shuffled {
        for _ in 0..BUCKETS {
            buckets.push(BufWriter::new(tempfile::tempfile()?));
        }
    }
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut prev: Option<Hash> = None;
    for first in (0..rows).step_by(CHUNK_ROWS as usize) {
        let chunk: Vec<(u64, String, Option<Hash>, Hash)> = (first..rows.min(first + CHUNK_ROWS))
            .map(|n| {
                let payload = payload(n);
                let link = prev.map(|h| h.0.to_vec()).unwrap_or_default();
                let hash = sha256(&[payload.as_bytes(), &link]);
                (n, payload, prev.replace(hash), hash)
            })
            .collect();
        let lines: Vec<String> = chunk
            .into_par_iter()
            .map(|(n, payload, prev, hash)| {
                let signature = STANDARD.encode(<[u8; 64]>::from(key.sign(&hash.0)));
                let prev = prev.map_or("null".to_owned(), |p| format!("\"{p}\""));
                format!(
                    r#"{{"id":{},"actor_id":"service:market","event_type":"order.paid","payload":{payload},"created_at":"{}","hash":"{hash}","prev_hash":{prev},"signature":"{signature}","signer_kid":"{KID}"}}"#,
                    n + 1,
                    time(n)
                )
            })
            .collect();
        for line in lines {
            if shuffled {
                writeln!(buckets[next() as usize % BUCKETS], "{line}")?;
            } else {
                writeln!(out, "{line}")?;
            }
        }
    }
    for bucket in buckets {
        let mut file = bucket.into_inner()?;
        std::io::Seek::rewind(&mut file)?;
        let mut lines: Vec<String> = BufReader::new(file).lines().collect::<Result<_, _>>()?;
        for at in (1..lines.len()).rev() {
            lines.swap(at, next() as usize % (at + 1));
        }
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    out.flush()?;
    Ok(())
}
