//! The keeper of one cell: claims it, finds again what runs there, keeps it running, obeys orders one after the other.
//!
//! ```text
//!  unclaimed ── an order, and the other agent is gone ─► looks what runs there
//!
//!             start ordered, or wanted and not there
//!  stopped ──────────────────────────────────────────► running ◄── found running: adopted
//!     ▲                                                 │   ▲
//!     │                                   ended unasked │   │ after a pause, which doubles
//!     └───────────────── stop ordered ◄─────────────────┤   │
//!                                                       ▼   │
//!                                                      waiting
//! ```
//!
//! One task owns all of it. When it is dropped, what runs goes on: a cell ends when that is ordered, or with its own supervisor.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use workflows::contract::{CellId, CloneOrder, HostCell, HostClone, HostId, HostOrder, HostWire};

use super::clones::is_half_gone;
use super::lock::HOST_LOCK;
use super::record::{Answer, Record, What};
use super::{Cloned, Driver, HostError, Lock, main_of};
use crate::failure::with_source;

/// The wait before a cell that ended unasked is started again: the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// A cell that ran so long is healthy: its next restart starts from the first pause again.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long a cell that is asked a second time may take to end tidily, and a killed one to be gone.
const TIDY: Duration = Duration::from_secs(2);
const KILLED: Duration = Duration::from_secs(5);

/// Where a cell lives.
#[derive(Debug, Clone)]
pub struct Home {
    pub host: HostId,
    pub cell: CellId,
    pub dir: PathBuf,
}

/// What a cell does when its keeper begins, before anything is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// As it was ordered last; a cell that nobody has ordered anything for runs.
    Wanted,
    /// It runs whatever was ordered before.
    Running,
    /// It is not started. What runs goes on.
    Resting,
}

/// Told of what nobody ordered: a cell that ended, one that cannot be started.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

type Reply = oneshot::Sender<Result<HostCell, HostError>>;

enum Ask {
    Order(What, HostOrder, Reply),
    Clone(CloneOrder, oneshot::Sender<Result<HostClone, HostError>>),
    Delete(HostOrder, Reply),
    Replug(oneshot::Sender<Result<HostWire, HostError>>),
    Rest(Duration, oneshot::Sender<()>),
}

/// A handle on the keeper's task.
#[derive(Debug, Clone)]
pub struct Keeper {
    dir: PathBuf,
    asks: mpsc::Sender<Ask>,
    view: watch::Receiver<HostCell>,
    /// How many orders wait that end the cell.
    endings: watch::Sender<usize>,
}

/// An order that ends the cell, from when it is given until it is answered or nobody waits for it any more.
struct Pending<'a>(&'a watch::Sender<usize>);

impl<'a> Pending<'a> {
    fn new(endings: &'a watch::Sender<usize>) -> Self {
        endings.send_modify(|count| *count += 1);
        Self(endings)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Keeper {
    /// Claims the cell and starts to keep it; says why when it is another agent's, then orders try again. `closing` ends a start under way.
    pub fn open<D: Driver>(
        driver: Arc<D>,
        home: Home,
        begin: Begin,
        notice: Notice,
        closing: CancellationToken,
    ) -> (Self, Result<(), HostError>) {
        let (asks, asked) = mpsc::channel(16);
        let (held, claimed) = match Held::claim(&home, begin) {
            Ok(held) => (Some(held), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let (view, seen) = watch::channel(HostCell {
            cell: home.cell.clone(),
            running: false,
            pid: None,
            started_ms: None,
            image: None,
            generation: 0,
        });
        let dir = home.dir.clone();
        let (state, pause) = (State::Stopped, PAUSE.0);
        let (endings, ending) = watch::channel(0);
        let mut task = Task { driver, home, begin, held, state, pause, is_gone: false, view, notice, closing, ending };
        // Before anybody can ask: what runs is known from the first moment.
        task.look();
        tokio::spawn(task.run(asked));
        (Self { dir, asks, view: seen, endings }, claimed)
    }

    pub async fn start(&self, order: HostOrder) -> Result<HostCell, HostError> {
        self.order(What::Start, order).await
    }

    /// Breaks a start off that is under way: one that does not come to an end would hold the cell for many minutes.
    pub async fn stop(&self, order: HostOrder) -> Result<HostCell, HostError> {
        let _pending = Pending::new(&self.endings);
        self.order(What::Stop, order).await
    }

    /// Makes a clone of the cell, beside it; nobody keeps that one yet.
    pub async fn clone_as(&self, order: CloneOrder) -> Result<HostClone, HostError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Clone(order, reply)).await.map_err(|_| HostError::Ending)?;
        answer.await.unwrap_or(Err(HostError::Ending))
    }

    /// Ends a clone and deletes it, as [`Self::stop`] does. There is nothing to keep any more then.
    pub async fn delete(&self, order: HostOrder) -> Result<HostCell, HostError> {
        let _pending = Pending::new(&self.endings);
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Delete(order, reply)).await.map_err(|_| HostError::Ending)?;
        answer.await.unwrap_or(Err(HostError::Ending))
    }

    /// Mends the way to the cell, if that runs.
    pub async fn replug(&self) -> Result<HostWire, HostError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Replug(reply)).await.map_err(|_| HostError::Ending)?;
        answer.await.unwrap_or(Err(HostError::Ending))
    }

    /// Whether both are handles of one keeper: a later cell of the same name has another.
    pub fn is(&self, other: &Self) -> bool {
        self.asks.same_channel(&other.asks)
    }

    /// Where the cell lives.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What runs, without waiting for an order under way.
    pub fn inspect(&self) -> HostCell {
        self.view.borrow().clone()
    }

    /// Ends the cell for the agent's own sake: what is wanted of it does not change.
    pub async fn rest(&self, grace: Duration) {
        let (reply, done) = oneshot::channel();
        if self.asks.send(Ask::Rest(grace, reply)).await.is_ok() {
            let _ = done.await;
        }
    }

    async fn order(&self, what: What, order: HostOrder) -> Result<HostCell, HostError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Order(what, order, reply)).await.map_err(|_| HostError::Ending)?;
        answer.await.unwrap_or(Err(HostError::Ending))
    }
}

