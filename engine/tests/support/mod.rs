//! Ledgers for tests: seeded time and keys, a real SQLite file in a temporary directory.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(missing_docs, unreachable_pub, reason = "test support")]

pub mod postgres;

use std::path::Path;
use std::sync::Arc;

use audit_verify::Demands;
use ledger_engine::domain::command::Command;
use ledger_engine::environment::SeededEnvironment;
use ledger_engine::genesis::{Genesis, Limits};
use ledger_engine::hash::Hash;
use ledger_engine::keys::PseudonymKey;
use ledger_engine::ledger::{AppendError, Appended, Config, Enrolment, Ledger};
use ledger_engine::registry::{Key, Purpose};
use ledger_engine::retire::{Authorise, Authority, Retire};
use ledger_engine::signer::keyring::Keyring;
use ledger_engine::signer::{LocalSigner, Signer};
use ledger_engine::store::Store;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};

pub const PRICE: &str = r#"{"amount":1250,"currency":"EUR","scale":2}"#;

pub fn genesis(chains: u32) -> Genesis {
    let key = |purpose, seed| LocalSigner::from_seed(purpose, &[seed; 32]).key().clone();
    Genesis {
        origin: "ledger.example/test".into(),
        chains,
        limits: Limits::default(),
        governance_key: key(Purpose::Governance, 1),
        commit_key: key(Purpose::Commit, 2),
        checkpoint_key: key(Purpose::Checkpoint, 3),
        nonce: [7; 16],
        succeeds: None,
    }
}

/// Those of the genesis keys.
pub fn signers() -> Keyring {
    let signer = |purpose, seed| Arc::new(LocalSigner::from_seed(purpose, &[seed; 32])) as Arc<dyn Signer>;
    Keyring::new([signer(Purpose::Commit, 2), signer(Purpose::Checkpoint, 3)])
}

pub fn signer(purpose: Purpose, seed: u8) -> LocalSigner {
    LocalSigner::from_seed(purpose, &[seed; 32])
}

/// The enrolment of a key over the statement as it is now.
pub async fn enrolment(ledger: &Ledger, key: Key, governance: u8, sign: impl Fn(&[u8]) -> Vec<u8>) -> Enrolment {
    let (revision, statement) = ledger.enrol_statement(&key, None).await.unwrap();
    let governance_signature = signer(Purpose::Governance, governance).signature(&statement);
    Enrolment { key, justification: None, revision, governance_signature, possession_signature: sign(&statement) }
}

pub async fn enrol(ledger: &Ledger, purpose: Purpose, seed: u8) -> Result<Appended, AppendError> {
    let incoming = signer(purpose, seed);
    let key = incoming.key().clone();
    let enrolment = enrolment(ledger, key, 1, |statement| incoming.signature(statement).to_vec()).await;
    ledger.enrol(enrolment).await
}

pub fn commit_key(seed: u8) -> Key {
    signer(Purpose::Commit, seed).key().clone()
}

/// Signs as governance, and as the incoming commit key of a seed.
pub fn authorise(incoming: Option<u8>) -> Authorise {
    Box::new(move |statement| {
        let possession = incoming.map(|seed| signer(Purpose::Commit, seed).signature(statement).to_vec());
        Ok(Authority { governance: signer(Purpose::Governance, 1).signature(statement), possession })
    })
}

/// Rotates from the commit key of one seed to that of another, which the ledger must hold to go on.
pub async fn rotate(ledger: &Ledger, old: u8, new: u8) -> Result<Appended, AppendError> {
    let retire = Retire::Rotate { old_kid: commit_key(old).kid, key: commit_key(new) };
    ledger.retire(retire, authorise(Some(new))).await
}

pub fn config(store: Arc<dyn Store>) -> Config {
    Config {
        store,
        environment: Arc::new(SeededEnvironment::new(1, 1_795_000_000_000_000, 1000)),
        signers: Arc::new(signers()),
        pseudonyms: PseudonymKey::new([9; 32]),
    }
}

