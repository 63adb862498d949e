//! Where rows come from: a SQLite file, a PostgreSQL database or a dump. Rows are handed over as they are, however damaged.

#[cfg(feature = "postgres")]
mod copy;
#[cfg(feature = "postgres")]
mod postgres;
mod replica;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ledger_engine::commit::COMMIT_BYTES_MAX;
use ledger_engine::domain::projection::{Cell, TABLES};
use ledger_engine::hash::{Hash, from_hex};
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};

#[cfg(feature = "postgres")]
pub use self::postgres::Postgres;
pub(crate) use self::replica::{Replica, Replicated};
use crate::export::Export;
use crate::row::{blob, number};

/// A source cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It is not there or not readable.
    #[error("{path}: {reason}")]
    Unreadable {
        /// Which file, or the URL of which database.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Whoever watches asked for it.
    #[error("stopped when asked to")]
    Stopped,
}

/// Columns of the tables that are not projections, in the order of FORMAT.md 8.
const COLUMNS: [(&str, &[&str]); 11] = [
    ("ledger", &["ledger_id"]),
    (
        "entries",
        &[
            "chain",
            "idx",
            "prev_hash",
            "stream",
            "revision",
            "parent_hash",
            "event_id",
            "event_type",
            "schema_version",
            "recorded_at_us",
            "body_hash",
            "body_sha256",
            "entry_hash",
            "parent_index",
            "body",
        ],
    ),
    ("private_documents", &["chain", "idx", "document"]),
    ("commits", &["chain", "first_index", "size", "registry_size", "registry_head"]),
    ("commit_signatures", &["chain", "first_index", "kid", "alg", "signature"]),
    ("checkpoints", &["chain", "size", "root", "note"]),
    ("chain_heads", &["chain", "size", "head_hash", "compact_range"]),
    ("stream_heads", &["chain", "stream", "revision", "head_hash", "head_index", "first_index"]),
    ("tiles", &["chain", "level", "n", "hashes"]),
    ("event_id_runs", &["chain", "run", "ids"]),
    ("cursors", &["projection", "chain", "size"]),
];

/// Columns of a table, and how many of them are its key.
pub(crate) fn columns(table: &str) -> (&'static [&'static str], usize) {
    let found = COLUMNS.iter().find(|(name, _)| *name == table).map(|(_, columns)| *columns);
    let columns = found.or_else(|| TABLES.iter().find(|t| t.name == table).map(|t| t.columns)).unwrap_or_default();
    let key = match table {
        "ledger" | "chain_heads" => 1,
        "tiles" | "commit_signatures" => 3,
        _ => 2,
    };
    (columns, key)
}

/// All tables of the format.
pub(crate) fn table_names() -> impl Iterator<Item = &'static str> {
    COLUMNS.iter().map(|(name, _)| *name).chain(TABLES.iter().map(|t| t.name))
}

/// Rows of one table on one chain, in key order, pulled one by one.
pub trait Cursor {
    /// The next row.
    fn next(&mut self) -> Result<Option<Vec<Cell>>, SourceError>;
}

/// Rows of the table `ledger`, and the row of the entry (0, 0) if it is there with a body.
pub(crate) type LedgerAndGenesis = (Vec<Vec<Cell>>, Option<Vec<Cell>>);

/// Takes one cursor for each table that was asked for.
pub(crate) type Work<'a> = dyn FnMut(&mut [Box<dyn Cursor + '_>]) -> Result<(), SourceError> + 'a;

/// Gives the rows of a table on a chain in pieces, and tells how many were read, until `told` says to stop.
pub(crate) fn watched(
    tables: &dyn Tables,
    table: &str,
    chain: u64,
    told: &dyn Fn(u64) -> bool,
    each: &mut dyn FnMut(Vec<Vec<Cell>>),
) -> Result<(), SourceError> {
    tables.side_by_side(chain, &[table], &mut |cursors| {
        let [rows] = cursors else { return Ok(()) };
        let mut read = 0;
        loop {
            let (mut piece, mut bytes) = (Vec::with_capacity(PIECE), 0);
            while piece.len() < PIECE && bytes < PIECE_BYTES {
                let Some(row) = rows.next()? else { break };
                bytes += bytes_of(&row);
                piece.push(row);
            }
            if piece.is_empty() {
                return Ok(());
            }
            read += piece.len() as u64;
            each(piece);
            if !told(read) {
                return Err(SourceError::Stopped);
            }
        }
    })
}

