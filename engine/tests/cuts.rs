//! The connection to PostgreSQL is cut at every message of an append, lost before it or after. Whatever the caller was told is
//! true afterwards: one copy or none.
#![allow(missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use ledger_engine::ledger::Ledger;
use support::{create_line, list_sku, postgres, send};
use test_servers::{Cut, Direction, Proxy};

const DIRECTIONS: [Direction; 2] = [Direction::ToServer, Direction::ToClient];

/// A ledger behind a proxy.
struct Behind {
    url: String,
    proxy: Proxy,
    ledger: Ledger,
    orders: u64,
    stored: u32,
    lost: u32,
}

impl Behind {
    async fn new() -> Behind {
        let url = postgres::database();
        let proxy = Proxy::before(&url);
        let ledger = postgres::create(&proxy.url(&url), 1).await;
        list_sku(&ledger, "s").await;
        Behind { url, proxy, ledger, orders: 0, stored: 0, lost: 0 }
    }

    /// An order without cuts: afterwards the connections know all statements, so that messages can be counted.
    async fn warm_up(&mut self) {
        send(&self.ledger, &create_line(&format!("k{}", self.orders), "s")).await.unwrap();
        self.orders += 1;
    }

    /// Makes one order with these cuts in its way, and tries again. Returns whether all of them came.
    async fn one_order(&mut self, cuts: &[Cut]) -> bool {
        let line = create_line(&format!("k{}", self.orders), "s");
        let before = self.ledger.store().heads().unwrap()[0].size();
        self.proxy.cut(cuts);
        let answer = send(&self.ledger, &line).await;
        let all_came = self.proxy.mend() == 0;
        let after = self.ledger.store().heads().unwrap()[0].size();
        match &answer {
            Ok(_) => assert_eq!(after, before + 1, "{cuts:?}"),
            Err(e) => assert_eq!((e.code(), after), ("STORE_UNAVAILABLE", before), "{cuts:?}: {e}"),
        }
        let again = send(&self.ledger, &line).await.unwrap_or_else(|e| panic!("{cuts:?}: {e}"));
        assert_eq!(again.repeated, answer.is_ok(), "{cuts:?}");
        assert!(answer.as_ref().is_ok_and(|first| first.entries == again.entries) || answer.is_err(), "{cuts:?}");
        self.orders += 1;
        self.stored += u32::from(all_came && answer.is_ok());
        self.lost += u32::from(answer.is_err());
        all_came
    }

    /// Cuts after `first` at every message in both directions, until there are no more.
    async fn everywhere(&mut self, first: &[Cut], prepare: impl Fn(&Ledger)) {
        for direction in DIRECTIONS {
            let mut message = 1;
            let mut cut_at = async |message, delivered| {
                self.warm_up().await;
                prepare(&self.ledger);
                self.one_order(&[first, &[Cut { direction, message, delivered }]].concat()).await
            };
            while cut_at(message, false).await {
                message += 1;
            }
            assert!(message > 3, "{direction:?}: {message}");
            // All before it were followed by one that did not arrive.
            cut_at(message - 1, true).await;
        }
    }

    async fn check(self) {
        assert!(self.stored > 0 && self.lost > 0, "{} stored, {} lost", self.stored, self.lost);
        let size = self.ledger.store().heads().unwrap()[0].size();
        assert_eq!(size, self.orders + 2);
        assert!(self.ledger.check_projections().await.unwrap().is_empty());
        postgres::verify(&self.url, self.ledger.id()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_is_cut_at_every_message() {
    let mut behind = Behind::new().await;
    behind.everywhere(&[], |_| {}).await;
    behind.check().await;
}

/// Connecting and preparing statements, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_append_of_a_connection_is_cut_at_every_message() {
    let mut behind = Behind::new().await;
    behind.everywhere(&[], |ledger| ledger.store().close().unwrap()).await;
    behind.check().await;
}

/// The answer to `COMMIT` is lost, and then the question what became of it is cut off, too.
#[tokio::test(flavor = "multi_thread")]
async fn settling_is_cut_at_every_message() {
    let mut behind = Behind::new().await;
    let mut messages = 0;
    behind.warm_up().await;
    // The last message of an append to the client says that it is ready again; the one before, that COMMIT is done.
    while behind.one_order(&[Cut { direction: Direction::ToClient, message: messages + 1, delivered: true }]).await {
        messages += 1;
        behind.warm_up().await;
    }
    behind.lost = 0;
    let cut = Cut { direction: Direction::ToClient, message: messages - 1, delivered: false };
    behind.everywhere(&[cut], |_| {}).await;
    assert_eq!(behind.lost, 0);
    behind.lost = 1;
    behind.check().await;
}

/// All of a commit arrived and waits for the head's lock when its connection is cut. Whatever the server makes of it, it is not stored any
/// more once somebody was told that there is nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_lock_when_its_connection_is_cut() {
    let behind = Behind::new().await;
    let (ledger, url) = (Arc::new(behind.ledger), behind.url);
    let list = |sku: &str| {
        format!(
            r#"{{"command":"sku.list","actor":"service:c","sku_id":"{sku}","title":"t","price":{{"amount":5,"currency":"EUR","scale":2}}}}"#
        )
    };
    let holder = postgres::connect(&url).await;
    let watcher = postgres::connect(&url).await;
    for (n, held_ms) in [50, 1500].into_iter().enumerate() {
        send(&ledger, &list(&format!("warm-{n}"))).await.unwrap();
        let (answer, messages, _) = behind.proxy.cost(send(&ledger, &list(&format!("count-{n}")))).await;
        answer.unwrap();
        let before = ledger.store().heads().unwrap()[0].size();
        holder.batch_execute("BEGIN; SELECT FROM ledger.chain_heads WHERE chain = 0 FOR UPDATE").await.unwrap();
        behind.proxy.cut(&[Cut { direction: Direction::ToServer, message: messages, delivered: true }]);
        let (sending, line) = (Arc::clone(&ledger), list(&format!("cut-{n}")));
        let sent = tokio::spawn(async move { send(&sending, &line).await });
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        while watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(held_ms)).await;
        holder.batch_execute("COMMIT").await.unwrap();
        let answer = sent.await.unwrap();
        assert_eq!(behind.proxy.mend(), 0, "{held_ms}: it was not cut");
        let after = ledger.store().heads().unwrap()[0].size();
        match &answer {
            Ok(_) => assert_eq!(after, before + 1, "{held_ms}"),
            Err(e) => assert_eq!((e.code(), after), ("STORE_UNAVAILABLE", before), "{held_ms}: {e}"),
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(ledger.store().heads().unwrap()[0].size(), after, "{held_ms}: it came after all");
    }
    postgres::verify(&url, ledger.id()).await;
}
