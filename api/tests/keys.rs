//! Keys at the command line, with openssl in the hands of finance.
#![allow(missing_docs)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const LEDGER: &str = env!("CARGO_BIN_EXE_ledger");

fn run(dir: &Path, line: &str) -> Output {
    Command::new(LEDGER).args(["--dir", "shop"]).args(line.split(' ')).current_dir(dir).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Exit status and what must be said.
fn expect(dir: &Path, line: &str, exit: i32, says: &str) -> String {
    let output = run(dir, line);
    let said = text(&output);
    assert!(output.status.code() == Some(exit) && said.contains(says), "{line}: {said}");
    said
}

fn shell(dir: &Path, script: &str) {
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output));
}

fn verify(dir: &Path) -> audit_verify::Report {
    let id: Value = serde_json::from_slice(&std::fs::read(dir.join("init")).unwrap()).unwrap();
    let id = ledger_engine::hash::Hash::from_hex(id["ledger_id"].as_str().unwrap());
    audit_verify::verify_path(&dir.join("shop"), id)
}

fn init() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), "--json init");
    assert!(output.status.success(), "{}", text(&output));
    std::fs::write(dir.path().join("init"), &output.stdout).unwrap();
    dir
}

#[test]
fn a_new_ledger_has_a_licence_key_and_signs_licences() {
    let dir = init();
    let listed = expect(dir.path(), "keys", 0, "licence-");
    assert_eq!(listed, expect(dir.path(), "keys list", 0, "licence-"));
    let order = r#"{"command":"sku.list","actor":"service:c","sku_id":"s","title":"t","price":{"amount":5,"currency":"EUR","scale":2}}
{"command":"order.create","actor":"b@example.org","ref":"o","sku_id":"s","delivery_mode":"marketplace-managed"}
{"command":"payment.capture","actor":"service:m","order_id":"ref:o","provider":"p","payment_id":"1","total":{"amount":5,"currency":"EUR","scale":2}}
{"command":"order.settle","actor":"service:m","order_id":"ref:o","ledger_proof_id":"lp"}
{"command":"license.issue","actor":"service:m","order_id":"ref:o","scope":"team"}"#;
    std::fs::write(dir.path().join("orders"), order).unwrap();
    expect(dir.path(), "submit orders", 0, "");
    let log = expect(dir.path(), "--json log --type license.", 0, "license.issued");
    assert!(log.contains("team"), "{log}");
    let report = verify(dir.path());
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    // A key that is not enrolled opens nothing for writing, and says what to do.
    std::fs::remove_file(dir.path().join("shop/keys/licence.pem")).unwrap();
    expect(dir.path(), "keys generate --purpose licence --out shop/keys/licence.pem", 0, "enrol it with");
    expect(dir.path(), "submit orders", 2, "ledger keys enrol");
    let enrol = "keys enrol --purpose licence --governance-key shop-governance.pem --key shop/keys/licence.pem";
    expect(dir.path(), enrol, 0, "may sign as licence");
    expect(dir.path(), enrol, 1, "KEY_REFUSED");
    expect(dir.path(), "submit orders", 1, "ILLEGAL_TRANSITION");
}

