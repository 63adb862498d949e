//! Proof files: what the engine makes verifies with the ledger's id, and nothing that differs from it in any byte does.
//!
//! The vectors in `fixtures/valid/proofs` and `fixtures/broken/proofs` are made here again and compared byte for byte; every file of
//! both folders is judged. `LEDGER_BLESS=1 cargo test -p ledger-engine --test proofs` writes them anew.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use audit_verify::{Anchor, Demands, Report, Verdict, verify_proof_bytes};
use ledger_engine::body::Body;
use ledger_engine::commit::{ALG_ED25519, CommitSignature, Statement};
use ledger_engine::domain::case::document;
use ledger_engine::domain::command::Command;
use ledger_engine::genesis::Genesis;
use ledger_engine::hash::{EventId, Hash, body_hash, sha256};
use ledger_engine::header::Header;
use ledger_engine::licence::Terms;
use ledger_engine::merkle;
use ledger_engine::note::Checkpoint;
use ledger_engine::proof::{Proof, ProofError, ProvenCommit, ProvenEntry, SignedCheckpoint};
use ledger_engine::prover::ProveError;
use ledger_engine::registry::{Action, Key, Purpose, govern_payload, govern_statement};
use ledger_engine::signer::LocalSigner;
use ledger_engine::stream::CaseId;
use serde_json::{Value, json};
use support::{create, create_line, genesis, life, list_sku, send};

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fixtures").join(kind).join("proofs")
}

fn judge(bytes: &[u8], trust: Option<Hash>, anchors: &[Anchor]) -> Report {
    verify_proof_bytes("proof", bytes, Demands { trust, anchors, ..Demands::default() })
}

