//! What a server must be like before anything is written to it: its schema, its settings, and who it proves to be.
#![allow(missing_docs)]

mod support;

use ledger_engine::store::StoreError;
use ledger_engine::store::postgres::PostgresStore;
use support::{config, create_order, genesis, list_sku, postgres};
use test_servers::Server;

fn name_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap()
}

fn open(url: &str) -> Result<PostgresStore, StoreError> {
    PostgresStore::open(postgres::options(url))
}

fn refusal(url: &str) -> String {
    open(url).map(drop).expect_err("it was opened").to_string()
}

/// The steps of the migration lead to the schema that lies beside them. After a new step:
/// `UPDATE_SCHEMA=1 cargo test -p ledger-engine --test postgres_server`.
#[test]
fn the_steps_lead_to_the_schema() {
    let server = Server::shared();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/postgres/schema.sql");
    let migrated = server.database();
    postgres::migrate_away(&migrated);
    let steps = server.schema_of(name_of(&migrated));
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        let head = "-- The current schema, which the steps lead to; a test compares them. For reading, and for tools that compare schemas: \
                    `ledger migrate`\n-- makes it, with the roles that it needs.\n\n";
        std::fs::write(path, format!("{head}{}\n", steps.trim_end())).unwrap();
    }
    let whole = server.database();
    server.psql(name_of(&whole), &std::fs::read_to_string(path).unwrap());
    assert_eq!(server.schema_of(name_of(&whole)), steps);
    assert!(steps.contains("CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON ledger.entries"), "{steps}");
}

/// Each setting without which an answer would not mean durable, or a dead process could hold a chain: `migrate` makes it where it
/// can, and the start refuses a server without it.
#[test]
fn settings_are_made_and_checked() {
    let server = Server::start_durable("");
    let url = server.database();
    let name = name_of(&url);
    postgres::migrate_away(&url);
    let made = server.psql(
        name,
        "SELECT string_agg(setting, ' ' ORDER BY setting) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, \
         unnest(setconfig) setting WHERE d.datname = current_database()",
    );
    let expected = "idle_in_transaction_session_timeout=10s synchronous_commit=on tcp_keepalives_count=3 tcp_keepalives_idle=10 \
                    tcp_keepalives_interval=3";
    assert_eq!(made, expected);
    open(&url).unwrap();

    // Of the database: `migrate` mends it.
    for (setting, value, said) in [
        ("idle_in_transaction_session_timeout", "0", "idle_in_transaction_session_timeout is 0"),
        ("tcp_keepalives_idle", "7200", "tcp_keepalives_idle is 7200 s"),
        ("synchronous_commit", "off", "synchronous_commit is off"),
    ] {
        server.psql("postgres", &format!("ALTER DATABASE {name} SET {setting} = '{value}'"));
        let refused = refusal(&url);
        assert!(refused.contains(said) && refused.contains("ledger migrate"), "{refused}");
        postgres::migrate_away(&url);
        open(&url).unwrap();
    }
    // With a standby, `local` is not enough; without, it is durable here.
    server.psql("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = 'local'"));
    open(&url).unwrap();
    server.psql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (nobody)'");
    server.psql("postgres", "SELECT pg_reload_conf()");
    server.until("SELECT current_setting('synchronous_standby_names') <> ''");
    assert!(refusal(&url).contains("synchronous_commit is local"), "{}", refusal(&url));
    server.psql("postgres", "ALTER SYSTEM RESET synchronous_standby_names");
    // Of the server: its administrator must.
    for setting in ["fsync", "full_page_writes"] {
        server.psql("postgres", &format!("ALTER SYSTEM SET {setting} = off"));
        server.psql("postgres", "SELECT pg_reload_conf()");
        server.until(&format!("SELECT current_setting('{setting}') = 'off'"));
        let refused = refusal(&url);
        assert!(refused.contains(&format!("{setting} = off")), "{refused}");
        server.psql("postgres", &format!("ALTER SYSTEM RESET {setting}"));
        server.psql("postgres", "SELECT pg_reload_conf()");
        server.until(&format!("SELECT current_setting('{setting}') = 'on'"));
    }
    open(&url).unwrap();
    // The stronger guarantee stays.
    server.psql("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = 'remote_apply'"));
    postgres::migrate_away(&url);
    assert_eq!(server.psql(name, "SHOW synchronous_commit"), "remote_apply");
}

/// Writes go to the server that the certificate names, encrypted, or nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_must_be_the_one_that_is_meant() {
    let server = tokio::task::spawn_blocking(|| Server::start_tls_with("")).await.unwrap();
    server.psql("postgres", "CREATE ROLE secure LOGIN SUPERUSER");
    let name = name_of(&server.database()).to_owned();
    let [ca, other] = server.roots();
    let base = server.url_of("secure", &name);
    let url = format!("{base}?sslmode=verify-full&sslrootcert={ca}");
    postgres::migrate_away(&url);
    let ledger = ledger_engine::ledger::Ledger::create(config(postgres::store(&url)), genesis(2)).await.unwrap();
    list_sku(&ledger, "s").await;
    create_order(&ledger, "ann", "s").await;
    let plain =
        "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE usename = 'secure' AND NOT ssl";
    assert_eq!(server.psql(&name, plain), "0");
    let refused = refusal(&format!("{base}?sslmode=verify-full&sslrootcert={other}"));
    assert!(refused.contains("certificate is not trusted") && refused.contains("sslrootcert"), "{refused}");
    let elsewhere = url.replace("127.0.0.1", "localhost");
    let refused = refusal(&elsewhere);
    assert!(refused.contains("for another host"), "{refused}");
    assert!(
        refusal(&format!("{base}?sslmode=disable")).contains("28000"),
        "{}",
        refusal(&format!("{base}?sslmode=disable"))
    );
    assert!(refusal(&format!("{base}?sslmode=verify-full")).contains("sslrootcert=FILE"));
}
