//! Printing: one line at a time to standard output, errors of which are errors of the command.

use std::io::Write as _;

use crate::CliError;

/// Writes a line to standard output.
pub(crate) fn line(text: &str) -> Result<(), CliError> {
    writeln!(std::io::stdout().lock(), "{text}").map_err(|e| CliError::Io("standard output".into(), e))
}

/// Keeps hostile text from moving the cursor or colouring a terminal: control characters become escapes.
pub(crate) fn safe(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
