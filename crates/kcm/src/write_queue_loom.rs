use std::{collections::VecDeque, io};

use loom::{cell::UnsafeCell, thread};

use super::*;
use crate::{
    outgoing,
    sync::{Arc, Condvar, Mutex, lock},
};

/// Stands for the system. Its cell finds two threads that write at once, or one after the other
/// with nothing between them that orders their memory.
#[derive(Clone)]
struct Wire(Arc<UnsafeCell<Inside>>);

#[derive(Default)]
struct Inside {
    bytes: Vec<u8>,
    /// Bytes taken before it is full, each time.
    room: usize,
    /// Takes before it is full.
    full: bool,
    /// It breaks when so many bytes are through.
    breaks_after: Option<usize>,
    shut: usize,
}

// SAFETY: what the models are to show.
unsafe impl Send for Wire {}
unsafe impl Sync for Wire {}

impl Wire {
    /// Takes all.
    fn new() -> Self {
        Self::taking(usize::MAX)
    }

    /// Takes at most so many bytes at once, and is full every other time.
    fn taking(room: usize) -> Self {
        Self(Arc::new(UnsafeCell::new(Inside {
            room,
            ..Inside::default()
        })))
    }

    fn breaking_after(bytes: usize) -> Self {
        Self(Arc::new(UnsafeCell::new(Inside {
            room: usize::MAX,
            breaks_after: Some(bytes),
            ..Inside::default()
        })))
    }

    fn take(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.with_mut(|inside| {
            // SAFETY: loom's cell has looked.
            let inside = unsafe { &mut *inside };
            assert_eq!(inside.shut, 0, "nothing is sent after the end");
            if std::mem::take(&mut inside.full) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let left = inside.breaks_after.map(|end| end - inside.bytes.len());
            if left == Some(0) {
                return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
            }
            let n = bytes.len().min(inside.room).min(left.unwrap_or(usize::MAX));
            inside.full = n < bytes.len() && left.is_none();
            inside.bytes.extend_from_slice(&bytes[..n]);
            Ok(n)
        })
    }

    fn bytes(&self) -> Vec<u8> {
        // SAFETY: loom's cell has looked.
        self.0.with(|inside| unsafe { (*inside).bytes.clone() })
    }

    fn times_shut(&self) -> usize {
        // SAFETY: loom's cell has looked.
        self.0.with(|inside| unsafe { (*inside).shut })
    }
}

impl Outlet for Wire {
    fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.take(&outgoing::concat(pieces, 0)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    fn send_front(&self, messages: &VecDeque<Outgoing>, skip: usize) -> io::Result<usize> {
        let all: Vec<u8> = messages
            .iter()
            .flat_map(|message| message.bytes().iter().copied())
            .collect();
        self.take(&all[skip..])
    }

    fn shutdown(&self) {
        // SAFETY: loom's cell has looked.
        self.0.with_mut(|inside| unsafe { (*inside).shut += 1 });
    }

    fn reset(&self) {}
}

/// Stands for the background thread's epoll: how often the stream was blocked, and whether nothing
/// more will come.
struct Blocked {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Blocked {
    fn new() -> Self {
        Self {
            state: Mutex::new((0, false)),
            changed: Condvar::new(),
        }
    }

    fn see(&self, left: &Left<Wire>) {
        if matches!(left, Left::Blocked) {
            lock(&self.state).0 += 1;
            self.changed.notify_all();
        }
    }

    fn finish(&self) {
        lock(&self.state).1 = true;
        self.changed.notify_all();
    }

