//! The commit statement: what one signature of a commit covers (FORMAT.md 3).

use ed25519_dalek::{Signature, VerifyingKey};

use crate::hash::Hash;

/// Algorithm number of Ed25519, the only one today.
pub const ALG_ED25519: u8 = 1;
/// Most entries in one commit; a constant of the format.
pub const COMMIT_ENTRIES_MAX: usize = 4096;
/// Most bytes in one commit: headers, bodies and private documents; a constant of the format.
pub const COMMIT_BYTES_MAX: usize = 16 << 20;
/// Most signatures of one commit.
pub const COMMIT_SIGNATURES_MAX: usize = 4;

/// The fields of a commit that every signature of it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Which ledger.
    pub ledger_id: Hash,
    /// Which chain.
    pub chain: u32,
    /// Index of the first entry.
    pub first_index: u64,
    /// How many entries, at least one.
    pub size: u32,
    /// RFC 6962 root over the entries' header bytes.
    pub root: Hash,
    /// Entry hash of the last entry.
    pub last_hash: Hash,
    /// How many entries of the key registry the signer knew.
    pub registry_size: u64,
    /// Entry hash of the last of them; zeros for none.
    pub registry_head: Hash,
}

impl Statement {
    /// The signed bytes for one signature, which also name its algorithm and kid.
    pub fn to_bytes(&self, alg: u8, kid: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(b"ledger/commit/v1\0");
        out.extend_from_slice(&self.ledger_id.0);
        out.extend_from_slice(&self.chain.to_le_bytes());
        out.extend_from_slice(&self.first_index.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.root.0);
        out.extend_from_slice(&self.last_hash.0);
        out.extend_from_slice(&self.registry_size.to_le_bytes());
        out.extend_from_slice(&self.registry_head.0);
        out.push(alg);
        out.extend_from_slice(&(kid.len() as u64).to_le_bytes());
        out.extend_from_slice(kid.as_bytes());
        out
    }
}

/// One signature of a commit, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitSignature {
    /// Names the public key in the registry.
    pub kid: String,
    /// [`ALG_ED25519`].
    pub alg: u8,
    /// 64 bytes for Ed25519.
    pub signature: Vec<u8>,
}

/// Checks an Ed25519 signature strictly (canonical `S`, no small-order points), as every native signature is.
pub fn verify_ed25519(public_key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) = (VerifyingKey::from_bytes(public_key), Signature::from_slice(signature)) else {
        return false;
    };
    key.verify_strict(message, &signature).is_ok()
}
