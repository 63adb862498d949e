//! Tokens of an issuer that shares no code with the server: which are believed, for how long, and which never.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::issuer::{AUD, Issuer, KeyPlace, claims, production, set};
use crate::support::{Answer, Server, now};

/// Where an auditor is let in, and nobody else.
const DOOR: &str = "/audit/events?limit=1";

fn knock(server: &Server, token: &str) -> Answer {
    server.client(Some(token)).get(DOOR)
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

fn without(mut claims: Value, name: &str) -> Value {
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// Asks until the answer is `status`; says how long that took.
fn until(server: &Server, token: &str, status: u16) -> Duration {
    let start = Instant::now();
    while knock(server, token).status != status {
        assert!(start.elapsed() < Duration::from_secs(20), "still not {status}: {}", server.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    start.elapsed()
}

fn with_keys(dir: &Path, keys: &[&Value]) -> Server {
    let jwks = dir.join("jwks.json");
    std::fs::write(&jwks, set(keys)).unwrap();
    production(dir, jwks.to_str().unwrap()).run()
}

#[test]
fn tokens_are_believed_for_what_was_signed_and_for_nothing_else() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), Issuer::start());
    let keys = [issuer.key("ed", "EdDSA"), issuer.key("es", "ES256"), issuer.key("rs", "RS256")];
    let weak = issuer.key("weak", "RS256-1024");
    let stranger = issuer.key("stranger", "EdDSA");
    let server = with_keys(dir.path(), &[&keys[0], &keys[1], &keys[2], &weak]);
    let eve = || claims("eve@example.org", &["auditor"]);
    let ed = |claims: &Value| issuer.token("ed", "EdDSA", claims);

    let good = ed(&eve());
    for (name, token) in [
        ("EdDSA", good.clone()),
        ("ES256", issuer.token("es", "ES256", &eve())),
        ("RS256", issuer.token("rs", "RS256", &eve())),
        ("several audiences", ed(&with(eve(), "aud", json!(["other", AUD])))),
        ("one role", ed(&with(without(eve(), "roles"), "role", json!("auditor")))),
        ("more roles than are known", ed(&with(eve(), "roles", json!(["auditor", "root"])))),
        ("expired within the leeway", ed(&with(eve(), "exp", json!(now() - 20)))),
        ("not before soon", ed(&with(eve(), "nbf", json!(now() + 20)))),
        ("a time with a fraction", ed(&with(eve(), "exp", json!(now() as f64 + 60.5)))),
    ] {
        assert_eq!(knock(&server, &token).said(), (200, "ok"), "{name}");
    }

    let header = |alg: &str, kid: &str| json!({ "alg": alg, "typ": "JWT", "kid": kid });
    let by = |key: &str, alg: &str| json!({ "key": key, "sign": alg });
    let extra = |name: &str, value: Value| {
        let mut header = header("EdDSA", "ed");
        header[name] = value;
        issuer.craft(&header, &eve(), by("ed", "EdDSA"))
    };
    let confused = |alg: &str, key: &str, form: &str| {
        issuer.craft(&header(alg, key), &eve(), json!({ "key": key, "secret": form }))
    };
    let unsigned = |alg: &str| issuer.craft(&header(alg, "ed"), &eve(), json!({}));
    let forged = |header: Value| issuer.craft(&header, &eve(), by("stranger", "EdDSA"));
    let trap = KeyPlace::start(&set(&[&stranger]));
    let mut own_key = stranger.clone();
    own_key.as_object_mut().unwrap().remove("kid");
    let parts: Vec<&str> = good.split('.').collect();
    let other = ed(&with(eve(), "sub", json!("op@example.org")));
    let other: Vec<&str> = other.split('.').collect();
    let as_text = |text: &str| issuer.craft(&header("EdDSA", "ed"), &json!(text), by("ed", "EdDSA"));
    let twice = format!(
        r#"{{"iss":"https://issuer.example","aud":"ledger","exp":{},"sub":"ann","sub":"eve","roles":["auditor"]}}"#,
        now() + 60
    );

    let mut refused = vec![
        ("expired", ed(&with(eve(), "exp", json!(now() - 40)))),
        ("not before later", ed(&with(eve(), "nbf", json!(now() + 60)))),
        ("no expiry", ed(&without(eve(), "exp"))),
        ("no issuer", ed(&without(eve(), "iss"))),
        ("no audience", ed(&without(eve(), "aud"))),
        ("no subject", ed(&without(eve(), "sub"))),
        ("no roles", ed(&without(eve(), "roles"))),
        ("another issuer", ed(&with(eve(), "iss", json!("https://issuer.example.evil")))),
        (
            "several issuers",
            issuer.craft(&header("EdDSA", "ed"), &with(eve(), "iss", json!([crate::issuer::ISS])), by("ed", "EdDSA")),
        ),
        ("another audience", ed(&with(eve(), "aud", json!("ledger2")))),
        ("other audiences", ed(&with(eve(), "aud", json!(["a", "b"])))),
        ("no audience at all", ed(&with(eve(), "aud", json!([])))),
        ("an audience that is none", ed(&with(eve(), "aud", json!({ "ledger": true })))),
        ("expiry as text", as_text(&with(eve(), "exp", json!("9999999999")).to_string())),
        ("expiry as a name", as_text(&with(eve(), "exp", json!("eve@example.org")).to_string())),
        ("expiry before 1970", as_text(&with(eve(), "exp", json!(-5)).to_string())),
        ("expiry beyond numbers", as_text(&with(eve(), "exp", json!(1e300)).to_string())),
        ("no such role", ed(&with(eve(), "roles", json!(["root"])))),
        ("role in capitals", ed(&with(eve(), "roles", json!(["AUDITOR"])))),
        ("roles as one text", ed(&with(eve(), "roles", json!("auditor")))),
        ("nobody in particular", ed(&with(eve(), "sub", json!("")))),
        ("a subject without end", ed(&with(eve(), "sub", json!("e".repeat(256))))),
        ("a subject that is a number", as_text(&with(eve(), "sub", json!(7)).to_string())),
        ("the system itself", ed(&claims("system", &["operator", "auditor"]))),
        ("a service with a person's role", ed(&claims("service:audit", &["auditor"]))),
        ("a service with more roles", ed(&claims("service:audit", &["service", "auditor"]))),
        ("a person as a service", ed(&claims("eve@example.org", &["service", "auditor"]))),
        ("a service without a name", ed(&claims("service:", &["auditor"]))),
        ("a subject twice", as_text(&twice)),
        ("no claims", as_text("[]")),
        ("no JSON", as_text("{")),
        ("alg none", unsigned("none")),
        ("alg None", unsigned("None")),
        ("alg NONE", unsigned("NONE")),
        ("alg none with a signature", issuer.craft(&header("none", "ed"), &eve(), by("ed", "EdDSA"))),
        ("no signature", unsigned("EdDSA")),
        ("the public RSA key as a secret", confused("HS256", "rs", "pem")),
        ("the same in DER", confused("HS256", "rs", "der")),
        ("the same in PKCS#1", confused("HS256", "rs", "pkcs1")),
        ("the public Ed25519 key as a secret", confused("HS256", "ed", "raw")),
        ("the same in PEM", confused("HS256", "ed", "pem")),
        ("the same, said to be EdDSA", confused("EdDSA", "ed", "raw")),
        ("RS256 by an Ed25519 key", issuer.craft(&header("RS256", "ed"), &eve(), by("ed", "EdDSA"))),
        ("EdDSA by an RSA key", issuer.craft(&header("EdDSA", "rs"), &eve(), by("rs", "RS256"))),
        ("PS256 by an RS256 key", issuer.craft(&header("PS256", "rs"), &eve(), by("rs", "PS256"))),
        ("RS512 by an RS256 key", issuer.craft(&header("RS512", "rs"), &eve(), by("rs", "RS512"))),
        ("a weak RSA key of the set", issuer.token("weak", "RS256", &eve())),
        ("another key of the same name", forged(header("EdDSA", "ed"))),
        ("a key that is not known", forged(header("EdDSA", "stranger"))),
        ("a key that it brings along", forged(json!({ "alg": "EdDSA", "jwk": own_key, "kid": "ed" }))),
        ("the same without a name", forged(json!({ "alg": "EdDSA", "jwk": own_key }))),
        ("a place to get keys", forged(json!({ "alg": "EdDSA", "kid": "stranger", "jku": trap.url, "x5u": trap.url }))),
        ("a path as a name", forged(header("EdDSA", "../../keys/dev-token.key"))),
        ("no name among several keys", issuer.craft(&json!({ "alg": "EdDSA" }), &eve(), by("ed", "EdDSA"))),
        ("no algorithm", issuer.craft(&json!({ "kid": "ed" }), &eve(), by("ed", "EdDSA"))),
        ("something critical", extra("crit", json!(["exp"]))),
        (
            "an unencoded payload",
            issuer.craft(
                &json!({ "alg": "EdDSA", "kid": "ed", "b64": false, "crit": ["b64"] }),
                &eve(),
                by("ed", "EdDSA"),
            ),
        ),
        ("nothing critical, said so", extra("crit", json!([]))),
        ("a line in the log", forged(header("EdDSA\n{\"level\":\"ERROR\"}", "x\ny"))),
        ("another payload", format!("{}.{}.{}", parts[0], other[1], parts[2])),
        ("another signature", format!("{}.{}.{}", parts[0], parts[1], other[2])),
        ("an empty signature", format!("{}.{}.", parts[0], parts[1])),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("four parts", format!("{good}.{}", parts[2])),
        ("padding", format!("{good}=")),
        ("nothing", "x".into()),
        ("far too long", ed(&with(eve(), "note", json!("n".repeat(9000))))),
    ];
    let dev = {
        let shop = dir.path().join("dev");
        let dev = Server::dev(&shop);
        dev.token("eve@example.org", "auditor")
    };
    refused.push(("a development token", dev));
    for (name, token) in &refused {
        let answer = knock(&server, token);
        assert_eq!((answer.said(), answer.header("www-authenticate")), ((401, "NOT_AUTHORIZED"), "Bearer"), "{name}");
        // Which check failed is told for time alone.
        let message = answer.body["error"]["message"].as_str().unwrap();
        let told = match *name {
            "expired" => "the token has expired; get a new one",
            "far too long" => "the token is too long",
            _ => "the token is not valid here",
        };
        assert_eq!(message, told, "{name}");
    }
    assert_eq!(trap.asked(), 0, "nobody fetches keys from where a token says");

    let send = |values: &[&str]| {
        let mut request = server.client(None).request("GET", DOOR);
        for value in values {
            request = request.header("Authorization", *value);
        }
        Answer::of(request.send().unwrap()).status
    };
    let bearer = format!("Bearer {good}");
    assert_eq!(send(&[&format!("bearer {good}")]), 200);
    assert_eq!(send(&[&format!("BEARER  {good}")]), 200);
    let comma = format!("{bearer}, {bearer}");
    let (bearer, basic) = (bearer.as_str(), "Basic ZXZlOng=");
    for values in [vec![bearer, bearer], vec![basic, bearer], vec![bearer, basic], vec![comma.as_str()]] {
        assert_eq!(send(&values), 401, "{values:?}");
    }
    for value in ["", "Bearer", "Bearer ", "Basic ZXZlOng=", &good, &format!("Token {good}")] {
        assert_eq!(send(&[value]), 401, "{value}");
    }

    let log = server.log();
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok_and(|l| l["level"] != "ERROR"), "{line}");
    }
    for secret in ["eyJ", "eve@example.org", "op@example.org", &parts[2][..20]] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

