//! The registry of legacy signers, in every shape it was shipped in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use curve25519_dalek::edwards::CompressedEdwardsY;
use ledger_engine::hash::{Hash, sha256};
use serde_json::Value;

use super::judge::shown;
use super::time::parse_time;
use crate::bounded;

/// SPKI of an Ed25519 key (RFC 8410) up to the 32 bytes of the key.
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The algorithm identifier of RSA keys (RFC 3279): rsaEncryption, NULL.
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// Bits of an RSA modulus.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The largest registry file, bytes.
const REGISTRY_BYTES_MAX: u64 = 16 << 20;

/// A registry that cannot be used at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignersError {
    /// The file cannot be read.
    #[error("signers {0}: {1}; check the path given with --signers")]
    Unreadable(String, std::io::Error),
    /// Not one of the four shapes.
    #[error("the signers are not a registry: {0}")]
    Shape(String),
    /// One id stands for two keys, or a member is there twice.
    #[error("the signers have {0} twice, and readers differ in which they take; remove the wrong one")]
    Ambiguous(String),
    /// It holds a private key.
    #[error(
        "the signers hold the PRIVATE key of {0}: whoever has this file can forge what that key signs. Nothing was verified; revoke the \
         key, and publish its public half only"
    )]
    Private(String),
}

/// A public key that may verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// 32 bytes: canonical, not of small order.
    Ed25519([u8; 32]),
    /// An RSAPublicKey (PKCS#1 DER) and the length of its modulus in bytes.
    Rsa(Vec<u8>, usize),
}

impl Key {
    /// The name used in reports.
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Key::Ed25519(_) => "ed25519",
            Key::Rsa(..) => "rsa-sha256",
        }
    }

    /// SHA-256 of the key: of the 32 bytes, or of the PKCS#1 DER.
    pub(crate) fn fingerprint(&self) -> Hash {
        match self {
            Key::Ed25519(key) => sha256(&[key]),
            Key::Rsa(der, _) => sha256(&[der]),
        }
    }
}

/// Why a key may not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The entry names another algorithm than its key has.
    Algorithm(String),
    /// The key itself is bad.
    Key(&'static str),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Algorithm(text) => f.write_str(text),
            Refused::Key(text) => f.write_str(text),
        }
    }
}

/// One entry of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signer {
    pub(crate) kid: String,
    pub(crate) key: Result<Key, Refused>,
    /// Milliseconds since 1970, both inclusive.
    pub(crate) valid_from: Option<i64>,
    pub(crate) revoked_at: Option<i64>,
    /// What a ledger's own registry says besides: the purpose, and the registry size from which the key is retired.
    pub(crate) purpose: Option<String>,
    pub(crate) retired_at: Option<u64>,
}

/// The public keys of legacy signers, by kid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signers {
    pub(crate) list: Vec<Signer>,
    /// SHA-256 of the file.
    pub(crate) sha256: Hash,
    /// Of which ledger, and as of which size of its registry, where the file says so.
    pub(crate) ledger_id: Option<String>,
    pub(crate) registry_size: Option<u64>,
    by_kid: BTreeMap<String, usize>,
}

impl Signers {
    /// Reads a registry file.
    pub fn read(path: &std::path::Path) -> Result<Signers, SignersError> {
        let unreadable = |e| SignersError::Unreadable(path.display().to_string(), e);
        Signers::parse(&bounded::read(path, REGISTRY_BYTES_MAX, "a registry of signers").map_err(unreadable)?)
    }

    /// Whether the file says which ledger's registry it is.
    pub fn is_of_a_ledger(&self) -> bool {
        self.ledger_id.is_some()
    }

    /// SHA-256 of the registry's bytes.
    pub fn sha256(&self) -> Hash {
        self.sha256
    }