/// The private key never comes near the ledger: finance signs a file with openssl, Ed25519 and RSA.
#[test]
fn finance_enrols_with_openssl() {
    let dir = init();
    let path = dir.path();
    shell(
        path,
        "openssl genpkey -algorithm ed25519 -out ed.pem; openssl pkey -in ed.pem -pubout -out ed.pub; chmod 600 ed.pem
         openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem 2>&1; chmod 600 rsa.pem; openssl pkey -in rsa.pem -pubout -out rsa.pub
         openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out small.pem 2>&1; openssl pkey -in small.pem -pubout -out small.pub",
    );
    let with = "--governance-key shop-governance.pem";
    for (name, kid) in [("ed", "finance-ed"), ("rsa", "finance-rsa")] {
        let of = format!("keys enrol --purpose finance --kid {kid} --public-key {name}.pub");
        expect(path, &of, 2, "required");
        expect(path, &format!("{of} {with}"), 2, "--statement-out");
        let said = expect(path, &format!("{of} --statement-out st"), 2, "sign it with:");
        let sign = said.lines().find_map(|l| l.strip_prefix("sign it with:")).unwrap();
        shell(path, &sign.replace("PRIVATE.pem", &format!("{name}.pem")));
        expect(path, &format!("{of} {with} --possession-signature-file ed.pub"), 2, "neither a signature nor");
        let signed = format!("{with} --possession-signature-file st.sig");
        // The statement is of this kid, and of the registry as it is now.
        let other = format!("keys enrol --purpose finance --kid {kid}-2 --public-key {name}.pub {signed}");
        expect(path, &other, 2, "write it again with --statement-out");
        expect(path, &format!("{of} {signed}"), 0, &format!("{kid} may sign as finance"));
        expect(path, &format!("{of} {signed}"), 2, "write it again with --statement-out");
    }
    expect(path, &format!("keys enrol --purpose commit --key rsa.pem {with}"), 2, "must be Ed25519");
    expect(path, "keys enrol --purpose finance --public-key small.pub --statement-out st", 2, "2048 to 8192");
    expect(path, "keys enrol --purpose finance --public-key ed.pem --statement-out st", 2, "private key");
    expect(path, "keys enrol --purpose finance --key rsa.pem --governance-key ed.pem", 2, "not the governance key");
    expect(path, &format!("keys enrol --purpose kernel --key rsa.pem {with}"), 1, "KEY_REFUSED");
    let listed = expect(path, "--json keys", 0, "rsa-sha256");
    assert!(listed.contains("finance-ed") && listed.contains("finance-rsa"), "{listed}");
    let report = verify(path);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
}

const SKU: &str = r#"{"command":"sku.list","actor":"service:c","sku_id":"s","title":"t","price":{"amount":5,"currency":"EUR","scale":2}}"#;
const ORDER: &str =
    r#"{"command":"order.create","actor":"b@example.org","sku_id":"s","delivery_mode":"marketplace-managed"}"#;

