//! Keys that tokens are checked with: a JWK set (RFC 7517) from a file or a URL, read again as it changes; for
//! development a shared secret.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};

use super::super::settings::Jwks;
use crate::CliError;

/// A key set is read again at most this often, however many tokens name unknown keys; and this soon after it could not be read.
const RELOAD_AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// Largest key set, bytes.
const JWKS_BYTES_MAX: usize = 1 << 20;
/// For the issuer to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// A key and the one algorithm it is for.
pub(crate) struct TokenKey {
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
}

/// Keys by kid, as of one reading.
#[derive(Default)]
pub(crate) struct KeySet {
    keys: HashMap<String, Arc<TokenKey>>,
    /// Grows with every reading that changed something.
    pub(crate) generation: u64,
    /// BLAKE3 of the set's text.
    digest: [u8; 32],
}

impl KeySet {
    /// The key that a token names; without a kid the only one.
    pub(crate) fn find(&self, kid: Option<&str>) -> Option<Arc<TokenKey>> {
        match kid {
            Some(kid) => self.keys.get(kid).cloned(),
            None if self.keys.len() == 1 => self.keys.values().next().cloned(),
            None => None,
        }
    }
}

/// Reads a JWK set. Keys that are for something else are passed over; one that can be forged is refused.
pub(crate) fn parse_jwks(text: &[u8]) -> Result<HashMap<String, Arc<TokenKey>>, String> {
    // Where, not what: the text may be a secret that was put in the wrong file.
    let malformed = |e: serde_json::Error| format!("no JWK set: line {} column {}", e.line(), e.column());
    let set: Set = serde_json::from_slice(text).map_err(malformed)?;
    let mut keys = HashMap::new();
    for members in set.keys {
        if members.get("kty").is_some_and(|kty| kty == "oct") {
            return Err("it has a shared secret (kty oct), with which whoever reads the set could make tokens".into());
        }
        if members.contains_key("d") {
            return Err("it has a private key (d), which belongs to the issuer alone".into());
        }
        // One of a kind that is not known here is for somebody else (RFC 7517 5).
        let Ok(jwk) = serde_json::from_value::<Jwk>(members.into()) else { continue };
        let other_use = jwk.common.public_key_use.as_ref().is_some_and(|u| *u != PublicKeyUse::Signature);
        let other_operations =
            jwk.common.key_operations.as_ref().is_some_and(|all| !all.contains(&KeyOperations::Verify));
        if other_use || other_operations {
            continue;
        }
        let jwk = &jwk;
        let Some(algorithm) = algorithm_of(jwk) else { continue };
        let kid = jwk.common.key_id.clone().unwrap_or_default();
        let key = DecodingKey::from_jwk(jwk).map_err(|e| format!("key {kid:?}: {e}"))?;
        if keys.insert(kid.clone(), Arc::new(TokenKey { algorithm, key })).is_some() {
            return Err(format!("two keys are named {kid:?}"));
        }
    }
    if keys.is_empty() { Err("it has no EdDSA, ES256 or RS256 key for signatures".into()) } else { Ok(keys) }
}

#[derive(serde::Deserialize)]
struct Set {
    keys: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// The algorithm of a key follows from the key: what a token says of itself chooses nothing.
fn algorithm_of(jwk: &Jwk) -> Option<Algorithm> {
    let (algorithm, name) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        _ => return None,
    };
    let declared = jwk.common.key_algorithm;
    (declared.is_none() || declared == Some(name)).then_some(algorithm)
}

/// The shared secret of development tokens.
pub(crate) struct DevKey {
    secret: Vec<u8>,
}

impl DevKey {
    /// `kid` of development tokens.
    pub(crate) const KID: &'static str = "dev";

