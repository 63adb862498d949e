//! The whole judgement, in the steps of FORMAT.md 10.

use std::cell::Cell as Counter;
use std::cell::RefCell;
use std::collections::BTreeSet;

use ledger_engine::adoption::Adopted;
use ledger_engine::body::{BODY_BYTES_MAX, Body};
use ledger_engine::domain::projection::{Cell, TABLES};
use ledger_engine::genesis::{CHAINS_MAX, Genesis};
use ledger_engine::hash::{Hash, body_hash, sha256};
use ledger_engine::registry::{Purpose, Registry, cut_of};
use ledger_engine::stream::LEDGER_STREAM;

use crate::anchor::Anchor;
use crate::chain::{Chain, Listings, Reader, gap_of};
use crate::collector::{Collector, Findings};
use crate::commits::Keys;
use crate::derived::Derived;
use crate::export::Taker;
use crate::finding::Code;
use crate::fold::Context;
use crate::named::Named;
use crate::prove::{Stop, claimed_size, prove};
use crate::report::{ChainReport, KeyReport, Part, Report, Verdict, or_none};
use crate::row::{blob, hash, number};
use crate::seen::{Document, Documents};
use crate::source::{LEDGER_ROWS, SourceError, Tables, table_names};
use crate::spill::{Log, Trouble};

/// Told how many entries were judged, and how many the source says that it has; `false` stops the run.
pub type Progress<'a> = dyn Fn(u64, u64) -> bool + Sync + 'a;

/// What the caller knows and asks for.
#[derive(Clone, Copy, Default)]
pub struct Demands<'a> {
    /// The ledger id that it must be; without it the identity is not proven.
    pub trust: Option<Hash>,
    /// Checkpoints that the ledger must reach and contain.
    pub anchors: &'a [Anchor],
    /// Entries beyond every anchor leave the verdict open.
    pub require_anchor: bool,
    /// Only what came after the anchors is judged. A source with a fault, and an export, are judged as a whole.
    pub since_anchor: bool,
    /// Of an archive in S3, how its objects are locked is judged too.
    pub locks: bool,
    /// Called now and then.
    pub progress: Option<&'a Progress<'a>>,
    /// Takes the lines of an export as they are judged.
    pub taker: Option<&'a dyn Taker>,
}

/// Judges one source. Whatever cannot be read makes the report `could not check`.
///
/// A ledger without faults is proved in one pass and constant memory; any other is judged as by [`explain`].
pub fn verify(name: &str, tables: &dyn Tables, demands: Demands<'_>) -> Report {
    let proved = || -> Result<Report, Stop> {
        let mut out = Collector::default();
        let identity = identity(tables, demands.trust, &mut out)?;
        let genesis = identity.genesis.filter(|_| out.is_empty());
        let Some(genesis) = genesis else { return Err(Stop::Suspect("the ledger's identity".into())) };
        let proved = prove(tables, identity.id, &genesis, identity.hash, &demands)?;
        demands.taker.iter().for_each(|taker| taker.proved());
        let (id, origin) = (Some(identity.id), Some(genesis.origin));
        let succeeds = genesis.succeeds;
        let part = proved.since.map(|looked_up| tail(&proved.chains, looked_up));
        let report = Report::new(name, id, origin, &demands, Findings::default(), proved.chains, proved.unusable);
        let report = report.with_keys(proved.keys).with_adopted(proved.adopted).with_succession(succeeds);
        Ok(match part {
            Some(part) => report.of_part(part),
            None => report,
        })
    };
    let report = match proved() {
        Ok(report) => report,
        Err(Stop::Suspect(what) | Stop::Spill(what)) => {
            let copied = |rows: u64| demands.progress.is_none_or(|told| told(rows, 0));
            match tables.begin_again(&copied).and_then(|()| judge(name, tables, &demands)) {
                Ok(report) => report.judged_again_for(&what),
                Err(SourceError::Stopped) => {
                    let why = format!(
                        "stopped when asked to, before faults were named; what does not fit at first sight: {what}"
                    );
                    return Report::unreadable(name, &why);
                }
                Err(e) => Report::unreadable(name, &e.to_string()),
            }
        }
        Err(Stop::Asked(judged)) => {
            let what = format!(
                "stopped when asked to, after {judged} entries; they hold together, nothing beyond them was judged"
            );
            return Report::new(name, None, None, &demands, Findings::default(), Vec::new(), vec![what]);
        }
        Err(Stop::Source(e)) => Report::unreadable(name, &e.to_string()),
    };
    let report = report.of_kind(tables.kind());
    let report = match tables.export() {
        Some(export) => report.of_export(export.to_string()),
        None => report,
    };
    let held = !matches!(report.verdict(), Verdict::Broken | Verdict::NotChecked);
    // Looking at the whole file would cost what beginning at an anchor saves.
    let whole = held && report.part().is_none();
    let doubt = tables.doubt().or_else(|| whole.then(|| tables.flaw()).flatten());
    doubt.map_or(report, |e| Report::unreadable(name, &e.to_string()))
}

