//! The database file is damaged below SQL: bytes flipped, pages zeroed, swapped or taken from elsewhere, the file or its WAL cut off.
//! Nothing panics or hangs, nothing altered is called verified, and what is said tells what to do.
//!
//! Each case comes from a seed that its failure names. `LEDGER_DAMAGE_CASES` sets how many.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ledger_engine::hash::Hash;
use ledger_engine::ledger::Ledger;
use ledger_engine::store::sqlite::{DATABASE_FILE, MIGRATIONS, SqliteStore};
use ledger_engine::stream::CaseId;
use rusqlite::types::Value;
use support::{Acknowledged, busy, config, create, create_line, send, unsynced};

const PAGE: usize = 4096;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }
}

/// Damages the bytes in one way. Returns which.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) -> String {
    let pages = bytes.len() / PAGE;
    let (at, page) = (random.below(bytes.len()), random.below(pages.max(1)));
    let range = |page: usize| page * PAGE..(page + 1) * PAGE;
    match random.below(10) {
        0 => {
            bytes.truncate(at);
            format!("cut off at byte {at}")
        }
        1 => {
            bytes.truncate(page * PAGE);
            format!("cut off at page {page}")
        }
        2 => {
            bytes[range(page)].fill(0);
            format!("page {page} zeroed")
        }
        3 => {
            let from = random.below(pages);
            bytes.copy_within(range(from), page * PAGE);
            format!("page {page} replaced by page {from}")
        }
        4 => {
            let length = 1 + random.below(512.min(bytes.len() - at));
            bytes[at..at + length].fill_with(|| u8::try_from(random.below(256)).unwrap());
            format!("{length} bytes at {at} replaced by noise")
        }
        // The header of a page, where a wrong number leads SQLite elsewhere.
        5 => {
            let at = page * PAGE + if page == 0 { random.below(124) } else { random.below(24) };
            let to = u8::try_from(random.below(256)).unwrap();
            bytes[at] = to;
            format!("byte {at} set to {to}")
        }
        _ => {
            let bit = 1 << random.below(8);
            bytes[at] ^= bit;
            format!("byte {at} ^ {bit}")
        }
    }
}

