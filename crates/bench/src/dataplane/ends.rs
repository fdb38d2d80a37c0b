//! Two hosts with something between them: each thing that is measured, brought
//! up on namespaces of its own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::boringtun::BoringTun;
use super::drive::{Load, number};
use super::pipeline::{Means, Pipeline};
use super::until;
use super::usage::Counted;
use crate::local_api::LocalApi;
use crate::machine::Memory;
use warren_lab::{
    Control, Host, HostOptions, Kind, Lab, LabError, Node, Place, Relay, RelayKind, derp_map,
};

/// How long a direct path is waited for; the reference may need ten seconds.
const DIRECT: Duration = Duration::from_secs(60);

/// A candidate: the program that carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Candidate {
    /// `warren`.
    Ours,
    /// `tailscaled`.
    Reference,
    /// `boringtun-cli`: WireGuard alone, without a tailnet.
    BoringTun,
    /// The bare parts of a tunnel in a row; see [`Means::Tunnel`].
    Roofline,
    /// Frames from TUN to TUN; see [`Means::Shuttle`].
    Shuttle,
    /// No tunnel at all.
    Raw,
}

impl Candidate {
    /// All, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::Ours,
        Self::Reference,
        Self::BoringTun,
        Self::Roofline,
        Self::Shuttle,
        Self::Raw,
    ];

    /// The name on the command line and in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Reference => "reference",
            Self::BoringTun => "boringtun",
            Self::Roofline => "roofline",
            Self::Shuttle => "shuttle",
            Self::Raw => "raw",
        }
    }

    /// Which lab node it is, if it is one.
    pub fn kind(self) -> Option<Kind> {
        match self {
            Self::Ours => Some(Kind::Warren),
            Self::Reference => Some(Kind::Tailscale),
            Self::BoringTun | Self::Roofline | Self::Shuttle | Self::Raw => None,
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Candidate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|candidate| candidate.name() == text)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("candidate `{text}` not found; there are {names}")
            })
    }
}

/// How the two ends reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// One direct path; the relay beside it is ours for all.
    Direct,
    /// UDP between the two is blocked, and this relay carries everything.
    Relayed(RelayKind),
    /// A direct path; the second node forwards to a host of its LAN, which is
    /// the second end.
    Forwarded,
}

/// How long a node took to come up.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// From the start of the daemon until `up` has returned.
    pub running: Duration,
    /// The part of it before the daemon answered.
    pub answering: Duration,
}

/// Two ends, ready to carry traffic. The first one sends.
pub struct Ends {
    /// The candidate.
    pub candidate: Candidate,
    /// Both hosts.
    pub hosts: [Host; 2],
    /// The second end, as the first one reaches it.
    pub target: Ipv4Addr,
    /// The processes or threads of each end.
    pub cpu: [Counted; 2],
    /// The relay's process, where everything goes through it.
    pub relay: Counted,
    /// Another host, where there are nodes.
    pub outsider: Option<Host>,
    /// The public address on which the second node listens.
    pub outside: Option<SocketAddr>,
    /// How each node came up, where there are nodes.
    pub start: Vec<Start>,
    route: Route,
    // In the order in which they end.
    between: Between,
    _lab: Lab,
}

enum Between {
    Tailnet {
        nodes: Box<[Node; 2]>,
        _control: Control,
        _relay: Box<Relay>,
    },
    BoringTun(BoringTun),
    Pipeline(Pipeline),
    Nothing,
}

impl Ends {
    /// Brings up the programs of `candidate`, and waits until the first packets got
    /// through the way they should.
    ///
    /// # Errors
    /// When something is missing or does not come up.
    pub fn start(candidate: Candidate, route: Route) -> Result<Self, LabError> {
        match candidate {
            Candidate::Ours => tailnet(candidate, Kind::Warren, route),
            Candidate::Reference => tailnet(candidate, Kind::Tailscale, route),
            Candidate::BoringTun => bare(candidate, |hosts| {
                BoringTun::start(hosts).map(Between::BoringTun)
            }),
            Candidate::Roofline => bare(candidate, |hosts| {
                Pipeline::start(hosts, Means::Tunnel).map(Between::Pipeline)
            }),
            Candidate::Shuttle => bare(candidate, |hosts| {
                Pipeline::start(hosts, Means::Shuttle).map(Between::Pipeline)
            }),
            Candidate::Raw => bare(candidate, |_| Ok(Between::Nothing)),
        }
    }

    /// Memory of both nodes.
    pub fn memory(&mut self) -> Vec<Memory> {
        let pids = self.pids();
        pids.into_iter().filter_map(Memory::of).collect()
    }

    /// The processes of both ends, where they are processes.
    pub fn pids(&mut self) -> Vec<u32> {
        match &mut self.between {
            Between::Tailnet { nodes, .. } => {
                nodes.iter_mut().map(|node| node.daemon().pid()).collect()
            }
            Between::BoringTun(tunnel) => tunnel.pids().to_vec(),
            Between::Pipeline(_) | Between::Nothing => Vec::new(),
        }
    }

    /// A ping from the first end, not yet asked for.
    ///
    /// # Errors
    /// When it does not start.
    pub fn ping(&self, count: u16, interval: Duration) -> Result<Load, LabError> {
        let arguments = [
            "ping".to_owned(),
            self.target.to_string(),
            count.to_string(),
            interval.as_micros().to_string(),
        ];
        Load::start(&self.hosts[0], &arguments)
    }

