//! The demonstration: a whole private network comes up, and shows what it
//! does while it does it.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::probe::{Echo, Probe};
use crate::program::ours;
use crate::{
    Control, Host, Kind, Lab, LabError, Node, PATIENCE, Path, Place, Relay, RelayKind, until, web,
};

/// The time for which the packets are watched after each change.
const WATCH: Duration = Duration::from_millis(600);
/// The pace of the packets that watch the path.
const PACE: Duration = Duration::from_millis(10);

/// The running network of the demonstration; `--keep` keeps it alive.
pub struct Stage {
    /// The network.
    pub lab: Lab,
    /// The coordination server.
    pub control: Control,
    /// The relay.
    pub relay: Relay,
    /// The two nodes.
    pub nodes: [Node; 2],
}

/// Prints progress with the time since the start.
struct Progress {
    start: Instant,
}

impl Progress {
    fn print(&self, text: impl AsRef<str>) {
        self.print_at(Instant::now(), text);
    }

    fn print_at(&self, at: Instant, text: impl AsRef<str>) {
        let seconds = at.saturating_duration_since(self.start).as_secs_f64();
        let mut out = std::io::stdout().lock();
        // The demo goes on when the terminal is closed.
        drop(writeln!(out, "{seconds:5.1} s  {}", text.as_ref()));
        drop(out.flush());
    }
}

/// Runs the demonstration.
///
/// # Errors
/// When any step does not happen; the text says which, and holds the logs.
pub fn run() -> Result<Stage, LabError> {
    let progress = Progress {
        start: Instant::now(),
    };
    let mut lab = Lab::new()?;
    let control_host = lab.host("control", Place::Open)?;
    let relay_host = lab.host("relay", Place::Open)?;
    let alice_host = lab.host("alice", Place::Easy)?;
    let bob_host = lab.host("bob", Place::CarrierNat)?;
    print_map(&alice_host, &bob_host, &control_host, &relay_host);
    let relay = Relay::start(&relay_host, RelayKind::Warren, 901)?;
    let mut relay = relay.ok_or_else(|| LabError::new("warren-relay is missing"))?;
    let control = Control::start(&control_host, Some(&crate::derp_map(&[&relay])))?;
    let key = control.auth_key("demo")?;
    progress.print("control and relay are up");

    // On a machine of its own a direct path is there before the first packet
    // is: so the way between the two is closed at first, to see the relay work.
    alice_host.block_udp_with(&bob_host)?;
    let alice = Node::start(&alice_host, Kind::Warren)?;
    let bob = Node::start(&bob_host, Kind::Warren)?;
    let took = alice.up(control.url(), &key, &[])?;
    progress.print(format!(
        "alice joined as {}, {:.2} s",
        shown(&alice)?,
        took.as_secs_f64()
    ));
    let took = bob.up(control.url(), &key, &[])?;
    let joined = Instant::now();
    progress.print(format!(
        "bob joined as {}, {:.2} s",
        shown(&bob)?,
        took.as_secs_f64()
    ));

    let _echo = Echo::start(&bob_host)?;
    let bob_address = first(&bob)?;
    let probe = Probe::start(&alice_host, bob_address, PACE)?;
    let first_answer = until("a first reply through the tunnel", PATIENCE, || {
        probe.first_answer().ok_or("none yet")
    })?;
    let path = alice.path_to("bob")?;
    progress.print_at(
        first_answer,
        format!(
            "first reply alice -> bob, {:.0} ms after both had joined ({})",
            (first_answer - joined).as_secs_f64() * 1000.0,
            describe(&path)
        ),
    );
    wait_past(first_answer + WATCH);
    progress.print("packets flow; now the way between them opens");
    alice_host.unblock()?;
    let opened = Instant::now();
    let direct = alice.wait_until_direct("bob")?;
    let switched = Instant::now();
    wait_past(switched + WATCH);
    let (sent, lost) = probe.lost_between(first_answer, switched + WATCH / 2);
    progress.print_at(
        switched,
        format!(
            "direct to {direct}, {:.1} s later; {lost} of {sent} packets lost on the way there",
            (switched - opened).as_secs_f64()
        ),
    );

    open_pages(&progress, &alice_host, &bob_host)?;
    cut_direct_path(&progress, &alice, &bob_host, &probe)?;
    stop_relay(&progress, &mut relay, &probe)?;
    println!("\nalice$ warren status\n{}", alice.cli(&["status"])?);
    progress.print("done");
    Ok(Stage {
        lab,
        control,
        relay,
        nodes: [alice, bob],
    })
}

