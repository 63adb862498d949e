//! Reading a ledger: streams, orders, proofs, projections. It needs no key, so that who may only read need not see one.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::adoption::{Adopted, Adoption};
use crate::archive::{ExportError, ExportOptions, export_to_directory};
use crate::body::{Body, PrivateDocument};
use crate::domain::projection::{
    DELIVERIES, ORDERS, Row, SKUS, TABLES, Table, case_rows, idempotency_row, needs_idempotency_row, sku_row,
};
use crate::domain::{Occurrence, case::Case, sku::Sku};
use crate::export::Manifest;
use crate::genesis::Genesis;
use crate::hash::{EventId, Hash};
use crate::json::Value;
use crate::merkle::{self, Nodes, TILE_WIDTH};
use crate::proof::{Proof, ProvenCommit};
use crate::prover::{ProveError, commits, prove};
use crate::registry::{Action, Key, Registry, RegistryPlace};
use crate::store::{Entry, Store, StoreError};
use crate::stream::{CaseId, LEDGER_STREAM, Stream};
use crate::writer::read_case;

/// Entries read at a time by folds.
const PAGE: usize = 1024;

/// A ledger opened for reading.
pub struct Reader {
    store: Arc<dyn Store>,
    genesis: Genesis,
    id: Hash,
}

impl Reader {
    /// Opens an existing ledger. Returns its key registry as of now too.
    pub async fn open(store: Arc<dyn Store>) -> Result<(Reader, Registry), StoreError> {
        let reading = Arc::clone(&store);
        let (genesis, id, registry) = blocking(move || read_genesis(&*reading)).await?;
        Ok((Reader { store, genesis, id }, registry))
    }

    /// The key registry as it is stored now.
    pub async fn stored_registry(&self) -> Result<Registry, StoreError> {
        let (store, genesis, id) = (Arc::clone(&self.store), self.genesis.clone(), self.id);
        blocking(move || load_registry(&*store, &genesis, id)).await
    }

    /// What governance and the key itself sign so that the key is enrolled, and the revision of the registry entry that it makes.
    /// It is good until the registry changes. An emergency key has a justification, which is recorded.
    pub async fn enrol_statement(&self, key: &Key, justification: Option<&str>) -> Result<(u64, Vec<u8>), StoreError> {
        let registry = self.stored_registry().await?;
        let action = Action::Enrol { key: key.clone(), justification: justification.map(str::to_owned) };
        Ok((registry.size() + 1, registry.next_statement(&self.id, &action)))
    }

    /// SHA-256 of the genesis body: what auditors pin.
    pub fn id(&self) -> Hash {
        self.id
    }

    /// What the genesis fixes.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The entries of one stream, in order.
    pub async fn read_stream(&self, stream: Stream) -> Result<Vec<Entry>, StoreError> {
        let (store, chain) = (Arc::clone(&self.store), stream.chain(self.genesis.chains));
        blocking(move || store.stream(chain, &stream.to_string())).await
    }

    /// What was adopted of the system before this one, in order. The last one covers all rows of those before it.
    pub async fn adoptions(&self) -> Result<Vec<Adopted>, StoreError> {
        let mut adopted: Vec<Adopted> = Vec::new();
        for entry in self.read_stream(Stream::Legacy).await? {
            let corrupt = |e: &dyn std::fmt::Display| {
                StoreError::Corrupt(format!("entry {} of the stream legacy: {e}", entry.header.index))
            };
            let body = entry.parse_body().map_err(|e| corrupt(&e))?;
            let next = Adoption::follow(adopted.last(), &occurrence(&entry, &body, Stream::Legacy))
                .map_err(|e| corrupt(&e.0))?;
            adopted.push(next);
        }
        Ok(adopted)
    }

    /// The entries of an order and its deliveries, in chain order.
    pub async fn read_order(&self, case: CaseId) -> Result<Vec<Entry>, StoreError> {
        let (store, chain) = (Arc::clone(&self.store), case.route(self.genesis.chains));
        blocking(move || read_case(&*store, chain, case)).await
    }

