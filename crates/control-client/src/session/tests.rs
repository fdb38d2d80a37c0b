//! Tables of what the server answers and what the session does.

use warren_testkit::FixedEntropy;

use super::*;

/// Half of 256: delays are exact.
const EXACT: FixedEntropy = FixedEntropy(128);

/// An answer of the server, or time that passes.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The server accepts the registration.
    Accept,
    /// The server refuses it with this reason.
    Refuse(&'static str),
    /// A person must open this address.
    Ask(&'static str),
    /// The server wants another node key.
    Expired,
    /// The owner made the fresh key with this number.
    Fresh(u8),
    /// The registration fails.
    RegisterFails,
    /// The server wants fewer registrations.
    SlowDown(Option<u64>),
    /// The server's address cannot be used.
    BadAddress,
    /// The stream is opened.
    Open,
    /// The server does not know the node.
    NotFound,
    /// The stream is not opened.
    OpenFails,
    /// A message of the stream.
    Message,
    /// The stream ends.
    End,
    /// The update arrives, or does not.
    Updated(bool),
    /// The server asks for a signature of the node key.
    AskSignature,
    /// The node signs its key, or cannot.
    Sign(&'static [u8]),
    /// The host is renamed.
    Rename(&'static str),
    /// Seconds pass.
    Pass(u64),
}

use Step::*;

struct World {
    now: Instant,
    session: ControlSession,
    log: Vec<String>,
}

fn key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number; 32])
}

impl World {
    fn new(auth_key: Option<&str>) -> Self {
        let session = ControlSession::new(SessionConfig {
            node_key: key(1),
            old_node_key: None,
            auth_key: auth_key.map(str::to_owned),
            lock_key: None,
            node_key_signature: Vec::new(),
            ephemeral: false,
            description: Description::default(),
        });
        let mut world = Self {
            now: Instant::now(),
            session,
            log: Vec::new(),
        };
        world.read();
        world
    }

    /// Writes down what leaves the session.
    fn read(&mut self) {
        while let Some(output) = self.session.poll_output() {
            let line = match output {
                Output::Request(Request::Register(request)) => {
                    let mut line = format!("register {}", request.node_key.as_bytes()[0]);
                    if let Some(old) = request.old_node_key {
                        line += &format!(" for {}", old.as_bytes()[0]);
                    }
                    if let Some(auth) = request.auth {
                        line += &format!(" with {}", auth.auth_key);
                    }
                    if !request.followup.is_empty() {
                        line += &format!(" after {}", request.followup);
                    }
                    if !request.node_key_signature.is_empty() {
                        line += " signed";
                    }
                    line
                }
                Output::Request(Request::OpenStream(request)) => {
                    assert!(request.stream && request.keep_alive && !request.omit_peers);
                    "open".to_owned()
                }
                Output::Request(Request::Update(request)) => {
                    assert!(!request.stream && request.omit_peers);
                    let name = request.hostinfo.unwrap_or_default().hostname;
                    format!("update {name}").trim_end().to_owned()
                }
                Output::Request(Request::AnswerHead(_)) => "answer".to_owned(),
                Output::Request(Request::AnswerC2n(request, _)) => {
                    format!("answer {}", request.url)
                }
                Output::Event(event) => match event {
                    Event::AuthUrl(url) => format!("URL {url}"),
                    Event::Registered(_) => "REGISTERED".to_owned(),
                    Event::FreshKeyWanted => "FRESH KEY".to_owned(),
                    Event::SignatureWanted { node_key, before } => {
                        assert_eq!((node_key, before), (key(1), vec![1]));
                        "SIGNATURE".to_owned()
                    }
                    Event::KeyExpired => "EXPIRED".to_owned(),
                    Event::StreamBegins => "STREAM".to_owned(),
                    Event::Map(_) => "MAP".to_owned(),
                    Event::Refused { reason, over } => format!("REFUSED {reason} {over}"),
                    Event::Unknown(_) => "UNKNOWN".to_owned(),
                    Event::Trouble(_) => "TROUBLE".to_owned(),
                    Event::C2n { id, .. } => format!("C2N {id}"),
                },
            };
            self.log.push(line);
        }
    }

