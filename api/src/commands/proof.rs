use std::path::PathBuf;

use ledger_engine::hash::EventId;
use ledger_engine::header::Header;
use ledger_engine::reader::Reader;
use ledger_engine::stream::CaseId;

use crate::directory::{self, Place};
use crate::{CliError, output};

/// Write the proof file of one entry: what a stranger who knows the ledger's id needs to check it, offline
///
/// It proves that the entry is in the history that the last checkpoint signs. `audit-verify proof FILE --trust LEDGER_ID`
/// checks it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The entry's event id, or an order's id: then the last entry of the order's stream
    #[arg(value_name = "EVENT_ID|ORDER_ID")]
    id: String,
    /// Where to write it [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Show the private document too
    #[arg(long)]
    private: bool,
}

async fn find(ledger: &Reader, id: &str) -> Result<Option<Header>, CliError> {
    if let Some(case) = CaseId::parse(id) {
        let stream = ledger_engine::stream::Stream::Order(case);
        if let Some(last) = ledger.read_stream(stream).await?.pop() {
            return Ok(Some(last.header));
        }
    }
    let event = EventId::parse(id).ok_or_else(|| CliError::Usage(format!("{id:?} is no event id and no order id")))?;
    Ok(ledger.read_event(event).await?.map(|entry| entry.header))
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (ledger, _) = directory::reader(place).await?;
    let Some(header) = find(&ledger, &args.id).await? else {
        let text = format!("there is no entry and no order {} in {place}", args.id);
        let object = serde_json::json!({ "ok": false, "error": { "code": "ENTRY_NOT_FOUND", "message": text } });
        output::line(&if json { object.to_string() } else { text })?;
        return Ok(1);
    };
    let bytes = ledger
        .proof(header.chain, header.index, args.private)
        .await?
        .encode()
        .map_err(|e| CliError::Proof(e.into()))?;
    let Some(out) = &args.out else {
        // The newline of the file is the line's.
        output::line(String::from_utf8_lossy(&bytes).trim_end_matches('\n'))?;
        return Ok(0);
    };
    std::fs::write(out, &bytes).map_err(|e| CliError::Io(out.display().to_string(), e))?;
    if json {
        let object = serde_json::json!({
            "ok": true, "out": out, "ledger_id": ledger.id().to_hex(), "event_id": header.id().to_string(),
            "chain": header.chain, "index": header.index, "bytes": bytes.len(),
        });
        output::line(&object.to_string())?;
        return Ok(0);
    }
    output::line(&format!(
        "{}: {} of {}, entry {} of chain {}\nverify it with: audit-verify proof {0} --trust {}",
        out.display(),
        header.event_type,
        header.stream,
        header.index,
        header.chain,
        ledger.id(),
    ))?;
    Ok(0)
}
