//! Legacy tables in a PostgreSQL of this test's own.

use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use audit_verify::legacy::{Gauge, LegacyReport, Table, Window, verify_legacy, verify_legacy_with};
use postgres::{Client, NoTls};
use serde_json::Value;

use crate::adoption::{adopted, compare_source};
use crate::chain::{
    assert_found, assert_verified, chain, found, hash, judge, lines, notes, registry, reseal, seal, signers,
};
use test_servers::Server;

pub(crate) const SERIAL: &str =
    "CREATE TABLE audit_events (id bigserial PRIMARY KEY, actor_id text, event_type text NOT NULL,
    payload jsonb, created_at timestamptz NOT NULL, hash text, prev_hash text, signature text NOT NULL,
    signer_kid text NOT NULL, metadata jsonb, inserted_at timestamptz DEFAULT now())";

pub(crate) fn load(client: &mut Client, rows: &[Value]) {
    let text = Value::from(rows.to_vec()).to_string();
    client
        .execute(
            "INSERT INTO audit_events (id, actor_id, event_type, payload, created_at, hash, prev_hash, signature, signer_kid)
             SELECT id, actor_id, event_type, payload, created_at, hash, prev_hash, signature, signer_kid
             FROM jsonb_populate_recordset(NULL::audit_events, $1::text::jsonb)",
            &[&text],
        )
        .unwrap();
}

fn judge_table(url: &str, window: Window) -> LegacyReport {
    let mut table = Table::open(url, "audit_events", window).unwrap();
    verify_legacy("test", &mut table, Some(&signers()), &[])
}

static ROWS: LazyLock<Vec<Value>> = LazyLock::new(|| chain(20_000));

#[test]
fn the_table_gives_the_report_of_its_export() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    assert_eq!(judge_table(&url, Window::default()).exit(), 2, "an empty table is never verified");
    load(&mut client, &ROWS);
    let report = judge_table(&url, Window::default());
    assert_verified(&report, 20_000);
    let file = judge(&ROWS);
    assert_eq!((report.head, report.rows_digest, &report.days), (file.head, file.rows_digest, &file.days));

    client
        .batch_execute(
            "UPDATE audit_events SET payload = payload || '{\"step\": 0}' WHERE id = 17000;
             UPDATE audit_events SET payload = '{\"huge\": 1e400}' WHERE id = 5;
             DELETE FROM audit_events WHERE id IN (1, 900)",
        )
        .unwrap();
    assert_found(
        &judge_table(&url, Window::default()),
        &[
            "genesis_missing 2",
            "canonical_impossible 5",
            "link_broken 901",
            "hash_mismatch 17000",
            "signature_invalid 17000",
        ],
    );
}

/// A fork beside the last row of a range, by the number of its rows and by their bytes.
#[test]
fn rows_of_one_id_are_all_read() {
    const RANGE: usize = 16 * 1024;
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(&SERIAL.replace(" PRIMARY KEY", "")).unwrap();
    let fork = |rows: &[Value], at: usize| {
        let mut row = rows[at].clone();
        row["payload"]["amount"]["value"] = Value::from(1);
        seal(&mut row, Some(hash(&rows[at - 1])));
        row
    };
    load(&mut client, &ROWS[..RANGE + 100]);
    load(&mut client, &[fork(&ROWS, RANGE - 1)]);
    let expected = [format!("fork {RANGE}"), format!("id_duplicate {RANGE}")];
    let report = judge_table(&url, Window::default());
    assert_eq!((report.exit(), report.rows), (1, RANGE as u64 + 101), "{}", report.to_text());
    assert!(expected.iter().all(|e| found(&report).contains(e)), "{}", report.to_text());

    // Of eight rows of some 5 MB the seventh is the one that ends a range.
    let mut large = chain(8);
    large.iter_mut().for_each(|row| row["payload"]["filler"] = Value::from("x".repeat(5 << 20)));
    reseal(&mut large, 0);
    client.batch_execute("DELETE FROM audit_events").unwrap();
    for at in 0..large.len() {
        load(&mut client, &large[at..=at]);
        load(&mut client, &[fork(&large, 6)][..usize::from(at == 6)]);
    }
    let report = judge_table(&url, Window::default());
    assert_eq!((report.exit(), report.rows), (1, 9), "{}", report.headline());
    assert!(found(&report).contains(&"fork 7".to_owned()), "{}", report.headline());
}

