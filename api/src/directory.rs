//! Where a ledger is: a directory with `ledger.db`, and `keys/` with what the server needs to write; or a database in
//! PostgreSQL, and the directory for the keys alone.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledger_engine::delivery::own_key::OwnKey;
use ledger_engine::domain::command::Command;
use ledger_engine::environment::{Environment, SystemEnvironment};
use ledger_engine::export::record::Restored;
use ledger_engine::genesis::{Genesis, Limits};
use ledger_engine::hash::{sha256, to_hex};
use ledger_engine::json::Object;
use ledger_engine::keys::{PrivateKey, PseudonymKey, read_key, write_key};
use ledger_engine::ledger::{AppendError, Appended, Config, Enrolment, Ledger};
use ledger_engine::public_key::PublicKey;
use ledger_engine::reader::Reader;
use ledger_engine::registry::{Key, Purpose, Registry};
use ledger_engine::signer::{LocalSigner, Signer};
use ledger_engine::store::postgres::{PostgresOptions, PostgresStore};
use ledger_engine::store::sqlite::{DATABASE_FILE, Mark, SqliteOptions, SqliteStore};
use ledger_engine::store::{Store, StoreError};
use ledger_engine::succession::Succession;
use ledger_engine::time::rfc3339;

use crate::deliver::files::Files;
use crate::serve::DevKey;
use crate::signers::{Holder, Signing};
use crate::{CliError, signers};

const KEYS: &str = "keys";
const COMMIT_KEY: &str = "keys/commit.pem";
const CHECKPOINT_KEY: &str = "keys/checkpoint.pem";
const LICENCE_KEY: &str = "keys/licence.pem";
const EXPORT_KEY: &str = "keys/export.pem";
const DELIVERY_PROOF_KEY: &str = "keys/delivery-proof.pem";
/// Encrypts private keys of marketplace-managed deliveries.
const DELIVERY_KEY: &str = "keys/delivery.key";
/// Artifacts by SHA-256, and what was encrypted, unless the settings say otherwise.
const ARTIFACTS: &str = "artifacts";
const DELIVERIES: &str = "deliveries";
const DEV_FINANCE_KEY: &str = "keys/dev-finance.pem";
const DEV_KERNEL_KEY: &str = "keys/dev-kernel.pem";
/// The file that a development ledger sells.
const DEV_ARTIFACT: &[u8] = b"This is the test artifact of a development ledger.\n";
/// What tells a development ledger from one that somebody relies on.
const DEV_ORIGIN: &str = "localhost/development";
const PSEUDONYM_KEY: &str = "keys/pseudonym.key";

/// In the directory of a ledger that was restored with a loss, and must not be written to again.
const CLOSED: &str = "closed.json";
/// Why nobody is to open an embedded ledger for writing; in PostgreSQL the database says it.
const HELD: &str = "held.txt";

/// Where a ledger is unless it is said.
pub(crate) const DIRECTORY: &str = "ledger-data";

/// Where a ledger is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Keys, and the embedded database without another.
    pub(crate) dir: PathBuf,
    /// `postgres://` URL.
    pub(crate) database: Option<String>,
    /// Which signers there are besides the keys in the directory, and which may sign.
    pub(crate) signing: Signing,
}

impl Place {
    /// The database's URL. Two places at once would be two histories.
    pub(crate) fn url(&self) -> Result<Option<&str>, CliError> {
        let Some(url) = &self.database else { return Ok(None) };
        if self.dir.join(DATABASE_FILE).exists() {
            return Err(CliError::Usage(format!(
                "{} holds an embedded ledger, and --database or DATABASE_URL names another; unset the variable, or choose another --dir",
                self.dir.display()
            )));
        }
        Ok(Some(url))
    }
}

/// Without the URL, which may hold a password.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.database.is_some() { f.write_str("the database") } else { self.dir.display().fmt(f) }
    }
}

/// What a new ledger is made of.
pub(crate) struct NewLedger<'a> {
    pub(crate) place: &'a Place,
    pub(crate) governance_key: &'a Path,
    pub(crate) origin: String,
    pub(crate) chains: u32,
    /// The ledger that it takes the place of.
    pub(crate) succeeds: Option<Succession>,
    /// Signers elsewhere; keys of the other purposes are made, and written to files.
    pub(crate) elsewhere: Elsewhere,
}

