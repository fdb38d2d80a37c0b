//! Policy files: every error has a place in the file, and what is taken
//! compiles to rules that the packet filter understands.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_control_types::{NodeId, UserId};
use warren_filter::{CapabilityHolders, Filter, LocalSet, capability_sources};
use warren_fuzz::tailnet_addresses;
use warren_policy::{Attributes, Context, Policy, PolicyNode, PolicyUser, Role};

fn users() -> Vec<PolicyUser> {
    let names = ["alice@example.com", "bob"];
    let user = |(id, login): (usize, &&str)| PolicyUser {
        id: UserId(id as i64 + 1),
        login: (*login).to_owned(),
        aliases: Vec::new(),
        groups: Vec::new(),
        role: Role::Member,
    };
    names.iter().enumerate().map(user).collect()
}

fn nodes() -> Vec<PolicyNode> {
    let node = |id: u8, user: Option<i64>, tags: &[&str], routes: &[&str]| PolicyNode {
        id: NodeId(id.into()),
        user: user.map(UserId),
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        addresses: tailnet_addresses(id).map(|net| net.addr()).to_vec(),
        routes: routes
            .iter()
            .map(|route| route.parse().expect("written well"))
            .collect(),
        attributes: Attributes::default(),
    };
    vec![
        node(1, Some(1), &[], &[]),
        node(2, Some(2), &[], &["10.0.0.0/8"]),
        node(3, None, &["tag:web"], &["0.0.0.0/0", "::/0"]),
    ]
}

fuzz_target!(|bytes: &[u8]| {
    let context = Context {
        domains: Some(["example.com".to_owned()].into()),
    };
    let Ok(source) = std::str::from_utf8(bytes) else {
        assert!(Policy::parse_bytes(bytes, &context).is_err());
        return;
    };
    let policy = match Policy::parse_bytes(bytes, &context) {
        Ok(policy) => policy,
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(
                    source.get(error.span.clone()).is_some(),
                    "{:?} cuts the text",
                    error.span
                );
                assert!(error.line >= 1 && error.column >= 1);
                assert!(!error.render("policy.hujson", source).is_empty());
            }
            return;
        }
    };
    let (users, nodes) = (users(), nodes());
    let compiled = policy.compile(&users, &nodes);
    for node in &nodes {
        let rules = compiled.filter_for(node.id);
        let (_, problems) = Filter::compile(&rules, LocalSet::default(), &CapabilityHolders::new());
        assert!(problems.is_empty(), "{problems:?}");
        assert!(capability_sources(&rules).is_empty());
        for peer in compiled.peers_of(node.id) {
            assert!(compiled.can_see(node.id, peer) && compiled.can_see(peer, node.id));
        }
        let _ = policy.approves_route(&users, node, "10.1.0.0/16".parse().expect("written well"));
    }
    let _ = policy.run_tests(&users, &nodes);
    let _ = policy.run_ssh_tests(&users, &nodes);
    let ssh = policy.compile_ssh(&users, &nodes);
    for node in &nodes {
        for rule in ssh.policy_for(node.id, "https://control").rules {
            assert!(!rule.principals.is_empty() && !rule.ssh_users.is_empty());
        }
        let _ = policy.node_attributes(&users, node);
        let _ = policy.ip_pools(&users, node);
    }
    for user in &users {
        let _ = policy.may_use_tag(&users, user.id, "tag:web");
    }
});
