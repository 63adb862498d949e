//! A database that shows something else, or nothing.

use crate::database::{Database, fixture, read_dump, run};
use test_servers::Server;

fn trust() -> String {
    read_dump(&fixture("valid/two_chains.json"))["trust"].as_str().unwrap().to_owned()
}

/// What is said of the ledger after some SQL, which is undone.
fn after(database: &mut Database, sql: &str, undo: &str, exit: i32, say: &str) {
    database.execute(sql);
    let (found, said) = run(std::path::Path::new("."), &[&database.url(), "--trust", &trust()]);
    assert_eq!((found, said.contains(say)), (exit, true), "{sql}: {said}");
    database.execute(undo);
}

#[test]
fn a_database_is_not_believed() {
    // One after the other, since a server takes longer to start than any of them.
    let mut database = Database::of("valid/two_chains.json");
    what_is_no_plain_table_is_refused(&mut database);
    rows_that_are_hidden_are_not_passed_over(&mut database);
    missing_tables_and_columns_are_findings(&mut database);
    rows_that_an_index_leaves_out(&mut database);
    a_table_in_partitions(&mut database);
    names_and_settings_of_the_database(&mut database);
}

fn what_is_no_plain_table_is_refused(db: &mut Database) {
    db.execute("DROP VIEW ledger.readable_entries");
    after(
        db,
        "ALTER TABLE ledger.orders RENAME TO hidden; CREATE VIEW ledger.orders AS SELECT * FROM ledger.hidden; GRANT SELECT ON ledger.orders TO ledger_auditor",
        "DROP VIEW ledger.orders; ALTER TABLE ledger.hidden RENAME TO orders",
        2,
        "ledger.orders is a view",
    );
    after(
        db,
        "ALTER TABLE ledger.tiles RENAME TO hidden; CREATE MATERIALIZED VIEW ledger.tiles AS SELECT * FROM ledger.hidden; GRANT SELECT ON ledger.tiles TO ledger_auditor",
        "DROP MATERIALIZED VIEW ledger.tiles; ALTER TABLE ledger.hidden RENAME TO tiles",
        2,
        "ledger.tiles is a view",
    );
    after(
        db,
        "CREATE FOREIGN DATA WRAPPER none; CREATE SERVER none FOREIGN DATA WRAPPER none;
         CREATE FOREIGN TABLE ledger.more () INHERITS (ledger.commits) SERVER none",
        "DROP FOREIGN TABLE ledger.more",
        2,
        "ledger.commits is a view, a foreign table",
    );
    after(
        db,
        "ALTER TABLE ledger.commit_signatures DROP COLUMN alg, ADD COLUMN alg integer GENERATED ALWAYS AS (1) STORED",
        "ALTER TABLE ledger.commit_signatures ALTER alg DROP EXPRESSION",
        2,
        "computes a column",
    );
    for (table, column, to, exit, say) in [
        ("orders", "amount", "numeric", 2, "ledger.orders.amount is of the type numeric"),
        ("orders", "amount", "text", 1, "projection_mismatch"),
        ("commits", "first_index", "text", 1, "commit_undecodable"),
        ("entries", "idx", "text", 1, "entry_undecodable"),
        ("entries", "chain", "text", 1, "entry_undecodable"),
        ("entries", "chain", "smallint", 0, "VERIFIED"),
    ] {
        let alter = |to: &str| format!("ALTER TABLE ledger.{table} ALTER {column} TYPE {to} USING {column}::{to}");
        let was = if column == "chain" { "integer" } else { "bigint" };
        after(db, &alter(to), &alter(was), exit, say);
    }
}

fn rows_that_are_hidden_are_not_passed_over(db: &mut Database) {
    after(
        db,
        "ALTER TABLE ledger.entries ENABLE ROW LEVEL SECURITY; CREATE POLICY hidden ON ledger.entries USING (idx < 10)",
        "ALTER TABLE ledger.entries DISABLE ROW LEVEL SECURITY",
        2,
        "ledger.entries has row-level security",
    );
    after(
        db,
        "REVOKE ALL ON ledger.orders FROM ledger_auditor",
        "GRANT SELECT ON ledger.orders TO ledger_auditor",
        2,
        "GRANT ledger_auditor",
    );
    after(
        db,
        "REVOKE ledger_auditor FROM auditor",
        "GRANT ledger_auditor TO auditor",
        2,
        "this role may not read ledger.",
    );
    after(db, "SELECT 1", "SELECT 1", 0, "VERIFIED");
}

