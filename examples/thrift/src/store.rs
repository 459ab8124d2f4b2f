//! What the service does: the handler of `store.thrift`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use thrift::{ApplicationError, ApplicationErrorKind};

use crate::{
    generated::store::{
        Calculation, CalculatorSyncHandler, CannotCalculate, Entry, Full, NotFound, Operation,
        StoreSyncHandler,
    },
    wire::MAX_MESSAGE_BYTES,
};

/// What all entries together may take; then [`Full`].
pub const DEFAULT_LIMIT_BYTES: usize = 64 << 20;
/// What an entry or a label costs beyond its text: about the nodes and headers of its maps.
const OVERHEAD_BYTES: usize = 128;
/// Keys that one `find` gives at most, whatever it asks for.
const MOST_KEYS: usize = 10_000;

/// Entries by their keys, for any number of threads.
#[derive(Debug)]
pub struct Store {
    entries: Mutex<Entries>,
    limit_bytes: usize,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: BTreeMap<String, Entry>,
    bytes: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self::new(DEFAULT_LIMIT_BYTES)
    }
}

impl Store {
    /// An empty store that takes up to so much memory.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            entries: Mutex::default(),
            limit_bytes,
        }
    }

    /// No change of the entries can panic half-way.
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreSyncHandler for Store {
    fn handle_ping(&self) -> thrift::Result<()> {
        Ok(())
    }

    fn handle_put(&self, entry: Entry) -> thrift::Result<bool> {
        let mut entries = self.entries();
        let replaced = entries.by_key.get(&entry.key).map_or(0, cost_bytes);
        let bytes = entries.bytes - replaced + cost_bytes(&entry);
        if bytes > self.limit_bytes {
            let limit_bytes = i64::try_from(self.limit_bytes).unwrap_or(i64::MAX);
            return Err(Full { limit_bytes }.into());
        }
        entries.bytes = bytes;
        let before = entries.by_key.insert(entry.key.clone(), entry);
        Ok(before.is_some())
    }

    fn handle_get(&self, key: String) -> thrift::Result<Entry> {
        match self.entries().by_key.get(&key) {
            Some(entry) => Ok(entry.clone()),
            None => Err(NotFound { key }.into()),
        }
    }

    fn handle_get_all(&self, keys: Vec<String>) -> thrift::Result<BTreeMap<String, Vec<u8>>> {
        let entries = self.entries();
        let mut room = Room::for_reply();
        let mut values = BTreeMap::new();
        for key in keys {
            if let Some(entry) = entries.by_key.get(&key) {
                room.take(key.len() + entry.value.len())?;
                values.insert(key, entry.value.clone());
            }
        }
        Ok(values)
    }

    fn handle_find(&self, beginning: String, most: i32) -> thrift::Result<Vec<String>> {
        let most = usize::try_from(most).unwrap_or(0).min(MOST_KEYS);
        let entries = self.entries();
        let mut room = Room::for_reply();
        let keys = entries.by_key.range(beginning.clone()..);
        keys.map(|(key, _)| key)
            .take_while(|key| key.starts_with(&beginning))
            .take(most)
            .map(|key| room.take(key.len()).map(|()| key.clone()))
            .collect()
    }

    fn handle_forget(&self, key: String) -> thrift::Result<()> {
        let mut entries = self.entries();
        if let Some(entry) = entries.by_key.remove(&key) {
            entries.bytes -= cost_bytes(&entry);
        }
        Ok(())
    }
}

impl CalculatorSyncHandler for Store {
    fn handle_calculate(&self, calculation: Calculation) -> thrift::Result<i64> {
        let (left, right) = (calculation.left, calculation.right);
        let (result, why) = match calculation.operation {
            Operation::ADD => (left.checked_add(right), "beyond 64 bits"),
            Operation::SUBTRACT => (left.checked_sub(right), "beyond 64 bits"),
            Operation::MULTIPLY => (left.checked_mul(right), "beyond 64 bits"),
            Operation::DIVIDE if right == 0 => (None, "division by zero"),
            Operation::DIVIDE => (left.checked_div(right), "beyond 64 bits"),
            _ => (None, "unknown operation"),
        };
        result.ok_or_else(|| {
            let why = why.to_owned();
            CannotCalculate { calculation, why }.into()
        })
    }

    fn handle_sum(&self, numbers: Vec<i64>) -> thrift::Result<i64> {
        Ok(numbers.into_iter().fold(0, i64::wrapping_add))
    }
}

/// About the memory that an entry takes: its key is there twice.
fn cost_bytes(entry: &Entry) -> usize {
    let labels = entry.labels.iter().flatten();
    let labels: usize = labels
        .map(|(name, value)| OVERHEAD_BYTES + name.len() + value.len())
        .sum();
    OVERHEAD_BYTES + 2 * entry.key.len() + entry.value.len() + labels
}

/// What is left of a reply: it is not built to its end when it will be too long.
struct Room(usize);

impl Room {
    fn for_reply() -> Self {
        Self(MAX_MESSAGE_BYTES)
    }

    fn take(&mut self, bytes: usize) -> thrift::Result<()> {
        self.0 = self.0.checked_sub(bytes).ok_or_else(|| {
            let kind = ApplicationErrorKind::InternalError;
            ApplicationError::new(kind, "the reply is too long")
        })?;
        Ok(())
    }
}
