//! The order of legacy rows, against a model that looks at every row for every row.

use std::collections::{BTreeMap, BTreeSet};

use audit_verify::legacy::{File, FileFormat, LegacyReport, verify_legacy};
use audit_verify::{Code, Verdict};
use ledger_engine::hash::{Hash, sha256};

use crate::input::Input;

const ROWS_MAX: usize = 24;
/// No double holds it, so the row has the name that it claims to have: any graph can be made.
const NO_DOUBLE: &str = "1e999";

struct Row {
    name: Hash,
    recomputed: bool,
    alias: Option<Hash>,
    prev: Option<Hash>,
    id: u8,
    text: String,
}

/// One of few made-up hashes, of which the last are nobody's name.
fn made_up(byte: u8) -> Hash {
    Hash([byte % 12; 32])
}

fn rows(bytes: &[u8]) -> Vec<Row> {
    let mut input = Input::new(bytes);
    let mut rows: Vec<Row> = Vec::new();
    while !input.is_empty() && rows.len() < ROWS_MAX {
        let [kind, name, prev, id] = input.array::<4>();
        let prev = match prev {
            250.. => None,
            // Another row, by its own name.
            128.. if !rows.is_empty() => Some(rows[usize::from(prev - 128) % rows.len()].name),
            prev => Some(made_up(prev)),
        };
        let stored = made_up(name % 10);
        let link = prev.map_or("null".to_owned(), |p| format!("\"{p}\""));
        let id_text = if id == 0 { "null".to_owned() } else { format!("\"{id}\"") };
        let (payload, name, alias) = if kind % 2 == 1 {
            (NO_DOUBLE.to_owned(), stored, None)
        } else {
            let payload = (name % 4).to_string();
            let digest = match prev {
                None => sha256(&[payload.as_bytes()]),
                Some(prev) => sha256(&[payload.as_bytes(), &prev.0]),
            };
            (payload, digest, (kind % 4 == 2).then_some(stored))
        };
        let hash = alias.unwrap_or(name);
        let text = format!("{{\"id\":{id_text},\"payload\":{payload},\"hash\":\"{hash}\",\"prev_hash\":{link}}}\n");
        rows.push(Row { name, recomputed: kind % 2 == 0, alias, prev, id, text });
    }
    rows
}

/// The row that each row follows: the one before it if that has the name for certain, else the first of the name, else the first that claims it.
fn parents(rows: &[Row]) -> Vec<Option<usize>> {
    let named = |prev: &Hash, row: &Row| row.name == *prev || row.alias == Some(*prev);
    let parent = |at: usize| {
        let prev = rows[at].prev.as_ref()?;
        let before = at.checked_sub(1).filter(|b| rows[*b].recomputed && rows[*b].name == *prev);
        let first = || rows.iter().position(|r| r.name == *prev);
        before.or_else(first).or_else(|| rows.iter().position(|r| named(prev, r)))
    };
    (0..rows.len()).map(parent).collect()
}

/// The rows of each ring.
fn rings(parents: &[Option<usize>]) -> BTreeSet<BTreeSet<usize>> {
    let mut rings = BTreeSet::new();
    for start in 0..parents.len() {
        let mut path = Vec::new();
        let mut at = Some(start);
        while let Some(row) = at.filter(|row| !path.contains(row)) {
            path.push(row);
            at = parents[row];
        }
        if let Some(from) = at.and_then(|row| path.iter().position(|p| *p == row)) {
            rings.insert(path[from..].iter().copied().collect());
        }
    }
    rings
}

fn judged(text: &str, chunk_bytes: usize, threads: usize) -> LegacyReport {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let file = File::from_bytes(text.as_bytes().to_vec(), Some(FileFormat::Lines)).expect("text in memory");
    pool.install(|| verify_legacy("fuzz", &mut file.with_chunk_bytes(chunk_bytes), None, &[]))
}

pub(crate) fn links(bytes: &[u8]) {
    let rows = rows(bytes);
    let text: String = rows.iter().map(|row| row.text.as_str()).collect();
    let report = judged(&text, 8 << 20, 1);
    assert_eq!(judged(&text, 100, 2), report);
    if rows.is_empty() {
        return assert_eq!(report.verdict, Verdict::NotChecked);
    }
    let parents = parents(&rows);
    let rings = rings(&parents);
    let count = |codes: &[Code]| codes.iter().map(|c| report.counts.get(c).copied().unwrap_or(0)).sum::<u64>();

    let missing = (0..rows.len()).filter(|at| rows[*at].prev.is_some() && parents[*at].is_none()).count();
    assert_eq!(count(&[Code::LegacyLinkBroken, Code::LegacyGenesisMissing]), missing as u64);
    let no_genesis = rows.iter().all(|row| row.prev.is_some());
    assert_eq!(count(&[Code::LegacyGenesisMissing]), u64::from(no_genesis && missing > 0));
    assert_eq!(count(&[Code::LegacyCycle]), rings.len() as u64);

    let mut claims: BTreeMap<Option<Hash>, Vec<usize>> = BTreeMap::new();
    for (at, row) in rows.iter().enumerate() {
        claims.entry(row.prev).or_default().push(at);
    }
    let claimed_twice: usize = claims.values().map(|list| list.len() - 1).sum();
    let reported = count(&[Code::LegacyFork, Code::LegacyRowDuplicate]);
    assert_eq!(reported, claimed_twice as u64, "{}", report.to_text());

    let mut ids: BTreeMap<u8, Vec<Hash>> = BTreeMap::new();
    rows.iter().filter(|row| row.id > 0).for_each(|row| ids.entry(row.id).or_default().push(row.name));
    let other_names: u64 = ids.values().map(|names| names.iter().filter(|n| **n != names[0]).count() as u64).sum();
    assert_eq!(count(&[Code::LegacyIdDuplicate]), other_names);

    // A ring is cut before its first row.
    let cuts: BTreeSet<usize> = rings.iter().filter_map(|ring| ring.first().copied()).collect();
    let path = |at: usize| {
        let (mut root, mut links) = (at, 0);
        while let Some(parent) = parents[root].filter(|_| !cuts.contains(&root)) {
            (root, links) = (parent, links + 1);
        }
        (root, links)
    };
    let main = rows.iter().position(|row| row.prev.is_none()).unwrap_or_else(|| path(0).0);
    let longest = (0..rows.len()).map(path).filter(|(root, _)| *root == main).map(|(_, links)| links).max();
    assert_eq!(Some(report.chain_rows), longest.map(|l: u64| l + 1), "{}", report.to_text());
    let ends = (0..rows.len()).filter(|at| path(*at) == (main, report.chain_rows - 1));
    assert!(ends.map(|at| Some(rows[at].name)).any(|name| name == report.head));
    assert_eq!(report.rows, rows.len() as u64);
    // Nothing was signed for.
    assert_ne!(report.verdict, Verdict::Verified);
}
