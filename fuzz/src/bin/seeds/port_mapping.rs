//! Seeds of the targets that speak with a router: `port_mapping`, `port_mapper`.

use std::io;
use std::path::Path;

use warren_fuzz::put_step;
use warren_wire::{nat_pmp, pcp};

use crate::Seeds;

/// Requests and responses of NAT-PMP and PCP, and a grant of both halves.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    let target = Seeds::new(seeds, "port_mapping");
    let map = nat_pmp::Request::MapUdp {
        internal_port: 41641,
        suggested_port: 0,
        lifetime: 7200,
    };
    target.put("pmp-request", &map.emit())?;
    let mapped = nat_pmp::Response::MappedUdp {
        epoch: 9,
        internal_port: 41641,
        external_port: 1025,
        lifetime: 7200,
    };
    target.put("pmp-response", &mapped.emit())?;
    let external = nat_pmp::Response::ExternalAddress {
        epoch: 9,
        address: [198, 51, 100, 1].into(),
    };
    target.put("pmp-address", &external.emit())?;
    let body = pcp::Body::Map(pcp::Mapping {
        nonce: [7; 12],
        internal_port: 41641,
        external: ([198, 51, 100, 1], 1025).into(),
    });
    let request = pcp::Request {
        lifetime: 7200,
        client: [10, 0, 0, 2].into(),
        body,
    };
    target.put("pcp-request", &request.emit())?;
    let response = pcp::Response {
        result: pcp::ResultCode::Success,
        lifetime: 7200,
        epoch: 9,
        body,
    };
    target.put("pcp-response", &response.emit())?;

    // Both halves of a grant, and time until the renewal.
    let mut grant = Vec::new();
    put_step(&mut grant, 3, 0, &external.emit());
    put_step(&mut grant, 3, 0, &external.emit());
    put_step(&mut grant, 3, 0, &mapped.emit());
    put_step(&mut grant, 0, 255, &[]);
    let mapper = Seeds::new(seeds, "port_mapper");
    mapper.put("pmp-grant", &grant)
}
