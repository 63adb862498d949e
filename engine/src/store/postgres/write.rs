//! The append transaction. Statements of one step are sent together and answered in order.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, join_all, try_join_all};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Statement};

use super::read::head_of_row;
use super::session::{Session, failed, here_us};
use crate::domain::projection::{Cell, Row, TABLES, Table};
use crate::hash::Hash;
use crate::merkle::CompactRange;
use crate::store::{ChainHead, CheckpointRow, CommitBatch, Entry, StoreError};

pub(super) const LOCK_HEAD: &str = "SELECT chain, size, head_hash, compact_range, \
     (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM ledger.chain_heads WHERE chain = $1 FOR UPDATE";
pub(super) const LOCK_HEADS: &str =
    "SELECT chain, size, head_hash, compact_range FROM ledger.chain_heads ORDER BY chain FOR UPDATE";
pub(super) const REGISTRY_SIZE: &str = "SELECT revision FROM ledger.stream_heads WHERE chain = 0 AND stream = 'ledger'";
/// Moves the head and locks it, if it is the one that a commit continues.
pub(super) const MOVE_HEAD: &str = "UPDATE ledger.chain_heads SET size = $2, head_hash = $3, compact_range = $4 \
     WHERE chain = $1 AND size = $5 AND head_hash = $6";
/// Fails, by a division by zero, unless the statement before it moved the head of the chain `$1` to the size `$2` and the hash `$3`, the
/// registry has no more entries than the commit knows (`$4`), and this was sent a moment ago (`$5`, `$6`). Being part of a statement that
/// began with the lock taken, it sees what was committed until then.
pub(super) const HEAD_MOVED: &str = "SELECT 1 / count(*) FROM ledger.chain_heads WHERE chain = $1 AND size = $2 AND head_hash = $3 \
     AND coalesce((SELECT revision FROM ledger.stream_heads WHERE chain = 0 AND stream = 'ledger'), 0) <= $4 \
     AND abs((extract(epoch FROM clock_timestamp()) * 1000000)::bigint - $5) <= $6";
/// How long a commit that was sent at once may take to its lock. One that waits longer, or whose clock is further from the database's,
/// is looked at first.
pub(super) const IN_FLIGHT: Duration = Duration::from_millis(500);
pub(super) const CONFIRM: &str = "SELECT (SELECT entry_hash FROM ledger.entries WHERE chain = $1 AND idx = $2), \
     (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
pub(super) const RECORDED: &str = "SELECT c.root, (SELECT h.size FROM ledger.chain_heads h WHERE h.chain = $1) FROM ledger.checkpoints c \
     WHERE c.chain = $1 AND c.size = $2";

/// Begins a transaction and locks the chain's head: one round trip. READ COMMITTED, and the lock is a statement of its
/// own, so that what follows sees everything that was committed before: the size of the key registry, too, which is read with it.
pub(super) async fn lock_head(session: &Session, chain: u32) -> Result<(ChainHead, u64), StoreError> {
    let lock = session.prepare(LOCK_HEAD).await.map_err(failed)?;
    let registry = session.prepare(REGISTRY_SIZE).await.map_err(failed)?;
    let key = chain as i32;
    let parameters: [&(dyn ToSql + Sync); 1] = [&key];
    let (begun, row, registry) = futures_util::join!(
        session.batch_execute("BEGIN"),
        session.query_opt(&lock, &parameters),
        session.query_opt(&registry, &[])
    );
    begun.map_err(failed)?;
    let head = match row.map_err(failed)? {
        Some(row) => {
            session.check_clock(row.try_get(4).map_err(failed)?)?;
            head_of_row(&row)?
        }
        // Before its genesis a chain has no row to lock; of two that make it, the key lets one.
        None => ChainHead { chain, hash: Hash::ZERO, range: CompactRange::default() },
    };
    let registry = registry.map_err(failed)?.map(|row| row.try_get::<_, i64>(0)).transpose().map_err(failed)?;
    Ok((head, registry.unwrap_or(0) as u64))
}

