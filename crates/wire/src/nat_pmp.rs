//! NAT-PMP (RFC 6886): a client asks its router for the external IPv4 address
//! and for a mapping of a UDP port.
//!
//! ```text
//! request   version 0 · opcode u8 · [reserved u16 · internal port u16 ·
//!           suggested external port u16 · lifetime u32]
//! response  version 0 · 128 + opcode · result u16 · epoch u32 ·
//!           [external address 4 bytes | internal port u16 · external port u16 · lifetime u32]
//! ```
//!
//! Numbers are big endian. The request for the external address (opcode 0) ends
//! behind the opcode; that for a UDP mapping is opcode 1. The epoch is the number
//! of seconds since the router lost its mappings; lifetimes are in seconds.
//!
//! Nothing is authenticated: callers accept responses only from the address that
//! they asked.

use std::net::Ipv4Addr;

/// The UDP port of routers.
pub const PORT: u16 = 5351;

const VERSION: u8 = 0;
const EXTERNAL_ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;
const RESPONSE: u8 = 0x80;

/// A request of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Asks for the external address of the router.
    ExternalAddress,
    /// Asks for a mapping to a UDP port of the sender, or renews it.
    MapUdp {
        /// The port of the sender.
        internal_port: u16,
        /// The wanted port at the router; 0 for any.
        suggested_port: u16,
        /// Seconds; 0 deletes the mapping.
        lifetime: u32,
    },
}

impl Request {
    /// The bytes of the request.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        match self {
            Self::ExternalAddress => vec![VERSION, EXTERNAL_ADDRESS],
            Self::MapUdp {
                internal_port,
                suggested_port,
                lifetime,
            } => {
                let mut out = vec![VERSION, MAP_UDP, 0, 0];
                out.extend_from_slice(&internal_port.to_be_bytes());
                out.extend_from_slice(&suggested_port.to_be_bytes());
                out.extend_from_slice(&lifetime.to_be_bytes());
                out
            }
        }
    }

    /// Reads a request; `None` for other versions, opcodes and lengths.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        match *datagram {
            [VERSION, EXTERNAL_ADDRESS] => Some(Self::ExternalAddress),
            [VERSION, MAP_UDP, _, _, i0, i1, e0, e1, l0, l1, l2, l3] => Some(Self::MapUdp {
                internal_port: u16::from_be_bytes([i0, i1]),
                suggested_port: u16::from_be_bytes([e0, e1]),
                lifetime: u32::from_be_bytes([l0, l1, l2, l3]),
            }),
            _ => None,
        }
    }
}

/// The reason for which a router refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 1: the router does not speak this version.
    UnsupportedVersion,
    /// 2: the router could map ports, but not for this client.
    NotAuthorized,
    /// 3: the router itself has no external address.
    NetworkFailure,
    /// 4: the router has too many mappings.
    OutOfResources,
    /// 5: the router does not know the opcode.
    UnsupportedOpcode,
    /// A code that RFC 6886 does not define. It is not 0 to 5.
    Other(u16),
}

impl Refusal {
    /// `None` for 0, which is success.
    fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::UnsupportedVersion,
            2 => Self::NotAuthorized,
            3 => Self::NetworkFailure,
            4 => Self::OutOfResources,
            5 => Self::UnsupportedOpcode,
            other => Self::Other(other),
        })
    }

    fn code(self) -> u16 {
        match self {
            Self::UnsupportedVersion => 1,
            Self::NotAuthorized => 2,
            Self::NetworkFailure => 3,
            Self::OutOfResources => 4,
            Self::UnsupportedOpcode => 5,
            Self::Other(code) => code,
        }
    }
}

/// The response of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// The external address of the router.
    ExternalAddress {
        /// Seconds since the router lost its mappings.
        epoch: u32,
        /// The address.
        address: Ipv4Addr,
    },
    /// A mapping was made, renewed or deleted.
    MappedUdp {
        /// Seconds since the router lost its mappings.
        epoch: u32,
        /// The port of the client.
        internal_port: u16,
        /// The port at the router; 0 after a deletion.
        external_port: u16,
        /// Seconds; 0 after a deletion.
        lifetime: u32,
    },
    /// A request was refused.
    Refused {
        /// The opcode of the request.
        opcode: u8,
        /// The reason.
        refusal: Refusal,
    },
}

