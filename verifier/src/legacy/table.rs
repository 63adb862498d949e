//! A legacy table in PostgreSQL, read without trusting it or hurting its writers.
//!
//! Short statements over ranges of the key below a head that is taken first; each row is read once, and nothing is
//! locked or kept open between them. The session is read-only, its search path fixed, its time zone UTC.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use ledger_engine::hash::Hash;
use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::ToSql;
use postgres::{Client, Row};

use super::gauge::{Gauge, Unit};
use super::judge::shown;
use super::row::{Member, ROW_BYTES_MAX, RawRow, RowFault, Rows};
use super::time::{parse_time, print_time};
use super::verify::{LegacyError, Source};
use crate::postgres::{connect, explain};

/// Rows of one statement; all rows of its last key come with it, since nothing says that keys are unique.
const RANGE_ROWS: u64 = 16 * 1024;
/// A statement is left early after so many bytes of rows, and the rest of the rows of the last key.
const RANGE_BYTES: usize = 32 << 20;
/// Bytes of one statement, at most, in memory: rows of one key cannot be read in parts.
const SAME_KEY_BYTES: usize = 96 << 20;
/// What a row takes besides its values, about.
const ROW_BYTES: usize = 400;
/// Bytes of rows that are judged together, at most; and rows.
const CHUNK_BYTES: usize = 8 << 20;
const CHUNK_ROWS: usize = 8192;

/// Column of the place of a row's key among those of its statement.
const RANK: usize = 10;

/// The columns of a table: name, type, the type below domains, whether the server itself prints it, and whether code that somebody added
/// makes a text or a time of it.
const COLUMNS: &str = "\
    WITH RECURSIVE kinds AS (
        SELECT a.attnum, a.attname, a.atttypid, t.oid, t.typtype, t.typbasetype
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT k.attnum, k.attname, k.atttypid, t.oid, t.typtype, t.typbasetype
        FROM kinds k JOIN pg_type t ON k.typtype = 'd' AND t.oid = k.typbasetype
    )
    SELECT k.attname, format_type(k.atttypid, -1), k.oid, k.oid < 16384 OR k.typtype = 'e' OR EXISTS (
            SELECT FROM pg_cast c WHERE c.castsource = k.oid AND c.casttarget = 'text'::regtype AND c.castmethod = 'b'),
        EXISTS (SELECT FROM pg_cast c WHERE c.castsource IN (k.atttypid, k.oid)
            AND c.casttarget IN ('text'::regtype, 'timestamptz'::regtype) AND c.castfunc >= 16384)
    FROM kinds k WHERE k.typtype <> 'd' ORDER BY k.attnum";
/// bigint, integer, smallint, numeric, uuid, text, varchar, bpchar, bytea, name, oid: equal ids are equal in every comparison of them.
const ID_TYPES: [u32; 11] = [20, 23, 21, 1700, 2950, 25, 1043, 1042, 17, 19, 26];

/// Which rows are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The newest so many.
    pub limit: Option<u64>,
    /// From this time on, milliseconds since 1970.
    pub since_ms: Option<i64>,
}

impl Window {
    /// Reads the time of `--since`: RFC 3339, or a date alone.
    pub fn parse_since(text: &str) -> Option<i64> {
        parse_time(text).or_else(|| parse_time(&format!("{text}T00:00:00Z")))
    }

    fn is_whole(self) -> bool {
        self == Window::default()
    }
}

/// A table of legacy audit events.
pub struct Table {
    client: Client,
    /// Quoted, with its schema.
    table: String,
    /// Quoted columns by member.
    columns: Vec<Option<String>>,
    /// Type of the id column.
    id_type: String,
    kind: String,
    window: Window,
    /// The last key that was read, as text.
    after: Option<String>,
    /// The last key there was at the beginning, or the time where keys have no order.
    head: Option<String>,
    /// The earliest time in the window, as PostgreSQL prints it.
    floor: Option<String>,
    ended: bool,
    /// Rows that were there before the first was read, without an index, and rows that were read.
    counted: u64,
    given: u64,
    pending: std::collections::VecDeque<Piece>,
    remarks: Vec<String>,
    gauge: Arc<Gauge>,
}

