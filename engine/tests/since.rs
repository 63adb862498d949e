//! Only what came after an anchor: the same verdict as a whole run where the new entries or what they rest on were changed, in a time
//! that does not depend on the rest, which is named as not read.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use audit_verify::{Anchor, Demands, Report, Verdict, verify_path_with};
use ledger_engine::hash::Hash;
use ledger_engine::ledger::Ledger;
use ledger_engine::stream::CaseId;
use support::{at_once, create, create_line, life, list_sku, open, send, tamper};

/// `count` orders at once, so that commits hold several entries.
async fn orders(ledger: &Ledger, prefix: &str, count: u32) -> Vec<CaseId> {
    let answers = at_once(ledger, (0..count).map(|i| create_line(&format!("{prefix}{i}"), "s"))).await;
    answers.into_iter().map(|a| a.unwrap().case.unwrap()).collect()
}

async fn kept(ledger: &Ledger) -> Vec<Anchor> {
    let notes: String = ledger.checkpoint().await.unwrap().iter().map(|n| format!("{n}\n")).collect();
    Anchor::parse("kept", &notes).unwrap()
}

/// A ledger with much before the last anchor and a little of everything after it. The anchors, oldest first.
async fn shop(dir: &Path, chains: u32) -> (Hash, Vec<Vec<Anchor>>) {
    let ledger = create(dir, chains).await;
    for sku in ["other", "s"] {
        list_sku(&ledger, sku).await;
    }
    let mut anchors = vec![kept(&ledger).await];
    let old = orders(&ledger, "a", 400 * chains).await;
    for order in &old[..6] {
        for line in &life(&order.to_string())[..5] {
            send(&ledger, line).await.unwrap();
        }
    }
    anchors.push(kept(&ledger).await);
    orders(&ledger, "b", 3).await;
    anchors.push(kept(&ledger).await);
    // Old orders go on, one by one and at once; a price changes; new orders cite the old and the new one.
    for order in &old[..4] {
        for line in &life(&order.to_string())[5..] {
            send(&ledger, line).await.unwrap();
        }
    }
    let sku = |command: &str, rest: &str| {
        format!(r#"{{"command":"{command}","actor":"service:catalog","sku_id":"s"{rest}}}"#)
    };
    orders(&ledger, "c", 40).await;
    send(&ledger, &sku("sku.withdraw", r#","reason":"price""#)).await.unwrap();
    let price = r#","title":"Font","price":{"amount":99,"currency":"EUR","scale":2}"#;
    send(&ledger, &sku("sku.list", price)).await.unwrap();
    for order in orders(&ledger, "d", 300 * chains).await.iter().step_by(100) {
        let reason = r#","reason":"no""#;
        let line = format!(r#"{{"command":"order.cancel","actor":"service:m","order_id":"{order}"{reason}}}"#);
        send(&ledger, &line).await.unwrap();
    }
    let erase =
        format!(r#"{{"command":"subject.erase","actor":"service:m","order_id":"{}","reason":"asked"}}"#, old[0]);
    send(&ledger, &erase).await.unwrap();
    anchors.push(kept(&ledger).await);
    ledger.shutdown().await.unwrap();
    (ledger.id(), anchors)
}

fn whole(dir: &Path, id: Hash, anchors: &[Anchor]) -> Report {
    verify_path_with(dir, Demands { trust: Some(id), anchors, ..Demands::default() })
}

fn since(dir: &Path, id: Hash, anchors: &[Anchor]) -> Report {
    verify_path_with(dir, Demands { trust: Some(id), anchors, since_anchor: true, ..Demands::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_after_an_anchor_is_verified_alone() {
    for chains in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let (id, anchors) = shop(dir.path(), chains).await;
        let all = anchors.concat();
        let full = whole(dir.path(), id, &all);
        assert_eq!((full.exit(), full.reason()), (0, ""), "{}", full.to_text());
        for given in anchors.iter().chain([&all]) {
            let report = since(dir.path(), id, given);
            assert_eq!((report.exit(), report.reason()), (0, ""), "{}", report.to_text());
            assert_eq!((report.digest(), report.anchor()), (full.digest(), full.anchor()));
            let part = report.part().unwrap();
            assert_eq!(part.kind, "tail");
            assert!(report.to_text().contains("were not read again"), "{}", report.to_text());
            for (chain, whole) in report.chains().iter().zip(full.chains()) {
                let anchor = given.iter().map(Anchor::size).filter(|s| *s == chain.anchored.unwrap()).count();
                assert!(anchor > 0 && chain.from < chain.anchored.unwrap());
                assert_eq!((chain.entries, chain.head, chain.root), (whole.entries, whole.head, whole.root));
                let counted: u64 = chain.by_type.values().sum();
                assert_eq!(counted, chain.entries - chain.from);
            }
        }
        // One chain's anchor alone: the others are judged from their beginnings.
        if chains > 1 {
            let report = since(dir.path(), id, &anchors[2][1..2]);
            assert_eq!((report.exit(), report.reason()), (0, ""), "{}", report.to_text());
            let begun: Vec<bool> = report.chains().iter().map(|c| c.from > 0).collect();
            assert_eq!(begun, [false, true, false]);
            assert!(report.to_text().contains("chain 0: all entries"), "{}", report.to_text());
        }
        assert_eq!(since(dir.path(), id, &[]).chains()[0].from, 0, "without an anchor it is a whole run");
        let report = verify_path_with(dir.path(), Demands { anchors: &all, since_anchor: true, ..Demands::default() });
        assert_eq!(report.verdict(), Verdict::IdentityNotProven);
        assert_eq!(since(dir.path(), Hash::ZERO, &all).exit(), 1);
    }
}

/// An anchor at every place where a ledger can be anchored, around the sizes at which tiles become complete.
#[tokio::test(flavor = "multi_thread")]
async fn any_anchor_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let mut anchors = Vec::new();
    orders(&ledger, "first", 240).await;
    for i in 0..20 {
        orders(&ledger, &format!("x{i}-"), 1 + i % 4).await;
        anchors.extend(kept(&ledger).await);
    }
    orders(&ledger, "last", 300).await;
    ledger.shutdown().await.unwrap();
    assert!(anchors.first().unwrap().size() < 256 && anchors.last().unwrap().size() > 256);
    for anchor in &anchors {
        let report = since(dir.path(), ledger.id(), std::slice::from_ref(anchor));
        assert_eq!((report.exit(), report.reason()), (0, ""), "{}: {}", anchor.size(), report.to_text());
        assert!(report.chains()[0].from > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_after_the_anchor_is_found() {
    for chains in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let (id, anchors) = shop(dir.path(), chains).await;
        let given = &anchors[2];
        let after = given[0].size();
        let new = format!(
            "(SELECT min(idx) FROM entries WHERE chain = 0 AND idx > {after} AND event_type = 'order.created')"
        );
        let changes = [
            format!("UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), 'amount\":', 'amount\":1') AS BLOB) WHERE chain = 0 AND idx = {new}"),
            format!("UPDATE entries SET recorded_at_us = recorded_at_us + 1 WHERE chain = 0 AND idx = {new}"),
            format!("UPDATE entries SET prev_hash = zeroblob(32) WHERE chain = 0 AND idx = {after}"),
            format!("UPDATE entries SET parent_index = 3 WHERE chain = 0 AND idx = {new}"),
            format!("UPDATE entries SET parent_index = 0 WHERE chain = 0 AND idx > {after} AND event_type = 'chain.heads' OR idx = {new}"),
            format!("DELETE FROM entries WHERE chain = 0 AND idx = {new}"),
            format!("DELETE FROM entries WHERE chain = 0 AND idx > {new}"),
            format!("DELETE FROM commits WHERE chain = 0 AND first_index = (SELECT min(first_index) FROM commits WHERE chain = 0 AND first_index > {after})"),
            format!("UPDATE commits SET registry_size = 0 WHERE chain = 0 AND first_index >= {after}"),
            format!("DELETE FROM commit_signatures WHERE chain = 0 AND first_index > {after}"),
            format!("UPDATE commit_signatures SET signature = zeroblob(64) WHERE chain = 0 AND first_index > {after}"),
            format!("UPDATE private_documents SET document = CAST('{{}}' AS BLOB) WHERE chain = 0 AND idx = {new}"),
            format!("INSERT INTO private_documents VALUES (0, {after} + 100000, x'00')"),
            format!("UPDATE checkpoints SET root = zeroblob(32) WHERE chain = 0 AND size > {after}"),
            format!("UPDATE stream_heads SET revision = revision + 1 WHERE chain = 0 AND head_index > {after}"),
            "UPDATE chain_heads SET head_hash = zeroblob(32)".into(),
            "UPDATE cursors SET size = size - 1 WHERE projection = 'skus'".into(),
            format!("UPDATE orders SET status = 'paid' WHERE chain = 0 AND idx = {new}"),
            format!("DELETE FROM orders WHERE chain = 0 AND idx = {new}"),
            "UPDATE skus SET amount = 1 WHERE sku_id = 's'".into(),
            "UPDATE tiles SET hashes = zeroblob(8192) WHERE level = 0 AND n = (SELECT max(n) FROM tiles)".into(),
            "DELETE FROM tiles WHERE chain = 0 AND level = 0 AND n = (SELECT max(n) FROM tiles WHERE chain = 0)".into(),
            // What new entries rest on, from before the anchor: an order that went on, and the listing that was cited.
            "UPDATE entries SET body = CAST('{}' AS BLOB) WHERE event_type = 'license.issued' AND idx = (SELECT min(idx) FROM entries WHERE event_type = 'license.issued')".into(),
            "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), '1250', '9') AS BLOB) WHERE event_type = 'sku.listed'".into(),
            "UPDATE stream_heads SET head_index = first_index, revision = 1 WHERE stream LIKE 'sku-%'".into(),
            "UPDATE entries SET body = CAST('{}' AS BLOB) WHERE chain = 0 AND idx = 0".into(),
            "UPDATE ledger SET ledger_id = zeroblob(32)".into(),
            // The tree before the anchor.
            "UPDATE tiles SET hashes = zeroblob(8192) WHERE level = 0 AND n = 0".into(),
            format!("DELETE FROM entries WHERE chain = 0 AND idx >= {after} - 1; DELETE FROM commits WHERE chain = 0 AND first_index >= {after} - 1"),
        ];
        // A part of them is enough where only the number of chains differs.
        for sql in changes.iter().step_by(if chains == 1 { 1 } else { 4 }) {
            let copy = tamper(dir.path(), sql);
            let (found, full) = (since(copy.path(), id, given), whole(copy.path(), id, given));
            assert_eq!(full.exit(), 1, "{sql}: {}", full.to_text());
            assert_eq!(found.findings(), full.findings(), "{sql}: {}", found.to_text());
        }
    }
}

/// What lies before the anchor and no new entry rests on is not read: its change is not found, and the report does not claim it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_before_the_anchor_is_named_as_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (id, anchors) = shop(dir.path(), 1).await;
    let given = &anchors[2];
    for sql in [
        "UPDATE entries SET body = CAST('{}' AS BLOB) WHERE idx = 100",
        "UPDATE orders SET status = 'paid' WHERE idx = 100",
        "UPDATE commit_signatures SET signature = zeroblob(64) WHERE first_index BETWEEN 20 AND 300",
    ] {
        let copy = tamper(dir.path(), sql);
        let report = since(copy.path(), id, given);
        assert_eq!(report.exit(), 0, "{sql}: {}", report.to_text());
        let from = report.chains()[0].from;
        assert!(from > 300, "{from}");
        let said = format!("not covered: chain 0: entries 0 to {} were not read again", from - 1);
        assert!(report.to_text().contains(&said), "{}", report.to_text());
        assert_eq!(whole(copy.path(), id, given).exit(), 1, "{sql}");
    }
    // An anchor that says nothing about this ledger leaves a whole run, and the verdict open.
    let other = tempfile::tempdir().unwrap();
    let ledger = create(other.path(), 2).await;
    let foreign = kept(&ledger).await;
    ledger.shutdown().await.unwrap();
    let report = since(dir.path(), id, &foreign);
    assert_eq!((report.verdict(), report.exit()), (Verdict::NotAllChecked, 2), "{}", report.to_text());
    // Another history under the same keys.
    let anew = tempfile::tempdir().unwrap();
    let ledger = create(anew.path(), 1).await;
    list_sku(&ledger, "s").await;
    orders(&ledger, "z", 1200).await;
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let ledger = open(anew.path()).await;
    orders(&ledger, "y", 10).await;
    ledger.shutdown().await.unwrap();
    let report = since(anew.path(), id, given);
    assert_eq!(report.codes(), ["anchor_mismatch"], "{}", report.to_text());
}
