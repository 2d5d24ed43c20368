#![allow(clippy::cast_possible_truncation)] // small numbers made here

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::format::compression::Compression;
use crate::format::state_file::{BLOCK_TARGET_LEN, FileIdentity, StateRecord};
use crate::ids::{CheckpointId, CoreId, StoreId};
use crate::incremental::error::IncrementalCheckpointError;
use crate::incremental::metadata::CheckpointFile;
use crate::vfs::sim::SimDisk;

type Records = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

const STORE: StoreId = StoreId(77);

fn identity() -> FileIdentity {
    FileIdentity { store_id: STORE, checkpoint: CheckpointId(5), core: CoreId(1), part: 0 }
}

const BOTH: [Compression; 2] = [Compression::None, Compression::Lz4];

fn write(disk: &SimDisk, records: &Records) -> CheckpointFile {
    write_packed(disk, records, Compression::None)
}

fn write_packed(disk: &SimDisk, records: &Records, compression: Compression) -> CheckpointFile {
    let path = path_of(&CheckpointFile::of(&identity()));
    let mut writer = StateFileWriter::create(disk, &path, identity(), compression).unwrap();
    for (key, value) in records {
        writer.push(StateRecord { key, value: value.as_deref() }).unwrap();
    }
    writer.finish().unwrap().meta
}

fn path_of(meta: &CheckpointFile) -> PathBuf {
    Path::new("/").join(&meta.name)
}

fn open(disk: &SimDisk, meta: &CheckpointFile) -> Result<Arc<StateFileReader>, IncrementalCheckpointError> {
    StateFileReader::open(disk, Path::new("/"), meta, STORE).map(Arc::new)
}

fn read(disk: &SimDisk, meta: &CheckpointFile) -> Result<Records, IncrementalCheckpointError> {
    let mut cursor = open(disk, meta)?.cursor();
    let mut records = Records::new();
    while cursor.advance()? {
        let record = cursor.current().unwrap();
        records.insert(record.key.to_vec(), record.value.map(<[u8]>::to_vec));
    }
    Ok(records)
}

fn many(n: u32) -> Records {
    let value = |i: u32| (!i.is_multiple_of(5)).then(|| vec![i as u8; (i % 90) as usize]);
    (0..n).map(|i| (format!("key-{i:06}").into_bytes(), value(i))).collect()
}

#[test]
fn comes_back_as_it_was() {
    let big = Records::from([
        (vec![], Some(vec![])),
        (vec![1], Some(vec![9; 3 * BLOCK_TARGET_LEN])),
        (vec![2; 65_535], None),
        (vec![3], Some(vec![1])),
    ]);
    let states = [Records::new(), many(1), many(5000), big];
    for (records, compression) in states.into_iter().flat_map(|state| BOTH.map(|kind| (state.clone(), kind)))
    {
        let disk = SimDisk::new(1);
        let meta = write_packed(&disk, &records, compression);
        assert_eq!(read(&disk, &meta).unwrap(), records);
        assert_eq!(meta.records, records.len() as u64);
        assert_eq!(meta.tombstones, records.values().filter(|v| v.is_none()).count() as u64);
        let reader = open(&disk, &meta).unwrap();
        let mut cache = BlockCache::default();
        for (key, value) in &records {
            let found = reader.get(key, &mut cache).unwrap();
            assert_eq!(found, Some(value.as_deref()), "{key:?}");
        }
        for absent in [b"key-".as_slice(), b"key-000000x", b"zzz", &[0, 0]] {
            assert_eq!(reader.get(absent, &mut cache).unwrap(), None);
        }
    }
}

#[test]
fn a_key_costs_one_block() {
    let disk = SimDisk::new(1);
    let meta = write(&disk, &many(20_000));
    let reader = open(&disk, &meta).unwrap();
    let before = disk.stats();
    reader.get(b"key-010001", &mut BlockCache::default()).unwrap();
    assert_eq!(disk.stats().reads - before.reads, 1);
    assert!(disk.stats().bytes_read - before.bytes_read < 2 * BLOCK_TARGET_LEN as u64);
}

#[test]
fn the_writer_refuses_disorder_and_oversize() {
    let disk = SimDisk::new(1);
    let mut writer = StateFileWriter::create(&disk, Path::new("/x"), identity(), Compression::None).unwrap();
    writer.push(StateRecord { key: b"b", value: None }).unwrap();
    for key in [b"a".as_slice(), b"b", &[255; 65_536]] {
        assert!(writer.push(StateRecord { key, value: None }).is_err());
    }
}