/// What a run that began at anchors says of itself.
fn tail(chains: &[ChainReport], looked_up: u64) -> Part {
    let mut part = Part::new("tail");
    for c in chains {
        let k = c.chain;
        if c.from == 0 {
            part.checked.push(format!("chain {k}: all entries, since no anchor lets a later beginning"));
            continue;
        }
        let (from, last, anchor) = (c.from, c.entries.saturating_sub(1), c.anchored.unwrap_or_default());
        part.checked.push(format!(
            "chain {k}: entries {from} to {last} with their commits, and that they continue the tree of the anchor (size {anchor})"
        ));
        part.not_covered.push(format!(
            "chain {k}: entries 0 to {} were not read again; their hashes are those of the anchor, their rows may have been changed since",
            from - 1
        ));
    }
    part.checked.push(format!(
        "{looked_up} entries from before the anchors that the new ones rest on, each in its anchor's tree"
    ));
    part.not_covered.extend([
        "rows of derived tables that the new entries did not touch, rows of no chain, and the database file as a whole"
            .to_owned(),
        "that no entry from before the anchors continues an order besides those that stream_heads leads to".to_owned(),
    ]);
    part
}

/// Judges one source, placing and naming every fault. Takes several passes; what has to be
/// remembered of every entry lies in temporary files.
pub fn explain(name: &str, tables: &dyn Tables, demands: Demands<'_>) -> Report {
    judge(name, tables, &demands).unwrap_or_else(|e| Report::unreadable(name, &e.to_string()))
}

/// What step 1 learns.
struct Identity {
    id: Hash,
    genesis: Option<Genesis>,
    /// The genesis body is the one its header names.
    authentic: bool,
    hash: Hash,
}

fn identity(tables: &dyn Tables, trust: Option<Hash>, out: &mut Collector) -> Result<Identity, SourceError> {
    let (rows, first) = tables.ledger_and_genesis()?;
    let claims: Vec<Option<Hash>> = rows.iter().map(|r| r.first().and_then(hash)).collect();
    let body = first.as_ref().and_then(|cells| blob(&cells[14]));
    let stored = first.as_ref().and_then(|cells| hash(&cells[10]));
    let authentic = body.is_some_and(|b| Some(body_hash(b)) == stored);
    let claimed = claims.iter().flatten().next().copied();
    let id = match body {
        Some(body) if authentic => Genesis::ledger_id(body),
        _ => trust.or(claimed).unwrap_or_default(),
    };
    if claims != [Some(id)] || trust.is_some_and(|t| t != id) {
        let shown: Vec<String> = claims.iter().map(|c| c.map_or_else(|| "unreadable".into(), Hash::to_hex)).collect();
        let pinned = trust.map_or_else(|| "nothing".to_owned(), Hash::to_hex);
        let more = if claims.len() == LEDGER_ROWS { " (and perhaps more)" } else { "" };
        let shown = shown.join(", ");
        let evidence = format!("genesis gives {id}; the ledger table holds {shown}{more}; pinned is {pinned}");
        out.report(Code::LedgerIdMismatch, None, "ledger".into(), evidence);
    }
    let genesis = body.filter(|_| authentic).and_then(|b| Body::decode(b).ok());
    let genesis = genesis.filter(|b| b.actor_id == "system").and_then(|b| Genesis::read(&b.payload));
    let entry_hash = first.as_ref().and_then(|cells| hash(&cells[12])).unwrap_or_default();
    Ok(Identity { id, genesis: genesis.filter(distinct_keys), authentic, hash: entry_hash })
}

