//! Workloads for the benches: orders from creation to download, from a fixed seed, and the same rows written raw.

pub mod legacy;
pub mod raw;
pub mod raw_postgres;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ledger_engine::domain::command::{Command, idempotency_hash};
use ledger_engine::environment::SystemEnvironment;
use ledger_engine::genesis::{Genesis, Limits};
use ledger_engine::keys::PseudonymKey;
use ledger_engine::ledger::{Config, Ledger};
use ledger_engine::registry::Purpose;
use ledger_engine::signer::keyring::Keyring;
use ledger_engine::signer::remote::{Patience, RemoteError, RemoteKey, RemoteSigner};
use ledger_engine::signer::{Keeper, LocalSigner, Pending, Signer};
use ledger_engine::store::Store;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};
use ledger_engine::stream::CaseId;

/// Entries that one order of the workload makes.
pub const ENTRIES_PER_ORDER: u64 = 9;
const SKU: &str = r#"{"command":"sku.list","actor":"service:catalog","sku_id":"s-1","title":"Typeface","price":{"amount":1250,"currency":"EUR","scale":2}}"#;

/// Whether to run with a few entries only, as the ordinary tests do.
pub fn tiny() -> bool {
    std::env::var_os("LEDGER_BENCH_TINY").is_some()
}

