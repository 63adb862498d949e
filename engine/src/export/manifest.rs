//! The manifest of an export: which files it has, what range they cover, their digests (FORMAT.md 13).

use super::batch::{self, Batch, ManifestSignature};
use crate::document::DocumentFault;
use crate::hash::{Hash, sha256, to_hex};
use crate::json::{Object, Value, parse_canonical};
use crate::public_key::Algorithm;
use crate::registry::{Purpose, Registry};

/// Member `format` of every manifest written today.
pub const MANIFEST_FORMAT: &str = "ledger-export/1";
/// The manifest's name in an export's directory.
pub const MANIFEST_NAME: &str = "manifest.json";
/// Longest manifest that is read, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// What the lines of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// Commits, entries and checkpoints.
    Entries,
    /// Private documents.
    Private,
}

impl FileKind {
    /// As in the manifest and in file names.
    pub fn as_str(self) -> &'static str {
        match self {
            FileKind::Entries => "entries",
            FileKind::Private => "private",
        }
    }
}

/// A file of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportFile {
    /// Name in the export's directory; ends in `.gz` where it is compressed.
    pub name: String,
    /// What its lines are.
    pub kind: FileKind,
    /// Which chain.
    pub chain: u32,
    /// Index of the first entry that it may speak of.
    pub from: u64,
    /// Index after the last one.
    pub to: u64,
    /// Lines.
    pub lines: u64,
    /// Bytes before compression.
    pub bytes: u64,
    /// BLAKE3 of the bytes before compression.
    pub blake3: Hash,
    /// SHA-256 of the bytes before compression.
    pub sha256: Hash,
}

impl ExportFile {
    /// The name that a file has: its kind, chain and first index, so that names sort as the entries do.
    pub fn name_of(kind: FileKind, chain: u32, from: u64, gzip: bool) -> String {
        format!("{}-{chain:04}-{from:015}.jsonl{}", kind.as_str(), if gzip { ".gz" } else { "" })
    }

    /// Whether it is compressed.
    pub fn is_gzip(&self) -> bool {
        self.name.ends_with(".gz")
    }
}

/// What an export covers of one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRange {
    /// Which chain.
    pub chain: u32,
    /// Index of the first entry.
    pub from: u64,
    /// Index after the last entry.
    pub to: u64,
    /// Entry hash of the entry before the first; zeros for none.
    pub prev_hash: Hash,
    /// Entry hash of the last entry.
    pub last_hash: Hash,
    /// RFC 6962 root of the chain at size `to`.
    pub root: Hash,
    /// Commits.
    pub commits: u64,
    /// Signed checkpoints.
    pub checkpoints: u64,
}

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// SHA-256 over the genesis body.
    pub ledger_id: Hash,
    /// Origin base of the ledger.
    pub origin: String,
    /// When the export was made, microseconds since the Unix epoch; a claim.
    pub exported_at_us: i64,
    /// The program that made it; a claim.
    pub tool: String,
    /// Whether private documents were left out.
    pub private_withheld: bool,
    /// One for each chain, ascending.
    pub chains: Vec<ChainRange>,
    /// By chain, kind and first index.
    pub files: Vec<ExportFile>,
    /// Its place in an archive; none of a copy, which continues nothing.
    pub batch: Option<Batch>,
    /// By a key of purpose `export`; none of a copy.
    pub signature: Option<ManifestSignature>,
}

/// Why bytes are not a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not canonical JSON, or too long.
    #[error("it is not canonical JSON (RFC 8785)")]
    NotCanonical,
    /// Of another kind or version.
    #[error("its member format is not \"{MANIFEST_FORMAT}\"; a newer program may read it")]
    Format,
    /// A member is missing, unknown or malformed.
    #[error("member {0} is missing, unknown or malformed")]
    Member(&'static str),
}