    /// Reads `{"signers": […]}`, `[…]`, `{kid: "key"}` or `{kid: {…}}`. A key that may not be used is kept with the
    /// reason, so that rows which name it are judged by it.
    pub fn parse(json: &[u8]) -> Result<Signers, SignersError> {
        let value: Value = serde_json::from_slice(json).map_err(|e| SignersError::Shape(format!("not JSON: {e}")))?;
        let mut out = Signers { sha256: sha256(&[json]), ..Signers::default() };
        // One reader takes the first of two members with one name, another the last.
        let Repeated(twice) =
            serde_json::from_slice(json).map_err(|e| SignersError::Shape(format!("not JSON: {e}")))?;
        if let Some(twice) = twice {
            return Err(SignersError::Ambiguous(shown(&twice)));
        }
        out.ledger_id = value.get("ledger_id").and_then(Value::as_str).map(str::to_owned);
        out.registry_size = value.get("registry_size").and_then(Value::as_u64);
        match value {
            Value::Array(entries) => out.entries(&entries)?,
            Value::Object(map) => match map.get("signers") {
                Some(Value::Array(entries)) => out.entries(entries)?,
                _ => {
                    for (kid, entry) in &map {
                        out.add(Some(kid), entry)?;
                    }
                }
            },
            _ => return Err(SignersError::Shape("neither an object nor an array".into())),
        }
        Ok(out)
    }

    fn entries(&mut self, entries: &[Value]) -> Result<(), SignersError> {
        entries.iter().try_for_each(|entry| self.add(None, entry))
    }

    fn add(&mut self, kid: Option<&str>, entry: &Value) -> Result<(), SignersError> {
        let member = |names: &[&str]| names.iter().find_map(|n| entry[*n].as_str());
        let named = member(&["signerId", "signer_id", "signer_kid", "id"]);
        let Some(kid) = kid.or(named).filter(|k| !k.is_empty()) else {
            return Err(SignersError::Shape(format!("entry {} has no id", self.list.len() + 1)));
        };
        if holds_private_key(entry) {
            return Err(SignersError::Private(shown(kid)));
        }
        let time = |name: &'static str| match entry.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => parse_time(text).map(Some).ok_or(name),
            Some(_) => Err(name),
        };
        let window = time("validFrom").and_then(|from| Ok((from, time("revokedAt")?)));
        let (valid_from, revoked_at) =
            window.map_err(|name| SignersError::Shape(format!("{name} of {} is no RFC 3339 time", shown(kid))))?;
        let texts = ["publicKey", "public_key", "public_key_pem", "key"].iter().map(|name| &entry[*name]);
        let mut keys = std::iter::once(entry).chain(texts).filter_map(Value::as_str).map(parse_key);
        let first = keys.next();
        if keys.any(|other| Some(&other) != first.as_ref()) {
            return Err(SignersError::Ambiguous(format!("the key of {}", shown(kid))));
        }
        let key = match first {
            None => Err(Refused::Key("the entry has no public key")),
            Some(key) => key.map_err(Refused::Key).and_then(|key| {
                named_algorithm(member(&["algorithm", "alg"]), &key)?;
                Ok(key)
            }),
        };
        let purpose = member(&["purpose"]).map(str::to_owned);
        let retired_at = entry["retired_at_registry_size"].as_u64();
        let signer = Signer { kid: kid.to_owned(), key, valid_from, revoked_at, purpose, retired_at };
        if let Some(&at) = self.by_kid.get(kid) {
            return if self.list[at] == signer { Ok(()) } else { Err(SignersError::Ambiguous(shown(kid))) };
        }
        self.by_kid.insert(kid.to_owned(), self.list.len());
        self.list.push(signer);
        Ok(())
    }

    /// The place of a kid in the list.
    pub(crate) fn find(&self, kid: &str) -> Option<usize> {
        self.by_kid.get(kid).copied()
    }
}

