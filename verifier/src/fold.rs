//! Steps 2.7 to 2.12: the entries are folded, and each is judged against the state it found.

use std::cell::RefCell;
use std::collections::HashSet;

use ledger_engine::adoption::{Adopted, Adoption};
use ledger_engine::body::{Body, BodyError};
use ledger_engine::document::SignedDocument;
use ledger_engine::domain::case::{Case, ListingClaim};
use ledger_engine::domain::projection::needs_idempotency_row;
use ledger_engine::domain::sku::manifest_of;
use ledger_engine::domain::{Illegal, Occurrence};
use ledger_engine::export::record::ExportEvent;
use ledger_engine::genesis::Genesis;
use ledger_engine::hash::Hash;
use ledger_engine::json::{Object, Value};
use ledger_engine::registry::{Registry, RegistryPlace};
use ledger_engine::stream::{CaseId, Stream};
use rayon::prelude::*;

use crate::chain::{self, Chain, Listings, Unit, case_of, gap_of};
use crate::collector::Collector;
use crate::finding::Code;
use crate::named::Named;
use crate::report::{ChainReport, or_none};
use crate::row::{EntryRow, read_entry};
use crate::seen::{Document, Seen};
use crate::source::{SourceError, Tables, watched};
use crate::spill::{RecordReader, Records, Sorter, Trouble};

/// What judging needs of the whole ledger.
pub(crate) struct Context<'a> {
    pub(crate) ledger_id: Hash,
    /// `None`: the registry is unknown.
    pub(crate) genesis: Option<&'a Genesis>,
    /// The genesis entry's body hash is right, but the genesis is not valid.
    pub(crate) genesis_invalid: bool,
    pub(crate) chains: &'a [Chain],
    pub(crate) listings: RefCell<Listings>,
    /// Sizes of anchors of chain 0.
    pub(crate) anchors: &'a [u64],
    pub(crate) trouble: &'a Trouble,
    /// Told how many entries of the chain were judged; `false` stops.
    pub(crate) told: &'a dyn Fn(u64) -> bool,
}

/// What the second pass over a chain learns; the orders themselves are with the chain's units.
pub(crate) struct Folded {
    /// Idempotency keys that need a row, each with the index of an entry, big-endian.
    pub(crate) idempotency: Sorter<40>,
    /// Legacy rows that were adopted.
    pub(crate) adopted: Vec<Adopted>,
    /// Entries of the key registry with a fault.
    pub(crate) faulty: HashSet<u64>,
    /// Signed documents of entries that were allowed, by index.
    pub(crate) documents: Records<SignedDocument>,
    /// Undamaged entries by type and day.
    pub(crate) counted: ChainReport,
    pub(crate) private_present: u64,
    pub(crate) private_redacted: u64,
    /// What entries `chain.heads` name of other chains, as far as it was compared with them.
    pub(crate) named: Named,
    /// Why events of SKUs are not allowed.
    refused: Option<RecordReader<String>>,
}

/// A row with what other passes know of its place.
struct Place<'a> {
    row: &'a EntryRow,
    /// `None`: its name is no stream's.
    stream: Option<Stream>,
    document: Option<Document>,
}

