//! Benchmarks: our programs beside the official ones and beside the limits of
//! the machine, in one run. Nothing here passes or fails.
//!
//! - [`join`]: the time from joining a tailnet to a direct path;
//! - [`dataplane`]: throughput, loss, latency, CPU and memory of the data plane.
//!
//! The hosts, the NATs and the programs come from `warren-lab`. `bench/README.md`
//! explains the figures; the scripts beside it build and run everything.

pub mod dataplane;
pub mod join;
mod local_api;
mod machine;
