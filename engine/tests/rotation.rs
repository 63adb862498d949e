//! Keys are rotated and revoked while several ledgers, as in several processes, write to all chains of one store.
#![allow(missing_docs)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use audit_verify::Demands;
use ledger_engine::archive::ExportOptions;
use ledger_engine::environment::{Environment, SystemEnvironment};
use ledger_engine::ledger::{Config, Enrolment, Ledger};
use ledger_engine::registry::{Key, Purpose};
use ledger_engine::retire::{Authorise, Authority, Retire};
use ledger_engine::signer::Signer;
use ledger_engine::store::Store;
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore};
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use support::{authorise, code, commit_key, create_line, create_order, list_sku, postgres, rotate, signer, verified};

/// A ledger that holds the genesis keys and the commit keys of these seeds.
async fn open(store: Arc<dyn Store>, seeds: &[u8]) -> Ledger {
    let config: Config = support::config(store);
    for seed in seeds {
        config.signers.add(Arc::new(signer(Purpose::Commit, *seed)));
    }
    Ledger::open(config).await.unwrap()
}

/// Kids of a chain's commits with the indexes at which they begin.
fn kids(ledger: &Ledger, chain: u32) -> Vec<(u64, String)> {
    let commits = ledger.store().commits(chain, 0, 10_000).unwrap();
    commits.into_iter().map(|c| (c.first_index, c.signatures[0].kid.clone())).collect()
}