pub async fn create(dir: &Path, chains: u32) -> Ledger {
    std::fs::create_dir_all(dir).unwrap();
    let store = SqliteStore::create(dir, SqliteOptions::default()).unwrap();
    Ledger::create(config(Arc::new(store)), genesis(chains)).await.unwrap()
}

pub async fn open(dir: &Path) -> Ledger {
    let store = SqliteStore::open(dir, SqliteOptions::default()).unwrap();
    Ledger::open(config(Arc::new(store))).await.unwrap()
}

pub async fn send(ledger: &Ledger, line: &str) -> Result<Appended, AppendError> {
    let command = Command::parse(line.as_bytes()).unwrap_or_else(|e| panic!("{e}: {line}"));
    ledger.append(&command, "SUBMIT").await
}

/// Queues all commands in turn, so that commits hold several entries, then waits for all answers.
pub async fn at_once(ledger: &Ledger, lines: impl IntoIterator<Item = String>) -> Vec<Result<Appended, AppendError>> {
    let mut waiting = Vec::new();
    for line in lines {
        let command = Command::parse(line.as_bytes()).unwrap();
        waiting.push(ledger.submit(&command, None, "SUBMIT").await.unwrap());
    }
    let mut answers = Vec::new();
    for pending in waiting {
        answers.push(pending.wait().await);
    }
    answers
}

/// Verifies the ledger, or the export, in a directory.
pub fn verified(dir: &Path, ledger: &Ledger) {
    let demands = Demands { trust: Some(ledger.id()), ..Demands::default() };
    let report = audit_verify::verify_path_with(dir, demands);
    assert_eq!((report.exit(), report.reason()), (0, ""), "{}", report.to_text());
}

pub async fn code(ledger: &Ledger, line: &str) -> &'static str {
    match send(ledger, line).await {
        Ok(a) if a.repeated => "repeated",
        Ok(_) => "accepted",
        Err(e) => e.code(),
    }
}

pub async fn list_sku(ledger: &Ledger, sku: &str) {
    let line = format!(
        r#"{{"command":"sku.list","actor":"service:catalog","sku_id":"{sku}","title":"Font","price":{PRICE}}}"#
    );
    send(ledger, &line).await.unwrap();
}

pub fn create_line(key: &str, sku: &str) -> String {
    format!(
        r#"{{"command":"order.create","actor":"{key}@example.org","idempotency_key":"{key}","sku_id":"{sku}","delivery_mode":"marketplace-managed"}}"#
    )
}

pub async fn create_order(ledger: &Ledger, key: &str, sku: &str) -> String {
    send(ledger, &create_line(key, sku)).await.unwrap().case.unwrap().to_string()
}

