//! What values must look like beyond their type. An empty text is "not set" and passes; roles say what they need.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use activities::egress::Listed;
use url::Url;
use workflows::contract::{CellClocks, CellId, Digest, HostId, Platform, PoolName, ProjectName};

use super::{Attempts, Clock, Dns, Settings, resolver};

/// The keys whose values break a rule, each with the rule.
pub(super) fn broken(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut check = |key, verdict: Result<(), String>| {
        if let Err(rule) = verdict {
            found.push((key, rule));
        }
    };
    check("temporal.address", host_port(&settings.temporal.address));
    check("temporal.namespace", not_empty(&settings.temporal.namespace));
    check("api.listen", host_port(&settings.api.listen));
    check("api.url", http_url(&settings.api.url));
    check("api.tls_key", both(&settings.api.tls_cert, &settings.api.tls_key));
    check("logs.tls_key", both(&settings.logs.tls_cert, &settings.logs.tls_key));
    for (key, most) in
        [("api.max_connections", settings.api.max_connections), ("logs.max_connections", settings.logs.max_connections)]
    {
        check(key, between(most as u64, 1, 1 << 20));
    }
    check("s3.endpoint", http_url(&settings.s3.endpoint));
    check("logs.listen", host_port(&settings.logs.listen));
    check("logs.address", host_port(&settings.logs.address));
    check("egress.allow", settings.egress.allow.iter().try_for_each(|entry| listed(entry)));
    check("store.url", store_url(settings.store.url.reveal()));
    check("seal.recipient", parses::<activities::sealed::Recipient>(&settings.seal.recipient));
    let Attempts { heartbeat_ms, cut_off_after_ms, lost_after_ms } = settings.attempts;
    check("attempts.heartbeat_ms", between(heartbeat_ms, 100, 60_000));
    check("attempts.heartbeat_ms", below(heartbeat_ms, "attempts.cut_off_after_ms", cut_off_after_ms));
    check("attempts.cut_off_after_ms", below(cut_off_after_ms, "attempts.lost_after_ms", lost_after_ms));
    check("attempts.lost_after_ms", between(lost_after_ms, 1_000, 3_600_000));
    check("cell.id", parses::<CellId>(&settings.cell.id));
    check("cell.host", parses::<HostId>(&settings.cell.host));
    check("cell.clone_of", parses::<CellId>(&settings.cell.clone_of));
    check("cell.pool", parses::<PoolName>(&settings.cell.pool));
    check("cell.project", parses::<ProjectName>(&settings.cell.project));
    check("cell.platform", parses::<Platform>(&settings.cell.platform));
    check("cell.frontends", settings.cell.frontends.iter().try_for_each(|image| pinned(image)));
    check("registry.address", host_port_or_name(&settings.registry.address));
    check("registry.mirror", host_port_or_name(&settings.registry.mirror));
    check("cell.slots", between(u64::from(settings.cell.slots), 1, 1024));
    check("host.id", parses::<HostId>(&settings.host.id));
    check("host.driver", one_of(&settings.host.driver, &["process", "qemu", "firecracker"]));
    check("host.cells", cell_dirs(&settings.host.cells));
    check("host.image_dir", absolute(&settings.host.image_dir));
    let (max, named) = (settings.host.max_cells, settings.host.cells.len());
    check("host.max_cells", rule(max == 0 || max >= named, || format!("host.cells names {named} cells")));
    check("cell.host", parses::<HostId>(&settings.cell.host));
    for (key, ms) in clocks(&settings.cell.clocks) {
        check(key, between(ms, 10, 7 * 24 * 3_600_000));
    }
    let reach = [("cell.steps_reach", &settings.cell.steps_reach), ("cell.daemon_reach", &settings.cell.daemon_reach)];
    for (key, networks) in reach {
        check(key, networks.iter().try_for_each(|text| network(text)));
    }
    check("cell.stuck_after_s", between(settings.cell.stuck_after_s, 1, 7 * 24 * 3600));
    check("cell.drain_grace_ms", between(settings.cell.drain_grace_ms, 0, 24 * 3_600_000));
    check("cell.services_at", parses::<std::net::Ipv4Addr>(&settings.cell.services_at));
    check("dns.listen", socket_address(&settings.dns.listen));
    check("dns.upstreams", upstreams(&settings.dns));
    check("dns.timeout_ms", between(settings.dns.timeout_ms, 50, 4_000));
    check("dns.stale_s", between(settings.dns.stale_s, 0, 7 * 24 * 3600));
    let Clock { check_every_s, limit_ms, step_ms, .. } = settings.clock;
    check("clock.servers", settings.clock.servers.iter().try_for_each(|server| time_server(server)));
    check("clock.check_every_s", between(check_every_s, 10, 24 * 3600));
    check("clock.limit_ms", between(limit_ms, 100, 3_600_000));
    check("clock.step_ms", between(step_ms, 1, 3_600_000));
    // Slewed, a clock that is off by the limit would be of no use for days.
    check("clock.step_ms", at_most(step_ms, "clock.limit_ms", limit_ms));
    check("guest.digest", digest(&settings.guest.digest));
    let named_by_digest = settings.guest.image.as_os_str().is_empty() || !settings.guest.digest.is_empty();
    check("guest.digest", rule(named_by_digest, || "must be set where guest.image is".into()));
    check("guest.accel", one_of(&settings.guest.accel, &["auto", "kvm", "tcg"]));
    if settings.host.driver == "firecracker" {
        check(
            "guest.accel",
            rule(settings.guest.accel != "tcg", || "must be auto or kvm: Firecracker has KVM only".into()),
        );
    }
    check("guest.vcpus", between(u64::from(settings.guest.vcpus), 1, 256));
    check("guest.memory_mib", between(settings.guest.memory_mib, 512, 1 << 22));
    check("guest.disk_gib", between(settings.guest.disk_gib, 1, 1 << 16));
    check("guest.daemons_memory_mib", spare(settings.guest.daemons_memory_mib, settings.guest.memory_mib));
    check("guest.builds_memory_mib", spare(settings.guest.builds_memory_mib, settings.guest.memory_mib));
    check("guest.daemons_cpu_weight", between(settings.guest.daemons_cpu_weight, 0, 10_000));
    check("guest.builds_cpu_weight", between(settings.guest.builds_cpu_weight, 0, 10_000));
    check("guest.builds_processes", between(settings.guest.builds_processes, 0, 1 << 22));
    check("guest.swap_gib", between(settings.guest.swap_gib, 0, 1 << 16));
    check("guest.step_memory_mib", between(settings.guest.step_memory_mib, 0, 1 << 22));
    check("guest.step_processes", between(settings.guest.step_processes, 16, 1 << 22));
    check("guest.step_cpu_weight", between(settings.guest.step_cpu_weight, 1, 10_000));
    check("guest.mirror", host_port(&settings.guest.mirror));
    check("guest.steps_reach", settings.guest.steps_reach.iter().try_for_each(|text| network(text)));
    check("telemetry.log_format", one_of(&settings.telemetry.log_format, &["text", "json"]));
    check("telemetry.otlp_endpoint", http_url(&settings.telemetry.otlp_endpoint));
    check("telemetry.metrics_listen", host_port(&settings.telemetry.metrics_listen));
    found
}

