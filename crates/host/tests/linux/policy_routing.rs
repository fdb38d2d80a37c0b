//! Routes and rules are as wanted, ours alone, and gone afterwards.

use crate::support::{in_network_namespace, ip, routing, run, tun_device, with_tun};
use warren_host::router::{
    Router, RouterConfig, RouterError, RouterOptions, RouterWarning, RouterWatch,
};
use warren_host::tun::Tun;

fn config(routes: &[&str]) -> RouterConfig {
    RouterConfig {
        addresses: ["100.64.0.1", "fd7a:115c:a1e0::1"]
            .map(|it| it.parse().unwrap())
            .into(),
        routes: routes.iter().map(|it| it.parse().unwrap()).collect(),
        throw_routes: ["192.168.7.0/24".parse().unwrap()].into(),
        mtu: 1280,
    }
}

async fn open(tun: &Tun) -> Router {
    Router::open(tun.name(), RouterOptions::default())
        .await
        .unwrap()
}

#[test]
fn routes_and_rules_of_others_survive() {
    with_tun(|| {
        run(async {
            let tun = tun_device("wtest0");
            // Things of others, close to ours.
            ip("rule add pref 5199 fwmark 0x80000/0xff0000 table 77");
            ip("rule add pref 5260 from 192.0.2.0/24 table 77");
            ip("route add 192.0.2.0/24 dev lo table 77 proto 87");
            let before = routing();

            let mut router = open(&tun).await;
            assert_eq!(routing(), before);
            let first = config(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128", "10.1.2.3/16"]);
            let applied = router.apply(&first).await.unwrap();
            // 2 addresses, 4 routes, 8 rules.
            assert_eq!((applied.added, applied.removed), (14, 0));
            assert_eq!(applied.warnings, []);
            for family in ["-4", "-6"] {
                let rules = ip(&format!("{family} rule"));
                for line in [
                    "5210:\tfrom all fwmark 0x80000/0xff0000 lookup main",
                    "5230:\tfrom all fwmark 0x80000/0xff0000 lookup default",
                    "5250:\tfrom all fwmark 0x80000/0xff0000 unreachable",
                    "5270:\tfrom all lookup 52",
                ] {
                    assert!(rules.contains(line), "{line} is not in\n{rules}");
                }
            }
            let routes = ip("-4 route show table 52");
            for line in [
                "100.64.0.2 dev wtest0",
                "10.1.0.0/16 dev wtest0",
                "throw 192.168.7.0/24",
            ] {
                assert!(routes.contains(line), "{line} is not in\n{routes}");
            }
            assert!(ip("route get 10.1.2.3").contains("dev wtest0 table 52 src 100.64.0.1"));
            assert!(ip("route get fd7a:115c:a1e0::2").contains("src fd7a:115c:a1e0::1"));

            let again = router.apply(&first).await.unwrap();
            assert_eq!((again.added, again.removed), (0, 0));
            let second = config(&["100.64.0.3/32", "fd7a:115c:a1e0::2/128"]);
            let applied = router.apply(&second).await.unwrap();
            assert_eq!((applied.added, applied.removed), (1, 2));

            router.cleanup().await.unwrap();
            // The link is up now; without it nothing of ours remains.
            drop(tun);
            let tun = tun_device("wtest0");
            assert_eq!(routing(), before);
            drop(tun);
        });
    });
}

#[test]
fn deleted_rules_and_routes_are_noticed_and_come_back() {
    with_tun(|| {
        run(async {
            let tun = tun_device("wtest0");
            let mut router = open(&tun).await;
            let config = config(&["100.64.0.2/32"]);
            router.apply(&config).await.unwrap();
            let mut watch = RouterWatch::open(RouterOptions::default()).unwrap();
            let complete = routing();
            for (deletion, lost) in [
                ("rule del pref 5270", 1),
                ("-6 rule del pref 5270", 1),
                ("route del 100.64.0.2/32 table 52", 1),
                ("route flush table 52", 2),
            ] {
                ip(deletion);
                watch.deleted().await;
                assert_ne!(routing(), complete, "{deletion}");
                let added = router.apply(&config).await.unwrap().added;
                assert!(added >= lost, "{deletion}: {added}");
                assert_eq!(routing(), complete, "{deletion}");
            }
        });
    });
}

#[test]
fn leftovers_of_a_killed_daemon_are_removed_at_the_next_start() {
    with_tun(|| {
        run(async {
            let tun = tun_device("wtest0");
            let before = routing();
            let mut router = open(&tun).await;
            router.apply(&config(&["100.64.0.2/32"])).await.unwrap();
            // As after kill -9: descriptors closed, nothing cleaned up.
            drop((router, tun));
            let left = routing();
            assert!(left.contains("5270:") && left.contains("throw"), "{left}");

            let tun = tun_device("wtest0");
            let mut router = open(&tun).await;
            assert_eq!(routing(), before);
            router.apply(&config(&["100.64.0.2/32"])).await.unwrap();
        });
    });
}

#[test]
fn another_owner_of_the_table_is_named_and_left_alone() {
    with_tun(|| {
        run(async {
            let _other = Tun::create("other0").unwrap();
            ip("link set other0 up");
            let tun = tun_device("wtest0");
            let mut router = open(&tun).await;
            ip("route add 100.64.0.0/10 dev other0 table 52");
            let before = routing();
            let error = router.apply(&config(&["100.64.0.2/32"])).await.unwrap_err();
            assert!(matches!(error, RouterError::TableInUse { .. }));
            let text = error.to_string();
            assert!(
                text.contains("table 52") && text.contains("other0") && text.contains("tailscaled"),
                "{text}"
            );
            assert_eq!(routing(), before);

            // Another table is a way out.
            let options = RouterOptions {
                table: 1052,
                rule_base: 5300,
            };
            let mut router = Router::open("wtest0", options).await.unwrap();
            router.apply(&config(&["100.64.0.2/32"])).await.unwrap();
            assert!(ip("-4 route show table 1052").contains("100.64.0.2"));
            router.cleanup().await.unwrap();
            assert!(ip("-4 route show table 52").contains("other0"));
        });
    });
}

#[test]
fn without_ipv6_the_rest_works() {
    with_tun(|| {
        run(async {
            let tun = tun_device("wtest0");
            std::fs::write("/proc/sys/net/ipv6/conf/wtest0/disable_ipv6", "1").unwrap();
            let mut router = open(&tun).await;
            let config = config(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]);
            let applied = router.apply(&config).await.unwrap();
            assert_eq!(
                applied.warnings,
                [RouterWarning::NoIpv6 {
                    interface: "wtest0".to_owned()
                }]
            );
            assert!(ip("-4 route show table 52").contains("100.64.0.2"));
            router.cleanup().await.unwrap();
        });
    });
}