fn failed(e: &postgres::Error) -> LegacyError {
    LegacyError::Source(explain(e))
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Table {
    /// Connects and finds the table (`name` or `schema.name`; without a schema the search path of the role decides) and
    /// its columns by their names.
    pub fn open(url: &str, name: &str, window: Window) -> Result<Table, LegacyError> {
        let (mut client, tls) = connect(url).map_err(LegacyError::Source)?;
        // The role's search path says which table a bare name means. From then on nothing is found by it, or written.
        let path: Vec<String> = client
            .query_one("SELECT pg_catalog.current_schemas(false)::pg_catalog.text[]", &[])
            .map_err(|e| failed(&e))?
            .get(0);
        client
            .batch_execute(
                "SET search_path = pg_catalog; SET TimeZone = 'UTC'; SET default_transaction_read_only = on;
                 SET row_security = off; SET statement_timeout = '10min'; SET jit = off;
                 SET DateStyle = 'ISO'; SET standard_conforming_strings = on; SET extra_float_digits = 3",
            )
            .map_err(|e| failed(&e))?;
        let (path, relation) = match name.split_once('.') {
            Some((schema, relation)) => (vec![schema.to_owned()], relation),
            None => (path, name),
        };
        let found = client
            .query(
                "SELECT n.nspname, c.relname, c.relkind::text, c.oid, c.relrowsecurity, c.reltuples
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname = ANY ($2)
                 ORDER BY array_position($2, n.nspname::text) LIMIT 1",
                &[&relation, &path],
            )
            .map_err(|e| failed(&e))?;
        let Some(row) = found.first() else {
            return Err(LegacyError::Source(format!("there is no table {name} here; name another with --table")));
        };
        let (schema, relation, kind): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let (oid, has_row_security): (u32, bool) = (row.get(3), row.get(4));
        // An estimate of the last analysis; -1 without one.
        let estimate: f32 = row.get(5);
        let estimate = Some(estimate as u64).filter(|n| *n > 0 && window.is_whole());
        let cancel = client.cancel_token();
        let gauge = Gauge::new(Unit::Rows, estimate).on_stop(move || {
            // A statement that cannot be cancelled ends by its own timeout.
            let _ = cancel.cancel_query(tls.clone());
        });
        let attributes = client.query(COLUMNS, &[&oid]).map_err(|e| failed(&e))?;
        let mut columns = vec![None; Member::ALL.len()];
        let mut id_type = String::new();
        for attribute in &attributes {
            let (column, kind): (&str, String) = (attribute.get(0), attribute.get(1));
            let Some(member) = Member::named(column) else { continue };
            if columns[member as usize].replace(quote(column)).is_some() {
                return Err(LegacyError::Source(format!("{name} has two columns that could be {column}")));
            }
            let (base, printed, by_code): (u32, bool, bool) = (attribute.get(2), attribute.get(3), attribute.get(4));
            if !printed || by_code || member == Member::Id && !ID_TYPES.contains(&base) {
                return Err(LegacyError::Source(format!(
                    "{name}: the column {column} is of the type {kind}, and how it is {} is up to code in the database: export the table and verify \
                     the file",
                    if printed && !by_code { "compared" } else { "printed" }
                )));
            }
            if member == Member::Id {
                // `character` alone is one character.
                id_type = if kind == "character" { "bpchar".to_owned() } else { kind };
            }
        }
        for (needed, shown) in [
            (Member::Id, "id"),
            (Member::Payload, "payload"),
            (Member::PrevHash, "prev_hash"),
            (Member::Signature, "signature"),
        ] {
            if columns[needed as usize].is_none() {
                return Err(LegacyError::Source(format!("{name} has no column {shown}: it is no audit_events")));
            }
        }
        let mut remarks = Vec::new();
        let kind = match kind.as_str() {
            "v" | "m" => "view",
            "f" => "foreign table",
            _ => "table",
        };
        if kind != "table" {
            remarks.push(format!("{schema}.{relation} is a {kind}: its definition decides which rows there are"));
        }
        if has_row_security {
            remarks.push("the table has row-level security; this role reads without it".to_owned());
        }
        let kind = format!("legacy audit events: {kind} {schema}.{relation} in PostgreSQL");
        let table = format!("{}.{}", quote(&schema), quote(&relation));
        let mut table = Table {
            client,
            table,
            columns,
            id_type,
            kind,
            window,
            after: None,
            head: None,
            floor: None,
            ended: false,
            counted: 0,
            given: 0,
            pending: std::collections::VecDeque::new(),
            remarks,
            gauge: Arc::new(gauge),
        };
        table.take_head()?;
        Ok(table)
    }

    fn column(&self, member: Member) -> &str {
        self.columns[member as usize].as_deref().unwrap_or("NULL")
    }

    /// Keys of a sequence grow; others (uuid, text) say nothing about age.
    fn keys_grow(&self) -> bool {
        matches!(self.id_type.as_str(), "bigint" | "integer" | "smallint" | "numeric")
    }

    /// Fixes what will be read: rows up to the newest key or time there is now.
    fn take_head(&mut self) -> Result<(), LegacyError> {
        if self.window.is_whole() {
            self.by_index(false)?;
        }
        let (table, id, time) = (&self.table, self.column(Member::Id), self.column(Member::Time));
        let newest = if self.keys_grow() { id } else { time };
        let head = format!("SELECT (SELECT {newest} FROM {table} ORDER BY {newest} DESC NULLS LAST LIMIT 1)::text");
        let mut floor = None;
        if let Some(limit) = self.window.limit {
            // All rows of the oldest time in it belong to the window, so that equal times do not cut the chain.
            if self.columns[Member::Time as usize].is_none() {
                return Err(LegacyError::Source("--limit needs a column of times".into()));
            }
            floor = Some(format!(
                "SELECT min(t)::timestamptz::text FROM (SELECT {time} AS t FROM {table} ORDER BY {time} DESC NULLS LAST LIMIT {limit}) w"
            ));
        }
        // Ranges of keys would pass over them.
        let nameless = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {id} IS NULL)");
        let nameless: bool = self.client.query_one(&nameless, &[]).map_err(|e| failed(&e))?.get(0);
        if nameless {
            return Err(LegacyError::Source(
                "there are rows without an id: export the table and verify the file".into(),
            ));
        }
        let head = self.client.query_one(&head, &[]).map_err(|e| failed(&e))?;
        let floor = floor.map(|sql| self.client.query_one(&sql, &[]).map_err(|e| failed(&e))).transpose()?;
        self.head = head.get(0);
        self.floor = floor.and_then(|row| row.get(0));
        if let Some(since) = self.window.since_ms {
            let since = print_time(since);
            let later = |floor: &String| parse_time(floor) >= parse_time(&since);
            self.floor = self.floor.take().filter(later).or(Some(since));
        }
        self.ended = self.head.is_none() && self.keys_grow();
        // For a window that would take as long as for the whole table: what an index leaves out of it is missed when the whole is read.
        if self.window.is_whole() {
            self.counted = self.count()?;
            self.by_index(true)?;
        }
        Ok(())
    }

    /// Whether statements from here on may go by indexes. What an index leaves out is not there for whoever goes by it.
    fn by_index(&mut self, may: bool) -> Result<(), LegacyError> {
        let to = if may { "on" } else { "off" };
        let set = format!("SET enable_indexscan = {to}; SET enable_indexonlyscan = {to}; SET enable_bitmapscan = {to}");
        self.client.batch_execute(&set).map_err(|e| failed(&e))
    }

    /// How many rows there are of those that are to be read.
    fn count(&mut self) -> Result<u64, LegacyError> {
        let (filters, parameters) = self.filters(&None);
        let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|p| p as &(dyn ToSql + Sync)).collect();
        let sql = format!("SELECT count(*) FROM {} t {}", self.table, conditions(&filters));
        let count: i64 = self.client.query_one(&sql, &parameters).map_err(|e| failed(&e))?.get(0);
        Ok(count as u64)
    }

    /// That what was read by the index of the ids is what the table has. Writers go on: new ids are beyond the head, but rows with other
    /// ids may come before it.
    fn check_count(&mut self) -> Result<(), LegacyError> {
        self.by_index(false)?;
        let now = self.count()?;
        let (given, before) = (self.given, self.counted);
        if given < before || self.keys_grow() && given != now {
            let there = if given < before { before } else { now };
            return Err(LegacyError::Source(format!(
                "{given} rows were read by their ids, and {there} are there: an index leaves rows out, or rows were added or deleted meanwhile; run again, \
                 and if it stays so rebuild the index (REINDEX) and find out how it came about"
            )));
        }
        Ok(())
    }

    /// Conditions on rows, after an id if there is one, with the parameters that they name.
    fn filters(&self, after: &Option<String>) -> (Vec<String>, Vec<String>) {
        let (id, time, id_type) = (self.column(Member::Id), self.column(Member::Time), &self.id_type);
        let (mut filters, mut parameters) = (Vec::new(), Vec::new());
        // A row without a time is in every window: nothing says that it is old, or written meanwhile.
        let mut filter = |text: &str, value: &Option<String>, cast: &str| {
            if let Some(value) = value {
                parameters.push(value.clone());
                let or_none = if cast == "timestamptz" { format!(" OR {time} IS NULL") } else { String::new() };
                filters.push(format!("({text} ${}::text::{cast}{or_none})", parameters.len()));
            }
        };
        filter(&format!("{id} >"), after, id_type);
        if self.keys_grow() {
            filter(&format!("{id} <="), &self.head, id_type);
        } else if time != "NULL" {
            filter(&format!("{time} <="), &self.head, "timestamptz");
        }
        filter(&format!("{time} >="), &self.floor, "timestamptz");
        (filters, parameters)
    }

    fn statement(&self) -> (String, Vec<String>) {
        let mut list = String::new();
        for member in Member::ALL {
            let column = self.column(member);
            let _ = match member {
                Member::Payload => write!(list, "{column}::text AS payload, "),
                Member::Time if column != "NULL" => write!(list, "({column}::timestamptz)::text AS time, "),
                Member::Id => write!(list, "{column} AS key, {column}::text AS id, "),
                other => write!(list, "{column}::text AS m{}, ", other as usize),
            };
        }
        let (id, time) = (self.column(Member::Id), self.column(Member::Time));
        let (filters, parameters) = self.filters(&self.after);
        let filter = conditions(&filters);
        let others: Vec<String> = [
            Member::Actor,
            Member::EventType,
            Member::Time,
            Member::Hash,
            Member::PrevHash,
            Member::Signature,
            Member::Kid,
        ]
        .iter()
        .map(|m| if *m == Member::Time && time != "NULL" { "time".into() } else { format!("m{}", *m as usize) })
        .collect();
        let small = |column: &str| format!("CASE WHEN octet_length({column}) <= {ROW_BYTES_MAX} THEN {column} END");
        let size: Vec<String> = others.iter().map(|c| format!("coalesce(octet_length({c}), 0)::bigint")).collect();
        let others: Vec<String> = others.iter().map(|c| small(c)).collect();
        // `t.` because a bare id would be the text made of it. The inner query prints the payload once; OFFSET 0 keeps it
        // from being folded into the outer one.
        let sql = format!(
            "SELECT id, {}, coalesce(octet_length(payload), 0)::bigint + {} > {ROW_BYTES_MAX}, {},
                 rank() OVER (ORDER BY key)
             FROM (SELECT {} FROM {} t {filter} ORDER BY t.{id} OFFSET 0 FETCH FIRST {RANGE_ROWS} ROWS WITH TIES) r
             ORDER BY key",
            small("payload"),
            size.join(" + "),
            others.join(", "),
            list.trim_end_matches(", "),
            self.table,
        );
        (sql, parameters)
    }

    /// Reads one range into pieces.
    fn read_range(&mut self) -> Result<(), LegacyError> {
        let (sql, parameters) = self.statement();
        let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|p| p as &(dyn ToSql + Sync)).collect();
        let mut rows = self.client.query_raw(&sql, parameters).map_err(|e| failed(&e))?;
        let (mut count, mut bytes, mut all_bytes) = (0_u64, 0, 0);
        let mut piece = Piece { rows: Vec::new() };
        let (mut last, mut last_rank) = (None, 0);
        while let Some(row) = rows.next().map_err(|e| failed(&e))? {
            let id: Option<&str> = row.get(0);
            // PostgreSQL says which keys are equal: texts of equal keys can differ.
            let rank: i64 = row.get(RANK);
            if all_bytes > RANGE_BYTES && rank != last_rank {
                break;
            }
            if all_bytes > SAME_KEY_BYTES {
                return Err(LegacyError::Source(format!(
                    "over {} MiB of rows have one id, {}: export the table and verify the file",
                    SAME_KEY_BYTES >> 20,
                    shown(id.unwrap_or_default())
                )));
            }
            last_rank = rank;
            last = id.map(str::to_owned).or(last);
            count += 1;
            self.gauge.add(1);
            bytes += row.raw_size_bytes();
            all_bytes += row.raw_size_bytes() + ROW_BYTES;
            piece.rows.push(row);
            if bytes > CHUNK_BYTES || piece.rows.len() == CHUNK_ROWS {
                self.pending.push_back(std::mem::replace(&mut piece, Piece { rows: Vec::new() }));
                bytes = 0;
            }
        }
        drop(rows);
        if !piece.rows.is_empty() {
            self.pending.push_back(piece);
        }
        self.given += count;
        self.ended = count < RANGE_ROWS && all_bytes <= RANGE_BYTES;
        self.after = last;
        if self.ended && self.window.is_whole() { self.check_count() } else { Ok(()) }
    }
}

