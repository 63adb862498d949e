//! Judging entries one by one, each with its commit and its path to a checkpoint: what proof files and single streams have in
//! common. Codes and places are those of FORMAT.md 10.

use ledger_engine::body::{BODY_BYTES_MAX, Body};
use ledger_engine::commit::{ALG_ED25519, Statement};
use ledger_engine::document::{DocumentFault, DocumentPlace, SignedDocument};
use ledger_engine::domain::projection::Cell;
use ledger_engine::genesis::Genesis;
use ledger_engine::hash::{EventId, Hash, body_hash, sha256};
use ledger_engine::header::Header;
use ledger_engine::merkle::verify_inclusion;
use ledger_engine::note::Note;
use ledger_engine::proof::{ProvenCommit, SignedCheckpoint};
use ledger_engine::registry::{KeyFault, Registry, RegistryPlace, cut_of};
use ledger_engine::stream::Stream;

use crate::collector::Collector;
use crate::commits::CheckpointJudge;
use crate::finding::Code;
use crate::verify::distinct_keys;

/// The code of a document whose signature does not count (FORMAT.md 10, step 4.7).
pub(crate) fn document_code(fault: DocumentFault) -> Code {
    match fault {
        DocumentFault::Key(fault) => key_code(fault),
        DocumentFault::Ledger | DocumentFault::Signature => Code::DocumentSignatureInvalid,
    }
}

pub(crate) fn key_code(fault: KeyFault) -> Code {
    match fault {
        KeyFault::Unknown => Code::KidUnknown,
        KeyFault::WrongPurpose => Code::KidWrongPurpose,
        KeyFault::Algorithm => Code::AlgorithmMismatch,
        KeyFault::NotValid => Code::KidNotValid,
    }
}

/// What is said of it.
pub(crate) fn document_evidence(document: &SignedDocument, fault: DocumentFault) -> String {
    format!("the {} document signed by kid {}: {fault}", document.purpose.as_str(), document.kid)
}

/// A fault of one thing.
pub(crate) type Fault = (Code, String);

pub(crate) fn fault<T>(code: Code, why: impl Into<String>) -> Result<T, Fault> {
    Err((code, why.into()))
}

/// An entry whose own bytes are right.
pub(crate) struct Own {
    pub(crate) stream: Stream,
    pub(crate) body: Body,
    pub(crate) hash: Hash,
    pub(crate) leaf: Hash,
}

/// What is known of the ledger when an entry is judged.
pub(crate) struct Known {
    pub(crate) ledger_id: Hash,
    pub(crate) genesis: Genesis,
    pub(crate) registry: Registry,
}

impl Known {
    /// The ledger that a genesis entry makes. Its id is recomputed from the body: whoever pins the id pins everything here.
    pub(crate) fn from_genesis(header: &Header, body: &[u8]) -> Result<Known, Fault> {
        let ledger_id = Genesis::ledger_id(body);
        if body_hash(body).0 != header.body_hash || sha256(&[body]).0 != header.body_sha256 {
            return fault(Code::BodyHashMismatch, "the genesis body");
        }
        let genesis = Body::decode(body).ok().filter(|b| b.actor_id == "system");
        let genesis = genesis.and_then(|b| Genesis::read(&b.payload)).filter(distinct_keys);
        let first = header.chain == 0
            && header.index == 0
            && header.stream == "ledger"
            && header.revision == 1
            && header.event_type == "ledger.created"
            && header.prev_hash == [0; 32]
            && header.parent_hash == [0; 32];
        let Some(genesis) = genesis.filter(|_| first) else {
            return fault(Code::GenesisInvalid, "the first entry of the key registry");
        };
        let registry = Registry::new(genesis.chains, genesis.keys(), header.entry_hash());
        let known = Known { ledger_id, genesis, registry };
        known.own(header, body).map(|_| known)
    }

