//! `warren completion SHELL`: a script for the shell. In bash and fish it completes the
//! names of peers too, which the script asks the daemon for.

use clap_complete::Shell;

use super::args::Given;
use super::{Failure, Io, grammar};
use warren_local_api::client::Client;
use warren_local_api::endpoints::GetStatus;

/// The word in the place of a shell for which the names of the peers are printed.
pub(super) const PEERS: &str = "peers";

/// Completes the names of peers where a command takes one.
const BASH_PEERS: &str = r#"
_warren_with_peers() {
    _warren "$@"
    case "${COMP_WORDS[1]}" in
        ping|ip|nc)
            local word="${COMP_WORDS[COMP_CWORD]}"
            [[ "$word" == -* ]] || COMPREPLY+=($(compgen -W "$(warren completion peers 2>/dev/null)" -- "$word"))
            ;;
    esac
}
complete -F _warren_with_peers -o nosort -o bashdefault -o default warren 2>/dev/null ||
    complete -F _warren_with_peers -o bashdefault -o default warren
"#;
const FISH_PEERS: &str = r#"
complete -c warren -n "__fish_seen_subcommand_from ping ip nc" -f -a "(warren completion peers 2>/dev/null)"
"#;

/// Prints the first parts of the names of the peers, one on each line.
pub(super) async fn peers(client: &Client, io: &mut Io) -> Result<(), Failure> {
    let status = client
        .clone()
        .impatient()
        .call(GetStatus { peers: true })
        .await?;
    let peers = status.peer.values().filter(|peer| !peer.sharee_node);
    let mut names: Vec<&str> = peers
        .filter_map(|peer| peer.dns_name.split('.').next())
        // A name becomes part of a shell's line.
        .filter(|name| !name.is_empty() && name.bytes().all(is_plain))
        .collect();
    names.sort_unstable();
    names.into_iter().try_for_each(|name| io.say(name))
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

pub(super) fn run(given: &Given<'_>, io: &mut Io) -> Result<(), Failure> {
    let shell = match given.text("SHELL") {
        Some("bash") => Shell::Bash,
        Some("zsh") => Shell::Zsh,
        Some("fish") => Shell::Fish,
        Some("powershell") => Shell::PowerShell,
        other => return Err(Failure::usage(format_args!("unknown shell {other:?}"))),
    };
    // The generator would panic on a closed pipe, so it writes into memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar::command(), "warren", &mut script);
    let peers = match shell {
        Shell::Bash => BASH_PEERS,
        Shell::Fish => FISH_PEERS,
        _ => "",
    };
    script.extend_from_slice(peers.as_bytes());
    io.out
        .write_all(&script)
        .and_then(|()| io.out.flush())
        .map_err(Failure::output)
}
