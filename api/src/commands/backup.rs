use std::path::PathBuf;

use crate::directory::{self, Place};
use crate::{CliError, output};

/// Write a copy of the ledger into one file, while writers go on
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to make; it must not exist
    file: PathBuf,
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (ledger, _) = directory::reader(place).await?;
    ledger.backup(&args.file).await?;
    let text = format!("wrote {}", args.file.display());
    output::line(&if json { serde_json::json!({ "ok": true, "file": args.file }).to_string() } else { text })?;
    Ok(0)
}
