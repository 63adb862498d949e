//! Step 4: commits tile the chain, and each is signed by a key that was valid at its place. Step 5: checkpoints.

use std::collections::BTreeMap;

use ledger_engine::commit::{
    ALG_ED25519, COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX, COMMIT_SIGNATURES_MAX, Statement, verify_ed25519,
};
use ledger_engine::document::{DocumentFault, DocumentPlace, SignedDocument};
use ledger_engine::domain::projection::Cell;
use ledger_engine::genesis::Genesis;
use ledger_engine::hash::Hash;
use ledger_engine::merkle;
use ledger_engine::note::{Checkpoint, Note, NoteKey};
use ledger_engine::registry::{KeyFault, KeyRecord, Registry, cut_of};
use rayon::prelude::*;

use crate::chain::Chain;
use crate::collector::Collector;
use crate::finding::Code;
use crate::fold::Folded;
use crate::report::or_none;
use crate::row::{blob, hash, number, text};
use crate::seen::Seen;
use crate::single::{document_code, document_evidence, key_code};
use crate::source::{Cursor, SourceError, Tables};
use crate::spill::{Log, RecordReader, Sorter, Trouble};

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

/// A row of `commits` with everything that can be judged of it alone.
struct Row {
    first: Option<u64>,
    commit: Option<Commit>,
    /// Signatures by kid: algorithm and bytes.
    signatures: BTreeMap<String, (Cell, Cell)>,
    signed: usize,
}

/// What the entries of a commit say, where none is damaged or missing.
struct Entries {
    /// With private documents.
    bytes: u64,
    /// Entries of the key registry that are not the last, and the first revision among all.
    early: Vec<u64>,
    registry_revision: Option<u64>,
    fault: Option<(Code, String)>,
}

/// Rows judged side by side.
const PIECE: usize = 1024;
/// Kids remembered of one commit: more are counted.
const KIDS_MAX: usize = 64;

/// What judging signatures needs.
pub(crate) struct Keys<'a> {
    pub(crate) ledger_id: Hash,
    pub(crate) genesis: &'a Genesis,
    pub(crate) registry: &'a Registry,
    /// Chain 0, which holds the registry.
    pub(crate) first: &'a Chain,
    pub(crate) trouble: &'a Trouble,
}

