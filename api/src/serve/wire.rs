//! Shapes of answers. Times are RFC 3339 in UTC, amounts whole numbers of a currency's unit at a scale, hashes lowercase
//! hex.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger_engine::body::PrivateDocument;
use ledger_engine::domain::projection::Row;
use ledger_engine::hash::to_hex;
use ledger_engine::json::Object;
use ledger_engine::proof::ProvenCommit;
use ledger_engine::store::Entry;
use ledger_engine::time::rfc3339;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ApiError, Code};

/// An amount of a currency at a scale: 1250 EUR at scale 2 is 12.50 EUR.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Amount {
    /// From 1 to 2^53 − 1.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    pub(crate) amount: i64,
    /// ISO 4217.
    #[schema(pattern = "^[A-Z]{3}$")]
    pub(crate) currency: String,
    /// Decimal digits after the point.
    #[schema(minimum = 0, maximum = 4)]
    pub(crate) scale: i64,
}

impl Amount {
    /// As commands take it.
    pub(crate) fn to_object(&self) -> Object {
        Object::new().with("amount", self.amount).with("currency", self.currency.as_str()).with("scale", self.scale)
    }
}

/// An order.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Order {
    /// 32 hex characters.
    pub(crate) order_id: String,
    pub(crate) sku_id: String,
    /// `pending`, `payment_failed`, `paid`, `settled`, `licensed`, `finalized`, `cancelled` or `refunded`.
    pub(crate) status: String,
    pub(crate) amount: i64,
    pub(crate) currency: String,
    pub(crate) scale: i64,
    /// In the unit of `amount`.
    pub(crate) refunded: i64,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    pub(crate) delivery_mode: String,
    /// SHA-256 of the buyer's public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ledger_proof_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) license_id: Option<String>,
    /// Last revision of the order's stream, for `expected_revision`.
    pub(crate) revision: u64,
    /// As given at checkout; null after the buyer's data was erased.
    #[schema(value_type = Option<Object>)]
    pub(crate) order_metadata: Option<serde_json::Value>,
    pub(crate) deliveries: Vec<Delivery>,
}

/// What is sold.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Sku {
    pub(crate) sku_id: String,
    pub(crate) title: String,
    /// `listed` or `withdrawn`.
    pub(crate) status: String,
    pub(crate) price: Amount,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) author_id: Option<String>,
    /// The manifest's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    /// The manifest's.
    pub(crate) tags: Vec<String>,
    /// Of the manifest as it was received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manifest_sha256: Option<String>,
    /// Last revision of the SKU's stream.
    pub(crate) revision: u64,
}

impl Sku {
    /// From its projection row.
    pub(crate) fn of(row: &Row) -> Sku {
        Sku {
            sku_id: row.text("sku_id").into(),
            title: row.text("title").into(),
            status: row.text("status").into(),
            price: Amount { amount: row.int("amount"), currency: row.text("currency").into(), scale: row.int("scale") },
            author_id: given(row.text("author_id")),
            version: given(row.text("version")),
            tags: given(row.text("tags")).iter().flat_map(|tags| tags.split('\n')).map(str::to_owned).collect(),
            manifest_sha256: given(row.text("manifest_sha256")),
            revision: row.count("revision"),
        }
    }
}

/// A delivery of an order.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Delivery {
    pub(crate) delivery_id: String,
    /// `requested`, `encrypted`, `ready`, `downloaded`, `failed` or `reissued`.
    pub(crate) status: String,
    pub(crate) mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) proof_id: Option<String>,
    pub(crate) downloads: i64,
    pub(crate) updated_at: String,
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl Delivery {
    /// From its projection row.
    pub(crate) fn of(row: &Row) -> Delivery {
        Delivery {
            delivery_id: row.text("delivery_id").into(),
            status: row.text("status").into(),
            mode: row.text("mode").into(),
            key_fingerprint: given(row.text("key_fingerprint")),
            artifact_sha256: given(row.text("artifact_sha256")),
            proof_id: given(row.text("proof_id")),
            downloads: row.int("downloads"),
            updated_at: rfc3339(row.int("updated_at_us")),
        }
    }
}

impl Order {
    /// From projection rows and the private document of the entry that made the order.
    pub(crate) fn of(row: &Row, deliveries: &[Row], private: Option<&PrivateDocument>) -> Order {
        let order_id = row.text("order_id").to_owned();
        let licensed = row.cell("license_index").is_some_and(|c| *c != ledger_engine::domain::projection::Cell::Null);
        Order {
            license_id: licensed.then(|| format!("license-{order_id}")),
            order_id,
            sku_id: row.text("sku_id").into(),
            status: row.text("status").into(),
            amount: row.int("amount"),
            currency: row.text("currency").into(),
            scale: row.int("scale"),
            refunded: row.int("refunded"),
            created_at: rfc3339(row.int("created_at_us")),
            updated_at: rfc3339(row.int("updated_at_us")),
            delivery_mode: row.text("delivery_mode").into(),
            key_fingerprint: given(row.text("key_fingerprint")),
            ledger_proof_id: given(row.text("ledger_proof_id")),
            revision: row.count("revision"),
            order_metadata: private.and_then(order_metadata),
            deliveries: deliveries.iter().map(Delivery::of).collect(),
        }
    }
}

