//! `orlop`: the command line. Knows the typed client and nothing of the daemon.
//!
//! Puts grammar, connection and rendering together, and turns the outcome into an exit code: 0, 2 for a
//! wrong command line, and otherwise that of the kind of error.

mod connect;
mod grammar;
mod progress;
mod render;
mod run;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use orlop_api::{ErrorKind, Problem};

use grammar::Command;
use render::Format;

/// Disks on an Orlop appliance.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, about, propagate_version = true)]
struct Cli {
    /// How to print: tables for people, JSON (the API's shapes) for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    connection: connect::Options,
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "orlop", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(Box::pin(go(cli))),
        Err(e) => Err(Problem::new(ErrorKind::Internal, format!("cannot start: {e}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // Standard error is all there is to complain on.
            let _ = std::io::stderr().write_all(render::problem(&problem).as_bytes());
            ExitCode::from(problem.kind.exit_code())
        }
    }
}

#[allow(clippy::result_large_err)] // Once a process.
async fn go(cli: Cli) -> Result<(), Problem> {
    let client = connect::client(&cli.connection)?;
    match cli.command {
        Command::Watch { after } => run::watch(&client, after, cli.output).await,
        command => {
            let answer = progress::shown(run::call(&client, command)).await?;
            print(&render::answer(&answer, cli.output))
        }
    }
}

/// To standard output. A reader that went away (`| head`) is no error.
#[allow(clippy::result_large_err)]
fn print(text: &str) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Problem::new(ErrorKind::Internal, format!("cannot print: {e}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_names_are_usage_errors() {
        for line in [
            "orlop volume get a/b",
            "orlop volume create data --pool tank --size 10X",
            "orlop volume create data --pool tank",
            "orlop host put w --nqn iqn.x",
            "orlop pool create tank --kind tape",
            "orlop pool create tank --kind file --disk vdb --directory /x",
            "orlop attach data",
            "orlop orphan adopt 0123456789abcdef.tank",
            "orlop orphan adopt x --name data",
            "orlop orphan remove 0123456789ABCDEF",
        ] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
