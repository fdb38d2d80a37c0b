//! The official client as the measure: the shapes of our answers are those of its daemon
//! in the same state, and its command line works with our socket in every state.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use warren_control_api::endpoints::{ExpireNode, NewExpiry};
use warren_local_api::endpoints::{GetCurrentProfile, GetPrefs, GetProfiles, GetStatus, WatchBus};
use warren_local_api::notify::NotifyMask;
use warren_local_api::ordered_json::OrderedJson;
use warren_node_types::Prefs;

use crate::network::Network;
use crate::served::{Served, block_on, served};

/// Shapes recorded from tailscaled 1.103.0 with `official/record`, by state and answer.
const SHAPES: &str = include_str!("official/shapes.json");

/// The time in which the answers of a state must come to have its shape.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// The differences that are meant, by a part of their path.
const MEANT: &[(&str, &str)] = &[
    ("Hostinfo", "each program describes itself"),
    (
        "ComputedName",
        "the official client works it out from the name, for its own use",
    ),
    ("PeerAPIURL", "this node has no PeerAPI"),
    ("Capabilities", "the old form of CapMap"),
    ("PacketFilter:", "the compiled form of PacketFilterRules"),
    ("HomeParams", "not sent by the server"),
    ("TKAHead", "there is no chain while tailnet lock is off"),
    ("NetMap.Peers[]", "a peer is described by its own program"),
    (".Addrs", "the endpoints of peers are shown"),
    (
        "Created",
        "profiles have no creation time in the state file",
    ),
    (
        "Apply",
        "the server's default for updates is not applied: this program does not update itself",
    ),
];

fn json(value: impl serde::Serialize) -> OrderedJson {
    serde_json::from_str(&serde_json::to_string(&value).unwrap()).unwrap()
}

/// The answer of our node that was recorded under this name.
fn answer(served: &Served, name: &str) -> OrderedJson {
    let client = served.client();
    block_on(async {
        match name {
            "status" => json(client.call(GetStatus { peers: true }).await.unwrap()),
            "prefs" => json(client.call(GetPrefs).await.unwrap()),
            "profiles/" => json(client.call(GetProfiles).await.unwrap()),
            "profiles/current" => json(client.call(GetCurrentProfile).await.unwrap()),
            bus => {
                let mask = bus.strip_prefix("watch-ipn-bus?mask=").unwrap();
                let mask = NotifyMask(mask.parse().unwrap());
                let mut events = client.call(WatchBus { mask }).await.unwrap();
                json(events.next().await.unwrap())
            }
        }
    })
}

/// Adds what is different between a shape and a value.
fn compare(path: &str, shape: &OrderedJson, value: &OrderedJson, out: &mut Vec<String>) {
    let mut differs = |what: &str| out.push(format!("{path}: {what}"));
    match (shape, value) {
        (OrderedJson::Object(shapes), OrderedJson::Object(entries)) => {
            if let [(key, inner)] = shapes.as_slice()
                && key == "*"
            {
                for (key, value) in entries {
                    compare(&format!("{path}.<{key}>"), inner, value, out);
                }
                return;
            }
            let known = |key: &String| shapes.iter().position(|(name, _)| name == key);
            let ours: Vec<usize> = entries.iter().filter_map(|(key, _)| known(key)).collect();
            if !ours.is_sorted() {
                differs("another order of keys");
            }
            for (key, _) in entries.iter().filter(|(key, _)| known(key).is_none()) {
                out.push(format!("{path}.{key}: only here"));
            }
            for (key, inner) in shapes {
                match value.get(key) {
                    None => out.push(format!("{path}.{key}: missing")),
                    Some(value) => compare(&format!("{path}.{key}"), inner, value, out),
                }
            }
        }
        (OrderedJson::List(shapes), OrderedJson::List(values)) => {
            if let Some(inner) = shapes.first() {
                for value in values {
                    compare(&format!("{path}[]"), inner, value, out);
                }
            }
        }
        (OrderedJson::Text(kind), value) => {
            let fits = match (kind.as_str(), value) {
                ("text", OrderedJson::Text(_))
                | ("number", OrderedJson::Number(_))
                | ("bool", OrderedJson::Bool(_)) => true,
                ("time", OrderedJson::Text(text)) => text.parse::<jiff::Timestamp>().is_ok(),
                _ => false,
            };
            if !fits {
                differs(&format!("{value:?} instead of {kind}"));
            }
        }
        (OrderedJson::Null, OrderedJson::Null) => {}
        (shape, value) => differs(&format!("{value:?} instead of {shape:?}")),
    }
}

