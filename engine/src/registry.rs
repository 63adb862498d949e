//! The key registry: which kid may sign what, judged by place in the history and never by a clock (FORMAT.md 6).

use crate::commit::ALG_ED25519;
use crate::domain::fields::{Fields, count, text, text1};
use crate::domain::{Illegal, allowed};
use crate::hash::{Hash, from_hex, to_hex};
use crate::json::{Object, Value};
use crate::public_key::{Algorithm, PublicKey};

/// What a key may sign. A key has one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs, reason = "the purposes of FORMAT.md 6, name by name")]
pub enum Purpose {
    Governance,
    Commit,
    Checkpoint,
    Export,
    Licence,
    DeliveryProof,
    Finance,
    Kernel,
}

const PURPOSES: [(Purpose, &str); 8] = [
    (Purpose::Governance, "governance"),
    (Purpose::Commit, "commit"),
    (Purpose::Checkpoint, "checkpoint"),
    (Purpose::Export, "export"),
    (Purpose::Licence, "licence"),
    (Purpose::DeliveryProof, "delivery-proof"),
    (Purpose::Finance, "finance"),
    (Purpose::Kernel, "kernel"),
];

impl Purpose {
    /// The word in KEY objects.
    pub fn as_str(self) -> &'static str {
        PURPOSES.iter().find(|(p, _)| *p == self).map_or("", |(_, name)| name)
    }

    /// Reads the word.
    pub fn parse(text: &str) -> Option<Purpose> {
        PURPOSES.iter().find(|(_, name)| *name == text).map(|(p, _)| *p)
    }

    /// All words.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PURPOSES.iter().map(|(_, name)| *name)
    }

    /// Whether keys of this purpose are held by others, who may sign by RSA.
    pub fn is_external(self) -> bool {
        matches!(self, Purpose::Finance | Purpose::Kernel)
    }
}

/// A public key with its name and purpose: the KEY object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// `[a-z0-9][a-z0-9._-]{0,63}`
    pub kid: String,
    /// Ed25519; for external purposes RSA too.
    pub public_key: PublicKey,
    /// What it may sign.
    pub purpose: Purpose,
}

impl Key {
    /// A key named after its purpose and the first four bytes of SHA-256 of the public key's bytes.
    pub fn named(purpose: Purpose, public_key: impl Into<PublicKey>) -> Key {
        let public_key = public_key.into();
        let digest = crate::hash::sha256(&[public_key.as_bytes()]);
        Key { kid: format!("{}-{}", purpose.as_str(), to_hex(&digest.0[..4])), public_key, purpose }
    }

    /// The KEY object.
    pub fn to_object(&self) -> Object {
        Object::new()
            .with("alg", self.public_key.algorithm().as_str())
            .with("kid", self.kid.as_str())
            .with("public_key", self.public_key.to_hex())
            .with("purpose", self.purpose.as_str())
    }

    /// Reads a KEY object.
    pub fn read(value: &Value) -> Option<Key> {
        let object = value.as_object().filter(|o| o.len() == 4)?;
        let member = |name| object.value(name).and_then(Value::as_str);
        let key = Key {
            kid: member("kid").filter(|k| is_kid(k))?.to_owned(),
            public_key: PublicKey::parse(member("alg")?, member("public_key")?)?,
            purpose: Purpose::parse(member("purpose")?)?,
        };
        key.is_allowed().then_some(key)
    }

    /// Whether keys of this purpose may have this algorithm.
    pub fn is_allowed(&self) -> bool {
        self.purpose.is_external() || self.public_key.algorithm() == Algorithm::Ed25519
    }
}

/// `[a-z0-9][a-z0-9._-]{0,63}`
pub fn is_kid(text: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 64
        && bytes.first().is_some_and(plain)
        && bytes.iter().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'))
}

/// How and where a key's life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retirement {
    /// Registry size from which the key is retired.
    pub registry_size: u64,
    /// Size of each chain up to which its signatures stand.
    pub cut: Vec<u64>,
    /// Size of each chain from which they are doubtful.
    pub compromised_since: Option<Vec<u64>>,
}

/// A key and its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The key.
    pub key: Key,
    /// Registry size from which the key is known. Genesis keys: 1, and they also sign the first commit.
    pub enrolled_size: u64,
    /// Present for an emergency key: why there is one.
    pub justification: Option<String>,
    /// Present once it was rotated away or revoked.
    pub retired: Option<Retirement>,
}

