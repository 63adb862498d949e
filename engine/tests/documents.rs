//! Keys are enrolled, licences signed, and signatures of finance checked; whatever is not right is refused and leaves no entry.
#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use audit_verify::{Demands, Held};
use ledger_engine::delivery_proof::{Encryption, ProofTerms};
use ledger_engine::domain::case::read_licence;
use ledger_engine::domain::money::Money;
use ledger_engine::finance;
use ledger_engine::hash::{Hash, sha256, to_hex};
use ledger_engine::json::Object;
use ledger_engine::keys::PrivateKey;
use ledger_engine::ledger::{Enrolment, Ledger};
use ledger_engine::licence::{Licence, Reason, judge};
use ledger_engine::manifest::Manifest;
use ledger_engine::registry::{Action, Key, Purpose};
use ledger_engine::retire::Retire;
use ledger_engine::signer::{LocalSigner, Pending, Signer, SignerError};
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use ledger_engine::stream::{CaseId, Stream};
use support::{
    code, create, create_line, create_order, enrol, enrolment, genesis, life, list_sku, send, signer, verified,
};

const YEAR_2030_US: i64 = 1_893_456_000_000_000;

fn rsa() -> PrivateKey {
    PrivateKey::parse(include_str!("../../fixtures/keys/finance-rsa.pem")).unwrap()
}

/// Signs unless it is told to be away.
struct Flaky(LocalSigner, AtomicBool);

impl Signer for Flaky {
    fn public_key(&self) -> [u8; 32] {
        self.0.public_key()
    }

    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<[u8; 64], SignerError>> {
        if self.1.load(Ordering::Relaxed) {
            let away = SignerError { kid: self.0.key().kid.clone(), reason: "unplugged".into() };
            return Box::pin(std::future::ready(Err(away)));
        }
        self.0.sign(message)
    }
}

/// A ledger with an enrolled licence key, opened with its signer.
async fn licensing(dir: &Path, chains: u32) -> (Ledger, Arc<Flaky>) {
    let ledger = create(dir, chains).await;
    enrol(&ledger, Purpose::Licence, 20).await.unwrap();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let licence_signer = Arc::new(Flaky(signer(Purpose::Licence, 20), AtomicBool::new(false)));
    let store = SqliteStore::open(dir, SqliteOptions::default()).unwrap();
    let config = support::config(Arc::new(store));
    config.signers.add(licence_signer.clone());
    (Ledger::open(config).await.unwrap(), licence_signer)
}

/// The licence in an order's entry.
async fn licence_of(ledger: &Ledger, order: &str) -> Licence {
    let entries = ledger.read_stream(Stream::Order(CaseId::parse(order).unwrap())).await.unwrap();
    let issued = entries.iter().find(|e| e.header.event_type == "license.issued").unwrap();
    read_licence(issued.parse_body().unwrap().payload.value("license").unwrap()).unwrap()
}

async fn settled(ledger: &Ledger, key: &str) -> String {
    let order = create_order(ledger, key, "s").await;
    for line in life(&order).iter().take(2) {
        send(ledger, line).await.unwrap();
    }
    order
}

