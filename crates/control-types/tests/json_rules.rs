//! How messages look on the wire, and what is read from the wire of others.
#![allow(clippy::unwrap_used)]

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use warren_control_types::*;
use warren_keys::{DiscoPublic, MachinePublic, NodePublic};

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_str(&value.to_string()).unwrap()
}

fn written<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap()
}

fn node_key(byte: u8) -> NodePublic {
    NodePublic::from_bytes([byte; 32])
}

#[test]
fn the_keepalive_is_always_the_same_18_bytes() {
    let text = serde_json::to_string(&MapResponse::keep_alive()).unwrap();
    assert_eq!(text, r#"{"KeepAlive":true}"#);
}

#[test]
fn an_empty_register_request_has_the_fields_others_rely_on() {
    let zeros = "0".repeat(64);
    assert_eq!(
        written(&RegisterRequest::default()),
        json!({
            "Version": 0,
            "NodeKey": format!("nodekey:{zeros}"),
            "OldNodeKey": format!("nodekey:{zeros}"),
            "NLKey": format!("nlpub:{zeros}"),
            "Expiry": "0001-01-01T00:00:00Z",
            "Followup": "",
            "Hostinfo": null,
            "NodeKeySignature": null,
        })
    );
    let read: RegisterRequest = read(written(&RegisterRequest::default()));
    assert_eq!(read, RegisterRequest::default());
}

#[test]
fn an_empty_register_response_has_every_field() {
    let response = written(&RegisterResponse::default());
    let keys: Vec<&str> = response
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "AuthURL",
            "Error",
            "Login",
            "MachineAuthorized",
            "NodeKeyExpired",
            "NodeKeySignature",
            "User"
        ]
    );
}

#[test]
fn the_key_answer_keeps_the_retired_key_as_zeros() {
    let answer = OverTlsPublicKeyResponse {
        legacy_public_key: None,
        public_key: Some(MachinePublic::from_bytes([1; 32])),
    };
    let zeros = format!("mkey:{}", "0".repeat(64));
    assert_eq!(written(&answer)["legacyPublicKey"], zeros.as_str());
    assert_eq!(read::<OverTlsPublicKeyResponse>(written(&answer)), answer);
}

#[test]
fn logging_out_is_a_time_in_the_past() {
    let request: RegisterRequest = read(json!({"Expiry": "1970-01-01T00:02:03Z"}));
    assert_eq!(request.expiry.unwrap().as_second(), 123);
    assert_eq!(written(&request)["Expiry"], "1970-01-01T00:02:03Z");
}

#[test]
fn null_is_zero_in_every_field() {
    fn all_null<T: Serialize + DeserializeOwned + Default + PartialEq + std::fmt::Debug>(
        keys: &[&str],
    ) {
        let mut object = written(&T::default()).as_object().unwrap().clone();
        for key in object
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .iter()
            .map(String::as_str)
        {
            object.insert(key.to_owned(), Value::Null);
        }
        for key in keys {
            object.insert((*key).to_owned(), Value::Null);
        }
        object.insert("NobodyKnowsThis".to_owned(), json!({"a": [1, null]}));
        assert_eq!(read::<T>(Value::Object(object)), T::default());
    }
    all_null::<RegisterRequest>(&["Auth", "Timestamp", "DeviceCert", "Tailnet", "Ephemeral"]);
    all_null::<RegisterResponse>(&[]);
    all_null::<MapRequest>(&[
        "Endpoints",
        "EndpointTypes",
        "Stream",
        "Compress",
        "TKAHead",
    ]);
    all_null::<MapResponse>(&[
        "Node",
        "Peers",
        "PeersChanged",
        "PeersRemoved",
        "PeersChangedPatch",
        "PeerSeenChange",
        "OnlineChange",
        "DERPMap",
        "DNSConfig",
        "PacketFilter",
        "PacketFilters",
        "UserProfiles",
        "Health",
        "DisplayMessages",
        "ControlTime",
        "CollectServices",
        "Seq",
        "KeepAlive",
    ]);
    all_null::<Node>(&[
        "AllowedIPs",
        "Endpoints",
        "CapMap",
        "Hostinfo",
        "Online",
        "LastSeen",
    ]);
    all_null::<PeerChange>(&["CapMap", "Endpoints", "Key", "DiscoKey", "KeyExpiry", "Cap"]);
    all_null::<Hostinfo>(&[
        "Services",
        "NetInfo",
        "RoutableIPs",
        "Container",
        "Location",
        "TPM",
    ]);
    all_null::<NetInfo>(&["DERPLatency", "WorkingUDP", "PreferredDERP", "HavePortMap"]);
    all_null::<DnsConfig>(&["Resolvers", "Routes", "Domains", "ExtraRecords", "Proxied"]);
    all_null::<DerpMap>(&["HomeParams", "omitDefaultRegions"]);
    all_null::<DerpNode>(&["IPv4", "STUNPort", "CertName", "STUNOnly"]);
    all_null::<FilterRule>(&["DstPorts", "IPProto", "CapGrant", "SrcBits"]);
    all_null::<SshPolicy>(&[]);
    all_null::<SshRule>(&["ruleExpires", "acceptEnv"]);
    all_null::<SshAction>(&["recorders", "sessionDuration", "accept"]);
    all_null::<PingRequest>(&["IP", "Payload", "Types"]);
}

