//! The same rows give the same findings, wherever they lie.

use std::path::{Path, PathBuf};

use audit_verify::{Anchor, Demands, Dump, Postgres, Report, verify, verify_path};
use serde_json::{Value, json};

use crate::database::{Database, fixture, read_dump, run};

/// Dumps of both folders whose values do not fit the columns of the schema.
const MISFITS: usize = 0;

fn dumps() -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for folder in ["valid", "broken"] {
        let files = std::fs::read_dir(fixture(folder)).unwrap().map(|f| f.unwrap().path());
        paths.extend(files.filter(|path| path.extension().is_some_and(|e| e == "json")));
    }
    paths.sort();
    paths
}

/// Everything but the name of the source and what kind it is.
fn judgement(report: &Report) -> Value {
    let mut json = report.to_json();
    for of_the_source in ["source", "kind"] {
        json.as_object_mut().unwrap().remove(of_the_source);
    }
    json
}

#[test]
fn the_same_rows_give_the_same_report() {
    let mut database = Database::new();
    database.unguard();
    every_dump_gives_the_report_that_it_gives_as_a_file(&mut database);
    rows_that_fit_nowhere(&mut database);
    any_number_of_threads(&mut database);
}

fn every_dump_gives_the_report_that_it_gives_as_a_file(database: &mut Database) {
    let (mut judged, mut misfits) = (0, Vec::new());
    for path in dumps() {
        database.clear();
        if let Err(why) = database.load(&read_dump(&path)) {
            misfits.push(format!("{}: {why}", path.display()));
            continue;
        }
        let dump = Dump::read(&path).unwrap();
        let report = database.judge(&dump.trust.map(|t| t.to_hex()).unwrap_or_default());
        assert_eq!((report.exit(), report.codes()), dump.expect.unwrap(), "{}: {}", path.display(), report.to_text());
        assert_eq!(judgement(&report), judgement(&verify_path(&path, dump.trust)), "{}", path.display());
        judged += 1;
    }
    assert_eq!(misfits.len(), MISFITS, "{misfits:#?}");
    assert!(judged >= 57, "{judged}");
}

/// Read by ranges of the index, as a database with its keys is, the same rows give the same report again.
#[test]
fn ranges_give_what_one_snapshot_gives() {
    let mut database = Database::new();
    database.without_triggers();
    let (mut by_ranges, mut read_again) = (0, 0);
    for path in dumps() {
        database.clear();
        if database.load(&read_dump(&path)).is_err() {
            // What no key lets in is judged without keys.
            continue;
        }
        let dump = Dump::read(&path).unwrap();
        let source = Postgres::open(&database.url()).unwrap().in_pages_of(3);
        let report = verify("", &source, Demands { trust: dump.trust, ..Demands::default() });
        assert_eq!(judgement(&report), judgement(&verify_path(&path, dump.trust)), "{}", path.display());
        *(if source.is_copied() { &mut read_again } else { &mut by_ranges }) += 1;
        assert!(!source.is_copied() || report.exit() != 0, "{}", path.display());
        assert!(source.is_settled() || source.is_copied() || report.exit() != 0, "{}", path.display());
    }
    assert!(by_ranges >= 15 && read_again >= 80, "{by_ranges}, {read_again}");
}

/// What came after the first checkpoints, read by pages and looked up without a snapshot.
#[test]
fn what_came_after_an_anchor_is_the_same_by_ranges() {
    let mut database = Database::new();
    database.without_triggers();
    let directory = tempfile::tempdir().unwrap();
    let (mut held, mut read_again) = (0, 0);
    for path in dumps() {
        database.clear();
        let rows = read_dump(&path);
        let Some(anchors) = first_checkpoints(&rows, directory.path()) else { continue };
        if database.load(&rows).is_err() {
            continue;
        }
        let dump = Dump::read(&path).unwrap();
        let demands = Demands { trust: dump.trust, anchors: &anchors, since_anchor: true, ..Demands::default() };
        let source = Postgres::open(&database.url()).unwrap().in_pages_of(1);
        let report = verify("", &source, demands);
        let expected = verify("", &Postgres::open(&database.url()).unwrap(), demands);
        assert_eq!(judgement(&report), judgement(&expected), "{}", path.display());
        *(if report.part().is_some() { &mut held } else { &mut read_again }) += 1;
    }
    assert!(held >= 25 && read_again >= 20, "{held}, {read_again}");
}

/// The first checkpoint of each chain, as anchors.
fn first_checkpoints(dump: &Value, directory: &Path) -> Option<Vec<Anchor>> {
    let mut notes = std::collections::BTreeMap::new();
    for row in dump["tables"]["checkpoints"].as_array()? {
        notes.entry(row["chain"].as_u64()).or_insert(row["note"].as_str()?);
    }
    let file = directory.join("first");
    std::fs::write(&file, notes.into_values().collect::<Vec<_>>().join("\n")).unwrap();
    Anchor::read(&file).ok()
}

