//! The synchronisation with an honest server, and with one that was stolen.
#![allow(clippy::unwrap_used)]

mod restarts;
mod signs_by_tags;

use proptest::prelude::*;
use warren_lock::{Checkpoint, DisablementValue, LockSecret, Meta, StateId, TrustedKey, Updater};
use warren_testkit::SeededEntropy;

use super::*;

const WALL: Duration = Duration::from_secs(1_800_000_000);
const SERVER: &str = "https://server";

fn secret(number: u8) -> LockSecret {
    LockSecret::from_seed(&[number; 32])
}

fn key(number: u8) -> TrustedKey {
    TrustedKey::new(secret(number).public(), 1, Meta::default()).unwrap()
}

fn disablement() -> DisablementSecret {
    DisablementSecret::from_bytes(&[7; 32])
}

/// A lock of this identity, of which keys 1 and 2 are trusted. The values of secrets are
/// slow to compute, so most tests have another.
fn chain(id: u64, value: DisablementValue) -> Authority {
    let checkpoint = Checkpoint::new(vec![key(1), key(2)], vec![value], StateId(id, 1)).unwrap();
    Authority::create(checkpoint, &secret(1), 0).unwrap().0
}

fn no_value() -> DisablementValue {
    DisablementValue::from_bytes([1; 32])
}

fn add(authority: &mut Authority, signer: u8, number: u8) -> Vec<Aum> {
    let signer = secret(signer);
    let mut updater = Updater::new(authority, &signer);
    updater.add_key(key(number)).unwrap();
    let updates = updater.finish().unwrap();
    authority.inform(&updates, 0).unwrap();
    updates
}

/// A server with a chain, or one that turned it off.
#[derive(Clone)]
struct Server {
    chain: Option<Authority>,
    secret: Vec<u8>,
    genesis: Vec<u8>,
}

impl Server {
    fn on(chain: Authority) -> Self {
        let genesis = chain.aum(chain.oldest()).unwrap().as_bytes().to_vec();
        Self {
            chain: Some(chain),
            secret: Vec::new(),
            genesis,
        }
    }

    fn info(&self) -> TkaInfo {
        let head = self.chain.as_ref().map(|chain| chain.head().to_string());
        TkaInfo {
            disabled: head.is_none(),
            head: head.unwrap_or_default(),
        }
    }

    fn answer(&mut self, request: &LockRequest) -> Result<LockAnswer, String> {
        let chain = self.chain.as_mut();
        Ok(match request {
            LockRequest::Sign(_) => LockAnswer::Signed,
            LockRequest::Bootstrap(_) => LockAnswer::Bootstrap(TkaBootstrapResponse {
                genesis_aum: chain.map(|_| self.genesis.clone()).unwrap_or_default(),
                disablement_secret: self.secret.clone(),
            }),
            LockRequest::Offer(request) => {
                let chain = chain.ok_or("off")?;
                let theirs = SyncOffer {
                    head: request.head.parse().unwrap(),
                    ancestors: request
                        .ancestors
                        .iter()
                        .map(|text| text.parse().unwrap())
                        .collect(),
                };
                let missing = chain.missing(&theirs).map_err(|error| error.to_string())?;
                let ours = chain.offer();
                LockAnswer::Offer(TkaSyncOfferResponse {
                    head: ours.head.to_string(),
                    ancestors: ours.ancestors.iter().map(AumHash::to_string).collect(),
                    missing_aums: missing
                        .iter()
                        .map(|aum| Encoded(aum.as_bytes().to_vec()))
                        .collect(),
                })
            }
            LockRequest::Send(request) => {
                let chain = chain.ok_or("off")?;
                let updates: Vec<Aum> = request
                    .missing_aums
                    .iter()
                    .map(|aum| Aum::decode(&aum.0).unwrap())
                    .collect();
                chain
                    .inform(&updates, 0)
                    .map_err(|error| error.to_string())?;
                LockAnswer::Send(TkaSyncSendResponse {
                    head: chain.head().to_string(),
                })
            }
        })
    }
}

struct World {
    now: Instant,
    lock: TailnetLock,
    server: Server,
    disk: Option<StoredChain>,
    disk_is_full: bool,
    requests: Vec<&'static str>,
}

impl World {
    fn new(server: Server) -> Self {
        Self {
            now: Instant::now(),
            lock: TailnetLock::new(KeptLock::Off, Vec::new(), Box::new(SeededEntropy(1))),
            server,
            disk: None,
            disk_is_full: false,
            requests: Vec::new(),
        }
    }

