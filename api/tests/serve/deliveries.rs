//! Deliveries from checkout to the decrypted file: keys of OpenSSL, readers that share no code with the server, and what goes wrong.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use audit_verify::{Demands, Held, verify_proof_and};
use ledger_engine::hash::{Hash, sha256};
use serde_json::{Value, json};
use test_servers::{Kms, S3, S3Deed, S3Relay, Server as Postgres};

use crate::faults::{check_verified, database, ledger_id, on_postgres};
use crate::support::{Answer, Finance, Server, Start, checkout_body, ledger, python, run_to_end};

const ANN: &str = "ann@example.org";
const ARTIFACT: &[u8] = b"This is the test artifact of a development ledger.\n";

/// A buyer's key pair, made by OpenSSL.
struct Pair {
    private: PathBuf,
    public: String,
}

fn pair(dir: &Path, name: &str, algorithm: &[&str]) -> Pair {
    let private = dir.join(format!("{name}.pem"));
    let made = Command::new("openssl").arg("genpkey").args(algorithm).arg("-out").arg(&private).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    public_of(private)
}

fn public_of(private: PathBuf) -> Pair {
    let public = Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&private).output().unwrap();
    Pair { private, public: String::from_utf8(public.stdout).unwrap() }
}

fn x25519(dir: &Path, name: &str) -> Pair {
    pair(dir, name, &["-algorithm", "X25519"])
}

/// Buys the development SKU and pays for it.
fn paid(server: &Server, key: &str, public: Option<&str>) -> String {
    let mut body = checkout_body(ANN);
    if let Some(pem) = public {
        body["delivery_preferences"] =
            json!({ "mode": "buyer-managed", "buyer_public_key": pem, "key_identifier": "laptop" });
    }
    let made = server.of(ANN, "buyer").post_with_key("/checkout", key, &body);
    assert_eq!(made.said(), (201, "ok"), "{:?}", made.body);
    let order = made.body["order"]["order_id"].as_str().unwrap().to_owned();
    assert_eq!(server.client(None).pay(&format!("evt_{key}"), &order, 1250, "eur").said(), (200, "ok"));
    order
}

fn settle(server: &Server, order: &str) {
    let path = format!("/order/{order}/settle");
    let answer = server.of("service:finance", "service").post(&path, &Finance::of(server).proof(order, "lp-1"));
    assert_eq!(answer.said(), (200, "ok"), "{:?}", answer.body);
}

fn finalize(server: &Server, order: &str) -> Answer {
    let answer = server
        .of("service:finance", "service")
        .post(&format!("/order/{order}/finalize"), &Finance::of(server).proof(order, "lp-1"));
    assert_eq!(answer.said(), (200, "ok"), "{:?}", answer.body);
    answer
}

/// What a buyer keeps of a delivery: the file, the delivery proof, the proof files of its entry and of the licence's.
struct Kept {
    dir: tempfile::TempDir,
    id: String,
    ledger_id: String,
}

impl Kept {
    fn of(server: &Server, order: &str, n: u32) -> Kept {
        let (ann, dir) = (server.of(ANN, "buyer"), tempfile::tempdir().unwrap());
        let id = format!("delivery-{order}-{n}");
        let file = ann.request("GET", &format!("/delivery/{id}/artifact")).send().unwrap();
        let (status, digest) = (file.status(), file.headers()["repr-digest"].to_str().unwrap().to_owned());
        let bytes = file.bytes().unwrap();
        assert_eq!(status, 200);
        use base64::Engine as _;
        let own = base64::engine::general_purpose::STANDARD.encode(sha256(&[&bytes]).0);
        assert_eq!(digest, format!("sha-256=:{own}:"));
        std::fs::write(dir.path().join("file"), bytes).unwrap();
        Kept { dir, id, ledger_id: String::new() }.with_proofs(server, order, n)
    }

