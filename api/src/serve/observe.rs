//! Around every request: an id, a line in the log, metrics, the headers that keep browsers careful, and the envelope for
//! answers that were made elsewhere.

use std::rc::Rc;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY,
    STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _};
use metrics::{counter, histogram};
use tracing::Instrument as _;

use super::auth::Caller;
use super::error::{ApiError, Code};
use super::guard::Route;
use super::{state, unread};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Nothing that the API answers is a page or may be framed.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'";
/// The documentation's page runs its own scripts and styles, and calls this server.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                           connect-src 'self'; frame-ancestors 'none'";

/// The middleware.
pub(crate) async fn observe(
    mut req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let start = Instant::now();
    let id = request_id(&req);
    let (method, secure) = (req.method().clone(), state::of(req.request()).settings.tls.is_some());
    let span =
        tracing::info_span!("request", id = id.to_str().unwrap_or_default(), method = %method, otel.kind = "server");
    let unread = unread::lend(&mut req);
    let response = next.call(req).instrument(span.clone()).await?;
    let response = enveloped(response.map_into_boxed_body());
    let mut response = response.map_body(|_, body| unread::hold(body, unread));
    let (route, actor) = {
        let extensions = response.request().extensions();
        let ledger = &state::of(response.request()).ledger;
        let caller = extensions.get::<Rc<Caller>>();
        // People appear in logs as they do in the ledger: by pseudonym.
        let actor = caller.map(|c| ledger.actor_id(&c.subject)).unwrap_or_default();
        (extensions.get::<Route>().map_or("(none)", |r| r.0), actor)
    };
    let (status, elapsed) = (response.status(), start.elapsed());
    let _entered = span.enter();
    let (code, ms) = (status.as_u16(), elapsed.as_micros() as f64 / 1000.0);
    if status.is_server_error() {
        tracing::warn!(route, status = code, ms, actor, "answered");
    } else {
        tracing::info!(route, status = code, ms, actor, "answered");
    }
    // Methods are a client's text: only those that the API has become labels.
    let method = if matches!(method.as_str(), "GET" | "HEAD" | "POST" | "OPTIONS") {
        method.to_string()
    } else {
        "other".into()
    };
    counter!("http_requests_total", "method" => method, "route" => route, "status" => code.to_string()).increment(1);
    histogram!("http_request_duration_seconds", "route" => route).record(elapsed.as_secs_f64());
    let is_docs = response.request().path().starts_with("/docs");
    add_headers(response.headers_mut(), &id, secure, is_docs);
    Ok(response)
}

/// The caller's id where it has one of a plain form, else a new one.
fn request_id(req: &ServiceRequest) -> HeaderValue {
    let plain = |v: &&HeaderValue| {
        (1..=64).contains(&v.len())
            && v.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    if let Some(given) = req.headers().get(&REQUEST_ID).filter(plain) {
        return given.clone();
    }
    let mut bytes = [0; 8];
    // An id that repeats is no harm; a request that fails for want of one would be.
    let _ = ledger_engine::environment::Environment::random(&ledger_engine::environment::SystemEnvironment, &mut bytes);
    HeaderValue::from_str(&ledger_engine::hash::to_hex(&bytes)).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// Answers that the framework made itself have no envelope: they get one.
fn enveloped(response: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    let status = response.status();
    let is_json = response.headers().get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/json"));
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let code = match status {
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
        StatusCode::REQUEST_TIMEOUT => Code::RequestTimeout,
        StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
        s if s.is_server_error() => Code::Internal,
        _ => Code::InvalidRequest,
    };
    let reason = status.canonical_reason().unwrap_or("the request cannot be answered");
    let answer = ApiError::new(code, reason.to_lowercase()).to_response();
    response.into_response(answer)
}

fn add_headers(headers: &mut HeaderMap, id: &HeaderValue, secure: bool, is_docs: bool) {
    headers.insert(REQUEST_ID, id.clone());
    let mut set = |name: HeaderName, value: &'static str| drop(headers.insert(name, HeaderValue::from_static(value)));
    set(X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(X_FRAME_OPTIONS, "DENY");
    set(REFERRER_POLICY, "no-referrer");
    set(CONTENT_SECURITY_POLICY, if is_docs { DOCS_POLICY } else { POLICY });
    if secure {
        set(STRICT_TRANSPORT_SECURITY, "max-age=31536000; includeSubDomains");
    }
    if !is_docs && !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}