fn clocks(clocks: &CellClocks) -> [(&'static str, u64); 9] {
    [
        ("cell.clocks.heartbeat_ms", clocks.heartbeat_ms),
        ("cell.clocks.lost_after_ms", clocks.lost_after_ms),
        ("cell.clocks.canary_every_ms", clocks.canary_every_ms),
        ("cell.clocks.canary_patience_ms", clocks.canary_patience_ms),
        ("cell.clocks.start_patience_ms", clocks.start_patience_ms),
        ("cell.clocks.host_patience_ms", clocks.host_patience_ms),
        ("cell.clocks.retry_ms", clocks.retry_ms),
        ("cell.clocks.stable_ms", clocks.stable_ms),
        ("cell.clocks.roll_ms", clocks.roll_ms),
    ]
}

fn rule(holds: bool, text: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text()) }
}

fn not_empty(text: &str) -> Result<(), String> {
    rule(!text.is_empty(), || "must not be empty".into())
}

fn host_port(text: &str) -> Result<(), String> {
    let split = text.rsplit_once(':');
    let fits = split.is_some_and(|(host, port)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok());
    rule(text.is_empty() || fits, || "must be host:port".into())
}

/// An IPv4 network by its first address and prefix.
pub fn network(text: &str) -> Result<(), String> {
    let split = text
        .split_once('/')
        .and_then(|(address, prefix)| Some((address.parse::<std::net::Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?)));
    rule(split.is_some_and(|(_, prefix)| prefix <= 32), || format!("{text} must be an IPv4 network, like 10.1.0.0/16"))
}

/// A network, an address or a host that requests may lead to.
fn listed(text: &str) -> Result<(), String> {
    text.parse::<Listed>().map(drop).map_err(|error| error.to_string())
}

fn socket_address(text: &str) -> Result<(), String> {
    rule(text.is_empty() || text.parse::<SocketAddr>().is_ok(), || "must be address:port".into())
}

