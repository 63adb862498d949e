//! PostgreSQL that is slow, full, busy or shared: nobody is told a lie, and writers go on when it is over.
#![allow(missing_docs)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ledger_engine::ledger::{AppendError, Ledger};
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore};
use ledger_engine::stream::Stream;
use support::{code, config, create_line, create_order, genesis, life, list_sku, postgres, send};
use test_servers::Server;

fn size(ledger: &Ledger, chain: usize) -> u64 {
    ledger.store().heads().unwrap()[chain].size()
}

async fn create_with(options: PostgresOptions, chains: u32) -> Ledger {
    let store = Arc::new(PostgresStore::open(options).unwrap());
    Ledger::create(config(store), genesis(chains)).await.unwrap()
}

/// Somebody holds what an append needs for longer than it waits: nothing is written, and the next one is.
#[tokio::test(flavor = "multi_thread")]
async fn locks_and_statements_time_out() {
    let url = postgres::database();
    list_sku(&postgres::create(&url, 1).await, "s").await;
    let short = Duration::from_millis(300);
    let long = Duration::from_secs(30);
    for (lock_timeout, statement_timeout, held, said) in [
        (short, long, "SELECT FROM ledger.chain_heads WHERE chain = 0 FOR UPDATE", "55P03"),
        (long, short, "SELECT FROM ledger.chain_heads WHERE chain = 0 FOR UPDATE", "57014"),
        (long, short, "LOCK TABLE ledger.orders IN SHARE MODE", "57014"),
        (short, long, "LOCK TABLE ledger.entries IN SHARE MODE", "55P03"),
    ] {
        let options = PostgresOptions { lock_timeout, statement_timeout, ..postgres::options(&url) };
        let ledger = Ledger::open(config(Arc::new(PostgresStore::open(options).unwrap()))).await.unwrap();
        let before = size(&ledger, 0);
        let holder = postgres::connect(&url).await;
        holder.batch_execute(&format!("BEGIN; {held}")).await.unwrap();
        let line = create_line(&format!("{said} {held}"), "s");
        let error = send(&ledger, &line).await.unwrap_err();
        assert_eq!(error.code(), "STORE_UNAVAILABLE");
        assert!(error.to_string().contains(said), "{held}: {error}");
        holder.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(size(&ledger, 0), before);
        assert_eq!(code(&ledger, &line).await, "accepted");
    }
}

/// Makes orders until one fails: how many were made, and the line and the error of that one.
async fn make_until_full(ledger: &Ledger, at_most: u64) -> (u64, String, AppendError) {
    for made in 0..at_most {
        let line = create_line(&format!("k{made}"), "s");
        if let Err(e) = send(ledger, &line).await {
            return (made, line, e);
        }
    }
    panic!("the disk is not full");
}

/// The file system of the entries is full: appends fail and leave nothing; with room again they go on.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_the_server_is_full() {
    let server = tokio::task::spawn_blocking(|| Server::start_in_small_room(8 << 20)).await.unwrap();
    let url = server.database();
    postgres::migrate_away(&url);
    let name = url.rsplit('/').next().unwrap();
    server.psql(name, "ALTER TABLE ledger.entries SET TABLESPACE small");
    let ledger = postgres::create(&url, 1).await;
    list_sku(&ledger, "s").await;
    // Page by page in the end.
    server.psql(
        name,
        "CREATE TABLE public.filler (x text) TABLESPACE small;
         ALTER TABLE public.filler ALTER x SET STORAGE PLAIN;
         DO $$ DECLARE n integer := 512; BEGIN
             WHILE n > 0 LOOP
                 BEGIN
                     INSERT INTO public.filler SELECT repeat('x', 7000) FROM generate_series(1, n);
                 EXCEPTION WHEN disk_full THEN n := n / 2;
                 END;
             END LOOP;
         END $$",
    );
    let (made, line, error) = make_until_full(&ledger, 100).await;
    assert_eq!(error.code(), "STORE_UNAVAILABLE");
    assert!(error.to_string().contains("53100") && error.to_string().contains("room"), "{error}");
    assert_eq!(size(&ledger, 0), made + 2);
    assert_eq!(code(&ledger, &line).await, "STORE_UNAVAILABLE");
    // Readers are served all the while.
    assert_eq!(ledger.read_chain(0, 0, 1000).await.unwrap().len() as u64, made + 2);
    server.psql(name, "DROP TABLE public.filler");
    assert_eq!(code(&ledger, &line).await, "accepted");
    assert_eq!(size(&ledger, 0), made + 3);
    postgres::verify(&url, ledger.id()).await;
}

