//! The smallest web server and client that show a page travelling by name.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use crate::network::{Host, LabError};
use crate::program::ours;

/// Serves one sentence on port 80 of `host` until the lab ends.
///
/// # Errors
/// When the port is taken.
pub fn serve_page(host: &Host) -> Result<(), LabError> {
    let listener = host.inside(|| {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))
            .or_else(|_| TcpListener::bind(("0.0.0.0", 80)))
    })?;
    let page = format!("hello from {}\n", host.name());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away is its own problem.
            drop(answer(stream, &page));
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream, page: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    )
}

/// Opens `http://NAME/` on `host`, in a process of its own so that the host's
/// `resolv.conf` is the one that counts; returns the page.
///
/// # Errors
/// When the name does not resolve or no server answers.
pub fn open_page(host: &Host, name: &str) -> Result<String, LabError> {
    host.run(&ours("warren-lab")?.display().to_string(), &["fetch", name])
}

/// The body of the process that [`open_page`] starts.
///
/// # Errors
/// When the name does not resolve or no server answers.
pub fn fetch(name: &str) -> Result<String, LabError> {
    let failed =
        |what: &str, error: std::io::Error| LabError::new(format!("{what} {name}: {error}"));
    let mut addresses = (name, 80)
        .to_socket_addrs()
        .map_err(|error| failed("cannot resolve", error))?;
    let address = addresses.next();
    let address = address.ok_or_else(|| LabError::new(format!("{name} has no address")))?;
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5));
    let mut stream = stream.map_err(|error| failed("cannot connect to", error))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .map_err(|error| failed("no answer from", error))?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| LabError::new(format!("{name} answered something else than HTTP")))
}
