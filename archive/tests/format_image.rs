//! Promises of images.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod format_support;

use bytes::Bytes;
use format_support::{DATABASE, Dice, NAMESPACE, SEED, count, digest, refuses_all_damage};
use tidelog_archive::envelope::{Finished, FormatError, WriteId};
use tidelog_archive::image::{Image, ImageMeta, ImageWriter};
use tidelog_archive::key::{Key, KeyNonce};
use tidelog_archive::seal::{Keyring, Stamp};
use tidelog_wal::block::Compressor;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{
    Chain, DatabaseId, Digest, PageCount, PageNo, PageSize, Position, Term, Timestamp, TxId,
};

fn meta(page_size: PageSize, n: PageCount, digest: Digest) -> ImageMeta {
    ImageMeta {
        namespace: NAMESPACE,
        database: DATABASE,
        page_size,
        seed: SEED,
        position: Position {
            term: Term::new(3),
            txid: TxId::new(9),
            chain: Chain::from_bytes([5; 16]),
        },
        time: Timestamp::from_micros(77),
        n,
        digest,
    }
}

fn name(finished: &Finished) -> ObjectRef {
    finished.object_ref(&Key::image(
        NAMESPACE,
        DATABASE,
        TxId::new(9),
        KeyNonce::default(),
    ))
}

fn write(size: u32, pages: &[Vec<u8>]) -> Finished {
    let size = PageSize::new(size).expect("a page size");
    let meta = meta(size, count(pages.len()), digest(size, pages));
    let mut writer = ImageWriter::new(meta, Stamp::plain(WriteId([7; 16])), Compressor::new(3));
    for (i, page) in pages.iter().enumerate() {
        writer
            .page(PageNo::new(i as u32 + 1).expect("from 1"), page)
            .expect("page");
    }
    writer.finish().expect("finish").0
}

/// Reads every page; those left out are zeros.
fn read(bytes: Vec<u8>, named: &ObjectRef) -> Result<Vec<Vec<u8>>, FormatError> {
    let image = Image::decode(&bytes.into(), NAMESPACE, DATABASE, named, &Keyring::off())?;
    let mut pages = vec![vec![0; image.meta.page_size.bytes()]; image.meta.n.get() as usize];
    let whole = image.whole().expect("read whole").clone();
    for (number, entry) in image.table.blocks.iter().enumerate() {
        let stored = whole.slice(entry.range().start as usize..entry.range().end as usize);
        let block = image.open_block(number, &stored)?;
        for (page, bytes) in block.pages() {
            assert_eq!(image.block_of(page), Some(number));
            pages[page.get() as usize - 1] = bytes.to_vec();
        }
        let runs: usize = block.runs().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(runs, entry.raw_len as usize);
    }
    Ok(pages)
}

fn holey(size: usize, pages: usize, dice: &mut Dice) -> Vec<Vec<u8>> {
    (0..pages)
        .map(|_| {
            if dice.roll(3) == 0 {
                vec![0; size]
            } else {
                dice.bytes(size)
            }
        })
        .collect()
}

#[test]
fn pages_come_back_and_zero_pages_cost_nothing() {
    let mut dice = Dice(8);
    for (size, n) in [(512, 1), (512, 1500), (4096, 200), (65_536, 9)] {
        let mut pages = holey(size, n, &mut dice);
        let finished = write(size as u32, &pages);
        let used = pages.iter().filter(|p| p.iter().any(|b| *b != 0)).count();
        assert!(finished.bytes.len() < (used + 1) * size + 20_000);
        let found = read(finished.bytes.to_vec(), &name(&finished)).expect("read");
        for range in [24..28, 92..100] {
            pages[0][range].fill(0);
        }
        assert_eq!(found, pages, "page 1 stands masked");
    }
    let empty = write(4096, &[]);
    assert_eq!(read(empty.bytes.to_vec(), &name(&empty)), Ok(Vec::new()));
}

#[test]
fn every_flip_and_truncation_of_an_image_is_refused() {
    let pages = holey(512, 5, &mut Dice(4));
    let finished = write(512, &pages);
    let named = name(&finished);
    refuses_all_damage(&finished.bytes, |bytes| read(bytes, &named));
}

#[test]
fn the_lock_page_is_neither_stored_nor_counted() {
    let size = PageSize::new(65_536).expect("a page size");
    let n = PageCount::new(16_386);
    let page = |number| PageNo::new(number).expect("from 1");
    let content = Dice(1).bytes(65_536);
    let zeros = vec![0; 65_536];
    let digest = Digest::of(size, n, |p| {
        let image = if p == page(16_386) { &content } else { &zeros };
        Ok::<_, std::convert::Infallible>(SEED.page(p, image))
    })
    .expect("infallible");
    let mut writer = ImageWriter::new(
        meta(size, n, digest),
        Stamp::plain(WriteId([7; 16])),
        Compressor::new(1),
    );
    writer
        .page(page(16_385), &content)
        .expect("the lock page is passed over");
    writer.page(page(16_386), &content).expect("page");
    let (finished, ..) = writer.finish().expect("the digest holds");
    let image = Image::decode(
        &finished.bytes,
        NAMESPACE,
        DATABASE,
        &name(&finished),
        &Keyring::off(),
    )
    .expect("read");
    assert_eq!(image.table.blocks.len(), 1);
    assert_eq!(image.block_of(page(16_386)), Some(0));
    assert_eq!(image.block_of(page(16_385)), None);
}

#[test]
fn an_image_of_other_pages_than_promised_is_not_written() {
    let size = PageSize::new(512).expect("a page size");
    let meta = meta(size, count(2), Digest::from_u64(1));
    let mut writer = ImageWriter::new(meta, Stamp::plain(WriteId([7; 16])), Compressor::new(3));
    writer.page(PageNo::ONE, &[1; 512]).expect("page");
    assert!(writer.page(PageNo::ONE, &[1; 512]).is_err(), "twice");
    assert!(
        writer.page(PageNo::new(3).expect("3"), &[1; 512]).is_err(),
        "above n"
    );
    assert!(
        writer.page(PageNo::new(2).expect("2"), &[1; 100]).is_err(),
        "short"
    );
    assert!(writer.finish().is_err(), "another digest");
}

#[test]
fn objects_swapped_between_keys_and_databases_are_refused() {
    let mut dice = Dice(4);
    let (a, b) = (
        write(512, &holey(512, 5, &mut dice)),
        write(512, &holey(512, 6, &mut dice)),
    );
    let decode = |bytes: &Bytes, database| {
        Image::decode(bytes, NAMESPACE, database, &name(&a), &Keyring::off())
    };
    let image = decode(&a.bytes, DATABASE).expect("its own");
    assert!(decode(&b.bytes, DATABASE).is_err());
    assert!(decode(&a.bytes, DatabaseId::from_bytes([1; 16])).is_err());
    let m = image.meta;
    assert_eq!(image.check_state(&m.position, m.n, m.digest), Ok(()));
    assert!(
        image
            .check_state(&m.position, m.n, Digest::from_u64(0))
            .is_err()
    );
}
