//! The shapes that travel. Separate types for what is asked (`...Create`, `...Update`) and what is shown.
//! What is asked refuses unknown fields; what is shown may grow fields, so clients ignore unknown ones.

mod alarm;
mod disk;
mod host;
mod orphan;
mod pool;
mod snapshot;
mod system;
mod target;
mod volume;

pub use alarm::*;
pub use disk::*;
pub use host::*;
pub use orphan::*;
pub use pool::*;
pub use snapshot::*;
pub use system::*;
pub use target::*;
pub use volume::*;
