//! Reading the ledger: entries by pages, one entry, its proof file, signed tree heads, consistency proofs.

use std::fmt;

use actix_web::http::header::{ACCEPT, CONTENT_DISPOSITION, RETRY_AFTER};
use actix_web::web::{Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use ledger_engine::hash::EventId;
use ledger_engine::note::{Checkpoint, Note};
use ledger_engine::prover::ProveError;
use ledger_engine::store::Entry;
use ledger_engine::stream::Stream;
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::{IntoParams, ToSchema};

use super::{Shared, in_time, visible_order};
use crate::serve::auth::{Caller, Role};
use crate::serve::cursor::Cursor;
use crate::serve::error::{ApiError, Code, ReadErrors};
use crate::serve::state::State;
use crate::serve::wire::AuditEvent;

/// Entries of one page at most, and by default.
const LIMIT_MAX: usize = 500;
const LIMIT_DEFAULT: usize = 100;
/// Entries that one request looks at; a filter that finds nothing must not read the whole ledger.
const LOOKED_AT_MAX: usize = 20_000;
/// Entries read at a time.
const PAGE: usize = 512;

/// A number of a query, whose refusal names it.
pub(super) fn number<'de, D: Deserializer<'de>, T: std::str::FromStr>(d: D) -> Result<Option<T>, D::Error>
where
    T::Err: fmt::Display,
{
    let text = String::deserialize(d)?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parsed = if digits { text.parse().ok() } else { None };
    parsed.map(Some).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a whole number from 0")))
}

/// Which entries.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    /// The cursor `next` of the page before.
    #[param(pattern = "^([0-9]+:[0-9]+(,[0-9]+:[0-9]+)*)?$")]
    after: Option<String>,
    /// At most so many.
    #[serde(default, deserialize_with = "number")]
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
    /// Only this event type, or all that begin so where it ends in `.`
    #[serde(rename = "type")]
    event_type: Option<String>,
    /// Only this stream.
    #[param(
        pattern = "^(ledger|heads|legacy|chain-[1-9][0-9]{0,8}|(order|sku)-[0-9a-f]{32}|delivery-[0-9a-f]{32}-[1-9][0-9]{0,8})$"
    )]
    stream: Option<String>,
    /// Recorded then or later, RFC 3339.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Recorded before then, RFC 3339.
    #[param(format = DateTime)]
    until: Option<String>,
}

/// A page of entries.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventsPage {
    #[schema(example = true)]
    ok: bool,
    /// Chain by chain within a page; ascending and without gaps in each chain, but for what the filters leave out.
    events: Vec<AuditEvent>,
    /// For `after`; it also holds when there is nothing more yet.
    next: String,
    /// Whether there is more now.
    more: bool,
}

fn time(name: &str, text: Option<&str>) -> Result<Option<i64>, ApiError> {
    let form = || ApiError::invalid(format!("{name} must be a time by RFC 3339, such as 2026-11-25T10:00:00Z"));
    let parse = |text: &str| {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        // Of nanoseconds the ledger knows nothing.
        i64::try_from(at.unix_timestamp_nanos().div_euclid(1000)).ok()
    };
    text.map(|text| parse(text).ok_or_else(form)).transpose()
}

/// Entries of the whole ledger, by pages
#[utoipa::path(
    get,
    path = "/audit/events",
    tag = "audit",
    params(EventsQuery),
    responses((status = 200, description = "A page", body = EventsPage), ReadErrors),
    security(("token" = [])),
)]
pub(crate) async fn events(state: Shared, query: Query<EventsQuery>) -> Result<HttpResponse, ApiError> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::invalid(format!("limit must be from 1 to {LIMIT_MAX}")));
    }
    let (since, until) = (time("since", query.since.as_deref())?, time("until", query.until.as_deref())?);
    let stream = query
        .stream
        .as_deref()
        .map(|name| Stream::parse(name).ok_or_else(|| ApiError::invalid("stream is not the name of a stream")));
    let chains = state.ledger.genesis().chains;
    let at = Cursor::parse(query.after.as_deref().unwrap_or_default(), chains)?;
    let wanted = Wanted { event_type: query.event_type.clone(), stream: stream.transpose()?, since, until, limit };
    let read = async {
        at.check(&state.ledger.sizes().await?)?;
        wanted.read(&state, at).await
    };
    let page = in_time(read).await?;
    Ok(HttpResponse::Ok().json(page))
}

struct Wanted {
    event_type: Option<String>,
    stream: Option<Stream>,
    since: Option<i64>,
    until: Option<i64>,
    limit: usize,
}

impl Wanted {
    fn takes(&self, entry: &Entry, stream: Option<&str>) -> bool {
        let h = &entry.header;
        let by_type = self
            .event_type
            .as_ref()
            .is_none_or(|t| h.event_type == *t || (t.ends_with('.') && h.event_type.starts_with(t.as_str())));
        by_type && stream.is_none_or(|s| h.stream == s)
    }

