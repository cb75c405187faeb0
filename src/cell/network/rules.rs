//! iptables: sets a script of rules, looks whether it stands, and removes what names a cell's device or its addresses.
//!
//! Former releases had CNI plugins make rules for each step, which a killed cell left behind: [`remove`] takes them away too, by subnet.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::Context;

use super::subnet::Subnet;

/// How long iptables waits for whoever changes rules meanwhile: by itself it would for ever.
const WAIT: [&str; 2] = ["-w", "5"];
const TABLES: [&str; 3] = ["filter", "nat", "mangle"];
/// Where clouds tell a machine its own secrets: link-local addresses in most of them, and those of Alibaba, Oracle and Azure.
pub const METADATA: [&str; 4] = ["169.254.0.0/16", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32"];

/// Removes all rules that name the bridge or an address of the subnet, and the chains that only they led to.
///
/// # Errors
/// When iptables cannot be run.
pub fn remove(bridge: &str, subnet: Option<Subnet>) -> anyhow::Result<()> {
    let mut script = String::new();
    for table in TABLES {
        let listing = output(Command::new("iptables").args(WAIT).args(["-t", table, "-S"]))?;
        script.push_str(&removal(table, &listing, bridge, subnet));
    }
    if script.is_empty() { Ok(()) } else { restore(&script) }
}

/// The script that takes a cell's rules out of a table listed as `iptables -S` does; empty when it has none.
fn removal(table: &str, listing: &str, bridge: &str, subnet: Option<Subnet>) -> String {
    let prefix = subnet.map(Subnet::text_prefix);
    let ours = |rule: &&str| {
        let words: Vec<_> = rule.split(' ').collect();
        words.windows(2).any(|pair| match pair {
            ["-i" | "-o", name] => *name == bridge,
            ["-s" | "-d", address] => prefix.as_ref().is_some_and(|prefix| address.starts_with(prefix.as_str())),
            _ => false,
        })
    };
    let rules: Vec<_> = listing.lines().filter_map(|line| line.strip_prefix("-A ")).filter(ours).collect();
    if rules.is_empty() {
        return String::new();
    }
    let chains = own_chains(&rules);
    let mut script = format!("*{table}\n");
    rules.iter().for_each(|rule| script.push_str(&format!("-D {rule}\n")));
    chains.iter().for_each(|chain| script.push_str(&format!("-F {chain}\n-X {chain}\n")));
    script.push_str("COMMIT\n");
    script
}

/// The plugins give each step's address a chain named `CNI-` and a digest; the common ones have words for names.
fn own_chains<'a>(rules: &[&'a str]) -> Vec<&'a str> {
    let mut chains: Vec<_> = rules
        .iter()
        .filter_map(|rule| rule.rsplit_once(" -j "))
        .map(|(_, target)| target)
        .filter(|target| {
            target.strip_prefix("CNI-").is_some_and(|digest| digest.bytes().all(|b| b.is_ascii_hexdigit()))
        })
        .collect();
    chains.sort_unstable();
    chains.dedup();
    chains
}

