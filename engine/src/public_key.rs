//! Public keys of the registry, and the one place where signatures by them are checked (FORMAT.md 6).

use std::sync::Arc;

use ed25519_dalek::pkcs8::spki::der::asn1::{AnyRef, BitStringRef, UintRef};
use ed25519_dalek::pkcs8::spki::der::{self, Decode as _, Document, Encode as _, Reader as _, SliceReader};
use ed25519_dalek::pkcs8::spki::{AlgorithmIdentifierRef, ObjectIdentifier, SubjectPublicKeyInfoRef};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};

use crate::commit::verify_ed25519;
use crate::hash::{from_hex, to_hex};

/// Bits of an RSA modulus.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Largest RSA exponent: what verifiers in common use accept (NIST SP 800-56B allows more).
const RSA_EXPONENT_MAX: u64 = (1 << 33) - 1;
const OID_ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const OID_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// How a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Algorithm {
    /// Ed25519 (RFC 8032), checked strictly.
    Ed25519,
    /// RSA with SHA-256: RSASSA-PSS with MGF1-SHA256 and a salt of 32 bytes, or RSASSA-PKCS1-v1_5 (RFC 8017).
    RsaSha256,
}

impl Algorithm {
    /// The word in KEY objects and signatures.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Ed25519 => "ed25519",
            Algorithm::RsaSha256 => "rsa-sha256",
        }
    }

    /// Reads the word.
    pub fn parse(text: &str) -> Option<Algorithm> {
        [Algorithm::Ed25519, Algorithm::RsaSha256].into_iter().find(|a| a.as_str() == text)
    }

    /// The algorithm whose signatures have this many bytes: 64, or as many as an RSA modulus.
    pub fn of_signature(bytes: usize) -> Option<Algorithm> {
        match bytes {
            64 => Some(Algorithm::Ed25519),
            n if RSA_BITS.contains(&(n * 8)) => Some(Algorithm::RsaSha256),
            _ => None,
        }
    }
}

/// A public key. Equal keys have equal bytes: other encodings of the same key are refused.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum PublicKey {
    /// 32 raw bytes.
    Ed25519([u8; 32]),
    /// SubjectPublicKeyInfo (RFC 5280) in DER, 2048 to 8192 bits.
    Rsa(Arc<[u8]>),
}

/// Why bytes are no public key of the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublicKeyError {
    /// It is a private key.
    #[error("this is a private key; give the public key, and keep this one where nobody else can read it")]
    Private,
    /// Not PEM with the label PUBLIC KEY.
    #[error("not a PEM file that begins with -----BEGIN PUBLIC KEY-----; `openssl pkey -pubout` makes one")]
    Pem,
    /// Not the DER of a SubjectPublicKeyInfo, or of another algorithm.
    #[error("neither an Ed25519 key nor an RSA key in SubjectPublicKeyInfo DER")]
    Unknown,
    /// An RSA key that the format does not take.
    #[error("an RSA key must have 2048 to 8192 bits and an odd exponent from 3 to 2^33 - 1")]
    Rsa,
}

impl PublicKey {
    /// Reads `alg` and `public_key` of a KEY object.
    pub fn parse(alg: &str, hex: &str) -> Option<PublicKey> {
        let bytes = from_hex(hex)?;
        match Algorithm::parse(alg)? {
            Algorithm::Ed25519 => bytes.try_into().ok().map(PublicKey::Ed25519),
            Algorithm::RsaSha256 => match PublicKey::from_spki(&bytes) {
                Ok(key @ PublicKey::Rsa(_)) => Some(key),
                _ => None,
            },
        }
    }