/// Rows of a ledger. A missing table is empty; a missing column is null.
pub trait Tables {
    /// The chain numbers that occur in a table, and `None` if a row has no usable one.
    fn chains(&self, table: &str) -> Result<BTreeSet<Option<u64>>, SourceError>;
    /// The rows of a table on a chain (`None`: those without a usable number), ordered by key, in pieces.
    fn rows(&self, table: &str, chain: Option<u64>, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError>;

    /// Opens tables of one chain side by side and hands them to `work`.
    fn side_by_side(&self, chain: u64, tables: &[&str], work: &mut Work<'_>) -> Result<(), SourceError>;
    /// The rows of a table on all chains in any order, in pieces.
    fn scan(&self, table: &str, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError>;

    /// From here on only rows below these sizes, one for each chain, of tables to which rows are only added are asked for, side by side: what was
    /// seen of other tables stays seen. A source that others write need not hold one moment any longer.
    ///
    /// Where rows are copied for that, `told` hears how many were, and may stop it.
    fn settle(&self, _sizes: &[u64], _told: &dyn Fn(u64) -> bool) -> Result<(), SourceError> {
        Ok(())
    }

    /// From here on, until [`Tables::hold_again`], rows below these sizes are read side by side from some place on, and single rows are looked up, as
    /// they are then. `new`: how many of the rows of entries will be. `false`: the source holds one moment all the same.
    fn let_go(&self, _sizes: &[u64], _new: u64) -> Result<bool, SourceError> {
        Ok(false)
    }

    /// From here on everything is as it is at one moment, this one.
    fn hold_again(&self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Everything is asked for again, as it is at one moment.
    fn begin_again(&self, _told: &dyn Fn(u64) -> bool) -> Result<(), SourceError> {
        Ok(())
    }

    /// What kind of source it is and what it says of itself, for the report.
    fn kind(&self) -> String;

    /// The export that this is. An export has no tables that follow from the entries, and a way of its own to be read fast.
    fn export(&self) -> Option<&Export> {
        None
    }

    /// The rows of the table `ledger`, and the entry (0, 0) with a body, if it is there.
    fn ledger_and_genesis(&self) -> Result<LedgerAndGenesis, SourceError> {
        let ledger = few_ledgers(self)?;
        let mut genesis = None;
        self.side_by_side(0, &["entries"], &mut |cursors| {
            // Rows come by index: those below 0 and those that are no number are first.
            while let Some(cells) = cursors.first_mut().map(|c| c.next()).transpose()?.flatten() {
                match number(&cells[1]) {
                    Some(0) if blob(&cells[14]).is_some() => genesis = Some(cells),
                    Some(n) if n > 0 => {}
                    _ => continue,
                }
                break;
            }
            Ok(())
        })?;
        Ok((ledger, genesis))
    }

    /// Why what was read cannot be relied on; asked after reading.
    fn doubt(&self) -> Option<SourceError> {
        None
    }

    /// Why rows could be other than those that were read, for somebody who asks in another way; asked where no fault was found.
    fn flaw(&self) -> Option<SourceError> {
        None
    }

    /// The rows whose first columns are `key`, the chain among them, in any order. A source that cannot look them up reads the chain.
    fn keyed(&self, table: &str, key: &[Cell]) -> Result<Vec<Vec<Cell>>, SourceError> {
        let at = columns(table).0.iter().position(|c| *c == "chain");
        let mut rows = self.all(table, at.and_then(|at| key.get(at)).and_then(number))?;
        rows.retain(|row| row.starts_with(key));
        Ok(rows)
    }

    /// The rows of each of some keys, in any order. The keys differ.
    fn keyed_all(&self, table: &str, keys: &[Vec<Cell>]) -> Result<Vec<Vec<Cell>>, SourceError> {
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            rows.extend(self.keyed(table, key)?);
        }
        Ok(rows)
    }

    /// Whether each of these rows of a table is there, and no other row with its key. The keys differ.
    fn has_exactly(&self, table: &str, rows: &[Vec<Cell>]) -> Result<bool, SourceError> {
        let (_, key) = columns(table);
        let keys: Vec<Vec<Cell>> = rows.iter().map(|row| row[..key].to_vec()).collect();
        let found = self.keyed_all(table, &keys)?;
        let (expected, given): (HashSet<_>, HashSet<_>) = (rows.iter().collect(), found.iter().collect());
        Ok(found.len() == rows.len() && expected == given)
    }

    /// The rows of a chain whose second column is a number of the range, ordered by key.
    fn span(&self, table: &str, chain: u64, range: Range<u64>) -> Result<Vec<Vec<Cell>>, SourceError> {
        let mut rows = self.all(table, Some(chain))?;
        rows.retain(|row| row.get(1).and_then(number).is_some_and(|n| range.contains(&n)));
        Ok(rows)
    }

    /// The row of a chain with the largest number in its second column that is at most `to`.
    fn last(&self, table: &str, chain: u64, to: u64) -> Result<Option<Vec<Cell>>, SourceError> {
        Ok(self.span(table, chain, 0..to.saturating_add(1))?.pop())
    }

    /// Like [`Tables::side_by_side`], from a number in the second column on.
    fn side_by_side_from(
        &self,
        chain: u64,
        from: u64,
        tables: &[&str],
        work: &mut Work<'_>,
    ) -> Result<(), SourceError> {
        let mut cursors: Vec<Box<dyn Cursor>> = Vec::new();
        for table in tables {
            let mut rows = self.all(table, Some(chain))?;
            rows.retain(|row| row.get(1).and_then(number).is_none_or(|n| n >= from));
            cursors.push(Box::new(rows.into_iter()));
        }
        work(&mut cursors)
    }

    /// All rows at once.
    fn all(&self, table: &str, chain: Option<u64>) -> Result<Vec<Vec<Cell>>, SourceError> {
        let mut all = Vec::new();
        self.rows(table, chain, &mut |rows| all.extend(rows))?;
        Ok(all)
    }
}

/// The sizes that the head rows claim, one for each chain from 0 on; `None` where they are other rows than that.
pub(crate) fn sizes(tables: &dyn Tables) -> Result<Option<Vec<u64>>, SourceError> {
    let mut rows = Vec::new();
    tables.scan("chain_heads", &mut |piece| {
        rows.extend(piece.iter().map(|cells| Some((number(cells.first()?)?, number(cells.get(1)?)?))));
    })?;
    let Some(mut rows) = rows.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
    rows.sort_unstable();
    let all = rows.iter().map(|(chain, _)| *chain).eq(0..rows.len() as u64);
    Ok(all.then(|| rows.into_iter().map(|(_, size)| size).collect()))
}

/// Rows of the table `ledger` that are looked at; a ledger has one.
pub(crate) const LEDGER_ROWS: usize = 4;

/// The first rows of the table `ledger`.
fn few_ledgers(tables: &(impl Tables + ?Sized)) -> Result<Vec<Vec<Cell>>, SourceError> {
    let mut few = Vec::new();
    tables.rows("ledger", None, &mut |rows| few.extend(rows.into_iter().take(LEDGER_ROWS - few.len())))?;
    Ok(few)
}

/// Rows read at a time.
const PIECE: usize = 4096;
/// Or so many bytes, and a row more.
const PIECE_BYTES: usize = 2 << 20;
/// Longest text or blob of a row that is looked at: what is cut off there is too long for a whole commit still, and no text of the format is so long.
const CELL_BYTES_MAX: usize = COMMIT_BYTES_MAX + 1;
/// Longest value that SQLite is to read: a file that has a longer one is not read further.
const VALUE_BYTES_MAX: i32 = 32 << 20;
/// Largest dump, and most rows of one: they are for tests and for showing single faults.
const DUMP_BYTES_MAX: u64 = 4 << 20;
const DUMP_ROWS_MAX: usize = 1 << 16;

/// A ledger's SQLite file, read in one transaction: writers may go on.
pub struct Sqlite {
    path: PathBuf,
    /// It was named by the directory in which it is.
    of_directory: bool,
    conn: Connection,
    present: BTreeMap<String, BTreeSet<String>>,
    /// Opened as a file that nobody writes; its length and time then.
    unwritten: Option<(u64, std::time::SystemTime)>,
}

impl Sqlite {
    /// Opens a ledger's directory or a backup file, read-only.
    pub fn open(path: &Path) -> Result<Sqlite, SourceError> {
        let file = if path.is_dir() { path.join("ledger.db") } else { path.to_owned() };
        let unreadable = |reason: String| SourceError::Unreadable { path: file.clone(), reason };
        if !file.is_file() {
            return Err(unreadable(
                "there is no ledger here; name a ledger's directory, a backup (.db) or a dump (.json)".into(),
            ));
        }
        // SQLite keeps what is not in the file yet beside the file itself, wherever links to it are.
        let file = file.canonicalize().map_err(|e| unreadable(e.to_string()))?;
        let unreadable = |reason: String| SourceError::Unreadable { path: file.clone(), reason };
        let (wal_bytes, journal_bytes) = (beside(&file, "-wal"), beside(&file, "-journal"));
        // Without a WAL or a journal nobody writes, and a file on read-only media can be opened only so. One that holds nothing is left
        // by a copy, or by a writer that has not begun; `doubt` sees whether it did.
        let unwritten = if wal_bytes > 0 || journal_bytes > 0 { None } else { stamp(&file) };
        let immutable = if unwritten.is_none() { "" } else { "&immutable=1" };
        let name: String = file
            .display()
            .to_string()
            .chars()
            .flat_map(|c| match c {
                '?' | '#' | '%' => format!("%{:02x}", c as u32).chars().collect::<Vec<_>>(),
                c => vec![c],
            })
            .collect();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(format!("file:{name}?mode=ro{immutable}"), flags)
            .map_err(|e| unreadable(e.to_string()))?;
        let mut present: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let read = || -> rusqlite::Result<()> {
            conn.busy_timeout(std::time::Duration::from_secs(30))?;
            // The database is not ours: nothing in its schema is to run more than it must.
            conn.pragma_update(None, "trusted_schema", "OFF")?;
            conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)?;
            conn.execute_batch("BEGIN")?;
            for table in table_names() {
                let mut s = conn.prepare("SELECT name FROM pragma_table_info(?1)")?;
                let names =
                    s.query_map([table], |r| r.get::<_, String>(0))?.collect::<rusqlite::Result<BTreeSet<_>>>()?;
                present.insert(table.to_owned(), names);
            }
            Ok(())
        };
        let mut read = read;
        read().map_err(|e| {
            let unopened = matches!(e.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly));
            unreadable(if unopened && wal_bytes > 0 {
                format!(
                    "{e}; commits that are not in the file yet lie in the -wal beside it, and reading them needs a -shm, which cannot \
                     be made here: copy the database and its -wal to a directory that you may write, and verify the copy"
                )
            } else if journal_bytes > 0 {
                format!(
                    "{e}; a change that was begun and not ended lies in the -journal beside it, which whoever opens the database undoes: let its \
                     owner open it, and verify it then"
                )
            } else {
                format!("{e}; is it a ledger's database? restore it from a backup if it is damaged")
            })
        })?;
        if present.get("entries").is_none_or(BTreeSet::is_empty) {
            return Err(unreadable("the database has no table of entries: it is no ledger".into()));
        }
        for table in table_names() {
            let kind = conn.query_row(
                // A virtual table has no pages, whatever its text says.
                "SELECT type, coalesce(rootpage, 0) <= 0 FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE",
                [table],
                |r| Ok((r.get::<_, String>(0)?, r.get::<_, bool>(1)?)),
            );
            match kind.optional().map_err(|e| unreadable(e.to_string()))? {
                None => {}
                Some((kind, false)) if kind == "table" => {}
                Some(_) => {
                    return Err(unreadable(format!(
                        "{table} is a view or a virtual table, which may show other rows to whoever asks in another way; a ledger has a table \
                         there: find out who changed the schema, and verify a backup"
                    )));
                }
            }
        }
        Ok(Sqlite { path: file, of_directory: path.is_dir(), conn, present, unwritten })
    }

    fn fail(&self, e: &rusqlite::Error) -> SourceError {
        SourceError::Unreadable {
            path: self.path.clone(),
            reason: format!("{e}; the file is damaged or busy, restore it or try again"),
        }
    }

    /// `None` for a table that is not there.
    fn query(&self, table: &str, filter: &str, ordered: bool) -> Option<String> {
        let (columns, key) = columns(table);
        if self.present.get(table).is_none_or(BTreeSet::is_empty) {
            return None;
        }
        let list: Vec<&str> = columns.iter().map(|c| if self.has(table, c) { *c } else { "NULL" }).collect();
        let order: Vec<&str> = list[..key].iter().copied().filter(|c| ordered && *c != "NULL").collect();
        let order = if order.is_empty() { String::new() } else { format!("ORDER BY {}", order.join(", ")) };
        Some(format!("SELECT {} FROM {table} {filter} {order}", list.join(", ")))
    }

    fn read_pieces(
        &self,
        table: &str,
        query: Option<String>,
        each: &mut dyn FnMut(Vec<Vec<Cell>>),
    ) -> Result<(), SourceError> {
        let Some(query) = query else { return Ok(()) };
        let mut read = || -> rusqlite::Result<()> {
            let mut s = self.conn.prepare(&query)?;
            let mut rows = s.query([])?;
            let (mut piece, mut bytes) = (Vec::with_capacity(PIECE), 0);
            while let Some(row) = rows.next()? {
                let row = cells(columns(table).0, row)?;
                bytes += bytes_of(&row);
                piece.push(row);
                if piece.len() == PIECE || bytes >= PIECE_BYTES {
                    each(std::mem::replace(&mut piece, Vec::with_capacity(PIECE)));
                    bytes = 0;
                }
            }
            each(piece);
            Ok(())
        };
        read().map_err(|e| self.fail(&e))
    }

    fn has(&self, table: &str, column: &str) -> bool {
        self.present.get(table).is_some_and(|c| c.contains(column))
    }
}

/// Bytes of what SQLite keeps beside a database.
fn beside(file: &Path, what: &str) -> u64 {
    let mut name = file.as_os_str().to_owned();
    name.push(what);
    Path::new(&name).metadata().map_or(0, |m| m.len())
}

/// Length and time of last change.
fn stamp(file: &Path) -> Option<(u64, std::time::SystemTime)> {
    let meta = file.metadata().ok()?;
    Some((meta.len(), meta.modified().ok()?))
}

impl Tables for Sqlite {
    fn kind(&self) -> String {
        let what = if self.of_directory {
            "the database of an embedded ledger"
        } else {
            "a database file of an embedded ledger"
        };
        format!("{what} (SQLite)")
    }

