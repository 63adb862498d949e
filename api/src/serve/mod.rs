//! The HTTP API: a thin front of the engine (HTTP.md).

mod access;
mod auth;
mod background;
mod body;
mod cursor;
mod error;
mod feed;
mod guard;
mod idempotency;
mod kernel;
mod observe;
mod openapi;
mod rate;
mod routes;
mod settings;
mod state;
mod stripe;
mod telemetry;
mod tls;
mod unread;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use actix_web::guard as guards;
use actix_web::middleware::{Condition, from_fn};
use actix_web::web::{Data, QueryConfig, ServiceConfig, post};
use actix_web::{App, HttpServer, rt};
use ledger_engine::connect;
use ledger_engine::hash::Hash;
use ledger_engine::ledger::Ledger;

pub(crate) use auth::{Caller, DevKey, Role, mint};
pub(crate) use settings::{Args, Settings};

use auth::{Authenticator, Keys, accept};
use error::ApiError;
use feed::Feed;
use kernel::Kernel;
use state::State;

use crate::{CliError, output};

/// Time for a client to send its headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection without a request is closed after this.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Reads that a worker does at once. Each has a thread, and in the embedded store a connection with a page cache of its own;
/// more of them would only take turns on the same cores. What is beyond waits in order.
const READS_PER_WORKER: usize = 8;
/// Requests that are under way when the server is told to end have this long.
const SHUTDOWN_SECONDS: u64 = 30;
/// After that, the last checkpoint and the end of the store have this long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// Exit status of a server that could not end as it should: nothing is wrong with the ledger.
const EXIT_ENDED: i32 = 2;

/// Issuer and audience of development tokens.
pub(crate) const DEV_CLAIMS: (&str, &str) = ("ledger-dev", "ledger");

/// Whether what the settings name can be used: files, and the ledger, which is opened for reading. Says where the ledger is and which;
/// nothing is made and nothing written.
pub(crate) async fn check(settings: &Settings) -> Result<String, CliError> {
    let place = &settings.place;
    if let Some(tls) = &settings.tls {
        tls::config(tls)?;
    }
    if let Some(from @ settings::Jwks::File(_)) = &settings.jwks {
        Keys::load(from, settings.jwks_refresh).await?;
    }
    let database = match &place.database {
        Some(url) => connect::describe(url).map_err(CliError::Usage)?,
        None => "(embedded)".to_owned(),
    };
    let ledger = if settings.dev && !place.dir.exists() {
        crate::directory::check_reach(place)?;
        "(none yet, --dev makes one)".to_owned()
    } else {
        let (ledger, _) = crate::directory::reader(place).await?;
        check_id(ledger.id(), settings)?;
        format!("{}, {}, chains: {}", ledger.id(), ledger.genesis().origin, ledger.genesis().chains)
    };
    let dir = place.dir.display().to_string();
    let line = |(name, value): (&str, &str)| format!("{name:<34} {value}\n");
    Ok([("dir", &dir[..]), ("database", &database), ("ledger", &ledger)].map(line).concat())
}

fn check_id(found: Hash, settings: &Settings) -> Result<(), CliError> {
    match settings.ledger_id.as_deref().and_then(Hash::from_hex) {
        Some(expected) if expected != found => Err(CliError::Usage(format!(
            "ledger_id: the ledger here is {found}, not {expected}; check the directory, DATABASE_URL and LEDGER_ID"
        ))),
        _ => Ok(()),
    }
}

/// Opens the ledger and serves it until SIGTERM or SIGINT.
pub(crate) async fn run(settings: Settings) -> Result<u8, CliError> {
    let telemetry = telemetry::start(&settings)?;
    let ledger = open(&settings).await?;
    let keys = match &settings.jwks {
        Some(from) => Keys::load(from, settings.jwks_refresh).await?,
        None if settings.dev => Keys::dev(&DevKey::read(&settings.place.dir)?),
        None => Keys::none(),
    };
    let tokens = Authenticator::new(Arc::new(keys), &settings);
    let tls = settings.tls.as_ref().map(tls::config).transpose()?;
    let kernel = settings.kernel.as_ref().map(Kernel::new).transpose()?;
    // Buckets have a runtime of their own, which is not made within another.
    let of_files = settings.clone();
    let files = tokio::task::spawn_blocking(move || of_files.files()).await;
    let files = files.map_err(|e| CliError::Usage(e.to_string()))??;
    let state = State::new(settings, ledger, tokens, telemetry.metrics.clone(), kernel, files);
    let settings = &state.settings;

    let shared = Arc::clone(&state);
    let app = move || {
        let origins = shared.settings.cors_origins.clone();
        App::new()
            .app_data(Data::new(Arc::clone(&shared)))
            .app_data(QueryConfig::default().error_handler(|e, _| {
                let text = e.to_string();
                let text = text.strip_prefix("Query deserialize error: ").unwrap_or(&text);
                ApiError::invalid(format!("the query is not as documented: {text}")).into()
            }))
            .wrap(from_fn(guard::guard))
            .wrap(Condition::new(!origins.is_empty(), cors(&origins)))
            .wrap(from_fn(observe::observe))
            .configure(routes)
            .default_service(actix_web::web::to(|| async {
                Err::<&str, _>(ApiError::not_found("there is no such path; GET /openapi.json lists them"))
            }))
    };
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let patience = settings.request_timeout;
    let server = HttpServer::new(app)
        .on_connect(move |connection, data| accept(connection, data, patience))
        .client_request_timeout(HEADERS_TIMEOUT)
        .keep_alive(KEEP_ALIVE)
        .workers(workers)
        .worker_max_blocking_threads(READS_PER_WORKER)
        // The framework counts for each worker.
        .max_connections(settings.connections_max.div_ceil(workers))
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals();
    let io = |e| CliError::Io(format!("cannot listen on {}", settings.listen), e);
    let (server, scheme) = match tls {
        Some(tls) => (server.bind_rustls_0_23(settings.listen, tls).map_err(io)?, "https"),
        None => (server.bind(settings.listen).map_err(io)?, "http"),
    };
    for address in server.addrs() {
        output::line(&format!("listening on {scheme}://{address}"))?;
    }
    if settings.dev {
        output::line("development only: `ledger token --sub ann@example.org --role buyer` makes a token")?;
    }
    output::line(&format!("documentation at /docs, ledger {}", state.ledger.id()))?;

    let server = server.run();
    let handle = server.handle();
    let (delivering, ending) = (Arc::clone(&state.deliverer), Arc::clone(&state));
    let delivering = async move {
        // In maintenance nothing is written.
        if !ending.settings.maintenance {
            delivering.work(ending.closed()).await;
        }
    };
    let background = [
        rt::spawn(delivering),
        rt::spawn(background::kernel(Arc::clone(&state))),
        rt::spawn(background::checkpoints(Arc::clone(&state))),
        rt::spawn(background::housekeeping(Arc::clone(&state))),
        rt::spawn(Feed::watch(Arc::clone(&state))),
    ];
    let ending = Arc::clone(&state);
    rt::spawn(async move {
        signal().await;
        tracing::info!("shutting down: requests under way are finished first; a second signal ends it at once");
        ending.close();
        rt::spawn(async {
            signal().await;
            give_up("ended by a second signal");
        });
        handle.stop(true).await;
    });
    let served = server.await;
    state.close();
    // Everything that was accepted is answered and durable; the last checkpoint says so.
    let closing = async {
        for task in background {
            let _ = task.await;
        }
        state.ledger.shutdown().await
    };
    let Ok(closed) = tokio::time::timeout(CLOSE_TIMEOUT, closing).await else {
        give_up("the store or a signer does not answer, so there is no last checkpoint");
    };
    served.map_err(|e| CliError::Io("the server failed".into(), e))?;
    closed?;
    Ok(0)
}

