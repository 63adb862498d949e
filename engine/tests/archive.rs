//! Archives in directories: batch after batch is what the ledger is, a job that is cut off goes on, and whatever is done to the files
//! or by a forger with this or that key is found.
//!
//! `fixtures/valid/archives` and `fixtures/broken/archives` hold an archive for each case below with its verdict beside it
//! (`NAME.expect.json`). `LEDGER_BLESS=1 cargo test -p ledger-engine --test archive` writes them anew after a change of format.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use audit_verify::{Demands, Verdict, combine, explain, verify_batches, verify_path};
use ledger_engine::archive::ExportError;
use ledger_engine::archive::check;
use ledger_engine::archive::job::{ArchiveRecord, BatchOptions, Done, directory_of};
use ledger_engine::archive::place::{Archive, BatchTerms, DirectoryArchive, Kept, NewObject, ObjectState, Spool};
use ledger_engine::export::batch::ManifestSignature;
use ledger_engine::export::record::ObjectLock;
use ledger_engine::export::{MANIFEST_NAME, Manifest};
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::ledger::{Config, Ledger};
use ledger_engine::registry::{Key, Purpose};
use ledger_engine::retire::{Authority, Retire};
use ledger_engine::signer::keyring::Keyring;
use ledger_engine::signer::{LocalSigner, Pending, Signer, SignerError};
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use serde_json::json;
use support::{
    EXPORT, batch_options, create_order, enrol, exporting, fixtures, judge_folders, life, list_sku, postgres, send,
    signer,
};
use tokio::sync::Notify;

const LOCATION: &str = "archive of the test";

fn archive(root: &Path) -> Arc<dyn Archive> {
    Arc::new(DirectoryArchive::open(root, Some(LOCATION.into())).unwrap())
}

async fn export(ledger: &Ledger, archive: &Arc<dyn Archive>) -> Result<Done, ExportError> {
    ledger.export_batch(Arc::clone(archive), batch_options(), Box::new(|_| {})).await
}

/// Three batches: orders, more of them and one that goes on, and a day on which nothing happened.
async fn three_batches(dir: &Path, root: &Path, chains: u32) -> Ledger {
    let ledger = exporting(dir, chains).await;
    let archive = archive(root);
    list_sku(&ledger, "s").await;
    let long = life(&create_order(&ledger, "c", "s").await);
    for (key, steps, meanwhile) in [("a", 8, 0..1), ("b", 3, 1..5)] {
        let order = create_order(&ledger, key, "s").await;
        for line in life(&order).iter().take(steps).chain(&long[meanwhile]) {
            send(&ledger, line).await.unwrap();
        }
        export(&ledger, &archive).await.unwrap();
    }
    export(&ledger, &archive).await.unwrap();
    ledger
}

/// All files below a directory.
fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for item in std::fs::read_dir(&dir).into_iter().flatten() {
            let path = item.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                all.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

fn write(root: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// An archive in memory.
struct Batches(BTreeMap<String, Vec<u8>>);

impl Batches {
    /// The directory of a batch, with a slash.
    fn dir(&self, sequence: u64) -> String {
        let part = format!("-{sequence:08}-");
        let name = self.0.keys().find(|name| name.contains(&part)).unwrap();
        name[..=name.rfind('/').unwrap()].to_owned()
    }

    fn manifest(&self, sequence: u64) -> Manifest {
        Manifest::decode(&self.0[&format!("{}{MANIFEST_NAME}", self.dir(sequence))]).unwrap()
    }

    fn put(&mut self, sequence: u64, manifest: &Manifest) {
        let name = format!("{}{MANIFEST_NAME}", self.dir(sequence));
        self.0.insert(name, manifest.encode());
    }

    /// Changes a manifest, and leaves its signature.
    fn edit(&mut self, sequence: u64, change: impl FnOnce(&mut Manifest)) {
        let mut manifest = self.manifest(sequence);
        change(&mut manifest);
        self.put(sequence, &manifest);
    }

    /// Signs a manifest and those after it, which name it, as somebody with the key can.
    fn seal(&mut self, from: u64) {
        for sequence in from..=3 {
            let before = (sequence > 1).then(|| self.manifest(sequence - 1).digest());
            self.edit(sequence, |m| {
                let previous = m.batch.as_mut().and_then(|b| b.previous.as_mut());
                if let (Some(previous), Some(digest)) = (previous, before) {
                    previous.manifest_sha256 = digest;
                }
                sign(m, Purpose::Export, EXPORT);
            });
        }
    }

    fn remove(&mut self, sequence: u64) {
        let dir = self.dir(sequence);
        self.0.retain(|name, _| !name.starts_with(&dir));
    }

    /// The file of a batch's lines.
    fn lines(&self, sequence: u64) -> String {
        let dir = self.dir(sequence);
        self.0.keys().find(|name| name.starts_with(&format!("{dir}entries"))).unwrap().clone()
    }
}

fn sign(manifest: &mut Manifest, purpose: Purpose, seed: u8) {
    let signer = signer(purpose, seed);
    let signature = signer.signature(&manifest.statement());
    manifest.signature = Some(ManifestSignature { kid: signer.key().kid.clone(), signature });
}

struct Case {
    name: &'static str,
    description: &'static str,
    findings: &'static [&'static str],
    make: fn(&mut Batches),
}

const fn case(
    name: &'static str,
    description: &'static str,
    findings: &'static [&'static str],
    make: fn(&mut Batches),
) -> Case {
    Case { name, description, findings, make }
}

