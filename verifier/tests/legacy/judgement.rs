//! Each line of the table of what the old tool got wrong, and the judgement of links, keys and anchors.

use audit_verify::legacy::{Anchor, Signers};
use serde_json::{Value, json};

use crate::chain::{
    KID, assert_found, assert_verified, base64, chain, found, hash, judge, judge_bytes, judge_file, key, lines, notes,
    registry, reseal, seal, shuffle, signers,
};

fn anchor(rows: &[Value]) -> Anchor {
    judge(rows).anchor().unwrap()
}

fn judge_with(rows: &[Value], registry: &Value) -> audit_verify::legacy::LegacyReport {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines(rows)).unwrap();
    judge_file(file.path(), Some(&Signers::parse(registry.to_string().as_bytes()).unwrap()), &[])
}

#[test]
fn type_actor_or_time_rewritten() {
    let honest = chain(9);
    for (member, value) in [("event_type", "order.refunded"), ("actor_id", "x"), ("created_at", "2020-01-01T00:00:00Z")]
    {
        let mut rows = honest.clone();
        rows[4][member] = json!(value);
        let report = judge(&rows);
        assert_verified(&report, 9);
        assert!(notes(&report).contains(&"legacy_fields_not_covered"));
        assert_found(&judge_bytes(lines(&rows).as_bytes(), &[anchor(&honest)]), &["anchor_mismatch anchor/9"]);
    }
}

#[test]
fn first_rows_deleted() {
    let report = judge(&chain(9)[3..]);
    assert_found(&report, &["genesis_missing 4"]);
    assert!(report.findings()[0].evidence.contains(hash(&chain(9)[2])));
}

#[test]
fn last_rows_deleted() {
    let rows = chain(9);
    let report = judge(&rows[..6]);
    assert_verified(&report, 6);
    assert!(notes(&report).contains(&"legacy_tail_not_covered"));
    let report = judge_bytes(lines(&rows[..6]).as_bytes(), &[anchor(&rows)]);
    assert_found(&report, &["anchor_beyond_tail anchor/9"]);
}

#[test]
fn table_emptied() {
    let report = judge(&[]);
    assert_eq!((report.exit(), report.findings().len()), (2, 0));
    assert_found(&judge_bytes(b"", &[anchor(&chain(3))]), &["anchor_beyond_tail anchor/3"]);
}

#[test]
fn stored_hash_overwritten() {
    let mut rows = chain(9);
    rows[4]["hash"] = json!("0".repeat(64));
    assert_found(&judge(&rows), &["hash_mismatch 5"]);
    rows[4]["hash"] = json!("not a hash");
    assert_found(&judge(&rows), &["hash_mismatch 5"]);
}

#[test]
fn equal_timestamps_and_any_order() {
    for count in [1, 2, 3, 50, 4000] {
        let honest = chain(count);
        let expected = judge(&honest);
        assert_verified(&expected, count as u64);
        for seed in 0..3 {
            let mut rows = honest.clone();
            shuffle(&mut rows, seed);
            let report = judge(&rows);
            assert_verified(&report, count as u64);
            assert_eq!((report.head, report.rows_digest), (expected.head, expected.rows_digest));
        }
        let reversed: Vec<Value> = honest.into_iter().rev().collect();
        assert_verified(&judge(&reversed), count as u64);
    }
}

#[test]
fn several_faults_in_chain_order_for_any_order_and_thread_count() {
    let mut rows = chain(3000);
    rows[2500]["payload"]["step"] = json!(0);
    rows[1500]["hash"] = json!("f".repeat(64));
    rows[700]["signature"] = json!(base64(&[1; 64]));
    rows[10]["signature"] = Value::Null;
    rows.remove(2000);
    let expected = [
        "row_unsigned 11",
        "signature_invalid 701",
        "hash_mismatch 1501",
        "link_broken 2002",
        "hash_mismatch 2501",
        "signature_invalid 2501",
    ];
    let text = judge(&rows).to_text();
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let report = pool.install(|| judge(&rows));
        assert_found(&report, &expected);
        assert_eq!(report.to_text(), text);
    }
    shuffle(&mut rows, 5);
    // Rows of one component keep their order; the component after the gap comes after the one of the genesis.
    assert_found(&judge(&rows), &expected);
}

