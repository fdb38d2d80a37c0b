//! Dropping before the receive buffer: a socket filter that lets in a part of
//! what comes for some WireGuard sessions.
//!
//! The filter is a program for the kernel's packet filter machine (classic BPF,
//! which needs no privilege). It sees the UDP header and the payload; of joined
//! datagrams it sees the first and decides for all. Messages that are not transport
//! data, or are for another session, get in.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use super::{UdpSocket, set_option};

/// Most sessions of one filter. The kernel takes programs of 4,096 instructions.
pub const MAX_LIMITED_SESSIONS: usize = 256;

/// Bytes of the UDP header, with which the program's view begins.
const HEADER: u32 = 8;
/// Type and reserved bytes of transport data, as the machine loads them.
const TRANSPORT: u32 = 0x0400_0000;
/// All of the datagram.
const LET_IN: u32 = u32::MAX;

/// The words of the kernel's answer to `SO_MEMINFO` (`SK_MEMINFO_*`): how many,
/// and which is the drop counter.
const MEMINFO_WORDS: usize = 9;
const MEMINFO_DROPS: usize = 8;

impl UdpSocket {
    /// Of these sessions, by receiver index, lets in only a part, from 0 to 1,
    /// drawn by lot for each message. Replaces all earlier limits; without any,
    /// all messages get in again. Sessions beyond [`MAX_LIMITED_SESSIONS`] are not
    /// limited.
    ///
    /// # Errors
    /// When the system does not do that. All then gets in, or what was in force
    /// stays so.
    pub fn limit_sessions(&self, limits: impl Iterator<Item = (u32, f64)>) -> io::Result<()> {
        let mut program = program(limits.take(MAX_LIMITED_SESSIONS));
        if program.is_empty() {
            return match set_option(&self.socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0) {
                // There is none.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                result => result,
            };
        }
        let program = libc::sock_fprog {
            // At most 5 for each session and 6 more.
            len: program.len() as libc::c_ushort,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: the option value is a `sock_fprog` on this stack, its size is
        // given, and it points to as many instructions as it says, which live
        // until after the call. The kernel copies them.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                std::ptr::from_ref(&program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Messages that were dropped so far because the receive buffer was full, or
    /// by [`limit_sessions`](Self::limit_sessions). Wraps.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn dropped(&self) -> io::Result<u32> {
        let mut words = [0u32; MEMINFO_WORDS];
        let mut len = size_of_val(&words) as libc::socklen_t;
        // SAFETY: the value is an array of plain words on this stack, and its
        // size is given; the kernel writes no more than that.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                words.as_mut_ptr().cast(),
                &mut len,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(words[MEMINFO_DROPS])
    }
}

/// The filter; empty if nothing is limited.
///
/// ```text
///     shorter than type and index?            let in
///     not transport data?                     let in
///     index = A?  random number < part of A?  let in, else drop
///     index = B?  ...
///     let in
/// ```
fn program(limits: impl Iterator<Item = (u32, f64)>) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const JUMP: u32 = libc::BPF_JMP | libc::BPF_K;
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16, // eight bits are used
        jt,
        jf,
        k,
    };
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
    let mut program = Vec::new();
    for (index, part) in limits {
        if program.is_empty() {
            program.extend([
                op(LOAD | libc::BPF_LEN, 0, 0, 0),
                op(JUMP | libc::BPF_JGE, HEADER + 8, 0, 2),
                op(LOAD | libc::BPF_ABS, HEADER, 0, 0),
                op(JUMP | libc::BPF_JEQ, TRANSPORT, 1, 0),
                op(RETURN, LET_IN, 0, 0),
                op(LOAD | libc::BPF_ABS, HEADER + 4, 0, 0),
            ]);
        }
        // The machine loads in network order what is little-endian on the wire.
        program.extend([
            op(JUMP | libc::BPF_JEQ, index.swap_bytes(), 0, 4),
            op(LOAD | libc::BPF_ABS, random, 0, 0),
            op(JUMP | libc::BPF_JGE, threshold(part), 0, 1),
            op(RETURN, 0, 0, 0),
            op(RETURN, LET_IN, 0, 0),
        ]);
    }
    if !program.is_empty() {
        program.push(op(RETURN, LET_IN, 0, 0));
    }
    program
}

