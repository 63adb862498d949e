//! Stripe's webhooks: the signature over what was sent, and what an event says of a payment.
//!
//! `Stripe-Signature: t=<seconds>,v1=<hex>[,v1=<hex>…]`; each `v1` is HMAC-SHA256 over `<t>.<body>` under the endpoint's secret,
//! which is used as text. Several are sent while a secret is being replaced.

use hmac::{Hmac, KeyInit as _, Mac as _};
use ledger_engine::domain::money::Money;
use serde::Deserialize;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::settings::Secret;

/// Most signatures that are looked at.
const SIGNATURES_MAX: usize = 16;

/// Why a webhook is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureFault {
    /// The header is missing or not of the form.
    #[error("the header Stripe-Signature is missing or malformed")]
    Malformed,
    /// No signature fits.
    #[error("no signature in Stripe-Signature is of this body and a secret of this endpoint")]
    Mismatch,
    /// Too old, or from the future.
    #[error("the signature's time is outside of the tolerance: this may be a repetition of something old")]
    OutsideTolerance,
}

/// Checks the header against the body. `now` and `tolerance` are seconds.
pub(crate) fn verify(
    header: &str,
    body: &[u8],
    secrets: &[Secret],
    now: i64,
    tolerance: i64,
) -> Result<(), SignatureFault> {
    let mut time = None;
    let mut signatures = Vec::new();
    for item in header.split(',') {
        match item.split_once('=') {
            Some(("t", value)) if time.is_none() => {
                let digits = value.bytes().all(|b| b.is_ascii_digit());
                time = Some(value.parse::<i64>().ok().filter(|_| digits).map(|t| (t, value)));
            }
            Some(("t", _)) => return Err(SignatureFault::Malformed),
            Some(("v1", value)) if signatures.len() < SIGNATURES_MAX => {
                // What is not hex of 32 bytes can fit nothing.
                signatures.extend(ledger_engine::hash::from_hex(value).filter(|s| s.len() == 32));
            }
            _ => {}
        }
    }
    let (time, text) = time.flatten().ok_or(SignatureFault::Malformed)?;
    if signatures.is_empty() {
        return Err(SignatureFault::Mismatch);
    }
    let mut fits = subtle::Choice::from(0);
    for secret in secrets {
        let expected = sign(secret, text, body);
        for signature in &signatures {
            fits |= expected.ct_eq(signature);
        }
    }
    if !bool::from(fits) {
        return Err(SignatureFault::Mismatch);
    }
    // Time last: only who has the secret learns about our clock.
    if now.abs_diff(time) > tolerance.unsigned_abs() { Err(SignatureFault::OutsideTolerance) } else { Ok(()) }
}

fn sign(secret: &Secret, time: &str, body: &[u8]) -> [u8; 32] {
    // HMAC takes keys of every length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()) else { return [0; 32] };
    mac.update(time.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac.finalize().into_bytes().into()
}

/// An event, as far as it is read. Members that are not here are the provider's business.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    object: serde_json::Value,
}