    /// What the entries of the key registry give, each with its body, from the genesis on.
    pub(crate) fn from_registry<'e>(mut entries: impl Iterator<Item = (&'e Header, &'e [u8])>) -> Result<Known, Fault> {
        let Some((header, body)) = entries.next() else { return fault(Code::EntryMissing, "the genesis entry") };
        let mut known = Known::from_genesis(header, body)?;
        for (header, body) in entries {
            let own = known.own(header, body)?;
            known.admit(header, &own)?;
        }
        Ok(known)
    }

    /// Takes the next entry of the key registry.
    pub(crate) fn admit(&mut self, header: &Header, own: &Own) -> Result<(), Fault> {
        let revision = self.registry.size() + 1;
        if own.stream != Stream::Ledger || header.revision != revision {
            return fault(Code::RevisionMismatch, format!("expected revision {revision} of stream ledger"));
        }
        let parent_hash = Hash(header.parent_hash);
        if self.registry.head(revision - 1) != Some(parent_hash) {
            return fault(Code::ParentHashMismatch, format!("found {parent_hash}"));
        }
        let place =
            RegistryPlace { ledger_id: &self.ledger_id, revision, parent_hash: &parent_hash, index: header.index };
        let applied = self.registry.apply(&header.event_type, &own.body.payload, place, own.hash);
        applied.map_err(|e| (Code::RegistryInvalid, e.0))
    }

    /// Steps 2.3, 2.4, 2.9 and 2.10 of an entry, and that it is of this ledger.
    pub(crate) fn own(&self, header: &Header, body: &[u8]) -> Result<Own, Fault> {
        if header.ledger_id != self.ledger_id.0 {
            return fault(Code::LedgerIdMismatch, format!("the header names {}", Hash(header.ledger_id)));
        }
        let found = body_hash(body);
        if found.0 != header.body_hash || sha256(&[body]).0 != header.body_sha256 {
            return fault(Code::BodyHashMismatch, format!("expected {}, found {found}", Hash(header.body_hash)));
        }
        let id = EventId::derive(&self.ledger_id, header.chain, header.index);
        if header.event_id != id.0 {
            return fault(Code::EventIdMismatch, format!("expected {id}, found {}", header.id()));
        }
        let body = Body::decode(body).map_err(|e| (Code::BodyInvalid, e.to_string()))?;
        let stream = Stream::parse(&header.stream);
        let Some(stream) = stream.filter(|s| s.chain(self.genesis.chains) == header.chain) else {
            return fault(Code::RoutingMismatch, format!("stream {} on chain {}", header.stream, header.chain));
        };
        Ok(Own { stream, body, hash: header.entry_hash(), leaf: header.leaf_hash() })
    }

    /// Step 4 for the commit of an entry, as far as the entry and its path tell.
    pub(crate) fn commit(&self, header: &Header, own: &Own, commit: &ProvenCommit) -> Result<(), Fault> {
        let (chain, index, size) = (header.chain, header.index, u64::from(commit.size));
        let end = commit.first_index.checked_add(size);
        let Some(end) = end.filter(|end| (commit.first_index..*end).contains(&index)) else {
            return fault(Code::InclusionMismatch, format!("entry {index} does not lie in this commit"));
        };
        let in_commit = verify_inclusion(&own.leaf, index - commit.first_index, size, &commit.path, &commit.root);
        if !in_commit || (index + 1 == end && commit.last_hash != own.hash) {
            return fault(Code::InclusionMismatch, format!("entry {index} does not lead to the commit's root"));
        }
        let (size, head) = (commit.registry_size, commit.registry_head);
        let placed = if chain == 0 && commit.first_index == 0 { size == 0 } else { size > 0 };
        let before_own = own.stream != Stream::Ledger || size < header.revision;
        if !placed || !before_own || self.registry.head(size) != Some(head) {
            return fault(Code::RegistryPositionMismatch, format!("size {size}, head {head}"));
        }
        let statement = Statement {
            ledger_id: self.ledger_id,
            chain,
            first_index: commit.first_index,
            size: commit.size,
            root: commit.root,
            last_hash: commit.last_hash,
            registry_size: size,
            registry_head: head,
        };
        if commit.signatures.is_empty() {
            return fault(Code::CommitUnsigned, "");
        }
        for (at, signed) in commit.signatures.iter().enumerate() {
            let why = format!("kid {}, entries {} to {}", signed.kid, commit.first_index, end - 1);
            if commit.signatures[..at].iter().any(|s| s.kid == signed.kid) {
                return fault(Code::CommitSignatureOrphan, why);
            }
            let key = match self.registry.commit_key(&signed.kid, signed.alg, chain, end, size) {
                Ok(key) => key,
                Err(of_key) => return fault(key_code(of_key), why),
            };
            if !key.public_key.verify(&statement.to_bytes(ALG_ED25519, &signed.kid), &signed.signature) {
                return fault(Code::CommitSignatureInvalid, why);
            }
        }
        Ok(())
    }

    /// Step 4.7 for a document of an entry.
    pub(crate) fn document(
        &self,
        document: &SignedDocument,
        chain: u32,
        index: u64,
        registry_size: u64,
    ) -> Result<(), Fault> {
        let place = DocumentPlace { ledger_id: &self.ledger_id, chain, index, registry_size };
        let judged = document.check(&self.registry, place);
        judged.map_err(|fault| (document_code(fault), document_evidence(document, fault)))
    }

    /// Step 5 for a checkpoint, without the tree.
    pub(crate) fn checkpoint(&self, chain: u32, signed: &SignedCheckpoint) -> Result<(), Fault> {
        let judge = self.checkpoints_of(chain);
        let c = &signed.checkpoint;
        let root = Cell::Blob(c.root.0.to_vec());
        let cells = [chain.into(), c.size.into(), root, Cell::Text(signed.note.to_string())];
        // The tree is not at hand: it is the paths that must lead to the root.
        judge.judge(&cells, u64::MAX, 0, |_| None).map(drop)
    }

    /// Who signed a checkpoint, of the keys of the registry.
    pub(crate) fn signers_of(&self, chain: u32, note: &Note) -> Vec<String> {
        let cells = [chain.into(), Cell::Null, Cell::Null, Cell::Text(note.to_string())];
        self.checkpoints_of(chain).signers(&cells)
    }

    fn checkpoints_of(&self, chain: u32) -> CheckpointJudge<'_> {
        CheckpointJudge {
            ledger_id: self.ledger_id,
            origin: &self.genesis.origin,
            registry: &self.registry,
            chain,
            doubtful: false,
        }
    }

    /// Why the entry rests on a key that was in other hands, if it does (FORMAT.md 6). `kids` signed its commit, a document in it, or the checkpoint
    /// over it.
    pub(crate) fn compromised(&self, chain: u32, index: u64, kids: &[String]) -> Option<String> {
        let record = self.registry.records().iter().filter(|record| kids.contains(&record.key.kid)).find(|record| {
            let retired = record.retired.as_ref();
            retired
                .and_then(|r| Some((r.compromised_since.as_ref()?, &r.cut)))
                .is_some_and(|(since, cut)| (cut_of(since, chain)..cut_of(cut, chain)).contains(&index))
        })?;
        Some(format!("chain {chain}: entry {index} rests on {}, which was in other hands then", record.key.kid))
    }
}

