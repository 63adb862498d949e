//! `ledger`: make a ledger, feed it commands, look at it, prove it.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    ledger::run(ledger::Cli::parse())
}
