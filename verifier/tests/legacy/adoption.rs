//! Rows compared with what a ledger adopted.

use std::path::Path;
use std::process::Command;

use audit_verify::legacy::{File, LegacyReport, Source, verify_adopted};
use ledger_engine::adoption::{Adopted, AdoptedRegistry, Adoption};
use ledger_engine::hash::sha256;
use serde_json::{Value, json};

use crate::chain::{chain, found, judge, lines, notes, registry, reseal, seal, shuffle, signers};

/// What a ledger would record of rows that were judged.
pub(crate) fn adopted(report: &LegacyReport) -> Adopted {
    let adoption = Adoption {
        count: report.rows,
        root: report.root.unwrap(),
        head_hash: report.last_hash.unwrap(),
        first: report.first.clone(),
        last: report.last.clone(),
        registry: AdoptedRegistry { sha256: sha256(&[registry().to_string().as_bytes()]), keys: Vec::new() },
        previous: None,
        findings: None,
    };
    Adopted { index: 9, recorded_at_us: 1, adoption }
}

pub(crate) fn compare_source(source: &mut dyn Source, with: &[Adopted]) -> LegacyReport {
    verify_adopted("test", source, Some(&signers()), &[], with, &|_, _| true)
}

fn compare(rows: &[Value], with: &[Adopted]) -> LegacyReport {
    compare_source(&mut File::from_bytes(lines(rows).into_bytes(), None).unwrap(), with)
}

/// `legacy_adoption_mismatch`, and nothing else if the legacy chain cannot know better.
#[track_caller]
fn assert_mismatch(rows: &[Value], with: &[Adopted], alone: bool) {
    let report = compare(rows, with);
    assert_eq!(report.exit(), 1, "{}", report.to_text());
    assert!(found(&report).contains(&"adoption_mismatch legacy.adopted/9".to_owned()), "{}", report.to_text());
    assert_eq!(judge(rows).exit() == 0, alone);
    assert_eq!(report.findings().len() == 1, alone || rows.is_empty());
}

#[test]
fn every_column_of_every_adopted_row_is_covered() {
    let rows = chain(40);
    let with = [adopted(&judge(&rows))];
    let report = compare(&rows, &with);
    assert_eq!((report.exit(), report.adopted_rows()), (0, 40), "{}", report.to_text());
    assert!(notes(&report).contains(&"legacy_adoption_as_of"));
    assert!(!notes(&report).contains(&"legacy_fields_not_covered"));
    let blind: [(&str, Value); 6] = [
        ("id", json!("x")),
        ("actor_id", json!("mallory")),
        ("actor_id", Value::Null),
        ("event_type", json!("order.gifted")),
        ("created_at", json!("2025-11-01T00:00:00.000001Z")),
        ("hash", Value::Null),
    ];
    for (member, value) in blind {
        for at in [0, 17, 39] {
            let mut rows = rows.clone();
            rows[at][member] = value.clone();
            assert_mismatch(&rows, &with, true);
        }
    }
    let seen: [(&str, Value); 4] = [
        ("payload", json!({ "step": 0 })),
        ("signature", json!("AAAA")),
        ("signer_kid", json!("other")),
        ("prev_hash", json!("00".repeat(32))),
    ];
    for (member, value) in seen {
        let mut rows = rows.clone();
        rows[5][member] = value;
        assert_mismatch(&rows, &with, false);
    }
    // The signature of another encoding is the same signature, but not the same column.
    let mut rows = rows;
    rows[5]["signature"] = json!(format!("{} ", rows[5]["signature"].as_str().unwrap()));
    assert_mismatch(&rows, &with, true);
}

#[test]
fn rows_that_come_and_go() {
    let rows = chain(60);
    let with = [adopted(&judge(&rows[..50]))];
    let report = compare(&rows, &with);
    assert_eq!((report.exit(), report.adopted_rows()), (0, 50), "{}", report.to_text());
    assert!(report.to_text().contains("10 rows after them are not covered"), "{}", report.to_text());
    let mut mixed = rows.clone();
    shuffle(&mut mixed, 3);
    assert_eq!(compare(&mixed, &with).exit(), 0, "the order of the source does not matter");
    assert_mismatch(&rows[..49], &with, true);
    assert_mismatch(&[], &with, false);
    for at in [0, 25] {
        let mut rows = rows.clone();
        rows.remove(at);
        assert_mismatch(&rows, &with, false);
        // Whoever holds the old key can make the rest follow.
        reseal(&mut rows, at);
        assert_mismatch(&rows, &with, true);
    }
    let mut inserted = rows.clone();
    inserted.insert(25, json!({ "id": 1000, "payload": {}, "created_at": "2025-11-01T00:00:00Z" }));
    reseal(&mut inserted, 25);
    assert_mismatch(&inserted, &with, true);
    let mut swapped = rows;
    swapped.swap(3, 4);
    reseal(&mut swapped, 3);
    assert_mismatch(&swapped, &with, true);
}

#[test]
fn adopted_again_and_again() {
    let rows = chain(30);
    let two = [adopted(&judge(&rows[..10])), Adopted { index: 12, ..adopted(&judge(&rows[..20])) }];
    assert_eq!(compare(&rows, &two).adopted_rows(), 20);
    let mut changed = rows.clone();
    changed[15]["actor_id"] = json!("mallory");
    assert_eq!(found(&compare(&changed, &two)), ["adoption_mismatch legacy.adopted/12"]);
    changed[5]["actor_id"] = json!("mallory");
    assert_eq!(compare(&changed, &two).findings().len(), 2);
    // An entry whose root is right and whose range is not.
    let mut lying = two;
    lying[1].adoption.last.id = Some("21".into());
    assert_eq!(found(&compare(&rows, &lying)), ["adoption_mismatch legacy.adopted/12"]);
}

