//! The operations of an attempt, in order. Each says in the log and in the heartbeats that it has begun.
//!
//! | operation | does | fails as |
//! |---|---|---|
//! | fetch | opens the snapshot: its manifest, verified; files come when buildkitd asks | transient, refused |
//! | plan | finds and reads the Dockerfile, chooses the frontend | user error, refused |
//! | bases | registries are asked, with the build's credentials, for the images that the Dockerfile names | what they answer |
//! | solve | buildkitd builds and pushes by digest to every repository among the tags | what BuildKit says |

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use buildkit::{Client, FailureKind, Image, Session, Solve, SolveError, Solved, StatusUpdate};
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};
use workflows::contract::{AttemptInput, AttemptResult, BuildError, CacheStats, FailureClass, LogEvent, Timings};

use super::bases::Bases;
use super::disk::{DiskWatch, has_room};
use super::events::Recorder;
use super::plan::{Plan, plan};
use super::progress::Meter;
use super::{Builder, causes, classify, request, stall};
use crate::dns::Unresolved;
use crate::failpoint;
use crate::failure::with_source;
use crate::logs::AttemptLog;
use crate::objects::ObjectError;
use crate::pressure::Slices;
use crate::sealed::Sealed;
use crate::snapshots::{SnapshotSource, withdraw};

/// How long the failure of a build on a full disk may wait for the disk.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(30);
/// How long what a collection has found may take to be removed.
const REMOVAL_LIMIT: Duration = Duration::from_secs(5);
/// How often a solve is tried whose registry or storage failed for the moment.
const SOLVE_TRIES: u32 = 4;
/// The pause before the second try; doubled, with jitter, before each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long the end of an attempt may wait for its log to be on the disk.
const SPOOL_PATIENCE: Duration = Duration::from_secs(5);
/// Progress messages between the solve and the log; when full, the daemon keeps what is to come.
const UPDATES: usize = 64;

/// Runs the attempt. Cancelling `stop` stops the solve.
pub(super) async fn run(
    builder: &Builder,
    input: &AttemptInput,
    meter: &Meter,
    stop: &CancellationToken,
) -> Result<AttemptResult, BuildError> {
    let log = builder.logs.open(&input.attempt, builder.settings.log_cap);
    log.append(LogEvent::Note { text: format!("attempt {} on cell {}", input.attempt.number, builder.cell) });
    let operation = Operation { builder, input, meter, stop, log: &log, solves: AtomicU32::new(0) };
    let limit = input.input.attempt_limit();
    let (sight, slices) = (meter.sight(), Slices::default());
    let running = async {
        tokio::select! {
            ended = operation.run() => ended,
            never = stall::tell(&sight, &slices, |text| log.append(LogEvent::Note { text })) => match never {},
        }
    };
    let ended = match tokio::time::timeout(limit, running).await {
        Ok(ended) => ended,
        Err(_) => Err(BuildError::new(
            FailureClass::TimedOut,
            format!("the build took longer than its time limit of {} s", limit.as_secs()),
        )),
    };
    if let Err(error) = &ended {
        log.append(LogEvent::Note { text: epitaph(input.attempt.number, error) });
    }
    log.end(SPOOL_PATIENCE).await;
    ended
}

/// What the log says at its end of why. The error of a step of the user's stands in it already, at the step.
fn epitaph(number: u32, error: &BuildError) -> String {
    match &error.step {
        Some(step) if error.class == FailureClass::UserError => {
            format!("attempt {number} ended with the error of {step}")
        }
        _ => format!("attempt {number} ended: {error}"),
    }
}

struct Operation<'a> {
    builder: &'a Builder,
    input: &'a AttemptInput,
    meter: &'a Meter,
    stop: &'a CancellationToken,
    log: &'a AttemptLog,
    /// How many solves were begun; each has a ref of its own.
    solves: AtomicU32,
}

/// Why a solve failed.
struct Unsolved {
    error: BuildError,
    /// An image that it was not allowed to take.
    denied: Option<String>,
}

impl From<BuildError> for Unsolved {
    fn from(error: BuildError) -> Self {
        Self { error, denied: None }
    }
}