    fn doubt(&self) -> Option<SourceError> {
        let now =
            || stamp(&self.path).filter(|_| beside(&self.path, "-wal") == 0 && beside(&self.path, "-journal") == 0);
        let changed = self.unwritten.is_some_and(|was| now() != Some(was));
        changed.then(|| SourceError::Unreadable {
            path: self.path.clone(),
            reason: "somebody began to write the ledger while it was read without a lock; run again".into(),
        })
    }

    /// A table and its index are two copies of each key, and a query takes the one it likes: a damaged or doctored file can show
    /// good rows to the verifier and others to whoever asks by another way.
    fn flaw(&self) -> Option<SourceError> {
        let found = self.conn.query_row("PRAGMA integrity_check(1)", [], |r| r.get::<_, String>(0));
        let why = match found {
            Ok(said) if said == "ok" => return None,
            Ok(said) => said.lines().collect::<Vec<_>>().join(" "),
            Err(e) => e.to_string(),
        };
        Some(SourceError::Unreadable {
            path: self.path.clone(),
            reason: format!(
                "the rows that were read hold, but the database file is damaged, so that other queries may give other rows ({why}); \
                 restore it from a backup and verify that"
            ),
        })
    }

    fn chains(&self, table: &str) -> Result<BTreeSet<Option<u64>>, SourceError> {
        if !self.has(table, "chain") {
            return Ok(BTreeSet::new());
        }
        let read = || -> rusqlite::Result<BTreeSet<Option<u64>>> {
            let mut s = self.conn.prepare(&format!("SELECT DISTINCT chain FROM {table}"))?;
            let found = s.query_map([], |r| {
                let cell = r.get_ref(0)?;
                Ok(cell.as_i64().ok().and_then(|n| u64::try_from(n).ok()))
            })?;
            found.collect()
        };
        read().map_err(|e| self.fail(&e))
    }

