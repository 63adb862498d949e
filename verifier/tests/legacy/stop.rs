//! Ctrl-C in the middle of a run, by a real process and a real signal.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::chain::{hash, lines, registry, seal};

/// More than the verifier reads ahead: once a pipe took all of it, the first rows were judged.
const BYTES: usize = 64 << 20;
/// A second signal ends the process at once; this is for the first to work.
const PATIENCE: Duration = Duration::from_secs(20);

struct Run {
    directory: tempfile::TempDir,
    child: Child,
}

impl Run {
    fn start(source: &str) -> Run {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(path("signers.json"), registry().to_string()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_audit-verify"))
            .args([source, "-s", &path("signers.json"), "--save-anchor", &path("head.json"), "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Run { directory, child }
    }

    /// Exit status and report after Ctrl-C.
    fn interrupt(mut self) -> (i32, Value) {
        // Kept open: a reader that waits for more must end too.
        let input = self.child.stdin.take();
        let sent = Instant::now();
        assert!(Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap().success());
        while self.child.try_wait().unwrap().is_none() {
            assert!(sent.elapsed() < PATIENCE, "it went on after Ctrl-C");
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(input);
        assert!(!self.directory.path().join("head.json").exists(), "a stopped run saves no anchor");
        let output = self.child.wait_with_output().unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code().unwrap(), report)
    }
}

/// Few rows with much in them.
fn large_rows() -> Vec<Value> {
    let text = "x".repeat(1 << 20);
    let mut rows: Vec<Value> = Vec::new();
    for n in 0..BYTES >> 20 {
        let mut row = json!({ "id": n + 1, "payload": text });
        let prev = rows.last().map(|r| hash(r).to_owned());
        seal(&mut row, prev.as_deref());
        rows.push(row);
    }
    rows
}

#[test]
fn standard_input_that_does_not_end() {
    let mut rows = large_rows();
    for (code, exit) in [(None, 2), (Some("legacy_hash_mismatch"), 1)] {
        if code.is_some() {
            rows[1]["hash"] = json!("0".repeat(64));
        }
        let mut run = Run::start("-");
        run.child.stdin.as_mut().unwrap().write_all(lines(&rows).as_bytes()).unwrap();
        let (status, report) = run.interrupt();
        assert_eq!(status, exit, "{report:#}");
        let covered = report["rows"].as_u64().unwrap();
        assert!((1..=rows.len() as u64).contains(&covered), "{covered}");
        let reason = format!("stopped when asked to ({covered} rows were read)");
        assert_eq!(report["reason"], reason.as_str());
        assert!(report["notes"].to_string().contains(&format!("everything after row {covered}")));
        assert_eq!(report["findings"][0]["code"].as_str(), code);
    }
}

#[test]
fn nothing_was_given_yet() {
    let run = Run::start("-");
    wait_until_handled(run.child.id());
    assert_eq!(run.interrupt().0, 2);
}

/// A line of 256 GB in a file with a hole, which takes minutes to pass over.
#[test]
fn a_file_in_the_middle_of_a_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut out = file.reopen().unwrap();
    out.write_all(lines(&large_rows()[..2]).as_bytes()).unwrap();
    out.set_len(256 << 30).unwrap();
    let run = Run::start(&file.path().display().to_string());
    wait_until_read(run.child.id(), 32 << 20);
    let (status, report) = run.interrupt();
    // The two rows, and the line that is too large already.
    assert_eq!((status, report["rows"].as_u64()), (1, Some(3)), "{report:#}");
    assert!(report["reason"].as_str().unwrap().starts_with("stopped when asked to"));
}

/// Waits for a process to have a handler for SIGINT.
fn wait_until_handled(process: u32) {
    let path = format!("/proc/{process}/status");
    let caught = || {
        let text = std::fs::read_to_string(Path::new(&path)).unwrap();
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap()
    };
    let started = Instant::now();
    while caught() & 1 << 1 == 0 {
        assert!(started.elapsed() < PATIENCE, "it handles no signal");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a process to have read so many bytes.
fn wait_until_read(process: u32, bytes: u64) {
    let path = format!("/proc/{process}/io");
    let read = || {
        let text = std::fs::read_to_string(Path::new(&path)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    let started = Instant::now();
    while read() < bytes {
        assert!(started.elapsed() < PATIENCE, "it does not read");
        std::thread::sleep(Duration::from_millis(5));
    }
}
