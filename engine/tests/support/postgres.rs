//! Ledgers in a real PostgreSQL, each in a database of its own.

use std::path::Path;
use std::sync::Arc;

use ledger_engine::hash::Hash;
use ledger_engine::ledger::Ledger;
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore, migrate};
use test_servers::Server;

use super::{config, genesis};

/// A new database with the schema.
pub fn database() -> String {
    let url = Server::shared().database();
    migrate_away(&url);
    url
}

/// Migrating blocks, which an async test may not.
pub fn migrate_away(url: &str) {
    std::thread::scope(|s| s.spawn(|| migrate(url).unwrap()).join().unwrap());
}

/// A new database whose entries lie in three ranges.
pub fn partitioned_database() -> String {
    let url = database();
    let name = url.rsplit('/').next().unwrap();
    let sql = include_str!("../../../migrations/postgres/partitioned.sql")
        .replace("20000000", "60")
        .replace("10000000", "20");
    Server::shared().psql(name, &sql);
    url
}

/// Simulated time has nothing to do with the server's clock.
pub fn options(url: &str) -> PostgresOptions {
    PostgresOptions { clock_tolerance: None, ..PostgresOptions::new(url) }
}

pub fn store(url: &str) -> Arc<PostgresStore> {
    Arc::new(PostgresStore::open(options(url)).unwrap())
}

pub async fn create(url: &str, chains: u32) -> Ledger {
    Ledger::create(config(store(url)), genesis(chains)).await.unwrap()
}

pub async fn open(url: &str) -> Ledger {
    Ledger::open(config(store(url))).await.unwrap()
}

/// Judges a ledger with the verifier, which blocks.
pub async fn verify(url: &str, id: Hash) {
    let url = url.to_owned();
    let judge = move || audit_verify::verify_path(Path::new(&url), Some(id));
    let report = tokio::task::spawn_blocking(judge).await.unwrap();
    assert_eq!(report.exit(), 0, "{}", report.to_text());
}
