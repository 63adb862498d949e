use std::path::PathBuf;
use std::process::ExitCode;

use crate::CliError;
use crate::serve::{self, Args, Settings};
use crate::{error, output, signers};

/// Runs the server on a runtime of its own: the framework wants one thread for each worker.
pub(crate) fn run(
    dir: Option<PathBuf>,
    database: Option<String>,
    json: bool,
    args: Args,
    signing: signers::Args,
) -> ExitCode {
    match start((dir, database), args, signing) {
        Ok(code) => ExitCode::from(code),
        Err(e) => error::report(&e, None, json),
    }
}

fn start(given: (Option<PathBuf>, Option<String>), args: Args, signing: signers::Args) -> Result<u8, CliError> {
    let check_only = args.check_config;
    let settings = Settings::read(given, args, signing)?;
    if check_only {
        let place = actix_web::rt::System::new().block_on(serve::check(&settings))?;
        output::line(place.trim_end())?;
        output::line(settings.to_string().trim_end())?;
        output::line("the settings are good")?;
        return Ok(0);
    }
    let system = actix_web::rt::System::new();
    let ended = system.block_on(serve::run(settings));
    // To be dropped it would wait for every thread that waits for a file. What had to be finished is.
    std::mem::forget(system);
    ended
}
