//! How far a source was read, shared between the thread that reads and those who watch.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a [`Gauge`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of a file, as they lie there: packed ones if it is packed.
    Bytes,
    /// Rows of a table.
    Rows,
    /// Files of a directory.
    Files,
}

/// How far a source was read, and the way to stop the reading.
pub struct Gauge {
    /// What is counted.
    pub unit: Unit,
    /// All there is, as far as that is known or estimated.
    pub total: Option<u64>,
    done: AtomicU64,
    stopped: AtomicBool,
    on_stop: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Gauge {
    pub(crate) fn new(unit: Unit, total: Option<u64>) -> Gauge {
        Gauge { unit, total, done: AtomicU64::new(0), stopped: AtomicBool::new(false), on_stop: None }
    }

    /// Also called to stop a reader that waits for somebody else.
    #[cfg(feature = "postgres")]
    pub(crate) fn on_stop(self, interrupt: impl Fn() + Send + Sync + 'static) -> Gauge {
        Gauge { on_stop: Some(Box::new(interrupt)), ..self }
    }

    /// Read so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, more: u64) {
        self.done.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        if !self.stopped.swap(true, Ordering::Relaxed)
            && let Some(interrupt) = &self.on_stop
        {
            interrupt();
        }
    }

    /// An error once the reading is to stop. Not of the kind `Interrupted`, after which the standard library reads on.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.stopped.load(Ordering::Relaxed) { Err(io::Error::other("stopped")) } else { Ok(()) }
    }
}
