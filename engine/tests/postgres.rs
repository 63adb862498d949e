//! What only the store in PostgreSQL promises: rights, the schema, and answers that hold when the server dies.
#![allow(missing_docs)]

mod support;

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ledger_engine::archive::ExportOptions;
use ledger_engine::hash::to_hex;
use ledger_engine::merkle::CompactRange;
use ledger_engine::reader::Reader;
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore, migrate};
use ledger_engine::store::{Store as _, StoreError};
use ledger_engine::stream::CaseId;
use support::{code, create_line, create_order, life, list_sku, postgres, send};
use test_servers::{Proxy, Server};

/// Tries SQL as a role and gives the error's code, or `ok`; nothing of it stays.
fn attempt(name: &str, role: &str, sql: &str) -> String {
    let block = format!(
        "DO $do$ BEGIN SET LOCAL ROLE {role}; BEGIN {sql}; RAISE EXCEPTION 'done' USING ERRCODE = 'LG000'; \
         EXCEPTION WHEN OTHERS THEN CREATE TEMP TABLE IF NOT EXISTS said (code text); INSERT INTO said VALUES (SQLSTATE); END; END $do$; \
         SELECT replace(string_agg(code, ','), 'LG000', 'ok') FROM said"
    );
    Server::shared().psql(name, &block)
}

/// No right: what a role is told that may not even try.
const NO_RIGHT: &str = "42501";
/// What a role with the right is told by a trigger.
const REFUSED: &str = "LG001";

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_its_part_and_nobody_may_rewrite() {
    for (url, ranges) in [(postgres::database(), 0), (postgres::partitioned_database(), 4)] {
        let ledger = postgres::create(&url, 1).await;
        list_sku(&ledger, "s").await;
        create_order(&ledger, "ann", "s").await;
        ledger.checkpoint().await.unwrap();
        let name = postgres::name_of(&url);
        let roles = [
            ("ledger_writer", NO_RIGHT),
            ("ledger_auditor", NO_RIGHT),
            ("ledger_owner", REFUSED),
            ("postgres", REFUSED),
        ];
        let ranges: Vec<String> = (1..=ranges).map(|n| format!("entries_{n}")).collect();
        let tables = ["entries", "commits", "commit_signatures", "checkpoints", "ledger", "chain_heads"];
        for table in tables.into_iter().chain(ranges.iter().map(String::as_str)) {
            for (role, expected) in roles {
                let truncated = attempt(name, role, &format!("TRUNCATE ledger.{table}"));
                assert_eq!(truncated, expected, "{table} by {role}");
                // A trigger of rows needs one: the later ranges have none yet.
                if table.strip_prefix("entries_").is_none_or(|n| n == "1") {
                    let deleted = attempt(name, role, &format!("DELETE FROM ledger.{table}"));
                    assert_eq!(deleted, expected, "{table} by {role}");
                }
            }
        }
        let mut columns = vec![
            ("entries", "body"),
            ("commits", "registry_head"),
            ("commit_signatures", "signature"),
            ("checkpoints", "root"),
            ("ledger", "ledger_id"),
        ];
        columns.extend(ranges.first().map(|range| (&range[..], "body")));
        for (table, column) in columns {
            for (role, expected) in roles {
                let updated = attempt(name, role, &format!("UPDATE ledger.{table} SET {column} = '\\x00'"));
                assert_eq!(updated, expected, "{table} by {role}");
            }
        }
        for update in ["chain_heads SET size = size - 1", "checkpoints SET note = NULL"] {
            assert_eq!(attempt(name, "ledger_writer", &format!("UPDATE ledger.{update}")), REFUSED, "{update}");
        }
        for table in ["entries", "private_documents", "orders", "chain_heads", "schema_history"] {
            let read = |role| attempt(name, role, &format!("PERFORM * FROM ledger.{table}"));
            assert_eq!((&read("ledger_auditor")[..], &read("ledger_writer")[..]), ("ok", "ok"), "{table}");
            assert_eq!(attempt(name, "ledger_auditor", &format!("DELETE FROM ledger.{table}")), NO_RIGHT);
        }
    }
}

