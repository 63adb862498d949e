//! Lines of an export for whoever works with them while they are judged.

use ledger_engine::body::Body;
use ledger_engine::export::{CheckpointLine, CommitLine};
use ledger_engine::hash::Hash;
use ledger_engine::header::Header;
use ledger_engine::stream::Stream;

/// A line whose own bytes are right, and which fits what came before it in its chain.
pub enum Judged {
    /// A commit; its entries follow.
    Commit(CommitLine),
    /// An entry.
    Entry(Box<JudgedEntry>),
    /// A checkpoint of the entries so far.
    Checkpoint(CheckpointLine),
}

/// An entry with what was learned of it.
pub struct JudgedEntry {
    /// Its header.
    pub header: Header,
    /// Hash of the header, as computed.
    pub entry_hash: Hash,
    /// Index of the stream's previous entry.
    pub parent_index: Option<u64>,
    /// Body bytes, which the header names.
    pub bytes: Vec<u8>,
    /// What they say.
    pub body: Body,
    /// The stream that the header names.
    pub stream: Stream,
    /// Its leaf in the chain's tree.
    pub leaf: Hash,
    /// Its private document, if it is there: the one that the body names.
    pub document: Option<Vec<u8>>,
}

/// Whoever takes the lines of an export while it is proved, chain by chain and in order, so that they need not be read again.
///
/// What was taken is worth nothing before [`Taker::proved`]: signatures, and what lies further on, may still be wrong.
pub trait Taker: Sync {
    /// Takes a line. `false` stops the judgement.
    fn take(&self, line: Judged) -> bool;

    /// All lines were taken, and there is nothing to report of the export; what anchors and keys leave open, the report says.
    fn proved(&self);
}
