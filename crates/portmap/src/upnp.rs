//! The calls of one mapping by UPnP, one after the other: the description of the router, its
//! external address, the mapping.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use warren_keys::Entropy;
use warren_wire::upnp::{
    Call, Location, MappingCall, Response, Service, external_address, reserved_port, services,
};

use crate::mapper::{LIFETIME, Router};

/// Ports that are tried before giving up.
const TRIES: u32 = 4;

/// The conversation with a router.
#[derive(Debug, Default, Clone)]
pub(crate) struct Upnp {
    /// Where the router describes itself.
    location: Option<Location>,
    services: Vec<Service>,
    step: Step,
}

#[derive(Debug, Default, Clone, Copy)]
enum Step {
    #[default]
    Idle,
    /// The description is being read.
    Describing,
    /// The first service is asked for its address.
    Asking,
    /// It is asked for a mapping.
    Mapping {
        address: Ipv4Addr,
        port: u16,
        lease: u32,
        tries: u32,
    },
}

/// A connection to make: `request` is sent, and the response is the answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) to: SocketAddr,
    pub(crate) request: Vec<u8>,
}

/// The effect of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Next(Exchange),
    Granted {
        external: SocketAddr,
        lifetime: Duration,
        service: Service,
    },
    Failed,
}

/// The mapping that is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) router: Router,
    pub(crate) internal_port: u16,
    /// The external port that would be best.
    pub(crate) external_port: u16,
}

impl Wanted {
    fn exchange(&self, service: &Service, call: Call) -> Exchange {
        let to = SocketAddr::new(self.router.router, service.control.port);
        let request = call.request(service, to);
        Exchange { to, request }
    }

    fn map(&self, service: &Service, step: Step) -> Option<Exchange> {
        let Step::Mapping { port, lease, .. } = step else {
            return None;
        };
        let std::net::IpAddr::V4(internal) = self.router.local else {
            return None;
        };
        let mapping = MappingCall {
            external_port: port,
            internal,
            internal_port: self.internal_port,
            lease,
        };
        Some(self.exchange(service, Call::Map(mapping)))
    }
}

/// The deletion of a mapping.
pub(crate) fn unmap(router: Router, service: &Service, external_port: u16) -> Exchange {
    let to = SocketAddr::new(router.router, service.control.port);
    let request = Call::Unmap(external_port).request(service, to);
    Exchange { to, request }
}

impl Upnp {
    /// The router answered a search.
    pub(crate) fn found(&mut self, location: Location) {
        self.location.get_or_insert(location);
    }

    pub(crate) fn is_found(&self) -> bool {
        self.location.is_some()
    }

    /// The mapping that a service is being asked for.
    pub(crate) fn asked(&self) -> Option<(&Service, SocketAddr)> {
        let Step::Mapping { address, port, .. } = self.step else {
            return None;
        };
        Some((self.services.first()?, SocketAddr::from((address, port))))
    }

    /// Begins to ask for a mapping.
    pub(crate) fn begin(&mut self, router: Router) -> Option<Exchange> {
        let location = self.location.as_ref()?;
        self.step = Step::Describing;
        let to = SocketAddr::new(router.router, location.port);
        let request = location.get(to);
        Some(Exchange { to, request })
    }

    /// Takes the answer to the last exchange; `None`: there is none.
    pub(crate) fn answered(
        &mut self,
        wanted: Wanted,
        answer: Option<&Response>,
        entropy: &mut dyn Entropy,
    ) -> Progress {
        let step = std::mem::take(&mut self.step);
        let Some(answer) = answer else {
            // The router may have another place after a restart.
            self.location = None;
            return Progress::Failed;
        };
        match step {
            Step::Idle => Progress::Failed,
            Step::Describing => {
                self.services = match &self.location {
                    Some(location) if answer.status == 200 => services(&answer.body, location),
                    _ => Vec::new(),
                };
                self.ask(wanted)
            }
            Step::Asking => {
                let address = external_address(answer).ok().flatten();
                match (address, self.services.first()) {
                    (Some(address), Some(service)) => {
                        self.step = Step::Mapping {
                            address,
                            port: wanted.external_port,
                            lease: LIFETIME,
                            tries: 1,
                        };
                        let next = wanted.map(service, self.step);
                        next.map_or(Progress::Failed, Progress::Next)
                    }
                    // This line is down; the next service may be another one.
                    _ => self.ask_next(wanted),
                }
            }
            Step::Mapping {
                address,
                port,
                lease,
                tries,
            } => {
                let Some(service) = self.services.first() else {
                    return Progress::Failed;
                };
                match reserved_port(answer) {
                    Ok(reserved) => {
                        let external = SocketAddr::from((address, reserved.unwrap_or(port)));
                        let lifetime = Duration::from_secs(LIFETIME.into());
                        let service = service.clone();
                        return Progress::Granted {
                            external,
                            lifetime,
                            service,
                        };
                    }
                    Err(fault) if fault.wants_permanent_lease() && lease != 0 => {
                        let lease = 0;
                        self.step = Step::Mapping {
                            address,
                            port,
                            lease,
                            tries,
                        };
                    }
                    Err(fault) if fault.is_conflict() && tries < TRIES => {
                        let mut random = [0; 2];
                        entropy.fill(&mut random);
                        let port = u16::from_be_bytes(random).max(1_024);
                        let tries = tries + 1;
                        self.step = Step::Mapping {
                            address,
                            port,
                            lease,
                            tries,
                        };
                    }
                    Err(_) => return self.ask_next(wanted),
                }
                let next = wanted.map(service, self.step);
                next.map_or(Progress::Failed, Progress::Next)
            }
        }
    }

    fn ask_next(&mut self, wanted: Wanted) -> Progress {
        if !self.services.is_empty() {
            self.services.remove(0);
        }
        self.ask(wanted)
    }

    fn ask(&mut self, wanted: Wanted) -> Progress {
        match self.services.first() {
            None => Progress::Failed,
            Some(service) => {
                self.step = Step::Asking;
                Progress::Next(wanted.exchange(service, Call::ExternalAddress))
            }
        }
    }
}
