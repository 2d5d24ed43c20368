use super::*;

const ID: FileIdentity =
    FileIdentity { store_id: StoreId(7), checkpoint: CheckpointId(3), core: CoreId(2), part: 1 };

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn golden_header() {
    let header = encode_header(&ID, Compression::None);
    assert_eq!(
        hex(&header[..60]),
        "4c4d4e525353543101000000000000000700000000000000030000000000000002000100\
         000000000000000000000000000000000000000000000000"
    );
    assert_eq!(check_header(&header, &ID), Ok(Compression::None));
    let mut packed = encode_header(&ID, Compression::Lz4);
    assert_eq!(check_header(&packed, &ID), Ok(Compression::Lz4));
    assert_eq!((packed[12], &packed[..12], &packed[13..60]), (1, &header[..12], &header[13..60]));
    packed[12] = 2;
    let crc = Salt::new(&[]).crc(&[&packed[..60]]);
    packed[60..].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(check_header(&packed, &ID), Err(Fault::Damaged(_))));
}

#[test]
fn golden_record_and_index_entry() {
    let mut out = Vec::new();
    StateRecord { key: b"ab", value: Some(b"xyz") }.encode(&mut out);
    StateRecord { key: b"c", value: None }.encode(&mut out);
    assert_eq!(hex(&out), "0102000300000061627879 7a02010000000000 63".replace(' ', ""));
    let mut entry = Vec::new();
    IndexEntry { offset: 64, len: 20, records: 2, crc: 0x0102_0304, first_key: b"ab" }.encode(&mut entry);
    assert_eq!(hex(&entry), "400000000000000014000000020000000403020102006162");
    assert_eq!(entry.len(), Index::entry_len(2));
}

#[test]
fn golden_footer() {
    let footer = Footer {
        index_offset: 84,
        index_len: 24,
        records: 2,
        tombstones: 1,
        blocks: 1,
        file_len: 172,
        index_crc: 0x0a0b_0c0d,
    };
    let (bytes, crc) = footer.encode(&ID);
    assert_eq!(
        hex(&bytes[..52]),
        "54000000000000001800000000000000020000000000000001000000000000000100000000000000\
         ac000000000000000d0c0b0a"
    );
    assert_eq!(Footer::decode(&bytes, &ID, 172), Ok((footer, crc)));
    assert!(Footer::decode(&bytes, &ID, 173).is_err());
    let other = FileIdentity { store_id: StoreId(8), ..ID };
    assert!(matches!(Footer::decode(&bytes, &other, 172), Err(Fault::Checksum { .. })));
}

#[test]
fn every_flipped_bit_of_header_and_footer_is_seen() {
    let header = encode_header(&ID, Compression::None);
    let footer = Footer {
        index_offset: 64,
        index_len: 0,
        records: 0,
        tombstones: 0,
        blocks: 0,
        file_len: 128,
        index_crc: 0,
    };
    let (footer, _) = footer.encode(&ID);
    for bit in 0..64 * 8 {
        let (mut h, mut f) = (header, footer);
        h[bit / 8] ^= 1 << (bit % 8);
        f[bit / 8] ^= 1 << (bit % 8);
        assert!(check_header(&h, &ID).is_err(), "header bit {bit}");
        assert!(Footer::decode(&f, &ID, 128).is_err(), "footer bit {bit}");
    }
}

#[test]
fn another_identity_and_a_newer_version_are_named() {
    let other = FileIdentity { part: 9, ..ID };
    assert_eq!(
        check_header(&encode_header(&other, Compression::None), &ID),
        Err(Fault::Foreign { found: other })
    );
    let mut newer = encode_header(&ID, Compression::None);
    newer[8] = 2;
    let crc = Salt::new(&[]).crc(&[&newer[..60]]);
    newer[60..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(check_header(&newer, &ID), Err(Fault::NewerVersion { found: 2 }));
}

#[test]
fn a_record_never_reaches_beyond_its_bytes() {
    let mut out = Vec::new();
    StateRecord { key: b"key", value: Some(b"value") }.encode(&mut out);
    for len in 0..out.len() {
        assert!(StateRecord::decode(&out[..len]).is_err());
    }
    out[0] = 3;
    assert!(StateRecord::decode(&out).is_err());
}