#[test]
fn damage_is_named() {
    let disk = SimDisk::new(1);
    let meta = write(&disk, &many(3000));
    let path = path_of(&meta);

    disk.flip_bit(&path, 8 * 40_000).unwrap();
    let error = read(&disk, &meta).unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::ChecksumMismatch(_)), "{error}");
    assert_eq!(error.detail().path(), Some(path.as_path()));
    assert_eq!(error.detail().core(), Some(CoreId(1)));
    assert!(error.detail().offset().is_some());
    disk.flip_bit(&path, 8 * 40_000).unwrap();

    disk.truncate(&path, meta.len - 1).unwrap();
    let error = open(&disk, &meta).unwrap_err();
    assert!(error.is_corruption(), "{error}");
    assert!(error.to_string().contains(&meta.len.to_string()));

    disk.remove(&path).unwrap();
    let error = open(&disk, &meta).unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::Corruption(_)));
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn another_file_under_the_same_name_is_not_accepted() {
    let disk = SimDisk::new(1);
    let meta = write(&disk, &many(10));
    let other = SimDisk::new(1);
    let mut changed = many(10);
    changed.insert(b"key-000001".to_vec(), Some(vec![7]));
    let old = write(&other, &changed);
    disk.overwrite(path_of(&meta), &other.read_file(path_of(&old)).unwrap()).unwrap();
    let same_length = CheckpointFile { checksum: meta.checksum, ..old.clone() };
    assert!(open(&disk, &same_length).unwrap_err().is_corruption());

    let error = StateFileReader::open(&disk, Path::new("/"), &old, StoreId(78)).unwrap_err();
    assert!(error.to_string().contains("foreign"), "{error}");
}

/// Reads through both doors, scan and look-up.
fn read_all_ways(
    disk: &SimDisk,
    meta: &CheckpointFile,
    keys: &Records,
) -> Result<Records, IncrementalCheckpointError> {
    let scanned = read(disk, meta)?;
    let reader = open(disk, meta)?;
    for key in keys.keys() {
        let mut cache = BlockCache::default();
        let found = reader.get(key, &mut cache)?;
        assert_eq!(found, scanned.get(key).map(Option::as_deref));
    }
    Ok(scanned)
}

#[test]
fn every_bit_and_every_length() {
    every_bit_and_every_length_of(&many(12), Compression::None);
    // Long enough to be packed.
    every_bit_and_every_length_of(
        &(0..8_u8).map(|n| (vec![n], Some(vec![n; 60]))).collect(),
        Compression::Lz4,
    );
}

fn every_bit_and_every_length_of(records: &Records, compression: Compression) {
    let clean = SimDisk::new(1);
    let meta = write_packed(&clean, records, compression);
    let path = path_of(&meta);
    for bit in 0..meta.len * 8 {
        clean.flip_bit(&path, bit).unwrap();
        let error = read_all_ways(&clean, &meta, records).unwrap_err();
        assert!(
            error.is_corruption() || matches!(error, IncrementalCheckpointError::UnsupportedVersion(_)),
            "bit {bit}: {error}"
        );
        clean.flip_bit(&path, bit).unwrap();
    }
    for len in 0..meta.len {
        let disk = SimDisk::new(1);
        write_packed(&disk, records, compression);
        disk.truncate(&path, len).unwrap();
        assert!(read(&disk, &meta).unwrap_err().is_corruption(), "length {len}");
        // And when the manifest would agree with the wrong length.
        let lying = CheckpointFile { len, ..meta.clone() };
        assert!(read(&disk, &lying).unwrap_err().is_corruption(), "length {len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_records_come_back(
        records in prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 0..40),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..3000)),
            0..200,
        )
    ) {
        for compression in BOTH {
            let disk = SimDisk::new(1);
            let meta = write_packed(&disk, &records, compression);
            prop_assert_eq!(&read_all_ways(&disk, &meta, &records).unwrap(), &records);
        }
    }

    #[test]
    fn any_damage_is_an_error_or_harmless(
        n in 0_u32..2500,
        compression in prop::sample::select(&BOTH),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let disk = SimDisk::new(1);
        let records = many(n);
        let meta = write_packed(&disk, &records, compression);
        let path = path_of(&meta);
        for (at, byte) in changes {
            disk.patch(&path, at.index(meta.len as usize) as u64, &[byte]).unwrap();
        }
        if let Some(cut) = cut {
            disk.truncate(&path, cut.index(meta.len as usize) as u64).unwrap();
        }
        match read(&disk, &meta) {
            Ok(found) => prop_assert_eq!(found, records),
            Err(error) => prop_assert!(error.detail().path().is_some()),
        }
    }
}