/// What `ledger_writer` may do with each table: Select, Insert, Update (u: of some columns), Delete, and never Truncate,
/// triGgers, referenCes. A new table must be put in here.
const WRITER: &[(&str, &str)] = &[
    ("chain_heads", "SIU"),
    ("checkpoints", "SIu"),
    ("commit_signatures", "SI"),
    ("commits", "SI"),
    ("cursors", "SIU"),
    ("deliveries", "SIUD"),
    ("delivery_proofs", "SIUD"),
    ("entries", "SI"),
    ("event_id_runs", "SI"),
    ("idempotency", "SIUD"),
    ("ledger", "SI"),
    ("licences", "SIUD"),
    ("orders", "SIUD"),
    ("private_documents", "SID"),
    ("readable_entries", "S"),
    ("schema_history", "S"),
    ("skus", "SIUD"),
    ("stream_heads", "SIU"),
    ("tiles", "SI"),
];

#[test]
fn the_rights_are_these_and_no_others() {
    for (url, ranges) in [(postgres::database(), 0), (postgres::partitioned_database(), 4)] {
        let name = postgres::name_of(&url);
        let rights = |role: &str| {
            let sql = format!(
                "SELECT c.relname, string_agg(CASE WHEN has_table_privilege('{role}', c.oid, r) THEN letter \
                 WHEN r = 'UPDATE' AND has_any_column_privilege('{role}', c.oid, r) THEN 'u' END, '' ORDER BY n) \
                 FROM pg_class c, (VALUES (1, 'SELECT', 'S'), (2, 'INSERT', 'I'), (3, 'UPDATE', 'U'), (4, 'DELETE', 'D'), \
                 (5, 'TRUNCATE', 'T'), (6, 'TRIGGER', 'G'), (7, 'REFERENCES', 'C')) v (n, r, letter) \
                 WHERE c.relnamespace = 'ledger'::regnamespace AND c.relkind IN ('r', 'p', 'v') GROUP BY 1 ORDER BY 1"
            );
            Server::shared().psql(name, &sql)
        };
        let mut tables: Vec<(String, &str)> = WRITER.iter().map(|(table, may)| ((*table).to_owned(), *may)).collect();
        // Entries go in by the whole table's name.
        tables.extend((1..=ranges).map(|n| (format!("entries_{n}"), "S")));
        tables.sort();
        let lines = |of: fn(&'static str) -> &'static str| {
            tables.iter().map(|(table, may)| format!("{table}|{}", of(may))).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(rights("ledger_writer"), lines(|may| may));
        assert_eq!(rights("ledger_auditor"), lines(|_| "S"));
        let owners = "SELECT string_agg(DISTINCT pg_get_userbyid(relowner)::text, ',') FROM pg_class \
                      WHERE relnamespace = 'ledger'::regnamespace AND relkind IN ('r', 'p', 'v')";
        assert_eq!(Server::shared().psql(name, owners), "ledger_owner");
        let make = "SELECT bool_or(has_schema_privilege(r, 'ledger', 'CREATE')) FROM unnest(ARRAY['ledger_writer', 'ledger_auditor']) r";
        assert_eq!(Server::shared().psql(name, make), "f");
    }
}

/// Where the last range ends, nothing more is stored; another one is made like the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_added_after_the_last_one() {
    let url = postgres::partitioned_database();
    let name = postgres::name_of(&url);
    Server::shared().psql(name, "DROP TABLE ledger.entries_4, ledger.entries_3, ledger.entries_2");
    let ledger = postgres::create(&postgres::as_writer(&url), 1).await;
    list_sku(&ledger, "s").await;
    for n in 0..18 {
        create_order(&ledger, &format!("k{n}"), "s").await;
    }
    let full = send(&ledger, &create_line("ann", "s")).await.unwrap_err().to_string();
    assert!(full.contains("23514"), "{full}");
    let owner = "SET ROLE ledger_owner; SELECT ledger.add_range(40)";
    assert_eq!(Server::shared().psql(name, owner), "ledger.entries_2");
    let ranges = "SELECT string_agg(c.relname || ' ' || pg_get_expr(c.relpartbound, c.oid), ', ' ORDER BY c.relname) \
                  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'ledger.entries'::regclass";
    let expected = "entries_1 FOR VALUES FROM ('0') TO ('20'), entries_2 FOR VALUES FROM ('20') TO ('40')";
    assert_eq!(Server::shared().psql(name, ranges), expected);
    create_order(&ledger, "ann", "s").await;
    for (role, expected) in [("ledger_writer", NO_RIGHT), ("postgres", REFUSED)] {
        for sql in ["TRUNCATE ledger.entries_2", "DELETE FROM ledger.entries_2"] {
            assert_eq!(attempt(name, role, sql), expected, "{sql} by {role}");
        }
    }
    assert_eq!(attempt(name, "ledger_writer", "PERFORM ledger.add_range(60)"), NO_RIGHT);
}

/// With the rights of `ledger_auditor` alone everything can be read, compared and exported, and nothing written.
#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_reads_all_of_it() {
    for url in [postgres::database(), postgres::partitioned_database()] {
        let ledger = postgres::create(&postgres::as_writer(&url), 2).await;
        list_sku(&ledger, "s").await;
        let order = create_order(&ledger, "ann", "s").await;
        for line in life(&order) {
            send(&ledger, &line).await.unwrap();
        }
        ledger.checkpoint().await.unwrap();
        let auditor = postgres::as_auditor(&url);
        let store = Arc::new(PostgresStore::open_read_only(postgres::options(&auditor)).unwrap());
        let heads = store.heads().unwrap();
        assert_eq!(heads, ledger.store().heads().unwrap());
        for head in &heads {
            let entries = store.entries(head.chain, 0, 100).unwrap();
            assert_eq!(entries.len() as u64, head.size());
            for entry in entries {
                assert_eq!(store.find_event(entry.header.id()).unwrap(), Some((head.chain, entry.header.index)));
            }
        }
        let (reader, _) = Reader::open(store).await.unwrap();
        assert!(reader.check_projections().await.unwrap().is_empty());
        let case = CaseId::parse(&order).unwrap();
        assert!(reader.order(case).await.unwrap().is_some());
        assert_eq!(reader.read_order(case).await.unwrap().len(), 9);
        let refused = reader.rebuild().await.unwrap_err().to_string();
        assert!(refused.contains("read-only"), "{refused}");
        let out = tempfile::tempdir().unwrap();
        let exported = out.path().join("export");
        let options =
            ExportOptions { gzip: false, withhold_private: false, exported_at_us: 1, tool: "test".to_owned() };
        reader.export(options, &exported).await.unwrap();
        let id = ledger.id();
        let report = tokio::task::spawn_blocking(move || audit_verify::verify_path(&exported, Some(id))).await.unwrap();
        assert_eq!(report.exit(), 0, "{}", report.to_text());
        postgres::verify(&auditor, id).await;
        // Who opens it for writing is told what is missing.
        let writing = Arc::new(PostgresStore::open(postgres::options(&auditor)).unwrap());
        let (reader, _) = Reader::open(writing).await.unwrap();
        let refused = reader.rebuild().await.unwrap_err().to_string();
        assert!(refused.contains("ledger_writer"), "{refused}");
    }
}

