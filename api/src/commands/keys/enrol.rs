use std::path::{Path, PathBuf};

use ledger_engine::finance::signature_from_text;
use ledger_engine::keys::{PrivateKey, read_public_key};
use ledger_engine::ledger::{AppendError, Enrolment};
use ledger_engine::public_key::{Algorithm, PublicKey};
use ledger_engine::registry::{Key, Purpose, is_kid};

use crate::directory::{self, Place};
use crate::{CliError, output};

/// Enrol a key: the governance key admits it, and its holder proves that he has it
///
/// Where the private key is elsewhere, as that of finance is: write the statement with --public-key and --statement-out, let the
/// holder sign it, and give the signature with --possession-signature-file. The statement is good until the registry changes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What it may sign: commit, checkpoint, export, licence, delivery-proof; finance or kernel, which may be RSA
    #[arg(long, value_parser = super::purpose)]
    purpose: Purpose,
    /// The governance key (PKCS#8 PEM)
    #[arg(long, value_name = "FILE", required_unless_present = "statement_out")]
    governance_key: Option<PathBuf>,
    /// The private key (PKCS#8 PEM): it is only used to prove that it is there
    #[arg(long, value_name = "PRIVATE.pem", conflicts_with = "public_key", required_unless_present = "public_key")]
    key: Option<PathBuf>,
    /// The public key (PEM), where the private key is elsewhere
    #[arg(long, value_name = "FILE.pem")]
    public_key: Option<PathBuf>,
    /// The holder's signature over the statement, hex or base64
    #[arg(long, value_name = "HEX", requires = "public_key")]
    possession_signature: Option<String>,
    /// The holder's signature over the statement, as openssl writes it, or hex or base64
    #[arg(long, value_name = "FILE", requires = "public_key", conflicts_with = "possession_signature")]
    possession_signature_file: Option<PathBuf>,
    /// Write what the holder has to sign, and stop
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "possession_signature", "possession_signature_file"])]
    statement_out: Option<PathBuf>,
    /// Its name in the registry [default: from purpose and public key]
    #[arg(long)]
    kid: Option<String>,
}

/// Who proves possession.
enum Holder {
    /// The private key is at hand.
    Here(PrivateKey),
    /// A signature was given.
    Signed(Vec<u8>),
    /// Nobody yet.
    Elsewhere,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CliError + '_ {
    move |e| CliError::Io(path.display().to_string(), e)
}

fn holder(args: &Args) -> Result<(PublicKey, Holder), CliError> {
    let unreadable = |what: String| CliError::Usage(format!("{what}: neither a signature nor hex or base64 of one"));
    if let Some(path) = &args.key {
        let key = PrivateKey::read(path)?;
        let public_key = key.public_key().map_err(|e| CliError::Usage(format!("{}: {e}", path.display())))?;
        return Ok((public_key, Holder::Here(key)));
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
    Ok((public_key, signature.map_or(Holder::Elsewhere, Holder::Signed)))
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (public_key, holder) = holder(&args)?;
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
    match (holder, &args.governance_key) {
        (Holder::Elsewhere, _) => statement(place, json, &args, &key).await,
        (holder, Some(governance_key)) => enrol(place, json, key, governance_key, holder).await,
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
    let (revision, bytes) = ledger.enrol_statement(key).await?;
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

async fn enrol(place: &Place, json: bool, key: Key, governance_key: &Path, holder: Holder) -> Result<u8, CliError> {
    let ledger = directory::open_for_keys(place).await?;
    let governance = super::governance(governance_key, &ledger.registry())?;
    let enrolled = match holder {
        Holder::Here(private) => directory::enrol(&ledger, key.clone(), &governance, &private).await,
        Holder::Signed(possession_signature) => {
            let (revision, statement) = ledger.enrol_statement(&key).await?;
            if !key.public_key.verify(&statement, &possession_signature) {
                let text = format!(
                    "the holder's signature does not verify over the statement as it is now (registry revision {revision}); if the \
                     registry was changed since it was written, or --kid differs, write it again with --statement-out"
                );
                return Err(CliError::Usage(text));
            }
            let governance_signature = governance.signature(&statement);
            let enrolment = Enrolment { key: key.clone(), revision, governance_signature, possession_signature };
            ledger.enrol(enrolment).await.map_err(CliError::from)
        }
        Holder::Elsewhere => return Err(CliError::Usage("nobody proves possession".into())),
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