pub(crate) fn distinct_keys(genesis: &Genesis) -> bool {
    let keys = genesis.keys();
    let kids: BTreeSet<_> = keys.iter().map(|k| &k.kid).collect();
    let public: BTreeSet<_> = keys.iter().map(|k| k.public_key.as_bytes()).collect();
    kids.len() == 3 && public.len() == 3
}

/// What the long way learns, besides its findings.
struct Judged {
    id: Hash,
    genesis: Option<Genesis>,
    registry: Option<Registry>,
    adopted: Vec<Adopted>,
    chains: Vec<ChainReport>,
    unchecked: Vec<String>,
}

fn judge(name: &str, tables: &dyn Tables, demands: &Demands<'_>) -> Result<Report, SourceError> {
    let mut out = Collector::default();
    let judged = match judge_all(tables, demands, &mut out) {
        // What was found stays found.
        Err(SourceError::Stopped) if !out.is_empty() => {
            let what = "what else is wrong: stopped when asked to, before all faults were named".to_owned();
            return Ok(Report::new(name, None, None, demands, out.complete()?, Vec::new(), vec![what]));
        }
        judged => judged?,
    };
    let Judged { id, genesis, registry, adopted, chains, unchecked } = judged;
    let (origin, succeeds) = genesis.map(|g| (g.origin, g.succeeds)).unzip();
    let keys = registry.as_ref().map(KeyReport::all).unwrap_or_default();
    let report = Report::new(name, Some(id), origin, demands, out.complete()?, chains, unchecked);
    Ok(report.with_keys(keys).with_adopted(adopted).with_succession(succeeds.flatten()))
}

