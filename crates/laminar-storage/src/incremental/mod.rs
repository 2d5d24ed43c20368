//! Incremental checkpoints: only what changed is written, every directory stands on its own.
mod tokens;
pub use tokens::Published;
