//! What must hold for any bytes, one function for each parser. A function panics where its property is broken, and
//! does nothing else; libFuzzer (`fuzz/run`) and the ordinary tests (`tests/smoke.rs`) drive the same ones.

mod codecs;
mod documents;
mod input;
mod ledger;
mod legacy;
mod links;
pub mod mutate;
mod proofs;
mod registry;

/// A property of arbitrary bytes.
pub type Check = fn(&[u8]);

/// Every target by its name, which is also its folder in `corpus/`.
pub const TARGETS: &[(&str, Check)] = &[
    ("body", codecs::body),
    ("command", codecs::command),
    ("delivery_proof", documents::delivery_proof),
    ("dump", ledger::dump),
    ("genesis", registry::genesis),
    ("header", codecs::header),
    ("json", codecs::json),
    ("key", codecs::key),
    ("legacy_canonical", legacy::canonical),
    ("legacy_file", legacy::file),
    ("legacy_links", links::links),
    ("legacy_signers", legacy::signers),
    ("legacy_time", legacy::time),
    ("licence", documents::licence),
    ("line", codecs::line),
    ("manifest", codecs::manifest),
    ("merkle", proofs::merkle),
    ("name", codecs::name),
    ("note", codecs::note),
    ("proof", proofs::proof),
    ("public_key", documents::public_key),
    ("registry", registry::registry),
    ("sku_manifest", documents::sku_manifest),
    ("statement", proofs::statement),
    ("verify", ledger::verify),
];