    /// Where a development ledger's directory has it.
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join("keys/dev-token.key")
    }

    /// Reads the 64 hex characters that [`DevKey::create`] wrote.
    pub(crate) fn read(dir: &Path) -> Result<DevKey, CliError> {
        let path = DevKey::path(dir);
        let text = ledger_engine::keys::read_secret(&path)?;
        let secret = ledger_engine::hash::from_hex(text.trim()).filter(|s| s.len() == 32);
        let malformed = || CliError::Usage(format!("{}: expected 64 hex characters", path.display()));
        Ok(DevKey { secret: secret.ok_or_else(malformed)? })
    }

    /// Makes one with 32 random bytes.
    pub(crate) fn create(dir: &Path, secret: &[u8; 32]) -> Result<(), CliError> {
        let text = format!("{}\n", ledger_engine::hash::to_hex(secret));
        Ok(ledger_engine::keys::write_secret(&DevKey::path(dir), text.as_bytes())?)
    }

    pub(crate) fn encoding(&self) -> EncodingKey {
        EncodingKey::from_secret(&self.secret)
    }
}

enum Source {
    Fixed,
    File(PathBuf),
    Url(String, reqwest::Client),
}

/// The keys of the token issuer.
pub(crate) struct Keys {
    source: Source,
    /// A set is not trusted for longer without being read again, so that a key that was withdrawn ends.
    refresh: Duration,
    current: RwLock<Arc<KeySet>>,
    read: Mutex<Reading>,
    /// Held while it is read: who waits for a key waits for the reading that may bring it.
    reading: tokio::sync::Mutex<()>,
}

/// How a set was read last.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    well: bool,
    /// Of a file, its time of change then.
    changed: Option<SystemTime>,
}

impl Keys {
    /// The development key alone.
    pub(crate) fn dev(key: &DevKey) -> Keys {
        let key = TokenKey { algorithm: Algorithm::HS256, key: DecodingKey::from_secret(&key.secret) };
        let keys = HashMap::from([(DevKey::KID.to_owned(), Arc::new(key))]);
        Keys::holding(Source::Fixed, Duration::MAX, keys)
    }

    /// No key: certificates are all there is.
    pub(crate) fn none() -> Keys {
        Keys::holding(Source::Fixed, Duration::MAX, HashMap::new())
    }

    /// Reads the set for the first time.
    pub(crate) async fn load(from: &Jwks, refresh: Duration) -> Result<Keys, CliError> {
        let (source, shown) = match from {
            Jwks::File(path) => (Source::File(path.clone()), path.display().to_string()),
            Jwks::Url(url) => {
                // Keys come from where the settings say, not from where that place points to.
                let direct = reqwest::redirect::Policy::none();
                let client = reqwest::Client::builder().timeout(FETCH_TIMEOUT).redirect(direct).build();
                (Source::Url(url.clone(), client.map_err(|e| CliError::Usage(e.to_string()))?), url.clone())
            }
        };
        let keys = Keys::holding(source, refresh, HashMap::new());
        keys.reload().await.map_err(|e| CliError::Usage(format!("jwks {shown}: {e}")))?;
        Ok(keys)
    }

    fn holding(source: Source, refresh: Duration, keys: HashMap<String, Arc<TokenKey>>) -> Keys {
        let current = RwLock::new(Arc::new(KeySet { keys, generation: 0, digest: [0; 32] }));
        let read = Mutex::new(Reading { at: Instant::now(), well: true, changed: None });
        Keys { source, refresh, current, read, reading: tokio::sync::Mutex::new(()) }
    }

