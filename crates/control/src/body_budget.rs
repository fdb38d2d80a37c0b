//! Memory for request bodies.
//!
//! Any machine can open a channel and begin as many requests as it takes. So the bodies of
//! machines that own no node are read only as far as these budgets go: that of the
//! channel, that of its source, that of the IPv6 site, and that of all of them together. A machine that owns a
//! node has a budget of its own, for all its channels. A request waits for its bytes as
//! long as it may wait for its body.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warren_dial::connections::Source;
use warren_keys::MachinePublic;

/// Bytes of one channel. A client registers with one request at a time.
const OF_CHANNEL: usize = 128 << 10;
/// Bytes of all channels of one source: one host cannot take them all.
const OF_SOURCE: usize = 1 << 20;
/// Bytes of all channels of an IPv6 site, a /48: one owner may have all its 65,536
/// networks, each of which is a source.
const OF_SITE: usize = 4 << 20;
/// Bytes of all channels together.
const OF_ALL: usize = 16 << 20;
/// Bytes of all channels of a machine that owns a node: two of the largest requests.
const OF_MEMBER: usize = 16 << 20;

/// The budget of all channels.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    all: Arc<Semaphore>,
    /// The budgets of sources that have channels.
    sources: Shares<Source>,
    /// The budgets of IPv6 sites that have channels.
    sites: Shares<[u8; 6]>,
    /// The budgets of machines that have channels.
    members: Shares<MachinePublic>,
}

/// Budgets that channels share.
#[derive(Debug)]
struct Shares<K>(Arc<Mutex<HashMap<K, Weak<Semaphore>>>>);

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash> Shares<K> {
    /// The budget of this key, which has so many bytes.
    fn of(&self, key: K, bytes: usize) -> Arc<Semaphore> {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let share = shares.get(&key).and_then(Weak::upgrade);
        share.unwrap_or_else(|| {
            // As many entries as there are keys with channels.
            shares.retain(|_, share| share.strong_count() > 0);
            let share = Arc::new(Semaphore::new(bytes));
            shares.insert(key, Arc::downgrade(&share));
            share
        })
    }
}

/// The budget of one channel.
#[derive(Debug, Clone)]
pub struct ChannelBudget {
    own: Arc<Semaphore>,
    source: Arc<Semaphore>,
    site: Option<Arc<Semaphore>>,
    all: Arc<Semaphore>,
    member: Arc<Semaphore>,
}

/// Bytes of the budgets, given back when the last copy is dropped. A request carries
/// them as an extension.
#[derive(Debug, Clone)]
pub struct ReservedBytes {
    _permits: Arc<[OwnedSemaphorePermit]>,
}

impl Default for BodyBudget {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(OF_ALL)),
            sources: Shares::default(),
            sites: Shares::default(),
            members: Shares::default(),
        }
    }
}

impl BodyBudget {
    /// A budget for a new channel of this machine from this address; `None`: the address
    /// is not known, as behind a proxy that names no clients.
    pub fn channel(&self, machine: MachinePublic, from: Option<IpAddr>) -> ChannelBudget {
        let (source, all) = match from {
            Some(from) => {
                let source = self.sources.of(Source::from(from), OF_SOURCE);
                (source, self.all.clone())
            }
            None => (self.all.clone(), Arc::new(Semaphore::new(OF_CHANNEL))),
        };
        let site = from.and_then(|from| match Source::from(from) {
            Source::V6([a, b, c, d, e, f, ..]) => Some(self.sites.of([a, b, c, d, e, f], OF_SITE)),
            Source::V4(_) | Source::Local => None,
        });
        ChannelBudget {
            own: Arc::new(Semaphore::new(OF_CHANNEL)),
            source,
            site,
            all,
            member: self.members.of(machine, OF_MEMBER),
        }
    }
}

impl ChannelBudget {
    /// Waits until so many bytes are free for a machine that owns no node. `None` only
    /// for more than a channel may ever have.
    pub async fn reserve(&self, bytes: u32) -> Option<ReservedBytes> {
        if bytes as usize > OF_CHANNEL {
            return None;
        }
        // The semaphores are never closed.
        let own = self.own.clone().acquire_many_owned(bytes).await.ok()?;
        let source = self.source.clone().acquire_many_owned(bytes).await.ok()?;
        let mut permits = vec![own, source];
        if let Some(site) = &self.site {
            permits.push(site.clone().acquire_many_owned(bytes).await.ok()?);
        }
        permits.push(self.all.clone().acquire_many_owned(bytes).await.ok()?);
        Some(ReservedBytes {
            _permits: permits.into(),
        })
    }

