//! `GET /admin/signers`: the key registry.

use actix_web::HttpResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Shared, in_time};
use crate::serve::error::{ApiError, ReadErrors};

/// A key and where it counts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SignerView {
    signer_kid: String,
    algorithm: String,
    /// Hex: 32 raw bytes of Ed25519, DER (SPKI) of RSA.
    public_key: String,
    purpose: String,
    /// Registry size from which the key is known.
    enrolled_at: u64,
    /// Why there is this key, of an emergency key.
    #[serde(skip_serializing_if = "Option::is_none")]
    justification: Option<String>,
    /// Registry size from which it is retired.
    #[serde(skip_serializing_if = "Option::is_none")]
    retired_at: Option<u64>,
    /// Size of each chain up to which its signatures stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<Vec<u64>>,
    /// Size of each chain from which they are doubtful.
    #[serde(skip_serializing_if = "Option::is_none")]
    compromised_since: Option<Vec<u64>>,
}

/// All keys of the ledger.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SignersAnswer {
    #[schema(example = true)]
    ok: bool,
    ledger_id: String,
    /// How many entries the registry has.
    registry_size: u64,
    signers: Vec<SignerView>,
}

/// The key registry: which keys may sign what, and where their signatures count
#[utoipa::path(
    get,
    path = "/admin/signers",
    tag = "audit",
    responses((status = 200, description = "All keys", body = SignersAnswer), ReadErrors),
    security(("token" = [])),
)]
pub(crate) async fn signers(state: Shared) -> Result<HttpResponse, ApiError> {
    // Another process may have changed the keys.
    in_time(async { Ok(state.ledger.refresh_registry().await?) }).await?;
    let registry = state.ledger.registry();
    let view = |record: &ledger_engine::registry::KeyRecord| SignerView {
        signer_kid: record.key.kid.clone(),
        algorithm: record.key.public_key.algorithm().as_str().to_owned(),
        public_key: record.key.public_key.to_hex(),
        purpose: record.key.purpose.as_str().to_owned(),
        enrolled_at: record.enrolled_size,
        justification: record.justification.clone(),
        retired_at: record.retired.as_ref().map(|r| r.registry_size),
        cut: record.retired.as_ref().map(|r| r.cut.clone()),
        compromised_since: record.retired.as_ref().and_then(|r| r.compromised_since.clone()),
    };
    let answer = SignersAnswer {
        ok: true,
        ledger_id: state.ledger.id().to_hex(),
        registry_size: registry.size(),
        signers: registry.records().iter().map(view).collect(),
    };
    Ok(HttpResponse::Ok().json(answer))
}