/// Compares all answers of a node with those recorded in that state.
fn compare_state(served: &Served, state: &str, differences: &mut Vec<String>) {
    let shapes: OrderedJson = serde_json::from_str(SHAPES).unwrap();
    let Some(OrderedJson::Object(answers)) = shapes.get(state) else {
        panic!("nothing is recorded for {state}");
    };
    // Some parts come a moment after the state: what the server learned of the node comes
    // back in the netmap.
    let began = std::time::Instant::now();
    loop {
        let mut found = Vec::new();
        for (name, shape) in answers {
            // A listener for which nothing was sent would wait for ever.
            if *shape == OrderedJson::Null || name.ends_with("mask=128") {
                continue;
            }
            let place = format!("{state}: {name}");
            compare(&place, shape, &answer(served, name), &mut found);
        }
        let is_settled = found.iter().all(|difference| is_meant(difference));
        if is_settled || began.elapsed() > PATIENCE {
            differences.extend(found);
            return;
        }
    }
}

fn is_meant(difference: &str) -> bool {
    MEANT.iter().any(|(part, _)| difference.contains(part))
}

/// Ends the key of a node, and waits until it knows.
fn expire(network: &Network, served: &Served, node: &str) {
    let (node, expiry) = (node.to_owned(), NewExpiry::Now);
    // A node with a kept netmap runs before the server knows of it. The answer to an echo
    // shows that its map stream is open, so that the end of the key comes in the netmap.
    network.wait_for_echo(&node);
    network.admin(&ExpireNode { node, expiry });
    while !served.warren("status").1.contains("Logged out.") {}
}