    /// Fetches what proves the delivery.
    fn with_proofs(self, server: &Server, order: &str, n: u32) -> Kept {
        let ann = server.of(ANN, "buyer");
        let proof = ann.get(&format!("/proofs/proof-{order}-{n}"));
        assert_eq!(proof.said(), (200, "ok"), "{:?}", proof.body);
        std::fs::write(self.path("delivery-proof"), proof.body["proof"].to_string()).unwrap();
        let events = ann.get(&format!("/order/{order}/events")).body;
        let issued = events["events"].as_array().unwrap().iter().find(|e| e["event_type"] == "license.issued").unwrap();
        for (name, event) in [("proof", &proof.body["event_id"]), ("license-proof", &issued["id"])] {
            let file = wait(|| {
                let proof = ann.get(&format!("/audit/events/{}/proof", event.as_str().unwrap()));
                (proof.status == 200).then_some(proof.body)
            });
            // The same members in the same order, and the newline that a proof file ends with.
            std::fs::write(self.path(name), format!("{file}\n")).unwrap();
        }
        Kept { ledger_id: ledger_id(server), ..self }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lets `ledger open-delivery` open it: its exit status, and what it said.
    fn open(&self, key: &Path, out: &str, more: &[(&str, PathBuf)]) -> (i32, String) {
        let mut command = ledger();
        command.arg("open-delivery").arg(self.path("file")).arg("--proof").arg(self.path("proof"));
        command.args(["--trust", &self.ledger_id, "--key"]).arg(key).arg("--out").arg(self.path(out));
        if !more.iter().any(|(option, _)| *option == "--license-proof") {
            command.arg("--license-proof").arg(self.path("license-proof"));
        }
        for (option, path) in more {
            command.arg(option).arg(path);
        }
        let out = run_to_end(&mut command);
        (out.status.code().unwrap(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    }
}

/// What the buyer of a marketplace-managed delivery does: fetches its key, which is returned, and opens the file.
fn opens_with_its_key(server: &Server, kept: &Kept) -> String {
    let key = server.of(ANN, "buyer").get(&format!("/delivery/{}/key", kept.id));
    assert_eq!(key.said(), (200, "ok"), "{:?}", key.body);
    let pem = key.body["private_key"].as_str().unwrap().to_owned();
    std::fs::write(kept.path("key"), &pem).unwrap();
    let (exit, said) = kept.open(&kept.path("key"), "out", &[]);
    assert_eq!((exit, std::fs::read(kept.path("out")).unwrap()), (0, ARTIFACT.to_vec()), "{said}");
    pem
}

fn wait<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "it does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn order_of(server: &Server, order: &str) -> Value {
    server.of("service:finance", "service").get(&format!("/order/{order}")).body["order"].clone()
}

fn types(server: &Server, order: &str) -> Vec<String> {
    let events = server.of(ANN, "buyer").get(&format!("/order/{order}/events")).body;
    events["events"].as_array().unwrap().iter().map(|e| e["event_type"].as_str().unwrap().to_owned()).collect()
}

fn dev(dir: &tempfile::TempDir) -> Server {
    Start::dev(&dir.path().join("shop")).args(&["--checkpoint-seconds", "1"]).run()
}

/// Ends the server and lets the verifier judge what it leaves.
fn verified(server: Server) {
    let dir = server.dir.clone();
    verified_at(server, &dir);
}

fn verified_at(server: Server, source: &Path) {
    let id = ledger_id(&server);
    assert_eq!(server.stop(), 0);
    check_verified(source, &id);
}

#[test]
fn a_buyer_opens_what_was_bought_with_own_keys() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let rsa =
        |bits: &str| pair(dir.path(), bits, &["-algorithm", "RSA", "-pkeyopt", &format!("rsa_keygen_bits:{bits}")]);
    let keys = [
        ("rsa-2048", rsa("2048")),
        ("rsa-3072", rsa("3072")),
        // It takes long to make.
        ("rsa-8192", public_of(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/buyer_rsa8192.pem").into())),
        ("x25519", x25519(dir.path(), "x")),
    ];
    for (name, pair) in keys {
        let order = paid(&server, name, Some(&pair.public));
        let done = finalize(&server, &order);
        assert_eq!(done.body["order"]["status"], "finalized", "{:?}", done.body);
        let delivery = &done.body["delivery"];
        assert_eq!((&delivery["status"], &delivery["unfinished"]), (&json!("ready"), &Value::Null));
        assert_eq!(delivery["encrypted_delivery_url"], format!("/delivery/delivery-{order}-1/artifact"));
        assert_eq!(delivery["encryption"]["key_hint"], "laptop");
        assert_eq!(delivery["encryption"]["key_fingerprint"], done.body["order"]["key_fingerprint"]);
        assert_eq!(delivery["proof"]["artifact_sha256"], sha256(&[ARTIFACT]).to_hex());
        assert_eq!(done.body["key_metadata"]["source"], "buyer");
        assert_eq!(finalize(&server, &order).body, done.body, "nothing is delivered twice");

        let kept = Kept::of(&server, &order, 1);
        let (exit, said) = kept.open(&pair.private, "out", &[("--license-proof", kept.path("license-proof"))]);
        assert_eq!(exit, 0, "{said}");
        assert!(said.contains("its licence is genuine, and has not ended"), "{said}");
        assert_eq!(std::fs::read(kept.path("out")).unwrap(), ARTIFACT);
        // That library tries the primes of a key that it loads, which takes too long for the largest.
        if name != "rsa-8192" {
            read_by_python(&kept, &pair.private);
        }
        judged_with_files(&kept);
        assert_eq!(order_of(&server, &order)["deliveries"][0]["downloads"], 1, "it is recorded");
        assert_eq!(server.of("bob@example.org", "buyer").get(&format!("/delivery/{}/artifact", kept.id)).status, 404);
    }
    verified(server);
}

/// A reader of its own, from FORMAT.md alone, opens what was delivered, and nothing else.
fn read_by_python(kept: &Kept, key: &Path) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../verifier/python/open_delivery.py");
    let read = |file: &str| {
        let mut reader = python();
        reader.arg("-B").arg(script).arg(kept.path("delivery-proof")).arg(key);
        run_to_end(reader.arg(kept.path(file)).arg(kept.path("python")))
    };
    let whole = std::fs::read(kept.path("file")).unwrap();
    let mut altered = whole.clone();
    *altered.last_mut().unwrap() ^= 1;
    for bytes in [&altered, &whole[..whole.len() - 1], &whole[..20]] {
        std::fs::write(kept.path("bad"), bytes).unwrap();
        let refused = read("bad");
        assert_eq!((refused.status.code(), kept.path("python").exists()), (Some(1), false), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).starts_with("it does not open"), "{refused:?}");
    }
    let read = read("file");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    assert_eq!(std::fs::read(kept.path("python")).unwrap(), ARTIFACT);
}

/// The verifier compares files with those that the proof names.
fn judged_with_files(kept: &Kept) {
    std::fs::write(kept.path("another"), [ARTIFACT, b"."].concat()).unwrap();
    let said = |proof: &str, file: &str| {
        let bytes = std::fs::read(kept.path(file)).unwrap();
        let demands = Demands { trust: Hash::from_hex(&kept.ledger_id), ..Demands::default() };
        let held = Held::File(sha256(&[&bytes]), bytes.len() as u64);
        let report = verify_proof_and(&kept.path(proof), held, demands);
        (report.exit(), report.codes(), report.to_text())
    };
    for (file, what) in [("out", "is the artifact"), ("file", "is the one that was delivered")] {
        let (exit, _, text) = said("proof", file);
        assert!(exit == 0 && text.contains(what), "{text}");
    }
    let (exit, codes, text) = said("proof", "another");
    assert_eq!((exit, &codes[..]), (1, &["artifact_mismatch".to_owned()][..]), "{text}");
    let program = Path::new(env!("CARGO_BIN_EXE_ledger")).with_file_name("audit-verify");
    assert!(program.exists(), "build it: cargo build -p audit-verify");
    for (file, exit, what) in [("out", 0, "is the artifact"), ("another", 1, "artifact_mismatch")] {
        let mut verify = Command::new(&program);
        verify.arg("proof").arg(kept.path("proof")).args(["--trust", &kept.ledger_id, "--artifact"]);
        let judged = run_to_end(verify.arg(kept.path(file)));
        let text = String::from_utf8_lossy(&judged.stdout);
        assert!(judged.status.code() == Some(exit) && text.contains(what), "{text}");
    }
    let (exit, _, text) = said("license-proof", "out");
    assert!(exit == 2 && text.contains("holds no signed delivery proof"), "{text}");
}

#[test]
fn the_marketplace_manages_a_key_for_a_buyer_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let order = paid(&server, "k", None);
    let done = finalize(&server, &order);
    assert_eq!(done.body["order"]["status"], "finalized", "{:?}", done.body);
    assert_eq!(done.body["key_metadata"]["source"], "ephemeral");
    assert!(done.body["key_metadata"]["key_source"].as_str().unwrap().starts_with("file:"), "{:?}", done.body);
    let kept = Kept::of(&server, &order, 1);
    let pem = opens_with_its_key(&server, &kept);
    for (sub, role, status) in [("bob@example.org", "buyer", 404), ("op@example.org", "operator", 403)] {
        assert_eq!(server.of(sub, role).get(&format!("/delivery/{}/key", kept.id)).status, status, "{role}");
    }
    nowhere_in_the_clear(&server.dir, &pem);
    verified(server);
}

/// No file has the private key: as text, as bytes, or in hex.
fn nowhere_in_the_clear(dir: &Path, pem: &str) {
    use base64::Engine as _;
    let text = pem.lines().filter(|line| !line.starts_with('-')).collect::<String>();
    let der = base64::engine::general_purpose::STANDARD.decode(&text).unwrap();
    // PKCS#8 of an X25519 key ends with its 32 bytes (RFC 8410), or with its public half after them.
    let secret = &der[16..48];
    let forms = [text.into_bytes(), secret.to_vec(), ledger_engine::hash::to_hex(secret).into_bytes()];
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
                continue;
            }
            let bytes = std::fs::read(entry.path()).unwrap_or_default();
            let found = forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == form));
            assert!(!found, "{}", entry.path().display());
        }
    }
}