/// A service is one by its subject and its only role.
#[test]
fn a_key_alone_in_its_set_needs_no_name_and_services_have_tokens() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), Issuer::start());
    let mut key = issuer.key("one", "EdDSA");
    key.as_object_mut().unwrap().remove("kid");
    // Keys of kinds that are not known, and for other uses, are for somebody else.
    let later = json!({ "kty": "AKP", "alg": "ML-DSA-65", "kid": "pq", "pub": "AAAA" });
    let mut encryption = issuer.key("enc", "RS256");
    encryption["use"] = "enc".into();
    let server = with_keys(dir.path(), &[&later, &key, &encryption]);
    let unnamed =
        |claims: &Value| issuer.craft(&json!({ "alg": "EdDSA" }), claims, json!({ "key": "one", "sign": "EdDSA" }));
    assert_eq!(knock(&server, &unnamed(&claims("eve@example.org", &["auditor"]))).status, 200);
    let service = server.client(Some(&unnamed(&claims("service:finance", &["service"]))));
    assert_eq!((service.get("/metrics").status, service.get(DOOR).status), (200, 403));
    assert_eq!(knock(&server, &issuer.token("one", "EdDSA", &claims("eve@example.org", &["auditor"]))).status, 401);
    let of_encryption = issuer.token("enc", "RS256", &claims("eve@example.org", &["auditor"]));
    assert_eq!(knock(&server, &of_encryption).status, 401);
}

