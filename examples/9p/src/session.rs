//! A client's session: from one Tversion to the next, or to the end of the connection.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use rustix::io::Errno;

use crate::{
    export::Export,
    fids::{Budget, Fids},
    locks::Locks,
    ops,
    request::Request,
    tags::{Tags, Ticket},
    wire::{HEADER_BYTES, NO_TAG, Reader, Reply, Result, VERSION, kind},
};

/// The smallest `msize` that is agreed to, as by the Linux client. (Of the replies only the text of
/// a link could be longer: that is `EMSGSIZE` then.)
pub const MIN_MSIZE: u32 = 4_096;
/// The longest message before an `msize` is agreed on.
pub const FIRST_MSIZE: u32 = MIN_MSIZE;

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    pub(crate) export: Export,
    pub(crate) locks: Locks,
    budget: Arc<Budget>,
    max_msize: u32,
}

impl Shared {
    /// Sessions on this directory, with so many fids in all, and with messages of at most
    /// `max_msize` bytes.
    pub fn new(export: Export, max_fids: usize, max_msize: u32) -> Arc<Self> {
        Arc::new(Self {
            export,
            locks: Locks::default(),
            budget: Budget::new(max_fids),
            max_msize: max_msize.max(MIN_MSIZE),
        })
    }
}

/// One client's state.
#[derive(Debug)]
pub struct Session {
    pub(crate) id: u64,
    pub(crate) shared: Arc<Shared>,
    pub(crate) fids: Fids,
    tags: Tags,
    /// 0: no Tversion has come.
    msize: AtomicU32,
}

impl Session {
    /// `id`: one for each session.
    pub fn new(id: u64, shared: Arc<Shared>) -> Self {
        Self {
            id,
            fids: Fids::new(shared.budget.clone()),
            tags: Tags::default(),
            msize: AtomicU32::new(0),
            shared,
        }
    }

    /// The longest message of the session, in bytes.
    pub fn msize(&self) -> u32 {
        match self.msize.load(Ordering::Relaxed) {
            0 => FIRST_MSIZE,
            msize => msize,
        }
    }

    /// Answers one message. `admitted` is called as soon as the next message of the same client
    /// may be looked at, `send` for each reply.
    ///
    /// # Errors
    ///
    /// Not a message of this protocol at all; nobody can answer it.
    pub fn serve(
        &self,
        message: &[u8],
        reply: &mut Reply,
        admitted: impl FnOnce(),
        send: impl Fn(&[u8]),
    ) -> Result<()> {
        let (header, body) = message
            .split_at_checked(HEADER_BYTES)
            .ok_or(Errno::BADMSG)?;
        let request_kind = header[4];
        let tag = u16::from_le_bytes([header[5], header[6]]);
        if request_kind == kind::VERSION && tag == NO_TAG {
            let outcome = self.version(body, reply);
            send(self.finish(tag, reply, outcome));
            admitted();
            return Ok(());
        }
        let ticket = match self.begin(tag) {
            Ok(ticket) => ticket,
            Err(errno) => {
                admitted();
                send(self.finish(tag, reply, Err(errno)));
                return Ok(());
            }
        };
        if request_kind == kind::FLUSH {
            let flush = self.flush(body, ticket);
            admitted();
            let (ticket, outcome) = match flush {
                Ok(None) => return Ok(()),
                Ok(Some(ticket)) => (ticket, Ok(())),
                Err((ticket, errno)) => (ticket, Err(errno)),
            };
            reply.begin(request_kind, tag);
            self.answer(ticket, self.finish(tag, reply, outcome), send);
            return Ok(());
        }
        let request = Request::decode(request_kind, body, &self.fids);
        admitted();
        reply.begin(request_kind, tag);
        let outcome = request.and_then(|request| ops::run(self, request, reply));
        self.answer(ticket, self.finish(tag, reply, outcome), send);
        Ok(())
    }

    fn begin(&self, tag: u16) -> Result<Ticket> {
        if self.msize.load(Ordering::Relaxed) == 0 {
            // Tversion has to come first.
            return Err(Errno::PROTO);
        }
        self.tags.begin(tag)
    }

    /// Begins anew: what was under way is answered first, and nothing of it stays.
    fn version(&self, body: &[u8], reply: &mut Reply) -> Result<()> {
        let mut r = Reader::new(body);
        let (msize, version) = (r.u32()?, r.string()?);
        r.end()?;
        if msize < MIN_MSIZE {
            return Err(Errno::MSGSIZE);
        }
        self.tags.wait_for_none();
        self.fids.clear();
        self.shared.locks.release(self.id);
        let msize = msize.min(self.shared.max_msize);
        let known = version == VERSION;
        self.msize
            .store(if known { msize } else { 0 }, Ordering::Relaxed);
        reply.begin(kind::VERSION, NO_TAG);
        reply.put_u32(msize);
        reply.put_string(if known { VERSION } else { b"unknown" })
    }

    /// The flush itself, if it is to be answered now.
    fn flush(
        &self,
        body: &[u8],
        ticket: Ticket,
    ) -> std::result::Result<Option<Ticket>, (Ticket, Errno)> {
        let mut r = Reader::new(body);
        match r.u16().and_then(|old_tag| r.end().map(|()| old_tag)) {
            Ok(old_tag) => Ok(self.tags.flush(old_tag, ticket)),
            Err(errno) => Err((ticket, errno)),
        }
    }

    /// The bytes to be sent.
    fn finish<'a>(&self, tag: u16, reply: &'a mut Reply, outcome: Result<()>) -> &'a [u8] {
        let limit = self.msize();
        let outcome = outcome.and_then(|()| reply.finish(limit).map(drop));
        if let Err(errno) = outcome {
            reply.fail(tag, errno);
        }
        reply.finish(u32::MAX).unwrap_or_default()
    }

    /// Sends a reply, and the answers to the flushes that waited for it.
    fn answer(&self, ticket: Ticket, reply: &[u8], send: impl Fn(&[u8])) {
        self.tags.answering(&ticket);
        send(reply);
        let mut flushes = std::collections::VecDeque::from(self.tags.answered(&ticket));
        while let Some(flush) = flushes.pop_front() {
            let [tag_low, tag_high] = flush.tag.to_le_bytes();
            send(&[7, 0, 0, 0, kind::FLUSH + 1, tag_low, tag_high]);
            flushes.extend(self.tags.answered(&flush));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.locks.release(self.id);
    }
}