#[test]
fn answers_have_the_shape_of_the_official_daemon_in_every_state() {
    let network = Network::start();
    let _peer = network.node("peer", Prefs::default());
    let server = format!("--login-server {}", network.url());
    let mut differences = Vec::new();
    let served = served();
    compare_state(&served, "fresh", &mut differences);
    let (code, _, _) = served.warren(&format!("up {server} --auth-key wrong"));
    assert_eq!(code, 1);
    compare_state(&served, "failed", &mut differences);
    let command = served.warren_in_background(&format!("up {server} --timeout 2s"));
    command.err.until("/register/");
    compare_state(&served, "waiting", &mut differences);
    command.end();
    let key = network.key();
    let (code, _, err) = served.warren(&format!("up {server} --hostname laptop --auth-key {key}"));
    assert_eq!(code, 0, "{err}");
    compare_state(&served, "running", &mut differences);
    assert_eq!(served.warren("down").0, 0);
    compare_state(&served, "stopped", &mut differences);
    assert_eq!(served.warren("up").0, 0);
    expire(&network, &served, "laptop");
    compare_state(&served, "expired", &mut differences);
    assert_eq!(served.warren("logout").0, 0);
    compare_state(&served, "logged out", &mut differences);

    let is_found = |part: &str| {
        differences
            .iter()
            .any(|difference| difference.contains(part))
    };
    let outdated: Vec<_> = MEANT.iter().filter(|(part, _)| !is_found(part)).collect();
    assert!(outdated.is_empty(), "not different any more: {outdated:?}");
    differences.retain(|difference| !is_meant(difference));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The official command line, where it is installed.
fn tailscale() -> Option<PathBuf> {
    let folder = std::env::var_os("WARREN_PEERS").map(PathBuf::from);
    let program = folder.map(|folder| folder.join("tailscale"));
    let found = program.filter(|program| program.is_file());
    if found.is_none() {
        use std::io::Write as _;
        // Straight to the terminal: the harness hides the output of tests that pass.
        let _ = writeln!(
            std::io::stderr().lock(),
            "SKIPPED: tailscale is not in $WARREN_PEERS"
        );
    }
    found
}

/// Runs the official command line; its exit code and all it printed. One that hangs is
/// ended and has the code 124.
fn run(program: &PathBuf, served: &Served, line: &str) -> (i32, String) {
    let output = Command::new("timeout")
        .arg("20")
        .arg(program)
        .arg(format!("--socket={}", served.socket.display()))
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

/// Runs a table of command lines in one state. A row has the exit code and words of the
/// output.
fn table(program: &PathBuf, served: &Served, state: &str, rows: &[(&str, i32, &str)]) {
    for (line, code, words) in rows {
        let (found, text) = run(program, served, line);
        assert!(
            found == *code && text.contains(words) && !text.contains("panic"),
            "{state}: tailscale {line}: {found}\n{text}"
        );
    }
}

/// Commands that look, without a login.
const WITHOUT_LOGIN: &[(&str, i32, &str)] = &[
    ("status", 1, "Logged out."),
    ("status --json", 0, "\"BackendState\": \"NeedsLogin\""),
    ("ip", 1, "no current Tailscale IPs; state: NeedsLogin"),
    ("whois 100.64.0.1", 1, "peer not found"),
    ("whoami", 1, "no current Tailscale IP"),
    ("ping -c 1 100.64.0.1", 1, "Logged out."),
    ("version --daemon", 0, "Daemon: "),
    ("get hostname", 0, ""),
    ("get --json", 0, "\"accept-dns\": true"),
    ("switch --list", 0, "ID"),
    ("metrics print", 0, "tailscaled_home_derp_region_id"),
    ("bugreport", 0, "BUG-"),
    ("debug prefs", 0, "\"LoggedOut\": "),
    ("debug derp-map", 0, "\"Regions\""),
    ("debug watch-ipn --count=1 --initial", 0, "\"State\": 2"),
    ("serve status", 0, "No serve config"),
    ("exit-node list", 1, "no exit nodes found"),
    ("set --accept-routes=false", 0, ""),
    ("down", 0, ""),
];

/// Commands that look, where the key of the node has ended. Its addresses are known.
const EXPIRED: &[(&str, i32, &str)] = &[
    ("status", 1, "Logged out."),
    ("status --json", 0, "\"BackendState\": \"NeedsLogin\""),
    ("ip -4", 0, "100.64.0.1"),
    ("ping -c 1 100.64.0.9", 1, "Logged out."),
    ("version --daemon", 0, "Daemon: "),
    ("get hostname", 0, ""),
    ("switch --list", 0, "ID"),
    ("metrics print", 0, "tailscaled_home_derp_region_id"),
    ("bugreport", 0, "BUG-"),
    ("debug prefs", 0, "\"LoggedOut\": "),
    ("debug watch-ipn --count=1 --initial", 0, "\"State\": 2"),
    ("serve status", 0, "No serve config"),
    ("exit-node list", 1, "no exit nodes found"),
    ("set --accept-routes=false", 0, ""),
];

#[test]
fn the_official_command_line_works_in_every_state() {
    let Some(program) = tailscale() else { return };
    let network = Network::start();
    let server = format!("--login-server={}", network.url());
    let served = served();
    table(&program, &served, "fresh", WITHOUT_LOGIN);
    let wrong = format!("up {server} --auth-key=wrong");
    table(
        &program,
        &served,
        "fresh",
        &[(&wrong, 1, "backend error: ")],
    );
    table(&program, &served, "failed", WITHOUT_LOGIN);

    let up = |more: &str| format!("up {server} --auth-key={} {more}", network.key());
    table(
        &program,
        &served,
        "failed",
        &[(&up("--hostname=laptop"), 0, "")],
    );
    let running = [
        ("status", 0, "laptop"),
        ("status --json", 0, "\"BackendState\": \"Running\""),
        ("ip -4", 0, "100.64.0.1"),
        ("whois 100.64.0.1", 0, "laptop"),
        ("whoami", 0, "Tailnet:"),
        ("ping -c 1 100.64.0.1", 0, "is local Tailscale IP"),
        ("ping -c 1 100.64.0.9", 1, "no matching peer"),
        ("netcheck", 0, "* UDP: true"),
        ("switch --list", 0, "*"),
        ("debug derp-map", 0, "\"RegionID\""),
        ("debug watch-ipn --count=1 --initial", 0, "\"State\": 6"),
        ("debug netmap", 0, "\"SelfNode\""),
        ("debug statedir", 0, "/state"),
        ("debug restun", 0, ""),
        ("dns status", 0, "MagicDNS: enabled tailnet-wide"),
        ("wait --timeout=1s", 0, ""),
        ("set --shields-up", 0, ""),
        ("set --shields-up=false", 0, ""),
    ];
    table(&program, &served, "running", &running);
    // The line that automation repeats.
    table(
        &program,
        &served,
        "running",
        &[(&up("--hostname=laptop"), 0, "")],
    );
    let changed = format!("up {server} --hostname=laptop --accept-routes");
    table(&program, &served, "running", &[(&changed, 0, "")]);
    let forgot = format!("up {server} --accept-routes");
    table(
        &program,
        &served,
        "running",
        &[
            (&forgot, 1, "requires mentioning all"),
            (&up("--reset"), 0, ""),
        ],
    );
    // Tags are asked of the server, and its answer is awaited.
    let tagged = format!("up {server} --hostname=laptop --advertise-tags=tag:web");
    let withdrawn = format!("up {server} --hostname=laptop --reset");
    let rows = [
        (tagged.as_str(), 1, "requested tags [tag:web] are invalid"),
        (&withdrawn, 0, ""),
        (
            "set --webclient",
            1,
            "the web interface is not in this version yet",
        ),
        ("set --auto-update", 1, ""),
        ("status", 0, "laptop"),
    ];
    table(&program, &served, "running", &rows);
    // The key ends, and a new login begins.
    expire(&network, &served, "laptop");
    let key = up("--reset");
    table(&program, &served, "expired", EXPIRED);
    let rows = [(key.as_str(), 0, ""), ("status", 0, "100.64.0.")];
    table(&program, &served, "expired", &rows);
    // Another login, and the way back.
    let other = Network::start();
    let (url, key) = (other.url(), other.key());
    let login = format!("login --login-server={url} --auth-key={key} --nickname=two");
    let logins = [
        (login.as_str(), 0, ""),
        ("switch --list", 0, "two*"),
        ("debug prefs", 0, url),
        ("switch default", 0, ""),
        ("debug prefs", 0, network.url()),
        ("switch --list", 0, "default*"),
        ("switch nosuch", 1, "No profile named"),
        ("switch remove two", 0, ""),
    ];
    table(&program, &served, "two logins", &logins);
    table(
        &program,
        &served,
        "stopped",
        &[
            ("down", 0, ""),
            ("status", 1, "Tailscale is stopped."),
            ("ping -c 1 100.64.0.1", 1, "Tailscale is stopped."),
            ("ip -4", 0, "100.64.0.1"),
            (&up(""), 0, ""),
            ("logout", 0, ""),
        ],
    );
    table(&program, &served, "logged out", WITHOUT_LOGIN);
    table(
        &program,
        &served,
        "logged out",
        &[(&up(""), 0, ""), ("status", 0, "100.64.0.")],
    );
}
