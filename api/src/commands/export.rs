use std::path::PathBuf;

use ledger_engine::archive::ExportOptions;
use ledger_engine::environment::{Environment as _, SystemEnvironment};

use crate::directory::{self, Place};
use crate::{CliError, output};

/// Write all entries, commits and checkpoints as JSON lines with a manifest, while writers go on
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory to make; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Do not compress the files
    #[arg(long)]
    plain: bool,
    /// Leave private documents out; the export verifies without them
    #[arg(long)]
    without_private: bool,
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (ledger, _) = directory::reader(place).await?;
    let options = ExportOptions {
        gzip: !args.plain,
        withhold_private: args.without_private,
        exported_at_us: SystemEnvironment.now_us(),
        tool: concat!("ledger ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let manifest = ledger.export(options, &args.out).await?;
    let entries: u64 = manifest.chains.iter().map(|c| c.to - c.from).sum();
    let bytes: u64 = manifest.files.iter().map(|f| f.bytes).sum();
    if json {
        let files: Vec<&str> = manifest.files.iter().map(|f| f.name.as_str()).collect();
        let object = serde_json::json!({
            "ok": true, "out": args.out, "ledger_id": manifest.ledger_id.to_hex(), "entries": entries, "bytes": bytes,
            "files": files,
        });
        output::line(&object.to_string())?;
        return Ok(0);
    }
    let text = format!(
        "exported {entries} entries ({bytes} bytes of lines, {} files) to {out}\n\
         verify it with: audit-verify {out} --trust {}",
        manifest.files.len(),
        manifest.ledger_id,
        out = args.out.display(),
    );
    output::line(&text)?;
    Ok(0)
}
