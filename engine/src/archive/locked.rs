//! An archive in a bucket of S3 with Object Lock. Nothing is called kept that was not found locked by its version.

use std::io::sink;
use std::path::PathBuf;

use super::ExportError;
use super::place::{Archive, BatchTerms, Kept, NewObject, ObjectState, Spool};
use crate::bucket::{Bucket, BucketError, Head};
use crate::export::MANIFEST_NAME;
use crate::export::batch::SERVICE;
use crate::export::record::{ObjectLock, Retention};
use crate::hash::Hash;

const DAY_US: i64 = 86_400_000_000;

/// How long, and how, objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockPolicy {
    /// `COMPLIANCE` or `GOVERNANCE`.
    pub mode: String,
    /// Days for all objects.
    pub retain_days: u32,
    /// Days for files with private documents.
    pub private_retain_days: u32,
    /// Set a legal hold besides.
    pub legal_hold: bool,
}

/// The archive.
pub struct LockedArchive {
    bucket: Bucket,
    location: String,
    policy: LockPolicy,
    /// Where files wait to be sent.
    spool: PathBuf,
}

impl LockedArchive {
    /// In this bucket. Files on their way are in `spool`, a directory with room for the largest of them.
    pub fn new(bucket: Bucket, policy: LockPolicy, spool: PathBuf) -> LockedArchive {
        LockedArchive { location: bucket.url(), bucket, policy, spool }
    }

    fn failed(&self, e: &BucketError) -> ExportError {
        ExportError::Archive(self.location.clone(), e.to_string())
    }

    fn wanted(object: NewObject<'_>, terms: &BatchTerms) -> Retention {
        terms.lock.clone().unwrap_or_default().of(object.private)
    }
}

impl Archive for LockedArchive {
    fn location(&self) -> &str {
        &self.location
    }

    fn locks(&self) -> bool {
        true
    }

    fn terms(&self, exported_at_us: i64) -> Result<Option<ObjectLock>, ExportError> {
        let unfit = |why: String| ExportError::Unfit(self.location.clone(), why);
        let rule = self.bucket.lock_rule().map_err(|e| unfit(e.to_string()))?;
        if let Some(rule) = rule {
            if rule.days > i64::from(self.policy.retain_days.min(self.policy.private_retain_days)) {
                return Err(unfit(format!(
                    "the bucket's own policy keeps objects for {} days, and this export would keep some for less; give --retain-days {}",
                    rule.days, rule.days
                )));
            }
            if rule.mode == "COMPLIANCE" && self.policy.mode != rule.mode {
                return Err(unfit(
                    "the bucket's own policy is COMPLIANCE; export with --lock-mode COMPLIANCE".to_owned(),
                ));
            }
        }
        // Whole seconds: servers keep no more.
        let until = |days: u32| (exported_at_us + i64::from(days) * DAY_US).div_euclid(1_000_000) * 1_000_000;
        Ok(Some(ObjectLock {
            mode: self.policy.mode.clone(),
            retain_until_us: until(self.policy.retain_days),
            private_retain_until_us: until(self.policy.private_retain_days),
            legal_hold: self.policy.legal_hold,
        }))
    }

    fn spool(&self, name: &str) -> Result<Spool, ExportError> {
        Spool::make(self.spool.join(format!("ledger-export-{name}")))
    }

    fn put(&self, object: NewObject<'_>, terms: &BatchTerms) -> Result<Kept, ExportError> {
        let wanted = LockedArchive::wanted(object, terms);
        let sha256 = object.sha256.to_hex();
        let versions = match self.bucket.versions(object.key) {
            Ok(versions) => versions,
            // Who may only put does not see what is there: another version of the same bytes is no harm.
            Err(BucketError::Denied(..)) => Vec::new(),
            Err(e) => return Err(self.failed(&e)),
        };
        for version in versions.iter().filter(|v| v.key == object.key && !v.marker) {
            let head = self.bucket.head(object.key, Some(&version.id)).map_err(|e| self.failed(&e))?;
            let same = head.bytes == object.bytes && head.sha256.as_ref() == Some(&sha256);
            if same && Retention::shortfall(head.retention.as_ref(), &wanted).is_none() {
                let _ = std::fs::remove_file(object.path);
                return Ok(Kept { version: Some(version.id.clone()) });
            }
        }
        let mut metadata = terms.metadata.clone();
        metadata.push(("sha256", sha256));
        let version = self.bucket.put(object.key, object.path, &metadata, &wanted).map_err(|e| self.failed(&e))?;
        // It only takes room; the spool is removed in the end.
        let _ = std::fs::remove_file(object.path);
        Ok(Kept { version: Some(version) })
    }

    fn check(&self, object: NewObject<'_>, kept: &Kept, terms: &BatchTerms) -> Result<(), ExportError> {
        let version = kept.version.as_deref();
        let wrong = |why: String| ExportError::Archive(self.location.clone(), format!("{}: {why}", object.key));
        let Head { bytes, retention, .. } = self.bucket.head(object.key, version).map_err(|e| self.failed(&e))?;
        if let Some(why) = Retention::shortfall(retention.as_ref(), &LockedArchive::wanted(object, terms)) {
            return Err(wrong(format!("{why}, though it was put so; the server cannot be trusted with an archive")));
        }
        let read = self.bucket.get(object.key, version, object.bytes, &mut sink()).map_err(|e| self.failed(&e))?;
        if bytes != object.bytes || read != (object.sha256, object.bytes) {
            return Err(wrong("it was read back with other bytes than were sent".to_owned()));
        }
        Ok(())
    }

    fn manifests(&self, prefix: &str, after: Option<&str>) -> Result<Vec<(String, Option<String>)>, ExportError> {
        let mut first: std::collections::BTreeMap<String, String> = Default::default();
        let found = self.bucket.versions_after(&format!("{SERVICE}/"), after).map_err(|e| self.failed(&e))?;
        for version in found {
            let mut parts = version.key.split('/').skip(2);
            let named =
                parts.next().is_some_and(|name| name.starts_with(prefix)) && parts.next() == Some(MANIFEST_NAME);
            if named && !version.marker {
                // They come newest first.
                first.insert(version.key, version.id);
            }
        }
        Ok(first.into_iter().map(|(key, version)| (key, Some(version))).collect())
    }

    fn state(&self, key: &str, version: Option<&str>) -> Result<ObjectState, ExportError> {
        let (mut state, mut latest) = (ObjectState::default(), None);
        for found in self.bucket.versions(key).map_err(|e| self.failed(&e))?.into_iter().filter(|v| v.key == key) {
            state.hidden |= found.latest && found.marker;
            state.there |= !found.marker && version.is_none_or(|id| id == found.id);
            if !found.marker {
                latest.get_or_insert(found.id);
            }
        }
        state.shadowed = version.is_some() && latest.as_deref() != version && latest.is_some();
        if state.there {
            state.retention = self.bucket.head(key, version).map_err(|e| self.failed(&e))?.retention;
        }
        Ok(state)
    }

    fn read(
        &self,
        key: &str,
        version: Option<&str>,
        most: u64,
        out: &mut (dyn std::io::Write + Send),
    ) -> Result<(Hash, u64), ExportError> {
        self.bucket.get(key, version, most, out).map_err(|e| self.failed(&e))
    }
}
