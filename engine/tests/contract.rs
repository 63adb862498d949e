//! What every store promises: one set of tests, run on the embedded store, on PostgreSQL, and on PostgreSQL with partitioned
//! tables. In PostgreSQL, a ledger is made and used by a role with the rights of `ledger_writer` and no others.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use ledger_engine::archive::ExportOptions;
use ledger_engine::domain::projection::{Cell, Row, TABLES};
use ledger_engine::ledger::Ledger;
use ledger_engine::merkle::{verify_consistency, verify_inclusion};
use ledger_engine::note::{Checkpoint, NoteKey};
use ledger_engine::store::{CheckpointRow, Entry, StoredCommit};
use ledger_engine::stream::{CaseId, Stream};
use support::{code, create_line, create_order, life, list_sku, postgres, send};

/// Where a ledger of a test lives.
enum Home {
    Directory(tempfile::TempDir),
    Database(String),
}

impl Home {
    async fn create(&self, chains: u32) -> Ledger {
        match self {
            Home::Directory(dir) => support::create(dir.path(), chains).await,
            Home::Database(url) => postgres::create(&postgres::as_writer(url), chains).await,
        }
    }

    async fn open(&self) -> Ledger {
        match self {
            Home::Directory(dir) => support::open(dir.path()).await,
            Home::Database(url) => postgres::open(&postgres::as_writer(url)).await,
        }
    }
}

macro_rules! on_every_store {
    ($($name:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Home::Directory(tempfile::tempdir().unwrap())).await;
            })*
        }
        mod postgres_plain {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Home::Database(super::postgres::database())).await;
            })*
        }
        mod postgres_partitioned {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Home::Database(super::postgres::partitioned_database())).await;
            })*
        }
    };
}

on_every_store! { an_order_goes_from_creation_to_download refusals_have_codes_and_leave_nothing one_hundred_retries_make_one_order many_callers_on_several_chains checkpoints_and_proofs_verify two_writers_share_a_ledger a_refusal_does_not_rest_on_yesterday streams_of_many_chains retries_after_a_restart erased_documents_leave_the_store what_is_stored_is_confirmed_and_projections_are_made_again }

