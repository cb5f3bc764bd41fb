//! Running: the threads of one life, and its way to the others.
//!
//! # Threads
//! node (what happens, to the core, in order) · follower, with a dial now and then · one per link ·
//! listener and one per connection (dispatcher) · per replica on a master: the ack reader (the
//! connection's thread) and the sender · applier · housekeeper · checkpointer · events · the log's
//! own. A thread of ours that panics or meets an error that only an operator can settle stops the
//! node.
//!
//! # Not here: what a life is (life.rs), whose seat it takes (seat.rs).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use noxu_util::Name;
use parking_lot::Mutex;

use super::checkpointer::Checkpointer;
use super::follower::{self, Orders};
use super::life::{Life, Surroundings, Target};
use super::links::Links;
use super::opening::Opened;
use super::seat::Seat;
use super::services;
use crate::core::commits::Now;
use crate::core::damage::DamageEvent;
use crate::core::node::Input;
use crate::error::Result;
use crate::net::channel::Channel;
use crate::net::dispatcher::{Dispatcher, dial};
use crate::restore::session::Work;
use crate::status::StateChange;
use crate::wire::election::ElectionMsg;

/// Events of the node itself that wait for the core at most. There is a handful per change of master.
const EVENTS: usize = 1024;

/// Messages of others that wait for the core at most; then their connections wait.
const MAIL: usize = 256;

/// How long the core is left alone at most when it has no wish of its own.
const IDLE: Duration = Duration::from_secs(1);

/// One life with its threads.
pub(crate) struct Running {
    pub(crate) life: Arc<Life>,
    pub(crate) links: Arc<Links>,
    pub(crate) orders: Arc<Orders>,
    dispatcher: Arc<Dispatcher>,
    checkpointer: Checkpointer,
    outside: Arc<Outside>,
    mail: Sender<Input>,
    inbox: Inbox,
    seat: OnceLock<Weak<Seat>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What waits for the core.
struct Inbox {
    events: Receiver<Input>,
    mail: Receiver<Input>,
    news: Receiver<News>,
    /// The timer was set anew.
    timer: Receiver<()>,
    /// Disconnected when the life ends.
    over: Receiver<()>,
}

/// What listeners are told.
#[derive(Debug)]
enum News {
    State(StateChange),
    Damage(DamageEvent),
}

/// The world as a life sees it.
struct Outside {
    links: Arc<Links>,
    orders: Arc<Orders>,
    events: Sender<Input>,
    news: Sender<News>,
    /// When the core wants to know of the time.
    due: Mutex<Option<Now>>,
    timer: Sender<()>,
    /// Dropped when the life ends.
    alive: Mutex<Option<Sender<()>>>,
    running: OnceLock<Weak<Running>>,
}

impl Running {
    /// A life over what `opened` has, behind `dispatcher`.
    ///
    /// # Errors
    /// A control file whose group configuration cannot be read.
    pub(crate) fn new(opened: Opened, dispatcher: Arc<Dispatcher>) -> Result<Arc<Self>> {
        let listening = || dispatcher.local_addr().to_string();
        let address = opened.config.advertise.clone().unwrap_or_else(listening);
        let (events, events_in) = bounded(EVENTS);
        let (mail, mail_in) = bounded(MAIL);
        let (news, news_in) = bounded(EVENTS);
        let (timer, timer_in) = bounded(1);
        let (alive, over) = bounded(0);
        let (links, orders) = (Arc::new(Links::default()), Arc::new(Orders::default()));
        let outside = Arc::new(Outside {
            links: Arc::clone(&links),
            orders: Arc::clone(&orders),
            events,
            news,
            due: Mutex::new(None),
            timer,
            alive: Mutex::new(Some(alive)),
            running: OnceLock::new(),
        });
        let around: Arc<dyn Surroundings> = Arc::clone(&outside) as Arc<dyn Surroundings>;
        let life = Life::new(opened, address, around)?;
        let running = Arc::new(Self {
            life,
            links,
            orders,
            dispatcher,
            checkpointer: Checkpointer::default(),
            outside: Arc::clone(&outside),
            mail,
            inbox: Inbox { events: events_in, mail: mail_in, news: news_in, timer: timer_in, over },
            seat: OnceLock::new(),
            threads: Mutex::default(),
        });
        let _ = outside.running.set(Arc::downgrade(&running)); // once
        Ok(running)
    }

