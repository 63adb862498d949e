//! What the buyer gets: the encrypted file, and the key of a delivery that the marketplace manages.

use std::io;

use actix_web::body::SizedStream;
use actix_web::http::Method;
use actix_web::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_TYPE, ContentRange, ContentRangeSpec, ETag, EntityTag,
    Header as _, HeaderName, IF_RANGE, IfRange, LOCATION, Range, TryIntoHeaderValue as _,
};
use actix_web::web::{Bytes, Path};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger_engine::domain::projection::Row;
use ledger_engine::hash::from_hex;
use ledger_engine::json::Object;
use ledger_engine::stream::{CaseId, Stream};
use ledger_engine::time::rfc3339;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use utoipa::ToSchema;

use super::{Shared, append, in_time, visible_order};
use crate::deliver::KeyError;
use crate::deliver::files::Delivered;
use crate::serve::auth::Caller;
use crate::serve::error::{ApiError, Code, ErrorBody, ReadErrors};
use crate::serve::state::State;

/// Bytes of a file that are read at a time.
const PIECE: usize = 64 << 10;
/// RFC 9530.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// The delivery that a path names, of an order that the caller may see, once it is finalised and while it is the current one.
async fn deliverable(state: &State, caller: &Caller, id: &str) -> Result<(CaseId, Row), ApiError> {
    let none = || ApiError::not_found("there is no such delivery, or it is not yours");
    let Some(Stream::Delivery(case, n)) = Stream::parse(id) else { return Err(none()) };
    let (order, mut deliveries) = visible_order(state, caller, case).await.map_err(|e| match e.code {
        Code::NotFound => none(),
        _ => e,
    })?;
    let current = deliveries.len() == n as usize;
    let delivery = deliveries.pop().filter(|_| (n as usize) <= deliveries.len() + 1).ok_or_else(none)?;
    let illegal = |why: String| Err(ApiError::new(Code::IllegalTransition, why));
    if !current {
        return illegal("the delivery was issued again; download the one that came for it".into());
    }
    match (order.text("status"), delivery.text("status")) {
        ("finalized", "ready" | "downloaded") => match state.deliverer.licence_ended(&order).await? {
            Some(at) => Err(ApiError::new(Code::LicenseInvalid, format!("the licence ended at {}", rfc3339(at)))),
            None => Ok((case, delivery)),
        },
        ("finalized", status) => illegal(format!("the delivery is {status}; it can be had once it is ready")),
        (status, _) => illegal(format!("the order is {status}; its delivery can be had once it is finalized")),
    }
}

/// Records a download. Each is one, whatever key it was asked for with.
async fn record(state: &State, caller: &Caller, (case, delivery): (CaseId, &Row)) -> Result<(), ApiError> {
    let command = Object::new().with("command", "delivery.download").with("order_id", case.to_string());
    let command = command.with("delivery", delivery.int("n"));
    append(state, &caller.subject, command, None).await.map(drop)
}

fn missing(what: String) -> ApiError {
    let message =
        "the delivery's file is not there, or not whole; ask for it to be issued again (POST /delivery/{id}/reissue)";
    ApiError::new(Code::Internal, message).internal(what)
}

fn files_away(what: String) -> ApiError {
    ApiError::new(Code::StoreUnavailable, "the place of deliveries does not answer; try again").internal(what)
}

/// Which bytes of a file are asked for (RFC 9110 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// The first one, and how many.
    Bytes(u64, u64),
    /// Beyond the end.
    Unsatisfiable,
}

/// What is malformed, or several parts at once, is answered by the whole, as is a part of a file that the client no longer has.
fn part(req: &HttpRequest, len: u64, tag: &EntityTag) -> Part {
    let Ok(Range::Bytes(specs)) = Range::parse(req) else { return Part::Whole };
    let same = match IfRange::parse(req) {
        _ if !req.headers().contains_key(IF_RANGE) => true,
        Ok(IfRange::EntityTag(of)) => of.strong_eq(tag),
        _ => false,
    };
    match &specs[..] {
        [spec] if same && *req.method() == Method::GET => match spec.to_satisfiable_range(len) {
            Some((first, last)) => Part::Bytes(first, last - first + 1),
            None => Part::Unsatisfiable,
        },
        _ => Part::Whole,
    }
}

