//! The clients connected to a relay, and the route of a packet to each key.
//!
//! Three tables, all keyed by node key:
//!
//! - **clients**: the connections of each key. A key may have several (a
//!   laptop that woke up before its old connection timed out, or a copied
//!   state file); all stay open, and the one that spoke last gets the packets.
//! - **forwarders**: the mesh links that announced the key. The first link that
//!   announced it is used. A packet takes at most one such hop.
//! - **receivers**: the connections that received packets from a key, and must be
//!   notified when it leaves the region.
//!
//! Changes return [`Notice`]s (a message and its connection); the caller
//! delivers them. A reader may cache a route as long as neither
//! [`Registry::generation`] nor the [`Turns`] of the key have changed. The first moves
//! when connections and links come and go; the second when several connections of the
//! key speak in turns, which concerns no other route.
//!
//! `H` is the caller's handle of a connection, `M` of a mesh link. A local
//! connection always goes before the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use warren_keys::NodePublic;
use warren_wire::derp::{Frame, PeerFlags, PeerGoneReason};

/// One connection to this relay; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// One link to another relay of the mesh; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// The details of a connection that watchers receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// The client's address.
    pub source: Option<SocketAddr>,
    /// The kind of client.
    pub flags: PeerFlags,
}

/// A change to report to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A key has left.
    Gone {
        /// The key it is about.
        key: NodePublic,
        /// The reason to report.
        reason: PeerGoneReason,
    },
    /// A connection of a key has come.
    Present {
        /// The key it is about.
        key: NodePublic,
        /// The details of the connection.
        presence: Presence,
    },
}

impl News {
    /// The frame that reports it.
    pub fn frame(&self) -> Frame<'static> {
        match *self {
            Self::Gone { key, reason } => Frame::PeerGone { key, reason },
            Self::Present {
                key,
                presence: Presence { source, flags },
            } => Frame::PeerPresent { key, source, flags },
        }
    }
}

/// A change to report, and the connection that receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice<H> {
    /// The receiving connection.
    pub to: H,
    /// The change.
    pub news: News,
}

/// The route of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a, H, M> {
    /// To a connection of this relay.
    Local {
        /// The connection.
        id: ConnId,
        /// The handle that its owner registered.
        handle: &'a H,
        /// Those of the key.
        turns: &'a Turns,
    },
    /// To another relay.
    Mesh {
        /// The mesh link.
        link: LinkId,
        /// The handle that its owner registered.
        handle: &'a M,
    },
    /// The key is not connected here or in the mesh.
    Unknown,
}

/// Counts how often another one of several connections of a key became the active
/// one. It can be read without the registry.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<AtomicU64>);

impl PartialEq for Turns {
    /// Whether both count for the same stay of a key.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Turns {}

impl Turns {
    /// The number of turns so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn next(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[derive(Debug)]
struct Conn<H> {
    key: NodePublic,
    handle: H,
    presence: Presence,
    /// The keys in `receivers` that list this connection, to take it out again.
    received_from: BTreeSet<NodePublic>,
}

/// The connections of one key.
#[derive(Debug)]
struct Client {
    active: ConnId,
    /// Oldest first.
    conns: Vec<ConnId>,
    /// In the order of their last frame, latest last; only those that spoke
    /// while there were several.
    spoke: Vec<ConnId>,
    turns: Turns,
}

#[derive(Debug)]
struct Forwarder<M> {
    link: LinkId,
    handle: M,
}

/// Numbers for the relay's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Local connections.
    pub connections: usize,
    /// Different keys among them.
    pub keys: usize,
    /// Keys with more than one connection.
    pub duplicate_keys: usize,
    /// Keys known through the mesh.
    pub remote_keys: usize,
    /// Connections that watch.
    pub watchers: usize,
}

/// The connections, mesh links and receivers of a relay. See the module docs.
#[derive(Debug)]
pub struct Registry<H, M> {
    own_key: NodePublic,
    conns: BTreeMap<ConnId, Conn<H>>,
    clients: BTreeMap<NodePublic, Client>,
    watchers: BTreeSet<ConnId>,
    /// First come, first used.
    forwarders: BTreeMap<NodePublic, Vec<Forwarder<M>>>,
    receivers: BTreeMap<NodePublic, BTreeSet<ConnId>>,
    generation: u64,
}

impl<H: Clone, M: Clone> Registry<H, M> {
    /// An empty registry of the relay with this key.
    pub fn new(own_key: NodePublic) -> Self {
        Self {
            own_key,
            conns: BTreeMap::new(),
            clients: BTreeMap::new(),
            watchers: BTreeSet::new(),
            forwarders: BTreeMap::new(),
            receivers: BTreeMap::new(),
            generation: 0,
        }
    }

