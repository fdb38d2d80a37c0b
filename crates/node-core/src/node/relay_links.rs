//! The connections to relays: which exist, and what waits for them.
//!
//! Path finding requests relays, and repeats requests. This module decides whether
//! that means a new connection; packets wait while it is being made. A connection has a number, so that the last reports of an old one are
//! not taken for those of its successor.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use warren_control_types::{DerpMap, RegionId};
use warren_keys::NodePublic;

use super::io::{LinkId, NodeOutput};

/// Packets that wait for a connection that is being made. The oldest ones are
/// dropped for new ones.
const MAX_WAITING: usize = 256;

#[derive(Debug)]
enum Link {
    Dialing {
        id: LinkId,
        waiting: VecDeque<(NodePublic, Vec<u8>)>,
    },
    Open {
        id: LinkId,
        local: Option<IpAddr>,
    },
}

impl Link {
    fn id(&self) -> LinkId {
        match self {
            Self::Dialing { id, .. } | Self::Open { id, .. } => *id,
        }
    }
}

/// All connections to relays.
#[derive(Debug, Default)]
pub(super) struct RelayLinks {
    map: DerpMap,
    home: Option<RegionId>,
    last: u64,
    links: BTreeMap<RegionId, Link>,
    outputs: VecDeque<NodeOutput>,
}

impl std::fmt::Debug for NodeOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys and packets stay out of logs.
        f.write_str("NodeOutput(..)")
    }
}

impl RelayLinks {
    pub(super) fn poll_output(&mut self) -> Option<NodeOutput> {
        self.outputs.pop_front()
    }

    /// Makes one attempt to connect, unless there is a connection. Returns false
    /// when the map has no such relay.
    pub(super) fn connect(&mut self, region: RegionId) -> bool {
        if self.links.contains_key(&region) {
            return true;
        }
        let Some(definition) = self.map.regions.get(&region) else {
            return false;
        };
        self.last += 1;
        let id = LinkId(self.last);
        let waiting = VecDeque::new();
        self.links.insert(region, Link::Dialing { id, waiting });
        self.outputs.push_back(NodeOutput::DialRelay {
            region,
            link: id,
            definition: Box::new(definition.clone()),
            is_home: self.home == Some(region),
        });
        true
    }

    /// The connection is open: sends the packets that waited.
    pub(super) fn opened(&mut self, region: RegionId, id: LinkId, local: Option<IpAddr>) {
        let Some(link) = self.links.get_mut(&region) else {
            return;
        };
        let Link::Dialing {
            id: dialing,
            waiting,
        } = link
        else {
            return;
        };
        if *dialing != id {
            return;
        }
        for (to, packet) in waiting.drain(..) {
            self.outputs.push_back(NodeOutput::SendRelay {
                region,
                link: id,
                to,
                packet,
            });
        }
        *link = Link::Open { id, local };
    }

    /// Whether this is the present connection to the relay.
    pub(super) fn is_current(&self, region: RegionId, id: LinkId) -> bool {
        self.links.get(&region).is_some_and(|link| link.id() == id)
    }

    /// The connection ended by itself.
    pub(super) fn ended(&mut self, region: RegionId) {
        self.links.remove(&region);
    }

    /// Closes the connection to a relay, if there is one.
    pub(super) fn close(&mut self, region: RegionId) {
        if let Some(link) = self.links.remove(&region) {
            self.outputs
                .push_back(NodeOutput::CloseRelay(region, link.id()));
        }
    }

    pub(super) fn close_all(&mut self) {
        while let Some(region) = self.links.keys().next().copied() {
            self.close(region);
        }
    }

    /// Uses another map. Connections to relays that changed are closed and
    /// returned.
    pub(super) fn set_map(&mut self, map: &DerpMap) -> Vec<RegionId> {
        let regions = self.links.keys().copied();
        let changed: Vec<RegionId> = regions
            .filter(|region| self.map.regions.get(region) != map.regions.get(region))
            .collect();
        self.map = map.clone();
        for region in &changed {
            self.close(*region);
        }
        changed
    }

    /// Closes the connections that leave from an address that is gone: they would
    /// hang until TCP gives up. Returns their relays.
    pub(super) fn close_stranded(&mut self, addresses: &[IpAddr]) -> Vec<RegionId> {
        let is_stranded = |link: &Link| match link {
            Link::Dialing { .. } => false,
            Link::Open { local, .. } => local.is_some_and(|local| !addresses.contains(&local)),
        };
        let links = self.links.iter().filter(|(_, link)| is_stranded(link));
        let stranded: Vec<RegionId> = links.map(|(region, _)| *region).collect();
        for region in &stranded {
            self.close(*region);
        }
        stranded
    }

    /// Sends all relays whether they are home now, and connects to the home relay.
    pub(super) fn set_home(&mut self, home: RegionId) {
        self.home = Some(home);
        for (region, link) in &self.links {
            if let Link::Open { id, .. } = link {
                self.outputs
                    .push_back(NodeOutput::NoteHome(*region, *id, *region == home));
            }
        }
        self.connect(home);
    }

