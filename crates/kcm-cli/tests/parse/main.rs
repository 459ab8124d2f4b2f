//! `kcm parse` as its users call it.

mod harness;
mod programs;
mod rows;
mod streams;
