//! A case: an order with its deliveries, folded in chain order. The transition rules of FORMAT.md 9.

use serde::{Deserialize, Serialize};

use super::fields::{Fields, count, hex64, text, text1};
use super::money::Money;
use super::sku::Said;
use super::{Illegal, Occurrence, allowed};
use crate::delivery_proof::DeliveryProof;
use crate::document::SignedDocument;
use crate::finance::FinanceSignature;
use crate::json::{Object, Value};
use crate::licence::Licence;
use crate::stream::{CaseId, Stream};

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OrderStatus {
    /// Created, not paid.
    Pending,
    /// The payment was declined; it may be tried again.
    PaymentFailed,
    /// Paid in full.
    Paid,
    /// Matched to a finance proof.
    Settled,
    /// The licence is issued; deliveries may start.
    Licensed,
    /// Delivered.
    Finalized,
    /// Given up before payment.
    Cancelled,
    /// All of it refunded.
    Refunded,
}

impl OrderStatus {
    /// The word in projections and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            OrderStatus::Pending => "pending",
            OrderStatus::PaymentFailed => "payment_failed",
            OrderStatus::Paid => "paid",
            OrderStatus::Settled => "settled",
            OrderStatus::Licensed => "licensed",
            OrderStatus::Finalized => "finalized",
            OrderStatus::Cancelled => "cancelled",
            OrderStatus::Refunded => "refunded",
        }
    }
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeliveryStatus {
    /// Asked for.
    Requested,
    /// Encrypted for the buyer.
    Encrypted,
    /// Proven and ready to download.
    Ready,
    /// Downloaded at least once.
    Downloaded,
    /// Failed; encryption may be tried again.
    Failed,
    /// Replaced by the next delivery.
    Reissued,
}

impl DeliveryStatus {
    /// The word in projections and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryStatus::Requested => "requested",
            DeliveryStatus::Encrypted => "encrypted",
            DeliveryStatus::Ready => "ready",
            DeliveryStatus::Downloaded => "downloaded",
            DeliveryStatus::Failed => "failed",
            DeliveryStatus::Reissued => "reissued",
        }
    }
}

/// State of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Index of its first entry.
    pub index: u64,
    /// Where it stands.
    pub status: OrderStatus,
    /// What was bought.
    pub sku_id: String,
    /// Revision of the `sku.listed` entry that it was bought by.
    pub sku_revision: u64,
    /// The buyer's pseudonym.
    pub buyer: String,
    /// The price at creation.
    pub total: Money,
    /// Refunded so far, in the total's unit.
    pub refunded: i64,
    /// `buyer-managed` or `marketplace-managed`.
    pub delivery_mode: String,
    /// SHA-256 of the buyer's public key, for buyer-managed orders.
    pub key_fingerprint: Option<String>,
    /// The finance proof it was settled against.
    pub ledger_proof_id: Option<String>,
    /// Index of the entry that issued the licence.
    pub license_index: Option<u64>,
    /// Last revision of the order's stream.
    pub revision: u64,
    /// Time of the first entry.
    pub created_at_us: i64,
    /// Time of the last entry of the order's stream.
    pub updated_at_us: i64,
}

/// State of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Index of its first entry.
    pub index: u64,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// The order's delivery mode.
    pub mode: String,
    /// SHA-256 of the buyer's public key, for buyer-managed deliveries.
    pub key_fingerprint: Option<String>,
    /// SHA-256 of the artifact.
    pub artifact_sha256: Option<String>,
    /// SHA-256 of what the buyer receives.
    pub ciphertext_sha256: Option<String>,
    /// The delivery proof's id.
    pub proof_id: Option<String>,
    /// Index of the entry with the delivery proof.
    pub proof_index: Option<u64>,
    /// How often it was downloaded.
    pub downloads: i64,
    /// Last revision of the delivery's stream.
    pub revision: u64,
    /// Time of the last entry of the delivery's stream.
    pub updated_at_us: i64,
}