/// Who owns the database and may make roles need not be a superuser.
#[test]
fn a_database_owner_may_migrate() {
    let server = Server::start();
    server.psql("postgres", "CREATE ROLE landlord LOGIN CREATEROLE");
    server.psql("postgres", "CREATE DATABASE shop OWNER landlord");
    assert_eq!(migrate(&server.url_of("landlord", "shop")).unwrap().applied.len(), 1);
    let partitioned = include_str!("../../migrations/postgres/partitioned.sql");
    server.psql("shop", &format!("SET SESSION AUTHORIZATION landlord; {partitioned}"));
}

/// What keeps entries from being rewritten may be gone since the migration.
#[test]
fn a_schema_without_its_guards_stops_the_start() {
    let open = |url: &str| PostgresStore::open(postgres::options(url)).map(drop).map_err(|e| e.to_string());
    let (whole, parted) = (postgres::database(), postgres::partitioned_database());
    let conditional = "DROP TRIGGER append_only ON ledger.entries; CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.entries \
                       FOR EACH ROW WHEN (OLD.idx > 9) EXECUTE FUNCTION ledger.refuse()";
    for (template, sql, said) in [
        (&whole, "DROP TRIGGER append_only ON ledger.entries", "trigger append_only of ledger.entries"),
        (&whole, conditional, "trigger append_only of ledger.entries"),
        (&whole, "ALTER TABLE ledger.commits DISABLE TRIGGER append_only", "trigger append_only of ledger.commits"),
        (
            &whole,
            "ALTER TABLE ledger.chain_heads ENABLE REPLICA TRIGGER only_forward",
            "only_forward of ledger.chain_heads",
        ),
        (&whole, "DROP TRIGGER signed_is_final ON ledger.checkpoints", "signed_is_final of ledger.checkpoints"),
        (
            &whole,
            "GRANT UPDATE ON ledger.entries TO ledger_writer",
            "ledger_writer has the right to UPDATE ledger.entries",
        ),
        (
            &whole,
            "GRANT UPDATE (body) ON ledger.entries TO ledger_writer",
            "ledger_writer has the right to UPDATE ledger.entries",
        ),
        (&whole, "GRANT DELETE ON ledger.commits TO PUBLIC", "ledger_auditor has the right to DELETE ledger.commits"),
        (
            &whole,
            "GRANT TRUNCATE ON ledger.entries TO ledger_writer",
            "ledger_writer has the right to TRUNCATE ledger.entries",
        ),
        (&parted, "ALTER TABLE ledger.entries_2 DISABLE TRIGGER append_only", "append_only of ledger.entries_2"),
        (&parted, "DROP TRIGGER append_only_truncate ON ledger.entries_3", "append_only_truncate of ledger.entries_3"),
        (
            &parted,
            "GRANT DELETE ON ledger.entries_1 TO ledger_writer",
            "ledger_writer has the right to DELETE ledger.entries_1",
        ),
    ] {
        let url = Server::shared().copy_of(postgres::name_of(template));
        // A copy has not the database's settings.
        migrate(&url).unwrap();
        open(&url).unwrap();
        Server::shared().psql(postgres::name_of(&url), sql);
        let refused = open(&url).unwrap_err();
        assert!(refused.contains(said), "{sql}: {refused}");
        // Auditors read it nevertheless: it is theirs to judge.
        PostgresStore::open_read_only(postgres::options(&url)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_begins_with_the_chain() {
    for url in [postgres::database(), postgres::partitioned_database()] {
        let sql = "SELECT c.relname || '.' || a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid \
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
                   WHERE c.relnamespace = 'ledger'::regnamespace AND a.attname <> 'chain' ORDER BY 1";
        // The ledger's one row and the list of schema steps belong to no chain.
        let others = Server::shared().psql(postgres::name_of(&url), sql);
        assert_eq!(others, "ledger.ledger_id\nschema_history.version");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_not_ours_stops_the_start() {
    let open = |url: &str| match PostgresStore::open(postgres::options(url)) {
        Ok(_) => "opened".to_owned(),
        Err(e) => e.to_string(),
    };
    let url = Server::shared().database();
    assert!(open(&url).contains("ledger migrate"), "{}", open(&url));
    let migrated = std::thread::scope(|s| s.spawn(|| (migrate(&url).unwrap(), migrate(&url).unwrap())).join().unwrap());
    assert_eq!((migrated.0.applied.len(), migrated.1.applied.len()), (1, 0));
    assert_eq!(open(&url), "opened");
    let change = |sql: &str| Server::shared().psql(postgres::name_of(&url), sql);
    change("INSERT INTO ledger.schema_history VALUES (2, 'later', '2026-01-01T00:00:00Z', '1')");
    assert!(open(&url).contains("newer"), "{}", open(&url));
    change("DELETE FROM ledger.schema_history WHERE version = 2; UPDATE ledger.schema_history SET checksum = '1'");
    assert!(open(&url).contains("changed by hand"), "{}", open(&url));
    change("DELETE FROM ledger.schema_history");
    assert!(open(&url).contains("0 of 1"), "{}", open(&url));
    let name = postgres::name_of(&url).to_owned();
    let url = Server::shared().url_of("nobody", &name);
    assert!(open(&url).contains("nobody"), "{}", open(&url));
}

/// A server whose settings would make answers lies is refused.
#[test]
fn unsafe_servers_are_refused() {
    let server = Server::start();
    let url = server.database();
    migrate(&url).unwrap();
    let error = PostgresStore::open(PostgresOptions::new(&url)).map(drop).unwrap_err().to_string();
    assert!(error.contains("fsync"), "{error}");
}

/// The server is killed under load again and again: who was told that an order is there finds it, once.
#[tokio::test(flavor = "multi_thread")]
async fn answers_hold_when_the_server_dies() {
    let server = Arc::new(Server::start_durable(""));
    let url = server.database();
    std::thread::scope(|s| s.spawn(|| migrate(&url).unwrap()).join().unwrap());
    let ledger = Arc::new(postgres::create(&url, 2).await);
    list_sku(&ledger, "s").await;
    for round in 0..3 {
        let tasks: Vec<_> = (0..24)
            .map(|i| {
                let ledger = Arc::clone(&ledger);
                tokio::spawn(async move {
                    let mut answered = 0;
                    for n in 0..40 {
                        let line = create_line(&format!("r{round}-{i}-{n}"), "s");
                        answered += u32::from(send(&ledger, &line).await.is_ok());
                    }
                    answered
                })
            })
            .collect();
        let killed = Arc::clone(&server);
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
        tokio::task::spawn_blocking(move || killed.crash_and_restart()).await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        // Retries with the same keys find what was stored, and make the rest.
        for (i, n) in (0..24).flat_map(|i| (0..40).map(move |n| (i, n))) {
            let said = code(&ledger, &create_line(&format!("r{round}-{i}-{n}"), "s")).await;
            assert!(matches!(said, "accepted" | "repeated"), "{said}");
        }
    }
    let heads = ledger.store().heads().unwrap();
    assert_eq!(heads.iter().map(|h| h.size()).sum::<u64>(), 2 + 1 + 3 * 24 * 40);
    assert!(ledger.check_projections().await.unwrap().is_empty());
}

/// A standby that was behind is promoted, or a backup restored: what was acknowledged is gone, and nothing may be built on
/// that.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_went_back_stops_all_writing() {
    for by_checkpoint in [false, true] {
        went_back(by_checkpoint).await;
    }
}

/// Whoever asks first, for a command or for a checkpoint, finds it.
async fn went_back(by_checkpoint: bool) {
    let url = postgres::database();
    let ledger = postgres::create(&url, 2).await;
    list_sku(&ledger, "s").await;
    for key in ["ann", "bob", "cid", "dan"] {
        let order = create_order(&ledger, key, "s").await;
        send(&ledger, &life(&order)[0]).await.unwrap();
    }
    let heads = ledger.store().heads().unwrap();
    assert!(heads.iter().all(|h| h.size() > 1));
    for chain in 0..2 {
        let first = ledger.read_chain(chain, 0, 1).await.unwrap().remove(0);
        let (hash, leaf) = (first.entry_hash.to_hex(), first.header.leaf_hash().to_hex());
        let sql = format!(
            "SET session_replication_role = replica; UPDATE ledger.chain_heads \
             SET size = 1, head_hash = '\\x{hash}', compact_range = '\\x{leaf}' WHERE chain = {chain}"
        );
        Server::shared().psql(postgres::name_of(&url), &sql);
    }
    if by_checkpoint {
        let refused = ledger.checkpoint().await.unwrap_err();
        assert!(refused.to_string().contains("HISTORY_WENT_BACK"), "{refused}");
        assert!(ledger.store().heads().unwrap().iter().all(|h| h.size() == 1), "nothing was appended");
        assert!(ledger.store().last_checkpoint(0).unwrap().is_none(), "nothing was signed");
    }
    for key in ["eve", "fay", "gus", "hal", "ida", "jon"] {
        let error = send(&ledger, &create_line(key, "s")).await.unwrap_err();
        assert_eq!(error.code(), "HISTORY_WENT_BACK", "{error}");
    }
}

/// Another entry lies where the last acknowledged one lay.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_another_stops_all_writing() {
    let url = postgres::database();
    let ledger = postgres::create(&url, 1).await;
    list_sku(&ledger, "s").await;
    let other = "ab".repeat(32);
    let sql = format!(
        "SET session_replication_role = replica; UPDATE ledger.chain_heads SET head_hash = '\\x{other}'; \
         UPDATE ledger.entries SET entry_hash = '\\x{other}' WHERE idx = 1"
    );
    Server::shared().psql(postgres::name_of(&url), &sql);
    for key in ["ann", "bob"] {
        let error = send(&ledger, &create_line(key, "s")).await.unwrap_err();
        assert_eq!(error.code(), "HISTORY_WENT_BACK", "{error}");
        assert!(error.to_string().contains("acknowledged"), "{error}");
    }
}

/// A process signs a checkpoint over entries of another one; then they are gone, and the record of the checkpoint too.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_shorter_than_published_stops_all_writing() {
    let url = postgres::database();
    let publisher = postgres::create(&url, 1).await;
    list_sku(&publisher, "s").await;
    let writer = postgres::open(&url).await;
    for key in ["ann", "bob", "cid"] {
        create_order(&writer, key, "s").await;
    }
    publisher.checkpoint().await.unwrap();
    let entries = publisher.read_chain(0, 0, 3).await.unwrap();
    let mut range = CompactRange::default();
    entries.iter().for_each(|e| range.push(e.header.leaf_hash()));
    let sql = format!(
        "SET session_replication_role = replica; DELETE FROM ledger.checkpoints; \
         UPDATE ledger.chain_heads SET size = 3, head_hash = '\\x{}', compact_range = '\\x{}'",
        entries[2].entry_hash.to_hex(),
        to_hex(&range.to_bytes()),
    );
    Server::shared().psql(postgres::name_of(&url), &sql);
    let error = send(&publisher, &create_line("dan", "s")).await.unwrap_err();
    assert_eq!(error.code(), "HISTORY_WENT_BACK", "{error}");
    assert!(error.to_string().contains("of its last checkpoint"), "{error}");
    let refused = publisher.checkpoint().await.unwrap_err();
    assert!(refused.to_string().contains("HISTORY_WENT_BACK"), "{refused}");
}

#[test]
fn a_database_out_of_reach_says_what_to_do() {
    let error = |url: &str| PostgresStore::open(PostgresOptions::new(url)).map(drop).unwrap_err();
    assert!(matches!(error("postgres://127.0.0.1:1/x"), StoreError::Unavailable(_)));
    assert!(matches!(error("postgres:/nonsense"), StoreError::Unusable(_)));
}

/// While the server is down, callers are told at once and the server is asked now and then; when it is back, the next caller
/// finds it.
#[test]
fn a_dead_server_is_not_run_over() {
    let server = Server::start_durable("");
    let url = server.database();
    migrate(&url).unwrap();
    let store = PostgresStore::open(postgres::options(&url)).unwrap();
    server.crash();
    // In its place, something that hangs up on everybody and counts them.
    let listener = TcpListener::bind(server.host()).unwrap();
    let (ended, accepted, refused) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for client in listener.incoming() {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                accepted.fetch_add(1, Ordering::AcqRel);
                drop(client);
            }
        });
        let call = || {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(2) {
                assert!(matches!(store.heads(), Err(StoreError::Unavailable(_))));
                refused.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let callers: Vec<_> = (0..32).map(|_| scope.spawn(call)).collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        ended.store(true, Ordering::Release);
        drop(TcpStream::connect(server.host()));
    });
    let (accepted, refused) = (accepted.into_inner(), refused.into_inner());
    // The pool's connections at once, then one at a time: after 50 ms, 100 ms, and so on, a part of that for chance.
    assert!((2..=16 + 12).contains(&accepted), "{accepted} attempts");
    assert!(refused > 10 * accepted, "{refused} answers of {accepted} attempts");
    drop(listener);
    server.start_again();
    let begun = Instant::now();
    store.heads().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// What one caller waits for: the lock of the head, and the commit. A key or an order that the writer has not seen is looked up
/// before.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_takes_one_round_trip_and_a_key_another() {
    let url = postgres::database();
    let proxy = Proxy::before(&url);
    let ledger = postgres::create(&proxy.url(&url), 1).await;
    list_sku(&ledger, "s").await;
    // Connections and statements are there afterwards.
    let first = create_order(&ledger, "ann", "s").await;
    for line in life(&first) {
        send(&ledger, &line).await.unwrap();
    }
    let (order, _, trips) = proxy.cost(create_order(&ledger, "bob", "s")).await;
    assert_eq!(trips, 2, "a new order");
    for line in life(&order) {
        let (answer, messages, trips) = proxy.cost(send(&ledger, &line)).await;
        answer.unwrap();
        let keyed = u64::from(line.contains("idempotency_key"));
        assert_eq!(trips, 1 + keyed, "{line}");
        assert!(messages < 20, "{messages} messages: {line}");
    }
}

