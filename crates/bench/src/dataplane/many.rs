//! One node under test in a tailnet of 1 to 1,000 peers ([`synthetic_peers`](super::synthetic_peers)):
//! what it sends to all of them in turns, what it takes from all of them in
//! turns, what one of them can do to the others, and what they cost in memory.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::datagrams::settled;
use super::drive::{Load, number};
use super::ends::{Candidate, v4};
use super::measure::{Found, Spans};
use super::usage::Counted;
use super::{check_interrupt, pause, until};
use crate::local_api::LocalApi;
use crate::machine::Memory;
use warren_lab::{
    Control, Host, HostOptions, Lab, LabError, Node, PATIENCE, Place, Relay, RelayKind, derp_map,
};

const GIGA: f64 = 1e9;
const MIB: f64 = 1024.0 * 1024.0;
/// How long paths and sessions with all of them may take. Both kinds of node
/// ask again after five seconds what had no way at first.
const MEETING: Duration = Duration::from_secs(60);
/// More than any machine makes with single datagrams: Gbit/s.
const EVERYTHING: f64 = 20.0;
/// Bytes of payload, of the greetings and of small datagrams.
const SMALL: usize = 200;
/// Bytes of payload of large ones.
const LARGE: usize = 1200;
/// The port to which the node under test sends; no program listens there.
const NOWHERE: u16 = 9;

/// How many peers there may be.
pub const PEERS: [u16; 4] = [1, 10, 100, 1000];
/// How many peers, and the name of the rows.
pub const SIZES: [(u16, &str); 4] = [
    (PEERS[0], "many1"),
    (PEERS[1], "many10"),
    (PEERS[2], "many100"),
    (PEERS[3], "many1000"),
];

/// The node, its synthetic peers, and the servers between them.
struct Stage {
    // In the order in which they end.
    synthetic: Load,
    _peers_host: Host,
    node: Node,
    targets: Vec<Ipv4Addr>,
    up: Duration,
    cpu: Counted,
    _control: Control,
    _relay: Relay,
    _lab: Lab,
}

/// Brings up a node of kind `candidate` with this many peers, and measures.
///
/// # Errors
/// When something is missing or does not come up.
pub fn measure(
    candidate: Candidate,
    peers: u16,
    spans: Spans,
    idle: Duration,
) -> Result<Found, LabError> {
    let mut stage = Stage::start(candidate, peers)?;
    let mut found = vec![("up", stage.up.as_secs_f64())];
    pause(idle)?;
    found.extend(stage.memory(["idle", "idle_anon"]));
    stage.meet_all()?;
    found.extend(stage.outward(LARGE, ["out", "out_cpu"], spans)?);
    found.extend(stage.outward(SMALL, ["out200", "out200_cpu"], spans)?);
    found.extend(stage.inward(LARGE, ["in", "in_cpu"], spans)?);
    found.extend(stage.inward(SMALL, ["in200", "in200_cpu"], spans)?);
    if peers > 1 {
        found.extend(stage.flood(peers, spans)?);
    }
    found.extend(stage.memory(["loaded", "loaded_anon"]));
    stage.check()?;
    Ok(found)
}

impl Stage {
    fn start(candidate: Candidate, peers: u16) -> Result<Self, LabError> {
        let kind = candidate
            .kind()
            .ok_or_else(|| LabError::new(format!("{candidate} has no peers")))?;
        let options = HostOptions { ipv4_only: true };
        let mut lab = Lab::new()?;
        let relay_host = lab.host_with("relay", Place::Open, options)?;
        let relay = Relay::start(&relay_host, RelayKind::Warren, 901)?
            .ok_or_else(|| LabError::new("no relay"))?;
        let control_host = lab.host_with("control", Place::Open, options)?;
        let control = Control::start(&control_host, Some(&derp_map(&[&relay])))?;
        let key = control.auth_key("ann")?;
        let peers_host = lab.host_with("peers", Place::Open, options)?;
        let arguments = [
            "synthetic-peers".to_owned(),
            control.url().to_owned(),
            key.clone(),
            peers.to_string(),
            peers_host.address().to_string(),
        ];
        // All of them first: the node is to get one netmap, not a thousand.
        let synthetic = Load::start(&peers_host, &arguments)?;
        check_interrupt()?;
        let mut node = Node::start(&lab.host_with("node", Place::Open, options)?, kind)?;
        let began = Instant::now();
        node.up(control.url(), &key, &["--accept-dns=false"])?;
        let up = began.elapsed();
        let cpu = Counted::process(node.daemon().pid());
        Ok(Self {
            synthetic,
            _peers_host: peers_host,
            node,
            targets: Vec::with_capacity(peers.into()),
            up,
            cpu,
            _control: control,
            _relay: relay,
            _lab: lab,
        })
        .and_then(|mut stage: Self| {
            stage.introduce(peers)?;
            Ok(stage)
        })
    }

