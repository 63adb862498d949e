//! What all handlers share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use actix_web::HttpRequest;
use actix_web::web::Data;
use ledger_engine::ledger::Ledger;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Semaphore, watch};

use super::auth::Authenticator;
use super::feed::Feed;
use super::idempotency::InFlight;
use super::kernel::Kernel;
use super::rate::Rates;
use super::settings::Settings;
use crate::deliver::Deliverer;
use crate::deliver::files::Files;
use crate::deliver::sealing::Sealing;
use crate::directory;

/// One part in so many of the requests under way may be of callers who were not recognised.
const STRANGERS_SHARE: usize = 4;

/// Whether store and signers answer, asked once a second at most however many want to know.
#[derive(Default)]
pub(crate) struct Readiness {
    store: Answer,
    signers: Answer,
}

type Answer = tokio::sync::Mutex<Option<(Instant, bool)>>;

/// How long an answer of [`Readiness`] holds, and how long there is for it.
const READY_HOLDS: Duration = Duration::from_secs(1);
const READY_PATIENCE: Duration = Duration::from_secs(3);

async fn asked(known: &Answer, asking: impl Future<Output = bool>) -> bool {
    let mut known = known.lock().await;
    if let Some((at, answer)) = *known
        && at.elapsed() < READY_HOLDS
    {
        return answer;
    }
    let answer = tokio::time::timeout(READY_PATIENCE, asking).await.unwrap_or(false);
    *known = Some((Instant::now(), answer));
    answer
}

impl Readiness {
    pub(crate) async fn store(&self, ledger: &Ledger) -> bool {
        asked(&self.store, async { ledger.sizes().await.is_ok() }).await
    }

    pub(crate) async fn signers(&self, ledger: &Ledger) -> bool {
        let asking = async {
            let checked = ledger.check_signers().await;
            checked.inspect_err(|e| tracing::warn!("not ready: {e}")).is_ok()
        };
        asked(&self.signers, asking).await
    }
}

/// What all handlers share.
pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) kernel: Option<Kernel>,
    pub(crate) tokens: Authenticator,
    pub(crate) rates: Rates,
    /// A permit for each request under way.
    pub(crate) requests: Semaphore,
    /// One more for each of nobody in particular: whoever sends slowly and proves nothing leaves room for the others.
    pub(crate) strangers: Semaphore,
    /// The same for webhooks, whose sender is known by the body alone: neither kind keeps the other out.
    pub(crate) providers: Semaphore,
    pub(crate) feed: Feed,
    pub(crate) in_flight: InFlight,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) readiness: Readiness,
    closing: watch::Sender<bool>,
    /// When a checkpoint was issued last, and whether the last try failed.
    checkpoint: Mutex<(SystemTime, bool)>,
}

impl State {
    pub(crate) fn new(
        settings: Settings,
        ledger: Ledger,
        tokens: Authenticator,
        metrics: PrometheusHandle,
        kernel: Option<Kernel>,
        files: Files,
    ) -> Arc<State> {
        let ledger = Arc::new(ledger);
        let own_key = directory::delivery_key(&settings.place.dir);
        let sealing = Sealing::new(own_key, settings.delivery_key.as_ref());
        Arc::new(State {
            deliverer: Deliverer::new(Arc::clone(&ledger), files, sealing, settings.delivery_takeover),
            kernel,
            rates: Rates::new(&settings),
            requests: Semaphore::new(settings.requests_max),
            strangers: Semaphore::new(settings.requests_max.div_ceil(STRANGERS_SHARE)),
            providers: Semaphore::new(settings.requests_max.div_ceil(STRANGERS_SHARE)),
            feed: Feed::new(&ledger, settings.feeds_max),
            in_flight: InFlight::default(),
            settings,
            ledger,
            tokens,
            metrics,
            readiness: Readiness::default(),
            closing: watch::Sender::new(false),
            checkpoint: Mutex::new((SystemTime::now(), false)),
        })
    }

    /// Begins the end: feeds stop, `/ready` says so.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    pub(crate) fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Resolves once the server begins to end.
    pub(crate) async fn closed(&self) {
        // The sender lives as long as this does.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// Notes whether the last checkpoint could be issued.
    pub(crate) fn checkpointed(&self, well: bool) {
        let mut checkpoint = self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
        *checkpoint = (if well { SystemTime::now() } else { checkpoint.0 }, !well);
    }

    pub(crate) fn is_checkpointing(&self) -> bool {
        !self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// When this process issued a checkpoint last, or began.
    pub(crate) fn last_checkpoint(&self) -> SystemTime {
        self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The state behind a request.
pub(crate) fn of(req: &HttpRequest) -> &Arc<State> {
    match req.app_data::<Data<Arc<State>>>() {
        Some(state) => state.get_ref(),
        None => unreachable!("every app of this server has its state"),
    }
}