const CASES: &[Case] = &[
    case("whole", "three batches as the engine makes them, the last one of a day without orders", &[], |_| {}),
    case("unfinished", "a fourth batch was begun; what has no manifest is no part of the archive yet", &[], |b| {
        let dir = b.dir(3).replace("-00000003-", "-00000004-");
        b.0.insert(format!("{dir}entries-0000-000000000000031.jsonl.gz"), b"half".to_vec());
    }),
    case("first_missing", "the first batch is gone", &["entry_missing", "export_batch_missing"], |b| b.remove(1)),
    case(
        "middle_missing",
        "the second batch is gone: the ledger's own record of it is, too",
        &["commit_tiling", "entry_missing", "export_batch_missing"],
        |b| b.remove(2),
    ),
    case("unsigned", "the last manifest's signature was taken away", &["export_manifest_unsigned"], |b| {
        b.edit(3, |m| m.signature = None);
    }),
    case("manifest_changed", "the last manifest says another program", &["export_manifest_signature_invalid"], |b| {
        b.edit(3, |m| m.tool = "somebody".into());
    }),
    case(
        "middle_changed",
        "the second manifest says another program",
        &["export_manifest_mismatch", "export_manifest_signature_invalid"],
        |b| b.edit(2, |m| m.tool = "somebody".into()),
    ),
    case("unknown_key", "the last manifest is signed by a key that nobody enrolled", &["kid_unknown"], |b| {
        b.edit(3, |m| sign(m, Purpose::Export, 77));
    }),
    case("key_of_commits", "the last manifest is signed by the key of commits", &["kid_wrong_purpose"], |b| {
        b.edit(3, |m| sign(m, Purpose::Commit, 2));
    }),
    case(
        "registry_forged",
        "the exporter adds a key to the registry in his last manifest",
        &["registry_position_mismatch"],
        |b| {
            b.edit(3, |m| {
                let key = Key::named(Purpose::Commit, [5; 32]);
                m.batch.as_mut().unwrap().registry.keys.push((key, None));
            });
            b.seal(3);
        },
    ),
    case(
        "registry_of_the_future",
        "the exporter names a registry that does not exist yet",
        &["registry_position_mismatch"],
        |b| {
            b.edit(3, |m| m.batch.as_mut().unwrap().registry.size = 1 << 40);
            b.seal(3);
        },
    ),
    case("sequence_repeated", "a second batch claims number 2", &["export_manifest_mismatch"], |b| {
        let (dir, other) = (b.dir(2), b.dir(2).replace("-00000002-", "-00000002-9"));
        let mut manifest = b.manifest(2);
        let batch = manifest.batch.as_mut().unwrap();
        batch.name = other.trim_end_matches('/').rsplit('/').next().unwrap().to_owned();
        for chain in &mut manifest.chains {
            (chain.from, chain.prev_hash, chain.commits, chain.checkpoints) = (chain.to, chain.last_hash, 0, 0);
        }
        for (chain, continues) in manifest.chains.iter().zip(&mut batch.continues) {
            (continues.root_before, continues.consistency) = (chain.root, Vec::new());
        }
        (manifest.files, batch.stored) = (Vec::new(), Vec::new());
        sign(&mut manifest, Purpose::Export, EXPORT);
        assert!(b.0.keys().any(|name| name.starts_with(&dir)));
        b.0.insert(format!("{other}{MANIFEST_NAME}"), manifest.encode());
    }),
    case(
        "checkpoint_of_another_size",
        "the exporter puts the first batch's checkpoint into the last manifest",
        &["export_manifest_mismatch"],
        |b| {
            let earlier = b.manifest(1).batch.unwrap().continues[0].checkpoint.clone();
            b.edit(3, |m| m.batch.as_mut().unwrap().continues[0].checkpoint = earlier);
            b.seal(3);
        },
    ),
    case(
        "checkpoint_unsigned_by_us",
        "the checkpoint in the last manifest has another signature",
        &["checkpoint_signature_invalid"],
        |b| {
            b.edit(3, |m| {
                let note = &mut m.batch.as_mut().unwrap().continues[0].checkpoint;
                let at = note.len() - 20;
                let other = if note.as_bytes()[at] == b'A' { "B" } else { "A" };
                note.replace_range(at..=at, other);
            });
            b.seal(3);
        },
    ),
    case(
        "consistency_wrong",
        "the exporter's proof does not lead from the second root to the third",
        &["export_manifest_mismatch"],
        |b| {
            b.edit(3, |m| m.batch.as_mut().unwrap().continues[0].consistency[0] = Hash([1; 32]));
            b.seal(3);
        },
    ),
    case(
        "seam_shifted",
        "the exporter lets the last batch begin one entry late",
        &["export_manifest_mismatch", "export_manifest_mismatch", "export_manifest_mismatch"],
        |b| {
            b.edit(3, |m| m.chains[0].from += 1);
            b.seal(3);
        },
    ),
    case(
        "last_hash_of_a_seam",
        "the exporter names another last entry of the second batch, and the third agrees",
        &["export_manifest_mismatch"],
        |b| {
            b.edit(2, |m| m.chains[0].last_hash = Hash([1; 32]));
            b.edit(3, |m| m.chains[0].prev_hash = Hash([1; 32]));
            b.seal(2);
        },
    ),
    case(
        "commit_left_out",
        "the exporter leaves the last commit of the second batch out",
        &["commit_tiling", "entry_missing", "export_digest_mismatch"],
        |b| {
            let name = b.lines(2);
            let text = gunzip(&b.0[&name]);
            let at = text.rfind("{\"commit\"").unwrap();
            let end = text.rfind("{\"checkpoint\"").unwrap();
            let cut = format!("{}{}", &text[..at], &text[end..]);
            b.0.insert(name, gzip(&cut));
        },
    ),
    case(
        "file_missing",
        "the lines of the second batch are gone",
        &["commit_tiling", "entry_missing", "export_file_missing"],
        |b| {
            let name = b.lines(2);
            b.0.remove(&name);
        },
    ),
    case("file_added", "a file that no manifest names", &["export_file_unexpected"], |b| {
        let name = format!("{}notes.txt", b.dir(2));
        b.0.insert(name, b"hello".to_vec());
    }),
    case(
        "manifest_damaged",
        "the second manifest cannot be read",
        &["commit_tiling", "entry_missing", "export_batch_missing", "export_file_unexpected"],
        |b| {
            let name = format!("{}{MANIFEST_NAME}", b.dir(2));
            b.0.insert(name, b"{}".to_vec());
        },
    ),
    case("manifest_beside", "a manifest that is none, of no batch", &["export_file_unexpected"], |b| {
        b.0.insert(format!("marketplace/2026-11-18/mine/{MANIFEST_NAME}"), b"{}".to_vec());
    }),
    case("file_beside", "a file that belongs to no batch", &["export_file_unexpected"], |b| {
        b.0.insert("marketplace/notes.txt".into(), b"hello".to_vec());
    }),
    case("directory_renamed", "a batch under another name", &["export_file_unexpected"], |b| {
        let (from, to) = (b.dir(2), b.dir(2).replace("-00000002-", "-00000009-"));
        let moved = |name: String| name.strip_prefix(&from).map_or(name.clone(), |rest| format!("{to}{rest}"));
        b.0 = std::mem::take(&mut b.0).into_iter().map(|(name, bytes)| (moved(name), bytes)).collect();
    }),
];

fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(bytes), &mut text).unwrap();
    text
}

fn gzip(text: &str) -> Vec<u8> {
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut zip, text.as_bytes()).unwrap();
    zip.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_an_archive_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("archive");
    let ledger = three_batches(&dir.path().join("ledger"), &root, 1).await;
    let id = ledger.id();
    let original = contents(&root);
    let bless = std::env::var_os("LEDGER_BLESS").is_some();
    let (mut wrong, mut names) = (Vec::new(), Vec::new());
    for case in CASES {
        let exit = u8::from(!case.findings.is_empty());
        let folder = fixtures().join(if exit == 0 { "valid" } else { "broken" }).join("archives");
        let kept = folder.join(case.name);
        let mut changed = Batches(original.clone());
        (case.make)(&mut changed);
        let expect = json!({
            "description": case.description, "trust": id.to_hex(), "exit": exit, "findings": case.findings,
        });
        let expect = serde_json::to_string_pretty(&expect).unwrap() + "\n";
        let expect_file = folder.join(format!("{}.expect.json", case.name));
        if bless {
            let _ = std::fs::remove_dir_all(&kept);
            write(&kept, &changed.0);
            std::fs::write(&expect_file, &expect).unwrap();
        }
        if contents(&kept) != changed.0 || std::fs::read_to_string(&expect_file).ok() != Some(expect) {
            wrong.push(format!("{}: the fixture is not what this test makes", case.name));
        }
        names.extend([kept, expect_file]);
    }
    wrong.extend(judge_folders("archives", &names));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// All lines of an archive's or a copy's files, by file of the kind and chain.
