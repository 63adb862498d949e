use std::path::PathBuf;

use ledger_engine::keys::{SigningKey, write_key};
use ledger_engine::registry::{Key, Purpose};

use crate::{CliError, directory, output};

/// Make an Ed25519 key: a PKCS#8 PEM file that only its owner may read
///
/// It counts for nothing until it is enrolled.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What it is to sign: commit, checkpoint, export, licence, delivery-proof, finance, kernel
    #[arg(long, value_parser = super::purpose)]
    purpose: Purpose,
    /// Where to write it; a file that is there is left alone
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(json: bool, args: Args) -> Result<u8, CliError> {
    let signing = SigningKey::from_bytes(&directory::random()?);
    let key = Key::named(args.purpose, signing.verifying_key().to_bytes());
    write_key(&args.out, &signing)?;
    let (purpose, public_key) = (args.purpose.as_str(), key.public_key.to_hex());
    if json {
        let object = serde_json::json!({
            "ok": true, "kid": key.kid, "purpose": purpose, "alg": "ed25519", "public_key": public_key, "out": args.out,
        });
        output::line(&object.to_string())?;
        return Ok(0);
    }
    output::line(&format!("{}: {} with the public key {public_key}", args.out.display(), key.kid))?;
    output::line(&format!(
        "enrol it with: ledger keys enrol --purpose {purpose} --governance-key FILE --key {}",
        args.out.display()
    ))?;
    Ok(0)
}
