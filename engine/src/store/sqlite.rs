//! The embedded store: one SQLite file in WAL mode with `synchronous=FULL`.
//!
//! One connection writes, under a mutex and `BEGIN IMMEDIATE`, so a second process waits its turn; readers have
//! connections of their own and never block it. An error of COMMIT itself is `Unknown`: the WAL frames may have
//! reached the disk or not, and only a look under the lock can tell.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row as SqlRow, ToSql, Transaction, ffi, params,
};

use super::{
    ChainHead, CheckpointRow, CommitBatch, Entry, Exclusive, MakeCommit, MakeCut, Settled, Store, StoreError,
    StoredCommit, StreamHead,
};
use crate::commit::CommitSignature;
use crate::domain::projection::{Cell, Row, TABLES, Table};
use crate::hash::{EventId, Hash};
use crate::header::{FORMAT_VERSION, Header};
use crate::json::Value;
use crate::merkle::CompactRange;
use crate::runs::{RUN_ENTRIES, find_in_run};
use crate::stream::LEDGER_STREAM;

/// File name of the database in a ledger's directory.
pub const DATABASE_FILE: &str = "ledger.db";
/// Locked by an export job. It has nothing in it.
const EXPORT_LOCK_FILE: &str = "export.lock";
/// Schema steps; `PRAGMA user_version` counts those applied.
pub const MIGRATIONS: [&str; 1] = [include_str!("../../../migrations/sqlite/0001_ledger.sql")];
/// `PRAGMA application_id`: "OLgr".
const APPLICATION_ID: i32 = 0x4f4c_6772;
/// "OLgh": nobody is to write to it, wherever it is copied to.
const HELD_ID: i32 = 0x4f4c_6768;
/// "OLgc": nobody ever.
const CLOSED_ID: i32 = 0x4f4c_6763;

/// Who may write to a database file, and to all copies that are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Whoever has the keys.
    Open,
    /// Nobody, until it is let go.
    Held,
    /// Nobody ever: the ledger was closed.
    Closed,
}

impl Mark {
    fn id(self) -> i32 {
        match self {
            Mark::Open => APPLICATION_ID,
            Mark::Held => HELD_ID,
            Mark::Closed => CLOSED_ID,
        }
    }

    /// `None`: it is no ledger's database.
    fn of(id: i64) -> Option<Mark> {
        [Mark::Open, Mark::Held, Mark::Closed].into_iter().find(|mark| i64::from(mark.id()) == id)
    }
}

/// Settings of the embedded store.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// How long to wait for another process that writes.
    pub busy_timeout: Duration,
    /// Page cache of each connection, KiB.
    pub cache_kib: i64,
    /// WAL pages after which a commit moves them into the database file.
    pub checkpoint_pages: i64,
    /// Largest database file, in pages of 4 KiB; beyond it appends fail as on a full disk.
    pub pages_max: Option<u64>,
    /// SQLite VFS to use instead of the default one.
    pub vfs: Option<String>,
    /// `FULL` unless a test shows what happens otherwise.
    pub synchronous: &'static str,
    /// The file is worth nothing before it is closed, synced and renamed to where it is used, and is thrown away after any error: nothing is
    /// written twice and nothing synced, and commits wait until somebody reads.
    pub draft: bool,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        SqliteOptions {
            busy_timeout: Duration::from_secs(30),
            cache_kib: 32 << 10,
            checkpoint_pages: 8192,
            pages_max: None,
            vfs: None,
            synchronous: "FULL",
            draft: false,
        }
    }
}

/// The embedded store.
pub struct SqliteStore {
    path: PathBuf,
    options: SqliteOptions,
    access: Access,
    // Dropped before the writer: only the last connection that may write removes the WAL file.
    readers: Mutex<Vec<Connection>>,
    writer: Mutex<Connection>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panicking holder leaves a connection whose transaction rolls back; the data is never half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What happened, and what to do, where SQLite's own words do not say it.
fn describe(e: &rusqlite::Error) -> String {
    match e.sqlite_error_code() {
        // Without room the shared memory beside the file cannot grow either, which SQLite calls an I/O error.
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure)
            if matches!(extended_code(e), ffi::SQLITE_FULL | ffi::SQLITE_IOERR_SHMSIZE) =>
        {
            "the disk or the file's quota is full; free space and try again".into()
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process holds the ledger's write lock; try again".into()
        }
        Some(ErrorCode::ReadOnly) => {
            "the ledger's directory or file is read-only, so it can only be read; to write, run as a user who may, or copy it".into()
        }
        Some(ErrorCode::SystemIoFailure) => {
            format!("{e} ({}); look at the disk and the system's log, then try again", extended_code(e))
        }
        _ => e.to_string(),
    }
}

fn extended_code(e: &rusqlite::Error) -> i32 {
    e.sqlite_error().map_or(ffi::SQLITE_ERROR, |e| e.extended_code)
}

