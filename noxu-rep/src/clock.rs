//! Clock: time as the cores take it, since the node started, and as people tell it.
//!
//! A node takes both from one clock, so that whoever gives it a manual one decides about all its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time since it was made. Clones tell the same time.
#[derive(Debug, Clone)]
pub struct Clock {
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    System(Instant),
    Manual(Arc<Hands>),
}

/// Where a manual clock stands.
#[derive(Debug, Default)]
struct Hands {
    elapsed_ns: AtomicU64,
    wall_ms: AtomicU64,
}

impl Clock {
    /// The system's clock; starts now.
    pub fn start() -> Self {
        Self { source: Source::System(Instant::now()) }
    }

    /// A clock that stands at zero until its hand moves it.
    pub fn manual() -> (Self, ClockHand) {
        let hands = Arc::<Hands>::default();
        (Self { source: Source::Manual(Arc::clone(&hands)) }, ClockHand { hands })
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        match &self.source {
            Source::System(start) => start.elapsed(),
            Source::Manual(hands) => Duration::from_nanos(hands.elapsed_ns.load(Ordering::Acquire)),
        }
    }

    /// Milliseconds since 1970; nothing safe depends on it.
    pub fn wall_clock_ms(&self) -> u64 {
        match &self.source {
            Source::System(_) => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                since.map_or(0, |since| since.as_millis() as u64)
            }
            Source::Manual(hands) => hands.wall_ms.load(Ordering::Acquire),
        }
    }
}

/// Moves a manual clock.
#[derive(Debug, Clone)]
pub struct ClockHand {
    hands: Arc<Hands>,
}

impl ClockHand {
    /// Makes it `now` since the start.
    ///
    /// # Panics
    /// If it was later already: this time never goes back.
    pub fn set(&self, now: Duration) {
        let now = u64::try_from(now.as_nanos()).expect("less than 580 years");
        let before = self.hands.elapsed_ns.swap(now, Ordering::AcqRel);
        assert!(before <= now, "{now} ns after {before} ns");
    }

    /// Sets the time as people tell it, which may step back.
    pub fn set_wall_clock_ms(&self, wall_ms: u64) {
        self.hands.wall_ms.store(wall_ms, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_still_until_its_hand_moves_it() {
        let (clock, hand) = Clock::manual();
        let other = clock.clone();
        assert_eq!((clock.now(), clock.wall_clock_ms()), (Duration::ZERO, 0));
        hand.set(Duration::from_millis(5));
        hand.set_wall_clock_ms(70);
        hand.set_wall_clock_ms(60);
        assert_eq!((other.now(), other.wall_clock_ms()), (Duration::from_millis(5), 60));
    }

    #[test]
    #[should_panic(expected = "4000000 ns after 5000000 ns")]
    fn a_manual_clock_never_goes_back() {
        let (_, hand) = Clock::manual();
        hand.set(Duration::from_millis(5));
        hand.set(Duration::from_millis(4));
    }
}
