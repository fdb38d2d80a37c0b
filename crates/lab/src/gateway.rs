//! Routers that map ports: `miniupnpd` (Debian: `miniupnpd-nftables`) in front of a host.
//!
//! It refuses the addresses of the lab's internet as external ones, because they are reserved
//! for documentation. So such a router gets another address, `11.1.1.N`, which the rest of
//! the lab reaches through the internet's own router.

use std::path::PathBuf;

use crate::network::{Host, Lab, LabError};
use crate::program::{Program, foreign};
use crate::wait::{PATIENCE, until};

/// The chain in which it puts its mappings.
const MAPPINGS: &str = "list chain inet miniupnpd prerouting_miniupnpd";

/// A protocol by which ports are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingProtocol {
    /// UPnP IGD.
    Upnp,
    /// NAT-PMP.
    NatPmp,
    /// PCP.
    Pcp,
}

/// The daemon in the router of a host.
pub struct Gateway {
    host: Host,
    _daemon: Program,
}

impl Gateway {
    /// The daemon, if it is installed.
    pub fn program() -> Option<PathBuf> {
        foreign("miniupnpd")
    }

    /// Lets the router of `host` map ports by these protocols.
    ///
    /// # Errors
    /// When the daemon is missing or does not start, or the kernel refuses a setting.
    pub fn start(lab: &Lab, host: &Host, protocols: &[MappingProtocol]) -> Result<Self, LabError> {
        let binary = Self::program().ok_or_else(|| LabError::new("miniupnpd is not installed"))?;
        lab.readdress_router(host)?;
        let speaks = |protocol| protocols.contains(&protocol);
        let (pcp, nat_pmp) = (
            speaks(MappingProtocol::Pcp),
            speaks(MappingProtocol::NatPmp),
        );
        host.router_nft(
            "table inet miniupnpd {
               chain forward { type filter hook forward priority -1
                 jump miniupnpd }
               chain miniupnpd { }
               chain prerouting { type nat hook prerouting priority dstnat
                 jump prerouting_miniupnpd }
               chain prerouting_miniupnpd { }
               chain postrouting { type nat hook postrouting priority srcnat
                 jump postrouting_miniupnpd }
               chain postrouting_miniupnpd { }
             }
             insert rule ip lab forward ct status dnat accept",
        )?;
        // It has one switch for both; their messages differ in the first byte.
        for (version, is_spoken) in [(0, nat_pmp), (2, pcp)] {
            if !is_spoken {
                host.router_nft(&format!(
                    "table inet version{version} {{ chain input {{ type filter hook input priority -2
                       iifname \"lan\" udp dport 5351 @th,64,8 {version} drop }} }}"
                ))?;
            }
        }
        let folder = host.folder();
        let file = |name: &str| folder.join(name).display().to_string();
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        let configuration = format!(
            "ext_ifname=wan\nlistening_ip=lan\nhttp_port=5000\nsecure_mode=yes\n\
             enable_natpmp={}\nenable_upnp={}\nlease_file={}\n\
             uuid=73a9cd68-a00b-4d4e-8412-75bb989f7c6d\n\
             upnp_table_name=miniupnpd\nupnp_nat_table_name=miniupnpd\n\
             allow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            yes(pcp || nat_pmp),
            yes(speaks(MappingProtocol::Upnp)),
            file("leases"),
        );
        std::fs::write(file("leases"), "")?;
        std::fs::write(file("miniupnpd.conf"), configuration)?;
        let arguments = ["-d", "-4", "-f"].map(str::to_owned).into_iter();
        let arguments = arguments.chain([
            file("miniupnpd.conf"),
            "-P".to_owned(),
            file("miniupnpd.pid"),
        ]);
        let arguments: Vec<String> = arguments.collect();
        let mut daemon = Program::start_in_router(host, "miniupnpd", &binary, &arguments)?;
        until("miniupnpd to listen", PATIENCE, || {
            daemon.check_alive()?;
            match daemon.log().contains("Listening for") || daemon.log().contains("HTTP listening")
            {
                true => Ok(()),
                false => Err(LabError::new(daemon.log())),
            }
        })?;
        Ok(Self {
            host: host.clone(),
            _daemon: daemon,
        })
    }

    /// The mappings that the router holds, as its rules.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn mappings(&self) -> Result<Vec<String>, LabError> {
        let rules = self.host.router_run("nft", MAPPINGS)?;
        let rules = rules.lines().filter(|line| line.contains("dnat"));
        Ok(rules.map(|line| line.trim().to_owned()).collect())
    }
}