fn lines(root: &Path) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let files = contents(root);
    let mut named: Vec<_> = files.iter().map(|(path, bytes)| (path.rsplit('/').next().unwrap(), bytes)).collect();
    named.sort();
    for (name, bytes) in named.into_iter().filter(|(name, _)| name.contains(".jsonl")) {
        let text = if name.ends_with(".gz") { gunzip(bytes) } else { String::from_utf8(bytes.clone()).unwrap() };
        all.entry(name[..name.rfind('-').unwrap()].to_owned()).or_default().push_str(&text);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_after_batch_is_what_a_copy_is_and_what_the_ledger_says() {
    for chains in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let (place, root, copy) = (dir.path().join("ledger"), dir.path().join("archive"), dir.path().join("copy"));
        let ledger = three_batches(&place, &root, chains).await;
        // The ledger as it was exported: the record of the last export came afterwards.
        let record = ArchiveRecord::of(LOCATION, &ledger.exports().await.unwrap());
        assert_eq!((record.completed.len(), record.open), (3, None));
        let report = verify_path(&root, Some(ledger.id()));
        assert_eq!((report.verdict(), report.reason()), (Verdict::Verified, ""), "{}", report.to_text());
        let sizes: Vec<u64> = report.chains().iter().map(|c| c.entries).collect();
        let ends: Vec<u64> = record.completed[2].plan.ranges.iter().map(|r| r.to).collect();
        assert_eq!(sizes, ends);
        let second = support::second_verifier(&format!("--trust {}", ledger.id()), std::slice::from_ref(&root));
        assert_eq!(second, None);
        // The long way agrees, and Finance's copy has the same lines, but for those that came since.
        let source = audit_verify::Export::open(&root, None).unwrap();
        let explained = explain("x", &source, Demands { trust: Some(ledger.id()), ..Demands::default() });
        assert_eq!(explained.verdict(), Verdict::Verified, "{}", explained.to_text());
        assert_eq!(explained.digest(), report.digest());
        let options = ledger_engine::archive::ExportOptions {
            gzip: false,
            withhold_private: false,
            exported_at_us: 0,
            tool: String::new(),
        };
        ledger.export(options, &copy).await.unwrap();
        let (of_archive, of_copy) = (lines(&root), lines(&copy));
        assert_eq!(of_archive.keys().collect::<Vec<_>>(), of_copy.keys().collect::<Vec<_>>());
        for (name, text) in &of_archive {
            assert!(of_copy[name].starts_with(text.as_str()), "{name}");
        }
        // A batch that was kept is an anchor for the ledger.
        let manifest = contents(&root).into_keys().rfind(|n| n.ends_with(MANIFEST_NAME)).unwrap();
        let anchors = audit_verify::Anchor::read(&root.join(manifest)).unwrap();
        let demands = Demands { trust: Some(ledger.id()), anchors: &anchors, ..Demands::default() };
        ledger.shutdown().await.unwrap();
        let report = audit_verify::verify_path_with(&place, demands);
        assert_eq!((report.exit(), report.reason()), (0, ""), "{}", report.to_text());
        assert!(report.chains().iter().all(|c| c.anchored.is_some()));
    }
}

/// Without private documents an archive still verifies, and says that they are withheld.
#[tokio::test(flavor = "multi_thread")]
async fn private_documents_may_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("archive");
    let ledger = exporting(&dir.path().join("ledger"), 1).await;
    list_sku(&ledger, "s").await;
    create_order(&ledger, "a", "s").await;
    let options = BatchOptions { private: false, ..batch_options() };
    let done = ledger.export_batch(archive(&root), options, Box::new(|_| {})).await.unwrap();
    assert!(done.manifest.private_withheld && !done.completed.plan.private);
    assert!(lines(&root).keys().all(|name| name.starts_with("entries")));
    let report = verify_path(&root, Some(ledger.id()));
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    assert_eq!((report.chains()[0].private_present, report.chains()[0].private_redacted), (0, 1));
}

/// At the n-th call, before or after the call has done its work, something happens: it fails, unless told otherwise.
struct Failing {
    archive: Arc<dyn Archive>,
    calls: AtomicUsize,
    at: usize,
    after: bool,
    happens: Box<dyn Fn() -> Result<(), ExportError> + Send + Sync>,
}

impl Failing {
    fn new(archive: &Arc<dyn Archive>, at: usize, after: bool) -> Failing {
        let injected = || Err(ExportError::Archive("the test".into(), "injected".into()));
        Failing { archive: Arc::clone(archive), calls: AtomicUsize::new(0), at, after, happens: Box::new(injected) }
    }

    fn strike<T>(&self, work: impl FnOnce() -> Result<T, ExportError>) -> Result<T, ExportError> {
        let struck = self.calls.fetch_add(1, Ordering::Relaxed) == self.at;
        if struck && !self.after {
            (self.happens)()?;
        }
        let done = work()?;
        if struck && self.after {
            (self.happens)()?;
        }
        Ok(done)
    }
}

impl Archive for Failing {
    fn location(&self) -> &str {
        self.archive.location()
    }

    fn terms(&self, us: i64) -> Result<Option<ObjectLock>, ExportError> {
        self.strike(|| self.archive.terms(us))
    }

    fn spool(&self, name: &str) -> Result<Spool, ExportError> {
        self.strike(|| self.archive.spool(name))
    }

    fn put(&self, object: NewObject<'_>, terms: &BatchTerms) -> Result<Kept, ExportError> {
        self.strike(|| self.archive.put(object, terms))
    }

    fn check(&self, object: NewObject<'_>, kept: &Kept, terms: &BatchTerms) -> Result<(), ExportError> {
        self.strike(|| self.archive.check(object, kept, terms))
    }

