//! Name resolution as nodes are sent it.

use std::collections::BTreeMap;

use warren_control_api::endpoints::{
    AddDnsRecord, DeleteDnsRecord, DnsInfo, DnsRecordInfo, GetDns, SetDns,
};
use warren_control_api::{ApiError, Caller, ErrorCode, Handler, Reply};
use warren_control_core::{
    AdminError, DnsChange, DnsKey, DnsName, DnsPart, ExtraRecord, Nameserver, RecordSource, View,
};

use super::Administration;
use crate::watched_file::Watched as _;

/// The text is not valid: a request that has to be changed.
fn invalid(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, error.to_string())
}

fn names(texts: Vec<String>) -> Reply<Vec<DnsName>> {
    let names = texts.iter().map(|text| text.parse().map_err(invalid));
    names.collect()
}

fn servers(texts: Vec<String>) -> Reply<Vec<Nameserver>> {
    let servers = texts.iter().map(|text| text.parse().map_err(invalid));
    servers.collect()
}

fn change_of(request: SetDns) -> Reply<DnsChange> {
    let unset = request.unset.iter().map(|name| {
        let found = DnsKey::ALL.into_iter().find(|key| key.name() == name);
        found.ok_or_else(|| {
            let known: Vec<&str> = DnsKey::ALL.iter().map(|key| key.name()).collect();
            invalid(format!(
                "\"{name}\" is no setting; those are {}",
                known.join(", ")
            ))
        })
    });
    let mut suffixes = BTreeMap::new();
    for (suffix, list) in request.split {
        let suffix: DnsName = suffix.parse().map_err(invalid)?;
        suffixes.insert(suffix, list.map(servers).transpose()?);
    }
    Ok(DnsChange {
        set: DnsPart {
            magic_dns: request.magic_dns,
            override_local: request.override_local,
            nameservers: request.nameservers.map(servers).transpose()?,
            split: None,
            search_domains: request.search_domains.map(names).transpose()?,
        },
        suffixes,
        unset: unset.collect::<Reply<_>>()?,
    })
}

fn info(view: &View) -> DnsInfo {
    let dns = view.dns();
    let texts = |list: &[Nameserver]| list.iter().map(ToString::to_string).collect();
    let configured = DnsKey::ALL
        .into_iter()
        .filter(|key| dns.configured().gives(*key));
    let all = dns.nameservers().iter();
    let all = all.chain(dns.split().flat_map(|(_, servers)| servers));
    let unknown = all.filter(|server| !server.is_known_to_clients());
    let records = dns.records().map(|(source, record)| DnsRecordInfo {
        name: record.name.to_string(),
        kind: record.data.kind().to_owned(),
        value: record.data.value(),
        source: match source {
            RecordSource::Configuration => "configuration",
            RecordSource::File => "file",
            RecordSource::Command => "command",
        }
        .to_owned(),
        addresses: view
            .addresses_of(record)
            .iter()
            .map(ToString::to_string)
            .collect(),
    });
    DnsInfo {
        base_domain: view.config().base_domain.clone(),
        magic_dns: dns.magic_dns(),
        override_local: dns.override_local(),
        nameservers: texts(dns.nameservers()),
        split: dns
            .split()
            .map(|(suffix, servers)| (suffix.to_string(), texts(servers)))
            .collect(),
        search_domains: dns
            .search_domains()
            .iter()
            .map(ToString::to_string)
            .collect(),
        configured: configured.map(|key| key.name().to_owned()).collect(),
        unknown_to_clients: unknown.map(ToString::to_string).collect(),
        records: records.collect(),
        records_file: None,
        records_problem: None,
    }
}

impl Administration {
    fn dns_info(&self) -> DnsInfo {
        let info = self.coordinator.read(info);
        let Some(file) = &self.records else {
            return info;
        };
        DnsInfo {
            records_file: Some(file.path().display().to_string()),
            records_problem: file.problem(),
            ..info
        }
    }
}

impl Handler<GetDns> for Administration {
    async fn handle(&self, _: &Caller, _: GetDns) -> Reply<DnsInfo> {
        Ok(self.dns_info())
    }
}

impl Handler<SetDns> for Administration {
    async fn handle(&self, _: &Caller, request: SetDns) -> Reply<DnsInfo> {
        let change = change_of(request)?;
        self.change(|c, _| c.change_dns(change).map_err(AdminError::from))
            .await?;
        Ok(self.dns_info())
    }
}

impl Handler<AddDnsRecord> for Administration {
    async fn handle(&self, _: &Caller, request: AddDnsRecord) -> Reply<DnsInfo> {
        let record = ExtraRecord::parse(&request.name, &request.kind, &request.value);
        let record = record.map_err(invalid)?;
        self.change(|c, _| c.add_dns_record(record).map_err(AdminError::from))
            .await?;
        Ok(self.dns_info())
    }
}

impl Handler<DeleteDnsRecord> for Administration {
    async fn handle(&self, _: &Caller, request: DeleteDnsRecord) -> Reply<DnsInfo> {
        let name: DnsName = request.name.parse().map_err(invalid)?;
        let (kind, value) = (request.kind.as_deref(), request.value.as_deref());
        self.change(|c, _| {
            c.delete_dns_records(&name, kind, value)
                .map_err(AdminError::from)
        })
        .await?;
        Ok(self.dns_info())
    }
}
