use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledger_engine::genesis::{CHAINS_MAX, Genesis, is_origin};
use ledger_engine::public_key::PublicKey;
use ledger_engine::signer::Signer;
use ledger_engine::succession::Succession;

use crate::directory::{self, Elsewhere, NewLedger, Place};
use crate::{CliError, output, signers};

/// Room for it in the genesis body, beside all else, bytes.
const SUCCESSION_BYTES_MAX: usize = 60_000;

/// Make a new ledger: its directory, its keys, its genesis entries
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the ledger in checkpoints: a schema-less URL that you own
    #[arg(long, default_value = "ledger.example/orders", value_name = "NAME")]
    origin: String,
    /// How many chains; fixed for the life of the ledger
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(CHAINS_MAX)))]
    chains: u32,
    /// The file that `ledger restore --accept-loss` wrote: the ledger that this one takes the place of, for its genesis
    #[arg(long, value_name = "FILE")]
    succeeds: Option<PathBuf>,
    /// Where to write the governance key [default: beside the directory]. Keep it away from the server
    #[arg(long, value_name = "FILE")]
    governance_key: Option<PathBuf>,
    /// The governance key is not made, but is here: pkcs11:…, awskms:KEY or https://PROXY
    #[arg(long, value_name = "SIGNER", conflicts_with = "governance_key")]
    governance_signer: Option<String>,
    /// The same of the key that signs commits; otherwise keys/commit.pem is made
    #[arg(long, value_name = "SIGNER")]
    commit_signer: Option<String>,
    /// The same of the key that signs checkpoints; otherwise keys/checkpoint.pem is made
    #[arg(long, value_name = "SIGNER")]
    checkpoint_signer: Option<String>,
    /// The same of the key that signs licences; otherwise keys/licence.pem is made
    #[arg(long, value_name = "SIGNER")]
    licence_signer: Option<String>,
    /// The same of the key that signs exports; otherwise keys/export.pem is made, unless other keys are elsewhere
    #[arg(long, value_name = "SIGNER")]
    export_signer: Option<String>,
}

/// The key that a flag names; each must be another one.
async fn elsewhere(given: &Option<String>, known: &mut Vec<PublicKey>) -> Result<Option<Arc<dyn Signer>>, CliError> {
    let Some(text) = given else { return Ok(None) };
    let holder = signers::holder(text, known).await?;
    let public_key = holder.public_key()?;
    if known.contains(&public_key) {
        return Err(CliError::Usage(format!("{text}: that key has another purpose already; each needs its own")));
    }
    known.push(public_key);
    holder.signer().map(Some).ok_or_else(|| CliError::Usage(format!("{text}: must be an Ed25519 key")))
}

fn read_succession(path: &Path) -> Result<Succession, CliError> {
    let bytes = std::fs::read(path).map_err(|e| CliError::Io(path.display().to_string(), e))?;
    let shape =
        || format!("--succeeds {}: not what `ledger restore --accept-loss` writes, or changed since", path.display());
    let succession = Succession::decode(&bytes).ok_or_else(|| CliError::Usage(shape()))?;
    let size = succession.to_object().to_canonical().len();
    if size > SUCCESSION_BYTES_MAX {
        let text =
            format!("--succeeds {}: {size} bytes; a genesis has room for {SUCCESSION_BYTES_MAX}", path.display());
        return Err(CliError::Usage(text));
    }
    Ok(succession)
}

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    if !is_origin(&args.origin) {
        let text = "--origin: 1 to 200 bytes without spaces, control characters or '+'";
        return Err(CliError::Usage(text.into()));
    }
    let succeeds = args.succeeds.as_deref().map(read_succession).transpose()?;
    let governance_key = args.governance_key.unwrap_or_else(|| directory::governance_path(&place.dir));
    let mut known = Vec::new();
    let elsewhere = Elsewhere {
        governance: elsewhere(&args.governance_signer, &mut known).await?,
        commit: elsewhere(&args.commit_signer, &mut known).await?,
        checkpoint: elsewhere(&args.checkpoint_signer, &mut known).await?,
        licence: elsewhere(&args.licence_signer, &mut known).await?,
        export: elsewhere(&args.export_signer, &mut known).await?,
    };
    let governance_made = elsewhere.governance.is_none();
    let (origin, chains) = (args.origin, args.chains);
    let new = NewLedger { place, governance_key: &governance_key, origin, chains, succeeds, elsewhere };
    let genesis = directory::create(new).await?;
    let id = Genesis::ledger_id(&genesis.to_body().encode());
    if json {
        let object = serde_json::json!({
            "ok": true, "ledger_id": id.to_hex(), "dir": place.dir, "chains": genesis.chains, "origin": genesis.origin,
            "governance_key": governance_made.then_some(&governance_key),
            "governance_kid": genesis.governance_key.kid, "commit_kid": genesis.commit_key.kid,
            "checkpoint_kid": genesis.checkpoint_key.kid,
        });
        output::line(&object.to_string())?;
    } else {
        output::line(&format!("ledger      {}", place.dir.display()))?;
        output::line(&format!("ledger id   {id}"))?;
        let governance = args.governance_signer.unwrap_or_else(|| governance_key.display().to_string());
        output::line(&format!("governance  {governance}"))?;
        if let Some(succession) = &genesis.succeeds {
            let (id, lost) = (succession.ledger_id, succession.lost_entries());
            output::line(&format!("succeeds    {id}, of which {lost} signed entries are lost at least"))?;
        }
        output::line("")?;
        output::line("Give the ledger id to your auditors: whoever pins it pins keys, chains and rules.")?;
        if !governance_made {
            return Ok(0);
        }
        output::line("Move the governance key to a safe place: it alone can admit or retire keys.")?;
    }
    Ok(0)
}
