//! A standby serves as a source, and says so when it could not hold the snapshot.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use audit_verify::{Demands, Postgres, verify, verify_path};
use ledger_engine::hash::Hash;
use postgres::error::SqlState;
use postgres::{Client, NoTls};

use crate::database::{Database, PASSWORD, fixture, read_dump};

/// A standby of the server, in its directory. It gives way to what the primary sends at once.
struct Standby<'a> {
    database: &'a Database,
    port: u16,
}

impl<'a> Standby<'a> {
    fn of(database: &'a Database) -> Standby<'a> {
        let primary = database.server.url("postgres");
        database.server.run("pg_basebackup", &["-d", &primary, "-D", "standby", "-R", "-c", "fast", "--no-sync"]);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_standby_streaming_delay=0 -p {port}"
        );
        database.server.run("pg_ctl", &["-D", "standby", "-w", "-l", "standby.log", "-o", &options, "start"]);
        Standby { database, port }
    }

    fn url(&self, user: &str) -> String {
        format!("postgresql://{user}@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Standby<'_> {
    fn drop(&mut self) {
        self.database.server.run("pg_ctl", &["-D", "standby", "-m", "immediate", "stop"]);
    }
}

#[test]
fn a_standby_that_cannot_hold_the_snapshot() {
    let database = Database::of("valid/two_chains.json");
    let trust = read_dump(&fixture("valid/two_chains.json"))["trust"].as_str().and_then(Hash::from_hex);
    let standby = Standby::of(&database);
    let url = standby.url(&format!("auditor:{PASSWORD}"));
    let report = verify_path(Path::new(&url), trust);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    assert!(report.kind().unwrap().ends_with(", a standby"), "{:?}", report.kind());

    let source = Postgres::open(&url).unwrap();
    let mut primary = Client::connect(&database.server.url("postgres"), NoTls).unwrap();
    primary.batch_execute("UPDATE ledger.orders SET updated_at_us = updated_at_us").unwrap();
    primary.batch_execute("VACUUM ledger.orders").unwrap();
    let end: String = primary.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).unwrap().get(0);
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn");
    let begun = Instant::now();
    // The question itself gives way to what is replayed while it is asked, as every query on this standby does.
    while !ask(&standby, &replayed) {
        assert!(begun.elapsed() < Duration::from_secs(30), "the standby does not follow");
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = verify("test", &source, Demands { trust, ..Demands::default() });
    assert_eq!((report.exit(), report.findings().len()), (2, 0), "{}", report.to_text());
    assert!(report.reason().contains("max_standby_streaming_delay"), "{}", report.reason());
}

/// What the standby answers, or no if it cancelled the question for the sake of its replay, or ended the connection for it.
fn ask(standby: &Standby<'_>, question: &str) -> bool {
    let connected = Client::connect(&standby.url("postgres"), NoTls);
    match connected.and_then(|mut client| client.query_one(question, &[])) {
        Ok(row) => row.get(0),
        // A connection that was ended is closed, or reset under the question.
        Err(error) if error.as_db_error().is_none() || error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {
            false
        }
        Err(error) => panic!("{error:?}"),
    }
}
