//! Licences, and proofs of deliveries.

use actix_web::HttpResponse;
use actix_web::web::Path;
use ledger_engine::delivery_proof::{DeliveryProof, Encryption};
use ledger_engine::domain::projection::Cell;
use ledger_engine::environment::{Environment as _, SystemEnvironment};
use ledger_engine::hash::EventId;
use ledger_engine::json::Value;
use ledger_engine::licence::{Licence as Signed, Reason, judge};
use ledger_engine::stream::{CaseId, Stream};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::orders::KeyMetadata;
use super::{Shared, in_time, no_order, order_id, visible_order};
use crate::serve::auth::Caller;
use crate::serve::body::{Json, JsonObject};
use crate::serve::error::{ApiError, Code, ReadErrors, WriteErrors};
use crate::serve::state::State;

/// A signed licence, exactly as the ledger's entry holds it (FORMAT.md 15). Keep its bytes: `audit-verify` checks them offline.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Licence {
    license_id: String,
    order_id: String,
    sku_id: String,
    /// The buyer's pseudonym.
    buyer_id: String,
    scope: Scope,
    issued_at: String,
    ledger_id: String,
    signer_kid: String,
    /// Ed25519, 128 hex characters.
    signature: String,
}

/// What the buyer may do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Scope {
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// An order's licence.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LicenceAnswer {
    #[schema(example = true)]
    ok: bool,
    license: Licence,
}

fn damaged(what: String) -> ApiError {
    ApiError::new(Code::LedgerCorrupt, "the ledger is damaged; its operator must look at it").internal(what)
}

/// The payload of an entry.
async fn payload(state: &State, chain: u32, index: u64) -> Result<ledger_engine::json::Object, ApiError> {
    let entry = state.ledger.read_chain(chain, index, 1).await?.pop().filter(|e| e.header.index == index);
    let entry = entry.ok_or_else(|| damaged(format!("entry {index} of chain {chain} is missing")))?;
    let body = entry.parse_body().map_err(|e| damaged(format!("entry {index} of chain {chain}: {e}")))?;
    Ok(body.payload)
}

/// `doc.text` of a payload's member (FORMAT.md 9).
fn document(payload: &ledger_engine::json::Object, name: &str) -> Option<String> {
    Some(payload.value(name)?.as_object()?.value("text")?.as_str()?.to_owned())
}

/// The text of an order's licence, as the ledger holds it.
async fn issued_text(state: &State, case: CaseId) -> Result<Option<String>, ApiError> {
    let Some(order) = state.ledger.order(case).await? else { return Ok(None) };
    let Some(Cell::Int(_)) = order.cell("license_index") else { return Ok(None) };
    let chain = order.chain();
    Ok(document(&payload(state, chain, order.count("license_index")).await?, "license"))
}

/// The signed proof in the entry that made a delivery ready, if there is one.
pub(crate) async fn delivery_proof(state: &State, chain: u32, index: u64) -> Result<Option<DeliveryProof>, ApiError> {
    let text = document(&payload(state, chain, index).await?, "delivery_proof");
    Ok(text.as_deref().and_then(DeliveryProof::parse_canonical))
}

/// The licence in the entry that issued it.
pub(crate) async fn licence_of(state: &State, case: CaseId) -> Result<Licence, ApiError> {
    if state.ledger.order(case).await?.is_none() {
        return Err(no_order());
    }
    // One that was recorded without a document has nothing to show.
    let text = issued_text(state, case).await?.ok_or_else(|| ApiError::not_found("the order has no licence yet"))?;
    serde_json::from_str(&text).map_err(|e| damaged(format!("licence of order {case}: {e}")))
}

/// The licence of an order
#[utoipa::path(
    get,
    path = "/order/{id}/license",
    tag = "licences",
    params(("id" = String, Path, description = "The order's id")),
    responses((status = 200, description = "The signed licence", body = LicenceAnswer), ReadErrors),
    security(("token" = [])),
)]
pub(crate) async fn license(state: Shared, caller: Caller, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let case = order_id(&id)?;
    let read = async {
        visible_order(&state, &caller, case).await?;
        licence_of(&state, case).await
    };
    let license = in_time(read).await?;
    Ok(HttpResponse::Ok().json(LicenceAnswer { ok: true, license }))
}

/// A licence to be judged.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VerifyRequest {
    /// As it was given to the buyer.
    #[allow(dead_code, reason = "taken from the object as sent")]
    #[schema(value_type = JsonObject)]
    license: serde_json::Map<String, serde_json::Value>,
    /// The buyer's own id, as in tokens.
    #[schema(min_length = 1, max_length = 255)]
    expected_buyer_id: Option<String>,
}

/// A licence that holds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VerifyAnswer {
    #[schema(example = true)]
    ok: bool,
    #[schema(example = true)]
    verified: bool,
    details: VerifyDetails,
}

/// What was found.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VerifyDetails {
    license_id: String,
    signer_kid: String,
    /// Whether the buyer was compared.
    buyer_checked: bool,
    /// Where the order stands now: a licence whose order was refunded is genuine and worth nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    order_status: Option<String>,
}

