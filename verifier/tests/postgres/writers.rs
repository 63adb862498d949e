//! Writers go on while a ledger is judged, and what they do is not in it.

use std::path::Path;
use std::time::{Duration, Instant};

use audit_verify::{Demands, Postgres, Tables as _, verify};
use ledger_engine::hash::Hash;
use postgres::{Client, NoTls};

use crate::database::{Database, fixture, read_dump};

const JUNK: &str =
    "INSERT INTO ledger.entries SELECT chain, idx + 1000, prev_hash, stream, revision, parent_hash, event_id,
    event_type, schema_version, recorded_at_us, body_hash, body_sha256, entry_hash, parent_index, body
    FROM ledger.entries WHERE chain = 0 AND idx = 3";

#[test]
fn nobody_waits_for_the_other() {
    let mut database = Database::of("valid/two_chains.json");
    a_change_of_the_schema_is_not_waited_for_and_not_missed(&mut database);
    the_verdict_is_of_one_snapshot(&mut database);
    a_cursor_that_is_left(&mut database);
}

fn the_verdict_is_of_one_snapshot(database: &mut Database) {
    let trust = read_dump(&fixture("valid/two_chains.json"))["trust"].as_str().and_then(Hash::from_hex);
    database.execute("CREATE ROLE writer LOGIN IN ROLE ledger_writer");
    let writer = || {
        let mut client = Client::connect(&database.server.url("writer"), NoTls).unwrap();
        // A writer that would have to wait for the verifier fails instead.
        client.batch_execute("SET lock_timeout = '1ms'").unwrap();
        client
    };
    let (mut waiting, mut quick) = (writer(), writer());
    waiting.batch_execute(&format!("BEGIN; {JUNK}")).unwrap();
    let source = Postgres::open(&database.url()).unwrap();
    quick.batch_execute(&JUNK.replace("1000", "2000")).unwrap();
    waiting.batch_execute("COMMIT").unwrap();
    quick.batch_execute("UPDATE ledger.chain_heads SET size = size + 3000").unwrap();
    let demands = Demands { trust, ..Demands::default() };
    let report = verify("test", &source, demands);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    drop(source);
    let report = verify("test", &Postgres::open(&database.url()).unwrap(), demands);
    assert_eq!(report.exit(), 1, "{}", report.to_text());
}

/// While entries are read no transaction is as old as the run, and what does not fit is read again in a snapshot.
#[test]
fn the_snapshot_is_given_up_before_entries_are_read() {
    let mut database = Database::of("valid/two_chains.json");
    database.without_triggers();
    let trust = read_dump(&fixture("valid/two_chains.json"))["trust"].as_str().and_then(Hash::from_hex);
    let source = Postgres::open(&database.url()).unwrap().in_pages_of(2);
    let oldest = "SELECT min(xact_start)::text FROM pg_stat_activity WHERE usename = 'auditor'";
    let begun: Option<String> = database.client.query_one(oldest, &[]).unwrap().get(0);
    assert!(begun.is_some(), "at first it holds a snapshot");
    let client = std::sync::Mutex::new(&mut database.client);
    let told = |_: u64, _: u64| {
        let found: Option<String> = client.lock().unwrap().query_one(oldest, &[]).unwrap().get(0);
        assert_ne!(found, begun);
        true
    };
    let report = verify("test", &source, Demands { trust, progress: Some(&told), ..Demands::default() });
    assert_eq!((report.exit(), source.is_settled()), (0, true), "{}", report.to_text());

    // What does not fit is copied, and while it is judged there is no transaction at all.
    database.execute("UPDATE ledger.entries SET recorded_at_us = recorded_at_us + 1 WHERE chain = 0 AND idx = 4");
    a_copy_is_judged_without_a_transaction(&mut database, trust, "entry_hash_mismatch");
    // Nor where a table lost its key, so that it cannot be read by pages.
    database.execute("ALTER TABLE ledger.commit_signatures DROP CONSTRAINT commit_signatures_pkey");
    a_copy_is_judged_without_a_transaction(&mut database, trust, "entry_hash_mismatch");
    let source = Postgres::open(&database.url()).unwrap();
    let report = verify("test", &source, Demands { trust, ..Demands::default() });
    assert!(report.codes().contains(&"entry_hash_mismatch".to_owned()), "{}", report.to_text());
    // Nothing of the run is left waiting.
    drop(source);
    assert_eq!(audit_verify::verify_path(Path::new(&database.url()), trust).codes(), report.codes());
}

