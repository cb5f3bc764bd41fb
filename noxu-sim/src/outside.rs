//! Outside: the simulated world as one life of a node sees it.
//!
//! Whatever the life wants of it is noted here and done by the world once the step is over; only
//! dialling, which tasks do, happens at once.
//!
//! # Not here: whom to follow and how (follower.rs), what is done with the notes (node.rs).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use noxu_rep::DamageEvent;
use noxu_rep::core::commits::Now;
use noxu_rep::core::node::Input;
use noxu_rep::driver::feeding::Feeding;
use noxu_rep::driver::life::{Surroundings, Target};
use noxu_rep::error::{RepError, Result};
use noxu_rep::net::channel::Channel;
use noxu_rep::net::dispatcher::{
    ELECTION_SERVICE_NAME, FEEDER_SERVICE_NAME, RESTORE_SERVICE_NAME, STATUS_SERVICE_NAME,
};
use noxu_rep::status::StateChange;
use noxu_rep::wire::election::link::Introduction;
use noxu_rep::wire::election::{ElectionMsg, Peer};
use noxu_util::Name;
use parking_lot::{Mutex, MutexGuard};

use crate::baton::Waiter;
use crate::channel::SimChannel;
use crate::event::{Agenda, Event, Host};
use crate::network::{EndId, Network};

/// The services that a simulated node answers.
pub(crate) const SERVICES: [&str; 4] =
    [FEEDER_SERVICE_NAME, ELECTION_SERVICE_NAME, STATUS_SERVICE_NAME, RESTORE_SERVICE_NAME];

/// One life's way to the world.
pub(crate) struct Outside {
    pub(crate) host: Host,
    pub(crate) network: Network,
    pub(crate) agenda: Agenda,
    notes: Mutex<Notes>,
    rng: Mutex<Rng>,
}

/// What is to be done.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) inbox: VecDeque<Input>,
    pub(crate) sends: Vec<(Name, ElectionMsg)>,
    pub(crate) due: Option<Now>,
    pub(crate) order: (u64, Option<Target>),
    /// What the follower sleeps or dials in.
    pub(crate) follower: Option<Waiter>,
    pub(crate) dialling: Option<EndId>,
    again: bool,
    pub(crate) changes: Vec<StateChange>,
    /// What became known of damage on the disk.
    pub(crate) damage: Vec<DamageEvent>,
    /// Somebody is to mend the disk.
    pub(crate) mend_disk: bool,
    /// Why conversations ended.
    pub(crate) ended: Vec<String>,
    /// Why the life has failed.
    pub(crate) failed: Option<String>,
    /// A restore has everything: the next life is to begin.
    pub(crate) restored: bool,
    /// Streams that have opened.
    pub(crate) feedings: Vec<(Arc<SimChannel>, Feeding)>,
    /// Links that this node has dialled.
    pub(crate) dialled: Vec<(Host, Option<(SimChannel, Introduction)>)>,
    /// Links that others have dialled.
    pub(crate) admitted: Vec<(Host, SimChannel, Peer)>,
}

impl Outside {
    pub(crate) fn new(host: Host, network: Network, agenda: Agenda, rng: Rng) -> Self {
        Self { host, network, agenda, notes: Mutex::default(), rng: Mutex::new(rng) }
    }

    /// A number from 0 to 1.
    pub(crate) fn draw(&self) -> f64 {
        self.rng.lock().f64()
    }

    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock()
    }

    pub(crate) fn stands(&self, number: u64) -> bool {
        let notes = self.notes.lock();
        notes.order.0 == number && notes.failed.is_none()
    }

    /// Lets the follower sleep until there is an order after number `after`, something may succeed,
    /// or the time is up. False if the task is to end.
    pub(crate) fn sleep(&self, after: u64, time: Duration) -> bool {
        if self.notes.lock().order.0 != after || std::mem::take(&mut self.notes.lock().again) {
            return true;
        }
        let until = self.agenda.now() + time;
        let awake = self.agenda.sleep(until, |waiter| self.notes.lock().follower = Some(waiter));
        let mut notes = self.notes.lock();
        notes.follower = None;
        notes.again = false;
        awake
    }

    /// Dials for the follower; gives up when another order comes.
    pub(crate) fn dial_feeder(&self, to: Host, timeout: Duration) -> Result<SimChannel> {
        let told = |end| self.notes.lock().dialling = Some(end);
        let dialled = self.network.dial_telling(self.host, to, FEEDER_SERVICE_NAME, timeout, told);
        self.notes.lock().dialling = None;
        dialled
    }

    pub(crate) fn fail(&self, cause: &str) {
        self.notes.lock().failed.get_or_insert_with(|| cause.to_owned());
    }

    fn wake_follower(&self) {
        let (waiter, end) = {
            let mut notes = self.notes.lock();
            (notes.follower.take(), notes.dialling.take())
        };
        if let Some(waiter) = waiter {
            self.agenda.post(self.agenda.now(), Event::Wake(waiter));
        }
        if let Some(end) = end {
            self.network.close(end);
        }
    }
}

impl Surroundings for Outside {
    fn post(&self, input: Input) {
        self.notes.lock().inbox.push_back(input);
    }

    fn set_timer(&self, due: Option<Now>) {
        self.notes.lock().due = due;
    }

    fn send(&self, to: &Name, message: &ElectionMsg) {
        self.notes.lock().sends.push((to.clone(), message.clone()));
    }

    fn follow(&self, target: Target) {
        {
            let mut notes = self.notes.lock();
            if notes.order.1.as_ref().is_some_and(|before| target.continues(before)) {
                notes.order.1 = Some(target);
                return;
            }
            notes.order = (notes.order.0 + 1, Some(target));
        }
        self.wake_follower();
    }

    /// Every node knows every address from the beginning.
    fn meet(&self, _addresses: Vec<String>) {}

    fn tell(&self, change: StateChange) {
        self.notes.lock().changes.push(change);
    }

    fn tell_damage(&self, event: DamageEvent) {
        self.notes.lock().damage.push(event);
    }

    fn mend_disk(&self) {
        self.notes.lock().mend_disk = true;
    }

    fn look_again(&self) {
        let waiter = {
            let mut notes = self.notes.lock();
            notes.again = true;
            notes.follower.take()
        };
        if let Some(waiter) = waiter {
            self.agenda.post(self.agenda.now(), Event::Wake(waiter));
        }
    }

    fn handle_failed(&self) {
        self.fail("the life has failed");
    }

    fn dial(&self, address: &str, service: &str, timeout: Duration) -> Result<Arc<dyn Channel>> {
        let closed = || RepError::Closed { peer: address.to_owned() };
        let to = Network::host_of(address).ok_or_else(closed)?;
        let service = SERVICES.into_iter().find(|known| *known == service).ok_or_else(closed)?;
        Ok(Arc::new(self.network.dial(self.host, to, service, timeout)?))
    }
}
