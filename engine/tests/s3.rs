//! Archives in a bucket of a real S3 server with Object Lock: what is done is there, locked and read back; what the server does wrong is
//! never called done; what is done to the objects later is found.
#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    DefaultRetention, ObjectLockConfiguration, ObjectLockEnabled, ObjectLockRetention, ObjectLockRetentionMode,
    ObjectLockRule,
};
use ledger_engine::archive::ExportError;
use ledger_engine::archive::check::{self, Fault};
use ledger_engine::archive::job::{ArchiveRecord, Done, directory_of};
use ledger_engine::archive::locked::{LockPolicy, LockedArchive};
use ledger_engine::archive::place::Archive;
use ledger_engine::bucket::Bucket;
use ledger_engine::environment::{Environment, SystemEnvironment};
use ledger_engine::export::record::Retention;
use ledger_engine::hash::sha256;
use ledger_engine::ledger::{Config, Ledger};
use ledger_engine::registry::Purpose;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use support::{batch_options, create_order, enrol, list_sku, signer};
use test_servers::{S3, S3Deed, S3Relay};

const EXPORT: u8 = 30;

fn policy() -> LockPolicy {
    LockPolicy { mode: "COMPLIANCE".into(), retain_days: 30, private_retain_days: 10, legal_hold: false }
}

/// A ledger that can sign exports. Its time is now: servers refuse locks that end in the past.
async fn exporting(dir: &Path) -> Ledger {
    let ledger = support::create(dir, 2).await;
    enrol(&ledger, Purpose::Export, EXPORT).await.unwrap();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let store = SqliteStore::open(dir, SqliteOptions::default()).unwrap();
    let environment: Arc<dyn Environment> = Arc::new(SystemEnvironment);
    let ledger = Ledger::open(Config { environment, ..support::config(Arc::new(store)) }).await.unwrap();
    ledger.signers().add(Arc::new(signer(Purpose::Export, EXPORT)));
    list_sku(&ledger, "s").await;
    ledger
}

fn variables(url: String) -> impl Fn(&str) -> Option<String> {
    move |name| S3::environment_at(&url).into_iter().find(|(n, _)| *n == name).map(|(_, value)| value)
}

/// In a thread of its own, which a bucket's calls need.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn bucket(endpoint: String, name: &str) -> Bucket {
    let url = format!("s3://{name}/ledger");
    apart(move || Bucket::open(&url, &variables(endpoint)).unwrap()).await
}

async fn archive(endpoint: String, name: &str, policy: LockPolicy, spool: &Path) -> Arc<dyn Archive> {
    Arc::new(LockedArchive::new(bucket(endpoint, name).await, policy, spool.to_owned()))
}

async fn export(ledger: &Ledger, archive: &Arc<dyn Archive>) -> Result<Done, ExportError> {
    ledger.export_batch(Arc::clone(archive), batch_options(), Box::new(|_| {})).await
}

