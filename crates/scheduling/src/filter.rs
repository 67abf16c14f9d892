//! Narrowing candidates down, keeping their order.
