use ledger_engine::domain::projection::{Cell, Row};
use ledger_engine::stream::CaseId;

use super::log::entry_line;
use crate::CliError;
use crate::directory::{self, Place};
use crate::output::{self, safe};

/// Show an order: its state, its deliveries, its entries
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The order's id, 32 hex characters
    id: String,
}

pub(crate) fn cell_json(cell: &Cell) -> serde_json::Value {
    match cell {
        Cell::Null => serde_json::Value::Null,
        Cell::Int(n) => (*n).into(),
        Cell::Text(t) => t.as_str().into(),
        Cell::Blob(b) => ledger_engine::hash::to_hex(b).into(),
    }
}

pub(crate) fn row_json(row: &Row) -> serde_json::Value {
    row.table.columns.iter().zip(&row.cells).map(|(name, cell)| ((*name).to_owned(), cell_json(cell))).collect()
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let usage = || CliError::Usage(format!("{:?} is no order id: 32 lowercase hex characters", args.id));
    let case = CaseId::parse(&args.id).ok_or_else(usage)?;
    let (ledger, _) = directory::reader(place).await?;
    let Some(order) = ledger.order(case).await? else {
        let text = format!("there is no order {case} in {place}");
        if json {
            output::line(
                &serde_json::json!({ "ok": false, "error": { "code": "ORDER_NOT_FOUND", "message": text } })
                    .to_string(),
            )?;
        } else {
            output::line(&text)?;
        }
        return Ok(1);
    };
    let mut deliveries = Vec::new();
    for n in 1.. {
        let Some(row) = ledger.delivery(case, n).await? else { break };
        deliveries.push(row);
    }
    let entries = ledger.read_order(case).await?;
    if json {
        let object = serde_json::json!({
            "ok": true, "order": row_json(&order),
            "deliveries": deliveries.iter().map(row_json).collect::<Vec<_>>(),
            "entries": entries.iter().map(super::log::entry_json).collect::<Vec<_>>(),
        });
        output::line(&object.to_string())?;
        return Ok(0);
    }
    for row in std::iter::once(&order).chain(&deliveries) {
        output::line(&format!("[{}]", row.table.name))?;
        for (name, cell) in row.table.columns.iter().zip(&row.cells).filter(|(_, c)| **c != Cell::Null) {
            let value = match cell_json(cell) {
                serde_json::Value::String(s) => safe(&s),
                other => other.to_string(),
            };
            output::line(&format!("  {name:<18} {value}"))?;
        }
    }
    output::line("[entries]")?;
    for entry in &entries {
        output::line(&entry_line(entry))?;
    }
    Ok(0)
}
