//! Keys behind a signing proxy: an HTTPS service that keeps them and says who may use them. `api/SIGNERS.md` has its protocol.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client, Identity, Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use zeroize::Zeroizing;

use super::keyring::SignerSource;
use super::place::{ProxyUrl, SignerPlace};
use super::remote::{Patience, RemoteError, RemoteKey, RemoteSigner, within};
use super::{Keeper, Pending, Signer, SignerError};
use crate::hash::{hex_array, to_hex};
use crate::keys::{read_secret, secret_of_environment};

/// The variable that names the file whose first line is the API key.
pub const API_KEY_FILE: &str = "SIGNING_PROXY_API_KEY_FILE";
/// The variable that holds the API key itself, where there is no file.
pub const API_KEY: &str = "SIGNING_PROXY_API_KEY";
/// The variable that names the PEM file of the certificates that the proxy's own must lead to, instead of the system's.
pub const CA_FILE: &str = "SIGNING_PROXY_CA_FILE";
/// The variable that names the PEM file of the client certificate.
pub const CERTIFICATE_FILE: &str = "SIGNING_PROXY_CERT_FILE";
/// The variable that names the PEM file of the client certificate's private key.
pub const CERTIFICATE_KEY_FILE: &str = "SIGNING_PROXY_KEY_FILE";

/// The longest answer that is read.
const ANSWER_MAX: usize = 64 * 1024;

#[derive(Serialize)]
struct SignRequest<'a> {
    alg: &'a str,
    public_key: &'a str,
    message: String,
}

#[derive(Deserialize)]
struct SignAnswer {
    signature: String,
}

#[derive(Deserialize)]
struct KeysAnswer {
    keys: Vec<KeyAnswer>,
}

#[derive(Deserialize)]
struct KeyAnswer {
    alg: String,
    public_key: String,
}

#[derive(Deserialize)]
struct HealthAnswer {
    ok: bool,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    code: String,
    message: String,
}

/// An error with what caused it: the first line alone never says that a certificate has expired.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source()).map(|e| format!(": {e}"));
    std::iter::once(error.to_string()).chain(causes).collect()
}

