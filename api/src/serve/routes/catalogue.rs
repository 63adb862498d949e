//! What can be bought: SKUs with their signed manifests.

use actix_web::http::header::LOCATION;
use actix_web::web::{Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use ledger_engine::domain::decide::{check_deliverable, check_manifest};
use ledger_engine::domain::money::Money;
use ledger_engine::domain::projection::Row;
use ledger_engine::json::Object;
use ledger_engine::ledger::Appended;
use ledger_engine::manifest::{Manifest, ManifestError};
use ledger_engine::stream::CaseId;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::audit::number;
use super::checkout::REPLAYED;
use super::{Shared, append, in_time};
use crate::serve::auth::Caller;
use crate::serve::body::{Json, JsonObject, Optional};
use crate::serve::cursor::Cursor;
use crate::serve::error::{ApiError, Code, ReadErrors, WriteErrors};
use crate::serve::idempotency::{key_of, required_key};
use crate::serve::state::State;
use crate::serve::wire::{Amount, Sku};

/// SKUs of one page at most, and by default.
const LIMIT_MAX: usize = 200;
const LIMIT_DEFAULT: usize = 50;
/// SKUs that one request looks at; a filter that finds nothing must not read the whole catalogue.
const LOOKED_AT_MAX: usize = 10_000;
/// SKUs read at a time.
const PAGE: usize = 512;

/// Which SKUs.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct CatalogQuery {
    /// The cursor `next` of the page before.
    #[param(pattern = "^([0-9]+:[0-9]+(,[0-9]+:[0-9]+)*)?$")]
    after: Option<String>,
    /// At most so many.
    #[serde(default, deserialize_with = "number")]
    #[param(minimum = 1, maximum = 200)]
    limit: Option<usize>,
    /// Only titles and ids that contain this text; case does not matter.
    search: Option<String>,
    /// Only with this tag.
    tag: Option<String>,
    /// Only by the author with this id.
    author: Option<String>,
}

/// A page of the catalogue.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CatalogPage {
    #[schema(example = true)]
    ok: bool,
    /// Chain by chain, in each in the order in which they were listed first.
    skus: Vec<Sku>,
    /// For `after`; it also holds when there is nothing more yet.
    next: String,
    /// Whether there is more now.
    more: bool,
}

impl CatalogQuery {
    fn takes(&self, row: &Row) -> bool {
        let contains = |text: &str| {
            let text = text.to_lowercase();
            self.search.as_ref().is_none_or(|wanted| text.contains(&wanted.to_lowercase()))
        };
        row.text("status") == "listed"
            && (contains(row.text("title")) || contains(row.text("sku_id")))
            && self.tag.as_deref().is_none_or(|tag| row.text("tags").split('\n').any(|t| t == tag))
            && self.author.as_deref().is_none_or(|author| row.text("author_id") == author)
    }

    async fn read(&self, state: &State, mut at: Cursor, limit: usize) -> Result<CatalogPage, ApiError> {
        let (mut skus, mut looked_at, mut more) = (Vec::new(), 0, false);
        'chains: for chain in 0..state.ledger.genesis().chains {
            loop {
                let rows = state.ledger.skus(chain, at.0[chain as usize], PAGE).await?;
                let full = rows.len() == PAGE;
                for row in &rows {
                    if skus.len() == limit || looked_at == LOOKED_AT_MAX {
                        more = true;
                        break 'chains;
                    }
                    looked_at += 1;
                    at.saw(chain, row.count("idx"));
                    if self.takes(row) {
                        skus.push(Sku::of(row));
                    }
                }
                if !full {
                    break;
                }
            }
        }
        Ok(CatalogPage { ok: true, skus, next: at.to_string(), more })
    }
}

/// What can be bought, by pages
#[utoipa::path(
    get,
    path = "/catalog",
    tag = "catalogue",
    params(CatalogQuery),
    responses((status = 200, description = "A page", body = CatalogPage), ReadErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn catalog(state: Shared, query: Query<CatalogQuery>) -> Result<HttpResponse, ApiError> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::invalid(format!("limit must be from 1 to {LIMIT_MAX}")));
    }
    let at = Cursor::parse(query.after.as_deref().unwrap_or_default(), state.ledger.genesis().chains)?;
    let page = in_time(async {
        at.check(&state.ledger.sizes().await?)?;
        query.read(&state, at, limit).await
    });
    Ok(HttpResponse::Ok().json(page.await?))
}

