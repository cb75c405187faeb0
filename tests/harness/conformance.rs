//! What a step may reach and take: the same probes from inside a step for every kind of cell (docs/security.md).

use std::net::IpAddr;

/// A Dockerfile whose step tries every address with every port, its own network's and the metadata service's among them, and shows its
/// limits. It connects to itself first: so it could tell what is open.
pub fn probe(addresses: &[IpAddr], ports: &[u16]) -> String {
    let words = |list: Vec<String>| list.join(" ");
    let addresses = words(addresses.iter().map(ToString::to_string).collect());
    let ports = words(ports.iter().map(ToString::to_string).collect());
    format!(
        r#"FROM busybox
RUN own=$(ip -4 addr show eth0 | sed -n 's/.* inet \([0-9.]*\)[/ ].*/\1/p'); net=${{own%.*}}; echo own address $own; \
    echo cards with IPv6: $(grep -v ' lo$' /proc/net/if_inet6 2>/dev/null | wc -l); \
    echo routes of IPv6: $(grep -v ' lo$' /proc/net/ipv6_route 2>/dev/null | wc -l); \
    echo goes first by: $(cat /proc/self/oom_score_adj); \
    for file in /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max; do [ -r $file ] && echo processes: $(cat $file); done; \
    (echo hi | nc -l -p 5555 >/dev/null) & \
    n=0; until nc -w 2 127.0.0.1 5555 </dev/null >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 500 ] || exit 9; done; echo itself: OPEN; \
    for a in $net.1 $net.2 169.254.169.254 100.100.100.200 {addresses}; do \
      for p in 22 53001 80 {ports}; do (nc -w 5 $a $p </dev/null >/dev/null 2>&1 && echo $a:$p OPEN) & done; wait; done; \
    echo all tried
"#
    )
}

/// Checks what such a step printed.
pub fn holds(output: &str) {
    let line = |begins: &str| output.lines().find_map(|line| Some(line.split_once(begins)?.1.trim().to_owned()));
    assert!(output.contains("own address 10."), "it has an address of its own: {output}");
    assert_eq!(line("cards with IPv6: ").as_deref(), Some("0"), "no rule looks at IPv6: {output}");
    assert_eq!(line("routes of IPv6: ").as_deref(), Some("0"), "nor does a router's word give it a way: {output}");
    assert_eq!(line("goes first by: ").as_deref(), Some("500"), "it goes before the daemons: {output}");
    assert_eq!(line("processes: ").as_deref(), Some("4096"), "{output}");
    assert!(output.contains("all tried"), "{output}");
    let open: Vec<_> = output.lines().filter(|line| line.ends_with("OPEN")).collect();
    assert!(matches!(open[..], [itself] if itself.ends_with("itself: OPEN")), "{open:?}: {output}");
}
