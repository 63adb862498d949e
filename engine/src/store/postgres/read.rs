//! Queries. Each is prepared once for a connection and finds its rows by a key that begins with the chain.

use std::ops::Range;

use tokio_postgres::Row as SqlRow;
use tokio_postgres::types::{FromSql, ToSql, Type};

use super::queries::{self, Query};
use super::session::{Session, failed};
use crate::commit::CommitSignature;
use crate::domain::projection::{Cell, Row, Table};
use crate::hash::Hash;
use crate::header::{FORMAT_VERSION, Header};
use crate::merkle::CompactRange;
use crate::store::{ChainHead, CheckpointRow, Entry, LookedUp, StoreError, StoredCommit, StreamHead};

async fn ask(session: &Session, query: &Query, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<SqlRow>, StoreError> {
    let statement = session.prepare(query.text()).await.map_err(failed)?;
    session.query(&statement, parameters).await.map_err(failed)
}

fn get<'a, T: FromSql<'a>>(row: &'a SqlRow, at: usize) -> Result<T, StoreError> {
    row.try_get(at).map_err(|e| StoreError::Corrupt(format!("column {at}: {e}; verify the ledger")))
}

fn count(row: &SqlRow, at: usize) -> Result<u64, StoreError> {
    get::<i64>(row, at).map(|n| n as u64)
}

fn hash(row: &SqlRow, at: usize) -> Result<Hash, StoreError> {
    let malformed = || StoreError::Corrupt(format!("column {at}: not 32 bytes; verify the ledger"));
    Hash::from_slice(get(row, at)?).ok_or_else(malformed)
}

/// Columns chain, size, head_hash, compact_range.
pub(super) fn head_of_row(row: &SqlRow) -> Result<ChainHead, StoreError> {
    let bad = || StoreError::Corrupt("a row of chain_heads is malformed; verify the ledger".into());
    let range = CompactRange::from_bytes(count(row, 1)?, get(row, 3)?).ok_or_else(bad)?;
    Ok(ChainHead { chain: get::<i32>(row, 0)? as u32, hash: hash(row, 2)?, range })
}

pub(super) async fn heads(session: &Session) -> Result<Vec<ChainHead>, StoreError> {
    ask(session, &queries::HEADS, &[]).await?.iter().map(head_of_row).collect()
}

/// Why nobody is to open the ledger for writing.
pub(super) async fn held(s: &Session) -> Result<Option<String>, StoreError> {
    let text = "SELECT obj_description('ledger'::regnamespace, 'pg_namespace')";
    let comment: Option<String> = s.query_one(text, &[]).await.map_err(failed)?.get(0);
    Ok(comment.and_then(|comment| comment.strip_prefix(super::HELD).map(str::to_owned)))
}

pub(super) async fn ledger_id(session: &Session) -> Result<Option<Hash>, StoreError> {
    let rows = ask(session, &queries::LEDGER_ID, &[]).await?;
    rows.first().map(|row| hash(row, 0)).transpose()
}

fn entry(row: &SqlRow, ledger_id: Hash) -> Result<Entry, StoreError> {
    let id: &[u8] = get(row, 6)?;
    let version = u16::try_from(get::<i32>(row, 8)?)
        .map_err(|_| StoreError::Corrupt("schema_version is out of range; verify the ledger".into()))?;
    let header = Header {
        format_version: FORMAT_VERSION,
        ledger_id: ledger_id.0,
        chain: get::<i32>(row, 0)? as u32,
        index: count(row, 1)?,
        prev_hash: hash(row, 2)?.0,
        stream: get(row, 3)?,
        revision: count(row, 4)?,
        parent_hash: hash(row, 5)?.0,
        event_id: id
            .try_into()
            .map_err(|_| StoreError::Corrupt("event_id is not 16 bytes; verify the ledger".into()))?,
        event_type: get(row, 7)?,
        schema_version: version,
        recorded_at_us: get(row, 9)?,
        body_hash: hash(row, 10)?.0,
        body_sha256: hash(row, 11)?.0,
    };
    Ok(Entry {
        header,
        entry_hash: hash(row, 12)?,
        parent_index: get::<Option<i64>>(row, 13)?.map(|i| i as u64),
        body: get(row, 14)?,
    })
}

pub(super) async fn entries(
    session: &Session,
    ledger_id: Hash,
    chain: u32,
    from: u64,
    limit: usize,
) -> Result<Vec<Entry>, StoreError> {
    let rows = ask(session, &queries::ENTRIES, &[&(chain as i32), &(from as i64), &(limit as i64)]).await?;
    rows.iter().map(|row| entry(row, ledger_id)).collect()
}

pub(super) async fn stream(
    session: &Session,
    ledger_id: Hash,
    chain: u32,
    stream: &str,
) -> Result<Vec<Entry>, StoreError> {
    let rows = ask(session, &queries::STREAM, &[&(chain as i32), &stream]).await?;
    let entries: Vec<Entry> = rows.iter().map(|row| entry(row, ledger_id)).collect::<Result<_, _>>()?;
    let whole = entries.iter().zip(1..).all(|(e, n)| e.header.stream == stream && e.header.revision == n);
    if !whole {
        let text = format!("stream {stream} of chain {chain} does not hold together; verify the ledger");
        return Err(StoreError::Corrupt(text));
    }
    Ok(entries)
}

pub(super) async fn stream_head(session: &Session, chain: u32, stream: &str) -> Result<Option<StreamHead>, StoreError> {
    let rows = ask(session, &queries::STREAM_HEAD, &[&(chain as i32), &stream]).await?;
    let head = |row: &SqlRow| {
        Ok(StreamHead {
            revision: count(row, 0)?,
            hash: hash(row, 1)?,
            index: count(row, 2)?,
            first_index: count(row, 3)?,
        })
    };
    rows.first().map(head).transpose()
}

pub(super) async fn run(session: &Session, chain: u32, run: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let rows = ask(session, &queries::RUN, &[&(chain as i32), &(run as i64)]).await?;
    rows.first().map(|row| get(row, 0)).transpose()
}

pub(super) async fn commits(
    session: &Session,
    chain: u32,
    from: u64,
    limit: usize,
) -> Result<Vec<StoredCommit>, StoreError> {
    let rows = ask(session, &queries::COMMITS, &[&(chain as i32), &(from as i64), &(limit as i64)]).await?;
    let commit = |row: &SqlRow| {
        Ok(StoredCommit {
            first_index: count(row, 0)?,
            size: count(row, 1)?,
            registry_size: count(row, 2)?,
            registry_head: hash(row, 3)?,
            signatures: Vec::new(),
        })
    };
    let mut commits = rows.iter().map(commit).collect::<Result<Vec<_>, StoreError>>()?;
    let Some((first, last)) = commits.first().zip(commits.last()).map(|(f, l)| (f.first_index, l.first_index)) else {
        return Ok(commits);
    };
    for row in ask(session, &queries::SIGNATURES, &[&(chain as i32), &(first as i64), &(last as i64)]).await? {
        let alg = u8::try_from(get::<i32>(&row, 2)?)
            .map_err(|_| StoreError::Corrupt("a signature's alg is out of range; verify the ledger".into()))?;
        let signature = CommitSignature { kid: get(&row, 1)?, alg, signature: get(&row, 3)? };
        let first_index = count(&row, 0)?;
        if let Ok(at) = commits.binary_search_by_key(&first_index, |c| c.first_index) {
            commits[at].signatures.push(signature);
        }
    }
    Ok(commits)
}

fn checkpoint(chain: u32, row: &SqlRow) -> Result<CheckpointRow, StoreError> {
    Ok(CheckpointRow { chain, size: count(row, 0)?, root: hash(row, 1)?, note: get(row, 2)? })
}

pub(super) async fn checkpoints(
    session: &Session,
    chain: u32,
    size: u64,
    limit: usize,
) -> Result<Vec<CheckpointRow>, StoreError> {
    let rows = ask(session, &queries::CHECKPOINTS, &[&(chain as i32), &(size as i64), &(limit as i64)]).await?;
    rows.iter().map(|row| checkpoint(chain, row)).collect()
}

pub(super) async fn last_checkpoint(session: &Session, chain: u32) -> Result<Option<CheckpointRow>, StoreError> {
    let rows = ask(session, &queries::LAST_CHECKPOINT, &[&(chain as i32)]).await?;
    rows.first().map(|row| checkpoint(chain, row)).transpose()
}

pub(super) async fn private_documents(
    session: &Session,
    chain: u32,
    from: u64,
    limit: usize,
) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
    let rows = ask(session, &queries::PRIVATE_DOCUMENTS, &[&(chain as i32), &(from as i64), &(limit as i64)]).await?;
    rows.iter().map(|row| Ok((count(row, 0)?, get(row, 1)?))).collect()
}

