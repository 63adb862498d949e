//! Licences, the keys and the signatures of others.

use ledger_engine::delivery_proof::{DELIVERY_PROOF_BYTES_MAX, DeliveryProof};
use ledger_engine::domain::case::{document, read_delivery_proof, read_licence};
use ledger_engine::domain::sku::fits_listing;
use ledger_engine::finance::{FinanceSignature, signature_from_text};
use ledger_engine::hash::Hash;
use ledger_engine::json;
use ledger_engine::licence::{LICENCE_BYTES_MAX, Licence, Reason, Terms, judge};
use ledger_engine::manifest::{ARTIFACTS_MAX, MANIFEST_BYTES_MAX, Manifest};
use ledger_engine::public_key::{Algorithm, PublicKey};
use ledger_engine::registry::{Key, Purpose, Registry};
use ledger_engine::signer::LocalSigner;
use ledger_engine::stream::CaseId;

const LEDGER: Hash = Hash([9; 32]);

fn signer(purpose: Purpose, seed: u8) -> LocalSigner {
    LocalSigner::from_seed(purpose, &[seed; 32])
}

/// The one licence that its key has signed.
fn issued() -> Licence {
    let key = signer(Purpose::Licence, 4);
    let terms = Terms {
        order_id: CaseId([7; 16]),
        sku_id: "s".into(),
        buyer_id: "p-1".into(),
        scope: "standard".into(),
        expires_at_us: Some(2_000_000_000_000_000),
        issued_at_us: 1_000_000_000_000_000,
        ledger_id: LEDGER,
        signer_kid: key.key().kid.clone(),
    };
    let signature = key.signature(&terms.statement());
    terms.signed(signature)
}

/// A licence that is read prints to a text that reads as the same licence; none but the issued one holds.
pub(crate) fn licence(bytes: &[u8]) {
    let keys = [Purpose::Governance, Purpose::Licence, Purpose::Checkpoint];
    let keys = std::array::from_fn(|i| signer(keys[i], 3 + i as u8).key().clone());
    let registry = Registry::new(1, keys, Hash([1; 32]));
    let reasons = judge(bytes, &registry, &LEDGER, None, 0);
    match Licence::parse(bytes) {
        Ok(licence) => {
            let text = licence.to_text();
            assert!(text.len() <= LICENCE_BYTES_MAX && bytes.len() <= LICENCE_BYTES_MAX);
            assert_eq!(Licence::parse_canonical(&text).as_ref(), Some(&licence));
            assert_eq!(read_licence(&document(&text)).as_ref(), Some(&licence));
            let canonical = json::parse(bytes).map(|v| v.to_canonical() == bytes);
            assert_eq!(text.as_bytes() == bytes, canonical == Ok(true));
            assert_eq!(reasons.is_empty(), licence == issued());
        }
        Err(e) => {
            assert!(e.to_string().len() <= 1024);
            assert!(matches!(reasons[..], [Reason::Malformed(_)]));
        }
    }
    assert!(reasons.iter().all(|reason| !reason.code().is_empty() && reason.to_string().len() <= 2048));
}

/// A delivery proof that is read prints to a text that reads as the same one, and to the bytes that it was read from if those were canonical.
pub(crate) fn delivery_proof(bytes: &[u8]) {
    match DeliveryProof::parse(bytes) {
        Ok(proof) => {
            let text = proof.to_text();
            assert!(bytes.len() <= DELIVERY_PROOF_BYTES_MAX);
            assert_eq!(DeliveryProof::parse(text.as_bytes()).as_ref(), Ok(&proof));
            assert_eq!(proof.document().signature, proof.signature);
            if text.len() <= DELIVERY_PROOF_BYTES_MAX {
                assert_eq!(read_delivery_proof(&document(&text)).as_ref(), Some(&proof));
            }
            let canonical = json::parse(bytes).map(|v| v.to_canonical() == bytes);
            assert_eq!(text.as_bytes() == bytes, canonical == Ok(true));
        }
        Err(e) => assert!(e.to_string().len() <= 1024),
    }
}

/// What a manifest's signature is over does not depend on layout, and is canonical; a listing that says something else does not fit.
pub(crate) fn sku_manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Manifest::parse(text) {
        Ok(manifest) => {
            assert!(text.len() <= MANIFEST_BYTES_MAX && (1..=ARTIFACTS_MAX).contains(&manifest.artifacts.len()));
            assert!(json::parse_canonical(manifest.statement()).is_ok_and(|value| value.is_some()));
            let canonical = json::parse(bytes).expect("it was read").to_canonical();
            let again = String::from_utf8(canonical).expect("it is text");
            if again.len() <= MANIFEST_BYTES_MAX {
                assert_eq!(Manifest::parse(&again).as_ref(), Ok(&manifest));
            }
            let listing = |title: &str| {
                let mut payload = json::Object::new().with("sku_id", manifest.id.as_str()).with("title", title);
                payload.set("author_id", manifest.author.id.as_str());
                payload.set_some("price", manifest.price.as_ref().map(|p| p.to_value()));
                payload
            };
            assert!(fits_listing(&manifest, &listing(&manifest.title)));
            assert!(!fits_listing(&manifest, &listing(&format!("{}.", manifest.title))));
        }
        Err(e) => assert!(e.to_string().len() <= 1024),
    }
}

/// A public key has one encoding, which reads as the same key; a signature's text reads as what it is hex or base64 of.
pub(crate) fn public_key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for read in [PublicKey::from_spki(bytes), PublicKey::from_pem(&text), PublicKey::from_rsa(bytes)] {
        let Ok(key) = read else { continue };
        assert_eq!(PublicKey::parse(key.algorithm().as_str(), &key.to_hex()), Some(key.clone()));
        if key.algorithm() == Algorithm::RsaSha256 {
            assert_eq!(PublicKey::from_spki(key.as_bytes()), Ok(key.clone()));
        }
        for purpose in [Purpose::Finance, Purpose::Commit] {
            let named = Key::named(purpose, key.clone());
            let allowed = named.is_allowed();
            assert_eq!(Key::read(&named.to_object().into()), Some(named).filter(|_| allowed));
        }
        assert!(!key.verify(b"", bytes));
    }
    if let Some(signature) = signature_from_text(&text) {
        let finance = FinanceSignature::from_text("k", &text).expect("its length is one of a signature");
        assert_eq!(finance.signature, signature);
        assert_eq!(FinanceSignature::read(&finance.to_value()), Some(finance));
    }
}
