//! The signers that a command has: the private keys in the ledger's directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledger_engine::keys::{KeyFileError, find_signing_key};
use ledger_engine::signer::keyring::{Keyring, SignerSource};
use ledger_engine::signer::{Signer, SignerError};

/// All Ed25519 private keys in a directory, whatever they are for: the registry knows. What else lies there is passed over.
struct KeyDirectory(PathBuf);

impl KeyDirectory {
    fn read(&self) -> Result<Vec<Arc<dyn Signer>>, KeyFileError> {
        let unreadable = |source| KeyFileError::Io { path: self.0.clone(), source };
        let mut paths = Vec::new();
        for item in std::fs::read_dir(&self.0).map_err(unreadable)? {
            paths.push(item.map_err(unreadable)?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|e| e == "pem"));
        paths.sort();
        let mut signers: Vec<Arc<dyn Signer>> = Vec::new();
        for path in paths {
            signers.extend(find_signing_key(&path)?.map(|key| Arc::new(key) as Arc<dyn Signer>));
        }
        Ok(signers)
    }
}

impl SignerSource for KeyDirectory {
    fn signers(&self) -> Result<Vec<Arc<dyn Signer>>, SignerError> {
        self.read().map_err(|e| SignerError { kid: self.0.display().to_string(), reason: e.to_string() })
    }
}

/// The signers for a ledger whose keys are in `keys`.
pub(crate) fn keyring(keys: &Path) -> Result<Arc<Keyring>, KeyFileError> {
    let directory = KeyDirectory(keys.to_owned());
    let found = directory.read()?;
    Ok(Arc::new(Keyring::new(found).with_source(Box::new(directory))))
}
