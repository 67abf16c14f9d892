//! Picks at the boundary: candidates in, a decision out.

mod pick;
