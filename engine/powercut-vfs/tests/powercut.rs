//! The VFS against SQLite itself: what SQLite promises holds below it, and what SQLite does not promise is lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use powercut_vfs::{CutMode, Disk, Fault, PowerCut};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tempfile::TempDir;

const FILE: &str = "test.db";

/// A temporary directory, in memory if the system has such a place.
fn room() -> std::io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }
}

/// A directory with live files below a VFS of its own, and room for images.
struct Bench {
    cut: Arc<PowerCut>,
    live: TempDir,
    images: Images,
}

impl Bench {
    fn new(seed: u64) -> Bench {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let live = room().unwrap();
        let name = format!("powercut-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let cut = Arc::new(PowerCut::register(&name, live.path().to_path_buf(), seed));
        Bench { cut, live, images: Images::new() }
    }

    fn open(&self, synchronous: &str) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::default();
        let db = Connection::open_with_flags_and_vfs(self.live.path().join(FILE), flags, self.cut.name())?;
        db.busy_timeout(Duration::from_secs(20))?;
        // Small, so that checkpoints and WAL restarts are among what is cut.
        db.execute_batch(&format!(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous}; PRAGMA wal_autocheckpoint=12;"
        ))?;
        Ok(db)
    }

    fn after_cut(&self, mode: CutMode) -> Result<u32, String> {
        self.images.look(|out| self.cut.image(out, mode).unwrap())
    }
}

/// Takes images and looks into them.
#[derive(Clone)]
struct Images {
    dir: Arc<TempDir>,
    next: Arc<AtomicU32>,
}

impl Images {
    fn new() -> Images {
        Images { dir: Arc::new(room().unwrap()), next: Arc::new(AtomicU32::new(0)) }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// How many transactions the image holds: they are a prefix and the file is sound, or else this is an error.
    fn look(&self, take: impl FnOnce(&Path)) -> Result<u32, String> {
        let out = self.path();
        take(&out);
        let shm = std::fs::read_dir(&out).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().ends_with("-shm"));
        assert!(!shm, "no shared memory in an image");
        let found = prefix(&out.join(FILE));
        std::fs::remove_dir_all(&out).unwrap();
        found
    }
}

/// The body of row `i`: from one byte to several pages, so that transactions differ in how many writes they take.
fn body(i: u32) -> Vec<u8> {
    let length = [1, 90, 700, 5_000, 21_000][usize::try_from(i * i % 11 % 5).unwrap()];
    (0..length).map(|at: u32| u8::try_from((i * 31 + at * 7) % 251).unwrap()).collect()
}

/// Transaction 0 makes the tables, transaction i adds row i, counts it, and changes an older row.
fn transact(db: &Connection, i: u32) -> rusqlite::Result<()> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    let done = if i == 0 {
        db.execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB, turned INTEGER DEFAULT 0);
             CREATE TABLE n(n INTEGER); INSERT INTO n VALUES (0); COMMIT;",
        )
    } else {
        db.execute("INSERT INTO t(id, body) VALUES (?1, ?2)", (i, body(i)))
            .and_then(|_| db.execute("UPDATE n SET n = ?1", [i]))
            .and_then(|_| db.execute("UPDATE t SET turned = turned + 1 WHERE id = ?1 / 2", [i]))
            .and_then(|_| db.execute_batch("COMMIT"))
    };
    if done.is_err() && !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    done
}

/// With the ordinary VFS, and without its syncs: the test is about the cut before, and there are many images.
fn open_image(file: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(file)?;
    db.execute_batch("PRAGMA synchronous=OFF")?;
    Ok(db)
}

/// How many transactions are in the file, the first counted as one.
fn prefix(file: &Path) -> Result<u32, String> {
    stored(&open_image(file).map_err(|e| e.to_string())?)
}

fn stored(db: &Connection) -> Result<u32, String> {
    let text = |e: rusqlite::Error| e.to_string();
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(text)?;
    if sound != "ok" {
        return Err(sound);
    }
    let tables: u32 =
        db.query_row("SELECT count(*) FROM sqlite_schema WHERE name IN ('t', 'n')", [], |r| r.get(0)).map_err(text)?;
    if tables == 0 {
        return Ok(0);
    }
    let last: u32 = db.query_row("SELECT n FROM n", [], |row| row.get(0)).map_err(text)?;
    let mut rows = db.prepare("SELECT id, body, turned FROM t ORDER BY id").map_err(text)?;
    let rows = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, u32>(2)? as usize))).map_err(text)?;
    let mut expected = 1;
    for row in rows {
        let (id, stored, turned): (u32, Vec<u8>, usize) = row.map_err(text)?;
        let halves = [2 * id, 2 * id + 1].into_iter().filter(|half| *half <= last).count();
        if (id, turned) != (expected, halves) || stored != body(id) {
            return Err(format!("row {id} where {expected} should be, of {last}"));
        }
        expected += 1;
    }
    if expected != last + 1 {
        return Err(format!("{} rows, counted {last}", expected - 1));
    }
    Ok(last + 1)
}

