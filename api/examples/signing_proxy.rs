//! The reference signing proxy: keys in a PKCS#11 token, for callers that have the API key. `SIGNERS.md` has its protocol.
//!
//! `cargo run -p ledger --example signing_proxy -- --signer 'pkcs11:token=T?module-path=…' --api-key-file FILE --certificate FILE --key FILE`
//!
//! It signs whatever its callers bring: who has the API key, or a certificate, has the use of its keys.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json, JsonConfig, get, post};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, ResponseError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use ledger_engine::hash::to_hex;
use ledger_engine::signer::Signer;
use ledger_engine::signer::keyring::Keyring;
use ledger_engine::signer::pkcs11::TokenSource;
use ledger_engine::signer::place::SignerPlace;
use ledger_engine::signer::remote::Patience;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::Deserialize;
use serde_json::json;
use subtle::ConstantTimeEq as _;

/// The longest statement that is signed.
const MESSAGE_MAX: usize = 4096;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A signing proxy in front of a PKCS#11 token
#[derive(Parser)]
struct Args {
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// pkcs11:token=LABEL?module-path=FILE; the PIN by pin-source or the environment, as for `ledger`
    #[arg(long)]
    signer: String,
    /// File with the API key that callers must bring
    #[arg(long)]
    api_key_file: PathBuf,
    /// Its certificates (PEM)
    #[arg(long)]
    certificate: PathBuf,
    /// Their private key (PEM)
    #[arg(long)]
    key: PathBuf,
    /// Callers must present a certificate that leads to these as well
    #[arg(long)]
    client_ca: Option<PathBuf>,
}

struct Proxy {
    keys: Keyring,
    api_key: String,
}

#[derive(Deserialize)]
struct SignRequest {
    alg: String,
    public_key: String,
    message: String,
}

/// Why a request was refused: status, code, words.
#[derive(Debug)]
struct Refusal(StatusCode, &'static str, String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.2)
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.0
    }

    fn error_response(&self) -> HttpResponse {
        HttpResponse::build(self.0).json(json!({ "error": { "code": self.1, "message": self.2 } }))
    }
}

fn away(reason: impl ToString) -> Refusal {
    Refusal(StatusCode::SERVICE_UNAVAILABLE, "TOKEN_UNAVAILABLE", reason.to_string())
}

/// Lets a caller with the API key pass.
fn authorise(proxy: &Proxy, request: &HttpRequest) -> Result<(), Refusal> {
    let given = request.headers().get("authorization").and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    if bool::from(given.unwrap_or_default().as_bytes().ct_eq(proxy.api_key.as_bytes())) {
        return Ok(());
    }
    let text = "bring the API key: Authorization: Bearer KEY";
    Err(Refusal(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", text.into()))
}

/// The keys that the token has now.
async fn signers(proxy: &Arc<Proxy>) -> Result<Vec<Arc<dyn Signer>>, Refusal> {
    let asking = Arc::clone(proxy);
    let asked = actix_web::web::block(move || asking.keys.refresh()).await;
    asked.map_err(away)?.map_err(|e| away(e.reason))?;
    Ok(proxy.keys.signers())
}

async fn health(proxy: Data<Arc<Proxy>>, request: HttpRequest) -> Result<HttpResponse, Refusal> {
    authorise(&proxy, &request)?;
    for signer in signers(&proxy).await? {
        signer.check().await.map_err(|e| away(e.reason))?;
    }
    Ok(HttpResponse::Ok().json(json!({ "ok": true })))
}

async fn keys(proxy: Data<Arc<Proxy>>, request: HttpRequest) -> Result<HttpResponse, Refusal> {
    authorise(&proxy, &request)?;
    let key = |signer: &Arc<dyn Signer>| json!({ "alg": "ed25519", "public_key": to_hex(&signer.public_key()) });
    let keys: Vec<_> = signers(&proxy).await?.iter().map(key).collect();
    Ok(HttpResponse::Ok().json(json!({ "keys": keys })))
}

async fn sign(
    proxy: Data<Arc<Proxy>>,
    request: HttpRequest,
    asked: Json<SignRequest>,
) -> Result<HttpResponse, Refusal> {
    authorise(&proxy, &request)?;
    let invalid = |text: &str| Refusal(StatusCode::BAD_REQUEST, "INVALID_REQUEST", text.into());
    let message = STANDARD.decode(&asked.message).map_err(|_| invalid("message: not base64"))?;
    if message.len() > MESSAGE_MAX {
        return Err(invalid("message: more than 4,096 bytes"));
    }
    let find = |signers: Vec<Arc<dyn Signer>>| {
        signers.into_iter().find(|s| asked.alg == "ed25519" && to_hex(&s.public_key()) == asked.public_key)
    };
    let signer = match find(proxy.keys.signers()) {
        Some(signer) => Some(signer),
        // It may have been made since.
        None => find(signers(&proxy).await?),
    };
    let missing = || Refusal(StatusCode::NOT_FOUND, "KEY_NOT_FOUND", "there is no such key".into());
    let signature = signer.ok_or_else(missing)?.sign(&message).await.map_err(|e| away(e.reason))?;
    Ok(HttpResponse::Ok().json(json!({ "signature": STANDARD.encode(signature) })))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    Ok(CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?)
}

fn tls(args: &Args) -> Result<ServerConfig, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &args.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            certificates(path)?.into_iter().try_for_each(|root| roots.add(root))?;
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?,
            )
        }
    };
    Ok(builder.with_single_cert(certificates(&args.certificate)?, PrivateKeyDer::from_pem_file(&args.key)?)?)
}

#[actix_web::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let SignerPlace::Pkcs11(uri) = SignerPlace::parse(&args.signer)? else {
        return Err("--signer: not a PKCS#11 URI".into());
    };
    let api_key = std::fs::read_to_string(&args.api_key_file)?.trim().to_owned();
    if api_key.len() < 16 {
        return Err("--api-key-file: an API key has at least 16 characters".into());
    }
    let proxy = Arc::new(Proxy {
        keys: Keyring::new([]).with_source(Box::new(TokenSource::new(uri, Patience::default()))),
        api_key,
    });
    let app = move || {
        App::new()
            .app_data(Data::new(Arc::clone(&proxy)))
            .app_data(JsonConfig::default().limit(64 * 1024))
            .route("/health", get().to(health))
            .route("/keys", get().to(keys))
            .route("/sign", post().to(sign))
    };
    let server = HttpServer::new(app).workers(2).bind_rustls_0_23(args.listen, tls(&args)?)?;
    for address in server.addrs() {
        println!("listening on https://{address}");
    }
    Ok(server.run().await?)
}
