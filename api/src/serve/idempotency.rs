//! The header `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header), and which keys have a request under way.
//!
//! What makes retries safe is in the engine: the key decides which entry is made, and an entry answers its repetitions. Here a
//! key is only read, and a repetition that waited in vain is told from a first call that did.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use actix_web::HttpRequest;

use super::error::ApiError;

const HEADER: &str = "Idempotency-Key";
/// Longest key, bytes: what commands take.
const KEY_BYTES_MAX: usize = 255;

/// The key of a request, if it has one: a structured string in quotes, or bare.
pub(crate) fn key_of(req: &HttpRequest) -> Result<Option<String>, ApiError> {
    let mut values = req.headers().get_all(HEADER);
    let Some(value) = values.next() else { return Ok(None) };
    let form =
        || ApiError::invalid(format!("{HEADER} must be given once: 1 to {KEY_BYTES_MAX} visible ASCII characters"));
    let text = value.to_str().map_err(|_| form())?.trim();
    let key = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    let plain = key.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    let good = plain && (1..=KEY_BYTES_MAX).contains(&key.len()) && values.next().is_none();
    if good { Ok(Some(key.to_owned())) } else { Err(form()) }
}

/// The key of a request that must have one.
pub(crate) fn required_key(req: &HttpRequest) -> Result<String, ApiError> {
    let missing = || {
        ApiError::invalid(format!("{HEADER} is required: a value of your own that you repeat when you send this again"))
    };
    key_of(req)?.ok_or_else(missing)
}

/// Requests under way that carry a key.
#[derive(Default)]
pub(crate) struct InFlight {
    counts: Mutex<HashMap<[u8; 32], usize>>,
}

/// One request under way; ends with it.
pub(crate) struct Entered<'a> {
    all: &'a InFlight,
    key: [u8; 32],
    /// Whether another request with the key was under way before.
    pub(crate) is_repetition: bool,
}

impl InFlight {
    /// Notes a request of a caller.
    pub(crate) fn enter(&self, subject: &str, route: &str, key: &str) -> Entered<'_> {
        let mut hasher = blake3::Hasher::new();
        for part in [subject, route, key] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let key = *hasher.finalize().as_bytes();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        *count += 1;
        Entered { all: self, key, is_repetition: *count > 1 }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut counts = self.all.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn keys_are_read_in_both_forms() {
        let of = |value: &str| key_of(&TestRequest::default().insert_header((HEADER, value)).to_http_request());
        assert_eq!(of("k-1").unwrap().as_deref(), Some("k-1"));
        assert_eq!(of("\"k-1\"").unwrap().as_deref(), Some("k-1"));
        for bad in ["", "\"\"", "a b", "\"a", "a\\b", &"x".repeat(256)] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
        assert_eq!(key_of(&TestRequest::default().to_http_request()).unwrap(), None);
    }

    #[test]
    fn a_key_is_under_way_until_its_last_request_ends() {
        let all = InFlight::default();
        let first = all.enter("a", "r", "k");
        let second = all.enter("a", "r", "k");
        assert!(!first.is_repetition && second.is_repetition && !all.enter("b", "r", "k").is_repetition);
        drop(first);
        assert!(all.enter("a", "r", "k").is_repetition);
        drop(second);
        assert!(!all.enter("a", "r", "k").is_repetition);
        assert!(all.counts.lock().unwrap().is_empty());
    }
}
