//! `keys rotate` and `keys revoke`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledger_engine::keys::{PrivateKey, SigningKey, write_key};
use ledger_engine::ledger::AppendError;
use ledger_engine::registry::{Key, Purpose, Registry};
use ledger_engine::retire::{Authorise, Authority, Retire};
use ledger_engine::signer::place::SignerPlace;
use ledger_engine::signer::{LocalSigner, Signer};
use tokio::runtime::Handle;

use crate::directory::{self, Place};
use crate::signers::{From, Holder};
use crate::{CliError, output, signers};

/// Put a new key in the place of one that is in use
///
/// Every chain is locked for a moment, and its size recorded: the old key counts up to there. Running processes that share
/// the directory of keys take the new one over by themselves. Keep the old public key in registries: without it nothing
/// that it signed can be verified.
#[derive(Debug, clap::Args)]
pub(crate) struct Rotate {
    /// What the key is for: commit, checkpoint, licence, export, delivery-proof, finance, kernel, governance
    #[arg(long, value_parser = super::purpose)]
    purpose: Purpose,
    /// The key that goes [default: the newest valid one of the purpose]
    #[arg(long, value_name = "KID")]
    kid: Option<String>,
    /// The governance key, which alone can do this: a PKCS#8 PEM file, or a signer
    #[arg(long, value_name = "FILE|SIGNER")]
    governance_key: String,
    /// Without any of these a new Ed25519 key is written to keys/KID.pem
    #[command(flatten)]
    from: From,
}

/// Let a key sign no more
///
/// What it signed before keeps counting, unless somebody else may have had it: --compromised-since names the sizes from which on.
#[derive(Debug, clap::Args)]
pub(crate) struct Revoke {
    /// The key that goes
    #[arg(long, value_name = "KID")]
    kid: String,
    /// Why; it is recorded for those who read it years later
    #[arg(long)]
    reason: String,
    /// The sizes of all chains, ascending by chain and separated by commas, from which on somebody else may have had the key
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    compromised_since: Option<Vec<u64>>,
    /// The governance key, which alone can do this: a PKCS#8 PEM file, or a signer
    #[arg(long, value_name = "FILE|SIGNER")]
    governance_key: String,
}

/// The key that comes.
struct Incoming {
    key: Key,
    private: Holder,
    /// Written for this rotation.
    made: Option<PathBuf>,
}

async fn incoming(place: &Place, registry: &Registry, args: &Rotate) -> Result<Incoming, CliError> {
    if let Some(from) = args.from.text()? {
        let private = signers::incoming(&from, registry).await?;
        return Ok(Incoming { key: Key::named(args.purpose, private.public_key()?), private, made: None });
    }
    if args.purpose.is_external() {
        let text = format!("a {} key is held by others: give the one that comes with --key", args.purpose.as_str());
        return Err(CliError::Usage(text));
    }
    // A key that was in no file does not get a successor in one unasked.
    let old = args.kid.as_ref().map_or(registry.current(args.purpose), |kid| registry.record(kid).map(|r| &r.key));
    let in_a_file = args.purpose == Purpose::Governance && !SignerPlace::is_meant(&args.governance_key)
        || old.is_none_or(|key| signers::has_file(&place.dir.join("keys"), &key.public_key));
    if !in_a_file {
        let text = "the private key of the key that goes is not in keys/: say where the one that comes is, with --from-kms, --from-pkcs11, \
                    --from-proxy, or --key and a file made by `ledger keys generate`";
        return Err(CliError::Usage(text.into()));
    }
    let signing = SigningKey::from_bytes(&directory::random()?);
    let key = LocalSigner::new(args.purpose, signing.clone()).key().clone();
    let path = match args.purpose {
        // Whoever runs the server must not have it.
        Purpose::Governance => Path::new(&args.governance_key).with_file_name(format!("{}.pem", key.kid)),
        _ => place.dir.join("keys").join(format!("{}.pem", key.kid)),
    };
    // There before it counts: a process that sees the rotation looks for it at once.
    write_key(&path, &signing)?;
    Ok(Incoming { key, private: Holder::Here(PrivateKey::Ed25519(Box::new(signing))), made: Some(path) })
}

