//! `ledger import-legacy`, as its users run it.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use audit_verify::legacy::{LegacyReport, Signers, open_source, verify_adopted};
use ledger_engine::hash::{Hash, sha256};
use serde_json::Value;

/// A directory with a ledger, and rows of the old system.
struct Shop {
    dir: tempfile::TempDir,
    id: Option<Hash>,
}

fn legacy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/legacy").join(name)
}

fn rows() -> Vec<String> {
    let text = std::fs::read_to_string(legacy("legacy-chain-ed25519.jsonl")).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl Shop {
    fn open() -> Shop {
        let dir = tempfile::tempdir().unwrap();
        let mut shop = Shop { dir, id: None };
        let init = Command::new(env!("CARGO_BIN_EXE_ledger"))
            .args(["--json", "init", "--dir", &shop.path("shop")])
            .output()
            .unwrap();
        let init: Value = serde_json::from_slice(&init.stdout).unwrap();
        shop.id = Hash::from_hex(init["ledger_id"].as_str().unwrap());
        shop
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, rows: &[String]) -> String {
        std::fs::write(self.path(name), rows.join("\n")).unwrap();
        self.path(name)
    }

    /// Exit status and answer.
    fn import(&self, more: &[&str]) -> (i32, Value) {
        let signers = legacy("legacy-signers.json").display().to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_ledger"))
            .args(["--json", "--dir", &self.path("shop"), "import-legacy", "-s", &signers])
            .args(more)
            .output()
            .unwrap();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
        (output.status.code().unwrap(), answer)
    }

    #[track_caller]
    fn assert_refused(&self, more: &[&str], exit: i32, code: &str) {
        let (found, answer) = self.import(more);
        assert_eq!((found, answer["error"]["code"].as_str()), (exit, Some(code)), "{answer}");
    }

    fn ledger(&self) -> audit_verify::Report {
        audit_verify::verify_path(Path::new(&self.path("shop")), self.id)
    }

    /// What `audit-verify LEDGER SOURCE -s FILE` says of the source.
    fn judge(&self, source: &str) -> LegacyReport {
        let ledger = self.ledger();
        assert_eq!(ledger.exit(), 0, "{}", ledger.to_text());
        let signers = Signers::read(&legacy("legacy-signers.json")).unwrap();
        let mut opened = open_source(source, "audit_events").unwrap();
        verify_adopted("test", opened.as_mut(), Some(&signers), &[], ledger.adopted(), &|_, _| true)
    }
}

#[test]
fn adopted_and_adopted_again() {
    let (shop, rows) = (Shop::open(), rows());
    let ten = shop.write("ten.jsonl", &rows[..10]);
    let (exit, answer) = shop.import(&[&ten, "--dry-run"]);
    assert_eq!((exit, &answer["adopted"], &answer["count"]), (0, &Value::from(false), &Value::from(10)), "{answer}");
    assert!(shop.ledger().adopted().is_empty());
    // After the genesis and the keys of licences, exports and delivery proofs.
    let (exit, first) = shop.import(&[&ten]);
    assert_eq!((exit, &first["adopted"], &first["index"]), (0, &Value::from(true), &Value::from(4)), "{first}");
    assert_eq!(first["root"], answer["root"]);
    let (exit, answer) = shop.import(&[&ten]);
    assert_eq!((exit, &answer["adopted"], &answer["index"]), (0, &Value::from(false), &Value::from(4)), "{answer}");

    let all = shop.write("all.jsonl", &rows);
    let (exit, second) = shop.import(&[&all]);
    assert_eq!((exit, &second["index"], &second["count"]), (0, &Value::from(5), &Value::from(24)), "{second}");
    let ledger = shop.ledger();
    let adopted = ledger.adopted();
    assert_eq!(adopted.len(), 2);
    let previous = adopted[1].adoption.previous.unwrap();
    assert_eq!((previous.index, Value::from(previous.root.to_hex())), (4, first["root"].clone()));
    assert_eq!((shop.judge(&all).exit(), shop.judge(&all).adopted_rows()), (0, 24));
    shop.assert_refused(&[&ten], 1, "ADOPTED_ROWS_CHANGED");

    // The old chain does not notice, the ledger does, and takes nothing more.
    let mut changed = rows;
    changed[3] = changed[3].replace("\"event_type\":\"order.", "\"event_type\":\"other.");
    let changed = shop.write("changed.jsonl", &changed);
    assert_eq!(shop.judge(&changed).counts.len(), 1, "{}", shop.judge(&changed).to_text());
    shop.assert_refused(&[&changed], 1, "ADOPTED_ROWS_CHANGED");
    assert_eq!(shop.ledger().adopted().len(), 2);
}

#[test]
fn a_broken_chain_needs_its_report_accepted() {
    let (shop, mut rows) = (Shop::open(), rows());
    rows.remove(5);
    let broken = shop.write("broken.jsonl", &rows[..20]);
    shop.assert_refused(&[&broken], 1, "CHAIN_BROKEN");
    shop.assert_refused(&[&shop.write("empty.jsonl", &[])], 2, "CHAIN_NOT_CHECKED");
    let report = shop.path("report.json");
    let write = |judged: &LegacyReport| std::fs::write(&report, judged.to_json().to_string() + "\n").unwrap();
    // Another chain's report, and one of rows that have changed since in a column that only the root covers.
    let mut others = rows[..20].to_vec();
    others[0] = others[0].replacen("user:", "nobody:", 1);
    for other in [shop.judge(&shop.write("longer.jsonl", &rows)), shop.judge(&shop.write("others.jsonl", &others))] {
        write(&other);
        shop.assert_refused(&[&broken, "--accept-findings", &report], 1, "FINDINGS_DIFFER");
    }
    write(&shop.judge(&broken));
    let (exit, answer) = shop.import(&[&broken, "--accept-findings", &report]);
    assert_eq!((exit, &answer["findings"]), (0, &Value::from(1)), "{answer}");
    let ledger = shop.ledger();
    let findings = ledger.adopted()[0].adoption.findings.clone().unwrap();
    assert_eq!(findings.report_sha256, sha256(&[&std::fs::read(&report).unwrap()]));
    assert_eq!(findings.counts, [("legacy_link_broken".to_owned(), 1)]);
    assert!(ledger.to_text().contains("adopted 20 legacy rows"), "{}", ledger.to_text());
    // The chain is still broken, and still the same.
    let judged = shop.judge(&broken);
    assert_eq!((judged.exit(), judged.adopted_rows(), judged.faults()), (1, 20, 1));
    // More rows came: their findings have to be accepted anew.
    let longer = shop.write("longer.jsonl", &rows);
    shop.assert_refused(&[&longer, "--accept-findings", &report], 1, "FINDINGS_DIFFER");
    write(&shop.judge(&longer));
    assert_eq!(shop.import(&[&longer, "--accept-findings", &report]).1["count"], 23);
    let whole = shop.write("whole.jsonl", &self::rows());
    write(&shop.judge(&whole));
    shop.assert_refused(&[&whole, "--accept-findings", &report], 1, "ADOPTED_ROWS_CHANGED");
}

#[test]
fn a_table_is_adopted() {
    let (shop, server) = (Shop::open(), test_servers::Server::start());
    let url = server.url("postgres");
    let mut client = postgres::Client::connect(&url, postgres::NoTls).unwrap();
    let rows = rows();
    let load = |client: &mut postgres::Client, rows: &[String]| {
        let text = format!("[{}]", rows.join(","));
        let sql = "INSERT INTO audit_events SELECT * FROM json_populate_recordset(NULL::audit_events, $1::text::json)";
        client.execute(sql, &[&text]).unwrap();
    };
    let table = "CREATE TABLE audit_events (id bigserial PRIMARY KEY, actor_id text, event_type text, payload jsonb,
        created_at timestamptz, hash text, prev_hash text, signature text, signer_kid text)";
    client.batch_execute(table).unwrap();
    load(&mut client, &rows[..20]);
    let (exit, answer) = shop.import(&["-d", &url]);
    assert_eq!((exit, &answer["count"]), (0, &Value::from(20)), "{answer}");
    load(&mut client, &rows[20..]);
    let (exit, answer) = shop.import(&[&url, "--table", "public.audit_events"]);
    assert_eq!((exit, &answer["count"]), (0, &Value::from(24)), "{answer}");
    // The file that the rows came from is the same to the ledger.
    let file = shop.write("all.jsonl", &rows);
    assert_eq!((shop.judge(&url).adopted_rows(), shop.judge(&file).adopted_rows()), (24, 24));
    client.batch_execute("UPDATE audit_events SET actor_id = 'mallory' WHERE id = 3").unwrap();
    assert_eq!(shop.judge(&url).exit(), 1);
    shop.assert_refused(&["-d", &url], 1, "ADOPTED_ROWS_CHANGED");
}
