//! The summary of a batch, as a file: what was found of it by itself, and what is left to judge when it is joined to others.
//!
//! ```text
//! ledger-partial/3\n ‖ length of the head, u32 little-endian ‖ head ‖ BLAKE3 of it ‖ records, gzip
//! ```
//!
//! Head and records are the tool's own (postcard); a summary is read by the version that wrote it, which its head says. The head holds the
//! batch's manifest, whose SHA-256 the next manifest names, and count and digest of the records. A summary is worth what the machine is that
//! made it: it is no signature.

use std::fs::{File, Permissions};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use ledger_engine::export::{MANIFEST_BYTES_MAX, Manifest};
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::header::Header;
use serde::{Deserialize, Serialize};

use crate::export::batches::Part;
use crate::finding::{Code, Finding};
use crate::prove::batch::{Facts, Written};
use crate::report::TOOL;
use crate::source::SourceError;

const MAGIC: &[u8] = b"ledger-partial/3\n";
/// Largest head, bytes: it holds a manifest and what streams without a state and listings need.
const HEAD_BYTES_MAX: u32 = 1 << 30;
/// Largest record, bytes: an order with all its deliveries.
const RECORD_BYTES_MAX: u32 = 64 << 20;

/// What was found of a batch.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Nothing, by itself.
    Proved(Facts),
    /// Faults, of it or of what is before it.
    Broken(Vec<(u8, Option<u64>, String, String)>),
    /// It could not be judged.
    Open(String),
}

/// What a summary begins with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) tool: String,
    manifest: Vec<u8>,
    /// Number and manifest of the last batch that the archive had when this one was judged.
    pub(crate) last: (u64, Hash),
    /// Header and body of the registry's entries up to the end of the batch.
    keys: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) outcome: Outcome,
    pub(crate) records: u64,
    pub(crate) digest: Hash,
}

impl Head {
    pub(crate) fn new(manifest: &Manifest, last: (u64, Hash), keys: &[(Header, Vec<u8>)], outcome: Outcome) -> Head {
        let keys = keys.iter().map(|(header, body)| (header.encode(), body.clone())).collect();
        let manifest = manifest.encode();
        Head { tool: TOOL.to_owned(), manifest, last, keys, outcome, records: 0, digest: Hash::ZERO }
    }

    pub(crate) fn with_records(mut self, records: u64, digest: Hash) -> Head {
        (self.records, self.digest) = (records, digest);
        self
    }

    /// The registry's entries.
    pub(crate) fn keys(&self) -> Option<Vec<(Header, Vec<u8>)>> {
        self.keys.iter().map(|(header, body)| Some((Header::decode(header).ok()?, body.clone()))).collect()
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        let Outcome::Broken(found) = &self.outcome else { return Vec::new() };
        let finding = |(code, chain, place, evidence): &(u8, Option<u64>, String, String)| {
            let code = *Code::ALL.get(usize::from(*code))?;
            Some(Finding { code, chain: *chain, place: place.clone(), evidence: evidence.clone() })
        };
        found.iter().filter_map(finding).collect()
    }
}

/// Findings, as an [`Outcome`].
pub(crate) fn broken(findings: &[Finding]) -> Outcome {
    let plain = |f: &Finding| (f.code as u8, f.chain, f.place.clone(), f.evidence.clone());
    Outcome::Broken(findings.iter().map(plain).collect())
}

/// A summary that was read; its records are read when they are asked for.
pub(crate) struct Summary {
    path: PathBuf,
    pub(crate) head: Head,
    pub(crate) part: Part,
    records_at: u64,
}

fn unreadable(path: &Path, why: &str) -> SourceError {
    SourceError::Unreadable { path: path.to_owned(), reason: why.to_owned() }
}

const DAMAGED: &str = "no summary of a batch, or one that was damaged; write it again with --partial";

/// Writes a summary; the file is there whole or not at all.
pub(crate) fn write(path: &Path, head: &Head, records: &mut File) -> io::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // For whoever joins them, who may be another user: as the umask lets it, not for the owner alone.
    let mut out = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(dir)?;
    let head = postcard::to_allocvec(head).map_err(io::Error::other)?;
    out.write_all(MAGIC)?;
    out.write_all(&(head.len() as u32).to_le_bytes())?;
    out.write_all(&head)?;
    out.write_all(blake3::hash(&head).as_bytes())?;
    records.seek(SeekFrom::Start(0))?;
    io::copy(records, &mut out)?;
    out.as_file().sync_all()?;
    out.persist(path)?;
    File::open(dir)?.sync_all()
}

