//! The plans of all statements that the product runs, as the server itself reports them (`auto_explain`), over tables of a size at
//! which a plan matters: rows are found by an index.
#![allow(missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use audit_verify::{Anchor, Demands, verify_path, verify_path_with, verify_stream};
use ledger_engine::archive::ExportOptions;
use ledger_engine::domain::projection::{DELIVERIES, ORDERS};
use ledger_engine::registry::Purpose;
use ledger_engine::retire::{Authority, Retire};
use ledger_engine::store::postgres::lookup_texts;
use serde_json::Value;
use support::{create_line, create_order, life, list_sku, postgres, send};
use test_servers::Server;

const EXPLAINED: &str = " -c session_preload_libraries=auto_explain -c auto_explain.log_min_duration=0 -c auto_explain.log_format=json \
     -c auto_explain.log_nested_statements=on -c log_line_prefix=";

/// Tables with a row for each chain or less, which need no index.
const SMALL: [&str; 4] = ["ledger", "chain_heads", "cursors", "schema_history"];

/// Rows of chain 7, which no command touches: so many that reading all of them for one would be seen, and chosen by no planner that
/// has another way.
fn fill(server: &Server, name: &str) {
    let hash = "decode(md5(n::text) || md5(n::text), 'hex')";
    for (table, columns, values) in [
        (
            "entries",
            "chain, idx, prev_hash, stream, revision, parent_hash, event_id, event_type, schema_version, recorded_at_us, body_hash, \
             body_sha256, entry_hash, parent_index, body",
            format!(
                "7, n, {hash}, 'order-' || md5((n / 9)::text), n % 9 + 1, {hash}, decode(md5(n::text), 'hex'), 'order.created', 1, n, {hash}, \
                 {hash}, {hash}, nullif(n % 9, 0) + n - n % 9 - 1, {hash}"
            ),
        ),
        (
            "stream_heads",
            "chain, stream, revision, head_hash, head_index, first_index",
            format!("7, 'order-' || md5(n::text), 9, {hash}, n, n"),
        ),
        ("private_documents", "chain, idx, document", format!("7, n, {hash}")),
        ("commits", "chain, first_index, size, registry_size, registry_head", format!("7, n, 1, 1, {hash}")),
        ("commit_signatures", "chain, first_index, kid, alg, signature", format!("7, n, 'k', 1, {hash}")),
        ("checkpoints", "chain, size, root", format!("7, n, {hash}")),
        ("tiles", "chain, level, n, hashes", format!("7, 0, n, {hash}")),
        ("event_id_runs", "chain, run, ids", format!("7, n, {hash}")),
        ("idempotency", "chain, key, idx", format!("7, {hash}, n")),
        (
            "orders",
            "chain, idx, order_id, status, sku_id, buyer, amount, currency, scale, refunded, delivery_mode, deliveries, revision, \
             created_at_us, updated_at_us",
            "7, n, n::text, 'paid', 's', 'b', 1, 'EUR', 2, 0, 'm', 0, 1, 1, 1".to_owned(),
        ),
        (
            "deliveries",
            "chain, idx, delivery_id, order_id, n, status, mode, downloads, revision, updated_at_us",
            "7, n, n::text, n::text, 1, 's', 'm', 0, 1, 1".to_owned(),
        ),
        ("licences", "chain, idx, license_id, order_id, sku_id, buyer", "7, n, n::text, n::text, 's', 'b'".to_owned()),
        ("delivery_proofs", "chain, idx, proof_id, order_id, delivery_id", "7, n, n::text, n::text, 'd'".to_owned()),
        (
            "skus",
            "chain, idx, sku_id, status, title, amount, currency, scale, listed_index, revision",
            "7, n, n::text, 's', 't', 1, 'EUR', 2, n, 1".to_owned(),
        ),
    ] {
        server.psql(
            name,
            &format!("INSERT INTO ledger.{table} ({columns}) SELECT {values} FROM generate_series(0, 20000) n"),
        );
    }
    server.psql(name, "ANALYZE");
}

