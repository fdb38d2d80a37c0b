//! The coordination server: the runtime around [`warren_control_core`].
//!
//! The core decides; this crate listens, stores and provides the time. The parts,
//! in the order in which a login meets them:
//!
//! * [`server`] accepts connections, distinguishes TLS from plain HTTP by
//!   the first byte, and hands relay connections to the embedded relay;
//! * `second_dial` opens port 443 for official clients that dial again;
//! * `public` serves what is public: `/key`, `/health`, the pages of [`pages`], ...;
//! * [`login`] logs people in at identity providers, on pages for browsers;
//! * [`certificates`] replaces the certificate of a port while connections go on;
//! * [`config`] reads the settings: file, environment and flags;
//! * [`reload`] reads them again while the server runs;
//! * [`serve`] opens the state and the ports, and starts the tasks;
//! * [`connections`](warren_dial::connections) bounds how many there are, in all, from one
//!   source, and of one node;
//! * [`noise`] takes the upgraded connection, makes the Noise handshake and
//!   serves HTTP/2 inside it;
//! * [`swallowed_upgrades`] recognises proxies that keep clients from upgrading;
//! * [`refusals`] counts and reports what keeps machines out;
//! * [`channel_idle`] ends control channels that are not used;
//! * [`body_budget`] bounds what machines may send at a time;
//! * [`machine`] serves the requests inside it: registration and the map stream;
//! * [`ssh_action`] serves those about SSH sessions that need a check;
//! * [`c2n`] sends requests to nodes, over their map streams;
//! * [`coordinator`] is the one owner of the coordinator; it carries the coordinator's
//!   wishes to sessions, to the timer and to the store;
//! * [`store`] writes rows to SQLite from a thread of its own, in batches;
//! * [`admin`] carries out the requests of the administration API, which
//!   [`warren_control_api`] describes and serves on a socket in the state folder;
//! * `metrics` serves counters and gauges for Prometheus;
//! * [`backup`] copies the state while the server runs, and puts it back;
//! * [`cli`] is the command line: `serve`, and a client of that API.
//!
//! This crate never answers a registration before its row is on disk, never holds a
//! change back to batch it with others, and never logs a secret.

pub mod admin;
pub mod backup;
mod banner;
pub mod body_budget;
pub mod c2n;
pub mod certificates;
pub mod channel_idle;
pub mod cli;
pub mod clock;
pub mod config;
pub mod coordinator;
mod dns_records;
pub mod failure;
pub mod http;
mod inputs;
mod invite;
pub mod login;
pub mod machine;
mod metrics;
pub mod noise;
pub mod pages;
mod policy_file;
mod public;
pub mod refusals;
pub mod reload;
mod second_dial;
mod self_map;
pub mod serve;
pub mod server;
pub mod ssh_action;
pub mod state_dir;
pub mod store;
pub mod swallowed_upgrades;
pub mod terminal;
mod tka;
mod watched_file;
