//! A SKU: listed with a price and, as a rule, a manifest; withdrawn, listed again.

use super::case::read_document;
use super::fields::{Fields, text, text1};
use super::money::Money;
use super::{Illegal, Occurrence, allowed};
use crate::document::SignedDocument;
use crate::hash::Hash;
use crate::json::{Object, Value};
use crate::manifest::{Artifact, Manifest};
use crate::stream::{CaseId, Stream};

/// State of a SKU: the fold of its stream.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sku {
    /// Index of the entry that listed it first.
    pub index: u64,
    /// The client's id.
    pub sku_id: String,
    /// Whether it can be bought.
    pub listed: bool,
    /// Title as last listed.
    pub title: String,
    /// Price as last listed.
    pub price: Money,
    /// Author as last listed.
    pub author_id: Option<String>,
    /// The manifest that it was last listed with.
    pub manifest: Option<ListedManifest>,
    /// Index of the entry that listed it last.
    pub listed_index: u64,
    /// Last revision of the stream.
    pub revision: u64,
}

/// One thing that a listing says, and that an order or a delivery rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The price is this.
    Price(Money),
    /// The manifest with these digests, of its text and of its signature's bytes, names an artifact of this digest. All SHA-256.
    Artifact {
        /// Of the text.
        manifest_sha256: Hash,
        /// Of the signature.
        manifest_signature_id: Hash,
        /// Of the artifact.
        sha256: Hash,
    },
}

/// A `sku.listed` entry, by its revision in the SKU's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The revision.
    pub revision: u64,
    /// All that it says.
    pub said: Vec<Said>,
}

/// What an applied event comes to.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Applied {
    /// All that a listing says; nothing of a withdrawal.
    pub said: Vec<Said>,
    /// The signed manifest of the event.
    pub signed: Option<SignedDocument>,
}

/// What a state keeps of a manifest; the whole of it is in the entry that listed it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ListedManifest {
    /// SHA-256 of its text, hex.
    pub sha256: String,
    /// Its version.
    pub version: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whose signature it has.
    pub signer_kid: String,
}

/// The manifest in the payload of `sku.listed`, if there is one.
pub fn manifest_of(payload: &Object) -> Option<Manifest> {
    read_manifest(payload.value("manifest")?).map(|(_, manifest)| manifest)
}

/// Whether a manifest says of the SKU what the payload of its `sku.listed` says.
pub fn fits_listing(manifest: &Manifest, payload: &Object) -> bool {
    let is = |name, text: &str| payload.value(name).and_then(Value::as_str) == Some(text);
    let price = payload.value("price").and_then(Money::read);
    is("sku_id", &manifest.id)
        && is("title", &manifest.title)
        && is("author_id", &manifest.author.id)
        && manifest.price.as_ref().is_none_or(|p| price.as_ref() == Some(p))
}

/// What a manifest with this digest, hex, says of its artifacts.
fn artifacts(sha256: &str, manifest: &Manifest) -> impl Iterator<Item = Said> {
    let digests = Hash::from_hex(sha256).zip(Hash::from_hex(&manifest.signature_id()));
    let said = |(manifest_sha256, manifest_signature_id), artifact: &Artifact| Said::Artifact {
        manifest_sha256,
        manifest_signature_id,
        sha256: artifact.sha256,
    };
    digests.into_iter().flat_map(move |digests| manifest.artifacts.iter().map(move |a| said(digests, a)))
}

fn read_manifest(value: &Value) -> Option<(ListedManifest, Manifest)> {
    let (sha256, text) = read_document(value)?;
    let manifest = Manifest::parse(text).ok()?;
    let listed = ListedManifest {
        sha256: sha256.to_owned(),
        version: manifest.version.clone(),
        tags: manifest.tags.clone(),
        signer_kid: manifest.signature.kid.clone(),
    };
    Some((listed, manifest))
}

impl Sku {
    /// Applies the next event of the stream to `state` (`None` before the first).
    pub fn apply(state: &mut Option<Sku>, event: &Occurrence<'_>) -> Result<Applied, Illegal> {
        let Stream::Sku(case) = event.stream else {
            return Err(Illegal("not a SKU's stream".into()));
        };
        let mut f = Fields::new(event.payload);
        let sku_id = f.required("sku_id", text1);
        match event.event_type {
            "sku.listed" => {
                let title = f.required("title", text1);
                let price = f.required("price", Money::read);
                let author_id = f.optional("author_id", text1);
                let manifest = f.optional("manifest", read_manifest);
                f.finish()?;
                allowed(CaseId::of_sku(&sku_id) == case, || "sku_id does not belong to the stream".into())?;
                allowed(!state.as_ref().is_some_and(|s| s.listed), || "the SKU is listed already".into())?;
                if let Some((_, manifest)) = &manifest {
                    let own = fits_listing(manifest, event.payload);
                    allowed(own, || "the manifest is of another SKU, title, author or price".into())?;
                }
                let index = state.as_ref().map_or(event.index, |s| s.index);
                let mut applied = Applied { said: vec![Said::Price(price.clone())], signed: None };
                if let Some((listed, manifest)) = &manifest {
                    applied.said.extend(artifacts(&listed.sha256, manifest));
                    applied.signed = Some(manifest.document());
                }
                let manifest = manifest.map(|(listed, _)| listed);
                let (listed_index, revision) = (event.index, event.revision);
                *state = Some(Sku {
                    index,
                    sku_id,
                    listed: true,
                    title,
                    price,
                    author_id,
                    manifest,
                    listed_index,
                    revision,
                });
                Ok(applied)
            }
            "sku.withdrawn" => {
                let _reason: Option<String> = f.optional("reason", text);
                f.finish()?;
                let Some(sku) = state.as_mut().filter(|s| s.listed && s.sku_id == sku_id) else {
                    return Err(Illegal("the SKU is not listed".into()));
                };
                sku.listed = false;
                sku.revision = event.revision;
                Ok(Applied::default())
            }
            other => Err(Illegal(format!("{other} is no event of a SKU"))),
        }
    }
}
