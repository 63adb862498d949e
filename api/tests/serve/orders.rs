//! An order's life over HTTP, and what clients that try again get.

use std::sync::Barrier;

use serde_json::json;

use crate::support::{
    Finance, Server, Start, WEBHOOK_SECRET, checkout_body, now, paid_order, payment_event, stripe_signature,
};

#[test]
fn an_order_goes_from_checkout_to_its_licence() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let ann = server.of("ann@example.org", "buyer");
    let made = ann.checkout("ann@example.org", "k-1");
    assert_eq!(made.said(), (201, "ok"), "{:?}", made.body);
    let order = &made.body["order"];
    assert_eq!(order["status"], "pending");
    assert_eq!((&order["amount"], &order["currency"], &order["scale"]), (&json!(1250), &json!("EUR"), &json!(2)));
    assert_eq!(order["order_metadata"], json!({ "note": "for Ann" }));
    let id = order["order_id"].as_str().unwrap();
    assert_eq!(made.header("location"), format!("/order/{id}"));
    assert_eq!(ann.get(&format!("/order/{id}")).body["order"], *order);

    let paid = server.client(None).pay("evt_1", id, 1250, "eur");
    assert_eq!(paid.body, json!({ "ok": true, "recorded": true, "repeated": false, "event_type": "payment.captured" }));
    let finance = Finance::of(&server);
    let service = server.of("service:finance", "service");
    let settled = service.post(&format!("/order/{id}/settle"), &finance.proof(id, "lp-1"));
    assert_eq!(
        (settled.said(), &settled.body["order"]["status"]),
        ((200, "ok"), &json!("settled")),
        "{:?}",
        settled.body
    );
    let done = service.post(&format!("/order/{id}/finalize"), &json!({}));
    assert_eq!(done.said(), (200, "ok"), "{:?}", done.body);
    assert_eq!(
        (&done.body["order"]["status"], &done.body["delivery"]["status"]),
        (&json!("finalized"), &json!("ready"))
    );
    // Asked again, it is as it was.
    assert_eq!(service.post(&format!("/order/{id}/finalize"), &json!({})).body, done.body);
    let bare = service.request("POST", &format!("/order/{id}/finalize")).send().unwrap();
    assert_eq!(crate::support::Answer::of(bare).body, done.body, "there is nothing to say");
    let text = service.request("POST", &format!("/order/{id}/finalize")).body("{}").send().unwrap();
    assert_eq!(crate::support::Answer::of(text).said(), (415, "UNSUPPORTED_MEDIA_TYPE"));

    let license = ann.get(&format!("/order/{id}/license")).body["license"].clone();
    assert_eq!(license, done.body["license"]);
    let verify = |buyer: &str| ann.post("/license/verify", &json!({ "license": license, "expected_buyer_id": buyer }));
    assert_eq!(verify("ann@example.org").body["details"]["order_status"], "finalized");
    let refused = verify("bob@example.org");
    assert_eq!(refused.said(), (422, "LICENSE_INVALID"));
    assert_eq!(refused.body["error"]["details"]["reasons"][0]["code"], "other_buyer");

    let events = ann.get(&format!("/order/{id}/events"));
    let types: Vec<&str> =
        events.body["events"].as_array().unwrap().iter().map(|e| e["event_type"].as_str().unwrap()).collect();
    let own = ["order.created", "payment.captured", "order.settled", "license.issued", "delivery.requested"];
    assert_eq!(types, [&own[..], &["delivery.encrypted", "delivery.ready", "order.finalized"]].concat());
    assert_eq!(server.stop(), 0);
}

