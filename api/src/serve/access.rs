//! Who may call what: one table. What is not in it is refused, so that a route that somebody adds is closed until it is
//! written here.

use actix_web::http::Method;

use super::auth::Role;

/// Who may call a route, before ownership is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody, without a token.
    Open,
    /// Whoever can sign the body, which the handler checks.
    Signed,
    /// Open, or for anybody who is recognised, by the setting `checkpoints_public`.
    OpenUnlessClosed,
    /// Anybody who is recognised.
    Anyone,
    /// These. A buyer only sees own orders, which handlers check.
    Roles(&'static [Role]),
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) method: Verb,
    /// Pattern of the path, as the router has it.
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    /// Refused in maintenance.
    pub(crate) writes: bool,
}

/// Methods of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Post,
}

impl Verb {
    fn is(self, method: &Method) -> bool {
        match self {
            Verb::Get => method == Method::GET || method == Method::HEAD,
            Verb::Post => method == Method::POST,
        }
    }
}

const fn get(path: &'static str, access: Access) -> Rule {
    Rule { method: Verb::Get, path, access, writes: false }
}

const fn write(path: &'static str, access: Access) -> Rule {
    Rule { method: Verb::Post, path, access, writes: true }
}

use Access::{Anyone, Open, OpenUnlessClosed, Roles, Signed};
use Role::{Auditor, Buyer, Operator, Service};

/// The table.
pub(crate) const RULES: &[Rule] = &[
    get("/health", Open),
    get("/ready", Open),
    get("/metrics", Roles(&[Operator, Service])),
    get("/openapi.json", Open),
    get("/docs", Open),
    get("/docs/{tail:.*}", Open),
    write("/checkout", Roles(&[Buyer])),
    write("/webhooks/payment", Signed),
    get("/order/{id}", Roles(&[Buyer, Service, Auditor])),
    get("/order/{id}/events", Roles(&[Buyer, Auditor])),
    get("/order/{id}/license", Roles(&[Buyer, Auditor])),
    write("/order/{id}/settle", Roles(&[Service])),
    write("/order/{id}/finalize", Roles(&[Service])),
    write("/order/{id}/cancel", Roles(&[Operator, Service])),
    write("/order/{id}/refund", Roles(&[Operator, Service])),
    write("/delivery/{id}/reissue", Roles(&[Operator, Service])),
    // A download is recorded.
    Rule { method: Verb::Get, path: "/delivery/{id}/artifact", access: Roles(&[Buyer]), writes: true },
    get("/delivery/{id}/key", Roles(&[Buyer])),
    Rule { method: Verb::Post, path: "/license/verify", access: Anyone, writes: false },
    get("/proofs/{id}", Roles(&[Buyer, Auditor])),
    get("/catalog", Anyone),
    get("/sku/{id}", Anyone),
    write("/sku", Roles(&[Operator])),
    write("/sku/{id}/withdraw", Roles(&[Operator])),
    Rule { method: Verb::Post, path: "/admin/validate-manifest", access: Roles(&[Operator]), writes: false },
    get("/admin/signers", Roles(&[Operator, Auditor])),
    get("/audit/events", Roles(&[Auditor])),
    get("/audit/events/{id}", Roles(&[Buyer, Auditor])),
    get("/audit/events/{id}/proof", Roles(&[Buyer, Auditor])),
    get("/audit/checkpoint", OpenUnlessClosed),
    get("/audit/consistency", OpenUnlessClosed),
    get("/audit/stream", Roles(&[Auditor])),
];

/// The rule of a route.
pub(crate) fn rule(method: &Method, pattern: &str) -> Option<&'static Rule> {
    RULES.iter().find(|r| r.path == pattern && r.method.is(method))
}