/// There is no room for the write-ahead log: the server ends in the middle of a commit. Nobody was told that it is stored, nobody that it is
/// not; with room again the same request is done once.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_the_log_is_full() {
    let server = tokio::task::spawn_blocking(|| Server::start_with_small_log(64 << 20)).await.unwrap();
    let url = server.database();
    postgres::migrate_away(&url);
    let ledger = postgres::create(&url, 1).await;
    list_sku(&ledger, "s").await;
    server.fill_room_but(512 << 10);
    let (made, line, error) = make_until_full(&ledger, 10_000).await;
    assert!(["OUTCOME_UNKNOWN", "STORE_UNAVAILABLE"].contains(&error.code()), "{error}");
    tokio::task::block_in_place(|| server.wait_for_end());
    assert!(server.log().contains("No space left on device"), "{}", server.log());
    assert_eq!(code(&ledger, &line).await, "STORE_UNAVAILABLE");
    server.clear_room();
    tokio::task::block_in_place(|| server.start_again());
    let begun = Instant::now();
    while send(&ledger, &line).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(size(&ledger, 0), made + 3);
    for k in 0..=made {
        send(&ledger, &create_line(&format!("k{k}"), "s")).await.unwrap();
    }
    assert_eq!(size(&ledger, 0), made + 3);
    postgres::verify(&url, ledger.id()).await;
}

/// An auditor holds a snapshot and reads on and on while orders pour in: writers do not wait for him, nor he for them, and he sees
/// one moment only.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_read_and_heavy_writes_do_not_meet() {
    let url = postgres::database();
    // Who would have to wait for a lock fails instead.
    let options = PostgresOptions { lock_timeout: Duration::from_millis(200), ..postgres::options(&url) };
    let ledger = Arc::new(create_with(options, 1).await);
    list_sku(&ledger, "s").await;
    let auditor = postgres::connect(&url).await;
    let begin = "SET lock_timeout = '1ms'; SET ROLE ledger_auditor; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    auditor.batch_execute(begin).await.unwrap();
    let read =
        "SELECT count(*), count(DISTINCT prev_hash), (SELECT max(size) FROM ledger.chain_heads) FROM ledger.entries";
    let seen = async || {
        let row = auditor.query_one(read, &[]).await.unwrap();
        [0, 1, 2].map(|at| row.get::<_, i64>(at))
    };
    assert_eq!(seen().await, [2, 2, 2]);
    let writing = Arc::new(AtomicBool::new(true));
    let tasks: Vec<_> = (0..16)
        .map(|i| {
            let (ledger, writing) = (Arc::clone(&ledger), Arc::clone(&writing));
            tokio::spawn(async move {
                let mut n = 0;
                while writing.load(Ordering::Acquire) {
                    create_order(&ledger, &format!("k{i}-{n}"), "s").await;
                    n += 1;
                }
                n
            })
        })
        .collect();
    let begun = Instant::now();
    let mut verified = 0;
    while begun.elapsed() < Duration::from_secs(1) || verified < 2 {
        assert_eq!(seen().await, [2, 2, 2]);
        postgres::verify(&url, ledger.id()).await;
        verified += 1;
    }
    writing.store(false, Ordering::Release);
    let mut made = 0;
    for task in tasks {
        made += task.await.unwrap();
    }
    assert!(made > 100, "writers waited: {made} orders");
    assert_eq!(size(&ledger, 0), made + 2);
    auditor.batch_execute("COMMIT").await.unwrap();
}

