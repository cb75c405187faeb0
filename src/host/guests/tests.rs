//! What guests are made of, and what is refused.

use super::*;

fn microvms(guest: settings::Guest, cells: Vec<PathBuf>) -> Microvms {
    let (vmm, images, places) = (VmmKind::Qemu, Images::default(), std::sync::Mutex::default());
    let (taps, named) = (std::sync::Mutex::default(), ImageDir::new(Path::new("/nowhere")));
    Microvms { settings: guest, vmm, cells, supervisor: None, named, images, places, taps, kvm_runs: OnceCell::new() }
}

fn network() -> cell::GuestNetwork {
    let gateway = [10, 64, 3, 1].into();
    let steps = ([10, 64, 3, 128].into(), 25);
    cell::GuestNetwork { tap: "kiln0".into(), address: [10, 64, 3, 2].into(), gateway, dns: vec![gateway], steps }
}

/// A cell's directory with its builder's settings.
fn home(parent: &Path) -> (PathBuf, Settings) {
    let dir = parent.join("cell-1");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(parent.join("key"), "AGE-SECRET-KEY").unwrap();
    let mut settings = Settings::default();
    settings.cell.id = "cell-1".into();
    settings.cell.drain_grace_ms = 1500;
    settings.registry.address = "127.0.0.1:5000".into();
    settings.seal.identity_file = parent.join("key");
    std::fs::write(dir.join("kiln.toml"), toml::to_string(&settings).unwrap()).unwrap();
    (dir, settings)
}

#[test]
fn the_guests_builder_finds_what_is_elsewhere_in_a_guest() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, _) = home(parent.path());
    let settings = builder_settings(&dir).unwrap();
    let config = microvms(settings::Guest::default(), vec![]).config(&dir, settings, &network()).unwrap();
    assert_eq!(
        (config.id.as_str(), config.buildkitd.plain_http.as_slice()),
        ("cell-1", &["127.0.0.1:5000".into()][..])
    );
    let builder = config.builder.unwrap();
    assert_eq!(builder.drain, Duration::from_secs(3));
    assert_eq!(builder.files["seal.key"], b"AGE-SECRET-KEY");
    let told: Settings = toml::from_str(std::str::from_utf8(&builder.files["kiln.toml"]).unwrap()).unwrap();
    assert_eq!(told.seal.identity_file, Path::new("/run/kiln/seal.key"));
    assert_eq!((told.cell.dir.as_path(), told.cell.services_at.as_str()), (Path::new(CACHE), "10.64.3.1"));
    assert_eq!(told.telemetry.metrics_listen, "10.64.3.2:9464");
    assert!(config.network.forwarder && told.clock.adjust);
    let forwarder = told.forwarder().unwrap();
    assert_eq!((forwarder.listen, forwarder.upstreams), (address("10.64.3.2:53"), vec![address("10.64.3.1:53")]));
}

#[test]
fn floors_and_weights_of_the_settings_reach_the_guest() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, _) = home(parent.path());
    let config = |guest| microvms(guest, vec![]).config(&dir, builder_settings(&dir).unwrap(), &network()).unwrap();
    let set = settings::Guest {
        daemons_memory_mib: 512,
        daemons_cpu_weight: 2000,
        builds_memory_mib: 1024,
        builds_cpu_weight: 70,
        builds_processes: 5000,
        ..settings::Guest::default()
    };
    let slices = config(set).slices;
    assert_eq!((slices.daemons_memory_min, slices.builds_memory_max), (Some(512 << 20), Some(1 << 30)));
    assert_eq!(
        (slices.daemons_cpu_weight, slices.builds_cpu_weight, slices.builds_pids_max),
        (Some(2000), Some(70), Some(5000))
    );
    let left = config(settings::Guest::default()).slices;
    assert!(left.daemons_memory_min.is_none() && left.builds_cpu_weight.is_none(), "the guest's own defaults");
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_cell_may_have_resolvers_of_its_own() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, mut settings) = home(parent.path());
    settings.dns.upstreams = vec!["10.0.0.9".into()];
    let told = builder_config(&dir, settings, &network()).unwrap();
    let told: Settings = toml::from_str(std::str::from_utf8(&told.files["kiln.toml"]).unwrap()).unwrap();
    assert_eq!(told.forwarder().unwrap().upstreams, [address("10.0.0.9:53")]);
}