/// A row is gone, that is known, and the old system still writes.
#[test]
fn a_gap_that_was_accepted_stays_what_it_was() {
    let mut rows = chain(30);
    rows.remove(10);
    let with = [adopted(&judge(&rows[..24]))];
    let mut mixed = rows.clone();
    shuffle(&mut mixed, 5);
    for rows in [&rows, &mixed] {
        let report = compare(rows, &with);
        assert_eq!(found(&report), ["link_broken 12"], "{}", report.to_text());
        assert_eq!(report.adopted_rows(), 24);
    }
    rows[3]["event_type"] = json!("x");
    assert_eq!(found(&compare(&rows, &with)), ["link_broken 12", "adoption_mismatch legacy.adopted/9"]);
    rows[3]["event_type"] = json!("order.paid");
    rows[20]["event_type"] = json!("x");
    assert_eq!(compare(&rows, &with).findings().len(), 2);
}

/// Numbers that one double stands for are different payloads, and forms of one number are not.
#[test]
fn numbers_are_covered_exactly() {
    let row = |number: &str| {
        let mut row = chain(1).remove(0);
        row["payload"] = json!({ "a": "=" });
        seal(&mut row, None);
        let text = row.to_string().replace("\"=\"", number);
        let source = File::from_bytes((text + "\n").into_bytes(), None);
        compare_source(&mut source.unwrap(), &[]).root.unwrap()
    };
    for same in [["1.0", "1"], ["1e21", "1000000000000000000000"], ["-0", "0"], ["0.10", "1e-1"], ["120", "12e1"]] {
        assert_eq!(row(same[0]), row(same[1]), "{same:?}");
    }
    for other in [
        ["9007199254740993", "9007199254740992"],
        ["0.1", "0.10000000000000000001"],
        ["1e-400", "0"],
        ["1e-400", "1e-401"],
        ["-1e-400", "1e-400"],
    ] {
        assert_ne!(row(other[0]), row(other[1]), "{other:?}");
    }
}

/// A ledger and the chain that it adopted, in one run of the program. The ledger is a vector, made by the engine's tests.
#[test]
fn both_in_one_run() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let file = |name: &str| fixtures.join(name).display().to_string();
    let (ledger, chain) = (file("valid/legacy_adopted.json"), file("legacy/legacy-chain-ed25519.jsonl"));
    let signers = file("legacy/legacy-signers.json");
    let dump: serde_json::Value = serde_json::from_slice(&std::fs::read(&ledger).unwrap()).unwrap();
    let trust = ["--trust", dump["trust"].as_str().unwrap()];
    let run = |arguments: &[&str]| {
        let trust = if arguments.contains(&ledger.as_str()) { &trust[..] } else { &[] };
        let output = Command::new(env!("CARGO_BIN_EXE_audit-verify")).args(arguments).args(trust).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    };
    let (exit, said) = run(&[&ledger]);
    assert_eq!(exit, 0, "{said}");
    assert!(said.contains("adopted 24 legacy rows") && said.contains("the old rows were not given"), "{said}");
    // In any order, the ledger comes first.
    let (exit, said) = run(&[&chain, &ledger, "-s", &signers]);
    assert_eq!(exit, 0, "{said}");
    for expected in ["adopted 10 rows", "adopted 24 rows", "the same in every column", "legacy_adoption_as_of"] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert!(said.starts_with("VERIFIED") && !said.contains("the old rows were not given"), "{said}");
    let directory = tempfile::tempdir().unwrap();
    let page = |name: &str| directory.path().join(name).display().to_string();
    let (exit, said) = run(&[&ledger, &chain, "-s", &signers, "--report", &page("november.html")]);
    assert_eq!(exit, 0, "{said}");
    for (name, expected) in
        [("november.html", "adopted 24 legacy rows"), ("november-legacy.html", "legacy_adoption_as_of")]
    {
        assert!(std::fs::read_to_string(page(name)).unwrap().contains(expected), "{name}");
    }
    let (_, said) = run(&[&ledger, &chain, "-s", &file("legacy/legacy-signers-map.json")]);
    assert!(said.contains("legacy_adoption_registry") && said.contains("all of its keys are the same"), "{said}");

    let changed = tempfile::NamedTempFile::new().unwrap();
    let text = std::fs::read_to_string(&chain).unwrap();
    std::fs::write(changed.path(), text.replacen("order.paid", "order.free", 1)).unwrap();
    let changed = changed.path().display().to_string();
    assert_eq!(run(&[&changed, "-s", &signers]).0, 0, "the old chain alone does not cover types");
    let (exit, said) = run(&[&ledger, &changed, "-s", &signers]);
    assert_eq!((exit, said.matches("legacy_adoption_mismatch legacy.adopted/").count()), (1, 2), "{said}");
    let (exit, said) = run(&[&ledger, &changed, "-s", &signers, "--json"]);
    let lines: Vec<Value> = said.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    assert_eq!((exit, lines.len()), (1, 2));
    assert_eq!(lines[0]["adoptions"][1]["payload"]["count"], 24);
    assert_eq!(lines[1]["finding_counts"]["legacy_adoption_mismatch"], 2);
    assert_eq!(lines[1]["adoptions"][0]["held"], false);
    assert_eq!(run(&[&ledger, &chain, &changed, "-s", &signers]).0, 2, "one legacy source at a time");
}
