//! Rate and remaining time on a terminal, nothing elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use audit_verify::legacy::{Gauge, Unit};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

const ENTRIES: &str = "{wide_bar} {human_pos}/{human_len} entries, {msg}/s, {eta} left";
/// All entries were read; tables that follow from them, and the file as a whole, take a while.
const THEN: &str = "{spinner} {human_pos} entries judged, now what follows from them, {elapsed}";
const ROWS: &str = "{wide_bar} {msg}, {human_pos}/{human_len} read, {eta} left";
const ROWS_OF: &str = "{wide_bar} {msg}, {bytes}/{total_bytes}, {eta} left";
const ROWS_OF_UNKNOWN: &str = "{spinner} {msg}, {bytes}, {elapsed}";
const ROWS_OF_FILES: &str = "{spinner} {msg}, {human_pos} read, {elapsed}";

/// The progress of one source.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(quiet: bool) -> Bar {
        let shown = !quiet && std::io::stderr().is_terminal();
        Bar(if shown { ProgressBar::no_length() } else { ProgressBar::hidden() })
    }

    fn style(&self, template: &str) {
        // The templates are constants; should one ever not parse, the default style does as well.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.0.set_style(style);
    }

    /// Entries of a ledger: judged, and claimed by it.
    pub(crate) fn entries(&self, judged: u64, claimed: u64) {
        if self.0.is_hidden() {
            return;
        }
        self.style(if judged < claimed { ENTRIES } else { THEN });
        self.0.set_length(claimed.max(judged));
        self.0.set_position(judged);
        self.0.set_message(HumanCount(self.0.per_sec() as u64).to_string());
    }

    /// Rows of a legacy chain that were judged, and how far its source was read.
    pub(crate) fn rows(&self, judged: u64, gauge: &Gauge) {
        if self.0.is_hidden() {
            return;
        }
        let done = gauge.done();
        if self.0.position() == 0 {
            self.style(match (gauge.unit, gauge.total) {
                (Unit::Rows, Some(_)) => ROWS,
                (Unit::Bytes, Some(_)) => ROWS_OF,
                (Unit::Bytes, None) => ROWS_OF_UNKNOWN,
                (Unit::Rows | Unit::Files, _) => ROWS_OF_FILES,
            });
        }
        if let Some(total) = gauge.total {
            // A table's total is an estimate.
            self.0.set_length(total.max(done));
        }
        self.0.set_position(done);
        let rate = judged as f64 / self.0.elapsed().max(Duration::from_millis(1)).as_secs_f64();
        self.0.set_message(format!("{} rows judged, {}/s", HumanCount(judged), HumanCount(rate as u64)));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
