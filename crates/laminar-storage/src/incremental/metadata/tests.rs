use super::*;
use crate::format::manifest::seal;

fn sample() -> IncrementalCheckpointMetadata {
    let mut metadata = IncrementalCheckpointMetadata::new(9, 4);
    metadata.store_id = u64::MAX;
    metadata.core_count = 2;
    metadata.bound_to_wal = true;
    metadata.wal_cuts = vec![WalCut { sequence: 17 }, WalCut { sequence: u64::MAX }];
    metadata.core_offsets = vec![
        CoreOffsets { offsets: [("a\"b".to_string(), 3)].into(), watermark: Some(-5) },
        CoreOffsets { offsets: [("c".to_string(), 4)].into(), watermark: None },
    ];
    (metadata.source_offsets, metadata.watermark) = flatten(&metadata.core_offsets);
    metadata.digests = vec![CoreDigest { digest: 1, live_keys: 2 }; 2];
    metadata.parent_id = Some(8);
    for (core, checkpoint) in [(0, 7), (0, 9), (1, 3)] {
        let mut file = CheckpointFile::of(&FileIdentity {
            store_id: StoreId(1),
            checkpoint: CheckpointId(checkpoint),
            core: CoreId(core),
            part: 0,
        });
        file.len = 200;
        metadata.sst_files.push(file.name.clone());
        metadata.files.push(file);
    }
    metadata.size_bytes = 600;
    metadata
}

#[test]
fn golden() {
    let metadata = IncrementalCheckpointMetadata::new(1, 100);
    let json = metadata.to_json().unwrap();
    assert_eq!(
        json.split(",\"crc32c\"").next().unwrap(),
        "{\"manifest\":{\"format_version\":1,\"id\":1,\"epoch\":100,\"timestamp\":0,\"wal_position\":0,\
         \"source_offsets\":{},\"watermark\":null,\"size_bytes\":0,\"key_count\":0,\
         \"is_incremental\":false,\"parent_id\":null,\"store_id\":0,\"bound_to_wal\":false,\
         \"core_count\":1,\"wal_cuts\":[],\"core_offsets\":[],\"digests\":[],\"files\":[]}"
    );
    assert_eq!(IncrementalCheckpointMetadata::from_json(&json).unwrap(), metadata);
}

#[test]
fn comes_back_as_it_was() {
    let metadata = sample();
    let json = metadata.to_json().unwrap();
    assert_eq!(IncrementalCheckpointMetadata::from_json(&json).unwrap(), metadata);
    assert_eq!(metadata.written_bytes(), 200);
    assert_eq!(metadata.checkpoint_path(Path::new("/d")), Path::new("/d/checkpoint_0000000000000009"));
}

#[test]
fn every_flipped_bit_is_seen() {
    let json = sample().to_json().unwrap();
    for bit in 0..json.len() * 8 {
        let mut bytes = json.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(text) = String::from_utf8(bytes) {
            assert!(IncrementalCheckpointMetadata::from_json(&text).is_err(), "bit {bit}");
        }
    }
}

/// Somebody who recomputes the checksum still cannot make us open another path.
#[test]
fn hostile_manifests_are_refused() {
    let metadata = sample();
    let text = serde_json::to_string(&metadata.to_manifest()).unwrap();
    let name = &metadata.files[0].name;
    let order =
        format!("{name}\",\"len\":200,\"checksum\":0,\"records\":0,\"tombstones\":0}},{{\"name\":\"{name}");
    let changes = [
        (name.as_str(), "../../etc/passwd"),
        (name.as_str(), "state-0000000000000007-0000-0000.sst/../x"),
        (name.as_str(), "state-0000000000000007-0005-0000.sst"),
        (name.as_str(), order.as_str()),
        ("\"core_count\":2", "\"core_count\":0"),
        ("\"core_count\":2", "\"core_count\": 2"),
        ("\"size_bytes\":600", "\"size_bytes\":601"),
        ("\"parent_id\":8", "\"parent_id\":9"),
        ("\"watermark\":-5,\"size", "\"watermark\":5,\"size"),
        ("\"bound_to_wal\":true", "\"bound_to_wal\":false"),
        ("\"id\":9", "\"id\":9,\"id\":9"),
    ];
    for (from, to) in changes {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let error = IncrementalCheckpointMetadata::from_json(&seal(&changed)).unwrap_err();
        assert!(error.is_corruption(), "{from} -> {to}: {error}");
    }
    let newer = seal(&text.replacen("\"format_version\":1", "\"format_version\":2", 1));
    let error = IncrementalCheckpointMetadata::from_json(&newer).unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::UnsupportedVersion(_)));
    assert!(error.to_string().contains("version 2") && error.to_string().contains("version 1"));
}

#[test]
fn as_many_cores_as_there_can_be_and_no_more() {
    let with = |cores: u16, cuts: usize, offsets: usize| {
        let mut metadata = IncrementalCheckpointMetadata::new(1, 1);
        metadata.core_count = cores;
        metadata.bound_to_wal = true;
        metadata.wal_cuts = vec![WalCut { sequence: 1 }; cuts];
        metadata.core_offsets = vec![CoreOffsets::default(); offsets];
        metadata.to_json().is_ok()
    };
    let most = u16::try_from(MAX_CORES).unwrap();
    assert!(with(most, MAX_CORES, MAX_CORES));
    assert!(with(1, 1, 0));
    for (cores, cuts, offsets) in
        [(0, 1, 0), (most + 1, 1, 0), (1, MAX_CORES + 1, 0), (1, 1, MAX_CORES + 1), (1, 0, 0)]
    {
        assert!(!with(cores, cuts, offsets), "{cores} {cuts} {offsets}");
    }
}

#[test]
fn a_file_is_listed_once_by_its_own_name_and_belongs_to_no_later_checkpoint() {
    let mut twice = sample();
    twice.files.insert(1, twice.files[0].clone());
    twice.size_bytes += 200;
    let mut later = sample();
    later.id = 8;
    later.parent_id = None;
    let mut misnamed = sample();
    misnamed.files[0].name = "../elsewhere.sst".into();
    for mut metadata in [twice, later, misnamed] {
        metadata.sst_files = metadata.files.iter().map(|file| file.name.clone()).collect();
        assert!(metadata.to_json().is_err(), "{:?}", metadata.sst_files);
    }
}
