//! From a command line to an exit code.
//!
//! `serve` runs the server; all other commands are calls of the administration API,
//! one module per subject, each with the text that it prints.

pub mod args;
mod auth_keys;
mod config;
mod dns;
mod headscale;
mod headscale_form;
mod nodes;
mod policy;
mod server;
mod session;
mod ssh_checks;
mod users;
mod yaml;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::failure::{Failure, print_error};
use crate::serve;
use args::{Cli, Configuration, Generate, Serve, Top};
use session::{Format, Session};

pub(crate) use config::reload_text;

/// Runs the program.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let args = args::normalise(headscale::rewrite(args));
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(why)) => failed(&why),
        Err(Failure::Usage(why)) => {
            print_error(&why);
            ExitCode::from(2)
        }
    }
}

fn failed(why: &str) -> ExitCode {
    print_error(why);
    ExitCode::FAILURE
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let format = match cli.output {
        Some(form) => Format::Headscale(form),
        None if cli.json => Format::Json,
        None => Format::Text,
    };
    if let Some(file) = &cli.headscale_config {
        let what = format!(
            "{} is not read; the settings are described by: warren-control serve --help",
            file.display()
        );
        if matches!(cli.command, Top::Serve(_)) {
            return Err(Failure::Usage(what));
        }
        print_error(&what);
    }
    let session = Session::new(&cli.state_dir, format);
    match cli.command {
        Top::Serve(options) => serve::run(&cli.state_dir, *options).await,
        Top::Config(command) => config::run(&session, command).await,
        Top::Reload => config::reload(&session).await,
        Top::Dns(command) => dns::run(&session, command).await,
        Top::Users(command) => users::run(&session, command).await,
        Top::Nodes(command) => nodes::run(&session, command).await,
        Top::Preauthkeys(command) => auth_keys::run(&session, command).await,
        Top::Policy(command) => policy::run(&session, command, cli.force).await,
        Top::SshChecks(command) => ssh_checks::run(&session, command).await,
        Top::Backup { folder } => server::backup(&session, &cli.state_dir, folder).await,
        Top::Restore { folder } => server::restore(&session, &cli.state_dir, folder).await,
        Top::Health => server::health(&session).await,
        Top::Debug(command) => server::debug(&session, command).await,
        Top::Version => {
            server::version(&session);
            Ok(())
        }
        Top::Configtest => {
            let flags = Box::new(Serve::default());
            config::run(&session, Configuration::Check { flags }).await
        }
        Top::Generate(Generate::PrivateKey) => {
            server::private_key(&session);
            Ok(())
        }
        Top::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "warren-control",
                &mut std::io::stdout(),
            );
            Ok(())
        }
    }
}

/// The id at the end of an address: people paste the whole one.
fn id_in(given: &str) -> String {
    given.rsplit('/').next().unwrap_or_default().to_owned()
}