/// The payment intent that an event is about.
#[derive(Debug, Deserialize)]
struct Intent {
    id: String,
    amount: i64,
    #[serde(default)]
    amount_received: Option<i64>,
    currency: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    last_payment_error: Option<PaymentError>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    order_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct PaymentError {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    decline_code: Option<String>,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payment {
    /// Money came.
    Captured { order_id: String, payment_id: String, received: Money },
    /// It did not.
    Failed { order_id: String, payment_id: String, reason: String },
    /// Nothing about an order of ours.
    Other,
}

impl Event {
    /// Reads a body whose signature is good.
    pub(crate) fn parse(body: &[u8]) -> Result<Event, String> {
        serde_json::from_slice(body).map_err(|e| e.to_string())
    }

    /// What it says of an order's payment.
    pub(crate) fn payment(&self) -> Result<Payment, String> {
        let captured = match self.kind.as_str() {
            "payment_intent.succeeded" => true,
            "payment_intent.payment_failed" | "payment_intent.canceled" => false,
            _ => return Ok(Payment::Other),
        };
        let intent: Intent =
            serde_json::from_value(self.data.object.clone()).map_err(|e| format!("data.object: {e}"))?;
        // An account may serve other shops, too.
        let Some(order_id) = intent.metadata.order_id else { return Ok(Payment::Other) };
        let payment_id = intent.id;
        if !captured {
            let error = intent.last_payment_error;
            let reason = error.and_then(|e| e.decline_code.or(e.code)).unwrap_or_else(|| self.kind.clone());
            return Ok(Payment::Failed { order_id, payment_id, reason });
        }
        let currency = intent.currency.to_ascii_uppercase();
        let scale = exponent(&currency);
        let received = Money { amount: intent.amount_received.unwrap_or(intent.amount), currency, scale };
        Ok(Payment::Captured { order_id, payment_id, received })
    }
}

/// Decimal digits of the unit that the provider counts a currency in: its lists of zero-decimal and three-decimal currencies,
/// and two for all others. ISK and UGX have none of their own and two with the provider ("to charge 5 UGX, provide an amount value
/// of 500", docs.stripe.com/currencies, special cases): read as zero-decimal, a hundredth of the price would pay an order.
fn exponent(currency: &str) -> i64 {
    match currency {
        "BIF" | "CLP" | "DJF" | "GNF" | "JPY" | "KMF" | "KRW" | "MGA" | "PYG" | "RWF" | "VND" | "VUV" | "XAF"
        | "XOF" | "XPF" => 0,
        "BHD" | "JOD" | "KWD" | "OMR" | "TND" => 3,
        _ => 2,
    }
}

/// The same amount counted in units of another scale, if that is exact.
pub(crate) fn rescaled(money: &Money, scale: i64) -> Option<Money> {
    let power = |n: i64| 10_i64.checked_pow(u32::try_from(n).ok()?);
    let amount = if scale >= money.scale {
        money.amount.checked_mul(power(scale - money.scale)?)?
    } else {
        let divisor = power(money.scale - scale)?;
        (money.amount % divisor == 0).then_some(money.amount / divisor)?
    };
    Some(Money { amount, scale, currency: money.currency.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_0123456789abcdef";
    const BODY: &[u8] = br#"{"id":"evt_1"}"#;

    fn header(time: i64, secret: &str) -> String {
        let mac = sign(&Secret(secret.into()), &time.to_string(), BODY);
        format!("t={time},v1={}", ledger_engine::hash::to_hex(&mac))
    }

    fn check(header: &str, now: i64) -> Result<(), SignatureFault> {
        verify(header, BODY, &[Secret("whsec_another_secret".into()), Secret(SECRET.into())], now, 300)
    }

    #[test]
    fn signatures_are_believed_in_their_time() {
        let good = header(1000, SECRET);
        assert_eq!(check(&good, 1000), Ok(()));
        assert_eq!((check(&good, 1300), check(&good, 700)), (Ok(()), Ok(())));
        assert_eq!(check(&good, 1301), Err(SignatureFault::OutsideTolerance));
        assert_eq!(check(&good, 699), Err(SignatureFault::OutsideTolerance));
        // Several, of which one fits; of another scheme none.
        assert_eq!(check(&format!("{good},v1={},v0=00", "00".repeat(32)), 1000), Ok(()));
        assert_eq!(check(&good.replace("v1=", "v0="), 1000), Err(SignatureFault::Mismatch));
        assert_eq!(check(&header(1000, "whsec_somebody_elses"), 1000), Err(SignatureFault::Mismatch));
        assert_eq!(check(&good.replace("t=1000", "t=1001"), 1001), Err(SignatureFault::Mismatch));
        for bad in ["", "v1=00", "t=,v1=00", "t=x,v1=00", "t=-5,v1=00", "t=1,t=2,v1=00"] {
            assert_eq!(check(bad, 1000), Err(SignatureFault::Malformed), "{bad}");
        }
    }

    #[test]
    fn amounts_are_counted_in_the_orders_unit() {
        let money = |amount, scale| Money { amount, currency: "EUR".into(), scale };
        assert_eq!(rescaled(&money(1250, 2), 2), Some(money(1250, 2)));
        assert_eq!(rescaled(&money(1250, 2), 4), Some(money(125_000, 4)));
        assert_eq!(rescaled(&money(1250, 2), 1), Some(money(125, 1)));
        assert_eq!(rescaled(&money(1255, 2), 1), None);
        assert_eq!(rescaled(&money(i64::MAX, 0), 4), None);
    }

    #[test]
    fn currencies_are_counted_as_the_provider_counts_them() {
        for (currency, digits) in [("JPY", 0), ("MGA", 0), ("KWD", 3), ("EUR", 2), ("ISK", 2), ("UGX", 2), ("HUF", 2)] {
            assert_eq!(exponent(currency), digits, "{currency}");
        }
    }

    #[test]
    fn events_say_what_was_paid() {
        let event = |kind: &str, object: &str| {
            Event::parse(format!(r#"{{"id":"evt_1","type":"{kind}","data":{{"object":{object}}},"x":1.5}}"#).as_bytes())
                .unwrap()
                .payment()
        };
        let intent = r#"{"id":"pi_1","amount":100,"amount_received":90,"currency":"jpy","metadata":{"order_id":"o"}}"#;
        let received = Money { amount: 90, currency: "JPY".into(), scale: 0 };
        let captured = Payment::Captured { order_id: "o".into(), payment_id: "pi_1".into(), received };
        assert_eq!(event("payment_intent.succeeded", intent), Ok(captured));
        let failed = Payment::Failed {
            order_id: "o".into(),
            payment_id: "pi_1".into(),
            reason: "payment_intent.payment_failed".into(),
        };
        assert_eq!(event("payment_intent.payment_failed", intent), Ok(failed));
        assert_eq!(event("charge.succeeded", "{}"), Ok(Payment::Other));
        let of_another_shop = r#"{"id":"pi_1","amount":1,"currency":"eur"}"#;
        assert_eq!(event("payment_intent.succeeded", of_another_shop), Ok(Payment::Other));
        assert!(event("payment_intent.succeeded", r#"{"id":"pi_1"}"#).is_err());
    }
}