fn files(dir: &Path) -> Vec<String> {
    let items = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = items.map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The kid that is valid for a purpose.
fn valid(dir: &Path, purpose: &str) -> String {
    let listed = expect(dir, "--json keys", 0, purpose);
    let keys = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut kids = keys.filter(|k| k["purpose"] == purpose && k["state"] == "valid").map(|k| k["kid"].clone());
    let kid = kids.next().unwrap().as_str().unwrap().to_owned();
    assert_eq!(kids.next(), None);
    kid
}

/// A process that is at work takes over a rotation without being told.
#[test]
fn a_running_process_takes_over_a_rotation() {
    let dir = init();
    let path = dir.path();
    let mut writer = Command::new(LEDGER)
        .args(["--dir", "shop", "--json", "submit", "-"])
        .current_dir(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut answers) =
        (writer.stdin.take().unwrap(), BufReader::new(writer.stdout.take().unwrap()).lines());
    let mut ask = |line: &str| {
        writeln!(input, "{line}").unwrap();
        answers.next().unwrap().unwrap()
    };
    let accepted = |answer: String| assert!(answer.contains("\"accepted\""), "{answer}");
    accepted(ask(SKU));
    for purpose in ["commit", "checkpoint", "licence", "commit"] {
        let old = valid(path, purpose);
        let rotate = format!("keys rotate --purpose {purpose} --governance-key shop-governance.pem");
        expect(path, &rotate, 0, &format!("{old} counts up to the sizes"));
        let new = valid(path, purpose);
        assert_ne!(new, old);
        assert!(path.join(format!("shop/keys/{new}.pem")).exists());
        accepted(ask(ORDER));
    }
    drop(input);
    assert!(writer.wait().unwrap().success());
    let report = verify(path);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    let db = rusqlite::Connection::open(path.join("shop/ledger.db")).unwrap();
    let last = "SELECT kid FROM commit_signatures ORDER BY first_index DESC LIMIT 1";
    let last: String = db.query_row(last, [], |row| row.get(0)).unwrap();
    assert_eq!(last, valid(path, "commit"));
}

#[test]
fn governance_alone_retires_keys_and_the_registry_keeps_them() {
    let dir = init();
    let path = dir.path();
    std::fs::write(path.join("sku"), SKU).unwrap();
    // What else lies beside the keys is nobody's business: certificates, public keys, keys of other algorithms.
    shell(
        path,
        "cd shop/keys; openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem 2> log
         openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem; openssl pkey -in ec.pem -pubout -out public.pem
         openssl req -x509 -key ec.pem -subj /CN=localhost -out certificate.pem; chmod 644 *.pem; chmod 600 commit.pem checkpoint.pem licence.pem export.pem delivery-proof.pem",
    );
    expect(path, "submit sku", 0, "");
    let before = files(&path.join("shop/keys"));
    // Nobody else's key does it, and no key is left lying about.
    shell(path, "openssl genpkey -algorithm ed25519 -out other.pem; chmod 600 other.pem");
    expect(path, "keys rotate --purpose commit --governance-key other.pem", 2, "not the valid governance key");
    expect(
        path,
        "keys rotate --purpose commit --governance-key shop/keys/commit.pem",
        2,
        "not the valid governance key",
    );
    expect(path, "keys rotate --purpose commit --kid commit-00 --governance-key shop-governance.pem", 1, "KEY_REFUSED");
    expect(path, "keys rotate --purpose finance --governance-key shop-governance.pem", 2, "no valid finance key");
    assert_eq!(files(&path.join("shop/keys")), before);
    let (commit, licence) = (valid(path, "commit"), valid(path, "licence"));
    let revoke = |kid: &str, rest: &str| format!("keys revoke --kid {kid} --governance-key shop-governance.pem {rest}");
    expect(path, &revoke(&commit, "--reason lost"), 1, "last valid commit key");
    expect(path, &revoke(&licence, "--reason lost --compromised-since 1,1"), 1, "KEY_REFUSED");
    let said = expect(path, &format!("--json {}", revoke(&licence, "--reason lost")), 0, "key.revoked");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["cut"][0].as_u64().unwrap(), 6);
    expect(path, &revoke(&licence, "--reason lost"), 1, "is no valid key");
    // Governance itself can be handed over; the old key then does nothing any more.
    expect(path, "keys rotate --purpose governance --governance-key shop-governance.pem", 0, "signs from now on");
    expect(
        path,
        "keys rotate --purpose commit --governance-key shop-governance.pem",
        2,
        "not the valid governance key",
    );
    let governance = valid(path, "governance");
    expect(path, &format!("keys rotate --purpose commit --governance-key {governance}.pem"), 0, "signs from now on");
    // The old tool's registry: everything is there, and the legacy reader takes it.
    expect(path, "keys export-registry --out signers.json", 0, "8 keys");
    let signers: Value = serde_json::from_slice(&std::fs::read(path.join("signers.json")).unwrap()).unwrap();
    let of =
        |kid: &str| signers["signers"].as_array().unwrap().iter().find(|s| s["signer_kid"] == kid).unwrap().clone();
    assert_eq!((of(&licence)["reason"].as_str(), of(&licence)["revokedAt"].is_string()), (Some("lost"), true));
    assert_eq!(of(&governance)["revokedAt"], Value::Null);
    audit_verify::legacy::Signers::read(&path.join("signers.json")).unwrap();
    let report = verify(path);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
}

