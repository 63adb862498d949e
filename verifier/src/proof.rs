//! A proof file by itself (FORMAT.md 12): one entry, checked offline against the id of its ledger.

use std::collections::BTreeSet;
use std::path::Path;

use ledger_engine::delivery_proof::ProofTerms;
use ledger_engine::domain::case::{read_delivery_proof, read_licence};
use ledger_engine::domain::sku::{fits_listing, manifest_of};
use ledger_engine::finance::FinanceSignature;
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::json::{self, Value};
use ledger_engine::licence::Licence;
use ledger_engine::proof::{PROOF_BYTES_MAX, Proof, ProvenEntry};
use ledger_engine::registry::Purpose;
use ledger_engine::stream::Stream;
use ledger_engine::time::rfc3339;

use crate::bounded;
use crate::collector::Collector;
use crate::finding::Code;
use crate::report::{KeyReport, Part, Report};
use crate::single::{Known, Own, fault, included, key_code, private_document};
use crate::verify::Demands;

/// What a buyer holds beside the proof file of an entry.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    /// A licence, in whatever layout.
    Licence(&'a [u8]),
    /// SHA-256 and length of a file: the artifact, or the file that was delivered.
    File(Hash, u64),
}

/// Judges a proof file. A file that cannot be read, or is none, is `could not check`.
pub fn verify_proof(path: &Path, demands: Demands<'_>) -> Report {
    read(path, None, demands)
}

/// Judges the proof file of an entry, and whether what its buyer holds is what the entry is about.
pub fn verify_proof_and(path: &Path, held: Held<'_>, demands: Demands<'_>) -> Report {
    read(path, Some(held), demands)
}

fn read(path: &Path, held: Option<Held<'_>>, demands: Demands<'_>) -> Report {
    let name = path.display().to_string();
    match bounded::read(path, PROOF_BYTES_MAX as u64, "a proof file") {
        Ok(bytes) => decode(&name, &bytes, held, demands),
        Err(e) => Report::unreadable(&name, &format!("{e}; check the path")),
    }
}

/// Judges the bytes of a proof file.
pub fn verify_proof_bytes(name: &str, bytes: &[u8], demands: Demands<'_>) -> Report {
    decode(name, bytes, None, demands)
}

fn decode(name: &str, bytes: &[u8], held: Option<Held<'_>>, demands: Demands<'_>) -> Report {
    match Proof::decode(bytes) {
        Ok(proof) => {
            let report = judge(name, &proof, held, &demands).with_digest(sha256(&[bytes]));
            report.of_kind("a proof file of one entry".to_owned())
        }
        Err(e) => Report::unreadable(name, &format!("not a proof file: {e}")),
    }
}

fn place(entry: &ProvenEntry) -> String {
    format!("entries/{}", entry.header.index)
}

