//! Exports: what the engine writes is what the ledger holds, and whatever is done to the files is found.
//!
//! `fixtures/valid/exports` and `fixtures/broken/exports` hold an export for each case below with its verdict beside it
//! (`NAME.expect.json`). `LEDGER_BLESS=1 cargo test -p ledger-engine --test exports` writes them anew after a change of format.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use audit_verify::{Anchor, Demands, Verdict, explain, verify_path, verify_path_with};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::{DeflateEncoder, GzEncoder};
use ledger_engine::archive::{ExportError, ExportOptions};
use ledger_engine::export::{ExportFile, FileKind, MANIFEST_NAME, Manifest};
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::reader::Reader;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use serde_json::json;
use support::{fixtures, judge_folders, sample};

const OPTIONS: fn() -> ExportOptions = || ExportOptions {
    gzip: false,
    withhold_private: false,
    exported_at_us: 1_795_000_100_000_000,
    tool: "ledger test".to_owned(),
};

async fn export(ledger: &Path, options: ExportOptions, to: &Path) -> Manifest {
    let store = SqliteStore::open(ledger, SqliteOptions::default()).unwrap();
    let (reader, _) = Reader::open(std::sync::Arc::new(store)).await.unwrap();
    reader.export(options, to).await.unwrap()
}

/// An export in memory: its manifest, and the lines of its files.
#[derive(Clone)]
struct Export {
    manifest: Manifest,
    files: BTreeMap<String, Vec<String>>,
    /// Files that no manifest names.
    others: BTreeMap<String, Vec<u8>>,
}

impl Export {
    fn read(dir: &Path) -> Export {
        let manifest = Manifest::decode(&std::fs::read(dir.join(MANIFEST_NAME)).unwrap()).unwrap();
        let lines = |f: &ExportFile| {
            let bytes = std::fs::read(dir.join(&f.name)).unwrap();
            let mut text = String::new();
            if f.is_gzip() {
                MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
            } else {
                text = String::from_utf8(bytes).unwrap();
            }
            (f.name.clone(), text.lines().map(str::to_owned).collect())
        };
        Export { files: manifest.files.iter().map(lines).collect(), manifest, others: BTreeMap::new() }
    }

    fn entries(&mut self, chain: u32) -> &mut Vec<String> {
        self.files.get_mut(&ExportFile::name_of(FileKind::Entries, chain, 0, false)).unwrap()
    }

    fn private(&mut self) -> &mut Vec<String> {
        self.files.get_mut(&ExportFile::name_of(FileKind::Private, 0, 0, false)).unwrap()
    }

    /// Makes the manifest say what the files are, as a forger would.
    fn seal(&mut self) {
        for file in &mut self.manifest.files {
            let lines = &self.files[&file.name];
            let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
            file.lines = lines.len() as u64;
            file.bytes = text.len() as u64;
            file.blake3 = Hash(*blake3::hash(text.as_bytes()).as_bytes());
            file.sha256 = sha256(&[text.as_bytes()]);
        }
    }

    fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join(MANIFEST_NAME), self.manifest.encode()).unwrap();
        for (name, lines) in &self.files {
            std::fs::write(dir.join(name), lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
        }
        for (name, bytes) in &self.others {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

/// Where the line of an entry is.
fn line_of(lines: &[String], index: u64) -> usize {
    let wanted = format!(",\"index\":{index},");
    lines.iter().position(|l| l.starts_with("{\"body\"") && l.contains(&wanted)).unwrap()
}

struct Case {
    name: &'static str,
    description: &'static str,
    exit: u8,
    findings: &'static [&'static str],
    make: fn(&mut Export),
}

const fn broken(
    name: &'static str,
    description: &'static str,
    findings: &'static [&'static str],
    make: fn(&mut Export),
) -> Case {
    Case { name, description, exit: 1, findings, make }
}

