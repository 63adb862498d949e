//! The signers that a command has: the private keys in the ledger's directory, and those that it is told of.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledger_engine::keys::{KeyFileError, PrivateKey, SigningKey, find_signing_key, read_signing_key};
use ledger_engine::public_key::PublicKey;
use ledger_engine::registry::{Purpose, Registry};
use ledger_engine::signer::keyring::{Keyring, SignerSource};
use ledger_engine::signer::kms::KmsSource;
use ledger_engine::signer::pkcs11::TokenSource;
use ledger_engine::signer::place::{KmsKey, SignerPlace};
use ledger_engine::signer::proxy::ProxySource;
use ledger_engine::signer::remote::Patience;
use ledger_engine::signer::{Keeper, Signer, SignerError};
use tokio::runtime::Handle;

use crate::CliError;

/// The runbooks' names of a key of AWS KMS, and of a signing proxy.
const KMS_KEY_ID: &str = "AUDIT_SIGNING_KMS_KEY_ID";
const PROXY_URL: &str = "SIGNING_PROXY_URL";
const ALGORITHM: &str = "AUDIT_SIGNING_ALG";

/// Where signers are, and what may sign.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Signers")]
pub(crate) struct Args {
    /// Keys that are not in keys/: pkcs11:…, awskms:KEY or https://PROXY; repeat it, or separate them by spaces
    #[arg(
        long = "signer",
        global = true,
        env = "LEDGER_SIGNERS",
        hide_env_values = true,
        value_delimiter = ' ',
        value_name = "SIGNER"
    )]
    pub(crate) signer: Vec<String>,
    /// Nothing but AWS KMS and PKCS#11 tokens signs [default: false]
    #[arg(long, global = true, env = "REQUIRE_KMS", value_name = "BOOL")]
    pub(crate) require_kms: Option<String>,
    /// Nothing but a signing proxy signs; with both, either does [default: false]
    #[arg(long, global = true, env = "REQUIRE_SIGNING_PROXY", value_name = "BOOL")]
    pub(crate) require_signing_proxy: Option<String>,
}

/// The same, read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signing {
    places: Vec<SignerPlace>,
    /// The guards that are on.
    guards: Vec<&'static str>,
    admitted: Vec<Keeper>,
}

/// Reads a switch.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// A variable of the environment that is set to something.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.trim().is_empty())
}

impl Args {
    /// The settings, or one line for each that is wrong.
    pub(crate) fn read(&self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Signing, Vec<String>> {
        let (mut signing, mut faults) = (Signing::default(), Vec::new());
        let given = self.signer.iter().filter(|text| !text.trim().is_empty());
        let of_kms = variable(KMS_KEY_ID).unwrap_or_default();
        let of_kms =
            of_kms.split([',', ' ']).filter(|id| !id.is_empty()).map(|id| (KMS_KEY_ID, format!("awskms:{id}")));
        let proxy = variable(PROXY_URL).map(|url| (PROXY_URL, url));
        for (name, text) in given.map(|text| ("signer", text.clone())).chain(of_kms).chain(proxy) {
            match SignerPlace::parse(&text) {
                Ok(place) if name == PROXY_URL && place.keeper() != Keeper::Proxy => {
                    faults.push(format!("{name}: not the URL of a signing proxy, https://…"));
                }
                // Named by a runbook's variable and by ours.
                Ok(place) if signing.places.contains(&place) => {}
                Ok(place) => signing.places.push(place),
                Err(e) => faults.push(format!("{name}: {e}")),
            }
        }
        if let Some(alg) = variable(ALGORITHM).filter(|alg| {
            !matches!(alg.to_ascii_lowercase().as_str(), "ed25519" | "eddsa" | "ed25519_sha_512" | "ed25519-sha-512")
        }) {
            faults.push(format!("{ALGORITHM} {alg:?}: this ledger signs by Ed25519 only; unset it, or say ed25519"));
        }
        let guards = [
            ("require_kms", &self.require_kms, &[Keeper::Kms, Keeper::Pkcs11][..]),
            ("require_signing_proxy", &self.require_signing_proxy, &[Keeper::Proxy]),
        ];
        for (name, given, keepers) in guards {
            match given.as_deref().filter(|text| !text.is_empty()).map_or(Ok(false), boolean) {
                Ok(false) => {}
                Ok(true) => {
                    signing.guards.push(name);
                    signing.admitted.extend(keepers);
                }
                Err(why) => faults.push(format!("{name}: {why}")),
            }
        }
        faults.extend(signing.check_guards());
        if faults.is_empty() { Ok(signing) } else { Err(faults) }
    }
}

impl Signing {
    /// What the guards forbid before anything is asked.
    fn check_guards(&self) -> Vec<String> {
        if self.guards.is_empty() {
            return Vec::new();
        }
        let guards = self.guards.join(" and ");
        let mut faults = Vec::new();
        for place in self.places.iter().filter(|place| !self.admitted.contains(&place.keeper())) {
            faults.push(format!("{guards}: forbids {place}; leave it away, or the guard"));
        }
        if !self.places.iter().any(|place| self.admitted.contains(&place.keeper())) {
            let missing = match self.guards.as_slice() {
                ["require_kms"] => {
                    "no key of AWS KMS or of a PKCS#11 token is named; set AUDIT_SIGNING_KMS_KEY_ID, or give --signer"
                }
                ["require_signing_proxy"] => "no signing proxy is named; set SIGNING_PROXY_URL, or give --signer",
                _ => "no signer is named; set AUDIT_SIGNING_KMS_KEY_ID or SIGNING_PROXY_URL, or give --signer",
            };
            faults.push(format!("{guards}: {missing}; local keys are refused"));
        }
        faults
    }