    fn rows(&self, table: &str, chain: Option<u64>, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        let filter = match chain {
            _ if !columns(table).0.contains(&"chain") => String::new(),
            Some(n) => format!("WHERE chain = {n} AND typeof(chain) = 'integer'"),
            None => "WHERE typeof(chain) != 'integer' OR chain < 0".to_owned(),
        };
        self.read_pieces(table, self.query(table, &filter, true), each)
    }

    fn side_by_side(&self, chain: u64, tables: &[&str], work: &mut Work<'_>) -> Result<(), SourceError> {
        self.cursors(tables, |_| format!("WHERE chain = {chain} AND typeof(chain) = 'integer'"), work)
    }

    fn side_by_side_from(
        &self,
        chain: u64,
        from: u64,
        tables: &[&str],
        work: &mut Work<'_>,
    ) -> Result<(), SourceError> {
        // What is no number is larger than any in SQLite's order, so it is handed over too.
        self.cursors(tables, |table| format!("WHERE chain = {chain} AND {} >= {from}", columns(table).0[1]), work)
    }

    fn keyed(&self, table: &str, key: &[Cell]) -> Result<Vec<Vec<Cell>>, SourceError> {
        let names = columns(table).0.iter().zip(1..=key.len());
        let terms: Vec<String> = names.map(|(name, n)| format!("{name} = ?{n}")).collect();
        self.select(table, &format!("WHERE {}", terms.join(" AND ")), "", key)
    }

