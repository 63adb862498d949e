//! What the server does by itself: checkpoints, fresh token keys, latencies summed up, forgetting silent callers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ledger_engine::note::Checkpoint;

use super::kernel::PROBE_EVERY;
use super::rate::Rates;
use super::state::State;

/// A checkpoint is issued after this even if nothing came: silence is a statement too.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(3600);
/// How often the key set of the token issuer is looked at.
const KEYS_EVERY: Duration = Duration::from_secs(1);

/// Runs until the server ends.
pub(crate) async fn checkpoints(state: Arc<State>) {
    let mut issued: Option<(Instant, Vec<u64>)> = None;
    loop {
        tokio::select! {
            () = state.closed() => return,
            () = tokio::time::sleep(state.settings.checkpoint_every) => {}
        }
        let sizes = match state.ledger.sizes().await {
            Ok(sizes) => sizes,
            Err(e) => {
                tracing::warn!("no checkpoint: {e}");
                continue;
            }
        };
        let due = match &issued {
            None => true,
            Some((at, known)) => *known != sizes || at.elapsed() >= IDLE_CHECKPOINT,
        };
        if !due {
            continue;
        }
        match state.ledger.checkpoint().await {
            Ok(notes) => {
                tracing::debug!(chains = notes.len(), "checkpoint issued");
                // What was signed, not what is there by now: an entry that came meanwhile is news.
                let signed = notes.iter().map(|note| Checkpoint::parse(&note.text).map_or(0, |c| c.size)).collect();
                issued = Some((Instant::now(), signed));
                state.checkpointed(true);
            }
            Err(e) => {
                metrics::counter!("ledger_checkpoint_failures_total").increment(1);
                tracing::error!("no checkpoint could be issued: {e}");
                state.checkpointed(false);
            }
        }
    }
}

/// Asks the Kernel now and then whether it is there, until the server ends.
pub(crate) async fn kernel(state: Arc<State>) {
    let Some(kernel) = &state.kernel else { return };
    loop {
        kernel.probe().await;
        tokio::select! {
            () = state.closed() => return,
            () = tokio::time::sleep(PROBE_EVERY) => {}
        }
    }
}

/// Runs until the server ends.
pub(crate) async fn housekeeping(state: Arc<State>) {
    let mut forgot = Instant::now();
    loop {
        tokio::select! {
            () = state.closed() => return,
            () = tokio::time::sleep(KEYS_EVERY) => {}
        }
        // Latencies are kept one by one until somebody sums them up; a server that nobody scrapes would hold them all.
        state.metrics.run_upkeep();
        state.tokens.keys().refresh().await;
        if forgot.elapsed() >= Rates::FORGET_EVERY {
            state.rates.forget_the_silent();
            forgot = Instant::now();
        }
    }
}