/// What the watch saw of a run that is cut after each operation.
#[derive(Default)]
struct Seen {
    images: u64,
    /// Images without some acknowledged transaction.
    lost: u64,
    /// Images that are not sound, or hold no prefix.
    broken: Vec<String>,
    sizes: BTreeSet<u32>,
}

/// Runs `rounds` transactions and cuts after every operation, losing all and at random.
fn cut_everywhere(seed: u64, synchronous: &str, rounds: u32, random_images: u64) -> Seen {
    let bench = Bench::new(seed);
    let acknowledged = Arc::new(AtomicU32::new(0));
    let seen = Arc::new(Mutex::new(Seen::default()));
    bench.cut.watch({
        let (images, acknowledged, seen) = (bench.images.clone(), Arc::clone(&acknowledged), Arc::clone(&seen));
        move |operation, disk: &Disk| {
            let acknowledged = acknowledged.load(Ordering::SeqCst);
            let random = (0..random_images).map(|n| CutMode::Random { seed: operation * random_images + n });
            for mode in [CutMode::LoseAllUnsynced].into_iter().chain(random) {
                let mut seen = seen.lock().unwrap();
                seen.images += 1;
                match images.look(|out| disk.image(out, mode).unwrap()) {
                    Ok(found) => {
                        seen.sizes.insert(found);
                        seen.lost += u64::from(found < acknowledged);
                        assert!(found <= acknowledged + 1, "{found} of at most {}", acknowledged + 1);
                    }
                    Err(why) => seen.broken.push(format!("{mode:?} at {operation}: {why}")),
                }
            }
        }
    });
    let mut db = bench.open(synchronous).unwrap();
    for i in 0..rounds {
        transact(&db, i).unwrap();
        acknowledged.store(i + 1, Ordering::SeqCst);
        // The last connection to close checkpoints and deletes the WAL.
        if i % 9 == 8 {
            drop(db);
            db = bench.open(synchronous).unwrap();
        }
    }
    drop(db);
    bench.cut.unwatch();
    assert!(bench.cut.syncs() > 0 || synchronous == "OFF");
    assert_eq!(prefix(&bench.live.path().join(FILE)), Ok(rounds), "the live file");
    drop(bench);
    Arc::into_inner(seen).unwrap().into_inner().unwrap()
}

#[test]
fn full_keeps_every_acknowledged_transaction_wherever_it_is_cut() {
    for seed in 0..6 {
        let seen = cut_everywhere(seed, "FULL", 21, 2);
        assert!(seen.images > 300, "{} images", seen.images);
        assert_eq!(seen.broken, Vec::<String>::new(), "seed {seed}");
        assert_eq!(seen.lost, 0, "seed {seed}");
        assert_eq!(seen.sizes, (0..=21).collect(), "every length was met");
    }
}

#[test]
fn full_keeps_every_acknowledged_transaction_over_many_random_cuts_of_one_moment() {
    let bench = Bench::new(77);
    let db = bench.open("FULL").unwrap();
    for i in 0..30 {
        transact(&db, i).unwrap();
        for seed in 0..12 {
            assert_eq!(bench.after_cut(CutMode::Random { seed }), Ok(i + 1), "seed {seed}");
        }
        assert_eq!(bench.after_cut(CutMode::LoseAllUnsynced), Ok(i + 1));
    }
}

#[test]
fn off_loses_acknowledged_transactions_and_may_break_the_file() {
    let mut broken = 0;
    for seed in 0..3 {
        let seen = cut_everywhere(seed, "OFF", 21, 2);
        assert!(seen.lost > seen.images / 4, "{} of {}", seen.lost, seen.images);
        broken += seen.broken.len();
    }
    assert!(broken > 0, "without syncs, some selection of writes is no database");
}

#[test]
fn normal_loses_acknowledged_transactions_but_never_breaks_the_file() {
    for seed in 0..3 {
        let seen = cut_everywhere(seed, "NORMAL", 21, 2);
        assert!(seen.lost > 0);
        assert_eq!(seen.broken, Vec::<String>::new());
    }
}

