//! The payment provider, by its own library: what it signs is taken, what it rejects is rejected and leaves no trace.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Answer, Server, Start, now, payment_event, python};

const OLD: &str = "whsec_5f2b7c1a9e8d4c3b";
const NEW: &str = "whsec_0a9b8c7d6e5f4a3b";
const STRANGE: &str = "whsec_of_somebody_else";

/// Asks the library.
fn library(tasks: &[Value]) -> Vec<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stripe_judge.py");
    let mut child = python().arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(Value::from(tasks).to_string().as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    serde_json::from_slice(&out.stdout).unwrap()
}

fn signed(body: &str, secret: &str, time: i64) -> String {
    library(&[json!({ "sign": body, "secret": secret, "time": time })])[0].as_str().unwrap().to_owned()
}

/// A server whose secret is being replaced, and an order that is not paid.
fn shop(dir: &tempfile::TempDir) -> (Server, String) {
    let secrets = format!("{OLD},{NEW}");
    let start = Start::dev(&dir.path().join("shop")).args(&["--checkpoint-seconds", "3600"]);
    let server = start.env("PAYMENT_WEBHOOK_SECRET", &secrets).run();
    let made = server.of("ann@example.org", "buyer").checkout("ann@example.org", "k-1");
    let order = made.body["order"]["order_id"].as_str().unwrap().to_owned();
    (server, order)
}

fn send(server: &Server, body: &str, header: Option<&str>) -> Answer {
    let request = server.client(None).request("POST", "/webhooks/payment").header("Content-Type", "application/json");
    let request = header.into_iter().fold(request, |request, header| request.header("Stripe-Signature", header));
    Answer::of(request.body(body.to_owned()).send().unwrap())
}

#[test]
fn a_whole_event_is_taken_once_under_both_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let (server, order) = shop(&dir);
    let text = include_str!("../payment_intent_succeeded.json").replace("ORDER_ID", &order);
    let body = text.replace("EVENT_ID", "evt_1");
    let before = server.entries();
    let first = send(&server, &body, Some(&signed(&body, OLD, now())));
    assert_eq!(
        (first.said(), &first.body["event_type"]),
        ((200, "ok"), &json!("payment.captured")),
        "{:?}",
        first.body
    );
    assert_eq!(server.entries(), before + 1);
    // The provider sends it again, signed anew, by then under the other secret.
    let again = send(&server, &body, Some(&signed(&body, NEW, now() - 60)));
    assert_eq!((again.said(), &again.body["repeated"]), ((200, "ok"), &json!(true)));
    // Somebody who overheard it has the same answer, and no more.
    let header = signed(&body, NEW, now());
    for _ in 0..3 {
        assert_eq!(send(&server, &body, Some(&header)).body, again.body);
    }
    // Bytes, not their meaning, are signed.
    let compact = serde_json::from_str::<Value>(&body).unwrap().to_string();
    assert_eq!(send(&server, &compact, Some(&header)).said(), (401, "NOT_AUTHORIZED"));
    // The id of an event that was taken, with other contents.
    let other = body.replace("1250", "1");
    assert_eq!(send(&server, &other, Some(&signed(&other, NEW, now()))).said(), (422, "IDEMPOTENCY_MISMATCH"));
    assert_eq!(server.entries(), before + 1);
    let kind = |kind: &str| body.replace("evt_1", "evt_2").replace("payment_intent.succeeded", kind);
    let other = kind("charge.refund.updated");
    let other = send(&server, &other, Some(&signed(&other, NEW, now())));
    assert_eq!((other.said(), &other.body["recorded"]), ((200, "ok"), &json!(false)));
    assert_eq!(server.entries(), before + 1);
}

/// A header, by the body, the time now and one good `v1` of them.
type Forge = fn(&str, i64, &str) -> String;

