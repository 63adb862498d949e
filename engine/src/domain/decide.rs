//! Deciders: from a state and a command to events, or to a refusal. Pure: no clock, no store, no randomness.

use super::case::{Case, Delivery, ListingClaim, Order, OrderStatus, document, license_id, proof_id};
use super::command::{Action, DeliveryStep, ExpectedRevision};
use super::money::Money;
#[cfg(feature = "write")]
use super::sku::Listing;
use super::sku::Sku;
use super::{Event, Illegal, Occurrence};
use crate::document::SignedDocument;
use crate::finance::FinanceSignature;
use crate::json::{Object, Value};
use crate::manifest::Manifest;
use crate::registry::{Purpose, Registry};
use crate::stream::{CaseId, Stream};

/// Why a command is refused. Nothing was written; the same command may succeed later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable code, COMMANDS.md.
    pub code: RefusalCode,
    /// A sentence for the caller.
    pub message: String,
}

/// Stable codes of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the codes of COMMANDS.md, name by name")]
pub enum RefusalCode {
    InvalidCommand,
    OrderNotFound,
    SkuNotFound,
    DeliveryNotFound,
    RevisionConflict,
    SkuWithdrawn,
    AmountInvalid,
    IllegalTransition,
    IdempotencyMismatch,
    BodyTooLarge,
    LedgerProofInvalid,
    KeyRefused,
    InvalidManifest,
    InvalidSignature,
    ManifestMismatch,
}

impl RefusalCode {
    /// The code's text.
    pub fn as_str(self) -> &'static str {
        match self {
            RefusalCode::InvalidCommand => "INVALID_COMMAND",
            RefusalCode::OrderNotFound => "ORDER_NOT_FOUND",
            RefusalCode::SkuNotFound => "SKU_NOT_FOUND",
            RefusalCode::DeliveryNotFound => "DELIVERY_NOT_FOUND",
            RefusalCode::RevisionConflict => "REVISION_CONFLICT",
            RefusalCode::SkuWithdrawn => "SKU_WITHDRAWN",
            RefusalCode::AmountInvalid => "AMOUNT_INVALID",
            RefusalCode::IllegalTransition => "ILLEGAL_TRANSITION",
            RefusalCode::IdempotencyMismatch => "IDEMPOTENCY_MISMATCH",
            RefusalCode::BodyTooLarge => "BODY_TOO_LARGE",
            RefusalCode::LedgerProofInvalid => "LEDGER_PROOF_INVALID",
            RefusalCode::KeyRefused => "KEY_REFUSED",
            RefusalCode::InvalidManifest => "INVALID_MANIFEST",
            RefusalCode::InvalidSignature => "INVALID_SIGNATURE",
            RefusalCode::ManifestMismatch => "MANIFEST_MISMATCH",
        }
    }
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

impl From<Illegal> for Refusal {
    fn from(e: Illegal) -> Self {
        Refusal::new(RefusalCode::IllegalTransition, e.0)
    }
}

/// Refuses unless a stream is at the revision that the caller expects.
pub(crate) fn check_revision(expected: ExpectedRevision, stream: Stream, revision: u64) -> Result<(), Refusal> {
    if expected.allows(revision) {
        return Ok(());
    }
    let message = format!("stream {stream} is at revision {revision}; expected {expected:?}");
    Err(Refusal::new(RefusalCode::RevisionConflict, message))
}

/// Refuses a manifest that says something else than what is to be listed. What is `None` is not compared.
pub fn check_manifest(
    manifest: &Manifest,
    id: Option<&str>,
    title: Option<&str>,
    author_id: Option<&str>,
    price: Option<&Money>,
) -> Result<(), Refusal> {
    let differs = [
        ("id", id.is_some_and(|id| manifest.id != id)),
        ("title", title.is_some_and(|title| manifest.title != title)),
        ("author/id", author_id.is_some_and(|author| manifest.author.id != author)),
        ("metadata/price", manifest.price.as_ref().zip(price).is_some_and(|(named, price)| named != price)),
    ];
    match differs.into_iter().find(|(_, differs)| *differs) {
        Some((member, _)) => {
            let message = format!("the manifest's {member} is not what is to be listed");
            Err(Refusal::new(RefusalCode::ManifestMismatch, message))
        }
        None => Ok(()),
    }
}

/// Refuses a manifest of several artifacts: what cannot be delivered is not sold.
pub fn check_deliverable(manifest: &Manifest) -> Result<(), Refusal> {
    match manifest.artifacts.len() {
        1 => Ok(()),
        n => {
            let message = format!("the manifest names {n} artifacts; one can be delivered");
            Err(Refusal::new(RefusalCode::InvalidManifest, message))
        }
    }
}

