//! Files that are read whole, as long as none of them can be.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Reads a file of at most `most` bytes. Of what is longer, or has no end, such as a device, no more than that is read; the error says `what` it
/// is not.
pub(crate) fn read(path: &Path, most: u64, what: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("over {most} bytes, too large for {what}")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn what_has_no_end_is_too_large() {
        assert!(read("/dev/zero".as_ref(), 1 << 20, "a key").unwrap_err().to_string().contains("too large for a key"));
        assert_eq!(read("/dev/null".as_ref(), 0, "a key").unwrap(), b"");
    }
}