    /// Where keys are besides the directory, for people.
    pub(crate) fn describe(&self) -> String {
        let places: Vec<String> = self.places.iter().map(SignerPlace::to_string).collect();
        if places.is_empty() { "(key files only)".to_owned() } else { places.join(", ") }
    }

    /// Whether a guard is on.
    pub(crate) fn is_guarded(&self, guard: &str) -> bool {
        self.guards.contains(&guard)
    }

    /// Refuses key files that the guards forbid: those of valid keys that are not for emergencies.
    pub(crate) fn refuse_local(&self, keys: &Path, registry: &Registry) -> Result<(), CliError> {
        if self.guards.is_empty() {
            return Ok(());
        }
        for (path, key) in KeyDirectory(keys.to_owned()).read()? {
            let public_key = PublicKey::Ed25519(key.verifying_key().to_bytes());
            let usual = |r: &&ledger_engine::registry::KeyRecord| {
                r.key.public_key == public_key && r.retired.is_none() && r.justification.is_none()
            };
            if let Some(record) = registry.records().iter().find(usual) {
                return Err(CliError::Usage(format!(
                    "{}: refuses local keys, and {} holds the private key of {}; rotate to a key that is not in a file (`ledger keys \
                     rotate --from-kms`, `--from-pkcs11`, `--from-proxy`), and take the file away",
                    self.guards.join(" and "),
                    path.display(),
                    record.key.kid
                )));
            }
        }
        Ok(())
    }
}

fn source(place: &SignerPlace) -> Box<dyn SignerSource> {
    let patience = Patience::default();
    match place {
        SignerPlace::Pkcs11(uri) => Box::new(TokenSource::new(uri.clone(), patience)),
        SignerPlace::Kms(key) => Box::new(KmsSource::new(key.clone(), patience, Handle::current())),
        SignerPlace::Proxy(url) => Box::new(ProxySource::new(url.clone(), patience, Handle::current())),
    }
}

/// All Ed25519 private keys in a directory, whatever they are for: the registry knows. What else lies there is passed over.
struct KeyDirectory(PathBuf);

impl KeyDirectory {
    fn read(&self) -> Result<Vec<(PathBuf, SigningKey)>, KeyFileError> {
        let unreadable = |source| KeyFileError::Io { path: self.0.clone(), source };
        let mut paths = Vec::new();
        for item in std::fs::read_dir(&self.0).map_err(unreadable)? {
            paths.push(item.map_err(unreadable)?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|e| e == "pem"));
        paths.sort();
        let mut keys = Vec::new();
        for path in paths {
            keys.extend(find_signing_key(&path)?.map(|key| (path, key)));
        }
        Ok(keys)
    }

