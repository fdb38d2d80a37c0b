//! The plan of a run: which STUN servers are asked, when, and in which family.
//!
//! A *set* is one region and family (in a map with a single region: one node
//! and family); its first answer ends it, so its later tries exist only for
//! lost datagrams. A full plan asks every region. An incremental plan asks the
//! three fastest and home, in the order of what they took last time.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::{DerpMap, DerpNode, DerpRegion, RegionId};
use warren_node_types::Family;

/// Between tries of a full plan.
const FULL_RETRY: Duration = Duration::from_millis(100);
/// Between tries of an incremental plan, to a region not measured before.
const DEFAULT_RETRY: Duration = Duration::from_millis(200);
/// Regions of an incremental plan besides home.
const INCREMENTAL_REGIONS: usize = 3;

/// One question: the address at which `region` sees us in `family`.
#[derive(Debug)]
pub(super) struct ProbeSet {
    pub(super) region: RegionId,
    pub(super) family: Family,
    /// When to ask, and which node of the region.
    pub(super) tries: VecDeque<(Instant, usize)>,
    pub(super) answered: bool,
}

/// The result of an earlier measurement, as far as planning needs it.
#[derive(Debug, Default, Clone)]
pub(super) struct LastTime {
    pub(super) latency: BTreeMap<RegionId, Duration>,
    pub(super) had_v6: bool,
}

/// The STUN address of a node in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StunAddress<'a> {
    Never,
    At(SocketAddr),
    /// The name must be resolved first.
    Resolve {
        name: &'a str,
        port: u16,
    },
}

pub(super) fn stun_address(node: &DerpNode, family: Family) -> StunAddress<'_> {
    let Some(port) = node.stun_port() else {
        return StunAddress::Never;
    };
    let of_family = |ip: IpAddr| Family::of(ip) == family;
    let literal = |text: &str| text.parse::<IpAddr>().ok();
    if let Some(ip) = literal(&node.stun_test_ip) {
        return if of_family(ip) {
            StunAddress::At(SocketAddr::new(ip, port))
        } else {
            StunAddress::Never
        };
    }
    let given = match family {
        Family::V4 => node.ipv4.literal().map(IpAddr::from),
        Family::V6 => node.ipv6.literal().map(IpAddr::from),
    };
    let ask_dns = match family {
        Family::V4 => node.ipv4 == warren_control_types::HostAddress::Resolve,
        Family::V6 => node.ipv6 == warren_control_types::HostAddress::Resolve,
    };
    match (given, literal(&node.host_name)) {
        (Some(ip), _) => StunAddress::At(SocketAddr::new(ip, port)),
        (None, Some(ip)) if ask_dns && of_family(ip) => StunAddress::At(SocketAddr::new(ip, port)),
        (None, None) if ask_dns && !node.host_name.is_empty() => StunAddress::Resolve {
            name: &node.host_name,
            port,
        },
        (None, _) => StunAddress::Never,
    }
}

/// Whether a region may be measured and become home.
pub(super) fn is_measured(region: &DerpRegion) -> bool {
    !region.no_measure_no_home && !region.nodes.is_empty()
}

/// Whether a region may become home.
pub(super) fn can_be_home(region: &DerpRegion) -> bool {
    is_measured(region) && !region.avoid && region.nodes.iter().any(|node| !node.stun_only)
}

pub(super) fn full(now: Instant, map: &DerpMap, families: &[Family]) -> Vec<ProbeSet> {
    let regions: Vec<_> = map
        .regions
        .iter()
        .filter(|(_, region)| is_measured(region))
        .collect();
    // With one region only, different nodes of it show whether the mapping
    // depends on the destination.
    let by_node = regions.len() == 1;
    let mut sets = Vec::new();
    for (id, region) in regions {
        for family in families {
            let nodes: Vec<usize> = (0..region.nodes.len())
                .filter(|node| stun_address(&region.nodes[*node], *family) != StunAddress::Never)
                .collect();
            if nodes.is_empty() {
                continue;
            }
            let set = |first: usize, step: usize| ProbeSet {
                region: *id,
                family: *family,
                tries: (0..3usize)
                    .zip((0u32..).map(|number| now + FULL_RETRY * number))
                    .map(|(number, at)| (at, nodes[(first + number * step) % nodes.len()]))
                    .collect(),
                answered: false,
            };
            if by_node {
                sets.extend((0..nodes.len().min(3)).map(|node| set(node, 0)));
            } else {
                sets.push(set(0, 1));
            }
        }
    }
    sets
}

