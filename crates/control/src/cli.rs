//! From a command line to an exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::admin::{self, Command};
use crate::args::{self, Cli, Debugging, Nodes, Preauthkeys, SshChecks, Top, Users};
use crate::failure::{Failure, print};
use crate::output::{self, Hints};
use crate::policy_cli;
use crate::serve;

/// Runs the program.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args::normalise(args)) {
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
            eprintln!("warren-control: {why}");
            ExitCode::from(2)
        }
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("warren-control: {why}");
    ExitCode::FAILURE
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let command = match cli.command {
        Top::Serve(options) => return serve::run(&cli.state_dir, *options).await,
        Top::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "warren-control",
                &mut std::io::stdout(),
            );
            return Ok(());
        }
        Top::Policy(policy) => return policy_cli::run(&cli.state_dir, cli.json, policy).await,
        Top::Users(users) => match users {
            Users::Create { name } => Command::UsersCreate { name },
            Users::List => Command::UsersList,
            Users::Rename { name, new_name } => Command::UsersRename { name, new_name },
            Users::SetRole { name, role } => Command::UsersSetRole { name, role },
            Users::Delete { name } => Command::UsersDelete { name },
        },
        Top::Nodes(nodes) => match nodes {
            Nodes::List { user } => Command::NodesList { user },
            Nodes::Show { node } => Command::NodesShow { node },
            Nodes::Rename { node, name } => Command::NodesRename { node, name },
            Nodes::Expire { node } => Command::NodesExpire { node },
            Nodes::Delete { node } => Command::NodesDelete { node },
            Nodes::Waiting => Command::NodesWaiting,
            Nodes::Approve {
                id,
                key,
                user,
                tags,
            } => Command::NodesApprove {
                id: id_in(&id.or(key).unwrap_or_default()),
                user,
                tags: args::set(tags, Vec::new()),
            },
            Nodes::Routes { node } => Command::NodesRoutes { node },
            Nodes::ApproveRoutes { node, routes, more } => Command::NodesApproveRoutes {
                node,
                routes: args::set(routes, more).into_iter().collect(),
            },
            Nodes::Tag { node, tags, more } => Command::NodesTag {
                node,
                tags: args::set(tags, more),
            },
        },
        Top::Preauthkeys(keys) => match keys {
            Preauthkeys::Create {
                user,
                reusable,
                ephemeral,
                tags,
                expiry,
            } => Command::PreauthkeysCreate {
                user,
                reusable,
                ephemeral,
                tags: args::set(tags, Vec::new()),
                lifetime: expiry.as_secs(),
            },
            Preauthkeys::List => Command::PreauthkeysList,
            Preauthkeys::Expire { id } => Command::PreauthkeysExpire { id },
        },
        Top::SshChecks(checks) => match checks {
            SshChecks::List => Command::SshChecksList,
            SshChecks::Approve { id } => Command::SshChecksApprove { id: id_in(&id) },
            SshChecks::Deny { id } => Command::SshChecksDeny { id: id_in(&id) },
        },
        Top::Health => Command::Health,
        Top::Debug(Debugging::C2n { node, path, data }) => Command::DebugC2n { node, path, data },
    };
    let hints = Hints::new(&cli.state_dir);
    let answer = admin::ask(&cli.state_dir, &command).await;
    let answer = answer.map_err(|error| Failure::Failed(hints.complete(&error.to_string())))?;
    let text = if cli.json {
        format!("{}\n", serde_json::to_string_pretty(&answer)?)
    } else {
        let now = jiff::Timestamp::now();
        hints.complete(&output::render(&command, &answer, now)?)
    };
    print(text);
    if matches!(command, Command::DebugC2n { .. }) && answer["status"].as_u64() >= Some(400) {
        return Err(Failure::Failed("the node refused the request".to_owned()));
    }
    let unhealthy = matches!(command, Command::Health) && answer["status"] != "pass";
    if unhealthy {
        Err(Failure::Failed("the server is unhealthy".to_owned()))
    } else {
        Ok(())
    }
}

/// The id at the end of an address: people paste the whole one.
fn id_in(given: &str) -> String {
    given.rsplit('/').next().unwrap_or_default().to_owned()
}