    /// Sends the synthetic peers the node's address and their own.
    fn introduce(&mut self, peers: u16) -> Result<(), LabError> {
        let api = LocalApi::of(self.node.host());
        let status = until("a netmap with all", PATIENCE, || {
            let status = api.status()?;
            let known = status["Peer"].as_object().map_or(0, |peers| peers.len());
            if known < usize::from(peers) {
                return Err(LabError::new(format!("{known} of {peers}")));
            }
            Ok(status)
        })?;
        let of = |entry: &Value| {
            let addresses = entry["TailscaleIPs"].as_array().into_iter().flatten();
            addresses
                .filter_map(Value::as_str)
                .find_map(|address| address.parse::<Ipv4Addr>().ok())
        };
        let all = status["Peer"].as_object().into_iter().flatten();
        let by_name: BTreeMap<&str, Ipv4Addr> = all
            .filter_map(|(_, peer)| Some((peer["HostName"].as_str()?, of(peer)?)))
            .collect();
        self.targets = (0..peers)
            .filter_map(|number| by_name.get(format!("peer{number}").as_str()).copied())
            .collect();
        let own = self.targets.iter().map(Ipv4Addr::to_string);
        let words = format!(
            "meet {} {} {}",
            status["Self"]["PublicKey"].as_str().unwrap_or_default(),
            v4(api.address()?)?,
            own.collect::<Vec<_>>().join(",")
        );
        self.synthetic.ask_for(&words)?;
        Ok(())
    }

    /// A generator beside the node that sends to all in turns.
    fn sender(&self, rate: f64, size: usize, span: Duration) -> Result<Load, LabError> {
        let to = self.targets.iter().map(|it| format!("{it}:{NOWHERE}"));
        let arguments = [
            "udp-many".to_owned(),
            format!("{rate:.0}"),
            size.to_string(),
            span.as_millis().to_string(),
            to.collect::<Vec<_>>().join(","),
        ];
        Load::start(self.node.host(), &arguments)
    }

    /// Greets all, until there is a session and a direct path with each.
    #[allow(clippy::cast_precision_loss)] // a thousand at most
    fn meet_all(&mut self) -> Result<(), LabError> {
        /// Greetings to each in a second.
        const GREETINGS: f64 = 4.0;
        let peers = self.targets.len();
        let rate = GREETINGS * (peers * SMALL) as f64;
        let mut sender = self.sender(rate, SMALL, Duration::from_millis(500))?;
        let api = LocalApi::of(self.node.host());
        until("a session with each", MEETING, || {
            sender.ask()?;
            let sessions = number(&self.synthetic.ask_for("sessions")?, "sessions")?;
            let direct = api.direct_peers()?;
            if sessions < peers as f64 || direct < peers {
                let text = format!("{sessions} sessions, {direct} direct paths");
                return Err(LabError::new(text));
            }
            Ok(())
        })
    }

