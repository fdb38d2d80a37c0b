//! Several routers of one subnet, official clients, as they are killed, stopped, cut off
//! and brought back. S01 to S14 name the scenarios of Headscale's tests.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::Value;
use warren_lab::scenario::{Tailnet, installed, lab, more};
use warren_lab::{Host, Kind, Lab, LabError, Node, PATIENCE, Place, RelayKind, until};

const ROUTE: &str = "10.9.0.0/16";
/// A lost stream moves a subnet after a second; its peers are informed that the router is
/// offline after ten. Between the two is time for a machine under load.
const BEFORE_OFFLINE: Duration = Duration::from_secs(8);
/// Cut-off routers are known to be silent after 14 s at most; the end of their streams
/// takes 50 s or more.
const BEFORE_END_OF_STREAM: Duration = Duration::from_secs(40);
/// Until the server has noticed that the streams of cut-off routers are dead.
const END_OF_STREAM: Duration = Duration::from_secs(120);

/// Two routers of one subnet and a client that accepts its routes.
struct Site {
    tailnet: Tailnet,
    routers: Vec<Node>,
    viewer: Node,
}

impl Site {
    fn new(lab: &mut Lab, kind: Kind) -> Option<Self> {
        installed(Kind::Warren)?;
        installed(kind)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let routers = ["r1", "r2"].map(|name| {
            let host = lab.host(name, Place::Open).unwrap();
            let router = Node::start(&host, kind).unwrap();
            let mut flags = vec!["--advertise-routes=10.9.0.0/16"];
            flags.extend(more(kind));
            router
                .up(tailnet.control.url(), &tailnet.key, &flags)
                .unwrap();
            router
        });
        let host = lab.host("viewer", Place::Open).unwrap();
        let viewer = Node::start(&host, kind).unwrap();
        let mut flags = vec!["--accept-routes"];
        flags.extend(more(kind));
        viewer
            .up(tailnet.control.url(), &tailnet.key, &flags)
            .unwrap();
        Some(Self {
            tailnet,
            routers: routers.into(),
            viewer,
        })
    }

    /// As [`Site::new`], with the subnet approved for both; r1 serves.
    fn approved(lab: &mut Lab, kind: Kind) -> Option<Self> {
        let site = Self::new(lab, kind)?;
        for router in ["r1", "r2"] {
            site.approve(router, ROUTE);
        }
        site.wait_until_serving(Some("r1"), PATIENCE);
        Some(site)
    }

    fn approve(&self, router: &str, routes: &str) {
        let routes = format!("--routes={routes}");
        let command = ["nodes", "approve-routes", router, &routes];
        self.tailnet.control.cli(&command).unwrap();
    }

    /// The record of a node at the server.
    fn record(&self, node: &str) -> Result<Value, LabError> {
        self.tailnet.control.json(&["nodes", "show", node])
    }

    /// The routers that serve, for the server and in the status of the viewer.
    fn serving(&self) -> Result<(Vec<String>, Vec<String>), LabError> {
        let (mut there, mut seen) = (Vec::new(), Vec::new());
        for router in ["r1", "r2"] {
            if names_route(&self.record(router)?["serving_routes"]) {
                there.push(router.to_owned());
            }
            if names_route(&self.viewer.peer(router)?["PrimaryRoutes"]) {
                seen.push(router.to_owned());
            }
        }
        Ok((there, seen))
    }

    fn wait_until_serving(&self, router: Option<&str>, limit: Duration) {
        let expected: Vec<String> = router.iter().map(|name| (*name).to_owned()).collect();
        let what = format!("{router:?} to serve, and no other");
        let start = std::time::Instant::now();
        until(&what, limit, || match self.serving()? {
            (there, seen) if there == expected && seen == expected => Ok(()),
            other => Err(LabError::new(format!("{other:?}"))),
        })
        .unwrap();
        println!("{router:?} serves after {:?}", start.elapsed());
    }

    /// Asserts that this holds as long as it takes `condition` to become true.
    fn serves_until(&self, router: Option<&str>, condition: impl Fn() -> Result<bool, LabError>) {
        let expected: Vec<String> = router.iter().map(|name| (*name).to_owned()).collect();
        until("the end of a watch", END_OF_STREAM, || {
            let (there, _) = self.serving()?;
            assert_eq!(there, expected);
            if condition()? {
                return Ok(());
            }
            Err(LabError::new("not yet"))
        })
        .unwrap();
    }

    fn state_is(&self, router: &str, state: &str) -> Result<bool, LabError> {
        Ok(self.record(router)?["router_state"] == state)
    }
}

fn names_route(routes: &Value) -> bool {
    let mut routes = routes.as_array().into_iter().flatten();
    routes.any(|route| route == ROUTE)
}

