//! Step 4: commits tile the chain, and each is signed by a key that was valid at its place. Step 5: checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use ledger_engine::commit::{
    ALG_ED25519, COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX, COMMIT_SIGNATURES_MAX, Statement, verify_ed25519,
};
use ledger_engine::document::{DocumentFault, DocumentPlace};
use ledger_engine::domain::projection::Cell;
use ledger_engine::genesis::Genesis;
use ledger_engine::hash::Hash;
use ledger_engine::merkle;
use ledger_engine::note::{Checkpoint, Note, NoteKey};
use ledger_engine::registry::{KeyFault, Registry, cut_of};
use rayon::prelude::*;

use crate::chain::{Chain, Seen};
use crate::finding::Code;
use crate::fold::Folded;
use crate::row::{blob, hash, number, text};
use crate::single::{document_code, document_evidence, key_code};
use crate::source::{SourceError, Tables};
use crate::verify::Collector;

/// A commit row that can be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    pub(crate) first: u64,
    pub(crate) size: u64,
    pub(crate) registry_size: u64,
    pub(crate) registry_head: Hash,
}

impl Commit {
    pub(crate) fn end(&self) -> u64 {
        self.first + self.size
    }
}

/// A row with what was found so far.
struct Row {
    first: Option<u64>,
    commit: Option<Commit>,
    code: Option<Code>,
}

type Signatures = BTreeMap<u64, BTreeMap<String, (Cell, Cell)>>;

/// What judging signatures needs.
pub(crate) struct Keys<'a> {
    pub(crate) ledger_id: Hash,
    pub(crate) genesis: &'a Genesis,
    pub(crate) registry: &'a Registry,
    /// Chain 0, which holds the registry.
    pub(crate) first: &'a Chain,
}

