//! The licence that a buyer holds: a canonical document, signed for one ledger, that anybody can check offline (FORMAT.md 15).

use crate::document::{self, Content, SignedDocument};
use crate::domain::case::{Order, license_id};
use crate::domain::fields::{FieldError, Fields, text1};
use crate::hash::{Hash, hex_array, sha256, to_hex};
use crate::json::{self, JsonError, Object, Value};
use crate::public_key::Algorithm;
use crate::registry::{Purpose, Registry, is_kid};
use crate::stream::CaseId;
use crate::time::{parse_rfc3339, rfc3339};

/// Largest licence that is read, bytes: its texts are of at most 1,024 bytes each.
pub const LICENCE_BYTES_MAX: usize = 32_768;
/// The scope where the command names none.
pub const SCOPE_DEFAULT: &str = "standard";

/// What a licence says: everything but the signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The order, which gives the licence's id.
    pub order_id: CaseId,
    /// What is licensed.
    pub sku_id: String,
    /// The buyer's pseudonym.
    pub buyer_id: String,
    /// What the buyer may do, a word of the marketplace.
    pub scope: String,
    /// Until when, microseconds since the Unix epoch.
    pub expires_at_us: Option<i64>,
    /// When the signer says that it was made, microseconds since the Unix epoch.
    pub issued_at_us: i64,
    /// The ledger whose registry has the key.
    pub ledger_id: Hash,
    /// Names that key.
    pub signer_kid: String,
}

/// A signed licence. What is read prints to the same bytes, if it was canonical; nothing of it is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Licence {
    /// What it says.
    pub terms: Terms,
    /// Ed25519.
    pub signature: [u8; 64],
}

/// Why bytes are no licence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LicenceError {
    /// Over [`LICENCE_BYTES_MAX`].
    #[error("{0} bytes, over the limit of 32,768")]
    TooLarge(usize),
    /// Not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member missing, unknown or malformed.
    #[error("member {0} is missing, unknown or malformed")]
    Member(String),
}

impl From<FieldError> for LicenceError {
    fn from(e: FieldError) -> Self {
        LicenceError::Member(e.0)
    }
}

impl Terms {
    fn to_object(&self) -> Object {
        let mut scope = Object::new().with("type", self.scope.as_str());
        scope.set_some("expires_at", self.expires_at_us.map(rfc3339));
        Object::new()
            .with("license_id", license_id(self.order_id))
            .with("order_id", self.order_id.to_string())
            .with("sku_id", self.sku_id.as_str())
            .with("buyer_id", self.buyer_id.as_str())
            .with("scope", scope)
            .with("issued_at", rfc3339(self.issued_at_us))
            .with("ledger_id", self.ledger_id.to_hex())
            .with("signer_kid", self.signer_kid.as_str())
    }

    /// SHA-256 of the canonical licence without its signature.
    pub fn digest(&self) -> Hash {
        sha256(&[&self.to_object().to_canonical()])
    }

    /// What is signed.
    pub fn statement(&self) -> Vec<u8> {
        statement(&self.ledger_id, &self.digest())
    }

    /// The licence with a signature over [`Terms::statement`].
    pub fn signed(self, signature: [u8; 64]) -> Licence {
        Licence { terms: self, signature }
    }

    /// Whether it is for what was bought.
    pub fn is_for(&self, order: &Order) -> bool {
        self.sku_id == order.sku_id && self.buyer_id == order.buyer
    }
}

/// The signed bytes: `"ledger/licence/v1\0"`, ledger id, SHA-256 of the canonical licence without its signature.
pub fn statement(ledger_id: &Hash, digest: &Hash) -> Vec<u8> {
    document::statement(Purpose::Licence, ledger_id, digest)
}

impl Licence {
    /// The object that a buyer gets.
    pub fn to_object(&self) -> Object {
        self.terms.to_object().with("signature", to_hex(&self.signature))
    }

    /// Its canonical text (RFC 8785).
    pub fn to_text(&self) -> String {
        // The printer writes UTF-8 only.
        String::from_utf8(self.to_object().to_canonical()).unwrap_or_default()
    }

    /// Reads a licence in whatever layout.
    pub fn parse(text: &[u8]) -> Result<Licence, LicenceError> {
        if text.len() > LICENCE_BYTES_MAX {
            return Err(LicenceError::TooLarge(text.len()));
        }
        match json::parse(text)? {
            Value::Object(object) => Licence::read(&object),
            _ => Err(LicenceError::Member("(the licence itself)".into())),
        }
    }

    /// Reads a licence whose text is canonical, as entries hold it.
    pub fn parse_canonical(text: &str) -> Option<Licence> {
        Licence::parse(text.as_bytes()).ok().filter(|licence| licence.to_text() == text)
    }