    /// A node that has the chain of the server.
    fn synced(chain: Authority) -> Self {
        let mut world = Self::new(Server::on(chain));
        world.run();
        world.requests.clear();
        assert!(world.lock.problems().next().is_none());
        world
    }

    /// Goes on until nothing happens at once.
    fn run(&mut self) {
        loop {
            let info = self.server.info();
            let around = Surroundings {
                info: Some(&info),
                is_capable: true,
                node_key: NodePublic::default(),
                server: SERVER,
            };
            self.lock.update(&around);
            let Some(output) = self.lock.poll_output() else {
                return;
            };
            match output {
                Output::Request(id, request) => {
                    self.requests.push(match &*request {
                        LockRequest::Bootstrap(_) => "bootstrap",
                        LockRequest::Offer(_) => "offer",
                        LockRequest::Send(_) => "send",
                        LockRequest::Sign(_) => "sign",
                    });
                    assert!(self.requests.len() < 100, "it ends: {:?}", self.requests);
                    let answer = self.server.answer(&request);
                    self.lock.answered(self.now, WALL, &around, id, answer);
                }
                Output::Store(_) if self.disk_is_full => {
                    self.lock.stored(self.now, Err("disk full".to_owned()));
                }
                Output::Store(chain) => {
                    self.disk = chain.map(|chain| *chain);
                    self.lock.stored(self.now, Ok(()));
                }
                Output::Changed | Output::Problem | Output::SignedByTags(..) => {}
            }
        }
    }

    /// Waits for the next attempt.
    fn retry(&mut self) {
        self.now = self.lock.next_deadline().unwrap();
        assert!(self.lock.handle_timeout(self.now));
        self.run();
    }

    fn restart(&mut self) {
        let kept = self.disk.clone().map_or(KeptLock::Off, KeptLock::On);
        let refused = self.lock.refused().to_vec();
        self.lock = TailnetLock::new(kept, refused, Box::new(SeededEntropy(2)));
    }

    fn head(&self) -> Option<AumHash> {
        self.lock.authority().map(Authority::head)
    }

    fn problem(&self) -> String {
        self.lock.problems().collect::<Vec<_>>().join("; ")
    }
}

#[test]
fn node_follows_an_honest_server_and_keeps_the_chain_over_restarts() {
    let mut world = World::new(Server::on(chain(1, no_value())));
    add(world.server.chain.as_mut().unwrap(), 1, 3);
    world.run();
    assert_eq!(world.requests, ["bootstrap", "offer", "send"]);
    let head = world.server.chain.as_ref().unwrap().head();
    assert_eq!(world.head(), Some(head));
    world.restart();
    assert_eq!(world.head(), Some(head));
    world.requests.clear();
    world.run();
    assert!(world.requests.is_empty());
    add(world.server.chain.as_mut().unwrap(), 2, 4);
    world.run();
    assert_eq!(world.requests, ["offer", "send"]);
    assert_eq!(
        world.head(),
        Some(world.server.chain.as_ref().unwrap().head())
    );
    assert_eq!(world.problem(), "");
}

#[test]
fn lock_goes_off_by_a_right_secret_only() {
    let mut world = World::synced(chain(1, disablement().value()));
    let chain = world.server.chain.take();
    for wrong in [Vec::new(), vec![7; 31], vec![0; MAX_SECRET + 1]] {
        world.server.secret = wrong;
        world.run();
        assert!(world.problem().contains("stays on"), "{}", world.problem());
        assert!(world.lock.authority().is_some() && world.disk.is_some());
        world.now = world.lock.next_deadline().unwrap();
        world.lock.handle_timeout(world.now);
    }
    // A new session, with a server that has the right secret.
    world.lock.disconnected();
    world.server.secret = disablement().expose().to_vec();
    world.run();
    assert!(world.lock.authority().is_none() && world.disk.is_none());
    assert_eq!(world.problem(), "");
    // Turned on again.
    world.server.chain = chain;
    world.run();
    assert!(world.lock.authority().is_some());
}

#[test]
fn server_that_goes_back_gets_the_newer_messages_again() {
    let older = chain(1, no_value());
    let mut newer = older.clone();
    add(&mut newer, 1, 3);
    let mut world = World::synced(newer.clone());
    world.server = Server::on(older);
    world.run();
    assert_eq!(world.head(), Some(newer.head()));
    assert_eq!(world.server.chain.as_ref().unwrap().head(), newer.head());
    assert_eq!(world.problem(), "");
}

