//! Layers, origins, rules.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use activities::temporal::ClientConfig;

use super::resolve::resolve_from;
use super::*;

/// Resolves with one usual file, these variables and flags.
fn resolved(file: Option<&Path>, variables: &[(&str, &str)], overrides: Overrides) -> Result<Resolved, SettingsError> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    let usual: Vec<PathBuf> = file.map(Path::to_owned).into_iter().collect();
    resolve_from(&overrides, &usual, |name| variables.get(name).map(|value| (*value).to_owned()), |_| (None, None))
}

fn flag(key: &str, value: &str) -> Overrides {
    Overrides { flags: vec![("--set".into(), key.into(), value.into())], ..Overrides::default() }
}

fn written(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn later_layers_win_key_by_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(
        directory.path(),
        "kiln.toml",
        "[cell]\nid = \"c1\"\nslots = 2\npool = \"file\"\n[registry]\nplain_http = [\"a:1\"]\n",
    );
    let variables = [("KILN_CELL_SLOTS", "3"), ("KILN_CELL_POOL", "variable"), ("KILN_S3_BUCKET", "")];
    let resolved = resolved(Some(&file), &variables, flag("cell.pool", "flag")).unwrap();
    let cell = &resolved.settings.cell;
    assert_eq!((cell.id.as_str(), cell.slots, cell.pool.as_str()), ("c1", 3, "flag"));
    assert_eq!(resolved.settings.registry.plain_http, ["a:1"]);
    let origin = |key| resolved.layers.origin(key).to_string();
    let file = file.display().to_string();
    assert_eq!(
        ["cell.platform", "cell.id", "cell.slots", "cell.pool", "s3.bucket"].map(origin),
        ["default", &file, "KILN_CELL_SLOTS", "--set", "default"]
    );
}

#[test]
fn every_value_has_a_variable() {
    let variables = [
        ("KILN_CELL_FILE_CACHE_CAP", "7"),
        ("KILN_API_CREATE_PROJECTS", "true"),
        ("KILN_REGISTRY_PLAIN_HTTP", "a:1, b:2,"),
        ("KILN_API_TOKEN", "t"),
    ];
    let settings = resolved(None, &variables, Overrides::default()).unwrap().settings;
    assert_eq!((settings.cell.file_cache_cap, settings.api.create_projects), (7, true));
    assert_eq!(settings.registry.plain_http, ["a:1", "b:2"]);
    assert_eq!(settings.api.token.reveal(), "t");
}

#[test]
fn a_section_within_a_section_is_set_key_by_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(directory.path(), "kiln.toml", "[cell.clocks]\nlost_after_ms = 700\nroll_ms = 800\n");
    let variables = [("KILN_CELL_CLOCKS_ROLL_MS", "900")];
    let clocks = resolved(Some(&file), &variables, flag("cell.clocks.retry_ms", "70")).unwrap().settings.cell.clocks;
    let expected = CellClocks { lost_after_ms: 700, roll_ms: 900, retry_ms: 70, ..CellClocks::default() };
    assert_eq!(clocks, expected);
}

#[test]
fn every_problem_is_told_with_its_origin() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(
        directory.path(),
        "kiln.toml",
        "[cell]\nslot = 2\npool = 3\n[sell]\nx = 1\n[registry]\nplain_http = [1]\n",
    );
    let error = resolved(Some(&file), &[("KILN_CELL_SLOTS", "-1")], flag("api.create_projects", "yes")).err().unwrap();
    let path = file.display();
    assert_eq!(
        error.to_string(),
        format!(
            "invalid settings:
  cell.pool = 3 (from {path}): must be a text
  cell.slot (from {path}): there is no such setting; [cell] has buildkit_socket, clocks, clone_of, daemon_reach, dir, \
drain_grace_ms, file_cache_cap, frontends, host, id, platform, pool, project, services_at, slots, steps_reach, stuck_after_s, unlimited
  registry.plain_http = [1] (from {path}): must be a list of texts
  sell.x (from {path}): there is no such setting; the sections are api, attempts, cell, clock, dns, egress, guest, host, logs, registry, s3, \
seal, snapshots, store, telemetry, temporal, tls
  cell.slots = \"-1\" (from KILN_CELL_SLOTS): must be a whole number, 0 or more
  api.create_projects = \"yes\" (from --set): must be true or false"
        )
    );
}

