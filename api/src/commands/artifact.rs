use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use clap::Subcommand;

use crate::directory::{self, Place};
use crate::{CliError, output};

/// Keep what is sold where deliveries find it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Copy a file to where artifacts are kept, and print its SHA-256, by which a manifest names it
    Add {
        /// The file
        file: PathBuf,
        /// Where artifacts are kept: a directory, or s3://BUCKET[/PREFIX] [default: artifacts in --dir]
        #[arg(long, env = "ARTIFACT_STORE", value_name = "DIR|URL")]
        artifact_store: Option<String>,
    },
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (Action::Add { file, artifact_store }, dir) = (args.action, place.dir.clone());
    if artifact_store.is_none() && !dir.exists() {
        let why = "there is no ledger; name its directory with --dir, or the place with --artifact-store";
        return Err(CliError::Usage(format!("{}: {why}", dir.display())));
    }
    let adding = tokio::task::spawn_blocking(move || {
        let io = |e| CliError::Io(file.display().to_string(), e);
        let mut from = BufReader::new(File::open(&file).map_err(io)?);
        // What goes to a bucket leaves nothing in a directory that may not be a ledger's.
        let spool = std::env::temp_dir();
        directory::files(&dir, artifact_store.as_deref(), None, spool, 0)?.add_artifact(&mut from).map_err(io)
    });
    let (sha256, bytes) = adding.await.map_err(|e| CliError::Usage(e.to_string()))??;
    output::line(&if json {
        serde_json::json!({ "ok": true, "sha256": sha256.to_hex(), "bytes": bytes }).to_string()
    } else {
        format!("{sha256}  {bytes} bytes")
    })?;
    Ok(0)
}
