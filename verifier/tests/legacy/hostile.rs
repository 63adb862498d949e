//! Inputs made to crash, hang, exhaust or fool the verifier.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::chain::{
    assert_found, assert_verified, chain, found, hash, judge, judge_bytes, judge_file, lines, seal, signers,
};

fn gzip(bytes: impl Read) -> Vec<u8> {
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
    let mut out = Vec::new();
    encoder.read_to_end(&mut out).unwrap();
    out
}

#[test]
fn truncated_archives_are_never_verified() {
    let plain = lines(&chain(2000));
    // A compressor may begin with a frame that says something to itself.
    let zstd = zstd::encode_all(plain.as_bytes(), 3).unwrap();
    let framed = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &zstd].concat();
    for packed in [gzip(plain.as_bytes()), zstd, framed] {
        assert_verified(&judge_bytes(&packed, &[]), 2000);
        for length in [5, 20, packed.len() / 2, packed.len() - 9, packed.len() - 1] {
            let report = judge_bytes(&packed[..length], &[]);
            // A line cut in two is a finding of its own; without one the verdict is that it could not be checked.
            assert_ne!(report.exit(), 0, "{length}: {}", report.to_text());
            assert!(found(&report).iter().all(|f| f.starts_with("row_undecodable")), "{}", report.to_text());
        }
    }
}

#[test]
fn damaged_archives_are_never_verified() {
    let rows = chain(3000);
    let mut packed = gzip(lines(&rows).as_bytes());
    let middle = packed.len() / 2;
    packed[middle] ^= 0x55;
    assert_ne!(judge_bytes(&packed, &[]).exit(), 0);
    let text = json!({ "events": rows }).to_string();
    for cut in [10, 11, 12, 40, text.len() / 2, text.len() - 1] {
        assert_ne!(judge_bytes(&text.as_bytes()[..cut], &[]).exit(), 0, "{cut}");
    }
    assert_ne!(judge_bytes((text + "x").as_bytes(), &[]).exit(), 0);
}

/// A decompressor says once that a sum is wrong; also where the whole text is seen before the first row is read.
#[test]
fn no_byte_of_a_gzip_trailer_can_be_changed() {
    let rows = chain(24);
    let (first, second) = (gzip(lines(&rows[..12]).as_bytes()), gzip(lines(&rows[12..]).as_bytes()));
    assert_verified(&judge_bytes(&[&first[..], &second].concat(), &[]), 24);
    for at in 1..=8 {
        let mut damaged = first.clone();
        let place = damaged.len() - at;
        damaged[place] ^= 1;
        for packed in [damaged.clone(), [&damaged[..], &second].concat()] {
            let report = judge_bytes(&packed, &[]);
            assert_eq!(report.exit(), 2, "{at}: {}", report.to_text());
        }
    }
}