    fn span(&self, table: &str, chain: u64, range: Range<u64>) -> Result<Vec<Vec<Cell>>, SourceError> {
        let at = columns(table).0[1];
        let key = [chain, range.start, range.end].map(|n| Cell::Int(i64::try_from(n).unwrap_or(i64::MAX)));
        self.select(table, &format!("WHERE chain = ?1 AND {at} >= ?2 AND {at} < ?3"), "", &key)
    }

    fn last(&self, table: &str, chain: u64, to: u64) -> Result<Option<Vec<Cell>>, SourceError> {
        let at = columns(table).0[1];
        let key = [chain, to].map(|n| Cell::Int(i64::try_from(n).unwrap_or(i64::MAX)));
        Ok(self.select(table, &format!("WHERE chain = ?1 AND {at} <= ?2"), "DESC LIMIT 1", &key)?.pop())
    }

    fn scan(&self, table: &str, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        self.read_pieces(table, self.query(table, "", false), each)
    }
}

impl Sqlite {
    /// Few rows, by conditions on the first columns; the last of these columns orders them.
    fn select(&self, table: &str, filter: &str, order: &str, key: &[Cell]) -> Result<Vec<Vec<Cell>>, SourceError> {
        let (names, _) = columns(table);
        let Some(query) = self.query(table, filter, false) else { return Ok(Vec::new()) };
        if names.iter().take(key.len().min(2)).any(|name| !self.has(table, name)) {
            return Ok(Vec::new());
        }
        let read = || -> rusqlite::Result<Vec<Vec<Cell>>> {
            let mut s = self.conn.prepare_cached(&format!("{query} ORDER BY {} {order}", names[1]))?;
            let mut rows = s.query(rusqlite::params_from_iter(key.iter().map(value)))?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(cells(names, row)?);
            }
            Ok(found)
        };
        read().map_err(|e| self.fail(&e))
    }

