//! An order after its checkout: read, settled, finalised, cancelled, refunded; a delivery issued again.

use actix_web::web::Path;
use actix_web::{HttpRequest, HttpResponse};
use ledger_engine::delivery_proof::Encryption;
use ledger_engine::domain::finalisation::{FinanceProof, next_command, settle_command};
use ledger_engine::domain::projection::Row;
use ledger_engine::hash::to_hex;
use ledger_engine::json::Object;
use ledger_engine::stream::{CaseId, Stream};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::checkout::{OrderAnswer, REPLAYED, fingerprint};
use super::licence::{Licence, delivery_proof, licence_of};
use super::{Shared, append, in_time, may_see, no_order, order_id, visible_order};
use crate::deliver::Outcome;
use crate::serve::auth::Caller;
use crate::serve::body::{Json, Optional};
use crate::serve::error::{ApiError, Code, ReadErrors, WriteErrors};
use crate::serve::idempotency::key_of;
use crate::serve::state::State;
use crate::serve::wire::{Amount, AuditEvent, Delivery, Order};

/// The revision of the order's stream that the caller has seen.
fn expect(command: &mut Object, revision: Option<u64>) {
    // Commands refuse what is beyond 2^53.
    command.set_some("expected_revision", revision.map(|n| i64::try_from(n).unwrap_or(i64::MAX)));
}

async fn shown(state: &State, caller: &Caller, case: CaseId) -> Result<Order, ApiError> {
    let (row, deliveries, private) = state.ledger.order_with_private(case).await?.ok_or_else(no_order)?;
    may_see(state, caller, &row)?;
    Ok(Order::of(&row, &deliveries, private.as_ref()))
}

/// An order as it is now
#[utoipa::path(
    get,
    path = "/order/{id}",
    tag = "orders",
    params(("id" = String, Path, description = "32 hex characters")),
    responses((status = 200, description = "The order with its deliveries", body = OrderAnswer), ReadErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn order(state: Shared, caller: Caller, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let case = order_id(&id)?;
    let order = in_time(shown(&state, &caller, case)).await?;
    Ok(HttpResponse::Ok().json(OrderAnswer { ok: true, order }))
}

/// The entries of an order and its deliveries.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventsAnswer {
    #[schema(example = true)]
    pub(crate) ok: bool,
    pub(crate) events: Vec<AuditEvent>,
}

/// The audit trail of an order: its entries and those of its deliveries, in chain order
#[utoipa::path(
    get,
    path = "/order/{id}/events",
    tag = "orders",
    params(("id" = String, Path, description = "32 hex characters")),
    responses((status = 200, description = "All entries", body = EventsAnswer), ReadErrors),
    security(("token" = [])),
)]
pub(crate) async fn events(state: Shared, caller: Caller, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let case = order_id(&id)?;
    let read = async {
        visible_order(&state, &caller, case).await?;
        let entries = state.ledger.read_order(case).await?;
        let entries = state.ledger.with_commits(entries).await?;
        entries.iter().map(|(entry, commit)| AuditEvent::of(entry, commit)).collect()
    };
    let events = in_time(read).await?;
    Ok(HttpResponse::Ok().json(EventsAnswer { ok: true, events }))
}

/// A finance proof: the signature of a registered finance signer over the RFC 8785 form of `{amount, currency, ledger_proof_id,
/// order_id, scale, type: "finance-proof/v1"}`, with the order's own amount, currency and scale.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettleRequest {
    #[schema(min_length = 1, max_length = 1024)]
    ledger_proof_id: String,
    /// Base64 or hex: Ed25519, or RSA with SHA-256 (PSS or PKCS#1 v1.5).
    #[schema(min_length = 1, max_length = 4096)]
    ledger_proof_signature: String,
    /// A key with the purpose `finance`.
    #[schema(min_length = 1, max_length = 64)]
    ledger_proof_signer_kid: String,
    /// Refused if the order is at another revision.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    expected_revision: Option<u64>,
}

/// Attach the finance ledger's proof of an order that is paid
#[utoipa::path(
    post,
    path = "/order/{id}/settle",
    tag = "orders",
    request_body = SettleRequest,
    params(("id" = String, Path, description = "32 hex characters"),
           ("Idempotency-Key" = Option<String>, Header, description = "A value of your own for this request",
            min_length = 1, max_length = 255, pattern = "^[!#-\\[\\]-~]+$")),
    responses((status = 200, description = "The order", body = OrderAnswer), WriteErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn settle(
    req: HttpRequest,
    state: Shared,
    caller: Caller,
    id: Path<String>,
    body: Json<SettleRequest>,
) -> Result<HttpResponse, ApiError> {
    let (case, key, body) = (order_id(&id)?, key_of(&req)?, body.typed);
    let proof = FinanceProof {
        id: &body.ledger_proof_id,
        signature: &body.ledger_proof_signature,
        kid: &body.ledger_proof_signer_kid,
    };
    let mut command = settle_command(case, proof);
    expect(&mut command, body.expected_revision);
    change(&state, &caller, case, command, key).await
}

/// Why an order is cancelled.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CancelRequest {
    #[schema(max_length = 1024)]
    reason: String,
    /// Refused if the order is at another revision.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    expected_revision: Option<u64>,
}

