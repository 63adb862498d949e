//! The vectors in `fixtures/valid` and `fixtures/broken`: dumps named by their defect, with the verdict inside. This test makes
//! them again from the engine and fixed keys, and lets both verifiers judge every file of both folders.
//!
//! `LEDGER_BLESS=1 cargo test -p ledger-engine --test vectors` writes them anew after a change of format.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use audit_verify::legacy::{File, Signers as LegacySigners, verify_legacy};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger_engine::adoption::{AdoptedRegistry, Adoption, EVENT_TYPE, Previous};
use ledger_engine::body::Body;
use ledger_engine::commit::{ALG_ED25519, Statement};
use ledger_engine::delivery_proof::{self, DeliveryProof, Encryption, ProofTerms};
use ledger_engine::domain::case::document;
use ledger_engine::domain::money::Money;
use ledger_engine::export::record::{self, ExportEvent};
use ledger_engine::finance::{self, FinanceSignature};
use ledger_engine::genesis::Genesis;
use ledger_engine::hash::{EventId, Hash, body_hash, entry_hash, sha256, to_hex};
use ledger_engine::header::Header;
use ledger_engine::json::{self as ledger_json, Object};
use ledger_engine::keys::PrivateKey;
use ledger_engine::ledger::Ledger;
use ledger_engine::licence::{self, Licence, Terms};
use ledger_engine::merkle::{CompactRange, leaf_hash, root};
use ledger_engine::note::{Checkpoint, Note, NoteKey, NoteSignature};
use ledger_engine::public_key::Algorithm;
use ledger_engine::registry::{Action, Key, Purpose, govern_payload, govern_statement};
use ledger_engine::signer::LocalSigner;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use ledger_engine::stream::{CaseId, EXPORTS_STREAM, LEGACY_STREAM, Stream};
use ledger_engine::succession::{Succession, TreeHead};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use support::sample;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fixtures")
}

fn dump(db: &Connection, description: &str, trust: Option<Hash>, exit: u8, findings: &[&str]) -> Value {
    let mut names = db.prepare("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").unwrap();
    let names: Vec<String> = names.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect();
    let mut tables = serde_json::Map::new();
    for name in names.iter().filter(|n| !n.starts_with("sqlite")) {
        let mut s = db.prepare(&format!("SELECT * FROM {name} ORDER BY rowid")).unwrap();
        let columns: Vec<String> = s.column_names().map(str::to_owned).collect();
        let rows = s.query_map([], |r| {
            let cell = |i| match r.get_ref(i).unwrap() {
                ValueRef::Integer(n) => Value::from(n),
                ValueRef::Text(t) => Value::from(String::from_utf8_lossy(t)),
                ValueRef::Blob(b) => Value::from(to_hex(b)),
                _ => Value::Null,
            };
            Ok(Value::Object(columns.iter().enumerate().map(|(i, c)| (c.clone(), cell(i))).collect()))
        });
        tables.insert(name.clone(), Value::Array(rows.unwrap().map(Result::unwrap).collect()));
    }
    json!({
        "format": "ledger-dump/1", "description": description, "trust": trust.map(Hash::to_hex),
        "expect": {"exit": exit, "findings": findings}, "tables": tables,
    })
}

/// A parent hash that stays as it is when a writer with the keys signs again.
const WRONG_PARENT: [u8; 32] = [0xff; 32];

/// What a writer that holds the keys and breaks a rule would have stored: all links, hashes and signatures are made again from
/// the rows as they are, so that only the broken rule is left to find.
fn sign_again(db: &Connection, ledger_id: Hash) {
    db.execute_batch("DELETE FROM checkpoints; DELETE FROM chain_heads; DELETE FROM stream_heads;").unwrap();
    let mut registry = Vec::new();
    for chain in 0..1u32 {
        let mut s = db
            .prepare("SELECT idx, stream, revision, event_type, schema_version, recorded_at_us, body, parent_hash FROM entries WHERE chain = ?1 ORDER BY idx")
            .unwrap();
        type EntryRow = (u64, String, u64, String, u16, i64, Vec<u8>, [u8; 32]);
        let rows: Vec<EntryRow> = s
            .query_map([chain], |r| {
                let n = |i| r.get::<_, i64>(i).map(|v| v as u64);
                Ok((n(0)?, r.get(1)?, n(2)?, r.get(3)?, r.get(4)?, r.get(5)?, r.get(6)?, r.get(7)?))
            })
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let (mut prev, mut leaves, mut range) = (Hash::ZERO, Vec::new(), CompactRange::default());
        let mut tips: std::collections::BTreeMap<String, (Hash, u64, u64, u64)> = std::collections::BTreeMap::new();
        let mut hashes = Vec::new();
        for (index, stream, revision, event_type, schema_version, recorded_at_us, body, wanted) in rows {
            let parent = tips.get(&stream).copied();
            let parent_hash = parent.map_or([0; 32], |p| p.0.0);
            let header = Header {
                format_version: 1,
                ledger_id: ledger_id.0,
                chain,
                index,
                prev_hash: prev.0,
                stream: stream.clone(),
                revision,
                parent_hash: if wanted == WRONG_PARENT { wanted } else { parent_hash },
                event_id: EventId::derive(&ledger_id, chain, index).0,
                event_type,
                schema_version,
                recorded_at_us,
                body_hash: body_hash(&body).0,
                body_sha256: sha256(&[&body]).0,
            };
            let bytes = header.encode();
            let hash = entry_hash(&bytes);
            db.execute(
                "UPDATE entries SET prev_hash = ?3, parent_hash = ?4, body_hash = ?5, body_sha256 = ?6, entry_hash = ?7, parent_index = ?8 WHERE chain = ?1 AND idx = ?2",
                params![chain, index as i64, header.prev_hash, header.parent_hash, header.body_hash, header.body_sha256, hash.0, parent.map(|p| p.2 as i64)],
            )
            .unwrap();
            if stream == "ledger" {
                registry.push((index, hash));
            }
            let first = parent.map_or(index, |p| p.3);
            tips.insert(stream, (hash, revision, index, first));
            leaves.push(leaf_hash(&bytes));
            range.push(leaf_hash(&bytes));
            hashes.push(hash);
            prev = hash;
        }
        for (stream, (hash, revision, index, first)) in &tips {
            db.execute(
                "INSERT INTO stream_heads VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![chain, stream, *revision as i64, hash.0, *index as i64, *first as i64],
            )
            .unwrap();
        }
        db.execute(
            "INSERT INTO chain_heads VALUES (?1, ?2, ?3, ?4)",
            params![chain, leaves.len() as i64, prev.0, range.to_bytes()],
        )
        .unwrap();
        let mut s = db
            .prepare("SELECT first_index, size, kid FROM commits NATURAL JOIN commit_signatures WHERE chain = ?1")
            .unwrap();
        let commits: Vec<(i64, i64, String)> =
            s.query_map([chain], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap().map(Result::unwrap).collect();
        for (first, size, kid) in commits {
            let (from, to) = (first as usize, (first + size) as usize);
            let known = registry.iter().take_while(|(index, _)| *index < first as u64);
            let registry_head = known.clone().last().map_or(Hash::ZERO, |(_, hash)| *hash);
            let statement = Statement {
                ledger_id,
                chain,
                first_index: first as u64,
                size: size as u32,
                root: root(&leaves[from..to]),
                last_hash: hashes[to - 1],
                registry_size: known.count() as u64,
                registry_head,
            };
            let signer =
                COMMIT_SEEDS.map(|seed| key(Purpose::Commit, seed)).into_iter().find(|s| s.key().kid == kid).unwrap();
            let signature = signer.signature(&statement.to_bytes(ALG_ED25519, &kid));
            db.execute(
                "UPDATE commits SET registry_size = ?3, registry_head = ?4 WHERE chain = ?1 AND first_index = ?2",
                params![chain, first, statement.registry_size as i64, statement.registry_head.0],
            )
            .unwrap();
            db.execute(
                "UPDATE commit_signatures SET signature = ?3 WHERE chain = ?1 AND first_index = ?2",
                params![chain, first, signature.to_vec()],
            )
            .unwrap();
        }
    }
}

/// Seeds of the commit keys that vectors use: the genesis's, and later ones.
const COMMIT_SEEDS: [u8; 3] = [2, 12, 15];
const GOVERNANCE_SEED: u8 = 1;

fn key(purpose: Purpose, seed: u8) -> LocalSigner {
    LocalSigner::from_seed(purpose, &[seed; 32])
}

fn kid(purpose: Purpose, seed: u8) -> String {
    key(purpose, seed).key().kid.clone()
}

/// A ledger whose keys are changed, by whoever holds which.
struct Registrar<'a> {
    db: &'a Connection,
    id: Hash,
}

/// Who signs a change of keys: the governance kid that the payload names, the key that really signs, and who proves possession.
type Signers = (u8, u8, Option<(Purpose, u8)>);

