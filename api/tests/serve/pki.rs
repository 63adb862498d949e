//! Certificates by OpenSSL, and a client of TLS that shares no code with the server (curl).

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A certificate authority in a directory.
pub(crate) struct Authority {
    dir: PathBuf,
}

/// A certificate and its key.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) file: PathBuf,
    pub(crate) key: PathBuf,
}

fn openssl(dir: &Path, args: &[&str]) {
    let out = Command::new("openssl").current_dir(dir).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

impl Authority {
    pub(crate) fn new(dir: &Path) -> Authority {
        std::fs::create_dir_all(dir).unwrap();
        let mut args = vec!["req", "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key"];
        args.extend(["-out", "ca.pem"].iter().chain(&NEW_KEY));
        openssl(dir, &args);
        std::fs::write(dir.join("index"), "").unwrap();
        std::fs::write(
            dir.join("ca.cnf"),
            "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nnew_certs_dir=.\ncertificate=ca.pem\nprivate_key=ca.key\n\
             rand_serial=yes\ndefault_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n",
        )
        .unwrap();
        Authority { dir: dir.to_owned() }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// For clients and servers until tomorrow.
    pub(crate) fn issue(&self, common_name: &str, alternative: &str) -> Certificate {
        self.issue_with(common_name, alternative, "clientAuth,serverAuth", 86_400)
    }

    /// `alternative` as OpenSSL writes it (`DNS:a,URI:b`), or empty; it ends in `seconds`.
    pub(crate) fn issue_with(&self, common_name: &str, alternative: &str, usage: &str, seconds: i64) -> Certificate {
        let name = format!("c{}", std::fs::read_dir(&self.dir).unwrap().count());
        let (file, key, request) = (format!("{name}.pem"), format!("{name}.key"), format!("{name}.csr"));
        let subject = format!("/CN={common_name}");
        let mut args = vec!["req", "-subj", &subject, "-keyout", &key, "-out", &request];
        args.extend(NEW_KEY);
        openssl(&self.dir, &args);
        let extensions = format!("{name}.ext");
        let san = if alternative.is_empty() { String::new() } else { format!("subjectAltName={alternative}\n") };
        std::fs::write(self.dir.join(&extensions), format!("extendedKeyUsage={usage}\n{san}")).unwrap();
        let time = |at: i64| {
            let out = Command::new("date").args(["-u", "-d", &format!("@{at}"), "+%Y%m%d%H%M%SZ"]).output().unwrap();
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        };
        let now = crate::support::now();
        let (start, end) = (time(now - 86_400), time(now + seconds));
        openssl(
            &self.dir,
            &[
                "ca",
                "-batch",
                "-notext",
                "-config",
                "ca.cnf",
                "-in",
                &request,
                "-out",
                &file,
                "-extfile",
                &extensions,
                "-startdate",
                &start,
                "-enddate",
                &end,
            ],
        );
        Certificate { file: self.dir.join(file), key: self.dir.join(key) }
    }
}

impl Certificate {
    /// For curl.
    pub(crate) fn args(&self) -> Vec<String> {
        ["--cert", self.file.to_str().unwrap(), "--key", self.key.to_str().unwrap()].map(str::to_owned).to_vec()
    }
}

/// What curl got.
#[derive(Debug)]
pub(crate) struct Got {
    /// 0 without an answer.
    pub(crate) status: u16,
    /// Lines of the answer's head, names in lower case.
    pub(crate) head: Vec<String>,
    pub(crate) body: String,
    /// `1.1` or `2`.
    pub(crate) version: String,
    pub(crate) stderr: String,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// One request. A stream is left after two seconds.
pub(crate) fn curl(args: &[String]) -> Got {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--include", "--max-time", "20", "--path-as-is"]);
    command.args(["--write-out", "\n%{http_code} %{http_version}"]).args(args);
    let Output { stdout, stderr, .. } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned();
    let (text, last) = text.rsplit_once('\n').unwrap();
    let (status, version) = last.split_once(' ').unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let lower = |line: &str| match line.split_once(':') {
        Some((name, value)) => format!("{}:{value}", name.to_ascii_lowercase()),
        None => line.to_owned(),
    };
    Got {
        status: status.parse().unwrap(),
        head: head.lines().map(lower).collect(),
        body: body.to_owned(),
        version: version.to_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// Arguments from words and lists of words.
pub(crate) fn words(parts: &[&[String]], more: &[&str]) -> Vec<String> {
    parts.iter().flat_map(|p| p.iter().cloned()).chain(more.iter().map(|w| (*w).to_owned())).collect()
}
