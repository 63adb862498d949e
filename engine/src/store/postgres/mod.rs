//! The production store: PostgreSQL 15 or newer, shared by any number of processes.
//!
//! An append is one short transaction in one round trip: `BEGIN`, a statement that moves the chain's head from the one that the commit was
//! linked to, one that writes all other tables and fails unless the head was moved, and `COMMIT`, sent together. If there is another head,
//! the lock is taken first and then looked at, which takes two. What is appended to one chain waits for no other: no row is shared by two chains.
//!
//! What was sent together may still be on its way when its connection is lost, and take the lock after whoever asks what became of it. So
//! it counts for half a second only, by the database's clock, and `NotCommitted` is answered after that.
//!
//! **Outcome.** An error of a statement before `COMMIT` means that nothing is stored. Any error of `COMMIT` itself, a
//! lost connection, and any notice that arrives with it (a cancelled wait for a standby succeeds with a mere warning) mean `Unknown`:
//! [`Store::settle`] then writes the head row, on the server that accepts writes, and commits that: it waits for every
//! transaction that held the lock, and its own commit waits for the standby as theirs should have.

mod backoff;
mod guards;
mod migrate;
mod queries;
mod read;
mod session;
mod write;

pub use migrate::{Migrated, SCHEMA_VERSION, migrate};
pub use queries::texts as lookup_texts;
pub use session::PostgresOptions;

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use session::{Session, Sessions};

use super::{
    ChainHead, CheckpointRow, CommitBatch, Entry, Exclusive, LookedUp, MakeCommit, MakeCut, Settled, Store, StoreError,
    StoredCommit, StreamHead,
};
use crate::domain::projection::{Row, Table};
use crate::hash::{EventId, Hash};
use crate::runs::{RUN_ENTRIES, find_in_run};

/// What the schema's comment begins with while the ledger is held.
const HELD: &str = "held: ";

/// The store in PostgreSQL.
pub struct PostgresStore {
    sessions: Sessions,
    /// Once there is a ledger: it never changes.
    ledger_id: OnceLock<Hash>,
}

impl PostgresStore {
    /// Opens the schema for writing. Every connection goes to a server that accepts writes. Refuses server settings without which an
    /// answer would not mean durable, and a schema without the triggers and rights that keep entries from being rewritten.
    ///
    /// Refuses a ledger that is held ([`PostgresStore::hold`]) too.
    pub fn open(options: PostgresOptions) -> Result<PostgresStore, StoreError> {
        let store = PostgresStore::open_held(options)?;
        match store.held()? {
            Some(why) => Err(StoreError::Unusable(why)),
            None => Ok(store),
        }
    }

    /// Like [`PostgresStore::open`], for whoever holds it.
    pub fn open_held(options: PostgresOptions) -> Result<PostgresStore, StoreError> {
        let store = PostgresStore { sessions: Sessions::new(options, true)?, ledger_id: OnceLock::new() };
        store.sessions.run(async |s| {
            migrate::check_schema(s).await?;
            guards::check(s).await?;
            migrate::check_server(s).await
        })?;
        Ok(store)
    }

    /// Why nobody is to open the ledger for writing, where somebody said so ([`PostgresStore::hold`]).
    pub fn held(&self) -> Result<Option<String>, StoreError> {
        self.sessions.run(read::held)
    }

    /// From now on nobody opens the ledger for writing, and is told `why`; until `None` lets it go. The comment of the schema says it, so that
    /// every machine sees it, and only the schema's owner can.
    pub fn hold(&self, why: Option<&str>) -> Result<(), StoreError> {
        let text = why.map_or_else(|| "NULL".to_owned(), |why| format!("'{HELD}{}'", why.replace('\'', "''")));
        let text = format!("SET standard_conforming_strings = on; COMMENT ON SCHEMA ledger IS {text}");
        self.sessions.write(async |session| session.batch_execute(&text).await.map_err(session::failed))
    }

    /// Opens the schema for reading, on a replica too. The role of auditors may do it.
    pub fn open_read_only(options: PostgresOptions) -> Result<PostgresStore, StoreError> {
        let store = PostgresStore { sessions: Sessions::new(options, false)?, ledger_id: OnceLock::new() };
        store.sessions.run(async |s| migrate::check_schema(s).await)?;
        Ok(store)
    }
}

