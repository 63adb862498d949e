//! Whatever is read prints to the same bytes, or to a canonical form that reads as the same value.

use ledger_engine::body::{BODY_BYTES_MAX, Body, PrivateDocument};
use ledger_engine::domain::command::{COMMAND_BYTES_MAX, Command};
use ledger_engine::export::{Line, Manifest, write_entry};
use ledger_engine::hash::{EventId, Hash, from_hex, to_hex};
use ledger_engine::header::{COUNT_MAX, HEADER_BYTES_MAX, Header, is_event_type, is_stream_name};
use ledger_engine::json::{self, DEPTH_MAX, INTEGER_MAX, JsonFault, Value};
use ledger_engine::keys::{PseudonymKey, parse_key};
use ledger_engine::note::{Checkpoint, NOTE_BYTES_MAX, NOTE_SIGNATURES_MAX, Note, NoteKey};
use ledger_engine::registry::Purpose;
use ledger_engine::signer::LocalSigner;
use ledger_engine::stream::{CaseId, Stream};

/// Longest message about hostile bytes: [`DEPTH_MAX`] names of 64 characters, each escaped at most twice, and a sentence.
const MESSAGE_BYTES_MAX: usize = DEPTH_MAX * 64 * 12 + 1024;

/// What is read is written again as it was, so a file's digest is a digest of its rows.
pub(crate) fn line(bytes: &[u8]) {
    let ledger_id = Hash([9; 32]);
    let Ok(line) = Line::parse(bytes, &ledger_id) else { return };
    let mut again = Vec::new();
    match &line {
        Line::Entry(e) => write_entry(&mut again, &e.header, &e.entry_hash, e.parent_index, e.body),
        Line::Commit(c) => c.write(&mut again),
        Line::Checkpoint(c) => c.write(&mut again),
        Line::Private(p) => p.write(&mut again),
    }
    assert_eq!(again.pop(), Some(b'\n'));
    assert_eq!(again, bytes);
    // Where the part that is taken as it is is canonical, the line is.
    let (part, whole) = match &line {
        Line::Entry(e) => (json::parse_canonical(e.body), json::parse_canonical(bytes)),
        Line::Private(p) => (json::parse_canonical(p.document), json::parse_canonical(bytes)),
        _ => return,
    };
    if let Ok(Some(_)) = part {
        // It is one or two levels deeper, which may be too deep.
        assert!(
            matches!(&whole, Ok(Some(_))) || matches!(&whole, Err(e) if e.fault == JsonFault::TooDeep),
            "{whole:?}"
        );
    }
}

pub(crate) fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    assert_eq!(manifest.encode(), bytes);
    // No file lies outside the export's directory.
    let tables = manifest.batch.iter().flat_map(|b| &b.tables).map(|t| &t.stored.name);
    let mut names = manifest.files.iter().map(|f| &f.name).chain(tables);
    assert!(names.all(|name| !name.contains(['/', '\\']) && !name.starts_with('.')));
}

pub(crate) fn json(bytes: &[u8]) {
    let outside = serde_json::from_slice::<serde_json::Value>(bytes);
    match json::parse(bytes) {
        Ok(value) => {
            assert!(depth(&value) <= DEPTH_MAX && in_range(&value));
            let canonical = value.to_canonical();
            assert_eq!(
                json::parse_canonical(&canonical),
                Ok(Some(value.clone())),
                "the canonical form reads as itself"
            );
            assert_eq!(json::parse_canonical(bytes).map(|v| v.is_some()), Ok(canonical == bytes));
            // An outside reader sees the same value: it prints to the same bytes here.
            let outside = outside.expect("what is read here is JSON");
            assert_eq!(json::parse(outside.to_string().as_bytes()), Ok(value));
        }
        Err(e) => {
            assert!(e.offset <= bytes.len() && e.to_string().len() <= MESSAGE_BYTES_MAX);
            // What others read is refused for a reason of ours, never as something that is no JSON.
            assert!(outside.is_err() || !matches!(e.fault, JsonFault::Syntax | JsonFault::NotUtf8), "{e}");
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(object) => 1 + object.iter().map(|(_, v)| depth(v)).max().unwrap_or(0),
        _ => 0,
    }
}

fn in_range(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) => true,
        Value::Int(n) => (-INTEGER_MAX..=INTEGER_MAX).contains(n),
        Value::Str(s) => !s.contains('\0'),
        Value::Array(items) => items.iter().all(in_range),
        Value::Object(o) => {
            let names: Vec<Vec<u16>> = o.iter().map(|(n, _)| n.encode_utf16().collect()).collect();
            names.is_sorted_by(|a, b| a < b) && o.iter().all(|(n, v)| !n.contains('\0') && in_range(v))
        }
    }
}