    async fn read(&self, state: &State, mut at: Cursor) -> Result<EventsPage, ApiError> {
        let ledger = &state.ledger;
        let chains = ledger.genesis().chains;
        let only = self.stream.map(|s| (s.chain(chains), s.to_string()));
        let mut found: Vec<Entry> = Vec::new();
        let mut looked_at = 0;
        let mut more = false;
        'chains: for chain in (0..chains).filter(|c| only.as_ref().is_none_or(|(chain, _)| chain == c)) {
            if let Some(since) = self.since {
                let first = ledger.first_index_since(chain, since).await?;
                let next = &mut at.0[chain as usize];
                *next = (*next).max(first);
            }
            loop {
                let entries = match &self.stream {
                    // Streams are followed by their own links.
                    Some(stream) => {
                        let all = ledger.read_stream(*stream).await?;
                        all.into_iter().filter(|e| e.header.index >= at.0[chain as usize]).collect()
                    }
                    None => ledger.read_chain(chain, at.0[chain as usize], PAGE).await?,
                };
                let full = self.stream.is_none() && entries.len() == PAGE;
                for entry in entries {
                    if self.until.is_some_and(|until| entry.header.recorded_at_us >= until) {
                        continue 'chains;
                    }
                    if found.len() == self.limit || looked_at == LOOKED_AT_MAX {
                        more = true;
                        break 'chains;
                    }
                    looked_at += 1;
                    at.saw(chain, entry.header.index);
                    if self.takes(&entry, only.as_ref().map(|(_, s)| s.as_str())) {
                        found.push(entry);
                    }
                }
                if !full {
                    break;
                }
            }
        }
        let found = ledger.with_commits(found).await?;
        let events = found.iter().map(|(entry, commit)| AuditEvent::of(entry, commit)).collect::<Result<_, _>>()?;
        Ok(EventsPage { ok: true, events, next: at.to_string(), more })
    }
}

fn no_entry() -> ApiError {
    ApiError::not_found("there is no such entry, or it is not yours")
}

/// The entry with an id, if the caller may see it: an auditor every one, a buyer those of own orders.
async fn visible_entry(state: &State, caller: &Caller, id: &str) -> Result<Entry, ApiError> {
    let id = EventId::parse(id).ok_or_else(no_entry)?;
    let entry = state.ledger.read_event(id).await?.ok_or_else(no_entry)?;
    if !caller.has(Role::Auditor) {
        let case = match Stream::parse(&entry.header.stream) {
            Some(Stream::Order(case) | Stream::Delivery(case, _)) => case,
            _ => return Err(no_entry()),
        };
        visible_order(state, caller, case).await.map_err(|e| match e.code {
            Code::NotFound => no_entry(),
            _ => e,
        })?;
    }
    Ok(entry)
}

/// One entry.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventAnswer {
    #[schema(example = true)]
    ok: bool,
    event: AuditEvent,
}

/// One entry
#[utoipa::path(
    get,
    path = "/audit/events/{id}",
    tag = "audit",
    params(("id" = String, Path, description = "The event id")),
    responses((status = 200, description = "The entry with its commit", body = EventAnswer), ReadErrors),
    security(("token" = [])),
)]
pub(crate) async fn event(state: Shared, caller: Caller, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let read = async {
        let entry = visible_entry(&state, &caller, &id).await?;
        let found = state.ledger.with_commits(vec![entry]).await?.pop();
        let (entry, commit) = found.ok_or_else(no_entry)?;
        AuditEvent::of(&entry, &commit)
    };
    let event = in_time(read).await?;
    Ok(HttpResponse::Ok().json(EventAnswer { ok: true, event }))
}

/// No checkpoint covers the entry yet.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NotYet {
    #[schema(example = true)]
    ok: bool,
    #[schema(example = "pending")]
    status: &'static str,
    message: &'static str,
}

/// The proof file of an entry: `audit-verify proof FILE --trust LEDGER_ID` checks it offline (FORMAT.md 12)
#[utoipa::path(
    get,
    path = "/audit/events/{id}/proof",
    tag = "audit",
    params(("id" = String, Path, description = "The event id")),
    responses(
        (status = 200, description = "The proof file; keep its bytes", body = Object),
        (status = 202, description = "No checkpoint covers the entry yet; ask again", body = NotYet,
            headers(("Retry-After" = u64))),
        ReadErrors,
    ),
    security(("token" = [])),
)]
pub(crate) async fn entry_proof(state: Shared, caller: Caller, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let read = async {
        let entry = visible_entry(&state, &caller, &id).await?;
        Ok(state.ledger.proof(entry.header.chain, entry.header.index, false).await)
    };
    let proof = match in_time(read).await? {
        Err(ProveError::NoCheckpoint { .. }) => {
            let seconds = state.settings.checkpoint_every.as_secs().max(1);
            let message = "no checkpoint covers the entry yet; ask again in a while";
            let mut answer = HttpResponse::Accepted();
            answer.insert_header((RETRY_AFTER, seconds.to_string()));
            return Ok(answer.json(NotYet { ok: true, status: "pending", message }));
        }
        proof => proof?,
    };
    let cannot = |e: ledger_engine::proof::ProofError| {
        ApiError::new(Code::Internal, "the proof file cannot be written").internal(e.to_string())
    };
    let bytes = proof.encode().map_err(cannot)?;
    let name = format!("attachment; filename=\"{}.proof\"", proof.entry.header.id());
    Ok(HttpResponse::Ok().content_type("application/json").insert_header((CONTENT_DISPOSITION, name)).body(bytes))
}

