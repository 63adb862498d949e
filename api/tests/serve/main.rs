//! The HTTP API, by real clients against the real program.
#![allow(missing_docs)]

mod access;
mod catalogue;
mod contract;
mod deliveries;
mod faults;
mod feed;
mod hostile;
mod issuer;
mod operations;
mod orders;
mod paths;
mod pki;
mod rates;
mod settings;
mod signing;
mod stripe;
mod support;
mod tls;
mod tokens;