/// Why a kid may not have signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// Not in the registry prefix that the statement names.
    Unknown,
    /// Enrolled for something else.
    WrongPurpose,
    /// The signature names another algorithm than the key has.
    Algorithm,
    /// Retired in that prefix, or used beyond its cut.
    NotValid,
}

/// A change of the registry, authorised by the governance key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the members of A in FORMAT.md 6")]
pub enum Action {
    Enrol { key: Key, justification: Option<String> },
    Rotate { old_kid: String, key: Key, cut: Vec<u64> },
    Revoke { kid: String, reason: String, cut: Vec<u64>, compromised_since: Option<Vec<u64>> },
}

fn sizes(values: &[u64]) -> Value {
    values.iter().map(|n| Value::Int(*n as i64)).collect::<Vec<_>>().into()
}

fn read_sizes(value: &Value) -> Option<Vec<u64>> {
    value.as_array()?.iter().map(count).collect()
}

impl Action {
    /// The event type that records it.
    pub fn event_type(&self) -> &'static str {
        match self {
            Action::Enrol { .. } => "key.enrolled",
            Action::Rotate { .. } => "key.rotated",
            Action::Revoke { .. } => "key.revoked",
        }
    }

    /// The object A.
    pub fn to_object(&self) -> Object {
        match self {
            Action::Enrol { key, justification } => {
                let mut object = Object::new().with("type", "enrol").with("key", key.to_object());
                object.set_some("justification", justification.as_deref());
                object
            }
            Action::Rotate { old_kid, key, cut } => Object::new()
                .with("type", "rotate")
                .with("key", key.to_object())
                .with("old_kid", old_kid.as_str())
                .with("cut", sizes(cut)),
            Action::Revoke { kid, reason, cut, compromised_since } => {
                let mut object = Object::new()
                    .with("type", "revoke")
                    .with("kid", kid.as_str())
                    .with("reason", reason.as_str())
                    .with("cut", sizes(cut));
                object.set_some("compromised_since", compromised_since.as_deref().map(sizes));
                object
            }
        }
    }

    /// Reads the object A of an event of this type.
    pub fn read(event_type: &str, object: &Object) -> Result<Action, Illegal> {
        let mut f = Fields::new(object);
        let kind = f.required("type", text1);
        let key = |f: &mut Fields<'_>| f.required("key", |v| Key::read(v).map(Some));
        let (action, wanted) = match event_type {
            "key.enrolled" => {
                let justification = f.optional("justification", text1);
                (key(&mut f).map(|key| Action::Enrol { key, justification }), "enrol")
            }
            "key.rotated" => {
                let old_kid = f.required("old_kid", text1);
                let cut = f.required("cut", read_sizes);
                (key(&mut f).map(|key| Action::Rotate { old_kid, key, cut }), "rotate")
            }
            "key.revoked" => {
                let action = Action::Revoke {
                    kid: f.required("kid", text1),
                    reason: f.required("reason", text),
                    cut: f.required("cut", read_sizes),
                    compromised_since: f.optional("compromised_since", read_sizes),
                };
                (Some(action), "revoke")
            }
            other => return Err(Illegal(format!("{other} is no event of the key registry"))),
        };
        f.finish()?;
        action.filter(|_| kind == wanted).ok_or_else(|| Illegal("the action does not fit the event's type".into()))
    }

    fn incoming(&self) -> Option<&Key> {
        match self {
            Action::Enrol { key, .. } | Action::Rotate { key, .. } => Some(key),
            Action::Revoke { .. } => None,
        }
    }
}

/// The bytes that governance signs, and the incoming key for proof of possession:
/// `"ledger/govern/v1\0"`, ledger id, revision, parent hash, canonical action.
pub fn govern_statement(ledger_id: &Hash, revision: u64, parent_hash: &Hash, action: &Action) -> Vec<u8> {
    let mut out = b"ledger/govern/v1\0".to_vec();
    out.extend_from_slice(&ledger_id.0);
    out.extend_from_slice(&revision.to_le_bytes());
    out.extend_from_slice(&parent_hash.0);
    out.extend_from_slice(&action.to_object().to_canonical());
    out
}

/// The payload of a registry entry.
pub fn govern_payload(
    action: &Action,
    governance_kid: &str,
    governance: &[u8; 64],
    possession: Option<&[u8]>,
) -> Object {
    let mut payload = Object::new()
        .with("action", action.to_object())
        .with("governance_kid", governance_kid)
        .with("governance_signature", to_hex(governance));
    payload.set_some("possession_signature", possession.map(to_hex));
    payload
}