#[test]
fn two_rows_claiming_one_predecessor() {
    let mut rows = chain(6);
    let mut other = rows[3].clone();
    other["id"] = json!(77);
    other["payload"] = json!({ "forged": true });
    let prev = hash(&rows[2]).to_owned();
    seal(&mut other, Some(&prev));
    for at in [0, 3, 4, 6] {
        let mut with = rows.clone();
        with.insert(at, other.clone());
        let report = judge(&with);
        assert_eq!(report.findings().len(), 1);
        let (place, evidence) = (&report.findings()[0].place, &report.findings()[0].evidence);
        let both = format!("{place} {evidence}");
        assert!(both.contains("audit_events/77") && both.contains("audit_events/4"), "{both}");
        assert!(evidence.contains("audit_events/3"), "{evidence}");
        assert_eq!(report.findings()[0].code.as_str(), "legacy_fork");
        assert_eq!(report.chain_rows, 6, "the longest branch is the chain");
    }
    // Two beginnings are a fork too.
    let mut second = rows[0].clone();
    second["id"] = json!(78);
    second["payload"] = json!(1);
    seal(&mut second, None);
    rows.push(second);
    assert_found(&judge(&rows), &["fork 78"]);
}

#[test]
fn old_kid_kept_with_its_window() {
    let mut rows = chain(9);
    let new = ed25519_zebra::SigningKey::from([8; 32]);
    for row in &mut rows[5..] {
        let digest = ledger_engine::hash::Hash::from_hex(hash(row)).unwrap();
        row["signature"] = json!(base64(&<[u8; 64]>::from(new.sign(&digest.0))));
        row["signer_kid"] = json!("audit-2026");
    }
    let public = |key| base64(ed25519_zebra::VerificationKey::from(&key).as_ref());
    let registry = |revoked: &str| {
        json!([
            { "id": KID, "key": public(key()), "revokedAt": revoked },
            { "id": "audit-2026", "key": public(new), "validFrom": "2025-11-01T00:00:00Z" },
        ])
    };
    assert_verified(&judge_with(&rows, &registry("2025-11-02T00:00:00Z")), 9);
    let report = judge_with(&rows, &registry("2025-11-01T00:00:00Z"));
    assert_verified(&report, 9);
    let advisory = report.notes.iter().find(|n| n.code.as_str() == "legacy_outside_window").unwrap();
    assert_eq!(advisory.evidence, "2 rows, the first audit_events/4");
}

#[test]
fn without_a_registry_identity_is_not_proven() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines(&chain(3))).unwrap();
    let report = judge_file(file.path(), None, &[]);
    assert_eq!(report.exit(), 2);
    assert!(report.to_text().contains("IDENTITY NOT PROVEN"));
    assert!(report.anchor().is_none());
}

#[test]
fn without_stored_hashes() {
    let mut rows = chain(9);
    rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("hash")));
    assert_verified(&judge(&rows), 9);
    rows[4]["payload"] = json!(null);
    assert_found(&judge(&rows), &["signature_invalid 5", "link_broken 6"]);
    shuffle(&mut rows, 1);
    assert_found(&judge(&rows), &["signature_invalid 5", "link_broken 6"]);
}

#[test]
fn links_changed() {
    let mut rows = chain(6);
    rows[3]["prev_hash"] = json!("1".repeat(64));
    assert_found(&judge(&rows), &["hash_mismatch 4", "signature_invalid 4", "link_broken 4"]);
    let mut rows = chain(6);
    rows[3]["prev_hash"] = json!("XYZ");
    let report = judge(&rows);
    assert_eq!(found(&report), ["row_undecodable 4"]);
}

#[test]
fn copies_and_repeated_ids() {
    let mut rows = chain(6);
    rows.push(rows[2].clone());
    assert_found(&judge(&rows), &["row_duplicate 3"]);
    let mut rows = chain(6);
    rows[4]["id"] = json!(2);
    let report = judge(&rows);
    assert_found(&report, &["id_duplicate 2"]);
    assert!(report.findings()[0].evidence.contains("row 2"));
}

/// A chain after itself is as many copies as it has rows, wherever they stand.
#[test]
fn a_copy_of_everything() {
    let rows = chain(4);
    let twice = [rows.clone(), rows].concat();
    let expected = ["row_duplicate 1", "row_duplicate 2", "row_duplicate 3", "row_duplicate 4"];
    for seed in 0..4 {
        let mut rows = twice.clone();
        if seed > 0 {
            shuffle(&mut rows, seed);
        }
        let mut found = found(&judge(&rows));
        found.sort();
        assert_eq!(found, expected);
    }
}

