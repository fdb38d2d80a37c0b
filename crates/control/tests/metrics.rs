//! The metrics of a server, as Prometheus reads them.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use support::{Node, admin, options, reason, reusable, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use warren_control::cli::args::{OptionalListen, Serve};
use warren_control::serve::{defaults, start};
use warren_control_api::endpoints::{DeleteNode, SetPolicy, WhichPolicy};
use warren_control_core::GivenPolicy;
use warren_testkit::{Sample, parse_metrics};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);
const README: &str = include_str!("../../../README.md");

/// The answer to a GET request: head and body.
async fn get(at: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

struct Scrape {
    text: String,
    samples: BTreeMap<Sample, String>,
}

impl Scrape {
    async fn new(at: SocketAddr) -> Self {
        let (head, text) = get(at, "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        let samples = parse_metrics(&text).unwrap();
        Self { text, samples }
    }

    /// The sample with these labels, given as in `name{label="value"}`.
    fn value(&self, sample: &str) -> u64 {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels = labels.trim_end_matches('}').split(',');
        let labels = labels.filter_map(|label| label.split_once('='));
        let labels = labels.map(|(name, value)| (name.to_owned(), value.replace('"', "")));
        let key = (name.to_owned(), labels.collect());
        let value = self.samples.get(&key);
        value
            .unwrap_or_else(|| panic!("no {sample}"))
            .parse()
            .unwrap()
    }

    #[track_caller]
    fn expect(&self, expected: &[(&str, u64)]) {
        for (sample, value) in expected {
            assert_eq!(self.value(sample), *value, "{sample}");
        }
    }
}

fn with_metrics(serve: Serve) -> Serve {
    Serve {
        metrics_listen: Some(OptionalListen::At(ANY_PORT.into())),
        ..serve
    }
}

#[tokio::test]
async fn a_join_changes_the_numbers_and_no_label_identifies_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let serve = with_metrics(options(dir.path()));
    let server = start(&dir.path().join("state"), serve).await.unwrap();
    let at = server.metrics.unwrap();
    assert!(server.banner.contains(&format!("http://{at}/metrics")));
    Scrape::new(at).await.expect(&[
        ("headscale_nodestore_nodes", 0),
        ("warren_control_nodes{state=\"online\"}", 0),
        ("warren_control_map_sessions", 0),
        ("warren_control_registrations_total{result=\"accepted\"}", 0),
        ("warren_control_refusals_total{kind=\"registration\"}", 0),
        ("warren_control_store_healthy", 1),
        ("warren_control_policy_version", 0),
    ]);

    let key = reusable(dir.path()).await;
    let mut alice = Node::new(&server.server_url, "alice");
    assert!(!alice.register("wk-1-unknown").await.error.is_empty());
    assert!(alice.register(&key).await.error.is_empty());
    let bob = Node::new(&server.server_url, "bob");
    bob.register(&key).await;
    alice.poll("zstd").await;
    alice.update("192.0.2.7:41641").await.unwrap();
    let policy = SetPolicy {
        policy: WhichPolicy::Given(GivenPolicy {
            file: "acl.hujson".to_owned(),
            text: Some("{\"acls\": []}".to_owned()),
        }),
        base: None,
        dry_run: false,
    };
    admin(dir.path(), policy).await.unwrap();
    alice.until(|map| map.peers.is_empty()).await;

    let scrape = Scrape::new(at).await;
    scrape.expect(&[
        ("headscale_nodestore_nodes", 2),
        ("warren_control_nodes{state=\"online\"}", 1),
        ("warren_control_nodes{state=\"offline\"}", 1),
        ("warren_control_users", 1),
        ("warren_control_map_sessions", 1),
        ("warren_control_registrations_total{result=\"accepted\"}", 2),
        ("warren_control_registrations_total{result=\"refused\"}", 1),
        ("warren_control_refusals_total{kind=\"registration\"}", 1),
        (
            "headscale_mapresponse_sent_total{status=\"ok\",type=\"full\"}",
            1,
        ),
        (
            "headscale_mapresponse_generated_total{response_type=\"full\"}",
            1,
        ),
        (
            "headscale_mapresponse_generated_total{response_type=\"peers\"}",
            1,
        ),
        (
            "headscale_mapresponse_endpoint_updates_total{status=\"ok\"}",
            1,
        ),
        ("headscale_mapresponse_ended_total{reason=\"cancelled\"}", 0),
        ("warren_control_policy_version", 1),
        ("warren_control_policy_valid", 1),
        ("warren_control_store_failures_total", 0),
    ]);
    assert!(scrape.value("warren_control_connections") > 0);
    assert!(scrape.value("warren_control_store_writes_total") > 0);
    for secret in [
        "alice",
        "bob",
        "default",
        "100.64.",
        "192.0.2.7",
        "key:",
        &key,
    ] {
        assert!(!scrape.text.contains(secret), "{secret}");
    }

    let delete = DeleteNode {
        node: "alice".into(),
    };
    admin(dir.path(), delete).await.unwrap();
    while alice.next().await.is_some() {}
    Scrape::new(at).await.expect(&[
        ("headscale_nodestore_nodes", 1),
        ("warren_control_map_sessions", 0),
        ("headscale_mapresponse_ended_total{reason=\"cancelled\"}", 1),
        ("headscale_mapresponse_ended_total{reason=\"done\"}", 0),
    ]);
    server.stop().await.unwrap();
}

/// With the embedded relay, so that its families are among them.
#[tokio::test]
async fn the_readme_lists_all_families_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let serve = with_metrics(Serve {
        listen: Some(ANY_PORT.into()),
        stun_listen: Some(OptionalListen::Off),
        ..defaults()
    });
    let server = start(&dir.path().join("state"), serve).await.unwrap();
    let at = server.metrics.unwrap();
    let scrape = Scrape::new(at).await;
    assert_eq!(scrape.value("warren_relay_connections"), 0);
    let mut heads: Vec<String> = Vec::new();
    for line in scrape.text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
            && !name.starts_with("warren_relay_")
        {
            heads.push(format!("| `{name}` | {kind} |"));
        }
    }
    let rows = README.lines().filter_map(|line| {
        let is_ours = ["| `headscale_", "| `warren_control_"];
        let is_ours = is_ours.iter().any(|start| line.starts_with(start));
        let mut cells = line.split(" | ");
        is_ours.then(|| format!("{} | {} |", cells.next().unwrap(), cells.next().unwrap()))
    });
    let mut rows: Vec<String> = rows.collect();
    heads.sort();
    rows.sort();
    assert_eq!(heads, rows);

    let (head, body) = get(at, "/").await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert!(body.contains("/metrics"), "{body}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn metrics_are_off_by_default_and_a_taken_port_is_an_error_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    assert_eq!(server.metrics, None);
    // Nor does the port for nodes have them.
    let url: url::Url = server.server_url.parse().unwrap();
    let at = url.socket_addrs(|| None).unwrap()[0];
    let mut stream = TcpStream::connect(at).await.unwrap();
    let head = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    server.stop().await.unwrap();

    let taken = std::net::TcpListener::bind(std::net::SocketAddr::from(ANY_PORT)).unwrap();
    let serve = Serve {
        metrics_listen: Some(OptionalListen::At(taken.local_addr().unwrap())),
        ..options(dir.path())
    };
    let refused = start(&dir.path().join("state"), serve).await;
    let why = reason(refused.unwrap_err());
    assert!(why.contains("--metrics-listen IP:PORT"), "{why}");
}
