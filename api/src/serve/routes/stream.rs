//! `GET /audit/stream`: the live feed.

use actix_web::http::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use actix_web::web::Query;
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Shared, header, in_time};
use crate::serve::cursor::Cursor;
use crate::serve::error::{ApiError, ReadErrors};
use crate::serve::feed::listen;

/// Where to begin, for clients that cannot send `Last-Event-ID` at first.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamQuery {
    /// As `Last-Event-ID`, which wins; `now` for what comes from now on.
    after: Option<String>,
}

/// All entries as they become durable: server-sent events
///
/// Each event is called `entry`; its data is an entry as in `/audit/events`, its id a cursor with which to go on after it. Entries of
/// one chain come in order and without gaps; of several chains one may run ahead of another.
#[utoipa::path(
    get,
    path = "/audit/stream",
    tag = "audit",
    params(StreamQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The last id that was seen: chain:index, joined by commas")),
    responses((status = 200, description = "A stream without end", content_type = "text/event-stream", body = String), ReadErrors),
    security(("token" = [])),
)]
pub(crate) async fn stream(
    req: HttpRequest,
    state: Shared,
    query: Query<StreamQuery>,
) -> Result<HttpResponse, ApiError> {
    let sizes = in_time(async { Ok(state.ledger.sizes().await?) }).await?;
    let now = (query.after.as_deref() == Some("now")).then(|| Cursor(sizes.clone()).to_string());
    let from = header(&req, "Last-Event-ID").or(now.as_deref()).or(query.after.as_deref());
    // Auditors come with tokens: a certificate opens no feed.
    let token = header(&req, "Authorization").and_then(|value| value.split_once(' ')).map_or("", |(_, token)| token);
    if let Some(from) = from {
        Cursor::parse(from, state.ledger.genesis().chains)?.check(&sizes)?;
    }
    let feed = listen(&state, from, token.trim())?;
    let mut answer = HttpResponse::Ok();
    answer
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-store, no-transform"))
        // Proxies that hold answers back would hold this one for ever.
        .insert_header((HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")));
    Ok(answer.streaming(feed))
}