async fn faults(archive: &Arc<dyn Archive>, done: &Done) -> Vec<(Fault, String)> {
    let (archive, completed) = (Arc::clone(archive), done.completed.clone());
    let found = apart(move || {
        let mut found = Vec::new();
        check::batch(&*archive, &completed, &mut found).map(|()| found)
    })
    .await
    .unwrap();
    found.into_iter().map(|f| (f.fault, f.place)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_locked_and_what_is_done_to_it_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let name = S3::shared().make_bucket(true).await;
    let archive = archive(S3::shared().url(), &name, policy(), dir.path()).await;
    let ledger = exporting(&dir.path().join("ledger")).await;
    create_order(&ledger, "a", "s").await;
    let first = export(&ledger, &archive).await.unwrap();
    create_order(&ledger, "b", "s").await;
    let second = export(&ledger, &archive).await.unwrap();
    let (one, two) = (&first.completed, &second.completed);
    // By version: in the record, in the manifest, and in the next manifest.
    assert!(one.manifest_version.is_some() && two.manifest_version.is_some());
    let batch = second.manifest.batch.as_ref().unwrap();
    assert!(batch.stored.iter().all(|s| s.version.is_some()));
    assert_eq!(batch.previous.as_ref().unwrap().version, one.manifest_version);
    assert_eq!(batch.lock, two.lock);
    assert!(one.lock.as_ref().unwrap().private_retain_until_us < one.lock.as_ref().unwrap().retain_until_us);
    let record = ArchiveRecord::of(archive.location(), &ledger.exports().await.unwrap());
    assert_eq!(record.completed, [one.clone(), two.clone()]);
    assert!(check::gaps(&record.completed).is_empty());
    assert_eq!(faults(&archive, &first).await, []);
    assert_eq!(faults(&archive, &second).await, []);
    assert!(std::fs::read_dir(dir.path()).unwrap().count() == 1, "no spool stays");

    // The owner himself can neither delete nor shorten what is locked, nor make it governance's.
    let (s3, file) = (S3::shared().client(), &batch.stored[0]);
    let key = format!("ledger/{}/{}", directory_of(&two.plan), file.name);
    let version = file.version.clone().unwrap();
    let refused = s3.delete_object().bucket(&name).key(&key).version_id(&version).send().await.unwrap_err();
    assert_eq!(refused.code(), Some("AccessDenied"));
    let soon = DateTime::from_secs(two.plan.exported_at_us / 1_000_000 + 86_400);
    for mode in [ObjectLockRetentionMode::Compliance, ObjectLockRetentionMode::Governance] {
        let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(soon).build();
        let request = s3.put_object_retention().bucket(&name).key(&key).version_id(&version);
        let refused = request.bypass_governance_retention(true).retention(retention).send().await;
        assert_eq!(refused.unwrap_err().code(), Some("AccessDenied"));
    }
    // Nor can he do what he can do unseen: put another version over it, or hide it.
    let object = &key["ledger/".len()..];
    s3.put_object().bucket(&name).key(&key).body(ByteStream::from_static(b"forged")).send().await.unwrap();
    assert_eq!(faults(&archive, &second).await, [(Fault::Shadowed, object.to_owned())]);
    s3.delete_object().bucket(&name).key(&key).send().await.unwrap();
    let found = faults(&archive, &second).await;
    assert_eq!(found, [(Fault::Hidden, object.to_owned()), (Fault::Shadowed, object.to_owned())]);
    let manifest = format!("ledger/{}/manifest.json", directory_of(&one.plan));
    s3.delete_object().bucket(&name).key(&manifest).send().await.unwrap();
    assert_eq!(faults(&archive, &first).await, [(Fault::Hidden, manifest["ledger/".len()..].to_owned())]);
    // The next export goes on from what was exported.
    let third = export(&ledger, &archive).await.unwrap();
    assert_eq!(third.completed.plan.sequence, 3);
    assert_eq!(faults(&archive, &third).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn governance_is_weaker_and_a_legal_hold_holds() {
    let dir = tempfile::tempdir().unwrap();
    let name = S3::shared().make_bucket(true).await;
    let ledger = exporting(&dir.path().join("ledger")).await;
    let weak = LockPolicy { mode: "GOVERNANCE".into(), legal_hold: true, ..policy() };
    let archive = archive(S3::shared().url(), &name, weak, dir.path()).await;
    let done = export(&ledger, &archive).await.unwrap();
    let looking = (Arc::clone(&archive), done.completed.clone());
    let lock = apart(move || check::lock_now(&*looking.0, &looking.1)).await.unwrap().unwrap();
    assert_eq!((lock.mode.as_str(), lock.legal_hold), ("GOVERNANCE", true));
    // Who has the right shortens it, or takes the hold away: that is found.
    let (s3, key) = (S3::shared().client(), format!("ledger/{}/manifest.json", directory_of(&done.completed.plan)));
    let version = done.completed.manifest_version.clone().unwrap();
    let soon = DateTime::from_secs(done.completed.plan.exported_at_us / 1_000_000 + 86_400);
    let shorter =
        ObjectLockRetention::builder().mode(ObjectLockRetentionMode::Governance).retain_until_date(soon).build();
    let request = s3.put_object_retention().bucket(&name).key(&key).version_id(&version);
    request.bypass_governance_retention(true).retention(shorter).send().await.unwrap();
    assert_eq!(faults(&archive, &done).await, [(Fault::Shortened, key["ledger/".len()..].to_owned())]);
}

/// What cannot be an archive is refused before anything is written, with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = exporting(&dir.path().join("ledger")).await;
    let server = S3::shared();
    let strict = S3::shared().make_bucket(true).await;
    let rule = DefaultRetention::builder().mode(ObjectLockRetentionMode::Compliance).days(90).build();
    let rule = ObjectLockRule::builder().default_retention(rule).build();
    let config = ObjectLockConfiguration::builder().object_lock_enabled(ObjectLockEnabled::Enabled).rule(rule).build();
    let request = S3::shared().client().put_object_lock_configuration().bucket(&strict);
    request.object_lock_configuration(config).send().await.unwrap();
    let answer = |status, code| S3Relay::before(server, move |_, _| S3Deed::Answer(status, code));
    let relays = [
        answer(403, "AccessDenied"),
        answer(403, "RequestTimeTooSkewed"),
        answer(301, "PermanentRedirect"),
        answer(403, "ExpiredToken"),
    ];
    let (plain, locked) = (S3::shared().make_bucket(false).await, S3::shared().make_bucket(true).await);
    let longer = LockPolicy { retain_days: 90, private_retain_days: 90, ..policy() };
    let weaker = LockPolicy { mode: "GOVERNANCE".into(), ..longer.clone() };
    let cases: Vec<(String, &str, LockPolicy, &str)> = vec![
        (server.url(), &plain, policy(), "Object Lock is off"),
        (server.url(), "no-such-bucket", policy(), "no such bucket"),
        (server.url(), &strict, policy(), "--retain-days 90"),
        (server.url(), &strict, LockPolicy { retain_days: 90, ..policy() }, "--retain-days 90"),
        (server.url(), &strict, weaker, "--lock-mode COMPLIANCE"),
        ("http://127.0.0.1:1".into(), &locked, policy(), "try again when the server is well"),
        (relays[0].url(), &locked, policy(), "does not allow s3:GetBucketObjectLockConfiguration"),
        (relays[1].url(), &locked, policy(), "set the clocks"),
        (relays[2].url(), &locked, policy(), "set S3_REGION"),
        (relays[3].url(), &locked, policy(), "renew them"),
    ];
    for (endpoint, name, policy, says) in cases {
        let archive = archive(endpoint, name, policy, dir.path()).await;
        let error = export(&ledger, &archive).await.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("nothing was exported"), "{says}: {error}");
    }
    assert!(ledger.exports().await.unwrap().is_empty());
    let archive = archive(server.url(), &strict, longer, dir.path()).await;
    export(&ledger, &archive).await.unwrap();
}

/// What the server does wrong while an export runs: it is never called done, and goes on when the server is well.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_or_lies_is_never_believed() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = exporting(&dir.path().join("ledger")).await;
    let name = S3::shared().make_bucket(true).await;
    let good = archive(S3::shared().url(), &name, policy(), dir.path()).await;
    type Decide = fn(&str, &str) -> S3Deed;
    let cases: [(&str, Decide, &str); 10] = [
        (
            "credentials that end",
            |m, path| {
                if m == "PUT" && path.contains("0001-") { S3Deed::Answer(400, "ExpiredToken") } else { S3Deed::Pass }
            },
            "renew them",
        ),
        ("500", |m, _| if m == "PUT" { S3Deed::Answer(500, "InternalError") } else { S3Deed::Pass }, "InternalError"),
        ("503", |m, _| if m == "PUT" { S3Deed::Answer(503, "SlowDown") } else { S3Deed::Pass }, "SlowDown"),
        ("412", |m, _| if m == "PUT" { S3Deed::Answer(412, "PreconditionFailed") } else { S3Deed::Pass }, "412"),
        (
            "no right to lock",
            |m, _| if m == "PUT" { S3Deed::Answer(403, "AccessDenied") } else { S3Deed::Pass },
            "s3:PutObjectRetention",
        ),
        ("lock not shown", |_, _| S3Deed::HideLock, "it is not locked"),
        (
            "lock not to be seen",
            |m, path| match m {
                // Of the files: that the batches before are there is looked at before anything is planned.
                _ if !path.contains(".jsonl.gz") => S3Deed::Pass,
                "GET" if path.contains("retention") => S3Deed::Answer(403, "AccessDenied"),
                "HEAD" => S3Deed::HideLock,
                _ => S3Deed::Pass,
            },
            "s3:GetObjectRetention",
        ),
        (
            "truncated",
            |m, path| {
                if m == "GET" && path.contains(".jsonl.gz?") && path.contains("versionId") {
                    S3Deed::Truncate(50)
                } else {
                    S3Deed::Pass
                }
            },
            "try again",
        ),
        (
            "gone when read back",
            |m, path| {
                if m == "HEAD" && path.contains(".jsonl.gz") {
                    S3Deed::Answer(404, "NoSuchVersion")
                } else {
                    S3Deed::Pass
                }
            },
            "is not there",
        ),
        (
            "manifest not taken",
            |m, path| {
                if m == "PUT" && path.contains("manifest") {
                    S3Deed::Answer(507, "InsufficientStorage")
                } else {
                    S3Deed::Pass
                }
            },
            "InsufficientStorage",
        ),
    ];
    for (what, decide, says) in cases {
        create_order(&ledger, what, "s").await;
        let before = ArchiveRecord::of(good.location(), &ledger.exports().await.unwrap());
        let relay = S3Relay::before(S3::shared(), decide);
        let bad = archive(relay.url(), &name, policy(), dir.path()).await;
        let error = export(&ledger, &bad).await.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("not done"), "{what}: {error}");
        let after = ArchiveRecord::of(good.location(), &ledger.exports().await.unwrap());
        assert_eq!(after.completed, before.completed, "{what}");
        assert!(after.open.is_some(), "{what}");
        let done = export(&ledger, &good).await.unwrap();
        assert!(done.resumed, "{what}");
        assert_eq!(faults(&good, &done).await, [], "{what}");
    }
    // What passes: slow, and answers that are lost or bad at first.
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let relay = S3Relay::before(S3::shared(), move |_, _| match counting.fetch_add(1, Ordering::Relaxed) % 4 {
        0 => S3Deed::Answer(503, "SlowDown"),
        1 => S3Deed::Late(Duration::from_millis(200)),
        2 => S3Deed::Lose,
        _ => S3Deed::Pass,
    });
    let bad = archive(relay.url(), &name, policy(), dir.path()).await;
    let done = export(&ledger, &bad).await.unwrap();
    assert!(count.load(Ordering::Relaxed) > 10);
    let shadowed = faults(&good, &done).await;
    assert!(shadowed.is_empty(), "what was put twice is known by the version that came last: {shadowed:?}");
}

