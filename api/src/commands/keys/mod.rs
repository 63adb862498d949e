mod enrol;
mod export_registry;
mod generate;
mod retire;

use clap::Subcommand;
use ledger_engine::domain::decide::Refusal;
use ledger_engine::registry::Purpose;

use crate::directory::{self, Place};
use crate::{CliError, output};

/// The key registry: who may sign what, and from where to where
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the keys (what `ledger keys` does)
    List,
    Enrol(enrol::Args),
    Generate(generate::Args),
    Rotate(retire::Rotate),
    Revoke(retire::Revoke),
    ExportRegistry(export_registry::Args),
}

/// A purpose by its word.
fn purpose(text: &str) -> Result<Purpose, String> {
    Purpose::parse(text).ok_or_else(|| format!("one of {}", Purpose::names().collect::<Vec<_>>().join(", ")))
}

/// Says why a change of keys was refused.
fn refused(json: bool, refusal: &Refusal) -> Result<u8, CliError> {
    let (code, text) = (refusal.code.as_str(), refusal.to_string());
    let object = serde_json::json!({ "ok": false, "error": { "code": code, "message": text } });
    output::line(&if json { object.to_string() } else { format!("{code}: {text}") })?;
    Ok(1)
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    match args.command {
        None | Some(Command::List) => list(place, json).await,
        Some(Command::Enrol(args)) => enrol::run(place, json, args).await,
        Some(Command::Generate(args)) => generate::run(json, args).await,
        Some(Command::Rotate(args)) => retire::rotate(place, json, args).await,
        Some(Command::Revoke(args)) => retire::revoke(place, json, args).await,
        Some(Command::ExportRegistry(args)) => export_registry::run(place, args).await,
    }
}

async fn list(place: &Place, json: bool) -> Result<u8, CliError> {
    let (_, registry) = directory::reader(place).await?;
    if !json {
        output::line(&format!("{:<24} {:<14} {:<10} public key", "kid", "purpose", "state"))?;
    }
    for record in registry.records() {
        let state = match (&record.retired, &record.justification) {
            (Some(_), _) => "retired",
            (None, Some(_)) => "emergency",
            (None, None) => "valid",
        };
        let key = &record.key;
        let text = if json {
            let cut = record.retired.as_ref().map(|r| r.cut.clone());
            serde_json::json!({
                "kid": key.kid, "purpose": key.purpose.as_str(), "alg": key.public_key.algorithm().as_str(), "public_key": key.public_key.to_hex(),
                "state": state, "enrolled_at_registry_size": record.enrolled_size, "cut": cut,
                "justification": record.justification,
            })
            .to_string()
        } else {
            format!("{:<24} {:<14} {state:<10} {}", key.kid, key.purpose.as_str(), key.public_key.to_hex())
        };
        output::line(&text)?;
    }
    Ok(0)
}
