//! Connections: pooled, bounded in number and time, made again when they break, with growing delays while that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, PoolError, RecycleResult};
use deadpool_postgres::{ClientWrapper, Connect, Manager, ManagerConfig, RecyclingMethod};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::task::JoinHandle;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Error, Statement};

use super::backoff::Backoff;
use super::write;
use crate::connect::{MakeRustlsConnect, explain, settings};
use crate::store::{CommitBatch, Exclusive, StoreError};

/// How to reach the database, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// `postgres://` URL; several hosts are tried in turn.
    pub url: String,
    /// Most connections for writing, and as many for reading.
    pub connections: usize,
    /// To connect, and to wait for a connection.
    pub connect_timeout: Duration,
    /// For one statement; a step that the server does not answer within twice that is given up.
    pub statement_timeout: Duration,
    /// For the head of a chain, which other writers hold for milliseconds.
    pub lock_timeout: Duration,
    /// The server ends a transaction of ours that has been silent so long: its lock must not outlive a dead process.
    pub idle_in_transaction_timeout: Duration,
    /// Largest difference between this machine's clock and the database's; `None` for simulated time.
    pub clock_tolerance: Option<Duration>,
}

impl PostgresOptions {
    /// What suits production.
    pub fn new(url: &str) -> PostgresOptions {
        PostgresOptions {
            url: url.to_owned(),
            connections: 16,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(15),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(10),
            clock_tolerance: Some(Duration::from_secs(5)),
        }
    }
}

/// Makes connections whose notices are counted.
struct Connector {
    tls: MakeRustlsConnect,
    notices: Arc<AtomicU64>,
    setup: String,
}

impl Connect for Connector {
    fn connect(&self, config: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        let (config, tls, notices) = (config.clone(), self.tls.clone(), Arc::clone(&self.notices));
        async move {
            let (client, mut connection) = config.connect(tls).await?;
            let task = tokio::spawn(async move {
                // A notice comes before the answer it belongs to, and is counted before that is handed on.
                let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
                while let Some(Ok(message)) = messages.next().await {
                    if matches!(message, AsyncMessage::Notice(_)) {
                        notices.fetch_add(1, Ordering::AcqRel);
                    }
                }
            });
            client.batch_execute(&self.setup).await?;
            Ok((client, task))
        }
        .boxed()
    }
}

/// Makes the connections of a pool, and waits after failures.
struct Patient {
    manager: Manager,
    backoff: Backoff,
}

/// Why there is no new connection.
#[derive(Debug, thiserror::Error)]
enum NoConnection {
    #[error("{}", explain(.0))]
    Failed(#[from] Error),
    #[error("{0}; this will be tried again in a moment")]
    Waiting(String),
}

impl managed::Manager for Patient {
    type Type = ClientWrapper;
    type Error = NoConnection;

    async fn create(&self) -> Result<ClientWrapper, NoConnection> {
        let turn = self.backoff.turn().await.map_err(NoConnection::Waiting)?;
        match self.manager.create().await {
            Ok(client) => {
                turn.succeeded();
                Ok(client)
            }
            Err(e) => {
                turn.failed(explain(&e));
                Err(e.into())
            }
        }
    }

    async fn recycle(&self, client: &mut ClientWrapper, metrics: &Metrics) -> RecycleResult<NoConnection> {
        self.manager.recycle(client, metrics).await.map_err(|e| match e {
            managed::RecycleError::Message(text) => managed::RecycleError::Message(text),
            managed::RecycleError::Backend(e) => managed::RecycleError::Backend(e.into()),
        })
    }

    fn detach(&self, client: &mut ClientWrapper) {
        self.manager.detach(client);
    }
}

type Pool = managed::Pool<Patient>;
type Object = managed::Object<Patient>;

/// One connection, and what its transaction needs to know.
pub(super) struct Session {
    client: Object,
    notices: Arc<AtomicU64>,
    clock_tolerance: Option<Duration>,
}

impl Session {
    pub(super) async fn prepare(&self, text: &str) -> Result<Statement, Error> {
        self.client.prepare_cached(text).await
    }

    /// Notices that have arrived on any connection: more of them during a `COMMIT` may belong to it.
    pub(super) fn notices(&self) -> u64 {
        self.notices.load(Ordering::Acquire)
    }

    /// Ends a transaction that wrote nothing. A connection that cannot even do that is found closed.
    pub(super) async fn roll_back(&self) {
        let _ = self.client.batch_execute("ROLLBACK").await;
    }

    pub(super) fn clock_tolerance(&self) -> Option<Duration> {
        self.clock_tolerance
    }