fn judge(name: &str, proof: &Proof, held: Option<Held<'_>>, demands: &Demands<'_>) -> Report {
    let mut out = Collector::default();
    let mut unchecked = Vec::new();
    let (header, commit) = (&proof.entry.header, &proof.commit);
    let chain = header.chain;
    let checkpoint = &proof.checkpoint.checkpoint;
    let zero = proof.registry_checkpoint.as_ref().unwrap_or(&proof.checkpoint);
    let known = registry(proof, demands.trust, &mut out);
    let (mut part, mut signed) = (Part::new("proof"), None);
    if let Some(known) = &known {
        if proof.registry_checkpoint.is_some() == (chain == 0) {
            let why = "registry_checkpoint is there exactly if the entry is of another chain than 0".to_owned();
            out.report(Code::CheckpointMismatch, Some(chain.into()), "registry_checkpoint".into(), why);
        }
        for (k, signed) in [(chain, &proof.checkpoint), (0, zero)].into_iter().take(if chain == 0 { 1 } else { 2 }) {
            out.take(known.checkpoint(k, signed), k, format!("checkpoints/{}", signed.checkpoint.size));
        }
        let path = &proof.entry.path;
        let judged = known.own(header, &proof.entry.body).and_then(|own| {
            included(&own.leaf, header.index, path, checkpoint.size, &checkpoint.root)?;
            private_document(&own.body, proof.private.as_deref()).map(|()| own)
        });
        if let Some(own) = out.take(judged, chain, place(&proof.entry)) {
            let judged = known.commit(header, &own, commit);
            if out.take(judged, chain, format!("commits/{}", commit.first_index)).is_some() {
                signed = document(proof, known, &own, &mut part, &mut out);
            }
            if own.body.private_sha256.is_some() && proof.private.is_none() {
                part.not_covered.push("the private document: it is not in the file (redacted)".into());
            }
        }
        match held {
            Some(Held::Licence(licence)) => compare(proof, licence, &signed, &mut part, &mut out, &mut unchecked),
            Some(Held::File(sha256, bytes)) => {
                compare_file(proof, (sha256, bytes), &signed, &mut part, &mut out, &mut unchecked);
            }
            None => {}
        }
        let anchored = anchors(proof, known, demands, &mut out, &mut unchecked);
        let mut kids: Vec<String> = commit.signatures.iter().map(|s| s.kid.clone()).collect();
        kids.extend(signed.as_ref().map(|signed| signed.kid().to_owned()));
        kids.extend(known.signers_of(chain, &proof.checkpoint.note));
        unchecked.extend(known.compromised(chain, header.index, &kids).filter(|_| !anchored));
        if demands.require_anchor && !anchored {
            unchecked.push("no anchor covers the entry".into());
        }
    }
    let last = commit.first_index.saturating_add(u64::from(commit.size)).saturating_sub(1);
    let kids: Vec<&str> = commit.signatures.iter().map(|s| s.kid.as_str()).collect();
    let documents = std::mem::take(&mut part.checked);
    part.checked = vec![
        format!(
            "{} of {}, revision {}, of {}",
            header.event_type,
            header.stream,
            header.revision,
            rfc3339(header.recorded_at_us)
        ),
        format!("entry {} of chain {chain}, event id {}, its own hashes and its body", header.index, header.id()),
        format!(
            "whether it was written in the commit of entries {} to {last}, signed by {}",
            commit.first_index,
            kids.join(", ")
        ),
        format!(
            "whether it is in the history of size {} that the checkpoint signs, root {}",
            checkpoint.size, checkpoint.root
        ),
        format!("{} entries of the key registry, from the genesis on, each in the history", proof.registry.len()),
    ];
    part.checked.extend(documents);
    part.not_covered.extend([
        "whether the event was allowed, and what came before and after it: the ledger itself tells".to_owned(),
        format!("keys that were retired by later entries of the registry than its number {}", proof.registry.len()),
    ]);
    let (id, origin) = (known.as_ref().map(|k| k.ledger_id), known.as_ref().map(|k| k.genesis.origin.clone()));
    let keys = known.as_ref().map(|k| KeyReport::all(&k.registry)).unwrap_or_default();
    match out.complete() {
        Ok(findings) => {
            Report::new(name, id, origin, demands, findings, Vec::new(), unchecked).with_keys(keys).of_part(part)
        }
        Err(e) => Report::unreadable(name, &e.to_string()),
    }
}

/// A document of the entry that is signed by itself. With a licence and a delivery proof what is held can be compared.
enum Signed {
    Licence(Box<Licence>),
    Delivery(Box<ProofTerms>),
    /// By whom.
    Other(String),
}

impl Signed {
    fn kid(&self) -> &str {
        match self {
            Signed::Licence(licence) => &licence.terms.signer_kid,
            Signed::Delivery(terms) => &terms.signer_kid,
            Signed::Other(kid) => kid,
        }
    }
}

