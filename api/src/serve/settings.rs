//! What the server is told: by flags, else by the environment, else by one TOML file, else by defaults. Every bad value is
//! named, each in one line, before anything starts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ledger_engine::bucket::parse_url;
use ledger_engine::signer::place::SignerPlace;

use crate::CliError;
use crate::deliver::files::Files;
use crate::deliver::sealing;
use crate::directory::{self, DIRECTORY, Place};
use crate::signers::{self, Signing, boolean};

/// Run the HTTP API
///
/// Settings come from flags, else from the environment, else from a TOML file whose keys are the flags' names with `_`
/// (`listen = "0.0.0.0:8080"`), else from defaults. Secrets are never flags. `--check-config` shows what holds.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Make a ledger and development keys if there are none; takes tokens of `ledger token`. Never for production
    #[arg(long)]
    dev: bool,
    /// Print the settings that hold and whether they are good, and end
    #[arg(long)]
    pub(crate) check_config: bool,
    /// The TOML file
    #[arg(long, env = "LEDGER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port [default: 127.0.0.1:8080; PORT alone changes the port and, without --dev, listens on all addresses]
    #[arg(long, env = "LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// The ledger that must be served; another one stops the start. Required without --dev
    #[arg(long, env = "LEDGER_ID", value_name = "HEX")]
    ledger_id: Option<String>,
    /// Certificate chain for TLS, PEM
    #[arg(long, env = "TLS_CERTIFICATE", value_name = "FILE")]
    tls_certificate: Option<String>,
    /// Private key of the certificate, PEM
    #[arg(long, env = "TLS_KEY", value_name = "FILE")]
    tls_key: Option<String>,
    /// Authorities of client certificates (mTLS), PEM; `[services]` in the TOML file gives their names a service
    #[arg(long, env = "TLS_CLIENT_CA", value_name = "FILE")]
    tls_client_ca: Option<String>,
    /// Key set of the token issuer: a file, or an https:// URL that is read again as it changes
    #[arg(long, env = "JWKS", value_name = "FILE|URL")]
    jwks: Option<String>,
    /// Required `iss` of tokens
    #[arg(long, env = "JWT_ISSUER", value_name = "TEXT")]
    jwt_issuer: Option<String>,
    /// Required `aud` of tokens
    #[arg(long, env = "JWT_AUDIENCE", value_name = "TEXT")]
    jwt_audience: Option<String>,
    /// Clock skew allowed for tokens, seconds [default: 30]
    #[arg(long, env = "JWT_LEEWAY_SECONDS", value_name = "N")]
    jwt_leeway_seconds: Option<String>,
    /// Longest time for which a key that was withdrawn at the JWKS URL is still believed, seconds [default: 300]
    #[arg(long, env = "JWKS_REFRESH_SECONDS", value_name = "N")]
    jwks_refresh_seconds: Option<String>,
    /// Age of a payment webhook's signature, seconds [default: 300]
    #[arg(long, env = "PAYMENT_WEBHOOK_TOLERANCE_SECONDS", value_name = "N")]
    payment_webhook_tolerance_seconds: Option<String>,
    /// Largest request body, bytes [default: 131072]
    #[arg(long, env = "BODY_BYTES_MAX", value_name = "N")]
    body_bytes_max: Option<String>,
    /// Time for one request, seconds [default: 20]
    #[arg(long, env = "REQUEST_TIMEOUT_SECONDS", value_name = "N")]
    request_timeout_seconds: Option<String>,
    /// Requests a second of one caller, 0 for no limit [default: 50]
    #[arg(long, env = "RATE_LIMIT", value_name = "N")]
    rate_limit: Option<String>,
    /// The same for callers with the role service [default: 2000]
    #[arg(long, env = "RATE_LIMIT_SERVICE", value_name = "N")]
    rate_limit_service: Option<String>,
    /// Requests under way at once; more are answered 503 [default: 1024]
    #[arg(long, env = "REQUESTS_MAX", value_name = "N")]
    requests_max: Option<String>,
    /// Open feeds (GET /audit/stream) at once [default: 64]
    #[arg(long, env = "FEEDS_MAX", value_name = "N")]
    feeds_max: Option<String>,
    /// Open connections; more wait [default: 4096]
    #[arg(long, env = "CONNECTIONS_MAX", value_name = "N")]
    connections_max: Option<String>,
    /// Origins that browsers may call from, separated by commas [default: none]
    #[arg(long, env = "CORS_ORIGINS", value_name = "LIST")]
    cors_origins: Option<String>,
    /// Whether checkpoints and consistency proofs need no token [default: true]
    #[arg(long, env = "CHECKPOINTS_PUBLIC", value_name = "BOOL")]
    checkpoints_public: Option<String>,
    /// Seconds between checkpoints while entries come [default: 10]
    #[arg(long, env = "CHECKPOINT_SECONDS", value_name = "N")]
    checkpoint_seconds: Option<String>,
    /// Refuse writes with MAINTENANCE, keep reads [default: false]
    #[arg(long, env = "MAINTENANCE_MODE", value_name = "BOOL")]
    maintenance_mode: Option<String>,
    /// The Kernel's API, which confirms manifests before they are listed [default: nobody is asked]
    #[arg(long, env = "KERNEL_API_URL", value_name = "URL")]
    kernel_api_url: Option<String>,
    /// What this server shows the Kernel: a certificate, PEM; needed without --dev
    #[arg(long, env = "KERNEL_CLIENT_CERTIFICATE", value_name = "FILE")]
    kernel_client_certificate: Option<String>,
    /// Its key, PEM
    #[arg(long, env = "KERNEL_CLIENT_KEY", value_name = "FILE")]
    kernel_client_key: Option<String>,
    /// Who may have issued the Kernel's certificate, PEM [default: the system's authorities]
    #[arg(long, env = "KERNEL_CA", value_name = "FILE")]
    kernel_ca: Option<String>,
    /// For the Kernel to answer, seconds [default: 5]
    #[arg(long, env = "KERNEL_TIMEOUT_SECONDS", value_name = "N")]
    kernel_timeout_seconds: Option<String>,
    /// Speak to the Kernel without a certificate of this server's; refused without --dev [default: false]
    #[arg(long, env = "DEV_SKIP_MTLS", value_name = "BOOL")]
    dev_skip_mtls: Option<String>,
    /// Artifacts that are sold, named by their SHA-256; `ledger artifact add` puts them there: a directory, or s3://BUCKET[/PREFIX] [default:
    /// artifacts in --dir]
    #[arg(long, env = "ARTIFACT_STORE", value_name = "DIR|URL")]
    artifact_store: Option<String>,
    /// What was encrypted for buyers: a directory, or s3://BUCKET[/PREFIX], from where they download by URLs that are good for five minutes
    /// [default: deliveries in --dir]
    #[arg(long, env = "DELIVERY_STORE", value_name = "DIR|URL")]
    delivery_store: Option<String>,
    /// Days that objects of deliveries in a bucket are locked (Object Lock, COMPLIANCE), 0 for no lock [default: 0]
    #[arg(long, env = "DELIVERY_RETAIN_DAYS", value_name = "N")]
    delivery_retain_days: Option<String>,
    /// Seconds without an entry after which a delivery counts as left by a server that died, and another one goes on with it [default: 300]
    #[arg(long, env = "DELIVERY_TAKEOVER_SECONDS", value_name = "N")]
    delivery_takeover_seconds: Option<String>,
    /// What seals the private keys of marketplace-managed deliveries: awskms:KEY, a symmetric key, or pkcs11:token=…;object=LABEL, an AES key
    /// [default: keys/delivery.key in --dir]
    #[arg(long, env = "DELIVERY_KEY", value_name = "KEY")]
    delivery_key: Option<String>,
    /// Where traces go (OTLP over HTTP) [default: nowhere]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otel_exporter_otlp_endpoint: Option<String>,
}

