//! Ledgers in a real PostgreSQL, each in a database of its own.

use std::path::Path;
use std::sync::{Arc, Mutex};

use ledger_engine::hash::Hash;
use ledger_engine::ledger::Ledger;
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore, migrate};
use test_servers::Server;

use super::{config, genesis};

/// The last part of a URL.
pub fn name_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap()
}

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

/// A new database whose entries lie in ranges, the last of which was added later.
pub fn partitioned_database() -> String {
    let url = database();
    let name = name_of(&url);
    let sql = include_str!("../../../migrations/postgres/partitioned.sql")
        .replace("30000000", "100")
        .replace("20000000", "60")
        .replace("10000000", "20");
    Server::shared().psql(name, &sql);
    Server::shared().psql(name, "SELECT ledger.add_range(1000000)");
    url
}

/// The same database for a login role that is a member of `ledger_writer` and nothing else.
pub fn as_writer(url: &str) -> String {
    as_member(url, "shop", "ledger_writer")
}

/// The same database for a login role that is a member of `ledger_auditor` and nothing else.
pub fn as_auditor(url: &str) -> String {
    as_member(url, "reader", "ledger_auditor")
}

fn as_member(url: &str, login: &str, role: &str) -> String {
    // Roles belong to the server that all tests of a process share.
    static MAKING: Mutex<()> = Mutex::new(());
    let _alone = MAKING.lock().unwrap();
    let server = Server::shared();
    if server.psql("postgres", &format!("SELECT count(*) FROM pg_roles WHERE rolname = '{login}'")) == "0" {
        server.psql("postgres", &format!("CREATE ROLE {login} LOGIN NOSUPERUSER IN ROLE {role}"));
    }
    server.url_of(login, name_of(url))
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

/// A connection of the test's own.
pub async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
