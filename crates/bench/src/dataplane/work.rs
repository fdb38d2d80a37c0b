//! The work that is given to each of them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::datagrams::{DATAGRAM, udp, udp_max};
use super::drive::{Load, number};
use super::ends::{Candidate, Ends};
use super::measure::{Clock, Found, GIGA, Spans};
use super::{pause, until};
use warren_lab::{LabError, PATIENCE};

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// TCP, one stream.
    Tcp1,
    /// TCP, four streams.
    Tcp4,
    /// Single datagrams, 0.5 Gbit/s offered.
    Udp05,
    /// Single datagrams, 3 Gbit/s offered.
    Udp3,
    /// The highest rate of single datagrams with under 1 % lost.
    UdpMax,
    /// Round trips, idle.
    Ping,
    /// Round trips beside TCP.
    PingLoad,
    /// TCP while an unauthenticated sender floods the receiving node.
    Flood,
    /// TCP to a host of a LAN, through a node that forwards.
    Forward,
    /// TCP from one node to many, one stream each.
    Peers,
    /// TCP through relays.
    Relay,
    /// Memory, idle and after everything else.
    Memory,
    /// The bare parts alone.
    Parts,
}

impl Item {
    /// All, in the order in which they run.
    pub const ALL: [Self; 13] = [
        Self::Memory,
        Self::Ping,
        Self::Tcp1,
        Self::Tcp4,
        Self::Udp05,
        Self::Udp3,
        Self::UdpMax,
        Self::PingLoad,
        Self::Flood,
        Self::Forward,
        Self::Peers,
        Self::Relay,
        Self::Parts,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Udp05 => "udp05",
            Self::Udp3 => "udp3",
            Self::UdpMax => "udpmax",
            Self::Ping => "ping",
            Self::PingLoad => "pingload",
            Self::Flood => "flood",
            Self::Forward => "forward",
            Self::Peers => "peers",
            Self::Relay => "relay",
            Self::Memory => "memory",
            Self::Parts => "parts",
        }
    }

    /// Whether `candidate` is measured with it, on a direct path.
    pub fn concerns(self, candidate: Candidate) -> bool {
        match self {
            Self::Tcp1 | Self::Tcp4 => true,
            // A bound of the bound: how many single frames a TUN takes.
            Self::UdpMax => true,
            Self::Udp05 | Self::Udp3 | Self::Ping | Self::PingLoad => {
                candidate != Candidate::Shuttle
            }
            Self::Flood => candidate.kind().is_some(),
            // These have turns of their own.
            Self::Forward | Self::Peers | Self::Relay | Self::Memory | Self::Parts => false,
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Item {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|item| item.name() == text)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("nothing is called `{text}`; there are {names}")
            })
    }
}

const PING_INTERVAL: Duration = Duration::from_millis(5);

/// Does `item` on `ends`.
///
/// # Errors
/// When a generator fails, or the path is another than it should be.
pub fn run(item: Item, ends: &Ends, spans: Spans) -> Result<Found, LabError> {
    // Paths that were quiet during others' turns may start elsewhere.
    ends.settle()?;
    let found = match item {
        Item::Tcp1 => Tcp::start(ends, 1)?.measure(spans),
        Item::Tcp4 => Tcp::start(ends, 4)?.measure(spans),
        Item::Udp05 => udp(ends, 0.5, spans.udp).map(|it| it.found()),
        Item::Udp3 => udp(ends, 3.0, spans.udp).map(|it| it.found()),
        Item::UdpMax => udp_max(ends, spans),
        Item::Ping => ping(ends, spans),
        Item::PingLoad => ping_beside_tcp(ends, spans),
        Item::Flood => flood(ends, spans),
        Item::Forward => Tcp::start(ends, 1)?.measure(spans),
        Item::Relay => relay(ends, spans),
        Item::Peers | Item::Memory | Item::Parts => Ok(Vec::new()),
    }?;
    ends.check_route()?;
    Ok(found)
}

/// TCP connections that carry as much as they can, until dropped.
pub struct Tcp<'a> {
    ends: &'a Ends,
    // The source first: the sink is not to see its own end as one of the line.
    _source: Load,
    sink: Load,
}

impl<'a> Tcp<'a> {
    /// Connects, and waits for the first bytes.
    ///
    /// # Errors
    /// When nothing arrives.
    pub fn start(ends: &'a Ends, streams: usize) -> Result<Self, LabError> {
        let mut sink = Load::start(&ends.hosts[1], &["tcp-sink".to_owned()])?;
        let to = format!("{}:{}", ends.target, sink.port());
        let arguments = ["tcp-source".to_owned(), to, streams.to_string()];
        let source = Load::start(&ends.hosts[0], &arguments)?;
        until("bytes through the tunnel", PATIENCE, || {
            match number(&sink.ask()?, "bytes")? {
                bytes if bytes > 0.0 => Ok(()),
                _ => Err(LabError::new("none came")),
            }
        })?;
        Ok(Self {
            ends,
            _source: source,
            sink,
        })
    }