    /// Up to `limit` entries of a chain from `from`.
    pub async fn read_chain(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || store.entries(chain, from, limit)).await
    }

    /// The entry with an event id.
    pub async fn read_event(&self, id: EventId) -> Result<Option<Entry>, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || match store.find_event(id)? {
            Some((chain, index)) => store.entry(chain, index),
            None => Ok(None),
        })
        .await
    }

    /// An order's projection row.
    pub async fn order(&self, case: CaseId) -> Result<Option<Row>, StoreError> {
        self.stream_row(&ORDERS, Stream::Order(case)).await
    }

    /// The projection row of an order's delivery `n`.
    pub async fn delivery(&self, case: CaseId, n: u32) -> Result<Option<Row>, StoreError> {
        self.stream_row(&DELIVERIES, Stream::Delivery(case, n)).await
    }

    /// The projection rows of an order and of its deliveries, by number.
    pub async fn order_with_deliveries(&self, case: CaseId) -> Result<Option<(Row, Vec<Row>)>, StoreError> {
        let (store, chain) = (Arc::clone(&self.store), case.route(self.genesis.chains));
        blocking(move || order_rows(&*store, chain, case)).await
    }

    /// The same with the private document of the order's first entry, where it is kept and not erased.
    pub async fn order_with_private(
        &self,
        case: CaseId,
    ) -> Result<Option<(Row, Vec<Row>, Option<PrivateDocument>)>, StoreError> {
        let (store, chain) = (Arc::clone(&self.store), case.route(self.genesis.chains));
        // One hand-over to another thread, not one for each table.
        blocking(move || {
            let Some((order, deliveries)) = order_rows(&*store, chain, case)? else { return Ok(None) };
            let private = store.private(chain, order.count("idx"))?.map(PrivateDocument::from_bytes);
            Ok(Some((order, deliveries, private)))
        })
        .await
    }

    /// The private document of an entry, where it is kept and not erased.
    pub async fn private(&self, chain: u32, index: u64) -> Result<Option<PrivateDocument>, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || Ok(store.private(chain, index)?.map(PrivateDocument::from_bytes))).await
    }

    /// The projection rows of orders or deliveries on a chain that were made by entries in `range` and have one of these statuses.
    pub async fn rows_among(
        &self,
        table: &'static Table,
        chain: u32,
        range: Range<u64>,
        statuses: &'static [&'static str],
    ) -> Result<Vec<Row>, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || store.rows_among(table, chain, range, statuses)).await
    }

    /// The order as it was after the entry at `index`, as projection rows like those of [`Reader::order_with_private`]: what an answer
    /// that is given again shows.
    pub async fn order_at(
        &self,
        case: CaseId,
        index: u64,
    ) -> Result<Option<(Row, Vec<Row>, Option<PrivateDocument>)>, StoreError> {
        let (store, chain) = (Arc::clone(&self.store), case.route(self.genesis.chains));
        blocking(move || {
            let mut state = Case::new(case);
            for entry in read_case(&*store, chain, case)?.iter().filter(|e| e.header.index <= index) {
                let body = entry.parse_body().map_err(|e| corrupt(entry, &e))?;
                let stream = Stream::parse(&entry.header.stream).ok_or_else(|| corrupt(entry, &"no stream name"))?;
                state.apply(&occurrence(entry, &body, stream)).map_err(|e| corrupt(entry, &e.0))?;
            }
            let (orders, rest): (Vec<Row>, Vec<Row>) =
                case_rows(chain, &state).into_iter().partition(|row| *row.table == ORDERS);
            let Some(order) = orders.into_iter().next() else { return Ok(None) };
            let deliveries = rest.into_iter().filter(|row| *row.table == DELIVERIES).collect();
            let private = store.private(chain, order.count("idx"))?.map(PrivateDocument::from_bytes);
            Ok(Some((order, deliveries, private)))
        })
        .await
    }

    /// Up to `limit` projection rows of SKUs on a chain, of those listed first at index `from` or later.
    pub async fn skus(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<Row>, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || store.rows_from(&SKUS, chain, from, limit)).await
    }

    /// A SKU's projection row and the text of its manifest, as they were after the entry at `index`.
    pub async fn sku_at(&self, sku: CaseId, index: u64) -> Result<Option<(Row, Option<String>)>, StoreError> {
        let stream = Stream::Sku(sku);
        let chain = stream.chain(self.genesis.chains);
        let (mut state, mut manifest) = (None, None);
        for entry in self.read_stream(stream).await?.iter().filter(|e| e.header.index <= index) {
            let body = entry.parse_body().map_err(|e| corrupt(entry, &e))?;
            Sku::apply(&mut state, &occurrence(entry, &body, stream)).map_err(|e| corrupt(entry, &e.0))?;
            if entry.header.event_type == "sku.listed" {
                let text = |v: &Value| Some(v.as_object()?.value("text")?.as_str()?.to_owned());
                manifest = body.payload.value("manifest").and_then(text);
            }
        }
        Ok(state.map(|sku| (sku_row(chain, &sku), manifest)))
    }

    /// Each entry with its commit.
    pub async fn with_commits(&self, entries: Vec<Entry>) -> Result<Vec<(Entry, ProvenCommit)>, ProveError> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || {
            let commits = commits(&*store, &entries)?;
            Ok(entries.into_iter().zip(commits).collect())
        })
        .await
        .unwrap_or_else(|e| Err(StoreError::Unavailable(format!("a proof task died: {e}")).into()))
    }

    /// Index of the first entry of a chain that was recorded at `since_us` or later; its size if there is none.
    pub async fn first_index_since(&self, chain: u32, since_us: i64) -> Result<u64, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || {
            let head = store.heads()?.into_iter().find(|h| h.chain == chain);
            let (mut low, mut high) = (0, head.map_or(0, |h| h.size()));
            // Times never go back along a chain.
            while low < high {
                let middle = low + (high - low) / 2;
                let entry = store.entry(chain, middle)?;
                match entry.is_some_and(|e| e.header.recorded_at_us < since_us) {
                    true => low = middle + 1,
                    false => high = middle,
                }
            }
            Ok(low)
        })
        .await
    }

    /// Sizes of all chains, by chain.
    pub async fn sizes(&self) -> Result<Vec<u64>, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || Ok(store.heads()?.iter().map(|h| h.size()).collect())).await
    }

    /// The last signed checkpoint of a chain; with a size, that of exactly this size.
    pub async fn checkpoint_note(&self, chain: u32, size: Option<u64>) -> Result<Option<String>, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || {
            let row = match size {
                None => store.last_checkpoint(chain)?,
                Some(size) => store.checkpoints(chain, size, 1)?.pop().filter(|row| row.size == size),
            };
            Ok(row.and_then(|row| row.note))
        })
        .await
    }

    async fn stream_row(&self, table: &'static Table, stream: Stream) -> Result<Option<Row>, StoreError> {
        let (store, chain) = (Arc::clone(&self.store), stream.chain(self.genesis.chains));
        blocking(move || match store.stream_head(chain, &stream.to_string())? {
            Some(head) => store.row(table, chain, head.first_index),
            None => Ok(None),
        })
        .await
    }

    /// Rebuilds all projections of all chains from the entries. Returns how many rows were written.
    pub async fn rebuild(&self) -> Result<usize, StoreError> {
        let (store, chains) = (Arc::clone(&self.store), self.genesis.chains);
        blocking(move || {
            let mut written = 0;
            for chain in 0..chains {
                loop {
                    let (size, rows) = fold(&*store, chain)?;
                    match store.replace_projections(chain, size, &rows) {
                        // Somebody appended meanwhile: fold again.
                        Err(StoreError::HeadMoved(_)) => continue,
                        result => result?,
                    }
                    written += rows.len();
                    break;
                }
            }
            Ok(written)
        })
        .await
    }

    /// Folds all entries and compares with the stored projections. Returns the keys of rows that differ.
    pub async fn check_projections(&self) -> Result<Vec<String>, StoreError> {
        let (store, chains) = (Arc::clone(&self.store), self.genesis.chains);
        blocking(move || {
            let mut differing = Vec::new();
            for chain in 0..chains {
                differing.extend(check_chain(&*store, chain)?);
            }
            Ok(differing)
        })
        .await
    }

    /// Inclusion path of an entry in the tree of the first `size` entries of its chain.
    pub async fn inclusion_proof(&self, chain: u32, index: u64, size: u64) -> Result<Vec<Hash>, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || merkle::inclusion_proof(&StoredNodes { store: &*store, chain }, index, size)).await
    }

    /// The proof file of an entry, to the last checkpoint of its chain; with its private document if that is there and wanted.
    pub async fn proof(&self, chain: u32, index: u64, private: bool) -> Result<Proof, ProveError> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || prove(&*store, chain, index, private))
            .await
            .unwrap_or_else(|e| Err(StoreError::Unavailable(format!("a proof task died: {e}")).into()))
    }

    /// Consistency proof between two sizes of a chain.
    pub async fn consistency_proof(&self, chain: u32, old: u64, new: u64) -> Result<Vec<Hash>, StoreError> {
        let store = Arc::clone(&self.store);
        blocking(move || merkle::consistency_proof(&StoredNodes { store: &*store, chain }, old, new)).await
    }

    /// Exports all chains as they are now into the new directory `to`.
    pub async fn export(&self, options: ExportOptions, to: &Path) -> Result<Manifest, ExportError> {
        let (store, genesis, id, to) = (Arc::clone(&self.store), self.genesis.clone(), self.id, to.to_owned());
        let export = move || export_to_directory(&*store, &genesis, id, &options, &to);
        tokio::task::spawn_blocking(export)
            .await
            .unwrap_or_else(|e| Err(StoreError::Unavailable(format!("an export task died: {e}")).into()))
    }

    /// Writes a copy of the ledger into one file, for handing to an auditor.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let (store, to) = (Arc::clone(&self.store), to.to_owned());
        blocking(move || store.backup(&to)).await
    }
}

