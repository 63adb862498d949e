//! What makes an export one of a chain of batches: its place, what it continues, how its files are stored, who signed it (FORMAT.md 13).

use super::record::ObjectLock;
use crate::document;
use crate::domain::fields::{count, hash, list, object, text1};
use crate::hash::{Hash, sha256, to_hex};
use crate::json::{Object, Value};
use crate::merkle::verify_consistency;
use crate::note::{Checkpoint, Note};
use crate::registry::{Key, KeyRecord, Purpose, Registry};

/// What everything in an archive is called after: its top directory, and the value of `service`.
pub const SERVICE: &str = "marketplace";

/// How a file is stored: its bytes as they are, compressed or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredFile {
    /// Its name, as in the manifest's `files`.
    pub name: String,
    /// Bytes as stored.
    pub bytes: u64,
    /// SHA-256 of them.
    pub sha256: Hash,
    /// Version of the object, where the archive has versions.
    pub version: Option<String>,
}

/// Entries of one of the batch's files as a table (FORMAT.md 13.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableFile {
    /// How it is stored, and its name.
    pub stored: StoredFile,
    /// How many rows, one for each entry.
    pub rows: u64,
}

/// Names the batch before this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousBatch {
    /// Its name.
    pub name: String,
    /// SHA-256 of its manifest's bytes.
    pub manifest_sha256: Hash,
    /// Version of the manifest's object.
    pub version: Option<String>,
}

/// What a batch continues of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Continuation {
    /// RFC 6962 root of the chain at its range's `from`; that of the empty tree at 0.
    pub root_before: Hash,
    /// RFC 6962 consistency proof from there to `to`; empty where `from` is 0 or `to`.
    pub consistency: Vec<Hash>,
    /// The signed checkpoint of size `to`.
    pub checkpoint: String,
}

/// The key registry as the batch's signer knew it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryState {
    /// Entries of the stream `ledger`.
    pub size: u64,
    /// Entry hash of the last of them.
    pub head: Hash,
    /// Every key enrolled within them, and at which size it was retired, if it was. By place.
    pub keys: Vec<(Key, Option<u64>)>,
}

/// A manifest's member `batch`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// What its directory is called.
    pub name: String,
    /// Its number in the archive, from 1.
    pub sequence: u64,
    /// [`SERVICE`].
    pub service: String,
    /// The environment that it was made for.
    pub env: String,
    /// The archive, as its maker named it.
    pub location: String,
    /// Version of the policy that private documents were treated by.
    pub pii_policy: String,
    /// The batch before it; none at sequence 1.
    pub previous: Option<PreviousBatch>,
    /// One for each chain.
    pub continues: Vec<Continuation>,
    /// Each of the manifest's files, in its order.
    pub stored: Vec<StoredFile>,
    /// Tables of the entries, where they were asked for.
    pub tables: Vec<TableFile>,
    /// How objects are locked, where the archive can.
    pub lock: Option<ObjectLock>,
    /// Who may sign.
    pub registry: RegistryState,
}

/// A manifest's member `signature`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestSignature {
    /// Names a key of purpose `export`.
    pub kid: String,
    /// Ed25519.
    pub signature: [u8; 64],
}

/// What the key signs: `"ledger/export/v1\0" ‖ ledger_id ‖ SHA-256(manifest without its signature)`.
pub fn statement(ledger_id: &Hash, unsigned: &[u8]) -> Vec<u8> {
    document::statement(Purpose::Export, ledger_id, &sha256(&[unsigned]))
}

impl StoredFile {
    fn to_value(&self) -> Value {
        let mut object = Object::new()
            .with("bytes", super::int(self.bytes))
            .with("name", self.name.as_str())
            .with("sha256", self.sha256.to_hex());
        object.set_some("version", self.version.as_deref());
        Value::Object(object)
    }

    fn read(value: &Value) -> Option<StoredFile> {
        object(value, |f| StoredFile {
            bytes: f.required("bytes", count),
            name: f.required("name", text1),
            sha256: f.required("sha256", hash),
            version: f.optional("version", text1),
        })
    }
}

impl TableFile {
    fn to_value(&self) -> Value {
        let mut object = Object::new()
            .with("bytes", super::int(self.stored.bytes))
            .with("name", self.stored.name.as_str())
            .with("rows", super::int(self.rows))
            .with("sha256", self.stored.sha256.to_hex());
        object.set_some("version", self.stored.version.as_deref());
        Value::Object(object)
    }

    fn read(value: &Value) -> Option<TableFile> {
        object(value, |f| TableFile {
            rows: f.required("rows", count),
            stored: StoredFile {
                bytes: f.required("bytes", count),
                name: f.required("name", |v| text1(v).filter(|name| is_table_name(name))),
                sha256: f.required("sha256", hash),
                version: f.optional("version", text1),
            },
        })
    }
}

/// The name of the table of a file of lines: with another ending.
pub fn table_name_of(lines: &str) -> String {
    format!("{}.parquet", lines.split('.').next().unwrap_or_default())
}

/// Whether it is a plain name, as [`table_name_of`] gives it: names become paths.
fn is_table_name(name: &str) -> bool {
    name.strip_suffix(".parquet").is_some_and(|stem| {
        stem.starts_with("entries-") && stem.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || b == b'-')
    })
}

impl PreviousBatch {
    fn to_object(&self) -> Object {
        let mut object =
            Object::new().with("manifest_sha256", self.manifest_sha256.to_hex()).with("name", self.name.as_str());
        object.set_some("version", self.version.as_deref());
        object
    }

    fn read(value: &Value) -> Option<PreviousBatch> {
        object(value, |f| PreviousBatch {
            manifest_sha256: f.required("manifest_sha256", hash),
            name: f.required("name", text1),
            version: f.optional("version", text1),
        })
    }
}

