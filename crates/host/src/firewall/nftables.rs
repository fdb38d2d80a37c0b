//! The little of nftables' netlink protocol that our table needs: batches of
//! messages, attributes, and a handful of expressions.
//!
//! Layouts and numbers are those of `linux/netfilter/nf_tables.h` and
//! `linux/netfilter/nfnetlink.h`. Numbers in attributes are big-endian, values
//! in registers as the packet or the kernel has them: addresses in network
//! order, marks and states in the machine's.

use std::io::{self, Read as _};

/// Longest name of an interface, with the zero behind it.
const NAME_LEN: usize = 16;
/// Space for the kernel's answers to one batch, in bytes.
const REPLIES: usize = 16 * 1024;
/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

const NETLINK_NETFILTER: i32 = 12;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// IPv4 and IPv6 in one table.
const FAMILY_INET: u8 = 1;

/// Kinds of messages.
pub(super) mod message {
    pub const NEW_TABLE: u16 = 0;
    pub const DELETE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GET_CHAIN: u16 = 4;
    pub const NEW_RULE: u16 = 6;
}

/// Where a chain hangs: number of the hook and priority within it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub number: u32,
    pub priority: i32,
    pub kind: &'static str,
}

/// A chain's or rule's decision.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    Drop = 0,
    Accept = 1,
}

/// The kernel removes the table when the socket that made it is closed, and lets no
/// other process change it (Linux 5.12).
pub(super) const TABLE_OWNED: u32 = 2;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

/// Appends attributes to a message.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    fn put(&mut self, kind: u16, value: &[u8]) {
        // Our values are names and numbers.
        let len = (4 + value.len()) as u16;
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value);
    }

    fn number(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.put(kind | NESTED, &[]);
        fill(&mut Attributes(self.0));
        let len = (self.0.len() - start) as u16;
        if let Some(field) = self.0.get_mut(start..start + 2) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
    }
}

/// The expressions of one rule. All work on the first register.
pub(super) struct Expressions<'a>(Attributes<'a>);

const REGISTER: u32 = 1;

/// A property of the packet that `meta` loads.
#[derive(Clone, Copy)]
enum Meta {
    Mark = 3,
    InName = 6,
    OutName = 7,
    Family = 15,
}

impl Expressions<'_> {
    fn add(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.0.nest(1, |element| {
            element.text(1, name);
            element.nest(2, fill);
        });
        self
    }

    fn load_meta(&mut self, key: Meta) -> &mut Self {
        self.add("meta", |it| {
            it.number(1, REGISTER);
            it.number(2, key as u32);
        })
    }

    fn compare(&mut self, equal: bool, value: &[u8]) -> &mut Self {
        self.add("cmp", |it| {
            it.number(1, REGISTER);
            it.number(2, (!equal).into());
            it.nest(3, |data| data.put(1, value));
        })
    }

    /// The register becomes `(it & mask) ^ xor`.
    fn mask(&mut self, mask: &[u8], xor: &[u8]) -> &mut Self {
        self.add("bitwise", |it| {
            it.number(1, REGISTER);
            it.number(2, REGISTER);
            it.number(3, mask.len() as u32);
            it.nest(4, |data| data.put(1, mask));
            it.nest(5, |data| data.put(1, xor));
        })
    }

    fn interface(&mut self, key: Meta, equal: bool, name: &str) -> &mut Self {
        self.load_meta(key).compare(equal, &padded(name))
    }

    /// Came in through `name`, or not.
    pub(super) fn input(&mut self, equal: bool, name: &str) -> &mut Self {
        self.interface(Meta::InName, equal, name)
    }

    /// Goes out through `name`.
    pub(super) fn output(&mut self, name: &str) -> &mut Self {
        self.interface(Meta::OutName, true, name)
    }

    /// IPv4 from an address in the prefix.
    pub(super) fn source_in(&mut self, net: ipnet::Ipv4Net) -> &mut Self {
        const NETWORK_HEADER: u32 = 1;
        const SOURCE: u32 = 12;
        self.load_meta(Meta::Family)
            .compare(true, &[libc::NFPROTO_IPV4 as u8])
            .add("payload", |it| {
                it.number(1, REGISTER);
                it.number(2, NETWORK_HEADER);
                it.number(3, SOURCE);
                it.number(4, 4);
            })
            .mask(&net.netmask().octets(), &[0; 4])
            .compare(true, &net.network().octets())
    }

    /// The route to the source goes out through `name`.
    pub(super) fn source_routed_to(&mut self, name: &str) -> &mut Self {
        const OUT_NAME: u32 = 2;
        const OF_SOURCE: u32 = 1;
        self.add("fib", |it| {
            it.number(1, REGISTER);
            it.number(2, OUT_NAME);
            it.number(3, OF_SOURCE);
        })
        .compare(true, &padded(name))
    }

    /// Sets our bits of the mark.
    pub(super) fn set_mark(&mut self, mark: u32, mask: u32) -> &mut Self {
        self.load_meta(Meta::Mark)
            .mask(&(!mask).to_ne_bytes(), &mark.to_ne_bytes())
            .add("meta", |it| {
                it.number(2, Meta::Mark as u32);
                it.number(3, REGISTER);
            })
    }

    /// Carries the mark.
    pub(super) fn marked(&mut self, mark: u32, mask: u32) -> &mut Self {
        self.load_meta(Meta::Mark)
            .mask(&mask.to_ne_bytes(), &[0; 4])
            .compare(true, &mark.to_ne_bytes())
    }

    /// Belongs to no connection that was let through before.
    pub(super) fn of_no_connection(&mut self) -> &mut Self {
        const STATE: u32 = 0;
        const ESTABLISHED_OR_RELATED: u32 = 0b110;
        self.add("ct", |it| {
            it.number(1, REGISTER);
            it.number(2, STATE);
        })
        .mask(&ESTABLISHED_OR_RELATED.to_ne_bytes(), &[0; 4])
        .compare(true, &[0; 4])
    }

    /// Takes the address of the interface it leaves by as source.
    pub(super) fn masquerade(&mut self) {
        self.add("masq", |_| {});
    }

    /// Ends the rule.
    pub(super) fn verdict(&mut self, verdict: Verdict) {
        self.add("immediate", |it| {
            it.number(1, 0);
            it.nest(2, |data| {
                data.nest(2, |it| it.put(1, &(verdict as i32).to_be_bytes()));
            });
        });
    }
}

