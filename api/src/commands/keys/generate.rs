use std::path::PathBuf;

use ledger_engine::keys::{SigningKey, write_encrypted_key, write_key};
use ledger_engine::registry::{Key, Purpose};
use ledger_engine::signer::pkcs11::TokenSource;
use ledger_engine::signer::place::SignerPlace;
use ledger_engine::signer::remote::Patience;

use crate::{CliError, directory, output};

/// Make an Ed25519 key: a PKCS#8 PEM file that only its owner may read, or inside a PKCS#11 token, which never gives it away
///
/// It counts for nothing until it is enrolled.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What it is to sign: commit, checkpoint, export, licence, delivery-proof, finance, kernel
    #[arg(long, value_parser = super::purpose)]
    purpose: Purpose,
    /// Where to write it; a file that is there is left alone
    #[arg(long, value_name = "FILE", required_unless_present = "in_pkcs11")]
    out: Option<PathBuf>,
    /// Encrypt the file with the passphrase in LEDGER_KEY_PASSPHRASE_FILE or LEDGER_KEY_PASSPHRASE
    #[arg(long, requires = "out")]
    encrypt: bool,
    /// Make it inside a token: pkcs11:token=LABEL;object=NEW-LABEL
    #[arg(long, value_name = "URI", conflicts_with = "out")]
    in_pkcs11: Option<String>,
}

pub(crate) async fn run(json: bool, args: Args) -> Result<u8, CliError> {
    let (public_key, place, with) = match (args.in_pkcs11, args.out) {
        (Some(uri), _) => {
            let place = SignerPlace::parse(&uri).map_err(|e| CliError::Usage(format!("--in-pkcs11: {e}")))?;
            let SignerPlace::Pkcs11(token) = place else {
                return Err(CliError::Usage("--in-pkcs11: not a PKCS#11 URI, pkcs11:token=…;object=…".into()));
            };
            let source = TokenSource::new(token, Patience::default());
            let made = tokio::task::spawn_blocking(move || source.generate()).await;
            let made = made.map_err(|e| CliError::Usage(e.to_string()))?;
            let public_key = made.map_err(|e| CliError::Usage(format!("--in-pkcs11: {e}")))?;
            (public_key, uri.clone(), format!("--from-pkcs11 '{uri}'"))
        }
        (None, Some(out)) => {
            let signing = SigningKey::from_bytes(&directory::random()?);
            if args.encrypt {
                write_encrypted_key(&out, &signing)?
            } else {
                write_key(&out, &signing)?
            }
            let out = out.display().to_string();
            (signing.verifying_key().to_bytes(), out.clone(), format!("--key {out}"))
        }
        (None, None) => return Err(CliError::Usage("give --out or --in-pkcs11".into())),
    };
    let key = Key::named(args.purpose, public_key);
    let (purpose, public_key) = (args.purpose.as_str(), key.public_key.to_hex());
    if json {
        let object = serde_json::json!({
            "ok": true, "kid": key.kid, "purpose": purpose, "alg": "ed25519", "public_key": public_key, "out": place,
        });
        output::line(&object.to_string())?;
        return Ok(0);
    }
    output::line(&format!("{place}: {} with the public key {public_key}", key.kid))?;
    output::line(&format!("enrol it with: ledger keys enrol --purpose {purpose} --governance-key FILE {with}"))?;
    Ok(0)
}