/// All plans in a server's log: the text, and the relations that are read from end to end in it.
fn plans(log: &str) -> Vec<(String, BTreeSet<String>)> {
    let pieces = log.split("plan:\n").skip(1);
    let parsed = pieces.map(|piece| {
        let plan = serde_json::Deserializer::from_str(piece).into_iter::<Value>().next().unwrap().unwrap();
        let mut read = BTreeSet::new();
        scanned(&plan["Plan"], &mut read);
        (plan["Query Text"].as_str().unwrap().to_owned(), read)
    });
    parsed.collect()
}

fn scanned(node: &Value, into: &mut BTreeSet<String>) {
    let name = node["Relation Name"].as_str().filter(|name| !name.starts_with("pg_"));
    into.extend(name.filter(|_| node["Node Type"] == "Seq Scan").map(str::to_owned));
    // These read a table whole by whatever way.
    into.extend(
        node["Node Type"].as_str().filter(|kind| matches!(*kind, "Hash Join" | "Merge Join")).map(str::to_owned),
    );
    // More of an index than the rows that are wanted: all of a chain, where that is more than a row.
    let small = name.is_some_and(|name| SMALL.contains(&name));
    let by_chain_alone = !small && node["Index Cond"].as_str().is_some_and(|cond| !cond.contains(" AND "));
    if node["Join Filter"].is_string() || by_chain_alone && node["Filter"].is_string() {
        into.insert(format!("{} by a filter, no Join", node["Relation Name"]));
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        scanned(child, into);
    }
}

async fn use_all_of_it(url: &str) {
    let ledger = postgres::create(url, 2).await;
    list_sku(&ledger, "s").await;
    let mut ids = Vec::new();
    for i in 0..8 {
        let order = create_order(&ledger, &format!("k{i}"), "s").await;
        for line in life(&order) {
            send(&ledger, &line).await.unwrap();
        }
        ids.push(order);
    }
    let of = |command: &str, order: &str| {
        format!(r#"{{"command":"{command}","actor":"service:m","order_id":"{order}","reason":"asked"}}"#)
    };
    send(&ledger, &of("delivery.reissue", &ids[0])).await.unwrap();
    send(&ledger, &of("subject.erase", &ids[1])).await.unwrap();
    assert!(send(&ledger, &create_line("k0", "s")).await.unwrap().repeated);
    ledger.checkpoint().await.unwrap();
    // From what is stored, not from what is remembered; with the plans for any parameters, too.
    let again = postgres::open(url).await;
    for line in ids.iter().flat_map(|order| [&life(order)[0], &life(order)[7]].map(Clone::clone)) {
        let _ = send(&again, &line).await;
    }
    for round in 0..8 {
        for table in ledger_engine::domain::projection::TABLES {
            again.store().rows(table, round % 2).unwrap();
            if table.name != "idempotency" {
                again.store().row(table, round % 2, 3).unwrap();
            }
        }
        again.skus(round % 2, 0, 10).await.unwrap();
        again.rows_among(&ORDERS, round % 2, 3..13, &["licensed"]).await.unwrap();
        again.rows_among(&DELIVERIES, round % 2, 3..13, &["requested", "failed"]).await.unwrap();
        let store = again.store();
        store.stream_head(0, "ledger").unwrap();
        store.look_up(round % 2, &[ledger_engine::hash::Hash([7; 32])], &["ledger".to_owned()]).unwrap();
        store.commits(round % 2, 0, 10).unwrap();
        store.checkpoints(round % 2, 0, 10).unwrap();
        store.private_documents(round % 2, 0, 10).unwrap();
        store.idempotency(0, &ledger_engine::hash::Hash([7; 32])).unwrap();
        store.tile(7, 0, 3).unwrap();
        store.last_checkpoint(round % 2).unwrap();
        let entry = again.read_chain(round % 2, 1, 1).await.unwrap().remove(0);
        again.read_event(entry.header.id()).await.unwrap();
        again.proof(round % 2, 1, true).await.unwrap();
    }
    // Locks all heads, and is refused.
    let kid = again.registry().current(Purpose::Commit).unwrap().kid.clone();
    let retire = Retire::Revoke { kid, reason: "asked".into(), compromised_since: None };
    let authorise = Box::new(|_: &[u8]| Ok(Authority { governance: [0; 64], possession: None }));
    assert_eq!(again.retire(retire, authorise).await.unwrap_err().code(), "KEY_REFUSED");
    assert!(again.check_projections().await.unwrap().is_empty());
    again.rebuild().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions { gzip: false, withhold_private: false, exported_at_us: 0, tool: "test".into() };
    again.export(options, &out.path().join("export")).await.unwrap();
}

/// Plans are kept for a connection, so those that were made while tables are empty must suit them when they are large, too.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_by_an_index() {
    let server = tokio::task::spawn_blocking(|| Server::start_durable(EXPLAINED)).await.unwrap();
    for filled in [false, true] {
        let url = server.database();
        postgres::migrate_away(&url);
        if filled {
            fill(&server, url.rsplit('/').next().unwrap());
        }
        let before = server.log().len();
        use_all_of_it(&url).await;
        check(&server.log().split_off(before), filled);
    }
}