/// Two ledgers write to four chains while a third rotates their key; nothing that was acknowledged is lost or broken.
async fn rotates_under_load(stores: [Arc<dyn Store>; 3]) -> Ledger {
    let [one, two, three] = stores;
    let (one, two, three) = (open(one, &[30, 31]).await, open(two, &[30, 31]).await, open(three, &[30, 31]).await);
    list_sku(&one, "s").await;
    let (one, two) = (Arc::new(one), Arc::new(two));
    let writing: Vec<_> = [(&one, "a"), (&two, "b")]
        .into_iter()
        .flat_map(|(ledger, name)| (0..8).map(move |writer| (Arc::clone(ledger), format!("{name}{writer}"))))
        .map(|(ledger, name)| {
            tokio::spawn(async move {
                for n in 0..20 {
                    create_order(&ledger, &format!("{name}-{n}"), "s").await;
                }
            })
        })
        .collect();
    rotate(&three, 2, 30).await.unwrap();
    rotate(&three, 30, 31).await.unwrap();
    for writer in writing {
        writer.await.unwrap();
    }
    // Somebody writes to every chain after it.
    for n in 0..40 {
        create_order(if n % 2 == 0 { &one } else { &two }, &format!("late-{n}"), "s").await;
    }
    let registry = three.registry();
    for seed in [2, 30] {
        let kid = commit_key(seed).kid;
        let cut = registry.record(&kid).unwrap().retired.clone().unwrap().cut;
        for chain in 0..4 {
            let cut = cut[chain as usize];
            assert!(kids(&three, chain).iter().all(|(first, k)| *k != kid || *first < cut), "{kid} beyond its cut");
        }
    }
    for chain in 0..4 {
        assert_eq!(kids(&three, chain).last().unwrap().1, commit_key(31).kid, "chain {chain}");
    }
    for n in 0..20 {
        assert_eq!(code(&three, &create_line(&format!("a0-{n}"), "s")).await, "repeated");
    }
    one.shutdown().await.unwrap();
    two.shutdown().await.unwrap();
    three
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_every_writer_of_the_embedded_store() {
    let dir = tempfile::tempdir().unwrap();
    support::create(dir.path(), 4).await.shutdown().await.unwrap();
    let store = || Arc::new(SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap()) as Arc<dyn Store>;
    let ledger = rotates_under_load([store(), store(), store()]).await;
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_every_writer_of_a_database() {
    let url = postgres::as_writer(&postgres::database());
    postgres::create(&url, 4).await.shutdown().await.unwrap();
    let store = || Arc::new(PostgresStore::open(PostgresOptions::new(&url)).unwrap()) as Arc<dyn Store>;
    let ledger = rotates_under_load([store(), store(), store()]).await;
    ledger.shutdown().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let export = dir.path().join("export");
    let options = ExportOptions { gzip: false, withhold_private: false, exported_at_us: 0, tool: "test".into() };
    ledger.export(options, &export).await.unwrap();
    verified(&export, &ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_the_new_key_writes_nothing_until_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = support::create(dir.path(), 2).await;
    list_sku(&ledger, "s").await;
    let size = || ledger.store().heads().unwrap().iter().map(|h| h.size()).sum::<u64>();
    rotate(&ledger, 2, 30).await.unwrap();
    let before = size();
    for n in 0..8 {
        assert_eq!(code(&ledger, &create_line(&format!("k{n}"), "s")).await, "SIGNING_UNAVAILABLE");
    }
    assert_eq!(size(), before);
    ledger.signers().add(Arc::new(signer(Purpose::Commit, 30)));
    for n in 0..8 {
        assert_eq!(code(&ledger, &create_line(&format!("k{n}"), "s")).await, "accepted");
    }
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_rotate_a_key_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    support::create(dir.path(), 2).await.shutdown().await.unwrap();
    let store = || Arc::new(SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap()) as Arc<dyn Store>;
    let (one, two) = (open(store(), &[30, 31]).await, open(store(), &[30, 31]).await);
    let (first, second) = tokio::join!(rotate(&one, 2, 30), rotate(&two, 2, 31));
    let codes = [first, second].map(|r| r.map_or_else(|e| e.code(), |_| "accepted"));
    assert!(codes == ["accepted", "KEY_REFUSED"] || codes == ["KEY_REFUSED", "accepted"], "{codes:?}");
    // A kid or a public key that was used before is refused, too.
    let kid = one.registry().current(Purpose::Commit).unwrap().kid.clone();
    let won = if kid == commit_key(30).kid { 30 } else { 31 };
    one.refresh_registry().await.unwrap();
    assert_eq!(rotate(&one, won, 2).await.unwrap_err().code(), "KEY_REFUSED");
    let same_kid = Key { kid: commit_key(2).kid, ..commit_key(40) };
    let retire = Retire::Rotate { old_kid: commit_key(won).kid, key: same_kid };
    assert_eq!(one.retire(retire, authorise(Some(40))).await.unwrap_err().code(), "KEY_REFUSED");
    one.shutdown().await.unwrap();
    two.shutdown().await.unwrap();
    verified(dir.path(), &one);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_leaves_another_and_its_doubtful_entries_uncovered() {
    let dir = tempfile::tempdir().unwrap();
    support::create(dir.path(), 2).await.shutdown().await.unwrap();
    let store = Arc::new(SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap());
    let ledger = open(store, &[30]).await;
    list_sku(&ledger, "s").await;
    for n in 0..8 {
        create_order(&ledger, &format!("k{n}"), "s").await;
    }
    let revoke = |compromised_since| Retire::Revoke {
        kid: commit_key(2).kid,
        reason: "found on a disk that was sold".into(),
        compromised_since,
    };
    // Without a successor nothing could be recorded any more.
    let refused = ledger.retire(revoke(None), authorise(None)).await.unwrap_err();
    assert_eq!(refused.code(), "KEY_REFUSED");
    assert!(refused.to_string().contains("last valid commit key"), "{refused}");
    let (key, incoming) = (commit_key(30), signer(Purpose::Commit, 30));
    let (revision, statement) = ledger.enrol_statement(&key, None).await.unwrap();
    let enrolment = Enrolment {
        justification: None,
        key,
        revision,
        governance_signature: signer(Purpose::Governance, 1).signature(&statement),
        possession_signature: incoming.signature(&statement).to_vec(),
    };
    ledger.enrol(enrolment).await.unwrap();
    // Beyond the chains' sizes nobody can have been compromised.
    assert_eq!(ledger.retire(revoke(Some(vec![1000, 1])), authorise(None)).await.unwrap_err().code(), "KEY_REFUSED");
    // Somebody else's signature in place of governance's changes nothing.
    let forged: Authorise = Box::new(|statement| Ok(Authority { governance: commit(statement), possession: None }));
    assert_eq!(ledger.retire(revoke(None), forged).await.unwrap_err().code(), "KEY_REFUSED");
    ledger.retire(revoke(Some(vec![2, 1])), authorise(None)).await.unwrap();
    create_order(&ledger, "after", "s").await;
    ledger.shutdown().await.unwrap();
    let report = audit_verify::verify_path_with(dir.path(), Demands { trust: Some(ledger.id()), ..Demands::default() });
    let text = report.to_text();
    assert_eq!(report.exit(), 2, "{text}");
    assert!(text.contains("commit-6a3803d5"), "{text}");
}

fn commit(statement: &[u8]) -> [u8; 64] {
    signer(Purpose::Commit, 2).signature(statement)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_rotations_verify() {
    let dir = tempfile::tempdir().unwrap();
    support::create(dir.path(), 2).await.shutdown().await.unwrap();
    let store = Arc::new(SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap());
    let ledger = open(store, &(100..=200).collect::<Vec<_>>()).await;
    list_sku(&ledger, "s").await;
    let mut old = 2;
    for new in 100..200 {
        rotate(&ledger, old, new).await.unwrap();
        create_order(&ledger, &format!("k{new}"), "s").await;
        old = new;
    }
    assert_eq!(ledger.registry().records().len(), 103);
    let last = (0..2).any(|chain| kids(&ledger, chain).last().unwrap().1 == commit_key(199).kid);
    assert!(last, "the last order is signed by the last key");
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
    assert_eq!(signer(Purpose::Commit, 199).public_key(), commit_key(199).public_key.ed25519().unwrap());
}

/// A clock that the test sets.
struct Clock(AtomicI64);

impl Clock {
    fn step_hours(&self, hours: i64) {
        self.0.fetch_add(hours * 3_600_000_000, Ordering::Relaxed);
    }
}

impl Environment for Clock {
    fn now_us(&self) -> i64 {
        self.0.fetch_add(1000, Ordering::Relaxed)
    }

    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        SystemEnvironment.random(bytes)
    }
}

/// Validity is by place, not by a clock: a clock that goes back behind the moment of a rotation, or far ahead, changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_steps_across_a_rotation_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    support::create(dir.path(), 1).await.shutdown().await.unwrap();
    let clock = Arc::new(Clock(AtomicI64::new(1_795_000_000_000_000)));
    let store = Arc::new(SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap());
    let config = Config { environment: Arc::clone(&clock) as Arc<dyn Environment>, ..support::config(store) };
    config.signers.add(Arc::new(signer(Purpose::Commit, 30)));
    let ledger = Ledger::open(config).await.unwrap();
    list_sku(&ledger, "s").await;
    create_order(&ledger, "before", "s").await;
    rotate(&ledger, 2, 30).await.unwrap();
    for (n, hours) in [-48, 24 * 365 * 20, -1].into_iter().enumerate() {
        clock.step_hours(hours);
        create_order(&ledger, &format!("k{n}"), "s").await;
    }
    let entries = ledger.store().entries(0, 0, 100).unwrap();
    assert!(entries.is_sorted_by_key(|e| e.header.recorded_at_us));
    let signed_by = kids(&ledger, 0);
    let cut = ledger.registry().record(&commit_key(2).kid).unwrap().retired.clone().unwrap().cut[0];
    assert!(signed_by.iter().all(|(first, kid)| (*kid == commit_key(30).kid) == (*first >= cut)), "{signed_by:?}");
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
}
