//! The real binary as a process.
//!
//! | module | what it proves |
//! | --- | --- |
//! | [`life`] | kill, stop, start and the loss of the machine lose nothing acknowledged |
//! | [`bucket`] | the bucket alone is enough |
//! | [`commands`] | the command line, and its exit codes |
//! | [`serving`] | a process that goes on serving |
//! | [`told`] | what is told to logs, traces and tables |
//! | [`world`] | what they share |

mod bucket;
mod commands;
mod life;
mod serving;
mod told;
mod world;
