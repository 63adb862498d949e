//! What the ledger records of the chain of `audit_events` that it adopts (FORMAT.md 14), and the leaves of its tree.

use crate::domain::fields::{Fields, count, hash, list, object, text1};
use crate::domain::{Illegal, Occurrence, allowed};
use crate::hash::Hash;
use crate::json::{Object, Value, write_string};
use crate::stream::Stream;

/// The type of the events of the stream `legacy`.
pub const EVENT_TYPE: &str = "legacy.adopted";
/// The payload's member `format`: how rows become leaves, and in which order.
pub const FORMAT: &str = "audit-events/1";

/// The rows of a legacy chain as they were when the ledger adopted them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// How many rows, from 1.
    pub count: u64,
    /// RFC 6962 root over their leaves.
    pub root: Hash,
    /// Legacy hash of the last row.
    pub head_hash: Hash,
    /// The first row.
    pub first: RowName,
    /// The last row.
    pub last: RowName,
    /// The public keys that their signatures were checked with.
    pub registry: AdoptedRegistry,
    /// The adoption before this one.
    pub previous: Option<Previous>,
    /// What was known to be wrong with the rows, if anything was.
    pub findings: Option<AcceptedFindings>,
}

/// How people find a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowName {
    /// Its id, as reports show it; none if it has none.
    pub id: Option<String>,
    /// Its time in microseconds since 1970, where it can be read and lies within ±(2^53−1).
    pub time_us: Option<i64>,
}

/// A registry of legacy signers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdoptedRegistry {
    /// SHA-256 of the file.
    pub sha256: Hash,
    /// Every usable key by its kid, with the SHA-256 of the key.
    pub keys: Vec<(String, Hash)>,
}

/// Names an earlier adoption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// Index of its entry on chain 0.
    pub index: u64,
    /// Its root.
    pub root: Hash,
}

/// Findings that were adopted with the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceptedFindings {
    /// SHA-256 of the file with the report that lists them.
    pub report_sha256: Hash,
    /// How many of each code, codes ascending.
    pub counts: Vec<(String, u64)>,
}

/// An adoption that is an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Index on chain 0.
    pub index: u64,
    /// When it was recorded: microseconds since 1970.
    pub recorded_at_us: i64,
    /// What it says.
    pub adoption: Adoption,
}

impl Adoption {
    /// The event's payload.
    pub fn to_payload(&self) -> Object {
        let keys = self.registry.keys.iter().map(|(kid, fingerprint)| {
            Value::from(Object::new().with("fingerprint", fingerprint.to_hex()).with("kid", kid.as_str()))
        });
        let registry =
            Object::new().with("keys", keys.collect::<Vec<_>>()).with("sha256", self.registry.sha256.to_hex());
        let mut payload = Object::new()
            .with("count", self.count as i64)
            .with("first", self.first.to_object())
            .with("format", FORMAT)
            .with("head_hash", self.head_hash.to_hex())
            .with("last", self.last.to_object())
            .with("registry", registry)
            .with("root", self.root.to_hex());
        payload.set_some(
            "findings",
            self.findings.as_ref().map(|findings| {
                let counts = findings
                    .counts
                    .iter()
                    .map(|(code, n)| Value::from(Object::new().with("code", code.as_str()).with("count", *n as i64)));
                Object::new()
                    .with("counts", counts.collect::<Vec<_>>())
                    .with("report_sha256", findings.report_sha256.to_hex())
            }),
        );
        let previous = |p: &Previous| Object::new().with("index", p.index as i64).with("root", p.root.to_hex());
        payload.set_some("previous", self.previous.as_ref().map(previous));
        payload
    }