/// Prints the hosts and the NATs between them.
fn print_map(alice_host: &Host, bob_host: &Host, control_host: &Host, relay_host: &Host) {
    println!(
        "
  alice {a} -- {ap} {ao} --.              .-- {bo} {bp} -- bob {b}
                                               \\  internet  /
                     control {c} --+----------+-- relay {r}
",
        a = alice_host.address(),
        ap = alice_host.place(),
        ao = alice_host.outside_address(),
        b = bob_host.address(),
        bp = bob_host.place(),
        bo = bob_host.outside_address(),
        c = control_host.address(),
        r = relay_host.address(),
    );
}

/// Opens a page of each node on the other one, by its name.
fn open_pages(progress: &Progress, alice_host: &Host, bob_host: &Host) -> Result<(), LabError> {
    web::serve_page(bob_host)?;
    web::serve_page(alice_host)?;
    let page = until("the page http://bob/", PATIENCE, || {
        web::open_page(alice_host, "bob")
    })?;
    progress.print(format!(
        "http://bob/ on alice says \"{}\" (name by MagicDNS)",
        page.trim()
    ));
    let page = until("the page http://alice/", PATIENCE, || {
        web::open_page(bob_host, "alice")
    })?;
    progress.print(format!("http://alice/ on bob says \"{}\"", page.trim()));
    Ok(())
}

/// Cuts the direct path, watches the relay take over, and restores the path.
fn cut_direct_path(
    progress: &Progress,
    alice: &Node,
    bob_host: &Host,
    probe: &Probe,
) -> Result<(), LabError> {
    let cut = Instant::now();
    alice.host().block_udp_with(bob_host)?;
    let back = until("the relay to take over", PATIENCE, || {
        match alice.path_to("bob")? {
            Path::Relay(code) => Ok(code),
            other @ (Path::Idle | Path::Direct(_)) => Err(LabError::new(describe(&other))),
        }
    })?;
    wait_past(Instant::now() + WATCH);
    progress.print(format!(
        "direct path cut: relay {back} again; longest silence {:.1} s",
        probe.longest_silence(cut).as_secs_f64()
    ));
    alice.host().unblock()?;
    let direct = alice.wait_until_direct("bob")?;
    progress.print(format!("cable back: direct to {direct} again"));
    Ok(())
}

/// Stops the relay for a moment; the direct path needs none.
fn stop_relay(progress: &Progress, relay: &mut Relay, probe: &Probe) -> Result<(), LabError> {
    let settled = Instant::now() + WATCH;
    wait_past(settled);
    relay.program().stop()?;
    let stopped = Instant::now();
    wait_past(stopped + WATCH);
    let (sent, lost) = probe.lost_between(stopped, stopped + WATCH / 2);
    progress.print_at(
        stopped,
        format!("relay stopped: {lost} of {sent} packets lost, they go direct"),
    );
    relay.restart()?;
    Ok(())
}

fn shown(node: &Node) -> Result<String, LabError> {
    let addresses = node.addresses()?;
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    Ok(addresses.join(" "))
}

fn first(node: &Node) -> Result<IpAddr, LabError> {
    node.addresses()?
        .first()
        .copied()
        .ok_or_else(|| LabError::new("no address"))
}

fn describe(path: &Path) -> String {
    match path {
        Path::Idle => "no path in use".to_owned(),
        Path::Relay(code) => format!("over relay {code}"),
        Path::Direct(address) => format!("direct to {address}"),
    }
}