fn named_algorithm(name: Option<&str>, key: &Key) -> Result<(), Refused> {
    let Some(name) = name else { return Ok(()) };
    let lower = name.to_ascii_lowercase();
    let fits = match key {
        Key::Ed25519(_) => lower.contains("ed25519"),
        Key::Rsa(..) => lower.contains("rsa"),
    };
    let mismatch = || format!("the registry says algorithm {name:?}, the key is {}", key.algorithm());
    if fits { Ok(()) } else { Err(Refused::Algorithm(mismatch())) }
}

/// Reads base64 or base64url, with or without padding and white space.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    static STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
    let plain = |b: u8| match b {
        b'-' => b'+',
        b'_' => b'/',
        b => b,
    };
    let bytes: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).map(plain).collect();
    STANDARD.decode(bytes).ok()
}

/// The first member that an object of a JSON text has twice, at any level.
struct Repeated(Option<String>);

impl<'de> serde::Deserialize<'de> for Repeated {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Repeated, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Repeated;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Repeated, E> {
                Ok(Repeated(None))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Repeated, E> {
                Ok(Repeated(None))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Repeated, E> {
                Ok(Repeated(None))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Repeated, E> {
                Ok(Repeated(None))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Repeated, E> {
                Ok(Repeated(None))
            }

            fn visit_str<E>(self, _: &str) -> Result<Repeated, E> {
                Ok(Repeated(None))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Repeated, A::Error> {
                let mut first = None;
                while let Some(Repeated(twice)) = list.next_element()? {
                    first = first.or(twice);
                }
                Ok(Repeated(first))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Repeated, A::Error> {
                let (mut first, mut seen) = (None, BTreeSet::new());
                while let Some((name, Repeated(twice))) = map.next_entry::<String, Repeated>()? {
                    first = first.or(twice);
                    if seen.contains(&name) {
                        first = first.or(Some(name));
                    } else {
                        seen.insert(name);
                    }
                }
                Ok(Repeated(first))
            }
        }
        input.deserialize_any(Visitor)
    }
}

/// Whether an entry holds a private key: by the name of a member, or by what it is.
fn holds_private_key(entry: &Value) -> bool {
    let named = |name: &str| {
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        name.contains("privatekey")
            || name.contains("secretkey")
            || matches!(name.as_str(), "private" | "secret" | "seed")
    };
    match entry {
        Value::String(text) => text.contains("PRIVATE KEY") || parse_key(text) == Err(PRIVATE),
        Value::Object(members) => members.iter().any(|(name, value)| {
            value.as_str().is_some_and(|text| !text.is_empty() && named(name)) || holds_private_key(value)
        }),
        _ => false,
    }
}

const PRIVATE: &str = "this is a private key: whoever has the registry can forge; retire the key";

/// Reads SPKI PEM (or PKCS#1 PEM of RSA), base64 SPKI DER, or base64 of 32 raw Ed25519 bytes.
pub(crate) fn parse_key(text: &str) -> Result<Key, &'static str> {
    if text.contains("PRIVATE KEY") {
        return Err(PRIVATE);
    }
    let body = match text.find("-----BEGIN ") {
        None => text.to_owned(),
        Some(at) => {
            let mut parts = text[at..].split("-----").skip(1);
            let label = parts.next().unwrap_or_default();
            if !matches!(label, "BEGIN PUBLIC KEY" | "BEGIN RSA PUBLIC KEY") {
                return Err("the PEM block is no public key");
            }
            parts.next().unwrap_or_default().to_owned()
        }
    };
    let der = decode_base64(&body).ok_or("the key is neither PEM nor base64")?;
    if let Ok(raw) = <[u8; 32]>::try_from(der.as_slice()) {
        return ed25519(raw);
    }
    if let Some(raw) = der.strip_prefix(&ED25519_SPKI).and_then(|k| <[u8; 32]>::try_from(k).ok()) {
        return ed25519(raw);
    }
    let (inside, rest) = element(&der, 0x30).ok_or("the key is neither 32 bytes nor DER")?;
    if !rest.is_empty() {
        return Err("bytes follow the key");
    }
    if let Some((version, _)) = element(inside, 0x02) {
        // PKCS#8 and PKCS#1 private keys begin with a version, a PKCS#1 public key with its modulus.
        return if version.len() <= 1 { Err(PRIVATE) } else { rsa(&der) };
    }
    let bits = inside.strip_prefix(&RSA_ALGORITHM).ok_or("the key's algorithm is neither Ed25519 nor RSA")?;
    match element(bits, 0x03) {
        Some(([0, key @ ..], [])) => rsa(key),
        _ => Err("the key is no SPKI"),
    }
}

fn ed25519(raw: [u8; 32]) -> Result<Key, &'static str> {
    let point = CompressedEdwardsY(raw).decompress().ok_or("the key is no point of the curve")?;
    if point.compress().0 != raw {
        return Err("the key is not canonically encoded");
    }
    if point.is_small_order() {
        return Err("the key is of small order: anybody can sign for it");
    }
    Ok(Key::Ed25519(raw))
}

fn rsa(der: &[u8]) -> Result<Key, &'static str> {
    const SHAPE: &str = "the RSA key is not a modulus and an exponent";
    let (inside, rest) = element(der, 0x30).filter(|(_, rest)| rest.is_empty()).ok_or(SHAPE)?;
    debug_assert!(rest.is_empty());
    let (modulus, rest) = element(inside, 0x02).ok_or(SHAPE)?;
    let (_, rest) = element(rest, 0x02).ok_or(SHAPE)?;
    if !rest.is_empty() {
        return Err(SHAPE);
    }
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |b| b.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err("the RSA key has fewer than 2048 or more than 8192 bits");
    }
    Ok(Key::Rsa(der.to_owned(), modulus.len()))
}

