//! The administrator's commands, and how they are carried out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_control_core::{
    AdminError, AuthKeyId, Coordinator, NewAuthKey, PendingId, Role, SshCheckView, role_name,
};

use crate::admin::policies::{self, WhichPolicy};
use crate::admin::views::{
    AuthKeyView, C2nView, CheckView, CreatedKeyView, HealthView, NodeView, UserView, WaitingView,
};
use crate::c2n;
use crate::clock::wall_clock;
use crate::coordinator::CoordinatorHandle;

/// One command of the administrator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
#[allow(
    missing_docs,
    reason = "the names are the command line's, which explains them"
)]
pub enum Command {
    UsersCreate {
        name: String,
    },
    UsersList,
    UsersRename {
        name: String,
        new_name: String,
    },
    UsersSetRole {
        name: String,
        #[serde(with = "role_name")]
        role: Role,
    },
    UsersDelete {
        name: String,
    },
    NodesList {
        user: Option<String>,
    },
    NodesShow {
        node: String,
    },
    NodesRename {
        node: String,
        name: String,
    },
    NodesExpire {
        node: String,
    },
    NodesDelete {
        node: String,
    },
    NodesWaiting,
    NodesApprove {
        id: String,
        user: String,
        tags: BTreeSet<String>,
    },
    NodesRoutes {
        node: Option<String>,
    },
    NodesApproveRoutes {
        node: String,
        routes: Vec<String>,
    },
    NodesTag {
        node: String,
        tags: BTreeSet<String>,
    },
    PreauthkeysCreate {
        user: Option<String>,
        reusable: bool,
        ephemeral: bool,
        tags: BTreeSet<String>,
        /// Seconds; 0 is for ever.
        lifetime: u64,
    },
    PreauthkeysList,
    PreauthkeysExpire {
        id: i64,
    },
    PolicyGet {
        version: Option<i64>,
    },
    PolicySet {
        policy: WhichPolicy,
        dry_run: bool,
        /// The version that the person looked at, if it must still be in force.
        base: Option<i64>,
    },
    PolicyTest {
        policy: WhichPolicy,
    },
    PolicyDiff {
        old: WhichPolicy,
        new: WhichPolicy,
    },
    PolicyWhy {
        policy: WhichPolicy,
        source: String,
        destination: String,
        protocol: Option<String>,
    },
    PolicyHistory,
    SshChecksList,
    SshChecksApprove {
        id: String,
    },
    SshChecksDeny {
        id: String,
    },
    Health,
    DebugC2n {
        node: String,
        path: String,
        /// The body to send; without one the request is a GET.
        data: Option<String>,
    },
}

/// Why a command was refused, as shown to the administrator.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) String);

impl From<AdminError> for Refusal {
    fn from(error: AdminError) -> Self {
        Self(error.to_string())
    }
}

