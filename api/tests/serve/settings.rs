//! What the server is told: the better place wins, every bad value is named in a line, nothing secret is shown.

use std::net::TcpListener;
use std::path::Path;

use crate::issuer::{Issuer, production, set};
use crate::pki::Authority;
use crate::support::{Server, Start, ledger, run_to_end};

/// `ledger serve --dev` with arguments and variables: exit status, standard output and error.
fn serve(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = ledger();
    command.arg("--dir").arg(dir).args(["serve", "--dev"]).args(args).envs(env.iter().copied());
    let out = run_to_end(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

/// The value of a line of `--check-config`.
fn shown(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {text}")).trim().to_owned()
}

#[test]
fn every_bad_value_is_named_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let shop = dir.path().join("shop");
    let file = dir.path().join("serve.toml");
    let named = |args: &[&str], env: &[(&str, &str)], name: &str| {
        let (code, out, err) = serve(&shop, args, env);
        assert_eq!(code, 2, "{args:?} {env:?}: {out}{err}");
        let lines: Vec<&str> = err.lines().collect();
        assert!(lines.len() == 1 && lines[0].contains(name), "{args:?} {env:?}: {err}");
        assert!(!shop.exists(), "nothing is made for settings that are bad");
        err
    };
    for (variable, flag, bad) in [
        ("LISTEN", "--listen", "localhost"),
        ("LEDGER_ID", "--ledger-id", "12"),
        ("TLS_CLIENT_CA", "--tls-client-ca", "/does/not/exist"),
        ("JWKS", "--jwks", "http://keys.example/jwks.json"),
        ("JWT_LEEWAY_SECONDS", "--jwt-leeway-seconds", "601"),
        ("JWKS_REFRESH_SECONDS", "--jwks-refresh-seconds", "0"),
        ("PAYMENT_WEBHOOK_TOLERANCE_SECONDS", "--payment-webhook-tolerance-seconds", "-1"),
        ("BODY_BYTES_MAX", "--body-bytes-max", "1"),
        ("REQUEST_TIMEOUT_SECONDS", "--request-timeout-seconds", "0"),
        ("RATE_LIMIT", "--rate-limit", "many"),
        ("RATE_LIMIT_SERVICE", "--rate-limit-service", "1e3"),
        ("REQUESTS_MAX", "--requests-max", "0"),
        ("FEEDS_MAX", "--feeds-max", "-1"),
        ("CONNECTIONS_MAX", "--connections-max", "0x10"),
        ("CORS_ORIGINS", "--cors-origins", "*"),
        ("CHECKPOINTS_PUBLIC", "--checkpoints-public", "perhaps"),
        ("CHECKPOINT_SECONDS", "--checkpoint-seconds", "0"),
        ("MAINTENANCE_MODE", "--maintenance-mode", "2"),
        ("REQUIRE_KMS", "--require-kms", "true"),
        ("REQUIRE_SIGNING_PROXY", "--require-signing-proxy", "x"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "--otel-exporter-otlp-endpoint", "collector:4318"),
    ] {
        let name = variable.to_ascii_lowercase();
        // In the file, in the environment, as a flag.
        std::fs::write(&file, format!("{name} = {bad:?}\n")).unwrap();
        named(&["--config", file.to_str().unwrap()], &[], &name);
        named(&[], &[(variable, bad)], &name);
        named(&[&format!("{flag}={bad}")], &[], &name);
    }
    named(&[], &[("PORT", "70000")], "port");
    let secret = named(&[], &[("PAYMENT_WEBHOOK_SECRET", "hunter2")], "payment_webhook_secret");
    assert!(!secret.contains("hunter2"), "{secret}");
    for name in ["JWKS", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
        let text = named(&[], &[(name, "https://user:hunter2@host.example/")], &name.to_ascii_lowercase());
        assert!(!text.contains("hunter2"), "{text}");
    }
    for (text, name) in [
        ("rate_limt = 7\n", "rate_limt: there is no such setting"),
        ("dev = true\n", "dev: there is no such setting"),
        ("[services]\n\"a\" = \"Finance\"\n", "services"),
        ("[services]\n\"a\" = \"finance\"\n", "services: needs tls_client_ca"),
        ("services = 7\n", "services"),
        ("rate_limit = [1, 2]\n", "rate_limit"),
        ("rate_limit = \n", "serve.toml"),
        ("rate_limit = 7\nrate_limit = 8\n", "serve.toml"),
    ] {
        std::fs::write(&file, text).unwrap();
        named(&["--config", file.to_str().unwrap()], &[], name);
    }
    named(&["--config", "/does/not/exist.toml"], &[], "/does/not/exist.toml");
    // All at once, each in a line.
    let (_, _, err) = serve(&shop, &["--rate-limit", "x", "--feeds-max", "y"], &[("LISTEN", "z")]);
    assert_eq!(err.lines().count(), 3, "{err}");
}

#[test]
fn files_that_cannot_be_used_are_named_before_anything_starts() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), Issuer::start());
    let shop = dir.path().join("shop");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let authority = Authority::new(&dir.path().join("ca"));
    let (one, other) = (authority.issue("localhost", ""), authority.issue("localhost", ""));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (good, key) = (text(&one.file), text(&one.key));
    let (garbage, place) = (write("garbage.pem", "hunter2"), text(dir.path()));
    let half = write("half.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
    let tls = |certificate: &str, key: &str, ca: &str| {
        let mut args = vec!["--tls-certificate".to_owned(), certificate.into(), "--tls-key".into(), key.into()];
        if !ca.is_empty() {
            args.extend(["--tls-client-ca".into(), ca.into()]);
        }
        args
    };
    let mut cases = vec![
        (tls(&garbage, &key, ""), garbage.clone()),
        (tls(&half, &key, ""), half.clone()),
        (tls(&key, &key, ""), key.clone()),
        (tls(&good, &garbage, ""), garbage.clone()),
        (tls(&good, &good, ""), good.clone()),
        (tls(&good, &text(&other.key), ""), good.clone()),
        (tls(&place, &key, ""), place.clone()),
        (tls(&good, &key, &garbage), garbage.clone()),
        (tls(&good, &key, &half), half.clone()),
    ];
    let oct = write("oct.json", r#"{"keys":[{"kty":"oct","kid":"s","k":"aHVudGVyMg"}]}"#);
    let private = {
        let mut jwk = issuer.key("a", "EdDSA");
        jwk["d"] = "aHVudGVyMg".into();
        write("private.json", &set(&[&jwk]))
    };
    let empty = write("empty.json", r#"{"keys":[]}"#);
    let secret = write("secret.json", "hunter2");
    let list = write("list.json", "[]");
    let twice = write("twice.json", &set(&[&issuer.key("a", "EdDSA"), &issuer.key("a", "ES256")]));
    let key_set = write("jwks.json", &set(&[&issuer.key("a", "EdDSA")]));
    for file in [oct, private, empty, secret, list, twice, place] {
        cases.push((vec!["--jwks".into(), file.clone()], file));
    }
    for (args, name) in &cases {
        for check in [&["--listen", "127.0.0.1:0"][..], &["--check-config"]] {
            let args: Vec<&str> = args.iter().map(String::as_str).chain(check.iter().copied()).collect();
            let (code, out, err) = serve(&shop, &args, &[]);
            assert_eq!(code, 2, "{args:?}: {out}{err}");
            let last = err.lines().last().unwrap_or_default();
            assert!(last.contains(name.as_str()), "{args:?}: {err}");
            assert!(!err.contains("hunter2") && !err.contains("aHVudGVyMg"), "{args:?}: {err}");
        }
    }
    let args = tls(&good, &key, "");
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--jwks", &key_set, "--check-config"]).collect();
    let (code, out, err) = serve(&shop, &args, &[]);
    assert!(code == 0 && out.ends_with("the settings are good\n"), "{out}{err}");
    // The place that it should listen at is taken.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, err) = serve(&shop, &["--listen", &address], &[]);
    assert!(code == 2 && err.lines().last().unwrap().contains(&address), "{err}");
}

#[test]
fn the_better_place_wins_and_no_secret_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (shop, file) = (dir.path().join("shop"), dir.path().join("serve.toml"));
    std::fs::write(
        &file,
        "listen = \"127.0.0.1:1\"\nrate_limit = 1\nfeeds_max = 1\nrequests_max = 1\ncors_origins = [\"https://a.example\", \
         \"https://b.example\"]\npayment_webhook_secret = [\"whsec_0123456789abcdef\", \"whsec_fedcba9876543210\"]\n",
    )
    .unwrap();
    let config = file.to_str().unwrap();
    let env = [("RATE_LIMIT", "2"), ("FEEDS_MAX", "2"), ("LEDGER_CONFIG", config), ("CONNECTIONS_MAX", "")];
    let (code, out, err) = serve(&shop, &["--rate-limit", "3", "--check-config"], &env);
    assert_eq!(code, 0, "{err}");
    let values = [
        "rate_limit",
        "feeds_max",
        "requests_max",
        "connections_max",
        "listen",
        "cors_origins",
        "payment_webhook_secret",
    ];
    let values = values.map(|name| shown(&out, name));
    let expected = ["3", "2", "1", "4096", "127.0.0.1:1", "https://a.example,https://b.example", "2 given"];
    assert_eq!(values, expected);
    assert!(!out.contains("whsec") && !err.contains("whsec") && !shop.exists(), "{out}{err}");
    // A database that is not there is no good setting, and its password is not shown.
    let env = [("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/x")];
    let (code, said, err) = serve(&shop, &["--check-config"], &env);
    assert!(code == 2 && err.contains("database") && !format!("{said}{err}").contains("hunter2"), "{code} {said}{err}");
    // Every setting that there is has its line.
    let help = ledger().args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags: Vec<&str> = help.lines().filter_map(|l| l.trim().strip_prefix("--")?.split([' ', '=']).next()).collect();
    assert!(flags.len() > 20, "{help}");
    for flag in flags {
        let name = flag.replace('-', "_");
        // What is about the call, and what only can be refused.
        let about_the_call = ["check_config", "config", "help", "dir", "database", "json"];
        if !about_the_call.contains(&name.as_str()) {
            shown(&out, &name);
        }
    }
}

#[test]
fn development_tokens_are_made_for_development_alone() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), Issuer::start());
    let jwks = dir.path().join("jwks.json");
    std::fs::write(&jwks, set(&[&issuer.key("a", "EdDSA")])).unwrap();
    let start = production(dir.path(), jwks.to_str().unwrap());
    let shop = dir.path().join("shop");
    let token = |dir: &Path| {
        let mut command = ledger();
        command.arg("--dir").arg(dir).args(["token", "--sub", "eve@example.org", "--role", "auditor"]);
        let out = command.output().unwrap();
        (out.status.code().unwrap(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, text) = token(&shop);
    assert!(code == 2 && text.contains("holds no development ledger"), "{text}");
    // A flag too many does not make it one.
    let (code, text) = Start::dev(&shop).refused();
    assert!(code == 2 && text.contains("not for development"), "{text}");
    assert_eq!(token(&shop).0, 2);
    let development = Server::dev(&dir.path().join("dev"));
    let theirs = development.token("eve@example.org", "auditor");
    assert_eq!(development.client(Some(&theirs)).get("/audit/events").status, 200);
    // Not believed for production, even with the secret in the directory.
    std::fs::copy(dir.path().join("dev/keys/dev-token.key"), shop.join("keys/dev-token.key")).unwrap();
    let server = start.run();
    assert_eq!(server.client(Some(&theirs)).get("/audit/events").said(), (401, "NOT_AUTHORIZED"));
    for (sub, role) in [("system", "operator"), ("service:finance", "auditor"), ("ann", "service"), ("", "buyer")] {
        let mut command = ledger();
        command.arg("--dir").arg(&development.dir).args(["token", "--sub", sub, "--role", role]);
        assert_eq!(command.output().unwrap().status.code(), Some(2), "{sub} {role}");
    }
}