/// Splits one DER element of this tag from what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = "6UOzMiE7uk/G2FLhHrQtG4RRhRT9M4MNRvUZ4PRtl2k=";
    const ED_SPKI: &str = "MCowBQYDK2VwAyEA6UOzMiE7uk/G2FLhHrQtG4RRhRT9M4MNRvUZ4PRtl2k=";

    fn one(json: Value) -> Signer {
        let signers = Signers::parse(json.to_string().as_bytes()).unwrap();
        assert_eq!(signers.list.len(), 1);
        signers.list[0].clone()
    }

    #[test]
    fn a_kid_with_two_keys_is_refused_in_every_shape() {
        let other = "A".repeat(43) + "=";
        for json in [
            format!(r#"{{"k":"{ED}","k":"{other}"}}"#),
            format!(r#"{{"k":"{ED}","\u006b":"{other}"}}"#),
            format!(r#"[{{"id":"k","key":"{ED}"}},{{"id":"k","key":"{other}"}}]"#),
            format!(r#"{{"signers":[],"signers":[{{"id":"k","key":"{ED}"}}]}}"#),
            format!(r#"{{"k":{{"key":"{ED}","key":"{other}"}}}}"#),
            format!(r#"{{"k":{{"key":"{ED}","\u006bey":"{ED}"}}}}"#),
            format!(r#"[{{"id":"k","id":"l","key":"{ED}"}}]"#),
            format!(r#"{{"signers":[{{"id":"k","key":"{ED}","revokedAt":null,"revokedAt":"2020-01-01"}}]}}"#),
            format!(r#"{{"signers":[{{"id":"k","key":"{ED}","note":{{"a":1,"a":2}}}}]}}"#),
            format!(r#"{{"k":{{"publicKey":"{ED}","key":"{other}"}}}}"#),
            format!(r#"[{{"id":"k","key":"{ED}","public_key_pem":"{other}"}}]"#),
        ] {
            assert!(matches!(Signers::parse(json.as_bytes()), Err(SignersError::Ambiguous(_))), "{json}");
        }
    }

    #[test]
    fn a_key_in_two_forms_is_one_key() {
        let entry = serde_json::json!({ "id": "k", "key": ED, "publicKey": ED_SPKI });
        assert!(one(serde_json::json!([entry])).key.is_ok());
    }

    #[test]
    fn every_shape_names_the_same_key() {
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{ED_SPKI}\n-----END PUBLIC KEY-----\n");
        let url = ED.replace('/', "_").trim_end_matches('=').to_owned();
        let expected = one(serde_json::json!({ "k": ED }));
        assert!(expected.key.is_ok());
        for id in ["signerId", "signer_id", "signer_kid", "id"] {
            for name in ["publicKey", "public_key", "public_key_pem", "key"] {
                for text in [ED, ED_SPKI, &pem, &url] {
                    let entry = serde_json::json!({ id: "k", name: text, "description": "old" });
                    assert_eq!(one(serde_json::json!({ "signers": [entry] })), expected);
                    assert_eq!(one(serde_json::json!([entry])), expected);
                    assert_eq!(one(serde_json::json!({ "k": { name: text, "alg": "Ed25519" } })), expected);
                }
            }
        }
    }

    #[test]
    fn shipped_registries_agree() {
        let read = |name: &str| {
            Signers::read(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/legacy").join(name))
                .unwrap()
        };
        let (list, map) = (read("legacy-signers.json"), read("legacy-signers-map.json"));
        for (a, b) in list.list.iter().zip(&map.list) {
            assert_eq!((&a.kid, &a.key), (&b.kid, &b.key));
            assert!(a.key.is_ok());
        }
        assert_eq!(list.list.len(), 2);
    }

    #[test]
    fn keys_that_may_not_verify() {
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let pkcs8 = [&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20][..], &[7; 32]].concat();
        let mut minus_zero = [0; 32];
        (minus_zero[0], minus_zero[31]) = (1, 0x80);
        let mut over_p = [0xff; 32];
        (over_p[0], over_p[31]) = (0xf0, 0x7f);
        for (text, reason) in [
            (base64(&[0; 32]), "small order"),
            (base64(&minus_zero), "canonically"),
            (base64(&over_p), "canonically"),
            (base64(&[2; 32]), "no point"),
            (base64(&[9; 64]), "neither"),
            ("§".to_owned(), "neither"),
            ("-----BEGIN CERTIFICATE-----\nMC4=\n-----END CERTIFICATE-----".to_owned(), "no public key"),
        ] {
            let Err(refused) = one(serde_json::json!({ "k": text })).key else { panic!("{text} was accepted") };
            assert!(refused.to_string().contains(reason), "{text}: {refused}");
        }
        for text in [
            "-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----".to_owned(),
            "-----BEGIN RSA PRIVATE KEY-----\nMC4=\n-----END RSA PRIVATE KEY-----".to_owned(),
            base64(&pkcs8),
        ] {
            let refused = Signers::parse(serde_json::json!({ "k": text }).to_string().as_bytes());
            assert!(matches!(refused, Err(SignersError::Private(_))), "{text}");
        }
        assert!(matches!(
            one(serde_json::json!([{ "id": "k", "key": ED, "algorithm": "rsa-sha256" }])).key,
            Err(Refused::Algorithm(_))
        ));
    }

    #[test]
    fn registries_that_cannot_be_used() {
        let other = "MCowBQYDK2VwAyEA6UOzMiE7uk/G2FLhHrQtG4RRhRT9M4MNRvUZ4PRtl2g=";
        for bad in [
            "".to_owned(),
            "[1]".to_owned(),
            "7".to_owned(),
            format!(r#"[{{"id":"k","key":"{ED}"}},{{"id":"k","key":"{other}"}}]"#),
            format!(r#"[{{"id":"k","key":"{ED}","validFrom":"yesterday"}}]"#),
        ] {
            assert!(Signers::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
