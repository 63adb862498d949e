//! Where artifacts are read and deliveries are kept: each in a directory or in a bucket. An artifact is named by its SHA-256. A delivery is two
//! files with one name: what the buyer gets, and beside it what was learned while it was encrypted. Calls block.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ledger_engine::bucket::{Bucket, BucketError};
use ledger_engine::delivery::ContentKey;
use ledger_engine::delivery::stream::{self, Digests, Fresh};
use ledger_engine::environment::{Environment as _, SystemEnvironment};
use ledger_engine::export::record::Retention;
use ledger_engine::hash::Hash;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::CliError;

/// Most bytes of an artifact: what S3 takes in parts of 32 MiB.
const ARTIFACT_BYTES_MAX: u64 = 10_000 * (32 << 20);
/// Most bytes of what is kept beside a delivery.
const PARTICULARS_BYTES_MAX: u64 = 1 << 20;
/// How the names of files begin that are being written, and how long one may take.
const DRAFT: &str = ".draft-";
const DRAFT_TIME: Duration = Duration::from_secs(24 * 3600);
/// How long a URL of a bucket can be used.
const URL_TIME: Duration = Duration::from_secs(300);

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
    /// The private key of a marketplace-managed delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) private_key: Option<SealedKey>,
}

/// A private key, sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedKey {
    /// Names the key that opens it.
    pub(crate) source: String,
    /// Hex.
    pub(crate) sealed: String,
}

/// The file beside a delivery. The digest is over the delivery's id, that of its ciphertext, and `made_with`, so that nothing of another
/// delivery and nothing that was damaged gets into a signed proof.
#[derive(Serialize, Deserialize)]
struct Beside {
    made_with: Particulars,
    sha256: String,
}

impl Beside {
    fn of(delivery_id: &str, ciphertext: &str, made_with: Particulars) -> io::Result<Beside> {
        let text = serde_json::to_vec(&(delivery_id, ciphertext, &made_with))?;
        let sha256 = Hash(Sha256::digest(&text).into()).to_hex();
        Ok(Beside { made_with, sha256 })
    }
}

/// A directory or a bucket.
#[derive(Clone)]
enum Place {
    Directory(PathBuf),
    Bucket(Arc<Bucket>),
}

/// Where artifacts and deliveries are.
#[derive(Clone)]
pub(crate) struct Files {
    artifacts: Place,
    deliveries: Place,
    /// What is on its way to or from a bucket.
    spool: PathBuf,
    /// How long objects of deliveries are locked, in days; 0: not.
    retain_days: u32,
    /// The server is ending.
    closing: Arc<AtomicBool>,
}

/// Why nothing was encrypted.
#[derive(Debug)]
pub(crate) enum SealError {
    /// Not there, not readable, or the target cannot be written. The text is for operators.
    Away(&'static str, String),
    /// Its bytes are not those that the manifest names.
    Other { found: Hash, bytes: u64 },
}

/// What a buyer is given.
pub(crate) enum Delivered {
    File(PathBuf),
    /// Good for a few minutes.
    Url(String),
}

fn away(what: &'static str) -> impl FnOnce(io::Error) -> SealError {
    move |e| SealError::Away(what, e.to_string())
}

/// The same error for whoever reads and writes files.
fn of_bucket(e: BucketError) -> io::Error {
    let kind = if matches!(e, BucketError::Missing(_)) { io::ErrorKind::NotFound } else { io::ErrorKind::Other };
    io::Error::new(kind, e.to_string())
}

impl Place {
    /// `text`: `s3://BUCKET[/PREFIX]`, or a directory.
    fn open(text: &str) -> Result<Place, CliError> {
        if !text.starts_with("s3://") {
            return Ok(Place::Directory(text.into()));
        }
        let opened = Bucket::open(text, &crate::signers::variable);
        opened.map(|bucket| Place::Bucket(Arc::new(bucket))).map_err(|e| CliError::Usage(format!("{text}: {e}")))
    }

    /// Where a file is written before it gets its name.
    fn draft(&self, spool: &Path) -> io::Result<NamedTempFile> {
        let dir = match self {
            Place::Directory(dir) => dir,
            Place::Bucket(_) => spool,
        };
        fs::create_dir_all(dir)?;
        tempfile::Builder::new().prefix(DRAFT).tempfile_in(dir)
    }

