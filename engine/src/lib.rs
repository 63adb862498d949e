//! An event-sourced order ledger whose history can be proven.
//!
//! The **pure core** computes everything that can be argued about and touches no disk, clock or network:
//! [`json`] and [`body`] (canonical bytes), [`header`] and [`hash`] (the entry hash), [`merkle`], [`commit`], [`note`]
//! (signed tree heads), [`proof`] (one entry for a stranger), [`registry`] and [`genesis`] (keys by place in the history),
//! [`stream`] (names and routing), [`domain`] (decide and apply), [`document`], [`licence`], [`manifest`], [`delivery_proof`] and [`finance`] (what entries hold signed),
//! [`adoption`] (the legacy chain). Verifiers use it alone. The
//! **engine** (feature `write`)
//! wraps it with a clock, randomness, signers and a store. FORMAT.md gives every byte.

pub mod adoption;
pub mod body;
pub mod commit;
pub mod delivery_proof;
pub mod document;
pub mod domain;
pub mod export;
pub mod finance;
pub mod genesis;
pub mod hash;
pub mod header;
pub mod json;
pub mod licence;
pub mod manifest;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod public_key;
pub mod registry;
pub mod runs;
pub mod signer;
pub mod stream;
pub mod succession;
pub mod time;

#[cfg(feature = "write")]
pub mod archive;
#[cfg(feature = "s3")]
pub mod bucket;
#[cfg(feature = "connect")]
pub mod connect;
#[cfg(feature = "delivery")]
pub mod delivery;
#[cfg(feature = "write")]
mod documents;
#[cfg(feature = "write")]
pub mod environment;
#[cfg(feature = "write")]
mod heads;
#[cfg(feature = "write")]
pub mod keys;
#[cfg(feature = "write")]
pub mod ledger;
#[cfg(feature = "write")]
pub mod prover;
#[cfg(feature = "write")]
pub mod reader;
#[cfg(feature = "write")]
pub mod restore;
#[cfg(feature = "write")]
pub mod retire;
#[cfg(feature = "write")]
pub mod store;
#[cfg(feature = "write")]
mod writer;
