//! The HTTP API, by real clients against the real program.
#![allow(missing_docs)]

mod access;
mod feed;
mod issuer;
mod operations;
mod orders;
mod paths;
mod pki;
mod rates;
mod settings;
mod support;
mod tls;
mod tokens;
