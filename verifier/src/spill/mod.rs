//! What does not fit in memory lies in unnamed temporary files (under `TMPDIR`).

mod log;
mod records;
mod runs;
mod shelf;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use self::log::{Forward, Log};
pub(crate) use self::records::{RecordReader, Records};
pub(crate) use self::runs::{Sorted, Sorter, Spool, Texts};
pub(crate) use self::shelf::Shelf;
use crate::source::SourceError;

/// The first failure of temporary files that belong to one run. Rows are handed over by callbacks that cannot fail, so whatever is
/// read after a failure is empty, and whoever began the run must ask [`Trouble::check`] before a word of it is believed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<io::Error>>>);

impl Trouble {
    /// Notes a failure.
    pub(crate) fn note(&self, e: io::Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
    }

    /// What was done, or nothing.
    pub(crate) fn or_default<T: Default>(&self, done: io::Result<T>) -> T {
        done.unwrap_or_else(|e| {
            self.note(e);
            T::default()
        })
    }

    /// `Err`: something failed since the last time.
    pub(crate) fn check(&self) -> Result<(), SourceError> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => Ok(()),
            Some(e) => Err(SourceError::Unreadable {
                path: std::env::temp_dir(),
                reason: format!("temporary files: {e}; make room, or set TMPDIR to a larger place"),
            }),
        }
    }
}
