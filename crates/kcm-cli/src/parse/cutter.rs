//! Messages out of a stream of any length, in bounded memory.
//!
//! The assembler wants to be shown a message from its first byte until it is whole. A message may
//! be longer than one cares to hold, though, and nobody here wants its bytes: once its length is
//! known, a long one passes through the buffer, and only its beginning is kept for the row.
//!
//! ```text
//!   buffer   |  done  |   the message at the front   |    room     |
//!                   begin                           end
//!
//!   a long   |         kept         |  filled over and over again  |
//!   message  0                     end
//! ```
//!
//! Two kinds of message are held as a whole, and the buffer grows with them: those whose length is
//! known late (in fragments, say), and all of a parser with state, which is promised to see every
//! byte of what it bases its state on. The limits of the assembler are their bound.

use kcm_frame::{Assembler, DEFAULT_MAX_HEADER_BYTES, Fault, Frame, Framing, Limits, Step};

/// What one read takes at most; a longer message is not held.
///
/// Large enough that the system calls do not show, small enough for the caches. Half of it is kept
/// of a message that passes: all that its length is read from, and all that a row may show.
const BUFFER_BYTES: usize = 256 << 10;

const _: () = assert!(BUFFER_BYTES / 2 >= DEFAULT_MAX_HEADER_BYTES);

/// Cuts a stream into messages.
pub(super) struct Cutter {
    assembler: Assembler,
    /// Whether messages may pass without being held.
    may_pass: bool,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// The message that passes through, and how many of its bytes are still to come.
    passing: Option<(Frame, u64)>,
    lost: bool,
    messages: u64,
    /// Bytes of all whole messages.
    message_bytes: u64,
    read_bytes: u64,
}

/// What comes next in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut<'a> {
    Message(Message<'a>),
    /// More bytes are needed: [`Cutter::fill`].
    More,
    /// The stream cannot be framed any further.
    Fault(Fault),
}

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) number: u64,
    /// Bytes of the stream before it.
    pub(super) offset: u64,
    pub(super) frame: Frame,
    /// Its first bytes; all of a short one.
    pub(super) head: &'a [u8],
}

/// What a stream consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) messages: u64,
    /// Bytes of all whole messages.
    pub(super) bytes: u64,
    /// Bytes of the unfinished message behind them; none of a stream that is lost.
    pub(super) tail_bytes: u64,
    /// Length of the unfinished message, if it is known.
    pub(super) tail_of: Option<u64>,
}

impl Cutter {
    /// At the beginning of a stream.
    pub(super) fn new(framing: &Framing, limits: Limits) -> Self {
        Self::with_buffer(framing, limits, BUFFER_BYTES)
    }

    fn with_buffer(framing: &Framing, limits: Limits, bytes: usize) -> Self {
        Self {
            assembler: Assembler::new(framing, limits),
            may_pass: !matches!(framing, Framing::Stateful(_)),
            buffer: vec![0; bytes],
            begin: 0,
            end: 0,
            passing: None,
            lost: false,
            messages: 0,
            message_bytes: 0,
            read_bytes: 0,
        }
    }