fn sql(e: rusqlite::Error) -> StoreError {
    // A file that ends too early is damaged, though SQLite calls it an I/O error.
    let damaged = matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        || matches!(
            extended_code(&e),
            ffi::SQLITE_IOERR_SHORT_READ | ffi::SQLITE_IOERR_DATA | ffi::SQLITE_IOERR_CORRUPTFS
        );
    match e.sqlite_error_code() {
        _ if damaged => {
            StoreError::Corrupt(format!("{e}; restore the file from a backup or an export, then verify it"))
        }
        Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig) => StoreError::Rejected(e.to_string()),
        Some(_) => StoreError::Unavailable(describe(&e)),
        None => StoreError::Corrupt(e.to_string()),
    }
}

impl SqliteStore {
    /// Makes the database file in `dir`, which must not have one.
    pub fn create(dir: &Path, options: SqliteOptions) -> Result<SqliteStore, StoreError> {
        let path = dir.join(DATABASE_FILE);
        if path.exists() {
            let text = format!(
                "{} exists already; open it, or remove it if making it was interrupted and nobody was told of it",
                path.display()
            );
            return Err(StoreError::Unusable(text));
        }
        let store = Self::connect(path, options, OpenFlags::SQLITE_OPEN_CREATE)?;
        {
            let mut conn = lock(&store.writer);
            let tx = conn.transaction().map_err(sql)?;
            for step in MIGRATIONS {
                tx.execute_batch(step).map_err(sql)?;
            }
            tx.pragma_update(None, "user_version", MIGRATIONS.len() as i64).map_err(sql)?;
            tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
            tx.commit().map_err(sql)?;
        }
        Ok(store)
    }

    /// Opens the database file in `dir`.
    pub fn open(dir: &Path, options: SqliteOptions) -> Result<SqliteStore, StoreError> {
        let path = dir.join(DATABASE_FILE);
        if !path.exists() {
            let text = format!("there is no ledger in {}; make one with `ledger init`", dir.display());
            return Err(StoreError::Unusable(text));
        }
        let store = Self::connect(path, options, OpenFlags::empty())?;
        let (id, version) = {
            let conn = lock(&store.writer);
            let read = |name| conn.pragma_query_value(None, name, |r| r.get::<_, i64>(0)).map_err(sql);
            (read("application_id")?, read("user_version")?)
        };
        if id == 0 && version == 0 && store.is_blank()? {
            return Err(StoreError::Unusable(format!(
                "the creation of the ledger in {} was interrupted and nothing is in it; remove {} and the files beside it that begin \
                 with its name, and make it again with `ledger init`",
                dir.display(),
                store.path.display()
            )));
        }
        if Mark::of(id).is_none() {
            return Err(StoreError::Unusable(format!("{} is not a ledger's database", store.path.display())));
        }
        if version != MIGRATIONS.len() as i64 {
            return Err(StoreError::Unusable(format!(
                "{} has schema {version}, this program knows {}; use the program that wrote it",
                store.path.display(),
                MIGRATIONS.len()
            )));
        }
        Ok(store)
    }

    /// Marks the database file in `dir`, with all copies that are made of it. Nobody else may have it open. One that is closed stays closed.
    pub fn set_mark(dir: &Path, mark: Mark) -> Result<(), StoreError> {
        let store = Self::open(dir, SqliteOptions::default())?;
        if store.mark()? != Mark::Closed {
            lock(&store.writer).pragma_update(None, "application_id", mark.id()).map_err(sql)?;
        }
        store.close()
    }

    /// How the file is marked.
    pub fn mark(&self) -> Result<Mark, StoreError> {
        let id = lock(&self.writer).pragma_query_value(None, "application_id", |r| r.get::<_, i64>(0)).map_err(sql)?;
        // Who changed it since it was opened does not make it one to write to.
        Ok(Mark::of(id).unwrap_or(Mark::Held))
    }

    /// Whether the file has no table at all.
    fn is_blank(&self) -> Result<bool, StoreError> {
        lock(&self.writer)
            .query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get::<_, i64>(0))
            .map(|n| n == 0)
            .map_err(sql)
    }

    fn connect(path: PathBuf, options: SqliteOptions, extra: OpenFlags) -> Result<SqliteStore, StoreError> {
        let access = Access::of(&path);
        let conn = open_connection(&path, &options, access, OpenFlags::SQLITE_OPEN_READ_WRITE | extra)?;
        if access == Access::Write {
            set_journal(&conn, if options.draft { "off" } else { "wal" })?;
        }
        conn.pragma_update(None, "synchronous", if options.draft { "OFF" } else { options.synchronous })
            .map_err(sql)?;
        conn.pragma_update(None, "wal_autocheckpoint", options.checkpoint_pages).map_err(sql)?;
        // An erased private document must not survive in free pages.
        conn.pragma_update(None, "secure_delete", "ON").map_err(sql)?;
        if let Some(pages) = options.pages_max {
            conn.pragma_update(None, "max_page_count", pages as i64).map_err(sql)?;
        }
        conn.set_prepared_statement_cache_capacity(64);
        Ok(SqliteStore { path, options, access, writer: Mutex::new(conn), readers: Mutex::new(Vec::new()) })
    }

    /// Ends the transaction that collects what is appended to a draft, so that other connections see it.
    fn end_draft(&self) -> Result<(), StoreError> {
        if !self.options.draft {
            return Ok(());
        }
        let conn = lock(&self.writer);
        if conn.is_autocommit() { Ok(()) } else { conn.execute_batch("COMMIT").map_err(sql) }
    }

    fn read<T>(&self, f: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.end_draft()?;
        let pooled = lock(&self.readers).pop();
        let conn = match pooled {
            Some(conn) => conn,
            None => open_connection(&self.path, &self.options, self.access, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let result = f(&conn);
        lock(&self.readers).push(conn);
        result
    }
}

/// How the file can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// For reading and writing, in WAL mode.
    Write,
    /// For reading only: the file cannot be written, but its WAL and the WAL's index are there.
    Read,
    /// For reading only, without a WAL. SQLite could not even read it in WAL mode, which needs a writable directory.
    Immutable,
}

