use std::path::PathBuf;

use clap::Subcommand;
use ledger_engine::domain::command::Command;
use ledger_engine::json::Object;
use ledger_engine::manifest::Manifest;

use crate::directory::{self, Place};
use crate::{CliError, output};

/// List what can be bought
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Record a SKU with its price, or one that was withdrawn again
    Add {
        /// The SKU's id, which clients send at checkout [default: the manifest's]
        #[arg(required_unless_present = "manifest")]
        id: Option<String>,
        /// What it is called [default: the manifest's title]
        #[arg(long, required_unless_present = "manifest")]
        title: Option<String>,
        /// What the Kernel signed of it, as it was received; needed where `ledger keys` lists a key of the purpose kernel
        #[arg(long, value_name = "FILE")]
        manifest: Option<PathBuf>,
        /// Price in the currency's unit at --scale: 1250 is 12.50 at scale 2
        #[arg(long)]
        amount: i64,
        /// ISO 4217, capital letters
        #[arg(long)]
        currency: String,
        /// Decimal digits after the point, 0 to 4
        #[arg(long, default_value_t = 2)]
        scale: i64,
    },
    /// End the sale of a SKU
    Withdraw {
        /// The SKU's id
        id: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
    },
}

const ACTOR: &str = "service:operator";

pub(crate) async fn run(place: &Place, json: bool, args: Args) -> Result<u8, CliError> {
    let (id, command) = match args.action {
        Action::Add { id, title, manifest, amount, currency, scale } => {
            let price = Object::new().with("amount", amount).with("currency", currency).with("scale", scale);
            let mut command = Object::new().with("command", "sku.list").with("price", price);
            let (mut id, mut title) = (id, title);
            if let Some(file) = manifest {
                let shown = file.display().to_string();
                let text = std::fs::read_to_string(&file).map_err(|e| CliError::Io(shown.clone(), e))?;
                let read =
                    Manifest::parse(&text).map_err(|e| CliError::Usage(format!("{shown} is no manifest: {e}")))?;
                (id, title) = (id.or(Some(read.id)), title.or(Some(read.title)));
                command.set("manifest", text);
            }
            command.set("title", title.unwrap_or_default());
            (id.unwrap_or_default(), command)
        }
        Action::Withdraw { id, reason } => {
            let mut command = Object::new().with("command", "sku.withdraw");
            command.set_some("reason", reason);
            (id, command)
        }
    };
    let command = command.with("actor", ACTOR).with("sku_id", id.as_str());
    let command = Command::from_object(command).map_err(|e| CliError::Usage(e.to_string()))?;
    let ledger = directory::open(place).await?;
    let result = ledger.append(&command, "SUBMIT").await;
    ledger.shutdown().await?;
    let appended = result?;
    let entry = appended.entries.first();
    let (event_type, index) = entry.map_or(("", 0), |e| (e.event_type.as_str(), e.index));
    output::line(&if json {
        serde_json::json!({ "ok": true, "sku_id": id, "event_type": event_type, "chain": appended.chain, "index": index })
            .to_string()
    } else {
        format!("{id}: {event_type}, entry {index} of chain {}", appended.chain)
    })?;
    Ok(0)
}
