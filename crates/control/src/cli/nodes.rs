//! `warren-control nodes`.

use std::time::Duration;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use warren_control_api::endpoints::{
    ApproveNode, ApproveRoutes, AssignNode, DeleteNode, ExpireNode, GetNode, ListNodes,
    ListPendingNodes, ListRoutes, NewExpiry, NodeInfo, PendingNodeInfo, RejectLogin, RejectedLogin,
    RenameNode, TagNode,
};

use warren_control_core::RouterState;

use super::args::{self, Nodes};
use super::id_in;
use super::session::Session;
use crate::failure::Failure;
use crate::terminal::{printable, relative, table};

/// Runs a `nodes` command.
pub(super) async fn run(session: &Session, command: Nodes) -> Result<(), Failure> {
    match command {
        Nodes::List { user } => {
            let request = ListNodes { user };
            session.ask(&request, |nodes, now| list(nodes, now)).await?;
        }
        Nodes::Show { node } => {
            session.ask(&GetNode { node }, details).await?;
        }
        Nodes::Rename { node, name } => {
            let request = RenameNode {
                node,
                new_name: name,
            };
            let text = |node: &NodeInfo, _| format!("the node is now {}\n", node.given_name);
            session.ask(&request, text).await?;
        }
        Nodes::Expire {
            node,
            never,
            after,
            at,
        } => {
            let expiry = match (after, at) {
                _ if never => NewExpiry::Never,
                (Some(after), _) => NewExpiry::At(from_now(after)?),
                (None, Some(at)) if at > Timestamp::now() => NewExpiry::At(at),
                (None, _) => NewExpiry::Now,
            };
            session.ask(&ExpireNode { node, expiry }, expires).await?;
        }
        Nodes::Delete { node } => {
            let text = |node: &NodeInfo| format!("{} deleted\n", node.given_name);
            let headscale = json!({ "result": "Node deleted" });
            session.done(&DeleteNode { node }, text, headscale).await?;
        }
        Nodes::Waiting => {
            let request = ListPendingNodes {};
            session.ask(&request, |all, now| pending(all, now)).await?;
        }
        Nodes::Approve {
            id,
            key,
            user,
            tags,
        } => {
            let request = ApproveNode {
                id: id_in(&id.or(key).unwrap_or_default()),
                user,
                tags: args::set(tags, Vec::new()),
            };
            session.ask(&request, |node, _| joined(node)).await?;
        }
        Nodes::Reject { id } => {
            let text = |_: &RejectedLogin| "refused\n".to_owned();
            let request = RejectLogin { id: id_in(&id) };
            session.done(&request, text, json!({})).await?;
        }
        Nodes::Backfillips => session.show(
            &json!({ "changes": [] }),
            "every node has an address of both families; nothing to do\n",
        ),
        Nodes::Routes { node } => {
            session
                .ask(&ListRoutes { node }, |nodes, _| routes(nodes))
                .await?;
        }
        Nodes::ApproveRoutes {
            node,
            routes: flags,
            more,
        } => {
            let routes_given = args::set(flags, more);
            let parsed: Result<Vec<IpNet>, Failure> =
                routes_given.iter().map(|text| route(text)).collect();
            let request = ApproveRoutes {
                node,
                routes: parsed?,
            };
            let text = |node: &NodeInfo, _| routes(std::slice::from_ref(node));
            session.ask(&request, text).await?;
        }
        Nodes::Tag { node, tags, more } => {
            let request = TagNode {
                node,
                tags: args::set(tags, more),
            };
            session.ask(&request, |node, _| owned(node)).await?;
        }
        Nodes::Assign { node, user } => {
            session
                .ask(&AssignNode { node, user }, |node, _| owned(node))
                .await?;
        }
    }
    Ok(())
}

fn route(text: &str) -> Result<IpNet, Failure> {
    text.parse().map_err(|_| {
        Failure::Failed(format!(
            "\"{text}\" is not a valid route; write it as 10.1.0.0/16"
        ))
    })
}

fn from_now(after: Duration) -> Result<Timestamp, Failure> {
    let after = SignedDuration::try_from(after).ok();
    let end = after.and_then(|after| Timestamp::now().checked_add(after).ok());
    end.ok_or_else(|| Failure::Failed("the time given is out of range".to_owned()))
}

fn expires(node: &NodeInfo, now: Timestamp) -> String {
    match node.expiry {
        None => format!("the key of {} does not expire\n", node.given_name),
        Some(_) if node.expired => format!("{} has to log in again\n", node.given_name),
        Some(end) => format!(
            "the key of {} expires {}\n",
            node.given_name,
            relative(end, now)
        ),
    }
}

fn owner(node: &NodeInfo) -> String {
    if node.tags.is_empty() {
        node.user.clone().unwrap_or_default()
    } else {
        node.tags.join(",")
    }
}

fn state(node: &NodeInfo, now: Timestamp) -> String {
    match (node.expired, node.online, node.last_seen) {
        (true, _, _) => "expired".to_owned(),
        (false, true, _) => "online".to_owned(),
        (false, false, Some(seen)) => format!("offline, seen {}", relative(seen, now)),
        (false, false, None) => "offline".to_owned(),
    }
}

fn key_expiry(node: &NodeInfo, now: Timestamp) -> String {
    node.expiry
        .map_or_else(|| "never".to_owned(), |at| relative(at, now))
}

