//! Documents that entries hold with a signature of their own, judged by the registry that the entry's commit names (FORMAT.md 6).

use crate::hash::Hash;
use crate::public_key::Algorithm;
use crate::registry::{Key, KeyFault, Purpose, Registry};

/// A signed document of an entry.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SignedDocument {
    /// What the key must be for.
    pub purpose: Purpose,
    /// How it is signed.
    pub alg: Algorithm,
    /// Names the key.
    pub kid: String,
    /// As many bytes as the algorithm has.
    pub signature: Vec<u8>,
    /// What is signed.
    pub content: Content,
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Content {
    /// A document of ours: the ledger that it names, and SHA-256 of it without its signature.
    Own {
        /// The ledger that it names.
        ledger_id: Hash,
        /// SHA-256 of the canonical document without its signature.
        digest: Hash,
    },
    /// What finance signs, rebuilt from the order.
    Finance(Vec<u8>),
    /// What the Kernel signs: the canonical manifest without its signature.
    Manifest(Vec<u8>),
}

/// The signed bytes of a document of ours: `"ledger/<purpose>/v1\0"`, ledger id, SHA-256 of the canonical document without its signature.
pub fn statement(purpose: Purpose, ledger_id: &Hash, digest: &Hash) -> Vec<u8> {
    [b"ledger/", purpose.as_str().as_bytes(), b"/v1\0", &ledger_id.0, &digest.0].concat()
}

/// Where an entry lies, and the registry that its commit names.
#[derive(Clone, Copy, Debug)]
pub struct DocumentPlace<'a> {
    /// Which ledger.
    pub ledger_id: &'a Hash,
    /// The entry's chain.
    pub chain: u32,
    /// Its place there.
    pub index: u64,
    /// How many entries of the registry its commit names.
    pub registry_size: u64,
}

/// Why a document's signature does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentFault {
    /// The key may not have signed it.
    Key(KeyFault),
    /// It names another ledger.
    Ledger,
    /// The signature does not verify.
    Signature,
}

impl std::fmt::Display for DocumentFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DocumentFault::Key(KeyFault::Unknown) => "the key is not in the registry",
            DocumentFault::Key(KeyFault::WrongPurpose) => "the key was enrolled for something else",
            DocumentFault::Key(KeyFault::Algorithm) => "the signature is of another algorithm than the key's",
            DocumentFault::Key(KeyFault::NotValid) => "the key is retired",
            DocumentFault::Ledger => "the document names another ledger",
            DocumentFault::Signature => "the signature does not verify over the document",
        })
    }
}

impl SignedDocument {
    /// The key that it claims, if that may have signed it there, and the bytes that must be signed.
    pub fn claim<'r>(
        &self,
        registry: &'r Registry,
        place: DocumentPlace<'_>,
    ) -> Result<(&'r Key, Vec<u8>), DocumentFault> {
        let claimed = (self.kid.as_str(), self.alg, self.purpose);
        let key = registry.document_key(claimed, place.chain, place.index, place.registry_size);
        let key = key.map_err(DocumentFault::Key)?;
        match &self.content {
            Content::Own { ledger_id, .. } if ledger_id != place.ledger_id => Err(DocumentFault::Ledger),
            Content::Own { ledger_id, digest } => Ok((key, statement(self.purpose, ledger_id, digest))),
            Content::Finance(statement) | Content::Manifest(statement) => Ok((key, statement.clone())),
        }
    }

    /// Judges key and signature.
    pub fn check(&self, registry: &Registry, place: DocumentPlace<'_>) -> Result<(), DocumentFault> {
        let (key, message) = self.claim(registry, place)?;
        if key.public_key.verify(&message, &self.signature) { Ok(()) } else { Err(DocumentFault::Signature) }
    }
}
