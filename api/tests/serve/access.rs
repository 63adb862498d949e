//! Who may call what: every route that the server describes, for everybody there is.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::pki::{Authority, Got, curl, words};
use crate::support::{Finance, Server, Start, ledger, paid_order};

/// Who calls, in the order of the columns below.
const CALLERS: [&str; 7] = ["nobody", "buyer", "another buyer", "service", "operator", "auditor", "certificate"];

/// What each gets, by the contract: an order of the first buyer that is finalised, and bodies without members, which are
/// not read before it is clear who may call.
#[rustfmt::skip]
const TABLE: &[(&str, &str, [u16; 7])] = &[
    ("get", "/health",                  [200, 200, 200, 200, 200, 200, 200]),
    ("get", "/ready",                   [200, 200, 200, 200, 200, 200, 200]),
    ("get", "/metrics",                 [401, 403, 403, 200, 200, 403, 200]),
    ("post", "/checkout",               [401, 400, 400, 403, 403, 403, 403]),
    // Whoever signs: a token helps nobody.
    ("post", "/webhooks/payment",       [401, 401, 401, 401, 401, 401, 401]),
    ("get", "/order/{id}",              [401, 200, 404, 200, 403, 200, 200]),
    ("get", "/order/{id}/events",       [401, 200, 404, 403, 403, 200, 403]),
    ("get", "/order/{id}/license",      [401, 200, 404, 403, 403, 200, 403]),
    ("post", "/order/{id}/settle",      [401, 403, 403, 400, 403, 403, 400]),
    ("post", "/order/{id}/finalize",    [401, 403, 403, 200, 403, 403, 200]),
    ("post", "/order/{id}/cancel",      [401, 403, 403, 400, 400, 403, 400]),
    ("post", "/order/{id}/refund",      [401, 403, 403, 400, 400, 403, 400]),
    ("post", "/delivery/{id}/reissue",  [401, 403, 403, 400, 400, 403, 400]),
    ("get", "/delivery/{id}/artifact",  [401, 200, 404, 403, 403, 403, 403]),
    ("get", "/delivery/{id}/key",       [401, 200, 404, 403, 403, 403, 403]),
    ("post", "/license/verify",         [401, 400, 400, 400, 400, 400, 400]),
    ("get", "/proofs/{id}",             [401, 200, 404, 403, 403, 200, 403]),
    ("get", "/catalog",                 [401, 200, 200, 200, 200, 200, 200]),
    // No SKU has the order's id.
    ("get", "/sku/{id}",                [401, 404, 404, 404, 404, 404, 404]),
    ("post", "/sku",                    [401, 403, 403, 403, 400, 403, 403]),
    ("post", "/sku/{id}/withdraw",      [401, 403, 403, 403, 404, 403, 403]),
    ("post", "/admin/validate-manifest", [401, 403, 403, 403, 400, 403, 403]),
    ("get", "/admin/signers",           [401, 403, 403, 403, 200, 200, 403]),
    ("get", "/audit/events",            [401, 403, 403, 403, 403, 200, 403]),
    ("get", "/audit/events/{id}",       [401, 200, 404, 403, 403, 200, 403]),
    ("get", "/audit/events/{id}/proof", [401, 200, 404, 403, 403, 200, 403]),
    ("get", "/audit/checkpoint",        [200, 200, 200, 200, 200, 200, 200]),
    ("get", "/audit/consistency",       [200, 200, 200, 200, 200, 200, 200]),
    ("get", "/audit/stream",            [401, 403, 403, 403, 403, 200, 403]),
];

/// Pages about the API, which its description leaves out.
const PAGES: [&str; 3] = ["/openapi.json", "/docs", "/docs/"];

struct World {
    server: Server,
    order: String,
    event: String,
    /// For curl: the authority, and what each caller shows.
    ca: Vec<String>,
    callers: Vec<Vec<String>>,
    _dir: tempfile::TempDir,
}

