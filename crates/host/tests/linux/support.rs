//! Namespaces for tests, and the tools that look at them from outside.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use warren_host::router::{Router, RouterConfig, RouterOptions};
use warren_host::tun::{Tun, TunError};

/// Runs `test` on a thread with a network namespace of its own, loopback up.
pub fn in_network_namespace(test: impl FnOnce() + Send + 'static) {
    in_namespace(libc::CLONE_NEWNET, || {
        if ip_or_none("link set lo up").is_none() {
            eprintln!("SKIPPED: the `ip` program is not installed");
            return;
        }
        test();
    });
}

/// Runs `test` as [`in_network_namespace`] does, where a TUN device can be made.
pub fn with_tun(test: impl FnOnce() + Send + 'static) {
    in_network_namespace(|| match Tun::create("probe%d") {
        Err(error @ (TunError::NoDevice | TunError::DeviceClosed)) => {
            eprintln!("SKIPPED: {error}");
        }
        _ => test(),
    });
}

/// Runs `test` on a thread with a mount namespace of its own.
pub fn in_mount_namespace(test: impl FnOnce() + Send + 'static) {
    in_namespace(libc::CLONE_NEWNS, || {
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        mount("none", "/", "none", flags, "").unwrap();
        test();
    });
}

fn in_namespace(kind: libc::c_int, test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: unshare changes this thread alone, which ends with the test.
        if unsafe { libc::unshare(kind) } != 0 {
            let error = io::Error::last_os_error();
            eprintln!("SKIPPED: not permitted to make a namespace ({error}); run as root");
            return;
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn mount(from: &str, to: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let text = |text: &str| std::ffi::CString::new(text).unwrap();
    let (from, to, kind, data) = (text(from), text(to), text(kind), text(data));
    // SAFETY: all pointers are C strings that live until after the call.
    let result = unsafe {
        libc::mount(
            from.as_ptr(),
            to.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Runs `ip` with these words and gives what it printed.
pub fn ip(words: &str) -> String {
    let output = ip_or_none(words).unwrap();
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn ip_or_none(words: &str) -> Option<std::process::Output> {
    Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .ok()
}

/// All rules and routes, as an administrator sees them.
pub fn routing() -> String {
    [
        "-4 rule",
        "-6 rule",
        "-4 route show table all",
        "-6 route show table all",
        "-br addr",
    ]
    .map(ip)
    .concat()
}

/// Drives a future on this thread, which stays in its namespace.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Waits until `condition` holds. The limit only keeps a broken test from
/// hanging.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Gives `interface` 10.77.0.1 and a route to its network.
pub fn route_tunnel(interface: &str) {
    run(async {
        let mut router = Router::open(interface, RouterOptions::default())
            .await
            .unwrap();
        let config = RouterConfig {
            addresses: ["10.77.0.1".parse().unwrap()].into(),
            routes: ["10.77.0.0/24".parse().unwrap()].into(),
            mtu: 1280,
            ..RouterConfig::default()
        };
        router.apply(&config).await.unwrap();
    });
}

/// A device of this name. A process that another test is just starting may still hold one that
/// was dropped, until it executes its program.
pub fn tun_device(name: &str) -> Tun {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match Tun::create(name) {
            Err(TunError::NameTaken { .. }) if Instant::now() < end => std::thread::yield_now(),
            created => return created.unwrap(),
        }
    }
}
