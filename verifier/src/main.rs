//! `audit-verify`: proves or refutes ledgers. Small, read-only, offline.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use audit_verify::{Code, verify_path};
use clap::Parser;
use ledger_engine::hash::Hash;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Prove or refute a ledger: hashes, links, signatures, keys, checkpoints, transitions, projections.
#[derive(Parser)]
#[command(name = "audit-verify", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 verified; 1 broken; 2 could not check, or identity not proven.\n\
    Every fault is listed in one run.\n\nExample:\n  audit-verify shop --trust 3fd1…\n\n\
    The source is only read; writers may go on meanwhile.")]
struct Cli {
    /// A ledger's directory, a backup (.db), or a dump (.json)
    #[arg(required_unless_present = "list_codes")]
    source: Vec<PathBuf>,
    /// The ledger id you were given, or a file that holds it (64 hex, or JSON with a member ledger_id)
    #[arg(long, value_name = "LEDGER_ID|FILE")]
    trust: Option<String>,
    /// Print one JSON object a source
    #[arg(long)]
    json: bool,
    /// List the codes of findings with their meaning
    #[arg(long)]
    list_codes: bool,
}

fn read_trust(text: &str) -> Result<Hash, String> {
    if let Some(id) = Hash::from_hex(text) {
        return Ok(id);
    }
    let file = std::fs::read_to_string(Path::new(text))
        .map_err(|e| format!("--trust {text}: neither 64 hex characters nor a readable file ({e})"))?;
    let json: serde_json::Value = serde_json::from_str(&file).unwrap_or_default();
    let id = json["ledger_id"].as_str().unwrap_or_else(|| file.trim());
    Hash::from_hex(id).ok_or_else(|| format!("--trust {text}: no ledger id in this file"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = std::io::stdout().lock();
    // A reader that has seen enough closes the pipe; the exit status still says what was found.
    let mut print = |text: String| drop(writeln!(out, "{}", text.trim_end()));
    if cli.list_codes {
        Code::ALL.iter().for_each(|c| print(format!("{:<30} {}", c.as_str(), c.meaning())));
        return ExitCode::SUCCESS;
    }
    let trust = match cli.trust.as_deref().map(read_trust).transpose() {
        Ok(trust) => trust,
        Err(e) => {
            eprintln!("audit-verify: {e}");
            return ExitCode::from(2);
        }
    };
    let mut exits = Vec::new();
    for source in &cli.source {
        let report = verify_path(source, trust);
        print(if cli.json { report.to_json().to_string() } else { report.to_text() });
        exits.push(report.exit());
    }
    ExitCode::from([1, 2].into_iter().find(|e| exits.contains(e)).unwrap_or(0))
}