    /// Refuses to write with a clock that others would not believe. `database_us` is the database's, just now.
    pub(super) fn check_clock(&self, database_us: i64) -> Result<(), StoreError> {
        let Some(tolerance) = self.clock_tolerance else { return Ok(()) };
        let here = here_us();
        let off = here.abs_diff(database_us);
        if u128::from(off) <= tolerance.as_micros() {
            return Ok(());
        }
        let way = if here > database_us { "ahead of" } else { "behind" };
        Err(StoreError::Unavailable(format!(
            "this machine's clock is {:.1} s {way} the database's, so nothing is written; set the clocks (NTP) and try again",
            off as f64 / 1e6
        )))
    }
}

/// This machine's clock, microseconds since 1970.
pub(super) fn here_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

impl std::ops::Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Key of the advisory lock of an export job: `ledgexpo` in ASCII.
const EXPORT_LOCK: i64 = i64::from_be_bytes(*b"ledgexpo");

/// A connection that holds a lock: never given back to others.
struct Held(Option<Object>);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

/// The connections of a store. Callers block; the connections live on a small runtime of the store's own.
pub(super) struct Sessions {
    runtime: Option<tokio::runtime::Runtime>,
    writers: Pool,
    readers: Pool,
    notices: Arc<AtomicU64>,
    options: PostgresOptions,
}

impl Sessions {
    pub(super) fn new(options: PostgresOptions, write: bool) -> Result<Sessions, StoreError> {
        let (mut config, tls) = settings(&options.url, "ledger").map_err(StoreError::Unusable)?;
        if write {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(options.connect_timeout);
        }
        // A server that is gone without a word is noticed while it owes an answer, too.
        config.tcp_user_timeout(options.statement_timeout);
        config
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ledger-postgres")
            .enable_all()
            .build()
            .map_err(|e| StoreError::Unavailable(format!("cannot start the database's runtime: {e}")))?;
        let notices = Arc::new(AtomicU64::new(0));
        let pool = || {
            let connector =
                Connector { tls: tls.clone(), notices: Arc::clone(&notices), setup: setup(&options, write) };
            let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
            let manager = Manager::from_connect(config.clone(), connector, manager);
            Pool::builder(Patient { manager, backoff: Backoff::default() })
                .max_size(options.connections.max(1))
                .wait_timeout(Some(options.statement_timeout))
                .create_timeout(Some(options.connect_timeout * 2))
                .runtime(Runtime::Tokio1)
                .build()
                .map_err(|e| StoreError::Unavailable(format!("cannot make a pool of connections: {e}")))
        };
        let (writers, readers) = (pool()?, pool()?);
        Ok(Sessions { runtime: Some(runtime), writers, readers, notices, options })
    }

    /// Drives a future on the caller's thread; its timers and connections belong to the store's runtime.
    fn block<T>(&self, future: impl Future<Output = T>) -> T {
        let _entered = self.runtime.as_ref().map(|r| r.enter());
        futures_executor::block_on(future)
    }

    async fn take(&self, pool: &Pool) -> Result<Session, StoreError> {
        let client = pool.get().await.map_err(|e| match e {
            PoolError::Backend(NoConnection::Failed(e)) => unreachable_or(&e),
            PoolError::Timeout(_) => StoreError::Unavailable(
                "no connection to the database in time: it is down, or all connections are busy; try again".into(),
            ),
            e => StoreError::Unavailable(e.to_string()),
        })?;
        Ok(Session { client, notices: Arc::clone(&self.notices), clock_tolerance: self.options.clock_tolerance })
    }