    fn signers(&self) -> Result<Vec<Arc<dyn Signer>>, KeyFileError> {
        Ok(self.read()?.into_iter().map(|(_, key)| Arc::new(key) as Arc<dyn Signer>).collect())
    }
}

/// Whether a file in the directory holds the private key.
pub(crate) fn has_file(keys: &Path, public_key: &PublicKey) -> bool {
    let of = |key: &SigningKey| PublicKey::Ed25519(key.verifying_key().to_bytes());
    KeyDirectory(keys.to_owned()).read().is_ok_and(|keys| keys.iter().any(|(_, key)| of(key) == *public_key))
}

impl SignerSource for KeyDirectory {
    fn signers(&self) -> Result<Vec<Arc<dyn Signer>>, SignerError> {
        self.signers().map_err(|e| SignerError { kid: self.0.display().to_string(), reason: e.to_string() })
    }
}

/// The signers for a ledger whose keys are in `keys`. Places elsewhere are asked when a key of theirs is needed.
pub(crate) fn keyring(keys: &Path, signing: &Signing) -> Result<Arc<Keyring>, KeyFileError> {
    let directory = KeyDirectory(keys.to_owned());
    let ring = Keyring::new(directory.signers()?).with_source(Box::new(directory));
    let ring = signing.places.iter().fold(ring, |ring, place| ring.with_source(source(place)));
    Ok(Arc::new(if signing.guards.is_empty() { ring } else { ring.admitting(&signing.admitted) }))
}

/// A key that somebody points at: a file, or a signer elsewhere.
pub(crate) enum Holder {
    /// In a file, of either algorithm.
    Here(PrivateKey),
    /// Elsewhere.
    Elsewhere(Arc<dyn Signer>),
}

impl Holder {
    /// Its public key.
    pub(crate) fn public_key(&self) -> Result<PublicKey, CliError> {
        match self {
            Holder::Here(key) => key.public_key().map_err(|e| CliError::Usage(e.to_string())),
            Holder::Elsewhere(signer) => Ok(PublicKey::Ed25519(signer.public_key())),
        }
    }

    /// A signature over `message`.
    pub(crate) async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        let none = || SignerError { kid: "the key".into(), reason: "the system gives no randomness".into() };
        match self {
            Holder::Here(key) => key.sign(message).ok_or_else(none),
            Holder::Elsewhere(signer) => signer.sign(message).await.map(|signature| signature.to_vec()),
        }
    }

    /// The signer of an Ed25519 key.
    pub(crate) fn signer(&self) -> Option<Arc<dyn Signer>> {
        match self {
            Holder::Here(PrivateKey::Ed25519(key)) => Some(Arc::new((**key).clone())),
            Holder::Here(PrivateKey::Rsa(_)) => None,
            Holder::Elsewhere(signer) => Some(Arc::clone(signer)),
        }
    }
}

fn away(e: SignerError) -> CliError {
    CliError::Usage(e.reason)
}

/// The signers of a place.
async fn ask(place: SignerPlace) -> Result<Vec<Arc<dyn Signer>>, CliError> {
    let source = source(&place);
    let asked = tokio::task::spawn_blocking(move || source.signers()).await;
    asked.map_err(|e| CliError::Usage(e.to_string()))?.map_err(away)
}

