//! Requests that try to look like others: no reading of a path or a header opens what the table of routes closes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::support::Server;

/// Sends bytes as they are; what came back before the server closed or fell silent.
fn send(server: &Server, text: &str) -> String {
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    String::from_utf8_lossy(&got).into_owned()
}

fn get(server: &Server, target: &str, headers: &str) -> String {
    send(server, &format!("GET {target} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n"))
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("(none)")
}

#[test]
fn no_reading_of_a_path_goes_round_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let order =
        server.of("ann@example.org", "buyer").checkout("ann@example.org", "k-1").body["order"]["order_id"].clone();
    let order = order.as_str().unwrap();
    let bob = format!("Authorization: Bearer {}\r\n", server.token("bob@example.org", "buyer"));
    let operator = format!("Authorization: Bearer {}\r\n", server.token("op@example.org", "operator"));
    // Closed to strangers and to buyers, whatever it is dressed as.
    for closed in ["metrics", "audit/events", "admin/signers"] {
        let first = format!("%{:02x}{}", closed.as_bytes()[0], &closed[1..]);
        let encoded = closed.replace('/', "%2f");
        for target in [
            format!("/{closed}"),
            format!("//{closed}"),
            format!("/{closed}/"),
            format!("/{closed}//"),
            format!("/./{closed}"),
            format!("/order/../{closed}"),
            format!("/order/%2e%2e/{closed}"),
            format!("/order/%2E%2E%2F{encoded}"),
            format!("/health/../{closed}"),
            format!("/health%2f..%2f{encoded}"),
            format!("/docs/../{closed}"),
            format!("/docs/..%2f{encoded}"),
            format!("/docs/%2e%2e/{closed}"),
            format!("/docs//{closed}"),
            format!("/docs/..;/{closed}"),
            format!("/{first}"),
            format!("/%25{:02x}{}", closed.as_bytes()[0], &closed[1..]),
            format!("/{encoded}"),
            format!("/{closed}%00"),
            format!("/{closed}%20"),
            format!("/{closed};x"),
            format!("/{closed}.json"),
            format!("/{closed}?path=/health"),
            format!("/{closed}#/health"),
            format!("/health?/../{closed}x=/{closed}").replace("/health?", "/healthx?"),
            format!("/{}", closed.to_uppercase()),
            format!("\\{closed}"),
            format!("http://other.example/{closed}"),
            format!("http://other.example//{closed}"),
            closed.to_owned(),
        ] {
            for headers in ["", &bob] {
                let answer = get(&server, &target, headers);
                assert!(
                    matches!(status(&answer), "400" | "401" | "403" | "404") && !answer.contains("# TYPE"),
                    "{target} ({headers:.10}): {answer:.300}"
                );
            }
        }
        // The other way round: a path that reads the same once decoded is the same to whoever may.
        if closed == "metrics" {
            assert_eq!(status(&get(&server, &format!("/{first}"), &operator)), "200");
        }
    }
    for target in [
        format!("/order/{order}"),
        format!("/order/{order}%2fevents"),
        format!("/order/{order}/%65vents"),
        format!("/order/{order}/events?buyer_id=ann@example.org"),
        format!("/order/x/../{order}"),
        format!("/order/%{:02x}{}", order.as_bytes()[0], &order[1..]),
        format!("/order/{}", order.to_uppercase()),
        format!("/proofs/proof-{order}-1"),
        format!("/proofs/proof-{order}-0"),
        format!("/proofs/proof-{order}-18446744073709551616"),
    ] {
        let answer = get(&server, &target, &bob);
        assert!(matches!(status(&answer), "400" | "404") && !answer.contains("12.50"), "{target}: {answer:.300}");
    }
}

#[test]
fn headers_that_mean_two_things_mean_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let operator = server.token("op@example.org", "operator");
    // What some servers take another path, method or name from.
    let disguises = "X-Original-URL: /health\r\nX-Rewrite-URL: /health\r\nX-HTTP-Method-Override: GET\r\n\
                     X-Forwarded-User: eve@example.org\r\nX-Forwarded-Prefix: /health\r\nX-Client-Cert: x\r\n\
                     X-SSL-Client-S-DN: CN=finance\r\nX-Forwarded-Client-Cert: URI=spiffe://shop.example/finance\r\n";
    assert_eq!(status(&get(&server, "/metrics", disguises)), "401");
    let cookie = format!("Cookie: Authorization=Bearer {operator}; token={operator}\r\n");
    assert_eq!(status(&get(&server, &format!("/metrics?access_token={operator}"), &cookie)), "401");
    // Heads that two parsers could read differently are refused, and what hides behind them is not answered.
    let hidden = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {operator}\r\n\r\n");
    let post = |headers: &str, body: &str| {
        send(&server, &format!("POST /license/verify HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{body}"))
    };
    for headers in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: identity, chunked, identity",
        "Content-Length : 5",
        "X: y\r\n folded: z",
    ] {
        let answer = post(headers, &format!("0\r\n\r\n{hidden}"));
        let answers = answer.matches("HTTP/1.1 ").count();
        assert!(!answer.contains("# TYPE"), "{headers:?}: {answer:.400}");
        assert!(answers <= 1 && !answer.starts_with("HTTP/1.1 2"), "{headers:?}: {answer:.400}");
    }
    for line in ["Authorization : Bearer x", "Author\0ization: Bearer x", "X-Request-Id: a\rb", "X: a\0b"] {
        let answer = get(&server, "/health", &format!("{line}\r\n"));
        assert_ne!(status(&answer), "200", "{line:?}: {answer:.200}");
    }
    // Ids of requests are repeated only where they cannot be anything else.
    for id in ["x\"y", "a b", "{}", "%0aX: y", "\u{e9}", &"x".repeat(65), "a\tb", ""] {
        let answer = get(&server, "/health", &format!("X-Request-Id: {id}\r\n"));
        let given = answer.lines().find_map(|l| l.strip_prefix("x-request-id: ")).unwrap();
        assert!(given.len() == 16 && given.bytes().all(|b| b.is_ascii_hexdigit()), "{id}: {given}");
    }
    let answer = get(&server, "/nothing%0d%0aX-Injected:%201", "");
    assert!(!answer.to_ascii_lowercase().contains("\nx-injected"), "{answer}");
    let log = server.log();
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    assert!(!log.contains("eyJ") && !log.contains("op@example.org"), "{log}");
}