fn file(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn read(variable: &str, path: &Path) -> Result<Vec<u8>, RemoteError> {
    std::fs::read(path).map_err(|e| RemoteError::lasting(format!("{variable}: {}: {e}", path.display())))
}

/// The connection to a proxy.
struct Connection {
    base: String,
    client: Client,
    api_key: Option<Zeroizing<String>>,
}

impl Connection {
    /// API key and certificates come from the environment.
    fn open(base: &str, patience: &Patience) -> Result<Connection, RemoteError> {
        let unusable = |what: &str, e: reqwest::Error| RemoteError::lasting(format!("{what}: {}", chain(&e)));
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(patience.attempt.min(Duration::from_secs(2)));
        if let Some(path) = file(CA_FILE) {
            let pem = reqwest::Certificate::from_pem_bundle(&read(CA_FILE, &path)?);
            builder = builder.tls_certs_only(pem.map_err(|e| unusable(CA_FILE, e))?);
        }
        match (file(CERTIFICATE_FILE), file(CERTIFICATE_KEY_FILE)) {
            (None, None) => {}
            (Some(certificate), Some(key)) => {
                let key =
                    read_secret(&key).map_err(|e| RemoteError::lasting(format!("{CERTIFICATE_KEY_FILE}: {e}")))?;
                let mut pem = Zeroizing::new(read(CERTIFICATE_FILE, &certificate)?);
                pem.push(b'\n');
                pem.extend_from_slice(key.as_bytes());
                let identity = Identity::from_pem(&pem).map_err(|e| unusable(CERTIFICATE_FILE, e))?;
                builder = builder.identity(identity);
            }
            _ => {
                let why = format!("{CERTIFICATE_FILE} and {CERTIFICATE_KEY_FILE} go together");
                return Err(RemoteError::lasting(why));
            }
        }
        let client = builder.build().map_err(|e| unusable("TLS", e))?;
        let api_key = secret_of_environment(API_KEY_FILE, API_KEY).map_err(RemoteError::lasting)?;
        Ok(Connection { base: base.to_owned(), client, api_key })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.api_key {
            Some(key) => request.bearer_auth(key.as_str()),
            None => request,
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, RemoteError> {
        let lost = |e: reqwest::Error| RemoteError::passing(chain(&e.without_url()));
        let mut answer = request.send().await.map_err(lost)?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(lost)? {
            if body.len() + part.len() > ANSWER_MAX {
                return Err(RemoteError::passing(format!("it sent more than {ANSWER_MAX} bytes")));
            }
            body.extend_from_slice(&part);
        }
        if status == StatusCode::OK {
            return serde_json::from_slice(&body)
                .map_err(|e| RemoteError::passing(format!("what it sent is not the answer of its protocol: {e}")));
        }
        let said = serde_json::from_slice::<ErrorAnswer>(&body).map(|a| a.error);
        let said = said.map_or_else(|_| String::new(), |e| format!(": {} {}", e.code, e.message));
        let said: String = said.chars().filter(|c| !c.is_control()).take(300).collect();
        let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        Err(RemoteError { reason: format!("HTTP {}{said}", status.as_u16()), again })
    }
}

/// One key behind the proxy.
struct ProxyKey {
    connection: Arc<Connection>,
    public_key: String,
}

impl RemoteKey for ProxyKey {
    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<Vec<u8>, RemoteError>> {
        Box::pin(async move {
            let body = SignRequest { alg: "ed25519", public_key: &self.public_key, message: STANDARD.encode(message) };
            let request = self.connection.request(Method::POST, "/sign").json(&body);
            let answer: SignAnswer = self.connection.ask(request).await?;
            STANDARD.decode(&answer.signature).map_err(|_| RemoteError::passing("its signature is not base64"))
        })
    }

    fn check(&self) -> Pending<'_, Result<(), RemoteError>> {
        Box::pin(async move {
            let health: HealthAnswer = self.connection.ask(self.connection.request(Method::GET, "/health")).await?;
            if health.ok { Ok(()) } else { Err(RemoteError::passing("its health is not ok")) }
        })
    }

    fn keeper(&self) -> Keeper {
        Keeper::Proxy
    }
}

/// The keys of a signing proxy as signers.
pub struct ProxySource {
    url: ProxyUrl,
    patience: Patience,
    runtime: Handle,
    connection: OnceLock<Arc<Connection>>,
}

impl ProxySource {
    /// Nothing is asked yet.
    pub fn new(url: ProxyUrl, patience: Patience, runtime: Handle) -> ProxySource {
        ProxySource { url, patience, runtime, connection: OnceLock::new() }
    }

    fn connection(&self) -> Result<&Arc<Connection>, RemoteError> {
        match self.connection.get() {
            Some(connection) => Ok(connection),
            None => {
                let opened = Arc::new(Connection::open(&self.url.base, &self.patience)?);
                Ok(self.connection.get_or_init(|| opened))
            }
        }
    }

    async fn keys(&self) -> Result<Vec<[u8; 32]>, RemoteError> {
        let connection = self.connection()?;
        let asking = connection.ask::<KeysAnswer>(connection.request(Method::GET, "/keys"));
        let answer = within(self.patience.attempt, "list of keys", asking).await?;
        let ours = answer.keys.iter().filter(|key| key.alg == "ed25519");
        let keys: Vec<[u8; 32]> = ours.filter_map(|key| hex_array(key.public_key.as_bytes())).collect();
        let wanted = |key: &[u8; 32]| self.url.public_key.is_none_or(|only| only == *key);
        let keys: Vec<[u8; 32]> = keys.into_iter().filter(wanted).collect();
        if keys.is_empty() {
            return Err(RemoteError::lasting("it has no such Ed25519 key for this caller"));
        }
        Ok(keys)
    }
}

impl SignerSource for ProxySource {
    fn signers(&self) -> Result<Vec<Arc<dyn Signer>>, SignerError> {
        let name = SignerPlace::Proxy(self.url.clone()).to_string();
        let keys = self.runtime.block_on(self.keys()).map_err(|e| e.of(&name))?;
        let connection = self.connection().map_err(|e| e.of(&name))?;
        let signer = |key: [u8; 32]| {
            let remote = ProxyKey { connection: Arc::clone(connection), public_key: to_hex(&key) };
            Arc::new(RemoteSigner::new(key, name.clone(), Arc::new(remote), self.patience)) as Arc<dyn Signer>
        };
        Ok(keys.into_iter().map(signer).collect())
    }
}