impl Manifest {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let chain = |c: &ChainRange| {
            let object = Object::new()
                .with("chain", i64::from(c.chain))
                .with("checkpoints", super::int(c.checkpoints))
                .with("commits", super::int(c.commits))
                .with("from", super::int(c.from))
                .with("last_hash", c.last_hash.to_hex())
                .with("prev_hash", c.prev_hash.to_hex())
                .with("root", c.root.to_hex())
                .with("to", super::int(c.to));
            Value::Object(object)
        };
        let file = |f: &ExportFile| {
            let object = Object::new()
                .with("blake3", to_hex(&f.blake3.0))
                .with("bytes", super::int(f.bytes))
                .with("chain", i64::from(f.chain))
                .with("from", super::int(f.from))
                .with("kind", f.kind.as_str())
                .with("lines", super::int(f.lines))
                .with("name", f.name.as_str())
                .with("sha256", f.sha256.to_hex())
                .with("to", super::int(f.to));
            Value::Object(object)
        };
        let mut object = Object::new()
            .with("chains", Value::Array(self.chains.iter().map(chain).collect()))
            .with("exported_at_us", self.exported_at_us)
            .with("files", Value::Array(self.files.iter().map(file).collect()))
            .with("format", MANIFEST_FORMAT)
            .with("ledger_id", self.ledger_id.to_hex())
            .with("origin", self.origin.as_str())
            .with("private_withheld", Value::Bool(self.private_withheld))
            .with("tool", self.tool.as_str());
        object.set_some("batch", self.batch.as_ref().map(Batch::to_object));
        object.set_some("signature", self.signature.as_ref().map(ManifestSignature::to_object));
        object.to_canonical()
    }

    /// What a key of purpose `export` signs.
    pub fn statement(&self) -> Vec<u8> {
        batch::statement(&self.ledger_id, &Manifest { signature: None, ..self.clone() }.encode())
    }

    /// Whether an export key of the registry signed it, as of the place that it names. `None`: it has no signature.
    pub fn check_signature(&self, registry: &Registry) -> Option<Result<(), DocumentFault>> {
        let (batch, signature) = self.batch.as_ref().zip(self.signature.as_ref())?;
        let end = self.chains.first().map_or(0, |range| range.to);
        let claimed = (signature.kid.as_str(), Algorithm::Ed25519, Purpose::Export);
        Some(match registry.document_key(claimed, 0, end.saturating_sub(1), batch.registry.size) {
            Ok(key) if key.public_key.verify(&self.statement(), &signature.signature) => Ok(()),
            Ok(_) => Err(DocumentFault::Signature),
            Err(fault) => Err(DocumentFault::Key(fault)),
        })
    }

    /// SHA-256 of its bytes: by which the next manifest, and the ledger, name it.
    pub fn digest(&self) -> Hash {
        sha256(&[&self.encode()])
    }

    /// Reads a manifest. What is accepted re-encodes to the same bytes. Whether its ranges and files make sense is for the
    /// verifier to say.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let parsed = if bytes.len() as u64 > MANIFEST_BYTES_MAX { None } else { parse_canonical(bytes).ok().flatten() };
        let Some(Value::Object(object)) = parsed else { return Err(ManifestError::NotCanonical) };
        if object.value("format").and_then(Value::as_str) != Some(MANIFEST_FORMAT) {
            return Err(ManifestError::Format);
        }
        let text = |name: &'static str| {
            let value = object.value(name).and_then(Value::as_str).map(str::to_owned);
            value.ok_or(ManifestError::Member(name))
        };
        let list = |name: &'static str| object.value(name).and_then(Value::as_array).ok_or(ManifestError::Member(name));
        let manifest = Manifest {
            ledger_id: super::hash(&object, "ledger_id").ok_or(ManifestError::Member("ledger_id"))?,
            origin: text("origin")?,
            exported_at_us: object
                .value("exported_at_us")
                .and_then(Value::as_int)
                .ok_or(ManifestError::Member("exported_at_us"))?,
            tool: text("tool")?,
            private_withheld: match object.value("private_withheld") {
                Some(Value::Bool(withheld)) => *withheld,
                _ => return Err(ManifestError::Member("private_withheld")),
            },
            chains: list("chains")?
                .iter()
                .map(read_chain)
                .collect::<Option<_>>()
                .ok_or(ManifestError::Member("chains"))?,
            files: list("files")?.iter().map(read_file).collect::<Option<_>>().ok_or(ManifestError::Member("files"))?,
            batch: optional(&object, "batch", Batch::read)?,
            signature: optional(&object, "signature", ManifestSignature::read)?,
        };
        let fits = manifest.batch.as_ref().map_or(manifest.signature.is_none(), |batch| {
            let named = batch.stored.iter().map(|s| &s.name).eq(manifest.files.iter().map(|f| &f.name));
            named && batch.continues.len() == manifest.chains.len()
        });
        if !fits {
            return Err(ManifestError::Member("batch"));
        }
        let optional = object.value("batch").is_some() as usize + object.value("signature").is_some() as usize;
        if object.len() == 8 + optional {
            Ok(manifest)
        } else {
            Err(ManifestError::Member("(one that no manifest has)"))
        }
    }
}

