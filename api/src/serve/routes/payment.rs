//! `POST /webhooks/payment`: the payment provider says what became of a payment.

use actix_web::{HttpRequest, HttpResponse};
use ledger_engine::domain::money::Money;
use ledger_engine::environment::{Environment as _, SystemEnvironment};
use ledger_engine::json::Object;
use ledger_engine::ledger::Appended;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Shared, append, header, in_time, no_order, order_id};
use crate::serve::body::Raw;
use crate::serve::error::{ApiError, Code, WriteErrors};
use crate::serve::state::State;
use crate::serve::stripe::{self, Event, Payment};

/// Who the ledger names as the actor of the provider's events.
const ACTOR: &str = "service:stripe";
const PROVIDER: &str = "stripe";

/// An event was taken.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookAnswer {
    #[schema(example = true)]
    ok: bool,
    /// False for an event that is about no order.
    recorded: bool,
    /// Whether the event had been taken before.
    repeated: bool,
    /// What was recorded: `payment.captured`, `payment.mismatch` or `payment.failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_type: Option<String>,
}

/// Take an event of the payment provider
///
/// Stripe's scheme. The intent's `metadata.order_id` names the order. An event that was taken before is answered as then; a
/// payment of another amount or currency than the order's is recorded as `payment.mismatch`, and the order stays unpaid.
#[utoipa::path(
    post,
    path = "/webhooks/payment",
    tag = "payments",
    request_body(content = Object, description = "An event, exactly as the provider signed it"),
    params(("Stripe-Signature" = String, Header, description = "t=<seconds>,v1=<hex>[,v1=<hex>…]")),
    responses((status = 200, description = "Taken", body = WebhookAnswer), WriteErrors),
)]
pub(crate) async fn payment(req: HttpRequest, state: Shared, body: Raw) -> Result<HttpResponse, ApiError> {
    let settings = &state.settings;
    if settings.webhook_secrets.is_empty() {
        return Err(ApiError::unauthenticated("webhooks are not taken here")
            .internal_note("a webhook came, and payment_webhook_secret is not set"));
    }
    let now = SystemEnvironment.now_us() / 1_000_000;
    let tolerance = i64::try_from(settings.webhook_tolerance.as_secs()).unwrap_or(i64::MAX);
    let signature = header(&req, "Stripe-Signature").unwrap_or_default();
    stripe::verify(signature, &body.0, &settings.webhook_secrets, now, tolerance)
        .map_err(|fault| ApiError::unauthenticated(fault.to_string()))?;
    let malformed = |e: String| ApiError::invalid(format!("the event cannot be read: {e}"));
    let event = Event::parse(&body.0).map_err(malformed)?;
    let payment = event.payment().map_err(malformed)?;
    let appended = match payment {
        Payment::Other => None,
        Payment::Captured { order_id, payment_id, received } => {
            Some(captured(&state, &event.id, &order_id, &payment_id, received).await?)
        }
        Payment::Failed { order_id: id, payment_id, reason } => {
            let mut command = about(&id, "payment.fail", &payment_id)?;
            // A provider's word, as long as the ledger takes words.
            command.set("reason", reason.chars().take(255).collect::<String>());
            match append(&state, ACTOR, command, Some(&event.id)).await {
                // Events come in any order: the order has been paid since, or given up, and the failure says nothing any more.
                Err(e) if e.code == Code::IllegalTransition => None,
                taken => Some(taken?),
            }
        }
    };
    Ok(HttpResponse::Ok().json(WebhookAnswer {
        ok: true,
        recorded: appended.is_some(),
        repeated: appended.as_ref().is_some_and(|a| a.repeated),
        event_type: appended.and_then(|a| a.entries.first().map(|e| e.event_type.clone())),
    }))
}

fn about(order: &str, command: &str, payment_id: &str) -> Result<Object, ApiError> {
    let case = order_id(order)?;
    Ok(Object::new()
        .with("command", command)
        .with("order_id", case.to_string())
        .with("provider", PROVIDER)
        .with("payment_id", payment_id))
}

async fn captured(
    state: &State,
    event_id: &str,
    order: &str,
    payment_id: &str,
    received: Money,
) -> Result<Appended, ApiError> {
    let mut command = about(order, "payment.capture", payment_id)?;
    let case = order_id(order)?;
    let read = async { Ok(state.ledger.order(case).await?) };
    let row = in_time(read).await?.ok_or_else(no_order)?;
    // The provider counts in its own unit; the same amount is written in the order's, where that is exact.
    let same_currency = received.currency == row.text("currency");
    let counted = if same_currency { stripe::rescaled(&received, row.int("scale")) } else { None };
    command.set("total", counted.unwrap_or(received).to_value());
    let taken = append(state, ACTOR, command, Some(event_id)).await;
    if taken.as_ref().is_err_and(|e| e.code == Code::IllegalTransition) {
        // Money that no order can take: the provider is told no, so that it shows there, too, and somebody must look.
        metrics::counter!("ledger_payments_unplaced_total").increment(1);
        tracing::error!(order, payment_id, event_id, "a payment was captured that the order cannot take");
    }
    taken
}
