//! The channel against a published vector, against another Noise library, and with
//! damaged frames.
#![allow(clippy::unwrap_used)]

use data_encoding::HEXLOWER;
use proptest::prelude::*;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use warren_channel::{
    Accepted, Channel, ChannelError, ClientHandshake, FrameError, HandshakeError, Opener, accept,
    response_frame_len,
};
use warren_keys::{MachinePublic, MachineSecret};
use warren_testkit::FixedEntropy;

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

fn server() -> MachineSecret {
    MachineSecret::from_bytes(&[0x11; 32])
}

fn client() -> MachineSecret {
    MachineSecret::from_bytes(&[0x22; 32])
}

fn pair() -> (Channel, Accepted) {
    let (waiting, initiation) =
        ClientHandshake::start(145, &client(), &server().public(), &mut FixedEntropy(0x33))
            .unwrap();
    let accepted = accept(&initiation, &server(), &mut FixedEntropy(0x44)).unwrap();
    (waiting.finish(&accepted.response).unwrap(), accepted)
}

fn sealed(channel: &mut Channel, plaintext: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    channel.sealer.seal(plaintext, &mut out).unwrap();
    out
}

/// Opens all records in `wire`.
fn opened(opener: &mut Opener, mut wire: Vec<u8>) -> Result<Vec<u8>, ChannelError> {
    let mut out = Vec::new();
    let mut rest = wire.as_mut_slice();
    while let Some(record) = opener.open(rest)? {
        out.extend_from_slice(&rest[record.plaintext]);
        rest = &mut rest[record.consumed..];
    }
    assert!(rest.is_empty(), "bytes of an incomplete record are left");
    Ok(out)
}

#[test]
fn every_byte_of_the_vector() {
    assert_eq!(
        server().public().as_bytes()[..],
        hex("7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13")
    );
    assert_eq!(
        client().public().as_bytes()[..],
        hex("0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20")
    );
    let (waiting, initiation) =
        ClientHandshake::start(145, &client(), &server().public(), &mut FixedEntropy(0x33))
            .unwrap();
    assert_eq!(
        HEXLOWER.encode(&initiation),
        "00910100607b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14b903b541e3810f9a9\
         f788541f1d8f2ec482568e39b9f0f56a9f4a7a56450f31a9dc60bcb4e75254359f9460a6bc3abd2a01b3a2deff6\
         62afe0b9497becb6a113"
    );
    let mut accepted = accept(&initiation, &server(), &mut FixedEntropy(0x44)).unwrap();
    assert_eq!(
        HEXLOWER.encode(&accepted.response),
        "020030ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6bb724869747b9edde7346eb\
         d00e8c83be"
    );
    assert_eq!(
        (accepted.machine, accepted.version),
        (client().public(), 145)
    );
    let mut channel = waiting.finish(&accepted.response).unwrap();
    assert_eq!(
        channel.handshake_hash[..],
        hex("06c59e2c9cf61b04919795c127f29cd25363c67a77723b7299ba3118c8f04886")
    );
    assert_eq!(accepted.channel.handshake_hash, channel.handshake_hash);

    let first = sealed(&mut channel, b"hello");
    let second = sealed(&mut channel, b"hello");
    assert_eq!(
        HEXLOWER.encode(&first),
        "04001514a9f922c148802d01a653ad5bc589a481c5458acc"
    );
    assert_eq!(
        HEXLOWER.encode(&second),
        "0400152383fda3ae9709b771c7e70e177f2d20b9151658f9"
    );
    let both = [first, second].concat();
    assert_eq!(
        opened(&mut accepted.channel.opener, both).unwrap(),
        b"hellohello"
    );

    let back = sealed(&mut accepted.channel, b"welcome");
    assert_eq!(opened(&mut channel.opener, back).unwrap(), b"welcome");
}

fn snow_builder(prologue: &[u8]) -> snow::Builder<'_> {
    let name = "Noise_IK_25519_ChaChaPoly_BLAKE2s".parse().unwrap();
    let resolver = Box::new(Oracle(DefaultResolver));
    snow::Builder::with_resolver(name, resolver)
        .prologue(prologue)
        .unwrap()
}

/// The other library's own primitives, with our idea of randomness.
struct Oracle(DefaultResolver);

