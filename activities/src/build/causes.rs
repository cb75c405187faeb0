//! What the cell itself knows of a failure's cause: names that nobody could resolve, a clock that was off. Whoever meets one of them
//! says something else: a step's exit code, a certificate that is not valid yet.

use std::sync::Arc;

use buildkit::{FailureKind, RegistryStatus};
use workflows::contract::{BuildError, FailureClass};

use crate::clock::Skew;
use crate::dns::Unresolved;

/// Words for a name server that failed, as the C libraries, Node.js and package managers have them: a name that does not exist has
/// others.
const FAILED_FOR_NOW: [&str; 6] = [
    "temporary failure in name resolution",
    "temporary failure resolving",
    "eai_again",
    "dns: transient error",
    "server misbehaving",
    "servfail",
];
/// Words for a name without an address, whatever the reason. Package managers resolve dependencies, certificates have `DNS:name`.
const UNRESOLVED: [&str; 13] = [
    "dns: ",
    "can't find",
    "resolve host",
    "resolve proxy",
    "lookup ",
    "getaddrinfo",
    "enotfound",
    "bad address",
    "unknown host",
    "unknownhost",
    "no such host",
    "name resolution",
    "name or service not known",
];
/// What was resolved, or not, comes right behind them.
const VERBS: [&str; 2] = ["resolve", "resolving"];
const QUOTES: [(char, char); 5] = [('\'', '\''), ('"', '"'), ('`', '`'), ('‘', '’'), ('“', '”')];
/// Words for what a wrong clock looks like: TLS, object storage, package lists.
const OF_TIME: [&str; 6] =
    ["certificate", "x509: ", "not yet valid", "not valid yet", "requesttimetooskewed", "signature expired"];

/// Says first that it was DNS, where it was. `unresolved` is what nobody had an answer to while this was solved: a step that failed for
/// such a name did so for no fault of the user's, and may be tried again.
///
/// The other steps of the cell, of whatever project, ask the same forwarder, and which address a step has only buildkitd knows. So a
/// name is told only to a build that names it itself.
pub(super) fn names(mut told: BuildError, kind: &FailureKind, unresolved: &[Arc<Unresolved>]) -> BuildError {
    let registry = matches!(kind, FailureKind::Registry(failure) if failure.status == RegistryStatus::Dns);
    let step = matches!(kind, FailureKind::Exit { out_of_memory: false, .. });
    if !registry && !step {
        return told;
    }
    let said = words(&told);
    let for_it = |host: &str| said.lines().any(|line| failed_for(line, host, registry));
    if let Some(named) = unresolved.iter().find(|unresolved| for_it(&unresolved.host)) {
        told.class = FailureClass::Transient;
        told.message = format!("DNS: {named}; {}", told.message);
    } else if registry {
        told.message = format!("DNS: {}", told.message);
    } else if has(&said, &FAILED_FOR_NOW)
        && let Some(last) = unresolved.last()
    {
        // Nobody names it, but it is the kind of failure that only a name server has.
        if unresolved.iter().all(|unresolved| unresolved.is_silence()) {
            told.class = FailureClass::Transient;
        }
        told.message = format!("DNS: a name could not be resolved{}; {}", last.servers(), told.message);
    }
    told
}

/// Whether a line of what was said, in lower case, has it that this host has no address. A line about DNS needs no words for it
/// (`of_dns`).
fn failed_for(line: &str, host: &str, of_dns: bool) -> bool {
    let of_dns = of_dns || has(line, &UNRESOLVED) || has(line, &FAILED_FOR_NOW);
    mentions(line, host).any(|before| of_dns || follows_a_verb(before))
}

/// What stands before each place of the line that is about this host. The host of a longer name, or a part of a word, is another one; a
/// single word is a host only in quotes: it is what packages and users are called, too.
fn mentions<'a>(line: &'a str, host: &'a str) -> impl Iterator<Item = &'a str> {
    let of_names = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
    let is_word = !host.contains('.');
    line.match_indices(host).filter(move |_| host.contains(of_names)).filter_map(move |(at, _)| {
        let (before, after) = (&line[..at], &line[at + host.len()..]);
        let (last, mut next) = (before.chars().next_back(), after.chars());
        let first = next.next();
        let begins = !last.is_some_and(|c| of_names(c) || c == '.');
        let ends = match first {
            Some('.') => !next.next().is_some_and(of_names),
            first => !first.is_some_and(of_names),
        };
        let quoted = last.zip(first).is_some_and(|quotes| QUOTES.contains(&quotes));
        (begins && ends && (quoted || !is_word)).then_some(before)
    })
}

