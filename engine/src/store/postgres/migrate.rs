//! The schema's steps, and what must be true of a server before anything is written to it.

use futures_util::FutureExt as _;
use refinery::embed_migrations;
use tokio_postgres::Client;

use super::session::{Session, failed};
use crate::connect::{explain, settings};
use crate::store::StoreError;

embed_migrations!("../migrations/postgres");

/// The schema that this program writes.
pub const SCHEMA_VERSION: i32 = 1;

const HISTORY: &str = "ledger.schema_history";

/// Settings of the database that `migrate` makes, as `ALTER DATABASE … SET` takes them.
const DATABASE_SETTINGS: [(&str, &str); 5] = [
    ("idle_in_transaction_session_timeout", "10s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "3"),
    ("tcp_keepalives_count", "3"),
    ("synchronous_commit", "on"),
];

/// What a migration did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// Names of the steps that were applied now, such as `V1__ledger`.
    pub applied: Vec<String>,
    /// The schema afterwards.
    pub version: i32,
}

/// Applies the steps that are missing, each in a transaction, and makes the database's settings. Needs the right to create
/// a schema and roles, and to alter the database.
pub fn migrate(url: &str) -> Result<Migrated, StoreError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| StoreError::Unavailable(format!("cannot start a runtime: {e}")))?;
    runtime.block_on(apply(url))
}

async fn apply(url: &str) -> Result<Migrated, StoreError> {
    let (config, tls) = settings(url, "ledger migrate").map_err(StoreError::Unusable)?;
    let (mut client, connection) = config.connect(tls).await.map_err(|e| StoreError::Unavailable(explain(&e)))?;
    let driver = tokio::spawn(connection.map(drop));
    // One migration at a time; the lock ends with the connection.
    let begin = "SET client_min_messages = warning; SELECT pg_advisory_lock(hashtext('ledger migrate')); \
                 CREATE SCHEMA IF NOT EXISTS ledger";
    client.batch_execute(begin).await.map_err(failed)?;
    if exists(&client).await? {
        compare(&client, false).await?;
    }
    let mut runner = migrations::runner();
    runner.set_migration_table_name(HISTORY);
    let report = runner.run_async(&mut client).await.map_err(|e| {
        let mut text = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        StoreError::Unusable(format!(
            "{text}; nothing of this step was kept: mend the cause and run `ledger migrate` again"
        ))
    })?;
    let name: String = client.query_one("SELECT quote_ident(current_database())", &[]).await.map_err(failed)?.get(0);
    for (setting, value) in DATABASE_SETTINGS {
        // A stronger guarantee stays as it is.
        let stronger = "SELECT $1 = 'synchronous_commit' AND current_setting('synchronous_commit') = 'remote_apply'";
        if client.query_one(stronger, &[&setting]).await.map_err(failed)?.get(0) {
            continue;
        }
        let text = format!("ALTER DATABASE {name} SET {setting} = '{value}'");
        client.batch_execute(&text).await.map_err(failed)?;
    }
    drop(client);
    let _ = driver.await;
    let applied = report.applied_migrations().iter().map(ToString::to_string).collect();
    Ok(Migrated { applied, version: SCHEMA_VERSION })
}

async fn exists(client: &Client) -> Result<bool, StoreError> {
    let row = client.query_one("SELECT to_regclass('ledger.schema_history') IS NOT NULL", &[]).await.map_err(failed)?;
    row.try_get(0).map_err(failed)
}

/// Compares the steps that were applied with those that this program knows.
async fn compare(client: &Client, all: bool) -> Result<(), StoreError> {
    let rows = client
        .query("SELECT version, name::text, checksum::text FROM ledger.schema_history ORDER BY version", &[])
        .await
        .map_err(failed)?;
    let runner = migrations::runner();
    let known = runner.get_migrations();
    for row in &rows {
        let (version, name, checksum): (i32, &str, &str) = (row.get(0), row.get(1), row.get(2));
        match known.iter().find(|m| i64::from(m.version()) == i64::from(version)) {
            None => {
                return Err(StoreError::Unusable(format!(
                    "the database has schema {version}, this program knows {SCHEMA_VERSION}; use the newer program"
                )));
            }
            Some(m) if m.name() != name || m.checksum().to_string() != checksum => {
                return Err(StoreError::Unusable(format!(
                    "the database's schema step {version} ({name}) is not the one that this program knows: it was changed by hand or \
                     comes from another build; find out which before anything is written"
                )));
            }
            Some(_) => {}
        }
    }
    if all && rows.len() < known.len() {
        let text = format!(
            "the database's schema has {} of {} steps; run `ledger migrate` as its owner",
            rows.len(),
            known.len()
        );
        return Err(StoreError::Unusable(text));
    }
    Ok(())
}

/// Refuses a database without the schema, with a newer one, or with one that was changed.
pub(super) async fn check_schema(session: &Session) -> Result<(), StoreError> {
    if !exists(session).await? {
        let text = "the database has no ledger schema; run `ledger migrate` as a role that may create it";
        return Err(StoreError::Unusable(text.into()));
    }
    compare(session, true).await
}

/// Refuses a server on which an answer would not mean durable, or a dead process could hold a lock for long.
pub(super) async fn check_server(session: &Session) -> Result<(), StoreError> {
    let text = "SELECT current_setting('server_version_num')::int, current_setting('fsync'), current_setting('full_page_writes'), \
                current_setting('synchronous_commit'), current_setting('synchronous_standby_names') <> '', \
                (SELECT reset_val FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'), \
                current_setting('tcp_keepalives_idle')::int, inet_client_addr() IS NULL";
    let row = session.query_one(text, &[]).await.map_err(failed)?;
    let (version, fsync, pages, commit): (i32, &str, &str, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
    let (standby, idle, keepalives, by_socket): (bool, &str, i32, bool) =
        (row.get(4), row.get(5), row.get(6), row.get(7));
    let wrong = if version < 150_000 {
        format!("the server is PostgreSQL {}; 15 or newer is needed", version / 10_000)
    } else if fsync != "on" {
        "the server runs with fsync = off: a power cut would lose or tear what was answered; set fsync = on".into()
    } else if pages != "on" {
        "the server runs with full_page_writes = off: a power cut would tear pages; set full_page_writes = on".into()
    } else if commit == "off" || commit == "local" && standby {
        format!(
            "synchronous_commit is {commit}: an answer would not mean durable; set it to on or remote_apply, or run `ledger migrate`"
        )
    } else if idle == "0" {
        "idle_in_transaction_session_timeout is 0: a dead process could hold a chain for ever; run `ledger migrate`"
            .into()
    } else if !by_socket && !(1..=60).contains(&keepalives) {
        format!(
            "tcp_keepalives_idle is {keepalives} s: a dead process could hold a chain so long; run `ledger migrate`"
        )
    } else {
        return Ok(());
    };
    Err(StoreError::Unusable(wrong))
}
