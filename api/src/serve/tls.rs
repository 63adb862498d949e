//! TLS of the server: its certificate, and who may present one.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::settings::Tls;
use crate::CliError;

fn fault(path: &Path, why: impl std::fmt::Display) -> CliError {
    CliError::Usage(format!("{}: {why}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CliError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|e| fault(path, e))?;
    let all: Vec<_> = read.collect::<Result<_, _>>().map_err(|e| fault(path, e))?;
    if all.is_empty() { Err(fault(path, "no certificate in PEM")) } else { Ok(all) }
}

/// TLS 1.2 and 1.3. Where client certificates are taken, one is asked for and whoever presents one must have a good one; callers
/// without one come with tokens.
pub(crate) fn config(tls: &Tls) -> Result<ServerConfig, CliError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&tls.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| fault(&tls.key, e))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| CliError::Usage(format!("TLS: {e}")))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| fault(path, e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().map_err(|e| fault(path, e))?)
        }
    };
    builder.with_single_cert(chain, key).map_err(|e| fault(&tls.certificate, e))
}