/// The one key that a text points at: the path of a file, or a signer. Of several keys of a signer those that `known` has are left out.
pub(crate) async fn holder(text: &str, known: &[PublicKey]) -> Result<Holder, CliError> {
    if !SignerPlace::is_meant(text) {
        return Ok(Holder::Here(PrivateKey::read(Path::new(text))?));
    }
    let place = SignerPlace::parse(text).map_err(|e| CliError::Usage(e.to_string()))?;
    let shown = place.to_string();
    let mut signers = ask(place).await?;
    if signers.len() > 1 {
        signers.retain(|signer| !known.contains(&PublicKey::Ed25519(signer.public_key())));
    }
    if let [signer] = signers.as_slice() {
        return Ok(Holder::Elsewhere(Arc::clone(signer)));
    }
    let keys: Vec<String> = signers.iter().map(|s| ledger_engine::hash::to_hex(&s.public_key())).collect();
    let hint = "name one, by ;object=LABEL or ;id=%XX in a PKCS#11 URI, by #PUBLIC-KEY after the URL of a proxy";
    Err(CliError::Usage(format!("{shown} has {} keys that could be meant ({}): {hint}", keys.len(), keys.join(", "))))
}

/// The same among the signers of a ledger: the keys that its registry has already are left out.
pub(crate) async fn incoming(text: &str, registry: &Registry) -> Result<Holder, CliError> {
    let known: Vec<PublicKey> = registry.records().iter().map(|r| r.key.public_key.clone()).collect();
    holder(text, &known).await
}

/// The governance key of a ledger, from its file or wherever it is.
pub(crate) async fn governance(text: &str, registry: &Registry) -> Result<Arc<dyn Signer>, CliError> {
    let current = registry.current(Purpose::Governance).and_then(|key| key.public_key.ed25519());
    let fits = |signer: &Arc<dyn Signer>| Some(signer.public_key()) == current;
    let reason =
        "not the governance key of this ledger, or not the valid governance key any more (`ledger keys` lists them)";
    if SignerPlace::is_meant(text) {
        let place = SignerPlace::parse(text).map_err(|e| CliError::Usage(e.to_string()))?;
        let shown = place.to_string();
        return ask(place).await?.into_iter().find(fits).ok_or_else(|| CliError::Usage(format!("{shown}: {reason}")));
    }
    let path = PathBuf::from(text);
    let signer = Arc::new(read_signing_key(&path)?) as Arc<dyn Signer>;
    if fits(&signer) {
        return Ok(signer);
    }
    Err(KeyFileError::Unusable { path, reason: reason.to_owned() }.into())
}

/// Where the private key is that comes.
#[derive(Debug, clap::Args)]
#[group(id = "from", multiple = false)]
pub(crate) struct From {
    /// The private key: a PKCS#8 PEM file, or a signer
    #[arg(long, value_name = "PRIVATE.pem|SIGNER")]
    key: Option<String>,
    /// The key is in AWS KMS: its id, alias/NAME or ARN
    #[arg(long, value_name = "KEY")]
    from_kms: Option<String>,
    /// The key is in a PKCS#11 token: pkcs11:token=…;object=…
    #[arg(long, value_name = "URI")]
    from_pkcs11: Option<String>,
    /// The key is behind a signing proxy: https://…, with #PUBLIC-KEY if it has several
    #[arg(long, value_name = "URL")]
    from_proxy: Option<String>,
}

impl From {
    /// What was given, as a path or a signer.
    pub(crate) fn text(&self) -> Result<Option<String>, CliError> {
        let refused = |flag: &str, e: String| CliError::Usage(format!("{flag}: {e}"));
        let of = |flag: &str, given: &Option<String>, keeper: Keeper| -> Result<Option<String>, CliError> {
            let Some(text) = given else { return Ok(None) };
            let place = SignerPlace::parse(text).map_err(|e| refused(flag, e.to_string()))?;
            if place.keeper() != keeper {
                return Err(refused(flag, format!("that is a {place}")));
            }
            Ok(Some(text.clone()))
        };
        if let Some(id) = &self.from_kms {
            let id = id.strip_prefix("awskms:").unwrap_or(id);
            KmsKey::parse(id).map_err(|e| refused("--from-kms", e.to_string()))?;
            return Ok(Some(format!("awskms:{id}")));
        }
        let token = of("--from-pkcs11", &self.from_pkcs11, Keeper::Pkcs11)?;
        let proxy = of("--from-proxy", &self.from_proxy, Keeper::Proxy)?;
        Ok(self.key.clone().or(token).or(proxy))
    }
}