    /// Waits until so many bytes are free for a machine that owns a node. `None` only
    /// for more than a machine may ever have.
    pub async fn reserve_for_member(&self, bytes: u32) -> Option<ReservedBytes> {
        if bytes as usize > OF_MEMBER {
            return None;
        }
        let member = self.member.clone().acquire_many_owned(bytes).await.ok()?;
        Some(ReservedBytes {
            _permits: Arc::new([member]),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures_util::FutureExt as _;

    use super::*;

    const HALF: u32 = (OF_CHANNEL / 2) as u32;

    #[test]
    fn one_channel_cannot_take_more_than_its_part() {
        let channel = BodyBudget::default().channel(machine(1), from(1));
        let reserve = || channel.reserve(HALF).now_or_never();
        let (first, second) = (reserve().unwrap(), reserve().unwrap());
        assert!(first.is_some() && second.is_some());
        assert!(reserve().is_none(), "the third waits");
        drop(first);
        assert!(reserve().unwrap().is_some());
        assert!(
            channel
                .reserve(2 * HALF + 1)
                .now_or_never()
                .unwrap()
                .is_none()
        );
    }

    fn machine(number: u16) -> MachinePublic {
        let [high, low] = number.to_be_bytes();
        let mut key = [0; 32];
        (key[0], key[1]) = (high, low);
        MachinePublic::from_bytes(key)
    }

    #[test]
    fn channels_of_one_member_leave_room_to_other_members() {
        const LARGE: u32 = 8 << 20;
        let budget = BodyBudget::default();
        let reserve = |channel: &ChannelBudget| {
            let reserved = channel.reserve_for_member(LARGE).now_or_never();
            reserved.map(|reserved| reserved.expect("not more than a member may have"))
        };
        let channels: Vec<ChannelBudget> = (0..8)
            .map(|n| budget.channel(machine(1), from(n)))
            .collect();
        let reserved: Vec<ReservedBytes> = channels.iter().filter_map(reserve).collect();
        assert_eq!(reserved.len(), OF_MEMBER / LARGE as usize);
        assert!(reserve(&budget.channel(machine(2), from(1))).is_some());
        drop(reserved);
        assert!(reserve(&channels[7]).is_some());
    }

    fn from(source: u16) -> Option<IpAddr> {
        let ip = IpAddr::from([198, 18, source.to_be_bytes()[0], source.to_be_bytes()[1]]);
        Some(ip)
    }

    #[test]
    fn channels_of_one_source_leave_room_to_others() {
        let budget = BodyBudget::default();
        let channels: Vec<ChannelBudget> = (0..1000)
            .map(|n| budget.channel(machine(n), from(1)))
            .collect();
        let reserved: Vec<ReservedBytes> = channels
            .iter()
            .filter_map(|channel| channel.reserve(HALF).now_or_never()?)
            .collect();
        assert_eq!(reserved.len(), OF_SOURCE / HALF as usize);
        let other = budget
            .channel(machine(2), from(2))
            .reserve(HALF)
            .now_or_never();
        assert!(other.unwrap().is_some());
        // A source without channels leaves no entry behind.
        drop((channels, reserved));
        drop(budget.channel(machine(3), from(3)));
        assert_eq!(budget.sources.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn networks_of_one_ipv6_site_leave_space_to_other_sites() {
        let budget = BodyBudget::default();
        let network = |site: u16, network: u16| {
            let address = [0x2001, 0xdb8, site, network, 0, 0, 0, 1];
            Some(IpAddr::from(address))
        };
        let channels: Vec<ChannelBudget> = (0..1000)
            .map(|n| budget.channel(machine(n), network(1, n)))
            .collect();
        let reserved: Vec<ReservedBytes> = channels
            .iter()
            .filter_map(|channel| channel.reserve(HALF).now_or_never()?)
            .collect();
        assert_eq!(reserved.len(), OF_SITE / HALF as usize);
        for other in [network(2, 0), from(1)] {
            let other = budget.channel(machine(1), other);
            assert!(other.reserve(HALF).now_or_never().unwrap().is_some());
        }
    }

    #[test]
    fn many_channels_cannot_take_more_than_the_whole() {
        let budget = BodyBudget::default();
        let channels: Vec<ChannelBudget> = (0..1000)
            .map(|n| budget.channel(machine(n), from(n)))
            .collect();
        let reserved: Vec<ReservedBytes> = channels
            .iter()
            .filter_map(|channel| channel.reserve(HALF).now_or_never()?)
            .collect();
        assert_eq!(reserved.len(), OF_ALL / HALF as usize);
        drop(reserved);
        assert!(
            budget
                .channel(machine(1), from(1))
                .reserve(HALF)
                .now_or_never()
                .unwrap()
                .is_some()
        );
    }
}