#[test]
fn what_was_swapped_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let (mine, other) = (x25519(dir.path(), "mine"), x25519(dir.path(), "other"));
    let orders = ["a", "b"].map(|key| paid(&server, key, Some(&mine.public)));
    let [a, b] = orders.map(|order| {
        finalize(&server, &order);
        Kept::of(&server, &order, 1)
    });
    let refused = |why: &str, key: &Path, more: &[(&str, PathBuf)]| {
        let (exit, said) = a.open(key, "out", more);
        assert_eq!(exit, 1, "{why}: {said}");
        assert!(said.contains("NOT OPENED") && said.contains(why), "{why}: {said}");
        assert!(!a.path("out").exists(), "nothing half opened");
    };
    refused("was not wrapped for this private key", &other.private, &[]);
    refused("is of another order", &mine.private, &[("--license-proof", b.path("license-proof"))]);
    refused("no entry with a signed licence", &mine.private, &[("--license-proof", a.path("proof"))]);
    let (own, theirs) = (std::fs::read(a.path("file")).unwrap(), std::fs::read(b.path("file")).unwrap());
    let mut altered = own.clone();
    *altered.last_mut().unwrap() ^= 1;
    for file in [theirs, altered, own[..own.len() - 1].to_vec()] {
        std::fs::write(a.path("file"), file).unwrap();
        refused("does not open", &mine.private, &[]);
    }
    std::fs::write(a.path("file"), &own).unwrap();
    let proof = std::fs::read_to_string(a.path("proof")).unwrap();
    std::fs::copy(b.path("proof"), a.path("proof")).unwrap();
    refused("is of another order", &mine.private, &[]);
    refused("does not open", &mine.private, &[("--license-proof", b.path("license-proof"))]);
    std::fs::write(a.path("proof"), proof.replace("delivery_proof", "delivery_prooF")).unwrap();
    refused("the proof does not hold", &mine.private, &[]);
    std::fs::copy(a.path("license-proof"), a.path("proof")).unwrap();
    refused("no entry with a signed delivery proof", &mine.private, &[]);
    std::fs::write(a.path("proof"), &proof).unwrap();
    let (exit, said) = a.open(&mine.private, "out", &[]);
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = a.open(&mine.private, "out", &[]);
    assert!(exit == 2 && said.contains("not written over"), "{said}");
}

#[test]
fn what_is_missing_or_changed_fails_and_is_delivered_once_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let artifact = server.dir.join("artifacts").join(sha256(&[ARTIFACT]).to_hex());
    let aside = dir.path().join("aside");
    std::fs::rename(&artifact, &aside).unwrap();
    let order = paid(&server, "k", None);
    let done = finalize(&server, &order);
    assert_eq!(
        (&done.body["order"]["status"], &done.body["delivery"]["status"]),
        (&json!("licensed"), &json!("failed"))
    );
    let why = done.body["delivery"]["unfinished"].as_str().unwrap();
    assert!(why.contains("could not be encrypted") && why.contains("tried again"), "{why}");
    assert!(!why.contains(dir.path().to_str().unwrap()), "{why}");
    let failed = types(&server, &order);
    assert_eq!(failed.last().unwrap(), "delivery.failed");
    finalize(&server, &order);
    assert_eq!(types(&server, &order), failed, "one entry says that it failed, not each try");
    for bytes in [b"other".to_vec(), ARTIFACT[..20].to_vec(), [ARTIFACT, b"more"].concat()] {
        std::fs::write(&artifact, bytes).unwrap();
        for _ in 0..2 {
            let done = finalize(&server, &order);
            let why = done.body["delivery"]["unfinished"].as_str().unwrap();
            assert!(why.contains("has other bytes"), "{why}");
        }
    }
    let events = server.of(ANN, "buyer").get(&format!("/order/{order}/events")).body;
    let events = events["events"].as_array().unwrap();
    let reasons: Vec<&str> = events.iter().filter_map(|e| e["payload"]["reason"].as_str()).collect();
    assert_eq!(reasons.len(), 4, "each other reason is in the history, once: {reasons:?}");
    let id = format!("delivery-{order}-1");
    let ann = server.of(ANN, "buyer");
    assert_eq!(ann.get(&format!("/delivery/{id}/artifact")).said(), (409, "ILLEGAL_TRANSITION"));
    assert_eq!(ann.get(&format!("/proofs/proof-{order}-1")).status, 404);
    std::fs::remove_file(&artifact).unwrap();
    // The operator puts it there; nobody needs to ask again.
    let out = run_to_end(ledger().arg("--dir").arg(&server.dir).args(["artifact", "add"]).arg(&aside));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
    let metrics = server.of("op@example.org", "operator").get("/metrics").body;
    let line = metrics.as_str().unwrap().lines().find(|l| l.starts_with("marketplace_delivery_encrypt_failures_total"));
    assert!(line.is_some_and(|l| l.ends_with(|c: char| c.is_ascii_digit() && c != '0')), "{line:?}");
    verified(server);
}

/// What goes on failing is tried ever more seldom.
#[test]
fn what_fails_is_tried_again_after_longer_and_longer() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    failed(&server, dir.path(), "k");
    let tries = || server.log().matches("could not be delivered").count();
    let mut last = Instant::now();
    for (count, at_least) in [(2, 1900), (3, 3900), (4, 7900)] {
        wait(|| (tries() >= count).then_some(()));
        assert!(last.elapsed() >= Duration::from_millis(at_least), "{count}: {:?}", last.elapsed());
        last = Instant::now();
    }
}

/// Money that went back takes the delivery with it.
#[test]
fn what_was_refunded_is_not_delivered_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let order = paid(&server, "k", None);
    finalize(&server, &order);
    let kept = Kept::of(&server, &order, 1);
    opens_with_its_key(&server, &kept);
    let operator = server.of("op@example.org", "operator");
    let body =
        |amount: i64| json!({ "refund": { "amount": amount, "currency": "EUR", "scale": 2 }, "reason": "broken" });
    assert_eq!(operator.post_with_key(&format!("/order/{order}/refund"), "r-1", &body(250)).said(), (200, "ok"));
    opens_with_its_key(&server, &Kept::of(&server, &order, 1));
    assert_eq!(operator.post_with_key(&format!("/order/{order}/refund"), "r-2", &body(1000)).said(), (200, "ok"));
    let ann = server.of(ANN, "buyer");
    for what in ["artifact", "key"] {
        assert_eq!(ann.get(&format!("/delivery/{}/{what}", kept.id)).said(), (409, "ILLEGAL_TRANSITION"), "{what}");
    }
    let again = operator.post_with_key(&format!("/delivery/{}/reissue", kept.id), "a", &json!({ "reason": "again" }));
    assert_eq!(again.said(), (409, "ILLEGAL_TRANSITION"));
    assert_eq!(ann.get(&format!("/proofs/proof-{order}-1")).status, 200, "the proof of what was done stays");
    verified(server);
}