impl Keys<'_> {
    /// Whether the registry itself may lack entries.
    fn doubtful(&self) -> bool {
        self.first.tainted || self.first.tainted_cases.contains("ledger")
    }

    /// Steps 4 for one chain. Returns how many signatures were verified.
    pub(crate) fn commits(
        &self,
        tables: &dyn Tables,
        chain: &Chain,
        folded: &Folded,
        out: &mut Collector,
    ) -> Result<(u64, u64), SourceError> {
        let mut seen = BTreeSet::new();
        let mut rows: Vec<Row> = tables
            .all("commits", Some(chain.number))?
            .iter()
            .map(|cells| {
                let first = number(&cells[1]);
                let commit = read_commit(cells).filter(|c| seen.insert(c.first));
                seen.extend(first);
                Row { first, code: commit.is_none().then_some(Code::CommitUndecodable), commit }
            })
            .collect();
        let signatures = self.signatures(tables, chain, &seen, &rows, out)?;
        // Judging a signature does not depend on other commits, so it is done in parallel; tiling afterwards.
        let faults: Vec<Option<(Code, String)>> =
            rows.par_iter().map(|row| self.fault(chain, row.commit.as_ref()?, &signatures)).collect();
        let mut floor = 0;
        for i in 0..rows.len() {
            let Some(commit) = rows[i].commit else { continue };
            if commit.end() > chain.known_end {
                rows[i].code = Some(Code::CommitTiling);
                continue;
            }
            let Some(entries) = entries(chain, &commit) else {
                floor = floor.max(commit.registry_size);
                continue;
            };
            let position = self
                .position(chain, &commit, &entries, floor)
                .then_some((Code::RegistryPositionMismatch, String::new()));
            let fault = position.or_else(|| faults[i].clone().filter(|(code, _)| *code != Code::CommitUnsigned));
            let before = i.checked_sub(1).map_or(Some(0), |b| rows[b].commit.map(|c| c.end()));
            let after = rows.get(i + 1).map_or(Some(chain.known_end), |r| r.first);
            let loose = before.is_some_and(|b| b != commit.first) || after.is_some_and(|a| a != commit.end());
            let signed = signatures.get(&commit.first).map_or(0, BTreeMap::len);
            let bytes: u64 = entries.iter().map(|(_, e)| e.bytes).sum::<u64>()
                + (commit.first..commit.end())
                    .filter_map(|i| chain.documents.get(&i)?.as_ref())
                    .map(|d| d.len() as u64)
                    .sum::<u64>();
            let mut evidence = String::new();
            rows[i].code = if fault.is_some() && loose {
                Some(Code::CommitTiling)
            } else if signed == 0 {
                Some(Code::CommitUnsigned)
            } else if signed > COMMIT_SIGNATURES_MAX {
                Some(Code::CommitUndecodable)
            } else if let Some((code, why)) = fault {
                evidence = why;
                Some(code)
            } else {
                (bytes > COMMIT_BYTES_MAX as u64).then_some(Code::CommitTooLarge)
            };
            match rows[i].code {
                None => {
                    floor = floor.max(commit.registry_size);
                    for (index, entry) in &entries[..entries.len() - 1] {
                        let early =
                            entry.registry_revision.is_some() && *index > 0 && !folded.faulty.contains_key(index);
                        if early {
                            let place = format!("entries/{index}");
                            out.report(
                                Code::RegistryInvalid,
                                Some(chain.number),
                                place,
                                "not the last entry of its commit".into(),
                            );
                        }
                    }
                }
                Some(code) => out.report(code, Some(chain.number), format!("commits/{}", commit.first), evidence),
            }
        }
        self.documents(chain, folded, &rows, out);
        let mut expected = Some(0);
        let mut clean = true;
        for row in &rows {
            if let (Some(e), Some(commit), None, true) = (expected, &row.commit, row.code, clean)
                && e != commit.first
            {
                out.report(
                    Code::CommitTiling,
                    Some(chain.number),
                    format!("commits/{e}"),
                    format!("the next commit starts at {}", commit.first),
                );
            }
            let tiling = row.code == Some(Code::CommitTiling);
            if row.commit.is_none() || (tiling && row.commit.is_some_and(|c| c.end() > chain.known_end)) {
                let place = row.first.map_or_else(|| "?".to_owned(), |f| f.to_string());
                out.report(
                    row.code.unwrap_or(Code::CommitUndecodable),
                    Some(chain.number),
                    format!("commits/{place}"),
                    String::new(),
                );
            }
            expected = row.commit.map(|c| c.end());
            clean = row.code.is_none();
        }
        if clean && expected.is_some_and(|e| e != chain.known_end) {
            let at = expected.unwrap_or_default();
            out.report(
                Code::CommitTiling,
                Some(chain.number),
                format!("commits/{at}"),
                format!("entries up to {} are in no commit", chain.known_end),
            );
        }
        Ok((rows.len() as u64, signatures.values().map(|s| s.len() as u64).sum()))
    }

    /// Step 4.7: documents of entries whose commit has no finding and says which keys there were.
    fn documents(&self, chain: &Chain, folded: &Folded, rows: &[Row], out: &mut Collector) {
        let judged = rows.iter().filter(|row| row.code.is_none()).filter_map(|row| row.commit);
        let judged: Vec<_> = judged
            .filter(|commit| entries(chain, commit).is_some())
            .flat_map(|c| folded.documents.range(c.first..c.end()).map(move |(i, document)| (*i, document, c)))
            .collect();
        let faults: Vec<Option<DocumentFault>> = judged
            .par_iter()
            .map(|(index, document, commit)| {
                let (ledger_id, chain, registry_size) = (&self.ledger_id, chain.number as u32, commit.registry_size);
                let place = DocumentPlace { ledger_id, chain, index: *index, registry_size };
                document.check(self.registry, place).err()
            })
            .collect();
        for ((index, document, _), fault) in judged.iter().zip(faults) {
            let Some(fault) = fault else { continue };
            let unknown = fault == DocumentFault::Key(KeyFault::Unknown);
            if unknown && self.registry.record(&document.kid).is_none() && self.doubtful() {
                continue;
            }
            let place = format!("entries/{index}");
            out.report(document_code(fault), Some(chain.number), place, document_evidence(document, fault));
        }
    }

    fn signatures(
        &self,
        tables: &dyn Tables,
        chain: &Chain,
        commits: &BTreeSet<u64>,
        rows: &[Row],
        out: &mut Collector,
    ) -> Result<Signatures, SourceError> {
        let mut signatures: Signatures = BTreeMap::new();
        let mut orphans = BTreeSet::new();
        let places: Vec<u64> = rows.iter().filter_map(|r| r.commit.map(|c| c.first)).collect();
        for cells in tables.all("commit_signatures", Some(chain.number))? {
            let kid = text(&cells[2]).unwrap_or("?").to_owned();
            let Some(first) = number(&cells[1]) else {
                orphans.insert((u64::MAX, kid));
                continue;
            };
            if !commits.contains(&first) {
                // Where commits leave a gap that starts here, the missing commit row is the fault.
                let gap = first == 0 && !places.contains(&0)
                    || rows.iter().any(|r| r.commit.is_some_and(|c| c.end() == first));
                if !gap {
                    orphans.insert((first, String::new()));
                }
                continue;
            }
            let of = signatures.entry(first).or_default();
            if of.contains_key(&kid) {
                orphans.insert((first, kid));
                continue;
            }
            of.insert(kid, (cells[3].clone(), cells[4].clone()));
        }
        for (first, kid) in orphans {
            out.report(
                Code::CommitSignatureOrphan,
                Some(chain.number),
                format!("commit_signatures/{first}/{kid}"),
                String::new(),
            );
        }
        Ok(signatures)
    }

    /// Step 4.4: whether the registry position is wrong.
    fn position(&self, chain: &Chain, commit: &Commit, entries: &[(u64, &Seen)], floor: u64) -> bool {
        let (size, head) = (commit.registry_size, commit.registry_head);
        let known = self.first.registry.get(&size);
        let good = if chain.number == 0 && commit.first == 0 {
            (size, head) == (0, Hash::ZERO)
        } else {
            size > 0 && known.map_or(self.doubtful(), |heads| heads.contains(&head))
        };
        let own = entries.iter().filter(|_| chain.number == 0).filter_map(|(_, e)| e.registry_revision).min();
        !good || size < floor || own.is_some_and(|revision| size >= revision)
    }

    /// Steps 4.5 and 4.6.
    fn fault(&self, chain: &Chain, commit: &Commit, signatures: &Signatures) -> Option<(Code, String)> {
        let entries = entries(chain, commit)?;
        let leaves: Vec<Hash> = entries.iter().map(|(_, e)| e.leaf).collect();
        let statement = Statement {
            ledger_id: self.ledger_id,
            chain: chain.number as u32,
            first_index: commit.first,
            size: commit.size as u32,
            root: merkle::root(&leaves),
            last_hash: entries.last().map(|(_, e)| e.hash).unwrap_or_default(),
            registry_size: commit.registry_size,
            registry_head: commit.registry_head,
        };
        for (kid, (alg, signature)) in signatures.get(&commit.first)? {
            let alg = number(alg).and_then(|a| u8::try_from(a).ok()).unwrap_or(0);
            let code = match self.registry.commit_key(kid, alg, statement.chain, commit.end(), commit.registry_size) {
                Ok(key) => {
                    let message = statement.to_bytes(ALG_ED25519, kid);
                    let good = blob(signature).is_some_and(|s| key.public_key.verify(&message, s));
                    if good {
                        continue;
                    }
                    Code::CommitSignatureInvalid
                }
                Err(KeyFault::Unknown) if self.registry.record(kid).is_none() && self.doubtful() => continue,
                Err(fault) => key_code(fault),
            };
            return Some((code, format!("kid {kid}, entries {} to {}", commit.first, commit.end() - 1)));
        }
        None
    }

    /// Step 5 for one chain. Returns how many checkpoints there are and the largest signed size that holds.
    pub(crate) fn checkpoints(
        &self,
        tables: &dyn Tables,
        chain: &Chain,
        out: &mut Collector,
    ) -> Result<(u64, Option<u64>), SourceError> {
        let mut seen = BTreeSet::new();
        let mut covered = None;
        let rows = tables.all("checkpoints", Some(chain.number))?;
        for cells in &rows {
            let size = number(&cells[1]);
            let fresh = size.is_none_or(|s| seen.insert(s));
            let result = if fresh {
                let judge = CheckpointJudge {
                    ledger_id: self.ledger_id,
                    origin: &self.genesis.origin,
                    registry: self.registry,
                    chain: chain.number as u32,
                    doubtful: self.doubtful(),
                };
                judge.judge(cells, chain.known_end, chain.intact, |size| chain.tree.root(size))
            } else {
                Err((Code::CheckpointUndecodable, "a second row".into()))
            };
            match result {
                Ok(signed) => covered = covered.max(signed),
                Err((code, why)) => {
                    let place = size.map_or_else(|| "?".to_owned(), |s| s.to_string());
                    out.report(code, Some(chain.number), format!("checkpoints/{place}"), why);
                }
            }
        }
        Ok((rows.len() as u64, covered))
    }
}

