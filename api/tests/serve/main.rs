//! The HTTP API, by real clients against the real program.
#![allow(missing_docs)]

mod contract;
mod faults;
mod feed;
mod hostile;
mod operations;
mod orders;
mod stripe;
mod support;
