//! Whose bytes a chunk holds, and what is known of the messages in it.

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crate::{psock::Psock, steering::Label};

/// Whose bytes a chunk holds; given back to the multiplexor's memory with the chunk.
pub(crate) struct Origin {
    pub(crate) psock: Arc<Psock>,
    /// What of the multiplexor's memory it takes: the bytes that are filled. (The system gives
    /// memory for the others when they are.)
    pub(crate) charged_bytes: AtomicUsize,
    /// Where in the connection's stream the chunk begins; changed only while nobody has a view of it.
    pub(crate) stream_position: AtomicU64,
    /// What the parser said of the messages in it: a label holds from its place to the next one's.
    /// Here and not in the message, which is copied more often than it is asked. None for natives.
    /// (In a box: the head of a block stays in one cache line.)
    labels: OnceLock<Box<Mutex<Labels>>>,
}

/// By place in the block, ascending.
type Labels = Vec<(usize, Label)>;

impl Origin {
    #[inline]
    pub(crate) fn new(psock: Arc<Psock>, charged_bytes: usize, stream_position: u64) -> Self {
        Self {
            psock,
            charged_bytes: AtomicUsize::new(charged_bytes),
            stream_position: AtomicU64::new(stream_position),
            labels: OnceLock::new(),
        }
    }

    /// Messages from this place in the block on have this label, until another is noted.
    pub(crate) fn note_label(&self, place: usize, label: Label) {
        if label == Label::PLAIN && self.labels.get().is_none() {
            return;
        }
        let labels = self.labels.get_or_init(Box::default);
        let mut labels = labels.lock().unwrap_or_else(|e| e.into_inner());
        let last = labels.last().map_or(Label::PLAIN, |last| last.1);
        if last != label {
            labels.push((place, label));
        }
    }

    /// The label of the message that has this place in the block.
    pub(crate) fn label_at(&self, place: usize) -> Label {
        let Some(labels) = self.labels.get() else {
            return Label::PLAIN;
        };
        let labels = labels.lock().unwrap_or_else(|e| e.into_inner());
        let after = labels.partition_point(|(from, _)| *from <= place);
        let last = after.checked_sub(1).map(|at| labels[at].1);
        last.unwrap_or(Label::PLAIN)
    }

    pub(crate) fn forget_labels(&self) {
        if let Some(labels) = self.labels.get() {
            labels.lock().unwrap_or_else(|e| e.into_inner()).clear();
        }
    }

    pub(crate) fn stream_position(&self) -> u64 {
        self.stream_position.load(Ordering::Relaxed)
    }

    /// The chunk has so many other bytes now, without a label, from this place in the stream on.
    pub(crate) fn restart(&self, filled_bytes: usize, stream_position: u64) {
        self.stream_position
            .store(stream_position, Ordering::Relaxed);
        if self.charged_bytes.load(Ordering::Relaxed) != filled_bytes {
            self.recharge(filled_bytes);
        }
    }

    /// So many bytes are filled now.
    pub(crate) fn recharge(&self, filled_bytes: usize) {
        let before = self.charged_bytes.swap(filled_bytes, Ordering::Relaxed);
        let memory = &self.psock.mux.memory;
        if filled_bytes > before {
            memory.charge(filled_bytes - before);
        } else if before > filled_bytes {
            memory.release(before - filled_bytes);
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.psock.mux.memory.release(*self.charged_bytes.get_mut());
    }
}
