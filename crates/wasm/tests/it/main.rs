//! Programs loaded and run as pods do it.

mod command;
mod host;
mod http;
mod load;
