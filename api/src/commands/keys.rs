use ledger_engine::hash::to_hex;

use crate::directory::{self, Place};
use crate::{CliError, output};

/// List the key registry: who may sign what, and from where to where
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(place: &Place, json: bool, _: Args) -> Result<u8, CliError> {
    let (_, registry) = directory::reader(place).await?;
    if !json {
        output::line(&format!("{:<24} {:<14} {:<10} public key (Ed25519)", "kid", "purpose", "state"))?;
    }
    for record in registry.records() {
        let state = if record.retired.is_some() { "retired" } else { "valid" };
        let key = &record.key;
        let text = if json {
            let cut = record.retired.as_ref().map(|r| r.cut.clone());
            serde_json::json!({
                "kid": key.kid, "purpose": key.purpose.as_str(), "alg": "ed25519", "public_key": to_hex(&key.public_key),
                "state": state, "enrolled_at_registry_size": record.enrolled_size, "cut": cut,
            })
            .to_string()
        } else {
            format!("{:<24} {:<14} {state:<10} {}", key.kid, key.purpose.as_str(), to_hex(&key.public_key))
        };
        output::line(&text)?;
    }
    Ok(0)
}
