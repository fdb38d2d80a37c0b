//! Seeds of the targets that speak with a router: `port_mapping`, `port_mapper`, `upnp`.

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
    put_step(&mut grant, 5, 0, &external.emit());
    put_step(&mut grant, 5, 0, &external.emit());
    put_step(&mut grant, 5, 0, &mapped.emit());
    put_step(&mut grant, 0, 255, &[]);
    let mapper = Seeds::new(seeds, "port_mapper");
    mapper.put("pmp-grant", &grant)?;

    // The same by UPnP: the answer to the search comes from another port.
    let mut grant = Vec::new();
    put_step(&mut grant, 5, 1, SEARCH_RESPONSE.as_bytes());
    put_step(&mut grant, 0, 100, &[]);
    put_step(&mut grant, 3, 0, http(DESCRIPTION).as_bytes());
    put_step(&mut grant, 4, 0, ADDRESS.as_bytes());
    put_step(&mut grant, 4, 0, b"<u:AddPortMappingResponse/>");
    put_step(&mut grant, 0, 255, &[]);
    mapper.put("upnp-grant", &grant)?;

    let target = Seeds::new(seeds, "upnp");
    target.put("search-response", SEARCH_RESPONSE.as_bytes())?;
    target.put("description", http(DESCRIPTION).as_bytes())?;
    target.put("address", http(ADDRESS).as_bytes())?;
    target.put("fault", FAULT.as_bytes())?;
    target.put("chunked", CHUNKED.as_bytes())
}

const SEARCH_RESPONSE: &str = "HTTP/1.1 200 OK\r\nLOCATION: http://10.0.0.1:5000/root.xml\r\n\
    ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n";
const DESCRIPTION: &str = "<?xml version=\"1.0\"?><root><URLBase>http://10.0.0.1:5000</URLBase>\
    <service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
    <controlURL>/ctl/IPConn</controlURL></service></root>";
const ADDRESS: &str = "<s:Body><NewExternalIPAddress>198.51.100.1</NewExternalIPAddress></s:Body>";
const FAULT: &str =
    "<s:Fault><detail><UPnPError><errorCode>725</errorCode></UPnPError></detail></s:Fault>";
const CHUNKED: &str = "HTTP/1.1 500 E\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n<a>\r\n0\r\n\r\n";

fn http(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
