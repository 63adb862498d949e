use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use audit_verify::{Report, verify_path};
use indicatif::ProgressBar;
use ledger_engine::domain::projection::{Cell, ORDERS, Row};
use ledger_engine::hash::Hash;
use ledger_engine::ledger::Ledger;
use rusqlite::Connection;

use super::submit::{Outcome, Summary, submit_lines};
use crate::directory::{self, Elsewhere, NewLedger, Place};
use crate::output::line;
use crate::signers::Signing;
use crate::{CliError, output};

/// Run a whole marketplace day into a fresh ledger, prove it, tamper with copies, and see each caught
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to put the ledgers; must not exist [default: a new directory among the temporary files]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

/// A way to tamper: what a person would call it, and the SQL that does it.
const TAMPERINGS: [(&str, &str); 5] = [
    (
        "an order's total is rewritten in its body",
        "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), '\"amount\":', '\"amount\":9') AS BLOB) WHERE idx = (SELECT min(idx) FROM entries WHERE event_type = 'order.created')",
    ),
    (
        "a refund is deleted",
        "DELETE FROM entries WHERE idx = (SELECT max(idx) FROM entries WHERE event_type = 'order.refunded')",
    ),
    (
        "a payment is backdated by a day",
        "UPDATE entries SET recorded_at_us = recorded_at_us - 86400000000 WHERE idx = (SELECT max(idx) FROM entries WHERE event_type = 'payment.captured')",
    ),
    (
        "an order is marked refunded in the read model",
        "UPDATE orders SET status = 'refunded' WHERE rowid = (SELECT min(rowid) FROM orders WHERE status = 'finalized')",
    ),
    (
        "the last commit is cut off",
        "DELETE FROM entries WHERE idx >= (SELECT max(first_index) FROM commits); DELETE FROM private_documents WHERE idx >= (SELECT max(first_index) FROM commits); DELETE FROM commit_signatures WHERE first_index = (SELECT max(first_index) FROM commits); DELETE FROM commits WHERE first_index = (SELECT max(first_index) FROM commits)",
    ),
];

fn io(what: &Path) -> impl FnOnce(std::io::Error) -> CliError + '_ {
    move |e| CliError::Io(what.display().to_string(), e)
}

fn fresh() -> PathBuf {
    let base = std::env::temp_dir();
    (1..).map(|n| base.join(format!("ledger-demo-{n}"))).find(|p| !p.exists()).unwrap_or(base)
}

pub(crate) async fn run(json: bool, args: Args) -> Result<u8, CliError> {
    let base = args.into.unwrap_or_else(fresh);
    std::fs::create_dir(&base).map_err(io(&base))?;
    let (dir, governance) = (base.join("shop"), base.join("governance.pem"));
    let place = Place { dir: dir.clone(), database: None, signing: Signing::default() };
    let origin = "ledger.example/demo".to_owned();
    directory::create(NewLedger {
        place: &place,
        governance_key: &governance,
        origin,
        chains: 1,
        succeeds: None,
        elsewhere: Elsewhere::default(),
    })
    .await?;
    let day = ledger_fixtures::recorded_day().map_err(CliError::Usage)?;
    let commands = base.join("day.jsonl");
    std::fs::write(&commands, &day).map_err(io(&commands))?;

    let ledger = directory::open(&place).await?;
    let id = ledger.id();
    let started = Instant::now();
    let summary = submit(&ledger, day).await?;
    let seconds = started.elapsed().as_secs_f64();
    let orders = ledger.store().rows(&ORDERS, 0)?;
    let notes = ledger.shutdown().await?;
    drop(ledger);
    if !json {
        tell_day(&commands, &summary, seconds, &orders)?;
        line("\nCheckpoint, the signed head that an auditor keeps:\n")?;
        for text in notes.iter().flat_map(|n| n.to_string().lines().map(str::to_owned).collect::<Vec<_>>()) {
            line(&format!("  {text}"))?;
        }
        line(&format!("\n$ audit-verify {} --trust {id}\n", dir.display()))?;
    }
    let started = Instant::now();
    let report = verify_path(&dir, Some(id));
    let verified_ms = started.elapsed().as_millis() as u64;
    if !json {
        line(report.to_text().trim_end())?;
        line(&format!(
            "  in {verified_ms} ms\n\nNow somebody with the database, and without the keys, tampers with a copy:\n"
        ))?;
    }
    let mut caught = Vec::new();
    for (n, (what, sql)) in TAMPERINGS.iter().enumerate() {
        let report = tamper(&base.join(format!("tampered-{}", n + 1)), &dir, sql, id)?;
        if !json {
            // A checkpoint that contradicts the ledger says more than the rows that do.
            let findings = report.findings();
            let signed = findings.iter().find(|f| f.place.starts_with("checkpoints"));
            let place = signed.or(findings.first());
            let place = place.map_or_else(String::new, |f| format!("{} at {}", f.code.as_str(), f.place));
            let more = if findings.len() > 1 { format!(", and {} more", findings.len() - 1) } else { String::new() };
            line(&format!("  {what}\n    {}: {place}{more}", report.verdict().as_str()))?;
        }
        caught.push(report.exit() == 1);
    }
    let good = report.exit() == 0 && caught.iter().all(|c| *c);
    if json {
        let object = serde_json::json!({
            "ok": good, "dir": base, "ledger_id": id.to_hex(), "accepted": summary.accepted, "repeated": summary.repeated,
            "refused": summary.refused, "refusals": summary.refusals, "entries": summary.entries, "orders": statuses(&orders),
            "report": report.to_json(), "tampered": caught,
        });
        line(&object.to_string())?;
    } else {
        let show = base.display();
        line(&format!(
            "\nLook around:\n  ledger --dir {show}/shop log --type order.refunded --limit 3\n  ledger --dir {show}/shop order {}",
            first_refunded(&orders)
        ))?;
        line(&format!("  audit-verify {show}/tampered-1 --trust {id}\n"))?;
    }
    Ok(u8::from(!good))
}

