//! The genesis entry: what a ledger is, pinned by its id (FORMAT.md 4).

use crate::body::{BODY_BYTES_MAX, Body};
use crate::commit::{COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX};
use crate::domain::fields::{FieldError, Fields, count, text1};
use crate::hash::{Hash, from_hex, sha256, to_hex};
use crate::json::{Object, Value};
use crate::registry::{Key, Purpose};
use crate::succession::Succession;

/// Most chains of a ledger.
pub const CHAINS_MAX: u32 = 1024;
const ROUTING: &str = "sha256-case/v1";

/// Size limits; the format's constants are the ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest body, bytes.
    pub body_bytes: usize,
    /// Largest private document, bytes.
    pub private_bytes: usize,
    /// Most entries in one commit.
    pub commit_entries: usize,
    /// Most bytes in one commit.
    pub commit_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes: BODY_BYTES_MAX,
            private_bytes: BODY_BYTES_MAX,
            commit_entries: COMMIT_ENTRIES_MAX,
            commit_bytes: COMMIT_BYTES_MAX,
        }
    }
}

/// Everything the genesis body fixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// Base of checkpoint origins.
    pub origin: String,
    /// How many chains, 1 to [`CHAINS_MAX`].
    pub chains: u32,
    /// Size limits.
    pub limits: Limits,
    /// Authorises every later key.
    pub governance_key: Key,
    /// Signs the first commits.
    pub commit_key: Key,
    /// Signs the first checkpoints.
    pub checkpoint_key: Key,
    /// Makes the id unique.
    pub nonce: [u8; 16],
    /// The ledger that this one takes the place of, if it lost entries.
    pub succeeds: Option<Succession>,
}

impl Genesis {
    /// The genesis body of chain 0.
    pub fn to_body(&self) -> Body {
        let int = |n: usize| Value::Int(n as i64);
        let limits = Object::new()
            .with("body_bytes", int(self.limits.body_bytes))
            .with("private_bytes", int(self.limits.private_bytes))
            .with("commit_entries", int(self.limits.commit_entries))
            .with("commit_bytes", int(self.limits.commit_bytes));
        let mut payload = Object::new()
            .with("chains", i64::from(self.chains))
            .with("origin", self.origin.as_str())
            .with("routing", ROUTING)
            .with("nonce", to_hex(&self.nonce))
            .with("limits", limits)
            .with("governance_key", self.governance_key.to_object())
            .with("commit_key", self.commit_key.to_object())
            .with("checkpoint_key", self.checkpoint_key.to_object());
        payload.set_some("succeeds", self.succeeds.as_ref().map(Succession::to_object));
        Body { actor_id: "system".into(), payload, private_sha256: None, meta: None }
    }

    /// Reads the genesis payload; `None` names no reason because a genesis is pinned as a whole.
    pub fn read(payload: &Object) -> Option<Genesis> {
        Self::read_fields(payload).ok().filter(|g| g.to_body().payload == *payload)
    }

    fn read_fields(payload: &Object) -> Result<Genesis, FieldError> {
        let mut f = Fields::new(payload);
        let key = |f: &mut Fields<'_>, name, purpose| {
            let key = f.required(name, |v| Key::read(v).filter(|k| k.purpose == purpose).map(Some));
            key.ok_or_else(|| FieldError(name.to_owned()))
        };
        let genesis = Genesis {
            origin: f.required("origin", |v| text1(v).filter(|o| is_origin(o))),
            chains: f.required("chains", |v| {
                count(v).and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=CHAINS_MAX).contains(n))
            }),
            limits: f.required("limits", |v| read_limits(v.as_object()?)),
            governance_key: key(&mut f, "governance_key", Purpose::Governance)?,
            commit_key: key(&mut f, "commit_key", Purpose::Commit)?,
            checkpoint_key: key(&mut f, "checkpoint_key", Purpose::Checkpoint)?,
            nonce: f.required("nonce", |v| from_hex(v.as_str()?)?.try_into().ok()),
            succeeds: f.optional("succeeds", Succession::read),
        };
        f.required("routing", |v| v.as_str().filter(|r| *r == ROUTING).map(|_| ()));
        f.finish().map(|()| genesis)
    }

    /// `SHA-256("ledger/id/v1\0" ‖ genesis body)`.
    pub fn ledger_id(body: &[u8]) -> Hash {
        sha256(&[b"ledger/id/v1\0", body])
    }

    /// The genesis keys in registry order.
    pub fn keys(&self) -> [Key; 3] {
        [self.governance_key.clone(), self.commit_key.clone(), self.checkpoint_key.clone()]
    }
}

/// Whether a text may be the base of checkpoint origins.
pub fn is_origin(text: &str) -> bool {
    (1..=200).contains(&text.len()) && !text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
}

fn read_limits(object: &Object) -> Option<Limits> {
    let limit = |name, max: usize| {
        let n = usize::try_from(object.value(name)?.as_int()?).ok()?;
        (1..=max).contains(&n).then_some(n)
    };
    let ceiling = Limits::default();
    let limits = Limits {
        body_bytes: limit("body_bytes", ceiling.body_bytes)?,
        private_bytes: limit("private_bytes", ceiling.private_bytes)?,
        commit_entries: limit("commit_entries", ceiling.commit_entries)?,
        commit_bytes: limit("commit_bytes", ceiling.commit_bytes)?,
    };
    (object.len() == 4).then_some(limits)
}
