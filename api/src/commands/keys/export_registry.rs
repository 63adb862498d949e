//! `keys export-registry`.

use std::collections::HashMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger_engine::public_key::PublicKey;
use ledger_engine::registry::{Action, Registry};
use ledger_engine::stream::Stream;
use ledger_engine::time::rfc3339;
use serde_json::{Value, json};

use crate::directory::{self, Place};
use crate::{CliError, output};

/// Write signers.json: all public keys, retired ones too, in the form that the old verifier reads
///
/// Times are those of the entries, for people and old tools; what counts are the sizes beside them. Keys are never taken out:
/// without them nothing that they signed can be verified.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to write it [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// PEM, for RSA keys (PKCS#1).
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", lines.join("\n"))
}

fn signers(ledger_id: &str, registry: &Registry, entries: &HashMap<u64, (String, Option<String>)>) -> Value {
    let time = |size: u64| entries.get(&size).map(|(time, _)| time.as_str());
    let keys: Vec<Value> = registry
        .records()
        .iter()
        .map(|record| {
            let key = &record.key;
            let public_key = match &key.public_key {
                PublicKey::Ed25519(raw) => STANDARD.encode(raw),
                PublicKey::Rsa(der) => pem(der),
            };
            let mut object = json!({
                "signer_kid": key.kid, "algorithm": key.public_key.algorithm().as_str(), "public_key": public_key,
                "purpose": key.purpose.as_str(), "validFrom": time(record.enrolled_size),
                "enrolled_at_registry_size": record.enrolled_size,
            });
            if let Some(justification) = &record.justification {
                object["justification"] = json!(justification);
            }
            if let Some(retired) = &record.retired {
                object["revokedAt"] = json!(time(retired.registry_size));
                object["retired_at_registry_size"] = json!(retired.registry_size);
                object["cut"] = json!(retired.cut);
                if let Some(since) = &retired.compromised_since {
                    object["compromised_since"] = json!(since);
                }
                if let Some((_, Some(reason))) = entries.get(&retired.registry_size) {
                    object["reason"] = json!(reason);
                }
            }
            object
        })
        .collect();
    let head = registry.head(registry.size()).map(|h| h.to_hex());
    json!({ "ledger_id": ledger_id, "registry_size": registry.size(), "registry_head": head, "signers": keys })
}

pub(crate) async fn run(place: &Place, args: Args) -> Result<u8, CliError> {
    let (ledger, registry) = directory::reader(place).await?;
    let mut entries = HashMap::new();
    for entry in ledger.read_stream(Stream::Ledger).await? {
        let h = &entry.header;
        let object =
            entry.parse_body().ok().and_then(|b| b.payload.value("action").and_then(|a| a.as_object().cloned()));
        let reason = match object.and_then(|object| Action::read(&h.event_type, &object).ok()) {
            Some(Action::Revoke { reason, .. }) => Some(reason),
            _ => None,
        };
        entries.insert(h.revision, (rfc3339(h.recorded_at_us), reason));
    }
    let text = serde_json::to_string_pretty(&signers(&ledger.id().to_hex(), &registry, &entries))
        .map_err(|e| CliError::Usage(e.to_string()))?;
    match &args.out {
        Some(path) => {
            std::fs::write(path, text + "\n").map_err(|e| CliError::Io(path.display().to_string(), e))?;
            output::line(&format!("{}: {} keys", path.display(), registry.records().len()))?;
        }
        None => output::line(&text)?,
    }
    Ok(0)
}
