//! What stands before every handler: who may call, how often, how many at once, and whether writes are taken.

use std::rc::Rc;
use std::sync::Arc;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{ALLOW, AUTHORIZATION};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _};
use tokio::sync::SemaphorePermit;

use super::access::{Access, RULES, Rule, Verb, rule};
use super::auth::{Caller, recognise};
use super::error::{ApiError, Code};
use super::state::{self, State};

/// The pattern of the route that a request found, for logs and metrics.
pub(crate) struct Route(pub(crate) &'static str);

/// A request's place among those under way, and among those of strangers if it is of one.
type Permits<'s> = (SemaphorePermit<'s>, Option<SemaphorePermit<'s>>);

/// The middleware.
pub(crate) async fn guard(req: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse<BoxBody>, Error> {
    let state = Arc::clone(state::of(req.request()));
    let _permit = match admit(&req, &state).await {
        Ok(permit) => permit,
        Err(refused) => {
            let mut response = refused.to_response();
            if refused.code == Code::MethodNotAllowed
                && let Ok(value) = methods_of(req.match_pattern().as_deref()).parse()
            {
                response.headers_mut().insert(ALLOW, value);
            }
            return Ok(req.into_response(response));
        }
    };
    next.call(req).await
}

/// Admits a request or says why not; of one that is admitted, the permits that it holds until it is answered.
async fn admit<'s>(req: &ServiceRequest, state: &'s State) -> Result<Option<Permits<'s>>, ApiError> {
    let Some(pattern) = req.match_pattern() else {
        state.rates.admit_stranger(req.peer_addr().map(|a| a.ip()))?;
        return Err(ApiError::not_found("there is no such path; GET /openapi.json lists them"));
    };
    let Some(rule) = rule(req.method(), &pattern) else {
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
        None => state.rates.admit_stranger(req.peer_addr().map(|a| a.ip()))?,
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
    let stranger = is_stranger.then(|| state.strangers.try_acquire()).transpose().map_err(busy)?;
    Ok(Some((state.requests.try_acquire().map_err(busy)?, stranger)))
}

async fn authorise(req: &ServiceRequest, state: &State, rule: &Rule) -> Result<Option<Caller>, ApiError> {
    let allowed: &[_] = match rule.access {
        Access::Open => return Ok(None),
        Access::OpenUnlessClosed if state.settings.checkpoints_public => return Ok(None),
        Access::OpenUnlessClosed | Access::Anyone => &[],
        Access::Roles(roles) => roles,
    };
    if let Some(token) = bearer(req).filter(|t| state.tokens.wants_keys(t)) {
        tracing::info!("a token of {} bytes names a key that is not known; reading the key set again", token.len());
        state.tokens.keys().reload_or_keep().await;
    }
    let caller = match recognise(req, &state.tokens, &state.settings) {
        Ok(Some(caller)) => caller,
        failed => {
            // Failures count by address, so that guessing is slow.
            state.rates.admit_stranger(req.peer_addr().map(|a| a.ip()))?;
            let nobody = || ApiError::unauthenticated("a token or client certificate is required");
            return Err(failed.err().unwrap_or_else(nobody));
        }
    };
    if allowed.is_empty() || allowed.iter().any(|role| caller.has(*role)) {
        return Ok(Some(caller));
    }
    // Counted, too: somebody who may not is no freer to ask than who may.
    state.rates.admit(&caller)?;
    Err(ApiError::forbidden("your role may not do this"))
}

fn bearer(req: &ServiceRequest) -> Option<&str> {
    req.headers().get(AUTHORIZATION)?.to_str().ok()?.split_once(' ').map(|(_, token)| token)
}

fn methods_of(pattern: Option<&str>) -> String {
    let methods = RULES.iter().filter(|r| Some(r.path) == pattern).map(|r| match r.method {
        Verb::Get => "GET, HEAD",
        Verb::Post => "POST",
    });
    methods.collect::<Vec<_>>().join(", ")
}
