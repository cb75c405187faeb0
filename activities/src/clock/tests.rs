//! Checks against time servers on the loopback, whose clocks are off by as much as the test says. The machine's own clock is never set.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::adjust::Adjust;
use super::{Clock, ClockSettings, Skew};

/// Between 1900, where NTP begins, and 1970, seconds.
const NTP_TO_UNIX: u64 = 2_208_988_800;
const HOUR: i64 = 3600;

/// Writes down what it was told, or may not do it.
#[derive(Default)]
struct Machine {
    told: Arc<Mutex<Vec<(&'static str, f64)>>>,
    forbidden: bool,
    /// By how much others have set it ahead, milliseconds.
    set_ms: Arc<AtomicU64>,
}

impl Machine {
    fn note(&self, what: &'static str, seconds: f64) -> io::Result<()> {
        if self.forbidden {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.told.lock().unwrap().push((what, seconds));
        Ok(())
    }
}

impl Adjust for Machine {
    fn slew(&self, seconds: f64) -> io::Result<()> {
        self.note("slew", seconds)
    }

    fn step(&self, seconds: f64) -> io::Result<()> {
        self.note("step", seconds)
    }

    fn booted(&self) -> io::Result<Duration> {
        Ok(Duration::from_secs(1_700_000_000) + Duration::from_millis(self.set_ms.load(Ordering::Relaxed)))
    }
}

/// A server whose clock is ahead of ours by so many milliseconds.
async fn server(ahead_ms: i64) -> String {
    serve(Arc::new(AtomicI64::new(ahead_ms))).await
}

async fn serve(ahead_ms: Arc<AtomicI64>) -> String {
    serve_until(ahead_ms, Arc::default()).await
}

/// Its answers are of no use once `unsynchronised`: by RFC 5905, section 7.3, they say so (leap indicator 3, stratum 16).
async fn serve_until(ahead_ms: Arc<AtomicI64>, unsynchronised: Arc<AtomicBool>) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut query = [0; 48];
        loop {
            let (_, client) = socket.recv_from(&mut query).await.unwrap();
            let mut answer = answer(&query, ahead_ms.load(Ordering::Relaxed));
            if unsynchronised.load(Ordering::Relaxed) {
                (answer[0], answer[1]) = (answer[0] | 3 << 6, 16);
            }
            socket.send_to(&answer, client).await.unwrap();
        }
    });
    address
}

/// A server behind a way that takes its time back: its answer makes a clock look ahead that is not.
async fn far(ahead_ms: i64, way_back: Duration) -> String {
    let (near, socket) = (server(ahead_ms).await, UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = socket.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let ahead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut packet = [0; 48];
        loop {
            let (_, client) = socket.recv_from(&mut packet).await.unwrap();
            // The stamps are of whole milliseconds.
            tokio::time::sleep(Duration::from_millis(20)).await;
            ahead.send_to(&packet, &near).await.unwrap();
            ahead.recv_from(&mut packet).await.unwrap();
            tokio::time::sleep(way_back).await;
            socket.send_to(&packet, client).await.unwrap();
        }
    });
    address
}

/// RFC 5905, section 7.3: version 4, mode server, stratum 1; origin, receive and transmit timestamps.
fn answer(query: &[u8; 48], ahead_ms: i64) -> [u8; 48] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ms = u64::try_from(i64::try_from(now.as_millis()).unwrap() + ahead_ms).unwrap();
    let fraction = ((ms % 1000) << 32) / 1000;
    let stamp = (((ms / 1000 + NTP_TO_UNIX) << 32) | fraction).to_be_bytes();
    let mut answer = [0; 48];
    (answer[0], answer[1]) = (4 << 3 | 4, 1);
    answer[12..16].copy_from_slice(b"LOCL");
    answer[24..32].copy_from_slice(&query[40..48]);
    answer[32..40].copy_from_slice(&stamp);
    answer[40..48].copy_from_slice(&stamp);
    answer
}

/// One that was found an hour behind, and was not set. The server's own clock is the other handle: 0 makes it agree.
pub(crate) async fn wrong() -> (Clock, Arc<AtomicI64>) {
    let ahead = Arc::new(AtomicI64::new(HOUR * 1000));
    let settings = ClockSettings { adjust: false, ..settings(vec![serve(ahead.clone()).await]) };
    let clock = Clock::of(settings, Box::new(Machine::default()));
    clock.check().await;
    (clock, ahead)
}

fn settings(servers: Vec<String>) -> ClockSettings {
    ClockSettings {
        servers,
        every: Duration::from_secs(3600),
        limit: Duration::from_secs(60),
        step: Duration::from_millis(500),
        adjust: true,
    }
}