pub(super) async fn idempotency(session: &Session, chain: u32, key: &Hash) -> Result<Option<u64>, StoreError> {
    let rows = ask(session, &queries::IDEMPOTENCY, &[&(chain as i32), &&key.0[..]]).await?;
    rows.first().map(|row| count(row, 0)).transpose()
}

/// In one round trip.
pub(super) async fn look_up(
    session: &Session,
    chain: u32,
    keys: &[Hash],
    streams: &[String],
) -> Result<LookedUp, StoreError> {
    let chain = chain as i32;
    let keys: Vec<&[u8]> = keys.iter().map(|key| &key.0[..]).collect();
    let of_keys: [&(dyn ToSql + Sync); 2] = [&chain, &keys];
    let of_streams: [&(dyn ToSql + Sync); 2] = [&chain, &streams];
    let (known, there) = futures_util::try_join!(
        ask(session, &queries::KNOWN_KEYS, &of_keys),
        ask(session, &queries::KNOWN_STREAMS, &of_streams)
    )?;
    let mut found = LookedUp::default();
    for row in &known {
        if let Some(index) = get::<Option<i64>>(row, 1)? {
            found.keys.insert(hash(row, 0)?, index as u64);
        }
    }
    for row in &there {
        if get::<Option<i64>>(row, 1)?.is_some() {
            found.streams.insert(get(row, 0)?);
        }
    }
    Ok(found)
}