fn order_rows(store: &dyn Store, chain: u32, case: CaseId) -> Result<Option<(Row, Vec<Row>)>, StoreError> {
    let row = |table, stream: Stream| match store.stream_head(chain, &stream.to_string())? {
        Some(head) => store.row(table, chain, head.first_index),
        None => Ok(None),
    };
    let Some(order) = row(&ORDERS, Stream::Order(case))? else { return Ok(None) };
    let mut deliveries = Vec::new();
    for n in 1..=order.count("deliveries") {
        let corrupt = || StoreError::Corrupt(format!("delivery {n} of order {case} is missing; verify the ledger"));
        let n = u32::try_from(n).map_err(|_| corrupt())?;
        deliveries.push(row(&DELIVERIES, Stream::Delivery(case, n))?.ok_or_else(corrupt)?);
    }
    Ok(Some((order, deliveries)))
}

/// Runs a blocking store call off the async workers.
pub(crate) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(f)
        .await
        .unwrap_or_else(|e| Err(StoreError::Unavailable(format!("a store task died: {e}"))))
}

fn read_genesis(store: &dyn Store) -> Result<(Genesis, Hash, Registry), StoreError> {
    let corrupt = |why: &str| StoreError::Corrupt(format!("{why}; verify the ledger"));
    let ledger_id = store.ledger_id()?.ok_or_else(|| {
        StoreError::Unusable(
            "the store holds no ledger, or its creation was interrupted; remove it and make one with `ledger init`"
                .into(),
        )
    })?;
    let entry = store.entry(0, 0)?.ok_or_else(|| corrupt("the genesis entry is missing"))?;
    if Genesis::ledger_id(&entry.body) != ledger_id {
        return Err(corrupt("the genesis entry does not give the ledger's id"));
    }
    let body = entry.parse_body().map_err(|e| corrupt(&format!("the genesis body: {e}")))?;
    let genesis = Genesis::read(&body.payload).ok_or_else(|| corrupt("the genesis payload is malformed"))?;
    let heads = store.heads()?;
    if let Some(chain) = (0..genesis.chains).find(|chain| heads.iter().all(|h| h.chain != *chain)) {
        let text = format!(
            "chain {chain} has no entries: the ledger's creation was interrupted, or they were deleted; verify the ledger, and if \
             nothing was ever recorded in it, remove it and make it again with `ledger init`"
        );
        return Err(StoreError::Unusable(text));
    }
    let registry = load_registry(store, &genesis, ledger_id)?;
    Ok((genesis, ledger_id, registry))
}

