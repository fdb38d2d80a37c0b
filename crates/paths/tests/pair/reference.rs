//! A model of how the other implementation behaves towards us, as far as it
//! can be seen from outside: a pong for each ping, pings to all candidates at
//! once for each CallMeMaybe, and otherwise every 5 s per candidate while it has
//! packets to send. It does not ping back when it receives a ping.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use warren_control_types::RegionId;
use warren_keys::{DiscoSecret, Entropy, NodePublic};
use warren_paths::{Destination, Event, PeerIndex, PeerInfo};
use warren_wire::disco::{Envelope, Message, Ping, PingSender, Pong, TxId, looks_like_disco};

use warren_testkit::SeededEntropy;

use crate::world::ms;

pub struct Reference {
    key: NodePublic,
    secret: DiscoSecret,
    entropy: SeededEntropy,
    peers: BTreeMap<usize, PeerInfo>,
    candidates: BTreeMap<usize, BTreeSet<SocketAddr>>,
    pings: BTreeMap<TxId, (usize, SocketAddr)>,
    last_pings: BTreeMap<(usize, SocketAddr), Instant>,
    events: VecDeque<Event>,
}

impl Reference {
    pub fn new(key: NodePublic, secret: DiscoSecret, seed: u64) -> Self {
        Self {
            key,
            secret,
            entropy: SeededEntropy(seed),
            peers: BTreeMap::new(),
            candidates: BTreeMap::new(),
            pings: BTreeMap::new(),
            last_pings: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    pub fn set_peer(&mut self, peer: usize, info: PeerInfo) {
        self.candidates
            .entry(peer)
            .or_default()
            .extend(&info.endpoints);
        if let Some(region) = info.home_derp.filter(|_| !self.peers.contains_key(&peer)) {
            let peer = PeerIndex(peer as u32);
            let destination = Destination::derp(region);
            self.events
                .push_back(Event::Destination { peer, destination });
        }
        self.peers.insert(peer, info);
    }

    pub fn note_sent(&mut self, now: Instant, peer: usize) {
        self.ping_all(now, peer, false);
    }

    pub fn handle_relay(&mut self, now: Instant, from: NodePublic, packet: &[u8]) -> bool {
        let Some((peer, message)) = self.open(packet) else {
            return looks_like_disco(packet);
        };
        if let Message::CallMeMaybe(list) = message {
            assert_eq!(self.peers[&peer].node_key, from);
            self.candidates.entry(peer).or_default().extend(list);
            self.ping_all(now, peer, true);
        }
        true
    }

    pub fn handle_udp(&mut self, _now: Instant, from: SocketAddr, packet: &[u8]) -> bool {
        let Some((peer, message)) = self.open(packet) else {
            return looks_like_disco(packet);
        };
        match message {
            Message::Ping(ping) => {
                self.candidates.entry(peer).or_default().insert(from);
                self.send(
                    peer,
                    from,
                    &Message::Pong(Pong {
                        tx: ping.tx,
                        source: from,
                    }),
                );
            }
            Message::Pong(pong) => {
                if let Some((peer, address)) = self.pings.remove(&pong.tx) {
                    let peer = PeerIndex(peer as u32);
                    let destination = Destination::udp(address);
                    self.events
                        .push_back(Event::Destination { peer, destination });
                }
            }
            _ => {}
        }
        true
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    pub fn handle_timeout(&mut self, _now: Instant) {}

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn open(&self, packet: &[u8]) -> Option<(usize, Message)> {
        let envelope = Envelope::parse(packet).ok()?;
        let known = self
            .peers
            .iter()
            .find(|(_, it)| it.disco_key == Some(envelope.sender))?;
        let key = self.secret.shared_with(envelope.sender.as_bytes()).ok()?;
        let opened = key.open(envelope.sealed).ok()?;
        Some((*known.0, Message::parse(&opened).ok()?))
    }

    fn ping_all(&mut self, now: Instant, peer: usize, is_asked: bool) {
        let candidates: Vec<_> = self
            .candidates
            .entry(peer)
            .or_default()
            .iter()
            .copied()
            .collect();
        let mut pinged = false;
        for address in candidates {
            let last = self.last_pings.get(&(peer, address));
            if !is_asked && last.is_some_and(|at| now < *at + ms(5000)) {
                continue;
            }
            pinged = true;
            self.last_pings.insert((peer, address), now);
            let tx = TxId(self.entropy.bytes());
            self.pings.insert(tx, (peer, address));
            let sender = Some(PingSender {
                node: self.key,
                padding: 0,
            });
            self.send(peer, address, &Message::Ping(Ping { tx, sender }));
        }
        if pinged
            && !is_asked
            && let Some(region) = self.peers.get(&peer).and_then(|it| it.home_derp)
        {
            self.send_call_me_maybe(peer, region);
        }
    }

    fn send_call_me_maybe(&mut self, peer: usize, region: RegionId) {
        let Some(packet) = self.seal(peer, &Message::CallMeMaybe(Vec::new())) else {
            return;
        };
        let to = self.peers[&peer].node_key;
        self.events
            .push_back(Event::SendRelay { region, to, packet });
    }

    fn send(&mut self, peer: usize, to: SocketAddr, message: &Message) {
        if let Some(packet) = self.seal(peer, message) {
            self.events.push_back(Event::SendUdp { to, packet });
        }
    }

    fn seal(&mut self, peer: usize, message: &Message) -> Option<Vec<u8>> {
        let theirs = self.peers.get(&peer)?.disco_key?;
        let key = self.secret.shared_with(theirs.as_bytes()).ok()?;
        let nonce = self.entropy.bytes();
        Some(Envelope::seal(&self.secret.public(), &key, &nonce, message))
    }
}