    pub(crate) fn take_seat(&self, seat: &Arc<Seat>) {
        let _ = self.seat.set(Arc::downgrade(seat)); // once per life
    }

    pub(crate) fn dispatcher(&self) -> Arc<Dispatcher> {
        Arc::clone(&self.dispatcher)
    }

    /// Starts the threads, and with them the life.
    pub(crate) fn start(self: &Arc<Self>) {
        self.spawn("applier", |node| node.life.applier.run_thread());
        self.spawn("housekeeper", |node| {
            node.life.housekeeper.run_thread(|now| node.life.expire(now))
        });
        self.spawn("checkpointer", |node| {
            let life = &node.life;
            let (machine, housekeeper) = (&**life.applier.machine(), &*life.housekeeper);
            node.checkpointer.run_thread(&life.log, machine, housekeeper, |cause| {
                life.note_error(cause);
            });
            Ok(())
        });
        let weak = Arc::downgrade(self);
        self.life.log.on_checkpoint_wanted(move |vlsn| {
            if let Some(node) = weak.upgrade() {
                node.checkpointer.request(vlsn);
            }
        });
        self.spawn("events", |node| {
            node.tell_all();
            Ok(())
        });
        self.spawn("follower", follower::run);
        self.meet(self.life.config.peers.clone());
        self.life.start();
        self.spawn("node", |node| {
            node.run_core();
            Ok(())
        });
        // Last: from here on others reach it.
        services::register_restore(&self.dispatcher, self);
        services::register(&self.dispatcher, &Arc::downgrade(self));
    }

    /// The node's thread: what happens, to the core.
    fn run_core(self: &Arc<Self>) {
        while !self.life.is_over() {
            let Inbox { events, mail, timer, over, .. } = &self.inbox;
            let due = *self.outside.due.lock();
            let wait = due.map_or(IDLE, |due| due.saturating_sub(self.life.clock.now()).min(IDLE));
            // Events first: they are of the node itself, and few.
            let input = if let Ok(input) = events.try_recv() {
                Some(input)
            } else {
                select! {
                    recv(events) -> input => input.ok(),
                    recv(mail) -> input => input.ok(),
                    recv(timer) -> _ => continue, // another thread has set it
                    recv(over) -> _ => return,
                    default(wait) => None,
                }
            };
            match input {
                Some(input) => self.life.handle(input),
                None => self.life.handle_timeout(),
            }
        }
    }

    /// The events' thread: tells the listeners, one thing after the other.
    fn tell_all(&self) {
        loop {
            let news = select! {
                recv(self.inbox.news) -> news => news,
                recv(self.inbox.over) -> _ => {
                    // What was told before the end is not kept back.
                    for news in self.inbox.news.try_iter() {
                        self.tell(&news);
                    }
                    return;
                }
            };
            let Ok(news) = news else { return };
            self.tell(&news);
        }
    }

    fn tell(&self, news: &News) {
        let config = &self.life.config;
        let tell = || match news {
            News::State(change) => config.on_state.iter().for_each(|told| told(change)),
            News::Damage(event) => config.on_damage.iter().for_each(|told| told(event)),
        };
        if catch_unwind(AssertUnwindSafe(tell)).is_err() {
            tracing::error!(node = %config.name, ?news, "a listener panicked");
        }
    }

    /// Hands the core what came from another node; waits while it is behind.
    pub(crate) fn deliver(&self, input: Input) {
        // Fails only when nobody reads any more.
        select! {
            send(self.mail, input) -> _ => {}
            recv(self.inbox.over) -> _ => {}
        }
    }

    /// Nodes of the group are reached at these addresses.
    pub(crate) fn meet(self: &Arc<Self>, addresses: Vec<String>) {
        self.links.meet(&self.life.address, addresses);
        self.links.start_new(self);
    }

    /// Runs `body` in a thread of the life. If it fails or panics, the node stops.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(&Arc<Self>) -> Result<()> + Send + 'static,
    ) {
        let node = Arc::clone(self);
        let title = name.to_owned();
        let run = move || match catch_unwind(AssertUnwindSafe(|| body(&node))) {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => node.life.fail(&format!("{title}: {cause}")),
            Err(_) => node.life.fail(&format!("the thread {title} panicked")),
        };
        match std::thread::Builder::new().name(format!("noxu-{name}")).spawn(run) {
            Ok(thread) => {
                let mut threads = self.threads.lock();
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
            }
            Err(cause) => self.life.fail(&format!("no thread for {name}: {cause}")),
        }
    }

