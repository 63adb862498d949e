//! The batches of an archive: where they lie, whether each continues the one before it, and who signed them (FORMAT.md 13).

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ledger_engine::document::DocumentFault;
use ledger_engine::export::batch::{Batch, RegistryState, SERVICE};
use ledger_engine::export::{FileKind, MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest};
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::note::{Note, NoteKey};
use ledger_engine::registry::Registry;
use ledger_engine::time::rfc3339;
use sha2::{Digest as _, Sha256};

use crate::bounded;
use crate::finding::{Code, Finding};
use crate::single::key_code;
use crate::source::SourceError;

/// A directory with a manifest: a copy, or a batch.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
    /// SHA-256 of the manifest's bytes.
    pub(crate) digest: Hash,
    /// Files in the directory that the manifest does not name.
    pub(crate) extra: Vec<String>,
    /// Whether tables are judged.
    pub(crate) tables_matter: bool,
}

/// Where an archive's batches are, if this is an archive.
pub(super) fn top(path: &Path) -> Option<PathBuf> {
    let top = path.join(SERVICE);
    top.is_dir().then_some(top)
}

fn unreadable(path: &Path, reason: String) -> SourceError {
    SourceError::Unreadable { path: path.to_owned(), reason }
}

fn names(dir: &Path) -> Result<Vec<String>, SourceError> {
    let failed = |e: std::io::Error| unreadable(dir, format!("{e}; check the path"));
    let mut names = Vec::new();
    for found in std::fs::read_dir(dir).map_err(failed)? {
        let name = found.map_err(failed)?.file_name().to_string_lossy().into_owned();
        // What desktops and copying tools leave behind is no part of anything.
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl Part {
    /// Reads the manifest in a directory. `Err` within: it is none.
    fn try_read(dir: &Path) -> Result<Result<Part, SourceError>, SourceError> {
        let file = dir.join(MANIFEST_NAME);
        let failed = |e: std::io::Error| unreadable(&file, format!("{e}; check the path"));
        let opened = bounded::open(&file);
        let bytes = match opened.and_then(|file| bounded::whole(file, MANIFEST_BYTES_MAX, "the manifest of an export"))
        {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::Other => return Ok(Err(unreadable(&file, e.to_string()))),
            Err(e) => return Err(failed(e)),
        };
        let manifest = match Manifest::decode(&bytes) {
            Ok(manifest) => manifest,
            Err(e) => {
                let why = format!("{e}; it was damaged, or changed: get the export again from where it is kept");
                return Ok(Err(unreadable(&file, why)));
            }
        };
        let mut extra = names(dir)?;
        let tables = || manifest.batch.iter().flat_map(|b| &b.tables);
        extra.retain(|name| {
            let named = manifest.files.iter().any(|f| f.name == *name) || tables().any(|t| t.stored.name == *name);
            name != MANIFEST_NAME && !named
        });
        Ok(Ok(Part { dir: dir.to_owned(), digest: sha256(&[&bytes]), manifest, extra, tables_matter: true }))
    }

    /// Reads the manifest in a directory.
    pub(super) fn read(dir: &Path) -> Result<Part, SourceError> {
        Part::try_read(dir)?
    }

    /// What is wrong with tables: whether they are there, and as they were made. What is in them follows from the lines.
    pub(super) fn tables(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for table in self.batch().iter().filter(|_| self.tables_matter).flat_map(|batch| &batch.tables) {
            let stored = &table.stored;
            let place = format!("files/{}", stored.name);
            let mut report = |code, evidence| findings.push(finding(code, None, place.clone(), evidence));
            let read = digest_of(&self.dir.join(&stored.name), stored.bytes);
            match read {
                Ok((bytes, found)) => {
                    if (bytes, found) != (stored.bytes, stored.sha256) {
                        let evidence = format!(
                            "the manifest says {} bytes, SHA-256 {}; found {bytes}, {found}",
                            stored.bytes, stored.sha256
                        );
                        report(Code::ExportDigestMismatch, evidence);
                    }
                }
                Err(e) => report(Code::ExportFileMissing, format!("a table of {} rows: {e}", table.rows)),
            }
        }
        findings
    }

    /// Reports the chain, what, and why, where files do not tile their range.
    pub(super) fn tiling(&self, report: &mut dyn FnMut(u32, &str, String)) {
        for range in &self.manifest.chains {
            let mut at = range.from;
            let files = self.manifest.files.iter();
            for file in files.filter(|f| f.chain == range.chain && f.kind == FileKind::Entries) {
                if file.from != at || file.to < file.from {
                    let evidence = format!("the file before it ends at {at}");
                    report(range.chain, &format!("files/{}", file.name), evidence);
                }
                at = file.to;
            }
            if at != range.to {
                let evidence = format!("its files end at {at}, its range at {}", range.to);
                report(range.chain, &format!("chains/{}", range.chain), evidence);
            }
        }
    }

    /// Where findings about it are.
    pub(crate) fn place(&self, what: &str) -> String {
        self.batch().map_or_else(|| format!("manifest/{what}"), |b| format!("manifest/{}/{what}", printable(&b.name)))
    }

    pub(crate) fn batch(&self) -> Option<&Batch> {
        self.manifest.batch.as_ref()
    }
}

/// Length and SHA-256 of a file. One of more than `most` bytes is not read to its end, and has another digest.
fn digest_of(path: &Path, most: u64) -> std::io::Result<(u64, Hash)> {
    let mut file = bounded::open(path)?.take(most.saturating_add(1));
    let (mut sha256, mut bytes) = (Sha256::new(), 0);
    let mut block = vec![0; 1 << 18];
    loop {
        match file.read(&mut block)? {
            0 => return Ok((bytes, Hash(sha256.finalize().into()))),
            n => {
                sha256.update(&block[..n]);
                bytes += n as u64;
            }
        }
    }
}

/// Names in evidence and places are other people's text.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// What there is of one ledger below the top of an archive.
pub(super) struct Found {
    /// By sequence.
    pub(super) parts: Vec<Part>,
    /// Batches without a manifest: begun, and not finished.
    pub(super) unfinished: Vec<String>,
    /// What belongs to no batch.
    pub(super) strangers: Vec<String>,
}

/// Finds the batches of a ledger: the one that is trusted, or the only one that there is.
pub(super) fn find(top: &Path, trust: Option<Hash>) -> Result<Found, SourceError> {
    let mut ledgers: BTreeMap<Hash, Vec<Part>> = BTreeMap::new();
    let (mut unfinished, mut strangers, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    for day in names(top)? {
        if !top.join(&day).is_dir() {
            strangers.push(day);
            continue;
        }
        for name in names(&top.join(&day))? {
            let dir = top.join(&day).join(&name);
            let shown = format!("{day}/{name}");
            if !dir.is_dir() {
                strangers.push(shown);
            } else if !dir.join(MANIFEST_NAME).exists() {
                unfinished.push(shown);
            } else {
                // Whoever may put files must not keep the other batches from being judged.
                let Ok(part) = Part::try_read(&dir)? else {
                    damaged.push(format!("{shown}/{MANIFEST_NAME}"));
                    continue;
                };
                let exported = rfc3339(part.manifest.exported_at_us);
                if part.batch().is_none_or(|batch| batch.name != name) || exported[..10] != day {
                    strangers.push(shown);
                }
                ledgers.entry(part.manifest.ledger_id).or_default().push(part);
            }
        }
    }
    let id = match (trust.filter(|id| ledgers.contains_key(id)), ledgers.len()) {
        (Some(id), _) => id,
        (None, 0) => return Err(unreadable(top, "there is no batch with a manifest; check the path".to_owned())),
        (None, 1) => ledgers.keys().next().copied().unwrap_or_default(),
        (None, n) => {
            let ids: Vec<String> = ledgers.keys().map(|id| id.to_hex()).collect();
            let reason = format!("batches of {n} ledgers are here; say which one with --trust: {}", ids.join(", "));
            return Err(unreadable(top, reason));
        }
    };
    let mut parts = ledgers.remove(&id).unwrap_or_default();
    parts.sort_by(|a, b| {
        let key = |p: &Part| (p.batch().map(|b| b.sequence), p.manifest.exported_at_us);
        key(a).cmp(&key(b)).then_with(|| a.dir.cmp(&b.dir))
    });
    // Of other ledgers nothing is known but their names.
    let own = &id.to_hex()[..16];
    let of_another = |shown: &String| {
        let name = shown.split('/').nth(1).unwrap_or_default();
        let id = name.split('-').next().unwrap_or_default();
        id.len() == 16 && id != own && id.bytes().all(|b| b.is_ascii_hexdigit())
    };
    strangers.extend(damaged.into_iter().filter(|shown| !of_another(shown)));
    unfinished.retain(|shown| shown.rsplit('/').next().is_some_and(|name| name.starts_with(own)));
    Ok(Found { parts, unfinished, strangers })
}

fn finding(code: Code, chain: Option<u32>, place: String, evidence: String) -> Finding {
    Finding { code, chain: chain.map(u64::from), place, evidence }
}

/// Whether each batch, from number `due` on, continues the one before it. What the files hold is for others to say.
pub(crate) fn continuity(parts: &[Part], mut due: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut before: Option<&Part> = None;
    for part in parts {
        let mut mismatch = |chain: Option<u32>, what: &str, evidence: String| {
            findings.push(finding(Code::ExportManifestMismatch, chain, part.place(what), evidence));
        };
        let Some(batch) = part.batch() else {
            if parts.len() > 1 {
                mismatch(None, "batch", "a copy among batches: it is no part of the archive".to_owned());
            }
            continue;
        };
        let Manifest { chains, .. } = &part.manifest;
        for (range, continuation) in chains.iter().zip(&batch.continues) {
            if let Err(why) = continuation.holds(range.from, range.to, &range.root) {
                mismatch(Some(range.chain), &format!("continues/{}", range.chain), why.to_owned());
            }
        }
        if batch.sequence != due {
            if batch.sequence < due {
                mismatch(None, "sequence", format!("a second batch of number {}", batch.sequence));
                continue;
            }
            let what = format!("the next batch that is there is number {}", batch.sequence);
            findings.push(finding(Code::ExportBatchMissing, None, format!("batches/{due}"), what));
            // What a batch that is not there would have to fit is not judged.
            (before, due) = (Some(part), batch.sequence.saturating_add(1));
            continue;
        }
        if let (Some(before), Some(named)) = (before, &batch.previous) {
            let name = before.batch().map(|b| b.name.as_str()).unwrap_or_default();
            if (named.name.as_str(), named.manifest_sha256) != (name, before.digest) {
                let evidence = format!(
                    "it names {} with SHA-256 {}; the one before it is {} with {}",
                    printable(&named.name),
                    named.manifest_sha256,
                    printable(name),
                    before.digest
                );
                mismatch(None, "previous", evidence);
            }
            let earlier = &before.manifest.chains;
            if earlier.len() != chains.len() {
                mismatch(None, "chains", format!("{} chains, after {}", chains.len(), earlier.len()));
            }
            for ((range, last), continuation) in chains.iter().zip(earlier).zip(&batch.continues) {
                let says = (range.from, range.prev_hash, continuation.root_before);
                if says != (last.to, last.last_hash, last.root) {
                    let evidence = format!(
                        "it begins at entry {} after {} with root {}; the batch before ends at {} with {} and root {}",
                        says.0, says.1, says.2, last.to, last.last_hash, last.root
                    );
                    mismatch(Some(range.chain), &format!("chains/{}", range.chain), evidence);
                }
            }
        }
        (before, due) = (Some(part), due + 1);
    }
    findings
}

/// Whether each batch was signed by a key that the ledger has for it, with the registry that it claims.
pub(crate) fn signatures(parts: &[Part], registry: &Registry) -> Vec<Finding> {
    let mut findings = Vec::new();
    for part in parts {
        let Some(batch) = part.batch() else { continue };
        let mut report = |code, what: &str, evidence: String| {
            findings.push(finding(code, None, part.place(what), evidence));
        };
        let known = RegistryState::at(registry, batch.registry.size);
        if known.as_ref() != Some(&batch.registry) {
            let evidence =
                format!("the keys of {} entries are not those of the ledger's registry", batch.registry.size);
            report(Code::RegistryPositionMismatch, "registry", evidence);
            continue;
        }
        for (range, continuation) in part.manifest.chains.iter().zip(&batch.continues) {
            // Its form, size and root were judged already.
            let Ok(note) = Note::parse(continuation.checkpoint.as_bytes()) else { continue };
            let origin = note.text.lines().next().unwrap_or_default();
            let key = |public_key| NoteKey { name: origin.to_owned(), public_key };
            let keys: Vec<NoteKey> =
                registry.checkpoint_keys().filter_map(|r| r.key.public_key.ed25519().map(key)).collect();
            if let Err(e) = note.verify(&keys) {
                report(Code::CheckpointSignatureInvalid, &format!("continues/{}", range.chain), e.to_string());
            }
        }
        let kid = part.manifest.signature.as_ref().map(|s| printable(&s.kid)).unwrap_or_default();
        let (code, evidence) = match part.manifest.check_signature(registry) {
            Some(Ok(())) => continue,
            None => (Code::ExportManifestUnsigned, "it has no signature".to_owned()),
            Some(Err(DocumentFault::Key(fault))) => (key_code(fault), format!("signed by {kid}")),
            Some(Err(DocumentFault::Ledger | DocumentFault::Signature)) => {
                let evidence = format!("the signature by {kid} does not verify over the manifest");
                (Code::ExportManifestSignatureInvalid, evidence)
            }
        };
        report(code, "signature", evidence);
    }
    findings
}
