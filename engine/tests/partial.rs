//! Batches judged one by one and joined: the same verdict as of the whole archive, and no seam that can be tampered with.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use audit_verify::{Anchor, Demands, Report, Verdict, combine, verify_batches, verify_path, verify_path_with};
use ledger_engine::archive::place::{Archive, DirectoryArchive};
use ledger_engine::hash::Hash;
use ledger_engine::ledger::Ledger;
use ledger_engine::registry::Purpose;
use support::{
    EXPORT, batch_options, copy_dir, create_order, exporting, fixtures, life, list_sku, rotate, send, signer,
};

const LOCATION: &str = "archive of the test";

async fn export(ledger: &Ledger, root: &Path) {
    let archive: Arc<dyn Archive> = Arc::new(DirectoryArchive::open(root, Some(LOCATION.into())).unwrap());
    ledger.export_batch(archive, batch_options(), Box::new(|_| {})).await.unwrap();
}

/// Five batches over which orders go on: each has a step of every one, and begins one more. SKUs are listed again and again.
async fn go_on(ledger: &Ledger, root: &Path, batches: std::ops::Range<usize>) {
    let mut open: Vec<(Vec<String>, usize)> = Vec::new();
    for day in batches {
        if day > 0 {
            send(ledger, r#"{"command":"sku.withdraw","actor":"service:catalog","sku_id":"s"}"#).await.unwrap();
        }
        list_sku(ledger, "s").await;
        for n in 0..4 {
            let order = create_order(ledger, &format!("{day}-{n}"), "s").await;
            open.push((life(&order), 0));
        }
        for (steps, at) in &mut open {
            for line in steps.iter().skip(*at).take(2) {
                send(ledger, line).await.unwrap();
            }
            *at += 2;
        }
        export(ledger, root).await;
    }
}

/// What a report says, but for the name of what was judged.
fn said(report: &Report) -> serde_json::Value {
    let mut json = report.to_json();
    let object = json.as_object_mut().unwrap();
    for name in ["source", "export", "kind", "part"] {
        object.remove(name);
    }
    json
}

/// Judges every batch by itself, the last one first, and joins them in any order.
fn apart(root: &Path, trust: Option<Hash>, to: &Path) -> (Vec<PathBuf>, Report) {
    let demands = Demands { trust, ..Demands::default() };
    let source = root.to_string_lossy();
    for number in (1..=9).rev() {
        verify_batches(&source, &(number..=number), Some(to), demands);
    }
    let mut paths: Vec<PathBuf> = std::fs::read_dir(to).into_iter().flatten().map(|f| f.unwrap().path()).collect();
    paths.sort_by_key(|path| path.to_string_lossy().bytes().rev().map(u64::from).sum::<u64>());
    let report = combine(&paths, demands);
    (paths, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_joined_say_what_the_whole_says() {
    for chains in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let (root, parts) = (dir.path().join("archive"), dir.path().join("parts"));
        let ledger = exporting(&dir.path().join("ledger"), chains).await;
        let trust = Some(ledger.id());
        go_on(&ledger, &root, 0..2).await;
        // The key of commits is another one from here on.
        ledger.signers().add(Arc::new(signer(Purpose::Commit, 41)));
        rotate(&ledger, 2, 41).await.unwrap();
        go_on(&ledger, &root, 2..5).await;
        ledger.shutdown().await.unwrap();

        let whole = verify_path(&root, trust);
        assert_eq!((whole.exit(), whole.reason()), (0, ""), "{}", whole.to_text());
        let (paths, joined) = apart(&root, trust, &parts);
        assert_eq!(paths.len(), 5);
        assert_eq!(joined.verdict(), Verdict::Verified, "{}", joined.to_text());
        assert_eq!(said(&joined), said(&whole));
        assert_eq!(joined.part().unwrap().kind, "summaries");

        // What was kept counts, where a batch ends there.
        let anchors = Anchor::parse("kept", &whole.anchor().unwrap()).unwrap();
        let anchored = combine(&paths, Demands { trust, anchors: &anchors, ..Demands::default() });
        assert_eq!(anchored.exit(), 0, "{}", anchored.to_text());
        assert!(anchored.chains().iter().all(|c| c.anchored == Some(c.entries)));
        // The checkpoint of chain 0 alone covers of the others what `chain.heads` says, as in the whole archive.
        let first = Demands { trust, anchors: &anchors[..1], ..Demands::default() };
        let covered = |report: Report| report.chains().iter().map(|c| c.anchored).collect::<Vec<_>>();
        let whole_covered = covered(verify_path_with(&root, first));
        assert!(whole_covered.iter().all(Option::is_some), "{whole_covered:?}");
        assert_eq!(covered(combine(&paths, first)), whole_covered);

        // Some of them are judged as far as they go, and say what that leaves out.
        let some = verify_batches(&root.to_string_lossy(), &(3..=4), None, Demands { trust, ..Demands::default() });
        assert_eq!(some.exit(), 0, "{}", some.to_text());
        let part = some.part().unwrap();
        assert!(part.checked[0].contains("batches 3 to 4"), "{part:?}");
        assert!(part.not_covered.iter().any(|line| line.contains("from before was allowed")), "{part:?}");

        // Without the id of the ledger nobody knows whose it is; with another one it is not the one.
        assert_eq!(combine(&paths, Demands::default()).verdict(), Verdict::IdentityNotProven);
        let other = combine(&paths, Demands { trust: Some(Hash([7; 32])), ..Demands::default() });
        assert_eq!((other.exit(), other.codes()), (1, vec!["ledger_id_mismatch".to_owned()]));

        // A summary that is missing is a batch that is missing.
        let fewer: Vec<PathBuf> =
            paths.iter().filter(|p| !p.to_string_lossy().contains("-00000003-")).cloned().collect();
        let report = combine(&fewer, Demands { trust, ..Demands::default() });
        assert_eq!((report.exit(), report.codes()), (1, vec!["export_batch_missing".to_owned()]));
        // A job that ran twice is no fault.
        let twice: Vec<PathBuf> = paths.iter().chain(&paths[..2]).cloned().collect();
        assert_eq!(said(&combine(&twice, Demands { trust, ..Demands::default() })), said(&whole));

        // A summary that was damaged or cut off says so, wherever it is.
        let bytes = std::fs::read(&paths[0]).unwrap();
        for at in (0..bytes.len()).step_by(bytes.len() / 97 + 1) {
            for changed in [[&bytes[..at], &[bytes[at] ^ 1], &bytes[at + 1..]].concat(), bytes[..at].to_vec()] {
                std::fs::write(&paths[0], &changed).unwrap();
                let report = combine(&paths, Demands { trust, ..Demands::default() });
                assert_eq!(report.verdict(), Verdict::NotChecked, "{at} {}", report.to_text());
                assert!(report.reason().contains("write it again"), "{at} {}", report.reason());
            }
        }
    }
}

/// Two ledgers that went on from one history, with the same keys: each batch is right by itself, and they do not fit together.
#[tokio::test(flavor = "multi_thread")]
async fn batches_of_two_histories_do_not_join() {
    let dir = tempfile::tempdir().unwrap();
    let (root, parts) = (dir.path().join("archive"), dir.path().join("parts"));
    let place = dir.path().join("ledger");
    let ledger = exporting(&place, 1).await;
    let trust = Some(ledger.id());
    go_on(&ledger, &root, 0..1).await;
    ledger.shutdown().await.unwrap();
    let copied = dir.path().join("copied");
    copy_dir(&place, &copied);
    let forked = dir.path().join("forked");
    copy_dir(&root, &forked);
    for (place, root, days) in [(&place, &root, 1..3), (&copied, &forked, 5..7)] {
        let ledger = support::open(place).await;
        ledger.signers().add(Arc::new(signer(Purpose::Export, EXPORT)));
        go_on(&ledger, root, days).await;
        ledger.shutdown().await.unwrap();
    }
    let (paths, joined) = apart(&root, trust, &parts);
    assert_eq!(joined.exit(), 0, "{}", joined.to_text());
    let other = dir.path().join("other");
    let (forked, joined) = apart(&forked, trust, &other);
    assert_eq!(joined.exit(), 0, "{}", joined.to_text());
    let number = |n: u64| move |p: &&PathBuf| p.to_string_lossy().contains(&format!("-{n:08}-"));
    let mixed: Vec<PathBuf> =
        [(1, &paths), (2, &paths), (3, &forked)].map(|(n, of)| of.iter().find(number(n)).unwrap().clone()).to_vec();
    let report = combine(&mixed, Demands { trust, ..Demands::default() });
    assert_eq!(report.exit(), 1, "{}", report.to_text());
    assert!(report.codes().iter().all(|code| code == "export_manifest_mismatch"), "{}", report.to_text());
    // Both of one number are one too many.
    let both: Vec<PathBuf> = paths.iter().chain(forked.iter().filter(number(3))).cloned().collect();
    assert_eq!(combine(&both, Demands { trust, ..Demands::default() }).exit(), 1);
}

/// Every archive of the fixtures gets the verdict that it gets as a whole, and where something is wrong by itself, by the same names.
#[test]
fn archives_of_the_fixtures_get_their_verdicts() {
    let mut wrong = Vec::new();
    for folder in ["valid", "broken"] {
        for found in std::fs::read_dir(fixtures().join(folder).join("archives")).unwrap() {
            let path = found.unwrap().path();
            if !path.is_dir() {
                continue;
            }
            let expect = std::fs::read(path.with_extension("expect.json")).unwrap();
            let expect: serde_json::Value = serde_json::from_slice(&expect).unwrap();
            let trust = expect["trust"].as_str().and_then(Hash::from_hex);
            let parts = tempfile::tempdir().unwrap();
            let (_, report) = apart(&path, trust, parts.path());
            let whole: Vec<String> = serde_json::from_value(expect["findings"].clone()).unwrap();
            let codes = report.codes();
            // The archive as it was when a batch was the last may end elsewhere; what is wrong is named by one of its names.
            let named = codes.is_empty() || codes.iter().any(|code| whole.contains(code));
            if Some(u64::from(report.exit())) != expect["exit"].as_u64()
                || !named
                || codes.is_empty() != whole.is_empty()
            {
                wrong.push(format!("{}: expected {whole:?}\n{}", path.display(), report.to_text()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