/// Rows are read by the index of their ids. One that it leaves out is there for everybody who asks in another way.
#[test]
fn what_an_index_leaves_out_is_missed() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    load(&mut client, &ROWS);
    client.batch_execute("ANALYZE audit_events").unwrap();
    assert_verified(&judge_table(&url, Window::default()), 20_000);
    for hidden in [10_000, 20_001] {
        client
            .batch_execute(&format!(
                "UPDATE pg_index SET indisready = false WHERE indexrelid = 'audit_events_pkey'::regclass;
                 INSERT INTO audit_events (id, event_type, payload, created_at, signature, signer_kid)
                 VALUES ({hidden}, 'evil', '1', now(), '', '');
                 UPDATE pg_index SET indisready = true WHERE indexrelid = 'audit_events_pkey'::regclass"
            ))
            .unwrap();
        let report = judge_table(&url, Window::default());
        assert!(report.exit() == 2 && report.reason.contains("an index leaves rows out"), "{}", report.to_text());
        client.batch_execute("SET enable_indexscan = off; DELETE FROM audit_events WHERE event_type = 'evil'").unwrap();
    }
}

/// What a value looks like, and which of two comes first, is not for code in the database to say.
#[test]
fn types_with_code_of_their_own_are_refused() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    load(&mut client, &ROWS[..20]);
    // Domains and enumerations print as the server prints what is below them.
    client
        .batch_execute(
            "CREATE DOMAIN kid AS text; ALTER TABLE audit_events ALTER signer_kid TYPE kid;
             CREATE TYPE kinds AS ENUM ('order.paid'); ALTER TABLE audit_events ALTER event_type TYPE kinds USING event_type::kinds",
        )
        .unwrap();
    assert_verified(&judge_table(&url, Window::default()), 20);
    let refused = |change: &str, said: &str| {
        let mut client = Client::connect(&url, NoTls).unwrap();
        client.batch_execute(change).unwrap();
        let error = Table::open(&url, "audit_events", Window::default()).map(drop).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("is up to code in the database"), "{error}");
    };
    refused(
        "CREATE FUNCTION shown(kinds) RETURNS text LANGUAGE sql AS $$SELECT 'order.paid'$$;
         CREATE CAST (kinds AS text) WITH FUNCTION shown(kinds)",
        "event_type",
    );
    refused(
        "DROP CAST (kinds AS text); ALTER TABLE audit_events ALTER event_type TYPE text; CREATE TYPE boxed AS (j jsonb);
         ALTER TABLE audit_events ALTER payload TYPE boxed USING row(payload)::boxed",
        "payload",
    );
    refused(
        "ALTER TABLE audit_events ALTER payload TYPE jsonb USING (payload).j; ALTER TABLE audit_events ALTER id DROP DEFAULT;
         CREATE TYPE ids AS ENUM ('1'); DELETE FROM audit_events WHERE id > 1; ALTER TABLE audit_events ALTER id TYPE ids USING id::text::ids",
        "compared",
    );
}

#[test]
fn rows_without_a_time_are_read() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(&SERIAL.replace("created_at timestamptz NOT NULL", "created_at timestamptz")).unwrap();
    load(&mut client, &ROWS[..30]);
    client.batch_execute("UPDATE audit_events SET created_at = NULL, payload = '{\"step\": 0}' WHERE id = 28").unwrap();
    let since = Window { since_ms: Window::parse_since("2025-11-01T00:00:05Z"), ..Window::default() };
    let limit = Window { limit: Some(10), ..Window::default() };
    let expected = ["hash_mismatch 28", "signature_invalid 28"];
    for window in [Window::default(), since, limit] {
        assert_found(&judge_table(&url, window), &expected);
    }
    client
        .batch_execute(
            "CREATE SCHEMA other;
             CREATE TABLE other.audit_events AS SELECT md5(id::text)::uuid AS id, event_type, payload, created_at,
                 hash, prev_hash, signature, signer_kid FROM public.audit_events",
        )
        .unwrap();
    for window in [Window::default(), since, limit] {
        let mut table = Table::open(&url, "other.audit_events", window).unwrap();
        let report = verify_legacy("test", &mut table, Some(&signers()), &[]);
        let codes: Vec<&str> = report.findings().iter().map(|f| f.code.as_str()).collect();
        assert_eq!(codes, ["legacy_hash_mismatch", "legacy_signature_invalid"], "{}", report.to_text());
    }
}

