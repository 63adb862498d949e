//! `fixtures/legacy`: chains that the old system's own language made. `fixtures/broken/legacy`: a folder for each defect,
//! with the events, the registry, sometimes an anchor or the payload of an adoption, and the expected findings. `LEDGER_BLESS=1` makes them again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use audit_verify::Code;
use audit_verify::legacy::{Anchor, File, Signers};
use ledger_engine::adoption::{Adopted, Adoption};
use serde_json::{Value, json};

use crate::adoption::{adopted, compare_source};
use crate::chain::{
    KID, assert_verified, base64, chain, found, hash, judge, judge_file, lines, registry, reseal, seal,
};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

#[test]
fn chains_of_the_old_system() {
    let folder = fixtures().join("legacy");
    let mut judged = 0;
    for (file, rows, head) in [
        ("legacy-chain-ed25519.jsonl", 24, "a7bb2c0be61b10eb423a0b8b50cc1a15bcf4fc4542384e11d8cce8b82eab64c6"),
        ("legacy-chain-rsa.jsonl", 12, "8dffa5df5b0ba92af38054e0d7b5448eeb0a5e368fff44b431f2a07a7793accf"),
        ("legacy-chain-mixed.jsonl", 12, "8dffa5df5b0ba92af38054e0d7b5448eeb0a5e368fff44b431f2a07a7793accf"),
    ] {
        for signers in ["legacy-signers.json", "legacy-signers-map.json"] {
            let signers = Signers::read(&folder.join(signers)).unwrap();
            let report = judge_file(&folder.join(file), Some(&signers), &[]);
            assert_verified(&report, rows);
            assert_eq!(report.head.unwrap().to_hex(), head);
            judged += 1;
        }
    }
    assert_eq!(judged, 6);
}

/// A change of any character that matters is a finding on the row where it was made.
#[test]
fn any_change_of_an_rsa_row_is_found() {
    let folder = fixtures().join("legacy");
    let signers = Signers::read(&folder.join("legacy-signers.json")).unwrap();
    let text = std::fs::read_to_string(folder.join("legacy-chain-rsa.jsonl")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for (from, to) in [("\"amount\":20002", "\"amount\":20003"), ("Zoë — 3", "Zoe — 3")] {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        std::fs::write(file.path(), text.replace(from, to)).unwrap();
        let report = judge_file(file.path(), Some(&signers), &[]);
        assert_eq!(found(&report), ["hash_mismatch 4", "signature_invalid 4"], "{from}");
    }
}

/// Name, files, expected findings.
struct Defect {
    name: &'static str,
    events: Vec<u8>,
    registry: Value,
    anchor: Option<Anchor>,
    adoption: Option<Adoption>,
    expected: Vec<&'static str>,
}

fn defect(name: &'static str, expected: &[&'static str], change: impl FnOnce(&mut Vec<Value>)) -> Defect {
    let mut rows = chain(8);
    change(&mut rows);
    let events = lines(&rows).into_bytes();
    Defect { name, events, registry: registry(), anchor: None, adoption: None, expected: expected.to_vec() }
}

fn defects() -> Vec<Defect> {
    let anchor = judge(&chain(8)).anchor();
    let forged = |rows: &[Value], id: u32| {
        let mut row = rows[3].clone();
        row["id"] = json!(id);
        row["payload"] = json!({ "forged": true });
        let prev = hash(&rows[2]).to_owned();
        seal(&mut row, Some(&prev));
        row
    };
    let rsa: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("legacy/legacy-signers-map.json")).unwrap()).unwrap();
    let mut too_large = lines(&chain(8)).into_bytes();
    too_large.resize(too_large.len() + audit_verify::legacy::ROW_BYTES_MAX + 1, b' ');
    vec![
        defect("payload_rewritten", &["hash_mismatch 4", "signature_invalid 4"], |rows| {
            rows[3]["payload"]["amount"]["value"] = json!(1);
        }),
        defect("stored_hash_overwritten", &["hash_mismatch 4"], |rows| rows[3]["hash"] = json!("0".repeat(64))),
        defect("prev_hash_overwritten", &["hash_mismatch 4", "signature_invalid 4", "link_broken 4"], |rows| {
            rows[3]["prev_hash"] = json!("0".repeat(64));
        }),
        defect("prev_hash_no_hash", &["row_undecodable 4"], |rows| rows[3]["prev_hash"] = json!("genesis")),
        defect("row_deleted", &["link_broken 5"], |rows| drop(rows.remove(3))),
        defect("first_rows_deleted", &["genesis_missing 4"], |rows| drop(rows.drain(..3))),
        Defect {
            anchor: anchor.clone(),
            ..defect("last_rows_deleted", &["anchor_beyond_tail anchor/8"], |rows| rows.truncate(5))
        },
        Defect {
            adoption: Some(adopted(&judge(&chain(8))).adoption),
            ..defect("actor_rewritten", &["adoption_mismatch legacy.adopted/9"], |rows| {
                rows[4]["actor_id"] = json!("mallory")
            })
        },
        Defect { anchor: anchor.clone(), ..defect("emptied", &["anchor_beyond_tail anchor/8"], Vec::clear) },
        Defect {
            anchor: anchor.clone(),
            ..defect("event_type_rewritten", &["anchor_mismatch anchor/8"], |rows| {
                rows[3]["event_type"] = json!("order.refunded");
            })
        },
        Defect {
            anchor,
            ..defect("rewritten_with_the_key", &["anchor_mismatch anchor/8"], |rows| {
                rows[3]["payload"] = json!({});
                reseal(rows, 3);
            })
        },
        defect("fork", &["fork 77"], |rows| rows.push(forged(rows, 77))),
        defect("second_genesis", &["fork 78"], |rows| {
            let mut row = forged(rows, 78);
            seal(&mut row, None);
            rows.push(row);
        }),
        defect("row_copied", &["row_duplicate 3"], |rows| rows.push(rows[2].clone())),
        defect("id_repeated", &["id_duplicate 2"], |rows| rows[5]["id"] = json!(2)),
        defect(
            "ring",
            &[
                "hash_mismatch 5",
                "signature_invalid 5",
                "cycle 5",
                "hash_mismatch 6",
                "signature_invalid 6",
                "link_broken 7",
            ],
            |rows| {
                for (at, name, prev) in [(4, "a", "b"), (5, "b", "a")] {
                    rows[at]["hash"] = json!(name.repeat(64));
                    rows[at]["prev_hash"] = json!(prev.repeat(64));
                }
            },
        ),
        defect("unsigned", &["row_unsigned 4"], |rows| rows[3]["signature"] = Value::Null),
        defect("signature_of_another_row", &["signature_invalid 4"], |rows| {
            rows[3]["signature"] = rows[4]["signature"].clone();
        }),
        defect("kid_unknown", &["kid_unknown 4"], |rows| rows[3]["signer_kid"] = json!("nobody")),
        Defect {
            registry: json!([registry()["signers"][0], { "id": "rsa", "key": rsa["legacy-rsa-v1"]["key"] }]),
            ..defect("algorithm_mismatch", &["algorithm_mismatch 4"], |rows| rows[3]["signer_kid"] = json!("rsa"))
        },
        Defect {
            registry: json!({ KID: registry()["signers"][0]["public_key"], "weak": base64(&[0; 32]) }),
            ..defect("key_of_small_order", &["key_refused 4"], |rows| rows[3]["signer_kid"] = json!("weak"))
        },
        defect("number_too_large", &["canonical_impossible 4", "link_broken 5"], |rows| {
            rows[3]["payload"] = json!("HUGE");
            rows[3]["hash"] = Value::Null;
        }),
        defect("member_given_twice", &["row_undecodable row/4", "link_broken 5"], |rows| {
            rows[3]["prevHash"] = json!("")
        }),
        Defect {
            events: json!({ "count": 9, "events": chain(8) }).to_string().into_bytes(),
            ..defect("count_rewritten", &["count_mismatch export"], |_| {})
        },
        Defect { events: too_large, ..defect("row_too_large", &["row_too_large row/9"], |_| {}) },
    ]
}