/// Decides a command about a SKU.
pub fn decide_sku(sku: Option<&Sku>, action: &Action, expected: ExpectedRevision) -> Result<Decision, Refusal> {
    let (event_type, payload, sku_id) = match action {
        Action::ListSku { sku_id, title, price, author_id, manifest } => {
            let mut payload = Object::new().with("sku_id", sku_id.as_str()).with("title", title.as_str());
            payload.set("price", price.to_value());
            payload.set_some("author_id", author_id.as_deref());
            if let Some(text) = manifest {
                let invalid = |e| Refusal::new(RefusalCode::InvalidManifest, format!("the manifest is none: {e}"));
                let manifest = Manifest::parse(text).map_err(invalid)?;
                check_manifest(&manifest, Some(sku_id), Some(title), author_id.as_deref(), Some(price))?;
                check_deliverable(&manifest)?;
                payload.set("author_id", manifest.author.id);
                payload.set("manifest", document(text));
            }
            ("sku.listed", payload, sku_id)
        }
        Action::WithdrawSku { sku_id, reason } => {
            if sku.is_none() {
                return Err(sku_not_found(sku_id));
            }
            let mut payload = Object::new().with("sku_id", sku_id.as_str());
            payload.set_some("reason", reason.as_deref());
            ("sku.withdrawn", payload, sku_id)
        }
        _ => return Err(Refusal::new(RefusalCode::InvalidCommand, "not a command about a SKU")),
    };
    let stream = Stream::Sku(CaseId::of_sku(sku_id));
    let revision = sku.map_or(0, |s| s.revision);
    check_revision(expected, stream, revision)?;
    let event = Event { stream, event_type, payload };
    let signed = Sku::apply(&mut sku.cloned(), &trial(&event, revision + 1))?.signed;
    Ok(Decision { events: vec![event], signed, claim: None })
}

#[cfg(feature = "write")]
fn knows_the_kernel(registry: &Registry) -> bool {
    registry.records().iter().any(|r| r.key.purpose == Purpose::Kernel)
}

/// Refuses to list a SKU without a manifest, once the registry has had a key of the Kernel.
#[cfg(feature = "write")]
pub(crate) fn check_manifest_needed(registry: &Registry) -> Result<(), Refusal> {
    if !knows_the_kernel(registry) {
        return Ok(());
    }
    let message = "the key registry has the Kernel's key: a SKU is listed with its signed manifest";
    Err(Refusal::new(RefusalCode::InvalidManifest, message))
}

/// Refuses to sell what nobody vouches for any more. `chain` is the SKU's: its signature was judged where it was listed, and is doubtful
/// if the key was in other hands by then. Without a key of the Kernel nothing is asked.
#[cfg(feature = "write")]
pub(crate) fn check_vouched_for(registry: &Registry, sku: &Sku, chain: u32) -> Result<(), Refusal> {
    if !sku.listed || !knows_the_kernel(registry) {
        return Ok(());
    }
    let Some(manifest) = &sku.manifest else {
        let message = "the SKU was listed without a manifest; it must be withdrawn and listed with one";
        return Err(Refusal::new(RefusalCode::InvalidManifest, message));
    };
    check_listed_by(registry, &manifest.signer_kid, chain, sku.listed_index)
}

/// Refuses a listing, entry `index` of `chain`, whose manifest was signed by no key of the Kernel, or by one that was in other hands by then.
pub fn check_listed_by(registry: &Registry, kid: &str, chain: u32, index: u64) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(RefusalCode::InvalidManifest, message));
    let record = registry.records().iter().find(|r| r.key.kid == *kid && r.key.purpose == Purpose::Kernel);
    let Some(record) = record else { return refuse(format!("the manifest's key {kid} is not in the registry")) };
    let since = record.retired.as_ref().and_then(|r| r.compromised_since.as_ref()?.get(chain as usize));
    match since {
        Some(since) if index >= *since => refuse(format!(
            "the manifest's key {kid} was in other hands when the SKU was listed; list it again with a new signature"
        )),
        _ => Ok(()),
    }
}

fn sku_not_found(sku_id: &str) -> Refusal {
    let sku_id: String = sku_id.chars().take(64).collect();
    Refusal::new(RefusalCode::SkuNotFound, format!("no SKU {sku_id:?} was ever listed"))
}

fn trial(event: &Event, revision: u64) -> Occurrence<'_> {
    Occurrence {
        stream: event.stream,
        revision,
        event_type: event.event_type,
        payload: &event.payload,
        index: 0,
        recorded_at_us: 0,
        has_private: false,
    }
}

