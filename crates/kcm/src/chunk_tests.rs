//! Tests of `chunk.rs`, and a model.

#[cfg(not(loom))]
mod plain {
    use std::sync::Arc;

    use super::super::*;

    #[test]
    fn views_outlive_the_buffer_and_free_the_owner_last() {
        let owner = Arc::new(());
        let mut buffer = Buffer::with_capacity(16);
        buffer.set_owner(Some(owner.clone()));
        buffer.extend(b"abcdef");
        let mut credit = buffer.credit(0..buffer.len());
        let a = credit.take(3);
        let b = a.suffix(0);
        assert!(!buffer.is_unique());
        drop(buffer);
        drop(credit);
        assert_eq!((&*a, &*b), (&b"abc"[..], &b"abc"[..]));
        drop(a);
        assert_eq!(Arc::strong_count(&owner), 2);
        assert!(b.owner().is_some());
        drop(b);
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    fn a_unique_buffer_is_used_anew() {
        let mut buffer: Buffer<()> = Buffer::with_capacity(8);
        buffer.extend(b"abcdefgh");
        assert_eq!(buffer.room_len(), 0);
        let view = buffer.slice(2..4);
        drop(view);
        buffer.keep_from(6);
        assert_eq!(buffer.filled(), b"gh");
        buffer.extend(b"ij");
        assert_eq!(buffer.filled(), b"ghij");
    }

    #[test]
    fn a_credit_shows_words_and_gives_views_where_they_are_there() {
        let mut buffer: Buffer<()> = Buffer::with_capacity(16);
        buffer.extend(b"abcdefghijklmn");
        let mut credit = buffer.credit(1..14);
        assert_eq!(credit.word(), None);
        credit.set_words(2, 0, 5);
        assert_eq!(credit.word(), Some(*b"defghijk"));
        // None, more than there are, or refused: nothing changes.
        for (len, agrees) in [(0, true), (14, true), (usize::MAX, true), (3, false)] {
            assert!(credit.take_if(len, |_, _| agrees).is_none());
            assert_eq!((credit.position(), credit.left()), (1, 13));
        }
        let view = credit.take_if(3, |position, left| (position, left) == (4, 12));
        assert_eq!(&*view.expect("agreed"), b"bcd");
        assert_eq!(credit.word(), Some(*b"ghijklmn"));
        credit.take(1);
        // The last 8 bytes are passed, or it was not to look further.
        assert_eq!(credit.word(), None);
        credit.set_words(0, 0, 6);
        assert_eq!(credit.word(), Some(*b"fghijklm"));
        credit.set_words(0, 0, 5);
        assert_eq!(credit.word(), None);
        // Nine bytes are left, and ten asked for.
        credit.set_words(0, 9, 14);
        assert_eq!(credit.word(), Some(*b"fghijklm"));
        credit.set_words(0, 10, 14);
        assert_eq!(credit.word(), None);
        credit.set_words(usize::MAX, 0, usize::MAX);
        assert_eq!(credit.word(), None);
        assert_eq!(credit.take(9).len(), 9);
        assert!(credit.take_if(1, |_, _| true).is_none());
    }

    #[test]
    #[should_panic(expected = "is_unique")]
    fn a_shared_buffer_is_not_moved() {
        let mut buffer: Buffer<()> = Buffer::with_capacity(8);
        buffer.extend(b"abcdefgh");
        let _view = buffer.slice(0..4);
        buffer.keep_from(4);
    }

    #[test]
    fn memory_is_used_again_by_the_thread_that_frees_it() {
        let place = |buffer: &Buffer<()>| buffer.block.addr();
        let first = Buffer::<()>::with_capacity(5_000);
        let (at, other) = (place(&first), Buffer::<()>::with_capacity(5_000));
        drop(first);
        let second = Buffer::with_capacity(2_500);
        assert_eq!(
            (place(&second), second.capacity(), second.len()),
            (at, 5_000, 0)
        );
        // What would be pinned is at most twice what was asked for.
        drop(second);
        assert_eq!(Buffer::<()>::with_capacity(2_499).capacity(), 2_499);
        // It is for whoever frees it.
        let view = {
            let mut buffer = other;
            buffer.extend(b"abc");
            buffer.slice(0..3)
        };
        let at = view.block.addr();
        std::thread::spawn(move || {
            drop(view);
            assert_eq!(place(&Buffer::with_capacity(4_000)), at);
        })
        .join()
        .unwrap();
    }
}

#[cfg(loom)]
mod loom_tests {
    use super::super::*;
    use loom::thread;

    /// Two threads drop views while the buffer's holder waits to be alone: it then may write.
    #[test]
    fn loom_unique_after_the_last_view() {
        loom::model(|| {
            let mut buffer: Buffer<()> = Buffer::with_capacity(8);
            buffer.extend(b"abcd");
            let mut credit = buffer.credit(0..buffer.len());
            let (a, b) = (credit.take(2), credit.take(2));
            drop(credit);
            let one = thread::spawn(move || assert_eq!(&*a, b"ab"));
            let two = thread::spawn(move || assert_eq!(&*b, b"cd"));
            if buffer.is_unique() {
                buffer.keep_from(4);
                buffer.extend(b"zzzz");
            }
            one.join().unwrap();
            two.join().unwrap();
            assert!(buffer.is_unique());
        });
    }

    /// Writes when it is dropped; a loom cell inside finds a read that may come later.
    struct Owner(loom::cell::UnsafeCell<u32>);

    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.with_mut(|n| {
                // SAFETY: nobody else has a view any more.
                unsafe { *n += 1 }
            });
        }
    }

    // SAFETY: read by several threads, written by the last one alone: what the model is about.
    unsafe impl Sync for Owner {}

    /// Three threads look at the owner and give up what they have; the last one frees it.
    #[test]
    fn loom_the_last_view_frees_the_block() {
        loom::model(|| {
            let mut buffer = Buffer::with_capacity(8);
            buffer.set_owner(Some(Owner(loom::cell::UnsafeCell::new(7))));
            buffer.extend(b"abcd");
            let views = [buffer.slice(0..2), buffer.slice(2..4)];
            let look = |owner: Option<&Owner>| {
                let read = |n: *const u32| {
                    // SAFETY: written only by who frees it.
                    unsafe { *n }
                };
                assert_eq!(owner.expect("its owner").0.with(read), 7);
            };
            let threads = views.map(|view| thread::spawn(move || look(view.owner())));
            look(buffer.owner());
            drop(buffer);
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}