async fn an_order_goes_from_creation_to_download(home: Home) {
    let ledger = home.create(1).await;
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

async fn refusals_have_codes_and_leave_nothing(home: Home) {
    let ledger = home.create(1).await;
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

async fn one_hundred_retries_make_one_order(home: Home) {
    let ledger = Arc::new(home.create(1).await);
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
    let ledger = home.open().await;
    let again = send(&ledger, &create_line("ann", "s")).await.unwrap();
    assert!(again.repeated);
    assert_eq!(again.entries, answers[0].entries);
}

async fn many_callers_on_several_chains(home: Home) {
    let ledger = Arc::new(home.create(3).await);
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

async fn checkpoints_and_proofs_verify(home: Home) {
    let ledger = home.create(1).await;
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
    let key = ledger.genesis().checkpoint_key.public_key.ed25519().unwrap();
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

async fn two_writers_share_a_ledger(home: Home) {
    let first = Arc::new(home.create(1).await);
    list_sku(&first, "s").await;
    let second = Arc::new(home.open().await);
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

/// Many at once, so that the writer asks for them together, between commands that are new.
/// Of two processes, each remembers an order as it was before the other changed it.
async fn a_refusal_does_not_rest_on_yesterday(home: Home) {
    let first = home.create(1).await;
    list_sku(&first, "s").await;
    let second = home.open().await;
    let order = create_order(&first, "k", "s").await;
    for (n, pair) in life(&order).chunks(2).enumerate() {
        let (ahead, behind) = if n % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let refused = code(behind, &pair[1]).await;
        assert!(matches!(refused, "ILLEGAL_TRANSITION" | "DELIVERY_NOT_FOUND"), "{refused}: {}", pair[1]);
        send(ahead, &pair[0]).await.unwrap();
        assert_eq!(code(behind, &pair[1]).await, "accepted", "{}", pair[1]);
    }
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

async fn retries_after_a_restart(home: Home) {
    let ledger = home.create(2).await;
    list_sku(&ledger, "s").await;
    let mut lines = Vec::new();
    for i in 0..20 {
        let line = create_line(&format!("k{i}"), "s");
        let created = send(&ledger, &line).await.unwrap();
        let pay = life(&created.case.unwrap().to_string()).remove(0);
        let paid = send(&ledger, &pay).await.unwrap();
        lines.extend([(line, Some(created)), (pay, Some(paid)), (create_line(&format!("new{i}"), "s"), None)]);
    }
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let ledger = Arc::new(home.open().await);
    let tasks: Vec<_> = lines
        .into_iter()
        .map(|(line, before)| {
            let ledger = Arc::clone(&ledger);
            tokio::spawn(async move { (send(&ledger, &line).await.unwrap(), before) })
        })
        .collect();
    for task in tasks {
        let (answer, before) = task.await.unwrap();
        assert_eq!(answer.repeated, before.is_some());
        assert!(before.is_none_or(|before| before.entries == answer.entries));
    }
    let another = create_line("k3", "other");
    assert_eq!(code(&ledger, &another).await, "IDEMPOTENCY_MISMATCH");
    assert!(ledger.check_projections().await.unwrap().is_empty());
}

async fn streams_of_many_chains(home: Home) {
    let ledger = home.create(4).await;
    list_sku(&ledger, "s").await;
    let mut chains = std::collections::BTreeSet::new();
    for i in 0..12 {
        let order = create_order(&ledger, &format!("k{i}"), "s").await;
        let case = CaseId::parse(&order).unwrap();
        chains.insert(case.route(4));
        assert_eq!(ledger.read_order(case).await.unwrap().len(), 1);
    }
    assert_eq!(chains.len(), 4);
    ledger.checkpoint().await.unwrap();
    assert_eq!(ledger.read_stream(Stream::Heads).await.unwrap().len(), 1);
    assert_eq!(ledger.read_stream(Stream::Chain(3)).await.unwrap().len(), 1);
}

async fn erased_documents_leave_the_store(home: Home) {
    let ledger = home.create(1).await;
    list_sku(&ledger, "s").await;
    let order = send(&ledger, &create_line("ann", "s")).await.unwrap();
    let index = order.entries[0].index;
    assert!(ledger.store().private(0, index).unwrap().is_some());
    let case = order.case.unwrap();
    let erase =
        format!(r#"{{"command":"subject.erase","actor":"service:dpo","order_id":"{case}","reason":"request"}}"#);
    send(&ledger, &erase).await.unwrap();
    assert_eq!(ledger.store().private(0, index).unwrap(), None);
}

async fn what_is_stored_is_confirmed_and_projections_are_made_again(home: Home) {
    let ledger = home.create(2).await;
    list_sku(&ledger, "s").await;
    let order = create_order(&ledger, "ann", "s").await;
    for line in life(&order) {
        send(&ledger, &line).await.unwrap();
    }
    ledger.checkpoint().await.unwrap();
    for head in ledger.store().heads().unwrap() {
        assert!(ledger.store().confirm(head.chain, head.size(), &head.hash).unwrap());
        assert!(!ledger.store().confirm(head.chain, head.size() + 1, &head.hash).unwrap());
    }
    assert!(ledger.rebuild().await.unwrap() > 0);
    assert!(ledger.check_projections().await.unwrap().is_empty());
}

/// All that a ledger keeps, and the files of its export.
#[derive(Debug, PartialEq)]
struct Kept {
    entries: Vec<Entry>,
    commits: Vec<StoredCommit>,
    checkpoints: Vec<CheckpointRow>,
    rows: Vec<Vec<Row>>,
    files: BTreeMap<String, Vec<u8>>,
}

async fn kept(ledger: &Ledger) -> Kept {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("export");
    let options =
        ExportOptions { gzip: false, withhold_private: false, exported_at_us: 0, tool: "ledger test".to_owned() };
    ledger.export(options, &to).await.unwrap();
    let files = std::fs::read_dir(&to).unwrap().map(|file| {
        let file = file.unwrap();
        (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())
    });
    let files = files.collect();
    let store = ledger.store();
    Kept {
        entries: store.entries(0, 0, 100).unwrap(),
        commits: store.commits(0, 0, 100).unwrap(),
        checkpoints: store.checkpoints(0, 0, 100).unwrap(),
        rows: TABLES.iter().map(|table| store.rows(table, 0).unwrap()).collect(),
        files,
    }
}

/// The same commands with the same time, randomness and keys give the same bytes on every store, and the same export.
#[tokio::test(flavor = "multi_thread")]
async fn every_store_keeps_the_same() {
    let mut runs = Vec::new();
    let directory = || Home::Directory(tempfile::tempdir().unwrap());
    let homes = [
        directory(),
        directory(),
        Home::Database(postgres::database()),
        Home::Database(postgres::partitioned_database()),
    ];
    for home in homes {
        let ledger = home.create(1).await;
        list_sku(&ledger, "s").await;
        for key in ["ann", "bob"] {
            let order = create_order(&ledger, key, "s").await;
            for line in life(&order) {
                send(&ledger, &line).await.unwrap();
            }
        }
        ledger.checkpoint().await.unwrap();
        runs.push(kept(&ledger).await);
    }
    assert_eq!((runs[0].entries.len(), runs[0].checkpoints.len()), (20, 1));
    runs.iter().for_each(|run| assert_eq!(run, &runs[0]));
}