#[test]
fn windows_name_what_they_leave_out() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    load(&mut client, &ROWS[..300]);
    let since = Window { since_ms: Window::parse_since("2025-11-01T00:01:30Z"), ..Window::default() };
    // Three rows share each second, and all of the oldest second are taken.
    for (window, rows) in
        [(since, 30), (Window { limit: Some(10), ..since }, 12), (Window { limit: Some(1000), since_ms: None }, 300)]
    {
        let report = judge_table(&url, window);
        assert_eq!((report.exit(), report.rows), (0, rows), "{}", report.to_text());
        assert_eq!(notes(&report).contains(&"legacy_range_not_covered"), rows < 300);
        assert!(rows == 300 || report.anchor().is_none());
    }
    client.batch_execute("DELETE FROM audit_events WHERE id = 295").unwrap();
    assert_found(&judge_table(&url, since), &["link_broken 296"]);
}

#[test]
fn columns_of_other_deployments() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client
        .batch_execute(&format!(
            "{SERIAL}; ALTER TABLE audit_events RENAME TO loaded;
             CREATE TABLE audit_events (LIKE loaded)",
        ))
        .unwrap();
    load(&mut client, &ROWS[..5000]);
    client
        .batch_execute(
            "CREATE SCHEMA other;
             CREATE TABLE other.history AS SELECT md5(id::text)::uuid AS id, event_type, payload, created_at AS ts,
                 coalesce(prev_hash, '') AS prev_hash, signature, signer_kid AS signer_id FROM audit_events;
             ALTER TABLE other.history ADD PRIMARY KEY (id)",
        )
        .unwrap();
    let mut table = Table::open(&url, "other.history", Window::default()).unwrap();
    let report = verify_legacy("test", &mut table, Some(&signers()), &[]);
    assert_verified(&report, 5000);
    assert_eq!((report.head.unwrap().to_hex().as_str(), report.hashes_compared), (hash(&ROWS[4999]), 0));
    for missing in ["nowhere", "pg_class", "other.audit_events"] {
        assert!(Table::open(&url, missing, Window::default()).is_err(), "{missing}");
    }
}

#[test]
fn the_database_is_not_believed() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    load(&mut client, &ROWS[..30]);
    // A view before the table, and functions before PostgreSQL's own.
    client
        .batch_execute(
            "CREATE SCHEMA evil;
             CREATE VIEW evil.audit_events AS SELECT * FROM public.audit_events WHERE id < 20;
             CREATE FUNCTION evil.left(text, int) RETURNS text LANGUAGE sql AS 'SELECT ''x''';
             CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql AS 'SELECT 0';
             CREATE ROLE auditor LOGIN PASSWORD 'secret-word'; GRANT USAGE ON SCHEMA evil TO auditor;
             GRANT SELECT ON ALL TABLES IN SCHEMA evil, public TO auditor;
             ALTER ROLE auditor SET search_path = evil, pg_catalog, public",
        )
        .unwrap();
    let auditor = server.url("auditor:secret-word");
    let report = judge_table(&auditor, Window::default());
    assert_verified(&report, 19);
    assert!(report.kind.contains("view evil.audit_events"), "{}", report.kind);
    assert!(report.to_text().contains("its definition decides which rows there are"));
    let mut table = Table::open(&auditor, "public.audit_events", Window::default()).unwrap();
    assert_verified(&verify_legacy("test", &mut table, Some(&signers()), &[]), 30);
    // Rows hidden from the role: refused, not verified.
    client
        .batch_execute(
            "ALTER TABLE public.audit_events ENABLE ROW LEVEL SECURITY;
             CREATE POLICY hidden ON public.audit_events USING (id < 20)",
        )
        .unwrap();
    let hidden = Table::open(&auditor, "public.audit_events", Window::default()).map(|_| ());
    assert!(hidden.unwrap_err().to_string().contains("row-level security"));
    // Rows without a key cannot be read by ranges of the key.
    client
        .batch_execute("CREATE VIEW public.nameless AS SELECT NULLIF(id, 3) AS id, payload, prev_hash, signature FROM audit_events")
        .unwrap();
    assert!(Table::open(&url, "public.nameless", Window::default()).is_err());
}

