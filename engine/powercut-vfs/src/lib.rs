//! Test only: a SQLite VFS that knows which writes a power cut would lose.
//!
//! Killing a process proves little about durability: what it had written is in the kernel's page cache and survives. To
//! prove that an acknowledged transaction survives a loss of power, a test needs a disk that forgets whatever was not
//! synced. [`PowerCut::register`] wraps the default VFS. Every write goes to the real file at once, so that all
//! connections of the process see it, and besides is recorded as *not yet durable*. A sync makes what is recorded for
//! that file durable in a shadow of the disk, kept in memory. [`PowerCut::image`] writes into another directory what
//! the disk would hold if the power failed now; the test opens it with the ordinary VFS and looks at what is left.
//!
//! ```
//! use powercut_vfs::{CutMode, PowerCut};
//! use rusqlite::{Connection, OpenFlags};
//!
//! let (live, out) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! let disk = PowerCut::register("doc", live.path().to_path_buf(), 1);
//! let db = Connection::open_with_flags_and_vfs(live.path().join("a.db"), OpenFlags::default(), disk.name())?;
//! db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t(x); INSERT INTO t VALUES (1);")?;
//! disk.image(out.path(), CutMode::Random { seed: 7 })?;
//! let after = Connection::open(out.path().join("a.db"))?;
//! assert_eq!(after.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))?, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To cut at *every* operation of a run, and not only between statements, give [`PowerCut::watch`] a closure. To let
//! operations fail, use [`PowerCut::fail_after`].
//!
//! # The model
//!
//! - **Content.** Between two syncs of a file its changes may reach the device in any selection. In
//!   [`CutMode::Random`] each is kept, lost, or torn at a 512-byte boundary of the file (the part before or the part after
//!   it is kept). A sector never goes back: if two changes to it are kept, the later one wins. Bytes outside the
//!   range of a write never change, which is what SQLite's `POWERSAFE_OVERWRITE` assumes.
//! - **Between files** there is no order but that of the syncs.
//! - **Names.** A new file exists after the cut once it was synced, or once its directory was. A deletion is durable once
//!   the directory is synced, or once a new file of that name is; until then the old file comes back. The directory is
//!   synced where the unix VFS does it: in a deletion with `syncDir`, and with the first sync of a journal or WAL by a
//!   handle that was opened to create it. At random, a name is at any point of what happened to it since.
//! - **`-shm`** is memory and never in an image.
//! - **Failed syncs.** What [`Fault::SyncErrorLost`] failed to store is not made durable by a later sync either, because the
//!   kernel marks such pages clean; only writing it again helps. At random it may have reached the device all the same.
//!
//! # The limits
//!
//! - **A sync is believed.** A device that acknowledges a flush and lies is not modelled, nor is a file system with bugs.
//! - No bit rot, no misdirected write, no damage beside the bytes written, no stale data in a file that grew: gaps are zeros.
//! - Sectors are atomic, 512 bytes, in place.
//! - The real files are **not** synced: the live directory is not safe from a real loss of power, and runs are fast.
//! - Only what goes through this VFS is recorded, and only below the directory. Temporary files, and files elsewhere,
//!   pass through unrecorded, uncounted and without faults. Files written by other means after registration are in no
//!   image until they are opened through the VFS or [`PowerCut::settle`] is called.
//! - Other processes, and other VFS, must not write the same files meanwhile.
//! - Memory mapping, chunked growth and atomic batch writes, which go around `xWrite`, are switched off.
//! - Everything not yet durable, and a copy of everything durable, is in memory: for tests of some megabytes.
//! - unix only.

mod disk;
mod shared;
mod vfs;

use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use disk::{CutMode, Disk};
use shared::{Armed, Shared};

/// A way in which an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A write returns `SQLITE_FULL` and writes nothing, and so does every write after it **until
    /// [`PowerCut::clear_faults`]**: a full disk stays full.
    WriteFull,
    /// One write returns `SQLITE_IOERR_WRITE` and writes nothing.
    WriteError,
    /// One write returns `SQLITE_IOERR_WRITE` after its first half reached the file.
    WriteTorn,
    /// One truncation returns `SQLITE_IOERR_TRUNCATE` and changes nothing.
    TruncateError,
    /// One sync returns `SQLITE_IOERR_FSYNC`; nothing becomes durable, and what it should have stored is not made
    /// durable by a later sync either.
    SyncErrorLost,
    /// One sync returns `SQLITE_IOERR_FSYNC`, though everything became durable.
    SyncErrorStored,
}