/// Two that know nothing of each other expect the same revision of one stream, again and again: exactly one gets it.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_expect_a_revision_one_gets_it() {
    let url = postgres::database();
    let first = Arc::new(postgres::create(&url, 1).await);
    list_sku(&first, "s").await;
    let order = create_order(&first, "ann", "s").await;
    for line in life(&order) {
        send(&first, &line).await.unwrap();
    }
    let second = Arc::new(postgres::open(&url).await);
    let won = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let (holder, watcher) = (postgres::connect(&url).await, postgres::connect(&url).await);
    // The delivery's stream is at revision 4: downloaded once.
    for revision in 4..40 {
        let line = format!(
            r#"{{"command":"delivery.download","actor":"service:m","order_id":"{order}","expected_revision":{revision}}}"#
        );
        // Now and then both have sent their commit before either can get the lock.
        let held = revision % 4 == 0;
        if held {
            holder.batch_execute("BEGIN; SELECT FROM ledger.chain_heads WHERE chain = 0 FOR UPDATE").await.unwrap();
        }
        let tasks = [&first, &second].map(|ledger| {
            let (ledger, line) = (Arc::clone(ledger), line.clone());
            tokio::spawn(async move { code(&ledger, &line).await })
        });
        if held {
            let waiting =
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
            while watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) < 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            holder.batch_execute("COMMIT").await.unwrap();
        }
        let mut said = Vec::new();
        for (task, won) in tasks.into_iter().zip(&*won) {
            said.push(task.await.unwrap());
            won.fetch_add(u32::from(said.last() == Some(&"accepted")), Ordering::Relaxed);
        }
        said.sort_unstable();
        assert_eq!(said, ["REVISION_CONFLICT", "accepted"], "revision {revision}");
    }
    let case = ledger_engine::stream::CaseId::parse(&order).unwrap();
    let stream = first.read_stream(Stream::Delivery(case, 1)).await.unwrap();
    assert_eq!(stream.len(), 40);
    postgres::verify(&url, first.id()).await;
}

/// A transaction on one chain is open and holds what it locked; the other chain does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn chains_do_not_wait_for_each_other() {
    let url = postgres::database();
    let options = PostgresOptions { lock_timeout: Duration::from_millis(200), ..postgres::options(&url) };
    let ledger = create_with(options, 2).await;
    list_sku(&ledger, "s").await;
    // Everything that an append writes: rows of the chain are locked as its own append would lock them.
    let holder = postgres::connect(&url).await;
    holder
        .batch_execute(
            "BEGIN; SELECT FROM ledger.chain_heads WHERE chain = 0 FOR UPDATE; SELECT FROM ledger.cursors WHERE chain = 0 FOR UPDATE;
             INSERT INTO ledger.entries SELECT chain, 1000, prev_hash, stream, revision, parent_hash, event_id, event_type, \
             schema_version, recorded_at_us, body_hash, body_sha256, entry_hash, parent_index, body FROM ledger.entries WHERE chain = 0 AND idx = 0;
             UPDATE ledger.stream_heads SET revision = revision WHERE chain = 0",
        )
        .await
        .unwrap();
    let mut said = [Vec::new(), Vec::new()];
    for i in 0..12 {
        let key = format!("k{i}");
        let result = send(&ledger, &create_line(&key, "s")).await;
        let chain = match &result {
            Ok(appended) => appended.chain,
            // Only the chain that is held makes anybody wait.
            Err(e) => {
                assert!(e.to_string().contains("55P03"), "{e}");
                0
            }
        };
        said[chain as usize].push(result.is_ok());
    }
    assert!(!said[0].is_empty() && said[0].iter().all(|ok| !ok), "{said:?}");
    assert!(!said[1].is_empty() && said[1].iter().all(|ok| *ok), "{said:?}");
    holder.batch_execute("ROLLBACK").await.unwrap();
    postgres::verify(&url, ledger.id()).await;
}
