//! The proof file: one entry with all that a stranger needs to check it, given the ledger's id (FORMAT.md 12).

use crate::commit::{COMMIT_SIGNATURES_MAX, CommitSignature};
use crate::domain::fields::{FieldError, Fields, count};
use crate::hash::{Hash, from_hex, to_hex};
use crate::header::Header;
use crate::json::{JsonError, Object, Value, parse_canonical};
use crate::note::{Checkpoint, Note};
use crate::registry::is_kid;

/// Value of the member `format`.
pub const PROOF_FORMAT: &str = "ledger-proof/1";
/// Largest proof file, bytes: a body, a private document, and some thousand changes of keys.
pub const PROOF_BYTES_MAX: usize = 4 << 20;
/// Longest inclusion path: no tree is higher.
const PATH_MAX: usize = 63;

/// An entry with its place in its chain's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenEntry {
    /// Its header.
    pub header: Header,
    /// Body bytes, exactly as hashed.
    pub body: Vec<u8>,
    /// Inclusion path to the checkpoint's root (RFC 6962 2.1.1), from the leaf's sibling up.
    pub path: Vec<Hash>,
}

/// The commit of an entry, without the other entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProvenCommit {
    /// Index of the first entry.
    pub first_index: u64,
    /// How many entries, 1 to 4,096.
    pub size: u32,
    /// RFC 6962 root over the entries' header bytes.
    pub root: Hash,
    /// Entry hash of the last entry.
    pub last_hash: Hash,
    /// How many entries of the key registry the signer knew.
    pub registry_size: u64,
    /// Entry hash of the last of them.
    pub registry_head: Hash,
    /// Inclusion path of the entry to `root`.
    pub path: Vec<Hash>,
    /// One to four.
    pub signatures: Vec<CommitSignature>,
}

/// A checkpoint: the signed note, and what its text says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// The note, with one signature.
    pub note: Note,
    /// Its text.
    pub checkpoint: Checkpoint,
}

/// The content of a proof file. What is read prints to the same bytes; nothing of it is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The entry.
    pub entry: ProvenEntry,
    /// Its private document, if whoever made the file chose to show it.
    pub private: Option<Vec<u8>>,
    /// The commit that it was written in.
    pub commit: ProvenCommit,
    /// A checkpoint of the entry's chain.
    pub checkpoint: SignedCheckpoint,
    /// The stream `ledger` from the genesis on: all keys, and who admitted them.
    pub registry: Vec<ProvenEntry>,
    /// The checkpoint of chain 0 to which their paths lead; absent if it is `checkpoint`.
    pub registry_checkpoint: Option<SignedCheckpoint>,
}

/// Why bytes are not a proof file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// Over [`PROOF_BYTES_MAX`].
    #[error("{0} bytes, over the limit of 4 MiB")]
    TooLarge(usize),
    /// Not JSON of the format.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Not the canonical form (RFC 8785) with one newline after it.
    #[error("not in canonical form (RFC 8785) followed by one newline; get the file again, unchanged")]
    NotCanonical,
    /// A member missing, unknown or malformed.
    #[error("member {0} is missing, unknown or malformed")]
    Member(String),
    /// A body or private document that is not text cannot be written.
    #[error("a body or private document is not UTF-8")]
    NotText,
}

impl From<FieldError> for ProofError {
    fn from(e: FieldError) -> Self {
        ProofError::Member(e.0)
    }
}

impl SignedCheckpoint {
    /// Reads a note with one signature whose text is a checkpoint.
    pub fn parse(text: &str) -> Option<SignedCheckpoint> {
        let note = Note::parse(text.as_bytes()).ok()?;
        let checkpoint = Checkpoint::parse(&note.text).ok()?;
        (note.signatures.len() == 1).then_some(SignedCheckpoint { note, checkpoint })
    }
}