    /// Reads SubjectPublicKeyInfo DER of either algorithm.
    pub fn from_spki(der: &[u8]) -> Result<PublicKey, PublicKeyError> {
        let info = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| PublicKeyError::Unknown)?;
        let key = info.subject_public_key.as_bytes().ok_or(PublicKeyError::Unknown)?;
        if info.algorithm.oid == OID_ED25519 {
            let raw = key.try_into().ok().filter(|_| info.algorithm.parameters.is_none());
            return raw.map(PublicKey::Ed25519).ok_or(PublicKeyError::Unknown);
        }
        if info.algorithm.oid != OID_RSA || info.algorithm.parameters != Some(AnyRef::NULL) {
            return Err(PublicKeyError::Unknown);
        }
        let (modulus, exponent) = rsa_numbers(key).map_err(|_| PublicKeyError::Unknown)?;
        // The decoder is strict; whatever it lets pass must still be the one encoding.
        if info.to_der().ok().as_deref() != Some(der) {
            return Err(PublicKeyError::Unknown);
        }
        let (modulus, exponent) = (modulus.as_bytes(), exponent.as_bytes());
        let bits = modulus.len() * 8 - modulus.first().map_or(0, |b| b.leading_zeros() as usize);
        let odd = |number: &[u8]| number.last().is_some_and(|b| b % 2 == 1);
        let exponent_fits = exponent.len() <= 8 && {
            let value = exponent.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
            (3..=RSA_EXPONENT_MAX).contains(&value)
        };
        if !RSA_BITS.contains(&bits) || !odd(modulus) || !odd(exponent) || !exponent_fits {
            return Err(PublicKeyError::Rsa);
        }
        Ok(PublicKey::Rsa(der.into()))
    }

    /// Reads an RSAPublicKey (RFC 8017 A.1.1) in DER.
    pub fn from_rsa(pkcs1: &[u8]) -> Result<PublicKey, PublicKeyError> {
        let algorithm = AlgorithmIdentifierRef { oid: OID_RSA, parameters: Some(AnyRef::NULL) };
        let subject_public_key = BitStringRef::from_bytes(pkcs1).map_err(|_| PublicKeyError::Unknown)?;
        let info = SubjectPublicKeyInfoRef { algorithm, subject_public_key };
        PublicKey::from_spki(&info.to_der().map_err(|_| PublicKeyError::Unknown)?)
    }

    /// Reads a PEM file of a public key.
    pub fn from_pem(pem: &str) -> Result<PublicKey, PublicKeyError> {
        if pem.contains("PRIVATE KEY") {
            return Err(PublicKeyError::Private);
        }
        match Document::from_pem(pem) {
            Ok(("PUBLIC KEY", der)) => PublicKey::from_spki(der.as_bytes()),
            _ => Err(PublicKeyError::Pem),
        }
    }

    /// How it signs.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            PublicKey::Ed25519(_) => Algorithm::Ed25519,
            PublicKey::Rsa(_) => Algorithm::RsaSha256,
        }
    }

    /// The bytes that KEY objects hold: 32 raw bytes, or SubjectPublicKeyInfo DER.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            PublicKey::Ed25519(raw) => raw,
            PublicKey::Rsa(der) => der,
        }
    }

    /// Lowercase hex of [`PublicKey::as_bytes`].
    pub fn to_hex(&self) -> String {
        to_hex(self.as_bytes())
    }

    /// The 32 raw bytes of an Ed25519 key.
    pub fn ed25519(&self) -> Option<[u8; 32]> {
        match self {
            PublicKey::Ed25519(raw) => Some(*raw),
            PublicKey::Rsa(_) => None,
        }
    }

    /// Whether the signature over `message` is by this key. Of an RSA key either padding is accepted.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            PublicKey::Ed25519(raw) => verify_ed25519(raw, message, signature),
            PublicKey::Rsa(der) => {
                let info = SubjectPublicKeyInfoRef::from_der(der).ok();
                let Some(key) = info.and_then(|info| info.subject_public_key.as_bytes()) else { return false };
                let good = |padding| UnparsedPublicKey::new(padding, key).verify(message, signature).is_ok();
                good(&RSA_PSS_2048_8192_SHA256) || good(&RSA_PKCS1_2048_8192_SHA256)
            }
        }
    }
}

/// Modulus and exponent of an RSAPublicKey (RFC 8017 A.1.1).
fn rsa_numbers(der: &[u8]) -> Result<(UintRef<'_>, UintRef<'_>), der::Error> {
    let mut reader = SliceReader::new(der)?;
    let numbers =
        reader.sequence(|inside| Ok::<_, der::Error>((UintRef::decode(inside)?, UintRef::decode(inside)?)))?;
    reader.finish().map(|()| numbers)
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({} {})", self.algorithm().as_str(), self.to_hex())
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(raw: [u8; 32]) -> Self {
        PublicKey::Ed25519(raw)
    }
}
