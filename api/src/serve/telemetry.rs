//! Logs, metrics and traces.

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use super::settings::Settings;
use crate::CliError;

/// Upper bounds of the buckets of latencies, seconds.
const LATENCY_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Kept while the server runs; dropping it sends the last traces.
pub(crate) struct Telemetry {
    pub(crate) metrics: PrometheusHandle,
    traces: Option<SdkTracerProvider>,
}

/// Starts logs on standard error (text on a terminal, else JSON lines; `RUST_LOG` filters), metrics, and traces where the settings
/// name an endpoint.
pub(crate) fn start(settings: &Settings) -> Result<Telemetry, CliError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let text = terminal.then(|| tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false));
    let json = (!terminal).then(|| {
        tracing_subscriber::fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(std::io::stderr)
    });
    let traces = settings.otlp.as_deref().map(exporter).transpose()?;
    // Only what is ours: an exporter whose own requests were traced would never be silent.
    let spans = traces.as_ref().map(|provider| {
        let ours = EnvFilter::new("ledger=info");
        tracing_opentelemetry::layer().with_tracer(provider.tracer("ledger")).with_filter(ours)
    });
    tracing_subscriber::registry()
        .with(spans)
        .with(text.with_filter(filter.clone()))
        .with(json.with_filter(filter))
        .try_init()
        .map_err(|e| CliError::Usage(format!("logs cannot be started: {e}")))?;
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &LATENCY_BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|e| CliError::Usage(format!("metrics cannot be started: {e}")))?;
    describe();
    Ok(Telemetry { metrics, traces })
}

/// Every counter is there from the start: an alert on a rate needs a zero to rise from.
fn describe() {
    metrics::describe_counter!("marketplace_orders_total", "Orders made");
    metrics::describe_histogram!("marketplace_checkout_latency_seconds", "Time of POST /checkout");
    metrics::describe_counter!("signing_errors_total", "Requests that failed because nothing could be signed");
    metrics::describe_counter!("http_requests_total", "Requests by method, route and status");
    metrics::describe_histogram!("http_request_duration_seconds", "Time of requests by route");
    metrics::describe_counter!("ledger_commits_total", "Commits of this process");
    metrics::describe_counter!("ledger_entries_total", "Entries of this process");
    metrics::describe_counter!("ledger_commit_microseconds_total", "Time that storing commits took, microseconds");
    metrics::describe_gauge!("ledger_commands_waiting", "Commands in the queues of the chains' writers");
    metrics::describe_gauge!("ledger_requests_under_way", "Requests that are being answered");
    metrics::describe_gauge!("ledger_chain_size", "Entries of a chain");
    metrics::describe_gauge!(
        "ledger_checkpoint_age_seconds",
        "Time since this process issued a checkpoint, or since it started"
    );
    metrics::describe_counter!("ledger_checkpoint_failures_total", "Checkpoints that could not be issued");
    metrics::describe_counter!(
        "ledger_payments_unplaced_total",
        "Payments that the provider captured and no order could take: somebody must look at each"
    );
    metrics::describe_counter!("marketplace_delivery_encrypt_failures_total", "Deliveries that could not be encrypted");
    metrics::describe_counter!("marketplace_audit_export_success_total", "Exports that were made by this process");
    metrics::describe_counter!("marketplace_audit_export_failure_total", "Exports that failed in this process");
    let counters = [
        "marketplace_orders_total",
        "marketplace_delivery_encrypt_failures_total",
        "marketplace_audit_export_success_total",
        "marketplace_audit_export_failure_total",
        "signing_errors_total",
        "ledger_checkpoint_failures_total",
        "ledger_payments_unplaced_total",
    ];
    for name in counters {
        metrics::counter!(name).increment(0);
    }
}

fn exporter(endpoint: &str) -> Result<SdkTracerProvider, CliError> {
    // The variable names the collector; traces have a path of their own there (OTLP/HTTP).
    let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&endpoint)
        .build()
        .map_err(|e| CliError::Usage(format!("otel_exporter_otlp_endpoint {endpoint}: {e}")))?;
    let resource = Resource::builder().with_service_name("ledger").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // A collector that is away must not keep the server from ending.
        if let Some(Err(e)) = self.traces.take().map(|traces| traces.shutdown()) {
            tracing::warn!("the last traces were not sent: {e}");
        }
    }
}
