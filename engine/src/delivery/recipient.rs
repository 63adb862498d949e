//! Whom a delivery is for: content keys wrapped to RSA keys by RSAES-OAEP with SHA-256 and MGF1-SHA256 (RFC 8017 7.1, empty label), to
//! X25519 keys by HPKE in base mode (RFC 9180: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; no associated data).

use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
    PublicEncryptingKey,
};
use ed25519_dalek::pkcs8::PrivateKeyInfoRef;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::spki::der::{Decode as _, Document, Encode as _, SecretDocument};
use ed25519_dalek::pkcs8::spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem, OpModeR, OpModeS, Serializable as _};

use super::{CONTENT_KEY_BYTES, ContentKey};
use crate::hash::{Hash, sha256};
use crate::public_key::{PublicKey, PublicKeyError};

const OID_X25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.110");
const OID_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const X25519_BYTES: usize = 32;

/// A buyer's public key.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient {
    key: Key,
    /// SubjectPublicKeyInfo.
    der: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq)]
enum Key {
    Rsa,
    X25519([u8; X25519_BYTES]),
}

/// Why a text is no key that a delivery can be encrypted for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipientError {
    /// It is a private key.
    #[error(
        "this is a private key: it is not kept, and nobody else should have seen it; make a new one and send its public key (`openssl pkey -pubout`)"
    )]
    Private,
    /// It is a certificate.
    #[error("this is a certificate; send its public key (`openssl x509 -pubkey -noout`)")]
    Certificate,
    /// Not PEM with the label PUBLIC KEY.
    #[error("not one public key in PEM that begins with -----BEGIN PUBLIC KEY-----; `openssl pkey -pubout` makes one")]
    Pem,
    /// A key of another kind.
    #[error("the key is neither RSA nor X25519; other curves are not taken")]
    Kind,
    /// An RSA key of a size or exponent that is not taken.
    #[error("an RSA key must have 2048 to 8192 bits and an odd exponent from 3 to 2^33 - 1")]
    Rsa,
    /// A point that every private key maps to the same secret.
    #[error("the X25519 key is of low order: everybody could open what is encrypted for it")]
    LowOrder,
}

/// Why a wrapped key cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnwrapError {
    /// Not a PKCS#8 private key, RSA or X25519.
    #[error("not an RSA or X25519 private key in PKCS#8 PEM (-----BEGIN PRIVATE KEY-----); `openssl pkey` makes one")]
    Key,
    /// It does not open: it is for another key, or of another delivery.
    #[error("the content key was not wrapped for this private key and this delivery")]
    Wrapped,
}

impl Recipient {
    /// Reads a public key in PEM.
    pub fn from_pem(pem: &str) -> Result<Recipient, RecipientError> {
        if pem.contains("PRIVATE KEY") {
            return Err(RecipientError::Private);
        }
        if pem.contains("BEGIN CERTIFICATE") || pem.contains("BEGIN TRUSTED CERTIFICATE") {
            return Err(RecipientError::Certificate);
        }
        let der = match Document::from_pem(pem.trim()) {
            Ok(("PUBLIC KEY", der)) => der.as_bytes().to_vec(),
            _ => return Err(RecipientError::Pem),
        };
        let info = SubjectPublicKeyInfoRef::from_der(&der).map_err(|_| RecipientError::Pem)?;
        if info.algorithm.oid == OID_X25519 {
            let raw = info.subject_public_key.as_bytes().and_then(|raw| <[u8; X25519_BYTES]>::try_from(raw).ok());
            let strict = info.algorithm.parameters.is_none() && info.to_der().ok().as_deref() == Some(&der[..]);
            let raw = raw.filter(|_| strict).ok_or(RecipientError::Pem)?;
            let recipient = Recipient { key: Key::X25519(raw), der };
            // Encapsulation refuses what gives a shared secret of zeros.
            return match recipient.wrap(&ContentKey::new([0; CONTENT_KEY_BYTES]), &[]) {
                Some(_) => Ok(recipient),
                None => Err(RecipientError::LowOrder),
            };
        }
        match PublicKey::from_spki(&der) {
            Ok(PublicKey::Rsa(_)) => Ok(Recipient { key: Key::Rsa, der }),
            Err(PublicKeyError::Rsa) => Err(RecipientError::Rsa),
            _ => Err(RecipientError::Kind),
        }
    }

    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub fn fingerprint(&self) -> Hash {
        sha256(&[&self.der])
    }