/// Names of settings that only the environment and the file give.
const WEBHOOK_SECRET: &str = "payment_webhook_secret";
const SERVICES: &str = "services";
/// What signs payment webhooks where --dev is given and no secret.
const DEV_WEBHOOK_SECRET: &str = "whsec_development_only";

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Certificate and key of the server, and who may present certificates.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
}

/// Where the keys of tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Jwks {
    File(PathBuf),
    Url(String),
}

/// Where the Kernel is.
#[derive(Clone, Debug)]
pub(crate) struct KernelSettings {
    pub(crate) url: reqwest::Url,
    /// Certificate and key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) timeout: Duration,
}

/// The settings that hold.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) dev: bool,
    pub(crate) listen: SocketAddr,
    /// Lowercase hex.
    pub(crate) ledger_id: Option<String>,
    pub(crate) tls: Option<Tls>,
    /// Names in client certificates, and the service each is.
    pub(crate) services: BTreeMap<String, String>,
    /// Where the ledger is, which signers there are besides the directory of keys, and the guards.
    pub(crate) place: Place,
    pub(crate) jwks: Option<Jwks>,
    pub(crate) issuer: String,
    pub(crate) audience: String,
    pub(crate) leeway: Duration,
    pub(crate) jwks_refresh: Duration,
    /// Empty: webhooks are refused.
    pub(crate) webhook_secrets: Vec<Secret>,
    pub(crate) webhook_tolerance: Duration,
    pub(crate) body_bytes_max: usize,
    pub(crate) request_timeout: Duration,
    pub(crate) rate_limit: u32,
    pub(crate) rate_limit_service: u32,
    pub(crate) requests_max: usize,
    pub(crate) feeds_max: usize,
    pub(crate) connections_max: usize,
    pub(crate) cors_origins: Vec<String>,
    pub(crate) checkpoints_public: bool,
    pub(crate) checkpoint_every: Duration,
    pub(crate) maintenance: bool,
    pub(crate) kernel: Option<KernelSettings>,
    pub(crate) artifact_store: Option<String>,
    pub(crate) delivery_store: Option<String>,
    pub(crate) delivery_retain_days: u32,
    pub(crate) delivery_takeover: Duration,
    pub(crate) delivery_key: Option<SignerPlace>,
    pub(crate) otlp: Option<String>,
}