impl World {
    fn make(more: &[&str]) -> World {
        let dir = tempfile::tempdir().unwrap();
        let shop = dir.path().join("shop");
        // Made without TLS, so that the other clients can be used.
        let server = Server::dev(&shop);
        let order = paid_order(&server, "ann@example.org", "k-1");
        let service = server.of("service:finance", "service");
        let done = service.post(&format!("/order/{order}/finalize"), &Finance::of(&server).proof(&order, "lp-1"));
        assert_eq!(done.said(), (200, "ok"), "{:?}", done.body);
        let trail = server.of("ann@example.org", "buyer").get(&format!("/order/{order}/events")).body;
        let event = trail["events"][0]["id"].as_str().unwrap().to_owned();
        server.stop();

        let authority = Authority::new(&dir.path().join("ca"));
        let own = authority.issue("localhost", "IP:127.0.0.1");
        let finance = authority.issue("finance", "URI:spiffe://shop.example/finance");
        let config = dir.path().join("serve.toml");
        std::fs::write(&config, "[services]\n\"spiffe://shop.example/finance\" = \"finance\"\n").unwrap();
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let (ca, file, key, config) = (text(&authority.file()), text(&own.file), text(&own.key), text(&config));
        let tls = ["--tls-certificate", &file, "--tls-key", &key, "--tls-client-ca", &ca, "--config", &config];
        let start = Start::dev(&shop).args(&tls).args(&["--checkpoint-seconds", "1"]);
        let server = start.args(more).run();
        let bearer = |sub: &str, role: &str| {
            words(&[], &["--header", &format!("Authorization: Bearer {}", server.token(sub, role))])
        };
        let callers = vec![
            Vec::new(),
            bearer("ann@example.org", "buyer"),
            bearer("bob@example.org", "buyer"),
            bearer("service:finance", "service"),
            bearer("op@example.org", "operator"),
            bearer("eve@example.org", "auditor"),
            finance.args(),
        ];
        World { ca: words(&[], &["--cacert", &ca]), server, order, event, callers, _dir: dir }
    }

    fn path(&self, pattern: &str) -> String {
        let id = match pattern {
            p if p.starts_with("/audit/events/") => self.event.clone(),
            p if p.starts_with("/delivery/") => format!("delivery-{}-1", self.order),
            p if p.starts_with("/proofs/") => format!("proof-{}-1", self.order),
            _ => self.order.clone(),
        };
        let query = if pattern == "/audit/consistency" { "?from=1" } else { "" };
        pattern.replace("{id}", &id) + query
    }

    fn call(&self, method: &str, pattern: &str, caller: &[String], more: &[&str]) -> Got {
        let url = format!("{}{}", self.server.url, self.path(pattern));
        let mut args = words(&[&self.ca, caller], more);
        match method {
            "head" => args.push("--head".into()),
            "get" => {}
            other => args.extend(words(&[], &["--request", &other.to_uppercase()])),
        }
        if method == "post" {
            let body = ["--data", "{}", "--header", "Content-Type: application/json"];
            args.extend(words(&[], &body));
            if pattern.ends_with("/refund") || pattern == "/checkout" {
                args.extend(words(&[], &["--header", "Idempotency-Key: k-9"]));
            }
        }
        if pattern == "/audit/stream" {
            args.extend(words(&[], &["--max-time", "1"]));
        }
        args.push(url);
        curl(&args)
    }
}

