//! What a ledger promises its callers, on the embedded store.
#![allow(missing_docs)]

mod support;

use std::sync::Arc;

use ledger_engine::domain::command::Command;
use ledger_engine::domain::projection::Cell;
use ledger_engine::merkle::{verify_consistency, verify_inclusion};
use ledger_engine::note::{Checkpoint, NoteKey};
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use ledger_engine::stream::{CaseId, Stream};
use support::{code, create, create_line, create_order, life, list_sku, open, send};

#[tokio::test(flavor = "multi_thread")]
async fn an_order_goes_from_creation_to_download() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let order = create_order(&ledger, "ann", "s").await;
    for line in life(&order) {
        assert_eq!(code(&ledger, &line).await, "accepted", "{line}");
    }
    let case = CaseId::parse(&order).unwrap();
    let row = ledger.order(case).await.unwrap().unwrap();
    assert_eq!(row.cells[3], Cell::Text("finalized".into()));
    let entries = ledger.read_order(case).await.unwrap();
    assert_eq!(entries.len(), 9);
    assert_eq!(ledger.read_stream(Stream::Delivery(case, 1)).await.unwrap().len(), 4);
    // A person never appears in a body.
    assert!(entries.iter().all(|e| !String::from_utf8_lossy(&e.body).contains("example.org")));
    for entry in &entries {
        let found = ledger.read_event(entry.header.id()).await.unwrap();
        assert_eq!(found.as_ref(), Some(entry));
    }
    assert_eq!(ledger.check_projections().await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_codes_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let order = create_order(&ledger, "ann", "s").await;
    let before = ledger.store().heads().unwrap();
    let of = |command: &str, rest: &str| {
        format!(r#"{{"command":"{command}","actor":"service:m","order_id":"{order}"{rest}}}"#)
    };
    let nobody = "00".repeat(16);
    let long = "x".repeat(70_000);
    let cases = [
        (of("order.settle", r#","ledger_proof_id":"x""#), "ILLEGAL_TRANSITION"),
        (of("order.settle", r#","ledger_proof_id":"x","expected_revision":7"#), "REVISION_CONFLICT"),
        (of("order.cancel", r#","reason":"","expected_revision":"no_stream""#), "REVISION_CONFLICT"),
        (of("delivery.ready", ""), "DELIVERY_NOT_FOUND"),
        (of("order.cancel", r#","reason":"r""#).replace(&order, &nobody), "ORDER_NOT_FOUND"),
        (create_line("bob", "unknown"), "SKU_NOT_FOUND"),
        (create_line("ann", "other"), "IDEMPOTENCY_MISMATCH"),
        (create_line("ann", "s").replace('}', &format!(r#","private":{{"x":"{long}"}}}}"#)), "BODY_TOO_LARGE"),
        (create_line("cid", "s").replace("marketplace", "buyer"), "INVALID_COMMAND"),
    ];
    for (line, expected) in &cases {
        assert_eq!(code(&ledger, line).await, *expected, "{line}");
    }
    assert_eq!(ledger.store().heads().unwrap(), before);
    assert_eq!(code(&ledger, &create_line("ann", "s")).await, "repeated");
    // A SKU's case named as an order is not an order.
    let sku = CaseId::of_sku("s").to_string();
    assert_eq!(code(&ledger, &of("order.cancel", r#","reason":"r""#).replace(&order, &sku)).await, "ORDER_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hundred_retries_make_one_order() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::new(create(dir.path(), 1).await);
    list_sku(&ledger, "s").await;
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let ledger = Arc::clone(&ledger);
            tokio::spawn(async move { send(&ledger, &create_line("ann", "s")).await.unwrap() })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    assert_eq!(answers.iter().filter(|a| !a.repeated).count(), 1);
    assert!(answers.iter().all(|a| a.entries == answers[0].entries));
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let ledger = open(dir.path()).await;
    let again = send(&ledger, &create_line("ann", "s")).await.unwrap();
    assert!(again.repeated);
    assert_eq!(again.entries, answers[0].entries);
}

/// Several chains, many callers: the same commands give gap-free chains, and a reopened ledger goes on where it stopped.
#[tokio::test(flavor = "multi_thread")]
async fn many_callers_on_several_chains() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::new(create(dir.path(), 3).await);
    list_sku(&ledger, "s").await;
    for round in 0..2 {
        let tasks: Vec<_> = (0..60)
            .map(|i| {
                let ledger = Arc::clone(&ledger);
                tokio::spawn(async move {
                    let order = create_order(&ledger, &format!("k{round}-{i}"), "s").await;
                    for line in life(&order) {
                        send(&ledger, &line).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        ledger.checkpoint().await.unwrap();
    }
    let heads = ledger.store().heads().unwrap();
    // 120 orders of 9 entries, the SKU, three genesis entries, two chain.heads.
    assert_eq!(heads.iter().map(|h| h.size()).sum::<u64>(), 120 * 9 + 1 + 3 + 2);
    for head in &heads {
        let entries = ledger.read_chain(head.chain, 0, 10_000).await.unwrap();
        let mut prev = [0; 32];
        for (i, entry) in entries.iter().enumerate() {
            assert_eq!((entry.header.index, entry.header.prev_hash), (i as u64, prev));
            prev = entry.entry_hash.0;
        }
        assert_eq!(prev, head.hash.0);
    }
    assert!(ledger.check_projections().await.unwrap().is_empty());
    ledger.rebuild().await.unwrap();
    assert!(ledger.check_projections().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_and_proofs_verify() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let mut notes = Vec::new();
    for i in 0..70 {
        let order = create_order(&ledger, &format!("k{i}"), "s").await;
        for line in life(&order) {
            send(&ledger, &line).await.unwrap();
        }
        if i % 23 == 0 {
            notes.extend(ledger.checkpoint().await.unwrap());
        }
    }
    notes.extend(ledger.checkpoint().await.unwrap());
    let key = ledger.genesis().checkpoint_key.public_key;
    let checkpoints: Vec<Checkpoint> = notes
        .iter()
        .map(|note| {
            let checkpoint = Checkpoint::parse(&note.text).unwrap();
            let key = NoteKey { name: checkpoint.origin.clone(), public_key: key };
            note.verify(&[key]).unwrap();
            checkpoint
        })
        .collect();
    let last = checkpoints.last().unwrap();
    assert_eq!(last.size, 70 * 9 + 2);
    for old in &checkpoints {
        let path = ledger.consistency_proof(0, old.size, last.size).await.unwrap();
        assert!(verify_consistency(old.size, last.size, &path, &old.root, &last.root));
    }
    for entry in ledger.read_chain(0, 0, 1000).await.unwrap() {
        let path = ledger.inclusion_proof(0, entry.header.index, last.size).await.unwrap();
        assert!(verify_inclusion(&entry.header.leaf_hash(), entry.header.index, last.size, &path, &last.root));
    }
    // Asked again without news, the same note comes back.
    assert_eq!(ledger.checkpoint().await.unwrap().last(), notes.last());
}

/// A ledger that was rolled back to an earlier file does not get a checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_history_stops_the_checkpoint_signer() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let db = rusqlite::Connection::open(dir.path().join("ledger.db")).unwrap();
    db.execute_batch("DROP TRIGGER checkpoints_no_update; UPDATE checkpoints SET root = zeroblob(32);").unwrap();
    drop(db);
    let ledger = open(dir.path()).await;
    let error = ledger.checkpoint().await.unwrap_err().to_string();
    assert!(error.contains("HISTORY_WENT_BACK"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_private_documents_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let line = create_line("ann", "s").replace('}', r#","private":{"city":"Quokkaville"}}"#);
    let order = send(&ledger, &line).await.unwrap();
    let index = order.entries[0].index;
    let document = ledger.store().private(0, index).unwrap().unwrap();
    assert!(String::from_utf8(document).unwrap().contains("Quokkaville"));
    let erase = format!(
        r#"{{"command":"subject.erase","actor":"service:dpo","order_id":"{}","reason":"request"}}"#,
        order.case.unwrap()
    );
    send(&ledger, &erase).await.unwrap();
    assert_eq!(ledger.store().private(0, index).unwrap(), None);
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let bytes = std::fs::read(dir.path().join("ledger.db")).unwrap();
    assert!(!bytes.windows(11).any(|w| w == b"Quokkaville"), "the text survives in free pages");
}

/// Two open ledgers on one file, as two processes would have: both write, nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn two_writers_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let first = Arc::new(create(dir.path(), 1).await);
    list_sku(&first, "s").await;
    let second = Arc::new(open(dir.path()).await);
    let mut tasks = Vec::new();
    for (name, ledger) in [("a", &first), ("b", &second)] {
        for i in 0..40 {
            let ledger = Arc::clone(ledger);
            tasks.push(tokio::spawn(async move {
                let order = create_order(&ledger, &format!("{name}{i}"), "s").await;
                for line in life(&order) {
                    send(&ledger, &line).await.unwrap();
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(first.store().heads().unwrap()[0].size(), 80 * 9 + 2);
    assert!(second.check_projections().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let options = SqliteOptions { pages_max: Some(90), ..SqliteOptions::default() };
    let store = SqliteStore::open(dir.path(), options).unwrap();
    let ledger = ledger_engine::ledger::Ledger::open(support::config(Arc::new(store))).await.unwrap();
    let mut accepted = 0;
    let error = loop {
        match send(&ledger, &create_line(&format!("k{accepted}"), "s")).await {
            Ok(_) => accepted += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(error.code(), "STORE_UNAVAILABLE");
    assert!(error.to_string().contains("full"), "{error}");
    drop(ledger);
    let ledger = open(dir.path()).await;
    assert_eq!(ledger.store().heads().unwrap()[0].size(), accepted + 2);
    assert_eq!(code(&ledger, &create_line("k0", "s")).await, "repeated");
    assert_eq!(code(&ledger, &create_line(&format!("k{accepted}"), "s")).await, "accepted");
}

/// The same commands with the same time, randomness and keys give the same bytes, whatever the grouping.
#[tokio::test(flavor = "multi_thread")]
async fn entries_do_not_depend_on_the_run() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let ledger = create(dir.path(), 1).await;
        list_sku(&ledger, "s").await;
        let order = create_order(&ledger, "ann", "s").await;
        for line in life(&order) {
            send(&ledger, &line).await.unwrap();
        }
        runs.push(ledger.read_chain(0, 0, 100).await.unwrap());
    }
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn commands_refuse_what_they_do_not_know() {
    let code = |line: &str| Command::parse(line.as_bytes()).unwrap_err().code();
    assert_eq!(code("{"), "INVALID_JSON");
    assert_eq!(code("[]"), "INVALID_COMMAND");
    assert_eq!(code("{}"), "INVALID_COMMAND");
    assert_eq!(code(r#"{"command":"order.steal"}"#), "UNKNOWN_COMMAND");
    assert_eq!(code(r#"{"command":"delivery.ready","actor":"a","order_id":"x"}"#), "INVALID_COMMAND");
    assert_eq!(code(r#"{"command":"delivery.ready","actor":"a","order_id":"ref:x","more":1}"#), "INVALID_COMMAND");
    assert_eq!(
        code(
            r#"{"command":"order.refund","actor":"a","order_id":"ref:x","reason":"","refund":{"amount":1.5,"currency":"EUR","scale":2}}"#
        ),
        "INVALID_JSON"
    );
    assert_eq!(
        code(r#"{"command":"order.cancel","actor":"service:A","order_id":"ref:x","reason":""}"#),
        "INVALID_COMMAND"
    );
    assert_eq!(code(&format!("{{\"x\":\"{}\"}}", "y".repeat(300_000))), "BODY_TOO_LARGE");
}

/// Opening says what is wrong and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn opening_the_wrong_thing_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let open_text = |path: &std::path::Path| match SqliteStore::open(path, SqliteOptions::default()) {
        Ok(_) => String::new(),
        Err(e) => e.to_string(),
    };
    assert!(open_text(dir.path()).contains("ledger init"));
    std::fs::write(dir.path().join("ledger.db"), b"not a database, but long enough to be taken for one".repeat(100))
        .unwrap();
    assert!(open_text(dir.path()).contains("damaged"), "{}", open_text(dir.path()));
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let store = SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap();
    let mut config = support::config(Arc::new(store));
    config.commit_signer =
        Arc::new(ledger_engine::signer::LocalSigner::from_seed(ledger_engine::registry::Purpose::Commit, &[77; 32]));
    let error = ledger_engine::ledger::Ledger::open(config).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("not a valid key of this ledger"), "{error}");
}