    pub(crate) fn current(&self) -> Arc<KeySet> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn last_reading(&self) -> Reading {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Least time between two readings.
    fn pause(&self) -> Duration {
        RELOAD_AT_MOST_EVERY.min(self.refresh)
    }

    /// Reads the set again where that is due. A set that cannot be read leaves the one before.
    pub(crate) async fn refresh(&self) {
        let _one = self.reading.lock().await;
        let last = self.last_reading();
        let due = match &self.source {
            Source::Fixed => false,
            _ if !last.well && last.at.elapsed() >= self.pause() => true,
            Source::File(path) => last.changed != changed_at(path),
            Source::Url(..) => last.at.elapsed() >= self.refresh,
        };
        if due {
            self.reload_or_keep().await;
        }
    }

    /// The set, read again if it was not just now: a token names a key that is not there, and may be of one that came since.
    pub(crate) async fn look_again(&self) -> Arc<KeySet> {
        if !matches!(self.source, Source::Fixed) {
            let _one = self.reading.lock().await;
            if self.last_reading().at.elapsed() >= self.pause() {
                tracing::info!("a token names a key that is not known; reading the key set again");
                self.reload_or_keep().await;
            }
        }
        self.current()
    }

    async fn reload_or_keep(&self) {
        if let Err(e) = self.reload().await {
            tracing::error!("the key set of the token issuer cannot be read; the one before stays: {e}");
        }
    }

    async fn reload(&self) -> Result<(), String> {
        let changed = match &self.source {
            Source::File(path) => changed_at(path),
            _ => None,
        };
        let note = |well| Reading { at: Instant::now(), well, changed };
        let result = self.read_set().await;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = note(result.is_ok());
        result
    }

    async fn read_set(&self) -> Result<(), String> {
        let text = match &self.source {
            Source::Fixed => return Ok(()),
            Source::File(path) => std::fs::read(path).map_err(|e| e.to_string())?,
            Source::Url(url, client) => fetch(client, url).await?,
        };
        if text.len() > JWKS_BYTES_MAX {
            return Err(format!("{} bytes; at most {JWKS_BYTES_MAX} are read", text.len()));
        }
        let keys = parse_jwks(&text)?;
        let digest = *blake3::hash(&text).as_bytes();
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.digest != digest {
            let generation = current.generation + 1;
            *current = Arc::new(KeySet { keys, generation, digest });
        }
        Ok(())
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

async fn fetch(client: &reqwest::Client, url: &str) -> Result<Vec<u8>, String> {
    let mut response = client.get(url).send().await.map_err(|e| e.to_string())?;
    if !response.status().is_success() {
        return Err(format!("answered {}", response.status()));
    }
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| e.to_string())? {
        text.extend_from_slice(&chunk);
        if text.len() > JWKS_BYTES_MAX {
            break;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    fn set(keys: &str) -> Result<HashMap<String, Arc<TokenKey>>, String> {
        parse_jwks(format!("{{\"keys\":[{keys}]}}").as_bytes())
    }

    #[test]
    fn keys_are_pinned_to_one_algorithm() {
        assert_eq!(set(ED).unwrap()["a"].algorithm, Algorithm::EdDSA);
        // Of another use or algorithm: passed over.
        let other = ED.replace("\"kid\":\"a\"", "\"kid\":\"b\",\"use\":\"enc\"");
        assert_eq!(set(&format!("{ED},{other}")).unwrap().len(), 1);
        let other = ED.replace("\"kid\":\"a\"", "\"kid\":\"b\",\"alg\":\"HS256\"");
        assert_eq!(set(&format!("{ED},{other}")).unwrap().len(), 1);
        for other in [
            r#"{"kty":"AKP","kid":"b","alg":"ML-DSA-65","pub":"AAAA"}"#,
            r#"{"kty":"EC","crv":"P-384","kid":"b","x":"AA","y":"AA"}"#,
            r#"{"kty":"EC","crv":"secp256k1","kid":"b","x":"AA","y":"AA"}"#,
            r#"{"kty":"OKP","crv":"X25519","kid":"b","x":"AA"}"#,
            &ED.replace("\"kid\":\"a\"", "\"kid\":\"b\",\"key_ops\":[\"deriveKey\"]"),
            &ED.replace("\"kid\":\"a\"", "\"kid\":\"b\",\"use\":\"other\""),
        ] {
            assert_eq!(set(&format!("{ED},{other}")).unwrap().len(), 1, "{other}");
        }
    }

    #[test]
    fn sets_that_cannot_be_trusted_are_refused() {
        assert!(set("").is_err());
        assert!(set(r#"{"kty":"oct","kid":"s","k":"c2VjcmV0"}"#).err().unwrap().contains("shared secret"));
        assert!(set(&format!("{ED},{ED}")).err().unwrap().contains("two keys"));
        assert!(set(&ED.replace("\"x\"", "\"d\":\"AAAA\",\"x\"")).err().unwrap().contains("private key"));
        let error = parse_jwks(b"hunter2 is my secret").err().unwrap();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
