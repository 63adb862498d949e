//! The real program with keys that are elsewhere: in a token, in KMS, behind the reference proxy. Guards, outages, rotation, emergencies.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_servers::{Kms, KmsDeed, Token};

use crate::pki::{Authority, Certificate};
use crate::support::{Api, Server, Start, ledger, run_to_end};

const SKU: &str = r#"{"command":"sku.list","actor":"service:c","sku_id":"sku-e2e","title":"t","price":{"amount":5,"currency":"EUR","scale":2}}"#;
const API_KEY: &str = "an API key of the tests";

type Variables = Vec<(String, String)>;

fn variables<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> Variables {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A file that only its owner may read.
fn secret(dir: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn run(dir: &Path, environment: &Variables, arguments: &[&str]) -> Output {
    let mut command = ledger();
    command.current_dir(dir).args(["--dir", "shop"]).args(arguments);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    run_to_end(&mut command)
}

/// Exit status and what must be said.
fn expect(dir: &Path, environment: &Variables, arguments: &[&str], exit: i32, says: &str) -> String {
    let output = run(dir, environment, arguments);
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(output.status.code() == Some(exit) && said.contains(says), "{arguments:?}: {said}");
    said
}

/// Something to sell, submitted at the command line: the signer has to sign for it.
fn list_sku(dir: &Path, environment: &Variables) {
    std::fs::write(dir.join("sku"), SKU).unwrap();
    expect(dir, environment, &["submit", "sku"], 0, "");
}

/// A server whose tokens are those of a development server.
fn serve(dir: &Path, environment: &Variables) -> Server {
    let start = Start::dev(&dir.join("shop"));
    environment.iter().fold(start, |start, (name, value)| start.env(name, value)).run()
}

/// The whole ledger verifies.
fn verified(dir: &Path, id: &str) {
    let report = audit_verify::verify_path(&dir.join("shop"), ledger_engine::hash::Hash::from_hex(id));
    assert_eq!(report.exit(), 0, "{}", report.to_text());
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(40), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ready(api: &Api) -> (u16, bool) {
    let answer = api.get("/ready");
    (answer.status, answer.body["signer"] == true)
}

/// One metric of one keeper, over all its kids.
fn metric(server: &Server, name: &str, keeper: &str) -> u64 {
    let metrics = server.of("op@example.org", "operator").get("/metrics").body;
    let wanted = format!("keeper=\"{keeper}\"");
    let lines = metrics.as_str().unwrap().lines().filter(|line| line.starts_with(name) && line.contains(&wanted));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Keys of all purposes in a token. Returns what processes need to find it.
fn token_with_keys(dir: &Path, token: &Token, labels: &[&str]) -> Variables {
    let pin = secret(dir, "pin", Token::PIN);
    let mut environment = variables(token.environment().map(|(name, path)| (name, path.display().to_string())));
    environment.push(("LEDGER_PKCS11_PIN_FILE".into(), pin.display().to_string()));
    environment.push(("LEDGER_PKCS11_MODULE".into(), Token::module().display().to_string()));
    for label in labels {
        let uri = format!("pkcs11:token=ledger%20test;object={label}");
        let purpose = label.split('-').next().unwrap();
        expect(dir, &environment, &["keys", "generate", "--purpose", purpose, "--in-pkcs11", &uri], 0, "enrol it with");
    }
    environment
}

fn of_token(label: &str) -> String {
    format!("pkcs11:token=ledger%20test;object={label}")
}

/// A ledger none of whose keys is in a file.
fn init_in_token(dir: &Path, environment: &Variables) -> String {
    let keys = ["governance", "commit", "checkpoint", "licence"].map(of_token);
    let [governance, commit, checkpoint, licence] = &keys;
    let arguments = [
        "--json",
        "init",
        "--origin",
        "localhost/development",
        "--governance-signer",
        governance,
        "--commit-signer",
        commit,
        "--checkpoint-signer",
        checkpoint,
        "--licence-signer",
        licence,
    ];
    let made: Value = serde_json::from_str(&expect(dir, environment, &arguments, 0, "ledger_id")).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(dir.join("shop/keys")).unwrap().map(|f| f.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["delivery.key", "pseudonym.key"], "no key that signs is in a file");
    made["ledger_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_ledger_with_all_its_keys_in_a_token() {
    let (dir, token) = (tempfile::tempdir().unwrap(), Token::new());
    let dir = dir.path();
    let labels = ["governance", "commit", "checkpoint", "licence", "commit-2"];
    let mut environment = token_with_keys(dir, &token, &labels);
    let id = init_in_token(dir, &environment);
    // Without the signer nothing is written, and reading goes on.
    std::fs::write(dir.join("sku"), SKU).unwrap();
    expect(dir, &environment, &["submit", "sku"], 2, "no signer of this process has that key");
    environment.push((
        "LEDGER_SIGNERS".into(),
        of_token("commit") + " " + &of_token("checkpoint") + " " + &of_token("licence"),
    ));
    environment.push(("REQUIRE_KMS".into(), "true".into()));
    list_sku(dir, &environment);
    // A new key of the token takes over, while nobody but the governance key of the token can say so.
    let governance = of_token("governance");
    let rotate = ["keys", "rotate", "--purpose", "commit", "--from-pkcs11", &of_token("commit-2"), "--governance-key"];
    let into_a_file = ["keys", "rotate", "--purpose", "commit", "--governance-key", &governance];
    expect(dir, &environment, &into_a_file, 2, "say where the one that comes is");
    let other = of_token("licence");
    expect(dir, &environment, &[&rotate[..], &[&other]].concat(), 2, "not the governance key");
    expect(dir, &environment, &[&rotate[..], &[&governance]].concat(), 0, "signs from now on");
    expect(dir, &environment, &["submit", "sku"], 2, "no signer of this process has that key");
    environment.push(("LEDGER_SIGNERS".into(), "pkcs11:token=ledger%20test".into()));
    let server = serve(dir, &environment);
    let buyer = server.of("b@example.org", "buyer");
    assert_eq!(buyer.checkout("b@example.org", "k-1").code(), "ok");
    assert_eq!(ready(&buyer), (200, true));
    assert_eq!(buyer.get("/health").body["signingConfigured"], true);
    assert!(metric(&server, "ledger_signatures_total", "pkcs11") >= 1);
    assert_eq!(server.stop(), 0);
    verified(dir, &id);
    secret(dir, "pin", "999999");
    std::fs::write(dir.join("sku"), SKU.replace("sku-e2e", "sku-2")).unwrap();
    expect(dir, &environment, &["submit", "sku"], 2, "not tried again");
}

#[test]
fn guards_refuse_local_keys() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    expect(dir, &Vec::new(), &["init", "--origin", "localhost/development"], 0, "ledger id");
    let set = |pairs: &[(&str, &str)]| variables(pairs.iter().map(|(name, value)| (*name, (*value).to_owned())));
    std::fs::write(dir.join("sku"), SKU).unwrap();
    for (environment, says) in [
        (set(&[("REQUIRE_KMS", "true")]), "require_kms: no key of AWS KMS or of a PKCS#11 token is named"),
        (set(&[("REQUIRE_SIGNING_PROXY", "1")]), "require_signing_proxy: no signing proxy is named"),
        (
            set(&[("REQUIRE_KMS", "1"), ("SIGNING_PROXY_URL", "https://sign.example")]),
            "forbids signing proxy https://sign.example",
        ),
        (set(&[("REQUIRE_KMS", "perhaps")]), "true or false"),
        (set(&[("AUDIT_SIGNING_ALG", "rsa-sha256")]), "signs by Ed25519 only"),
        (set(&[("SIGNING_PROXY_URL", "sign.example")]), "SIGNING_PROXY_URL"),
        (set(&[("LEDGER_SIGNERS", "pkcs11:token=t?pin-value=1234")]), "a PIN does not belong"),
    ] {
        for command in [&["submit", "sku"][..], &["checkpoint"], &["serve", "--dev", "--listen", "127.0.0.1:0"]] {
            let said = expect(dir, &environment, command, 2, says);
            assert!(!said.contains("1234"), "{said}");
        }
    }
    // A signer that is away does not let the file in.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let away = format!("http://127.0.0.1:{port}");
    let guarded = set(&[("REQUIRE_SIGNING_PROXY", "true"), ("SIGNING_PROXY_URL", &away)]);
    expect(
        dir,
        &guarded,
        &["submit", "sku"],
        2,
        "refuses local keys, and shop/keys/checkpoint.pem holds the private key of checkpoint-",
    );
    expect(dir, &guarded, &["serve", "--dev", "--listen", "127.0.0.1:0"], 2, "refuses local keys");
    expect(dir, &guarded, &["log"], 0, "ledger.created");
}

/// A ledger whose commits KMS signs, and everything else a key file.
fn kms_environment(kms: &Kms) -> Variables {
    let mut environment = variables(kms.environment());
    environment.push(("AUDIT_SIGNING_KMS_KEY_ID".into(), kms.key_id().into()));
    environment
}

fn init_in_kms(dir: &Path, kms: &Kms) -> String {
    let commit = format!("awskms:{}", kms.key_id());
    let arguments = ["--json", "init", "--origin", "localhost/development", "--commit-signer", &commit];
    let made: Value = serde_json::from_str(&expect(dir, &kms_environment(kms), &arguments, 0, "ledger_id")).unwrap();
    made["ledger_id"].as_str().unwrap().to_owned()
}

/// The runbook's incident A: the signer goes away under load, comes back, and nothing was lost, doubled, or answered unsigned.
#[test]
fn a_signer_that_goes_away_and_comes_back() {
    let (dir, kms) = (tempfile::tempdir().unwrap(), Kms::start(21));
    let dir = dir.path();
    let (id, environment) = (init_in_kms(dir, &kms), kms_environment(&kms));
    list_sku(dir, &environment);
    let server = serve(dir, &environment);
    let buyer = server.of("b@example.org", "buyer");
    let before = buyer.checkout("b@example.org", "before");
    let order = format!("/order/{}", before.body["order"]["order_id"].as_str().unwrap_or_default());
    assert_eq!((before.code(), buyer.get(&order).status), ("ok", 200), "{}", before.body);
    kms.is_away(true);
    let entries = server.entries();
    for key in ["during-1", "during-2"] {
        let answer = buyer.checkout("b@example.org", key);
        assert_eq!(answer.said(), (503, "SIGNING_UNAVAILABLE"), "{}", answer.body);
        assert!(
            !answer.header("retry-after").is_empty() && !answer.body.to_string().contains("127.0.0.1"),
            "{}",
            answer.body
        );
    }
    until("/ready does not notice", || ready(&buyer) == (503, false));
    assert_eq!(buyer.get("/health").status, 200);
    assert_eq!(buyer.get(&order).status, 200);
    assert_eq!(server.entries(), entries, "nothing unsigned is stored");
    let errors = server.of("op@example.org", "operator").get("/metrics").body;
    assert!(errors.as_str().unwrap().lines().any(|line| line == "signing_errors_total 2"), "{errors}");
    assert!(metric(&server, "ledger_signer_errors_total", "kms") >= 3);
    kms.is_away(false);
    until("it does not come back", || ready(&buyer) == (200, true));
    // The same requests again: each once.
    for key in ["before", "during-1", "during-2", "during-1"] {
        until("writes do not come back", || buyer.checkout("b@example.org", key).code() == "ok");
    }
    assert_eq!(server.stop(), 0);
    let created = expect(dir, &environment, &["--json", "log", "--type", "order.created"], 0, "");
    assert_eq!(created.lines().count(), 3, "{created}");
    verified(dir, &id);
}

#[test]
fn a_signer_that_is_down_at_the_start() {
    let (dir, kms) = (tempfile::tempdir().unwrap(), Kms::start(22));
    let dir = dir.path();
    let (id, environment) = (init_in_kms(dir, &kms), kms_environment(&kms));
    list_sku(dir, &environment);
    kms.is_away(true);
    // One command says so, and changes nothing.
    std::fs::write(dir.join("sku"), SKU.replace("sku-e2e", "sku-2")).unwrap();
    let said = expect(dir, &environment, &["--json", "submit", "sku"], 2, "AWS KMS key");
    assert!(said.contains("nothing was written"), "{said}");
    let server = serve(dir, &environment);
    let buyer = server.of("b@example.org", "buyer");
    assert_eq!(ready(&buyer), (503, false));
    assert_eq!(buyer.get("/health").body["signingConfigured"], false);
    assert_eq!(buyer.get("/audit/checkpoint").status, 200);
    assert_eq!(buyer.checkout("b@example.org", "k").said(), (503, "SIGNING_UNAVAILABLE"));
    kms.is_away(false);
    until("it does not come", || ready(&buyer) == (200, true));
    until("writes do not come", || buyer.checkout("b@example.org", "k").code() == "ok");
    assert_eq!(server.stop(), 0);
    verified(dir, &id);
}

/// One commit, one call: many callers wait together. What answers wrongly is answered by 503, and never stored.
#[test]
fn kms_is_called_once_for_a_commit_and_not_believed() {
    let (dir, kms) = (tempfile::tempdir().unwrap(), Kms::start(23));
    let dir = dir.path();
    let (id, environment) = (init_in_kms(dir, &kms), kms_environment(&kms));
    let skus: Vec<String> = (0..300).map(|i| SKU.replace("sku-e2e", &format!("sku-{i}"))).collect();
    std::fs::write(dir.join("skus"), skus.join("\n")).unwrap();
    let before = kms.signed();
    let started = Instant::now();
    expect(dir, &environment, &["submit", "skus"], 0, "300");
    let calls = kms.signed() - before;
    assert!(calls < 150, "{calls} calls for 300 commands, in {:?}", started.elapsed());
    list_sku(dir, &environment);
    let server = serve(dir, &environment);
    let buyer = server.of("b@example.org", "buyer");
    for (key, deed) in [("k-1", KmsDeed::OtherKey), ("k-2", KmsDeed::Error(400, "AccessDeniedException"))] {
        let entries = server.entries();
        kms.becomes(deed.clone());
        assert_eq!(buyer.checkout("b@example.org", key).said(), (503, "SIGNING_UNAVAILABLE"), "{deed:?}");
        assert_eq!(server.entries(), entries);
        kms.becomes(KmsDeed::Sign);
        until("it does not come back", || buyer.checkout("b@example.org", key).code() == "ok");
    }
    assert_eq!(server.stop(), 0);
    verified(dir, &id);
}

/// The runbook's fallback: a key for emergencies, prepared and kept in a safe, signs while the service is away and its file is there.
#[test]
fn a_key_for_emergencies() {
    let (dir, kms) = (tempfile::tempdir().unwrap(), Kms::start(24));
    let dir = dir.path();
    let (id, environment) = (init_in_kms(dir, &kms), kms_environment(&kms));
    expect(dir, &environment, &["keys", "generate", "--purpose", "commit", "--out", "safe.pem"], 0, "");
    let enrol =
        ["keys", "enrol", "--purpose", "commit", "--key", "safe.pem", "--governance-key", "shop-governance.pem"];
    expect(dir, &environment, &[&enrol[..], &["--emergency"]].concat(), 2, "--justification");
    expect(dir, &environment, &[&enrol[..], &["--justification", "x"]].concat(), 2, "--emergency");
    expect(dir, &environment, &[&enrol[..], &["--emergency", "--justification", " "]].concat(), 2, "say why");
    let why = "for incident A of the runbook: two officers keep it in the safe";
    expect(
        dir,
        &environment,
        &[&enrol[..], &["--emergency", "--justification", why]].concat(),
        0,
        "may sign as commit",
    );
    let listed = expect(dir, &environment, &["--json", "keys"], 0, why);
    let record =
        listed.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).find(|r| r["justification"] == why).unwrap();
    let (emergency, state) = (record["kid"].as_str().unwrap().to_owned(), record["state"].as_str().unwrap());
    assert_eq!(state, "emergency");
    let exported = expect(dir, &environment, &["keys", "export-registry"], 0, why);
    assert!(exported.contains(&emergency));
    list_sku(dir, &environment);
    let server = serve(dir, &environment);
    let buyer = server.of("b@example.org", "buyer");
    assert_eq!(buyer.checkout("b@example.org", "before").code(), "ok");
    kms.is_away(true);
    assert_eq!(buyer.checkout("b@example.org", "during").said(), (503, "SIGNING_UNAVAILABLE"));
    // Out of the safe, into the directory: no restart.
    std::fs::copy(dir.join("safe.pem"), dir.join("shop/keys/emergency.pem")).unwrap();
    until("the emergency key is not used", || buyer.checkout("b@example.org", "during").code() == "ok");
    assert_eq!(ready(&buyer), (200, true));
    let signers = server.of("op@example.org", "operator").get("/admin/signers").body;
    assert!(signers.to_string().contains(why), "{signers}");
    assert_eq!(server.stop(), 0);
    // Afterwards it is revoked, and the file goes; then the service signs again.
    kms.is_away(false);
    std::fs::remove_file(dir.join("shop/keys/emergency.pem")).unwrap();
    let revoke =
        ["keys", "revoke", "--kid", &emergency, "--reason", "incident over", "--governance-key", "shop-governance.pem"];
    expect(dir, &environment, &revoke, 0, "counts up to the sizes");
    list_sku_again(dir, &environment);
    verified(dir, &id);
}

fn list_sku_again(dir: &Path, environment: &Variables) {
    std::fs::write(dir.join("sku"), SKU.replace("sku-e2e", "sku-after")).unwrap();
    expect(dir, environment, &["submit", "sku"], 0, "");
}

/// The reference proxy, a process of its own.
struct Proxy {
    child: Child,
    url: String,
}

impl Proxy {
    fn start(
        dir: &Path,
        environment: &Variables,
        port: u16,
        certificate: &Certificate,
        authority: &Authority,
    ) -> Proxy {
        let key_file = secret(dir, "api-key", API_KEY);
        let program = Path::new(env!("CARGO_BIN_EXE_ledger")).with_file_name("examples").join("signing_proxy");
        assert!(program.exists(), "build the reference proxy: cargo build -p ledger --example signing_proxy");
        let mut command = Command::new(program);
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--signer", "pkcs11:token=ledger%20test"]);
        command
            .arg("--api-key-file")
            .arg(key_file)
            .arg("--certificate")
            .arg(&certificate.file)
            .arg("--key")
            .arg(&certificate.key);
        command.arg("--client-ca").arg(authority.file());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let line = BufReader::new(child.stdout.take().unwrap()).lines().next().expect("it did not start").unwrap();
        let url = line.strip_prefix("listening on ").unwrap().replace("127.0.0.1", "localhost");
        Proxy { child, url }
    }

    fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    fn kill(mut self) -> u16 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.port()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_reference_proxy_in_front_of_a_token() {
    let (dir, token) = (tempfile::tempdir().unwrap(), Token::new());
    let dir = dir.path();
    let of_token = token_with_keys(dir, &token, &["commit", "checkpoint", "licence", "commit-2"]);
    let authority = Authority::new(&dir.join("ca"));
    let certificate = authority.issue("localhost", "DNS:localhost");
    let client = authority.issue("service", "URI:spiffe://ledger/service");
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&client.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let proxy = Proxy::start(dir, &of_token, 0, &certificate, &authority);
    let path = |path: &Path| path.display().to_string();
    let good = variables([
        ("SIGNING_PROXY_API_KEY_FILE", path(&dir.join("api-key"))),
        ("SIGNING_PROXY_CA_FILE", path(&authority.file())),
        ("SIGNING_PROXY_CERT_FILE", path(&client.file)),
        ("SIGNING_PROXY_KEY_FILE", path(&client.key)),
    ]);
    let with = |name: &str, value: &str| {
        let mut changed = good.clone();
        changed.retain(|(n, _)| n != name);
        changed.push((name.to_owned(), value.to_owned()));
        changed
    };
    let keys = expect(
        dir,
        &of_token,
        &["--json", "keys", "generate", "--purpose", "governance", "--out", "governance.pem"],
        0,
        "",
    );
    assert!(keys.contains("public_key"));
    // Which key is which is said by its public key.
    let init = |environment: &Variables, arguments: &[&str]| {
        run(dir, environment, &[&["--json", "init", "--origin", "localhost/development"][..], arguments].concat())
    };
    let said = |output: Output| [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap()).concat();
    let several = said(init(&good, &["--commit-signer", &proxy.url]));
    assert!(several.contains("has 4 keys that could be meant"), "{several}");
    let expired = authority.issue_with("localhost", "DNS:localhost", "serverAuth", -60);
    let old = Proxy::start(dir, &of_token, 0, &expired, &authority);
    let refusals = [
        (good.clone(), old.url.clone(), "expired"),
        (
            with("SIGNING_PROXY_API_KEY_FILE", &path(&secret(dir, "other-key", "another API key"))),
            proxy.url.clone(),
            "UNAUTHORIZED",
        ),
        (with("SIGNING_PROXY_API_KEY_FILE", ""), proxy.url.clone(), "UNAUTHORIZED"),
        (
            with("SIGNING_PROXY_CA_FILE", &path(&Authority::new(&dir.join("other-ca")).file())),
            proxy.url.clone(),
            "certificate",
        ),
        (with("SIGNING_PROXY_KEY_FILE", ""), proxy.url.clone(), "go together"),
        (good.clone(), "https://localhost:1".into(), "onnect"),
    ];
    for (environment, url, says) in refusals {
        let refused = said(init(&environment, &["--commit-signer", &url]));
        assert!(
            refused.contains(says) && refused.contains("signing proxy") && !refused.contains(API_KEY),
            "{says}: {refused}"
        );
        assert!(!dir.join("shop").exists());
    }
    drop(old);
    assert_eq!(authorised(&proxy, &good, "/health"), json!({ "ok": true }));
    let listed = authorised(&proxy, &good, "/keys");
    let mut urls = listed["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| format!("{}#{}", proxy.url, k["public_key"].as_str().unwrap()));
    let [commit, checkpoint, licence, next] = std::array::from_fn(|_| urls.next().unwrap());
    let made =
        init(&good, &["--commit-signer", &commit, "--checkpoint-signer", &checkpoint, "--licence-signer", &licence]);
    assert!(made.status.success(), "{}", said(made));
    let id: Value = serde_json::from_slice(&made.stdout).unwrap();
    let mut environment = good.clone();
    environment.extend(variables([("SIGNING_PROXY_URL", proxy.url.clone()), ("REQUIRE_SIGNING_PROXY", "true".into())]));
    list_sku(dir, &environment);
    let server = serve(dir, &environment);
    let buyer = server.of("b@example.org", "buyer");
    assert_eq!(buyer.checkout("b@example.org", "k-1").code(), "ok");
    // The server takes a rotation over by itself: the proxy has the key already.
    let rotate =
        ["keys", "rotate", "--purpose", "commit", "--from-proxy", &next, "--governance-key", "shop-governance.pem"];
    expect(dir, &environment, &rotate, 0, "signs from now on");
    until("the rotation is not taken over", || buyer.checkout("b@example.org", "k-2").code() == "ok");
    // Killed, and started again at the same place.
    let port = proxy.kill();
    assert_eq!(buyer.checkout("b@example.org", "k-3").said(), (503, "SIGNING_UNAVAILABLE"));
    until("/ready does not notice", || ready(&buyer) == (503, false));
    let proxy = Proxy::start(dir, &of_token, port, &certificate, &authority);
    until("it does not come back", || ready(&buyer) == (200, true));
    until("writes do not come back", || buyer.checkout("b@example.org", "k-3").code() == "ok");
    assert!(metric(&server, "ledger_signatures_total", "proxy") >= 3);
    assert!(!server.log().contains(API_KEY));
    assert_eq!(server.stop(), 0);
    drop(proxy);
    verified(dir, id["ledger_id"].as_str().unwrap());
}

/// Asks the proxy as curl does.
fn authorised(proxy: &Proxy, environment: &Variables, path: &str) -> Value {
    let of = |name: &str| environment.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let output = Command::new("curl")
        .args(["-fsS", "--cacert", &of("SIGNING_PROXY_CA_FILE"), "--cert", &of("SIGNING_PROXY_CERT_FILE")])
        .args(["--key", &of("SIGNING_PROXY_KEY_FILE"), "-H", &format!("Authorization: Bearer {API_KEY}")])
        .arg(format!("{}{path}", proxy.url))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
