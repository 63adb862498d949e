//! Where artifacts are read and deliveries are kept: two directories. An artifact's file is named by its SHA-256. A delivery is two files with
//! one name: what the buyer gets, and beside it what was learned while it was encrypted.

use std::fs::{self, File};
use std::io::{self, BufReader, Write as _};
use std::path::{Path, PathBuf};

use ledger_engine::delivery::ContentKey;
use ledger_engine::delivery::stream::{self, Digests, Fresh};
use ledger_engine::hash::Hash;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

/// What a delivery's file was made with: all that its proof says and its entry does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Particulars {
    pub(crate) artifact_bytes: u64,
    pub(crate) ciphertext_bytes: u64,
    /// Hex, as all digests and keys here.
    pub(crate) manifest_sha256: String,
    pub(crate) manifest_signature_id: String,
    pub(crate) key_algorithm: String,
    pub(crate) encrypted_key: String,
    pub(crate) key_fingerprint: String,
    /// The private key of a marketplace-managed delivery, sealed under the marketplace's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sealed_private_key: Option<String>,
}

/// The two directories.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    artifacts: PathBuf,
    deliveries: PathBuf,
}

/// What an artifact is that should be encrypted, and what was found.
#[derive(Debug)]
pub(crate) enum SealError {
    /// Not there, not readable, or the target cannot be written.
    Io(PathBuf, io::Error),
    /// Its bytes are not those that the manifest names.
    Other { found: Hash, bytes: u64 },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SealError + use<> {
    let path = path.to_owned();
    move |e| SealError::Io(path, e)
}

impl Files {
    pub(crate) fn new(artifacts: PathBuf, deliveries: PathBuf) -> Files {
        Files { artifacts, deliveries }
    }

    /// Copies a file to where artifacts are kept. Whoever adds it again finds it there.
    pub(crate) fn add_artifact(&self, from: &mut impl io::Read) -> io::Result<(Hash, u64)> {
        fs::create_dir_all(&self.artifacts)?;
        let mut copy = Hashing { to: NamedTempFile::new_in(&self.artifacts)?, sha256: Sha256::new() };
        let bytes = io::copy(from, &mut copy)?;
        let sha256 = Hash(copy.sha256.finalize().into());
        keep(copy.to, &self.artifacts.join(sha256.to_hex()))?;
        Ok((sha256, bytes))
    }

    fn path(&self, delivery_id: &str, ciphertext: &str, extension: &str) -> PathBuf {
        // Digests and ids of deliveries are hex and hyphens.
        self.deliveries.join(format!("{delivery_id}-{}.{extension}", ciphertext.get(..16).unwrap_or_default()))
    }

    /// The file that a buyer gets.
    pub(crate) fn delivered(&self, delivery_id: &str, ciphertext: &str) -> PathBuf {
        self.path(delivery_id, ciphertext, "enc")
    }

    /// What was kept beside it. `None` if either is not there.
    pub(crate) fn particulars(&self, delivery_id: &str, ciphertext: &str) -> io::Result<Option<Particulars>> {
        let kept = match fs::read(self.path(delivery_id, ciphertext, "json")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            kept => serde_json::from_slice::<Particulars>(&kept?)?,
        };
        match fs::metadata(self.delivered(delivery_id, ciphertext)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            found => Ok((found?.len() == kept.ciphertext_bytes).then_some(kept)),
        }
    }

    /// Encrypts an artifact. When this returns, file and particulars are durable.
    pub(crate) fn seal(
        &self,
        delivery_id: &str,
        artifact: Hash,
        (key, fresh, context): (&ContentKey, &Fresh, &[u8]),
        particulars: impl FnOnce(&Digests) -> Particulars,
    ) -> Result<Digests, SealError> {
        let from = self.artifacts.join(artifact.to_hex());
        let source = File::open(&from).map_err(at(&from))?;
        fs::create_dir_all(&self.deliveries).map_err(at(&self.deliveries))?;
        let mut to = NamedTempFile::new_in(&self.deliveries).map_err(at(&self.deliveries))?;
        let digests = stream::seal(key, fresh, context, BufReader::new(source), &mut to).map_err(at(&from))?;
        if digests.plain_sha256 != artifact {
            return Err(SealError::Other { found: digests.plain_sha256, bytes: digests.plain_bytes });
        }
        let ciphertext = digests.sealed_sha256.to_hex();
        let (kept, delivered) = (self.path(delivery_id, &ciphertext, "json"), self.delivered(delivery_id, &ciphertext));
        let written = || {
            let mut beside = NamedTempFile::new_in(&self.deliveries)?;
            beside.write_all(&serde_json::to_vec(&particulars(&digests))?)?;
            keep(beside, &kept)?;
            keep(to, &delivered)
        };
        written().map_err(at(&delivered))?;
        Ok(digests)
    }

    /// Forgets a delivery's file that no entry names.
    pub(crate) fn forget(&self, delivery_id: &str, ciphertext: &str) {
        for extension in ["enc", "json"] {
            // It may never have been there.
            let _ = fs::remove_file(self.path(delivery_id, ciphertext, extension));
        }
    }
}

/// Writes and hashes.
struct Hashing {
    to: NamedTempFile,
    sha256: Sha256,
}

impl io::Write for Hashing {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.to.write(buf)?;
        self.sha256.update(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Gives a file its name once it is durable.
fn keep(file: NamedTempFile, name: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(name)?;
    File::open(name.parent().unwrap_or(Path::new(".")))?.sync_all()
}