#[test]
fn rows_written_meanwhile_are_left_alone() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    load(&mut client, &ROWS[..20]);
    let mut table = Table::open(&url, "audit_events", Window::default()).unwrap();
    load(&mut client, &ROWS[20..30]);
    assert_verified(&verify_legacy("test", &mut table, Some(&signers()), &[]), 20);
    // A row whose number was given out early links to one that is newer than the head.
    client.batch_execute("DELETE FROM audit_events; CREATE TABLE waiting AS SELECT * FROM audit_events").unwrap();
    load(&mut client, &ROWS[..20]);
    let mut table = Table::open(&url, "audit_events", Window::default()).unwrap();
    load(&mut client, &ROWS[20..22]);
    client.batch_execute("UPDATE audit_events SET id = -1 WHERE id = 22").unwrap();
    let report = verify_legacy("test", &mut table, Some(&signers()), &[]);
    assert_eq!((report.exit(), found(&report).len()), (2, 0), "{}", report.to_text());
}

#[test]
fn stopped_while_the_database_makes_it_wait() {
    let server = Server::start_tls();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    load(&mut client, &ROWS[..30]);
    // What cancels a statement speaks TLS too.
    let mut table = Table::open(&(url + "?sslmode=require"), "audit_events", Window::default()).unwrap();
    client.batch_execute("BEGIN; LOCK TABLE audit_events").unwrap();
    let started = Instant::now();
    let asked = std::cell::Cell::new(0);
    let watch = |rows: u64, _: &Gauge| {
        assert_eq!(rows, 0);
        asked.set(asked.get() + 1);
        asked.get() < 5
    };
    let report = verify_legacy_with("test", &mut table, Some(&signers()), &[], &watch);
    assert_eq!((report.exit(), report.reason.as_str()), (2, "stopped when asked to (0 rows were read)"));
    assert!(started.elapsed() < Duration::from_secs(60), "the statement was not cancelled");
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let program = env!("CARGO_BIN_EXE_audit-verify");
    let mut command = Command::new(program);
    command.args(arguments).env_remove("POSTGRES_URL").env_remove("DATABASE_URL").envs(variables.iter().copied());
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn called_as_the_runbooks_do() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    load(&mut client, &ROWS[..30]);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (keys, saved) = (file("signers.json"), file("head.json"));
    std::fs::write(&keys, registry().to_string()).unwrap();
    let line = format!("Audit chain verified. Head hash: {}\n", hash(&ROWS[29]));
    let other = "postgres://nobody:secret-word@localhost:1/none";
    for (arguments, variables) in [
        (vec!["-d", &url, "-s", &keys], vec![]),
        (vec!["--database-url", &url, "--signers", &keys, "--save-anchor", &saved], vec![("POSTGRES_URL", other)]),
        (vec!["-s", &keys, "--anchor", &saved], vec![("POSTGRES_URL", url.as_str()), ("DATABASE_URL", other)]),
        (vec!["-s", &keys, "--limit", "5"], vec![("DATABASE_URL", &url)]),
        (vec!["-s", &keys, "--since", "2025-11-01"], vec![("POSTGRES_URL", ""), ("DATABASE_URL", &url)]),
        (vec![&url, "--format", "table", "-s", &keys], vec![]),
    ] {
        let (exit, out, err) = run(&arguments, &variables);
        assert_eq!((exit, err.as_str()), (0, ""), "{arguments:?} {out}");
        assert!(out.starts_with(&line), "{arguments:?} {out}");
    }
    let (exit, out, _) = run(&["-d", other, "-s", &keys], &[]);
    assert_eq!(exit, 2);
    assert!(!out.contains("secret-word") && out.contains("COULD NOT CHECK"), "{out}");
    client.batch_execute("DELETE FROM audit_events WHERE id > 25").unwrap();
    assert_eq!(run(&["-d", &url, "-s", &keys], &[]).0, 0);
    let (exit, out, err) = run(&["-d", &url, "-s", &keys, "--anchor", &saved], &[]);
    assert_eq!(exit, 1);
    for text in [&out, &err] {
        assert!(text.lines().any(|l| l.starts_with("Audit verification failed:")), "{text}");
    }
    let (exit, out, _) = run(&["-d", &url, "-s", &keys, "--anchor", &saved, "--json"], &[]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, json["finding_counts"]["legacy_anchor_beyond_tail"].as_u64()), (1, Some(1)));
    for bad in [
        vec!["-s", keys.as_str()],
        vec![],
        vec!["-d", &url, "-s", "/none"],
        vec!["-d", &url, "--since", "x"],
        vec![&keys, "--limit", "3"],
    ] {
        assert_eq!(run(&bad, &[]).0, 2, "{bad:?}");
    }
}