/// Download a delivery: the file as it was encrypted for the buyer
///
/// Each download is recorded before its first byte is sent. `Repr-Digest` is the SHA-256 that the delivery proof names;
/// `ledger open-delivery` checks and decrypts. A download that was cut off goes on by `Range`, with `If-Range` and the `ETag` of before.
#[utoipa::path(
    get,
    path = "/delivery/{id}/artifact",
    tag = "deliveries",
    params(("id" = String, Path, description = "A delivery's id")),
    responses(
        (status = 200, description = "The file (FORMAT.md 19)", content_type = "application/octet-stream", body = Vec<u8>,
            headers(("Repr-Digest" = String), ("ETag" = String))),
        (status = 206, description = "The part of it that `Range` asks for", content_type = "application/octet-stream", body = Vec<u8>,
            headers(("Content-Range" = String))),
        (status = 303, description = "The file is in a bucket: `Location` is a URL that is good for five minutes", headers(("Location" = String))),
        (status = 409, description = "ILLEGAL_TRANSITION: it is not ready, or was issued again", body = ErrorBody),
        (status = 422, description = "LICENSE_INVALID: the licence has ended", body = ErrorBody),
        (status = 416, description = "RANGE_NOT_SATISFIABLE: `Range` begins after the file's end", body = ErrorBody, headers(("Content-Range" = String))),
        ReadErrors,
    ),
    security(("token" = [])),
)]
pub(crate) async fn artifact(
    req: HttpRequest,
    state: Shared,
    caller: Caller,
    id: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (case, delivery) = in_time(deliverable(&state, &caller, &id)).await?;
    let ciphertext = delivery.text("ciphertext_sha256");
    let placed = in_time(async { Ok(state.deliverer.delivered(&delivery).await) }).await?;
    let placed = placed.map_err(|e| files_away(e.to_string()))?;
    let path = match placed.ok_or_else(|| missing(format!("{id} is not there, or not whole")))? {
        Delivered::Url(url) => {
            // Whoever has the URL has the file, also after HEAD.
            record(&state, &caller, (case, &delivery)).await?;
            return Ok(HttpResponse::SeeOther().insert_header((LOCATION, url)).finish());
        }
        Delivered::File(path) => path,
    };
    let shown = path.display().to_string();
    let mut file = tokio::fs::File::open(&path).await.map_err(|e| missing(format!("{shown}: {e}")))?;
    let len = file.metadata().await.map_err(|e| missing(format!("{shown}: {e}")))?.len();
    let tag = EntityTag::new_strong(ciphertext.to_owned());
    let (mut answer, first, count) = match part(&req, len, &tag) {
        Part::Whole => (HttpResponse::Ok(), 0, len),
        Part::Bytes(first, count) => {
            let mut answer = HttpResponse::PartialContent();
            let range = Some((first, first + count - 1));
            answer.insert_header(ContentRange(ContentRangeSpec::Bytes { range, instance_length: Some(len) }));
            (answer, first, count)
        }
        Part::Unsatisfiable => {
            let message = format!("the file has {len} bytes: leave Range away, or begin before its end");
            let mut refused = ApiError::new(Code::RangeNotSatisfiable, message).to_response();
            let range = ContentRange(ContentRangeSpec::Bytes { range: None, instance_length: Some(len) });
            refused.headers_mut().insert(CONTENT_RANGE, range.try_into_value().map_err(|e| missing(e.to_string()))?);
            return Ok(refused);
        }
    };
    file.seek(io::SeekFrom::Start(first)).await.map_err(|e| missing(format!("{shown}: {e}")))?;
    if *req.method() != Method::HEAD {
        record(&state, &caller, (case, &delivery)).await?;
    }
    let pieces = futures_util::stream::try_unfold(file.take(count), |mut file| async move {
        let mut piece = vec![0; PIECE];
        let n = file.read(&mut piece).await?;
        piece.truncate(n);
        Ok::<_, io::Error>((n > 0).then(|| (Bytes::from(piece), file)))
    });
    let digest = format!("sha-256=:{}:", STANDARD.encode(from_hex(ciphertext).unwrap_or_default()));
    Ok(answer
        .insert_header(ETag(tag))
        .insert_header((ACCEPT_RANGES, "bytes"))
        .insert_header((CONTENT_TYPE, "application/octet-stream"))
        .insert_header((CONTENT_DISPOSITION, format!("attachment; filename=\"{}.enc\"", delivery.text("delivery_id"))))
        .insert_header((REPR_DIGEST, digest))
        .body(SizedStream::new(count, Box::pin(pieces))))
}

/// The private key of a delivery.
#[derive(Serialize, ToSchema)]
pub(crate) struct KeyAnswer {
    #[schema(example = true)]
    ok: bool,
    /// X25519, PKCS#8 in PEM, of this delivery alone.
    private_key: String,
}

/// The private key of a delivery that the marketplace manages
#[utoipa::path(
    get,
    path = "/delivery/{id}/key",
    tag = "deliveries",
    params(("id" = String, Path, description = "A delivery's id")),
    responses(
        (status = 200, description = "The key", body = KeyAnswer),
        (status = 409, description = "ILLEGAL_TRANSITION: it is not ready, or was issued again", body = ErrorBody),
        (status = 422, description = "LICENSE_INVALID: the licence has ended", body = ErrorBody),
        ReadErrors,
    ),
    security(("token" = [])),
)]
pub(crate) async fn key(state: Shared, caller: Caller, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let (_, delivery) = in_time(deliverable(&state, &caller, &id)).await?;
    let opened = in_time(async { Ok(state.deliverer.private_key(&delivery).await) }).await?;
    let opened = opened.map_err(|e| match e {
        KeyError::Away(why) => {
            let message = "what opens the delivery's key is away; try again";
            ApiError::new(Code::SigningUnavailable, message).internal(why)
        }
        KeyError::Files(why) => files_away(why),
        KeyError::Lost(why) => {
            let message =
                "the delivery's key cannot be opened; ask for it to be issued again (POST /delivery/{id}/reissue)";
            ApiError::new(Code::Internal, message).internal(why)
        }
    })?;
    let key = opened.ok_or_else(|| ApiError::not_found("the delivery is encrypted for the buyer's own key"))?;
    Ok(HttpResponse::Ok().json(KeyAnswer { ok: true, private_key: key.to_string() }))
}
