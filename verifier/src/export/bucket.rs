//! An archive in S3: its objects are fetched by their versions into a temporary directory, several at once, and judged there.
//!
//! Whoever may put objects can put a version over what was exported, and whoever may delete can hide it. So the first version of a manifest
//! counts, or the one that the next manifest names, and of every other object the version that its manifest names; what lies over them is a
//! finding. The same bytes once more are none: who got no answer puts an object again.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ledger_engine::bucket::{Bucket, BucketError, Version};
use ledger_engine::export::batch::SERVICE;
use ledger_engine::export::record::Retention;
use ledger_engine::export::{FileKind, MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest};
use ledger_engine::hash::Hash;

use super::Export;
use super::batches::printable;
use crate::finding::{Code, Finding};
use crate::source::SourceError;

/// Bytes of all manifests of an archive together, at most: so many, and so many for each batch, which of 64 chains with tables has half of it.
const MANIFESTS_BYTES_MAX: usize = 128 << 20;
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Objects that are fetched side by side.
const FETCHED_AT_ONCE: usize = 8;

/// A manifest in the bucket.
struct Candidate {
    key: String,
    version: String,
    /// What it is, or the beginning of what is no manifest.
    bytes: Vec<u8>,
    /// SHA-256 and length of the object.
    what: (Hash, u64),
    manifest: Option<Manifest>,
}

/// An object to be fetched.
struct Wanted {
    key: String,
    version: Option<String>,
    /// How many bytes it should have.
    bytes: u64,
    /// How it should be locked, where that is asked for.
    lock: Option<Retention>,
}

struct Fetch<'a> {
    url: &'a str,
    bucket: Bucket,
    to: PathBuf,
    versions: BTreeMap<String, Vec<Version>>,
    findings: Vec<Finding>,
}

/// Fetches what an archive has of the trusted ledger, or of the only one. `locks`: it is looked at how each object is locked.
///
/// Only batches with one of the `numbers` are fetched, and what says which keys there were.
pub(super) fn open(
    url: &str,
    trust: Option<Hash>,
    locks: bool,
    numbers: &RangeInclusive<u64>,
) -> Result<Export, SourceError> {
    let failed = |why: String| SourceError::Unreadable { path: url.into(), reason: why };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let bucket = Bucket::open(url, &variable).map_err(|e| failed(e.to_string()))?;
    let room = |e: std::io::Error| failed(format!("{e}; set TMPDIR to a directory with room for the archive"));
    let dir = tempfile::tempdir().map_err(room)?;
    let to = dir.path().join("archive");
    fs::create_dir(&to).map_err(room)?;
    let mut fetch = Fetch { url, bucket, to, versions: BTreeMap::new(), findings: Vec::new() };
    fetch.all(trust, locks, numbers)?;
    let Fetch { to, findings, .. } = fetch;
    let mut export = Export::open(&to, trust)?;
    (export.objects, export.root, export._fetched) = (findings, url.into(), Some(dir));
    Ok(export)
}