/// State of an order and its deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Its id.
    pub id: CaseId,
    /// The order, once created.
    pub order: Option<Order>,
    /// Deliveries 1, 2, …; the last is the current one.
    pub deliveries: Vec<Delivery>,
    /// Indexes of entries with a private document.
    pub private: Vec<u64>,
    /// A `delivery.reissued` waits for its `delivery.requested`.
    reissuing: bool,
}

/// What an event touched, for projections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Touched {
    /// The order's row.
    Order,
    /// The row of delivery `n`.
    Delivery(u32),
    /// A new licence, with the index of its entry.
    Licence(u64),
    /// A new proof of delivery `n`, with the index of its entry.
    Proof(u32, u64),
}

/// What a case claims that a listing says: checked against the SKU's stream, on whichever chain it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListingClaim {
    /// The SKU's id, which gives its stream.
    pub sku_id: String,
    /// Revision of the `sku.listed` entry.
    pub revision: u64,
    /// What it must say.
    pub said: Said,
}

impl ListingClaim {
    /// What is wrong where the listing does not say it.
    pub fn refuted(&self) -> String {
        let listing = format!("revision {} of {}", self.revision, Stream::Sku(CaseId::of_sku(&self.sku_id)));
        match self.said {
            Said::Price(_) => format!("the order's total is not the price that {listing} lists"),
            Said::Artifact { .. } => {
                format!("the delivery proof is of another manifest or artifact than {listing}, which the order cites")
            }
        }
    }
}

/// Effects of an applied event.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Applied {
    /// Rows to write again.
    pub touched: Vec<Touched>,
    /// Present for `order.created`, and for `delivery.ready` with a signed proof.
    pub claim: Option<ListingClaim>,
    /// A document of the event that is signed by itself: judged by the registry, which is no part of a case.
    pub signed: Option<SignedDocument>,
}

/// The id of an order's licence.
pub fn license_id(case: CaseId) -> String {
    format!("license-{case}")
}

/// The id of the proof of delivery `n`.
pub fn proof_id(case: CaseId, n: u32) -> String {
    format!("proof-{case}-{n}")
}

/// `{"sha256", "text"}`: somebody else's document, kept as received.
pub fn document(text: &str) -> Value {
    let sha256 = crate::hash::sha256(&[text.as_bytes()]).to_hex();
    Object::new().with("sha256", sha256).with("text", text).into()
}

/// Digest and text of a document as [`document`] makes it.
pub(super) fn read_document(value: &Value) -> Option<(&str, &str)> {
    let member = |name| value.as_object()?.value(name)?.as_str();
    let (sha256, text) = (member("sha256")?, member("text")?);
    (*value == document(text)).then_some((sha256, text))
}

/// The licence of a `license.issued` entry, if it holds a signed one.
pub fn read_licence(value: &Value) -> Option<Licence> {
    Licence::parse_canonical(read_document(value)?.1)
}

/// The proof of a `delivery.ready` entry, if it holds a signed one.
pub fn read_delivery_proof(value: &Value) -> Option<DeliveryProof> {
    DeliveryProof::parse_canonical(read_document(value)?.1)
}

fn read_mode(value: &Value) -> Option<String> {
    value.as_str().filter(|m| matches!(*m, "buyer-managed" | "marketplace-managed")).map(str::to_owned)
}

fn read_indexes(value: &Value) -> Option<Vec<u64>> {
    value.as_array()?.iter().map(count).collect()
}

impl Case {
    /// A case of which nothing is known yet.
    pub fn new(id: CaseId) -> Case {
        Case { id, order: None, deliveries: Vec::new(), private: Vec::new(), reissuing: false }
    }

    /// Number and state of the current delivery.
    pub fn current_delivery(&self) -> Option<(u32, &Delivery)> {
        self.deliveries.last().map(|d| (self.deliveries.len() as u32, d))
    }

