//! The texts with which rows are looked up, all of them: nothing else can be asked ([`Query`] is made here alone), and a test looks at
//! the plan of each.

use std::borrow::Cow;

use super::write::{CONFIRM, HEAD_MOVED, LOCK_HEAD, LOCK_HEADS, RECORDED, REGISTRY_SIZE};
use crate::domain::projection::{DELIVERIES, ORDERS, SKUS, TABLES, Table};

/// A text that is in [`texts`].
pub(super) struct Query(Cow<'static, str>);

impl Query {
    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

macro_rules! queries {
    ($($(#[$doc:meta])* $name:ident: $text:expr;)*) => {
        $($(#[$doc])* pub(super) const $name: Query = Query(Cow::Borrowed($text));)*
        const FIXED: &[Query] = &[$($name),*];
    };
}

macro_rules! entry_columns {
    () => {
        "chain, idx, prev_hash, stream, revision, parent_hash, event_id, event_type, schema_version, recorded_at_us, body_hash, \
         body_sha256, entry_hash, parent_index, body"
    };
}

queries! {
    HEADS: "SELECT chain, size, head_hash, compact_range FROM ledger.chain_heads ORDER BY chain";
    LEDGER_ID: "SELECT ledger_id FROM ledger.ledger";
    ENTRIES: concat!("SELECT ", entry_columns!(), " FROM ledger.entries WHERE chain = $1 AND idx >= $2 ORDER BY idx LIMIT $3");
    /// Follows the stream's links back from its head: each step finds one row by the primary key, so that no index of stream
    /// names has to grow with every entry. LIMIT keeps each step a look-up: as a join, it may read the whole chain.
    STREAM: concat!(
        "WITH RECURSIVE back AS ( \
         SELECT e.* FROM ledger.stream_heads h \
         CROSS JOIN LATERAL (SELECT * FROM ledger.entries WHERE chain = $1 AND idx = h.head_index LIMIT 1) e \
         WHERE h.chain = $1 AND h.stream = $2 \
         UNION ALL \
         SELECT e.* FROM back b \
         CROSS JOIN LATERAL (SELECT * FROM ledger.entries WHERE chain = $1 AND idx = b.parent_index LIMIT 1) e \
         WHERE b.parent_index < b.idx) \
         SELECT ", entry_columns!(), " FROM back ORDER BY idx"
    );
    STREAM_HEAD: "SELECT revision, head_hash, head_index, first_index FROM ledger.stream_heads WHERE chain = $1 AND stream = $2";
    RUN: "SELECT ids FROM ledger.event_id_runs WHERE chain = $1 AND run = $2";
    COMMITS: "SELECT first_index, size, registry_size, registry_head FROM ledger.commits \
              WHERE chain = $1 AND first_index >= $2 ORDER BY first_index LIMIT $3";
    SIGNATURES: "SELECT first_index, kid, alg, signature FROM ledger.commit_signatures \
                 WHERE chain = $1 AND first_index BETWEEN $2 AND $3 ORDER BY first_index, kid";
    CHECKPOINTS: "SELECT size, root, note FROM ledger.checkpoints WHERE chain = $1 AND size >= $2 ORDER BY size LIMIT $3";
    LAST_CHECKPOINT: "SELECT size, root, note FROM ledger.checkpoints WHERE chain = $1 ORDER BY size DESC LIMIT 1";
    PRIVATE_DOCUMENTS: "SELECT idx, document FROM ledger.private_documents WHERE chain = $1 AND idx >= $2 ORDER BY idx LIMIT $3";
    IDEMPOTENCY: "SELECT idx FROM ledger.idempotency WHERE chain = $1 AND key = $2";
    /// With NULL for keys that are not there. A list would be compared with all keys of the chain, if there were few when this was planned.
    KNOWN_KEYS: "SELECT asked, (SELECT idx FROM ledger.idempotency WHERE chain = $1 AND key = asked) FROM unnest($2::bytea[]) asked";
    KNOWN_STREAMS: "SELECT asked, (SELECT revision FROM ledger.stream_heads WHERE chain = $1 AND stream = asked COLLATE \"C\") \
                    FROM unnest($2::text[]) asked";
    TILE: "SELECT hashes FROM ledger.tiles WHERE chain = $1 AND level = $2 AND n = $3";
}

/// All rows of a projection on a chain, by key.
pub(super) fn rows(table: &Table) -> Query {
    let (columns, key) = (table.columns.join(", "), table.columns[1]);
    Query(format!("SELECT {columns} FROM ledger.{} WHERE chain = $1 ORDER BY {key}", table.name).into())
}

/// The row with a key.
pub(super) fn row(table: &Table) -> Query {
    let (columns, key) = (table.columns.join(", "), table.columns[1]);
    Query(format!("SELECT {columns} FROM ledger.{} WHERE chain = $1 AND {key} = $2", table.name).into())
}

/// Rows from a key on.
pub(super) fn rows_from(table: &Table) -> Query {
    let (columns, key) = (table.columns.join(", "), table.columns[1]);
    let from = format!("ledger.{} WHERE chain = $1 AND {key} >= $2", table.name);
    Query(format!("SELECT {columns} FROM {from} ORDER BY {key} LIMIT $3").into())
}

/// Rows whose keys lie in a range, by their status.
pub(super) fn rows_among(table: &Table) -> Query {
    let (columns, key) = (table.columns.join(", "), table.columns[1]);
    let within = format!("ledger.{} WHERE chain = $1 AND {key} >= $2 AND {key} < $3", table.name);
    Query(format!("SELECT {columns} FROM {within} AND status = ANY ($4::text[]) ORDER BY {key}").into())
}

/// Every text that finds rows by a key: what readers ask, and what is looked up under the head's lock.
pub fn texts() -> Vec<String> {
    let of_tables = TABLES.iter().flat_map(|table| {
        // An idempotency key is looked up by the text of its own.
        let one = (table.name != "idempotency").then(|| row(table));
        // What is given by pages.
        let page = (**table == SKUS).then(|| rows_from(table));
        let among = [&ORDERS, &DELIVERIES].contains(table).then(|| rows_among(table));
        one.into_iter().chain(page).chain(among).chain([rows(table)])
    });
    let fixed = FIXED.iter().map(|query| query.text().to_owned());
    let of_writer = [LOCK_HEAD, LOCK_HEADS, HEAD_MOVED, REGISTRY_SIZE, CONFIRM, RECORDED].map(str::to_owned);
    fixed.chain(of_tables.map(|query| query.0.into_owned())).chain(of_writer).collect()
}
