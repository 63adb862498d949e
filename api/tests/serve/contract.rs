//! The description is true: `schemathesis` makes requests from it, good and bad ones, and judges the answers.

use crate::support::{Finance, Server, Start, paid_order, python};

/// Requests of one operation in one phase at most.
const EXAMPLES: &str = "12";

/// Judges a server as a caller finds it. With what is `known`, good requests are made about that.
fn judge(server: &Server, token: Option<&str>, known: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemathesis.toml");
    let mut command = python();
    if !known.is_empty() {
        command.env("SCHEMATHESIS_HOOKS", "schemathesis_hooks").envs(known.iter().copied());
        command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).env("PYTHONDONTWRITEBYTECODE", "1");
    }
    command.args(["-m", "schemathesis.cli", "--config-file", config, "run", "--no-color"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--checks", "all", "--continue-on-failure"]);
    command.args(["--seed", "1", "--max-examples", EXAMPLES, "--suppress-health-check", "too_slow"]);
    if let Some(token) = token {
        command.args(["--header", &format!("Authorization: Bearer {token}")]);
    }
    // What it keeps between runs is not for the next one.
    let out = command.arg(format!("{}/openapi.json", server.url)).current_dir(dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    assert!(text.contains("29 total") && text.contains("28 selected"), "{text}");
}

fn as_role(sub: &str, role: &str) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    judge(&server, Some(&server.token(sub, role)), &[]);
}

#[test]
fn the_description_is_true_without_a_token() {
    let dir = tempfile::tempdir().unwrap();
    judge(&Server::dev(&dir.path().join("shop")), None, &[]);
}

#[test]
fn the_description_is_true_for_buyers() {
    as_role("ann@example.org", "buyer");
}

#[test]
fn the_description_is_true_for_services() {
    as_role("service:finance", "service");
}

#[test]
fn the_description_is_true_for_operators() {
    as_role("op@example.org", "operator");
}

#[test]
fn the_description_is_true_for_auditors() {
    as_role("eve@example.org", "auditor");
}

/// Good requests are about an order that is there, and of its buyer, so that successes are judged, too.
#[test]
fn the_description_is_true_of_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let server = Start::dev(&dir.path().join("shop")).args(&["--checkpoint-seconds", "1"]).run();
    let buyer = "ann@example.org";
    let order = paid_order(&server, buyer, "k-1");
    let service = server.of("service:finance", "service");
    let done = service.post(&format!("/order/{order}/finalize"), &Finance::of(&server).proof(&order, "lp-1"));
    assert_eq!(done.said(), (200, "ok"), "{:?}", done.body);
    let auditor = server.of("eve@example.org", "auditor");
    let events = auditor.get(&format!("/order/{order}/events")).body;
    let entry = events["events"][0]["id"].as_str().unwrap();
    let known = [("BUYER", buyer), ("SKU", "sku-e2e"), ("ORDER", &order), ("ENTRY", entry)];
    for (sub, role) in [(buyer, "buyer"), ("eve@example.org", "auditor"), ("service:finance", "service")] {
        judge(&server, Some(&server.token(sub, role)), &known);
    }
    let mut counts = std::collections::BTreeMap::new();
    let metrics = server.of("op@example.org", "operator").get("/metrics").body;
    for line in metrics.as_str().unwrap().lines().filter(|l| l.starts_with("http_requests_total{")) {
        let route = line.split("route=\"").nth(1).unwrap().split('"').next().unwrap();
        if line.contains("status=\"20") {
            *counts.entry(route.to_owned()).or_insert(0) += line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    for route in ["/checkout", "/order/{id}", "/order/{id}/events", "/order/{id}/license", "/order/{id}/finalize"] {
        assert!(counts.get(route).is_some_and(|n| *n > 2), "{route} succeeded: {counts:?}");
    }
    for route in [
        "/catalog",
        "/sku/{id}",
        "/audit/events",
        "/audit/events/{id}",
        "/audit/events/{id}/proof",
        "/audit/consistency",
    ] {
        assert!(counts.get(route).is_some_and(|n| *n > 2), "{route} succeeded: {counts:?}");
    }
}
