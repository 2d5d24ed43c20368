#![allow(clippy::cast_possible_truncation)] // small numbers made here

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::format::compression::Compression;
use crate::format::digest::record_digest;
use crate::format::state_file::{
    BLOCK_TARGET_LEN, FOOTER_LEN, FileIdentity, Footer, IndexEntry, RECORD_HEADER_LEN, StateRecord,
    encode_header,
};
use crate::format::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::ids::{CheckpointId, CoreId, StoreId};
use crate::incremental::error::IncrementalCheckpointError;
use crate::incremental::metadata::CheckpointFile;
use crate::incremental::reshard::KeyRange;
use crate::pace::Pace;
use crate::vfs::sim::{Duration, Fault, SimDisk};

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
    let mut writer = StateFileWriter::create(disk, &path, identity(), compression, Pace::default()).unwrap();
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

/// A block that packing does not make smaller is four bytes longer on disk than it is. For the longest one that was
/// written and could not be opened: a store with such a pair of records could make no checkpoint any more. Found by
/// reading.
#[test]
fn the_longest_block_comes_back_packed_or_not() {
    let random = |seed: &[u8], len: usize| -> Vec<u8> {
        let words = (0..len as u64).step_by(8).map(|at| record_digest(&at.to_le_bytes(), seed));
        words.flat_map(u64::to_le_bytes).take(len).collect()
    };
    let first = random(b"1", BLOCK_TARGET_LEN - 1 - RECORD_HEADER_LEN - 1);
    let (last_key, last) = ([vec![255], random(b"2", MAX_KEY_LEN - 1)].concat(), random(b"3", MAX_VALUE_LEN));
    let records = Records::from([(vec![0], Some(first)), (last_key, Some(last))]);
    for compression in BOTH {
        let disk = SimDisk::new(1);
        let meta = write_packed(&disk, &records, compression);
        assert_eq!(open(&disk, &meta).unwrap().blocks(), 1);
        assert_eq!(read(&disk, &meta).unwrap(), records);
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
fn a_range_of_keys_costs_its_own_blocks() {
    let disk = SimDisk::new(1);
    let meta = write(&disk, &many(20_000));
    let reader = open(&disk, &meta).unwrap();
    let before = disk.stats().reads;
    let range = KeyRange { from: Some(b"key-010000".to_vec()), to: Some(b"key-010003".to_vec()) };
    let mut cursor = reader.cursor_within(&range);
    for key in ["key-010000", "key-010001", "key-010002"] {
        assert!(cursor.advance().unwrap());
        assert_eq!(cursor.current().unwrap().key, key.as_bytes());
    }
    for _ in 0..2 {
        assert!(!cursor.advance().unwrap() && cursor.current().is_none());
    }
    assert!(disk.stats().reads - before <= 2, "{}", disk.stats().reads - before);
    // The footer counts the tombstones of all of them, not of those at the end.
    let range = KeyRange { from: Some(b"key-019990".to_vec()), to: None };
    let mut cursor = reader.cursor_within(&range);
    for _ in 0..10 {
        assert!(cursor.advance().unwrap());
    }
    assert!(!cursor.advance().unwrap());
}

#[test]
fn the_writer_refuses_disorder_and_oversize() {
    let disk = SimDisk::new(1);
    let mut writer =
        StateFileWriter::create(&disk, Path::new("/x"), identity(), Compression::None, Pace::default())
            .unwrap();
    writer.push(StateRecord { key: b"b", value: None }).unwrap();
    for key in [b"a".as_slice(), b"b", &[255; 65_536]] {
        assert!(writer.push(StateRecord { key, value: None }).is_err());
    }
}

#[test]
fn a_value_may_be_as_long_as_the_longest_and_no_longer() {
    let disk = SimDisk::new(1);
    let mut writer =
        StateFileWriter::create(&disk, Path::new("/x"), identity(), Compression::None, Pace::default())
            .unwrap();
    let value = vec![7; MAX_VALUE_LEN + 1];
    let mut push = |key: &[u8], len| writer.push(StateRecord { key, value: Some(&value[..len]) });
    push(b"a", MAX_VALUE_LEN).unwrap();
    assert!(push(b"b", MAX_VALUE_LEN + 1).is_err());
    push(b"b", 0).unwrap();
    let meta = writer.finish().unwrap().meta;
    assert_eq!((meta.records, meta.len > MAX_VALUE_LEN as u64), (2, true));
}

/// The index is in memory, and every write is a system call.
#[test]
fn blocks_have_their_size_and_are_written_many_at_a_time() {
    let disk = SimDisk::new(1);
    let meta = write(&disk, &many(20_000));
    let most = meta.len as usize / BLOCK_TARGET_LEN + 1;
    let blocks = open(&disk, &meta).unwrap().blocks();
    assert!((most / 2..=most).contains(&blocks), "{blocks} blocks, at most {most}");
    assert!(disk.stats().writes <= meta.len / (256 << 10) + 3, "{} writes", disk.stats().writes);
}

/// Whoever could make right checksums still could not make keys come twice or in disorder, which would
/// break every merge.
#[test]
fn records_that_contradict_their_order_or_their_index_are_damage() {
    // Blocks of keys, and how many of them the index says there are.
    let read_crafted = |blocks: &[(&[u8], u32)]| {
        let disk = SimDisk::new(1);
        let id = identity();
        let mut bytes = encode_header(&id, Compression::None).to_vec();
        let mut index = Vec::new();
        for (keys, records) in blocks {
            let mut block = Vec::new();
            for key in *keys {
                StateRecord { key: &[*key], value: Some(&[7; 50]) }.encode(&mut block);
            }
            let offset = bytes.len() as u64;
            let crc = id.block_crc(offset, &block);
            let len = block.len() as u32;
            IndexEntry { offset, len, records: *records, crc, first_key: &keys[..1] }.encode(&mut index);
            bytes.extend(block);
        }
        let index_offset = bytes.len() as u64;
        let mut meta = CheckpointFile::of(&id);
        meta.records = blocks.iter().map(|(_, records)| u64::from(*records)).sum();
        meta.len = index_offset + (index.len() + FOOTER_LEN) as u64;
        let footer = Footer {
            index_offset,
            index_len: index.len() as u64,
            records: meta.records,
            tombstones: 0,
            blocks: blocks.len() as u64,
            file_len: meta.len,
            index_crc: id.index_crc(index_offset, &index),
        };
        let (footer, checksum) = footer.encode(&id);
        meta.checksum = checksum;
        disk.overwrite(path_of(&meta), &[bytes, index, footer.to_vec()].concat()).unwrap();
        read(&disk, &meta)
    };
    assert_eq!(read_crafted(&[(b"ab", 2), (b"cd", 2)]).unwrap().len(), 4);
    let bad: [&[(&[u8], u32)]; 7] = [
        &[(b"aa", 2)],
        &[(b"acb", 3)],
        &[(b"ab", 2), (b"bc", 2)],
        &[(b"ac", 2), (b"bd", 2)],
        &[(b"abc", 2)],
        &[(b"ab", 3)],
        &[(b"ab", 1), (b"cd", 3)],
    ];
    for blocks in bad {
        let error = read_crafted(blocks).unwrap_err();
        assert!(error.is_corruption(), "{blocks:?}: {error}");
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
fn the_last_record_of_each_block_is_known() {
    let disk = SimDisk::new(1);
    let reader = open(&disk, &write(&disk, &many(5000))).unwrap();
    let (mut cursor, mut ends) = (reader.cursor(), 0);
    while cursor.advance().unwrap() {
        ends += usize::from(cursor.ends_block());
    }
    assert_eq!((ends, ends > 1), (reader.blocks(), true));
}

/// Damage is a reason to try an older checkpoint; a device that fails is not.
#[test]
fn a_read_that_fails_is_no_damage_and_a_file_that_got_shorter_is() {
    let disk = SimDisk::new(1);
    let meta = write(&disk, &many(3000));
    let reader = open(&disk, &meta).unwrap();
    let get = || reader.get(b"key-002999", &mut BlockCache::default()).map(|value| value.is_some());
    disk.number_reads(true);
    disk.fail_op(disk.ops() + 1, Fault::Eio, Duration::Once);
    let error = get().unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::Io(_)), "{error}");
    assert!(get().unwrap());
    disk.truncate(path_of(&meta), meta.len / 2).unwrap();
    assert!(get().unwrap_err().is_corruption());
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
