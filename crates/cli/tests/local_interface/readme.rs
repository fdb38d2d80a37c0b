//! The transcripts of README that need a network. Numbers, addresses and paths differ
//! from run to run; the rest of each line is compared.

use warren_node_types::Prefs;

use crate::network::Network;
use crate::served::served;

/// The shapes of the lines that README shows below a command of root.
fn shown(command: &str) -> Vec<String> {
    let readme = include_str!("../../../../README.md");
    let (_, below) = readme
        .split_once(&format!("    # {command}\n"))
        .unwrap_or_else(|| panic!("README does not show {command:?}"));
    below
        .lines()
        .map_while(|line| line.strip_prefix("    "))
        .take_while(|line| !line.starts_with("# "))
        .map(shape)
        .collect()
}

fn shapes(text: &str) -> Vec<String> {
    text.lines().map(shape).collect()
}

/// The line with `N` for each number or IPv4 address, seconds for milliseconds, and `PATH`
/// for what follows the word `via`.
fn shape(line: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    for word in line.split(' ') {
        if out.last().is_some_and(|last| last == "via") {
            out.push("PATH".to_owned());
            continue;
        }
        let mut shaped = String::new();
        for c in word.chars() {
            let is_number = c.is_ascii_digit() || (c == '.' && shaped.ends_with('N'));
            match is_number {
                true if shaped.ends_with('N') => {}
                true => shaped.push('N'),
                false => shaped.push(c),
            }
        }
        out.push(shaped);
    }
    out.join(" ").replace("Nms", "Ns")
}

#[test]
fn commands_print_what_the_readme_shows() {
    let network = Network::start();
    let served = served();
    let (server, key) = (network.url(), network.key());
    let (code, out, err) = served.warren(&format!(
        "up --login-server {server} --auth-key {key} --hostname alice"
    ));
    assert_eq!((code, err.as_str()), (0, ""));
    let up = "warren up --login-server http://192.0.2.1:8080 --auth-key wk-1-...";
    assert_eq!(shapes(&out), shown(up));
    assert_eq!(shapes(&served.warren("status").1), shown("warren status"));
    let _bob = network.node("bob", Prefs::default());
    served.until_reachable("100.64.0.2");
    let (_, out, err) = served.warren("ping -c 1 --until-direct=false bob");
    assert_eq!(shapes(&out), shown("warren ping bob"), "{err}");
}
