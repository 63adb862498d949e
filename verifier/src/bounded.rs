//! Files that are read whole, as long as none of them can be.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Opens what must be a file: a pipe in the place of one would be waited for without end, and a device may have none.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("a pipe, a device or a directory where a file should be"));
    }
    File::open(path)
}

/// Reads a file of at most `most` bytes. Of what is longer, or has no end, such as a device, no more than that is read; the error says `what` it
/// is not.
pub(crate) fn read(path: &Path, most: u64, what: &str) -> io::Result<Vec<u8>> {
    whole(File::open(path)?, most, what)
}

/// The same of a file that is open.
pub(crate) fn whole(file: File, most: u64, what: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("over {most} bytes, too large for {what}")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{open, read};

    #[test]
    fn only_files_are_opened() {
        for path in ["/dev/zero", "/dev"] {
            assert!(open(path.as_ref()).unwrap_err().to_string().contains("where a file should be"));
        }
        assert_eq!(open("/nowhere/at/all".as_ref()).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn what_has_no_end_is_too_large() {
        assert!(read("/dev/zero".as_ref(), 1 << 20, "a key").unwrap_err().to_string().contains("too large for a key"));
        assert_eq!(read("/dev/null".as_ref(), 0, "a key").unwrap(), b"");
    }
}
