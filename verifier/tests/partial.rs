//! Batches of an archive judged by processes of their own, side by side, and joined by another one.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn audit_verify(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_audit-verify"));
    command.args(args);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// An archive of the fixtures, and its ledger's id.
fn archive(name: &str) -> (String, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name);
    let expect = std::fs::read(path.with_extension("expect.json")).unwrap();
    let expect: serde_json::Value = serde_json::from_slice(&expect).unwrap();
    (path.to_string_lossy().into_owned(), expect["trust"].as_str().unwrap().to_owned())
}

/// One process a batch, all at once. Gives their exits and their summaries.
fn judged(source: &str, trust: &str, dir: &Path) -> (Vec<i32>, Vec<PathBuf>) {
    let dir_text = dir.to_str().unwrap();
    let begun = ["1", "2", "3"].map(|n| {
        audit_verify(&[source, "--trust", trust, "--batches", n, "--partial", dir_text, "-q"]).spawn().unwrap()
    });
    let exits = begun.map(|mut child| child.wait().unwrap().code().unwrap()).to_vec();
    let mut summaries: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    summaries.sort();
    (exits, summaries)
}

fn combined(summaries: &[PathBuf], more: &[&str]) -> Output {
    let names: Vec<&str> = summaries.iter().map(|p| p.to_str().unwrap()).collect();
    audit_verify(&[&["combine"], &names[..], more].concat()).output().unwrap()
}

