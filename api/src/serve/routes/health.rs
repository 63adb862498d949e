//! Whether the server lives, whether it can work, and its metrics.

use std::sync::Arc;

use actix_web::HttpResponse;
use ledger_engine::ledger::Ledger;
use ledger_engine::public_key::PublicKey;
use ledger_engine::signer::Keeper;
use serde::Serialize;
use utoipa::ToSchema;

use super::Shared;
use crate::serve::error::ReadErrors;
use crate::serve::kernel::Kernel;
use crate::serve::state::State;

/// The server lives.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HealthAnswer {
    #[schema(example = true)]
    ok: bool,
    /// Whether services may present certificates.
    #[serde(rename = "mTLS")]
    mtls: bool,
    /// Whether the keys that sign commits, checkpoints and licences are at hand.
    #[serde(rename = "signingConfigured")]
    signing_configured: bool,
    /// Whether SKUs are checked with the Kernel, and it answered the last real call.
    #[serde(rename = "kernelConfigured")]
    kernel_configured: bool,
    /// Writes are refused.
    maintenance: bool,
    /// Development keys and tokens: not for production.
    dev: bool,
    version: &'static str,
    ledger_id: String,
}

/// Whether the server lives
#[utoipa::path(
    get,
    path = "/health",tag = "operations", responses((status = 200, description = "It does", body = HealthAnswer)))]
pub(crate) async fn health(state: Shared) -> HttpResponse {
    let settings = &state.settings;
    HttpResponse::Ok().json(HealthAnswer {
        ok: true,
        mtls: settings.tls.as_ref().is_some_and(|t| t.client_ca.is_some()),
        signing_configured: state.ledger.holds_signers(),
        kernel_configured: state.kernel.as_ref().is_some_and(Kernel::answered),
        maintenance: settings.maintenance,
        dev: settings.dev,
        version: env!("CARGO_PKG_VERSION"),
        ledger_id: state.ledger.id().to_hex(),
    })
}

/// Whether the server can work.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReadyAnswer {
    ok: bool,
    /// The ledger's store answers.
    store: bool,
    /// Whatever signs commits, checkpoints and licences answers, and the last checkpoint could be signed.
    signer: bool,
    /// The server is not shutting down.
    serving: bool,
}

/// Whether the server can take requests: its store answers and its signer signs
#[utoipa::path(
    get,
    path = "/ready",
    tag = "operations",
    responses(
        (status = 200, description = "It can", body = ReadyAnswer),
        (status = 503, description = "It cannot", body = ReadyAnswer),
    ),
)]
pub(crate) async fn ready(state: Shared) -> HttpResponse {
    let readiness = &state.readiness;
    let (store, signers) = tokio::join!(readiness.store(&state.ledger), readiness.signers(&state.ledger));
    let (signer, serving) = (signers && state.is_checkpointing(), !state.is_closing());
    let ok = store && signer && serving;
    let mut answer = if ok { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    answer.json(ReadyAnswer { ok, store, signer, serving })
}

/// Metrics in Prometheus' text format
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses((status = 200, description = "Metrics", content_type = "text/plain", body = String), ReadErrors),
    security(("token" = []), ("certificate" = [])),
)]
pub(crate) async fn scrape(state: Shared) -> HttpResponse {
    gauges(&state).await;
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(state.metrics.render())
}

/// What is looked at when it is asked for.
async fn gauges(state: &Arc<State>) {
    let ledger = &state.ledger;
    let stats = ledger.stats();
    ::metrics::counter!("ledger_commits_total").absolute(stats.commits);
    ::metrics::counter!("ledger_entries_total").absolute(stats.entries);
    ::metrics::counter!("ledger_commit_microseconds_total").absolute(stats.store_us);
    ::metrics::gauge!("ledger_commands_waiting").set(stats.waiting as f64);
    signers(ledger);
    ::metrics::gauge!("ledger_requests_under_way")
        .set((state.settings.requests_max - state.requests.available_permits()) as f64);
    let now = std::time::SystemTime::now();
    if let Ok(age) = now.duration_since(state.last_checkpoint()) {
        ::metrics::gauge!("ledger_checkpoint_age_seconds").set(age.as_secs_f64());
    }
    // Whoever scrapes must hear the rest of it while the store hangs.
    let asked = tokio::time::timeout(std::time::Duration::from_secs(1), ledger.sizes()).await;
    let Ok(Ok(sizes)) = asked else { return };
    for (chain, size) in (0_u32..).zip(sizes) {
        ::metrics::gauge!("ledger_chain_size", "chain" => chain.to_string()).set(size as f64);
    }
}

/// What the signers did whose keys are elsewhere, by the kid of each.
fn signers(ledger: &Ledger) {
    let registry = ledger.registry();
    for signer in ledger.signers().signers().iter().filter(|signer| signer.keeper() != Keeper::Local) {
        let public_key = PublicKey::Ed25519(signer.public_key());
        let Some(record) = registry.records().iter().find(|r| r.key.public_key == public_key) else { continue };
        let labels = [("kid", record.key.kid.clone()), ("keeper", signer.keeper().as_str().to_owned())];
        let stats = signer.stats();
        ::metrics::counter!("ledger_signatures_total", &labels).absolute(stats.signed);
        ::metrics::counter!("ledger_signature_microseconds_total", &labels).absolute(stats.took.as_micros() as u64);
        ::metrics::counter!("ledger_signer_errors_total", &labels).absolute(stats.errors);
        ::metrics::counter!("ledger_signer_refused_total", &labels).absolute(stats.refused);
    }
}
