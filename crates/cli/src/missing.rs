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

/// The reason why a command fails, in one line; `None` for other commands.
pub(super) fn reason(name: &str) -> Option<&'static str> {
    let found = COMMANDS.iter().find(|(command, _)| *command == name);
    found.map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar;

    #[test]
    fn no_command_is_both_there_and_missing() {
        for (name, why) in COMMANDS {
            assert!(grammar::command().find_subcommand(name).is_none(), "{name}");
            assert!(!why.contains('\n'), "{name}");
        }
        assert_eq!(reason("status"), None);
    }
}
