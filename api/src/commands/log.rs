use ledger_engine::hash::{EventId, Hash, to_hex};
use ledger_engine::store::Entry;
use ledger_engine::stream::Stream;

use crate::CliError;
use crate::directory::{self, Place};
use crate::output::{self, safe};
use ledger_engine::time::rfc3339;

/// List entries, oldest first
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this chain [default: all]
    #[arg(long)]
    chain: Option<u32>,
    /// Start at this index
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// At most this many entries
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Only this event type, or all that begin so: `order.created`, `payment.`
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only this stream: `order-…`, `delivery-…-1`, `ledger`
    #[arg(long)]
    stream: Option<String>,
    /// Only the entry with this event id
    #[arg(long, conflicts_with_all = ["chain", "stream", "event_type"])]
    id: Option<String>,
}

/// Entries read from the store at a time.
const PAGE: usize = 512;

pub(crate) fn entry_json(entry: &Entry) -> serde_json::Value {
    let h = &entry.header;
    // A body is JSON by construction; if it is not, show what is there rather than nothing.
    let body: serde_json::Value = serde_json::from_slice(&entry.body)
        .unwrap_or_else(|_| serde_json::Value::String(String::from_utf8_lossy(&entry.body).into_owned()));
    serde_json::json!({
        "id": h.id().to_string(), "format": "ledger/1", "chain": h.chain, "index": h.index, "stream": h.stream,
        "revision": h.revision, "event_type": h.event_type, "schema_version": h.schema_version,
        "recorded_at": rfc3339(h.recorded_at_us), "recorded_at_us": h.recorded_at_us,
        "hash": entry.entry_hash.to_hex(), "prev_hash": to_hex(&h.prev_hash), "parent_hash": to_hex(&h.parent_hash),
        "body_hash": to_hex(&h.body_hash), "body_sha256": to_hex(&h.body_sha256), "body": body,
    })
}

pub(crate) fn entry_line(entry: &Entry) -> String {
    let h = &entry.header;
    let short = |hash: &Hash| hash.to_hex()[..12].to_owned();
    let body: String = String::from_utf8_lossy(&entry.body).chars().take(160).collect();
    let more = if body.len() < entry.body.len() { "…" } else { "" };
    format!(
        "{}:{:<6} {}  {:<20} {} r{}  {}\n         {}{more}",
        h.chain,
        h.index,
        rfc3339(h.recorded_at_us),
        h.event_type,
        h.stream,
        h.revision,
        short(&entry.entry_hash),
        safe(&body),
    )
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (ledger, _) = directory::reader(place).await?;
    let show = |entry: &Entry| {
        let text = if json { entry_json(entry).to_string() } else { entry_line(entry) };
        output::line(&text)
    };
    if let Some(id) = &args.id {
        let id = EventId::parse(id).ok_or_else(|| CliError::Usage(format!("{id:?} is no event id")))?;
        return match ledger.read_event(id).await? {
            Some(entry) => show(&entry).map(|()| 0),
            None => {
                output::line(&if json { "{\"ok\":false}".into() } else { format!("no entry has the id {id}") })?;
                Ok(1)
            }
        };
    }
    let wanted = |e: &Entry| {
        args.event_type.as_ref().is_none_or(|t| e.header.event_type.starts_with(t.as_str()))
            && args.stream.as_ref().is_none_or(|s| e.header.stream == *s)
    };
    if let Some(name) = &args.stream {
        let stream = Stream::parse(name).ok_or_else(|| CliError::Usage(format!("{name:?} is no stream's name")))?;
        let entries = ledger.read_stream(stream).await?;
        let found = entries.iter().filter(|e| e.header.index >= args.from && wanted(e)).take(args.limit);
        return found.into_iter().try_for_each(show).map(|()| 0);
    }
    let chains = ledger.genesis().chains;
    let mut left = args.limit;
    for chain in (0..chains).filter(|c| args.chain.is_none_or(|only| only == *c)) {
        let mut from = args.from;
        while left > 0 {
            let page = ledger.read_chain(chain, from, PAGE).await?;
            let Some(last) = page.last() else { break };
            from = last.header.index + 1;
            for entry in page.iter().filter(|e| wanted(e)).take(left) {
                show(entry)?;
                left -= 1;
            }
        }
    }
    Ok(0)
}
