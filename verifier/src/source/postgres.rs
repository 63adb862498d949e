//! A ledger in PostgreSQL, judged as it was at one moment: writers may go on.
//!
//! At first every statement of a run sees what one transaction saw: the first connection exports its snapshot, and each table that is
//! read beside others has a connection of its own with that snapshot. The tables are locked in the mode that every SELECT
//! takes, before the snapshot is, so that no TRUNCATE and no change of the schema falls into it. A snapshot that is held keeps the
//! server from clearing away old versions of rows, though, and a chain's head has a new one with each commit. So it is given up once the tables
//! that change were read (`settle`): the others are read page by page along their index below the heads of that moment, each page in a
//! transaction of its own. Where something does not fit, everything is copied into a temporary database once, in the same way, and judged there:
//! whoever names faults asks many times. Tables that cannot be read by pages, because they lost their keys or have rows beyond the heads, are copied in
//! one snapshot, which is given up then.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ledger_engine::connect::MakeRustlsConnect;
use ledger_engine::domain::projection::Cell;
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::ToSql;
use postgres::{CancelToken, Client, CopyOutReader, Statement};

use super::copy::{Column, Copied, Kind, Raw};
use super::{
    Cursor, LedgerAndGenesis, PIECE, PIECE_BYTES, Replica, Replicated, SourceError, Tables, Work, bytes_of, columns,
    few_ledgers, sizes, table_names,
};
use crate::postgres::{connect, explain};
use crate::row::{blob, text};

/// The schema of the ledger's tables.
const SCHEMA: &str = "ledger";

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// For one transaction, so that a pooler does not hand them to somebody else. Names are PostgreSQL's own, rows that
/// row-level security would hide are an error, and a lock that writers would have to wait behind is not waited for. What has an index is
/// read in its order instead of being sorted.
const SETTINGS: &str = "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL row_security = off; \
    SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '3s'; SET LOCAL idle_in_transaction_session_timeout = 0; \
    SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL enable_sort = off; \
    SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout'";

/// For a connection that waits outside of transactions.
const OUTSIDE: &str =
    "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'idle_session_timeout'";

const BEGIN_SHORT: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";

/// The tables that there are, and what keeps this role from reading all of their rows.
const RELATIONS: &str = "
    WITH RECURSIVE part AS (
        SELECT c.oid, c.relname::text AS name, false AS inherited FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = ANY ($2::text[]) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        UNION ALL
        SELECT i.inhrelid, part.name, true FROM pg_inherits i JOIN part ON i.inhparent = part.oid)
    SELECT part.name, bool_or(NOT inherited AND NOT (has_schema_privilege($1, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))),
        bool_or(c.relkind NOT IN ('r', 'p') OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '')),
        bool_or(NOT inherited AND row_security_active(c.oid))
    FROM part JOIN pg_class c ON c.oid = part.oid GROUP BY part.name";

/// Their columns.
const ATTRIBUTES: &str = "
    SELECT c.relname::text, a.attname::text, a.atttypid, format_type(a.atttypid, a.atttypmod), a.attnotnull
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE n.nspname = $1 AND c.relname = ANY ($2::text[]) AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped";

/// The tables to which rows are only added, but for documents, which are erased.
const GROWING: [&str; 5] = ["entries", "private_documents", "commits", "commit_signatures", "checkpoints"];
/// Rows, and bytes of them, that are read in one transaction and handed over at once. The next page is read meanwhile.
const PAGE_ROWS: usize = 1 << 12;
const PAGE_BYTES: usize = 2 << 20;
/// More rows than that at one place are no ledger's: they are not read to their end.
const POSITION_ROWS_MAX: usize = 32_768;
/// Bytes that are read of one place, or looked up at once: no ledger has a quarter of it there.
const PLACE_BYTES_MAX: usize = 64 << 20;
/// Keys that are looked up at once.
const LOOKED_UP: usize = 1 << 10;
/// How long single rows are looked up in one transaction.
const PASSING: Duration = Duration::from_secs(1);
/// Blocks whose rows are counted in one transaction: 256 MiB.
const BLOCKS: i64 = 1 << 15;

/// Whether a table has a unique index of all its rows by chain and another column, and how many indexes.
const INDEXED: &str = "
    SELECT (SELECT count(*) FROM pg_index WHERE indrelid = $1::text::regclass), EXISTS (
        SELECT FROM pg_index i WHERE i.indrelid = $1::text::regclass AND i.indisvalid AND i.indisunique AND i.indpred IS NULL
            AND i.indkey[0] = (SELECT attnum FROM pg_attribute WHERE attrelid = i.indrelid AND attname = 'chain')
            AND i.indkey[1] = (SELECT attnum FROM pg_attribute WHERE attrelid = i.indrelid AND attname = $2::text))";

/// The tables that hold a table's rows, their blocks, whether they can be read some blocks at a time, and the file that they are in.
const PARTS: &str = "
    WITH RECURSIVE part AS (
        SELECT $1::text::regclass::oid AS oid
        UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN part ON i.inhparent = part.oid)
    SELECT c.oid::regclass::text, pg_relation_size(c.oid) / current_setting('block_size')::bigint,
        has_table_privilege(c.oid, 'SELECT') AND current_setting('server_version_num')::integer >= 140000,
        pg_relation_filenode(c.oid)
    FROM part JOIN pg_class c ON c.oid = part.oid WHERE c.relkind = 'r' ORDER BY c.oid";

/// A ledger in a PostgreSQL database.
pub struct Postgres {
    url: String,
    /// The URL without what is secret in it.
    shown: String,
    /// Server and database.
    kind: String,
    is_standby: bool,
    snapshot: RefCell<String>,
    /// Once the snapshot was given up: the size of each chain then.
    settled: RefCell<Option<Vec<u64>>>,
    /// Whether single rows are looked up meanwhile, as they are then.
    passing: RefCell<bool>,
    /// Rows of a page at most.
    page_rows: usize,
    /// By table and column, what is held, and whether it can be null.
    present: Present,
    /// Holds the snapshot and looks single rows up.
    first: RefCell<First>,
    /// Connections with the snapshot and nothing to do.
    idle: RefCell<Vec<Lane>>,
    /// How many rows of a table on a chain were read, where they were read to the end.
    read: RefCell<BTreeMap<(&'static str, u64), u64>>,
    /// Once everything was copied, the rows.
    copied: OnceCell<Replicated>,
    /// What was wrong with the indexes of tables that were copied in one snapshot.
    copied_flaw: RefCell<Option<String>>,
}

type Present = BTreeMap<String, BTreeMap<String, (Kind, bool)>>;

struct First {
    client: Client,
    prepared: HashMap<String, Statement>,
    /// Since when it has a transaction in which no moment is held.
    passing: Option<Instant>,
}

impl Postgres {
    /// Connects, and takes the snapshot.
    pub fn open(url: &str) -> Result<Postgres, SourceError> {
        let shown = crate::name_of(url);
        let unreadable = |reason: String| SourceError::Unreadable { path: PathBuf::from(&shown), reason };
        let failed = |e: postgres::Error| unreadable(reason(&e));
        let (mut client, _) = connect(url).map_err(unreadable)?;
        let (about, present) = hold(&mut client).map_err(failed)?.map_err(unreadable)?;
        let printable = |text: &str| text.chars().filter(|c| !c.is_control()).take(100).collect::<String>();
        let is_standby = about.get(3);
        let standby = if is_standby { ", a standby" } else { "" };
        let kind = format!(
            "a ledger in PostgreSQL {}, database {}{standby}",
            printable(about.get(1)),
            printable(about.get(2))
        );
        let first = RefCell::new(First { client, prepared: HashMap::new(), passing: None });
        let url = url.to_owned();
        Ok(Postgres {
            url,
            shown,
            kind,
            is_standby,
            snapshot: RefCell::new(snapshot_name(&about)),
            settled: RefCell::default(),
            passing: RefCell::default(),
            page_rows: PAGE_ROWS,
            present,
            first,
            idle: RefCell::default(),
            read: RefCell::default(),
            copied: OnceCell::new(),
            copied_flaw: RefCell::default(),
        })
    }

