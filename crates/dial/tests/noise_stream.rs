//! The control channel as a byte stream, both ends in one process.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use warren_channel::{Accepted, ClientHandshake, HandshakeError, accept, early};
use warren_dial::SystemEntropy;
use warren_dial::noise_stream::{ConnectError, NoiseStream};
use warren_keys::MachineSecret;

fn server_key() -> MachineSecret {
    MachineSecret::from_bytes(&[0x11; 32])
}

fn start() -> (ClientHandshake, Accepted) {
    let machine = MachineSecret::from_bytes(&[0x22; 32]);
    let (waiting, initiation) =
        ClientHandshake::start(119, &machine, &server_key().public(), &mut SystemEntropy).unwrap();
    (
        waiting,
        accept(&initiation, &server_key(), &mut SystemEntropy).unwrap(),
    )
}

/// A client that waits for the response, and the bytes of the server: its response and
/// one record.
fn with_one_record() -> (ClientHandshake, Vec<u8>) {
    let (waiting, mut accepted) = start();
    let mut wire = accepted.response.to_vec();
    let sealer = &mut accepted.channel.sealer;
    sealer.seal(b"a whole record", &mut wire).unwrap();
    (waiting, wire)
}

/// Both ends; the pipe between them holds `pipe` bytes.
async fn pair(pipe: usize) -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
    let (waiting, accepted) = start();
    let (ours, theirs) = duplex(pipe);
    let mut server = NoiseStream::new(theirs, accepted.channel, &[], &accepted.response);
    let (client, flushed) = tokio::join!(
        NoiseStream::connect(ours, Vec::new(), waiting),
        server.flush()
    );
    flushed.unwrap();
    (client.unwrap(), server)
}

#[tokio::test]
async fn bytes_arrive_whole_in_both_directions_through_a_narrow_pipe() {
    let (client, server) = pair(700).await;
    let data: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    let exchange = async |stream: NoiseStream<DuplexStream>| {
        let (mut read, mut write) = tokio::io::split(stream);
        let sent = async {
            for chunk in data.chunks(9_999) {
                write.write_all(chunk).await.unwrap();
            }
            write.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (count, ()) = tokio::join!(read.read_to_end(&mut received), sent);
        assert_eq!(count.unwrap(), data.len());
        assert_eq!(received, data);
    };
    tokio::join!(exchange(client), exchange(server));
}

#[tokio::test]
async fn the_end_comes_after_all_bytes() {
    let (mut client, mut server) = pair(64 * 1024).await;
    for _ in 0..100 {
        client.write_all(b"0123456789").await.unwrap();
    }
    client.flush().await.unwrap();
    drop(client);
    let mut received = Vec::new();
    server.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"0123456789".repeat(100));
}

#[tokio::test]
async fn small_slices_share_a_record() {
    let (waiting, accepted) = start();
    let (ours, mut theirs) = duplex(64 * 1024);
    theirs.write_all(&accepted.response).await.unwrap();
    let mut client = NoiseStream::connect(ours, Vec::new(), waiting)
        .await
        .unwrap();
    let slices = [&b"head"[..], b"body"].map(std::io::IoSlice::new);
    assert_eq!(client.write_vectored(&slices).await.unwrap(), 8);
    client.flush().await.unwrap();
    drop(client);
    let mut wire = Vec::new();
    theirs.read_to_end(&mut wire).await.unwrap();
    assert_eq!(wire.len(), 3 + 8 + 16);
}

#[tokio::test]
async fn the_early_payload_is_taken_out_and_nothing_else_is() {
    for (first, rest) in [
        (
            early::encode(br#"{"nodeKeyChallenge":null}"#).unwrap(),
            &b"PRI * HTTP/2.0"[..],
        ),
        (Vec::new(), b"\0\0\x12\x04\0\0\0\0\0settings"),
        (early::encode(b"{}").unwrap(), b""),
    ] {
        let (mut client, mut server) = pair(4096).await;
        // Byte by byte, so that every cut inside the header is seen.
        for byte in first.iter().chain(rest) {
            server.write_all(&[*byte]).await.unwrap();
        }
        server.shutdown().await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, rest);
    }
}

#[tokio::test]
async fn bytes_behind_the_upgrade_are_not_lost() {
    for cut in [0, 2, 30, 51, 60, 89] {
        let (waiting, mut accepted) = start();
        let mut wire = accepted.response.to_vec();
        accepted
            .channel
            .sealer
            .seal(b"\0\0\0\0\0\0\0\0\0early bird", &mut wire)
            .unwrap();
        let (ours, mut theirs) = duplex(4096);
        theirs.write_all(&wire[cut..]).await.unwrap();
        drop(theirs);
        let mut client = NoiseStream::connect(ours, wire[..cut].to_vec(), waiting)
            .await
            .unwrap();
        let mut text = Vec::new();
        client.read_to_end(&mut text).await.unwrap();
        assert_eq!(&text[9..], b"early bird", "{cut}");
    }
}

#[tokio::test]
async fn cut_inside_a_record_is_not_an_end() {
    let (waiting, wire) = with_one_record();
    let (ours, mut theirs) = duplex(4096);
    theirs.write_all(&wire[..wire.len() - 1]).await.unwrap();
    drop(theirs);
    let mut client = NoiseStream::connect(ours, Vec::new(), waiting)
        .await
        .unwrap();
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(error.to_string().contains("middle of a record"), "{error}");
}

#[tokio::test]
async fn damaged_record_breaks_the_stream() {
    let (waiting, mut wire) = with_one_record();
    *wire.last_mut().unwrap() ^= 1;
    let (ours, mut theirs) = duplex(4096);
    theirs.write_all(&wire).await.unwrap();
    let mut client = NoiseStream::connect(ours, Vec::new(), waiting)
        .await
        .unwrap();
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[tokio::test]
async fn refusal_is_reported_in_the_servers_words() {
    let (waiting, _) = start();
    let (ours, theirs) = duplex(64);
    drop(theirs);
    let refused = NoiseStream::connect(ours, b"\x03\0\x04full".to_vec(), waiting).await;
    let Err(ConnectError::Handshake(HandshakeError::Refused(text))) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(text, "full");
    let (waiting, _) = start();
    let (ours, theirs) = duplex(64);
    drop(theirs);
    let cut = NoiseStream::connect(ours, vec![2, 0], waiting).await;
    assert!(matches!(cut, Err(ConnectError::Io(_))));
}