/// Headers, and whether the server takes them.
const HEADERS: &[(&str, bool, Forge)] = &[
    ("good", true, |_, t, v1| format!("t={t},v1={v1}")),
    ("signature first", true, |_, t, v1| format!("v1={v1},t={t}")),
    ("several v1, the last good", true, |_, t, v1| format!("t={t},v1={0},v1={0},v1={v1}", "00".repeat(32))),
    ("v0 beside v1", true, |_, t, v1| format!("t={t},v0={},v1={v1}", "11".repeat(32))),
    ("unknown members", true, |_, t, v1| format!("t={t},v1={v1},v2=abc,x=")),
    ("one that is no hex beside a good one", true, |_, t, v1| format!("t={t},v1=xyz,v1={v1}")),
    ("v0 only", false, |_, t, v1| format!("t={t},v0={v1}")),
    ("no signature", false, |_, t, _| format!("t={t}")),
    ("no time", false, |_, _, v1| format!("v1={v1}")),
    ("empty", false, |_, _, _| String::new()),
    ("empty time", false, |_, _, v1| format!("t=,v1={v1}")),
    ("time in words", false, |_, _, v1| format!("t=now,v1={v1}")),
    ("another time", false, |_, t, v1| format!("t={},v1={v1}", t + 1)),
    ("blanks after commas", false, |_, t, v1| format!("t={t}, v1={v1}")),
    ("upper case", false, |_, t, v1| format!("t={t},v1={}", v1.to_uppercase())),
    ("half a signature", false, |_, t, v1| format!("t={t},v1={}", &v1[..32])),
    ("names in upper case", false, |_, t, v1| format!("T={t},V1={v1}")),
    ("semicolons", false, |_, t, v1| format!("t={t};v1={v1}")),
    ("a stranger's secret", false, |body, t, _| signed(body, STRANGE, t)),
    ("another body", false, |body, t, _| signed(&format!("{body} "), NEW, t)),
    ("within the tolerance", true, |body, t, _| signed(body, NEW, t - 290)),
    ("older than the tolerance", false, |body, t, _| signed(body, NEW, t - 301)),
    ("much older", false, |body, t, _| signed(body, NEW, t - 86_400)),
    ("before 1970", false, |body, _, _| signed(body, NEW, -1)),
    ("a clock that is ahead", true, |body, t, _| signed(body, NEW, t + 290)),
    // The library believes every future.
    ("of the future", false, |body, t, _| signed(body, NEW, t + 310)),
];

#[test]
fn what_the_library_rejects_is_rejected_and_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let (server, order) = shop(&dir);
    // Of an amount that is not the order's: each that is taken appends one entry, a payment.mismatch.
    let cases: Vec<(String, String)> = HEADERS
        .iter()
        .enumerate()
        .map(|(i, (_, _, forge))| {
            let (body, time) = (payment_event(&format!("evt_{i}"), &order, 7, "eur"), now());
            let good = signed(&body, NEW, time);
            let v1 = good.split_once("v1=").unwrap().1;
            (forge(&body, time, v1), body)
        })
        .collect();
    let tasks = cases.iter().map(|(header, body)| json!({ "judge": body, "header": header, "secrets": [OLD, NEW] }));
    let verdicts = library(&tasks.collect::<Vec<_>>());
    for (((header, body), verdict), (name, taken, _)) in cases.iter().zip(&verdicts).zip(HEADERS) {
        assert!(!taken || verdict == true, "{name}: the library rejects what we take");
        let before = server.entries();
        let answer = send(&server, body, Some(header));
        let expected = if *taken { (200, "ok") } else { (401, "NOT_AUTHORIZED") };
        assert_eq!(answer.said(), expected, "{name}: {:?}", answer.body);
        assert_eq!(server.entries() - before, u64::from(*taken), "{name}");
    }
    let believed = HEADERS.iter().zip(&verdicts).filter(|((_, taken, _), verdict)| **verdict == true && !taken);
    assert_eq!(believed.map(|((name, ..), _)| *name).collect::<Vec<_>>(), ["of the future"], "where we are stricter");
    let body = payment_event("evt_x", &order, 7, "eur");
    assert_eq!(send(&server, &body, None).said(), (401, "NOT_AUTHORIZED"));
    let twice = server.client(None).request("POST", "/webhooks/payment");
    let good = signed(&body, NEW, now());
    let twice = twice.header("Stripe-Signature", &good).header("Stripe-Signature", &good).body(body);
    assert_eq!(Answer::of(twice.send().unwrap()).said(), (401, "NOT_AUTHORIZED"), "one of two headers is not chosen");
}

#[test]
fn events_that_are_signed_and_senseless_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (server, order) = shop(&dir);
    let before = server.entries();
    let good = payment_event("evt_1", &order, 1250, "eur");
    for (name, body) in [
        ("nothing", String::new()),
        ("no JSON", "{".into()),
        ("a list", "[]".into()),
        ("no id", good.replace("\"id\":\"evt_1\",", "")),
        ("a fraction of a cent", good.replace("1250", "12.5")),
        ("an amount beyond 64 bits", good.replace("1250", "99999999999999999999")),
        ("an amount below nothing", good.replace("1250", "-1250")),
        ("no amount", good.replace("\"amount\":1250,", "")),
        ("deeper than anything", good.replace("1.5", &format!("{}{}", "[".repeat(3000), "]".repeat(3000)))),
        ("an id that is too long", good.replace("evt_1", &"e".repeat(300))),
        ("two ids", good.replace("\"id\":\"evt_1\"", "\"id\":\"evt_1\",\"id\":\"evt_2\"")),
    ] {
        assert_ne!(body, good, "{name}");
        let answer = send(&server, &body, Some(&signed(&body, NEW, now())));
        assert_eq!(answer.said(), (400, "INVALID_REQUEST"), "{name}: {:?}", answer.body);
    }
    let other = good.replace(&order, "no-order");
    assert_eq!(send(&server, &other, Some(&signed(&other, NEW, now()))).said(), (404, "NOT_FOUND"));
    assert_eq!(server.entries(), before);
}
