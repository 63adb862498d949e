//! Clients that are broken or hostile, at the level of bytes: each gets its status and code or a closed connection, nothing is
//! appended, and the server grows by nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Server, Start, checkout_body};

/// One answer: status, and the code of its envelope; no code where there is no envelope.
type Said = (u16, String);

struct Target {
    server: Server,
    token: String,
    _dir: tempfile::TempDir,
}

fn target(args: &[&str]) -> Target {
    let dir = tempfile::tempdir().unwrap();
    let args = [&["--checkpoint-seconds", "3600"], args].concat();
    let server = Start::dev(&dir.path().join("shop")).args(&args).run();
    let token = server.token("ann@example.org", "buyer");
    Target { server, token, _dir: dir }
}

/// Reads until the other side ends or says nothing for `patience`.
fn read_all(stream: &mut TcpStream, patience: Duration) -> Vec<u8> {
    stream.set_read_timeout(Some(patience)).unwrap();
    let (mut out, mut buffer) = (Vec::new(), [0; 16_384]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return out,
            Ok(n) => out.extend_from_slice(&buffer[..n]),
        }
    }
}

/// All answers in what came. None has a chunked body here.
fn answers(mut bytes: &[u8]) -> Vec<Said> {
    let mut all = Vec::new();
    while let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let status: u16 = head.split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0);
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        let rest = &bytes[end + 4..];
        let body: Value = serde_json::from_slice(&rest[..length.min(rest.len())]).unwrap_or_default();
        let code = if body["ok"] == true { "ok" } else { body["error"]["code"].as_str().unwrap_or_default() };
        if status >= 400 && !code.is_empty() {
            assert!(head.contains("x-request-id: "), "{head}");
            assert!(
                body["error"]["message"].as_str().unwrap().len() < 2000,
                "an answer does not repeat a whole request"
            );
        }
        all.push((status, code.to_owned()));
        bytes = &rest[length.min(rest.len())..];
    }
    all
}

impl Target {
    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.address()).unwrap()
    }

    fn send(&self, bytes: &[u8]) -> Vec<Said> {
        let mut stream = self.connect();
        // A server that has refused already may not read to the end.
        let _ = stream.write_all(bytes);
        answers(&read_all(&mut stream, Duration::from_secs(20)))
    }

    /// A checkout with these header lines beside its own, and this body as it is.
    fn checkout(&self, headers: &[&str], body: &[u8]) -> Vec<u8> {
        let mut head = format!("POST /checkout HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n", self.token);
        for line in headers {
            head.push_str(&format!("{line}\r\n"));
        }
        [head.as_bytes(), b"\r\n", body].concat()
    }

    /// The same with everything right but what is in `body`.
    fn checkout_of(&self, body: &[u8]) -> Vec<u8> {
        let length = format!("Content-Length: {}", body.len());
        self.checkout(&[JSON, "Idempotency-Key: h-1", &length, CLOSE], body)
    }

    fn is_alive(&self) {
        assert_eq!(self.server.client(None).get("/health").said(), (200, "ok"));
    }
}

const JSON: &str = "Content-Type: application/json";
const CLOSE: &str = "Connection: close";

fn said(status: u16, code: &str) -> Vec<Said> {
    vec![(status, code.to_owned())]
}

fn good_body() -> String {
    checkout_body("ann@example.org").to_string()
}