    /// Gives a file its name. When this returns, it is durable.
    fn keep(&self, file: NamedTempFile, name: &str, sha256: Hash, lock: Option<&Retention>) -> io::Result<()> {
        match self {
            Place::Directory(dir) => {
                file.as_file().sync_all()?;
                file.persist(dir.join(name))?;
                File::open(dir)?.sync_all()
            }
            Place::Bucket(bucket) => {
                let metadata = [("sha256", sha256.to_hex())];
                match lock {
                    Some(lock) => bucket.put(name, file.path(), &metadata, lock).map(drop),
                    None => bucket.put_unlocked(name, file.path(), &metadata),
                }
                .map_err(of_bucket)
            }
        }
    }

    /// Reads until the server ends.
    fn read(&self, name: &str, spool: &Path, closing: &Arc<AtomicBool>) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Place::Directory(dir) => {
                let file = Until { of: File::open(dir.join(name))?, closing: Arc::clone(closing) };
                Ok(Box::new(BufReader::new(file)))
            }
            Place::Bucket(bucket) => {
                fs::create_dir_all(spool)?;
                // It has no name, so that its room comes free whatever ends this process.
                let mut copy = Until { of: tempfile::tempfile_in(spool)?, closing: Arc::clone(closing) };
                bucket.get(name, None, ARTIFACT_BYTES_MAX, &mut copy).map_err(of_bucket)?;
                copy.of.rewind()?;
                Ok(Box::new(BufReader::new(copy)))
            }
        }
    }

    fn bytes(&self, name: &str) -> io::Result<u64> {
        match self {
            Place::Directory(dir) => Ok(fs::metadata(dir.join(name))?.len()),
            Place::Bucket(bucket) => bucket.bytes(name).map_err(of_bucket),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self {
            Place::Directory(dir) => fs::remove_file(dir.join(name)),
            Place::Bucket(bucket) => bucket.remove(name).map_err(of_bucket),
        }
    }
}

fn name(delivery_id: &str, ciphertext: &str, extension: &str) -> String {
    // Digests and ids of deliveries are hex and hyphens.
    format!("{delivery_id}-{}.{extension}", ciphertext.get(..16).unwrap_or_default())
}

/// `None` for what is not there.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

impl Files {
    /// Where they are: directories, or `s3://BUCKET[/PREFIX]`. Buckets are not asked yet.
    pub(crate) fn open(artifacts: &str, deliveries: &str, spool: PathBuf, retain_days: u32) -> Result<Files, CliError> {
        let (artifacts, deliveries) = (Place::open(artifacts)?, Place::open(deliveries)?);
        Ok(Files { artifacts, deliveries, spool, retain_days, closing: Arc::default() })
    }

    /// Nothing more is encrypted: what is under way ends soon.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Whether it was told to.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Copies a file to where artifacts are kept. Whoever adds it again finds it there.
    pub(crate) fn add_artifact(&self, from: &mut impl Read) -> io::Result<(Hash, u64)> {
        let mut copy = Hashing { to: self.artifacts.draft(&self.spool)?, sha256: Sha256::new() };
        let bytes = io::copy(from, &mut copy)?;
        copy.to.flush()?;
        let sha256 = Hash(copy.sha256.finalize().into());
        self.artifacts.keep(copy.to, &sha256.to_hex(), sha256, None)?;
        Ok((sha256, bytes))
    }

    /// What a buyer is given of a delivery. `None` if it is not there, or not whole.
    pub(crate) fn delivered(&self, delivery_id: &str, ciphertext: &str) -> io::Result<Option<Delivered>> {
        if self.particulars(delivery_id, ciphertext)?.is_none() {
            return Ok(None);
        }
        let name = name(delivery_id, ciphertext, "enc");
        Ok(Some(match &self.deliveries {
            Place::Directory(dir) => Delivered::File(dir.join(name)),
            Place::Bucket(bucket) => {
                let url = bucket.presigned(&name, &format!("{delivery_id}.enc"), URL_TIME);
                Delivered::Url(url.map_err(of_bucket)?)
            }
        }))
    }