fn optional<T>(
    object: &Object,
    name: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, ManifestError> {
    object.value(name).map(|value| read(value).ok_or(ManifestError::Member(name))).transpose()
}

fn read_chain(value: &Value) -> Option<ChainRange> {
    let object = value.as_object().filter(|o| o.len() == 8)?;
    let (count, hash) = (|name| super::count(object, name), |name| super::hash(object, name));
    Some(ChainRange {
        chain: u32::try_from(count("chain")?).ok()?,
        from: count("from")?,
        to: count("to")?,
        prev_hash: hash("prev_hash")?,
        last_hash: hash("last_hash")?,
        root: hash("root")?,
        commits: count("commits")?,
        checkpoints: count("checkpoints")?,
    })
}

fn read_file(value: &Value) -> Option<ExportFile> {
    let object = value.as_object().filter(|o| o.len() == 9)?;
    let (count, hash) = (|name| super::count(object, name), |name| super::hash(object, name));
    let kind = match object.value("kind")?.as_str()? {
        "entries" => FileKind::Entries,
        "private" => FileKind::Private,
        _ => return None,
    };
    let name = object.value("name")?.as_str()?.to_owned();
    let (chain, from) = (u32::try_from(count("chain")?).ok()?, count("from")?);
    // The name is fixed, so a manifest cannot point out of its directory.
    let named = [true, false].into_iter().any(|gzip| ExportFile::name_of(kind, chain, from, gzip) == name);
    named.then_some(())?;
    Some(ExportFile {
        name,
        kind,
        chain,
        from,
        to: count("to")?,
        lines: count("lines")?,
        bytes: count("bytes")?,
        blake3: hash("blake3")?,
        sha256: hash("sha256")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::batch::{Continuation, PreviousBatch, RegistryState, StoredFile};
    use crate::export::record::ObjectLock;
    use crate::registry::Key;

    #[test]
    fn a_manifest_comes_back_and_nothing_else_is_one() {
        let hash = |n| Hash([n; 32]);
        let key = Key::named(Purpose::Export, [7; 32]);
        let batch = Batch {
            name: "0123456789abcdef-00000002-101112".into(),
            sequence: 2,
            service: "marketplace".into(),
            env: "prod".into(),
            location: "s3://audit/ledger".into(),
            pii_policy: "1".into(),
            previous: Some(PreviousBatch {
                name: "before".into(),
                manifest_sha256: hash(6),
                version: Some("v".into()),
            }),
            continues: vec![Continuation {
                root_before: hash(7),
                consistency: vec![hash(8)],
                checkpoint: "note".into(),
            }],
            stored: vec![StoredFile {
                name: ExportFile::name_of(FileKind::Entries, 0, 0, true),
                bytes: 100,
                sha256: hash(9),
                version: None,
            }],
            tables: vec![super::super::batch::TableFile {
                stored: StoredFile {
                    name: "entries-0000-000000000000003.parquet".into(),
                    bytes: 9,
                    ..StoredFile::default()
                },
                rows: 4,
            }],
            lock: Some(ObjectLock { mode: "COMPLIANCE".into(), ..ObjectLock::default() }),
            registry: RegistryState { size: 3, head: hash(10), keys: vec![(key.clone(), None), (key, Some(2))] },
        };
        let manifest = Manifest {
            ledger_id: hash(1),
            origin: "ledger.example/o".into(),
            exported_at_us: 5,
            tool: "ledger 1".into(),
            private_withheld: false,
            chains: vec![ChainRange {
                chain: 0,
                from: 0,
                to: 7,
                prev_hash: Hash::ZERO,
                last_hash: hash(2),
                root: hash(3),
                commits: 2,
                checkpoints: 1,
            }],
            files: vec![ExportFile {
                name: ExportFile::name_of(FileKind::Entries, 0, 0, true),
                kind: FileKind::Entries,
                chain: 0,
                from: 0,
                to: 7,
                lines: 10,
                bytes: 1000,
                blake3: hash(4),
                sha256: hash(5),
            }],
            batch: Some(batch),
            signature: Some(ManifestSignature { kid: "export-1".into(), signature: [3; 64] }),
        };
        let copy = Manifest { batch: None, signature: None, ..manifest.clone() };
        assert_eq!(Manifest::decode(&copy.encode()), Ok(copy));
        let unsigned = Manifest { signature: None, ..manifest.clone() };
        assert_eq!(Manifest::decode(&unsigned.encode()), Ok(unsigned.clone()), "for a verifier to complain of");
        assert_eq!(unsigned.statement(), manifest.statement());
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            if let Ok(read) = Manifest::decode(&other) {
                assert_eq!(read.encode(), other);
            }
        }
        let text = String::from_utf8(bytes).unwrap();
        let refused = |from: &str, to: &str| Manifest::decode(text.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert_eq!(refused("ledger-export/1", "ledger-export/2"), ManifestError::Format);
        let astray = text.replace("entries-0000", "../ries-0000");
        assert_eq!(Manifest::decode(astray.as_bytes()).unwrap_err(), ManifestError::Member("files"));
        assert_eq!(refused("entries-0000", "other-0000"), ManifestError::Member("batch"), "stored under another name");
        assert_eq!(refused("\"origin\"", "\"Origin\""), ManifestError::NotCanonical, "no longer sorted");
        assert_eq!(refused("\"commits\":2", "\"commits\":-2"), ManifestError::Member("chains"));
        assert_eq!(
            refused("\"sequence\":2", "\"sequence\":1"),
            ManifestError::Member("batch"),
            "the first continues nothing"
        );
        assert_eq!(refused("COMPLIANCE", "WHATEVER"), ManifestError::Member("batch"));
    }
}
