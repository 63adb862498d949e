//! Secrets on disk: PKCS#8 PEM private keys and the pseudonym key, readable by their owner only.
//!
//! The governance key is not among the server's keys: who runs the server cannot enrol keys (FORMAT.md 6).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ed25519_dalek::Signer as _;
pub use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::SecretDocument;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{ALGORITHM_OID, DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};

use zeroize::Zeroizing;

use crate::domain::command::is_service;
use crate::hash::{from_hex, to_hex};
use crate::public_key::{PublicKey, PublicKeyError};
use crate::registry::Purpose;
use crate::signer::LocalSigner;

/// A key file cannot be used. Names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It cannot be opened.
    #[error(
        "key file {path}: {source}; the ledger cannot write without it: check the path and who may read it, or restore it from your backup"
    )]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not a key.
    #[error("key file {path} is not an Ed25519 PKCS#8 PEM key: {reason}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It holds no key that can be used here.
    #[error("key file {path}: {reason}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Others may read it.
    #[error("key file {path} is readable by others (mode {mode:o}); run `chmod 600` on it")]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> KeyFileError + '_ {
    move |source| KeyFileError::Io { path: path.to_owned(), source }
}

/// Writes a new secret file with mode 0600. Never overwrites: the key there may be the only copy.
pub fn write_secret(path: &Path, contents: &[u8]) -> Result<(), KeyFileError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(io(path))?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(|e| {
        // Half a key is no key, and would stand in the way of the next attempt. The error that matters is the first one.
        let _ = fs::remove_file(path);
        io(path)(e)
    })
}

/// Reads a text that only its owner may read. It is wiped when it is dropped.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    check_private(path)?;
    read_text(path)
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    fs::read_to_string(path).map(Zeroizing::new).map_err(io(path))
}

/// Refuses a file that others may read.
fn check_private(path: &Path) -> Result<(), KeyFileError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(path).map_err(io(path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyFileError::Permissions { path: path.to_owned(), mode });
        }
    }
    Ok(())
}

