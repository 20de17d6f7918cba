//! The API server as its clients see it.

mod crud;