/// The commands of order `i` of run `seed`: nine, of which two carry idempotency keys and one a private document.
pub fn order(seed: u64, i: u64) -> Vec<String> {
    let digest = ledger_engine::hash::sha256(&[&seed.to_le_bytes(), &i.to_le_bytes()]).to_hex();
    let total = r#"{"amount":1250,"currency":"EUR","scale":2}"#;
    let of = |command: &str, rest: String| {
        format!(r#"{{"command":"{command}","actor":"service:market","order_id":"ref:o"{rest}}}"#)
    };
    vec![
        format!(
            r#"{{"command":"order.create","actor":"buyer-{}@example.org","idempotency_key":"{digest}","ref":"o","sku_id":"s-1","delivery_mode":"buyer-managed","key_fingerprint":"{digest}"}}"#,
            i % 1000
        ),
        of(
            "payment.capture",
            format!(r#","idempotency_key":"evt-{digest}","provider":"stripe","payment_id":"pi_{i}","total":{total}"#),
        ),
        of("order.settle", format!(r#","ledger_proof_id":"lp-{i}""#)),
        of("license.issue", String::new()),
        of("delivery.request", String::new()),
        of(
            "delivery.encrypt",
            format!(r#","algorithm":"AES256-GCM","artifact_sha256":"{digest}","ciphertext_sha256":"{digest}""#),
        ),
        of("delivery.ready", String::new()),
        of("order.finalize", String::new()),
        of("delivery.download", String::new()),
    ]
}

fn signer(purpose: Purpose, seed: u8) -> Arc<dyn Signer> {
    Arc::new(LocalSigner::from_seed(purpose, &[seed; 32]))
}

/// A ledger with keys from fixed seeds and the machine's clock.
pub fn config(store: Arc<dyn Store>) -> Config {
    Config {
        store,
        environment: Arc::new(SystemEnvironment),
        signers: Arc::new(Keyring::new([signer(Purpose::Commit, 2), signer(Purpose::Checkpoint, 3)])),
        pseudonyms: PseudonymKey::new([9; 32]),
    }
}

/// Makes a ledger with one SKU in `dir`.
pub async fn create(dir: &Path) -> Arc<Ledger> {
    let store = SqliteStore::create(dir, SqliteOptions::default()).expect("an empty directory");
    create_on(Arc::new(store)).await
}

/// Makes a ledger with one SKU on a store.
pub async fn create_on(store: Arc<dyn Store>) -> Arc<Ledger> {
    create_with(store, 1).await
}

/// The same, of several chains.
pub async fn create_with(store: Arc<dyn Store>, chains: u32) -> Arc<Ledger> {
    let key = |purpose, seed| LocalSigner::from_seed(purpose, &[seed; 32]).key().clone();
    let genesis = Genesis {
        origin: "ledger.example/bench".into(),
        chains,
        limits: Limits::default(),
        governance_key: key(Purpose::Governance, 1),
        commit_key: key(Purpose::Commit, 2),
        checkpoint_key: key(Purpose::Checkpoint, 3),
        nonce: [7; 16],
        succeeds: None,
    };
    let ledger = Arc::new(Ledger::create(config(store), genesis).await.expect("a new ledger"));
    let sku = Command::parse(SKU.as_bytes()).expect("a command");
    ledger.append(&sku, "SUBMIT").await.expect("a listed SKU");
    ledger
}

/// Opens the ledger in `dir`.
pub async fn open(dir: &Path) -> Arc<Ledger> {
    open_on(Arc::new(SqliteStore::open(dir, SqliteOptions::default()).expect("a ledger"))).await
}

/// Opens the ledger on a store.
pub async fn open_on(store: Arc<dyn Store>) -> Arc<Ledger> {
    Arc::new(Ledger::open(config(store)).await.expect("a ledger"))
}

/// A key that is elsewhere and takes its time: what a token or a signing service is to the writer.
struct Distant {
    key: LocalSigner,
    delay: Duration,
}

impl RemoteKey for Distant {
    fn sign<'a>(&'a self, message: &'a [u8]) -> Pending<'a, Result<Vec<u8>, RemoteError>> {
        Box::pin(async move {
            tokio::time::sleep(self.delay).await;
            Ok(self.key.signature(message).to_vec())
        })
    }

    fn check(&self) -> Pending<'_, Result<(), RemoteError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn keeper(&self) -> Keeper {
        Keeper::Proxy
    }
}

/// Opens the ledger in `dir` with a commit key whose signatures take `delay`.
pub async fn open_with_distant_key(dir: &Path, delay: Duration) -> Arc<Ledger> {
    let store = SqliteStore::open(dir, SqliteOptions::default()).expect("a ledger");
    let key = LocalSigner::from_seed(Purpose::Commit, &[2; 32]);
    let public_key = Signer::public_key(&key);
    let remote = RemoteSigner::new(public_key, "bench".into(), Arc::new(Distant { key, delay }), Patience::default());
    let signers = Keyring::new([Arc::new(remote) as Arc<dyn Signer>, signer(Purpose::Checkpoint, 3)]);
    let config = Config { signers: Arc::new(signers), ..config(Arc::new(store)) };
    Arc::new(Ledger::open(config).await.expect("a ledger"))
}

/// The commands of `orders` orders from order `first`, parsed.
pub fn parsed(seed: u64, first: u64, orders: u64) -> Vec<Vec<Command>> {
    let parse = |line: &String| Command::parse(line.as_bytes()).expect("a command");
    (first..first + orders).map(|i| order(seed, i).iter().map(parse).collect()).collect()
}

/// The commands of `orders` orders from order `first` that one chain of a ledger takes, parsed, and the order to go on from.
pub fn orders_of_chain(seed: u64, first: u64, orders: u64, chain: u32, chains: u32) -> (Vec<Vec<Command>>, u64) {
    let pseudonyms = PseudonymKey::new([9; 32]);
    let (mut found, mut next) = (Vec::new(), first);
    while (found.len() as u64) < orders {
        let commands = parsed(seed, next, 1).swap_remove(0);
        next += 1;
        let create = &commands[0];
        let actor = pseudonyms.actor_id(&create.actor);
        let key = create.idempotency_key.as_deref().unwrap_or_default();
        let case = CaseId::of_idempotency(&idempotency_hash(&actor, "SUBMIT", create.name, key));
        if case.route(chains) == chain {
            found.push(commands);
        }
    }
    (found, next)
}

/// Runs whole orders by `callers` concurrent callers, each waiting for every answer.
pub async fn run_parsed(ledger: &Arc<Ledger>, orders: Vec<Vec<Command>>, callers: u64) {
    let (next, orders) = (Arc::new(AtomicU64::new(0)), Arc::new(orders));
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (ledger, next, orders) = (Arc::clone(ledger), Arc::clone(&next), Arc::clone(&orders));
            tokio::spawn(async move {
                while let Some(order) = orders.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let mut case = None;
                    for command in order {
                        let pending = ledger.submit(command, case, "SUBMIT").await.expect("a running ledger");
                        case = Some(pending.case);
                        pending.wait().await.expect("a legal command");
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a caller");
    }
}

/// Makes and runs `orders` orders from order `first`.
pub async fn run_orders(ledger: &Arc<Ledger>, seed: u64, first: u64, orders: u64, callers: u64) {
    run_parsed(ledger, parsed(seed, first, orders), callers).await;
}
