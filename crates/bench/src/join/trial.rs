//! One trial: a fresh network, two fresh nodes, and a packet every 10 ms from
//! the moment both have joined.

use std::fmt;
use std::time::{Duration, Instant};

use super::{JoinOptions, Pair, Servers};
use crate::local_api::LocalApi;
use crate::machine::Memory;
use warren_lab::probe::{Echo, Probe};
use warren_lab::{
    Control, Headscale, Host, HostOptions, Kind, Lab, LabError, Node, PATIENCE, Place, Relay,
    RelayKind, derp_map, until,
};

/// The pace of the packets, and of looking at the status.
const PACE: Duration = Duration::from_millis(10);
/// How long the stream is watched after the switch to the direct path.
const AFTER_DIRECT: Duration = Duration::from_secs(1);
/// A packet without an answer for that long is lost.
const LAST_ECHOES: Duration = Duration::from_millis(500);

/// The figures of one trial. Times count from the moment both had joined.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Where the nodes stood.
    pub pair: Pair,
    /// The program of the nodes.
    pub kind: Kind,
    /// How long `up` took on each.
    pub up: [Duration; 2],
    /// The first echo.
    pub first_reply: Duration,
    /// The sender's status shows a direct path; `None` within the limit never.
    pub direct: Option<Duration>,
    /// Packets without an answer, of those sent before the first echo came.
    pub lost_before: usize,
    /// Packets without an answer, of those sent from then until a second
    /// after the direct path (or until the limit).
    pub lost_after: usize,
    /// When the first and the last of those left, where there are any.
    pub lost_span: Option<[Duration; 2]>,
    /// The longest time without any echo, after the first.
    pub silence: Duration,
    /// Memory of both daemons after an idle time, where it was asked for.
    pub idle: Option<[Memory; 2]>,
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| format!("{} ms", time.as_millis());
        write!(
            f,
            "up {} and {}, first reply {}, direct {}, lost {} + {}",
            ms(self.up[0]),
            ms(self.up[1]),
            ms(self.first_reply),
            self.direct.map_or_else(|| "never".to_owned(), ms),
            self.lost_before,
            self.lost_after
        )?;
        match self.lost_span {
            Some([from, to]) => write!(f, " (sent {} - {})", ms(from), ms(to)),
            None => Ok(()),
        }
    }
}

/// A server of either make; it lives as long as its trial.
enum Server {
    Ours(Control),
    Reference(Headscale),
}

impl Server {
    fn start(servers: Servers, host: &Host, relays: &[Relay]) -> Result<Self, LabError> {
        let map = derp_map(&relays.iter().collect::<Vec<_>>());
        Ok(match servers {
            Servers::Ours => Self::Ours(Control::start(host, Some(&map))?),
            Servers::Reference => Self::Reference(
                Headscale::start(host, &map)?
                    .ok_or_else(|| LabError::new("headscale is not installed"))?,
            ),
        })
    }

    fn url_and_key(&self) -> Result<(String, String), LabError> {
        Ok(match self {
            Self::Ours(control) => (control.url().to_owned(), control.auth_key("ann")?),
            Self::Reference(headscale) => (headscale.url(), headscale.auth_key("ann")?),
        })
    }
}

/// Runs one trial. Everything is made for it and goes away after it.
///
/// # Errors
/// When something does not start, or no reply comes back at all.
pub fn run(
    options: &JoinOptions,
    pair: Pair,
    kind: Kind,
    idle: Option<Duration>,
) -> Result<Trial, LabError> {
    let servers = if kind == Kind::Warren {
        options.ours_on
    } else {
        options.real_on
    };
    let host_options = HostOptions {
        ipv4_only: !options.ipv6,
    };
    let mut lab = Lab::new()?;
    // One relay is not enough for a client to see that a mapping varies.
    let mut relays = Vec::new();
    for region in [901, 902] {
        let host = lab.host_with(&format!("relay{region}"), Place::Open, host_options)?;
        let relay_kind = match servers {
            Servers::Ours => RelayKind::Warren,
            Servers::Reference => RelayKind::Derper,
        };
        let relay = Relay::start(&host, relay_kind, region)?;
        relays.push(relay.ok_or_else(|| LabError::new("derper is not installed"))?);
    }
    let control_host = lab.host_with("control", Place::Open, host_options)?;
    let server = Server::start(servers, &control_host, &relays)?;
    let (url, key) = server.url_and_key()?;

    let hosts = [
        lab.host_with("alice", pair.0, host_options)?,
        lab.host_with("bob", pair.1, host_options)?,
    ];
    let mut nodes = [Node::start(&hosts[0], kind)?, Node::start(&hosts[1], kind)?];
    let _echo = Echo::start(&hosts[1])?;
    // Name resolution is not measured, and the reference's set-up of it wants
    // a whole distribution around it.
    let more = ["--accept-dns=false"];
    let up = [
        nodes[0].up(&url, &key, &more)?,
        nodes[1].up(&url, &key, &more)?,
    ];
    let joined = Instant::now();
    let target = LocalApi::of(&hosts[1]).address()?;
    let probe = Probe::start(&hosts[0], target, PACE)?;

    let sender = LocalApi::of(&hosts[0]);
    let mut direct = None;
    let end = loop {
        let now = Instant::now();
        if direct.is_none() && sender.is_direct()? {
            // Read after the question: the answer is not older than that.
            direct = Some(Instant::now());
        }
        let enough = direct.map_or(joined + options.limit, |direct| direct + AFTER_DIRECT);
        if now >= enough {
            break now;
        }
        wait_until(now + PACE);
    };
    let first = until("a first reply through the tunnel", PATIENCE, || {
        probe.first_answer().ok_or("none came")
    })?;
    wait_until(Instant::now() + LAST_ECHOES);
    let (_, lost_before) = probe.lost_between(joined, first);
    let (_, lost_after) = probe.lost_between(first, end);
    let silence = probe.longest_silence(first);
    let lost: Vec<Duration> = probe
        .shots()
        .iter()
        .filter(|shot| shot.answered.is_none() && shot.sent >= first && shot.sent < end)
        .map(|shot| shot.sent - joined)
        .collect();
    let lost_span = lost.first().zip(lost.last()).map(|(&from, &to)| [from, to]);
    drop(probe);

    let idle = idle.map(|idle| {
        wait_until(Instant::now() + idle);
        let memory = nodes.each_mut().map(|node| Memory::of(node.daemon().pid()));
        memory[0].zip(memory[1]).map(|(alice, bob)| [alice, bob])
    });
    Ok(Trial {
        pair,
        kind,
        up,
        first_reply: first - joined,
        direct: direct.map(|direct| direct - joined),
        lost_before,
        lost_after,
        lost_span,
        silence,
        idle: idle.flatten(),
    })
}

fn wait_until(end: Instant) {
    while Instant::now() < end {
        std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}
