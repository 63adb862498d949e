//! Handlers: decode, call the engine, map the answer. They have no rules of their own.

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod catalogue;
pub(crate) mod checkout;
pub(crate) mod deliveries;
pub(crate) mod health;
pub(crate) mod licence;
pub(crate) mod orders;
pub(crate) mod payment;
pub(crate) mod stream;

use std::future::Future;
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::web::Data;
use ledger_engine::domain::command::{Command, CommandError};
use ledger_engine::domain::projection::Row;
use ledger_engine::json::Object;
use ledger_engine::ledger::{AppendError, Appended};
use ledger_engine::stream::CaseId;
use tokio::time::Instant;

use super::auth::{Caller, Role};
use super::error::{ApiError, Code};
use super::guard::deadline;
use super::state::State;

/// The shared state, as handlers take it.
pub(crate) type Shared = Data<Arc<State>>;

/// Waits for a read no longer than the request may take.
pub(crate) async fn in_time<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    tokio::time::timeout_at(deadline(), work).await.map_err(|_| late())?
}

fn late() -> ApiError {
    ApiError::new(Code::StoreUnavailable, "the ledger did not answer in time; try again")
}

/// Appends a command. `key` is the request's idempotency key: a repetition that waits in vain for a first call is told so.
pub(crate) async fn append(
    state: &State,
    actor: &str,
    object: Object,
    key: Option<&str>,
) -> Result<Appended, ApiError> {
    let mut object = object.with("actor", actor);
    object.set_some("idempotency_key", key);
    let command = Command::from_object(object).map_err(refused)?;
    if deadline() <= Instant::now() {
        // What is not begun cannot be in doubt.
        return Err(late());
    }
    let entered = key.map(|key| state.in_flight.enter(actor, command.name, key));
    let appending = state.ledger.append(&command, "POST");
    let Ok(result) = tokio::time::timeout_at(deadline(), appending).await else {
        let repeated = entered.is_some_and(|e| e.is_repetition);
        return Err(match repeated {
            true => ApiError::new(
                Code::IdempotencyInProgress,
                "a request with this Idempotency-Key is still under way; try again",
            ),
            false => ApiError::new(
                Code::OutcomeUnknown,
                "the ledger did not answer in time; send the same request again with the same Idempotency-Key",
            ),
        });
    };
    if let Err(AppendError::Signer(_)) = &result {
        metrics::counter!("signing_errors_total").increment(1);
    }
    Ok(result?)
}

fn refused(e: CommandError) -> ApiError {
    match e {
        CommandError::TooLarge(_) => ApiError::new(Code::BodyTooLarge, e.to_string()),
        CommandError::Member(name) if matches!(name.as_str(), "finance_signature" | "finance_kid") => {
            ApiError::new(Code::LedgerProofInvalid, "the proof's signature or kid is malformed; nothing was recorded")
        }
        e => ApiError::invalid(e.to_string()),
    }
}

/// The order that a path names.
pub(crate) fn order_id(text: &str) -> Result<CaseId, ApiError> {
    CaseId::parse(text).ok_or_else(no_order)
}

pub(crate) fn no_order() -> ApiError {
    ApiError::not_found("there is no such order, or it is not yours")
}

/// Whether a caller may see an order at all: a buyer only own ones, and what is not seen is not said to exist.
pub(crate) fn may_see(state: &State, caller: &Caller, order: &Row) -> Result<(), ApiError> {
    let by_role = caller.roles.iter().any(|role| *role != Role::Buyer);
    if by_role || order.text("buyer") == state.ledger.actor_id(&caller.subject) { Ok(()) } else { Err(no_order()) }
}

/// An order with its deliveries, if the caller may see it.
pub(crate) async fn visible_order(state: &State, caller: &Caller, case: CaseId) -> Result<(Row, Vec<Row>), ApiError> {
    let found = state.ledger.order_with_deliveries(case).await?.ok_or_else(no_order)?;
    may_see(state, caller, &found.0)?;
    Ok(found)
}

/// A header's text, if there is exactly one.
pub(crate) fn header<'a>(req: &'a HttpRequest, name: &str) -> Option<&'a str> {
    let mut values = req.headers().get_all(name);
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