impl Registrar<'_> {
    fn size(&self) -> u64 {
        self.db.query_row("SELECT max(idx) + 1 FROM entries", [], |r| r.get::<_, i64>(0)).unwrap() as u64
    }

    /// Appends a change of keys in a commit of its own, signed with the commit key of a seed.
    fn govern(&self, action: &Action, commit: u8, (named, signing, possession): Signers) {
        self.govern_with(action, commit, (named, signing), |statement| {
            possession.map(|(purpose, seed)| key(purpose, seed).signature(statement).to_vec())
        });
    }

    /// The same where the incoming key may be another's.
    fn govern_with(
        &self,
        action: &Action,
        commit: u8,
        (named, signing): (u8, u8),
        possession: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    ) {
        let of_parent = "SELECT revision, entry_hash FROM entries WHERE stream = 'ledger' ORDER BY idx DESC LIMIT 1";
        let (revision, parent): (i64, Vec<u8>) =
            self.db.query_row(of_parent, [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
        let parent = Hash::from_slice(&parent).unwrap();
        let statement = govern_statement(&self.id, revision as u64 + 1, &parent, action);
        let governance = key(Purpose::Governance, signing).signature(&statement);
        let possession = possession(&statement);
        let payload = govern_payload(action, &kid(Purpose::Governance, named), &governance, possession.as_deref());
        self.append("ledger", action.event_type(), "governance", payload, commit);
    }

    /// Appends an entry in a commit of its own, signed with the commit key of a seed.
    fn append(&self, stream: &str, event_type: &str, actor: &str, payload: Object, commit: u8) {
        let next = self.size() as i64;
        let revision = "SELECT count(*) + 1 FROM entries WHERE stream = ?1";
        let revision: i64 = self.db.query_row(revision, [stream], |r| r.get(0)).unwrap();
        let body = Body { actor_id: actor.into(), payload, private_sha256: None, meta: None }.encode();
        let event_id = EventId::derive(&self.id, 0, next as u64);
        let insert = "INSERT INTO entries SELECT 0, ?1, zeroblob(32), ?6, ?2, zeroblob(32), ?3, ?4, 1, \
             max(recorded_at_us) + 1, zeroblob(32), zeroblob(32), zeroblob(32), NULL, ?5 FROM entries";
        self.db.execute(insert, params![next, revision, event_id.0, event_type, body, stream]).unwrap();
        self.db.execute("INSERT INTO commits VALUES (0, ?1, 1, 0, zeroblob(32))", [next]).unwrap();
        let insert = "INSERT INTO commit_signatures VALUES (0, ?1, ?2, 1, zeroblob(64))";
        self.db.execute(insert, params![next, kid(Purpose::Commit, commit)]).unwrap();
        self.db.execute("UPDATE cursors SET size = ?1", [next + 1]).unwrap();
        sign_again(self.db, self.id);
    }

    /// Records the plan of a batch, or that it is there.
    fn export(&self, event_type: &'static str, sequence: u64, change: impl FnOnce(Object) -> Object) {
        let plan = record::Plan {
            batch: format!("0123456789abcdef-{sequence:08}-101112"),
            env: "prod".into(),
            exported_at_us: 1_795_000_000_000_000,
            location: "archive".into(),
            private: true,
            ranges: vec![record::PlannedRange { from: 0, to: 3 }],
            sequence,
            tables: false,
        };
        let event = match event_type {
            record::STARTED => ExportEvent::Started(plan),
            _ => ExportEvent::Completed(record::Completed { plan, files: 1, bytes: 100, ..Default::default() }),
        };
        self.append(EXPORTS_STREAM, event_type, "system", change(event.to_payload()), 2);
    }

    /// Records that the ledger was restored, when it had so many entries.
    fn restored(&self, size: u64, newest: u64) {
        let head = |size| TreeHead { chain: 0, size, root: Hash([7; 32]), checkpoint: None };
        let restored = record::Restored {
            location: "archive".into(),
            manifest_sha256: Hash([8; 32]),
            sizes: vec![size],
            newest: vec![head(newest)],
        };
        let event = ExportEvent::Restored(restored);
        self.append(EXPORTS_STREAM, event.event_type(), "system", event.to_payload(), 2);
    }

    /// Records the first `rows` of a chain in `fixtures/legacy` as adopted, as far as `change` leaves that.
    fn adopt(&self, rows: usize, previous: Option<Previous>, change: impl FnOnce(Object) -> Object) -> Previous {
        let (index, adoption) = (self.size(), Adoption { previous, ..adoption(rows) });
        self.append(LEGACY_STREAM, EVENT_TYPE, "system", change(adoption.to_payload()), 2);
        Previous { index, root: adoption.root }
    }

    fn enrol(&self, purpose: Purpose, seed: u8, commit: u8) {
        let action = Action::Enrol { key: key(purpose, seed).key().clone(), justification: None };
        self.govern(&action, commit, (GOVERNANCE_SEED, GOVERNANCE_SEED, Some((purpose, seed))));
    }

    fn enrol_for_emergencies(&self, purpose: Purpose, seed: u8, justification: &str, commit: u8) {
        let action = Action::Enrol { key: key(purpose, seed).key().clone(), justification: Some(justification.into()) };
        self.govern(&action, commit, (GOVERNANCE_SEED, GOVERNANCE_SEED, Some((purpose, seed))));
    }

    fn rotate(&self, (purpose, old): (Purpose, u8), (incoming, new): (Purpose, u8), cut: u64, commit: u8) {
        let key = key(incoming, new).key().clone();
        let action = Action::Rotate { old_kid: kid(purpose, old), key, cut: vec![cut] };
        self.govern(&action, commit, (GOVERNANCE_SEED, GOVERNANCE_SEED, Some((incoming, new))));
    }

    fn revoke(&self, purpose: Purpose, seed: u8, compromised_since: Option<u64>, commit: u8) {
        let action = Action::Revoke {
            kid: kid(purpose, seed),
            cut: vec![self.size() + 1],
            reason: "lost".into(),
            compromised_since: compromised_since.map(|since| vec![since]),
        };
        self.govern(&action, commit, (GOVERNANCE_SEED, GOVERNANCE_SEED, None));
    }

    /// Three changes in three commits: both keys rotated, an export key enrolled.
    fn rotate_all(&self) {
        self.rotate((Purpose::Commit, 2), (Purpose::Commit, 12), self.size() + 1, 2);
        self.rotate((Purpose::Checkpoint, 3), (Purpose::Checkpoint, 13), self.size() + 1, 12);
        self.enrol(Purpose::Export, 14, 12);
    }

    /// Signs the commit that begins at `first` with another key.
    fn sign_with(&self, first: u64, seed: u8) {
        let update = "UPDATE commit_signatures SET kid = ?1 WHERE first_index = ?2";
        self.db.execute(update, params![kid(Purpose::Commit, seed), first as i64]).unwrap();
        sign_again(self.db, self.id);
    }

    /// Records a checkpoint of all there is.
    fn checkpoint(&self, seed: u8) {
        let head = "SELECT size, compact_range FROM chain_heads";
        let (size, range): (i64, Vec<u8>) = self.db.query_row(head, [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
        let root = CompactRange::from_bytes(size as u64, &range).unwrap().root();
        let origin = Checkpoint::origin_of("ledger.example/test", &self.id, 0);
        let text = Checkpoint { origin: origin.clone(), size: size as u64, root }.to_text();
        let signer = key(Purpose::Checkpoint, seed);
        let signature = signer.signature(text.as_bytes()).to_vec();
        let key_id = NoteKey { name: origin.clone(), public_key: signer.key().public_key.ed25519().unwrap() }.key_id();
        let note = Note { text, signatures: vec![NoteSignature { name: origin, key_id, signature }] };
        let insert = "INSERT INTO checkpoints VALUES (0, ?1, ?2, ?3)";
        self.db.execute(insert, params![size, root.0, note.to_string()]).unwrap();
    }
}

/// The first rows of a chain in `fixtures/legacy`.
fn adoption(rows: usize) -> Adoption {
    let folder = fixtures().join("legacy");
    let text = std::fs::read_to_string(folder.join("legacy-chain-ed25519.jsonl")).unwrap();
    let text: String = text.lines().take(rows).flat_map(|line| [line, "\n"]).collect();
    let signers = LegacySigners::read(&folder.join("legacy-signers.json")).unwrap();
    let mut file = File::from_bytes(text.into_bytes(), None).unwrap();
    let report = verify_legacy("vector", &mut file, Some(&signers), &[]);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    let key = |k: &audit_verify::legacy::KeyReport| Some((k.kid.clone(), k.key.as_ref().ok()?.1));
    Adoption {
        count: report.rows,
        root: report.root.unwrap(),
        head_hash: report.last_hash.unwrap(),
        first: report.first,
        last: report.last,
        registry: AdoptedRegistry { sha256: signers.sha256(), keys: report.keys.iter().filter_map(key).collect() },
        previous: None,
        findings: None,
    }
}

/// Legacy rows adopted, well and badly.
fn adoptions() -> Vec<Change> {
    let illegal: &[&str] = &["illegal_transition"];
    vec![
        (
            "valid/legacy_adopted",
            "ten rows of fixtures/legacy/legacy-chain-ed25519.jsonl adopted, then all",
            0,
            &[],
            |r| {
                let first = r.adopt(10, None, |p| p);
                r.adopt(24, Some(first), |p| p);
                r.checkpoint(3);
            },
        ),
        ("broken/adoption_without_root", "the root is not there", 1, illegal, |r| {
            r.adopt(10, None, |mut p| {
                p.remove("root");
                p
            });
        }),
        ("broken/adoption_of_another_form", "a member is unknown", 1, illegal, |r| {
            r.adopt(10, None, |p| p.with("rows", 10));
        }),
        ("broken/adoption_findings_unsorted", "codes of accepted findings repeat", 1, illegal, |r| {
            let one = || ledger_engine::json::Value::from(Object::new().with("code", "legacy_fork").with("count", 1));
            let findings =
                Object::new().with("counts", vec![one(), one()]).with("report_sha256", Hash([7; 32]).to_hex());
            r.adopt(10, None, |p| p.with("findings", findings));
        }),
        ("broken/adoption_of_no_predecessor", "the first adoption names one before it", 1, illegal, |r| {
            r.adopt(10, Some(Previous { index: 3, root: Hash([7; 32]) }), |p| p);
        }),
        ("broken/adoption_of_another_predecessor", "the second adoption names another root", 1, illegal, |r| {
            let first = r.adopt(10, None, |p| p);
            r.adopt(24, Some(Previous { root: Hash([7; 32]), ..first }), |p| p);
        }),
        ("broken/adoption_of_fewer_rows", "the second adoption has no more rows", 1, illegal, |r| {
            let first = r.adopt(24, None, |p| p);
            r.adopt(24, Some(first), |p| p);
        }),
    ]
}

/// Exports recorded, well and badly.
fn exports() -> Vec<Change> {
    let illegal: &[&str] = &["illegal_transition"];
    vec![
        (
            "valid/exports_recorded",
            "one batch kept in a directory, one in a bucket with a lock, one begun",
            0,
            &[],
            |r| {
                r.export(record::STARTED, 1, |p| p);
                r.export(record::COMPLETED, 1, |p| p);
                r.export(record::STARTED, 2, |p| p);
                let lock = Object::new()
                    .with("legal_hold", ledger_engine::json::Value::Bool(true))
                    .with("mode", "COMPLIANCE")
                    .with("private_retain_until_us", 1_900_000_000_000_000)
                    .with("retain_until_us", 2_000_000_000_000_000);
                r.export(record::COMPLETED, 2, |p| p.with("lock", lock).with("manifest_version", "v2"));
                r.export(record::STARTED, 3, |p| p);
                r.checkpoint(3);
            },
        ),
        ("broken/export_of_what_follows", "an export of entries after its own record", 1, illegal, |r| {
            let beyond = Object::new().with("from", 0).with("to", r.size() as i64 + 1);
            r.export(record::STARTED, 1, |p| p.with("ranges", vec![beyond.into()]));
        }),
        ("broken/export_backwards", "a range that ends before it begins", 1, illegal, |r| {
            let backwards = Object::new().with("from", 2).with("to", 1);
            r.export(record::STARTED, 1, |p| p.with("ranges", vec![backwards.into()]));
        }),
        ("broken/export_of_no_chain", "a range for no chain", 1, illegal, |r| {
            r.export(record::STARTED, 1, |p| p.with("ranges", Vec::new()));
        }),
        ("broken/export_without_digest", "completed, and no manifest is named", 1, illegal, |r| {
            r.export(record::COMPLETED, 1, |mut p| {
                p.remove("manifest_sha256");
                p
            });
        }),
        ("broken/export_locked_otherwise", "a lock of a mode that there is not", 1, illegal, |r| {
            let lock = Object::new()
                .with("legal_hold", ledger_engine::json::Value::Bool(false))
                .with("mode", "NONE")
                .with("private_retain_until_us", 1)
                .with("retain_until_us", 1);
            r.export(record::COMPLETED, 1, |p| p.with("lock", lock));
        }),
        ("valid/restored", "a ledger that goes on after it was restored, and once more", 0, &[], |r| {
            r.restored(r.size(), 3);
            r.export(record::STARTED, 1, |p| p.with("tables", ledger_engine::json::Value::Bool(true)));
            r.restored(r.size(), r.size());
            r.checkpoint(3);
        }),
        ("broken/restored_from_the_future", "restored with entries that come after it", 1, illegal, |r| {
            r.restored(r.size() + 1, 3);
        }),
        (
            "broken/restored_without_what_was_signed",
            "restored to less than a checkpoint that was known",
            1,
            illegal,
            |r| {
                r.restored(r.size() - 1, r.size());
            },
        ),
        ("broken/export_of_another_type", "an event that the stream does not have", 1, illegal, |r| {
            r.export("audit_export.lost", 1, |p| p);
        }),
    ]
}

/// What is done to a ledger: name, what it is, exit status, findings, steps.
type Change = (&'static str, &'static str, u8, &'static [&'static str], fn(&Registrar<'_>));

fn changes_of_keys() -> Vec<Change> {
    use Purpose::{Commit, Export};
    vec![
        ("valid/keys_rotated", "commit and checkpoint keys rotated, an export key enrolled and revoked", 0, &[], |r| {
            r.rotate_all();
            r.revoke(Export, 14, None, 12);
            r.checkpoint(13);
        }),
        (
            "valid/key_compromised",
            "the commit key was in other hands from entry 9 on: entries from there are not covered",
            2,
            &[],
            |r| {
                r.enrol(Commit, 15, 2);
                r.revoke(Commit, 2, Some(9), 15);
            },
        ),
        ("valid/key_for_emergencies", "an emergency key is enrolled, and signs the next commit", 0, &[], |r| {
            r.enrol_for_emergencies(Commit, 12, "kept in the safe for the day when the service is away", 2);
            r.revoke(Commit, 12, None, 12);
        }),
        ("broken/key_used_after_rotation", "the old commit key signs after its cut", 1, &["kid_not_valid"], |r| {
            let first = r.size() + 1;
            r.rotate_all();
            r.sign_with(first, 2);
        }),
        (
            "broken/key_used_before_enrolment",
            "a commit before the rotation is signed by the new key",
            1,
            &["kid_unknown"],
            |r| {
                let first = r.size() - 1;
                r.rotate_all();
                r.sign_with(first, 12);
            },
        ),
        (
            "broken/checkpoint_by_retired_key",
            "the old checkpoint key signs beyond its cut",
            1,
            &["kid_not_valid"],
            |r| {
                r.rotate_all();
                r.checkpoint(3);
            },
        ),
        ("broken/key_for_emergencies_unjustified", "an empty justification", 1, &["registry_invalid"], |r| {
            r.enrol_for_emergencies(Commit, 14, "", 2);
        }),
        ("broken/key_without_possession", "the incoming key does not sign", 1, &["registry_invalid"], |r| {
            let action = Action::Enrol { key: key(Export, 14).key().clone(), justification: None };
            r.govern(&action, 2, (GOVERNANCE_SEED, GOVERNANCE_SEED, None));
        }),
        ("broken/key_possessed_by_another", "another key signs for the incoming one", 1, &["registry_invalid"], |r| {
            let action = Action::Enrol { key: key(Export, 14).key().clone(), justification: None };
            r.govern(&action, 2, (GOVERNANCE_SEED, GOVERNANCE_SEED, Some((Export, 15))));
        }),
        ("broken/key_admitted_by_stranger", "not the governance key signs", 1, &["registry_invalid"], |r| {
            let action = Action::Enrol { key: key(Export, 14).key().clone(), justification: None };
            r.govern(&action, 2, (GOVERNANCE_SEED, 9, Some((Export, 14))));
        }),
        (
            "broken/key_admitted_by_no_authority",
            "a kid that is not enrolled admits a key",
            1,
            &["registry_invalid"],
            |r| {
                let action = Action::Enrol { key: key(Export, 14).key().clone(), justification: None };
                r.govern(&action, 2, (9, 9, Some((Export, 14))));
            },
        ),
        ("broken/key_enrolled_twice", "a public key gets a second kid", 1, &["registry_invalid"], |r| {
            r.enrol(Export, 2, 2)
        }),
        (
            "broken/key_rotated_to_another_purpose",
            "a commit key is rotated to an export key",
            1,
            &["registry_invalid"],
            |r| {
                r.rotate((Commit, 2), (Export, 14), r.size() + 1, 2);
            },
        ),
        ("broken/key_cut_too_late", "the cut lies beyond the entry itself", 1, &["registry_invalid"], |r| {
            r.rotate((Commit, 2), (Commit, 12), r.size() + 2, 2);
        }),
        ("broken/key_retired_twice", "a key is revoked after it was rotated away", 1, &["registry_invalid"], |r| {
            r.rotate_all();
            r.revoke(Commit, 2, None, 12);
        }),
        (
            "broken/key_change_within_a_commit",
            "a commit goes on after a change of keys",
            1,
            &["registry_invalid"],
            |r| {
                let first = r.size();
                r.enrol(Export, 14, 2);
                r.enrol(Export, 16, 2);
                let rest = format!("WHERE first_index > {first}");
                let merge = format!(
                    "DELETE FROM commits {rest}; DELETE FROM commit_signatures {rest}; UPDATE commits SET size = 2 WHERE first_index = {first}"
                );
                r.db.execute_batch(&merge).unwrap();
                sign_again(r.db, r.id);
            },
        ),
    ]
}

/// Seeds of keys that sign documents.
const LICENCE_SEED: u8 = 20;
const FINANCE_SEED: u8 = 21;
const KERNEL_SEED: u8 = 23;
const PROOF_SEED: u8 = 24;
/// The order that was paid and not settled.
const ORDER_PAID: &str = "aacdbefdc63bd18f5e60d6bfc2c17739";
/// The id under which finance knows the payment.
const PROOF_ID: &str = "lp-2";

/// The RSA key in `fixtures/keys`, made by openssl.
fn rsa() -> PrivateKey {
    PrivateKey::parse(include_str!("../../fixtures/keys/finance-rsa.pem")).unwrap()
}

fn rsa_key(purpose: Purpose) -> Key {
    Key::named(purpose, rsa().public_key().unwrap())
}

/// An order that was paid and not settled.
struct Paid {
    id: CaseId,
    buyer: String,
    total: Money,
}

impl Registrar<'_> {
    fn paid(&self) -> Paid {
        let row = "SELECT order_id, buyer, amount, currency, scale FROM orders WHERE status = 'paid' ORDER BY idx DESC LIMIT 1";
        let paid = |r: &rusqlite::Row<'_>| {
            let total = Money { amount: r.get(2)?, currency: r.get(3)?, scale: r.get(4)? };
            Ok(Paid { id: CaseId::parse(&r.get::<_, String>(0)?).unwrap(), buyer: r.get(1)?, total })
        };
        self.db.query_row(row, [], paid).unwrap()
    }

    fn enrol_rsa(&self, purpose: Purpose, signature: impl FnOnce(&[u8]) -> Vec<u8>) {
        let action = Action::Enrol { key: rsa_key(purpose), justification: None };
        self.govern_with(&action, 2, (GOVERNANCE_SEED, GOVERNANCE_SEED), |statement| Some(signature(statement)));
    }

    /// Appends an event of the paid order, and to the read model what follows from it.
    fn order_event(&self, event_type: &str, status: &str, payload: Object) {
        let order = self.paid_or_settled();
        let stream = format!("order-{order}");
        self.append(&stream, event_type, "service:market", payload, 2);
        let update = "UPDATE orders SET status = ?1, revision = revision + 1, \
             updated_at_us = (SELECT max(recorded_at_us) FROM entries) WHERE order_id = ?2";
        self.db.execute(update, params![status, order]).unwrap();
    }

    fn paid_or_settled(&self) -> String {
        let row = "SELECT order_id FROM orders WHERE status IN ('paid', 'settled') ORDER BY idx DESC LIMIT 1";
        self.db.query_row(row, [], |r| r.get(0)).unwrap()
    }

    /// Settles the paid order, with the signature of finance if there is one.
    fn settle(&self, finance: Option<FinanceSignature>) {
        let mut payload = Object::new().with("ledger_proof_id", PROOF_ID);
        payload.set_some("finance_signature", finance.map(|f| f.to_value()));
        self.order_event("order.settled", "settled", payload);
        let update = "UPDATE orders SET ledger_proof_id = ?1 WHERE ledger_proof_id IS NULL AND status = 'settled'";
        self.db.execute(update, [PROOF_ID]).unwrap();
    }

    fn finance(&self, signer: &LocalSigner, total: &Money) -> FinanceSignature {
        let signature = signer.signature(&finance::statement(self.paid().id, PROOF_ID, total)).to_vec();
        FinanceSignature { alg: Algorithm::Ed25519, kid: signer.key().kid.clone(), signature }
    }

    fn terms(&self, order: &Paid, kid: &str) -> Terms {
        Terms {
            order_id: order.id,
            sku_id: "s".into(),
            buyer_id: order.buyer.clone(),
            scope: "standard".into(),
            expires_at_us: Some(1_900_000_000_000_000),
            issued_at_us: 1_795_000_000_500_000,
            ledger_id: self.id,
            signer_kid: kid.into(),
        }
    }

    /// Issues a licence of the paid order, signed by whoever holds the key, as far as the two functions leave that.
    fn license(
        &self,
        (purpose, seed): (Purpose, u8),
        terms: impl FnOnce(Terms) -> Terms,
        text: impl FnOnce(String) -> String,
    ) {
        let order = self.paid();
        self.settle(None);
        let (payload, _) = self.licence_payload(&order, &key(purpose, seed), terms, text);
        self.order_event("license.issued", "licensed", payload);
        let update = "UPDATE orders SET license_index = (SELECT max(idx) FROM entries) WHERE order_id = ?1";
        self.db.execute(update, [order.id.to_string()]).unwrap();
        let insert = "INSERT INTO licences SELECT 0, max(idx), ?1, ?2, 's', ?3 FROM entries";
        let id = order.id.to_string();
        self.db.execute(insert, params![format!("license-{id}"), id, order.buyer]).unwrap();
    }

    fn licence_payload(
        &self,
        order: &Paid,
        signer: &LocalSigner,
        terms: impl FnOnce(Terms) -> Terms,
        text: impl FnOnce(String) -> String,
    ) -> (Object, Licence) {
        let terms = terms(self.terms(order, &signer.key().kid));
        let message = licence::statement(&self.id, &terms.digest());
        let licence = Licence { terms, signature: signer.signature(&message) };
        let payload = Object::new()
            .with("license_id", format!("license-{}", order.id))
            .with("expires_at", 1_900_000_000_000_000_i64)
            .with("license", document(&text(licence.to_text())));
        (payload, licence)
    }

    /// A licence that the rules refuse: the read model stays as it is.
    fn license_refused(&self, terms: impl FnOnce(Terms) -> Terms, text: impl FnOnce(String) -> String) {
        let order = self.paid();
        self.enrol(Purpose::Licence, LICENCE_SEED, 2);
        self.settle(None);
        let (payload, _) = self.licence_payload(&order, &key(Purpose::Licence, LICENCE_SEED), terms, text);
        self.append(&format!("order-{}", order.id), "license.issued", "service:market", payload, 2);
    }
}

impl Registrar<'_> {
    /// Buys the SKU that has a manifest.
    fn buy(&self) {
        let (stream, price) =
            (format!("order-{ORDER_BOUGHT}"), Money { amount: 990, currency: "EUR".into(), scale: 2 });
        let created = Object::new()
            .with("order_id", ORDER_BOUGHT)
            .with("sku_id", SKU)
            .with("sku_revision", 1)
            .with("buyer", "p-7")
            .with("total", price.to_value())
            .with("delivery_mode", "marketplace-managed");
        self.append(&stream, "order.created", "service:market", created, 2);
        let insert = "INSERT INTO orders SELECT 0, max(idx), ?1, 'paid', ?2, 'p-7', 990, 'EUR', 2, 0, 'marketplace-managed', \
             NULL, NULL, NULL, 0, 2, max(recorded_at_us), max(recorded_at_us) FROM entries";
        let captured = Object::new().with("provider", "p").with("payment_id", "7").with("total", price.to_value());
        self.db.execute(insert, [ORDER_BOUGHT, SKU]).unwrap();
        self.append(&stream, "payment.captured", "service:market", captured, 2);
        let update = "UPDATE orders SET updated_at_us = (SELECT max(recorded_at_us) FROM entries) WHERE order_id = ?1";
        self.db.execute(update, [ORDER_BOUGHT]).unwrap();
    }

    /// Delivers the order with a proof, as far as the functions leave that. `allowed`: by the rules of deliveries.
    fn deliver(
        &self,
        (purpose, seed): (Purpose, u8),
        plain: Hash,
        terms: impl FnOnce(ProofTerms) -> ProofTerms,
        text: impl FnOnce(String) -> String,
        allowed: bool,
    ) {
        self.enrol(Purpose::Kernel, KERNEL_SEED, 2);
        let (manifest_sha256, manifest_signature_id) =
            self.list_signed((Purpose::Kernel, KERNEL_SEED), &manifest(), manifest(), true);
        self.buy();
        let order = self.paid();
        self.settle(None);
        let id = order.id.to_string();
        self.order_event("license.issued", "licensed", Object::new().with("license_id", format!("license-{id}")));
        let update =
            "UPDATE orders SET license_index = (SELECT max(idx) FROM entries), deliveries = 1 WHERE order_id = ?1";
        self.db.execute(update, [&id]).unwrap();
        let insert = "INSERT INTO licences SELECT 0, max(idx), ?1, ?2, ?4, ?3 FROM entries";
        self.db.execute(insert, params![format!("license-{id}"), id, order.buyer, SKU]).unwrap();
        let stream = Stream::Delivery(order.id, 1).to_string();
        let sealed = Hash([0x52; 32]);
        let requested = Object::new()
            .with("delivery_id", stream.as_str())
            .with("order_id", id.as_str())
            .with("n", 1)
            .with("mode", "marketplace-managed");
        self.append(&stream, "delivery.requested", "service:market", requested, 2);
        let insert = "INSERT INTO deliveries SELECT 0, max(idx), ?1, ?2, 1, 'encrypted', 'marketplace-managed', NULL, ?3, ?4, NULL, NULL, 0, 2, 0 \
             FROM entries";
        self.db.execute(insert, params![stream, id, plain.to_hex(), sealed.to_hex()]).unwrap();
        let encrypted = Object::new()
            .with("algorithm", "AES256_GCM_HKDF_1MB")
            .with("artifact_sha256", plain.to_hex())
            .with("ciphertext_sha256", sealed.to_hex());
        self.append(&stream, "delivery.encrypted", "service:market", encrypted, 2);
        let signer = key(purpose, seed);
        let terms = terms(ProofTerms {
            order_id: order.id,
            n: 1,
            sku_id: SKU.into(),
            buyer_id: order.buyer.clone(),
            delivery_mode: "marketplace-managed".into(),
            artifact: (plain, 5),
            ciphertext: (sealed, 61),
            manifest_sha256,
            manifest_signature_id,
            ledger_proof_id: PROOF_ID.into(),
            encryption: Encryption {
                algorithm: "AES256_GCM_HKDF_1MB".into(),
                key_algorithm: "RSA-OAEP-SHA256".into(),
                encrypted_key: vec![0x55; 256],
                key_fingerprint: Hash([0x56; 32]),
                key_source: Some("file:5757575757575757".into()),
            },
            supersedes: None,
            issued_at_us: 1_795_000_000_500_000,
            ledger_id: self.id,
            signer_kid: signer.key().kid.clone(),
        });
        let message = delivery_proof::statement(&self.id, &terms.digest());
        let proof = DeliveryProof { terms, signature: signer.signature(&message) };
        let ready = Object::new()
            .with("proof_id", format!("proof-{id}-1"))
            .with("delivery_proof", document(&text(proof.to_text())));
        self.append(&stream, "delivery.ready", "service:market", ready, 2);
        if allowed {
            let update = "UPDATE deliveries SET status = 'ready', proof_id = ?2, revision = 3, \
                 proof_index = (SELECT max(idx) FROM entries) WHERE delivery_id = ?1";
            self.db.execute(update, params![stream, format!("proof-{id}-1")]).unwrap();
            let insert = "INSERT INTO delivery_proofs SELECT 0, max(idx), ?1, ?2, ?3 FROM entries";
            self.db.execute(insert, params![format!("proof-{id}-1"), id, stream]).unwrap();
        }
        let at = if allowed {
            "max(recorded_at_us)"
        } else {
            "max(recorded_at_us) FILTER (WHERE event_type <> 'delivery.ready')"
        };
        let update = format!("UPDATE deliveries SET updated_at_us = (SELECT {at} FROM entries) WHERE delivery_id = ?1");
        self.db.execute(&update, [stream]).unwrap();
    }
}

/// The id of a SKU that is listed with a manifest.
const SKU: &str = "sku-7";
/// The order of it.
const ORDER_BOUGHT: &str = "5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b";
/// SHA-256 of its artifact.
const ARTIFACT: Hash = Hash([0x5e; 32]);

/// What the Kernel signs of that SKU.
fn manifest() -> Object {
    let artifact = Object::new()
        .with("artifact_id", "font-files")
        .with("artifact_url", "https://artifacts.example.org/font-files.zip")
        .with("sha256", ARTIFACT.to_hex());
    let tags: Vec<ledger_json::Value> = vec!["serif".into(), "größe".into()];
    let price = Money { amount: 990, currency: "EUR".into(), scale: 2 };
    Object::new()
        .with("artifacts", vec![artifact.into()])
        .with("author", Object::new().with("id", "author-7").with("name", "A. Author"))
        .with("checksum", "crc32:00000000")
        .with("id", SKU)
        .with("license", Object::new().with("terms", "https://example.org/terms").with("type", "standard"))
        .with("metadata", Object::new().with("price", price.to_value()).with("tags", tags).with("weight", 400))
        .with("title", "A font with a manifest")
        .with("version", "1.2.0")
}

impl Registrar<'_> {
    /// Lists the SKU with a manifest, signed over `statement`; and what follows from it in the read model, if it is allowed. Gives the
    /// digest of the manifest.
    fn list(&self, kid: &str, signature: String, manifest: Object, allowed: bool) -> Hash {
        let signature =
            Object::new().with("signature", signature).with("signer_kid", kid).with("ts", "2026-11-25T10:00:00Z");
        let manifest = String::from_utf8(manifest.with("manifest_signature", signature).to_canonical()).unwrap();
        // As somebody else would lay it out.
        let text = manifest.replace("\",\"", "\",\n \"");
        let price = Money { amount: 990, currency: "EUR".into(), scale: 2 };
        let payload = Object::new()
            .with("sku_id", SKU)
            .with("title", "A font with a manifest")
            .with("price", price.to_value())
            .with("author_id", "author-7")
            .with("manifest", document(&text));
        let stream = Stream::Sku(CaseId::of_sku(SKU)).to_string();
        self.append(&stream, "sku.listed", "service:catalog", payload, 2);
        if allowed {
            let insert = "INSERT INTO skus SELECT 0, max(idx), ?1, 'listed', 'A font with a manifest', 990, 'EUR', 2, 'author-7', '1.2.0', ?2, ?3, \
                 max(idx), 1 FROM entries";
            let digest = sha256(&[text.as_bytes()]).to_hex();
            self.db.execute(insert, params![SKU, "serif\ngröße", digest]).unwrap();
        }
        sha256(&[text.as_bytes()])
    }

    /// The same, signed by an Ed25519 key over what is given. Gives the digests of the manifest and of its signature.
    fn list_signed(
        &self,
        (purpose, seed): (Purpose, u8),
        signed: &Object,
        listed: Object,
        allowed: bool,
    ) -> (Hash, Hash) {
        let signer = key(purpose, seed);
        let signature = signer.signature(&signed.to_canonical());
        let manifest = self.list(&signer.key().kid, to_hex(&signature), listed, allowed);
        (manifest, sha256(&[&signature]))
    }
}