/// Begins a transaction and locks the heads of all chains, in ascending order.
pub(super) async fn lock_heads(session: &Session) -> Result<Vec<ChainHead>, StoreError> {
    let lock = session.prepare(LOCK_HEADS).await.map_err(failed)?;
    let (begun, rows) = futures_util::join!(session.batch_execute("BEGIN"), session.query(&lock, &[]));
    begun.map_err(failed)?;
    rows.map_err(failed)?.iter().map(head_of_row).collect()
}

/// A parameter: one value, or a column of values for `unnest`.
type Parameter<'a> = Box<dyn ToSql + Sync + Send + 'a>;

/// Statements to be sent together.
#[derive(Default)]
struct Step<'a> {
    statements: Vec<(String, Vec<Parameter<'a>>)>,
}

impl<'a> Step<'a> {
    fn add(&mut self, text: impl Into<String>, parameters: Vec<Parameter<'a>>) {
        self.statements.push((text.into(), parameters));
    }

    /// All as one statement, for statements of different tables: the server answers each one by itself, and a lone caller would
    /// wait longer for the answers than for the work. None of them sees what another one writes.
    fn into_one(self) -> Step<'a> {
        let (mut text, mut all) = (String::new(), Vec::new());
        let last = self.statements.len().saturating_sub(1);
        for (at, (statement, parameters)) in self.statements.into_iter().enumerate() {
            let statement = renumbered(&statement, all.len());
            let (opening, closing) = match (at, at == last) {
                (_, true) => (" ".to_owned(), ""),
                (0, _) => ("WITH s0 AS (".to_owned(), ")"),
                _ => (format!(", s{at} AS ("), ")"),
            };
            text += &format!("{opening}{statement}{closing}");
            all.extend(parameters);
        }
        Step { statements: vec![(text, all)] }
    }

    /// Known already, but for the first commit of a connection.
    async fn prepare(&self, session: &Session) -> Result<Vec<Statement>, StoreError> {
        try_join_all(self.statements.iter().map(|(text, _)| session.prepare(text))).await.map_err(failed)
    }

    /// Sends all with `COMMIT` behind them.
    async fn commit(self, session: &Session) -> Result<(), StoreError> {
        let prepared = self.prepare(session).await?;
        self.commit_prepared(session, &prepared).await?.map_err(failed)
    }

    /// The outcome of the transaction follows from what each was answered. The inner error is the server's word for a statement, which means
    /// that its transaction did not commit.
    async fn commit_prepared(
        &self,
        session: &Session,
        prepared: &[Statement],
    ) -> Result<Result<(), Error>, StoreError> {
        let parameters: Vec<Vec<&(dyn ToSql + Sync)>> = self
            .statements
            .iter()
            .map(|(_, parameters)| parameters.iter().map(|p| &**p as &(dyn ToSql + Sync)).collect())
            .collect();
        let notices = session.notices();
        let mut calls: Vec<BoxFuture<'_, Result<(), Error>>> = Vec::with_capacity(prepared.len() + 1);
        for (statement, parameters) in prepared.iter().zip(&parameters) {
            calls.push(async move { session.execute(statement, parameters).await.map(drop) }.boxed());
        }
        calls.push(session.batch_execute("COMMIT").boxed());
        let mut results = join_all(calls).await;
        let commit = results.pop().unwrap_or(Ok(()));
        if let Some(e) = results.into_iter().find_map(Result::err) {
            // A lost connection means nothing.
            return if e.as_db_error().is_some() { Ok(Err(e)) } else { Err(unknown(&e)) };
        }
        commit.map_err(|e| unknown(&e))?;
        if session.notices() != notices {
            return Err(warned());
        }
        Ok(Ok(()))
    }
}

/// Moves the numbers of a statement's parameters.
fn renumbered(statement: &str, by: usize) -> String {
    let mut pieces = statement.split('$');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let digits = piece.find(|c: char| !c.is_ascii_digit()).unwrap_or(piece.len());
        let (number, rest) = piece.split_at(digits);
        // Texts are ours: a dollar is always a parameter.
        text += &format!("${}{rest}", number.parse::<usize>().unwrap_or_default() + by);
    }
    text
}

fn unknown(e: &Error) -> StoreError {
    StoreError::Unknown(crate::connect::explain(e))
}

fn warned() -> StoreError {
    StoreError::Unknown("the database answered the commit with a warning".into())
}

fn value<'a, T: ToSql + Sync + Send + 'a>(value: T) -> Parameter<'a> {
    Box::new(value)
}

