//! The delivery proof: a canonical document by which the marketplace says what was encrypted for whom, signed for one ledger (FORMAT.md 19).

use crate::document::{self, Content, SignedDocument};
use crate::domain::case::{Delivery, Order, license_id, proof_id};
use crate::domain::fields::{FieldError, Fields, count, hash, text1};
use crate::domain::sku::Said;
use crate::hash::{Hash, from_hex, hex_array, sha256, to_hex};
use crate::json::{self, JsonError, Object, Value};
use crate::public_key::Algorithm;
use crate::registry::{Purpose, is_kid};
use crate::stream::{CaseId, Stream};
use crate::time::{parse_rfc3339, rfc3339};

/// Largest delivery proof that is read, bytes.
pub const DELIVERY_PROOF_BYTES_MAX: usize = 32_768;
/// Most bytes of a wrapped key: an RSA modulus of 8192 bits.
const WRAPPED_BYTES_MAX: usize = 1024;

/// How the artifact was encrypted, and for which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// Of the content.
    pub algorithm: String,
    /// Of the content key.
    pub key_algorithm: String,
    /// The content key, wrapped.
    pub encrypted_key: Vec<u8>,
    /// SHA-256 of the SubjectPublicKeyInfo of the key that it is wrapped for.
    pub key_fingerprint: Hash,
    /// For a key pair of the marketplace's: the key that its private half is sealed under, as `file:…`, `awskms:…` or `pkcs11:…`.
    pub key_source: Option<String>,
}

/// What a delivery proof says: everything but the signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofTerms {
    /// The order, which gives the ids of licence, delivery and proof.
    pub order_id: CaseId,
    /// Which of its deliveries.
    pub n: u32,
    /// What was bought.
    pub sku_id: String,
    /// The buyer's pseudonym.
    pub buyer_id: String,
    /// `buyer-managed` or `marketplace-managed`.
    pub delivery_mode: String,
    /// SHA-256 and length of the artifact.
    pub artifact: (Hash, u64),
    /// SHA-256 and length of what the buyer gets.
    pub ciphertext: (Hash, u64),
    /// SHA-256 of the manifest that names the artifact.
    pub manifest_sha256: Hash,
    /// SHA-256 of its signature.
    pub manifest_signature_id: Hash,
    /// Under which finance knows the payment.
    pub ledger_proof_id: String,
    /// How it was encrypted.
    pub encryption: Encryption,
    /// The proof of the delivery before it, where this one was issued again.
    pub supersedes: Option<String>,
    /// When the signer says that it was made, microseconds since the Unix epoch.
    pub issued_at_us: i64,
    /// The ledger whose registry has the key.
    pub ledger_id: Hash,
    /// Names that key.
    pub signer_kid: String,
}

/// A signed delivery proof. Nothing of it is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryProof {
    /// What it says.
    pub terms: ProofTerms,
    /// Ed25519.
    pub signature: [u8; 64],
}

/// Why bytes are no delivery proof.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryProofError {
    /// Over [`DELIVERY_PROOF_BYTES_MAX`].
    #[error("{0} bytes, over the limit of 32,768")]
    TooLarge(usize),
    /// Not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member missing, unknown or malformed.
    #[error("member {0} is missing, unknown or malformed")]
    Member(String),
}

impl From<FieldError> for DeliveryProofError {
    fn from(e: FieldError) -> Self {
        DeliveryProofError::Member(e.0)
    }
}