impl Fetch<'_> {
    fn failed(&self, e: &BucketError) -> SourceError {
        SourceError::Unreadable { path: self.url.into(), reason: e.to_string() }
    }

    fn room(&self, e: &std::io::Error) -> SourceError {
        let reason = format!("{e}; set TMPDIR to a directory with room for the archive");
        SourceError::Unreadable { path: self.url.into(), reason }
    }

    fn all(&mut self, trust: Option<Hash>, locks: bool, numbers: &RangeInclusive<u64>) -> Result<(), SourceError> {
        let listed = self.bucket.versions(&format!("{SERVICE}/")).map_err(|e| self.failed(&e))?;
        for version in listed {
            self.versions.entry(version.key.clone()).or_default().push(version);
        }
        let manifests = self.manifests()?;
        if manifests.is_empty() {
            let reason = format!("there is no batch below {SERVICE}/; check bucket and prefix");
            return Err(SourceError::Unreadable { path: self.url.into(), reason });
        }
        let own = |c: &&Candidate| trust.is_none_or(|id| c.manifest.as_ref().is_none_or(|m| m.ledger_id == id));
        let known = manifests.iter().any(|c| c.manifest.as_ref().is_some_and(|m| Some(m.ledger_id) == trust));
        let of_keys = changes_of_keys(manifests.iter().filter_map(|c| c.manifest.as_ref()));
        let (mut wanted, mut left) = (Vec::new(), HashSet::new());
        let mut done = HashSet::new();
        for candidate in manifests.iter().filter(|c| !known || own(c)) {
            self.write(&candidate.key, &candidate.bytes)?;
            let dir = candidate.key.trim_end_matches(MANIFEST_NAME).to_owned();
            let Some(manifest) = &candidate.manifest else { continue };
            let batch = manifest.batch.as_ref();
            let lock = |private| batch.and_then(|b| b.lock.as_ref()).filter(|_| locks).map(|lock| lock.of(private));
            if locks && batch.is_some_and(|b| b.lock.is_none()) {
                self.findings.push(Finding {
                    code: Code::ExportObjectUnlocked,
                    chain: None,
                    place: format!("objects/{}", printable(&candidate.key)),
                    evidence: "its manifest names no lock: the batch was made for a place without locks, and put here"
                        .to_owned(),
                });
            }
            self.over(&candidate.key, &candidate.version, candidate.what)?;
            self.locked(&candidate.key, Some(&candidate.version), lock(false))?;
            let sequence = batch.map_or(0, |b| b.sequence);
            let lines = manifest.files.iter().zip(batch.map(|b| b.stored.as_slice()).unwrap_or_default());
            let lines = lines.map(|(file, stored)| (Some(file), stored));
            let tables = batch.iter().flat_map(|b| &b.tables).map(|table| (None, &table.stored));
            for (file, stored) in lines.chain(tables) {
                let key = format!("{dir}{}", stored.name);
                let of_chain_0 = file.is_some_and(|f| (f.chain, f.kind) == (0, FileKind::Entries));
                let keys = of_chain_0 && of_keys.contains(&sequence) && sequence < *numbers.end();
                if !numbers.contains(&sequence) && !keys {
                    left.insert(key);
                    continue;
                }
                if let Some(version) = &stored.version {
                    self.over(&key, version, (stored.sha256, stored.bytes))?;
                }
                let lock = lock(file.is_some_and(|f| f.kind == FileKind::Private));
                wanted.push(Wanted { key, version: stored.version.clone(), bytes: stored.bytes, lock });
            }
            done.insert(dir);
        }
        let named: HashSet<&str> = wanted.iter().map(|w| w.key.as_str()).collect();
        // What no manifest names is a finding, for which its name is enough.
        let strangers: Vec<String> = self
            .versions
            .iter()
            .filter(|(key, versions)| versions.iter().any(|v| v.latest && !v.marker) && is_relative(key))
            .map(|(key, _)| key.clone())
            .filter(|key| !named.contains(key.as_str()) && !left.contains(key) && !key.ends_with(MANIFEST_NAME))
            .filter(|key| batch_of(key).is_none_or(|dir| done.contains(dir)))
            .collect();
        // Of batches without a manifest that they are there is all that is told.
        let begun = self.versions.keys().filter(|key| key.matches('/').count() == 3 && is_relative(key));
        let begun =
            begun.map(|key| (key, fs::create_dir_all(self.to.join(key.rsplit_once('/').map_or("", |(d, _)| d)))));
        let named = strangers.iter().map(|key| (key, self.put(key, b"")));
        // A name of a bucket that no file can have, or not beside another, is found here.
        let nameless = begun.chain(named).filter(|(_, made)| made.is_err()).map(|(key, _)| Finding {
            code: Code::ExportFileUnexpected,
            chain: None,
            place: format!("files/{}", printable(key.split_once('/').map_or(key, |(_, name)| name))),
            evidence: "no manifest names it; it was not read".to_owned(),
        });
        let nameless: Vec<Finding> = nameless.collect();
        self.findings.extend(nameless);
        self.objects(&wanted)
    }

    /// The manifest of each batch.
    fn manifests(&self) -> Result<Vec<Candidate>, SourceError> {
        let mut all: BTreeMap<&str, Vec<(String, Option<Candidate>)>> = BTreeMap::new();
        let (mut named, mut held) = (HashSet::new(), 0);
        for (key, versions) in &self.versions {
            if !key.ends_with(&format!("/{MANIFEST_NAME}")) || key.matches('/').count() != 3 || !is_relative(key) {
                continue;
            }
            // The oldest first. Of several versions, which anybody who may put objects can add, one is kept; it is read again then.
            let there: Vec<&Version> = versions.iter().rev().filter(|v| !v.marker).collect();
            for version in &there {
                let candidate = self.candidate(key, &version.id)?;
                let previous =
                    candidate.manifest.as_ref().and_then(|m| m.batch.as_ref()?.previous.as_ref()?.version.clone());
                named.extend(previous);
                let candidate = Some(candidate).filter(|_| there.len() == 1);
                held += candidate.as_ref().map_or(0, |c| c.bytes.len());
                all.entry(key).or_default().push((version.id.clone(), candidate));
            }
            self.few(held, all.len())?;
        }
        let (mut chosen, batches) = (Vec::new(), all.len());
        for (key, candidates) in all {
            let at = candidates.iter().position(|(version, _)| named.contains(version)).unwrap_or(0);
            let Some((version, candidate)) = candidates.into_iter().nth(at) else { continue };
            chosen.push(match candidate {
                Some(candidate) => candidate,
                None => {
                    let candidate = self.candidate(key, &version)?;
                    held += candidate.bytes.len();
                    self.few(held, batches)?;
                    candidate
                }
            });
        }
        Ok(chosen)
    }

    fn candidate(&self, key: &str, version: &str) -> Result<Candidate, SourceError> {
        let mut bytes = Vec::new();
        let read = self.bucket.get(key, Some(version), MANIFEST_BYTES_MAX, &mut bytes);
        let what = read.map_err(|e| self.failed(&e))?;
        let manifest = if what.1 > MANIFEST_BYTES_MAX { None } else { Manifest::decode(&bytes).ok() };
        if manifest.is_none() {
            // That it is none can be seen of its beginning.
            bytes.truncate(64);
        }
        Ok(Candidate { key: key.to_owned(), version: version.to_owned(), bytes, what, manifest })
    }

    /// Refuses manifests that are larger together than so many of that size.
    fn few(&self, bytes: usize, batches: usize) -> Result<(), SourceError> {
        let most = MANIFESTS_BYTES_MAX + batches * BATCH_BYTES_MAX;
        if bytes <= most {
            return Ok(());
        }
        let reason = format!(
            "the manifests of {batches} batches are over {} MiB together: look for large ones, which somebody may have put there, or judge the archive in parts \
             (--batches)",
            most >> 20
        );
        Err(SourceError::Unreadable { path: self.url.into(), reason })
    }

    /// What lies over a version with this SHA-256 and length.
    fn over(&mut self, key: &str, version: &str, what: (Hash, u64)) -> Result<(), SourceError> {
        let Some(versions) = self.versions.get(key) else { return Ok(()) };
        let mut shadowed = false;
        // The newest first.
        for other in versions.iter().take_while(|v| v.id != version).filter(|v| !v.marker) {
            let found = self.bucket.get(key, Some(&other.id), what.1, &mut std::io::sink());
            shadowed = found.map_err(|e| self.failed(&e))? != what;
            if shadowed {
                break;
            }
        }
        let mut report = |code, evidence: &str| {
            let place = format!("objects/{}", printable(key));
            self.findings.push(Finding { code, chain: None, place, evidence: evidence.to_owned() });
        };
        if versions.iter().any(|v| v.latest && v.marker) {
            report(Code::ExportObjectHidden, "a delete marker lies over it; the version that was exported was read");
        }
        if shadowed {
            report(Code::ExportObjectShadowed, "another version lies over it; the version that was exported was read");
        }
        Ok(())
    }

    fn locked(&mut self, key: &str, version: Option<&str>, wanted: Option<Retention>) -> Result<(), SourceError> {
        let Some(wanted) = wanted else { return Ok(()) };
        let head = self.bucket.head(key, version).map_err(|e| self.failed(&e))?;
        if let Some(evidence) = Retention::shortfall(head.retention.as_ref(), &wanted) {
            let place = format!("objects/{}", printable(key));
            self.findings.push(Finding { code: Code::ExportObjectUnlocked, chain: None, place, evidence });
        }
        Ok(())
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), SourceError> {
        self.put(key, bytes).map_err(|e| self.room(&e))
    }

    fn put(&self, key: &str, bytes: &[u8]) -> std::io::Result<()> {
        let path = self.to.join(key);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
        fs::write(&path, bytes)
    }

    /// Fetches objects side by side. One that is not there is a finding of whoever reads the files.
    fn objects(&mut self, wanted: &[Wanted]) -> Result<(), SourceError> {
        let (next, trouble) = (AtomicUsize::new(0), Mutex::new(None));
        let this = &*self;
        let fetch = |wanted: &Wanted| -> Result<(), SourceError> {
            let path = this.to.join(&wanted.key);
            let mut out = BufWriter::new(File::create(&path).map_err(|e| this.room(&e))?);
            match this.bucket.get(&wanted.key, wanted.version.as_deref(), wanted.bytes, &mut out) {
                Ok(_) => out.flush().map_err(|e| this.room(&e)),
                Err(BucketError::Missing(_)) => fs::remove_file(&path).map_err(|e| this.room(&e)),
                Err(e) => Err(this.failed(&e)),
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..FETCHED_AT_ONCE.min(wanted.len()) {
                scope.spawn(|| {
                    while let Some(wanted) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(e) = fetch(wanted) {
                            // The first one is told; nothing more is begun.
                            next.store(usize::MAX / 2, Ordering::Relaxed);
                            trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(e);
                        }
                    }
                });
            }
        });
        if let Some(e) = trouble.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(e);
        }
        for wanted in wanted {
            if self.to.join(&wanted.key).exists() {
                self.locked(&wanted.key, wanted.version.as_deref(), wanted.lock.clone())?;
            }
        }
        Ok(())
    }
}

/// Numbers of the batches that have entries of the key registry.
fn changes_of_keys<'a>(manifests: impl Iterator<Item = &'a Manifest>) -> HashSet<u64> {
    let mut sizes: Vec<(u64, u64)> =
        manifests.filter_map(|m| m.batch.as_ref().map(|b| (b.sequence, b.registry.size))).collect();
    sizes.sort_unstable();
    let mut known = 0;
    sizes.retain(|(_, size)| {
        let grows = *size > known;
        known = known.max(*size);
        grows
    });
    sizes.into_iter().map(|(sequence, _)| sequence).collect()
}

/// The directory of the batch that a key is in, with a slash.
fn batch_of(key: &str) -> Option<&str> {
    let (at, _) = key.match_indices('/').nth(2)?;
    Some(&key[..=at])
}

/// Whether a key is a path below a directory: the keys of a bucket are anybody's text.
fn is_relative(key: &str) -> bool {
    key.len() < 1024 && key.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
}
