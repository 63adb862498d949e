//! Findings and their codes.

use std::borrow::Cow;
use std::fmt;

use crate::ranges::Extent;

macro_rules! codes {
    ($($variant:ident $text:literal $meaning:literal;)*) => {
        /// What is wrong. The text of each is stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[allow(missing_docs, reason = "each has its meaning as text")]
        pub enum Code { $($variant),* }

        impl Code {
            /// All codes, in the order of FORMAT.md.
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text),* }
            }

            /// What it means, and what to do.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning),* }
            }
        }
    };
}

codes! {
    LedgerIdMismatch "ledger_id_mismatch" "this is not the ledger that was pinned, or its id row was changed: check the id you were given, and where the file came from";
    GenesisInvalid "genesis_invalid" "the genesis entry does not describe a ledger: no key can be trusted; take the ledger from a backup that verifies";
    ChainUnknown "chain_unknown" "rows of a chain that the genesis does not have: somebody added or moved them; compare with a backup to learn who";
    EntryMissing "entry_missing" "entries were deleted: compare with a backup or an export";
    EntryUndecodable "entry_undecodable" "a column of the entry is not what the format allows: it was changed; compare the row with a backup or an export";
    EntryDuplicate "entry_duplicate" "a second entry claims the same place: somebody added it; compare with a backup to learn which is the true one";
    BodyHashMismatch "body_hash_mismatch" "the body is not the one that was signed: the event's content was changed; compare with a backup or an export";
    EventIdMismatch "event_id_mismatch" "the entry's id does not belong to its place: it was changed, or the entry moved; compare with a backup or an export";
    PrevHashMismatch "prev_hash_mismatch" "the link to the entry before was changed, or the entry before was replaced; compare both entries with a backup";
    EntryHashMismatch "entry_hash_mismatch" "a header column (type, time, stream, revision, …) or the stored hash was changed; compare the row with a backup or an export";
    TimeRegression "time_regression" "the entry's time is before the one of the entry before: the writer broke a rule; ask who ran it, and with which clock";
    ParentIndexMismatch "parent_index_mismatch" "the stored place of the stream's previous entry was changed: nothing signed is affected, but readers follow it; take the row from a backup";
    RevisionMismatch "revision_mismatch" "the stream's revisions have a gap or repeat: the writer broke a rule; look at the whole stream with --stream";
    ParentHashMismatch "parent_hash_mismatch" "the link to the stream's previous entry is wrong: the writer broke a rule; look at the whole stream with --stream";
    BodyInvalid "body_invalid" "the body is not canonical JSON of the format: the writer broke a rule; find out which program wrote it";
    RoutingMismatch "routing_mismatch" "the stream does not exist in the format or belongs on another chain: the writer broke a rule; find out which program wrote it";
    IllegalTransition "illegal_transition" "the event was not allowed in the state the order, delivery or SKU was in: the writer broke a rule; look at the whole stream with --stream";
    RegistryInvalid "registry_invalid" "a change of keys without the governance key's authority: do not trust keys from here on";
    RegistryExternalMismatch "registry_external_mismatch" "the registry of signers that was given says something else of a key than the ledger: ask its publisher and the holder of the governance key which is true";
    PrivateMismatch "private_mismatch" "the private document is not the one that was recorded: it was changed; take the document from a backup";
    PrivateUnexpected "private_unexpected" "a private document that no entry names: somebody added or moved it; compare with a backup before it is removed";
    CommitUndecodable "commit_undecodable" "a commit row or its signatures are not what the format allows: they were changed or repeated; take the rows from a backup";
    CommitTiling "commit_tiling" "commits leave a gap or overlap: a commit row was deleted, added or changed; take the rows from a backup";
    CommitUnsigned "commit_unsigned" "the commit has no signature: it was deleted; take it from a backup";
    RegistryPositionMismatch "registry_position_mismatch" "the commit names a state of the key registry that does not exist or goes back; compare the commit row with a backup";
    KidUnknown "kid_unknown" "the signing key is not in the registry at that point; ask the holder of the governance key whose it is";
    KidWrongPurpose "kid_wrong_purpose" "the key was enrolled for something else; ask its holder why it signed this";
    AlgorithmMismatch "algorithm_mismatch" "the signature names an algorithm that the key does not have; compare the row with a backup";
    KidNotValid "kid_not_valid" "the key was retired before it signed this: treat what it signed as forged";
    CommitSignatureInvalid "commit_signature_invalid" "the signature does not cover these entries: entries or the signature were replaced; compare with a backup or an export";
    DocumentSignatureInvalid "document_signature_invalid" "the signature of a document in the entry (finance's, a licence, a manifest, a delivery proof) does not cover what the entry says: whoever wrote the entry had no valid document; ask the holder of the key what he signed";
    CommitTooLarge "commit_too_large" "the commit is over the format's limit of 16 MiB; find out which program wrote it";
    CommitSignatureOrphan "commit_signature_orphan" "a signature without its commit, or a second one by the same key: rows were added, moved or deleted; compare with a backup";
    CheckpointUndecodable "checkpoint_undecodable" "the checkpoint is not a signed note of the format; compare with a copy that was kept";
    CheckpointMismatch "checkpoint_mismatch" "the checkpoint's text differs from its row, or is of another ledger or chain; compare with a copy that was kept";
    CheckpointBeyondTail "checkpoint_beyond_tail" "the checkpoint covers entries that are gone: the ledger was cut off or rolled back; take the missing entries from a backup";
    CheckpointRootMismatch "checkpoint_root_mismatch" "the checkpoint was signed over another history: this one was rewritten; compare with a backup or an export from before";
    CheckpointSignatureInvalid "checkpoint_signature_invalid" "the checkpoint's signature does not verify: text or signature were changed; compare with a copy that was kept";
    AnchorBeyondTail "anchor_beyond_tail" "the ledger ends before a checkpoint that was kept: it was cut off or rolled back; take the missing entries from a backup";
    AnchorMismatch "anchor_mismatch" "the ledger contradicts a checkpoint that was kept: its history was rewritten; compare with a backup or an export from before";
    InclusionMismatch "inclusion_mismatch" "the path from the entry does not lead to the signed root: the entry, the path or a stored tile was changed; verify the whole ledger to learn which";
    ArtifactMismatch "artifact_mismatch" "the file is neither the artifact nor the encrypted file that the delivery proof names: it was changed, or is of another delivery; compare the digests, and get file and proof of the same delivery";
    LicenceMismatch "licence_mismatch" "the licence is not the one that the ledger issued: it was changed, or belongs to another order; ask for the licence and the proof file of the same order";
    ChainHeadMismatch "chain_head_mismatch" "the chain's head row differs from the entries; the engine will refuse or mislead readers; compare with a backup";
    StreamHeadMismatch "stream_head_mismatch" "a stream's head row differs from the entries; compare with a backup";
    TileMismatch "tile_mismatch" "a stored tile of the Merkle tree differs from the entries: proofs from it would fail; take the tiles from a backup";
    EventIndexMismatch "event_index_mismatch" "a run of event ids differs from the entries: look-ups by id would fail; compare with a backup";
    CursorMismatch "cursor_mismatch" "a projection's cursor differs from the chain's size; `ledger replay` mends it";
    ProjectionMismatch "projection_mismatch" "a projection's row differs from the fold of the entries; `ledger replay` mends it, after you know who changed it";
    ExportFileMissing "export_file_missing" "a file that the manifest names is not there: get it again from where the export is kept";
    ExportFileUnexpected "export_file_unexpected" "a file that the manifest does not name: somebody added it, or it belongs elsewhere; compare with where the export is kept";
    ExportDigestMismatch "export_digest_mismatch" "the file is not the one that was exported: it was damaged or changed; get it again from where it is kept";
    ExportLineUndecodable "export_line_undecodable" "the line is none that an export has: it was damaged or changed; get the file again from where it is kept";
    ExportLineMisplaced "export_line_misplaced" "the line does not stand at its place: lines were moved, repeated or added; get the file again from where it is kept";
    ExportManifestMismatch "export_manifest_mismatch" "the manifest describes another export: it or the files were changed, or parts of two exports were mixed; get the export again from where it is kept";
    ExportBatchMissing "export_batch_missing" "a batch of the archive is not there: get it again from where the archive is kept; the ledger's own record says what it was";
    ExportManifestUnsigned "export_manifest_unsigned" "the manifest of a batch has no signature: it was removed, or the batch is not the exporter's; get it again from where the archive is kept";
    ExportManifestSignatureInvalid "export_manifest_signature_invalid" "the signature does not cover this manifest: one of them was changed; get the batch again from where the archive is kept";
    ExportObjectHidden "export_object_hidden" "a delete marker lies over an object of the archive: somebody deleted it, though what was exported is still there by its version; find out who, and remove the marker";
    ExportObjectShadowed "export_object_shadowed" "another version lies over an object of the archive: somebody put it there, and readers who name no version get it; find out who, and read by the versions that the manifests name";
    ExportObjectUnlocked "export_object_unlocked" "an object is locked for less than its manifest says, or not at all: somebody could delete it; find out who took the lock away, and lock it again";
    LegacyRowUndecodable "legacy_row_undecodable" "the row is not an event, or not one that all readers would read alike: it was damaged or changed; compare with a backup";
    LegacyRowTooLarge "legacy_row_too_large" "the row is over 16 MiB and was not read: no event is that large; look at the row, and compare with a backup";
    LegacyCanonicalImpossible "legacy_canonical_impossible" "the payload has a number that no double can hold, or nests too deep: the old system cannot have hashed it; compare the row with a backup";
    LegacyHashMismatch "legacy_hash_mismatch" "the payload, the link or the stored hash was changed; a valid signature says that it was the stored hash; compare the row with a backup";
    LegacyRowUnsigned "legacy_row_unsigned" "the row has no signature: it was removed, or the row was not written by the old system; compare the row with a backup";
    LegacyKeyRefused "legacy_key_refused" "the registry's key for this kid proves nothing: get the right public key from whoever ran the old system";
    LegacySignatureInvalid "legacy_signature_invalid" "the signature does not cover this payload and link: one of them was changed, or the registry has another key; compare the row with a backup, and the registry with whoever ran the old system";
    LegacyLinkBroken "legacy_link_broken" "no row is the one before this one: rows were deleted or changed there; take the missing rows from a backup";
    LegacyGenesisMissing "legacy_genesis_missing" "the chain does not start at its genesis: the first rows were deleted; take the first rows from a backup";
    LegacyFork "legacy_fork" "two rows claim one predecessor: one of the branches was added, or two writers raced; compare with a backup to learn which";
    LegacyRowDuplicate "legacy_row_duplicate" "the same event is there twice: a copy was added; compare with a backup";
    LegacyIdDuplicate "legacy_id_duplicate" "two rows have one id: one of them was added or changed; compare with a backup to learn which";
    LegacyCycle "legacy_cycle" "the links lead back to this row: stored hashes were overwritten to make a ring; compare with a backup";
    LegacyCountMismatch "legacy_count_mismatch" "the export says another number of events than it has: events were removed or added; export again, and compare";
    LegacyAnchorBeyondTail "legacy_anchor_beyond_tail" "the chain ends before a head that was saved: the last rows were deleted; take them from a backup";
    LegacyAnchorMismatch "legacy_anchor_mismatch" "the chain contradicts a head that was saved: rows up to it were rewritten, in fields that no hash covers if nothing else is found; compare with a backup from before";
    LegacyAdoptionMismatch "legacy_adoption_mismatch" "these are not the rows that the ledger adopted: one was changed in any column, deleted, inserted or moved since, or the entry never was true; compare with a backup from the time of the adoption";
    LegacyFieldsNotCovered "legacy_fields_not_covered" "this format hashes payload and link only; a head saved earlier or adoption into a ledger covers the rest";
    LegacyTailNotCovered "legacy_tail_not_covered" "nothing says that rows after the head were not deleted: give --anchor, and --save-anchor for next time";
    LegacyRangeNotCovered "legacy_range_not_covered" "these rows were not judged: judge the whole chain from time to time";
    LegacySignaturesNotCovered "legacy_signatures_not_covered" "no registry of signers was given, so whose chain it is was not checked: give --signers";
    LegacyAdoptionAsOf "legacy_adoption_as_of" "adoption proves the columns as they were when the ledger adopted the rows, not what they were before, and no row written since: adopt again";
    LegacyAdoptionRegistry "legacy_adoption_registry" "the registry of signers is another file than at the adoption: compare the two";
    LegacyOutsideWindow "legacy_outside_window" "rows carry times outside the kid's window; nobody signed these times, so it is for you to weigh";
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub code: Code,
    /// On which chain, where that makes sense.
    pub chain: Option<u64>,
    /// `table/key/…`, or `entries/from/to`.
    pub place: String,
    /// What should be there, and what is, where that helps.
    pub evidence: String,
}

