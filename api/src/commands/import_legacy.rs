use std::path::{Path, PathBuf};

use audit_verify::Verdict;
use audit_verify::legacy::{LegacyReport, Signers, open_source, verify_adopted};
use audit_verify::name_of;
use ledger_engine::adoption::{AcceptedFindings, Adopted, AdoptedRegistry, Adoption};
use ledger_engine::hash::{Hash, sha256};
use ledger_engine::ledger::Appended;
use serde_json::{Value, json};

use crate::directory::{self, Place};
use crate::{CliError, output};

/// Adopt the audit_events of the system before: verify them, then record their count, head and root as one signed entry
///
/// From then on `audit-verify DIR SOURCE -s FILE` finds every later change of these rows, in any column. Rows are not copied,
/// and nothing of them is hashed anew. Repeat it while the old system still writes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file or directory of legacy audit events, or a postgres:// URL
    #[arg(required_unless_present = "database_url", conflicts_with = "database_url")]
    source: Option<String>,
    /// The database with the table of legacy audit events
    #[arg(short, long, value_name = "URL")]
    database_url: Option<String>,
    /// The table, with its schema if need be
    #[arg(long, default_value = "audit_events")]
    table: String,
    /// The public keys of legacy signers
    #[arg(short, long, value_name = "FILE")]
    signers: PathBuf,
    /// Adopt rows that do not verify: the report that `audit-verify --json` wrote on exactly these rows
    #[arg(long, value_name = "REPORT")]
    accept_findings: Option<PathBuf>,
    /// Say what would be recorded, and record nothing
    #[arg(long)]
    dry_run: bool,
}

/// What comes of the rows that were read.
enum Decision {
    Adopt(Box<Adoption>),
    /// The last adoption has all of them.
    Nothing,
    Refuse(&'static str, String),
}

/// A report that the user accepts, with the digest of its file.
struct Accepted {
    report: Value,
    sha256: Hash,
}

impl Accepted {
    fn read(path: &Path) -> Result<Accepted, CliError> {
        let bytes = std::fs::read(path).map_err(|e| CliError::Io(path.display().to_string(), e))?;
        let objects = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        let objects: Vec<Value> = objects.map_while(Result::ok).collect();
        let mut reports = objects.into_iter().filter(|o| o["format"] == "legacy-audit-report/1");
        match (reports.next(), reports.next()) {
            (Some(report), None) => Ok(Accepted { report, sha256: sha256(&[&bytes]) }),
            _ => Err(CliError::Usage(format!(
                "--accept-findings {}: not one report on a legacy chain; make it with `audit-verify SOURCE -s FILE --json`",
                path.display()
            ))),
        }
    }

