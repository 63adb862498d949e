//! `POST /checkout`: an order is made.

use std::time::Instant;

use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse};
use ledger_engine::delivery::recipient::Recipient;
use ledger_engine::json::{Object, Value, parse};
use ledger_engine::ledger::EntryRef;
use ledger_engine::time::rfc3339;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Shared, append};
use crate::serve::auth::Caller;
use crate::serve::body::{Json, JsonObject};
use crate::serve::error::{ApiError, Code, WriteErrors};
use crate::serve::idempotency::required_key;
use crate::serve::wire::Order;

/// Says that an answer is the first one of its key, given again.
pub(crate) const REPLAYED: &str = "Idempotency-Replayed";

/// What a buyer wants.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckoutRequest {
    #[schema(min_length = 1, max_length = 1024)]
    sku_id: String,
    /// The `sub` of the caller's token.
    #[schema(min_length = 1, max_length = 255)]
    buyer_id: String,
    #[allow(dead_code, reason = "taken from the object as sent")]
    payment_method: PaymentMethod,
    delivery_preferences: DeliveryPreferences,
    /// Anything for the invoice; kept where it can be erased.
    #[allow(dead_code, reason = "taken from the object as sent")]
    #[schema(value_type = Option<JsonObject>)]
    billing_metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// Anything of the client's; given back, kept where it can be erased.
    #[schema(value_type = Option<JsonObject>)]
    order_metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// How it is paid.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PaymentMethod {
    #[schema(min_length = 1, max_length = 1024)]
    #[allow(dead_code, reason = "taken from the object as sent")]
    provider: String,
    #[schema(min_length = 1, max_length = 1024)]
    #[allow(dead_code, reason = "taken from the object as sent")]
    payment_intent: String,
}

/// How it is delivered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeliveryPreferences {
    mode: DeliveryMode,
    /// PEM (SPKI), for `buyer-managed` only. The order keeps its SHA-256 fingerprint.
    buyer_public_key: Option<String>,
    /// The buyer's own name of the key.
    #[allow(dead_code, reason = "taken from the object as sent")]
    key_identifier: Option<String>,
}

/// Whose key the artifact is encrypted for.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DeliveryMode {
    BuyerManaged,
    MarketplaceManaged,
}

/// An order that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OrderAnswer {
    #[schema(example = true)]
    pub(crate) ok: bool,
    pub(crate) order: Order,
}

/// Make an order
///
/// The price comes from the catalogue. Send the same `Idempotency-Key` again with the same body to learn what became of a
/// request: there is one order for a key, whatever happens in between.
#[utoipa::path(
    post,
    path = "/checkout",
    tag = "orders",
    request_body = CheckoutRequest,
    params(("Idempotency-Key" = String, Header, description = "A value of your own for this order",
            min_length = 1, max_length = 255, pattern = "^[!#-\\[\\]-~]+$")),
    responses(
        (status = 201, description = "The order, as it was made", body = OrderAnswer,
            headers(("Location" = String), ("Idempotency-Replayed" = bool))),
        WriteErrors,
    ),
    security(("token" = [])),
)]
pub(crate) async fn checkout(
    req: HttpRequest,
    state: Shared,
    caller: Caller,
    body: Json<CheckoutRequest>,
) -> Result<HttpResponse, ApiError> {
    let start = Instant::now();
    let key = required_key(&req)?;
    let Json { typed, object } = body;
    if typed.buyer_id != caller.subject {
        return Err(ApiError::forbidden("buyer_id is not the caller; an order is made by its buyer"));
    }
    let preferences = &typed.delivery_preferences;
    let mut command = Object::new().with("command", "order.create").with("sku_id", typed.sku_id.as_str());
    command.set(
        "delivery_mode",
        match preferences.mode {
            DeliveryMode::BuyerManaged => "buyer-managed",
            DeliveryMode::MarketplaceManaged => "marketplace-managed",
        },
    );
    command.set_some("key_fingerprint", preferences.buyer_public_key.as_deref().map(fingerprint).transpose()?);
    let mut private = Object::new();
    for name in ["payment_method", "billing_metadata", "delivery_preferences", "order_metadata"] {
        private.set_some(name, object.value(name).filter(|v| **v != Value::Null).cloned());
    }
    command.set("private", private);
    let appended = append(&state, &caller.subject, command, Some(&key)).await?;
    let entry = appended.entries.first().filter(|e| e.event_type == "order.created");
    let order = entry.and_then(|e| made(e, typed.order_metadata));
    let order = order.ok_or_else(|| {
        ApiError::new(Code::Internal, "the order was made but cannot be shown; GET it")
            .internal("no order.created in the answer")
    })?;
    if !appended.repeated {
        metrics::counter!("marketplace_orders_total").increment(1);
    }
    metrics::histogram!("marketplace_checkout_latency_seconds").record(start.elapsed().as_secs_f64());
    let mut answer = HttpResponse::Created();
    answer.insert_header((LOCATION, format!("/order/{}", order.order_id)));
    if appended.repeated {
        answer.insert_header((REPLAYED, "true"));
    }
    Ok(answer.json(OrderAnswer { ok: true, order }))
}

/// SHA-256 of the DER of a public key in PEM that a delivery can be encrypted for.
pub(crate) fn fingerprint(pem: &str) -> Result<String, ApiError> {
    let key = Recipient::from_pem(pem).map_err(|e| ApiError::invalid(format!("buyer_public_key: {e}")))?;
    Ok(key.fingerprint().to_hex())
}

/// The order as its first entry made it.
fn made(entry: &EntryRef, metadata: Option<serde_json::Map<String, serde_json::Value>>) -> Option<Order> {
    let Ok(Value::Object(body)) = parse(&entry.body) else { return None };
    let payload = body.value("payload")?.as_object()?;
    let text = |name: &str| Some(payload.value(name)?.as_str()?.to_owned());
    let total = payload.value("total")?.as_object()?;
    let number = |name: &str| total.value(name)?.as_int();
    let at = rfc3339(entry.recorded_at_us);
    Some(Order {
        order_id: text("order_id")?,
        sku_id: text("sku_id")?,
        status: "pending".into(),
        amount: number("amount")?,
        currency: total.value("currency")?.as_str()?.to_owned(),
        scale: number("scale")?,
        refunded: 0,
        created_at: at.clone(),
        updated_at: at,
        delivery_mode: text("delivery_mode")?,
        key_fingerprint: text("key_fingerprint"),
        ledger_proof_id: None,
        license_id: None,
        revision: entry.revision,
        order_metadata: metadata.map(serde_json::Value::Object),
        deliveries: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_keys_have_fingerprints() {
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VuAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        assert_eq!(fingerprint(pem).unwrap().len(), 64);
        // The same as an Ed25519 key, which nothing is encrypted for.
        for bad in ["", "MCow", &pem.replace("K2Vu", "K2Vw"), &pem.replace("PUBLIC KEY", "PRIVATE KEY")] {
            assert!(fingerprint(bad).is_err(), "{bad}");
        }
    }
}
