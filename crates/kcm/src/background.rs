//! The one thread that sleeps in the background, for the whole process.
//!
//! It never stands in the way of a message. It sends what the system did not take at once when it
//! takes it, accepts connections of listeners, ends what has timed out, and sends replies that a
//! thread kept back for one another and then forgot over long work (`gather.rs`). It is started
//! when first needed, and sleeps while there is nothing to do.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    mem::MaybeUninit,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::Errno,
};

use crate::{
    error::Result,
    event::EndReason,
    gather::{Gathered, Ticked},
    mux::{HALF_CLOSE_GRACE, Mux},
    psock::{NO_PARTIAL, Psock},
    ring,
    sync::pause,
    sys,
    transport::Carrier,
};

/// Replies kept back are looked after this often: what a thread gathers it sends itself within
/// 200 us, unless it has turned to something else.
const TICK: Duration = Duration::from_millis(1);
/// While that goes well, a little less often each time, down to this; once replies had to be sent for
/// a thread, it is [`TICK`] again. A tick that interrupts a busy thread costs it 10 us, so that those
/// of a millisecond took 1 % of a server of small requests.
const LONGEST_TICK: Duration = Duration::from_millis(8);
/// A thread that has gathered no replies for so many ticks is not looked at any more.
const IDLE_TICKS: u32 = 50;
/// A closed or half-closed stream is looked at again after this, and twice as long each time, up to
/// the other.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(64);
/// A listener whose connection limit is reached is tried again after this.
const LISTEN_AGAIN: Duration = Duration::from_millis(10);

static BACKGROUND: OnceLock<Background> = OnceLock::new();

/// The thread, if it was started.
pub(crate) fn if_started() -> Option<&'static Background> {
    BACKGROUND.get()
}

/// The thread, started at the first call.
pub(crate) fn get() -> &'static Background {
    BACKGROUND.get_or_init(|| {
        // Without an epoll, an eventfd or a thread the process is at its limits in a way that
        // nothing here could be done about.
        let background = Background::new().expect("the background thread needs two descriptors");
        thread::Builder::new()
            .name("kcm-background".into())
            .spawn(|| get().run())
            .expect("the background thread can be started");
        background
    })
}

/// Keeps a stream on which all is sent until that has come to its peer, at most for so long. (The
/// system would go on alone, but not where the peer says more to a stream that is closed: it resets
/// such a connection and throws away what is under way.)
pub(crate) fn see_off(carrier: Arc<Carrier>, linger: Duration) {
    if carrier.is_under_way() {
        let job = Job::SeeOff(carrier, sys::from_now(linger), FIRST_LOOK);
        get().at(Instant::now() + FIRST_LOOK, job);
    }
}

pub(crate) struct Background {
    epoll: OwnedFd,
    bell: OwnedFd,
    next_key: AtomicU64,
    work: Mutex<Work>,
}

#[derive(Default)]
struct Work {
    watched: HashMap<u64, Watched>,
    timers: BinaryHeap<Reverse<Timer>>,
    ticking: Vec<(Weak<Gathered>, u32)>,
    tick: Duration,
    /// Closing connections that still send; nobody else keeps them alive any more.
    lingering: HashMap<u64, Arc<Psock>>,
}

#[derive(Clone)]
enum Watched {
    Writable(Weak<Psock>),
    Listener(Weak<Mux>, Arc<TcpListener>),
}

struct Timer {
    at: Instant,
    key: u64,
    job: Job,
}

#[derive(Clone)]
enum Job {
    Deadline(Weak<Psock>),
    /// Its peer has closed its direction: looked at after so long, and unused for so long by then.
    HalfClosed(Weak<Psock>, Duration, Duration),
    Answered(Weak<Psock>),
    Flush(Weak<Psock>),
    Ring(Weak<Mux>),
    Keys(Weak<Mux>),
    /// The connection of this number has had its time.
    Linger(u64),
    /// A closed stream is kept until then; and until the next look.
    SeeOff(Arc<Carrier>, Instant, Duration),
    Listen(Weak<Mux>, Arc<TcpListener>),
}

