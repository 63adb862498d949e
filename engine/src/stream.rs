//! Stream names, cases and routing (FORMAT.md 5). Names are made by the server, never from a client's text.

use std::fmt;

use crate::hash::{Hash, hex_array, sha256};

/// The key registry.
pub const LEDGER_STREAM: &str = "ledger";
/// Sizes, roots and heads of all chains.
pub const HEADS_STREAM: &str = "heads";
/// What was adopted of the system before this one.
pub const LEGACY_STREAM: &str = "legacy";
/// The record of exports.
pub const EXPORTS_STREAM: &str = "exports";

/// What a stream's events are about: an order with its deliveries, or a SKU. 16 bytes, printed as 32 hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct CaseId(pub [u8; 16]);

impl CaseId {
    /// Reads 32 lowercase hex characters.
    pub fn parse(text: &str) -> Option<CaseId> {
        hex_array(text.as_bytes()).map(CaseId)
    }

    /// The case of a SKU: derived from its id, since the id is a client's text.
    pub fn of_sku(sku_id: &str) -> CaseId {
        CaseId::truncate(sha256(&[b"ledger/sku/v1\0", sku_id.as_bytes()]))
    }

    /// The case that a creating command with this idempotency hash makes, so that retries meet on one stream.
    pub fn of_idempotency(idem: &Hash) -> CaseId {
        CaseId::truncate(sha256(&[b"ledger/case/v1\0", &idem.0]))
    }

    fn truncate(hash: Hash) -> CaseId {
        let mut id = [0; 16];
        id.copy_from_slice(&hash.0[..16]);
        CaseId(id)
    }

    /// `SHA-256("ledger/route/v1\0" ‖ case as hex)`, first 8 bytes little-endian, modulo the chain count.
    pub fn route(self, chains: u32) -> u32 {
        if chains <= 1 {
            return 0;
        }
        let hash = sha256(&[b"ledger/route/v1\0", self.to_string().as_bytes()]);
        let mut first = [0; 8];
        first.copy_from_slice(&hash.0[..8]);
        // The remainder is below a u32.
        (u64::from_le_bytes(first) % u64::from(chains)) as u32
    }
}

impl fmt::Display for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hash::to_hex(&self.0))
    }
}

impl fmt::Debug for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A stream by its meaning. Its text form is the header's `stream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Stream {
    /// `ledger`, the key registry, on chain 0.
    Ledger,
    /// `heads`, on chain 0.
    Heads,
    /// `legacy`, on chain 0.
    Legacy,
    /// `exports`, on chain 0.
    Exports,
    /// `chain-<k>`: the genesis of chain k ≥ 1.
    Chain(u32),
    /// `order-<case>`
    Order(CaseId),
    /// `delivery-<case>-<n>`, n ≥ 1
    Delivery(CaseId, u32),
    /// `sku-<case>`
    Sku(CaseId),
}

impl Stream {
    /// Reads the text form; only what prints back to the same text is a stream.
    pub fn parse(text: &str) -> Option<Stream> {
        match text {
            LEDGER_STREAM => return Some(Stream::Ledger),
            HEADS_STREAM => return Some(Stream::Heads),
            LEGACY_STREAM => return Some(Stream::Legacy),
            EXPORTS_STREAM => return Some(Stream::Exports),
            _ => {}
        }
        let (kind, rest) = text.split_once('-')?;
        match kind {
            "chain" => Some(Stream::Chain(from_one(rest)?)),
            "order" => Some(Stream::Order(CaseId::parse(rest)?)),
            "sku" => Some(Stream::Sku(CaseId::parse(rest)?)),
            "delivery" => {
                let (case, n) = rest.split_once('-')?;
                Some(Stream::Delivery(CaseId::parse(case)?, from_one(n)?))
            }
            _ => None,
        }
    }

    /// The case, for streams that have one.
    pub fn case(&self) -> Option<CaseId> {
        match self {
            Stream::Order(case) | Stream::Delivery(case, _) | Stream::Sku(case) => Some(*case),
            _ => None,
        }
    }

    /// The chain that the stream lives on.
    pub fn chain(&self, chains: u32) -> u32 {
        match self {
            Stream::Ledger | Stream::Heads | Stream::Legacy | Stream::Exports => 0,
            Stream::Chain(k) => *k,
            Stream::Order(case) | Stream::Delivery(case, _) | Stream::Sku(case) => case.route(chains),
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stream::Ledger => f.write_str(LEDGER_STREAM),
            Stream::Heads => f.write_str(HEADS_STREAM),
            Stream::Legacy => f.write_str(LEGACY_STREAM),
            Stream::Exports => f.write_str(EXPORTS_STREAM),
            Stream::Chain(k) => write!(f, "chain-{k}"),
            Stream::Order(case) => write!(f, "order-{case}"),
            Stream::Delivery(case, n) => write!(f, "delivery-{case}-{n}"),
            Stream::Sku(case) => write!(f, "sku-{case}"),
        }
    }
}

/// A number from 1 in the one way it is printed.
fn from_one(text: &str) -> Option<u32> {
    let printed = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_printed_form_is_a_stream() {
        let case = "0123456789abcdef0123456789abcdef";
        for text in [
            "ledger",
            "heads",
            "legacy",
            "exports",
            "chain-1",
            &format!("order-{case}"),
            &format!("delivery-{case}-12"),
            &format!("sku-{case}"),
        ] {
            assert_eq!(Stream::parse(text).unwrap().to_string(), text);
            assert!(crate::header::is_stream_name(text));
        }
        for text in [
            "",
            "chain-0",
            "chain-01",
            "chain-+1",
            "order-",
            "order-0123",
            "Ledger",
            &format!("delivery-{case}"),
            &format!("delivery-{case}-0"),
            &format!("delivery-{case}-01"),
            &format!("order-{}", case.to_uppercase()),
        ] {
            assert_eq!(Stream::parse(text), None, "{text}");
        }
    }

    #[test]
    fn routing_spreads_and_one_chain_takes_all() {
        let mut seen = [0; 4];
        for i in 0..400u32 {
            let case = CaseId::of_sku(&i.to_string());
            assert_eq!(case.route(1), 0);
            seen[case.route(4) as usize] += 1;
        }
        assert!(seen.iter().all(|n| *n > 60), "{seen:?}");
    }
}
