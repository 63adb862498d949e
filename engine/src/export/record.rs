//! What the ledger says of its own exports: the events of the stream `exports` (FORMAT.md 17).
//!
//! `audit_export.started` is the plan of a batch, appended before anything is written: whoever finishes the batch later makes
//! the same files. `audit_export.completed` repeats the plan and says what was made, read back and found in order. `ledger.restored` is the first
//! entry of a ledger that goes on after it was restored.

use crate::domain::fields::{Fields, count, hash, list, object, text1};
use crate::domain::{Illegal, Occurrence, allowed};
use crate::hash::Hash;
use crate::json::{Object, Value};
use crate::stream::Stream;
use crate::succession::TreeHead;
use crate::time::rfc3339;

/// Type of the event with a batch's plan.
pub const STARTED: &str = "audit_export.started";
/// Type of the event of a batch that is there and was read back.
pub const COMPLETED: &str = "audit_export.completed";

/// Type of the event with which a ledger goes on after it was restored.
pub const RESTORED: &str = "ledger.restored";

/// A range of one chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannedRange {
    /// Index of the first entry.
    pub from: u64,
    /// Index after the last entry.
    pub to: u64,
}

/// What a batch is to hold, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its name: what its directory is called.
    pub batch: String,
    /// The environment that it was made for, such as `prod`.
    pub env: String,
    /// When it was planned, microseconds since 1970. It is the time in everything that the batch says.
    pub exported_at_us: i64,
    /// The archive: a directory's path or `s3://bucket/prefix`.
    pub location: String,
    /// Whether private documents are in it.
    pub private: bool,
    /// One for each chain, by number.
    pub ranges: Vec<PlannedRange>,
    /// Its number in the archive, from 1.
    pub sequence: u64,
    /// Whether entries are in it as tables too.
    pub tables: bool,
}

/// How objects of a batch are locked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectLock {
    /// `COMPLIANCE` or `GOVERNANCE`.
    pub mode: String,
    /// No version can be deleted before this time, microseconds since 1970.
    pub retain_until_us: i64,
    /// The same for files with private documents, which are kept for a time of their own.
    pub private_retain_until_us: i64,
    /// Whether a legal hold was set besides.
    pub legal_hold: bool,
}

/// How one object is kept, as it is asked for or found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// `COMPLIANCE` or `GOVERNANCE`.
    pub mode: String,
    /// Until when, seconds since 1970.
    pub until_s: i64,
    /// Whether a legal hold is set.
    pub legal_hold: bool,
}

impl Retention {
    /// Whether this is less than what is wanted: what is wrong with it.
    pub fn shortfall(found: Option<&Retention>, wanted: &Retention) -> Option<String> {
        let Some(found) = found else { return Some("it is not locked".to_owned()) };
        if found.mode != wanted.mode && found.mode != "COMPLIANCE" {
            return Some(format!("it is locked in mode {}, not {}", found.mode, wanted.mode));
        }
        if found.until_s < wanted.until_s {
            let shown = |s: i64| rfc3339(s.saturating_mul(1_000_000));
            return Some(format!("it is locked until {}, not {}", shown(found.until_s), shown(wanted.until_s)));
        }
        (wanted.legal_hold && !found.legal_hold).then(|| "it has no legal hold".to_owned())
    }
}

/// A batch that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completed {
    /// What it is.
    pub plan: Plan,
    /// SHA-256 of the manifest's bytes.
    pub manifest_sha256: Hash,
    /// Version of the manifest's object, where the archive has versions.
    pub manifest_version: Option<String>,
    /// The lock, where the archive has one.
    pub lock: Option<ObjectLock>,
    /// Files with lines.
    pub files: u64,
    /// Bytes of all files as they are stored, without the manifest.
    pub bytes: u64,
}

/// That the ledger was made again from an archive, and goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The archive, as whoever restored named it.
    pub location: String,
    /// SHA-256 of the bytes of the last manifest in it.
    pub manifest_sha256: Hash,
    /// How many entries of each chain were restored, by number: those before this entry, and of other chains those that there were.
    pub sizes: Vec<u64>,
    /// The newest checkpoints that whoever restored knew of, by chain; none of more entries than were restored.
    pub newest: Vec<TreeHead>,
}

/// An event of the stream `exports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportEvent {
    /// A plan.
    Started(Plan),
    /// A batch that is there.
    Completed(Completed),
    /// A ledger that goes on after it was restored.
    Restored(Restored),
}

impl Restored {
    fn to_payload(&self) -> Object {
        Object::new()
            .with("location", self.location.as_str())
            .with("manifest_sha256", self.manifest_sha256.to_hex())
            .with("newest", self.newest.iter().map(TreeHead::to_value).collect::<Vec<_>>())
            .with("sizes", self.sizes.iter().map(|n| Value::Int(super::int(*n))).collect::<Vec<_>>())
    }