/// Licences, signatures of finance, manifests.
fn documents() -> Vec<Change> {
    use Purpose::{Commit, DeliveryProof, Export, Finance, Kernel, Licence};
    const PROVER: (Purpose, u8) = (DeliveryProof, PROOF_SEED);
    const KERNEL: (Purpose, u8) = (Kernel, KERNEL_SEED);
    const OURS: (Purpose, u8) = (Licence, LICENCE_SEED);
    let (invalid, illegal): (&[&str], &[&str]) = (&["document_signature_invalid"], &["illegal_transition"]);
    fn same<T>(value: T) -> T {
        value
    }
    vec![
        ("valid/licence_signed", "a licence, and its key rotated afterwards", 0, &[], |r| {
            r.enrol(Licence, LICENCE_SEED, 2);
            r.license(OURS, same, same);
            r.rotate(OURS, (Licence, 22), r.size() + 1, 2);
            r.checkpoint(3);
        }),
        ("valid/finance_ed25519", "finance signed with Ed25519", 0, &[], |r| {
            r.enrol(Finance, FINANCE_SEED, 2);
            r.settle(Some(r.finance(&key(Finance, FINANCE_SEED), &r.paid().total)));
        }),
        ("valid/finance_rsa_pkcs1", "finance signed with RSA, PKCS#1 v1.5", 0, &[], |r| {
            r.enrol_rsa(Finance, |statement| rsa().sign(statement).unwrap());
            let signature = rsa().sign(&finance::statement(r.paid().id, PROOF_ID, &r.paid().total)).unwrap();
            r.settle(Some(FinanceSignature { alg: Algorithm::RsaSha256, kid: rsa_key(Finance).kid, signature }));
        }),
        ("valid/finance_rsa_pss", "finance signed with RSA, PSS (fixtures/keys/finance-rsa-pss.hex)", 0, &[], |r| {
            r.enrol_rsa(Finance, |statement| rsa().sign(statement).unwrap());
            let statement = finance::statement(r.paid().id, PROOF_ID, &r.paid().total);
            let signed = include_str!("../../fixtures/keys/finance-rsa-pss.hex").trim();
            let finance = FinanceSignature::from_text(&rsa_key(Finance).kid, signed).unwrap();
            let good = rsa().public_key().unwrap().verify(&statement, &finance.signature);
            assert!(good, "sign again, see fixtures/README.md: {}", String::from_utf8_lossy(&statement));
            r.settle(Some(finance));
        }),
        ("broken/licence_signature_flipped", "one digit of a licence's signature", 1, invalid, |r| {
            r.enrol(Licence, LICENCE_SEED, 2);
            r.license(OURS, same, |text| {
                let at = text.find(r#""signature":""#).unwrap() + 13;
                let other = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
                format!("{}{other}{}", &text[..at], &text[at + 1..])
            });
        }),
        ("broken/licence_of_another_ledger", "a licence that names another ledger", 1, invalid, |r| {
            r.enrol(Licence, LICENCE_SEED, 2);
            r.license(OURS, |terms| Terms { ledger_id: Hash([7; 32]), ..terms }, same);
        }),
        ("broken/licence_by_key_of_another_purpose", "a licence by an export key", 1, &["kid_wrong_purpose"], |r| {
            r.enrol(Export, 14, 2);
            r.license((Export, 14), same, same);
        }),
        ("broken/licence_by_key_enrolled_later", "a licence before its key", 1, &["kid_unknown"], |r| {
            r.license(OURS, same, same);
            r.enrol(Licence, LICENCE_SEED, 2);
        }),
        ("broken/licence_by_stranger", "a licence by a key that was never enrolled", 1, &["kid_unknown"], |r| {
            r.license(OURS, same, same);
        }),
        ("broken/licence_by_retired_key", "a licence by a key that was revoked before", 1, &["kid_not_valid"], |r| {
            r.enrol(Licence, LICENCE_SEED, 2);
            r.revoke(Licence, LICENCE_SEED, None, 2);
            r.license(OURS, same, same);
        }),
        ("broken/licence_of_another_order", "a licence of another order", 1, illegal, |r| {
            r.license_refused(|terms| Terms { order_id: CaseId([7; 16]), ..terms }, same);
        }),
        ("broken/licence_of_another_buyer", "a licence for another buyer", 1, illegal, |r| {
            r.license_refused(|terms| Terms { buyer_id: "p-00".into(), ..terms }, same);
        }),
        ("broken/licence_of_another_sku", "a licence to another SKU", 1, illegal, |r| {
            r.license_refused(|terms| Terms { sku_id: "t".into(), ..terms }, same);
        }),
        ("broken/licence_of_another_expiry", "a licence without end, in an entry with one", 1, illegal, |r| {
            r.license_refused(|terms| Terms { expires_at_us: None, ..terms }, same);
        }),
        ("broken/licence_not_canonical", "a licence with white space", 1, illegal, |r| {
            r.license_refused(same, |text| text.replace("{\"buyer_id\"", "{ \"buyer_id\""));
        }),
        ("valid/manifest_ed25519", "a SKU with a manifest, and the Kernel's key revoked afterwards", 0, &[], |r| {
            r.enrol(Kernel, KERNEL_SEED, 2);
            r.list_signed(KERNEL, &manifest(), manifest(), true);
            r.revoke(Kernel, KERNEL_SEED, None, 2);
        }),
        ("valid/manifest_rsa", "a manifest signed with RSA, in base64", 0, &[], |r| {
            r.enrol_rsa(Kernel, |statement| rsa().sign(statement).unwrap());
            let signature = rsa().sign(&manifest().to_canonical()).unwrap();
            r.list(&rsa_key(Kernel).kid, STANDARD.encode(signature), manifest(), true);
        }),
        ("broken/manifest_changed", "the manifest is not what was signed", 1, invalid, |r| {
            r.enrol(Kernel, KERNEL_SEED, 2);
            r.list_signed(KERNEL, &manifest(), manifest().with("checksum", "crc32:1"), true);
        }),
        ("broken/manifest_kid_unknown", "the Kernel's key was never enrolled", 1, &["kid_unknown"], |r| {
            r.list_signed(KERNEL, &manifest(), manifest(), true);
        }),
        ("broken/manifest_kid_wrong_purpose", "finance signs for the Kernel", 1, &["kid_wrong_purpose"], |r| {
            r.enrol(Finance, FINANCE_SEED, 2);
            r.list_signed((Finance, FINANCE_SEED), &manifest(), manifest(), true);
        }),
        ("broken/manifest_by_revoked_key", "signed after the Kernel's key was revoked", 1, &["kid_not_valid"], |r| {
            r.enrol(Kernel, KERNEL_SEED, 2);
            r.revoke(Kernel, KERNEL_SEED, None, 2);
            r.list_signed(KERNEL, &manifest(), manifest(), true);
        }),
        ("broken/manifest_of_another_sku", "a manifest that was signed for another SKU", 1, illegal, |r| {
            r.enrol(Kernel, KERNEL_SEED, 2);
            let other = manifest().with("id", "sku-8");
            r.list_signed(KERNEL, &other.clone(), other, false);
        }),
        ("broken/manifest_of_another_price", "a manifest that names another price", 1, illegal, |r| {
            r.enrol(Kernel, KERNEL_SEED, 2);
            let price = Money { amount: 1, currency: "EUR".into(), scale: 2 };
            let other = manifest().with("metadata", Object::new().with("price", price.to_value()));
            r.list_signed(KERNEL, &other.clone(), other, false);
        }),
        ("broken/manifest_without_artifacts", "a manifest that names no artifact", 1, illegal, |r| {
            r.enrol(Kernel, KERNEL_SEED, 2);
            let other = manifest().with("artifacts", Vec::<ledger_json::Value>::new());
            r.list_signed(KERNEL, &other.clone(), other, false);
        }),
        ("valid/delivery_proof", "a delivery with its signed proof", 0, &[], |r| {
            r.enrol(DeliveryProof, PROOF_SEED, 2);
            r.deliver(PROVER, ARTIFACT, same, same, true);
        }),
        ("broken/delivery_proof_signature_flipped", "a delivery proof signed over something else", 1, invalid, |r| {
            r.enrol(DeliveryProof, PROOF_SEED, 2);
            let flip = |text: String| {
                let at = text.find("\"signature\":\"").unwrap() + 13;
                let digit = if &text[at..=at] == "0" { "1" } else { "0" };
                format!("{}{digit}{}", &text[..at], &text[at + 1..])
            };
            r.deliver(PROVER, ARTIFACT, same, flip, true);
        }),
        (
            "broken/delivery_proof_by_licence_key",
            "the licence key signs a delivery proof",
            1,
            &["kid_wrong_purpose"],
            |r| {
                r.enrol(Licence, LICENCE_SEED, 2);
                r.deliver(OURS, ARTIFACT, same, same, true);
            },
        ),
        ("broken/delivery_proof_of_another_ledger", "a delivery proof that names another ledger", 1, invalid, |r| {
            r.enrol(DeliveryProof, PROOF_SEED, 2);
            r.deliver(PROVER, ARTIFACT, |terms| ProofTerms { ledger_id: Hash([9; 32]), ..terms }, same, true);
        }),
        ("broken/delivery_proof_of_another_file", "a delivery proof of another artifact", 1, illegal, |r| {
            r.enrol(DeliveryProof, PROOF_SEED, 2);
            r.deliver(PROVER, ARTIFACT, |terms| ProofTerms { artifact: (Hash([0x50; 32]), 5), ..terms }, same, false);
        }),
        (
            "broken/delivery_proof_of_another_manifest",
            "another manifest than the one that was bought by",
            1,
            illegal,
            |r| {
                r.enrol(DeliveryProof, PROOF_SEED, 2);
                r.deliver(
                    PROVER,
                    ARTIFACT,
                    |terms| ProofTerms { manifest_sha256: Hash([8; 32]), ..terms },
                    same,
                    false,
                );
            },
        ),
        (
            "broken/delivery_proof_of_an_artifact_of_nobody",
            "a delivery of what the manifest does not name",
            1,
            illegal,
            |r| {
                r.enrol(DeliveryProof, PROOF_SEED, 2);
                r.deliver(PROVER, Hash([0x51; 32]), same, same, false);
            },
        ),
        ("broken/delivery_proof_of_another_buyer", "a delivery proof for another buyer", 1, illegal, |r| {
            r.enrol(DeliveryProof, PROOF_SEED, 2);
            r.deliver(PROVER, ARTIFACT, |terms| ProofTerms { buyer_id: "p-0".into(), ..terms }, same, false);
        }),
        (
            "broken/delivery_proof_superseding_none",
            "a first delivery proof that claims to replace one",
            1,
            illegal,
            |r| {
                r.enrol(DeliveryProof, PROOF_SEED, 2);
                let claim = |terms: ProofTerms| {
                    let supersedes = Some(format!("proof-{}-0", terms.order_id));
                    ProofTerms { supersedes, ..terms }
                };
                r.deliver(PROVER, ARTIFACT, claim, same, false);
            },
        ),
        ("broken/finance_over_another_amount", "finance signed one cent more", 1, invalid, |r| {
            r.enrol(Finance, FINANCE_SEED, 2);
            let total = r.paid().total;
            r.settle(Some(r.finance(&key(Finance, FINANCE_SEED), &Money { amount: total.amount + 1, ..total })));
        }),
        ("broken/finance_kid_unknown", "finance's key was never enrolled", 1, &["kid_unknown"], |r| {
            r.settle(Some(r.finance(&key(Finance, FINANCE_SEED), &r.paid().total)));
        }),
        ("broken/finance_kid_wrong_purpose", "the commit key signs for finance", 1, &["kid_wrong_purpose"], |r| {
            r.settle(Some(r.finance(&key(Commit, 2), &r.paid().total)));
        }),
        (
            "broken/finance_algorithm_mismatch",
            "an Ed25519 signature by the kid of an RSA key",
            1,
            &["algorithm_mismatch"],
            |r| {
                r.enrol_rsa(Finance, |statement| rsa().sign(statement).unwrap());
                let finance = r.finance(&key(Finance, FINANCE_SEED), &r.paid().total);
                r.settle(Some(FinanceSignature { kid: rsa_key(Finance).kid, ..finance }));
            },
        ),
        ("broken/key_rsa_of_ours", "an RSA key enrolled for commits", 1, &["registry_invalid"], |r| {
            r.enrol_rsa(Commit, |statement| rsa().sign(statement).unwrap());
        }),
        ("broken/key_rsa_possessed_by_another", "another key signs for the RSA key", 1, &["registry_invalid"], |r| {
            r.enrol_rsa(Finance, |statement| key(Finance, FINANCE_SEED).signature(statement).to_vec());
        }),
    ]
}

/// The target entry of most defects: a settlement, in the middle of its stream.
const SETTLED: &str = "(SELECT min(rowid) FROM entries WHERE event_type = 'order.settled')";

/// An event id follows from the ledger's: all 21 after the genesis are those of another ledger.
const GENESIS_OF_NO_LEDGER: &[&str] = &{
    let mut codes = ["event_id_mismatch"; 23];
    (codes[21], codes[22]) = ("genesis_invalid", "ledger_id_mismatch");
    codes
};

/// Defect, what it is, the findings, the SQL, and whether a writer with the keys did it.
type Defect = (&'static str, &'static str, &'static [&'static str], String, bool);

