//! The wrapper that buildkitd runs as its runc: it puts the cell's limits into the step's bundle and becomes the real runc, in a cgroup of
//! its own beside buildkitd's. Of a step whose cgroup buildkitd keeps for its own figures it waits for the end, and says in the step's own
//! output when memory was why.
//!
//! Whatever a client asked for (its `cgroup-parent` comes through BuildKit as it is), a step runs below the builds slice, is the first to
//! go when memory is short (it would inherit the daemons' protection), and has limits. A bundle that is not understood is refused.
//!
//! The same code does it on a plain machine that is one cell (`deploy/systemd/step-limits.conf`), where systemd has the slices elsewhere,
//! and in a cell of processes, where the rules lie beside the wrapper and the machine may have cgroups of version 1.

use std::ffi::{OsString, c_int};
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::cgroups;
use crate::json::{Malformed, Value};
use crate::numbers::number_behind;
use crate::settings::StepLimits;
use crate::sys::{self, Ended};

/// The name by which buildkitd calls the wrapper.
pub const NAME: &str = "runc";
/// The file of rules that lies beside the wrapper, in a cell of processes.
pub const RULES_FILE: &str = "step-limits.conf";
/// The real runc, where it lies beside the wrapper too.
pub const REAL: &str = "runc-real";
const RUNC: &str = "/usr/bin/runc";
/// Written by PID 1 at a guest's start, and by whoever sets up a plain machine.
const LIMITS: [&str; 2] = ["/run/kiln-step-limits", "/etc/kiln/step-limits.conf"];
/// What buildkitd tells runc's monitor; it would reach the step.
const PASSED_ON: [c_int; 8] = [
    libc::SIGCHLD,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

#[derive(Debug)]
enum Refusal {
    File(PathBuf, io::Error),
    Json(PathBuf, Malformed),
    /// What a bundle lacks or has wrong.
    Bundle(&'static str),
    Limits(PathBuf),
}

/// What all steps of the machine have in common.
#[derive(Debug, PartialEq, Eq)]
struct Rules {
    limits: StepLimits,
    /// The builds slice, below the root of all cgroups.
    builds: String,
    /// The real one.
    runc: PathBuf,
    controllers: Controllers,
}

/// What the kernel can limit by cgroup on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controllers {
    /// One hierarchy (cgroup v2); otherwise one for each controller.
    pub unified: bool,
    pub memory: bool,
    /// Swap is counted by cgroup.
    pub swap: bool,
    pub pids: bool,
    pub cpu: bool,
}

impl Controllers {
    /// Those of the machine, for cgroups below this one (`kiln-builds.slice`), which need not be there yet.
    pub fn of_machine(builds: &str) -> Self {
        Self::below(Path::new(cgroups::ROOT), builds)
    }

    fn below(root: &Path, builds: &str) -> Self {
        let Ok(listed) = fs::read_to_string(root.join("cgroup.controllers")) else {
            let has = |file: &str| root.join(file).exists();
            return Self {
                unified: false,
                memory: has("memory/memory.limit_in_bytes"),
                swap: has("memory/memory.memsw.limit_in_bytes"),
                pids: has("pids/cgroup.procs"),
                cpu: has("cpu/cpu.shares"),
            };
        };
        let has = |name: &str| listed.split_whitespace().any(|controller| controller == name);
        let swap = root.join(builds).join("memory.swap.max").exists();
        Self { unified: true, memory: has("memory"), swap, pids: has("pids"), cpu: has("cpu") }
    }

    /// The limits that steps cannot have here.
    pub fn missing(&self) -> Vec<&'static str> {
        let Self { memory, swap, pids, cpu, .. } = *self;
        let all = [("memory", memory), ("swap", swap), ("processes", pids), ("cpu weight", cpu)];
        all.into_iter().filter(|(_, has)| !has).map(|(name, _)| name).collect()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Json(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Bundle(what) => write!(f, "the step's configuration has no usable {what}"),
            Self::Limits(file) => write!(
                f,
                "{} is not understood: it has to have memory in bytes or 'max', processes, weight, OOM score, and the builds slice \
                 where that is not at the top",
                file.display()
            ),
        }
    }
}

/// Keeps the limits where the wrapper finds them.
pub fn write_limits(limits: &StepLimits) -> io::Result<()> {
    fs::write(LIMITS[0], format!("{}\n", text_of(limits)))
}

/// The rules of a cell of processes, as the wrapper in the same directory reads them.
pub fn rules_of(limits: &StepLimits, builds: &str) -> String {
    format!("{} {builds}\n", text_of(limits))
}