impl Operation<'_> {
    async fn run(&self) -> Result<AttemptResult, BuildError> {
        let begun = Instant::now();
        match self.operations().await {
            Err(error) if causes::may_be_the_clock(&error) => Err(self.by_the_clock(error, begun).await),
            ended => ended,
        }
    }

    /// A failure that a wrong clock explains is the cell's: the clock is looked at now, not when it is next due.
    async fn by_the_clock(&self, error: BuildError, begun: Instant) -> BuildError {
        let Some(clock) = &self.builder.clock else { return error };
        match clock.off_since(begun).await {
            Some(skew) => causes::clock(error, &skew),
            None => error,
        }
    }

    async fn operations(&self) -> Result<AttemptResult, BuildError> {
        let start = Instant::now();
        let source = self.fetch().instrument(info_span!("fetch")).await?;
        let fetch = millis(start.elapsed());
        match (self.build(&source, fetch).await, source.damage()) {
            (Err(error), Some(damage)) => Err(self.withdraw(damage, error).await),
            (ended, _) => ended,
        }
    }

    /// A snapshot that cannot be read as it was stored would fail every build of the same code: it is taken out of the store.
    async fn withdraw(&self, damage: &ObjectError, mut error: BuildError) -> BuildError {
        let (objects, files) = (&self.builder.objects, &self.builder.files);
        let (project, snapshot) = (&self.input.project_id, &self.input.input.snapshot);
        match withdraw(objects, files, project, snapshot, damage).await {
            Ok(()) => error.message.push_str("; the snapshot was withdrawn, `kiln up` uploads it again"),
            Err(why) => tracing::warn!(%snapshot, error = %why, "a damaged snapshot could not be withdrawn"),
        }
        error
    }

    async fn build(&self, source: &SnapshotSource, fetch: u64) -> Result<AttemptResult, BuildError> {
        let sealed = self.open_sealed().await?;
        self.meter.begin("plan");
        let plan = plan(source, &self.input.input, &self.builder.settings.frontends);
        let plan = plan.instrument(info_span!("plan")).await?;
        for note in &plan.notes {
            self.log.append(LogEvent::Note { text: note.clone() });
        }
        let image = request::image(self.input, &self.builder.settings.repositories, &sealed)?;
        let mut bases = self.bases(&plan, &sealed).instrument(info_span!("bases")).await;
        let solving = Instant::now();
        let (solved, mut cache) =
            self.solve(source, &plan, &sealed, &image, &mut bases).instrument(info_span!("solve")).await?;
        failpoint::reach("after_push");
        cache.fetched_bytes = source.fetched().pack_bytes;
        let timings = Timings { fetch, solve: millis(solving.elapsed()), ..Timings::default() };
        result(solved, timings, cache)
    }

    async fn fetch(&self) -> Result<SnapshotSource, BuildError> {
        self.meter.begin("fetch");
        let settings = &self.builder.settings;
        let (objects, files) = (&self.builder.objects, &self.builder.files);
        let (project, snapshot) = (&self.input.project_id, &self.input.input.snapshot);
        let opened = SnapshotSource::open(objects, files, project, snapshot, &settings.caps).await;
        opened.map_err(|e| classify::snapshot_error(&e))
    }

    async fn open_sealed(&self) -> Result<Sealed, BuildError> {
        match &self.input.input.secrets_ref {
            None => Ok(Sealed::default()),
            Some(reference) => {
                let opened = self.builder.sealed.open(&self.input.project_id, reference).await;
                opened.map_err(|e| e.to_build_error())
            }
        }
    }

    /// Solves; tries again what failed only for the moment. A further try has a ref of its own, derived from the attempt's.
    async fn solve(
        &self,
        source: &SnapshotSource,
        plan: &Plan,
        sealed: &Sealed,
        image: &Image,
        bases: &mut Bases<'_>,
    ) -> Result<(Solved, CacheStats), BuildError> {
        self.meter.begin("solve");
        let mut pause = FIRST_PAUSE;
        let mut tried = 1;
        let disk = DiskWatch::start(self.builder.ledger.dir());
        loop {
            let error = match self.solve_with_bases(source, plan, sealed, image, bases, &disk).await {
                Ok(solved) => return Ok(solved),
                Err(error) if error.class != FailureClass::Transient || tried == SOLVE_TRIES => {
                    if disk.was_full() {
                        self.give_back_space().await;
                    }
                    return Err(error);
                }
                Err(error) => error,
            };
            let wait = pause.mul_f64(rand::rng().random_range(0.75..1.25));
            let text = format!("{error}; trying again in {:.1} s ({tried} of {SOLVE_TRIES} tries)", wait.as_secs_f64());
            self.log.append(LogEvent::Note { text });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => return Err(error),
            }
            (tried, pause) = (tried + 1, pause * 2);
        }
    }

    /// Asks the registries for the images that the Dockerfile names.
    async fn bases(&self, plan: &Plan, sealed: &Sealed) -> Bases<'_> {
        let Builder { registries, settings, .. } = self.builder;
        let mut bases = Bases::new(registries, settings, self.input, sealed.registry_credentials(), &plan.frontend);
        bases.look_up_all(&plan.dockerfile).await;
        bases
    }

    /// Solves; once more for each image that the Dockerfile does not name and the project may read.
    async fn solve_with_bases(
        &self,
        source: &SnapshotSource,
        plan: &Plan,
        sealed: &Sealed,
        image: &Image,
        bases: &mut Bases<'_>,
        disk: &DiskWatch,
    ) -> Result<(Solved, CacheStats), BuildError> {
        loop {
            let number = self.solves.fetch_add(1, Ordering::Relaxed) + 1;
            let request = request::solve(self.input, plan, bases, image.clone(), number);
            let (denied, mut error) = match self.solve_once(source, plan, sealed, request, disk).await {
                Ok(solved) => return Ok(solved),
                Err(Unsolved { denied: Some(image), error }) => (image, error),
                Err(Unsolved { denied: None, error }) => return Err(error),
            };
            if let Err(unreadable) = bases.look_up(&denied).await {
                self.log.append(LogEvent::Note { text: unreadable.message.clone() });
                (error.class, error.message) = (unreadable.class, unreadable.message);
                return Err(error);
            }
            self.log
                .append(LogEvent::Note { text: format!("the build needs {denied}, which its registry lets it read") });
        }
    }

    async fn solve_once(
        &self,
        source: &SnapshotSource,
        plan: &Plan,
        sealed: &Sealed,
        request: Solve,
        disk: &DiskWatch,
    ) -> Result<(Solved, CacheStats), Unsolved> {
        let begun = Instant::now();
        let session = self.session(source, plan, sealed).await?;
        let (updates, received) = mpsc::channel(UPDATES);
        let mut recorder = Recorder::default();
        let (solved, ()) = tokio::join!(
            session.solve(request, updates, self.stop),
            record(received, &mut recorder, self.log, self.meter)
        );
        match solved {
            Ok(solved) => Ok((solved, recorder.cache_stats())),
            Err(error) => Err(match source.take_failure() {
                // The session passes on only the text of a failed read; the source knows which class it is of.
                Some(failure) if matches!(error.kind, FailureKind::Source { .. }) => {
                    classify::snapshot_error(&failure).into()
                }
                _ => Unsolved {
                    error: self.told(&error, &recorder, disk.was_full(), begun),
                    denied: match error.kind {
                        FailureKind::ImageDenied { image } => Some(image),
                        _ => None,
                    },
                },
            }),
        }
    }

    /// What a failed step wrote is nobody's any more, yet BuildKit keeps it until it next looks through its cache: a minute, or never on
    /// a disk that is full by it.
    async fn give_back_space(&self) {
        let collected = async {
            Client::connect_unix(&self.builder.buildkit_socket).await?.collect_garbage().await?;
            // Where BuildKit was at it by itself, its removing is not this collection's to wait for; a disk that is full of cache stays so.
            let _ = tokio::time::timeout(REMOVAL_LIMIT, has_room(self.builder.ledger.dir())).await;
            Ok::<_, buildkit::ClientError>(())
        };
        match tokio::time::timeout(GIVE_BACK_LIMIT, collected).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "space on a full disk could not be given back"),
            Err(_) => tracing::warn!(
                "giving back space on a full disk takes too long; the build's failure is told before its end"
            ),
        }
    }

    /// The error as the result tells it. The log has BuildKit's words already, but not what to do about them.
    fn told(&self, error: &SolveError, recorder: &Recorder, disk_full: bool, begun: Instant) -> BuildError {
        let told = classify::solve_error(error, recorder, disk_full);
        let mut told = causes::names(told, &error.kind, &self.unresolved_since(begun));
        if let Some(advice) = classify::advice(error) {
            told.message = format!("{}; {advice}", told.message);
            self.log.append(LogEvent::Note { text: advice });
        }
        told
    }

    fn unresolved_since(&self, begun: Instant) -> Vec<Arc<Unresolved>> {
        self.builder.dns.as_ref().map(|dns| dns.unresolved_since(begun)).unwrap_or_default()
    }

    async fn session(&self, source: &SnapshotSource, plan: &Plan, sealed: &Sealed) -> Result<Session, BuildError> {
        let fault = |e: buildkit::ClientError| BuildError::new(FailureClass::CellFault, with_source(&e));
        let client = Client::connect_unix(&self.builder.buildkit_socket).await.map_err(fault)?;
        let sealed = Arc::new(sealed.clone());
        client
            .session()
            .shared_key(request::shared_key(self.input, plan))
            .dir("context", Arc::new(source.context()))
            .dir("dockerfile", Arc::new(source.directory(plan.directory.as_bytes())))
            .credentials(sealed.clone())
            .secrets(sealed)
            .token_transport(Arc::new(self.builder.egress.clone()))
            .open()
            .await
            .map_err(fault)
    }
}

async fn record(mut updates: mpsc::Receiver<StatusUpdate>, recorder: &mut Recorder, log: &AttemptLog, meter: &Meter) {
    while let Some(update) = updates.recv().await {
        // How BuildKit names what comes after the last step.
        if update.vertexes.iter().any(|vertex| vertex.name.starts_with("exporting to ")) {
            failpoint::reach("after_solve");
        }
        recorder.record(update, log, meter);
    }
}

fn result(solved: Solved, timings: Timings, cache: CacheStats) -> Result<AttemptResult, BuildError> {
    let missing = || BuildError::new(FailureClass::CellFault, "buildkitd reported success without an image digest");
    let digest = solved.digest.ok_or_else(missing)?;
    let descriptor = solved.descriptor;
    Ok(AttemptResult {
        digest: digest.parse().map_err(|e| BuildError::new(FailureClass::CellFault, with_source(&e)))?,
        media_type: descriptor.as_ref().map(|d| d.media_type.clone()).unwrap_or_default(),
        size: descriptor.and_then(|d| u64::try_from(d.size).ok()).unwrap_or(0),
        timings,
        cache,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
