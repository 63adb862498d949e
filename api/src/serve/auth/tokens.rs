//! JSON web tokens (RFC 7519): signature, issuer, audience, time, and what they say of a caller.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header, encode};
use lru::LruCache;
use serde::{Deserialize, Deserializer, Serialize};

use super::super::error::ApiError;
use super::super::settings::Settings;
use super::keys::{DevKey, KeySet, Keys};
use super::{Caller, Role};
use crate::CliError;

/// Longest token that is looked at, bytes.
const TOKEN_BYTES_MAX: usize = 8192;
/// Verified tokens that are remembered, so that a client's next request costs no signature.
const REMEMBERED: usize = 16_384;

/// Claims that are read beside those that the decoder checks alone (`nbf`). `roles` is a list, or `role` one word.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Claims {
    sub: String,
    iss: String,
    aud: serde_json::Value,
    #[serde(deserialize_with = "seconds")]
    exp: u64,
    #[serde(default, skip_deserializing)]
    iat: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
}

/// A NumericDate (RFC 7519 2), which may have a fraction.
fn seconds<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(d)?;
    let whole = number.as_u64().or_else(|| number.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64));
    whole.ok_or_else(|| serde::de::Error::custom("a time before 1970"))
}

struct Remembered {
    caller: Caller,
    /// Seconds since the Unix epoch, leeway included.
    until: u64,
    generation: u64,
}

/// Recognises callers by their tokens.
pub(crate) struct Authenticator {
    keys: Arc<Keys>,
    issuer: String,
    audience: String,
    leeway: u64,
    remembered: Mutex<LruCache<[u8; 32], Remembered>>,
}

/// Seconds since the Unix epoch.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Authenticator {
    pub(crate) fn new(keys: Arc<Keys>, settings: &Settings) -> Authenticator {
        Authenticator {
            keys,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            leeway: settings.leeway.as_secs(),
            remembered: Mutex::new(LruCache::new(NonZeroUsize::new(REMEMBERED).unwrap_or(NonZeroUsize::MIN))),
        }
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The caller that a token is for. The answer does not tell an attacker which check failed.
    pub(crate) async fn recognise(&self, token: &str) -> Result<Caller, ApiError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(ApiError::unauthenticated("the token is too long"));
        }
        let mut keys = self.keys.current();
        let digest = *blake3::hash(token.as_bytes()).as_bytes();
        {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            // Of the keys that hold now, never of one that was withdrawn.
            if let Some(known) = remembered.get(&digest)
                && known.generation == keys.generation
                && now() <= known.until
            {
                return Ok(known.caller.clone());
            }
        }
        let header = decode_header(token).map_err(|_| bad("it is no JWT of a known algorithm"))?;
        if header.crit.is_some() {
            // Nothing that may be critical is understood here, so it must be refused (RFC 7515 4.1.11).
            return Err(bad("its header has crit"));
        }
        if header.kid.is_some() && keys.find(header.kid.as_deref()).is_none() {
            keys = self.keys.look_again().await;
        }
        let (caller, exp) = self.verify(token, header.kid.as_deref(), &keys)?;
        let known =
            Remembered { caller: caller.clone(), until: exp.saturating_add(self.leeway), generation: keys.generation };
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).put(digest, known);
        Ok(caller)
    }

    fn verify(&self, token: &str, kid: Option<&str>, keys: &KeySet) -> Result<(Caller, u64), ApiError> {
        let key = keys.find(kid).ok_or_else(|| bad("its key is unknown"))?;
        // The key decides the algorithm; a token that says another is refused.
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = self.leeway;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        let claims = decode::<Claims>(token, &key.key, &validation).map_err(|e| match e.kind() {
            // A client that waits too long should know to get another.
            ErrorKind::ExpiredSignature => ApiError::unauthenticated("the token has expired; get a new one"),
            kind => bad(reason(kind)),
        })?;
        let claims = claims.claims;
        let named = claims.role.as_ref().into_iter().chain(&claims.roles);
        let roles: Vec<Role> = Role::ALL.into_iter().filter(|r| named.clone().any(|n| n == r.as_str())).collect();
        let caller = Caller::new(&claims.sub, roles).ok_or_else(|| bad("its sub and roles do not go together"))?;
        Ok((caller, claims.exp))
    }
}

/// A token that is refused; only the log says why.
fn bad(why: &'static str) -> ApiError {
    ApiError::unauthenticated("the token is not valid here").internal_note(why)
}

/// Words of our own: errors of the decoder quote the token, which has people in it and may have anything.
fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::InvalidAlgorithm => "its algorithm is not that of its key",
        ErrorKind::InvalidIssuer => "its iss is another",
        ErrorKind::InvalidAudience => "its aud is another",
        ErrorKind::ImmatureSignature => "its nbf is to come",
        ErrorKind::MissingRequiredClaim(_) => "one of exp, iss, aud, sub is missing",
        _ => "it is malformed",
    }
}

/// Makes a development token.
pub(crate) fn mint(key: &DevKey, settings: (&str, &str), caller: &Caller, seconds: u64) -> Result<String, CliError> {
    let (issuer, audience) = settings;
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(DevKey::KID.to_owned());
    let now = now();
    let claims = Claims {
        sub: caller.subject.clone(),
        iss: issuer.to_owned(),
        aud: audience.into(),
        exp: now + seconds,
        iat: now,
        roles: caller.roles.iter().map(|r| r.as_str().to_owned()).collect(),
        ..Claims::default()
    };
    encode(&header, &claims, &key.encoding()).map_err(|e| CliError::Usage(format!("no token could be made: {e}")))
}
