//! Names in a client's certificate. The TLS layer has verified the certificate before anything here is called.

use std::any::Any;

use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream;
use rustls::ServerConnection;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The peer of a TLS connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    /// URIs, DNS names and common name of its certificate, in this order; empty without one.
    pub(crate) names: Vec<String>,
}

/// For `HttpServer::on_connect`: keeps who is at the other end with the connection.
pub(crate) fn remember_peer(connection: &dyn Any, data: &mut Extensions) {
    let Some(stream) = connection.downcast_ref::<actix_tls::accept::rustls_0_23::TlsStream<TcpStream>>() else {
        return;
    };
    let session: &ServerConnection = stream.get_ref().1;
    let names = session.peer_certificates().and_then(|chain| chain.first()).map(|c| names(c)).unwrap_or_default();
    data.insert(Peer { names });
}

fn names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let mut found = Vec::new();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        let of = |name: &GeneralName<'_>| match name {
            GeneralName::URI(text) | GeneralName::DNSName(text) => Some((*text).to_owned()),
            _ => None,
        };
        found.extend(alternative.value.general_names.iter().filter_map(of));
        // URIs first: they are made for naming services (SPIFFE).
        found.sort_by_key(|name| !name.contains("://"));
    }
    found.extend(certificate.subject().iter_common_name().filter_map(|cn| cn.as_str().ok()).map(str::to_owned));
    found
}
