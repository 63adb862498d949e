//! Lines as rows of the tables of FORMAT.md 8.

use ledger_engine::domain::projection::Cell;
use ledger_engine::export::{CheckpointLine, CommitLine, EntryLine, PrivateLine};
use ledger_engine::hash::Hash;

fn hash(hash: &Hash) -> Cell {
    Cell::Blob(hash.0.to_vec())
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