    /// Reads. A connection that turns out to be broken is replaced once: a reader need not care that the server was restarted.
    pub(super) fn run<T>(&self, read: impl AsyncFn(&Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.block(async {
            let mut again = true;
            loop {
                let session = self.take(&self.readers).await?;
                let result = self.in_time(read(&session)).await.unwrap_or_else(|| Err(silent()));
                if result.is_ok() {
                    return result;
                }
                let broken = session.is_closed();
                self.give_back(session, broken);
                if !(broken && std::mem::take(&mut again)) {
                    return result;
                }
            }
        })
    }

    /// Writes, in a transaction that `work` begins and ends.
    pub(super) fn write<T>(&self, work: impl AsyncFn(&Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.block(async {
            let session = self.take(&self.writers).await?;
            let result = self.in_time(work(&session)).await;
            self.conclude(session, result)
        })
    }

    /// Begins a transaction in which `lock` locks one head or all.
    pub(super) fn begin_locked<T>(
        &self,
        lock: impl AsyncFnOnce(&Session) -> Result<T, StoreError>,
    ) -> Result<(Session, T), StoreError> {
        self.block(async {
            let session = self.take(&self.writers).await?;
            match self.in_time(lock(&session)).await {
                Some(Ok(head)) => Ok((session, head)),
                Some(Err(e)) => {
                    self.give_back(session, true);
                    Err(e)
                }
                None => {
                    self.give_back(session, true);
                    Err(silent())
                }
            }
        })
    }

    /// Commits in a transaction of [`Sessions::begin_locked`], or ends it.
    pub(super) fn finish_locked(&self, session: Session, batch: Option<&CommitBatch>) -> Result<(), StoreError> {
        self.block(async {
            let result = match batch {
                Some(batch) => self.in_time(write::commit(&session, batch)).await,
                None => self.in_time(session.roll_back().map(Ok)).await,
            };
            self.conclude(session, result)
        })
    }

    /// An advisory lock of a connection of its own, which goes with the connection.
    pub(super) fn exclusive(&self) -> Result<Option<Exclusive>, StoreError> {
        self.block(async {
            let session = self.take(&self.writers).await?;
            let text = "SELECT pg_try_advisory_lock($1)";
            let locked = async {
                let row = session.query_one(text, &[&EXPORT_LOCK]).await.map_err(failed)?;
                row.try_get::<_, bool>(0).map_err(failed)
            };
            let locked = self.in_time(locked).await.unwrap_or_else(|| Err(silent()))?;
            Ok(locked.then(|| Box::new(Held(Some(session.client))) as Exclusive))
        })
    }

    fn conclude<T>(&self, session: Session, result: Option<Result<T, StoreError>>) -> Result<T, StoreError> {
        // Where the server fell silent, nobody knows how far it came.
        let result = result.unwrap_or_else(|| Err(StoreError::Unknown("the database did not answer in time".into())));
        // After a failure its transaction may be open: the server ends it with the connection.
        let spoiled = !matches!(result, Ok(_) | Err(StoreError::HeadMoved(_) | StoreError::RegistryMoved));
        self.give_back(session, spoiled);
        result
    }

    fn give_back(&self, session: Session, spoiled: bool) {
        if !spoiled {
            return;
        }
        if session.is_closed() {
            // What broke one connection has most likely broken all.
            self.writers.retain(|client, _| !client.is_closed());
            self.readers.retain(|client, _| !client.is_closed());
        }
        drop(Object::take(session.client));
    }

    async fn in_time<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(self.options.statement_timeout * 2, step).await.ok()
    }

    pub(super) fn close(&self) {
        self.writers.retain(|_, _| false);
        self.readers.retain(|_, _| false);
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.writers.close();
        self.readers.close();
        if let Some(runtime) = self.runtime.take() {
            // Dropping it would block, which async callers may not.
            runtime.shutdown_background();
        }
    }
}

fn silent() -> StoreError {
    StoreError::Unavailable("the database did not answer in time; nothing was written; try again".into())
}

fn setup(options: &PostgresOptions, write: bool) -> String {
    let ms = |d: Duration| d.as_millis();
    let access = if write { "" } else { "SET default_transaction_read_only = on;" };
    // A plan is kept for as long as the connection: one that was made while a table was empty reads it whole, or joins it
    // whole, when it has millions of rows. Everything is found by its key here, so those ways are closed, and planning a commit
    // anew for each one's parameters would cost more than the commit.
    let plans = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
                 SET plan_cache_mode = force_generic_plan;";
    format!(
        "{plans} SET search_path = pg_catalog; SET client_min_messages = warning; SET statement_timeout = {}; SET lock_timeout = {}; \
         SET idle_in_transaction_session_timeout = {}; SET default_transaction_isolation = 'read committed'; {access}",
        ms(options.statement_timeout),
        ms(options.lock_timeout),
        ms(options.idle_in_transaction_timeout),
    )
}

fn unreachable_or(e: &Error) -> StoreError {
    let text = explain(e);
    match e.code() {
        // Wrong password, no such database or role, no right to connect.
        Some(code) if code.code().starts_with("28") || *code == SqlState::INVALID_CATALOG_NAME => {
            StoreError::Unusable(text)
        }
        _ => StoreError::Unavailable(text),
    }
}

/// An error of a statement before `COMMIT`, or of a read: nothing was written.
pub(super) fn failed(e: Error) -> StoreError {
    let Some(db) = e.as_db_error() else { return StoreError::Unavailable(explain(&e)) };
    let (code, message) = (db.code(), db.message());
    let advised = |advice: &str| format!("database: {message} ({}); {advice}", code.code());
    match code.code().get(..2) {
        // LG: a trigger of the schema.
        Some("22" | "23" | "LG") => StoreError::Rejected(advised("nothing was written")),
        _ if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            StoreError::Unusable(advised("make the role a member of ledger_writer, or of ledger_auditor for reading"))
        }
        Some("42" | "3F") => {
            StoreError::Unusable(advised("run `ledger migrate`, with the program of the same version"))
        }
        Some("53") => StoreError::Unavailable(advised("give the database server room, then try again")),
        Some("XX") => StoreError::Corrupt(advised("look at the server's log, restore the database and verify it")),
        _ => StoreError::Unavailable(advised("try again")),
    }
}
