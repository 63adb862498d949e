//! The key file that private keys of deliveries are sealed under where no service does it: 64 hex characters in each line. The first line
//! seals; all of them open, so that a new key is put before the old ones.

use std::future::ready;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::stream::{self, Fresh};
use super::{CONTENT_KEY_BYTES, ContentKey};
use crate::hash::{from_hex, sha256, to_hex};
use crate::keys::{KeyFileError, read_secret, write_secret};
use crate::signer::remote::RemoteError;
use crate::signer::sealing::{Opening, Sealed, SealingKey};
use crate::signer::{Keeper, Pending};

/// The file. It is read each time, so that a new key needs no restart.
pub struct OwnKey(PathBuf);

impl OwnKey {
    /// The key in this file.
    pub fn new(path: PathBuf) -> OwnKey {
        OwnKey(path)
    }

    /// Writes a file with one key, which must not exist.
    pub fn write(path: &Path, random: [u8; CONTENT_KEY_BYTES]) -> Result<(), KeyFileError> {
        let random = Zeroizing::new(random);
        write_secret(path, Zeroizing::new(format!("{}\n", to_hex(&random[..]))).as_bytes())
    }

    /// The keys by what the history calls them, the one that seals first.
    fn keys(&self) -> Result<Vec<(String, ContentKey)>, KeyFileError> {
        let text = read_secret(&self.0)?;
        let key = |line: &str| {
            let bytes = Zeroizing::new(from_hex(line.trim())?);
            let name = sha256(&[b"ledger/delivery-key/v1\0", &bytes]).to_hex();
            let key = ContentKey::new(bytes[..].try_into().ok()?);
            Some((format!("file:{}", &name[..16]), key))
        };
        let keys: Option<Vec<_>> = text.lines().filter(|line| !line.trim().is_empty()).map(key).collect();
        keys.filter(|keys| !keys.is_empty()).ok_or_else(|| KeyFileError::Malformed {
            path: self.0.clone(),
            reason: "expected 64 hex characters in each line".into(),
        })
    }

    fn sealed(&self, secret: &[u8], context: &[u8]) -> Result<Sealed, RemoteError> {
        let (source, key) = self.keys().map_err(unread)?.swap_remove(0);
        let (mut fresh, mut bytes) = (Fresh { salt: [0; 32], prefix: [0; 7] }, Vec::new());
        let filled = getrandom::fill(&mut fresh.salt).and_then(|()| getrandom::fill(&mut fresh.prefix));
        filled.map_err(|_| RemoteError::passing("the system gives no randomness"))?;
        stream::seal(&key, &fresh, context, secret, &mut bytes).map_err(lasting)?;
        Ok(Sealed { source, bytes })
    }

    fn opened(&self, sealed: &Sealed, context: &[u8]) -> Result<Zeroizing<Vec<u8>>, RemoteError> {
        let (_, key) =
            self.keys().map_err(unread)?.into_iter().find(|(name, _)| *name == sealed.source).ok_or_else(|| {
                RemoteError::lasting(format!("it was sealed under {}, which is not in the key file", sealed.source))
            })?;
        let mut opened = Zeroizing::new(Vec::new());
        stream::open(&key, context, &mut &sealed.bytes[..], &mut *opened).map_err(lasting)?;
        Ok(opened)
    }
}

/// A file that cannot be read now may be on a disk that comes back.
fn unread(e: KeyFileError) -> RemoteError {
    match e {
        KeyFileError::Io { .. } => RemoteError::passing(e.to_string()),
        e => lasting(e),
    }
}

fn lasting(e: impl std::fmt::Display) -> RemoteError {
    RemoteError::lasting(e.to_string())
}

impl SealingKey for OwnKey {
    fn seal<'a>(&'a self, secret: &'a [u8], context: &'a [u8]) -> Pending<'a, Result<Sealed, RemoteError>> {
        Box::pin(ready(self.sealed(secret, context)))
    }

    fn open<'a>(&'a self, sealed: &'a Sealed, context: &'a [u8]) -> Opening<'a> {
        Box::pin(ready(self.opened(sealed, context)))
    }

    fn keeper(&self) -> Keeper {
        Keeper::Local
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_line_seals_and_the_old_ones_still_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("delivery.key");
        let key = OwnKey::new(path.clone());
        assert!(key.keys().is_err(), "there is no file");
        OwnKey::write(&path, [7; 32]).unwrap();
        let old = key.seal(b"a secret", b"one").await.unwrap();
        assert!(!old.bytes.windows(8).any(|w| w == b"a secret"));
        assert_eq!(*key.open(&old, b"one").await.unwrap(), b"a secret");
        assert!(key.open(&old, b"another").await.is_err(), "of another delivery");
        std::fs::remove_file(&path).unwrap();
        write_secret(&path, format!("{}\n{}\n", "08".repeat(32), "07".repeat(32)).as_bytes()).unwrap();
        let new = key.seal(b"a secret", b"one").await.unwrap();
        assert_ne!(new.source, old.source);
        for sealed in [&old, &new] {
            assert_eq!(*key.open(sealed, b"one").await.unwrap(), b"a secret");
        }
        std::fs::remove_file(&path).unwrap();
        OwnKey::write(&path, [8; 32]).unwrap();
        let lost = key.open(&old, b"one").await.unwrap_err();
        assert!(lost.reason.contains(&old.source) && !lost.again, "{lost}");
        std::fs::remove_file(&path).unwrap();
        write_secret(&path, b"08").unwrap();
        assert!(key.keys().err().unwrap().to_string().contains("64 hex"));
    }
}