impl Store for PostgresStore {
    fn heads(&self) -> Result<Vec<ChainHead>, StoreError> {
        self.sessions.run(read::heads)
    }

    fn ledger_id(&self) -> Result<Option<Hash>, StoreError> {
        if let Some(id) = self.ledger_id.get() {
            return Ok(Some(*id));
        }
        let found = self.sessions.run(read::ledger_id)?;
        Ok(found.map(|id| *self.ledger_id.get_or_init(|| id)))
    }

    fn append(&self, batch: &CommitBatch) -> Result<(), StoreError> {
        self.sessions.write(async |session| {
            // Before its genesis a chain has no head to lock.
            if batch.before.size() > 0 && write::commit_at_once(session, batch).await? {
                return Ok(());
            }
            let (head, registry_size) = write::lock_head(session, batch.before.chain).await?;
            if head == batch.before && registry_size <= batch.statement.registry_size {
                return write::commit(session, batch).await;
            }
            session.roll_back().await;
            if head == batch.before {
                return Err(StoreError::RegistryMoved);
            }
            if batch.before.size() == 0 {
                return Err(StoreError::Unusable("the database holds a ledger already".into()));
            }
            Err(StoreError::HeadMoved(Box::new(head)))
        })
    }

    fn append_locked(&self, chain: u32, make: &mut MakeCommit<'_>) -> Result<(), StoreError> {
        let (session, (head, _)) = self.sessions.begin_locked(async |s| write::lock_head(s, chain).await)?;
        // The commit is made outside of the executor: it reads the store through connections of its own.
        let batch = make(&head);
        self.sessions.finish_locked(session, batch.as_ref())
    }

    fn append_cut(&self, make: &mut MakeCut<'_>) -> Result<(), StoreError> {
        let (session, heads) = self.sessions.begin_locked(write::lock_heads)?;
        let batch = make(&heads);
        self.sessions.finish_locked(session, batch.as_ref())
    }

    fn settle(&self, batch: &CommitBatch) -> Result<Settled, StoreError> {
        let (size, hash) = (batch.after.size(), &batch.after.hash);
        let over_us = session::here_us() + write::IN_FLIGHT.as_micros() as i64;
        loop {
            let chain = batch.before.chain;
            let (stored, now_us) = self.sessions.write(async |s| write::confirmed_hash(s, chain, size - 1).await)?;
            if stored == Some(*hash) {
                return Ok(Settled::Committed);
            }
            if now_us > over_us {
                return Ok(Settled::NotCommitted);
            }
            std::thread::sleep(write::IN_FLIGHT / 10);
        }
    }

    fn confirm(&self, chain: u32, size: u64, hash: &Hash) -> Result<bool, StoreError> {
        let (stored, _) = self.sessions.write(async |session| write::confirmed_hash(session, chain, size - 1).await)?;
        Ok(stored == Some(*hash))
    }

    fn entry(&self, chain: u32, index: u64) -> Result<Option<Entry>, StoreError> {
        Ok(self.entries(chain, index, 1)?.into_iter().find(|e| e.header.index == index))
    }

    fn entries(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let Some(id) = self.ledger_id()? else { return Ok(Vec::new()) };
        self.sessions.run(async |s| read::entries(s, id, chain, from, limit).await)
    }

    fn stream(&self, chain: u32, stream: &str) -> Result<Vec<Entry>, StoreError> {
        let Some(id) = self.ledger_id()? else { return Ok(Vec::new()) };
        self.sessions.run(async |s| read::stream(s, id, chain, stream).await)
    }

    fn stream_head(&self, chain: u32, stream: &str) -> Result<Option<StreamHead>, StoreError> {
        self.sessions.run(async |s| read::stream_head(s, chain, stream).await)
    }

    fn find_event(&self, id: EventId) -> Result<Option<(u32, u64)>, StoreError> {
        let Some(ledger_id) = self.ledger_id()? else { return Ok(None) };
        let is_it = |chain, index: &u64| EventId::derive(&ledger_id, chain, *index) == id;
        for head in self.heads()? {
            let (chain, complete) = (head.chain, head.size() / RUN_ENTRIES);
            // The newest entries are not in a run yet; they are asked for most.
            if let Some(index) = (complete * RUN_ENTRIES..head.size()).rev().find(|i| is_it(chain, i)) {
                return Ok(Some((chain, index)));
            }
            for run in 0..complete {
                let ids = self.sessions.run(async |s| read::run(s, chain, run).await)?;
                let found = ids.and_then(|ids| find_in_run(&ids, &id));
                if let Some(index) = found.map(|at| run * RUN_ENTRIES + at).filter(|i| is_it(chain, i)) {
                    return Ok(Some((chain, index)));
                }
            }
        }
        Ok(None)
    }

