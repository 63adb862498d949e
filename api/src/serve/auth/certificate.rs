//! Names in a client's certificate. The TLS layer has verified the certificate before anything here is called.

use std::any::Any;
use std::time::Duration;

use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream;
use rustls::ServerConnection;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The peer of a TLS connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    /// URIs and DNS names of its certificate, in this order; the common name where there are none.
    pub(crate) names: Vec<String>,
    /// When the certificate ends, seconds since the Unix epoch; `None` without a certificate. A connection can live longer.
    pub(crate) until: Option<u64>,
}

/// For `HttpServer::on_connect`: keeps who is at the other end of a TLS connection with it. Whatever the connection, the system ends it
/// when the other end takes nothing for `patience`: nobody holds an answer, or a feed, by not reading it.
pub(crate) fn accept(connection: &dyn Any, data: &mut Extensions, patience: Duration) {
    if let Some(stream) = connection.downcast_ref::<TcpStream>() {
        return give_up_after(stream, patience);
    }
    let Some(stream) = connection.downcast_ref::<actix_tls::accept::rustls_0_23::TlsStream<TcpStream>>() else {
        return;
    };
    let (stream, session): (&TcpStream, &ServerConnection) = stream.get_ref();
    give_up_after(stream, patience);
    let peer = session.peer_certificates().and_then(|chain| chain.first()).map(|c| read(c)).unwrap_or_default();
    data.insert(peer);
}

/// `TCP_USER_TIMEOUT` (RFC 5482), which counts while the other end's window is closed, too.
fn give_up_after(stream: &TcpStream, patience: Duration) {
    if let Err(e) = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(patience)) {
        tracing::warn!("a connection has no time limit for taking answers: {e}");
    }
}

fn read(der: &[u8]) -> Peer {
    // The TLS layer read it; were it unreadable here, it is somebody without a name, who is refused.
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Peer { names: Vec::new(), until: Some(0) };
    };
    let until = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Peer { names: names(&certificate), until: Some(until) }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
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
    // Authorities check alternative names; a common name beside them may be whatever was asked for (RFC 6125 6.4.4).
    if found.is_empty() {
        found.extend(certificate.subject().iter_common_name().filter_map(|cn| cn.as_str().ok()).map(str::to_owned));
    }
    found
}
