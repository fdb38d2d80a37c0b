//! The table of the endpoints of the local interface.
//!
//! A row names the request type, the methods, the path, the permission and the
//! answer with its form. From the rows follow [`NodeApi`], the trait that a node
//! implements; its router ([`node_routes`]); and what
//! [`Client::call`](crate::client::Client::call) sends and returns.

mod diagnostics;
mod login;
mod network;
mod prefs;
mod profiles;
mod status;
mod tailnet_lock;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;
use warren_control_types::{DerpMap, DnsConfig, Encoded, FilterRule, Node, UserProfile};

pub use diagnostics::{
    BugReport, Debug, DebugAction, GetFilter, GetMetrics, GetNetcheck, GetUserMetrics, Ping, Why,
};
pub use login::{LogIn, LogOut, ResetLogin, Start};
pub use network::{
    CheckIpForwarding, CheckUdpForwarding, Checked, Dial, DialForm, Dialed, GetCertDomains,
    GetFileTargets, GetFilterRules, GetServices, PeerById, SuggestExitNode, SuggestedExitNode,
    UserById, address_of,
};
pub use prefs::{
    CheckPrefs, CheckedPrefs, EditPrefs, GetPrefs, ReloadConfig, ReloadedConfig, name_exit_node,
};
pub use profiles::{
    DeleteProfile, GetCurrentProfile, GetProfile, GetProfiles, NewProfile, SwitchProfile,
};
pub use status::{GetDerpMap, GetDnsConfig, GetServeConfig, GetStatus, WatchBus, WhoIs};
pub use tailnet_lock::{
    GetAutosign, GetLockLog, GetLockStatus, LockAffected, LockCosign, LockDisable, LockDisableHere,
    LockInit, LockModify, LockRevoke, LockSign, LockSubmit, LockWrap, SetAutosign,
};

use crate::endpoint::{
    Created, Done, EventStream, Handler, Json, JsonLines, MetricsText, NoContent, Permission,
    PrettyJson, Raw, Text,
};
use crate::filter::{FilterReport, WhyAnswer};
use crate::notify::Notify;
use crate::prefs::ShownPrefs;
use crate::tailnet_lock::{AutosignTags, LockStatus, LockUpdate};
use crate::types::{LoginProfile, NetcheckReport, PingResult, Status, WhoIsResponse};