fn defects() -> Vec<Defect> {
    let entry = |set: &str| format!("UPDATE entries SET {set} WHERE rowid = {SETTLED}");
    let flip = |column: &str| format!("{column} = CAST(zeroblob(32) AS BLOB)");
    let body = |old: &str, new: &str| format!("body = CAST(replace(CAST(body AS TEXT), '{old}', '{new}') AS BLOB)");
    let last = "(SELECT max(idx) FROM entries WHERE chain = 0)";
    vec![
        ("body_rewritten", "the settlement names another finance proof", &["body_hash_mismatch"], entry(&body("\"lp\"", "\"xx\"")), false),
        ("body_hash_rewritten", "body_hash is zeros", &["body_hash_mismatch"], entry(&flip("body_hash")), false),
        ("prev_hash_swapped", "prev_hash is the parent's", &["prev_hash_mismatch"], entry("prev_hash = zeroblob(32)"), false),
        ("entry_hash_rewritten", "the stored entry hash is zeros", &["entry_hash_mismatch"], entry(&flip("entry_hash")), false),
        ("event_type_rewritten", "order.settled became order.cancelled", &["entry_hash_mismatch"], entry("event_type = 'order.cancelled'"), false),
        ("time_rewritten", "recorded one second later", &["entry_hash_mismatch"], entry("recorded_at_us = recorded_at_us + 1000000"), false),
        ("event_id_rewritten", "another event id", &["event_id_mismatch"], entry("event_id = zeroblob(16)"), false),
        ("schema_version_unknown", "schema version 9", &["entry_undecodable"], entry("schema_version = 9"), false),
        ("parent_index_wrong", "the stored parent index points elsewhere", &["parent_index_mismatch"], entry("parent_index = 0"), false),
        ("entry_deleted", "an entry in the middle is gone", &["entry_missing"], format!("DELETE FROM entries WHERE rowid = {SETTLED}"), false),
        ("tail_truncated", "the last entry is gone", &["entry_missing"], format!("DELETE FROM entries WHERE chain = 0 AND idx = {last}"), false),
        ("genesis_deleted", "chain 0 has no genesis entry", &["entry_missing"], "DELETE FROM entries WHERE chain = 0 AND idx = 0".into(), false),
        ("chain_emptied", "chain 1 has no entry", &["entry_missing"], "DELETE FROM entries WHERE chain = 1".into(), false),
        ("ledger_id_rewritten", "the ledger row names another ledger", &["ledger_id_mismatch"], "UPDATE ledger SET ledger_id = zeroblob(32)".into(), false),
        ("private_document_rewritten", "a private document was changed", &["private_mismatch"], "UPDATE private_documents SET document = CAST(document || ' ' AS BLOB) WHERE rowid = (SELECT min(rowid) FROM private_documents)".into(), false),
        ("private_document_moved", "a private document lies at an entry that has none", &["private_unexpected"], "UPDATE private_documents SET idx = 0, chain = 0 WHERE rowid = (SELECT min(rowid) FROM private_documents)".into(), false),
        ("commit_deleted", "a commit row is gone", &["commit_tiling"], "DELETE FROM commits WHERE chain = 0 AND first_index = 2".into(), false),
        ("commit_grown", "a commit claims one entry more", &["commit_tiling"], "UPDATE commits SET size = size + 1 WHERE chain = 0 AND first_index = 2".into(), false),
        ("commit_unsigned", "a commit lost its signature", &["commit_unsigned"], "DELETE FROM commit_signatures WHERE chain = 0 AND first_index = 2".into(), false),
        ("signature_flipped", "one bit of a signature", &["commit_signature_invalid"], "UPDATE commit_signatures SET signature = CAST(x'00' || substr(signature, 2) AS BLOB) WHERE chain = 0 AND first_index = 2".into(), false),
        ("kid_unknown", "a signature by a key that was never enrolled", &["kid_unknown"], "UPDATE commit_signatures SET kid = 'commit-00000000' WHERE chain = 0 AND first_index = 2".into(), false),
        ("kid_wrong_purpose", "a commit signed by the checkpoint key's kid", &["kid_wrong_purpose"], format!("UPDATE commit_signatures SET kid = '{}' WHERE chain = 0 AND first_index = 2", LocalSigner::from_seed(Purpose::Checkpoint, &[3; 32]).key().kid), false),
        ("algorithm_unknown", "algorithm 2", &["algorithm_mismatch"], "UPDATE commit_signatures SET alg = 2 WHERE chain = 0 AND first_index = 2".into(), false),
        ("registry_from_the_future", "a commit names a registry that does not exist yet", &["registry_position_mismatch"], "UPDATE commits SET registry_size = 2 WHERE chain = 0 AND first_index = 2".into(), false),
        ("checkpoint_root_rewritten", "row and note disagree", &["checkpoint_mismatch"], "UPDATE checkpoints SET root = zeroblob(32) WHERE rowid = (SELECT min(rowid) FROM checkpoints)".into(), false),
        ("checkpoint_not_a_note", "the note is not a note", &["checkpoint_undecodable"], "UPDATE checkpoints SET note = 'x' WHERE rowid = (SELECT min(rowid) FROM checkpoints)".into(), false),
        ("head_rolled_back", "the head row is one entry short", &["chain_head_mismatch"], "UPDATE chain_heads SET size = size - 1 WHERE chain = 0".into(), false),
        ("stream_head_rewritten", "a stream head names another revision", &["stream_head_mismatch"], "UPDATE stream_heads SET revision = revision + 1 WHERE rowid = (SELECT max(rowid) FROM stream_heads)".into(), false),
        ("cursor_behind", "a cursor is behind", &["cursor_mismatch"], "UPDATE cursors SET size = size - 1 WHERE chain = 0 AND projection = 'skus'".into(), false),
        ("order_row_rewritten", "an order is marked paid in the read model", &["projection_mismatch"], "UPDATE orders SET status = 'paid' WHERE rowid = (SELECT min(rowid) FROM orders)".into(), false),
        ("idempotency_row_deleted", "an idempotency key was forgotten", &["projection_mismatch"], "DELETE FROM idempotency WHERE rowid = (SELECT min(rowid) FROM idempotency)".into(), false),
        ("chain_unknown", "a cursor of chain 9", &["chain_unknown"], "INSERT INTO cursors VALUES ('orders', 9, 0)".into(), false),
        ("commit_of_no_entries", "a commit claims no entries", &["commit_undecodable"], "UPDATE commits SET size = 0 WHERE chain = 0 AND first_index = 2".into(), false),
        ("checkpoint_beyond_tail", "a checkpoint was recorded over entries that are gone", &["checkpoint_beyond_tail"], "INSERT INTO checkpoints VALUES (0, 1000, zeroblob(32), NULL)".into(), false),
        ("checkpoint_of_another_history", "a checkpoint was recorded over another history", &["checkpoint_root_mismatch"], "INSERT INTO checkpoints VALUES (0, 2, zeroblob(32), NULL)".into(), false),
        ("tile_added", "a tile is stored before it is complete", &["tile_mismatch"], "INSERT INTO tiles VALUES (0, 0, 0, x'00')".into(), false),
        ("event_id_run_added", "a run of event ids is stored before it is complete", &["event_index_mismatch"], "INSERT INTO event_id_runs VALUES (0, 0, x'00')".into(), false),
        ("settled_unpaid", "a writer with the keys settles before payment", &["illegal_transition", "projection_mismatch", "projection_mismatch"], "UPDATE entries SET event_type = 'order.settled', body = (SELECT body FROM entries WHERE event_type = 'order.settled' LIMIT 1) WHERE rowid = (SELECT max(rowid) FROM entries WHERE event_type = 'payment.captured')".into(), true),
        ("time_runs_back", "a writer with the keys backdates an entry", &["projection_mismatch", "time_regression"], "UPDATE entries SET recorded_at_us = 1 WHERE rowid = (SELECT max(rowid) FROM entries WHERE event_type = 'payment.captured')".into(), true),
        ("revision_skipped", "a writer with the keys skips a revision", &["projection_mismatch", "revision_mismatch"], "UPDATE entries SET revision = 3 WHERE rowid = (SELECT max(rowid) FROM entries WHERE event_type = 'payment.captured')".into(), true),
        ("parent_hash_wrong", "a writer with the keys links a stream to nothing", &["parent_hash_mismatch"], format!("UPDATE entries SET parent_hash = x'{}' WHERE rowid = (SELECT max(rowid) FROM entries WHERE event_type = 'payment.captured')", to_hex(&WRONG_PARENT)), true),
        ("genesis_of_no_ledger", "the genesis says nothing of a ledger, and so gives another id, which every entry should have", GENESIS_OF_NO_LEDGER, "UPDATE entries SET body = CAST('{\"actor_id\":\"system\",\"payload\":{}}' AS BLOB) WHERE idx = 0".into(), true),
        ("body_not_canonical", "a writer with the keys stores white space", &["body_invalid", "projection_mismatch"], "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), '{\"actor_id\"', '{ \"actor_id\"') AS BLOB) WHERE event_type = 'sku.withdrawn'".into(), true),
        ("event_unknown", "a writer with the keys invents an event", &["illegal_transition", "projection_mismatch"], "UPDATE entries SET event_type = 'sku.gifted' WHERE event_type = 'sku.withdrawn'".into(), true),
        ("stream_unknown", "a writer with the keys invents a stream", &["projection_mismatch", "routing_mismatch"], "UPDATE entries SET stream = 'gifts', revision = 1 WHERE event_type = 'sku.withdrawn'".into(), true),
    ]
}