    fn manifests(&self, prefix: &str, after: Option<&str>) -> Result<Vec<(String, Option<String>)>, ExportError> {
        self.strike(|| self.archive.manifests(prefix, after))
    }

    fn locks(&self) -> bool {
        self.archive.locks()
    }

    fn state(&self, key: &str, version: Option<&str>) -> Result<ObjectState, ExportError> {
        self.archive.state(key, version)
    }

    fn read(
        &self,
        key: &str,
        version: Option<&str>,
        most: u64,
        out: &mut (dyn std::io::Write + Send),
    ) -> Result<(Hash, u64), ExportError> {
        self.archive.read(key, version, most, out)
    }
}

/// Cut off at whatever step: nothing is recorded as done, the archive verifies up to the batch before, and the next run makes
/// what an undisturbed one makes.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cut_off_anywhere_goes_on() {
    let mut steps = 0;
    for at in 0.. {
        let mut struck = false;
        for after in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (root, undisturbed) = (dir.path().join("archive"), dir.path().join("other"));
            let ledger = exporting(&dir.path().join("ledger"), 2).await;
            let good = archive(&root);
            list_sku(&ledger, "s").await;
            create_order(&ledger, "a", "s").await;
            export(&ledger, &good).await.unwrap();
            create_order(&ledger, "b", "s").await;
            let failing: Arc<dyn Archive> = Arc::new(Failing::new(&good, at, after));
            let Err(error) = export(&ledger, &failing).await else { continue };
            struck = true;
            assert!(error.to_string().contains("injected"), "{error}");
            let before = ArchiveRecord::of(LOCATION, &ledger.exports().await.unwrap());
            assert_eq!(before.completed.len(), 1, "step {at}");
            // More is written meanwhile: it belongs to the next batch, if this one was planned already.
            create_order(&ledger, "c", "s").await;
            // By another version of the program, under another policy: a manifest that is there already stays the only one.
            let signed: Vec<_> = contents(&root).into_iter().filter(|(name, _)| name.contains(MANIFEST_NAME)).collect();
            let other = BatchOptions { pii_policy: "2".into(), tool: "another".into(), ..batch_options() };
            let done = ledger.export_batch(Arc::clone(&good), other, Box::new(|_| {})).await.unwrap();
            assert_eq!((done.resumed, done.completed.plan.sequence), (before.open.is_some(), 2));
            let now = contents(&root);
            assert!(signed.iter().all(|(name, bytes)| now[name] == *bytes), "step {at}");
            assert_eq!(now.values().filter(|bytes| sha256(&[bytes]) == done.completed.manifest_sha256).count(), 1);
            assert!(before.open.is_none_or(|plan| plan == done.completed.plan));
            export(&ledger, &good).await.unwrap();
            let report = verify_path(&root, Some(ledger.id()));
            assert_eq!(report.exit(), 0, "step {at}: {}", report.to_text());
            assert!(!contents(&root).keys().any(|name| name.contains(".spool")), "step {at}");
            // The same range gives the same files, wherever.
            let whole = DirectoryArchive::open(&undisturbed, Some("elsewhere".into())).unwrap();
            let whole: Arc<dyn Archive> = Arc::new(whole);
            export(&ledger, &whole).await.unwrap();
            let (parts, whole) = (lines(&root), lines(&undisturbed));
            assert!(parts.iter().all(|(name, text)| whole[name].starts_with(text.as_str())), "step {at}");
        }
        if !struck {
            break;
        }
        steps += 1;
    }
    // The archive's terms twice, the spool, and each of two chains' files and the manifest kept and read back.
    assert!(steps >= 9, "{steps}");
}

/// Given up at whatever step, also when only the record was missing: no number is there twice, and none is left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_given_up_anywhere_leaves_no_second_batch() {
    for after in [false, true] {
        for at in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("archive");
            let ledger = exporting(&dir.path().join("ledger"), 1).await;
            let good = archive(&root);
            export(&ledger, &good).await.unwrap();
            let failing: Arc<dyn Archive> = Arc::new(Failing::new(&good, at, after));
            if export(&ledger, &failing).await.is_ok() {
                assert!(at > 5, "{at}");
                break;
            }
            let anew = BatchOptions { restart: true, ..batch_options() };
            ledger.export_batch(Arc::clone(&good), anew, Box::new(|_| {})).await.unwrap();
            export(&ledger, &good).await.unwrap();
            let record = ArchiveRecord::of(LOCATION, &ledger.exports().await.unwrap());
            assert!(check::gaps(&record.completed).is_empty(), "step {at}");
            let report = verify_path(&root, Some(ledger.id()));
            assert_eq!(report.exit(), 0, "step {at}: {}", report.to_text());
        }
    }
}

