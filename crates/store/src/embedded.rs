//! The embedded store: SQLite in WAL mode with one committer thread.
