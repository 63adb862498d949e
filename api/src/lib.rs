//! The `ledger` command line: arguments in, engine calls, answers out. No rules of its own.

mod archives;
mod commands;
mod counts;
mod deliver;
mod directory;
mod error;
mod output;
mod serve;
mod signers;
mod weighed;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use directory::{DIRECTORY, Place};
use signers::Signing;

pub use error::CliError;

/// A tamper-evident ledger of marketplace orders and deliveries.
///
/// Without a database server it keeps everything in one directory. `ledger demo` shows a whole day of it.
#[derive(Debug, Parser)]
#[command(name = "ledger", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 done; 1 something was refused or differs; 2 it could not be done.\n\
    To prove a ledger, use `audit-verify DIR --trust LEDGER_ID`.")]
pub struct Cli {
    /// The ledger's directory [default: ledger-data]
    #[arg(long, global = true, env = "LEDGER_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep entries in this PostgreSQL database instead; the directory then holds the keys
    ///
    /// postgres://user@host[,host…]/database?sslmode=verify-full&sslrootcert=FILE. Prepare it with `ledger migrate`.
    #[arg(long, global = true, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database: Option<String>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    signing: signers::Args,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // Much larger than the others.
    Serve(Box<serve::Args>),
    #[command(flatten)]
    Once(Once),
}

/// Commands that do one thing and end.
#[derive(Debug, Subcommand)]
enum Once {
    Demo(commands::demo::Args),
    Init(Box<commands::init::Args>),
    Migrate(commands::migrate::Args),
    Submit(commands::submit::Args),
    Order(commands::order::Args),
    Log(commands::log::Args),
    Proof(commands::proof::Args),
    Keys(Box<commands::keys::Args>),
    Checkpoint(commands::checkpoint::Args),
    Replay(commands::replay::Args),
    Backup(commands::backup::Args),
    Export(Box<commands::export::Args>),
    Exports(commands::exports::Args),
    Restore(commands::restore::Args),
    ImportLegacy(commands::import_legacy::Args),
    Token(commands::token::Args),
    Sku(commands::sku::Args),
    Artifact(commands::artifact::Args),
    OpenDelivery(commands::open_delivery::Args),
}

/// Runs one command and returns the exit status.
pub fn run(cli: Cli) -> ExitCode {
    let Cli { dir, database, json, signing, command } = cli;
    let database = database.filter(|url| !url.is_empty());
    let command = match command {
        Command::Serve(args) => return commands::serve::run(dir, database, json, *args, signing),
        Command::Once(command) => command,
    };
    let dir = dir.unwrap_or_else(|| DIRECTORY.into());
    let mut place = Place { dir, database, signing: Signing::default() };
    match signing.read(&signers::variable) {
        Ok(signing) => place.signing = signing,
        Err(faults) => return error::report(&CliError::Usage(faults.join("; ")), None, json),
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return error::report(&CliError::Io("cannot start the runtime".into(), e), None, json),
    };
    // The demo has a directory of its own.
    let shown = if place.database.is_some() { "the database".into() } else { place.dir.clone() };
    let shown = (!matches!(command, Once::Demo(_))).then_some(shown);
    match runtime.block_on(dispatch(&place, json, command)) {
        Ok(code) => ExitCode::from(code),
        Err(e) => error::report(&e, shown.as_deref(), json),
    }
}

async fn dispatch(place: &Place, json: bool, command: Once) -> Result<u8, CliError> {
    match command {
        Once::Demo(args) => commands::demo::run(json, args).await,
        Once::Init(args) => commands::init::run(place, json, *args).await,
        Once::Migrate(args) => commands::migrate::run(place, json, args).await,
        Once::Submit(args) => commands::submit::run(place, json, args).await,
        Once::Order(args) => commands::order::run(place, json, args).await,
        Once::Log(args) => commands::log::run(place, json, args).await,
        Once::Proof(args) => commands::proof::run(place, json, args).await,
        Once::Keys(args) => commands::keys::run(place, json, *args).await,
        Once::Checkpoint(args) => commands::checkpoint::run(place, json, args).await,
        Once::Replay(args) => commands::replay::run(place, json, args).await,
        Once::Backup(args) => commands::backup::run(place, json, args).await,
        Once::Export(args) => commands::export::run(place, json, *args).await,
        Once::Exports(args) => commands::exports::run(place, json, args).await,
        Once::Restore(args) => commands::restore::run(place, json, args).await,
        Once::ImportLegacy(args) => commands::import_legacy::run(place, json, args).await,
        Once::Token(args) => commands::token::run(place, json, args),
        Once::Sku(args) => commands::sku::run(place, json, args).await,
        Once::Artifact(args) => commands::artifact::run(place, json, args).await,
        Once::OpenDelivery(args) => commands::open_delivery::run(json, args),
    }
}