    /// Sends a packet, connecting first if need be.
    pub(super) fn send(&mut self, region: RegionId, to: NodePublic, packet: Vec<u8>) {
        self.connect(region);
        match self.links.get_mut(&region) {
            None => {}
            Some(Link::Dialing { waiting, .. }) => {
                if waiting.len() == MAX_WAITING {
                    waiting.pop_front();
                }
                waiting.push_back((to, packet));
            }
            Some(Link::Open { id, .. }) => {
                let link = *id;
                self.outputs.push_back(NodeOutput::SendRelay {
                    region,
                    link,
                    to,
                    packet,
                });
            }
        }
    }

    /// The number of open connections.
    pub(super) fn open_links(&self) -> usize {
        let links = self.links.values();
        links
            .filter(|link| matches!(link, Link::Open { .. }))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use warren_control_types::DerpRegion;

    use super::*;

    const AMS: RegionId = RegionId(1);
    const FRA: RegionId = RegionId(2);

    fn map(names: &[(RegionId, &str)]) -> DerpMap {
        let mut map = DerpMap::default();
        for (region_id, code) in names {
            let region = DerpRegion {
                region_id: *region_id,
                region_code: (*code).to_owned(),
                ..DerpRegion::default()
            };
            map.regions.insert(*region_id, region);
        }
        map
    }

    fn links() -> RelayLinks {
        let mut links = RelayLinks::default();
        assert!(
            links
                .set_map(&map(&[(AMS, "ams"), (FRA, "fra")]))
                .is_empty()
        );
        links
    }

    fn log(links: &mut RelayLinks) -> Vec<String> {
        std::iter::from_fn(|| links.poll_output())
            .map(|output| match output {
                NodeOutput::DialRelay {
                    region,
                    link,
                    is_home,
                    ..
                } => format!("dial {} {} {is_home}", region.0, link.0),
                NodeOutput::SendRelay { link, packet, .. } => {
                    format!("send {} {}", link.0, packet[0])
                }
                NodeOutput::CloseRelay(_, link) => format!("close {}", link.0),
                NodeOutput::NoteHome(_, link, is_home) => format!("home {} {is_home}", link.0),
                _ => unreachable!(),
            })
            .collect()
    }

    fn peer() -> NodePublic {
        NodePublic::from_bytes([9; 32])
    }

    #[test]
    fn packets_wait_for_the_connection_and_keep_their_order() {
        let mut links = links();
        links.send(AMS, peer(), vec![1]);
        links.send(AMS, peer(), vec![2]);
        assert_eq!(log(&mut links), ["dial 1 1 false"]);
        links.opened(AMS, LinkId(1), None);
        links.send(AMS, peer(), vec![3]);
        assert_eq!(log(&mut links), ["send 1 1", "send 1 2", "send 1 3"]);
        assert_eq!(links.open_links(), 1);
    }

    #[test]
    fn the_newest_packets_wait() {
        let mut links = links();
        for number in 0..=255u8 {
            links.send(AMS, peer(), vec![number]);
        }
        links.send(AMS, peer(), vec![0]);
        links.opened(AMS, LinkId(1), None);
        let sent = log(&mut links);
        assert_eq!(sent.len(), 1 + MAX_WAITING);
        assert_eq!(sent[1], "send 1 1");
        assert_eq!(sent[MAX_WAITING], "send 1 0");
    }

    #[test]
    fn reports_of_an_old_connection_are_ignored() {
        let mut links = links();
        assert!(links.connect(AMS));
        links.close(AMS);
        assert!(links.connect(AMS));
        links.opened(AMS, LinkId(1), None);
        assert_eq!(links.open_links(), 0);
        assert!(!links.is_current(AMS, LinkId(1)) && links.is_current(AMS, LinkId(2)));
        assert_eq!(
            log(&mut links),
            ["dial 1 1 false", "close 1", "dial 1 2 false"]
        );
    }

    #[test]
    fn relays_outside_the_map_are_not_dialled() {
        let mut links = links();
        assert!(!links.connect(RegionId(7)));
        links.send(RegionId(7), peer(), vec![1]);
        assert!(log(&mut links).is_empty());
    }

    #[test]
    fn connections_end_with_their_definition_or_their_local_address() {
        let mut links = links();
        let [here, there] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().unwrap());
        for (region, id, local) in [(AMS, 1, here), (FRA, 2, there)] {
            links.connect(region);
            links.opened(region, LinkId(id), Some(local));
        }
        assert_eq!(links.close_stranded(&[here]), [FRA]);
        assert_eq!(links.set_map(&map(&[(AMS, "moved")])), [AMS]);
        assert_eq!(
            log(&mut links),
            ["dial 1 1 false", "dial 2 2 false", "close 2", "close 1"]
        );
    }

    #[test]
    fn every_open_relay_learns_which_one_is_home() {
        let mut links = links();
        links.connect(AMS);
        links.opened(AMS, LinkId(1), None);
        links.set_home(FRA);
        assert_eq!(
            log(&mut links),
            ["dial 1 1 false", "home 1 false", "dial 2 2 true"]
        );
    }
}
