//! The few Linux error numbers that framing speaks of.
//!
//! They are written out here, rather than taken from a C library binding, so
//! that the crate keeps having no dependency at all. The values are those of
//! every Linux architecture this project builds for (x86-64, aarch64).

/// A parser broke down: it panicked (5).
pub const EIO: i32 = 5;

/// A specification that makes no sense (22).
pub const EINVAL: i32 = 22;

/// The bytes break the protocol: no boundary can be found in them (71).
pub const EPROTO: i32 = 71;

/// A message, or its header, is longer than the limits allow (90).
pub const EMSGSIZE: i32 = 90;

/// A version of the protocol that nobody here knows (93).
pub const EPROTONOSUPPORT: i32 = 93;

/// The framing has no way of doing what was asked (95).
pub const EOPNOTSUPP: i32 = 95;
