//! `kiln completions`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Failure};

/// Print a shell completion script
///
/// For bash: kiln completions bash > /etc/bash_completion.d/kiln
#[derive(Debug, Args)]
#[command(display_order = 50)]
pub struct CompletionsArgs {
    shell: Shell,
}

pub fn run(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kiln", &mut script);
    // A reader that had enough, as in `kiln completions bash | head`, is no failure.
    let _ = std::io::stdout().write_all(&script);
    Ok(ExitCode::SUCCESS)
}
