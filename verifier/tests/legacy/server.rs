//! A PostgreSQL server of a test's own, gone with it.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A running server, with the superuser `postgres` and no passwords. Listens on the loopback only.
pub(crate) struct Server {
    directory: tempfile::TempDir,
    port: u16,
}

/// The newest server that Debian's packages installed, or the one named by `LEDGER_PG_BIN`.
fn programs() -> PathBuf {
    const MISSING: &str = "these tests need a PostgreSQL server: apt-get install postgresql-15, or set LEDGER_PG_BIN";
    if let Some(path) = std::env::var_os("LEDGER_PG_BIN") {
        return path.into();
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect(MISSING);
    let programs = versions.map(|v| v.unwrap().path().join("bin")).filter(|p| p.join("initdb").exists());
    programs.max().expect(MISSING)
}

/// Runs one of the server's programs, as `postgres` where this is root, as which it refuses to run.
fn run(program: &str, arguments: &[&str], directory: &Path) {
    let path = programs().join(program);
    let mut command = if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    // The server must not keep a pipe of ours open: its output goes to a file.
    let log = std::fs::OpenOptions::new().append(true).create(true).open(directory.join("log")).unwrap();
    let status = command.args(arguments).current_dir(directory).stdout(log.try_clone().unwrap()).stderr(log).status();
    let text = || std::fs::read_to_string(directory.join("log")).unwrap_or_default();
    assert!(status.unwrap().success(), "{program}: {}", text());
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::start_with(|_| {}, "")
    }

    /// One that speaks TLS with a certificate for 127.0.0.1 alone, and takes the role `secure` in no other way.
    pub(crate) fn start_tls() -> Server {
        let settings = " -c ssl=on -c ssl_cert_file=server.crt -c ssl_key_file=server.key";
        Server::start_with(make_certificates, settings)
    }

    /// The certificate that the server's own leads to, and one that it does not.
    pub(crate) fn roots(&self) -> [String; 2] {
        ["ca.pem", "other.pem"].map(|name| self.directory.path().join(name).display().to_string())
    }

    fn start_with(prepare: fn(&Path), settings: &str) -> Server {
        let directory = tempfile::Builder::new().prefix("ledger-pg-").tempdir().unwrap();
        let path = directory.path();
        // For the user that the server runs as.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        run("initdb", &["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"], path);
        prepare(path);
        let options =
            format!("-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -p {port}{settings}");
        let server = Server { directory, port };
        run("pg_ctl", &["-D", "data", "-w", "-l", "server.log", "-o", &options, "start"], server.directory.path());
        server
    }

    /// The URL for a role; the server asks for no password.
    pub(crate) fn url(&self, user: &str) -> String {
        format!("postgresql://{user}@127.0.0.1:{}/postgres", self.port)
    }
}

/// Files of the user that the server runs as.
fn make_certificates(path: &Path) {
    let write = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
    write(
        "openssl.cnf",
        "[req]\ndistinguished_name = dn\n[dn]\n[ca]\nbasicConstraints = critical, CA:TRUE\n\
         [server]\nbasicConstraints = CA:FALSE\nsubjectAltName = IP:127.0.0.1\n",
    );
    let openssl = |key: &str, certificate: &str, kind: &str, more: &[&str]| {
        let arguments = [
            &["openssl", "req", "-x509", "-config", "openssl.cnf", "-newkey", "ec", "-pkeyopt"][..],
            &["ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=test"],
            &["-keyout", key, "-out", certificate, "-extensions", kind],
            more,
        ];
        run("/usr/bin/env", &arguments.concat(), path);
    };
    openssl("ca.key", "ca.pem", "ca", &[]);
    openssl("other.key", "other.pem", "ca", &[]);
    openssl("data/server.key", "data/server.crt", "server", &["-CA", "ca.pem", "-CAkey", "ca.key"]);
    write("data/pg_hba.conf", "hostnossl all secure 127.0.0.1/32 reject\nhost all all 127.0.0.1/32 trust\n");
}

impl Drop for Server {
    fn drop(&mut self) {
        run("pg_ctl", &["-D", "data", "-m", "immediate", "stop"], self.directory.path());
    }
}