impl Keys<'_> {
    /// Whether the registry itself may lack entries.
    fn doubtful(&self) -> bool {
        self.first.tainted || self.first.tainted_streams.contains("ledger")
    }

    /// Steps 4 for one chain. Returns how many commits there are, and how many signatures.
    pub(crate) fn commits(
        &self,
        tables: &dyn Tables,
        chain: &Chain,
        folded: &mut Folded,
        out: &mut Collector,
    ) -> Result<(u64, u64), SourceError> {
        let mut orphans =
            Orphans { chain: chain.number, found: Collector::default(), candidates: Log::new(self.trouble) };
        let documents = std::mem::take(&mut folded.documents).forward();
        let documents = Documents {
            keys: self,
            chain: chain.number,
            unread: self.trouble.or_default(documents.map(Some)),
            jobs: Vec::new(),
            found: Collector::default(),
        };
        let mut tiling =
            Tiling { keys: self, chain, folded, documents, floor: 0, before: Some(0), expected: Some(0), clean: true };
        let (mut found, mut gaps) = (Collector::default(), Collector::default());
        let (mut commits, mut signatures) = (0, 0);
        tables.side_by_side(chain.number, &["commits", "commit_signatures"], &mut |cursors| {
            let [rows, signed] = cursors else { return Ok(()) };
            let mut reader = RowReader { signed: signed.as_mut(), ahead: None, last: None };
            reader.advance()?;
            let mut waiting: Option<(Row, Option<Entries>)> = None;
            loop {
                let mut piece = Vec::new();
                while piece.len() < PIECE {
                    let Some(cells) = rows.next()? else { break };
                    piece.push(reader.row(&cells, &mut orphans)?);
                }
                let end = piece.is_empty();
                commits += piece.len() as u64;
                signatures += piece.iter().map(|row: &Row| row.signed as u64).sum::<u64>();
                let judged: Vec<(Row, Option<Entries>)> = piece
                    .into_par_iter()
                    .map(|row| {
                        let entries =
                            row.commit.as_ref().and_then(|commit| self.entries(chain, commit, &row.signatures));
                        (row, entries)
                    })
                    .collect();
                for next in judged {
                    if let Some((row, entries)) = waiting.replace(next) {
                        let after = waiting.as_ref().map_or(Some(chain.known_end), |(row, _)| row.first);
                        tiling.take(&row, entries, after, &mut found, &mut gaps);
                    }
                }
                if end {
                    break;
                }
            }
            if let Some((row, entries)) = waiting {
                tiling.take(&row, entries, Some(chain.known_end), &mut found, &mut gaps);
            }
            // Signatures beyond the last commit.
            reader.orphans_before(u64::MAX, &mut orphans)
        })?;
        tiling.end(&mut gaps);
        self.name_orphans(tables, orphans, out)?;
        out.append(found)?;
        out.append(tiling.documents.end())?;
        out.append(gaps)?;
        Ok((commits, signatures))
    }

    /// Reports signatures without a commit. Where commits leave a gap that starts there, the missing commit row is the fault.
    fn name_orphans(&self, tables: &dyn Tables, orphans: Orphans, out: &mut Collector) -> Result<(), SourceError> {
        let Orphans { chain, found, candidates } = orphans;
        let mut excused = candidates.forward().map(u64::from_le_bytes).peekable();
        let mut ends = Sorter::<8>::new();
        if excused.peek().is_some() {
            let mut begun = false;
            tables.rows("commits", Some(chain), &mut |piece| {
                for commit in piece.iter().filter_map(|cells| read_commit(cells)) {
                    begun |= commit.first == 0;
                    self.trouble.or_default(ends.push(commit.end().to_be_bytes()));
                }
            })?;
            if !begun {
                self.trouble.or_default(ends.push([0; 8]));
            }
        }
        let mut ends = self.trouble.or_default(ends.sorted().map(Some));
        let mut end = None;
        let mut next = || ends.as_mut().and_then(|ends| self.trouble.or_default(ends.next())).map(u64::from_be_bytes);
        for first in excused {
            while end.is_none_or(|end| end < first) {
                end = next();
                if end.is_none() {
                    break;
                }
            }
            if end != Some(first) {
                let place = format!("commit_signatures/{first}/");
                out.report(Code::CommitSignatureOrphan, Some(chain), place, String::new());
            }
        }
        out.append(found)
    }

    /// Step 4.4: whether the registry position is wrong.
    fn position(&self, chain: &Chain, commit: &Commit, entries: &Entries, floor: u64) -> bool {
        let (size, head) = (commit.registry_size, commit.registry_head);
        let known = self.first.registry.get(&size);
        let good = if chain.number == 0 && commit.first == 0 {
            (size, head) == (0, Hash::ZERO)
        } else {
            size > 0 && known.map_or(self.doubtful(), |heads| heads.contains(&head))
        };
        let own = entries.registry_revision.filter(|_| chain.number == 0);
        !good || size < floor || own.is_some_and(|revision| size >= revision)
    }

    /// What the entries of a commit say, steps 4.5 and 4.6 with it; `None` if one is damaged or missing.
    fn entries(&self, chain: &Chain, commit: &Commit, signatures: &BTreeMap<String, (Cell, Cell)>) -> Option<Entries> {
        if commit.end() > chain.end {
            return None;
        }
        let seen = chain.seen.span(commit.first..commit.end());
        if seen.len() as u64 != commit.size || seen.iter().any(|s| s.spoiled) {
            return None;
        }
        let registry = seen[..seen.len() - 1].iter().filter(|s| s.registry_revision.is_some() && s.index > 0);
        Some(Entries {
            bytes: seen.iter().map(|s| u64::from(s.bytes)).sum::<u64>()
                + chain.documents.bytes(commit.first..commit.end()),
            early: registry.map(|s| s.index).collect(),
            registry_revision: seen.iter().filter_map(|s| s.registry_revision).min(),
            fault: self.fault(chain, commit, &seen, signatures),
        })
    }

    fn fault(
        &self,
        chain: &Chain,
        commit: &Commit,
        seen: &[Seen],
        signatures: &BTreeMap<String, (Cell, Cell)>,
    ) -> Option<(Code, String)> {
        let leaves: Vec<Hash> = seen.iter().map(|s| s.leaf).collect();
        let statement = Statement {
            ledger_id: self.ledger_id,
            chain: chain.number as u32,
            first_index: commit.first,
            size: commit.size as u32,
            root: merkle::root(&leaves),
            last_hash: seen.last().map(|s| s.hash).unwrap_or_default(),
            registry_size: commit.registry_size,
            registry_head: commit.registry_head,
        };
        for (kid, (alg, signature)) in signatures {
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
        // Rows come by size, those without a usable one before or after all others.
        let (mut last, mut covered, mut rows) = (None, None, 0);
        tables.rows("checkpoints", Some(chain.number), &mut |piece| {
            rows += piece.len() as u64;
            for cells in &piece {
                let size = number(&cells[1]);
                let result = if size.is_none() || size != last {
                    let judge = CheckpointJudge {
                        ledger_id: self.ledger_id,
                        origin: &self.genesis.origin,
                        registry: self.registry,
                        chain: chain.number as u32,
                        doubtful: self.doubtful(),
                    };
                    judge.judge(cells, chain.known_end, chain.intact, |size| chain.root(size))
                } else {
                    Err((Code::CheckpointUndecodable, "a second row".into()))
                };
                last = size;
                match result {
                    Ok(signed) => covered = covered.max(signed),
                    Err((code, why)) => {
                        let place = size.map_or_else(|| "?".to_owned(), |s| s.to_string());
                        out.report(code, Some(chain.number), format!("checkpoints/{place}"), why);
                    }
                }
            }
        })?;
        Ok((rows, covered))
    }
}

