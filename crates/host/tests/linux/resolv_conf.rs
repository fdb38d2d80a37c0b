//! resolv.conf is taken, defended and given back, whatever it was.

use std::path::Path;

use crate::support::{in_mount_namespace, mount, run, until};
use warren_host::resolver::{Mode, OsDnsConfig, ResolverOptions, SystemDns, recover};

const ORIGINAL: &str = "# by hand\nnameserver 192.0.2.1\nsearch corp.example\n";
const BACKUP: &str = "resolv.pre-warren-backup.conf";

fn options(folder: &Path) -> ResolverOptions {
    ResolverOptions {
        resolv_conf: folder.join("resolv.conf"),
        nsswitch: folder.join("nsswitch.conf"),
        allow_resolved: false,
        ..ResolverOptions::new("warren0")
    }
}

fn config() -> OsDnsConfig {
    OsDnsConfig {
        nameservers: vec!["100.100.100.100".parse().unwrap()],
        search_domains: vec!["tail.example".to_owned(), "corp.example".to_owned()],
        match_domains: vec![],
    }
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn is_taken(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| {
        text.contains("nameserver 100.100.100.100\n")
            && text.contains("search tail.example corp.example\n")
    })
}

/// Nothing but these files is in the folder.
fn assert_holds(folder: &Path, names: &[&str]) {
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, names);
}

#[test]
fn taken_and_given_back() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, ORIGINAL).unwrap();
        let mut dns = SystemDns::open(options(folder.path())).await;
        assert_eq!(dns.mode(), Mode::Direct);
        assert!(!dns.supports_split_dns());
        assert_eq!(text(&path), ORIGINAL);
        for _ in 0..2 {
            dns.apply(&config()).await.unwrap();
            assert!(is_taken(&path));
            let base = dns.base_config();
            assert_eq!(
                base.nameservers,
                ["192.0.2.1:53".parse::<std::net::SocketAddr>().unwrap()]
            );
            assert_eq!(base.search_domains, ["corp.example"]);
            dns.revert().await.unwrap();
            assert_eq!(text(&path), ORIGINAL);
        }
        // An empty configuration is the same as none; so is the end.
        dns.apply(&config()).await.unwrap();
        dns.apply(&OsDnsConfig::default()).await.unwrap();
        assert_eq!(text(&path), ORIGINAL);
        dns.apply(&config()).await.unwrap();
        drop(dns);
        assert_eq!(text(&path), ORIGINAL);
        assert_holds(folder.path(), &["resolv.conf"]);
    });
}

#[test]
fn a_link_stays_a_link_and_nothing_stays_nothing() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(folder.path().join("target"), ORIGINAL).unwrap();
        std::os::unix::fs::symlink("target", &path).unwrap();
        let mut dns = SystemDns::open(options(folder.path())).await;
        dns.apply(&config()).await.unwrap();
        assert!(is_taken(&path));
        assert_eq!(text(&folder.path().join("target")), ORIGINAL);
        dns.revert().await.unwrap();
        assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("target"));

        std::fs::remove_file(&path).unwrap();
        dns.apply(&config()).await.unwrap();
        assert!(is_taken(&path));
        dns.revert().await.unwrap();
        assert_holds(folder.path(), &["target"]);
    });
}

#[test]
fn after_a_crash_the_next_start_gives_it_back() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, ORIGINAL).unwrap();
        let mut dns = SystemDns::open(options(folder.path())).await;
        dns.apply(&config()).await.unwrap();
        std::mem::forget(dns);
        assert!(is_taken(&path));
        assert_holds(folder.path(), &["resolv.conf", BACKUP]);
        SystemDns::open(options(folder.path())).await;
        assert_eq!(text(&path), ORIGINAL);
        assert_holds(folder.path(), &["resolv.conf"]);
    });
}