fn judge_all(tables: &dyn Tables, demands: &Demands<'_>, out: &mut Collector) -> Result<Judged, SourceError> {
    if let Some(export) = tables.export() {
        export.findings()?.into_iter().for_each(|finding| out.add(finding));
    }
    let identity = identity(tables, demands.trust, out)?;
    let mut numbers: BTreeSet<u64> = BTreeSet::new();
    let mut largest = 0;
    for table in table_names() {
        for chain in tables.chains(table)? {
            match chain {
                Some(n) => {
                    numbers.insert(n);
                    largest = if table == "entries" && n < u64::from(CHAINS_MAX) { largest.max(n) } else { largest };
                }
                None => unplaced(tables, table, out)?,
            }
        }
    }
    let count = identity.genesis.as_ref().map_or(1 + largest, |g| u64::from(g.chains));
    for n in numbers.into_iter().filter(|n| *n >= count) {
        out.report(Code::ChainUnknown, Some(n), "chains".into(), format!("the ledger has {count} chains"));
    }
    let trouble = Trouble::default();
    let claimed = claimed_size(tables)?;
    // Entries are read twice; each time they are counted from the beginning.
    let (before, told) = (Counter::new(0), demands.progress);
    let told = |read: u64| told.is_none_or(|told| told(before.get() + read, claimed));
    let mut listings = Listings::new(&trouble);
    let mut chains: Vec<Chain> = Vec::new();
    for n in 0..count {
        let chains_known = identity.genesis.as_ref().map(|g| g.chains);
        let mut reader = Reader {
            ledger_id: identity.id,
            chains: chains_known,
            listings: &mut listings,
            trouble: &trouble,
            told: &told,
        };
        let mut chain = reader.read(tables, n)?;
        before.set(before.get() + chain.rows);
        documents(tables, n, &mut chain.documents)?;
        chains.push(chain);
    }
    let of_first = anchors_of_first(demands.anchors, &identity);
    let mut units: Vec<_> = chains.iter_mut().map(|chain| std::mem::take(&mut chain.units)).collect();
    let refused: Vec<_> = chains.iter_mut().map(|chain| std::mem::take(&mut chain.refused)).collect();
    let context = Context {
        ledger_id: identity.id,
        genesis: identity.genesis.as_ref(),
        genesis_invalid: identity.authentic && identity.genesis.is_none(),
        chains: &chains,
        listings: RefCell::new(listings),
        anchors: &of_first,
        trouble: &trouble,
        told: &told,
    };
    before.set(0);
    let mut registry = identity.genesis.as_ref().map(|g| Registry::new(g.chains, g.keys(), identity.hash));
    let mut folds = Vec::new();
    for (chain, kept) in chains.iter().zip(units.iter_mut().zip(refused)) {
        folds.push(context.judge(tables, chain, kept, &mut registry, out)?);
        before.set(before.get() + chain.rows);
        private_rows(tables, chain, &trouble, out)?;
    }
    let adopted = folds.first().map(|folded| folded.adopted.clone()).unwrap_or_default();
    let named = folds.first_mut().map(|folded| std::mem::take(&mut folded.named)).unwrap_or_default();
    // Where an entry of the registry is damaged, or may be missing, all chains rest on keys that nobody can be sure of.
    let registry_certain = registry.is_some()
        && chains.first().is_some_and(|c| !c.tainted && !c.tainted_streams.contains(LEDGER_STREAM))
        && folds.first().is_some_and(|folded| folded.faulty.is_empty());
    let mut reports = Vec::new();
    for ((chain, mut folded), units) in chains.iter().zip(folds).zip(units) {
        let mut report = ChainReport {
            chain: chain.number,
            entries: chain.rows,
            streams: chain.streams,
            private_present: folded.private_present,
            private_redacted: folded.private_redacted,
            end: chain.known_end,
            rows_digest: Some(chain.rows_digest()),
            registry_doubtful: !registry_certain,
            head: chain.head().filter(|_| !chain.tainted),
            root: chain.root(chain.end).filter(|_| chain.intact == chain.end),
            by_type: folded.counted.by_type.clone(),
            by_day: folded.counted.by_day.clone(),
            ..ChainReport::default()
        };
        if let (Some(genesis), Some(registry)) = (&identity.genesis, &registry) {
            let keys = Keys { ledger_id: identity.id, genesis, registry, first: &chains[0], trouble: &trouble };
            (report.commits, report.signatures) = keys.commits(tables, chain, &mut folded, out)?;
            (report.checkpoints, report.covered) = keys.checkpoints(tables, chain, out)?;
        }
        if let Some(export) = tables.export() {
            for (range, place) in export.seams().filter(|(r, _)| u64::from(r.chain) == chain.number && !chain.tainted) {
                let found = range.to.checked_sub(1).and_then(|i| chain.seen.at(i)).map(|s| s.hash);
                if range.to > 0 && (found != Some(range.last_hash) || chain.root(range.to) != Some(range.root)) {
                    let evidence =
                        format!("its last entry or root are not those of the files up to entry {}", range.to);
                    out.report(Code::ExportManifestMismatch, Some(chain.number), place, evidence);
                }
            }
            // What is wrong is named where it is; a damaged chain adds up to something else, of course.
            if let Err(evidence) = export.describes(&report)
                && !out.is_faulty(chain.number)
            {
                let place = format!("manifest/chains/{}", chain.number);
                out.report(Code::ExportManifestMismatch, Some(chain.number), place, evidence);
            }
        } else if !chain.tainted {
            let derived = Derived { tables, chain, units, id: &identity.id, trouble: &trouble };
            report.projection_rows = Some(derived.compare(folded, out)?);
        }
        reports.push(report);
    }
    // Where entries of chain 0 are missing, what the registry lacks is a consequence.
    let sound = chains.first().is_some_and(|chain| !chain.tainted);
    if let (Some(export), Some(registry), true) = (tables.export(), &registry, sound) {
        export.signatures(registry).into_iter().for_each(|finding| out.add(finding));
    }
    let unchecked = match (&identity.genesis, &registry) {
        (Some(genesis), Some(registry)) => {
            let mut open =
                anchors(demands.anchors, (genesis, &identity.id, registry), (&chains, &named), &mut reports, out);
            open.extend(compromised(registry, &mut reports));
            open
        }
        _ => Vec::new(),
    };
    trouble.check()?;
    let Identity { id, genesis, .. } = identity;
    Ok(Judged { id, genesis, registry, adopted, chains: reports, unchecked })
}

