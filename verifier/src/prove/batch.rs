//! A batch of an archive by itself: everything is judged that does not depend on what was before it, and what does is written down for whoever
//! joins the batches ([`crate::combine`]).
//!
//! The tree before the batch follows from the manifest's consistency proof, which holds its subtrees; the keys from the registry's entries,
//! of which there are few. Orders and SKUs that began in the batch are folded, and their last states written down; events of others are
//! written down as they are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use ledger_engine::domain::Occurrence;
use ledger_engine::export::FileKind;
use ledger_engine::hash::Hash;
use ledger_engine::json::Object;
use ledger_engine::merkle::CompactRange;
use ledger_engine::stream::Stream;
use serde::{Deserialize, Serialize};

pub(crate) use super::states::{Held, Key, Link, Tip};
use super::walk::Walk;
use super::{HeadClaim, Prover, Stop, check, suspect};
use crate::export::{Export, Item, channel, feed};
use crate::report::ChainReport;
use crate::single::Known;
use crate::verify::Demands;

/// An entry of something that began before the batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Later {
    pub(crate) chain: u32,
    pub(crate) index: u64,
    pub(crate) stream: Stream,
    pub(crate) link: Link,
    pub(crate) hash: Hash,
    pub(crate) event_type: String,
    pub(crate) recorded_at_us: i64,
    pub(crate) has_private: bool,
    /// Canonical.
    pub(crate) payload: Vec<u8>,
    /// How many entries of the registry its commit names.
    pub(crate) registry_size: u64,
}

impl Later {
    /// Its event, with the payload that was read from it.
    pub(crate) fn event<'a>(&'a self, payload: &'a Object) -> Occurrence<'a> {
        Occurrence {
            stream: self.stream,
            revision: self.link.revision,
            event_type: &self.event_type,
            payload,
            index: self.index,
            recorded_at_us: self.recorded_at_us,
            has_private: self.has_private,
        }
    }
}

/// What is written down one by one; as it is written and as it is read.
#[derive(Serialize)]
pub(crate) enum Record<'a> {
    Held(Key, &'a Held),
    Later(Later),
}

#[derive(Deserialize)]
pub(crate) enum Written {
    Held(Key, Box<Held>),
    Later(Later),
}

/// What a batch says of a chain.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ChainFacts {
    pub(crate) chain: u32,
    pub(crate) from: u64,
    pub(crate) first_time_us: Option<i64>,
    pub(crate) last_time_us: i64,
    /// Of the first and the last commit.
    pub(crate) first_registry_size: Option<u64>,
    pub(crate) last_registry_size: u64,
    /// Streams without a state that began before, with their first entry here and its index.
    pub(crate) links: Vec<(Stream, Link, u64)>,
    /// Streams without a state, with their last entry.
    pub(crate) tips: Vec<(Stream, Tip)>,
    /// Keys that signed commits or documents, with the end of the last one.
    pub(crate) signers: BTreeMap<String, u64>,
    pub(crate) report: ChainReport,
}

impl ChainFacts {
    pub(super) fn signed(&mut self, kid: &str, end: u64) {
        match self.signers.get_mut(kid) {
            Some(last) => *last = end.max(*last),
            None => drop(self.signers.insert(kid.to_owned(), end)),
        }
    }
}

/// What a batch says besides its records.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) chains: Vec<ChainFacts>,
    /// Listings of SKUs, and those that orders name and that are not among them, with the order's chain and index.
    pub(crate) listed: Vec<u128>,
    pub(crate) claimed: Vec<(u128, u32, u64)>,
    /// What `chain.heads` says of sizes that are not in the batch.
    pub(crate) heads: Vec<HeadClaim>,
    /// Of each other chain, the largest size that `chain.heads` names.
    pub(crate) named: Vec<(u32, u64)>,
}

/// Writes records into a file, compressed.
pub(crate) struct Writer {
    out: GzEncoder<BufWriter<File>>,
    blake3: blake3::Hasher,
    records: u64,
}

impl Writer {
    pub(crate) fn new(file: File) -> Writer {
        let out = GzEncoder::new(BufWriter::new(file), Compression::fast());
        Writer { out, blake3: blake3::Hasher::new(), records: 0 }
    }

    fn write(&mut self, record: &Record<'_>) -> io::Result<()> {
        let bytes = postcard::to_allocvec(record).map_err(io::Error::other)?;
        let len = (bytes.len() as u32).to_le_bytes();
        for part in [&len[..], &bytes] {
            self.blake3.update(part);
            self.out.write_all(part)?;
        }
        self.records += 1;
        Ok(())
    }

    /// How many records there are, and the digest of what they are before they are compressed.
    pub(crate) fn finish(self) -> io::Result<(u64, Hash)> {
        self.out.finish()?.flush()?;
        Ok((self.records, Hash(*self.blake3.finalize().as_bytes())))
    }
}

