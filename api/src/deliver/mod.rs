//! Deliveries: encrypted for the buyer, proven, finalised. Whoever is stopped anywhere in between goes on from what the ledger says, and
//! a step that somebody else took is not taken again.

pub(crate) mod files;
pub(crate) mod sealing;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use ledger_engine::body::PrivateDocument;
use ledger_engine::delivery::recipient::{self, Recipient};
use ledger_engine::delivery::stream::{ALGORITHM, Fresh};
use ledger_engine::delivery::{ContentKey, context, stream};
use ledger_engine::delivery_proof::{Encryption, ProofTerms};
use ledger_engine::domain::command::Command;
use ledger_engine::domain::decide::{Refusal, RefusalCode, check_listed_by};
use ledger_engine::domain::projection::{DELIVERIES, ORDERS, Row};
use ledger_engine::domain::sku::manifest_of;
use ledger_engine::environment::{Environment as _, SystemEnvironment};
use ledger_engine::hash::{Hash, from_hex, to_hex};
use ledger_engine::json::{Object, Value};
use ledger_engine::ledger::{AppendError, Appended, Ledger};
use ledger_engine::registry::Purpose;
use ledger_engine::signer::sealing::Sealed;
use ledger_engine::store::StoreError;
use ledger_engine::stream::{CaseId, Stream};
use ledger_engine::time::rfc3339;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use self::files::{Delivered, Files, Particulars, SealError, SealedKey};
use self::sealing::Sealing;
use crate::directory::random;

/// Who takes the steps, in entries.
const ACTOR: &str = "service:delivery";
/// Steps of one delivery at most, with some to spare for others who work on it.
const STEPS_MAX: usize = 12;
/// How long a failed delivery rests before it is tried again: twice as long each time, up to the second.
const REST: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// Artifacts that are encrypted at the same time: each takes two threads and some mebibytes.
const SEALED_AT_ONCE: usize = 4;
/// Orders that are tried again at the same time. Most of them wait for their turn to be encrypted.
const TRIED_AT_ONCE: usize = 16;
/// Cases that a search remembers.
const FOUND_MAX: usize = 1 << 17;
/// Files that are asked for at the same time, besides: a bucket that hangs keeps this many threads.
const FILES_AT_ONCE: usize = 64;
/// Entries whose orders and deliveries are looked at together, in search of what is not finished.
const LOOKED_AT_ONCE: u64 = 1 << 15;
/// How often what others left undone is looked for, and what was left on the way of files is removed.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// What clients are told of a delivery that waits for something else than its files.
const AWAY: &str = "the ledger, or what signs for it, does not answer";

/// How far a delivery came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There is nothing left to do.
    Done,
    /// Nothing more can be done here: somebody else delivers this, since it has no manifest or there is no key for proofs, or the licence ended.
    Elsewhere(String),
    /// It failed and is tried again. The text is for everybody: it has nothing of the buyer's, and not where things are.
    Failed(String),
}

type Running = Shared<BoxFuture<'static, Outcome>>;

/// A run, and whether somebody asked for it since it looked last.
struct UnderWay {
    running: Running,
    asked_again: Arc<AtomicBool>,
}

/// What delivers.
pub(crate) struct Deliverer {
    ledger: Arc<Ledger>,
    files: Files,
    /// What private keys of deliveries are sealed under.
    sealing_key: Sealing,
    /// How long nothing must have happened to a delivery before it counts as left by whoever worked on it.
    takeover: Duration,
    /// Where the work is done: whoever waits for a file keeps no thread from whoever answers requests.
    runtime: Handle,
    at_files: Arc<Semaphore>,
    under_way: Mutex<HashMap<CaseId, UnderWay>>,
    /// A permit for each artifact that is encrypted now.
    sealing: Semaphore,
    /// Failed ones: when to try again, and how long they rested last.
    resting: Mutex<HashMap<CaseId, (Instant, Duration)>>,
}

/// Why a step was not taken.
enum Trouble {
    /// Recorded as the reason of `delivery.failed`.
    Failed(String),
    /// The same, and it is not tried again.
    Over(String),
    /// Store or signer are away: nothing is recorded, which could not be. The text is for operators.
    Away(String),
}