fn text_of(limits: &StepLimits) -> String {
    let memory = limits.memory.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
    format!("{memory} {} {} {}", limits.pids, limits.weight, limits.oom_score)
}

/// `#` begins a comment, to the line's end.
fn parse_rules(text: &str) -> Option<Rules> {
    let mut words = text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let memory = match words.next()? {
        "max" => None,
        bytes => Some(bytes.parse().ok()?),
    };
    let mut number = || words.next()?.parse::<u64>().ok();
    let (pids, weight) = (number()?, number()?);
    let limits = StepLimits { memory, pids, weight, oom_score: words.next()?.parse().ok()? };
    let builds = words.next().unwrap_or(cgroups::BUILDS).trim_matches('/').to_owned();
    let controllers = Controllers::of_machine(&builds);
    Some(Rules { limits, builds, runc: RUNC.into(), controllers })
}

/// The first of these files that is there counts: that beside the wrapper, a guest's, a plain machine's.
fn read_rules(wrapper: &Path) -> Result<Rules, Refusal> {
    let [guest, plain] = LIMITS.map(PathBuf::from);
    let file = [wrapper.with_file_name(RULES_FILE), guest].into_iter().find(|file| file.exists()).unwrap_or(plain);
    let text = fs::read_to_string(&file).map_err(|error| Refusal::File(file.clone(), error))?;
    let rules = parse_rules(&text).ok_or(Refusal::Limits(file))?;
    let beside = wrapper.with_file_name(REAL);
    Ok(if beside.exists() { Rules { runc: beside, ..rules } } else { rules })
}

/// With the real runc's end; becomes it where there is nothing to wait for. `wrapper` is the path by which it was called.
pub fn run(wrapper: &Path, args: Vec<OsString>) -> ExitCode {
    let prepared = read_rules(wrapper).and_then(|rules| prepare(&args, &rules).map(|cgroup| (cgroup, rules.runc)));
    let (cgroup, real) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            eprintln!("kiln's runc wrapper: {refusal}");
            return ExitCode::FAILURE;
        }
    };
    // A step that starts among the daemons is better than none.
    let _ = fs::write(cgroups::procs_of(cgroups::RUNC), "0");
    let mut runc = Command::new(&real);
    runc.args(args);
    let error = match cgroup {
        None => runc.exec(),
        Some(cgroup) => match see_through(runc, &cgroup) {
            Ok(Ended::Exit(code)) => return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(Ended::Signal(number)) => return ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX)),
            Err(error) => error,
        },
    };
    eprintln!("kiln's runc wrapper: cannot run {}: {error}", real.display());
    ExitCode::FAILURE
}

/// Waits for a step's end. Whoever signals the wrapper means runc.
fn see_through(mut runc: Command, cgroup: &Path) -> io::Result<Ended> {
    const LONG: Duration = Duration::from_secs(60);
    let signals = sys::signals(&PASSED_ON)?;
    // SAFETY: calls of the kernel between fork and exec. What is blocked here would be blocked in the step.
    unsafe { runc.pre_exec(|| sys::die_with_parent().and_then(|()| sys::unblock_signals())) };
    let child = c_int::try_from(runc.spawn()?.id()).map_err(io::Error::other)?;
    let ended = loop {
        sys::wait_readable(&[signals.as_raw_fd()], LONG);
        while let Some(signal) = sys::next_signal(&signals) {
            if signal != libc::SIGCHLD {
                // It may have ended meanwhile.
                let _ = sys::kill(child, signal);
            }
        }
        match sys::reap() {
            Some((pid, ended)) if pid == child => break ended,
            _ => {}
        }
    };
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    // …/<builds slice>/buildkit/<step>
    let builds = cgroup.ancestors().nth(2).unwrap_or(cgroup);
    let shared = || fs::read_to_string(builds.join("memory.max"));
    if let Some(why) = out_of_memory(&read("memory.events"), &read("memory.peak"), &read("memory.max")) {
        let shared = shared().ok().and_then(|bytes| mebibytes(&bytes));
        let shared = shared.map_or_else(String::new, |most| format!("; all steps of the cell share {most} MiB"));
        eprintln!("kiln: {why}{shared}");
    }
    Ok(ended)
}

/// What became of a step, by the texts of its cgroup; `None` when nothing of it was killed for want of memory.
fn out_of_memory(events: &str, peak: &str, max: &str) -> Option<String> {
    number_behind(events, "oom_kill ").filter(|kills| *kills > 0)?;
    let peak = mebibytes(peak).map_or_else(String::new, |peak| format!(": it used {peak} MiB at most"));
    let limit =
        mebibytes(max).map_or_else(|| "it has no limit of its own".into(), |limit| format!("its limit is {limit} MiB"));
    Some(format!("this step was killed as it was out of memory{peak}, {limit}"))
}

