//! Ed25519 signatures by keys that sign much: a table of multiples of the key halves what the next signature costs.
//!
//! The rule is that of [`PublicKey::verify`] (FORMAT.md 6), `verify_strict`: S is below the group's order, neither the key nor R is of
//! small order, and R is the one encoding of `[S]B − [k]A`. R is compared as bytes, so that it need not be decompressed: if they are the
//! same, the point is the computed one.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use curve25519_dalek::constants::ED25519_BASEPOINT_TABLE;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsBasepointTable};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::BasepointTable as _;
use ledger_engine::public_key::PublicKey;
use lru::LruCache;
use sha2::{Digest as _, Sha512};

/// Keys that are remembered; a table is 30 KiB.
const KEYS: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Signatures after which a key gets its table, which costs as much as about 40 verifications.
const SEEN: u32 = 64;

/// Verifies signatures, most of them by few keys.
pub(crate) struct FrequentKeys(Mutex<LruCache<[u8; 32], Known>>);

#[derive(Clone)]
enum Known {
    /// So many signatures were verified without a table.
    Seen(u32),
    Table(Arc<Table>),
}

impl Default for FrequentKeys {
    fn default() -> FrequentKeys {
        FrequentKeys(Mutex::new(LruCache::new(KEYS)))
    }
}

impl FrequentKeys {
    /// [`PublicKey::verify`].
    pub(crate) fn verify(&self, key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
        match key.ed25519().and_then(|raw| self.table(raw)) {
            Some(table) => table.verify(message, signature),
            None => key.verify(message, signature),
        }
    }

    /// The table of a key that was seen often. `None` for any other, and for bytes that are no key.
    fn table(&self, raw: [u8; 32]) -> Option<Arc<Table>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = keys.get_or_insert_mut(raw, || Known::Seen(0));
        match known {
            Known::Table(table) => return Some(Arc::clone(table)),
            Known::Seen(n) if *n < SEEN => {
                *n += 1;
                return None;
            }
            Known::Seen(_) => {}
        }
        let table = Arc::new(Table::new(raw)?);
        *known = Known::Table(Arc::clone(&table));
        Some(table)
    }
}

/// A key with multiples of it.
struct Table {
    raw: [u8; 32],
    /// Of −A.
    negated: EdwardsBasepointTable,
}

impl Table {
    /// `None`: the bytes are no point, or one of small order, by which nothing is ever signed.
    fn new(raw: [u8; 32]) -> Option<Table> {
        let point = CompressedEdwardsY(raw).decompress().filter(|point| !point.is_small_order())?;
        Some(Table { raw, negated: EdwardsBasepointTable::create(&-point) })
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let Some((r, s)) = signature.split_first_chunk::<32>() else { return false };
        let s = <[u8; 32]>::try_from(s).ok().and_then(|s| Option::<Scalar>::from(Scalar::from_canonical_bytes(s)));
        let Some(s) = s else { return false };
        let k = Sha512::new().chain_update(r).chain_update(self.raw).chain_update(message).finalize();
        let k = Scalar::from_bytes_mod_order_wide(&k.into());
        let computed = ED25519_BASEPOINT_TABLE.mul_base(&s) + self.negated.mul_base(&k);
        !computed.is_small_order() && computed.compress().as_bytes() == r
    }
}