/// Every batch of several chains rests on nothing but itself and those before it, whoever writes meanwhile: each way of saying where one ends,
/// by now or by a time, is a cut through all chains.
#[tokio::test(flavor = "multi_thread")]
async fn batches_of_several_chains_are_whole_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let (root, parts) = (dir.path().join("archive"), dir.path().join("parts"));
    let ledger = Arc::new(exporting(&dir.path().join("ledger"), 4).await);
    let trust = Some(ledger.id());
    let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let (ledger, stop, begun) = (Arc::clone(&ledger), Arc::clone(&stop), Arc::clone(&begun));
            tokio::spawn(async move {
                // Each order rests on a listing that was made just before, on another chain as often as not.
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let sku = format!("s{w}-{n}");
                    list_sku(&ledger, &sku).await;
                    create_order(&ledger, &sku, &sku).await;
                    begun.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut options = BatchOptions { until_us: None, ..batch_options() };
    for batch in 1..=6 {
        let enough = batch * 12;
        while begun.load(Ordering::Relaxed) < enough {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        ledger.export_batch(archive(&root), options.clone(), Box::new(|_| {})).await.unwrap();
        let report = verify_path(&root, trust);
        assert_eq!(report.exit(), 0, "batch {batch}: {}", report.to_text());
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let demands = Demands { trust, ..Demands::default() };
    for batch in 1..=6 {
        let report = verify_batches(&root.to_string_lossy(), &(batch..=batch), Some(&parts), demands);
        assert_eq!(report.faults(), 0, "{}", report.to_text());
    }
    let summaries: Vec<_> = std::fs::read_dir(&parts).unwrap().map(|f| f.unwrap().path()).collect();
    let report = combine(&summaries, demands);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    // Up to any time there is a cut, or nothing new.
    let times: Vec<i64> = {
        let entries = (0..4).flat_map(|chain| ledger.store().entries(chain, 0, 10_000).unwrap());
        entries.map(|entry| entry.header.recorded_at_us).collect()
    };
    let (mut made, mut nothing) = (0, 0);
    for (n, until_us) in times.iter().step_by(times.len() / 40).enumerate() {
        let (place, location) = (dir.path().join(format!("until-{n}")), format!("until {n}"));
        let there: Arc<dyn Archive> = Arc::new(DirectoryArchive::open(&place, Some(location)).unwrap());
        options.until_us = Some(*until_us);
        match ledger.export_batch(there, options.clone(), Box::new(|_| {})).await {
            Ok(done) => {
                for (chain, range) in (0..).zip(&done.completed.plan.ranges) {
                    let last = ledger.store().entry(chain, range.to - 1).unwrap().unwrap();
                    assert!(last.header.recorded_at_us <= *until_us);
                }
                let report = verify_path(&place, trust);
                assert_eq!(report.exit(), 0, "until {until_us}: {}", report.to_text());
                made += 1;
            }
            Err(e) => {
                assert!(e.to_string().contains("a later --to"), "{e}");
                nothing += 1;
            }
        }
    }
    assert!(made >= 10 && nothing >= 1, "{made} {nothing}");
}

/// A key that waits before it signs for the first time.
struct Waiting {
    key: LocalSigner,
    begun: Notify,
    go: Notify,
    is_first: AtomicBool,
}

impl Signer for Waiting {
    fn public_key(&self) -> [u8; 32] {
        self.key.public_key()
    }

    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<[u8; 64], SignerError>> {
        Box::pin(async move {
            if self.is_first.swap(false, Ordering::Relaxed) {
                self.begun.notify_one();
                self.go.notified().await;
            }
            self.key.sign(message).await
        })
    }
}

/// The key of checkpoints is another one while those of a batch are signed: whoever has the batch alone knows the keys that signed them.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_change_while_checkpoints_are_signed_are_known_to_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (place, root) = (dir.path().join("ledger"), dir.path().join("archive"));
    let ledger = exporting(&place, 3).await;
    list_sku(&ledger, "s").await;
    for key in ["a", "b", "c", "d", "e"] {
        create_order(&ledger, key, "s").await;
    }
    ledger.close().await.unwrap();
    let waiting = Arc::new(Waiting {
        key: signer(Purpose::Checkpoint, 3),
        begun: Notify::new(),
        go: Notify::new(),
        is_first: AtomicBool::new(true),
    });
    let held: [Arc<dyn Signer>; 4] = [
        Arc::new(signer(Purpose::Commit, 2)),
        waiting.clone(),
        Arc::new(signer(Purpose::Checkpoint, 33)),
        Arc::new(signer(Purpose::Export, EXPORT)),
    ];
    let store = Arc::new(SqliteStore::open(&place, SqliteOptions::default()).unwrap());
    let config = Config { signers: Arc::new(Keyring::new(held)), ..support::config(store) };
    let ledger = Arc::new(Ledger::open(config).await.unwrap());
    let (exporter, there) = (Arc::clone(&ledger), archive(&root));
    let job = tokio::spawn(async move { export(&exporter, &there).await });
    waiting.begun.notified().await;
    // Another process, meanwhile.
    let other = support::open(&place).await;
    let (old, new) = (signer(Purpose::Checkpoint, 3), signer(Purpose::Checkpoint, 33));
    let authorise = Box::new(move |statement: &[u8]| {
        let possession = Some(new.signature(statement).to_vec());
        Ok(Authority { governance: signer(Purpose::Governance, 1).signature(statement), possession })
    });
    let key = signer(Purpose::Checkpoint, 33).key().clone();
    other.retire(Retire::Rotate { old_kid: old.key().kid.clone(), key }, authorise).await.unwrap();
    waiting.go.notify_one();
    job.await.unwrap().unwrap();
    let trust = Some(ledger.id());
    let report = verify_path(&root, trust);
    assert_eq!(report.exit(), 0, "{}", report.to_text());
    let demands = Demands { trust, ..Demands::default() };
    let report = verify_batches(&root.to_string_lossy(), &(1..=1), None, demands);
    assert_eq!(report.faults(), 0, "{}", report.to_text());
}

/// What was begun is finished by the options that it was begun with.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_is_not_finished_as_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("archive");
    let ledger = exporting(&dir.path().join("ledger"), 1).await;
    let good = archive(&root);
    let failing: Arc<dyn Archive> = Arc::new(Failing::new(&good, 3, false));
    let without = BatchOptions { private: false, ..batch_options() };
    ledger.export_batch(failing, without.clone(), Box::new(|_| {})).await.unwrap_err();
    for (other, said) in [
        (BatchOptions { private: true, ..without.clone() }, "with private documents"),
        (BatchOptions { tables: true, ..without.clone() }, "with tables"),
        (BatchOptions { env: "other".into(), ..without.clone() }, "\"other\""),
    ] {
        let error = ledger.export_batch(Arc::clone(&good), other, Box::new(|_| {})).await.unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("--restart"), "{error}");
    }
    assert!(ledger.export_batch(good, without, Box::new(|_| {})).await.unwrap().resumed);
}