    fn unreadable(&self, reason: String) -> SourceError {
        SourceError::Unreadable { path: PathBuf::from(&self.shown), reason }
    }

    fn failed(&self, e: &postgres::Error) -> SourceError {
        // What a server says before it ends an idle session is lost with the connection.
        let why = match (ended(e), self.is_standby) {
            (false, _) => reason(e),
            (true, false) => "database: the server ended the connection: see its log, and run again".to_owned(),
            (true, true) => format!("database: the standby ended the connection, perhaps because {STANDBY_ADVICE}"),
        };
        self.unreadable(why)
    }

    fn copy_failed(&self, e: &std::io::Error) -> SourceError {
        let cause = e.get_ref().and_then(|e| e.downcast_ref::<postgres::Error>());
        cause.map_or_else(|| self.unreadable(format!("database: {e}; run again")), |e| self.failed(e))
    }

    /// A connection with the snapshot, or, once that was given up, one that had it: of the same server.
    fn lane(&self) -> Result<Lane, SourceError> {
        if let Some(lane) = self.idle.borrow_mut().pop() {
            return Ok(lane);
        }
        if self.settled.borrow().is_some() {
            return Err(self.unreadable("database: a connection was lost; run again".to_owned()));
        }
        self.new_lane()
    }

    fn new_lane(&self) -> Result<Lane, SourceError> {
        let (mut client, tls) = connect(&self.url).map_err(|e| self.unreadable(e))?;
        let snapshot = self.snapshot.borrow();
        let begin = format!("{BEGIN}; SET TRANSACTION SNAPSHOT '{snapshot}'; {SETTINGS}");
        client.batch_execute(&begin).map_err(|e| self.failed(&e))?;
        let cancel = client.cancel_token();
        Ok(Lane { client, cancel, tls, is_busy: false })
    }

    /// Takes the snapshot again where it was given up.
    fn held(&self) -> Result<(), SourceError> {
        if self.settled.borrow().is_some() { self.take_again() } else { Ok(()) }
    }

    /// Takes another snapshot.
    fn take_again(&self) -> Result<(), SourceError> {
        if self.settled.take().is_none() {
            return Ok(());
        }
        self.passing.replace(false);
        self.idle.borrow_mut().clear();
        self.read.borrow_mut().clear();
        let mut first = self.first.borrow_mut();
        if first.passing.take().is_some() {
            first.client.batch_execute("COMMIT").map_err(|e| self.failed(&e))?;
        }
        let held = hold(&mut first.client).map_err(|e| self.failed(&e))?;
        let (about, present) = held.map_err(|why| self.unreadable(why))?;
        if present != self.present {
            return Err(self.unreadable("somebody changed the ledger's schema while it was read: run again".to_owned()));
        }
        self.snapshot.replace(snapshot_name(&about));
        Ok(())
    }

    /// For a look-up: the snapshot, or, where it was given up for a while, a transaction of some moments in which the tables are what they were.
    fn ready(&self) -> Result<(), SourceError> {
        if !*self.passing.borrow() {
            return self.held();
        }
        self.lapse()?;
        let First { client, passing, .. } = &mut *self.first.borrow_mut();
        if passing.is_some() {
            return Ok(());
        }
        let names: Vec<&str> = self.present.keys().map(String::as_str).collect();
        let tables: Vec<String> = names.iter().map(|name| format!("{SCHEMA}.{name}")).collect();
        let begin = format!("{BEGIN_SHORT}; {SETTINGS}; LOCK TABLE {} IN ACCESS SHARE MODE", tables.join(", "));
        client.batch_execute(&begin).map_err(|e| self.failed(&e))?;
        *passing = Some(Instant::now());
        plain(client, &names).map_err(|e| self.failed(&e))?.map_err(|why| self.unreadable(why))?;
        Ok(())
    }

    /// Ends a transaction of look-ups that is some moments old: whoever alters a table waits for it.
    fn lapse(&self) -> Result<(), SourceError> {
        let First { client, passing, .. } = &mut *self.first.borrow_mut();
        if passing.take_if(|begun| begun.elapsed() >= PASSING).is_some() {
            client.batch_execute("COMMIT").map_err(|e| self.failed(&e))?;
        }
        Ok(())
    }

    /// Copies all rows: of tables that change in the snapshot, of others by pages if they can be read so, else in the snapshot too.
    fn copy_all(&self, told: &dyn Fn(u64) -> bool) -> Result<Replicated, SourceError> {
        // A table of entries that has none of their columns has none of their rows.
        let there = |name: &&'static str| self.present.contains_key(*name) || *name == "entries";
        let tables: Vec<&'static str> = table_names().filter(there).collect();
        let replica = Replica::begin(Path::new(&self.shown), tables.clone())?;
        let mut copied = 0;
        let mut take = |table: &str, row: Vec<Cell>| {
            replica.insert(table, &row)?;
            copied += 1;
            let goes_on = copied % PIECE as u64 > 0 || told(copied);
            if goes_on { Ok(()) } else { Err(SourceError::Stopped) }
        };
        let growing: Vec<&'static str> = tables.iter().copied().filter(|table| GROWING.contains(table)).collect();
        for table in tables.iter().filter(|table| !GROWING.contains(table)) {
            self.read_rows(table, "", &[], None, &mut |row| take(table, row))?;
        }
        let sizes = self.sizes(&growing)?;
        let by_pages = match &sizes {
            Some(sizes) => self.can_settle(sizes).map_err(|e| self.failed(&e))?,
            None => false,
        };
        if let (Some(sizes), true) = (sizes, by_pages) {
            self.give_up(&sizes)?;
            for (chain, size) in (0..).zip(&sizes) {
                for table in &growing {
                    self.by_pages(chain, (None, *size), &[table], &mut |cursors| {
                        for cursor in cursors {
                            while let Some(row) = cursor.next()? {
                                take(table, row)?;
                            }
                        }
                        Ok(())
                    })?;
                }
            }
        } else {
            for table in &growing {
                let (names, key) = columns(table);
                for chain in self.chains(table)? {
                    let filter = self.filter(table, chain);
                    self.read_rows(table, &filter, &names[..key], chain, &mut |row| take(table, row))?;
                }
            }
            let flaw = self.misled().map_err(|e| self.failed(&e))?;
            self.copied_flaw.replace(flaw);
            self.give_up(&[])?;
        }
        replica.finish()
    }

    /// Which rows of a table are of a chain, or of none.
    fn filter(&self, table: &str, chain: Option<u64>) -> String {
        match chain {
            _ if !columns(table).0.contains(&"chain") => String::new(),
            Some(n) => self.of_chain(table, n),
            None if !self.has_chains(table) => String::new(),
            None => "WHERE chain IS NULL OR chain < 0".to_owned(),
        }
    }