/// Opens a ledger's file and drops the triggers that refuse changes.
fn unguarded(file: &Path) -> Connection {
    let db = Connection::open(file).unwrap();
    let mut s = db.prepare("SELECT name FROM sqlite_master WHERE type = 'trigger'").unwrap();
    let triggers: Vec<String> = s.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect();
    drop(s);
    triggers.iter().for_each(|t| db.execute_batch(&format!("DROP TRIGGER {t}")).unwrap());
    db
}

/// Makes the vectors: name with folder, and the dump.
/// A ledger whose genesis names the one that it takes the place of.
async fn successor() -> (String, Value) {
    let head = |chain, size, checkpoint| TreeHead { chain, size, root: Hash([size as u8; 32]), checkpoint };
    let (ledger_id, origin) = (Hash([9; 32]), "ledger.example/old".to_owned());
    let text = Checkpoint { origin: Checkpoint::origin_of(&origin, &ledger_id, 0), size: 7, root: Hash([7; 32]) };
    let note = text.to_note([1; 32], vec![1; 64]).to_string();
    let restored = vec![head(0, 9, Some(note)), head(1, 4, None)];
    let newest = vec![head(0, 12, None)];
    let lost = Succession::lost_between(&restored, &newest);
    let statement = "three orders of the last night".to_owned();
    let succeeds = Some(Succession { ledger_id, origin, restored, newest, lost, statement });
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::create(dir.path(), SqliteOptions::default()).unwrap();
    let genesis = Genesis { succeeds, ..support::genesis(1) };
    let ledger = Ledger::create(support::config(std::sync::Arc::new(store)), genesis).await.unwrap();
    support::list_sku(&ledger, "s").await;
    let id = ledger.id();
    ledger.shutdown().await.unwrap();
    let db = Connection::open(dir.path().join("ledger.db")).unwrap();
    ("valid/successor".into(), dump(&db, "its genesis names a ledger that lost three entries", Some(id), 0, &[]))
}

