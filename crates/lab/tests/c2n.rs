//! c2n: requests of the server to official nodes and to ours.
#![allow(clippy::unwrap_used)]

use warren_lab::scenario::{installed, lab, more};
use warren_lab::{Control, Kind, Lab, Node, Place};

fn a_node_answers(lab: &mut Lab, kind: Kind) -> Option<()> {
    installed(Kind::Warren)?;
    installed(kind)?;
    let control = Control::start(&lab.host("control", Place::Open).unwrap(), None).unwrap();
    let key = control.auth_key("ann").unwrap();
    let node = Node::start(&lab.host("alice", Place::Open).unwrap(), kind).unwrap();
    node.up(control.url(), &key, more(kind)).unwrap();

    let echo = ["debug", "c2n", "alice", "/echo", "--data", "hello"];
    assert_eq!(control.cli(&echo).unwrap(), "200\nhello\n");
    assert_eq!(control.json(&echo).unwrap()["body"], "hello");
    let refused = control.cli(&["debug", "c2n", "alice", "/no/such/path"]);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("the node refused"), "{refused}");
    let unconnected = control.cli(&["debug", "c2n", "bob", "/echo"]);
    assert!(
        unconnected
            .unwrap_err()
            .to_string()
            .contains("node \"bob\" not found")
    );
    Some(())
}

#[test]
fn our_node_answers_the_server() {
    let Some(mut lab) = lab() else { return };
    a_node_answers(&mut lab, Kind::Warren);
}

#[test]
fn a_real_client_answers_the_server() {
    let Some(mut lab) = lab() else { return };
    a_node_answers(&mut lab, Kind::Tailscale);
}
