//! The list of a multiplexor's connections: by number, and in a row.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use crate::{connection::ConnectionId, psock::Psock};

#[derive(Default)]
pub(crate) struct Psocks {
    /// Places in the row.
    by_id: HashMap<u64, usize, BuildHasherDefault<IdHasher>>,
    row: Vec<Arc<Psock>>,
    last_id: u64,
    /// Indices that are free again, below `next_index`.
    free: BinaryHeap<Reverse<usize>>,
    next_index: usize,
}

impl Psocks {
    /// All of them, in no order that means anything.
    pub(crate) fn row(&self) -> &[Arc<Psock>] {
        &self.row
    }

    pub(crate) fn len(&self) -> usize {
        self.row.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.row.is_empty()
    }

    #[inline]
    pub(crate) fn get(&self, id: ConnectionId) -> Option<&Arc<Psock>> {
        self.by_id.get(&id.0).map(|place| &self.row[*place])
    }

    /// The number and the index of the next to come: one that was never given, and the lowest that
    /// is free.
    pub(crate) fn next(&self) -> (ConnectionId, usize) {
        let lowest = self.free.peek();
        let index = lowest.map_or(self.next_index, |lowest| lowest.0);
        (ConnectionId(self.last_id + 1), index)
    }

    /// Adds one that was made with what [`Psocks::next`] gave.
    pub(crate) fn insert(&mut self, psock: Arc<Psock>) {
        debug_assert_eq!(self.next(), (psock.id, psock.index));
        self.last_id = psock.id.0;
        if self.free.pop().is_none() {
            self.next_index += 1;
        }
        self.by_id.insert(psock.id.0, self.row.len());
        self.row.push(psock);
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<Arc<Psock>> {
        let place = self.by_id.remove(&id.0)?;
        let psock = self.row.swap_remove(place);
        self.free.push(Reverse(psock.index));
        if let Some(moved) = self.row.get(place) {
            self.by_id.insert(moved.id.0, place);
        }
        Some(psock)
    }
}

/// Numbers are given out in turn: their low bits spread as well as any hash, and cost nothing.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("the numbers are u64");
    }

    fn write_u64(&mut self, id: u64) {
        // The table takes its tags from the highest bits.
        self.0 = id ^ id << 57;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