/// Reads commits with their signatures, both in the order of the first index.
struct RowReader<'c, 'd> {
    signed: &'c mut (dyn Cursor + 'd),
    ahead: Option<Vec<Cell>>,
    /// First index of the commit before.
    last: Option<u64>,
}

/// Signatures that belong to no commit.
struct Orphans {
    chain: u64,
    /// Those that are so in any case.
    found: Collector,
    /// First indexes that no commit row has.
    candidates: Log<8>,
}

impl Orphans {
    fn report(&mut self, first: u64, kid: &str) {
        let place = format!("commit_signatures/{first}/{kid}");
        self.found.report(Code::CommitSignatureOrphan, Some(self.chain), place, String::new());
    }
}

impl RowReader<'_, '_> {
    fn advance(&mut self) -> Result<(), SourceError> {
        self.ahead = self.signed.next()?;
        Ok(())
    }

    /// Takes signatures whose first index is no number, or below `first`.
    fn orphans_before(&mut self, first: u64, orphans: &mut Orphans) -> Result<(), SourceError> {
        let mut last = None;
        while let Some(cells) = &self.ahead {
            match number(&cells[1]) {
                None => orphans.report(u64::MAX, text(&cells[2]).unwrap_or("?")),
                Some(at) if at >= first => break,
                Some(at) if last.replace(at) == Some(at) => {}
                Some(at) => orphans.candidates.push(&at.to_le_bytes()),
            }
            self.advance()?;
        }
        Ok(())
    }

    fn row(&mut self, cells: &[Cell], orphans: &mut Orphans) -> Result<Row, SourceError> {
        let first = number(&cells[1]);
        let again = first.is_some() && first == self.last;
        let commit = read_commit(cells).filter(|_| !again);
        self.last = first.or(self.last);
        let mut row = Row { first, commit, signatures: BTreeMap::new(), signed: 0 };
        let Some(first) = first.filter(|_| !again) else { return Ok(row) };
        self.orphans_before(first, orphans)?;
        let mut before = None;
        while let Some(cells) = self.ahead.take_if(|cells| number(&cells[1]) == Some(first)) {
            self.advance()?;
            let kid = text(&cells[2]).unwrap_or("?").to_owned();
            // They come by kid.
            if row.signatures.contains_key(&kid) || before.as_ref() == Some(&kid) {
                orphans.report(first, &kid);
                continue;
            }
            row.signed += 1;
            before = Some(kid.clone());
            if let [.., alg, signature] = &cells[..]
                && row.signatures.len() < KIDS_MAX
            {
                row.signatures.insert(kid, (alg.clone(), signature.clone()));
            }
        }
        Ok(row)
    }
}

/// Judges commits against their neighbours.
struct Tiling<'a, 'k> {
    keys: &'a Keys<'k>,
    chain: &'a Chain,
    folded: &'a Folded,
    documents: Documents<'a, 'k>,
    /// Largest registry size named so far.
    floor: u64,
    /// Where the row before ends, if it can be read.
    before: Option<u64>,
    /// The same for commits without fault.
    expected: Option<u64>,
    clean: bool,
}

