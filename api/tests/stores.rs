//! The same commands on the embedded store and on PostgreSQL, of four chains: what each is answered, and what verifiers say of the result.
#![allow(missing_docs)]

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use audit_verify::Demands;
use ledger_engine::hash::Hash;
use serde_json::Value;
use test_servers::Server;

const LEDGER: &str = env!("CARGO_BIN_EXE_ledger");
const CHAINS: u64 = 4;

/// A ledger made by the command line.
struct Shop {
    dir: tempfile::TempDir,
    /// Of the database, for the writer and for the auditor.
    urls: Option<(String, String)>,
    id: Hash,
    /// The commands given, and the shapes of what they were answered.
    said: RefCell<Vec<(String, Vec<String>)>>,
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The names of all members and the types of all values; of texts, whether they are words of ours or hashes, names and times.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: Vec<String> =
                members.iter().map(|(name, value)| format!("{name}: {}", shape(value))).collect();
            format!("{{{}}}", members.join(", "))
        }
        Value::Array(values) => {
            // Of lists that grow with the data, what their members are.
            let shapes: BTreeSet<String> = values.iter().map(shape).collect();
            format!("[{}]", shapes.into_iter().collect::<Vec<_>>().join(" | "))
        }
        Value::String(text)
            if text.len() < 24 && text.chars().all(|c| c.is_ascii_lowercase() || c == '.' || c == '_') =>
        {
            text.clone()
        }
        Value::String(_) => "text".into(),
        Value::Number(_) => "number".into(),
        Value::Bool(_) | Value::Null => value.to_string(),
    }
}

/// A new database with the schema, and URLs of its writer and its auditor.
fn database() -> (String, String) {
    let server = Server::shared();
    let url = server.database();
    let name = url.rsplit('/').next().unwrap();
    let migrated = Command::new(LEDGER).args(["--database", &url, "migrate"]).output().unwrap();
    assert!(migrated.status.success(), "{}", text(&migrated));
    for (login, role) in [("shop", "ledger_writer"), ("reader", "ledger_auditor")] {
        let login = format!("{login}_{name}");
        server.psql("postgres", &format!("CREATE ROLE {login} LOGIN NOSUPERUSER IN ROLE {role}"));
    }
    (server.url_of(&format!("shop_{name}"), name), server.url_of(&format!("reader_{name}"), name))
}

impl Shop {
    fn open(urls: Option<(String, String)>) -> Shop {
        let dir = tempfile::tempdir().unwrap();
        let mut shop = Shop { dir, urls, id: Hash::ZERO, said: RefCell::default() };
        let init = shop.json("init --origin shop.example/orders --chains 4");
        shop.id = Hash::from_hex(init["ledger_id"].as_str().unwrap()).unwrap();
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(LEDGER);
        command.args(["--json", "--dir", "shop"]).current_dir(self.dir.path()).env_remove("DATABASE_URL");
        if let Some((writer, _)) = &self.urls {
            command.args(["--database", writer]);
        }
        command.args(line.split(' '));
        command
    }

    /// The answers, one a line.
    fn answers(&self, line: &str) -> Vec<Value> {
        let output = self.command(line).output().unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output));
        let lines = String::from_utf8(output.stdout).unwrap();
        let answers: Vec<Value> =
            lines.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{line}: {e}: {l}"))).collect();
        let command = line.split(' ').filter(|word| word.len() < 32).collect::<Vec<_>>().join(" ");
        self.said.borrow_mut().push((command, answers.iter().map(shape).collect()));
        answers
    }

    fn json(&self, line: &str) -> Value {
        self.answers(line).swap_remove(0)
    }

    fn refused(&self, line: &str, exit: i32) -> String {
        let output = self.command(line).output().unwrap();
        assert_eq!(output.status.code(), Some(exit), "{line}: {}", text(&output));
        text(&output)
    }

    /// Submits lines, and gives what each was answered.
    fn submit(&self, lines: &[String]) -> Vec<Value> {
        std::fs::write(self.path("commands"), lines.join("\n")).unwrap();
        let mut answers = self.answers("submit commands");
        answers.retain(|a| a.get("line").is_some());
        answers
    }

    fn demands(&self) -> Demands<'static> {
        Demands { trust: Some(self.id), ..Demands::default() }
    }

    /// What the auditor's program says of the ledger itself.
    fn verify(&self) -> audit_verify::Report {
        let place = self.urls.as_ref().map_or_else(|| self.path("shop"), |(_, auditor)| PathBuf::from(auditor));
        let report = audit_verify::verify_path_with(&place, self.demands());
        assert_eq!((report.exit(), report.reason()), (0, ""), "{}", report.to_text());
        report
    }
}