/// Everything that SQL sees: tables with their rows, and the schema.
fn content(dir: &Path) -> rusqlite::Result<BTreeMap<String, Vec<Vec<Value>>>> {
    let db = rusqlite::Connection::open(dir.join(DATABASE_FILE))?;
    let tables: Vec<String> = db
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?
        .query_map([], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut all = BTreeMap::new();
    for table in tables.into_iter().chain(["sqlite_schema".to_owned()]) {
        let mut statement = db.prepare(&format!("SELECT * FROM \"{}\"", table.replace('"', "\"\"")))?;
        let columns = statement.column_count();
        let rows = statement.query_map([], |r| (0..columns).map(|i| r.get(i)).collect::<rusqlite::Result<_>>())?;
        let mut rows: Vec<Vec<Value>> = rows.collect::<rusqlite::Result<_>>()?;
        rows.sort_by_key(|row| format!("{row:?}"));
        all.insert(table, rows);
    }
    Ok(all)
}

/// A ledger in use, as the files of a process that was killed: most of it in the database, the last commits in the WAL.
struct Sample {
    id: Hash,
    database: Vec<u8>,
    wal: Vec<u8>,
    content: BTreeMap<String, Vec<Vec<Value>>>,
    /// What the database file alone holds.
    content_without_wal: BTreeMap<String, Vec<Vec<Value>>>,
    order: CaseId,
}

async fn sample() -> Sample {
    let live = tempfile::tempdir().unwrap();
    let ledger = create(live.path(), 1).await;
    let id = ledger.id();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let store = SqliteStore::open(live.path(), unsynced()).unwrap();
    let ledger = Arc::new(Ledger::open(config(Arc::new(store))).await.unwrap());
    let acknowledged: Arc<Acknowledged> = Arc::default();
    for round in 0..4 {
        assert!(busy(&ledger, &format!("r{round}"), 60, &acknowledged).await.is_empty());
        ledger.checkpoint().await.unwrap();
    }
    let moved = rusqlite::Connection::open(live.path().join(DATABASE_FILE)).unwrap();
    moved.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
    assert!(busy(&ledger, "last", 4, &acknowledged).await.is_empty());
    let copy = tempfile::tempdir().unwrap();
    let read = |suffix: &str| std::fs::read(live.path().join(format!("{DATABASE_FILE}{suffix}"))).unwrap();
    let (database, wal) = (read(""), read("-wal"));
    std::fs::write(copy.path().join(DATABASE_FILE), &database).unwrap();
    let content_without_wal = content(copy.path()).unwrap();
    let content = content(live.path()).unwrap();
    assert_ne!(content, content_without_wal);
    let order = acknowledged.lock().unwrap()[1].1.case.unwrap();
    Sample { id, database, wal, content, content_without_wal, order }
}

/// Whether a text says what to do, or at least whose fault it is.
fn advises(text: &str) -> bool {
    ["verify", "restore", "try again", "ledger init", "is it a ledger", "no ledger", "use the program", "not a ledger"]
        .iter()
        .any(|advice| text.contains(advice))
}

/// Opens, reads and writes as the commands do. Every error advises.
async fn use_it(dir: &Path, sample: &Sample, what: &str) {
    let said = |e: String| assert!(advises(&e), "{what}: {e}");
    let store = match SqliteStore::open(dir, unsynced()) {
        Ok(store) => store,
        Err(e) => return said(e.to_string()),
    };
    let ledger = match Ledger::open(config(Arc::new(store))).await {
        Ok(ledger) => ledger,
        Err(e) => return said(e.to_string()),
    };
    let results = [
        ledger.read_order(sample.order).await.map(drop).map_err(|e| e.to_string()),
        ledger.read_chain(0, 0, 10_000).await.map(drop).map_err(|e| e.to_string()),
        ledger.check_projections().await.map(drop).map_err(|e| e.to_string()),
        send(&ledger, &create_line("new", "r0")).await.map(drop).map_err(|e| e.to_string()),
        ledger.shutdown().await.map(drop).map_err(|e| e.to_string()),
    ];
    results.into_iter().filter_map(Result::err).for_each(|e| {
        // A row that is gone may make a refusal of it, as if the SKU had never been there.
        assert!(advises(&e) || e.contains("never listed"), "{what}: {e}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_never_called_verified() {
    assert_eq!(MIGRATIONS.len(), 1, "the sample is of the first schema");
    let cases: u64 = std::env::var("LEDGER_DAMAGE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(120);
    let sample = sample().await;
    let mut verdicts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..cases {
        let mut random = Random(seed);
        let dir = tempfile::tempdir().unwrap();
        let (mut database, mut wal) = (sample.database.clone(), sample.wal.clone());
        let in_wal = seed % 4 == 3;
        let damaged = damage(&mut random, if in_wal { &mut wal } else { &mut database });
        let what = format!("seed {seed}, {} {damaged}", if in_wal { "WAL" } else { "database" });
        // A WAL that covers a damaged page mends it, so half of the databases go without.
        let with_wal = in_wal || seed % 2 == 0;
        std::fs::write(dir.path().join(DATABASE_FILE), database).unwrap();
        if with_wal {
            std::fs::write(dir.path().join(format!("{DATABASE_FILE}-wal")), wal).unwrap();
        }
        let report = audit_verify::verify_path(dir.path(), Some(sample.id));
        *verdicts.entry(report.verdict().as_str()).or_default() += 1;
        let text = report.to_text();
        if report.exit() == 0 {
            let found = content(dir.path()).unwrap_or_else(|e| panic!("{what}: verified, though SQLite says {e}"));
            // A WAL that is cut off at a commit is an earlier state; a saved checkpoint would tell, the file cannot.
            let earlier = in_wal && found["entries"].iter().all(|row| sample.content["entries"].contains(row));
            let whole = if with_wal { &sample.content } else { &sample.content_without_wal };
            assert!(earlier || found == *whole, "{what}: verified, though its content is altered\n{text}");
        } else {
            assert!(report.exit() == 1 || advises(&text), "{what}: {text}");
        }
        use_it(dir.path(), &sample, &what).await;
    }
    println!("{verdicts:?}");
    assert!(verdicts.len() == 3 || cases < 100, "every verdict occurs: {verdicts:?}");
}

/// A query by key goes through an index. One that leads to other rows shows one order's state as another's, while the table holds
/// what the entries say.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_leads_elsewhere_is_not_verified() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = create(dir.path(), 1).await;
    let id = ledger.id();
    support::list_sku(&ledger, "s").await;
    for key in ["a", "b"] {
        support::create_order(&ledger, key, "s").await;
    }
    ledger.shutdown().await.unwrap();
    drop(ledger);
    assert_eq!(audit_verify::verify_path(dir.path(), Some(id)).exit(), 0);
    let db = rusqlite::Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    let buyers = |db: &rusqlite::Connection| -> Vec<String> {
        let keys: Vec<i64> = db
            .prepare("SELECT idx FROM orders NOT INDEXED ORDER BY rowid")
            .unwrap()
            .query_map([], |r| r.get(0))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        let buyer = |key| db.query_row("SELECT buyer FROM orders WHERE chain = 0 AND idx = ?1", [key], |r| r.get(0));
        keys.iter().map(buyer).collect::<rusqlite::Result<_>>().unwrap()
    };
    let before = buyers(&db);
    // The index of a copy whose rows stand in the other order takes the place of the table's own.
    let definition: String =
        db.query_row("SELECT sql FROM sqlite_schema WHERE name = 'orders'", [], |r| r.get(0)).unwrap();
    let definition = definition.replacen("orders", "other", 1);
    db.execute_batch(&format!(
        "{definition}; INSERT INTO other SELECT * FROM orders ORDER BY rowid DESC; PRAGMA writable_schema = ON; \
         UPDATE sqlite_schema SET rootpage = (SELECT sum(rootpage) FROM sqlite_schema WHERE name IN \
         ('sqlite_autoindex_orders_1', 'sqlite_autoindex_other_1')) - rootpage \
         WHERE name IN ('sqlite_autoindex_orders_1', 'sqlite_autoindex_other_1');"
    ))
    .unwrap();
    drop(db);
    let db = rusqlite::Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    assert_eq!(buyers(&db), [before[1].clone(), before[0].clone()], "the index leads elsewhere");
    drop(db);
    let report = audit_verify::verify_path(dir.path(), Some(id));
    assert_eq!(report.exit(), 2, "{}", report.to_text());
    assert!(report.to_text().contains("other queries may give other rows"), "{}", report.to_text());
}

/// Rows of a view are made when somebody asks, and may differ by who asks and how.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_in_place_of_a_table_is_not_verified() {
    let made = sample_directory().await;
    for table in ["entries", "orders", "checkpoints"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(DATABASE_FILE);
        std::fs::copy(made.0.path().join(DATABASE_FILE), &file).unwrap();
        let db = rusqlite::Connection::open(&file).unwrap();
        // The rows are the right ones, as far as a query can tell.
        db.execute_batch(&format!("ALTER TABLE {table} RENAME TO hidden; CREATE VIEW {table} AS SELECT * FROM hidden"))
            .unwrap();
        drop(db);
        let report = audit_verify::verify_path(dir.path(), Some(made.1));
        assert_eq!(report.exit(), 2, "{}", report.to_text());
        assert!(report.reason().contains(&format!("{table} is a view")), "{}", report.to_text());
    }
    // A trigger changes nothing that is read, and the verdict is of what is read.
    let db = rusqlite::Connection::open(made.0.path().join(DATABASE_FILE)).unwrap();
    db.execute_batch("CREATE TRIGGER lost AFTER INSERT ON orders BEGIN DELETE FROM orders; END").unwrap();
    drop(db);
    assert_eq!(audit_verify::verify_path(made.0.path(), Some(made.1)).exit(), 0);
}

fn without_triggers(file: &Path) -> rusqlite::Connection {
    let db = rusqlite::Connection::open(file).unwrap();
    let triggers = "SELECT group_concat('DROP TRIGGER ' || name, ';') FROM sqlite_schema WHERE type = 'trigger'";
    let drop_all: String = db.query_row(triggers, [], |r| r.get(0)).unwrap();
    db.execute_batch(&drop_all).unwrap();
    db
}

/// The status of all orders, and how to set it.
const STATUS: &str = "SELECT group_concat(status) FROM orders";
const REFUND: &str = "UPDATE orders SET status = 'refunded' WHERE rowid = (SELECT min(rowid) FROM orders)";

/// What SQLite would read beside the database is read: the WAL of the file that a link leads to.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_the_database_hides_nothing() {
    let (dir, id) = sample_directory().await;
    let (real, named) = (dir.path().join(DATABASE_FILE), dir.path().join("named"));
    std::fs::create_dir(&named).unwrap();
    std::os::unix::fs::symlink(&real, named.join(DATABASE_FILE)).unwrap();
    assert_eq!(audit_verify::verify_path(&named, Some(id)).exit(), 0);
    let db = without_triggers(&real);
    db.execute_batch("PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0").unwrap();
    db.execute_batch(REFUND).unwrap();
    for path in [dir.path(), &named] {
        let report = audit_verify::verify_path(path, Some(id));
        assert_eq!(report.codes(), ["projection_mismatch"], "{}", report.to_text());
    }
}

/// A change that was begun and not ended is undone by whoever opens the file: what stands in the file until then is not what the ledger is.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_change_is_not_taken_for_the_ledger() {
    let (dir, id) = sample_directory().await;
    let (work, hot) = (dir.path().join(DATABASE_FILE), dir.path().join("hot"));
    let honest: String = rusqlite::Connection::open(&work).unwrap().query_row(STATUS, [], |r| r.get(0)).unwrap();
    let db = without_triggers(&work);
    db.execute_batch("PRAGMA journal_mode = delete; PRAGMA cache_size = 1; CREATE TABLE kept AS SELECT rowid AS n, status FROM orders").unwrap();
    db.execute_batch(REFUND).unwrap();
    db.execute_batch(
        "BEGIN IMMEDIATE; UPDATE orders SET status = (SELECT k.status FROM kept k WHERE k.n = orders.rowid)",
    )
    .unwrap();
    // More pages than fit: they are written, and what they were lies in the journal.
    db.execute_batch("UPDATE tiles SET hashes = hashes; UPDATE entries SET revision = revision").unwrap();
    std::fs::create_dir(&hot).unwrap();
    for suffix in ["", "-journal"] {
        let name = format!("{DATABASE_FILE}{suffix}");
        std::fs::copy(dir.path().join(&name), hot.join(&name)).unwrap();
    }
    db.execute_batch("ROLLBACK").unwrap();
    let uri = format!("file:{}?immutable=1", hot.join(DATABASE_FILE).display());
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_URI;
    let shown = rusqlite::Connection::open_with_flags(uri, flags).unwrap();
    assert_eq!(shown.query_row(STATUS, [], |r| r.get::<_, String>(0)).unwrap(), honest, "the file alone looks honest");
    drop(shown);
    let report = audit_verify::verify_path(&hot, Some(id));
    assert!(report.exit() == 2 && report.reason().contains("-journal"), "{}", report.to_text());
    // Its owner opens it, and what the ledger is comes out.
    drop(rusqlite::Connection::open(hot.join(DATABASE_FILE)).unwrap().execute_batch("PRAGMA user_version"));
    let ended: String =
        rusqlite::Connection::open(hot.join(DATABASE_FILE)).unwrap().query_row(STATUS, [], |r| r.get(0)).unwrap();
    assert_ne!(ended, honest);
    let report = audit_verify::verify_path(&hot, Some(id));
    assert_eq!(report.codes(), ["projection_mismatch"], "{}", report.to_text());
}

/// Whatever the text of the schema says of it, a table whose rows a module makes up is none of a ledger's.
#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_table_is_no_table() {
    let (dir, id) = sample_directory().await;
    let db = without_triggers(&dir.path().join(DATABASE_FILE));
    db.execute_batch(
        "PRAGMA journal_mode = delete; CREATE TABLE kept AS SELECT projection, chain, size FROM cursors; DROP TABLE cursors;
         CREATE VIRTUAL TABLE cursors USING fts5(projection UNINDEXED, chain UNINDEXED, size UNINDEXED);
         INSERT INTO cursors SELECT projection, chain, size FROM kept; PRAGMA writable_schema = on;
         UPDATE sqlite_schema SET sql = 'CREATE  ' || substr(sql, 8) WHERE name = 'cursors'",
    )
    .unwrap();
    drop(db);
    let report = audit_verify::verify_path(dir.path(), Some(id));
    assert!(
        report.exit() == 2 && report.reason().contains("cursors is a view or a virtual table"),
        "{}",
        report.to_text()
    );
}

