//! Commands as clients write them: JSON objects, read strictly (COMMANDS.md).

use super::fields::{FieldError, Fields, count, hex64, text, text1};
use super::money::Money;
use crate::delivery_proof::DeliveryProof;
use crate::finance::FinanceSignature;
use crate::hash::{Hash, sha256};
use crate::json::{self, JsonError, Object, Value};
use crate::licence::Licence;
use crate::registry::is_kid;
use crate::stream::CaseId;

/// Longest command line that is read, bytes.
pub const COMMAND_BYTES_MAX: usize = 262_144;

/// Names the order a command is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderRef {
    /// By id.
    Id(CaseId),
    /// By the `ref` label of an earlier line of the same input.
    Label(String),
}

/// The revision a caller expects a stream to be at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ExpectedRevision {
    /// No check.
    #[default]
    Any,
    /// The stream has no entry.
    NoStream,
    /// The stream's last revision.
    Exact(u64),
}

impl ExpectedRevision {
    /// Whether a stream at `revision` (0: no entry) is as expected.
    pub fn allows(self, revision: u64) -> bool {
        match self {
            ExpectedRevision::Any => true,
            ExpectedRevision::NoStream => revision == 0,
            ExpectedRevision::Exact(n) => n == revision,
        }
    }
}

/// What is asked for. All commands but those of SKUs and `order.create` name an order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "members are those of COMMANDS.md, name by name")]
pub enum Action {
    ListSku {
        sku_id: String,
        title: String,
        price: Money,
        author_id: Option<String>,
        manifest: Option<String>,
    },
    WithdrawSku {
        sku_id: String,
        reason: Option<String>,
    },
    CreateOrder {
        sku_id: String,
        delivery_mode: String,
        key_fingerprint: Option<String>,
        buyer: Option<String>,
    },
    CapturePayment {
        provider: String,
        payment_id: String,
        total: Money,
    },
    FailPayment {
        provider: String,
        payment_id: String,
        reason: String,
    },
    Settle {
        ledger_proof_id: String,
        finance_proof: Option<String>,
        finance_signature: Option<FinanceSignature>,
    },
    /// `licence` is made by the engine, once it knows the order.
    IssueLicense {
        expires_at: Option<i64>,
        scope: Option<String>,
        licence: Option<Licence>,
    },
    RequestDelivery {
        key_fingerprint: Option<String>,
    },
    /// A step of the current delivery, which must be the one of this number where one is given.
    Deliver {
        delivery: Option<u64>,
        step: DeliveryStep,
    },
    Finalize,
    Cancel {
        reason: String,
    },
    Refund {
        refund: Money,
        reason: String,
    },
    EraseSubject {
        reason: String,
    },
}

/// A step of a delivery that was requested.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "members are those of COMMANDS.md, name by name")]
pub enum DeliveryStep {
    Encrypt { algorithm: String, artifact_sha256: String, ciphertext_sha256: String },
    Ready { proof: Option<String>, delivery_proof: Option<Box<DeliveryProof>> },
    Download,
    Fail { reason: String },
    Reissue { reason: String, key_fingerprint: Option<String> },
}

/// A command with what every command carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its name, as in COMMANDS.md; part of the idempotency scope.
    pub name: &'static str,
    /// External id of who asks.
    pub actor: String,
    /// What is asked for.
    pub action: Action,
    /// The order, for commands about one.
    pub order: Option<OrderRef>,
    /// Client's key for retries.
    pub idempotency_key: Option<String>,
    /// Optimistic concurrency.
    pub expected_revision: ExpectedRevision,
    /// Kept in the private document.
    pub private: Option<Object>,
    /// Label for later lines of the same input.
    pub label: Option<String>,
    /// The object as received, for the request digest.
    request: Object,
}

/// Why a line is not a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// Over [`COMMAND_BYTES_MAX`].
    #[error("the line has {0} bytes; at most 262,144 are read")]
    TooLarge(usize),
    /// Not JSON, or JSON that a body could not hold.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A name not in COMMANDS.md.
    #[error("there is no command {0:?}; `ledger submit --help` lists them")]
    Unknown(String),
    /// A member is missing, unknown or malformed.
    #[error("member {0:?} is missing, not of this command, or malformed")]
    Member(String),
}

