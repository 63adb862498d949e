//! The rules of orders, deliveries and SKUs: `decide(state, command) -> events` and `apply(state, event)`, pure.
//!
//! [`case::Case::apply`] and [`sku::Sku::apply`] hold the transition rules of schema version 1 (FORMAT.md 9) and are
//! the only place that does: deciders try their events on a copy, verifiers fold with the same functions.

pub mod case;
pub mod command;
pub mod decide;
pub mod fields;
pub mod finalisation;
pub mod money;
pub mod projection;
pub mod sku;

use crate::body::Body;
use crate::header::Header;
use crate::json::Object;
use crate::stream::Stream;

/// An event of a case or SKU that is about to become, or has become, an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The stream it is appended to.
    pub stream: Stream,
    /// Its type; all types are listed in FORMAT.md 9.
    pub event_type: &'static str,
    /// Its data.
    pub payload: Object,
}

/// An event with the facts of its entry that rules and projections use.
#[derive(Clone, Copy, Debug)]
pub struct Occurrence<'a> {
    /// The entry's stream.
    pub stream: Stream,
    /// Place in the stream.
    pub revision: u64,
    /// The entry's type.
    pub event_type: &'a str,
    /// The body's payload.
    pub payload: &'a Object,
    /// Place in the chain.
    pub index: u64,
    /// Microseconds since the Unix epoch.
    pub recorded_at_us: i64,
    /// Whether the body names a private document.
    pub has_private: bool,
}

impl<'a> Occurrence<'a> {
    /// The event of an entry.
    pub fn of<S: AsRef<str>>(header: &'a Header<S>, stream: Stream, body: &'a Body) -> Occurrence<'a> {
        Occurrence {
            stream,
            revision: header.revision,
            event_type: header.event_type.as_ref(),
            payload: &body.payload,
            index: header.index,
            recorded_at_us: header.recorded_at_us,
            has_private: body.private_sha256.is_some(),
        }
    }
}

/// Why an event is not allowed: a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Illegal(pub String);

impl From<fields::FieldError> for Illegal {
    fn from(e: fields::FieldError) -> Self {
        Illegal(format!("payload member {} is missing, unknown or malformed", e.0))
    }
}

/// `Err(Illegal)` with a sentence, unless `ok`.
pub(crate) fn allowed(ok: bool, why: impl FnOnce() -> String) -> Result<(), Illegal> {
    if ok { Ok(()) } else { Err(Illegal(why())) }
}