    /// Applies the next event of the case. On `Err` nothing has changed.
    pub fn apply(&mut self, event: &Occurrence<'_>) -> Result<Applied, Illegal> {
        allowed(event.stream.case() == Some(self.id), || "another case's stream".into())?;
        let is_request = event.event_type == "delivery.requested";
        allowed(!self.reissuing || is_request, || "a reissued delivery must be requested again first".into())?;
        let applied = match event.stream {
            Stream::Order(_) if event.event_type == "order.created" => self.create(event)?,
            Stream::Order(_) => self.apply_order(event)?,
            Stream::Delivery(_, n) if is_request => self.request(event, n)?,
            Stream::Delivery(_, n) => self.apply_delivery(event, n)?,
            _ => return Err(Illegal("not a stream of a case".into())),
        };
        if event.has_private {
            self.private.push(event.index);
        }
        Ok(applied)
    }

    fn create(&mut self, event: &Occurrence<'_>) -> Result<Applied, Illegal> {
        let mut f = Fields::new(event.payload);
        let order_id = f.required("order_id", text1);
        let sku_id = f.required("sku_id", text1);
        let sku_revision = f.required("sku_revision", |v| count(v).filter(|n| *n > 0));
        let buyer = f.required("buyer", text1);
        let total = f.required("total", Money::read);
        let delivery_mode = f.required("delivery_mode", read_mode);
        let key_fingerprint = f.optional("key_fingerprint", hex64);
        f.finish()?;
        allowed(self.order.is_none(), || "the order exists already".into())?;
        allowed(order_id == self.id.to_string(), || "order_id does not belong to the stream".into())?;
        check_key(&delivery_mode, key_fingerprint.as_deref())?;
        let said = Said::Price(total.clone());
        let claim = ListingClaim { sku_id: sku_id.clone(), revision: sku_revision, said };
        self.order = Some(Order {
            index: event.index,
            status: OrderStatus::Pending,
            sku_id,
            sku_revision,
            buyer,
            total,
            refunded: 0,
            delivery_mode,
            key_fingerprint,
            ledger_proof_id: None,
            license_index: None,
            revision: event.revision,
            created_at_us: event.recorded_at_us,
            updated_at_us: event.recorded_at_us,
        });
        Ok(Applied { touched: vec![Touched::Order], claim: Some(claim), signed: None })
    }

    fn apply_order(&mut self, event: &Occurrence<'_>) -> Result<Applied, Illegal> {
        use OrderStatus::{Cancelled, Finalized, Licensed, Paid, PaymentFailed, Pending, Refunded, Settled};
        let delivery = self.deliveries.last().map(|d| (self.deliveries.len() as u64, d.status));
        let Some(order) = self.order.as_mut() else { return Err(Illegal("there is no such order".into())) };
        let mut f = Fields::new(event.payload);
        let was = order.status;
        let from = |ok: &[OrderStatus]| {
            allowed(ok.contains(&was), || {
                format!("{} is not allowed while the order is {}", event.event_type, was.as_str())
            })
        };
        let (mut touched, mut signed) = (vec![Touched::Order], None);
        match event.event_type {
            "payment.captured" => {
                let (_, total) = read_payment(&mut f);
                f.finish()?;
                from(&[Pending, PaymentFailed])?;
                allowed(total == order.total, || format!("{total} was paid for an order of {}", order.total))?;
                order.status = Paid;
            }
            "payment.mismatch" => {
                let (_, total) = read_payment(&mut f);
                f.finish()?;
                from(&[Pending, PaymentFailed])?;
                allowed(total != order.total, || "the payment equals the order's total".into())?;
            }
            "payment.failed" => {
                f.required("provider", text1);
                f.required("payment_id", text1);
                f.required("reason", text);
                f.finish()?;
                from(&[Pending, PaymentFailed])?;
                order.status = PaymentFailed;
            }
            "order.settled" => {
                let proof_id = f.required("ledger_proof_id", text1);
                f.optional("finance_proof", read_document);
                let finance = f.optional("finance_signature", FinanceSignature::read);
                f.finish()?;
                from(&[Paid])?;
                signed = finance.map(|f| f.document(self.id, &proof_id, &order.total));
                order.status = Settled;
                order.ledger_proof_id = Some(proof_id);
            }
            "license.issued" => {
                let id = f.required("license_id", text1);
                let expires_at = f.optional("expires_at", Value::as_int);
                let licence = f.optional("license", read_licence);
                f.finish()?;
                from(&[Settled])?;
                allowed(id == license_id(self.id), || "license_id is not the order's".into())?;
                if let Some(licence) = &licence {
                    let terms = &licence.terms;
                    let own = terms.order_id == self.id && terms.is_for(order) && terms.expires_at_us == expires_at;
                    allowed(own, || "the licence is of another order, buyer, SKU or expiry".into())?;
                }
                signed = licence.map(|l| l.document());
                order.status = Licensed;
                order.license_index = Some(event.index);
                touched.push(Touched::Licence(event.index));
            }
            "order.finalized" => {
                let n = f.required("delivery", count);
                f.finish()?;
                from(&[Licensed])?;
                allowed(delivery == Some((n, DeliveryStatus::Ready)), || "the current delivery is not ready".into())?;
                order.status = Finalized;
            }
            "order.cancelled" => {
                f.required("reason", text);
                f.finish()?;
                from(&[Pending, PaymentFailed])?;
                order.status = Cancelled;
            }
            "order.refunded" => {
                let refund = f.required("refund", Money::read);
                f.required("reason", text);
                f.finish()?;
                from(&[Paid, Settled, Licensed, Finalized])?;
                allowed(refund.same_unit(&order.total), || "the refund is in another currency or scale".into())?;
                let left = order.total.amount - order.refunded;
                allowed(refund.amount <= left, || format!("a refund of {} when {left} is left", refund.amount))?;
                order.refunded += refund.amount;
                if order.refunded == order.total.amount {
                    order.status = Refunded;
                }
            }
            "subject.erased" => {
                f.required("reason", text);
                let entries = f.required("entries", read_indexes);
                f.finish()?;
                let ascending = entries.windows(2).all(|w| w[0] < w[1]);
                let known = entries.iter().all(|i| self.private.contains(i));
                allowed(ascending && known, || "entries are not the case's private ones in ascending order".into())?;
            }
            other => return Err(Illegal(format!("{other} is no event of an order"))),
        }
        order.revision = event.revision;
        order.updated_at_us = event.recorded_at_us;
        Ok(Applied { touched, claim: None, signed })
    }

