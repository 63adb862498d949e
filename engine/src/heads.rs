//! The event `chain.heads` (FORMAT.md 9): what chain 0 says of the sizes, last hashes and roots of all chains.

use crate::json::{Object, Value};
use crate::store::ChainHead;

/// Its type.
pub(crate) const EVENT_TYPE: &str = "chain.heads";

/// Its payload, of all heads, ascending.
pub(crate) fn to_payload(heads: &[ChainHead]) -> Object {
    let item = |head: &ChainHead| {
        let object = Object::new()
            .with("chain", i64::from(head.chain))
            .with("head_hash", head.hash.to_hex())
            .with("root", head.range.root().to_hex())
            .with("size", head.size() as i64);
        Value::Object(object)
    };
    Object::new().with("heads", heads.iter().map(item).collect::<Vec<_>>())
}

/// The sizes that a payload names, by chain.
pub(crate) fn sizes(payload: &Object) -> Vec<u64> {
    let items = payload.value("heads").and_then(Value::as_array).unwrap_or_default();
    let size = |item: &Value| item.as_object()?.value("size")?.as_int().and_then(|n| u64::try_from(n).ok());
    items.iter().map(|item| size(item).unwrap_or(0)).collect()
}