    /// Reads a licence's object.
    pub fn read(object: &Object) -> Result<Licence, LicenceError> {
        let time = |v: &Value| v.as_str().and_then(parse_rfc3339);
        let mut f = Fields::new(object);
        let id = f.required("license_id", text1);
        let order_id = f.required("order_id", |v| v.as_str().and_then(CaseId::parse).map(Some));
        let sku_id = f.required("sku_id", text1);
        let buyer_id = f.required("buyer_id", text1);
        let scope = f.required("scope", |v| v.as_object().cloned());
        let issued_at_us = f.required("issued_at", time);
        let ledger_id = f.required("ledger_id", |v| v.as_str().and_then(Hash::from_hex));
        let signer_kid = f.required("signer_kid", |v| v.as_str().filter(|k| is_kid(k)).map(str::to_owned));
        let signature = f.required("signature", |v| hex_array::<64>(v.as_str()?.as_bytes()).map(Some));
        f.finish()?;
        let mut f = Fields::new(&scope);
        let kind = f.required("type", text1);
        let expires_at_us = f.optional("expires_at", time);
        f.finish().map_err(|e| LicenceError::Member(format!("scope/{}", e.0)))?;
        let member = |name: &str| LicenceError::Member(name.to_owned());
        let order_id = order_id.filter(|o| license_id(*o) == id).ok_or_else(|| member("license_id"))?;
        let signature = signature.ok_or_else(|| member("signature"))?;
        let scope = kind;
        let terms = Terms { order_id, sku_id, buyer_id, scope, expires_at_us, issued_at_us, ledger_id, signer_kid };
        Ok(Licence { terms, signature })
    }

    /// The document whose signature the registry judges.
    pub fn document(&self) -> SignedDocument {
        SignedDocument {
            purpose: Purpose::Licence,
            alg: Algorithm::Ed25519,
            kid: self.terms.signer_kid.clone(),
            signature: self.signature.to_vec(),
            content: Content::Own { ledger_id: self.terms.ledger_id, digest: self.terms.digest() },
        }
    }
}

/// Why a licence does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It cannot be read.
    #[error("it is no licence: {0}")]
    Malformed(String),
    /// It is of another ledger.
    #[error("it is of the ledger {0}, not of this one")]
    WrongLedger(Hash),
    /// The registry has no such key.
    #[error("its key {0} is not in the registry")]
    UnknownKid(String),
    /// The key is for something else.
    #[error("its key {0} may not sign licences")]
    WrongPurpose(String),
    /// The key was rotated away or revoked: whether it signed before that, only the ledger's own entry tells.
    #[error("its key {0} is retired: compare it with the ledger's entry")]
    RetiredKey(String),
    /// The signature is not over this text.
    #[error("the signature does not verify: it was changed or forged")]
    BadSignature,
    /// It is for somebody else.
    #[error("it is for another buyer")]
    OtherBuyer,
    /// Its time is over.
    #[error("it expired at {}", rfc3339(*.0))]
    Expired(i64),
}

impl Reason {
    /// A stable word.
    pub fn code(&self) -> &'static str {
        match self {
            Reason::Malformed(_) => "malformed",
            Reason::WrongLedger(_) => "wrong_ledger",
            Reason::UnknownKid(_) => "unknown_kid",
            Reason::WrongPurpose(_) => "wrong_purpose",
            Reason::RetiredKey(_) => "retired_key",
            Reason::BadSignature => "bad_signature",
            Reason::OtherBuyer => "other_buyer",
            Reason::Expired(_) => "expired",
        }
    }
}

/// Every reason why a licence does not hold now; none if it does. `expected_buyer` is a pseudonym. The answer rests on the keys alone:
/// whether the order was refunded since, the ledger tells.
pub fn judge(
    text: &[u8],
    registry: &Registry,
    ledger_id: &Hash,
    expected_buyer: Option<&str>,
    now_us: i64,
) -> Vec<Reason> {
    let licence = match Licence::parse(text) {
        Ok(licence) => licence,
        Err(e) => return vec![Reason::Malformed(e.to_string())],
    };
    let (terms, mut reasons) = (&licence.terms, Vec::new());
    if terms.ledger_id != *ledger_id {
        reasons.push(Reason::WrongLedger(terms.ledger_id));
    }
    let kid = || terms.signer_kid.clone();
    match registry.record(&terms.signer_kid) {
        None => reasons.push(Reason::UnknownKid(kid())),
        Some(record) if record.key.purpose != Purpose::Licence => reasons.push(Reason::WrongPurpose(kid())),
        Some(record) => {
            if record.retired.is_some() {
                reasons.push(Reason::RetiredKey(kid()));
            }
            // Of another ledger it cannot be checked here, and there is a reason already.
            let message = statement(&terms.ledger_id, &terms.digest());
            if !record.key.public_key.verify(&message, &licence.signature) {
                reasons.push(Reason::BadSignature);
            }
        }
    }
    if expected_buyer.is_some_and(|buyer| buyer != terms.buyer_id) {
        reasons.push(Reason::OtherBuyer);
    }
    reasons.extend(terms.expires_at_us.filter(|at| *at <= now_us).map(Reason::Expired));
    reasons
}