impl Settings {
    /// Reads all layers. The error has a line for each bad value.
    /// `given`: directory and database by flags or the environment.
    pub(crate) fn read(
        given: (Option<PathBuf>, Option<String>),
        args: Args,
        signing: signers::Args,
    ) -> Result<Settings, CliError> {
        let mut layers = Layers::open(args.config.as_deref())?;
        let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let settings = read(&mut layers, given, args, signing, &variable);
        layers.finish()?;
        Ok(settings)
    }
}

/// Which signers there are, and the guards.
fn signing(l: &mut Layers, args: signers::Args, variable: &dyn Fn(&str) -> Option<String>) -> Signing {
    let given = args.signer.join(" ");
    let list = |text: &str| Ok(text.split([',', ' ']).filter(|s| !s.is_empty()).map(str::to_owned).collect());
    let mut guard = |name: &str, given| Some(l.take(name, given, boolean, false).to_string());
    let (require_kms, require_signing_proxy) =
        (guard("require_kms", args.require_kms), guard("require_signing_proxy", args.require_signing_proxy));
    let signer = l.take("signer", Some(given), list, Vec::new());
    signers::Args { signer, require_kms, require_signing_proxy }.read(variable).unwrap_or_else(|faults| {
        faults.into_iter().for_each(|fault| l.fault(fault));
        Signing::default()
    })
}