#[test]
fn keys_at_a_url_come_and_go() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), Issuer::start());
    let (a, b, c) = (issuer.key("a", "EdDSA"), issuer.key("b", "ES256"), issuer.key("c", "EdDSA"));
    let place = KeyPlace::start(&set(&[&a]));
    let server = production(dir.path(), &place.url).args(&["--jwks-refresh-seconds", "1"]).run();
    let eve = claims("eve@example.org", &["auditor"]);
    let [by_a, by_b, by_c] =
        [("a", "EdDSA"), ("b", "ES256"), ("c", "EdDSA")].map(|(k, alg)| issuer.token(k, alg, &eve));
    assert_eq!(knock(&server, &by_a).status, 200);
    // A new key: known to the first who comes with it, once the last reading is old enough.
    place.publish("200 OK", &set(&[&a, &b]), Duration::ZERO);
    until(&server, &by_b, 200);
    assert_eq!(knock(&server, &by_a).status, 200);
    // A key that is withdrawn ends, also for tokens that were believed a moment ago.
    place.publish("200 OK", &set(&[&b]), Duration::ZERO);
    assert!(until(&server, &by_a, 401) < Duration::from_secs(10));
    assert_eq!(knock(&server, &by_b).status, 200);
    // Nothing that the place may say makes the server forget what was good, or believe what is not.
    let mut secret = c.clone();
    secret["d"] = "AAAA".into();
    let elsewhere = KeyPlace::start(&set(&[&c]));
    let redirect: &'static str = format!("302 Found\r\nlocation: {}", elsewhere.url).leak();
    for (status, body) in [
        ("500 Internal Server Error", set(&[&c])),
        (redirect, String::new()),
        ("200 OK", "<html>".into()),
        ("200 OK", json!({ "keys": [] }).to_string()),
        ("200 OK", set(&[&c, &json!({ "kty": "oct", "kid": "s", "k": "c2VjcmV0" })])),
        ("200 OK", set(&[&secret])),
        ("200 OK", format!("{}{}", set(&[&c]), " ".repeat(1 << 20))),
    ] {
        place.publish(status, &body, Duration::ZERO);
        let asked = place.asked();
        while place.asked() < asked + 2 {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!((knock(&server, &by_b).status, knock(&server, &by_c).status), (200, 401), "{status} {body:.40}");
    }
    assert_eq!(elsewhere.asked(), 0);
    assert!(server.log().contains("the one before stays"));
    // Unknown names do not make the server ask without end.
    let (asked, start) = (place.asked(), Instant::now());
    let unknown = issuer.craft(&json!({ "alg": "EdDSA", "kid": "zz" }), &eve, json!({ "key": "a", "sign": "EdDSA" }));
    for _ in 0..50 {
        assert_eq!(knock(&server, &unknown).status, 401);
    }
    assert!(place.asked() - asked <= 2 + start.elapsed().as_secs() as usize, "{}", place.asked() - asked);
    // A slow answer: everybody who comes with the new key waits for the one reading that brings it.
    place.publish("200 OK", &set(&[&b, &c]), Duration::from_secs(1));
    let asked = place.asked();
    while place.asked() == asked {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..8).map(|_| scope.spawn(|| knock(&server, &by_c).status)).collect();
        assert!(tasks.into_iter().all(|task| task.join().unwrap() == 200));
    });
}