/// Entries that rest on a key while it was in other hands, and that no anchor covers (FORMAT.md 6).
pub(crate) fn compromised(registry: &Registry, chains: &mut [ChainReport]) -> Vec<String> {
    let mut open = Vec::new();
    // Keys of exports sign nothing that an entry rests on.
    for record in registry.records().iter().filter(|record| record.key.purpose != Purpose::Export) {
        let Some(retired) = &record.retired else { continue };
        for (since, chain) in retired.compromised_since.iter().flatten().zip(&mut *chains) {
            let from = chain.anchored.unwrap_or(0).max(*since).max(chain.from);
            let to = cut_of(&retired.cut, chain.chain as u32).min(chain.entries);
            if from < to {
                let (kid, k, last) = (&record.key.kid, chain.chain, to - 1);
                open.push(format!("chain {k}: entries {from} to {last} rest on {kid}, which was in other hands then"));
                chain.doubtful.push((from, to));
            }
        }
    }
    open
}

/// Sizes of the anchors that say that they are of chain 0.
fn anchors_of_first(anchors: &[Anchor], identity: &Identity) -> Vec<u64> {
    let Some(genesis) = &identity.genesis else { return Vec::new() };
    let of_first = |anchor: &&Anchor| anchor.chain(&genesis.origin, &identity.id, genesis.chains) == Some(0);
    anchors.iter().filter(of_first).map(Anchor::size).collect()
}

/// Compares what was kept with what is there. Returns why anchors say nothing.
fn anchors(
    anchors: &[Anchor],
    (genesis, ledger_id, registry): (&Genesis, &Hash, &Registry),
    (chains, named): (&[Chain], &Named),
    reports: &mut [ChainReport],
    out: &mut Collector,
) -> Vec<String> {
    let mut unusable = Vec::new();
    for anchor in anchors {
        let number = anchor.chain(&genesis.origin, ledger_id, genesis.chains);
        let (Some(k), None) = (number, anchor.unusable(number, registry)) else {
            unusable.extend(anchor.unusable(number, registry));
            continue;
        };
        let (chain, report, size) = (&chains[k as usize], &mut reports[k as usize], anchor.size());
        let place = format!("checkpoints/{size}");
        if size > chain.known_end {
            let text = format!("{} covers {size} entries, the chain ends at {}", anchor.name, chain.known_end);
            out.report(Code::AnchorBeyondTail, Some(k.into()), place, text);
        } else if size <= chain.intact && chain.root(size) != Some(anchor.root()) {
            let found = or_none(chain.root(size));
            let text = format!("{} has the root {}, found {found}", anchor.name, anchor.root());
            out.report(Code::AnchorMismatch, Some(k.into()), place, text);
        } else if size <= chain.intact {
            report.anchored = report.anchored.max(Some(size));
            for (other, size) in named.covered(size).filter(|_| k == 0) {
                if let Some(report) = reports.get_mut(other as usize) {
                    report.anchored = report.anchored.max(Some(size));
                }
            }
        } else {
            let name = &anchor.name;
            unusable.push(format!("anchor {name}: what is before its size {size} on chain {k} is damaged, so that there is nothing to compare it with"));
        }
    }
    unusable
}