    /// Takes a payload apart; a member that is missing, unknown or malformed is refused.
    pub fn read(payload: &Object) -> Result<Adoption, Illegal> {
        let mut fields = Fields::new(payload);
        fields.required("format", |v| v.as_str().filter(|f| *f == FORMAT));
        let adoption = Adoption {
            count: fields.required("count", from_one),
            root: fields.required("root", hash),
            head_hash: fields.required("head_hash", hash),
            first: fields.required("first", RowName::read),
            last: fields.required("last", RowName::read),
            registry: fields.required("registry", AdoptedRegistry::read),
            previous: fields.optional("previous", Previous::read),
            findings: fields.optional("findings", AcceptedFindings::read),
        };
        fields.finish()?;
        Ok(adoption)
    }

    /// Reads an event of the stream `legacy` and judges it against the adoption before it.
    pub fn follow(last: Option<&Adopted>, event: &Occurrence<'_>) -> Result<Adopted, Illegal> {
        allowed(event.stream == Stream::Legacy && event.event_type == EVENT_TYPE, || "no event of this stream".into())?;
        let adoption = Adoption::read(event.payload)?;
        let previous = last.map(|l| Previous { index: l.index, root: l.adoption.root });
        allowed(adoption.previous == previous, || match previous {
            Some(p) => format!("previous should name entry {} with the root {}", p.index, p.root),
            None => "previous names an adoption, and there is none before this one".into(),
        })?;
        let before = last.map_or(0, |l| l.adoption.count);
        allowed(adoption.count > before, || format!("{before} rows were adopted before; this is not more"))?;
        Ok(Adopted { index: event.index, recorded_at_us: event.recorded_at_us, adoption })
    }
}

fn from_one(value: &Value) -> Option<u64> {
    count(value).filter(|n| *n > 0)
}

fn code(value: &Value) -> Option<String> {
    let text = value.as_str().filter(|s| crate::header::is_event_type(s) && !s.contains('.'))?;
    Some(text.to_owned())
}

impl RowName {
    fn to_object(&self) -> Object {
        let mut object = Object::new();
        object.set_some("id", self.id.as_deref());
        object.set_some("time_us", self.time_us);
        object
    }

    fn read(value: &Value) -> Option<RowName> {
        object(value, |f| RowName { id: f.optional("id", text1), time_us: f.optional("time_us", Value::as_int) })
    }
}

impl AdoptedRegistry {
    fn read(value: &Value) -> Option<AdoptedRegistry> {
        let key = |v: &Value| object(v, |f| (f.required("kid", text1), f.required("fingerprint", hash)));
        object(value, |f| AdoptedRegistry {
            sha256: f.required("sha256", hash),
            keys: f.required("keys", |v| list(v, key)),
        })
    }
}

impl Previous {
    fn read(value: &Value) -> Option<Previous> {
        object(value, |f| Previous { index: f.required("index", count), root: f.required("root", hash) })
    }
}

impl AcceptedFindings {
    fn read(value: &Value) -> Option<AcceptedFindings> {
        let item = |v: &Value| object(v, |f| (f.required("code", code), f.required("count", from_one)));
        let found = object(value, |f| AcceptedFindings {
            report_sha256: f.required("report_sha256", hash),
            counts: f.required("counts", |v| list(v, item)),
        })?;
        let ascending = found.counts.is_sorted_by(|a, b| a.0 < b.0);
        Some(found).filter(|f| ascending && !f.counts.is_empty())
    }
}

/// When a row was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowTime<'a> {
    /// It does not say.
    Absent,
    /// Microseconds since 1970, within ±(2^53−1).
    Us(i64),
    /// A text that is no time, or one too far away for a JSON number.
    Text(&'a str),
}

/// All columns of a legacy row, as a leaf holds them.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "members are those of FORMAT.md 14, name by name")]
pub struct LegacyRow<'a> {
    pub id: Option<&'a str>,
    pub actor: Option<&'a str>,
    pub event_type: Option<&'a str>,
    /// In the form of FORMAT.md 14; none for a payload that is null.
    pub payload: Option<&'a str>,
    pub time: RowTime<'a>,
    pub hash: Option<&'a str>,
    pub prev_hash: Option<&'a str>,
    pub signature: Option<&'a str>,
    pub kid: Option<&'a str>,
}