/// A ledger with one order's life; the proofs of all entries of that order, and the checkpoints.
async fn order(chains: u32) -> (Hash, Vec<Proof>, Vec<Anchor>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), chains).await;
    list_sku(&ledger, "s").await;
    let mut waiting = Vec::new();
    for i in 0..40 {
        let command = Command::parse(create_line(&format!("k{i}"), "s").as_bytes()).unwrap();
        waiting.push(ledger.submit(&command, None, "SUBMIT").await.unwrap());
    }
    // Queued at once, so that commits hold several entries.
    let mut orders = Vec::new();
    for pending in waiting {
        orders.push(pending.wait().await.unwrap().case.unwrap());
    }
    // One that shares its commit; how many do is the writer's affair.
    let mut shared = None;
    for order in orders.into_iter().filter(|o| o.route(chains) == chains - 1) {
        let entries = ledger.read_order(order).await.unwrap();
        let commits = ledger.with_commits(entries).await.unwrap();
        shared = shared.or(commits.iter().any(|(_, commit)| commit.size > 1).then_some(order));
    }
    let order = shared.expect("of forty that were queued at once, some share a commit");
    let early = send(&ledger, &life(&order.to_string())[0]).await.unwrap();
    let refused = ledger.proof(early.chain, early.entries[0].index, false).await;
    assert!(matches!(refused, Err(ProveError::NoCheckpoint { .. })), "{refused:?}");
    for line in &life(&order.to_string())[1..] {
        send(&ledger, line).await.unwrap();
    }
    let notes: String = ledger.checkpoint().await.unwrap().iter().map(|n| format!("{n}\n")).collect();
    let mut proofs = Vec::new();
    for entry in ledger.read_order(order).await.unwrap() {
        proofs.push(ledger.proof(entry.header.chain, entry.header.index, true).await.unwrap());
    }
    let refused = ledger.proof(0, 1 << 40, false).await;
    assert!(matches!(refused, Err(ProveError::NoEntry { .. })), "{refused:?}");
    ledger.shutdown().await.unwrap();
    (ledger.id(), proofs, Anchor::parse("kept", &notes).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_can_be_proven_to_a_stranger() {
    for chains in [1, 3] {
        let (id, proofs, anchors) = order(chains).await;
        assert_eq!(proofs.len(), 9);
        assert!(proofs[0].commit.size > 1 && proofs[0].private.is_some());
        for proof in proofs {
            let bytes = proof.encode().unwrap();
            assert_eq!(Proof::decode(&bytes), Ok(proof.clone()));
            assert!(Proof::is_likely(&bytes));
            let report = judge(&bytes, Some(id), &anchors);
            assert_eq!(report.exit(), 0, "{}", report.to_text());
            assert_eq!(report.digest(), Some(sha256(&[&bytes])));
            let demands = Demands { trust: Some(id), require_anchor: true, ..Demands::default() };
            assert_eq!(verify_proof_bytes("proof", &bytes, demands).verdict(), Verdict::NotAllChecked);
            let report = verify_proof_bytes("proof", &bytes, Demands { anchors: &anchors, ..demands });
            assert_eq!(report.exit(), 0, "{}", report.to_text());
            assert_eq!(judge(&bytes, None, &anchors).verdict(), Verdict::IdentityNotProven);
            assert_eq!(judge(&bytes, Some(Hash::ZERO), &[]).codes(), ["ledger_id_mismatch"]);
            let hidden = Proof { private: None, ..proof.clone() };
            let report = judge(&hidden.encode().unwrap(), Some(id), &[]);
            assert_eq!((report.exit(), report.to_text().contains("redacted")), (0, proof.private.is_some()));
            for text in [report.to_text(), report.to_html(), report.to_json().to_string()] {
                assert!(text.contains("whether the event was allowed"), "{text}");
            }
        }
    }
}

/// Every byte of a file changed in four ways, or left out, or doubled: never exit 0. What is still a proof file is broken.
#[tokio::test(flavor = "multi_thread")]
async fn no_byte_can_be_changed() {
    let (id, proofs, _) = order(2).await;
    let bytes = proofs[0].encode().unwrap();
    let (mut broken, mut malformed) = (0, 0);
    let mut check = |bytes: &[u8], what: &str| {
        let report = judge(bytes, Some(id), &[]);
        assert_ne!(report.exit(), 0, "{what}: {}", report.to_text());
        let count = if report.exit() == 1 { &mut broken } else { &mut malformed };
        *count += 1;
        assert_eq!(report.exit() == 1, !report.findings().is_empty(), "{what}: {}", report.to_text());
        assert!(report.exit() == 1 || report.reason().starts_with("not a proof file: "), "{what}: {}", report.reason());
    };
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        // To another hex digit, to any near letter, to a byte that is no text, and to white space.
        for byte in [if bytes[at] == b'0' { b'1' } else { b'0' }, bytes[at] ^ 1, bytes[at] | 0x80, b' '] {
            if byte != bytes[at] {
                changed[at] = byte;
                check(&changed, &format!("byte {at} is {byte}"));
            }
        }
        let (head, tail) = bytes.split_at(at);
        check(&[head, &tail[1..]].concat(), &format!("without byte {at}"));
        check(&[head, &tail[..1], tail].concat(), &format!("byte {at} twice"));
        if at.is_multiple_of(16) {
            check(head, &format!("cut off at {at}"));
        }
    }
    assert!(broken > 1000 && malformed > 1000, "{broken} {malformed}");
}

/// A small history made by hand, so that its writer can break any rule: a genesis, changes of keys, one order's entry, one commit
/// for each, and a checkpoint over all.
struct Log {
    id: Hash,
    origin: String,
    entries: Vec<(Header, Vec<u8>)>,
    commits: Vec<ProvenCommit>,
}

fn signer(purpose: Purpose, seed: u8) -> LocalSigner {
    LocalSigner::from_seed(purpose, &[seed; 32])
}

impl Log {
    fn new() -> Log {
        let genesis: Genesis = genesis(1);
        let body = genesis.to_body();
        let id = Genesis::ledger_id(&body.encode());
        let mut log = Log { id, origin: genesis.origin.clone(), entries: Vec::new(), commits: Vec::new() };
        log.append("ledger", "ledger.created", body, &signer(Purpose::Commit, 2));
        log
    }

    fn registry_tip(&self) -> (u64, Hash) {
        let keys = self.entries.iter().filter(|(h, _)| h.stream == "ledger");
        keys.fold((0, Hash::ZERO), |(n, _), (h, _)| (n + 1, h.entry_hash()))
    }