impl CommandError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            CommandError::TooLarge(_) => "BODY_TOO_LARGE",
            CommandError::Json(_) => "INVALID_JSON",
            CommandError::Unknown(_) => "UNKNOWN_COMMAND",
            CommandError::Member(_) => "INVALID_COMMAND",
        }
    }
}

impl From<FieldError> for CommandError {
    fn from(e: FieldError) -> Self {
        CommandError::Member(e.0)
    }
}

impl Command {
    /// Reads one line.
    pub fn parse(line: &[u8]) -> Result<Command, CommandError> {
        if line.len() > COMMAND_BYTES_MAX {
            return Err(CommandError::TooLarge(line.len()));
        }
        let Value::Object(object) = json::parse(line)? else {
            return Err(CommandError::Member("(the line itself)".into()));
        };
        Command::from_object(object)
    }

    /// Reads a command from its object.
    pub fn from_object(object: Object) -> Result<Command, CommandError> {
        let mut f = Fields::new(&object);
        let given = f.required("command", |v| v.as_str().map(str::to_owned));
        if given.is_empty() && object.value("command").and_then(Value::as_str).is_none() {
            return Err(CommandError::Member("command".into()));
        }
        let (name, action) = match read_action(&given, &mut f) {
            Some(found) => found,
            None => return Err(CommandError::Unknown(given.chars().take(64).collect())),
        };
        let about_order =
            !matches!(action, Action::ListSku { .. } | Action::WithdrawSku { .. } | Action::CreateOrder { .. });
        let order = about_order.then(|| f.required("order_id", |v| read_order(v).map(Some))).flatten();
        let label = match action {
            Action::CreateOrder { .. } => f.optional("ref", |v| bounded(v, 255)),
            _ => None,
        };
        let actor = f.required("actor", |v| bounded(v, 255).filter(|a| is_actor(a)));
        let idempotency_key = f.optional("idempotency_key", |v| bounded(v, 255));
        let expected_revision = f.optional("expected_revision", read_expected).unwrap_or_default();
        let private = f.optional("private", |v| v.as_object().cloned());
        f.finish()?;
        Ok(Command { name, actor, action, order, idempotency_key, expected_revision, private, label, request: object })
    }

    /// Digest of the request: the object without `ref`, with `order_id` resolved, in canonical form.
    pub fn request_digest(&self, case: Option<CaseId>) -> Hash {
        let mut object = self.request.clone();
        object.remove("ref");
        if let (Some(case), Some(_)) = (case, object.value("order_id")) {
            object.set("order_id", case.to_string());
        }
        sha256(&[&object.to_canonical()])
    }
}