/// What a check of this clock does to the machine, and what it leaves.
async fn checked(settings: ClockSettings, forbidden: bool) -> (Vec<(&'static str, f64)>, Option<Skew>) {
    let machine = Machine { forbidden, ..Machine::default() };
    let told = machine.told.clone();
    let clock = Clock::of(settings, Box::new(machine));
    clock.check().await;
    let told = told.lock().unwrap().clone();
    let left = clock.state().left.as_ref().map(|left| left.skew.clone());
    (told, left)
}

fn close(seconds: f64, to: f64) -> bool {
    (seconds - to).abs() < 0.1
}

#[tokio::test]
async fn a_clock_an_hour_behind_is_set_and_a_little_one_slewed() {
    let (told, skew) = checked(settings(vec![server(HOUR * 1000).await]), false).await;
    assert!(matches!(told[..], [("step", by)] if close(by, 3600.0)), "{told:?}");
    assert_eq!(skew, None, "it is right now");
    let (told, skew) = checked(settings(vec![server(-250).await]), false).await;
    assert!(matches!(told[..], [("slew", by)] if close(by, -0.25)), "{told:?}");
    assert_eq!(skew, None);
}

#[tokio::test]
async fn what_a_long_way_explains_is_no_reason_to_set_the_clock() {
    let way_back = Duration::from_millis(1200);
    let strict = ClockSettings { limit: Duration::from_millis(100), ..settings(vec![far(0, way_back).await]) };
    assert_eq!(checked(strict, false).await, (vec![], None), "0.6 s by the answer alone");
    let (told, _) = checked(settings(vec![far(10_000, way_back).await]), false).await;
    assert!(matches!(told[..], [("step", by)] if (by - 9.4).abs() < 0.3), "what is more is set right: {told:?}");
}

#[tokio::test]
async fn a_clock_that_stays_wrong_is_told_of() {
    let server = server(-HOUR * 1000).await;
    let left_alone = ClockSettings { adjust: false, ..settings(vec![server.clone()]) };
    for (settings, forbidden) in [(left_alone, false), (settings(vec![server.clone()]), true)] {
        let (told, skew) = checked(settings, forbidden).await;
        let skew = skew.unwrap();
        assert!(told.is_empty() && close(skew.seconds, -3600.0), "{told:?} {skew}");
        let text = skew.to_string();
        assert!(text.contains("ahead of the time server 127.0.0.1:") && text.contains("more than 60.0 s"), "{text}");
    }
}

#[tokio::test]
async fn off_by_less_than_the_limit_is_no_reason_to_refuse() {
    let settings = ClockSettings { adjust: false, ..settings(vec![server(30_000).await]) };
    assert_eq!(checked(settings, false).await, (vec![], None));
}

#[tokio::test]
async fn what_was_found_is_told_although_it_is_right_now() {
    let ahead = Arc::new(AtomicI64::new(HOUR * 1000));
    let clock = Clock::of(settings(vec![serve(ahead.clone()).await]), Box::new(Machine::default()));
    let begun = Instant::now();
    let found = clock.off_since(begun).await.unwrap();
    assert!(close(found.seconds, 3600.0), "{found}");
    assert!(found.to_string().contains("found 3600.0 s behind the time server"), "{found}");
    assert_eq!(clock.unfit().await, None);
    ahead.store(0, Ordering::Relaxed);
    assert_eq!(clock.off_since(begun).await, Some(found), "in that time it was");
    assert_eq!(clock.off_since(Instant::now()).await, None);
}

#[tokio::test]
async fn a_clock_that_somebody_set_meanwhile_is_fit_again() {
    let ahead = Arc::new(AtomicI64::new(HOUR * 1000));
    let settings = ClockSettings { adjust: false, ..settings(vec![serve(ahead.clone()).await]) };
    let clock = Clock::of(settings, Box::new(Machine::default()));
    assert_eq!(clock.unfit().await, None, "nobody knows yet");
    let mut told = clock.watch();
    clock.check().await;
    assert!(close(clock.unfit().await.unwrap().seconds, 3600.0));
    assert!(*told.borrow_and_update());
    ahead.store(0, Ordering::Relaxed);
    assert_eq!(clock.unfit().await, None);
    assert!(told.has_changed().unwrap() && !*told.borrow());
}

#[tokio::test]
async fn a_clock_that_was_set_is_fit_although_no_time_server_answers_any_more() {
    let (ahead, away) = (Arc::new(AtomicI64::new(HOUR * 1000)), Arc::new(AtomicBool::new(false)));
    let server = serve_until(ahead, away.clone()).await;
    let machine = Machine::default();
    let set_ms = machine.set_ms.clone();
    let clock = Clock::of(ClockSettings { adjust: false, ..settings(vec![server]) }, Box::new(machine));
    clock.check().await;
    away.store(true, Ordering::Relaxed);
    assert!(close(clock.unfit().await.unwrap().seconds, 3600.0), "nobody has set it");
    set_ms.store(20, Ordering::Relaxed);
    assert!(clock.unfit().await.is_some(), "readings are not exact");
    set_ms.store(3_600_000, Ordering::Relaxed);
    assert_eq!(clock.unfit().await, None);
    assert!(!*clock.watch().borrow());
}

#[tokio::test]
async fn one_wrong_server_of_three_does_no_harm() {
    let servers = vec![server(HOUR * 1000).await, server(700).await, server(700).await];
    let (told, _) = checked(settings(servers), false).await;
    assert!(matches!(told[..], [("step", by)] if close(by, 0.7)), "{told:?}");
}

#[tokio::test]
async fn no_answer_leaves_the_clock_alone() {
    // Nobody listens there any more: the loopback says so at once.
    let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    assert_eq!(checked(settings(vec![gone]), false).await, (vec![], None));
}

#[tokio::test]
async fn the_clock_is_checked_at_once_and_until_the_end() {
    let machine = Machine::default();
    let told = machine.told.clone();
    let clock = Clock::of(settings(vec![server(HOUR * 1000).await]), Box::new(machine));
    let stop = CancellationToken::new();
    let kept = tokio::spawn(clock.keep(stop.clone()));
    while told.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    kept.await.unwrap();
}