#[test]
fn one_hundred_retries_make_one_order_and_a_restart_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let server = Server::dev(&shop);
    let ann = server.of("ann@example.org", "buyer");
    let barrier = Barrier::new(100);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                let (ann, barrier) = (ann.clone(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    ann.checkout("ann@example.org", "k-1")
                })
            })
            .collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    let first = &answers[0].body;
    assert!(answers.iter().all(|a| a.status == 201 && a.body == *first));
    assert_eq!(answers.iter().filter(|a| a.header("idempotency-replayed").is_empty()).count(), 1);
    // The same key with another body is another request; another buyer's key is another key.
    let mut other = checkout_body("ann@example.org");
    other["order_metadata"] = json!({});
    assert_eq!(ann.post_with_key("/checkout", "k-1", &other).said(), (422, "IDEMPOTENCY_MISMATCH"));
    let bob = server.of("bob@example.org", "buyer").checkout("bob@example.org", "k-1");
    assert_ne!(bob.body["order"]["order_id"], first["order"]["order_id"]);

    // An event of the provider is one entry, however often it is sent.
    let id = first["order"]["order_id"].as_str().unwrap();
    let provider = server.client(None);
    assert_eq!(provider.pay("evt_1", id, 1250, "eur").body["repeated"], false);
    assert_eq!(provider.pay("evt_1", id, 1250, "eur").body["repeated"], true);
    assert_eq!(provider.pay("evt_1", id, 1251, "eur").said(), (422, "IDEMPOTENCY_MISMATCH"));
    server.kill();

    let server = Start::dev(&shop).run();
    let ann = server.of("ann@example.org", "buyer");
    let again = ann.checkout("ann@example.org", "k-1");
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, "true"));
    assert_eq!(again.body, *first);
    assert_eq!(server.client(None).pay("evt_1", id, 1250, "eur").body["repeated"], true);
    let events = ann.get(&format!("/order/{id}/events"));
    assert_eq!(events.body["events"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_paid_must_be_what_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let ann = server.of("ann@example.org", "buyer");
    let id = ann.checkout("ann@example.org", "k-1").body["order"]["order_id"].as_str().unwrap().to_owned();
    let provider = server.client(None);
    for (event, amount, currency) in [("evt_1", 1249, "eur"), ("evt_2", 1250, "usd"), ("evt_3", 1250, "jpy")] {
        assert_eq!(provider.pay(event, &id, amount, currency).body["event_type"], "payment.mismatch", "{event}");
    }
    assert_eq!(ann.get(&format!("/order/{id}")).body["order"]["status"], "pending");
    assert_eq!(provider.pay("evt_4", &id, 1250, "eur").body["event_type"], "payment.captured");
    assert_eq!(provider.pay("evt_5", &id, 1250, "eur").said(), (409, "ILLEGAL_TRANSITION"));
    let metrics = server.of("op@example.org", "operator").get("/metrics").body.as_str().unwrap().to_owned();
    assert!(metrics.contains("ledger_payments_unplaced_total 1"), "money that no order took is counted");
    // A failure that comes late says nothing, and what is of another shop neither.
    let late = payment_event("evt_7", &id, 1250, "eur").replace("succeeded", "payment_failed");
    let other = payment_event("evt_8", &id, 1250, "eur").replace("order_id", "their_id");
    for event in [late, other] {
        let answer = provider.webhook(&event, &stripe_signature(WEBHOOK_SECRET, now(), &event));
        assert_eq!((answer.status, &answer.body["recorded"]), (200, &json!(false)), "{:?}", answer.body);
    }
    assert_eq!(provider.pay("evt_6", &"00".repeat(16), 1250, "eur").said(), (404, "NOT_FOUND"));
}

#[test]
fn only_the_finance_ledger_settles() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let id = paid_order(&server, "ann@example.org", "k-1");
    let (finance, service) = (Finance::of(&server), server.of("service:finance", "service"));
    let settle = |body: &serde_json::Value| service.post(&format!("/order/{id}/settle"), body);
    let mut forged = finance.proof(&id, "lp-1");
    forged["ledger_proof_id"] = json!("lp-2");
    let mut unknown = finance.proof(&id, "lp-1");
    unknown["ledger_proof_signer_kid"] = json!("finance-00000000");
    let signers = server.of("op@example.org", "operator").get("/admin/signers");
    let licence =
        signers.body["signers"].as_array().unwrap().iter().find(|s| s["purpose"] == "licence").unwrap().clone();
    let mut other_purpose = finance.proof(&id, "lp-1");
    other_purpose["ledger_proof_signer_kid"] = licence["signer_kid"].clone();
    let mut garbage = finance.proof(&id, "lp-1");
    garbage["ledger_proof_signature"] = json!("!");
    for body in [
        forged,
        unknown,
        other_purpose,
        finance.proof_of(&id, "lp-1", 1249, "EUR", 2),
        finance.proof_of(&id, "lp-1", 1250, "USD", 2),
        finance.proof_of(&id, "lp-1", 1250, "EUR", 3),
        finance.proof_of(&"00".repeat(16), "lp-1", 1250, "EUR", 2),
    ] {
        assert_eq!(settle(&body).said(), (422, "LEDGER_PROOF_INVALID"), "{body}");
    }
    assert_eq!(settle(&garbage).said(), (422, "LEDGER_PROOF_INVALID"));
    assert_eq!(service.post(&format!("/order/{id}/finalize"), &json!({})).said(), (422, "LEDGER_PROOF_INVALID"));
    let trail = server.of("ann@example.org", "buyer").get(&format!("/order/{id}/events"));
    assert_eq!(trail.body["events"].as_array().unwrap().len(), 2, "nothing of it was recorded");
    assert_eq!(settle(&finance.proof(&id, "lp-1")).body["order"]["status"], "settled");
    let other = service.post(&format!("/order/{id}/finalize"), &finance.proof(&id, "lp-2"));
    assert_eq!(other.said(), (422, "LEDGER_PROOF_INVALID"), "it is settled against another proof");
    let same = service.post(&format!("/order/{id}/finalize"), &finance.proof(&id, "lp-1"));
    assert_eq!(same.body["order"]["ledger_proof_id"], "lp-1", "{:?}", same.body);
}