/// Whether all rules of a script stand: in each table as many name the device as the script has.
///
/// # Errors
/// When iptables cannot be run.
pub fn stand(device: &str, script: &str) -> anyhow::Result<bool> {
    for table in TABLES {
        let listing = output(Command::new("iptables").args(WAIT).args(["-t", table, "-S"]))?;
        if listed(&listing, device) != wanted(script, table) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn listed(listing: &str, device: &str) -> usize {
    let names = |rule: &&str| {
        let words: Vec<_> = rule.split(' ').collect();
        rule.starts_with("-A ") && words.windows(2).any(|pair| matches!(pair, ["-i" | "-o", name] if *name == device))
    };
    listing.lines().filter(names).count()
}

/// How many rules a script has for a table.
fn wanted(script: &str, table: &str) -> usize {
    let mut current = "";
    let mut count = 0;
    for line in script.lines() {
        match line.strip_prefix('*') {
            Some(name) => current = name,
            None if current == table && line.starts_with("-I ") => count += 1,
            None => {}
        }
    }
    count
}

/// # Errors
/// When iptables is missing or refuses a rule.
pub fn restore(script: &str) -> anyhow::Result<()> {
    let mut child = Command::new("iptables-restore")
        .args(WAIT)
        .arg("--noflush")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run iptables-restore (package iptables)")?;
    // Dropped at once, so that the command sees the script's end.
    child.stdin.take().map(|mut stdin| stdin.write_all(script.as_bytes())).transpose()?;
    finished("iptables-restore", child.wait_with_output()?).map(drop)
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().display().to_string();
    finished(&name, command.output().with_context(|| format!("cannot run {name} (package iptables)"))?)
}

fn finished(name: &str, output: std::process::Output) -> anyhow::Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{name}: {}", said.lines().next().unwrap_or("failed without a word"));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAT: &str = r#"-P POSTROUTING ACCEPT
-N CNI-2f2e8ad8bb1d
-N CNI-aaaaaaaaaaaa
-A POSTROUTING -s 10.90.7.2/32 -m comment --comment "name: \"buildkit\" id: \"x\"" -j CNI-2f2e8ad8bb1d
-A POSTROUTING -s 10.91.7.2/32 -m comment --comment "name: \"buildkit\" id: \"y\"" -j CNI-aaaaaaaaaaaa
-A CNI-2f2e8ad8bb1d -d 10.90.7.0/24 -j ACCEPT
-A CNI-2f2e8ad8bb1d ! -d 224.0.0.0/4 -j MASQUERADE
"#;

    #[test]
    fn one_steps_translation_goes_with_its_chain() {
        let script = removal("nat", NAT, "kiln0", Some("10.90.7.0/24".parse().unwrap()));
        insta::assert_snapshot!(script, @r#"
        *nat
        -D POSTROUTING -s 10.90.7.2/32 -m comment --comment "name: \"buildkit\" id: \"x\"" -j CNI-2f2e8ad8bb1d
        -D CNI-2f2e8ad8bb1d -d 10.90.7.0/24 -j ACCEPT
        -F CNI-2f2e8ad8bb1d
        -X CNI-2f2e8ad8bb1d
        COMMIT
        "#);
    }

    #[test]
    fn a_rule_that_is_missing_is_noticed() {
        let script = "*nat\n-I POSTROUTING -s 10.64.3.0/24 ! -o kiln0a -j MASQUERADE\nCOMMIT\n*filter\n-I INPUT -i kiln0a -j REJECT\n\
                      -I FORWARD -i kiln0a -j ACCEPT\nCOMMIT\n*filter\n-I FORWARD -o kiln0a -j ACCEPT\nCOMMIT\n";
        assert_eq!(TABLES.map(|table| wanted(script, table)), [3, 1, 0]);
        let listing = "-P INPUT ACCEPT\n-A INPUT -i kiln0a -j REJECT\n-A INPUT -i kiln0ab -j REJECT\n-A FORWARD -o kiln0a -j ACCEPT\n";
        assert_eq!(listed(listing, "kiln0a"), 2);
        assert_eq!(listed("-A POSTROUTING -s 10.64.3.0/24 ! -o kiln0a -j MASQUERADE\n", "kiln0a"), 1);
    }

    #[test]
    fn common_chains_and_other_bridges_stay() {
        let filter = "-A INPUT -i kiln0 -j REJECT\n-A INPUT -i kiln01 -j REJECT\n-A FORWARD -j CNI-FORWARD\n\
                      -A CNI-ISOLATION-STAGE-1 -i kiln0 ! -o kiln0 -j CNI-ISOLATION-STAGE-2\n";
        insta::assert_snapshot!(removal("filter", filter, "kiln0", None), @r"
        *filter
        -D INPUT -i kiln0 -j REJECT
        -D CNI-ISOLATION-STAGE-1 -i kiln0 ! -o kiln0 -j CNI-ISOLATION-STAGE-2
        COMMIT
        ");
        assert_eq!(removal("filter", filter, "kiln2", None), "");
    }
}