/// Lets the probe run on until `end`.
fn wait_past(end: Instant) {
    while Instant::now() < end {
        std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// The commands to play with a kept network, to be pasted into another terminal.
///
/// # Errors
/// When a program of ours is not there any more.
pub fn how_to_play(stage: &Stage) -> Result<String, LabError> {
    let terminal = Terminal::of_this_process();
    let node_program = ours("warren")?;
    let hosts = stage.nodes.each_ref().map(Node::host);
    let mut text = String::from("The network stays up until Ctrl-C. In another terminal:\n");
    for host in hosts {
        let socket = host.folder().join("node/s.sock");
        text += &terminal.command(
            &[
                &node_program,
                "--socket".as_ref(),
                &socket,
                "status".as_ref(),
            ],
            &format!("the network as {} sees it", host.name()),
        );
    }
    let state = stage.control.state_folder();
    text += &terminal.command(
        &[
            &ours("warren-control")?,
            "--state-dir".as_ref(),
            &state,
            "nodes".as_ref(),
            "list".as_ref(),
        ],
        "the nodes as the server sees them",
    );
    for host in hosts {
        text += &terminal.shell(std::process::id(), host.namespace().id(), host.name());
    }
    Ok(text)
}

/// The other terminal of the user, in which commands are pasted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terminal {
    /// It is root there, as here.
    Root,
    /// This program got its rights by `sudo`, which the other terminal needs too.
    Sudo,
    /// This program is root of a user namespace, which shells have to enter.
    UserNamespace,
}

impl Terminal {
    fn of_this_process() -> Self {
        // user_namespaces(7): the first namespace maps all ids to themselves.
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let is_first = map.split_whitespace().eq(["0", "0", "4294967295"]);
        match (is_first, std::env::var_os("SUDO_UID")) {
            (false, _) => Self::UserNamespace,
            (true, Some(_)) => Self::Sudo,
            (true, None) => Self::Root,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Sudo => "sudo ",
            Self::Root | Self::UserNamespace => "",
        }
    }

    /// A line with a command and what it shows.
    fn command(self, words: &[&std::path::Path], what: &str) -> String {
        let words: Vec<String> = words
            .iter()
            .map(|word| shell_word(&word.to_string_lossy()))
            .collect();
        format!("  {}{}   # {what}\n", self.prefix(), words.join(" "))
    }

    /// A line that opens a shell in the namespaces of the thread of a host. Its prompt is
    /// the name of the host.
    fn shell(self, process: u32, thread: u32, host: &str) -> String {
        let user = match self {
            Self::UserNamespace => {
                format!(" --preserve-credentials --user=/proc/{process}/ns/user")
            }
            Self::Root | Self::Sudo => String::new(),
        };
        let task = format!("/proc/{process}/task/{thread}/ns");
        format!(
            "  {}nsenter{user} --net={task}/net --mount={task}/mnt env PS1='{host}# ' sh   # a shell on {host}\n",
            self.prefix()
        )
    }
}

/// A word that a shell takes as it is.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_to_paste_name_programs_by_their_paths() {
        let words = ["/a folder/warren", "--socket", "/tmp/l/alice/node/s.sock"];
        let words = words.map(std::path::Path::new);
        assert_eq!(
            Terminal::Sudo.command(&words, "x"),
            "  sudo '/a folder/warren' --socket /tmp/l/alice/node/s.sock   # x\n"
        );
        assert!(Terminal::Root.command(&words, "x").starts_with("  '/a "));
    }

    #[test]
    fn shells_show_the_host_and_enter_its_namespaces() {
        assert_eq!(
            Terminal::UserNamespace.shell(7, 9, "bob"),
            "  nsenter --preserve-credentials --user=/proc/7/ns/user --net=/proc/7/task/9/ns/net \
             --mount=/proc/7/task/9/ns/mnt env PS1='bob# ' sh   # a shell on bob\n"
        );
        assert!(!Terminal::Sudo.shell(7, 9, "bob").contains("--user"));
    }
}