    /// How content keys are wrapped for it.
    pub fn algorithm(&self) -> &'static str {
        match self.key {
            Key::Rsa => "RSA-OAEP-SHA256",
            Key::X25519(_) => "HPKE-X25519-HKDF-SHA256-AES-256-GCM",
        }
    }

    /// Wraps a content key: as many bytes as the modulus has, or the encapsulated key (32) and the sealed one (48). `None` if the key does
    /// not allow it.
    pub fn wrap(&self, key: &ContentKey, context: &[u8]) -> Option<Vec<u8>> {
        match &self.key {
            Key::Rsa => {
                let public = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&self.der).ok()?).ok()?;
                let mut out = vec![0; public.ciphertext_size()];
                let len = public.encrypt(&OAEP_SHA256_MGF1SHA256, &key.0[..], &mut out, None).ok()?.len();
                out.truncate(len);
                Some(out)
            }
            Key::X25519(raw) => {
                let public = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(raw).ok()?;
                let (encapsulated, sealed) = hpke::single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
                    &OpModeS::Base,
                    &public,
                    context,
                    &key.0[..],
                    &[],
                )
                .ok()?;
                Some([&encapsulated.to_bytes()[..], &sealed].concat())
            }
        }
    }
}

/// SubjectPublicKeyInfo and PKCS#8 of X25519 keys (RFC 8410 4 and 7) before the 32 raw bytes.
const SPKI_X25519: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x03, 0x21, 0x00];
const PKCS8_X25519: &[u8] =
    &[0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x04, 0x22, 0x04, 0x20];

/// Makes an X25519 key pair: the private key, PKCS#8 in PEM, and the recipient.
pub fn generate() -> Option<(zeroize::Zeroizing<String>, Recipient)> {
    let (private, public) = X25519HkdfSha256::gen_keypair();
    let raw: [u8; X25519_BYTES] = public.to_bytes()[..].try_into().ok()?;
    let pkcs8 = zeroize::Zeroizing::new([PKCS8_X25519, &private.to_bytes()].concat());
    let document = SecretDocument::try_from(&pkcs8[..]).ok()?;
    let pem = document.to_pem("PRIVATE KEY", LineEnding::LF).ok()?;
    Some((pem, Recipient { key: Key::X25519(raw), der: [SPKI_X25519, &raw].concat() }))
}

