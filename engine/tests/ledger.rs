//! What a ledger promises its callers, on the embedded store.
#![allow(missing_docs)]

mod support;

use std::sync::Arc;

use ledger_engine::domain::command::Command;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use support::{code, create, create_line, create_order, life, list_sku, open, send};

/// Several chains, many callers: the same commands give gap-free chains, and a reopened ledger goes on where it stopped.
/// A ledger that does not continue its last checkpoint is not written to.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_history_is_not_continued() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let db = rusqlite::Connection::open(dir.path().join("ledger.db")).unwrap();
    db.execute_batch("DROP TRIGGER checkpoints_no_update; UPDATE checkpoints SET root = zeroblob(32);").unwrap();
    drop(db);
    let store = Arc::new(SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap());
    let error = ledger_engine::ledger::Ledger::open(support::config(store)).await.map(drop).unwrap_err();
    assert_eq!(error.code(), "HISTORY_WENT_BACK", "{error}");
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
    let foreign = ledger_engine::signer::LocalSigner::from_seed(ledger_engine::registry::Purpose::Commit, &[77; 32]);
    config.signers = Arc::new(ledger_engine::signer::keyring::Keyring::new([Arc::new(foreign) as Arc<_>]));
    let error = ledger_engine::ledger::Ledger::open(config).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("not a valid key of this ledger"), "{error}");
}
