//! All commands and their flags, with the help that is shown for them.

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, ArgAction, Command};

use super::args::{switch, value};
use super::{completion, pref_flags};

/// The whole grammar.
pub(super) fn command() -> Command {
    let socket = value(
        "socket",
        "PATH",
        "the daemon's socket [default: /var/run/warren/warren.sock]",
    );
    Command::new("warren")
        .about("A private network between your machines.")
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            socket
                .global(true)
                .env("WARREN_SOCKET")
                .hide_env_values(true),
        )
        .subcommands([up(), login(), set(), down(), logout()])
        .subcommands([
            status(),
            ping(),
            ip(),
            whois(),
            netcheck(),
            version(),
            wait(),
        ])
        .subcommands([
            get(),
            switch_account(),
            whoami(),
            dns(),
            exit_node(),
            lock(),
            metrics(),
            bug_report(),
            nc(),
            ssh(),
        ])
        .subcommands([licenses(), update(), syspolicy()])
        .subcommands([debug(), completion(), container(), daemon()])
}

// ---- arguments that several commands have ----

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

fn reason() -> Arg {
    value("reason", "TEXT", "the reason, for the network's log")
}

fn nickname() -> Arg {
    value("nickname", "NAME", "name for this login")
}

fn accept_risk() -> Arg {
    value("accept-risk", "LIST", "risks to take without a question").hide(true)
}

fn verbose() -> Arg {
    switch("verbose", "print more details")
}

// ---- login and settings ----

/// Flags that `up` and `login` have in addition to the preferences.
fn login_flags() -> [Arg; 3] {
    [
        value(
            "auth-key",
            "KEY",
            "key that admits this machine, or file:PATH to read it from",
        ),
        timeout("how long to wait until connected; 0: no limit"),
        accept_risk(),
    ]
}

fn up() -> Command {
    Command::new("up")
        .about("Connect, logging in if needed")
        .args(login_flags())
        .args(pref_flags::args(pref_flags::For::Up))
        .arg(switch(
            "reset",
            "reset settings that are not mentioned to their defaults",
        ))
        .arg(switch(
            "force-reauth",
            "log in again even if the key is still valid",
        ))
        .arg(json())
}

fn login() -> Command {
    Command::new("login")
        .about("Log in, in a browser or with a key")
        .args(login_flags())
        .args(pref_flags::args(pref_flags::For::Up))
        .arg(nickname())
}

fn set() -> Command {
    Command::new("set")
        .about("Change single settings")
        .args(pref_flags::args(pref_flags::For::Set))
        .args([nickname(), accept_risk()])
}

fn down() -> Command {
    Command::new("down")
        .about("Disconnect, staying logged in")
        .args([reason(), accept_risk()])
}

fn logout() -> Command {
    Command::new("logout")
        .about("Disconnect and expire this machine's key")
        .arg(reason())
}

// ---- the node and its network ----

fn status() -> Command {
    Command::new("status")
        .about("Show this machine and its peers")
        .args([
            json(),
            switch("active", "only peers with traffic"),
            switch("self", "show this machine (default true)"),
            switch("peers", "show peers (default true)"),
            switch("header", "show column names"),
        ])
}

fn ping() -> Command {
    Command::new("ping")
        .about("Ping a machine and show the path that is taken")
        .args([
            value("c", "N", "pings to send at most; 0: no limit").default_value("10"),
            timeout("how long to wait for each reply").default_value("5s"),
            value("size", "BYTES", "size of the ping; 0: the smallest").default_value("0"),
            switch(
                "until-direct",
                "stop once the path is direct (default true)",
            ),
            switch("tsmp", "through the tunnel, answered by the other daemon"),
            switch("icmp", "through the tunnel, answered by the other system"),
            switch("peerapi", "by the other daemon's peer interface"),
            verbose(),
            positional("HOST", "name or address").required(true),
        ])
}

fn ip() -> Command {
    Command::new("ip")
        .about("Show addresses in the network")
        .args([
            switch("1", "only one"),
            switch("4", "only IPv4"),
            switch("6", "only IPv6"),
            value(
                "assert",
                "IP",
                "fail unless this is an address of this machine",
            ),
            positional("PEER", "name or address; default: this machine"),
        ])
}

