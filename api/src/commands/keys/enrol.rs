use std::path::{Path, PathBuf};

use ledger_engine::finance::signature_from_text;
use ledger_engine::keys::read_public_key;
use ledger_engine::ledger::{AppendError, Enrolment};
use ledger_engine::public_key::{Algorithm, PublicKey};
use ledger_engine::registry::{Key, Purpose, is_kid};

use crate::directory::{self, Place};
use crate::signers::{From, Holder};
use crate::{CliError, output, signers};

/// Enrol a key: the governance key admits it, and its holder proves that he has it
///
/// Where the private key is elsewhere, as that of finance is: write the statement with --public-key and --statement-out, let the
/// holder sign it, and give the signature with --possession-signature-file. The statement is good until the registry changes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What it may sign: commit, checkpoint, export, licence, delivery-proof; finance or kernel, which may be RSA
    #[arg(long, value_parser = super::purpose)]
    purpose: Purpose,
    /// The governance key: a PKCS#8 PEM file, or a signer
    #[arg(long, value_name = "FILE|SIGNER", required_unless_present = "statement_out")]
    governance_key: Option<String>,
    #[command(flatten)]
    from: From,
    /// For use while the usual signers are away, and then preferred to them: REQUIRE_KMS and REQUIRE_SIGNING_PROXY let it sign from a file
    #[arg(long, requires = "justification")]
    emergency: bool,
    /// Why there is an emergency key; it is recorded for those who read it years later
    #[arg(long, value_name = "TEXT", requires = "emergency")]
    justification: Option<String>,
    /// The public key (PEM), where nobody here can use the private key
    #[arg(long, value_name = "FILE.pem", conflicts_with = "from", required_unless_present = "from")]
    public_key: Option<PathBuf>,
    /// The holder's signature over the statement, hex or base64
    #[arg(long, value_name = "HEX", requires = "public_key")]
    possession_signature: Option<String>,
    /// The holder's signature over the statement, as openssl writes it, or hex or base64
    #[arg(long, value_name = "FILE", requires = "public_key", conflicts_with = "possession_signature")]
    possession_signature_file: Option<PathBuf>,
    /// Write what the holder has to sign, and stop
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "possession_signature", "possession_signature_file"])]
    statement_out: Option<PathBuf>,
    /// Its name in the registry [default: from purpose and public key]
    #[arg(long)]
    kid: Option<String>,
}

/// Who proves possession.
enum Proof {
    /// The private key is at hand.
    Held(Holder),
    /// A signature was given.
    Signed(Vec<u8>),
    /// Nobody yet.
    Elsewhere,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CliError + '_ {
    move |e| CliError::Io(path.display().to_string(), e)
}

async fn proof(place: &Place, args: &Args) -> Result<(PublicKey, Proof), CliError> {
    let unreadable = |what: String| CliError::Usage(format!("{what}: neither a signature nor hex or base64 of one"));
    if let Some(from) = args.from.text()? {
        let (_, registry) = directory::reader(place).await?;
        let holder = signers::incoming(&from, &registry).await?;
        return Ok((holder.public_key()?, Proof::Held(holder)));
    }
    let path = args.public_key.as_deref().ok_or_else(|| CliError::Usage("give --key or --public-key".into()))?;
    let public_key = read_public_key(path)?;
    let signature = match (&args.possession_signature, &args.possession_signature_file) {
        (Some(text), _) => Some(signature_from_text(text).ok_or_else(|| unreadable("--possession-signature".into()))?),
        (None, Some(path)) => {
            let bytes = std::fs::read(path).map_err(io(path))?;
            let raw = Algorithm::of_signature(bytes.len()) == Some(public_key.algorithm());
            let by_text = || signature_from_text(std::str::from_utf8(&bytes).ok()?.trim());
            let signature = if raw { Some(bytes.clone()) } else { by_text() };
            Some(signature.ok_or_else(|| unreadable(path.display().to_string()))?)
        }
        (None, None) => None,
    };
    Ok((public_key, signature.map_or(Proof::Elsewhere, Proof::Signed)))
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (public_key, proof) = proof(place, &args).await?;
    let mut key = Key::named(args.purpose, public_key);
    if let Some(kid) = &args.kid {
        if !is_kid(kid) {
            let text = "--kid: a lowercase letter or digit, then up to 63 of these or '.', '_', '-'";
            return Err(CliError::Usage(text.into()));
        }
        key.kid = kid.clone();
    }
    if !key.is_allowed() {
        let text = format!(
            "a key of the purpose {} must be Ed25519; only finance and kernel may be RSA",
            args.purpose.as_str()
        );
        return Err(CliError::Usage(text));
    }
    if args.justification.as_ref().is_some_and(|text| text.trim().is_empty()) {
        return Err(CliError::Usage("--justification: say why, for those who read it years later".into()));
    }
    match (proof, &args.governance_key.clone()) {
        (Proof::Elsewhere, _) => statement(place, json, &args, &key).await,
        (proof, Some(governance_key)) => enrol(place, json, key, args.justification, governance_key, proof).await,
        (_, None) => Err(CliError::Usage("give --governance-key".into())),
    }
}

