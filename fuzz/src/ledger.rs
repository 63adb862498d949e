//! The verifier over hostile dumps: it never panics, and never calls an altered history verified.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use audit_verify::{Dump, Report, Tables as _, Verdict};
use ledger_engine::commit::{ALG_ED25519, Statement};
use ledger_engine::domain::projection::Cell;
use ledger_engine::hash::{EventId, Hash, body_hash, entry_hash, from_hex, sha256, to_hex};
use ledger_engine::header::{FORMAT_VERSION, Header, is_event_type};
use ledger_engine::json as canonical;
use ledger_engine::merkle::{CompactRange, leaf_hash, root};
use ledger_engine::registry::Purpose;
use ledger_engine::signer::LocalSigner;
use serde_json::{Value, json};

use crate::input::Input;

/// Most edits of one input.
const EDITS_MAX: usize = 8;

/// A ledger of the fixtures.
struct Base {
    json: Value,
    trust: Hash,
    entries: Vec<Vec<Cell>>,
}

static BASES: LazyLock<[Base; 3]> = LazyLock::new(|| {
    let one: &[u8] = include_bytes!("../../fixtures/valid/one_chain.json");
    let two: &[u8] = include_bytes!("../../fixtures/valid/two_chains.json");
    let redacted: &[u8] = include_bytes!("../../fixtures/valid/redacted.json");
    [one, two, redacted].map(|bytes| {
        let dump = Dump::parse(bytes).expect("a fixture is a dump");
        let trust = dump.trust.expect("a fixture names its id");
        let json = serde_json::from_slice(bytes).expect("a fixture is JSON");
        let base = Base { json, trust, entries: entries(&dump) };
        assert_eq!(judge(&dump, Some(trust)).verdict(), Verdict::Verified);
        base
    })
});

/// The rows of `entries` as the verifier sees them, in the order of their keys.
fn entries(dump: &Dump) -> Vec<Vec<Cell>> {
    let chains = dump.chains("entries").expect("a dump in memory is readable");
    let rows = chains.into_iter().map(|chain| dump.all("entries", chain).expect("a dump in memory is readable"));
    rows.flatten().collect()
}

/// The verdict, with everything that a report always says of itself.
fn judge(dump: &Dump, trust: Option<Hash>) -> Report {
    let report = audit_verify::verify("dump", dump, audit_verify::Demands { trust, ..Default::default() });
    assert_eq!(report.exit() == 1, !report.findings().is_empty());
    assert_eq!(report.codes().len(), report.findings().len());
    assert!(trust.is_some() || report.verdict() != Verdict::Verified, "nobody said whose ledger it is");
    assert!(report.to_text().starts_with(report.verdict().as_str()));
    assert_eq!(report.to_json()["exit"], report.exit());
    report
}

/// Bytes that may be a dump.
pub(crate) fn dump(bytes: &[u8]) {
    let Ok(dump) = Dump::parse(bytes) else { return };
    judge(&dump, dump.trust);
    for base in BASES.iter() {
        if judge(&dump, Some(base.trust)).verdict() == Verdict::Verified {
            assert_eq!(entries(&dump), base.entries, "another history under this id");
        }
    }
}

/// Edits of a ledger of the fixtures. The first byte chooses it and who edits: somebody without keys, somebody who also makes
/// hashes and links again, or a writer who signs again. Only the last may end up verified with another history.
pub(crate) fn verify(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let base = &BASES[usize::from(choice) % BASES.len()];
    let mut json = base.json.clone();
    for _ in 0..EDITS_MAX {
        if input.is_empty() {
            break;
        }
        edit(&mut json["tables"], &mut input);
    }
    let (relink, sign) = (choice & 0x40 != 0, choice & 0xc0 == 0xc0);
    if relink {
        make_again(&mut json["tables"], base.trust, sign);
    }
    let dump = Dump::parse(json.to_string().as_bytes()).expect("an edited dump is a dump");
    let altered = entries(&dump) != base.entries;
    let report = judge(&dump, Some(base.trust));
    assert!(!altered || sign || report.verdict() == Verdict::Broken, "an altered history: {:?}", report.verdict());
}

/// Values at the edges of what columns hold.
fn edge(n: u8) -> Value {
    match n % 16 {
        0 => json!(null),
        1 => json!(0),
        2 => json!(1),
        3 => json!(-1),
        4 => json!(2),
        5 => json!(4096),
        6 => json!(4097),
        7 => json!((1_i64 << 53) - 1),
        8 => json!(1_i64 << 53),
        9 => json!(i64::MAX),
        10 => json!(u64::MAX),
        11 => json!(1.5),
        12 => json!(""),
        13 => json!("00"),
        14 => json!("00".repeat(32)),
        _ => json!([true]),
    }
}