#[test]
fn settings_that_the_kernel_refuses_do_not_stop_the_rest() {
    with_tun(|| {
        run(async {
            let tun = tun_device("wtest0");
            let mut router = open(&tun).await;
            let config = RouterConfig {
                // A group address belongs to no interface.
                addresses: ["100.64.0.2", "ff02::1"]
                    .map(|it| it.parse().unwrap())
                    .into(),
                routes: ["100.64.0.3/32", "ff00::/8", "fd7a::/48"]
                    .map(|it| it.parse().unwrap())
                    .into(),
                mtu: 1280,
                ..RouterConfig::default()
            };
            let applied = router.apply(&config).await.unwrap();
            let failures: Vec<String> = applied.failures.iter().map(ToString::to_string).collect();
            assert_eq!(failures.len(), 1, "{failures:?}");
            assert!(failures[0].contains("ff02::1"), "{failures:?}");
            assert!(ip("-4 addr show dev wtest0").contains("100.64.0.2/32"));
            assert!(ip("-4 route show table 52").contains("100.64.0.3 dev wtest0"));
            for family in ["-4", "-6"] {
                assert!(ip(&format!("{family} rule")).contains("lookup 52"));
            }
            router.cleanup().await.unwrap();
        });
    });
}

#[test]
fn leftovers_are_removed_without_the_interface_of_the_killed_router() {
    with_tun(|| {
        run(async {
            let before = routing();
            Router::remove_leftovers(RouterOptions::default())
                .await
                .unwrap();
            let tun = tun_device("wtest0");
            let mut router = open(&tun).await;
            router.apply(&config(&["100.64.0.2/32"])).await.unwrap();
            drop((router, tun));
            assert_ne!(routing(), before);
            for _ in 0..2 {
                Router::remove_leftovers(RouterOptions::default())
                    .await
                    .unwrap();
                assert_eq!(routing(), before);
            }
        });
    });
}

#[test]
fn a_missing_interface_is_named() {
    in_network_namespace(|| {
        let error = run(Router::open("absent0", RouterOptions::default())).unwrap_err();
        assert!(error.to_string().contains("absent0"), "{error}");
    });
}
