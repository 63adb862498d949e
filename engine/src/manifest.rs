//! The manifest of what a SKU sells: somebody else's document, signed by the Kernel, kept as it was received (FORMAT.md 18).

use crate::document::{Content, SignedDocument};
use crate::domain::fields::{hex64, text1};
use crate::domain::money::Money;
use crate::finance::signature_from_text;
use crate::hash::{Hash, sha256};
use crate::json::{self, JsonError, Object, Value};
use crate::public_key::Algorithm;
use crate::registry::{Purpose, is_kid};

/// Largest manifest that is read, bytes.
pub const MANIFEST_BYTES_MAX: usize = 65_536;
/// Most artifacts of a manifest.
pub const ARTIFACTS_MAX: usize = 64;
/// Most tags of a manifest.
pub const TAGS_MAX: usize = 32;
/// Longest tag, bytes.
pub const TAG_BYTES_MAX: usize = 64;

/// A file that a SKU consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Its id within the manifest.
    pub id: String,
    /// Where its author keeps it.
    pub url: String,
    /// SHA-256 of its bytes.
    pub sha256: Hash,
}

/// Who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// An id of the marketplace.
    pub id: String,
    /// For people.
    pub name: String,
}

/// The signature of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestSignature {
    /// Names the Kernel's key in the registry.
    pub kid: String,
    /// By the signature's length.
    pub alg: Algorithm,
    /// Its bytes.
    pub signature: Vec<u8>,
    /// When the Kernel says that it signed. It is not signed itself: nothing is judged by it.
    pub ts: String,
}

/// A manifest that has every member it needs. Whether its signature counts, the registry tells ([`Manifest::document`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The SKU's id.
    pub id: String,
    /// What it is called.
    pub title: String,
    /// The author's word for this state of it.
    pub version: String,
    /// Who made it.
    pub author: Author,
    /// Its files, at least one, each under another id.
    pub artifacts: Vec<Artifact>,
    /// `metadata/tags`: words to find it by.
    pub tags: Vec<String>,
    /// `metadata/price`, if the manifest names one.
    pub price: Option<Money>,
    /// Who vouches for it.
    pub signature: ManifestSignature,
    /// The signed bytes: the canonical manifest without `manifest_signature`.
    statement: Vec<u8>,
}

/// Why bytes are no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Over [`MANIFEST_BYTES_MAX`].
    #[error("{0} bytes, over the limit of 65,536")]
    TooLarge(usize),
    /// Not JSON, or JSON that has no canonical form here.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member missing or malformed.
    #[error("member {0} is missing or malformed")]
    Member(&'static str),
}

fn member<'a>(object: &'a Object, name: &'static str, path: &'static str) -> Result<&'a Value, ManifestError> {
    object.value(name).ok_or(ManifestError::Member(path))
}

fn text_of(object: &Object, name: &'static str, path: &'static str) -> Result<String, ManifestError> {
    text1(member(object, name, path)?).ok_or(ManifestError::Member(path))
}

fn object_of<'a>(object: &'a Object, name: &'static str) -> Result<&'a Object, ManifestError> {
    member(object, name, name)?.as_object().ok_or(ManifestError::Member(name))
}

fn artifact(value: &Value) -> Result<Artifact, ManifestError> {
    let object = value.as_object().ok_or(ManifestError::Member("artifacts"))?;
    let digest = member(object, "sha256", "artifacts/sha256")?;
    Ok(Artifact {
        id: text_of(object, "artifact_id", "artifacts/artifact_id")?,
        url: text_of(object, "artifact_url", "artifacts/artifact_url")?,
        sha256: hex64(digest).and_then(|h| Hash::from_hex(&h)).ok_or(ManifestError::Member("artifacts/sha256"))?,
    })
}

fn artifacts(object: &Object) -> Result<Vec<Artifact>, ManifestError> {
    let wrong = ManifestError::Member("artifacts");
    let values = member(object, "artifacts", "artifacts")?.as_array();
    let values = values.filter(|v| (1..=ARTIFACTS_MAX).contains(&v.len())).ok_or(wrong)?;
    let artifacts = values.iter().map(artifact).collect::<Result<Vec<_>, _>>()?;
    let repeated = |(at, a): (usize, &Artifact)| artifacts[..at].iter().any(|b| b.id == a.id);
    match artifacts.iter().enumerate().any(repeated) {
        true => Err(ManifestError::Member("artifacts/artifact_id")),
        false => Ok(artifacts),
    }
}

fn tags(metadata: &Object) -> Result<Vec<String>, ManifestError> {
    let Some(value) = metadata.value("tags") else { return Ok(Vec::new()) };
    let plain = |t: &&str| (1..=TAG_BYTES_MAX).contains(&t.len()) && !t.chars().any(|c| c.is_ascii_control());
    let read = |values: &[Value]| -> Option<Vec<String>> {
        values.iter().map(|v| v.as_str().filter(plain).map(str::to_owned)).collect()
    };
    value.as_array().filter(|v| v.len() <= TAGS_MAX).and_then(read).ok_or(ManifestError::Member("metadata/tags"))
}

fn signature(object: &Object) -> Result<ManifestSignature, ManifestError> {
    let object = object_of(object, "manifest_signature")?;
    let kid = text_of(object, "signer_kid", "manifest_signature/signer_kid")?;
    let text = member(object, "signature", "manifest_signature/signature")?.as_str();
    let signature = text.and_then(signature_from_text).ok_or(ManifestError::Member("manifest_signature/signature"))?;
    let alg = Algorithm::of_signature(signature.len()).ok_or(ManifestError::Member("manifest_signature/signature"))?;
    if !is_kid(&kid) {
        return Err(ManifestError::Member("manifest_signature/signer_kid"));
    }
    Ok(ManifestSignature { kid, alg, signature, ts: text_of(object, "ts", "manifest_signature/ts")? })
}