    /// The sizes that the heads claim, if each chain that has rows has one.
    fn sizes(&self, growing: &[&'static str]) -> Result<Option<Vec<u64>>, SourceError> {
        let Some(sizes) = sizes(self)? else { return Ok(None) };
        let known = |chain: &Option<u64>| chain.is_some_and(|n| n < sizes.len() as u64);
        for table in growing {
            if !self.chains(table)?.iter().all(known) {
                return Ok(None);
            }
        }
        Ok(Some(sizes))
    }

    /// Gives the snapshot up.
    fn give_up(&self, sizes: &[u64]) -> Result<(), SourceError> {
        let missing = GROWING.len().saturating_sub(self.idle.borrow().len());
        let more: Vec<Lane> = (0..missing).map(|_| self.new_lane()).collect::<Result<_, _>>()?;
        let mut idle = self.idle.borrow_mut();
        idle.extend(more);
        for client in idle.iter_mut().map(|lane| &mut lane.client).chain([&mut self.first.borrow_mut().client]) {
            client.batch_execute(&format!("{OUTSIDE}; COMMIT")).map_err(|e| self.failed(&e))?;
        }
        self.settled.replace(Some(sizes.to_vec()));
        Ok(())
    }

    /// In the snapshot: whether the index of a table that was read leads to other rows than it has.
    fn misled(&self) -> Result<Option<String>, postgres::Error> {
        let mut first = self.first.borrow_mut();
        first.client.batch_execute(
            "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off",
        )?;
        for (table, read) in self.rows_read().into_iter().filter(|(table, _)| self.present.contains_key(*table)) {
            let count: i64 = first.client.query_one(&format!("SELECT count(*) FROM {SCHEMA}.{table}"), &[])?.get(0);
            let count = u64::try_from(count).unwrap_or_default();
            if count != read {
                return Ok(Some(unled(table, count, read)));
            }
        }
        Ok(None)
    }

    /// How many rows of each table were read.
    fn rows_read(&self) -> BTreeMap<&'static str, u64> {
        let mut tables = BTreeMap::new();
        for ((table, _), rows) in self.read.borrow().iter() {
            *tables.entry(*table).or_default() += rows;
        }
        tables
    }

    /// Whether the snapshot was given up, for tests.
    #[doc(hidden)]
    pub fn is_settled(&self) -> bool {
        self.settled.borrow().is_some()
    }

    /// Whether everything was copied, for tests.
    #[doc(hidden)]
    pub fn is_copied(&self) -> bool {
        self.copied.get().is_some()
    }

    /// Reads few rows at a time, for tests.
    #[doc(hidden)]
    pub fn in_pages_of(mut self, rows: usize) -> Postgres {
        self.page_rows = rows;
        self
    }

    fn kind_of(&self, table: &str, column: &str) -> Option<Kind> {
        self.present.get(table)?.get(column).map(|(kind, _)| *kind)
    }

    /// The columns of a table as they are asked for; `None` for a table that is not there.
    fn columns(&self, table: &str) -> Option<Vec<Column>> {
        self.present.get(table)?;
        Some(columns(table).0.iter().map(|c| (*c, self.kind_of(table, c))).collect())
    }

    /// `None` for a table that is not there.
    fn query(&self, table: &str, filter: &str, order: &[&'static str]) -> Option<String> {
        let (select, order) = self.ordered(table, order)?;
        Some(format!("{select} {filter} {order}"))
    }

    /// What comes before and after the filter of a query.
    fn ordered(&self, table: &str, order: &[&'static str]) -> Option<(String, String)> {
        let list: Vec<&str> = self.columns(table)?.iter().map(|(c, kind)| kind.map_or("NULL", |_| *c)).collect();
        let terms = order.iter().filter_map(|c| {
            let (kind, nullable) = self.present.get(table)?.get(*c)?;
            let collation = if *kind == Kind::Text { " COLLATE \"C\"" } else { "" };
            // No index of a ledger has nulls, and asking where they come would keep it from being used.
            let nulls = if *nullable { " NULLS FIRST" } else { "" };
            Some(format!("{c}{collation}{nulls}"))
        });
        let terms: Vec<String> = terms.collect();
        let order = if terms.is_empty() { String::new() } else { format!("ORDER BY {}", terms.join(", ")) };
        Some((format!("SELECT {} FROM {SCHEMA}.{table}", list.join(", ")), order))
    }

    /// Opens one cursor for each table; `whole` where it reads all rows of a chain.
    fn cursors(
        &self,
        whole: Option<u64>,
        tables: &[&str],
        filter: impl Fn(&str) -> String,
        work: &mut Work<'_>,
    ) -> Result<(), SourceError> {
        self.held()?;
        let mut lanes = Vec::new();
        for table in tables {
            let (names, key) = columns(table);
            let query = self.query(table, &filter(table), &names[..key]);
            lanes.push(query.map(|query| Ok((self.lane()?, query))).transpose()?);
        }
        let mut cursors: Vec<Box<dyn Cursor + '_>> = Vec::new();
        for (lane, table) in lanes.iter_mut().zip(tables) {
            cursors.push(match lane {
                Some((lane, query)) => Box::new(self.copy(lane, query, table, whole)?),
                None => Box::new(Vec::new().into_iter()),
            });
        }
        let worked = work(&mut cursors);
        drop(cursors);
        // One whose rows were not all taken is closed.
        self.idle.borrow_mut().extend(lanes.into_iter().flatten().map(|(lane, _)| lane).filter(|lane| !lane.is_busy));
        worked
    }

    fn copy<'a>(
        &'a self,
        lane: &'a mut Lane,
        query: &str,
        table: &str,
        whole: Option<u64>,
    ) -> Result<CopyCursor<'a>, SourceError> {
        let Lane { client, is_busy, .. } = lane;
        *is_busy = true;
        let reader =
            client.copy_out(&format!("COPY ({query}) TO STDOUT (FORMAT binary)")).map_err(|e| self.failed(&e))?;
        let rows = Copied::new(reader, self.columns(table).unwrap_or_default());
        let counted = table_names().find(|name| *name == table).zip(whole);
        Ok(CopyCursor { source: self, rows, is_busy, counted, count: 0 })
    }