const fn valid(name: &'static str, description: &'static str, make: fn(&mut Export)) -> Case {
    Case { name, description, exit: 0, findings: &[], make }
}

/// Replaces text in the line of an entry of chain 0.
fn edit(export: &mut Export, index: u64, from: &str, to: &str) {
    let lines = export.entries(0);
    let at = line_of(lines, index);
    assert!(lines[at].contains(from), "{}", lines[at]);
    lines[at] = lines[at].replacen(from, to, 1);
}

const CASES: &[Case] = &[
    valid("whole", "an export as the engine writes it", |_| {}),
    valid("without_private", "the same without private documents", |e| {
        let name = ExportFile::name_of(FileKind::Private, 0, 0, false);
        e.files.remove(&name);
        e.manifest.files.retain(|f| f.name != name);
        e.manifest.private_withheld = true;
    }),
    broken("body_rewritten", "the price in a body; the manifest fits the file", &["body_hash_mismatch"], |e| {
        edit(e, 1, "\"amount\":1250", "\"amount\":1");
        e.seal();
    }),
    broken("event_type_rewritten", "a payment that failed is one that was captured", &["entry_hash_mismatch"], |e| {
        edit(e, 3, "payment.captured", "payment.failed");
        e.seal();
    }),
    broken(
        "commit_and_entry_deleted",
        "one commit with its entry is gone, and the manifest knows nothing of it",
        &["commit_tiling", "entry_missing"],
        |e| {
            let lines = e.entries(0);
            let at = line_of(lines, 5);
            lines.drain(at - 1..=at);
            e.seal();
        },
    ),
    broken("entry_repeated", "a line comes twice", &["entry_duplicate", "export_line_misplaced"], |e| {
        let lines = e.entries(0);
        let at = line_of(lines, 5);
        lines.insert(at, lines[at].clone());
        e.seal();
    }),
    broken("lines_swapped", "an entry stands before its commit's line", &["export_line_misplaced"], |e| {
        let lines = e.entries(0);
        let at = line_of(lines, 5);
        lines.swap(at - 1, at);
        e.seal();
    }),
    broken(
        "line_not_canonical",
        "a space in a line: the same JSON, other bytes",
        &["entry_missing", "export_line_undecodable"],
        |e| {
            edit(e, 5, ",\"index\":", ", \"index\":");
            e.seal();
        },
    ),
    broken("commit_signature_flipped", "one digit of a signature", &["commit_signature_invalid"], |e| {
        let line = e.entries(0).iter_mut().filter(|l| l.starts_with("{\"commit\"")).nth(4).unwrap();
        let at = line.find("\"signature\":\"").unwrap() + 13;
        let other = if line.as_bytes()[at] == b'0' { "1" } else { "0" };
        line.replace_range(at..=at, other);
        e.seal();
    }),
    broken("checkpoint_rewritten", "the root in a checkpoint's line", &["checkpoint_mismatch"], |e| {
        let line = e.entries(0).iter_mut().find(|l| l.starts_with("{\"checkpoint\"")).unwrap();
        let at = line.find("\"root\":\"").unwrap() + 8;
        let other = if line.as_bytes()[at] == b'0' { "1" } else { "0" };
        line.replace_range(at..=at, other);
        e.seal();
    }),
    broken("private_rewritten", "a person's name", &["private_mismatch"], |e| {
        let line = &mut e.private()[0];
        *line = line.replacen("@example.org", "@example.net", 1);
        e.seal();
    }),
    broken(
        "private_of_another_chain",
        "the chain of a private document's line is not its file's",
        &["chain_unknown", "export_line_misplaced"],
        |e| {
            let line = &mut e.private()[0];
            *line = line.replacen("\"chain\":0", "\"chain\":1", 1);
            e.seal();
        },
    ),
    broken(
        "commit_of_another_chain",
        "the chain of a commit's line is not its file's",
        &["chain_unknown", "commit_tiling", "export_line_misplaced"],
        |e| {
            let line = e.entries(0).iter_mut().filter(|l| l.starts_with("{\"commit\"")).nth(4).unwrap();
            *line = line.replacen("\"chain\":0", "\"chain\":1", 1);
            e.seal();
        },
    ),
    broken("private_added", "a document that no entry names", &["private_unexpected"], |e| {
        let line = e.private()[0].replacen(",\"index\":14", ",\"index\":15", 1);
        assert_ne!(line, e.private()[0]);
        e.private().insert(1, line);
        e.seal();
    }),
    broken(
        "checkpoint_deleted",
        "a line is gone, the manifest is as it was",
        &["export_digest_mismatch", "export_manifest_mismatch"],
        |e| e.entries(0).retain(|l| !l.starts_with("{\"checkpoint\"")),
    ),
    broken(
        "tail_cut",
        "the last commit is gone, the manifest is as it was",
        &["export_digest_mismatch", "export_manifest_mismatch"],
        |e| {
            let last = e.entries(0).iter().rposition(|l| l.starts_with("{\"commit\"")).unwrap();
            e.entries(0).truncate(last);
            // The checkpoint of the whole went with it.
        },
    ),
    broken(
        "file_missing",
        "a file that the manifest names; private documents are left without their entries",
        &["entry_missing", "export_file_missing", "private_unexpected", "private_unexpected", "private_unexpected"],
        |e| {
            let name = ExportFile::name_of(FileKind::Entries, 0, 0, false);
            e.files.remove(&name);
        },
    ),
    broken("file_unexpected", "a file that it does not name", &["export_file_unexpected"], |e| {
        e.others.insert("entries-0007-000000000000000.jsonl".into(), b"{}\n".to_vec());
    }),
    broken("range_wrong", "the manifest claims one entry more", &["export_manifest_mismatch"], |e| {
        e.manifest.chains[0].to += 1;
        e.manifest.files[0].to += 1;
    }),
    broken("head_wrong", "the manifest names another head", &["export_manifest_mismatch"], |e| {
        e.manifest.chains[0].last_hash = Hash([1; 32]);
    }),
    broken(
        "file_named_twice",
        "the manifest names a file twice",
        &["export_manifest_mismatch", "export_manifest_mismatch"],
        |e| {
            let file = e.manifest.files[0].clone();
            e.manifest.files.insert(1, file);
        },
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_the_files_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let id = sample(&dir.path().join("ledger"), 1).await;
    let original = dir.path().join("export");
    export(&dir.path().join("ledger"), OPTIONS(), &original).await;
    let bless = std::env::var_os("LEDGER_BLESS").is_some();
    let mut wrong = Vec::new();
    let mut names = Vec::new();
    for case in CASES {
        let folder = fixtures().join(if case.exit == 0 { "valid" } else { "broken" }).join("exports");
        let (made, kept) = (dir.path().join(case.name), folder.join(case.name));
        let mut changed = Export::read(&original);
        (case.make)(&mut changed);
        changed.write(&made);
        let expect = json!({
            "description": case.description, "trust": id.to_hex(), "exit": case.exit, "findings": case.findings,
        });
        let expect = serde_json::to_string_pretty(&expect).unwrap() + "\n";
        let expect_file = folder.join(format!("{}.expect.json", case.name));
        if bless {
            let _ = std::fs::remove_dir_all(&kept);
            changed.write(&kept);
            std::fs::write(&expect_file, &expect).unwrap();
        }
        let same = contents(&made) == contents(&kept) && std::fs::read_to_string(&expect_file).ok() == Some(expect);
        if !same {
            wrong.push(format!("{}: the fixture is not what this test makes", case.name));
        }
        names.extend([kept, expect_file]);
    }
    wrong.extend(judge_folders("exports", &names));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(list) = std::fs::read_dir(dir) else { return BTreeMap::new() };
    let read =
        |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap());
    list.map(|e| read(e.unwrap().path())).collect()
}