/// Step 4.7, as far as the entry tells.
fn document(proof: &Proof, known: &Known, own: &Own, part: &mut Part, out: &mut Collector) -> Option<Signed> {
    let (header, payload) = (&proof.entry.header, &own.body.payload);
    let (chain, index, registry_size) = (header.chain, header.index, proof.commit.registry_size);
    let case = match own.stream {
        Stream::Order(case) => case,
        Stream::Delivery(case, n) if header.event_type == "delivery.ready" => {
            let value = payload.value("delivery_proof")?;
            let delivered = read_delivery_proof(value).filter(|p| (p.terms.order_id, p.terms.n) == (case, n));
            let judged = match &delivered {
                Some(delivered) => known.document(&delivered.document(), chain, index, registry_size),
                None => {
                    fault(Code::IllegalTransition, "the delivery proof is malformed, or of another order or delivery")
                }
            };
            out.take(judged, chain, place(&proof.entry))?;
            let terms = delivered?.terms;
            part.checked.push(delivered_in_words(&terms));
            part.not_covered.push(
                "whether the delivery proof's files are those of delivery.encrypted, and its manifest that of the order's listing: the ledger itself tells"
                    .into(),
            );
            return Some(Signed::Delivery(Box::new(terms)));
        }
        Stream::Sku(_) if header.event_type == "sku.listed" => {
            let value = payload.value("manifest")?;
            let manifest = manifest_of(payload).filter(|m| fits_listing(m, payload));
            let judged = match &manifest {
                Some(manifest) => known.document(&manifest.document(), chain, index, registry_size),
                None => fault(
                    Code::IllegalTransition,
                    "the manifest is malformed, or of another SKU, title, author or price",
                ),
            };
            out.take(judged, chain, place(&proof.entry))?;
            let (manifest, sha256) = (manifest?, value.as_object()?.value("sha256").and_then(Value::as_str)?);
            let kid = manifest.signature.kid;
            part.checked.push(format!("the manifest of the SKU, SHA-256 {sha256}, signed by {kid} for the Kernel"));
            return Some(Signed::Other(kid));
        }
        _ => return None,
    };
    match header.event_type.as_str() {
        "license.issued" => {
            let value = payload.value("license")?;
            let licence = read_licence(value).filter(|l| {
                let expires_at = payload.value("expires_at").and_then(Value::as_int);
                l.terms.order_id == case && l.terms.expires_at_us == expires_at
            });
            let judged = match &licence {
                Some(licence) => known.document(&licence.document(), chain, index, registry_size),
                None => fault(Code::IllegalTransition, "the licence is malformed, or of another order or expiry"),
            };
            out.take(judged, chain, place(&proof.entry))?;
            let licence = licence?;
            part.checked.push(in_words(&licence));
            Some(Signed::Licence(Box::new(licence)))
        }
        "order.settled" => {
            let finance = payload.value("finance_signature").and_then(FinanceSignature::read)?;
            let claimed = (finance.kid.as_str(), finance.alg, Purpose::Finance);
            let judged = known.registry.document_key(claimed, chain, index, registry_size);
            let judged = judged.map(drop).map_err(|e| (key_code(e), format!("finance's kid {}", finance.kid)));
            out.take(judged, chain, place(&proof.entry))?;
            part.checked.push(format!("whether {} could sign for finance then", finance.kid));
            part.not_covered.push(format!(
                "the signature of finance by {}: it is over the order's total, which is not in this file; --stream checks it",
                finance.kid
            ));
            Some(Signed::Other(finance.kid))
        }
        _ => None,
    }
}

/// The licence that holds, for people.
fn in_words(licence: &Licence) -> String {
    let terms = &licence.terms;
    let until = terms.expires_at_us.map_or_else(|| "without end".to_owned(), |at| format!("until {}", rfc3339(at)));
    let shown = |text: &str| text.escape_debug().to_string();
    format!(
        "the licence for buyer {} to {}, scope {}, {until}, issued at {} and signed by {}",
        shown(&terms.buyer_id),
        shown(&terms.sku_id),
        shown(&terms.scope),
        rfc3339(terms.issued_at_us),
        terms.signer_kid
    )
}

/// The delivery proof that holds, for people.
fn delivered_in_words(terms: &ProofTerms) -> String {
    format!(
        "the proof of delivery {}: artifact SHA-256 {} of {} bytes, encrypted as {} bytes with SHA-256 {} for the key {}, made at {} and signed by {}",
        terms.delivery_id(),
        terms.artifact.0,
        terms.artifact.1,
        terms.ciphertext.1,
        terms.ciphertext.0,
        terms.encryption.key_fingerprint,
        rfc3339(terms.issued_at_us),
        terms.signer_kid
    )
}

/// Compares a licence as its buyer holds it with the one in the entry, whatever its layout.
fn compare(
    proof: &Proof,
    held: &[u8],
    signed: &Option<Signed>,
    part: &mut Part,
    out: &mut Collector,
    unchecked: &mut Vec<String>,
) {
    let Some(Signed::Licence(licence)) = signed else {
        if out.is_empty() {
            unchecked.push("the licence that was given: the entry of this file holds none that is signed".into());
        }
        return;
    };
    let object = match json::parse(held) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is no JSON object".to_owned()),
        Err(e) => Err(e.to_string()),
    };
    let issued = licence.to_object();
    let why = match object {
        Ok(held) if held == issued => None,
        Ok(held) => {
            let names: BTreeSet<&str> = issued.iter().chain(held.iter()).map(|(name, _)| name).collect();
            let differing: Vec<String> = names
                .into_iter()
                .filter(|name| issued.value(name) != held.value(name))
                .map(|name| name.escape_debug().take(64).collect())
                .collect();
            Some(format!("other than issued: {}", differing.join(", ")))
        }
        Err(why) => Some(why),
    };
    match why {
        None => part.checked.push("that the licence which was given is this one".into()),
        Some(why) => out.report(Code::LicenceMismatch, Some(proof.entry.header.chain.into()), place(&proof.entry), why),
    }
}

