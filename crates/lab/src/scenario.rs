//! Steps that many tests of the lab share: a lab, or a visible reason to skip; a
//! tailnet in one call; traffic between two nodes. A step that fails ends the test.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::time::Duration;

use crate::probe::{Echo, Probe};
use crate::{Control, Host, Kind, Lab, Node, PATIENCE, Place, Relay, RelayKind, derp_map, until};

/// A lab, or `None` with the reason printed where namespaces are not allowed.
pub fn lab() -> Option<Lab> {
    match Lab::new() {
        Ok(lab) => Some(lab),
        Err(error) => skip(&error.to_string()),
    }
}

/// `Some` when `kind` is installed; else says that the test is skipped.
pub fn installed(kind: Kind) -> Option<()> {
    if kind.is_installed() {
        return Some(());
    }
    skip(match kind {
        Kind::Warren => {
            "our own binaries are not built (cargo build --profile lab --workspace --bins)"
        }
        Kind::Tailscale => "tailscale and tailscaled are neither in $WARREN_PEERS nor in PATH",
        Kind::TailscaleWebSocket => {
            "tailscaled-websocket (tailscaled built with the tag ts_debug_websockets) is neither in \
             $WARREN_PEERS nor in PATH"
        }
    })
}

/// Prints why a test does nothing here.
pub fn skip<T>(reason: &str) -> Option<T> {
    // Straight to the terminal: the harness hides the output of tests that
    // pass, and a skip must be seen.
    use std::io::Write as _;
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    drop(writeln!(
        std::io::stderr().lock(),
        "SKIPPED {name}: {reason}"
    ));
    None
}

/// A coordination server of ours, two relays, and a key.
pub struct Tailnet {
    /// The coordination server.
    pub control: Control,
    /// Two relays, in regions of their own.
    pub relays: Vec<Relay>,
    /// A reusable auth key.
    pub key: String,
}

impl Tailnet {
    /// With relays of that kind; `None` when their program is missing.
    pub fn new(lab: &mut Lab, relays: RelayKind) -> Option<Self> {
        let relays = start_relays(lab, relays)?;
        let host = lab.host("control", Place::Open).unwrap();
        let map = derp_map(&relays.iter().collect::<Vec<_>>());
        let control = Control::start(&host, Some(&map)).unwrap();
        let key = control.auth_key("ann").unwrap();
        Some(Self {
            control,
            relays,
            key,
        })
    }

    /// As [`Tailnet::new`], with the server at a private address: there, official clients
    /// send requests about tailnet lock without TLS.
    pub fn with_private_server(lab: &mut Lab, relays: RelayKind) -> Option<Self> {
        let relays = start_relays(lab, relays)?;
        let host = lab.host("control", Place::Open).unwrap();
        let address = lab.private_address(&host).unwrap();
        let map = derp_map(&relays.iter().collect::<Vec<_>>());
        let control = Control::start_at(&host, address.into(), Some(&map), &[]).unwrap();
        let key = control.auth_key("ann").unwrap();
        Some(Self {
            control,
            relays,
            key,
        })
    }

    /// Starts a node and lets it join.
    pub fn join(&self, host: &Host, kind: Kind) -> Node {
        let node = Node::start(host, kind).unwrap();
        node.up(self.control.url(), &self.key, more(kind)).unwrap();
        node
    }

    /// Approves the `routes` of a node by its name.
    pub fn approve(&self, node: &str, routes: &str) {
        let id = self.control.node_id(node).unwrap();
        let routes = format!("--routes={routes}");
        self.control
            .cli(&["nodes", "approve-routes", &id, &routes])
            .unwrap();
    }
}

/// Two relays: one is not enough to see that a NAT mapping varies.
pub fn start_relays(lab: &mut Lab, kind: RelayKind) -> Option<Vec<Relay>> {
    let mut relays = Vec::new();
    for region in [901, 902] {
        let host = lab.host(&format!("relay{region}"), Place::Open).unwrap();
        match Relay::start(&host, kind, region).unwrap() {
            Some(relay) => relays.push(relay),
            None => return skip("derper is neither in $WARREN_PEERS nor in PATH"),
        }
    }
    Some(relays)
}

/// Flags of `up` that keep the lab's hosts as they are.
pub fn more(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Warren => &[],
        // Its resolver set-up wants a whole distribution around it.
        Kind::Tailscale | Kind::TailscaleWebSocket => &["--accept-dns=false"],
    }
}

/// The first address of `node` in the family.
pub fn address(node: &Node, v6: bool) -> IpAddr {
    let addresses = node.addresses().unwrap();
    addresses
        .into_iter()
        .find(|address| address.is_ipv6() == v6)
        .unwrap()
}

/// Sends packets from `from` to `to` through the tunnel until `enough` came
/// back, in both families.
pub fn traffic_flows(from: &Node, to: &Node) {
    let _echo = Echo::start(to.host()).unwrap();
    for v6 in [false, true] {
        let probe = Probe::start(from.host(), address(to, v6), Duration::from_millis(20)).unwrap();
        let what = format!(
            "echoes {} -> {} (v6: {v6})",
            from.host().name(),
            to.host().name()
        );
        until(&what, PATIENCE, || {
            let answered = probe
                .shots()
                .iter()
                .filter(|shot| shot.answered.is_some())
                .count();
            if answered >= 10 {
                Ok(())
            } else {
                Err(format!("{answered} answers"))
            }
        })
        .unwrap();
    }
}

/// Opens the page that `to` serves, by its address, over TCP.
pub fn tcp_flows(from: &Node, to: &Node) {
    let name = address(to, false).to_string();
    let page = until("a page over TCP", PATIENCE, || {
        crate::web::open_page(from.host(), &name)
    });
    assert_eq!(
        page.unwrap().trim(),
        format!("hello from {}", to.host().name())
    );
}
