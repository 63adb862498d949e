//! Step 6: everything that follows from the entries is recomputed and compared row by row.

use std::collections::BTreeMap;

use ledger_engine::domain::projection::{Cell, TABLES, case_rows, idempotency_row, sku_row};
use ledger_engine::hash::{Hash, to_hex};
use ledger_engine::runs::{RUN_ENTRIES, event_id_run};
use ledger_engine::stream::CaseId;
use rusqlite::Connection;

use crate::chain::{Chain, Named, Unit, case_of};
use crate::collector::Collector;
use crate::finding::Code;
use crate::fold::Folded;
use crate::prove::{RowKey, Sum};
use crate::row::text;
use crate::source::{SourceError, Tables, cell, columns, value};
use crate::spill::{Log, Sorter, Trouble};

/// Rows are added up in so many parts by their keys; only parts whose sums differ are compared row by row.
const PARTS: usize = 4096;

/// Sums of a table's parts: as they should be, and as they are.
type Sides = (Vec<Sum>, Vec<Sum>);

/// All derived tables of one untainted chain.
pub(crate) struct Derived<'a> {
    pub(crate) tables: &'a dyn Tables,
    pub(crate) chain: &'a Chain,
    pub(crate) units: Named<Unit>,
    pub(crate) id: &'a Hash,
    pub(crate) trouble: &'a Trouble,
}

impl Derived<'_> {
    /// Compares the tables with what the entries give. Returns how many projection rows were compared.
    pub(crate) fn compare(mut self, folded: Folded, out: &mut Collector) -> Result<u64, SourceError> {
        let key = RowKey::draw().map_err(|e| SourceError::Unreadable {
            path: "random numbers".into(),
            reason: format!("{e}; the system gives none"),
        })?;
        let keys = self.idempotency(folded.idempotency);
        let part = |table: &str, cells: &[Cell]| {
            let digest = key.digest(table, &cells[..columns(table).1.min(cells.len())]);
            usize::from(u16::from_le_bytes([digest.0[0], digest.0[1]])) % PARTS
        };
        let mut sums: BTreeMap<&'static str, Sides> = BTreeMap::new();
        let none = || (vec![Sum::default(); PARTS], vec![Sum::default(); PARTS]);
        self.expected(&keys, &mut |table, cells| {
            let side = &mut sums.entry(table).or_insert_with(none).0;
            side[part(table, &cells)].add(&key.digest(table, &cells));
        });
        for table in derived_tables() {
            let side = &mut sums.entry(table).or_insert_with(none).1;
            self.tables.rows(table, Some(self.chain.number), &mut |piece| {
                piece.iter().for_each(|cells| side[part(table, cells)].add(&key.digest(table, cells)));
            })?;
        }
        let differs = |table: &str, at: usize| sums.get(table).is_some_and(|(want, found)| want[at] != found[at]);
        let mut compared: u64 = 0;
        for (_, (want, found)) in sums.iter().filter(|(table, _)| code_of(table) == Code::ProjectionMismatch) {
            compared += want.iter().zip(found).filter(|(w, f)| w == f).map(|(want, _)| want.rows).sum::<u64>();
        }
        let suspects: Vec<&str> =
            derived_tables().filter(|table| (0..PARTS).any(|part| differs(table, part))).collect();
        if suspects.is_empty() {
            return Ok(compared);
        }
        let failed = |e: rusqlite::Error| std::io::Error::other(e);
        let scratch = self.trouble.or_default(Scratch::new(&suspects).map(Some).map_err(failed));
        let Some(scratch) = scratch else { return Ok(compared) };
        self.expected(&keys, &mut |table, cells| {
            if differs(table, part(table, &cells)) {
                self.trouble.or_default(scratch.add(table, false, &cells).map_err(failed));
            }
        });
        for table in suspects {
            self.tables.rows(table, Some(self.chain.number), &mut |piece| {
                for cells in piece.iter().filter(|cells| differs(table, part(table, cells))) {
                    self.trouble.or_default(scratch.add(table, true, cells).map_err(failed));
                }
            })?;
            let mut keys = 0;
            let each = scratch.each(table, &mut |want, found| {
                keys += 1;
                if want != found {
                    difference(self.chain, &mut self.units, table, &want, &found, out);
                }
            });
            self.trouble.or_default(each.map_err(failed));
            compared += if code_of(table) == Code::ProjectionMismatch { keys } else { 0 };
        }
        Ok(compared)
    }

    /// The first entry of each idempotency key.
    fn idempotency(&self, keys: Sorter<40>) -> Log<40> {
        let mut first = Log::new(self.trouble);
        let Some(mut sorted) = self.trouble.or_default(keys.sorted().map(Some)) else { return first };
        let mut last: Option<[u8; 40]> = None;
        while let Some(record) = self.trouble.or_default(sorted.next()) {
            if last.is_none_or(|last| last[..32] != record[..32]) {
                first.push(&record);
            }
            last = Some(record);
        }
        first
    }

    /// Gives every row that should be there.
    fn expected(&self, keys: &Log<40>, give: &mut dyn FnMut(&'static str, Vec<Cell>)) {
        let chain = self.chain;
        let n = || Cell::Int(chain.number as i64);
        let int = |v: u64| Cell::Int(v as i64);
        let size = chain.end;
        let head = blob(&chain.head().unwrap_or_default().0);
        give("chain_heads", vec![n(), int(size), head, Cell::Blob(chain.tree.compact_range())]);
        chain.tips.each(|held| {
            let Some(t) = &held.tip else { return };
            let name = held.name.as_str().into();
            give("stream_heads", vec![n(), name, int(t.revision), blob(&t.hash.0), int(t.idx), int(t.first)]);
        });
        chain.tree.tiles(&chain.seen, |level, tile, hashes| {
            give("tiles", vec![n(), int(level), int(tile), Cell::Blob(hashes)]);
        });
        for run in 0..size / RUN_ENTRIES {
            let ids = event_id_run(self.id, chain.number as u32, run);
            give("event_id_runs", vec![n(), int(run), Cell::Blob(ids)]);
        }
        for table in TABLES {
            give("cursors", vec![table.name.into(), n(), int(size)]);
        }
        let number = chain.number as u32;
        self.units.each(|unit| {
            let rows = unit.case.iter().flat_map(|case| case_rows(number, case));
            let rows = rows.chain(unit.sku.iter().map(|sku| sku_row(number, sku)));
            rows.for_each(|row| give(row.table.name, row.cells));
        });
        for record in keys.forward() {
            let index = record[32..].iter().fold(0, |n, b| n << 8 | u64::from(*b));
            let row = idempotency_row(number, &Hash::from_slice(&record[..32]).unwrap_or_default(), index);
            give(row.table.name, row.cells);
        }
    }
}