#[test]
fn what_was_asked_for_is_done_or_refused() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    load(&mut client, &ROWS[..30]);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (keys, saved, events) = (file("signers.json"), file("head.json"), file("events.jsonl"));
    std::fs::write(&keys, registry().to_string()).unwrap();
    std::fs::write(&events, lines(&ROWS[..30])).unwrap();
    let required = ["-d", &url, "-s", &keys, "--require-anchor"];
    assert_eq!(run(&required, &[]).0, 2, "no anchor was given");
    assert_eq!(run(&["-d", &url, "-s", &keys, "--save-anchor", &saved], &[]).0, 0);
    let required = ["-d", &url, "-s", &keys, "--require-anchor", "--anchor", &saved];
    assert_eq!(run(&required, &[]).0, 0);
    load(&mut client, &ROWS[30..32]);
    let (exit, out, _) = run(&required, &[]);
    assert_eq!(exit, 2);
    assert!(out.contains("covers the last 2 of 32 rows"), "{out}");
    let id = "00".repeat(32);
    for (arguments, word) in [
        (vec![events.as_str(), "-s", &keys, "--limit", "3"], "--limit"),
        (vec![&events, "-s", &keys, "--since", "2025-11-01"], "--since"),
        (vec![&events, "-s", &keys, "--table", "audit_events"], "--table"),
        (vec!["shop.db", "--limit", "3"], "--limit"),
        (vec!["shop.db", "--table", "audit_events"], "--table"),
        (vec![&events, "-s", &keys, "--trust", &id], "--trust"),
        (vec!["-d", &url, "-s", &keys, "--trust", &id], "--trust"),
    ] {
        let (exit, out, err) = run(&arguments, &[]);
        assert_eq!((exit, out.as_str()), (2, ""), "{arguments:?}");
        assert!(err.starts_with("audit-verify: --") && err.contains(word), "{arguments:?} {err}");
    }
}

#[test]
fn the_status_is_what_was_found_whatever_becomes_of_the_output() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (keys, good, bad) = (file("signers.json"), file("good.jsonl"), file("bad.jsonl"));
    let (nowhere, dump) = (file("none/report.html"), file("adopted.json"));
    std::fs::write(&keys, registry().to_string()).unwrap();
    std::fs::write(&good, lines(&ROWS[..30])).unwrap();
    std::fs::write(&bad, lines(&[&ROWS[..10], &ROWS[11..30]].concat())).unwrap();
    std::fs::write(&dump, "no ledger-dump/1").unwrap();
    for mode in ["--json", "--quiet", "--list-nothing"] {
        let mut arguments = vec!["-s", &keys, "--report", &nowhere];
        arguments.extend(Some(mode).filter(|m| *m != "--list-nothing"));
        for (source, expected) in [(&bad, 1), (&good, 2)] {
            let (exit, out, err) = run(&[&arguments[..], &[source.as_str()]].concat(), &[]);
            assert_eq!(exit, expected, "{mode} {source}");
            assert!(!out.is_empty() && err.contains("--report") && err.contains("check the path"), "{err}");
        }
        // The second is judged though the page of the first cannot be written.
        let (exit, out, _) = run(&[&arguments[..], &[dump.as_str(), bad.as_str()]].concat(), &[]);
        assert_eq!(exit, 1, "{mode} {out}");
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_audit-verify"));
        arguments.retain(|a| *a != "--report" && *a != nowhere);
        let status = |command: &mut Command| command.stderr(std::process::Stdio::null()).status().unwrap().code();
        command.args(&arguments).args([&good, &bad]).stdout(full);
        assert_eq!(status(&mut command), Some(1), "{mode}");
    }
}