/// One column of rows: an array, or of one row the value alone, which costs the server less.
fn column<'r, 'a, R, T: ToSql + Sync + Send + 'a>(rows: &'r [R], f: impl Fn(&'r R) -> T) -> Parameter<'a> {
    match rows {
        [row] => value(f(row)),
        rows => Box::new(rows.iter().map(f).collect::<Vec<T>>()),
    }
}

/// Inserts rows whose columns are parameters made by [`column`]: `columns` are those after the chain, with their types.
fn insert(table: &str, columns: &[(&str, &str)], rows: usize) -> String {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let names = names.join(", ");
    let parameters = |array: &str| {
        let each: Vec<String> = columns.iter().zip(2..).map(|((_, kind), n)| format!("${n}::{kind}{array}")).collect();
        each.join(", ")
    };
    if rows == 1 {
        return format!("INSERT INTO ledger.{table} (chain, {names}) VALUES ($1::integer, {})", parameters(""));
    }
    format!("INSERT INTO ledger.{table} (chain, {names}) SELECT $1::integer, * FROM unnest({})", parameters("[]"))
}

/// Writes a commit in one round trip, if the head is the expected one: begins a transaction, moves the head, looks whether that was done,
/// writes and commits, without waiting for any answer. `false`: nothing was written, and whoever locks first and then looks learns why.
pub(super) async fn commit_at_once(session: &Session, batch: &CommitBatch) -> Result<bool, StoreError> {
    let tolerance = session.clock_tolerance().map_or(IN_FLIGHT, |tolerance| tolerance.min(IN_FLIGHT));
    let mut step = Step::default();
    add_commit(&mut step, batch, Some([here_us(), tolerance.as_micros() as i64]));
    add_rest(&mut step, batch);
    let step = step.into_one();
    let prepared = step.prepare(session).await?;
    let move_head = session.prepare(MOVE_HEAD).await.map_err(failed)?;
    let (chain, size) = (batch.before.chain as i32, batch.after.size() as i64);
    let (hash, range) = (&batch.after.hash.0[..], batch.after.range.to_bytes());
    let (before, before_hash) = (batch.before.size() as i64, &batch.before.hash.0[..]);
    let moved: [&(dyn ToSql + Sync); 6] = [&chain, &size, &hash, &range, &before, &before_hash];
    let (begun, moved, committed) = futures_util::join!(
        session.batch_execute("BEGIN"),
        session.execute(&move_head, &moved),
        step.commit_prepared(session, &prepared)
    );
    if let Some(error) = begun.err().or(moved.err()) {
        // The server's word means that the transaction, which was sent to its end, could not commit.
        return Err(if error.as_db_error().is_some() { failed(error) } else { unknown(&error) });
    }
    match committed? {
        Ok(()) => Ok(true),
        // Under the lock it turns out whether its rows are there because it was stored before.
        Err(e) if matches!(e.code(), Some(&(SqlState::DIVISION_BY_ZERO | SqlState::UNIQUE_VIOLATION))) => Ok(false),
        Err(e) => Err(failed(e)),
    }
}

/// Writes a commit and ends the transaction that holds the head's lock.
pub(super) async fn commit(session: &Session, batch: &CommitBatch) -> Result<(), StoreError> {
    let mut step = Step::default();
    let chain = batch.before.chain as i32;
    let head: [Parameter<'_>; 3] =
        [value(batch.after.size() as i64), value(&batch.after.hash.0[..]), value(batch.after.range.to_bytes())];
    let [size, hash, range] = head;
    if batch.before.size() == 0 {
        if chain == 0 {
            step.add("INSERT INTO ledger.ledger VALUES ($1)", vec![value(&batch.statement.ledger_id.0[..])]);
        }
        step.add("INSERT INTO ledger.chain_heads VALUES ($1, $2, $3, $4)", vec![value(chain), size, hash, range]);
    } else {
        let (before, before_hash) = (value(batch.before.size() as i64), value(&batch.before.hash.0[..]));
        step.add(MOVE_HEAD, vec![value(chain), size, hash, range, before, before_hash]);
    }
    add_commit(&mut step, batch, None);
    add_rest(&mut step, batch);
    step.into_one().commit(session).await
}

/// The row of the commit; with the time and the tolerance of one that is sent at once, only if its head was moved.
fn add_commit<'a>(step: &mut Step<'a>, batch: &'a CommitBatch, at_once: Option<[i64; 2]>) {
    const COLUMNS: &str = "INSERT INTO ledger.commits (chain, first_index, size, registry_size, registry_head)";
    let s = &batch.statement;
    let (chain, registry) = (batch.before.chain as i32, s.registry_size as i64);
    let row = [value(s.first_index as i64), value(i64::from(s.size)), value(&s.registry_head.0[..])];
    match at_once {
        None => {
            let text = format!("{COLUMNS} VALUES ($1, $3, $4, $2, $5)");
            step.add(text, [value(chain), value(registry)].into_iter().chain(row).collect());
        }
        Some([now_us, tolerance_us]) => {
            let (size, hash) = (value(batch.after.size() as i64), value(&batch.after.hash.0[..]));
            let expected = [value(chain), size, hash, value(registry), value(now_us), value(tolerance_us)];
            let text = format!(
                "{COLUMNS} SELECT $1::integer, $7::bigint, $8::bigint, $4::bigint, $9::bytea WHERE ({HEAD_MOVED}) = 1"
            );
            step.add(text, expected.into_iter().chain(row).collect());
        }
    }
}

/// What a commit writes besides its own row and the head.
fn add_rest<'a>(step: &mut Step<'a>, batch: &'a CommitBatch) {
    let chain = batch.before.chain as i32;
    add_entries(step, chain, &batch.entries);
    if !batch.private.is_empty() {
        step.add(
            insert("private_documents", &[("idx", "bigint"), ("document", "bytea")], batch.private.len()),
            vec![value(chain), column(&batch.private, |p| p.0 as i64), column(&batch.private, |p| &p.1[..])],
        );
    }
    if !batch.erase.is_empty() {
        let erased: Vec<i64> = batch.erase.iter().map(|index| *index as i64).collect();
        step.add(
            "DELETE FROM ledger.private_documents WHERE chain = $1 AND idx = ANY($2)",
            vec![value(chain), value(erased)],
        );
    }
    for signature in &batch.signatures {
        step.add(
            "INSERT INTO ledger.commit_signatures (chain, first_index, kid, alg, signature) VALUES ($1, $2, $3, $4, $5)",
            vec![
                value(chain),
                value(batch.statement.first_index as i64),
                value(&signature.kid[..]),
                value(i32::from(signature.alg)),
                value(&signature.signature[..]),
            ],
        );
    }
    add_stream_heads(step, chain, batch);
    if !batch.tiles.is_empty() {
        step.add(
            insert("tiles", &[("level", "integer"), ("n", "bigint"), ("hashes", "bytea")], batch.tiles.len()),
            vec![
                value(chain),
                column(&batch.tiles, |t| t.level as i32),
                column(&batch.tiles, |t| t.n as i64),
                column(&batch.tiles, |t| &t.hashes[..]),
            ],
        );
    }
    if !batch.runs.is_empty() {
        step.add(
            insert("event_id_runs", &[("run", "bigint"), ("ids", "bytea")], batch.runs.len()),
            vec![value(chain), column(&batch.runs, |r| r.0 as i64), column(&batch.runs, |r| &r.1[..])],
        );
    }
    add_rows(step, chain, &batch.rows);
    let size = batch.after.size();
    if batch.before.size() == 0 {
        add_cursors(step, chain, size);
    } else {
        // A projection that was dropped has none, until it is made again.
        step.add("UPDATE ledger.cursors SET size = $2 WHERE chain = $1", vec![value(chain), value(size as i64)]);
    }
}