fn order_metadata(private: &PrivateDocument) -> Option<serde_json::Value> {
    let members = private.members()?;
    let value = members.value("private")?.as_object()?.value("order_metadata")?.to_canonical();
    serde_json::from_slice(&value).ok()
}

/// The commit of an entry: the statement that was signed, and the path that leads from the entry to its root.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Commit {
    pub(crate) first_index: u64,
    pub(crate) size: u32,
    /// RFC 6962 root over the header bytes of the commit's entries.
    pub(crate) root: String,
    /// Hash of the commit's last entry.
    pub(crate) last_hash: String,
    pub(crate) registry_size: u64,
    pub(crate) registry_head: String,
    /// Inclusion path of the entry to `root`, from the leaf's sibling up.
    pub(crate) path: Vec<String>,
    pub(crate) signatures: Vec<CommitSignature>,
}

/// A signature of a commit.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CommitSignature {
    pub(crate) kid: String,
    /// Base64.
    pub(crate) signature: String,
}

/// An entry of the ledger, under the names of the audit events before it, and with ours beside them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct AuditEvent {
    /// The event id.
    pub(crate) id: String,
    /// A service, or a person's pseudonym.
    pub(crate) actor_id: String,
    pub(crate) event_type: String,
    #[schema(value_type = Object)]
    pub(crate) payload: Box<serde_json::value::RawValue>,
    /// Entry hash.
    pub(crate) hash: String,
    /// Entry hash of the entry before in the chain; zeros for the first.
    pub(crate) prev_hash: String,
    /// Of the commit, over the statement in `commit`: base64.
    pub(crate) signature: String,
    /// Of the commit.
    pub(crate) signer_kid: String,
    pub(crate) created_at: String,
    /// Always `ledger/1`.
    pub(crate) format: &'static str,
    pub(crate) ledger_id: String,
    pub(crate) chain: u32,
    pub(crate) index: u64,
    pub(crate) stream: String,
    pub(crate) revision: u64,
    pub(crate) parent_hash: String,
    pub(crate) schema_version: u16,
    pub(crate) recorded_at_us: i64,
    pub(crate) body_hash: String,
    pub(crate) body_sha256: String,
    /// Of the private document beside the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) private_sha256: Option<String>,
    /// What makes a repetition recognisable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(crate) meta: Option<Box<serde_json::value::RawValue>>,
    pub(crate) commit: Commit,
}

/// A body's members, unparsed where the answer repeats them.
#[derive(Deserialize)]
struct BodyMembers {
    actor_id: String,
    payload: Box<serde_json::value::RawValue>,
    private_sha256: Option<String>,
    meta: Option<Box<serde_json::value::RawValue>>,
}

impl AuditEvent {
    pub(crate) fn of(entry: &Entry, commit: &ProvenCommit) -> Result<AuditEvent, ApiError> {
        let h = &entry.header;
        let body: BodyMembers = serde_json::from_slice(&entry.body).map_err(|e| {
            ApiError::new(Code::LedgerCorrupt, "the ledger is damaged; its operator must look at it")
                .internal(format!("body of entry {} of chain {}: {e}", h.index, h.chain))
        })?;
        let commit = Commit {
            first_index: commit.first_index,
            size: commit.size,
            root: commit.root.to_hex(),
            last_hash: commit.last_hash.to_hex(),
            registry_size: commit.registry_size,
            registry_head: commit.registry_head.to_hex(),
            path: commit.path.iter().map(|h| h.to_hex()).collect(),
            signatures: commit
                .signatures
                .iter()
                .map(|s| CommitSignature { kid: s.kid.clone(), signature: STANDARD.encode(&s.signature) })
                .collect(),
        };
        let first = commit.signatures.first();
        Ok(AuditEvent {
            id: h.id().to_string(),
            actor_id: body.actor_id,
            event_type: h.event_type.clone(),
            payload: body.payload,
            hash: entry.entry_hash.to_hex(),
            prev_hash: to_hex(&h.prev_hash),
            signature: first.map(|s| s.signature.clone()).unwrap_or_default(),
            signer_kid: first.map(|s| s.kid.clone()).unwrap_or_default(),
            created_at: rfc3339(h.recorded_at_us),
            format: "ledger/1",
            ledger_id: to_hex(&h.ledger_id),
            chain: h.chain,
            index: h.index,
            stream: h.stream.clone(),
            revision: h.revision,
            parent_hash: to_hex(&h.parent_hash),
            schema_version: h.schema_version,
            recorded_at_us: h.recorded_at_us,
            body_hash: to_hex(&h.body_hash),
            body_sha256: to_hex(&h.body_sha256),
            private_sha256: body.private_sha256,
            meta: body.meta,
            commit,
        })
    }
}
