//! Boots the appliance and initiator images in QEMU: the one place that does,
//! for `just boot`, for the whole-system tests, the demo and the benchmark.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use orlop_image::{Artifacts, GuestBuilder, Link, Role};
//! use std::time::Duration;
//!
//! let artifacts = Artifacts::locate()?;
//! let dir = std::path::Path::new("target/demo");
//! let (near, far) = Link::pair(1)?;
//! let mut appliance = GuestBuilder::new(Role::Appliance, "appliance", dir)
//!     .data_disk("data0", 4 << 30)
//!     .forward(8443)
//!     .link(near)
//!     .start(&artifacts)?;
//! let mut initiator = GuestBuilder::new(Role::Initiator, "initiator", dir).link(far).start(&artifacts)?;
//! appliance.wait_ready(Duration::from_secs(60))?;
//! initiator.wait_ready(Duration::from_secs(60))?;
//! appliance.shell_ok("zpool create tank /dev/disk/by-id/virtio-data0", Duration::from_secs(20))?;
//! appliance.power_cut()?;
//! appliance.power_on()?;
//! # Ok(()) }
//! ```
//!
//! Nothing is added to the product for this: the harness passes
//! `systemd.debug_shell` on the kernel command line and talks to the shell that
//! systemd itself starts on a virtio console. Everything blocks, on plain
//! threads, and every wait has a deadline. A guest never outlives its process.
//!
//! | module | owns |
//! | --- | --- |
//! | `artifacts` | where the results of `image/build.sh` are |
//! | `accel` | whether hardware virtualization really works here |
//! | `link` | a storage network of two guests |
//! | `args` | from a description to QEMU's arguments; pure |
//! | `process` | the QEMU process: start, watch, kill |
//! | `shell` | commands over the virtio console |
//! | `qmp` | QEMU's own control socket: cables and disks that misbehave |
//! | `builder` | the description of a guest, its disks and credentials |
//! | `volatile` | disks that lose what was not flushed |
//! | `guest` | all of it together, from power on to its end |

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the rules are for the daemon; this starts QEMU and polls it")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accel;
mod args;
mod artifacts;
mod builder;
mod guest;
mod link;
mod process;
mod qmp;
mod shell;
mod volatile;

pub use accel::Accel;
pub use artifacts::{Artifacts, Role};
pub use builder::GuestBuilder;
pub use guest::Guest;
pub use link::{Link, LinkEnd};
pub use shell::Output;
