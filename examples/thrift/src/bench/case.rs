//! What is measured.

/// One of the published cases, or one beside them. Published were a rate and a mean latency; their product is
/// the number of calls that were under way: 15 in `drop`, 237 in `pipeline`, as here.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// The method of `bench.thrift` that is called.
    pub(crate) method: &'static str,
    /// Bytes of data in a call; without: the method takes a number only.
    pub(crate) data_bytes: Option<usize>,
    /// A connection each: calls under way on it.
    pub(crate) in_flight: &'static [usize],
    /// Connections with at most this many calls under way pause after each reply.
    pub(crate) pausing_in_flight: usize,
    /// Whether a call takes so long that its reply should not wait for those of the next calls.
    pub(crate) is_work: bool,
    /// As published for the kernel's KCM, with it to without it: rate, mean and deviation of the
    /// latency.
    pub(crate) published: Option<[f64; 3]>,
}

pub(crate) const CASES: [Case; 4] = [
    Case {
        name: "drop",
        what: "5 kB of data, dropped; 16 connections, one call at a time on each",
        method: "discard",
        data_bytes: Some(5000),
        in_flight: &[1; 16],
        pausing_in_flight: 0,
        is_work: false,
        published: Some([1.00, 0.91, 1.01]),
    },
    Case {
        name: "work",
        what: "a small call, then work (500 us on average); 6 connections with 16, 4, 2, 1, 1, 1 \
               calls under way",
        method: "work",
        data_bytes: None,
        in_flight: &[16, 4, 2, 1, 1, 1],
        pausing_in_flight: 2,
        is_work: true,
        published: Some([1.62, 0.61, 0.39]),
    },
    Case {
        name: "pipeline",
        what: "small calls, 64 under way on each of 4 connections",
        method: "echo",
        data_bytes: None,
        in_flight: &[64; 4],
        pausing_in_flight: 0,
        is_work: false,
        published: Some([0.72, 1.51, 2.03]),
    },
    Case {
        name: "deep",
        what: "the same, 256 under way on each, so that a thread seldom runs out of them",
        method: "echo",
        data_bytes: None,
        in_flight: &[256; 4],
        pausing_in_flight: 0,
        is_work: false,
        published: None,
    },
];