#[test]
fn a_clone_has_its_main_cells_settings_under_its_own_name() {
    let parent = tempfile::tempdir().unwrap();
    let (main, _) = home(parent.path());
    let clone = parent.path().join("cell-1-b");
    std::fs::create_dir(&clone).unwrap();
    std::fs::write(clone.join("clone-of.json"), r#"{"main":"cell-1","operation":"a"}"#).unwrap();
    let settings = builder_settings(&clone).unwrap();
    assert_eq!((settings.cell.id.as_str(), settings.cell.clone_of.as_str()), ("cell-1-b", "cell-1"));
    assert_eq!(settings.cell.drain_grace_ms, 1500);
    let config = microvms(settings::Guest::default(), vec![]).config(&clone, settings, &network()).unwrap();
    assert!(config.cache_is_copy && config.id == "cell-1-b");
    std::fs::remove_dir_all(main).unwrap();
    assert!(builder_settings(&clone).unwrap_err().to_string().contains("cell-1/kiln.toml"));
}

#[test]
fn time_servers_or_the_host_set_a_guests_clock() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, mut settings) = home(parent.path());
    let microvms = microvms(settings::Guest::default(), vec![]);
    assert_eq!(microvms.clock(&dir), Clock::Hosts);
    settings.clock.servers = vec!["time.example".into()];
    std::fs::write(dir.join("kiln.toml"), toml::to_string(&settings).unwrap()).unwrap();
    assert_eq!(microvms.clock(&dir), Clock::Servers);
}

#[test]
fn cells_get_processors_side_by_side() {
    let cells = vec!["/c/a".into(), "/c/b".into()];
    let pinned = settings::Guest { pin: true, vcpus: 32, ..settings::Guest::default() };
    assert_eq!(microvms(pinned, cells.clone()).processors(Path::new("/c/b")), (32..64).collect::<Vec<_>>());
    assert!(microvms(settings::Guest::default(), cells).processors(Path::new("/c/b")).is_empty());
}

#[test]
fn clones_get_the_processors_behind_the_cells_and_keep_them() {
    let parent = tempfile::tempdir().unwrap();
    let clone = |name: &str| {
        let dir = parent.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("clone-of.json"), r#"{"main":"a","operation":"1"}"#).unwrap();
        dir
    };
    let cells = vec![parent.path().join("a"), parent.path().join("b")];
    let pinned = settings::Guest { pin: true, vcpus: 32, ..settings::Guest::default() };
    let microvms = microvms(pinned, cells.clone());
    let (first, second) = (clone("a-1"), clone("a-2"));
    for dir in [&first, &second, &first, &cells[0]] {
        microvms.take_place(dir).unwrap();
    }
    let processors = |dir: &Path| microvms.processors(dir).first().copied();
    assert_eq!([&cells[0], &cells[1], &first, &second].map(|dir| processors(dir)), [0, 32, 64, 96].map(Some));
    std::fs::remove_dir_all(&first).unwrap();
    let third = clone("a-3");
    microvms.take_place(&third).unwrap();
    assert_eq!((processors(&third), processors(&second)), (Some(64), Some(96)));
}

