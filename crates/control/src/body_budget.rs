//! Memory for request bodies of machines that own no node.
//!
//! Any machine can open a channel and begin as many requests as it takes. So the bodies of
//! such machines are read only as far as two budgets go, that of the channel and that
//! of all of them together. A request waits for its bytes as long as it may wait for
//! its body.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one channel. A client registers with one request at a time.
const OF_CHANNEL: usize = 128 << 10;
/// Bytes of all channels together.
const OF_ALL: usize = 16 << 20;

/// The budget of all channels.
#[derive(Debug, Clone)]
pub struct BodyBudget(Arc<Semaphore>);

/// The budget of one channel.
#[derive(Debug, Clone)]
pub struct ChannelBudget {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Bytes of both budgets, given back when the last copy is dropped. A request carries
/// them as an extension.
#[derive(Debug, Clone)]
pub struct ReservedBytes {
    _permits: Arc<[OwnedSemaphorePermit; 2]>,
}

impl Default for BodyBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(OF_ALL)))
    }
}

impl BodyBudget {
    /// A budget for a new channel.
    pub fn channel(&self) -> ChannelBudget {
        ChannelBudget {
            own: Arc::new(Semaphore::new(OF_CHANNEL)),
            all: self.0.clone(),
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
        let all = self.all.clone().acquire_many_owned(bytes).await.ok()?;
        Some(ReservedBytes {
            _permits: Arc::new([own, all]),
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
        let channel = BodyBudget::default().channel();
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

    #[test]
    fn many_channels_cannot_take_more_than_the_whole() {
        let budget = BodyBudget::default();
        let channels: Vec<ChannelBudget> = (0..1000).map(|_| budget.channel()).collect();
        let reserved: Vec<ReservedBytes> = channels
            .iter()
            .filter_map(|channel| channel.reserve(HALF).now_or_never()?)
            .collect();
        assert_eq!(reserved.len(), OF_ALL / HALF as usize);
        drop(reserved);
        assert!(
            budget
                .channel()
                .reserve(HALF)
                .now_or_never()
                .unwrap()
                .is_some()
        );
    }
}
