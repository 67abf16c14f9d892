//! The picker from outside: its pure parts by tables, the whole of it by a proxy of our own over real sockets.

mod body;
mod exchange;
mod fixtures;
mod log;
mod picking;
mod process;
mod protocol;
mod tutorial;
