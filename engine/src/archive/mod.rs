//! Archives: whole commits of every chain as lines, in files with a manifest (FORMAT.md 13).
//!
//! A **copy** ([`export_to_directory`]) is everything a ledger has now, for whoever asks for it; it needs no key and leaves no trace. A **batch**
//! ([`job`]) is the next part of an archive: signed, recorded in the ledger, and read back before it is called done. Both are made of the same
//! lines. Memory is bounded: one thread reads rows and prints lines, the others compress.

pub mod check;
pub mod job;
mod lines;
#[cfg(feature = "s3")]
pub mod locked;
pub mod place;
#[cfg(feature = "parquet")]
mod tables;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::export::{ChainRange, MANIFEST_NAME, Manifest};
use crate::genesis::Genesis;
use crate::hash::Hash;
use crate::ledger::{AppendError, CheckpointError};
use crate::signer::SignerError;
use crate::store::{Store, StoreError};
use lines::ChainExport;

/// How to export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Compress the files.
    pub gzip: bool,
    /// Leave private documents out.
    pub withhold_private: bool,
    /// When the export is made, microseconds since the Unix epoch.
    pub exported_at_us: i64,
    /// What the manifest names as the program.
    pub tool: String,
}

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The export cannot be written.
    #[error("{0}: {1}; nothing was exported, check the path and the free space")]
    Io(PathBuf, #[source] std::io::Error),
    /// There is something already.
    #[error("{0} exists already; a copy is never written over, name another directory")]
    Exists(PathBuf),
    /// The archive refuses or loses what it is given. The text says what to do.
    #[error("{0}: {1}; the export is not done, and goes on where it stopped when it is run again")]
    Archive(String, String),
    /// The archive cannot be what an export needs. Nothing was written to it.
    #[error("{0}: {1}; nothing was exported")]
    Unfit(String, String),
    /// Somebody else is exporting.
    #[error("another export of this ledger is under way; let it end, or end it, and run this again")]
    Busy,
    /// Somebody else exported meanwhile, because this job lost its place.
    #[error(
        "another export of this ledger was recorded while this one ran, which lost its place (did its connection to the database break?); nothing of \
         this one was recorded, run it again"
    )]
    Overtaken,
    /// No key to sign a manifest with.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// No checkpoint to end the batch at.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The record of the export could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Copies all chains as they are now into the new directory `to`: made beside it and renamed when it is complete and on stable storage, so
/// that a directory with a manifest is a whole copy.
pub fn export_to_directory(
    store: &dyn Store,
    genesis: &Genesis,
    ledger_id: Hash,
    options: &ExportOptions,
    to: &Path,
) -> Result<Manifest, ExportError> {
    if to.exists() {
        return Err(ExportError::Exists(to.to_owned()));
    }
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    fs::create_dir_all(parent).map_err(|e| ExportError::Io(parent.to_owned(), e))?;
    let building = tempfile::Builder::new().prefix(&format!(".{name}-")).tempdir_in(parent);
    let building = building.map_err(|e| ExportError::Io(parent.to_owned(), e))?;
    let heads = store.heads()?;
    let mut manifest = Manifest {
        ledger_id,
        origin: genesis.origin.clone(),
        exported_at_us: options.exported_at_us,
        tool: options.tool.clone(),
        private_withheld: options.withhold_private,
        chains: Vec::new(),
        files: Vec::new(),
        batch: None,
        signature: None,
    };
    for head in &heads {
        let range = ChainRange {
            chain: head.chain,
            from: 0,
            to: head.size(),
            prev_hash: Hash::ZERO,
            last_hash: head.hash,
            root: head.range.root(),
            commits: 0,
            checkpoints: 0,
        };
        let (gzip, withhold_private, dir) = (options.gzip, options.withhold_private, building.path());
        let export = ChainExport { store, range, gzip, withhold_private, dir };
        let files = &mut manifest.files;
        let range = export.write(&mut |finished| {
            files.push(finished.file);
            Ok(())
        })?;
        manifest.chains.push(range);
    }
    manifest.files.sort_by_key(|f| (f.chain, f.kind, f.from));
    let write = || -> std::io::Result<()> {
        let path = building.path().join(MANIFEST_NAME);
        let mut file = File::create(path)?;
        file.write_all(&manifest.encode())?;
        file.sync_all()?;
        File::open(building.path())?.sync_all()
    };
    write().map_err(|e| ExportError::Io(to.to_owned(), e))?;
    let made = building.keep();
    let rename = || -> std::io::Result<()> {
        fs::rename(&made, to)?;
        File::open(parent)?.sync_all()
    };
    rename().map_err(|e| {
        // The error that matters is the first one.
        let _ = fs::remove_dir_all(&made);
        ExportError::Io(to.to_owned(), e)
    })?;
    Ok(manifest)
}