/// A commit that was sent at once and is late, or did not move the head, or knows less than the registry has, or comes from a clock that is
/// elsewhere, fails before it writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_fails() {
    let url = postgres::database();
    let ledger = postgres::create(&url, 1).await;
    list_sku(&ledger, "s").await;
    let head = ledger.store().heads().unwrap().remove(0);
    let client = postgres::connect(&url).await;
    let texts = ledger_engine::store::postgres::lookup_texts();
    let expect = texts.iter().find(|text| text.starts_with("SELECT 1 / count(*)")).unwrap();
    let good = (head.size() as i64, head.hash.0.to_vec(), 1_i64, 0_i64);
    let of = |change: fn(&mut (i64, Vec<u8>, i64, i64))| {
        let mut values = good.clone();
        change(&mut values);
        values
    };
    let cases = [
        (good.clone(), true),
        (of(|v| v.3 = -400_000), true),
        (of(|v| v.3 = -600_000), false),
        (of(|v| v.3 = 600_000), false),
        (of(|v| v.0 -= 1), false),
        (of(|v| v.1[0] ^= 1), false),
        (of(|v| v.2 = 0), false),
    ];
    for ((size, hash, registry, late), holds) in cases {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
        let asked = client.query_one(expect, &[&0_i32, &size, &hash, &registry, &(now + late), &500_000_i64]).await;
        let code = asked.as_ref().err().and_then(|e| e.code().cloned());
        assert_eq!(code.is_none(), holds, "{late} {code:?}");
        assert!(holds || code == Some(tokio_postgres::error::SqlState::DIVISION_BY_ZERO), "{code:?}");
    }
}

/// An export job's place is one for all processes, and free again when its holder is gone, however it ended.
#[tokio::test(flavor = "multi_thread")]
async fn one_export_job_at_a_time() {
    let url = postgres::database();
    let ledger = postgres::create(&url, 1).await;
    let open = |url: String| move || PostgresStore::open(PostgresOptions::new(&url)).unwrap();
    let other = tokio::task::spawn_blocking(open(url.clone())).await.unwrap();
    let first = Arc::clone(ledger.store());
    let held = tokio::task::spawn_blocking(move || first.exclusive().unwrap()).await.unwrap();
    assert!(held.is_some());
    let other = tokio::task::spawn_blocking(move || {
        assert!(other.exclusive().unwrap().is_none());
        other
    });
    let other = other.await.unwrap();
    // As the server sees a process that was killed: its connection ends.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted \
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(Server::shared().psql(postgres::name_of(&url), end), "1");
    let until = Instant::now() + Duration::from_secs(10);
    let free = move || loop {
        match other.exclusive().unwrap() {
            Some(_) => return,
            None => assert!(Instant::now() < until, "it is still held"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    tokio::task::spawn_blocking(free).await.unwrap();
    drop(held);
}