    /// What was kept beside a delivery. `None` if either is not there, or not whole.
    pub(crate) fn particulars(&self, delivery_id: &str, ciphertext: &str) -> io::Result<Option<Particulars>> {
        let open = AtomicBool::new(false).into();
        let beside = there(self.deliveries.read(&name(delivery_id, ciphertext, "json"), &self.spool, &open))?;
        let Some(beside) = beside else { return Ok(None) };
        let mut text = Vec::new();
        beside.take(PARTICULARS_BYTES_MAX).read_to_end(&mut text)?;
        let kept = match serde_json::from_slice::<Beside>(&text) {
            Ok(found) => {
                let same = Beside::of(delivery_id, ciphertext, found.made_with)?;
                Some(same).filter(|same| same.sha256 == found.sha256).map(|same| same.made_with)
            }
            Err(_) => None,
        };
        let Some(kept) = kept else {
            tracing::warn!("what lies beside {delivery_id} is damaged, or of another delivery");
            return Ok(None);
        };
        let bytes = there(self.deliveries.bytes(&name(delivery_id, ciphertext, "enc")))?;
        Ok((bytes == Some(kept.ciphertext_bytes)).then_some(kept))
    }

    /// Encrypts an artifact. When this returns, file and particulars are durable.
    pub(crate) fn seal(
        &self,
        delivery_id: &str,
        artifact: Hash,
        (key, fresh, context): (&ContentKey, &Fresh, &[u8]),
        particulars: impl FnOnce(&Digests) -> Particulars,
    ) -> Result<Digests, SealError> {
        let source = self.artifacts.read(&artifact.to_hex(), &self.spool, &self.closing);
        let source = source.map_err(away("the artifact"))?;
        let mut to = self.deliveries.draft(&self.spool).map_err(away("the place of deliveries"))?;
        let digests =
            stream::seal(key, fresh, context, source, &mut to).map_err(away("the artifact, or the delivery"))?;
        if digests.plain_sha256 != artifact {
            return Err(SealError::Other { found: digests.plain_sha256, bytes: digests.plain_bytes });
        }
        let ciphertext = digests.sealed_sha256.to_hex();
        let lock = (self.retain_days > 0).then(|| Retention {
            mode: "COMPLIANCE".into(),
            until_s: SystemEnvironment.now_us() / 1_000_000 + i64::from(self.retain_days) * 86_400,
            legal_hold: false,
        });
        let keep = |file, extension, sha256| {
            self.deliveries.keep(file, &name(delivery_id, &ciphertext, extension), sha256, lock.as_ref())
        };
        let written = || {
            let text = serde_json::to_vec(&Beside::of(delivery_id, &ciphertext, particulars(&digests))?)?;
            let mut beside = self.deliveries.draft(&self.spool)?;
            beside.write_all(&text)?;
            keep(beside, "json", Hash(Sha256::digest(&text).into()))?;
            keep(to, "enc", digests.sealed_sha256)
        };
        written().map_err(|e| {
            // One of them may be there.
            self.forget(delivery_id, &ciphertext);
            away("the place of deliveries")(e)
        })?;
        Ok(digests)
    }

    /// Removes what processes that were killed left on its way: drafts of more than a day.
    pub(crate) fn sweep(&self) {
        let places = [&self.artifacts, &self.deliveries].into_iter().filter_map(|place| match place {
            Place::Directory(dir) => Some(dir),
            Place::Bucket(_) => None,
        });
        for dir in places.chain([&self.spool]) {
            for file in fs::read_dir(dir).into_iter().flatten().flatten() {
                let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
                let draft = file.file_name().to_string_lossy().starts_with(DRAFT);
                if draft && age.is_some_and(|age| age > DRAFT_TIME) {
                    // Another server may do the same.
                    let _ = fs::remove_file(file.path());
                }
            }
        }
    }

    /// Forgets a delivery's file that no entry names.
    pub(crate) fn forget(&self, delivery_id: &str, ciphertext: &str) {
        for extension in ["enc", "json"] {
            if let Err(e) = there(self.deliveries.remove(&name(delivery_id, ciphertext, extension))) {
                tracing::warn!("a file of {delivery_id} that is not needed is left: {e}");
            }
        }
    }
}

/// Reads or writes until the server ends.
struct Until<T> {
    of: T,
    closing: Arc<AtomicBool>,
}

impl<T> Until<T> {
    fn goes_on(&self) -> io::Result<()> {
        if self.closing.load(Ordering::Relaxed) { Err(io::Error::other("the server is ending")) } else { Ok(()) }
    }
}

impl<T: Read> Read for Until<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.goes_on()?;
        self.of.read(buf)
    }
}

impl<T: io::Write> io::Write for Until<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.goes_on()?;
        self.of.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.of.flush()
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