    /// Warms up, and counts.
    ///
    /// # Errors
    /// When a generator ends, or after Ctrl-C.
    pub fn measure(&mut self, spans: Spans) -> Result<Found, LabError> {
        pause(spans.warm_up)?;
        self.count(|| pause(spans.tcp))
    }

    /// Counts what arrives while `meanwhile` runs.
    fn count(
        &mut self,
        meanwhile: impl FnOnce() -> Result<(), LabError>,
    ) -> Result<Found, LabError> {
        let before = self.sink.ask()?;
        let clock = Clock::read(self.ends);
        meanwhile()?;
        let after = self.sink.ask()?;
        let bytes = number(&after, "bytes")? - number(&before, "bytes")?;
        let seconds = number(&after, "at")? - number(&before, "at")?;
        let mut found = vec![("rate", bytes * 8.0 / seconds / GIGA)];
        found.extend(clock.per_gigabyte(self.ends, bytes));
        Ok(found)
    }
}

fn ping(ends: &Ends, spans: Spans) -> Result<Found, LabError> {
    let mut ping = ends.ping(spans.pings, PING_INTERVAL)?;
    round_trips(&ping.ask()?)
}

fn ping_beside_tcp(ends: &Ends, spans: Spans) -> Result<Found, LabError> {
    let mut ping = ends.ping(spans.pings, PING_INTERVAL)?;
    let mut tcp = Tcp::start(ends, 1)?;
    pause(spans.warm_up)?;
    let mut answer = Value::Null;
    let tcp = tcp.count(|| {
        answer = ping.ask()?;
        Ok(())
    })?;
    let mut found = round_trips(&answer)?;
    found.extend(tcp.into_iter().filter(|(name, _)| *name == "rate"));
    Ok(found)
}

fn round_trips(answer: &Value) -> Result<Found, LabError> {
    let times = answer["ms"].as_array().into_iter().flatten();
    let mut times: Vec<f64> = times.filter_map(Value::as_f64).collect();
    times.sort_by(f64::total_cmp);
    let lost = number(answer, "lost")?;
    let (Some(&least), Some(&most)) = (times.first(), times.last()) else {
        return Err(LabError::new("no ping came back"));
    };
    #[allow(clippy::cast_precision_loss)] // a few hundred
    let count = times.len() as f64;
    // The nearest rank: the smallest that at least 99 % do not exceed.
    let p99 = times[(times.len() * 99).div_ceil(100) - 1];
    Ok(vec![
        ("min", least),
        ("avg", times.iter().sum::<f64>() / count),
        ("p99", p99),
        ("max", most),
        ("lost", lost / (lost + count) * 100.0),
    ])
}

/// TCP beside a flood from an unauthenticated sender at its highest rate; the path
/// must still be direct afterwards, which [`run`] looks at.
fn flood(ends: &Ends, spans: Spans) -> Result<Found, LabError> {
    /// More than any machine makes with single datagrams.
    const EVERYTHING: f64 = 20.0;
    let (Some(outsider), Some(at)) = (&ends.outsider, ends.outside) else {
        return Err(LabError::new(
            "this candidate has no host outside its tailnet",
        ));
    };
    let mut tcp = Tcp::start(ends, 1)?;
    pause(spans.warm_up)?;
    let arguments = [
        "udp-source".to_owned(),
        at.to_string(),
        format!("{:.0}", EVERYTHING * GIGA / 8.0),
        DATAGRAM.to_string(),
        spans.tcp.as_millis().to_string(),
    ];
    let mut source = Load::start(outsider, &arguments)?;
    let mut junk = Value::Null;
    let mut found = tcp.count(|| {
        junk = source.ask()?;
        Ok(())
    })?;
    let seconds = number(&junk, "seconds")?;
    found.push(("junk", number(&junk, "bytes")? * 8.0 / seconds / GIGA));
    Ok(found)
}

fn relay(ends: &Ends, spans: Spans) -> Result<Found, LabError> {
    let mut found = Tcp::start(ends, 1)?.measure(spans)?;
    // A series of its own: the pings are not to count as load of the first.
    let beside = ping_beside_tcp(ends, spans)?;
    found.extend(beside.into_iter().filter(|(name, _)| *name == "p99"));
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_item_is_read_back_by_its_name() {
        for item in Item::ALL {
            assert_eq!(item.to_string().parse::<Item>().unwrap(), item);
        }
        assert!("tcp".parse::<Item>().unwrap_err().contains("tcp4"));
    }

    #[test]
    fn round_trips_are_summed_up_by_nearest_rank() {
        let times: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let found = round_trips(&serde_json::json!({ "ms": times, "lost": 25 })).unwrap();
        let of = |name: &str| found.iter().find(|(it, _)| *it == name).unwrap().1;
        assert_eq!((of("min"), of("p99"), of("max")), (1.0, 99.0, 100.0));
        assert_eq!((of("avg"), of("lost")), (50.5, 20.0));
        assert!(round_trips(&serde_json::json!({ "ms": [], "lost": 9 })).is_err());
    }
}