impl Response {
    /// The bytes of the response.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        match self {
            Self::ExternalAddress { epoch, address } => {
                let mut out = vec![VERSION, RESPONSE | EXTERNAL_ADDRESS, 0, 0];
                out.extend_from_slice(&epoch.to_be_bytes());
                out.extend_from_slice(&address.octets());
                out
            }
            Self::MappedUdp {
                epoch,
                internal_port,
                external_port,
                lifetime,
            } => {
                let mut out = vec![VERSION, RESPONSE | MAP_UDP, 0, 0];
                out.extend_from_slice(&epoch.to_be_bytes());
                out.extend_from_slice(&internal_port.to_be_bytes());
                out.extend_from_slice(&external_port.to_be_bytes());
                out.extend_from_slice(&lifetime.to_be_bytes());
                out
            }
            Self::Refused { opcode, refusal } => {
                let [high, low] = refusal.code().to_be_bytes();
                vec![VERSION, RESPONSE | opcode, high, low, 0, 0, 0, 0]
            }
        }
    }

    /// Reads a response; `None` for anything else. Bytes behind it are ignored,
    /// as some routers pad. Behind the result code of a refusal nothing is
    /// required, as routers differ there.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let (&[VERSION, kind, r0, r1], rest) = datagram.split_first_chunk::<4>()? else {
            return None;
        };
        let opcode = kind.checked_sub(RESPONSE)?;
        if let Some(refusal) = Refusal::from_code(u16::from_be_bytes([r0, r1])) {
            return Some(Self::Refused { opcode, refusal });
        }
        let (epoch, rest) = rest.split_first_chunk::<4>()?;
        let epoch = u32::from_be_bytes(*epoch);
        match opcode {
            EXTERNAL_ADDRESS => Some(Self::ExternalAddress {
                epoch,
                address: Ipv4Addr::from(*rest.first_chunk::<4>()?),
            }),
            MAP_UDP => {
                let [i0, i1, e0, e1, l0, l1, l2, l3] = *rest.first_chunk::<8>()?;
                Some(Self::MappedUdp {
                    epoch,
                    internal_port: u16::from_be_bytes([i0, i1]),
                    external_port: u16::from_be_bytes([e0, e1]),
                    lifetime: u32::from_be_bytes([l0, l1, l2, l3]),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::ExternalAddress),
            any::<(u16, u16, u32)>().prop_map(|(internal_port, suggested_port, lifetime)| {
                Request::MapUdp {
                    internal_port,
                    suggested_port,
                    lifetime,
                }
            }),
        ]
    }

    fn response() -> impl Strategy<Value = Response> {
        prop_oneof![
            any::<(u32, Ipv4Addr)>()
                .prop_map(|(epoch, address)| Response::ExternalAddress { epoch, address }),
            any::<(u32, u16, u16, u32)>().prop_map(
                |(epoch, internal_port, external_port, lifetime)| Response::MappedUdp {
                    epoch,
                    internal_port,
                    external_port,
                    lifetime,
                }
            ),
            (0u8..128, 1u16..).prop_map(|(opcode, code)| Response::Refused {
                opcode,
                refusal: Refusal::from_code(code).unwrap(),
            }),
        ]
    }

    #[test]
    fn messages_have_the_bytes_of_the_rfc() {
        assert_eq!(Request::ExternalAddress.emit(), [0, 0]);
        let map = Request::MapUdp {
            internal_port: 41641,
            suggested_port: 0,
            lifetime: 7200,
        };
        assert_eq!(map.emit(), [0, 1, 0, 0, 0xa2, 0xa9, 0, 0, 0, 0, 0x1c, 0x20]);
        let address = [0, 128, 0, 0, 0, 0, 0, 9, 198, 51, 100, 1];
        assert_eq!(
            Response::parse(&address),
            Some(Response::ExternalAddress {
                epoch: 9,
                address: [198, 51, 100, 1].into()
            })
        );
        let mapped = [0, 129, 0, 0, 0, 0, 0, 9, 0xa2, 0xa9, 4, 1, 0, 0, 0x1c, 0x20];
        assert_eq!(
            Response::parse(&mapped),
            Some(Response::MappedUdp {
                epoch: 9,
                internal_port: 41641,
                external_port: 1025,
                lifetime: 7200
            })
        );
        assert_eq!(
            Response::parse(&[0, 129, 0, 2]),
            Some(Response::Refused {
                opcode: 1,
                refusal: Refusal::NotAuthorized
            })
        );
    }

    proptest! {
        #[test]
        fn emitted_messages_parse_to_themselves(request in request(), response in response(), tail: Vec<u8>) {
            prop_assert_eq!(Request::parse(&request.emit()), Some(request));
            let mut bytes = response.emit();
            prop_assert_eq!(Request::parse(&bytes), None);
            bytes.extend(tail);
            prop_assert_eq!(Response::parse(&bytes), Some(response));
        }

        #[test]
        fn cut_responses_are_not_read_as_success(response in response(), cut in 1usize..) {
            let bytes = response.emit();
            let cut = &bytes[..bytes.len() - 1 - cut % bytes.len()];
            let is_refusal = matches!(Response::parse(cut), Some(Response::Refused { .. }));
            prop_assert!(Response::parse(cut).is_none() || is_refusal);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            if let Some(request) = Request::parse(&bytes) {
                prop_assert_eq!(Request::parse(&request.emit()), Some(request));
            }
            if let Some(response) = Response::parse(&bytes) {
                prop_assert_eq!(Response::parse(&response.emit()), Some(response));
            }
        }
    }
}
