//! What operators rely on: health, metrics, logs, traces, maintenance, a clean end, starts that are refused.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::json;

use crate::support::{Finance, Server, Start, client, ledger, now, payment_event, stripe_signature};

#[test]
fn health_metrics_and_logs_say_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let server = Start::dev(&dir.path().join("shop")).args(&["--checkpoint-seconds", "1"]).run();
    let stranger = server.client(None);
    let health = stranger.get("/health").body;
    assert_eq!(
        [&health["ok"], &health["mTLS"], &health["signingConfigured"], &health["kernelConfigured"], &health["dev"]],
        [&json!(true), &json!(false), &json!(true), &json!(false), &json!(true)]
    );
    let ready = stranger.get("/ready").body;
    assert_eq!(ready, json!({ "ok": true, "store": true, "signer": true, "serving": true }));

    let ann = server.of("ann@example.org", "buyer");
    let request = ann.request("POST", "/checkout").header("X-Request-Id", "my-id.7").header("Idempotency-Key", "k-1");
    let answer = request.json(&crate::support::checkout_body("ann@example.org")).send().unwrap();
    assert_eq!(answer.headers()["x-request-id"], "my-id.7");
    assert_eq!(
        ann.request("GET", "/health").header("X-Request-Id", "no good").send().unwrap().headers()["x-request-id"].len(),
        16
    );
    let operator = server.of("op@example.org", "operator");
    // The first checkpoint comes within a second; then every entry has a proof file.
    std::thread::sleep(Duration::from_millis(1500));
    let metrics = operator.get("/metrics").body.as_str().unwrap().to_owned();
    for line in [
        "marketplace_orders_total 1",
        "signing_errors_total 0",
        "http_requests_total{method=\"POST\",route=\"/checkout\",status=\"201\"} 1",
        "marketplace_checkout_latency_seconds_count 1",
        "ledger_chain_size{chain=\"0\"}",
        "ledger_checkpoint_age_seconds",
        "ledger_commands_waiting 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    // The documentation has all of them.
    let known = include_str!("../../HTTP.md");
    for name in metrics.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(known.contains(&format!("`{name}`")), "{name} is not in HTTP.md");
    }
    let log = server.log();
    // JSON lines, with the request's id, and without secrets or people.
    let line = log.lines().find(|l| l.contains("my-id.7")).unwrap_or_else(|| panic!("{log}"));
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["route"], &line["status"]), (&json!("/checkout"), &json!(201)));
    for secret in ["ann@example.org", "eyJ", "whsec", "for Ann"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[test]
fn maintenance_refuses_writes_and_keeps_reads() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let server = Server::dev(&shop);
    let id = server.of("ann@example.org", "buyer").checkout("ann@example.org", "k-1").body["order"]["order_id"].clone();
    server.stop();
    let server = Start::dev(&shop).env("MAINTENANCE_MODE", "1").run();
    let ann = server.of("ann@example.org", "buyer");
    let refused = ann.checkout("ann@example.org", "k-2");
    assert_eq!((refused.said(), refused.header("retry-after")), ((503, "MAINTENANCE"), "60"));
    let event = payment_event("evt_1", id.as_str().unwrap(), 1250, "eur");
    let webhook = server.client(None).webhook(&event, &stripe_signature(crate::support::WEBHOOK_SECRET, now(), &event));
    assert_eq!(webhook.said(), (503, "MAINTENANCE"));
    assert_eq!(ann.get(&format!("/order/{}", id.as_str().unwrap())).said(), (200, "ok"));
    assert_eq!(server.client(None).get("/health").body["maintenance"], true);
}

/// Writes that were accepted when the server is told to end are answered, and are there afterwards.
#[test]
fn the_end_finishes_what_was_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let server = Server::dev(&shop);
    let ann = server.of("ann@example.org", "buyer");
    let accepted: Vec<String> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let ann = ann.clone();
                scope.spawn(move || {
                    let mut accepted = Vec::new();
                    for i in 0.. {
                        let key = format!("k-{task}-{i}");
                        let request = ann.request("POST", "/checkout").header("Idempotency-Key", &key);
                        let sent = request.json(&crate::support::checkout_body("ann@example.org")).send();
                        match sent.map(|r| r.status().as_u16()) {
                            Ok(201) => accepted.push(key),
                            Ok(status) => assert_eq!(status, 503),
                            Err(_) => break,
                        }
                    }
                    accepted
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(server.stop(), 0);
        tasks.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert!(accepted.len() > 8, "{}", accepted.len());
    let server = Start::dev(&shop).run();
    let ann = server.of("ann@example.org", "buyer");
    for key in accepted {
        assert_eq!(ann.checkout("ann@example.org", &key).header("idempotency-replayed"), "true", "{key}");
    }
}

#[test]
fn traces_go_where_they_are_told_to() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in collector.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            reader
                .into_inner()
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .unwrap();
            let _ = sender.send((head, String::from_utf8_lossy(&body).into_owned()));
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let server = Start::dev(&dir.path().join("shop")).env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).run();
    let request = server.client(None).request("GET", "/audit/checkpoint").header("X-Request-Id", "traced-1");
    request.send().unwrap();
    assert_eq!(server.stop(), 0, "the last spans are sent at the end");
    let (head, body) = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(head.starts_with("POST /v1/traces"), "{head}");
    for text in ["service.name", "ledger", "request", "traced-1"] {
        assert!(body.contains(text), "{text} in {body:?}");
    }
}

