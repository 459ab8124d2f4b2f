//! A queue from which higher classes go out first, and no class starves.
//!
//! Strict priority would be simpler, and is what goes wrong in every system that has it: a flood of
//! the higher class silences the lower ones for good. So after [`IN_A_ROW`] items of the highest
//! class while others wait, one of the other classes has a turn; these take turns among themselves.
//! Each class that waits gets one of 17 turns at least, shared with the other lower classes.

use std::collections::{BTreeMap, VecDeque};

/// Items of the highest class before one of another: the lower classes keep about 6 % for
/// themselves, and an urgent item waits for one of them at most.
pub(crate) const IN_A_ROW: u32 = 16;

pub(crate) struct ByClass<T> {
    /// Class 0: the only one that most programs have.
    plain: VecDeque<T>,
    /// The others; none of them empty.
    higher: BTreeMap<u8, VecDeque<T>>,
    higher_len: usize,
    /// Items of the highest class that went out while others waited.
    in_a_row: u32,
    /// The lower class that had the last turn.
    last_turn: u8,
}

impl<T> Default for ByClass<T> {
    fn default() -> Self {
        Self {
            plain: VecDeque::new(),
            higher: BTreeMap::new(),
            higher_len: 0,
            in_a_row: 0,
            last_turn: 0,
        }
    }
}

impl<T> ByClass<T> {
    pub(crate) fn len(&self) -> usize {
        self.plain.len() + self.higher_len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The highest class that waits; 0 also when none does.
    pub(crate) fn highest(&self) -> u8 {
        self.higher.last_key_value().map_or(0, |(class, _)| *class)
    }

    /// One that comes soon: where none waits of a higher class, the next.
    pub(crate) fn soon(&self) -> Option<&T> {
        self.plain.front()
    }

    pub(crate) fn push_back(&mut self, item: T, class: u8) {
        self.row(class).push_back(item);
    }

    /// Before all others of its class.
    pub(crate) fn push_front(&mut self, item: T, class: u8) {
        self.row(class).push_front(item);
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.higher.is_empty() {
            return self.plain.pop_front();
        }
        self.pop_by_class()
    }

    /// The first of which this holds.
    pub(crate) fn take_out(&mut self, is: impl Fn(&T) -> bool) -> Option<T> {
        if let Some(place) = self.plain.iter().position(&is) {
            return self.plain.remove(place);
        }
        let mut rows = self.higher.iter_mut();
        let (class, row, place) = rows.find_map(|(class, row)| {
            let place = row.iter().position(&is)?;
            Some((*class, row, place))
        })?;
        let item = row.remove(place);
        self.higher_len -= 1;
        if row.is_empty() {
            self.higher.remove(&class);
        }
        item
    }

    /// All that is left, highest class first.
    pub(crate) fn drain(&mut self) -> VecDeque<T> {
        let mut all = VecDeque::with_capacity(self.len());
        while let Some((_, mut row)) = self.higher.pop_last() {
            all.append(&mut row);
        }
        self.higher_len = 0;
        all.append(&mut self.plain);
        all
    }

    #[inline]
    fn row(&mut self, class: u8) -> &mut VecDeque<T> {
        if class == 0 {
            return &mut self.plain;
        }
        self.higher_row(class)
    }

    #[cold]
    fn higher_row(&mut self, class: u8) -> &mut VecDeque<T> {
        self.higher_len += 1;
        self.higher.entry(class).or_default()
    }

    #[cold]
    fn pop_by_class(&mut self) -> Option<T> {
        let highest = self.highest();
        let Some(lower) = self.next_turn(highest) else {
            self.in_a_row = 0;
            return self.pop_of(highest);
        };
        if self.in_a_row < IN_A_ROW {
            self.in_a_row += 1;
            return self.pop_of(highest);
        }
        self.in_a_row = 0;
        self.last_turn = lower;
        self.pop_of(lower)
    }

    /// The class below `highest` whose turn is next: the one below the last, or the first again.
    fn next_turn(&self, highest: u8) -> Option<u8> {
        let below = |class: u8| {
            let higher = self.higher.range(..class).next_back();
            let plain = (class > 0 && !self.plain.is_empty()).then_some(0);
            higher.map(|(class, _)| *class).or(plain)
        };
        below(self.last_turn.min(highest)).or_else(|| below(highest))
    }

    fn pop_of(&mut self, class: u8) -> Option<T> {
        if class == 0 {
            return self.plain.pop_front();
        }
        let row = self.higher.get_mut(&class)?;
        let item = row.pop_front();
        self.higher_len -= 1;
        if row.is_empty() {
            self.higher.remove(&class);
        }
        item
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_class_is_a_plain_queue() {
        let mut queue = ByClass::default();
        (0..5).for_each(|n| queue.push_back(n, 0));
        queue.push_front(9, 0);
        let all: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(all, [9, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn three_busy_classes_all_get_their_turns() {
        let mut queue = ByClass::default();
        for class in [0, 3, 7] {
            (0..2000).for_each(|_| queue.push_back(class, class));
        }
        let mut turns = [0; 8];
        for _ in 0..17 * 100 {
            turns[usize::from(queue.pop().unwrap())] += 1;
        }
        assert_eq!((turns[7], turns[3], turns[0]), (1600, 50, 50));
    }

    proptest! {
        /// Against a list: each class is a queue; the highest goes first but for one item of
        /// another in 17; a class that waits waits for a bounded number of turns.
        #[test]
        fn as_a_list(ops in prop::collection::vec((0..6u8, 0..5u8, any::<bool>()), 1..400)) {
            let mut queue = ByClass::default();
            let mut list: Vec<(u8, usize)> = Vec::new();
            let mut in_a_row = 0;
            let mut waited = [0; 6];
            for (n, (class, op, front)) in ops.into_iter().enumerate() {
                if op < 2 {
                    if front {
                        queue.push_front((class, n), class);
                        list.insert(0, (class, n));
                    } else {
                        queue.push_back((class, n), class);
                        list.push((class, n));
                    }
                } else if op == 2 {
                    let first = list.iter().position(|item| item.0 == class);
                    let item = first.map(|first| list.remove(first));
                    prop_assert_eq!(queue.take_out(|item| item.0 == class), item);
                } else if let Some(item) = queue.pop() {
                    let highest = list.iter().map(|item| item.0).max().unwrap();
                    let lower = list.iter().any(|item| item.0 != highest);
                    let first = list.iter().position(|other| other.0 == item.0).unwrap();
                    prop_assert_eq!(list.remove(first), item);
                    if item.0 == highest {
                        // (Alone, class 0 does not count.)
                        if highest > 0 {
                            in_a_row = if lower { in_a_row + 1 } else { 0 };
                        }
                        prop_assert!(in_a_row <= IN_A_ROW);
                    } else {
                        prop_assert_eq!(in_a_row, IN_A_ROW);
                        in_a_row = 0;
                    }
                    for class in 0..6u8 {
                        let waits = list.iter().any(|other| other.0 == class);
                        let waited = &mut waited[usize::from(class)];
                        *waited = if waits && class != item.0 { *waited + 1 } else { 0 };
                        prop_assert!(*waited <= 17 * 5);
                    }
                } else {
                    prop_assert!(list.is_empty());
                }
                prop_assert_eq!(queue.len(), list.len());
                prop_assert_eq!(queue.is_empty(), list.is_empty());
                prop_assert_eq!(queue.highest(), list.iter().map(|item| item.0).max().unwrap_or(0));
            }
            let mut rest: Vec<_> = queue.drain().into();
            rest.sort_unstable();
            list.sort_unstable();
            prop_assert_eq!(rest, list);
        }
    }
}