pub(crate) fn load_registry(store: &dyn Store, genesis: &Genesis, ledger_id: Hash) -> Result<Registry, StoreError> {
    let entries = store.stream(0, LEDGER_STREAM)?;
    let corrupt = |why: String| StoreError::Corrupt(format!("the key registry: {why}; verify the ledger"));
    let first = entries.first().ok_or_else(|| corrupt("no genesis entry".into()))?;
    let mut registry = Registry::new(genesis.chains, genesis.keys(), first.entry_hash);
    for entry in &entries[1..] {
        let h = &entry.header;
        let body = entry.parse_body().map_err(|e| corrupt(e.to_string()))?;
        let parent_hash = Hash(h.parent_hash);
        let place =
            RegistryPlace { ledger_id: &ledger_id, revision: h.revision, parent_hash: &parent_hash, index: h.index };
        registry.apply(&h.event_type, &body.payload, place, entry.entry_hash).map_err(|e| corrupt(e.0))?;
    }
    Ok(registry)
}

/// Tree nodes from stored tiles, and from entries where no tile is complete.
pub(crate) struct StoredNodes<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) chain: u32,
}

impl Nodes for StoredNodes<'_> {
    type Error = StoreError;

    fn node(&self, level: u32, n: u64) -> Result<Hash, StoreError> {
        // A node at level 8k + j is the root of 2^j neighbours in a tile of level k.
        let (tile_level, height) = (level / 8, level % 8);
        let (first, count) = (n << height, 1_u64 << height);
        if let Some(tile) = self.store.tile(self.chain, tile_level, first / TILE_WIDTH)? {
            let from = (first % TILE_WIDTH) as usize * 32;
            let bytes = tile.get(from..from + count as usize * 32);
            let hashes = bytes.map(|b| b.chunks_exact(32).filter_map(Hash::from_slice).collect::<Vec<_>>());
            return hashes
                .map(|h| merkle::root(&h))
                .ok_or_else(|| StoreError::Corrupt("a tile is too short; verify the ledger".into()));
        }
        if tile_level == 0 {
            let entries = self.store.entries(self.chain, first, count as usize)?;
            let leaves: Vec<Hash> = entries.iter().map(|e| e.header.leaf_hash()).collect();
            if leaves.len() as u64 != count {
                return Err(StoreError::Corrupt(format!("entries from {first} are missing; verify the ledger")));
            }
            return Ok(merkle::root(&leaves));
        }
        let mut hashes = Vec::new();
        for child in 0..2 {
            hashes.push(self.node(level - 1, n * 2 + child)?);
        }
        Ok(merkle::root(&hashes))
    }
}