    fn commits(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<StoredCommit>, StoreError> {
        self.sessions.run(async |s| read::commits(s, chain, from, limit).await)
    }

    fn checkpoints(&self, chain: u32, size: u64, limit: usize) -> Result<Vec<CheckpointRow>, StoreError> {
        self.sessions.run(async |s| read::checkpoints(s, chain, size, limit).await)
    }

    fn private_documents(&self, chain: u32, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.sessions.run(async |s| read::private_documents(s, chain, from, limit).await)
    }

    fn private(&self, chain: u32, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.private_documents(chain, index, 1)?;
        Ok(found.into_iter().find(|(i, _)| *i == index).map(|(_, document)| document))
    }

    fn idempotency(&self, chain: u32, key: &Hash) -> Result<Option<u64>, StoreError> {
        self.sessions.run(async |s| read::idempotency(s, chain, key).await)
    }

    fn look_up(&self, chain: u32, keys: &[Hash], streams: &[String]) -> Result<LookedUp, StoreError> {
        self.sessions.run(async |s| read::look_up(s, chain, keys, streams).await)
    }

    fn tile(&self, chain: u32, level: u32, n: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.sessions.run(async |s| read::tile(s, chain, level, n).await)
    }

    fn row(&self, table: &'static Table, chain: u32, index: u64) -> Result<Option<Row>, StoreError> {
        let found = self.sessions.run(async |s| read::rows(s, table, chain, read::Wanted::At(index)).await)?;
        Ok(found.into_iter().next())
    }

    fn rows(&self, table: &'static Table, chain: u32) -> Result<Vec<Row>, StoreError> {
        self.sessions.run(async |s| read::rows(s, table, chain, read::Wanted::All).await)
    }

    fn rows_from(&self, table: &'static Table, chain: u32, from: u64, limit: usize) -> Result<Vec<Row>, StoreError> {
        self.sessions.run(async |s| read::rows(s, table, chain, read::Wanted::From(from, limit)).await)
    }

    fn rows_among(
        &self,
        table: &'static Table,
        chain: u32,
        range: Range<u64>,
        statuses: &[&str],
    ) -> Result<Vec<Row>, StoreError> {
        self.sessions.run(async |s| read::rows(s, table, chain, read::Wanted::Among(range.clone(), statuses)).await)
    }

    fn replace_projections(&self, chain: u32, size: u64, rows: &[Row]) -> Result<(), StoreError> {
        self.sessions.write(async |session| {
            let (head, _) = write::lock_head(session, chain).await?;
            if head.size() != size {
                session.roll_back().await;
                return Err(StoreError::HeadMoved(Box::new(head)));
            }
            write::replace_projections(session, chain, size, rows).await
        })
    }

    fn last_checkpoint(&self, chain: u32) -> Result<Option<CheckpointRow>, StoreError> {
        self.sessions.run(async |s| read::last_checkpoint(s, chain).await)
    }

    fn record_checkpoint(&self, row: &CheckpointRow) -> Result<(), StoreError> {
        self.sessions.write(async |session: &Session| write::record_checkpoint(session, row).await)
    }

    fn sign_checkpoint(&self, row: &CheckpointRow) -> Result<(), StoreError> {
        self.sessions.write(async |session: &Session| write::sign_checkpoint(session, row).await)
    }

    fn exclusive(&self) -> Result<Option<Exclusive>, StoreError> {
        self.sessions.exclusive()
    }

    fn backup(&self, _: &Path) -> Result<(), StoreError> {
        let text = "a ledger in PostgreSQL is not one file: back it up with pg_basebackup or pg_dump, or hand an auditor an export \
                    (`ledger export --out DIR`)";
        Err(StoreError::Unusable(text.into()))
    }

    fn close(&self) -> Result<(), StoreError> {
        self.sessions.close();
        Ok(())
    }
}
