//! Answers in the JSON form of Headscale's command line: camelCase, numbers of records as
//! texts, owners as objects. Fields that Warren does not have are empty, as there.
//!
//! Source: headscale: gen/client/v1/client.gen.go, hscontrol/testdata/apiv1_golden/.

use serde::Serialize;
use serde_json::{Value, json};
use warren_control_api::endpoints::{
    AuthKeyInfo, C2nResponse, CreatedAuthKey, DnsInfo, HealthInfo, NodeInfo, PendingNodeInfo,
    PolicyVersionInfo, ReloadInfo, SshCheckInfo, UserInfo,
};
use warren_control_core::JoinMethod;

/// The records that an answer names, without containing them.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) users: Vec<UserInfo>,
    pub(super) keys: Vec<AuthKeyInfo>,
}

/// An answer in the form of Headscale.
pub(super) trait HeadscaleForm: Serialize {
    /// The form; our own where Headscale has no such answer.
    fn headscale_form(&self, known: &Known) -> Value {
        let _ = known;
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl HeadscaleForm for Vec<PendingNodeInfo> {}
impl HeadscaleForm for PendingNodeInfo {}
impl HeadscaleForm for Vec<SshCheckInfo> {}
impl HeadscaleForm for SshCheckInfo {}
impl HeadscaleForm for C2nResponse {}
impl HeadscaleForm for ReloadInfo {}
impl HeadscaleForm for DnsInfo {}
impl HeadscaleForm for Vec<PolicyVersionInfo> {}

impl HeadscaleForm for HealthInfo {
    fn headscale_form(&self, _: &Known) -> Value {
        json!({ "databaseConnectivity": self.database })
    }
}

impl HeadscaleForm for UserInfo {
    fn headscale_form(&self, _: &Known) -> Value {
        let account = self.account.as_ref();
        let text = |text: Option<&String>| text.cloned().unwrap_or_default();
        json!({
            "createdAt": self.created_at,
            "displayName": text(account.and_then(|account| account.display_name.as_ref())),
            "email": text(account.and_then(|account| account.email.as_ref())),
            "id": self.id.to_string(),
            "name": self.name,
            "profilePicUrl": "",
            "provider": if account.is_some() { "oidc" } else { "" },
            "providerId": account.map_or_else(String::new, |account| {
                format!("{}/{}", account.issuer, account.subject)
            }),
        })
    }
}

impl HeadscaleForm for AuthKeyInfo {
    fn headscale_form(&self, known: &Known) -> Value {
        json!({
            "aclTags": self.acl_tags,
            "createdAt": self.created_at,
            "ephemeral": self.ephemeral,
            "expiration": self.expiration,
            "id": self.id.to_string(),
            "key": format!("{}***", self.prefix),
            "reusable": self.reusable,
            "used": self.used,
            "user": known.user(self.user.as_deref()),
        })
    }
}

impl HeadscaleForm for CreatedAuthKey {
    fn headscale_form(&self, known: &Known) -> Value {
        let mut form = self.record.headscale_form(known);
        form["key"] = self.key.as_str().into();
        form
    }
}

impl HeadscaleForm for NodeInfo {
    fn headscale_form(&self, known: &Known) -> Value {
        let key = self.auth_key.and_then(|id| known.key(id));
        let owner = self.user.as_deref().filter(|_| self.tags.is_empty());
        json!({
            "approvedRoutes": self.approved_routes,
            "availableRoutes": self.available_routes,
            "createdAt": self.created_at,
            "discoKey": self.disco_key.as_deref().unwrap_or_default(),
            "expiry": self.expiry,
            "givenName": self.given_name,
            "id": self.id.to_string(),
            "ipAddresses": self.ip_addresses,
            "lastSeen": self.last_seen,
            "machineKey": self.machine_key,
            "name": self.name,
            "nodeKey": self.node_key,
            "online": self.online,
            "preAuthKey": key.map(|key| key.headscale_form(known)),
            "registerMethod": match self.register_method {
                JoinMethod::AuthKey => "REGISTER_METHOD_AUTH_KEY",
                JoinMethod::Approval => "REGISTER_METHOD_CLI",
                JoinMethod::Login => "REGISTER_METHOD_OIDC",
            },
            "subnetRoutes": self.serving_routes,
            "tags": self.tags,
            "user": known.user(owner),
        })
    }
}

macro_rules! lists {
    ($($item:ty),*) => {$(
        impl HeadscaleForm for Vec<$item> {
            fn headscale_form(&self, known: &Known) -> Value {
                self.iter().map(|item| item.headscale_form(known)).collect()
            }
        }
    )*};
}
lists!(UserInfo, AuthKeyInfo, NodeInfo);

impl Known {
    fn user(&self, name: Option<&str>) -> Value {
        let user = self.users.iter().find(|user| Some(&*user.name) == name);
        user.map_or(Value::Null, |user| user.headscale_form(self))
    }

    fn key(&self, id: i64) -> Option<&AuthKeyInfo> {
        self.keys.iter().find(|key| key.id == id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The answers of Headscale's API for one node of a user with a used key, with the
    /// values left out (hscontrol/testdata/apiv1_golden/TestAPIV1NodeGet_happy_parity.json).
    const GOLDEN: &str = r#"{
        "approvedRoutes": [], "availableRoutes": [], "createdAt": "", "discoKey": "",
        "expiry": null, "givenName": "", "id": "", "ipAddresses": [], "lastSeen": "",
        "machineKey": "", "name": "", "nodeKey": "", "online": false,
        "preAuthKey": {
            "aclTags": [], "createdAt": "", "ephemeral": false, "expiration": null, "id": "",
            "key": "", "reusable": false, "used": true,
            "user": {
                "createdAt": "", "displayName": "", "email": "", "id": "", "name": "",
                "profilePicUrl": "", "provider": "", "providerId": ""
            }
        },
        "registerMethod": "", "subnetRoutes": [], "tags": [],
        "user": {
            "createdAt": "", "displayName": "", "email": "", "id": "", "name": "",
            "profilePicUrl": "", "provider": "", "providerId": ""
        }
    }"#;

    fn node(tags: &[&str]) -> NodeInfo {
        serde_json::from_value(json!({
            "id": 3, "name": "Box", "given_name": "box", "fqdn": "box.net.example.",
            "user": "ann", "tags": tags, "ip_addresses": ["100.64.0.1", "fd7a:115c:a1e0::1"],
            "online": true, "last_seen": "2026-01-02T03:04:05Z", "expiry": null,
            "expired": false, "created_at": "2026-01-02T03:04:05Z",
            "register_method": "auth_key", "auth_key": 7, "ephemeral": false,
            "node_key": "nodekey:00", "machine_key": "mkey:00", "disco_key": null,
            "endpoints": [], "home_relay": null, "os": "linux", "version": "1.2.3",
            "capability_version": 120, "available_routes": [], "approved_routes": [],
            "serving_routes": [], "router_state": null,
        }))
        .unwrap()
    }

    fn known() -> Known {
        let user = json!({
            "id": 1, "name": "ann", "role": "member", "created_at": "2026-01-02T03:04:05Z",
        });
        let key = json!({
            "id": 7, "prefix": "wk-7-", "user": "ann", "reusable": false, "ephemeral": false,
            "acl_tags": [], "uses": 1, "used": true, "usable": false, "state": "used_up",
            "expiration": null, "created_at": "2026-01-02T03:04:05Z",
        });
        Known {
            users: vec![serde_json::from_value(user).unwrap()],
            keys: vec![serde_json::from_value(key).unwrap()],
        }
    }

    /// The names of all fields, and the kinds of the values.
    fn shape(value: &Value) -> Value {
        match value {
            Value::Object(entries) => entries
                .iter()
                .map(|(key, value)| (key.clone(), shape(value)))
                .collect(),
            Value::Array(_) => json!([]),
            Value::String(_) => json!("text"),
            Value::Bool(_) => json!("bool"),
            Value::Number(_) => json!("number"),
            Value::Null => Value::Null,
        }
    }

    #[test]
    fn node_has_the_shape_of_the_recorded_one() {
        let golden: Value = serde_json::from_str(GOLDEN).unwrap();
        let form = node(&[]).headscale_form(&known());
        assert_eq!(shape(&form), shape(&golden));
        assert_eq!(
            (&form["id"], &form["user"]["id"]),
            (&json!("3"), &json!("1"))
        );
        assert_eq!(form["preAuthKey"]["key"], "wk-7-***");
        let tagged = node(&["tag:web"]).headscale_form(&known());
        assert_eq!(
            (&tagged["user"], &tagged["tags"]),
            (&Value::Null, &json!(["tag:web"]))
        );
    }
}