#[test]
fn rings() {
    // Stored hashes overwritten so that the rows lead to each other.
    let mut rows = chain(4);
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    for (at, (name, prev)) in [(1, (&a, &b)), (2, (&b, &a)), (3, (&"c".repeat(64), &"c".repeat(64)))] {
        rows[at]["hash"] = json!(name);
        rows[at]["prev_hash"] = json!(prev);
    }
    let report = judge(&rows);
    assert_eq!(report.exit(), 1);
    assert_eq!(report.counts[&audit_verify::Code::LegacyCycle], 2, "{}", report.to_text());
    assert_eq!(report.chain_rows, 1);
}

#[test]
fn signers_that_do_not_fit() {
    let rows = chain(2);
    let other = base64(ed25519_zebra::VerificationKey::from(&ed25519_zebra::SigningKey::from([9; 32])).as_ref());
    let rsa = serde_json::from_str::<Value>(include_str!("../../../fixtures/legacy/legacy-signers-map.json")).unwrap();
    let public = registry()["signers"][0]["public_key"].clone();
    for (registry, code) in [
        (json!({ "another": public }), "kid_unknown"),
        (json!({ KID: other }), "signature_invalid"),
        (json!({ KID: rsa["legacy-rsa-v1"] }), "algorithm_mismatch"),
        (json!([{ "id": KID, "key": public, "alg": "RSA-SHA256" }]), "algorithm_mismatch"),
        (json!({ KID: base64(&[0; 32]) }), "key_refused"),
    ] {
        assert_found(&judge_with(&rows, &registry), &[format!("{code} 1").as_str(), format!("{code} 2").as_str()]);
    }
    let mut rows = chain(2);
    rows[1]["signer_kid"] = Value::Null;
    assert_found(&judge(&rows), &["kid_unknown 2"]);
}

#[test]
fn signature_texts() {
    let rows = chain(3);
    let raw =
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, rows[1]["signature"].as_str().unwrap())
            .unwrap();
    let hex = ledger_engine::hash::to_hex(&raw);
    let standard = base64(&raw);
    let url = standard.replace('+', "-").replace('/', "_");
    for good in [
        hex.to_uppercase(),
        hex,
        url.clone(),
        url.trim_end_matches('=').to_owned(),
        format!(" {}\n{} ", &standard[..20], &standard[20..]),
    ] {
        let mut with = rows.clone();
        with[1]["signature"] = json!(good);
        assert_verified(&judge(&with), 3);
    }
    for (bad, code) in [("?", "signature_invalid 2"), ("AAAA", "signature_invalid 2"), ("  ", "row_unsigned 2")] {
        let mut with = rows.clone();
        with[1]["signature"] = json!(bad);
        assert_found(&judge(&with), &[code]);
    }
}

#[test]
fn anchors() {
    let rows = chain(12);
    let old = anchor(&rows[..5]);
    let report = judge_bytes(lines(&rows).as_bytes(), &[anchor(&rows), old.clone()]);
    assert_verified(&report, 12);
    assert_eq!(report.anchors, 2);
    assert!(!notes(&report).contains(&"legacy_tail_not_covered"));
    // Everything rewritten with the right key is still not what was saved.
    let mut forged = rows.clone();
    forged[2]["payload"] = json!("other");
    reseal(&mut forged, 2);
    assert_verified(&judge(&forged), 12);
    assert_found(&judge_bytes(lines(&forged).as_bytes(), std::slice::from_ref(&old)), &["anchor_mismatch anchor/5"]);
    let mut shuffled = rows.clone();
    shuffle(&mut shuffled, 3);
    assert_verified(&judge_bytes(lines(&shuffled).as_bytes(), &[old]), 12);
}

#[test]
fn saved_anchors_are_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (anchor(&chain(3)), anchor(&chain(5)));
    a.save(&directory.path().join("a.json")).unwrap();
    b.save(&directory.path().join("b.json")).unwrap();
    assert_eq!(Anchor::read(directory.path()).unwrap(), [a.clone(), b]);
    assert_eq!(Anchor::read(&directory.path().join("a.json")).unwrap(), [a]);
    for bad in ["", "{}", "{\"format\":\"legacy-head/1\",\"rows\":0}"] {
        std::fs::write(directory.path().join("c.json"), bad).unwrap();
        assert!(Anchor::read(directory.path()).is_err());
    }
}