    fn read(mut fields: Fields<'_>, event: &Occurrence<'_>, chains: u32) -> Result<Restored, Illegal> {
        let restored = Restored {
            location: fields.required("location", text1),
            manifest_sha256: fields.required("manifest_sha256", hash),
            sizes: fields.required("sizes", |v| list(v, count)),
            newest: fields.required("newest", |v| list(v, TreeHead::read)),
        };
        fields.finish()?;
        let Restored { sizes, newest, .. } = &restored;
        allowed(sizes.len() == chains as usize, || "not one size for each chain".into())?;
        allowed(sizes.first().is_some_and(|size| *size <= event.index), || "it restored what comes after it".into())?;
        let within = |head: &TreeHead| sizes.get(head.chain as usize).is_some_and(|size| head.size <= *size);
        let known = newest.iter().all(within) && newest.windows(2).all(|pair| pair[0].chain < pair[1].chain);
        allowed(known, || "a checkpoint was known that it does not reach".into())?;
        Ok(restored)
    }
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        _ => None,
    }
}

impl PlannedRange {
    fn read(value: &Value) -> Option<PlannedRange> {
        let object = value.as_object().filter(|o| o.len() == 2)?;
        let range = PlannedRange { from: count(object.value("from")?)?, to: count(object.value("to")?)? };
        (range.from <= range.to).then_some(range)
    }
}

impl Plan {
    fn to_payload(&self) -> Object {
        let range = |r: &PlannedRange| {
            Value::Object(Object::new().with("from", super::int(r.from)).with("to", super::int(r.to)))
        };
        let mut payload = Object::new()
            .with("batch", self.batch.as_str())
            .with("env", self.env.as_str())
            .with("exported_at_us", self.exported_at_us)
            .with("location", self.location.as_str())
            .with("private", Value::Bool(self.private))
            .with("ranges", self.ranges.iter().map(range).collect::<Vec<_>>())
            .with("sequence", super::int(self.sequence));
        payload.set_some("tables", self.tables.then_some(Value::Bool(true)));
        payload
    }

    fn read(fields: &mut Fields<'_>) -> Plan {
        Plan {
            batch: fields.required("batch", text1),
            env: fields.required("env", text1),
            exported_at_us: fields.required("exported_at_us", |v| v.as_int().filter(|us| *us >= 0)),
            location: fields.required("location", text1),
            private: fields.required("private", boolean),
            ranges: fields.required("ranges", |v| list(v, PlannedRange::read)),
            sequence: fields.required("sequence", |v| count(v).filter(|n| *n > 0)),
            tables: fields.optional("tables", |v| boolean(v).filter(|there| *there)).unwrap_or_default(),
        }
    }
}

impl ObjectLock {
    /// What it means for an object with private documents, or for one without.
    pub fn of(&self, private: bool) -> Retention {
        let until_us = if private { self.private_retain_until_us } else { self.retain_until_us };
        Retention { mode: self.mode.clone(), until_s: until_us.div_euclid(1_000_000), legal_hold: self.legal_hold }
    }

    /// Whether an object with private documents, or one without, must still be there.
    pub fn keeps(&self, private: bool) -> bool {
        let now_s = std::time::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs() as i64);
        self.legal_hold || self.of(private).until_s > now_s
    }

    /// As it is recorded, here and in manifests.
    pub fn to_object(&self) -> Object {
        Object::new()
            .with("legal_hold", Value::Bool(self.legal_hold))
            .with("mode", self.mode.as_str())
            .with("private_retain_until_us", self.private_retain_until_us)
            .with("retain_until_us", self.retain_until_us)
    }

    /// Reads what [`ObjectLock::to_object`] makes.
    pub fn read(value: &Value) -> Option<ObjectLock> {
        object(value, |fields| ObjectLock {
            legal_hold: fields.required("legal_hold", boolean),
            mode: fields.required("mode", |v| {
                v.as_str().filter(|m| matches!(*m, "COMPLIANCE" | "GOVERNANCE")).map(str::to_owned)
            }),
            private_retain_until_us: fields.required("private_retain_until_us", Value::as_int),
            retain_until_us: fields.required("retain_until_us", Value::as_int),
        })
    }
}

