//! The signature by which finance says that an order was paid for in its books (FORMAT.md 16).

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::document::{Content, SignedDocument};
use crate::domain::money::Money;
use crate::hash::{from_hex, to_hex};
use crate::json::{Object, Value};
use crate::public_key::Algorithm;
use crate::registry::{Purpose, is_kid};
use crate::stream::CaseId;

/// Value of the member `type` of what finance signs.
pub const FINANCE_PROOF_TYPE: &str = "finance-proof/v1";
/// Longest text of a signature: hex of 1,024 bytes.
const TEXT_BYTES_MAX: usize = 2048;

/// A signature by a key of finance, as `order.settled` holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinanceSignature {
    /// How it was made.
    pub alg: Algorithm,
    /// Names the key in the registry.
    pub kid: String,
    /// 64 bytes, or as many as an RSA modulus.
    pub signature: Vec<u8>,
}

/// What finance signs: the RFC 8785 form of order, amount and the id under which finance knows the payment. It is always rebuilt from
/// the order, never taken from a message.
pub fn statement(order: CaseId, ledger_proof_id: &str, total: &Money) -> Vec<u8> {
    Object::new()
        .with("amount", total.amount)
        .with("currency", total.currency.as_str())
        .with("ledger_proof_id", ledger_proof_id)
        .with("order_id", order.to_string())
        .with("scale", total.scale)
        .with("type", FINANCE_PROOF_TYPE)
        .to_canonical()
}

impl FinanceSignature {
    /// Reads a signature as it was received, base64 (either alphabet, with or without padding) or hex. Its length tells the algorithm.
    pub fn from_text(kid: &str, text: &str) -> Option<FinanceSignature> {
        let signature = signature_from_text(text).filter(|_| is_kid(kid))?;
        let alg = Algorithm::of_signature(signature.len())?;
        Some(FinanceSignature { alg, kid: kid.to_owned(), signature })
    }

    /// The member `finance_signature` of `order.settled`.
    pub fn to_value(&self) -> Value {
        Object::new()
            .with("alg", self.alg.as_str())
            .with("kid", self.kid.as_str())
            .with("signature", to_hex(&self.signature))
            .into()
    }

    /// Reads that member.
    pub fn read(value: &Value) -> Option<FinanceSignature> {
        let object = value.as_object().filter(|o| o.len() == 3)?;
        let member = |name| object.value(name).and_then(Value::as_str);
        let alg = Algorithm::parse(member("alg")?)?;
        let kid = member("kid").filter(|k| is_kid(k))?.to_owned();
        let signature = from_hex(member("signature")?).filter(|s| Algorithm::of_signature(s.len()) == Some(alg))?;
        Some(FinanceSignature { alg, kid, signature })
    }

    /// The document that it is over.
    pub fn document(&self, order: CaseId, ledger_proof_id: &str, total: &Money) -> SignedDocument {
        SignedDocument {
            purpose: Purpose::Finance,
            alg: self.alg,
            kid: self.kid.clone(),
            signature: self.signature.clone(),
            content: Content::Finance(statement(order, ledger_proof_id, total)),
        }
    }
}

/// Reads a signature by hex, or by base64 (either alphabet, with or without padding).
pub fn signature_from_text(text: &str) -> Option<Vec<u8>> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let right = |s: &Vec<u8>| Algorithm::of_signature(s.len()).is_some();
    let by_hex = from_hex(&text.to_ascii_lowercase()).filter(right);
    by_hex.or_else(|| decode_base64(text).filter(right))
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    static STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
    STANDARD.decode(text.replace('-', "+").replace('_', "/")).ok()
}
