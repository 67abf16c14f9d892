//! House rules as a test: see `tests/it`.