    /// The background thread: goes on whenever the stream was blocked.
    fn run(&self, queue: &WriteQueue<Wire>) -> bool {
        let mut closed = false;
        loop {
            let mut state = lock(&self.state);
            while *state == (0, false) {
                state = self.changed.wait(state).unwrap();
            }
            if state.0 == 0 {
                return closed;
            }
            state.0 -= 1;
            drop(state);
            let left = queue.writable();
            closed |= matches!(left, Left::Closed(_));
            self.see(&left);
        }
    }
}

type Shared = Arc<WriteQueue<Wire>>;

fn queue(wire: &Wire) -> Shared {
    Arc::new(WriteQueue::new(wire.clone(), 1 << 20))
}

fn send(queue: &Shared, message: &[u8], addressed: bool) -> (Result<()>, Left<Wire>) {
    let outcome = queue.send(&[IoSlice::new(message)], addressed, Wait::Forever);
    outcome.map_or((Ok(()), Left::Plain), |outcome| *outcome)
}

fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Each of these once, whole, in any order, and nothing else.
fn assert_whole(bytes: &[u8], mut messages: Vec<&[u8]>) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let first = messages
            .iter()
            .position(|message| rest.starts_with(message));
        let first = first.unwrap_or_else(|| panic!("cut, mixed or twice: {bytes:?}"));
        rest = &rest[messages.swap_remove(first).len()..];
    }
    assert!(messages.is_empty(), "lost: {messages:?} of {bytes:?}");
}

/// A message that finds another thread writing is sent by that one, or by its own sender: also when
/// it comes at the moment when the writer leaves.
#[test]
fn loom_what_is_queued_while_the_writer_leaves_is_sent() {
    check(3, || {
        let wire = Wire::new();
        let queue = queue(&wire);
        let others: Vec<_> = [b"bbb", b"ccc"]
            .into_iter()
            .map(|message| {
                let queue = queue.clone();
                thread::spawn(move || send(&queue, message, true).0.unwrap())
            })
            .collect();
        send(&queue, b"aaa", true).0.unwrap();
        for other in others {
            other.join().unwrap();
        }
        assert_whole(&wire.bytes(), vec![b"aaa", b"bbb", b"ccc"]);
        assert_eq!(queue.taken(), (3, 9));
        assert_eq!(queue.queued_bytes(), 0);
        assert!(queue.has_sent_all());
        assert!(queue.right.enter().is_some(), "the next one needs no lock");
    });
}

/// What the system does not take is finished by the background thread, before what came behind.
#[test]
fn loom_a_blocked_stream_is_handed_to_the_background_thread() {
    check(2, || {
        let wire = Wire::taking(2);
        let (queue, blocked) = (queue(&wire), Arc::new(Blocked::new()));
        let background = {
            let (queue, blocked) = (queue.clone(), blocked.clone());
            thread::spawn(move || blocked.run(&queue))
        };
        let other = {
            let (queue, blocked) = (queue.clone(), blocked.clone());
            thread::spawn(move || {
                let (result, left) = send(&queue, b"bbb", false);
                result.unwrap();
                blocked.see(&left);
            })
        };
        let (result, left) = send(&queue, b"aaa", true);
        result.unwrap();
        blocked.see(&left);
        other.join().unwrap();
        blocked.finish();
        background.join().unwrap();
        assert_whole(&wire.bytes(), vec![b"aaa", b"bbb"]);
        assert_eq!(queue.taken(), (2, 6));
        assert_eq!(queue.queued_bytes(), 0);
        assert!(queue.has_sent_all());
    });
}

/// A connection that closes sends what it has taken, all of it, and then closes once; a message
/// that comes later is refused.
#[test]
fn loom_closing_sends_what_was_taken() {
    check(2, || {
        let wire = Wire::taking(2);
        let (queue, blocked) = (queue(&wire), Arc::new(Blocked::new()));
        let background = {
            let (queue, blocked) = (queue.clone(), blocked.clone());
            thread::spawn(move || blocked.run(&queue))
        };
        let closer = {
            let (queue, blocked) = (queue.clone(), blocked.clone());
            thread::spawn(move || {
                let left = queue.close();
                blocked.see(&left);
                matches!(left, Left::Closed(_))
            })
        };
        let (result, left) = send(&queue, b"aaa", true);
        blocked.see(&left);
        let mut closed = usize::from(matches!(left, Left::Closed(_)));
        closed += usize::from(closer.join().unwrap());
        blocked.finish();
        closed += usize::from(background.join().unwrap());
        match result {
            Ok(()) => assert_eq!(wire.bytes(), b"aaa"),
            Err(_) => assert_eq!(wire.bytes(), b""),
        }
        assert_eq!((closed, wire.times_shut()), (1, 1));
        assert!(queue.stream().is_none());
        assert!(send(&queue, b"ccc", true).0.is_err());
    });
}

