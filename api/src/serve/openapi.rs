//! The OpenAPI 3.1 description, made from the handlers, and the page that shows it.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use actix_web::HttpResponse;
use actix_web::web::{Bytes, Path};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::Config;

use super::body::{JsonObject, JsonValue};
use super::error::{ApiError, Code, ErrorBody, ErrorDetail};
use super::routes::{admin, audit, catalogue, checkout, deliveries, health, licence, orders, payment, stream};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ledger API",
        description = "Orders and deliveries of a marketplace, recorded in a tamper-evident ledger. An answer means durable.\n\n\
            Every answer of the API is `{\"ok\": true, …}` or `{\"ok\": false, \"error\": {\"code\", \"message\", \"details\"?}}`; \
            codes are stable. Errors of the classes 429 and 503 may be tried again after `Retry-After` seconds, writes with the same \
            `Idempotency-Key`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/")),
    paths(
        health::health,
        health::ready,
        health::scrape,
        checkout::checkout,
        payment::payment,
        orders::order,
        orders::events,
        orders::settle,
        orders::finalize,
        orders::cancel,
        orders::refund,
        orders::reissue,
        deliveries::artifact,
        deliveries::key,
        licence::license,
        licence::verify,
        licence::proof,
        catalogue::catalog,
        catalogue::sku,
        catalogue::list,
        catalogue::withdraw,
        catalogue::validate,
        admin::signers,
        audit::events,
        audit::event,
        audit::entry_proof,
        audit::checkpoint,
        audit::consistency,
        stream::stream,
    ),
    // What only derived answers name.
    components(schemas(ErrorBody, ErrorDetail, Code, JsonObject, JsonValue)),
    modifiers(&Schemes),
    tags(
        (name = "catalogue", description = "What can be bought"),
        (name = "orders", description = "Orders and their deliveries"),
        (name = "payments", description = "What the payment provider says"),
        (name = "deliveries", description = "What the buyer downloads"),
        (name = "licences", description = "What the buyer holds"),
        (name = "audit", description = "The ledger itself"),
        (name = "operations", description = "For those who run the server"),
    ),
)]
struct Description;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
        components.add_security_scheme(
            "certificate",
            SecurityScheme::MutualTls { description: None, deprecated: None, extensions: None },
        );
    }
}

/// The description as JSON.
static JSON: LazyLock<String> = LazyLock::new(|| Description::openapi().to_json().unwrap_or_default());

/// `GET /openapi.json`
pub(crate) async fn json() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(JSON.as_str())
}

/// `GET /docs`
pub(crate) async fn docs() -> HttpResponse {
    HttpResponse::Found().insert_header((actix_web::http::header::LOCATION, "/docs/")).finish()
}

/// `GET /docs/…`: a page without anything from elsewhere.
pub(crate) async fn page(tail: Path<String>) -> Result<HttpResponse, ApiError> {
    static CONFIG: LazyLock<Arc<Config<'static>>> =
        LazyLock::new(|| Arc::new(Config::from("/openapi.json").try_it_out_enabled(true)));
    let missing = || ApiError::not_found("there is no such page");
    let name = if tail.is_empty() { "index.html" } else { tail.as_str() };
    let file = utoipa_swagger_ui::serve(name, Arc::clone(&CONFIG)).map_err(|_| missing())?.ok_or_else(missing)?;
    // Not copied for everybody who asks.
    let bytes = match file.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    Ok(HttpResponse::Ok().content_type(file.content_type).body(bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::serve::access::{RULES, Verb};

    /// What may be called is described, and nothing else.
    #[test]
    fn the_description_has_every_route_of_the_table() {
        let api = serde_json::to_value(Description::openapi()).unwrap();
        assert_eq!(api["openapi"], "3.1.0");
        let mut described = BTreeSet::new();
        for (path, item) in api["paths"].as_object().unwrap() {
            described.extend(item.as_object().unwrap().keys().map(|verb| (verb.clone(), path.clone())));
        }
        let pages = ["/openapi.json", "/docs", "/docs/{tail:.*}"];
        let table: BTreeSet<(String, String)> = RULES
            .iter()
            .filter(|r| !pages.contains(&r.path))
            .map(|r| (if r.method == Verb::Get { "get" } else { "post" }.to_owned(), r.path.to_owned()))
            .collect();
        assert_eq!(described, table);
    }

    /// Whoever reads the description finds every schema that it names.
    #[test]
    fn every_reference_leads_somewhere() {
        let api = serde_json::to_value(Description::openapi()).unwrap();
        let text = api.to_string();
        let mut references = text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()).peekable();
        assert!(references.peek().is_some());
        for path in references {
            assert!(api.pointer(path).is_some(), "{path}");
        }
    }
}