#[test]
fn bodies_that_are_no_strict_json_are_refused() {
    let target = target(&[]);
    let before = target.server.entries();
    let good = good_body();
    let with = |member: &str| good.replace(r#""note":"for Ann""#, member).into_bytes();
    let deep = |n: usize| with(&format!(r#""a":{}{}"#, "[".repeat(n), "]".repeat(n)));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("cut", good.as_bytes()[..good.len() - 1].to_vec()),
        ("a list", b"[]".to_vec()),
        ("two documents", format!("{good} {good}").into_bytes()),
        ("a byte order mark", format!("\u{feff}{good}").into_bytes()),
        ("a repeated name", good.replacen('{', r#"{"buyer_id":"ann@example.org","#, 1).into_bytes()),
        ("a repeated name below", with(r#""a":1,"a":1"#)),
        ("a name repeated by an escape", with(r#""a":1,"\u0061":1"#)),
        ("an unknown name", good.replacen('{', r#"{"price":1,"#, 1).into_bytes()),
        ("invalid UTF-8", with("\"a\":\"?\"").iter().map(|b| if *b == b'?' { 0xff } else { *b }).collect()),
        ("U+0000 escaped", with(r#""a":"\u0000""#)),
        ("U+0000 raw", with("\"a\":\"\0\"")),
        ("half a surrogate pair", with(r#""a":"\ud800""#)),
        ("a fraction", with(r#""a":1.5"#)),
        ("an exponent", with(r#""a":1e400"#)),
        ("beyond 2^53", with(r#""a":9007199254740993"#)),
        ("a number of 3000 digits", with(&format!(r#""a":{}"#, "9".repeat(3000)))),
        ("40 deep", deep(40)),
        ("50,000 deep", deep(50_000)),
        ("a comment", with(r#"/**/"a":1"#)),
        ("a trailing comma", with(r#""a":1,"#)),
        ("NaN", with(r#""a":NaN"#)),
        (
            "a name of 100,000 characters",
            good.replacen('{', &format!("{{\"{}\":1,", "n".repeat(100_000)), 1).into_bytes(),
        ),
    ];
    for (name, body) in &cases {
        assert_eq!(target.send(&target.checkout_of(body)), said(400, "INVALID_REQUEST"), "{name}");
    }
    let length = format!("Content-Length: {}", good.len());
    for (name, headers, status, code) in [
        ("no type", vec!["Idempotency-Key: a"], 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("text", vec!["Content-Type: text/plain", "Idempotency-Key: a"], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (
            "latin",
            vec!["Content-Type: application/json; charset=latin1", "Idempotency-Key: a"],
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        ("no key", vec![JSON], 400, "INVALID_REQUEST"),
        ("two keys", vec![JSON, "Idempotency-Key: a", "Idempotency-Key: b"], 400, "INVALID_REQUEST"),
        ("an empty key", vec![JSON, "Idempotency-Key: "], 400, "INVALID_REQUEST"),
        ("a key with a blank", vec![JSON, "Idempotency-Key: a b"], 400, "INVALID_REQUEST"),
        ("a key of bytes", vec![JSON, "Idempotency-Key: \u{e9}"], 400, "INVALID_REQUEST"),
    ] {
        let headers = [headers, vec![&length, CLOSE]].concat();
        assert_eq!(target.send(&target.checkout(&headers, good.as_bytes())), said(status, code), "{name}");
    }
    let long = format!("Idempotency-Key: {}", "k".repeat(30_000));
    let huge = target.checkout(&[JSON, &long, &length, CLOSE], good.as_bytes());
    assert_eq!(target.send(&huge), said(400, "INVALID_REQUEST"), "a huge key");
    assert_eq!(target.server.entries(), before);
    // And what is right goes through.
    assert_eq!(target.send(&target.checkout_of(good.as_bytes())), said(201, "ok"));
}

#[test]
fn requests_that_could_be_read_in_two_ways_are_read_in_none() {
    let target = target(&[]);
    let before = target.server.entries();
    let good = good_body();
    let n = good.len();
    let hidden = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let of = |lines: &[&str], body: &str| {
        target.checkout(&[&[JSON, "Idempotency-Key: h-1"][..], lines].concat(), body.as_bytes())
    };
    let length = format!("Content-Length: {n}");
    let chunked = "Transfer-Encoding: chunked";
    for (name, bytes) in [
        ("two lengths", of(&[&length, &format!("Content-Length: {}", n + 1)], &good)),
        ("the same length twice", of(&[&length, &length], &good)),
        ("a list of lengths", of(&[&format!("Content-Length: {n}, {n}")], &good)),
        ("a length with a sign", of(&[&format!("Content-Length: +{n}")], &good)),
        ("a length below nothing", of(&["Content-Length: -1"], &good)),
        ("a length beyond 64 bits", of(&["Content-Length: 99999999999999999999999"], &good)),
        ("length and chunks", of(&["Content-Length: 5", chunked], &format!("0\r\n\r\n{hidden}"))),
        ("chunks and length", of(&[chunked, "Content-Length: 5"], &format!("0\r\n\r\n{hidden}"))),
        ("two encodings", of(&[chunked, "Transfer-Encoding: identity"], &format!("0\r\n\r\n{hidden}"))),
        ("an unknown encoding", of(&["Transfer-Encoding: xchunked"], &format!("0\r\n\r\n{hidden}"))),
        ("a folded header", of(&[&length, "X: a\r\n b"], &good)),
        ("a blank before the colon", of(&[&length, "X : a"], &good)),
        ("U+0000 in a header", of(&[&length, "X: a\0b"], &good)),
        ("U+0000 in a path", b"GET /hea\0lth HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("no host", b"GET /health HTTP/1.1\r\n\r\n".to_vec()),
        ("two hosts", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_vec()),
        ("no version", b"GET /health\r\n\r\n".to_vec()),
        ("HTTP/2 by chance", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("TLS by chance", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ("a target of 70,000 bytes", format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(70_000)).into_bytes()),
    ] {
        // Below the API: there is no envelope, and the connection is closed.
        assert_eq!(target.send(&bytes), said(400, ""), "{name}");
    }
    for (name, body) in
        [("no chunk size", "zz\r\nhello\r\n0\r\n\r\n"), ("a huge chunk size", "ffffffffffffffffff\r\nx\r\n0\r\n\r\n")]
    {
        assert_eq!(target.send(&of(&[chunked, CLOSE], body)), said(400, "INVALID_REQUEST"), "{name}");
    }
    // A body that nobody reads is never taken for the next request.
    let refused = format!("POST /checkout HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n{hidden}");
    assert_eq!(target.send(refused.as_bytes()), said(401, "NOT_AUTHORIZED"));
    assert_eq!(target.server.entries(), before);
    target.is_alive();
}

#[test]
fn unusual_requests_have_their_answers() {
    let target = target(&[]);
    let before = target.server.entries();
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}Connection: close\r\n\r\n");
    let found = |text: String| target.send(text.as_bytes());
    for path in [
        "/audit/../health",
        "/audit/%2e%2e/health",
        "//health",
        "/health/",
        "/Health",
        "/health%00",
        "/%68ealth%2f",
        "/..",
    ] {
        assert_eq!(found(get(path, "")), said(404, "NOT_FOUND"), "{path}");
    }
    let own = format!("Authorization: Bearer {}\r\n", target.token);
    for id in
        ["%2e%2e", "%ff", "%00", "..%2f..%2fetc%2fpasswd", "0", &"a".repeat(32), &"A".repeat(32), &"0".repeat(8000)]
    {
        assert_eq!(found(get(&format!("/order/{id}"), &own)), said(404, "NOT_FOUND"), "{id}");
        assert_eq!(found(get(&format!("/audit/events/{id}/proof"), &own)), said(404, "NOT_FOUND"), "{id}");
    }
    assert_eq!(found("GET /health HTTP/1.0\r\n\r\n".into()), said(200, "ok"));
    assert_eq!(found(get("http://elsewhere.example/health", "")), said(200, "ok"), "the whole target");
    assert_eq!(found(get("http://elsewhere.example/audit/events", "")), said(401, "NOT_AUTHORIZED"));
    assert_eq!(found("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into()), said(404, "NOT_FOUND"));
    assert_eq!(found("CONNECT a:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into()), said(404, "NOT_FOUND"));
    for method in ["DELETE", "PUT", "get", "TRACE", "OPTIONS"] {
        let text = format!("{method} /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(found(text), said(405, "METHOD_NOT_ALLOWED"), "{method}");
    }
    let two = format!("GET /health HTTP/1.1\r\nHost: x\r\n\r\n{}", get("/nothing", ""));
    assert_eq!(found(two), [said(200, "ok"), said(404, "NOT_FOUND")].concat(), "one after the other in one packet");
    let with_body = format!("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello{}", get("/nothing", ""));
    assert_eq!(found(with_body), [said(200, "ok"), said(404, "NOT_FOUND")].concat(), "a body where none belongs");
    assert_eq!(found(get(&format!("/audit/checkpoint?{}=1", "q".repeat(60_000)), "")), said(400, "INVALID_REQUEST"));
    assert_eq!(found(get("/audit/checkpoint?chain=1&chain=2", "")), said(400, "INVALID_REQUEST"), "given twice");
    assert_eq!(found(get("/health", &format!("X: {}\r\n", "a".repeat(60_000)))), said(200, "ok"));
    let lines = |n: usize| (0..n).map(|i| format!("X-{i}: 1\r\n")).collect::<String>();
    assert_eq!(found(get("/health", &lines(5000))), said(431, ""), "thousands of headers");

    let good = good_body();
    let length = format!("Content-Length: {}", good.len());
    let waits = target.checkout(&[JSON, "Idempotency-Key: h-1", &length, "Expect: 100-continue", CLOSE], b"");
    let mut stream = target.connect();
    stream.write_all(&waits).unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(good.as_bytes()).unwrap();
    assert_eq!(answers(&read_all(&mut stream, Duration::from_secs(20))), said(201, "ok"));
    assert_eq!(target.server.entries(), before + 1);
}

#[test]
fn what_is_too_large_is_cut_off() {
    let target = target(&["--body-bytes-max", "2048"]);
    let before = target.server.entries();
    let declared = target.checkout(&[JSON, "Idempotency-Key: h-1", "Content-Length: 2049"], b"");
    assert_eq!(target.send(&declared), said(413, "BODY_TOO_LARGE"), "refused before it is sent");
    let chunk = format!("400\r\n{}\r\n", " ".repeat(0x400));
    let chunked = target.checkout(
        &[JSON, "Idempotency-Key: h-1", "Transfer-Encoding: chunked", CLOSE],
        format!("{}0\r\n\r\n", chunk.repeat(3)).as_bytes(),
    );
    assert_eq!(target.send(&chunked), said(413, "BODY_TOO_LARGE"));
    // Without an end: the connection is closed while it still sends, whoever does, whether the body is read or not.
    let stranger = b"POST /checkout HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let health = b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let own = target.checkout(&[JSON, "Idempotency-Key: h-1", "Transfer-Encoding: chunked"], b"");
    for (name, head) in [("a stranger", stranger), ("a read", health), ("a buyer", own)] {
        let (mut stream, start) = (target.connect(), Instant::now());
        stream.write_all(&head).unwrap();
        while stream.write_all(chunk.as_bytes()).is_ok() {
            assert!(start.elapsed() < Duration::from_secs(20), "{name}: everything is taken");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut full = vec![b' '; 2048];
    let good = good_body();
    full[..good.len()].copy_from_slice(good.as_bytes());
    assert_eq!(target.send(&target.checkout_of(&full)), said(201, "ok"), "the limit itself");
    assert_eq!(target.server.entries(), before + 1);
    let header = format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    let refused = target.send(header.as_bytes());
    // The refusal may be lost where the client still sends.
    assert!(refused.is_empty() || refused == said(431, ""), "{refused:?}");
    target.is_alive();
}

#[test]
fn slow_clients_are_cut_off_and_hold_nobody_up() {
    let target = target(&["--requests-max", "16"]);
    let before = target.server.entries();
    let good = good_body();
    let head = target.checkout(&[JSON, "Idempotency-Key: h-1", &format!("Content-Length: {}", good.len())], b"");
    let begun: Vec<(&str, Vec<u8>)> = vec![
        ("no byte", vec![]),
        ("half a line", b"GET /hea".to_vec()),
        ("half a head", b"GET /health HTTP/1.1\r\nHost: x\r\n".to_vec()),
        ("no body", head.clone()),
        ("half a body", [&head[..], &good.as_bytes()[..20]].concat()),
        ("a webhook", b"POST /webhooks/payment HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{".to_vec()),
    ];
    let start = Instant::now();
    std::thread::scope(|scope| {
        let slow: Vec<_> = begun
            .iter()
            .map(|(name, bytes)| {
                let mut stream = target.connect();
                stream.write_all(bytes).unwrap();
                scope.spawn(move || {
                    // A byte now and then is not enough.
                    let mut more = stream.try_clone().unwrap();
                    let drip = std::thread::spawn(move || {
                        while start.elapsed() < Duration::from_secs(40) && more.write_all(b"a").is_ok() {
                            std::thread::sleep(Duration::from_secs(1));
                        }
                    });
                    let out = read_all(&mut stream, Duration::from_secs(40));
                    let taken = start.elapsed();
                    drop(stream);
                    drip.join().unwrap();
                    (*name, answers(&out), taken)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        // As many strangers as may be under way, and more, who send nothing.
        let hold: Vec<TcpStream> = (0..40)
            .map(|_| {
                let mut stream = target.connect();
                stream.write_all(b"POST /webhooks/payment HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").unwrap();
                stream
            })
            .collect();
        // They keep nobody else out, strangers included.
        assert_eq!(target.server.client(None).get("/audit/checkpoint").status, 200);
        let ann = target.server.client(Some(&target.token));
        for i in 0..5 {
            let begin = Instant::now();
            assert_eq!(ann.checkout("ann@example.org", &format!("k-{i}")).said(), (201, "ok"));
            assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        }
        for slow in slow {
            let (name, answers, taken) = slow.join().unwrap();
            let with_head = matches!(name, "no body" | "half a body" | "a webhook");
            let expected = if with_head { vec![said(408, "REQUEST_TIMEOUT")] } else { vec![said(408, ""), vec![]] };
            assert!(expected.contains(&answers), "{name}: {answers:?}");
            // Ten seconds for a body, five for a head, and some for this machine.
            assert!(taken < Duration::from_secs(25), "{name}: {taken:?}");
        }
        drop(hold);
    });
    assert_eq!(target.server.entries(), before + 5);
}

#[test]
fn thousands_of_bad_requests_leave_nothing_behind() {
    let target = target(&[]);
    let good = good_body();
    let bad: Vec<Vec<u8>> = vec![
        target.checkout_of(b"{"),
        target.checkout_of(good.replace("ann@", "bob@").as_bytes()),
        target.checkout_of(good.replace("sku-e2e", "sku-none").as_bytes()),
        target.checkout(&[JSON, "Idempotency-Key: a", "Content-Length: 900000"], b"{"),
        target.checkout(&[JSON, "Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        target.checkout(&[JSON, "Idempotency-Key: a", "Content-Length: 100"], b"{"),
        b"GET /order/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\nConnection: close\r\n\r\n".to_vec(),
        b"\x16\x03\x01\r\n\r\n".to_vec(),
        b"GET /health".to_vec(),
    ];
    let round = |times: usize| {
        for i in 0..times {
            let mut stream = target.connect();
            // Each with names of its own, so that a table that remembered them would grow.
            let text = String::from_utf8_lossy(&bad[i % bad.len()]).replace("/order/x", &format!("/order/{i}"));
            let _ = stream.write_all(text.as_bytes());
            // Half of them go without waiting for the answer.
            if i % 2 == 0 {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                read_all(&mut stream, Duration::from_secs(20));
            }
        }
    };
    let before = target.server.entries();
    round(1000);
    let (memory, files) = target.server.weight();
    round(4000);
    let start = Instant::now();
    // Connections that were left are closed at the latest when their time is over.
    while target.server.weight().1 > files.min(40) && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(200));
    }
    let (memory_after, files_after) = target.server.weight();
    assert!(files_after <= files.min(40), "{files} files, then {files_after}");
    assert!(memory_after < memory + 16 * 1024, "{memory} KiB, then {memory_after} KiB");
    assert_eq!(target.server.entries(), before);
    target.is_alive();
}
