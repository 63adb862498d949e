//! How often somebody may call, and browsers of which pages may.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Answer, Server, Start};

const NO_ORDER: &str = "/order/00000000000000000000000000000000";

/// Asks at once from several threads until one is told to wait; how many were answered before, and that answer.
fn until_limited(ask: impl Fn() -> Answer + Sync) -> (usize, Answer) {
    let start = Instant::now();
    let mut answered = 0;
    while start.elapsed() < Duration::from_secs(30) {
        let round: Vec<Answer> = std::thread::scope(|scope| {
            let tasks: Vec<_> = (0..16).map(|_| scope.spawn(&ask)).collect();
            tasks.into_iter().map(|t| t.join().unwrap()).collect()
        });
        answered += round.iter().filter(|a| a.status != 429).count();
        if let Some(limited) = round.into_iter().find(|a| a.status == 429) {
            return (answered, limited);
        }
    }
    panic!("nobody was told to wait: {answered} were answered");
}

fn limited(dir: &std::path::Path) -> Server {
    Start::dev(dir).args(&["--rate-limit", "2", "--rate-limit-service", "1000"]).run()
}

#[test]
fn each_caller_has_its_own_limit() {
    let dir = tempfile::tempdir().unwrap();
    let server = limited(&dir.path().join("shop"));
    let (ann, bob) = (server.of("ann@example.org", "buyer"), server.of("bob@example.org", "buyer"));
    let (answered, told) = until_limited(|| ann.get(NO_ORDER));
    assert!(answered >= 2, "{answered}");
    assert_eq!(told.said(), (429, "RATE_LIMITED"));
    assert_eq!(told.header("retry-after"), "1");
    assert_eq!(bob.get(NO_ORDER).status, 404, "nobody else is concerned");
    // The limit is of the caller, not of a token or a connection; and covers what it may not do.
    let again = server.of("ann@example.org", "buyer");
    until_limited(|| again.get("/audit/events"));
    until_limited(|| server.of("ann@example.org", "auditor").get(NO_ORDER));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(ann.get(NO_ORDER).status, 404, "after waiting as told");
    // Services have a limit of their own.
    let service = server.of("service:finance", "service");
    for _ in 0..60 {
        assert_eq!(service.get(NO_ORDER).status, 404);
    }
    let log = server.log();
    assert!(log.contains("\"status\":429"), "{log}");
}

#[test]
fn strangers_are_counted_by_address() {
    let dir = tempfile::tempdir().unwrap();
    let server = limited(&dir.path().join("shop"));
    let guess = server.client(Some("eyJhbGciOiJIUzI1NiIsImtpZCI6ImRldiJ9.e30.AAAA"));
    let (answered, told) = until_limited(|| guess.get(NO_ORDER));
    assert!(answered >= 50, "a second's worth at once: {answered}");
    assert_eq!(told.said(), (429, "RATE_LIMITED"));
    // Another path or another story changes nothing.
    until_limited(|| server.client(None).get("/nothing"));
    let story = |n: u32| {
        let request = guess.request("GET", NO_ORDER).header("X-Forwarded-For", format!("203.0.113.{n}"));
        Answer::of(request.header("Forwarded", format!("for=203.0.113.{n}")).send().unwrap())
    };
    let n = std::sync::atomic::AtomicU32::new(0);
    until_limited(|| story(n.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 250));
    // Whoever is known is no stranger, nor is another address; and everybody hears that the server lives.
    let other = reqwest::blocking::Client::builder().local_address("127.0.0.2".parse::<IpAddr>().unwrap());
    let other = other.build().unwrap();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| (0..5).for_each(|_| drop(until_limited(|| guess.get(NO_ORDER)))));
        let bob = server.of("bob@example.org", "buyer");
        assert_eq!(bob.get(NO_ORDER).status, 404);
        assert_eq!(other.get(format!("{}{NO_ORDER}", server.url)).send().unwrap().status(), 401);
        for _ in 0..20 {
            assert_eq!(guess.get("/health").status, 200);
        }
        flood.join().unwrap();
    });
    // The payment provider's webhooks come from few addresses: they are counted as a service's.
    let provider = server.client(None);
    for sent in 0..300 {
        assert_eq!(provider.post("/webhooks/payment", &json!({})).status, 401, "{sent}");
    }
    until_limited(|| provider.post("/webhooks/payment", &json!({})));
}

#[test]
fn browsers_call_from_pages_that_are_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let preflight = |server: &Server, origin: &str| {
        let request = server.client(None).request("OPTIONS", NO_ORDER).header("Origin", origin);
        let request = request.header("Access-Control-Request-Method", "GET");
        Answer::of(request.header("Access-Control-Request-Headers", "authorization").send().unwrap())
    };
    let get = |server: &Server, origin: &str| {
        Answer::of(server.client(None).request("GET", NO_ORDER).header("Origin", origin).send().unwrap())
    };
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin").to_owned();
    let server = Server::dev(&shop);
    let (asked, got) = (preflight(&server, "https://shop.example"), get(&server, "https://shop.example"));
    assert_eq!((asked.status, allowed(&asked), allowed(&got)), (405, String::new(), String::new()));
    assert_eq!(got.header("strict-transport-security"), "", "not without TLS");
    server.stop();

    let server = Start::dev(&shop).args(&["--cors-origins", "https://shop.example,http://localhost:3000"]).run();
    for origin in ["https://shop.example", "http://localhost:3000"] {
        let asked = preflight(&server, origin);
        assert_eq!((asked.status, allowed(&asked).as_str()), (200, origin));
        assert!(asked.header("access-control-allow-headers").contains("authorization"));
        // A page may ask; it is still nobody. And it may read why.
        let got = get(&server, origin);
        assert_eq!((got.status, allowed(&got).as_str()), (401, origin));
        assert!(got.header("vary").to_ascii_lowercase().contains("origin"));
        assert_eq!(got.header("access-control-allow-credentials"), "");
    }
    for origin in [
        "https://shop.example.evil",
        "http://shop.example",
        "https://shop.example:444",
        "null",
        "https://a.shop.example",
    ] {
        let (asked, got) = (preflight(&server, origin), get(&server, origin));
        assert_eq!((allowed(&asked), allowed(&got)), (String::new(), String::new()), "{origin}");
        assert_ne!(asked.status, 200, "{origin}");
    }
}
