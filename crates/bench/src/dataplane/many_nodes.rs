//! One node that sends to many, a TCP stream each: whether batches carry packets
//! of all of them, and whether each gets its share.

use super::drive::{Load, number};
use super::ends::{Candidate, v4};
use super::measure::{Found, Spans};
use super::usage::Counted;
use super::{check_interrupt, pause, until};
use crate::local_api::LocalApi;
use warren_lab::{
    Control, Host, HostOptions, Kind, Lab, LabError, Node, PATIENCE, Place, Relay, RelayKind,
    derp_map,
};

const GIGA: f64 = 1e9;

/// How many receivers.
const PEERS: usize = 10;
/// The name of the rows.
pub const NAME: &str = "peers10";

/// The programs that make the hosts a tailnet; absent on the bare cable.
struct Tailnet {
    sender: Node,
    nodes: Vec<Node>,
    _control: Control,
    _relay: Relay,
}

impl Tailnet {
    fn start(lab: &mut Lab, kind: Kind, hosts: &[Host]) -> Result<Self, LabError> {
        let options = HostOptions { ipv4_only: true };
        let relay_host = lab.host_with("relay", Place::Open, options)?;
        let relay = Relay::start(&relay_host, RelayKind::Warren, 901)?
            .ok_or_else(|| LabError::new("no relay"))?;
        let control_host = lab.host_with("control", Place::Open, options)?;
        let control = Control::start(&control_host, Some(&derp_map(&[&relay])))?;
        let key = control.auth_key("ann")?;
        let join = |host: &Host| -> Result<Node, LabError> {
            check_interrupt()?;
            let node = Node::start(host, kind)?;
            node.up(control.url(), &key, &["--accept-dns=false"])?;
            Ok(node)
        };
        let mut nodes = hosts.iter().map(join).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            sender: nodes.remove(0),
            nodes,
            _control: control,
            _relay: relay,
        })
    }
}

/// Brings up ten receivers, as a tailnet or with nothing between, and counts
/// what arrives at all of them.
///
/// # Errors
/// When something is missing or does not come up.
pub fn measure(candidate: Candidate, spans: Spans) -> Result<Found, LabError> {
    let options = HostOptions { ipv4_only: true };
    let mut lab = Lab::new()?;
    let hosts = (0..=PEERS)
        .map(|number| lab.host_with(&format!("host{number}"), Place::Open, options))
        .collect::<Result<Vec<_>, _>>()?;
    let mut tailnet = match candidate.kind() {
        Some(kind) => Some(Tailnet::start(&mut lab, kind, &hosts)?),
        None => None,
    };
    let receivers = match &tailnet {
        Some(tailnet) => tailnet
            .nodes
            .iter()
            .map(|node| LocalApi::of(node.host()).address())
            .collect::<Result<Vec<_>, _>>()?,
        None => hosts[1..].iter().map(Host::address).collect(),
    };
    let mut streams = Vec::new();
    for (host, address) in hosts[1..].iter().zip(receivers) {
        let mut sink = Load::start(host, &["tcp-sink".to_owned()])?;
        let to = format!("{}:{}", v4(address)?, sink.port());
        let arguments = ["tcp-source".to_owned(), to, "1".to_owned()];
        let source = Load::start(&hosts[0], &arguments)?;
        until("bytes to each", PATIENCE, || match bytes(&mut sink)? {
            bytes if bytes > 0.0 => Ok(()),
            _ => Err(LabError::new("none came")),
        })?;
        streams.push((source, sink));
    }
    if let Some(tailnet) = &tailnet {
        until("direct paths to all", PATIENCE, || {
            match LocalApi::of(tailnet.sender.host()).direct_peers()? {
                PEERS => Ok(()),
                direct => Err(LabError::new(format!("{direct} of {PEERS}"))),
            }
        })?;
    }
    pause(spans.warm_up)?;
    let cpu = match &mut tailnet {
        Some(tailnet) => Counted::process(tailnet.sender.daemon().pid()),
        None => Counted::default(),
    };
    let mut arrived = |of: &mut dyn FnMut(usize, f64)| -> Result<(), LabError> {
        for (index, (_, sink)) in streams.iter_mut().enumerate() {
            of(index, bytes(sink)?);
        }
        Ok(())
    };
    let mut counts = [0.0; PEERS];
    let (began, busy) = (std::time::Instant::now(), cpu.seconds());
    arrived(&mut |index, bytes| counts[index] -= bytes)?;
    pause(spans.tcp)?;
    let (seconds, busy) = (began.elapsed().as_secs_f64(), cpu.seconds() - busy);
    arrived(&mut |index, bytes| counts[index] += bytes)?;
    let total: f64 = counts.iter().sum();
    let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
    let most = counts.iter().copied().fold(0.0, f64::max);
    let mut found = vec![
        ("rate", total * 8.0 / seconds / GIGA),
        ("spread", most / least.max(1.0)),
    ];
    if !cpu.is_empty() {
        found.push(("cpu_out", busy / (total.max(1.0) / GIGA)));
    }
    Ok(found)
}

fn bytes(sink: &mut Load) -> Result<f64, LabError> {
    number(&sink.ask()?, "bytes")
}