fn conditions(filters: &[String]) -> String {
    if filters.is_empty() { String::new() } else { format!("WHERE {}", filters.join(" AND ")) }
}

struct Piece {
    rows: Vec<Row>,
}

impl Rows for Piece {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn row(&self, at: usize) -> Result<RawRow<'_>, RowFault> {
        let row = &self.rows[at];
        let text = |column: usize| {
            let value: Result<Option<&str>, _> = row.try_get(column);
            value.map(|v| v.map(Into::into)).map_err(|e| RowFault::Undecodable(e.to_string()))
        };
        if row.try_get::<_, Option<bool>>(2).is_ok_and(|large| large == Some(true)) {
            return Err(RowFault::TooLarge);
        }
        Ok(RawRow {
            id: text(0)?,
            payload: text(1)?,
            actor: text(3)?,
            event_type: text(4)?,
            time: text(5)?,
            hash: text(6)?,
            prev_hash: text(7)?,
            signature: text(8)?,
            kid: text(9)?,
        })
    }
}

impl Source for Table {
    fn kind(&self) -> String {
        self.kind.clone()
    }

    fn gauge(&self) -> Arc<Gauge> {
        Arc::clone(&self.gauge)
    }

    fn windowed(&self) -> bool {
        !self.window.is_whole()
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn outside(&mut self, hashes: &[Hash]) -> Result<HashSet<Hash>, LegacyError> {
        if self.columns[Member::Hash as usize].is_none() {
            return Ok(HashSet::new());
        }
        // At once: a table without an index is read once for all of them. What it answers with is looked for among what was asked.
        let column = self.column(Member::Hash);
        let sql =
            format!("SELECT DISTINCT {column} FROM {} WHERE {column} = ANY($1) LIMIT {}", self.table, hashes.len());
        let asked: Vec<String> = hashes.iter().map(|hash| hash.to_hex()).collect();
        let rows = self.client.query(&sql, &[&asked]).map_err(|e| failed(&e))?;
        let hash = |row: &Row| row.try_get::<_, String>(0).ok().and_then(|text| Hash::from_hex(&text));
        Ok(rows.iter().filter_map(hash).collect())
    }

    #[allow(private_interfaces, reason = "sources are this crate's")]
    fn read(&mut self) -> Result<Option<Box<dyn Rows>>, LegacyError> {
        while self.pending.is_empty() && !self.ended {
            self.read_range()?;
        }
        Ok(self.pending.pop_front().map(|piece| Box::new(piece) as Box<dyn Rows>))
    }
}
