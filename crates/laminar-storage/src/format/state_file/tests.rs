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

/// A checksum that is right says that it was written like that, not that it means anything.
#[test]
fn header_fields_that_were_never_written_are_refused() {
    for (at, byte) in [(8, 0), (36, 1), (59, 1)] {
        let mut header = encode_header(&ID, Compression::None);
        header[at] = byte;
        let crc = Salt::new(&[]).crc(&[&header[..60]]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        let refused = check_header(&header, &ID);
        assert!(matches!(refused, Err(Fault::Damaged(_))), "byte {at}: {refused:?}");
    }
}

#[test]
fn a_deletion_has_no_value() {
    let mut out = Vec::new();
    StateRecord { key: b"key", value: None }.encode(&mut out);
    assert!(StateRecord::decode(&out).is_ok());
    let deletion = out[0];
    out.clear();
    StateRecord { key: b"key", value: Some(b"value") }.encode(&mut out);
    out[0] = deletion;
    assert!(matches!(StateRecord::decode(&out), Err(Fault::Damaged(_))));
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

/// Whoever recomputes the checksums still cannot make the parts contradict each other.
#[test]
fn a_footer_that_contradicts_itself_is_refused() {
    let good = Footer {
        index_offset: 84,
        index_len: 24,
        records: 2,
        tombstones: 2,
        blocks: 2,
        file_len: 172,
        index_crc: 0,
    };
    let decode = |footer: Footer| Footer::decode(&footer.encode(&ID).0, &ID, 172);
    decode(good).unwrap();
    decode(Footer { index_offset: 64, index_len: 44, ..good }).unwrap();
    decode(Footer { tombstones: 0, blocks: 1, ..good }).unwrap();
    for bad in [
        Footer { index_offset: 63, index_len: 45, ..good },
        Footer { index_len: 23, ..good },
        Footer { index_len: u64::MAX, ..good },
        Footer { tombstones: 3, ..good },
        Footer { blocks: 3, ..good },
        Footer { file_len: 171, ..good },
    ] {
        assert!(matches!(decode(bad), Err(Fault::Damaged(_))), "{bad:?}");
    }
}

#[test]
fn an_index_that_contradicts_itself_or_the_footer_is_refused() {
    let entry = |offset, len, records, first_key| IndexEntry { offset, len, records, crc: 0, first_key };
    let parse = |entries: &[IndexEntry<'_>], index_offset: u64, records: u64, blocks: u64| {
        let mut raw = Vec::new();
        entries.iter().for_each(|entry| entry.encode(&mut raw));
        let index_len = raw.len() as u64;
        let file_len = index_offset + index_len + FOOTER_LEN as u64;
        let index_crc = ID.index_crc(index_offset, &raw);
        let footer = Footer { index_offset, index_len, records, tombstones: 0, blocks, file_len, index_crc };
        Index::parse(raw, &footer, &ID, Compression::None)
    };
    let least = u32::try_from(RECORD_HEADER_LEN).unwrap();
    let most = u32::try_from(MAX_BLOCK_LEN).unwrap();
    let good = [entry(64, least, 1, b"a".as_slice()), entry(64 + u64::from(least), 3 * least, 3, b"b")];
    let end = 64 + 4 * u64::from(least);
    let index = parse(&good, end, 4, 2).unwrap();
    assert_eq!(
        (index.blocks(), index.find(b"Z"), index.find(b"a"), index.find(b"bb")),
        (2, None, Some(0), Some(1))
    );
    let [first, second] = good;
    for (entries, index_offset, records, blocks) in [
        (vec![first, second], end + 1, 4, 2),
        (vec![first, second], end, 5, 2),
        (vec![first, second], end, 4, 3),
        (vec![first], end, 4, 2),
        (vec![first, IndexEntry { offset: second.offset + 1, ..second }], end, 4, 2),
        (vec![first, IndexEntry { records: 0, ..second }], end, 1, 2),
        (vec![first, IndexEntry { records: 4, ..second }], end, 5, 2),
        (vec![first, IndexEntry { len: 3 * least - 1, ..second }], end - 1, 4, 2),
        (vec![first, IndexEntry { len: most + 1, ..second }], 65 + u64::from(least) + u64::from(most), 4, 2),
        (vec![first, IndexEntry { first_key: b"a", ..second }], end, 4, 2),
        (vec![IndexEntry { first_key: b"c", ..first }, second], end, 4, 2),
    ] {
        let parsed = parse(&entries, index_offset, records, blocks);
        assert!(matches!(parsed, Err(Fault::Damaged(_))), "{entries:?}");
    }
}
