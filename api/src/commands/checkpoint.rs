use crate::directory::{self, Place};
use crate::{CliError, output};

/// Sign and print a checkpoint (C2SP tlog-checkpoint) of every chain
///
/// Save it where the operator cannot reach it: a ledger that no longer contains it was rewritten or cut off.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(place: &Place, json: bool, _: Args) -> Result<u8, CliError> {
    let ledger = directory::open(place).await?;
    for (chain, note) in ledger.shutdown().await?.iter().enumerate() {
        if json {
            output::line(&serde_json::json!({ "chain": chain, "checkpoint": note.to_string() }).to_string())?;
        } else {
            output::line(&note.to_string())?;
        }
    }
    Ok(0)
}
