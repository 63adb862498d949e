//! Taking an object apart strictly: every member is asked for by name and type, and none may be left over.

use crate::hash::Hash;
use crate::json::{Object, Value};

/// Longest `text` member, bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The first member that is missing, unknown or malformed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError(pub String);

/// Reads members of an object and remembers how many were there.
pub struct Fields<'a> {
    object: &'a Object,
    taken: Vec<&'static str>,
    fault: Option<&'static str>,
}

impl<'a> Fields<'a> {
    /// Starts on an object of which nothing has been taken.
    pub fn new(object: &'a Object) -> Self {
        Fields { object, taken: Vec::with_capacity(object.len()), fault: None }
    }

    /// Whatever the member holds.
    pub fn value(&mut self, name: &'static str) -> Option<&'a Value> {
        let found = self.object.value(name);
        if found.is_some() {
            self.taken.push(name);
        }
        found
    }

    fn fail<T>(&mut self, name: &'static str) -> Option<T> {
        self.fault.get_or_insert(name);
        None
    }

    /// An optional member read by `read`; a malformed one is a fault.
    pub fn optional<T>(&mut self, name: &'static str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.value(name)?;
        read(value).or_else(|| self.fail(name))
    }

    /// A required member read by `read`. The value given on a fault is never used: [`Fields::finish`] reports it.
    pub fn required<T: Default>(&mut self, name: &'static str, read: impl FnOnce(&'a Value) -> Option<T>) -> T {
        match self.value(name).and_then(read) {
            Some(value) => value,
            None => self.fail(name).unwrap_or_default(),
        }
    }

    /// Fails if a member was missing, malformed, or never asked for.
    pub fn finish(self) -> Result<(), FieldError> {
        if let Some(name) = self.fault {
            return Err(FieldError(name.to_owned()));
        }
        match self.object.iter().find(|(name, _)| !self.taken.contains(name)) {
            Some((name, _)) => Err(FieldError(name.chars().take(64).collect())),
            None => Ok(()),
        }
    }
}

/// Reads an object strictly: every member must be asked for.
pub(crate) fn object<T>(value: &Value, read: impl FnOnce(&mut Fields<'_>) -> T) -> Option<T> {
    let mut fields = Fields::new(value.as_object()?);
    let found = read(&mut fields);
    fields.finish().ok().map(|()| found)
}

/// An array, each item read by `read`.
pub(crate) fn list<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(read).collect()
}

/// 32 bytes as 64 lowercase hex characters.
pub(crate) fn hash(value: &Value) -> Option<Hash> {
    Hash::from_hex(value.as_str()?)
}

/// A string of at most [`TEXT_BYTES_MAX`] bytes.
pub fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|s| s.len() <= TEXT_BYTES_MAX).map(str::to_owned)
}

/// A string of 1 to [`TEXT_BYTES_MAX`] bytes.
pub fn text1(value: &Value) -> Option<String> {
    text(value).filter(|s| !s.is_empty())
}

/// 64 lowercase hex characters.
pub fn hex64(value: &Value) -> Option<String> {
    value.as_str().filter(|s| Hash::from_hex(s).is_some()).map(str::to_owned)
}

/// An integer from 0.
pub fn count(value: &Value) -> Option<u64> {
    value.as_int().and_then(|n| u64::try_from(n).ok())
}