fn whois() -> Command {
    let protocol = value("proto", "PROTO", "tcp or udp").value_parser(["tcp", "udp"]);
    Command::new("whois")
        .about("Show the machine and the user that have an address")
        .args([
            json(),
            protocol.hide(true),
            positional("IP[:PORT]", "an address in the network").required(true),
        ])
}

fn netcheck() -> Command {
    Command::new("netcheck")
        .about("Show how this machine is connected to the Internet")
        .arg(value(
            "format",
            "FORMAT",
            "empty for text, json or json-line",
        ))
        .arg(verbose())
}

fn version() -> Command {
    Command::new("version")
        .about("Show the version")
        .args([json(), switch("daemon", "ask the daemon too")])
}

fn wait() -> Command {
    Command::new("wait")
        .about("Wait until connected")
        .arg(timeout("how long; 0: no limit").default_value("0"))
}

fn get() -> Command {
    Command::new("get")
        .about("Show settings, by the names of the flags of set")
        .args([
            json(),
            switch(
                "set-flags",
                "print the flags of set that make these settings",
            ),
            positional("NAME", "a setting; default: all"),
        ])
}

fn switch_account() -> Command {
    Command::new("switch")
        .about("List the logins of this machine, and choose one")
        .args([
            switch("list", "list the logins"),
            json(),
            positional(
                "ACCOUNT",
                "id, network, account or name of a login; or: remove",
            ),
            positional("NAME", "with remove: the login to remove here"),
        ])
}

fn whoami() -> Command {
    Command::new("whoami")
        .about("Show this machine, its user and its network")
        .arg(json())
}

fn dns() -> Command {
    let status = Command::new("status")
        .about("Show the DNS settings of the network")
        .args([json(), switch("all", "show every part")]);
    let query = Command::new("query")
        .about("Ask the name server of the daemon")
        .args([
            positional("NAME", "a DNS name").required(true),
            positional("TYPE", "A or AAAA; default: A"),
        ]);
    Command::new("dns")
        .about("Show and test how names are resolved")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([status, query])
}

fn exit_node() -> Command {
    let list = Command::new("list")
        .about("List the machines that offer to be an exit node")
        .arg(value("filter", "COUNTRY", "only those in this country"));
    let suggest = Command::new("suggest")
        .about("Suggest an exit node")
        .hide(true);
    Command::new("exit-node")
        .about("Show exit nodes")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([list, suggest])
}

fn keys(help: &'static str) -> Arg {
    Arg::new("KEY")
        .value_name("KEY")
        .num_args(1..)
        .required(true)
        .help(help)
}

fn lock() -> Command {
    const TRUSTED: &str = "keys of nodes, tlpub:HEX or tlpub:HEX?VOTES; `warren lock` shows them";
    let init = Command::new("init").about("Turn tailnet lock on").args([
        value("gen-disablements", "N", "disablement secrets to make").default_value("1"),
        switch(
            "gen-disablement-for-support",
            "make another secret and send it to the coordination server",
        ),
        switch("confirm", "do it; without it, only show what would be done"),
        keys("keys to trust, tlpub:HEX or tlpub:HEX?VOTES, or values, disablement:HEX"),
    ]);
    let status = Command::new("status")
        .about("Show tailnet lock (the default)")
        .arg(json());
    let add = Command::new("add")
        .about("Trust more keys")
        .arg(keys(TRUSTED));
    let remove = Command::new("remove").about("Trust keys no more").args([
        switch(
            "re-sign",
            "sign the nodes again that they signed (default true)",
        ),
        keys(TRUSTED),
    ]);
    let sign = Command::new("sign")
        .about("Sign a node, or an auth key")
        .arg(keys(
            "a node key and the node's tailnet lock key, or an auth key; or file:PATH",
        ));
    let disable = Command::new("disable")
        .about("Turn tailnet lock off for all nodes")
        .arg(positional("SECRET", "disablement-secret:HEX").required(true));
    let value_of = Command::new("disablement-kdf")
        .about("Show the public value of a disablement secret")
        .arg(positional("HEX", "the secret").required(true));
    let log = Command::new("log")
        .about("Show the changes of tailnet lock, the newest first")
        .args([
            value("limit", "N", "changes to show at most").default_value("50"),
            json(),
        ]);
    let local = Command::new("local-disable")
        .about("Turn tailnet lock off on this machine only, which then accepts unsigned nodes");
    let revoke = Command::new("revoke-keys")
        .about("Revoke keys that were stolen, together with other trusted nodes")
        .args([
            switch("cosign", "sign a revocation of another node too"),
            switch("finish", "send a revocation to all nodes"),
            value(
                "fork-from",
                "HASH",
                "the last update that stays in effect; default: found",
            ),
            keys("the keys, tlpub:HEX; or what the command before printed"),
        ]);
    let autosign = Command::new("autosign")
        .about("Sign nodes by their tags, without a person")
        .args([
            value("tag", "TAG", "sign nodes that have none but these tags")
                .action(ArgAction::Append),
            switch("off", "sign no nodes by tags"),
        ]);
    Command::new("lock")
        .about("Show and change tailnet lock: which nodes may join")
        .subcommands([
            init, status, add, remove, sign, disable, value_of, log, local, revoke, autosign,
        ])
}