fn add_entries<'a>(step: &mut Step<'a>, chain: i32, entries: &'a [Entry]) {
    let columns = [
        ("idx", "bigint"),
        ("prev_hash", "bytea"),
        ("stream", "text"),
        ("revision", "bigint"),
        ("parent_hash", "bytea"),
        ("event_id", "bytea"),
        ("event_type", "text"),
        ("schema_version", "integer"),
        ("recorded_at_us", "bigint"),
        ("body_hash", "bytea"),
        ("body_sha256", "bytea"),
        ("entry_hash", "bytea"),
        ("parent_index", "bigint"),
        ("body", "bytea"),
    ];
    step.add(
        insert("entries", &columns, entries.len()),
        vec![
            value(chain),
            column(entries, |e| e.header.index as i64),
            column(entries, |e| &e.header.prev_hash[..]),
            column(entries, |e| &e.header.stream[..]),
            column(entries, |e| e.header.revision as i64),
            column(entries, |e| &e.header.parent_hash[..]),
            column(entries, |e| &e.header.event_id[..]),
            column(entries, |e| &e.header.event_type[..]),
            column(entries, |e| i32::from(e.header.schema_version)),
            column(entries, |e| e.header.recorded_at_us),
            column(entries, |e| &e.header.body_hash[..]),
            column(entries, |e| &e.header.body_sha256[..]),
            column(entries, |e| &e.entry_hash.0[..]),
            column(entries, |e| e.parent_index.map(|i| i as i64)),
            column(entries, |e| &e.body[..]),
        ],
    );
}