/// Compares a file with the two that a delivery proof names.
fn compare_file(
    proof: &Proof,
    file: (Hash, u64),
    signed: &Option<Signed>,
    part: &mut Part,
    out: &mut Collector,
    unchecked: &mut Vec<String>,
) {
    let Some(Signed::Delivery(terms)) = signed else {
        if out.is_empty() {
            unchecked
                .push("the file that was given: the entry of this proof file holds no signed delivery proof".into());
        }
        return;
    };
    let (sha256, bytes) = file;
    if file == terms.artifact {
        part.checked.push(format!("that the file which was given is the artifact, SHA-256 {sha256}"));
    } else if file == terms.ciphertext {
        part.checked.push(format!("that the file which was given is the one that was delivered, SHA-256 {sha256}"));
        part.not_covered
            .push("whether it decrypts to the artifact: `ledger open-delivery` does that, with the buyer's key".into());
    } else {
        let ((artifact, plain), (ciphertext, sealed)) = (terms.artifact, terms.ciphertext);
        let why = format!(
            "expected SHA-256 {artifact} of {plain} bytes, or as it was delivered {ciphertext} of {sealed}; found {sha256} of {bytes}"
        );
        out.report(Code::ArtifactMismatch, Some(proof.entry.header.chain.into()), place(&proof.entry), why);
    }
}

/// The ledger's id and keys, from the genesis on. `None`: nothing else can be judged.
fn registry(proof: &Proof, trust: Option<Hash>, out: &mut Collector) -> Option<Known> {
    let zero = &proof.registry_checkpoint.as_ref().unwrap_or(&proof.checkpoint).checkpoint;
    let in_history =
        |entry: &ProvenEntry, leaf: &Hash| included(leaf, entry.header.index, &entry.path, zero.size, &zero.root);
    // The parser gives at least one.
    let (first, rest) = proof.registry.split_first()?;
    let known = Known::from_genesis(&first.header, &first.body);
    let mut known = out.take(known, 0, place(first))?;
    if let Some(trust) = trust.filter(|t| *t != known.ledger_id) {
        let why = format!("the genesis gives {}; pinned is {trust}", known.ledger_id);
        out.report(Code::LedgerIdMismatch, None, "ledger".into(), why);
    }
    out.take(in_history(first, &first.header.leaf_hash()), 0, place(first));
    let mut index = 0;
    for entry in rest {
        let judged = known.own(&entry.header, &entry.body).and_then(|own| {
            known.admit(&entry.header, &own)?;
            in_history(entry, &own.leaf)
        });
        out.take(judged, 0, place(entry))?;
        // Another order than the chain's cannot lie in its tree, but a place could be claimed twice.
        if entry.header.index <= index {
            out.report(Code::RegistryInvalid, Some(0), place(entry), "not after the entry before it".into());
        }
        index = entry.header.index;
    }
    Some(known)
}

/// Compares with what was kept. Returns whether an anchor covers the entry.
fn anchors(
    proof: &Proof,
    known: &Known,
    demands: &Demands<'_>,
    out: &mut Collector,
    unchecked: &mut Vec<String>,
) -> bool {
    let own = proof.entry.header.chain;
    let mut covered = false;
    for anchor in demands.anchors {
        let chain = anchor.chain(&known.genesis.origin, &known.ledger_id, known.genesis.chains);
        if let Some(why) = anchor.unusable(chain, &known.registry) {
            unchecked.push(why);
            continue;
        }
        let of_registry = proof.registry_checkpoint.as_ref().filter(|_| chain == Some(0));
        let Some(signed) = of_registry.or(Some(&proof.checkpoint).filter(|_| chain == Some(own))) else { continue };
        let (size, root) = (signed.checkpoint.size, signed.checkpoint.root);
        if anchor.size() != size {
            unchecked.push(format!(
                "anchor {} is of size {}, the file's checkpoint of size {size}: nothing in the file connects them",
                anchor.name,
                anchor.size()
            ));
        } else if anchor.root() != root {
            let why = format!("{} has the root {}, the file {root}", anchor.name, anchor.root());
            out.report(Code::AnchorMismatch, chain.map(u64::from), format!("checkpoints/{size}"), why);
        } else {
            covered |= chain == Some(own);
        }
    }
    covered
}
