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
        /// Where artifacts are kept [default: artifacts in --dir]
        #[arg(long, env = "ARTIFACT_DIR", value_name = "DIR")]
        artifact_dir: Option<PathBuf>,
    },
}

pub(crate) fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let Action::Add { file, artifact_dir } = args.action;
    let io = |e| CliError::Io(file.display().to_string(), e);
    let mut from = BufReader::new(File::open(&file).map_err(io)?);
    let (sha256, bytes) = directory::files(&place.dir, artifact_dir, None).add_artifact(&mut from).map_err(io)?;
    output::line(&if json {
        serde_json::json!({ "ok": true, "sha256": sha256.to_hex(), "bytes": bytes }).to_string()
    } else {
        format!("{sha256}  {bytes} bytes")
    })?;
    Ok(0)
}