fn read(
    l: &mut Layers,
    (dir, database): (Option<PathBuf>, Option<String>),
    args: Args,
    signing_args: signers::Args,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Settings {
    let dev = args.dev;
    let mut listen = l.take("listen", args.listen, address, SocketAddr::from(([127, 0, 0, 1], 8080)));
    // What platforms set; an address says more.
    if let (None, Some(port)) = (&l.given, variable("PORT")) {
        // A development server's secrets are known to everybody: it stays on this machine.
        let host = if dev { [127, 0, 0, 1] } else { [0, 0, 0, 0] };
        listen = l.take("port", Some(port), |text| port_of(text).map(|port| SocketAddr::from((host, port))), listen);
    }
    let ledger_id = l.take("ledger_id", args.ledger_id, |t| hex64(t).map(Some), None);
    let certificate = l.take("tls_certificate", args.tls_certificate, path, None);
    let key = l.take("tls_key", args.tls_key, path, None);
    let client_ca = l.take("tls_client_ca", args.tls_client_ca, path, None);
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Tls { certificate, key, client_ca }),
        (None, None) => {
            l.check(client_ca.is_none(), "tls_client_ca: needs tls_certificate and tls_key too");
            None
        }
        _ => {
            l.fault("tls_certificate and tls_key: one without the other");
            None
        }
    };
    let jwks = l.take("jwks", args.jwks, |t| jwks(t).map(Some), None);
    let (issuer, audience) = if dev { ("ledger-dev", "ledger") } else { ("", "") };
    let issuer = l.take("jwt_issuer", args.jwt_issuer, text, issuer.into());
    let audience = l.take("jwt_audience", args.jwt_audience, text, audience.into());
    let leeway = l.take("jwt_leeway_seconds", args.jwt_leeway_seconds, |t| number(t, 0, 600), 30);
    let jwks_refresh = l.take("jwks_refresh_seconds", args.jwks_refresh_seconds, |t| number(t, 1, 86_400), 300);
    let none = if dev { vec![Secret(DEV_WEBHOOK_SECRET.into())] } else { Vec::new() };
    let secrets = l.take(WEBHOOK_SECRET, variable("PAYMENT_WEBHOOK_SECRET"), secrets, none);
    let tolerance = args.payment_webhook_tolerance_seconds;
    let tolerance = l.take("payment_webhook_tolerance_seconds", tolerance, |t| number(t, 1, 86_400), 300);
    let services = l.services();
    // A flag or variable may name what is no text.
    let in_file = l.take("dir", None, |t| Ok(PathBuf::from(t)), DIRECTORY.into());
    let place = Place {
        dir: dir.unwrap_or(in_file),
        database: l.take("database", database, |t| Ok(Some(t.to_owned())), None),
        signing: signing(l, signing_args, variable),
    };
    let kernel_args = (args.kernel_api_url, args.kernel_client_certificate, args.kernel_client_key, args.kernel_ca);
    let kernel = kernel(l, kernel_args, args.kernel_timeout_seconds, args.dev_skip_mtls, dev);
    let settings = Settings {
        kernel,
        dev,
        listen,
        ledger_id,
        tls,
        services,
        place,
        jwks,
        issuer,
        audience,
        leeway: Duration::from_secs(leeway),
        jwks_refresh: Duration::from_secs(jwks_refresh),
        webhook_secrets: secrets,
        webhook_tolerance: Duration::from_secs(tolerance),
        body_bytes_max: l.count("body_bytes_max", args.body_bytes_max, 1024, 262_144, 131_072),
        request_timeout: Duration::from_secs(l.count(
            "request_timeout_seconds",
            args.request_timeout_seconds,
            1,
            600,
            20,
        ) as u64),
        rate_limit: l.count("rate_limit", args.rate_limit, 0, 1_000_000, 50) as u32,
        rate_limit_service: l.count("rate_limit_service", args.rate_limit_service, 0, 1_000_000, 2000) as u32,
        requests_max: l.count("requests_max", args.requests_max, 1, 100_000, 1024),
        feeds_max: l.count("feeds_max", args.feeds_max, 0, 100_000, 64),
        connections_max: l.count("connections_max", args.connections_max, 1, 1_000_000, 4096),
        cors_origins: l.take("cors_origins", args.cors_origins, origins, Vec::new()),
        checkpoints_public: l.take("checkpoints_public", args.checkpoints_public, boolean, true),
        checkpoint_every: Duration::from_secs(
            l.count("checkpoint_seconds", args.checkpoint_seconds, 1, 3600, 10) as u64
        ),
        maintenance: l.take("maintenance_mode", args.maintenance_mode, boolean, false),
        artifact_store: l.take("artifact_store", args.artifact_store, store, None),
        delivery_store: l.take("delivery_store", args.delivery_store, store, None),
        delivery_takeover: Duration::from_secs(l.count(
            "delivery_takeover_seconds",
            args.delivery_takeover_seconds,
            1,
            86_400,
            300,
        ) as u64),
        delivery_retain_days: l.count("delivery_retain_days", args.delivery_retain_days, 0, 36_500, 0) as u32,
        delivery_key: l.take("delivery_key", args.delivery_key, sealing::place, None),
        otlp: l.take("otel_exporter_otlp_endpoint", args.otel_exporter_otlp_endpoint, |t| url(t).map(Some), None),
    };
    l.check_together(&settings);
    settings
}