/// The name of an interface, as registers hold it.
fn padded(name: &str) -> [u8; NAME_LEN] {
    let mut padded = [0; NAME_LEN];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

/// Messages that take effect together or not at all.
pub(super) struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

impl Batch {
    pub(super) fn new() -> Batch {
        let mut batch = Batch {
            bytes: Vec::new(),
            messages: 0,
        };
        batch.frame(BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, |_| {});
        batch
    }

    fn frame(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.messages.to_ne_bytes());
        self.bytes.extend([0; 4]);
        // `struct nfgenmsg`: family, version, resource.
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        fill(&mut Attributes(&mut self.bytes));
        let len = (self.bytes.len() - start) as u32;
        if let Some(field) = self.bytes.get_mut(start..start + 4) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
        self.messages += 1;
    }

    fn add(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let flags = REQUEST | ACKNOWLEDGE | flags;
        self.frame(SUBSYSTEM << 8 | kind, flags, FAMILY_INET, 0, fill);
    }

    pub(super) fn delete_table(&mut self, table: &str) {
        self.add(message::DELETE_TABLE, 0, |it| it.text(1, table));
    }

    pub(super) fn new_table(&mut self, table: &str, flags: u32) {
        self.add(message::NEW_TABLE, CREATE, |it| {
            it.text(1, table);
            it.number(2, flags);
        });
    }

    pub(super) fn new_chain(&mut self, table: &str, chain: &str, hook: Hook) {
        self.add(message::NEW_CHAIN, CREATE, |it| {
            it.text(1, table);
            it.text(3, chain);
            it.nest(4, |attributes| {
                attributes.number(1, hook.number);
                attributes.put(2, &hook.priority.to_be_bytes());
            });
            it.number(5, Verdict::Accept as u32);
            it.text(7, hook.kind);
        });
    }

    pub(super) fn new_rule(
        &mut self,
        table: &str,
        chain: &str,
        fill: impl FnOnce(&mut Expressions<'_>),
    ) {
        self.add(message::NEW_RULE, CREATE | APPEND, |it| {
            it.text(1, table);
            it.text(2, chain);
            it.nest(4, |list| fill(&mut Expressions(Attributes(list.0))));
        });
    }
}

/// The value of the attribute `kind`, if it is among these.
pub(super) fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let header: &[u8; 4] = attributes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([header[2], header[3]]) & !NESTED == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

/// A connection to the kernel's netfilter. A table that it owns lives as long.
#[derive(Debug)]
pub(super) struct Connection(socket2::Socket);

impl Connection {
    pub(super) fn open() -> io::Result<Connection> {
        let socket = socket2::Socket::new(
            socket2::Domain::from(libc::AF_NETLINK),
            socket2::Type::RAW,
            Some(socket2::Protocol::from(NETLINK_NETFILTER)),
        )?;
        socket.set_nonblocking(true)?;
        Ok(Connection(socket))
    }

    /// Lets a batch take effect.
    ///
    /// # Errors
    /// The kernel's error for the first message that it refused; nothing of the batch
    /// is applied then.
    pub(super) fn commit(&self, mut batch: Batch) -> io::Result<()> {
        batch.frame(BATCH_END, REQUEST, 0, SUBSYSTEM, |_| {});
        self.0.send(&batch.bytes)?;
        // The kernel has worked through it, and what it says is there.
        let mut replies = vec![0; REPLIES];
        loop {
            let len = match (&self.0).read(&mut replies) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut rest = replies.get(..len).unwrap_or_default();
            while let Some(header) = rest.first_chunk::<HEADER_LEN>() {
                let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                let body = rest.get(HEADER_LEN..).and_then(|body| body.first_chunk());
                if let (libc::NLMSG_ERROR, Some(code)) = (i32::from(kind), body)
                    && let code @ ..=-1 = i32::from_ne_bytes(*code)
                {
                    return self.refused(code);
                }
                let len = (len as usize).next_multiple_of(4).max(HEADER_LEN);
                rest = rest.get(len..).unwrap_or_default();
            }
        }
    }

    /// Asks for everything of a kind, of all families; `each` gets the family
    /// and the attributes of each.
    pub(super) fn dump(&self, kind: u16, mut each: impl FnMut(u8, &[u8])) -> io::Result<()> {
        let mut question = Batch {
            bytes: Vec::new(),
            messages: 0,
        };
        question.frame(SUBSYSTEM << 8 | kind, REQUEST | DUMP, 0, 0, |_| {});
        self.0.send(&question.bytes)?;
        let mut replies = vec![0; 4 * REPLIES];
        loop {
            let len = match (&self.0).read(&mut replies) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut rest = replies.get(..len).unwrap_or_default();
            while let Some(header) = rest.first_chunk::<HEADER_LEN>() {
                let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                match i32::from(u16::from_ne_bytes([header[4], header[5]])) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let code = rest.get(HEADER_LEN..).and_then(|body| body.first_chunk());
                        return self.refused(code.map_or(-libc::EIO, |c| i32::from_ne_bytes(*c)));
                    }
                    _ => {}
                }
                let body = rest.get(HEADER_LEN..len).unwrap_or_default();
                if let Some((header, attributes)) = body.split_first_chunk::<4>() {
                    each(header[0], attributes);
                }
                let len = len.next_multiple_of(4).max(HEADER_LEN);
                rest = rest.get(len..).unwrap_or_default();
            }
        }
    }

    /// Empties the socket, so that the next answer belongs to the next batch.
    fn refused(&self, code: i32) -> io::Result<()> {
        let mut rest = [0; 512];
        while (&self.0).read(&mut rest).is_ok() {}
        Err(io::Error::from_raw_os_error(-code))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn messages_and_attributes_have_their_lengths() {
        let mut batch = Batch::new();
        batch.new_table("warren", 0);
        batch.new_rule("warren", "forward", |rule| {
            rule.input(true, "warren0").verdict(Verdict::Accept);
        });
        let mut rest = batch.bytes.as_slice();
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let len = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            assert!(len >= HEADER_LEN + 4 && len.is_multiple_of(4));
            kinds.push(u16::from_ne_bytes(rest[4..6].try_into().unwrap()));
            let mut attributes = &rest[HEADER_LEN + 4..len];
            while !attributes.is_empty() {
                let len = u16::from_ne_bytes(attributes[..2].try_into().unwrap()) as usize;
                assert!(len >= 4);
                attributes = &attributes[len.next_multiple_of(4)..];
            }
            rest = &rest[len..];
        }
        assert_eq!(kinds, [BATCH_BEGIN, SUBSYSTEM << 8, SUBSYSTEM << 8 | 6]);
    }
}
