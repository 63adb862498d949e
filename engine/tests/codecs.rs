//! Properties of every codec and proof, and hostile bytes for everything that parses them. Seeds of failures are printed by proptest
//! and kept beside this file; `PROPTEST_CASES=100000` makes a campaign of it.
#![allow(missing_docs)]

use ledger_engine::body::Body;
use ledger_engine::domain::command::Command;
use ledger_engine::hash::{Hash, from_hex, to_hex};
use ledger_engine::header::Header;
use ledger_engine::json::{self, INTEGER_MAX, Object, Value};
use ledger_engine::merkle::{self, CompactRange, verify_consistency, verify_inclusion};
use ledger_engine::note::{Checkpoint, Note, NoteKey};
use ledger_engine::stream::Stream;
use proptest::prelude::*;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-INTEGER_MAX..=INTEGER_MAX).prop_map(Value::Int),
        "[^\0]{0,12}".prop_map(|s| Value::from(s.as_str())),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::vec(("[^\0]{0,6}", inner), 0..6).prop_map(|members| {
                let mut object = Object::new();
                members.into_iter().for_each(|(name, value)| object.set(&name, value));
                Value::Object(object)
            }),
        ]
    })
}

prop_compose! {
    fn header()(
        ids in any::<([u8; 32], [u8; 32], [u8; 32], [u8; 16], [u8; 32], [u8; 32])>(),
        chain in any::<u32>(), index in 0..1u64 << 63, revision in 1..1u64 << 63, time in 0..1i64 << 53,
        stream in "[a-z][a-z0-9-]{0,63}", event_type in "[a-z][a-z0-9_.]{0,63}",
    ) -> Header {
        Header {
            format_version: 1, ledger_id: ids.0, chain, index, prev_hash: ids.1, stream, revision, parent_hash: ids.2,
            event_id: ids.3, event_type, schema_version: 1, recorded_at_us: time, body_hash: ids.4, body_sha256: ids.5,
        }
    }
}

/// The header as `wincode` sees it: same fields, another codec.
#[derive(wincode::SchemaWrite)]
struct Twin {
    format_version: u16,
    ledger_id: [u8; 32],
    chain: u32,
    index: u64,
    prev_hash: [u8; 32],
    stream: String,
    revision: u64,
    parent_hash: [u8; 32],
    event_id: [u8; 16],
    event_type: String,
    schema_version: u16,
    recorded_at_us: i64,
    body_hash: [u8; 32],
    body_sha256: [u8; 32],
}

proptest! {
    #[test]
    fn json_round_trips(value in value()) {
        let bytes = value.to_canonical();
        prop_assert_eq!(json::parse_canonical(&bytes).unwrap(), Some(value.clone()));
        // An outside reader sees the same value.
        let outside: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        prop_assert_eq!(json::parse(outside.to_string().as_bytes()).unwrap(), value);
    }

    #[test]
    fn json_reads_what_it_reads_canonically(bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..60), "[\\[\\]{}\",:0-9a-f\\\\u -]{0,40}".prop_map(String::into_bytes)]) {
        if let Ok(value) = json::parse(&bytes) {
            let canonical = value.to_canonical();
            prop_assert_eq!(json::parse_canonical(&canonical).unwrap(), Some(value));
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
        }
    }

    #[test]
    fn header_round_trips_and_equals_wincode(header in header()) {
        let bytes = header.encode();
        prop_assert_eq!(Header::decode(&bytes).unwrap(), header.clone());
        let h = header;
        let twin = Twin {
            format_version: h.format_version, ledger_id: h.ledger_id, chain: h.chain, index: h.index, prev_hash: h.prev_hash,
            stream: h.stream, revision: h.revision, parent_hash: h.parent_hash, event_id: h.event_id, event_type: h.event_type,
            schema_version: h.schema_version, recorded_at_us: h.recorded_at_us, body_hash: h.body_hash, body_sha256: h.body_sha256,
        };
        prop_assert_eq!(wincode::serialize(&twin).unwrap(), bytes);
    }

    /// Any changed byte gives other bytes or no header; nothing decodes to the same entry.
    #[test]
    fn a_changed_header_byte_changes_the_hash(header in header(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = header.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(other) = Header::decode(&bytes) {
            prop_assert_eq!(other.encode(), bytes);
            prop_assert_ne!(other.entry_hash(), header.entry_hash());
        }
    }

    #[test]
    fn hostile_bytes_are_refused_calmly(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert_eq!(header.encode(), bytes.clone());
        }
        if let Ok(body) = Body::decode(&bytes) {
            prop_assert_eq!(body.encode(), bytes.clone());
        }
        if let Ok(note) = Note::parse(&bytes) {
            prop_assert_eq!(note.to_string().into_bytes(), bytes.clone());
        }
        let _ = Command::parse(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = (Checkpoint::parse(&text), NoteKey::parse_vkey(&text), Stream::parse(&text), Hash::from_hex(&text));
    }

    #[test]
    fn nearly_a_note(text in "(o\n5\n[A-Za-z0-9+/=]{40,46}\n){0,2}\n?(\u{2014} [a-z+ ]{0,4} [A-Za-z0-9+/=]{0,100}\n){0,3}") {
        if let Ok(note) = Note::parse(text.as_bytes()) {
            prop_assert_eq!(note.to_string(), text);
            if let Ok(checkpoint) = Checkpoint::parse(&note.text) {
                prop_assert_eq!(checkpoint.to_text(), note.text);
            }
        }
    }

    #[test]
    fn nearly_a_command(line in "\\{\"command\":\"(order.create|order.refund|sku.list|payment.capture)\",\"actor\":\"[a-z:]{0,9}\",\"(order_id|sku_id|refund|total)\":(\"ref:x\"|\\{\"amount\":[0-9-]{1,18},\"currency\":\"[A-Z]{2,4}\",\"scale\":[0-9]\\})\\}") {
        let _ = Command::parse(line.as_bytes());
    }

    #[test]
    fn hex_round_trips(bytes in prop::collection::vec(any::<u8>(), 0..70)) {
        prop_assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
    }

    #[test]
    fn proofs_verify_and_tampered_ones_do_not(size in 1u64..600, a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>()) {
        let leaves: Vec<Hash> = (0..size).map(|i| merkle::leaf_hash(&i.to_le_bytes())).collect();
        let (index, old) = (a.index(leaves.len()) as u64, 1 + b.index(leaves.len()) as u64);
        let (root, old_root) = (merkle::root(&leaves), merkle::root(&leaves[..old as usize]));
        let Ok(path) = merkle::inclusion_proof(&leaves[..], index, size);
        prop_assert!(verify_inclusion(&leaves[index as usize], index, size, &path, &root));
        if !path.is_empty() {
            let mut bad = path.clone();
            let at = flip.index(bad.len());
            bad[at].0[0] ^= 1;
            prop_assert!(!verify_inclusion(&leaves[index as usize], index, size, &bad, &root));
        }
        let Ok(path) = merkle::consistency_proof(&leaves[..], old, size);
        prop_assert!(verify_consistency(old, size, &path, &old_root, &root));
        if !path.is_empty() {
            let mut bad = path.clone();
            let at = flip.index(bad.len());
            bad[at].0[31] ^= 1;
            prop_assert!(!verify_consistency(old, size, &bad, &old_root, &root));
        }
        let mut range = CompactRange::default();
        leaves.iter().for_each(|leaf| range.push(*leaf));
        prop_assert_eq!(range.root(), root);
        prop_assert_eq!(CompactRange::from_bytes(size, &range.to_bytes()), Some(range));
    }
}
