//! Judges a ledger by FORMAT.md section 10: every fault is found, placed and named, in one run.
//!
//! It shares the format and the hashing with the engine and never its store: it has its own read-only SQL, and believes
//! the bytes and the pinned ledger id only.

mod anchor;
mod bounded;
mod chain;
mod collector;
mod combine;
mod commits;
mod derived;
mod export;
mod external;
mod finding;
mod fold;
mod frequent;
mod html;
pub mod legacy;
mod named;
#[cfg(feature = "postgres")]
mod postgres;
mod proof;
mod prove;
mod ranges;
mod replace;
mod report;
mod row;
mod seen;
mod single;
mod source;
mod spill;
mod stored;
mod stream;
mod summary;
mod tree;
mod verify;

pub use anchor::{Anchor, AnchorError};
pub use combine::{combine, verify_batches};
pub use export::{Export, Judged, JudgedEntry, Lines, Taker};
pub use finding::{Code, Finding};
pub use proof::{Held, verify_proof, verify_proof_and, verify_proof_bytes};
pub use ranges::{Range, Standing};
pub use replace::replace;
pub use report::{ChainReport, KeyReport, Part, Report, Verdict};
#[cfg(feature = "postgres")]
pub use source::Postgres;
pub use source::{Cursor, Dump, SourceError, Sqlite, Tables};
pub use stream::verify_stream;
pub use verify::{Demands, Progress, explain, verify};

use std::path::Path;

use ledger_engine::export::MANIFEST_NAME;
use ledger_engine::hash::Hash;

/// Verifies a ledger's directory, a database by its `postgres://` URL, a backup file (`.db`), an export or a dump (`.json`).
pub fn verify_path(path: &Path, trust: Option<Hash>) -> Report {
    verify_path_with(path, Demands { trust, ..Demands::default() })
}

/// Like [`verify_path`], with anchors.
pub fn verify_path_with(path: &Path, demands: Demands<'_>) -> Report {
    let name = name_of(&path.display().to_string());
    match open(path, &demands) {
        Ok(tables) => verify(&name, &*tables, demands),
        Err(e) => Report::unreadable(&name, &e.to_string()),
    }
}

/// What a source is called in reports: a path as it is, a URL without password and options.
pub fn name_of(source: &str) -> String {
    let Some((scheme, rest)) = source.split_once("://") else { return source.to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split('?').next().unwrap_or_default();
    if path.contains('@') || !authority.contains('@') && rest.contains('@') {
        // No URL: where the password ends is a guess.
        return format!("{scheme}://…");
    }
    let Some((user, host)) = authority.rsplit_once('@') else { return format!("{scheme}://{authority}{path}") };
    let user = user.split(':').next().unwrap_or_default();
    format!("{scheme}://{user}@{host}{path}")
}

/// Whether a source is named by the URL of a PostgreSQL database.
pub fn is_database(source: &str) -> bool {
    source.starts_with("postgres://") || source.starts_with("postgresql://")
}

/// Whether a source is named by the `s3://` URL of a bucket.
pub fn is_bucket(source: &str) -> bool {
    source.starts_with("s3://")
}

fn open(path: &Path, demands: &Demands<'_>) -> Result<Box<dyn Tables>, SourceError> {
    if let Some(url) = path.to_str().filter(|url| is_database(url)) {
        return database(url);
    }
    if let Some(url) = path.to_str().filter(|url| is_bucket(url)) {
        return Ok(Box::new(Export::open_bucket(url, demands.trust, demands.locks)?));
    }
    if path.file_name().is_none_or(|n| n != MANIFEST_NAME) && path.extension().is_some_and(|e| e == "json") {
        return Ok(Box::new(Dump::read(path)?));
    }
    if Export::is_at(path) {
        return Ok(Box::new(Export::open(path, demands.trust)?));
    }
    Ok(Box::new(Sqlite::open(path)?))
}

#[cfg(feature = "postgres")]
fn database(url: &str) -> Result<Box<dyn Tables>, SourceError> {
    Ok(Box::new(Postgres::open(url)?))
}

#[cfg(not(feature = "postgres"))]
fn database(url: &str) -> Result<Box<dyn Tables>, SourceError> {
    let reason = "this build has no PostgreSQL; build it with the feature postgres".to_owned();
    Err(SourceError::Unreadable { path: name_of(url).into(), reason })
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn names_hold_no_password() {
        for (source, name) in [
            ("shop/ledger.db", "shop/ledger.db"),
            ("postgres://db/shop", "postgres://db/shop"),
            ("postgres://a:secret@db:5/shop?password=secret", "postgres://a@db:5/shop"),
            ("postgresql://a@db?options=x@y", "postgresql://a@db"),
            ("postgres://a:se/cret@db/shop", "postgres://…"),
            ("postgres://a:se?cret@db/shop", "postgres://…"),
            ("postgres://a:s@e/cret@db/shop", "postgres://…"),
        ] {
            assert_eq!(name_of(source), name);
        }
    }
}
