//! Who holds which prefix: block schedule, chained hashes and the index over endpoints.