#[test]
fn a_node_as_other_servers_send_it() {
    let disco = DiscoPublic::from_bytes([5; 32]);
    let node: Node = read(json!({
        "ID": 12, "StableID": "n12", "Name": "ant.example.net.", "User": 3,
        "Key": node_key(1).to_string(), "KeyExpiry": "0001-01-01T00:00:00Z",
        "Machine": format!("mkey:{}", "0".repeat(64)), "DiscoKey": disco.to_string(),
        "Addresses": ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"], "AllowedIPs": null,
        "Endpoints": ["192.0.2.1:41641", "[fe80::1%eth0]:41641", "[2001:db8::1]:41641"],
        "DERP": "127.3.3.40:901", "Hostinfo": {"OS": "linux", "Hostname": "ant"},
        "Created": "2026-01-02T03:04:05.678Z", "Online": false,
        "CapMap": {"https": null, "default-auto-update": [true]},
        "ComputedName": "ant",
    }));
    assert_eq!(node.key_expiry, None);
    assert_eq!(node.machine, None);
    assert_eq!(node.disco_key, Some(disco));
    assert_eq!(node.allowed_ips(), node.addresses);
    assert_eq!(node.endpoints.len(), 2);
    assert_eq!(node.home_region(), Some(RegionId(901)));
    assert_eq!(node.online, Some(false));
    assert_eq!(node.base_name(), "ant");
    assert!(node.cap_map.has("https") && !node.cap_map.has("ssh"));
    assert_eq!(node.cap_map["default-auto-update"], [Value::Bool(true)]);
    let text = written(&node);
    assert_eq!(text["Online"], false);
    assert_eq!(text.get("AllowedIPs"), None);
    assert_eq!(text["Created"], "2026-01-02T03:04:05.678Z");
    assert_eq!(text["CapMap"]["https"], json!([]));

    let nothing = Node {
        allowed_ips: Some(Vec::new()),
        ..node
    };
    assert_eq!(written(&nothing)["AllowedIPs"], json!([]));
    assert!(nothing.allowed_ips().is_empty());
}

#[test]
fn maps_by_number_have_text_keys_and_null_deletes_by_name() {
    let text = json!({
        "OnlineChange": {"7": true, "8": false},
        "PacketFilters": {"*": null, "base": [], "x": [{"SrcIPs": ["*"]}]},
        "PeersRemoved": [1, 2],
    });
    let response: MapResponse = read(text.clone());
    assert!(!response.online_change[&NodeId(8)]);
    assert_eq!(response.packet_filters["*"], None);
    assert_eq!(response.packet_filters["base"], Some(Vec::new()));
    assert_eq!(written(&response), text);
    let block: MapResponse = read(json!({"PacketFilter": [], "Health": []}));
    assert_eq!(
        (&block.packet_filter, &block.health),
        (&Some(Vec::new()), &Some(Vec::new()))
    );
    assert_eq!(written(&block), json!({"PacketFilter": [], "Health": []}));
}

