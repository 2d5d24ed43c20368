//! The stores that `peers` has. A batch is put by what it does there, and their commit is a checkpoint there.

use std::path::Path;

use super::Logged;
use crate::Error;
use crate::keys::Stamp;
use crate::peers::Peer;

/// Their values are made from number and version, which takes some 20 ns each, and there are no more than half a
/// million of them a second.
fn put<P: Peer>(peer: &mut P, numbers: &[u32]) -> Result<(), Error> {
    peer.put(&mut numbers.iter().map(|number| u64::from(*number)), 1)
}

/// What each is called here, and what is done after a put until it is durable.
macro_rules! logged {
    ($($name:ident = $peer:ty, $called:literal, $commit:expr;)*) => {$(
        pub struct $name($peer);

        impl Logged for $name {
            const NAME: &'static str = $called;
            const KEEPS_STATE: bool = true;

            fn open(dir: &Path) -> Result<Self, Error> {
                Ok(Self(<$peer>::open(dir)?))
            }

            fn put(&mut self, numbers: &[u32], _: &mut Stamp) -> Result<(), Error> {
                put(&mut self.0, numbers)?;
                let commit: fn(&mut $peer) -> Result<(), Error> = $commit;
                commit(&mut self.0)
            }

            fn close(self) -> Result<(), Error> {
                self.0.close()
            }
        }
    )*};
}

#[cfg(feature = "peers")]
logged! {
    // Its put ends with a sync of the journal.
    Fjall = crate::peers::others::Fjall, "fjall", |_| Ok(());
    Redb = crate::peers::others::Redb, "redb, a commit", |peer| peer.checkpoint(Path::new(""));
    Lmdb = crate::peers::lmdb::Lmdb, "LMDB, a commit", |peer| peer.checkpoint(Path::new(""));
}

#[cfg(feature = "peer-rocksdb")]
logged! {
    // Its put ends with a sync of the log.
    Rocks = crate::peers::rocks::Rocks, "RocksDB", |_| Ok(());
}