#[test]
fn a_start_that_could_begin_another_history_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let refused = |start: Start| {
        let (code, text) = start.refused();
        assert_eq!(code, 2, "{text}");
        text
    };
    let text = refused(Start::production(&shop));
    assert!(text.contains("ledger_id: required") && text.contains("jwks"), "{text}");
    let jwks = dir.path().join("jwks.json");
    std::fs::write(
        &jwks,
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
    )
    .unwrap();
    let start = |id: &str| {
        let args = ["--jwks", jwks.to_str().unwrap(), "--jwt-issuer", "i", "--jwt-audience", "a", "--ledger-id", id];
        Start::production(&shop).args(&args)
    };
    let text = refused(start(&"ab".repeat(32)));
    assert!(text.contains("there is no ledger in") && !shop.exists(), "{text}");
    let made = ledger().arg("--dir").arg(&shop).args(["--json", "init"]).output().unwrap();
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let text = refused(start(&"ab".repeat(32)));
    assert!(text.contains("ledger_id: the ledger here is"), "{text}");
    let server = start(made["ledger_id"].as_str().unwrap()).run();
    assert_eq!(server.client(None).get("/health").body["ledger_id"], made["ledger_id"]);
    // Development tokens are nothing to it.
    assert_eq!(server.client(Some("eyJ.x.y")).get("/audit/events").said(), (401, "NOT_AUTHORIZED"));
    drop(server);
    let text = refused(start(made["ledger_id"].as_str().unwrap()).env("REQUIRE_KMS", "true"));
    assert!(text.contains("require_kms"), "{text}");

    let check = ledger().args(["serve", "--check-config", "--dev"]).env("RATE_LIMIT", "7").output().unwrap();
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(text.lines().any(|l| l.split_whitespace().eq(["rate_limit", "7"])) && !text.contains("whsec"), "{text}");
    // Where the ledger is, and which: the one that would be served, or none.
    let check = |id: &str| start(id).args(&["--check-config"]);
    let id = made["ledger_id"].as_str().unwrap();
    let text = check(id).printed();
    assert!(text.lines().any(|l| l.starts_with("ledger ") && l.contains(id)) && text.contains("are good"), "{text}");
    assert!(refused(check(&"ab".repeat(32))).contains("ledger_id: the ledger here is"));
}

#[test]
fn the_documentation_is_there_without_anything_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let get = |path: &str| client().get(format!("{}{path}", server.url)).send().unwrap();
    assert_eq!(get("/docs").headers()["location"], "/docs/");
    let page = get("/docs/");
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("script-src 'self'"));
    let page = page.text().unwrap();
    let linked = page.split(['"', '\'']).filter(|s| s.ends_with(".js") || s.ends_with(".css"));
    let mut count = 0;
    for file in linked {
        assert!(!file.contains("//"), "{file}");
        assert_eq!(get(&format!("/docs/{}", file.trim_start_matches("./"))).status(), 200, "{file}");
        count += 1;
    }
    assert!(count >= 3, "{page}");
    assert_eq!(server.client(None).get("/docs/../../etc/passwd").said(), (404, "NOT_FOUND"));
    assert_eq!(server.client(None).get("/openapi.json").body["openapi"], "3.1.0");
}

/// The script that operators run after a deployment, against a development server.
#[test]
fn the_smoke_script_finds_everything_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let server = Start::dev(&shop).args(&["--checkpoint-seconds", "1"]).run();
    Finance::of(&server);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/smoke/smoke.sh");
    let judge = std::path::Path::new(env!("CARGO_BIN_EXE_ledger")).with_file_name("audit-verify");
    assert!(judge.exists(), "the script calls it: cargo build -p audit-verify");
    let run = |sku: &str| {
        let mut command = std::process::Command::new("bash");
        command.env("AUDIT_VERIFY", &judge);
        command.arg(script).arg(&server.url).env("LEDGER_DEV_DIR", &shop).env("LEDGER", env!("CARGO_BIN_EXE_ledger"));
        command.env("SKU", sku).output().unwrap()
    };
    let out = run("sku-e2e");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    for step in ["health", "checkout", "webhook", "finalize", "licence", "audit trail", "proof", "audit-verify", "done"]
    {
        assert!(text.lines().any(|l| l.starts_with(step)), "{step} in {text}");
    }
    let out = run("nothing");
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("answered 404"), "{out:?}");
}