/// `None` of what is no number: `max`.
fn mebibytes(bytes: &str) -> Option<u64> {
    bytes.trim().parse::<u64>().ok().map(|bytes| bytes >> 20)
}

/// Puts the limits where runc reads them. Gives the cgroup of a step that is to be seen through to its end.
fn prepare(args: &[OsString], rules: &Rules) -> Result<Option<PathBuf>, Refusal> {
    let Some((command, rest)) = subcommand(args) else { return Ok(None) };
    let bundle = || option(rest, &["--bundle", "-b"]).unwrap_or_default().join("config.json");
    match command {
        "run" => {
            let cgroup = change(&bundle(), rules, limit_bundle)?;
            // Without it the cgroup is gone with the step, and what it would say.
            let kept = rules.controllers.unified && rest.iter().any(|arg| arg == "--keep");
            Ok(kept.then(|| Path::new(cgroups::ROOT).join(cgroup.trim_start_matches('/'))))
        }
        "create" | "restore" => change(&bundle(), rules, limit_bundle).map(|_| None),
        "exec" => match option(rest, &["--process", "-p"]) {
            Some(file) => change(&file, rules, limit_process).map(|()| None),
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

fn change<T>(file: &Path, rules: &Rules, rewrite: fn(&mut Value, &Rules) -> Result<T, Refusal>) -> Result<T, Refusal> {
    let failed = |error| Refusal::File(file.to_owned(), error);
    let text = fs::read_to_string(file).map_err(failed)?;
    let mut value = Value::parse(&text).map_err(|error| Refusal::Json(file.to_owned(), error))?;
    let found = rewrite(&mut value, rules)?;
    fs::write(file, value.to_string()).map_err(failed)?;
    Ok(found)
}

/// runc's command and what follows it. Global flags that take a value take it as the next argument, unless it is behind a `=`.
fn subcommand(args: &[OsString]) -> Option<(&str, &[OsString])> {
    let mut at = 0;
    while let Some(arg) = args.get(at)?.to_str() {
        if !arg.starts_with('-') {
            return Some((arg, &args[at + 1..]));
        }
        let alone = arg.contains('=') || matches!(arg, "--debug" | "--systemd-cgroup");
        at += if alone { 1 } else { 2 };
    }
    None
}

fn option(args: &[OsString], names: &[&str]) -> Option<PathBuf> {
    for (at, arg) in args.iter().enumerate() {
        let text = arg.to_str().unwrap_or_default();
        if names.contains(&text) {
            return args.get(at + 1).map(PathBuf::from);
        }
        if let Some((name, value)) = text.split_once('=')
            && names.contains(&name)
        {
            return Some(value.into());
        }
    }
    None
}

/// A whole bundle: its cgroup, its limits, its first process. Gives the cgroup's path below the root of all.
fn limit_bundle(spec: &mut Value, rules: &Rules) -> Result<String, Refusal> {
    let limits = &rules.limits;
    let process = spec.member("process").ok_or(Refusal::Bundle("process"))?;
    limit_process(process, rules)?;
    let linux = spec.member("linux").ok_or(Refusal::Bundle("linux section"))?;
    let path = linux.member("cgroupsPath").ok_or(Refusal::Bundle("cgroupsPath"))?;
    let own = own_path(path.as_plain_text().unwrap_or_default(), &rules.builds)?;
    *path = Value::text(&own);
    let resources = linux.member("resources").ok_or(Refusal::Bundle("resources"))?;
    let can = rules.controllers;
    if let Some(memory) = limits.memory.filter(|_| can.memory) {
        lower(resources, "memory", memory)?;
    }
    if can.pids {
        lower(resources, "pids", limits.pids)?;
    }
    match can.unified {
        true => limit_unified(resources, rules)?,
        false => limit_split(resources, rules)?,
    }
    Ok(own)
}

/// What runc writes into files of cgroup v2 as it is.
fn limit_unified(resources: &mut Value, Rules { limits, controllers: can, .. }: &Rules) -> Result<(), Refusal> {
    let unified = resources.member("unified").ok_or(Refusal::Bundle("resources"))?;
    // A step that is out of memory ends as a whole: what survives its largest process is no use to anybody.
    let weight = can.cpu.then(|| ("cpu.weight", limits.weight.to_string()));
    let whole = can.memory.then(|| ("memory.oom.group", "1".to_owned()));
    // Without this one the limit of memory would be none where there is swap.
    let swap = limits.memory.filter(|_| can.swap).map(|most| ("memory.swap.max", most.to_string()));
    for (file, value) in [weight, whole, swap].into_iter().flatten() {
        *unified.member(file).ok_or(Refusal::Bundle("resources"))? = Value::text(&value);
    }
    Ok(())
}

/// The same with cgroup v1, whose limit of swap is one of memory and swap together, and whose weight is a share of 1024.
fn limit_split(resources: &mut Value, Rules { limits, controllers: can, .. }: &Rules) -> Result<(), Refusal> {
    let mut set = |kind, name, value: u64| {
        let member = resources.member(kind).and_then(|kind| kind.member(name)).ok_or(Refusal::Bundle(kind))?;
        *member = Value::number(value);
        Ok(())
    };
    if can.cpu {
        set("cpu", "shares", (limits.weight * 1024 / 100).max(2))?;
    }
    match limits.memory {
        Some(memory) if can.memory && can.swap => set("memory", "swap", memory.saturating_mul(2)),
        _ => Ok(()),
    }
}

fn limit_process(process: &mut Value, rules: &Rules) -> Result<(), Refusal> {
    *process.member("oomScoreAdj").ok_or(Refusal::Bundle("process"))? = Value::number(rules.limits.oom_score);
    Ok(())
}

/// Sets a limit unless the client asked for a lower one.
fn lower(resources: &mut Value, kind: &'static str, most: u64) -> Result<(), Refusal> {
    let limit = resources.member(kind).and_then(|kind| kind.member("limit")).ok_or(Refusal::Bundle(kind))?;
    let asked = limit.as_number().and_then(|asked| u64::try_from(asked).ok()).filter(|asked| *asked > 0);
    *limit = Value::number(asked.map_or(most, |asked| asked.min(most)));
    Ok(())
}

/// The step's place below the builds slice; of what BuildKit says only the step's own name counts.
fn own_path(asked: &str, builds: &str) -> Result<String, Refusal> {
    let name = asked.rsplit('/').next().unwrap_or_default();
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.is_empty() || !name.bytes().all(harmless) {
        return Err(Refusal::Bundle("cgroupsPath"));
    }
    Ok(format!("/{builds}/buildkit/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITED: StepLimits = StepLimits { memory: Some(1000), pids: 50, weight: 100, oom_score: 500 };

    const ALL: Controllers = Controllers { unified: true, memory: true, swap: true, pids: true, cpu: true };

    fn rules(controllers: Controllers) -> Rules {
        Rules { limits: LIMITED, builds: "kiln-builds.slice".into(), runc: RUNC.into(), controllers }
    }

    fn limited(spec: &str) -> Result<String, Refusal> {
        let mut spec = Value::parse(spec).unwrap();
        let cgroup = limit_bundle(&mut spec, &rules(ALL))?;
        assert!(cgroup.starts_with("/kiln-builds.slice/buildkit/"), "{cgroup}");
        Ok(spec.to_string())
    }

    #[test]
    fn a_bundle_gets_the_cells_limits() {
        let spec =
            r#"{"process":{"args":["sh"]},"linux":{"cgroupsPath":"/kiln-daemons.slice/buildkit/abc1","seccomp":{}}}"#;
        assert_eq!(
            limited(spec).unwrap(),
            r#"{"process":{"args":["sh"],"oomScoreAdj":500},"linux":{"cgroupsPath":"/kiln-builds.slice/buildkit/abc1","seccomp":{},"resources":{"memory":{"limit":1000},"pids":{"limit":50},"unified":{"cpu.weight":"100","memory.oom.group":"1","memory.swap.max":"1000"}}}}"#
        );
    }

    #[test]
    fn with_cgroups_of_version_1_a_bundle_gets_the_same_limits() {
        let spec = r#"{"process":{},"linux":{"cgroupsPath":"/x/abc1","resources":{}}}"#;
        let limited = |controllers| {
            let mut spec = Value::parse(spec).unwrap();
            limit_bundle(&mut spec, &rules(controllers)).unwrap();
            spec.to_string()
        };
        let all = limited(Controllers { unified: false, ..ALL });
        let expected = r#""resources":{"memory":{"limit":1000,"swap":2000},"pids":{"limit":50},"cpu":{"shares":1024}}"#;
        assert!(all.contains(expected), "{all}");
        // runc refuses a step with a limit that its hierarchy does not have.
        let none = limited(Controllers { unified: false, memory: false, swap: false, pids: false, cpu: false });
        assert!(none.contains(r#""resources":{}"#), "{none}");
    }

    #[test]
    fn what_cannot_be_limited_is_told() {
        let machine = |files: &[(&str, &str)]| {
            let root = std::env::temp_dir().join(format!("kiln-cgroups-{}-{}", std::process::id(), files.len()));
            for (file, text) in files {
                let file = root.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            let found = Controllers::below(&root, "b");
            let _ = fs::remove_dir_all(root);
            found
        };
        let split = machine(&[("memory/memory.limit_in_bytes", ""), ("pids/cgroup.procs", "")]);
        assert!(!split.unified);
        assert_eq!(split.missing(), ["swap", "cpu weight"]);
        let unified =
            machine(&[("cgroup.controllers", "cpuset cpu io memory pids"), ("b/memory.swap.max", ""), ("x", "")]);
        assert_eq!(unified, ALL);
        assert_eq!(machine(&[]).missing().len(), 4);
    }

    #[test]
    fn a_client_may_ask_for_less_but_not_for_more() {
        let spec = |memory: i64| {
            format!(
                r#"{{"process":{{"oomScoreAdj":-900}},"linux":{{"cgroupsPath":"/x/y","resources":{{"memory":{{"limit":{memory}}}}}}}}}"#
            )
        };
        assert!(limited(&spec(10)).unwrap().contains(r#""memory":{"limit":10}"#));
        for asked in [2000, 0, -1] {
            let spec = limited(&spec(asked)).unwrap();
            assert!(spec.contains(r#""memory":{"limit":1000}"#) && spec.contains(r#""oomScoreAdj":500"#), "{spec}");
        }
    }

    #[test]
    fn a_bundle_without_a_name_for_its_cgroup_is_refused() {
        for path in [r#""""#, r#""/a/..""#, r#""/a/b\u002f..""#, "7", r#""/a/b c""#] {
            let spec = format!(r#"{{"process":{{}},"linux":{{"cgroupsPath":{path}}}}}"#);
            assert!(matches!(limited(&spec), Err(Refusal::Bundle("cgroupsPath"))), "{path}");
        }
        assert!(limited(r#"{"process":{},"linux":7}"#).is_err());
    }

    #[test]
    fn the_command_is_found_behind_global_flags() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let found = |line: &str| {
            let args = args(line);
            let (command, rest) = subcommand(&args)?;
            Some((command.to_owned(), option(rest, &["--bundle", "-b"])))
        };
        let bundle = |path: &str| Some(PathBuf::from(path));
        assert_eq!(found("--log /l --log-format json run --bundle /b id"), Some(("run".into(), bundle("/b"))));
        assert_eq!(found("--debug --root=/r --log run create --bundle=/c id"), Some(("create".into(), bundle("/c"))));
        assert_eq!(found("--log /l kill id 9"), Some(("kill".into(), None)));
        assert_eq!(found("--version"), None);
    }

    #[test]
    fn a_step_that_was_out_of_memory_is_told_with_limit_and_peak() {
        let killed = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 1\n";
        let told = out_of_memory(killed, "167772160\n", "167772160\n").unwrap();
        assert_eq!(told, "this step was killed as it was out of memory: it used 160 MiB at most, its limit is 160 MiB");
        let told = out_of_memory(killed, "", "max\n").unwrap();
        assert_eq!(told, "this step was killed as it was out of memory, it has no limit of its own");
        assert_eq!(out_of_memory("oom 0\noom_kill 0\n", "5", "9"), None);
        assert_eq!(out_of_memory("", "", ""), None, "its cgroup is gone");
    }

    #[test]
    fn limits_survive_their_file() {
        let parsed = |text: &str| parse_rules(text).map(|rules| (rules.limits, rules.builds));
        let expected = |limits, builds: &str| Some((limits, builds.to_owned()));
        assert_eq!(parsed("1000 50 100 500\n"), expected(LIMITED, "kiln-builds.slice"));
        let unlimited = StepLimits { memory: None, ..LIMITED };
        assert_eq!(parsed("max 50 100 500\n"), expected(unlimited.clone(), "kiln-builds.slice"));
        assert_eq!(parsed("max 50 100"), None);
        let own = rules_of(&unlimited, "/kiln-0a");
        assert_eq!(parsed(&own), expected(unlimited, "kiln-0a"));
    }

    #[test]
    fn a_plain_machines_steps_are_put_into_systemds_slice() {
        let rules = parse_rules(include_str!("../../deploy/systemd/step-limits.conf")).unwrap();
        assert_eq!(rules.builds, "kiln.slice/kiln-builds.slice");
        let mut spec = Value::parse(r#"{"process":{},"linux":{"cgroupsPath":"/system.slice/s1"}}"#).unwrap();
        assert_eq!(limit_bundle(&mut spec, &rules).unwrap(), "/kiln.slice/kiln-builds.slice/buildkit/s1");
    }
}
