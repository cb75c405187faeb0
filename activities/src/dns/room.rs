//! How much of the forwarder one client may take. Steps are not trusted, and they ask from other addresses than the machine's own.
//!
//! ```text
//! all ─┬─ the reserve: for the machine itself, which is the builder and its daemons
//!      └─ the rest: for everybody; a client has `each` of it at most, and never more than is still free
//! ```
//!
//! By the last rule a newcomer finds a place: whoever takes all it gets leaves at least as much, and when the rest is used up, what is given
//! back goes to those who have least.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Numbers of places.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub all: usize,
    /// Of them, those that only the machine itself gets. It may have any number.
    pub reserve: usize,
    /// The most that another client gets.
    pub each: usize,
}

pub struct Room {
    limits: Limits,
    /// The machine's own address.
    own: IpAddr,
    taken: Mutex<Taken>,
}

/// Has no entry for whoever has no place, so it is never larger than the room.
#[derive(Debug, Default)]
struct Taken {
    own: usize,
    others: usize,
    by: HashMap<IpAddr, usize>,
}

/// A place that is taken until this is dropped.
pub struct Place {
    room: Arc<Room>,
    client: IpAddr,
}

impl Room {
    pub fn new(limits: Limits, own: IpAddr) -> Arc<Self> {
        Arc::new(Self { limits, own, taken: Mutex::default() })
    }

    /// `None` when this client gets no more now.
    pub fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let client = client.to_canonical();
        let mut taken = self.taken();
        let free = taken.free(self.limits);
        if client == self.own {
            if taken.own + taken.others >= self.limits.all {
                return None;
            }
            taken.own += 1;
        } else {
            let has = taken.by.get(&client).copied().unwrap_or(0);
            if has >= self.limits.each.min(free) {
                return None;
            }
            taken.by.insert(client, has + 1);
            taken.others += 1;
        }
        Some(Place { room: self.clone(), client })
    }

    /// Nothing panics while it holds the lock.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Of what is everybody's.
    fn free(&self, limits: Limits) -> usize {
        limits.all.saturating_sub(limits.reserve.max(self.own) + self.others)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        if self.client == self.room.own {
            taken.own -= 1;
            return;
        }
        taken.others -= 1;
        let left = taken.by.get(&self.client).copied().unwrap_or(0).saturating_sub(1);
        match left {
            0 => taken.by.remove(&self.client),
            left => taken.by.insert(self.client, left),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { all: 64, reserve: 8, each: 16 };

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 64, 3, last).into()
    }

    fn room() -> Arc<Room> {
        Room::new(LIMITS, address(2))
    }

    /// Takes whatever it gets.
    fn greedy(room: &Arc<Room>, client: u8) -> Vec<Place> {
        std::iter::from_fn(|| room.enter(address(client))).collect()
    }

    #[test]
    fn whoever_takes_all_it_gets_leaves_places_for_the_others() {
        let room = room();
        let first = greedy(&room, 128);
        assert_eq!(first.len(), 16);
        let others: Vec<_> = (129..=255).map(|client| greedy(&room, client)).collect();
        let got: Vec<_> = others.iter().map(Vec::len).take_while(|got| *got > 0).collect();
        assert_eq!(got, [16, 12, 6, 3, 2, 1]);
        let own = greedy(&room, 2);
        assert!(own.len() >= 8, "the machine itself has its reserve: {}", own.len());
        assert!(room.enter(address(2)).is_none() && room.enter(address(128)).is_none());
        let mut first = first;
        first.pop();
        assert!(room.enter(address(128)).is_none(), "it is for somebody who has none");
        assert!(room.enter(address(200)).is_some());
        drop(first);
        assert!(room.enter(address(128)).is_some());
    }

    #[test]
    fn nobody_is_remembered_who_has_left() {
        let room = room();
        drop((greedy(&room, 128), greedy(&room, 129), greedy(&room, 2)));
        let taken = room.taken();
        assert!(taken.by.is_empty() && taken.own == 0 && taken.others == 0, "{taken:?}");
    }

    proptest! {
        /// Whoever comes and goes in whatever order: there are never more places than there are, and the reserve is the machine's.
        #[test]
        fn the_room_is_never_overfull(steps in prop::collection::vec((2u8..12, any::<bool>()), 1..400)) {
            let room = room();
            let mut places: Vec<Place> = Vec::new();
            for (client, enters) in steps {
                let client = address(client);
                if enters {
                    places.extend(room.enter(client));
                } else if let Some(at) = places.iter().position(|place| place.client == client) {
                    places.swap_remove(at);
                }
                let taken = room.taken();
                prop_assert_eq!(taken.own + taken.others, places.len());
                prop_assert_eq!(taken.by.values().sum::<usize>(), taken.others);
                prop_assert!(places.len() <= LIMITS.all && taken.others <= LIMITS.all - LIMITS.reserve);
                prop_assert!(taken.by.values().all(|count| (1..=LIMITS.each).contains(count)));
            }
        }
    }
}