fn orders() -> Vec<String> {
    let money = r#"{"amount":5,"currency":"EUR","scale":2}"#;
    let mut lines =
        vec![format!(r#"{{"command":"sku.list","actor":"service:c","sku_id":"s","title":"t","price":{money}}}"#)];
    for n in 0..24 {
        lines.push(format!(
            r#"{{"command":"order.create","actor":"b{n}@example.org","idempotency_key":"k{n}","ref":"o{n}","sku_id":"s","delivery_mode":"marketplace-managed"}}"#
        ));
        lines.push(format!(
            r#"{{"command":"payment.capture","actor":"service:m","order_id":"ref:o{n}","provider":"p","payment_id":"{n}","total":{money}}}"#
        ));
    }
    lines
}

/// The orders that answers speak of, each once, in order.
fn ids(answers: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> = answers.iter().filter_map(|a| a["order_id"].as_str().map(str::to_owned)).collect();
    ids.dedup();
    ids
}

fn day(shop: &Shop) {
    let answers = shop.submit(&orders());
    assert_eq!(answers.len(), 49);
    assert!(answers.iter().all(|a| a["outcome"] == "accepted"), "{answers:?}");
    let chains: HashSet<u64> = answers.iter().filter_map(|a| a["entries"][0]["chain"].as_u64()).collect();
    assert_eq!(chains.len() as u64, CHAINS, "orders lie on every chain: {answers:?}");
    // Creations again are the same orders; payments have no key, and are refused.
    let creations: Vec<String> = orders().into_iter().filter(|l| l.contains("order.create")).collect();
    let again = shop.submit(&creations);
    assert!(again.iter().all(|a| a["outcome"] == "repeated"), "{again:?}");
    let ids = ids(&again);
    assert_eq!((ids.len(), &ids), (24, &self::ids(&answers)));
    for id in &ids {
        let order = shop.json(&format!("order {id}"));
        assert_eq!(order["order"]["status"], "paid", "{order}");
    }
    assert_eq!(shop.answers("log --type payment.").len(), 24);
    assert_eq!(shop.answers("checkpoint").len() as u64, CHAINS);
    shop.answers("replay --check");
    assert!(shop.answers("keys").len() >= 4);
    for (n, id) in ids.iter().enumerate().take(8) {
        shop.answers(&format!("proof {id} --out {n}.proof"));
        let judged = audit_verify::verify_proof(&shop.path(&format!("{n}.proof")), shop.demands());
        assert_eq!(judged.exit(), 0, "{}", judged.to_text());
    }
    shop.verify();
    for (name, form) in [("plain", " --plain"), ("packed", "")] {
        shop.answers(&format!("export --copy --out {name}{form}"));
        let report = audit_verify::verify_path(&shop.path(name), Some(shop.id));
        assert_eq!((report.exit(), report.reason()), (0, ""), "{}", report.to_text());
    }
    shop.refused("export --copy --out plain", 2);
    // A key of somebody else's is enrolled, and one of ours rotated, in the same place.
    shop.answers("keys generate --purpose finance --out finance.pem");
    shop.answers("keys enrol --purpose finance --governance-key shop-governance.pem --key finance.pem");
    let rotated = shop.json("keys rotate --purpose commit --governance-key shop-governance.pem");
    assert_eq!(rotated["cut"].as_array().unwrap().len() as u64, CHAINS);
    let late = orders().into_iter().filter(|l| l.contains("order.create")).map(|l| l.replace("\"k", "\"late-k"));
    assert!(shop.submit(&late.collect::<Vec<_>>()).iter().all(|a| a["outcome"] == "accepted"));
    shop.verify();
}

/// The same day on both stores: every command is answered with the same fields, and the same words in them.
#[test]
fn a_day_on_four_chains_is_the_same_on_both_stores() {
    let embedded = Shop::open(None);
    let shared = Shop::open(Some(database()));
    day(&embedded);
    day(&shared);
    let (embedded_said, shared_said) = (embedded.said.take(), shared.said.take());
    assert_eq!(embedded_said.len(), shared_said.len());
    for (embedded, shared) in embedded_said.iter().zip(&shared_said) {
        assert_eq!(embedded, shared);
    }
    assert!(!shared.path("shop/ledger.db").exists());
    // Copies: a file of one, an export of the other, which has no file.
    embedded.answers("backup copy.db");
    let report = audit_verify::verify_path(&embedded.path("copy.db"), Some(embedded.id));
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    assert!(shared.refused("backup copy.db", 2).contains("ledger export"));
}

/// Two processes want the same revision of the same orders: each is given to one of them.
fn race(shop: &Shop) {
    let answers = shop.submit(&orders());
    let paid = ids(&answers);
    let settle = |proof: &str| {
        let line = |id: &String| {
            format!(
                r#"{{"command":"order.settle","actor":"service:{proof}","order_id":"{id}","ledger_proof_id":"{proof}","expected_revision":2}}"#
            )
        };
        paid.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    let racing: Vec<_> = ["one", "two"]
        .map(|name| {
            let mut child = shop
                .command("submit -")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(settle(name).as_bytes()).unwrap();
            child
        })
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect();
    let mut won = 0;
    for output in &racing {
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let answer: Value = serde_json::from_str(line).unwrap();
            match (answer["outcome"].as_str(), answer["code"].as_str()) {
                (Some("accepted"), _) => won += 1,
                (Some("refused"), code) => assert_eq!(code, Some("REVISION_CONFLICT"), "{answer}"),
                _ => assert!(answer.get("line").is_none(), "{answer}"),
            }
        }
    }
    assert_eq!(won, 24, "{}", racing.iter().map(text).collect::<String>());
    shop.verify();
}

/// What came after an anchor is read by pages, and single rows beside them, while others append.
#[test]
fn what_came_after_an_anchor_is_judged_while_a_ledger_grows() {
    let shop = Shop::open(Some(database()));
    let auditor = shop.urls.as_ref().unwrap().1.clone();
    let paid = ids(&shop.submit(&orders()));
    let id = shop.id.to_hex();
    let (exit, said) =
        audit_verify_program(shop.dir.path(), &[&auditor, "--trust", &id, "--save-anchor", "kept", "--quiet"]);
    assert_eq!(exit, 0, "{said}");
    let anchors = audit_verify::Anchor::read(&shop.path("kept")).unwrap();
    let demands = Demands { anchors: &anchors, since_anchor: true, ..shop.demands() };
    let next = |command: &str, more: &str| -> Vec<String> {
        let line = |id| format!(r#"{{"command":"{command}","actor":"service:m","order_id":"{id}"{more}}}"#);
        paid.iter().map(line).collect()
    };
    shop.submit(&next("order.settle", r#","ledger_proof_id":"lp""#));

    let admin = Server::shared();
    let name = auditor.rsplit('/').next().unwrap();
    let heads = || admin.psql(name, "SELECT sum(size) FROM ledger.chain_heads");
    let before = heads();
    // Whoever begins now sees what was there; orders of before and new ones go on in the midst of it.
    let late = orders().into_iter().filter(|l| l.contains("order.create"));
    let late = late.map(|l| l.replace("\"k", "\"late-k").replace(r#""ref":"o"#, r#""ref":"late"#));
    let more: Vec<String> = next("license.issue", "").into_iter().chain(late).collect();
    std::fs::write(shop.path("more"), more.join("\n")).unwrap();
    let source = audit_verify::Postgres::open(&auditor).unwrap().in_pages_of(4);
    let oldest = format!("SELECT min(xact_start) FROM pg_stat_activity WHERE usename = 'reader_{name}'");
    let begun = admin.psql(name, &oldest);
    let writing = std::sync::Mutex::new(Some(shop.command("submit more")));
    let told = |_: u64, _: u64| {
        assert_ne!(admin.psql(name, &oldest), begun, "the first snapshot is held");
        if let Some(mut command) = writing.lock().unwrap().take() {
            assert!(command.output().unwrap().status.success());
        }
        true
    };
    let report = audit_verify::verify("t", &source, Demands { progress: Some(&told), ..demands });
    assert_eq!((report.exit(), report.reason()), (0, ""), "{}", report.to_text());
    assert!(report.part().is_some() && !source.is_copied(), "{}", report.to_text());
    let judged: u64 = report.chains().iter().map(|chain| chain.entries).sum();
    assert!(before != heads() && heads().trim() == judged.to_string(), "{before} {judged}");

    // An order that is older than the anchor, and was touched in the midst of it.
    for (change, exit) in [("+ 1", 1), ("- 1", 0)] {
        let first = "(SELECT chain, idx FROM ledger.orders ORDER BY chain, idx LIMIT 1)";
        admin
            .psql(name, &format!("UPDATE ledger.orders SET revision = revision {change} WHERE (chain, idx) = {first}"));
        let source = audit_verify::Postgres::open(&auditor).unwrap().in_pages_of(4);
        let report = audit_verify::verify("t", &source, demands);
        assert_eq!(report.exit(), exit, "{}", report.to_text());
    }
}

#[test]
fn of_two_processes_one_wins_each_revision_in_the_embedded_store() {
    race(&Shop::open(None));
}

#[test]
fn of_two_processes_one_wins_each_revision_in_a_database() {
    race(&Shop::open(Some(database())));
}

/// Rows of the old system in one database are adopted by a ledger in another, twice.
#[test]
fn a_legacy_table_is_adopted_by_a_ledger_in_a_database() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/legacy");
    let rows = std::fs::read_to_string(fixtures.join("legacy-chain-ed25519.jsonl")).unwrap();
    let rows: Vec<&str> = rows.lines().collect();
    let url = Server::shared().database();
    let name = url.rsplit('/').next().unwrap();
    Server::shared().psql(
        name,
        "CREATE TABLE audit_events (id text PRIMARY KEY, actor_id text, event_type text NOT NULL, payload json, \
         created_at timestamptz NOT NULL, hash text, prev_hash text, signature text NOT NULL, signer_kid text NOT NULL)",
    );
    let load = |rows: &[&str]| {
        let sql = format!(
            "INSERT INTO audit_events SELECT id, actor_id, event_type, payload, created_at, hash, prev_hash, signature, signer_kid \
             FROM json_populate_recordset(NULL::audit_events, $rows$[{}]$rows$)",
            rows.join(",")
        );
        Server::shared().psql(name, &sql)
    };
    load(&rows[..10]);
    let shop = Shop::open(Some(database()));
    let signers = fixtures.join("legacy-signers.json").display().to_string();
    let adopt = format!("import-legacy -d {url} -s {signers}");
    let (first, dry) = (shop.json(&adopt), shop.json(&format!("{adopt} --dry-run")));
    assert_eq!((&first["adopted"], &first["count"]), (&Value::from(true), &Value::from(10)), "{first}");
    assert_eq!((&dry["adopted"], &dry["index"]), (&Value::from(false), &first["index"]), "{dry}");
    load(&rows[10..]);
    assert_eq!(shop.json(&adopt)["count"], rows.len());
    let judge = || {
        let report = shop.verify();
        let signers = audit_verify::legacy::Signers::read(Path::new(&signers)).unwrap();
        let mut source = audit_verify::legacy::open_source(&url, "audit_events").unwrap();
        audit_verify::legacy::verify_adopted("t", source.as_mut(), Some(&signers), &[], report.adopted(), &|_, _| true)
    };
    let judged = judge();
    assert_eq!((judged.exit(), judged.adopted_rows()), (0, rows.len() as u64), "{}", judged.to_text());
    // The old chain does not cover the actor; what was adopted does.
    Server::shared()
        .psql(name, "UPDATE audit_events SET actor_id = 'nobody' WHERE id = (SELECT min(id) FROM audit_events)");
    let judged = judge();
    assert_eq!(judged.exit(), 1, "{}", judged.to_text());
    assert!(judged.to_text().contains("legacy_adoption_mismatch"), "{}", judged.to_text());
    assert!(shop.refused(&adopt, 1).contains("ADOPTED_ROWS_CHANGED"));
}

/// The verifier's program, which lies beside the ledger's: exit status and what it printed.
fn audit_verify_program(dir: &Path, arguments: &[&str]) -> (i32, String) {
    let program = Path::new(LEDGER).with_file_name("audit-verify");
    assert!(program.exists(), "build it: cargo build -p audit-verify");
    let output = Command::new(program).args(arguments).current_dir(dir).env_remove("DATABASE_URL").output().unwrap();
    (output.status.code().unwrap(), text(&output))
}

/// From a file, into a database, judged by the real program: ledger and old chain in one run.
#[test]
fn a_legacy_file_is_adopted_by_a_ledger_in_a_database() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/legacy");
    let signers = fixtures.join("legacy-signers.json").display().to_string();
    let rows = std::fs::read_to_string(fixtures.join("legacy-chain-ed25519.jsonl")).unwrap();
    let rows: Vec<&str> = rows.lines().collect();
    let broken = [&rows[..5], &rows[6..20]].concat();
    for (rows, faults) in [(&rows, 0), (&broken, 1)] {
        let urls = database();
        let reader = urls.1.clone();
        let shop = Shop::open(Some(urls));
        std::fs::write(shop.path("old.jsonl"), rows.join("\n") + "\n").unwrap();
        let run = |arguments: &[&str]| audit_verify_program(shop.dir.path(), arguments);
        let adopt = format!("import-legacy old.jsonl -s {signers}");
        let adopted = if faults == 0 {
            shop.json(&adopt)
        } else {
            assert!(shop.refused(&adopt, 1).contains("CHAIN_BROKEN"));
            let (exit, report) = run(&["old.jsonl", "-s", &signers, "--json"]);
            assert_eq!(exit, 1, "{report}");
            std::fs::write(shop.path("report.json"), report.lines().next().unwrap().to_owned() + "\n").unwrap();
            let adopted = shop.json(&format!("{adopt} --accept-findings report.json"));
            assert_eq!(adopted["findings"], faults, "{adopted}");
            adopted
        };
        assert_eq!(
            (&adopted["adopted"], &adopted["count"]),
            (&Value::from(true), &Value::from(rows.len())),
            "{adopted}"
        );
        let id = shop.id.to_hex();
        let (exit, said) = run(&[&reader, "old.jsonl", "--trust", &id, "-s", &signers]);
        assert_eq!(exit, faults, "{said}");
        assert!(said.contains("VERIFIED  ") && said.contains(&format!("adopted {} legacy rows", rows.len())), "{said}");
        assert_eq!(said.contains("legacy_link_broken"), faults > 0, "{said}");
        // A row that the old format does not cover, and the ledger does.
        let changed: Vec<String> = rows.iter().map(|row| row.replacen("user:", "nobody:", 1)).collect();
        std::fs::write(shop.path("changed.jsonl"), changed.join("\n") + "\n").unwrap();
        let (exit, said) = run(&[&reader, "changed.jsonl", "--trust", &id, "-s", &signers]);
        assert!(exit == 1 && said.contains("legacy_adoption_mismatch"), "{said}");
    }
}
