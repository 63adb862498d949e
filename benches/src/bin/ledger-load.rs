//! Appends whole orders by concurrent callers and prints the rate of every step, and the peak memory at the end.
//!
//! `ledger-load DIR ENTRIES [CALLERS] [STEP]`: long runs that a bench harness would repeat too often.

use std::time::Instant;

use ledger_benches::{ENTRIES_PER_ORDER, create, parsed, run_parsed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| args.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let Some(dir) = args.first() else {
        eprintln!("usage: ledger-load DIR ENTRIES [CALLERS] [STEP]");
        std::process::exit(2);
    };
    let (entries, callers, step) = (number(1, 100_000), number(2, 256), number(3, 100_000));
    std::fs::create_dir_all(dir).expect("a directory");
    let ledger = create(std::path::Path::new(dir)).await;
    let mut done = 0;
    while done < entries {
        let orders = step / ENTRIES_PER_ORDER;
        // Commands are made beforehand, in portions, so that their making is neither timed nor kept.
        let (mut seconds, mut made) = (0.0, 0);
        while made < orders {
            let portion = (orders - made).min(2048);
            let commands = parsed(1, done / ENTRIES_PER_ORDER + made, portion);
            let start = Instant::now();
            run_parsed(&ledger, commands, callers).await;
            seconds += start.elapsed().as_secs_f64();
            made += portion;
        }
        done += orders * ENTRIES_PER_ORDER;
        println!("{done} entries: {:.0}/s", (orders * ENTRIES_PER_ORDER) as f64 / seconds);
    }
    ledger.shutdown().await.expect("a clean end");
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("VmHWM unknown"));
}