    fn append(&mut self, stream: &str, event_type: &str, body: Body, by: &LocalSigner) {
        let index = self.entries.len() as u64;
        let (registry_size, registry_head) = self.registry_tip();
        let (before, parent) = if stream == "ledger" { (registry_size, registry_head) } else { (0, Hash::ZERO) };
        let body = body.encode();
        let header = Header {
            format_version: 1,
            ledger_id: self.id.0,
            chain: 0,
            index,
            prev_hash: self.entries.last().map_or([0; 32], |(h, _)| h.entry_hash().0),
            stream: stream.into(),
            revision: before + 1,
            parent_hash: parent.0,
            event_id: EventId::derive(&self.id, 0, index).0,
            event_type: event_type.into(),
            schema_version: 1,
            recorded_at_us: 1_795_000_000_000_000 + index as i64,
            body_hash: body_hash(&body).0,
            body_sha256: sha256(&[&body]).0,
        };
        let mut commit = ProvenCommit {
            first_index: index,
            size: 1,
            root: header.leaf_hash(),
            last_hash: header.entry_hash(),
            registry_size,
            registry_head,
            path: Vec::new(),
            signatures: Vec::new(),
        };
        self.sign(&mut commit, by);
        self.commits.push(commit);
        self.entries.push((header, body));
    }

    fn sign(&self, commit: &mut ProvenCommit, by: &LocalSigner) {
        let statement = Statement {
            ledger_id: self.id,
            chain: 0,
            first_index: commit.first_index,
            size: commit.size,
            root: commit.root,
            last_hash: commit.last_hash,
            registry_size: commit.registry_size,
            registry_head: commit.registry_head,
        };
        let signature = by.signature(&statement.to_bytes(ALG_ED25519, &by.key().kid)).to_vec();
        commit.signatures = vec![CommitSignature { kid: by.key().kid.clone(), alg: ALG_ED25519, signature }];
    }

    /// A change of keys, governed by the key of a seed.
    fn govern(&mut self, action: &Action, seed: u8, incoming: Option<&LocalSigner>, by: &LocalSigner) {
        let (size, parent) = self.registry_tip();
        let message = govern_statement(&self.id, size + 1, &parent, action);
        let governance = signer(Purpose::Governance, seed);
        let sign = |signer: &LocalSigner| signer.signature(&message);
        let possession = incoming.map(sign);
        let payload = govern_payload(
            action,
            &governance.key().kid,
            &sign(&governance),
            possession.as_ref().map(<[u8; 64]>::as_slice),
        );
        let body = Body { actor_id: "service:governance".into(), payload, private_sha256: None, meta: None };
        self.append("ledger", action.event_type(), body, by);
    }

    fn rotate(&mut self, old: &LocalSigner, new: &LocalSigner, seed: u8) {
        let cut = vec![self.entries.len() as u64 + 1];
        let action = Action::Rotate { old_kid: old.key().kid.clone(), key: Key::clone(new.key()), cut };
        self.govern(&action, seed, Some(new), &signer(Purpose::Commit, 2));
    }

    fn order(&mut self, by: &LocalSigner) {
        let payload = ledger_engine::json::Object::new().with("reason", "late").with("paid", 0);
        let body = Body { actor_id: "service:market".into(), payload, private_sha256: None, meta: None };
        self.append(&format!("order-{}", "ab".repeat(16)), "order.cancelled", body, by);
    }

    /// Admits the licence key of these vectors.
    fn enrol_licence_key(&mut self) {
        let key = signer(Purpose::Licence, 20);
        let action = Action::Enrol { key: key.key().clone(), justification: None };
        self.govern(&action, 1, Some(&key), &signer(Purpose::Commit, 2));
    }

    /// The entry that issues a licence of the order `order`, as far as `change` leaves its text.
    fn license(&mut self, order: CaseId, change: impl FnOnce(String) -> String) {
        let key = signer(Purpose::Licence, 20);
        let case = CaseId([0xab; 16]);
        let terms = Terms {
            order_id: order,
            sku_id: "s".into(),
            buyer_id: "p-00".into(),
            scope: "standard".into(),
            expires_at_us: Some(1_900_000_000_000_000),
            issued_at_us: 1_795_000_000_000_000,
            ledger_id: self.id,
            signer_kid: key.key().kid.clone(),
        };
        let signature = key.signature(&terms.statement());
        let licence = terms.signed(signature);
        let payload = ledger_engine::json::Object::new()
            .with("license_id", format!("license-{case}"))
            .with("expires_at", 1_900_000_000_000_000_i64)
            .with("license", document(&change(licence.to_text())));
        let body = Body { actor_id: "service:market".into(), payload, private_sha256: None, meta: None };
        self.append(&format!("order-{case}"), "license.issued", body, &signer(Purpose::Commit, 2));
    }