/// What a fault can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Write,
    Truncation,
    Sync,
}

impl Fault {
    fn hits(self) -> Kind {
        match self {
            Fault::WriteFull | Fault::WriteError | Fault::WriteTorn => Kind::Write,
            Fault::TruncateError => Kind::Truncation,
            Fault::SyncErrorLost | Fault::SyncErrorStored => Kind::Sync,
        }
    }
}

/// A registered VFS and the disk below it.
///
/// Dropping it unregisters the name; connections that are still open go on working.
pub struct PowerCut {
    name: String,
    shared: Arc<Shared>,
}

impl fmt::Debug for PowerCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PowerCut").field("name", &self.name).field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl PowerCut {
    /// Registers a VFS under `name`, not as the default. `dir` is the directory with the live files; it is made if it is
    /// missing, and what it holds already counts as durable. `seed` goes into every choice of [`CutMode::Random`].
    ///
    /// # Panics
    /// If the name is in use or has a NUL, or the directory cannot be made or read.
    #[must_use]
    pub fn register(name: &str, dir: PathBuf, seed: u64) -> PowerCut {
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("make {}: {e}", dir.display()));
        // SQLite hands over paths with symbolic links resolved.
        let dir = dir.canonicalize().unwrap_or_else(|e| panic!("resolve {}: {e}", dir.display()));
        let shared = Arc::new(Shared::new(dir, seed));
        shared.settle().unwrap_or_else(|e| panic!("read {}: {e}", shared.dir.display()));
        vfs::register(name, &shared);
        PowerCut { name: name.to_owned(), shared }
    }

    /// The name to open connections with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes into the directory `out` what the disk would hold if the power failed now.
    ///
    /// # Errors
    /// If `out` is not empty, or cannot be made or written.
    pub fn image(&self, out: &Path, mode: CutMode) -> io::Result<()> {
        self.shared.lock().disk.image(out, mode)
    }

    /// Makes everything that is in the directory now durable as it is, whoever wrote it.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn settle(&self) -> io::Result<()> {
        self.shared.settle()
    }

    /// Calls `look` after every operation on a recorded file (create, write, truncate, sync, delete), with its number from 1
    /// ([`PowerCut::operations`]) and the disk as it then is. It runs inside SQLite's call, with this VFS locked: it may take
    /// images and open them with another VFS, but must not use this one or this `PowerCut`.
    ///
    /// If it panics, it is not called again and [`PowerCut::unwatch`] panics.
    pub fn watch(&self, look: impl FnMut(u64, &Disk) + Send + 'static) {
        self.shared.lock().watch = Some(Box::new(look));
    }

    /// Ends [`PowerCut::watch`].
    ///
    /// # Panics
    /// With the panic of the closure, if it had one.
    pub fn unwatch(&self) {
        let mut state = self.shared.lock();
        let (watch, panic) = (state.watch.take(), state.watch_panic.take());
        drop(state);
        drop(watch);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Lets `n_ops` more operations *of the kind that the fault hits* succeed, writes, truncations or syncs, and the next
    /// one fail: with 0 the very next. So `for n in 0..writes { fail_after(n, Fault::WriteError) }` meets each write of a run once.
    /// Faults add up; only [`Fault::WriteFull`] lasts, the others fire once.
    pub fn fail_after(&self, n_ops: u64, fault: Fault) {
        self.shared.lock().armed.push(Armed { wait: n_ops, fault });
    }

    /// Takes back all faults, fired or not.
    pub fn clear_faults(&self) {
        self.shared.lock().armed.clear();
    }

    /// How many operations failed because of [`PowerCut::fail_after`].
    #[must_use]
    pub fn faults_fired(&self) -> u64 {
        self.shared.lock().fired
    }

    /// How many syncs were asked for, failed ones included.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.shared.lock().syncs
    }

    /// How many writes were asked for, failed ones included; a truncation is not a write.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.shared.lock().writes
    }

    /// How many truncations were asked for, failed ones included.
    #[must_use]
    pub fn truncations(&self) -> u64 {
        self.shared.lock().truncations
    }

    /// How many operations there were: files created and deleted, writes, truncations, syncs.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.shared.lock().operations
    }
}

impl Drop for PowerCut {
    fn drop(&mut self) {
        vfs::unregister(&self.name);
        self.shared.release();
    }
}