    /// The node sends to all in turns, as fast as it can.
    fn outward(
        &mut self,
        size: usize,
        names: [&'static str; 2],
        spans: Spans,
    ) -> Result<Found, LabError> {
        check_interrupt()?;
        let mut sender = self.sender(EVERYTHING * GIGA / 8.0, size, spans.udp)?;
        let before = number(&settled(&mut self.synthetic)?, "datagrams")?;
        let busy = self.cpu.seconds();
        let sent = sender.ask()?;
        let after = number(&settled(&mut self.synthetic)?, "datagrams")?;
        Ok(self.figures(names, (after - before) * size_of(size), busy, &sent))
    }

    /// The node takes from all in turns, as fast as they can.
    fn inward(
        &mut self,
        size: usize,
        names: [&'static str; 2],
        spans: Spans,
    ) -> Result<Found, LabError> {
        check_interrupt()?;
        let mut sink = Load::start(self.node.host(), &["udp-sink".to_owned()])?;
        let busy = self.cpu.seconds();
        let sent = self.synthetic.ask_for(&format!(
            "send {} {:.0} {size} {}",
            sink.port(),
            EVERYTHING * GIGA / 8.0,
            spans.udp.as_millis()
        ))?;
        let bytes = number(&settled(&mut sink)?, "bytes")?;
        Ok(self.figures(names, bytes, busy, &sent))
    }

    fn figures(
        &self,
        [rate, cpu]: [&'static str; 2],
        bytes: f64,
        busy: f64,
        sent: &Value,
    ) -> Found {
        let seconds = sent["seconds"].as_f64().unwrap_or(f64::NAN);
        let mut found = vec![(rate, bytes * 8.0 / seconds / GIGA)];
        if bytes > 0.0 {
            found.push((cpu, (self.cpu.seconds() - busy) / (bytes / GIGA)));
        }
        found
    }

    /// One floods while the others say little.
    #[allow(clippy::cast_precision_loss)] // counts far below 2^52
    fn flood(&mut self, peers: u16, spans: Spans) -> Result<Found, LabError> {
        /// For what still waits in queues.
        const LATE: Duration = Duration::from_millis(500);
        check_interrupt()?;
        let mut sink = Load::start(self.node.host(), &["stamp-sink".to_owned()])?;
        let sent = self.synthetic.ask_for(&format!(
            "flood {} {LARGE} {} {}",
            sink.port(),
            spans.udp.as_millis(),
            modest(peers)
        ))?;
        pause(LATE)?;
        let came = sink.ask()?;
        let seconds = spans.udp.as_secs_f64();
        let rate = |datagrams: f64| datagrams * size_of(LARGE) * 8.0 / seconds / GIGA;
        let others = number(&sent, "others")?.max(1.0);
        let each = others / f64::from(peers - 1);
        // Senders of which nothing arrived are not among the counted ones.
        let all_arrived = number(&came, "senders")? >= f64::from(peers - 1);
        let fewest = if all_arrived {
            number(&came, "fewest")?
        } else {
            0.0
        };
        let lost = |arrived: f64, of: f64| (1.0 - arrived / of).max(0.0) * 100.0;
        Ok(vec![
            ("flood_sent", rate(number(&sent, "flood")?)),
            ("flood", rate(number(&came, "flood")?)),
            ("others_lost", lost(number(&came, "others")?, others)),
            ("others_worst", lost(fewest, each)),
            ("others_p50", number(&came, "p50")?),
            ("others_p99", number(&came, "p99")?),
        ])
    }

    #[allow(clippy::cast_precision_loss)] // sizes far below 2^52
    fn memory(&mut self, [all, anonymous]: [&'static str; 2]) -> Found {
        let memory = Memory::of(self.node.daemon().pid());
        memory.map_or_else(Vec::new, |memory| {
            vec![
                (all, memory.resident as f64 / MIB),
                (anonymous, memory.anonymous as f64 / MIB),
            ]
        })
    }

    /// Checks that all datagrams of the node could be opened.
    fn check(&mut self) -> Result<(), LabError> {
        let counts = self.synthetic.ask()?;
        match (number(&counts, "bad")?, number(&counts, "opened")?) {
            (0.0, 1.0..) => Ok(()),
            _ => Err(LabError::new(format!("not all could be opened: {counts}"))),
        }
    }
}

/// Datagrams per second of each peer that does not flood.
fn modest(peers: u16) -> u64 {
    if peers > 100 { 10 } else { 100 }
}

#[allow(clippy::cast_precision_loss)] // a thousand or so
fn size_of(size: usize) -> f64 {
    size as f64
}