impl Summary {
    pub(crate) fn read(path: &Path) -> Result<Summary, SourceError> {
        let failed = |e: io::Error| unreadable(path, &format!("{e}; check the path"));
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let damaged = |_: io::Error| unreadable(path, DAMAGED);
        let (mut magic, mut len, mut digest) = ([0; MAGIC.len()], [0; 4], [0; 32]);
        file.read_exact(&mut magic).map_err(damaged)?;
        file.read_exact(&mut len).map_err(damaged)?;
        let len = u32::from_le_bytes(len);
        if magic != MAGIC || len > HEAD_BYTES_MAX {
            return Err(unreadable(path, DAMAGED));
        }
        let mut head = Vec::new();
        file.by_ref().take(len.into()).read_to_end(&mut head).map_err(damaged)?;
        file.read_exact(&mut digest).map_err(damaged)?;
        if blake3::hash(&head).as_bytes() != &digest {
            return Err(unreadable(path, DAMAGED));
        }
        // The version comes first, whatever else another one may write.
        let tool: String = postcard::take_from_bytes(&head).map_err(|_| unreadable(path, DAMAGED))?.0;
        if tool != TOOL {
            let tool: String = tool.chars().filter(|c| !c.is_control()).take(100).collect();
            return Err(unreadable(
                path,
                &format!("written by {tool}, and this is {TOOL}: use one version for all summaries"),
            ));
        }
        let head: Head = postcard::from_bytes(&head).map_err(|_| unreadable(path, DAMAGED))?;
        let manifest = Some(&head.manifest).filter(|bytes| bytes.len() as u64 <= MANIFEST_BYTES_MAX);
        let manifest = manifest.and_then(|bytes| Manifest::decode(bytes).ok()).filter(|m| m.batch.is_some());
        let Some(manifest) = manifest else { return Err(unreadable(path, DAMAGED)) };
        let part = Part {
            dir: path.to_owned(),
            digest: sha256(&[&head.manifest]),
            manifest,
            extra: Vec::new(),
            tables_matter: true,
        };
        let records_at = (MAGIC.len() + 4 + 32) as u64 + u64::from(len);
        Ok(Summary { path: path.to_owned(), head, part, records_at })
    }

    /// That it is not what `--partial` writes.
    pub(crate) fn damaged(&self) -> SourceError {
        unreadable(&self.path, DAMAGED)
    }

    /// Gives the records in order. What they are is certain only when this has ended well.
    pub(crate) fn records(&self, mut each: impl FnMut(Written) -> io::Result<()>) -> Result<(), SourceError> {
        let failed = |e: io::Error| unreadable(&self.path, &format!("{e}; {DAMAGED}"));
        let damaged = || unreadable(&self.path, DAMAGED);
        let mut file = File::open(&self.path).map_err(failed)?;
        file.seek(SeekFrom::Start(self.records_at)).map_err(failed)?;
        let mut records = BufReader::new(GzDecoder::new(BufReader::new(file)));
        let mut blake3 = blake3::Hasher::new();
        let mut bytes = Vec::new();
        for _ in 0..self.head.records {
            let mut len = [0; 4];
            records.read_exact(&mut len).map_err(failed)?;
            let count = u32::from_le_bytes(len);
            if count > RECORD_BYTES_MAX {
                return Err(damaged());
            }
            bytes.clear();
            records.by_ref().take(count.into()).read_to_end(&mut bytes).map_err(failed)?;
            blake3.update(&len).update(&bytes);
            let record = postcard::from_bytes(&bytes).map_err(|_| damaged())?;
            each(record).map_err(|e| SourceError::Unreadable { path: std::env::temp_dir(), reason: e.to_string() })?;
        }
        let ended = records.read(&mut [0]).map_err(failed)? == 0;
        if ended && Hash(*blake3.finalize().as_bytes()) == self.head.digest { Ok(()) } else { Err(damaged()) }
    }
}
