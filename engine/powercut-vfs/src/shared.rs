//! What the VFS, its open files and the test share: the disk, the counters and the faults, behind one lock.

use std::any::Any;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::disk::{Change, Disk};
use crate::{Fault, Kind};

/// A fault that waits for its operation.
#[derive(Debug)]
pub(crate) struct Armed {
    pub(crate) wait: u64,
    pub(crate) fault: Fault,
}

type Watch = Box<dyn FnMut(u64, &Disk) + Send>;

pub(crate) struct State {
    pub(crate) disk: Disk,
    pub(crate) armed: Vec<Armed>,
    pub(crate) fired: u64,
    pub(crate) writes: u64,
    pub(crate) truncations: u64,
    pub(crate) syncs: u64,
    pub(crate) operations: u64,
    pub(crate) watch: Option<Watch>,
    pub(crate) watch_panic: Option<Box<dyn Any + Send>>,
    open_files: u64,
    /// The test has dropped its [`crate::PowerCut`]: nothing new is recorded.
    released: bool,
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Faulted(Fault),
    /// The real VFS returned this code.
    Failed(i32),
}

impl State {
    /// The fault that hits this operation, if one is due.
    fn due(&mut self, kind: Kind) -> Option<Fault> {
        let mut hit = None;
        for (place, armed) in self.armed.iter_mut().enumerate().filter(|(_, a)| a.fault.hits() == kind) {
            if armed.wait > 0 {
                armed.wait -= 1;
            } else if hit.is_none() {
                hit = Some((place, armed.fault));
            }
        }
        let (place, fault) = hit?;
        self.fired += 1;
        if fault != Fault::WriteFull {
            self.armed.remove(place);
        }
        Some(fault)
    }

    /// Counts an operation that has just taken effect, and shows it to the watch.
    fn happened(&mut self) {
        self.operations += 1;
        let Some(mut watch) = self.watch.take() else { return };
        // A panic must not reach SQLite's frames.
        match catch_unwind(AssertUnwindSafe(|| watch(self.operations, &self.disk))) {
            Ok(()) => self.watch = Some(watch),
            Err(panic) => self.watch_panic = Some(panic),
        }
    }

    fn clear_if_unused(&mut self) {
        if self.released && self.open_files == 0 {
            self.disk.clear();
        }
    }
}

pub(crate) struct Shared {
    /// With symbolic links resolved.
    pub(crate) dir: PathBuf,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(dir: PathBuf, seed: u64) -> Shared {
        let state = State {
            disk: Disk::new(seed),
            armed: Vec::new(),
            fired: 0,
            writes: 0,
            truncations: 0,
            syncs: 0,
            operations: 0,
            watch: None,
            watch_panic: None,
            open_files: 0,
            released: false,
        };
        Shared { dir, state: Mutex::new(state) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name below the directory, if the path is there and no part of shared memory.
    pub(crate) fn relative(&self, path: &Path) -> Option<PathBuf> {
        let name = path.strip_prefix(&self.dir).ok()?;
        (!is_shared_memory(name)).then(|| name.to_path_buf())
    }

    pub(crate) fn settle(&self) -> io::Result<()> {
        let mut found = Vec::new();
        walk(&self.dir, &mut found)?;
        let mut state = self.lock();
        let mut names = Vec::new();
        for path in found {
            if let Some(name) = self.relative(&path) {
                state.disk.adopt(&name, fs::read(&path)?);
                names.push(name);
            }
        }
        state.disk.retain_names(|name| names.iter().any(|found| found == name));
        Ok(())
    }

    /// Opens a recorded file with `real`, which returns a code of SQLite. Gives the inode, or that code. Nothing is recorded
    /// (`Ok(None)`) once the test has let go.
    pub(crate) fn open(&self, name: &Path, real: impl FnOnce() -> i32) -> Result<Option<u64>, i32> {
        let mut state = self.lock();
        let record = !state.released;
        if record
            && !state.disk.knows(name)
            && let Ok(content) = fs::read(self.dir.join(name))
        {
            state.disk.adopt(name, content);
        }
        let code = real();
        if code != 0 {
            return Err(code);
        }
        if !record {
            return Ok(None);
        }
        let (inode, created) = state.disk.open(name);
        state.open_files += 1;
        if created {
            state.happened();
        }
        Ok(Some(inode))
    }

    pub(crate) fn close(&self, inode: u64) {
        let mut state = self.lock();
        state.disk.close(inode);
        state.open_files = state.open_files.saturating_sub(1);
        state.clear_if_unused();
    }

    /// Writes with `real`, given how many bytes, and records it. The lock is held over both, so the record has the order of
    /// the file.
    pub(crate) fn write(&self, inode: u64, at: u64, data: &[u8], real: impl FnOnce(usize) -> i32) -> Outcome {
        let mut state = self.lock();
        state.writes += 1;
        let fault = state.due(Kind::Write);
        let length = match fault {
            None => data.len(),
            Some(Fault::WriteTorn) => data.len() / 2,
            Some(_) => 0,
        };
        let code = if length > 0 { real(length) } else { 0 };
        if code == 0 && length > 0 {
            state.disk.change(inode, Change::Write { at, data: data[..length].to_vec() });
        }
        let outcome = match (fault, code) {
            (Some(fault), _) => Outcome::Faulted(fault),
            (None, 0) => Outcome::Done,
            (None, code) => Outcome::Failed(code),
        };
        state.happened();
        outcome
    }

    pub(crate) fn truncate(&self, inode: u64, size: u64, real: impl FnOnce() -> i32) -> Outcome {
        let mut state = self.lock();
        state.truncations += 1;
        let outcome = match state.due(Kind::Truncation) {
            Some(fault) => Outcome::Faulted(fault),
            None => match real() {
                0 => {
                    state.disk.change(inode, Change::Truncate { size });
                    Outcome::Done
                }
                code => Outcome::Failed(code),
            },
        };
        state.happened();
        outcome
    }

    /// Syncs in the model only, and the directory of `name` too if it is given.
    pub(crate) fn sync(&self, inode: u64, directory_of: Option<&Path>) -> Outcome {
        let mut state = self.lock();
        state.syncs += 1;
        let fault = state.due(Kind::Sync);
        if fault == Some(Fault::SyncErrorLost) {
            state.disk.sync_lost(inode);
        } else {
            state.disk.sync(inode);
            if let Some(name) = directory_of {
                state.disk.sync_directory_of(name);
            }
        }
        state.happened();
        fault.map_or(Outcome::Done, Outcome::Faulted)
    }

    pub(crate) fn delete(&self, name: &Path, sync_directory: bool, real: impl FnOnce() -> i32) -> i32 {
        let mut state = self.lock();
        let code = real();
        if code == 0 {
            state.disk.delete(name);
            if sync_directory {
                state.disk.sync_directory_of(name);
            }
            state.happened();
        }
        code
    }

    pub(crate) fn release(&self) {
        let mut state = self.lock();
        state.released = true;
        state.armed.clear();
        let watch = state.watch.take();
        state.clear_if_unused();
        drop(state);
        drop(watch);
    }
}

fn is_shared_memory(name: &Path) -> bool {
    name.as_os_str().as_encoded_bytes().ends_with(b"-shm")
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), found)?;
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}