type KernelArgs = (Option<String>, Option<String>, Option<String>, Option<String>);

fn kernel(
    l: &mut Layers,
    (url, certificate, key, ca): KernelArgs,
    timeout: Option<String>,
    skip_mtls: Option<String>,
    dev: bool,
) -> Option<KernelSettings> {
    let read = |t: &str| {
        let url = reqwest::Url::parse(t).map_err(|e| e.to_string())?;
        without_password(&url)?;
        Ok(Some(url))
    };
    let url = l.take("kernel_api_url", url, read, None);
    let certificate = l.take("kernel_client_certificate", certificate, path, None);
    let key = l.take("kernel_client_key", key, path, None);
    let ca = l.take("kernel_ca", ca, path, None);
    let timeout = l.count("kernel_timeout_seconds", timeout, 1, 60, 5) as u64;
    let skip_mtls = l.take("dev_skip_mtls", skip_mtls, boolean, false);
    l.check(dev || !skip_mtls, "dev_skip_mtls: for --dev only; a Kernel is asked with a certificate");
    let together = certificate.is_some() == key.is_some();
    l.check(together, "kernel_client_certificate, kernel_client_key: both or none");
    let client = certificate.zip(key);
    let Some(url) = url else {
        l.check(client.is_none() && ca.is_none(), "kernel_client_certificate, kernel_ca: need kernel_api_url");
        return None;
    };
    let shown = client.is_some() || (dev && skip_mtls) || !together;
    l.check(
        shown,
        "kernel_api_url: needs kernel_client_certificate and kernel_client_key (with --dev, or dev_skip_mtls)",
    );
    l.check(dev || url.scheme() == "https", "kernel_api_url: https, or nobody knows who answers");
    Some(KernelSettings { url, client, ca, timeout: Duration::from_secs(timeout) })
}

/// The layers below the flags and the environment, and what is wrong so far.
struct Layers {
    file: toml::Table,
    faults: Vec<String>,
    /// The text of the setting that was taken last.
    given: Option<String>,
}

impl Layers {
    fn open(path: Option<&std::path::Path>) -> Result<Layers, CliError> {
        let file = match path {
            None => toml::Table::new(),
            Some(path) => {
                let shown = path.display();
                let text = std::fs::read_to_string(path).map_err(|e| CliError::Io(shown.to_string(), e))?;
                text.parse().map_err(|e: toml::de::Error| CliError::Usage(format!("{shown}: {}", e.message())))?
            }
        };
        Ok(Layers { file, faults: Vec::new(), given: None })
    }

    fn fault(&mut self, line: impl Into<String>) {
        self.faults.push(line.into());
    }

    fn check(&mut self, good: bool, line: &str) {
        if !good {
            self.fault(line);
        }
    }

    /// One setting: what a flag or variable gave, else the file's, else the default.
    fn take<T>(
        &mut self,
        name: &str,
        given: Option<String>,
        parse: impl Fn(&str) -> Result<T, String>,
        default: T,
    ) -> T {
        let in_file = self.file.remove(name).map(|value| match value {
            toml::Value::String(text) => text,
            toml::Value::Array(items) => {
                items.iter().map(|i| i.as_str().unwrap_or_default()).collect::<Vec<_>>().join(",")
            }
            other => other.to_string(),
        });
        // An empty variable is what a template leaves behind: not given.
        self.given = given.filter(|text| !text.is_empty()).or(in_file);
        let Some(text) = &self.given else { return default };
        match parse(text) {
            Ok(value) => value,
            Err(why) => {
                // A URL that is refused may be so for the password in it.
                let hidden = name == WEBHOOK_SECRET || text.contains("://");
                let shown = if hidden { String::new() } else { format!(" {text:?}") };
                self.faults.push(format!("{name}{shown}: {why}"));
                default
            }
        }
    }

