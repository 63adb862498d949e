//! The live feed: every entry once, in order, from wherever a client left off.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Api, Server, Start, ledger};

/// An event of a feed: its id and its entry.
type Event = (String, Value);

/// Listens until the connection ends or nobody takes what came.
fn listen(auditor: &Api, from: Option<&str>) -> Receiver<Event> {
    let mut request = auditor.request("GET", "/audit/stream").timeout(Duration::from_secs(3600));
    if let Some(id) = from {
        request = request.header("Last-Event-ID", id);
    }
    let response = request.send().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut id = String::new();
        for line in BufReader::new(response).lines().map_while(Result::ok) {
            if let Some(text) = line.strip_prefix("id: ") {
                id = text.to_owned();
            } else if let Some(text) = line.strip_prefix("data: ")
                && sender.send((id.clone(), serde_json::from_str(text).unwrap())).is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn take(feed: &Receiver<Event>, n: usize) -> Vec<Event> {
    (0..n).map(|_| feed.recv_timeout(Duration::from_secs(20)).expect("an entry in time")).collect()
}

fn place(event: &Value) -> (u64, u64) {
    (event["chain"].as_u64().unwrap(), event["index"].as_u64().unwrap())
}

/// Entries of each chain come from `next` on without a gap.
fn check_order(events: &[Event], next: &mut BTreeMap<u64, u64>) {
    for (id, event) in events {
        let (chain, index) = place(event);
        let expected = next.entry(chain).or_default();
        assert_eq!(index, *expected, "chain {chain}");
        *expected += 1;
        assert!(id.split(',').any(|part| part == format!("{chain}:{index}")), "{id}");
    }
}

#[test]
fn a_feed_has_every_entry_once_and_goes_on_where_it_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let server = Server::dev(&shop);
    let auditor = server.of("eve@example.org", "auditor");
    let ann = server.of("ann@example.org", "buyer");
    let feed = listen(&auditor, None);
    let mut next = BTreeMap::new();
    // What is there already: genesis, keys, a SKU.
    let page = auditor.get("/audit/events").body;
    let there = page["events"].as_array().unwrap().clone();
    let first = take(&feed, there.len());
    check_order(&first, &mut next);
    assert_eq!(first.iter().map(|(_, e)| e.clone()).collect::<Vec<_>>(), there, "a page and a feed say the same");
    // What comes while somebody listens.
    for i in 0..20 {
        assert_eq!(ann.checkout("ann@example.org", &format!("k-{i}")).status, 201);
    }
    let live = take(&feed, 20);
    check_order(&live, &mut next);
    drop(feed);
    // A client that saw the first five of them comes back.
    let feed = listen(&auditor, Some(&live[4].0));
    assert_eq!(take(&feed, 15), live[5..]);
    // The server goes and comes back; so does the client.
    assert_eq!(server.stop(), 0);
    assert!(feed.recv_timeout(Duration::from_secs(5)).is_err(), "the feed ended with the server");
    let server = Start::dev(&shop).run();
    let auditor = server.of("eve@example.org", "auditor");
    let feed = listen(&auditor, Some(&live[19].0));
    server.of("bob@example.org", "buyer").checkout("bob@example.org", "k");
    check_order(&take(&feed, 1), &mut next);
    let now = auditor.request("GET", "/audit/stream?after=now").timeout(Duration::from_secs(1)).send().unwrap();
    let text: String = BufReader::new(now).lines().map_while(Result::ok).collect();
    assert!(!text.contains("data:"), "nothing that was there before: {text}");
    // Of another ledger, or of a history that is gone.
    for after in ["7:1", "0:999999"] {
        assert_eq!(auditor.get(&format!("/audit/stream?after={after}")).said(), (400, "INVALID_REQUEST"));
        assert_eq!(auditor.get(&format!("/audit/events?after={after}")).said(), (400, "INVALID_REQUEST"));
    }
}

#[test]
fn feeds_are_bounded_and_pages_are_filtered() {
    let dir = tempfile::tempdir().unwrap();
    let server = Start::dev(&dir.path().join("shop")).args(&["--feeds-max", "1"]).run();
    let auditor = server.of("eve@example.org", "auditor");
    let ann = server.of("ann@example.org", "buyer");
    for i in 0..5 {
        ann.checkout("ann@example.org", &format!("k-{i}"));
    }
    let feed = listen(&auditor, None);
    take(&feed, 1);
    let second = auditor.get("/audit/stream");
    assert_eq!((second.said(), second.header("retry-after")), ((503, "OVERLOADED"), "1"));

    // Pages of two give what one page gives.
    let all = auditor.get("/audit/events?type=order.").body["events"].as_array().unwrap().clone();
    assert_eq!(all.len(), 5);
    let (mut paged, mut after) = (Vec::new(), String::new());
    loop {
        let page = auditor.get(&format!("/audit/events?type=order.created&limit=2&after={after}")).body;
        paged.extend(page["events"].as_array().unwrap().clone());
        after = page["next"].as_str().unwrap().to_owned();
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(paged, all);
    let of = |query: &str| auditor.get(&format!("/audit/events?{query}"));
    let stream = all[0]["stream"].as_str().unwrap();
    assert_eq!(of(&format!("stream={stream}")).body["events"], Value::Array(vec![all[0].clone()]));
    let time = all[3]["created_at"].as_str().unwrap();
    assert_eq!(of(&format!("since={time}")).body["events"][0], all[3]);
    let before = of(&format!("until={time}")).body["events"].as_array().unwrap().clone();
    assert_eq!(before.last().unwrap(), &all[2]);
    // Times without a fraction, with an offset, with nanoseconds.
    for (query, found) in [
        ("since=2020-01-01T00:00:00Z", 5),
        ("since=2020-01-01T00:00:00%2B02:00", 5),
        ("until=2020-01-01T00:00:00.123456789Z", 0),
    ] {
        let page = of(&format!("type=order.&{query}"));
        assert_eq!(page.body["events"].as_array().map(Vec::len), Some(found), "{query}: {:?}", page.body);
    }
    for bad in ["limit=0", "limit=501", "limit=x", "after=x", "since=yesterday", "stream=x", "nonsense=1"] {
        assert_eq!(of(bad).said(), (400, "INVALID_REQUEST"), "{bad}");
    }
}

#[test]
fn a_feed_ends_with_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let server = Start::dev(&shop).args(&["--jwt-leeway-seconds", "0"]).run();
    let arguments = ["token", "--sub", "eve@example.org", "--role", "auditor", "--ttl", "3"];
    let token = crate::support::ledger().arg("--dir").arg(&shop).args(arguments).output().unwrap();
    let feed = listen(&server.client(Some(String::from_utf8(token.stdout).unwrap().trim())), None);
    take(&feed, 1);
    std::thread::sleep(Duration::from_secs(4));
    server.of("ann@example.org", "buyer").checkout("ann@example.org", "k-1");
    // What was there before may still come; the order that was made after the token's end does not.
    while let Ok((_, event)) = feed.recv_timeout(Duration::from_secs(20)) {
        assert_ne!(event["event_type"], "order.created");
    }
}

/// More entries than fit into the sockets between them: a listener who takes nothing loses the only place there is for feeds, and whoever
/// comes then gets all of them, across pages.
#[test]
fn who_does_not_read_a_feed_loses_it() {
    const ORDERS: usize = 8000;
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let server = Start::dev(&shop).args(&["--feeds-max", "1", "--request-timeout-seconds", "2"]).run();
    let mut submit = ledger()
        .arg("--dir")
        .arg(&shop)
        .args(["submit", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut commands = submit.stdin.take().unwrap();
    for n in 0..ORDERS {
        writeln!(
            commands,
            r#"{{"command":"order.create","actor":"b{n}","idempotency_key":"k{n}","sku_id":"sku-e2e","delivery_mode":"marketplace-managed"}}"#
        )
        .unwrap();
    }
    drop(commands);
    assert!(submit.wait().unwrap().success());
    let auditor = server.of("eve@example.org", "auditor");
    let address = server.url.strip_prefix("http://").unwrap();
    let mut silent = TcpStream::connect(address).unwrap();
    let token = server.token("eve@example.org", "auditor");
    write!(silent, "GET /audit/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(auditor.get("/audit/stream").said(), (503, "OVERLOADED"));
    let begun = Instant::now();
    while auditor.request("GET", "/audit/stream").send().unwrap().status() != 200 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it keeps its place");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(silent);
    // The question above was a feed, too, and ends with its connection.
    std::thread::sleep(Duration::from_secs(1));
    let events = take(&listen(&auditor, None), ORDERS + 1);
    check_order(&events, &mut BTreeMap::new());
}