/// Give up an order that is not paid
#[utoipa::path(
    post,
    path = "/order/{id}/cancel",
    tag = "orders",
    request_body = CancelRequest,
    params(("id" = String, Path, description = "32 hex characters"),
           ("Idempotency-Key" = Option<String>, Header, description = "A value of your own for this request",
            min_length = 1, max_length = 255, pattern = "^[!#-\\[\\]-~]+$")),
    responses((status = 200, description = "The order", body = OrderAnswer), WriteErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn cancel(
    req: HttpRequest,
    state: Shared,
    caller: Caller,
    id: Path<String>,
    body: Json<CancelRequest>,
) -> Result<HttpResponse, ApiError> {
    let (case, key, body) = (order_id(&id)?, key_of(&req)?, body.typed);
    let mut command = Object::new().with("command", "order.cancel").with("order_id", case.to_string());
    command.set("reason", body.reason);
    expect(&mut command, body.expected_revision);
    change(&state, &caller, case, command, key).await
}

/// What is paid back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RefundRequest {
    /// In the order's currency and scale, at most what is left.
    refund: Amount,
    #[schema(max_length = 1024)]
    reason: String,
    /// Refused if the order is at another revision.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    expected_revision: Option<u64>,
}

/// Record that money was paid back, in part or in full
///
/// Send an `Idempotency-Key`: two refunds look like one that was sent twice.
#[utoipa::path(
    post,
    path = "/order/{id}/refund",
    tag = "orders",
    request_body = RefundRequest,
    params(("id" = String, Path, description = "32 hex characters"),
           ("Idempotency-Key" = String, Header, description = "A value of your own for this refund",
            min_length = 1, max_length = 255, pattern = "^[!#-\\[\\]-~]+$")),
    responses((status = 200, description = "The order", body = OrderAnswer), WriteErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn refund(
    req: HttpRequest,
    state: Shared,
    caller: Caller,
    id: Path<String>,
    body: Json<RefundRequest>,
) -> Result<HttpResponse, ApiError> {
    let (case, body) = (order_id(&id)?, body.typed);
    let key = crate::serve::idempotency::required_key(&req)?;
    let mut command = Object::new().with("command", "order.refund").with("order_id", case.to_string());
    command.set("refund", body.refund.to_object());
    command.set("reason", body.reason);
    expect(&mut command, body.expected_revision);
    change(&state, &caller, case, command, Some(key)).await
}

/// Why a delivery is issued again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReissueRequest {
    #[schema(max_length = 1024)]
    reason: String,
    /// The buyer's new public key in PEM, where the old one was lost or replaced.
    buyer_public_key: Option<String>,
    /// The buyer's own name of that key.
    key_identifier: Option<String>,
}

