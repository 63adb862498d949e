//! An auditor who may not write beside the ledger: media that are read-only, and a directory where somebody else writes meanwhile.
#![allow(missing_docs)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use ledger_engine::store::sqlite::DATABASE_FILE;
use support::{create, create_order, list_sku};

/// Names the ledger that the child judges.
const JUDGED: &str = "LEDGER_JUDGED";

/// Judges a directory as a user who may not write it. Modes do not bind root, so root becomes another user.
fn judge(program: &Path, dir: &Path) -> String {
    let mode = |mode| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    let mut command = Command::new("sh");
    let script = r#"[ "$(id -u)" != 0 ] || as="setpriv --reuid=65534 --regid=65534 --clear-groups"; exec $as "$0" --exact an_auditor_may_read --nocapture"#;
    let output = command.args(["-c", script]).arg(program).env(JUDGED, dir).output().unwrap();
    mode(0o755);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_may_read() {
    if let Some(dir) = std::env::var_os(JUDGED) {
        println!("{}", audit_verify::verify_path(Path::new(&dir), None).to_text());
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = scratch.path().join("judge");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let live = scratch.path().join("live");
    std::fs::create_dir(&live).unwrap();
    let ledger = create(&live, 1).await;
    list_sku(&ledger, "s").await;
    create_order(&ledger, "a", "s").await;
    let copy = |name: &str, suffixes: &[&str]| {
        let to = scratch.path().join(name);
        std::fs::create_dir(&to).unwrap();
        for suffix in suffixes {
            let file = format!("{DATABASE_FILE}{suffix}");
            std::fs::copy(live.join(&file), to.join(&file)).unwrap();
        }
        to
    };
    let whole = "3 entries in 3 streams";
    let check = |dir: &Path, expected: &str| {
        let said = judge(&program, dir);
        assert!(said.contains(expected), "{}: {said}", dir.display());
    };
    // Somebody writes: its shared memory is there to be read.
    check(&live, whole);
    check(&copy("killed", &["", "-wal", "-shm"]), whole);
    // The last commits are in a WAL that cannot be read here. They must not be passed over.
    check(&copy("torn-off", &["", "-wal"]), "copy the database and its -wal to a directory that you may write");
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let ended = copy("ended", &[""]);
    check(&ended, whole);
    std::fs::write(ended.join(format!("{DATABASE_FILE}-wal")), b"").unwrap();
    check(&ended, whole);
}