fn authorise(governance: Arc<dyn Signer>, private: Option<Holder>) -> Authorise {
    let runtime = Handle::current();
    Box::new(move |statement| {
        runtime.block_on(async {
            let possession = match &private {
                Some(key) => Some(key.sign(statement).await?),
                None => None,
            };
            Ok(Authority { governance: governance.sign(statement).await?, possession })
        })
    })
}

pub(crate) async fn rotate(place: &Place, json: bool, args: Rotate) -> Result<u8, CliError> {
    let (_, registry) = directory::reader(place).await?;
    // Before a key is made.
    let governance = signers::governance(&args.governance_key, &registry).await?;
    let old_kid = match (&args.kid, registry.current(args.purpose)) {
        (Some(kid), _) => kid.clone(),
        (None, Some(key)) => key.kid.clone(),
        (None, None) => {
            let text =
                format!("the ledger has no valid {} key; enrol one with `ledger keys enrol`", args.purpose.as_str());
            return Err(CliError::Usage(text));
        }
    };
    let Incoming { key, private, made } = incoming(place, &registry, &args).await?;
    let kid = key.kid.clone();
    let retire = Retire::Rotate { old_kid: old_kid.clone(), key };
    let exit = retired(place, json, governance, retire, Some(private), (&old_kid, Some(&kid))).await;
    if let (Some(path), Ok(1)) = (&made, &exit) {
        // It governs nothing.
        std::fs::remove_file(path).map_err(|e| CliError::Io(path.display().to_string(), e))?;
    }
    if let (Ok(0), false) = (&exit, json) {
        output::line(&match (&made, args.from.text()?) {
            (Some(path), _) => format!("its private key: {}", path.display()),
            (None, Some(from)) if SignerPlace::is_meant(&from) => {
                format!("servers sign with it that have --signer '{from}', or LEDGER_SIGNERS")
            }
            (None, Some(path)) if !args.purpose.is_external() && args.purpose != Purpose::Governance => {
                format!("servers sign with it once {path} lies in their keys/ directory")
            }
            _ => "its private key stays where it is".to_owned(),
        })?;
    }
    exit
}

pub(crate) async fn revoke(place: &Place, json: bool, args: Revoke) -> Result<u8, CliError> {
    let Revoke { kid, reason, compromised_since, governance_key } = args;
    if reason.trim().is_empty() {
        return Err(CliError::Usage("--reason: say why, for those who read it years later".into()));
    }
    let governance = signers::governance(&governance_key, &directory::reader(place).await?.1).await?;
    let retire = Retire::Revoke { kid: kid.clone(), reason, compromised_since };
    retired(place, json, governance, retire, None, (&kid, None)).await
}

async fn retired(
    place: &Place,
    json: bool,
    governance: Arc<dyn Signer>,
    retire: Retire,
    private: Option<Holder>,
    (old, new): (&str, Option<&str>),
) -> Result<u8, CliError> {
    let ledger = directory::open_for_keys(place).await?;
    // What this process still has to sign, it signs with that.
    private.as_ref().and_then(Holder::signer).into_iter().for_each(|signer| ledger.signers().add(signer));
    let result = ledger.retire(retire, authorise(governance, private)).await;
    let appended = match result {
        Err(AppendError::Refused(refusal)) => {
            let answered = super::refused(json, &refusal);
            ledger.shutdown().await?;
            return answered;
        }
        result => result?,
    };
    let cut = ledger.registry().record(old).and_then(|r| r.retired.as_ref().map(|r| r.cut.clone())).unwrap_or_default();
    let entry = appended.entries.first();
    let (event_id, event_type) = entry.map(|e| (e.event_id.to_string(), e.event_type.clone())).unwrap_or_default();
    // Whoever signs checkpoints now may not be here: what was done is done.
    let closed = ledger.shutdown().await;
    if json {
        let object = serde_json::json!({
            "ok": true, "event_type": event_type, "event_id": event_id, "old_kid": old, "kid": new, "cut": cut,
        });
        output::line(&object.to_string())?;
    } else {
        let cut: Vec<String> = cut.iter().map(u64::to_string).collect();
        let successor = new.map(|new| format!("; {new} signs from now on")).unwrap_or_default();
        output::line(&format!("{old} counts up to the sizes {}{successor}; entry {event_id}", cut.join(", ")))?;
    }
    closed?;
    Ok(0)
}