impl Finding {
    /// The entries that it puts in doubt; `None` where it is of no entries.
    pub(crate) fn entries(&self) -> Option<Extent> {
        let mut parts = self.place.split('/');
        let table = parts.next()?;
        let number: u64 = parts.next()?.parse().ok()?;
        match (table, self.code) {
            ("entries", Code::EntryMissing) => {
                let to = parts.next()?.parse().ok()?;
                Some(Extent { from: number, to, missing: to })
            }
            // A row that somebody added may be of a place where no entry ever was.
            ("entries" | "private_documents" | "commits" | "commit_signatures", _) => {
                Some(Extent { from: number, to: number.checked_add(1)?, missing: 0 })
            }
            // What is missing follows on the last that is there.
            ("checkpoints", Code::AnchorBeyondTail | Code::CheckpointBeyondTail) => {
                Some(Extent { from: number.saturating_sub(1), to: number, missing: number })
            }
            // Somewhere before its size something is other than it was.
            ("checkpoints", Code::AnchorMismatch | Code::CheckpointRootMismatch) => {
                Some(Extent { from: 0, to: number, missing: 0 })
            }
            _ => None,
        }
    }
}

/// Whether a character would turn, hide or move what stands beside it.
pub(crate) fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text for a terminal, whoever wrote it: what would not be seen there, or do something, becomes visible.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unseen) {
        return Cow::Borrowed(text);
    }
    let each = |c: char| if is_unseen(c) { c.escape_unicode().collect() } else { vec![c] };
    Cow::Owned(text.chars().flat_map(each).collect())
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code.as_str())?;
        if let Some(chain) = self.chain {
            write!(f, " chain {chain}")?;
        }
        write!(f, " {}", visible(&self.place))?;
        if !self.evidence.is_empty() {
            write!(f, "\n    {}", visible(&self.evidence))?;
        }
        write!(f, "\n    {}", self.code.meaning())
    }
}