fn metrics() -> Command {
    let file = positional("FILE", "the file; it is replaced as a whole").required(true);
    Command::new("metrics")
        .about("Show the counters of the daemon, for Prometheus")
        .subcommands([
            Command::new("print").about("Print them (the default)"),
            Command::new("write")
                .about("Write them into a file")
                .arg(file),
        ])
}

fn bug_report() -> Command {
    Command::new("bugreport")
        .about("Write a marker into the daemon's log, and print it")
        .args([
            switch("diagnose", "accepted for compatibility").hide(true),
            switch("record", "write a second marker when Enter is pressed"),
            positional("NOTE", "a note for the log"),
        ])
}

fn nc() -> Command {
    Command::new("nc")
        .about("Connect standard input and output to a port of a machine")
        .args([
            positional("HOST", "name or address").required(true),
            positional("PORT", "TCP port").required(true),
        ])
}

fn ssh() -> Command {
    Command::new("ssh")
        .about("Open a shell on a machine, with the system's ssh")
        .args([
            positional(
                "HOST",
                "name or address, with USER@ in front for another user",
            )
            .required(true),
            positional("ARGUMENTS", "the command, and options of ssh")
                .num_args(0..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true),
        ])
}

fn licenses() -> Command {
    Command::new("licenses").about("Show the licenses of this program")
}

fn update() -> Command {
    Command::new("update")
        .about("Show how this program is updated")
        .args([
            switch("check", "only show"),
            switch("dry-run", "only show").hide(true),
            switch("yes", "accepted for compatibility").hide(true),
        ])
}

fn syspolicy() -> Command {
    Command::new("syspolicy")
        .about("Show settings of the operating system's administrator")
        .subcommands(["list", "reload"].map(|name| Command::new(name).arg(json())))
}

/// The state of the daemon, and the actions that it can be asked for.
fn debug_daemon() -> [Command; 10] {
    let words = Arg::new("WORDS")
        .value_name("[METHOD] PATH [BODY]")
        .num_args(1..=3)
        .required(true)
        .help("the request; a path without a slash at its beginning is below /localapi/v0/");
    [
        Command::new("prefs")
            .about("Show the preferences")
            .arg(switch("pretty", "only those that differ from the defaults")),
        Command::new("netmap").about("Show the netmap"),
        Command::new("derp-map").about("Show the relay map"),
        Command::new("watch-ipn")
            .about("Show the notifications of the daemon")
            .args([
                switch("initial", "begin with the state so far"),
                switch("netmap", "show netmaps (default true)"),
                switch("engine", "show traffic counters"),
                value("count", "N", "end after N notifications; 0: no limit").default_value("0"),
            ]),
        Command::new("metrics").about("Show all counters of the daemon"),
        Command::new("localapi")
            .about("Send a request to the daemon, and show the answer")
            .args([switch("v", "show the status too"), words]),
        Command::new("local-creds").about("Show how to reach the daemon with curl"),
        Command::new("restun").about("Measure the network around again"),
        Command::new("rebind").about("Open the UDP sockets again"),
        Command::new("reload-config").about("Read the configuration file of the daemon again"),
    ]
}

