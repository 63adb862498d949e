//! Judges the chain of the system before this one: `audit_events`, exactly as it was written (FORMAT.md 11).

mod anchor;
mod canonical;
mod file;
mod gauge;
mod judge;
mod report;
mod resolve;
mod row;
mod signers;
mod spill;
#[cfg(feature = "postgres")]
mod table;
mod time;
mod verify;

pub use anchor::{Anchor, AnchorError};
pub use file::{File, FileFormat};
pub use gauge::{Gauge, Unit};
pub use report::{KeyReport, LegacyReport};
pub use row::ROW_BYTES_MAX;
pub use signers::{Signers, SignersError};
#[cfg(feature = "postgres")]
pub use table::{Table, Window};
pub(crate) use time::print_time;

pub use verify::{FINDINGS_LISTED, LegacyError, Source, Watch, verify_legacy, verify_legacy_with};

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