/// Issue the current delivery again
#[utoipa::path(
    post,
    path = "/delivery/{id}/reissue",
    tag = "orders",
    request_body = ReissueRequest,
    params(("id" = String, Path, description = "A delivery's id"),
           ("Idempotency-Key" = Option<String>, Header, description = "A value of your own for this request",
            min_length = 1, max_length = 255, pattern = "^[!#-\\[\\]-~]+$")),
    responses((status = 200, description = "The order", body = OrderAnswer), WriteErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn reissue(
    req: HttpRequest,
    state: Shared,
    caller: Caller,
    id: Path<String>,
    body: Json<ReissueRequest>,
) -> Result<HttpResponse, ApiError> {
    let missing = || ApiError::not_found("there is no such delivery");
    let Some(Stream::Delivery(case, n)) = Stream::parse(&id) else { return Err(missing()) };
    let (key, body) = (key_of(&req)?, body.typed);
    let read = async { Ok(state.ledger.order(case).await?) };
    in_time(read).await?.filter(|order| u64::from(n) <= order.count("deliveries")).ok_or_else(missing)?;
    let mut command = Object::new().with("command", "delivery.reissue").with("order_id", case.to_string());
    command.set("delivery", i64::from(n));
    command.set("reason", body.reason);
    match (body.buyer_public_key, body.key_identifier) {
        (Some(pem), hint) => {
            command.set("key_fingerprint", fingerprint(&pem)?);
            let mut private = Object::new().with("buyer_public_key", pem);
            private.set_some("key_identifier", hint);
            command.set("private", private);
        }
        (None, Some(_)) => return Err(ApiError::invalid("key_identifier is the name of a buyer_public_key")),
        (None, None) => {}
    }
    let answer = change(&state, &caller, case, command, key).await?;
    // It goes on by itself; whoever waits for it asks for the order.
    drop(state.deliverer.run(case));
    Ok(answer)
}

/// Appends one command and answers with the order as the command left it: a request that is sent again gets the first answer, whatever
/// came since.
async fn change(
    state: &State,
    caller: &Caller,
    case: CaseId,
    command: Object,
    key: Option<String>,
) -> Result<HttpResponse, ApiError> {
    let appended = append(state, &caller.subject, command, key.as_deref()).await?;
    let last = appended.entries.last().map_or(0, |entry| entry.index);
    let read = async {
        let (row, deliveries, private) = state.ledger.order_at(case, last).await?.ok_or_else(no_order)?;
        may_see(state, caller, &row)?;
        Ok(Order::of(&row, &deliveries, private.as_ref()))
    };
    let order = in_time(read).await.map_err(recorded)?;
    let mut answer = HttpResponse::Ok();
    if appended.repeated {
        answer.insert_header((REPLAYED, "true"));
    }
    Ok(answer.json(OrderAnswer { ok: true, order }))
}

/// What failed after something was recorded must not sound as if nothing was.
fn recorded(e: ApiError) -> ApiError {
    match e.code {
        Code::StoreUnavailable => {
            ApiError::new(Code::OutcomeUnknown, "it was recorded, but the order cannot be shown now; GET it later")
        }
        _ => e,
    }
}

/// Members are those of settle, and only needed for an order that is not settled yet; without them the body may be left out.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FinalizeRequest {
    #[schema(min_length = 1, max_length = 1024)]
    ledger_proof_id: Option<String>,
    #[schema(min_length = 1, max_length = 4096)]
    ledger_proof_signature: Option<String>,
    #[schema(min_length = 1, max_length = 64)]
    ledger_proof_signer_kid: Option<String>,
}

impl FinalizeRequest {
    fn proof(&self) -> Result<Option<FinanceProof<'_>>, ApiError> {
        match (&self.ledger_proof_id, &self.ledger_proof_signature, &self.ledger_proof_signer_kid) {
            (Some(id), Some(signature), Some(kid)) => Ok(Some(FinanceProof { id, signature, kid })),
            (None, None, None) => Ok(None),
            _ => Err(ApiError::invalid(
                "ledger_proof_id, ledger_proof_signature and ledger_proof_signer_kid go together",
            )),
        }
    }
}

/// An order on its way to the buyer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FinalizeAnswer {
    #[schema(example = true)]
    ok: bool,
    order: Order,
    license: Licence,
    delivery: Option<FinalizedDelivery>,
    key_metadata: KeyMetadata,
}

/// A delivery with all that its buyer needs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FinalizedDelivery {
    #[serde(flatten)]
    delivery: Delivery,
    /// Where the buyer downloads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_delivery_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<EncryptionView>,
    /// The signed delivery proof (FORMAT.md 19), once it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    proof: Option<serde_json::Value>,
    /// Why it is not finished, if it is not: it failed and is tried again, or somebody else delivers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    unfinished: Option<String>,
}

/// How a delivery is encrypted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EncryptionView {
    algorithm: String,
    key_algorithm: String,
    /// The content key, wrapped: hex.
    encrypted_key: String,
    /// SHA-256 of the SubjectPublicKeyInfo of the key that it is wrapped for.
    key_fingerprint: String,
    /// Of a key pair of the marketplace's: the key that its private half is sealed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_source: Option<String>,
    /// The buyer's own name of that key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hint: Option<String>,
}

/// Whose key the delivery is for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyMetadata {
    mode: String,
    /// `buyer`, or `ephemeral`: a key pair of this delivery alone, whose private half the marketplace keeps sealed.
    source: &'static str,
    /// Of an ephemeral key: what its private half is sealed under.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_source: Option<String>,
    key_fingerprint: Option<String>,
}

impl KeyMetadata {
    pub(super) fn of(mode: &str, key_source: Option<String>, key_fingerprint: Option<String>) -> KeyMetadata {
        let source = if mode == "buyer-managed" { "buyer" } else { "ephemeral" };
        KeyMetadata { mode: mode.to_owned(), source, key_source, key_fingerprint }
    }
}