impl Access {
    fn of(path: &Path) -> Access {
        let read_only = |p: &Path| {
            let tried = std::fs::OpenOptions::new().write(true).open(p);
            tried.is_err_and(|e| {
                matches!(e.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
            })
        };
        let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        // A WAL holds commits that are not in the file yet: it must never be passed over.
        match (read_only(path), beside("-wal").exists()) {
            (false, _) => Access::Write,
            (true, true) => Access::Read,
            (true, false) => Access::Immutable,
        }
    }
}

/// A file name in a URI.
fn uri(path: &Path, query: &str) -> String {
    let escape = |c| if matches!(c, '?' | '#' | '%') { format!("%{:02x}", c as u32) } else { c.to_string() };
    let name: String = path.display().to_string().chars().map(escape).collect();
    format!("file:{name}?{query}")
}

fn open_connection(
    path: &Path,
    options: &SqliteOptions,
    access: Access,
    flags: OpenFlags,
) -> Result<Connection, StoreError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let read = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let opened = match (&options.vfs, access) {
        (Some(vfs), _) => Connection::open_with_flags_and_vfs(path, flags, vfs.as_str()),
        (None, Access::Write) => Connection::open_with_flags(path, flags),
        (None, Access::Read) => Connection::open_with_flags(uri(path, "mode=ro"), read),
        (None, Access::Immutable) => Connection::open_with_flags(uri(path, "mode=ro&immutable=1"), read),
    };
    let conn = opened.map_err(|e| match e.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => StoreError::Unusable(
            format!("cannot open {}: {e}; check that its directory exists and is writable", path.display()),
        ),
        _ => sql(e),
    })?;
    conn.busy_timeout(options.busy_timeout).map_err(sql)?;
    conn.pragma_update(None, "cache_size", -options.cache_kib).map_err(sql)?;
    Ok(conn)
}

fn set_journal(conn: &Connection, wanted: &str) -> Result<(), StoreError> {
    let mode: String = conn.pragma_update_and_check(None, "journal_mode", wanted, |r| r.get(0)).map_err(sql)?;
    if mode == wanted {
        return Ok(());
    }
    Err(StoreError::Unusable(format!("SQLite refuses the journal mode {wanted} here (it says {mode:?})")))
}

fn head_of(conn: &Connection, chain: u32) -> Result<Option<ChainHead>, StoreError> {
    conn.prepare_cached("SELECT chain, size, head_hash, compact_range FROM chain_heads WHERE chain = ?1")
        .and_then(|mut s| s.query_row([chain], |r| Ok(read_head(r))).optional())
        .map_err(sql)?
        .transpose()
}

fn heads_of(conn: &Connection) -> Result<Vec<ChainHead>, StoreError> {
    let text = "SELECT chain, size, head_hash, compact_range FROM chain_heads ORDER BY chain";
    let mut s = conn.prepare_cached(text).map_err(sql)?;
    collect(s.query([]).map_err(sql)?, read_head)
}

/// How many entries the key registry has.
fn registry_size_of(conn: &Connection) -> Result<u64, StoreError> {
    conn.prepare_cached("SELECT revision FROM stream_heads WHERE chain = 0 AND stream = ?1")
        .and_then(|mut s| s.query_row([LEDGER_STREAM], |r| r.get::<_, i64>(0)).optional())
        .map(|revision| revision.unwrap_or(0) as u64)
        .map_err(sql)
}

fn read_head(row: &SqlRow<'_>) -> Result<ChainHead, StoreError> {
    let bad = || StoreError::Corrupt("a row of chain_heads is malformed; verify the ledger".into());
    let size = column::<i64>(row, 1)?;
    let hash = hash_column(row, 2)?;
    let range: Vec<u8> = column(row, 3)?;
    let range = u64::try_from(size).ok().and_then(|size| CompactRange::from_bytes(size, &range)).ok_or_else(bad)?;
    Ok(ChainHead { chain: column(row, 0)?, hash, range })
}

fn column<T: rusqlite::types::FromSql>(row: &SqlRow<'_>, at: usize) -> Result<T, StoreError> {
    row.get(at).map_err(|e| StoreError::Corrupt(format!("column {at}: {e}; verify the ledger")))
}