    /// Reads one table on a connection of its own, until `each` fails.
    fn read_rows(
        &self,
        table: &str,
        filter: &str,
        order: &[&'static str],
        whole: Option<u64>,
        each: &mut dyn FnMut(Vec<Cell>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let Some(query) = self.query(table, filter, order) else { return Ok(()) };
        self.held()?;
        let mut lane = self.lane()?;
        let mut cursor = self.copy(&mut lane, &query, table, whole)?;
        while let Some(cells) = cursor.next()? {
            each(cells)?;
        }
        drop(cursor);
        self.idle.borrow_mut().push(lane);
        Ok(())
    }

    fn read_pieces(
        &self,
        table: &str,
        filter: &str,
        order: &[&'static str],
        whole: Option<u64>,
        each: &mut dyn FnMut(Vec<Vec<Cell>>),
    ) -> Result<(), SourceError> {
        let (mut piece, mut bytes) = (Vec::with_capacity(PIECE), 0);
        self.read_rows(table, filter, order, whole, &mut |cells| {
            bytes += bytes_of(&cells);
            piece.push(cells);
            if piece.len() == PIECE || bytes >= PIECE_BYTES {
                each(std::mem::replace(&mut piece, Vec::with_capacity(PIECE)));
                bytes = 0;
            }
            Ok(())
        })?;
        each(piece);
        Ok(())
    }

    /// Few rows, by conditions on columns that stand for `$1`, `$2`….
    fn select(
        &self,
        table: &str,
        named: &[&'static str],
        condition: &str,
        order: &str,
        key: &[Cell],
    ) -> Result<Vec<Vec<Cell>>, SourceError> {
        let Some(columns) = self.columns(table) else { return Ok(Vec::new()) };
        self.ready()?;
        // What is of another type is not equal.
        let fits = |(name, cell): (&&str, &Cell)| match cell {
            Cell::Null => false,
            Cell::Int(_) => self.kind_of(table, name) == Some(Kind::Int),
            Cell::Text(_) => self.kind_of(table, name) == Some(Kind::Text),
            Cell::Blob(_) => self.kind_of(table, name) == Some(Kind::Blob),
        };
        if !named.iter().zip(key).all(fits) {
            return Ok(Vec::new());
        }
        let Some(query) = self.query(table, &format!("WHERE {condition} {order}"), &[]) else { return Ok(Vec::new()) };
        let parameters: Vec<&(dyn ToSql + Sync)> = key.iter().map(parameter).collect();
        self.few(&columns, query, &parameters)?.ok_or_else(|| self.too_much(table))
    }

    /// The rows of a query; `None` if they are more than what can be at a place.
    fn few(
        &self,
        columns: &[Column],
        query: String,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Vec<Vec<Cell>>>, SourceError> {
        let mut first = self.first.borrow_mut();
        let First { client, prepared, .. } = &mut *first;
        let read = || -> Result<Option<Vec<Vec<Cell>>>, postgres::Error> {
            let statement = match prepared.get(&query) {
                Some(statement) => statement.clone(),
                None => {
                    let statement = client.prepare(&query)?;
                    prepared.insert(query, statement.clone());
                    statement
                }
            };
            let cells = |row: &postgres::Row| -> Result<Vec<Cell>, postgres::Error> {
                let values = columns.iter().enumerate().map(|(at, (name, kind))| {
                    let Raw(value) = row.try_get(at)?;
                    Ok(kind.zip(value).map_or(Cell::Null, |(kind, bytes)| kind.cell(name, bytes)))
                });
                values.collect()
            };
            let mut rows = client.query_raw(&statement, parameters.iter().copied())?;
            let (mut all, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                bytes += row.raw_size_bytes();
                if bytes > PLACE_BYTES_MAX {
                    return Ok(None);
                }
                all.push(cells(&row)?);
            }
            Ok(Some(all))
        };
        read().map_err(|e| self.failed(&e))
    }

    /// Adds the rows of some keys, all at once if they are not too large.
    fn look_up(&self, table: &str, keys: &[Vec<Cell>], rows: &mut Vec<Vec<Cell>>) -> Result<(), SourceError> {
        let Some(listed) = self.columns(table) else { return Ok(()) };
        let Some(length) = keys.first().map(Vec::len) else { return Ok(()) };
        let names = &columns(table).0[..length];
        let keys_by_column: Option<Vec<Keys<'_>>> = (0..length).map(|at| Keys::of(keys, at)).collect();
        // What is of another type is not equal.
        let fits = |(key, name): (&Keys<'_>, &&str)| self.kind_of(table, name) == Some(key.kind());
        let Some(by_column) = keys_by_column.filter(|by_column| by_column.iter().zip(names).all(fits)) else {
            return Ok(());
        };
        self.ready()?;
        let column = |(name, kind): &Column| kind.map_or_else(|| "NULL".to_owned(), |_| format!("t.{name}"));
        let select: Vec<String> = listed.iter().map(column).collect();
        let arrays: Vec<String> = (1..).zip(&by_column).map(|(n, key)| format!("${n}::{}[]", key.sql())).collect();
        let given: Vec<String> = (0..length).map(|n| format!("k{n}")).collect();
        let equal = given.iter().zip(&by_column).zip(names);
        let equal: Vec<String> = equal.map(|((k, key), name)| format!("t.{name}{} = {k}", key.collation())).collect();
        let query = format!(
            "SELECT {} FROM unnest({}) given ({}) JOIN {SCHEMA}.{table} t ON {}",
            select.join(", "),
            arrays.join(", "),
            given.join(", "),
            equal.join(" AND ")
        );
        let parameters: Vec<&(dyn ToSql + Sync)> = by_column.iter().map(Keys::parameter).collect();
        // By the index, key for key.
        let plan = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";
        self.first.borrow_mut().client.batch_execute(plan).map_err(|e| self.failed(&e))?;
        match self.few(&listed, query, &parameters)? {
            Some(found) => rows.extend(found),
            None if keys.len() == 1 => return Err(self.too_much(table)),
            None => {
                let (left, right) = keys.split_at(keys.len() / 2);
                self.look_up(table, left, rows)?;
                self.look_up(table, right, rows)?;
            }
        }
        Ok(())
    }

    fn too_much(&self, table: &str) -> SourceError {
        self.unreadable(format!("over {} MiB of rows of {table} are at one place", PLACE_BYTES_MAX >> 20))
    }

    /// That columns are equal to a key's, as conditions.
    fn equal(&self, table: &str, names: &[&'static str]) -> String {
        let terms = names.iter().zip(1..).map(|(name, n)| match self.kind_of(table, name) {
            Some(Kind::Text) => format!("{name} COLLATE \"C\" = ${n}::text"),
            Some(Kind::Blob) => format!("{name} = ${n}::bytea"),
            _ => format!("{name} = ${n}::bigint"),
        });
        terms.collect::<Vec<_>>().join(" AND ")
    }
}

impl Tables for Postgres {
    fn kind(&self) -> String {
        self.kind.clone()
    }

    /// Rows in order are found by an index, which is a second copy of each key: one that was made to leave rows out would hide them
    /// here and nowhere else. So the tables are counted without it.
    fn flaw(&self) -> Option<SourceError> {
        let compare = || -> Result<Option<String>, postgres::Error> {
            let settled = self.settled.borrow();
            // Of a copy that was made in one snapshot it was asked there.
            if self.copied_flaw.borrow().is_some() || settled.as_ref().is_some_and(Vec::is_empty) {
                return Ok(self.copied_flaw.borrow().clone());
            }
            let Some(sizes) = settled.as_ref() else { return self.misled() };
            let tables = self.rows_read();
            let mut first = self.first.borrow_mut();
            // Of the other two, rows go and come; they were counted in the snapshot.
            for table in ["entries", "commits", "commit_signatures"] {
                let read = tables.get(table).copied().unwrap_or_default();
                let why = count(&mut first.client, table, sizes, read)?;
                if why.is_some() {
                    return Ok(why);
                }
            }
            Ok(None)
        };
        match compare() {
            Ok(why) => why.map(|why| self.unreadable(why)),
            Err(e) => Some(self.failed(&e)),
        }
    }

    /// By the index, from one chain to the next.
    fn chains(&self, table: &str) -> Result<BTreeSet<Option<u64>>, SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.chains(table);
        }
        if !columns(table).0.contains(&"chain") {
            return Ok(BTreeSet::new());
        }
        if !self.has_chains(table) {
            let Some(query) = self.query(table, "LIMIT 1", &[]) else { return Ok(BTreeSet::new()) };
            let any = self.first.borrow_mut().client.query_opt(&query, &[]).map_err(|e| self.failed(&e))?;
            return Ok(any.map(|_| None).into_iter().collect());
        }
        let query = format!(
            "WITH RECURSIVE found (chain) AS (
                (SELECT chain FROM {SCHEMA}.{table} ORDER BY chain LIMIT 1)
                UNION ALL
                SELECT (SELECT t.chain FROM {SCHEMA}.{table} t WHERE t.chain > found.chain ORDER BY t.chain LIMIT 1)
                FROM found WHERE found.chain IS NOT NULL)
             SELECT chain::bigint FROM found WHERE chain IS NOT NULL
             UNION ALL SELECT NULL WHERE EXISTS (SELECT FROM {SCHEMA}.{table} WHERE chain IS NULL)"
        );
        let rows = self.first.borrow_mut().client.query(&query, &[]).map_err(|e| self.failed(&e))?;
        Ok(rows.iter().map(|row| row.get::<_, Option<i64>>(0).and_then(|n| u64::try_from(n).ok())).collect())
    }

    fn rows(&self, table: &str, chain: Option<u64>, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.rows(table, chain, each);
        }
        let (names, key) = columns(table);
        let filter = self.filter(table, chain);
        self.read_pieces(table, &filter, &names[..key], chain, each)
    }

    fn settle(&self, sizes: &[u64], told: &dyn Fn(u64) -> bool) -> Result<(), SourceError> {
        if self.can_settle(sizes).map_err(|e| self.failed(&e))? {
            return self.give_up(sizes);
        }
        let copied = self.copy_all(told)?;
        // Nobody else sets it meanwhile.
        let _ = self.copied.set(copied);
        Ok(())
    }

    fn let_go(&self, sizes: &[u64], new: u64) -> Result<bool, SourceError> {
        // One page holds the moment as long.
        let few = new <= self.page_rows as u64;
        if few || self.copied.get().is_some() || !self.has_pages(sizes).map_err(|e| self.failed(&e))? {
            return Ok(false);
        }
        self.give_up(sizes)?;
        self.passing.replace(true);
        Ok(true)
    }

    fn hold_again(&self) -> Result<(), SourceError> {
        self.held()
    }

    fn begin_again(&self, told: &dyn Fn(u64) -> bool) -> Result<(), SourceError> {
        if self.copied.get().is_some() {
            return Ok(());
        }
        self.take_again()?;
        let copied = self.copy_all(told)?;
        let _ = self.copied.set(copied);
        Ok(())
    }

    fn side_by_side(&self, chain: u64, tables: &[&str], work: &mut Work<'_>) -> Result<(), SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.side_by_side(chain, tables, work);
        }
        if let Some(size) = self.settled_size(chain, tables) {
            return self.by_pages(chain, (None, size), tables, work);
        }
        self.cursors(Some(chain), tables, |table| self.of_chain(table, chain), work)
    }

    fn side_by_side_from(
        &self,
        chain: u64,
        from: u64,
        tables: &[&str],
        work: &mut Work<'_>,
    ) -> Result<(), SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.side_by_side_from(chain, from, tables, work);
        }
        if let Some(size) = self.settled_size(chain, tables) {
            return self.by_pages(chain, (Some(from), size), tables, work);
        }
        let filter = |table: &str| {
            let (filter, at) = (self.of_chain(table, chain), columns(table).0[1]);
            match self.kind_of(table, at) {
                Some(Kind::Int) => format!("{filter} AND ({at} >= {from} OR {at} IS NULL)"),
                // What is no number is handed over.
                _ => filter,
            }
        };
        self.cursors(None, tables, filter, work)
    }

