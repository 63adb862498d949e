//! How fast does a ledger in PostgreSQL append durably, and how near is that to PostgreSQL alone? Parts of one question take turns in
//! one run, against one server with the settings of production on the same machine.
//!
//! `cargo bench --bench postgres -- [callers|one|processes|read]`
#![allow(missing_docs)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use ledger_benches::raw::Recorder;
use ledger_benches::raw_postgres::{OldPattern, Raw, connect};
use ledger_benches::{
    ENTRIES_PER_ORDER, create_on, create_with, open_on, order, orders_of_chain, parsed, run_parsed, tiny,
};
use ledger_engine::ledger::Ledger;
use ledger_engine::store::Store as _;
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore, migrate};
use test_servers::Server;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 20_261_125;
const SETTINGS: &str = " -c shared_buffers=512MB -c max_wal_size=4GB -c checkpoint_timeout=15min";
/// Set in the processes that this one starts: the database, and the chain to write.
const WORKER: &str = "LEDGER_BENCH_WORKER";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

fn database(server: &Server) -> String {
    let url = server.database();
    migrate(&url).expect("an empty database");
    url
}

fn store(url: &str) -> PostgresStore {
    PostgresStore::open(PostgresOptions::new(url)).expect("a migrated database")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn seconds(work: impl Future<Output = ()>) -> f64 {
    let start = Instant::now();
    work.await;
    start.elapsed().as_secs_f64()
}

/// 256 callers in one process on one chain; the same rows by COPY; the pattern of the system before.
fn callers(server: &Server) {
    let (rounds, orders, old) = if tiny() { (1, 4, 10) } else { (7, 3000, 1500) };
    let (ledger_url, raw_url) = (database(server), database(server));
    let rt = runtime();
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    let (mut near, mut times) = (Vec::new(), Vec::new());
    let recorder = Recorder::around(store(&ledger_url));
    let ledger = rt.block_on(create_on(recorder.clone()));
    let raw = rt.block_on(Raw::new(&raw_url));
    let before = rt.block_on(OldPattern::new(&raw_url));
    rt.block_on(raw.write(&recorder.take()));
    let mut commits = 0;
    for round in 0..rounds {
        let commands = parsed(SEED, round * orders, orders);
        let entries = (orders * ENTRIES_PER_ORDER) as f64;
        let ours = entries / rt.block_on(seconds(run_parsed(&ledger, commands, 256)));
        let batches = recorder.take();
        commits += batches.len();
        let copied = entries / rt.block_on(seconds(async { assert!(raw.write(&batches).await > 0) }));
        let bodies: Vec<String> = (0..old).map(|i| order(SEED, i).swap_remove(1)).collect();
        let one_by_one = old as f64 / rt.block_on(seconds(before.record(&bodies)));
        println!("round {round}: ledger {ours:.0}/s, raw COPY {copied:.0}/s, old pattern {one_by_one:.0}/s");
        near.push(ours / copied);
        times.push(ours / one_by_one);
        for (rates, rate) in rates.iter_mut().zip([ours, copied, one_by_one]) {
            rates.push(rate);
        }
    }
    rt.block_on(ledger.shutdown()).expect("a clean end");
    let [ours, copied, one_by_one] = rates.map(median);
    let size = (rounds * orders * ENTRIES_PER_ORDER) as f64 / commits as f64;
    println!(
        "callers, medians of {rounds}: ledger {ours:.0} events/s ({size:.0} entries a commit); the same rows by COPY {copied:.0}/s, the ledger \
         reaches {:.0} % of it; old pattern {one_by_one:.0}/s, the ledger is {:.1} times that",
        100.0 * median(near),
        median(times)
    );
}

/// One caller, one event at a time; a transaction of one row; the same rows of each event by COPY, without a look at anything.
fn one(server: &Server) {
    let (rounds, orders) = if tiny() { (1, 2) } else { (15, 20) };
    let (url, raw_url) = (database(server), database(server));
    let rt = runtime();
    let recorder = Recorder::around(store(&url));
    let ledger = rt.block_on(create_on(recorder.clone()));
    let raw = rt.block_on(Raw::new(&raw_url));
    rt.block_on(raw.write(&recorder.take()));
    let client = rt.block_on(connect(&url));
    let row = "INSERT INTO public.bare (chain, body, hash) VALUES (0, $1, $2)";
    let table = "CREATE TABLE public.bare (chain integer NOT NULL, idx bigserial, body bytea NOT NULL, hash bytea NOT NULL, PRIMARY KEY (chain, idx))";
    let insert = rt.block_on(async {
        client.batch_execute(table).await.expect("a table");
        client.prepare(row).await.expect("a statement")
    });
    let (body, hash) = (vec![b'x'; 300], vec![7_u8; 32]);
    let (mut keyed, mut plain, mut copied, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        for commands in parsed(SEED, round * orders, orders) {
            let mut case = None;
            for command in &commands {
                let start = Instant::now();
                rt.block_on(async {
                    let pending = ledger.submit(command, case, "SUBMIT").await.expect("a running ledger");
                    case = Some(pending.case);
                    pending.wait().await.expect("a legal command");
                });
                let spent = start.elapsed().as_secs_f64() * 1e6;
                if command.idempotency_key.is_some() { keyed.push(spent) } else { plain.push(spent) }
            }
            for batch in recorder.take() {
                copied.push(1e6 * rt.block_on(seconds(async { assert_eq!(raw.write(&[batch]).await, 1) })));
            }
            for _ in 0..commands.len() {
                let inserted = async {
                    client.batch_execute("BEGIN").await?;
                    client.execute(&insert, &[&body, &hash]).await?;
                    client.batch_execute("COMMIT").await
                };
                let spent = rt.block_on(seconds(async { inserted.await.expect("a row that fits") }));
                bare.push(spent * 1e6);
            }
        }
    }
    let [keyed, plain, copied, bare] = [keyed, plain, copied, bare].map(median);
    println!(
        "one caller, medians: an event {plain:.0} µs, with an idempotency key {keyed:.0} µs; the same rows by COPY {copied:.0} µs; BEGIN, \
         INSERT of one row, COMMIT {bare:.0} µs: {:.2} and {:.2} times",
        plain / bare,
        keyed / bare
    );
}

/// Writes what the parent says, to one chain of a ledger that is there.
fn work(url: &str, chain: u32, chains: u32) {
    let rt = runtime();
    let ledger: Arc<Ledger> = rt.block_on(open_on(Arc::new(store(url))));
    let mut lines = std::io::stdin().lines();
    let mut first = 0;
    println!("ready");
    while let Some(Ok(line)) = lines.next() {
        let orders: u64 = line.parse().expect("a number");
        let (commands, next) = orders_of_chain(SEED, first, orders, chain, chains);
        first = next;
        println!("made");
        let Some(Ok(_)) = lines.next() else { return };
        rt.block_on(run_parsed(&ledger, commands, 64));
        println!("done");
    }
}

/// Processes that write chains of one ledger, each its own.
struct Workers(Vec<(std::process::Child, BufReader<std::process::ChildStdout>)>);

impl Workers {
    fn start(url: &str, count: u32, chains: u32) -> Workers {
        let start = |chain: u32| {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.env(WORKER, format!("{url} {chain} {chains}")).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("another process");
            let out = BufReader::new(child.stdout.take().expect("its output"));
            (child, out)
        };
        let mut workers = Workers((0..count).map(start).collect());
        workers.hear("ready");
        workers
    }

    fn tell(&mut self, line: &str) {
        for (child, _) in &mut self.0 {
            let input = child.stdin.as_mut().expect("its input");
            writeln!(input, "{line}").expect("it listens");
        }
    }

    fn hear(&mut self, word: &str) {
        for (_, out) in &mut self.0 {
            let mut line = String::new();
            out.read_line(&mut line).expect("it answers");
            assert_eq!(line.trim(), word, "a worker failed");
        }
    }

    /// Entries a second.
    fn run(&mut self, orders: u64) -> f64 {
        let each = orders / self.0.len() as u64;
        self.tell(&each.to_string());
        self.hear("made");
        let start = Instant::now();
        self.tell("go");
        self.hear("done");
        (each * self.0.len() as u64 * ENTRIES_PER_ORDER) as f64 / start.elapsed().as_secs_f64()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// Four processes with 64 callers each on four chains; one with 64 on one chain.
fn processes(server: &Server) {
    let (rounds, orders) = if tiny() { (1, 8) } else { (7, 2400) };
    let (many_url, single_url) = (database(server), database(server));
    let rt = runtime();
    for (url, chains) in [(&many_url, 4), (&single_url, 1)] {
        rt.block_on(async { create_with(Arc::new(store(url)), chains).await.shutdown().await }).expect("a new ledger");
    }
    let (mut many, mut single) = (Workers::start(&many_url, 4, 4), Workers::start(&single_url, 1, 1));
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        let (four, one) = (many.run(orders), single.run(orders));
        println!("round {round}: four processes {four:.0}/s, one {one:.0}/s");
        for (rates, rate) in rates.iter_mut().zip([four, one, four / one]) {
            rates.push(rate);
        }
    }
    let [four, one, ratio] = rates.map(median);
    let name = many_url.rsplit('/').next().expect("a name");
    let deadlocks = server.psql(name, &format!("SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'"));
    println!(
        "processes, medians of {rounds}: four on four chains {four:.0} events/s, one on one chain {one:.0}/s: {ratio:.2} times; deadlocks: \
         {deadlocks}; no caller saw an error"
    );
}

/// A stream of ten events, read from a table of ten million entries by its name; then by a name that is not there.
fn read(server: &Server) {
    let (entries, reads) = if tiny() { (10_000, 20) } else { (10_000_000, 5000) };
    let url = database(server);
    let rt = runtime();
    rt.block_on(create_on(Arc::new(store(&url))));
    // Entries of chain 1, which is none of the ledger's: ten events of one stream lie 1,000 entries apart, as those of an order that
    // takes its time do.
    let hash = "decode(md5(n::text) || md5(n::text), 'hex')";
    let stream = "'order-' || md5((n / 10000 * 1000 + n % 1000)::text)";
    let revision = "n % 10000 / 1000";
    let client = rt.block_on(connect(&url));
    let fill = format!(
        "SET synchronous_commit = off;
         INSERT INTO ledger.entries SELECT 1, n, {hash}, {stream}, {revision} + 1, {hash}, decode(md5(n::text), 'hex'), 'order.created', 1, n, \
         {hash}, {hash}, {hash}, CASE WHEN {revision} > 0 THEN n - 1000 END, {hash} FROM generate_series(0, {entries} - 1) n;
         INSERT INTO ledger.stream_heads SELECT 1, {stream}, 10, {hash}, n, n - 9000 FROM generate_series(0, {entries} - 1) n \
         WHERE {revision} = 9;
         ANALYZE ledger.entries; ANALYZE ledger.stream_heads; CHECKPOINT"
    );
    rt.block_on(client.batch_execute(&fill)).expect("room for it");
    let size = rt.block_on(client.query_one("SELECT pg_size_pretty(pg_relation_size('ledger.entries'))", &[]));
    let size: String = size.expect("a table").get(0);
    let store = store(&url);
    let names = "SELECT stream FROM ledger.stream_heads WHERE chain = 1 ORDER BY md5(stream) LIMIT $1";
    let names = rt.block_on(client.query(names, &[&(reads as i64)])).expect("streams");
    let mut spent = Vec::new();
    for row in &names {
        let start = Instant::now();
        let found = store.stream(1, row.get(0)).expect("a stream");
        spent.push(start.elapsed().as_secs_f64() * 1e6);
        assert_eq!(found.len(), 10);
    }
    spent.sort_by(f64::total_cmp);
    let at = |share: f64| spent[((spent.len() - 1) as f64 * share) as usize];
    println!(
        "read: a stream of 10 events among {entries} entries ({size}): median {:.0} µs, 99 of 100 within {:.0} µs",
        at(0.5),
        at(0.99)
    );
}

type Question = (&'static str, fn(&Server));

fn main() {
    if let Ok(task) = std::env::var(WORKER) {
        let parts: Vec<&str> = task.split(' ').collect();
        let number = |at: usize| parts[at].parse().expect("a number");
        return work(parts[0], number(1), number(2));
    }
    let asked = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let server = Server::start_durable(SETTINGS);
    let questions: [Question; 4] = [("callers", callers), ("one", one), ("processes", processes), ("read", read)];
    for (name, question) in questions {
        if asked.as_ref().is_none_or(|a| a == name) {
            question(&server);
        }
    }
}