/// The place of a registry entry.
#[derive(Clone, Copy, Debug)]
pub struct RegistryPlace<'a> {
    /// Which ledger.
    pub ledger_id: &'a Hash,
    /// Revision in the stream `ledger`.
    pub revision: u64,
    /// The stream's previous entry.
    pub parent_hash: &'a Hash,
    /// Index in chain 0.
    pub index: u64,
}

/// All keys, as of a prefix of the `ledger` stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    chains: u32,
    records: Vec<KeyRecord>,
    heads: Vec<Hash>,
}

impl Registry {
    /// The registry of a genesis entry.
    pub fn new(chains: u32, keys: [Key; 3], genesis_hash: Hash) -> Registry {
        let records = keys
            .into_iter()
            .map(|key| KeyRecord { key, enrolled_size: 1, justification: None, retired: None })
            .collect();
        Registry { chains, records, heads: vec![genesis_hash] }
    }

    /// How many entries of the stream `ledger` it holds.
    pub fn size(&self) -> u64 {
        self.heads.len() as u64
    }

    /// Entry hash of the prefix of `size` entries; zeros for 0.
    pub fn head(&self, size: u64) -> Option<Hash> {
        match size {
            0 => Some(Hash::ZERO),
            n => self.heads.get(usize::try_from(n - 1).ok()?).copied(),
        }
    }

    /// All keys in the order of enrolment.
    pub fn records(&self) -> &[KeyRecord] {
        &self.records
    }

    /// The record of a kid.
    pub fn record(&self, kid: &str) -> Option<&KeyRecord> {
        self.records.iter().find(|r| r.key.kid == kid)
    }

    fn record_at(&self, kid: &str, registry_size: u64) -> Option<&KeyRecord> {
        // The very first commit names an empty prefix and is signed by a genesis key.
        self.record(kid).filter(|r| r.enrolled_size <= registry_size.max(1))
    }

    /// The key that may have signed a commit ending at `end` of `chain` under the prefix `registry_size`.
    pub fn commit_key(&self, kid: &str, alg: u8, chain: u32, end: u64, registry_size: u64) -> Result<&Key, KeyFault> {
        let record = self.record_at(kid, registry_size).ok_or(KeyFault::Unknown)?;
        if record.key.purpose != Purpose::Commit {
            return Err(KeyFault::WrongPurpose);
        }
        if alg != ALG_ED25519 {
            return Err(KeyFault::Algorithm);
        }
        match &record.retired {
            Some(r) if r.registry_size <= registry_size || end > cut_of(&r.cut, chain) => Err(KeyFault::NotValid),
            _ => Ok(&record.key),
        }
    }

    /// The key that may have signed a document in entry `index` of `chain`, whose commit names the prefix `registry_size`.
    /// A key that was retired later still counts below its cut.
    pub fn document_key(
        &self,
        (kid, alg, purpose): (&str, Algorithm, Purpose),
        chain: u32,
        index: u64,
        registry_size: u64,
    ) -> Result<&Key, KeyFault> {
        let record = self.record_at(kid, registry_size).ok_or(KeyFault::Unknown)?;
        if record.key.purpose != purpose {
            return Err(KeyFault::WrongPurpose);
        }
        if record.key.public_key.algorithm() != alg {
            return Err(KeyFault::Algorithm);
        }
        match &record.retired {
            Some(r) if r.registry_size <= registry_size || index >= cut_of(&r.cut, chain) => Err(KeyFault::NotValid),
            _ => Ok(&record.key),
        }
    }

    /// What governance signs, and the incoming key too, so that `action` becomes the next entry of the registry.
    pub fn next_statement(&self, ledger_id: &Hash, action: &Action) -> Vec<u8> {
        let size = self.size();
        govern_statement(ledger_id, size + 1, &self.head(size).unwrap_or_default(), action)
    }

    /// Keys that may sign checkpoints of `chain` at `size`.
    pub fn checkpoint_keys(&self) -> impl Iterator<Item = &KeyRecord> {
        self.records.iter().filter(|r| r.key.purpose == Purpose::Checkpoint)
    }

    /// The valid key of a purpose, the newest if there are several.
    pub fn current(&self, purpose: Purpose) -> Option<&Key> {
        self.valid(self.size(), purpose).next().map(|r| &r.key)
    }

