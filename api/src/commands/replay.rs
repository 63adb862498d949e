use crate::CliError;
use crate::directory::{self, Place};
use crate::output::{self, safe};

/// Rebuild the projections from the entries, or check that they equal them
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing: list the rows that differ from the fold of the entries
    #[arg(long)]
    check: bool,
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    if !args.check {
        let ledger = directory::rebuilder(place).await?;
        let rows = ledger.rebuild().await?;
        let text = format!("rebuilt {rows} rows");
        output::line(&if json { serde_json::json!({ "ok": true, "rows": rows }).to_string() } else { text })?;
        return Ok(0);
    }
    let (ledger, _) = directory::reader(place).await?;
    let differing = ledger.check_projections().await?;
    if json {
        output::line(&serde_json::json!({ "ok": differing.is_empty(), "differing": differing }).to_string())?;
    } else {
        for row in &differing {
            output::line(&format!("differs: {}", safe(row)))?;
        }
        let text = match differing.len() {
            0 => "projections equal the fold of the entries".to_owned(),
            n => format!(
                "{n} rows differ; `audit-verify` tells whether the entries are whole, `ledger replay` rebuilds the rows"
            ),
        };
        output::line(&text)?;
    }
    Ok(u8::from(!differing.is_empty()))
}