impl Continuation {
    fn to_value(&self) -> Value {
        let path: Vec<Value> = self.consistency.iter().map(|h| Value::from(h.to_hex())).collect();
        let object = Object::new()
            .with("checkpoint", self.checkpoint.as_str())
            .with("consistency", path)
            .with("root_before", self.root_before.to_hex());
        Value::Object(object)
    }

    fn read(value: &Value) -> Option<Continuation> {
        object(value, |f| Continuation {
            checkpoint: f.required("checkpoint", text1),
            consistency: f.required("consistency", |v| list(v, hash)),
            root_before: f.required("root_before", hash),
        })
    }

    /// Whether the chain of `to` entries and this root continues the one of `from` entries, and the checkpoint is of it. The checkpoint's
    /// signature is for whoever has the registry.
    pub fn holds(&self, from: u64, to: u64, root: &Hash) -> Result<(), &'static str> {
        if from == 0 || from == to {
            let same = self.consistency.is_empty() && if from == 0 { true } else { self.root_before == *root };
            if !same {
                return Err("nothing was added, or all of it, and there is a proof or another root");
            }
        } else if !verify_consistency(from, to, &self.consistency, &self.root_before, root) {
            return Err("the consistency proof does not lead from the root before to the root");
        }
        let note = Note::parse(self.checkpoint.as_bytes()).map_err(|_| "the checkpoint is no signed note")?;
        let checkpoint = Checkpoint::parse(&note.text).map_err(|_| "the checkpoint is no signed note")?;
        if (checkpoint.size, checkpoint.root) == (to, *root) {
            Ok(())
        } else {
            Err("the checkpoint is of another size or root")
        }
    }
}

impl RegistryState {
    /// A registry as it was when it had `size` entries; `None` if it never had so many.
    pub fn at(registry: &Registry, size: u64) -> Option<RegistryState> {
        let head = registry.head(size)?;
        let key = |r: &KeyRecord| {
            let retired = r.retired.as_ref().map(|r| r.registry_size).filter(|retired| *retired <= size);
            (r.key.clone(), retired)
        };
        let keys = registry.records().iter().filter(|r| r.enrolled_size <= size).map(key).collect();
        Some(RegistryState { size, head, keys })
    }

    fn to_object(&self) -> Object {
        let key = |(key, retired): &(Key, Option<u64>)| {
            let mut object = key.to_object();
            object.set_some("retired_at_registry_size", retired.map(super::int));
            Value::Object(object)
        };
        Object::new()
            .with("head", self.head.to_hex())
            .with("keys", self.keys.iter().map(key).collect::<Vec<_>>())
            .with("size", super::int(self.size))
    }

    fn read(value: &Value) -> Option<RegistryState> {
        let key = |value: &Value| {
            let mut object = value.as_object()?.clone();
            let retired = match object.remove("retired_at_registry_size") {
                Some(value) => Some(count(&value)?),
                None => None,
            };
            Some((Key::read(&Value::Object(object))?, retired))
        };
        object(value, |f| RegistryState {
            head: f.required("head", hash),
            keys: f.required("keys", |v| list(v, key)),
            size: f.required("size", count),
        })
    }
}

impl Batch {
    pub(super) fn to_object(&self) -> Object {
        let mut object = Object::new()
            .with("continues", self.continues.iter().map(Continuation::to_value).collect::<Vec<_>>())
            .with("env", self.env.as_str())
            .with("location", self.location.as_str())
            .with("name", self.name.as_str())
            .with("pii_policy", self.pii_policy.as_str())
            .with("registry", self.registry.to_object())
            .with("sequence", super::int(self.sequence))
            .with("service", self.service.as_str())
            .with("stored", self.stored.iter().map(StoredFile::to_value).collect::<Vec<_>>());
        object.set_some("lock", self.lock.as_ref().map(ObjectLock::to_object));
        let tables = || self.tables.iter().map(TableFile::to_value).collect::<Vec<_>>();
        object.set_some("tables", (!self.tables.is_empty()).then(tables));
        object.set_some("previous", self.previous.as_ref().map(PreviousBatch::to_object));
        object
    }

    pub(super) fn read(value: &Value) -> Option<Batch> {
        let batch = object(value, |f| Batch {
            continues: f.required("continues", |v| list(v, Continuation::read)),
            env: f.required("env", text1),
            location: f.required("location", text1),
            name: f.required("name", text1),
            pii_policy: f.required("pii_policy", text1),
            registry: f.required("registry", RegistryState::read),
            sequence: f.required("sequence", |v| count(v).filter(|n| *n > 0)),
            service: f.required("service", text1),
            stored: f.required("stored", |v| list(v, StoredFile::read)),
            tables: f
                .optional("tables", |v| list(v, TableFile::read).filter(|all| !all.is_empty()))
                .unwrap_or_default(),
            lock: f.optional("lock", ObjectLock::read),
            previous: f.optional("previous", PreviousBatch::read),
        })?;
        // The first continues nothing, and every other one something.
        (batch.previous.is_none() == (batch.sequence == 1)).then_some(batch)
    }
}

impl ManifestSignature {
    pub(super) fn to_object(&self) -> Object {
        Object::new().with("alg", "ed25519").with("kid", self.kid.as_str()).with("signature", to_hex(&self.signature))
    }

    pub(super) fn read(value: &Value) -> Option<ManifestSignature> {
        let object = value.as_object().filter(|o| o.len() == 3)?;
        object.value("alg")?.as_str().filter(|alg| *alg == "ed25519")?;
        let kid = text1(object.value("kid")?)?;
        let signature = crate::hash::hex_array(object.value("signature")?.as_str()?.as_bytes())?;
        Some(ManifestSignature { kid, signature })
    }
}