/// A download that was cut off goes on where it ended, unless the file is another one by then.
#[test]
fn a_download_that_was_cut_off_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let order = paid(&server, "k", None);
    finalize(&server, &order);
    let (ann, path) = (server.of(ANN, "buyer"), format!("/delivery/delivery-{order}-1/artifact"));
    let get = |headers: &[(&str, &str)]| {
        let request = headers.iter().fold(ann.request("GET", &path), |r, (name, value)| r.header(*name, *value));
        let answer = request.send().unwrap();
        let header = |name: &str| answer.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        let (status, range, tag) = (answer.status().as_u16(), header("content-range"), header("etag"));
        (status, range, tag, answer.bytes().unwrap().to_vec())
    };
    let (status, range, tag, whole) = get(&[]);
    assert_eq!((status, range.as_str(), tag.len()), (200, "", 66));
    let len = whole.len();
    let same = [("range", "bytes=10-"), ("if-range", tag.as_str())];
    assert_eq!(get(&same), (206, format!("bytes 10-{}/{len}", len - 1), tag.clone(), whole[10..].to_vec()));
    let part = get(&[("range", "bytes=0-9")]);
    assert_eq!((part.0, part.1, part.3), (206, format!("bytes 0-9/{len}"), whole[..10].to_vec()));
    let end = get(&[("range", "bytes=-7")]);
    assert_eq!((end.0, end.3), (206, whole[len - 7..].to_vec()));
    for whole_again in [
        &[("range", "bytes=10-"), ("if-range", "\"another\"")][..],
        &[("range", "bytes=10-"), ("if-range", "Wed, 21 Oct 2026 07:28:00 GMT")],
        &[("range", "bytes=0-1,4-5")],
        &[("range", "lines=1-2")],
        &[("range", "bytes=9-2")],
    ] {
        let answer = get(whole_again);
        assert_eq!((answer.0, answer.3 == whole), (200, true), "{whole_again:?}");
    }
    for _ in 0..2 {
        assert_eq!(get(&[("idempotency-key", "the same")]).0, 200);
    }
    let downloads = || order_of(&server, &order)["deliveries"][0]["downloads"].as_u64().unwrap();
    let before = downloads();
    assert_eq!(before, 11, "each is recorded");
    let beyond = get(&[("range", &format!("bytes={len}-"))]);
    assert_eq!((beyond.0, beyond.1), (416, format!("bytes */{len}")));
    assert!(String::from_utf8(beyond.3).unwrap().contains("RANGE_NOT_SATISFIABLE"));
    let head = ann.request("HEAD", &path).header("range", "bytes=1-").send().unwrap();
    assert_eq!((head.status().as_u16(), head.headers()["content-length"].to_str().unwrap()), (200, &*len.to_string()));
    assert_eq!(downloads(), before);
}

/// The disk of deliveries is full: nothing is half delivered, and with room again the delivery goes on by itself.
#[test]
fn a_delivery_waits_for_room_on_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let start = Start::dev(&dir.path().join("shop")).args(&["--checkpoint-seconds", "1"]);
    let server = start.env("DELIVERY_STORE", disk.to_str().unwrap()).on_a_full_disk(&disk).run();
    let order = paid(&server, "k", None);
    let done = finalize(&server, &order);
    assert_eq!(done.body["order"]["status"], "licensed", "{:?}", done.body);
    let why = done.body["delivery"]["unfinished"].as_str().unwrap();
    assert!(why.contains("could not be encrypted") && !why.contains("disk"), "{why}");
    wait(|| server.log().contains("No space left on device").then_some(()));
    assert_eq!(types(&server, &order).last().unwrap(), "delivery.failed");
    server.makes_room(&disk);
    wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
    let kept = Kept::of(&server, &order, 1);
    opens_with_its_key(&server, &kept);
    verified(server);
}

/// The marketplace's own keys are sealed by a key in KMS: the history says which, and while it is away nothing is half done.
#[test]
fn a_key_in_kms_seals_what_the_marketplace_manages() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let kms = Kms::start(31);
    let first = format!("awskms:{}", kms.sealing_key_is(0));
    let start = || {
        let start = Start::dev(&shop).args(&["--checkpoint-seconds", "1"]);
        let start = start.env("DELIVERY_KEY", &format!("awskms:{}", kms.sealing_alias()));
        kms.environment().into_iter().fold(start, |start, (name, value)| start.env(name, &value))
    };
    let server = start().run();
    let order = paid(&server, "k", None);
    let done = finalize(&server, &order);
    assert_eq!(done.body["order"]["status"], "finalized", "{:?}", done.body);
    assert_eq!(done.body["key_metadata"]["key_source"], first);
    let proof = server.of(ANN, "buyer").get(&format!("/proofs/proof-{order}-1")).body;
    assert_eq!(proof["proof"]["encryption"]["key_source"], first, "it is part of the signed history");
    // An incident with the key: another one takes its place, and the delivery is made again (the runbook's incident C).
    let second = format!("awskms:{}", kms.sealing_key_is(1));
    let operator = server.of("op@example.org", "operator");
    let reissue = format!("/delivery/delivery-{order}-1/reissue");
    let body = json!({ "reason": "the key that sealed it is doubtful" });
    assert_eq!(operator.post_with_key(&reissue, "r", &body).said(), (200, "ok"));
    wait(|| (order_of(&server, &order)["deliveries"][1]["status"] == "ready").then_some(()));
    let proof = server.of(ANN, "buyer").get(&format!("/proofs/proof-{order}-2")).body;
    assert_eq!(proof["proof"]["encryption"]["key_source"], second);
    let kept = Kept::of(&server, &order, 2);
    let ann = server.of(ANN, "buyer");
    let path = format!("/delivery/{}/key", kept.id);
    let pem = opens_with_its_key(&server, &kept);
    nowhere_in_the_clear(&shop, &pem);
    kms.is_away(true);
    assert_eq!(ann.get(&path).said(), (503, "SIGNING_UNAVAILABLE"));
    let waits = paid(&server, "k2", None);
    let done = finalize(&server, &waits);
    assert_eq!(done.body["delivery"]["status"], "failed", "{:?}", done.body);
    let why = done.body["delivery"]["unfinished"].as_str().unwrap();
    assert!(why.contains("key for deliveries is away") && !why.contains("127.0.0.1"), "{why}");
    kms.is_away(false);
    wait(|| (order_of(&server, &waits)["status"] == "finalized").then_some(()));
    assert_eq!(server.stop(), 0);
    // Without that key its deliveries cannot be opened, and the answer says what can be done.
    let server = Start::dev(&shop).run();
    let lost = server.of(ANN, "buyer").get(&path);
    assert_eq!(lost.said(), (500, "INTERNAL"));
    assert!(lost.body["error"]["message"].as_str().unwrap().contains("/reissue"), "{:?}", lost.body);
    wait(|| server.log().contains("name that key as delivery_key").then_some(()));
    verified(server);
    for (key, why) in [("https://sign.example", "does not seal"), ("pkcs11:token=t", "object=LABEL"), ("x", "awskms:")]
    {
        let (exit, said) = Start::dev(&shop).env("DELIVERY_KEY", key).refused();
        assert!(exit == 2 && said.contains("delivery_key") && said.contains(why), "{said}");
    }
}

/// Lets an operator append by the command line while the server is away.
fn append(server: Server, lines: &[Value]) -> Server {
    let home = server.dir.clone();
    assert_eq!(server.stop(), 0);
    let file = home.join("commands");
    std::fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let out = run_to_end(ledger().arg("--dir").arg(&home).arg("submit").arg(&file));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    Start::dev(&home).args(&["--checkpoint-seconds", "1"]).run()
}

#[test]
fn a_licence_that_ended_opens_nothing_and_an_erased_key_is_not_encrypted_for() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let pair = x25519(dir.path(), "own");
    let (ended, erased) = (paid(&server, "a", None), paid(&server, "b", Some(&pair.public)));
    settle(&server, &ended);
    let server = append(
        server,
        &[
            json!({ "command": "license.issue", "actor": "service:m", "order_id": ended, "expires_at": 1_700_000_000_000_000_i64 }),
            json!({ "command": "subject.erase", "actor": "service:m", "order_id": erased, "reason": "asked for" }),
        ],
    );
    let done = finalize(&server, &ended);
    let why = done.body["delivery"]["unfinished"].as_str().unwrap();
    assert!(why.contains("the licence ended at 2023-11-14T22:13:20"), "{why}");
    assert_eq!(
        (&done.body["order"]["status"], types(&server, &ended).last().unwrap().as_str()),
        (&json!("licensed"), "delivery.failed")
    );
    let delivered = server.dir.join("deliveries");
    assert!(std::fs::read_dir(delivered).into_iter().flatten().next().is_none(), "nothing is encrypted for nobody");
    let done = finalize(&server, &erased);
    let why = done.body["delivery"]["unfinished"].as_str().unwrap();
    assert!(why.contains("is not kept") && why.contains("reissue"), "{why}");
    // The buyer gives another key, and gets the delivery.
    let body = json!({ "reason": "erased", "buyer_public_key": pair.public });
    let path = format!("/delivery/delivery-{erased}-1/reissue");
    assert_eq!(server.of("op@example.org", "operator").post_with_key(&path, "r", &body).said(), (200, "ok"));
    wait(|| (order_of(&server, &erased)["status"] == "finalized").then_some(()));
    verified(server);
}