/// Lengths are far below 2^53.
fn number(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

impl ProofTerms {
    /// The delivery's id.
    pub fn delivery_id(&self) -> String {
        Stream::Delivery(self.order_id, self.n).to_string()
    }

    fn to_object(&self) -> Object {
        let Encryption { algorithm, key_algorithm, encrypted_key, key_fingerprint, key_source } = &self.encryption;
        let mut encryption = Object::new()
            .with("algorithm", algorithm.as_str())
            .with("encrypted_key", to_hex(encrypted_key))
            .with("key_algorithm", key_algorithm.as_str())
            .with("key_fingerprint", key_fingerprint.to_hex());
        encryption.set_some("key_source", key_source.as_deref());
        let mut object = Object::new()
            .with("artifact_bytes", number(self.artifact.1))
            .with("artifact_sha256", self.artifact.0.to_hex())
            .with("buyer_id", self.buyer_id.as_str())
            .with("ciphertext_bytes", number(self.ciphertext.1))
            .with("ciphertext_sha256", self.ciphertext.0.to_hex())
            .with("delivery_id", self.delivery_id())
            .with("delivery_mode", self.delivery_mode.as_str())
            .with("encryption", encryption)
            .with("ledger_id", self.ledger_id.to_hex())
            .with("ledger_proof_id", self.ledger_proof_id.as_str())
            .with("license_id", license_id(self.order_id))
            .with("manifest_sha256", self.manifest_sha256.to_hex())
            .with("manifest_signature_id", self.manifest_signature_id.to_hex())
            .with("order_id", self.order_id.to_string())
            .with("proof_id", proof_id(self.order_id, self.n))
            .with("signer_kid", self.signer_kid.as_str())
            .with("sku_id", self.sku_id.as_str())
            .with("ts", rfc3339(self.issued_at_us));
        object.set_some("supersedes", self.supersedes.as_deref());
        object
    }

    /// The canonical text of the proof without its signature.
    pub fn to_text(&self) -> String {
        // The printer writes UTF-8 only.
        String::from_utf8(self.to_object().to_canonical()).unwrap_or_default()
    }

    /// SHA-256 of the canonical proof without its signature.
    pub fn digest(&self) -> Hash {
        sha256(&[&self.to_object().to_canonical()])
    }

    /// What is signed.
    pub fn statement(&self) -> Vec<u8> {
        statement(&self.ledger_id, &self.digest())
    }

    /// The proof with a signature over [`ProofTerms::statement`].
    pub fn signed(self, signature: [u8; 64]) -> DeliveryProof {
        DeliveryProof { terms: self, signature }
    }

    /// What the listing that the order cites must say for the proof to be true.
    pub fn said_of_listing(&self) -> Said {
        Said::Artifact {
            manifest_sha256: self.manifest_sha256,
            manifest_signature_id: self.manifest_signature_id,
            sha256: self.artifact.0,
        }
    }

    /// Whether it is of an order's delivery as that was encrypted, and of those before it replaces the last one that has a proof.
    pub fn is_of(&self, order: &Order, delivery: &Delivery, before: &[Delivery]) -> bool {
        let is = |digest: &Option<String>, hash: &Hash| digest.as_ref() == Some(&hash.to_hex());
        self.sku_id == order.sku_id
            && self.buyer_id == order.buyer
            && self.delivery_mode == delivery.mode
            && Some(&self.ledger_proof_id) == order.ledger_proof_id.as_ref()
            && is(&delivery.artifact_sha256, &self.artifact.0)
            && is(&delivery.ciphertext_sha256, &self.ciphertext.0)
            && (delivery.key_fingerprint.is_none() || is(&delivery.key_fingerprint, &self.encryption.key_fingerprint))
            && self.supersedes.as_ref() == superseded(before)
    }
}

/// The proof that a new one replaces: the last one of the deliveries before.
pub fn superseded(before: &[Delivery]) -> Option<&String> {
    before.iter().rev().find_map(|d| d.proof_id.as_ref())
}

/// The signed bytes: `"ledger/delivery-proof/v1\0"`, ledger id, SHA-256 of the canonical proof without its signature.
pub fn statement(ledger_id: &Hash, digest: &Hash) -> Vec<u8> {
    document::statement(Purpose::DeliveryProof, ledger_id, digest)
}

impl DeliveryProof {
    /// The object that a buyer gets.
    pub fn to_object(&self) -> Object {
        self.terms.to_object().with("signature", to_hex(&self.signature))
    }

    /// Its canonical text (RFC 8785).
    pub fn to_text(&self) -> String {
        // The printer writes UTF-8 only.
        String::from_utf8(self.to_object().to_canonical()).unwrap_or_default()
    }

    /// Reads a proof whose text is canonical, as entries hold it.
    pub fn parse_canonical(text: &str) -> Option<DeliveryProof> {
        DeliveryProof::parse(text.as_bytes()).ok().filter(|proof| proof.to_text() == text)
    }

    /// Reads a proof in whatever layout.
    pub fn parse(text: &[u8]) -> Result<DeliveryProof, DeliveryProofError> {
        if text.len() > DELIVERY_PROOF_BYTES_MAX {
            return Err(DeliveryProofError::TooLarge(text.len()));
        }
        match json::parse(text)? {
            Value::Object(object) => DeliveryProof::read(&object),
            _ => Err(DeliveryProofError::Member("(the proof itself)".into())),
        }
    }

    /// Reads a proof's object.
    pub fn read(object: &Object) -> Result<DeliveryProof, DeliveryProofError> {
        let mut f = Fields::new(object);
        let order_id = f.required("order_id", |v| v.as_str().and_then(CaseId::parse).map(Some));
        let delivery = f.required("delivery_id", |v| v.as_str().and_then(Stream::parse).map(Some));
        let ids = (f.required("license_id", text1), f.required("proof_id", text1));
        let sku_id = f.required("sku_id", text1);
        let buyer_id = f.required("buyer_id", text1);
        let delivery_mode = f.required("delivery_mode", text1);
        let artifact = (f.required("artifact_sha256", hash), f.required("artifact_bytes", count));
        let ciphertext = (f.required("ciphertext_sha256", hash), f.required("ciphertext_bytes", count));
        let manifest_sha256 = f.required("manifest_sha256", hash);
        let manifest_signature_id = f.required("manifest_signature_id", hash);
        let ledger_proof_id = f.required("ledger_proof_id", text1);
        let encryption = f.required("encryption", |v| v.as_object().cloned());
        let supersedes = f.optional("supersedes", text1);
        let issued_at_us = f.required("ts", |v| v.as_str().and_then(parse_rfc3339));
        let ledger_id = f.required("ledger_id", hash);
        let signer_kid = f.required("signer_kid", |v| v.as_str().filter(|k| is_kid(k)).map(str::to_owned));
        let signature = f.required("signature", |v| hex_array::<64>(v.as_str()?.as_bytes()).map(Some));
        f.finish()?;
        let mut f = Fields::new(&encryption);
        let wrapped = |v: &Value| from_hex(v.as_str()?).filter(|k| (1..=WRAPPED_BYTES_MAX).contains(&k.len()));
        let encryption = Encryption {
            algorithm: f.required("algorithm", text1),
            key_algorithm: f.required("key_algorithm", text1),
            encrypted_key: f.required("encrypted_key", wrapped),
            key_fingerprint: f.required("key_fingerprint", hash),
            key_source: f.optional("key_source", text1),
        };
        f.finish().map_err(|e| DeliveryProofError::Member(format!("encryption/{}", e.0)))?;
        let member = |name: &str| DeliveryProofError::Member(name.to_owned());
        if encryption.key_source.is_some() != (delivery_mode == "marketplace-managed") {
            return Err(member("encryption/key_source"));
        }
        let order_id = order_id.ok_or_else(|| member("order_id"))?;
        let Some(Stream::Delivery(case, n)) = delivery.filter(|d| d.case() == Some(order_id)) else {
            return Err(member("delivery_id"));
        };
        if ids != (license_id(case), proof_id(case, n)) {
            return Err(member("proof_id"));
        }
        let terms = ProofTerms {
            order_id,
            n,
            sku_id,
            buyer_id,
            delivery_mode,
            artifact,
            ciphertext,
            manifest_sha256,
            manifest_signature_id,
            ledger_proof_id,
            encryption,
            supersedes,
            issued_at_us,
            ledger_id,
            signer_kid,
        };
        Ok(DeliveryProof { terms, signature: signature.ok_or_else(|| member("signature"))? })
    }

    /// The document whose signature the registry judges.
    pub fn document(&self) -> SignedDocument {
        SignedDocument {
            purpose: Purpose::DeliveryProof,
            alg: Algorithm::Ed25519,
            kid: self.terms.signer_kid.clone(),
            signature: self.signature.to_vec(),
            content: Content::Own { ledger_id: self.terms.ledger_id, digest: self.terms.digest() },
        }
    }
}
