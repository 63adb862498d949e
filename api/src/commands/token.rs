use crate::directory::Place;
use crate::serve::{Caller, DEV_CLAIMS, DevKey, Role, mint};
use crate::{CliError, output};

/// Make a token for a development server (`ledger serve --dev`)
///
/// It is signed with a secret in the ledger's directory, which only a server with --dev believes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Who: a person's id, or `service:<name>`
    #[arg(long, value_name = "ID")]
    sub: String,
    /// What they are; can be repeated
    #[arg(long, required = true, value_enum)]
    role: Vec<Role>,
    /// How long it is good
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    ttl: u64,
}

pub(crate) fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    if !DevKey::path(&place.dir).exists() {
        let text = format!(
            "{} holds no development ledger: `ledger serve --dev` makes one. Tokens for production come from your issuer",
            place.dir.display()
        );
        return Err(CliError::Usage(text));
    }
    let caller = Caller::new(&args.sub, args.role).ok_or_else(|| {
        CliError::Usage(
            "--sub and --role do not go together: service:<name> has the role service alone, and people have others"
                .into(),
        )
    })?;
    let token = mint(&DevKey::read(&place.dir)?, DEV_CLAIMS, &caller, args.ttl)?;
    output::line(&if json { serde_json::json!({ "ok": true, "token": token }).to_string() } else { token })?;
    Ok(0)
}