/// Decides `order.create`. `buyer` is the pseudonym; the price comes from the SKU and from nowhere else.
pub fn decide_create(
    case: &Case,
    sku: Option<&Sku>,
    buyer: &str,
    action: &Action,
    expected: ExpectedRevision,
) -> Result<Event, Refusal> {
    let Action::CreateOrder { sku_id, delivery_mode, key_fingerprint, .. } = action else {
        return Err(Refusal::new(RefusalCode::InvalidCommand, "not order.create"));
    };
    let Some(sku) = sku else { return Err(sku_not_found(sku_id)) };
    let stream = Stream::Order(case.id);
    check_revision(expected, stream, case.order.as_ref().map_or(0, |o| o.revision))?;
    check_fingerprint(delivery_mode, key_fingerprint.as_deref())?;
    if !sku.listed {
        return Err(Refusal::new(RefusalCode::SkuWithdrawn, "the SKU is not listed now"));
    }
    let mut payload = Object::new()
        .with("order_id", case.id.to_string())
        .with("sku_id", sku_id.as_str())
        // Revisions are far below 2^53.
        .with("sku_revision", sku.revision as i64)
        .with("buyer", buyer)
        .with("total", sku.price.to_value())
        .with("delivery_mode", delivery_mode.as_str());
    payload.set_some("key_fingerprint", key_fingerprint.as_deref());
    let event = Event { stream, event_type: "order.created", payload };
    case.clone().apply(&trial(&event, 1))?;
    Ok(event)
}

fn check_fingerprint(mode: &str, key_fingerprint: Option<&str>) -> Result<(), Refusal> {
    let message = match (mode, key_fingerprint) {
        ("buyer-managed", None) => "buyer-managed delivery needs key_fingerprint",
        ("marketplace-managed", Some(_)) => "key_fingerprint is for buyer-managed delivery only",
        _ => return Ok(()),
    };
    Err(Refusal::new(RefusalCode::InvalidCommand, message))
}

/// What a command comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// One event, or two for a reissue.
    pub events: Vec<Event>,
    /// A signed document among them. Whether its signature counts, the registry tells.
    pub signed: Option<SignedDocument>,
    /// What they say of a SKU's listing. Whether that is so, its stream tells.
    pub claim: Option<ListingClaim>,
}

/// Refuses a claim that no listing of the SKU bears out.
#[cfg(feature = "write")]
pub(crate) fn check_claim(claim: &ListingClaim, listings: &[Listing]) -> Result<(), Refusal> {
    let said = listings.iter().find(|l| l.revision == claim.revision).map_or(&[][..], |l| &l.said);
    if said.contains(&claim.said) {
        return Ok(());
    }
    Err(Refusal::new(RefusalCode::ManifestMismatch, claim.refuted()))
}

/// Decides every command about an existing order.
pub fn decide_case(case: &Case, action: &Action, expected: ExpectedRevision) -> Result<Decision, Refusal> {
    let Some(order) = &case.order else {
        return Err(Refusal::new(RefusalCode::OrderNotFound, format!("no order {}", case.id)));
    };
    let events = match action {
        Action::RequestDelivery { key_fingerprint } => {
            let next = case.deliveries.len() as u32 + 1;
            check_revision(expected, Stream::Delivery(case.id, next), 0)?;
            vec![request_event(case, order, next, key_fingerprint.as_deref(), None)?]
        }
        Action::Deliver { delivery, step } => decide_step(case, order, *delivery, step, expected)?,
        _ => {
            let stream = Stream::Order(case.id);
            check_revision(expected, stream, order.revision)?;
            let (event_type, payload) = order_event(case, order, action)?;
            vec![Event { stream, event_type, payload }]
        }
    };
    let (mut tried, mut signed, mut claim) = (case.clone(), None, None);
    for event in &events {
        let applied = tried.apply(&trial(event, 0))?;
        (signed, claim) = (applied.signed.or(signed), applied.claim.or(claim));
    }
    Ok(Decision { events, signed, claim })
}

fn reason(text: &str) -> Object {
    Object::new().with("reason", text)
}

