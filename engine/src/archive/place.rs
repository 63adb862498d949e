//! Where archives are kept: a directory, or whatever else takes objects by name and gives them back.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::ExportError;
use crate::export::MANIFEST_NAME;
use crate::export::batch::SERVICE;
use crate::export::record::{ObjectLock, Retention};
use crate::hash::Hash;

/// What every object of a batch says of it, by name.
pub type Metadata = Vec<(&'static str, String)>;

/// An object to be kept.
#[derive(Clone, Copy, Debug)]
pub struct NewObject<'a> {
    /// Its name in the archive: `marketplace/yyyy-mm-dd/<batch>/<file>`.
    pub key: &'a str,
    /// The file with its bytes, made in [`Archive::spool`] and on stable storage.
    pub path: &'a Path,
    /// How many bytes.
    pub bytes: u64,
    /// SHA-256 of them.
    pub sha256: Hash,
    /// Whether it has private documents, which are kept for a time of their own.
    pub private: bool,
}

/// What the archive answers when it is asked for an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Which version it is, where the archive has versions.
    pub version: Option<String>,
}

/// What the archive says of a version of an object now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectState {
    /// It is there.
    pub there: bool,
    /// Somebody put a marker before it, so that the object seems to be deleted.
    pub hidden: bool,
    /// Somebody put another version before it.
    pub shadowed: bool,
    /// How it is locked, where the archive can lock.
    pub retention: Option<Retention>,
}

/// What all objects of a batch have in common.
#[derive(Clone, Debug, Default)]
pub struct BatchTerms {
    /// How they are locked, where the archive can lock.
    pub lock: Option<ObjectLock>,
    /// What they say of it.
    pub metadata: Metadata,
}