    /// The keys of a purpose that are valid in the prefix `registry_size`, the newest first.
    pub fn valid(&self, registry_size: u64, purpose: Purpose) -> impl Iterator<Item = &KeyRecord> {
        self.records.iter().rev().filter(move |record| {
            let retired = record.retired.as_ref().is_some_and(|r| r.registry_size <= registry_size);
            record.key.purpose == purpose && record.enrolled_size <= registry_size.max(1) && !retired
        })
    }

    /// Checks a registry entry without changing anything.
    pub fn check(&self, event_type: &str, payload: &Object, place: RegistryPlace<'_>) -> Result<Action, Illegal> {
        let mut f = Fields::new(payload);
        let object = f.required("action", |v| v.as_object().cloned());
        let governance_kid = f.required("governance_kid", text1);
        let signature = |v: &Value| from_hex(v.as_str()?).filter(|s| Algorithm::of_signature(s.len()).is_some());
        let governance = f.required("governance_signature", signature);
        let possession = f.optional("possession_signature", signature);
        f.finish()?;
        let action = Action::read(event_type, &object)?;
        let message = govern_statement(place.ledger_id, place.revision, place.parent_hash, &action);
        let authority = self.record(&governance_kid);
        let authority = authority.filter(|r| r.key.purpose == Purpose::Governance && r.retired.is_none());
        let Some(authority) = authority else {
            return Err(Illegal("governance_kid is no valid governance key".into()));
        };
        allowed(authority.key.public_key.verify(&message, &governance), || {
            "the governance signature does not verify".into()
        })?;
        allowed(action.incoming().is_some() == possession.is_some(), || {
            "possession_signature is missing or superfluous".into()
        })?;
        if let (Some(key), Some(possession)) = (action.incoming(), &possession) {
            allowed(key.public_key.verify(&message, possession), || {
                "the incoming key's signature does not verify".into()
            })?;
            let known = self.records.iter().any(|r| r.key.kid == key.kid || r.key.public_key == key.public_key);
            allowed(!known, || "the kid or the public key is enrolled already".into())?;
        }
        if let Action::Rotate { old_kid: kid, cut, .. } | Action::Revoke { kid, cut, .. } = &action {
            let record = self.record(kid).filter(|r| r.retired.is_none());
            let Some(record) = record else { return Err(Illegal(format!("{kid} is no valid key"))) };
            let complete = cut.len() == self.chains as usize && cut.first() == Some(&(place.index + 1));
            allowed(complete, || "cut does not give one size per chain, this entry included".into())?;
            if let Action::Rotate { key, .. } = &action {
                allowed(key.purpose == record.key.purpose, || "rotation changes the purpose".into())?;
            }
            if let Action::Revoke { compromised_since: Some(since), .. } = &action {
                let fits = since.len() == cut.len() && since.iter().zip(cut).all(|(s, c)| s <= c);
                allowed(fits, || "compromised_since does not lie before the cut".into())?;
            }
        }
        Ok(action)
    }

    /// Applies a registry entry with this entry hash. On `Err` only the head has advanced: the entry is part of the
    /// stream whether or not it was allowed.
    pub fn apply(
        &mut self,
        event_type: &str,
        payload: &Object,
        place: RegistryPlace<'_>,
        entry_hash: Hash,
    ) -> Result<(), Illegal> {
        let checked = self.check(event_type, payload, place);
        self.heads.push(entry_hash);
        let registry_size = self.size();
        let action = checked?;
        let (retired, incoming) = match action {
            Action::Enrol { key, justification } => (None, Some((key, justification))),
            Action::Rotate { old_kid, key, cut } => (Some((old_kid, cut, None)), Some((key, None))),
            Action::Revoke { kid, cut, compromised_since, .. } => (Some((kid, cut, compromised_since)), None),
        };
        if let Some((kid, cut, compromised_since)) = retired
            && let Some(record) = self.records.iter_mut().find(|r| r.key.kid == kid)
        {
            record.retired = Some(Retirement { registry_size, cut, compromised_since });
        }
        if let Some((key, justification)) = incoming {
            self.records.push(KeyRecord { key, enrolled_size: registry_size, justification, retired: None });
        }
        Ok(())
    }
}

/// The cut of one chain; a missing one cuts everything.
pub fn cut_of(cut: &[u64], chain: u32) -> u64 {
    cut.get(chain as usize).copied().unwrap_or(0)
}