async fn make() -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for (name, chains) in [("one_chain", 1), ("two_chains", 2)] {
        let dir = tempfile::tempdir().unwrap();
        let id = sample(dir.path(), chains).await;
        let db = Connection::open(dir.path().join("ledger.db")).unwrap();
        out.push((format!("valid/{name}"), dump(&db, "nothing is wrong", Some(id), 0, &[])));
        if chains == 1 {
            out.push((
                "valid/identity_not_proven".into(),
                dump(&db, "nothing is wrong, and no id is pinned", None, 2, &[]),
            ));
            db.execute_batch("DELETE FROM private_documents").unwrap();
            out.push(("valid/redacted".into(), dump(&db, "all private documents are withheld", Some(id), 0, &[])));
            let codes = ["ledger_id_mismatch"];
            out.push((
                "broken/another_ledger_pinned".into(),
                dump(&db, "another id is pinned", Some(Hash([1; 32])), 1, &codes),
            ));
        }
    }
    out.push(successor().await);
    // What a writer with the keys does is shown on one chain, where no chain.heads entry would have to be forged as well.
    let mut sources = Vec::new();
    for chains in [2, 1] {
        let dir = tempfile::tempdir().unwrap();
        let id = sample(dir.path(), chains).await;
        sources.push((id, std::fs::read(dir.path().join("ledger.db")).unwrap()));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    for (name, description, findings, sql, with_keys) in defects() {
        let (id, bytes) = &sources[usize::from(with_keys)];
        let id = *id;
        std::fs::write(&file, bytes).unwrap();
        let db = unguarded(&file);
        db.execute_batch(&sql).unwrap_or_else(|e| panic!("{name}: {e}"));
        if with_keys {
            sign_again(&db, id);
        }
        out.push((format!("broken/{name}"), dump(&db, description, Some(id), 1, findings)));
    }
    for (name, description, exit, findings, steps) in
        changes_of_keys().into_iter().chain(adoptions()).chain(exports()).chain(documents())
    {
        let (id, bytes) = &sources[1];
        std::fs::write(&file, bytes).unwrap();
        let db = unguarded(&file);
        steps(&Registrar { db: &db, id: *id });
        out.push((name.to_owned(), dump(&db, description, Some(*id), exit, findings)));
    }
    out
}

