//! The HTTP API, by real clients against the real program.
#![allow(missing_docs)]

mod feed;
mod operations;
mod orders;
mod support;
