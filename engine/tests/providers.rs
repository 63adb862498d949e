//! The signers whose keys are elsewhere, each against something real: SoftHSM tokens, the SDK of AWS and its protocol, HTTP.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ledger_engine::commit::verify_ed25519;
use ledger_engine::hash::to_hex;
use ledger_engine::registry::Purpose;
use ledger_engine::signer::keyring::SignerSource;
use ledger_engine::signer::kms::KmsSource;
use ledger_engine::signer::pkcs11::TokenSource;
use ledger_engine::signer::place::{SignerPlace, TokenUri};
use ledger_engine::signer::proxy::ProxySource;
use ledger_engine::signer::remote::Patience;
use ledger_engine::signer::sealing::{Sealed, SealingKey};
use ledger_engine::signer::{Keeper, LocalSigner, Signer};
use serde_json::{Value, json};
use test_servers::{Http, Kms, KmsDeed, Reply, Request, Token};

const MESSAGE: &[u8] = b"a statement";

fn patience() -> Patience {
    Patience { attempt: Duration::from_millis(700), rest: Duration::from_millis(50), ..Patience::default() }
}

fn verified(signer: &dyn Signer, signature: [u8; 64]) {
    assert!(verify_ed25519(&signer.public_key(), MESSAGE, &signature));
}

/// Runs `body` in a process of its own that has a fresh token: the library reads where tokens are when it is loaded.
fn with_token(test: &str, body: impl AsyncFnOnce(&Path)) {
    match Token::of_this_process() {
        None => assert!(Token::new().run_again(test).success(), "{test} failed in its own process"),
        Some(path) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(body(&path));
        }
    }
}

fn token_uri(object: &str, module: &Path, pin: &Path) -> TokenUri {
    let text = format!("{}&pin-source=file:{}", Token::uri(object, module), pin.display());
    match SignerPlace::parse(&text).unwrap() {
        SignerPlace::Pkcs11(uri) => uri,
        other => panic!("{other:?}"),
    }
}