fn a_copy_is_judged_without_a_transaction(database: &mut Database, trust: Option<Hash>, code: &str) {
    let source = Postgres::open(&database.url()).unwrap();
    // The client, and how many transactions there were whenever the run told how far it was.
    let seen = std::sync::Mutex::new((&mut database.client, Vec::<i64>::new()));
    let told = |_: u64, _: u64| {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'auditor' AND xact_start IS NOT NULL";
        let mut seen = seen.lock().unwrap();
        let now = seen.0.query_one(open, &[]).unwrap().get(0);
        seen.1.push(now);
        true
    };
    let report = verify("test", &source, Demands { trust, progress: Some(&told), ..Demands::default() });
    assert_eq!((report.exit(), source.is_copied()), (1, true), "{}", report.to_text());
    assert!(report.codes().contains(&code.to_owned()), "{}", report.to_text());
    let (_, seen) = seen.into_inner().unwrap();
    // Naming faults is the last that it does.
    assert!(seen.ends_with(&[0, 0]), "{seen:?}");
}

/// A page ends after some megabytes: what else was on its way is passed over, and comes with the next one.
#[test]
fn large_rows_come_page_by_page() {
    let mut database = Database::of("valid/two_chains.json");
    database.without_triggers();
    database.execute(
        "DELETE FROM ledger.private_documents;
         INSERT INTO ledger.private_documents SELECT 0, n, convert_to(repeat('x', 1500000 + n), 'UTF8') FROM generate_series(0, 8) n",
    );
    let source = Postgres::open(&database.url()).unwrap();
    let whole = source.all("private_documents", Some(0)).unwrap();
    assert_eq!(whole.len(), 9);
    source.settle(&[10, 15], &|_| true).unwrap();
    assert!(source.is_settled());
    for _ in 0..2 {
        let mut rows = Vec::new();
        let read = source.side_by_side(0, &["private_documents"], &mut |cursors| {
            while let Some(row) = cursors[0].next()? {
                rows.push(row);
            }
            Ok(())
        });
        read.unwrap();
        assert!(rows == whole, "{} rows", rows.len());
        // Who leaves early leaves nothing behind.
        source.side_by_side(0, &["private_documents"], &mut |cursors| cursors[0].next().map(drop)).unwrap();
    }
}

fn a_change_of_the_schema_is_not_waited_for_and_not_missed(database: &mut Database) {
    database.execute("BEGIN; LOCK TABLE ledger.commits");
    let begun = Instant::now();
    let said = Postgres::open(&database.url()).map(drop).unwrap_err().to_string();
    assert!(said.contains("55P03") && said.contains("run again"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    database.execute("ROLLBACK");
    // All tables of the run are held from its beginning, so that none can be emptied in it.
    let source = Postgres::open(&database.url()).unwrap();
    database.execute("SET lock_timeout = '1ms'");
    for table in ["entries", "orders", "tiles"] {
        let refused = database.client.batch_execute(&format!("TRUNCATE ledger.{table}"));
        assert_eq!(refused.unwrap_err().code().unwrap().code(), "55P03");
    }
    assert_eq!(source.chains("entries").unwrap(), [Some(0), Some(1)].into());
    database.execute("SET lock_timeout = 0");
}

/// The server goes while rows are on their way.
#[test]
fn a_server_that_stops() {
    let mut database = Database::of("valid/two_chains.json");
    // More than all buffers between the two hold.
    database.execute(
        "ALTER TABLE ledger.private_documents ALTER document SET STORAGE EXTERNAL;
         INSERT INTO ledger.private_documents SELECT 0, n, convert_to(repeat('x', 65536), 'UTF8') FROM generate_series(1000, 2000) n",
    );
    let (url, trust) =
        (database.url(), read_dump(&fixture("valid/two_chains.json"))["trust"].as_str().unwrap().to_owned());
    let source = Postgres::open(&url).unwrap();
    let mut database = Some(database);
    let read = source.side_by_side(0, &["private_documents"], &mut |cursors| {
        while cursors[0].next()?.is_some() {
            drop(database.take());
        }
        Ok(())
    });
    assert!(database.is_none());
    let said = read.unwrap_err().to_string();
    assert!(said.contains("database: "), "{said}");
    let demands = Demands { trust: Hash::from_hex(&trust), ..Demands::default() };
    let report = verify("test", &source, demands);
    assert_eq!((report.exit(), report.findings().len()), (2, 0), "{}", report.to_text());
    let report = audit_verify::verify_path(Path::new(&url), demands.trust);
    assert_eq!((report.exit(), report.findings().len()), (2, 0), "{}", report.to_text());
}

/// Rows that nobody takes do not hold a connection for ever.
fn a_cursor_that_is_left(database: &mut Database) {
    database.execute(
        "INSERT INTO ledger.private_documents SELECT 0, n, decode(repeat('ab', 60000), 'hex') FROM generate_series(1000, 3000) n",
    );
    let source = Postgres::open(&database.url()).unwrap();
    for _ in 0..3 {
        let taken =
            source.side_by_side(0, &["private_documents", "entries"], &mut |cursors| cursors[1].next().map(drop));
        taken.unwrap();
    }
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'auditor' AND state = 'active'";
    let begun = Instant::now();
    while database.client.query_one(busy, &[]).unwrap().get::<_, i64>(0) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "a statement goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(source.all("entries", Some(0)).unwrap().len(), 12);
}