fn missing_tables_and_columns_are_findings(db: &mut Database) {
    after(
        db,
        "ALTER TABLE ledger.orders RENAME TO o",
        "ALTER TABLE ledger.o RENAME TO orders",
        1,
        "projection_mismatch",
    );
    after(
        db,
        "ALTER TABLE ledger.entries RENAME body_hash TO b",
        "ALTER TABLE ledger.entries RENAME b TO body_hash",
        1,
        "entry_undecodable",
    );
    after(
        db,
        "ALTER TABLE ledger.commits RENAME chain TO c",
        "ALTER TABLE ledger.commits RENAME c TO chain",
        1,
        "commit_tiling",
    );
}

/// Nothing of the database's own runs, and settings of the role change nothing.
fn names_and_settings_of_the_database(db: &mut Database) {
    db.execute(
        "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO auditor;
         CREATE TABLE evil.entries AS SELECT * FROM ledger.entries LIMIT 0; CREATE TABLE evil.pg_class (oid oid);
         CREATE FUNCTION evil.less(integer, integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''called''; END';
         CREATE OPERATOR evil.= (FUNCTION = evil.less, LEFTARG = integer, RIGHTARG = integer);
         CREATE OPERATOR evil.< (FUNCTION = evil.less, LEFTARG = integer, RIGHTARG = integer);
         CREATE FUNCTION evil.row_security_active(oid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
         GRANT SELECT ON ALL TABLES IN SCHEMA evil TO auditor;
         ALTER ROLE auditor SET search_path = evil, pg_catalog;
         ALTER ROLE auditor SET idle_in_transaction_session_timeout = 1; ALTER ROLE auditor SET idle_session_timeout = 20;
         ALTER ROLE auditor SET enable_tidscan = off;
         ALTER ROLE auditor SET default_transaction_isolation = 'read committed';
         ALTER ROLE auditor SET bytea_output = 'escape'; ALTER ROLE auditor SET enable_indexscan = off",
    );
    after(db, "SELECT 1", "SELECT 1", 0, "VERIFIED");
}

/// Whoever administers a server can write rows past an index. Sums over the table have them.
fn rows_that_an_index_leaves_out(db: &mut Database) {
    let ready = |ready: bool| {
        format!("UPDATE pg_index SET indisready = {ready} WHERE indexrelid = 'ledger.entries_pkey'::regclass")
    };
    db.execute(&ready(false));
    db.execute("INSERT INTO ledger.entries SELECT * FROM ledger.entries WHERE idx = 3");
    after(db, &ready(true), "SELECT 1", 2, "ledger.entries has 27 rows and its index leads to 25 of them");
    let doubled = "DELETE FROM ledger.entries a WHERE a.ctid > (SELECT min(b.ctid) FROM ledger.entries b WHERE (a.chain, a.idx) = (b.chain, b.idx))";
    // Beyond the heads nobody looks for it below them.
    db.execute(&format!("ALTER TABLE ledger.entries DISABLE TRIGGER ALL; {doubled}; {}", ready(false)));
    db.execute(
        "INSERT INTO ledger.entries SELECT chain, idx + 1000, prev_hash, stream, revision, parent_hash, event_id, event_type, schema_version,
             recorded_at_us, body_hash, body_sha256, entry_hash, parent_index, body FROM ledger.entries WHERE idx = 3 AND chain = 0",
    );
    after(db, &ready(true), "SELECT 1", 2, "ledger.entries has rows beyond the heads");
    db.execute(
        "DELETE FROM ledger.entries WHERE ctid = (SELECT max(ctid) FROM ledger.entries);
         ALTER TABLE ledger.entries ENABLE TRIGGER ALL",
    );
    // A head that claims more than there can be is not looked for row by row.
    let size = "SELECT size FROM ledger.chain_heads WHERE chain = 0";
    let size: i64 = db.client.query_one(size, &[]).unwrap().get(0);
    let set = |size: i64| {
        format!(
            "ALTER TABLE ledger.chain_heads DISABLE TRIGGER ALL; UPDATE ledger.chain_heads SET size = {size} WHERE chain = 0;
             ALTER TABLE ledger.chain_heads ENABLE TRIGGER ALL"
        )
    };
    after(db, &set(i64::MAX), &set(size), 1, "chain_head_mismatch");
    // An index more, by which documents could be counted and not read.
    after(
        db,
        "CREATE UNIQUE INDEX another ON ledger.private_documents (chain, idx)",
        "DROP INDEX ledger.another",
        0,
        "VERIFIED",
    );
    db.execute(
        "ALTER TABLE ledger.entries DISABLE TRIGGER ALL; DELETE FROM ledger.entries a WHERE a.ctid >
             (SELECT min(b.ctid) FROM ledger.entries b WHERE (a.chain, a.idx) = (b.chain, b.idx));
         ALTER TABLE ledger.entries ENABLE TRIGGER ALL",
    );
}

fn a_table_in_partitions(db: &mut Database) {
    let sql = "ALTER TABLE ledger.entries RENAME TO old;
         CREATE TABLE ledger.entries (LIKE ledger.old INCLUDING DEFAULTS) PARTITION BY RANGE (chain, idx);
         ALTER TABLE ledger.entries ADD CONSTRAINT entries_key PRIMARY KEY (chain, idx);
         CREATE TABLE ledger.entries_0a PARTITION OF ledger.entries FOR VALUES FROM (0, 0) TO (0, 7);
         CREATE TABLE ledger.entries_0b PARTITION OF ledger.entries FOR VALUES FROM (0, 7) TO (1, 0);
         CREATE TABLE ledger.entries_1 PARTITION OF ledger.entries DEFAULT;
         INSERT INTO ledger.entries SELECT * FROM ledger.old;
         GRANT SELECT ON ledger.entries TO ledger_auditor";
    after(db, sql, "DROP TABLE ledger.entries; ALTER TABLE ledger.old RENAME TO entries", 0, "VERIFIED");
}

#[test]
fn what_is_no_ledger_says_what_to_do() {
    let server = Server::start_tls();
    let mut client = postgres::Client::connect(&server.url("postgres"), postgres::NoTls).unwrap();
    let here = std::path::Path::new(".");
    let check = |url: &str, say: &str| {
        let (exit, said) = run(here, &[url]);
        assert_eq!((exit, said.contains(say)), (2, true), "{url}: {said}");
    };
    let url = server.url("postgres:secret-word");
    check(&url, "check the database's name");
    client.batch_execute("CREATE TABLE audit_events (id bigint)").unwrap();
    check(&url, "with -d to verify legacy events");
    client.batch_execute("CREATE SCHEMA ledger; CREATE TABLE ledger.orders (idx bigint)").unwrap();
    check(&url, "with -d to verify legacy events");
    client.batch_execute("CREATE TABLE ledger.entries ()").unwrap();
    let (exit, said) = run(here, &[&url]);
    assert_eq!(exit, 1, "{said}");
    check("postgres://a:secret-word@127.0.0.1:1/none", "check the URL and the network");
    check("postgresql://a:secret-word@127.0.0.1:1/none?sslmode=some", "sslmode=some");
    check("postgres://a:secret-word/x@127.0.0.1:1/none", "postgres://…");
    check(&url.replace("/postgres", "/none"), "does not exist");
    client.batch_execute("DROP SCHEMA ledger CASCADE; DROP TABLE audit_events").unwrap();
    over_tls(server);
}

fn over_tls(server: Server) {
    let mut database = Database::on(server);
    database.load(&read_dump(&fixture("valid/two_chains.json"))).unwrap();
    let [root, other] = database.server.roots();
    let url = |root: &str| format!("{}?sslmode=verify-full&sslrootcert={root}", database.url());
    let here = std::path::Path::new(".");
    let (exit, said) = run(here, &[&url(&root), "--trust", &trust()]);
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = run(here, &[&url(&other), "--trust", &trust()]);
    assert!(exit == 2 && said.contains("certificate is not trusted"), "{said}");
}
