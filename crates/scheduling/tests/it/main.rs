//! Tests through the public interface: candidates in, a decision out.

mod fleet;
mod pick;
mod saturation;
mod standings;
mod under_load;
