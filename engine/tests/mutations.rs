//! The mutation matrix: every column of every table altered, every kind of row deleted, duplicated, swapped. Each gives the
//! expected findings and no other. Tables and columns come from the schema, so that a new one cannot be forgotten.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use audit_verify::{Report, verify_path};
use ledger_engine::hash::Hash;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _};
use support::{create, create_line, create_order, life, list_sku, send};

/// Two chains, one of them with a complete event-id run; every event type and table in use.
async fn sample(dir: &Path) -> Hash {
    let ledger = std::sync::Arc::new(create(dir, 2).await);
    for sku in ["s", "t", "u"] {
        list_sku(&ledger, sku).await;
    }
    let tasks: Vec<_> = (0..980)
        .map(|i| {
            let ledger = std::sync::Arc::clone(&ledger);
            tokio::spawn(async move {
                let order = create_order(&ledger, &format!("k{i}"), ["s", "t"][i % 2]).await;
                for line in life(&order) {
                    send(&ledger, &line).await.unwrap();
                }
                if i % 10 == 0 {
                    let hex = "cd".repeat(32);
                    let of = |c: &str, rest: &str| {
                        format!(r#"{{"command":"{c}","actor":"op@example.org","order_id":"{order}"{rest}}}"#)
                    };
                    for line in [
                        of("delivery.reissue", r#","reason":"lost""#),
                        of("delivery.fail", r#","reason":"disk""#),
                        of(
                            "delivery.encrypt",
                            &format!(r#","algorithm":"a","artifact_sha256":"{hex}","ciphertext_sha256":"{hex}""#),
                        ),
                        of("delivery.ready", r#","proof":"text""#),
                        of("order.refund", r#","reason":"kind","refund":{"amount":50,"currency":"EUR","scale":2}"#),
                    ] {
                        send(&ledger, &line).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    send(&ledger, r#"{"command":"sku.withdraw","actor":"service:catalog","sku_id":"u"}"#).await.unwrap();
    ledger.checkpoint().await.unwrap();
    send(
        &ledger,
        &create_line("late", "s")
            .replace("marketplace-managed\"", &format!("buyer-managed\",\"key_fingerprint\":\"{}\"", "ef".repeat(32))),
    )
    .await
    .unwrap();
    ledger.shutdown().await.unwrap();
    ledger.id()
}

struct Matrix {
    dir: tempfile::TempDir,
    trust: Hash,
    lines: Vec<String>,
    wrong: Vec<String>,
}

impl Matrix {
    /// Applies `change` to a copy, verifies it, and compares the set of codes.
    fn check(&mut self, name: &str, expected: &[&str], change: impl FnOnce(&Connection)) {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(self.dir.path().join("ledger.db"), copy.path().join("ledger.db")).unwrap();
        let db = Connection::open(copy.path().join("ledger.db")).unwrap();
        let triggers: Vec<String> = strings(&db, "SELECT name FROM sqlite_master WHERE type = 'trigger'");
        triggers.iter().for_each(|t| db.execute_batch(&format!("DROP TRIGGER {t}")).unwrap());
        change(&db);
        drop(db);
        let report = verify_path(copy.path(), Some(self.trust));
        let found = report.codes();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        self.lines.push(format!("{name:<44} {}", found.join(" ")));
        if found != expected {
            self.wrong.push(format!("{name}: expected {expected:?}, found {found:?}\n{}", head(&report)));
        }
    }
}

fn head(report: &Report) -> String {
    report.to_text().lines().take(30).collect::<Vec<_>>().join("\n")
}

fn strings(db: &Connection, query: &str) -> Vec<String> {
    let mut s = db.prepare(query).unwrap();
    let rows = s.query_map([], |r| r.get(0)).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

/// The row that is changed: one in the middle of its table, of an entry in the middle of its stream where that matters.
fn target(table: &str) -> &'static str {
    match table {
        "entries" => "chain = 0 AND revision = 3 AND event_type = 'order.settled' AND idx > 600",
        "private_documents" => "chain = 0 AND idx > 100",
        "commits" | "commit_signatures" => "chain = 0 AND first_index > 100",
        "checkpoints" => "chain = 0 AND size = (SELECT max(size) FROM checkpoints WHERE chain = 0)",
        "cursors" => "projection = 'orders' AND chain = 0",
        "stream_heads" => "chain = 0 AND stream LIKE 'order-%'",
        "orders" => "chain = 0 AND status = 'finalized'",
        "deliveries" => "chain = 0 AND n = 1",
        _ => "TRUE",
    }
}

/// Rowid of the target row.
fn pick(db: &Connection, table: &str) -> i64 {
    db.query_row(&format!("SELECT rowid FROM {table} WHERE {} ORDER BY rowid LIMIT 1", target(table)), [], |r| r.get(0))
        .unwrap()
}

fn altered(value: Value, table: &str, column: &str) -> Value {
    match value {
        Value::Integer(_) if column == "chain" => Value::Integer(7),
        Value::Integer(n)
            if matches!(column, "idx" | "first_index" | "head_index" | "license_index" | "proof_index") =>
        {
            Value::Integer(n + 1_000_000)
        }
        Value::Integer(n) if table == "tiles" => Value::Integer(n + 1000),
        Value::Integer(n) => Value::Integer(n + 1),
        Value::Text(t) if column == "event_type" => Value::Text(format!("{t}x")),
        Value::Text(t) if column == "note" => Value::Text(t.replace("\n\n\u{2014}", "\n \n\n\u{2014}")),
        Value::Text(t) => Value::Text(format!("{t}x")),
        Value::Blob(mut b) => {
            b[0] ^= 1;
            Value::Blob(b)
        }
        Value::Null => Value::Text("x".into()),
        Value::Real(r) => Value::Real(r + 1.0),
    }
}

/// Findings of an altered column. A changed key is a row that is missing and one that is unexpected.
fn of_column(table: &str, column: &str) -> Vec<&'static str> {
    let derived = match table {
        "chain_heads" => "chain_head_mismatch",
        "stream_heads" => "stream_head_mismatch",
        "tiles" => "tile_mismatch",
        "event_id_runs" => "event_index_mismatch",
        "cursors" => "cursor_mismatch",
        _ => "projection_mismatch",
    };
    match (table, column) {
        ("ledger", _) => vec!["ledger_id_mismatch"],
        ("entries", "chain") => vec!["chain_unknown", "entry_missing"],
        // The row now stands far beyond the end: its place is empty, and so is everything up to the new one.
        ("entries", "idx") => vec!["commit_tiling", "entry_missing", "entry_missing", "event_id_mismatch"],
        ("entries", "schema_version") => vec!["entry_undecodable"],
        ("entries", "event_id") => vec!["event_id_mismatch"],
        ("entries", "prev_hash") => vec!["prev_hash_mismatch"],
        ("entries", "body_hash" | "body_sha256" | "body") => vec!["body_hash_mismatch"],
        ("entries", "parent_index") => vec!["parent_index_mismatch"],
        ("entries", _) => vec!["entry_hash_mismatch"],
        ("private_documents", "chain") => vec!["chain_unknown"],
        ("private_documents", "idx") => vec!["private_unexpected"],
        ("private_documents", _) => vec!["private_mismatch"],
        ("commits", "chain") => vec!["chain_unknown", "commit_tiling"],
        ("commits", "first_index") => vec!["commit_tiling", "commit_tiling"],
        ("commits", "size") => vec!["commit_tiling"],
        ("commits", _) => vec!["registry_position_mismatch"],
        ("commit_signatures", "chain") => vec!["chain_unknown", "commit_unsigned"],
        ("commit_signatures", "first_index") => vec!["commit_signature_orphan", "commit_unsigned"],
        ("commit_signatures", "kid") => vec!["kid_unknown"],
        ("commit_signatures", "alg") => vec!["algorithm_mismatch"],
        ("commit_signatures", _) => vec!["commit_signature_invalid"],
        ("checkpoints", "chain") => vec!["chain_unknown"],
        ("checkpoints", "note") => vec!["checkpoint_undecodable"],
        ("checkpoints", _) => vec!["checkpoint_mismatch"],
        (_, "chain") => vec!["chain_unknown", derived],
        (_, c) if is_key(table, c) => vec![derived, derived],
        _ => vec![derived],
    }
}

fn is_key(table: &str, column: &str) -> bool {
    let key = match table {
        "stream_heads" => "stream",
        "tiles" => return column == "level" || column == "n",
        "event_id_runs" => "run",
        "cursors" => "projection",
        "chain_heads" => return false,
        "idempotency" => "key",
        _ => "idx",
    };
    column == key
}

/// Findings of a deleted, a duplicated, and two swapped rows.
fn of_rows(table: &str) -> [Vec<&'static str>; 3] {
    let twice = |code| [vec![code], vec![code], vec![code, code]];
    match table {
        "ledger" => [vec!["ledger_id_mismatch"], vec!["ledger_id_mismatch"], vec![]],
        "entries" => [vec!["entry_missing"], vec!["entry_duplicate"], vec!["event_id_mismatch", "event_id_mismatch"]],
        // Absence is redaction, no fault.
        "private_documents" => [vec![], vec!["private_unexpected"], vec!["private_mismatch", "private_mismatch"]],
        "commits" => [vec!["commit_tiling"], vec!["commit_undecodable"], vec!["commit_tiling", "commit_tiling"]],
        "commit_signatures" => [
            vec!["commit_unsigned"],
            vec!["commit_signature_orphan"],
            vec!["commit_signature_invalid", "commit_signature_invalid"],
        ],
        // A missing checkpoint row is found only by an anchor.
        "checkpoints" => [vec![], vec!["checkpoint_undecodable"], vec!["checkpoint_mismatch", "checkpoint_mismatch"]],
        "chain_heads" => twice("chain_head_mismatch"),
        "stream_heads" => twice("stream_head_mismatch"),
        "tiles" => twice("tile_mismatch"),
        "event_id_runs" => [vec!["event_index_mismatch"], vec!["event_index_mismatch"], vec![]],
        "cursors" => twice("cursor_mismatch"),
        _ => twice("projection_mismatch"),
    }
}

fn keys(table: &str) -> usize {
    match table {
        "ledger" => 0,
        "chain_heads" => 1,
        "tiles" | "commit_signatures" => 3,
        _ => 2,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_column_and_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let trust = sample(dir.path()).await;
    let clean = verify_path(dir.path(), Some(trust));
    assert_eq!(clean.exit(), 0, "{}", head(&clean));
    assert_eq!(clean.reason(), "", "the quick proof does for a ledger without faults");
    assert_eq!(verify_path(dir.path(), None).exit(), 2);
    assert_eq!(verify_path(dir.path(), Some(Hash::ZERO)).codes(), ["ledger_id_mismatch"]);
    let db = Connection::open(dir.path().join("ledger.db")).unwrap();
    let tables = strings(&db, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name");
    assert_eq!(tables.len(), 17);
    let mut matrix = Matrix { dir, trust, lines: Vec::new(), wrong: Vec::new() };
    for table in &tables {
        let columns = strings(&db, &format!("SELECT name FROM pragma_table_info('{table}')"));
        for column in &columns {
            matrix.check(&format!("{table}.{column} altered"), &of_column(table, column), |db| {
                let rowid = pick(db, table);
                let value: Value = db
                    .query_row(&format!("SELECT {column} FROM {table} WHERE rowid = {rowid}"), [], |r| r.get(0))
                    .unwrap();
                let mut value = altered(value, table, column);
                if let (Value::Text(_), "parent_index") = (&value, column.as_str()) {
                    value = Value::Integer(1);
                }
                db.execute(&format!("UPDATE {table} SET {column} = ?1 WHERE rowid = {rowid}"), [value]).unwrap();
            });
        }
        let [deleted, duplicated, swapped] = of_rows(table);
        matrix.check(&format!("{table} row deleted"), &deleted, |db| {
            db.execute_batch(&format!("DELETE FROM {table} WHERE rowid = {}", pick(db, table))).unwrap();
        });
        matrix.check(&format!("{table} row duplicated"), &duplicated, |db| {
            let rowid = pick(db, table);
            db.execute_batch(&format!(
                "CREATE TABLE loose AS SELECT * FROM {table}; INSERT INTO loose SELECT * FROM {table} WHERE rowid = {rowid};
                 DROP TABLE {table}; ALTER TABLE loose RENAME TO {table};"
            ))
            .unwrap();
        });
        let rest = columns[keys(table)..].join(", ");
        let a = pick(&db, table);
        let same_chain = if columns.contains(&"chain".to_owned()) && table != "chain_heads" {
            format!("AND chain = (SELECT chain FROM {table} WHERE rowid = {a})")
        } else {
            String::new()
        };
        let partner = format!(
            "SELECT rowid FROM {table} WHERE rowid != {a} {same_chain} AND ({rest}) IS NOT (SELECT {rest} FROM {table} WHERE rowid = {a}) \
             ORDER BY abs(rowid - {a} - 40) LIMIT 1"
        );
        let partner: Option<i64> = db.query_row(&partner, [], |r| r.get(0)).optional().unwrap();
        // Tables with one row for each chain, or with keys alone, have nothing to swap.
        assert_eq!(partner.is_none(), matches!(table.as_str(), "ledger" | "event_id_runs" | "cursors"), "{table}");
        if let Some(b) = partner {
            matrix.check(&format!("{table} rows swapped"), &swapped, |db| {
                let set = columns[keys(table)..].iter().map(|c| format!("{c} = o.{c}")).collect::<Vec<_>>().join(", ");
                db.execute_batch(&format!(
                    "CREATE TEMP TABLE o AS SELECT rowid AS r, * FROM {table} WHERE rowid IN ({a}, {b});
                     UPDATE {table} SET {set} FROM o WHERE o.r = {a} + {b} - {table}.rowid AND {table}.rowid IN ({a}, {b});"
                ))
                .unwrap();
            });
        }
    }
    println!("{}", matrix.lines.join("\n"));
    assert!(
        matrix.wrong.is_empty(),
        "{} of {} differ\n{}",
        matrix.wrong.len(),
        matrix.lines.len(),
        matrix.wrong.join("\n\n")
    );
}
