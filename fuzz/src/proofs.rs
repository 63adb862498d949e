//! Merkle proofs against a naive model, the commit statement, and proof files.

use audit_verify::{Demands, verify_proof_bytes};
use ledger_engine::commit::{Statement, verify_ed25519};
use ledger_engine::hash::Hash;
use ledger_engine::header::COUNT_MAX;
use ledger_engine::merkle::{self, CompactRange, empty_root, leaf_hash, node_hash};
use ledger_engine::proof::{PROOF_BYTES_MAX, Proof};

use crate::input::Input;

/// Largest tree that is built leaf by leaf.
const LEAVES_MAX: u64 = 150;

/// Largest power of two below `size`, counted up.
fn split(size: u64) -> u64 {
    let mut k = 1;
    while k < size.div_ceil(2) {
        k *= 2;
    }
    k
}

/// MTH of RFC 6962 2.1, word for word.
fn mth(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
            node_hash(&mth(left), &mth(right))
        }
    }
}

/// PATH of RFC 6962 2.1.1.
fn path(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
    let (mut out, sibling) =
        if index < left.len() { (path(index, left), mth(right)) } else { (path(index - left.len(), right), mth(left)) };
    out.push(sibling);
    out
}

/// SUBPROOF of RFC 6962 2.1.2.
fn subproof(old: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    if old == leaves.len() {
        return if whole { Vec::new() } else { vec![mth(leaves)] };
    }
    let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
    let (mut out, sibling) = if old <= left.len() {
        (subproof(old, left, whole), mth(right))
    } else {
        (subproof(old - left.len(), right, false), mth(left))
    };
    out.push(sibling);
    out
}

/// The root that a path leads to: PATH read backwards.
fn included(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if size == 1 {
        return path.is_empty().then_some(leaf);
    }
    let (sibling, below) = path.split_last()?;
    let k = split(size);
    if index < k {
        Some(node_hash(&included(leaf, index, k, below)?, sibling))
    } else {
        Some(node_hash(sibling, &included(leaf, index - k, size - k, below)?))
    }
}

/// The old and the new root that a proof leads to: SUBPROOF read backwards.
fn consistent(old: u64, new: u64, whole: bool, path: &[Hash], old_root: Hash) -> Option<(Hash, Hash)> {
    if old == new {
        return match (whole, path) {
            (true, []) => Some((old_root, old_root)),
            (false, [root]) => Some((*root, *root)),
            _ => None,
        };
    }
    let (sibling, below) = path.split_last()?;
    let k = split(new);
    if old <= k {
        let (o, n) = consistent(old, k, whole, below, old_root)?;
        Some((o, node_hash(&n, sibling)))
    } else {
        let (o, n) = consistent(old - k, new - k, false, below, old_root)?;
        Some((node_hash(sibling, &o), node_hash(sibling, &n)))
    }
}

/// Proofs of a small tree are the model's; then an altered proof over any sizes is judged as the model judges it.
pub(crate) fn merkle(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let small = input.byte().is_multiple_of(2);
    let limit = if small { LEAVES_MAX } else { COUNT_MAX };
    let size = 1 + input.u64() % limit;
    let index = input.u64() % size;
    let old = 1 + input.u64() % size;
    let alterations = input.byte() % 4;
    let leaf = leaf_hash(&index.to_le_bytes());
    let (mut inclusion, mut consistency, old_root);
    if small {
        let leaves: Vec<Hash> = (0..size).map(|i| leaf_hash(&i.to_le_bytes())).collect();
        let (i, o) = (index as usize, old as usize);
        assert_eq!(merkle::root(&leaves), mth(&leaves));
        assert_eq!(merkle::root_at(&leaves[..], old), Ok(mth(&leaves[..o])));
        assert_eq!(merkle::inclusion_proof(&leaves[..], index, size), Ok(path(i, &leaves)));
        assert_eq!(merkle::consistency_proof(&leaves[..], old, size), Ok(subproof(o, &leaves, true)));
        assert!(merkle::verify_inclusion(&leaf, index, size, &path(i, &leaves), &mth(&leaves)));
        let proof = subproof(o, &leaves, true);
        assert!(merkle::verify_consistency(old, size, &proof, &mth(&leaves[..o]), &mth(&leaves)));
        (inclusion, consistency, old_root) = (path(i, &leaves), proof, mth(&leaves[..o]));
        let mut range = CompactRange::default();
        leaves.iter().for_each(|leaf| range.push(*leaf));
        assert_eq!((range.size(), range.root()), (size, mth(&leaves)));
        assert_eq!(CompactRange::from_bytes(size, &range.to_bytes()), Some(range));
    } else {
        // As many nodes as the longest proof has, any of them.
        let node = |n: u8| leaf_hash(&[n]);
        inclusion = (0..input.byte() % 66).map(node).collect();
        consistency = (0..input.byte() % 66).map(node).collect();
        old_root = node(input.byte());
    }
    for _ in 0..alterations {
        let alter = |proof: &mut Vec<Hash>, what: u8, at: usize| match (what % 4, proof.len()) {
            (0, n) if n > 0 => proof[at % n].0[at % 32] ^= 1,
            (1, n) if n > 0 => drop(proof.remove(at % n)),
            (2, n) => proof.insert(at % (n + 1), leaf_hash(&[what])),
            (_, n) if n > 1 => proof.swap(at % n, (at + 1) % n),
            _ => {}
        };
        let (what, at) = (input.byte(), usize::from(input.byte()));
        alter(if what & 4 == 0 { &mut inclusion } else { &mut consistency }, what, at);
    }
    judged_alike(&mut input, leaf, (index, old, size), &inclusion, &consistency, old_root);
}

