//! `audit-verify` on less than a whole ledger, as its users run it: a proof file, one history, what came after an anchor.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fixtures").join(name)
}

fn run(dir: &Path, args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_audit-verify")).current_dir(dir).args(args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// Writes the file of a proof vector, and gives the ledger's id.
fn proof(dir: &Path, name: &str) -> String {
    let vector: Value = serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap();
    std::fs::write(dir.join("order.proof"), vector["file"].as_str().unwrap()).unwrap();
    vector["trust"].as_str().unwrap().to_owned()
}

#[test]
fn a_proof_file() {
    let dir = tempfile::tempdir().unwrap();
    let id = proof(dir.path(), "valid/proofs/order.json");
    let check = |args: &[&str], exit: i32, say: &str| {
        let (found, said) = run(dir.path(), args);
        assert_eq!((found, said.contains(say)), (exit, true), "{args:?}: {said}");
        said
    };
    check(&["proof", "order.proof", "--trust", &id], 0, "not covered: whether the event was allowed");
    check(&["order.proof", "--trust", &id, "--quiet"], 0, "VERIFIED  order.proof");
    check(&["order.proof"], 2, "IDENTITY NOT PROVEN");
    let json = check(&["--format", "proof", "order.proof", "--trust", &id, "--json"], 0, "audit-report/1");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["part"]["kind"], &json["exit"]), (&"proof".into(), &0.into()));
    check(&["order.proof", "--trust", &id, "--report", "page.html"], 0, "VERIFIED");
    let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(page.contains("Audit of one entry") && page.contains("<h2>Not covered</h2>"), "{page}");
    check(&["order.proof", "--trust", &id, "--save-anchor", "kept"], 2, "--save-anchor needs a whole ledger");
    check(&["order.proof", "--stream", &"0".repeat(32)], 2, "--stream is for ledgers");
    check(&["proof", "page.html", "--trust", &id], 2, "not a proof file");
    check(&["proof", "nothing", "--trust", &id], 2, "check the path");
    proof(dir.path(), "broken/proofs/body_rewritten.json");
    check(&["proof", "order.proof", "--trust", &id], 1, "body_hash_mismatch chain 0 entries/1");
}

#[test]
fn a_history_and_what_came_after_an_anchor() {
    let dir = tempfile::tempdir().unwrap();
    let path = fixture("valid/two_chains.json");
    let ledger = path.to_str().unwrap();
    let dump: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let order = dump["tables"]["orders"][0]["order_id"].as_str().unwrap();
    // What a file says of itself is no identity.
    let (exit, said) = run(dir.path(), &[ledger]);
    assert!(exit == 2 && said.contains("IDENTITY NOT PROVEN"), "{exit}: {said}");
    let trust = ["--trust", dump["trust"].as_str().unwrap()];
    let run = |dir: &Path, args: &[&str]| run(dir, &[args, &trust].concat());
    let (exit, said) = run(dir.path(), &[ledger, "--stream", order]);
    assert!(exit == 0 && said.contains("not covered: later revisions of these streams"), "{exit}: {said}");
    let (exit, said) = run(dir.path(), &[ledger, "--stream", "sku"]);
    assert!(exit == 2 && said.contains("no order's id"), "{exit}: {said}");

    // The first checkpoint of each chain.
    let mut notes = std::collections::BTreeMap::new();
    for row in dump["tables"]["checkpoints"].as_array().unwrap() {
        notes.entry(row["chain"].as_u64()).or_insert_with(|| row["note"].as_str().unwrap().to_owned());
    }
    std::fs::write(dir.path().join("kept"), notes.into_values().collect::<Vec<_>>().join("\n")).unwrap();
    let since = ["--anchor", "kept", "--since-anchor"];
    let (exit, said) = run(dir.path(), &[&[ledger][..], &since, &["--save-anchor", "next"]].concat());
    assert!(exit == 0 && said.contains("were not read again"), "{exit}: {said}");
    let (exit, said) = run(dir.path(), &[ledger, "--anchor", "next", "--require-anchor", "--since-anchor"]);
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = run(dir.path(), &[ledger, "--since-anchor"]);
    assert!(exit == 2 && said.contains("--anchor"), "{exit}: {said}");
}

