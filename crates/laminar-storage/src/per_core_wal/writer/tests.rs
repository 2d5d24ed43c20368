//! What can only be seen from inside.

use super::*;
use crate::format::segment_header::{Predecessor, WalMode};
use crate::ids::{CoreId, Incarnation, SegmentNumber, StoreId, WalPosition};
use crate::per_core_wal::segment::create_segment;
use crate::per_core_wal::spares::Spares;
use crate::vfs::sim::SimDisk;

/// Nothing below writes that much, but a log that lives long does: positions are those of all segments
/// together.
#[test]
fn positions_go_beyond_4_gib() {
    let base = (1_u64 << 32) + 5;
    let header = SegmentHeader {
        store_id: StoreId(1),
        incarnation: Incarnation(1),
        number: SegmentNumber(1),
        core: CoreId(0),
        core_count: 1,
        mode: WalMode::Plain,
        base_position: WalPosition(base),
        last_sequence: Sequence(u64::from(u32::MAX)),
        last_epoch: Epoch(1),
        sealed_epoch: Epoch(1),
        last_timestamp: TimestampNs(1),
        void_above: Epoch(1),
        previous: Predecessor::default(),
        reused: false,
    };
    let disk = SimDisk::new(1);
    let policy = SegmentPolicy {
        vfs: Arc::new(disk.clone()),
        dir: PathBuf::from("/"),
        segment_size: 1 << 20,
        preallocation: 0,
        names: Arc::default(),
        spares: Arc::new(Spares::new(&(Arc::new(disk.clone()) as Arc<dyn Vfs>))),
        evidence: None,
    };
    let (path, file) = create_segment(&disk, Path::new("/"), &header, 0).unwrap();
    let mut writer = CoreWalWriter::start(policy, header, path, file, Epoch(2));
    assert!(writer.append_put(b"k", b"v").unwrap() > base);
    writer.sync().unwrap();
    assert!(writer.synced_position() > base);
    assert_eq!(writer.sequence(), 1 << 32);
    assert_eq!(writer.next_header().base_position, WalPosition(writer.position()));
}