/// A licence that ends after the delivery: what was bought can be neither fetched nor opened any more.
#[test]
fn a_licence_ends_after_its_delivery() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let pair = x25519(dir.path(), "own");
    let order = paid(&server, "a", Some(&pair.public));
    settle(&server, &order);
    let ends = (crate::support::now() + 20) * 1_000_000;
    let issue = json!({ "command": "license.issue", "actor": "service:m", "order_id": order, "expires_at": ends });
    let server = append(server, &[issue]);
    wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
    let kept = Kept::of(&server, &order, 1);
    let (exit, said) = kept.open(&pair.private, "out", &[]);
    assert_eq!(exit, 0, "{said}");
    wait(|| (crate::support::now() * 1_000_000 > ends).then_some(()));
    for what in ["artifact", "key"] {
        let refused = server.of(ANN, "buyer").get(&format!("/delivery/{}/{what}", kept.id));
        assert_eq!(refused.said(), (422, "LICENSE_INVALID"), "{:?}", refused.body);
    }
    assert_eq!(order_of(&server, &order)["deliveries"][0]["downloads"], 1);
    let (exit, said) = kept.open(&pair.private, "late", &[]);
    assert!(exit == 1 && said.contains("the licence ended at") && !kept.path("late").exists(), "{said}");
    verified(server);
}

/// An order is older than the news that the Kernel's key was stolen when its SKU was listed.
#[test]
fn what_a_stolen_key_vouched_for_is_not_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let order = paid(&server, "k", None);
    let signers = server.of("op@example.org", "operator").get("/admin/signers").body;
    let kernel = signers["signers"].as_array().unwrap().iter().find(|s| s["purpose"] == "kernel").unwrap();
    let mut revoke = ledger();
    revoke.arg("--dir").arg(&server.dir).args(["keys", "revoke", "--reason", "stolen", "--compromised-since", "4"]);
    revoke.args(["--kid", kernel["signer_kid"].as_str().unwrap(), "--governance-key"]);
    let out = run_to_end(revoke.arg(format!("{}-governance.pem", server.dir.display())));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let done = finalize(&server, &order);
    let why = done.body["delivery"]["unfinished"].as_str().unwrap();
    assert!(why.contains("in other hands"), "{why}");
    assert_eq!(
        (&done.body["order"]["status"], &done.body["delivery"]["status"]),
        (&json!("licensed"), &json!("failed"))
    );
}

#[test]
fn keys_that_nothing_can_be_encrypted_for_are_refused_at_checkout() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let before = server.entries();
    let small = pair(dir.path(), "small", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    let curve = pair(dir.path(), "curve", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    let own = x25519(dir.path(), "own");
    let private = std::fs::read_to_string(&own.private).unwrap();
    for (pem, why) in [
        (&private, "private key"),
        (&small.public, "2048 to 8192"),
        (&curve.public, "neither RSA nor X25519"),
        (&"garbage".to_owned(), "BEGIN PUBLIC KEY"),
    ] {
        let mut body = checkout_body(ANN);
        body["delivery_preferences"] = json!({ "mode": "buyer-managed", "buyer_public_key": pem });
        let answer = server.of(ANN, "buyer").post_with_key("/checkout", "k", &body);
        assert_eq!(answer.said(), (400, "INVALID_REQUEST"));
        let message = answer.body["error"]["message"].as_str().unwrap();
        assert!(message.contains(why) && !message.contains("MC4"), "{message}");
    }
    assert_eq!(server.entries(), before);
}

#[test]
fn a_delivery_that_was_issued_again_has_a_new_key_and_a_proof_that_names_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let (lost, new) = (x25519(dir.path(), "lost"), x25519(dir.path(), "new"));
    let order = paid(&server, "k", Some(&lost.public));
    finalize(&server, &order);
    let operator = server.of("op@example.org", "operator");
    let nameless = json!({ "reason": "the buyer lost the key", "key_identifier": "phone" });
    let path = format!("/delivery/delivery-{order}-1/reissue");
    assert_eq!(operator.post_with_key(&path, "n", &nameless).said(), (400, "INVALID_REQUEST"));
    let body = json!({ "reason": "the buyer lost the key", "buyer_public_key": new.public, "key_identifier": "phone" });
    let path = format!("/delivery/delivery-{order}-1/reissue");
    assert_eq!(operator.post_with_key(&path, "r", &body).said(), (200, "ok"));
    let again = wait(|| {
        let order = order_of(&server, &order);
        (order["deliveries"][1]["status"] == "ready").then_some(order)
    });
    assert_eq!((&again["status"], &again["deliveries"][0]["status"]), (&json!("finalized"), &json!("reissued")));
    let ann = server.of(ANN, "buyer");
    assert_eq!(ann.get(&format!("/delivery/delivery-{order}-1/artifact")).said(), (409, "ILLEGAL_TRANSITION"));
    let proof = ann.get(&format!("/proofs/proof-{order}-2")).body;
    assert_eq!(proof["proof"]["supersedes"], format!("proof-{order}-1"));
    assert_eq!(ann.get(&format!("/proofs/proof-{order}-1")).status, 200, "the old proof stays");
    let answer = finalize(&server, &order).body;
    assert_eq!(answer["delivery"]["encryption"]["key_hint"], "phone", "it is the new key's name");
    assert_eq!(proof["key_metadata"]["source"], "buyer");
    assert_eq!(proof["key_metadata"]["key_fingerprint"], answer["delivery"]["encryption"]["key_fingerprint"]);
    let kept = Kept::of(&server, &order, 2);
    assert_eq!(kept.open(&lost.private, "out", &[]).0, 1);
    let (exit, said) = kept.open(&new.private, "out", &[]);
    assert_eq!((exit, std::fs::read(kept.path("out")).unwrap()), (0, ARTIFACT.to_vec()), "{said}");
    // Once more, without a key: it is for the one that was given last.
    let path = format!("/delivery/delivery-{order}-2/reissue");
    assert_eq!(operator.post_with_key(&path, "r-2", &json!({ "reason": "the file is lost" })).said(), (200, "ok"));
    wait(|| (order_of(&server, &order)["deliveries"][2]["status"] == "ready").then_some(()));
    let kept = Kept::of(&server, &order, 3);
    assert_eq!(kept.open(&lost.private, "out", &[]).0, 1, "the lost key opens nothing any more");
    assert_eq!(kept.open(&new.private, "out", &[]).0, 0);
    verified(server);
}