    /// Changes whenever a route may have changed, other than by [`Turns`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Enters a connection; it gets the key's packets from now on.
    pub fn connect(
        &mut self,
        id: ConnId,
        key: NodePublic,
        handle: H,
        presence: Presence,
    ) -> Vec<Notice<H>> {
        self.generation += 1;
        let conn = Conn {
            key,
            handle,
            presence,
            received_from: BTreeSet::new(),
        };
        self.conns.insert(id, conn);
        self.clients
            .entry(key)
            .and_modify(|client| {
                client.conns.push(id);
                client.active = id;
            })
            .or_insert_with(|| Client {
                active: id,
                conns: vec![id],
                spoke: Vec::new(),
                turns: Turns::default(),
            });
        self.tell_watchers(News::Present { key, presence })
    }

    /// Takes a connection out.
    pub fn disconnect(&mut self, id: ConnId) -> Vec<Notice<H>> {
        let Some(conn) = self.conns.remove(&id) else {
            return Vec::new();
        };
        self.generation += 1;
        self.watchers.remove(&id);
        for source in &conn.received_from {
            if let Some(receivers) = self.receivers.get_mut(source) {
                receivers.remove(&id);
                if receivers.is_empty() {
                    self.receivers.remove(source);
                }
            }
        }
        let key = conn.key;
        if let Some(client) = self.clients.get_mut(&key) {
            client.conns.retain(|conn| *conn != id);
            client.spoke.retain(|conn| *conn != id);
            if let Some(next) = client.spoke.last().or(client.conns.last()) {
                if client.active == id {
                    client.active = *next;
                }
                if client.conns.len() == 1 {
                    client.spoke.clear();
                }
                return Vec::new();
            }
            self.clients.remove(&key);
        }
        let mut notices = self.tell_watchers(News::Gone {
            key,
            reason: PeerGoneReason::Disconnected,
        });
        notices.extend(self.if_gone_everywhere(key));
        notices
    }

    /// Notes that a connection spoke. Of several of one key, it is the active
    /// one from now on. Returns whether that changed anything.
    pub fn note_spoke(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.conns.get(&id) else {
            return false;
        };
        let Some(client) = self.clients.get_mut(&conn.key) else {
            return false;
        };
        if client.conns.len() < 2 || (client.active == id && client.spoke.last() == Some(&id)) {
            return false;
        }
        client.spoke.retain(|conn| *conn != id);
        client.spoke.push(id);
        client.active = id;
        client.turns.next();
        true
    }

    /// The turns of the key of this connection.
    pub fn turns(&self, id: ConnId) -> Option<Turns> {
        let conn = self.conns.get(&id)?;
        let client = self.clients.get(&conn.key)?;
        Some(client.turns.clone())
    }

    /// Whether frames of this connection need no
    /// [`note_spoke`](Self::note_spoke) while neither the generation nor the turns of
    /// its key change.
    pub fn is_settled(&self, id: ConnId) -> bool {
        let client = self
            .conns
            .get(&id)
            .and_then(|conn| self.clients.get(&conn.key));
        client.is_none_or(|client| client.conns.len() < 2 || client.spoke.last() == Some(&id))
    }

    /// The route of a client's packet for `to`.
    pub fn route(&self, to: &NodePublic) -> Route<'_, H, M> {
        match self.route_local(to) {
            Route::Unknown => match self.forwarders.get(to).and_then(|all| all.first()) {
                Some(first) => Route::Mesh {
                    link: first.link,
                    handle: &first.handle,
                },
                None => Route::Unknown,
            },
            local @ (Route::Local { .. } | Route::Mesh { .. }) => local,
        }
    }

