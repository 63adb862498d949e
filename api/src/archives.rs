//! Which archive a command means: a directory or a bucket of S3.

use std::path::Path;
use std::sync::Arc;

use audit_verify::is_bucket;
use ledger_engine::archive::locked::{LockPolicy, LockedArchive};
use ledger_engine::archive::place::{Archive, DirectoryArchive};
use ledger_engine::bucket::{Bucket, parse_url, url_of};
use ledger_engine::export::record::ObjectLock;
use ledger_engine::time::rfc3339;

use crate::CliError;
use crate::signers::variable;

/// How objects are locked. Retention of seven years is the runbooks' default.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Object Lock (S3)")]
pub(crate) struct Locking {
    /// COMPLIANCE, or GOVERNANCE, which those with a special right can shorten
    #[arg(long, default_value = "COMPLIANCE", value_parser = ["COMPLIANCE", "GOVERNANCE"])]
    pub(crate) lock_mode: String,
    /// Days that objects are kept
    #[arg(long, default_value_t = 2557, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) retain_days: u32,
    /// Days that files with private documents are kept [default: the same]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) private_retain_days: Option<u32>,
    /// Set a legal hold besides
    #[arg(long)]
    pub(crate) legal_hold: bool,
}

/// The archive that was named, or the one of the environment.
pub(crate) fn named(given: Option<&str>) -> Result<String, CliError> {
    if let Some(text) = given {
        return Ok(text.to_owned());
    }
    let bucket = variable("S3_AUDIT_BUCKET").map(|bucket| format!("s3://{bucket}"));
    bucket.ok_or_else(|| {
        CliError::Usage("name the archive with --out DIR or --out s3://BUCKET, or set S3_AUDIT_BUCKET".into())
    })
}

/// What the ledger's record calls an archive. Nothing is made or asked.
pub(crate) fn location(place: &str, location: Option<String>) -> Result<String, CliError> {
    if let Some((bucket, prefix)) = parse_url(place) {
        return Ok(url_of(&bucket, &prefix));
    }
    let io = |e| CliError::Io(place.to_owned(), e);
    let path = Path::new(place);
    let path = if path.exists() { path.canonicalize() } else { std::path::absolute(path) };
    Ok(location.unwrap_or(path.map_err(io)?.display().to_string()))
}

/// Opens an archive for writing. `location` is what the ledger's record calls it, where a directory has been moved.
pub(crate) async fn open(
    place: &str,
    location: Option<String>,
    locking: &Locking,
) -> Result<Arc<dyn Archive>, CliError> {
    if !is_bucket(place) {
        if location.as_deref().is_some_and(is_bucket) {
            return Err(CliError::Usage("--location is what a directory is called: the URL of a bucket is not".into()));
        }
        return Ok(Arc::new(DirectoryArchive::open(Path::new(place), location)?));
    }
    if location.is_some() {
        return Err(CliError::Usage("--location is for directories: a bucket is known by its URL".into()));
    }
    let policy = LockPolicy {
        mode: locking.lock_mode.clone(),
        retain_days: locking.retain_days,
        private_retain_days: locking.private_retain_days.unwrap_or(locking.retain_days),
        legal_hold: locking.legal_hold,
    };
    let bucket = bucket(place).await?;
    Ok(Arc::new(LockedArchive::new(bucket, policy, std::env::temp_dir())))
}

/// Opens the archive that a ledger's record names so, for looking at it where it is now.
pub(crate) async fn recorded(location: &str, at: &str) -> Result<Arc<dyn Archive>, CliError> {
    if !is_bucket(at) {
        return Ok(Arc::new(DirectoryArchive::recorded(at.into(), location)));
    }
    // Nothing is put, so that how it would be locked does not matter.
    let policy = LockPolicy { mode: String::new(), retain_days: 0, private_retain_days: 0, legal_hold: false };
    Ok(Arc::new(LockedArchive::new(bucket(at).await?, policy, std::env::temp_dir())))
}

/// Opens a bucket. It has a runtime of its own, which must not be waited for in this one.
pub(crate) async fn bucket(url: &str) -> Result<Bucket, CliError> {
    let url = url.to_owned();
    let opened = tokio::task::spawn_blocking(move || Bucket::open(&url, &variable)).await;
    let opened = opened.map_err(|e| CliError::Usage(e.to_string()))?;
    opened.map_err(|e| CliError::Usage(e.to_string()))
}

/// How something is kept, for people.
pub(crate) fn kept_text(mode: &str, until: &str, legal_hold: bool) -> String {
    let weaker = if mode == "GOVERNANCE" { " (weaker: some may shorten it)" } else { "" };
    let hold = if legal_hold { ", legal hold" } else { "" };
    format!("{mode}{weaker} until {until}{hold}")
}

pub(crate) fn lock_text(lock: &ObjectLock) -> String {
    let mut text = kept_text(&lock.mode, &rfc3339(lock.retain_until_us), lock.legal_hold);
    if lock.private_retain_until_us != lock.retain_until_us {
        text.push_str(&format!("; private documents until {}", rfc3339(lock.private_retain_until_us)));
    }
    text
}

pub(crate) fn lock_json(lock: Option<&ObjectLock>) -> serde_json::Value {
    let Some(lock) = lock else { return serde_json::Value::Null };
    serde_json::json!({
        "mode": lock.mode, "retain_until": rfc3339(lock.retain_until_us),
        "private_retain_until": rfc3339(lock.private_retain_until_us), "legal_hold": lock.legal_hold,
    })
}
