//! The floors in PostgreSQL: the same rows into the same tables by binary COPY, and the pattern of the system before.

use std::pin::pin;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};
use ledger_engine::domain::projection::{Cell, Row, TABLES, Table};
use ledger_engine::hash::{sha256, to_hex};
use ledger_engine::registry::Purpose;
use ledger_engine::signer::LocalSigner;
use ledger_engine::store::CommitBatch;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, NoTls, Statement};

/// Connects without TLS.
pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a server");
    tokio::spawn(connection);
    client.batch_execute("SET client_min_messages = warning").await.expect("a server");
    client
}

type Value = Box<dyn ToSql + Sync + Send>;

/// A table, and how its columns are sent.
struct Target {
    types: Vec<Type>,
    copy: Statement,
    /// For rows that replace others, which COPY cannot do: moves them from where they were copied to.
    merge: Option<Statement>,
}

/// Writes commits of a ledger with nothing around them: no lock is taken, no head compared, nothing hashed or signed.
pub struct Raw {
    client: Client,
    targets: Vec<(&'static str, Target)>,
}

fn column_types(table: &Table) -> Vec<Type> {
    table
        .columns
        .iter()
        .map(|name| match *name {
            "chain" => Type::INT4,
            "key" => Type::BYTEA,
            "idx" | "amount" | "scale" | "refunded" | "license_index" | "deliveries" | "revision" | "created_at_us"
            | "updated_at_us" | "n" | "proof_index" | "downloads" | "listed_index" => Type::INT8,
            _ => Type::TEXT,
        })
        .collect()
}

impl Raw {
    /// On a database with the ledger's schema.
    pub async fn new(url: &str) -> Raw {
        let client = connect(url).await;
        let (i4, i8, b, t) = (Type::INT4, Type::INT8, Type::BYTEA, Type::TEXT);
        let of = |types: &[&Type]| types.iter().map(|t| (*t).clone()).collect::<Vec<_>>();
        let entries = of(&[&i4, &i8, &b, &t, &i8, &b, &b, &t, &i4, &i8, &b, &b, &b, &i8, &b]);
        let mut raw = Raw { client, targets: Vec::new() };
        raw.add("entries", entries, None).await;
        raw.add("private_documents", of(&[&i4, &i8, &b]), None).await;
        raw.add("commits", of(&[&i4, &i8, &i8, &i8, &b]), None).await;
        raw.add("commit_signatures", of(&[&i4, &i8, &t, &i4, &b]), None).await;
        raw.add("tiles", of(&[&i4, &i4, &i8, &b]), None).await;
        raw.add("event_id_runs", of(&[&i4, &i8, &b]), None).await;
        let heads = "(chain, stream) DO UPDATE SET revision = excluded.revision, head_hash = excluded.head_hash, \
                     head_index = excluded.head_index";
        raw.add("stream_heads", of(&[&i4, &t, &i8, &b, &i8, &i8]), Some(heads.to_owned())).await;
        let chain = "(chain) DO UPDATE SET size = excluded.size, head_hash = excluded.head_hash, compact_range = excluded.compact_range";
        raw.add("chain_heads", of(&[&i4, &i8, &b, &b]), Some(chain.to_owned())).await;
        for table in TABLES {
            let set: Vec<String> = table.columns[2..].iter().map(|c| format!("{c} = excluded.{c}")).collect();
            let key = table.columns[1];
            let action = if set.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", set.join(", ")) };
            raw.add(table.name, column_types(table), Some(format!("(chain, {key}) DO {action}"))).await;
        }
        raw
    }

    async fn add(&mut self, table: &'static str, types: Vec<Type>, merge: Option<String>) {
        let made = async {
            let (to, merge) = match merge {
                None => (format!("ledger.{table}"), None),
                Some(action) => {
                    let staging = format!("CREATE TEMP TABLE {table} (LIKE ledger.{table}) ON COMMIT DELETE ROWS");
                    self.client.batch_execute(&staging).await?;
                    let merge =
                        format!("INSERT INTO ledger.{table} SELECT * FROM pg_temp.{table} ON CONFLICT {action}");
                    (format!("pg_temp.{table}"), Some(self.client.prepare(&merge).await?))
                }
            };
            let copy = self.client.prepare(&format!("COPY {to} FROM STDIN (FORMAT binary)")).await?;
            Ok::<_, Error>(Target { types, copy, merge })
        };
        let target = made.await.expect("the ledger's schema");
        self.targets.push((table, target));
    }

    /// Writes each batch in a transaction of its own. Returns how many entries were written.
    pub async fn write(&self, batches: &[CommitBatch]) -> u64 {
        let mut written = 0;
        for batch in batches {
            self.write_batch(batch).await.expect("rows that fit");
            written += batch.entries.len() as u64;
        }
        written
    }

    /// All statements are sent together, as the ledger does: the floor must not wait for answers that nobody needs.
    async fn write_batch(&self, batch: &CommitBatch) -> Result<(), Error> {
        let mut calls: Vec<BoxFuture<'_, Result<(), Error>>> = vec![self.client.batch_execute("BEGIN").boxed()];
        for (table, target) in &self.targets {
            let rows = rows_of(table, batch);
            if rows.is_empty() {
                continue;
            }
            calls.push(self.copy(target, rows).boxed());
            if let Some(merge) = &target.merge {
                calls.push(async move { self.client.execute(merge, &[]).await.map(drop) }.boxed());
            }
        }
        calls.push(self.client.batch_execute("COMMIT").boxed());
        try_join_all(calls).await.map(drop)
    }