    fn scan(&self, table: &str, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.scan(table, each);
        }
        self.read_pieces(table, "", &[], None, each)
    }

    fn ledger_and_genesis(&self) -> Result<LedgerAndGenesis, SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.ledger_and_genesis();
        }
        let genesis = self.keyed("entries", &[Cell::Int(0), Cell::Int(0)])?;
        Ok((few_ledgers(self)?, genesis.into_iter().find(|cells| blob(&cells[14]).is_some())))
    }

    fn keyed(&self, table: &str, key: &[Cell]) -> Result<Vec<Vec<Cell>>, SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.keyed(table, key);
        }
        let names = &columns(table).0[..key.len()];
        self.select(table, names, &self.equal(table, names), "", key)
    }

    fn keyed_all(&self, table: &str, keys: &[Vec<Cell>]) -> Result<Vec<Vec<Cell>>, SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.keyed_all(table, keys);
        }
        let mut rows = Vec::with_capacity(keys.len());
        for keys in keys.chunks(LOOKED_UP) {
            self.look_up(table, keys, &mut rows)?;
        }
        Ok(rows)
    }

    fn span(&self, table: &str, chain: u64, range: Range<u64>) -> Result<Vec<Vec<Cell>>, SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.span(table, chain, range);
        }
        let (names, at) = (&columns(table).0[..2], columns(table).0[1]);
        let key = [chain, range.start, range.end].map(|n| Cell::Int(i64::try_from(n).unwrap_or(i64::MAX)));
        let condition = format!("chain = $1::bigint AND {at} >= $2::bigint AND {at} < $3::bigint");
        self.select(table, names, &condition, &format!("ORDER BY {at}"), &key)
    }

    fn last(&self, table: &str, chain: u64, to: u64) -> Result<Option<Vec<Cell>>, SourceError> {
        if let Some(copied) = self.copied.get() {
            return copied.tables.last(table, chain, to);
        }
        let (names, at) = (&columns(table).0[..2], columns(table).0[1]);
        let key = [chain, to].map(|n| Cell::Int(i64::try_from(n).unwrap_or(i64::MAX)));
        let condition = format!("chain = $1::bigint AND {at} <= $2::bigint");
        Ok(self.select(table, names, &condition, &format!("ORDER BY {at} DESC LIMIT 1"), &key)?.pop())
    }
}

impl Postgres {
    /// Once the snapshot was given up, the size that a chain had, if it is asked for tables that can be read below it.
    fn settled_size(&self, chain: u64, tables: &[&str]) -> Option<u64> {
        let at = usize::try_from(chain).ok().filter(|_| tables.iter().all(|table| GROWING.contains(table)))?;
        self.settled.borrow().as_ref()?.get(at).copied()
    }

    /// Whether the column that says which chain a row is of can say so.
    fn has_chains(&self, table: &str) -> bool {
        self.kind_of(table, "chain") == Some(Kind::Int)
    }

    fn of_chain(&self, table: &str, chain: u64) -> String {
        if self.has_chains(table) { format!("WHERE chain = {chain}") } else { "WHERE false".to_owned() }
    }
}

fn unled(table: &str, count: u64, read: u64) -> String {
    format!(
        "the rows that were read hold, but {SCHEMA}.{table} has {count} rows and its index leads to {read} of them, so that other queries may \
         give other rows; find out how that came, REINDEX the table and verify it again"
    )
}

/// Where the rows end that a chain of a size has.
fn bound(table: &str, size: u64) -> u64 {
    // A checkpoint is at the size that it is of.
    if table == "checkpoints" { size.saturating_add(1) } else { size }
}

