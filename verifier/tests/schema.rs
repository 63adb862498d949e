//! Every report that `--json` prints is what its schema says, by the judgement of a validator that is not ours.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Reads a schema and lines of reports, and names what does not fit.
const VALIDATE: &str = "
import json, sys, jsonschema_rs
validators = {}
for path in sys.argv[2:]:
    schema = json.load(open(path))
    jsonschema_rs.meta.validate(schema)
    validators[schema['properties']['format']['const']] = jsonschema_rs.validator_for(schema)
for line in open(sys.argv[1]):
    report = json.loads(line)
    for error in validators[report['format']].iter_errors(report):
        print(report['source'], list(error.instance_path), error.message[:200])
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn python() -> String {
    std::env::var("LEDGER_PYTHON").unwrap_or_else(|_| root().join("target/python/bin/python").display().to_string())
}

fn items(folder: &str) -> Vec<PathBuf> {
    let items = std::fs::read_dir(root().join("fixtures").join(folder)).unwrap();
    let mut paths: Vec<PathBuf> = items.map(|item| item.unwrap().path()).collect();
    paths.sort();
    paths
}

/// What the program prints of a source.
fn reports(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_audit-verify")).args(args).arg("--json").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// All vectors: ledgers, exports, proof files, legacy chains; whole, broken, and what cannot be read.
fn all_reports(dir: &Path) -> String {
    let mut all = String::new();
    for path in items("valid").into_iter().chain(items("broken")).filter(|p| p.extension().is_some_and(|e| e == "json"))
    {
        all += &reports(&[text(&path)]);
    }
    for path in items("valid/exports").into_iter().chain(items("broken/exports")).filter(|p| p.is_dir()) {
        all += &reports(&[text(&path)]);
    }
    for path in items("valid/archives").into_iter().chain(items("broken/archives")).filter(|p| p.is_dir()) {
        all += &reports(&[text(&path)]);
        all += &reports(&[text(&path), "--batches", "2-"]);
    }
    for path in items("broken/legacy").into_iter().filter(|p| p.is_dir()) {
        let (events, signers) = (path.join("events.jsonl"), path.join("signers.json"));
        all += &reports(&[text(&events), "-s", text(&signers)]);
    }
    for path in items("valid/proofs") {
        let vector: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let file = dir.join("x.proof");
        std::fs::write(&file, vector["file"].as_str().unwrap()).unwrap();
        all += &reports(&["proof", text(&file), "--trust", vector["trust"].as_str().unwrap()]);
    }
    let two = root().join("fixtures/valid/two_chains.json");
    let dump: Value = serde_json::from_slice(&std::fs::read(&two).unwrap()).unwrap();
    let streams = dump.to_string();
    let at = streams.find("\"order-").unwrap() + 1;
    all += &reports(&[text(&two), "--stream", &streams[at..at + 38]]);
    all += &reports(&[text(&two), "--trust", dump["trust"].as_str().unwrap()]);
    all + &reports(&["/nonexistent"])
}

#[test]
fn reports_are_what_the_schemas_say() {
    let dir = tempfile::tempdir().unwrap();
    let (lines, all) = (dir.path().join("reports"), all_reports(dir.path()));
    std::fs::write(&lines, &all).unwrap();
    let parsed: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: BTreeSet<&str> = parsed.iter().map(|report| report["verdict"].as_str().unwrap()).collect();
    assert!(parsed.len() > 130 && said.len() >= 5, "{} reports, {said:?}", parsed.len());
    assert!(parsed.iter().any(|report| report["part"]["kind"] == "stream"), "a history alone is among them");
    let schemas = ["audit-report-1", "legacy-audit-report-1"].map(|n| format!("verifier/schema/{n}.schema.json"));
    let output = Command::new(python())
        .args(["-c", VALIDATE, text(&lines)])
        .args(&schemas)
        .current_dir(root())
        .output()
        .expect("the test command makes the Python environment: run .ci/run, or set LEDGER_PYTHON");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && output.stdout.is_empty(), "{}{errors}", String::from_utf8_lossy(&output.stdout));
}
