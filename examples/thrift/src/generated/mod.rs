//! What the Thrift compiler makes of the interfaces, checked in so that nobody needs the compiler.
//! After a change of an interface (Debian's `thrift-compiler`, 0.17), in this example's directory:
//!
//! ```text
//! thrift --gen rs -out src/generated store.thrift
//! thrift --gen rs -out src/generated bench.thrift
//! thrift --gen py -out client store.thrift && rm client/__init__.py client/store/*-remote
//! ```

#[allow(clippy::all, clippy::pedantic, clippy::restriction, clippy::nursery, missing_docs, unused, unreachable_pub)]
#[rustfmt::skip]
pub mod bench;
#[allow(clippy::all, clippy::pedantic, clippy::restriction, clippy::nursery, missing_docs, unused, unreachable_pub)]
#[rustfmt::skip]
pub mod store;
