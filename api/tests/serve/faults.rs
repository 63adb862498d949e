//! What the world does wrong: the server dies, its database goes away or keeps it waiting, several servers are asked at once, all of
//! them too much. Whoever tries again with the same key ends with one order, and the ledger verifies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use test_servers::Server as Postgres;

use crate::support::{Answer, Api, Server, Start, checkout_body, ledger};

const ANN: &str = "ann@example.org";

/// Keys with the orders that there are: one each.
fn orders(server: &Server) -> BTreeSet<String> {
    let auditor = server.of("eve@example.org", "auditor");
    let (mut found, mut after) = (BTreeSet::new(), String::new());
    loop {
        let page = auditor.get(&format!("/audit/events?type=order.created&limit=500&after={after}")).body;
        for event in page["events"].as_array().unwrap() {
            assert!(found.insert(event["stream"].as_str().unwrap().replace("order-", "")), "{event}");
        }
        after = page["next"].as_str().unwrap().to_owned();
        if page["more"] == false {
            return found;
        }
    }
}

pub(crate) fn ledger_id(server: &Server) -> String {
    server.client(None).get("/health").body["ledger_id"].as_str().unwrap().to_owned()
}

pub(crate) fn check_verified(source: &Path, id: &str) {
    let report = audit_verify::verify_path(source, ledger_engine::hash::Hash::from_hex(id));
    assert_eq!(report.exit(), 0, "{}", report.to_text());
}

fn order_id(answer: &Answer) -> String {
    answer.body["order"]["order_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_server_that_is_killed_under_load_makes_one_order_for_each_key() {
    const CLIENTS: usize = 6;
    const ROUNDS: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let start = || Start::dev(&shop).args(&["--checkpoint-seconds", "1"]).run();
    let mut server = start();
    let ann = server.of(ANN, "buyer");
    let (url, done) = (Mutex::new(server.url.clone()), AtomicBool::new(false));
    let made: BTreeMap<String, String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|c| {
                let (mut ann, url, done) = (ann.clone(), &url, &done);
                scope.spawn(move || {
                    let mut made = BTreeMap::new();
                    for i in 0.. {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        let key = format!("k-{c}-{i}");
                        let order = loop {
                            ann.url = url.lock().unwrap().clone();
                            let request = ann.request("POST", "/checkout").header("Idempotency-Key", &key);
                            match request.json(&checkout_body(ANN)).send() {
                                // Dead, or dying: it is not known what became of it.
                                Err(_) => std::thread::sleep(Duration::from_millis(20)),
                                Ok(response) if response.status() == 201 => break order_id(&Answer::of(response)),
                                Ok(response) => assert_eq!(response.status(), 503),
                            }
                        };
                        made.insert(key, order);
                    }
                    made
                })
            })
            .collect();
        for _ in 0..ROUNDS {
            std::thread::sleep(Duration::from_millis(500));
            server.signal("-KILL");
            server.wait();
            server = start();
            *url.lock().unwrap() = server.url.clone();
        }
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|c| c.join().unwrap()).collect()
    });
    let distinct: BTreeSet<String> = made.values().cloned().collect();
    assert!(distinct.len() > CLIENTS * ROUNDS, "{}", distinct.len());
    assert_eq!(distinct.len(), made.len(), "one order for each key");
    assert_eq!(orders(&server), distinct, "and no other");
    let id = ledger_id(&server);
    assert_eq!(server.stop(), 0);
    check_verified(&shop, &id);
}

