//! Connections to PostgreSQL, with TLS as the URL asks for it.
//!
//! `sslmode` means what it means to psql: `disable`; `prefer` (the default) and `require` encrypt and believe any
//! certificate, so they help against listeners only; `verify-ca` wants a chain to one of `sslrootcert`, `verify-full`
//! the host's name in the certificate too. With `sslrootcert`, `require` is `verify-ca`.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
pub use tokio_postgres_rustls::MakeRustlsConnect;

/// Whether a text names a PostgreSQL database.
pub fn is_postgres(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// Reads a `postgres://` URL. `name` is told to the server unless the URL gives another. The second value makes TLS
/// connections, and serves to cancel statements. Errors name what to do and hold no password.
pub fn settings(url: &str, name: &str) -> Result<(Config, MakeRustlsConnect), String> {
    let (url, mode, roots) = take_tls_options(url)?;
    let mut config: Config = url.parse().map_err(|e: tokio_postgres::Error| {
        let why = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
        format!("the database URL is not postgres://user@host/database?sslmode=…: {why}")
    })?;
    if config.get_application_name().is_none() {
        config.application_name(name);
    }
    config.ssl_mode(match mode {
        Mode::Disable => SslMode::Disable,
        Mode::Prefer => SslMode::Prefer,
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
    });
    let tls = MakeRustlsConnect::new(client_config(mode, roots.as_deref())?);
    Ok((config, tls))
}

/// Database, role and servers of a URL, without the password.
pub fn describe(url: &str) -> Result<String, String> {
    use tokio_postgres::config::Host;
    let (config, _) = settings(url, "")?;
    let hosts = config.get_hosts().iter().enumerate().map(|(at, host)| {
        let ports = config.get_ports();
        let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(path) => format!("{}:{port}", path.display()),
        }
    });
    let hosts = hosts.collect::<Vec<_>>().join(", ");
    let user = config.get_user().unwrap_or("(nobody)");
    Ok(format!("{} at {hosts} as {user}", config.get_dbname().unwrap_or(user)))
}

/// What failed, and what to do.
pub fn explain(e: &tokio_postgres::Error) -> String {
    if let Some(db) = e.as_db_error() {
        let (text, code) = (db.message(), db.code().code());
        return format!("database: {text} ({code}); check the URL and the role's privileges");
    }
    let source = std::error::Error::source(e);
    let why = source.map(ToString::to_string).unwrap_or_default();
    let mut inner = source;
    while let Some(cause) = inner {
        let found = cause.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref()).and_then(|e| e.downcast_ref());
        if let Some(refused) = found.or_else(|| cause.downcast_ref::<Error>()) {
            return explain_tls(refused);
        }
        inner = cause.source();
    }
    if why == "server does not support TLS" {
        return "database: the server has no TLS and sslmode asks for it; have ssl = on set there, or, on a network that \
                nobody else hears, use sslmode=prefer"
            .to_owned();
    }
    format!("database: {e} {why}; check the URL and the network")
}

fn explain_tls(refused: &Error) -> String {
    let Error::InvalidCertificate(fault) = refused else {
        return format!("database: TLS failed: {refused}; check the server's ssl settings and log");
    };
    let what = match fault {
        // Of a root with the right name and another key, the signature is bad.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it leads to no certificate of sslrootcert; ask the server's administrator for the right ones, and \
             do not go on without: this may be another server"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host; name the host in the URL as the certificate does, or find out who answers"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired; the server's administrator must renew it, if this machine's clock is right"
        }
        _ => "the server's administrator must replace it",
    };
    format!("database: the server's certificate is not trusted ({fault}): {what}")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Cuts `sslmode` and `sslrootcert` out of a URL: the client library knows neither all modes nor roots.
fn take_tls_options(url: &str) -> Result<(String, Mode, Option<String>), String> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut roots) = (Mode::Prefer, None);
    let mut rest = Vec::new();
    for option in query.split('&').filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            Some(("sslmode", value)) => {
                mode = match value {
                    "disable" => Mode::Disable,
                    "prefer" => Mode::Prefer,
                    "require" => Mode::Require,
                    "verify-ca" => Mode::VerifyCa,
                    "verify-full" => Mode::VerifyFull,
                    _ => {
                        return Err(format!(
                            "sslmode={value} in the database URL: it can be disable, prefer, require, verify-ca or verify-full"
                        ));
                    }
                };
            }
            Some(("sslrootcert", value)) => {
                let path =
                    percent_decoded(value).ok_or("sslrootcert in the database URL is not percent-encoded UTF-8")?;
                roots = Some(path);
            }
            _ => rest.push(option),
        }
    }
    if roots.is_some() && mode == Mode::Require {
        mode = Mode::VerifyCa;
    }
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((url, mode, roots))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut pieces = text.split('%');
    out.extend_from_slice(pieces.next()?.as_bytes());
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        out.push(u8::from_str_radix(code, 16).ok().filter(|_| !code.starts_with('+'))?);
        out.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(out).ok()
}

fn client_config(mode: Mode, roots: Option<&str>) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let chain = match (mode, roots) {
        (Mode::Disable | Mode::Prefer | Mode::Require, _) => None,
        (Mode::VerifyCa | Mode::VerifyFull, None) => {
            return Err(
                "sslmode=verify-ca and verify-full need sslrootcert=FILE in the database URL: the certificates to \
                        believe, in PEM; the system's are often /etc/ssl/certs/ca-certificates.crt"
                    .to_owned(),
            );
        }
        (Mode::VerifyCa | Mode::VerifyFull, Some(path)) => {
            let roots = Arc::new(read_roots(Path::new(path))?);
            let chain = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
            Some(chain.map_err(|e| format!("sslrootcert {path}: {e}"))?)
        }
    };
    let verifier = Verifier { chain, any_name: mode != Mode::VerifyFull, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| format!("TLS: {e}"))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let shown = path.display();
    let mut store = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|e| format!("sslrootcert {shown}: {e}; check the path"))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| format!("sslrootcert {shown}: {e}; it must be PEM"))?;
        store.add(certificate).map_err(|e| format!("sslrootcert {shown}: {e}"))?;
    }
    if store.is_empty() { Err(format!("sslrootcert {shown} has no certificate in PEM")) } else { Ok(store) }
}

/// Judges a server's certificate by the mode.
#[derive(Debug)]
struct Verifier {
    /// None: any certificate will do.
    chain: Option<Arc<WebPkiServerVerifier>>,
    any_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(certificate, intermediates, host, ocsp, now) {
            // The name is looked at last: all else was right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_cut_out_of_the_url() {
        let taken = |url: &str| take_tls_options(url).unwrap();
        assert_eq!(taken("postgres://a@h/d"), ("postgres://a@h/d".into(), Mode::Prefer, None));
        assert_eq!(
            taken("postgres://a@h/d?sslmode=verify-full&connect_timeout=3&sslrootcert=/a%20b%2Fc.pem"),
            ("postgres://a@h/d?connect_timeout=3".into(), Mode::VerifyFull, Some("/a b/c.pem".into()))
        );
        assert_eq!(taken("postgres://h/d?sslrootcert=r&sslmode=require").1, Mode::VerifyCa);
        for bad in ["postgres://h/d?sslmode=verify", "postgres://h/d?sslrootcert=%f", "postgres://h/d?sslrootcert=%ff"]
        {
            assert!(take_tls_options(bad).is_err(), "{bad}");
        }
    }
}