    /// The proof of an entry, to a checkpoint over all entries by the key of a seed.
    fn proof(&self, index: usize, seed: u8) -> Proof {
        let leaves: Vec<Hash> = self.entries.iter().map(|(h, _)| h.leaf_hash()).collect();
        let size = leaves.len() as u64;
        let origin = Checkpoint::origin_of(&self.origin, &self.id, 0);
        let checkpoint = Checkpoint { origin, size, root: merkle::root(&leaves) };
        let signer = signer(Purpose::Checkpoint, seed);
        let signature = signer.signature(checkpoint.to_text().as_bytes()).to_vec();
        let note = checkpoint.to_note(signer.key().public_key.ed25519().unwrap(), signature);
        let entry = |at: usize| {
            let Ok(path) = merkle::inclusion_proof(&leaves[..], at as u64, size);
            let (header, body) = self.entries[at].clone();
            ProvenEntry { header, body, path }
        };
        let keys = (0..self.entries.len()).filter(|at| self.entries[*at].0.stream == "ledger");
        Proof {
            entry: entry(index),
            private: None,
            commit: self.commits[index].clone(),
            checkpoint: SignedCheckpoint { note, checkpoint },
            registry: keys.map(entry).collect(),
            registry_checkpoint: None,
        }
    }
}

/// Name, what it shows, exit status, codes, the file.
type Vector = (&'static str, &'static str, u8, &'static [&'static str], Vec<u8>);

