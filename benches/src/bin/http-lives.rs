//! Whole order lives over HTTP, one after the other on one connection: checkout, payment webhook, settle, finalize, licence.
//! Prints the median, the 95th and the 99th percentile of a life in milliseconds, and the mean of each step.
//!
//! `http-lives URL FINANCE_PEM FINANCE_KID LIVES`, with `BUYER_TOKEN` (of buyer@example.org) and `SERVICE_TOKEN` in the
//! environment, against a development server. Ends with an error at the first answer that is not as it should be.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use ledger_engine::hash::to_hex;
use ledger_engine::keys::PrivateKey;
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::{Value, json};
use sha2::Sha256;

type Failure = Box<dyn std::error::Error>;

const BUYER: &str = "buyer@example.org";
/// What a development server takes.
const WEBHOOK_SECRET: &[u8] = b"whsec_development_only";
const STEPS: [&str; 5] = ["checkout", "webhook", "settle", "finalize", "licence"];

struct Market {
    url: String,
    client: Client,
    buyer: String,
    service: String,
    finance: PrivateKey,
    finance_kid: String,
}

impl Market {
    /// One life; how long each step took.
    fn live(&self, name: &str) -> Result<[Duration; 5], Failure> {
        let mut took = [Duration::ZERO; 5];
        let wanted = json!({
            "sku_id": "sku-e2e", "buyer_id": BUYER,
            "payment_method": { "provider": "stripe", "payment_intent": "pi_1" },
            "delivery_preferences": { "mode": "marketplace-managed" },
            "order_metadata": { "note": "for Ann" },
        });
        let request = self.client.post(format!("{}/checkout", self.url)).bearer_auth(&self.buyer).json(&wanted);
        let (made, time) = timed(request.header("Idempotency-Key", name), 201)?;
        took[0] = time;
        let order = &made["order"];
        let id = order["order_id"].as_str().ok_or("no order_id")?;
        let (amount, scale) = (&order["amount"], &order["scale"]);
        let currency = order["currency"].as_str().ok_or("no currency")?;

        let event = json!({
            "id": format!("evt_{name}"), "type": "payment_intent.succeeded",
            "data": { "object": { "id": "pi_1", "amount": amount, "amount_received": amount,
                "currency": currency.to_lowercase(), "metadata": { "order_id": id } } },
        })
        .to_string();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut mac = Hmac::<Sha256>::new_from_slice(WEBHOOK_SECRET)?;
        mac.update(format!("{now}.{event}").as_bytes());
        let signature = format!("t={now},v1={}", to_hex(&mac.finalize().into_bytes()));
        let request = self.client.post(format!("{}/webhooks/payment", self.url)).header("Stripe-Signature", signature);
        let (paid, time) = timed(request.header("Content-Type", "application/json").body(event), 200)?;
        took[1] = time;
        if paid["event_type"] != "payment.captured" {
            return Err(format!("the webhook was answered {paid}").into());
        }

        let proof = format!("lp-{name}");
        let statement = format!(
            r#"{{"amount":{amount},"currency":"{currency}","ledger_proof_id":"{proof}","order_id":"{id}","scale":{scale},"type":"finance-proof/v1"}}"#
        );
        let signature = to_hex(&self.finance.sign(statement.as_bytes()).ok_or("the finance key cannot sign")?);
        let proof = json!({ "ledger_proof_id": proof, "ledger_proof_signature": signature,
            "ledger_proof_signer_kid": self.finance_kid });
        let post = |step: &str| self.client.post(format!("{}/order/{id}/{step}", self.url)).bearer_auth(&self.service);
        took[2] = timed(post("settle").json(&proof), 200)?.1;
        took[3] = timed(post("finalize"), 200)?.1;

        let request = self.client.get(format!("{}/order/{id}/license", self.url)).bearer_auth(&self.buyer);
        let (licence, time) = timed(request, 200)?;
        took[4] = time;
        if licence["license"]["order_id"] != id {
            return Err(format!("the licence is {licence}").into());
        }
        Ok(took)
    }
}

fn timed(request: RequestBuilder, expected: u16) -> Result<(Value, Duration), Failure> {
    let start = Instant::now();
    let response = request.send()?;
    let (status, url) = (response.status().as_u16(), response.url().path().to_owned());
    let body = response.bytes()?;
    let took = start.elapsed();
    if status != expected {
        return Err(format!("{url} answered {status}, not {expected}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok((serde_json::from_slice(&body)?, took))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, pem, kid, lives] = arguments.as_slice() else {
        return Err("usage: http-lives URL FINANCE_PEM FINANCE_KID LIVES".into());
    };
    let market = Market {
        url: url.trim_end_matches('/').to_owned(),
        client: Client::new(),
        buyer: std::env::var("BUYER_TOKEN")?,
        service: std::env::var("SERVICE_TOKEN")?,
        finance: PrivateKey::read(pem.as_ref())?,
        finance_kid: kid.clone(),
    };
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let lives: usize = lives.parse()?;
    let (mut totals, mut steps) = (Vec::with_capacity(lives), [Duration::ZERO; 5]);
    for n in 0..lives {
        let took = market.live(&format!("life-{run}-{n}"))?;
        totals.push(took.iter().sum::<Duration>());
        steps.iter_mut().zip(took).for_each(|(sum, t)| *sum += t);
    }
    totals.sort_unstable();
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let at = |part: usize| totals.get((lives * part / 100).min(lives.saturating_sub(1))).copied().unwrap_or_default();
    println!("{lives} lives: p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms", ms(at(50)), ms(at(95)), ms(at(99)));
    let mean = |sum: Duration| ms(sum) / lives.max(1) as f64;
    let each: Vec<String> = STEPS.iter().zip(steps).map(|(name, sum)| format!("{name} {:.2}", mean(sum))).collect();
    println!("mean of each step, ms: {}", each.join(", "));
    Ok(())
}