    /// That a node still reaches the other the way that is measured.
    ///
    /// # Errors
    /// When it does not: figures taken then are not what they claim.
    pub fn check_route(&self) -> Result<(), LabError> {
        if !matches!(self.between, Between::Tailnet { .. }) {
            return Ok(());
        }
        let direct = LocalApi::of(&self.hosts[0]).is_direct()?;
        match (self.route, direct) {
            (Route::Direct | Route::Forwarded, true) | (Route::Relayed(_), false) => Ok(()),
            (Route::Direct | Route::Forwarded, false) => {
                Err(LabError::new("the path is not direct any more"))
            }
            (Route::Relayed(_), true) => {
                Err(LabError::new("a direct path came up beside the relay"))
            }
        }
    }

    /// Waits for a reply, and for the path.
    ///
    /// # Errors
    /// When none comes, or the path is not the one to measure.
    pub fn settle(&self) -> Result<(), LabError> {
        let mut ping = self.ping(1, Duration::ZERO)?;
        until(
            &format!("a way through {}", self.candidate),
            DIRECT,
            || match number(&ping.ask()?, "lost")? {
                0.0 => self.check_route(),
                _ => Err(LabError::new("no reply")),
            },
        )
    }
}

fn two_hosts(lab: &mut Lab) -> Result<[Host; 2], LabError> {
    let options = HostOptions { ipv4_only: true };
    Ok([
        lab.host_with("alice", Place::Open, options)?,
        lab.host_with("bob", Place::Open, options)?,
    ])
}

/// Ends without nodes.
fn bare(
    candidate: Candidate,
    between: impl FnOnce(&[Host; 2]) -> Result<Between, LabError>,
) -> Result<Ends, LabError> {
    let mut lab = Lab::new()?;
    let hosts = two_hosts(&mut lab)?;
    let between = between(&hosts)?;
    let (target, cpu) = match &between {
        Between::Pipeline(pipeline) => (Pipeline::target(), pipeline.cpu()),
        Between::BoringTun(tunnel) => (BoringTun::target(), tunnel.pids().map(Counted::process)),
        Between::Tailnet { .. } | Between::Nothing => (v4(hosts[1].address())?, Default::default()),
    };
    let ends = Ends {
        candidate,
        hosts,
        target,
        cpu,
        relay: Counted::default(),
        outsider: None,
        outside: None,
        start: Vec::new(),
        route: Route::Direct,
        between,
        _lab: lab,
    };
    ends.settle()?;
    Ok(ends)
}

fn tailnet(candidate: Candidate, kind: Kind, route: Route) -> Result<Ends, LabError> {
    let options = HostOptions { ipv4_only: true };
    let mut lab = Lab::new()?;
    let relay_kind = match route {
        Route::Direct | Route::Forwarded => RelayKind::Warren,
        Route::Relayed(kind) => kind,
    };
    let relay_host = lab.host_with("relay", Place::Open, options)?;
    let mut relay = Relay::start(&relay_host, relay_kind, 901)?
        .ok_or_else(|| LabError::new("derper is not installed"))?;
    let control_host = lab.host_with("control", Place::Open, options)?;
    let control = Control::start(&control_host, Some(&derp_map(&[&relay])))?;
    let key = control.auth_key("ann")?;
    let hosts = two_hosts(&mut lab)?;
    if let Route::Relayed(_) = route {
        hosts[0].block_udp_with(&hosts[1])?;
    }
    let mut start = Vec::new();
    let lan = match route {
        Route::Forwarded => Some(lab.lan_host("printer", &hosts[1])?),
        Route::Direct | Route::Relayed(_) => None,
    };
    let outsider = lab.host_with("outsider", Place::Open, options)?;
    let mut join = |host: &Host, more: &[&str]| -> Result<Node, LabError> {
        let began = Instant::now();
        let node = Node::start(host, kind)?;
        let answering = began.elapsed();
        // Name resolution is not measured, and the reference's set-up of it
        // wants a whole distribution around it.
        let flags = [&["--accept-dns=false"], more].concat();
        node.up(control.url(), &key, &flags)?;
        start.push(Start {
            running: began.elapsed(),
            answering,
        });
        Ok(node)
    };
    let mut nodes = match &lan {
        None => Box::new([join(&hosts[0], &[])?, join(&hosts[1], &[])?]),
        Some(lan) => {
            let routes = format!("{}/32", lan.address());
            hosts[1].allow_forwarding()?;
            let sender = join(&hosts[0], &["--accept-routes"])?;
            let router = join(&hosts[1], &[&format!("--advertise-routes={routes}")])?;
            let id = control.node_id(hosts[1].name())?;
            let routes = format!("--routes={routes}");
            control.cli(&["nodes", "approve-routes", &id, &routes])?;
            Box::new([sender, router])
        }
    };
    let outside = SocketAddr::new(hosts[1].outside_address(), 41_641);
    let target = match &lan {
        None => v4(LocalApi::of(&hosts[1]).address()?)?,
        Some(lan) => v4(lan.address())?,
    };
    let [first, second] = hosts;
    let hosts = [first, lan.unwrap_or(second)];
    let ends = Ends {
        candidate,
        target,
        cpu: nodes
            .each_mut()
            .map(|node| Counted::process(node.daemon().pid())),
        relay: match route {
            Route::Direct | Route::Forwarded => Counted::default(),
            Route::Relayed(_) => Counted::process(relay.program().pid()),
        },
        hosts,
        outsider: Some(outsider),
        outside: Some(outside),
        start,
        route,
        between: Between::Tailnet {
            nodes,
            _control: control,
            _relay: Box::new(relay),
        },
        _lab: lab,
    };
    ends.settle()?;
    Ok(ends)
}

pub(super) fn v4(address: IpAddr) -> Result<Ipv4Addr, LabError> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(LabError::new(format!("{address} is not IPv4"))),
    }
}
