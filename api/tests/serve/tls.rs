//! TLS, and services that come with certificates.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::pki::{Authority, Certificate, curl, words};
use crate::support::{Server, Start, now};

struct Secure {
    server: Server,
    authority: Authority,
    /// For curl.
    ca: Vec<String>,
}

fn secure(dir: &Path) -> Secure {
    let authority = Authority::new(&dir.join("ca"));
    let own = authority.issue("localhost", "IP:127.0.0.1");
    let config = dir.join("serve.toml");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (ca, file, key) = (text(&authority.file()), text(&own.file), text(&own.key));
    std::fs::write(
        &config,
        format!(
            "tls_certificate = {file:?}\ntls_key = {key:?}\ntls_client_ca = {ca:?}\n[services]\n\
             \"spiffe://shop.example/finance\" = \"finance\"\n\"metrics.internal\" = \"metrics\"\n\"old name\" = \"old\"\n",
        ),
    )
    .unwrap();
    let server = Start::dev(&dir.join("shop")).args(&["--config", config.to_str().unwrap()]).run();
    Secure { server, authority, ca: words(&[], &["--cacert", &ca]) }
}

impl Secure {
    fn get(&self, path: &str, more: &[String]) -> crate::pki::Got {
        curl(&words(&[&self.ca, more], &[&format!("{}{path}", self.server.url)]))
    }

    fn by(&self, certificate: &Certificate, path: &str) -> u16 {
        self.get(path, &certificate.args()).status
    }
}

#[test]
fn services_are_known_by_their_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let secure = secure(dir.path());
    let authority = &secure.authority;
    let finance = authority.issue("whatever", "URI:spiffe://shop.example/finance");
    for versions in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
        let versions = words(&[], &versions);
        let health = secure.get("/health", &versions);
        assert_eq!((health.status, &health.json()["mTLS"]), (200, &json!(true)), "{versions:?}");
        assert!(health.header("strict-transport-security").is_some_and(|v| v.starts_with("max-age=31536000")));
        // Services may do what services may, and no more.
        let call = |path: &str| secure.get(path, &words(&[&versions, &finance.args()], &[])).status;
        assert_eq!((call("/metrics"), call("/audit/events"), call("/admin/signers")), (200, 403, 403), "{versions:?}");
        assert_eq!(secure.get("/metrics", &versions).status, 401);
    }
    for (version, flag) in [("2", "--http2"), ("1.1", "--http1.1")] {
        let got = secure.get("/metrics", &words(&[&finance.args()], &[flag]));
        assert_eq!((got.status, got.version.as_str()), (200, version));
    }
    // As many headers as over HTTP/1.1, and no more.
    for (count, status) in [(80, 200), (120, 400)] {
        let many = (0..count).flat_map(|n| ["--header".to_owned(), format!("x-{n}: a")]).collect::<Vec<_>>();
        let got = secure.get("/metrics", &words(&[&finance.args(), &many], &["--http2"]));
        assert_eq!((got.status, got.version.as_str()), (status, "2"), "{count}");
    }
    // By DNS name, and by common name where there is no other.
    assert_eq!(secure.by(&authority.issue("whatever", "DNS:metrics.internal"), "/metrics"), 200);
    assert_eq!(secure.by(&authority.issue("old name", ""), "/metrics"), 200);
    // Good certificates of nobody in particular.
    let nobody = [
        ("finance", ""),
        ("old name", "DNS:other.internal"),
        ("x", "URI:spiffe://shop.example/finance/x"),
        ("x", "DNS:METRICS.internal2"),
    ];
    for (common_name, alternative) in nobody {
        let got = secure.get("/metrics", &authority.issue(common_name, alternative).args());
        assert_eq!(
            (got.status, &got.json()["error"]["code"]),
            (401, &json!("NOT_AUTHORIZED")),
            "{common_name} {alternative}"
        );
        // What is open stays so.
        assert_eq!(got.header("www-authenticate"), Some("Bearer"));
    }
    // No handshake: another authority, no authority, a certificate that has ended, one for servers alone.
    let other = Authority::new(&dir.path().join("other"));
    let own = Certificate { file: other.file(), key: other.file().with_extension("key") };
    let uri = "URI:spiffe://shop.example/finance";
    for (name, certificate) in [
        ("another authority", other.issue("finance", uri)),
        ("its own authority", own),
        ("ended", authority.issue_with("finance", uri, "clientAuth", -60)),
        ("for servers", authority.issue_with("finance", uri, "serverAuth", 86_400)),
    ] {
        for flag in ["--tlsv1.3", "--tls-max"] {
            let mut args = words(&[&certificate.args()], &[flag]);
            if flag == "--tls-max" {
                args.push("1.2".into());
            }
            let got = secure.get("/health", &args);
            assert!(got.status == 0 && got.body.is_empty(), "{name}: {got:?}");
        }
    }
    // A token says who it is, with or without a certificate; a bad one is not made up for.
    let bearer = |token: &str| words(&[], &["--header", &format!("Authorization: Bearer {token}")]);
    let auditor = bearer(&secure.server.token("eve@example.org", "auditor"));
    let both = words(&[&auditor, &finance.args()], &[]);
    assert_eq!((secure.get("/audit/events", &auditor).status, secure.get("/audit/events", &both).status), (200, 200));
    assert_eq!(secure.get("/metrics", &both).status, 403);
    let bad = words(&[&bearer("x.y.z"), &finance.args()], &[]);
    assert_eq!(secure.get("/metrics", &bad).status, 401);
    // Without TLS nobody is served here.
    let plain = curl(&[format!("{}/health", secure.server.url.replace("https", "http"))]);
    assert_ne!(plain.status, 200, "{plain:?}");
    let untrusted = curl(&[format!("{}/health", secure.server.url)]);
    assert!(untrusted.status == 0 && untrusted.stderr.contains("certificate"), "{untrusted:?}");
}

/// What a service writes has its name, and a connection is good no longer than the certificate that it was opened with.
#[test]
fn a_connection_ends_with_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let secure = secure(dir.path());
    let address = secure.server.url.strip_prefix("https://").unwrap();
    let ends = now() + 6;
    let short = secure.authority.issue_with("x", "URI:spiffe://shop.example/finance", "clientAuth", 6);
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", address, "-cert"])
        .args([&short.file, Path::new("-key"), &short.key])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let mut ask = |path: &str, last: &str| {
        write!(stdin, "GET {path} HTTP/1.1\r\nHost: x\r\n{last}\r\n").unwrap();
        stdin.flush().unwrap();
    };
    ask("/order/00000000000000000000000000000000", "");
    while now() <= ends + 1 {
        std::thread::sleep(Duration::from_millis(100));
    }
    ask("/order/00000000000000000000000000000000", "Connection: close\r\n");
    let mut text = String::new();
    client.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    client.wait().unwrap();
    let statuses: Vec<&str> = text.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["404", "401"], "{text}");
    assert!(text.contains("the client certificate has expired"), "{text}");
}