impl Command {
    /// Carries the command out for the local user `caller`. The answer comes when
    /// the change is on disk.
    pub(crate) async fn run(
        self,
        coordinator: &Arc<CoordinatorHandle>,
        caller: &str,
    ) -> Result<Value, Refusal> {
        match self {
            Self::UsersCreate { name } => {
                change(coordinator, |c, wall| {
                    Ok(UserView::new(&c.create_user(wall, &name)?))
                })
                .await
            }
            Self::UsersList => {
                view(coordinator.read(|c| c.users().map(UserView::new).collect::<Vec<_>>()))
            }
            Self::UsersRename { name, new_name } => {
                change(coordinator, |c, _| {
                    Ok(UserView::new(&c.rename_user(&name, &new_name)?))
                })
                .await
            }
            Self::UsersSetRole { name, role } => {
                change(coordinator, |c, _| {
                    Ok(UserView::new(&c.set_role(&name, role)?))
                })
                .await
            }
            Self::UsersDelete { name } => {
                change(coordinator, |c, _| {
                    Ok(UserView::new(&c.delete_user(&name)?))
                })
                .await
            }
            Self::NodesList { user } => coordinator
                .read(|c| {
                    let owner = user
                        .map(|name| c.find_user(&name).map(|u| u.id))
                        .transpose()?;
                    Ok::<_, AdminError>(
                        c.nodes()
                            .filter(|node| owner.is_none() || node.user == owner)
                            .map(|node| NodeView::new(c, node, wall_clock()))
                            .collect::<Vec<_>>(),
                    )
                })
                .map_err(Refusal::from)
                .and_then(view),
            Self::NodesShow { node } => coordinator
                .read(|c| {
                    c.find_node(&node)
                        .map(|node| NodeView::new(c, node, wall_clock()))
                })
                .map_err(Refusal::from)
                .and_then(view),
            Self::NodesRename { node, name } => {
                change_node(coordinator, |c, _| c.rename_node(&node, &name)).await
            }
            Self::NodesExpire { node } => {
                change_node(coordinator, |c, wall| c.expire_node(wall, &node)).await
            }
            Self::NodesDelete { node } => {
                let gone = coordinator.read(|c| {
                    c.find_node(&node)
                        .map(|n| NodeView::new(c, n, wall_clock()))
                })?;
                change(coordinator, |c, _| {
                    c.delete_node(&node)?;
                    Ok(gone)
                })
                .await
            }
            Self::NodesWaiting => view(
                coordinator
                    .inspect(|c| c.pending().iter().map(WaitingView::new).collect::<Vec<_>>()),
            ),
            Self::NodesApprove { id, user, tags } => {
                let result = coordinator
                    .change_saved(|c, now, wall| {
                        let id = c.approve(now, wall, &PendingId(id), &user, tags)?;
                        node_view(c, id, wall)
                    })
                    .await
                    .map_err(|error| Refusal(error.to_string()))?;
                result.map_err(Refusal::from).and_then(view)
            }
            Self::NodesRoutes { node } => coordinator
                .read(|c| {
                    let only = node
                        .map(|text| c.find_node(&text).map(|n| n.id))
                        .transpose()?;
                    Ok::<_, AdminError>(
                        c.nodes()
                            .filter(|n| {
                                only.map_or(!n.hostinfo.routable_ips.is_empty(), |id| n.id == id)
                            })
                            .map(|n| NodeView::new(c, n, wall_clock()))
                            .collect::<Vec<_>>(),
                    )
                })
                .map_err(Refusal::from)
                .and_then(view),
            Self::NodesApproveRoutes { node, routes } => {
                let routes: Vec<IpNet> = routes
                    .iter()
                    .map(|text| {
                        text.trim().parse().map_err(|_| {
                            Refusal(format!(
                                "\"{text}\" is not a route; write it as 10.1.0.0/16"
                            ))
                        })
                    })
                    .collect::<Result<_, _>>()?;
                change_node(coordinator, |c, _| c.approve_routes(&node, &routes)).await
            }
            Self::NodesTag { node, tags } => {
                change_node(coordinator, |c, _| c.tag_node(&node, tags)).await
            }
            Self::PreauthkeysCreate {
                user,
                reusable,
                ephemeral,
                tags,
                lifetime,
            } => {
                change(coordinator, |c, wall| {
                    let lifetime = (lifetime != 0).then(|| Duration::from_secs(lifetime));
                    let new = NewAuthKey {
                        user: user.map(Into::into),
                        reusable,
                        ephemeral,
                        tags,
                        lifetime,
                    };
                    let (text, record) = c.create_auth_key(wall, new)?;
                    let record = AuthKeyView::new(&c.view(), &record, wall);
                    Ok(CreatedKeyView {
                        key: text.expose(),
                        record,
                    })
                })
                .await
            }
            Self::PreauthkeysList => view(coordinator.read(|c| {
                c.auth_keys()
                    .map(|key| AuthKeyView::new(c, key, wall_clock()))
                    .collect::<Vec<_>>()
            })),
            Self::PreauthkeysExpire { id } => {
                change(coordinator, |c, wall| {
                    let key = c.expire_auth_key(wall, AuthKeyId(id))?;
                    Ok(AuthKeyView::new(&c.view(), &key, wall))
                })
                .await
            }
            Self::PolicyGet { version } => policies::get(coordinator, version),
            Self::PolicySet {
                policy,
                dry_run,
                base,
            } => policies::set(coordinator, caller, &policy, dry_run, base).await,
            Self::PolicyTest { policy } => policies::test(coordinator, &policy).await,
            Self::PolicyDiff { old, new } => policies::diff(coordinator, &old, &new).await,
            Self::PolicyWhy {
                policy,
                source,
                destination,
                protocol,
            } => {
                policies::why(
                    coordinator,
                    &policy,
                    &source,
                    &destination,
                    protocol.as_deref(),
                )
                .await
            }
            Self::PolicyHistory => policies::history(coordinator),
            Self::SshChecksList => view(coordinator.inspect(CheckView::waiting)),
            Self::SshChecksApprove { id } => decide(coordinator, |c, now| {
                c.approve_ssh_check(now, &PendingId(id))
            }),
            Self::SshChecksDeny { id } => {
                decide(coordinator, |c, now| c.deny_ssh_check(now, &PendingId(id)))
            }
            Self::Health => view(HealthView::new(coordinator)),
            Self::DebugC2n { node, path, data } => {
                let method = if data.is_some() {
                    Method::POST
                } else {
                    Method::GET
                };
                let body = data.unwrap_or_default();
                let request = c2n::request(&method, &path, body.as_bytes())
                    .map_err(|error| Refusal(error.to_string()))?;
                let (status, body) = coordinator.ask(&node, request).await.map_err(Refusal)?;
                let body = String::from_utf8_lossy(&body).into_owned();
                view(C2nView { status, body })
            }
        }
    }
}

fn view(value: impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(|error| Refusal(error.to_string()))
}

/// Decides about an SSH session. Decisions are not stored, so no write is awaited.
fn decide(
    coordinator: &Arc<CoordinatorHandle>,
    act: impl FnOnce(&mut Coordinator, Instant) -> Result<SshCheckView, AdminError>,
) -> Result<Value, Refusal> {
    let (result, _no_rows) = coordinator.change(|coordinator, now, _| {
        let decided = act(coordinator, now)?;
        Ok::<_, AdminError>(CheckView::new(&coordinator.view(), &decided))
    });
    result.map_err(Refusal::from).and_then(view)
}

async fn change<V: Serialize>(
    coordinator: &Arc<CoordinatorHandle>,
    change: impl FnOnce(&mut Coordinator, Duration) -> Result<V, AdminError>,
) -> Result<Value, Refusal> {
    let result = coordinator
        .change_saved(|coordinator, _, wall| change(coordinator, wall))
        .await
        .map_err(|error| Refusal(error.to_string()))?;
    result.map_err(Refusal::from).and_then(view)
}

async fn change_node(
    coordinator: &Arc<CoordinatorHandle>,
    act: impl FnOnce(&mut Coordinator, Duration) -> Result<warren_control_types::NodeId, AdminError>,
) -> Result<Value, Refusal> {
    change(coordinator, |coordinator, wall| {
        let id = act(coordinator, wall)?;
        node_view(coordinator, id, wall)
    })
    .await
}

fn node_view(
    coordinator: &Coordinator,
    id: warren_control_types::NodeId,
    wall: Duration,
) -> Result<NodeView, AdminError> {
    let node = coordinator
        .node(id)
        .ok_or_else(|| AdminError::NoNode(id.to_string()))?;
    Ok(NodeView::new(&coordinator.view(), node, wall))
}