    /// The row that `stream_heads` should have of a stream, from its last entry and its first. Reads all entries of the chain.
    pub(crate) fn stream_head(&self, chain: &Cell, stream: &Cell) -> Result<Vec<Vec<Cell>>, SourceError> {
        let read = || {
            // With one aggregate the other columns are of its row.
            let query = "SELECT revision, entry_hash, max(idx),
                (SELECT min(idx) FROM entries WHERE chain = ?1 AND stream = ?2)
                FROM entries WHERE chain = ?1 AND stream = ?2";
            let mut s = self.conn.prepare_cached(query)?;
            s.query_row([value(chain), value(stream)], |row| {
                let read = |at: usize, column: &str| row.get_ref(at).map(|v| cell(column, v));
                let last = read(2, "head_index")?;
                let row = vec![
                    chain.clone(),
                    stream.clone(),
                    read(0, "revision")?,
                    read(1, "head_hash")?,
                    last.clone(),
                    read(3, "first_index")?,
                ];
                Ok(if last == Cell::Null { Vec::new() } else { vec![row] })
            })
        };
        read().map_err(|e| self.fail(&e))
    }

    fn cursors(
        &self,
        tables: &[&str],
        filter: impl Fn(&str) -> String,
        work: &mut Work<'_>,
    ) -> Result<(), SourceError> {
        let prepare = |table: &&str| self.query(table, &filter(table), true).map(|q| self.conn.prepare(&q)).transpose();
        let mut statements =
            tables.iter().map(prepare).collect::<rusqlite::Result<Vec<_>>>().map_err(|e| self.fail(&e))?;
        let mut cursors: Vec<Box<dyn Cursor + '_>> = Vec::new();
        for (statement, table) in statements.iter_mut().zip(tables) {
            let rows = statement.as_mut().map(|s| s.query([])).transpose().map_err(|e| self.fail(&e))?;
            cursors.push(Box::new(SqliteCursor { source: self, rows, columns: columns(table).0 }));
        }
        work(&mut cursors)
    }
}

