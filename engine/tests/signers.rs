//! Signers that are elsewhere: slow, away, flapping, wrong. Nothing unsigned is stored or answered, and what waits is done once, in order.
#![allow(missing_docs)]

mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ledger_engine::ledger::Ledger;
use ledger_engine::registry::Purpose;
use ledger_engine::signer::keyring::{Keyring, SignerSource};
use ledger_engine::signer::remote::{Patience, RemoteError, RemoteKey, RemoteSigner};
use ledger_engine::signer::{Keeper, LocalSigner, Pending, Signer, SignerError};
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use support::{at_once, code, create_line, list_sku};

const MESSAGE: &[u8] = b"a statement";

fn local(seed: u8) -> LocalSigner {
    LocalSigner::from_seed(Purpose::Commit, &[seed; 32])
}

/// What the service does with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Sign,
    SignAfter(Duration),
    Fail,
    /// An error that no repetition mends.
    Refuse,
    /// Does not answer.
    Hang,
    OtherKey,
    OtherMessage,
    Bytes(usize),
}

/// A key behind a service that does what the test says, and signs when nothing is left to do.
struct Service {
    key: LocalSigner,
    deeds: Mutex<VecDeque<Deed>>,
    always: Mutex<Deed>,
    asked: AtomicU64,
}

impl Service {
    fn new(always: Deed) -> Arc<Service> {
        let (deeds, always) = (Mutex::default(), Mutex::new(always));
        Arc::new(Service { key: local(2), deeds, always, asked: AtomicU64::new(0) })
    }

    fn script(&self, deeds: impl IntoIterator<Item = Deed>) {
        self.deeds.lock().unwrap().extend(deeds);
    }

    fn becomes(&self, deed: Deed) {
        *self.always.lock().unwrap() = deed;
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn signer(self: &Arc<Service>, patience: Patience) -> Arc<RemoteSigner> {
        let key = Arc::clone(self) as Arc<dyn RemoteKey>;
        Arc::new(RemoteSigner::new(self.key.public_key(), "test service".into(), key, patience))
    }
}

impl RemoteKey for Service {
    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<Vec<u8>, RemoteError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let deed = self.deeds.lock().unwrap().pop_front().unwrap_or(*self.always.lock().unwrap());
            match deed {
                Deed::Sign => {}
                Deed::SignAfter(delay) => tokio::time::sleep(delay).await,
                Deed::Fail => return Err(RemoteError::passing("connection refused")),
                Deed::Refuse => return Err(RemoteError::lasting("wrong PIN")),
                Deed::Hang => std::future::pending().await,
                Deed::OtherKey => return Ok(local(99).signature(message).to_vec()),
                Deed::OtherMessage => return Ok(self.key.signature(b"another").to_vec()),
                Deed::Bytes(n) => return Ok(vec![7; n]),
            }
            Ok(self.key.signature(message).to_vec())
        })
    }

    fn check(&self) -> Pending<'_, Result<(), RemoteError>> {
        let away = matches!(*self.always.lock().unwrap(), Deed::Fail | Deed::Refuse | Deed::Hang);
        Box::pin(async move { if away { Err(RemoteError::passing("connection refused")) } else { Ok(()) } })
    }

    fn keeper(&self) -> Keeper {
        Keeper::Proxy
    }
}