/// Judge a licence
///
/// Its signature, ledger, key, buyer and time. `LICENSE_INVALID` gives every reason in `details.reasons`.
#[utoipa::path(
    post,
    path = "/license/verify",
    tag = "licences",
    request_body = VerifyRequest,
    responses((status = 200, description = "It holds", body = VerifyAnswer), WriteErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn verify(state: Shared, body: Json<VerifyRequest>) -> Result<HttpResponse, ApiError> {
    let object = body.object.value("license").and_then(Value::as_object).cloned().unwrap_or_default();
    let ledger = &state.ledger;
    let buyer = body.typed.expected_buyer_id.as_deref().map(|id| ledger.actor_id(id));
    let now_us = SystemEnvironment.now_us();
    // Another process may have changed the keys.
    in_time(async { Ok(ledger.refresh_registry().await?) }).await?;
    let mut reasons = judge(&object.to_canonical(), &ledger.registry(), &ledger.id(), buyer.as_deref(), now_us);
    // A key that is retired says nothing of when it signed. The entry that issued the licence does.
    if reasons.iter().any(|r| matches!(r, Reason::RetiredKey(_)))
        && let Ok(signed) = Signed::read(&object)
        && in_time(issued_text(&state, signed.terms.order_id)).await? == Some(signed.to_text())
    {
        reasons.retain(|r| !matches!(r, Reason::RetiredKey(_)));
    }
    if !reasons.is_empty() {
        let listed: Vec<_> =
            reasons.iter().map(|r| serde_json::json!({ "code": r.code(), "message": r.to_string() })).collect();
        let message = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Err(ApiError::new(Code::LicenseInvalid, message)
            .with_details(serde_json::json!({ "verified": false, "reasons": listed })));
    }
    let signed = Signed::read(&object).map_err(|e| ApiError::new(Code::LicenseInvalid, e.to_string()))?;
    let order = in_time(async { Ok(ledger.order(signed.terms.order_id).await?) }).await?;
    let details = VerifyDetails {
        license_id: object.value("license_id").and_then(Value::as_str).unwrap_or_default().into(),
        signer_kid: signed.terms.signer_kid,
        buyer_checked: buyer.is_some(),
        order_status: order.map(|row| row.text("status").to_owned()),
    };
    Ok(HttpResponse::Ok().json(VerifyAnswer { ok: true, verified: true, details }))
}

/// The proof of a delivery.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProofAnswer {
    #[schema(example = true)]
    ok: bool,
    /// `proof_id, order_id, artifact_sha256, …` as it was signed (FORMAT.md 19).
    #[schema(value_type = Object)]
    proof: serde_json::Value,
    /// The text whose SHA-256 is signed: the proof without its signature, in its RFC 8785 form.
    #[serde(skip_serializing_if = "Option::is_none")]
    canonical_payload: Option<String>,
    /// Whose key the delivery is for, as the proof says.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_metadata: Option<KeyMetadata>,
    /// The entry that holds it: `GET /audit/events/{id}/proof` is what `audit-verify proof` and `ledger open-delivery` take.
    event_id: String,
}

/// The proof of a delivery
#[utoipa::path(
    get,
    path = "/proofs/{id}",
    tag = "licences",
    params(("id" = String, Path, description = "The proof's id")),
    responses((status = 200, description = "The signed proof", body = ProofAnswer), ReadErrors),
    security(("token" = [])),
)]
pub(crate) async fn proof(state: Shared, caller: Caller, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let none = || ApiError::not_found("there is no such proof, or it is not yours");
    // A proof is named after its delivery.
    let stream = id.strip_prefix("proof-").and_then(|rest| Stream::parse(&format!("delivery-{rest}")));
    let Some(Stream::Delivery(case, n)) = stream else { return Err(none()) };
    let read = async {
        let (order, deliveries) = visible_order(&state, &caller, case).await.map_err(|e| match e.code {
            Code::NotFound => none(),
            _ => e,
        })?;
        let delivery = deliveries.get(n as usize - 1).filter(|d| d.text("proof_id") == id.as_str()).ok_or_else(none)?;
        let chain = order.chain();
        let index = delivery.count("proof_index");
        let payload = payload(&state, chain, index).await?;
        let text = document(&payload, "delivery_proof").or_else(|| document(&payload, "proof")).ok_or_else(none)?;
        let signed = DeliveryProof::parse_canonical(&text);
        let proof = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
        let event_id = EventId::derive(&state.ledger.id(), chain, index).to_string();
        let key_metadata = signed.as_ref().map(|p| {
            let Encryption { key_source, key_fingerprint, .. } = &p.terms.encryption;
            KeyMetadata::of(&p.terms.delivery_mode, key_source.clone(), Some(key_fingerprint.to_hex()))
        });
        let canonical_payload = signed.map(|p| p.terms.to_text());
        Ok(ProofAnswer { ok: true, proof, canonical_payload, key_metadata, event_id })
    };
    Ok(HttpResponse::Ok().json(in_time(read).await?))
}
