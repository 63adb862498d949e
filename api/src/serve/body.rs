//! Request bodies: JSON by the strict rules of FORMAT.md 2.1, bounded in size and time, with no unknown members.

use std::borrow::Cow;
use std::time::Duration;

use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Bytes, BytesMut, Payload};
use actix_web::{FromRequest, HttpRequest, dev};
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use ledger_engine::json::{self, Object, Value};
use serde::de::DeserializeOwned;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, ObjectBuilder, Ref, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::error::{ApiError, Code};
use super::state;

/// A client that sends a body more slowly than this is cut off.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How the description says what [`json::parse`] takes where a member is the client's own.
pub(crate) struct JsonObject;

impl PartialSchema for JsonObject {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .description(Some("Members without fractions, exponents and U+0000, 32 levels deep at most"))
            .additional_properties(Some(Ref::from_schema_name("JsonValue")))
            .into()
    }
}

impl ToSchema for JsonObject {
    fn name() -> Cow<'static, str> {
        "JsonObject".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("JsonValue".into(), JsonValue::schema()));
    }
}

/// A member of a [`JsonObject`].
pub(crate) struct JsonValue;

impl PartialSchema for JsonValue {
    fn schema() -> RefOr<Schema> {
        const EXACT: i64 = (1 << 53) - 1;
        let integer = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(-EXACT)).maximum(Some(EXACT));
        let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some(r"^[^\u0000]*$"));
        AnyOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Null))
            .item(ObjectBuilder::new().schema_type(Type::Boolean))
            .item(integer)
            .item(text)
            .item(ArrayBuilder::new().items(Ref::from_schema_name("JsonValue")))
            .item(Ref::from_schema_name("JsonObject"))
            .into()
    }
}

impl ToSchema for JsonValue {
    fn name() -> Cow<'static, str> {
        "JsonValue".into()
    }
}

/// A body as typed members, and as the object that was sent.
#[derive(Debug)]
pub(crate) struct Json<T> {
    pub(crate) typed: T,
    pub(crate) object: Object,
}

impl<T: DeserializeOwned + 'static> FromRequest for Json<T> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let (req, payload) = (req.clone(), Payload::from_request(req, payload).into_inner());
        Box::pin(async move {
            must_be_json(&req)?;
            let payload = payload.map_err(|e| ApiError::invalid(e.to_string()))?;
            parse(&read_all(&req, payload).await?)
        })
    }
}

/// A body that may be left out, or null: then it is as if it had no members.
#[derive(Debug)]
pub(crate) struct Optional<T>(pub(crate) T);

impl<T: DeserializeOwned + Default + 'static> FromRequest for Optional<T> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let (req, body) = (req.clone(), Raw::from_request(req, payload));
        Box::pin(async move {
            let Raw(bytes) = body.await?;
            if bytes.is_empty() {
                return Ok(Optional(T::default()));
            }
            must_be_json(&req)?;
            if bytes.trim_ascii() == b"null" {
                return Ok(Optional(T::default()));
            }
            Ok(Optional(parse(&bytes)?.typed))
        })
    }
}

/// The bytes of a body, exactly as sent.
#[derive(Debug)]
pub(crate) struct Raw(pub(crate) Bytes);

impl FromRequest for Raw {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let (req, payload) = (req.clone(), Payload::from_request(req, payload).into_inner());
        Box::pin(async move {
            let payload = payload.map_err(|e| ApiError::invalid(e.to_string()))?;
            read_all(&req, payload).await.map(Raw)
        })
    }
}

fn must_be_json(req: &HttpRequest) -> Result<(), ApiError> {
    let is_json = req.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(is_json);
    if is_json { Ok(()) } else { Err(ApiError::new(Code::UnsupportedMediaType, "send application/json")) }
}

fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let utf8 = parts.all(|p| match p.split_once('=') {
        Some((name, value)) => {
            !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        None => p.is_empty(),
    });
    essence.eq_ignore_ascii_case("application/json") && utf8
}

async fn read_all(req: &HttpRequest, mut payload: Payload) -> Result<Bytes, ApiError> {
    let limit = state::of(req).settings.body_bytes_max;
    let too_large = || ApiError::new(Code::BodyTooLarge, format!("the body is over the limit of {limit} bytes"));
    let announced = req.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|n| n > limit as u64) {
        return Err(too_large());
    }
    let reading = async {
        let mut body = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|e| ApiError::invalid(format!("the body cannot be read: {e}")))?;
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    };
    let late = |_| ApiError::new(Code::RequestTimeout, "the body did not arrive in time");
    tokio::time::timeout(BODY_TIMEOUT, reading).await.map_err(late)?
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Json<T>, ApiError> {
    let value = json::parse(bytes).map_err(|e| ApiError::invalid(format!("the body is not acceptable JSON: {e}")))?;
    let Value::Object(object) = value else {
        return Err(ApiError::invalid("the body must be a JSON object"));
    };
    // The second reading is by type; the first has settled what the bytes mean.
    let typed = serde_json::from_slice(bytes).map_err(|e| {
        let text = e.to_string();
        // The place is of no use where the sentence names the member.
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        ApiError::invalid(format!("the body is not as documented: {text}"))
    })?;
    Ok(Json { typed, object })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Small {
        #[allow(dead_code, reason = "only read")]
        a: i64,
    }

    #[test]
    fn bodies_are_read_strictly() {
        assert!(parse::<Small>(br#"{"a":1}"#).is_ok());
        for bad in [
            &b""[..],
            b"[]",
            br#"{"a":1,"a":2}"#,
            br#"{"a":1.5}"#,
            br#"{"a":1,"b":2}"#,
            b"{\"a\":\"\xff\"}",
            br#"{"a":"\u0000"}"#,
            br#"{"a":"x"}"#,
        ] {
            assert_eq!(parse::<Small>(bad).unwrap_err().code, Code::InvalidRequest, "{bad:?}");
        }
    }

    #[test]
    fn only_json_in_utf8_is_json() {
        assert!(is_json("application/json") && is_json("Application/JSON; charset=\"UTF-8\""));
        assert!(!is_json("text/plain") && !is_json("application/json; charset=latin1") && !is_json(""));
    }
}