    fn count(&mut self, name: &str, given: Option<String>, low: u64, high: u64, default: u64) -> usize {
        self.take(name, given, |t| number(t, low, high), default) as usize
    }

    fn services(&mut self) -> BTreeMap<String, String> {
        let mut services = BTreeMap::new();
        match self.file.remove(SERVICES) {
            None => {}
            Some(toml::Value::Table(table)) => {
                for (name, service) in table {
                    match service.as_str().filter(|s| is_service_name(s)) {
                        Some(service) => drop(services.insert(name, service.to_owned())),
                        None => self.fault(format!("services.{name:?}: a service is named [a-z0-9._-]{{1,64}}")),
                    }
                }
            }
            Some(_) => self.fault("services: a table of certificate names and the service each is"),
        }
        services
    }

    fn check_together(&mut self, s: &Settings) {
        let mtls = s.tls.as_ref().is_some_and(|t| t.client_ca.is_some());
        if !s.dev {
            self.check(s.ledger_id.is_some(), "ledger_id: required, so that no other history is served by mistake");
            let nobody = s.jwks.is_none() && !mtls;
            self.check(!nobody, "jwks, tls_client_ca: one is required, or nobody could be recognised");
        }
        if s.jwks.is_some() {
            self.check(!s.issuer.is_empty(), "jwt_issuer: required with jwks");
            self.check(!s.audience.is_empty(), "jwt_audience: required with jwks");
        }
        self.check(mtls || s.services.is_empty(), "services: needs tls_client_ca");
    }

    fn finish(mut self) -> Result<(), CliError> {
        for name in self.file.keys() {
            self.faults.push(format!("{name}: there is no such setting"));
        }
        if self.faults.is_empty() { Ok(()) } else { Err(CliError::Usage(self.faults.join("\n"))) }
    }
}

fn number(text: &str, low: u64, high: u64) -> Result<u64, String> {
    let wanted = || format!("a number from {low} to {high}");
    text.parse().ok().filter(|n| (low..=high).contains(n)).ok_or_else(wanted)
}

fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn path(text: &str) -> Result<Option<PathBuf>, String> {
    let path = PathBuf::from(text);
    std::fs::File::open(&path).map(|_| Some(path)).map_err(|e| format!("cannot be read: {e}"))
}

/// A directory, which may be made later, or a bucket.
fn store(text: &str) -> Result<Option<String>, String> {
    match text.starts_with("s3://") && parse_url(text).is_none() {
        true => Err("a directory, or s3://BUCKET or s3://BUCKET/PREFIX".into()),
        false => Ok(Some(text.to_owned())),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address and port such as 127.0.0.1:8080 or [::]:8080".into())
}

fn port_of(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "a port from 0 to 65535".into())
}

fn hex64(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { Ok(text) } else { Err("64 hex characters, as `ledger init` printed them".into()) }
}

fn url(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => without_password(&url).map(|()| text.to_owned()),
        _ => Err("a URL".into()),
    }
}

/// URLs are printed and logged.
fn without_password(url: &reqwest::Url) -> Result<(), String> {
    let plain = url.username().is_empty() && url.password().is_none();
    if plain { Ok(()) } else { Err("a URL without a user and password".into()) }
}

fn jwks(text: &str) -> Result<Jwks, String> {
    if !text.contains("://") {
        return path(text).map(|path| Jwks::File(path.unwrap_or_default()));
    }
    let url = reqwest::Url::parse(text).map_err(|e| e.to_string())?;
    without_password(&url)?;
    let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match url.scheme() {
        "https" => Ok(Jwks::Url(text.to_owned())),
        "http" if local => Ok(Jwks::Url(text.to_owned())),
        _ => Err("keys must come over https".into()),
    }
}

