//! The live feed of entries. One task looks at the heads while anybody listens, so that entries of other processes are seen too
//! and an append has nothing more to do; each listener reads what it has not seen yet, from its own place in every chain.

use std::sync::Arc;
use std::time::Duration;

use actix_web::web::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use ledger_engine::ledger::Ledger;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::cursor::Cursor;
use super::error::{ApiError, Code};
use super::state::State;
use super::wire::AuditEvent;

/// How often the heads are looked at while somebody listens.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A comment is sent after this silence, so that a connection that is gone is noticed.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Entries read at a time.
const PAGE: usize = 128;

/// Sizes of all chains as they were seen last, and room for listeners.
pub(crate) struct Feed {
    sizes: watch::Sender<Vec<u64>>,
    room: Arc<Semaphore>,
    chains: u32,
}

impl Feed {
    pub(crate) fn new(ledger: &Ledger, listeners_max: usize) -> Feed {
        let chains = ledger.genesis().chains;
        let sizes = watch::Sender::new(vec![0; chains as usize]);
        Feed { sizes, room: Arc::new(Semaphore::new(listeners_max)), chains }
    }

    /// Looks at the heads until the server ends.
    pub(crate) async fn watch(state: Arc<State>) {
        let feed = &state.feed;
        loop {
            tokio::select! {
                () = state.closed() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if feed.sizes.receiver_count() == 0 {
                continue;
            }
            match state.ledger.sizes().await {
                Ok(sizes) => {
                    feed.sizes.send_if_modified(|known| std::mem::replace(known, sizes.clone()) != sizes);
                }
                // Listeners wait; the store is back or it is not, which `/ready` says.
                Err(e) => tracing::warn!("the feed cannot look at the heads: {e}"),
            }
        }
    }

    fn enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = |_| ApiError::new(Code::Overloaded, "as many feeds are open as this server allows; try again later");
        Arc::clone(&self.room).try_acquire_owned().map_err(full)
    }
}

/// One listener.
struct Listener {
    state: Arc<State>,
    at: Cursor,
    sizes: watch::Receiver<Vec<u64>>,
    /// Chain that is read next, so that a busy one does not hide the others.
    turn: u32,
    greeted: bool,
    /// What the listener may listen by; asked again and again, so that a feed ends with its token.
    token: String,
    _room: OwnedSemaphorePermit,
}

/// Server-sent events (WHATWG HTML 9.2): one `entry` for each entry after the cursor, ascending and without gaps in each chain.
/// The id of an event is the cursor with which to go on after it.
pub(crate) fn listen(
    state: &Arc<State>,
    from: Option<&str>,
    token: &str,
) -> Result<impl Stream<Item = Result<Bytes, actix_web::Error>> + use<>, ApiError> {
    let at = match from {
        Some(text) => Cursor::parse(text, state.feed.chains)?,
        None => Cursor::start(state.feed.chains),
    };
    let room = state.feed.enter()?;
    let mut sizes = state.feed.sizes.subscribe();
    // Whatever is known is news to somebody who just came.
    sizes.mark_changed();
    let listener =
        Listener { state: Arc::clone(state), at, sizes, turn: 0, greeted: false, token: token.to_owned(), _room: room };
    Ok(unfold(Some(listener), |listener| async {
        let mut listener = listener?;
        match listener.next().await {
            Some(Ok(bytes)) => Some((Ok(bytes), Some(listener))),
            // The client comes back with the last id that it got.
            Some(Err(e)) => {
                tracing::warn!("a feed ends: {e}");
                Some((Ok(Bytes::from_static(b": the feed cannot go on now; connect again\n\n")), None))
            }
            None => None,
        }
    }))
}

impl Listener {
    /// The next bytes to send; `None` when the server ends.
    async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        if !std::mem::replace(&mut self.greeted, true) {
            // What proxies and clients wait for, and how soon a client comes back.
            return Some(Ok(Bytes::from_static(b"retry: 2000\n: the ledger's entries\n\n")));
        }
        loop {
            if self.state.is_closing() || self.state.tokens.recognise(&self.token).await.is_err() {
                return None;
            }
            match self.read().await {
                Ok(Some(bytes)) => return Some(Ok(bytes)),
                Ok(None) => {}
                Err(e) => return Some(Err(e)),
            }
            tokio::select! {
                () = self.state.closed() => return None,
                changed = self.sizes.changed() => changed.ok()?,
                () = tokio::time::sleep(SILENCE_MAX) => return Some(Ok(Bytes::from_static(b": still here\n\n"))),
            }
        }
    }

    /// A page of one chain that has something new.
    async fn read(&mut self) -> Result<Option<Bytes>, ApiError> {
        let ledger = &self.state.ledger;
        let chains = self.state.feed.chains;
        for _ in 0..chains {
            let chain = self.turn;
            self.turn = (chain + 1) % chains;
            let entries = ledger.read_chain(chain, self.at.0[chain as usize], PAGE).await?;
            if entries.is_empty() {
                continue;
            }
            let mut out = String::new();
            for (entry, commit) in ledger.with_commits(entries).await? {
                let event = AuditEvent::of(&entry, &commit)?;
                self.at.saw(chain, entry.header.index);
                let data = serde_json::to_string(&event)
                    .map_err(|e| ApiError::new(Code::Internal, "an entry cannot be written").internal(e.to_string()))?;
                out.push_str(&format!("id: {}\nevent: entry\ndata: {data}\n\n", self.at));
            }
            return Ok(Some(Bytes::from(out)));
        }
        Ok(None)
    }
}
