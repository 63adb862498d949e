//! The floor: the same rows and indexes written to SQLite with nothing around them, 256 entries a transaction.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ledger_engine::domain::projection::{Cell, Row, Table};
use ledger_engine::hash::{EventId, Hash};
use ledger_engine::store::sqlite::{DATABASE_FILE, MIGRATIONS, SqliteOptions, SqliteStore};
use ledger_engine::store::{
    ChainHead, CheckpointRow, CommitBatch, Entry, LookedUp, MakeCommit, MakeCut, Settled, Store, StoreError,
    StoredCommit, StreamHead,
};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql, params, params_from_iter};

/// A store that keeps every commit it stores, so that they can be written again raw.
pub struct Recorder<S> {
    store: S,
    batches: Mutex<Vec<CommitBatch>>,
}

impl Recorder<SqliteStore> {
    /// Records what goes into a new store in `dir`.
    pub fn new(dir: &Path) -> Arc<Recorder<SqliteStore>> {
        Recorder::around(SqliteStore::create(dir, SqliteOptions::default()).expect("an empty directory"))
    }
}

impl<S> Recorder<S> {
    /// Records what goes into a store.
    pub fn around(store: S) -> Arc<Recorder<S>> {
        Arc::new(Recorder { store, batches: Mutex::new(Vec::new()) })
    }

    /// What was recorded.
    pub fn take(&self) -> Vec<CommitBatch> {
        std::mem::take(&mut *self.batches.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// `fn name(args) -> result` handed to the store unchanged.
macro_rules! delegate {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> Result<$out, StoreError> { self.store.$name($($arg),*) })*
    };
}

impl<S: Store> Store for Recorder<S> {
    fn append(&self, batch: &CommitBatch) -> Result<(), StoreError> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).push(batch.clone());
        self.store.append(batch)
    }

    delegate! {
        heads() -> Vec<ChainHead>;
        ledger_id() -> Option<Hash>;
        append_locked(chain: u32, make: &mut MakeCommit<'_>) -> ();
        append_cut(make: &mut MakeCut<'_>) -> ();
        settle(batch: &CommitBatch) -> Settled;
        entry(chain: u32, index: u64) -> Option<Entry>;
        entries(chain: u32, from: u64, limit: usize) -> Vec<Entry>;
        stream_head(chain: u32, stream: &str) -> Option<StreamHead>;
        find_event(id: EventId) -> Option<(u32, u64)>;
        commits(chain: u32, from: u64, limit: usize) -> Vec<StoredCommit>;
        checkpoints(chain: u32, size: u64, limit: usize) -> Vec<CheckpointRow>;
        private_documents(chain: u32, from: u64, limit: usize) -> Vec<(u64, Vec<u8>)>;
        private(chain: u32, index: u64) -> Option<Vec<u8>>;
        idempotency(chain: u32, key: &Hash) -> Option<u64>;
        look_up(chain: u32, keys: &[Hash], streams: &[String]) -> LookedUp;
        confirm(chain: u32, size: u64, hash: &Hash) -> bool;
        tile(chain: u32, level: u32, n: u64) -> Option<Vec<u8>>;
        row(table: &'static Table, chain: u32, index: u64) -> Option<Row>;
        rows(table: &'static Table, chain: u32) -> Vec<Row>;
        rows_from(table: &'static Table, chain: u32, from: u64, limit: usize) -> Vec<Row>;
        rows_among(table: &'static Table, chain: u32, range: std::ops::Range<u64>, statuses: &[&str]) -> Vec<Row>;
        replace_projections(chain: u32, size: u64, rows: &[Row]) -> ();
        last_checkpoint(chain: u32) -> Option<CheckpointRow>;
        exclusive() -> Option<ledger_engine::store::Exclusive>;
        record_checkpoint(row: &CheckpointRow) -> ();
        sign_checkpoint(row: &CheckpointRow) -> ();
        backup(to: &Path) -> ();
        close() -> ();
    }
}

struct Value<'a>(&'a Cell);

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Cell::Null => ValueRef::Null,
            Cell::Int(n) => ValueRef::Integer(*n),
            Cell::Text(s) => ValueRef::Text(s.as_bytes()),
            Cell::Blob(b) => ValueRef::Blob(b),
        }))
    }
}