/// Opens a wrapped content key with the private key of its recipient, PKCS#8 in PEM.
pub fn unwrap(pem: &str, wrapped: &[u8], context: &[u8]) -> Result<ContentKey, UnwrapError> {
    let Ok(("PRIVATE KEY", der)) = SecretDocument::from_pem(pem.trim()) else { return Err(UnwrapError::Key) };
    let info = PrivateKeyInfoRef::from_der(der.as_bytes()).map_err(|_| UnwrapError::Key)?;
    let content = if info.algorithm.oid == OID_RSA {
        let private = PrivateDecryptingKey::from_pkcs8(der.as_bytes()).map_err(|_| UnwrapError::Key)?;
        let private = OaepPrivateDecryptingKey::new(private).map_err(|_| UnwrapError::Key)?;
        let mut out = zeroize::Zeroizing::new(vec![0; private.min_output_size()]);
        let opened = private.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut out, None);
        opened.map_err(|_| UnwrapError::Wrapped)?.to_vec()
    } else if info.algorithm.oid == OID_X25519 {
        // RFC 8410 7: an octet string in the octet string.
        let raw = info.private_key.as_bytes().strip_prefix(&[4, X25519_BYTES as u8]).ok_or(UnwrapError::Key)?;
        let private = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(raw).map_err(|_| UnwrapError::Key)?;
        let (encapsulated, sealed) = wrapped.split_at_checked(X25519_BYTES).ok_or(UnwrapError::Wrapped)?;
        let encapsulated =
            <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).map_err(|_| UnwrapError::Wrapped)?;
        hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &private,
            &encapsulated,
            context,
            sealed,
            &[],
        )
        .map_err(|_| UnwrapError::Wrapped)?
    } else {
        return Err(UnwrapError::Key);
    };
    let content = zeroize::Zeroizing::new(content);
    content[..].try_into().map(ContentKey::new).map_err(|_| UnwrapError::Wrapped)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn openssl(args: &[&str]) -> String {
        let out = Command::new("openssl").args(args).output().unwrap();
        assert!(out.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// A private key that OpenSSL made, and its public key.
    fn pair(algorithm: &[&str]) -> (String, String) {
        let private = openssl(&[&["genpkey", "-outform", "PEM"], algorithm].concat());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &private).unwrap();
        let public = openssl(&["pkey", "-pubout", "-in", file.path().to_str().unwrap()]);
        (private, public)
    }

    #[test]
    fn keys_of_openssl_open_what_was_wrapped_for_them() {
        let rsa = |bits: &'static str| pair(&["-algorithm", "RSA", "-pkeyopt", bits]);
        let x25519 = || pair(&["-algorithm", "X25519"]);
        for (made, len, other) in [(rsa("rsa_keygen_bits:2048"), 256, x25519()), (x25519(), 80, x25519())] {
            let (private, public) = made;
            let recipient = Recipient::from_pem(&public).unwrap();
            let key = ContentKey::new([9; 32]);
            let wrapped = recipient.wrap(&key, b"context").unwrap();
            assert_eq!(wrapped.len(), len);
            assert_ne!(recipient.wrap(&key, b"context").unwrap(), wrapped, "it is fresh each time");
            assert_eq!(unwrap(&private, &wrapped, b"context").unwrap().0, key.0);
            assert_eq!(unwrap(&other.0, &wrapped, b"context").err(), Some(UnwrapError::Wrapped));
            assert_eq!(unwrap(&public, &wrapped, b"context").err(), Some(UnwrapError::Key));
            for at in [0, len / 2, len - 1] {
                let mut altered = wrapped.clone();
                altered[at] ^= 1;
                assert_eq!(unwrap(&private, &altered, b"context").err(), Some(UnwrapError::Wrapped));
            }
        }
        let (private, recipient) = generate().unwrap();
        let wrapped = recipient.wrap(&ContentKey::new([9; 32]), b"one").unwrap();
        assert_eq!(unwrap(&private, &wrapped, b"one").unwrap().0, ContentKey::new([9; 32]).0);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), private.as_bytes()).unwrap();
        let public = openssl(&["pkey", "-pubout", "-in", file.path().to_str().unwrap()]);
        assert!(Recipient::from_pem(&public).unwrap() == recipient, "OpenSSL reads the pair that was made");
        let (private, public) = x25519();
        let wrapped = Recipient::from_pem(&public).unwrap().wrap(&ContentKey::new([9; 32]), b"one").unwrap();
        assert_eq!(unwrap(&private, &wrapped, b"another").err(), Some(UnwrapError::Wrapped), "of another delivery");
    }

    #[test]
    fn what_is_no_key_for_a_delivery_is_told_apart() {
        let refused = |pem: &str| Recipient::from_pem(pem).err();
        let (private, _) = pair(&["-algorithm", "X25519"]);
        assert_eq!(refused(&private), Some(RecipientError::Private));
        let (_, small) = pair(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
        assert_eq!(refused(&small), Some(RecipientError::Rsa));
        for algorithm in [
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"][..],
            &["-algorithm", "ED25519"],
            &["-algorithm", "X448"],
        ] {
            assert_eq!(refused(&pair(algorithm).1), Some(RecipientError::Kind), "{algorithm:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let key = key.to_str().unwrap();
        let certificate = openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ed25519",
            "-nodes",
            "-keyout",
            key,
            "-subj",
            "/CN=example.org",
            "-days",
            "1",
        ]);
        assert_eq!(refused(&certificate), Some(RecipientError::Certificate));
        for garbage in ["", "garbage", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert_eq!(refused(garbage), Some(RecipientError::Pem), "{garbage}");
        }
        // A point of order 1, in the form of a key.
        let zeros = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VuAyEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n-----END PUBLIC KEY-----\n";
        assert_eq!(refused(zeros), Some(RecipientError::LowOrder));
    }
}
