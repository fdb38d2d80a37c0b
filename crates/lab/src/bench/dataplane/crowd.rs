//! One node that sends to many, a TCP stream each: whether batches carry packets
//! of all of them, and whether each gets its share.

use super::drive::{Load, number};
use super::ends::{Who, v4};
use super::items::{Found, Spans};
use super::usage::Counted;
use super::{check_interrupt, pause, until};
use crate::bench::local_api::LocalApi;
use crate::{
    Control, HostOptions, Lab, LabError, Node, PATIENCE, Place, Relay, RelayKind, derp_map,
};

const GIGA: f64 = 1e9;

/// How many receivers, and the name of the row.
pub fn sizes(quick: bool) -> &'static [(usize, &'static str)] {
    if quick {
        &[(10, "peers10")]
    } else {
        &[(10, "peers10"), (40, "peers40")]
    }
}

/// Brings up a tailnet, and counts what arrives at all of them.
///
/// # Errors
/// When something is missing or does not come up.
pub fn measure(who: Who, peers: usize, spans: Spans) -> Result<Found, LabError> {
    let kind = who
        .kind()
        .ok_or_else(|| LabError::new(format!("{who} has no peers")))?;
    let options = HostOptions { ipv4_only: true };
    let mut lab = Lab::new()?;
    let relay_host = lab.host_with("relay", Place::Open, options)?;
    let relay = Relay::start(&relay_host, RelayKind::Warren, 901)?
        .ok_or_else(|| LabError::new("no relay"))?;
    let control_host = lab.host_with("control", Place::Open, options)?;
    let control = Control::start(&control_host, Some(&derp_map(&[&relay])))?;
    let key = control.auth_key("ann")?;
    let mut join = |name: &str| -> Result<Node, LabError> {
        check_interrupt()?;
        let node = Node::start(&lab.host_with(name, Place::Open, options)?, kind)?;
        node.up(control.url(), &key, &["--accept-dns=false"])?;
        Ok(node)
    };
    let mut sender = join("sender")?;
    let nodes = (0..peers)
        .map(|number| join(&format!("peer{number}")))
        .collect::<Result<Vec<Node>, _>>()?;

    let mut streams = Vec::new();
    for node in &nodes {
        let mut sink = Load::start(node.host(), &["tcp-sink".to_owned()])?;
        let address = v4(LocalApi::of(node.host()).address()?)?;
        let to = format!("{address}:{}", sink.port());
        let arguments = ["tcp-source".to_owned(), to, "1".to_owned()];
        let source = Load::start(sender.host(), &arguments)?;
        until("bytes to each", PATIENCE, || match bytes(&mut sink)? {
            bytes if bytes > 0.0 => Ok(()),
            _ => Err(LabError::new("none came")),
        })?;
        streams.push((source, sink));
    }
    until("direct paths to all", PATIENCE, || {
        match LocalApi::of(sender.host()).direct_peers()? {
            direct if direct == peers => Ok(()),
            direct => Err(LabError::new(format!("{direct} of {peers}"))),
        }
    })?;
    pause(spans.warm_up)?;
    let cpu = Counted::process(sender.daemon().pid());
    let mut arrived = |of: &mut dyn FnMut(usize, f64)| -> Result<(), LabError> {
        for (index, (_, sink)) in streams.iter_mut().enumerate() {
            of(index, bytes(sink)?);
        }
        Ok(())
    };
    let mut counts = vec![0.0; peers];
    let (began, busy) = (std::time::Instant::now(), cpu.seconds());
    arrived(&mut |index, bytes| counts[index] -= bytes)?;
    pause(spans.tcp)?;
    let (seconds, busy) = (began.elapsed().as_secs_f64(), cpu.seconds() - busy);
    arrived(&mut |index, bytes| counts[index] += bytes)?;
    let total: f64 = counts.iter().sum();
    let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
    let most = counts.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        ("rate", total * 8.0 / seconds / GIGA),
        ("spread", most / least.max(1.0)),
        ("cpu_out", busy / (total.max(1.0) / GIGA)),
    ])
}

fn bytes(sink: &mut Load) -> Result<f64, LabError> {
    number(&sink.ask()?, "bytes")
}