fn check(log: &str, filled: bool) {
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // What the start asks the catalog about the tables reads none of them.
    let of_ledger = |text: &str| text.contains("ledger.") && !text.contains("pg_partition_tree('ledger.entries')");
    for (text, read) in plans(log).into_iter().filter(|(text, _)| of_ledger(text)) {
        seen.entry(text).or_default().extend(read);
    }
    for text in lookup_texts().iter().filter(|text| !text.contains("event_id_runs")) {
        // By itself, or as a part of another.
        assert!(seen.keys().any(|run| run.contains(text.as_str())), "never run: {text}");
    }
    for (text, read) in &seen {
        let large: Vec<_> = read.iter().filter(|table| !SMALL.contains(&&table[..])).collect();
        assert!(large.is_empty(), "filled: {filled}: reads all of {large:?}: {text}");
    }
    // Among others of the same commit.
    let written = [
        "INSERT INTO ledger.entries",
        "INSERT INTO ledger.orders",
        "DELETE FROM ledger.orders",
        "DELETE FROM ledger.private",
    ];
    for kind in written {
        assert!(seen.keys().any(|text| text.contains(kind)), "never run: {kind}");
    }
}

/// Tables to which rows are only added.
const GROWING: [&str; 5] = ["entries", "private_documents", "commits", "commit_signatures", "checkpoints"];

/// The verifier reads tables whole and in the order of their keys; what it looks up besides, by an index.
#[tokio::test(flavor = "multi_thread")]
async fn the_verifier_looks_rows_up_by_an_index() {
    let server = tokio::task::spawn_blocking(|| Server::start_durable(EXPLAINED)).await.unwrap();
    let url = server.database();
    postgres::migrate_away(&url);
    let name = url.rsplit('/').next().unwrap();
    let ledger = postgres::create(&url, 2).await;
    list_sku(&ledger, "s").await;
    let order = create_order(&ledger, "ann", "s").await;
    for line in life(&order) {
        send(&ledger, &line).await.unwrap();
    }
    let notes = ledger.checkpoint().await.unwrap();
    create_order(&ledger, "bob", "s").await;
    fill(&server, name);
    let saved = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(saved.path(), notes.iter().map(|note| note.to_string()).collect::<String>()).unwrap();
    let filled = server.log().len();
    tokio::task::spawn_blocking(move || {
        let (path, anchors) = (Path::new(&url), Anchor::read(saved.path()).unwrap());
        // Not a ledger as a whole: chain 7 is none. Its other two are read first.
        verify_stream(path, &order, Demands::default());
        verify_path(path, None);
        verify_path_with(path, Demands { anchors: &anchors, since_anchor: true, ..Demands::default() });
    })
    .await
    .unwrap();
    let mut lookups = 0;
    for (text, read) in plans(&server.log().split_off(filled)) {
        let large: Vec<_> =
            read.iter().filter(|table| !SMALL.contains(&&table[..]) && !table.ends_with("Join")).collect();
        lookups += u32::from(text.contains("$1"));
        // Counting without indexes is meant to, and so is copying what follows from the entries.
        let copies = text.starts_with("COPY (SELECT") && !text.contains(" WHERE ");
        let meant = text.contains("count(*)") || copies && large.iter().all(|table| !GROWING.contains(&&table[..]));
        assert!(large.is_empty() || meant, "reads all of {large:?}: {text}");
    }
    assert!(lookups > 10, "{lookups}");
}