/// A stream that fails: each sender hears of it, or its message is out, or it is handed back to go
/// elsewhere, and exactly one of these.
#[test]
fn loom_a_failure_reaches_everybody() {
    check(3, || {
        let wire = Wire::breaking_after(4);
        let queue = queue(&wire);
        let other = {
            let queue = queue.clone();
            thread::spawn(move || outcome(&queue, send(&queue, b"bbb", false)))
        };
        let mine = outcome(&queue, send(&queue, b"aaa", false));
        let theirs = other.join().unwrap();
        let late = outcome(&queue, send(&queue, b"ccc", false));
        assert_eq!(late, (false, vec![]));
        let whole = |message: &[u8]| wire.bytes().starts_with(message);
        let again: Vec<_> = [&mine.1[..], &theirs.1[..]].concat();
        for (message, taken) in [(b"aaa", mine.0), (b"bbb", theirs.0)] {
            let handed_back = again.iter().filter(|m| *m == message).count();
            assert_eq!(
                usize::from(taken),
                usize::from(whole(message)) + handed_back,
                "{message:?} of {:?}",
                wire.bytes()
            );
        }
        let out = usize::from(whole(b"aaa")) + usize::from(whole(b"bbb"));
        assert_eq!(queue.taken(), (out as u64, 3 * out as u64));
        assert!(queue.stream().is_none() && queue.has_ended());
    });
}

/// A connection that is given up while a thread writes: that one ends it when it is back. It ends
/// once, also if its stream fails at the same time.
#[test]
fn loom_giving_up_waits_for_the_writer() {
    for fails in [false, true] {
        check(3, move || {
            // It takes less than the message, or nothing.
            let wire = match fails {
                false => Wire::taking(2),
                true => Wire::breaking_after(0),
            };
            let queue = queue(&wire);
            let aborter = {
                let queue = queue.clone();
                thread::spawn(move || {
                    let left = queue.abort(EndReason::Reset);
                    (matches!(left, Left::Ended { .. }), again(left))
                })
            };
            let (result, left) = send(&queue, b"aaa", false);
            let mut ends = usize::from(matches!(left, Left::Ended { .. }));
            let mut handed_back = again(left);
            let (ended, more) = aborter.join().unwrap();
            ends += usize::from(ended);
            handed_back.extend(more);
            assert_eq!(ends, 1);
            assert_eq!(handed_back.len(), usize::from(result.is_ok()));
            assert_eq!(queue.taken(), (0, 0));
            assert!(queue.stream().is_none());
        });
    }
}

/// A stream is given back when all is sent, what was kept back included; and what comes too late is
/// refused.
#[test]
fn loom_detaching_waits_for_what_is_kept_back() {
    check(3, || {
        let wire = Wire::new();
        let queue = queue(&wire);
        let replier = {
            let queue = queue.clone();
            thread::spawn(move || {
                let kept = queue.keep_back();
                if kept {
                    let _ = queue.send_kept(b"aabb", 2);
                }
                kept
            })
        };
        let sender = {
            let queue = queue.clone();
            thread::spawn(move || send(&queue, b"ccc", true).0.is_ok())
        };
        assert!(queue.detach(Instant::now()).unwrap().is_some());
        let at_the_end = wire.bytes();
        let (kept, sent) = (replier.join().unwrap(), sender.join().unwrap());
        assert_eq!(wire.bytes(), at_the_end, "nothing is sent behind its back");
        let mut messages: Vec<&[u8]> = Vec::new();
        if kept {
            messages.push(b"aabb");
        }
        if sent {
            messages.push(b"ccc");
        }
        assert_whole(&at_the_end, messages);
        assert_eq!(queue.right.kept(), 0);
    });
}