/// A SKU.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SkuAnswer {
    #[schema(example = true)]
    ok: bool,
    sku: Sku,
    /// As it was received, byte for byte: the Kernel's signature is over its RFC 8785 form without `manifest_signature`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    manifest: Option<Box<RawValue>>,
    /// SHA-256 of the manifest's signature.
    #[serde(rename = "manifestSignatureId", skip_serializing_if = "Option::is_none")]
    manifest_signature_id: Option<String>,
}

fn no_sku() -> ApiError {
    ApiError::not_found("there is no such SKU")
}

/// A SKU as it was after the entry at `index`.
async fn shown(state: &State, sku: CaseId, index: u64) -> Result<SkuAnswer, ApiError> {
    let (row, text) = state.ledger.sku_at(sku, index).await?.ok_or_else(no_sku)?;
    let signature = text.as_deref().and_then(|text| Manifest::parse(text).ok()).map(|m| m.signature_id());
    let damaged = |e: serde_json::Error| {
        ApiError::new(Code::LedgerCorrupt, "the ledger is damaged; its operator must look at it")
            .internal(e.to_string())
    };
    let manifest = text.map(RawValue::from_string).transpose().map_err(damaged)?;
    Ok(SkuAnswer { ok: true, sku: Sku::of(&row), manifest, manifest_signature_id: signature })
}

/// A SKU as it is now, with its manifest
#[utoipa::path(
    get,
    path = "/sku/{id}",
    tag = "catalogue",
    params(("id" = String, Path, description = "The SKU's id")),
    responses((status = 200, description = "The SKU", body = SkuAnswer), ReadErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn sku(state: Shared, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let answer = in_time(shown(&state, CaseId::of_sku(&id), u64::MAX)).await?;
    Ok(HttpResponse::Ok().json(answer))
}

/// What is to be sold.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SkuRequest {
    /// Signed by a key of the purpose `kernel`. Id, title and author are those of the SKU.
    #[schema(value_type = JsonObject)]
    manifest: Box<RawValue>,
    /// What it costs; the same as `metadata.price` of the manifest, if that has one.
    price: Amount,
}

fn read(manifest: &RawValue) -> Result<Manifest, ApiError> {
    let manifest = Manifest::parse(manifest.get()).map_err(|e| match e {
        ManifestError::TooLarge(_) => ApiError::new(Code::BodyTooLarge, format!("the manifest: {e}")),
        e => ApiError::new(Code::InvalidManifest, format!("the manifest is none: {e}")),
    })?;
    check_deliverable(&manifest)?;
    Ok(manifest)
}

/// Asks the Kernel back, where the settings name it, once the signature holds.
async fn confirmed(state: &State, manifest: &Manifest, text: &RawValue) -> Result<(), ApiError> {
    let kid = &manifest.signature.kid;
    in_time(async { Ok(state.ledger.judge(manifest.document()).await?) }).await?.map_err(|fault| {
        ApiError::new(Code::InvalidSignature, format!("the manifest's signature by {kid} does not count: {fault}"))
    })?;
    match &state.kernel {
        Some(kernel) => in_time(kernel.confirm(text)).await,
        None => Ok(()),
    }
}

/// The answer to a change of a SKU: the SKU as that change left it.
async fn changed(state: &State, sku_id: &str, appended: &Appended) -> Result<SkuAnswer, ApiError> {
    let index = appended.entries.first().map_or(0, |entry| entry.index);
    in_time(shown(state, CaseId::of_sku(sku_id), index)).await
}