#[test]
fn server_with_another_chain_is_reported_and_not_followed() {
    let mut world = World::synced(chain(1, no_value()));
    let head = world.head();
    world.server = Server::on(chain(2, no_value()));
    world.run();
    assert_eq!(world.head(), head);
    assert!(world.lock.next_deadline().is_some() && !world.problem().is_empty());
    // Seldom: the same answer is not asked for again and again.
    world.requests.clear();
    for _ in 0..5 {
        world.retry();
    }
    assert!(world.requests.len() <= 10, "{:?}", world.requests);
    assert_eq!(world.head(), head);
}

#[test]
fn user_of_the_machine_can_turn_it_off_here_and_it_stays_off() {
    let mut world = World::synced(chain(1, no_value()));
    world.lock.local_disable().unwrap();
    world.run();
    assert!(world.lock.authority().is_none() && world.disk.is_none());
    assert_eq!(world.lock.refused(), ["1:1"]);
    assert!(
        world.problem().contains("local-disable"),
        "{}",
        world.problem()
    );
    let asked = world.requests.len();
    world.restart();
    world.run();
    assert!(world.lock.authority().is_none());
    assert!(world.requests.len() <= asked + 1);
    assert_eq!(world.lock.local_disable(), Err(LockCommandError::NotOn));
    // Another lock is another matter.
    world.server = Server::on(chain(2, no_value()));
    world.run();
    assert!(world.lock.authority().is_some());
}

#[test]
fn full_disk_is_reported_and_the_new_chain_is_used_and_written_later() {
    let mut world = World::synced(chain(1, no_value()));
    world.disk_is_full = true;
    add(world.server.chain.as_mut().unwrap(), 1, 3);
    world.run();
    let head = world.server.chain.as_ref().unwrap().head();
    assert_eq!(world.head(), Some(head));
    assert!(world.problem().contains("disk full"), "{}", world.problem());
    world.disk_is_full = false;
    world.retry();
    assert_eq!(world.problem(), "");
    let stored = world.disk.clone().unwrap();
    assert_eq!(
        Authority::open(stored.messages, stored.oldest)
            .unwrap()
            .0
            .head(),
        head
    );
}

#[test]
fn chain_that_cannot_be_read_closes_the_gate_until_the_user_decides() {
    for kept in [
        KeptLock::Unreadable("damaged".to_owned()),
        KeptLock::On(StoredChain {
            messages: Vec::new(),
            oldest: chain(1, no_value()).head(),
            server: SERVER.to_owned(),
        }),
    ] {
        let mut world = World::new(Server::on(chain(1, no_value())));
        world.lock.replace(kept, Vec::new());
        world.run();
        assert!(matches!(world.lock.gate(), LockGate::Closed));
        assert!(
            world.problem().contains("local-disable"),
            "{}",
            world.problem()
        );
        world.server.chain = None;
        world.run();
        assert!(matches!(world.lock.gate(), LockGate::Closed));
        world.lock.local_disable().unwrap();
        world.run();
        assert!(matches!(world.lock.gate(), LockGate::Off));
    }
}

#[test]
fn login_at_another_server_ends_the_lock_of_the_one_before() {
    let mut world = World::synced(chain(1, no_value()));
    world.lock.login_accepted(SERVER);
    assert!(world.lock.authority().is_some());
    world.lock.login_accepted("https://other");
    assert!(world.lock.authority().is_none());
}

#[test]
fn lock_stays_off_where_the_server_does_not_offer_it() {
    let mut world = World::new(Server::on(chain(1, no_value())));
    let info = world.server.info();
    for info in [None, Some(&info)] {
        world.lock.update(&Surroundings {
            info,
            is_capable: false,
            node_key: NodePublic::default(),
            server: SERVER,
        });
        assert!(world.lock.poll_output().is_none());
    }
}

/// The answers of a stolen server, made of what it has: its own chains, parts of the
/// right one, and noise.
#[derive(Debug, Clone)]
enum Lie {
    Error,
    OtherKind,
    Genesis(Vec<u8>),
    Secret(Vec<u8>),
    Offer(String, Vec<String>, Vec<Vec<u8>>),
    Head(String),
}