    fn step(&mut self, step: Step) {
        let answer = |change: fn(&mut RegisterResponse, String), text: &str| {
            let mut response = RegisterResponse::default();
            change(&mut response, text.to_owned());
            Input::Registered(Ok(Box::new(response)))
        };
        let failed = || RequestError::Failed("no route".to_owned());
        let input = match step {
            Accept => answer(|_, _| {}, ""),
            Refuse(reason) => answer(|response, text| response.error = text, reason),
            Ask(url) => answer(|response, text| response.auth_url = text, url),
            Expired => answer(|response, _| response.node_key_expired = true, ""),
            AskSignature => answer(|response, _| response.node_key_signature = vec![1], ""),
            Sign(signature) => Input::Signature(signature.to_vec()),
            Fresh(number) => Input::FreshKey {
                node_key: key(number),
                old_node_key: Some(key(1)),
                node_key_signature: Vec::new(),
            },
            RegisterFails => Input::Registered(Err(failed())),
            SlowDown(seconds) => Input::Registered(Err(RequestError::RateLimited {
                retry_after: seconds.map(Duration::from_secs),
            })),
            BadAddress => Input::Registered(Err(RequestError::BadAddress("no URL".to_owned()))),
            Open => Input::StreamOpened(Ok(())),
            NotFound => Input::StreamOpened(Err(RequestError::NotFound(String::new()))),
            OpenFails => Input::StreamOpened(Err(failed())),
            Message => Input::Message(Box::default()),
            End => Input::StreamEnded("closed".to_owned()),
            Updated(true) => Input::Updated(Ok(())),
            Updated(false) => Input::Updated(Err(failed())),
            Rename(name) => {
                let mut description = Description::default();
                description.hostinfo.hostname = name.to_owned();
                Input::Description(Box::new(description))
            }
            Pass(seconds) => {
                let end = self.now + Duration::from_secs(seconds);
                while let Some((at, _)) = self.session.next_deadline().filter(|(at, _)| *at <= end)
                {
                    self.now = self.now.max(at);
                    self.session.handle_timeout(self.now);
                    self.read();
                }
                self.now = end;
                return;
            }
        };
        self.session.handle(self.now, input, &mut { EXACT });
        self.read();
    }
}

const UNSIGNED_LINE: &str = "REFUSED tailnet lock is on and the server does not accept the signature of this node's new key; join as a new node with `warren logout` and `warren up`, and have it signed on a trusted node with `warren lock sign` true";

fn run(auth_key: Option<&str>, steps: &[Step]) -> Vec<String> {
    let mut world = World::new(auth_key);
    for step in steps {
        world.step(*step);
    }
    world.log
}

#[test]
fn registrations_end_as_the_server_answers() {
    for (auth_key, steps, log) in [
        (
            Some("k"),
            &[Accept, Open, Message][..],
            &[
                "register 1 with k",
                "REGISTERED",
                "update",
                "open",
                "STREAM",
                "MAP",
            ][..],
        ),
        // Tailnet lock: the key is signed and registered again.
        (
            Some("k"),
            &[AskSignature, Sign(&[2]), Accept],
            &[
                "register 1 with k",
                "SIGNATURE",
                "register 1 with k signed",
                "REGISTERED",
                "update",
                "open",
            ],
        ),
        (
            Some("k"),
            &[AskSignature, Sign(&[]), Pass(1000)],
            &["register 1 with k", "SIGNATURE", UNSIGNED_LINE],
        ),
        (
            Some("k"),
            &[AskSignature, Sign(&[2]), AskSignature, Pass(1000)],
            &[
                "register 1 with k",
                "SIGNATURE",
                "register 1 with k signed",
                UNSIGNED_LINE,
            ],
        ),
        // The auth key is refused: repeating the request is useless.
        (
            Some("k"),
            &[Refuse("used up"), Pass(1000), Accept],
            &["register 1 with k", "REFUSED used up true"],
        ),
        // A refusal without an auth key may pass; the delays double.
        (
            None,
            &[
                Refuse("busy"),
                Pass(9),
                Pass(1),
                Refuse("busy"),
                Pass(19),
                Pass(1),
                Accept,
            ],
            &[
                "register 1",
                "REFUSED busy false",
                "register 1",
                "REFUSED busy false",
                "register 1",
                "REGISTERED",
                "update",
                "open",
            ],
        ),
        // A person has to log in; the auth key is not sent a second time.
        (
            Some("k"),
            &[Ask("u"), Ask("u"), Pass(2), Accept],
            &[
                "register 1 with k",
                "URL u",
                "register 1 after u",
                "register 1 after u",
                "REGISTERED",
                "update",
                "open",
            ],
        ),
        // The administrator denies it: the session asks again later.
        (
            None,
            &[Ask("u"), Refuse("denied"), Pass(10)],
            &[
                "register 1",
                "URL u",
                "register 1 after u",
                "REFUSED denied false",
                "register 1",
            ],
        ),
        // The key has expired; a fresh one helps, or does not.
        (
            None,
            &[Expired, Pass(1000), Fresh(2), Accept],
            &[
                "register 1",
                "FRESH KEY",
                "register 2 for 1",
                "REGISTERED",
                "update",
                "open",
            ],
        ),
        (
            None,
            &[Expired, Fresh(2), Expired, Pass(1000), Fresh(3)],
            &["register 1", "FRESH KEY", "register 2 for 1", "EXPIRED"],
        ),
        // The server wants fewer requests.
        (
            Some("k"),
            &[
                SlowDown(Some(30)),
                Pass(29),
                Pass(1),
                SlowDown(None),
                Pass(6),
                Pass(1),
            ],
            &[
                "register 1 with k",
                "register 1 with k",
                "register 1 with k",
            ],
        ),
        // The server is away.
        (
            Some("k"),
            &[RegisterFails, Pass(1), Accept],
            &[
                "register 1 with k",
                "TROUBLE",
                "register 1 with k",
                "REGISTERED",
                "update",
                "open",
            ],
        ),
        (
            None,
            &[BadAddress, Pass(1000)],
            &["register 1", "REFUSED no URL true"],
        ),
    ] {
        assert_eq!(run(auth_key, steps), log, "{steps:?}");
    }
}