    fn request(&mut self, event: &Occurrence<'_>, n: u32) -> Result<Applied, Illegal> {
        let mut f = Fields::new(event.payload);
        let delivery_id = f.required("delivery_id", text1);
        let order_id = f.required("order_id", text1);
        let number = f.required("n", count);
        let mode = f.required("mode", read_mode);
        let key_fingerprint = f.optional("key_fingerprint", hex64);
        let reissue_of = f.optional("reissue_of", count);
        f.finish()?;
        let Some(order) = &self.order else { return Err(Illegal("there is no such order".into())) };
        let ids = delivery_id == event.stream.to_string() && order_id == self.id.to_string() && number == u64::from(n);
        allowed(ids, || "delivery_id, order_id or n does not belong to the stream".into())?;
        allowed(n as usize == self.deliveries.len() + 1, || "not the next delivery".into())?;
        allowed(mode == order.delivery_mode, || "another delivery mode than the order's".into())?;
        check_key(&mode, key_fingerprint.as_deref())?;
        match reissue_of {
            None => {
                allowed(!self.reissuing, || "reissue_of is missing".into())?;
                let first = order.status == OrderStatus::Licensed && n == 1;
                allowed(first, || "delivery.requested is allowed once, while the order is licensed".into())?;
            }
            Some(old) => {
                let follows = self.reissuing && old + 1 == u64::from(n);
                allowed(follows, || "reissue_of does not follow a delivery.reissued".into())?;
            }
        }
        self.reissuing = false;
        self.deliveries.push(Delivery {
            index: event.index,
            status: DeliveryStatus::Requested,
            mode,
            key_fingerprint,
            artifact_sha256: None,
            ciphertext_sha256: None,
            proof_id: None,
            proof_index: None,
            downloads: 0,
            revision: event.revision,
            updated_at_us: event.recorded_at_us,
        });
        Ok(Applied { touched: vec![Touched::Delivery(n), Touched::Order], ..Applied::default() })
    }