/// Steps that a finalisation takes at most, with some to spare for others who work on the same order.
const STEPS_MAX: usize = 8;

/// Settle if needed, issue the licence, encrypt for the buyer, prove, finalise
///
/// Each step is taken once, whoever asks how often: an order that is further along is answered as it is. It needs no
/// `Idempotency-Key`.
#[utoipa::path(
    post,
    path = "/order/{id}/finalize",
    tag = "orders",
    request_body = Option<FinalizeRequest>,
    params(("id" = String, Path, description = "32 hex characters")),
    responses((status = 200, description = "Order, licence and delivery", body = FinalizeAnswer), WriteErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn finalize(
    state: Shared,
    caller: Caller,
    id: Path<String>,
    body: Optional<FinalizeRequest>,
) -> Result<HttpResponse, ApiError> {
    let (case, body) = (order_id(&id)?, body.0);
    let proof = body.proof()?;
    let mut last = None;
    for _ in 0..STEPS_MAX {
        let read = async { Ok(state.ledger.order_with_deliveries(case).await?) };
        let (order, deliveries) = in_time(read).await?.ok_or_else(no_order)?;
        let Some(command) = next_command(case, &order, &deliveries, proof)? else {
            // A large artifact takes its time: then the answer is how far it is, and it goes on.
            let delivering = state.deliverer.run(case);
            let outcome = tokio::time::timeout(state.settings.request_timeout / 2, delivering).await;
            return finalized(&state, &caller, case, outcome.ok()).await;
        };
        // Somebody else may take the same step at the same time: then it is taken, and the next reading shows it.
        let seen = (order.count("revision"), deliveries.len());
        match append(&state, &caller.subject, command, None).await {
            Ok(_) => {}
            Err(e) if e.code == Code::IllegalTransition && last != Some(seen) => last = Some(seen),
            Err(e) => return Err(e),
        }
    }
    Err(ApiError::new(Code::IllegalTransition, "the order keeps changing; look at it and try again"))
}

async fn finalized(
    state: &State,
    caller: &Caller,
    case: CaseId,
    outcome: Option<Outcome>,
) -> Result<HttpResponse, ApiError> {
    let answer = async {
        let (row, deliveries, private) = state.ledger.order_with_private(case).await?.ok_or_else(no_order)?;
        may_see(state, caller, &row)?;
        let order = Order::of(&row, &deliveries, private.as_ref());
        let license = licence_of(state, case).await?;
        let delivery = match deliveries.last() {
            Some(delivery) => {
                let hint = state.deliverer.key_hint(case, &row, delivery).await?;
                Some(finalized_delivery(state, delivery, hint, outcome).await?)
            }
            None => None,
        };
        let encryption = delivery.as_ref().and_then(|d| d.encryption.as_ref());
        let encrypted_for = encryption.map(|e| e.key_fingerprint.clone()).or_else(|| order.key_fingerprint.clone());
        let key_source = encryption.and_then(|e| e.key_source.clone());
        let key_metadata = KeyMetadata::of(&order.delivery_mode, key_source, encrypted_for);
        Ok(FinalizeAnswer { ok: true, delivery, order, license, key_metadata })
    };
    Ok(HttpResponse::Ok().json(in_time(answer).await?))
}

async fn finalized_delivery(
    state: &State,
    row: &Row,
    key_hint: Option<String>,
    outcome: Option<Outcome>,
) -> Result<FinalizedDelivery, ApiError> {
    let delivery = Delivery::of(row);
    let chain = row.chain();
    let proof = match delivery.proof_id {
        Some(_) => delivery_proof(state, chain, row.count("proof_index")).await?,
        None => None,
    };
    let encryption = proof.as_ref().map(|proof| {
        let Encryption { algorithm, key_algorithm, encrypted_key, key_fingerprint, key_source } =
            proof.terms.encryption.clone();
        let (encrypted_key, key_fingerprint) = (to_hex(&encrypted_key), key_fingerprint.to_hex());
        EncryptionView { algorithm, key_algorithm, encrypted_key, key_fingerprint, key_source, key_hint }
    });
    let unfinished = match outcome {
        Some(Outcome::Done) => None,
        Some(Outcome::Elsewhere(why)) => Some(why),
        Some(Outcome::Failed(why)) => Some(format!("{why}; it is tried again")),
        None => Some("it is under way".to_owned()),
    };
    let encrypted_delivery_url = proof.as_ref().map(|_| format!("/delivery/{}/artifact", delivery.delivery_id));
    let proof = proof.and_then(|proof| serde_json::from_str(&proof.to_text()).ok());
    Ok(FinalizedDelivery { delivery, encrypted_delivery_url, encryption, proof, unfinished })
}