/// Reads a table whole without an index, some blocks at a time in a transaction each: why it has other rows below the sizes than so
/// many, or rows that no head leads to.
fn count(client: &mut Client, table: &str, sizes: &[u64], read: u64) -> Result<Option<String>, postgres::Error> {
    let begin = format!(
        "{BEGIN_SHORT}; {SETTINGS}; SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off;
         SET LOCAL enable_seqscan = on; SET LOCAL enable_tidscan = on"
    );
    let at = columns(table).0[1];
    let sizes: Vec<String> = (0..).zip(sizes).map(|(chain, size): (u64, _)| format!("({chain}, {size})")).collect();
    let sizes = sizes.join(", ");
    // Chain, rows up to its size, and the last position.
    let mut found: Vec<(Option<i64>, i64, Option<i64>)> = Vec::new();
    // Rows of a table that is written anew meanwhile may be counted twice, or not.
    for _ in 0..3 {
        let parts = parts_of(client, table, &begin)?;
        found.clear();
        for Part { name, blocks, by_blocks, .. } in &parts {
            for from in (0..(*blocks).max(1)).step_by(BLOCKS as usize) {
                // Beyond its last block nothing is that was there before.
                let within = match by_blocks {
                    true => format!("WHERE ctid >= '({from},0)'::tid AND ctid < '({},0)'::tid", from + BLOCKS),
                    false => String::new(),
                };
                let query = format!(
                    "SELECT t.chain::bigint, count(*) FILTER (WHERE ({at} >= size) IS NOT TRUE), max({at})::bigint
                     FROM (SELECT chain, {at} FROM {name} {within}) t LEFT JOIN (VALUES {sizes}) head (chain, size) ON head.chain = t.chain
                     GROUP BY t.chain"
                );
                client.batch_execute(&begin)?;
                let rows = client.query(&query, &[])?;
                found.extend(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))));
                client.batch_execute("COMMIT")?;
            }
        }
        if parts_of(client, table, &begin)?.iter().map(|part| part.file).eq(parts.iter().map(|part| part.file)) {
            break;
        }
    }
    let count = found.iter().map(|(_, count, _)| u64::try_from(*count).unwrap_or_default()).sum();
    if count != read {
        return Ok(Some(unled(table, count, read)));
    }
    // Whatever was written before is below the heads as they are now.
    client.batch_execute(&begin)?;
    let heads = client.query(&format!("SELECT chain::bigint, size::bigint FROM {SCHEMA}.chain_heads"), &[])?;
    client.batch_execute("COMMIT")?;
    let heads: Vec<(i64, i64)> = heads.iter().map(|row| (row.get(0), row.get(1))).collect();
    let beyond = found.iter().any(|(chain, _, last)| {
        let size = heads.iter().find(|(of, _)| Some(*of) == *chain).map(|(_, size)| *size);
        last.zip(size).is_none_or(|(last, size)| last >= size)
    });
    Ok(beyond.then(|| {
        format!(
            "the rows that were read hold, but {SCHEMA}.{table} has rows beyond the heads to which its index does not lead; find out how that \
             came, REINDEX the table and verify it again"
        )
    }))
}

/// What a table's rows lie in.
struct Part {
    /// In a query.
    name: String,
    blocks: i64,
    /// Whether it can be read some blocks at a time.
    by_blocks: bool,
    /// Another one once the table was written anew.
    file: Option<u32>,
}

fn parts_of(client: &mut Client, table: &str, begin: &str) -> Result<Vec<Part>, postgres::Error> {
    client.batch_execute(begin)?;
    let rows = client.query(PARTS, &[&format!("{SCHEMA}.{table}")])?;
    client.batch_execute("COMMIT")?;
    if rows.iter().any(|row| !row.get::<_, bool>(2)) {
        // All in one statement, which sees one moment.
        return Ok(vec![Part { name: format!("{SCHEMA}.{table}"), blocks: 0, by_blocks: false, file: None }]);
    }
    let part = |row: &postgres::Row| Part {
        name: format!("ONLY {}", row.get::<_, &str>(0)),
        blocks: row.get(1),
        by_blocks: true,
        file: row.get(3),
    };
    Ok(rows.iter().map(part).collect())
}

impl Postgres {
    /// Whether the growing tables can be read by pages, nothing of them lies beyond the heads now, and the indexes of those whose rows go and
    /// come have all of their rows.
    fn can_settle(&self, sizes: &[u64]) -> Result<bool, postgres::Error> {
        if !self.has_pages(sizes)? {
            return Ok(false);
        }
        let client = &mut self.first.borrow_mut().client;
        let can = counted_alike(client)?;
        // It may be asked more in this transaction.
        client.batch_execute(
            "SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL enable_indexscan TO DEFAULT; SET LOCAL enable_indexonlyscan TO DEFAULT;
             SET LOCAL enable_bitmapscan TO DEFAULT",
        )?;
        Ok(can)
    }

    /// Whether the growing tables can be read by pages, and nothing of them lies beyond the heads now.
    fn has_pages(&self, sizes: &[u64]) -> Result<bool, postgres::Error> {
        let client = &mut self.first.borrow_mut().client;
        client.batch_execute("SET LOCAL enable_seqscan = off")?;
        let has = self.is_indexed(client, sizes)?;
        client.batch_execute("SET LOCAL enable_seqscan TO DEFAULT")?;
        Ok(has)
    }