fn lie() -> impl Strategy<Value = Lie> {
    let mut known = chain(1, no_value());
    let mut messages: Vec<Vec<u8>> = vec![known.aum(known.head()).unwrap().as_bytes().to_vec()];
    let mut hashes = vec![known.head().to_string(), String::new(), "x".to_owned()];
    // Forks of the right chain, a foreign chain, and messages that no trusted key signed.
    let mut fork = known.clone();
    for (authority, signer, number) in [(&mut known, 1, 3), (&mut fork, 2, 4)] {
        for aum in add(authority, signer, number) {
            messages.push(aum.as_bytes().to_vec());
            hashes.push(aum.hash().to_string());
            let unsigned = Aum::unsigned(aum.parent(), aum.change().clone());
            messages.push(unsigned.as_bytes().to_vec());
            messages.push(unsigned.signed_by(&secret(9)).as_bytes().to_vec());
        }
    }
    let foreign = chain(2, no_value());
    hashes.push(foreign.head().to_string());
    messages.push(foreign.aum(foreign.head()).unwrap().as_bytes().to_vec());
    messages.push(vec![0xff; 9]);
    messages.push(Vec::new());
    let message = prop::sample::select(messages);
    let hash = prop::sample::select(hashes);
    prop_oneof![
        Just(Lie::Error),
        Just(Lie::OtherKind),
        message.clone().prop_map(Lie::Genesis),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Lie::Secret),
        (
            hash.clone(),
            prop::collection::vec(hash.clone(), 0..4),
            prop::collection::vec(message, 0..5)
        )
            .prop_map(|(head, ancestors, messages)| Lie::Offer(head, ancestors, messages)),
        hash.prop_map(Lie::Head),
    ]
}

fn answer(lie: Lie) -> Result<LockAnswer, String> {
    Ok(match lie {
        Lie::Error => return Err("HTTP 500".to_owned()),
        Lie::OtherKind => LockAnswer::Send(TkaSyncSendResponse::default()),
        Lie::Genesis(genesis_aum) => LockAnswer::Bootstrap(TkaBootstrapResponse {
            genesis_aum,
            ..TkaBootstrapResponse::default()
        }),
        Lie::Secret(disablement_secret) => LockAnswer::Bootstrap(TkaBootstrapResponse {
            disablement_secret,
            ..TkaBootstrapResponse::default()
        }),
        Lie::Offer(head, ancestors, messages) => LockAnswer::Offer(TkaSyncOfferResponse {
            head,
            ancestors,
            missing_aums: messages.into_iter().map(Encoded).collect(),
        }),
        Lie::Head(head) => LockAnswer::Send(TkaSyncSendResponse { head }),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// A stolen server neither turns the lock off, nor brings in a key that no trusted key
    /// signed, nor takes a message back.
    #[test]
    fn stolen_server_changes_nothing_that_trusted_keys_did_not_sign(
        lies in prop::collection::vec((lie(), any::<bool>(), any::<bool>()), 1..30),
    ) {
        let mut world = World::synced(chain(1, no_value()));
        let mut messages = world.lock.authority().unwrap().stored().len();
        for (lie, is_off, other_head) in lies {
            let info = TkaInfo {
                disabled: is_off,
                head: if other_head { "OTHER".to_owned() } else { world.lock.head() },
            };
            let around = Surroundings {
                info: Some(&info),
                is_capable: true,
                node_key: NodePublic::default(),
                server: SERVER,
            };
            if let Some(at) = world.lock.next_deadline() {
                world.now = at;
                world.lock.handle_timeout(at);
            }
            world.lock.update(&around);
            let mut lie = Some(lie);
            while let Some(output) = world.lock.poll_output() {
                match output {
                    Output::Request(id, _) => {
                        let answer = lie.take().map_or(Err("gone".to_owned()), answer);
                        world.lock.answered(world.now, WALL, &around, id, answer);
                    }
                    Output::Store(None) => prop_assert!(false, "the chain is never removed"),
                    _ => {}
                }
            }
            let Some(authority) = world.lock.authority() else {
                return Err(TestCaseError::fail("the lock is off"));
            };
            prop_assert!(authority.stored().len() >= messages);
            messages = authority.stored().len();
            prop_assert_eq!(authority.state().id(), StateId(1, 1));
            // Keys 3 and 4 were added by trusted ones; 9 was never.
            prop_assert!(authority.state().key(&secret(9).id()).is_none());
            prop_assert!(authority.state().key(&secret(1).id()).is_some());
        }
    }
}
