use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use audit_verify::{Demands, Report, verify_proof_bytes};
use ledger_engine::body::Body;
use ledger_engine::delivery::{context, recipient, stream};
use ledger_engine::delivery_proof::{DeliveryProof, ProofTerms};
use ledger_engine::domain::case::{read_delivery_proof, read_licence};
use ledger_engine::environment::{Environment as _, SystemEnvironment};
use ledger_engine::hash::Hash;
use ledger_engine::json::Object;
use ledger_engine::licence::Licence;
use ledger_engine::proof::{PROOF_BYTES_MAX, Proof};
use ledger_engine::time::rfc3339;

use crate::{CliError, output};

/// Open what was delivered: check proof and licence, decrypt with the buyer's private key
///
/// Nothing else is needed, and no server asked. The proof file is what `GET /audit/events/{id}/proof` gives for the event_id in
/// `GET /proofs/{id}`; it must lead from the ledger's id to the signed delivery proof. The file must be the one that the proof names, and what comes
/// out of it the artifact. The output appears only if all of it is right.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The delivered file
    file: PathBuf,
    /// Proof file of the entry that made the delivery ready
    #[arg(long, value_name = "FILE")]
    proof: PathBuf,
    /// The ledger's id, from elsewhere than the proof
    #[arg(long, value_name = "LEDGER_ID")]
    trust: String,
    /// The buyer's private key: RSA or X25519, PKCS#8 PEM
    #[arg(long, value_name = "FILE.pem")]
    key: PathBuf,
    /// Proof file of the entry that issued the licence, which must be of the same order
    #[arg(long, value_name = "FILE")]
    license_proof: PathBuf,
    /// Where the artifact goes; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn wrong(e: impl std::fmt::Display) -> CliError {
    CliError::Usage(e.to_string())
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CliError + use<> {
    let shown = path.display().to_string();
    move |e| CliError::Io(shown, e)
}

/// The payload of a proof file's entry, if the file holds; else why not.
fn proven(path: &Path, trust: Hash) -> Result<Result<Object, Box<Report>>, CliError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io(path))?;
    file.take(PROOF_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io(path))?;
    let demands = Demands { trust: Some(trust), ..Demands::default() };
    let report = verify_proof_bytes(&path.display().to_string(), &bytes, demands);
    if report.exit() != 0 {
        return Ok(Err(Box::new(report)));
    }
    let proof = Proof::decode(&bytes).map_err(wrong)?;
    Ok(Ok(Body::decode(&proof.entry.body).map_err(wrong)?.payload))
}

/// What is not right: exit 1.
fn refuse(json: bool, why: &str) -> Result<u8, CliError> {
    output::line(&if json {
        serde_json::json!({ "ok": false, "error": why }).to_string()
    } else {
        format!("NOT OPENED: {why}")
    })?;
    Ok(1)
}

pub(crate) fn run(json: bool, args: Args) -> Result<u8, CliError> {
    let trust = Hash::from_hex(&args.trust).ok_or_else(|| wrong("--trust: a ledger's id is 64 hex characters"))?;
    let payload = match proven(&args.proof, trust)? {
        Ok(payload) => payload,
        Err(report) => return refuse(json, &format!("the proof does not hold\n{}", report.to_text())),
    };
    let Some(DeliveryProof { terms, .. }) = payload.value("delivery_proof").and_then(read_delivery_proof) else {
        return refuse(json, "the proof file is of no entry with a signed delivery proof");
    };
    let licence = match proven(&args.license_proof, trust)? {
        Ok(payload) => payload.value("license").and_then(read_licence),
        Err(report) => return refuse(json, &format!("the licence does not hold\n{}", report.to_text())),
    };
    if let Some(why) = licence_fault(licence.as_ref(), &terms) {
        return refuse(json, &why);
    }
    let pem = zeroize::Zeroizing::new(std::fs::read_to_string(&args.key).map_err(io(&args.key))?);
    let context = context(&trust, &terms.delivery_id());
    if terms.encryption.algorithm != stream::ALGORITHM {
        return refuse(json, &format!("{} is no format that this program opens", terms.encryption.algorithm));
    }
    let key = match recipient::unwrap(&pem, &terms.encryption.encrypted_key, &context) {
        Ok(key) => key,
        Err(e) => return refuse(json, &format!("--key {}: {e}", args.key.display())),
    };
    if args.out.exists() {
        return Err(wrong(format!("{} exists already and is not written over", args.out.display())));
    }
    let mut from = BufReader::with_capacity(stream::SEGMENT_BYTES, File::open(&args.file).map_err(io(&args.file))?);
    let dir = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut to = tempfile::NamedTempFile::new_in(dir).map_err(io(dir))?;
    let opened = match stream::open(&key, &context, &mut from, &mut to) {
        Ok(opened) => opened,
        Err(stream::OpenError::Io(e)) => return Err(io(&args.file)(e)),
        Err(e) => return refuse(json, &format!("{}: {e}", args.file.display())),
    };
    if (opened.sealed_sha256, opened.plain_sha256) != (terms.ciphertext.0, terms.artifact.0) {
        return refuse(json, "the file opens, but it is not the one that the proof names");
    }
    to.flush().and_then(|()| to.as_file().sync_all()).map_err(io(&args.out))?;
    to.persist_noclobber(&args.out).map_err(|e| io(&args.out)(e.error))?;
    say(json, &terms, opened.plain_bytes, &args.out)
}

fn licence_fault(licence: Option<&Licence>, terms: &ProofTerms) -> Option<String> {
    let Some(licence) = licence else { return Some("--license-proof is of no entry with a signed licence".into()) };
    let own = (licence.terms.order_id, &licence.terms.buyer_id, &licence.terms.sku_id);
    if own != (terms.order_id, &terms.buyer_id, &terms.sku_id) {
        return Some("the licence is of another order".into());
    }
    let ended = licence.terms.expires_at_us.filter(|at| *at <= SystemEnvironment.now_us())?;
    Some(format!("the licence ended at {}", rfc3339(ended)))
}

fn say(json: bool, terms: &ProofTerms, bytes: u64, out: &Path) -> Result<u8, CliError> {
    let (id, sha256) = (terms.delivery_id(), terms.artifact.0);
    output::line(&if json {
        serde_json::json!({ "ok": true, "delivery_id": id, "sku_id": terms.sku_id, "sha256": sha256.to_hex(), "bytes": bytes,
            "out": out })
        .to_string()
    } else {
        let sku = terms.sku_id.escape_debug();
        format!(
            "OPENED {id}: {sku}, {bytes} bytes in {}\nSHA-256 {sha256}, as the proof says, signed by {}; its licence is genuine, and has not ended",
            out.display(),
            terms.signer_kid
        )
    })?;
    Ok(0)
}