    fn apply_delivery(&mut self, event: &Occurrence<'_>, n: u32) -> Result<Applied, Illegal> {
        use DeliveryStatus::{Downloaded, Encrypted, Failed, Ready, Reissued, Requested};
        let current = self.deliveries.len() == n as usize;
        let Some(order) = &self.order else { return Err(Illegal("there is no such order".into())) };
        let Some((delivery, before)) = self.deliveries.split_last_mut().filter(|_| current) else {
            return Err(Illegal("not the current delivery".into()));
        };
        let mut f = Fields::new(event.payload);
        let was = delivery.status;
        let from = |ok: &[DeliveryStatus]| {
            allowed(ok.contains(&was), || {
                format!("{} is not allowed while the delivery is {}", event.event_type, was.as_str())
            })
        };
        let order_in = |ok: &[OrderStatus]| {
            allowed(ok.contains(&order.status), || {
                format!("{} is not allowed while the order is {}", event.event_type, order.status.as_str())
            })
        };
        let open = [OrderStatus::Licensed, OrderStatus::Finalized];
        let (mut touched, mut claim, mut signed) = (vec![Touched::Delivery(n)], None, None);
        match event.event_type {
            "delivery.encrypted" => {
                f.required("algorithm", text1);
                let artifact = f.required("artifact_sha256", hex64);
                let ciphertext = f.required("ciphertext_sha256", hex64);
                f.finish()?;
                from(&[Requested, Failed])?;
                order_in(&open)?;
                delivery.status = Encrypted;
                delivery.artifact_sha256 = Some(artifact);
                delivery.ciphertext_sha256 = Some(ciphertext);
            }
            "delivery.ready" => {
                let id = f.required("proof_id", text1);
                f.optional("proof", read_document);
                let proof = f.optional("delivery_proof", read_delivery_proof);
                f.finish()?;
                from(&[Encrypted])?;
                order_in(&open)?;
                allowed(id == proof_id(self.id, n), || "proof_id is not the delivery's".into())?;
                if let Some(proof) = &proof {
                    let terms = &proof.terms;
                    let own = (terms.order_id, terms.n) == (self.id, n) && terms.is_of(order, delivery, before);
                    allowed(own, || "the delivery proof is of another order, delivery or file".into())?;
                    claim = Some(ListingClaim {
                        sku_id: order.sku_id.clone(),
                        revision: order.sku_revision,
                        said: terms.said_of_listing(),
                    });
                }
                signed = proof.map(|p| p.document());
                delivery.status = Ready;
                delivery.proof_id = Some(id);
                delivery.proof_index = Some(event.index);
                touched.push(Touched::Proof(n, event.index));
            }
            "delivery.downloaded" => {
                f.finish()?;
                from(&[Ready, Downloaded])?;
                order_in(&[OrderStatus::Finalized])?;
                delivery.status = Downloaded;
                delivery.downloads += 1;
            }
            "delivery.failed" => {
                f.required("reason", text);
                f.finish()?;
                from(&[Requested, Encrypted, Failed])?;
                delivery.status = Failed;
            }
            "delivery.reissued" => {
                f.required("reason", text);
                let next = f.required("next", count);
                f.finish()?;
                from(&[Ready, Downloaded, Failed])?;
                order_in(&open)?;
                allowed(next == u64::from(n) + 1, || "next is not the next delivery".into())?;
                delivery.status = Reissued;
                self.reissuing = true;
            }
            other => return Err(Illegal(format!("{other} is no event of a delivery"))),
        }
        delivery.revision = event.revision;
        delivery.updated_at_us = event.recorded_at_us;
        Ok(Applied { touched, claim, signed })
    }
}

fn read_payment(f: &mut Fields<'_>) -> (String, Money) {
    f.required("provider", text1);
    (f.required("payment_id", text1), f.required("total", Money::read))
}

fn check_key(mode: &str, key_fingerprint: Option<&str>) -> Result<(), Illegal> {
    let buyer_managed = mode == "buyer-managed";
    allowed(buyer_managed == key_fingerprint.is_some(), || {
        "key_fingerprint belongs to buyer-managed deliveries, and to them only".into()
    })
}