impl Background {
    fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &bell, data, epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            bell,
            next_key: AtomicU64::new(1),
            work: Mutex::default(),
        })
    }

    /// Goes on sending on this connection when the system takes more.
    pub(crate) fn watch_writable(&self, psock: &Arc<Psock>) {
        let Some(carrier) = psock.tx.carrier() else {
            return;
        };
        let key = psock.background_key.get_or_init(|| self.key());
        let data = epoll::EventData::new_u64(*key);
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT;
        self.work()
            .watched
            .insert(*key, Watched::Writable(Arc::downgrade(psock)));
        let result = match epoll::add(&self.epoll, carrier.as_fd(), data, flags) {
            Err(Errno::EXIST) => epoll::modify(&self.epoll, carrier.as_fd(), data, flags),
            result => result,
        };
        if let Err(e) = result {
            psock.tx.abort(psock, EndReason::System(e.raw_os_error()));
        }
    }

    /// The connection's stream is about to leave: nothing is registered of it any more.
    pub(crate) fn forget(&self, psock: &Psock, carrier: &Carrier) {
        if let Some(key) = psock.background_key.get() {
            self.work().watched.remove(key);
            let _ = epoll::delete(&self.epoll, carrier.as_fd());
        }
    }

    /// Accepts connections for the multiplexor.
    pub(crate) fn listen(&self, mux: &Arc<Mux>, listener: TcpListener) -> Result<()> {
        self.add_listener(Arc::downgrade(mux), Arc::new(listener))
    }

    fn add_listener(&self, mux: Weak<Mux>, listener: Arc<TcpListener>) -> Result<()> {
        let key = self.key();
        let data = epoll::EventData::new_u64(key);
        let watched = Watched::Listener(mux, listener.clone());
        self.work().watched.insert(key, watched);
        if let Err(e) = epoll::add(&self.epoll, &listener, data, epoll::EventFlags::IN) {
            self.work().watched.remove(&key);
            return Err(e.into());
        }
        Ok(())
    }

    /// Stops accepting for a multiplexor that closes.
    pub(crate) fn stop_listening(&self, mux: &Mux) {
        self.work().watched.retain(|_, watched| match watched {
            Watched::Listener(owner, _) => !std::ptr::eq(owner.as_ptr(), mux),
            Watched::Writable(_) => true,
        });
    }

    /// Looks at the connection's unfinished message when its time may be over.
    pub(crate) fn deadline(&self, psock: &Arc<Psock>, after: Duration) {
        self.at(sys::from_now(after), Job::Deadline(Arc::downgrade(psock)));
    }

    /// Closes the connection when nobody answers its peer any more.
    pub(crate) fn half_closed(&self, psock: &Arc<Psock>) {
        self.look_at_half_closed(Arc::downgrade(psock), FIRST_LOOK, Duration::ZERO);
    }

    /// The peer of a half-closed connection was sent as many messages as it sent: has a look whether
    /// that was all, once who sent the last is done with its message.
    pub(crate) fn answered(&self, psock: &Arc<Psock>) {
        // SYNC: release, with the acquire in `timers`: the look sees what was sent.
        if !psock.end_look_set.swap(true, Ordering::AcqRel) {
            let job = Job::Answered(Arc::downgrade(psock));
            self.at(Instant::now() + FIRST_LOOK, job);
        }
    }

    fn look_at_half_closed(&self, psock: Weak<Psock>, after: Duration, unused: Duration) {
        let job = Job::HalfClosed(psock, after, unused);
        self.at(Instant::now() + after, job);
    }

    /// Keeps the closing connection for what it still sends, and gives it up then.
    pub(crate) fn linger(&self, psock: &Arc<Psock>, linger: Duration) {
        let key = *psock.background_key.get_or_init(|| self.key());
        self.work().lingering.insert(key, psock.clone());
        self.at(sys::from_now(linger), Job::Linger(key));
        // It may have sent all meanwhile.
        if psock.tx.carrier().is_none() {
            self.end_linger(psock);
        }
    }

    /// A connection has nothing more to send.
    pub(crate) fn end_linger(&self, psock: &Psock) {
        if let Some(key) = psock.background_key.get() {
            let mut work = self.work();
            // (A weak reference keeps a connection's memory, if nothing else of it.)
            work.watched.remove(key);
            let lingering = work.lingering.remove(key);
            drop(work);
            drop(lingering);
        }
    }

    /// Looks after replies that a thread keeps back.
    pub(crate) fn tick(&self, gathered: &Arc<Gathered>) {
        if !gathered.begin_ticking() {
            return;
        }
        let mut work = self.work();
        work.ticking.push((Arc::downgrade(gathered), 0));
        let late = work.ticking.len() == 1 || work.tick > TICK;
        work.tick = TICK;
        drop(work);
        if late {
            self.ring();
        }
    }

    /// Sends, a little later, what a batch keeps back on this connection.
    pub(crate) fn flush_later(&self, psock: &Arc<Psock>) {
        self.at(Instant::now() + TICK, Job::Flush(Arc::downgrade(psock)));
    }

    /// Looks now and then whether the leader of a ring answers.
    pub(crate) fn look_at_ring(&self, mux: &Arc<Mux>) {
        self.at(Instant::now() + ring::LOOK, Job::Ring(Arc::downgrade(mux)));
    }

    /// Looks then whether messages have waited too long for a socket that has their key.
    pub(crate) fn look_at_keys(&self, mux: &Arc<Mux>, at: Instant) {
        self.at(at, Job::Keys(Arc::downgrade(mux)));
    }

    fn key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        pause();
        self.work.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn at(&self, at: Instant, job: Job) {
        let key = self.key();
        let mut work = self.work();
        let sooner = work.timers.peek().is_none_or(|first| at < first.0.at);
        work.timers.push(Reverse(Timer { at, key, job }));
        drop(work);
        if sooner {
            self.ring();
        }
    }

    fn run(&self) {
        loop {
            let mut room = [const { MaybeUninit::uninit() }; 64];
            let timeout = self.timeout();
            if let Ok((events, _)) = epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
                for event in events.iter() {
                    self.event(event.data.u64());
                }
            }
            self.timers();
            self.ticks();
        }
    }

    /// Until the next thing to do.
    fn timeout(&self) -> Option<Timespec> {
        let work = self.work();
        let timer = work
            .timers
            .peek()
            .map(|first| first.0.at.saturating_duration_since(Instant::now()));
        let tick = (!work.ticking.is_empty()).then_some(work.tick);
        let wait = match (timer, tick) {
            (Some(timer), Some(tick)) => timer.min(tick),
            (timer, tick) => timer.or(tick)?,
        };
        Some(Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        })
    }

    fn event(&self, key: u64) {
        if key == 0 {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
            return;
        }
        let watched = self.work().watched.get(&key).cloned();
        match watched {
            Some(Watched::Writable(psock)) => {
                if let Some(psock) = psock.upgrade() {
                    psock.tx.writable(&psock);
                }
            }
            Some(Watched::Listener(mux, listener)) => {
                let open = mux.upgrade().filter(|mux| !mux.is_closed());
                let full = open.as_ref().is_some_and(|mux| !mux.accept_from(&listener));
                if open.is_none() || full {
                    self.work().watched.remove(&key);
                    let _ = epoll::delete(&self.epoll, &listener);
                }
                if full {
                    self.at(Instant::now() + LISTEN_AGAIN, Job::Listen(mux, listener));
                }
            }
            None => {}
        }
    }

    fn timers(&self) {
        let now = Instant::now();
        loop {
            let mut work = self.work();
            if work.timers.peek().is_none_or(|first| first.0.at > now) {
                return;
            }
            let Some(Reverse(timer)) = work.timers.pop() else {
                return;
            };
            drop(work);
            match timer.job {
                Job::Deadline(psock) => self.check_deadline(psock),
                Job::HalfClosed(psock, after, unused) => {
                    self.check_half_closed(psock, after, unused);
                }
                Job::Answered(psock) => {
                    if let Some(psock) = psock.upgrade() {
                        // SYNC: acquire, with the release in `answered`.
                        psock.end_look_set.swap(false, Ordering::AcqRel);
                        psock.mux.finish_half_closed(&psock);
                    }
                }
                Job::Ring(mux) => {
                    if let Some(mux) = mux.upgrade()
                        && mux.look_at_ring()
                    {
                        self.look_at_ring(&mux);
                    }
                }
                Job::Keys(mux) => {
                    if let Some(mux) = mux.upgrade() {
                        mux.expire_keys();
                    }
                }
                Job::Flush(psock) => {
                    if let Some(psock) = psock.upgrade() {
                        psock.tx.flush(&psock);
                    }
                }
                Job::Linger(key) => {
                    let lingering = self.work().lingering.remove(&key);
                    if let Some(psock) = lingering {
                        psock.tx.abort(&psock, EndReason::Closed);
                    }
                }
                Job::SeeOff(carrier, until, wait) => {
                    if now < until && carrier.is_under_way() {
                        let wait = (wait * 2).min(LONGEST_LOOK);
                        self.at(now + wait, Job::SeeOff(carrier, until, wait));
                    }
                }
                // Where the system has no room for it now, it has next time.
                Job::Listen(mux, listener) => {
                    if mux.strong_count() > 0
                        && self.add_listener(mux.clone(), listener.clone()).is_err()
                    {
                        self.at(now + LISTEN_AGAIN, Job::Listen(mux, listener));
                    }
                }
            }
        }
    }

    fn check_deadline(&self, psock: Weak<Psock>) {
        let Some(psock) = psock.upgrade() else { return };
        psock.deadline_set.store(false, Ordering::Release);
        let since_ns = psock.partial_since_ns.load(Ordering::Relaxed);
        let limit = psock.deadline();
        let (true, Some(limit)) = (since_ns != NO_PARTIAL && !psock.has_ended(), limit) else {
            return;
        };
        let age = Duration::from_nanos(psock.mux.watched_ns().saturating_sub(since_ns));
        if age >= limit {
            psock.deadline_passed.store(true, Ordering::Relaxed);
            psock.notify();
            psock.mux.bring_watcher_back();
        } else if !psock.deadline_set.swap(true, Ordering::AcqRel) {
            self.deadline(&psock, (limit - age).max(TICK));
        }
    }

    fn check_half_closed(&self, weak: Weak<Psock>, after: Duration, unused: Duration) {
        let Some(psock) = weak.upgrade() else { return };
        if psock.tx.is_over() || psock.mux.finish_half_closed(&psock) {
            return;
        }
        // Work on its messages goes on, or its peer reads slowly.
        let in_use = psock.tx.queued_bytes() > 0 || psock.is_in_use();
        let unused = if in_use {
            Duration::ZERO
        } else {
            unused + after
        };
        if unused >= HALF_CLOSE_GRACE {
            psock.mux.remove_and_close(&psock);
        } else {
            self.look_at_half_closed(weak, (after * 2).min(LONGEST_LOOK), unused);
        }
    }

    fn ticks(&self) {
        let ticking = std::mem::take(&mut self.work().ticking);
        if ticking.is_empty() {
            return;
        }
        let mut still = Vec::with_capacity(ticking.len());
        let mut any_sent = false;
        for (weak, idle) in ticking {
            let Some(gathered) = weak.upgrade() else {
                continue;
            };
            let Ticked { busy, sent } = gathered.tick();
            any_sent |= sent;
            let idle = if busy { 0 } else { idle + 1 };
            if idle < IDLE_TICKS {
                still.push((weak, idle));
            } else {
                gathered.end_ticking();
            }
        }
        let mut work = self.work();
        work.ticking.append(&mut still);
        work.tick = if any_sent {
            TICK
        } else {
            (work.tick + work.tick / 8).min(LONGEST_TICK)
        };
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.key).cmp(&(other.at, other.key))
    }
}