fn secrets(text: &str) -> Result<Vec<Secret>, String> {
    let all: Vec<Secret> = text.split(',').map(|s| Secret(s.trim().to_owned())).collect();
    if all.iter().all(|s| s.0.len() >= 16) { Ok(all) } else { Err("each secret has 16 characters or more".into()) }
}

fn origins(text: &str) -> Result<Vec<String>, String> {
    let one = |origin: &str| {
        let origin = origin.trim();
        let url = reqwest::Url::parse(origin).ok().filter(|u| matches!(u.scheme(), "http" | "https"));
        let plain = url.filter(|u| u.origin().ascii_serialization() == origin);
        plain.map(|_| origin.to_owned()).ok_or_else(|| format!("{origin:?} is no origin such as https://shop.example"))
    };
    text.split(',').map(one).collect()
}

/// `[a-z0-9._-]{1,64}`, as COMMANDS.md names services.
pub(crate) fn is_service_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

impl Settings {
    /// Where artifacts and deliveries are. Not within a runtime.
    pub(crate) fn files(&self) -> Result<Files, CliError> {
        let (artifacts, deliveries) = (self.artifact_store.as_deref(), self.delivery_store.as_deref());
        let dir = &self.place.dir;
        directory::files(dir, artifacts, deliveries, directory::spool(dir), self.delivery_retain_days)
    }
}