#[test]
fn a_patch_distinguishes_clearing_from_keeping() {
    let patch: PeerChange = read(json!({
        "NodeID": 5, "Endpoints": [], "CapMap": {}, "KeyExpiry": "0001-01-01T00:00:00Z",
        "KeySignature": "AQID", "Cap": 0,
    }));
    assert_eq!(patch.endpoints, Some(Vec::new()));
    assert_eq!(patch.cap_map, Some(CapMap::default()));
    assert_eq!(patch.key_expiry, Some(None));
    assert_eq!(patch.last_seen, None);
    assert_eq!(patch.key_signature.as_deref(), Some(&[1, 2, 3][..]));
    assert_eq!(patch.cap, None);
    assert_eq!(read::<PeerChange>(written(&patch)), patch);
}

#[test]
fn lists_of_nothing_and_values_of_the_wrong_kind() {
    let response: MapResponse = read(json!({"PeersChanged": [null, {"ID": 3}, null]}));
    assert_eq!(response.peers_changed.len(), 1);
    for wrong in [
        json!({"Seq": "1"}),
        json!({"CollectServices": "true"}),
        json!({"Node": {"Addresses": ["100.64.0.1"]}}),
        json!({"Node": {"Endpoints": ["nowhere"]}}),
        json!({"Node": {"KeySignature": "AQI"}}),
        json!({"ControlTime": "yesterday"}),
    ] {
        assert!(
            serde_json::from_value::<MapResponse>(wrong.clone()).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn tailnet_lock_numbers_nodes_as_text_and_reads_null_lists() {
    let finish = json!({
        "Version": 140, "NodeKey": node_key(1), "Signatures": {"7": "AQI=", "12": null},
    });
    let request: TkaInitFinishRequest = read(finish.clone());
    assert_eq!(request.signatures[&NodeId(7)], Encoded(vec![1, 2]));
    assert_eq!(written(&request), finish);
    let begun = TkaInitBeginResponse {
        need_signatures: vec![TkaSignInfo {
            node_id: NodeId(7),
            node_public: node_key(2),
            rotation_pubkey: vec![9],
        }],
    };
    let wire = json!({"NeedSignatures": [
        {"NodeID": 7, "NodePublic": node_key(2), "RotationPubkey": "CQ=="},
    ]});
    assert_eq!(written(&begun), wire);
    let send: TkaSyncSendRequest = read(json!({
        "NodeKey": node_key(1), "Head": "A", "MissingAUMs": null, "Interactive": true,
    }));
    assert!(send.missing_aums.is_empty() && send.interactive);
    assert_eq!(written(&TkaBootstrapResponse::default()), json!({}));
    let offer = TkaSyncOfferResponse {
        missing_aums: vec![Encoded(vec![1])],
        ..Default::default()
    };
    assert_eq!(
        written(&offer),
        json!({"Head": "", "Ancestors": [], "MissingAUMs": ["AQ=="]})
    );
}

#[test]
fn ssh_speaks_lower_camel_and_nanoseconds() {
    let text = json!({"rules": [{
        "principals": [{"any": true}, {"nodeIP": "100.64.0.9"}],
        "sshUsers": {"*": "=", "root": ""},
        "action": {"accept": true, "sessionDuration": 43_200_000_000_000_i64,
                   "allowAgentForwarding": true,
                   "onRecordingFailure": {"TerminateSessionWithMessage": "no recorder"}},
        "acceptEnv": ["LANG"],
    }]});
    let policy: SshPolicy = read(text.clone());
    let action = policy.rules[0].action.as_ref().unwrap();
    assert_eq!(action.session_duration.as_secs(), 12 * 3600);
    assert_eq!(written(&policy), text);
    assert!(read::<SshPolicy>(json!({"rules": null})).rules.is_empty());
}

#[test]
fn a_hand_written_relay_map() {
    let map = DerpMap::from_json(
        br#"{"regions": {"900": {"regionid": 900, "REGIONCODE": "home", "Nodes": [
            {"name": "900a", "regionId": 900, "hostname": "relay.example", "ipv4": "192.0.2.7",
             "IPV6": "none", "derpport": 8443, "stunport": -1, "insecureForTests": true}]},
            "901": null}, "omitdefaultregions": true}"#,
    )
    .unwrap();
    assert!(map.omit_default_regions);
    assert_eq!(map.regions.len(), 1);
    let region = &map.regions[&RegionId(900)];
    assert_eq!(region.region_code, "home");
    let node = &region.nodes[0];
    assert_eq!((node.derp_port(), node.stun_port()), (8443, None));
    assert_eq!(node.ipv4.literal(), Some("192.0.2.7".parse().unwrap()));
    assert_eq!(node.ipv6, HostAddress::Never);
    assert!(node.insecure_for_tests);
    let defaults = DerpNode::default();
    assert_eq!(
        (defaults.derp_port(), defaults.stun_port()),
        (443, Some(3478))
    );

    let crossed = DerpMap::from_json(br#"{"Regions": {"1": {"RegionID": 2}}}"#).unwrap_err();
    assert!(
        crossed.to_string().contains("region 2 under the key \"1\""),
        "{crossed}"
    );
    assert!(DerpMap::from_json(br#"{"Regions": {"1": "x"}}"#).is_err());
    assert!(DerpMap::from_json(b"{} trailing").is_err());
    assert_eq!(DerpMap::from_json(b"{}").unwrap(), DerpMap::default());
}

#[test]
fn relay_maps_merge_by_part() {
    let region = |id: u16| {
        (
            RegionId(id),
            DerpRegion {
                region_id: RegionId(id),
                ..Default::default()
            },
        )
    };
    let mut map = DerpMap {
        regions: [region(1)].into(),
        omit_default_regions: true,
        ..Default::default()
    };
    map.merge(read(
        json!({"Regions": null, "HomeParams": {"RegionScore": {"1": 0.5, "2": -1.0}}}),
    ));
    assert!(map.omit_default_regions && map.regions.len() == 1);
    assert_eq!(
        [1, 2, 3].map(|id| map.home_score(RegionId(id))),
        [0.5, 1.0, 1.0]
    );
    map.merge(read(
        json!({"Regions": {"2": {"RegionID": 2}}, "HomeParams": {}}),
    ));
    assert!(!map.omit_default_regions);
    assert_eq!(
        map.regions.keys().copied().collect::<Vec<_>>(),
        [RegionId(2)]
    );
    assert_eq!(map.home_score(RegionId(1)), 0.5);
    map.merge(read(json!({"HomeParams": {"RegionScore": {}}})));
    assert_eq!(map.home_score(RegionId(1)), 1.0);

    let mut other = DerpMap::default();
    other.merge(read(written(&DerpMapUpdate::from(map.clone()))));
    assert_eq!(other, map);
}

#[test]
fn credentials_do_not_print() {
    let auth = RegisterAuth {
        auth_key: "tskey-auth-secret".to_owned(),
    };
    let request = RegisterRequest {
        auth: Some(auth),
        ..Default::default()
    };
    assert!(!format!("{request:?}").contains("secret"));
    assert_eq!(
        written(&request)["Auth"],
        json!({"AuthKey": "tskey-auth-secret"})
    );
}

#[test]
fn endpoint_kinds_are_numbers() {
    let request: MapRequest = read(json!({"EndpointTypes": [0, 1, 2, 3, 4, 5, 99, -1]}));
    use EndpointType::*;
    assert_eq!(
        request.endpoint_types,
        [
            Unknown,
            Local,
            Stun,
            PortMapped,
            Stun4LocalPort,
            ExplicitConf,
            Unknown,
            Unknown
        ]
    );
    assert_eq!(written(&Stun4LocalPort), json!(4));
}
