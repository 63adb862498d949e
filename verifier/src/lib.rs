//! Judges a ledger by FORMAT.md section 10: every fault is found, placed and named, in one run.
//!
//! It shares the format and the hashing with the engine and never its store: it has its own read-only SQL, and believes
//! the bytes and the pinned ledger id only.

mod anchor;
mod chain;
mod commits;
mod derived;
mod export;
mod finding;
mod fold;
mod html;
pub mod legacy;
#[cfg(feature = "postgres")]
mod postgres;
mod proof;
mod prove;
mod report;
mod row;
mod single;
mod source;
mod stored;
mod stream;
mod tree;
mod verify;

pub use anchor::{Anchor, AnchorError};
pub use export::Export;
pub use finding::{Code, Finding};
pub use proof::{verify_proof, verify_proof_bytes};
pub use report::{ChainReport, KeyReport, Part, Report, Verdict};
pub use source::{Cursor, Dump, SourceError, Sqlite, Tables};
pub use stream::verify_stream;
pub use verify::{Demands, Progress, explain, verify};

use std::path::Path;

use ledger_engine::export::MANIFEST_NAME;
use ledger_engine::hash::Hash;

/// Verifies a ledger's directory, a backup file (`.db`) or a dump (`.json`). Without `trust`, a dump's own is used.
pub fn verify_path(path: &Path, trust: Option<Hash>) -> Report {
    verify_path_with(path, Demands { trust, ..Demands::default() })
}

/// Like [`verify_path`], with anchors.
pub fn verify_path_with(path: &Path, demands: Demands<'_>) -> Report {
    let name = path.display().to_string();
    match open(path) {
        Ok((tables, trust)) => verify(&name, &*tables, Demands { trust: demands.trust.or(trust), ..demands }),
        Err(e) => Report::unreadable(&name, &e.to_string()),
    }
}

/// Opens a source, and gives the ledger id that a dump names as trusted.
fn open(path: &Path) -> Result<(Box<dyn Tables>, Option<Hash>), SourceError> {
    if path.file_name().is_none_or(|n| n != MANIFEST_NAME) && path.extension().is_some_and(|e| e == "json") {
        let dump = Dump::read(path)?;
        let trust = dump.trust;
        return Ok((Box::new(dump), trust));
    }
    if Export::is_at(path) {
        return Ok((Box::new(Export::open(path)?), None));
    }
    Ok((Box::new(Sqlite::open(path)?), None))
}