fn vectors() -> (Hash, Vec<Vector>) {
    let (old, new) = (signer(Purpose::Commit, 2), signer(Purpose::Commit, 12));
    let mut plain = Log::new();
    plain.order(&old);
    plain.order(&old);
    let good = plain.proof(1, 3);
    let mut rotated = Log::new();
    rotated.rotate(&old, &new, 1);
    rotated.order(&new);
    let mut late = Log::new();
    late.rotate(&old, &new, 1);
    late.order(&old);
    let mut stranger = Log::new();
    stranger.rotate(&old, &new, 11);
    stranger.order(&new);
    let mut revoked = Log::new();
    revoked.order(&old);
    let revoke = Action::Revoke {
        kid: old.key().kid.clone(),
        reason: "stolen".into(),
        cut: vec![3],
        compromised_since: Some(vec![1]),
    };
    revoked.govern(&revoke, 1, None, &old);
    let licensed = |before: bool, order: [u8; 16], change: fn(String) -> String| {
        let mut log = Log::new();
        if before {
            log.enrol_licence_key();
        }
        log.license(CaseId(order), change);
        if !before {
            log.enrol_licence_key();
        }
        log.proof(if before { 2 } else { 1 }, 3).encode().unwrap()
    };
    const OWN: [u8; 16] = [0xab; 16];
    let edit = |change: &dyn Fn(&mut Proof)| {
        let mut proof = good.clone();
        change(&mut proof);
        proof.encode().unwrap()
    };
    let plain_of = |proof: &Proof| proof.encode().unwrap();
    let without_registry = {
        let mut proof = rotated.proof(2, 3);
        proof.registry.truncate(1);
        plain_of(&proof)
    };
    let cut = {
        let mut bytes = plain_of(&good);
        bytes.pop();
        bytes
    };
    let list: Vec<Vector> = vec![
        ("valid/order", "an entry of an order, under the keys of the genesis", 0, &[], plain_of(&good)),
        ("valid/genesis", "the genesis entry itself", 0, &[], plain_of(&plain.proof(0, 3))),
        ("valid/keys_rotated", "the commit key was rotated before", 0, &[], plain_of(&rotated.proof(2, 3))),
        ("valid/key_change", "an entry of the key registry", 0, &[], plain_of(&rotated.proof(1, 3))),
        (
            "valid/key_compromised",
            "it rests on a key that was in other hands then",
            2,
            &[],
            plain_of(&revoked.proof(1, 3)),
        ),
        ("valid/licence", "the entry that issued a licence", 0, &[], licensed(true, OWN, |text| text)),
        (
            "broken/licence_rewritten",
            "the licence is of a wider scope than was signed",
            1,
            &["document_signature_invalid"],
            licensed(true, OWN, |text| text.replace("standard", "everything")),
        ),
        (
            "broken/licence_of_another_order",
            "the licence is of another order than the entry",
            1,
            &["illegal_transition"],
            licensed(true, [7; 16], |text| text),
        ),
        (
            "broken/licence_by_key_enrolled_later",
            "the licence was signed before its key was enrolled",
            1,
            &["kid_unknown"],
            licensed(false, OWN, |text| text),
        ),
        (
            "broken/body_rewritten",
            "the reason was rewritten",
            1,
            &["body_hash_mismatch"],
            edit(&|p| {
                p.entry.body = String::from_utf8(p.entry.body.clone()).unwrap().replace("late", "paid").into_bytes();
            }),
        ),
        (
            "broken/time_rewritten",
            "the header's time was rewritten",
            1,
            &["inclusion_mismatch"],
            edit(&|p| {
                p.entry.header.recorded_at_us += 1;
            }),
        ),
        (
            "broken/path_shortened",
            "a hash of the path was taken out",
            1,
            &["inclusion_mismatch"],
            edit(&|p| {
                p.entry.path.pop();
            }),
        ),
        (
            "broken/place_rewritten",
            "the entry claims the next place",
            1,
            &["event_id_mismatch"],
            edit(&|p| {
                p.entry.header.index += 1;
            }),
        ),
        (
            "broken/signature_flipped",
            "a bit of the commit's signature",
            1,
            &["commit_signature_invalid"],
            edit(&|p| {
                p.commit.signatures[0].signature[5] ^= 1;
            }),
        ),
        (
            "broken/signature_twice",
            "a second signature by one key",
            1,
            &["commit_signature_orphan"],
            edit(&|p| {
                let first = p.commit.signatures[0].clone();
                p.commit.signatures.push(first);
            }),
        ),
        (
            "broken/algorithm_unknown",
            "the signature names another algorithm",
            1,
            &["algorithm_mismatch"],
            edit(&|p| {
                p.commit.signatures[0].alg = 2;
            }),
        ),
        (
            "broken/kid_unknown",
            "the commit's kid is in no registry",
            1,
            &["kid_unknown"],
            edit(&|p| {
                p.commit.signatures[0].kid = "commit-0".into();
            }),
        ),
        (
            "broken/kid_wrong_purpose",
            "the commit is signed by the checkpoint key",
            1,
            &["kid_wrong_purpose"],
            edit(&|p| {
                plain.sign(&mut p.commit, &signer(Purpose::Checkpoint, 3));
            }),
        ),
        (
            "broken/commit_elsewhere",
            "the commit of another entry",
            1,
            &["inclusion_mismatch"],
            edit(&|p| {
                p.commit = plain.commits[2].clone();
            }),
        ),
        (
            "broken/registry_position",
            "the commit names another prefix of the registry",
            1,
            &["registry_position_mismatch"],
            edit(&|p| {
                p.commit.registry_head = Hash::ZERO;
            }),
        ),
        (
            "broken/registry_cut_off",
            "the change of keys was left out",
            1,
            &["registry_position_mismatch"],
            without_registry,
        ),
        (
            "broken/key_used_after_rotation",
            "signed by the key that was rotated away",
            1,
            &["kid_not_valid"],
            plain_of(&late.proof(2, 3)),
        ),
        (
            "broken/key_admitted_by_stranger",
            "another key than governance's admitted the key",
            1,
            &["registry_invalid"],
            plain_of(&stranger.proof(2, 3)),
        ),
        (
            "broken/checkpoint_by_stranger",
            "no checkpoint key of the ledger signed it",
            1,
            &["kid_unknown"],
            plain_of(&plain.proof(1, 13)),
        ),
        (
            "broken/checkpoint_signature",
            "a bit of the checkpoint's signature",
            1,
            &["checkpoint_signature_invalid"],
            edit(&|p| {
                p.checkpoint.note.signatures[0].signature[5] ^= 1;
            }),
        ),
        (
            "broken/checkpoint_of_another_chain",
            "a checkpoint for the registry where none belongs",
            1,
            &["checkpoint_mismatch"],
            edit(&|p| {
                p.registry_checkpoint = Some(p.checkpoint.clone());
            }),
        ),
        (
            "broken/another_ledger",
            "the genesis of another ledger",
            1,
            &["ledger_id_mismatch"],
            edit(&|p| {
                let genesis = Genesis { nonce: [8; 16], ..genesis(1) };
                let genesis_entry = &mut p.registry[0];
                genesis_entry.body = genesis.to_body().encode();
                genesis_entry.header.body_hash = body_hash(&genesis_entry.body).0;
                genesis_entry.header.body_sha256 = sha256(&[&genesis_entry.body]).0;
            }),
        ),
        (
            "broken/private_document_added",
            "a private document that the body does not name",
            1,
            &["private_unexpected"],
            edit(&|p| {
                p.private = Some(b"{}".to_vec());
            }),
        ),
        ("broken/newline_cut_off", "the last byte is missing", 2, &[], cut),
    ];
    (plain.id, list)
}