/// A cell as SQLite takes it.
pub(crate) fn value(cell: &Cell) -> rusqlite::types::Value {
    match cell {
        Cell::Null => rusqlite::types::Value::Null,
        Cell::Int(n) => rusqlite::types::Value::Integer(*n),
        Cell::Text(t) => rusqlite::types::Value::Text(t.clone()),
        Cell::Blob(b) => rusqlite::types::Value::Blob(b.clone()),
    }
}

struct SqliteCursor<'a> {
    source: &'a Sqlite,
    rows: Option<rusqlite::Rows<'a>>,
    columns: &'static [&'static str],
}

impl Cursor for SqliteCursor<'_> {
    fn next(&mut self) -> Result<Option<Vec<Cell>>, SourceError> {
        let Some(rows) = &mut self.rows else { return Ok(None) };
        let mut read = || rows.next()?.map(|row| cells(self.columns, row)).transpose();
        read().map_err(|e| self.source.fail(&e))
    }
}

fn cells(columns: &[&str], row: &rusqlite::Row<'_>) -> rusqlite::Result<Vec<Cell>> {
    columns.iter().enumerate().map(|(i, column)| row.get_ref(i).map(|value| cell(column, value))).collect()
}

/// How much the cells of a row take, about.
pub(crate) fn bytes_of(row: &[Cell]) -> usize {
    let cell = |cell: &Cell| match cell {
        Cell::Null | Cell::Int(_) => 8,
        Cell::Text(text) => 24 + text.len(),
        Cell::Blob(bytes) => 24 + bytes.len(),
    };
    row.iter().map(cell).sum()
}

/// Stands for a value of no type of the format, such as a real or invalid text: of a type that the column does not have.
fn misfit(column: &str) -> Cell {
    if BLOBS.contains(&column) { Cell::Text(String::new()) } else { Cell::Blob(Vec::new()) }
}

/// A value of SQLite's, as what the format has in this column.
pub(crate) fn cell(column: &str, value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(n) => Cell::Int(n),
        ValueRef::Real(_) => misfit(column),
        ValueRef::Text(text) if text.len() > CELL_BYTES_MAX => misfit(column),
        ValueRef::Text(t) => String::from_utf8(t.to_vec()).map_or_else(|_| misfit(column), Cell::Text),
        ValueRef::Blob(b) => Cell::Blob(b[..b.len().min(CELL_BYTES_MAX)].to_vec()),
    }
}

/// A dump (FORMAT.md 8).
pub struct Dump {
    tables: BTreeMap<String, Vec<Vec<Cell>>>,
    /// The ledger id by which the dump is to be judged in tests. It is the dump's own word: no verdict rests on it.
    pub trust: Option<Hash>,
    /// Exit status and sorted codes that a verifier must give.
    pub expect: Option<(u8, Vec<String>)>,
}

const BLOBS: [&str; 18] = [
    "ledger_id",
    "prev_hash",
    "parent_hash",
    "body_hash",
    "body_sha256",
    "entry_hash",
    "registry_head",
    "root",
    "head_hash",
    "event_id",
    "body",
    "document",
    "signature",
    "compact_range",
    "hashes",
    "ids",
    "key",
    "_",
];

impl Dump {
    /// Reads a dump file.
    pub fn read(path: &Path) -> Result<Dump, SourceError> {
        let unreadable = |reason: String| SourceError::Unreadable { path: path.to_owned(), reason };
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|f| f.take(DUMP_BYTES_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|e| unreadable(e.to_string()))?;
        if bytes.len() as u64 > DUMP_BYTES_MAX {
            let most = DUMP_BYTES_MAX >> 20;
            return Err(unreadable(format!("a dump of more than {most} MiB; verify the ledger or an export instead")));
        }
        Dump::parse(&bytes).map_err(unreadable)
    }