#[test]
fn streams_are_opened_again_after_every_end() {
    for (steps, log) in [
        // The registration is not repeated.
        (
            &[Open, Updated(true), End, Pass(1), Open][..],
            &["STREAM", "TROUBLE", "update", "open", "STREAM"][..],
        ),
        (
            &[Updated(true), OpenFails, Pass(1), Open],
            &["TROUBLE", "update", "open", "STREAM"],
        ),
        // A server that does not know the node is believed the second time, and
        // then asked seldom.
        (
            &[
                Updated(true),
                NotFound,
                Pass(1),
                Updated(true),
                NotFound,
                Pass(29),
                Pass(1),
            ],
            &["update", "open", "UNKNOWN", "update", "open"],
        ),
        (
            &[
                Updated(true),
                NotFound,
                Pass(1),
                Updated(true),
                Open,
                End,
                Pass(1),
                Updated(true),
                NotFound,
                Pass(1),
            ],
            &[
                "update", "open", "STREAM", "TROUBLE", "update", "open", "update", "open",
            ],
        ),
        // Results of what has ended are ignored.
        (&[End, Message, Accept, Refuse("late")], &[]),
    ] {
        let steps: Vec<Step> = [Accept].iter().chain(steps).copied().collect();
        let all = run(None, &steps);
        assert_eq!(all[..4], ["register 1", "REGISTERED", "update", "open"]);
        assert_eq!(all[4..], *log, "{steps:?}");
    }
}

#[test]
fn changes_are_reported_one_at_a_time_until_they_arrive() {
    for (steps, log) in [
        (&[Rename("a"), Updated(true)][..], &["update a"][..]),
        // While an update is under way the last change waits.
        (
            &[
                Rename("a"),
                Rename("b"),
                Rename("c"),
                Updated(true),
                Updated(true),
            ],
            &["update a", "update c"],
        ),
        (&[Rename("")], &[]),
        (
            &[
                Rename("a"),
                Updated(false),
                Pass(1),
                Updated(true),
                Pass(1000),
            ],
            &["update a", "update a"],
        ),
        // A new stream reports everything again.
        (
            &[Rename("a"), Updated(true), End, Pass(1)],
            &["update a", "TROUBLE", "update a", "open"],
        ),
        (
            &[End, Rename("a"), Pass(1), Updated(true), Open],
            &["TROUBLE", "update a", "open", "STREAM"],
        ),
    ] {
        let steps: Vec<Step> = [Accept, Open, Updated(true)]
            .iter()
            .chain(steps)
            .copied()
            .collect();
        assert_eq!(run(None, &steps)[5..], *log, "{steps:?}");
    }
}

#[test]
fn failures_are_retried_with_growing_delays_up_to_half_a_minute() {
    let mut world = World::new(None);
    let mut delays = Vec::new();
    for _ in 0..80 {
        world.step(RegisterFails);
        let (at, reason) = world.session.next_deadline().unwrap();
        assert_eq!(reason, Reason::Retry);
        delays.push((at - world.now).as_millis());
        // Early calls do nothing.
        world.session.handle_timeout(world.now);
        assert!(world.session.poll_output().is_none());
        world.now = at;
        world.session.handle_timeout(at);
        world.read();
    }
    assert_eq!(delays[..4], [10, 40, 90, 160]);
    assert_eq!(delays[79], 30_000);
    assert!(delays.is_sorted());
}

#[test]
fn short_streams_are_failures_and_long_ones_are_not() {
    let mut world = World::new(None);
    let delay_after = |world: &mut World, seconds: u64| {
        world.step(Open);
        world.step(Updated(true));
        world.step(Pass(seconds));
        world.step(End);
        let (at, _) = world.session.next_deadline().unwrap();
        let delay = at - world.now;
        world.step(Pass(60));
        delay.as_millis()
    };
    world.step(Accept);
    let delays = [0, 9, 1, 10, 3, 3600].map(|seconds| delay_after(&mut world, seconds));
    assert_eq!(delays, [10, 40, 90, 10, 10, 10]);
}

#[test]
fn c2n_requests_are_answered_under_their_number() {
    let mut world = World::new(None);
    world.step(Accept);
    world.step(Open);
    let message = MapResponse {
        ping_request: Some(PingRequest {
            url: "http://server/c2n/1".to_owned(),
            types: "c2n".to_owned(),
            ..PingRequest::default()
        }),
        ..MapResponse::default()
    };
    for _ in 0..2 {
        let message = Input::Message(Box::new(message.clone()));
        world.session.handle(world.now, message, &mut { EXACT });
    }
    for id in [1, 1, 7] {
        let response = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        let answer = Input::C2nAnswer { id, response };
        world.session.handle(world.now, answer, &mut { EXACT });
    }
    world.read();
    assert_eq!(
        world.log[5..],
        ["MAP", "C2N 1", "MAP", "answer http://server/c2n/1"]
    );
}