pub(super) async fn tile(session: &Session, chain: u32, level: u32, n: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let rows = ask(session, &queries::TILE, &[&(chain as i32), &(level as i32), &(n as i64)]).await?;
    rows.first().map(|row| get(row, 0)).transpose()
}

/// Which rows of a projection on a chain.
pub(super) enum Wanted<'a> {
    All,
    /// The one that the entry at an index made.
    At(u64),
    /// So many from an index on.
    From(u64, usize),
    /// Those in a range of indexes that have one of these statuses.
    Among(Range<u64>, &'a [&'a str]),
}

/// Rows of a projection on a chain, by key.
pub(super) async fn rows(
    session: &Session,
    table: &'static Table,
    chain: u32,
    wanted: Wanted<'_>,
) -> Result<Vec<Row>, StoreError> {
    let chain = chain as i32;
    let found = match wanted {
        Wanted::All => ask(session, &queries::rows(table), &[&chain]).await?,
        Wanted::At(index) => ask(session, &queries::row(table), &[&chain, &(index as i64)]).await?,
        Wanted::From(from, limit) => {
            ask(session, &queries::rows_from(table), &[&chain, &(from as i64), &(limit as i64)]).await?
        }
        Wanted::Among(Range { start, end }, statuses) => {
            ask(session, &queries::rows_among(table), &[&chain, &(start as i64), &(end as i64), &statuses]).await?
        }
    };
    found
        .iter()
        .map(|row| {
            let cells = (0..table.columns.len()).map(|at| cell(row, at)).collect::<Result<_, _>>()?;
            Ok(Row { table, cells })
        })
        .collect()
}

fn cell(row: &SqlRow, at: usize) -> Result<Cell, StoreError> {
    let kind = row.columns().get(at).map(|c| c.type_().clone());
    Ok(match kind {
        Some(Type::INT4) => get::<Option<i32>>(row, at)?.map_or(Cell::Null, |n| Cell::Int(n.into())),
        Some(Type::INT8) => get::<Option<i64>>(row, at)?.map_or(Cell::Null, Cell::Int),
        Some(Type::BYTEA) => get::<Option<Vec<u8>>>(row, at)?.map_or(Cell::Null, Cell::Blob),
        _ => get::<Option<String>>(row, at)?.map_or(Cell::Null, Cell::Text),
    })
}
