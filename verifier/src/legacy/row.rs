//! Rows as the sources give them.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::canonical::{Fault, Scanner};
use super::judge::shown;

/// The largest row: one line, one file, or one payload of a table. Bytes.
pub const ROW_BYTES_MAX: usize = 16 << 20;

/// One row before judgement. Absent and null are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawRow<'a> {
    pub(crate) id: Option<Cow<'a, str>>,
    pub(crate) actor: Option<Cow<'a, str>>,
    pub(crate) event_type: Option<Cow<'a, str>>,
    /// JSON text.
    pub(crate) payload: Option<Cow<'a, str>>,
    pub(crate) time: Option<Cow<'a, str>>,
    pub(crate) hash: Option<Cow<'a, str>>,
    pub(crate) prev_hash: Option<Cow<'a, str>>,
    pub(crate) signature: Option<Cow<'a, str>>,
    pub(crate) kid: Option<Cow<'a, str>>,
}

/// Why a row could not be taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RowFault {
    /// It is over [`ROW_BYTES_MAX`].
    TooLarge,
    /// With what is wrong.
    Undecodable(String),
}

impl From<Fault> for RowFault {
    fn from(fault: Fault) -> RowFault {
        RowFault::Undecodable(fault.to_string())
    }
}

/// Rows read together, to be judged in parallel.
pub(crate) trait Rows: Send + Sync {
    /// How many.
    fn len(&self) -> usize;
    /// The row at a place below `len`.
    fn row(&self, at: usize) -> Result<RawRow<'_>, RowFault>;
}

/// The members of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Member {
    Id,
    Actor,
    EventType,
    Payload,
    Time,
    Hash,
    PrevHash,
    Signature,
    Kid,
}

impl Member {
    pub(crate) const ALL: [Member; 9] = [
        Member::Id,
        Member::Actor,
        Member::EventType,
        Member::Payload,
        Member::Time,
        Member::Hash,
        Member::PrevHash,
        Member::Signature,
        Member::Kid,
    ];

    /// What a column, or a key of an event's object, is.
    pub(crate) fn named(name: &str) -> Option<Member> {
        Some(match name {
            "id" => Member::Id,
            "actor_id" | "actorId" => Member::Actor,
            "event_type" | "eventType" => Member::EventType,
            "payload" => Member::Payload,
            "created_at" | "createdAt" | "ts" => Member::Time,
            "hash" => Member::Hash,
            "prev_hash" | "prevHash" => Member::PrevHash,
            "signature" => Member::Signature,
            "signer_kid" | "signerKid" | "signer_id" | "signerId" => Member::Kid,
            _ => return None,
        })
    }
}

impl<'a> RawRow<'a> {
    /// The place of a member.
    pub(crate) fn slot(&mut self, member: Member) -> &mut Option<Cow<'a, str>> {
        match member {
            Member::Id => &mut self.id,
            Member::Actor => &mut self.actor,
            Member::EventType => &mut self.event_type,
            Member::Payload => &mut self.payload,
            Member::Time => &mut self.time,
            Member::Hash => &mut self.hash,
            Member::PrevHash => &mut self.prev_hash,
            Member::Signature => &mut self.signature,
            Member::Kid => &mut self.kid,
        }
    }

    /// Reads one event's JSON object. Members that the chain does not know are passed over; one given twice, under any
    /// of its names, is refused, because readers would disagree about it.
    pub(crate) fn from_json(bytes: &'a [u8]) -> Result<RawRow<'a>, RowFault> {
        let text = std::str::from_utf8(bytes)
            .map_err(|e| RowFault::Undecodable(format!("not UTF-8 at byte {}", e.valid_up_to())))?;
        let mut row = RawRow::default();
        let mut given = [false; Member::ALL.len()];
        let mut scanner = Scanner::new(text);
        scanner.expect(b'{')?;
        if !scanner.take(b'}') {
            loop {
                scanner.space();
                let key = scanner.string()?;
                scanner.expect(b':')?;
                match Member::named(&key) {
                    // It counts for nothing, and a line that is no JSON is no row to anybody else either.
                    None => drop(
                        serde_json::from_str::<IgnoredAny>(scanner.skip()?)
                            .map_err(|e| RowFault::Undecodable(format!("{}: {e}", shown(&key))))?,
                    ),
                    Some(member) => {
                        if std::mem::replace(&mut given[member as usize], true) {
                            return Err(RowFault::Undecodable(format!("{key} is given twice")));
                        }
                        *row.slot(member) = value(&mut scanner, member, &key)?;
                    }
                }
                if !scanner.take(b',') {
                    break;
                }
            }
            scanner.expect(b'}')?;
        }
        if !scanner.at_end() {
            return Err(RowFault::Undecodable("text follows the event".into()));
        }
        Ok(row)
    }
}

fn value<'a>(scanner: &mut Scanner<'a>, member: Member, key: &str) -> Result<Option<Cow<'a, str>>, RowFault> {
    if member == Member::Payload {
        return Ok(Some(scanner.skip()?.into()));
    }
    match scanner.peek() {
        Some(b'"') => Ok(Some(scanner.string()?)),
        Some(b'n') if scanner.skip()? == "null" => Ok(None),
        Some(b'-' | b'0'..=b'9') if member == Member::Id => Ok(Some(scanner.number()?.0.into())),
        _ => Err(RowFault::Undecodable(format!("{key} is no text"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_every_member() {
        let snake = br#"{"id":7,"actor_id":"a","event_type":"t","payload":{"x":[1]},"created_at":"c","hash":"h",
            "prev_hash":null,"signature":"s","signer_kid":"k","metadata":{"deep":[1e999]},"archived":true}"#;
        let camel = br#"{"signerId":"k","signature":"s","prevHash":null,"hash":"\u0068","ts":"c","payload":{"x":[1]},
            "eventType":"t","actorId":"a","id":"7"}"#;
        let row = RawRow::from_json(snake).unwrap();
        assert_eq!(row, RawRow::from_json(camel).unwrap());
        assert_eq!(row.payload.as_deref(), Some(r#"{"x":[1]}"#));
        assert_eq!((row.id.as_deref(), row.hash.as_deref(), row.prev_hash), (Some("7"), Some("h"), None));
    }

    #[test]
    fn rows_that_readers_could_disagree_about() {
        for bad in [
            &b"{\"id\":1,\"id\":1}"[..],
            b"{\"prev_hash\":\"\",\"prevHash\":\"\"}",
            b"{\"hash\":1}",
            b"{\"signature\":[]}",
            b"{\"id\":1}{}",
            b"{\"id\":1,}",
            b"[]",
            b"",
            b"{\"id\":\"\xff\"}",
            b"{\"payload\":}",
            b"\0",
        ] {
            assert!(RawRow::from_json(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