#[test]
fn a_file_written_since_the_crash_is_kept() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 192.0.2.77\n").unwrap();
        std::fs::write(folder.path().join(BACKUP), ORIGINAL).unwrap();
        SystemDns::open(options(folder.path())).await;
        assert_eq!(text(&path), "nameserver 192.0.2.77\n");
        assert_holds(folder.path(), &["resolv.conf"]);
    });
}

#[test]
fn another_programs_file_becomes_the_original() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, ORIGINAL).unwrap();
        let mut dns = SystemDns::open(options(folder.path())).await;
        dns.apply(&config()).await.unwrap();

        // In place, as simple scripts do, and by renaming, as good ones do.
        std::fs::write(&path, "nameserver 192.0.2.2\noptions ndots:5\n").unwrap();
        until("ours again after a write", || is_taken(&path)).await;
        assert!(text(&path).ends_with("options ndots:5\n"));
        dns.base_changed().await;
        let fresh = folder.path().join("fresh");
        std::fs::write(&fresh, "nameserver 192.0.2.3\n").unwrap();
        std::fs::rename(&fresh, &path).unwrap();
        until("ours again after a rename", || is_taken(&path)).await;
        std::fs::remove_file(&path).unwrap();
        until("ours again after a removal", || is_taken(&path)).await;

        let server = "192.0.2.3:53".parse::<std::net::SocketAddr>().unwrap();
        assert_eq!(dns.base_config().nameservers, [server]);
        dns.revert().await.unwrap();
        assert_eq!(text(&path), "nameserver 192.0.2.3\n");
    });
}

#[test]
fn an_endless_fight_is_given_up_and_said() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, ORIGINAL).unwrap();
        let mut dns = SystemDns::open(options(folder.path())).await;
        dns.apply(&config()).await.unwrap();
        until("given up", || {
            std::fs::write(&path, "nameserver 192.0.2.66\n").unwrap();
            dns.is_overwritten()
        })
        .await;
        // Names resolve as the other program wants; ours comes back later.
        until("ours after the fight", || is_taken(&path)).await;
        assert!(!dns.is_overwritten());
    });
}

#[test]
fn a_file_mounted_by_itself_is_written_in_place() {
    in_mount_namespace(|| {
        run(async {
            let etc = tempfile::tempdir().unwrap();
            let other = tempfile::tempdir().unwrap();
            let state = tempfile::tempdir().unwrap();
            let path = etc.path().join("resolv.conf");
            let source = other.path().join("resolv.conf");
            std::fs::write(&path, "nameserver 192.0.2.99\n").unwrap();
            std::fs::write(&source, ORIGINAL).unwrap();
            let (from, to) = (source.to_str().unwrap(), path.to_str().unwrap());
            mount(from, to, "none", libc::MS_BIND, "").unwrap();
            let options = ResolverOptions {
                state_dir: Some(state.path().to_owned()),
                ..options(etc.path())
            };

            let mut dns = SystemDns::open(options.clone()).await;
            dns.apply(&config()).await.unwrap();
            assert!(is_taken(&path) && is_taken(&source));
            assert_holds(etc.path(), &["resolv.conf"]);
            assert_holds(state.path(), &[BACKUP]);
            std::fs::write(&source, "nameserver 192.0.2.2\n").unwrap();
            until("ours again", || is_taken(&path)).await;
            std::mem::forget(dns);

            SystemDns::open(options).await;
            assert_eq!(text(&source), "nameserver 192.0.2.2\n");
            assert_holds(state.path(), &[]);
        });
    });
}

/// Mounts a read-only folder with a resolv.conf, made by `make`, over `etc`.
fn read_only(etc: &Path, make: impl FnOnce(&Path)) {
    let at = etc.to_str().unwrap();
    mount("none", at, "tmpfs", 0, "").unwrap();
    make(&etc.join("resolv.conf"));
    let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
    mount("none", at, "tmpfs", flags, "").unwrap();
}