/// The keys of a new ledger that are not in files.
#[derive(Default)]
pub(crate) struct Elsewhere {
    pub(crate) governance: Option<Arc<dyn Signer>>,
    pub(crate) commit: Option<Arc<dyn Signer>>,
    pub(crate) checkpoint: Option<Arc<dyn Signer>>,
    pub(crate) licence: Option<Arc<dyn Signer>>,
    pub(crate) export: Option<Arc<dyn Signer>>,
}

impl Elsewhere {
    /// Whether keys for exports and delivery proofs are made in files. Not where others are elsewhere: a guard that refuses local keys would refuse it.
    fn makes_other_keys(&self) -> bool {
        self.export.is_none() && self.commit.is_none() && self.checkpoint.is_none() && self.licence.is_none()
    }
}

fn io(what: &Path) -> impl FnOnce(std::io::Error) -> CliError + '_ {
    move |e| CliError::Io(what.display().to_string(), e)
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], CliError> {
    let mut bytes = [0; N];
    SystemEnvironment.random(&mut bytes).map_err(|e| CliError::Io("random generator".into(), e))?;
    Ok(bytes)
}

/// Makes a ledger in a directory that does not exist yet. It is built beside and renamed, so that a failure leaves no
/// half-made ledger; the governance key is written last, and never into the directory.
pub(crate) async fn create(new: NewLedger<'_>) -> Result<Genesis, CliError> {
    let dir = new.place.dir.as_path();
    let url = new.place.url()?;
    if dir.exists() {
        return Err(CliError::Usage(format!("{} exists already; choose another --dir", dir.display())));
    }
    if new.elsewhere.governance.is_none() && new.governance_key.exists() {
        return Err(CliError::Usage(format!("{} exists already; move it away first", new.governance_key.display())));
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = dir.file_name().ok_or_else(|| CliError::Usage(format!("{} names no directory", dir.display())))?;
    fs::create_dir_all(parent).map_err(io(parent))?;
    let building = parent.join(format!(".{}-{}", name.to_string_lossy(), to_hex(&random::<4>()?)));
    let result = match build(&building, &new, url).await {
        Ok(made) => fs::rename(&building, dir).map(|()| made).map_err(io(dir)),
        Err(e) => Err(e),
    };
    // Keys are never younger than what they sign: in a database the genesis comes last.
    let (result, made) = match (result, url) {
        (Ok((genesis, governance)), Some(url)) => {
            let created = match PostgresStore::open(PostgresOptions::new(url)) {
                Ok(store) => create_in(Arc::new(store), dir, &new, &genesis, &*governance).await,
                Err(e) => Err(e.into()),
            };
            (created.map(|()| genesis), dir)
        }
        (result, _) => (result.map(|(genesis, _)| genesis), building.as_path()),
    };
    if result.is_err() && !outcome_unknown(&result) {
        // They govern nothing, and would stand in the way of the next attempt. The error that matters is the first one.
        if new.elsewhere.governance.is_none() {
            let _ = fs::remove_file(new.governance_key);
        }
        let _ = fs::remove_dir_all(made);
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

/// Whether a ledger may be there although making it failed: then its keys must stay.
fn outcome_unknown(result: &Result<Genesis, CliError>) -> bool {
    use ledger_engine::ledger::CheckpointError;
    let store = match result {
        Err(CliError::Append(AppendError::Store(e))) => &**e,
        Err(CliError::Checkpoint(CheckpointError::Store(e)) | CliError::Store(e)) => e,
        _ => return false,
    };
    matches!(store, StoreError::Unknown(_))
}

/// Makes the ledger, and enrols the keys of licences and exports while the governance key is at hand.
async fn create_in(
    store: Arc<dyn Store>,
    dir: &Path,
    new: &NewLedger<'_>,
    genesis: &Genesis,
    governance: &dyn Signer,
) -> Result<(), CliError> {
    let config = config(dir, &new.place.signing, store)?;
    let Elsewhere { commit, checkpoint, licence, export, .. } = &new.elsewhere;
    [commit, checkpoint, licence, export]
        .into_iter()
        .flatten()
        .for_each(|signer| config.signers.add(Arc::clone(signer)));
    let ledger = Ledger::create(config, genesis.clone()).await?;
    for (given, file, purpose) in [
        (licence, LICENCE_KEY, Purpose::Licence),
        (export, EXPORT_KEY, Purpose::Export),
        (&None, DELIVERY_PROOF_KEY, Purpose::DeliveryProof),
    ] {
        let holder = match given {
            Some(signer) => Holder::Elsewhere(Arc::clone(signer)),
            None if purpose != Purpose::Licence && !new.elsewhere.makes_other_keys() => continue,
            None => Holder::Here(PrivateKey::read(&dir.join(file))?),
        };
        let key = Key::named(purpose, holder.public_key()?);
        enrol(&ledger, key, None, governance, &holder).await?;
    }
    ledger.shutdown().await?;
    Ok(())
}

/// Enrols a key whose private part is at hand.
pub(crate) async fn enrol(
    ledger: &Ledger,
    key: Key,
    justification: Option<String>,
    governance: &dyn Signer,
    private: &Holder,
) -> Result<Appended, CliError> {
    let (revision, statement) = ledger.enrol_statement(&key, justification.as_deref()).await?;
    let governance_signature = governance.sign(&statement).await.map_err(AppendError::Signer)?;
    let possession_signature = private.sign(&statement).await.map_err(AppendError::Signer)?;
    let enrolment = Enrolment { key, justification, revision, governance_signature, possession_signature };
    Ok(ledger.enrol(enrolment).await?)
}

async fn build(dir: &Path, new: &NewLedger<'_>, url: Option<&str>) -> Result<(Genesis, Arc<dyn Signer>), CliError> {
    let keys = dir.join(KEYS);
    fs::create_dir_all(&keys).map_err(io(&keys))?;
    // What signs, and what is to be written to the file once everything else is there.
    let signer = |given: &Option<Arc<dyn Signer>>| match given {
        Some(signer) => Ok((Arc::clone(signer), None)),
        None => {
            let key = ed25519(&random()?);
            Ok::<_, CliError>((Arc::new(key.clone()) as Arc<dyn Signer>, Some(key)))
        }
    };
    let elsewhere = &new.elsewhere;
    let (governance, governance_key) = signer(&elsewhere.governance)?;
    let files = [
        (&elsewhere.commit, COMMIT_KEY, Purpose::Commit),
        (&elsewhere.checkpoint, CHECKPOINT_KEY, Purpose::Checkpoint),
        (&elsewhere.licence, LICENCE_KEY, Purpose::Licence),
    ];
    let mut named = Vec::new();
    for (given, file, purpose) in files {
        let (signer, made) = signer(given)?;
        if let Some(key) = made {
            write_key(&dir.join(file), &key)?;
        }
        named.push(Key::named(purpose, signer.public_key()));
    }
    if elsewhere.makes_other_keys() {
        write_key(&dir.join(EXPORT_KEY), &ed25519(&random()?))?;
        write_key(&dir.join(DELIVERY_PROOF_KEY), &ed25519(&random()?))?;
    }
    let [commit_key, checkpoint_key, _] = <[Key; 3]>::try_from(named).unwrap_or_else(|_| unreachable!("three files"));
    PseudonymKey::new(random()?).write(&dir.join(PSEUDONYM_KEY))?;
    OwnKey::write(&dir.join(DELIVERY_KEY), random()?)?;
    let genesis = Genesis {
        origin: new.origin.clone(),
        chains: new.chains,
        limits: Limits::default(),
        governance_key: Key::named(Purpose::Governance, governance.public_key()),
        commit_key,
        checkpoint_key,
        nonce: random()?,
        succeeds: new.succeeds.clone(),
    };
    if url.is_none() {
        let store = SqliteStore::create(dir, SqliteOptions::default())?;
        create_in(Arc::new(store), dir, new, &genesis, &*governance).await?;
    }
    sync_directory(&keys)?;
    sync_directory(dir)?;
    if let Some(key) = governance_key {
        write_key(new.governance_key, &key)?;
    }
    Ok((genesis, governance))
}

fn ed25519(seed: &[u8; 32]) -> ledger_engine::keys::SigningKey {
    ledger_engine::keys::SigningKey::from_bytes(seed)
}

fn config(dir: &Path, signing: &Signing, store: Arc<dyn Store>) -> Result<Config, CliError> {
    Ok(Config {
        store,
        environment: Arc::new(SystemEnvironment),
        signers: signers::keyring(&dir.join(KEYS), signing)?,
        pseudonyms: PseudonymKey::read(&dir.join(PSEUDONYM_KEY))?,
    })
}

/// Opens a ledger for reading. No key file is read.
pub(crate) async fn reader(place: &Place) -> Result<(Reader, Registry), CliError> {
    let store: Arc<dyn Store> = match place.url()? {
        Some(url) => Arc::new(PostgresStore::open_read_only(PostgresOptions::new(url))?),
        None => Arc::new(embedded(&place.dir)?),
    };
    Ok(Reader::open(store).await?)
}

/// Whether the database, if one is named, is there and has the schema.
pub(crate) fn check_reach(place: &Place) -> Result<(), CliError> {
    if let Some(url) = place.url()? {
        PostgresStore::open_read_only(PostgresOptions::new(url))?;
    }
    Ok(())
}

/// Opens a ledger for reading, and for writing what follows from its entries.
pub(crate) async fn rebuilder(place: &Place) -> Result<Reader, CliError> {
    Ok(Reader::open(store(place)?).await?.0)
}

/// Opens a ledger for writing. It signs licences if it has a key for that.
pub(crate) async fn open(place: &Place) -> Result<Ledger, CliError> {
    let ledger = open_for_keys(place).await?;
    place.signing.refuse_local(&place.dir.join(KEYS), &ledger.registry())?;
    let licence_key = place.dir.join(LICENCE_KEY);
    if licence_key.exists() {
        let public_key = PublicKey::Ed25519(read_key(&licence_key, Purpose::Licence)?.public_key());
        let registry = ledger.registry();
        if !registry.records().iter().any(|r| r.key.purpose == Purpose::Licence && r.key.public_key == public_key) {
            let text = format!(
                "the key in {} is not a licence key of this ledger: enrol it with `ledger keys enrol`, or remove the file",
                licence_key.display()
            );
            return Err(StoreError::Unusable(text).into());
        }
    }
    Ok(ledger)
}

/// Whether what a ledger needs to write is there, as far as it can be known without the ledger.
pub(crate) fn check_keys(place: &Place) -> Result<(), CliError> {
    let missing = |e: String| {
        let keys = place.dir.join(KEYS);
        let advice =
            "put the files of keys/ from the ledger's backup there, so that it can go on; or only try it, with --drill";
        CliError::Usage(format!("{}: {e}; {advice}", keys.display()))
    };
    PseudonymKey::read(&place.dir.join(PSEUDONYM_KEY)).map_err(|e| missing(e.to_string()))?;
    signers::keyring(&place.dir.join(KEYS), &place.signing).map(drop).map_err(|e| missing(e.to_string()))
}

/// Lets a ledger that was restored go on: its first entry says so. The store is closed then.
pub(crate) async fn go_on(place: &Place, store: Arc<dyn Store>, restored: Restored) -> Result<(), CliError> {
    let ledger = Ledger::open(config(&place.dir, &place.signing, store)?).await?;
    ledger.record_restored(restored).await?;
    ledger.shutdown().await?;
    Ok(())
}

/// Whether a ledger's directory says that it must not be written to again.
pub(crate) fn is_closed(dir: &Path) -> bool {
    dir.join(CLOSED).exists()
}

/// Whether it says so for this very reason.
pub(crate) fn is_closed_as(dir: &Path, succession: &Succession) -> Result<bool, CliError> {
    let path = dir.join(CLOSED);
    Ok(fs::read(&path).map_err(io(&path))? == succession.to_object().to_canonical())
}

/// Why nobody is to open it for writing, where its directory says so.
pub(crate) fn held(dir: &Path) -> Result<Option<String>, CliError> {
    let path = dir.join(HELD);
    match fs::read_to_string(&path) {
        Ok(why) => Ok(Some(why)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(&path)(e)),
    }
}

/// Says in a ledger's directory that it must not be written to again.
pub(crate) fn close(dir: &Path, succession: &Succession) -> Result<PathBuf, CliError> {
    let path = dir.join(CLOSED);
    let write = || {
        let mut file = fs::File::create(&path)?;
        file.write_all(&succession.to_object().to_canonical())?;
        file.sync_all()
    };
    write().map_err(io(&path))?;
    sync_directory(dir)?;
    Ok(path)
}

/// Says in a ledger's directory why nobody is to open it for writing.
pub(crate) fn hold(dir: &Path, why: &str) -> Result<(), CliError> {
    let path = dir.join(HELD);
    let write = || {
        let mut file = fs::File::create(&path)?;
        file.write_all(why.as_bytes())?;
        file.sync_all()
    };
    write().map_err(io(&path))?;
    sync_directory(dir)
}

/// Lets it be opened again.
pub(crate) fn release(dir: &Path) -> Result<(), CliError> {
    SqliteStore::set_mark(dir, Mark::Open)?;
    let path = dir.join(HELD);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(&path)(e)),
        _ => sync_directory(dir),
    }
}

/// Opens a ledger to change its keys: one that is not enrolled yet must not stand in the way.
pub(crate) async fn open_for_keys(place: &Place) -> Result<Ledger, CliError> {
    Ok(Ledger::open(config(&place.dir, &place.signing, store(place)?)?).await?)
}

/// A development ledger: made if there is none, with a key for tokens, a finance key and something to buy. Returns what was made.
pub(crate) async fn make_dev(place: &Place) -> Result<Vec<String>, CliError> {
    let (dir, mut made) = (&place.dir, Vec::new());
    if !dir.exists() {
        let governance_key = governance_path(dir);
        let origin = DEV_ORIGIN.to_owned();
        let elsewhere = Elsewhere::default();
        let new = NewLedger { place, governance_key: &governance_key, origin, chains: 1, succeeds: None, elsewhere };
        create(new).await?;
        made.push(format!("a new ledger in {place}, its keys in {}", dir.join("keys").display()));
        let ledger = open(place).await?;
        let governance = read_key(&governance_key, Purpose::Governance)?;
        for (purpose, file) in [(Purpose::Finance, DEV_FINANCE_KEY), (Purpose::Kernel, DEV_KERNEL_KEY)] {
            let (file, signing) = (dir.join(file), ed25519(&random()?));
            write_key(&file, &signing)?;
            let private = Holder::Here(PrivateKey::read(&file)?);
            let signer = LocalSigner::new(purpose, signing);
            let kid = &signer.key().kid;
            made.push(format!("a key of the purpose {}, {kid}, in {}", purpose.as_str(), file.display()));
            enrol(&ledger, signer.key().clone(), None, &governance, &private).await?;
            if purpose == Purpose::Kernel {
                files(dir, None, None, spool(dir), 0)?.add_artifact(&mut &DEV_ARTIFACT[..]).map_err(io(dir))?;
                ledger.append(&dev_sku(&signer)?, "SUBMIT").await?;
            }
        }
        made.push("a SKU sku-e2e for 12.50 EUR".to_owned());
        ledger.shutdown().await?;
    }
    if !DevKey::path(dir).exists() {
        // A ledger for production would believe whoever can read a file, and webhooks signed with a secret that everybody knows.
        if reader(place).await?.0.genesis().origin != DEV_ORIGIN {
            let text = format!("{} holds a ledger that is not for development; serve it without --dev", dir.display());
            return Err(CliError::Usage(text));
        }
        DevKey::create(dir, &random()?)?;
        made.push(format!("a secret for tokens in {}", DevKey::path(dir).display()));
    }
    Ok(made)
}

/// Where the key is that encrypts private keys of deliveries.
pub(crate) fn delivery_key(dir: &Path) -> PathBuf {
    dir.join(DELIVERY_KEY)
}

/// What is on its way to or from a bucket.
pub(crate) fn spool(dir: &Path) -> PathBuf {
    dir.join("spool")
}

/// Where artifacts and deliveries are: directories or `s3://BUCKET[/PREFIX]`, by default in the ledger's directory. Not within a runtime, which
/// buckets have of their own.
pub(crate) fn files(
    dir: &Path,
    artifacts: Option<&str>,
    deliveries: Option<&str>,
    spool: PathBuf,
    retain_days: u32,
) -> Result<Files, CliError> {
    let or =
        |given: Option<&str>, name: &str| given.map_or_else(|| dir.join(name).display().to_string(), str::to_owned);
    Files::open(&or(artifacts, ARTIFACTS), &or(deliveries, DELIVERIES), spool, retain_days)
}

/// What a development ledger sells, with a manifest signed by its own Kernel; the runbook's smoke checks buy it.
fn dev_sku(kernel: &LocalSigner) -> Result<Command, CliError> {
    const ID: &str = "sku-e2e";
    const TITLE: &str = "Test artifact";
    let price = Object::new().with("amount", 1250).with("currency", "EUR").with("scale", 2);
    let artifact = Object::new()
        .with("artifact_id", "test-artifact")
        .with("artifact_url", "test-artifact.txt")
        .with("sha256", sha256(&[DEV_ARTIFACT]).to_hex());
    let manifest = Object::new()
        .with("artifacts", vec![artifact.into()])
        .with("author", Object::new().with("id", "author-e2e").with("name", "Nobody"))
        .with("checksum", sha256(&[DEV_ARTIFACT]).to_hex())
        .with("id", ID)
        .with("license", Object::new().with("terms", "For tests.").with("type", "standard"))
        .with("metadata", Object::new().with("price", price.clone()).with("tags", vec!["test".into()]))
        .with("title", TITLE)
        .with("version", "1.0.0");
    let signature = Object::new()
        .with("signature", to_hex(&kernel.signature(&manifest.to_canonical())))
        .with("signer_kid", kernel.key().kid.as_str())
        .with("ts", rfc3339(SystemEnvironment.now_us()));
    let manifest = manifest.with("manifest_signature", signature).to_canonical();
    let command = Object::new()
        .with("command", "sku.list")
        .with("actor", "system")
        .with("sku_id", ID)
        .with("title", TITLE)
        .with("price", price)
        .with("manifest", String::from_utf8_lossy(&manifest).as_ref());
    Command::from_object(command).map_err(|e| CliError::Usage(e.to_string()))
}

fn store(place: &Place) -> Result<Arc<dyn Store>, CliError> {
    let closed = place.dir.join(CLOSED);
    if closed.exists() {
        let text = format!(
            "the ledger in {place} was restored without all that it had signed, and closed: {} says what is missing. It can be read; what is new belongs into its \
             successor (`ledger init --succeeds`)",
            closed.display()
        );
        return Err(StoreError::Unusable(text).into());
    }
    if let Some(url) = place.url()? {
        return Ok(Arc::new(PostgresStore::open(PostgresOptions::new(url))?));
    }
    let held = |why: &str| StoreError::Unusable(format!("the ledger in {place} is held: {why}"));
    if let Ok(why) = fs::read_to_string(place.dir.join(HELD)) {
        return Err(held(&why).into());
    }
    let store = embedded(&place.dir)?;
    if store.mark()? != Mark::Open {
        // A copy of such a file, which lies alone.
        return Err(held(
            "its file is of a ledger that was restored as a drill or closed, or whose restore has not ended; it can be read, and nothing is to be written to it",
        )
        .into());
    }
    Ok(Arc::new(store))
}

fn embedded(dir: &Path) -> Result<SqliteStore, CliError> {
    if !dir.join(DATABASE_FILE).exists() && dir.join("keys").is_dir() {
        let text = format!(
            "{} holds keys but no ledger: if it lives in PostgreSQL, name it with --database or DATABASE_URL",
            dir.display()
        );
        return Err(StoreError::Unusable(text).into());
    }
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
