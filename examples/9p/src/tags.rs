//! Tags: the requests of a client that are under way, and the flushes that wait for them.
//!
//! A flush asks that a request be forgotten. Nothing here is cut short (no request waits for long),
//! so the rule to keep is the one of order: the answer to the flush comes after the answer to the
//! flushed request, or that request was answered before. The flush is noted with the request, and
//! whoever answers the request answers the flush too, and then the flushes of the flush.
//!
//! Between "is being answered" and "answered" a client may have seen the answer and used the tag
//! again; between "answered" and "no longer known" a flush must still wait. So an entry is marked
//! before its reply is sent and removed after, and a marked entry may be overwritten by a new
//! request; serial numbers tell the two apart. Only a tag whose flush is not answered yet is still
//! in use, answered or not.

use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use crate::wire::{NO_TAG, Result};

/// Requests of one client that may be under way, 4,096. They are as many as there are workers, and
/// the flushes that wait for these; the Linux client has a few hundred at most.
const MAX_TAGS: usize = 4_096;

#[derive(Debug, Default)]
pub(crate) struct Tags {
    table: Mutex<Table>,
    none_left: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    requests: HashMap<u16, Request>,
    last_serial: u64,
    /// Somebody waits for none to be left. (Telling nobody is a system call too.)
    awaited: bool,
}

#[derive(Debug)]
struct Request {
    serial: u64,
    being_answered: bool,
    flushes: Vec<Ticket>,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) tag: u16,
    serial: u64,
}

impl Tags {
    /// A request comes.
    ///
    /// # Errors
    ///
    /// `EBUSY`: its tag is in use; `EINVAL`: it is no tag; `ENOBUFS`: too many are under way.
    pub(crate) fn begin(&self, tag: u16) -> Result<Ticket> {
        if tag == NO_TAG {
            return Err(Errno::INVAL);
        }
        let mut table = self.lock();
        if table.requests.len() >= MAX_TAGS {
            return Err(Errno::NOBUFS);
        }
        match table.requests.get(&tag) {
            Some(old) if !old.being_answered || !old.flushes.is_empty() => return Err(Errno::BUSY),
            _ => {}
        }
        table.last_serial += 1;
        let serial = table.last_serial;
        let request = Request {
            serial,
            being_answered: false,
            flushes: Vec::new(),
        };
        table.requests.insert(tag, request);
        Ok(Ticket { tag, serial })
    }

    /// A flush of a request comes. It is given back if there is nothing to wait for.
    pub(crate) fn flush(&self, old_tag: u16, flush: Ticket) -> Option<Ticket> {
        let mut table = self.lock();
        match table.requests.get_mut(&old_tag) {
            Some(old) if old_tag != flush.tag => {
                old.flushes.push(flush);
                None
            }
            _ => Some(flush),
        }
    }

    /// The request's reply is about to be sent.
    pub(crate) fn answering(&self, ticket: &Ticket) {
        self.lock().mark(ticket);
    }

    /// The request's reply was sent. The flushes that waited for it are to be answered now, in
    /// this order; they are marked.
    pub(crate) fn answered(&self, ticket: &Ticket) -> Vec<Ticket> {
        let mut table = self.lock();
        let flushes = match table.requests.get(&ticket.tag) {
            Some(request) if request.serial == ticket.serial => {
                let request = table.requests.remove(&ticket.tag);
                request.map(|request| request.flushes).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        for flush in &flushes {
            table.mark(flush);
        }
        if table.awaited && table.requests.is_empty() {
            self.none_left.notify_all();
        }
        flushes
    }

    /// Waits until no request is under way. None may come meanwhile.
    pub(crate) fn wait_for_none(&self) {
        let mut table = self.lock();
        table.awaited = true;
        let waited = self
            .none_left
            .wait_while(table, |table| !table.requests.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).awaited = false;
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each critical section leaves the table whole at every step.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn mark(&mut self, ticket: &Ticket) {
        match self.requests.get_mut(&ticket.tag) {
            Some(request) if request.serial == ticket.serial => request.being_answered = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_waits_for_its_request_and_the_flush_of_it_for_both() {
        let tags = Tags::default();
        let read = tags.begin(1).expect("free");
        let first = tags.begin(2).expect("free");
        assert!(tags.flush(1, first).is_none());
        let second = tags.begin(3).expect("free");
        assert!(tags.flush(2, second).is_none());
        tags.answering(&read);
        // Its flush is not answered: the tag is still in use.
        assert_eq!(tags.begin(1).err(), Some(Errno::BUSY));
        let first = tags.answered(&read);
        assert_eq!(first.iter().map(|t| t.tag).collect::<Vec<_>>(), [2]);
        let second = tags.answered(&first[0]);
        assert_eq!(second.iter().map(|t| t.tag).collect::<Vec<_>>(), [3]);
        assert!(tags.answered(&second[0]).is_empty());
        tags.wait_for_none();
    }

    #[test]
    fn a_flush_of_nothing_and_of_itself_does_not_wait() {
        let tags = Tags::default();
        let flush = tags.begin(5).expect("free");
        let flush = tags.flush(9, flush).expect("nothing to wait for");
        assert!(tags.flush(5, flush).is_some());
    }

    #[test]
    fn a_tag_is_free_as_soon_as_its_reply_may_have_been_seen() {
        let tags = Tags::default();
        let old = tags.begin(1).expect("free");
        assert_eq!(tags.begin(1).err(), Some(Errno::BUSY));
        tags.answering(&old);
        let new = tags.begin(1).expect("free again");
        let flush = tags.begin(2).expect("free");
        assert!(tags.flush(1, flush).is_none(), "waits for the new one");
        assert!(tags.answered(&old).is_empty());
        assert_eq!(tags.answered(&new).len(), 1);
    }

    #[test]
    fn there_is_a_limit() {
        let tags = Tags::default();
        assert_eq!(tags.begin(NO_TAG).err(), Some(Errno::INVAL));
        for tag in 0..4096 {
            tags.begin(tag).expect("below the limit");
        }
        assert_eq!(tags.begin(5000).err(), Some(Errno::NOBUFS));
    }
}