#[test]
fn every_route_answers_those_who_may_and_nobody_else() {
    let world = World::make(&[]);
    // Proofs are there once a checkpoint was issued.
    std::thread::sleep(Duration::from_millis(1500));
    let api = world.call("get", "/openapi.json", &[], &[]).json();
    let described: BTreeSet<(String, String)> = api["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(|verb| (verb.clone(), path.clone())))
        .collect();
    let expected = TABLE.iter().map(|(verb, path, _)| ((*verb).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, expected, "a route without a row in this test's table");

    let mut wrong = Vec::new();
    for (verb, path, row) in TABLE {
        for ((caller, name), expected) in world.callers.iter().zip(CALLERS).zip(row) {
            let got = world.call(verb, path, caller, &[]);
            if got.status != *expected {
                wrong.push(format!("{verb} {path} by {name}: {} rather than {expected}: {}", got.status, got.body));
            }
            if got.status >= 400 && got.json()["ok"] != json!(false) {
                wrong.push(format!("{verb} {path} by {name}: no envelope: {}", got.body));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Other methods are refused before anything is asked of the caller; HEAD is GET without the body.
    let auditor = &world.callers[5];
    for (verb, path, row) in TABLE {
        let allow = if *verb == "get" { "GET, HEAD" } else { "POST" };
        let other = if *verb == "get" { "post" } else { "get" };
        for method in [other, "put", "delete", "patch", "options", "trace", "propfind"] {
            let got = world.call(method, path, auditor, &[]);
            assert_eq!((got.status, got.header("allow")), (405, Some(allow)), "{method} {path}");
        }
        if *verb == "get" {
            let got = world.call("head", path, auditor, &[]);
            assert_eq!((got.status, got.body.trim()), (row[5], ""), "head {path}");
            assert_eq!(world.call("head", path, &[], &[]).status, row[0], "head {path} by nobody");
        } else {
            assert_eq!(world.call("head", path, auditor, &[]).status, 405, "head {path}");
        }
    }
    for path in PAGES {
        assert!(matches!(world.call("get", path, &[], &[]).status, 200 | 302), "{path}");
        assert_eq!(world.call("post", path, auditor, &[]).status, 405, "{path}");
    }
    for path in ["/", "/order", "/order/", "/admin", "/audit", "/audit/events/", "/metrics/x", "/docsx", "/keys"] {
        let got = world.call("get", path, auditor, &[]);
        assert_eq!(got.status, 404, "{path}");
    }
    assert_eq!(world.call("post", "/nothing", &[], &[]).status, 404);
}

/// Whoever has several roles has on each route what its roles have there, not more.
#[test]
fn roles_add_up_route_by_route() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let order =
        server.of("ann@example.org", "buyer").checkout("ann@example.org", "k-1").body["order"]["order_id"].clone();
    let order = order.as_str().unwrap();
    let mut command = ledger();
    command.arg("--dir").arg(&server.dir).args(["token", "--sub", "bob@example.org", "--role", "buyer"]);
    let out = command.args(["--role", "operator"]).output().unwrap();
    let both = server.client(Some(String::from_utf8(out.stdout).unwrap().trim()));
    let own = both.checkout("bob@example.org", "k-2").body["order"]["order_id"].clone();
    assert_eq!(both.get(&format!("/order/{}", own.as_str().unwrap())).status, 200);
    // An operator reads no orders, so a buyer who is one reads own orders only.
    for path in [format!("/order/{order}"), format!("/order/{order}/events"), format!("/order/{order}/license")] {
        assert_eq!(both.get(&path).said(), (404, "NOT_FOUND"), "{path}");
    }
    assert_eq!(both.get("/audit/events").status, 403);
    assert_eq!(both.post(&format!("/order/{order}/cancel"), &json!({ "reason": "asked for" })).status, 200);
}

#[test]
fn a_buyer_buys_for_oneself() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let ann = server.of("ann@example.org", "buyer");
    let before = server.of("eve@example.org", "auditor").get("/audit/events").body;
    assert_eq!(ann.checkout("bob@example.org", "k-1").said(), (403, "NOT_AUTHORIZED"));
    assert_eq!(server.of("eve@example.org", "auditor").get("/audit/events").body, before, "nothing was recorded");
}

#[test]
fn checkpoints_can_be_closed() {
    let world = World::make(&["--checkpoints-public", "false"]);
    std::thread::sleep(Duration::from_millis(1500));
    for path in ["/audit/checkpoint", "/audit/consistency"] {
        for (caller, name) in world.callers.iter().zip(CALLERS) {
            let expected = if name == "nobody" { 401 } else { 200 };
            assert_eq!(world.call("get", path, caller, &[]).status, expected, "{path} by {name}");
        }
    }
}