pub(crate) fn body(bytes: &[u8]) {
    match Body::decode(bytes) {
        Ok(body) => {
            assert!(bytes.len() <= BODY_BYTES_MAX);
            assert_eq!(body.encode(), bytes);
        }
        Err(e) => assert!(e.to_string().len() <= MESSAGE_BYTES_MAX),
    }
    let document = PrivateDocument::from_bytes(bytes.to_vec());
    if let Some(mut members) = document.members() {
        let salt = members.remove("salt").as_ref().and_then(Value::as_str).and_then(from_hex);
        let salt = salt.and_then(|s| s.try_into().ok()).expect("a private document has a salt of 16 bytes");
        assert_eq!(PrivateDocument::new(members, salt).as_bytes(), bytes);
    }
}

pub(crate) fn header(bytes: &[u8]) {
    let decoded = Header::decode(bytes).ok();
    assert_eq!(decoded, header_by_hand(bytes).filter(|h| h.check().is_ok()));
    if let Some(header) = decoded {
        assert!(bytes.len() <= HEADER_BYTES_MAX);
        assert_eq!(header.encode(), bytes);
        assert!(header.index <= COUNT_MAX && is_stream_name(&header.stream) && is_event_type(&header.event_type));
    }
}

/// FORMAT.md 2.3 field by field, without a codec.
fn header_by_hand(bytes: &[u8]) -> Option<Header> {
    let mut rest = bytes;
    let header = Header {
        format_version: u16::from_le_bytes(take(&mut rest)?),
        ledger_id: take(&mut rest)?,
        chain: u32::from_le_bytes(take(&mut rest)?),
        index: u64::from_le_bytes(take(&mut rest)?),
        prev_hash: take(&mut rest)?,
        stream: text(&mut rest)?,
        revision: u64::from_le_bytes(take(&mut rest)?),
        parent_hash: take(&mut rest)?,
        event_id: take(&mut rest)?,
        event_type: text(&mut rest)?,
        schema_version: u16::from_le_bytes(take(&mut rest)?),
        recorded_at_us: i64::from_le_bytes(take(&mut rest)?),
        body_hash: take(&mut rest)?,
        body_sha256: take(&mut rest)?,
    };
    rest.is_empty().then_some(header)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (piece, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*piece)
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(u64::from_le_bytes(take(rest)?)).ok()?;
    let (piece, after) = rest.split_at_checked(length)?;
    *rest = after;
    String::from_utf8(piece.to_vec()).ok()
}