/// A claimed cell.
struct Held {
    _lock: Lock,
    record: Record,
    /// Its directory says so, for as long as it is there.
    is_clone: bool,
}

impl Held {
    fn claim(home: &Home, begin: Begin) -> Result<Self, HostError> {
        if !home.dir.is_dir() {
            return Err(super::DriverError::NoDirectory { path: home.dir.clone() }.into());
        }
        let holder = format!("host {}, process {}", home.host, std::process::id());
        let lock = Lock::take(&home.dir.join(HOST_LOCK), &holder)
            .map_err(|source| HostError::Claimed { cell: home.cell.clone(), source })?;
        let mut record = Record::read(&home.dir)?;
        match begin {
            Begin::Wanted => {}
            Begin::Running => record.wanted = true,
            Begin::Resting => record.wanted = false,
        }
        Ok(Self { _lock: lock, record, is_clone: main_of(&home.dir).is_some() })
    }
}

enum State<C> {
    Stopped,
    Running { cell: C, since: Instant },
    Waiting { until: Instant },
}

/// What happens by itself.
enum Event {
    Ended(String),
    Due,
}

struct Task<D: Driver> {
    driver: Arc<D>,
    home: Home,
    begin: Begin,
    held: Option<Held>,
    state: State<D::Cell>,
    /// The wait before the next start that nobody ordered.
    pause: Duration,
    /// It was deleted.
    is_gone: bool,
    view: watch::Sender<HostCell>,
    notice: Notice,
    closing: CancellationToken,
    ending: watch::Receiver<usize>,
}