    fn is_indexed(&self, client: &mut Client, sizes: &[u64]) -> Result<bool, postgres::Error> {
        for table in GROWING {
            let at = columns(table).0[1];
            let sound = ["chain", at]
                .iter()
                .all(|c| self.present.get(table).and_then(|t| t.get(*c)) == Some(&(Kind::Int, false)));
            if !sound {
                return Ok(false);
            }
            let indexed = client.query_one(INDEXED, &[&format!("{SCHEMA}.{table}"), &at])?;
            // Rows of documents and checkpoints are counted by their index, which must be the one that they are read by.
            let alone = indexed.get::<_, i64>(0) == 1 || !["private_documents", "checkpoints"].contains(&table);
            if !alone || !indexed.get::<_, bool>(1) {
                return Ok(false);
            }
            for (chain, size) in (0..).zip(sizes) {
                let chain: u64 = chain;
                let beyond = format!("chain = {chain} AND {at} >= {}", bound(table, *size));
                if client
                    .query_one(&format!("SELECT EXISTS (SELECT FROM {SCHEMA}.{table} WHERE {beyond})"), &[])?
                    .get(0)
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Reads rows below a size, and from a place on, if there is one.
    fn by_pages(
        &self,
        chain: u64,
        (from, size): (Option<u64>, u64),
        tables: &[&str],
        work: &mut Work<'_>,
    ) -> Result<(), SourceError> {
        std::thread::scope(|scope| {
            let (mut threads, mut cursors) = (Vec::new(), Vec::<Box<dyn Cursor + '_>>::new());
            for table in tables {
                let (names, key) = columns(table);
                let Some((select, order)) = self.ordered(table, &names[..key]) else {
                    cursors.push(Box::new(Vec::new().into_iter()));
                    continue;
                };
                let (lane, (sender, receiver)) = (self.lane()?, sync_channel(1));
                let table = GROWING.into_iter().find(|name| name == table).unwrap_or_default();
                // A checkpoint at the size itself comes with what is read from there on.
                let to = if *self.passing.borrow() { size } else { bound(table, size) };
                let begins = from.map_or_else(String::new, |from| format!("AND {} >= {from}", names[1]));
                let pages = Pages {
                    table,
                    columns: self.columns(table).unwrap_or_default(),
                    select,
                    filter: format!("WHERE chain = {chain} AND {} < {to} {begins}", names[1]),
                    order,
                    rows: self.page_rows,
                };
                threads.push(scope.spawn(move || {
                    let mut lane = lane;
                    let read = pages.read(&mut lane, &sender);
                    // Whoever does not listen any more has its reasons.
                    let _ = sender.send(read.map(|()| None));
                    lane
                }));
                cursors.push(Box::new(PageCursor {
                    source: self,
                    receiver,
                    page: Vec::new().into_iter(),
                    counted: Some((table, chain)).filter(|_| from.is_none()),
                    count: 0,
                    ended: false,
                }));
            }
            let worked = work(&mut cursors);
            drop(cursors);
            for thread in threads {
                let lane = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                self.idle.borrow_mut().extend(Some(lane).filter(|lane| !lane.is_busy));
            }
            worked
        })
    }
}

/// Whether indexes and tables have as many rows, where rows go and come, so that they can be counted in one moment alone.
fn counted_alike(client: &mut Client) -> Result<bool, postgres::Error> {
    for table in ["private_documents", "checkpoints"] {
        let mut counted = [0_i64; 2];
        for (at, (by, not)) in [("index", "seq"), ("seq", "index")].into_iter().enumerate() {
            client.batch_execute(&format!(
                "SET LOCAL enable_{by}scan = on; SET LOCAL enable_{not}scan = off; SET LOCAL enable_bitmapscan = off;
                 SET LOCAL enable_indexonlyscan = {}",
                if by == "index" { "on" } else { "off" }
            ))?;
            counted[at] = client.query_one(&format!("SELECT count(*) FROM {SCHEMA}.{table}"), &[])?.get(0);
        }
        if counted[0] != counted[1] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Why a page could not be read.
enum PageError {
    Database(postgres::Error),
    Copy(std::io::Error),
    /// The table cannot be read as such, and why.
    Table(String),
}

impl From<postgres::Error> for PageError {
    fn from(e: postgres::Error) -> Self {
        PageError::Database(e)
    }
}

/// Some rows; `None` after the last.
type Page = Result<Option<Vec<Vec<Cell>>>, PageError>;

/// The rows of a table on a chain below its head.
struct Pages {
    table: &'static str,
    columns: Vec<Column>,
    select: String,
    filter: String,
    order: String,
    /// At most in a page; more where so many are at one position.
    rows: usize,
}

impl Pages {
    /// Reads one page after the other, each in a transaction of its own that ends before the page is handed over, until nobody listens.
    fn read(&self, lane: &mut Lane, sender: &SyncSender<Page>) -> Result<(), PageError> {
        let (mut from, mut most) = (None, self.rows);
        loop {
            lane.is_busy = true;
            let (mut page, ended) = self.page(lane, from, most)?;
            lane.is_busy = false;
            if !ended {
                // The last position may have more rows than came.
                let position = |row: &Vec<Cell>| row.get(1).and_then(signed);
                let last = page.last().and_then(position);
                let whole = page.partition_point(|row| position(row) < last);
                if whole == 0 && most > POSITION_ROWS_MAX {
                    let why = format!("over {most} rows of {} are at one place; a ledger has four at most", self.table);
                    return Err(PageError::Table(why));
                }
                if whole == 0 {
                    most = most.saturating_mul(2);
                    continue;
                }
                page.truncate(whole);
                from = last;
            }
            most = self.rows;
            if sender.send(Ok(Some(page))).is_err() || ended {
                return Ok(());
            }
        }
    }

    /// Rows from a position on, and whether they are all that there are.
    fn page(&self, lane: &mut Lane, from: Option<i64>, most: usize) -> Result<(Vec<Vec<Cell>>, bool), PageError> {
        let Pages { table, select, filter, order, .. } = self;
        let client = &mut lane.client;
        client
            .batch_execute(&format!("{BEGIN_SHORT}; {SETTINGS}; LOCK TABLE {SCHEMA}.{table} IN ACCESS SHARE MODE"))?;
        // It is still what it was.
        plain(client, &[table])?.map_err(PageError::Table)?;
        let from = from.map_or_else(String::new, |from| format!("AND {} >= {from}", columns(table).0[1]));
        let query = format!("COPY ({select} {filter} {from} {order} LIMIT {most}) TO STDOUT (FORMAT binary)");
        let mut rows = Copied::new(client.copy_out(&query)?, self.columns.clone());
        let (mut page, mut bytes) = (Vec::new(), 0);
        let ended = loop {
            let Some(cells) = rows.next().map_err(PageError::Copy)? else { break page.len() < most };
            bytes += bytes_of(&cells);
            page.push(cells);
            if bytes > PAGE_BYTES && page.len() > 1 {
                // What else was asked for is passed over. One position is read whole.
                if most <= self.rows {
                    break false;
                }
                if bytes > PLACE_BYTES_MAX {
                    let why = format!("over {} MiB of rows of {table} are at one place", PLACE_BYTES_MAX >> 20);
                    return Err(PageError::Table(why));
                }
            }
        };
        drop(rows);
        client.batch_execute("COMMIT")?;
        Ok((page, ended))
    }
}

/// A number as it is stored.
fn signed(cell: &Cell) -> Option<i64> {
    if let Cell::Int(n) = cell { Some(*n) } else { None }
}

/// Rows that a thread reads by pages.
struct PageCursor<'a> {
    source: &'a Postgres,
    receiver: Receiver<Page>,
    page: std::vec::IntoIter<Vec<Cell>>,
    /// Table and chain, where all rows are read.
    counted: Option<(&'static str, u64)>,
    count: u64,
    ended: bool,
}

impl Cursor for PageCursor<'_> {
    fn next(&mut self) -> Result<Option<Vec<Cell>>, SourceError> {
        loop {
            if let Some(row) = Iterator::next(&mut self.page) {
                self.count += 1;
                return Ok(Some(row));
            }
            if self.ended {
                return Ok(None);
            }
            match self.receiver.recv() {
                Ok(Ok(Some(page))) => {
                    self.page = page.into_iter();
                    self.source.lapse()?;
                }
                Ok(Ok(None)) => {
                    self.ended = true;
                    if let Some(counted) = self.counted {
                        self.source.read.borrow_mut().insert(counted, self.count);
                    }
                }
                Ok(Err(PageError::Database(e))) => return Err(self.source.failed(&e)),
                Ok(Err(PageError::Copy(e))) => return Err(self.source.copy_failed(&e)),
                Ok(Err(PageError::Table(why))) => return Err(self.source.unreadable(why)),
                Err(_) => return Err(self.source.unreadable("database: a reader ended early; run again".to_owned())),
            }
        }
    }
}

/// One column of keys that are looked up at once.
enum Keys<'a> {
    Ints(Vec<i64>),
    Texts(Vec<&'a str>),
    Blobs(Vec<&'a [u8]>),
}

impl<'a> Keys<'a> {
    /// A column of rows; `None` if it is of several types.
    fn of(rows: &'a [Vec<Cell>], at: usize) -> Option<Keys<'a>> {
        let column = rows.iter().map(|row| row.get(at));
        match rows.first()?.get(at)? {
            Cell::Null => None,
            Cell::Int(_) => column.map(|c| signed(c?)).collect::<Option<_>>().map(Keys::Ints),
            Cell::Text(_) => column.map(|c| text(c?)).collect::<Option<_>>().map(Keys::Texts),
            Cell::Blob(_) => column.map(|c| blob(c?)).collect::<Option<_>>().map(Keys::Blobs),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Keys::Ints(_) => Kind::Int,
            Keys::Texts(_) => Kind::Text,
            Keys::Blobs(_) => Kind::Blob,
        }
    }

    fn sql(&self) -> &'static str {
        match self {
            Keys::Ints(_) => "bigint",
            Keys::Texts(_) => "text",
            Keys::Blobs(_) => "bytea",
        }
    }

    fn collation(&self) -> &'static str {
        if let Keys::Texts(_) = self { " COLLATE \"C\"" } else { "" }
    }

    fn parameter(&self) -> &(dyn ToSql + Sync) {
        match self {
            Keys::Ints(keys) => keys,
            Keys::Texts(keys) => keys,
            Keys::Blobs(keys) => keys,
        }
    }
}

fn parameter(cell: &Cell) -> &(dyn ToSql + Sync) {
    match cell {
        Cell::Null => &None::<i64>,
        Cell::Int(n) => n,
        Cell::Text(t) => t,
        Cell::Blob(b) => b,
    }
}

/// A connection for one table at a time.
struct Lane {
    client: Client,
    cancel: CancelToken,
    tls: MakeRustlsConnect,
    /// Rows are on their way.
    is_busy: bool,
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.is_busy {
            // Closing waits for the rows that are on their way. If the server does not hear this, they end all the same.
            let _ = self.cancel.cancel_query(self.tls.clone());
        }
    }
}

struct CopyCursor<'a> {
    source: &'a Postgres,
    rows: Copied<CopyOutReader<'a>>,
    is_busy: &'a mut bool,
    /// Table and chain, where all rows are read.
    counted: Option<(&'static str, u64)>,
    count: u64,
}

impl Cursor for CopyCursor<'_> {
    fn next(&mut self) -> Result<Option<Vec<Cell>>, SourceError> {
        let next = self.rows.next().map_err(|e| self.source.copy_failed(&e))?;
        *self.is_busy = next.is_some();
        self.count += u64::from(next.is_some());
        if let (None, Some(counted)) = (&next, self.counted) {
            self.source.read.borrow_mut().insert(counted, self.count);
        }
        Ok(next)
    }
}

fn snapshot_name(about: &postgres::Row) -> String {
    about.get::<_, &str>(0).chars().filter(|c| c.is_ascii_hexdigit() || *c == '-').collect()
}

/// Takes the snapshot, and looks at what there is in it. Within, `Err` says why it cannot be read as a ledger.
fn hold(client: &mut Client) -> Result<Result<(postgres::Row, Present), String>, postgres::Error> {
    let names: Vec<&str> = table_names().collect();
    client.batch_execute(&format!("BEGIN READ ONLY; {SETTINGS}"))?;
    // Before the snapshot, which would not see a table's rows go.
    let lock = match relations(client, &names)? {
        Ok(lock) => lock,
        Err(why) => return Ok(Err(why)),
    };
    client.batch_execute("COMMIT")?;
    client.batch_execute(&format!("{BEGIN}; {SETTINGS}; LOCK TABLE {} IN ACCESS SHARE MODE", lock.join(", ")))?;
    let about = client.query_one(
        "SELECT pg_export_snapshot(), current_setting('server_version'), current_database()::text, pg_is_in_recovery()",
        &[],
    )?;
    // What the locks hold is what is judged.
    if let Err(why) = relations(client, &names)? {
        return Ok(Err(why));
    }
    let mut present = Present::new();
    for row in client.query(ATTRIBUTES, &[&SCHEMA, &names])? {
        let (table, column, oid, said): (String, String, u32, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        if !columns(&table).0.contains(&column.as_str()) {
            continue;
        }
        let Some(kind) = Kind::of_type(oid) else {
            return Ok(Err(format!(
                "{SCHEMA}.{table}.{column} is of the type {said}, whose values nothing of the format can be: find out who changed the schema, \
                 and verify a backup"
            )));
        };
        present.entry(table).or_default().insert(column, (kind, !row.get::<_, bool>(4)));
    }
    Ok(Ok((about, present)))
}

/// The tables of a ledger that there are. Within, `Err` says why they cannot be read as such.
fn relations(client: &mut Client, names: &[&str]) -> Result<Result<Vec<String>, String>, postgres::Error> {
    let tables = match plain(client, names)? {
        Ok(tables) => tables,
        Err(why) => return Ok(Err(why)),
    };
    if tables.iter().any(|name| name.ends_with(".entries")) {
        return Ok(Ok(tables));
    }
    let legacy =
        "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'audit_events' AND relkind IN ('r', 'p', 'v', 'm', 'f'))";
    let why = if client.query_one(legacy, &[])?.get(0) {
        "there is no table ledger.entries here, but one of audit_events: give the URL with -d to verify legacy events"
    } else {
        "there is no table ledger.entries here: it is no ledger's database; check the database's name, the last part of the URL"
    };
    Ok(Err(why.to_owned()))
}

/// Those of these tables that there are, if all of them are plain tables that this role reads whole.
fn plain(client: &mut Client, names: &[&str]) -> Result<Result<Vec<String>, String>, postgres::Error> {
    let rows = client.query(RELATIONS, &[&SCHEMA, &names])?;
    let mut tables = Vec::new();
    for row in &rows {
        let name = format!("{SCHEMA}.{}", row.get::<_, &str>(0));
        let why = match [1, 2, 3].map(|at| row.get(at)) {
            [true, _, _] => {
                format!("this role may not read {name}: GRANT ledger_auditor to it, or take one that has it")
            }
            [_, true, _] => format!(
                "{name} is a view, a foreign table or computes a column, and may show other rows to whoever asks in another way; a ledger \
                 has a table there: find out who changed the schema, and verify a backup"
            ),
            [_, _, true] => format!(
                "{name} has row-level security, which decides what rows this role sees: find out who enabled it, and have it disabled or \
                 read as a role that has BYPASSRLS"
            ),
            _ => {
                tables.push(name);
                continue;
            }
        };
        return Ok(Err(why));
    }
    Ok(Ok(tables))
}

/// Whether the server ended the connection: it was closed, or is gone under what was being sent.
fn ended(e: &postgres::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let io = std::error::Error::source(e).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    e.is_closed()
        || io.is_some_and(|e| matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof))
}

const STANDBY_ADVICE: &str = "it could not hold the snapshot for as long as this took: run again, raise max_standby_streaming_delay there, or \
    verify the primary";

/// What failed, and what to do.
fn reason(e: &postgres::Error) -> String {
    let Some(said) = e.as_db_error() else { return explain(e) };
    let (text, code) = (said.message(), said.code());
    let advice = if *code == SqlState::T_R_SERIALIZATION_FAILURE {
        STANDBY_ADVICE
    } else if *code == SqlState::LOCK_NOT_AVAILABLE {
        "somebody is changing the ledger's schema: run again when that is done"
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        "the role needs SELECT on every table of the schema ledger: GRANT ledger_auditor to it"
    } else if [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(code) {
        "the server stopped: run again when it is back"
    } else if [SqlState::UNDEFINED_FUNCTION, SqlState::DATATYPE_MISMATCH].contains(code) {
        "a column is of another type than in a ledger: find out who changed the schema, and verify a backup"
    } else if [SqlState::UNDEFINED_OBJECT, SqlState::INVALID_PARAMETER_VALUE].contains(code) {
        "the snapshot of the first connection is not known to another: name one server in the URL, without a pooler before it"
    } else {
        return explain(e);
    };
    format!("database: {text} ({}); {advice}", code.code())
}