/// Where readers of JSON would take one thing or another, or none, no verdict rests on one of them.
#[test]
fn envelopes_that_readers_read_differently() {
    let rows = chain(24);
    let (first, second) = (json!(rows[..12]), json!(rows[12..]));
    for text in [
        format!(r#"{{"events":{first},"events":{second}}}"#),
        format!(r#"{{"events":{first},"\u0065vents":{second}}}"#),
        format!(r#"{{"\u0065vents":{first},"events":{second}}}"#),
        format!(r#"{{"count":24,"events":{first},"count":12}}"#),
        format!(r#"{{"count":"24","events":{first}}}"#),
        format!(r#"{{"events":{first},"count":24.0}}"#),
        format!(r#"{{"events":{first},"count":null}}"#),
        format!(r#"{{"events":{first} "count":12}}"#),
        format!(r#"{{"count":+12,"events":{first}}}"#),
        format!(r#"{{"note":[}},"events":{first}}}"#),
    ] {
        let report = judge_bytes(text.as_bytes(), &[]);
        assert_eq!(report.exit(), 2, "{}: {}", &text[..40], report.to_text());
    }
    // Members of other names may come as they like; also names that rows have.
    for text in [
        format!(r#"{{"id":"exp1","payload":{{"events":1}},"count":12,"events":{first}}}"#),
        format!(r#"{{"note":"\"events\":[","\u0065vents":{first},"note":"x"}}"#),
        format!("\u{feff}{{\"events\":{first}}}"),
        format!("\u{feff}{}", lines(&rows[..12])),
        // The events come late.
        format!(r#"{{"note":"{}","events":{first}}}"#, "x".repeat(100 << 10)),
        format!("{{\n \"notes\": [{} 1],\n \"events\": {first}}}", "1,\n".repeat(50 << 10)),
    ] {
        assert_verified(&judge_bytes(text.as_bytes(), &[]), 12);
    }
}

#[test]
fn no_event_of_a_directory_is_passed_over() {
    let rows = chain(3);
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, row: &serde_json::Value| std::fs::write(dir.path().join(name), row.to_string()).unwrap();
    put("1.json", &rows[0]);
    put("2.JSON", &rows[1]);
    put("3.txt", &rows[2]);
    let report = judge_file(dir.path(), Some(&signers()), &[]);
    assert_verified(&report, 2);
    assert!(report.to_text().contains("1 file of the directory is no .json file"), "{}", report.to_text());
    // Some editors put a mark before UTF-8.
    std::fs::write(dir.path().join("1.json"), format!("\u{feff}{}", rows[0])).unwrap();
    assert_verified(&judge_file(dir.path(), Some(&signers()), &[]), 2);
    std::os::unix::fs::symlink("3.txt", dir.path().join("3.json")).unwrap();
    let report = judge_file(dir.path(), Some(&signers()), &[]);
    assert!(report.exit() == 2 && report.reason.contains("is a link"), "{}", report.to_text());
}

#[test]
fn archives_that_expand_without_end() {
    for (bomb, exit) in [
        (gzip(std::io::repeat(b'\n').take(300 << 20)), 2),
        (zstd::encode_all(std::io::repeat(b'\n').take(300 << 20), 1).unwrap(), 2),
        // A line without end is a finding before the reader stops.
        (gzip(std::io::repeat(b' ').take(300 << 20)), 1),
    ] {
        let report = judge_bytes(&bomb, &[]);
        assert_eq!(report.exit(), exit);
        assert!(report.reason.contains("expand"), "{}", report.reason);
    }
}

/// A line of 2 GB, between honest ones, in a file with a hole.
#[test]
fn a_line_of_2_gb() {
    let rows = chain(2);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut out = file.reopen().unwrap();
    out.write_all(lines(&rows[..1]).as_bytes()).unwrap();
    let end = out.metadata().unwrap().len() + (2 << 30);
    out.set_len(end).unwrap();
    std::io::Seek::seek(&mut out, std::io::SeekFrom::End(0)).unwrap();
    out.write_all(format!("\n{}", lines(&rows[1..])).as_bytes()).unwrap();
    let report = judge_file(file.path(), Some(&signers()), &[]);
    assert_eq!(report.exit(), 1);
    assert_eq!((report.rows, report.chain_rows), (3, 2));
    assert_eq!(found(&report), ["row_too_large row/2"]);
}

#[test]
fn values_no_parser_likes() {
    let rows = chain(3);
    let event = |payload: &str| format!("{}{{\"id\":9,\"payload\":{payload}}}\n", lines(&rows));
    for (payload, code) in [
        ("1e999".to_owned(), "canonical_impossible 9"),
        ("9".repeat(1 << 20), "canonical_impossible 9"),
        ("[".repeat(100_000) + &"]".repeat(100_000), "canonical_impossible 9"),
        ("{\"a\":".repeat(5000) + "1" + &"}".repeat(5000), "canonical_impossible 9"),
        ("tru".to_owned(), "row_undecodable 9"),
        ("\"\u{1}\"".to_owned(), "row_undecodable 9"),
    ] {
        let report = judge_bytes(event(&payload).as_bytes(), &[]);
        assert!(found(&report).contains(&code.to_owned()), "{}", report.to_text());
    }
    for line in [
        &b"\0"[..],
        b"\xff\xfe",
        b"{",
        b"[]",
        b"nul",
        b"{\"id\":1,\"id\":2}",
        &[b'[', 0xc0],
        b"\xef\xbb\xbf{}",
        // What counts for nothing is JSON all the same.
        b"{\"id\":9,\"metadata\":{\"a\":[}}",
        b"{\"id\":9,\"q\":\"\\z\"}",
        b"{\"id\":9,\"q\":+1}",
    ] {
        let file = [lines(&rows).as_bytes(), line, b"\n"].concat();
        assert_found(&judge_bytes(&file, &[]), &["row_undecodable row/4"]);
    }
}

#[test]
fn numbers_and_keys_as_javascript_prints_them() {
    let mut rows = chain(2);
    let canonical = r#"{"":0,"a":1e+21,"b":9007199254740992,"é":0.1,"😀":-1.5,"ﬁ":[1,"\u001f\ud800"]}"#;
    let text = r#"{ "ﬁ":[1.0,"\u001F\uD800"], "\ud83d\ude00":-15e-1, "\u00e9":0.10, "b":9007199254740993, "a":1e21, "a":1E+21, "":-0 }"#;
    let digest = ledger_engine::hash::sha256(&[canonical.as_bytes()]);
    rows[0]["payload"] = json!("PAYLOAD");
    rows[0]["hash"] = json!(digest.to_hex());
    rows[0]["signature"] = json!(ledger_engine::hash::to_hex(&<[u8; 64]>::from(crate::chain::key().sign(&digest.0))));
    seal(&mut rows[1], Some(&digest.to_hex()));
    assert_verified(&judge_bytes(lines(&rows).replace("\"PAYLOAD\"", text).as_bytes(), &[]), 2);
}

#[test]
fn many_forks_copies_and_ids() {
    // More than are listed one by one, all claiming one predecessor, with one id.
    let mut rows = chain(2);
    let prev = hash(&rows[0]).to_owned();
    let count = 25_000;
    for n in 0..count {
        let payload = json!(n);
        let digest = ledger_engine::hash::sha256(&[
            payload.to_string().as_bytes(),
            &ledger_engine::hash::Hash::from_hex(&prev).unwrap().0,
        ]);
        rows.push(json!({ "id": 2, "payload": payload, "prev_hash": prev, "hash": digest.to_hex() }));
    }
    let report = judge(&rows);
    assert_eq!(report.exit(), 1);
    assert_eq!(report.counts[&audit_verify::Code::LegacyFork], count);
    assert_eq!(report.counts[&audit_verify::Code::LegacyIdDuplicate], count);
    assert_eq!(report.counts[&audit_verify::Code::LegacyRowUnsigned], count);
    // All of them are listed, row by row, though few are in memory.
    assert!(report.findings().len() < 3 * count as usize);
    let text = report.to_text();
    let listed = text.split_once("one by one:\n").unwrap().1.lines();
    let codes = listed.filter(|line| line.starts_with("  legacy_")).count();
    assert_eq!(codes as u64, report.faults());
    let json = report.to_json();
    let places: Vec<&str> = json["findings"].as_array().unwrap().iter().map(|f| f["place"].as_str().unwrap()).collect();
    assert_eq!(places.len() as u64, report.faults());
    let mut written = Vec::new();
    report.write_json(&mut written).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), json);
}

/// A signature made for a key of small order verifies for any message: the key must be refused, alone and in a batch.
#[test]
fn small_order_signatures() {
    let mut rows = chain(40);
    let identity = [&[1_u8][..], &[0; 63]].concat();
    for row in rows.iter_mut().step_by(3) {
        row["signature"] = json!(crate::chain::base64(&identity));
        row["signer_kid"] = json!("weak");
    }
    let mut registry = crate::chain::registry();
    let weak = [&[1_u8][..], &[0; 31]].concat();
    registry["signers"].as_array_mut().unwrap().push(json!({ "id": "weak", "key": crate::chain::base64(&weak) }));
    let signers = audit_verify::legacy::Signers::parse(registry.to_string().as_bytes()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines(&rows)).unwrap();
    let report = judge_file(file.path(), Some(&signers), &[]);
    assert_eq!(report.counts[&audit_verify::Code::LegacyKeyRefused], 14);
    assert_eq!(report.faults(), 14);
}

/// ZIP-215 accepts what other rules do not: a commitment with a component of small order. One rule must hold alone, in a
/// batch, and beside a bad signature.
#[test]
fn one_rule_for_single_and_batch() {
    use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
    use curve25519_dalek::scalar::Scalar;
    use sha2::{Digest, Sha512};
    let seed = Sha512::digest([7; 32]);
    let mut low = [0; 32];
    low.copy_from_slice(&seed[..32]);
    let secret = Scalar::from_bytes_mod_order(curve25519_dalek::scalar::clamp_integer(low));
    let public: [u8; 32] = ed25519_zebra::VerificationKey::from(&crate::chain::key()).into();
    let mut rows = chain(30);
    let digest = ledger_engine::hash::Hash::from_hex(hash(&rows[11])).unwrap();
    let nonce = Scalar::from(12_345_u64);
    let commitment = (ED25519_BASEPOINT_POINT * nonce + EIGHT_TORSION[1]).compress();
    let challenge = Sha512::new().chain_update(commitment.0).chain_update(public).chain_update(digest.0).finalize();
    let challenge = Scalar::from_bytes_mod_order_wide(&challenge.into());
    let response = nonce + challenge * secret;
    rows[11]["signature"] = json!(crate::chain::base64(&[commitment.0, response.to_bytes()].concat()));
    assert_verified(&judge(&rows), 30);
    rows[20]["signature"] = json!(crate::chain::base64(&[3; 64]));
    assert_found(&judge(&rows), &["signature_invalid 21"]);
    // The same response plus the group's order is not canonical, and refused by the same rule.
    let order = "edd3f55c1a631258d69cf7a2def9de14000000000000000000000000000000 10".replace(' ', "");
    let order = ledger_engine::hash::from_hex(&order).unwrap();
    let mut carry = 0_u16;
    let more: Vec<u8> = response
        .to_bytes()
        .iter()
        .zip(&order)
        .map(|(a, b)| {
            carry += u16::from(*a) + u16::from(*b);
            let byte = carry as u8;
            carry >>= 8;
            byte
        })
        .collect();
    rows[20] = chain(30)[20].clone();
    rows[11]["signature"] = json!(crate::chain::base64(&[commitment.0.to_vec(), more].concat()));
    assert_found(&judge(&rows), &["signature_invalid 12"]);
}

/// What a pipe gave is gone: whoever looks at it to see what it is must judge it too.
#[test]
fn a_pipe_by_its_path_is_judged_from_its_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/legacy").join(name);
    let chain = std::fs::read_to_string(fixture("legacy-chain-ed25519.jsonl")).unwrap();
    // A forged row that is as long as what is looked at.
    let forged = r#"{"id":"forged","event_type":"order.created","payload":{"amount":1},"prev_hash":"","signature":"AA==","signer_kid":"x"}"#;
    let forged = format!("{forged}{}\n{chain}", " ".repeat(4095 - forged.len()));
    let verify = env!("CARGO_BIN_EXE_audit-verify");
    let signers = fixture("legacy-signers.json");
    for (name, text, exit) in [("honest", &chain, 0), ("forged", &forged, 1)] {
        std::fs::write(dir.path().join(name), text).unwrap();
        let signers = signers.display();
        for script in [
            format!("{verify} {name} -s {signers}"),
            format!("cat {name} | {verify} - -s {signers}"),
            format!("cat {name} | {verify} /dev/stdin -s {signers}"),
            format!("{verify} /dev/stdin -s {signers} < {name}"),
            format!("mkfifo {name}.fifo; cat {name} > {name}.fifo & exec {verify} {name}.fifo -s {signers}"),
        ] {
            let output = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(exit), "{script}: {said}");
        }
    }
}
