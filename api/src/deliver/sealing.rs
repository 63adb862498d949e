//! What seals the private keys of marketplace-managed deliveries: the key file of the directory, or a key in AWS KMS or a token.

use std::path::PathBuf;
use std::sync::Arc;

use ledger_engine::delivery::own_key::OwnKey;
use ledger_engine::signer::Keeper;
use ledger_engine::signer::kms::KmsSource;
use ledger_engine::signer::pkcs11::TokenSource;
use ledger_engine::signer::place::SignerPlace;
use ledger_engine::signer::remote::{Patience, RemoteError};
use ledger_engine::signer::sealing::{Sealed, SealingKey};
use tokio::runtime::Handle;
use zeroize::Zeroizing;

/// Both: what was sealed before there was a key elsewhere still opens.
pub(crate) struct Sealing {
    own: OwnKey,
    elsewhere: Option<Arc<dyn SealingKey>>,
}

/// A key that seals: AWS KMS or a token, with the label of the key.
pub(crate) fn place(text: &str) -> Result<Option<SignerPlace>, String> {
    match SignerPlace::parse(text).map_err(|e| e.to_string())? {
        SignerPlace::Proxy(_) => Err("a signing proxy does not seal; name a key of AWS KMS or of a token".into()),
        SignerPlace::Pkcs11(uri) if uri.object.is_none() => Err("name the AES key: add ;object=LABEL".into()),
        place => Ok(Some(place)),
    }
}

impl Sealing {
    /// Nothing is asked yet. Within a runtime.
    pub(crate) fn new(own: PathBuf, elsewhere: Option<&SignerPlace>) -> Sealing {
        let patience = Patience::default();
        let elsewhere = elsewhere.and_then(|place| {
            Some(match place {
                SignerPlace::Kms(key) => {
                    Arc::new(KmsSource::new(key.clone(), patience, Handle::current())) as Arc<dyn SealingKey>
                }
                SignerPlace::Pkcs11(uri) => Arc::new(TokenSource::new(uri.clone(), patience)),
                SignerPlace::Proxy(_) => return None,
            })
        });
        Sealing { own: OwnKey::new(own), elsewhere }
    }

    pub(crate) async fn seal(&self, secret: &[u8], context: &[u8]) -> Result<Sealed, RemoteError> {
        match &self.elsewhere {
            Some(key) => key.seal(secret, context).await,
            None => self.own.seal(secret, context).await,
        }
    }

    pub(crate) async fn open(&self, sealed: &Sealed, context: &[u8]) -> Result<Zeroizing<Vec<u8>>, RemoteError> {
        let keeper = match sealed.source.split_once(':') {
            Some(("file", _)) => return self.own.open(sealed, context).await,
            Some(("awskms", _)) => Keeper::Kms,
            Some(("pkcs11", _)) => Keeper::Pkcs11,
            _ => return Err(RemoteError::lasting("what was kept of the delivery is damaged")),
        };
        match self.elsewhere.as_ref().filter(|key| key.keeper() == keeper) {
            Some(key) => key.open(sealed, context).await,
            None => {
                let why = format!("it was sealed under {}; name that key as delivery_key", sealed.source);
                Err(RemoteError::lasting(why))
            }
        }
    }
}
