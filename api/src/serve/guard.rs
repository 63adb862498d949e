//! What stands before every handler: who may call, how often, how many at once, and whether writes are taken.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Version;
use actix_web::http::header::ALLOW;
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _};
use futures_util::StreamExt as _;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use super::access::{Access, RULES, Rule, Verb, rule};
use super::auth::{Caller, Role, recognise};
use super::error::{ApiError, Code};
use super::state::{self, State};

/// Headers of a request, and bytes of the value of each. The framework bounds a head of HTTP/1.1 by itself, of HTTP/2 only at 16 MiB.
const HEADERS_MAX: usize = 96;
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Bytes and time that the body of a refused request may take.
const DRAIN_BYTES_MAX: usize = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The pattern of the route that a request found, for logs and metrics.
pub(crate) struct Route(pub(crate) &'static str);

/// A request's place among those under way, and among those of strangers, or of who may be a payment provider, if it is of one.
type Permits<'s> = (SemaphorePermit<'s>, Option<SemaphorePermit<'s>>);

/// The middleware.
pub(crate) async fn guard(mut req: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse<BoxBody>, Error> {
    let state = Arc::clone(state::of(req.request()));
    // As the router reads it: decoded. A pattern of the raw path could be another route's.
    let pattern = req.resource_map().match_pattern(req.match_info().as_str());
    let _permit = match admit(&req, &state, pattern.as_deref()).await {
        Ok(permit) => permit,
        Err(refused) => {
            let mut response = refused.to_response();
            if refused.code == Code::MethodNotAllowed
                && let Ok(value) = methods_of(pattern.as_deref()).parse()
            {
                response.headers_mut().insert(ALLOW, value);
            }
            drain(&mut req).await;
            return Ok(req.into_response(response));
        }
    };
    let deadline = Instant::now() + state.settings.request_timeout;
    DEADLINE.scope(deadline, next.call(req)).await
}

tokio::task_local! {
    /// When the request that is being handled must be answered: one moment for all that it waits for.
    static DEADLINE: Instant;
}

/// When the request that this is called for must be answered.
pub(crate) fn deadline() -> Instant {
    DEADLINE.get()
}

/// Takes the rest of a small body that nobody will look at. An HTTP/2 stream that is answered before its end is reset (RFC 9113
/// 8.1), and some clients lose the answer with that, such as curl 7.88.
async fn drain(req: &mut ServiceRequest) {
    if req.version() != Version::HTTP_2 {
        return;
    }
    let mut payload = req.take_payload();
    let read = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(chunk)) = payload.next().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, read).await;
}

/// Admits a request or says why not; of one that is admitted, the permits that it holds until it is answered.
async fn admit<'s>(
    req: &ServiceRequest,
    state: &'s State,
    pattern: Option<&str>,
) -> Result<Option<Permits<'s>>, ApiError> {
    let address = req.peer_addr().map(|a| a.ip());
    let headers = req.headers();
    if headers.len() > HEADERS_MAX || headers.iter().any(|(_, value)| value.len() > HEADER_BYTES_MAX) {
        state.rates.admit_stranger(address)?;
        let text = format!("a request has at most {HEADERS_MAX} headers of {HEADER_BYTES_MAX} bytes");
        return Err(ApiError::invalid(text));
    }
    let Some(pattern) = pattern else {
        state.rates.admit_stranger(address)?;
        return Err(ApiError::not_found("there is no such path; GET /openapi.json lists them"));
    };
    let Some(rule) = rule(req.method(), pattern) else {
        state.rates.admit_stranger(address)?;
        let known = RULES.iter().any(|r| r.path == pattern);
        return Err(match known {
            true => ApiError::new(Code::MethodNotAllowed, "not with this method"),
            false => ApiError::forbidden("nobody may call this"),
        });
    };
    req.extensions_mut().insert(Route(rule.path));
    if matches!(rule.path, "/health" | "/ready") {
        // Whoever asks whether the server lives must hear it from a busy one too.
        return Ok(None);
    }
    let caller = authorise(req, state, rule).await?;
    match &caller {
        Some(caller) => state.rates.admit(caller)?,
        None if rule.access == Access::Signed => state.rates.admit_provider(address)?,
        None => state.rates.admit_stranger(address)?,
    }
    let is_stranger = caller.is_none();
    if let Some(caller) = caller {
        req.extensions_mut().insert(Rc::new(caller));
    }
    if rule.writes && state.settings.maintenance {
        return Err(ApiError::new(Code::Maintenance, "the ledger is in maintenance: it can be read, not written"));
    }
    if rule.writes && state.is_closing() {
        return Err(ApiError::new(Code::ShuttingDown, "the server is shutting down; try again"));
    }
    let busy = |_| ApiError::new(Code::Overloaded, "too many requests are under way; try again");
    let pool = if rule.access == Access::Signed { &state.providers } else { &state.strangers };
    let stranger = is_stranger.then(|| pool.try_acquire()).transpose().map_err(busy)?;
    Ok(Some((state.requests.try_acquire().map_err(busy)?, stranger)))
}

/// The caller, with those of its roles that may call the route: another role opens nothing here.
async fn authorise(req: &ServiceRequest, state: &State, rule: &Rule) -> Result<Option<Caller>, ApiError> {
    let allowed: &[_] = match rule.access {
        Access::Open | Access::Signed => return Ok(None),
        Access::OpenUnlessClosed if state.settings.checkpoints_public => return Ok(None),
        Access::OpenUnlessClosed | Access::Anyone => &Role::ALL,
        Access::Roles(roles) => roles,
    };
    let caller = match recognise(req, &state.tokens, &state.settings).await {
        Ok(Some(caller)) => caller,
        failed => {
            // Failures count by address: nobody is known who they could count for.
            state.rates.admit_stranger(req.peer_addr().map(|a| a.ip()))?;
            let nobody = || ApiError::unauthenticated("a token or client certificate is required");
            return Err(failed.err().unwrap_or_else(nobody));
        }
    };
    let roles: Vec<Role> = caller.roles.iter().copied().filter(|role| allowed.contains(role)).collect();
    if !roles.is_empty() {
        return Ok(Some(Caller { roles, ..caller }));
    }
    // Counted, too: somebody who may not is no freer to ask than who may.
    state.rates.admit(&caller)?;
    Err(ApiError::forbidden("your role may not do this"))
}

fn methods_of(pattern: Option<&str>) -> String {
    let methods = RULES.iter().filter(|r| Some(r.path) == pattern).map(|r| match r.method {
        Verb::Get => "GET, HEAD",
        Verb::Post => "POST",
    });
    methods.collect::<Vec<_>>().join(", ")
}