/// Faults against what was kept, or is given, beside a source: a folder each, with the arguments and what must be found.
#[test]
fn what_lies_beside_a_source() {
    let mut judged = 0;
    for folder in std::fs::read_dir(fixture("broken/beside")).unwrap().map(|f| f.unwrap().path()) {
        let expect: Value = serde_json::from_slice(&std::fs::read(folder.join("expect.json")).unwrap()).unwrap();
        let texts = |name: &str| -> Vec<String> {
            expect[name].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let arguments = texts("arguments");
        let run = |more: &[&str]| {
            run(&folder, &[&arguments.iter().map(String::as_str).collect::<Vec<_>>()[..], more].concat())
        };
        let (exit, said) = run(&["--json"]);
        let report: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        let mut codes: Vec<&str> =
            report["findings"].as_array().unwrap().iter().map(|f| f["code"].as_str().unwrap()).collect();
        codes.sort_unstable();
        assert_eq!(
            (Some(i64::from(exit)), codes),
            (expect["exit"].as_i64(), texts("findings").iter().map(String::as_str).collect()),
            "{said}"
        );
        // Evidence is for people.
        let said = run(&[]).1;
        assert!(!said.contains("Some(") && !said.contains("None"), "{said}");
        judged += 1;
    }
    assert_eq!(judged, 5);
}

/// Rows that are far larger than any of the format's are judged in memory that does not grow with them.
#[test]
fn a_database_of_enormous_rows() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    let make = |bytes: u64, rows: u64| {
        let _ = std::fs::remove_file(&file);
        let db = rusqlite::Connection::open(&file).unwrap();
        db.execute_batch(include_str!("../../migrations/sqlite/0001_ledger.sql")).unwrap();
        db.execute_batch(&format!(
            "INSERT INTO entries WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {rows})
             SELECT 0, i, zeroblob(32), 'ledger', 1, zeroblob(32), zeroblob(16), 'ledger.created', 1, 0, zeroblob(32), zeroblob(32),
                 zeroblob(32), NULL, zeroblob({bytes}) FROM n"
        ))
        .unwrap();
    };
    let peak = "import resource, subprocess, sys\n\
                code = subprocess.run(sys.argv[1:]).returncode\n\
                print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10, 'exit', code)";
    let python = std::env::var("LEDGER_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    for (bytes, rows, exit, say) in [
        // Just beyond the longest body, in many rows; longer ones; one that is cut; and too long a value to be read at all.
        (70 << 10, 5000, 1, "entries/4999"),
        (8 << 20, 48, 1, "entries/47"),
        (20 << 20, 12, 1, "entries/11"),
        (40 << 20, 2, 2, "too big"),
    ] {
        make(bytes, rows);
        let output =
            Command::new(&python).args(["-c", peak, env!("CARGO_BIN_EXE_audit-verify")]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let (_, last) = said.rsplit_once("peak ").unwrap();
        let (mib, code) = last.trim().split_once(" exit ").unwrap();
        assert!(code == exit.to_string() && said.contains(say), "{said}");
        assert!(mib.parse::<u64>().unwrap() < 256, "{bytes} bytes: {last}");
    }
}

/// The page that auditors keep beside a report says of each code what the program says.
#[test]
fn the_page_of_findings_has_every_code() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("FINDINGS.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let said: Vec<String> = rows.map(str::to_owned).collect();
    let row = |code: &audit_verify::Code| {
        let (means, then) = code.meaning().split_once(": ").or_else(|| code.meaning().split_once("; ")).unwrap();
        format!("| `{}` | {means} | {then} |", code.as_str())
    };
    let expected: Vec<String> = audit_verify::Code::ALL.iter().map(row).collect();
    assert_eq!(said, expected, "verifier/FINDINGS.md, row by row:\n{}", expected.join("\n"));
}

/// An anchor is what the next run rests on: none is written by a run that has something to say against it.
#[test]
fn an_anchor_is_saved_last() {
    let dir = tempfile::tempdir().unwrap();
    let trust = |source: &Path| {
        let vector: Value = serde_json::from_slice(&std::fs::read(source).unwrap()).unwrap();
        vector["trust"].as_str().unwrap().to_owned()
    };
    let source = fixture("valid/one_chain.json");
    let (id, source) = (trust(&source), source.to_str().unwrap().to_owned());
    std::fs::write(dir.path().join("kept"), "an older one").unwrap();
    let kept = |args: &[&str]| {
        let (exit, said) = run(dir.path(), &[&[&*source, "--trust", &id, "--save-anchor", "kept"][..], args].concat());
        (exit, std::fs::read_to_string(dir.path().join("kept")).unwrap(), said)
    };
    for args in [&["--report", "nowhere/page.html"][..], &["--locks"]] {
        let (exit, text, said) = kept(args);
        assert_eq!((exit, &*text), (2, "an older one"), "{said}");
    }
    let (exit, text, said) = kept(&[]);
    assert!(exit == 0 && text.contains("\u{2014} "), "{said} {text}");
    // A file with the ledger's id that has no end.
    let (exit, said) = run(dir.path(), &[&source, "--trust", "/dev/zero"]);
    assert!(exit == 2 && said.contains("no ledger id in this file"), "{said}");
    let (exit, said) = run(dir.path(), &[&source, "--trust", &id, "--anchor", "/dev/null"]);
    assert!(exit == 2 && said.contains("a pipe, a device or a directory"), "{said}");
}

/// A dump is small, and what it stands for too.
#[test]
fn a_dump_of_very_many_rows() {
    let dir = tempfile::tempdir().unwrap();
    let rows = |row: &str, n: usize| {
        let rows = vec![row; n].join(",");
        format!(r#"{{"format":"ledger-dump/1","tables":{{"entries":[{rows}]}}}}"#)
    };
    for (text, says) in [
        (rows("0", 10), "a row of entries is no object"),
        (rows("{}", 70_000), "a dump of over 65536 rows"),
        (rows("{}", 2_000_000), "a dump of more than 4 MiB"),
    ] {
        std::fs::write(dir.path().join("many.json"), text).unwrap();
        let (exit, said) = run(dir.path(), &["many.json"]);
        assert!(exit == 2 && said.contains(says), "{said}");
    }
}