/// Asks until the answer is as hoped for.
fn eventually(what: &str, mut ask: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ask() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A new database with the schema.
pub(crate) fn database(postgres: &Postgres) -> String {
    let url = postgres.database();
    let out = ledger().args(["--database", &url, "migrate"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    url
}

pub(crate) fn on_postgres(shop: &Path, url: &str) -> Start {
    Start::dev(shop).env("DATABASE_URL", url)
}

#[test]
fn a_database_that_is_away_is_said_to_be_and_missed_no_longer_than_that() {
    let dir = tempfile::tempdir().unwrap();
    let postgres = Postgres::start_durable("");
    let url = database(&postgres);
    let server = on_postgres(&dir.path().join("shop"), &url).args(&["--request-timeout-seconds", "5"]).run();
    let (ann, stranger) = (server.of(ANN, "buyer"), server.client(None));
    let mut made = BTreeMap::new();
    for round in 0..2 {
        let key = format!("before-{round}");
        let first = ann.checkout(ANN, &key);
        assert_eq!(first.said(), (201, "ok"), "{:?}", first.body);
        made.insert(key, order_id(&first));
        postgres.crash();
        let key = format!("away-{round}");
        // One that was caught by the crash may not be known; then it is known that the store is away.
        let mut codes = BTreeSet::new();
        for _ in 0..5 {
            let answer = ann.checkout(ANN, &key);
            assert_eq!((answer.status, answer.header("retry-after")), (503, "2"), "{:?}", answer.body);
            codes.insert(answer.code().to_owned());
        }
        assert!(codes.contains("STORE_UNAVAILABLE"), "{codes:?}");
        assert!(codes.iter().all(|c| c == "STORE_UNAVAILABLE" || c == "OUTCOME_UNKNOWN"), "{codes:?}");
        let order = made.values().next().unwrap();
        let read = ann.get(&format!("/order/{order}"));
        assert_eq!((read.said(), read.header("retry-after")), ((503, "STORE_UNAVAILABLE"), "2"), "{:?}", read.body);
        let checkpoint = stranger.get("/audit/checkpoint");
        assert_eq!(checkpoint.status, 503, "{:?}", checkpoint.body);
        assert_eq!(server.of("eve@example.org", "auditor").get("/audit/events").status, 503);
        assert_eq!(stranger.get("/health").said(), (200, "ok"));
        // An answer holds for a second.
        std::thread::sleep(Duration::from_millis(1100));
        let ready = stranger.get("/ready");
        assert_eq!((ready.status, &ready.body["store"]), (503, &Value::Bool(false)), "{:?}", ready.body);
        // What cannot be told to anybody leaks to nobody.
        for text in ["127.0.0.1", "postgres", "connect"] {
            assert!(!read.body.to_string().contains(text), "{:?}", read.body);
        }
        postgres.start_again();
        eventually("it is ready again", || stranger.get("/ready").status == 200);
        let mut answer = ann.checkout(ANN, &key);
        for _ in 0..50 {
            if answer.status == 201 {
                break;
            }
            assert_eq!(answer.status, 503, "{:?}", answer.body);
            std::thread::sleep(Duration::from_millis(100));
            answer = ann.checkout(ANN, &key);
        }
        assert_eq!(answer.said(), (201, "ok"), "{:?}", answer.body);
        made.insert(key, order_id(&answer));
    }
    for (key, order) in &made {
        let again = ann.checkout(ANN, key);
        assert_eq!((&order_id(&again), again.header("idempotency-replayed")), (order, "true"), "nothing is lost");
    }
    assert_eq!(orders(&server), made.values().cloned().collect());
    let id = ledger_id(&server);
    assert_eq!(server.stop(), 0);
    check_verified(Path::new(&url), &id);
}

#[test]
fn two_servers_that_are_sent_one_key_at_once_make_one_order() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let url = database(Postgres::shared());
    let servers = [on_postgres(&shop, &url).run(), on_postgres(&shop, &url).run()];
    let callers: Vec<Api> = servers.iter().map(|s| s.of(ANN, "buyer")).collect();
    let mut made = BTreeSet::new();
    for round in 0..10 {
        let (key, barrier) = (format!("k-{round}"), Barrier::new(8));
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let tasks: Vec<_> = (0..8)
                .map(|i| {
                    let (ann, key, barrier) = (&callers[i % 2], &key, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        ann.checkout(ANN, key)
                    })
                })
                .collect();
            tasks.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let ids: BTreeSet<String> = answers.iter().map(order_id).collect();
        assert_eq!(ids.len(), 1, "{answers:?}");
        assert!(answers.iter().all(|a| a.body == answers[0].body), "one answer: {answers:?}");
        let first = answers.iter().filter(|a| a.header("idempotency-replayed").is_empty()).count();
        assert_eq!(first, 1, "one of them made it: {answers:?}");
        made.extend(ids);
    }
    assert_eq!(orders(&servers[0]), made);
    assert_eq!(orders(&servers[1]), made);
    let id = ledger_id(&servers[0]);
    for server in servers {
        assert_eq!(server.stop(), 0);
    }
    check_verified(Path::new(&url), &id);
}

/// Somebody holds what every append must write, for as long as this lives.
fn hold_appends(url: &str) -> postgres::Client {
    let mut client = postgres::Client::connect(url, postgres::NoTls).unwrap();
    client.batch_execute("BEGIN; LOCK TABLE ledger.chain_heads IN EXCLUSIVE MODE").unwrap();
    client
}

#[test]
fn an_outcome_that_is_not_known_is_learnt_by_asking_again() {
    let dir = tempfile::tempdir().unwrap();
    let url = database(Postgres::shared());
    let server = on_postgres(&dir.path().join("shop"), &url).args(&["--request-timeout-seconds", "2"]).run();
    let ann = server.of(ANN, "buyer");
    assert_eq!(ann.checkout(ANN, "k-0").said(), (201, "ok"));
    let lock = hold_appends(&url);
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| ann.checkout(ANN, "k-1"));
        std::thread::sleep(Duration::from_millis(500));
        // Sent again before the first is answered: it waits, and is told so when it waited in vain. The first has ended by
        // then, but the second came while it was under way.
        let second = scope.spawn(|| ann.checkout(ANN, "k-1"));
        (first.join().unwrap(), second.join().unwrap())
    });
    assert_eq!((first.said(), first.header("retry-after")), ((503, "OUTCOME_UNKNOWN"), "2"), "{:?}", first.body);
    let expected = ((409, "IDEMPOTENCY_IN_PROGRESS"), "1");
    assert_eq!((second.said(), second.header("retry-after")), expected, "{:?}", second.body);
    // Reads do not wait for writes.
    assert_eq!(server.client(None).get("/ready").said(), (200, "ok"));
    drop(lock);
    let mut answer = ann.checkout(ANN, "k-1");
    eventually("the order", || {
        if answer.status != 201 {
            assert!(matches!(answer.status, 503 | 409), "{:?}", answer.body);
            answer = ann.checkout(ANN, "k-1");
        }
        answer.status == 201
    });
    let id = order_id(&answer);
    assert_eq!(order_id(&ann.checkout(ANN, "k-1")), id);
    assert_eq!(orders(&server).len(), 2, "one order for each key");
}