/// A connection that closes while replies are kept back: closed once, by whoever is last.
#[test]
fn loom_closing_waits_for_what_is_kept_back() {
    check(3, || {
        let wire = Wire::new();
        let queue = queue(&wire);
        assert!(queue.keep_back());
        let replier = {
            let queue = queue.clone();
            thread::spawn(move || matches!(queue.send_kept(b"aabb", 2), Left::Closed(_)))
        };
        let closed = matches!(queue.close(), Left::Closed(_));
        assert_ne!(closed, replier.join().unwrap());
        assert_eq!(wire.bytes(), b"aabb");
        assert_eq!(wire.times_shut(), 1);
    });
}

/// A send that waits for room gets it, or hears of the end.
#[test]
fn loom_room_reaches_who_waits_for_it() {
    for ends in [false, true] {
        check(3, move || {
            let wire = Wire::taking(2);
            let queue = Arc::new(WriteQueue::new(wire.clone(), 1));
            let (result, left) = send(&queue, b"aaa", true);
            assert!(result.is_ok() && matches!(left, Left::Blocked));
            let waiter = {
                let queue = queue.clone();
                thread::spawn(move || send(&queue, b"bb", true).0.is_ok())
            };
            // The first try finds the stream full still.
            assert!(matches!(queue.writable(), Left::Blocked));
            let left = if ends {
                queue.abort(EndReason::Closed)
            } else {
                queue.writable()
            };
            assert_eq!(waiter.join().unwrap(), !ends);
            assert_eq!(matches!(left, Left::Ended { .. }), ends);
            let expected: &[u8] = if ends { b"aa" } else { b"aaabb" };
            assert_eq!(wire.bytes(), expected);
        });
    }
}

/// Who wants to know when a writer leaves sees all that it has sent, or is told.
#[test]
fn loom_a_writer_does_not_leave_unseen() {
    check(3, || {
        let wire = Wire::new();
        let queue = queue(&wire);
        let sender = {
            let queue = queue.clone();
            thread::spawn(move || matches!(send(&queue, b"aaa", true).1, Left::Empty))
        };
        queue.look_always();
        let seen = queue.taken() == (1, 3);
        let told = sender.join().unwrap();
        assert!(seen || told);
    });
}

/// All is sent when it says so, also while a writer has the queue in its hands: a connection whose
/// peer has its answers is closed then, and nobody keeps it.
#[test]
fn loom_nothing_is_under_way_when_all_is_sent() {
    check(3, || {
        let wire = Wire::taking(2);
        let queue = queue(&wire);
        let sender = {
            let queue = queue.clone();
            thread::spawn(move || {
                let _ = outcome(&queue, send(&queue, b"aaa", true));
            })
        };
        queue.look_always();
        if queue.taken() == (1, 3) && queue.has_sent_all() {
            assert_eq!(wire.bytes(), b"aaa");
        }
        sender.join().unwrap();
        assert_eq!(wire.bytes(), b"aaa");
    });
}

/// Whether it was taken, and what is to go elsewhere.
fn outcome(queue: &Shared, (result, mut left): (Result<()>, Left<Wire>)) -> (bool, Vec<Vec<u8>>) {
    while matches!(left, Left::Blocked) {
        left = queue.writable();
    }
    (result.is_ok(), again(left))
}

fn again(left: Left<Wire>) -> Vec<Vec<u8>> {
    match left {
        Left::Ended { again, .. } => again.iter().map(|m| m.bytes().to_vec()).collect(),
        _ => Vec::new(),
    }
}