/// Plain, compressed in members, compressed anew by somebody else, from several chains: the same lines, the same verdict as of
/// the ledger, the same digest.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_says_what_the_ledger_says() {
    for chains in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger");
        let id = sample(&ledger, chains).await;
        let [plain, gzip, again, mixed] = ["plain", "gzip", "again", "mixed"].map(|name| dir.path().join(name));
        let manifest = export(&ledger, OPTIONS(), &plain).await;
        let compressed = export(&ledger, ExportOptions { gzip: true, ..OPTIONS() }, &gzip).await;
        assert_eq!(manifest.chains, compressed.chains);
        for (a, b) in manifest.files.iter().zip(&compressed.files) {
            assert_eq!((a.bytes, a.blake3, a.sha256, a.lines), (b.bytes, b.blake3, b.sha256, b.lines));
            let zipped = std::fs::read(gzip.join(&b.name)).unwrap();
            let mut lines = Vec::new();
            MultiGzDecoder::new(&zipped[..]).read_to_end(&mut lines).unwrap();
            assert_eq!(lines, std::fs::read(plain.join(&a.name)).unwrap(), "{}", a.name);
            // As if `gunzip` and `gzip` had passed over it.
            std::fs::create_dir_all(&again).unwrap();
            let mut zip = GzEncoder::new(Vec::new(), Compression::best());
            zip.write_all(&lines).unwrap();
            std::fs::write(again.join(&b.name), zip.finish().unwrap()).unwrap();
            // The first lines as they were, and others as `gzip` makes them.
            std::fs::create_dir_all(&mixed).unwrap();
            let first = lines.iter().position(|b| *b == b'\n').unwrap() + 1;
            let (ours, rest) = lines.split_at(first);
            let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
            deflate.write_all(ours).unwrap();
            let deflated = deflate.finish().unwrap();
            let mut sum = flate2::Crc::new();
            sum.update(ours);
            let header = ledger_engine::export::member_header(deflated.len()).unwrap();
            let mut pieces =
                [&header[..], &deflated, &sum.sum().to_le_bytes(), &(ours.len() as u32).to_le_bytes()].concat();
            for piece in [rest, &[]] {
                let mut zip = GzEncoder::new(&mut pieces, Compression::best());
                zip.write_all(piece).unwrap();
                zip.finish().unwrap();
            }
            std::fs::write(mixed.join(&b.name), pieces).unwrap();
        }
        for other in [&again, &mixed] {
            std::fs::copy(gzip.join(MANIFEST_NAME), other.join(MANIFEST_NAME)).unwrap();
        }
        let of_ledger = verify_path(&ledger, Some(id));
        assert_eq!(of_ledger.verdict(), Verdict::Verified, "{}", of_ledger.to_text());
        for path in [&plain, &gzip, &again, &mixed, &plain.join(MANIFEST_NAME)] {
            let report = verify_path(path, Some(id));
            assert_eq!(report.verdict(), Verdict::Verified, "{}", report.to_text());
            assert_eq!(report.reason(), "", "the quick proof did");
            assert_eq!(report.digest(), of_ledger.digest());
            assert_eq!(report.keys(), of_ledger.keys());
            for (a, b) in report.chains().iter().zip(of_ledger.chains()) {
                let b = audit_verify::ChainReport { projection_rows: None, ..b.clone() };
                assert_eq!(*a, b);
            }
            // The long way agrees.
            let source = audit_verify::Export::open(path, None).unwrap();
            let explained = explain("x", &source, Demands { trust: Some(id), ..Demands::default() });
            assert_eq!(explained.verdict(), Verdict::Verified, "{}", explained.to_text());
            assert_eq!(explained.digest(), of_ledger.digest());
            assert_eq!(verify_path(path, None).verdict(), Verdict::IdentityNotProven);
        }
        // A second export of the same ledger has the same files.
        let second = dir.path().join("second");
        export(&ledger, OPTIONS(), &second).await;
        assert_eq!(contents(&plain), contents(&second));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_over_and_nothing_half_made_stays() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    sample(&ledger, 1).await;
    let to = dir.path().join("export");
    std::fs::create_dir(&to).unwrap();
    let store = SqliteStore::open(&ledger, SqliteOptions::default()).unwrap();
    let (reader, _) = Reader::open(std::sync::Arc::new(store)).await.unwrap();
    assert!(matches!(reader.export(OPTIONS(), &to).await, Err(ExportError::Exists(_))));
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(reader.export(OPTIONS(), &file.join("below")).await, Err(ExportError::Io(..))));
    drop(reader);
    // A damaged ledger is not exported: the export would hide where the damage is.
    let db = rusqlite::Connection::open(ledger.join("ledger.db")).unwrap();
    db.execute_batch("DROP TRIGGER entries_no_delete; DELETE FROM entries WHERE idx = 7").unwrap();
    drop(db);
    let store = SqliteStore::open(&ledger, SqliteOptions::default()).unwrap();
    let (reader, _) = Reader::open(std::sync::Arc::new(store)).await.unwrap();
    let error = reader.export(OPTIONS(), &dir.path().join("damaged")).await.unwrap_err().to_string();
    assert!(error.contains("no entry 7") && error.contains("verify the ledger"), "{error}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

/// What a compressed file can hide or break.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_compression_is_a_finding_and_costs_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let id = sample(&ledger, 1).await;
    let good = dir.path().join("gzip");
    export(&ledger, ExportOptions { gzip: true, ..OPTIONS() }, &good).await;
    let name = ExportFile::name_of(FileKind::Entries, 0, 0, true);
    let bytes = std::fs::read(good.join(&name)).unwrap();
    let judge = |what: &str, bytes: &[u8]| {
        std::fs::write(good.join(&name), bytes).unwrap();
        let report = verify_path(&good, Some(id));
        assert_eq!(report.exit(), 1, "{what}: {}", report.to_text());
        report.codes()
    };
    for cut in [0, 1, 19, 20, 100, bytes.len() / 2, bytes.len() - 9, bytes.len() - 1] {
        let found = judge("cut", &bytes[..cut]);
        assert!(found.iter().any(|c| c == "export_digest_mismatch"), "cut at {cut}: {found:?}");
    }
    for at in (0..bytes.len()).step_by(97) {
        let mut other = bytes.clone();
        other[at] ^= 0x10;
        std::fs::write(good.join(&name), &other).unwrap();
        let report = verify_path(&good, Some(id));
        // A changed time stamp or system byte of a gzip header changes nothing that is said.
        assert!(report.exit() == 1 || (4..10).contains(&at), "byte {at}: {}", report.to_text());
    }
    // Four gigabytes of line feeds, and a line of as much.
    for fill in [b'\n', b'x'] {
        let mut zip = GzEncoder::new(Vec::new(), Compression::fast());
        let block = vec![fill; 1 << 20];
        for _ in 0..64 {
            zip.write_all(&block).unwrap();
        }
        let member = zip.finish().unwrap();
        let bomb: Vec<u8> = member.iter().copied().cycle().take(member.len() * 64).collect();
        assert!(judge("bomb", &bomb).iter().any(|c| c == "export_digest_mismatch"));
    }
    // A member that lies about its length.
    let mut liar = bytes.clone();
    let end = liar.len();
    liar[end - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
    judge("length", &liar);
}

/// A kept checkpoint tells of a tail that was cut off, even where the manifest was made to fit.
#[tokio::test(flavor = "multi_thread")]
async fn an_anchor_sees_a_cut_that_the_manifest_hides() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let id = sample(&ledger, 1).await;
    let whole = dir.path().join("whole");
    export(&ledger, OPTIONS(), &whole).await;
    let note = verify_path(&whole, Some(id)).anchor().unwrap();
    let anchors = Anchor::parse("kept", &note).unwrap();
    let demands = Demands { trust: Some(id), anchors: &anchors, require_anchor: true, ..Demands::default() };
    assert_eq!(verify_path_with(&whole, demands).verdict(), Verdict::Verified);
    // A forger makes a shorter export: the engine's own, of a ledger that ends earlier.
    let mut cut = Export::read(&whole);
    let last = cut.entries(0).iter().rposition(|l| l.starts_with("{\"commit\"")).unwrap();
    cut.entries(0).truncate(last);
    let end = cut.entries(0).iter().filter(|l| l.starts_with("{\"body\"")).count() as u64;
    cut.seal();
    cut.manifest.files.iter_mut().for_each(|f| f.to = end);
    cut.manifest.chains[0].to = end;
    cut.manifest.chains[0].commits -= 1;
    cut.manifest.chains[0].checkpoints -= 1;
    let shorter = dir.path().join("shorter");
    cut.write(&shorter);
    let found = verify_path(&shorter, Some(id));
    assert_eq!(found.codes(), ["export_manifest_mismatch"], "{}", found.to_text());
    let (head, root) = (found.chains()[0].head.unwrap(), found.chains()[0].root.unwrap());
    (cut.manifest.chains[0].last_hash, cut.manifest.chains[0].root) = (head, root);
    cut.write(&shorter);
    assert_eq!(verify_path(&shorter, Some(id)).verdict(), Verdict::Verified, "nothing says what came after");
    assert_eq!(verify_path_with(&shorter, demands).codes(), ["anchor_beyond_tail"]);
    // So does the manifest of the whole one, of the export and of the ledger.
    let anchors = Anchor::read(&whole).unwrap();
    let demands = Demands { anchors: &anchors, ..demands };
    assert_eq!(verify_path_with(&ledger, demands).verdict(), Verdict::Verified);
    assert_eq!(verify_path_with(&shorter, demands).codes(), ["anchor_beyond_tail"]);
    // And that of another ledger says nothing.
    let other = dir.path().join("other");
    sample(&dir.path().join("other ledger"), 3).await;
    export(&dir.path().join("other ledger"), OPTIONS(), &other).await;
    let anchors = Anchor::read(&other.join(MANIFEST_NAME)).unwrap();
    let report = verify_path_with(&whole, Demands { anchors: &anchors, require_anchor: false, ..demands });
    assert_eq!(report.verdict(), Verdict::NotAllChecked, "{}", report.to_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verdict_does_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let id = sample(&ledger, 3).await;
    let to = dir.path().join("export");
    export(&ledger, OPTIONS(), &to).await;
    let mut changed = Export::read(&to);
    edit(&mut changed, 1, "\"amount\":1250", "\"amount\":1");
    changed.write(&to);
    let judge = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| verify_path(&to, Some(id)).to_text())
    };
    let one = judge(1);
    assert!(one.contains("body_hash_mismatch"), "{one}");
    assert_eq!(one, judge(4));
}

/// A file of lines that are no lines is not listed without end, and what is not listed is counted.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_listed_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let id = sample(&ledger, 1).await;
    let to = dir.path().join("export");
    export(&ledger, OPTIONS(), &to).await;
    let mut changed = Export::read(&to);
    changed.entries(0).extend((0..1500).map(|n| format!("no line {n}")));
    changed.seal();
    changed.write(&to);
    let report = verify_path(&to, Some(id));
    let found = report.findings();
    let found: Vec<_> = found.iter().filter(|f| f.code.as_str() == "export_line_undecodable").collect();
    assert_eq!(found.len(), 1001, "{}", report.to_text());
    assert_eq!(found.iter().filter(|f| f.evidence.starts_with("500 more")).count(), 1);
    assert!(report.to_text().contains(" findings:"));
}