/// Hash of an idempotency scope and key: `ledger/idem/v1\0` and each part with its u64 length before it.
pub fn idempotency_hash(subject: &str, method: &str, route: &str, key: &str) -> Hash {
    let mut bytes = b"ledger/idem/v1\0".to_vec();
    for part in [subject, method, route, key] {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    sha256(&[&bytes])
}

/// Whether an actor is a service, whose name is kept, rather than a person, who gets a pseudonym.
pub fn is_service(actor: &str) -> bool {
    actor == "system" || actor.starts_with("service:")
}

fn is_actor(actor: &str) -> bool {
    let Some(name) = actor.strip_prefix("service:") else { return true };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

fn bounded(value: &Value, max: usize) -> Option<String> {
    value.as_str().filter(|s| (1..=max).contains(&s.len())).map(str::to_owned)
}

fn read_order(value: &Value) -> Option<OrderRef> {
    let text = value.as_str()?;
    match text.strip_prefix("ref:") {
        Some(label) => (1..=255).contains(&label.len()).then(|| OrderRef::Label(label.to_owned())),
        None => CaseId::parse(text).map(OrderRef::Id),
    }
}

fn read_expected(value: &Value) -> Option<ExpectedRevision> {
    match value {
        Value::Str(s) if s == "any" => Some(ExpectedRevision::Any),
        Value::Str(s) if s == "no_stream" => Some(ExpectedRevision::NoStream),
        Value::Int(n) => u64::try_from(*n).ok().map(ExpectedRevision::Exact),
        _ => None,
    }
}

fn read_mode(value: &Value) -> Option<String> {
    value.as_str().filter(|m| matches!(*m, "buyer-managed" | "marketplace-managed")).map(str::to_owned)
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// `finance_kid` and `finance_signature`: both or none.
fn read_finance_signature(f: &mut Fields<'_>) -> Option<FinanceSignature> {
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let kid = f.optional("finance_kid", |v| text(v).filter(|k| is_kid(k)));
    let Some(kid) = kid else {
        // Without a kid a signature is a member too many.
        return f.optional("finance_signature", |_| None::<FinanceSignature>);
    };
    f.required("finance_signature", |v| FinanceSignature::from_text(&kid, v.as_str()?).map(Some))
}

/// A step, and the number of the delivery that it is about, if it is given.
fn of_delivery(f: &mut Fields<'_>, step: DeliveryStep) -> Action {
    Action::Deliver { delivery: f.optional("delivery", |v| count(v).filter(|n| *n > 0)), step }
}

fn read_action(name: &str, f: &mut Fields<'_>) -> Option<(&'static str, Action)> {
    Some(match name {
        "sku.list" => (
            "sku.list",
            Action::ListSku {
                sku_id: f.required("sku_id", text1),
                title: f.required("title", text1),
                price: f.required("price", Money::read),
                author_id: f.optional("author_id", text1),
                manifest: f.optional("manifest", string),
            },
        ),
        "sku.withdraw" => (
            "sku.withdraw",
            Action::WithdrawSku { sku_id: f.required("sku_id", text1), reason: f.optional("reason", text) },
        ),
        "order.create" => (
            "order.create",
            Action::CreateOrder {
                sku_id: f.required("sku_id", text1),
                delivery_mode: f.required("delivery_mode", read_mode),
                key_fingerprint: f.optional("key_fingerprint", hex64),
                buyer: f.optional("buyer", |v| bounded(v, 255).filter(|a| is_actor(a))),
            },
        ),
        "payment.capture" => (
            "payment.capture",
            Action::CapturePayment {
                provider: f.required("provider", text1),
                payment_id: f.required("payment_id", text1),
                total: f.required("total", Money::read),
            },
        ),
        "payment.fail" => (
            "payment.fail",
            Action::FailPayment {
                provider: f.required("provider", text1),
                payment_id: f.required("payment_id", text1),
                reason: f.required("reason", text),
            },
        ),
        "order.settle" => (
            "order.settle",
            Action::Settle {
                ledger_proof_id: f.required("ledger_proof_id", text1),
                finance_proof: f.optional("finance_proof", string),
                finance_signature: read_finance_signature(f),
            },
        ),
        "license.issue" => (
            "license.issue",
            Action::IssueLicense {
                expires_at: f.optional("expires_at", Value::as_int),
                scope: f.optional("scope", text1),
                licence: None,
            },
        ),
        "delivery.request" => {
            ("delivery.request", Action::RequestDelivery { key_fingerprint: f.optional("key_fingerprint", hex64) })
        }
        "delivery.encrypt" => {
            let step = DeliveryStep::Encrypt {
                algorithm: f.required("algorithm", text1),
                artifact_sha256: f.required("artifact_sha256", hex64),
                ciphertext_sha256: f.required("ciphertext_sha256", hex64),
            };
            ("delivery.encrypt", of_delivery(f, step))
        }
        "delivery.ready" => {
            let step = DeliveryStep::Ready {
                proof: f.optional("proof", string),
                delivery_proof: f
                    .optional("delivery_proof", |v| DeliveryProof::parse_canonical(v.as_str()?).map(Box::new)),
            };
            ("delivery.ready", of_delivery(f, step))
        }
        "delivery.download" => ("delivery.download", of_delivery(f, DeliveryStep::Download)),
        "delivery.fail" => {
            let step = DeliveryStep::Fail { reason: f.required("reason", text) };
            ("delivery.fail", of_delivery(f, step))
        }
        "delivery.reissue" => {
            let step = DeliveryStep::Reissue {
                reason: f.required("reason", text),
                key_fingerprint: f.optional("key_fingerprint", hex64),
            };
            ("delivery.reissue", of_delivery(f, step))
        }
        "order.finalize" => ("order.finalize", Action::Finalize),
        "order.cancel" => ("order.cancel", Action::Cancel { reason: f.required("reason", text) }),
        "order.refund" => (
            "order.refund",
            Action::Refund { refund: f.required("refund", Money::read), reason: f.required("reason", text) },
        ),
        "subject.erase" => ("subject.erase", Action::EraseSubject { reason: f.required("reason", text) }),
        _ => return None,
    })
}
