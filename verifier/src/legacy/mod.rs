//! Judges the chain of the system before this one: `audit_events`, exactly as it was written (FORMAT.md 11).

mod anchor;
mod canonical;
mod file;
mod gauge;
mod judge;
mod report;
mod resolve;
mod row;
pub(crate) mod signers;
#[cfg(feature = "postgres")]
mod table;
mod time;
mod verify;

pub use anchor::{Anchor, AnchorError};
pub use file::{File, FileFormat};
pub use gauge::{Gauge, Unit};
pub(crate) use judge::{OTHER_TYPES, TYPES_MAX};
pub use report::{AdoptionReport, KeyReport, LegacyReport};
pub use row::ROW_BYTES_MAX;
pub use signers::{Signers, SignersError};
#[cfg(feature = "postgres")]
pub use table::{Table, Window};
pub(crate) use time::print_time;

pub use verify::{LegacyError, Source, Watch, verify_adopted, verify_legacy, verify_legacy_with};

/// Opens a file, a directory, or a table by a `postgres://` URL, to be read as a whole.
pub fn open_source(source: &str, table: &str) -> Result<Box<dyn Source>, LegacyError> {
    if source.starts_with("postgres://") || source.starts_with("postgresql://") {
        return open_table(source, table);
    }
    Ok(Box::new(File::open(std::path::Path::new(source), None)?))
}

#[cfg(feature = "postgres")]
fn open_table(url: &str, table: &str) -> Result<Box<dyn Source>, LegacyError> {
    Ok(Box::new(Table::open(url, table, Window::default())?))
}

#[cfg(not(feature = "postgres"))]
fn open_table(_: &str, _: &str) -> Result<Box<dyn Source>, LegacyError> {
    Err(LegacyError::Source("this build has no PostgreSQL; build it with the feature postgres".to_owned()))
}

/// The parsers alone, for fuzzing.
#[doc(hidden)]
pub mod parsers {
    pub use super::time::{parse_time, print_time};

    /// The canonical form of one JSON text.
    pub fn canonical(text: &str) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        super::canonical::canonicalise(text, &mut out, &mut super::canonical::Scratch::default())
            .map_err(|fault| fault.to_string())?;
        Ok(out)
    }
}