fn patience() -> Patience {
    Patience {
        attempt: Duration::from_millis(500),
        attempts: 3,
        pause: Duration::from_millis(1),
        total: Duration::from_secs(5),
        failures: 3,
        rest: Duration::from_secs(60),
        rest_max: Duration::from_secs(240),
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_is_repeated_a_few_times_and_then_given_up() {
    let service = Service::new(Deed::Sign);
    let signer = service.signer(patience());
    service.script([Deed::Fail, Deed::Hang]);
    let signature = signer.sign(MESSAGE).await.unwrap();
    assert_eq!(signature, local(2).signature(MESSAGE));
    assert_eq!((service.asked(), signer.stats().signed, signer.stats().errors), (3, 1, 2));
    service.becomes(Deed::Fail);
    let error = signer.sign(MESSAGE).await.unwrap_err();
    assert_eq!(service.asked(), 6);
    assert!(error.reason.contains("test service: connection refused"), "{error}");
    // What nobody but an operator can mend is not repeated: a token locks itself after a few wrong PINs.
    service.becomes(Deed::Refuse);
    let error = signer.sign(MESSAGE).await.unwrap_err();
    assert_eq!((service.asked(), error.reason.contains("wrong PIN")), (7, true));
    for _ in 0..20 {
        let _ = signer.sign(MESSAGE).await.unwrap_err();
    }
    assert_eq!((service.asked(), signer.stats().refused), (7, 20));
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_is_believed_only_if_it_verifies() {
    for deed in [Deed::OtherKey, Deed::OtherMessage, Deed::Bytes(64), Deed::Bytes(0), Deed::Bytes(1 << 20)] {
        let service = Service::new(deed);
        let signer = service.signer(patience());
        let error = signer.sign(MESSAGE).await.unwrap_err();
        assert!(error.reason.contains("verify") || error.reason.contains("not a signature"), "{deed:?}: {error}");
        assert_eq!(signer.stats().signed, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_keeps_failing_is_left_alone_longer_and_longer() {
    let service = Service::new(Deed::Fail);
    let signer = service.signer(patience());
    for _ in 0..3 {
        signer.sign(MESSAGE).await.unwrap_err();
    }
    let asked = service.asked();
    assert_eq!(asked, 9);
    assert!(signer.check().await.is_err());
    assert!(signer.sign(MESSAGE).await.unwrap_err().reason.contains("not asked again"));
    assert_eq!(service.asked(), asked);
    // One request tries, and the rest doubles when it fails, up to the longest.
    for rest in [60, 120, 240, 240] {
        tokio::time::advance(Duration::from_secs(rest - 1)).await;
        signer.sign(MESSAGE).await.unwrap_err();
        let before = service.asked();
        tokio::time::advance(Duration::from_secs(2)).await;
        signer.sign(MESSAGE).await.unwrap_err();
        assert_eq!(service.asked(), before + 3, "after {rest} s");
    }
    service.becomes(Deed::Sign);
    tokio::time::advance(Duration::from_secs(241)).await;
    // A request that is given up does not keep the next one from trying.
    service.script([Deed::Hang]);
    drop(tokio::time::timeout(Duration::from_millis(1), signer.sign(MESSAGE)).await);
    signer.sign(MESSAGE).await.unwrap();
    signer.sign(MESSAGE).await.unwrap();
    signer.check().await.unwrap();
}

/// A ledger whose commits a service signs.
async fn served(dir: &std::path::Path, service: &Arc<Service>, patience: Patience) -> Arc<Ledger> {
    let ledger = support::create(dir, 1).await;
    list_sku(&ledger, "s").await;
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let store = Arc::new(SqliteStore::open(dir, SqliteOptions::default()).unwrap());
    let checkpoint = Arc::new(LocalSigner::from_seed(Purpose::Checkpoint, &[3; 32])) as Arc<dyn Signer>;
    let mut config = support::config(store);
    config.signers = Arc::new(Keyring::new([service.signer(patience) as Arc<dyn Signer>, checkpoint]));
    Arc::new(Ledger::open(config).await.unwrap())
}

fn size(ledger: &Ledger) -> u64 {
    ledger.store().heads().unwrap()[0].size()
}

async fn verified(dir: &std::path::Path, ledger: &Ledger) {
    ledger.shutdown().await.unwrap();
    support::verified(dir, ledger);
}

/// Makes `n` new orders at once; returns the index of each.
async fn orders(ledger: &Ledger, name: &str, n: usize) -> Vec<Result<u64, &'static str>> {
    let answers = at_once(ledger, (0..n).map(|i| create_line(&format!("{name}-{i}"), "s"))).await;
    answers.into_iter().map(|a| a.map(|a| a.entries[0].index).map_err(|e| e.code())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_signed_side_by_side_and_stored_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::new(Deed::SignAfter(Duration::from_millis(10)));
    let ledger = served(dir.path(), &service, patience()).await;
    // The second of two that are signed together has its signature first.
    service.script((0..40).map(|n| Deed::SignAfter(Duration::from_millis(if n % 2 == 0 { 20 } else { 1 }))));
    let before = size(&ledger);
    let indexes: Vec<u64> = orders(&ledger, "k", 1000).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(indexes, (before..before + 1000).collect::<Vec<_>>());
    verified(dir.path(), &ledger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_flapping_signer_is_done_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::new(Deed::Sign);
    // Commits that are signed together share the misfortunes: one may get all five.
    let ledger = served(dir.path(), &service, Patience { attempts: 6, ..patience() }).await;
    service.script([Deed::Fail, Deed::Fail, Deed::Sign, Deed::OtherKey, Deed::Sign, Deed::Bytes(3), Deed::Fail]);
    let before = size(&ledger);
    let indexes: Vec<u64> = orders(&ledger, "k", 400).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(indexes, (before..before + 400).collect::<Vec<_>>());
    verified(dir.path(), &ledger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_signer_is_away_nothing_is_stored_and_reads_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::new(Deed::Sign);
    let ledger = served(dir.path(), &service, Patience { rest: Duration::from_millis(1), ..patience() }).await;
    let first = orders(&ledger, "first", 3).await;
    for deed in [Deed::Fail, Deed::Refuse, Deed::OtherKey, Deed::OtherMessage, Deed::Bytes(64)] {
        service.becomes(deed);
        let before = size(&ledger);
        let answers = orders(&ledger, "k", 200).await;
        assert!(answers.iter().all(|a| *a == Err("SIGNING_UNAVAILABLE")), "{deed:?}: {answers:?}");
        assert_eq!(size(&ledger), before, "{deed:?}");
        // A first answer is given again: it was signed before.
        assert_eq!(code(&ledger, &create_line("first-0", "s")).await, "repeated", "{deed:?}");
    }
    service.becomes(Deed::Sign);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let again = orders(&ledger, "k", 200).await;
    assert!(first.iter().chain(&again).all(Result::is_ok), "{again:?}");
    verified(dir.path(), &ledger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_a_signature_takes_down_what_was_linked_to_it_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::new(Deed::SignAfter(Duration::from_millis(2)));
    let ledger = served(dir.path(), &service, Patience { attempts: 1, failures: 1000, ..patience() }).await;
    service.script((0..60).map(|n| if n % 7 == 1 { Deed::Fail } else { Deed::SignAfter(Duration::from_millis(3)) }));
    let answers = orders(&ledger, "k", 1500).await;
    let failed = answers.iter().filter(|a| a.is_err()).count();
    assert!(answers.iter().all(|a| matches!(a, Ok(_) | Err("SIGNING_UNAVAILABLE"))), "{answers:?}");
    assert!(failed > 0 && failed < 1500, "{failed}");
    // Tried again with the same keys, each is there exactly once.
    service.becomes(Deed::Sign);
    service.deeds.lock().unwrap().clear();
    let mut all: Vec<u64> = orders(&ledger, "k", 1500).await.into_iter().map(Result::unwrap).collect();
    for (first, again) in answers.iter().zip(&all) {
        assert!(first.is_err() || *first == Ok(*again));
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 1500);
    verified(dir.path(), &ledger).await;
}

/// A token that is plugged in later.
struct Slot(Arc<Mutex<Option<Arc<dyn Signer>>>>);

impl SignerSource for Slot {
    fn signers(&self) -> Result<Vec<Arc<dyn Signer>>, SignerError> {
        let empty = || SignerError { kid: "slot".into(), reason: "no token in the slot".into() };
        self.0.lock().unwrap().clone().map(|signer| vec![signer]).ok_or_else(empty)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_that_is_away_at_the_start_is_found_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = support::create(dir.path(), 1).await;
    list_sku(&ledger, "s").await;
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let (slot, store) = (Arc::new(Mutex::new(None)), SqliteStore::open(dir.path(), SqliteOptions::default()).unwrap());
    let mut config = support::config(Arc::new(store));
    let checkpoint = Arc::new(LocalSigner::from_seed(Purpose::Checkpoint, &[3; 32])) as Arc<dyn Signer>;
    config.signers = Arc::new(Keyring::new([checkpoint]).with_source(Box::new(Slot(Arc::clone(&slot)))));
    let ledger = Ledger::open(config).await.unwrap();
    let said = orders(&ledger, "k", 1).await;
    assert_eq!(said, [Err("SIGNING_UNAVAILABLE")]);
    *slot.lock().unwrap() = Some(Arc::new(local(2)) as Arc<dyn Signer>);
    ledger.signers().refresh().unwrap();
    assert!(orders(&ledger, "k", 1).await[0].is_ok());
    verified(dir.path(), &ledger).await;
}