fn hash_column(row: &SqlRow<'_>, at: usize) -> Result<Hash, StoreError> {
    let bytes: Vec<u8> = column(row, at)?;
    Hash::from_slice(&bytes).ok_or_else(|| StoreError::Corrupt(format!("column {at}: not 32 bytes; verify the ledger")))
}

const ENTRY_COLUMNS: &str = "chain, idx, prev_hash, stream, revision, parent_hash, event_id, event_type, \
     schema_version, recorded_at_us, body_hash, body_sha256, entry_hash, parent_index, body";

fn read_entry(row: &SqlRow<'_>, ledger_id: Hash) -> Result<Entry, StoreError> {
    let id: Vec<u8> = column(row, 6)?;
    let header = Header {
        format_version: FORMAT_VERSION,
        ledger_id: ledger_id.0,
        chain: column(row, 0)?,
        index: column::<i64>(row, 1)? as u64,
        prev_hash: hash_column(row, 2)?.0,
        stream: column(row, 3)?,
        revision: column::<i64>(row, 4)? as u64,
        parent_hash: hash_column(row, 5)?.0,
        event_id: id
            .try_into()
            .map_err(|_| StoreError::Corrupt("event_id is not 16 bytes; verify the ledger".into()))?,
        event_type: column(row, 7)?,
        schema_version: column(row, 8)?,
        recorded_at_us: column(row, 9)?,
        body_hash: hash_column(row, 10)?.0,
        body_sha256: hash_column(row, 11)?.0,
    };
    let parent: Option<i64> = column(row, 13)?;
    Ok(Entry {
        header,
        entry_hash: hash_column(row, 12)?,
        parent_index: parent.map(|i| i as u64),
        body: column(row, 14)?,
    })
}

impl ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Cell::Null => ValueRef::Null,
            Cell::Int(n) => ValueRef::Integer(*n),
            Cell::Text(s) => ValueRef::Text(s.as_bytes()),
            Cell::Blob(b) => ValueRef::Blob(b),
        }))
    }
}

fn read_cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Integer(n) => Cell::Int(n),
        ValueRef::Text(t) => Cell::Text(String::from_utf8_lossy(t).into_owned()),
        ValueRef::Blob(b) => Cell::Blob(b.to_vec()),
        // STRICT tables hold no reals.
        ValueRef::Null | ValueRef::Real(_) => Cell::Null,
    }
}

/// `INSERT … ON CONFLICT DO UPDATE`, so that a row keeps its place in the file.
fn upsert(table: &Table) -> String {
    let columns = table.columns;
    let marks: Vec<String> = (1..=columns.len()).map(|i| format!("?{i}")).collect();
    let set: Vec<String> = columns[2..].iter().map(|c| format!("{c} = excluded.{c}")).collect();
    // The first entry that carries an idempotency key stays its answer.
    let action = if table.name == "idempotency" { "NOTHING".into() } else { format!("UPDATE SET {}", set.join(", ")) };
    format!(
        "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT ({}, {}) DO {action}",
        table.name,
        columns.join(", "),
        marks.join(", "),
        columns[0],
        columns[1],
    )
}

static UPSERTS: std::sync::LazyLock<[String; 6]> = std::sync::LazyLock::new(|| TABLES.map(upsert));

fn upsert_of(table: &Table) -> &'static str {
    let at = TABLES.iter().position(|t| t.name == table.name).unwrap_or_default();
    &UPSERTS[at]
}

fn set_cursors(tx: &Connection, chain: u32, size: u64) -> rusqlite::Result<()> {
    let mut cursor = tx.prepare_cached(
        "INSERT INTO cursors VALUES (?1, ?2, ?3) ON CONFLICT (projection, chain) DO UPDATE SET size = excluded.size",
    )?;
    for table in TABLES {
        cursor.execute(params![table.name, chain, size as i64])?;
    }
    Ok(())
}

fn write_rows(tx: &Connection, rows: &[Row]) -> rusqlite::Result<()> {
    for row in rows {
        tx.prepare_cached(upsert_of(row.table))?.execute(rusqlite::params_from_iter(&row.cells))?;
    }
    Ok(())
}

