//! Event-id runs: how an event id leads to its entry without an index that every append would have to touch.
//!
//! An id is a hash, so an ordinary index over ids gets one random page write per entry; a measured third of the
//! append rate. But ids follow from places, so each complete run of 4,096 entries stores them once, sorted, and
//! the incomplete run at the end is computed when asked for. FORMAT.md 8.

use crate::hash::{EventId, Hash};

/// Entries covered by one run.
pub const RUN_ENTRIES: u64 = 4096;
/// Bytes of one record of a run: 8 of the id, 2 of the offset.
const RUN_RECORD: usize = 10;

/// The run over entries `[run × 4,096, (run + 1) × 4,096)` of a chain, FORMAT.md 8.
pub fn event_id_run(ledger_id: &Hash, chain: u32, run: u64) -> Vec<u8> {
    let mut records: Vec<[u8; RUN_RECORD]> = (0..RUN_ENTRIES)
        .map(|offset| {
            let id = EventId::derive(ledger_id, chain, run * RUN_ENTRIES + offset);
            let mut record = [0; RUN_RECORD];
            record[..8].copy_from_slice(&id.0[..8]);
            record[8..].copy_from_slice(&(offset as u16).to_le_bytes());
            record
        })
        .collect();
    records.sort_unstable();
    records.concat()
}

/// The runs that become complete when a chain grows, with their number.
pub fn completed_runs(ledger_id: &Hash, chain: u32, before: u64, after: u64) -> Vec<(u64, Vec<u8>)> {
    let runs = before / RUN_ENTRIES..after / RUN_ENTRIES;
    runs.map(|run| (run, event_id_run(ledger_id, chain, run))).collect()
}

/// Offset in a run of the id that begins like `id`.
pub fn find_in_run(ids: &[u8], id: &EventId) -> Option<u64> {
    let records: Vec<&[u8]> = ids.chunks_exact(RUN_RECORD).collect();
    let at = records.partition_point(|r| r[..8] < id.0[..8]);
    let record = records.get(at).filter(|r| r[..8] == id.0[..8])?;
    Some(u64::from(u16::from_le_bytes([record[8], record[9]])))
}
