//! Object storage that is busy, cuts connections, holds damaged content, or is away, under whole builds.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::harness::dev::Dev;
use crate::harness::fault_proxy::{Fault, FaultProxy};
use crate::harness::roles::Role;
use crate::harness::spine::{Ran, kiln, tree};

const ONE_CELL: &[&str] = &["--cells", "1", "--slots", "2", "--seed", "busybox"];
/// Big enough that some is on its way when a connection is cut.
const FILE: usize = 1 << 20;

/// An installation whose clients (through what the api presigns) and whose cell each reach the store through a proxy of their own.
struct Setup {
    dev: Dev,
    client: FaultProxy,
    cell: FaultProxy,
    _dir: tempfile::TempDir,
}

impl Setup {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dev = Dev::start(&dir.path().join("data"), ONE_CELL);
        let store: SocketAddr = dev.ready.s3.endpoint.trim_start_matches("http://").parse().unwrap();
        let (client, cell) = (FaultProxy::start(store).await, FaultProxy::start(store).await);
        let through = |proxy: &FaultProxy| format!("http://{}", proxy.address()).into();
        dev.reconfigure(Role::Api, &[("s3", "endpoint", through(&client))]);
        dev.reconfigure(Role::Builder("dev-1"), &[("s3", "endpoint", through(&cell))]);
        Self { dev, client, cell, _dir: dir }
    }

    fn up(&self, dir: &Path, more: &[&str]) -> Ran {
        let path = dir.to_str().unwrap();
        let mut args = vec!["up", path, "--project", "storage", "--output", "json", "--progress", "plain"];
        args.extend(more);
        Ran::of(&mut kiln(&self.dev.data, &args))
    }

    /// The packs as they lie in the store, newest last.
    fn packs(&self) -> Vec<PathBuf> {
        let projects = self.dev.data.join("s3").join(&self.dev.ready.s3.bucket).join("p");
        let project = fs::read_dir(projects).unwrap().next().unwrap().unwrap().path();
        let packs = fs::read_dir(project.join("packs")).unwrap().map(|entry| entry.unwrap().path());
        let mut packs: Vec<_> = packs.filter(|path| path.extension().is_none()).collect();
        packs.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
        packs
    }
}

/// A context whose `big` no compression makes smaller, one Dockerfile that copies it and one that does not.
fn context(seed: u64) -> tempfile::TempDir {
    let dir =
        tree(&[("Dockerfile", "FROM busybox\nCOPY big /big\n"), ("other", &format!("FROM busybox\nLABEL n={seed}\n"))]);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let noise = std::iter::repeat_with(|| {
        // Xorshift, https://www.jstatsoft.org/article/view/v008i14
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    fs::write(dir.path().join("big"), noise.take(FILE / 8).flatten().collect::<Vec<u8>>()).unwrap();
    dir
}

fn busy() -> Fault {
    Fault::Status { code: 503, retry_after: Some(1) }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_is_busy_cuts_or_alters_delays_a_build_and_no_more() {
    let setup = Setup::start().await;
    // What only an upload's signature names.
    let (uploads, packs) = ("if-none-match", "/packs/");
    setup.client.fail(2, uploads, busy());
    setup.client.fail(1, uploads, Fault::CutRequest { after: 5000 });
    setup.client.fail(1, uploads, Fault::CorruptRequest { at: 5000 });
    setup.client.fail(1, uploads, Fault::CutResponse { after: 0 });
    setup.cell.fail(2, "/snapshots/", busy());
    setup.cell.fail(1, packs, busy());
    setup.cell.fail(2, packs, Fault::CutResponse { after: 5000 });
    setup.cell.fail(1, packs, Fault::CorruptResponse { at: FILE / 2 });
    let dir = context(1);
    let ran = setup.up(dir.path(), &[]).ok();
    assert_eq!(ran.json()["attempts"], 1, "{}", ran.all());
    assert_eq!((setup.client.pending(), setup.cell.pending()), (0, 0), "every fault has met its request");
    damaged_content_is_refused_by_name(&setup);
    a_store_that_is_away_is_told(setup);
}

/// Uploaded whole, then altered or removed where it lies: the build that needs it ends at once, and says what is wrong with which object.
fn damaged_content_is_refused_by_name(setup: &Setup) {
    type Damage = fn(&Path);
    let alter: Damage = |pack| {
        let mut bytes = fs::read(pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        fs::write(pack, bytes).unwrap();
    };
    let remove: Damage = |pack| fs::remove_file(pack).unwrap();
    for (seed, damage, expected) in [(2, alter, ["has digest", "expected"]), (3, remove, ["not found", "object p/"])] {
        let dir = context(seed);
        let other = dir.path().join("other");
        setup.up(dir.path(), &["-f", other.to_str().unwrap()]).ok();
        let pack = setup.packs().pop().unwrap();
        damage(&pack);
        let ran = setup.up(dir.path(), &[]);
        assert_eq!(ran.code, 3, "{}", ran.all());
        let error = &ran.json()["error"];
        assert_eq!(error["class"], "refused", "{error}");
        let message = error["message"].as_str().unwrap();
        let name = pack.file_name().unwrap().to_str().unwrap();
        assert!(message.contains(&format!("/packs/{name}")), "{message}");
        assert!(expected.iter().all(|words| message.contains(words)), "{message}");
        assert_eq!(ran.json()["attempts"], 1, "{}", ran.all());
        assert!(!ran.stderr.contains("trying again"), "{}", ran.all());
    }
}

fn a_store_that_is_away_is_told(setup: Setup) {
    let Setup { dev, client, cell, _dir } = setup;
    drop(cell);
    let up = |dir: &Path| {
        let args = ["up", dir.to_str().unwrap(), "--project", "storage", "--output", "json", "--progress", "plain"];
        Ran::of(&mut kiln(&dev.data, &args))
    };
    let ran = up(context(4).path());
    assert_eq!(ran.code, 75, "{}", ran.all());
    let error = &ran.json()["error"];
    assert_eq!(error["class"], "transient", "{error}");
    assert!(error["message"].as_str().unwrap().contains("storage is not reachable"), "{error}");
    assert_eq!(ran.json()["attempts"], 1, "no cell is blamed: {}", ran.all());

    drop(client);
    let ran = up(context(5).path());
    assert_eq!(ran.code, 75, "{}", ran.all());
    assert!(ran.stderr.contains("object storage did not do what was asked"), "{}", ran.all());
}