    /// The route of a mesh peer's packet for `to`: never on to the mesh.
    pub fn route_local(&self, to: &NodePublic) -> Route<'_, H, M> {
        let client = self.clients.get(to);
        match client.and_then(|client| Some((client, self.conns.get(&client.active)?))) {
            Some((client, conn)) => Route::Local {
                id: client.active,
                handle: &conn.handle,
                turns: &client.turns,
            },
            None => Route::Unknown,
        }
    }

    /// Notes that `receiver` gets packets from `source`, so that it is notified
    /// when `source` leaves. Needed once per pair and stay of `source`.
    pub fn note_heard(&mut self, source: NodePublic, receiver: ConnId) {
        if let Some(conn) = self.conns.get_mut(&receiver) {
            conn.received_from.insert(source);
            self.receivers.entry(source).or_default().insert(receiver);
        }
    }

    /// Makes a connection a watcher; returns all clients that are connected already.
    pub fn watch(&mut self, id: ConnId) -> Vec<News> {
        match self.conns.get(&id) {
            Some(conn) if conn.key != self.own_key => {}
            Some(_) | None => return Vec::new(),
        }
        self.watchers.insert(id);
        let active = self.clients.iter().filter_map(|(key, client)| {
            let presence = self.conns.get(&client.active)?.presence;
            Some(News::Present {
                key: *key,
                presence,
            })
        });
        active.collect()
    }

    /// The connections of a key, as to close them.
    pub fn connections(&self, key: &NodePublic) -> Vec<H> {
        let ids = self
            .clients
            .get(key)
            .map(|client| client.conns.as_slice())
            .unwrap_or_default();
        ids.iter()
            .filter_map(|id| Some(self.conns.get(id)?.handle.clone()))
            .collect()
    }

    /// All connections, as to close them.
    pub fn all_connections(&self) -> Vec<H> {
        self.conns
            .values()
            .map(|conn| conn.handle.clone())
            .collect()
    }

    /// A mesh link says that it has a key.
    pub fn add_forwarder(&mut self, link: LinkId, key: NodePublic, handle: M) {
        if key == self.own_key {
            return;
        }
        let forwarders = self.forwarders.entry(key).or_default();
        if forwarders.iter().all(|forwarder| forwarder.link != link) {
            forwarders.push(Forwarder { link, handle });
            self.generation += 1;
        }
    }

    /// A mesh link has lost a key.
    pub fn remove_forwarder(&mut self, link: LinkId, key: NodePublic) -> Vec<Notice<H>> {
        let Some(forwarders) = self.forwarders.get_mut(&key) else {
            return Vec::new();
        };
        forwarders.retain(|forwarder| forwarder.link != link);
        if forwarders.is_empty() {
            self.forwarders.remove(&key);
        }
        self.generation += 1;
        self.if_gone_everywhere(key)
    }

    /// A mesh link is down: all keys it had are gone from it.
    pub fn remove_link(&mut self, link: LinkId) -> Vec<Notice<H>> {
        let has = |all: &Vec<Forwarder<M>>| all.iter().any(|forwarder| forwarder.link == link);
        let keys: Vec<NodePublic> = self
            .forwarders
            .iter()
            .filter(|(_, all)| has(all))
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter()
            .flat_map(|key| self.remove_forwarder(link, key))
            .collect()
    }

    /// Counts for the metrics.
    pub fn census(&self) -> Census {
        Census {
            connections: self.conns.len(),
            keys: self.clients.len(),
            duplicate_keys: self.clients.values().filter(|c| c.conns.len() > 1).count(),
            remote_keys: self.forwarders.len(),
            watchers: self.watchers.len(),
        }
    }

    fn tell_watchers(&self, news: News) -> Vec<Notice<H>> {
        let watchers = self.watchers.iter().filter_map(|id| self.conns.get(id));
        watchers
            .map(|conn| Notice {
                to: conn.handle.clone(),
                news,
            })
            .collect()
    }

    /// Notifies the connections that received packets from `key`, if the key is
    /// neither here nor in the mesh.
    fn if_gone_everywhere(&mut self, key: NodePublic) -> Vec<Notice<H>> {
        if self.clients.contains_key(&key) || self.forwarders.contains_key(&key) {
            return Vec::new();
        }
        let mut notices = Vec::new();
        for id in self.receivers.remove(&key).unwrap_or_default() {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.received_from.remove(&key);
                let news = News::Gone {
                    key,
                    reason: PeerGoneReason::Disconnected,
                };
                notices.push(Notice {
                    to: conn.handle.clone(),
                    news,
                });
            }
        }
        notices
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    type Reg = Registry<u64, &'static str>;

    fn key(n: u8) -> NodePublic {
        NodePublic::from_bytes([n; 32])
    }

    fn registry() -> Reg {
        Registry::new(key(255))
    }

    const PRESENCE: Presence = Presence {
        source: None,
        flags: PeerFlags::REGULAR,
    };

    fn connect(registry: &mut Reg, id: u64, who: u8) -> Vec<Notice<u64>> {
        registry.connect(ConnId(id), key(who), id, PRESENCE)
    }

    fn local(registry: &Reg, who: u8) -> Option<u64> {
        match registry.route(&key(who)) {
            Route::Local { handle, .. } => Some(*handle),
            Route::Mesh { .. } | Route::Unknown => None,
        }
    }

    fn mesh(registry: &Reg, who: u8) -> Option<&'static str> {
        match registry.route(&key(who)) {
            Route::Mesh { handle, .. } => Some(*handle),
            Route::Local { .. } | Route::Unknown => None,
        }
    }

    /// A local route as a reader of the relay keeps it: the turns of the key, their
    /// number, and the handle.
    type CachedRoute = (Turns, u64, u64);

    fn gone(who: u8, to: u64) -> Notice<u64> {
        let reason = PeerGoneReason::Disconnected;
        Notice {
            to,
            news: News::Gone {
                key: key(who),
                reason,
            },
        }
    }

    #[test]
    fn of_duplicates_the_last_that_spoke_gets_the_packets() {
        let mut registry = registry();
        connect(&mut registry, 1, 7);
        assert!(registry.is_settled(ConnId(1)));
        connect(&mut registry, 2, 7);
        assert_eq!(local(&registry, 7), Some(2));
        assert!(registry.note_spoke(ConnId(1)));
        assert_eq!(local(&registry, 7), Some(1));
        assert!(!registry.note_spoke(ConnId(1)));
        connect(&mut registry, 3, 7);
        assert_eq!(local(&registry, 7), Some(3));
        registry.disconnect(ConnId(3));
        assert_eq!(local(&registry, 7), Some(1), "the last that spoke");
        registry.disconnect(ConnId(1));
        assert_eq!(local(&registry, 7), Some(2), "the one that is left");
        assert!(registry.is_settled(ConnId(2)));
        registry.disconnect(ConnId(2));
        assert_eq!(local(&registry, 7), None);
    }

    #[test]
    fn connections_that_speak_in_turns_disturb_no_other_route() {
        let mut registry = registry();
        for (id, who) in [(1, 7), (2, 7), (3, 8)] {
            connect(&mut registry, id, who);
        }
        let (own, other) = (registry.turns(ConnId(1)), registry.turns(ConnId(3)));
        let (own, other) = (own.unwrap(), other.unwrap());
        let before = (registry.generation(), own.count(), other.count());
        for n in 1..=10 {
            assert!(registry.note_spoke(ConnId(1 + n % 2)));
            assert_eq!(own.count(), before.1 + n);
        }
        assert_eq!((registry.generation(), other.count()), (before.0, before.2));
    }

    #[test]
    fn receivers_are_notified_when_the_last_connection_of_a_key_closes() {
        let mut registry = registry();
        connect(&mut registry, 1, 7);
        connect(&mut registry, 2, 7);
        connect(&mut registry, 3, 8);
        connect(&mut registry, 4, 9);
        registry.note_heard(key(7), ConnId(3));
        registry.note_heard(key(7), ConnId(4));
        assert_eq!(registry.disconnect(ConnId(1)), []);
        registry.disconnect(ConnId(4));
        assert_eq!(registry.disconnect(ConnId(2)), [gone(7, 3)]);
        assert!(registry.receivers.is_empty());
    }

    #[test]
    fn key_that_moved_within_the_mesh_is_not_gone() {
        let mut registry = registry();
        connect(&mut registry, 1, 7);
        connect(&mut registry, 2, 8);
        registry.note_heard(key(7), ConnId(2));
        registry.add_forwarder(LinkId(1), key(7), "b");
        assert_eq!(local(&registry, 7), Some(1), "local goes first");
        assert_eq!(registry.disconnect(ConnId(1)), []);
        assert_eq!(mesh(&registry, 7), Some("b"));
        assert!(
            matches!(registry.route_local(&key(7)), Route::Unknown),
            "one hop only"
        );
        assert_eq!(registry.remove_forwarder(LinkId(1), key(7)), [gone(7, 2)]);
    }

    #[test]
    fn first_link_that_announced_a_key_is_used() {
        let mut registry = registry();
        registry.add_forwarder(LinkId(1), key(7), "b");
        registry.add_forwarder(LinkId(2), key(7), "c");
        registry.add_forwarder(LinkId(2), key(8), "c");
        registry.add_forwarder(LinkId(2), key(255), "c");
        assert_eq!(mesh(&registry, 7), Some("b"));
        assert_eq!(
            mesh(&registry, 255),
            None,
            "no link forwards for our own key"
        );
        registry.remove_link(LinkId(1));
        assert_eq!(mesh(&registry, 7), Some("c"));
        registry.remove_link(LinkId(2));
        assert_eq!((mesh(&registry, 7), mesh(&registry, 8)), (None, None));
    }

    #[test]
    fn watchers_are_told_of_everybody() {
        let mut registry = registry();
        connect(&mut registry, 1, 7);
        connect(&mut registry, 2, 7);
        connect(&mut registry, 9, 100);
        let here = registry.watch(ConnId(9));
        assert_eq!(here.len(), 2, "each key once, the watcher too: {here:?}");
        let came = connect(&mut registry, 3, 8);
        assert!(matches!(
            came[..],
            [Notice {
                to: 9,
                news: News::Present { .. }
            }]
        ));
        assert_eq!(registry.disconnect(ConnId(1)), []);
        assert_eq!(registry.disconnect(ConnId(2)), [gone(7, 9)]);
        connect(&mut registry, 10, 255);
        assert!(registry.watch(ConnId(10)).is_empty(), "ourselves");
    }

    proptest! {
        /// Against plain sets: a key routes locally exactly while it has a
        /// connection, into one of its own, else to a link that has it.
        #[test]
        fn routes_follow_what_happened(steps in proptest::collection::vec((0u8..6, 0u8..4, 0u64..6), 0..120)) {
            let mut registry = registry();
            let mut conns: BTreeMap<u64, u8> = BTreeMap::new();
            let mut links: BTreeSet<(u64, u8)> = BTreeSet::new();
            let mut cached: BTreeMap<u8, (u64, Option<CachedRoute>)> = BTreeMap::new();
            for (n, (what, who, id)) in steps.into_iter().enumerate() {
                let fresh = n as u64 + 100;
                let some = conns.keys().copied().nth(id as usize);
                match (what, some) {
                    (0, _) => { connect(&mut registry, fresh, who); conns.insert(fresh, who); }
                    (1, Some(old)) => { registry.disconnect(ConnId(old)); conns.remove(&old); }
                    (2, Some(old)) => { registry.note_spoke(ConnId(old)); }
                    (3, _) => { registry.add_forwarder(LinkId(id), key(who), "x"); links.insert((id, who)); }
                    (4, _) => { registry.remove_forwarder(LinkId(id), key(who)); links.remove(&(id, who)); }
                    (_, Some(old)) => registry.note_heard(key(who), ConnId(old)),
                    (_, None) => { registry.remove_link(LinkId(id)); links.retain(|(link, _)| *link != id); }
                }
                for who in 0..4 {
                    let fresh = match registry.route(&key(who)) {
                        Route::Local { handle, turns, .. } => {
                            Some((turns.clone(), turns.count(), *handle))
                        }
                        Route::Mesh { .. } | Route::Unknown => None,
                    };
                    let found = fresh.as_ref().map(|(_, _, handle)| *handle);
                    if let Some((generation, local)) = cached.get(&who)
                        && *generation == registry.generation()
                        && local.as_ref().is_none_or(|(turns, count, _)| turns.count() == *count)
                    {
                        prop_assert_eq!(local.as_ref().map(|(_, _, handle)| *handle), found);
                    }
                    cached.insert(who, (registry.generation(), fresh));
                    let here: Vec<u64> = conns.iter().filter(|(_, k)| **k == who).map(|(c, _)| *c).collect();
                    match registry.route(&key(who)) {
                        Route::Local { handle, .. } => prop_assert!(here.contains(handle)),
                        Route::Mesh { link, .. } => {
                            prop_assert!(here.is_empty());
                            prop_assert!(links.contains(&(link.0, who)));
                        }
                        Route::Unknown => {
                            prop_assert!(here.is_empty());
                            prop_assert!(!links.iter().any(|(_, k)| *k == who));
                        }
                    }
                }
            }
            for id in conns.into_keys() {
                registry.disconnect(ConnId(id));
            }
            prop_assert!(registry.clients.is_empty() && registry.receivers.is_empty());
        }
    }
}
