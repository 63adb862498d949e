use std::path::PathBuf;

use ledger_engine::genesis::{CHAINS_MAX, Genesis, is_origin};

use crate::directory::{self, NewLedger, Place};
use crate::{CliError, output};

/// Make a new ledger: its directory, its keys, its genesis entries
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the ledger in checkpoints: a schema-less URL that you own
    #[arg(long, default_value = "ledger.example/orders", value_name = "NAME")]
    origin: String,
    /// How many chains; fixed for the life of the ledger
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(CHAINS_MAX)))]
    chains: u32,
    /// Where to write the governance key [default: beside the directory]. Keep it away from the server
    #[arg(long, value_name = "FILE")]
    governance_key: Option<PathBuf>,
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    if !is_origin(&args.origin) {
        let text = "--origin: 1 to 200 bytes without spaces, control characters or '+'";
        return Err(CliError::Usage(text.into()));
    }
    let governance_key = args.governance_key.unwrap_or_else(|| directory::governance_path(&place.dir));
    let new = NewLedger { place, governance_key: &governance_key, origin: args.origin, chains: args.chains };
    let genesis = directory::create(new).await?;
    let id = Genesis::ledger_id(&genesis.to_body().encode());
    if json {
        let object = serde_json::json!({
            "ok": true, "ledger_id": id.to_hex(), "dir": place.dir, "chains": genesis.chains, "origin": genesis.origin,
            "governance_key": governance_key,
        });
        output::line(&object.to_string())?;
    } else {
        output::line(&format!("ledger      {}", place.dir.display()))?;
        output::line(&format!("ledger id   {id}"))?;
        output::line(&format!("governance  {}", governance_key.display()))?;
        output::line("")?;
        output::line("Give the ledger id to your auditors: whoever pins it pins keys, chains and rules.")?;
        output::line("Move the governance key to a safe place: it alone can admit or retire keys.")?;
    }
    Ok(0)
}