/// The process is killed again and again while it goes on with deliveries, at moments that move; the next one goes on.
#[test]
fn a_delivery_goes_on_after_every_kill_and_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let home = server.dir.clone();
    let orders: Vec<String> = (0..3).map(|n| paid(&server, &format!("k{n}"), None)).collect();
    // Settled and licensed while the artifact is away, so that all that is left is to deliver.
    let artifact = home.join("artifacts").join(sha256(&[ARTIFACT]).to_hex());
    let aside = dir.path().join("aside");
    std::fs::rename(&artifact, &aside).unwrap();
    for order in &orders {
        finalize(&server, order);
    }
    server.kill();
    std::fs::rename(&aside, &artifact).unwrap();
    // What an earlier process left, and what another one is writing just now.
    let drafts = ["old", "new"].map(|name| home.join("deliveries").join(format!(".draft-{name}")));
    std::fs::create_dir_all(home.join("deliveries")).unwrap();
    drafts.iter().for_each(|draft| std::fs::write(draft, "half").unwrap());
    let aged = Command::new("touch").args(["-d", "2 days ago"]).arg(&drafts[0]).status().unwrap();
    assert!(aged.success());
    for pause in [0, 3, 6, 10, 15, 25, 40] {
        let server = Start::dev(&home).args(&["--checkpoint-seconds", "1"]).run();
        std::thread::sleep(Duration::from_millis(970 + pause));
        server.kill();
    }
    let server = Start::dev(&home).args(&["--checkpoint-seconds", "1"]).run();
    assert_eq!(drafts.map(|draft| draft.exists()), [false, true]);
    for order in &orders {
        wait(|| (order_of(&server, order)["status"] == "finalized").then_some(()));
        made_once(&server, order);
        let kept = Kept::of(&server, order, 1);
        opens_with_its_key(&server, &kept);
    }
    verified(server);
}

/// Buys, and takes the artifact away before it is delivered, so that all that is left is to deliver. Where the artifact belongs, and where it is.
fn failed(server: &Server, dir: &Path, key: &str) -> (String, PathBuf, PathBuf) {
    let artifact = server.dir.join("artifacts").join(sha256(&[ARTIFACT]).to_hex());
    let aside = dir.join("aside");
    std::fs::rename(&artifact, &aside).unwrap();
    let order = paid(server, key, None);
    assert_eq!(finalize(server, &order).body["delivery"]["status"], "failed");
    (order, artifact, aside)
}

/// Puts a pipe where the artifact belongs, and gives its end once the server reads from it.
fn reading_from_a_pipe(artifact: &Path) -> std::fs::File {
    assert!(Command::new("mkfifo").arg(artifact).status().unwrap().success());
    std::fs::OpenOptions::new().write(true).open(artifact).unwrap()
}

/// Names in the directory of deliveries, without what is being written.
fn kept(server: &Server) -> Vec<String> {
    let files = std::fs::read_dir(server.dir.join("deliveries")).into_iter().flatten();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// Each step that may be taken once was.
fn made_once(server: &Server, order: &str) {
    let types = types(server, order);
    for once in ["license.issued", "delivery.requested", "delivery.ready", "order.finalized"] {
        assert_eq!(types.iter().filter(|t| *t == once).count(), 1, "{once}: {types:?}");
    }
}

/// Whoever issued the licence was stopped before the delivery was asked for: nobody needs to call again.
#[test]
fn an_order_that_was_only_licensed_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let order = paid(&server, "k", None);
    settle(&server, &order);
    let server = append(server, &[json!({ "command": "license.issue", "actor": "service:m", "order_id": order })]);
    wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
    made_once(&server, &order);
    opens_with_its_key(&server, &Kept::of(&server, &order, 1));
    verified(server);
}

/// Killed in the midst of encrypting, and again when the file is there and its entry is not.
#[test]
fn killed_between_file_and_entry_a_delivery_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let home = server.dir.clone();
    let (order, artifact, aside) = failed(&server, dir.path(), "k");
    let mut pipe = reading_from_a_pipe(&artifact);
    pipe.write_all(&ARTIFACT[..20]).unwrap();
    server.kill();
    assert!(pipe.write_all(&ARTIFACT[20..]).is_err(), "the one that read is gone");
    std::fs::remove_file(&artifact).unwrap();
    let server = Start::dev(&home).run();
    assert_eq!(kept(&server), Vec::<String>::new(), "nothing half encrypted has a name");
    // Nobody appends while this lasts.
    let db = rusqlite::Connection::open(home.join("ledger.db")).unwrap();
    db.busy_timeout(Duration::from_secs(30)).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::fs::rename(&aside, &artifact).unwrap();
    wait(|| (kept(&server).len() == 2).then_some(()));
    server.kill();
    drop(db);
    let server = Start::dev(&home).args(&["--checkpoint-seconds", "1"]).run();
    wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
    assert_eq!(kept(&server).len(), 4, "the file of the one that was killed takes room and is named by nothing");
    made_once(&server, &order);
    opens_with_its_key(&server, &Kept::of(&server, &order, 1));
    verified(server);
}

/// The database goes away while an artifact is encrypted: what was encrypted in vain is removed again.
#[test]
fn what_could_not_be_recorded_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let postgres = Postgres::start_durable("");
    let url = database(&postgres);
    let server = on_postgres(&dir.path().join("shop"), &url).args(&["--checkpoint-seconds", "1"]).run();
    let (order, artifact, aside) = failed(&server, dir.path(), "k");
    let mut pipe = reading_from_a_pipe(&artifact);
    postgres.crash();
    std::fs::rename(&aside, &artifact).unwrap();
    pipe.write_all(ARTIFACT).unwrap();
    drop(pipe);
    wait(|| server.log().contains("is not delivered yet").then_some(()));
    assert_eq!(kept(&server), Vec::<String>::new());
    postgres.start_again();
    wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
    assert_eq!(kept(&server).len(), 2);
    made_once(&server, &order);
    verified_at(server, Path::new(&url));
}

/// It is issued again while it is encrypted: what was encrypted then is of the old delivery, and nobody gets it.
#[test]
fn a_delivery_that_is_issued_again_while_it_is_encrypted() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let (order, artifact, aside) = failed(&server, dir.path(), "k");
    let mut pipe = reading_from_a_pipe(&artifact);
    let path = format!("/delivery/delivery-{order}-1/reissue");
    let operator = server.of("op@example.org", "operator");
    assert_eq!(operator.post_with_key(&path, "r", &json!({ "reason": "in the midst" })).said(), (200, "ok"));
    std::fs::rename(&aside, &artifact).unwrap();
    pipe.write_all(ARTIFACT).unwrap();
    drop(pipe);
    wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
    let statuses = ["reissued", "ready"].map(Value::from);
    assert_eq!([0, 1].map(|n| order_of(&server, &order)["deliveries"][n]["status"].clone()), statuses);
    let names = kept(&server);
    assert!(names.len() == 2 && names.iter().all(|n| n.starts_with(&format!("delivery-{order}-2-"))), "{names:?}");
    opens_with_its_key(&server, &Kept::of(&server, &order, 2));
    verified(server);
}