fn debug() -> Command {
    let filter = Command::new("filter")
        .about("Show the rules of the packet filter, with the packets they accepted, and drops")
        .arg(json());
    let why = Command::new("why")
        .about(
            "Show whether a connection may work, as far as this machine knows; \
             exit code 1: this machine blocks it",
        )
        .args([
            json(),
            value(
                "from",
                "PEER",
                "ask for a connection from there to this machine",
            ),
            value("proto", "PROTO", "tcp, udp, sctp, icmp or a number").default_value("tcp"),
            positional("DST:PORT", "name or address, and port").required(true),
        ]);
    Command::new("debug")
        .about("Inspect the packet filter, why a connection may not work, and the daemon")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([filter, why])
        .subcommands(debug_daemon())
}

// ---- the program ----

fn completion() -> Command {
    let shells = ["bash", "zsh", "fish", "powershell"].map(PossibleValue::new);
    let peers = PossibleValue::new(completion::PEERS).hide(true);
    Command::new("completion")
        .about("Print a script that completes commands")
        .arg(
            positional("SHELL", "bash, zsh, fish or powershell")
                .required(true)
                .value_parser(PossibleValuesParser::new(shells.into_iter().chain([peers]))),
        )
}

fn container() -> Command {
    Command::new("container")
        .about("Run the node as the entry point of a container, with settings from TS_... variables")
        .after_help(
            "Variables: TS_AUTHKEY, TS_HOSTNAME, TS_ROUTES, TS_ACCEPT_DNS, TS_EXTRA_ARGS (flags of up),\n\
             TS_USERSPACE, TS_STATE_DIR, TS_SOCKET, TS_AUTH_ONCE, TS_SOCKS5_SERVER,\n\
             TS_OUTBOUND_HTTP_PROXY_LISTEN, TS_TAILSCALED_EXTRA_ARGS (flags of daemon),\n\
             TS_LOCAL_ADDR_PORT, TS_ENABLE_HEALTH_CHECK, TS_ENABLE_METRICS, TS_BOOT_TIMEOUT",
        )
}

fn daemon() -> Command {
    Command::new("daemon")
        .about("Run the daemon, in the foreground")
        .args([
            value(
                "state-dir",
                "DIR",
                "folder for keys, settings and the last netmap [default: /var/lib/warren, or \
                 ~/.local/state/warren without root]",
            ),
            value(
                "state",
                "FILE",
                "file for keys and settings [default: warren.state in the folder]; mem:: keep \
                 nothing, be a new machine after each start",
            ),
            value(
                "config",
                "FILE",
                "settings from a file in the form of the official client",
            ),
            value(
                "debug",
                "ADDRESS",
                "serve counters and figures over HTTP at host:port",
            ),
            value("port", "N", "UDP port; 0: any").default_value("0"),
            value(
                "tun",
                "NAME",
                "network interface to make; userspace-networking: none, which needs no root",
            )
            .default_value("warren0"),
            value(
                "socks5-server",
                "ADDRESS",
                "serve SOCKS5 to programs at host:port",
            ),
            value(
                "outbound-http-proxy-listen",
                "ADDRESS",
                "serve an HTTP proxy to programs at host:port",
            ),
            value("verbose", "LEVEL", "how much to log, 0 to 2").default_value("0"),
            switch(
                "cleanup",
                "remove what a killed daemon left in the system, and exit",
            ),
            switch("version", "print the version, and exit"),
            // Nothing is sent to anyone, so there is nothing to switch off.
            switch("no-logs-no-support", "accepted for scripts").hide(true),
        ])
        .args(
            super::daemon::MISSING_SWITCHES
                .iter()
                .map(|(flag, _)| switch(flag, "not in this version").hide(true)),
        )
        .args(
            super::daemon::MISSING_VALUES
                .iter()
                .map(|(flag, _)| value(flag, "VALUE", "not in this version").hide(true)),
        )
}