impl From<AppendError> for Trouble {
    fn from(e: AppendError) -> Self {
        Trouble::Away(e.to_string())
    }
}

impl From<StoreError> for Trouble {
    fn from(e: StoreError) -> Self {
        Trouble::Away(e.to_string())
    }
}

fn failed(why: impl Into<String>) -> Trouble {
    Trouble::Failed(why.into())
}

/// Why a private key is not given. The text is for operators.
pub(crate) enum KeyError {
    /// What opens it is away.
    Away(String),
    /// The place of deliveries is.
    Files(String),
    /// It cannot be had by waiting.
    Lost(String),
}

/// What the SKU's listing says of the file.
struct Sold {
    artifact: Hash,
    manifest_sha256: String,
    manifest_signature_id: String,
}

/// The search for what is not finished.
#[derive(Default)]
struct Search {
    /// The whole ledger was looked at.
    begun: bool,
    /// Where it goes on: the chain, and its entry.
    chain: usize,
    from: u64,
    /// What was found before, with the time of its last change then.
    found: HashMap<CaseId, i64>,
}

impl Deliverer {
    /// Within the runtime that is to do the work.
    pub(crate) fn new(ledger: Arc<Ledger>, files: Files, sealing_key: Sealing, takeover: Duration) -> Arc<Deliverer> {
        let (under_way, resting) = Default::default();
        let sealing = Semaphore::new(SEALED_AT_ONCE);
        let (runtime, at_files) = (Handle::current(), Arc::new(Semaphore::new(FILES_AT_ONCE)));
        Arc::new(Deliverer { ledger, files, sealing_key, takeover, runtime, at_files, under_way, sealing, resting })
    }

    /// Delivers an order as far as it goes. Callers that come together wait for the same run, which goes on if they do not.
    pub(crate) fn run(self: &Arc<Self>, case: CaseId) -> Running {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = under_way.get(&case) {
            found.asked_again.store(true, Ordering::Relaxed);
            return found.running.clone();
        }
        let (own, asked_again) = (Arc::clone(self), Arc::new(AtomicBool::new(false)));
        let asked = Arc::clone(&asked_again);
        let task = self.runtime.spawn(async move {
            loop {
                let outcome = own.deliver(case).await;
                let mut under_way = own.under_way.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever asked since may know of an entry that this run did not see.
                let again = asked.swap(false, Ordering::Relaxed) && !matches!(outcome, Outcome::Failed(_));
                if !again {
                    under_way.remove(&case);
                    return outcome;
                }
            }
        });
        let ended = async move { task.await.unwrap_or_else(|e| died(case, &e.to_string())) };
        let running = ended.boxed().shared();
        under_way.insert(case, UnderWay { running: running.clone(), asked_again });
        running
    }