/// An archive that batches are written to. Calls block.
pub trait Archive: Send + Sync {
    /// What the ledger's record calls it.
    fn location(&self) -> &str;
    /// How objects of a batch that is planned now are locked, or why the archive is not fit for exports.
    fn terms(&self, exported_at_us: i64) -> Result<Option<ObjectLock>, ExportError>;
    /// A directory for files on their way, empty now; `name` tells ledgers apart. Whoever calls is the only one with that name.
    fn spool(&self, name: &str) -> Result<Spool, ExportError>;
    /// Keeps an object; its file may be gone then. One that is there with the same bytes and a sufficient lock is left alone, so
    /// that a batch that was cut off is finished.
    fn put(&self, object: NewObject<'_>, terms: &BatchTerms) -> Result<Kept, ExportError>;
    /// Reads the object back, and its lock: an error unless both are what they should be.
    fn check(&self, object: NewObject<'_>, kept: &Kept, terms: &BatchTerms) -> Result<(), ExportError>;
    /// Keys of the manifests of batches whose names begin so, with the version that came first, in no order. Those that sort before
    /// `after`, a batch's directory, may be left out.
    fn manifests(&self, prefix: &str, after: Option<&str>) -> Result<Vec<(String, Option<String>)>, ExportError>;
    /// Whether it locks what is put there.
    fn locks(&self) -> bool;
    /// How a version of an object is kept now.
    fn state(&self, key: &str, version: Option<&str>) -> Result<ObjectState, ExportError>;
    /// Reads a version of an object into `out`: SHA-256 and length. One of more than `most` bytes is not read to its end, and has another
    /// digest.
    fn read(
        &self,
        key: &str,
        version: Option<&str>,
        most: u64,
        out: &mut (dyn Write + Send),
    ) -> Result<(Hash, u64), ExportError>;
}

/// A directory that is removed, with what is in it, when this is dropped.
#[derive(Debug)]
pub struct Spool(PathBuf);

impl Spool {
    /// Makes it, without what a run that was killed has left there.
    pub fn make(path: PathBuf) -> Result<Spool, ExportError> {
        let make = || {
            match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            // Private documents pass through it, perhaps in a directory that everybody may read.
            let mut builder = fs::DirBuilder::new();
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(&path)
        };
        make().map_err(|e| ExportError::Io(path.clone(), e))?;
        Ok(Spool(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // The next run removes what stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// SHA-256 and length of a file.
#[cfg(feature = "parquet")]
pub(super) fn digest_of(path: &Path) -> io::Result<(Hash, u64)> {
    read(path, u64::MAX, &mut io::sink())
}

/// Reads a file, but for what is more than one byte over `most`, into `out`: SHA-256 and length.
fn read(path: &Path, most: u64, out: &mut dyn Write) -> io::Result<(Hash, u64)> {
    let mut file = File::open(path)?.take(most.saturating_add(1));
    let (mut sha256, mut bytes) = (Sha256::new(), 0);
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok((Hash(sha256.finalize().into()), bytes)),
            n => {
                sha256.update(&block[..n]);
                bytes += n as u64;
                out.write_all(&block[..n])?;
            }
        }
    }
}

/// An archive in a directory.
#[derive(Clone, Debug)]
pub struct DirectoryArchive {
    root: PathBuf,
    location: String,
}

impl DirectoryArchive {
    /// In this directory, which is made if it is not there. `location` is what the ledger calls it, where it has been moved since.
    pub fn open(root: &Path, location: Option<String>) -> Result<DirectoryArchive, ExportError> {
        let failed = |e| ExportError::Io(root.to_owned(), e);
        fs::create_dir_all(root).map_err(failed)?;
        // However it is named, it is one archive.
        let root = root.canonicalize().map_err(failed)?;
        let location = location.unwrap_or_else(|| root.display().to_string());
        Ok(DirectoryArchive { root, location })
    }
}

impl DirectoryArchive {
    /// The archive that a ledger's record calls `location`, for looking at it where it is now. Nothing is made.
    pub fn recorded(root: PathBuf, location: &str) -> DirectoryArchive {
        DirectoryArchive { root, location: location.to_owned() }
    }
}

/// Makes the names in a directory durable.
fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Archive for DirectoryArchive {
    fn location(&self) -> &str {
        &self.location
    }

    fn terms(&self, _: i64) -> Result<Option<ObjectLock>, ExportError> {
        Ok(None)
    }

    fn locks(&self) -> bool {
        false
    }

    fn spool(&self, name: &str) -> Result<Spool, ExportError> {
        // On the same file system, so that files are renamed to their places.
        Spool::make(self.root.join(format!(".spool-{name}")))
    }

    fn put(&self, object: NewObject<'_>, _: &BatchTerms) -> Result<Kept, ExportError> {
        let path = self.root.join(object.key);
        let put = || {
            let dir = path.parent().unwrap_or(&self.root);
            fs::create_dir_all(dir)?;
            fs::rename(object.path, &path)?;
            // The directory, and those above it that may be new.
            dir.ancestors().take_while(|d| d.starts_with(&self.root)).try_for_each(sync)
        };
        put().map_err(|e| ExportError::Io(path.clone(), e))?;
        Ok(Kept::default())
    }

    fn check(&self, object: NewObject<'_>, _: &Kept, _: &BatchTerms) -> Result<(), ExportError> {
        let path = self.root.join(object.key);
        let found = read(&path, object.bytes, &mut io::sink()).map_err(|e| ExportError::Io(path.clone(), e))?;
        if found == (object.sha256, object.bytes) {
            return Ok(());
        }
        let why = format!("{} was read back with other bytes than were written; check the medium", object.key);
        Err(ExportError::Archive(self.location.clone(), why))
    }

    fn manifests(&self, prefix: &str, after: Option<&str>) -> Result<Vec<(String, Option<String>)>, ExportError> {
        let names = |dir: &Path| -> Result<Vec<String>, ExportError> {
            let failed = |e| ExportError::Io(dir.to_owned(), e);
            let mut names = Vec::new();
            for item in fs::read_dir(dir).map_err(failed)? {
                names.push(item.map_err(failed)?.file_name().to_string_lossy().into_owned());
            }
            Ok(names)
        };
        let top = self.root.join(SERVICE);
        let mut found = Vec::new();
        if !top.is_dir() {
            return Ok(found);
        }
        let since = after.and_then(|dir| dir.split('/').nth(1)).unwrap_or_default();
        for day in names(&top)?.into_iter().filter(|day| day.as_str() >= since && top.join(day).is_dir()) {
            for name in names(&top.join(&day))?.into_iter().filter(|name| name.starts_with(prefix)) {
                let key = format!("{SERVICE}/{day}/{name}/{MANIFEST_NAME}");
                if self.root.join(&key).is_file() {
                    found.push((key, None));
                }
            }
        }
        Ok(found)
    }

    fn state(&self, key: &str, _: Option<&str>) -> Result<ObjectState, ExportError> {
        Ok(ObjectState { there: self.root.join(key).is_file(), ..ObjectState::default() })
    }

    fn read(
        &self,
        key: &str,
        _: Option<&str>,
        most: u64,
        out: &mut (dyn Write + Send),
    ) -> Result<(Hash, u64), ExportError> {
        let path = self.root.join(key);
        read(&path, most, out).map_err(|e| ExportError::Io(path.clone(), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_spool_is_for_its_owner_alone_and_forgets_what_was_there() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/spool");
        fs::create_dir_all(path.join("left")).unwrap();
        let spool = Spool::make(path.clone()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
        drop(spool);
        assert!(!path.exists());
        // A link that somebody put there leads nowhere.
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "x").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        match Spool::make(path.clone()) {
            Ok(spool) => assert!(!fs::symlink_metadata(spool.path()).unwrap().is_symlink()),
            Err(e) => assert!(e.to_string().contains("spool"), "{e}"),
        }
        assert!(other.join("kept").exists());
    }
}