impl Context<'_> {
    fn home(&self, stream: &Stream) -> Option<u64> {
        self.genesis.map(|g| u64::from(stream.chain(g.chains)))
    }

    /// Judges the entries of one chain in order.
    pub(crate) fn judge(
        &self,
        tables: &dyn Tables,
        chain: &Chain,
        (units, refused): (&mut chain::Named<Unit>, Records<String>),
        registry: &mut Option<Registry>,
        out: &mut Collector,
    ) -> Result<Folded, SourceError> {
        let mut folded = Folded {
            idempotency: Sorter::new(),
            adopted: Vec::new(),
            faulty: HashSet::new(),
            documents: Records::new(),
            counted: ChainReport::default(),
            private_present: 0,
            private_redacted: 0,
            named: Named::below(self.anchors.iter().copied().filter(|_| chain.number == 0)),
            refused: self.trouble.or_default(refused.forward().map(Some)),
        };
        let mut gaps = chain.gaps.forward().map(gap_of).peekable();
        let (mut places, mut documents) = (chain.seen.forward(), chain.documents.forward());
        let mut last: Option<(u64, i64, bool)> = None;
        let id = self.ledger_id;
        watched(tables, "entries", chain.number, self.told, &mut |piece| {
            let rows: Vec<_> = piece
                .par_iter()
                .map(|cells| {
                    let row = read_entry(cells, &id);
                    let body = row.as_ref().map(|(_, bytes)| Body::decode(bytes));
                    (cells.get(1).and_then(crate::row::number), row, body)
                })
                .collect();
            for (idx, row, body) in rows {
                while let Some((from, to)) = gaps.next_if(|(_, to)| idx.is_some_and(|i| *to <= i)) {
                    out.entry_missing(chain.number, from, to);
                }
                let repeated = last.is_some_and(|(before, ..)| Some(before) == idx);
                let registry_entry = row.as_ref().is_some_and(|(row, _)| row.header.stream == "ledger");
                let (code, evidence) = match (idx.and_then(|i| places.at(i)), row, body) {
                    (Some(seen), Some((row, bytes)), Some(body)) if !repeated => {
                        folded.counted.count(&row.header.event_type, row.header.recorded_at_us);
                        let early = last.is_some_and(|(_, time, clean)| clean && row.header.recorded_at_us < time);
                        let judged = if seen.damage.is_some() {
                            None
                        } else {
                            {
                                let (stream, document) =
                                    (Stream::parse(&row.header.stream), documents.at(row.header.index));
                                let place = Place { row: &row, stream, document };
                                self.fold(chain, units, &place, body, registry, &mut folded)
                            }
                        };
                        let code = match seen.damage {
                            Some(code) => Some((code, evidence(&row, bytes, &seen))),
                            None if early => Some((Code::TimeRegression, String::new())),
                            None => stream_fault(chain, &seen).map(|c| (c, String::new())).or(judged),
                        };
                        last = Some((row.header.index, row.header.recorded_at_us, code.is_none()));
                        code.map_or((None, String::new()), |(c, e)| (Some(c), e))
                    }
                    (_, Some((row, _)), _) if repeated => {
                        last = Some((row.header.index, row.header.recorded_at_us, false));
                        (Some(Code::EntryDuplicate), String::new())
                    }
                    _ => {
                        last = Some((idx.unwrap_or(u64::MAX), 0, false));
                        (Some(Code::EntryUndecodable), String::new())
                    }
                };
                let genesis = chain.number == 0 && idx == Some(0) && self.genesis_invalid;
                let earlier =
                    matches!(code, Some(Code::EntryUndecodable | Code::EntryDuplicate | Code::BodyHashMismatch));
                let code = if genesis && !earlier { Some(Code::GenesisInvalid) } else { code };
                if let Some(code) = code {
                    let key = idx.map_or_else(|| "?".to_owned(), |i| i.to_string());
                    if registry_entry {
                        folded.faulty.extend(idx);
                    }
                    // One finding a row.
                    folded.documents.forget(idx.unwrap_or(u64::MAX));
                    out.report(code, Some(chain.number), format!("entries/{key}"), evidence);
                }
            }
        })?;
        for (from, to) in gaps {
            out.entry_missing(chain.number, from, to);
        }
        Ok(folded)
    }

    /// Steps 2.9 to 2.12 for an undamaged row.
    fn fold(
        &self,
        chain: &Chain,
        units: &mut chain::Named<Unit>,
        place: &Place<'_>,
        body: Result<Body, BodyError>,
        registry: &mut Option<Registry>,
        folded: &mut Folded,
    ) -> Option<(Code, String)> {
        let row = place.row;
        let body = match body {
            Ok(body) => body,
            Err(e) => return Some((Code::BodyInvalid, e.to_string())),
        };
        let h = &row.header;
        let stream = place.stream;
        let needs_row = |idem| stream.is_none_or(|s| needs_idempotency_row(s, h.revision, idem));
        if let Some(meta) = body.meta.as_ref().filter(|m| needs_row(&m.idem)) {
            let mut record = [0; 40];
            record[..32].copy_from_slice(&meta.idem.0);
            record[32..].copy_from_slice(&h.index.to_be_bytes());
            self.trouble.or_default(folded.idempotency.push(record));
        }
        let home = stream.as_ref().and_then(|s| self.home(s));
        if self.genesis.is_some() && home != Some(chain.number) {
            let home = home.map_or_else(|| "no chain".to_owned(), |home| format!("chain {home}"));
            return Some((Code::RoutingMismatch, format!("stream {} belongs on {home}", h.stream)));
        }
        let (judged, tainted) = units.with(&case_of(&h.stream), |unit| {
            let judged = self.transition(chain, unit, place, &body, registry, folded);
            (judged, unit.tainted)
        });
        let registry_event = h.event_type.starts_with("key.");
        // Without a chain that holds together the state may be wrong, and with it the judgement.
        let judgeable = !chain.tainted && !tainted;
        if let Err(e) = judged
            && (judgeable || registry_event && !chain.tainted)
        {
            let code = if registry_event { Code::RegistryInvalid } else { Code::IllegalTransition };
            return Some((code, e.0));
        }
        self.private(place, &body, folded)
    }

    fn private(&self, place: &Place<'_>, body: &Body, folded: &mut Folded) -> Option<(Code, String)> {
        let named = body.private_sha256?;
        let Some(document) = &place.document else {
            folded.private_redacted += 1;
            return None;
        };
        folded.private_present += 1;
        let found = document.sha256;
        (found != Some(named)).then(|| (Code::PrivateMismatch, format!("expected {named}, found {}", or_none(found))))
    }

    fn transition(
        &self,
        chain: &Chain,
        unit: &mut Unit,
        place: &Place<'_>,
        body: &Body,
        registry: &mut Option<Registry>,
        folded: &mut Folded,
    ) -> Result<(), Illegal> {
        let (row, Some(stream)) = (place.row, place.stream) else { return Ok(()) };
        let h = &row.header;
        let event = Occurrence::of(h, stream, body);
        let refuse = |why: &str| Err(Illegal(why.to_owned()));
        if h.event_type.starts_with("key.") {
            let (Some(registry), Some(_)) = (registry.as_mut(), self.genesis) else { return Ok(()) };
            if stream != Stream::Ledger {
                return refuse("an event of the key registry on another stream");
            }
            let parent_hash = Hash(h.parent_hash);
            let place = RegistryPlace {
                ledger_id: &self.ledger_id,
                revision: h.revision,
                parent_hash: &parent_hash,
                index: h.index,
            };
            return registry.apply(&h.event_type, &body.payload, place, row.entry_hash);
        }
        if h.index == 0 {
            let made = match (stream, h.event_type.as_str()) {
                (Stream::Ledger, "ledger.created") => chain.number == 0,
                (Stream::Chain(k), "chain.created") => {
                    let payload = Object::new().with("chain", i64::from(k));
                    body.actor_id == "system" && body.payload == payload && chain.number != 0
                }
                _ => false,
            };
            return if made { Ok(()) } else { refuse("not the entry that begins a chain") };
        }
        match stream {
            Stream::Sku(_) => match folded.refused.as_mut().and_then(|r| self.trouble.or_default(r.at(h.index))) {
                Some(why) => Err(Illegal(why)),
                None => {
                    // A listing that was folded: its manifest can be read.
                    let manifest = manifest_of(&body.payload).filter(|_| !chain.tainted && !unit.tainted);
                    if let Some(manifest) = manifest {
                        self.trouble.or_default(folded.documents.push(h.index, manifest.document()));
                    }
                    Ok(())
                }
            },
            Stream::Order(id) | Stream::Delivery(id, _) => {
                let case = unit.case.get_or_insert_with(|| Case::new(id));
                let rests_on_listing = matches!(event.event_type, "order.created" | "delivery.ready");
                let before = rests_on_listing.then(|| case.clone());
                let mut applied = case.apply(&event);
                if let Ok(Some(claim)) = applied.as_ref().map(|applied| &applied.claim)
                    && let Err(refuted) = self.listed(claim)
                {
                    // As for every illegal event, nothing has changed.
                    *case = before.unwrap_or_else(|| Case::new(id));
                    applied = Err(refuted);
                }
                if applied.is_err() && event.has_private {
                    case.private.push(h.index);
                }
                // In a case of which something is missing, the state that a signature is judged by may be wrong.
                if let Some(signed) = applied?.signed.filter(|_| !chain.tainted && !unit.tainted) {
                    self.trouble.or_default(folded.documents.push(h.index, signed));
                }
                Ok(())
            }
            Stream::Heads if h.event_type == "chain.heads" => self.heads(&body.payload, h.index, &mut folded.named),
            Stream::Legacy => {
                folded.adopted.push(Adoption::follow(folded.adopted.last(), &event)?);
                Ok(())
            }
            Stream::Exports => match self.genesis {
                Some(genesis) => ExportEvent::read(&event, genesis.chains).map(drop),
                None => Ok(()),
            },
            Stream::Ledger if self.genesis.is_none() => Ok(()),
            _ => refuse("no event of this stream"),
        }
    }

    /// Whether a listing says what a case rests on.
    fn listed(&self, claim: &ListingClaim) -> Result<(), Illegal> {
        let sku = CaseId::of_sku(&claim.sku_id);
        let stream = Stream::Sku(sku);
        let name = stream.to_string();
        let Some(home) = self.home(&stream).and_then(|n| self.chains.get(n as usize)) else { return Ok(()) };
        if home.tainted || home.tainted_streams.contains(&name) {
            return Ok(());
        }
        if self.listings.borrow_mut().say(sku, claim.revision, &claim.said) {
            Ok(())
        } else {
            Err(Illegal(claim.refuted()))
        }
    }

    fn heads(&self, payload: &Object, index: u64, named: &mut Named) -> Result<(), Illegal> {
        let Some(genesis) = self.genesis else { return Ok(()) };
        let wrong = || Illegal("the heads are not those of the chains".into());
        let items =
            payload.value("heads").and_then(Value::as_array).filter(|_| payload.len() == 1).ok_or_else(wrong)?;
        if items.len() != genesis.chains as usize {
            return Err(wrong());
        }
        for (chain, item) in self.chains.iter().zip(items) {
            let head = item.as_object().filter(|o| o.len() == 4).ok_or_else(wrong)?;
            let int = |name| head.value(name).and_then(Value::as_int).and_then(|n| u64::try_from(n).ok());
            let hash = |name| head.value(name).and_then(Value::as_str).and_then(Hash::from_hex);
            let (Some(number), Some(size), Some(root), Some(last)) =
                (int("chain"), int("size"), hash("root"), hash("head_hash"))
            else {
                return Err(wrong());
            };
            let most = match (chain.number, chain.tainted) {
                (0, _) => index,
                (_, true) => u64::MAX,
                (_, false) => chain.end,
            };
            if number != chain.number || size > most {
                return Err(wrong());
            }
            if size > chain.intact {
                continue;
            }
            let expected = size.checked_sub(1).map_or(Some(Hash::ZERO), |i| chain.seen.at(i).map(|s| s.hash));
            if chain.root(size) != Some(root) || expected != Some(last) {
                return Err(wrong());
            }
            named.name(index, chain.number as u32, size);
        }
        Ok(())
    }
}

/// Faults of a stream are consequences of damage, where there is any.
fn stream_fault(chain: &Chain, seen: &Seen) -> Option<Code> {
    seen.stream_fault.filter(|_| !chain.tainted)
}

fn evidence(row: &EntryRow, body: &[u8], seen: &Seen) -> String {
    match seen.damage {
        Some(Code::BodyHashMismatch) => {
            let found = ledger_engine::hash::body_hash(body);
            format!(
                "{} of stream {}: expected body hash {}, found {found}",
                row.header.event_type,
                row.header.stream,
                Hash(row.header.body_hash)
            )
        }
        Some(Code::EntryHashMismatch) => {
            format!(
                "{} of stream {}: expected entry hash {}, found {}",
                row.header.event_type, row.header.stream, row.entry_hash, row.digests.hash
            )
        }
        Some(Code::PrevHashMismatch) => {
            format!(
                "{} of stream {}: the link is {}",
                row.header.event_type,
                row.header.stream,
                Hash(row.header.prev_hash)
            )
        }
        _ => String::new(),
    }
}