impl ExportEvent {
    /// The event's type.
    pub fn event_type(&self) -> &'static str {
        match self {
            ExportEvent::Started(_) => STARTED,
            ExportEvent::Completed(_) => COMPLETED,
            ExportEvent::Restored(_) => RESTORED,
        }
    }

    /// The plan that it is about, if it is about a batch.
    pub fn plan(&self) -> Option<&Plan> {
        match self {
            ExportEvent::Started(plan) => Some(plan),
            ExportEvent::Completed(completed) => Some(&completed.plan),
            ExportEvent::Restored(_) => None,
        }
    }

    /// The event's payload.
    pub fn to_payload(&self) -> Object {
        let completed = match self {
            ExportEvent::Started(plan) => return plan.to_payload(),
            ExportEvent::Restored(restored) => return restored.to_payload(),
            ExportEvent::Completed(completed) => completed,
        };
        let mut payload = completed
            .plan
            .to_payload()
            .with("bytes", super::int(completed.bytes))
            .with("files", super::int(completed.files))
            .with("manifest_sha256", completed.manifest_sha256.to_hex());
        payload.set_some("lock", completed.lock.as_ref().map(ObjectLock::to_object));
        payload.set_some("manifest_version", completed.manifest_version.as_deref());
        payload
    }

    /// Reads an event of the stream `exports` of a ledger with this many chains, and judges what can be judged by it alone: that it is
    /// well formed, and that what it says of chain 0 lies before it.
    pub fn read(event: &Occurrence<'_>, chains: u32) -> Result<ExportEvent, Illegal> {
        let mut fields = Fields::new(event.payload);
        if (event.stream, event.event_type) == (Stream::Exports, RESTORED) {
            return Restored::read(fields, event, chains).map(ExportEvent::Restored);
        }
        let plan = Plan::read(&mut fields);
        let read = match (event.stream, event.event_type) {
            (Stream::Exports, STARTED) => ExportEvent::Started(plan),
            (Stream::Exports, COMPLETED) => ExportEvent::Completed(Completed {
                plan,
                bytes: fields.required("bytes", count),
                files: fields.required("files", count),
                manifest_sha256: fields.required("manifest_sha256", hash),
                lock: fields.optional("lock", ObjectLock::read),
                manifest_version: fields.optional("manifest_version", text1),
            }),
            _ => return Err(Illegal("no event of this stream".into())),
        };
        fields.finish()?;
        let ranges = read.plan().map(|plan| plan.ranges.as_slice()).unwrap_or_default();
        allowed(ranges.len() == chains as usize, || "not one range for each chain".into())?;
        allowed(ranges.first().is_some_and(|r| r.to <= event.index), || {
            "it exports entries that come after it".into()
        })?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            batch: "0123456789abcdef-00000002-101112".into(),
            env: "prod".into(),
            exported_at_us: 1_795_000_000_000_000,
            location: "s3://audit/ledger".into(),
            private: true,
            ranges: vec![PlannedRange { from: 3, to: 9 }, PlannedRange { from: 1, to: 1 }],
            sequence: 2,
            tables: false,
        }
    }

    fn read(event: &ExportEvent, index: u64, chains: u32) -> Result<ExportEvent, Illegal> {
        read_payload(event.event_type(), &event.to_payload(), index, chains)
    }

    fn read_payload(event_type: &str, payload: &Object, index: u64, chains: u32) -> Result<ExportEvent, Illegal> {
        let stream = Stream::Exports;
        let event =
            Occurrence { stream, revision: 1, event_type, payload, index, recorded_at_us: 0, has_private: false };
        ExportEvent::read(&event, chains)
    }

    #[test]
    fn an_event_comes_back_and_says_nothing_of_what_follows_it() {
        let lock = ObjectLock {
            mode: "COMPLIANCE".into(),
            retain_until_us: 2_000_000_000_000_000,
            private_retain_until_us: 1_900_000_000_000_000,
            legal_hold: true,
        };
        let completed = Completed {
            plan: plan(),
            manifest_sha256: Hash([1; 32]),
            manifest_version: Some("v".into()),
            lock: Some(lock),
            files: 2,
            bytes: 1000,
        };
        let bare = Completed { manifest_version: None, lock: None, ..completed.clone() };
        let tables = Plan { tables: true, ..plan() };
        for event in [
            ExportEvent::Started(plan()),
            ExportEvent::Started(tables),
            ExportEvent::Completed(completed),
            ExportEvent::Completed(bare.clone()),
        ] {
            assert_eq!(read(&event, 9, 2), Ok(event.clone()));
            assert!(read(&event, 8, 2).is_err(), "entry 8 cannot be in a batch that entry 8 tells of");
            assert!(read(&event, 9, 3).is_err(), "a chain without a range");
            for (member, value) in [
                ("sequence", Value::Int(0)),
                ("more", Value::Int(1)),
                ("env", Value::from("")),
                ("tables", Value::Bool(false)),
            ] {
                let payload = event.to_payload().with(member, value);
                assert!(read_payload(event.event_type(), &payload, 9, 2).is_err(), "{member}");
            }
            assert!(read_payload("audit_export.lost", &event.to_payload(), 9, 2).is_err());
        }
        let newest = vec![TreeHead { chain: 1, size: 4, root: Hash([2; 32]), checkpoint: None }];
        let restored = Restored { location: "a".into(), manifest_sha256: Hash([1; 32]), sizes: vec![9, 4], newest };
        let event = ExportEvent::Restored(restored.clone());
        assert_eq!(read(&event, 9, 2), Ok(event.clone()));
        assert!(read(&event, 8, 2).is_err() && read(&event, 9, 3).is_err());
        let beyond = Restored { sizes: vec![9, 3], ..restored };
        assert!(read(&ExportEvent::Restored(beyond), 9, 2).is_err(), "it lost what was signed");
        let soft = bare.plan.to_payload();
        assert!(read_payload(COMPLETED, &soft, 9, 2).is_err(), "a plan is not yet a batch");
    }
}