    /// Reads a dump's bytes. `Err` says why they are none.
    pub fn parse(bytes: &[u8]) -> Result<Dump, String> {
        let json: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
        if json["format"] != "ledger-dump/1" {
            return Err("not a dump: member format is not \"ledger-dump/1\"".into());
        }
        let mut tables = BTreeMap::new();
        let mut all = 0;
        for name in table_names() {
            let (columns, _) = columns(name);
            let rows = json["tables"][name].as_array().map(Vec::as_slice).unwrap_or_default();
            all += rows.len();
            if all > DUMP_ROWS_MAX {
                return Err(format!("a dump of over {DUMP_ROWS_MAX} rows; verify the ledger or an export instead"));
            }
            if rows.iter().any(|row| !row.is_object()) {
                return Err(format!("not a dump: a row of {name} is no object"));
            }
            let rows = rows.iter().map(|row| columns.iter().map(|c| json_cell(c, &row[*c])).collect()).collect();
            tables.insert(name.to_owned(), rows);
        }
        let codes = json["expect"]["findings"]
            .as_array()
            .map(|a| a.iter().filter_map(|c| c.as_str().map(str::to_owned)).collect());
        let exit = json["expect"]["exit"].as_u64().and_then(|n| u8::try_from(n).ok());
        Ok(Dump { tables, trust: json["trust"].as_str().and_then(Hash::from_hex), expect: exit.zip(codes) })
    }
}

fn json_cell(column: &str, value: &serde_json::Value) -> Cell {
    match value {
        serde_json::Value::Null => Cell::Null,
        serde_json::Value::Number(n) => n.as_i64().map_or_else(|| misfit(column), Cell::Int),
        serde_json::Value::String(s) if BLOBS.contains(&column) => {
            from_hex(s).map_or(Cell::Text(s.clone()), Cell::Blob)
        }
        serde_json::Value::String(s) => Cell::Text(s.clone()),
        _ => misfit(column),
    }
}

fn chain_of(table: &str, row: &[Cell]) -> Option<u64> {
    let (columns, _) = columns(table);
    columns.iter().position(|c| *c == "chain").and_then(|at| number(&row[at]))
}

impl Tables for Dump {
    fn kind(&self) -> String {
        "a dump of a ledger's tables (JSON)".to_owned()
    }

    fn chains(&self, table: &str) -> Result<BTreeSet<Option<u64>>, SourceError> {
        let (columns, _) = columns(table);
        let rows = self.tables.get(table).filter(|_| columns.contains(&"chain")).map(Vec::as_slice).unwrap_or_default();
        Ok(rows.iter().map(|row| chain_of(table, row)).collect())
    }

    fn rows(&self, table: &str, chain: Option<u64>, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        for piece in self.sorted(table, chain).chunks(PIECE) {
            each(piece.to_vec());
        }
        Ok(())
    }

    fn side_by_side(&self, chain: u64, tables: &[&str], work: &mut Work<'_>) -> Result<(), SourceError> {
        let cursor = |table: &&str| Box::new(self.sorted(table, Some(chain)).into_iter()) as Box<dyn Cursor>;
        work(&mut tables.iter().map(cursor).collect::<Vec<_>>())
    }

    fn scan(&self, table: &str, each: &mut dyn FnMut(Vec<Vec<Cell>>)) -> Result<(), SourceError> {
        each(self.tables.get(table).cloned().unwrap_or_default());
        Ok(())
    }
}

impl Cursor for std::vec::IntoIter<Vec<Cell>> {
    fn next(&mut self) -> Result<Option<Vec<Cell>>, SourceError> {
        Ok(Iterator::next(self))
    }
}

impl Dump {
    fn sorted(&self, table: &str, chain: Option<u64>) -> Vec<Vec<Cell>> {
        let (columns, key) = columns(table);
        let all = self.tables.get(table).map(Vec::as_slice).unwrap_or_default();
        let mine = |row: &&Vec<Cell>| !columns.contains(&"chain") || chain_of(table, row) == chain;
        let mut rows: Vec<Vec<Cell>> = all.iter().filter(mine).cloned().collect();
        rows.sort_by(|a, b| a[..key].cmp(&b[..key]));
        rows
    }
}
