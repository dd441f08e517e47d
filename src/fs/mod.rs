//! The disk, as a run needs it: writes that survive a power cut, commits that are whole or absent, locks, and paths
//! that cannot leave their folder. Every durable write of the program goes through here; nothing here knows what
//! the bytes mean.

mod append;
mod durable;
mod error;
pub mod fault;
mod hash;
mod lock;
mod owner;
mod paths;
mod space;
mod staging;

pub use append::Appender;
pub use durable::{
    Body, create_folders, entries, open_regular, read_at_most, remove_file, remove_folder, remove_leftovers,
    rename_to_free_name, sync_folder, write_durable, write_durable_with,
};
pub use error::Error;
pub use hash::{Digesting, Hashing, sha256_bytes, sha256_file};
pub use lock::RunLock;
pub use owner::Owner;
pub use paths::{home, safe_join};
pub use space::{bytes_under, free_bytes};
pub use staging::{FileEntry, Staging};
