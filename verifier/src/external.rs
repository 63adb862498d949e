//! A registry of signers that was given besides a ledger must agree with the ledger's own (FORMAT.md 10).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger_engine::hash::from_hex;

use crate::finding::{Code, Finding};
use crate::legacy::Signers;
use crate::legacy::signers::{Key, parse_key};
use crate::report::{KeyReport, Report};

fn key_of(report: &KeyReport) -> Option<Key> {
    parse_key(&STANDARD.encode(from_hex(&report.public_key)?)).ok()
}

/// What differs, by kid: first what the file says, then what it does not say.
fn differences(signers: &Signers, report: &Report) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let keys = report.keys();
    if let (Some(named), Some(id)) = (&signers.ledger_id, report.ledger_id())
        && *named != id.to_hex()
    {
        return vec![("ledger_id".into(), format!("expected {}, found {named}", id.to_hex()))];
    }
    let speaks = signers.registry_size.is_some()
        || signers.list.iter().any(|signer| signer.revoked_at.is_some() || signer.retired_at.is_some());
    let as_of = signers.registry_size.unwrap_or(u64::MAX);
    for signer in &signers.list {
        let Some(known) = keys.iter().find(|k| k.kid == signer.kid) else {
            found.push((signer.kid.clone(), "the ledger's registry has no such key".to_owned()));
            continue;
        };
        match &signer.key {
            Ok(key) if key_of(known).as_ref() == Some(key) => {}
            Ok(key) => {
                let expected = key_of(known).map_or_else(|| known.public_key.clone(), |k| k.fingerprint().to_hex());
                let given = key.fingerprint().to_hex();
                found.push((
                    signer.kid.clone(),
                    format!("SHA-256 of the public key: expected {expected}, found {given}"),
                ));
            }
            Err(why) => found.push((signer.kid.clone(), format!("the file's key cannot be used: {why}"))),
        }
        if signer.purpose.as_ref().is_some_and(|purpose| purpose != known.purpose) {
            let given = signer.purpose.as_deref().unwrap_or_default();
            found.push((signer.kid.clone(), format!("purpose: expected {}, found {given}", known.purpose)));
        }
        // As of the size that the file names, or of now.
        let retired = known.retired.as_ref().map(|(size, _)| *size).filter(|size| *size <= as_of);
        let says = signer.retired_at.or(signer.revoked_at.map(|_| retired.unwrap_or(0)));
        if says != retired && speaks {
            let shown = |size: Option<u64>| {
                size.map_or_else(|| "valid".to_owned(), |size| format!("retired at registry size {size}"))
            };
            found.push((signer.kid.clone(), format!("expected {}, found {}", shown(retired), shown(says))));
        }
    }
    for known in keys.iter().filter(|k| k.enrolled <= as_of) {
        if signers.find(&known.kid).is_none() {
            found.push((
                known.kid.clone(),
                format!("the file lacks this {} key of the ledger's registry", known.purpose),
            ));
        }
    }
    found
}

impl Report {
    /// Compares the ledger's registry with one that was given besides. Each difference is a fault; a ledger that could not be read
    /// is compared with nothing.
    #[must_use]
    pub fn with_external_registry(self, signers: &Signers) -> Report {
        if self.keys().is_empty() {
            return self.with_unchecked(
                "the registry of signers that was given: this run did not read the ledger's own".to_owned(),
            );
        }
        let finding = |(kid, evidence): (String, String)| Finding {
            code: Code::RegistryExternalMismatch,
            chain: None,
            place: format!("signers/{kid}"),
            evidence,
        };
        let found = differences(signers, &self).into_iter().map(finding).collect();
        self.with_faults(found)
    }
}