/// The batch before must be there as it was, where it was: what follows on another one would be of no use, and a second of its number neither.
#[tokio::test(flavor = "multi_thread")]
async fn an_altered_or_moved_batch_gets_no_successor() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("archive");
    let ledger = three_batches(&dir.path().join("ledger"), &root, 1).await;
    let batches = Batches(contents(&root));
    let third = batches.dir(3);
    let manifest = root.join(&third).join(MANIFEST_NAME);
    let bytes = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, [&bytes[..], b" "].concat()).unwrap();
    let error = export(&ledger, &archive(&root)).await.unwrap_err().to_string();
    assert!(error.contains("was altered since"), "{error}");
    std::fs::write(&manifest, bytes).unwrap();
    // In the directory of another day it is not where it belongs, whoever looks.
    let (day, name) = third.trim_end_matches('/').rsplit_once('/').unwrap();
    let elsewhere = root.join(day).with_file_name("2039-01-01");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::rename(root.join(&third), elsewhere.join(name)).unwrap();
    let report = verify_path(&root, Some(ledger.id()));
    assert_eq!(report.codes(), ["export_file_unexpected"], "{}", report.to_text());
    let reader = ledger.exports().await.unwrap();
    let mut record = ArchiveRecord::of(LOCATION, &reader);
    record.completed.pop();
    let found = ledger.unrecorded_batches(&archive(&root), record.completed.last().cloned()).await;
    assert!(found.unwrap_err().to_string().contains("was moved from"));
}

/// A job in PostgreSQL loses its place with its connection, at whatever step, and another one makes the batch meanwhile: it is recorded once.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_lost_its_place_anywhere_records_nothing_twice() {
    let url = postgres::database();
    let ledger = postgres::create(&url, 1).await;
    enrol(&ledger, Purpose::Export, EXPORT).await.unwrap();
    ledger.signers().add(Arc::new(signer(Purpose::Export, EXPORT)));
    list_sku(&ledger, "s").await;
    let (mut steps, mut overtaken) = (0, 0);
    for at in 0.. {
        let mut struck = false;
        for after in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let location = format!("archive {at} {after}");
            let good: Arc<dyn Archive> = Arc::new(DirectoryArchive::open(dir.path(), Some(location.clone())).unwrap());
            let other = postgres::open(&url).await;
            other.signers().add(Arc::new(signer(Purpose::Export, EXPORT)));
            let (name, there) = (postgres::name_of(&url).to_owned(), Arc::clone(&good));
            // Some steps are in threads that know no runtime.
            let runtime = tokio::runtime::Handle::current();
            let meanwhile = move || {
                let end = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_locks WHERE locktype = 'advisory' AND granted \
                           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
                assert_eq!(test_servers::Server::shared().psql(&name, end), "1");
                // Right away: the place is free once the server has noticed.
                runtime.block_on(export(&other, &there)).unwrap();
                Ok(())
            };
            let failing = Failing { happens: Box::new(meanwhile), ..Failing::new(&good, at, after) };
            let failing = Arc::new(failing);
            let shared: Arc<dyn Archive> = Arc::clone(&failing) as _;
            let ended = export(&ledger, &shared).await;
            struck |= failing.calls.load(Ordering::Relaxed) > at;
            overtaken += usize::from(matches!(ended, Err(ExportError::Overtaken)));
            export(&ledger, &good).await.unwrap();
            let record = ArchiveRecord::of(&location, &ledger.exports().await.unwrap());
            let sequences: Vec<u64> = record.completed.iter().map(|done| done.plan.sequence).collect();
            assert!(sequences.iter().copied().eq(1..=sequences.len() as u64), "step {at}: {sequences:?}");
            assert!(check::gaps(&record.completed).is_empty() && record.open.is_none(), "step {at}");
            let report = verify_path(dir.path(), Some(ledger.id()));
            assert_eq!(report.exit(), 0, "step {at}: {}", report.to_text());
        }
        if !struck {
            break;
        }
        steps += 1;
    }
    assert!(steps >= 6 && overtaken >= 2, "{steps} {overtaken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_at_a_time_and_none_without_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let (place, root) = (dir.path().join("ledger"), dir.path().join("archive"));
    let ledger = support::create(&place, 1).await;
    let error = export(&ledger, &archive(&root)).await.unwrap_err().to_string();
    assert!(error.contains("ledger keys enrol"), "{error}");
    assert!(ledger.exports().await.unwrap().is_empty() && contents(&root).is_empty());
    enrol(&ledger, Purpose::Export, EXPORT).await.unwrap();
    ledger.signers().add(Arc::new(signer(Purpose::Export, EXPORT)));
    // Another process, which holds the place of the job.
    let other = SqliteStore::open(&place, SqliteOptions::default()).unwrap();
    let held = ledger_engine::store::Store::exclusive(&other).unwrap().unwrap();
    assert!(matches!(export(&ledger, &archive(&root)).await, Err(ExportError::Busy)));
    drop(held);
    let done = export(&ledger, &archive(&root)).await.unwrap();
    assert!(root.join(directory_of(&done.completed.plan)).join(MANIFEST_NAME).exists());
    // Given up: another plan takes its number, and what was begun stays without a manifest.
    let failing: Arc<dyn Archive> = Arc::new(Failing::new(&archive(&root), 3, true));
    export(&ledger, &failing).await.unwrap_err();
    let anew = BatchOptions { restart: true, ..batch_options() };
    let again = ledger.export_batch(archive(&root), anew, Box::new(|_| {})).await.unwrap();
    assert_eq!((again.resumed, again.completed.plan.sequence), (false, 2));
    let report = verify_path(&root, Some(ledger.id()));
    assert_eq!(report.exit(), 0, "{}", report.to_text());
}