/// The settings as `--check-config` prints them; no secret among them.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<34} {value}");
        let none = || "(none)".to_owned();
        let shown = |path: Option<&PathBuf>| path.map_or_else(none, |p| p.display().to_string());
        line("dev", &self.dev)?;
        line("listen", &self.listen)?;
        line("ledger_id", &self.ledger_id.clone().unwrap_or_else(none))?;
        line("tls_certificate", &shown(self.tls.as_ref().map(|t| &t.certificate)))?;
        line("tls_key", &shown(self.tls.as_ref().map(|t| &t.key)))?;
        line("tls_client_ca", &shown(self.tls.as_ref().and_then(|t| t.client_ca.as_ref())))?;
        for (name, service) in &self.services {
            line(&format!("services.{name:?}"), service)?;
        }
        let jwks = match &self.jwks {
            None => none(),
            Some(Jwks::File(path)) => path.display().to_string(),
            Some(Jwks::Url(url)) => url.clone(),
        };
        line("signer", &self.place.signing.describe())?;
        for guard in ["require_kms", "require_signing_proxy"] {
            line(guard, &self.place.signing.is_guarded(guard))?;
        }
        line("jwks", &jwks)?;
        line("jwt_issuer", &self.issuer)?;
        line("jwt_audience", &self.audience)?;
        line("jwt_leeway_seconds", &self.leeway.as_secs())?;
        line("jwks_refresh_seconds", &self.jwks_refresh.as_secs())?;
        line("payment_webhook_secret", &format!("{} given", self.webhook_secrets.len()))?;
        line("payment_webhook_tolerance_seconds", &self.webhook_tolerance.as_secs())?;
        line("body_bytes_max", &self.body_bytes_max)?;
        line("request_timeout_seconds", &self.request_timeout.as_secs())?;
        line("rate_limit", &self.rate_limit)?;
        line("rate_limit_service", &self.rate_limit_service)?;
        line("requests_max", &self.requests_max)?;
        line("feeds_max", &self.feeds_max)?;
        line("connections_max", &self.connections_max)?;
        line("cors_origins", &self.cors_origins.join(","))?;
        line("checkpoints_public", &self.checkpoints_public)?;
        line("checkpoint_seconds", &self.checkpoint_every.as_secs())?;
        line("maintenance_mode", &self.maintenance)?;
        let directory = |own: &Option<String>, name: &str| {
            own.clone().unwrap_or_else(|| self.place.dir.join(name).display().to_string())
        };
        let kernel = self.kernel.as_ref();
        line("kernel_api_url", &kernel.map_or_else(none, |k| k.url.to_string()))?;
        line("kernel_client_certificate", &shown(kernel.and_then(|k| k.client.as_ref()).map(|(file, _)| file)))?;
        line("kernel_client_key", &shown(kernel.and_then(|k| k.client.as_ref()).map(|(_, key)| key)))?;
        line("kernel_ca", &shown(kernel.and_then(|k| k.ca.as_ref())))?;
        line("dev_skip_mtls", &kernel.is_some_and(|k| k.client.is_none()))?;
        line("kernel_timeout_seconds", &kernel.map_or(5, |k| k.timeout.as_secs()))?;
        line("artifact_store", &directory(&self.artifact_store, "artifacts"))?;
        line("delivery_store", &directory(&self.delivery_store, "deliveries"))?;
        line("delivery_retain_days", &self.delivery_retain_days)?;
        line("delivery_takeover_seconds", &self.delivery_takeover.as_secs())?;
        let own_key = || directory::delivery_key(&self.place.dir).display().to_string();
        line("delivery_key", &self.delivery_key.as_ref().map_or_else(own_key, SignerPlace::to_string))?;
        line("otel_exporter_otlp_endpoint", &self.otlp.clone().unwrap_or_else(none))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(file: &str) -> Layers {
        Layers { file: file.parse().unwrap(), faults: Vec::new(), given: None }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let mut l = layers(
            "rate_limit = 7\nfeeds_max = 8\ncors_origins = [\"https://a.example\"]\ndir = \"shop\"\ndatabase = \"postgres://a/b\"\n",
        );
        let args = |dev| Args { dev, rate_limit: Some("9".into()), ..Args::default() };
        let port = |name: &str| (name == "PORT").then(|| "81".into());
        let settings = read(&mut l, (None, None), args(true), signers::Args::default(), &port);
        l.finish().unwrap();
        assert_eq!((settings.rate_limit, settings.feeds_max, settings.requests_max), (9, 8, 1024));
        // With known secrets, on this machine only.
        assert_eq!(settings.listen, "127.0.0.1:81".parse().unwrap());
        let elsewhere = read(&mut layers(""), (None, None), args(false), signers::Args::default(), &port);
        assert_eq!(elsewhere.listen, "0.0.0.0:81".parse().unwrap());
        assert_eq!(settings.cors_origins, ["https://a.example"]);
        let place = |place: Place| (place.dir.display().to_string(), place.database);
        assert_eq!(place(settings.place), ("shop".to_owned(), Some("postgres://a/b".to_owned())));
        let given = (Some("other".into()), Some("postgres://c/d".into()));
        let given =
            read(&mut layers("dir = \"shop\"\ndatabase = \"x\""), given, args(true), signers::Args::default(), &port);
        assert_eq!(place(given.place), ("other".to_owned(), Some("postgres://c/d".to_owned())));
        assert_eq!(place(elsewhere.place), ("ledger-data".to_owned(), None));
    }

    #[test]
    fn every_bad_value_is_named_in_a_line_of_its_own() {
        let mut l =
            layers("rate_limit = \"many\"\nnonsense = 1\npayment_webhook_secret = \"short\"\n[services]\nx = \"Y\"");
        let args = Args {
            listen: Some("here".into()),
            ledger_id: Some("12".into()),
            tls_certificate: Some("/does/not/exist".into()),
            maintenance_mode: Some("perhaps".into()),
            jwks: Some("http://keys.example/".into()),
            ..Args::default()
        };
        let signing = signers::Args { require_kms: Some("true".into()), ..signers::Args::default() };
        read(&mut l, (None, None), args, signing, &|name| {
            (name == "SIGNING_PROXY_URL").then(|| "https://sign.example".into())
        });
        let Err(CliError::Usage(text)) = l.finish() else { panic!() };
        let named: Vec<&str> = text.lines().map(|line| line.split([' ', ':', '.']).next().unwrap()).collect();
        assert_eq!(
            named,
            [
                "listen",
                "ledger_id",
                "tls_certificate",
                "jwks",
                "payment_webhook_secret",
                "services",
                "require_kms",
                "require_kms",
                "rate_limit",
                "maintenance_mode",
                "ledger_id",
                "jwks,",
                "nonsense"
            ]
        );
        assert!(!text.contains("short"));
    }
}