fn write_batch(tx: &Connection, batch: &CommitBatch) -> rusqlite::Result<()> {
    let chain = batch.before.chain;
    if batch.before.size() == 0 && chain == 0 {
        tx.execute("INSERT INTO ledger VALUES (?1)", [&batch.statement.ledger_id.0[..]])?;
    }
    {
        let mut insert = tx.prepare_cached(
            "INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?;
        for entry in &batch.entries {
            let h = &entry.header;
            insert.execute(params![
                h.chain,
                h.index as i64,
                &h.prev_hash[..],
                h.stream,
                h.revision as i64,
                &h.parent_hash[..],
                &h.event_id[..],
                h.event_type,
                h.schema_version,
                h.recorded_at_us,
                &h.body_hash[..],
                &h.body_sha256[..],
                &entry.entry_hash.0[..],
                entry.parent_index.map(|i| i as i64),
                entry.body,
            ])?;
        }
        let mut private = tx.prepare_cached("INSERT INTO private_documents VALUES (?1, ?2, ?3)")?;
        for (index, document) in &batch.private {
            private.execute(params![chain, *index as i64, document])?;
        }
        let s = &batch.statement;
        tx.prepare_cached("INSERT INTO commits VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
            chain,
            s.first_index as i64,
            s.size,
            s.registry_size as i64,
            &s.registry_head.0[..]
        ])?;
        let mut signature = tx.prepare_cached("INSERT INTO commit_signatures VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for signed in &batch.signatures {
            signature.execute(params![chain, s.first_index as i64, signed.kid, signed.alg, signed.signature])?;
        }
        let mut stream = tx.prepare_cached(
            "INSERT INTO stream_heads VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (chain, stream) DO UPDATE SET \
             revision = excluded.revision, head_hash = excluded.head_hash, head_index = excluded.head_index",
        )?;
        for (name, head) in &batch.streams {
            stream.execute(params![
                chain,
                name,
                head.revision as i64,
                &head.hash.0[..],
                head.index as i64,
                head.first_index as i64
            ])?;
        }
        let mut tile = tx.prepare_cached("INSERT INTO tiles VALUES (?1, ?2, ?3, ?4)")?;
        for t in &batch.tiles {
            tile.execute(params![chain, t.level, t.n as i64, t.hashes])?;
        }
        let mut run = tx.prepare_cached("INSERT INTO event_id_runs VALUES (?1, ?2, ?3)")?;
        for (n, ids) in &batch.runs {
            run.execute(params![chain, *n as i64, ids])?;
        }
        write_rows(tx, &batch.rows)?;
        set_cursors(tx, chain, batch.after.size())?;
        let mut erase = tx.prepare_cached("DELETE FROM private_documents WHERE chain = ?1 AND idx = ?2")?;
        for index in &batch.erase {
            erase.execute(params![chain, *index as i64])?;
        }
        tx.prepare_cached(
            "INSERT INTO chain_heads VALUES (?1, ?2, ?3, ?4) ON CONFLICT (chain) DO UPDATE SET \
             size = excluded.size, head_hash = excluded.head_hash, compact_range = excluded.compact_range",
        )?
        .execute(params![
            chain,
            batch.after.size() as i64,
            &batch.after.hash.0[..],
            batch.after.range.to_bytes()
        ])?;
    }
    Ok(())
}

fn begin(conn: &mut Connection) -> Result<Transaction<'_>, StoreError> {
    conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(sql)
}

fn empty_head(chain: u32) -> ChainHead {
    ChainHead { chain, hash: Hash::ZERO, range: CompactRange::default() }
}

fn append_in(tx: Transaction<'_>, batch: &CommitBatch) -> Result<(), StoreError> {
    write_batch(&tx, batch).map_err(sql)?;
    commit_in(tx)
}

fn commit_in(tx: Transaction<'_>) -> Result<(), StoreError> {
    tx.commit().map_err(|e| match e.sqlite_error_code() {
        // SQLITE_BUSY from COMMIT leaves the transaction open; dropping the connection's statement rolls it back. On a full
        // disk the frame that makes a commit valid, the last one, was not written whole.
        Some(ErrorCode::DatabaseBusy | ErrorCode::DiskFull) => sql(e),
        _ => StoreError::Unknown(describe(&e)),
    })
}

impl Store for SqliteStore {
    fn heads(&self) -> Result<Vec<ChainHead>, StoreError> {
        self.read(heads_of)
    }

    fn ledger_id(&self) -> Result<Option<Hash>, StoreError> {
        self.read(ledger_id_of)
    }

    fn append(&self, batch: &CommitBatch) -> Result<(), StoreError> {
        let mut conn = lock(&self.writer);
        let tx = begin(&mut conn)?;
        let head = head_of(&tx, batch.before.chain)?.unwrap_or_else(|| empty_head(batch.before.chain));
        if head != batch.before {
            return Err(StoreError::HeadMoved(Box::new(head)));
        }
        if registry_size_of(&tx)? > batch.statement.registry_size {
            return Err(StoreError::RegistryMoved);
        }
        append_in(tx, batch)
    }

    fn append_locked(&self, chain: u32, make: &mut MakeCommit<'_>) -> Result<(), StoreError> {
        let mut conn = lock(&self.writer);
        let tx = begin(&mut conn)?;
        let head = head_of(&tx, chain)?.unwrap_or_else(|| empty_head(chain));
        match make(&head) {
            Some(batch) => append_in(tx, &batch),
            None => Ok(()),
        }
    }

    fn append_verified(&self, batches: &[CommitBatch]) -> Result<(), StoreError> {
        let mut conn = lock(&self.writer);
        let write = |conn: &Connection| {
            for batch in batches {
                let head = head_of(conn, batch.before.chain)?.unwrap_or_else(|| empty_head(batch.before.chain));
                if head != batch.before {
                    return Err(StoreError::HeadMoved(Box::new(head)));
                }
                write_batch(conn, batch).map_err(sql)?;
            }
            Ok(())
        };
        if self.options.draft {
            if conn.is_autocommit() {
                conn.execute_batch("BEGIN").map_err(sql)?;
            }
            return write(&conn);
        }
        let tx = begin(&mut conn)?;
        write(&tx)?;
        commit_in(tx)
    }

