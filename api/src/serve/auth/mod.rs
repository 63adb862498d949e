//! Who is calling: a bearer token (people and services) or a client certificate (services).

mod certificate;
mod keys;
mod tokens;

use std::rc::Rc;

use actix_web::dev::{Payload, ServiceRequest};
use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpMessage as _, HttpRequest};
use futures_util::future::{Ready, ready};

pub(crate) use certificate::{Peer, accept};
pub(crate) use keys::{DevKey, Keys};
pub(crate) use tokens::{Authenticator, mint};

use super::error::ApiError;
use super::settings::{Settings, is_service_name};

/// What a caller may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Role {
    /// Sees and makes own orders.
    Buyer,
    /// Another part of the marketplace.
    Service,
    /// Runs the marketplace.
    Operator,
    /// Reads.
    Auditor,
}

impl Role {
    pub(crate) const ALL: [Role; 4] = [Role::Buyer, Role::Service, Role::Operator, Role::Auditor];

    /// The word in the claim `roles`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Role::Buyer => "buyer",
            Role::Service => "service",
            Role::Operator => "operator",
            Role::Auditor => "auditor",
        }
    }
}

/// Somebody who was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The external id of a person, or `service:<name>`.
    pub(crate) subject: String,
    pub(crate) roles: Vec<Role>,
}

impl Caller {
    /// None if subject and roles do not go together: only services are named `service:`, and nobody is `system`.
    pub(crate) fn new(subject: &str, roles: Vec<Role>) -> Option<Caller> {
        let service = subject.strip_prefix("service:");
        let named = match service {
            Some(name) => is_service_name(name) && roles == [Role::Service],
            None => !roles.contains(&Role::Service) && subject != "system" && (1..=255).contains(&subject.len()),
        };
        (named && !roles.is_empty()).then(|| Caller { subject: subject.to_owned(), roles })
    }

    pub(crate) fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// The caller that the guard recognised; only on routes that need one.
impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let found = req.extensions().get::<Rc<Caller>>().map(|caller| Caller::clone(caller));
        ready(found.ok_or_else(|| ApiError::unauthenticated("a token or client certificate is required")))
    }
}

/// The bearer token of a request; `None` without the header.
fn bearer(req: &ServiceRequest) -> Result<Option<&str>, ApiError> {
    let mut values = req.headers().get_all(AUTHORIZATION);
    let Some(value) = values.next() else { return Ok(None) };
    // Of two, a proxy in front could have looked at the other one.
    let only = value.to_str().ok().filter(|_| values.next().is_none());
    let token = only.and_then(|t| t.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let form = || ApiError::unauthenticated("the Authorization header must be given once: Bearer <token>");
    token.map(|(_, token)| Some(token.trim_matches(' '))).ok_or_else(form)
}

/// Recognises the caller of a request; `None` if it names nobody. A token that is no good is not made up for by a certificate.
pub(crate) async fn recognise(
    req: &ServiceRequest,
    tokens: &Authenticator,
    settings: &Settings,
) -> Result<Option<Caller>, ApiError> {
    if let Some(token) = bearer(req)? {
        return tokens.recognise(token).await.map(Some);
    }
    let Some(peer) = req.conn_data::<Peer>().filter(|peer| peer.until.is_some()) else { return Ok(None) };
    if peer.until < Some(tokens::now()) {
        // It was good when the connection was made.
        return Err(ApiError::unauthenticated("the client certificate has expired"));
    }
    let service = peer.names.iter().find_map(|name| settings.services.get(name));
    let caller = service.and_then(|name| Caller::new(&format!("service:{name}"), vec![Role::Service]));
    let unknown = || {
        ApiError::unauthenticated("the client certificate is of no service that this server knows")
            .internal(format!("client certificate of {:?}", peer.names))
    };
    caller.map(Some).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_and_roles_go_together() {
        assert!(Caller::new("ann@example.org", vec![Role::Buyer]).is_some());
        assert!(Caller::new("ann@example.org", vec![Role::Operator, Role::Auditor]).is_some());
        assert!(Caller::new("service:finance", vec![Role::Service]).is_some());
        for (subject, roles) in [
            ("service:finance", vec![Role::Buyer]),
            ("service:finance", vec![Role::Service, Role::Operator]),
            ("service:", vec![Role::Service]),
            ("service:Fin", vec![Role::Service]),
            ("ann", vec![Role::Service]),
            ("system", vec![Role::Operator]),
            ("", vec![Role::Buyer]),
            ("ann", vec![]),
        ] {
            assert_eq!(Caller::new(subject, roles), None, "{subject}");
        }
    }
}