/// The variable that names the file whose first line is the passphrase of encrypted key files.
pub const PASSPHRASE_FILE: &str = "LEDGER_KEY_PASSPHRASE_FILE";
/// The variable that holds the passphrase itself, where there is no file.
pub const PASSPHRASE: &str = "LEDGER_KEY_PASSPHRASE";
const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// The first line of a file that only its owner may read.
pub(crate) fn secret_line(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let text = read_secret(path)?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

/// A secret from the environment: the first line of the file that the one variable names, else what the other one holds.
pub(crate) fn secret_of_environment(file: &str, direct: &str) -> Result<Option<Zeroizing<String>>, String> {
    if let Some(path) = std::env::var_os(file).filter(|path| !path.is_empty()) {
        return secret_line(Path::new(&path)).map(Some).map_err(|e| format!("{file}: {e}"));
    }
    Ok(std::env::var(direct).ok().filter(|secret| !secret.is_empty()).map(Zeroizing::new))
}

/// The passphrase of encrypted key files, from the environment.
fn passphrase() -> Result<Zeroizing<String>, String> {
    secret_of_environment(PASSPHRASE_FILE, PASSPHRASE)?.ok_or_else(|| {
        format!("it is encrypted: give its passphrase by the variable {PASSPHRASE_FILE}, which names a file, or {PASSPHRASE}")
    })
}

/// Reads the text of an encrypted private key file (PKCS#8, PBES2: RFC 8018). `Err` says why it is none.
pub fn parse_encrypted_key(pem: &str, passphrase: &str) -> Result<SigningKey, String> {
    SigningKey::from_pkcs8_encrypted_pem(pem, passphrase)
        .map_err(|e| format!("it cannot be decrypted ({e}): the passphrase is wrong, or it is no Ed25519 key"))
}

/// Writes a private key as PKCS#8 PEM, version 1 (RFC 8410 7): OpenSSL 3.0 reads no other.
pub fn write_key(path: &Path, key: &SigningKey) -> Result<(), KeyFileError> {
    let malformed =
        |e: ed25519_dalek::pkcs8::Error| KeyFileError::Malformed { path: path.to_owned(), reason: e.to_string() };
    let key = KeypairBytes { secret_key: key.to_bytes(), public_key: None };
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(malformed)?;
    write_secret(path, pem.as_bytes())
}

/// The same, encrypted (PBES2: RFC 8018, scrypt and AES-256-CBC) with the passphrase from the environment.
pub fn write_encrypted_key(path: &Path, key: &SigningKey) -> Result<(), KeyFileError> {
    let unusable = |reason: String| KeyFileError::Unusable { path: path.to_owned(), reason };
    let passphrase = passphrase().map_err(unusable)?;
    if passphrase.is_empty() {
        return Err(unusable("the passphrase is empty".into()));
    }
    let key = KeypairBytes { secret_key: key.to_bytes(), public_key: None };
    let pem = key.to_pkcs8_encrypted_pem(&passphrase, LineEnding::LF).map_err(|e| unusable(e.to_string()))?;
    write_secret(path, pem.as_bytes())
}

/// Reads a private key.
pub fn read_signing_key(path: &Path) -> Result<SigningKey, KeyFileError> {
    signing_key_of(path, &read_secret(path)?)
}

/// Reads a private key from a file that may be something else, such as a certificate: then there is none, whoever may read it.
pub fn find_signing_key(path: &Path) -> Result<Option<SigningKey>, KeyFileError> {
    let pem = read_text(path)?;
    if !is_signing_key(&pem) {
        return Ok(None);
    }
    check_private(path)?;
    signing_key_of(path, &pem).map(Some)
}

fn signing_key_of(path: &Path, pem: &str) -> Result<SigningKey, KeyFileError> {
    if pem.contains(ENCRYPTED) {
        let key = passphrase().and_then(|passphrase| parse_encrypted_key(pem, &passphrase));
        return key.map_err(|reason| KeyFileError::Unusable { path: path.to_owned(), reason });
    }
    parse_key(pem).map_err(|reason| KeyFileError::Malformed { path: path.to_owned(), reason })
}

/// Whether the text of a file is meant to be an Ed25519 private key: no certificate, no public key, no key of another algorithm.
fn is_signing_key(pem: &str) -> bool {
    if pem.contains(ENCRYPTED) {
        return true;
    }
    if !pem.contains("-----BEGIN PRIVATE KEY-----") {
        return false;
    }
    // One that cannot be read is to be named, not passed over.
    let Ok((_, der)) = SecretDocument::from_pem(pem) else { return true };
    let info = pkcs8::PrivateKeyInfoRef::try_from(der.as_bytes());
    !info.is_ok_and(|info| info.algorithm.oid != ALGORITHM_OID)
}

/// Reads a private key that is for this purpose.
pub fn read_key(path: &Path, purpose: Purpose) -> Result<LocalSigner, KeyFileError> {
    Ok(LocalSigner::new(purpose, read_signing_key(path)?))
}

/// Reads the text of a private key file. `Err` says why it is none.
pub fn parse_key(pem: &str) -> Result<SigningKey, String> {
    SigningKey::from_pkcs8_pem(pem).map_err(|e| e.to_string())
}

/// A private key of either algorithm: whoever enrols it proves that he has it.
pub enum PrivateKey {
    /// Ed25519.
    Ed25519(Box<SigningKey>),
    /// RSA, which signs with PKCS#1 v1.5 here.
    Rsa(Box<RsaKeyPair>),
}

impl PrivateKey {
    /// Reads a PKCS#8 PEM file that nobody else may read; of RSA, an unencrypted one.
    pub fn read(path: &Path) -> Result<PrivateKey, KeyFileError> {
        let unusable = |reason: String| KeyFileError::Unusable { path: path.to_owned(), reason };
        let pem = read_secret(path)?;
        if pem.contains(ENCRYPTED) {
            return signing_key_of(path, &pem).map(|key| PrivateKey::Ed25519(Box::new(key)));
        }
        PrivateKey::parse(&pem).map_err(unusable)
    }

    /// Reads the text of such a file. `Err` says why it is none.
    pub fn parse(pem: &str) -> Result<PrivateKey, String> {
        if let Ok(key) = parse_key(pem) {
            return Ok(PrivateKey::Ed25519(Box::new(key)));
        }
        const FORM: &str = "not an unencrypted PKCS#8 PEM key (-----BEGIN PRIVATE KEY-----); `openssl pkey` makes one";
        let (label, der) = SecretDocument::from_pem(pem).map_err(|_| FORM.to_owned())?;
        if label != "PRIVATE KEY" {
            return Err(FORM.into());
        }
        let refused = |e| {
            format!(
                "neither an Ed25519 key nor an RSA key of 2048 to 4096 bits ({e}); sign the statement elsewhere instead"
            )
        };
        RsaKeyPair::from_pkcs8(der.as_bytes()).map(|key| PrivateKey::Rsa(Box::new(key))).map_err(refused)
    }

    /// Its public key.
    pub fn public_key(&self) -> Result<PublicKey, PublicKeyError> {
        match self {
            PrivateKey::Ed25519(key) => Ok(PublicKey::Ed25519(key.verifying_key().to_bytes())),
            PrivateKey::Rsa(key) => PublicKey::from_rsa(key.public().as_ref()),
        }
    }

    /// A signature over `message`. `None`: the system gives no randomness.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            PrivateKey::Ed25519(key) => Some(key.sign(message).to_bytes().to_vec()),
            PrivateKey::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).ok()?;
                Some(signature)
            }
        }
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Reads the PEM file of a public key.
pub fn read_public_key(path: &Path) -> Result<PublicKey, KeyFileError> {
    let pem = fs::read_to_string(path).map_err(io(path))?;
    PublicKey::from_pem(&pem).map_err(|e| KeyFileError::Unusable { path: path.to_owned(), reason: e.to_string() })
}

/// The per-ledger key that turns people's ids into pseudonyms. 32 bytes, kept with the server's secrets.
#[derive(Clone)]
pub struct PseudonymKey([u8; 32]);

impl PseudonymKey {
    /// From 32 secret bytes.
    pub fn new(bytes: [u8; 32]) -> PseudonymKey {
        PseudonymKey(bytes)
    }

    /// Reads 64 hex characters from a file.
    pub fn read(path: &Path) -> Result<PseudonymKey, KeyFileError> {
        PseudonymKey::parse(&read_secret(path)?).ok_or_else(|| KeyFileError::Malformed {
            path: path.to_owned(),
            reason: "expected 64 hex characters".into(),
        })
    }

    /// Reads the text of a key file: 64 hex characters, white space around them.
    pub fn parse(text: &str) -> Option<PseudonymKey> {
        from_hex(text.trim()).and_then(|b| b.try_into().ok()).map(PseudonymKey)
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<(), KeyFileError> {
        write_secret(path, format!("{}\n", to_hex(&self.0)).as_bytes())
    }

    /// The id that bodies and projections hold: services as they are, people as `p-` and 32 hex of a keyed BLAKE3.
    pub fn actor_id(&self, actor: &str) -> String {
        if is_service(actor) {
            return actor.to_owned();
        }
        let hash = blake3::keyed_hash(&self.0, actor.as_bytes());
        format!("p-{}", to_hex(&hash.as_bytes()[..16]))
    }
}

impl std::fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PseudonymKey(..)")
    }
}