/// What lies in an archive unsigned does not stop the next export; what the ledger's own key signed of other entries does.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_stop_an_export_and_another_history_does() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("archive");
    let ledger = three_batches(&dir.path().join("ledger"), &root, 1).await;
    let mut batches = Batches(contents(&root));
    let place_of = |batches: &Batches, number: usize| batches.dir(3).replace("-00000003-", &format!("-{number:08}-"));
    for bytes in [b"no manifest".to_vec(), {
        batches.edit(3, |m| m.tool = "somebody".into());
        batches.manifest(3).encode()
    }] {
        let before = ArchiveRecord::of(LOCATION, &ledger.exports().await.unwrap()).completed.len();
        let next = place_of(&batches, before + 1);
        std::fs::create_dir_all(root.join(&next)).unwrap();
        std::fs::write(root.join(&next).join(MANIFEST_NAME), bytes).unwrap();
        let done = export(&ledger, &archive(&root)).await.unwrap();
        assert_eq!(done.completed.plan.sequence, before as u64 + 1);
    }
    let far = place_of(&batches, 9);
    let mut manifest = batches.manifest(3);
    manifest.chains[0].root = Hash([1; 32]);
    let name = far.trim_end_matches('/').rsplit('/').next().unwrap().to_owned();
    manifest.batch.as_mut().unwrap().name = name;
    sign(&mut manifest, Purpose::Export, EXPORT);
    std::fs::create_dir_all(root.join(&far)).unwrap();
    std::fs::write(root.join(&far).join(MANIFEST_NAME), manifest.encode()).unwrap();
    let error = export(&ledger, &archive(&root)).await.unwrap_err().to_string();
    assert!(
        error.contains("does not follow the last one that is recorded") && error.contains("another place"),
        "{error}"
    );
}

/// What was begun is finished as it was begun, or not at all: documents that are to be left out are not put in.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_begun_with_documents_is_not_finished_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("archive");
    let ledger = exporting(&dir.path().join("ledger"), 1).await;
    let good = archive(&root);
    // At the spool, which is after the plan.
    let failing: Arc<dyn Archive> = Arc::new(Failing::new(&good, 3, false));
    assert!(export(&ledger, &failing).await.is_err());
    let record = ArchiveRecord::of(LOCATION, &ledger.exports().await.unwrap());
    assert!(record.open.as_ref().is_some_and(|plan| plan.private), "{record:?}");
    let without = BatchOptions { private: false, ..batch_options() };
    let refused = ledger.export_batch(Arc::clone(&good), without.clone(), Box::new(|_| {})).await.unwrap_err();
    assert!(refused.to_string().contains("--restart"), "{refused}");
    assert!(!contents(&root).keys().any(|name| name.contains("private")));
    let anew = BatchOptions { restart: true, ..without };
    ledger.export_batch(Arc::clone(&good), anew, Box::new(|_| {})).await.unwrap();
    assert_eq!(verify_path(&root, Some(ledger.id())).exit(), 0);
}
