//! The table of the endpoints of the administration API.
//!
//! A row names the request type, the method, the path, the permission and the
//! answer. From the rows follow [`AdministrationApi`], the trait that a server
//! implements; its routes ([`administration_routes`]); and what
//! [`Client::call`](crate::client::Client::call) sends and returns.

pub mod auth_keys;
pub mod dns;
pub mod nodes;
pub mod policies;
pub mod server;
pub mod ssh_checks;
pub mod users;

use std::sync::Arc;

use http::Method;

pub use auth_keys::{
    AuthKeyInfo, AuthKeyState, CreateAuthKey, CreatedAuthKey, DeleteAuthKey, ExpireAuthKey,
    ListAuthKeys,
};
pub use dns::{AddDnsRecord, DeleteDnsRecord, DnsInfo, DnsRecordInfo, GetDns, SetDns};
pub use nodes::{
    ApproveNode, ApproveRoutes, AssignNode, DeleteNode, ExpireNode, GetNode, ListNodes,
    ListPendingNodes, ListRoutes, NewExpiry, NodeInfo, PendingNodeInfo, RejectLogin, RejectedLogin,
    RenameNode, TagNode,
};
pub use policies::{
    ComparePolicies, ExplainPolicy, GetPolicy, ListPolicyVersions, PolicyProblem, PolicyReport,
    PolicyText, PolicyVersionInfo, SetPolicy, SetPolicyResult, TestPolicy, TestPolicyResult,
    WhichPolicy,
};
pub use server::{
    C2nResponse, GetHealth, HealthInfo, ProviderHealth, RefusalInfo, Reload, ReloadInfo, SendC2n,
};
pub use ssh_checks::{ApproveSshCheck, DenySshCheck, ListSshChecks, SshCheckInfo};
pub use users::{
    CreateUser, DeleteUser, LinkUser, ListUsers, RenameUser, SetUserRole, UserAccountInfo, UserInfo,
};

use crate::caller::Permission;
use crate::endpoint::{Endpoint, Handler};
use crate::router::Routes;

/// Makes a table of endpoints: an [`Endpoint`] for each request type, a trait that
/// asks for a handler of each row, and a function that makes routes of a service
/// with that trait.
macro_rules! endpoints {
    (
        $(#[$trait_doc:meta])* trait $api:ident;
        $(#[$routes_doc:meta])* fn $routes:ident;
        $( $request:ident: $method:ident $path:literal, $permission:ident => $answer:ty; )*
    ) => {
        $(
            impl Endpoint for $request {
                const METHOD: Method = Method::$method;
                const PATH: &'static str = $path;
                const PERMISSION: Permission = Permission::$permission;
                type Answer = $answer;
            }
        )*

        $(#[$trait_doc])*
        pub trait $api: $(Handler<$request> +)* Send + Sync + 'static {}
        impl<T: $(Handler<$request> +)* Send + Sync + 'static> $api for T {}

        $(#[$routes_doc])*
        pub fn $routes<T: $api>(service: Arc<T>) -> Routes<T> {
            Routes::new(service)$(.on::<$request>())*
        }

        /// The request type, method, path and permission of every row.
        #[cfg(test)]
        pub(crate) const ROWS: &[(&str, Method, &str, Permission)] = &[
            $((stringify!($request), Method::$method, $path,
                Permission::$permission),)*
        ];
    };
}

endpoints! {
    /// The administration of a coordination server: a handler for each endpoint.
    trait AdministrationApi;
    /// The routes of the administration API.
    fn administration_routes;

    ListUsers: GET "/v1/users", Read => Vec<UserInfo>;
    CreateUser: POST "/v1/users", Write => UserInfo;
    RenameUser: POST "/v1/users/rename", Write => UserInfo;
    SetUserRole: POST "/v1/users/set-role", Write => UserInfo;
    LinkUser: POST "/v1/users/link", Write => UserInfo;
    DeleteUser: POST "/v1/users/delete", Write => UserInfo;

    ListNodes: GET "/v1/nodes", Read => Vec<NodeInfo>;
    GetNode: GET "/v1/nodes/show", Read => NodeInfo;
    RenameNode: POST "/v1/nodes/rename", Write => NodeInfo;
    ExpireNode: POST "/v1/nodes/expire", Write => NodeInfo;
    DeleteNode: POST "/v1/nodes/delete", Write => NodeInfo;
    TagNode: POST "/v1/nodes/tag", Write => NodeInfo;
    AssignNode: POST "/v1/nodes/assign", Write => NodeInfo;
    ListRoutes: GET "/v1/nodes/routes", Read => Vec<NodeInfo>;
    ApproveRoutes: POST "/v1/nodes/routes", Write => NodeInfo;
    ListPendingNodes: GET "/v1/nodes/pending", Read => Vec<PendingNodeInfo>;
    ApproveNode: POST "/v1/nodes/approve", Write => NodeInfo;
    RejectLogin: POST "/v1/nodes/reject", Write => RejectedLogin;

    ListAuthKeys: GET "/v1/auth-keys", Read => Vec<AuthKeyInfo>;
    CreateAuthKey: POST "/v1/auth-keys", Write => CreatedAuthKey;
    ExpireAuthKey: POST "/v1/auth-keys/expire", Write => AuthKeyInfo;
    DeleteAuthKey: POST "/v1/auth-keys/delete", Write => AuthKeyInfo;

    GetPolicy: GET "/v1/policy", Read => PolicyText;
    SetPolicy: POST "/v1/policy", Write => SetPolicyResult;
    TestPolicy: POST "/v1/policy/test", Read => TestPolicyResult;
    ComparePolicies: POST "/v1/policy/compare", Read => PolicyReport;
    ExplainPolicy: POST "/v1/policy/explain", Read => PolicyReport;
    ListPolicyVersions: GET "/v1/policy/versions", Read => Vec<PolicyVersionInfo>;

    GetDns: GET "/v1/dns", Read => DnsInfo;
    SetDns: POST "/v1/dns", Write => DnsInfo;
    AddDnsRecord: POST "/v1/dns/records", Write => DnsInfo;
    DeleteDnsRecord: POST "/v1/dns/records/delete", Write => DnsInfo;

    ListSshChecks: GET "/v1/ssh-checks", Read => Vec<SshCheckInfo>;
    ApproveSshCheck: POST "/v1/ssh-checks/approve", Write => SshCheckInfo;
    DenySshCheck: POST "/v1/ssh-checks/deny", Write => SshCheckInfo;

    GetHealth: GET "/v1/health", Read => HealthInfo;
    Reload: POST "/v1/reload", Write => ReloadInfo;
    SendC2n: POST "/v1/c2n", Write => C2nResponse;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rows_share_a_method_and_a_path() {
        for (index, (name, method, path, permission)) in ROWS.iter().enumerate() {
            assert!(path.starts_with("/v1/"), "{name}");
            let reads = *method == Method::GET;
            assert!(!reads || *permission == Permission::Read, "{name}");
            for (other, other_method, other_path, _) in &ROWS[index + 1..] {
                let both = path == other_path && method == other_method;
                assert!(!both, "{name} and {other}");
            }
        }
    }
}