/// The store does not answer while the server is told to end: it waits for the request under way, and no longer when it is told again. What
/// was not answered is learnt as ever.
#[test]
fn a_second_signal_ends_a_server_whose_store_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let url = database(Postgres::shared());
    let shop = dir.path().join("shop");
    let mut server = on_postgres(&shop, &url).run();
    let ann = server.of(ANN, "buyer");
    assert_eq!(ann.checkout(ANN, "k-0").said(), (201, "ok"));
    let lock = hold_appends(&url);
    std::thread::scope(|scope| {
        let asked = ann.request("POST", "/checkout").header("Idempotency-Key", "k-1").json(&checkout_body(ANN));
        let waiting = scope.spawn(move || asked.send().is_err());
        std::thread::sleep(Duration::from_millis(300));
        server.signal("-TERM");
        std::thread::sleep(Duration::from_millis(700));
        // It neither takes writes nor gives up.
        let again = Instant::now();
        server.signal("-TERM");
        assert_eq!(server.wait(), 2);
        assert!(again.elapsed() < Duration::from_secs(3), "{:?}", again.elapsed());
        assert!(waiting.join().unwrap(), "nobody answered it");
    });
    assert!(server.log().contains("second signal"), "{}", server.log());
    drop(lock);
    let server = on_postgres(&shop, &url).run();
    let ann = server.of(ANN, "buyer");
    eventually("the order", || ann.checkout(ANN, "k-1").status == 201);
    assert_eq!(orders(&server).len(), 2, "one order for each key");
}

#[test]
fn what_is_too_much_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let url = database(Postgres::shared());
    let args = ["--request-timeout-seconds", "4", "--requests-max", "4"];
    let server = on_postgres(&dir.path().join("shop"), &url).args(&args).run();
    let ann = server.of(ANN, "buyer");
    assert_eq!(ann.checkout(ANN, "k-0").said(), (201, "ok"));
    let (memory, files) = server.weight();
    let lock = hold_appends(&url);
    let start = Instant::now();
    let answers: Vec<(Answer, Duration)> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..24)
            .map(|i| {
                let ann = &ann;
                scope.spawn(move || (ann.checkout(ANN, &format!("k-{}", i + 1)), start.elapsed()))
            })
            .collect();
        // Whether it lives can be asked in the midst of it.
        assert_eq!(server.client(None).get("/health").said(), (200, "ok"));
        tasks.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let refused = answers.iter().filter(|(a, _)| a.said() == (503, "OVERLOADED")).collect::<Vec<_>>();
    assert_eq!(refused.len(), 20, "{answers:?}");
    for (answer, taken) in refused {
        assert_eq!(answer.header("retry-after"), "1");
        assert!(*taken < Duration::from_secs(4), "{taken:?}");
    }
    drop(lock);
    for i in 0..=24 {
        eventually("every order", || ann.checkout(ANN, &format!("k-{i}")).status == 201);
    }
    assert_eq!(orders(&server).len(), 25);
    drop(ann);
    eventually("connections end with their clients", || server.weight().1 <= files + 8);
    let after = server.weight().0;
    assert!(after < memory + 16 * 1024, "{memory} KiB, then {after} KiB");
}