/// What lies beside a delivery is damaged, or of another delivery, before the proof is made: it fails, and is encrypted again.
#[test]
fn what_lies_beside_a_delivery_and_is_not_its_own_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = dev(&dir);
    let sold = paid(&server, "sold", None);
    finalize(&server, &sold);
    let deliveries = server.dir.join("deliveries");
    let names = kept(&server);
    let read = |extension: &str| {
        std::fs::read(deliveries.join(names.iter().find(|name| name.ends_with(extension)).unwrap())).unwrap()
    };
    let (beside, sealed) = (String::from_utf8(read("json")).unwrap(), read("enc"));
    let at = beside.find("encrypted_key").unwrap() + 20;
    let other = if &beside[at..=at] == "0" { "1" } else { "0" };
    let one_digit = format!("{}{other}{}", &beside[..at], &beside[at + 1..]);
    let ciphertext = sha256(&[&sealed]).to_hex();
    for (n, text) in ["{\"made_with\":", &one_digit, &beside].into_iter().enumerate() {
        let (order, artifact, aside) = failed(&server, dir.path(), &format!("k{n}"));
        std::fs::rename(&aside, &artifact).unwrap();
        let name = format!("delivery-{order}-1-{}", &ciphertext[..16]);
        std::fs::write(deliveries.join(format!("{name}.json")), text).unwrap();
        std::fs::write(deliveries.join(format!("{name}.enc")), &sealed).unwrap();
        let encrypted = json!({
            "command": "delivery.encrypt", "actor": "service:m", "order_id": order, "algorithm": "AES256_GCM_HKDF_1MB",
            "artifact_sha256": sha256(&[ARTIFACT]).to_hex(), "ciphertext_sha256": ciphertext, "delivery": 1,
        });
        server = append(server, &[encrypted]);
        wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
        made_once(&server, &order);
        let types = types(&server, &order);
        assert_eq!(types.iter().filter(|t| *t == "delivery.failed").count(), 2, "{types:?}");
        opens_with_its_key(&server, &Kept::of(&server, &order, 1));
    }
    verified(server);
}

/// The server is told to end while an artifact is encrypted that does not come to its end: it ends, and leaves nothing.
#[test]
fn a_server_that_ends_while_it_encrypts_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let home = server.dir.clone();
    let (order, artifact, aside) = failed(&server, dir.path(), "k");
    let mut pipe = reading_from_a_pipe(&artifact);
    pipe.write_all(&ARTIFACT[..20]).unwrap();
    server.signal("-TERM");
    wait(|| server.log().contains("shutting down").then_some(()));
    std::thread::sleep(Duration::from_millis(300));
    // It sees that it is to end before it reads on, or after it read once more.
    let _ = pipe.write_all(&ARTIFACT[20..]);
    drop(pipe);
    let mut server = server;
    assert_eq!(server.wait(), 0, "{}", server.log());
    let left = std::fs::read_dir(home.join("deliveries")).unwrap().count();
    assert_eq!(left, 0);
    std::fs::rename(&aside, &artifact).unwrap();
    let server = Start::dev(&home).args(&["--checkpoint-seconds", "1"]).run();
    wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
    let types = types(&server, &order);
    assert_eq!(types.iter().filter(|t| *t == "delivery.failed").count(), 1, "ending is no failure: {types:?}");
    verified(server);
}

/// The file is cut short, or gone, where it lies: the buyer is told so, and nothing says that it was downloaded.
#[test]
fn a_file_that_is_not_whole_is_not_given() {
    let dir = tempfile::tempdir().unwrap();
    let server = dev(&dir);
    let order = paid(&server, "k", None);
    finalize(&server, &order);
    let name = kept(&server).into_iter().find(|name| name.ends_with(".enc")).unwrap();
    let file = server.dir.join("deliveries").join(name);
    let whole = std::fs::read(&file).unwrap();
    let (ann, path) = (server.of(ANN, "buyer"), format!("/delivery/delivery-{order}-1/artifact"));
    for damage in [Some(&whole[..whole.len() - 1]), None] {
        match damage {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let answer = ann.get(&path);
        assert_eq!(answer.said(), (500, "INTERNAL"));
        assert!(answer.body["error"]["message"].as_str().unwrap().contains("/reissue"), "{:?}", answer.body);
    }
    assert_eq!(order_of(&server, &order)["deliveries"][0]["downloads"], 0);
    let operator = server.of("op@example.org", "operator");
    let reissue = format!("/delivery/delivery-{order}-1/reissue");
    assert_eq!(operator.post_with_key(&reissue, "r", &json!({ "reason": "the file is lost" })).said(), (200, "ok"));
    wait(|| (order_of(&server, &order)["deliveries"][1]["status"] == "ready").then_some(()));
    opens_with_its_key(&server, &Kept::of(&server, &order, 2));
    verified(server);
}

/// Two servers of one ledger are asked for the same deliveries at once, and one dies with one that it would have tried again.
#[test]
fn two_servers_deliver_each_order_once() {
    let dir = tempfile::tempdir().unwrap();
    let (shop, url) = (dir.path().join("shop"), database(Postgres::shared()));
    let args = ["--delivery-takeover-seconds", "1", "--checkpoint-seconds", "1"];
    let servers = [on_postgres(&shop, &url).args(&args).run(), on_postgres(&shop, &url).args(&args).run()];
    let orders: Vec<String> = (0..6).map(|n| paid(&servers[n % 2], &format!("k{n}"), None)).collect();
    for order in &orders {
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for server in &servers {
                scope.spawn(|| {
                    barrier.wait();
                    finalize(server, order)
                });
            }
        });
        wait(|| (order_of(&servers[0], order)["status"] == "finalized").then_some(()));
        made_once(&servers[1], order);
        opens_with_its_key(&servers[1], &Kept::of(&servers[0], order, 1));
    }
    assert_eq!(kept(&servers[0]).len(), 2 * orders.len(), "what one of them made in vain is gone");
    let (order, artifact, aside) = failed(&servers[0], dir.path(), "left");
    let [left, right] = servers;
    left.kill();
    std::fs::rename(&aside, &artifact).unwrap();
    wait(|| (order_of(&right, &order)["status"] == "finalized").then_some(()));
    made_once(&right, &order);
    verified_at(right, Path::new(&url));
}

/// Killed at each request that it makes of its buckets, the next server goes on from what is recorded.
#[test]
fn killed_at_each_request_of_a_bucket_a_delivery_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let s3 = S3::shared();
    let (sold, delivered) = runtime.block_on(async { (s3.make_bucket(false).await, s3.make_bucket(false).await) });
    // Requests to be let through, and the process that is killed at the next one.
    let armed: Arc<Mutex<Option<(usize, u32)>>> = Arc::default();
    let (of_relay, buckets) = (Arc::clone(&armed), [format!("/{sold}/"), format!("/{delivered}/")]);
    let relay = S3Relay::before(s3, move |_, path| {
        let mut armed = of_relay.lock().unwrap();
        match &mut *armed {
            Some((left, pid)) if buckets.iter().any(|bucket| path.starts_with(bucket)) => {
                if let Some(one_less) = left.checked_sub(1) {
                    *left = one_less;
                    return S3Deed::Pass;
                }
                assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
                *armed = None;
                S3Deed::Answer(500, "InternalError")
            }
            _ => S3Deed::Pass,
        }
    });
    runtime.block_on(async {
        let artifact = s3.client().put_object().bucket(&sold).key(sha256(&[ARTIFACT]).to_hex());
        artifact.body(ARTIFACT.to_vec().into()).send().await.unwrap();
    });
    let start = || {
        let start = Start::dev(&dir.path().join("shop")).args(&["--checkpoint-seconds", "1"]);
        let start =
            start.env("ARTIFACT_STORE", &format!("s3://{sold}")).env("DELIVERY_STORE", &format!("s3://{delivered}"));
        S3::environment_at(&relay.url()).into_iter().fold(start, |start, (name, value)| start.env(name, &value)).run()
    };
    let mut server = start();
    for requests in 0.. {
        let order = paid(&server, &format!("k{requests}"), None);
        let (finance, proof) = (server.of("service:finance", "service"), Finance::of(&server).proof(&order, "lp-1"));
        *armed.lock().unwrap() = Some((requests, server.pid()));
        let answer = finance.request("POST", &format!("/order/{order}/finalize")).json(&proof).send();
        let survived = armed.lock().unwrap().take().is_some();
        if survived {
            assert_eq!(answer.unwrap().status(), 200);
            // The artifact, both files, what lies beside, and whether the file is whole.
            assert_eq!(requests, 5);
            break;
        }
        assert!(answer.is_err(), "nobody answered");
        server.wait();
        server = start();
        wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
        made_once(&server, &order);
    }
    verified(server);
}

