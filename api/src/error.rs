//! Errors of the command line. Each says whose fault it is and what to do next.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use ledger_engine::archive::ExportError;
use ledger_engine::keys::KeyFileError;
use ledger_engine::ledger::{AppendError, CheckpointError};
use ledger_engine::prover::ProveError;
use ledger_engine::store::StoreError;

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// What the user asked for cannot be done as asked.
    #[error("{0}")]
    Usage(String),
    /// A file or stream failed; the text says which.
    #[error("{0}: {1}{advice}", advice = advice(.1))]
    Io(String, std::io::Error),
    /// A key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A command could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// No export could be made.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// No proof file could be made.
    #[error(transparent)]
    Proof(#[from] ProveError),
    /// No checkpoint could be issued.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// What to do about an I/O error, where it does not go without saying.
fn advice(e: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull};
    match e.kind() {
        PermissionDenied | ReadOnlyFilesystem => "; choose another place, or a user who may read or write it",
        NotFound => "; check the path",
        StorageFull => "; free space and try again",
        _ => "",
    }
}

/// Prints an error, with the ledger's directory where that has failed, and gives exit status 2. A closed pipe is no error: the reader has seen enough.
pub(crate) fn report(error: &CliError, dir: Option<&Path>, json: bool) -> ExitCode {
    if let CliError::Io(_, e) = error
        && e.kind() == std::io::ErrorKind::BrokenPipe
    {
        return ExitCode::SUCCESS;
    }
    let of_engine =
        matches!(error, CliError::Store(_) | CliError::Proof(_) | CliError::Append(_) | CliError::Checkpoint(_));
    let text = match dir.filter(|_| of_engine).map(|dir| dir.display().to_string()) {
        // The engine knows no path.
        Some(dir) if !error.to_string().contains(&dir) => format!("{dir}: {error}"),
        _ => error.to_string(),
    };
    if json {
        let object = serde_json::json!({ "ok": false, "error": text });
        // Nowhere left to complain if this fails too.
        let _ = writeln!(std::io::stdout(), "{object}");
    }
    let _ = writeln!(std::io::stderr(), "ledger: {text}");
    ExitCode::from(2)
}