/// Bytes of nothing, by their SHA-256.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[tokio::test]
async fn what_cannot_be_started_is_said_before_anything_is_touched() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, _) = home(parent.path());
    let images = ImageDir::new(parent.path());
    let said = async |guest: settings::Guest, image: Option<&str>| {
        let host = Microvms { named: images.clone(), ..microvms(guest, vec![]) };
        host.check(&dir, image).await.unwrap_err().to_string()
    };
    assert!(said(settings::Guest::default(), None).await.contains("guest.image is not set"));
    let nowhere = format!("/nowhere@sha256:{NOTHING}");
    for ordered in ["v2", "v2@sha256:0", "/nowhere", &nowhere] {
        assert!(said(settings::Guest::default(), Some(ordered)).await.contains("no path is taken"), "{ordered}");
    }
    let absent = format!("v9@sha256:{NOTHING}");
    assert!(said(settings::Guest::default(), Some(&absent)).await.contains("there is no "));
    let part = format!(r#"{{"file":"f","sha256":"{NOTHING}","bytes":0}}"#);
    let manifest = format!(r#"{{"format":1,"version":"1","kernel":{part},"initrd":{part},"root":{part}}}"#);
    let image = parent.path().join("v2");
    std::fs::create_dir(&image).unwrap();
    std::fs::write(image.join("manifest.json"), &manifest).unwrap();
    let digest = format!("sha256:{}", vm::sha256_hex(manifest.as_bytes()));
    let own = || settings::Guest { image: image.clone(), digest: digest.clone(), ..settings::Guest::default() };
    assert!(said(own(), None).await.contains("/f: No such file"), "a part of the image is missing");
    std::fs::write(image.join("f"), "x").unwrap();
    assert!(said(own(), None).await.contains("/f is damaged"), "a part of the image is another");
    std::fs::write(image.join("f"), "").unwrap();
    let other = format!("v2@sha256:{NOTHING}");
    assert!(said(settings::Guest::default(), Some(&other)).await.contains("as the pool asks for"));
    let unnamed = settings::Guest { digest: String::new(), ..own() };
    assert!(said(unnamed, None).await.contains("guest.digest is not set"));
    microvms(settings::Guest::default(), vec![]).named.find(&other).unwrap_err();
    ImageDir::new(parent.path()).find(&format!("v2@{digest}")).unwrap();
    let large = settings::Guest { memory_mib: 1 << 40, ..own() };
    assert!(said(large, None).await.contains("the host has"));
    let huge = settings::Guest { huge_pages: true, ..own() };
    if huge_pages_mib() == Some(0) {
        assert!(
            said(huge, None)
                .await
                .contains("guest.memory_mib is 2048 and the host has 0 MiB in huge pages (vm.nr_hugepages)")
        );
    }
    let many = |pin| microvms(settings::Guest { pin, vcpus: 4096, ..own() }, vec![dir.clone()]);
    let pinned = many(true).check(&dir, None).await.unwrap_err().to_string();
    assert!(pinned.contains("guest.pin gives the cell processors 0 to 4095 and the host has"), "{pinned}");
    assert!(many(false).check(&dir, None).await.is_ok());
    let gone = microvms(settings::Guest::default(), vec![]).check(Path::new("/nowhere/c"), None).await.unwrap_err();
    assert!(gone.to_string().contains("has no directory"), "{gone}");
}

#[test]
fn what_firecracker_cannot_run_is_said_before_anything_is_touched() {
    let parent = tempfile::tempdir().unwrap();
    let said = |guest: settings::Guest| {
        let microvms = Microvms { vmm: VmmKind::Firecracker, ..microvms(guest, vec![]) };
        microvms.vmm_is_there().err().map(|error| error.to_string()).unwrap_or_default()
    };
    let guest = |firecracker: PathBuf| settings::Guest { firecracker, ..settings::Guest::default() };
    let missing = said(guest("/nowhere/firecracker".into()));
    assert!(missing.contains("guest.firecracker is /nowhere/firecracker and there is no such program"), "{missing}");
    assert!(said(guest("no-such-program".into())).contains("there is no such program"));
    let program = parent.path().join("firecracker");
    std::fs::write(&program, "").unwrap();
    assert!(said(guest(program.clone())).contains("there is no such program"), "it cannot be run");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let large = settings::Guest { vcpus: 64, ..guest(program.clone()) };
    assert!(said(large).contains("at most 32 processors, not 64"));
    let able = said(guest(program));
    assert!(able.is_empty() || able.contains("Firecracker has KVM only and /dev/kvm"), "{able}");
}

#[test]
fn a_deep_directory_gets_its_sockets_elsewhere() {
    let microvms = microvms(settings::Guest::default(), vec![]);
    assert_eq!(microvms.run_dir(Path::new("/data/cells/c1")), Path::new("/data/cells/c1/vm"));
    assert!(microvms.run_dir(Path::new(&format!("/{}/c1", "x".repeat(90)))).starts_with("/run"));
}
