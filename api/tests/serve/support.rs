//! A real server of the real program, and a real client.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use ledger_engine::keys::SigningKey;
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

pub(crate) const WEBHOOK_SECRET: &str = "whsec_development_only";

/// A running `ledger serve`. Ends with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    pub(crate) dir: PathBuf,
    /// What it wrote to standard error so far.
    log: Arc<Mutex<String>>,
    operator: OnceLock<Api>,
}

pub(crate) fn ledger() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledger"));
    // Nothing of the environment that the tests run in.
    for (name, _) in std::env::vars() {
        if !matches!(name.as_str(), "PATH" | "HOME" | "TMPDIR" | "LANG") {
            command.env_remove(name);
        }
    }
    command
}

/// For commands that end by themselves: one that serves instead fails its test.
pub(crate) fn run_to_end(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(30) {
            let _ = child.kill();
            panic!("it runs on: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// The Python of the independent checks.
pub(crate) fn python() -> Command {
    let python = std::env::var("LEDGER_PYTHON");
    Command::new(python.expect("the test command makes the Python environment: run .ci/run, or set LEDGER_PYTHON"))
}

/// How to start a server.
pub(crate) struct Start {
    command: Command,
    dir: PathBuf,
}

impl Start {
    /// A development server with no limits on rates, in `dir`.
    pub(crate) fn dev(dir: &Path) -> Start {
        let mut command = ledger();
        command.arg("--dir").arg(dir).args(["serve", "--dev", "--listen", "127.0.0.1:0"]);
        command.envs([("RATE_LIMIT", "0"), ("RATE_LIMIT_SERVICE", "0")]);
        Start { command, dir: dir.to_owned() }
    }

    /// A server for production; the settings are the test's.
    pub(crate) fn production(dir: &Path) -> Start {
        let mut command = ledger();
        command.arg("--dir").arg(dir).args(["serve", "--listen", "127.0.0.1:0"]);
        Start { command, dir: dir.to_owned() }
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Start {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Start {
        self.command.env(name, value);
        self
    }

    /// The same with a file system at `dir` that only the server sees, and that a file fills.
    pub(crate) fn on_a_full_disk(self, dir: &Path) -> Start {
        let script = r#"mount -t tmpfs -o size=64k tmpfs "$1" && { head -c 1M /dev/zero > "$1/filler" 2> "$1.said" || :; } && shift && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-ec", script, "sh"]).arg(dir);
        command.arg(self.command.get_program()).args(self.command.get_args());
        command.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Start { command, dir: self.dir }
    }

    /// Runs it to its end: for starts that are refused.
    pub(crate) fn refused(mut self) -> (i32, String) {
        let out = run_to_end(&mut self.command);
        (out.status.code().unwrap(), String::from_utf8_lossy(&out.stderr).into_owned())
    }

    /// Runs it to its end, which must be a good one, and gives what it printed.
    pub(crate) fn printed(mut self) -> String {
        let out = run_to_end(&mut self.command);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    pub(crate) fn run(mut self) -> Server {
        let mut child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (errors, kept) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = loop {
            let Some(Ok(line)) = lines.next() else {
                std::thread::sleep(Duration::from_millis(100));
                panic!("the server did not start: {}", log.lock().unwrap());
            };
            if let Some(url) = line.strip_prefix("listening on ") {
                break url.to_owned();
            }
        };
        // Whatever else it says is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Server { child, url, dir: self.dir, log, operator: OnceLock::new() }
    }
}

impl Server {
    pub(crate) fn dev(dir: &Path) -> Server {
        Start::dev(dir).run()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Makes room on the disk of [`Start::on_a_full_disk`].
    pub(crate) fn makes_room(&self, dir: &Path) {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        std::fs::remove_file(root.join(dir.strip_prefix("/").unwrap()).join("filler")).unwrap();
    }

    /// Ends it as an operator does, and gives its exit status.
    pub(crate) fn stop(mut self) -> i32 {
        self.signal("-TERM");
        self.wait()
    }

    pub(crate) fn wait(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the server does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as a power cut does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A development token.
    pub(crate) fn token(&self, sub: &str, role: &str) -> String {
        let out = ledger().arg("--dir").arg(&self.dir).args(["token", "--sub", sub, "--role", role]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// Entries of all chains. Nothing else may append meanwhile, such as a checkpoint.
    pub(crate) fn entries(&self) -> u64 {
        let metrics = self.operator.get_or_init(|| self.of("op@example.org", "operator")).get("/metrics").body;
        let text = metrics.as_str().unwrap();
        let sizes = text.lines().filter_map(|line| line.strip_prefix("ledger_chain_size{")?.split_once("} "));
        sizes.map(|(_, size)| size.parse::<u64>().unwrap()).sum()
    }

    /// Resident memory in KiB, and open files.
    pub(crate) fn weight(&self) -> (u64, usize) {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = std::fs::read_to_string(proc.join("status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        let kib = line.split_whitespace().next().unwrap().parse().unwrap();
        (kib, std::fs::read_dir(proc.join("fd")).unwrap().count())
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    pub(crate) fn client(&self, token: Option<&str>) -> Api {
        Api { url: self.url.clone(), token: token.map(str::to_owned), client: client() }
    }

    /// A client of somebody.
    pub(crate) fn of(&self, sub: &str, role: &str) -> Api {
        self.client(Some(&self.token(sub, role)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn client() -> Client {
    Client::builder().timeout(Duration::from_secs(60)).redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

/// A caller of a server.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) url: String,
    token: Option<String>,
    client: Client,
}

/// An answer: status, body, and headers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) headers: reqwest::header::HeaderMap,
}

impl Answer {
    pub(crate) fn of(response: Response) -> Answer {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status, body, headers }
    }

    /// The error's code, or `ok`.
    pub(crate) fn code(&self) -> &str {
        match self.body["ok"] {
            Value::Bool(true) => "ok",
            _ => self.body["error"]["code"].as_str().unwrap_or("(no code)"),
        }
    }

    pub(crate) fn said(&self) -> (u16, &str) {
        (self.status, self.code())
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

impl Api {
    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        Answer::of(self.request("GET", path).send().unwrap())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request("POST", path).json(body).send().unwrap())
    }

    pub(crate) fn post_with_key(&self, path: &str, key: &str, body: &Value) -> Answer {
        Answer::of(self.request("POST", path).header("Idempotency-Key", key).json(body).send().unwrap())
    }

    /// Buys the development SKU.
    pub(crate) fn checkout(&self, buyer: &str, key: &str) -> Answer {
        self.post_with_key("/checkout", key, &checkout_body(buyer))
    }

    /// Pays an order by the provider's webhook.
    pub(crate) fn pay(&self, event: &str, order: &str, amount: i64, currency: &str) -> Answer {
        let body = payment_event(event, order, amount, currency);
        self.webhook(&body, &stripe_signature(WEBHOOK_SECRET, now(), &body))
    }

    pub(crate) fn webhook(&self, body: &str, signature: &str) -> Answer {
        let request = self.request("POST", "/webhooks/payment").header("Stripe-Signature", signature);
        Answer::of(request.header("Content-Type", "application/json").body(body.to_owned()).send().unwrap())
    }
}

pub(crate) fn checkout_body(buyer: &str) -> Value {
    json!({
        "sku_id": "sku-e2e", "buyer_id": buyer,
        "payment_method": { "provider": "stripe", "payment_intent": "pi_1" },
        "delivery_preferences": { "mode": "marketplace-managed" },
        "order_metadata": { "note": "for Ann" },
    })
}

pub(crate) fn payment_event(event: &str, order: &str, amount: i64, currency: &str) -> String {
    json!({
        "id": event, "type": "payment_intent.succeeded",
        "data": { "object": { "id": "pi_1", "amount": amount, "amount_received": amount, "currency": currency,
            "metadata": { "order_id": order }, "rate": 1.5 } },
    })
    .to_string()
}

pub(crate) fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// A signature by OpenSSL, which shares no code with the server.
pub(crate) fn stripe_signature(secret: &str, time: i64, body: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{time}.{body}").as_bytes()).unwrap();
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    format!("t={time},v1={}", out.trim().rsplit(' ').next().unwrap())
}

/// The finance ledger of a development server: its key, and its signature of an order.
pub(crate) struct Finance {
    key: SigningKey,
    pub(crate) kid: String,
}

impl Finance {
    pub(crate) fn of(server: &Server) -> Finance {
        use ed25519_dalek::pkcs8::DecodePrivateKey as _;
        let pem = std::fs::read_to_string(server.dir.join("keys/dev-finance.pem")).unwrap();
        let signers = server.of("op@example.org", "operator").get("/admin/signers");
        let signers = signers.body["signers"].as_array().unwrap();
        let own = signers.iter().find(|s| s["purpose"] == "finance").unwrap();
        Finance { key: SigningKey::from_pkcs8_pem(&pem).unwrap(), kid: own["signer_kid"].as_str().unwrap().to_owned() }
    }

    /// The members of settle, for an order of 12.50 EUR.
    pub(crate) fn proof(&self, order: &str, proof: &str) -> Value {
        self.proof_of(order, proof, 1250, "EUR", 2)
    }

    pub(crate) fn proof_of(&self, order: &str, proof: &str, amount: i64, currency: &str, scale: i64) -> Value {
        use ed25519_dalek::Signer as _;
        let text = format!(
            r#"{{"amount":{amount},"currency":"{currency}","ledger_proof_id":"{proof}","order_id":"{order}","scale":{scale},"type":"finance-proof/v1"}}"#
        );
        let signature = ledger_engine::hash::to_hex(&self.key.sign(text.as_bytes()).to_bytes());
        json!({ "ledger_proof_id": proof, "ledger_proof_signature": signature, "ledger_proof_signer_kid": self.kid })
    }
}

/// An order that is paid.
pub(crate) fn paid_order(server: &Server, buyer: &str, key: &str) -> String {
    let order = server.of(buyer, "buyer").checkout(buyer, key);
    assert_eq!(order.said(), (201, "ok"), "{:?}", order.body);
    let id = order.body["order"]["order_id"].as_str().unwrap().to_owned();
    let paid = server.client(None).pay(&format!("evt_{key}"), &id, 1250, "eur");
    assert_eq!((paid.said(), &paid.body["event_type"]), ((200, "ok"), &json!("payment.captured")), "{:?}", paid.body);
    id
}
