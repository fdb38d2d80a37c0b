//! Commands of the official client whose feature this version does not have. They are
//! named, so that a script fails with the reason and not with a usage error.

/// The commands, with what is missing and what to do instead.
const COMMANDS: &[(&str, &str)] = &[
    ("appc-routes", "app connectors are not in this version yet"),
    ("cert", "certificates are not in this version yet"),
    (
        "configure",
        "there is nothing to configure on this system: Kubernetes and the appliances are not supported",
    ),
    (
        "configure-host",
        "there is nothing to configure on this system",
    ),
    ("drive", "shared folders are not in this version yet"),
    (
        "file",
        "sending files is not in this version yet; use scp or rsync over the network",
    ),
    (
        "funnel",
        "publishing to the Internet is not in this version yet",
    ),
    ("id-token", "identity tokens are not in this version yet"),
    (
        "routecheck",
        "reachability reports are not in this version yet; ask for one connection: warren debug why DST:PORT",
    ),
    ("serve", "publishing services is not in this version yet"),
    (
        "service",
        "services of the network are not in this version yet",
    ),
    ("systray", "there is no tray program"),
    ("web", "there is no web interface; use: warren status"),
];

/// The same for what follows `debug`.
const DEBUG: &[(&str, &str)] = &[
    (
        "break-derp-conns",
        "connections are not broken on request; use: warren debug rebind",
    ),
    (
        "break-tcp-conns",
        "connections are not broken on request; use: warren debug rebind",
    ),
    (
        "capture",
        "packets are captured by the tools of the system: tcpdump -i warren0",
    ),
    (
        "clear-netmap-cache",
        "the kept netmap goes with the login: warren logout",
    ),
    (
        "component-logs",
        "the log level is chosen at the start: WARREN_LOG=debug warren daemon",
    ),
    (
        "control-knobs",
        "this node has no settings that the server changes",
    ),
    (
        "daemon-goroutines",
        "tasks are counted at /debug/tasks of: warren daemon --debug ADDRESS",
    ),
    (
        "daemon-logs",
        "the log is on standard error; under systemd: journalctl -u warren",
    ),
    ("derp", "relays are measured by: warren netcheck"),
    (
        "dial-types",
        "one connection is made by: warren nc HOST PORT",
    ),
    (
        "env",
        "the environment of the daemon is in /proc/PID/environ",
    ),
    (
        "force-netmap-update",
        "the server sends changes at once; the netmap is shown by: warren debug netmap",
    ),
    (
        "force-prefer-derp",
        "the home region follows from measurements: warren netcheck",
    ),
    ("go-buildinfo", "this is no Go program; use: warren version"),
    (
        "hostinfo",
        "the description of this machine is in the netmap: warren debug netmap",
    ),
    (
        "peer-endpoint-changes",
        "paths are shown by: warren status, and in the log with WARREN_LOG=debug",
    ),
    (
        "peer-relay-servers",
        "the relays in use are shown by: warren status",
    ),
    (
        "peer-relay-sessions",
        "the relays in use are shown by: warren status",
    ),
    (
        "pick-new-derp",
        "the home region follows from measurements: warren netcheck",
    ),
    ("portmap", "port mappings are shown by: warren netcheck"),
    ("resolve", "names are looked up by: warren dns query NAME"),
    (
        "rotate-disco-key",
        "the disco key is new after each start of the daemon",
    ),
    (
        "set-expire",
        "the server decides when keys end: warren-control nodes expire NODE",
    ),
    ("stat", "use: stat FILE"),
    (
        "ts2021",
        "the way to the server is shown by: WARREN_LOG=debug warren daemon",
    ),
    ("via", "4via6 routes are not in this version yet"),
];

/// The reason why a command line fails, in one line; `None` for other commands. `words`
/// are its words without flags, from the command on.
pub(super) fn reason<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let (table, name) = match words.next()? {
        "debug" => (DEBUG, words.next()?),
        name => (COMMANDS, name),
    };
    let found = table.iter().find(|(command, _)| *command == name);
    found.map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::grammar;

    #[test]
    fn no_command_is_both_there_and_missing() {
        for (name, why) in COMMANDS {
            assert!(grammar::command().find_subcommand(name).is_none(), "{name}");
            assert!(!why.contains('\n'), "{name}");
        }
        let command = grammar::command();
        let debug = command.find_subcommand("debug").unwrap();
        for (name, why) in DEBUG {
            assert!(debug.find_subcommand(name).is_none(), "{name}");
            assert!(!why.contains('\n'), "{name}");
        }
        let of = |line: &'static str| reason(line.split(' '));
        assert_eq!(of("status"), None);
        assert_eq!(of("debug prefs"), None);
        assert_eq!(of("debug"), None);
        assert!(of("serve 3000").is_some_and(|why| why.contains("publishing")));
        assert!(of("debug capture").is_some_and(|why| why.contains("tcpdump")));
    }
}