/// Cut off at every request, before and after the server has done it.
#[tokio::test(flavor = "multi_thread")]
async fn cut_off_at_any_request_an_export_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = exporting(&dir.path().join("ledger")).await;
    let name = S3::shared().make_bucket(true).await;
    let good = archive(S3::shared().url(), &name, policy(), dir.path()).await;
    let mut at = 0;
    loop {
        let mut struck = false;
        for lose in [false, true] {
            create_order(&ledger, &format!("{at}{lose}"), "s").await;
            let count = Arc::new(AtomicUsize::new(0));
            let counting = Arc::clone(&count);
            // For good, as a process that is gone: whatever is tried again fails too.
            let relay = S3Relay::before(S3::shared(), move |_, _| {
                let n = counting.fetch_add(1, Ordering::Relaxed);
                match n.cmp(&at) {
                    std::cmp::Ordering::Less => S3Deed::Pass,
                    std::cmp::Ordering::Equal if lose => S3Deed::Lose,
                    _ => S3Deed::Answer(403, "AccessDenied"),
                }
            });
            let bad = archive(relay.url(), &name, policy(), dir.path()).await;
            if export(&ledger, &bad).await.is_err() {
                struck = true;
                export(&ledger, &good).await.unwrap();
            }
        }
        if !struck {
            break;
        }
        at += 1;
    }
    assert!(at > 12, "{at}");
    let record = ArchiveRecord::of(good.location(), &ledger.exports().await.unwrap());
    assert!(record.completed.len() > at && record.open.is_none());
    assert!(check::gaps(&record.completed).is_empty());
    for done in record.completed {
        let looking = Arc::clone(&good);
        let found = apart(move || {
            let mut found = Vec::new();
            check::batch(&*looking, &done, &mut found).map(|()| found)
        });
        assert_eq!(found.await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_goes_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let name = S3::shared().make_bucket(true).await;
    let bucket = bucket(S3::shared().url(), &name).await.with_parts_of(5 << 20);
    let path = dir.path().join("large");
    let bytes: Vec<u8> = (0..12_345_678u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    apart(move || {
        let until_s = SystemEnvironment.now_us() / 1_000_000 + 86_400;
        let retention = Retention { mode: "COMPLIANCE".into(), until_s, legal_hold: false };
        let version = bucket.put("large", &path, &[("service", "test".into())], &retention).unwrap();
        let head = bucket.head("large", Some(&version)).unwrap();
        assert_eq!((head.bytes, head.retention), (bytes.len() as u64, Some(retention)));
        let mut read = Vec::new();
        let found = bucket.get("large", Some(&version), u64::MAX, &mut read).unwrap();
        assert_eq!((found, read == bytes), ((sha256(&[&bytes]), bytes.len() as u64), true));
        // One that is longer than it should be is not read to its end.
        let (_, length) = bucket.get("large", Some(&version), 1000, &mut std::io::sink()).unwrap();
        assert!(length > 1000);
    })
    .await;
}
