//! Connections to PostgreSQL.

use ledger_engine::connect::{MakeRustlsConnect, settings};
use postgres::{Client, Config};

pub(crate) use ledger_engine::connect::explain;

/// Connects to a `postgres://` URL. The second value serves to cancel statements. Errors name what to do and hold no
/// password.
pub(crate) fn connect(url: &str) -> Result<(Client, MakeRustlsConnect), String> {
    let (config, tls) = settings(url, "audit-verify")?;
    let client = Config::from(config).connect(tls.clone()).map_err(|e| explain(&e))?;
    Ok((client, tls))
}