/// Ours and the model's judgement of proofs, with the roots that they lead to and with others.
fn judged_alike(
    input: &mut Input<'_>,
    leaf: Hash,
    (index, old, size): (u64, u64, u64),
    inclusion: &[Hash],
    consistency: &[Hash],
    old_root: Hash,
) {
    let nudge = |n: u64, by: u8| match by % 8 {
        0 => n.saturating_add(1),
        1 => n.saturating_sub(1),
        _ => n,
    };
    let (index, old, size) = (nudge(index, input.byte()), nudge(old, input.byte()), nudge(size, input.byte()));
    let other = leaf_hash(b"another root");
    let model = (index < size).then(|| included(leaf, index, size, inclusion)).flatten();
    for root in [model.unwrap_or(other), other] {
        assert_eq!(merkle::verify_inclusion(&leaf, index, size, inclusion, &root), model == Some(root));
    }
    let model = match old {
        0 => None,
        _ if old > size => None,
        _ => consistent(old, size, true, consistency, old_root),
    };
    let (found, root) = model.unwrap_or((other, other));
    for (o, n) in [(old_root, root), (found, root), (old_root, other), (other, root)] {
        let expected = match old {
            0 => o == empty_root() && consistency.is_empty(),
            _ if old > size => false,
            _ => consistent(old, size, true, consistency, o) == Some((o, n)),
        };
        assert_eq!(merkle::verify_consistency(old, size, consistency, &o, &n), expected);
    }
}

/// The statement's bytes give back every field, so that no two statements share a signature.
pub(crate) fn statement(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let statement = Statement {
        ledger_id: Hash(input.array()),
        chain: input.u32(),
        first_index: input.u64(),
        size: input.u32(),
        root: Hash(input.array()),
        last_hash: Hash(input.array()),
        registry_size: input.u64(),
        registry_head: Hash(input.array()),
    };
    let (alg, public_key, signature) = (input.byte(), input.array::<32>(), input.array::<64>());
    let mut kid = String::new();
    while !input.is_empty() && kid.len() < 80 {
        kid.push(char::from(input.byte()));
    }
    let message = statement.to_bytes(alg, &kid);
    let tail = message.strip_prefix(b"ledger/commit/v1\0").expect("the domain comes first");
    let mut rest = Input::new(tail);
    let again = Statement {
        ledger_id: Hash(rest.array()),
        chain: rest.u32(),
        first_index: rest.u64(),
        size: rest.u32(),
        root: Hash(rest.array()),
        last_hash: Hash(rest.array()),
        registry_size: rest.u64(),
        registry_head: Hash(rest.array()),
    };
    assert_eq!((again, rest.byte(), rest.u64()), (statement.clone(), alg, kid.len() as u64));
    assert_eq!(rest.piece(usize::MAX), kid.as_bytes());
    // Any key and signature get an answer; a signature of the right length and no other passes for one message only.
    if verify_ed25519(&public_key, &message, &signature) {
        assert!(!verify_ed25519(&public_key, &statement.to_bytes(alg ^ 1, &kid), &signature));
    }
    assert!(!verify_ed25519(&public_key, &message, &signature[..63]));
}

/// Files that verify under the fixtures' ledger id: no other bytes may.
const PROOFS: [&[u8]; 3] = [
    include_bytes!("../corpus/proof/order"),
    include_bytes!("../corpus/proof/keys_rotated"),
    include_bytes!("../corpus/proof/key_change"),
];

/// What is read prints to the same bytes; every input gets a verdict, and only the real files get a good one.
pub(crate) fn proof(bytes: &[u8]) {
    let decoded = Proof::decode(bytes);
    if let Ok(proof) = &decoded {
        assert!(bytes.len() <= PROOF_BYTES_MAX && Proof::is_likely(bytes));
        assert_eq!(proof.encode().as_deref(), Ok(bytes));
    }
    let trust = Hash::from_hex("9d0bc3f9486a38b7f43b055df762aab077f8bbb7e2df738049b897bdcd01b127");
    let report = verify_proof_bytes("fuzz", bytes, Demands { trust, ..Demands::default() });
    assert_eq!(report.exit() == 0, PROOFS.contains(&bytes), "{}", report.to_text());
    assert_eq!(report.reason().is_empty(), decoded.is_ok());
}