/// Drops all packets of a host, or only those that open TCP connections.
fn cut(host: &Host, only_new: bool) {
    let rule = if only_new {
        "tcp flags syn / fin,syn,rst,ack drop"
    } else {
        "drop"
    };
    let chain = |hook: &str, interface: &str, rule: &str| {
        format!(
            "chain {hook} {{ type filter hook {hook} priority -300; {interface} \"lo\" accept; {rule}; }}"
        )
    };
    let mut chains = chain("output", "oifname", rule);
    if !only_new {
        chains += &chain("input", "iifname", rule);
    }
    host.nft(&format!("table inet cut {{ {chains} }}")).unwrap();
}

fn mend(host: &Host) {
    host.nft("delete table inet cut").unwrap();
}

#[test]
fn s01_approved_route_is_served_as_soon_as_it_is_announced() {
    let Some(mut lab) = lab() else { return };
    let Some(site) = Site::new(&mut lab, Kind::Tailscale) else {
        return;
    };
    let counts = |expected: [usize; 3]| {
        until("the counts of routes", PATIENCE, || {
            let record = site.record("r1")?;
            let lists = ["available_routes", "approved_routes", "serving_routes"];
            let found = lists.map(|list| record[list].as_array().map_or(0, Vec::len));
            let error = || LabError::new(format!("{found:?}"));
            (found == expected).then_some(()).ok_or_else(error)
        })
        .unwrap();
    };
    counts([1, 0, 0]);
    site.approve("r1", "10.8.0.0/16");
    counts([1, 1, 0]);
    let set = |routes: &str| {
        let flag = format!("--advertise-routes={routes}");
        site.routers[0].cli(&["set", &flag]).unwrap();
    };
    set("10.8.0.0/16,10.9.0.0/16");
    counts([2, 1, 1]);
    set("");
    counts([0, 1, 0]);
    set("10.8.0.0/16");
    counts([1, 1, 1]);
}

#[test]
fn s02_killed_or_stopped_router_hands_over_before_it_is_offline() {
    let Some(mut lab) = lab() else { return };
    let Some(mut site) = Site::approved(&mut lab, Kind::Tailscale) else {
        return;
    };
    site.routers[0].daemon().kill().unwrap();
    site.wait_until_serving(Some("r2"), BEFORE_OFFLINE);
    site.routers[0].restart().unwrap();
    site.serves_until(Some("r2"), || site.state_is("r1", "answering"));
    site.routers[1].daemon().stop().unwrap();
    site.wait_until_serving(Some("r1"), BEFORE_OFFLINE);
}

fn router_that_opens_no_new_connection(kind: Kind) {
    let Some(mut lab) = lab() else { return };
    let Some(site) = Site::approved(&mut lab, kind) else {
        return;
    };
    cut(site.routers[0].host(), true);
    site.wait_until_serving(Some("r2"), BEFORE_END_OF_STREAM);
    assert!(site.state_is("r1", "impaired").unwrap());
    let shown = site
        .tailnet
        .control
        .cli(&["nodes", "routes", "r1"])
        .unwrap();
    assert!(shown.contains("opens no new connection"), "{shown}");
    mend(site.routers[0].host());
    site.serves_until(Some("r2"), || site.state_is("r1", "answering"));
}

#[test]
fn s11_router_that_opens_no_new_connection_hands_over_and_does_not_take_back() {
    router_that_opens_no_new_connection(Kind::Tailscale);
}

#[test]
fn s11_and_so_does_our_router() {
    router_that_opens_no_new_connection(Kind::Warren);
}

#[test]
fn s12_no_router_serves_while_both_are_down() {
    let Some(mut lab) = lab() else { return };
    let Some(mut site) = Site::approved(&mut lab, Kind::Tailscale) else {
        return;
    };
    site.routers[0].daemon().stop().unwrap();
    site.wait_until_serving(Some("r2"), BEFORE_OFFLINE);
    site.routers[1].daemon().kill().unwrap();
    site.wait_until_serving(None, PATIENCE);
    site.routers[1].restart().unwrap();
    site.wait_until_serving(Some("r2"), PATIENCE);
}

#[test]
fn s14_routers_that_are_cut_off_never_serve() {
    let Some(mut lab) = lab() else { return };
    let Some(mut site) = Site::approved(&mut lab, Kind::Tailscale) else {
        return;
    };
    cut(site.routers[0].host(), false);
    site.wait_until_serving(Some("r2"), BEFORE_END_OF_STREAM);
    mend(site.routers[0].host());
    site.serves_until(Some("r2"), || site.state_is("r1", "answering"));
    for router in &site.routers {
        cut(router.host(), false);
    }
    site.wait_until_serving(None, BEFORE_END_OF_STREAM);
    site.serves_until(None, || {
        let online = |router| Ok::<_, LabError>(site.record(router)?["online"] == true);
        Ok(!online("r1")? && !online("r2")?)
    });
    mend(site.routers[1].host());
    // By itself the client notices only after two minutes that its stream is dead.
    site.routers[1].daemon().kill().unwrap();
    site.routers[1].restart().unwrap();
    site.wait_until_serving(Some("r2"), PATIENCE);
}
