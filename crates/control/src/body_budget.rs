//! Memory for request bodies of machines that own no node.
//!
//! Any machine can open a channel and begin as many requests as it takes. So the bodies of
//! such machines are read only as far as three budgets go: that of the channel, that of
//! its source, and that of all of them together. A request waits for its bytes as long as
//! it may wait for its body.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warren_dial::connections::Source;

/// Bytes of one channel. A client registers with one request at a time.
const OF_CHANNEL: usize = 128 << 10;
/// Bytes of all channels of one source: one host cannot take them all.
const OF_SOURCE: usize = 1 << 20;
/// Bytes of all channels together.
const OF_ALL: usize = 16 << 20;

/// The budget of all channels.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    all: Arc<Semaphore>,
    /// The budgets of sources that have channels.
    sources: Arc<Mutex<HashMap<Source, Weak<Semaphore>>>>,
}

/// The budget of one channel.
#[derive(Debug, Clone)]
pub struct ChannelBudget {
    own: Arc<Semaphore>,
    source: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Bytes of all three budgets, given back when the last copy is dropped. A request carries
/// them as an extension.
#[derive(Debug, Clone)]
pub struct ReservedBytes {
    _permits: Arc<[OwnedSemaphorePermit; 3]>,
}

impl Default for BodyBudget {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(OF_ALL)),
            sources: Arc::default(),
        }
    }
}

impl BodyBudget {
    /// A budget for a new channel from this address; `None`: it is not known, as behind
    /// a proxy that names no clients.
    pub fn channel(&self, from: Option<IpAddr>) -> ChannelBudget {
        let Some(from) = from else {
            return ChannelBudget {
                own: Arc::new(Semaphore::new(OF_CHANNEL)),
                source: self.all.clone(),
                all: Arc::new(Semaphore::new(OF_CHANNEL)),
            };
        };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let source = Source::from(from);
        let budget = sources.get(&source).and_then(Weak::upgrade);
        let budget = budget.unwrap_or_else(|| {
            // As many entries as there are sources with channels.
            sources.retain(|_, budget| budget.strong_count() > 0);
            let budget = Arc::new(Semaphore::new(OF_SOURCE));
            sources.insert(source, Arc::downgrade(&budget));
            budget
        });
        ChannelBudget {
            own: Arc::new(Semaphore::new(OF_CHANNEL)),
            source: budget,
            all: self.all.clone(),
        }
    }
}

impl ChannelBudget {
    /// Waits until so many bytes are free. `None` only for more than a channel may
    /// ever have.
    pub async fn reserve(&self, bytes: u32) -> Option<ReservedBytes> {
        if bytes as usize > OF_CHANNEL {
            return None;
        }
        // The semaphores are never closed.
        let own = self.own.clone().acquire_many_owned(bytes).await.ok()?;
        let source = self.source.clone().acquire_many_owned(bytes).await.ok()?;
        let all = self.all.clone().acquire_many_owned(bytes).await.ok()?;
        Some(ReservedBytes {
            _permits: Arc::new([own, source, all]),
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
        let channel = BodyBudget::default().channel(from(1));
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

    fn from(source: u16) -> Option<IpAddr> {
        let ip = IpAddr::from([198, 18, source.to_be_bytes()[0], source.to_be_bytes()[1]]);
        Some(ip)
    }

    #[test]
    fn channels_of_one_source_leave_room_to_others() {
        let budget = BodyBudget::default();
        let channels: Vec<ChannelBudget> = (0..1000).map(|_| budget.channel(from(1))).collect();
        let reserved: Vec<ReservedBytes> = channels
            .iter()
            .filter_map(|channel| channel.reserve(HALF).now_or_never()?)
            .collect();
        assert_eq!(reserved.len(), OF_SOURCE / HALF as usize);
        let other = budget.channel(from(2)).reserve(HALF).now_or_never();
        assert!(other.unwrap().is_some());
        // A source without channels leaves no entry behind.
        drop((channels, reserved));
        drop(budget.channel(from(3)));
        assert_eq!(budget.sources.lock().unwrap().len(), 1);
    }

    #[test]
    fn many_channels_cannot_take_more_than_the_whole() {
        let budget = BodyBudget::default();
        let channels: Vec<ChannelBudget> = (0..1000).map(|n| budget.channel(from(n))).collect();
        let reserved: Vec<ReservedBytes> = channels
            .iter()
            .filter_map(|channel| channel.reserve(HALF).now_or_never()?)
            .collect();
        assert_eq!(reserved.len(), OF_ALL / HALF as usize);
        drop(reserved);
        assert!(
            budget
                .channel(from(1))
                .reserve(HALF)
                .now_or_never()
                .unwrap()
                .is_some()
        );
    }
}
