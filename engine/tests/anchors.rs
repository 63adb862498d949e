//! What an auditor kept catches what the keys alone cannot: a ledger cut off, rolled back, or written anew by its owner.
#![allow(missing_docs)]

mod support;

use std::path::Path;

use audit_verify::{Anchor, Demands, Report, Verdict, verify_path_with};
use ledger_engine::hash::Hash;
use support::{create, create_line, list_sku, open, send};

/// Appends twenty orders, and gives what `ledger checkpoint` prints then.
async fn grow(dir: &Path, prefix: &str) -> String {
    let ledger = open(dir).await;
    for i in 0..20 {
        send(&ledger, &create_line(&format!("{prefix}{i}"), "s")).await.unwrap();
    }
    let notes = ledger.shutdown().await.unwrap();
    notes.iter().map(|n| format!("{n}\n")).collect()
}

async fn begin(dir: &Path) -> Hash {
    let ledger = create(dir, 2).await;
    list_sku(&ledger, "s").await;
    ledger.shutdown().await.unwrap();
    ledger.id()
}

fn anchors(text: &str) -> Vec<Anchor> {
    Anchor::parse("kept", text).unwrap()
}

fn check(dir: &Path, id: Hash, anchors: &[Anchor]) -> Report {
    verify_path_with(dir, Demands { trust: Some(id), anchors, ..Demands::default() })
}

