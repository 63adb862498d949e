//! One module for each subcommand: its arguments, and what it does with the engine.

pub(crate) mod artifact;
pub(crate) mod backup;
pub(crate) mod checkpoint;
pub(crate) mod demo;
pub(crate) mod export;
pub(crate) mod exports;
pub(crate) mod import_legacy;
pub(crate) mod init;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod migrate;
pub(crate) mod open_delivery;
pub(crate) mod order;
pub(crate) mod proof;
pub(crate) mod replay;
pub(crate) mod restore;
pub(crate) mod serve;
pub(crate) mod sku;
pub(crate) mod submit;
pub(crate) mod token;