impl<'a> Prover<'a> {
    /// Writes down what is left to judge.
    pub(super) fn loose(&mut self, record: &Record<'_>) -> Result<(), Stop> {
        let Some(writer) = &mut self.loose else { return suspect("something that only a batch by itself leaves") };
        writer.write(record).map_err(|e| Stop::Spill(e.to_string()))
    }

    /// Takes out what chain 0 says of sizes of a chain that are not in the batch.
    fn heads_elsewhere(&mut self, chain: u32, from: u64, to: u64) -> Vec<HeadClaim> {
        let heads = std::mem::take(&mut self.heads);
        let (elsewhere, here) = heads.into_iter().partition(|h| h.chain == chain && !(from..=to).contains(&h.size));
        self.heads = here;
        elsewhere
    }
}

/// Proves that there is nothing to report of a batch by itself, and writes down what is left. `known`: the ledger with the keys as they were
/// before the batch.
pub(crate) fn prove_batch(
    batch: &Export,
    known: &Known,
    demands: &Demands<'_>,
    out: Writer,
) -> Result<(Facts, u64, Hash), Stop> {
    let Known { ledger_id, genesis, registry } = known;
    let manifest = batch.manifest();
    let mut prover = Prover {
        claimed_size: batch.entries(),
        loose: Some(out),
        ..Prover::new(*ledger_id, genesis, registry.clone(), demands.progress)
    };
    check(batch.fits_by_itself(), "the manifest, or the files of the directory")?;
    let continues = manifest.batch.as_ref().map(|b| b.continues.as_slice()).unwrap_or_default();
    let all = genesis.chains as usize;
    check((manifest.chains.len(), continues.len()) == (all, all), "the number of chains")?;
    let (mut heads, mut named) = (Vec::new(), Vec::new());
    for ((chain, range), continuation) in (0..).zip(&manifest.chains).zip(continues) {
        check(
            range.chain == chain && continuation.holds(range.from, range.to, &range.root).is_ok(),
            "what a batch continues",
        )?;
        let sizes = prover.heads.iter().filter(|h| h.chain == chain).map(|h| h.size);
        named.extend(sizes.max().map(|size| (chain, size)));
        heads.append(&mut prover.heads_elsewhere(chain, range.from, range.to));
        if range.from == range.to && range.from > 0 {
            check((range.commits, range.checkpoints) == (0, 0), "what the manifest says of a chain")?;
            let same = |h: &HeadClaim| (h.root, h.last_hash) == (range.root, range.prev_hash);
            check(prover.heads.iter().filter(|h| h.chain == chain).all(same), "what chain.heads says")?;
            check(range.prev_hash == range.last_hash, "what the manifest says of a chain")?;
            nothing(batch, chain, ledger_id)?;
            let (entries, root, head) = (range.to, Some(range.root), Some(range.last_hash));
            let report =
                ChainReport { chain: chain.into(), entries, from: entries, head, root, ..ChainReport::default() };
            prover.facts.push(ChainFacts { chain, from: entries, report, ..ChainFacts::default() });
            continue;
        }
        let before = CompactRange::before(range.from, range.to, &continuation.consistency, &continuation.root_before);
        let Some(before) = before else { return suspect("the tree before a batch") };
        let last_hash = range.prev_hash;
        let report = prover.export_from(batch, chain, |prover| Walk::batch(prover, chain, before, last_hash))?;
        check(batch.describes(&report).is_ok(), "what the manifest says of a chain")?;
    }
    check(batch.signatures(&prover.registry).is_empty(), "the signature of a manifest")?;
    let Prover { facts: chains, listed, claimed, loose, .. } = prover;
    let claimed = claimed.into_iter().filter(|(claim, _)| !listed.contains(claim));
    let mut claimed: Vec<_> = claimed.map(|(claim, (chain, index))| (claim, chain, index)).collect();
    claimed.sort_unstable_by_key(|(_, chain, index)| (*chain, *index));
    let mut listed: Vec<u128> = listed.into_iter().collect();
    listed.sort_unstable();
    let Some(writer) = loose else { return suspect("records that were lost") };
    let (records, digest) = writer.finish().map_err(|e| Stop::Spill(e.to_string()))?;
    Ok((Facts { chains, listed, claimed, heads, named }, records, digest))
}

/// That the files of a chain to which nothing was added are empty.
fn nothing(batch: &Export, chain: u32, ledger_id: &Hash) -> Result<(), Stop> {
    for kind in [FileKind::Entries, FileKind::Private] {
        let files = batch.located(chain, kind);
        let (sender, items) = channel();
        std::thread::scope(|scope| {
            scope.spawn(move || feed(&files, *ledger_id, false, &sender));
            while let Ok(items) = items.recv() {
                check(items?.iter().all(|item| matches!(item, Item::End(..))), "a line where nothing was added")?;
            }
            Ok::<_, Stop>(())
        })?;
    }
    Ok(())
}
