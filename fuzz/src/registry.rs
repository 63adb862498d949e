//! The genesis body and the changes of the key registry.

use ledger_engine::body::Body;
use ledger_engine::genesis::{CHAINS_MAX, Genesis, Limits};
use ledger_engine::hash::Hash;
use ledger_engine::json::{self, Value};
use ledger_engine::registry::{
    Action, Key, Purpose, Registry, RegistryPlace, govern_payload, govern_statement, is_kid,
};
use ledger_engine::signer::LocalSigner;

pub(crate) fn genesis(bytes: &[u8]) {
    let Ok(body) = Body::decode(bytes) else { return };
    let Some(genesis) = Genesis::read(&body.payload) else { return };
    assert!((1..=CHAINS_MAX).contains(&genesis.chains));
    let ceiling = Limits::default();
    assert!(genesis.limits.body_bytes <= ceiling.body_bytes && genesis.limits.commit_bytes <= ceiling.commit_bytes);
    let again = genesis.to_body();
    assert_eq!(again.payload, body.payload);
    if body == again {
        assert_eq!(Genesis::ledger_id(&again.encode()), Genesis::ledger_id(bytes));
    }
    assert!(genesis.keys().iter().all(|k| is_kid(&k.kid) && Key::read(&k.to_object().into()).as_ref() == Some(k)));
}

/// Each line is an object A; those that read are signed by governance and applied one after another.
pub(crate) fn registry(bytes: &[u8]) {
    let signer = |purpose, seed| LocalSigner::from_seed(purpose, &[seed; 32]);
    let governance = signer(Purpose::Governance, 1);
    let incoming = signer(Purpose::Commit, 4);
    let genesis_keys =
        [&governance, &signer(Purpose::Commit, 2), &signer(Purpose::Checkpoint, 3)].map(|s| s.key().clone());
    let ledger_id = Hash([9; 32]);
    let mut registry = Registry::new(2, genesis_keys, Hash([1; 32]));
    for line in bytes.split(|b| *b == b'\n').take(16) {
        let Ok(Value::Object(object)) = json::parse(line) else { continue };
        for event_type in ["key.enrolled", "key.rotated", "key.revoked"] {
            let action = match Action::read(event_type, &object) {
                Ok(action) => action,
                Err(e) => {
                    assert!(e.0.len() <= 1024);
                    continue;
                }
            };
            assert_eq!((action.event_type(), action.to_object()), (event_type, object.clone()));
            let revision = registry.size() + 1;
            let parent = registry.head(registry.size()).expect("the head of what is there");
            let place = RegistryPlace { ledger_id: &ledger_id, revision, parent_hash: &parent, index: revision };
            let message = govern_statement(&ledger_id, revision, &parent, &action);
            let sign = |s: &LocalSigner| s.signature(&message);
            let key = matches!(action, Action::Enrol { .. } | Action::Rotate { .. });
            let possession = key.then(|| sign(&incoming));
            let signed = govern_payload(
                &action,
                &governance.key().kid,
                &sign(&governance),
                possession.as_ref().map(<[u8; 64]>::as_slice),
            );
            let before = registry.clone();
            // Signed for another revision it is refused.
            let elsewhere = RegistryPlace { revision: revision + 1, ..place };
            assert!(registry.check(event_type, &signed, elsewhere).is_err());
            let checked = registry.check(event_type, &signed, place);
            let applied = registry.apply(event_type, &signed, place, Hash([revision as u8; 32]));
            assert_eq!(checked.as_ref().err(), applied.as_ref().err());
            assert_eq!(registry.size(), before.size() + 1);
            match checked {
                Ok(found) => assert_eq!(found, action),
                Err(_) => assert_eq!(registry.records(), before.records()),
            }
            // Keys only ever join, and what is retired stays so.
            assert!(registry.records().len() >= before.records().len());
            for (old, new) in before.records().iter().zip(registry.records()) {
                assert_eq!((&old.key, old.enrolled_size), (&new.key, new.enrolled_size));
                assert!(old.retired.is_none() || old.retired == new.retired);
            }
        }
    }
}
