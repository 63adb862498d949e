//! The catalogue over HTTP: manifests signed by OpenSSL, pages and filters, and what is neither listed nor sold.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger_engine::hash::Hash;
use serde_json::{Value, json};

use crate::pki::{Authority, Certificate};
use crate::support::{Answer, Api, Server, Start, checkout_body, ledger, python, run_to_end};

/// A Kernel whose key OpenSSL made and keeps.
struct Kernel {
    key: std::path::PathBuf,
    kid: String,
    /// What OpenSSL is told to sign.
    rsa: bool,
}

impl Kernel {
    /// Makes a key and enrols it as an operator does.
    fn enrolled(server: &Server, name: &str, rsa: bool) -> Kernel {
        let key = server.dir.join(format!("{name}.pem"));
        let algorithm: &[&str] =
            if rsa { &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"] } else { &["-algorithm", "ED25519"] };
        openssl(Command::new("openssl").arg("genpkey").args(algorithm).arg("-out").arg(&key));
        let out = run_to_end(
            ledger()
                .args(["--json", "--dir"])
                .arg(&server.dir)
                .args(["keys", "enrol", "--purpose", "kernel", "--governance-key"])
                .arg(format!("{}-governance.pem", server.dir.display()))
                .arg("--key")
                .arg(&key),
        );
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let said: Value = serde_json::from_slice(&out.stdout).unwrap();
        Kernel { key, kid: said["kid"].as_str().unwrap().to_owned(), rsa }
    }

    /// Signs a manifest whose members are in order, without white space: its RFC 8785 form.
    fn sign(&self, manifest: &Value) -> Value {
        let message = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(message.path(), manifest.to_string()).unwrap();
        let mut command = Command::new("openssl");
        match self.rsa {
            true => command.args(["dgst", "-sha256", "-sign"]).arg(&self.key).arg(message.path()),
            false => {
                command.args(["pkeyutl", "-sign", "-rawin", "-inkey"]).arg(&self.key).arg("-in").arg(message.path())
            }
        };
        let signature = STANDARD.encode(openssl(&mut command));
        let mut signed = manifest.clone();
        signed["manifest_signature"] =
            json!({ "signer_kid": self.kid, "signature": signature, "ts": "2026-11-25T10:00:00Z" });
        signed
    }
}

fn openssl(command: &mut Command) -> Vec<u8> {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn manifest(id: &str, title: &str, author: &str, tags: &[&str]) -> Value {
    json!({
        "artifacts": [{ "artifact_id": "a", "artifact_url": "https://artifacts.example.org/a", "sha256": "5e".repeat(32) }],
        "author": { "id": author, "name": "A. Author" },
        "checksum": "none", "id": id, "license": { "terms": "none", "type": "standard" },
        "metadata": { "tags": tags }, "title": title, "version": "1.0.0",
    })
}

fn price() -> Value {
    json!({ "amount": 990, "currency": "EUR", "scale": 2 })
}

fn list(operator: &Api, key: &str, manifest: &Value) -> Answer {
    operator.post_with_key("/sku", key, &json!({ "manifest": manifest, "price": price() }))
}

fn buy(buyer: &Api, key: &str, sku: &str) -> Answer {
    let mut body = checkout_body("ann@example.org");
    body["sku_id"] = json!(sku);
    buyer.post_with_key("/checkout", key, &body)
}

#[test]
fn what_the_kernel_signed_is_listed_found_and_bought() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let (operator, ann) = (server.of("op@example.org", "operator"), server.of("ann@example.org", "buyer"));
    let (kernel, rsa) = (Kernel::enrolled(&server, "kernel", false), Kernel::enrolled(&server, "rsa", true));
    let font = kernel.sign(&manifest("font/1 é", "Große Schrift", "author-1", &["serif", "print"]));
    let valid = operator.post("/admin/validate-manifest", &json!({ "manifest": font, "price": price() }));
    assert_eq!((valid.said(), &valid.body["valid"]), ((200, "ok"), &json!(true)), "{:?}", valid.body);

    let listed = list(&operator, "l-1", &font);
    assert_eq!(listed.said(), (201, "ok"), "{:?}", listed.body);
    assert_eq!(listed.body["manifestSignatureId"], valid.body["manifestSignatureId"]);
    assert_eq!(listed.body["sku"]["tags"], json!(["serif", "print"]));
    assert_eq!(listed.body["manifest"], font);
    let again = list(&operator, "l-1", &font);
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, "true"));
    assert_eq!(again.body, listed.body);
    assert_eq!(list(&operator, "l-2", &font).said(), (409, "ILLEGAL_TRANSITION"));
    assert_eq!(ann.get(listed.header("location")).body, listed.body);

    let icons = rsa.sign(&manifest("icons", "Icons", "author-2", &["print"]));
    assert_eq!(list(&operator, "l-3", &icons).said(), (201, "ok"));
    let ids = |query: &str| -> Vec<String> {
        let page = ann.get(&format!("/catalog{query}"));
        assert_eq!(page.said(), (200, "ok"), "{query}: {:?}", page.body);
        page.body["skus"].as_array().unwrap().iter().map(|s| s["sku_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(""), ["sku-e2e", "font/1 é", "icons"]);
    assert_eq!(ids("?tag=print"), ["font/1 é", "icons"]);
    assert_eq!(ids("?tag=prin"), [""; 0]);
    assert_eq!(ids("?author=author-2"), ["icons"]);
    assert_eq!(ids("?search=GROSSE"), [""; 0]);
    assert_eq!(ids("?search=GRO%C3%9FE"), ["font/1 é"]);
    // Page by page, and what is listed between two pages is not missed.
    let first = ann.get("/catalog?limit=2");
    assert_eq!((first.body["skus"].as_array().unwrap().len(), &first.body["more"]), (2, &json!(true)));
    let next = |page: &Answer| format!("?limit=2&after={}", page.body["next"].as_str().unwrap());
    assert_eq!(ids(&next(&first)), ["icons"]);
    let last = ann.get(&format!("/catalog{}", next(&first)));
    assert_eq!(last.body["more"], json!(false));
    let late = kernel.sign(&manifest("late", "Late", "author-1", &[]));
    assert_eq!(list(&operator, "l-4", &late).said(), (201, "ok"));
    assert_eq!(ids(&next(&last)), ["late"]);

    let order = buy(&ann, "k-1", "font/1 é");
    assert_eq!((order.said(), &order.body["order"]["amount"]), ((201, "ok"), &json!(990)), "{:?}", order.body);
    let gone = operator.post_with_key("/sku/icons/withdraw", "w-1", &json!({ "reason": "old" }));
    assert_eq!((gone.said(), &gone.body["sku"]["status"]), ((200, "ok"), &json!("withdrawn")));
    assert_eq!(ids("?tag=print"), ["font/1 é"]);
    assert_eq!(buy(&ann, "k-2", "icons").said(), (409, "SKU_WITHDRAWN"));
    assert_eq!(ann.get("/sku/icons").body["sku"]["status"], json!("withdrawn"));
    assert_eq!(ann.get("/sku/none").said(), (404, "NOT_FOUND"));
    assert_eq!(operator.post("/sku/none/withdraw", &json!({})).said(), (404, "NOT_FOUND"));
    // Listed again, it is as it is listed now; the first answer stays what it was.
    assert_eq!(list(&operator, "l-5", &icons).said(), (201, "ok"));
    assert_eq!(list(&operator, "l-3", &icons).body["sku"]["revision"], json!(1));
    verified(server, 0);
}

#[test]
fn what_is_wrong_with_a_manifest_is_said_and_nothing_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(&dir.path().join("shop"));
    let (operator, ann) = (server.of("op@example.org", "operator"), server.of("ann@example.org", "buyer"));
    let kernel = Kernel::enrolled(&server, "kernel", false);
    let good = kernel.sign(&manifest("s", "Font", "author-1", &[]));
    let with = |member: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(member).unwrap() = value;
        changed
    };
    let mut priced = manifest("s", "Font", "author-1", &[]);
    priced["metadata"]["price"] = json!({ "amount": 1, "currency": "EUR", "scale": 2 });
    let commit = server.of("op@example.org", "operator").get("/admin/signers");
    let commit =
        commit.body["signers"].as_array().unwrap().iter().find(|s| s["purpose"] == "commit").unwrap()["signer_kid"]
            .clone();
    let before = server.entries();
    for (manifest, status, code, why) in [
        (with("/title", json!("Another")), 422, "INVALID_SIGNATURE", "does not verify"),
        (with("/artifacts/0/sha256", json!("00".repeat(32))), 422, "INVALID_SIGNATURE", "does not verify"),
        (with("/manifest_signature/signer_kid", json!("kernel-none")), 422, "INVALID_SIGNATURE", "not in the registry"),
        (with("/manifest_signature/signer_kid", commit), 422, "INVALID_SIGNATURE", "for something else"),
        (with("/manifest_signature/signature", json!("AAAA")), 422, "INVALID_MANIFEST", "manifest_signature/signature"),
        (with("/artifacts", json!([])), 422, "INVALID_MANIFEST", "artifacts"),
        (with("/artifacts/0/sha256", json!("5E")), 422, "INVALID_MANIFEST", "artifacts/sha256"),
        (with("/author", json!("me")), 422, "INVALID_MANIFEST", "author"),
        (kernel.sign(&priced), 422, "MANIFEST_MISMATCH", "metadata/price"),
        (with("/metadata", json!({ "weight": 1.5 })), 400, "INVALID_REQUEST", "/manifest/metadata/weight"),
    ] {
        for answer in [
            list(&operator, "l", &manifest),
            operator.post("/admin/validate-manifest", &json!({ "manifest": manifest, "price": price() })),
        ] {
            assert_eq!(answer.said(), (status, code), "{manifest}: {:?}", answer.body);
            let message = answer.body["error"]["message"].as_str().unwrap();
            assert!(message.contains(why), "{message}");
        }
    }
    let other = operator.post("/admin/validate-manifest", &json!({ "manifest": good, "sku_id": "t" }));
    assert_eq!(other.said(), (422, "MANIFEST_MISMATCH"));
    for price in
        [json!({ "amount": 0, "currency": "EUR", "scale": 2 }), json!({ "amount": 1, "currency": "eur", "scale": 2 })]
    {
        let answer = operator.post_with_key("/sku", "l", &json!({ "manifest": good, "price": price }));
        assert_eq!(answer.said(), (400, "INVALID_REQUEST"), "{:?}", answer.body);
    }
    assert_eq!(operator.post("/sku", &json!({ "manifest": good, "price": price() })).said(), (400, "INVALID_REQUEST"));
    assert_eq!(server.entries(), before, "nothing was recorded");

    // Revoked: what it signed before is sold on; what it signed while others had it is not; nothing more is listed by it.
    assert_eq!(list(&operator, "l-1", &good).said(), (201, "ok"));
    assert_eq!(buy(&ann, "k-1", "s").said(), (201, "ok"));
    let mut revoke = ledger();
    revoke.arg("--dir").arg(&server.dir).args([
        "keys",
        "revoke",
        "--kid",
        &kernel.kid,
        "--reason",
        "stolen",
        "--governance-key",
    ]);
    revoke.arg(format!("{}-governance.pem", server.dir.display()));
    revoke.args(["--compromised-since", &before.to_string()]);
    let out = run_to_end(&mut revoke);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let refused = buy(&ann, "k-2", "s");
    assert_eq!(refused.said(), (422, "INVALID_MANIFEST"), "{:?}", refused.body);
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("in other hands"));
    assert_eq!(buy(&ann, "k-3", "sku-e2e").said(), (201, "ok"), "another key vouches for this one");
    let late = kernel.sign(&manifest("late", "Late", "author-1", &[]));
    assert_eq!(list(&operator, "l-2", &late).said(), (422, "INVALID_SIGNATURE"));
    // What rests on the stolen key is not covered, and nothing is wrong.
    verified(server, 2);
}