/// Random numbers of 32 bits below this are `part` of all.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
fn threshold(part: f64) -> u32 {
    (part * f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::super::{RecvBatch, UdpOptions};
    use super::*;

    fn transport(index: u32, number: u32) -> Vec<u8> {
        let mut datagram = vec![4, 0, 0, 0];
        datagram.extend(index.to_le_bytes());
        datagram.extend(number.to_le_bytes());
        datagram
    }

    /// Sends, and gives what came.
    fn exchange(here: &UdpSocket, there: &UdpSocket, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut came = Vec::new();
        let mut batch = RecvBatch::new(64);
        for datagram in datagrams {
            there.send_to(here.local_addr(), datagram).unwrap();
            // Over the loopback a datagram is there, or never will be.
            while here.recv_batch(&mut batch).is_ok() {
                for mut buffer in batch.buffers() {
                    came.extend(buffer.datagrams().map(|datagram| datagram.to_vec()));
                }
            }
        }
        came
    }

    fn sockets(ip: std::net::IpAddr) -> Option<(UdpSocket, UdpSocket)> {
        let options = UdpOptions {
            mark: None,
            ..UdpOptions::default()
        };
        let bind = || UdpSocket::bind(SocketAddr::new(ip, 0), &options).ok();
        Some((bind()?, bind()?))
    }

    fn limited_sessions(ip: std::net::IpAddr) {
        let Some((here, there)) = sockets(ip) else {
            // Machines without IPv6.
            assert!(ip.is_ipv6());
            return;
        };
        let (none, all, half, other) = (0x0102_0304, 7, 0x8000_0001, 9);
        let datagrams = [
            transport(none, 1),
            transport(all, 2),
            transport(other, 3),
            // No transport data, whatever stands where the index would.
            {
                let mut handshake = transport(none, 4);
                handshake[0] = 1;
                handshake
            },
            vec![4, 0, 0, 0, 4, 3, 2],
            vec![0x20],
        ];
        let limits = [(none, 0.0), (all, 1.0), (half, 0.5)];
        here.limit_sessions(limits.into_iter()).unwrap();
        let before = here.dropped().unwrap();
        assert_eq!(exchange(&here, &there, &datagrams), datagrams[1..]);
        assert_eq!(here.dropped().unwrap() - before, 1);
        // By lot: that 2,000 throws are so far from the middle does not happen.
        let many: Vec<_> = (0..2000).map(|number| transport(half, number)).collect();
        let came = exchange(&here, &there, &many).len();
        assert!((800..1200).contains(&came), "{came} of 2000");

        here.limit_sessions(std::iter::empty()).unwrap();
        here.limit_sessions(std::iter::empty()).unwrap();
        assert_eq!(exchange(&here, &there, &datagrams), datagrams);
    }

    #[test]
    fn a_part_of_limited_sessions_gets_in_and_everything_else() {
        limited_sessions(Ipv4Addr::LOCALHOST.into());
        limited_sessions(Ipv6Addr::LOCALHOST.into());
    }

    #[test]
    fn the_kernel_takes_the_longest_program() {
        let (here, there) = sockets(Ipv4Addr::LOCALHOST.into()).unwrap();
        let limits = (0..1000u32).map(|index| (index, 0.0));
        here.limit_sessions(limits).unwrap();
        let last = MAX_LIMITED_SESSIONS as u32;
        let datagrams = [transport(last - 1, 1), transport(last, 2)];
        assert_eq!(exchange(&here, &there, &datagrams), datagrams[1..]);
    }
}
