//! What the daemon says and asks in headers: an error carries the Dockerfile, a request for files their paths and patterns.

use crate::harness::{BASE, Context, Daemon, output, run, solve};
use buildkit::{FailureKind, SolveError};

/// Builds each Dockerfile, after [`BASE`], on one daemon; returns the errors with what the steps printed.
async fn failures(context: &Context, dockerfiles: impl IntoIterator<Item = String>) -> Vec<(SolveError, String)> {
    let daemon = Daemon::start();
    let mut failures = Vec::new();
    for dockerfile in dockerfiles {
        context.write("Dockerfile", format!("{BASE}{dockerfile}"));
        let session = daemon.client().await.session();
        let session = session.dir("context", context.source()).dir("dockerfile", context.source());
        let (solved, updates) = run(&session.open().await.unwrap(), solve()).await;
        failures.push((solved.expect_err(&dockerfile[..dockerfile.len().min(80)]), output(&updates)));
    }
    failures
}

/// Lines of a comment, of so many bytes in all.
fn comment(bytes: usize) -> String {
    "# This line says nothing and is as long as others are in a Dockerfile.\n".repeat(bytes / 71 + 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_step_of_a_large_dockerfile_is_told_as_any_other() {
    let context = Context::new("");
    let sizes = [12 << 10, 200 << 10, 1_300_000];
    let dockerfiles = sizes.map(|size| format!("{}RUN echo last words; exit 7\n", comment(size)));
    for ((error, output), size) in failures(&context, dockerfiles).await.into_iter().zip(sizes) {
        assert_eq!(error.kind, FailureKind::Exit { code: 7, out_of_memory: false }, "{size}: {error}");
        assert!(error.vertex.unwrap().name.unwrap().ends_with("RUN echo last words; exit 7"));
        assert!(error.sources.last().unwrap().text.contains(">>> RUN echo last words; exit 7"));
        assert!(output.contains("last words"), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_in_a_large_dockerfile_are_the_definitions() {
    let context = Context::new("");
    let large = comment(200 << 10);
    let dockerfiles = [
        format!("{large}RUNN true\n"),
        format!("{large}COPY nope /\n"),
        format!("RUN true {}\n", "x".repeat(70 << 10)),
        format!("RUN true {}\n", "x \\\n".repeat(75 << 10)),
    ];
    for (error, _) in failures(&context, dockerfiles).await {
        assert!(error.kind.is_user_error(), "{:?}: {:.300}", error.kind, error.message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_paths_and_patterns_are_asked_for() {
    let context = Context::new("");
    let ignored: String =
        (0..300).map(|n| format!("generated/some/longer/path/of/a/build/number-{n:03}/*\n")).collect();
    let names: Vec<String> =
        (0..250).map(|n| format!("sources/a/path/that/is/not/short/at/all/file-{n:03}.txt")).collect();
    let copies: String = names.chunks(10).map(|names| format!("COPY {} /files/\n", names.join(" "))).collect();
    for name in &names {
        context.write(name, name);
    }
    context.write(".dockerignore", &ignored).write("generated/some/longer/path/of/a/build/number-007/x", "x");
    let count =
        "COPY . /all/\nRUN ls /files | wc -l; ls /all/generated/some/longer/path/of/a/build/number-007 | wc -l\n";
    let count = count.replace("ls ", "/bin/busybox ls ").replace("wc ", "/bin/busybox wc ");
    context.write("Dockerfile", format!("{BASE}{copies}{count}"));
    let daemon = Daemon::start();
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let (solved, updates) = run(&session.open().await.unwrap(), solve()).await;
    solved.unwrap();
    assert_eq!(output(&updates).split_whitespace().collect::<Vec<_>>(), ["250", "0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_pattern_is_the_definitions_fault_and_is_named() {
    let context = Context::new("");
    context.write("in/a.conf", "a").write("in/weird", "a");
    let patterns = ["[in/*.conf", "in/we[ird"];
    let dockerfiles = patterns.map(|pattern| format!("COPY {pattern} /x\n"));
    for ((error, _), pattern) in failures(&context, dockerfiles).await.into_iter().zip(patterns) {
        assert_eq!(error.kind, FailureKind::Definition, "{error}");
        assert!(error.message.contains(pattern), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_no_header_can_carry_is_the_definitions_fault() {
    let context = Context::new("");
    context.write("in/a\tb", "a").write("in/a\nb", "a");
    let dockerfiles = ["COPY [\"in/a\\tb\", \"/x\"]\n", "COPY [\"in/a\\nb\", \"/x\"]\n"].map(str::to_owned);
    for (error, _) in failures(&context, dockerfiles).await {
        assert_eq!(error.kind, FailureKind::Definition, "{error}");
    }
    context.write(".dockerignore", "a\tb\n");
    let (error, _) = failures(&context, ["COPY . /x\n".to_owned()]).await.remove(0);
    assert_eq!(error.kind, FailureKind::Definition, "{error}");
}