/// The example of FORMAT.md section 1, from the ledger in `fixtures/valid/one_chain.json`.
async fn example() -> String {
    use ledger_engine::hash::to_hex as hex;
    let dir = tempfile::tempdir().unwrap();
    let id = sample(dir.path(), 1).await;
    let store = ledger_engine::store::sqlite::SqliteStore::open(dir.path(), Default::default()).unwrap();
    let entries = ledger_engine::store::Store::entries(&store, 0, 0, 2).unwrap();
    let db = Connection::open(dir.path().join("ledger.db")).unwrap();
    let note: String = db.query_row("SELECT note FROM checkpoints ORDER BY size LIMIT 1", [], |r| r.get(0)).unwrap();
    let (kid, signature): (String, Vec<u8>) = db
        .query_row("SELECT kid, signature FROM commit_signatures WHERE first_index = 1", [], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .unwrap();
    let (genesis, entry) = (&entries[0], &entries[1]);
    let leaf = entry.header.leaf_hash();
    let statement = Statement {
        ledger_id: id,
        chain: 0,
        first_index: 1,
        size: 1,
        root: leaf,
        last_hash: entry.entry_hash,
        registry_size: 1,
        registry_head: genesis.entry_hash,
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    format!(
        "The ledger of `fixtures/valid/one_chain.json`, whose keys are the Ed25519 seeds 32 × 0x01 (governance), 0x02 (commit) and \
         0x03 (checkpoint). Its genesis body, entry 0 (one line):\n\n```json\n{}\n```\n\n```\nledger id   {id}\nentry hash  {}\n```\n\n\
         Entry 1, a SKU is listed. Body, its two hashes, the header's bytes (13 fields after the version, little-endian), and what follows \
         from them:\n\n```json\n{}\n```\n\n```\nbody_hash   {}\nbody_sha256 {}\nheader      {}\nentry hash  {}\nleaf        {leaf}\nevent id    {}\n```\n\n\
         Its commit holds this entry alone, so the root is the leaf. Statement and signature by `{kid}`:\n\n```\nstatement   {}\nsignature   {}\n```\n\n\
         The first checkpoint, a signed note:\n\n```\n{}```\n",
        text(&genesis.body),
        genesis.entry_hash,
        text(&entry.body),
        hex(&entry.header.body_hash),
        hex(&entry.header.body_sha256),
        hex(&entry.header.encode()),
        entry.entry_hash,
        hex(&entry.header.event_id),
        hex(&statement.to_bytes(ALG_ED25519, &kid)),
        hex(&signature),
        note,
    )
}

/// The example in FORMAT.md is what the engine writes.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_the_format_is_real() {
    let path = fixtures().parent().unwrap().join("FORMAT.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- example:begin -->\n", "<!-- example:end -->");
    let (head, rest) = page.split_once(begin).unwrap();
    let (found, tail) = rest.split_once(end).unwrap();
    let example = example().await;
    if std::env::var_os("LEDGER_BLESS").is_some() {
        std::fs::write(&path, format!("{head}{begin}{example}{end}{tail}")).unwrap();
    } else {
        assert_eq!(found, example);
    }
}

/// Findings of all expectations below a folder: codes as they are, or `kind row` of a legacy chain.
fn expected_below(folder: &Path, found: &mut BTreeSet<String>) {
    for file in std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()) {
        if file.is_dir() {
            expected_below(&file, found);
            continue;
        }
        let Ok(value) = serde_json::from_slice::<Value>(&std::fs::read(&file).unwrap()) else { continue };
        let legacy = file.strip_prefix(fixtures()).is_ok_and(|p| p.starts_with("broken/legacy"));
        let list = [&value["expect"]["findings"], &value["findings"], &value["notes"]];
        for text in list.into_iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str) {
            let kind = text.split(' ').next().unwrap_or_default();
            found.insert(if legacy { format!("legacy_{kind}") } else { kind.to_owned() });
        }
    }
}