fn follows_a_verb(before: &str) -> bool {
    let before = before.trim_end_matches(|c: char| !c.is_alphanumeric());
    VERBS.iter().any(|verb| before.ends_with(verb))
}

/// The same for what this process itself could not reach.
pub(super) fn named(message: String) -> String {
    // The HTTP client's words for it.
    if message.contains("dns error") { format!("DNS: {message}") } else { message }
}

/// Whether a wrong clock would look like this.
pub(super) fn may_be_the_clock(error: &BuildError) -> bool {
    has(&words(error), &OF_TIME)
}

/// The failure of a cell whose clock was off meanwhile.
pub(super) fn clock(mut error: BuildError, skew: &Skew) -> BuildError {
    (error.class, error.is_answer) = (FailureClass::CellFault, false);
    error.message = format!("{skew}; {}", error.message);
    error
}

/// The message and the step's last lines, in lower case.
fn words(error: &BuildError) -> String {
    let lines = error.log_tail.iter().chain([&error.message]);
    lines.map(|line| line.to_ascii_lowercase()).collect::<Vec<_>>().join("\n")
}

fn has(said: &str, words: &[&str]) -> bool {
    words.iter().any(|word| said.contains(word))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use buildkit::RegistryFailure;
    use hickory_proto::op::ResponseCode;

    use super::*;
    use crate::dns::Trouble;

    const EXIT: FailureKind = FailureKind::Exit { code: 6, out_of_memory: false };

    fn unresolved(host: &str) -> Arc<Unresolved> {
        let tried = vec![("10.0.0.2:53".parse().unwrap(), Trouble::Silent)];
        Arc::new(Unresolved { host: host.into(), tried })
    }

    fn step(last_line: &str) -> BuildError {
        let mut error = BuildError::new(FailureClass::UserError, "process did not complete: exit code: 6");
        error.log_tail = vec!["fetching".into(), last_line.into()];
        error
    }

    fn registry(status: RegistryStatus) -> FailureKind {
        FailureKind::Registry(RegistryFailure { status, host: None })
    }

    #[test]
    fn a_step_that_failed_for_want_of_a_name_server_is_told_as_dns() {
        let all = [unresolved("other.example"), unresolved("deb.example")];
        for line in [
            "curl: (6) Could not resolve host: deb.example",
            "Err:1 http://deb.example stable InRelease  Temporary failure resolving 'deb.example'",
            "npm error getaddrinfo EAI_AGAIN deb.example",
            "wget: bad address 'deb.example'",
            "** server can't find deb.example: SERVFAIL",
            "dial tcp: lookup deb.example on 10.64.3.2:53: server misbehaving",
            "WARNING: fetching https://deb.example/main: DNS: transient error (try again later)",
        ] {
            let told = names(step(line), &EXIT, &all);
            assert_eq!(told.class, FailureClass::Transient, "{line}");
            assert_eq!(
                told.message,
                "DNS: deb.example could not be resolved: name server 10.0.0.2:53 did not answer; \
                 process did not complete: exit code: 6"
            );
        }
    }

    #[test]
    fn hosts_are_found_in_the_ways_that_tools_have_of_naming_them() {
        let all = [unresolved("deb.example"), unresolved("db")];
        for line in [
            "E: Could not resolve 'deb.example'",
            "Failed to resolve 'deb.example' ([Errno -2] Name or service not known)",
            "wget: unable to resolve host address ‘deb.example’",
            "java.net.UnknownHostException: deb.example",
            "ssh: Could not resolve hostname deb.example: Temporary failure in name resolution",
            "nothing at https://deb.example:8443/x: lookup deb.example.: server misbehaving",
            "dotnet: Name or service not known (deb.example:443)",
            "could not translate: getaddrinfo EAI_AGAIN 'db'",
        ] {
            assert_eq!(names(step(line), &EXIT, &all).class, FailureClass::Transient, "{line}");
        }
    }

    #[test]
    fn words_that_are_no_hosts_and_lines_that_are_not_of_dns_leave_the_error_the_users() {
        let all = ["npm", "example.com", "a.example", ".", "react"].map(unresolved);
        for line in [
            "npm error ERESOLVE unable to resolve dependency tree",
            "npm error Could not resolve dependency: peer react@17 from https://example.com/left-pad",
            "curl: (6) Could not resolve host: my.example.com",
            "curl: (6) Could not resolve host: myexample.com",
            "curl: (6) Could not resolve host: example.com.internal",
            "curl: (6) Could not resolve host: x-a.example",
            "X509v3 Subject Alternative Name: DNS:example.com",
            "Resolving deltas: 100% (7/7), done.",
            "error: cannot resolve symbol npm",
            "getaddrinfo ENOTFOUND npm",
        ] {
            assert_eq!(names(step(line), &EXIT, &all), step(line), "{line}");
        }
        let mut apart = step("Could not resolve host: typo.example");
        apart.log_tail.push("Get https://example.com/: 500 Internal Server Error".into());
        assert_eq!(names(apart.clone(), &EXIT, &all), apart, "the host is on another line");
    }

    #[test]
    fn other_builds_names_are_not_told_and_do_not_change_the_class() {
        let silent = [unresolved("secret.one.internal"), unresolved("secret.two.internal")];
        let line = "[Errno -3] Temporary failure in name resolution";
        let told = names(step(line), &EXIT, &silent);
        assert_eq!(told.class, FailureClass::Transient, "no name server says anything");
        assert_eq!(
            told.message,
            "DNS: a name could not be resolved: name server 10.0.0.2:53 did not answer; \
             process did not complete: exit code: 6"
        );
        let said = Trouble::Said(ResponseCode::ServFail);
        let tried = vec![("10.0.0.2:53".parse().unwrap(), said)];
        let one_zone = Arc::new(Unresolved { host: "secret.one.internal".into(), tried });
        let told = names(step(line), &EXIT, &[silent[1].clone(), one_zone]);
        assert_eq!(told.class, FailureClass::UserError, "others may have been told their names");
        assert!(
            told.message.starts_with("DNS: a name could not be resolved: name server 10.0.0.2:53 answered"),
            "{told}"
        );
        assert!(!told.message.contains("secret"), "{told}");
    }

    #[test]
    fn a_name_that_does_not_exist_stays_the_users() {
        let all = [unresolved("other.example")];
        for line in ["curl: (6) Could not resolve host: typo.example", "make: *** [all] Error 2"] {
            assert_eq!(names(step(line), &EXIT, &all), step(line));
        }
        let line = "downloading from other.example: 500 Internal Server Error";
        assert_eq!(names(step(line), &EXIT, &all), step(line), "it was resolved in the end");
        assert_eq!(names(step("Temporary failure in name resolution"), &EXIT, &[]).class, FailureClass::UserError);
        let killed = FailureKind::Exit { code: 137, out_of_memory: true };
        let line = "Temporary failure in name resolution";
        assert_eq!(names(step(line), &killed, &all), step(line));
    }

    #[test]
    fn a_registry_without_an_address_is_told_as_dns() {
        let words = "failed to do request: Head \"https://r.example/v2/\": dial tcp: lookup r.example: no such host";
        let error = || BuildError::new(FailureClass::Transient, words);
        let told = names(error(), &registry(RegistryStatus::Dns), &[]);
        assert_eq!(told.message, format!("DNS: {words}"));
        let told = names(error(), &registry(RegistryStatus::Dns), &[unresolved("r.example")]);
        assert!(told.message.starts_with("DNS: r.example could not be resolved: name server 10.0.0.2:53"), "{told}");
        assert_eq!(names(error(), &registry(RegistryStatus::Server(500)), &[unresolved("r.example")]), error());
        assert!(named("error sending request: dns error: no".into()).starts_with("DNS: "));
        assert_eq!(named("connection refused".into()), "connection refused");
    }

    #[test]
    fn a_wrong_clock_is_the_cells_fault_and_keeps_the_words() {
        let skew = Skew { seconds: 3600.0, by: "ntp.example".into(), limit: Duration::from_secs(60) };
        let error = BuildError::new(FailureClass::UserError, "x509: certificate has expired or is not yet valid");
        assert!(may_be_the_clock(&error) && may_be_the_clock(&step("Release file for … is not valid yet")));
        assert!(!may_be_the_clock(&step("make: *** [all] Error 2")));
        let told = clock(error, &skew);
        assert_eq!(told.class, FailureClass::CellFault);
        assert!(told.message.contains("3600.0 s behind") && told.message.ends_with("not yet valid"), "{told}");
    }
}
