//! A ledger's directory: `ledger.db`, and `keys/` with what the server needs to write.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledger_engine::environment::{Environment, SystemEnvironment};
use ledger_engine::genesis::{Genesis, Limits};
use ledger_engine::hash::to_hex;
use ledger_engine::keys::{PseudonymKey, read_key, write_key};
use ledger_engine::ledger::{Config, Ledger};
use ledger_engine::reader::Reader;
use ledger_engine::registry::{Purpose, Registry};
use ledger_engine::signer::{LocalSigner, Signer as _};
use ledger_engine::store::StoreError;
use ledger_engine::store::sqlite::{SqliteOptions, SqliteStore};

use crate::CliError;

const COMMIT_KEY: &str = "keys/commit.pem";
const CHECKPOINT_KEY: &str = "keys/checkpoint.pem";
const PSEUDONYM_KEY: &str = "keys/pseudonym.key";

/// What a new ledger is made of.
pub(crate) struct NewLedger<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) governance_key: &'a Path,
    pub(crate) origin: String,
    pub(crate) chains: u32,
}

fn io(what: &Path) -> impl FnOnce(std::io::Error) -> CliError + '_ {
    move |e| CliError::Io(what.display().to_string(), e)
}

fn random<const N: usize>() -> Result<[u8; N], CliError> {
    let mut bytes = [0; N];
    SystemEnvironment.random(&mut bytes).map_err(|e| CliError::Io("random generator".into(), e))?;
    Ok(bytes)
}

/// Makes a ledger in a directory that does not exist yet. It is built beside and renamed, so that a failure leaves no
/// half-made ledger; the governance key is written last, and never into the directory.
pub(crate) async fn create(new: NewLedger<'_>) -> Result<Genesis, CliError> {
    let dir = new.dir;
    if dir.exists() {
        return Err(CliError::Usage(format!("{} exists already; choose another --dir", dir.display())));
    }
    if new.governance_key.exists() {
        return Err(CliError::Usage(format!("{} exists already; move it away first", new.governance_key.display())));
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = dir.file_name().ok_or_else(|| CliError::Usage(format!("{} names no directory", dir.display())))?;
    fs::create_dir_all(parent).map_err(io(parent))?;
    let building = parent.join(format!(".{}-{}", name.to_string_lossy(), to_hex(&random::<4>()?)));
    let result = build(&building, &new).await;
    let result = match result {
        Ok(genesis) => fs::rename(&building, dir).map(|()| genesis).map_err(|e| {
            // It governs nothing, and would stand in the way of the next attempt.
            let _ = fs::remove_file(new.governance_key);
            io(dir)(e)
        }),
        Err(e) => Err(e),
    };
    if result.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_dir_all(&building);
    }
    let genesis = result?;
    // Whoever is told the ledger's id must find it after a power cut, with its keys.
    sync_directory(parent)?;
    sync_directory(new.governance_key.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    Ok(genesis)
}

/// Makes the names in a directory durable.
fn sync_directory(dir: &Path) -> Result<(), CliError> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io(dir))
}

async fn build(dir: &Path, new: &NewLedger<'_>) -> Result<Genesis, CliError> {
    let keys = dir.join("keys");
    fs::create_dir_all(&keys).map_err(io(&keys))?;
    let seeds = [random::<32>()?, random::<32>()?, random::<32>()?];
    let signing = seeds.map(|seed| ed25519(&seed));
    write_key(&dir.join(COMMIT_KEY), &signing[1])?;
    write_key(&dir.join(CHECKPOINT_KEY), &signing[2])?;
    PseudonymKey::new(random()?).write(&dir.join(PSEUDONYM_KEY))?;
    let [governance, commit, checkpoint] = signing;
    let key = |purpose, signing| LocalSigner::new(purpose, signing).key().clone();
    let genesis = Genesis {
        origin: new.origin.clone(),
        chains: new.chains,
        limits: Limits::default(),
        governance_key: key(Purpose::Governance, governance.clone()),
        commit_key: key(Purpose::Commit, commit),
        checkpoint_key: key(Purpose::Checkpoint, checkpoint),
        nonce: random()?,
    };
    let store = SqliteStore::create(dir, SqliteOptions::default())?;
    let ledger = Ledger::create(config(dir, store)?, genesis.clone()).await?;
    ledger.shutdown().await?;
    sync_directory(&keys)?;
    sync_directory(dir)?;
    write_key(new.governance_key, &governance)?;
    Ok(genesis)
}

fn ed25519(seed: &[u8; 32]) -> ledger_engine::keys::SigningKey {
    ledger_engine::keys::SigningKey::from_bytes(seed)
}

fn config(dir: &Path, store: SqliteStore) -> Result<Config, CliError> {
    Ok(Config {
        store: Arc::new(store),
        environment: Arc::new(SystemEnvironment),
        commit_signer: Arc::new(read_key(&dir.join(COMMIT_KEY), Purpose::Commit)?),
        checkpoint_signer: Arc::new(read_key(&dir.join(CHECKPOINT_KEY), Purpose::Checkpoint)?),
        pseudonyms: PseudonymKey::read(&dir.join(PSEUDONYM_KEY))?,
    })
}

/// Opens the ledger in a directory for reading. No key file is read.
pub(crate) async fn reader(dir: &Path) -> Result<(Reader, Registry), CliError> {
    Ok(Reader::open(Arc::new(store(dir)?)).await?)
}

/// Opens the ledger in a directory.
pub(crate) async fn open(dir: &Path) -> Result<Ledger, CliError> {
    let store = store(dir)?;
    Ok(Ledger::open(config(dir, store)?).await?)
}

fn store(dir: &Path) -> Result<SqliteStore, CliError> {
    if !dir.is_dir() {
        let text = format!("there is no ledger in {}; make one with `ledger init --dir {0}`", dir.display());
        return Err(StoreError::Unusable(text).into());
    }
    Ok(SqliteStore::open(dir, SqliteOptions::default())?)
}

/// Where `init` puts the governance key unless told otherwise: beside the directory.
pub(crate) fn governance_path(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push("-governance.pem");
    dir.with_file_name(name)
}
