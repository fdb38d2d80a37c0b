//! Cables, addresses and default routes that come and go.

use crate::support::{ip, run, with_tun};
use warren_host::link::{Change, LinkMonitor, MajorChange, snapshot};
use warren_host::tun::Tun;

#[test]
fn the_way_out_is_followed() {
    with_tun(|| {
        run(async {
            // TUN devices stand for network cards: they need no module.
            let _card = Tun::create("card0").unwrap();
            let _tunnel = Tun::create("warren0").unwrap();
            let mut monitor = LinkMonitor::start(&["warren0"]).await;
            assert!(monitor.state().interface("warren0").is_none());
            assert!(!monitor.state().any_usable());

            ip("addr add 192.0.2.5/24 dev card0");
            ip("link set card0 up");
            ip("route add default via 192.0.2.1 dev card0");
            // The kernel may spread this over several reports.
            let mut change = monitor.next().await;
            while change.change != Change::Major(MajorChange::DefaultRoute) {
                change = monitor.next().await;
            }
            let card = change.state.interface("card0").unwrap();
            assert!(card.is_usable());
            assert!(card.addrs.contains(&"192.0.2.5/24".parse().unwrap()));
            assert_eq!(change.state.default_route_v4.as_deref(), Some("card0"));
            assert_eq!(change.state, snapshot(&["warren0"]).await.unwrap());

            ip("addr add 192.0.2.6/24 dev card0");
            let mut change = monitor.next().await;
            while change.change != Change::Major(MajorChange::Addresses) {
                change = monitor.next().await;
            }

            ip("link set card0 down");
            while monitor.state().any_usable() {
                assert_eq!(monitor.next().await.change, Change::Minor);
            }
        });
    });
}