#[test]
fn read_only_etc_with_a_link_has_its_target_written() {
    in_mount_namespace(|| {
        run(async {
            let etc = tempfile::tempdir().unwrap();
            let other = tempfile::tempdir().unwrap();
            let state = tempfile::tempdir().unwrap();
            let target = other.path().join("resolv.dnsmasq");
            std::fs::write(&target, ORIGINAL).unwrap();
            read_only(etc.path(), |path| {
                std::os::unix::fs::symlink(&target, path).unwrap();
            });
            let path = etc.path().join("resolv.conf");
            let options = ResolverOptions {
                state_dir: Some(state.path().to_owned()),
                ..options(etc.path())
            };

            let mut dns = SystemDns::open(options.clone()).await;
            dns.apply(&config()).await.unwrap();
            assert!(is_taken(&path) && is_taken(&target));
            assert_holds(state.path(), &[BACKUP]);
            let server = "192.0.2.1:53".parse::<std::net::SocketAddr>().unwrap();
            assert_eq!(dns.base_config().nameservers, [server]);
            std::fs::write(&target, "nameserver 192.0.2.2\n").unwrap();
            until("ours again", || is_taken(&path)).await;
            std::mem::forget(dns);

            // After a crash, and at an orderly end.
            let mut dns = SystemDns::open(options.clone()).await;
            assert_eq!(text(&target), "nameserver 192.0.2.2\n");
            assert_holds(state.path(), &[]);
            dns.apply(&config()).await.unwrap();
            dns.revert().await.unwrap();
            assert_eq!(text(&target), "nameserver 192.0.2.2\n");
            assert_holds(other.path(), &["resolv.dnsmasq"]);

            // A target that is not there yet is made, and goes again.
            std::fs::remove_file(&target).unwrap();
            dns.apply(&config()).await.unwrap();
            assert!(is_taken(&target));
            dns.revert().await.unwrap();
            assert_holds(other.path(), &[]);
        });
    });
}

#[test]
fn file_that_cannot_be_written_is_reported_and_left_alone() {
    in_mount_namespace(|| {
        run(async {
            let etc = tempfile::tempdir().unwrap();
            let state = tempfile::tempdir().unwrap();
            read_only(etc.path(), |path| std::fs::write(path, ORIGINAL).unwrap());
            let options = ResolverOptions {
                state_dir: Some(state.path().to_owned()),
                ..options(etc.path())
            };
            // Nothing to restore is no failure.
            recover(&options).unwrap();
            let mut dns = SystemDns::open(options.clone()).await;
            let error = dns.apply(&config()).await.unwrap_err().to_string();
            assert!(error.contains("Read-only"), "{error}");
            dns.revert().await.unwrap();
            recover(&options).unwrap();
            assert_eq!(text(&etc.path().join("resolv.conf")), ORIGINAL);
            assert_holds(state.path(), &[]);
        });
    });
}

#[test]
fn file_of_a_killed_run_that_cannot_be_restored_counts_as_taken() {
    in_mount_namespace(|| {
        run(async {
            let etc = tempfile::tempdir().unwrap();
            let state = tempfile::tempdir().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let ours = {
                let path = folder.path().join("resolv.conf");
                std::fs::write(&path, ORIGINAL).unwrap();
                let mut dns = SystemDns::open(options(folder.path())).await;
                dns.apply(&config()).await.unwrap();
                text(&path)
            };
            read_only(etc.path(), |path| {
                std::fs::write(path, &ours).unwrap();
                std::fs::write(path.with_file_name(BACKUP), ORIGINAL).unwrap();
            });
            let options = ResolverOptions {
                state_dir: Some(state.path().to_owned()),
                ..options(etc.path())
            };
            let error = recover(&options).unwrap_err().to_string();
            assert!(error.contains("resolv.conf"), "{error}");
            let dns = SystemDns::open(options).await;
            let server = "192.0.2.1:53".parse::<std::net::SocketAddr>().unwrap();
            assert_eq!(dns.base_config().nameservers, [server]);
        });
    });
}
