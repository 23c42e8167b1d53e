//! A bounded window of frames over a WAL that is read at offsets.

use std::io;

use crate::frame::{FrameNo, frame_len};
use crate::page::PageSize;

/// Bytes that can be read at an offset, without a shared read position: a WAL file, or a buffer.
pub trait ReadAt {
    /// Reads some bytes at `offset` into `buf` and says how many; 0 at the end alone.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Reads until `buf` is full or the bytes end, and says how many were read.
    fn read_full_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut have = 0;
        while have < buf.len() {
            match self.read_at(offset + have as u64, &mut buf[have..]) {
                Ok(0) => break,
                Ok(more) => have += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(have)
    }
}

#[cfg(unix)]
impl ReadAt for std::fs::File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, offset)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.get(offset..))
            .unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.as_slice().read_at(offset, buf)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        (**self).read_at(offset, buf)
    }
}

/// Whole frames in a row. The buffer grows to its bound once and is kept.
#[derive(Debug)]
pub(super) struct Window {
    buf: Vec<u8>,
    bytes_max: usize,
    page_size: PageSize,
    first: FrameNo,
    frames: u32,
}

impl Window {
    /// A window of at most `bytes_max` bytes, and at least of one frame of the largest pages.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            buf: Vec::new(),
            bytes_max: bytes_max.max(frame_len(PageSize::MAX)),
            page_size: PageSize::DEFAULT,
            first: FrameNo::ZERO,
            frames: 0,
        }
    }

    /// Forgets all frames; the next ones have pages of this size.
    pub(super) fn reset(&mut self, page_size: PageSize) {
        self.page_size = page_size;
        self.frames = 0;
    }

    pub(super) const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The first frame of the window, whether or not it holds any.
    pub(super) const fn first(&self) -> FrameNo {
        self.first
    }

    /// The bytes of a frame, if they are here.
    pub(super) fn frame(&self, frame: FrameNo) -> Option<&[u8]> {
        let index = frame.since(self.first).filter(|i| *i < self.frames)? as usize;
        let len = frame_len(self.page_size);
        self.buf.get(index * len..(index + 1) * len)
    }

    /// Reads frames from `first` on, as many as fit and exist, none behind `last`.
    pub(super) fn fill(
        &mut self,
        wal: &(impl ReadAt + ?Sized),
        first: FrameNo,
        last: FrameNo,
    ) -> io::Result<()> {
        let len = frame_len(self.page_size);
        let wanted = last.since(first).map_or(0, |more| more as usize + 1);
        let bytes = wanted.min(self.bytes_max / len) * len;
        if self.buf.len() < bytes {
            self.buf.resize(bytes, 0);
        }
        self.frames = 0;
        self.first = first;
        let have = wal.read_full_at(first.offset(self.page_size), &mut self.buf[..bytes])?;
        self.frames = u32::try_from(have / len).expect("at most last - first + 1 frames");
        Ok(())
    }
}
