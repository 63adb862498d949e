//! Lines as rows of the tables of FORMAT.md 8.

use ledger_engine::domain::projection::Cell;
use ledger_engine::export::{CheckpointLine, CommitLine, EntryLine, ExportFile, FileKind, Line, PrivateLine};
use ledger_engine::hash::Hash;

fn hash(hash: &Hash) -> Cell {
    Cell::Blob(hash.0.to_vec())
}

/// The chain of a line, its place there, and the smallest place that may follow. Entries stand at their index, a commit before its first, a
/// checkpoint after its last.
pub(super) fn place(line: &Line<'_>) -> (u32, u64, u64) {
    match line {
        Line::Entry(e) => (e.header.chain, e.header.index, e.header.index + 1),
        Line::Commit(c) => (c.chain, c.first_index, c.first_index),
        Line::Checkpoint(c) => (c.chain, c.size, c.size),
        Line::Private(p) => (p.chain, p.index, p.index + 1),
    }
}

/// Whether a line may stand in a file.
pub(super) fn is_of(line: &Line<'_>, file: &ExportFile) -> bool {
    let kind = if let Line::Private(_) = line { FileKind::Private } else { FileKind::Entries };
    let (chain, place, _) = place(line);
    (chain, kind) == (file.chain, file.kind) && (file.from..=file.to).contains(&place)
}

pub(super) fn entry(line: &EntryLine<'_>) -> Vec<Cell> {
    let h = &line.header;
    let bytes = |bytes: &[u8]| Cell::Blob(bytes.to_vec());
    vec![
        h.chain.into(),
        h.index.into(),
        bytes(&h.prev_hash),
        Cell::Text(h.stream.to_owned()),
        h.revision.into(),
        bytes(&h.parent_hash),
        bytes(&h.event_id),
        Cell::Text(h.event_type.to_owned()),
        u64::from(h.schema_version).into(),
        Cell::Int(h.recorded_at_us),
        bytes(&h.body_hash),
        bytes(&h.body_sha256),
        hash(&line.entry_hash),
        line.parent_index.map_or(Cell::Null, Cell::from),
        bytes(line.body),
    ]
}

pub(super) fn commit(line: &CommitLine) -> Vec<Cell> {
    let (first, size, registry) = (line.first_index, line.size, line.registry_size);
    vec![line.chain.into(), first.into(), size.into(), registry.into(), hash(&line.registry_head)]
}

pub(super) fn signatures(line: &CommitLine) -> Vec<Vec<Cell>> {
    let row = |s: &ledger_engine::commit::CommitSignature| {
        let (kid, alg) = (Cell::Text(s.kid.clone()), u64::from(s.alg).into());
        vec![line.chain.into(), line.first_index.into(), kid, alg, Cell::Blob(s.signature.clone())]
    };
    line.signatures.iter().map(row).collect()
}

pub(super) fn checkpoint(line: &CheckpointLine) -> Vec<Cell> {
    vec![line.chain.into(), line.size.into(), hash(&line.root), Cell::Text(line.note.clone())]
}

pub(super) fn private(line: &PrivateLine<'_>) -> Vec<Cell> {
    vec![line.chain.into(), line.index.into(), Cell::Blob(line.document.to_vec())]
}