/// An empty database with the ledger's schema and the store's PRAGMAs.
pub fn database(dir: &Path) -> Connection {
    let options = SqliteOptions::default();
    let conn = Connection::open(dir.join(DATABASE_FILE)).expect("a new file");
    let set = |name: &str, value: &dyn ToSql| conn.pragma_update(None, name, value).expect("a PRAGMA");
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).expect("WAL");
    set("synchronous", &options.synchronous);
    set("wal_autocheckpoint", &options.checkpoint_pages);
    set("secure_delete", &"ON");
    set("cache_size", &-options.cache_kib);
    for step in MIGRATIONS {
        conn.execute_batch(step).expect("the schema");
    }
    conn.set_prepared_statement_cache_capacity(64);
    conn
}

/// Writes batches in transactions of at least `entries` entries. Returns how many entries were written.
pub fn write(conn: &mut Connection, batches: &[CommitBatch], entries: usize) -> rusqlite::Result<u64> {
    let (mut total, mut open) = (0, 0);
    conn.execute_batch("BEGIN IMMEDIATE")?;
    for batch in batches {
        write_batch(conn, batch)?;
        open += batch.entries.len();
        total += batch.entries.len() as u64;
        if open >= entries {
            conn.execute_batch("COMMIT; BEGIN IMMEDIATE")?;
            open = 0;
        }
    }
    conn.execute_batch("COMMIT")?;
    Ok(total)
}

fn upsert(row: &Row) -> String {
    let columns = row.table.columns;
    let marks = vec!["?"; columns.len()].join(",");
    let set: Vec<String> = columns[2..].iter().map(|c| format!("{c}=excluded.{c}")).collect();
    let (name, a, b) = (row.table.name, columns[0], columns[1]);
    format!("INSERT INTO {name} VALUES ({marks}) ON CONFLICT ({a},{b}) DO UPDATE SET {}", set.join(","))
}

fn write_batch(conn: &Connection, batch: &CommitBatch) -> rusqlite::Result<()> {
    let chain = batch.before.chain;
    let mut insert = conn.prepare_cached("INSERT INTO entries VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)")?;
    for e in &batch.entries {
        let h = &e.header;
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
            &e.entry_hash.0[..],
            e.parent_index.map(|i| i as i64),
            e.body
        ])?;
    }
    let mut private = conn.prepare_cached("INSERT INTO private_documents VALUES (?,?,?)")?;
    for (index, document) in &batch.private {
        private.execute(params![chain, *index as i64, document])?;
    }
    let s = &batch.statement;
    conn.prepare_cached("INSERT INTO commits VALUES (?,?,?,?,?)")?.execute(params![
        chain,
        s.first_index as i64,
        s.size,
        s.registry_size as i64,
        &s.registry_head.0[..]
    ])?;
    for g in &batch.signatures {
        conn.prepare_cached("INSERT INTO commit_signatures VALUES (?,?,?,?,?)")?.execute(params![
            chain,
            s.first_index as i64,
            g.kid,
            g.alg,
            g.signature
        ])?;
    }
    let mut stream = conn.prepare_cached(
        "INSERT INTO stream_heads VALUES (?,?,?,?,?,?) ON CONFLICT (chain,stream) DO UPDATE SET \
         revision=excluded.revision, head_hash=excluded.head_hash, head_index=excluded.head_index",
    )?;
    for (name, head) in &batch.streams {
        let (index, first) = (head.index as i64, head.first_index as i64);
        stream.execute(params![chain, name, head.revision as i64, &head.hash.0[..], index, first])?;
    }
    for t in &batch.tiles {
        conn.prepare_cached("INSERT INTO tiles VALUES (?,?,?,?)")?
            .execute(params![chain, t.level, t.n as i64, t.hashes])?;
    }
    for (n, ids) in &batch.runs {
        conn.prepare_cached("INSERT INTO event_id_runs VALUES (?,?,?)")?.execute(params![chain, *n as i64, ids])?;
    }
    let mut last = ("", String::new());
    for row in &batch.rows {
        if last.0 != row.table.name {
            last = (row.table.name, upsert(row));
        }
        conn.prepare_cached(&last.1)?.execute(params_from_iter(row.cells.iter().map(Value)))?;
    }
    conn.prepare_cached(
        "INSERT INTO chain_heads VALUES (?,?,?,?) ON CONFLICT (chain) DO UPDATE SET size=excluded.size, \
         head_hash=excluded.head_hash, compact_range=excluded.compact_range",
    )?
    .execute(params![chain, batch.after.size() as i64, &batch.after.hash.0[..], batch.after.range.to_bytes()])?;
    Ok(())
}
