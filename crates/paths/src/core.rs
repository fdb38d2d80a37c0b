//! The state that all peers share: keys, pings in flight, relays, our own
//! addresses, and the queue of events.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use warren_control_types::RegionId;
use warren_keys::{DiscoPublic, Entropy, NodePublic};
use warren_node_types::{Family, PathAddr, PeerIndex, SearchSocket, SocketOrder};
use warren_wire::disco::{Message, Ping, PingSender, TxId};
use warren_wire::geneve;
use warren_wire::stun::{Request, TransactionId};

use crate::api::{Counters, Event};
use crate::disco_keys::DiscoKeys;
use crate::endpoints::OwnEndpoints;
use crate::netcheck::Netcheck;
use crate::pings::{Pings, Waiting};
use crate::port_forecast::{self, Forecast};
use crate::port_search::PortSearches;
use crate::relay_client::{RelayAddr, RelayIndex};
use crate::relays::Relays;

pub(crate) struct Core {
    pub(crate) node_key: NodePublic,
    pub(crate) entropy: Box<dyn Entropy>,
    pub(crate) keys: DiscoKeys,
    pub(crate) pings: Pings,
    pub(crate) relays: Relays,
    pub(crate) netcheck: Netcheck,
    pub(crate) own: OwnEndpoints,
    pub(crate) searches: PortSearches,
    pub(crate) relay_index: RelayIndex,
    pub(crate) events: VecDeque<Event>,
    pub(crate) counters: Counters,
}

/// The receiver of a disco message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct To {
    pub(crate) peer: PeerIndex,
    pub(crate) node: NodePublic,
    pub(crate) disco: DiscoPublic,
}

/// The options of a ping that the user asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PingOptions {
    pub(crate) token: Option<u64>,
    pub(crate) padding: u16,
}

impl Core {
    /// Sends a ping and waits for its pong.
    pub(crate) fn send_ping(&mut self, now: Instant, to: To, via: PathAddr, options: PingOptions) {
        let (tx, message) = self.new_ping(options);
        if self.send(now, to, via, &message) {
            self.expect_pong(now, to, tx, via, options.token);
        }
    }

    /// Sends a ping from a socket of a port search and waits for its pong.
    pub(crate) fn ping_from(
        &mut self,
        now: Instant,
        to: To,
        socket: SearchSocket,
        address: SocketAddr,
    ) {
        let (tx, message) = self.new_ping(PingOptions::default());
        let Some(packet) = self.seal(to, &message) else {
            return;
        };
        let send = SocketOrder::Send {
            socket,
            to: address,
            packet,
        };
        self.events.push_back(Event::Sockets(send));
        self.expect_pong(now, to, tx, PathAddr::Udp(address), None);
    }

    /// Begins to foresee the ports of our NAT for a peer: fresh sockets ask STUN servers, one
    /// after the other.
    pub(crate) fn begin_forecast(&mut self, now: Instant, peer: PeerIndex) {
        let most = usize::from(port_forecast::ASKING);
        let servers = self.netcheck.stun_servers(Family::V4, most);
        if servers.is_empty() {
            return;
        }
        let mut random = [0; 4];
        self.entropy.fill(&mut random);
        let random = u32::from_be_bytes(random);
        let search = self.searches.begin_forecast(now, peer, random);
        let open = SocketOrder::Open {
            search,
            count: port_forecast::ASKING + 1,
        };
        self.events.push_back(Event::Sockets(open));
        let mut asked = Vec::new();
        for (number, to) in (0..port_forecast::ASKING).zip(servers.into_iter().cycle()) {
            let mut id = [0; 12];
            self.entropy.fill(&mut id);
            let transaction = TransactionId(id);
            asked.push(transaction);
            self.counters.stun_sent += 1;
            let send = SocketOrder::Send {
                socket: SearchSocket { search, number },
                to,
                packet: Request { transaction }.emit().to_vec(),
            };
            self.events.push_back(Event::Sockets(send));
        }
        self.searches.forecast = Some(Forecast::new(now, asked));
    }

    fn new_ping(&mut self, options: PingOptions) -> (TxId, Message) {
        let mut id = [0; 12];
        self.entropy.fill(&mut id);
        let tx = TxId(id);
        let sender = PingSender {
            node: self.node_key,
            padding: options.padding,
        };
        let message = Message::Ping(Ping {
            tx,
            sender: Some(sender),
        });
        (tx, message)
    }

    fn expect_pong(&mut self, now: Instant, to: To, tx: TxId, via: PathAddr, token: Option<u64>) {
        self.counters.pings_sent += 1;
        let waiting = Waiting {
            peer: to.peer,
            via,
            sent: now,
            token,
        };
        if self.pings.insert(tx, waiting) {
            self.counters.pings_evicted += 1;
        }
    }

    /// Sends a peer our own addresses, through a connected relay.
    pub(crate) fn send_call_me_maybe(&mut self, now: Instant, to: To, region: RegionId) {
        let known = self.own.current().iter().map(|(address, _)| *address);
        let ahead = self.searches.ports_ahead(to.peer).iter().copied();
        let endpoints = ahead.chain(known).collect();
        if self.send(
            now,
            to,
            PathAddr::Derp(region),
            &Message::CallMeMaybe(endpoints),
        ) {
            self.counters.call_me_maybes_sent += 1;
        }
    }

    /// Returns whether the message could be sealed.
    pub(crate) fn send(&mut self, now: Instant, to: To, via: PathAddr, message: &Message) -> bool {
        let Some(packet) = self.seal(to, message) else {
            return false;
        };
        self.events.push_back(match via {
            PathAddr::Udp(to) => Event::SendUdp { to, packet },
            PathAddr::PeerRelay { server: to, vni } => {
                let payload = geneve::Payload::Disco;
                let packet = geneve::Header { payload, vni }.wrap(&packet);
                Event::SendUdp { to, packet }
            }
            PathAddr::Derp(region) => {
                self.relays.touch(now, region);
                Event::SendRelay {
                    region,
                    to: to.node,
                    packet,
                }
            }
        });
        true
    }

    /// Sends a message of a handshake to a relay server.
    pub(crate) fn send_to_server(
        &mut self,
        server: DiscoPublic,
        address: RelayAddr,
        message: &Message,
    ) {
        let sealed = self.keys.seal(self.entropy.as_mut(), &server, message);
        let Some(sealed) = sealed else {
            self.counters.degenerate_disco_key += 1;
            return;
        };
        let header = geneve::Header {
            payload: geneve::Payload::DiscoControl,
            vni: address.vni,
        };
        self.counters.peer_relay_binds_sent += 1;
        self.events.push_back(Event::SendUdp {
            to: address.server,
            packet: header.wrap(&sealed),
        });
    }

    /// Forgets the keys shared with relay servers that have no handshake any more.
    pub(crate) fn forget_servers(&mut self, servers: Vec<DiscoPublic>) {
        for server in servers {
            if !self.relay_index.knows_server(server) {
                self.keys.forget(&server);
            }
        }
    }

    fn seal(&mut self, to: To, message: &Message) -> Option<Vec<u8>> {
        let sealed = self.keys.seal(self.entropy.as_mut(), &to.disco, message);
        if sealed.is_none() {
            self.counters.degenerate_disco_key += 1;
        }
        sealed
    }

    pub(crate) fn want_relay(&mut self, now: Instant, region: RegionId) {
        self.relays.want(now, region, &mut self.events);
    }
}
