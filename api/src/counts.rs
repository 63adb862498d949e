//! Counters of a job that ends: kept in a file for a textfile collector of Prometheus.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::CliError;

const SUCCESS: &str = "marketplace_audit_export_success_total";
const FAILURE: &str = "marketplace_audit_export_failure_total";
const LAST: &str = "marketplace_audit_export_last_success_timestamp_seconds";

/// Counts an export that ended.
pub(crate) fn export(path: &Path, succeeded: bool) -> Result<(), CliError> {
    let failed = |e| CliError::Io(path.display().to_string(), e);
    let before = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(failed(e)),
    };
    let value = |name: &str| {
        let line = before.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let values = [
        (SUCCESS, "counter", "Exports that are there, read back and recorded.", value(SUCCESS) + u64::from(succeeded)),
        (FAILURE, "counter", "Exports that are not done.", value(FAILURE) + u64::from(!succeeded)),
        (LAST, "gauge", "When the last export was done.", if succeeded { now } else { value(LAST) }),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in values {
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"));
    }
    // The collector may read at any moment.
    let beside = path.with_extension("prom.new");
    let write = || {
        let mut file = fs::File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&beside, path)
    };
    write().map_err(failed)
}