    /// The next message, if it has come as a whole.
    pub(super) fn next(&mut self) -> Cut<'_> {
        if let Some((frame, left_bytes)) = self.passing {
            if left_bytes > 0 {
                return Cut::More;
            }
            self.passing = None;
            return self.deliver(frame, self.end - self.begin);
        }
        let front = &self.buffer[self.begin..self.end];
        match self.assembler.step(front) {
            Step::Message(frame) => {
                // All of it is there: no longer than a slice.
                let len = usize::try_from(frame.len).unwrap_or(front.len());
                self.deliver(frame, len)
            }
            Step::Incomplete { .. } => {
                if self.may_pass
                    && front.len() >= self.buffer.len() / 2
                    && let Some(frame) = self.assembler.pending()
                    && frame.len > self.buffer.len() as u64
                {
                    self.let_pass(frame);
                }
                Cut::More
            }
            Step::Fault(fault) => {
                self.lost = true;
                Cut::Fault(fault)
            }
        }
    }

    /// Takes in what `read` puts into the room it is given; gives its number of bytes.
    pub(super) fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        if self.passing.is_none() {
            self.make_room();
        }
        let mut room = &mut self.buffer[self.end..];
        if let Some((_, left_bytes)) = self.passing {
            // Not a byte of the next message.
            let longest = usize::try_from(left_bytes).unwrap_or(usize::MAX);
            let longest = longest.min(room.len());
            room = &mut room[..longest];
        }
        let count = read(room)?;
        self.read_bytes += count as u64;
        match &mut self.passing {
            Some((_, left_bytes)) => *left_bytes -= count as u64,
            None => self.end += count,
        }
        Ok(count)
    }

    /// What there has been, if the stream ends here.
    pub(super) fn totals(&self) -> Totals {
        let tail_bytes = match self.lost {
            true => 0,
            false => self.read_bytes - self.message_bytes,
        };
        Totals {
            messages: self.messages,
            bytes: self.message_bytes,
            tail_bytes,
            tail_of: self.assembler.pending().map(|frame| frame.len),
        }
    }

    /// The message at the front leaves; `held_bytes` of it are in the buffer.
    fn deliver(&mut self, frame: Frame, held_bytes: usize) -> Cut<'_> {
        let held = self.begin..self.begin + held_bytes;
        let (number, offset) = (self.messages, self.message_bytes);
        self.begin = held.end;
        self.messages += 1;
        self.message_bytes += frame.len;
        let head = &self.buffer[held];
        self.assembler.delivered(head);
        Cut::Message(Message {
            number,
            offset,
            frame,
            head,
        })
    }

    /// Keeps the beginning of the message at the front, and counts the rest.
    fn let_pass(&mut self, frame: Frame) {
        let have_bytes = self.end - self.begin;
        self.passing = Some((frame, frame.len - have_bytes as u64));
        let kept_bytes = have_bytes.min(self.buffer.len() / 2);
        self.buffer
            .copy_within(self.begin..self.begin + kept_bytes, 0);
        self.begin = 0;
        self.end = kept_bytes;
    }

    /// Room behind the bytes that are there.
    fn make_room(&mut self) {
        if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        if self.end == self.buffer.len() {
            // To be held, and longer. Doubled: copying costs no more than reading.
            self.buffer.resize(2 * self.end, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kcm_frame::{Framing, Limits, Parser, Verdict};

    use super::*;

    /// Everything that is found in `stream`, of which `chunk_bytes` come at a time.
    fn all(
        framing: &Framing,
        stream: &[u8],
        buffer_bytes: usize,
        chunk_bytes: usize,
    ) -> (Vec<(u64, u64, Vec<u8>)>, Option<Fault>, Totals) {
        let mut cutter = Cutter::with_buffer(framing, Limits::default(), buffer_bytes);
        let mut rest = stream;
        let mut found = Vec::new();
        loop {
            match cutter.next() {
                Cut::Message(message) => {
                    let shown = message.head.len().min(16);
                    let head = message.head[..shown].to_vec();
                    assert_eq!(message.number, found.len() as u64);
                    found.push((message.offset, message.frame.len, head));
                    continue;
                }
                Cut::More => {}
                Cut::Fault(fault) => return (found, Some(fault), cutter.totals()),
            }
            let read: Result<usize, Infallible> = cutter.fill(|room| {
                let count = chunk_bytes.min(room.len()).min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                Ok(count)
            });
            let Ok(count) = read;
            if count == 0 {
                return (found, None, cutter.totals());
            }
        }
    }

    /// Messages of these lengths, the number of each after its header.
    fn stream(lens: &[u32]) -> Vec<u8> {
        let mut stream = Vec::new();
        for (number, len) in (0_u8..).zip(lens) {
            stream.extend((len - 4).to_be_bytes());
            stream.extend(vec![number; *len as usize - 4]);
        }
        stream
    }

    #[test]
    fn long_messages_pass_through_a_small_buffer() {
        let framing: Framing = "u32be+4".parse().expect("a good specification");
        let lens = [4, 5, 63, 64, 65, 66, 127, 128, 129, 1000, 4, 100_000, 7];
        let stream = stream(&lens);
        let mut offset = 0;
        let expected: Vec<_> = lens
            .iter()
            .map(|&len| {
                let begin = usize::try_from(offset).expect("small");
                offset += u64::from(len);
                let shown = (len as usize).min(16);
                let head = stream[begin..begin + shown].to_vec();
                (offset - u64::from(len), u64::from(len), head)
            })
            .collect();
        for buffer_bytes in [64, 65, 1000, 1 << 20] {
            for chunk_bytes in [1, 3, 63, 64, 1 << 20] {
                let (found, fault, totals) = all(&framing, &stream, buffer_bytes, chunk_bytes);
                assert_eq!((&found, fault), (&expected, None));
                assert_eq!((totals.bytes, totals.tail_bytes), (offset, 0));
            }
        }
    }

    #[test]
    fn a_tail_is_counted_wherever_the_stream_ends() {
        let framing: Framing = "u32be+4".parse().expect("a good specification");
        let stream = stream(&[10, 500]);
        for end in 10..510 {
            let (found, fault, totals) = all(&framing, &stream[..end], 64, 7);
            assert_eq!((found.len(), fault, totals.messages), (1, None, 1));
            assert_eq!((totals.bytes, totals.tail_bytes), (10, end as u64 - 10));
            assert_eq!(totals.tail_of, (end >= 14).then_some(500));
        }
    }

    #[test]
    fn a_lost_stream_has_no_tail() {
        let framing: Framing = "u8-3".parse().expect("a good specification");
        let (found, fault, totals) = all(&framing, &[5, 0, 1, 2, 3], 64, 9);
        assert_eq!(found.len(), 1);
        assert!(matches!(fault, Some(Fault::BadLength { .. })));
        assert_eq!(
            (totals.bytes, totals.tail_bytes, totals.tail_of),
            (2, 0, None)
        );
    }

    #[test]
    fn without_a_known_length_all_is_held() {
        let lines = Framing::closure(|bytes| match bytes.iter().position(|&b| b == b'\n') {
            Some(at) => Verdict::message(at as u64 + 1),
            None => Verdict::NeedMore(0),
        });
        let stream = [vec![b'x'; 1000], b"\nyy\n".to_vec()].concat();
        for chunk_bytes in [1, 64, 5000] {
            let (found, fault, _) = all(&lines, &stream, 64, chunk_bytes);
            let lens: Vec<_> = found.iter().map(|(_, len, _)| *len).collect();
            assert_eq!((lens, fault), (vec![1001, 3], None));
        }
    }

    /// The first message says the length of the others in its last byte.
    struct Taught(u8);

    impl Parser for Taught {
        fn parse(&self, bytes: &[u8]) -> Verdict {
            match (self.0, bytes) {
                (0, []) => Verdict::NeedMore(1),
                (0, [len, ..]) => Verdict::message(u64::from(*len)),
                (len, _) => Verdict::message(len.into()),
            }
        }

        fn delivered(&mut self, message: &[u8]) {
            if self.0 == 0 {
                self.0 = *message.last().expect("not empty");
            }
        }
    }

    #[test]
    fn parsers_with_state_see_all_of_a_message() {
        let framing = Framing::stateful(|| Taught(0));
        let mut stream = vec![200; 200];
        stream[199] = 3;
        stream.extend([0; 9]);
        let (found, ..) = all(&framing, &stream, 64, 10);
        assert_eq!(
            found.iter().map(|m| m.1).collect::<Vec<_>>(),
            [200, 3, 3, 3]
        );
    }

    #[test]
    fn a_message_in_fragments_is_one() {
        // A byte of length; a zero first says that there is more.
        let fragments = Framing::closure(|bytes| match bytes {
            [0, len, ..] => Verdict::Fragment(u64::from(*len) + 2),
            [len, ..] if *len > 0 => Verdict::message(u64::from(*len) + 1),
            _ => Verdict::NeedMore(0),
        });
        let fragment = [&[0, 98][..], &[9; 98]].concat();
        let message = [fragment.repeat(20), vec![1, 7]].concat();
        for chunk_bytes in [1, 64, 5000] {
            let (found, fault, totals) = all(&fragments, &message.repeat(3), 64, chunk_bytes);
            let lens: Vec<_> = found.iter().map(|(_, len, _)| *len).collect();
            assert_eq!((lens, fault, totals.tail_bytes), (vec![2002; 3], None, 0));
        }
    }
}