#[test]
fn vectors_are_what_is_made_here_and_every_one_is_judged() {
    let (id, list) = vectors();
    let bless = std::env::var_os("LEDGER_BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, description, exit, findings, bytes) in &list {
        let (kind, name) = name.split_once('/').unwrap();
        let file = String::from_utf8(bytes.clone()).unwrap();
        let vector = json!({
            "format": "ledger-proof-vector/1", "description": description, "trust": id.to_hex(),
            "expect": {"exit": exit, "findings": findings}, "file": file,
        });
        let text = serde_json::to_string_pretty(&vector).unwrap() + "\n";
        let path = folder(kind).join(format!("{name}.json"));
        if bless {
            std::fs::create_dir_all(folder(kind)).unwrap();
            std::fs::write(&path, &text).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(format!("{name}: the file is not what is made here"));
        }
    }
    let mut judged = 0;
    for kind in ["valid", "broken"] {
        for file in std::fs::read_dir(folder(kind)).unwrap() {
            let path = file.unwrap().path();
            let vector: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let trust = vector["trust"].as_str().and_then(Hash::from_hex);
            let report = judge(vector["file"].as_str().unwrap().as_bytes(), trust, &[]);
            let found = json!({"exit": report.exit(), "findings": report.codes()});
            if found != vector["expect"] {
                wrong.push(format!("{}: expected {}\n{}", path.display(), vector["expect"], report.to_text()));
            }
            judged += 1;
        }
    }
    assert_eq!(judged, list.len(), "a file that this test does not make");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// The example in FORMAT.md is the vector.
#[test]
fn the_example_in_the_format_is_real() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("FORMAT.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- proof:begin -->\n", "<!-- proof:end -->");
    let (head, rest) = page.split_once(begin).unwrap();
    let (found, tail) = rest.split_once(end).unwrap();
    let (_, list) = vectors();
    let file = String::from_utf8(list[0].4.clone()).unwrap();
    let example = format!(
        "The file in `fixtures/valid/proofs/order.json`, whose keys are those of section 1:\n\n```json\n{file}```\n"
    );
    if std::env::var_os("LEDGER_BLESS").is_some() {
        std::fs::write(&path, format!("{head}{begin}{example}{end}{tail}")).unwrap();
    } else {
        assert_eq!(found, example);
    }
}

#[test]
fn what_is_no_proof_file_is_said_to_be_none() {
    let (_, list) = vectors();
    let text = String::from_utf8(list[0].4.clone()).unwrap();
    let refused = |text: &str| Proof::decode(text.as_bytes()).unwrap_err();
    assert_eq!(refused(text.trim_end()), ProofError::NotCanonical);
    assert_eq!(refused(&format!("{text}\n")), ProofError::NotCanonical);
    assert_eq!(refused(&text.replace("ledger-proof/1", "ledger-proof/2")), ProofError::Member("format".into()));
    assert_eq!(
        refused(&text.replace("\"first_index\":1", "\"first_index\":-1")),
        ProofError::Member("commit/first_index".into())
    );
    assert_eq!(refused(&text.replace("\"body\"", "\"boty\"")), ProofError::Member("entry/body".into()));
    assert_eq!(refused("[]\n"), ProofError::Member("(the file itself)".into()));
    let large = " ".repeat(ledger_engine::proof::PROOF_BYTES_MAX + 1);
    assert_eq!(refused(&large), ProofError::TooLarge(large.len()));
}
