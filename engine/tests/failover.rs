//! A primary with a synchronous standby: the primary dies, the standby is promoted, and writers find it by a URL with both hosts.
//! Every acknowledged event is there, once.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ledger_engine::ledger::{Appended, Ledger};
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore};
use support::{config, create_line, create_order, genesis, list_sku, postgres, send};
use test_servers::Server;

/// A primary whose commits wait for its standby, with a ledger's database on both.
struct Pair {
    primary: Server,
    standby: Server,
    /// The database on the primary.
    url: String,
}

impl Pair {
    fn start(settings: &str) -> Pair {
        let primary = Server::start_durable(settings);
        let url = primary.database();
        postgres::migrate_away(&url);
        let standby = primary.standby("s1", settings);
        primary.wait_for_standby("s1");
        Pair { primary, standby, url }
    }

    fn database(&self) -> &str {
        self.url.rsplit('/').next().unwrap()
    }

    /// Names both servers; whichever accepts writes is meant.
    fn both(&self) -> String {
        let [first, second] = [&self.primary, &self.standby].map(|s| s.host());
        format!("postgres://postgres@{first},{second}/{}", self.database())
    }

    async fn create(&self, chains: u32) -> Ledger {
        Ledger::create(config(self.store()), genesis(chains)).await.unwrap()
    }

    fn store(&self) -> Arc<PostgresStore> {
        let options = PostgresOptions { connect_timeout: Duration::from_secs(2), ..postgres::options(&self.both()) };
        Arc::new(PostgresStore::open(options).unwrap())
    }

    async fn open(&self) -> Ledger {
        Ledger::open(config(self.store())).await.unwrap()
    }

    async fn verify_standby(&self, ledger: &Ledger) {
        postgres::verify(&self.standby.url_of("postgres", self.database()), ledger.id()).await;
    }
}