    async fn copy(&self, target: &Target, rows: Vec<Vec<Value>>) -> Result<(), Error> {
        let sink = self.client.copy_in(&target.copy).await?;
        let mut writer = pin!(BinaryCopyInWriter::new(sink, &target.types));
        for row in &rows {
            let row: Vec<&(dyn ToSql + Sync)> = row.iter().map(|v| &**v as &(dyn ToSql + Sync)).collect();
            writer.as_mut().write(&row).await?;
        }
        writer.finish().await.map(drop)
    }
}

fn cell(cell: &Cell, kind: &Type) -> Value {
    match (cell, kind) {
        (Cell::Int(n), &Type::INT4) => Box::new(*n as i32),
        (Cell::Int(n), _) => Box::new(*n),
        (Cell::Text(t), _) => Box::new(t.clone()),
        (Cell::Blob(b), _) => Box::new(b.clone()),
        (Cell::Null, &Type::INT8) => Box::new(None::<i64>),
        (Cell::Null, &Type::BYTEA) => Box::new(None::<Vec<u8>>),
        (Cell::Null, _) => Box::new(None::<String>),
    }
}

fn rows_of(table: &str, batch: &CommitBatch) -> Vec<Vec<Value>> {
    let chain = batch.before.chain as i32;
    let s = &batch.statement;
    macro_rules! row {
        ($($value:expr),*) => { vec![$(Box::new($value) as Value),*] };
    }
    match table {
        "entries" => batch
            .entries
            .iter()
            .map(|e| {
                let h = &e.header;
                row![
                    chain,
                    h.index as i64,
                    h.prev_hash.to_vec(),
                    h.stream.clone(),
                    h.revision as i64,
                    h.parent_hash.to_vec(),
                    h.event_id.to_vec(),
                    h.event_type.clone(),
                    i32::from(h.schema_version),
                    h.recorded_at_us,
                    h.body_hash.to_vec(),
                    h.body_sha256.to_vec(),
                    e.entry_hash.0.to_vec(),
                    e.parent_index.map(|i| i as i64),
                    e.body.clone()
                ]
            })
            .collect(),
        "private_documents" => batch.private.iter().map(|(i, d)| row![chain, *i as i64, d.clone()]).collect(),
        "commits" => vec![row![
            chain,
            s.first_index as i64,
            i64::from(s.size),
            s.registry_size as i64,
            s.registry_head.0.to_vec()
        ]],
        "commit_signatures" => batch
            .signatures
            .iter()
            .map(|g| row![chain, s.first_index as i64, g.kid.clone(), i32::from(g.alg), g.signature.clone()])
            .collect(),
        "tiles" => batch.tiles.iter().map(|t| row![chain, t.level as i32, t.n as i64, t.hashes.clone()]).collect(),
        "event_id_runs" => batch.runs.iter().map(|(n, ids)| row![chain, *n as i64, ids.clone()]).collect(),
        "stream_heads" => batch
            .streams
            .iter()
            .map(|(name, h)| {
                let (hash, index, first) = (h.hash.0.to_vec(), h.index as i64, h.first_index as i64);
                row![chain, name.clone(), h.revision as i64, hash, index, first]
            })
            .collect(),
        "chain_heads" => {
            let a = &batch.after;
            vec![row![chain, a.size() as i64, a.hash.0.to_vec(), a.range.to_bytes()]]
        }
        _ => {
            let cells = |row: &Row| {
                let types = column_types(row.table);
                row.cells.iter().zip(&types).map(|(c, t)| cell(c, t)).collect()
            };
            batch.rows.iter().filter(|row| row.table.name == table).map(cells).collect()
        }
    }
}

/// What the system before did for each event: read the last hash, hash, sign, insert, commit.
pub struct OldPattern {
    client: Client,
    key: LocalSigner,
    statements: [Statement; 2],
}

impl OldPattern {
    /// With an empty table of its own.
    pub async fn new(url: &str) -> OldPattern {
        let client = connect(url).await;
        let made = async {
            client
                .batch_execute(
                    "CREATE TABLE public.audit_events (id bigserial PRIMARY KEY, actor_id text, event_type text, payload jsonb, \
                     occurred_at timestamptz DEFAULT now(), hash text, prev_hash text, signature text, kid text)",
                )
                .await?;
            let last = "SELECT hash FROM public.audit_events ORDER BY id DESC LIMIT 1 FOR UPDATE";
            let insert = "INSERT INTO public.audit_events (actor_id, event_type, payload, hash, prev_hash, signature, kid) \
                          VALUES ($1, $2, $3::text::jsonb, $4, $5, $6, 'k1')";
            Ok::<_, Error>([client.prepare(last).await?, client.prepare(insert).await?])
        };
        let statements = made.await.expect("a database");
        OldPattern { client, key: LocalSigner::from_seed(Purpose::Commit, &[4; 32]), statements }
    }

    /// Records events one after the other.
    pub async fn record(&self, bodies: &[String]) {
        for body in bodies {
            self.record_one(body).await.expect("a row that fits");
        }
    }

    async fn record_one(&self, body: &str) -> Result<(), Error> {
        let [last, insert] = &self.statements;
        self.client.batch_execute("BEGIN").await?;
        let before: Option<String> = self.client.query_opt(last, &[]).await?.map(|row| row.get(0));
        let before = before.unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
        let hash = sha256(&[before.as_bytes(), &now.to_le_bytes(), body.as_bytes()]);
        let signature = to_hex(&self.key.signature(&hash.0));
        let (actor, kind) = ("service:market", "order.event");
        self.client.execute(insert, &[&actor, &kind, &body, &hash.to_hex(), &before, &signature]).await?;
        self.client.batch_execute("COMMIT").await
    }
}