/// Step 2.12, and what the format says of private documents without an entry.
pub(crate) fn private_document(body: &Body, document: Option<&[u8]>) -> Result<(), Fault> {
    match (body.private_sha256, document) {
        (None, Some(_)) => fault(Code::PrivateUnexpected, "the body names no private document"),
        (Some(named), Some(document)) => {
            let found = sha256(&[document]);
            if found == named && document.len() <= BODY_BYTES_MAX {
                return Ok(());
            }
            fault(Code::PrivateMismatch, format!("expected {named}, found {found}"))
        }
        (_, None) => Ok(()),
    }
}

/// That a path leads from an entry to a checkpoint's root.
pub(crate) fn included(leaf: &Hash, index: u64, path: &[Hash], size: u64, root: &Hash) -> Result<(), Fault> {
    if verify_inclusion(leaf, index, size, path, root) {
        return Ok(());
    }
    fault(Code::InclusionMismatch, format!("the path does not lead to the root of size {size}"))
}

impl Collector {
    /// Reports a fault of an entry, a commit or a checkpoint. Returns what was judged, if it holds.
    pub(crate) fn take<T>(&mut self, judged: Result<T, Fault>, chain: u32, place: String) -> Option<T> {
        judged.map_err(|(code, why)| self.report(code, Some(chain.into()), place, why)).ok()
    }
}