/// Makes a table of endpoints: an `Endpoint` for each request type, a trait
/// that asks for a handler of each row, and a function that makes routes of a
/// type with that trait. A method that ends with `errors in KEY` writes the
/// errors of its handler as JSON with that key.
macro_rules! endpoints {
    (
        $(#[$trait_doc:meta])* trait $api:ident;
        $(#[$routes_doc:meta])* fn $routes:ident;
        $( $request:ident: [$($method:ident),*] $path:literal, $permission:ident
            => $form:ident<$answer:ty> $(, errors in $key:literal)?; )*
    ) => {
        $(
            impl $crate::endpoint::Endpoint for $request {
                const METHODS: &'static [http::Method] = &[$(http::Method::$method),*];
                const PATH: &'static str = $path;
                const PERMISSION: Permission = Permission::$permission;
                const ERROR_KEY: Option<&'static str> = [$(Some($key),)? None][0];
                type Answer = $answer;
                type Form = $form;
            }
        )*

        $(#[$trait_doc])*
        pub trait $api: $(Handler<$request> +)* Send + Sync + 'static {}
        impl<T: $(Handler<$request> +)* Send + Sync + 'static> $api for T {}

        $(#[$routes_doc])*
        pub fn $routes<T: $api>(node: std::sync::Arc<T>) -> $crate::router::Routes<T> {
            $crate::router::Routes::new(node)$(.on::<$request>())*
        }

        /// Name, methods, path and permission of every row.
        pub const ROWS: &[(&str, &[http::Method], &str, Permission)] = &[
            $((stringify!($request), <$request as $crate::endpoint::Endpoint>::METHODS, $path,
                Permission::$permission),)*
        ];
    };
}
pub(crate) use endpoints;

endpoints! {
    /// A node, as the local interface needs it: a handler for each endpoint.
    trait NodeApi;
    /// The routes of the local interface.
    fn node_routes;

    GetStatus: [GET] "/localapi/v0/status", Read => PrettyJson<Status>;
    WatchBus: [GET] "/localapi/v0/watch-ipn-bus", Read => JsonLines<EventStream<Notify>>;
    WhoIs: [GET] "/localapi/v0/whois", Read => PrettyJson<WhoIsResponse>;
    GetDerpMap: [GET] "/localapi/v0/derpmap", Nothing => PrettyJson<Option<DerpMap>>;
    GetDnsConfig: [GET] "/localapi/v0/dns-config", Read => PrettyJson<DnsConfig>;
    GetServeConfig: [GET] "/localapi/v0/serve-config", Read => Json<Value>;
    GetProfiles: [GET] "/localapi/v0/profiles/", Write => Json<Vec<LoginProfile>>;
    GetCurrentProfile: [GET] "/localapi/v0/profiles/current", Write => Json<LoginProfile>;
    NewProfile: [PUT] "/localapi/v0/profiles/", Write => Created<()>;
    GetProfile: [GET] "/localapi/v0/profiles/{id}", Write => Json<LoginProfile>;
    SwitchProfile: [POST] "/localapi/v0/profiles/{id}", Write => NoContent<()>;
    DeleteProfile: [DELETE] "/localapi/v0/profiles/{id}", Write => NoContent<()>;
    PeerById: [GET] "/localapi/v0/peer-by-id", Read => PrettyJson<Node>;
    UserById: [GET] "/localapi/v0/user-profile", Read => PrettyJson<UserProfile>;
    GetServices: [GET] "/localapi/v0/services", Nothing => Json<BTreeMap<String, Value>>;
    GetFileTargets: [GET] "/localapi/v0/file-targets", Read => Json<Vec<Value>>,
        errors in "error";
    GetCertDomains: [GET] "/localapi/v0/cert-domains", Read => Json<Option<Vec<String>>>;
    CheckIpForwarding: [GET] "/localapi/v0/check-ip-forwarding", Read => Json<Checked>;
    CheckUdpForwarding: [GET] "/localapi/v0/check-udp-gro-forwarding", Read => Json<Checked>;
    SuggestExitNode: [POST, GET] "/localapi/v0/suggest-exit-node", Nothing
        => Json<SuggestedExitNode>, errors in "error";
    Dial: [POST] "/localapi/v0/dial", Nothing => DialForm<Dialed>;

    GetPrefs: [GET, HEAD] "/localapi/v0/prefs", Read => PrettyJson<ShownPrefs>;
    EditPrefs: [PATCH] "/localapi/v0/prefs", Write => PrettyJson<ShownPrefs>, errors in "Error";
    CheckPrefs: [POST] "/localapi/v0/check-prefs", Write => Json<CheckedPrefs>;

    ReloadConfig: [POST] "/localapi/v0/reload-config", Write => Json<ReloadedConfig>;

    Start: [POST] "/localapi/v0/start", Write => NoContent<()>;
    LogIn: [POST] "/localapi/v0/login-interactive", Write => NoContent<()>;
    LogOut: [POST] "/localapi/v0/logout", Write => NoContent<()>;
    ResetLogin: [POST] "/localapi/v0/reset-auth", Write => NoContent<()>;

    GetLockStatus: [GET] "/localapi/v0/tka/status", Read => PrettyJson<LockStatus>;
    GetLockLog: [GET] "/localapi/v0/tka/log", Read => PrettyJson<Vec<LockUpdate>>;
    LockInit: [POST] "/localapi/v0/tka/init", Write => PrettyJson<LockStatus>;
    LockSign: [POST] "/localapi/v0/tka/sign", Write => Done<()>;
    LockModify: [POST] "/localapi/v0/tka/modify", Write => NoContent<()>;
    LockDisable: [POST] "/localapi/v0/tka/disable", Write => Done<()>;
    LockDisableHere: [POST] "/localapi/v0/tka/force-local-disable", Write => Done<()>;
    LockAffected: [POST] "/localapi/v0/tka/affected-sigs", Read => PrettyJson<Vec<Encoded>>;
    LockRevoke: [POST] "/localapi/v0/tka/generate-recovery-aum", Write => Raw<Bytes>;
    LockCosign: [POST] "/localapi/v0/tka/cosign-recovery-aum", Write => Raw<Bytes>;
    LockSubmit: [POST] "/localapi/v0/tka/submit-recovery-aum", Write => Done<()>;
    GetAutosign: [GET] "/localapi/v0/tka/autosign", Read => PrettyJson<AutosignTags>;
    SetAutosign: [POST] "/localapi/v0/tka/autosign", Write => NoContent<()>;
    LockWrap: [POST] "/localapi/v0/tka/wrap-preauth-key", Write => Text<String>;

    Ping: [POST] "/localapi/v0/ping", Nothing => Json<PingResult>, errors in "error";
    GetNetcheck: [GET] "/localapi/v0/netcheck", Read => PrettyJson<NetcheckReport>;
    GetUserMetrics: [GET] "/localapi/v0/usermetrics", Nothing => MetricsText<String>;
    GetMetrics: [GET] "/localapi/v0/metrics", Write => MetricsText<String>;
    BugReport: [POST] "/localapi/v0/bugreport", Read => Text<String>;
    Debug: [POST] "/localapi/v0/debug", Write => Text<String>;
    // The rules and counters show which users may connect, and which did. The
    // official client asks for as much before it shows them.
    GetFilterRules: [GET] "/localapi/v0/debug-packet-filter-rules", Write
        => PrettyJson<Vec<FilterRule>>;
    GetFilter: [GET] "/localapi/v0/debug-filter", Write => PrettyJson<FilterReport>;
    Why: [GET] "/localapi/v0/debug-why", Read => PrettyJson<WhyAnswer>;
}

/// Implements [`RequestForm`](crate::endpoint::RequestForm) for requests that
/// carry nothing.
macro_rules! without_content {
    ($($request:ident),*) => {$(
        impl $crate::endpoint::RequestForm for $request {
            async fn read(
                _request: $crate::endpoint::IncomingRequest,
            ) -> $crate::error::Reply<Self> {
                Ok(Self)
            }

            fn write(&self) -> $crate::endpoint::OutgoingRequest {
                $crate::endpoint::OutgoingRequest::default()
            }
        }
    )*};
}
use without_content;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_endpoints_share_a_method_and_a_path() {
        for (index, (name, methods, path, _)) in ROWS.iter().enumerate() {
            assert!(path.starts_with("/localapi/v0/"), "{name}");
            assert!(!methods.is_empty(), "{name}");
            for (other, other_methods, other_path, _) in &ROWS[index + 1..] {
                let both = methods.iter().any(|method| other_methods.contains(method));
                assert!(path != other_path || !both, "{name} and {other}");
            }
        }
    }
}