/// List a SKU with its signed manifest
///
/// `INVALID_MANIFEST`: a member is missing or malformed. `MANIFEST_MISMATCH`: it names another price. `INVALID_SIGNATURE`: the signature does
/// not verify, or its key is unknown, retired or not the Kernel's. A SKU that is listed already is withdrawn first.
#[utoipa::path(
    post,
    path = "/sku",
    tag = "catalogue",
    request_body = SkuRequest,
    params(("Idempotency-Key" = String, Header, description = "A value of your own for this request",
            min_length = 1, max_length = 255, pattern = "^[!#-\\[\\]-~]+$")),
    responses(
        (status = 201, description = "The SKU as it was listed", body = SkuAnswer,
            headers(("Location" = String), ("Idempotency-Replayed" = bool))),
        WriteErrors,
    ),
    security(("token" = [])),
)]
pub(crate) async fn list(
    req: HttpRequest,
    state: Shared,
    caller: Caller,
    body: Json<SkuRequest>,
) -> Result<HttpResponse, ApiError> {
    let (key, SkuRequest { manifest, price }) = (required_key(&req)?, body.typed);
    let read = read(&manifest)?;
    let (id, title) = (read.id.clone(), read.title.clone());
    let command = Object::new()
        .with("command", "sku.list")
        .with("sku_id", id.as_str())
        .with("title", title)
        .with("price", price.to_object())
        .with("manifest", manifest.get());
    // Whoever sends it again gets the first answer, also while the Kernel is away.
    let used =
        async { Ok(state.ledger.was_used(&caller.subject, "POST", "sku.list", &key, CaseId::of_sku(&id)).await?) };
    if state.kernel.is_some() && !in_time(used).await? {
        confirmed(&state, &read, &manifest).await?;
    }
    let appended = append(&state, &caller.subject, command, Some(&key)).await?;
    let answer = changed(&state, &id, &appended).await?;
    let mut response = HttpResponse::Created();
    response.insert_header((LOCATION, format!("/sku/{}", utf8_percent_encode(&id, NON_ALPHANUMERIC))));
    if appended.repeated {
        response.insert_header((REPLAYED, "true"));
    }
    Ok(response.json(answer))
}

/// Why a SKU is not sold any more.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WithdrawRequest {
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

/// End the sale of a SKU
#[utoipa::path(
    post,
    path = "/sku/{id}/withdraw",
    tag = "catalogue",
    request_body = Option<WithdrawRequest>,
    params(("id" = String, Path, description = "The SKU's id"),
           ("Idempotency-Key" = Option<String>, Header, description = "A value of your own for this request",
            min_length = 1, max_length = 255, pattern = "^[!#-\\[\\]-~]+$")),
    responses((status = 200, description = "The SKU as it was withdrawn", body = SkuAnswer), WriteErrors),
    security(("token" = [])),
)]
pub(crate) async fn withdraw(
    req: HttpRequest,
    state: Shared,
    caller: Caller,
    id: Path<String>,
    body: Optional<WithdrawRequest>,
) -> Result<HttpResponse, ApiError> {
    let key = key_of(&req)?;
    let mut command = Object::new().with("command", "sku.withdraw").with("sku_id", id.as_str());
    command.set_some("reason", body.0.reason);
    let appended = append(&state, &caller.subject, command, key.as_deref()).await?;
    Ok(HttpResponse::Ok().json(changed(&state, &id, &appended).await?))
}

/// A manifest to be judged.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ValidateRequest {
    #[schema(value_type = JsonObject)]
    manifest: Box<RawValue>,
    /// The SKU that it is meant for.
    #[schema(min_length = 1, max_length = 1024)]
    sku_id: Option<String>,
    /// The price that is meant.
    price: Option<Amount>,
}

/// A manifest that holds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ValidateAnswer {
    #[schema(example = true)]
    ok: bool,
    #[schema(example = true)]
    valid: bool,
    /// SHA-256 of the manifest's signature.
    #[serde(rename = "manifestSignatureId")]
    manifest_signature_id: String,
    sku_id: String,
    signer_kid: String,
}

/// Judge a manifest, as `POST /sku` would, and record nothing
#[utoipa::path(
    post,
    path = "/admin/validate-manifest",
    tag = "catalogue",
    request_body = ValidateRequest,
    responses((status = 200, description = "It holds", body = ValidateAnswer), WriteErrors),
    security(("token" = [])),
)]
pub(crate) async fn validate(state: Shared, body: Json<ValidateRequest>) -> Result<HttpResponse, ApiError> {
    let ValidateRequest { manifest: text, sku_id, price } = body.typed;
    let manifest = read(&text)?;
    let price = price.map(|Amount { amount, currency, scale }| Money { amount, currency, scale });
    check_manifest(&manifest, sku_id.as_deref(), None, None, price.as_ref())?;
    let kid = manifest.signature.kid.clone();
    confirmed(&state, &manifest, &text).await?;
    let answer = ValidateAnswer {
        ok: true,
        valid: true,
        manifest_signature_id: manifest.signature_id(),
        sku_id: manifest.id,
        signer_kid: kid,
    };
    Ok(HttpResponse::Ok().json(answer))
}