/// Gives the other library the same byte over and over.
struct Fixed(u8);

impl snow::types::Random for Fixed {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        out.fill(self.0);
        Ok(())
    }
}

impl CryptoResolver for Oracle {
    fn resolve_rng(&self) -> Option<Box<dyn snow::types::Random>> {
        Some(Box::new(Fixed(0x66)))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn snow::types::Dh>> {
        self.0.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn snow::types::Hash>> {
        self.0.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn snow::types::Cipher>> {
        self.0.resolve_cipher(choice)
    }
}

#[test]
fn another_library_as_the_client() {
    let secret = client();
    let mut oracle = snow_builder(b"Tailscale Control Protocol v119")
        .local_private_key(secret.expose())
        .unwrap()
        .remote_public_key(server().public().as_bytes())
        .unwrap()
        .build_initiator()
        .unwrap();
    let mut initiation = vec![0, 119, 1, 0, 96];
    initiation.resize(101, 0);
    assert_eq!(oracle.write_message(&[], &mut initiation[5..]).unwrap(), 96);

    let mut accepted = accept(&initiation, &server(), &mut FixedEntropy(9)).unwrap();
    assert_eq!(accepted.machine, client().public());
    let mut nothing = [0; 16];
    assert_eq!(
        oracle
            .read_message(&accepted.response[3..], &mut nothing)
            .unwrap(),
        0
    );
    assert_eq!(oracle.get_handshake_hash(), accepted.channel.handshake_hash);

    // With counter 0 both byte orders agree; from 1 on they must not.
    let mut oracle = oracle.into_transport_mode().unwrap();
    let mut plaintext = [0; 32];
    let first = sealed(&mut accepted.channel, b"same");
    assert_eq!(oracle.read_message(&first[3..], &mut plaintext).unwrap(), 4);
    assert_eq!(&plaintext[..4], b"same");
    let second = sealed(&mut accepted.channel, b"same");
    assert!(oracle.read_message(&second[3..], &mut plaintext).is_err());
}

#[test]
fn another_library_as_the_server() {
    let secret = server();
    let mut oracle = snow_builder(b"Tailscale Control Protocol v119")
        .local_private_key(secret.expose())
        .unwrap()
        .build_responder()
        .unwrap();
    let (waiting, initiation) =
        ClientHandshake::start(119, &client(), &server().public(), &mut FixedEntropy(5)).unwrap();
    oracle.read_message(&initiation[5..], &mut [0; 16]).unwrap();
    assert_eq!(
        oracle.get_remote_static().unwrap(),
        client().public().as_bytes()
    );
    let mut response = vec![2, 0, 48];
    response.resize(51, 0);
    oracle.write_message(&[], &mut response[3..]).unwrap();
    let channel = waiting.finish(&response).unwrap();
    assert_eq!(channel.handshake_hash, oracle.get_handshake_hash());
}

#[test]
fn wrong_server_key_is_reported() {
    let other = MachineSecret::from_bytes(&[0x55; 32]);
    let (_, initiation) =
        ClientHandshake::start(119, &client(), &other.public(), &mut FixedEntropy(1)).unwrap();
    let refused = accept(&initiation, &server(), &mut FixedEntropy(2)).unwrap_err();
    assert_eq!(refused, HandshakeError::Authentication);
    // The version is part of the transcript.
    let (_, mut initiation) =
        ClientHandshake::start(119, &client(), &server().public(), &mut FixedEntropy(1)).unwrap();
    initiation[1] = 120;
    let refused = accept(&initiation, &server(), &mut FixedEntropy(2)).unwrap_err();
    assert_eq!(refused, HandshakeError::Authentication);
}

#[test]
fn degenerate_keys_are_told() {
    let zero = MachinePublic::from_bytes([0; 32]);
    let refused = ClientHandshake::start(119, &client(), &zero, &mut FixedEntropy(1)).unwrap_err();
    assert_eq!(refused, HandshakeError::DegenerateKey);
    let (waiting, mut initiation) =
        ClientHandshake::start(119, &client(), &server().public(), &mut FixedEntropy(1)).unwrap();
    let mut response = accept(&initiation, &server(), &mut FixedEntropy(2))
        .unwrap()
        .response;
    initiation[5..37].fill(0);
    let refused = accept(&initiation, &server(), &mut FixedEntropy(2)).unwrap_err();
    assert_eq!(refused, HandshakeError::DegenerateKey);
    response[3..35].fill(0);
    assert_eq!(
        waiting.finish(&response).unwrap_err(),
        HandshakeError::DegenerateKey
    );
}

#[test]
fn refusal_is_shown_without_control_characters() {
    let start = || {
        ClientHandshake::start(119, &client(), &server().public(), &mut FixedEntropy(1))
            .unwrap()
            .0
    };
    let text = "no \u{1b}[31mroom";
    let mut frame = vec![3, 0, u8::try_from(text.len()).unwrap()];
    frame.extend_from_slice(text.as_bytes());
    assert_eq!(
        response_frame_len(frame.first_chunk().unwrap()),
        Ok(frame.len())
    );
    let refused = start().finish(&frame).unwrap_err();
    assert_eq!(refused, HandshakeError::Refused("no [31mroom".to_owned()));
    let record = response_frame_len(&[4, 0, 48]).unwrap_err();
    assert_eq!(record, HandshakeError::Frame(FrameError::Kind(4)));
    let cut = start().finish(&[2, 0, 48, 0, 0]).unwrap_err();
    assert_eq!(
        cut,
        HandshakeError::Frame(FrameError::Size {
            expected: 51,
            actual: 5
        })
    );
}

#[test]
fn long_plaintext_becomes_full_records() {
    let (mut client, mut accepted) = pair();
    let plaintext: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let wire = sealed(&mut client, &plaintext);
    assert_eq!(wire.len(), 10_000 + 3 * 19);
    assert_eq!(wire[..3], [4, 0x0f, 0xfd]);
    assert_eq!(
        opened(&mut accepted.channel.opener, wire).unwrap(),
        plaintext
    );
}

#[test]
fn replayed_reordered_damaged_and_oversized_records_are_told() {
    let records = |count: usize| {
        let (mut client, accepted) = pair();
        let records: Vec<_> = (0..count).map(|_| sealed(&mut client, b"data")).collect();
        (records, accepted.channel.opener)
    };
    let (sent, mut opener) = records(1);
    let twice = [sent[0].clone(), sent[0].clone()].concat();
    assert_eq!(
        opened(&mut opener, twice),
        Err(ChannelError::Authentication)
    );
    let (sent, mut opener) = records(2);
    let swapped = [sent[1].clone(), sent[0].clone()].concat();
    assert_eq!(
        opened(&mut opener, swapped),
        Err(ChannelError::Authentication)
    );
    let (mut sent, mut opener) = records(1);
    sent[0][5] ^= 1;
    assert_eq!(
        opened(&mut opener, sent.remove(0)),
        Err(ChannelError::Authentication)
    );
    let (_, mut opener) = records(0);
    let oversized = FrameError::Length {
        kind: 4,
        length: 4094,
    };
    assert_eq!(
        opener.open(&mut [4, 0x0f, 0xfe]),
        Err(ChannelError::Frame(oversized))
    );
    assert_eq!(
        opener.open(&mut [3, 0, 1, b'x']),
        Err(ChannelError::Frame(FrameError::Kind(3)))
    );
    let (mut sent, mut opener) = records(1);
    let last = sent[0].len() - 1;
    assert_eq!(opener.open(&mut sent[0][..last]), Ok(None));
    assert!(opener.open(&mut sent[0]).unwrap().is_some());
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_waited_for(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_, mut accepted) = pair();
        let record = accepted.channel.opener.open(&mut bytes.clone());
        prop_assert!(!matches!(record, Ok(Some(_))));
        prop_assert!(accept(&bytes, &server(), &mut FixedEntropy(2)).is_err());
        let (waiting, _) =
            ClientHandshake::start(1, &client(), &server().public(), &mut FixedEntropy(1)).unwrap();
        prop_assert!(waiting.finish(&bytes).is_err());
    }

    #[test]
    fn sealed_bytes_are_opened(plaintext in proptest::collection::vec(any::<u8>(), 0..9000)) {
        let (mut client, mut accepted) = pair();
        let wire = sealed(&mut client, &plaintext);
        prop_assert_eq!(opened(&mut accepted.channel.opener, wire).unwrap(), plaintext);
    }
}
