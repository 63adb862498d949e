//! Ledgers from dumps, in the schema of `migrations/postgres`.

use std::path::{Path, PathBuf};
use std::process::Command;

use audit_verify::{Report, verify_path};
use postgres::{Client, NoTls};
use serde_json::Value;

use test_servers::Server;

/// A word that nothing may print.
pub(crate) const PASSWORD: &str = "secret-word";

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fixtures").join(name)
}

pub(crate) fn read_dump(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A server with the schema in its database `postgres`, and the role `auditor`.
pub(crate) struct Database {
    pub(crate) server: Server,
    pub(crate) client: Client,
}

impl Database {
    pub(crate) fn new() -> Database {
        Database::on(Server::start())
    }

    pub(crate) fn on(server: Server) -> Database {
        let mut client = Client::connect(&server.url("postgres"), NoTls).unwrap();
        let schema = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("migrations/postgres/V1__ledger.sql");
        client.batch_execute("CREATE SCHEMA ledger").unwrap();
        client.batch_execute(&std::fs::read_to_string(schema).unwrap()).unwrap();
        client
            .batch_execute(&format!("CREATE ROLE auditor LOGIN PASSWORD '{PASSWORD}' IN ROLE ledger_auditor"))
            .unwrap();
        Database { server, client }
    }

    /// With a dump's rows.
    pub(crate) fn of(name: &str) -> Database {
        let mut database = Database::new();
        database.load(&read_dump(&fixture(name))).unwrap();
        database
    }

    /// The URL for the auditor.
    pub(crate) fn url(&self) -> String {
        self.server.url(&format!("auditor:{PASSWORD}"))
    }

    /// Takes away what keeps wrong rows out: they come from a hand that could.
    pub(crate) fn unguard(&mut self) {
        self.client
            .batch_execute(
                "DO $$ DECLARE what text; BEGIN
                    FOR what IN SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname)
                        FROM pg_constraint WHERE connamespace = 'ledger'::regnamespace
                    UNION ALL SELECT format('ALTER TABLE %s ALTER %I DROP NOT NULL', attrelid::regclass, attname)
                        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
                        WHERE c.relnamespace = 'ledger'::regnamespace AND c.relkind = 'r' AND attnum > 0
                    UNION ALL SELECT format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass)
                        FROM pg_trigger WHERE NOT tgisinternal
                    LOOP EXECUTE what; END LOOP;
                END $$;
                DROP INDEX ledger.ledger_is_one",
            )
            .unwrap();
    }

    /// Lets rows be removed and changed, while keys hold.
    pub(crate) fn without_triggers(&mut self) {
        let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'ledger'";
        for table in self.client.query(tables, &[]).unwrap() {
            self.execute(&format!("ALTER TABLE ledger.{} DISABLE TRIGGER ALL", table.get::<_, &str>(0)));
        }
    }

    pub(crate) fn clear(&mut self) {
        let tables =
            self.client.query("SELECT tablename::text FROM pg_tables WHERE schemaname = 'ledger'", &[]).unwrap();
        for table in tables {
            self.client.batch_execute(&format!("DELETE FROM ledger.{}", table.get::<_, String>(0))).unwrap();
        }
    }

    /// Inserts a dump's rows; an error says which value does not fit its column.
    pub(crate) fn load(&mut self, dump: &Value) -> Result<(), String> {
        for (table, rows) in dump["tables"].as_object().unwrap() {
            let columns = self
                .client
                .query(
                    "SELECT column_name::text FROM information_schema.columns
                     WHERE table_schema = 'ledger' AND table_name = $1 AND data_type = 'bytea'",
                    &[table],
                )
                .unwrap();
            let mut rows = rows.clone();
            for row in rows.as_array_mut().unwrap() {
                for column in &columns {
                    let cell = &mut row[column.get::<_, &str>(0)];
                    if let Some(hex) = cell.as_str() {
                        *cell = format!("\\x{hex}").into();
                    }
                }
            }
            let insert = format!(
                "INSERT INTO ledger.{table} SELECT * FROM jsonb_populate_recordset(NULL::ledger.{table}, $1::text::jsonb)"
            );
            self.client.execute(&insert, &[&rows.to_string()]).map_err(|e| format!("{table}: {e:?}"))?;
        }
        Ok(())
    }

    pub(crate) fn judge(&self, trust: &str) -> Report {
        let trust = ledger_engine::hash::Hash::from_hex(trust);
        verify_path(Path::new(&self.url()), trust)
    }

    pub(crate) fn execute(&mut self, sql: &str) {
        self.client.batch_execute(sql).unwrap();
    }
}

/// Exit status and everything that was said.
pub(crate) fn run(directory: &Path, arguments: &[&str]) -> (i32, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_audit-verify")).current_dir(directory).args(arguments).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!said.contains(PASSWORD), "{said}");
    (output.status.code().unwrap(), said)
}