fn list(nodes: &[NodeInfo], now: Timestamp) -> String {
    if nodes.is_empty() {
        return "no nodes yet; add one with a key from: warren-control preauthkeys create --user NAME\n"
            .to_owned();
    }
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            vec![
                node.id.to_string(),
                node.given_name.clone(),
                owner(node),
                node.ip_addresses.join(" "),
                format!("{} {}", node.os, version(node)),
                state(node, now),
                key_expiry(node, now),
                routes_in_short(node),
            ]
        })
        .collect();
    let mut heading = vec![
        "ID",
        "NAME",
        "OWNER",
        "ADDRESSES",
        "SYSTEM",
        "STATE",
        "KEY EXPIRES",
    ];
    if nodes.iter().any(has_routes) {
        heading.push("ROUTES");
        return table(&heading, &rows);
    }
    let without_routes: Vec<_> = rows
        .into_iter()
        .map(|row| row.into_iter().take(heading.len()).collect::<Vec<_>>())
        .collect();
    table(&heading, &without_routes)
}

/// The version without the parts that name a build: `1.103.0` of `1.103.0-dev20260101-t0`.
fn version(node: &NodeInfo) -> &str {
    node.version.split('-').next().unwrap_or_default()
}

fn has_routes(node: &NodeInfo) -> bool {
    !node.available_routes.is_empty() || !node.approved_routes.is_empty()
}

/// The routes of a node, each with its state.
fn routes_in_short(node: &NodeInfo) -> String {
    let routes: Vec<String> = all_routes(node)
        .iter()
        .map(|route| format!("{route} {}", route_state(node, route)))
        .collect();
    routes.join(", ")
}

/// The routes that a node offers, and those that are approved.
fn all_routes(node: &NodeInfo) -> Vec<&String> {
    let mut routes: Vec<_> = node.available_routes.iter().collect();
    let approved = node.approved_routes.iter();
    routes.extend(approved.filter(|route| !node.available_routes.contains(route)));
    routes
}

fn details(node: &NodeInfo, now: Timestamp) -> String {
    let list = |items: &[String]| {
        if items.is_empty() {
            "-".to_owned()
        } else {
            items.join(", ")
        }
    };
    format!(
        "{} (id {})\n  name        {}\n  host name   {}\n  owner       {}\n  addresses   {}\n  state       {}\n  \
         joined      {}{}\n  key expires {}\n  system      {} {}\n  endpoints   {}\n  home relay  {}\n  routes      {}\n  serving     {}\n  \
         node key    {}\n  machine key {}\n",
        node.given_name,
        node.id,
        node.fqdn,
        printable(&node.name),
        owner(node),
        node.ip_addresses.join(", "),
        state(node, now),
        relative(node.created_at, now),
        if node.ephemeral { ", ephemeral" } else { "" },
        key_expiry(node, now),
        printable(&node.os),
        printable(&node.version),
        list(&node.endpoints),
        node.home_relay
            .map_or_else(|| "-".to_owned(), |region| region.to_string()),
        list(&node.approved_routes),
        list(&node.serving_routes),
        node.node_key,
        node.machine_key,
    )
}

fn pending(nodes: &[PendingNodeInfo], now: Timestamp) -> String {
    if nodes.is_empty() {
        return "no machines are waiting for approval\n".to_owned();
    }
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            vec![
                node.id.clone(),
                node.name.clone(),
                node.os.clone(),
                relative(node.since, now),
            ]
        })
        .collect();
    let mut out = table(&["ID", "NAME", "OS", "SINCE"], &rows);
    out.push_str("approve one: warren-control nodes approve ID --user NAME\n");
    out
}

fn joined(node: &NodeInfo) -> String {
    let addresses = node.ip_addresses.join(" and ");
    format!("{} joined, as {addresses}\n", node.given_name)
}

fn routes(nodes: &[NodeInfo]) -> String {
    let mut rows = Vec::new();
    for node in nodes {
        for route in all_routes(node) {
            let state = route_state(node, route).to_owned();
            rows.push(vec![node.given_name.clone(), route.clone(), state]);
        }
    }
    if rows.is_empty() {
        return "no node offers routes\n".to_owned();
    }
    table(&["NODE", "ROUTE", "STATE"], &rows)
}

/// Whether a node serves a route; why not otherwise.
fn route_state(node: &NodeInfo, route: &String) -> &'static str {
    let router = node.router_state.unwrap_or_default();
    if !node.approved_routes.contains(route) {
        "not approved"
    } else if !node.available_routes.contains(route) {
        "approved, not announced"
    } else if node.serving_routes.contains(route) {
        match router {
            RouterState::Expected | RouterState::Lost | RouterState::Returning => {
                "serving, not connected now"
            }
            RouterState::Impaired => "serving, but opens no new connection to the server",
            RouterState::Absent | RouterState::Unasked | RouterState::Answering => "serving",
        }
    } else {
        match router {
            RouterState::Absent if node.expired => "key expired",
            RouterState::Absent if node.online => "router does not answer",
            RouterState::Absent => "router offline",
            RouterState::Expected | RouterState::Lost | RouterState::Returning => {
                "standby, not connected now"
            }
            RouterState::Impaired => "standby, opens no new connection to the server",
            RouterState::Unasked | RouterState::Answering => "standby",
        }
    }
}

fn owned(node: &NodeInfo) -> String {
    if node.tags.is_empty() {
        let user = node.user.as_deref().unwrap_or_default();
        format!("{} belongs to user {user}\n", node.given_name)
    } else {
        format!("{} belongs to {}\n", node.given_name, node.tags.join(", "))
    }
}