/// In the order of reports.
fn derived_tables() -> impl Iterator<Item = &'static str> {
    ["chain_heads", "stream_heads", "tiles", "event_id_runs", "cursors"]
        .into_iter()
        .chain(TABLES.iter().map(|t| t.name))
}

fn code_of(table: &str) -> Code {
    match table {
        "chain_heads" => Code::ChainHeadMismatch,
        "stream_heads" => Code::StreamHeadMismatch,
        "tiles" => Code::TileMismatch,
        "event_id_runs" => Code::EventIndexMismatch,
        "cursors" => Code::CursorMismatch,
        _ => Code::ProjectionMismatch,
    }
}

/// A temporary database in which rows of both sides are put into the order of their keys.
struct Scratch(Connection);

impl Scratch {
    fn new(tables: &[&str]) -> rusqlite::Result<Scratch> {
        // Without a name it is a file that nobody else sees, and only once it is larger than the cache.
        let conn = Connection::open("")?;
        conn.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -8192; BEGIN")?;
        for table in tables {
            conn.execute_batch(&format!("CREATE TABLE {table} ({}, is_found)", columns(table).0.join(", ")))?;
        }
        Ok(Scratch(conn))
    }

    fn add(&self, table: &str, is_found: bool, cells: &[Cell]) -> rusqlite::Result<()> {
        let marks = vec!["?"; cells.len() + 1].join(", ");
        let values = cells.iter().map(value).chain([rusqlite::types::Value::Integer(is_found.into())]);
        let mut insert = self.0.prepare_cached(&format!("INSERT INTO {table} VALUES ({marks})"))?;
        insert.execute(rusqlite::params_from_iter(values)).map(drop)
    }

    /// Gives the rows of each key as they should be and as they are, at most two of each.
    fn each(&self, table: &str, give: &mut dyn FnMut(Vec<Vec<Cell>>, Vec<Vec<Cell>>)) -> rusqlite::Result<()> {
        let (names, key) = columns(table);
        let order = names[..key].join(", ");
        let mut select = self.0.prepare(&format!("SELECT * FROM {table} ORDER BY {order}"))?;
        let mut rows = select.query([])?;
        let (mut want, mut found): (Vec<Vec<Cell>>, Vec<Vec<Cell>>) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            let read = |(at, name): (usize, &&str)| row.get_ref(at).map(|value| cell(name, value));
            let cells = names.iter().enumerate().map(read).collect::<rusqlite::Result<Vec<Cell>>>()?;
            if want.first().or(found.first()).is_some_and(|other| other[..key] != cells[..key]) {
                give(std::mem::take(&mut want), std::mem::take(&mut found));
            }
            let side = if row.get(names.len())? { &mut found } else { &mut want };
            if side.len() < 2 {
                side.push(cells);
            }
        }
        if !want.is_empty() || !found.is_empty() {
            give(want, found);
        }
        Ok(())
    }
}

fn difference(
    chain: &Chain,
    units: &mut Named<Unit>,
    table: &str,
    want: &[Vec<Cell>],
    found: &[Vec<Cell>],
    out: &mut Collector,
) {
    let (_, key) = columns(table);
    let Some(row) = want.first().or(found.first()).filter(|row| judged(chain, units, table, row)) else { return };
    let place: Vec<String> = row[..key].iter().map(show).collect();
    let place = format!("{table}/{}", place.join("/"));
    out.report(code_of(table), Some(chain.number), place, evidence(table, want, found));
}

fn blob(bytes: &[u8]) -> Cell {
    Cell::Blob(bytes.to_vec())
}

/// Rows of a case whose history is damaged cannot be judged.
fn judged(chain: &Chain, units: &mut Named<Unit>, table: &str, row: &[Cell]) -> bool {
    let name = |at: usize| row.get(at).and_then(text).unwrap_or_default();
    let case = match table {
        "chain_heads" | "tiles" | "event_id_runs" | "cursors" => return true,
        "idempotency" => return chain.taints == 0,
        "skus" => format!("sku-{}", CaseId::of_sku(name(2))),
        "stream_heads" => case_of(name(1)),
        // `<order id>`, `delivery-<order id>-<n>`, `license-<order id>`, `proof-<order id>-<n>`
        _ => name(2).split('-').find(|part| part.len() == 32).unwrap_or_default().to_owned(),
    };
    !units.with(&case, |unit| unit.tainted)
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

fn evidence(table: &str, want: &[Vec<Cell>], found: &[Vec<Cell>]) -> String {
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