    /// Whether it is about these rows, and finds what was found now.
    fn is_of(&self, now: &LegacyReport) -> bool {
        let now = now.to_json();
        ["rows", "root", "head_hash", "findings", "finding_counts"].iter().all(|m| self.report[m] == now[m])
    }
}

fn decide(report: &LegacyReport, signers: &Signers, before: &[Adopted], accepted: Option<&Accepted>) -> Decision {
    if let Some(wrong) = report.findings().iter().find(|f| f.code == audit_verify::Code::LegacyAdoptionMismatch) {
        let text = format!(
            "the rows adopted before are not the same any more: {}: {}; find out who changed them, nothing was recorded",
            wrong.place, wrong.evidence
        );
        return Decision::Refuse("ADOPTED_ROWS_CHANGED", text);
    }
    let findings = match (report.verdict, accepted) {
        (Verdict::Verified, None) => None,
        (Verdict::Verified, Some(_)) => {
            let text = "the chain verifies; leave --accept-findings away".to_owned();
            return Decision::Refuse("FINDINGS_DIFFER", text);
        }
        (Verdict::Broken, None) => {
            let text = format!(
                "{}; read the whole report of `audit-verify SOURCE -s FILE --json`, and if the rows are to be adopted as they are, give it \
                 with --accept-findings",
                report.headline()
            );
            return Decision::Refuse("CHAIN_BROKEN", text);
        }
        (Verdict::Broken, Some(accepted)) if !accepted.is_of(report) => {
            let text = format!(
                "the report accepted is not of these rows as they are now ({} findings in {} rows); make it again and read it again",
                report.faults(),
                report.rows
            );
            return Decision::Refuse("FINDINGS_DIFFER", text);
        }
        (Verdict::Broken, Some(accepted)) => {
            let mut counts: Vec<(String, u64)> =
                report.counts.iter().map(|(code, n)| (code.as_str().to_owned(), *n)).collect();
            counts.sort();
            Some(AcceptedFindings { report_sha256: accepted.sha256, counts })
        }
        _ => return Decision::Refuse("CHAIN_NOT_CHECKED", report.headline()),
    };
    let (Some(root), Some(head_hash)) = (report.root, report.last_hash) else {
        let text = "a row could not be read, so no root would cover it: mend the source".to_owned();
        return Decision::Refuse("ROW_NOT_READ", text);
    };
    if before.last().is_some_and(|last| last.adoption.count == report.rows) {
        return Decision::Nothing;
    }
    let usable = |k: &audit_verify::legacy::KeyReport| k.key.as_ref().ok().map(|key| (k.kid.clone(), key.1));
    let registry = AdoptedRegistry { sha256: signers.sha256(), keys: report.keys.iter().filter_map(usable).collect() };
    let (first, last) = (report.first.clone(), report.last.clone());
    let adoption = Adoption { count: report.rows, root, head_hash, first, last, registry, previous: None, findings };
    Decision::Adopt(Box::new(adoption))
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (reader, _) = directory::reader(place).await?;
    let (before, id) = (reader.adoptions().await?, reader.id());
    drop(reader);
    let signers = Signers::read(&args.signers).map_err(|e| CliError::Usage(format!("--signers: {e}")))?;
    let accepted = args.accept_findings.as_deref().map(Accepted::read).transpose()?;
    let source = args.source.or(args.database_url).unwrap_or_default();
    let shown = name_of(&source);
    // Reading blocks, and the PostgreSQL client has a runtime of its own.
    let verified = tokio::task::spawn_blocking({
        let (shown, before, signers, table) = (shown.clone(), before.clone(), signers.clone(), args.table);
        move || {
            let mut opened = open_source(&source, &table)?;
            Ok(verify_adopted(&shown, opened.as_mut(), Some(&signers), &[], &before, &|_, _| true))
        }
    });
    let verified = verified.await.map_err(|e| CliError::Usage(format!("{shown}: the verification died: {e}")))?;
    let report = verified.map_err(|e: audit_verify::legacy::LegacyError| CliError::Usage(format!("{shown}: {e}")))?;
    let adoption = match decide(&report, &signers, &before, accepted.as_ref()) {
        Decision::Adopt(adoption) => *adoption,
        Decision::Nothing => {
            let last = before.last().map_or(0, |last| last.index);
            let rows = report.rows;
            let object = json!({ "ok": true, "adopted": false, "index": last, "count": rows });
            let text = format!("nothing to adopt: entry {last} has all {rows} rows of {shown}, and they are the same");
            output::line(&if json { object.to_string() } else { text })?;
            return Ok(0);
        }
        Decision::Refuse(code, message) => {
            let object = json!({ "ok": false, "error": { "code": code, "message": message } });
            output::line(&if json { object.to_string() } else { format!("refused: {code}: {message}") })?;
            return Ok(if report.verdict == Verdict::NotChecked { 2 } else { 1 });
        }
    };
    let appended = if args.dry_run {
        None
    } else {
        let ledger = directory::open(place).await?;
        let appended = ledger.adopt_legacy(adoption.clone()).await;
        ledger.shutdown().await?;
        Some(appended?)
    };
    let index = appended.as_ref().and_then(|a: &Appended| a.entries.first()).map(|entry| entry.index);
    if json {
        let object = json!({
            "ok": true, "adopted": index.is_some(), "index": index, "count": adoption.count, "root": adoption.root.to_hex(),
            "head_hash": adoption.head_hash.to_hex(), "findings": report.faults(),
        });
        output::line(&object.to_string())?;
        return Ok(0);
    }
    let done = match index {
        Some(index) => format!("adopted {} rows of {shown} as entry {index} of chain 0", adoption.count),
        None => format!("would adopt {} rows of {shown}; nothing was recorded", adoption.count),
    };
    let known = match report.faults() {
        0 => String::new(),
        n => format!("with {n} findings, which are recorded\n"),
    };
    output::line(&format!(
        "{done}\n{known}head {}\nroot {}\nit proves the columns of these rows as of now, and no row written later; verify both with:\n\
         audit-verify {} --trust {id} {shown} -s {}",
        adoption.head_hash,
        adoption.root,
        if place.database.is_some() { "\"$DATABASE_URL\"".to_owned() } else { place.dir.display().to_string() },
        args.signers.display(),
    ))?;
    Ok(0)
}