#[test]
fn rules_name_key_value_origin_and_rule() {
    let broken = |key: &str, value: &str| resolved(None, &[], flag(key, value)).err().unwrap().to_string();
    for (key, value, rule) in [
        ("cell.slots", "0", "cell.slots = 0 (from --set): must be from 1 to 1024"),
        ("api.url", "api:80", r#"api.url = "api:80" (from --set): must be a URL, http://… or https://…"#),
        ("temporal.address", "here", r#"temporal.address = "here" (from --set): must be host:port"#),
        (
            "store.url",
            "mysql://canary",
            r#"store.url = "(secret)" (from --set): must be sqlite:///path/kiln.db or postgres://…"#,
        ),
        (
            "attempts.cut_off_after_ms",
            "90000",
            "attempts.cut_off_after_ms = 90000 (from --set): must be below attempts.lost_after_ms (90000)",
        ),
        ("dns.listen", "here:53", r#"dns.listen = "here:53" (from --set): must be address:port"#),
        (
            "dns.upstreams",
            "10.0.0.2, one.example",
            r#"dns.upstreams = ["10.0.0.2", "one.example"] (from --set): one.example must be an IP address or address:port"#,
        ),
        (
            "clock.servers",
            "http://ntp",
            r#"clock.servers = ["http://ntp"] (from --set): http://ntp must be host or host:port"#,
        ),
        ("clock.limit_ms", "0", "clock.limit_ms = 0 (from --set): must be from 100 to 3600000"),
        ("clock.step_ms", "60001", "clock.step_ms = 60001 (from --set): must be at most clock.limit_ms (60000)"),
        ("clock.limit_ms", "499", "clock.step_ms = 500 (from default): must be at most clock.limit_ms (499)"),
        ("telemetry.log_format", "xml", r#"telemetry.log_format = "xml" (from --set): must be text or json"#),
        ("cell.clocks.heartbeat_ms", "1", "cell.clocks.heartbeat_ms = 1 (from --set): must be from 10 to 604800000"),
        (
            "cell.clocks.heart_beat_ms",
            "100",
            "cell.clocks.heart_beat_ms (from --set): there is no such setting; [cell.clocks] has canary_every_ms, canary_patience_ms, \
             heartbeat_ms, host_patience_ms, lost_after_ms, retry_ms, roll_ms, stable_ms, start_patience_ms",
        ),
        ("cell.id", "A", r#"cell.id = "A" (from --set): invalid cell id "A": must match [a-z0-9][a-z0-9-]{0,62}"#),
    ] {
        assert_eq!(broken(key, value), format!("invalid setting {rule}"));
    }
}

#[test]
fn flags_alone_go_over_other_settings() {
    let resolved = resolved(None, &[("KILN_CELL_SLOTS", "3")], flag("attempts.cut_off_after_ms", "80000")).unwrap();
    let mut other = Settings::default();
    (other.cell.slots, other.attempts.cut_off_after_ms) = (7, 1_000);
    let over = resolved.flags_over(&other).unwrap();
    assert_eq!((over.cell.slots, over.attempts.cut_off_after_ms), (7, 80_000));
    other.attempts.lost_after_ms = 70_000;
    let broken = resolved.flags_over(&other).unwrap_err().to_string();
    assert!(
        broken.contains("cut_off_after_ms = 80000 (from --set): must be below attempts.lost_after_ms (70000)"),
        "{broken}"
    );
}

#[test]
fn a_file_that_is_named_must_be_there_and_be_toml() {
    let directory = tempfile::tempdir().unwrap();
    let named = |path: &Path| {
        resolved(None, &[], Overrides { file: Some(path.to_owned()), ..Overrides::default() }).err().unwrap()
    };
    assert!(matches!(named(&directory.path().join("absent.toml")), SettingsError::Read { .. }));
    let broken = written(directory.path(), "broken.toml", "[cell\n");
    assert!(matches!(named(&broken), SettingsError::Parse { .. }));
}

#[test]
fn temporals_client_configuration_says_what_kilns_settings_leave_open() {
    let found = |variables: &[(&str, &str)]| {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let lookup = |name: &str| variables.get(name).map(|value| (*value).to_owned());
        let profile = |config: &ClientConfig| match config {
            ClientConfig::Unused => (None, None),
            ClientConfig::Used { .. } => (Some("cloud:7233".to_owned()), Some("prod".to_owned())),
        };
        let resolved = resolve_from(&Overrides::default(), &[], lookup, profile).unwrap();
        let Temporal { address, namespace, .. } = resolved.settings.temporal;
        (address, namespace, resolved.layers.origin("temporal.address"))
    };
    assert_eq!(found(&[]), ("cloud:7233".into(), "prod".into(), Origin::Temporal));
    let own = found(&[("KILN_TEMPORAL_ADDRESS", "own:1")]);
    assert_eq!(own, ("own:1".into(), "prod".into(), Origin::Variable("KILN_TEMPORAL_ADDRESS".into())));
    let unused = found(&[("KILN_TEMPORAL_CLIENT_CONFIG", "false")]);
    assert_eq!(unused, ("127.0.0.1:7233".into(), "default".into(), Origin::Default));
}

#[test]
fn a_role_does_not_start_with_plaintext_beyond_the_loopback() {
    let file = [("KILN_API_URL", "http://kiln.internal"), ("KILN_TEMPORAL_CLIENT_CONFIG", "false")];
    let error = resolved(None, &file, Overrides::default()).unwrap().check_wires(&[Wire::Api]).unwrap_err();
    let SettingsError::Invalid(problems) = error else { panic!("{error}") };
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].key.as_str(), problems[0].origin.to_string()), ("api.url", "KILN_API_URL".into()));
    assert!(problems[0].rule.contains("tls.allow_plaintext"), "{}", problems[0].rule);
    let allowed = flag("tls.allow_plaintext", "true");
    resolved(None, &file, allowed).unwrap().check_wires(&[Wire::Api]).unwrap();
}

#[test]
fn a_role_says_what_it_needs() {
    let mut resolved = resolved(None, &[("KILN_STORE_URL", "sqlite:///x")], Overrides::default()).unwrap();
    resolved.require("api", &["store.url", "api.url"]).unwrap();
    let error = resolved.require("builder", &["store.url", "cell.id"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"invalid setting cell.id = "" (from default): kiln builder needs it; set it in kiln.toml or KILN_CELL_ID"#
    );
}

#[test]
fn a_kiln_dev_is_found_unless_an_address_or_token_is_set() {
    let directory = tempfile::tempdir().unwrap();
    let ready = written(directory.path(), "ready.json", r#"{"api":"http://127.0.0.1:9","api_token":"dev","cells":[]}"#);
    let beside = |variables: &[(&str, &str)]| {
        let overrides = Overrides { dev_ready: Some(ready.clone()), ..Overrides::default() };
        let resolved = resolved(None, variables, overrides).unwrap();
        let api = resolved.settings.api;
        (api.url, api.token.reveal().to_owned(), resolved.layers.origin("api.url"))
    };
    assert_eq!(beside(&[]), ("http://127.0.0.1:9".into(), "dev".into(), Origin::Dev(ready.clone())));
    let elsewhere = beside(&[("KILN_API_URL", "http://elsewhere:80")]);
    assert_eq!(elsewhere, ("http://elsewhere:80".into(), String::new(), Origin::Variable("KILN_API_URL".into())));
    let other = beside(&[("KILN_API_TOKEN", "own")]);
    assert_eq!(other, ("http://127.0.0.1:7080".into(), "own".into(), Origin::Default));
}

#[test]
fn the_tokens_file_stands_for_the_token_unless_a_later_layer_sets_it() {
    let directory = tempfile::tempdir().unwrap();
    let token = written(directory.path(), "token", " from the file\n");
    let file = written(directory.path(), "kiln.toml", "[api]\ntoken = \"in the settings\"\n");
    let named =
        written(directory.path(), "named.toml", &format!("[api]\ntoken_file = {:?}\n", token.to_str().unwrap()));
    let path = token.to_str().unwrap();
    let flagged = Overrides {
        flags: vec![("--token-file".into(), "api.token_file".into(), path.into())],
        ..Overrides::default()
    };
    let found = |file: &Path, variables: &[(&str, &str)], overrides: &Overrides| {
        let resolved = resolved(Some(file), variables, overrides.clone()).unwrap();
        (resolved.settings.api.token.reveal().to_owned(), resolved.layers.origin("api.token").to_string())
    };
    let variable = [("KILN_API_TOKEN", "of the environment")];
    assert_eq!(found(&file, &[], &flagged), ("from the file".into(), "--token-file".into()));
    assert_eq!(found(&file, &variable, &flagged), ("from the file".into(), "--token-file".into()));
    assert_eq!(found(&named, &[], &Overrides::default()).0, "from the file");
    let over = found(&named, &variable, &Overrides::default());
    assert_eq!(over, ("of the environment".into(), "KILN_API_TOKEN".into()));

    let both = [("KILN_API_TOKEN", "a"), ("KILN_API_TOKEN_FILE", path)];
    let error = resolved(None, &both, Overrides::default()).err().unwrap().to_string();
    assert!(error.contains("set it or api.token, not both"), "{error}");
    let absent = [("KILN_API_TOKEN_FILE", "/no/such/file")];
    assert!(matches!(resolved(None, &absent, Overrides::default()), Err(SettingsError::TokenFile { .. })));
}

#[test]
fn a_login_is_used_for_its_own_address_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logins.json");
    let mut logins = Logins::default();
    logins.set("https://kiln.example/", Secret::new("mine"));
    logins.write(&path).unwrap();
    let found = |variables: &[(&str, &str)]| {
        let overrides = Overrides { logins: Some(path.clone()), ..Overrides::default() };
        let resolved = resolved(None, variables, overrides).unwrap();
        (resolved.settings.api.token.reveal().to_owned(), resolved.layers.origin("api.token"))
    };
    assert_eq!(found(&[("KILN_API_URL", "https://kiln.example")]), ("mine".into(), Origin::Login(path.clone())));
    assert_eq!(found(&[("KILN_API_URL", "https://evil.example")]), (String::new(), Origin::Default));
    assert_eq!(found(&[]), (String::new(), Origin::Default));
    let other = found(&[("KILN_API_URL", "https://kiln.example"), ("KILN_API_TOKEN", "own")]);
    assert_eq!(other, ("own".into(), Origin::Variable("KILN_API_TOKEN".into())));
}

/// Fills every text with a mark and looks where `Debug` shows it: what it hides is what lists must hide.
#[test]
fn what_debug_hides_is_hidden_in_lists() {
    let defaults = Layers::defaults().unwrap();
    // A table has numbers alone, and is set number by number.
    let single = defaults.shown().filter(|(_, value, _)| !value.is_table());
    let keys: Vec<String> = single.map(|(key, _, _)| key.to_owned()).collect();
    let mut layers = Layers::defaults().unwrap();
    keys.iter().for_each(|key| layers.add_text(key, &format!("mark-{key};"), Origin::Default));
    let debug = format!("{:?}", layers.build().unwrap());
    let texts = layers.shown().filter_map(|(key, value, _)| value.as_str().map(|text| (key, text.to_owned())));
    let mut hidden = 0;
    for (key, text) in texts {
        let shown = debug.contains(&format!("mark-{key};"));
        hidden += usize::from(!shown && text == "(secret)");
        let default = !text.starts_with("mark-") && text != "(secret)";
        assert!(
            default || shown == (text != "(secret)"),
            "{key} is {} by Debug",
            if shown { "shown" } else { "hidden" }
        );
    }
    assert_eq!(hidden, 3);
}