#[test]
fn off_and_normal_lose_at_the_end_of_a_run_what_full_keeps() {
    for (synchronous, keeps) in [("OFF", false), ("NORMAL", false), ("FULL", true)] {
        let bench = Bench::new(5);
        let db = bench.open(synchronous).unwrap();
        db.execute_batch("PRAGMA wal_autocheckpoint=0").unwrap();
        (0..10).for_each(|i| transact(&db, i).unwrap());
        let found = bench.after_cut(CutMode::LoseAllUnsynced).unwrap();
        assert_eq!(found == 10, keeps, "{synchronous}: {found} of 10");
        assert!(keeps || found == 0);
    }
}

/// Runs with one fault. After an error the faults are cleared and what is stored decides how it goes on, as a caller would.
/// Returns whether it fired, and whether anybody was told.
fn run_with_fault(n: u64, fault: Fault, go_on: bool) -> (bool, bool) {
    let what = format!("{fault:?} after {n}, go on {go_on}");
    let bench = Bench::new(n);
    bench.cut.fail_after(n, fault);
    let (mut acknowledged, mut told) = (0, false);
    let mut db = None;
    let rounds = 12;
    let mut reopened = false;
    while acknowledged < rounds {
        let step = match &db {
            None => bench.open("FULL").map(|opened| db = Some(opened)),
            Some(open) => transact(open, acknowledged).map(|()| acknowledged += 1),
        };
        if let Err(e) = step {
            told = true;
            let code = e.sqlite_error().map(|e| e.extended_code);
            let expected = match fault {
                Fault::WriteFull => rusqlite::ffi::SQLITE_FULL,
                Fault::WriteError | Fault::WriteTorn => rusqlite::ffi::SQLITE_IOERR_WRITE,
                Fault::TruncateError => rusqlite::ffi::SQLITE_IOERR_TRUNCATE,
                Fault::SyncErrorLost | Fault::SyncErrorStored => rusqlite::ffi::SQLITE_IOERR_FSYNC,
            };
            assert_eq!(code, Some(expected), "{what}: {e}");
            if !go_on {
                break;
            }
            bench.cut.clear_faults();
            if let Some(open) = &db {
                let found = stored(open).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(found == acknowledged || found == acknowledged + 1, "{what}: {found} of {acknowledged}");
                acknowledged = found;
            }
        } else if acknowledged == 7 && !reopened {
            reopened = true;
            db = None;
        }
    }
    for mode in [CutMode::LoseAllUnsynced].into_iter().chain((0..3).map(|seed| CutMode::Random { seed })) {
        let found = bench.after_cut(mode).unwrap_or_else(|e| panic!("{what}, {mode:?}: {e}"));
        assert!(found == acknowledged || (!go_on && found == acknowledged + 1), "{what}: {found} of {acknowledged}");
    }
    (bench.cut.faults_fired() > 0, told)
}

fn every_fault(fault: Fault) {
    for go_on in [false, true] {
        let (mut fired, mut told) = (0, 0);
        for n in 0.. {
            let (hit, reported) = run_with_fault(n, fault, go_on);
            if !hit {
                break;
            }
            fired += 1;
            told += u32::from(reported);
        }
        assert!(fired > 20, "{fault:?} hit {fired} operations");
        // A checkpoint that fails after a commit is tried again and nobody is told. But a full disk stays full.
        assert!(told > fired / 3, "{fault:?}: {told} of {fired} reported");
        assert_eq!(told == fired, fault == Fault::WriteFull, "{fault:?}: {told} of {fired} reported");
    }
}

#[test]
fn a_full_disk_gives_an_error_and_a_prefix() {
    every_fault(Fault::WriteFull);
}

#[test]
fn a_failed_write_gives_an_error_and_a_prefix() {
    every_fault(Fault::WriteError);
}

#[test]
fn a_torn_write_gives_an_error_and_a_prefix() {
    every_fault(Fault::WriteTorn);
}

#[test]
fn a_failed_sync_that_lost_gives_an_error_and_a_prefix() {
    every_fault(Fault::SyncErrorLost);
}

#[test]
fn a_failed_sync_that_stored_gives_an_error_and_a_prefix() {
    every_fault(Fault::SyncErrorStored);
}