/// What somebody wrote into a row does nothing to the terminal of whoever reads the report.
#[tokio::test(flavor = "multi_thread")]
async fn text_of_rows_is_shown_and_not_obeyed() {
    let (dir, id) = sample_directory().await;
    let db = without_triggers(&dir.path().join(DATABASE_FILE));
    let name = "x\u{1b}[2J\nVERIFIED  shop";
    db.execute("UPDATE entries SET stream = ?1, body = CAST(body || ' ' AS BLOB) WHERE idx = 2", [name]).unwrap();
    drop(db);
    let report = audit_verify::verify_path(dir.path(), Some(id));
    let text = report.to_text();
    assert_eq!(report.exit(), 1, "{text}");
    assert!(!text.contains('\u{1b}') && text.lines().all(|line| !line.trim().starts_with("VERIFIED")), "{text}");
    assert!(text.contains("\\u{1b}"), "{text}");
}

/// What is known of each stretch: it is verified before the first fault, broken to the last, and after that it rests on what is broken. Each form says so, and
/// names the rows that were found so.
#[tokio::test(flavor = "multi_thread")]
async fn each_stretch_has_its_standing() {
    use audit_verify::Standing::{Broken, NotCovered, Verified};
    let (dir, id) = sample_directory().await;
    let standing = |report: &audit_verify::Report| -> Vec<_> {
        report.ranges(&report.chains()[0]).iter().map(|r| (r.from, r.to, r.standing)).collect()
    };
    let report = audit_verify::verify_path(dir.path(), Some(id));
    let (end, covered) = (report.chains()[0].entries, report.chains()[0].covered.unwrap());
    assert_eq!((standing(&report), covered), (vec![(0, end, Verified)], end));
    assert!(report.digest().is_some() && report.rows_digest().is_none());
    assert_eq!(standing(&audit_verify::verify_path(dir.path(), None)), [(0, end, NotCovered)]);
    let db = without_triggers(&dir.path().join(DATABASE_FILE));
    db.execute_batch("UPDATE entries SET body = CAST(body || ' ' AS BLOB) WHERE idx IN (4, 7)").unwrap();
    let report = audit_verify::verify_path(dir.path(), Some(id));
    assert_eq!(standing(&report), [(0, 4, Verified), (4, 8, Broken), (8, end, NotCovered)]);
    let (text, json, page) = (report.to_text(), report.to_json(), report.to_html());
    assert!(text.contains("verified: entries 0 to 3\n") && text.contains("broken: entries 4 to 7, "), "{text}");
    assert_eq!(
        json["chains"][0]["ranges"][1],
        serde_json::json!({ "from": 4, "to": 8, "standing": "broken", "why": "from the first entry with a fault to the last" })
    );
    assert!(page.contains("<td>broken</td>"), "{page}");
    // The same rows have the same name, and others have another.
    let rows = report.rows_digest().unwrap();
    assert!(report.digest().is_none() && text.contains(&rows.to_hex()) && page.contains(&rows.to_hex()));
    assert_eq!(audit_verify::verify_path(dir.path(), Some(id)).rows_digest(), Some(rows));
    db.execute_batch("UPDATE entries SET body = CAST(body || ' ' AS BLOB) WHERE idx = 4").unwrap();
    assert_ne!(audit_verify::verify_path(dir.path(), Some(id)).rows_digest(), Some(rows));
}