fn codes(report: &Report) -> Vec<String> {
    assert_eq!(report.exit(), u8::from(!report.codes().is_empty()), "{}", report.to_text());
    report.codes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_must_contain_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let id = begin(dir.path()).await;
    let early = anchors(&grow(dir.path(), "a").await);
    let backup = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("ledger.db"), backup.path().join("ledger.db")).unwrap();
    let late = anchors(&grow(dir.path(), "b").await);
    assert_eq!((early.len(), late.len()), (2, 2));

    // It contains both, and says what they cover; of chain 0 alone, chain 1 as far as chain.heads tell.
    let report = check(dir.path(), id, &[early.clone(), late.clone()].concat());
    assert_eq!((codes(&report), report.reason()), (vec![], ""));
    let sizes = |anchors: &[Anchor]| anchors.iter().map(Anchor::size).collect::<Vec<_>>();
    assert_eq!(sizes(&anchors(&report.anchor().unwrap())), sizes(&late));
    for (chain, anchor) in report.chains().iter().zip(&late) {
        assert_eq!((chain.anchored, chain.entries), (Some(anchor.size()), anchor.size()));
    }
    let report = check(dir.path(), id, &early[..1]);
    let covered: Vec<_> = report.chains().iter().map(|c| c.anchored).collect();
    assert_eq!((codes(&report), covered), (vec![], vec![Some(early[0].size()), Some(early[1].size())]));

    // The same once something is wrong, though each fault is named then.
    let damaged = tempfile::tempdir().unwrap();
    let file = damaged.path().join("ledger.db");
    std::fs::copy(dir.path().join("ledger.db"), &file).unwrap();
    let db = rusqlite::Connection::open(&file).unwrap();
    db.execute_batch("DELETE FROM orders").unwrap();
    db.close().unwrap();
    for (kept, expected) in [(&early, &early), (&late, &late)] {
        let report = check(damaged.path(), id, &kept[..1]);
        assert!(report.codes().iter().all(|code| code == "projection_mismatch") && report.exit() == 1);
        let covered: Vec<_> = report.chains().iter().map(|c| c.anchored).collect();
        assert_eq!(covered, expected.iter().map(|a| Some(a.size())).collect::<Vec<_>>(), "{}", report.to_text());
    }

    // What no anchor covers leaves the verdict open only where that was asked for.
    let demands = Demands { trust: Some(id), anchors: &early, require_anchor: true, ..Demands::default() };
    let report = verify_path_with(dir.path(), demands);
    assert_eq!((report.verdict(), report.exit()), (Verdict::NotAllChecked, 2), "{}", report.to_text());
    let report = verify_path_with(dir.path(), Demands { anchors: &late, ..demands });
    assert_eq!(report.exit(), 0, "{}", report.to_text());

    // Rolled back to the backup: without an anchor nothing is wrong with it.
    assert_eq!(codes(&check(backup.path(), id, &[])), Vec::<String>::new());
    assert_eq!(codes(&check(backup.path(), id, &early)), Vec::<String>::new());
    assert_eq!(codes(&check(backup.path(), id, &late)), ["anchor_beyond_tail", "anchor_beyond_tail"]);

    // Written anew from the genesis by whoever has all keys.
    let anew = tempfile::tempdir().unwrap();
    assert_eq!(begin(anew.path()).await, id);
    grow(anew.path(), "x").await;
    grow(anew.path(), "y").await;
    assert_eq!(codes(&check(anew.path(), id, &[])), Vec::<String>::new());
    assert_eq!(codes(&check(anew.path(), id, &early)), ["anchor_mismatch", "anchor_mismatch"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_anchor_is_no_fault_of_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let id = begin(dir.path()).await;
    let text = grow(dir.path(), "a").await;
    // Another root under the same signature.
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let first = if lines[2].starts_with('A') { "B" } else { "A" };
    lines[2].replace_range(..1, first);
    let forged = anchors(&lines.join("\n"));
    let other = anchors(&text.replace("ledger.example/test", "ledger.example/other"));
    for (kept, why) in [(forged, "does not verify"), (other, "another ledger")] {
        let report = check(dir.path(), id, &kept);
        assert_eq!((report.verdict(), report.exit()), (Verdict::NotAllChecked, 2), "{}", report.to_text());
        assert!(report.to_text().contains(why), "{}", report.to_text());
    }
    assert!(Anchor::parse("kept", "not a checkpoint").is_err());
    assert!(Anchor::read(Path::new("/nonexistent")).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_run_says_how_far_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let id = begin(dir.path()).await;
    grow(dir.path(), "a").await;
    let stop = |judged: u64, claimed: u64| judged < 10 && claimed > 20;
    let report = verify_path_with(dir.path(), Demands { trust: Some(id), progress: Some(&stop), ..Demands::default() });
    assert_eq!((report.verdict(), report.exit(), report.findings().len()), (Verdict::NotAllChecked, 2, 0));
    assert!(report.to_text().contains("stopped when asked to, after "), "{}", report.to_text());
}

/// Naming faults takes long on a large ledger: it stops too, in each of its passes, and what was found until then stays found.
#[tokio::test(flavor = "multi_thread")]
async fn naming_faults_stops_when_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let id = begin(dir.path()).await;
    grow(dir.path(), "a").await;
    let broken = support::tamper(dir.path(), "UPDATE entries SET recorded_at_us = recorded_at_us + 1 WHERE idx = 3");
    let times = std::sync::atomic::AtomicU64::new(0);
    let told = |_: u64, _: u64| {
        times.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        true
    };
    let trust = Some(id);
    let report = verify_path_with(broken.path(), Demands { trust, progress: Some(&told), ..Demands::default() });
    assert_eq!(report.exit(), 1);
    let calls = times.into_inner();
    assert!(calls >= 4, "two passes over each of two chains: {calls}");
    let mut named = 0;
    for stop in 0..calls {
        let left = std::sync::atomic::AtomicU64::new(stop);
        let told = |_: u64, _: u64| {
            use std::sync::atomic::Ordering::Relaxed;
            left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok()
        };
        let report = verify_path_with(broken.path(), Demands { trust, progress: Some(&told), ..Demands::default() });
        let found = report.faults() > 0;
        assert_eq!(report.exit(), if found { 1 } else { 2 }, "{stop}: {}", report.to_text());
        assert!(report.to_text().contains("stopped when asked to"), "{}", report.to_text());
        named += u64::from(found);
    }
    assert!(named > 0 && named < calls, "{named} of {calls}");
}
