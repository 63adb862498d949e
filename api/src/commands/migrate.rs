use ledger_engine::store::StoreError;
use ledger_engine::store::postgres::migrate;

use crate::directory::Place;
use crate::{CliError, output};

/// Bring a PostgreSQL database to the schema of this program
///
/// Each missing step is applied in a transaction. Makes the roles ledger_owner, ledger_writer and ledger_auditor, and the
/// database's settings. Run it as a role that may create schemas and roles and alter the database.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Then give rights to login roles:\n  GRANT ledger_writer TO shop;  GRANT ledger_auditor TO auditor;"
)]
pub(crate) struct Args {}

pub(crate) async fn run(place: &Place, json: bool, _: Args) -> Result<u8, CliError> {
    let Some(url) = place.database.clone() else {
        return Err(CliError::Usage(
            "migrate needs --database URL, or DATABASE_URL; an embedded ledger has nothing to migrate".into(),
        ));
    };
    let migrated = tokio::task::spawn_blocking(move || migrate(&url))
        .await
        .unwrap_or_else(|e| Err(StoreError::Unavailable(format!("the migration died: {e}"))))?;
    if json {
        let object = serde_json::json!({ "ok": true, "applied": migrated.applied, "version": migrated.version });
        output::line(&object.to_string())?;
    } else {
        migrated.applied.iter().try_for_each(|step| output::line(&format!("applied {step}")))?;
        output::line(&format!("schema {}", migrated.version))?;
    }
    Ok(0)
}