/// A file with a PIN that only its owner may read.
fn pin_file(directory: &Path, pin: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join("pin");
    std::fs::write(&path, format!("{pin}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

async fn generate(uri: TokenUri) -> Result<[u8; 32], String> {
    let source = TokenSource::new(uri, patience());
    tokio::task::spawn_blocking(move || source.generate()).await.unwrap().map_err(|e| e.reason)
}

async fn found(source: &Arc<impl SignerSource + 'static>) -> Result<Vec<Arc<dyn Signer>>, String> {
    let source = Arc::clone(source);
    tokio::task::spawn_blocking(move || source.signers()).await.unwrap().map_err(|e| e.reason)
}

#[test]
fn a_key_in_a_token_signs() {
    with_token("a_key_in_a_token_signs", async |path| {
        let (module, pin) = (Token::module(), pin_file(path, Token::PIN));
        let commit = generate(token_uri("commit", &module, &pin)).await.unwrap();
        let again = generate(token_uri("commit", &module, &pin)).await.unwrap_err();
        assert!(again.contains("has a key of that label"), "{again}");
        let licence = generate(token_uri("licence", &module, &pin)).await.unwrap();
        let one = Arc::new(TokenSource::new(token_uri("commit", &module, &pin), patience()));
        let signers = found(&one).await.unwrap();
        assert_eq!((signers.len(), signers[0].public_key(), signers[0].keeper()), (1, commit, Keeper::Pkcs11));
        // At once, from more callers than it has sessions.
        let calls = (0..40).map(|_| {
            let signer = Arc::clone(&signers[0]);
            tokio::spawn(async move { signer.sign(MESSAGE).await })
        });
        for call in calls.collect::<Vec<_>>() {
            verified(&*signers[0], call.await.unwrap().unwrap());
        }
        assert_eq!((signers[0].stats().signed, signers[0].stats().errors), (40, 0));
        // Without a label the URI names them all.
        let mut all = token_uri("", &module, &pin);
        all.object = None;
        let mut keys: Vec<_> =
            found(&Arc::new(TokenSource::new(all, patience()))).await.unwrap().iter().map(|s| s.public_key()).collect();
        keys.sort();
        let mut both = [commit, licence];
        both.sort();
        assert_eq!(keys, both);
        let none = found(&Arc::new(TokenSource::new(token_uri("other", &module, &pin), patience()))).await;
        assert!(none.unwrap_err().contains("no Ed25519 private key of that name"));
        // The private key does not come out.
        let handle = cryptoki::context::Pkcs11::new(&module).unwrap();
        let slot = handle.get_slots_with_initialized_token().unwrap()[0];
        let session = handle.open_ro_session(slot).unwrap();
        use cryptoki::object::{Attribute, AttributeType, ObjectClass};
        for key in session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]).unwrap() {
            assert!(session.get_attributes(key, &[AttributeType::Value]).unwrap().is_empty());
        }
    });
}

#[test]
fn a_lost_session_is_opened_again() {
    with_token("a_lost_session_is_opened_again", async |path| {
        let (module, pin) = (Token::module(), pin_file(path, Token::PIN));
        generate(token_uri("commit", &module, &pin)).await.unwrap();
        let source = Arc::new(TokenSource::new(token_uri("commit", &module, &pin), patience()));
        let signer = found(&source).await.unwrap().remove(0);
        verified(&*signer, signer.sign(MESSAGE).await.unwrap());
        // Somebody logs the process out.
        let handle = cryptoki::context::Pkcs11::new(&module).unwrap();
        let slot = handle.get_slots_with_initialized_token().unwrap()[0];
        handle.open_ro_session(slot).unwrap().logout().unwrap();
        verified(&*signer, signer.sign(MESSAGE).await.unwrap());
        // The library loses everything, as when its daemon starts again.
        handle.finalize().unwrap();
        signer.check().await.unwrap();
        verified(&*signer, signer.sign(MESSAGE).await.unwrap());
        assert_eq!((signer.stats().signed, signer.stats().errors), (3, 0));
        // The token is taken away, and brought back.
        let tokens = path.join("tokens");
        let away = path.join("away");
        std::fs::rename(&tokens, &away).unwrap();
        std::fs::create_dir(&tokens).unwrap();
        cryptoki::context::Pkcs11::new(&module).unwrap().finalize().unwrap();
        let error = signer.sign(MESSAGE).await.unwrap_err();
        assert!(error.reason.contains("PKCS#11 token ledger test") && error.reason.contains("not there"), "{error}");
        assert!(signer.check().await.is_err());
        std::fs::remove_dir(&tokens).unwrap();
        std::fs::rename(&away, &tokens).unwrap();
        cryptoki::context::Pkcs11::new(&module).unwrap().finalize().unwrap();
        let begun = Instant::now();
        let signature = loop {
            match signer.sign(MESSAGE).await {
                Ok(signature) => break signature,
                Err(e) => assert!(begun.elapsed() < Duration::from_secs(20), "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        verified(&*signer, signature);
    });
}

/// A token locks itself after a few wrong PINs: a wrong one is given to it once. The spy of OpenSC counts.
#[test]
fn a_wrong_pin_is_tried_once() {
    with_token("a_wrong_pin_is_tried_once", async |path| {
        let (module, spy) = (Token::module(), Token::spy());
        generate(token_uri("commit", &module, &pin_file(path, Token::PIN))).await.unwrap();
        let logins = || test_servers::calls(&path.join("spy"), "C_Login");
        let pin = pin_file(path, "999999");
        let source = Arc::new(TokenSource::new(token_uri("commit", &spy, &pin), patience()));
        // The library below is one and the same, and still logged in.
        cryptoki::context::Pkcs11::new(&module).unwrap().finalize().unwrap();
        for attempt in 0..10 {
            let error = found(&source).await.err().unwrap();
            assert!(error.contains("refused") && error.contains("not tried again"), "{attempt}: {error}");
            assert!(!error.contains("999999"), "{error}");
        }
        assert_eq!(logins(), 1);
        // Corrected where it comes from it is tried again, without a restart.
        pin_file(path, Token::PIN);
        let signer = found(&source).await.unwrap().remove(0);
        verified(&*signer, signer.sign(MESSAGE).await.unwrap());
        assert_eq!(logins(), 2);
        for _ in 0..5 {
            verified(&*signer, signer.sign(MESSAGE).await.unwrap());
        }
        // One call for each signature, and the key is looked for once.
        assert_eq!((logins(), test_servers::calls(&path.join("spy"), "C_SignInit")), (2, 6));
        let missing = Arc::new(TokenSource::new(token_uri("commit", Path::new("/nowhere.so"), &pin), patience()));
        assert!(found(&missing).await.err().unwrap().contains("/nowhere.so"));
    });
}

/// The credentials and the place of the test's service come by the environment, as in production: the test runs itself again with it.
fn with_kms(test: &str, body: impl AsyncFnOnce(&KmsOfTest)) {
    const SEED: &str = "LEDGER_TEST_KMS";
    if std::env::var_os(SEED).is_none() {
        let program = std::env::current_exe().unwrap();
        let mut command = std::process::Command::new(program);
        command.args(["--exact", test, "--nocapture"]).env(SEED, "1");
        command.env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE").env("AWS_SECRET_ACCESS_KEY", "secret");
        command.env("AWS_EC2_METADATA_DISABLED", "true").env_remove("AWS_REGION").env_remove("AWS_PROFILE");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        command
            .env("AWS_ENDPOINT_URL_KMS", format!("http://127.0.0.1:{port}"))
            .env("LEDGER_TEST_PORT", port.to_string());
        assert!(command.status().unwrap().success(), "{test} failed in its own process");
        return;
    }
    let port = std::env::var("LEDGER_TEST_PORT").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(body(&KmsOfTest { kms: Kms::start_at(port, 5) }));
}

struct KmsOfTest {
    kms: Kms,
}

impl KmsOfTest {
    async fn signer(&self, id: &str) -> Result<Arc<dyn Signer>, String> {
        let Ok(SignerPlace::Kms(key)) = SignerPlace::parse(&format!("awskms:{id}")) else { panic!("no key") };
        let source = Arc::new(KmsSource::new(key, patience(), tokio::runtime::Handle::current()));
        found(&source).await.map(|mut signers| signers.remove(0))
    }
}

const KMS_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

#[test]
fn a_key_in_kms_signs() {
    with_kms("a_key_in_kms_signs", async |of| {
        // The region comes with the ARN.
        let signer = of.signer(KMS_ARN).await.unwrap();
        assert_eq!((signer.public_key(), signer.keeper()), (of.kms.public_key(), Keeper::Kms));
        verified(&*signer, signer.sign(MESSAGE).await.unwrap());
        signer.check().await.unwrap();
        assert_eq!(of.kms.signed(), 1);
        let long = signer.sign(&[7; 4097]).await.unwrap_err();
        assert!(long.reason.contains("4096 bytes"), "{long}");
        assert_eq!(of.kms.signed(), 1);
        let other = of.signer(&KMS_ARN.replace("1234abcd", "0000abcd")).await.err().unwrap();
        assert!(other.contains("NotFoundException"), "{other}");
    });
}

#[test]
fn what_kms_does_wrong_is_not_believed() {
    with_kms("what_kms_does_wrong_is_not_believed", async |of| {
        let body = |text: &str| Reply::Body(200, "application/x-amz-json-1.1", text.as_bytes().to_vec());
        let deeds = [
            (KmsDeed::OtherKey, "does not verify"),
            (KmsDeed::Error(400, "AccessDeniedException"), "AccessDeniedException"),
            (KmsDeed::Error(400, "ThrottlingException"), "ThrottlingException"),
            (KmsDeed::Error(400, "DisabledException"), "DisabledException"),
            (KmsDeed::Error(500, "KMSInternalException"), "KMSInternalException"),
            (KmsDeed::Other(body(r#"{"Signature":"AAAA"}"#)), "3 bytes, not a signature"),
            (KmsDeed::Other(body("garbage")), ""),
            (KmsDeed::Other(Reply::Close), ""),
            (KmsDeed::Other(Reply::Hang), "no answer within 700 ms"),
            (KmsDeed::Other(Reply::Endless), "length limit exceeded"),
        ];
        for (deed, says) in deeds {
            let signer = of.signer(KMS_ARN).await.unwrap();
            of.kms.becomes(deed.clone());
            let error = signer.sign(MESSAGE).await.unwrap_err();
            assert!(error.reason.contains("AWS KMS key") && error.reason.contains(says), "{deed:?}: {error}");
            assert!(error.reason.len() < 500 && !error.reason.contains("secret"), "{deed:?}: {error}");
            // What nobody but an operator can mend is asked for once.
            let lasting = matches!(deed, KmsDeed::Error(400, "AccessDeniedException" | "DisabledException"));
            assert_eq!(signer.stats().errors, if lasting { 1 } else { 3 }, "{deed:?}");
            assert_eq!(signer.check().await.is_err(), lasting, "{deed:?}");
            of.kms.becomes(KmsDeed::Sign);
            let begun = Instant::now();
            while signer.sign(MESSAGE).await.is_err() {
                assert!(begun.elapsed() < Duration::from_secs(20), "{deed:?}: it does not come back");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
}

/// A proxy with one key, which does what the test says with requests to sign.
#[test]
fn keys_in_kms_seal() {
    with_kms("keys_in_kms_seal", async |of| {
        let text = format!("awskms:{}", of.kms.sealing_alias());
        let Ok(SignerPlace::Kms(alias)) = SignerPlace::parse(&text) else { panic!("no key") };
        let key = KmsSource::new(alias, patience(), tokio::runtime::Handle::current());
        assert_eq!(key.keeper(), Keeper::Kms);
        let mut all = Vec::new();
        for n in [0, 1] {
            let arn = of.kms.sealing_key_is(n);
            let sealed = key.seal(b"a secret", b"one").await.unwrap();
            assert_eq!(sealed.source, format!("awskms:{arn}"), "the key, and not its alias");
            assert!(!sealed.bytes.windows(8).any(|w| w == b"a secret"));
            all.push(sealed);
        }
        for (sealed, other) in [(&all[0], &all[1]), (&all[1], &all[0])] {
            assert_eq!(*key.open(sealed, b"one").await.unwrap(), b"a secret", "whatever the alias names now");
            let wrong = key.open(sealed, b"another").await.unwrap_err();
            assert!(wrong.reason.contains("InvalidCiphertextException") && !wrong.again, "{wrong}");
            let elsewhere = Sealed { source: "file:0011223344556677".into(), ..sealed.clone() };
            assert!(key.open(&elsewhere, b"one").await.unwrap_err().reason.contains("file:0011223344556677"));
            let swapped = Sealed { source: other.source.clone(), ..sealed.clone() };
            assert!(key.open(&swapped, b"one").await.unwrap_err().reason.contains("IncorrectKeyException"));
        }
        for (kind, again) in [("ThrottlingException", true), ("AccessDeniedException", false)] {
            of.kms.becomes(KmsDeed::Error(400, kind));
            for error in [key.seal(b"a", b"one").await.err(), key.open(&all[0], b"one").await.err()] {
                let error = error.unwrap();
                assert!(error.reason.contains(kind) && error.again == again, "{error}");
            }
        }
        of.kms.is_away(true);
        assert!(key.seal(b"a secret", b"one").await.unwrap_err().again);
    });
}

#[test]
fn keys_in_a_token_seal() {
    with_token("keys_in_a_token_seal", async |path| {
        use cryptoki::mechanism::Mechanism;
        use cryptoki::object::Attribute;
        let (module, pin) = (Token::module(), pin_file(path, Token::PIN));
        let uri = token_uri("deliveries", &module, &pin);
        let key = TokenSource::new(uri.clone(), patience());
        let none = key.seal(b"a secret", b"one").await.unwrap_err();
        assert!(none.reason.contains("no AES key labelled deliveries"), "{none}");
        assert_eq!(key.keeper(), Keeper::Pkcs11);
        let handle = cryptoki::context::Pkcs11::new(&module).unwrap();
        let slot = handle.get_slots_with_initialized_token().unwrap()[0];
        let session = handle.open_rw_session(slot).unwrap();
        let make = |label: &str| {
            let template = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::ValueLen(32.into()),
                Attribute::Label(label.as_bytes().to_vec()),
            ];
            session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
        };
        make("deliveries");
        let sealed = key.seal(b"a secret", b"one").await.unwrap();
        assert_eq!(sealed.source, "pkcs11:token=ledger%20test;object=deliveries");
        make("deliveries 2");
        let new = TokenSource::new(TokenUri { object: Some("deliveries 2".into()), ..uri }, patience());
        assert_eq!(*new.open(&sealed, b"one").await.unwrap(), b"a secret", "the label is that of the history");
        let label = |n: usize| ["deliveries%202", "deliveries"][n];
        let newer = new.seal(b"a secret", b"one").await.unwrap();
        assert_eq!(newer.source, format!("pkcs11:token=ledger%20test;object={}", label(0)));
        assert_eq!(*key.open(&newer, b"one").await.unwrap(), b"a secret");
        for (key, sealed) in [(&key, &sealed), (&new, &newer)] {
            assert!(key.open(sealed, b"another").await.is_err());
            let mut altered = sealed.clone();
            altered.bytes.truncate(5);
            assert!(key.open(&altered, b"one").await.is_err());
            altered = Sealed { source: "awskms:arn".into(), ..sealed.clone() };
            assert!(key.open(&altered, b"one").await.unwrap_err().reason.contains("awskms:arn"));
        }
        make("deliveries");
        assert!(key.seal(b"a secret", b"one").await.unwrap_err().reason.contains("or several"));
    });
}

fn proxy(deed: impl Fn(&Request, &LocalSigner) -> Reply + Send + Sync + 'static) -> (Http, [u8; 32]) {
    let key = LocalSigner::from_seed(Purpose::Commit, &[6; 32]);
    let public_key = key.public_key();
    let server = Http::start(move |request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/v1/keys") => answer(
            &json!({ "keys": [{ "alg": "ed25519", "public_key": to_hex(&public_key) }, { "alg": "rsa", "public_key": "" }] }),
        ),
        ("GET", "/v1/health") => answer(&json!({ "ok": true })),
        ("POST", "/v1/sign") => deed(request, &key),
        _ => Reply::Body(404, "text/plain", b"nothing here".to_vec()),
    });
    (server, public_key)
}

fn answer(body: &Value) -> Reply {
    Reply::Body(200, "application/json", body.to_string().into_bytes())
}

fn signed(request: &Request, key: &LocalSigner) -> Reply {
    let asked: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(asked["public_key"], to_hex(&key.public_key()));
    let message = STANDARD.decode(asked["message"].as_str().unwrap()).unwrap();
    answer(&json!({ "signature": STANDARD.encode(key.signature(&message)) }))
}

async fn proxy_signer(server: &Http, fragment: &str) -> Result<Arc<dyn Signer>, String> {
    let Ok(SignerPlace::Proxy(url)) = SignerPlace::parse(&format!("{}/v1{fragment}", server.url())) else {
        panic!("no proxy")
    };
    let source = Arc::new(ProxySource::new(url, patience(), tokio::runtime::Handle::current()));
    found(&source).await.map(|mut signers| signers.remove(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_behind_a_proxy_signs() {
    let (server, public_key) = proxy(signed);
    let signer = proxy_signer(&server, "").await.unwrap();
    assert_eq!((signer.public_key(), signer.keeper()), (public_key, Keeper::Proxy));
    verified(&*signer, signer.sign(MESSAGE).await.unwrap());
    signer.check().await.unwrap();
    assert!(proxy_signer(&server, &format!("#{}", to_hex(&public_key))).await.is_ok());
    let other = proxy_signer(&server, &format!("#{}", "00".repeat(32))).await.err().unwrap();
    assert!(other.contains("no such Ed25519 key"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_does_wrong_is_not_believed() {
    type Deed = fn(&Request, &LocalSigner) -> Reply;
    let deeds: [(Deed, &str, u64); 9] = [
        (|_, _| answer(&json!({ "signature": STANDARD.encode([7; 64]) })), "does not verify", 3),
        (|_, key| answer(&json!({ "signature": STANDARD.encode(key.signature(b"other")) })), "does not verify", 3),
        (|_, _| answer(&json!({ "signature": "!" })), "not base64", 3),
        (|_, _| answer(&json!({ "ok": true })), "not the answer of its protocol", 3),
        (
            |_, _| {
                let body = json!({ "error": { "code": "UNAUTHORIZED", "message": "no\nkey" } });
                Reply::Body(401, "application/json", body.to_string().into_bytes())
            },
            "HTTP 401: UNAUTHORIZED nokey",
            1,
        ),
        (|_, _| Reply::Body(503, "text/html", b"<html>".to_vec()), "HTTP 503", 3),
        (|_, _| Reply::Body(302, "text/html", Vec::new()), "HTTP 302", 1),
        (|_, _| Reply::Endless, "more than 65536 bytes", 3),
        (|_, _| Reply::Hang, "no answer within 700 ms", 3),
    ];
    for (deed, says, errors) in deeds {
        let (server, _) = proxy(deed);
        let signer = proxy_signer(&server, "").await.unwrap();
        let error = signer.sign(MESSAGE).await.unwrap_err();
        assert!(
            error.reason.contains("signing proxy http://127.0.0.1") && error.reason.contains(says),
            "{says}: {error}"
        );
        assert_eq!((signer.stats().errors, signer.stats().signed), (errors, 0), "{says}");
    }
    // Away, and back: the first answer after it counts.
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let (server, _) = proxy(move |request, key| match count.fetch_add(1, Ordering::Relaxed) {
        0..2 => Reply::Close,
        _ => signed(request, key),
    });
    let signer = proxy_signer(&server, "").await.unwrap();
    verified(&*signer, signer.sign(MESSAGE).await.unwrap());
    assert_eq!(signer.stats().errors, 2);
    drop(server);
    assert!(signer.check().await.is_err());
}