impl<D: Driver> Task<D> {
    async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        self.revive().await;
        loop {
            self.view.send_replace(self.seen());
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(Ask::Order(what, order, reply)) => {
                        let answer = self.obey(what, &order).await;
                        self.view.send_replace(self.seen());
                        let _ = reply.send(answer);
                    }
                    Some(Ask::Clone(order, reply)) => {
                        let _ = reply.send(self.clone_as(&order).await);
                    }
                    Some(Ask::Delete(order, reply)) => {
                        let answer = self.delete(&order).await;
                        self.view.send_replace(self.seen());
                        let _ = reply.send(answer);
                    }
                    Some(Ask::Replug(reply)) => {
                        let _ = reply.send(self.replug().await);
                    }
                    Some(Ask::Rest(grace, reply)) => {
                        self.rest(grace).await;
                        let _ = reply.send(());
                    }
                    None => return,
                },
                event = next_event(&*self.driver, &mut self.state) => match event {
                    Event::Ended(how) => self.ended(&how),
                    Event::Due => {
                        self.look();
                        self.revive().await;
                    }
                },
            }
        }
    }

    /// Finds what runs in a claimed cell's directory.
    fn look(&mut self) {
        if self.held.is_some()
            && let Err(error) = self.find()
        {
            self.wait(&with_source(&error));
        }
        self.view.send_replace(self.seen());
    }

    /// Starts the cell when it should run and does not.
    async fn revive(&mut self) {
        let wanted = self.held.as_ref().is_some_and(|held| held.record.wanted);
        if wanted && matches!(self.state, State::Stopped) {
            // It says so itself when it fails, and tries again.
            let _ = self.bring_up().await;
        }
    }

    /// Adopts what runs in the cell's directory.
    fn find(&mut self) -> Result<(), HostError> {
        self.state = match self.driver.adopt(&self.home.dir)? {
            Some(cell) => {
                tracing::info!(cell = %self.home.cell, pid = self.driver.inspect(&cell), "adopted");
                State::Running { cell, since: Instant::now() }
            }
            None => State::Stopped,
        };
        Ok(())
    }

    /// Claims the cell where that was not possible before, and gives the answer to an operation that was done.
    fn answered(&mut self, operation: &str, what: What) -> Result<Option<Answer>, HostError> {
        if self.held.is_none() {
            self.held = Some(Held::claim(&self.home, self.begin)?);
            self.find()?;
        }
        self.held()?.record.answer(operation, what)
    }

    fn remember(&mut self, operation: &str, what: What, answer: Answer) -> Result<(), HostError> {
        tracing::info!(cell = %self.home.cell, operation, ?what, "done");
        let dir = self.home.dir.clone();
        let held = self.held()?;
        held.record.remember(operation, what, answer);
        held.record.write(&dir)
    }

    async fn obey(&mut self, what: What, order: &HostOrder) -> Result<HostCell, HostError> {
        if let Some(Answer::Cell(answer)) = self.answered(&order.operation, what)? {
            return Ok(answer);
        }
        match what == What::Start {
            true => self.start(order).await?,
            false => self.stop(order).await?,
        }
        let answer = self.seen();
        self.remember(&order.operation, what, Answer::Cell(answer.clone()))?;
        Ok(answer)
    }

    async fn clone_as(&mut self, CloneOrder { order, clone, .. }: &CloneOrder) -> Result<HostClone, HostError> {
        if let Some(Answer::Clone(answer)) = self.answered(&order.operation, What::Clone)? {
            return Ok(answer);
        }
        let dir = self.home.dir.with_file_name(clone.as_str());
        // It runs what this one runs.
        let image = self.held()?.record.image.clone();
        let made = self.driver.clone_cell(&self.home.dir, &dir, &order.operation, image.as_deref());
        let Cloned { held_still, took } = made.await?;
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let answer = HostClone { clone: clone.clone(), held_still_ms: held_still.map(ms), took_ms: ms(took) };
        self.remember(&order.operation, What::Clone, Answer::Clone(answer.clone()))?;
        Ok(answer)
    }

    async fn replug(&self) -> Result<HostWire, HostError> {
        let mended = match (&self.state, &self.held) {
            (State::Running { .. }, Some(_)) => self.driver.replug(&self.home.dir).await?,
            _ => Vec::new(),
        };
        if !mended.is_empty() {
            tracing::warn!(cell = %self.home.cell, mended = mended.join(", "), "re-plugged");
        }
        Ok(HostWire { mended })
    }

    /// Not remembered: what is not there any more is deleted already, also for an attempt that waited for another one.
    async fn delete(&mut self, order: &HostOrder) -> Result<HostCell, HostError> {
        if !self.is_gone {
            self.erase(order).await?;
            tracing::info!(cell = %self.home.cell, operation = order.operation, "deleted with its disk");
            // A later cell of this name is somebody else's.
            (self.is_gone, self.held) = (true, None);
        }
        Ok(self.seen())
    }

    async fn erase(&mut self, order: &HostOrder) -> Result<(), HostError> {
        let dir = self.home.dir.clone();
        let was_clone = self.held.as_ref().is_some_and(|held| held.is_clone);
        match dir.exists() {
            false if was_clone || is_half_gone(&dir) => self.bring_down(Duration::from_millis(order.grace_ms)).await?,
            _ => {
                self.answered(&order.operation, What::Stop)?;
                if main_of(&dir).is_none() {
                    return Err(HostError::NoClone { cell: self.home.cell.clone() });
                }
                self.stop(order).await?;
            }
        }
        Ok(self.driver.delete_clone(&dir).await?)
    }

    async fn start(&mut self, order: &HostOrder) -> Result<(), HostError> {
        let former = self.held()?.record.image.clone();
        let image = order.image.clone().or_else(|| former.clone());
        self.driver.check(&self.home.dir, image.as_deref()).await?;
        if image != former {
            self.bring_down(Duration::from_millis(order.grace_ms)).await?;
        }
        let record = &mut self.held()?.record;
        (record.wanted, record.image) = (true, image);
        self.pause = PAUSE.0;
        match self.state {
            State::Running { .. } => Ok(()),
            State::Stopped | State::Waiting { .. } => {
                // A start that failed may have left a cell all the same.
                self.find()?;
                match self.state {
                    State::Running { .. } => Ok(()),
                    State::Stopped | State::Waiting { .. } => self.bring_up().await,
                }
            }
        }
    }

    async fn stop(&mut self, order: &HostOrder) -> Result<(), HostError> {
        let dir = self.home.dir.clone();
        let held = self.held()?;
        held.record.wanted = false;
        // Before it ends: an agent that dies meanwhile must not start it again.
        held.record.write(&dir)?;
        if !matches!(self.state, State::Running { .. }) {
            // A start that was broken off may have left a cell on its way up.
            self.find()?;
        }
        self.bring_down(Duration::from_millis(order.grace_ms)).await
    }

    /// Starts the cell; where that fails it is tried again after a pause.
    async fn bring_up(&mut self) -> Result<(), HostError> {
        match self.start_once().await {
            Ok(cell) => {
                self.state = State::Running { cell, since: Instant::now() };
                Ok(())
            }
            Err(error) => {
                self.wait(&format!("cannot be started: {}", with_source(&error)));
                Err(error)
            }
        }
    }

    async fn start_once(&mut self) -> Result<D::Cell, HostError> {
        let overtaken = HostError::Overtaken { cell: self.home.cell.clone() };
        if *self.ending.borrow() > 0 {
            return Err(overtaken);
        }
        let dir = self.home.dir.clone();
        let record = &mut self.held()?.record;
        record.generation += 1;
        record.started_ms = Some(now_ms());
        record.write(&dir)?;
        let image = record.image.clone();
        let mut ending = self.ending.clone();
        tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(HostError::Ending),
            Ok(_) = ending.wait_for(|orders| *orders > 0) => Err(overtaken),
            started = self.driver.start(&dir, image.as_deref()) => Ok(started?),
        }
    }

    /// Asks the cell to end, then asks it to be quick, then kills it.
    async fn bring_down(&mut self, grace: Duration) -> Result<(), HostError> {
        if let State::Running { cell, .. } = &mut self.state {
            let mut gone = false;
            let grace = grace.max(self.driver.least_grace());
            for (by_force, patience) in [(false, grace), (false, TIDY), (true, KILLED)] {
                match by_force {
                    false => self.driver.stop(cell),
                    true => self.driver.kill(cell),
                }
                gone = timeout(patience, self.driver.ended(cell)).await.is_ok();
                if gone {
                    break;
                }
            }
            if !gone {
                return Err(HostError::Stays { cell: self.home.cell.clone() });
            }
        }
        self.state = State::Stopped;
        Ok(())
    }

    async fn rest(&mut self, grace: Duration) {
        if self.held.is_none() {
            return;
        }
        // A start that was cut off may have left a cell on its way up.
        let found = if matches!(self.state, State::Running { .. }) { Ok(()) } else { self.find() };
        let ended = match found {
            Ok(()) => self.bring_down(grace).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::warn!(cell = %self.home.cell, error = with_source(&error), "may still run");
        }
    }

    fn ended(&mut self, how: &str) {
        if let State::Running { since, .. } = &self.state
            && since.elapsed() > HEALTHY
        {
            self.pause = PAUSE.0;
        }
        match self.held.as_ref().is_some_and(|held| held.record.wanted) {
            true => self.wait(&format!("ended ({how})")),
            false => self.state = State::Stopped,
        }
    }

    fn wait(&mut self, why: &str) {
        let pause = self.pause;
        let said = format!("{} {why}, starting it again in {pause:?}", self.home.cell);
        tracing::warn!("{said}");
        (self.notice)(&said);
        self.state = State::Waiting { until: Instant::now() + pause };
        self.pause = (pause * 2).min(PAUSE.1);
    }

    fn seen(&self) -> HostCell {
        let cell = match &self.state {
            State::Running { cell, .. } => Some(cell),
            State::Stopped | State::Waiting { .. } => None,
        };
        let record = self.held.as_ref().map(|held| &held.record);
        HostCell {
            cell: self.home.cell.clone(),
            running: cell.is_some(),
            pid: cell.and_then(|cell| self.driver.inspect(cell)),
            started_ms: cell.and(record).and_then(|record| record.started_ms),
            image: record.and_then(|record| record.image.clone()),
            generation: record.map_or(0, |record| record.generation),
        }
    }

    fn held(&mut self) -> Result<&mut Held, HostError> {
        // Orders claim first; without a claim there is nothing to do for anybody.
        self.held.as_mut().ok_or(HostError::Ending)
    }
}

async fn next_event<D: Driver>(driver: &D, state: &mut State<D::Cell>) -> Event {
    match state {
        State::Running { cell, .. } => Event::Ended(driver.ended(cell).await),
        State::Waiting { until } => {
            sleep_until(*until).await;
            Event::Due
        }
        State::Stopped => std::future::pending().await,
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