impl Manifest {
    /// Reads a manifest. Members that the ledger has no use for are the Kernel's own, and signed with the others.
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(text.len()));
        }
        let Value::Object(mut object) = json::parse(text.as_bytes())? else {
            return Err(ManifestError::Member("(the manifest itself)"));
        };
        let signature = signature(&object)?;
        object.remove("manifest_signature");
        let author = object_of(&object, "author")?;
        let license = object_of(&object, "license")?;
        text_of(license, "type", "license/type")?;
        text_of(&object, "checksum", "checksum")?;
        let metadata = match object.value("metadata") {
            None => Object::new(),
            Some(value) => value.as_object().cloned().ok_or(ManifestError::Member("metadata"))?,
        };
        let price = metadata.value("price").map(|v| Money::read(v).ok_or(ManifestError::Member("metadata/price")));
        Ok(Manifest {
            id: text_of(&object, "id", "id")?,
            title: text_of(&object, "title", "title")?,
            version: text_of(&object, "version", "version")?,
            author: Author { id: text_of(author, "id", "author/id")?, name: text_of(author, "name", "author/name")? },
            artifacts: artifacts(&object)?,
            tags: tags(&metadata)?,
            price: price.transpose()?,
            signature,
            statement: object.to_canonical(),
        })
    }

    /// The signed bytes: the RFC 8785 form of the manifest without `manifest_signature`.
    pub fn statement(&self) -> &[u8] {
        &self.statement
    }

    /// Names the signature: SHA-256 of its bytes, hex.
    pub fn signature_id(&self) -> String {
        sha256(&[&self.signature.signature]).to_hex()
    }

    /// The document whose signature the registry judges.
    pub fn document(&self) -> SignedDocument {
        SignedDocument {
            purpose: Purpose::Kernel,
            alg: self.signature.alg,
            kid: self.signature.kid.clone(),
            signature: self.signature.signature.clone(),
            content: Content::Manifest(self.statement.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Object {
        let text = |t: &str| Value::from(t);
        let artifact = Object::new()
            .with("artifact_id", "a-1")
            .with("artifact_url", "https://artifacts.example.org/a-1")
            .with("sha256", "00".repeat(32));
        Object::new()
            .with("id", "sku-1")
            .with("title", "Font")
            .with("version", "1.0.0")
            .with("checksum", "c")
            .with("author", Object::new().with("id", "author-1").with("name", "A. Author"))
            .with("license", Object::new().with("type", "standard").with("terms", "none"))
            .with("artifacts", vec![artifact.into()])
            .with("metadata", Object::new().with("tags", vec![text("serif"), text("print")]))
            .with(
                "manifest_signature",
                Object::new()
                    .with("signer_kid", "kernel-1")
                    .with("signature", "ab".repeat(64))
                    .with("ts", "2026-11-25T10:00:00Z"),
            )
    }

    fn read(object: &Object) -> Result<Manifest, ManifestError> {
        Manifest::parse(&String::from_utf8(object.to_canonical()).unwrap())
    }

    #[test]
    fn what_is_signed_is_the_canonical_manifest_without_its_signature() {
        let mut object = manifest();
        let spaced = String::from_utf8(object.to_canonical()).unwrap().replace(',', " ,\n");
        let read = read(&object).unwrap();
        object.remove("manifest_signature");
        assert_eq!(read.statement(), object.to_canonical());
        assert_eq!(Manifest::parse(&spaced).unwrap(), read, "layout is nothing");
        assert_eq!((read.tags.len(), read.artifacts.len(), read.price.is_none()), (2, 1, true));
        assert_eq!(read.signature_id(), sha256(&[&[0xab; 64]]).to_hex());
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        for name in ["id", "title", "version", "checksum", "author", "license", "artifacts", "manifest_signature"] {
            let mut without = manifest();
            without.remove(name);
            assert_eq!(read(&without), Err(ManifestError::Member(name)), "without {name}");
            let mut wrong = manifest();
            wrong.set(name, 1);
            assert_eq!(read(&wrong), Err(ManifestError::Member(name)), "another {name}");
        }
        let one = manifest().value("artifacts").and_then(Value::as_array).unwrap().to_vec();
        let twice = [one.clone(), one].concat();
        for (name, value, path) in [
            ("artifacts", Value::from(Vec::new()), "artifacts"),
            ("artifacts", twice.into(), "artifacts/artifact_id"),
            ("metadata", Object::new().with("tags", "serif").into(), "metadata/tags"),
            ("metadata", Object::new().with("tags", vec![Value::from("a\nb")]).into(), "metadata/tags"),
            ("metadata", Object::new().with("price", Object::new().with("amount", 0)).into(), "metadata/price"),
        ] {
            let mut wrong = manifest();
            wrong.set(name, value);
            assert_eq!(read(&wrong), Err(ManifestError::Member(path)));
        }
        let mut fraction = manifest();
        fraction.set("metadata", Object::new().with("weight", 15));
        let fraction = String::from_utf8(fraction.to_canonical()).unwrap().replace("15", "1.5");
        assert!(matches!(Manifest::parse(&fraction), Err(ManifestError::Json(_))), "no canonical form here");
    }
}
