//! One history alone: `--stream` finds what was done to it, reads nothing else, and says so.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use audit_verify::{Anchor, Demands, Report, Verdict, verify_path, verify_stream};
use ledger_engine::archive::ExportOptions;
use ledger_engine::domain::command::Command;
use ledger_engine::hash::Hash;
use ledger_engine::reader::Reader;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use ledger_engine::stream::{CaseId, Stream};
use support::{create, create_line, life, list_sku, send, tamper};

/// A ledger on `chains` chains with full tiles, one order's life in it; the ledger's id, that order, and what was kept.
async fn shop(dir: &Path, chains: u32) -> (Hash, CaseId, Vec<Anchor>) {
    let ledger = create(dir, chains).await;
    for sku in ["other", "s"] {
        list_sku(&ledger, sku).await;
    }
    let many = async |prefix: &str, count: u32| {
        let mut waiting = Vec::new();
        for i in 0..count {
            let command = Command::parse(create_line(&format!("{prefix}{i}"), "s").as_bytes()).unwrap();
            waiting.push(ledger.submit(&command, None, "SUBMIT").await.unwrap());
        }
        let mut last = None;
        for pending in waiting {
            last = pending.wait().await.unwrap().case;
        }
        last.unwrap()
    };
    let order = many("a", 300 * chains).await;
    for line in &life(&order.to_string()) {
        send(&ledger, line).await.unwrap();
    }
    let reissue =
        format!(r#"{{"command":"delivery.reissue","actor":"service:market","order_id":"{order}","reason":"lost"}}"#);
    send(&ledger, &reissue).await.unwrap();
    many("b", 300 * chains).await;
    let notes: String = ledger.shutdown().await.unwrap().iter().map(|n| format!("{n}\n")).collect();
    (ledger.id(), order, Anchor::parse("kept", &notes).unwrap())
}

fn check(dir: &Path, stream: &str, trust: Option<Hash>, anchors: &[Anchor]) -> Report {
    verify_stream(dir, stream, Demands { trust, anchors, ..Demands::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_history_is_verified_alone() {
    for chains in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let (id, order, anchors) = shop(dir.path(), chains).await;
        let sku = Stream::Sku(CaseId::of_sku("other")).to_string();
        let id_of = order.to_string();
        for (stream, entries) in [
            (id_of.clone(), "11 entries of"),
            (format!("order-{id_of}"), "11 entries of"),
            (format!("delivery-{id_of}-2"), "11 entries of"),
            (sku, "1 entries of"),
        ] {
            let report = check(dir.path(), &stream, Some(id), &anchors);
            assert_eq!(report.exit(), 0, "{}", report.to_text());
            for text in [report.to_text(), report.to_html(), report.to_json().to_string()] {
                assert!(text.contains(entries) && text.contains("later revisions of these streams"), "{text}");
            }
            assert_eq!(check(dir.path(), &stream, None, &[]).verdict(), Verdict::IdentityNotProven);
            assert_eq!(check(dir.path(), &stream, Some(Hash::ZERO), &[]).codes(), ["ledger_id_mismatch"]);
        }
        let demands = Demands { trust: Some(id), require_anchor: true, ..Demands::default() };
        assert_eq!(verify_stream(dir.path(), &id_of, demands).verdict(), Verdict::NotAllChecked);
        let report = verify_stream(dir.path(), &id_of, Demands { anchors: &anchors, ..demands });
        assert_eq!(report.exit(), 0, "{}", report.to_text());
        for (stream, why) in
            [("xyz", "no order's id"), (&"0".repeat(32), "stream_heads has no order-"), ("ledger", "no order's id")]
        {
            let report = check(dir.path(), stream, Some(id), &[]);
            assert_eq!(report.verdict(), Verdict::NotChecked);
            assert!(report.reason().contains(why), "{}", report.reason());
        }
    }
}

/// What was done to the order, or to what it rests on, is found; what was done elsewhere is not looked at, and the report says so.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_to_a_history_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (id, order, anchors) = shop(dir.path(), 1).await;
    let of = |event: &str| {
        format!("(SELECT min(idx) FROM entries WHERE event_type = '{event}' AND stream LIKE '%{order}%')")
    };
    let (paid, created, ready) = (of("payment.captured"), of("order.created"), of("delivery.ready"));
    let found: &[(&str, String, &[&str])] = &[
        ("body", format!("UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), 'stripe', 'STRIPE') AS BLOB) WHERE idx = {paid}"), &["body_hash_mismatch"]),
        ("time", format!("UPDATE entries SET recorded_at_us = recorded_at_us + 1 WHERE idx = {paid}"), &["entry_hash_mismatch"]),
        ("parent", format!("UPDATE entries SET parent_index = 1 WHERE idx = {paid}"), &["stream_head_mismatch"]),
        ("deleted", format!("DELETE FROM entries WHERE idx = {paid}"), &["entry_missing"]),
        ("commit", format!("DELETE FROM commits WHERE first_index = {paid}"), &["commit_tiling"]),
        ("unsigned", format!("DELETE FROM commit_signatures WHERE first_index = {paid}"), &["commit_unsigned"]),
        ("signature", format!("UPDATE commit_signatures SET signature = zeroblob(64) WHERE first_index = {paid}"), &["commit_signature_invalid"]),
        ("kid", format!("UPDATE commit_signatures SET kid = 'commit-0' WHERE first_index = {paid}"), &["kid_unknown"]),
        ("private", format!("UPDATE private_documents SET document = CAST('{{}}' AS BLOB) WHERE idx = {created}"), &["private_mismatch"]),
        ("head", format!("UPDATE stream_heads SET revision = 99 WHERE stream = 'order-{order}'"), &["stream_head_mismatch"]),
        ("head of a delivery", format!("UPDATE stream_heads SET head_index = 0 WHERE stream = 'delivery-{order}-1'"), &["stream_head_mismatch"]),
        ("genesis", "DELETE FROM entries WHERE idx = 0".into(), &["entry_missing"]),
        ("price", "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), '1250', '9') AS BLOB) WHERE event_type = 'sku.listed'".into(), &["body_hash_mismatch", "illegal_transition"]),
        ("price list", format!("DELETE FROM stream_heads WHERE stream = '{}'", Stream::Sku(CaseId::of_sku("s"))), &["illegal_transition"]),
        ("checkpoint", "UPDATE checkpoints SET note = replace(note, 'ledger', 'legder')".into(), &["checkpoint_mismatch"]),
        ("checkpoint's size", "UPDATE checkpoints SET size = size - 1".into(), &["checkpoint_mismatch"]),
        // The second delivery's last entry is missing then: its head row says so.
        ("tail", format!("DELETE FROM entries WHERE idx = (SELECT head_index FROM stream_heads WHERE stream = 'order-{order}')"), &["entry_missing"]),
    ];
    for (what, sql, codes) in found {
        let copy = tamper(dir.path(), sql);
        let report = check(copy.path(), &order.to_string(), Some(id), &anchors);
        assert_eq!(
            (report.codes(), report.exit()),
            (codes.iter().map(|c| (*c).to_owned()).collect(), 1),
            "{what}: {}",
            report.to_text()
        );
    }
    // A forged tile: no path below it leads anywhere, neither to the checkpoint nor to what was kept.
    let copy = tamper(dir.path(), "UPDATE tiles SET hashes = zeroblob(8192) WHERE level = 0 AND n = 0");
    let report = check(copy.path(), &order.to_string(), Some(id), &anchors);
    assert!(report.exit() == 1 && report.codes().contains(&"inclusion_mismatch".to_owned()), "{}", report.to_text());
    assert!(report.codes().contains(&"anchor_mismatch".to_owned()), "{}", report.to_text());
    // The last entries cut off, with everything that names them: only what was kept tells.
    let cut = format!(
        "DELETE FROM checkpoints; DELETE FROM stream_heads WHERE stream = 'delivery-{order}-2'; DELETE FROM entries WHERE idx > {ready}; DELETE FROM commits WHERE first_index > {ready};
         UPDATE stream_heads SET head_index = (SELECT max(idx) FROM entries e WHERE e.stream = stream_heads.stream) WHERE stream LIKE '%{order}%';
         UPDATE stream_heads SET head_hash = (SELECT entry_hash FROM entries WHERE idx = head_index), revision = (SELECT revision FROM entries WHERE idx = head_index) WHERE stream LIKE '%{order}%'"
    );
    let copy = tamper(dir.path(), &cut);
    let report = check(copy.path(), &order.to_string(), Some(id), &[]);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    assert!(report.to_text().contains("it has no checkpoint that holds"), "{}", report.to_text());
    let report = check(copy.path(), &order.to_string(), Some(id), &anchors);
    assert_eq!(report.codes(), ["anchor_beyond_tail"], "{}", report.to_text());
    // Elsewhere: another order's body.
    let copy = tamper(dir.path(), "UPDATE entries SET body = CAST('{}' AS BLOB) WHERE idx = 50");
    let report = check(copy.path(), &order.to_string(), Some(id), &anchors);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    assert!(report.to_text().contains("not covered: all other entries of the ledger"), "{}", report.to_text());
    assert_eq!(verify_path(copy.path(), Some(id)).exit(), 1);
}

/// Whoever has an export only can judge one order too; all lines are read for it, so a changed file is found wherever it was changed.
#[tokio::test(flavor = "multi_thread")]
async fn one_history_of_an_export_is_verified() {
    for (chains, gzip) in [(1, false), (3, true)] {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger");
        let (id, order, anchors) = shop(&ledger, chains).await;
        let store = SqliteStore::open(&ledger, SqliteOptions::default()).unwrap();
        let (reader, _) = Reader::open(std::sync::Arc::new(store)).await.unwrap();
        let to = dir.path().join("export");
        let options = ExportOptions { gzip, withhold_private: false, exported_at_us: 0, tool: "test".into() };
        reader.export(options, &to).await.unwrap();
        let order = order.to_string();
        let report = check(&to, &order, Some(id), &anchors);
        assert_eq!(report.exit(), 0, "{}", report.to_text());
        let checked = |report: &Report| report.part().unwrap().checked.clone();
        assert_eq!(checked(&report), checked(&check(&ledger, &order, Some(id), &anchors)));
        let not_covered = report.part().unwrap().not_covered.join("\n");
        assert!(not_covered.contains("verify the export without --stream"), "{not_covered}");
        assert_eq!(check(&to, &order, None, &[]).verdict(), Verdict::IdentityNotProven);
        let report = check(&to, &"0".repeat(32), Some(id), &[]);
        assert_eq!(report.verdict(), Verdict::NotChecked);
        assert!(report.reason().contains("the export has no entry of order-"), "{}", report.reason());
        if gzip {
            continue;
        }
        let file = std::fs::read_dir(&to).unwrap().map(|f| f.unwrap().path());
        let file = file.into_iter().find(|f| f.to_str().unwrap().contains("/entries-")).unwrap();
        let lines = std::fs::read_to_string(&file).unwrap();
        for (of, codes) in [
            (format!("\"stream\":\"order-{order}\""), &["body_hash_mismatch", "export_digest_mismatch"][..]),
            // Another order's entry: its file is not the one exported.
            (format!("\"stream\":\"sku-{}\"", CaseId::of_sku("other")), &["export_digest_mismatch"]),
        ] {
            let at = lines.find(&of).unwrap();
            let from = lines[..at].rfind('\n').unwrap() + 1;
            let mut changed = lines.clone();
            let actor = from + lines[from..].find("\"actor_id\":\"s").unwrap() + "\"actor_id\":\"".len();
            changed.replace_range(actor..=actor, "x");
            std::fs::write(&file, changed).unwrap();
            let report = check(&to, &order, Some(id), &anchors);
            assert_eq!((report.codes(), report.exit()), (codes.iter().map(|c| (*c).to_owned()).collect(), 1));
        }
    }
}