/// Rows can be larger than anything that the format may hold: cases of the ledger of `valid/one_chain.json`, of which one value is replaced by so
/// many zero bytes.
#[tokio::test(flavor = "multi_thread")]
async fn enormous_values_are_found() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/broken/enormous");
    let mut judged = 0;
    for path in std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()) {
        let case: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (dir, id) = sample_directory().await;
        let db = without_triggers(&dir.path().join(DATABASE_FILE));
        let (table, column) = (case["table"].as_str().unwrap(), case["column"].as_str().unwrap());
        let one = format!("rowid = (SELECT min(rowid) FROM {table})");
        db.execute_batch(&format!("UPDATE {table} SET {column} = zeroblob({}) WHERE {one}", case["bytes"])).unwrap();
        drop(db);
        let report = audit_verify::verify_path(dir.path(), Some(id));
        let expected: Vec<&str> = case["findings"].as_array().unwrap().iter().filter_map(|f| f.as_str()).collect();
        assert_eq!(report.codes(), expected, "{}", report.to_text());
        assert_eq!(Some(u64::from(report.exit())), case["exit"].as_u64());
        judged += 1;
    }
    assert_eq!(judged, 1);
}

async fn sample_directory() -> (tempfile::TempDir, ledger_engine::hash::Hash) {
    let dir = tempfile::tempdir().unwrap();
    let id = support::sample(dir.path(), 1).await;
    (dir, id)
}