/// What is wrong with a stored entry.
pub(crate) fn corrupt(entry: &Entry, why: &dyn std::fmt::Display) -> StoreError {
    let h = &entry.header;
    StoreError::Corrupt(format!("entry {} of chain {}: {why}; verify the ledger", h.index, h.chain))
}

/// An entry as deciders and evolvers see it.
fn occurrence<'a>(entry: &'a Entry, body: &'a Body, stream: Stream) -> Occurrence<'a> {
    Occurrence::of(&entry.header, stream, body)
}

/// All projection rows of a chain, folded from its entries, and the size they are for.
fn fold(store: &dyn Store, chain: u32) -> Result<(u64, Vec<Row>), StoreError> {
    use std::collections::HashMap;
    let mut cases: HashMap<CaseId, Case> = HashMap::new();
    let mut skus: HashMap<CaseId, Option<Sku>> = HashMap::new();
    let mut rows: Vec<Row> = Vec::new();
    let mut idempotency: HashMap<Hash, u64> = HashMap::new();
    let mut size = 0;
    loop {
        let page = store.entries(chain, size, PAGE)?;
        if page.is_empty() {
            break;
        }
        for entry in &page {
            let h = &entry.header;
            let body = entry.parse_body().map_err(|e| corrupt(entry, &e))?;
            let stream = Stream::parse(&h.stream).ok_or_else(|| corrupt(entry, &"no stream name"))?;
            if let Some(meta) = body.meta.as_ref().filter(|m| needs_idempotency_row(stream, h.revision, &m.idem)) {
                idempotency.entry(meta.idem).or_insert(h.index);
            }
            let event = occurrence(entry, &body, stream);
            match stream {
                Stream::Sku(case) => {
                    Sku::apply(skus.entry(case).or_default(), &event).map_err(|e| corrupt(entry, &e.0))?;
                }
                Stream::Order(case) | Stream::Delivery(case, _) => {
                    let state = cases.entry(case).or_insert_with(|| Case::new(case));
                    state.apply(&event).map_err(|e| corrupt(entry, &e.0))?;
                }
                _ => {}
            }
        }
        size += page.len() as u64;
    }
    rows.extend(cases.values().flat_map(|case| case_rows(chain, case)));
    rows.extend(skus.values().flatten().map(|sku| sku_row(chain, sku)));
    rows.extend(idempotency.iter().map(|(key, index)| idempotency_row(chain, key, *index)));
    Ok((size, rows))
}

fn check_chain(store: &dyn Store, chain: u32) -> Result<Vec<String>, StoreError> {
    let describe = |row: &Row| match &row.cells[1] {
        crate::domain::projection::Cell::Text(t) => format!("{} of chain {chain}: {t}", row.table.name),
        other => format!("{} of chain {chain}: {other:?}", row.table.name),
    };
    let key = |row: &Row| (row.table.name, row.cells[1].clone());
    let (_, rows) = fold(store, chain)?;
    let mut expected: std::collections::BTreeMap<_, Row> = rows.into_iter().map(|r| (key(&r), r)).collect();
    let mut differing = Vec::new();
    for table in TABLES {
        for stored in store.rows(table, chain)? {
            match expected.remove(&key(&stored)) {
                Some(row) if row == stored => {}
                _ => differing.push(describe(&stored)),
            }
        }
    }
    differing.extend(expected.values().map(describe));
    differing.sort();
    Ok(differing)
}
