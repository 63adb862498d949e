//! Step 6: everything that follows from the entries is recomputed and compared row by row.

use std::collections::BTreeMap;

use ledger_engine::domain::projection::{Cell, TABLES};
use ledger_engine::hash::{Hash, to_hex};
use ledger_engine::runs::{RUN_ENTRIES, event_id_run};
use ledger_engine::stream::CaseId;

use crate::chain::{Chain, case_of};
use crate::finding::Code;
use crate::fold::Folded;
use crate::row::text;
use crate::source::{SourceError, Tables, columns};
use crate::verify::Collector;

/// Rows of one key: as they should be, and as they are stored.
type Sides = (Vec<Vec<Cell>>, Vec<Vec<Cell>>);

/// Compares all derived tables of one untainted chain. Returns how many projection rows were compared.
pub(crate) fn compare(
    tables: &dyn Tables,
    chain: &Chain,
    folded: &Folded,
    ledger_id: &Hash,
    out: &mut Collector,
) -> Result<u64, SourceError> {
    let n = || Cell::Int(chain.number as i64);
    let int = |v: u64| Cell::Int(v as i64);
    let last = chain.at.last_key_value().map_or(Hash::ZERO, |(_, s)| s.hash);
    let size = chain.end;
    let mut expected: BTreeMap<&'static str, Vec<Vec<Cell>>> = BTreeMap::new();
    expected.insert("chain_heads", vec![vec![n(), int(size), blob(&last.0), Cell::Blob(chain.tree.compact_range())]]);
    let streams = chain.streams.iter();
    let heads = streams
        .map(|(name, t)| vec![n(), name.as_str().into(), int(t.revision), blob(&t.hash.0), int(t.idx), int(t.first)]);
    expected.insert("stream_heads", heads.collect());
    let tiles = chain.tree.tiles().map(|(level, tile, hashes)| vec![n(), int(level), int(tile), Cell::Blob(hashes)]);
    expected.insert("tiles", tiles.collect());
    let runs = (0..size / RUN_ENTRIES)
        .map(|run| vec![n(), int(run), Cell::Blob(event_id_run(ledger_id, chain.number as u32, run))]);
    expected.insert("event_id_runs", runs.collect());
    expected.insert("cursors", TABLES.iter().map(|t| vec![t.name.into(), n(), int(size)]).collect());
    for row in folded.rows(chain) {
        expected.entry(row.table.name).or_default().push(row.cells);
    }
    let mut compared = 0;
    for table in ["chain_heads", "stream_heads", "tiles", "event_id_runs", "cursors"]
        .into_iter()
        .chain(TABLES.iter().map(|t| t.name))
    {
        let code = match table {
            "chain_heads" => Code::ChainHeadMismatch,
            "stream_heads" => Code::StreamHeadMismatch,
            "tiles" => Code::TileMismatch,
            "event_id_runs" => Code::EventIndexMismatch,
            "cursors" => Code::CursorMismatch,
            _ => Code::ProjectionMismatch,
        };
        let (_, key) = columns(table);
        let mut sides: BTreeMap<Vec<Cell>, Sides> = BTreeMap::new();
        for cells in expected.remove(table).unwrap_or_default() {
            sides.entry(cells[..key].to_vec()).or_default().0.push(cells);
        }
        for cells in tables.all(table, Some(chain.number))? {
            sides.entry(cells[..key].to_vec()).or_default().1.push(cells);
        }
        compared += if code == Code::ProjectionMismatch { sides.len() as u64 } else { 0 };
        for (key, (want, found)) in sides {
            let row = want.first().or(found.first()).unwrap_or(&key);
            if want != found && judged(chain, table, row) {
                let place: Vec<String> = key.iter().map(show).collect();
                out.report(
                    code,
                    Some(chain.number),
                    format!("{table}/{}", place.join("/")),
                    difference(table, &want, &found),
                );
            }
        }
    }
    Ok(compared)
}

fn blob(bytes: &[u8]) -> Cell {
    Cell::Blob(bytes.to_vec())
}

/// Rows of a case whose history is damaged cannot be judged.
fn judged(chain: &Chain, table: &str, row: &[Cell]) -> bool {
    let name = |at: usize| row.get(at).and_then(text).unwrap_or_default();
    let case = match table {
        "chain_heads" | "tiles" | "event_id_runs" | "cursors" => return true,
        "idempotency" => return chain.tainted_cases.is_empty(),
        "skus" => format!("sku-{}", CaseId::of_sku(name(2))),
        "stream_heads" => case_of(name(1)),
        // `<order id>`, `delivery-<order id>-<n>`, `license-<order id>`, `proof-<order id>-<n>`
        _ => name(2).split('-').find(|part| part.len() == 32).unwrap_or_default().to_owned(),
    };
    !chain.tainted_cases.contains(&case)
}

fn show(cell: &Cell) -> String {
    match cell {
        Cell::Null => "null".into(),
        Cell::Int(n) => n.to_string(),
        Cell::Text(t) => t
            .chars()
            .take(120)
            .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
            .collect(),
        Cell::Blob(b) if b.len() > 32 => format!("{}… ({} bytes)", to_hex(&b[..32]), b.len()),
        Cell::Blob(b) => to_hex(b),
    }
}

fn difference(table: &str, want: &[Vec<Cell>], found: &[Vec<Cell>]) -> String {
    match (want, found) {
        ([], _) => "the entries give no such row".into(),
        (_, []) => "the row is missing".into(),
        ([want], [found]) => {
            let (names, _) = columns(table);
            let differing = names.iter().zip(want.iter().zip(found)).filter(|(_, (a, b))| a != b);
            let parts: Vec<String> =
                differing.map(|(name, (a, b))| format!("{name}: expected {}, found {}", show(a), show(b))).collect();
            parts.join("; ")
        }
        _ => "the row is there more than once".into(),
    }
}