/// Ends the process where it stands, which is safe at any moment: what was answered is durable.
fn give_up(why: &str) -> ! {
    tracing::error!("{why}; nothing that was answered is lost");
    std::process::exit(EXIT_ENDED)
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be heard; end this process by SIGKILL, nothing durable is lost");
        return std::future::pending().await;
    };
    tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
}

/// Opens the ledger that the settings name. Only `--dev` makes one.
async fn open(settings: &Settings) -> Result<Ledger, CliError> {
    let place = &settings.place;
    if settings.dev {
        for made in crate::directory::make_dev(place).await? {
            output::line(&format!("made {made}"))?;
        }
    }
    let ledger = crate::directory::open(place).await?;
    check_id(ledger.id(), settings)?;
    if !ledger.signs_licences() {
        let text = format!(
            "{} has no licence key: `ledger keys generate` and `ledger keys enrol --purpose licence` make one",
            place.dir.display()
        );
        return Err(CliError::Usage(text));
    }
    Ok(ledger)
}

fn cors(origins: &[String]) -> actix_cors::Cors {
    let mut cors = actix_cors::Cors::default()
        .allowed_methods(["GET", "POST"])
        .allowed_headers(["authorization", "content-type", "idempotency-key", "last-event-id", "x-request-id"])
        .expose_headers(["x-request-id", "retry-after", "location", "idempotency-replayed"])
        .max_age(600);
    for origin in origins {
        cors = cors.allowed_origin(origin);
    }
    cors
}

fn routes(config: &mut ServiceConfig) {
    use routes::{admin, audit, catalogue, checkout, deliveries, health, licence, orders, payment, stream};
    let read = || actix_web::web::route().guard(guards::Any(guards::Get()).or(guards::Head()));
    config
        .route("/health", read().to(health::health))
        .route("/ready", read().to(health::ready))
        .route("/metrics", read().to(health::scrape))
        .route("/openapi.json", read().to(openapi::json))
        .route("/docs", read().to(openapi::docs))
        .route("/docs/{tail:.*}", read().to(openapi::page))
        .route("/checkout", post().to(checkout::checkout))
        .route("/webhooks/payment", post().to(payment::payment))
        .route("/order/{id}", read().to(orders::order))
        .route("/order/{id}/events", read().to(orders::events))
        .route("/order/{id}/license", read().to(licence::license))
        .route("/order/{id}/settle", post().to(orders::settle))
        .route("/order/{id}/finalize", post().to(orders::finalize))
        .route("/order/{id}/cancel", post().to(orders::cancel))
        .route("/order/{id}/refund", post().to(orders::refund))
        .route("/delivery/{id}/reissue", post().to(orders::reissue))
        .route("/delivery/{id}/artifact", read().to(deliveries::artifact))
        .route("/delivery/{id}/key", read().to(deliveries::key))
        .route("/license/verify", post().to(licence::verify))
        .route("/proofs/{id}", read().to(licence::proof))
        .route("/catalog", read().to(catalogue::catalog))
        .route("/sku", post().to(catalogue::list))
        .route("/sku/{id}", read().to(catalogue::sku))
        .route("/sku/{id}/withdraw", post().to(catalogue::withdraw))
        .route("/admin/validate-manifest", post().to(catalogue::validate))
        .route("/admin/signers", read().to(admin::signers))
        .route("/audit/events", read().to(audit::events))
        .route("/audit/events/{id}", read().to(audit::event))
        .route("/audit/events/{id}/proof", read().to(audit::entry_proof))
        .route("/audit/checkpoint", read().to(audit::checkpoint))
        .route("/audit/consistency", read().to(audit::consistency))
        .route("/audit/stream", read().to(stream::stream));
}