/// Which chain.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointQuery {
    /// Default 0, which anchors the whole ledger.
    #[serde(default, deserialize_with = "number")]
    #[param(minimum = 0, maximum = 4_294_967_295_u64)]
    chain: Option<u32>,
}

/// A signed tree head.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CheckpointAnswer {
    #[schema(example = true)]
    ok: bool,
    chain: u32,
    origin: String,
    size: u64,
    /// RFC 6962 root, hex.
    root: String,
    /// The signed note (C2SP tlog-checkpoint); keep it, it is an anchor.
    note: String,
}

fn chain_of(state: &State, chain: Option<u32>) -> Result<u32, ApiError> {
    let (chain, chains) = (chain.unwrap_or(0), state.ledger.genesis().chains);
    if chain < chains { Ok(chain) } else { Err(ApiError::not_found(format!("there are {chains} chains, from 0"))) }
}

async fn last_checkpoint(state: &State, chain: u32) -> Result<(Checkpoint, String), ApiError> {
    let note = state.ledger.checkpoint_note(chain, None).await?;
    let note = note.ok_or_else(|| ApiError::not_found("there is no checkpoint of this chain yet"))?;
    let parsed = Note::parse(note.as_bytes()).ok().and_then(|n| Checkpoint::parse(&n.text).ok());
    let damaged = || ApiError::new(Code::LedgerCorrupt, "the stored checkpoint is damaged");
    Ok((parsed.ok_or_else(damaged)?, note))
}

/// The last signed tree head of a chain; as plain text for `Accept: text/plain`
#[utoipa::path(
    get,
    path = "/audit/checkpoint",
    tag = "audit",
    params(CheckpointQuery),
    responses(
        (status = 200, description = "The checkpoint", content((CheckpointAnswer = "application/json"), (String = "text/plain"))),
        ReadErrors,
    ),
)]
pub(crate) async fn checkpoint(
    req: HttpRequest,
    state: Shared,
    query: Query<CheckpointQuery>,
) -> Result<HttpResponse, ApiError> {
    let chain = chain_of(&state, query.chain)?;
    let (found, note) = in_time(last_checkpoint(&state, chain)).await?;
    let accept = req.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if accept.trim_start().starts_with("text/plain") {
        return Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(note));
    }
    let Checkpoint { origin, size, root } = found;
    let answer = CheckpointAnswer { ok: true, chain, origin, size, root: root.to_hex(), note };
    Ok(HttpResponse::Ok().json(answer))
}

/// Two sizes of a chain.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsistencyQuery {
    /// Default 0.
    #[serde(default, deserialize_with = "number")]
    #[param(minimum = 0, maximum = 4_294_967_295_u64)]
    chain: Option<u32>,
    /// The smaller size, such as that of a checkpoint that was kept.
    #[serde(default, deserialize_with = "number")]
    #[param(required = true, minimum = 1, maximum = 9_007_199_254_740_991_u64)]
    from: Option<u64>,
    /// The larger size [default: that of the last checkpoint].
    #[serde(default, deserialize_with = "number")]
    #[param(minimum = 1, maximum = 9_007_199_254_740_991_u64)]
    to: Option<u64>,
}

/// That an older tree is a prefix of a newer one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConsistencyAnswer {
    #[schema(example = true)]
    ok: bool,
    chain: u32,
    from: u64,
    to: u64,
    /// RFC 6962 2.1.2, hex.
    proof: Vec<String>,
}

/// Proof that the tree of one size is a prefix of that of another
#[utoipa::path(
    get,
    path = "/audit/consistency",
    tag = "audit",
    params(ConsistencyQuery),
    responses((status = 200, description = "The proof", body = ConsistencyAnswer), ReadErrors),
)]
pub(crate) async fn consistency(state: Shared, query: Query<ConsistencyQuery>) -> Result<HttpResponse, ApiError> {
    let chain = chain_of(&state, query.chain)?;
    let from = query.from.ok_or_else(|| ApiError::invalid("from is required: the smaller size"))?;
    let read = async {
        let to = match query.to {
            Some(to) => to,
            None => last_checkpoint(&state, chain).await?.0.size,
        };
        let size = state.ledger.sizes().await?.get(chain as usize).copied().unwrap_or(0);
        if from.max(to) > size {
            // Not the caller's fault: of a size that a checkpoint has, this is the answer of a server that lost entries.
            return Err(ApiError::not_found(format!("the chain has {size} entries, and not {}", from.max(to))));
        }
        if !(1..=to).contains(&from) {
            return Err(ApiError::invalid("from must be at least 1, and not beyond to"));
        }
        let proof = state.ledger.consistency_proof(chain, from, to).await?;
        Ok(ConsistencyAnswer { ok: true, chain, from, to, proof: proof.iter().map(|h| h.to_hex()).collect() })
    };
    let answer = in_time(read).await?;
    Ok(HttpResponse::Ok().json(answer))
}