#[test]
fn broken_chains_walked_by_folder() {
    let folder = fixtures().join("broken/legacy");
    let defects = defects();
    let bless = std::env::var_os("LEDGER_BLESS").is_some();
    for d in &defects {
        let text = String::from_utf8(d.events.clone()).unwrap().replace("\"HUGE\"", "1e400");
        // Spaces by the million are kept packed.
        let packed = text.len() > 1 << 20;
        let file = if packed { "events.jsonl.gz" } else { "events.jsonl" };
        let path = folder.join(d.name);
        if bless {
            std::fs::create_dir_all(&path).unwrap();
            let events = if packed { gzip(text.as_bytes()) } else { text.into_bytes() };
            std::fs::write(path.join(file), events).unwrap();
            std::fs::write(path.join("signers.json"), format!("{:#}\n", d.registry)).unwrap();
            std::fs::write(path.join("expect.json"), format!("{:#}\n", json!({ "exit": 1, "findings": d.expected })))
                .unwrap();
            if let Some(anchor) = &d.anchor {
                anchor.save(&path.join("anchor.json")).unwrap();
            }
            if let Some(adoption) = &d.adoption {
                std::fs::write(path.join("adoption.json"), adoption.to_payload().to_canonical()).unwrap();
            }
        } else if !packed {
            assert_eq!(std::fs::read_to_string(path.join(file)).unwrap(), text, "{}", d.name);
        }
    }
    let mut names: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    assert_eq!(names.len(), defects.len(), "a folder that this test does not make");
    let mut covered = BTreeSet::new();
    for path in &names {
        let expected: Value = serde_json::from_slice(&std::fs::read(path.join("expect.json")).unwrap()).unwrap();
        let signers = Signers::read(&path.join("signers.json")).unwrap();
        let anchors = if path.join("anchor.json").exists() {
            Anchor::read(&path.join("anchor.json")).unwrap()
        } else {
            Vec::new()
        };
        let events =
            ["events.jsonl", "events.jsonl.gz"].map(|f| path.join(f)).into_iter().find(|f| f.exists()).unwrap();
        let report = match std::fs::read(path.join("adoption.json")) {
            Ok(payload) => {
                let adoption =
                    Adoption::read(ledger_engine::json::parse(&payload).unwrap().as_object().unwrap()).unwrap();
                let with = Adopted { index: 9, recorded_at_us: 1, adoption };
                compare_source(&mut File::open(&events, None).unwrap(), &[with])
            }
            Err(_) => judge_file(&events, Some(&signers), &anchors),
        };
        assert_eq!(
            json!({ "exit": report.exit(), "findings": found(&report) }),
            expected,
            "{}\n{}",
            path.display(),
            report.to_text()
        );
        covered.extend(report.counts.keys().copied());
    }
    let notes = [
        Code::LegacyFieldsNotCovered,
        Code::LegacyTailNotCovered,
        Code::LegacyRangeNotCovered,
        Code::LegacySignaturesNotCovered,
        Code::LegacyOutsideWindow,
        Code::LegacyAdoptionAsOf,
        Code::LegacyAdoptionRegistry,
    ];
    for code in Code::ALL.iter().filter(|c| c.as_str().starts_with("legacy_") && !notes.contains(c)) {
        assert!(covered.contains(code), "no folder has {}", code.as_str());
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut out, bytes).unwrap();
    out.finish().unwrap()
}