/// A finding without a case in the corpus would be one that nobody has seen.
#[test]
fn every_code_has_a_case() {
    let mut found = BTreeSet::new();
    expected_below(&fixtures().join("broken"), &mut found);
    // Notes are no faults; tests of legacy reports read them.
    let notes = ["legacy_adoption_as_of", "legacy_adoption_registry", "legacy_outside_window"];
    let is_note = |code: &str| code.ends_with("_not_covered") || notes.contains(&code);
    let faults = audit_verify::Code::ALL.iter().map(|c| c.as_str()).filter(|code| !is_note(code));
    let missing: Vec<_> = faults.filter(|code| !found.contains(*code)).collect();
    assert_eq!(missing, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_are_what_the_engine_makes_and_both_verifiers_agree() {
    let vectors = make().await;
    let bless = std::env::var_os("LEDGER_BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, dump) in &vectors {
        let path = fixtures().join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(dump).unwrap() + "\n";
        if bless {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(format!("{name}: the file is not what the engine makes"));
        }
    }
    let mut files = Vec::new();
    for folder in ["valid", "broken"] {
        for file in std::fs::read_dir(fixtures().join(folder)).unwrap() {
            files.push(file.unwrap().path());
        }
    }
    // Folders are other judges' vectors, as `broken/legacy`.
    files.retain(|path| path.is_file());
    files.sort();
    assert_eq!(files.len(), vectors.len(), "a file that this test does not make");
    for path in &files {
        let audit_verify::Dump { trust, expect, .. } = audit_verify::Dump::read(path).unwrap();
        let expected = expect.unwrap();
        // What a dump says of itself is no identity.
        assert_ne!(audit_verify::verify_path(path, None).exit(), 0, "{}", path.display());
        let report = audit_verify::verify_path(path, trust);
        assert_eq!(report.reason(), "", "{}", path.display());
        if (report.exit(), report.codes()) != expected {
            wrong.push(format!(
                "{}: expected {expected:?}, found {:?}\n{}",
                path.display(),
                report.codes(),
                report.to_text()
            ));
        }
    }
    // The history of the order alone shows what is wrong with its documents.
    let of_documents = |path: &&PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        ["licence_", "finance_", "manifest_", "delivery_proof"].iter().any(|kind| name.starts_with(kind))
    };
    for path in files.iter().filter(of_documents) {
        let dump = audit_verify::Dump::read(path).unwrap();
        let demands = audit_verify::Demands { trust: dump.trust, ..Default::default() };
        let sku = Stream::Sku(CaseId::of_sku(SKU)).to_string();
        let of = |kind| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(kind));
        let of_orders = if of("delivery_proof") { ORDER_BOUGHT } else { ORDER_PAID };
        let report = audit_verify::verify_stream(path, if of("manifest_") { &sku } else { of_orders }, demands);
        if Some((report.exit(), report.codes())) != dump.expect {
            wrong.push(format!("{}: of the order alone {}", path.display(), report.to_text()));
        }
    }
    wrong.extend(support::second_verifier("--check", &files));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