fn add_stream_heads<'a>(step: &mut Step<'a>, chain: i32, batch: &'a CommitBatch) {
    let columns = [
        ("stream", "text"),
        ("revision", "bigint"),
        ("head_hash", "bytea"),
        ("head_index", "bigint"),
        ("first_index", "bigint"),
    ];
    let text = insert("stream_heads", &columns, batch.streams.len())
        + " ON CONFLICT (chain, stream) DO UPDATE SET revision = excluded.revision, head_hash = excluded.head_hash, \
             head_index = excluded.head_index";
    step.add(
        text,
        vec![
            value(chain),
            column(&batch.streams, |(name, _)| &name[..]),
            column(&batch.streams, |(_, h)| h.revision as i64),
            column(&batch.streams, |(_, h)| &h.hash.0[..]),
            column(&batch.streams, |(_, h)| h.index as i64),
            column(&batch.streams, |(_, h)| h.first_index as i64),
        ],
    );
}

fn add_cursors(step: &mut Step<'_>, chain: i32, size: u64) {
    let names: Vec<&str> = TABLES.iter().map(|t| t.name).collect();
    step.add(
        "INSERT INTO ledger.cursors (chain, projection, size) SELECT $1::integer, p, $3::bigint FROM unnest($2::text[]) p \
         ON CONFLICT (chain, projection) DO UPDATE SET size = excluded.size",
        vec![value(chain), value(names), value(size as i64)],
    );
}

/// Column types of projections, which have one for each name.
fn column_type(name: &str) -> Type {
    match name {
        "key" => Type::BYTEA,
        "idx" | "amount" | "scale" | "refunded" | "license_index" | "deliveries" | "revision" | "created_at_us"
        | "updated_at_us" | "n" | "proof_index" | "downloads" | "listed_index" => Type::INT8,
        _ => Type::TEXT,
    }
}

fn add_rows<'a>(step: &mut Step<'a>, chain: i32, rows: &'a [Row]) {
    let mut tables: BTreeMap<&str, Vec<&'a Row>> = BTreeMap::new();
    for row in rows {
        tables.entry(row.table.name).or_default().push(row);
    }
    for table in TABLES {
        let Some(rows) = tables.remove(table.name) else { continue };
        let mut parameters = vec![value(chain)];
        for (at, name) in table.columns.iter().enumerate().skip(1) {
            parameters.push(cells(&rows, at, &column_type(name)));
        }
        step.add(upsert(table, rows.len()), parameters);
    }
}

fn cells<'a>(rows: &[&'a Row], at: usize, kind: &Type) -> Parameter<'a> {
    let of = |row: &&'a Row| row.cells.get(at);
    match *kind {
        Type::INT8 => column(rows, |row| if let Some(Cell::Int(n)) = of(row) { Some(*n) } else { None }),
        Type::BYTEA => column(rows, |row| if let Some(Cell::Blob(b)) = of(row) { Some(&b[..]) } else { None }),
        _ => column(rows, |row| if let Some(Cell::Text(t)) = of(row) { Some(&t[..]) } else { None }),
    }
}

