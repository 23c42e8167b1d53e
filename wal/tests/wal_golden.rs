//! A WAL that SQLite 3.40.1 wrote, kept byte for byte: 512-byte pages, `CREATE TABLE t(a)`, one insert.

mod wal_common;

use proptest::prelude::*;
use tidelog_wal::checksum::{ByteOrder, Checksum};
use tidelog_wal::codec::DecodeError;
use tidelog_wal::cursor::ProvenCursor;
use tidelog_wal::frame::{FrameHeader, FrameNo};
use tidelog_wal::header::{Salts, WalHeader};
use tidelog_wal::{PageCount, PageSize};
use wal_common::{SMALL_WINDOW, page, reencoded};

const HEADER: &str = "377f0682002de2180000020000000000dc65819b741ac91b704c68ef43ef5b08";
/// Frame headers, and the parts of their pages that are not zero.
type Part = (usize, &'static str);
const FRAMES: [(&str, &[Part]); 3] = [
    (
        "0000000100000000dc65819b741ac91b87337f79b78c4f06",
        &[
            (
                0,
                "53514c69746520666f726d617420330002000202004020200000000200000002",
            ),
            (43, "0100000004"),
            (59, "01"),
            (95, "02002e63010d0000000101df0001df"),
            (
                479,
                "1f0106170f0f012f7461626c65747402435245415445205441424c452074286129",
            ),
        ],
    ),
    (
        "0000000200000002dc65819b741ac91bedbcbf3529052526",
        &[(0, "0d"), (5, "02")],
    ),
    (
        "0000000200000002dc65819b741ac91bd3c9592a2a9703b0",
        &[(0, "0d0000000101fb0001fb"), (507, "0301020f78")],
    ),
];

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("ascii");
            u8::from_str_radix(pair, 16).expect("hex")
        })
        .collect()
}

fn golden() -> Vec<u8> {
    let mut wal = hex(HEADER);
    for (head, parts) in FRAMES {
        wal.extend(hex(head));
        let start = wal.len();
        wal.resize(start + 512, 0);
        for (at, part) in parts {
            let part = hex(part);
            wal[start + at..start + at + part.len()].copy_from_slice(&part);
        }
    }
    wal
}

#[test]
fn the_golden_header_is_read_exactly_and_written_back() {
    let header = WalHeader::decode(&golden()).expect("golden");
    assert_eq!(header.order, ByteOrder::Little);
    assert_eq!(Some(header.page_size), PageSize::new(512));
    assert_eq!(header.sequence, 0);
    assert_eq!(header.salts, Salts::new([0xdc65_819b, 0x741a_c91b]));
    assert_eq!(header.encode().to_vec(), hex(HEADER));
    assert_eq!(
        WalHeader::new(header.order, header.page_size, 0, header.salts),
        header
    );
}

#[test]
fn the_golden_frames_are_two_commits() {
    let wal = golden();
    let mut cursor = ProvenCursor::open(&wal, SMALL_WINDOW)
        .expect("known version")
        .expect("valid data");
    let mut found = Vec::new();
    while let Some(commit) = cursor.next_commit(&wal).expect("reading memory") {
        let pages: Vec<_> = commit
            .pages
            .iter()
            .map(|entry| (entry.page, entry.frame.get()))
            .collect();
        found.push((commit.n_after.get(), commit.last.get(), pages));
    }
    assert_eq!(
        found,
        [
            (2, 2, vec![(page(1), 1), (page(2), 2)]),
            (2, 3, vec![(page(2), 3)])
        ]
    );
    let last = Checksum {
        s0: 0xd3c9_592a,
        s1: 0x2a97_03b0,
    };
    assert_eq!(
        cursor.position(),
        (cursor.header().salts, FrameNo::new(3), last)
    );
}

#[test]
fn the_other_byte_order_reads_the_same() {
    let wal = golden();
    let big = reencoded(&wal, ByteOrder::Big);
    assert_eq!(WalHeader::decode(&big).expect("good").order, ByteOrder::Big);
    assert_ne!(wal, big);
    assert_eq!(reencoded(&big, ByteOrder::Little), wal);
    let size = PageSize::new(512).expect("512");
    assert_eq!(
        wal_common::ours(&[], &big, size),
        wal_common::ours(&[], &wal, size)
    );
}

