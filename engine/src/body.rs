//! The body of an entry: canonical JSON, stored exactly as hashed (FORMAT.md 2.1), and the private document beside it.

use crate::hash::{Hash, from_hex, sha256};
use crate::json::{JsonError, Object, Value, parse_canonical};

/// Largest body or private document, bytes; a constant of the format.
pub const BODY_BYTES_MAX: usize = 65_536;

/// A parsed body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// Who caused the event: `system`, `service:<name>`, or a person's pseudonym.
    pub actor_id: String,
    /// The event's data; its shape is given by type and schema version.
    pub payload: Object,
    /// SHA-256 of the private document, if there is one.
    pub private_sha256: Option<Hash>,
    /// Idempotency scope and request digest, if the command carried a key.
    pub meta: Option<Meta>,
}

/// What makes a retry recognisable (COMMANDS.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Hash of (subject, method, route, key).
    pub idem: Hash,
    /// Digest of the request.
    pub request: Hash,
}

/// Why bytes are not a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// Over [`BODY_BYTES_MAX`].
    #[error("{0} bytes, over the limit of 65,536")]
    TooLarge(usize),
    /// Not JSON that a body may hold.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// JSON, but not its RFC 8785 form.
    #[error("not in canonical form (RFC 8785)")]
    NotCanonical,
    /// A member missing, unknown or of the wrong type.
    #[error("member {0} is missing, unknown or malformed")]
    Member(String),
}

impl Body {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut object = Object::new().with("actor_id", self.actor_id.as_str()).with("payload", self.payload.clone());
        object.set_some("private_sha256", self.private_sha256.map(Hash::to_hex));
        if let Some(meta) = &self.meta {
            let meta = Object::new().with("idem", meta.idem.to_hex()).with("request", meta.request.to_hex());
            object.set("meta", meta);
        }
        object.to_canonical()
    }

    /// Reads a body. What is accepted re-encodes to the same bytes.
    pub fn decode(bytes: &[u8]) -> Result<Body, BodyError> {
        if bytes.len() > BODY_BYTES_MAX {
            return Err(BodyError::TooLarge(bytes.len()));
        }
        let member = |name: &str| BodyError::Member(name.chars().take(64).collect());
        let Some(value) = parse_canonical(bytes)? else { return Err(BodyError::NotCanonical) };
        let Value::Object(object) = value else { return Err(member("(the body itself)")) };
        let (mut actor_id, mut payload, mut private_sha256, mut meta) = (None, None, None, None);
        for (name, value) in object {
            match (name.as_str(), value) {
                ("actor_id", Value::Str(id)) => actor_id = Some(id.into()),
                ("payload", Value::Object(object)) => payload = Some(object),
                ("private_sha256", v) => {
                    private_sha256 = Some(v.as_str().and_then(Hash::from_hex).ok_or_else(|| member("private_sha256"))?);
                }
                ("meta", v) => meta = Some(read_meta(&v).ok_or_else(|| member("meta"))?),
                (name, _) => return Err(member(name)),
            }
        }
        let actor_id = actor_id.ok_or_else(|| member("actor_id"))?;
        let payload = payload.ok_or_else(|| member("payload"))?;
        Ok(Body { actor_id, payload, private_sha256, meta })
    }
}

fn read_meta(value: &Value) -> Option<Meta> {
    let object = value.as_object().filter(|o| o.len() == 2)?;
    let hash = |name| Hash::from_hex(object.value(name)?.as_str()?);
    Some(Meta { idem: hash("idem")?, request: hash("request")? })
}

/// A private document (FORMAT.md 2.2): canonical bytes with a salt. Never read by deciders or evolvers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateDocument(Vec<u8>);

impl PrivateDocument {
    /// Adds the salt to `members`; any member called `salt` is replaced.
    pub fn new(members: Object, salt: [u8; 16]) -> PrivateDocument {
        PrivateDocument(members.with("salt", crate::hash::to_hex(&salt)).to_canonical())
    }

    /// Takes bytes from a store as they are.
    pub fn from_bytes(bytes: Vec<u8>) -> PrivateDocument {
        PrivateDocument(bytes)
    }

    /// The bytes that were hashed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// SHA-256 of the bytes, as the body holds it.
    pub fn sha256(&self) -> Hash {
        sha256(&[&self.0])
    }

    /// The members, salt included; `None` if the bytes are not a private document.
    pub fn members(&self) -> Option<Object> {
        match parse_canonical(&self.0) {
            Ok(Some(Value::Object(o))) if from_hex(o.value("salt")?.as_str()?)?.len() == 16 => Some(o),
            _ => None,
        }
    }
}