pub(crate) fn note(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // A vkey, a checkpoint's text and a note are told apart by their form, so one corpus serves all three.
    let key = NoteKey::parse_vkey(&text);
    if let Ok(key) = &key {
        assert_eq!(key.to_vkey(), text);
    }
    if let Ok(checkpoint) = Checkpoint::parse(&text) {
        assert_eq!(checkpoint.to_text(), text);
    }
    let Ok(note) = Note::parse(bytes) else { return };
    assert!(bytes.len() <= NOTE_BYTES_MAX && (1..=NOTE_SIGNATURES_MAX).contains(&note.signatures.len()));
    assert_eq!(note.to_string(), text);
    let mut keys = vec![NoteKey { name: "o".into(), public_key: [1; 32] }];
    if let Ok(checkpoint) = Checkpoint::parse(&note.text) {
        assert_eq!(checkpoint.to_text(), note.text);
        // The checkpoint key of the fixtures, so that seeds verify; only the very same text may.
        let signer = LocalSigner::from_seed(Purpose::Checkpoint, &[3; 32]);
        keys.push(NoteKey { name: checkpoint.origin.clone(), public_key: signer.key().public_key.ed25519().unwrap() });
        if note.verify(&keys).is_ok() {
            let signature = signer.signature(note.text.as_bytes());
            let again = checkpoint.to_note(signer.key().public_key.ed25519().unwrap(), signature.to_vec());
            assert!(again.signatures.iter().all(|line| note.signatures.contains(line)));
        }
    }
    assert!(note.verify(&[]).is_err());
}

pub(crate) fn name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(stream) = Stream::parse(&text) {
        assert_eq!(stream.to_string(), text);
        assert!(is_stream_name(&text), "a stream's name fits the header");
        assert!(stream.case().is_none() || stream.chain(7) < 7);
    }
    if let Some(case) = CaseId::parse(&text) {
        assert_eq!(case.to_string(), text);
    }
    if let Some(hash) = Hash::from_hex(&text) {
        assert_eq!(hash.to_hex(), text);
    }
    if let Some(raw) = from_hex(&text) {
        assert_eq!(to_hex(&raw), text);
    }
    if let Some(id) = EventId::parse(&text) {
        assert!(id.to_string() == text || to_hex(&id.0) == text);
    }
}

pub(crate) fn command(bytes: &[u8]) {
    match Command::parse(bytes) {
        Ok(command) => {
            assert!(bytes.len() <= COMMAND_BYTES_MAX);
            // Spelling does not matter, neither to what is asked nor to what makes a retry the same request.
            let canonical = json::parse(bytes).expect("a command is JSON").to_canonical();
            assert_eq!(Command::parse(&canonical), Ok(command.clone()));
            let case = CaseId([7; 16]);
            if command.order.is_none() {
                assert_eq!(command.request_digest(Some(case)), command.request_digest(None));
            }
            let mut other = json::parse(bytes).expect("a command is JSON");
            if let Value::Object(object) = &mut other {
                object.remove("ref");
            }
            let unlabelled = Command::parse(&other.to_canonical()).expect("a label is never required");
            assert_eq!(unlabelled.request_digest(Some(case)), command.request_digest(Some(case)));
        }
        Err(e) => {
            let codes = ["BODY_TOO_LARGE", "INVALID_JSON", "UNKNOWN_COMMAND", "INVALID_COMMAND"];
            assert!(codes.contains(&e.code()) && e.to_string().len() <= MESSAGE_BYTES_MAX);
            assert_eq!(e.code() == "INVALID_JSON", json::parse(bytes).is_err() && bytes.len() <= COMMAND_BYTES_MAX);
        }
    }
}

pub(crate) fn key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match parse_key(&text) {
        Ok(key) => {
            let signer = LocalSigner::new(Purpose::Commit, key.clone());
            assert_eq!(signer.key().public_key, key.verifying_key().to_bytes().into());
            let signature = signer.signature(bytes);
            assert!(signer.key().public_key.verify(bytes, &signature));
        }
        Err(reason) => {
            // A secret that does not parse must not end in a log. So begins the base64 of such a key; any other text may be
            // one that every message has.
            let mut secrets = text.lines().filter(|line| line.starts_with("MC4CAQ"));
            assert!(reason.len() <= 1024 && secrets.all(|line| !reason.contains(line)));
        }
    }
    if let Some(key) = PseudonymKey::parse(&text) {
        assert_eq!(text.trim().len(), 64);
        assert_eq!(key.actor_id("service:x"), "service:x");
        assert_eq!(key.actor_id("ann").len(), 34);
    }
}