    fn append_cut(&self, make: &mut MakeCut<'_>) -> Result<(), StoreError> {
        let mut conn = lock(&self.writer);
        // Its lock is one for all chains.
        let tx = begin(&mut conn)?;
        let heads = heads_of(&tx)?;
        match make(&heads) {
            Some(batch) => append_in(tx, &batch),
            None => Ok(()),
        }
    }

    fn settle(&self, batch: &CommitBatch) -> Result<Settled, StoreError> {
        let mut conn = lock(&self.writer);
        if !conn.is_autocommit() {
            conn.execute_batch("ROLLBACK").map_err(sql)?;
        }
        let tx = begin(&mut conn)?;
        let s = &batch.statement;
        // Another process may have appended since, so the head alone does not tell: the last entry's hash does.
        let last = (s.first_index + u64::from(s.size) - 1) as i64;
        let stored: Option<Vec<u8>> = tx
            .query_row("SELECT entry_hash FROM entries WHERE chain = ?1 AND idx = ?2", params![s.chain, last], |r| {
                r.get(0)
            })
            .optional()
            .map_err(sql)?;
        if stored.as_deref() == Some(&s.last_hash.0[..]) {
            return Ok(Settled::Committed);
        }
        // Its frames may lie whole in the WAL, after the last commit that SQLite counts: then it would be there after a crash,
        // though its callers were told that it failed. Another commit, however small, is written over them.
        tx.pragma_update(None, "user_version", MIGRATIONS.len() as i64).map_err(sql)?;
        tx.commit().map_err(sql)?;
        Ok(Settled::NotCommitted)
    }

    fn entry(&self, chain: u32, index: u64) -> Result<Option<Entry>, StoreError> {
        Ok(self.entries(chain, index, 1)?.into_iter().find(|e| e.header.index == index))
    }

    fn entries(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.read(|conn| {
            let Some(id) = ledger_id_of(conn)? else { return Ok(Vec::new()) };
            let text =
                format!("SELECT {ENTRY_COLUMNS} FROM entries WHERE chain = ?1 AND idx >= ?2 ORDER BY idx LIMIT ?3");
            let mut s = conn.prepare_cached(&text).map_err(sql)?;
            let rows = s.query(params![chain, from as i64, limit as i64]).map_err(sql)?;
            collect(rows, |r| read_entry(r, id))
        })
    }

    fn stream_head(&self, chain: u32, stream: &str) -> Result<Option<StreamHead>, StoreError> {
        self.read(|conn| {
            let mut s = conn
                .prepare_cached(
                    "SELECT revision, head_hash, head_index, first_index FROM stream_heads WHERE chain = ?1 AND stream = ?2",
                )
                .map_err(sql)?;
            let rows = s.query(params![chain, stream]).map_err(sql)?;
            let found = collect(rows, |r| {
                let number = |at| column::<i64>(r, at).map(|n| n as u64);
                Ok(StreamHead {
                    revision: number(0)?,
                    hash: hash_column(r, 1)?,
                    index: number(2)?,
                    first_index: number(3)?,
                })
            })?;
            Ok(found.into_iter().next())
        })
    }

    fn find_event(&self, id: EventId) -> Result<Option<(u32, u64)>, StoreError> {
        let Some(ledger_id) = self.ledger_id()? else { return Ok(None) };
        for head in self.heads()? {
            let chain = head.chain;
            let complete = head.size() / RUN_ENTRIES;
            // The newest entries are not in a run yet; they are asked for most.
            let tail = (complete * RUN_ENTRIES..head.size()).rev();
            if let Some(index) = tail.into_iter().find(|i| EventId::derive(&ledger_id, chain, *i) == id) {
                return Ok(Some((chain, index)));
            }
            let candidates = self.read(|conn| {
                let mut s = conn.prepare_cached("SELECT run, ids FROM event_id_runs WHERE chain = ?1").map_err(sql)?;
                let mut rows = s.query([chain]).map_err(sql)?;
                let mut found = Vec::new();
                while let Some(row) = rows.next().map_err(sql)? {
                    let run = column::<i64>(row, 0)? as u64;
                    let ids = row.get_ref(1).map_err(sql)?;
                    if let Ok(ids) = ids.as_blob() {
                        found.extend(find_in_run(ids, &id).map(|offset| run * RUN_ENTRIES + offset));
                    }
                }
                Ok(found)
            })?;
            if let Some(index) = candidates.into_iter().find(|i| EventId::derive(&ledger_id, chain, *i) == id) {
                return Ok(Some((chain, index)));
            }
        }
        Ok(None)
    }