/// Ends the server and lets the verifier judge what it leaves.
fn verified(server: Server, exit: u8) {
    let id = server.client(None).get("/health").body["ledger_id"].as_str().and_then(Hash::from_hex);
    let dir = server.dir.clone();
    assert_eq!(server.stop(), 0);
    let report = audit_verify::verify_path(&dir, id);
    assert_eq!((report.exit(), report.findings().len()), (exit, 0), "{}", report.to_text());
}

/// `kernel.py`: ends with the test.
struct Asked {
    child: std::process::Child,
    port: u16,
}

impl Asked {
    fn start(own: &Certificate, ca: &Path) -> Asked {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/kernel.py");
        let mut command = python();
        command.args(["-B", script]).arg(&own.file).arg(&own.key).arg(ca);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Asked { child, port: port.trim().parse().unwrap() }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_kernel_is_asked_back_over_mutual_tls_and_nothing_is_listed_while_it_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(&dir.path().join("ca"));
    let (theirs, ours) =
        (authority.issue("localhost", "DNS:localhost"), authority.issue("ledger", "URI:spiffe://shop.example/ledger"));
    let stranger = Authority::new(&dir.path().join("other")).issue("ledger", "");
    let asked = Asked::start(&theirs, &authority.file());
    let url = format!("https://localhost:{}/kernel", asked.port);
    let start = |own: &Certificate| {
        let text = |path: &Path| path.display().to_string();
        Start::dev(&dir.path().join("shop"))
            .env("KERNEL_API_URL", &url)
            .env("KERNEL_CLIENT_CERTIFICATE", &text(&own.file))
            .env("KERNEL_CLIENT_KEY", &text(&own.key))
            .env("KERNEL_CA", &text(&authority.file()))
            .env("KERNEL_TIMEOUT_SECONDS", "2")
    };
    let configured = |server: &Server, expected: bool| {
        let begun = std::time::Instant::now();
        while server.client(None).get("/health").body["kernelConfigured"] != expected {
            assert!(begun.elapsed().as_secs() < 10, "kernelConfigured is not {expected}: {}", server.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    let server = start(&ours).run();
    configured(&server, true);
    let operator = server.of("op@example.org", "operator");
    let kernel = Kernel::enrolled(&server, "kernel", false);
    let before = server.entries();
    for (title, said, why) in [
        ("withdrawn", (422, "INVALID_MANIFEST"), "withdrawn by its author"),
        ("slow", (503, "KERNEL_UNAVAILABLE"), "did not answer"),
        ("broken", (503, "KERNEL_UNAVAILABLE"), "did not answer"),
    ] {
        let signed = kernel.sign(&manifest("s", title, "author-1", &[]));
        for answer in
            [list(&operator, "l", &signed), operator.post("/admin/validate-manifest", &json!({ "manifest": signed }))]
        {
            assert_eq!(answer.said(), said, "{title}: {:?}", answer.body);
            assert!(answer.body["error"]["message"].as_str().unwrap().contains(why), "{:?}", answer.body);
        }
    }
    assert_eq!(server.entries(), before);
    let signed = kernel.sign(&manifest("s", "Font", "author-1", &[]));
    let listed = list(&operator, "l-1", &signed);
    assert_eq!(listed.said(), (201, "ok"), "{:?}", listed.body);
    // A signature that does not hold is nothing to ask about.
    let mut forged = signed.clone();
    forged["title"] = json!("slow");
    assert_eq!(list(&operator, "l-2", &forged).said(), (422, "INVALID_SIGNATURE"));
    drop(asked);
    let late = kernel.sign(&manifest("late", "Late", "author-1", &[]));
    let refused = list(&operator, "l-3", &late);
    assert_eq!(
        (refused.said(), refused.header("retry-after")),
        ((503, "KERNEL_UNAVAILABLE"), "2"),
        "{:?}",
        refused.body
    );
    configured(&server, false);
    assert_eq!(list(&operator, "l-1", &signed).body, listed.body, "what was listed is answered as it was");
    assert_eq!(server.stop(), 0);

    // The Kernel speaks with nobody whose certificate it does not know.
    let asked = Asked::start(&theirs, &authority.file());
    let port = asked.port;
    let server = start(&stranger).env("KERNEL_API_URL", &format!("https://localhost:{port}/kernel")).run();
    let operator = server.of("op@example.org", "operator");
    assert_eq!(list(&operator, "l-4", &late).said(), (503, "KERNEL_UNAVAILABLE"));
    configured(&server, false);
}

#[test]
fn a_kernel_is_named_with_a_certificate_in_production() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |settings: &[(&str, &str)], why: &str| {
        let start = settings.iter().fold(Start::production(dir.path()), |start, (name, value)| start.env(name, value));
        let (exit, said) = start.refused();
        assert!(exit == 2 && said.contains(why), "{said}");
    };
    refused(&[("DEV_SKIP_MTLS", "true")], "dev_skip_mtls: for --dev only");
    refused(&[("KERNEL_API_URL", "https://kernel.example")], "needs kernel_client_certificate");
    refused(&[("KERNEL_API_URL", "http://kernel.example")], "https, or nobody knows who answers");
    refused(&[("KERNEL_API_URL", "https://a:b@kernel.example")], "kernel_api_url");
    refused(&[("KERNEL_CLIENT_CERTIFICATE", "/none")], "cannot be read");
}
