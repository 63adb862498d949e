//! JSON web tokens (RFC 7519): signature, issuer, audience, time, and what they say of a caller.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header, encode};
use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::super::error::ApiError;
use super::super::settings::Settings;
use super::keys::{DevKey, KeySet, Keys};
use super::{Caller, Role};
use crate::CliError;

/// Longest token that is looked at, bytes.
const TOKEN_BYTES_MAX: usize = 8192;
/// Verified tokens that are remembered, so that a client's next request costs no signature.
const REMEMBERED: usize = 16_384;

/// Claims that are read. `roles` is a list, or `role` one word.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Claims {
    sub: String,
    iss: String,
    aud: serde_json::Value,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
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

fn now() -> u64 {
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

    /// Whether a token names a key that is not there, and the set may have changed since it was read.
    pub(crate) fn wants_keys(&self, token: &str) -> bool {
        // The cheap question first: a token is not decoded where no answer would matter.
        if !self.keys.may_be_stale() {
            return false;
        }
        let kid = decode_header(token).ok().and_then(|h| h.kid);
        kid.is_some() && self.keys.current().find(kid.as_deref()).is_none()
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The caller that a token is for. The answer does not tell an attacker which check failed.
    pub(crate) fn recognise(&self, token: &str) -> Result<Caller, ApiError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(ApiError::unauthenticated("the token is too long"));
        }
        let keys = self.keys.current();
        let digest = *blake3::hash(token.as_bytes()).as_bytes();
        {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = remembered.get(&digest)
                && known.generation == keys.generation
                && now() <= known.until
            {
                return Ok(known.caller.clone());
            }
        }
        let (caller, exp) = self.verify(token, &keys)?;
        let known =
            Remembered { caller: caller.clone(), until: exp.saturating_add(self.leeway), generation: keys.generation };
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).put(digest, known);
        Ok(caller)
    }

    fn verify(&self, token: &str, keys: &KeySet) -> Result<(Caller, u64), ApiError> {
        let bad = |why: &str| ApiError::unauthenticated("the token is not valid here").internal_note(why);
        let header = decode_header(token).map_err(|e| bad(&e.to_string()))?;
        let key = keys.find(header.kid.as_deref()).ok_or_else(|| bad("its key is unknown"))?;
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
            _ => bad(&e.to_string()),
        })?;
        let claims = claims.claims;
        let named = claims.role.as_ref().into_iter().chain(&claims.roles);
        let roles: Vec<Role> = Role::ALL.into_iter().filter(|r| named.clone().any(|n| n == r.as_str())).collect();
        let caller = Caller::new(&claims.sub, roles).ok_or_else(|| bad("its sub and roles do not go together"))?;
        Ok((caller, claims.exp))
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
        iat: Some(now),
        roles: caller.roles.iter().map(|r| r.as_str().to_owned()).collect(),
        ..Claims::default()
    };
    encode(&header, &claims, &key.encoding()).map_err(|e| CliError::Usage(format!("no token could be made: {e}")))
}
