//! Legacy chains of any length: Ed25519, a fixed key, payloads of an order's events, ten rows a second.

use std::io::{self, BufRead, BufReader, BufWriter, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_zebra::{SigningKey, VerificationKey};
use ledger_engine::hash::{Hash, sha256};
use rayon::prelude::*;

const KID: &str = "legacy-bench";
const CHUNK_ROWS: u64 = 16 * 1024;
const BUCKETS: usize = 64;

fn key() -> SigningKey {
    SigningKey::from([42; 32])
}

/// The registry of the chains' key.
pub fn registry() -> String {
    format!("{{\"{KID}\":\"{}\"}}\n", STANDARD.encode(VerificationKey::from(&key()).as_ref()))
}

/// Keys in the order of their UTF-16 code units, so that this text is canonical.
fn payload(n: u64) -> String {
    let order = sha256(&[b"order", &(n / 9).to_le_bytes()]).to_hex();
    let buyer = format!(r#"{{"country":"PT","id":"user:{}@example.org","name":"Zoë — {n}"}}"#, n % 1000);
    let line = format!(r#"{{"price":12.5,"qty":{},"sku":"s-{}"}}"#, n % 7, n % 400);
    format!(
        r#"{{"amount":{},"buyer":{buyer},"currency":"EUR","lines":[{line}],"order_id":"{order}","rate":0.125,"status":"paid","step":{}}}"#,
        1250 + n % 977,
        n % 9
    )
}

/// From 2025-01-01; a month has 28 days here, which no reader minds.
fn time(n: u64) -> String {
    let s = n / 10;
    let (year, month, day) = (2025 + s / 86_400 / 336, s / 86_400 / 28 % 12 + 1, s / 86_400 % 28 + 1);
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}.000Z", s / 3600 % 24, s / 60 % 60, s % 60)
}

/// Gives the chain's JSON lines in order.
fn lines(rows: u64, mut give: impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    let key = key();
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
        let texts: Vec<String> = chunk
            .into_par_iter()
            .map(|(n, payload, prev, hash)| {
                let signature = STANDARD.encode(<[u8; 64]>::from(key.sign(&hash.0)));
                let (id, time) = (n + 1, time(n));
                let prev = prev.map_or("null".to_owned(), |p| format!("\"{p}\""));
                let head = format!(r#"{{"id":{id},"actor_id":"service:market","event_type":"order.paid""#);
                let tail = format!(r#""signature":"{signature}","signer_kid":"{KID}"}}"#);
                format!(r#"{head},"payload":{payload},"created_at":"{time}","hash":"{hash}","prev_hash":{prev},{tail}"#)
            })
            .collect();
        texts.iter().try_for_each(|text| give(text))?;
    }
    Ok(())
}

/// Writes a chain as JSON lines.
pub fn write_chain(rows: u64, out: &mut dyn Write) -> io::Result<()> {
    lines(rows, |line| writeln!(out, "{line}"))
}

/// Writes a chain's lines in no order. They go through buckets on disk, so that ten million need no memory.
pub fn write_shuffled(rows: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |n: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % n
    };
    let mut buckets = Vec::new();
    for _ in 0..BUCKETS {
        buckets.push(BufWriter::new(tempfile::tempfile()?));
    }
    lines(rows, |line| writeln!(buckets[below(BUCKETS)], "{line}"))?;
    for bucket in buckets {
        let mut file = bucket.into_inner().map_err(io::IntoInnerError::into_error)?;
        io::Seek::rewind(&mut file)?;
        let mut lines: Vec<String> = BufReader::new(file).lines().collect::<Result<_, _>>()?;
        for at in (1..lines.len()).rev() {
            lines.swap(at, below(at + 1));
        }
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    Ok(())
}
