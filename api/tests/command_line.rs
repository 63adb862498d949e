//! The binaries as their users run them.
#![allow(missing_docs)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const LEDGER: &str = env!("CARGO_BIN_EXE_ledger");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The Python with the packages of the second verifier; the test command makes it.
fn python() -> String {
    std::env::var("LEDGER_PYTHON").unwrap_or_else(|_| root().join("target/python/bin/python").display().to_string())
}

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(LEDGER).arg("--dir").arg(dir).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn init(dir: &Path) -> String {
    let output = run(dir, &["init", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    json["ledger_id"].as_str().unwrap().to_owned()
}

fn verify(dir: &Path, id: &str) -> audit_verify::Report {
    audit_verify::verify_path(dir, ledger_engine::hash::Hash::from_hex(id))
}

fn second_verifier(args: &[&str]) -> (i32, String) {
    let output = Command::new(python()).arg(root().join("verifier/python/verify.py")).args(args).output();
    let output = output.expect("the test command makes the Python environment: run .ci/run, or set LEDGER_PYTHON");
    (output.status.code().unwrap(), text(&output))
}

/// Anybody's tools read an export and find the digests of its manifest.
#[test]
fn an_export_is_read_with_common_tools() {
    let dir = tempfile::tempdir().unwrap();
    let (shop, out) = (dir.path().join("shop"), dir.path().join("out"));
    let id = init(&shop);
    let refused = run(dir.path(), &["export", "--copy", "--out", "nowhere"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    let output = run(&shop, &["export", "--copy", "--out", out.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    assert!(said.starts_with("copied 4 entries") && said.contains("audit-verify") && said.contains(&id), "{said}");
    let again = run(&shop, &["export", "--copy", "--out", out.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again).contains("exists already"), "{}", text(&again));
    let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
    let file = &manifest["files"][0];
    let script = format!("gunzip -c {} | sha256sum", file["name"].as_str().unwrap());
    let sum = Command::new("sh").args(["-c", &script]).current_dir(&out).output().unwrap();
    assert_eq!(text(&sum).split(' ').next(), file["sha256"].as_str());
    let report = verify(&out, &id);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    assert!(report.to_text().contains("projections are no part of an export"), "{}", report.to_text());
    assert!(report.to_html().contains("no part of an export"));
    assert!(report.to_json()["export"].as_str().unwrap().contains("by ledger 0.1.0"));
}

/// The whole day: every answer and every final state equals the independent fold; both verifiers agree.
#[test]
fn the_day_is_answered_as_the_prose_says() {
    let dir = tempfile::tempdir().unwrap();
    let (shop, commands) = (dir.path().join("shop"), dir.path().join("day.jsonl"));
    std::fs::write(&commands, ledger_fixtures::recorded_day().unwrap()).unwrap();
    let fold = Command::new(python()).arg(root().join("fixtures/fold.py")).arg(&commands).output().unwrap();
    assert!(fold.status.success(), "{}", text(&fold));
    let fold: Value = serde_json::from_slice(&fold.stdout).unwrap();
    let id = init(&shop);
    let output = run(&shop, &["--json", "submit", commands.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "some lines are refused");
    let answers: Vec<Value> = output.stdout.lines().map(|l| serde_json::from_str(&l.unwrap()).unwrap()).collect();
    let (summary, answers) = answers.split_last().unwrap();
    let expected = fold["lines"].as_array().unwrap();
    assert_eq!(answers.len(), expected.len());
    let mut order_of_line = std::collections::HashMap::new();
    for (answer, expected) in answers.iter().zip(expected) {
        let got = [&answer["line"], &answer["outcome"], &answer["code"]];
        assert_eq!(got, [&expected[0], &expected[1], &expected[2]], "{answer}");
        if answer["outcome"] == "accepted" && answer["entries"][0]["event_type"] == "order.created" {
            order_of_line.insert(format!("L{}", answer["line"]), answer["order_id"].as_str().unwrap().to_owned());
        }
    }
    assert!(summary["accepted"].as_u64().unwrap() > 40_000);

    let db = rusqlite::Connection::open(shop.join("ledger.db")).unwrap();
    let number = |r: &rusqlite::Row<'_>, i| r.get::<_, i64>(i).map(Value::from);
    let word = |r: &rusqlite::Row<'_>, i| r.get::<_, Option<String>>(i).map(|v| v.map_or(Value::Null, Value::from));
    let mut order = db.prepare("SELECT status, sku_id, currency, delivery_mode, key_fingerprint, ledger_proof_id, amount, scale, refunded, o.revision, deliveries FROM stream_heads s JOIN orders o ON o.chain = s.chain AND o.idx = s.first_index WHERE s.chain = 0 AND s.stream = 'order-' || ?1").unwrap();
    let mut delivery = db.prepare("SELECT status, mode, key_fingerprint, artifact_sha256, ciphertext_sha256, n, downloads, d.revision FROM stream_heads s JOIN deliveries d ON d.chain = s.chain AND d.idx = s.first_index WHERE s.chain = 0 AND s.stream > 'delivery-' || ?1 || '-' AND s.stream < 'delivery-' || ?1 || '.' ORDER BY n").unwrap();
    let orders = fold["orders"].as_object().unwrap();
    assert_eq!(orders.len(), order_of_line.len());
    for (line, want) in orders {
        let id = &order_of_line[line];
        let found = order.query_row([id], |r| {
            Ok(serde_json::json!({
                "status": word(r, 0)?, "sku_id": word(r, 1)?, "currency": word(r, 2)?, "delivery_mode": word(r, 3)?,
                "key_fingerprint": word(r, 4)?, "ledger_proof_id": word(r, 5)?, "amount": number(r, 6)?, "scale": number(r, 7)?,
                "refunded": number(r, 8)?, "revision": number(r, 9)?,
            }))
        });
        let mut want = want.clone();
        let deliveries = want.as_object_mut().unwrap().remove("deliveries").unwrap();
        assert_eq!(found.unwrap(), want, "order {id} of {line}");
        let found = delivery.query_map([id], |r| {
            Ok(serde_json::json!({
                "status": word(r, 0)?, "mode": word(r, 1)?, "key_fingerprint": word(r, 2)?, "artifact_sha256": word(r, 3)?,
                "ciphertext_sha256": word(r, 4)?, "n": number(r, 5)?, "downloads": number(r, 6)?, "revision": number(r, 7)?,
            }))
        });
        let found: Vec<Value> = found.unwrap().collect::<rusqlite::Result<_>>().unwrap();
        assert_eq!(Value::Array(found), deliveries, "deliveries of {id}");
    }
    drop((order, delivery));
    drop(db);

    let report = verify(&shop, &id);
    assert_eq!((report.exit(), report.reason()), (0, ""), "{}", report.to_text());
    let (exit, said) = second_verifier(&["--trust", &id, shop.to_str().unwrap()]);
    assert_eq!(exit, 0, "{said}");
    assert!(run(&shop, &["replay", "--check"]).status.success());

    // Every answer again: the whole input is repeated or refused, and what carries a key adds nothing.
    let keyed: Vec<u8> = std::fs::read(&commands)
        .unwrap()
        .split_inclusive(|b| *b == b'\n')
        .filter(|l| l.windows(9).any(|w| w == b"\"create-1"))
        .flatten()
        .copied()
        .collect();
    std::fs::write(&commands, keyed).unwrap();
    let again = run(&shop, &["--json", "submit", commands.to_str().unwrap()]);
    let summary: Value = serde_json::from_str(text(&again).lines().last().unwrap()).unwrap();
    assert_eq!(summary["entries"], 0, "{summary}");
}

/// `kill -9` at a different moment in each round: what was acknowledged is there, nothing is half there, both verifiers agree.
#[test]
fn killed_under_load_it_keeps_every_acknowledged_command() {
    let rounds: u64 = std::env::var("LEDGER_KILL_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(25);
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let id = init(&shop);
    let sku = r#"{"command":"sku.list","actor":"service:catalog","sku_id":"s","title":"t","price":{"amount":5,"currency":"EUR","scale":2}}"#;
    std::fs::write(dir.path().join("sku.jsonl"), sku).unwrap();
    assert!(run(&shop, &["submit", dir.path().join("sku.jsonl").to_str().unwrap()]).status.success());
    let mut acknowledged: Vec<(String, u64)> = Vec::new();
    for round in 0..rounds {
        let mut child = Command::new(LEDGER)
            .arg("--dir")
            .arg(&shop)
            .args(["--json", "submit", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || {
            for i in 0.. {
                let line = format!(
                    r#"{{"command":"order.create","actor":"b@example.org","idempotency_key":"{round}-{i}","sku_id":"s","delivery_mode":"marketplace-managed"}}"#
                );
                if writeln!(input, "{line}").is_err() {
                    return;
                }
            }
        });
        // The moment is counted in answers, so that a slow machine is killed under load as well.
        let enough = 1 + (round * 7919) % 3000;
        let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..enough {
            let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
            let entry = &answer["entries"][0];
            acknowledged.push((entry["id"].as_str().unwrap().to_owned(), entry["index"].as_u64().unwrap()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had already written before it died counts as acknowledged too.
        for answer in answers.map_while(Result::ok) {
            if let Ok(answer) = serde_json::from_str::<Value>(&answer) {
                let entry = &answer["entries"][0];
                acknowledged.push((entry["id"].as_str().unwrap().to_owned(), entry["index"].as_u64().unwrap()));
            }
        }
        writer.join().unwrap();
        let report = verify(&shop, &id);
        assert_eq!(report.exit(), 0, "round {round}: {}", report.to_text());
        let db = rusqlite::Connection::open(shop.join("ledger.db")).unwrap();
        let mut find = db.prepare("SELECT lower(hex(event_id)) FROM entries WHERE chain = 0 AND idx = ?1").unwrap();
        for (event, index) in &acknowledged {
            let found: String = find.query_row([*index as i64], |r| r.get(0)).unwrap();
            assert_eq!(found, event.replace('-', ""), "round {round}: entry {index} was acknowledged");
        }
    }
    let (exit, said) = second_verifier(&["--trust", &id, shop.to_str().unwrap()]);
    assert_eq!(exit, 0, "{said}");
}

/// Two processes submit to one ledger at once; both finish, nothing is lost.
#[test]
fn a_second_process_waits_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let id = init(&shop);
    let children: Vec<_> = ["a", "b"]
        .iter()
        .map(|name| {
            let file = dir.path().join(name);
            let price = r#"{"amount":5,"currency":"EUR","scale":2}"#;
            let lines: Vec<String> = (0..2000)
                .map(|i| format!(r#"{{"command":"sku.list","actor":"service:catalog","sku_id":"{name}{i}","title":"t","price":{price}}}"#))
                .collect();
            std::fs::write(&file, lines.join("\n")).unwrap();
            Command::new(LEDGER).arg("--dir").arg(&shop).arg("submit").arg(file).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let report = verify(&shop, &id);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    assert_eq!(report.chains()[0].entries, 4004);
}

/// A proof file by event id and by order id, to a file and to standard output; what cannot be proven yet is said to be so.
#[test]
fn one_entry_can_be_handed_to_a_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let id = init(&shop);
    let lines = [
        r#"{"command":"sku.list","actor":"service:catalog","sku_id":"s","title":"t","price":{"amount":5,"currency":"EUR","scale":2}}"#,
        r#"{"command":"order.create","actor":"b@example.org","sku_id":"s","delivery_mode":"marketplace-managed"}"#,
    ];
    let commands = dir.path().join("commands");
    std::fs::write(&commands, lines.join("\n")).unwrap();
    let answers = run(&shop, &["--json", "submit", commands.to_str().unwrap()]);
    let order: Value = serde_json::from_str(text(&answers).lines().nth(1).unwrap()).unwrap();
    let (order_id, event) = (order["order_id"].as_str().unwrap(), order["entries"][0]["id"].as_str().unwrap());
    let file = dir.path().join("order.proof");
    let trust = ledger_engine::hash::Hash::from_hex(&id);
    let judge = || audit_verify::verify_proof(&file, audit_verify::Demands { trust, ..Default::default() });
    for wanted in [order_id, event] {
        let output = run(&shop, &["proof", wanted, "--private", "--out", file.to_str().unwrap()]);
        let said = text(&output);
        assert!(output.status.success() && said.contains(&format!("audit-verify proof {}", file.display())), "{said}");
        let shown = std::fs::read(&file).unwrap();
        assert!(String::from_utf8_lossy(&shown).contains("b@example.org"));
        assert_eq!(judge().exit(), 0, "{}", judge().to_text());
        let output = run(&shop, &["proof", wanted]);
        std::fs::write(&file, &output.stdout).unwrap();
        assert!(!text(&output).contains("b@example.org"), "private only if asked for");
        assert_eq!(judge().exit(), 0, "{}", judge().to_text());
    }
    let answer = run(&shop, &["--json", "proof", event, "--out", file.to_str().unwrap()]);
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!((&answer["ledger_id"], &answer["event_id"], &answer["index"]), (&id.into(), &event.into(), &5.into()));
    for (args, exit, say) in [
        (["proof", "xyz"], 2, "no event id and no order id"),
        (["proof", "00000000-0000-8000-8000-000000000000"], 1, "there is no entry and no order"),
    ] {
        let output = run(&shop, &args);
        assert_eq!(output.status.code(), Some(exit), "{}", text(&output));
        assert!(text(&output).contains(say), "{}", text(&output));
    }
    let db = rusqlite::Connection::open(shop.join("ledger.db")).unwrap();
    db.execute_batch("DROP TRIGGER checkpoints_no_delete; DELETE FROM checkpoints").unwrap();
    drop(db);
    let output = run(&shop, &["proof", order_id]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("`ledger checkpoint` makes one"), "{}", text(&output));
}

/// Faults are named, with what to do, and exit 2.
#[test]
fn faults_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let fails = |args: &[&str], say: &str| {
        let output = run(&shop, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(say), "{args:?}: {}", text(&output));
    };
    fails(&["submit", "-"], "ledger init");
    fails(&["init", "--origin", "a b"], "--origin");
    init(&shop);
    fails(&["init"], "exists already");
    fails(&["submit", "/nonexistent/commands"], "/nonexistent/commands");
    fails(&["order", "xyz"], "32 lowercase hex");
    let key = shop.join("keys/commit.pem");
    let pem = std::fs::read(&key).unwrap();
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    fails(&["checkpoint"], "PKCS#8");
    std::fs::remove_file(&key).unwrap();
    fails(&["checkpoint"], "restore it");
    std::fs::write(&key, pem).unwrap();
    fails(&["checkpoint"], "chmod 600");
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(run(&shop, &["keys"]).status.success());
    let mut bytes = std::fs::read(shop.join("ledger.db")).unwrap();
    bytes[..100].fill(0x55);
    std::fs::write(shop.join("ledger.db"), bytes).unwrap();
    fails(&["keys"], "damaged");
    let report = audit_verify::verify_path(&shop, None);
    assert_eq!(report.exit(), 2, "{}", report.to_text());
}

/// The demo is the first thing that anybody runs.
#[test]
fn the_demo_proves_and_catches() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(LEDGER).args(["demo", "--into"]).arg(dir.path().join("demo")).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("VERIFIED") && said.matches("BROKEN").count() == 5, "{said}");
}

/// A disk without room for a ledger: nothing stays behind, so that the same command works once there is room.
#[test]
fn a_ledger_that_could_not_be_made_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Every size from no room for a file to nearly enough, up to the first on which it fits.
    let script = r#"
        mkdir disk && mount -t tmpfs -o size=4k tmpfs disk
        room=4
        until "$LEDGER" --dir disk/shop init > said 2>&1; do
            cat said; [ -z "$(ls -A disk)" ] || { ls -lAR disk; exit 9; }
            room=$((room + 16)); [ $room -lt 2000 ]; mount -o remount,size=${room}k disk
        done
        "$LEDGER" --dir disk/shop log
    "#;
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-ec", script])
        .env("LEDGER", LEDGER)
        .current_dir(dir.path())
        .output()
        .expect("unshare of util-linux");
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let failed: Vec<&str> = said.lines().filter(|l| l.starts_with("ledger: ")).collect();
    assert!(failed.len() > 5, "{said}");
    let names = |l: &&str| l.contains("disk/shop") || l.contains("disk/.shop");
    let says = |l: &&str| l.contains("free space") || l.contains("No space left");
    assert!(failed.iter().all(|l| names(l) && says(l)), "{said}");
}

/// A disk that is really full: what was answered is kept, the message says what to do, and doing it is enough.
#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let day: Vec<u8> = ledger_fixtures::day(5, 400).join(&b'\n');
    std::fs::write(dir.path().join("day"), day).unwrap();
    // A file system of two megabytes, in a mount namespace of its own, which goes when the shell ends.
    let script = r#"
        mkdir disk out && mount -t tmpfs -o size=2m tmpfs disk
        "$LEDGER" --json --dir disk/shop init > out/init
        "$LEDGER" --json --dir disk/shop submit day > out/first 2> out/says && exit 9
        "$LEDGER" --dir disk/shop log > out/log
        mount -o remount,size=64m disk
        "$LEDGER" --json --dir disk/shop submit day > out/second || [ $? = 1 ]
        "$LEDGER" --dir disk/shop backup out/ledger.db
    "#;
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-ec", script])
        .env("LEDGER", LEDGER)
        .current_dir(dir.path())
        .output()
        .expect("unshare of util-linux");
    assert!(output.status.success(), "{}", text(&output));
    let read = |name: &str| std::fs::read_to_string(dir.path().join("out").join(name)).unwrap();
    let says = read("says");
    assert!(says.contains("STORE_UNAVAILABLE") && says.contains("free space and try again"), "{says}");
    let id: Value = serde_json::from_str(&read("init")).unwrap();
    let id = id["ledger_id"].as_str().unwrap();
    let report = verify(&dir.path().join("out/ledger.db"), id);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    let accepted = |name: &str| -> Vec<Value> {
        let answers = read(name).lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>();
        answers
            .into_iter()
            .filter(|a| a["outcome"] == "accepted")
            .flat_map(|a| a["entries"].as_array().unwrap().clone())
            .collect()
    };
    let (first, second) = (accepted("first"), accepted("second"));
    assert!(first.len() > 100 && second.len() > 100, "{} and {}", first.len(), second.len());
    // Every entry that either run answered is there, at its own place, and the ledger holds nothing besides but its genesis and its own three keys.
    let places: std::collections::BTreeSet<u64> =
        first.iter().chain(&second).map(|e| e["index"].as_u64().unwrap()).collect();
    assert_eq!(places.len(), first.len() + second.len());
    assert_eq!(report.chains()[0].entries, 4 + places.len() as u64);
}

/// An auditor's medium cannot be written, and the keys cannot be read: reading works, writing says why not, and nothing changes.
#[test]
fn a_read_only_directory_can_be_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let id = init(&shop);
    let price = r#"{"amount":5,"currency":"EUR","scale":2}"#;
    let line =
        format!(r#"{{"command":"sku.list","actor":"service:catalog","sku_id":"s","title":"t","price":{price}}}"#);
    let commands = dir.path().join("commands");
    std::fs::write(&commands, &line).unwrap();
    assert!(run(&shop, &["submit", commands.to_str().unwrap()]).status.success());
    std::fs::write(&commands, line.replace("\"s\"", "\"t\"")).unwrap();
    let before = std::fs::read(shop.join("ledger.db")).unwrap();
    // Root may write anything, so another user tries: one who owns everything here, and could not write even so.
    let script = r#"
        find . -type d -exec chmod 555 {} + && find shop -type f -exec chmod 400 {} + && chmod 000 shop/keys/*
        [ "$(id -u)" != 0 ] || { chown -R 65534:65534 .; as="setpriv --reuid=65534 --regid=65534 --clear-groups"; }
        for command in "log" "keys" "replay --check" "order 00000000000000000000000000000000" "submit commands" "replay" "init --governance-key g"; do
            rc=0; $as ./ledger --dir shop $command > said 2>&1 || rc=$?
            echo "$command: $rc $(tail -n 1 said)"
        done
        rc=0; $as ./ledger --dir new init > said 2>&1 || rc=$?
        echo "new: $rc $(tail -n 1 said)"
        find . -type d -exec chmod 755 {} +; chmod 600 shop/keys/*
    "#;
    std::fs::copy(LEDGER, dir.path().join("ledger")).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(dir.path().join("said"), "").unwrap();
    std::fs::set_permissions(dir.path().join("said"), std::fs::Permissions::from_mode(0o666)).unwrap();
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir.path()).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for expected in [
        "log: 0 ",
        "keys: 0 ",
        "replay --check: 0 projections equal",
        "order 00000000000000000000000000000000: 1 there is no order",
        "replay: 2 ledger: shop: the store is unavailable: the ledger's directory or file is read-only",
        "init --governance-key g: 2 ledger: ",
        "new: 2 ledger: ",
    ] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert!(said.contains("submit commands: 2 ") && said.contains("a user who may read or write it"), "{said}");
    assert_eq!(std::fs::read(shop.join("ledger.db")).unwrap(), before);
    assert_eq!(verify(&shop, &id).exit(), 0);
}