fn documents(tables: &dyn Tables, chain: u64, documents: &mut Documents) -> Result<(), SourceError> {
    let mut last = None;
    tables.rows("private_documents", Some(chain), &mut |piece| {
        for cells in piece {
            let Some(index) = number(&cells[1]).filter(|index| last != Some(*index)) else { continue };
            last = Some(index);
            let bytes = blob(&cells[2]);
            let sha256 = bytes.filter(|b| b.len() <= BODY_BYTES_MAX).map(|b| sha256(&[b]));
            let len = bytes.map_or(0, |b| u32::try_from(b.len()).unwrap_or(u32::MAX));
            documents.push(index, &Document { len, sha256 });
        }
    })
}

/// Step 3.
fn private_rows(tables: &dyn Tables, chain: &Chain, trouble: &Trouble, out: &mut Collector) -> Result<(), SourceError> {
    // Which entries name a private document is in their bodies; those with one are few, so they are read again.
    let mut named = Log::<8>::new(trouble);
    let mut documents = chain.documents.forward();
    if documents.any() {
        tables.rows("entries", Some(chain.number), &mut |piece| {
            for cells in &piece {
                if let (Some(index), Some(body)) = (number(&cells[1]), blob(&cells[14]))
                    && documents.at(index).is_some()
                    && Body::decode(body).map_or(true, |b| b.private_sha256.is_some())
                {
                    named.push(&index.to_le_bytes());
                }
            }
        })?;
    }
    let (mut named, mut seen) = (named.forward(), chain.seen.forward());
    let mut gaps = chain.gaps.forward().map(gap_of).peekable();
    let mut last = None;
    tables.rows("private_documents", Some(chain.number), &mut |piece| {
        for cells in piece {
            let index = number(&cells[1]);
            let fresh = index.is_some() && index != last;
            last = index.or(last);
            let belongs = index.filter(|_| fresh).is_some_and(|i| {
                while gaps.next_if(|(_, to)| *to <= i).is_some() {}
                let missing = gaps.peek().is_some_and(|(from, _)| *from <= i);
                missing || seen.at(i).is_some_and(|s| s.spoiled) || named.at(i).is_some()
            });
            if !belongs {
                let place = index.map_or_else(|| "?".to_owned(), |i| i.to_string());
                let place = format!("private_documents/{place}");
                out.report(Code::PrivateUnexpected, Some(chain.number), place, String::new());
            }
        }
    })
}

/// Rows whose chain is not a number from 0.
fn unplaced(tables: &dyn Tables, table: &str, out: &mut Collector) -> Result<(), SourceError> {
    let code = match table {
        "entries" => Code::EntryUndecodable,
        "private_documents" => Code::PrivateUnexpected,
        "commits" => Code::CommitUndecodable,
        "commit_signatures" => Code::CommitSignatureOrphan,
        "checkpoints" => Code::CheckpointUndecodable,
        "chain_heads" => Code::ChainHeadMismatch,
        "stream_heads" => Code::StreamHeadMismatch,
        "tiles" => Code::TileMismatch,
        "event_id_runs" => Code::EventIndexMismatch,
        "cursors" => Code::CursorMismatch,
        name if TABLES.iter().any(|t| t.name == name) => Code::ProjectionMismatch,
        _ => return Ok(()),
    };
    let rows: Vec<Vec<Cell>> = tables.all(table, None)?;
    rows.iter().for_each(|_| out.report(code, None, table.to_owned(), "the chain column is no number from 0".into()));
    Ok(())
}