#[test]
fn keys_in_a_file_come_and_go_and_tokens_end_with_their_time() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), Issuer::start());
    let (a, b) = (issuer.key("a", "EdDSA"), issuer.key("b", "RS256"));
    let jwks = dir.path().join("jwks.json");
    std::fs::write(&jwks, set(&[&a])).unwrap();
    let server = production(dir.path(), jwks.to_str().unwrap()).args(&["--jwt-leeway-seconds", "0"]).run();
    let eve = claims("eve@example.org", &["auditor"]);
    // Remembered, and forgotten in time.
    let ends = now() + 4;
    let short = issuer.token("a", "EdDSA", &with(eve.clone(), "exp", json!(ends)));
    assert_eq!((knock(&server, &short).status, knock(&server, &short).status), (200, 200));
    until(&server, &short, 401);
    assert!(now() > ends);
    assert_eq!(knock(&server, &short).body["error"]["message"], "the token has expired; get a new one");

    let (by_a, by_b) = (issuer.token("a", "EdDSA", &eve), issuer.token("b", "RS256", &eve));
    assert_eq!((knock(&server, &by_a).status, knock(&server, &by_b).status), (200, 401));
    std::fs::write(&jwks, "{").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(knock(&server, &by_a).status, 200, "the last good set stays");
    std::fs::write(&jwks, set(&[&b])).unwrap();
    until(&server, &by_b, 200);
    assert_eq!(knock(&server, &by_a).status, 401);
    std::fs::remove_file(&jwks).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(knock(&server, &by_b).status, 200);
}