/// Whom a forwarder asks: not itself.
fn upstreams(dns: &Dns) -> Result<(), String> {
    let own = dns.listen.parse::<SocketAddr>().ok();
    dns.upstreams.iter().try_for_each(|text| {
        let named = resolver(text).ok_or_else(|| format!("{text} must be an IP address or address:port"))?;
        rule(Some(named) != own, || format!("{text} is dns.listen itself"))
    })
}

fn time_server(text: &str) -> Result<(), String> {
    let host = text.parse::<std::net::IpAddr>().is_ok() || !text.is_empty() && !text.contains([':', '/', ' ']);
    rule(host || (!text.is_empty() && host_port(text).is_ok()), || format!("{text} must be host or host:port"))
}

fn http_url(text: &str) -> Result<(), String> {
    let fits = Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    rule(text.is_empty() || fits, || "must be a URL, http://… or https://…".into())
}

fn store_url(text: &str) -> Result<(), String> {
    let fits = ["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| text.starts_with(scheme));
    rule(text.is_empty() || fits, || "must be sqlite:///path/kiln.db or postgres://…".into())
}

fn parses<T: std::str::FromStr>(text: &str) -> Result<(), String>
where
    T::Err: std::fmt::Display,
{
    if text.is_empty() { Ok(()) } else { text.parse::<T>().map(drop).map_err(|error| error.to_string()) }
}

fn absolute(path: &Path) -> Result<(), String> {
    rule(path.as_os_str().is_empty() || path.is_absolute(), || "must be an absolute path".into())
}

fn digest(text: &str) -> Result<(), String> {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    let fits = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    rule(text.is_empty() || fits, || "must be sha256: and 64 hex digits".into())
}

/// A certificate and its key: both or none.
fn both(cert: &Path, key: &Path) -> Result<(), String> {
    rule(cert.as_os_str().is_empty() == key.as_os_str().is_empty(), || {
        "certificate and key must be set together".into()
    })
}

/// Absolute, each named by a cell's id, no id twice.
fn cell_dirs(dirs: &[PathBuf]) -> Result<(), String> {
    let mut ids = BTreeSet::new();
    dirs.iter().try_for_each(|dir| {
        let id = dir.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let id: CellId = id.parse().map_err(|error| format!("{} is not named by a cell: {error}", dir.display()))?;
        rule(dir.is_absolute(), || format!("{} must be an absolute path", dir.display()))?;
        rule(ids.insert(id), || format!("{} names a cell that another directory names", dir.display()))
    })
}

/// Both ends included.
fn between(number: u64, least: u64, most: u64) -> Result<(), String> {
    rule((least..=most).contains(&number), || format!("must be from {least} to {most}"))
}

/// A part of a guest's memory that leaves some for the rest of it.
fn spare(mib: u64, guest_mib: u64) -> Result<(), String> {
    rule(mib == 0 || (64..guest_mib).contains(&mib), || {
        format!("must be from 64 to below guest.memory_mib ({guest_mib})")
    })
}

/// A limit that comes before another one.
fn below(number: u64, other: &str, limit: u64) -> Result<(), String> {
    rule(number < limit, || format!("must be below {other} ({limit})"))
}

/// A limit that another one may not be over. One that is nothing is told of by itself.
fn at_most(number: u64, other: &str, limit: u64) -> Result<(), String> {
    rule(number <= limit || limit == 0, || format!("must be at most {other} ({limit})"))
}

fn one_of(text: &str, choices: &[&str]) -> Result<(), String> {
    rule(choices.contains(&text), || format!("must be {}", choices.join(" or ")))
}

/// An image by digest, so that nobody who can write its tag chooses what runs.
fn pinned(image: &str) -> Result<(), String> {
    let is_pinned = image.split_once('@').is_some_and(|(_, text)| text.parse::<Digest>().is_ok());
    rule(is_pinned && !image.contains(char::is_whitespace), || {
        format!("{image:?} must be an image with its digest, repository[:tag]@sha256:…")
    })
}

/// `host` or `host:port` of a registry.
fn host_port_or_name(text: &str) -> Result<(), String> {
    let is_host = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    rule(text.chars().all(is_host), || "must be host or host:port, without a scheme or path".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_cells_are_absolute_directories_named_by_cells() {
        let said =
            |dirs: &[&str]| cell_dirs(&dirs.iter().map(PathBuf::from).collect::<Vec<_>>()).err().unwrap_or_default();
        assert_eq!(said(&["/cells/c1", "/cells/c2"]), "");
        assert_eq!(said(&["cells/c1"]), "cells/c1 must be an absolute path");
        assert_eq!(said(&["/a/c1", "/b/c1"]), "/b/c1 names a cell that another directory names");
        assert!(said(&["/cells/C 1"]).starts_with("/cells/C 1 is not named by a cell: invalid cell id"));
    }
}