/// Key files may be encrypted, as openssl does it; the passphrase comes from a file that nobody else may read, or from the environment.
#[test]
fn key_files_may_be_encrypted() {
    let dir = init();
    let path = dir.path();
    for (form, key) in
        [("-scrypt", "shop-governance.pem"), ("-v2 aes-256-cbc -v2prf hmacWithSHA256", "shop/keys/commit.pem")]
    {
        shell(
            path,
            &format!(
                "openssl pkcs8 -topk8 {form} -in {key} -out encrypted.pem -passout pass:'correct horse'
                 chmod 600 encrypted.pem; mv encrypted.pem {key}"
            ),
        );
    }
    std::fs::write(path.join("sku"), SKU).unwrap();
    shell(
        path,
        "printf 'correct horse\\n' > secret; printf wrong > wrong; chmod 600 secret wrong; cp secret open; chmod 644 open",
    );
    let with = |variable: &str, value: &str, line: &str| {
        let mut command = Command::new(LEDGER);
        let output =
            command.args(["--dir", "shop"]).args(line.split(' ')).env(variable, value).current_dir(path).output();
        let output = output.unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    const FILE: &str = "LEDGER_KEY_PASSPHRASE_FILE";
    let rotate = "keys rotate --purpose commit --governance-key shop-governance.pem";
    expect(path, "submit sku", 2, FILE);
    expect(path, rotate, 2, FILE);
    for (variable, value, says) in [
        (FILE, "wrong", "the passphrase is wrong"),
        ("LEDGER_KEY_PASSPHRASE", "", "give its passphrase"),
        (FILE, "open", "chmod 600"),
        (FILE, "nowhere", "nowhere"),
    ] {
        let (exit, said) = with(variable, value, "submit sku");
        assert!(exit == 2 && said.contains(says) && !said.contains("correct horse"), "{said}");
    }
    assert_eq!(with(FILE, "secret", "submit sku").0, 0);
    let (exit, said) = with("LEDGER_KEY_PASSPHRASE", "correct horse", rotate);
    assert_eq!(exit, 0, "{said}");
    assert_eq!(verify(path).exit(), 0);
    // And ours, as openssl reads it; without a passphrase none is made.
    let generate = "keys generate --purpose export --out made.pem --encrypt";
    assert_eq!(with("LEDGER_KEY_PASSPHRASE", "", generate).0, 2);
    assert_eq!(with(FILE, "secret", generate).0, 0);
    shell(
        path,
        "openssl pkey -in made.pem -passin pass:'correct horse' -noout; ! openssl pkey -in made.pem -passin pass:wrong -noout",
    );
}

/// The real verifier, which lies beside the program.
fn audit_verify(dir: &Path, arguments: &[&str]) -> (i32, String) {
    let program = Path::new(LEDGER).with_file_name("audit-verify");
    assert!(program.exists(), "build it: cargo build -p audit-verify");
    let output = Command::new(program).arg("shop").args(arguments).current_dir(dir).output().unwrap();
    (output.status.code().unwrap(), text(&output))
}

/// A registry that is published besides must say the same as the ledger; a difference is a finding, and a private key in it is refused.
#[test]
fn a_registry_given_besides_must_agree() {
    let dir = init();
    let path = dir.path();
    let id: Value = serde_json::from_slice(&std::fs::read(path.join("init")).unwrap()).unwrap();
    let with = ["--trust", id["ledger_id"].as_str().unwrap(), "-s", "signers.json"];
    let good = || -> Value { serde_json::from_slice(&std::fs::read(path.join("good.json")).unwrap()).unwrap() };
    expect(path, "keys export-registry --out good.json", 0, "6 keys");
    expect(path, "keys rotate --purpose commit --governance-key shop-governance.pem", 0, "signs from now on");
    let judged = |registry: &Value| {
        std::fs::write(path.join("signers.json"), registry.to_string()).unwrap();
        audit_verify(path, &with)
    };
    // It is as of its size: what was enrolled and rotated since is no difference.
    let (exit, said) = judged(&good());
    assert_eq!(exit, 0, "{said}");
    expect(path, "keys export-registry --out now.json", 0, "7 keys");
    let now: Value = serde_json::from_slice(&std::fs::read(path.join("now.json")).unwrap()).unwrap();
    assert_eq!(judged(&now).0, 0);
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 7] = [
        (
            |r| r["signers"][1]["public_key"] = r["signers"][2]["public_key"].clone(),
            "SHA-256 of the public key: expected",
        ),
        (|r| r["signers"][1]["purpose"] = "checkpoint".into(), "purpose: expected commit, found checkpoint"),
        (|r| drop(r["signers"].as_array_mut().unwrap().remove(1)), "the file lacks this commit key"),
        (|r| r["signers"][1]["signer_kid"] = "commit-other".into(), "has no such key"),
        (
            |r| r["signers"][1]["retired_at_registry_size"] = 2.into(),
            "expected valid, found retired at registry size 2",
        ),
        (|r| r["ledger_id"] = "00".repeat(32).into(), "signers/ledger_id"),
        // One that is kept by hand, without sizes, is as of now.
        (
            |r| drop(["ledger_id", "registry_size"].map(|name| r.as_object_mut().unwrap().remove(name))),
            "the file lacks this commit key",
        ),
    ];
    for (change, says) in changes {
        let mut registry = good();
        change(&mut registry);
        let (exit, said) = judged(&registry);
        assert!(exit == 1 && said.contains("registry_external_mismatch") && said.contains(says), "{says}: {said}");
    }
    let pem = std::fs::read_to_string(path.join("shop/keys/checkpoint.pem")).unwrap();
    for (name, value) in [("public_key", pem.as_str()), ("privateKey", "c2VlZA==")] {
        let mut registry = good();
        registry["signers"][1][name] = value.into();
        let (exit, said) = judged(&registry);
        assert!(exit == 2 && said.contains("PRIVATE key of commit-") && !said.contains("VERIFIED"), "{said}");
        assert!(!said.contains(value), "{said}");
    }
}