    /// A restore has committed: another life is to take the seat.
    pub(crate) fn begin_next_life(&self) {
        if let Some(seat) = self.seat.get().and_then(Weak::upgrade) {
            seat.begin_next_life();
        }
    }

    /// Ends this life before the next one: its threads are joined, its log is closed, its port and
    /// state machine stay.
    ///
    /// # Errors
    /// `Stopped` if the life is over anyway; the log's.
    pub(crate) fn retire(&self) -> Result<()> {
        if !self.life.begin_retiring() {
            return Err(Seat::gone());
        }
        self.stop_threads();
        self.join_threads();
        self.life.retire()
    }

    /// Ends everything about a life that was retired, and has no next one.
    pub(crate) fn end_retired(&self) {
        self.dispatcher.stop();
        self.life.end_retired();
    }

    /// Ends the life and everything about it.
    ///
    /// # Errors
    /// The log's, or what stopped the node before.
    pub(crate) fn shutdown(&self) -> Result<()> {
        if let Err(outcome) = self.life.begin_shutdown() {
            return outcome;
        }
        self.stop_threads();
        self.dispatcher.stop();
        self.join_threads();
        self.life.finish_shutdown()
    }

    fn stop_threads(&self) {
        self.life.stop();
        self.outside.end();
        self.checkpointer.stop();
    }

    fn join_threads(&self) {
        // A thread that is being started while this runs is in the list by the next look.
        loop {
            let threads = std::mem::take(&mut *self.threads.lock());
            if threads.is_empty() {
                break;
            }
            for thread in threads {
                if thread.thread().id() != std::thread::current().id() {
                    let _ = thread.join(); // its panic has been reported
                }
            }
        }
    }
}

impl Outside {
    fn end(&self) {
        drop(self.alive.lock().take());
        self.orders.stop();
        self.links.stop();
    }

    fn announce(&self, news: News) {
        if let Err(TrySendError::Full(news)) = self.news.try_send(news) {
            tracing::error!(?news, "a listener does not keep up and misses this");
        }
    }

    fn running(&self) -> Option<Arc<Running>> {
        self.running.get().and_then(Weak::upgrade)
    }
}

impl Surroundings for Outside {
    fn post(&self, input: Input) {
        match self.events.try_send(input) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(input)) => {
                if let Some(running) = self.running() {
                    running.life.fail(&format!("the core does not keep up: {input:?} has no room"));
                }
            }
        }
    }

    fn set_timer(&self, due: Option<Now>) {
        if std::mem::replace(&mut *self.due.lock(), due) != due {
            let _ = self.timer.try_send(()); // one that is not taken yet will do
        }
    }

    fn send(&self, to: &Name, message: &ElectionMsg) {
        self.links.send(to, message);
    }

    fn follow(&self, target: Target) {
        self.orders.give(target);
    }

    fn meet(&self, addresses: Vec<String>) {
        if let Some(running) = self.running() {
            running.meet(addresses);
        }
    }

    fn tell(&self, change: StateChange) {
        self.announce(News::State(change));
    }

    fn run_beside(&self, work: Work) -> Option<Work> {
        let name = "noxu-beside".to_owned();
        // The library drops what it finds no thread for.
        let work = Arc::new(Mutex::new(Some(work)));
        let begun = std::thread::Builder::new().name(name).spawn({
            let work = Arc::clone(&work);
            move || {
                let work = work.lock().take();
                if let Some(work) = work {
                    work();
                }
            }
        });
        let cause = begun.err()?;
        tracing::warn!("no thread for what could go on beside: {cause}");
        work.lock().take()
    }

    fn has_threads(&self) -> bool {
        true
    }

    fn tell_damage(&self, event: DamageEvent) {
        self.announce(News::Damage(event));
    }

    fn mend_disk(&self) {
        if let Some(running) = self.running() {
            running.spawn("disk-mender", |node| {
                node.life.mend_disk();
                Ok(())
            });
        }
    }

    fn look_again(&self) {
        self.orders.look_again();
    }

    fn handle_failed(&self) {
        self.end();
        if let Some(running) = self.running() {
            running.checkpointer.stop();
        }
    }

    fn dial(&self, address: &str, service: &str, timeout: Duration) -> Result<Arc<dyn Channel>> {
        let channel = dial(address, service, timeout)?;
        Ok(channel)
    }
}