/// A password with a slash ends nowhere a reader can tell.
#[test]
fn no_report_has_a_password() {
    let url = "postgres://a:se/cret@db/shop";
    for arguments in [vec!["-d", url], vec![url], vec![url, "-d", url]] {
        let (exit, out, err) = run(&arguments, &[]);
        assert_eq!(exit, 2);
        assert!(out.contains("postgres://…") && !out.contains("cret") && !err.contains("cret"), "{out}{err}");
    }
}

/// PostgreSQL's own export has the root of the table, and each column of the table is covered.
#[test]
fn a_table_and_its_export_are_adopted_alike() {
    let server = Server::start();
    let url = server.url("postgres");
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    let mut rows = ROWS[..60].to_vec();
    rows[7]["payload"] =
        serde_json::json!({ "z": 1e21, "é\u{1f600}": "a\"\\\n\u{7f}", "a": [0.1, -0.5, 12345678901_i64] });
    rows[8]["payload"] = Value::Null;
    rows[9]["actor_id"] = Value::Null;
    rows[10]["actor_id"] = Value::from("x".repeat(40_000) + "é\n\"");
    rows[11]["created_at"] = Value::from("2025-11-01T01:00:03.123456+01:00");
    load(&mut client, &rows);
    // What no double has exactly.
    client
        .batch_execute(
            "UPDATE audit_events SET payload = '{\"n\": 9007199254740993, \"x\": 1.50, \"y\": 1e-400}' WHERE id = 13",
        )
        .unwrap();
    let table = |with: &[_]| compare_source(&mut Table::open(&url, "audit_events", Window::default()).unwrap(), with);
    let first = table(&[]);
    let export: Vec<String> = client
        .query("SELECT row_to_json(t)::text FROM audit_events t ORDER BY id DESC", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), export.join("\n")).unwrap();
    let of_file = compare_source(&mut audit_verify::legacy::File::open(file.path(), None).unwrap(), &[]);
    assert_eq!((of_file.root, &of_file.first, &of_file.last), (first.root, &first.first, &first.last));
    let with = [adopted(&first)];
    let before = table(&with).findings().len();
    for change in [
        "id = 1000",
        "actor_id = 'mallory'",
        "actor_id = NULL",
        "actor_id = actor_id || ' '",
        "event_type = 'x'",
        "created_at = created_at + interval '1 microsecond'",
        "hash = NULL",
        "prev_hash = upper(prev_hash)",
        "signature = signature || ' '",
        "signer_kid = 'other'",
        "payload = '{\"n\": 9007199254740992, \"x\": 1.50, \"y\": 1e-400}'",
        "payload = '{\"n\": 9007199254740993, \"x\": 1.50, \"y\": 1e-401}'",
    ] {
        let mut change_it = client.transaction().unwrap();
        change_it
            .batch_execute(&format!(
                "CREATE TABLE kept AS SELECT * FROM audit_events; UPDATE audit_events SET {change} WHERE id = 13"
            ))
            .unwrap();
        change_it.commit().unwrap();
        let report = table(&with);
        let mismatch = "adoption_mismatch legacy.adopted/9".to_owned();
        assert!(found(&report).contains(&mismatch), "{change}\n{}", report.to_text());
        client
            .batch_execute("DELETE FROM audit_events; INSERT INTO audit_events SELECT * FROM kept; DROP TABLE kept")
            .unwrap();
        assert_eq!(table(&with).findings().len(), before, "{change}");
    }
    client.batch_execute("DELETE FROM audit_events").unwrap();
    assert_found(&table(&with), &["adoption_mismatch legacy.adopted/9"]);
}