/// Rows that no key and no constraint would let in.
fn rows_that_fit_nowhere(database: &mut Database) {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 12] = [
        ("an entry without an index", |t| t["entries"][3]["idx"] = Value::Null),
        ("an entry without a body", |t| t["entries"][3]["body"] = Value::Null),
        ("a genesis without a body", |t| t["entries"][0]["body"] = Value::Null),
        ("an entry without a chain", |t| t["entries"][3]["chain"] = Value::Null),
        ("an entry on a chain below 0", |t| t["entries"][3]["chain"] = json!(-1)),
        ("an entry before the first", |t| t["entries"][3]["idx"] = json!(-5)),
        ("an entry beyond the last", |t| t["entries"][3]["idx"] = json!(i64::MAX)),
        ("an entry twice", |t| duplicate(t, "entries", 4)),
        ("a commit twice", |t| duplicate(t, "commits", 1)),
        ("a stream's head twice", |t| duplicate(t, "stream_heads", 0)),
        ("a commit without a size", |t| t["commits"][1]["size"] = Value::Null),
        ("names in no alphabet", |t| t["stream_heads"][0]["stream"] = json!("Ärger\u{1}")),
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dump.json");
    for (what, change) in changes {
        let mut dump = read_dump(&fixture("valid/two_chains.json"));
        change(&mut dump["tables"]);
        std::fs::write(&path, dump.to_string()).unwrap();
        database.clear();
        database.load(&dump).unwrap();
        let report = database.judge(dump["trust"].as_str().unwrap());
        assert_eq!(report.exit(), 1, "{what}: {}", report.to_text());
        let trust = Dump::read(&path).unwrap().trust;
        assert_eq!(judgement(&report), judgement(&verify_path(&path, trust)), "{what}");
    }
}

fn duplicate(tables: &mut Value, table: &str, at: usize) {
    let rows = tables[table].as_array_mut().unwrap();
    rows.push(rows[at].clone());
}

#[test]
fn all_that_can_be_asked_of_a_ledger() {
    let database = Database::of("valid/two_chains.json");
    let dump = read_dump(&fixture("valid/two_chains.json"));
    let (url, id) = (database.url(), dump["trust"].as_str().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let check = |arguments: &[&str], exit: i32, say: &str| {
        let arguments = [&[url.as_str()][..], arguments].concat();
        let (found, said) = run(directory.path(), &arguments);
        assert_eq!((found, said.contains(say)), (exit, true), "{arguments:?}: {said}");
        said
    };
    let said = check(&["--trust", id], 0, "VERIFIED  postgresql://auditor@127.0.0.1:");
    assert!(said.contains("kind      a ledger in PostgreSQL ") && said.contains(", database postgres\n"), "{said}");
    check(&["--trust", id, "--quiet"], 0, "VERIFIED");
    check(&["--trust", id, "--format", "native"], 0, "VERIFIED");
    check(&[], 2, "IDENTITY NOT PROVEN");
    check(&["--trust", &"0".repeat(64)], 1, "ledger_id_mismatch");
    let json: Value = serde_json::from_str(&check(&["--trust", id, "--json"], 0, "audit-report/1")).unwrap();
    assert!(json["kind"].as_str().unwrap().starts_with("a ledger in PostgreSQL "), "{json:#}");
    check(&["--trust", id, "--report", "page.html", "--save-anchor", "kept"], 0, "VERIFIED");
    let page = std::fs::read_to_string(directory.path().join("page.html")).unwrap();
    assert!(page.contains("a ledger in PostgreSQL ") && !page.contains("secret-word"), "{page}");
    check(&["--trust", id, "--anchor", "kept", "--require-anchor"], 0, "VERIFIED");
    check(&["--trust", id, "--anchor", "kept", "--since-anchor", "--save-anchor", "next"], 0, "were not read again");
    check(&["--trust", id, "--since-anchor"], 2, "--anchor");
    let order = dump["tables"]["orders"][0]["order_id"].as_str().unwrap();
    check(&["--trust", id, "--stream", order, "--report", "page.html"], 0, "kind      a ledger in PostgreSQL ");
    check(&["--trust", id, "--stream", &"0".repeat(32)], 2, "stream_heads has no");
    check(&["-d", &url, "-s", "/none"], 2, "/none");

    // From the first checkpoint of each chain on.
    first_checkpoints(&dump, directory.path()).unwrap();
    let file = fixture("valid/two_chains.json");
    let since = ["--anchor", "first", "--since-anchor", "--trust", id, "--json"];
    let found: Value = serde_json::from_str(&check(&since, 0, "tail")).unwrap();
    let (_, said) = run(directory.path(), &[&[file.to_str().unwrap()][..], &since].concat());
    let expected: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&found["chains"], &found["part"]), (&expected["chains"], &expected["part"]));
}

fn any_number_of_threads(database: &mut Database) {
    database.clear();
    let path = fixture("broken/settled_unpaid.json");
    let dump = read_dump(&path);
    database.load(&dump).unwrap();
    let (url, trust) = (database.url(), Dump::read(&path).unwrap().trust);
    let reports = [1, 2, 7].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| judgement(&verify_path(Path::new(&url), trust)))
    });
    assert!(reports.iter().all(|report| *report == reports[0] && report["exit"] == 1));
}