    fn commits(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<StoredCommit>, StoreError> {
        self.read(|conn| {
            let text = "SELECT first_index, size, registry_size, registry_head FROM commits WHERE chain = ?1 AND first_index >= ?2 \
                        ORDER BY first_index LIMIT ?3";
            let mut s = conn.prepare_cached(text).map_err(sql)?;
            let rows = s.query(params![chain, from as i64, limit as i64]).map_err(sql)?;
            let mut commits = collect(rows, |r| {
                let number = |at| column::<i64>(r, at).map(|n| n as u64);
                Ok(StoredCommit {
                    first_index: number(0)?,
                    size: number(1)?,
                    registry_size: number(2)?,
                    registry_head: hash_column(r, 3)?,
                    signatures: Vec::new(),
                })
            })?;
            let Some((first, last)) = commits.first().zip(commits.last()).map(|(f, l)| (f.first_index, l.first_index))
            else {
                return Ok(commits);
            };
            let text = "SELECT first_index, kid, alg, signature FROM commit_signatures \
                        WHERE chain = ?1 AND first_index BETWEEN ?2 AND ?3 ORDER BY first_index, kid";
            let mut s = conn.prepare_cached(text).map_err(sql)?;
            let rows = s.query(params![chain, first as i64, last as i64]).map_err(sql)?;
            let signatures = collect(rows, |r| {
                let signature = CommitSignature { kid: column(r, 1)?, alg: column(r, 2)?, signature: column(r, 3)? };
                Ok((column::<i64>(r, 0)? as u64, signature))
            })?;
            for (first_index, signature) in signatures {
                if let Ok(at) = commits.binary_search_by_key(&first_index, |c| c.first_index) {
                    commits[at].signatures.push(signature);
                }
            }
            Ok(commits)
        })
    }

    fn checkpoints(&self, chain: u32, size: u64, limit: usize) -> Result<Vec<CheckpointRow>, StoreError> {
        self.read(|conn| {
            let text =
                "SELECT size, root, note FROM checkpoints WHERE chain = ?1 AND size >= ?2 ORDER BY size LIMIT ?3";
            let mut s = conn.prepare_cached(text).map_err(sql)?;
            collect(s.query(params![chain, size as i64, limit as i64]).map_err(sql)?, |r| {
                let size = column::<i64>(r, 0)? as u64;
                Ok(CheckpointRow { chain, size, root: hash_column(r, 1)?, note: column(r, 2)? })
            })
        })
    }

    fn private_documents(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.read(|conn| {
            let text =
                "SELECT idx, document FROM private_documents WHERE chain = ?1 AND idx >= ?2 ORDER BY idx LIMIT ?3";
            let mut s = conn.prepare_cached(text).map_err(sql)?;
            collect(s.query(params![chain, from as i64, limit as i64]).map_err(sql)?, |r| {
                Ok((column::<i64>(r, 0)? as u64, column(r, 1)?))
            })
        })
    }

    fn private(&self, chain: u32, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|conn| {
            conn.prepare_cached("SELECT document FROM private_documents WHERE chain = ?1 AND idx = ?2")
                .and_then(|mut s| s.query_row(params![chain, index as i64], |r| r.get(0)).optional())
                .map_err(sql)
        })
    }

    fn idempotency(&self, chain: u32, key: &Hash) -> Result<Option<u64>, StoreError> {
        self.read(|conn| {
            conn.prepare_cached("SELECT idx FROM idempotency WHERE chain = ?1 AND key = ?2")
                .and_then(|mut s| s.query_row(params![chain, &key.0[..]], |r| r.get::<_, i64>(0)).optional())
                .map(|found| found.map(|i| i as u64))
                .map_err(sql)
        })
    }