#[test]
fn every_container_gives_the_same_report() {
    let rows = chain(300);
    let expected = judge(&rows);
    let plain = lines(&rows);
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut out, bytes).unwrap();
        out.finish().unwrap()
    };
    let (first, second) = plain.split_at(plain.len() / 2);
    let envelope = json!({ "exported_at": "2026-01-01T00:00:00Z", "count": 300, "events": rows });
    let camel = plain.replace("prev_hash", "prevHash").replace("signer_kid", "signerId").replace("created_at", "ts");
    let files = [
        plain.clone().into_bytes(),
        gzip(plain.as_bytes()),
        [gzip(first.as_bytes()), gzip(second.as_bytes())].concat(),
        zstd::encode_all(plain.as_bytes(), 1).unwrap(),
        envelope.to_string().into_bytes(),
        serde_json::to_vec_pretty(&envelope).unwrap(),
        zstd::encode_all(envelope.to_string().as_bytes(), 1).unwrap(),
        serde_json::to_vec(&rows).unwrap(),
        camel.into_bytes(),
        plain.replace('\n', "\r\n\n").into_bytes(),
    ];
    for file in files {
        let report = judge_bytes(&file, &[]);
        assert_verified(&report, 300);
        assert_eq!((report.head, report.rows_digest), (expected.head, expected.rows_digest));
    }
    let directory = tempfile::tempdir().unwrap();
    for (n, row) in rows.iter().enumerate() {
        let day = directory.path().join(format!("2025/11/{:02}", n % 3 + 1));
        std::fs::create_dir_all(&day).unwrap();
        std::fs::write(day.join(format!("{n}.json")), serde_json::to_vec_pretty(row).unwrap()).unwrap();
    }
    std::fs::write(directory.path().join("README"), "x").unwrap();
    let report = judge_file(directory.path(), Some(&signers()), &[]);
    assert_verified(&report, 300);
    assert_eq!(report.rows_digest, expected.rows_digest);
    assert!(report.to_text().contains("1 file of the directory"));
}

#[test]
fn an_export_that_miscounts_itself() {
    let rows = chain(3);
    let envelope = |count: u64| json!({ "count": count, "events": rows }).to_string();
    assert_verified(&judge_bytes(envelope(3).as_bytes(), &[]), 3);
    assert_found(&judge_bytes(envelope(4).as_bytes(), &[]), &["count_mismatch export"]);
}

/// Without the key nothing but a beginning of the chain is verified, whatever is deleted, copied, moved or changed.
#[test]
fn only_beginnings_of_the_chain_are_verified() {
    let honest = chain(12);
    let mut seed = 20_251_117_u64;
    let mut below = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let (mut verified, mut broken) = (0, 0);
    for round in 0..600 {
        let mut rows = honest.clone();
        rows.truncate(1 + below(12));
        for _ in 0..below(3) {
            let at = below(rows.len());
            match below(6) {
                0 if rows.len() > 1 => drop(rows.remove(at)),
                1 => rows.push(honest[below(12)].clone()),
                2 => rows[at]["payload"] = honest[below(12)]["payload"].clone(),
                3 => rows[at]["prev_hash"] = honest[below(12)]["prev_hash"].clone(),
                4 => rows[at]["hash"] = honest[below(12)]["hash"].clone(),
                _ => rows[at]["signature"] = honest[below(12)]["signature"].clone(),
            }
        }
        shuffle(&mut rows, round);
        let mut ids: Vec<usize> = rows.iter().map(|r| r["id"].as_u64().unwrap() as usize).collect();
        ids.sort_unstable();
        let unchanged = rows.iter().all(|r| honest.contains(r)) && ids.iter().copied().eq(1..=rows.len());
        let report = judge(&rows);
        assert_eq!(report.exit(), u8::from(!unchanged), "round {round}: {ids:?}\n{}", report.to_text());
        *(if unchanged { &mut verified } else { &mut broken }) += 1;
    }
    assert!(verified > 100 && broken > 100, "{verified} {broken}");
}