impl Proof {
    /// The file's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, ProofError> {
        let mut entry = write_entry(&self.entry)?;
        entry.set_some("private", self.private.as_deref().map(text).transpose()?);
        let registry: Vec<Value> =
            self.registry.iter().map(|e| write_entry(e).map(Value::Object)).collect::<Result<_, _>>()?;
        let mut object = Object::new()
            .with("format", PROOF_FORMAT)
            .with("entry", entry)
            .with("commit", write_commit(&self.commit))
            .with("checkpoint", self.checkpoint.note.to_string())
            .with("registry", registry);
        object.set_some("registry_checkpoint", self.registry_checkpoint.as_ref().map(|c| c.note.to_string()));
        let mut bytes = object.to_canonical();
        bytes.push(b'\n');
        if bytes.len() > PROOF_BYTES_MAX { Err(ProofError::TooLarge(bytes.len())) } else { Ok(bytes) }
    }

    /// Whether bytes begin as a proof file does: member names are sorted, and the text of a checkpoint is first.
    pub fn is_likely(head: &[u8]) -> bool {
        head.starts_with(b"{\"checkpoint\":\"")
    }

    /// Reads a file. What is accepted encodes to the same bytes.
    pub fn decode(bytes: &[u8]) -> Result<Proof, ProofError> {
        if bytes.len() > PROOF_BYTES_MAX {
            return Err(ProofError::TooLarge(bytes.len()));
        }
        let json = bytes.strip_suffix(b"\n").ok_or(ProofError::NotCanonical)?;
        let value = parse_canonical(json)?.ok_or(ProofError::NotCanonical)?;
        let object = value.as_object().ok_or_else(|| ProofError::Member("(the file itself)".into()))?;
        let mut f = Fields::new(object);
        f.required("format", |v| v.as_str().filter(|s| *s == PROOF_FORMAT).map(drop));
        let read_note = |v: &Value| v.as_str().and_then(SignedCheckpoint::parse);
        let entry = f.required("entry", |v| v.as_object().cloned());
        let commit = f.required("commit", |v| v.as_object().cloned());
        let checkpoint = f.required("checkpoint", |v| read_note(v).map(Some));
        let registry = f.required("registry", |v| v.as_array().filter(|a| !a.is_empty()));
        let registry_checkpoint = f.optional("registry_checkpoint", read_note);
        f.finish()?;
        let read = |object: &Object| read_entry(object, false).map(|(entry, _)| entry);
        let registry = registry.iter().map(|v| read(v.as_object().unwrap_or(&Object::new())));
        let (entry, private) = read_entry(&entry, true).map_err(|e| within("entry", e))?;
        Ok(Proof {
            entry,
            private,
            commit: read_commit(&commit).map_err(|e| within("commit", e))?,
            // `finish` has seen that it is there.
            checkpoint: checkpoint.ok_or_else(|| ProofError::Member("checkpoint".into()))?,
            registry: registry.collect::<Result<_, _>>().map_err(|e| within("registry", e))?,
            registry_checkpoint,
        })
    }
}

fn within(name: &str, e: FieldError) -> ProofError {
    ProofError::Member(format!("{name}/{}", e.0))
}

fn text(bytes: &[u8]) -> Result<String, ProofError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| ProofError::NotText)
}

fn hashes(path: &[Hash]) -> Value {
    path.iter().map(|h| Value::from(h.to_hex())).collect::<Vec<_>>().into()
}

fn read_hash(value: &Value) -> Option<Hash> {
    Hash::from_hex(value.as_str()?)
}

fn read_path(value: &Value) -> Option<Vec<Hash>> {
    value.as_array().filter(|path| path.len() <= PATH_MAX)?.iter().map(read_hash).collect()
}

fn write_entry(entry: &ProvenEntry) -> Result<Object, ProofError> {
    let object = Object::new().with("body", text(&entry.body)?).with("header", to_hex(&entry.header.encode()));
    Ok(object.with("path", hashes(&entry.path)))
}

fn read_entry(object: &Object, may_be_private: bool) -> Result<(ProvenEntry, Option<Vec<u8>>), FieldError> {
    let mut f = Fields::new(object);
    let bytes = |v: &Value| v.as_str().map(|s| s.as_bytes().to_vec());
    let body = f.required("body", bytes);
    let header = f.required("header", |v| Header::decode(&from_hex(v.as_str()?)?).ok().map(Some));
    let path = f.required("path", read_path);
    let private = if may_be_private { f.optional("private", bytes) } else { None };
    f.finish()?;
    let header = header.ok_or_else(|| FieldError("header".into()))?;
    Ok((ProvenEntry { header, body, path }, private))
}

fn write_commit(commit: &ProvenCommit) -> Object {
    let signature = |s: &CommitSignature| {
        let object = Object::new().with("alg", i64::from(s.alg)).with("kid", s.kid.as_str());
        Value::Object(object.with("signature", to_hex(&s.signature)))
    };
    Object::new()
        .with("first_index", Value::Int(commit.first_index as i64))
        .with("size", i64::from(commit.size))
        .with("root", commit.root.to_hex())
        .with("last_hash", commit.last_hash.to_hex())
        .with("registry_size", Value::Int(commit.registry_size as i64))
        .with("registry_head", commit.registry_head.to_hex())
        .with("path", hashes(&commit.path))
        .with("signatures", commit.signatures.iter().map(signature).collect::<Vec<_>>())
}

fn read_commit(object: &Object) -> Result<ProvenCommit, FieldError> {
    let mut f = Fields::new(object);
    let commit = ProvenCommit {
        first_index: f.required("first_index", count),
        size: f.required("size", |v| {
            let size = count(v).filter(|n| (1..=crate::commit::COMMIT_ENTRIES_MAX as u64).contains(n))?;
            u32::try_from(size).ok()
        }),
        root: f.required("root", read_hash),
        last_hash: f.required("last_hash", read_hash),
        registry_size: f.required("registry_size", count),
        registry_head: f.required("registry_head", read_hash),
        path: f.required("path", read_path),
        signatures: f.required("signatures", |v| {
            let list = v.as_array().filter(|list| (1..=COMMIT_SIGNATURES_MAX).contains(&list.len()))?;
            list.iter().map(read_signature).collect()
        }),
    };
    f.finish().map(|()| commit)
}

fn read_signature(value: &Value) -> Option<CommitSignature> {
    let object = value.as_object().filter(|o| o.len() == 3)?;
    let kid = object.value("kid")?.as_str().filter(|k| is_kid(k))?.to_owned();
    let alg = count(object.value("alg")?).and_then(|n| u8::try_from(n).ok())?;
    let signature = from_hex(object.value("signature")?.as_str()?).filter(|s| s.len() == 64)?;
    Some(CommitSignature { kid, alg, signature })
}
