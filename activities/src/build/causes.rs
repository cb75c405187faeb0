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
/// Words for a name without an address, whatever the reason.
const UNRESOLVED: [&str; 11] = [
    "dns:",
    "can't find",
    "resolv",
    "lookup ",
    "getaddrinfo",
    "enotfound",
    "bad address",
    "unknown host",
    "no such host",
    "name resolution",
    "name or service not known",
];
/// Words for what a wrong clock looks like: TLS, object storage, package lists.
const OF_TIME: [&str; 6] =
    ["certificate", "x509: ", "not yet valid", "not valid yet", "requesttimetooskewed", "signature expired"];

/// Says first that it was DNS, where it was. `unresolved` is what nobody had an answer to while this was solved: a step that failed for
/// such a name did so for no fault of the user's, and may be tried again.
pub(super) fn names(mut told: BuildError, kind: &FailureKind, unresolved: &[Arc<Unresolved>]) -> BuildError {
    let registry = matches!(kind, FailureKind::Registry(failure) if failure.status == RegistryStatus::Dns);
    let step = matches!(kind, FailureKind::Exit { out_of_memory: false, .. });
    if !registry && !step {
        return told;
    }
    let said = words(&told);
    let cause = match unresolved.iter().find(|unresolved| said.contains(&unresolved.host)) {
        Some(named) if registry || has(&said, &UNRESOLVED) || has(&said, &FAILED_FOR_NOW) => Some(named),
        // Nobody names it, but it is the kind of failure that only a name server has.
        _ => unresolved.first().filter(|_| has(&said, &FAILED_FOR_NOW)),
    };
    match cause {
        Some(cause) => {
            told.class = FailureClass::Transient;
            told.message = format!("DNS: {cause}; {}", told.message);
        }
        None if registry => told.message = format!("DNS: {}", told.message),
        None => {}
    }
    told
}

/// The same for what this process itself could not reach.
pub(super) fn named(message: String) -> String {
    // The HTTP client's words for it.
    if message.contains("dns error") { format!("DNS: {message}") } else { message }
}

/// A cell that builds with such a clock fails everybody's builds: another one is to be asked, and this one is reported.
pub(super) fn wrong_clock(skew: &Skew) -> BuildError {
    BuildError::new(FailureClass::CellFault, skew.to_string())
}

/// Whether a wrong clock would look like this.
pub(super) fn may_be_the_clock(error: &BuildError) -> bool {
    has(&words(error), &OF_TIME)
}

/// The failure of a cell whose clock was off meanwhile.
pub(super) fn clock(mut error: BuildError, skew: &Skew) -> BuildError {
    error.class = FailureClass::CellFault;
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
        let nameless = names(step("[Errno -3] Temporary failure in name resolution"), &EXIT, &all[..1]);
        assert!(nameless.message.starts_with("DNS: other.example could not be resolved"), "{nameless}");
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
        assert_eq!(wrong_clock(&skew).class, FailureClass::CellFault);
    }
}