    fn tile(&self, chain: u32, level: u32, n: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|conn| {
            conn.prepare_cached("SELECT hashes FROM tiles WHERE chain = ?1 AND level = ?2 AND n = ?3")
                .and_then(|mut s| s.query_row(params![chain, level, n as i64], |r| r.get(0)).optional())
                .map_err(sql)
        })
    }

    fn row(&self, table: &'static Table, chain: u32, index: u64) -> Result<Option<Row>, StoreError> {
        let text = format!("SELECT * FROM {} WHERE chain = ?1 AND {} = ?2", table.name, table.columns[1]);
        Ok(self.query_rows(table, &text, params![chain, index as i64])?.into_iter().next())
    }

    fn rows(&self, table: &'static Table, chain: u32) -> Result<Vec<Row>, StoreError> {
        let text = format!("SELECT * FROM {} WHERE chain = ?1 ORDER BY {}", table.name, table.columns[1]);
        self.query_rows(table, &text, params![chain])
    }

    fn rows_from(&self, table: &'static Table, chain: u32, from: u64, limit: usize) -> Result<Vec<Row>, StoreError> {
        let (name, key) = (table.name, table.columns[1]);
        let text = format!("SELECT * FROM {name} WHERE chain = ?1 AND {key} >= ?2 ORDER BY {key} LIMIT ?3");
        self.query_rows(table, &text, params![chain, from as i64, limit as i64])
    }

    fn rows_among(
        &self,
        table: &'static Table,
        chain: u32,
        range: Range<u64>,
        statuses: &[&str],
    ) -> Result<Vec<Row>, StoreError> {
        let (name, key) = (table.name, table.columns[1]);
        let within = format!("chain = ?1 AND {key} >= ?2 AND {key} < ?3");
        let text = format!(
            "SELECT * FROM {name} WHERE {within} AND status IN (SELECT value FROM json_each(?4)) ORDER BY {key}"
        );
        let statuses = Value::from(statuses.iter().map(|s| Value::from(*s)).collect::<Vec<_>>());
        let statuses = String::from_utf8(statuses.to_canonical()).unwrap_or_default();
        self.query_rows(table, &text, params![chain, range.start as i64, range.end as i64, statuses])
    }

    fn replace_projections(&self, chain: u32, size: u64, rows: &[Row]) -> Result<(), StoreError> {
        let mut conn = lock(&self.writer);
        let tx = begin(&mut conn)?;
        if let Some(head) = head_of(&tx, chain)?.filter(|h| h.size() != size) {
            return Err(StoreError::HeadMoved(Box::new(head)));
        }
        for table in TABLES {
            tx.execute(&format!("DELETE FROM {} WHERE chain = ?1", table.name), [chain]).map_err(sql)?;
        }
        write_rows(&tx, rows).and_then(|()| set_cursors(&tx, chain, size)).map_err(sql)?;
        tx.commit().map_err(sql)
    }

    fn last_checkpoint(&self, chain: u32) -> Result<Option<CheckpointRow>, StoreError> {
        self.read(|conn| {
            let mut s = conn
                .prepare_cached("SELECT size, root, note FROM checkpoints WHERE chain = ?1 ORDER BY size DESC LIMIT 1")
                .map_err(sql)?;
            let found = collect(s.query([chain]).map_err(sql)?, |r| {
                let size = column::<i64>(r, 0)? as u64;
                Ok(CheckpointRow { chain, size, root: hash_column(r, 1)?, note: column(r, 2)? })
            })?;
            Ok(found.into_iter().next())
        })
    }

    fn record_checkpoint(&self, row: &CheckpointRow) -> Result<(), StoreError> {
        lock(&self.writer)
            .execute(
                "INSERT INTO checkpoints VALUES (?1, ?2, ?3, NULL) ON CONFLICT (chain, size) DO NOTHING",
                params![row.chain, row.size as i64, &row.root.0[..]],
            )
            .map(drop)
            .map_err(sql)
    }

    fn sign_checkpoint(&self, row: &CheckpointRow) -> Result<(), StoreError> {
        lock(&self.writer)
            .execute(
                "UPDATE checkpoints SET note = ?4 WHERE chain = ?1 AND size = ?2 AND root = ?3 AND note IS NULL",
                params![row.chain, row.size as i64, &row.root.0[..], row.note],
            )
            .map(drop)
            .map_err(sql)
    }

    fn exclusive(&self) -> Result<Option<Exclusive>, StoreError> {
        let path = self.path.with_file_name(EXPORT_LOCK_FILE);
        let failed = |e: std::io::Error| StoreError::Unavailable(format!("{}: {e}", path.display()));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    fn backup(&self, to: &Path) -> Result<(), StoreError> {
        if to.exists() {
            return Err(StoreError::Unusable(format!("{} exists already", to.display())));
        }
        let path = to.to_str().ok_or_else(|| StoreError::Unusable("the file name is not UTF-8".into()))?;
        // VACUUM INTO reads one snapshot while writers go on, and leaves no WAL beside the copy.
        self.read(|conn| conn.execute("VACUUM INTO ?1", [path]).map(drop).map_err(sql))
    }

    fn close(&self) -> Result<(), StoreError> {
        lock(&self.readers).clear();
        if self.access != Access::Write {
            return Ok(());
        }
        self.end_draft()?;
        let writer = lock(&self.writer);
        if self.options.draft {
            return set_journal(&writer, "wal");
        }
        writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(sql)
    }
}

impl SqliteStore {
    fn query_rows(
        &self,
        table: &'static Table,
        text: &str,
        params: impl rusqlite::Params,
    ) -> Result<Vec<Row>, StoreError> {
        self.read(|conn| {
            let mut s = conn.prepare_cached(text).map_err(sql)?;
            collect(s.query(params).map_err(sql)?, |r| {
                let cells = (0..table.columns.len()).map(|i| r.get_ref(i).map(read_cell).map_err(sql));
                Ok(Row { table, cells: cells.collect::<Result<_, _>>()? })
            })
        })
    }
}

fn ledger_id_of(conn: &Connection) -> Result<Option<Hash>, StoreError> {
    let found: Option<Vec<u8>> = conn
        .prepare_cached("SELECT ledger_id FROM ledger")
        .and_then(|mut s| s.query_row([], |r| r.get(0)).optional())
        .map_err(sql)?;
    found
        .map(|b| {
            Hash::from_slice(&b)
                .ok_or_else(|| StoreError::Corrupt("ledger_id is not 32 bytes; verify the ledger".into()))
        })
        .transpose()
}

fn collect<T>(
    mut rows: rusqlite::Rows<'_>,
    read: impl Fn(&SqlRow<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut out = Vec::new();
    while let Some(row) = rows.next().map_err(sql)? {
        out.push(read(row)?);
    }
    Ok(out)
}