impl LegacyRow<'_> {
    /// Appends the leaf's bytes: RFC 8785 bytes of an object with nine members, null where there is no value.
    pub fn write_leaf(&self, out: &mut Vec<u8>) {
        let before_time = [
            ("{\"actor\":", self.actor),
            (",\"hash\":", self.hash),
            (",\"id\":", self.id),
            (",\"kid\":", self.kid),
            (",\"payload\":", self.payload),
            (",\"prev_hash\":", self.prev_hash),
            (",\"signature\":", self.signature),
        ];
        before_time.iter().for_each(|(name, value)| write_member(name, *value, out));
        match self.time {
            RowTime::Absent => write_member(",\"time_us\":", None, out),
            RowTime::Us(us) => out.extend_from_slice(format!(",\"time_us\":{us}").as_bytes()),
            RowTime::Text(value) => write_member(",\"time_us\":", Some(value), out),
        }
        write_member(",\"type\":", self.event_type, out);
        out.push(b'}');
    }
}

fn write_member(name: &str, value: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    match value {
        Some(value) => write_string(value, out),
        None => out.extend_from_slice(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adoption() -> Adoption {
        Adoption {
            count: 24,
            root: Hash([1; 32]),
            head_hash: Hash([2; 32]),
            first: RowName { id: Some("1".into()), time_us: Some(-5) },
            last: RowName::default(),
            registry: AdoptedRegistry { sha256: Hash([3; 32]), keys: vec![("old key".into(), Hash([4; 32]))] },
            previous: Some(Previous { index: 7, root: Hash([5; 32]) }),
            findings: Some(AcceptedFindings {
                report_sha256: Hash([6; 32]),
                counts: vec![("legacy_fork".into(), 1), ("legacy_row_unsigned".into(), 2)],
            }),
        }
    }

    #[test]
    fn payloads_are_read_as_written() {
        for full in [true, false] {
            let adoption = Adoption {
                previous: adoption().previous.filter(|_| full),
                findings: adoption().findings.filter(|_| full),
                ..adoption()
            };
            assert_eq!(Adoption::read(&adoption.to_payload()), Ok(adoption));
        }
    }

    #[test]
    fn payloads_of_another_form_are_refused() {
        let good = adoption().to_payload();
        let names: Vec<String> = good.iter().map(|(name, _)| name.to_owned()).collect();
        for name in names.iter().filter(|n| !["previous", "findings"].contains(&n.as_str())) {
            let mut bad = good.clone();
            bad.remove(name);
            assert!(Adoption::read(&bad).is_err(), "without {name}");
        }
        let wrong: [(&str, Value); 9] = [
            ("count", 0.into()),
            ("format", "audit-events/2".into()),
            ("root", "00".into()),
            ("rows", 1.into()),
            ("first", Object::new().with("id", "").into()),
            ("last", Object::new().with("time_us", "1").into()),
            ("registry", Object::new().with("sha256", Hash::ZERO.to_hex()).into()),
            ("previous", Object::new().with("index", 1).into()),
            ("findings", Object::new().with("report_sha256", Hash::ZERO.to_hex()).with("counts", vec![]).into()),
        ];
        for (name, value) in wrong {
            assert!(Adoption::read(&good.clone().with(name, value)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_leaf_is_canonical() {
        let row = LegacyRow {
            id: Some("7"),
            actor: None,
            event_type: Some("a\u{1}\"b"),
            payload: Some("{\"x\":1}"),
            time: RowTime::Us(-1),
            hash: None,
            prev_hash: Some(""),
            signature: Some("s"),
            kid: Some("k"),
        };
        let mut leaf = Vec::new();
        row.write_leaf(&mut leaf);
        assert_eq!(crate::json::parse(&leaf).unwrap().to_canonical(), leaf);
        assert_eq!(
            String::from_utf8(leaf).unwrap(),
            r#"{"actor":null,"hash":null,"id":"7","kid":"k","payload":"{\"x\":1}","prev_hash":"","signature":"s","time_us":-1,"type":"a\u0001\"b"}"#
        );
    }
}