/// Backends whose commit waits for the standby.
const WAITING: &str = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Sends until it is answered; an outage is no answer.
async fn send_until_answered(ledger: &Ledger, line: &str) -> Appended {
    let begun = Instant::now();
    loop {
        match send(ledger, line).await {
            Ok(appended) => return appended,
            Err(e) => assert!(matches!(e.code(), "STORE_UNAVAILABLE" | "OUTCOME_UNKNOWN"), "{e}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no answer: {line}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_is_killed_under_load() {
    let pair = Arc::new(in_background(|| Pair::start("")).await);
    let ledger = Arc::new(pair.create(2).await);
    list_sku(&ledger, "s").await;
    let answers: Arc<Mutex<BTreeMap<String, Appended>>> = Arc::default();
    let tasks: Vec<_> = (0..32)
        .map(|i| {
            let (ledger, answers) = (Arc::clone(&ledger), Arc::clone(&answers));
            tokio::spawn(async move {
                for n in 0..30 {
                    let line = create_line(&format!("k{i}-{n}"), "s");
                    let answer = send_until_answered(&ledger, &line).await;
                    answers.lock().unwrap().insert(line, answer);
                }
            })
        })
        .collect();
    // In the middle of it.
    while answers.lock().unwrap().len() < 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let failing = Arc::clone(&pair);
    in_background(move || {
        failing.primary.kill();
        failing.standby.promote();
    })
    .await;
    for task in tasks {
        task.await.unwrap();
    }
    let heads = ledger.store().heads().unwrap();
    assert_eq!(heads.iter().map(|h| h.size()).sum::<u64>(), 2 + 1 + 32 * 30);
    let answers = std::mem::take(&mut *answers.lock().unwrap());
    for (line, answer) in &answers {
        let again = send(&ledger, line).await.unwrap();
        assert!(again.repeated, "lost {line}");
        assert_eq!(again.entries, answer.entries, "{line}");
    }
    pair.verify_standby(&ledger).await;
}

/// The standby is away, an administrator cancels the commit that waits for it, then the primary dies. The server answered that
/// commit with success and a warning, and it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_wait_was_cancelled_is_not_acknowledged() {
    let pair = Arc::new(in_background(|| Pair::start("")).await);
    let ledger = Arc::new(pair.create(1).await);
    list_sku(&ledger, "s").await;
    let shared = Arc::clone(&pair);
    in_background(move || shared.standby.crash()).await;
    let sending = Arc::clone(&ledger);
    let answer = tokio::spawn(async move { send(&sending, &create_line("ann", "s")).await });
    let shared = Arc::clone(&pair);
    in_background(move || {
        let primary = &shared.primary;
        primary.until(&format!("SELECT count(*) = 1 {WAITING}"));
        let first = primary.psql("postgres", &format!("SELECT pid {WAITING}"));
        primary.psql("postgres", &format!("SELECT pg_cancel_backend({first})"));
        // Now everybody can read it, and the writer waits for the standby once more: to learn what became of its commit.
        primary.until(&format!("SELECT count(*) = 1 {WAITING} AND query LIKE 'COMMIT%'"));
        let seen = primary.psql(shared.database(), "SELECT count(*) FROM ledger.entries");
        assert_eq!(seen, "3");
    })
    .await;
    assert!(!answer.is_finished());
    let shared = Arc::clone(&pair);
    in_background(move || {
        shared.primary.kill();
        shared.standby.start_again();
        shared.standby.promote();
    })
    .await;
    let error = answer.await.unwrap().unwrap_err();
    assert_eq!(error.code(), "STORE_UNAVAILABLE", "{error}");
    assert_eq!(ledger.store().heads().unwrap()[0].size(), 2);
    let again = send_until_answered(&ledger, &create_line("ann", "s")).await;
    assert!(!again.repeated);
    create_order(&ledger, "bob", "s").await;
    pair.verify_standby(&ledger).await;
}

/// The same, but the standby has the commit and did not show it yet: the caller hears that it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_standby_has_is_acknowledged_after_the_failover() {
    let pair = Arc::new(in_background(|| Pair::start(" -c synchronous_commit=remote_apply")).await);
    let ledger = Arc::new(pair.create(1).await);
    list_sku(&ledger, "s").await;
    let sending = Arc::clone(&ledger);
    pair.standby.psql("postgres", "SELECT pg_wal_replay_pause()");
    let answer = tokio::spawn(async move { send(&sending, &create_line("ann", "s")).await });
    let shared = Arc::clone(&pair);
    in_background(move || {
        let primary = &shared.primary;
        primary.until(&format!("SELECT count(*) = 1 {WAITING}"));
        primary.psql("postgres", &format!("SELECT pg_cancel_backend(pid) {WAITING}"));
        primary.until("SELECT sent_lsn = flush_lsn AND replay_lsn < flush_lsn FROM pg_stat_replication");
        shared.primary.kill();
        // It shows all that it has before it accepts writes.
        shared.standby.promote();
    })
    .await;
    let appended = answer.await.unwrap().unwrap();
    assert!(!appended.repeated);
    assert_eq!(send(&ledger, &create_line("ann", "s")).await.unwrap().entries, appended.entries);
    assert_eq!(ledger.store().heads().unwrap()[0].size(), 3);
    pair.verify_standby(&ledger).await;
}

/// After a crash of the primary, a commit that waited for the standby can be read though the standby does not have it. A retry
/// finds it, and waits all the same; so does a checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_is_not_answered_before_the_standby_has_it() {
    let pair = Arc::new(in_background(|| Pair::start("")).await);
    let ledger = Arc::new(pair.create(1).await);
    list_sku(&ledger, "s").await;
    let shared = Arc::clone(&pair);
    in_background(move || shared.standby.crash()).await;
    let sending = Arc::clone(&ledger);
    let first = tokio::spawn(async move { send(&sending, &create_line("ann", "s")).await });
    let shared = Arc::clone(&pair);
    in_background(move || {
        shared.primary.until(&format!("SELECT count(*) = 1 {WAITING}"));
        shared.primary.crash_and_restart();
    })
    .await;
    // Another process, which has been told nothing yet.
    let other = Arc::new(pair.open().await);
    assert_eq!(other.store().heads().unwrap()[0].size(), 3);
    let sending = Arc::clone(&other);
    let retry = tokio::spawn(async move { send(&sending, &create_line("ann", "s")).await });
    let publishing = Arc::clone(&other);
    let checkpoint = tokio::spawn(async move { publishing.checkpoint().await });
    let shared = Arc::clone(&pair);
    in_background(move || shared.primary.until(&format!("SELECT count(*) > 0 {WAITING}"))).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!retry.is_finished() && !checkpoint.is_finished() && !first.is_finished());
    let shared = Arc::clone(&pair);
    in_background(move || shared.standby.start_again()).await;
    let (first, retry) = (first.await.unwrap().unwrap(), retry.await.unwrap().unwrap());
    assert!(!first.repeated && retry.repeated);
    assert_eq!(first.entries, retry.entries);
    // It may have waited for the lock in vain, and may be asked for again.
    if checkpoint.await.unwrap().is_err() {
        other.checkpoint().await.unwrap();
    }
    postgres::verify(&pair.url, ledger.id()).await;
}
