//! An issuer of tokens outside the program, where it publishes its keys, and a production server that believes it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Start, ledger, now, python};

pub(crate) const ISS: &str = "https://issuer.example";
pub(crate) const AUD: &str = "ledger";

/// The issuer: `issuer.py`.
pub(crate) struct Issuer {
    child: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Issuer {
    pub(crate) fn start() -> Issuer {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/issuer.py");
        let mut child = python().arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pipes = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Issuer { child, pipes: Mutex::new(pipes) }
    }

    fn ask(&self, request: &Value) -> Value {
        let (stdin, stdout) = &mut *self.pipes.lock().unwrap();
        writeln!(stdin, "{request}").unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {request}"))
    }

    /// Makes a key and gives its public JWK, with its name as kid.
    pub(crate) fn key(&self, name: &str, alg: &str) -> Value {
        let mut jwk = self.ask(&json!({ "op": "key", "name": name, "alg": alg }));
        jwk["kid"] = name.into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// A token as any issuer makes one.
    pub(crate) fn token(&self, key: &str, alg: &str, claims: &Value) -> String {
        let header = json!({ "kid": key });
        let made = self.ask(&json!({ "op": "encode", "key": key, "alg": alg, "header": header, "claims": claims }));
        made.as_str().unwrap().to_owned()
    }

    /// A token whose parts are exactly these. `with` says what signs it.
    pub(crate) fn craft(&self, header: &Value, claims: &Value, with: Value) -> String {
        let mut request = json!({ "op": "craft", "header": header, "claims": claims });
        request.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        self.ask(&request).as_str().unwrap().to_owned()
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Good for ten minutes.
pub(crate) fn claims(sub: &str, roles: &[&str]) -> Value {
    json!({ "iss": ISS, "aud": AUD, "sub": sub, "roles": roles, "exp": now() + 600, "iat": now() })
}

pub(crate) fn set(keys: &[&Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// A ledger that was made for production, and how its server starts: no limits on rates, tokens by a key set.
pub(crate) fn production(dir: &Path, jwks: &str) -> Start {
    let shop = dir.join("shop");
    let made = ledger().arg("--dir").arg(&shop).args(["--json", "init"]).output().unwrap();
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let id = made["ledger_id"].as_str().unwrap();
    let start = Start::production(&shop).args(&["--ledger-id", id, "--jwks", jwks]);
    start.args(&["--jwt-issuer", ISS, "--jwt-audience", AUD, "--rate-limit", "0", "--rate-limit-service", "0"])
}

/// What the place of the keys answers next.
#[derive(Clone)]
pub(crate) struct Published {
    pub(crate) status: &'static str,
    pub(crate) body: String,
    /// Before it answers.
    pub(crate) delay: Duration,
}

/// A web server with a key set.
pub(crate) struct KeyPlace {
    pub(crate) url: String,
    published: Arc<Mutex<(Published, usize)>>,
}

impl KeyPlace {
    pub(crate) fn start(body: &str) -> KeyPlace {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let first = Published { status: "200 OK", body: body.into(), delay: Duration::ZERO };
        let published = Arc::new(Mutex::new((first, 0)));
        let shared = Arc::clone(&published);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let head = BufReader::new(&stream).lines().map_while(Result::ok);
                head.take_while(|line| !line.is_empty()).for_each(drop);
                let answer = {
                    let mut shared = shared.lock().unwrap();
                    shared.1 += 1;
                    shared.0.clone()
                };
                std::thread::sleep(answer.delay);
                let Published { status, body, .. } = answer;
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close", body.len());
                let _ = write!(stream, "{head}\r\n\r\n{body}");
            }
        });
        KeyPlace { url, published }
    }

    pub(crate) fn publish(&self, status: &'static str, body: &str, delay: Duration) {
        self.published.lock().unwrap().0 = Published { status, body: body.into(), delay };
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.published.lock().unwrap().1
    }
}