fn issue(order: &str, rest: &str) -> String {
    format!(r#"{{"command":"license.issue","actor":"service:market","order_id":"{order}"{rest}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_enrolled_and_counts_from_the_next_commit() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 2).await;
    list_sku(&ledger, "s").await;
    assert_eq!(ledger.registry().size(), 1);
    enrol(&ledger, Purpose::Licence, 20).await.unwrap();
    let key = Key::named(Purpose::Finance, rsa().public_key().unwrap());
    let enrolment = enrolment(&ledger, key.clone(), 1, |statement| rsa().sign(statement).unwrap()).await;
    ledger.enrol(enrolment).await.unwrap();
    assert_eq!(ledger.registry().size(), 3);
    assert_eq!(ledger.registry().current(Purpose::Finance), Some(&key));
    // Many commands at once, with a change of keys among them: it still ends its commit.
    let lines: Vec<String> = (0..200).map(|i| create_line(&format!("k{i}"), "s")).collect();
    let orders = futures_join(&ledger, &lines);
    let (_, enrolled) = tokio::join!(orders, enrol(&ledger, Purpose::Export, 30));
    enrolled.unwrap();
    send(&ledger, &create_line("last", "s")).await.unwrap();
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
}

async fn futures_join(ledger: &Ledger, lines: &[String]) {
    let mut pending = Vec::new();
    for line in lines {
        let command = ledger_engine::domain::command::Command::parse(line.as_bytes()).unwrap();
        pending.push(ledger.submit(&command, None, "SUBMIT").await.unwrap());
    }
    for answer in pending {
        answer.wait().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_that_is_not_right_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    let incoming = signer(Purpose::Finance, 21);
    let sign = |statement: &[u8]| incoming.signature(statement).to_vec();
    let refused = async |enrolment: Enrolment, expected: &str| {
        let e = ledger.enrol(enrolment).await.unwrap_err();
        assert_eq!(e.code(), expected, "{e}");
    };
    let key = incoming.key().clone();
    // Another governance key, another's possession, a signature over something else, a key twice, and a kid twice.
    refused(enrolment(&ledger, key.clone(), 9, sign).await, "KEY_REFUSED").await;
    let other = |statement: &[u8]| signer(Purpose::Finance, 22).signature(statement).to_vec();
    refused(enrolment(&ledger, key.clone(), 1, other).await, "KEY_REFUSED").await;
    refused(enrolment(&ledger, key.clone(), 1, |_| sign(b"else")).await, "KEY_REFUSED").await;
    let ours = Key::named(Purpose::Commit, rsa().public_key().unwrap());
    refused(enrolment(&ledger, ours, 1, |s| rsa().sign(s).unwrap()).await, "KEY_REFUSED").await;
    let late = enrolment(&ledger, key.clone(), 1, sign).await;
    let too_late = enrolment(&ledger, signer(Purpose::Export, 23).key().clone(), 1, |s| {
        signer(Purpose::Export, 23).signature(s).to_vec()
    })
    .await;
    ledger.enrol(late).await.unwrap();
    // It was signed for the registry as it was before: retryable, with the new statement.
    refused(too_late, "REVISION_CONFLICT").await;
    refused(enrolment(&ledger, key.clone(), 1, sign).await, "KEY_REFUSED").await;
    let same_kid = Key { kid: key.kid.clone(), ..signer(Purpose::Finance, 24).key().clone() };
    let by_24 = |s: &[u8]| signer(Purpose::Finance, 24).signature(s).to_vec();
    refused(enrolment(&ledger, same_kid, 1, by_24).await, "KEY_REFUSED").await;
    assert_eq!(ledger.registry().size(), 2);
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
}

/// Two at once: one is admitted, the other told to sign again; the same between two processes.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_enrolments_at_once_one_is_admitted() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 2).await;
    list_sku(&ledger, "s").await;
    let other = support::open(dir.path()).await;
    for (round, (one, two)) in [(&ledger, &ledger), (&ledger, &other), (&other, &ledger)].into_iter().enumerate() {
        let seed = 40 + 2 * round as u8;
        let make = async |ledger: &Ledger, seed: u8| {
            let incoming = signer(Purpose::Export, seed);
            enrolment(ledger, incoming.key().clone(), 1, |s| incoming.signature(s).to_vec()).await
        };
        let (first, second) = (make(one, seed).await, make(two, seed + 1).await);
        let (first, second) = tokio::join!(one.enrol(first), two.enrol(second));
        let codes = [first, second].map(|r| r.map_or_else(|e| e.code(), |_| "admitted"));
        assert!(codes.contains(&"admitted") && codes.contains(&"REVISION_CONFLICT"), "{codes:?}");
        // Both write on: a commit never names fewer keys than the one before it.
        for (i, ledger) in [two, one, two, one].into_iter().enumerate() {
            create_order(ledger, &format!("r{round}-{i}"), "s").await;
        }
    }
    ledger.checkpoint().await.unwrap();
    other.shutdown().await.unwrap();
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_licence_is_signed_and_can_be_judged_offline() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = licensing(dir.path(), 2).await;
    list_sku(&ledger, "s").await;
    let order = settled(&ledger, "k1").await;
    let line = issue(&order, &format!(r#","idempotency_key":"i","scope":"team \u0007","expires_at":{YEAR_2030_US}"#));
    let first = send(&ledger, &line).await.unwrap();
    let again = send(&ledger, &line).await.unwrap();
    assert!(again.repeated && again.entries == first.entries);
    let licence = licence_of(&ledger, &order).await;
    let terms = &licence.terms;
    assert_eq!((terms.sku_id.as_str(), terms.scope.as_str()), ("s", "team \u{7}"));
    assert_eq!(
        (terms.buyer_id.as_str(), terms.expires_at_us),
        (ledger.actor_id("k1@example.org").as_str(), Some(YEAR_2030_US))
    );
    let (registry, id, buyer) = (ledger.registry(), ledger.id(), terms.buyer_id.clone());
    let judged = |text: &str, buyer: &str, now_us| judge(text.as_bytes(), &registry, &id, Some(buyer), now_us);
    let text = licence.to_text();
    assert_eq!(judged(&text, &buyer, YEAR_2030_US - 1), []);
    let pretty: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(judged(&serde_json::to_string_pretty(&pretty).unwrap(), &buyer, 0), []);
    assert_eq!(judged(&text, "p-other", YEAR_2030_US), [Reason::OtherBuyer, Reason::Expired(YEAR_2030_US)]);
    assert_eq!(judged(&text.replace(r#""sku_id":"s""#, r#""sku_id":"t""#), &buyer, 0), [Reason::BadSignature]);
    let kid = |kid: &str| text.replace(&terms.signer_kid, kid);
    assert_eq!(judged(&kid("licence-00"), &buyer, 0), [Reason::UnknownKid("licence-00".into())]);
    let commit = registry.current(Purpose::Commit).unwrap().kid.clone();
    assert_eq!(judged(&kid(&commit), &buyer, 0), [Reason::WrongPurpose(commit)]);
    let elsewhere = ledger_engine::hash::Hash([7; 32]);
    assert_eq!(judge(text.as_bytes(), &registry, &elsewhere, None, 0), [Reason::WrongLedger(id)]);
    assert!(matches!(judged("{}", &buyer, 0)[..], [Reason::Malformed(_)]));
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);

    // By its proof file and as the buyer holds it.
    let index = first.entries[0].index;
    let proof = ledger.proof(first.chain, index, false).await.unwrap().encode().unwrap();
    let file = dir.path().join("licence.proof");
    std::fs::write(&file, proof).unwrap();
    let demands = Demands { trust: Some(id), ..Demands::default() };
    let report = audit_verify::verify_proof_and(&file, Held::Licence(text.as_bytes()), demands);
    let said = report.to_text();
    assert_eq!(report.exit(), 0, "{said}");
    assert!(
        said.contains(&format!("the licence for buyer {buyer} to s")) && said.contains("until 2030-01-01"),
        "{said}"
    );
    assert!(said.contains("the licence which was given is this one"), "{said}");
    for other in [text.replace("2030", "2031"), "{}".into(), "x".into()] {
        let report = audit_verify::verify_proof_and(&file, Held::Licence(other.as_bytes()), demands);
        assert_eq!((report.exit(), report.codes()), (1, vec!["licence_mismatch".to_owned()]), "{}", report.to_text());
    }
    let stream = audit_verify::verify_stream(dir.path(), &order, demands);
    assert_eq!(stream.exit(), 0, "{}", stream.to_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_licence_that_cannot_be_signed_is_not_issued() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, signer) = licensing(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let (order, other) = (settled(&ledger, "k1").await, settled(&ledger, "k2").await);
    let keyed = issue(&order, r#","idempotency_key":"i""#);
    send(&ledger, &keyed).await.unwrap();
    signer.1.store(true, Ordering::Relaxed);
    let size = ledger.store().heads().unwrap()[0].size();
    assert_eq!(code(&ledger, &issue(&other, "")).await, "SIGNING_UNAVAILABLE");
    // A retry still gets its answer, and what would be refused anyhow its own code.
    assert_eq!(code(&ledger, &keyed).await, "repeated");
    assert_eq!(code(&ledger, &issue(&order, "")).await, "ILLEGAL_TRANSITION");
    let unpaid = {
        signer.1.store(false, Ordering::Relaxed);
        let unpaid = create_order(&ledger, "k3", "s").await;
        signer.1.store(true, Ordering::Relaxed);
        unpaid
    };
    assert_eq!(code(&ledger, &issue(&unpaid, "")).await, "ILLEGAL_TRANSITION");
    assert_eq!(code(&ledger, &issue(&"ab".repeat(16), "")).await, "ORDER_NOT_FOUND");
    assert_eq!(code(&ledger, &issue(&other, r#","expected_revision":9"#)).await, "REVISION_CONFLICT");
    assert_eq!(ledger.store().heads().unwrap()[0].size(), size + 1);
    signer.1.store(false, Ordering::Relaxed);
    assert_eq!(code(&ledger, &issue(&other, "")).await, "accepted");
    licence_of(&ledger, &other).await;
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
}

/// A whole life queued without waiting: the licence is signed before its order is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_licence_can_be_asked_for_before_its_order_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = licensing(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let mut orders = Vec::new();
    let mut lines = Vec::new();
    for i in 0..100 {
        let create = create_line(&format!("q{i}"), "s");
        let command = ledger_engine::domain::command::Command::parse(create.as_bytes()).unwrap();
        let pending = ledger.submit(&command, None, "SUBMIT").await.unwrap();
        let order = pending.case.to_string();
        lines.push(pending);
        for line in life(&order).iter().take(3) {
            let command = ledger_engine::domain::command::Command::parse(line.as_bytes()).unwrap();
            lines.push(ledger.submit(&command, None, "SUBMIT").await.unwrap());
        }
        orders.push(order);
    }
    for answer in lines {
        answer.wait().await.unwrap();
    }
    for order in &orders {
        assert_eq!(licence_of(&ledger, order).await.terms.order_id.to_string(), *order);
    }
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_without_a_licence_key_issues_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let order = settled(&ledger, "k1").await;
    assert_eq!(code(&ledger, &issue(&order, r#","scope":"team""#)).await, "INVALID_COMMAND");
    assert_eq!(code(&ledger, &issue(&order, "")).await, "accepted");
    ledger.shutdown().await.unwrap();
    // A signer whose key is not enrolled signs nothing; once it is enrolled, none is issued without it.
    let store = SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap();
    let config = support::config(Arc::new(store));
    let signers = Arc::clone(&config.signers);
    let licence_signer = Arc::new(signer(Purpose::Licence, 20));
    signers.add(licence_signer);
    let ledger = Ledger::open(config).await.unwrap();
    let order = settled(&ledger, "k2").await;
    assert_eq!(code(&ledger, &issue(&order, "")).await, "accepted");
    enrol(&ledger, Purpose::Licence, 20).await.unwrap();
    let order = settled(&ledger, "k3").await;
    assert_eq!(code(&ledger, &issue(&order, "")).await, "accepted");
    assert_eq!(licence_of(&ledger, &order).await.terms.signer_kid, signer(Purpose::Licence, 20).key().kid);
    ledger.shutdown().await.unwrap();
    let ledger = support::open(dir.path()).await;
    let order = settled(&ledger, "k4").await;
    assert_eq!(code(&ledger, &issue(&order, "")).await, "SIGNING_UNAVAILABLE");
    assert_eq!(genesis(1).commit_key, *signer(Purpose::Commit, 2).key());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_counts_only_with_the_signature_of_finance() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 2).await;
    list_sku(&ledger, "s").await;
    enrol(&ledger, Purpose::Finance, 21).await.unwrap();
    let key = Key::named(Purpose::Finance, rsa().public_key().unwrap());
    let rsa_kid = key.kid.clone();
    let enrolment = enrolment(&ledger, key, 1, |statement| rsa().sign(statement).unwrap()).await;
    ledger.enrol(enrolment).await.unwrap();
    let ed = signer(Purpose::Finance, 21);
    let total = |amount| Money { amount, currency: "EUR".into(), scale: 2 };
    let statement = |order: &str, amount| finance::statement(CaseId::parse(order).unwrap(), "lp", &total(amount));
    let settle = |order: &str, kid: &str, signature: &str| {
        format!(
            r#"{{"command":"order.settle","actor":"service:f","order_id":"{order}","ledger_proof_id":"lp","finance_kid":"{kid}","finance_signature":"{signature}"}}"#
        )
    };
    let paid = async |name: &str| {
        let order = create_order(&ledger, name, "s").await;
        send(&ledger, &life(&order)[0]).await.unwrap();
        order
    };
    let order = paid("k1").await;
    let kid = ed.key().kid.clone();
    let by_ed = |order: &str, amount| to_hex(&ed.signature(&statement(order, amount)));
    let size = || ledger.store().heads().unwrap().iter().map(|h| h.size()).sum::<u64>();
    let before = size();
    let message = async |line: &str| {
        let e = send(&ledger, line).await.unwrap_err();
        assert_eq!(e.code(), "LEDGER_PROOF_INVALID", "{e}");
        e.to_string()
    };
    for (line, says) in [
        (settle(&order, &kid, &by_ed(&order, 1251)), "does not verify"),
        (settle(&order, "finance-00", &by_ed(&order, 1250)), "not in the registry"),
        (settle(&order, &genesis(1).commit_key.kid, &by_ed(&order, 1250)), "something else"),
        (settle(&order, &rsa_kid, &by_ed(&order, 1250)), "another algorithm"),
    ] {
        let said = message(&line).await;
        assert!(said.contains(says), "{said}");
    }
    for (rest, what) in [
        (r#","finance_kid":"finance-00""#, "no signature"),
        (r#","finance_signature":"00""#, "no kid"),
        (r#","finance_kid":"finance-00","finance_signature":"zz""#, "no signature's text"),
    ] {
        let line = format!(
            r#"{{"command":"order.settle","actor":"service:f","order_id":"{order}","ledger_proof_id":"lp"{rest}}}"#
        );
        let parsed = ledger_engine::domain::command::Command::parse(line.as_bytes());
        assert_eq!(parsed.unwrap_err().code(), "INVALID_COMMAND", "{what}");
    }
    assert_eq!(size(), before, "nothing was appended");
    assert_eq!(code(&ledger, &settle(&order, &kid, &by_ed(&order, 1250))).await, "accepted");
    assert_eq!(code(&ledger, &settle(&order, &kid, &by_ed(&order, 1250))).await, "ILLEGAL_TRANSITION");
    let second = paid("k2").await;
    let by_rsa = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(rsa().sign(&statement(&second, 1250)).unwrap())
    };
    assert_eq!(code(&ledger, &settle(&second, &rsa_kid, &by_rsa)).await, "accepted");

    // In one batch with its order: the rule holds there too.
    let mut pending = Vec::new();
    let mut queue = async |line: &str| {
        let command = ledger_engine::domain::command::Command::parse(line.as_bytes()).unwrap();
        let queued = ledger.submit(&command, None, "SUBMIT").await.unwrap();
        let case = queued.case.to_string();
        pending.push(queued);
        case
    };
    let (good, bad) = (queue(&create_line("b1", "s")).await, queue(&create_line("b2", "s")).await);
    for (order, amount) in [(&good, 1250), (&bad, 1)] {
        queue(&life(order)[0]).await;
        queue(&settle(order, &kid, &by_ed(order, amount))).await;
    }
    let mut codes = Vec::new();
    for answer in pending {
        codes.push(answer.wait().await.map_or_else(|e| e.code(), |_| "accepted"));
    }
    assert_eq!(codes, ["accepted", "accepted", "accepted", "accepted", "accepted", "LEDGER_PROOF_INVALID"]);
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
    let demands = Demands { trust: Some(ledger.id()), ..Demands::default() };
    for order in [&order, &second] {
        let stream = audit_verify::verify_stream(dir.path(), order, demands);
        assert_eq!(stream.exit(), 0, "{}", stream.to_text());
    }
}

/// What another process enrols is seen by one that is open.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_another_process_enrolled_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    let order = create_order(&ledger, "k1", "s").await;
    send(&ledger, &life(&order)[0]).await.unwrap();
    let other = support::open(dir.path()).await;
    enrol(&other, Purpose::Finance, 21).await.unwrap();
    other.shutdown().await.unwrap();
    let ed = signer(Purpose::Finance, 21);
    let total = Money { amount: 1250, currency: "EUR".into(), scale: 2 };
    let signature = to_hex(&ed.signature(&finance::statement(CaseId::parse(&order).unwrap(), "lp", &total)));
    let line = format!(
        r#"{{"command":"order.settle","actor":"service:f","order_id":"{order}","ledger_proof_id":"lp","finance_kid":"{}","finance_signature":"{signature}"}}"#,
        ed.key().kid
    );
    assert_eq!(code(&ledger, &line).await, "accepted");
    let action = Action::Enrol { key: ed.key().clone(), justification: None };
    assert_eq!(action.event_type(), "key.enrolled");
    ledger.shutdown().await.unwrap();
    verified(dir.path(), &ledger);
}

/// A manifest of the SKU `s` with a price, signed by a key over what it says, or over something else.
fn manifest(signer: &LocalSigner, title: &str, signed_title: &str) -> String {
    let of = |title: &str| {
        let artifact = Object::new()
            .with("artifact_id", "a")
            .with("artifact_url", "https://artifacts.example.org/a")
            .with("sha256", "00".repeat(32));
        Object::new()
            .with("artifacts", vec![artifact.into()])
            .with("author", Object::new().with("id", "author-1").with("name", "A. Author"))
            .with("checksum", "none")
            .with("id", "s")
            .with("license", Object::new().with("type", "standard"))
            .with("metadata", Object::new().with("tags", vec!["serif".into()]))
            .with("title", title)
            .with("version", "1")
    };
    let signature = to_hex(&signer.signature(&of(signed_title).to_canonical()));
    let signature = Object::new()
        .with("signature", signature)
        .with("signer_kid", signer.key().kid.as_str())
        .with("ts", "2026-11-25T10:00:00Z");
    String::from_utf8(of(title).with("manifest_signature", signature).to_canonical()).unwrap()
}

fn list(manifest: Option<&str>) -> String {
    let price = Object::new().with("amount", 1250).with("currency", "EUR").with("scale", 2);
    let mut command = Object::new()
        .with("command", "sku.list")
        .with("actor", "service:catalog")
        .with("sku_id", "s")
        .with("title", "Font")
        .with("price", price);
    command.set_some("manifest", manifest);
    String::from_utf8(command.to_canonical()).unwrap()
}

/// Whatever is refused leaves no entry, whoever asks again is answered as before, and the ledger is found good.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_does_not_vouch_for_is_neither_listed_nor_sold() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 3).await;
    let withdraw = r#"{"command":"sku.withdraw","actor":"service:catalog","sku_id":"s"}"#;
    let (kernel, next) = (signer(Purpose::Kernel, 30), signer(Purpose::Kernel, 31));
    let good = manifest(&kernel, "Font", "Font");
    // Before the registry knows the Kernel, a SKU may do without; a signature by nobody counts for nothing.
    assert_eq!(code(&ledger, &list(Some(&good))).await, "INVALID_SIGNATURE");
    send(&ledger, &list(None)).await.unwrap();
    create_order(&ledger, "before", "s").await;
    enrol(&ledger, Purpose::Kernel, 30).await.unwrap();
    assert_eq!(code(&ledger, &create_line("bare", "s")).await, "INVALID_MANIFEST");
    assert_eq!(code(&ledger, &create_line("before", "s")).await, "repeated");
    send(&ledger, withdraw).await.unwrap();
    let entries = ledger.sizes().await.unwrap();
    for (manifest, expected) in [
        (None, "INVALID_MANIFEST"),
        (Some("{}".to_owned()), "INVALID_MANIFEST"),
        (Some(good.replace("\"id\":\"s\"", "\"id\":\"t\"")), "MANIFEST_MISMATCH"),
        (Some(manifest(&kernel, "Another", "Another")), "MANIFEST_MISMATCH"),
        (Some(manifest(&kernel, "Font", "Another")), "INVALID_SIGNATURE"),
        (Some(manifest(&next, "Font", "Font")), "INVALID_SIGNATURE"),
        (Some(manifest(&signer(Purpose::Commit, 2), "Font", "Font")), "INVALID_SIGNATURE"),
    ] {
        assert_eq!(code(&ledger, &list(manifest.as_deref())).await, expected, "{manifest:?}");
    }
    assert_eq!(ledger.sizes().await.unwrap(), entries);
    send(&ledger, &list(Some(&good))).await.unwrap();
    assert_eq!(code(&ledger, &list(Some(&good))).await, "ILLEGAL_TRANSITION");
    create_order(&ledger, "vouched", "s").await;
    // Its key was in other hands by then: nothing that it listed is sold until another key vouches for it.
    let since: Vec<u64> = ledger.sizes().await.unwrap().iter().map(|size| size - 1).collect();
    let listed = ledger.read_stream(Stream::Sku(CaseId::of_sku("s"))).await.unwrap().pop().unwrap();
    assert!(listed.header.index >= since[listed.header.chain as usize]);
    let (kid, reason) = (kernel.key().kid.clone(), "stolen".to_owned());
    let revoke = Retire::Revoke { kid, reason, compromised_since: Some(since) };
    ledger.retire(revoke, support::authorise(None)).await.unwrap();
    assert_eq!(code(&ledger, &create_line("stolen", "s")).await, "INVALID_MANIFEST");
    send(&ledger, withdraw).await.unwrap();
    assert_eq!(code(&ledger, &list(Some(&good))).await, "INVALID_SIGNATURE");
    enrol(&ledger, Purpose::Kernel, 31).await.unwrap();
    send(&ledger, &list(Some(&manifest(&next, "Font", "Font")))).await.unwrap();
    create_order(&ledger, "vouched again", "s").await;
    assert!(ledger.check_projections().await.unwrap().is_empty(), "the read model is what the entries give");
    ledger.shutdown().await.unwrap();
    // Nothing is wrong with it, but for what rests on a stolen key.
    let report = audit_verify::verify_path(dir.path(), Some(ledger.id()));
    assert_eq!((report.exit(), report.findings().len()), (2, 0), "{}", report.to_text());
}

/// What was listed later, under the same id and at the same price, is not what an order was made for; on one chain, and across chains.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_proof_is_of_the_listing_that_was_bought_by() {
    for chains in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let ledger = create(dir.path(), chains).await;
        enrol(&ledger, Purpose::Kernel, 30).await.unwrap();
        enrol(&ledger, Purpose::DeliveryProof, 21).await.unwrap();
        ledger.shutdown().await.unwrap();
        drop(ledger);
        let config = support::config(Arc::new(SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap()));
        config.signers.add(Arc::new(signer(Purpose::DeliveryProof, 21)));
        let ledger = Ledger::open(config).await.unwrap();
        let bought = manifest(&signer(Purpose::Kernel, 30), "Font", "Font");
        send(&ledger, &list(Some(&bought))).await.unwrap();
        let order = create_order(&ledger, "o", "s").await;
        send(&ledger, r#"{"command":"sku.withdraw","actor":"service:catalog","sku_id":"s"}"#).await.unwrap();
        // Its time is no part of what is signed.
        let later = bought.replace("T10:00:00Z", "T11:00:00Z");
        send(&ledger, &list(Some(&later))).await.unwrap();
        for line in life(&order).iter().take(4) {
            send(&ledger, line).await.unwrap();
        }
        let (artifact, ciphertext) = (Hash([0; 32]), Hash([0x11; 32]));
        let encrypt = Object::new()
            .with("command", "delivery.encrypt")
            .with("actor", "service:delivery")
            .with("order_id", order.as_str())
            .with("algorithm", "a")
            .with("artifact_sha256", artifact.to_hex())
            .with("ciphertext_sha256", ciphertext.to_hex());
        send(&ledger, &String::from_utf8(encrypt.to_canonical()).unwrap()).await.unwrap();
        let case = CaseId::parse(&order).unwrap();
        let (row, deliveries) = ledger.order_with_deliveries(case).await.unwrap().unwrap();
        let terms = ProofTerms {
            order_id: case,
            n: 1,
            sku_id: "s".into(),
            buyer_id: row.text("buyer").into(),
            delivery_mode: deliveries[0].text("mode").into(),
            artifact: (artifact, 1),
            ciphertext: (ciphertext, 57),
            manifest_sha256: sha256(&[bought.as_bytes()]),
            manifest_signature_id: Hash::from_hex(&Manifest::parse(&bought).unwrap().signature_id()).unwrap(),
            ledger_proof_id: row.text("ledger_proof_id").into(),
            encryption: Encryption {
                algorithm: "a".into(),
                key_algorithm: "k".into(),
                encrypted_key: vec![1],
                key_fingerprint: Hash([2; 32]),
                key_source: Some("file:0011223344556677".into()),
            },
            supersedes: None,
            issued_at_us: 0,
            ledger_id: ledger.id(),
            signer_kid: String::new(),
        };
        let ready = async |terms: ProofTerms| {
            let proof = ledger.prove_delivery(terms).await.unwrap();
            let command = Object::new()
                .with("command", "delivery.ready")
                .with("actor", "service:delivery")
                .with("order_id", order.as_str())
                .with("delivery_proof", proof.to_text());
            String::from_utf8(command.to_canonical()).unwrap()
        };
        let entries = ledger.sizes().await.unwrap();
        for other in [
            ProofTerms { manifest_sha256: sha256(&[later.as_bytes()]), ..terms.clone() },
            ProofTerms { manifest_signature_id: Hash([3; 32]), ..terms.clone() },
        ] {
            assert_eq!(code(&ledger, &ready(other).await).await, "MANIFEST_MISMATCH");
        }
        assert_eq!(ledger.sizes().await.unwrap(), entries);
        send(&ledger, &ready(terms).await).await.unwrap();
        ledger.shutdown().await.unwrap();
        verified(dir.path(), &ledger);
    }
}