    async fn deliver(&self, case: CaseId) -> Outcome {
        let outcome = match AssertUnwindSafe(self.steps(case)).catch_unwind().await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => {
                tracing::warn!("order {case} is not delivered yet: {e}");
                Outcome::Failed(AWAY.to_owned())
            }
            Err(_) => died(case, "it panicked"),
        };
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Outcome::Failed(_) = outcome {
            let now = Instant::now();
            match resting.get(&case) {
                // Whoever asks before its time does not put that off.
                Some((at, _)) if *at > now => {}
                found => {
                    let rest = found.map_or(REST.0, |(_, last)| (*last * 2).min(REST.1));
                    resting.insert(case, (now + rest, rest));
                }
            }
        } else {
            resting.remove(&case);
        }
        outcome
    }

    /// Takes one step after the other, each decided by what is recorded. The error is for operators.
    async fn steps(&self, case: CaseId) -> Result<Outcome, String> {
        // Another process may have changed the keys.
        self.ledger.refresh_registry().await.map_err(|e| e.to_string())?;
        if self.ledger.registry().current(Purpose::DeliveryProof).is_none() {
            return Ok(Outcome::Elsewhere("the ledger has no key for delivery proofs".into()));
        }
        let mut last = None;
        for _ in 0..STEPS_MAX {
            let found = self.ledger.order_with_deliveries(case).await.map_err(|e| e.to_string())?;
            let Some((order, deliveries)) = found else {
                return Ok(Outcome::Elsewhere("there is no such order".into()));
            };
            let seen = (order.int("revision"), deliveries.last().map(|d| (d.int("n"), d.int("revision"))));
            let step = if last == Some(seen) {
                // It was refused for another reason than that somebody else was quicker.
                Err(failed("the ledger refuses the next step"))
            } else {
                self.step(case, &order, &deliveries).await
            };
            last = Some(seen);
            let (why, over) = match step {
                Ok(None) => continue,
                Ok(Some(outcome)) => return Ok(outcome),
                Err(Trouble::Away(why)) => return Err(why),
                Err(Trouble::Failed(why)) => (why, false),
                Err(Trouble::Over(why)) => (why, true),
            };
            metrics::counter!("marketplace_delivery_encrypt_failures_total").increment(1);
            tracing::warn!("order {case} could not be delivered: {why}");
            if let Some(delivery) = deliveries.last()
                && let Err(e) = self.record_failure(case, delivery, &why).await
            {
                tracing::warn!("order {case}: the failure could not be recorded: {e}");
            }
            return Ok(if over { Outcome::Elsewhere(why) } else { Outcome::Failed(why) });
        }
        Err("the order keeps changing".into())
    }

    /// Appends that a delivery failed, unless that is what its last entry says.
    async fn record_failure(&self, case: CaseId, delivery: &Row, why: &str) -> Result<(), AppendError> {
        if delivery.text("status") == "failed" {
            let n = u32::try_from(delivery.count("n")).unwrap_or_default();
            let last = self.ledger.read_stream(Stream::Delivery(case, n)).await?.pop();
            let body = last.and_then(|entry| entry.parse_body().ok());
            if body.is_some_and(|b| b.payload.value("reason").and_then(Value::as_str) == Some(why)) {
                return Ok(());
            }
        }
        let command = of_delivery("delivery.fail", case, delivery).with("reason", why);
        self.append(command).await.map(drop)
    }

    /// The next step of an order. `None`: it was taken, or somebody else took one.
    async fn step(&self, case: CaseId, order: &Row, deliveries: &[Row]) -> Result<Option<Outcome>, Trouble> {
        let unlisted = || Some(Outcome::Elsewhere("the SKU was listed without a manifest".into()));
        let Some((delivery, before)) = deliveries.split_last() else {
            if order.text("status") != "licensed" {
                return Ok(Some(Outcome::Done));
            }
            // Whoever issued the licence was stopped before this. What keeps it from being encrypted is recorded with the delivery.
            match self.sold(order).await {
                Ok(None) => return Ok(unlisted()),
                Err(away @ Trouble::Away(_)) => return Err(away),
                Ok(Some(_)) | Err(Trouble::Failed(_) | Trouble::Over(_)) => {
                    self.append(of("delivery.request", case)).await?
                }
            };
            return Ok(None);
        };
        match (order.text("status"), delivery.text("status")) {
            ("licensed" | "finalized", "requested" | "failed") => {
                let Some(sold) = self.sold(order).await? else { return Ok(unlisted()) };
                if let Some(at) = self.licence_ended(order).await? {
                    return Err(Trouble::Over(format!("the licence ended at {}", rfc3339(at))));
                }
                self.encrypt(case, order, delivery, sold).await?;
            }
            ("licensed" | "finalized", "encrypted") => self.prove(case, order, delivery, before).await?,
            ("licensed", "ready") => drop(self.append(of("order.finalize", case)).await?),
            _ => return Ok(Some(Outcome::Done)),
        }
        Ok(None)
    }

    /// Appends a command. `None`: somebody else has changed what it rests on, so that what is recorded must be looked at again.
    async fn append(&self, command: Object) -> Result<Option<Appended>, AppendError> {
        let command = Command::from_object(command.with("actor", ACTOR))
            .map_err(|e| Refusal::new(RefusalCode::InvalidCommand, e.to_string()))?;
        match self.ledger.append(&command, "POST").await {
            Ok(appended) => Ok(Some(appended)),
            Err(AppendError::Refused(r))
                if matches!(r.code, RefusalCode::IllegalTransition | RefusalCode::RevisionConflict) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// What files are asked, where it keeps nobody else waiting.
    async fn with_files<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Files) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (files, at_files) = (self.files.clone(), Arc::clone(&self.at_files));
        // It is never closed.
        let permit = at_files.acquire_owned().await;
        let asking = self.runtime.spawn_blocking(move || {
            // For as long as it takes, whether anybody still waits for it or not.
            let _permit = permit;
            ask(&files)
        });
        asking.await?
    }

    /// When an order's licence ended, if it has: microseconds since 1970.
    pub(crate) async fn licence_ended(&self, order: &Row) -> Result<Option<i64>, StoreError> {
        let (chain, index) = (order.chain(), order.count("license_index"));
        let issued = self.ledger.read_chain(chain, index, 1).await?.pop();
        let body = issued.and_then(|entry| entry.parse_body().ok()).filter(|b| b.payload.value("license_id").is_some());
        // Without it nobody knows when it ends.
        let body =
            body.ok_or_else(|| StoreError::Corrupt(format!("entry {index} of chain {chain} issues no licence")))?;
        let ends = body.payload.value("expires_at").and_then(Value::as_int);
        Ok(ends.filter(|at| *at <= SystemEnvironment.now_us()))
    }

    /// The one artifact of the listing that the order cites. `None`: that has no manifest.
    async fn sold(&self, order: &Row) -> Result<Option<Sold>, Trouble> {
        let chain = order.chain();
        let created = self.ledger.read_chain(chain, order.count("idx"), 1).await?.pop();
        let body = created.and_then(|e| e.parse_body().ok());
        let revision = body.and_then(|b| b.payload.value("sku_revision").and_then(Value::as_int)).unwrap_or(0);
        let sku = Stream::Sku(CaseId::of_sku(order.text("sku_id")));
        let entries = self.ledger.read_stream(sku).await?;
        let listing = entries.iter().find(|e| i64::try_from(e.header.revision) == Ok(revision));
        let Some((listing, body)) = listing.and_then(|e| Some((&e.header, e.parse_body().ok()?))) else {
            return Err(failed("the listing that the order cites is not there; verify the ledger"));
        };
        let Some(manifest) = manifest_of(&body.payload) else { return Ok(None) };
        // The order may be older than the news that the key was stolen.
        let (registry, kid) = (self.ledger.registry(), &manifest.signature.kid);
        check_listed_by(&registry, kid, listing.chain, listing.index).map_err(|refusal| failed(refusal.message))?;
        let [artifact] = &manifest.artifacts[..] else {
            return Err(failed(format!(
                "the manifest names {} artifacts; one can be delivered",
                manifest.artifacts.len()
            )));
        };
        let sha256 = body.payload.value("manifest").and_then(Value::as_object).and_then(|m| m.value("sha256"));
        let manifest_sha256 = sha256.and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Some(Sold { artifact: artifact.sha256, manifest_sha256, manifest_signature_id: manifest.signature_id() }))
    }

    async fn encrypt(&self, case: CaseId, order: &Row, delivery: &Row, sold: Sold) -> Result<(), Trouble> {
        if self.resting.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&case) {
            // Where nobody can sign, nothing is encrypted again and again.
            self.ledger.check_signers().await.map_err(|e| Trouble::Away(e.to_string()))?;
        }
        let id = delivery.text("delivery_id").to_owned();
        let context = context(&self.ledger.id(), &id);
        let (recipient, private_key) = match delivery.text("mode") {
            "buyer-managed" => (self.buyers_key(case, order, delivery).await?, None),
            _ => {
                let (recipient, sealed) = self.own_recipient(&context).await?;
                (recipient, Some(sealed))
            }
        };
        let (key, fresh) = fresh().map_err(|e| Trouble::Away(e.to_string()))?;
        let wrapped =
            recipient.wrap(&key, &context).ok_or_else(|| failed("the key could not be used to wrap another"))?;
        let (files, artifact) = (self.files.clone(), sold.artifact);
        let particulars = move |digests: &stream::Digests| Particulars {
            artifact_bytes: digests.plain_bytes,
            ciphertext_bytes: digests.sealed_bytes,
            manifest_sha256: sold.manifest_sha256,
            manifest_signature_id: sold.manifest_signature_id,
            key_algorithm: recipient.algorithm().to_owned(),
            encrypted_key: to_hex(&wrapped),
            key_fingerprint: recipient.fingerprint().to_hex(),
            private_key,
        };
        // It is never closed.
        let _permit = self.sealing.acquire().await;
        let of_file = id.clone();
        let sealing =
            self.runtime.spawn_blocking(move || files.seal(&of_file, artifact, (&key, &fresh, &context), particulars));
        let sealed = sealing.await.map_err(|e| Trouble::Away(format!("the task died: {e}")))?;
        let digests = sealed.map_err(|e| match e {
            _ if self.files.is_closing() => Trouble::Away("the server is ending".into()),
            SealError::Away(what, why) => {
                // Where files are is nothing for the history.
                tracing::error!("{what}: {why}");
                failed(format!("artifact {artifact} could not be encrypted: {what} cannot be read or written"))
            }
            SealError::Other { found, bytes } => {
                failed(format!("artifact {artifact} has other bytes: {bytes}, with SHA-256 {found}"))
            }
        })?;
        let ciphertext = digests.sealed_sha256.to_hex();
        let command = of_delivery("delivery.encrypt", case, delivery)
            .with("algorithm", ALGORITHM)
            .with("artifact_sha256", artifact.to_hex())
            .with("ciphertext_sha256", ciphertext.as_str());
        let appended = self.append(command).await;
        let unneeded = appended.as_ref().map_or_else(wrote_nothing, Option::is_none);
        if unneeded {
            let forgetting = self.with_files(move |files| {
                files.forget(&id, &ciphertext);
                Ok(())
            });
            // What could not be removed is logged.
            let _ = forgetting.await;
        }
        Ok(appended.map(drop)?)
    }

    /// The keys that the buyer gave, the last one first, each with the buyer's own name of it: when deliveries were issued again, and with the order.
    async fn given_keys(&self, case: CaseId, order: &Row, n: u64) -> Result<Vec<(String, Option<String>)>, StoreError> {
        let (chain, mut given) = (order.chain(), Vec::new());
        for before in (1..n).rev().filter_map(|n| u32::try_from(n).ok()) {
            let reissued = self.ledger.read_stream(Stream::Delivery(case, before)).await?.pop();
            if let Some(entry) = reissued.filter(|e| e.header.event_type == "delivery.reissued") {
                let private = self.ledger.private(chain, entry.header.index).await?;
                let member = |name| private.as_ref().and_then(|p| member(p, &[name]));
                given.extend(member("buyer_public_key").map(|pem| (pem, member("key_identifier"))));
            }
        }
        let private = self.ledger.private(chain, order.count("idx")).await?;
        let member = |name| private.as_ref().and_then(|p| member(p, &["delivery_preferences", name]));
        given.extend(member("buyer_public_key").map(|pem| (pem, member("key_identifier"))));
        Ok(given)
    }

    /// The one of them that a delivery is for.
    async fn given_key(
        &self,
        case: CaseId,
        order: &Row,
        delivery: &Row,
    ) -> Result<Option<(Recipient, Option<String>)>, StoreError> {
        let given = self.given_keys(case, order, delivery.count("n")).await?;
        let mut keys = given.into_iter().filter_map(|(pem, hint)| Some((Recipient::from_pem(&pem).ok()?, hint)));
        Ok(keys.find(|(key, _)| key.fingerprint().to_hex() == delivery.text("key_fingerprint")))
    }

    /// The buyer's own name of the key that a delivery is for.
    pub(crate) async fn key_hint(
        &self,
        case: CaseId,
        order: &Row,
        delivery: &Row,
    ) -> Result<Option<String>, StoreError> {
        Ok(self.given_key(case, order, delivery).await?.and_then(|(_, hint)| hint))
    }

    async fn buyers_key(&self, case: CaseId, order: &Row, delivery: &Row) -> Result<Recipient, Trouble> {
        let found = self.given_key(case, order, delivery).await?;
        found.map(|(key, _)| key).ok_or_else(|| {
            let wanted = delivery.text("key_fingerprint");
            failed(format!(
                "the buyer's key {wanted} is not kept (any more), or is none to encrypt for; reissue with a new key"
            ))
        })
    }

    /// A key pair of this delivery alone. The private half is sealed at once.
    async fn own_recipient(&self, context: &[u8]) -> Result<(Recipient, SealedKey), Trouble> {
        let (private, recipient) = recipient::generate().ok_or_else(|| failed("no key pair could be made"))?;
        let sealed = self.sealing_key.seal(private.as_bytes(), context).await.map_err(|e| {
            // Where keys are is nothing for the history.
            tracing::error!("the private key of a delivery could not be sealed: {e}");
            failed("the marketplace's key for deliveries is away or does not seal")
        })?;
        Ok((recipient, SealedKey { source: sealed.source, sealed: to_hex(&sealed.bytes) }))
    }

    /// What was kept beside a delivery. `None` if it, or the delivery, is not there or not whole.
    async fn particulars(&self, delivery: &Row) -> io::Result<Option<Particulars>> {
        let (id, ciphertext) = names(delivery);
        self.with_files(move |files| files.particulars(&id, &ciphertext)).await
    }

    /// What the buyer is given of a delivery. `None` if it is not there, or not whole.
    pub(crate) async fn delivered(&self, delivery: &Row) -> io::Result<Option<Delivered>> {
        let (id, ciphertext) = names(delivery);
        self.with_files(move |files| files.delivered(&id, &ciphertext)).await
    }

    /// The private key of a marketplace-managed delivery, PKCS#8 in PEM. `None`: the delivery is for the buyer's own.
    pub(crate) async fn private_key(&self, delivery: &Row) -> Result<Option<zeroize::Zeroizing<String>>, KeyError> {
        let id = delivery.text("delivery_id");
        let kept = self.particulars(delivery).await.map_err(|e| KeyError::Files(e.to_string()))?;
        let kept = kept.ok_or_else(|| KeyError::Lost("what was kept of the delivery is not there".into()))?;
        let Some(SealedKey { source, sealed }) = kept.private_key else { return Ok(None) };
        let sealed = Sealed { source, bytes: from_hex(&sealed).unwrap_or_default() };
        let opened = self.sealing_key.open(&sealed, &context(&self.ledger.id(), id)).await;
        let opened = opened.map_err(|e| if e.again { KeyError::Away(e.reason) } else { KeyError::Lost(e.reason) })?;
        let text = std::str::from_utf8(&opened).map_err(|e| KeyError::Lost(e.to_string()))?;
        Ok(Some(zeroize::Zeroizing::new(text.to_owned())))
    }

    async fn prove(&self, case: CaseId, order: &Row, delivery: &Row, before: &[Row]) -> Result<(), Trouble> {
        // What failed is encrypted again, under another key.
        let kept = self.particulars(delivery).await.map_err(|e| {
            // Where files are is nothing for the history.
            tracing::error!("{}: {e}", delivery.text("delivery_id"));
            failed("what was encrypted cannot be read")
        })?;
        let kept = kept.ok_or_else(|| failed("what was encrypted is not there any more, or not all of it"))?;
        let hash = |hex: &str| Hash::from_hex(hex).ok_or_else(|| failed("what was kept of the delivery is damaged"));
        let terms = ProofTerms {
            order_id: case,
            n: u32::try_from(delivery.count("n")).map_err(|e| failed(e.to_string()))?,
            sku_id: order.text("sku_id").into(),
            buyer_id: order.text("buyer").into(),
            delivery_mode: delivery.text("mode").into(),
            artifact: (hash(delivery.text("artifact_sha256"))?, kept.artifact_bytes),
            ciphertext: (hash(delivery.text("ciphertext_sha256"))?, kept.ciphertext_bytes),
            manifest_sha256: hash(&kept.manifest_sha256)?,
            manifest_signature_id: hash(&kept.manifest_signature_id)?,
            ledger_proof_id: order.text("ledger_proof_id").into(),
            encryption: Encryption {
                algorithm: ALGORITHM.into(),
                key_algorithm: kept.key_algorithm,
                encrypted_key: from_hex(&kept.encrypted_key).unwrap_or_default(),
                key_fingerprint: hash(&kept.key_fingerprint)?,
                key_source: kept.private_key.map(|key| key.source),
            },
            supersedes: before.iter().rev().map(|d| d.text("proof_id")).find(|id| !id.is_empty()).map(str::to_owned),
            issued_at_us: 0,
            ledger_id: self.ledger.id(),
            signer_kid: String::new(),
        };
        let proof = self.ledger.prove_delivery(terms).await?;
        let command = of_delivery("delivery.ready", case, delivery).with("delivery_proof", proof.to_text());
        match self.append(command).await {
            Ok(_) => Ok(()),
            Err(AppendError::Refused(refused)) => {
                Err(failed(format!("the delivery proof is refused: {}", refused.code.as_str())))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Delivers what servers that ended left undone, and tries again what failed, until it is told to end.
    pub(crate) async fn work(self: Arc<Self>, closed: impl Future<Output = ()>) {
        let mut closed = std::pin::pin!(closed);
        let (mut search, mut look_at, mut sweep_at) = (Search::default(), Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            if sweep_at <= now {
                sweep_at = now + SWEEP_EVERY;
                // What is left there takes room and nothing else.
                let own = Arc::clone(&self);
                let sweep = |files: &Files| {
                    files.sweep();
                    Ok(())
                };
                drop(self.runtime.spawn(async move { own.with_files(sweep).await }));
            }
            if look_at <= now {
                look_at = now + LOOK_EVERY.min(self.takeover);
                tokio::select! {
                    () = &mut closed => break,
                    looked = self.look(&mut search) => if let Err(e) = looked {
                        tracing::warn!("deliveries that were not finished could not be looked for: {e}");
                    }
                }
            }
            self.try_again();
            tokio::select! {
                () = &mut closed => break,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        // Who has a permit records what was encrypted, or removes it.
        self.files.close();
        let _ = self.sealing.acquire_many(SEALED_AT_ONCE as u32).await;
    }

    /// Begins with what rested long enough, the longest first.
    fn try_again(self: &Arc<Self>) {
        let due: Vec<(Instant, CaseId)> = {
            let (under_way, resting) = (self.under_way.lock(), self.resting.lock());
            let under_way = under_way.unwrap_or_else(PoisonError::into_inner);
            let resting = resting.unwrap_or_else(PoisonError::into_inner);
            let room = TRIED_AT_ONCE.saturating_sub(under_way.len());
            let now = Instant::now();
            let due = resting.iter().filter(|(case, (at, _))| *at <= now && !under_way.contains_key(case));
            let mut due: Vec<_> = due.map(|(case, (at, _))| (*at, *case)).collect();
            due.sort_unstable();
            due.truncate(room);
            due
        };
        due.into_iter().for_each(|(_, case)| drop(self.run(case)));
    }

    /// Looks for what is not finished: all over the ledger at first; then where orders are new, and in one place after the other.
    async fn look(&self, search: &mut Search) -> Result<(), StoreError> {
        self.ledger.refresh_registry().await?;
        if self.ledger.registry().current(Purpose::DeliveryProof).is_none() {
            return Ok(());
        }
        let sizes = self.ledger.sizes().await?;
        let mut skus = HashMap::new();
        if search.found.len() > FOUND_MAX {
            search.found.clear();
        }
        if !search.begun {
            // Whoever worked on it when this server started may have been this server.
            for (chain, size) in (0..).zip(&sizes) {
                for from in (0..*size).step_by(LOOKED_AT_ONCE as usize) {
                    self.find_undone(chain, from..from + LOOKED_AT_ONCE, i64::MAX, &mut skus, search).await?;
                }
            }
            search.begun = true;
            return Ok(());
        }
        let quiet_since = SystemEnvironment.now_us() - i64::try_from(self.takeover.as_micros()).unwrap_or(i64::MAX);
        for (chain, size) in (0..).zip(&sizes) {
            let newest = size.saturating_sub(LOOKED_AT_ONCE)..*size;
            self.find_undone(chain, newest, quiet_since, &mut skus, search).await?;
        }
        let old = sizes.get(search.chain).map_or(0, |size| size.saturating_sub(LOOKED_AT_ONCE));
        if search.from < old {
            let range = search.from..search.from + LOOKED_AT_ONCE;
            self.find_undone(search.chain as u32, range, quiet_since, &mut skus, search).await?;
            search.from += LOOKED_AT_ONCE;
        } else {
            (search.chain, search.from) = ((search.chain + 1) % sizes.len().max(1), 0);
        }
        Ok(())
    }

    /// Puts what is not finished, and did not change since, among what is tried soon: orders that are licensed and not finalised, and
    /// deliveries that were issued again. `skus`: whether they were ever listed with a manifest, by id.
    async fn find_undone(
        &self,
        chain: u32,
        range: Range<u64>,
        quiet_since: i64,
        skus: &mut HashMap<String, bool>,
        search: &mut Search,
    ) -> Result<(), StoreError> {
        let case_of = |row: &Row| CaseId::parse(row.text("order_id"));
        // A delivery comes some entries after its order.
        let near = range.start..range.end.saturating_add(LOOKED_AT_ONCE);
        let undone = self.ledger.rows_among(&DELIVERIES, chain, near, &["requested", "encrypted", "failed"]).await?;
        let mut changed: HashMap<CaseId, i64> = HashMap::new();
        for delivery in &undone {
            let (Some(case), at) = (case_of(delivery), delivery.int("updated_at_us")) else { continue };
            let last = changed.entry(case).or_insert(at);
            *last = at.max(*last);
        }
        let mut cases: Vec<CaseId> = Vec::new();
        // Without its first delivery an order is not finalised.
        cases.extend(undone.iter().filter(|delivery| delivery.count("n") > 1).filter_map(case_of));
        for order in self.ledger.rows_among(&ORDERS, chain, range, &["licensed"]).await? {
            let sku = order.text("sku_id");
            if !skus.contains_key(sku) {
                let listings = self.ledger.read_stream(Stream::Sku(CaseId::of_sku(sku))).await?;
                let sold =
                    listings.iter().filter_map(|e| e.parse_body().ok()).any(|b| manifest_of(&b.payload).is_some());
                skus.insert(sku.to_owned(), sold);
            }
            // What has none is not for this server, and there may be many of them.
            let Some(case) = case_of(&order).filter(|_| skus.get(sku) == Some(&true)) else { continue };
            if order.count("deliveries") > 0 && !changed.contains_key(&case) {
                // It was asked for much later than the order was made, or is ready.
                let found = self.ledger.order_with_deliveries(case).await?;
                let delivery = found.and_then(|(_, mut deliveries)| deliveries.pop());
                changed.extend(delivery.map(|d| (case, d.int("updated_at_us"))));
            }
            let last = changed.entry(case).or_insert(i64::MIN);
            *last = order.int("updated_at_us").max(*last);
            cases.push(case);
        }
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        for case in cases {
            let at = changed.get(&case).copied().unwrap_or_default();
            // What was tried since is done, or not for this server.
            if at <= quiet_since && search.found.insert(case, at) != Some(at) {
                resting.entry(case).or_insert((Instant::now(), REST.0));
            }
        }
        Ok(())
    }
}

fn died(case: CaseId, why: &str) -> Outcome {
    tracing::error!("order {case}: what delivers it died: {why}");
    Outcome::Failed("it ended in an error that was not expected".into())
}

/// Whether an error says that nothing was written.
fn wrote_nothing(e: &AppendError) -> bool {
    !matches!(e.code(), "OUTCOME_UNKNOWN" | "LEDGER_CORRUPT" | "HISTORY_WENT_BACK")
}

/// What a delivery's files are named after: its id, and the digest of what the buyer gets.
fn names(delivery: &Row) -> (String, String) {
    (delivery.text("delivery_id").to_owned(), delivery.text("ciphertext_sha256").to_owned())
}

/// A command about this delivery as it is now, not about one that was asked for meanwhile.
fn of_delivery(command: &str, case: CaseId, delivery: &Row) -> Object {
    let (n, revision) = (delivery.int("n"), delivery.int("revision"));
    of(command, case).with("delivery", n).with("expected_revision", revision)
}

fn of(command: &str, case: CaseId) -> Object {
    Object::new().with("command", command).with("order_id", case.to_string())
}

fn fresh() -> Result<(ContentKey, Fresh), crate::CliError> {
    Ok((ContentKey::new(random()?), Fresh { salt: random()?, prefix: random()? }))
}

/// A text of what a client said in private.
fn member(private: &PrivateDocument, path: &[&str]) -> Option<String> {
    let members = private.members()?;
    let mut value = members.value("private")?;
    for name in path {
        value = value.as_object()?.value(name)?;
    }
    value.as_str().map(str::to_owned)
}