#[test]
fn faults_count_operations_of_their_kind_and_only_a_full_disk_lasts() {
    let bench = Bench::new(1);
    let db = bench.open("FULL").unwrap();
    transact(&db, 0).unwrap();
    let small = |x: u32| db.execute("UPDATE n SET n = ?1", [x]).map_err(|e| e.sqlite_error().unwrap().extended_code);

    let syncs = bench.cut.syncs();
    small(1).unwrap();
    assert_eq!(bench.cut.syncs(), syncs + 1, "one sync per transaction");
    bench.cut.fail_after(1, Fault::SyncErrorStored);
    assert_eq!(small(2), Ok(1));
    assert_eq!(small(3), Err(rusqlite::ffi::SQLITE_IOERR_FSYNC));
    assert_eq!(small(4), Ok(1), "fires once");

    bench.cut.fail_after(0, Fault::WriteError);
    assert_eq!(small(5), Err(rusqlite::ffi::SQLITE_IOERR_WRITE));
    assert_eq!(small(6), Ok(1), "fires once");

    let truncations = bench.cut.truncations();
    let truncate = || db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    bench.cut.fail_after(0, Fault::TruncateError);
    let code = truncate().map_err(|e| e.sqlite_error().unwrap().extended_code);
    assert_eq!(code, Err(rusqlite::ffi::SQLITE_IOERR_TRUNCATE));
    truncate().unwrap();
    assert!(bench.cut.truncations() >= truncations + 2);

    bench.cut.fail_after(0, Fault::WriteFull);
    let fired = bench.cut.faults_fired();
    assert_eq!([small(7), small(8)], [Err(rusqlite::ffi::SQLITE_FULL); 2]);
    assert!(bench.cut.faults_fired() >= fired + 2);
    bench.cut.clear_faults();
    assert_eq!(small(9), Ok(1));
    assert!(bench.cut.operations() > bench.cut.writes() + bench.cut.syncs());
}