/// Writes what the holder has to sign.
async fn statement(place: &Place, json: bool, args: &Args, key: &Key) -> Result<u8, CliError> {
    let Some(out) = &args.statement_out else {
        let text = "the holder of the private key has to sign: write the statement with --statement-out FILE, then give his signature with --possession-signature-file";
        return Err(CliError::Usage(text.into()));
    };
    let (ledger, _) = directory::reader(place).await?;
    let (revision, bytes) = ledger.enrol_statement(key, args.justification.as_deref()).await?;
    std::fs::write(out, &bytes).map_err(io(out))?;
    let file = out.display();
    let sign = match key.public_key.algorithm() {
        Algorithm::Ed25519 => format!("openssl pkeyutl -sign -rawin -inkey PRIVATE.pem -in {file} -out {file}.sig"),
        Algorithm::RsaSha256 => format!("openssl dgst -sha256 -sign PRIVATE.pem -out {file}.sig {file}"),
    };
    if json {
        let object = serde_json::json!({
            "ok": false, "kid": key.kid, "statement": out, "registry_revision": revision, "sign_with": sign,
        });
        output::line(&object.to_string())?;
        return Ok(2);
    }
    output::line(&format!(
        "{file}: what the holder of {} has to sign, good until the registry changes (revision {revision})",
        key.kid
    ))?;
    output::line(&format!("sign it with:   {sign}"))?;
    output::line(&format!("then enrol with --possession-signature-file {file}.sig"))?;
    Ok(2)
}

async fn enrol(
    place: &Place,
    json: bool,
    key: Key,
    justification: Option<String>,
    governance_key: &str,
    proof: Proof,
) -> Result<u8, CliError> {
    let ledger = directory::open_for_keys(place).await?;
    let governance = signers::governance(governance_key, &ledger.registry()).await?;
    let enrolled = match proof {
        Proof::Held(holder) => directory::enrol(&ledger, key.clone(), justification, &*governance, &holder).await,
        Proof::Signed(possession_signature) => {
            let (revision, statement) = ledger.enrol_statement(&key, justification.as_deref()).await?;
            if !key.public_key.verify(&statement, &possession_signature) {
                let text = format!(
                    "the holder's signature does not verify over the statement as it is now (registry revision {revision}); if the \
                     registry was changed since it was written, or --kid or --justification differs, write it again with --statement-out"
                );
                return Err(CliError::Usage(text));
            }
            let governance_signature = governance.sign(&statement).await.map_err(AppendError::Signer)?;
            let enrolment =
                Enrolment { key: key.clone(), justification, revision, governance_signature, possession_signature };
            ledger.enrol(enrolment).await.map_err(CliError::from)
        }
        Proof::Elsewhere => return Err(CliError::Usage("nobody proves possession".into())),
    };
    let closed = ledger.shutdown().await;
    let appended = match enrolled {
        Err(CliError::Append(AppendError::Refused(refusal))) => return super::refused(json, &refusal),
        enrolled => enrolled?,
    };
    closed?;
    let event_id = appended.entries.first().map(|e| e.event_id.to_string()).unwrap_or_default();
    let (purpose, alg) = (key.purpose.as_str(), key.public_key.algorithm().as_str());
    let text = if json {
        serde_json::json!({ "ok": true, "kid": key.kid, "purpose": purpose, "alg": alg, "event_id": event_id })
            .to_string()
    } else {
        format!("{} may sign as {purpose} ({alg}) from the next commit on; entry {event_id}", key.kid)
    };
    output::line(&text)?;
    Ok(0)
}