/// Artifacts and deliveries in buckets of a real S3 server: the buyer downloads by a URL of the bucket, and objects are locked.
#[test]
fn artifacts_and_deliveries_lie_in_buckets() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let s3 = S3::shared();
    let (sold, delivered) = runtime.block_on(async { (s3.make_bucket(false).await, s3.make_bucket(true).await) });
    let shop = dir.path().join("shop");
    let start = || {
        let start = Start::dev(&shop).args(&["--checkpoint-seconds", "1"]);
        let start = start
            .env("ARTIFACT_STORE", &format!("s3://{sold}/artifacts"))
            .env("DELIVERY_STORE", &format!("s3://{delivered}"))
            .env("DELIVERY_RETAIN_DAYS", "1");
        S3::environment_at(&s3.url()).into_iter().fold(start, |start, (name, value)| start.env(name, &value))
    };
    let server = start().run();
    let order = paid(&server, "k", None);
    let done = finalize(&server, &order);
    assert_eq!(done.body["delivery"]["status"], "failed", "the artifact lies elsewhere: {:?}", done.body);
    let file = dir.path().join("artifact");
    std::fs::write(&file, ARTIFACT).unwrap();
    let mut add = ledger();
    add.arg("--dir")
        .arg(&shop)
        .args(["artifact", "add"])
        .arg(&file)
        .env("ARTIFACT_STORE", format!("s3://{sold}/artifacts"));
    let out = run_to_end(add.envs(S3::environment_at(&s3.url())));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let done = finalize(&server, &order);
    assert_eq!(done.body["order"]["status"], "finalized", "{:?}", done.body);
    let (ann, path) = (server.of(ANN, "buyer"), format!("/delivery/delivery-{order}-1/artifact"));
    let given = ann.get(&path);
    assert_eq!(given.status, 303, "{:?}", given.body);
    let url = given.header("location").to_owned();
    assert!(url.contains("X-Amz-Expires=300"), "{url}");
    let kept = Kept { dir: tempfile::tempdir().unwrap(), id: format!("delivery-{order}-1"), ledger_id: String::new() };
    // Whoever has the URL, and no token.
    let fetched = crate::support::client().get(&url).send().unwrap();
    assert_eq!(fetched.status(), 200);
    std::fs::write(kept.path("file"), fetched.bytes().unwrap()).unwrap();
    let unsigned = crate::support::client().get(url.split('?').next().unwrap()).send().unwrap();
    assert_eq!(unsigned.status(), 403, "without its signature it is nothing");
    let kept = kept.with_proofs(&server, &order, 1);
    opens_with_its_key(&server, &kept);
    assert_eq!(order_of(&server, &order)["deliveries"][0]["downloads"], 1, "it is recorded");
    // What was delivered can be neither removed nor altered for a while.
    runtime.block_on(async {
        let client = s3.client();
        let objects = client.list_object_versions().bucket(&delivered).send().await.unwrap();
        assert_eq!(objects.versions().len(), 2);
        for object in objects.versions() {
            let key = object.key().unwrap();
            let head = client.head_object().bucket(&delivered).key(key).send().await.unwrap();
            assert_eq!(head.object_lock_mode().map(|m| m.as_str()), Some("COMPLIANCE"), "{key}");
            let removed = client.delete_object().bucket(&delivered).key(key).version_id(object.version_id().unwrap());
            assert!(removed.send().await.is_err(), "{key} is locked");
        }
    });
    assert!(std::fs::read_dir(shop.join("spool")).unwrap().next().is_none(), "nothing is left on the way");
    drop(server);
    let (exit, said) = start().env("DELIVERY_STORE", "s3://No").refused();
    assert!(exit == 2 && said.contains("delivery_store"), "{said}");
}

/// The S3 server fails, or cuts an artifact short: nothing is called delivered that is not there, and it goes on once the server is well.
#[test]
fn what_a_bucket_does_wrong_is_never_called_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let s3 = S3::shared();
    let (sold, delivered) = runtime.block_on(async { (s3.make_bucket(false).await, s3.make_bucket(false).await) });
    let fault = Arc::new(Mutex::new(S3Deed::Truncate(20)));
    let (of_relay, of_sold) = (Arc::clone(&fault), format!("/{sold}/"));
    let relay = S3Relay::before(s3, move |method, path| match &*of_relay.lock().unwrap() {
        cut @ S3Deed::Truncate(_) if method == "GET" && path.starts_with(&of_sold) => cut.clone(),
        // Of the two files the one that comes last, so that something is there already.
        answer @ S3Deed::Answer(..) if method == "PUT" && path.contains(".enc") => answer.clone(),
        // The artifact comes late.
        late @ S3Deed::Late(_) if method == "GET" && path.starts_with(&of_sold) => late.clone(),
        _ => S3Deed::Pass,
    });
    let start =
        Start::dev(&dir.path().join("shop")).args(&["--checkpoint-seconds", "1", "--request-timeout-seconds", "8"]);
    let start =
        start.env("ARTIFACT_STORE", &format!("s3://{sold}")).env("DELIVERY_STORE", &format!("s3://{delivered}"));
    let server =
        S3::environment_at(&relay.url()).into_iter().fold(start, |start, (name, value)| start.env(name, &value)).run();
    runtime.block_on(async {
        let artifact = s3.client().put_object().bucket(&sold).key(sha256(&[ARTIFACT]).to_hex());
        artifact.body(ARTIFACT.to_vec().into()).send().await.unwrap();
    });
    let order = paid(&server, "k", None);
    let objects = || {
        runtime
            .block_on(async { s3.client().list_objects_v2().bucket(&delivered).send().await.unwrap().contents().len() })
    };
    for deed in [S3Deed::Truncate(20), S3Deed::Answer(403, "AccessDenied")] {
        *fault.lock().unwrap() = deed.clone();
        let done = finalize(&server, &order);
        assert_eq!(done.body["order"]["status"], "licensed", "{deed:?}: {:?}", done.body);
        assert_eq!((&done.body["delivery"]["status"], objects()), (&json!("failed"), 0), "{deed:?}: {:?}", done.body);
    }
    // While the bucket hangs, everybody else is answered as ever.
    *fault.lock().unwrap() = S3Deed::Late(Duration::from_secs(8));
    let hanging = std::thread::scope(|scope| {
        let hanging = scope.spawn(|| finalize(&server, &order));
        std::thread::sleep(Duration::from_secs(1));
        for _ in 0..20 {
            let begun = Instant::now();
            assert_eq!(server.of(ANN, "buyer").get(&format!("/order/{order}")).said(), (200, "ok"));
            assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        }
        hanging.join().unwrap()
    });
    assert_eq!(hanging.body["order"]["status"], "licensed", "{:?}", hanging.body);
    *fault.lock().unwrap() = S3Deed::Pass;
    wait(|| (order_of(&server, &order)["status"] == "finalized").then_some(()));
    assert_eq!(objects(), 2, "the delivery, and what lies beside it");
    verified(server);
}