#[test]
fn every_flipped_bit_of_the_header_is_refused_by_name() {
    let wal = golden();
    for at in 0..32 {
        for bit in 0..8 {
            let mut bad = wal.clone();
            bad[at] ^= 1 << bit;
            let error = WalHeader::decode(&bad).expect_err("flipped");
            let named = match error {
                DecodeError::Magic { offset, .. } => offset == 0 && at < 4,
                DecodeError::Invalid { offset, .. } => offset == 8 && (8..12).contains(&at),
                DecodeError::Checksum { .. } => true,
                _ => false,
            };
            assert!(named, "byte {at} bit {bit}: {error}");
        }
    }
    assert!(matches!(
        WalHeader::decode(&wal[..31]),
        Err(DecodeError::Short { .. })
    ));
}

#[test]
fn an_unknown_version_is_refused_and_never_taken_for_an_empty_wal() {
    let mut wal = golden();
    wal[7] ^= 1;
    let sums = Checksum::ZERO.update(ByteOrder::Little, &wal[..24]);
    wal[24..32].copy_from_slice(&sums.to_be_bytes());
    assert!(matches!(
        WalHeader::decode(&wal),
        Err(DecodeError::Version {
            found: 3_007_001,
            ..
        })
    ));
    let error = ProvenCursor::open(&wal, SMALL_WINDOW).expect_err("version");
    assert_eq!(error.to_string(), "read WAL header");
}

#[test]
fn padding_that_repeats_the_commit_frame_is_one_commit() {
    // Frame 3 three times, as SQLite pads to a sector boundary (HAZARDS W7).
    let mut wal = golden();
    let last = wal[32 + 2 * 536..].to_vec();
    wal.extend(last.repeat(2));
    let padded = rechained(&wal);
    let mut cursor = ProvenCursor::open(&padded, SMALL_WINDOW)
        .expect("known version")
        .expect("valid data");
    let mut commits = 0;
    while cursor
        .next_commit(&padded)
        .expect("reading memory")
        .is_some()
    {
        commits += 1;
    }
    assert_eq!((commits, cursor.position().1), (2, FrameNo::new(5)));
}

/// The same frames with the chain made right.
fn rechained(wal: &[u8]) -> Vec<u8> {
    let header = WalHeader::decode(wal).expect("good header");
    let mut out = wal[..32].to_vec();
    let mut chain = header.checksum;
    for frame in wal[32..].chunks(536) {
        let head = FrameHeader::decode(frame).expect("good");
        let image = &frame[24..];
        let head = FrameHeader::chained(
            head.page,
            head.commit,
            head.salts,
            image,
            (header.order, chain),
        );
        chain = head.checksum;
        out.extend(head.encode());
        out.extend(image);
    }
    out
}

#[test]
fn frames_beyond_the_commit_size_and_of_the_lock_page_belong_to_no_commit() {
    let header = WalHeader::new(ByteOrder::Little, PageSize::MAX, 0, Salts::new([1, 2]));
    let lock = PageSize::MAX.lock_page().get();
    let frames = [
        (lock - 1, None),
        (lock, None),
        (lock + 2, None),
        (lock + 3, None),
        (lock - 1, None),
        (lock + 2, Some(PageCount::new(lock + 2))),
    ];
    let mut wal = header.encode().to_vec();
    let mut chain = header.checksum;
    for ((number, commit), fill) in frames.into_iter().zip(1..) {
        let image = vec![fill; PageSize::MAX.bytes()];
        let link = (header.order, chain);
        let head = FrameHeader::chained(page(number), commit, header.salts, &image, link);
        chain = head.checksum;
        wal.extend(head.encode());
        wal.extend(image);
    }
    let mut cursor = ProvenCursor::open(&wal, SMALL_WINDOW)
        .expect("known version")
        .expect("valid data");
    let commit = cursor
        .next_commit(&wal)
        .expect("reading memory")
        .expect("one commit");
    let mut scratch = vec![0; PageSize::MAX.bytes()];
    let mut found = Vec::new();
    for entry in commit.pages {
        let image = commit
            .image(&wal, entry.frame, &mut scratch)
            .expect("image");
        found.push((entry.page.get(), image[0]));
    }
    // The window holds one such frame, so most of these were read again.
    assert_eq!(found, [(lock - 1, 5), (lock + 2, 6)]);
}

proptest! {
    #[test]
    fn no_bytes_make_the_cursor_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        flips in proptest::collection::vec((0..1640_usize, any::<u8>()), 0..4),
        whole: bool,
    ) {
        let mut wal = if whole { golden() } else { bytes };
        for (at, to) in flips {
            if let Some(byte) = wal.get_mut(at) {
                *byte = to;
            }
        }
        if let Ok(Some(mut cursor)) = ProvenCursor::open(&wal, SMALL_WINDOW) {
            while cursor.next_commit(&wal).expect("reading memory").is_some() {}
        }
    }
}