#[test]
fn two_connections_in_two_threads_and_a_truncating_checkpoint() {
    let bench = Bench::new(4);
    let db = bench.open("FULL").unwrap();
    db.execute_batch("CREATE TABLE t(who INTEGER, i INTEGER, body BLOB, PRIMARY KEY (who, i))").unwrap();
    let acknowledged = [AtomicU32::new(0), AtomicU32::new(0)];
    let missing = |db: &Connection, promised: [u32; 2]| {
        (0..2_u32).find(|who| {
            let count: u32 = db.query_row("SELECT count(*) FROM t WHERE who = ?1", [who], |row| row.get(0)).unwrap();
            count < promised[usize::try_from(*who).unwrap()]
        })
    };
    let each = 60;
    std::thread::scope(|scope| {
        let writers: Vec<_> = acknowledged
            .iter()
            .zip(0_u32..)
            .map(|(acknowledged, who)| {
                let bench = &bench;
                scope.spawn(move || {
                    let db = bench.open("FULL").unwrap();
                    for i in 0..each {
                        db.execute("INSERT INTO t VALUES (?1, ?2, ?3)", (who, i, body(i))).unwrap();
                        acknowledged.store(i + 1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        // Meanwhile the power fails again and again, and a reader reads.
        let mut seed = 0;
        while !writers.iter().all(|writer| writer.is_finished()) {
            let promised = [0, 1].map(|who: usize| acknowledged[who].load(Ordering::SeqCst));
            assert_eq!(missing(&db, promised), None);
            let out = bench.images.path();
            bench.cut.image(&out, CutMode::Random { seed }).unwrap();
            seed += 1;
            let image = open_image(&out.join(FILE)).unwrap();
            assert_eq!(missing(&image, promised), None);
            let sound: String = image.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(sound, "ok");
        }
        assert!(seed > 0);
    });
    assert!(std::fs::exists(bench.live.path().join(format!("{FILE}-shm"))).unwrap(), "normal WAL locking");
    let other = bench.open("FULL").unwrap();
    let checkpoint: (i64, i64, i64) = other
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap();
    assert_eq!(checkpoint, (0, 0, 0));
    assert_eq!(std::fs::metadata(bench.live.path().join(format!("{FILE}-wal"))).unwrap().len(), 0);
    for mode in [CutMode::LoseAllUnsynced, CutMode::Random { seed: 3 }] {
        let out = bench.images.path();
        bench.cut.image(&out, mode).unwrap();
        let image = open_image(&out.join(FILE)).unwrap();
        assert_eq!(missing(&image, [each; 2]), None);
    }
    // A reader holds its snapshot against the checkpointer of the other connection, so locks go through.
    db.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0)).unwrap();
    other.execute("DELETE FROM t WHERE who = 0", []).unwrap();
    other.busy_timeout(Duration::ZERO).unwrap();
    let busy: i64 = other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 1);
    assert_eq!(missing(&db, [each; 2]), None, "the snapshot");
}

#[test]
fn the_rollback_journal_is_safe_too() {
    let bench = Bench::new(8);
    let path = bench.live.path().join(FILE);
    let db = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), bench.cut.name()).unwrap();
    // EXTRA also syncs the directory after the journal is deleted, without which a commit may be rolled back after a cut.
    db.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA synchronous=EXTRA; PRAGMA cache_size=4;").unwrap();
    let acknowledged = Arc::new(AtomicU32::new(0));
    bench.cut.watch({
        let (images, acknowledged) = (bench.images.clone(), Arc::clone(&acknowledged));
        move |operation, disk: &Disk| {
            for mode in [CutMode::LoseAllUnsynced, CutMode::Random { seed: operation }] {
                let found = images.look(|out| disk.image(out, mode).unwrap());
                let acknowledged = acknowledged.load(Ordering::SeqCst);
                assert!(found == Ok(acknowledged) || found == Ok(acknowledged + 1), "{mode:?} {operation}: {found:?}");
            }
        }
    });
    for i in 0..12 {
        transact(&db, i).unwrap();
        acknowledged.store(i + 1, Ordering::SeqCst);
    }
    bench.cut.unwatch();
}

#[test]
fn files_from_before_and_beside() {
    let dir = room().unwrap();
    let live = dir.path().join("live");
    std::fs::create_dir(&live).unwrap();
    let plain = Connection::open(live.join(FILE)).unwrap();
    transact(&plain, 0).unwrap();
    drop(plain);
    let cut = PowerCut::register("powercut-before", live.clone(), 0);
    std::fs::write(live.join("key"), "beside").unwrap();
    let names = |out: &str| {
        cut.image(&dir.path().join(out), CutMode::LoseAllUnsynced).unwrap();
        let entries = std::fs::read_dir(dir.path().join(out)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names("a"), BTreeSet::from([FILE.to_owned()]));
    assert_eq!(prefix(&dir.path().join("a").join(FILE)), Ok(1));
    cut.settle().unwrap();
    assert_eq!(names("b"), BTreeSet::from([FILE.to_owned(), "key".to_owned()]));

    // Elsewhere nothing is recorded, and no fault hits.
    cut.fail_after(0, Fault::WriteFull);
    let elsewhere =
        Connection::open_with_flags_and_vfs(dir.path().join("x.db"), OpenFlags::default(), cut.name()).unwrap();
    transact(&elsewhere, 0).unwrap();
    elsewhere
        .execute_batch("CREATE TEMP TABLE big AS SELECT randomblob(100000) AS x; SELECT * FROM big ORDER BY x")
        .unwrap();
    assert_eq!((cut.operations(), cut.faults_fired()), (0, 0));
}

#[test]
fn dropping_frees_the_name_while_connections_go_on() {
    let dir = room().unwrap();
    let open = |name: &str| Connection::open_with_flags_and_vfs(dir.path().join(FILE), OpenFlags::default(), name);
    let cut = PowerCut::register("powercut-drop", dir.path().to_path_buf(), 0);
    let db = open("powercut-drop").unwrap();
    transact(&db, 0).unwrap();
    drop(cut);
    transact(&db, 1).unwrap();
    assert!(open("powercut-drop").is_err());
    drop(db);
    let again = PowerCut::register("powercut-drop", dir.path().to_path_buf(), 0);
    assert_eq!(stored(&open("powercut-drop").unwrap()), Ok(2));
    let taken = std::panic::catch_unwind(|| PowerCut::register("powercut-drop", dir.path().to_path_buf(), 0));
    assert!(taken.is_err(), "a name is taken once");
    assert!(open(again.name()).is_ok());
}

#[test]
fn a_panic_in_the_watch_reaches_the_test() {
    let bench = Bench::new(0);
    bench.cut.watch(|operation, _| assert!(operation < 3, "the third operation"));
    let db = bench.open("FULL").unwrap();
    transact(&db, 0).unwrap();
    assert!(std::panic::catch_unwind(|| bench.cut.unwatch()).is_err());
    let missing: Option<i64> = db.query_row("SELECT 1 FROM t", [], |row| row.get(0)).optional().unwrap();
    assert_eq!(missing, None);
}