fn edit(tables: &mut Value, input: &mut Input<'_>) {
    let kind = input.byte();
    let names: Vec<String> = tables.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    // Half of the edits are of entries: most rules are about them.
    let table =
        if kind & 0x80 == 0 { "entries" } else { input.index(names.len()).map_or("entries", |at| names[at].as_str()) };
    let Some(rows) = tables[table].as_array_mut() else { return };
    let Some(at) = input.index(rows.len()) else { return };
    match kind % 8 {
        0 => drop(rows.remove(at)),
        1 => rows.push(rows[at].clone()),
        2 => rows.truncate(at),
        3 => drop(input.index(rows.len()).map(|other| swap_column(rows, at, other, input))),
        4 | 5 => {
            let Some(row) = rows[at].as_object_mut() else { return };
            let Some(column) = input.index(row.len()) else { return };
            let Some((_, value)) = row.iter_mut().nth(column) else { return };
            if kind % 8 == 4 {
                *value = edge(input.byte());
            } else {
                nudge(value, input);
            }
        }
        _ => edit_body(&mut rows[at], input),
    }
}

/// Exchanges one column of two rows.
fn swap_column(rows: &mut [Value], a: usize, b: usize, input: &mut Input<'_>) {
    let columns = rows[a].as_object().map(|row| row.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let Some(column) = input.index(columns.len()).map(|at| columns[at].as_str()) else { return };
    let kept = rows[a][column].take();
    rows[a][column] = rows[b][column].take();
    rows[b][column] = kept;
}

/// The same type with a little change.
fn nudge(value: &mut Value, input: &mut Input<'_>) {
    match value {
        Value::Number(n) => {
            *value = json!(n.as_i64().unwrap_or(0).saturating_add(i64::from(input.byte() as i8)));
        }
        Value::String(s) => {
            let mut chars: Vec<char> = s.chars().collect();
            if let Some(at) = input.index(chars.len()) {
                chars[at] = char::from(input.byte());
            }
            *s = chars.into_iter().collect();
        }
        other => *other = edge(input.byte()),
    }
}

/// Changes a member of the body and prints it canonically, so that the rules behind the bytes are reached.
fn edit_body(row: &mut Value, input: &mut Input<'_>) {
    let body = row["body"].as_str().and_then(from_hex).unwrap_or_default();
    let Ok(mut body) = serde_json::from_slice::<Value>(&body) else { return };
    let how = input.byte();
    let mut members = Vec::new();
    pointers(&body, String::new(), &mut members);
    let Some(pointer) = input.index(members.len()).map(|at| members[at].clone()) else { return };
    let other = input.index(members.len()).and_then(|at| body.pointer(&members[at])).cloned();
    let Some(value) = body.pointer_mut(&pointer) else { return };
    match how % 5 {
        0 => *value = edge(input.byte()),
        1 => nudge(value, input),
        2 => *value = other.unwrap_or_default(),
        3 => {
            let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
            if let Some(object) = body.pointer_mut(parent).and_then(Value::as_object_mut) {
                object.remove(name);
            }
        }
        _ => {
            let name = String::from_utf8_lossy(input.piece(4)).into_owned();
            if let Some(object) = value.as_object_mut() {
                object.insert(name, edge(input.byte()));
            }
        }
    }
    // What the canonical printer refuses stays as another printer writes it.
    let text = body.to_string().into_bytes();
    let bytes = canonical::parse(&text).map_or(text, |value| value.to_canonical());
    row["body"] = json!(to_hex(&bytes));
}

/// JSON pointers to every value in `value`.
fn pointers(value: &Value, at: String, out: &mut Vec<String>) {
    let below: Vec<(String, &Value)> = match value {
        Value::Array(items) => items.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        Value::Object(members) => members.iter().map(|(n, v)| (n.replace('~', "~0").replace('/', "~1"), v)).collect(),
        _ => Vec::new(),
    };
    for (name, value) in below {
        pointers(value, format!("{at}/{name}"), out);
    }
    out.push(at);
}

/// Makes hashes, links and derived heads again from the rows as they are, and with `sign` the commits' signatures too.
fn make_again(tables: &mut Value, ledger_id: Hash, sign: bool) {
    let blob = |row: &Value, column: &str| row[column].as_str().and_then(from_hex);
    let chains: BTreeSet<u64> =
        tables["entries"].as_array().into_iter().flatten().filter_map(|r| r["chain"].as_u64()).collect();
    let mut registry_heads: BTreeMap<u64, Hash> = BTreeMap::new();
    for chain in chains {
        let Ok(chain_number) = u32::try_from(chain) else { continue };
        let Some(rows) = tables["entries"].as_array_mut() else { return };
        let mut rows: Vec<&mut Value> = rows.iter_mut().filter(|r| r["chain"].as_u64() == Some(chain)).collect();
        rows.sort_by_key(|row| row["idx"].as_u64());
        let (mut prev, mut leaves, mut hashes) = (Hash::ZERO, Vec::new(), Vec::new());
        let mut tips: BTreeMap<String, (Hash, u64, u64)> = BTreeMap::new();
        for row in rows {
            let (Some(body), Some(index)) = (blob(row, "body"), row["idx"].as_u64()) else { continue };
            let text = |column: &str| row[column].as_str().unwrap_or_default().to_owned();
            let (stream, event_type) = (text("stream"), text("event_type"));
            if stream.len() > 64 || !is_event_type(&event_type) {
                continue;
            }
            let parent = tips.get(&stream).copied();
            let revision = row["revision"].as_u64().unwrap_or(0);
            let header = Header {
                format_version: FORMAT_VERSION,
                ledger_id: ledger_id.0,
                chain: chain_number,
                index,
                prev_hash: prev.0,
                stream: stream.clone(),
                revision,
                parent_hash: parent.map_or([0; 32], |(hash, ..)| hash.0),
                event_id: EventId::derive(&ledger_id, chain_number, index).0,
                event_type,
                schema_version: 1,
                recorded_at_us: row["recorded_at_us"].as_i64().unwrap_or(0),
                body_hash: body_hash(&body).0,
                body_sha256: sha256(&[&body]).0,
            };
            let bytes = header.encode();
            let hash = entry_hash(&bytes);
            for (column, value) in [
                ("prev_hash", &header.prev_hash[..]),
                ("parent_hash", &header.parent_hash),
                ("event_id", &header.event_id),
                ("body_hash", &header.body_hash),
                ("body_sha256", &header.body_sha256),
                ("entry_hash", &hash.0),
            ] {
                row[column] = json!(to_hex(value));
            }
            row["parent_index"] = json!(parent.map(|(_, _, index)| index));
            if stream == "ledger" {
                registry_heads.insert(revision, hash);
            }
            tips.insert(stream, (hash, revision, index));
            leaves.push(leaf_hash(&bytes));
            hashes.push(hash);
            prev = hash;
        }
        let mut range = CompactRange::default();
        leaves.iter().for_each(|leaf| range.push(*leaf));
        for row in rows_of(tables, "chain_heads", chain) {
            row["size"] = json!(leaves.len());
            row["head_hash"] = json!(prev.to_hex());
            row["compact_range"] = json!(to_hex(&range.to_bytes()));
        }
        for row in rows_of(tables, "stream_heads", chain) {
            if let Some((hash, revision, index)) = row["stream"].as_str().and_then(|s| tips.get(s)) {
                row["head_hash"] = json!(hash.to_hex());
                row["revision"] = json!(revision);
                row["head_index"] = json!(index);
            }
        }
        if sign {
            sign_again(tables, ledger_id, chain_number, &leaves, &hashes, &registry_heads);
        }
    }
}

fn rows_of<'a>(tables: &'a mut Value, table: &str, chain: u64) -> impl Iterator<Item = &'a mut Value> {
    tables[table].as_array_mut().into_iter().flatten().filter(move |row| row["chain"].as_u64() == Some(chain))
}