fn order_event(case: &Case, order: &Order, action: &Action) -> Result<(&'static str, Object), Refusal> {
    Ok(match action {
        Action::CapturePayment { provider, payment_id, total } => {
            let payload = Object::new()
                .with("provider", provider.as_str())
                .with("payment_id", payment_id.as_str())
                .with("total", total.to_value());
            (if *total == order.total { "payment.captured" } else { "payment.mismatch" }, payload)
        }
        Action::FailPayment { provider, payment_id, reason: why } => {
            let payload = reason(why).with("provider", provider.as_str()).with("payment_id", payment_id.as_str());
            ("payment.failed", payload)
        }
        Action::Settle { ledger_proof_id, finance_proof, finance_signature } => {
            let mut payload = Object::new().with("ledger_proof_id", ledger_proof_id.as_str());
            payload.set_some("finance_proof", finance_proof.as_deref().map(document));
            payload.set_some("finance_signature", finance_signature.as_ref().map(FinanceSignature::to_value));
            ("order.settled", payload)
        }
        Action::IssueLicense { expires_at, licence, .. } => {
            let other = licence.as_ref().is_some_and(|l| !l.terms.is_for(order));
            if other && order.status == OrderStatus::Settled {
                // It was signed for what another request asked for under this id.
                let message = "the order was created by another request meanwhile; try again";
                return Err(Refusal::new(RefusalCode::RevisionConflict, message));
            }
            let mut payload = Object::new().with("license_id", license_id(case.id));
            payload.set_some("expires_at", *expires_at);
            payload.set_some("license", licence.as_ref().map(|l| document(&l.to_text())));
            ("license.issued", payload)
        }
        Action::Finalize => ("order.finalized", Object::new().with("delivery", case.deliveries.len() as i64)),
        Action::Cancel { reason: why } => ("order.cancelled", reason(why)),
        Action::Refund { refund, reason: why } => {
            use OrderStatus::{Finalized, Licensed, Paid, Settled};
            let refundable = matches!(order.status, Paid | Settled | Licensed | Finalized);
            let left = order.total.amount - order.refunded;
            if refundable && (!refund.same_unit(&order.total) || refund.amount > left) {
                let message = format!("a refund of {refund} for an order of {} of which {left} is left", order.total);
                return Err(Refusal::new(RefusalCode::AmountInvalid, message));
            }
            ("order.refunded", reason(why).with("refund", refund.to_value()))
        }
        Action::EraseSubject { reason: why } => {
            let entries: Vec<Value> = case.private.iter().map(|i| Value::Int(*i as i64)).collect();
            ("subject.erased", reason(why).with("entries", entries))
        }
        _ => return Err(Refusal::new(RefusalCode::InvalidCommand, "not a command about an order")),
    })
}

fn decide_step(
    case: &Case,
    order: &Order,
    named: Option<u64>,
    step: &DeliveryStep,
    expected: ExpectedRevision,
) -> Result<Vec<Event>, Refusal> {
    let Some((n, delivery)) = case.current_delivery() else {
        return Err(Refusal::new(RefusalCode::DeliveryNotFound, "the order has no delivery yet"));
    };
    let stream = Stream::Delivery(case.id, n);
    check_revision(expected, stream, delivery.revision)?;
    if let Some(named) = named.filter(|named| *named != u64::from(n)) {
        let message = format!("delivery {named} is not the current one, which is {n}");
        return Err(Refusal::new(RefusalCode::IllegalTransition, message));
    }
    let event = |event_type, payload| vec![Event { stream, event_type, payload }];
    Ok(match step {
        DeliveryStep::Encrypt { algorithm, artifact_sha256, ciphertext_sha256 } => event(
            "delivery.encrypted",
            Object::new()
                .with("algorithm", algorithm.as_str())
                .with("artifact_sha256", artifact_sha256.as_str())
                .with("ciphertext_sha256", ciphertext_sha256.as_str()),
        ),
        DeliveryStep::Ready { proof, delivery_proof } => {
            let mut payload = Object::new().with("proof_id", proof_id(case.id, n));
            payload.set_some("proof", proof.as_deref().map(document));
            payload.set_some("delivery_proof", delivery_proof.as_ref().map(|p| document(&p.to_text())));
            event("delivery.ready", payload)
        }
        DeliveryStep::Download => event("delivery.downloaded", Object::new()),
        DeliveryStep::Fail { reason: why } => event("delivery.failed", reason(why)),
        DeliveryStep::Reissue { reason: why, key_fingerprint } => {
            let next = n + 1;
            let mut events = event("delivery.reissued", reason(why).with("next", i64::from(next)));
            events.push(request_event(case, order, next, key_fingerprint.as_deref(), Some((n, delivery)))?);
            events
        }
    })
}

fn request_event(
    case: &Case,
    order: &Order,
    n: u32,
    key_fingerprint: Option<&str>,
    reissue_of: Option<(u32, &Delivery)>,
) -> Result<Event, Refusal> {
    // A key that a delivery was issued again for stays the buyer's: the one before it may be in other hands.
    let before = reissue_of.and_then(|(_, delivery)| delivery.key_fingerprint.as_deref());
    let key_fingerprint = key_fingerprint.or(before).or(order.key_fingerprint.as_deref());
    check_fingerprint(&order.delivery_mode, key_fingerprint)?;
    let stream = Stream::Delivery(case.id, n);
    let mut payload = Object::new()
        .with("delivery_id", stream.to_string())
        .with("order_id", case.id.to_string())
        .with("n", i64::from(n))
        .with("mode", order.delivery_mode.as_str());
    payload.set_some("key_fingerprint", key_fingerprint);
    payload.set_some("reissue_of", reissue_of.map(|(old, _)| i64::from(old)));
    Ok(Event { stream, event_type: "delivery.requested", payload })
}