#[cfg(test)]
mod tests {
    use curve25519_dalek::EdwardsPoint;
    use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT as BASE, EIGHT_TORSION};
    use ledger_engine::commit::verify_ed25519;
    use proptest::prelude::*;

    use super::*;

    /// The group's order.
    const ORDER: [u8; 32] = {
        let mut order = [0; 32];
        let low = 0x14de_f9de_a2f7_9cd6_5812_631a_5cf5_d3ed_u128.to_le_bytes();
        let mut at = 0;
        while at < 16 {
            order[at] = low[at];
            at += 1;
        }
        order[31] = 0x10;
        order
    };

    fn plus_order(s: [u8; 32]) -> [u8; 32] {
        let mut carry = 0;
        std::array::from_fn(|at| {
            carry += u16::from(s[at]) + u16::from(ORDER[at]);
            let byte = carry as u8;
            carry >>= 8;
            byte
        })
    }

    /// Both rules; they must agree.
    fn good(key: [u8; 32], message: &[u8], signature: &[u8]) -> bool {
        let expected = verify_ed25519(&key, message, signature);
        assert_eq!(Table::new(key).is_some_and(|table| table.verify(message, signature)), expected);
        expected
    }

    fn challenge(r: &[u8; 32], key: &[u8; 32], message: &[u8]) -> Scalar {
        let k = Sha512::new().chain_update(r).chain_update(key).chain_update(message).finalize();
        Scalar::from_bytes_mod_order_wide(&k.into())
    }

    proptest! {
        /// Keys and commitments with and without a component of small order, and what is not canonical: the verdict of `verify_strict`.
        #[test]
        fn the_rule_is_verify_strict(secret: [u8; 32], nonce: [u8; 32], of_key in 0..8_usize, of_r in 0..8_usize, message: [u8; 5], flip in 0..512_usize) {
            let (secret, nonce) = (Scalar::from_bytes_mod_order(secret), Scalar::from_bytes_mod_order(nonce));
            let key = (BASE * secret + EIGHT_TORSION[of_key]).compress().0;
            let r = (BASE * nonce + EIGHT_TORSION[of_r]).compress().0;
            let s = nonce + challenge(&r, &key, &message) * secret;
            let signature = [r, s.to_bytes()].concat();
            let holds = good(key, &message, &signature);
            prop_assert!(holds || of_key > 0 || of_r > 0);
            let mut altered = signature.clone();
            altered[flip / 8] ^= 1 << (flip % 8);
            prop_assert!(!good(key, &message, &altered));
            prop_assert!(!good(key, b"another message", &signature));
            prop_assert!(!good(key, &message, &[r, plus_order(s.to_bytes())].concat()));
            prop_assert!(!good(key, &message, &signature[..63]));
        }

        #[test]
        fn bytes_that_are_no_signature(key: [u8; 32], r: [u8; 32], s: [u8; 32]) {
            prop_assert!(!good(key, b"", &[r, s].concat()));
        }
    }

    #[test]
    fn small_order_and_other_encodings_are_refused() {
        let secret = Scalar::from(7_u64);
        let key = (BASE * secret).compress().0;
        // y of the identity plus p: another encoding of it.
        let mut other = [0xff; 32];
        (other[0], other[31]) = (0xee, 0x7f);
        let small: Vec<[u8; 32]> = EIGHT_TORSION.iter().map(|p: &EdwardsPoint| p.compress().0).chain([other]).collect();
        for r in &small {
            let s = challenge(r, &key, b"m") * secret;
            assert!(!good(key, b"m", &[*r, s.to_bytes()].concat()));
        }
        let r = BASE.compress().0;
        for key in &small {
            assert!(Table::new(*key).is_none());
            // [1]B is all that it takes.
            assert!(!good(*key, b"m", &[r, Scalar::ONE.to_bytes()].concat()));
        }
    }

    #[test]
    fn a_key_gets_its_table_and_keeps_its_verdicts() {
        use ed25519_dalek::{Signer as _, SigningKey};
        let keys = FrequentKeys::default();
        let signing = SigningKey::from_bytes(&[3; 32]);
        let key = PublicKey::Ed25519(signing.verifying_key().to_bytes());
        for n in 0..2 * SEEN {
            let message = n.to_le_bytes();
            let signature = signing.sign(&message).to_bytes();
            assert!(keys.verify(&key, &message, &signature));
            assert!(!keys.verify(&key, b"", &signature));
        }
        assert!(matches!(keys.0.lock().unwrap().get(&signing.verifying_key().to_bytes()), Some(Known::Table(_))));
        // Bytes that are no key are none however often they come.
        let none = PublicKey::Ed25519([2; 32]);
        assert!((0..2 * SEEN).all(|_| !keys.verify(&none, b"", &[0; 64])));
    }
}