/// Step 5.
pub(crate) struct CheckpointJudge<'a> {
    pub(crate) ledger_id: Hash,
    /// The genesis's origin base.
    pub(crate) origin: &'a str,
    pub(crate) registry: &'a Registry,
    pub(crate) chain: u32,
    /// The registry may lack entries.
    pub(crate) doubtful: bool,
}

impl CheckpointJudge<'_> {
    /// Judges a row. The chain ends at `known_end`, and is certain below `intact`. Returns its size if it is signed and holds.
    pub(crate) fn judge(
        &self,
        cells: &[Cell],
        known_end: u64,
        intact: u64,
        root_at: impl Fn(u64) -> Option<Hash>,
    ) -> Result<Option<u64>, (Code, String)> {
        let fail = |code, why: &str| Err((code, why.to_owned()));
        let (Some(size), Some(root)) = (number(&cells[1]), hash(&cells[2])) else {
            return fail(Code::CheckpointUndecodable, "size or root");
        };
        let origin = Checkpoint::origin_of(self.origin, &self.ledger_id, self.chain);
        let note = match &cells[3] {
            Cell::Null => None,
            Cell::Text(t) => match Note::parse(t.as_bytes()).and_then(|n| Ok((Checkpoint::parse(&n.text)?, n))) {
                Ok(parsed) => Some(parsed),
                Err(e) => return fail(Code::CheckpointUndecodable, &e.to_string()),
            },
            _ => return fail(Code::CheckpointUndecodable, "the note is not text"),
        };
        if let Some((c, _)) = &note
            && (c.origin != origin || c.size != size || c.root != root)
        {
            return fail(Code::CheckpointMismatch, &format!("the note says {} {} {}", c.origin, c.size, c.root));
        }
        if size > known_end {
            return fail(Code::CheckpointBeyondTail, &format!("the chain ends at {}", known_end));
        }
        if size <= intact && root_at(size) != Some(root) {
            return fail(Code::CheckpointRootMismatch, &format!("expected {root}, found {:?}", root_at(size)));
        }
        let Some((_, note)) = note else { return Ok(None) };
        let mut known = false;
        for record in self.registry.checkpoint_keys() {
            let Some(public_key) = record.key.public_key.ed25519() else { continue };
            let key = NoteKey { name: origin.clone(), public_key };
            for line in note.signatures.iter().filter(|l| l.name == origin && l.key_id == key.key_id()) {
                known = true;
                if record.retired.as_ref().is_some_and(|r| size > cut_of(&r.cut, self.chain)) {
                    return fail(Code::KidNotValid, &record.key.kid);
                }
                if !verify_ed25519(&key.public_key, note.text.as_bytes(), &line.signature) {
                    return fail(Code::CheckpointSignatureInvalid, &record.key.kid);
                }
            }
        }
        if !known && !self.doubtful {
            return fail(Code::KidUnknown, "no signature by a checkpoint key of the registry");
        }
        Ok((known && size <= intact).then_some(size))
    }
}

/// Reads a row of `commits`.
pub(crate) fn read_commit(cells: &[Cell]) -> Option<Commit> {
    let size = number(&cells[2]).filter(|s| (1..=COMMIT_ENTRIES_MAX as u64).contains(s))?;
    let first = number(&cells[1]).filter(|f| f.checked_add(size).is_some())?;
    Some(Commit { first, size, registry_size: number(&cells[3])?, registry_head: hash(&cells[4])? })
}

/// The entries of a commit; `None` if one is damaged or missing.
fn entries<'a>(chain: &'a Chain, commit: &Commit) -> Option<Vec<(u64, &'a Seen)>> {
    if commit.end() > chain.end {
        return None;
    }
    let found: Vec<(u64, &Seen)> = chain.at.range(commit.first..commit.end()).map(|(i, s)| (*i, s)).collect();
    let whole = found.len() as u64 == commit.size
        && found.iter().all(|(i, s)| s.damage.is_none() && !chain.damaged.contains(i));
    whole.then_some(found)
}