/// Signs the commits with the fixtures' commit key.
fn sign_again(
    tables: &mut Value,
    ledger_id: Hash,
    chain: u32,
    leaves: &[Hash],
    hashes: &[Hash],
    registry_heads: &BTreeMap<u64, Hash>,
) {
    let signer = LocalSigner::from_seed(Purpose::Commit, &[2; 32]);
    let kid = signer.key().kid.clone();
    let mut signatures = BTreeMap::new();
    for row in rows_of(tables, "commits", u64::from(chain)) {
        let (Some(first), Some(size)) = (row["first_index"].as_u64(), row["size"].as_u64()) else { continue };
        let Some(end) = first.checked_add(size).and_then(|end| usize::try_from(end).ok()) else { continue };
        let (Some(covered), Some(last)) =
            (leaves.get(first as usize..end), end.checked_sub(1).and_then(|last| hashes.get(last)))
        else {
            continue;
        };
        let registry_size = row["registry_size"].as_u64().unwrap_or(0);
        let registry_head = registry_heads.get(&registry_size).copied().unwrap_or(Hash::ZERO);
        row["registry_head"] = json!(registry_head.to_hex());
        let statement = Statement {
            ledger_id,
            chain,
            first_index: first,
            size: size as u32,
            root: root(covered),
            last_hash: *last,
            registry_size,
            registry_head,
        };
        let signature = signer.signature(&statement.to_bytes(ALG_ED25519, &kid));
        signatures.insert(first, to_hex(&signature));
    }
    for row in rows_of(tables, "commit_signatures", u64::from(chain)) {
        if let Some(signature) = row["first_index"].as_u64().and_then(|first| signatures.get(&first)) {
            row["signature"] = json!(signature);
        }
    }
    // Checkpoints of the altered tree are left out: none is required, and the old ones are another tree's.
    if let Some(rows) = tables["checkpoints"].as_array_mut() {
        rows.retain(|row| row["chain"].as_u64() != Some(u64::from(chain)));
    }
}
