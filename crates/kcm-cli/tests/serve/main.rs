//! `kcm serve` as its users call it: with workers in Python, shell and C, and clients of which some
//! were not written for this.

mod activation;
mod clients;
mod harness;
mod keepalive;
mod stopping;
mod transports;
mod workers;
