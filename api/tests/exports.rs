//! The nightly job as it is run: `ledger export`, `ledger exports`, `audit-verify` on what is in the bucket, and what is done to it.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};
use serde_json::Value;
use test_servers::S3;

const LEDGER: &str = env!("CARGO_BIN_EXE_ledger");

struct Shop {
    dir: tempfile::TempDir,
    id: String,
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl Shop {
    fn open() -> Shop {
        Shop::with("init")
    }

    fn with(init: &str) -> Shop {
        let dir = tempfile::tempdir().unwrap();
        let mut shop = Shop { dir, id: String::new() };
        shop.id = shop.json(init, &[])["ledger_id"].as_str().unwrap().to_owned();
        shop.sell("first");
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &Path, line: &str, environment: &[(&str, String)]) -> Command {
        let mut command = Command::new(program);
        command.args(line.split(' ')).current_dir(self.dir.path()).env_remove("S3_AUDIT_BUCKET");
        command.envs(S3::environment_at(&S3::shared().url()));
        command.envs(environment.iter().map(|(n, v)| (n, v)));
        command
    }

    fn run(&self, line: &str, environment: &[(&str, String)]) -> (i32, String) {
        let line = format!("--dir shop {line}");
        let output = self.command(Path::new(LEDGER), &line, environment).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    }

    /// The same with another ledger's directory.
    fn run_in(&self, dir: &str, line: &str) -> (i32, String) {
        let output = self.command(Path::new(LEDGER), format!("--dir {dir} {line}").trim_end(), &[]).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    }

    fn json(&self, line: &str, environment: &[(&str, String)]) -> Value {
        let (exit, said) = self.run(&format!("--json {line}"), environment);
        assert_eq!(exit, 0, "{line}: {said}");
        serde_json::from_str(said.lines().next().unwrap()).unwrap()
    }

    fn verify(&self, source: &str, rest: &str) -> (i32, String) {
        // The real verifier, which lies beside the program.
        let program = Path::new(LEDGER).with_file_name("audit-verify");
        assert!(program.exists(), "build it: cargo build -p audit-verify");
        let line = format!("{source} --trust {}{rest}", self.id);
        let output = self.command(&program, &line, &[]).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    }

    /// What `audit-verify combine` says of the summaries in a directory.
    fn joined(&self, dir: &str) -> (i32, String) {
        let summaries = std::fs::read_dir(self.path(dir)).unwrap().map(|f| f.unwrap().path().display().to_string());
        let summaries: Vec<String> = summaries.collect();
        self.verify(&format!("combine {}", summaries.join(" ")), "")
    }

    /// The manifest of a batch of `archive`, below its top.
    fn batch_path(&self, sequence: u64) -> String {
        let top = self.path("archive/marketplace");
        let days = std::fs::read_dir(&top).unwrap().map(|day| day.unwrap().path());
        let mut batches = days.flat_map(|day| std::fs::read_dir(day).unwrap().map(|b| b.unwrap().path()));
        let batch = batches.find(|b| b.to_string_lossy().contains(&format!("-{sequence:08}-"))).unwrap();
        batch.join("manifest.json").strip_prefix(&top).unwrap().to_string_lossy().into_owned()
    }

    fn sell(&self, sku: &str) {
        let line = format!(
            r#"{{"command":"sku.list","actor":"service:catalog","sku_id":"{sku}","title":"Font","price":{{"amount":1250,"currency":"EUR","scale":2}}}}"#
        );
        let order = format!(
            r#"{{"command":"order.create","actor":"a@example.org","idempotency_key":"{sku}","sku_id":"{sku}","delivery_mode":"marketplace-managed"}}"#
        );
        std::fs::write(self.path("commands"), format!("{line}\n{order}\n")).unwrap();
        let (exit, said) = self.run("submit commands", &[]);
        assert_eq!(exit, 0, "{said}");
    }
}

/// Exit status of a command, what it said, and how many MiB it had at most.
fn peak(command: &Command) -> (i32, String, u64) {
    let script = "import resource, subprocess, sys\n\
                  code = subprocess.run(sys.argv[1:]).returncode\n\
                  print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10, 'exit', code)";
    let python = std::env::var("LEDGER_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut measured = Command::new(python);
    measured.args(["-c", script]).arg(command.get_program()).args(command.get_args());
    measured.current_dir(command.get_current_dir().unwrap());
    let said = text(&measured.output().unwrap());
    let (before, last) = said.rsplit_once("peak ").unwrap();
    let (mib, code) = last.split_once('\n').unwrap().0.split_once(" exit ").unwrap();
    (code.parse().unwrap(), before.to_owned(), mib.parse().unwrap())
}

/// Documents and entries of the largest size pass through an export and a restore in memory that does not grow with them.
#[test]
fn large_entries_need_no_more_memory() {
    let shop = Shop::open();
    let orders: Vec<String> = (0..6000)
        .map(|n| {
            let note = format!("{n:06}").repeat(10_000);
            format!(
                r#"{{"command":"order.create","actor":"a@example.org","idempotency_key":"k{n}","sku_id":"first","delivery_mode":"marketplace-managed","private":{{"note":"{note}"}}}}"#
            )
        })
        .collect();
    std::fs::write(shop.path("commands"), orders.join("\n") + "\n").unwrap();
    let (exit, said) = shop.run("submit commands", &[]);
    assert_eq!(exit, 0, "{said}");
    let run = |line: &str| {
        let (exit, said, mib) = peak(&shop.command(Path::new(LEDGER), line, &[]));
        assert_eq!(exit, 0, "{line}: {said}");
        assert!(mib < 256, "{line}: {mib} MiB");
        mib
    };
    let export = run("--dir shop export --out archive --pii include");
    let restore =
        run(&format!("--dir new restore --from archive --trust {} --newest-checkpoint none --drill", shop.id));
    println!("export {export} MiB, restore {restore} MiB");
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn a_directory_night_after_night() {
    let shop = Shop::open();
    let (exit, said) = shop.run("exports", &[]);
    assert!(exit == 0 && said.contains("nothing was exported"), "{said}");
    let (exit, said) = shop.run("export", &[]);
    assert!(exit == 2 && said.contains("S3_AUDIT_BUCKET"), "{said}");
    let (exit, said) = shop.run("export --out archive --dry-run", &[]);
    assert!(exit == 0 && said.contains("batch 1") && said.contains("nothing was written"), "{said}");
    assert!(!shop.path("archive").exists());
    // What a run would refuse, a dry one refuses.
    for (line, said) in [("--to 2001-01-01", "a later --to"), ("--from 2999-01-01", "later than now")] {
        let (exit, found) = shop.run(&format!("export --out archive --dry-run {line}"), &[]);
        assert!(exit == 2 && found.contains(said), "{line}: {found}");
    }
    let first = shop.json("export --out archive --env prod --metrics export.prom", &[]);
    assert_eq!((first["sequence"].as_u64(), first["resumed"].as_bool()), (Some(1), Some(false)));
    shop.sell("second");
    let (exit, said) = shop.run("export --out archive --since-last --pii withhold --metrics export.prom", &[]);
    assert!(exit == 0 && said.contains("as batch 2") && said.contains("audit-verify"), "{said}");
    let (exit, said) = shop.verify("archive", "");
    assert!(exit == 0 && said.contains("2 batches"), "{said}");
    let (exit, said) = shop.run("exports --check", &[]);
    assert!(exit == 0 && said.matches("all objects are as they were exported").count() == 2, "{said}");
    // It was moved: the record knows it by its name.
    std::fs::rename(shop.path("archive"), shop.path("moved")).unwrap();
    let (exit, said) = shop.run("exports --check", &[]);
    assert!(exit == 1 && said.contains("MISSING"), "{said}");
    let location = first["location"].as_str().unwrap();
    let third = shop.json(&format!("export --out moved --location {location}"), &[]);
    assert_eq!(third["sequence"].as_u64(), Some(3));
    assert_eq!(shop.verify("moved", "").0, 0);
    // A file is where a directory should be.
    std::fs::write(shop.path("file"), "x").unwrap();
    let (exit, said) = shop.run("export --out file --metrics export.prom", &[]);
    assert!(exit == 2 && said.contains("file"), "{said}");
    let metrics = std::fs::read_to_string(shop.path("export.prom")).unwrap();
    let counts = ["marketplace_audit_export_success_total 2\n", "marketplace_audit_export_failure_total 1\n"];
    assert!(counts.iter().all(|count| metrics.contains(count)), "{metrics}");
    // A batch alone is no history, and says where to look.
    let batch = shop.path("moved").join(third["directory"].as_str().unwrap());
    let (exit, said) = shop.verify(batch.to_str().unwrap(), "");
    assert!(exit == 2 && said.contains("name the archive"), "{said}");
    let (exit, said) = shop.verify("moved", " --locks");
    assert!(exit == 2 && said.contains("has no locks"), "{said}");
    let (exit, said) = shop.run("export --copy --out s3://bucket", &[]);
    assert!(exit == 2 && said.contains("--copy makes a directory"), "{said}");
}

#[test]
fn a_bucket_night_after_night_and_what_is_done_to_it() {
    let shop = Shop::open();
    let (s3, bucket) = (S3::shared().client(), block(S3::shared().make_bucket(true)));
    let environment = [("S3_AUDIT_BUCKET", bucket.clone()), ("LEDGER_ENV", "prod".to_owned())];
    let source = format!("s3://{bucket}");
    let first = shop.json("export --retain-days 30 --private-retain-days 10", &environment);
    shop.sell("second");
    let (exit, said) = shop.run("export --retain-days 30 --private-retain-days 10 --legal-hold", &environment);
    let says = ["as batch 2", "COMPLIANCE until", "legal hold", "private documents until"];
    assert!(exit == 0 && says.iter().all(|s| said.contains(s)), "{said}");
    let (exit, said) = shop.run("exports", &[]);
    assert!(exit == 0 && said.matches("COMPLIANCE until").count() == 2 && said.contains("legal hold"), "{said}");
    let (exit, said) = shop.run("exports --check", &[]);
    assert!(exit == 0 && said.matches("all objects are as they were exported").count() == 2, "{said}");
    let (exit, said) = shop.verify(&source, " --locks");
    assert!(exit == 0 && said.contains("2 batches") && said.contains("VERIFIED"), "{said}");
    // Each job fetches what it judges; what they found is joined.
    for number in [2, 1] {
        let (exit, said) = shop.verify(&source, &format!(" --locks --batches {number} --partial parts"));
        assert_eq!(exit, 0, "{said}");
    }
    let joined = shop.joined("parts");
    assert!(joined.0 == 0 && joined.1.starts_with("VERIFIED"), "{}", joined.1);
    let metadata = block(async {
        let key = format!("{}/manifest.json", first["directory"].as_str().unwrap());
        let head = s3.head_object().bucket(&bucket).key(key).send().await.unwrap();
        // Underscores become hyphens on some servers.
        let metadata = head.metadata().cloned().unwrap_or_default().into_iter();
        metadata.map(|(name, value)| (name.replace('-', "_"), value)).collect::<std::collections::BTreeMap<_, _>>()
    });
    for (name, value) in
        [("service", "marketplace"), ("env", "prod"), ("pii_included", "true"), ("pii_policy_version", "1")]
    {
        assert_eq!(metadata.get(name).map(String::as_str), Some(value), "{metadata:?}");
    }
    assert!(metadata.contains_key("version") && metadata.contains_key("export_ts"));

    // Who got no answer puts the same bytes once more: nothing else lies there.
    block(async {
        let list = s3.list_objects_v2().bucket(&bucket).send().await.unwrap();
        for key in list.contents().iter().filter_map(|object| object.key()) {
            let bytes = s3.get_object().bucket(&bucket).key(key).send().await.unwrap().body.collect().await.unwrap();
            s3.put_object().bucket(&bucket).key(key).body(ByteStream::from(bytes.into_bytes())).send().await.unwrap();
        }
    });
    let (exit, said) = shop.verify(&source, "");
    assert!(exit == 0 && said.contains("VERIFIED"), "{said}");

    // Somebody puts a forged manifest over the first, deletes the second's, and adds a file.
    block(async {
        let key = format!("{}/manifest.json", first["directory"].as_str().unwrap());
        s3.put_object().bucket(&bucket).key(&key).body(ByteStream::from_static(b"{}")).send().await.unwrap();
        let stranger = key.replace("manifest.json", "more.jsonl.gz");
        s3.put_object().bucket(&bucket).key(stranger).body(ByteStream::from_static(b"x")).send().await.unwrap();
        let list = s3.list_object_versions().bucket(&bucket).send().await.unwrap();
        let second =
            list.versions().iter().filter_map(|v| v.key()).find(|k| k.contains("-00000002-") && k.ends_with("json"));
        s3.delete_object().bucket(&bucket).key(second.unwrap()).send().await.unwrap();
    });
    let (exit, said) = shop.verify(&source, " --json");
    assert_eq!(exit, 1, "{said}");
    let report: Value = serde_json::from_str(&said).unwrap();
    let mut codes: Vec<&str> =
        report["findings"].as_array().unwrap().iter().map(|f| f["code"].as_str().unwrap()).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["export_file_unexpected", "export_object_hidden", "export_object_shadowed"], "{said}");
    let (exit, said) = shop.run("exports --check", &[]);
    assert!(exit == 1 && said.contains("SHADOWED") && said.contains("HIDDEN"), "{said}");
    let (exit, said) = shop.verify(&format!("s3://{bucket}/nothing"), "");
    assert!(exit == 2 && said.contains("COULD NOT CHECK"), "{said}");
}

/// What is done to an archive in a bucket by whoever may put, delete and bypass governance there: a file each, with what must be found.
#[test]
fn what_is_done_to_a_bucket() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/broken/bucket");
    let shop = Shop::open();
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    cases.sort();
    for path in &cases {
        let case: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (s3, bucket) = (S3::shared().client(), block(S3::shared().make_bucket(true)));
        let source = format!("s3://{bucket}");
        for goods in ["first", "second"] {
            let name = format!("{goods}-{}", path.file_stem().unwrap().to_str().unwrap());
            shop.sell(&name);
            shop.json(&format!("export --out {source} --lock-mode GOVERNANCE --retain-days 30"), &[]);
        }
        assert_eq!(shop.verify(&source, " --locks").0, 0);
        for step in case["do"].as_array().unwrap() {
            let of = |name: &str| step[name].as_str().unwrap();
            block(async {
                let list = s3.list_objects_v2().bucket(&bucket).send().await.unwrap();
                let keys = list.contents().iter().filter_map(|object| object.key());
                for key in keys.filter(|key| key.contains(of("batch")) && key.contains(of("file"))) {
                    match of("action") {
                        "put" => {
                            let request = s3.put_object().bucket(&bucket).key(key);
                            request.body(ByteStream::from_static(b"{}")).send().await.unwrap();
                        }
                        "delete" => drop(s3.delete_object().bucket(&bucket).key(key).send().await.unwrap()),
                        "shorten" => {
                            let soon = DateTime::from(std::time::SystemTime::now() + Duration::from_secs(86_400));
                            let mode = ObjectLockRetentionMode::Governance;
                            let shorter = ObjectLockRetention::builder().mode(mode).retain_until_date(soon).build();
                            let request = s3.put_object_retention().bucket(&bucket).key(key);
                            let request = request.bypass_governance_retention(true).retention(shorter);
                            request.send().await.unwrap();
                        }
                        other => panic!("{other}"),
                    }
                }
            });
        }
        let locks = if case["locks"] == true { " --locks" } else { "" };
        let (exit, said) = shop.verify(&source, &format!("{locks} --json"));
        let report: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        let mut codes: Vec<&Value> = report["findings"].as_array().unwrap().iter().map(|f| &f["code"]).collect();
        codes.sort_by_key(|code| code.as_str());
        let expected: Vec<&Value> = case["findings"].as_array().unwrap().iter().collect();
        assert_eq!((i64::from(exit), codes), (case["exit"].as_i64().unwrap(), expected), "{}: {said}", path.display());
    }
    assert_eq!(cases.len(), 7);
}

#[test]
fn a_lock_that_was_taken_away_is_found() {
    let shop = Shop::open();
    let (s3, bucket) = (S3::shared().client(), block(S3::shared().make_bucket(true)));
    let source = format!("s3://{bucket}/ledger");
    let done = shop.json(&format!("export --out {source} --lock-mode GOVERNANCE --retain-days 30"), &[]);
    assert_eq!(shop.verify(&source, " --locks").0, 0);
    let (exit, said) = shop.run("exports", &[]);
    assert!(exit == 0 && said.contains("weaker"), "{said}");
    block(async {
        let key = format!("ledger/{}/manifest.json", done["directory"].as_str().unwrap());
        let soon = DateTime::from(std::time::SystemTime::now() + Duration::from_secs(86_400));
        let shorter = ObjectLockRetention::builder().mode(ObjectLockRetentionMode::Governance).retain_until_date(soon);
        let request = s3.put_object_retention().bucket(&bucket).key(key).bypass_governance_retention(true);
        request.retention(shorter.build()).send().await.unwrap();
    });
    assert_eq!(shop.verify(&source, "").0, 0);
    let (exit, said) = shop.verify(&source, " --locks");
    assert!(exit == 1 && said.contains("export_object_unlocked"), "{said}");
    let (exit, said) = shop.run("exports --check --json", &[]);
    assert!(exit == 1 && said.contains("SHORTENED"), "{said}");
}

/// The process is killed again and again; each next one goes on, and in the end there is no gap and no second batch.
#[test]
fn killed_again_and_again() {
    let shop = Shop::open();
    let bucket = block(S3::shared().make_bucket(true));
    let line = format!("--dir shop export --out s3://{bucket} --retain-days 1");
    let mut killed = 0;
    for round in 0..24u64 {
        shop.sell(&format!("sku-{round}"));
        let mut command = shop.command(Path::new(LEDGER), &line, &[]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(round * 5));
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
    }
    assert!(killed > 5, "{killed}");
    shop.json(&format!("export --out s3://{bucket} --retain-days 1"), &[]);
    let last = shop.json(&format!("export --out s3://{bucket} --retain-days 1"), &[]);
    let (exit, said) = shop.run("exports --check --json", &[]);
    assert_eq!(exit, 0, "{said}");
    assert_eq!(said.lines().count() as u64, last["sequence"].as_u64().unwrap(), "{said}");
    let (exit, said) = shop.verify(&format!("s3://{bucket}"), " --locks");
    assert_eq!(exit, 0, "{said}");
    assert_eq!(shop.verify("shop", "").0, 0);
}

/// Rows of a table that an archive holds, up to where it ends.
fn rows(db: &Path, sql: &str) -> Vec<String> {
    let db = rusqlite::Connection::open(db).unwrap();
    let mut s = db.prepare(sql).unwrap();
    let columns = s.column_count();
    let cell = |row: &rusqlite::Row<'_>, at| format!("{:?}", row.get_ref(at).unwrap());
    let row = |row: &rusqlite::Row<'_>| Ok((0..columns).map(|at| cell(row, at)).collect::<Vec<_>>().join("|"));
    s.query_map([], row).unwrap().map(Result::unwrap).collect()
}

/// A ledger on three chains with orders, private documents and one erasure, exported in two batches. Gives where each chain ends.
fn exported(shop: &Shop) -> Vec<u64> {
    let mut lines: Vec<String> = Vec::new();
    for n in 0..40 {
        lines.push(format!(
            r#"{{"command":"order.create","actor":"p{n}@example.org","idempotency_key":"o{n}","ref":"o{n}","sku_id":"first","delivery_mode":"marketplace-managed"}}"#
        ));
        if n % 2 == 0 {
            lines.push(format!(
                r#"{{"command":"payment.capture","actor":"service:pay","order_id":"ref:o{n}","provider":"stripe","payment_id":"pi{n}","total":{{"amount":1250,"currency":"EUR","scale":2}}}}"#
            ));
        }
    }
    std::fs::write(shop.path("day"), lines.join("\n")).unwrap();
    let (exit, said) = shop.run("submit day", &[]);
    assert_eq!(exit, 0, "{said}");
    shop.json("export --out archive", &[]);
    let said = shop.run("--json log --type order.created --limit 1", &[]).1;
    let order = said.split("order-").nth(1).unwrap()[..32].to_owned();
    let erase = format!(r#"{{"command":"subject.erase","actor":"service:m","order_id":"{order}","reason":"asked"}}"#);
    std::fs::write(shop.path("erase"), erase).unwrap();
    let (exit, said) = shop.run("submit erase", &[]);
    assert_eq!(exit, 0, "{said}");
    let done = shop.json("export --out archive", &[]);
    done["ranges"].as_array().unwrap().iter().map(|r| r["to"].as_u64().unwrap()).collect()
}

#[test]
fn a_ledger_is_restored_from_its_archive_alone() {
    let shop = Shop::with("init --chains 3");
    let ends = exported(&shop);
    let restore = |dir: &str, newest: &str| {
        let line = format!("--dir {dir} restore --from archive --trust {} --newest-checkpoint {newest}", shop.id);
        let output = shop.command(Path::new(LEDGER), &line, &[]).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let (exit, said) = restore("new", "none");
    assert!(exit == 2 && said.contains("keys/") && said.contains("--drill"), "{said}");
    assert!(!shop.path("new").exists());
    let (exit, said) = restore("new", "none --drill");
    assert!(exit == 0 && said.contains("restored") && said.contains("drill"), "{said}");
    let (exit, said) = shop.verify("new", "");
    assert!(exit == 0 && said.contains("projection rows"), "{said}");
    // The database alone, and why nobody is to write to it, not even who has its keys.
    assert_eq!(std::fs::read_dir(shop.path("new")).unwrap().count(), 2);
    shell(shop.dir.path(), "cp -r new tried; cp -r shop/keys tried/keys");
    for line in ["submit commands", "checkpoint", "export --out elsewhere"] {
        let output = shop.command(Path::new(LEDGER), &format!("--dir tried {line}"), &[]).output().unwrap();
        let said = text(&output);
        assert!(
            output.status.code() == Some(2) && said.contains("a drill") && said.contains("ledger restore"),
            "{said}"
        );
    }
    // Unless the day has come.
    let (exit, said) = restore("tried", "none");
    assert!(exit == 0 && said.contains("the ledger goes on"), "{said}");
    let said = text(&shop.command(Path::new(LEDGER), "--dir tried submit commands", &[]).output().unwrap());
    assert!(said.contains("0 accepted"), "{said}");
    // Row by row what was exported; what follows from it was just verified.
    let within = |column: &str, chain: usize, end: u64| format!("chain = {chain} AND {column} <= {end}");
    for (table, column, key) in [
        ("entries", "idx + 1", "idx"),
        ("private_documents", "idx + 1", "idx"),
        ("commits", "first_index + 1", "first_index"),
        ("commit_signatures", "first_index + 1", "first_index, kid"),
        ("checkpoints", "size", "size"),
    ] {
        for (chain, end) in ends.iter().enumerate() {
            let sql = format!("SELECT * FROM {table} WHERE {} ORDER BY {key}", within(column, chain, *end));
            let (was, is) = (rows(&shop.path("shop/ledger.db"), &sql), rows(&shop.path("new/ledger.db"), &sql));
            assert!(!was.is_empty() && was == is, "{table} of chain {chain}");
            let all = rows(&shop.path("new/ledger.db"), &format!("SELECT * FROM {table} WHERE chain = {chain}"));
            assert_eq!(all.len(), is.len(), "{table} of chain {chain}");
        }
    }
    let private = |db: &str| rows(&shop.path(db), "SELECT count(*) FROM private_documents");
    // Of 41 orders; the archive's first batch has the one that was erased since.
    assert_eq!(private("new/ledger.db"), ["Integer(40)"], "what was erased stays erased");
    // With its keys it goes on, which an entry says, exports to the same archive, and that verifies.
    shell(shop.dir.path(), "mkdir gone; cp -r shop/keys gone/keys");
    let newest = format!("archive/marketplace/{}", shop.batch_path(2));
    let (exit, said) = restore("gone", &newest);
    assert!(exit == 0 && said.contains("the ledger goes on"), "{said}");
    let (exit, said) = restore("gone", &newest);
    assert!(exit == 0 && said.contains("an earlier run had begun it"), "{said}");
    let restored = "SELECT count(*) FROM entries WHERE event_type = 'ledger.restored'";
    assert_eq!(rows(&shop.path("gone/ledger.db"), restored), ["Integer(1)"], "whoever asks again gets the same answer");
    let (exit, said) = restore("shop", &newest);
    assert!(exit == 2 && said.contains("never written over"), "{said}");
    // A run that was killed before the ledger went on is ended by the next one.
    shell(shop.dir.path(), "cp -r new half; cp -r shop/keys half/keys");
    let (exit, said) = restore("half", &newest);
    assert!(exit == 0 && said.contains("an earlier run had begun it") && said.contains("goes on"), "{said}");
    assert_eq!(rows(&shop.path("half/ledger.db"), restored), ["Integer(1)"]);
    assert_eq!(shop.verify("half", "").0, 0);
    shell(shop.dir.path(), "mv shop old; mv gone shop");
    let (exit, said) = shop.run("log --type ledger.restored --json", &[]);
    assert!(exit == 0 && said.contains("ledger.restored"), "{said}");
    let (exit, said) = shop.run("exports", &[]);
    assert!(exit == 0 && said.contains("/archive when it had"), "{said}");
    // The last batch came after what it holds of the record, and is looked at all the same; where the archive is now is for whoever asks to say.
    let (exit, said) = shop.run("exports --check", &[]);
    assert!(exit == 0 && said.matches("all objects are as").count() == 2, "{said}");
    assert_eq!(said.matches("not in the ledger's record yet").count(), 1, "{said}");
    let last = shop.path("archive/marketplace").join(shop.batch_path(2));
    let last = std::fs::read_dir(last.parent().unwrap())
        .unwrap()
        .map(|f| f.unwrap().path())
        .find(|f| f.extension().is_some_and(|e| e == "gz"));
    let last = last.unwrap();
    let bytes = std::fs::read(&last).unwrap();
    std::fs::write(&last, &bytes[1..]).unwrap();
    let (exit, said) = shop.run("exports --check", &[]);
    assert!(exit == 1 && said.contains("ALTERED"), "{said}");
    std::fs::write(&last, &bytes).unwrap();
    shell(shop.dir.path(), "mv archive moved");
    let (exit, said) = shop.run("exports --check", &[]);
    assert!(exit != 0 && said.contains("MISSING"), "{said}");
    let (exit, said) = shop.run("exports --check --at moved", &[]);
    assert!(exit == 0 && said.matches("all objects are as").count() == 2, "{said}");
    shell(shop.dir.path(), "mv moved archive");
    shop.sell("after");
    let next = shop.json("export --out archive", &[]);
    assert_eq!(next["sequence"].as_u64(), Some(3), "the record of the second batch came after it, and was taken over");
    for source in ["shop", "archive"] {
        let (exit, said) = shop.verify(source, "");
        assert_eq!(exit, 0, "{said}");
    }
    let (exit, said) = shop.run("exports --check", &[]);
    assert!(exit == 0 && said.matches("all objects are as they were exported").count() == 3, "{said}");
    // The ledger that was given up had signed more, and had it exported: its archive is of two histories now, and says so.
    shell(shop.dir.path(), "mv shop restored; mv old shop");
    shop.sell("elsewhere");
    let (exit, said) = shop.run("export --out archive", &[]);
    assert!(exit == 2 && said.contains("other entries than this ledger"), "{said}");
}

const TABLES: &str = r#"
import decimal, glob, gzip, json, sys
import duckdb, pyarrow.parquet
root = sys.argv[1]
lines = [json.loads(l) for f in sorted(glob.glob(root + "/marketplace/*/*/entries-*.jsonl.gz")) for l in gzip.open(f)]
entries = [l for l in lines if "body" in l]
totals = {}
for e in entries:
    p = e["body"]["payload"]
    m = next((p[name] for name in ("total", "price", "refund") if name in p), None)
    if m:
        key = e["event_type"], m["currency"]
        totals[key] = totals.get(key, 0) + decimal.Decimal(m["amount"]).scaleb(-m["scale"])
tables = root + "/marketplace/*/*/*.parquet"
sql = f"SELECT event_type, currency, sum(amount) FROM '{tables}' WHERE amount IS NOT NULL GROUP BY ALL"
rows = duckdb.sql(sql).fetchall()
assert totals and {(t, c): a for t, c, a in rows} == totals, (rows, totals)
kinds = dict(duckdb.sql(f"DESCRIBE SELECT * FROM '{tables}'").project("column_name, column_type").fetchall())
assert kinds["amount"] == "DECIMAL(20,4)" and kinds["recorded_at"] == "TIMESTAMP WITH TIME ZONE", kinds
sql = "SELECT chain, idx, stream, lower(hex(entry_hash)), replace(event_id, '-', ''), revision, epoch_us(recorded_at), payload"
told = {(c, i): (s, h, e, r, t, json.loads(p)) for c, i, s, h, e, r, t, p in duckdb.sql(f"{sql} FROM '{tables}'").fetchall()}
for e in entries:
    there = told.pop((e["chain"], e["index"]))
    said = e["stream"], e["entry_hash"], e["event_id"], e["revision"], e["recorded_at_us"], e["body"]["payload"]
    assert there == said, (there, said)
assert not told
# A second reader of the format, of another family.
total = sum(pyarrow.parquet.read_table(f).num_rows for f in glob.glob(tables))
assert total == len(entries), total
sql = f"SELECT count(DISTINCT order_id) FROM '{tables}' WHERE event_type = 'order.created'"
print(json.dumps({"entries": len(entries), "orders": duckdb.sql(sql).fetchall()[0][0]}))
"#;

fn python() -> PathBuf {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python");
    std::env::var_os("LEDGER_PYTHON").map_or(made, PathBuf::from)
}

/// Foreign readers find in the tables what is in the lines, and what is done to a table is found.
#[test]
fn analysts_read_tables_beside_the_lines() {
    let shop = Shop::with("init --chains 3");
    let done = shop.json("export --out archive --parquet", &[]);
    assert_eq!(done["tables"].as_u64(), Some(3));
    exported(&shop);
    shop.sell("more");
    let done = shop.json("export --out archive --parquet --pii withhold", &[]);
    assert!(done["tables"].as_u64().unwrap() >= 1, "{done}");
    let (exit, said) = shop.verify("archive", "");
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = shop.run("exports --check", &[]);
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = shop.run("export --out tables --parquet", &[]);
    assert_eq!(exit, 0, "{said}");
    let output = Command::new(python()).args(["-c", TABLES, "tables"]).current_dir(shop.dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(read["orders"].as_u64(), Some(42), "{read}");
    // They are the archive's files like others.
    shell(
        shop.dir.path(),
        "cp -r archive changed; for f in changed/marketplace/*/*/*.parquet; do printf x >> $f; done",
    );
    let (exit, said) = shop.verify("changed", "");
    assert!(exit == 1 && said.contains("export_digest_mismatch") && said.contains(".parquet"), "{said}");
    shell(shop.dir.path(), "rm archive/marketplace/*/*/*.parquet");
    let (exit, said) = shop.verify("archive", "");
    assert!(exit == 1 && said.contains("export_file_missing"), "{said}");
    let (exit, said) = shop.run("exports --check", &[]);
    assert!(exit == 1 && said.contains("MISSING") && said.contains(".parquet"), "{said}");
}

/// A batch of what was recorded up to a time ends at a checkpoint of then, and the next one goes on from there.
#[test]
fn a_batch_ends_at_a_time() {
    let shop = Shop::open();
    let (exit, said) = shop.run("export --out archive --to 2001-01-01", &[]);
    assert!(exit == 2 && said.contains("give a later --to"), "{said}");
    let (exit, said) = shop.run("export --out archive --to tomorrow", &[]);
    assert!(exit == 2 && said.contains("2026-11-27T02:00:00Z"), "{said}");
    let (exit, said) = shop.run("export --out archive --from 2026-01-02 --to 2026-01-01", &[]);
    assert!(exit == 2 && said.contains("later"), "{said}");
    assert_eq!(shop.run("checkpoint", &[]).0, 0);
    let size = |shop: &Shop| -> u64 {
        let size = rows(&shop.path("shop/ledger.db"), "SELECT size FROM chain_heads");
        size[0].trim_start_matches("Integer(").trim_end_matches(')').parse().unwrap()
    };
    let before = size(&shop);
    std::thread::sleep(Duration::from_millis(20));
    let until = shell(shop.dir.path(), "date -u +%Y-%m-%dT%H:%M:%S.%3NZ").trim().to_owned();
    std::thread::sleep(Duration::from_millis(20));
    shop.sell("later");
    let (exit, said) = shop.run(&format!("export --out archive --to {until} --dry-run"), &[]);
    assert!(exit == 0 && said.contains(&format!("{before} entries")), "{said}");
    let done = shop.json(&format!("export --out archive --from 2026-01-01 --to {until}"), &[]);
    assert_eq!(done["ranges"][0], serde_json::json!({ "from": 0, "to": before }));
    // Nothing more was signed of that time: silence is exported, too.
    let done = shop.json(&format!("export --out archive --to {until}"), &[]);
    assert_eq!(done["ranges"][0], serde_json::json!({ "from": before, "to": before }));
    let done = shop.json("export --out archive", &[]);
    assert_eq!(done["ranges"][0]["from"].as_u64(), Some(before));
    assert_eq!(done["ranges"][0]["to"].as_u64().unwrap() + 2, size(&shop), "but for the record of the export itself");
    let (exit, said) = shop.verify("archive", "");
    assert!(exit == 0 && said.contains("3 batches"), "{said}");
}

/// What was signed and is not in the archive is lost: the ledger is restored without it and closed, and its successor says so in its genesis.
#[test]
fn a_ledger_that_lost_entries_is_closed_and_succeeded() {
    let shop = Shop::with("init --chains 3");
    let ends = exported(&shop);
    shop.sell("after the last export");
    shop.sell("and one more");
    let (exit, said) = shop.run("checkpoint", &[]);
    assert_eq!(exit, 0, "{said}");
    std::fs::write(shop.path("newest"), said).unwrap();
    let run = |line: &str| {
        let output = shop.command(Path::new(LEDGER), line, &[]).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let restore = |dir: &str, from: &str, newest: &str, more: &str| {
        let line = format!("--dir {dir} restore --from {from} --trust {} --newest-checkpoint {newest}", shop.id);
        let mut command = shop.command(Path::new(LEDGER), &line, &[]);
        if !more.is_empty() {
            command.args(["--accept-loss", more]);
        }
        let output = command.output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let (exit, said) = restore("old", "archive", "newest", "two orders of the last night");
    assert!(exit == 0 && said.contains("the ledger is closed") && said.contains("lost of chain 0"), "{said}");
    let report = shop.verify("old", "");
    assert!(report.0 == 0, "{}", report.1);
    // It can be read, and not written to, whoever has its keys.
    shell(shop.dir.path(), "cp -r shop/keys old/keys");
    assert_eq!(run("--dir old log --limit 1").0, 0);
    for line in ["submit commands", "checkpoint", "export --out elsewhere"] {
        let (exit, said) = run(&format!("--dir old {line}"));
        assert!(exit == 2 && said.contains("closed.json") && said.contains("--succeeds"), "{line}: {said}");
    }
    // Its successor has another id; whoever verifies it reads what was lost.
    let (exit, said) = run("--json --dir next init --origin ledger.example/next --succeeds old/closed.json");
    assert_eq!(exit, 0, "{said}");
    let made: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let next = made["ledger_id"].as_str().unwrap();
    assert_ne!(next, shop.id);
    let verify = |source: &str, id: &str, rest: &str| {
        let line = format!("{source} --trust {id}{rest}");
        let output = shop.command(&Path::new(LEDGER).with_file_name("audit-verify"), &line, &[]).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let (exit, said) = verify("next", next, "");
    assert!(exit == 0 && said.contains("it takes the place of ledger") && said.contains(&shop.id), "{said}");
    assert!(said.contains("two orders of the last night") && said.contains("lost of its chain 0"), "{said}");
    let (exit, said) = verify("next", next, " --json --report page.html");
    assert_eq!(exit, 0, "{said}");
    let report: Value = serde_json::from_str(&said).unwrap();
    let restored: Vec<u64> =
        report["succeeds"]["restored"].as_array().unwrap().iter().map(|r| r["size"].as_u64().unwrap()).collect();
    assert_eq!(restored, ends);
    let lost = report["succeeds"]["lost"].as_array().unwrap();
    assert!(
        lost.iter().all(|l| ends[l["chain"].as_u64().unwrap() as usize] == l["from"].as_u64().unwrap()),
        "{lost:?}"
    );
    let page = std::fs::read_to_string(shop.path("page.html")).unwrap();
    assert!(page.contains("two orders of the last night"), "the page says it too");
    // A second verifier, which shares no code, reads that genesis too.
    let second = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verifier/python/verify.py");
    let output = Command::new(python())
        .arg(second)
        .args(["--trust", next, "next"])
        .current_dir(shop.dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    // What was changed since is not taken.
    shell(shop.dir.path(), "sed -i s/two/one/ old/closed.json");
    assert_eq!(run("--dir other init --succeeds old/closed.json").0, 0, "a statement is anybody's words");
    shell(shop.dir.path(), r#"sed -i 's/"to":/"to":1/' old/closed.json"#);
    let (exit, said) = run("--dir more init --succeeds old/closed.json");
    assert!(exit == 2 && said.contains("changed since"), "{said}");

    // Of a damaged archive what is good is kept, up to the last good commit of each chain.
    shell(shop.dir.path(), "cp -r archive damaged");
    let file = std::fs::read_dir(shop.path("damaged/marketplace")).unwrap().next().unwrap().unwrap().path();
    let file = std::fs::read_dir(file)
        .unwrap()
        .map(|b| b.unwrap().path())
        .find(|b| b.to_string_lossy().contains("-00000001-"));
    let file = std::fs::read_dir(file.unwrap()).unwrap().map(|f| f.unwrap().path());
    let file =
        file.into_iter().find(|f| f.file_name().unwrap().to_string_lossy().starts_with("entries-0001-")).unwrap();
    let script = format!(
        "gunzip -c {0} > lines; total=$(wc -l < lines); awk -v at=$((total / 2)) '{{ print (NR == at) ? $0 \"x\" : $0 }}' lines | gzip > {0}",
        file.display()
    );
    shell(shop.dir.path(), &script);
    let (exit, said) = restore("nothing", "damaged", "none", "");
    assert!(exit == 2 && said.contains("keys/"), "{said}");
    shell(shop.dir.path(), "mkdir nothing; cp -r shop/keys nothing/keys");
    let (exit, said) = restore("nothing", "damaged", "none", "");
    assert!(exit == 1 && said.contains("--accept-loss"), "{said}");
    let (exit, said) = restore("part", "damaged", "none", "half of chain 1");
    assert!(exit == 0 && said.contains("lost of chain 1"), "{said}");
    let (exit, said) = shop.verify("part", "");
    assert_eq!(exit, 0, "{said}");
    let sizes = rows(&shop.path("part/ledger.db"), "SELECT size FROM chain_heads ORDER BY chain");
    assert_ne!(sizes[1], format!("Integer({})", ends[1]));
    let closed: Value = serde_json::from_slice(&std::fs::read(shop.path("part/closed.json")).unwrap()).unwrap();
    let of_one = closed["lost"].as_array().unwrap().iter().find(|l| l["chain"] == 1).unwrap();
    assert_eq!(of_one["to"].as_u64(), Some(ends[1]), "the archive's own checkpoints say what there was");
    assert_eq!(sizes[1], format!("Integer({})", of_one["from"]));
}

/// A ledger that was closed stays closed, and one of which two histories were signed does not go on with either.
#[test]
fn what_was_closed_or_is_contradicted_does_not_go_on() {
    let shop = Shop::open();
    exported(&shop);
    let restore = |dir: &str, from: &str, newest: &str, more: &[&str]| {
        let line = format!("--dir {dir} restore --from {from} --trust {} --newest-checkpoint {newest}", shop.id);
        let output = shop.command(Path::new(LEDGER), &line, &[]).args(more).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    // Two histories: of the same beginning, both signed by the ledger's key.
    shell(shop.dir.path(), "cp -r shop forked; cp -r archive forked-archive");
    std::fs::write(shop.path("other"), std::fs::read_to_string(shop.path("commands")).unwrap().replace("first", "x"))
        .unwrap();
    let (exit, said) = shop.run_in("forked", "submit other");
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = shop.run_in("forked", "checkpoint");
    assert_eq!(exit, 0, "{said}");
    std::fs::write(shop.path("known"), said).unwrap();
    shop.sell("y");
    shop.json("export --out archive", &[]);
    shop.sell("z");
    shop.json("export --out archive", &[]);
    shell(shop.dir.path(), "mkdir new; cp -r shop/keys new/keys");
    for more in [&[][..], &["--accept-loss", "x"]] {
        let (exit, said) = restore("new", "archive", "known", more);
        assert!(exit == 1 && said.contains("anchor_mismatch") && said.contains("two histories"), "{said}");
        assert!(!said.contains("--accept-loss restores") && !shop.path("new/ledger.db").exists(), "{said}");
    }
    // Also where the archive is damaged, and restored as far as it goes.
    shell(shop.dir.path(), "cp -r archive damaged; rm damaged/marketplace/*/*-00000004-*/entries-*");
    let (exit, said) = restore("new", "damaged", "known", &["--accept-loss", "x"]);
    assert!(exit == 1 && said.contains("anchor_mismatch") && !shop.path("new/ledger.db").exists(), "{said}");

    // What a run that was killed has left is taken away, unless it still runs.
    shell(shop.dir.path(), "mkdir -p looked/.restoring; touch looked/.restoring/ledger.db");
    let running = std::fs::File::open(shop.path("looked")).unwrap();
    running.lock().unwrap();
    let (exit, said) = restore("looked", "archive", "none", &["--drill"]);
    assert!(exit == 2 && said.contains("another restore into looked is under way"), "{said}");
    assert!(shop.path("looked/.restoring/ledger.db").exists());
    drop(running);
    // One batch is not the archive, though it begins with the first entry.
    let first = shop.path("archive/marketplace").join(shop.batch_path(1));
    let first = first.parent().unwrap().display().to_string();
    let (exit, said) = restore("new", &first, "none", &[]);
    assert!(exit == 2 && said.contains("one batch of an archive"), "{said}");
    let (exit, said) = restore("looked", &first, "none", &["--drill"]);
    assert_eq!(exit, 0, "{said}");
    assert!(shop.path("looked/ledger.db").exists() && !shop.path("looked/.restoring").exists());

    // Tables follow from the lines: without them the archive is not whole, and is restored all the same.
    shop.json("export --out tables --parquet", &[]);
    shell(shop.dir.path(), "rm tables/marketplace/*/*/*.parquet");
    let (exit, said) = shop.verify("tables", "");
    assert!(exit == 1 && said.contains("export_file_missing"), "{said}");
    let (exit, said) = restore("again", "tables", "none", &["--drill"]);
    assert_eq!(exit, 0, "{said}");

    // Closed by what was lost, and then it is found.
    shell(shop.dir.path(), "cp -r archive short; rm short/marketplace/*/*-00000004-*/manifest.json");
    let (exit, said) = restore("new", "short", "none", &["--accept-loss", "the last night"]);
    assert!(exit == 0 && said.contains("the ledger is closed"), "{said}");
    shell(shop.dir.path(), "rm new/ledger.db");
    for more in [&[][..], &["--accept-loss", "x"]] {
        let (exit, said) = restore("new", "archive", "none", more);
        assert!(exit == 2 && said.contains("was closed") && !shop.path("new/ledger.db").exists(), "{said}");
    }
    let server = test_servers::Server::shared();
    let url = server.database();
    let (exit, said) = shop.run(&format!("--database {url} migrate"), &[]);
    assert_eq!(exit, 0, "{said}");
    let served = |dir: &str, from: &str, more: &[&str]| {
        let line =
            format!("--dir {dir} --database {url} restore --from {from} --trust {} --newest-checkpoint none", shop.id);
        let output = shop.command(Path::new(LEDGER), &line, &[]).args(more).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let (exit, said) = served("closing", "short", &["--accept-loss", "the last night"]);
    assert!(exit == 0 && said.contains("the ledger is closed"), "{said}");
    shell(
        shop.dir.path(),
        "mkdir elsewhere; cp -r shop/keys elsewhere/keys; cp -r short shorter; rm -r shorter/marketplace/*/*-00000004-*",
    );
    for (from, more) in [("archive", &[][..]), ("shorter", &[]), ("archive", &["--drill"])] {
        let (exit, said) = served("elsewhere", from, more);
        assert!(exit == 2 && said.contains("was closed"), "{from} {more:?}: {said}");
        let said = server
            .psql(url.rsplit('/').next().unwrap(), "SELECT obj_description('ledger'::regnamespace, 'pg_namespace')");
        assert!(said.contains("and closed"), "{said}");
    }
    // Who closes it again gets the same answer.
    let (exit, said) = served("closing", "short", &["--accept-loss", "the last night"]);
    assert!(exit == 0 && said.contains("the ledger is closed"), "{said}");
}

/// A ledger that was restored once and went on: its older archive says nothing of a drill of the newer one, nor of one that was closed.
#[test]
fn an_older_archive_releases_nothing() {
    let shop = Shop::open();
    exported(&shop);
    let restore = |dir: &str, from: &str, more: &[&str]| {
        let line = format!("--dir {dir} restore --from {from} --trust {}", shop.id);
        let newest: &[&str] =
            if more.contains(&"--newest-checkpoint") { &[] } else { &["--newest-checkpoint", "none"] };
        let output = shop.command(Path::new(LEDGER), &line, &[]).args(newest).args(more).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    shell(shop.dir.path(), "mkdir on; cp -r shop/keys on/keys");
    let (exit, said) = restore("on", "archive", &[]);
    assert!(exit == 0 && said.contains("goes on"), "{said}");
    shell(shop.dir.path(), "cp -r archive older");
    std::fs::write(shop.path("other"), std::fs::read_to_string(shop.path("commands")).unwrap().replace("first", "x"))
        .unwrap();
    let (exit, said) = shop.run_in("on", "submit other");
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = shop.run_in("on", "export --out archive");
    assert_eq!(exit, 0, "{said}");
    // Who asks again gets the answer again.
    let (exit, said) = restore("on", "older", &[]);
    assert!(exit == 0 && said.contains("an earlier run had begun it"), "{said}");
    let (exit, said) = restore("drill", "archive", &["--drill"]);
    assert_eq!(exit, 0, "{said}");
    shell(
        shop.dir.path(),
        "mkdir moved; cp drill/ledger.db moved; cp -r shop/keys moved/keys; cp -r shop/keys drill/keys",
    );
    for dir in ["drill", "moved"] {
        let (exit, said) = restore(dir, "older", &[]);
        assert!(exit == 2 && said.contains("never written over"), "{dir}: {said}");
        let (exit, said) = shop.run_in(dir, "checkpoint");
        assert!(exit == 2, "{dir}: {said}");
    }
    // Closed in PostgreSQL, since more had been signed.
    let (exit, said) = shop.run_in("on", "checkpoint");
    assert_eq!(exit, 0, "{said}");
    std::fs::write(shop.path("newest"), said).unwrap();
    let url = test_servers::Server::shared().database();
    let (exit, said) = shop.run(&format!("--database {url} migrate"), &[]);
    assert_eq!(exit, 0, "{said}");
    let lost = ["--newest-checkpoint", "newest", "--accept-loss", "x", "--database", &url];
    let (exit, said) = restore("closing", "archive", &lost);
    assert!(exit == 0 && said.contains("the ledger is closed"), "{said}");
    let (exit, said) = restore("closing", "older", &lost);
    assert!(exit == 2 && said.contains("was closed"), "{said}");
    let (exit, said) = shop.run_in("closing", &format!("--database {url} checkpoint"));
    assert!(exit == 2 && said.contains("its successor"), "{said}");
    // Nor is a ledger that went on closed by what holds less of it; and a drill releases nothing, whatever it is of.
    let url = test_servers::Server::shared().database();
    let (exit, said) = shop.run(&format!("--database {url} migrate"), &[]);
    assert_eq!(exit, 0, "{said}");
    shell(shop.dir.path(), "mkdir served; cp -r shop/keys served/keys");
    let (exit, said) = restore("served", "archive", &["--database", &url]);
    assert!(exit == 0 && said.contains("goes on"), "{said}");
    let lost = ["--newest-checkpoint", "newest", "--accept-loss", "x", "--database", &url];
    let (exit, said) = restore("served", "archive", &lost);
    assert!(exit == 2 && said.contains("in an empty database"), "{said}");
    let (exit, said) = restore("on", "older", &["--drill"]);
    assert!(exit == 2 && said.contains("never written over"), "{said}");
    // Closed in a file: its copies are closed too.
    let (exit, said) = restore("shut", "archive", &["--newest-checkpoint", "newest", "--accept-loss", "x"]);
    assert!(exit == 0 && said.contains("the ledger is closed"), "{said}");
    shell(shop.dir.path(), "mkdir copied; cp shut/ledger.db copied; cp -r shop/keys copied/keys");
    let (exit, said) = restore("copied", "archive", &[]);
    assert!(exit == 2 && said.contains("was closed"), "{said}");
    assert_eq!(shop.run_in("copied", "checkpoint").0, 2);
    assert_eq!(shop.verify("copied", "").0, 0);
    // What a ledger that was there had not written into its file is not taken for part of another one.
    shell(shop.dir.path(), "mkdir left; cp -r shop/keys left/keys; echo x > left/ledger.db-wal");
    let (exit, said) = restore("left", "archive", &[]);
    assert!(exit == 2 && said.contains("move it away and keep it"), "{said}");
    assert!(shop.path("left/ledger.db-wal").exists() && !shop.path("left/ledger.db").exists());
    // What it was restored from may go: its batches are what is checked.
    shell(shop.dir.path(), "rm -r older");
    let (exit, said) = shop.run_in("on", "exports --check");
    assert_eq!(exit, 0, "{said}");
}

/// A batch of before the key that signs exports was enrolled can be signed by nobody, and is not begun.
#[test]
fn what_nobody_can_sign_is_not_begun() {
    let shop = Shop::open();
    assert_eq!(shop.run("checkpoint", &[]).0, 0);
    std::thread::sleep(Duration::from_millis(1100));
    let before = shell(shop.dir.path(), "date -u +%FT%TZ");
    std::thread::sleep(Duration::from_millis(1100));
    let (exit, said) = shop.run("keys rotate --purpose export --governance-key shop-governance.pem", &[]);
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = shop.run(&format!("export --out archive --to {}", before.trim()), &[]);
    assert!(exit == 2 && said.contains("give a later --to"), "{said}");
    let (exit, said) = shop.run("exports", &[]);
    assert!(exit == 0 && said.contains("nothing was exported"), "{said}");
    let (exit, said) = shop.run("export --out archive", &[]);
    assert_eq!(exit, 0, "{said}");
    assert_eq!(shop.verify("archive", "").0, 0);
}

/// What was begun and not completed is no export: whoever checks learns it, until it is finished by the same options or given up.
#[test]
fn what_was_begun_is_no_export_yet() {
    let shop = Shop::open();
    shell(shop.dir.path(), "mkdir archive; touch archive/marketplace");
    let (exit, said) = shop.run("export --out archive --pii withhold", &[]);
    assert!(exit == 2 && said.contains("marketplace"), "{said}");
    shell(shop.dir.path(), "rm archive/marketplace");
    for json in ["", "--json "] {
        let (exit, said) = shop.run(&format!("{json}exports --check"), &[]);
        assert!(exit == 2 && (said.contains("and not completed") || said.contains("\"completed\":false")), "{said}");
    }
    for line in
        ["export --out archive", "export --out archive --dry-run", "export --out archive --pii withhold --env prod"]
    {
        let (exit, said) = shop.run(line, &[]);
        assert!(exit == 2 && said.contains("a batch was begun") && said.contains("--restart"), "{line}: {said}");
    }
    // A counter that cannot be written hides nothing.
    let (exit, said) = shop.run("--json export --out archive --pii withhold --metrics nowhere/export.prom", &[]);
    assert!(exit == 0 && said.contains("\"ok\":true") && said.contains("--metrics"), "{said}");
    assert_eq!(shop.run("exports --check", &[]).0, 0);
}

/// Of damaged files of private documents what is good is kept: a line that is there twice is one document.
#[test]
fn a_private_document_that_is_there_twice_is_restored_once() {
    let shop = Shop::open();
    exported(&shop);
    shell(
        shop.dir.path(),
        "mkdir new; cp -r shop/keys new/keys; cp -r archive twice; f=$(ls twice/marketplace/*/*-00000001-*/private-*); gunzip -c $f > lines; (head -1 lines; cat lines) | gzip > $f",
    );
    let line = format!("--dir new restore --from twice --trust {} --newest-checkpoint none", shop.id);
    let output = shop.command(Path::new(LEDGER), &line, &[]).args(["--accept-loss", "x"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let count = |db: &str| rows(&shop.path(db), "SELECT count(*) FROM private_documents");
    assert_eq!(count("new/ledger.db"), count("shop/ledger.db"));
}

fn shell(dir: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output));
    text(&output)
}

/// Into PostgreSQL, killed on the way: the next run goes on. What the archive does not reach, or what is wrong with it, is refused.
#[test]
fn a_restore_that_was_killed_goes_on_and_a_bad_archive_is_refused() {
    let shop = Shop::with("init --chains 3");
    exported(&shop);
    let server = test_servers::Server::shared();
    let url = server.database();
    let (exit, said) = shop.run(&format!("--database {url} migrate"), &[]);
    assert_eq!(exit, 0, "{said}");
    let restore = |dir: &str, more: &str| format!("--dir {dir} restore --from archive --trust {} {more}", shop.id);
    shell(shop.dir.path(), "mkdir served; cp -r shop/keys served/keys");
    let line = format!("--database {url} {}", restore("served", "--newest-checkpoint none"));
    let mut killed = 0;
    for round in 0..12u64 {
        let mut command = shop.command(Path::new(LEDGER), &line, &[]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20 + round * 8));
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        // Until it is complete nobody writes to it, on whatever machine.
        let state = "SELECT EXISTS (SELECT FROM ledger.entries) AND NOT EXISTS (SELECT FROM ledger.entries WHERE event_type = 'ledger.restored'), \
                     coalesce(obj_description('ledger'::regnamespace, 'pg_namespace'), '')";
        let state = server.psql(url.rsplit('/').next().unwrap(), state);
        if state.starts_with('t') {
            assert!(state.contains("has begun and not ended"), "{state}");
            let submit = format!("--database {url} --dir served submit commands");
            let output = shop.command(Path::new(LEDGER), &submit, &[]).output().unwrap();
            assert!(text(&output).contains("has begun and not ended"), "{}", text(&output));
        }
    }
    assert!(killed > 3, "{killed}");
    let submit = format!("--database {url} --dir served submit commands");
    let output = shop.command(Path::new(LEDGER), &line, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let (exit, said) = shop.verify(&url, "");
    assert!(exit == 0 && said.contains("projection rows"), "{said}");
    let counts = |sql: &str| server.psql(url.rsplit('/').next().unwrap(), sql);
    let entries = rows(&shop.path("shop/ledger.db"), "SELECT count(*) FROM private_documents");
    assert_eq!(
        format!("[\"Integer({})\"]", counts("SELECT count(*) FROM ledger.private_documents")),
        format!("{entries:?}")
    );

    // With its keys it goes on there, and so does its archive.
    shell(shop.dir.path(), "cp -r archive kept");
    let output = shop.command(Path::new(LEDGER), &line, &[]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("earlier run had begun it"), "{}", text(&output));
    let restored = "SELECT count(*) FROM ledger.entries WHERE event_type = 'ledger.restored'";
    assert_eq!(counts(restored), "1", "whoever asks again gets the same answer");
    let said = text(&shop.command(Path::new(LEDGER), &submit, &[]).output().unwrap());
    assert!(said.contains("0 accepted"), "{said}");

    // Closed, it is closed for whoever has its keys and the database.
    let other = server.database();
    let (exit, said) = shop.run(&format!("--database {other} migrate"), &[]);
    assert_eq!(exit, 0, "{said}");
    shell(shop.dir.path(), "cp -r archive short; rm short/marketplace/*/*-00000002-*/manifest.json");
    let line =
        format!("--dir lost --database {other} restore --from short --trust {} --newest-checkpoint none", shop.id);
    let output =
        shop.command(Path::new(LEDGER), &line, &[]).args(["--accept-loss", "the second night"]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("the ledger is closed"), "{}", text(&output));
    let submit = format!("--database {other} --dir served submit commands");
    let output = shop.command(Path::new(LEDGER), &submit, &[]).output().unwrap();
    assert!(output.status.code() == Some(2) && text(&output).contains("its successor"), "{}", text(&output));
    assert_eq!(shop.verify(&other, "").0, 0);
    let line =
        format!("--dir served --database {url} --json export --out kept --location {}", shop.path("archive").display());
    let output = shop.command(Path::new(LEDGER), &line, &[]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("\"sequence\":3"), "{}", text(&output));
    assert_eq!(shop.verify("kept", "").0, 0);

    // The ledger had signed more than the archive has: going on from it would be a second history.
    let (exit, said) = shop.run("checkpoint", &[]);
    assert_eq!(exit, 0);
    std::fs::write(shop.path("newest"), said).unwrap();
    let run = |more: &str| {
        let output = shop.command(Path::new(LEDGER), &restore("new", more), &[]).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let (exit, said) = run("--newest-checkpoint newest --drill");
    assert!(exit == 1 && said.contains("anchor_beyond_tail") && said.contains("two histories"), "{said}");
    let (exit, said) = run("--newest-checkpoint nowhere");
    assert!(exit == 2 && said.contains("nowhere"), "{said}");
    let (exit, said) = run("");
    assert!(exit == 2 && said.contains("--newest-checkpoint"), "{said}");
    // What is found last, when all was made already.
    shell(
        shop.dir.path(),
        "mv archive good && cp -r good archive && sed -i 's/\"tool\":\"/\"tool\":\"x/' archive/marketplace/*/*-00000002-*/manifest.json",
    );
    let (exit, said) = run("--newest-checkpoint none --drill");
    assert!(exit == 1 && said.contains("export_manifest_") && said.contains("nothing was restored"), "{said}");
    assert!(!shop.path("new").exists());
    shell(shop.dir.path(), "rm -r archive && mv good archive && rm archive/marketplace/*/*-00000001-*/entries-0001-*");
    let (exit, said) = run("--newest-checkpoint none --drill");
    assert!(exit == 1 && said.contains("export_file_missing") && said.contains("nothing was restored"), "{said}");
    assert!(!shop.path("new").exists());
}

/// Entries that rest on a key while it was in other hands may be anybody's: a ledger goes on from them only with a checkpoint of them that somebody
/// kept, by a key that was in nobody else's.
#[test]
fn an_archive_of_keys_in_other_hands_needs_a_checkpoint() {
    let shop = Shop::with("init");
    exported(&shop);
    let kid = |purpose: &str| {
        let listed = shop.run("keys", &[]).1;
        let of_purpose = |line: &&str| line.starts_with(purpose) && line.contains("valid");
        listed.lines().filter(of_purpose).map(|l| l.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let old = kid("commit-");
    shell(shop.dir.path(), "openssl genpkey -algorithm ed25519 -out new.pem");
    let governed = "--governance-key shop-governance.pem";
    let (exit, said) = shop.run(&format!("keys enrol --purpose commit --key new.pem {governed}"), &[]);
    assert_eq!(exit, 0, "{said}");
    let new = kid("commit-").into_iter().find(|kid| !old.contains(kid)).unwrap();
    shell(shop.dir.path(), &format!("mv new.pem shop/keys/{new}.pem"));
    let revoke = format!("keys revoke --kid {} --reason sold --compromised-since 10 {governed}", old[0]);
    let (exit, said) = shop.run(&revoke, &[]);
    assert_eq!(exit, 0, "{said}");
    let done = shop.json("export --out archive", &[]);

    let restore = |dir: &str, rest: &str| {
        shop.run_in(dir, &format!("restore --from archive --trust {} --newest-checkpoint {rest}", shop.id))
    };
    let keys = |dir: &str| shell(shop.dir.path(), &format!("mkdir {dir} && cp -r shop/keys {dir}/keys"));
    keys("alone");
    let (exit, said) = restore("alone", "none");
    assert!(exit == 2 && said.contains("in other hands then") && said.contains("nothing was restored"), "{said}");
    assert!(!shop.path("alone/ledger.db").exists(), "{said}");
    let (exit, said) = restore("tried", "none --drill");
    assert!(exit == 0 && said.contains("this was a drill"), "{said}");
    // It is there as it was, and as doubtful.
    assert_eq!(shop.verify("tried", "").0, 2);
    let to = &done["ranges"][0]["to"];
    let all = |db: &str| rows(&shop.path(db), &format!("SELECT * FROM entries WHERE idx < {to} ORDER BY idx"));
    assert!(!all("tried/ledger.db").is_empty() && all("tried/ledger.db") == all("shop/ledger.db"));

    // The last manifest has a checkpoint by a key that nobody else had: whoever kept it answers for it.
    shell(shop.dir.path(), "cp archive/marketplace/*/*-00000003-*/manifest.json kept");
    let (exit, said) = restore("alone", "kept");
    assert!(exit == 0 && said.contains("the ledger goes on"), "{said}");
    assert_eq!(shop.verify("alone", " --anchor kept").0, 0);

    // What was tried is tried again, and goes on as soon as somebody answers for it.
    let (exit, said) = restore("tried", "none --drill");
    assert!(exit == 0 && said.contains("an earlier run had begun it"), "{said}");
    shell(shop.dir.path(), "cp -r shop/keys tried/keys");
    let (exit, said) = restore("tried", "none");
    assert!(exit == 2 && said.contains("in other hands then"), "{said}");
    let (exit, said) = restore("tried", "kept");
    assert!(exit == 0 && said.contains("the ledger goes on"), "{said}");

    // A document that was damaged is lost, and nothing else: the checkpoint answers for the rest of a damaged archive too.
    shell(
        shop.dir.path(),
        "gunzip archive/marketplace/*/*-00000001-*/private-*; f=$(ls archive/marketplace/*/*-00000001-*/private-* | head -1); \
         sed -i '2s/@/#/' $f; gzip archive/marketplace/*/*-00000001-*/private-*",
    );
    keys("damaged");
    let (exit, said) = restore("damaged", "none --accept-loss x");
    assert!(exit == 2 && said.contains("in other hands then") && !shop.path("damaged/ledger.db").exists(), "{said}");
    let (exit, said) = restore("damaged", "kept --accept-loss x");
    assert!(exit == 0 && said.contains("the ledger goes on") && said.contains("of 1 entry is not in"), "{said}");
    assert_eq!(shop.verify("damaged", " --anchor kept").0, 0);
}

/// A ledger that is there, and that no restore began, is none that a restore ends.
#[test]
fn what_no_restore_began_is_left_alone() {
    let shop = Shop::with("init");
    shop.json("export --copy --out copy", &[]);
    let restore = |dir: &str, rest: &str| {
        shop.run_in(dir, &format!("restore --from copy --trust {} --newest-checkpoint none{rest}", shop.id))
    };
    let submit = r#"{"command":"sku.list","actor":"service:c","sku_id":"more","title":"t","price":{"amount":5,"currency":"EUR","scale":2}}"#;
    std::fs::write(shop.path("more"), submit).unwrap();
    shell(shop.dir.path(), "cp -r shop live");
    for rest in ["", " --drill"] {
        let (exit, said) = restore("live", rest);
        assert!(exit == 2 && said.contains("there is nothing to restore"), "{said}");
    }
    let listed = "SELECT count(*) FROM entries WHERE event_type = 'ledger.restored'";
    assert_eq!(rows(&shop.path("live/ledger.db"), listed), ["Integer(0)"]);
    let (exit, said) = shop.run_in("live", "submit more");
    assert!(exit == 0 && said.contains("1 accepted") && !shop.path("live/held.txt").exists(), "{said}");

    // In a database, whose URL may be that of whoever tries.
    let (url, elsewhere) = (test_servers::Server::shared().database(), "elsewhere");
    shell(shop.dir.path(), &format!("mkdir {elsewhere} && cp -r shop/keys {elsewhere}/keys"));
    let (exit, said) = shop.run(&format!("--database {url} migrate"), &[]);
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = restore(elsewhere, &format!(" --database {url}"));
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = shop.run_in(elsewhere, &format!("--database {url} export --copy --out copy"));
    assert!(exit == 2, "{said}");
    shell(shop.dir.path(), "mv copy first");
    let (exit, said) = shop.run_in(elsewhere, &format!("--database {url} export --copy --out copy"));
    assert_eq!(exit, 0, "{said}");
    for rest in [" --drill", ""] {
        let (exit, said) = restore("nowhere", &format!("{rest} --database {url}"));
        assert!(exit == 2, "{said}");
        let (exit, said) = restore(elsewhere, &format!("{rest} --database {url}"));
        assert!(exit == 2 && said.contains("there is nothing to restore"), "{said}");
    }
    let (exit, said) = shop.run_in(elsewhere, &format!("--database {url} submit more"));
    assert!(exit == 0 && said.contains("1 accepted"), "{said}");
    shell(shop.dir.path(), "rm -r copy; mv first copy");

    // A restore that was killed at the end of its way goes on, whatever it had said of it before.
    shell(shop.dir.path(), "mkdir ended && cp -r shop/keys ended/keys");
    let (exit, said) = restore("ended", "");
    assert_eq!(exit, 0, "{said}");
    let drilled = restore("drilled", " --drill");
    assert_eq!(drilled.0, 0, "{drilled:?}");
    let held = std::fs::read(shop.path("drilled/held.txt")).unwrap();
    for why in [Some(held), None] {
        let database = rusqlite::Connection::open(shop.path("ended/ledger.db")).unwrap();
        database.pragma_update(None, "application_id", 0x4f4c_6768).unwrap();
        drop(database);
        if let Some(why) = why {
            std::fs::write(shop.path("ended/held.txt"), why).unwrap();
        }
        let (exit, said) = restore("ended", " --drill");
        assert!(exit == 2 && said.contains("never written over"), "{said}");
        let (exit, said) = restore("ended", "");
        assert!(exit == 0 && said.contains("an earlier run had begun it"), "{said}");
        assert_eq!(rows(&shop.path("ended/ledger.db"), listed), ["Integer(1)"]);
        assert!(!shop.path("ended/held.txt").exists());
        assert_eq!(shop.run_in("ended", "checkpoint").0, 0);
    }

    // Somebody's own directory is not taken for what a restore left.
    shell(shop.dir.path(), "mkdir -p own/.restoring && touch own/.restoring/mine");
    let (exit, said) = restore("own", " --drill");
    assert!(exit == 2 && said.contains("move them away") && shop.path("own/.restoring/mine").exists(), "{said}");
    // What the archive is not, no other archive is.
    let (exit, said) = shop
        .run_in("strange", &format!("restore --from copy --trust {} --newest-checkpoint none --drill", "0".repeat(64)));
    assert!(exit == 1 && said.contains("check the id"), "{said}");
}

/// Numbers that come the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Changes lines of a file in one of the ways that somebody may think of.
fn change(lines: &mut Vec<Vec<u8>>, numbers: &mut Numbers) {
    let (at, other) = (numbers.below(lines.len()), numbers.below(lines.len()));
    // A member that two lines have, which one takes from the other.
    let mut taken = |from: &str, to: &str| {
        let (text, donor) = (String::from_utf8_lossy(&lines[at]), String::from_utf8_lossy(&lines[other]));
        let cut =
            |text: &str| Some((text.find(from)?, text.find(to).filter(|end| *end > text.find(from).unwrap_or(0))?));
        if let (Some((a, b)), Some((c, d))) = (cut(&text), cut(&donor)) {
            lines[at] = format!("{}{}{}", &text[..a], &donor[c..d], &text[b..]).into_bytes();
        }
    };
    match numbers.below(9) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(other, lines[at].clone()),
        2 => lines.swap(at, other),
        3 => lines.truncate(at),
        4 => taken("\"signatures\":", "}}"),
        5 => taken("{\"body\":", "\"entry_hash\":"),
        6 => taken("\"document\":", ",\"index\":"),
        _ => {
            let digits: Vec<usize> = (0..lines[at].len()).filter(|i| lines[at][*i].is_ascii_digit()).collect();
            let digit = digits[numbers.below(digits.len())];
            lines[at][digit] = b'0' + numbers.below(10) as u8;
        }
    }
}

/// Whoever has the export key can sign a manifest of anything; the ledger comes back as it was, or not at all.
#[test]
fn what_the_export_key_signs_is_not_yet_the_ledger() {
    use ed25519_dalek::Signer as _;
    use ledger_engine::export::Manifest;
    use ledger_engine::hash::sha256;

    let shop = Shop::with("init --chains 2");
    exported(&shop);
    shell(shop.dir.path(), "gunzip archive/marketplace/*/*/*.gz");
    let mut keys = std::fs::read_dir(shop.path("shop/keys")).unwrap().map(|f| f.unwrap().path());
    let key = keys.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("export")).unwrap();
    let key = ledger_engine::keys::read_signing_key(&key).unwrap();
    let batches = [1, 2].map(|sequence| shop.batch_path(sequence));
    // Says of the files what they are now.
    let seal = |archive: &str| {
        let mut before = None;
        for batch in &batches {
            let file = shop.path(archive).join("marketplace").join(batch);
            let mut manifest = Manifest::decode(&std::fs::read(&file).unwrap()).unwrap();
            let described = manifest.batch.as_mut().unwrap();
            described.previous.iter_mut().for_each(|previous| previous.manifest_sha256 = before.unwrap());
            manifest.chains.iter_mut().for_each(|range| (range.commits, range.checkpoints) = (0, 0));
            for (named, stored) in manifest.files.iter_mut().zip(&mut described.stored) {
                named.name = named.name.trim_end_matches(".gz").to_owned();
                let lines = std::fs::read(file.with_file_name(&named.name)).unwrap();
                named.bytes = lines.len() as u64;
                named.lines = lines.iter().filter(|b| **b == b'\n').count() as u64;
                (named.sha256, named.blake3) =
                    (sha256(&[&lines]), ledger_engine::hash::Hash(*blake3::hash(&lines).as_bytes()));
                (stored.name, stored.bytes, stored.sha256) = (named.name.clone(), named.bytes, named.sha256);
                let count =
                    |what: &[u8]| lines.split(|b| *b == b'\n').filter(|line| line.starts_with(what)).count() as u64;
                let range = &mut manifest.chains[named.chain as usize];
                range.commits += count(b"{\"commit\"");
                range.checkpoints += count(b"{\"checkpoint\"");
            }
            let signature = key.sign(&manifest.statement()).to_bytes();
            manifest.signature.as_mut().unwrap().signature = signature;
            before = Some(manifest.digest());
            std::fs::write(&file, manifest.encode()).unwrap();
        }
    };
    let restore = |archive: &str, dir: &str| {
        shop.run_in(dir, &format!("restore --from {archive} --trust {} --newest-checkpoint none --drill", shop.id))
    };
    let all = |dir: &str| -> BTreeMap<String, BTreeSet<String>> {
        let db = shop.path(dir).join("ledger.db");
        let opened = rusqlite::Connection::open(&db).unwrap();
        let mut names = opened.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
        let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
        let table = |name: String| (name.clone(), rows(&db, &format!("SELECT * FROM {name}")).into_iter().collect());
        names.map(|name| table(name.unwrap())).collect()
    };
    seal("archive");
    let (exit, said) = restore("archive", "good");
    assert_eq!(exit, 0, "{said}");
    let good = all("good");

    let (mut numbers, mut refused) = (Numbers(7), 0);
    for round in 0..60 {
        shell(shop.dir.path(), "rm -rf changed new; cp -r archive changed");
        let files =
            std::fs::read_dir(shop.path("changed/marketplace").join(&batches[numbers.below(2)]).parent().unwrap());
        let mut files: Vec<PathBuf> = files.unwrap().map(|f| f.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
        files.sort();
        let file = files.swap_remove(numbers.below(files.len()));
        let bytes = std::fs::read(&file).unwrap();
        let mut lines: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        lines.pop();
        change(&mut lines, &mut numbers);
        let lines: Vec<u8> = lines.into_iter().flat_map(|line| [line, b"\n".to_vec()].concat()).collect();
        std::fs::write(&file, &lines).unwrap();
        seal("changed");
        let (exit, said) = restore("changed", "new");
        let (judged, report) = shop.verify("changed", "");
        assert_eq!(exit, judged, "round {round} of {}: {said}{report}", file.display());
        if exit == 0 {
            for (table, rows) in all("new") {
                // Who has the archive may leave documents and checkpoints out of it.
                let fewer =
                    ["private_documents", "checkpoints"].contains(&table.as_str()) && rows.is_subset(&good[&table]);
                assert!(fewer || rows == good[&table], "round {round}: other {table} from {}", file.display());
            }
        } else {
            refused += 1;
            assert!(exit == 1 && !shop.path("new").exists(), "round {round}: {said}");
            assert_ne!(lines, bytes, "round {round}: {said}");
        }
    }
    assert!((30..60).contains(&refused), "{refused}");
}

/// Whoever comes second is told so, or finds what the first one made.
#[test]
fn two_restores_at_once_make_one_history() {
    let shop = Shop::with("init");
    exported(&shop);
    let both = |dir: &str, more: [&[&str]; 2]| -> Vec<Output> {
        shell(shop.dir.path(), &format!("mkdir {dir} && cp -r shop/keys {dir}/keys"));
        let children = more.map(|more| {
            let line = format!("--dir {dir} restore --trust {} --newest-checkpoint none", shop.id);
            let mut command = shop.command(Path::new(LEDGER), &line, &[]);
            command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        let said: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        assert!(said.iter().any(|output| output.status.success()), "{said:?}");
        assert_eq!(shop.verify(dir, "").0, 0);
        let left = std::fs::read_dir(shop.path(dir)).unwrap().map(|f| f.unwrap().file_name());
        assert!(left.into_iter().all(|name| name != ".restoring"));
        said
    };
    let failed = |said: &[Output], why: &[&str]| {
        let mut losers = said.iter().filter(|output| !output.status.success());
        losers.all(|output| output.status.code() == Some(2) && why.iter().any(|why| text(output).contains(why)))
    };
    const UNDER_WAY: &str = "is under way; see what becomes of it";
    for round in 0..3 {
        let dir = format!("both-{round}");
        let said = both(&dir, [&["--from", "archive"]; 2]);
        let sql = "SELECT count(*) FROM entries WHERE event_type = 'ledger.restored'";
        assert_eq!(rows(&shop.path(&dir).join("ledger.db"), sql), ["Integer(1)"], "{said:?}");
        assert!(failed(&said, &[UNDER_WAY]), "{said:?}");
    }
    // Both close it, for reasons of their own; one does.
    shell(shop.dir.path(), "cp -r archive short; rm short/marketplace/*/*-00000002-*/manifest.json");
    for round in 0..3 {
        let dir = format!("closed-{round}");
        let said =
            both(&dir, ["one", "two"].map(|why| ["--from", "short", "--accept-loss", why]).each_ref().map(|m| &m[..]));
        let won: Vec<&str> =
            ["one", "two"].into_iter().zip(&said).filter(|(_, o)| o.status.success()).map(|(w, _)| w).collect();
        let closed = std::fs::read_to_string(shop.path(&dir).join("closed.json")).unwrap();
        assert!(won.len() == 1 && closed.contains(&format!(r#""statement":"{}""#, won[0])), "{closed}: {said:?}");
        assert!(failed(&said, &[UNDER_WAY, "a ledger that was closed"]), "{said:?}");
    }
}

/// The archive's disk is full: nothing is recorded as done, and with room again the same batch is made.
#[test]
fn a_full_disk_is_no_export() {
    let shop = Shop::with("init");
    exported(&shop);
    let script = r#"
        mkdir disk out && mount -t tmpfs -o size=16k tmpfs disk
        "$LEDGER" --dir shop export --out disk/archive 2> out/says && exit 9
        "$LEDGER" --dir shop exports > out/listed
        mount -o remount,size=64m disk
        "$LEDGER" --json --dir shop export --out disk/archive > out/done
        "$VERIFY" disk/archive --trust "$ID" > out/verified
        find disk -name '.*' > out/left
        mkdir small && mount -t tmpfs -o size=128k tmpfs small
        "$LEDGER" --dir small/new restore --from disk/archive --trust "$ID" --newest-checkpoint none --drill 2> out/full && exit 9
        ls -A small > out/small
        mount -o remount,size=64m small
        "$LEDGER" --dir small/new restore --from disk/archive --trust "$ID" --newest-checkpoint none --drill > out/restored
    "#;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-ec", script]).current_dir(shop.dir.path());
    let verify = Path::new(LEDGER).with_file_name("audit-verify");
    let output = command
        .env("LEDGER", LEDGER)
        .env("VERIFY", verify)
        .env("ID", &shop.id)
        .output()
        .expect("unshare of util-linux");
    assert!(output.status.success(), "{}", text(&output));
    let read = |name: &str| std::fs::read_to_string(shop.path("out").join(name)).unwrap();
    assert!(read("says").contains("disk/archive") && read("says").contains("free space"), "{}", read("says"));
    assert!(read("listed").contains("begun") && read("listed").contains("not completed"), "{}", read("listed"));
    let done: Value = serde_json::from_str(&read("done")).unwrap();
    assert_eq!((done["sequence"].as_u64(), done["resumed"].as_bool()), (Some(1), Some(true)));
    assert!(read("verified").starts_with("VERIFIED"), "{}", read("verified"));
    assert_eq!(read("left"), "");
    // Nor is there a ledger where there is no room for it, and nothing is said to be damaged.
    assert!(read("full").contains("full") && !read("full").contains("damaged"), "{}", read("full"));
    assert_eq!(read("small"), "");
    assert!(read("restored").starts_with("restored "), "{}", read("restored"));
}

/// A manifest by a key that was revoked before, or with another's rights, is no batch of ours; what the key signed before stands.
#[test]
fn a_revoked_key_signs_no_more_exports() {
    let shop = Shop::open();
    let (exit, said) = shop.run("export --out archive", &[]);
    assert_eq!(exit, 0, "{said}");
    let keys = shop.run("keys", &[]).1;
    let kid = keys.lines().find(|l| l.starts_with("export-")).unwrap().split(' ').next().unwrap().to_owned();
    let rotate = "keys rotate --purpose export --governance-key shop-governance.pem";
    let (exit, said) = shop.run(rotate, &[]);
    assert_eq!(exit, 0, "{said}");
    let next = shop.json("export --out archive", &[]);
    let manifest = shop.path("archive").join(next["directory"].as_str().unwrap()).join("manifest.json");
    let signed: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    assert_ne!(signed["signature"]["kid"].as_str(), Some(kid.as_str()));
    assert_eq!(shop.verify("archive", "").0, 0, "what the old key signed before it was retired stands");
    // Whoever has the old key says that he signed the second batch.
    // The name alone, in the signature, which comes last: the registry in the manifest has both.
    let (original, new_kid) =
        (std::fs::read_to_string(&manifest).unwrap(), signed["signature"]["kid"].as_str().unwrap());
    let at = original.rfind(new_kid).unwrap();
    let forged = format!("{}{kid}{}", &original[..at], &original[at + new_kid.len()..]);
    std::fs::write(&manifest, forged).unwrap();
    let (exit, said) = shop.verify("archive", "");
    assert!(exit == 1 && said.contains("kid_not_valid"), "{said}");
}

/// A ledger goes on from an archive only if nothing says that more was signed: not where a batch lost its manifest, nor where a manifest is
/// damaged, nor where a checkpoint is by a key that was lost with the entries before it.
#[test]
fn a_ledger_goes_on_only_with_all_that_was_signed() {
    let shop = Shop::open();
    exported(&shop);
    let rotate = "keys rotate --purpose checkpoint --governance-key shop-governance.pem";
    let (exit, said) = shop.run(rotate, &[]);
    assert_eq!(exit, 0, "{said}");
    shop.json("export --out archive", &[]);
    shop.sell("second");
    shop.json("export --out archive", &[]);
    let restore = |n: &str, more: &[&str]| {
        let sh = format!("rm -rf {n}; mkdir {n}; cp -r shop/keys {n}/keys");
        shell(shop.dir.path(), &sh);
        let line = format!("--json --dir {n} restore --from damaged --trust {} --newest-checkpoint none", shop.id);
        let output = shop.command(Path::new(LEDGER), &line, &[]).args(more).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let closed = |n: &str| {
        let (exit, said) = restore(n, &["--accept-loss", "the disk"]);
        assert!(exit == 0 && said.contains(r#""fate":"closed""#), "{said}");
        let (exit, said) = shop.verify(n, "");
        assert_eq!(exit, 0, "{said}");
        let line = format!("--dir {n} submit commands");
        let said = text(&shop.command(Path::new(LEDGER), &line, &[]).output().unwrap());
        assert!(said.contains("closed.json"), "{said}");
        let line = format!("--dir {n}-next init --origin ledger.example/next --succeeds {n}/closed.json");
        let output = shop.command(Path::new(LEDGER), &line, &[]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    // The last batch has no manifest: it was begun, and so checkpoints were signed for it.
    shell(shop.dir.path(), "cp -r archive damaged; rm damaged/marketplace/*/*-00000004-*/manifest.json");
    let (exit, said) = shop.verify("damaged", "");
    assert!(exit == 0 && said.contains("1 more has no manifest yet"), "{said}");
    let (exit, said) = restore("one", &[]);
    assert!(exit == 2 && said.contains("-00000004-") && said.contains("two histories"), "{said}");
    let (exit, said) = restore("one", &["--drill"]);
    assert!(exit == 0 && said.contains(r#""fate":"drill""#), "{said}");
    closed("one");
    // Its manifest is damaged.
    shell(
        shop.dir.path(),
        "rm -r damaged; cp -r archive damaged; for m in damaged/marketplace/*/*-00000004-*/manifest.json; do echo x >> $m; done",
    );
    let (exit, said) = restore("two", &[]);
    assert!(exit == 1 && said.contains("export_file_unexpected"), "{said}");
    closed("two");
    // The entries with which a checkpoint key came are lost; what it signed since cannot be verified.
    shell(shop.dir.path(), "rm -r damaged; cp -r archive damaged; rm damaged/marketplace/*/*-00000003-*/entries-*");
    closed("three");
    // Where all is there, it goes on, whatever else was damaged.
    shell(shop.dir.path(), "rm -r damaged; cp -r archive damaged; echo x > damaged/marketplace/stranger");
    let (exit, said) = restore("four", &[]);
    assert!(exit == 1 && said.contains("export_file_unexpected"), "{said}");
    let (exit, said) = restore("four", &["--accept-loss", "nothing"]);
    assert!(exit == 0 && said.contains(r#""fate":"continued""#), "{said}");
}

/// Private documents may go, and everything else stands; none goes with another, and whoever restores hears how many are gone.
#[test]
fn private_documents_go_alone() {
    let shop = Shop::open();
    exported(&shop);
    let documents = |db: &str| -> u64 {
        let count = rows(&shop.path(db), "SELECT count(*) FROM private_documents");
        count[0].trim_start_matches("Integer(").trim_end_matches(')').parse().unwrap()
    };
    let all = documents("shop/ledger.db");
    shop.sell("second");
    shop.json("export --out archive", &[]);
    let late = documents("shop/ledger.db") - all;
    assert!(all > 20 && late > 0, "{all} {late}");
    let restore = |n: &str, more: &[&str]| {
        shell(shop.dir.path(), &format!("mkdir {n}; cp -r shop/keys {n}/keys"));
        let line = format!("--json --dir {n} restore --from damaged --trust {} --newest-checkpoint none", shop.id);
        let output = shop.command(Path::new(LEDGER), &line, &[]).args(more).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(0), "{said}");
        let said: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        assert_eq!(said["fate"], "continued", "{said}");
        said["private_absent"].as_u64().unwrap()
    };
    shell(shop.dir.path(), "cp -r archive damaged");
    assert_eq!(restore("whole", &[]), 0);
    // The time of one batch's documents is over.
    shell(shop.dir.path(), "rm damaged/marketplace/*/*-00000001-*/private-*");
    let (exit, said) = shop.verify("damaged", "");
    assert!(exit == 0 && said.contains("1 of the files, with private documents, is not there"), "{said}");
    let (exit, said) = shop.verify("damaged", " --batches 1 --partial parts");
    assert_eq!(exit, 0, "{said}");
    assert_eq!(restore("over", &[]), all);
    assert_eq!(documents("over/ledger.db"), late);
    let (exit, said) = shop.verify("over", "");
    assert_eq!(exit, 0, "{said}");
    // One of them was changed: it alone is lost.
    let change = "rm -r damaged; cp -r archive damaged; for f in damaged/marketplace/*/*-00000001-*/private-*; do \
                  gunzip -c $f > lines; awk 'NR == 3 { sub(/example/, \"examine\") } { print }' lines | gzip > $f; done";
    shell(shop.dir.path(), change);
    let (exit, said) = shop.verify("damaged", "");
    assert!(exit == 1 && said.contains("export_digest_mismatch"), "{said}");
    assert_eq!(restore("changed", &["--accept-loss", "one document"]), 1);
    assert_eq!(documents("changed/ledger.db"), all + late - 1);
    let (exit, said) = shop.verify("changed", "");
    assert_eq!(exit, 0, "{said}");
}

/// Nothing is recorded as exported that is not there, and nobody's copy of a manifest stops the exports.
#[test]
fn what_is_taken_over_is_looked_at() {
    let shop = Shop::open();
    exported(&shop);
    // A copy of the archive, whose record the ledger has by another name.
    shell(shop.dir.path(), "cp -r archive copy; cp -r archive broken; rm broken/marketplace/*/*-00000002-*/entries-*");
    let (exit, said) = shop.run("export --out broken", &[]);
    assert!(exit == 2 && said.contains("MISSING") && said.contains("cannot be recorded"), "{said}");
    let (exit, said) = shop.run("exports --of broken", &[]);
    assert!(exit == 0 && said.contains("   1  ") && !said.contains("   2  "), "{said}");
    assert_eq!(shop.json("export --out copy", &[])["sequence"].as_u64(), Some(3));
    assert_eq!(shop.verify("copy", "").0, 0);
    // What is asked for by another name is not passed over in silence.
    for of in ["archive", "archive/", "./archive"] {
        let (exit, said) = shop.run(&format!("exports --check --of {of}"), &[]);
        assert!(exit == 0 && said.matches("all objects are").count() == 2, "{of}: {said}");
    }
    let (exit, said) = shop.run("exports --check --of nowhere", &[]);
    assert!(exit == 2 && said.contains("nothing was exported there") && said.contains("/archive"), "{said}");
    // Batch 1's manifest where batch 3 would be.
    let replay = "id=$(basename archive/marketplace/*/*-00000001-* | cut -c1-16); d=$(dirname archive/marketplace/*/*-00000001-*); \
                  mkdir $d/$id-00000003-000000; cp $d/$id-00000001-*/manifest.json $d/$id-00000003-000000/";
    shell(shop.dir.path(), replay);
    assert_eq!(shop.json("export --out archive", &[])["sequence"].as_u64(), Some(3));
    let (exit, said) = shop.verify("archive", "");
    assert!(exit == 1 && said.contains("export_file_unexpected"), "{said}");
}

/// What keeps others from writing to a restored ledger is in the database's file, and goes with it; and what is restored is what was signed also where
/// an earlier run made it.
#[test]
fn a_drill_stays_one_in_its_backups() {
    let shop = Shop::open();
    exported(&shop);
    let restore = |into: &str, more: &str| {
        shop.run_in(into, &format!("restore --from archive --trust {} --newest-checkpoint none {more}", shop.id))
    };
    let (exit, said) = restore("drill", "--drill");
    assert_eq!(exit, 0, "{said}");
    shell(
        shop.dir.path(),
        "mkdir moved copied; cp -r shop/keys moved; cp -r shop/keys copied; cp drill/ledger.db copied",
    );
    let (exit, said) = shop.run_in("drill", "backup moved/ledger.db");
    assert_eq!(exit, 0, "{said}");
    for dir in ["moved", "copied"] {
        let (exit, said) = shop.run_in(dir, "checkpoint");
        assert!(exit != 0 && said.contains("is held"), "{dir}: {said}");
        let (exit, said) = shop.verify(dir, "");
        assert_eq!(exit, 0, "{said}");
    }
    // Somebody changed it meanwhile: nothing is signed on top of it.
    shell(shop.dir.path(), "cp -r drill altered; cp -r shop/keys altered; cp -r shop/keys drill");
    let db = rusqlite::Connection::open(shop.path("altered/ledger.db")).unwrap();
    let triggers: Vec<String> = {
        let mut s = db.prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'").unwrap();
        s.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect()
    };
    triggers.iter().for_each(|name| db.execute_batch(&format!("DROP TRIGGER \"{name}\"")).unwrap());
    db.execute("UPDATE entries SET body = CAST(body || x'00' AS BLOB) WHERE chain = 0 AND idx = 3", []).unwrap();
    drop(db);
    let (exit, said) = restore("altered", "");
    assert!(exit == 2 && said.contains("was changed since (body_hash_mismatch"), "{said}");
    let (exit, said) = restore("drill", "");
    assert!(exit == 0 && said.contains("the ledger goes on"), "{said}");
    let (exit, said) = shop.run_in("drill", "checkpoint");
    assert_eq!(exit, 0, "{said}");
    // A checkpoint of another ledger says nothing of this archive.
    let (exit, said) = shop.run_in("other", "init --origin other.example.org");
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = shop.run_in("other", "checkpoint");
    assert_eq!(exit, 0, "{said}");
    std::fs::write(shop.path("other.txt"), said).unwrap();
    let (exit, said) = shop
        .run_in("none", &format!("restore --from archive --trust {} --newest-checkpoint other.txt --drill", shop.id));
    assert!(exit == 2 && said.contains("is of another ledger") && !said.contains("--accept-loss"), "{said}");
}

/// A place without the batches before is not where the next one belongs; and nobody else reads private documents.
#[test]
fn an_archive_that_is_not_there_gets_no_further_batch() {
    let shop = Shop::open();
    exported(&shop);
    let modes = shell(shop.dir.path(), "find archive -name 'private-*' -printf '%m '");
    assert!(!modes.is_empty() && modes.split_whitespace().all(|mode| mode == "600"), "{modes}");
    shell(shop.dir.path(), "mv archive elsewhere");
    let (exit, said) = shop.run("export --out archive", &[]);
    assert!(exit == 2 && said.contains("the 2 batches before are not here"), "{said}");
    shell(shop.dir.path(), "rm -r archive; mv elsewhere archive");
    assert_eq!(shop.json("export --out archive", &[])["sequence"].as_u64(), Some(3));
    assert_eq!(shop.verify("archive", "").0, 0);
    let (exit, said) = shop.run("export --out archive --location s3://bucket", &[]);
    assert!(exit == 2 && said.contains("--location"), "{said}");
}

/// An archive that was made in a directory and copied into a bucket is not locked there: it is neither recorded nor called locked.
#[test]
fn what_was_copied_into_a_bucket_is_not_locked() {
    let shop = Shop::open();
    exported(&shop);
    let bucket = block(S3::shared().make_bucket(true));
    let client = S3::shared().client();
    let files = shell(&shop.path("archive"), "find marketplace -type f");
    for key in files.lines() {
        let bytes = std::fs::read(shop.path("archive").join(key)).unwrap();
        block(client.put_object().bucket(&bucket).key(key).body(bytes.into()).send()).unwrap();
    }
    let (exit, said) = shop.run(&format!("export --out s3://{bucket} --retain-days 1"), &[]);
    assert!(exit == 2 && said.contains("UNLOCKED") && said.contains("cannot be recorded"), "{said}");
    let (exit, said) = shop.verify(&format!("s3://{bucket}"), " --locks");
    assert!(exit == 1 && said.contains("export_object_unlocked"), "{said}");
    assert_eq!(shop.verify(&format!("s3://{bucket}"), "").0, 0);
}