async fn submit(ledger: &Ledger, day: Vec<u8>) -> Result<Summary, CliError> {
    let progress = ProgressBar::hidden();
    let input = Box::new(std::io::Cursor::new(day));
    let mut shown: BTreeMap<&'static str, (u64, String)> = BTreeMap::new();
    let mut summary = submit_lines(ledger, input, &progress, |number, outcome, _| {
        if let Outcome::Refused { code, message } = outcome {
            shown.entry(code).or_insert_with(|| (number, message.clone()));
        }
        Ok(())
    })
    .await
    .map_err(|e| e.named("the day"))?;
    summary.examples = shown;
    Ok(summary)
}

fn tell_day(commands: &Path, summary: &Summary, seconds: f64, orders: &[Row]) -> Result<(), CliError> {
    let Summary { accepted, repeated, refused, entries, .. } = summary;
    line(&format!("A marketplace day: {} orders, commands in {}\n", orders.len(), commands.display()))?;
    line(&format!("  {accepted} accepted, {repeated} repeated, {refused} refused"))?;
    line(&format!(
        "  {entries} signed, linked entries in {seconds:.1} s, every answer durable\n\nRefused, and the rest went on:\n"
    ))?;
    for (code, (number, message)) in &summary.examples {
        let count = summary.refusals.get(code).copied().unwrap_or_default();
        let message: String = output::safe(message).chars().take(90).collect();
        line(&format!("  {count:>5} {code:<22} line {number}: {message}"))?;
    }
    line("\nOrders now:\n")?;
    for (status, (count, totals)) in statuses(orders) {
        let totals: Vec<String> = totals.iter().map(|(unit, sum)| format!("{sum} {unit}")).collect();
        line(&format!("  {count:>5} {status:<15} {}", totals.join("  ")))?;
    }
    Ok(())
}

/// Sums by currency and scale, in the smallest unit.
type Sums = BTreeMap<(String, i64), i64>;

/// Count and gross totals by currency, for each status.
fn statuses(orders: &[Row]) -> BTreeMap<String, (u64, BTreeMap<String, String>)> {
    let mut sums: BTreeMap<String, (u64, Sums)> = BTreeMap::new();
    for row in orders {
        if let (Cell::Text(status), Cell::Int(amount), Cell::Text(currency), Cell::Int(scale)) =
            (&row.cells[3], &row.cells[6], &row.cells[7], &row.cells[8])
        {
            let entry = sums.entry(status.clone()).or_default();
            entry.0 += 1;
            *entry.1.entry((currency.clone(), *scale)).or_default() += amount;
        }
    }
    let decimal = |sum: i64, scale: i64| {
        let (divisor, width) = (10_i64.pow(scale.clamp(0, 4) as u32), scale.clamp(0, 4) as usize);
        if width == 0 { sum.to_string() } else { format!("{}.{:0width$}", sum / divisor, sum % divisor) }
    };
    let of = |sums: Sums| sums.into_iter().map(|((c, s), n)| (c, decimal(n, s))).collect();
    sums.into_iter().map(|(status, (n, s))| (status, (n, of(s)))).collect()
}

fn first_refunded(orders: &[Row]) -> String {
    let refunded = orders.iter().find(|r| r.cells[3] == Cell::Text("refunded".into()));
    match refunded.map(|r| &r.cells[2]) {
        Some(Cell::Text(id)) => id.clone(),
        _ => "ORDER_ID".into(),
    }
}

fn tamper(copy: &Path, original: &Path, sql: &str, trust: Hash) -> Result<Report, CliError> {
    std::fs::create_dir(copy).map_err(io(copy))?;
    let file = copy.join("ledger.db");
    std::fs::copy(original.join("ledger.db"), &file).map_err(io(&file))?;
    let damage = || -> rusqlite::Result<()> {
        let db = Connection::open(&file)?;
        let mut s = db.prepare("SELECT name FROM sqlite_master WHERE type = 'trigger'")?;
        let triggers: Vec<String> = s.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
        triggers.iter().try_for_each(|t| db.execute_batch(&format!("DROP TRIGGER {t}")))?;
        db.execute_batch(sql)
    };
    damage().map_err(|e| CliError::Usage(format!("cannot tamper with {}: {e}", file.display())))?;
    Ok(verify_path(copy, Some(trust)))
}