fn upsert(table: &Table, rows: usize) -> String {
    let columns: Vec<(&str, String)> =
        table.columns[1..].iter().map(|name| (*name, column_type(name).name().to_owned())).collect();
    let columns: Vec<(&str, &str)> = columns.iter().map(|(name, kind)| (*name, &kind[..])).collect();
    let set: Vec<String> = table.columns[2..].iter().map(|c| format!("{c} = excluded.{c}")).collect();
    // The first entry that carries an idempotency key stays its answer.
    let action = if table.name == "idempotency" { "NOTHING".into() } else { format!("UPDATE SET {}", set.join(", ")) };
    format!("{} ON CONFLICT (chain, {}) DO {action}", insert(table.name, &columns, rows), table.columns[1])
}

/// Writes the head row, does `work`, and commits that: it waits for every transaction that held the lock, and its own
/// commit waits for the standby like any other, and with it for everything before.
async fn confirmed<T>(
    session: &Session,
    chain: i32,
    work: impl AsyncFnOnce(&Session) -> Result<T, Error>,
) -> Result<T, StoreError> {
    let working = async {
        session.batch_execute("BEGIN").await?;
        session.execute("UPDATE ledger.chain_heads SET size = size WHERE chain = $1", &[&chain]).await?;
        work(session).await
    };
    let result = working.await.map_err(failed)?;
    let notices = session.notices();
    session.batch_execute("COMMIT").await.map_err(|e| unknown(&e))?;
    if session.notices() != notices {
        return Err(warned());
    }
    Ok(result)
}

/// The hash of an entry that is durable, and with it all before; `None` if there is none. And the database's clock under the lock.
pub(super) async fn confirmed_hash(
    session: &Session,
    chain: u32,
    index: u64,
) -> Result<(Option<Hash>, i64), StoreError> {
    let (chain, index) = (chain as i32, index as i64);
    let stored = confirmed(session, chain, async |session| {
        let row = session.query_one(CONFIRM, &[&chain, &index]).await?;
        Ok((row.try_get::<_, Option<Vec<u8>>>(0)?, row.try_get::<_, i64>(1)?))
    });
    let (hash, now_us) = stored.await?;
    Ok((hash.as_deref().and_then(Hash::from_slice), now_us))
}

/// Makes all projections of a chain anew and ends the transaction that holds the head's lock.
pub(super) async fn replace_projections(
    session: &Session,
    chain: u32,
    size: u64,
    rows: &[Row],
) -> Result<(), StoreError> {
    let chain = chain as i32;
    let mut step = Step::default();
    for table in TABLES {
        step.add(format!("DELETE FROM ledger.{} WHERE chain = $1", table.name), vec![value(chain)]);
    }
    add_rows(&mut step, chain, rows);
    add_cursors(&mut step, chain, size);
    step.commit(session).await
}

/// Under the head's lock, so that whoever signs this has read what is durable.
pub(super) async fn record_checkpoint(session: &Session, row: &CheckpointRow) -> Result<(), StoreError> {
    let (chain, size) = (row.chain as i32, row.size as i64);
    let recorded = confirmed(session, chain, async |session| {
        let text = "INSERT INTO ledger.checkpoints (chain, size, root) VALUES ($1, $2, $3) ON CONFLICT (chain, size) DO NOTHING";
        session.execute(text, &[&chain, &size, &&row.root.0[..]]).await?;
        let stored = session.query_opt(RECORDED, &[&chain, &size]).await?;
        stored.map(|r| Ok((r.try_get::<_, Vec<u8>>(0)?, r.try_get::<_, Option<i64>>(1)?))).transpose()
    });
    if recorded.await?.is_some_and(|(root, now)| root == row.root.0 && now >= Some(size)) {
        return Ok(());
    }
    Err(StoreError::WentBack(format!(
        "chain {chain} had root {} at size {size} a moment ago, and is shorter now or was recorded with another",
        row.root
    )))
}

pub(super) async fn sign_checkpoint(session: &Session, row: &CheckpointRow) -> Result<(), StoreError> {
    let text = "UPDATE ledger.checkpoints SET note = $4 WHERE chain = $1 AND size = $2 AND root = $3 AND note IS NULL";
    let statement = session.prepare(text).await.map_err(failed)?;
    let (chain, size) = (row.chain as i32, row.size as i64);
    session.execute(&statement, &[&chain, &size, &&row.root.0[..], &row.note]).await.map(drop).map_err(failed)
}
