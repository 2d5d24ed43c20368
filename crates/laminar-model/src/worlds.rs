//! The bounds that are checked: small ones in a second or two, large ones by command.

use crate::rules::Bounds;

const NONE: Bounds = Bounds {
    cores: 1,
    epochs: 1,
    checkpoints: 0,
    retained: 2,
    crashes: 0,
    failing_syncs: 0,
    rotten: 0,
    coarse: false,
};

/// One core, and every crash of a crash of a crash.
pub const RECOVERY: Bounds = Bounds { epochs: 3, crashes: 3, ..NONE };
/// Two cores and a checkpoint.
pub const PAIR: Bounds = Bounds { cores: 2, epochs: 2, checkpoints: 1, crashes: 2, ..NONE };
/// Three cores that commit together.
pub const COMMIT: Bounds = Bounds { cores: 3, epochs: 2, crashes: 1, ..NONE };
/// One core, all of a checkpoint's life, and one that goes bad.
pub const CHECKPOINTS: Bounds = Bounds { epochs: 3, checkpoints: 3, crashes: 1, rotten: 1, ..NONE };
/// One core, and two checkpoints that go bad one after the other, each while it is the newest.
pub const ROTTEN: Bounds = Bounds { epochs: 2, checkpoints: 2, crashes: 1, rotten: 2, ..NONE };
/// One core, and a sync that fails.
pub const FAULT: Bounds = Bounds { epochs: 2, checkpoints: 1, crashes: 2, failing_syncs: 1, ..NONE };

/// The small ones, by name.
pub const SMALL: [(&str, Bounds); 6] = [
    ("recovery", RECOVERY),
    ("pair", PAIR),
    ("commit", COMMIT),
    ("checkpoints", CHECKPOINTS),
    ("rotten", ROTTEN),
    ("fault", FAULT),
];

/// The large ones, by name.
pub const LARGE: [(&str, Bounds); 5] = [
    ("full", Bounds { cores: 3, epochs: 3, checkpoints: 2, crashes: 2, coarse: true, ..NONE }),
    ("pair", Bounds { cores: 2, epochs: 3, checkpoints: 2, retained: 1, crashes: 1, ..NONE }),
    ("recovery", Bounds { epochs: 4, checkpoints: 3, crashes: 2, failing_syncs: 1, rotten: 1, ..NONE }),
    (
        "fault",
        Bounds { cores: 2, epochs: 2, checkpoints: 2, crashes: 2, failing_syncs: 1, coarse: true, ..NONE },
    ),
    // A checkpoint of the first world goes bad.
    ("rotting", Bounds { cores: 3, epochs: 3, checkpoints: 2, crashes: 2, rotten: 1, coarse: true, ..NONE }),
];
