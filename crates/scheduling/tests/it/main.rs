//! Tests through the public interface: candidates in, a decision out.

mod fleet;
mod pick;
mod saturation;
mod load_index;
mod under_load;