/// The commands that take an order from paid to downloaded.
pub fn life(order: &str) -> Vec<String> {
    let of = |command: &str, rest: &str| {
        format!(r#"{{"command":"{command}","actor":"service:market","order_id":"{order}"{rest}}}"#)
    };
    let hex = "ab".repeat(32);
    vec![
        of(
            "payment.capture",
            &format!(r#","idempotency_key":"pay-{order}","provider":"stripe","payment_id":"pi","total":{PRICE}"#),
        ),
        of("order.settle", r#","ledger_proof_id":"lp""#),
        of("license.issue", ""),
        of("delivery.request", ""),
        of(
            "delivery.encrypt",
            &format!(r#","algorithm":"AES256-GCM","artifact_sha256":"{hex}","ciphertext_sha256":"{hex}""#),
        ),
        of("delivery.ready", ""),
        of("order.finalize", ""),
        of("delivery.download", ""),
    ]
}

/// A small ledger: orders on `chains` chains, one of them delivered and erased, one reissued.
pub async fn sample(dir: &Path, chains: u32) -> Hash {
    let ledger = create(dir, chains).await;
    list_sku(&ledger, "s").await;
    for (i, steps) in [(0, 8), (1, 3), (2, 1), (3, 0)] {
        let order = create_order(&ledger, &format!("k{i}"), "s").await;
        for line in life(&order).iter().take(steps) {
            send(&ledger, line).await.unwrap();
        }
        if steps == 8 {
            for (command, rest) in
                [("delivery.reissue", r#","reason":"lost""#), ("subject.erase", r#","reason":"asked""#)]
            {
                send(&ledger, &format!(r#"{{"command":"{command}","actor":"service:m","order_id":"{order}"{rest}}}"#))
                    .await
                    .unwrap();
            }
        }
    }
    ledger.checkpoint().await.unwrap();
    send(&ledger, r#"{"command":"sku.withdraw","actor":"service:catalog","sku_id":"s","reason":"тест \u0007"}"#)
        .await
        .unwrap();
    ledger.shutdown().await.unwrap();
    ledger.id()
}

/// What a run has been told is durable: the command and its answer.
pub type Acknowledged = std::sync::Mutex<Vec<(String, Appended)>>;

fn keyed(line: &str, key: &str) -> String {
    if line.contains("idempotency_key") {
        return line.to_owned();
    }
    line.replacen('{', &format!(r#"{{"idempotency_key":"{key}","#), 1)
}

/// One order from its listing to a reissued delivery, command by command, then `callers` orders at once, all with idempotency
/// keys that begin with `prefix`. Every answer is noted as soon as it is there; failures are given back with their command.
pub async fn busy(
    ledger: &Arc<Ledger>,
    prefix: &str,
    callers: usize,
    acknowledged: &Arc<Acknowledged>,
) -> Vec<(String, AppendError)> {
    let note = |line: String, result: Result<Appended, AppendError>, acknowledged: &Acknowledged| match result {
        Ok(appended) => {
            acknowledged.lock().unwrap().push((line, appended));
            None
        }
        Err(e) => Some((line, e)),
    };
    let mut failed = Vec::new();
    let sku = format!(
        r#"{{"command":"sku.list","actor":"service:catalog","idempotency_key":"{prefix}-sku","sku_id":"{prefix}","title":"Font","price":{PRICE}}}"#
    );
    let listed = send(ledger, &sku).await;
    failed.extend(note(sku, listed, acknowledged));
    let line = create_line(&format!("{prefix}-life"), prefix);
    let created = send(ledger, &line).await;
    let order = created.as_ref().ok().and_then(|a| a.case);
    failed.extend(note(line, created, acknowledged));
    if let Some(order) = order.map(|o| o.to_string()) {
        let mut lines = life(&order);
        lines.push(format!(
            r#"{{"command":"delivery.reissue","actor":"service:market","order_id":"{order}","reason":"lost"}}"#
        ));
        for (i, line) in lines.iter().enumerate() {
            let line = keyed(line, &format!("{prefix}-{i}"));
            let result = send(ledger, &line).await;
            failed.extend(note(line, result, acknowledged));
        }
    }
    let tasks: Vec<_> = (0..callers)
        .map(|i| {
            let (ledger, acknowledged) = (Arc::clone(ledger), Arc::clone(acknowledged));
            let line = create_line(&format!("{prefix}-k{i}"), prefix);
            tokio::spawn(async move {
                let result = send(&ledger, &line).await;
                note(line, result, &acknowledged)
            })
        })
        .collect();
    for task in tasks {
        failed.extend(task.await.unwrap());
    }
    failed
}

/// For files that nobody keeps: what is written to them need not be durable.
pub fn unsynced() -> SqliteOptions {
    SqliteOptions { synchronous: "OFF", ..SqliteOptions::default() }
}

/// Judges a ledger's files that nobody uses: they verify, every acknowledged command is in them with its entries, and given again
/// it gets the same answer. What was not acknowledged is there as a whole or not at all: the verifier compares commits and states.
pub async fn check_kept(dir: &Path, id: ledger_engine::hash::Hash, acknowledged: &[(String, Appended)], what: &str) {
    let report = audit_verify::verify_path(dir, Some(id));
    assert_eq!(report.exit(), 0, "{what}: {}", report.to_text());
    let store = SqliteStore::open(dir, unsynced()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let ledger = Ledger::open(config(Arc::new(store))).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    for (line, answer) in acknowledged {
        let again = send(&ledger, line).await.unwrap_or_else(|e| panic!("{what}: {line}: {e}"));
        assert!(again.repeated, "{what}: lost {line}");
        assert_eq!(again.entries, answer.entries, "{what}: {line}");
    }
}

/// A copy of a ledger that nobody uses, changed as whoever owns the file can.
pub fn tamper(dir: &Path, sql: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("ledger.db"), copy.path().join("ledger.db")).unwrap();
    let db = rusqlite::Connection::open(copy.path().join("ledger.db")).unwrap();
    let mut s = db.prepare("SELECT name FROM sqlite_master WHERE type = 'trigger'").unwrap();
    let triggers: Vec<String> = s.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect();
    drop(s);
    triggers.iter().for_each(|t| db.execute_batch(&format!("DROP TRIGGER {t}")).unwrap());
    db.execute_batch(sql).unwrap_or_else(|e| panic!("{e}: {sql}"));
    copy
}

/// The repository's fixtures.
pub fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fixtures")
}

/// Judges every directory in `fixtures/valid/WHAT` and `fixtures/broken/WHAT`, also one that the test does not know, by the verdict beside
/// it. Returns what is not as it should be.
pub fn judge_folders(what: &str, known: &[std::path::PathBuf]) -> Vec<String> {
    let folders: Vec<_> = known.iter().filter(|path| path.is_dir()).cloned().collect();
    let mut wrong: Vec<String> = second_verifier("--check", &folders).into_iter().collect();
    for folder in ["valid", "broken"] {
        for found in std::fs::read_dir(fixtures().join(folder).join(what)).unwrap() {
            let path = found.unwrap().path();
            assert!(known.contains(&path), "{} is not made by this test", path.display());
            if !path.is_dir() {
                continue;
            }
            let expect = std::fs::read(path.with_extension("expect.json")).unwrap();
            let expect: serde_json::Value = serde_json::from_slice(&expect).unwrap();
            let expected: Vec<String> = serde_json::from_value(expect["findings"].clone()).unwrap();
            let report = audit_verify::verify_path(&path, expect["trust"].as_str().and_then(Hash::from_hex));
            if (u64::from(report.exit()), report.codes()) != (expect["exit"].as_u64().unwrap(), expected.clone()) {
                wrong.push(format!("{}: expected {expected:?}\n{}", path.display(), report.to_text()));
            }
        }
    }
    wrong
}

/// Seed of the key that signs exports.
pub const EXPORT: u8 = 30;

/// A ledger that can sign exports.
pub async fn exporting(dir: &Path, chains: u32) -> Ledger {
    let ledger = create(dir, chains).await;
    enrol(&ledger, Purpose::Export, EXPORT).await.unwrap();
    ledger.signers().add(Arc::new(signer(Purpose::Export, EXPORT)));
    ledger
}

/// What batches of tests say.
pub fn batch_options() -> ledger_engine::archive::job::BatchOptions {
    ledger_engine::archive::job::BatchOptions {
        env: "test".into(),
        private: true,
        pii_policy: "1".into(),
        tool: "ledger test".into(),
        tables: false,
        until_us: None,
        restart: false,
    }
}

/// Copies a directory with what is below it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let (path, to) = (item.unwrap().path(), to.to_owned());
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

/// What the second verifier, which shares no code, says against these sources: with `--check` that they are not as they should be.
pub fn second_verifier(option: &str, sources: &[std::path::PathBuf]) -> Option<String> {
    let root = fixtures().parent().unwrap().to_owned();
    let made = || root.join("target/python/bin/python").display().to_string();
    let output = std::process::Command::new(std::env::var("LEDGER_PYTHON").unwrap_or_else(|_| made()))
        .arg(root.join("verifier/python/verify.py"))
        .args(option.split(' '))
        .args(sources)
        .output()
        .expect("the test command makes the Python environment: run .ci/run, or set LEDGER_PYTHON");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // With --check the exit status is that of what was judged.
    let failed = option != "--check" && !output.status.success();
    (failed || !said.is_empty()).then(|| said + &String::from_utf8_lossy(&output.stdout))
}