impl Tiling<'_, '_> {
    /// Takes a row; `after` is where the next one begins.
    fn take(
        &mut self,
        row: &Row,
        entries: Option<Entries>,
        after: Option<u64>,
        out: &mut Collector,
        gaps: &mut Collector,
    ) {
        let (chain, number) = (self.chain, Some(self.chain.number));
        let place = row.first.map_or_else(|| "?".to_owned(), |f| f.to_string());
        let beyond = row.commit.is_some_and(|c| c.end() > chain.known_end);
        let mut code = row.commit.is_none().then_some(Code::CommitUndecodable);
        match (&row.commit, &entries) {
            (None, _) => {}
            _ if beyond => code = Some(Code::CommitTiling),
            (Some(commit), None) => self.floor = self.floor.max(commit.registry_size),
            (Some(commit), Some(entries)) => {
                let wrong = self.keys.position(chain, commit, entries, self.floor);
                let position = wrong.then(|| (Code::RegistryPositionMismatch, String::new()));
                let fault = position.or_else(|| entries.fault.clone());
                let loose = self.before.is_some_and(|b| b != commit.first) || after.is_some_and(|a| a != commit.end());
                let mut evidence = String::new();
                code = if fault.is_some() && loose {
                    Some(Code::CommitTiling)
                } else if row.signed == 0 {
                    Some(Code::CommitUnsigned)
                } else if row.signed > COMMIT_SIGNATURES_MAX {
                    Some(Code::CommitUndecodable)
                } else if let Some((code, why)) = fault {
                    evidence = why;
                    Some(code)
                } else {
                    (entries.bytes > COMMIT_BYTES_MAX as u64).then_some(Code::CommitTooLarge)
                };
                match code {
                    None => {
                        self.floor = self.floor.max(commit.registry_size);
                        self.documents.take(commit);
                        for index in entries.early.iter().filter(|i| !self.folded.faulty.contains(i)) {
                            let why = "not the last entry of its commit".to_owned();
                            out.report(Code::RegistryInvalid, number, format!("entries/{index}"), why);
                        }
                    }
                    Some(code) => out.report(code, number, format!("commits/{place}"), evidence),
                }
            }
        }
        if let (Some(e), Some(commit), None, true) = (self.expected, &row.commit, code, self.clean)
            && e != commit.first
        {
            let why = format!("the next commit starts at {}", commit.first);
            gaps.report(Code::CommitTiling, number, format!("commits/{e}"), why);
        }
        if row.commit.is_none() || beyond {
            let code = code.unwrap_or(Code::CommitUndecodable);
            gaps.report(code, number, format!("commits/{place}"), String::new());
        }
        self.before = row.commit.map(|c| c.end());
        self.expected = self.before;
        self.clean = code.is_none();
    }

    fn end(&self, gaps: &mut Collector) {
        let end = self.chain.known_end;
        if let Some(at) = self.expected.filter(|e| self.clean && *e != end) {
            let why = format!("entries up to {end} are in no commit");
            gaps.report(Code::CommitTiling, Some(self.chain.number), format!("commits/{at}"), why);
        }
    }
}

/// Step 4.7: documents of entries whose commit has no finding and says which keys there were.
struct Documents<'a, 'k> {
    keys: &'a Keys<'k>,
    chain: u64,
    unread: Option<RecordReader<SignedDocument>>,
    /// Index, document, and the registry size that its commit names.
    jobs: Vec<(u64, SignedDocument, u64)>,
    found: Collector,
}

impl Documents<'_, '_> {
    fn take(&mut self, commit: &Commit) {
        let Some(unread) = &mut self.unread else { return };
        while let Some((index, document)) = self.keys.trouble.or_default(unread.next_below(commit.end())) {
            // Those of commits with findings are passed over.
            if index >= commit.first {
                self.jobs.push((index, document, commit.registry_size));
            }
        }
        if self.jobs.len() >= PIECE {
            self.judge();
        }
    }

    fn judge(&mut self) {
        let jobs = std::mem::take(&mut self.jobs);
        let (keys, chain) = (self.keys, self.chain);
        let faults: Vec<Option<DocumentFault>> = jobs
            .par_iter()
            .map(|(index, document, registry_size)| {
                let place = DocumentPlace {
                    ledger_id: &keys.ledger_id,
                    chain: chain as u32,
                    index: *index,
                    registry_size: *registry_size,
                };
                document.check(keys.registry, place).err()
            })
            .collect();
        for ((index, document, _), fault) in jobs.iter().zip(faults) {
            let Some(fault) = fault else { continue };
            let unknown = fault == DocumentFault::Key(KeyFault::Unknown);
            if unknown && keys.registry.record(&document.kid).is_none() && keys.doubtful() {
                continue;
            }
            let place = format!("entries/{index}");
            self.found.report(document_code(fault), Some(chain), place, document_evidence(document, fault));
        }
    }

    fn end(mut self) -> Collector {
        self.judge();
        self.found
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
    /// Which checkpoint keys of the registry a row's note has lines of.
    pub(crate) fn signers(&self, cells: &[Cell]) -> Vec<String> {
        let note = cells.get(3).and_then(text).and_then(|t| Note::parse(t.as_bytes()).ok());
        let origin = Checkpoint::origin_of(self.origin, &self.ledger_id, self.chain);
        let signed = |record: &&KeyRecord| {
            let key = record.key.public_key.ed25519().map(|public_key| NoteKey { name: origin.clone(), public_key });
            let lines = note.iter().flat_map(|note| &note.signatures);
            key.is_some_and(|key| lines.clone().any(|l| l.name == origin && l.key_id == key.key_id()))
        };
        self.registry.checkpoint_keys().filter(signed).map(|record| record.key.kid.clone()).collect()
    }

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
            return fail(Code::CheckpointRootMismatch, &format!("expected {root}, found {}", or_none(root_at(size))));
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
