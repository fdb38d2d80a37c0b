//! All commands and their flags, with the help that is shown for them.

use clap::{Arg, ArgAction, Command};

use super::args::{switch, value};
use super::pref_flags;

fn positional(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .value_name(name)
        .action(ArgAction::Set)
        .help(help)
}

fn timeout(help: &'static str) -> Arg {
    value("timeout", "DURATION", help)
}

fn json() -> Arg {
    switch("json", "print JSON")
}

/// Flags that `up` and `login` have beside the preferences.
fn login_flags() -> Vec<Arg> {
    vec![
        value(
            "auth-key",
            "KEY",
            "key that admits this machine, or file:PATH to read it from",
        ),
        timeout("how long to wait until connected; 0: for ever"),
        value("accept-risk", "LIST", "risks to take without asking").hide(true),
    ]
}

/// The whole grammar.
pub(super) fn command() -> Command {
    Command::new("warren")
        .about("A private network between your machines.")
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            value(
                "socket",
                "PATH",
                "the daemon's socket [default: /var/run/warren/warren.sock]",
            )
            .global(true)
            .env("WARREN_SOCKET")
            .hide_env_values(true),
        )
        .subcommand(
            Command::new("up")
                .about("Connect, logging in if needed")
                .args(login_flags())
                .args(pref_flags::args(pref_flags::For::Up))
                .arg(switch(
                    "reset",
                    "set what is not mentioned back to its default",
                ))
                .arg(switch(
                    "force-reauth",
                    "log in again even if the key is still good",
                ))
                .arg(json()),
        )
        .subcommand(
            Command::new("login")
                .about("Log in, in a browser or with a key")
                .args(login_flags())
                .args(pref_flags::args(pref_flags::For::Up))
                .arg(value("nickname", "NAME", "name for this login")),
        )
        .subcommand(
            Command::new("set")
                .about("Change single settings")
                .args(pref_flags::args(pref_flags::For::Set))
                .arg(value("nickname", "NAME", "name for this login"))
                .arg(value("accept-risk", "LIST", "risks to take without asking").hide(true)),
        )
        .subcommand(
            Command::new("down")
                .about("Disconnect, staying logged in")
                .arg(value("reason", "TEXT", "why, for the network's log"))
                .arg(value("accept-risk", "LIST", "risks to take without asking").hide(true)),
        )
        .subcommand(
            Command::new("logout")
                .about("Disconnect and expire this machine's key")
                .arg(value("reason", "TEXT", "why, for the network's log")),
        )
        .subcommand(
            Command::new("status")
                .about("Show this machine and its peers")
                .arg(json())
                .arg(switch("active", "only peers with traffic"))
                .arg(switch("self", "show this machine (default true)"))
                .arg(switch("peers", "show peers (default true)"))
                .arg(switch("header", "show column names")),
        )
        .subcommand(
            Command::new("ping")
                .about("Ping a machine and show the path that is taken")
                .arg(value("c", "N", "pings to send at most; 0: no end").default_value("10"))
                .arg(timeout("how long to wait for each reply").default_value("5s"))
                .arg(value("size", "BYTES", "size of the ping; 0: the smallest").default_value("0"))
                .arg(switch(
                    "until-direct",
                    "stop once the path is direct (default true)",
                ))
                .arg(switch(
                    "tsmp",
                    "through the tunnel, answered by the other daemon",
                ))
                .arg(switch(
                    "icmp",
                    "through the tunnel, answered by the other system",
                ))
                .arg(switch("peerapi", "by the other daemon's peer interface"))
                .arg(switch("verbose", "say more"))
                .arg(positional("HOST", "name or address").required(true)),
        )
        .subcommand(
            Command::new("ip")
                .about("Show addresses in the network")
                .arg(switch("1", "only one"))
                .arg(switch("4", "only IPv4"))
                .arg(switch("6", "only IPv6"))
                .arg(value(
                    "assert",
                    "IP",
                    "fail unless this is an address of this machine",
                ))
                .arg(positional("PEER", "name or address; default: this machine")),
        )
        .subcommand(
            Command::new("whois")
                .about("Show whose address it is")
                .arg(json())
                .arg(
                    value("proto", "PROTO", "tcp or udp")
                        .value_parser(["tcp", "udp"])
                        .hide(true),
                )
                .arg(positional("IP[:PORT]", "an address in the network").required(true)),
        )
        .subcommand(
            Command::new("netcheck")
                .about("Show how this machine is connected to the Internet")
                .arg(value(
                    "format",
                    "FORMAT",
                    "empty for text, json or json-line",
                ))
                .arg(switch("verbose", "say more")),
        )
        .subcommand(
            Command::new("version")
                .about("Show the version")
                .arg(json())
                .arg(switch("daemon", "ask the daemon too")),
        )
        .subcommand(
            Command::new("wait")
                .about("Wait until connected")
                .arg(timeout("how long; 0: for ever").default_value("0")),
        )
        .subcommand(
            Command::new("debug")
                .about("Look inside: the packet filter, and why a connection may not work")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(
                    Command::new("filter")
                        .about("Show the packet filter's rules, with what they let in and what was dropped")
                        .arg(json()),
                )
                .subcommand(
                    Command::new("why")
                        .about("Say whether a connection may work, as far as this machine can tell; \
                                exit code 1: something here blocks it")
                        .arg(json())
                        .arg(value("from", "PEER", "ask for a connection from there to this machine"))
                        .arg(
                            value("proto", "PROTO", "tcp, udp, sctp, icmp or a number")
                                .default_value("tcp"),
                        )
                        .arg(positional("DST:PORT", "name or address, and port").required(true)),
                ),
        )
        .subcommand(
            Command::new("completion")
                .about("Print a script that completes commands")
                .arg(
                    positional("SHELL", "bash, zsh, fish or powershell")
                        .required(true)
                        .value_parser(["bash", "zsh", "fish", "powershell"]),
                ),
        )
        .subcommand(
            Command::new("daemon")
                .about("Run the daemon, in the foreground")
                .arg(value(
                    "state-dir",
                    "DIR",
                    "folder for keys, settings and the last netmap [default: /var/lib/warren, or \
                     ~/.local/state/warren without root]",
                ))
                .arg(value(
                    "state",
                    "FILE",
                    "file for keys and settings [default: warren.state in the folder]",
                ))
                .arg(value("port", "N", "UDP port; 0: any").default_value("0"))
                .arg(value("tun", "NAME", "network interface to make").default_value("warren0"))
                .arg(value("verbose", "LEVEL", "how much to log, 0 to 2").default_value("0"))
                .arg(switch(
                    "cleanup",
                    "undo what a killed daemon left in the system, and exit",
                )),
        )
}
