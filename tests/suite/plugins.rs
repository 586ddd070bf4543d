//! Claims about components: what loads, what a bad one can and cannot do, and that a good one does
//! exactly what its code does natively.

pub(crate) mod compiling;
mod folder;
mod grants;
mod loading;
mod misbehaving;
mod native;
mod precompiled;
pub(crate) mod rig;
mod secured;
mod world;
