//! Sends requests, and reads their answers strictly and with arrival times.

pub mod client;

pub mod chat;

pub mod sse;

pub mod pacer;
