//! What `sslmode` and `sslrootcert` of a database URL do.

use audit_verify::legacy::{Table, Window, verify_legacy};
use postgres::{Client, NoTls};

use crate::chain::{assert_verified, chain, signers};
use crate::table::{SERIAL, load};
use test_servers::Server;

fn check(url: &str, expected: Result<(), &str>) {
    let opened = Table::open(url, "audit_events", Window::default());
    match (opened, expected) {
        (Ok(mut table), Ok(())) => assert_verified(&verify_legacy("test", &mut table, Some(&signers()), &[]), 10),
        (Err(e), Err(expected)) => {
            let e = e.to_string();
            assert!(e.contains(expected) && !e.contains("secret-word"), "{url}: {e}");
        }
        (opened, _) => panic!("{url}: {:?}", opened.map(|_| ())),
    }
}

#[test]
fn modes_against_a_server_with_tls() {
    let server = Server::start_tls();
    let mut client = Client::connect(&server.url("postgres"), NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    client.batch_execute("CREATE ROLE secure LOGIN; GRANT SELECT ON audit_events TO secure").unwrap();
    load(&mut client, &chain(10));
    // The server takes this role by TLS only.
    let by_address = server.url("secure:secret-word");
    let by_name = by_address.replace("127.0.0.1", "localhost");
    let [right, other] = server.roots();
    check(&format!("{by_address}?sslmode=disable"), Err("pg_hba.conf"));
    check(&by_address, Ok(()));
    for mode in ["prefer", "require"] {
        check(&format!("{by_address}?sslmode={mode}"), Ok(()));
    }
    for (mode, named, unnamed) in [
        ("require", Ok(()), Ok(())),
        ("verify-ca", Ok(()), Ok(())),
        ("verify-full", Ok(()), Err("it is for another host")),
    ] {
        check(&format!("{by_address}?sslmode={mode}&sslrootcert={right}"), named);
        check(&format!("{by_name}?sslrootcert={right}&sslmode={mode}"), unnamed);
        check(&format!("{by_address}?sslmode={mode}&sslrootcert={other}"), Err("this may be another server"));
    }
    check(&format!("{by_address}?sslmode=verify-full"), Err("need sslrootcert=FILE"));
    check(&format!("{by_address}?sslmode=verify-ca&sslrootcert=/none"), Err("check the path"));
    check(&format!("{by_address}?sslmode=verify-ca&sslrootcert=/dev/null"), Err("no certificate"));
    check(&format!("{by_address}?sslmode=full"), Err("it can be disable, prefer"));
    check(&format!("{by_address}?sslcert=x"), Err("sslcert"));
}

#[test]
fn modes_against_a_server_without_tls() {
    let server = Server::start();
    let mut client = Client::connect(&server.url("postgres"), NoTls).unwrap();
    client.batch_execute(SERIAL).unwrap();
    load(&mut client, &chain(10));
    let url = server.url("postgres");
    check(&format!("{url}?sslmode=disable"), Ok(()));
    check(&format!("{url}?sslmode=prefer"), Ok(()));
    check(&format!("{url}?sslmode=require"), Err("the server has no TLS"));
}