#[test]
fn orders_are_cancelled_and_refunded() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let operator = server.of("op@example.org", "operator");
    let ann = server.of("ann@example.org", "buyer");
    let open = ann.checkout("ann@example.org", "k-1").body["order"]["order_id"].as_str().unwrap().to_owned();
    let cancel = json!({ "reason": "changed her mind", "expected_revision": 1 });
    assert_eq!(operator.post(&format!("/order/{open}/cancel"), &cancel).body["order"]["status"], "cancelled");
    assert_eq!(operator.post(&format!("/order/{open}/cancel"), &cancel).said(), (409, "REVISION_CONFLICT"));

    let paid = paid_order(&server, "ann@example.org", "k-2");
    let refund = |key: &str, amount: i64, currency: &str| {
        let body = json!({ "refund": { "amount": amount, "currency": currency, "scale": 2 }, "reason": "goodwill" });
        operator.post_with_key(&format!("/order/{paid}/refund"), key, &body)
    };
    assert_eq!(refund("r-1", 250, "EUR").body["order"]["refunded"], 250);
    let again = refund("r-1", 250, "EUR");
    assert_eq!((again.header("idempotency-replayed"), &again.body["order"]["refunded"]), ("true", &json!(250)));
    assert_eq!(refund("r-2", 1001, "EUR").said(), (422, "AMOUNT_INVALID"));
    assert_eq!(refund("r-3", 100, "USD").said(), (422, "AMOUNT_INVALID"));
    assert_eq!(refund("r-4", 1000, "EUR").body["order"]["status"], "refunded");
    assert_eq!(refund("r-5", 1, "EUR").said(), (409, "ILLEGAL_TRANSITION"));
    // The first answer is given again, whatever came since.
    let first = refund("r-1", 250, "EUR");
    assert_eq!((first.header("idempotency-replayed"), &first.body), ("true", &again.body));
    assert_eq!(first.body["order"]["status"], "paid");
}