#[test]
fn three_processes_and_one_that_joins_them() {
    let (source, trust) = archive("valid/archives/whole");
    let dir = tempfile::tempdir().unwrap();
    let (exits, summaries) = judged(&source, &trust, dir.path());
    assert_eq!((exits, summaries.len()), (vec![0; 3], 3));
    let output = combined(&summaries, &["--trust", &trust]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).starts_with("VERIFIED  the summaries"), "{}", text(&output));
    assert!(text(&output).contains("not covered: entries, bodies and the signatures of commits"), "{}", text(&output));
    // The same is said as of the whole archive.
    let json = |output: &Output| -> serde_json::Value {
        let mut value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        // What it was read from, and that this run has not seen the entries.
        for name in ["source", "kind", "part"] {
            value.as_object_mut().unwrap().remove(name);
        }
        value
    };
    let joined = combined(&summaries, &["--trust", &trust, "--json"]);
    let whole = audit_verify(&[&source, "--trust", &trust, "--json"]).output().unwrap();
    assert_eq!(json(&joined), json(&whole));
    // The checkpoints that are saved of it are those of the whole.
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    combined(&summaries, &["--trust", &trust, "--save-anchor", one.to_str().unwrap()]);
    audit_verify(&[&source, "--trust", &trust, "--save-anchor", other.to_str().unwrap()]).output().unwrap();
    assert_eq!(std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
    // A registry of signers is compared where all is there to be compared with.
    let signers = dir.path().join("signers.json");
    std::fs::write(
        &signers,
        r#"{"signers":[{"id":"nobody","publicKey":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}]}"#,
    )
    .unwrap();
    let signers = signers.to_str().unwrap();
    let output = combined(&summaries, &["--trust", &trust, "-s", signers]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("registry_external_mismatch signers/nobody"), "{}", text(&output));
    let output = combined(&summaries[..2], &["--trust", &trust, "-s", signers]);
    assert!(text(&output).contains("could not check: the registry of signers"), "{}", text(&output));
    let output = audit_verify(&[&source, "--trust", &trust, "-s", signers, "--batches", "1"]).output().unwrap();
    assert!(output.status.code() == Some(2) && text(&output).contains("--signers is compared"), "{}", text(&output));
    // Without all of them it is not the whole.
    let output = combined(&summaries[..2], &["--trust", &trust]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("export_batch_missing batches/3"), "{}", text(&output));
    assert!(text(&output).contains("2 batches with"), "{}", text(&output));
    // Those of an archive that had two then: the last one is missed by whoever kept something.
    let (earlier, missed) = (dir.path().join("earlier"), manifest(&source, 3));
    assert!(Command::new("cp").arg("-r").arg(&source).arg(&earlier).status().unwrap().success());
    std::fs::remove_dir_all(earlier.join(&missed).parent().unwrap()).unwrap();
    let then = dir.path().join("then");
    std::fs::create_dir(&then).unwrap();
    let shown = earlier.to_str().unwrap();
    let output = audit_verify(&[shown, "--trust", &trust, "--partial", then.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let two: Vec<PathBuf> = std::fs::read_dir(&then).unwrap().map(|f| f.unwrap().path()).collect();
    assert_eq!(combined(&two, &["--trust", &trust]).status.code(), Some(0));
    let output = combined(&two, &["--trust", &trust, "--anchor", &format!("{source}/{missed}")]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("anchor_beyond_tail"), "{}", text(&output));
    let output = combined(&summaries[1..], &["--trust", &trust]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("export_batch_missing"), "{}", text(&output));
}

/// The path of a batch's manifest within its archive.
fn manifest(source: &str, number: u64) -> String {
    let top = Path::new(source).join("marketplace");
    for day in std::fs::read_dir(top).unwrap() {
        for batch in std::fs::read_dir(day.unwrap().path()).unwrap() {
            let path = batch.unwrap().path();
            if path.to_string_lossy().contains(&format!("-{number:08}-")) {
                return path.join("manifest.json").strip_prefix(source).unwrap().to_string_lossy().into_owned();
            }
        }
    }
    panic!("no batch {number}")
}

/// The root at which the second batch says that it begins, or the hash where the first one says that it ends, was changed and signed: each
/// is found by whoever reads the batch, or by whoever joins them.
#[test]
fn a_tampered_seam_is_found() {
    for name in ["seam_shifted", "last_hash_of_a_seam", "middle_changed", "consistency_wrong"] {
        let (source, trust) = archive(&format!("broken/archives/{name}"));
        let dir = tempfile::tempdir().unwrap();
        let (_, summaries) = judged(&source, &trust, dir.path());
        let output = combined(&summaries, &["--trust", &trust]);
        assert_eq!(output.status.code(), Some(1), "{name}: {}", text(&output));
        assert!(text(&output).contains("export_manifest_mismatch"), "{name}: {}", text(&output));
    }
}

#[test]
fn what_cannot_be_asked_is_said() {
    let (source, trust) = archive("valid/archives/whole");
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/valid/exports");
    let copy = std::fs::read_dir(copy).unwrap().map(|f| f.unwrap().path()).find(|p| p.is_dir()).unwrap();
    for (args, exit, says) in [
        (vec![source.as_str(), "--batches", "9"], 2, "there is no batch 9 here; the last one is 3"),
        (vec![&source, "--batches", "0-2"], 2, "counted from 1"),
        (vec![&source, "--batches", "3-2"], 2, "counted from 1"),
        (vec![copy.to_str().unwrap(), "--batches", "1"], 2, "no archive of batches"),
        (vec!["combine", source.as_str()], 2, "no summary of a batch"),
        (vec!["combine", "nowhere"], 2, "check the path"),
        (vec!["combine", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], 2, "no summary of a batch"),
        (vec![&source, "--batches", "2-3", "--trust", &trust], 0, "batches before number 2"),
    ] {
        let output = audit_verify(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{args:?}: {}", text(&output));
    }
}

/// Batches that were asked for by number are there, or the verdict says so; and it is of no others.
#[test]
fn batches_that_are_not_there_are_no_part_of_a_verdict() {
    let (source, trust) = archive("valid/archives/whole");
    let dir = tempfile::tempdir().unwrap();
    let without = |number: u64| {
        let to = dir.path().join(number.to_string());
        assert!(Command::new("cp").args(["-r", &source]).arg(&to).status().unwrap().success());
        let path = to.join(manifest(&source, number));
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        to.to_str().unwrap().to_owned()
    };
    let (first, second, third) = (without(1), without(2), without(3));
    for (source, batches, exit, says) in [
        (&source, "1-3", 0, "VERIFIED"),
        (&source, "1-", 0, "VERIFIED"),
        (&source, "1-2", 0, "batch 3, which the archive has too"),
        (&source, "2", 0, "batches before number 2"),
        (&source, "1-9", 2, "batches 4 to 9: not there, the last one here is number 3"),
        (&first, "1-2", 1, "export_batch_missing"),
        (&second, "1-2", 1, "export_batch_missing batches/2"),
        (&second, "2-3", 1, "export_batch_missing"),
        (&third, "1-3", 2, "batch 3: not there, the last one here is number 2"),
        (&third, "2-3", 2, "batch 3: not there, the last one here is number 2"),
    ] {
        let output = audit_verify(&[source, "--batches", batches, "--trust", &trust]).output().unwrap();
        assert_eq!(output.status.code(), Some(exit), "{source} {batches}: {}", text(&output));
        assert!(text(&output).contains(says), "{source} {batches}: {}", text(&output));
    }
}

/// An anchor that cannot be read is named beside the verdict on what could be, also in a directory of them; nothing is passed over.
#[cfg(unix)]
#[test]
fn an_anchor_that_cannot_be_read_is_named_beside_the_verdict() {
    let (source, trust) = archive("valid/archives/whole");
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let saved = kept.join("october");
    let said = audit_verify(&[&source, "--trust", &trust, "--save-anchor", saved.to_str().unwrap()]).output().unwrap();
    assert!(said.status.success(), "{}", text(&said));
    let judge = |source: &str| {
        let output = audit_verify(&[source, "--trust", &trust, "--anchor", kept.to_str().unwrap()]).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    assert_eq!(judge(&source).0, 0);
    for make in ["ln -s /nowhere/november", "mkfifo", "mkdir", "echo x >"] {
        let script = format!("rm -rf kept/november; {make} kept/november");
        assert!(Command::new("sh").args(["-ec", &script]).current_dir(dir.path()).status().unwrap().success());
        let (exit, said) = judge(&source);
        assert!(exit == 2 && said.starts_with("CONSISTENT, NOT ALL CHECKED"), "{make}: {said}");
        assert!(said.contains("could not check: ") && said.contains("kept/november"), "{make}: {said}");
        assert!(said.contains("the anchor has the first"), "{make}: {said}");
    }
    let (broken, _) = archive("broken/archives/middle_changed");
    let (exit, said) = judge(&broken);
    assert!(exit == 1 && said.contains("could not check: "), "{said}");
}

/// What is no file where one should be is named; nobody waits for what never comes.
#[cfg(unix)]
#[test]
fn pipes_in_an_archive_are_not_waited_for() {
    let (source, trust) = archive("valid/archives/whole");
    let no_file = "a pipe, a device";
    // A manifest that cannot be read is none, and its batch is not there.
    for (name, said) in [("manifest", "export_batch_missing"), ("entries-", no_file), ("private-", no_file)] {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("archive");
        let script = r#"cp -r "$0" "$1"; f=$(find "$1" -name "$2*" | sort | head -1); [ -n "$f" ] || exit 9; rm "$f"; mkfifo "$f""#;
        let made = Command::new("sh").args(["-ec", script, &source]).arg(&copy).arg(name).status().unwrap();
        assert!(made.success(), "{made}");
        let output = audit_verify(&[copy.to_str().unwrap(), "--trust", &trust]).output().unwrap();
        assert_ne!(output.status.code(), Some(0), "{}", text(&output));
        assert!(text(&output).contains(said), "{name}: {}", text(&output));
    }
}