pub(super) fn incremental(
    now: Instant,
    map: &DerpMap,
    families: &[Family],
    last: &LastTime,
    home: Option<RegionId>,
) -> Vec<ProbeSet> {
    let mut regions: Vec<RegionId> = map
        .regions
        .iter()
        .filter(|(id, region)| is_measured(region) && (!region.avoid || Some(**id) == home))
        .map(|(id, _)| *id)
        .collect();
    regions.sort_by_key(|id| {
        (
            !last.latency.contains_key(id),
            last.latency.get(id).copied(),
            *id,
        )
    });
    let home_later = home.filter(|home| {
        regions
            .iter()
            .position(|id| id == home)
            .is_some_and(|at| at >= INCREMENTAL_REGIONS)
    });
    regions.truncate(INCREMENTAL_REGIONS);
    regions.extend(home_later);

    let dual_stack = families.len() > 1;
    let mut sets = Vec::new();
    for (rank, id) in regions.iter().enumerate() {
        let Some(region) = map.regions.get(id) else {
            continue;
        };
        let is_home = Some(*id) == home;
        let tries: u32 = match (is_home, rank) {
            (true, _) => 4,
            (false, 0 | 1) => 2,
            (false, _) => 1,
        };
        let pause = last
            .latency
            .get(id)
            .map_or(DEFAULT_RETRY, |latency| *latency * 6 / 5);
        for family in families {
            let turn = if rank % 2 == 0 {
                Family::V4
            } else {
                Family::V6
            };
            let favoured = rank < 2 || is_home;
            let tries = match family {
                Family::V6 if !last.had_v6 && !favoured => 0,
                Family::V6 if !last.had_v6 => 1,
                _ if dual_stack && !favoured && turn != *family => 0,
                _ => tries,
            };
            let nodes: Vec<usize> = (0..region.nodes.len())
                .filter(|node| stun_address(&region.nodes[*node], *family) != StunAddress::Never)
                .collect();
            if tries == 0 || nodes.is_empty() {
                continue;
            }
            let at = |number: u32| {
                let extra = if number > 1 {
                    Duration::from_millis(50) * number
                } else {
                    Duration::ZERO
                };
                now + pause * number + extra
            };
            let tries = (0..tries).zip(nodes.iter().cycle());
            sets.push(ProbeSet {
                region: *id,
                family: *family,
                tries: tries.map(|(number, node)| (at(number), *node)).collect(),
                answered: false,
            });
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_control_types::HostAddress;

    fn node(host_name: &str, ipv4: HostAddress<std::net::Ipv4Addr>) -> DerpNode {
        DerpNode {
            host_name: host_name.to_owned(),
            ipv4,
            ..DerpNode::default()
        }
    }

    fn map(regions: u16) -> DerpMap {
        let region = |id: u16| DerpRegion {
            region_id: RegionId(id),
            nodes: vec![node("", HostAddress::At([192, 0, 2, 1].into()))],
            ..DerpRegion::default()
        };
        let regions = (1..=regions).map(|id| (RegionId(id), region(id))).collect();
        DerpMap {
            regions,
            ..DerpMap::default()
        }
    }

    #[test]
    fn stun_addresses_follow_the_relay_map() {
        let address = |node: &DerpNode, family| format!("{:?}", stun_address(node, family));
        let named = node("relay.example", HostAddress::Resolve);
        assert!(address(&named, Family::V4).contains("relay.example"));
        let literal = node("192.0.2.7", HostAddress::Resolve);
        assert_eq!(address(&literal, Family::V4), "At(192.0.2.7:3478)");
        assert_eq!(address(&literal, Family::V6), "Never");
        let never = node("relay.example", HostAddress::Never);
        assert_eq!(address(&never, Family::V4), "Never");
        let quiet = DerpNode {
            stun_port_raw: -1,
            ..named
        };
        assert_eq!(address(&quiet, Family::V4), "Never");
    }

    #[test]
    fn a_full_plan_asks_each_region_three_times() {
        let now = Instant::now();
        let sets = full(now, &map(4), &[Family::V4]);
        assert_eq!(sets.len(), 4);
        let millis: Vec<_> = sets[0]
            .tries
            .iter()
            .map(|(at, _)| (*at - now).as_millis())
            .collect();
        assert_eq!(millis, [0, 100, 200]);
    }

    #[test]
    fn the_nodes_of_an_only_region_are_asked_apart() {
        let mut map = map(1);
        let region = map.regions.get_mut(&RegionId(1)).unwrap();
        region.nodes.push(node("192.0.2.2", HostAddress::Resolve));
        let sets = full(Instant::now(), &map, &[Family::V4, Family::V6]);
        let nodes: Vec<_> = sets.iter().map(|set| set.tries[0].1).collect();
        assert_eq!(nodes, [0, 1]);
    }

    #[test]
    fn an_incremental_plan_favours_the_fast_and_home() {
        let now = Instant::now();
        let latency = (1..=6).map(|id| (RegionId(id), Duration::from_millis(u64::from(id) * 10)));
        let last = LastTime {
            latency: latency.collect(),
            had_v6: false,
        };
        let sets = incremental(now, &map(6), &[Family::V4], &last, Some(RegionId(6)));
        let plan: Vec<_> = sets
            .iter()
            .map(|set| (set.region.0, set.tries.len()))
            .collect();
        assert_eq!(plan, [(1, 2), (2, 2), (3, 1), (6, 4)]);
        let home: Vec<_> = sets[3]
            .tries
            .iter()
            .map(|(at, _)| (*at - now).as_millis())
            .collect();
        assert_eq!(home, [0, 72, 244, 366]);
    }
}
