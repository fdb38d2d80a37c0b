//! The policy rules.

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{Applied, PROTOCOL, RouterError, RouterOptions, fail};
use crate::netlink::{FAMILIES, Netlink, io_error, is_missing_family};
use crate::{BYPASS_MARK, MARK_MASK};

/// The kernel's main table.
const TABLE_MAIN: u32 = 254;

/// The kernel's default table, empty on most machines.
const TABLE_DEFAULT: u32 = 253;

/// One of our rules. `table` is `None` for the unreachable one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    family: AddressFamily,
    priority: u32,
    marked: bool,
    table: Option<u32>,
}

/// All our rules, for both families or IPv4 alone.
pub(super) fn wanted(options: RouterOptions, ipv6: bool) -> Vec<Rule> {
    let rows = [
        (10, true, Some(TABLE_MAIN)),
        (30, true, Some(TABLE_DEFAULT)),
        (50, true, None),
        (70, false, Some(options.table)),
    ];
    FAMILIES
        .into_iter()
        .filter(|family| ipv6 || *family == AddressFamily::Inet)
        .flat_map(|family| {
            rows.map(|(offset, marked, table)| Rule {
                family,
                priority: options.rule_base + offset,
                marked,
                table,
            })
        })
        .collect()
}

/// Adds what is missing of `wanted` and removes what else has our protocol id
/// and a priority in our range. A family that fails does not stop the other one.
pub(super) async fn apply(
    netlink: &Netlink,
    options: RouterOptions,
    wanted: &[Rule],
    applied: &mut Applied,
) {
    for family in FAMILIES {
        let wanted = wanted.iter().filter(|rule| rule.family == family);
        let wanted = wanted.copied().collect();
        if let Err(error) = apply_family(netlink, options, family, wanted, applied).await {
            applied.failures.push(error);
        }
    }
}

async fn apply_family(
    netlink: &Netlink,
    options: RouterOptions,
    family: AddressFamily,
    mut missing: Vec<Rule>,
    applied: &mut Applied,
) -> Result<(), RouterError> {
    let dumped = netlink.rules(family).await;
    for message in dumped.map_err(fail("list policy rules"))? {
        if !is_ours(&message, options) {
            continue;
        }
        let present = Rule::parse(&message);
        if let Some(at) = missing.iter().position(|rule| Some(*rule) == present) {
            missing.swap_remove(at);
            continue;
        }
        let deleted = netlink.handle.rule().del(message).execute().await;
        match deleted.map_err(io_error) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                return Err(fail("remove a policy rule")(error));
            }
            _ => applied.removed += 1,
        }
    }
    // In the order of the table: the mark must be exempt before all packets
    // are sent to the tunnel's routes. So the first failure ends the family.
    missing.sort_by_key(|rule| rule.priority);
    for rule in missing {
        let mut request = netlink.handle.rule().add();
        *request.message_mut() = rule.message();
        match request.execute().await.map_err(io_error) {
            Ok(()) => applied.added += 1,
            // The same rule of another owner does the same; it stays theirs.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) if family == AddressFamily::Inet6 && is_missing_family(&error) => {
                tracing::debug!(%error, "no policy rules for IPv6");
            }
            Err(error) => {
                let family = match family {
                    AddressFamily::Inet6 => "IPv6",
                    _ => "IPv4",
                };
                let action = format!("add the {family} policy rule {}", rule.priority);
                return Err(fail(action)(error));
            }
        }
    }
    Ok(())
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = self.family;
        message.header.action = match self.table {
            Some(_) => RuleAction::ToTable,
            None => RuleAction::Unreachable,
        };
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Priority(self.priority));
        attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
        if self.marked {
            attributes.push(RuleAttribute::FwMark(BYPASS_MARK));
            attributes.push(RuleAttribute::FwMask(MARK_MASK));
        }
        if let Some(table) = self.table {
            message.header.table = u8::try_from(table).unwrap_or(0);
            attributes.push(RuleAttribute::Table(table));
        }
        message
    }

    /// `None`: not a rule that we would make.
    fn parse(message: &RuleMessage) -> Option<Rule> {
        let mark = find(message, |attribute| match attribute {
            RuleAttribute::FwMark(mark) => Some(*mark),
            _ => None,
        });
        let mask = find(message, |attribute| match attribute {
            RuleAttribute::FwMask(mask) => Some(*mask),
            _ => None,
        });
        let marked = match (mark.unwrap_or(0), mask.unwrap_or(0)) {
            (BYPASS_MARK, MARK_MASK) => true,
            (0, 0) => false,
            _ => return None,
        };
        let table = match message.header.action {
            RuleAction::ToTable => Some(
                find(message, |attribute| match attribute {
                    RuleAttribute::Table(table) => Some(*table),
                    _ => None,
                })
                .unwrap_or(message.header.table.into()),
            ),
            RuleAction::Unreachable => None,
            _ => return None,
        };
        Some(Rule {
            family: message.header.family,
            priority: priority_of(message)?,
            marked,
            table,
        })
    }
}

pub(super) fn is_ours(message: &RuleMessage, options: RouterOptions) -> bool {
    let protocol = find(message, |attribute| match attribute {
        RuleAttribute::Protocol(protocol) => Some(u8::from(*protocol)),
        _ => None,
    });
    protocol == Some(PROTOCOL) && in_range(message, options)
}

fn in_range(message: &RuleMessage, options: RouterOptions) -> bool {
    priority_of(message).is_some_and(|priority| {
        (options.rule_base..options.rule_base.saturating_add(100)).contains(&priority)
    })
}

fn priority_of(message: &RuleMessage) -> Option<u32> {
    find(message, |attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
}

fn find<T>(message: &RuleMessage, pick: impl Fn(&RuleAttribute) -> Option<T>) -> Option<T> {
    message.attributes.iter().find_map(pick)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_were_written() {
        for options in [
            RouterOptions::default(),
            RouterOptions {
                table: 1052,
                rule_base: 1300,
            },
        ] {
            let rules = wanted(options, true);
            assert_eq!(rules.len(), 8);
            for rule in rules {
                let message = rule.message();
                assert_eq!(Rule::parse(&message), Some(rule));
                assert!(is_ours(&message, options));
            }
        }
    }

    #[test]
    fn another_owners_rule_is_not_ours() {
        let options = RouterOptions::default();
        for rule in wanted(options, false) {
            let mut message = rule.message();
            message
                .attributes
                .retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
            assert!(!is_ours(&message, options));
            message
                .attributes
                .push(RuleAttribute::Protocol(RouteProtocol::Boot));
            assert!(!is_ours(&message, options));
        }
    }
}
