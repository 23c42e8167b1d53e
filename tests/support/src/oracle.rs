//! The oracle: a shadow of every state of one database, built from its deltas alone.
//!
//! It holds the newest state's pages and, of every state since the first, the BLAKE3 of each page, shared
//! between states in chunks; and every delta, so that it can step all the way back and compare on the way.
//! It knows SQLite's view only through `sqlite_dbpage` and files, the product's only through the encoded
//! pages of commit records: whatever both agree on was not agreed on in one place.
//!
//! Page 1 is compared masked. [`Oracle::same_state`] leaves the schema cookie out too, which a rewind sets
//! to a number of its own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use tidelog_wal::codec::DecodeError;
use tidelog_wal::delta::PageReader;
use tidelog_wal::page::{SCHEMA_COOKIE, mask_page1};
use tidelog_wal::{Digest, DigestSeed, PageCount, PageNo, PageSize, TxId};

/// Hashes that states share as one allocation.
const CHUNK: usize = 64;

/// What the oracle found to be wrong.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// A delta does not decode.
    #[error("decode the delta of {txid}")]
    Delta {
        /// The commit.
        txid: TxId,
        /// Why.
        source: DecodeError,
    },
    /// Page counts or TxIds do not follow each other, or no such state is known.
    #[error("{txid}: {what}")]
    Sequence {
        /// The commit.
        txid: TxId,
        /// What is wrong.
        what: String,
    },
    /// A page is not what it was.
    #[error("{txid}: page {page} differs in {what}")]
    Page {
        /// The state.
        txid: TxId,
        /// The page.
        page: u32,
        /// Where it was looked at.
        what: &'static str,
    },
    /// SQLite could not be asked.
    #[error("read pages through SQLite")]
    Sqlite(#[from] rusqlite::Error),
    /// A file could not be read.
    #[error("read a materialised file")]
    Io(#[from] std::io::Error),
}

type Hash = [u8; 32];

/// The pages of one state, as hashes.
#[derive(Debug, Clone)]
struct State {
    n: PageCount,
    chunks: Vec<Arc<[Hash; CHUNK]>>,
    /// Page 1 without its schema cookie.
    page1: Hash,
}

impl State {
    fn hash(&self, page: PageNo) -> Hash {
        let at = index(page);
        self.chunks
            .get(at / CHUNK)
            .map_or([0; 32], |chunk| chunk[at % CHUNK])
    }

    fn set(&mut self, page: PageNo, hash: Hash) {
        let at = index(page);
        if self.chunks.len() <= at / CHUNK {
            self.chunks
                .resize(at / CHUNK + 1, Arc::new([[0; 32]; CHUNK]));
        }
        Arc::make_mut(&mut self.chunks[at / CHUNK])[at % CHUNK] = hash;
    }
}

#[derive(Debug, Clone)]
struct Step {
    n_before: PageCount,
    n_after: PageCount,
    pages: Arc<[u8]>,
}

/// Every state of one database. Cloning it forks the database.
#[derive(Debug, Clone)]
pub struct Oracle {
    page_size: PageSize,
    head: TxId,
    pages: Vec<Vec<u8>>,
    states: BTreeMap<TxId, State>,
    steps: BTreeMap<TxId, Step>,
}

impl Oracle {
    /// The oracle of a database that starts empty.
    pub fn new(page_size: PageSize) -> Self {
        let empty = State {
            n: PageCount::ZERO,
            chunks: Vec::new(),
            page1: hash(&[]),
        };
        Self {
            page_size,
            head: TxId::ZERO,
            pages: Vec::new(),
            states: BTreeMap::from([(TxId::ZERO, empty)]),
            steps: BTreeMap::new(),
        }
    }

    /// The newest state's TxId.
    pub const fn head(&self) -> TxId {
        self.head
    }

    /// Pages of the newest state.
    pub fn n_pages(&self) -> PageCount {
        count(self.pages.len())
    }

    /// Takes the commit after [`Oracle::head`]: its page counts and the encoded pages of its record.
    pub fn apply(
        &mut self,
        n_before: PageCount,
        n_after: PageCount,
        pages: &[u8],
    ) -> Result<TxId, OracleError> {
        let txid = self.head.next();
        let step = Step {
            n_before,
            n_after,
            pages: pages.into(),
        };
        let mut state = self.states[&self.head].clone();
        for page in step_pages(&mut self.pages, self.page_size, &step, txid)? {
            let image = self.pages.get(index(page));
            state.set(page, image.map_or([0; 32], |image| hash(image)));
        }
        for page in n_before.grown_to(n_after, self.page_size) {
            state.set(page, hash(&self.pages[index(page)]));
        }
        for page in n_after.grown_to(n_before, self.page_size) {
            state.set(page, [0; 32]);
        }
        state.n = n_after;
        state.page1 = self
            .pages
            .first()
            .map_or_else(|| hash(&[]), |page| hash_page1(page));
        self.states.insert(txid, state);
        self.steps.insert(txid, step);
        self.head = txid;
        Ok(txid)
    }

    /// Whether two states are the same but for the schema cookie, which a rewind sets anew.
    pub fn same_state(&self, a: TxId, b: TxId) -> Result<bool, OracleError> {
        let (a, b) = (self.state(a)?, self.state(b)?);
        let rest = |state: &State| -> Vec<Hash> {
            state
                .n
                .pages(self.page_size)
                .skip(1)
                .map(|page| state.hash(page))
                .collect()
        };
        Ok(a.n == b.n && a.page1 == b.page1 && rest(a) == rest(b))
    }

    /// The state digest of the newest state, from its pages.
    pub fn digest(&self, seed: DigestSeed) -> Digest {
        let Ok(digest) = Digest::of(self.page_size, self.n_pages(), |page| {
            Ok::<_, Infallible>(seed.page(page, &self.pages[index(page)]))
        });
        digest
    }

    /// Compares every page a connection sees with the newest state.
    pub fn check_live(&self, conn: &Connection) -> Result<(), OracleError> {
        let mut query = conn.prepare("SELECT data FROM sqlite_dbpage ORDER BY pgno")?;
        let live: Vec<Vec<u8>> = query
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        self.check_pages(self.head, count(live.len()), "the live database", |page| {
            live[index(page)].as_slice()
        })
    }

    /// Compares a database file that stands alone with the state of `txid`.
    pub fn check_file(&self, txid: TxId, path: &Path) -> Result<(), OracleError> {
        let bytes = fs::read(path)?;
        let size = self.page_size.bytes();
        if bytes.len() % size != 0 {
            return Err(sequence(txid, format!("file of {} bytes", bytes.len())));
        }
        self.check_pages(txid, count(bytes.len() / size), "the file", |page| {
            &bytes[index(page) * size..][..size]
        })
    }

    /// Compares `n` pages with the state of `txid`; page 1 is masked here.
    pub fn check_pages<'p>(
        &self,
        txid: TxId,
        n: PageCount,
        what: &'static str,
        image: impl Fn(PageNo) -> &'p [u8],
    ) -> Result<(), OracleError> {
        let state = self.state(txid)?;
        if state.n != n {
            return Err(sequence(
                txid,
                format!("{} pages in {what}, expected {}", n.get(), state.n.get()),
            ));
        }
        for page in n.pages(self.page_size) {
            let found = if page == PageNo::ONE {
                let mut masked = image(page).to_vec();
                mask_page1(&mut masked);
                hash(&masked)
            } else {
                hash(image(page))
            };
            if found != state.hash(page) {
                let page = page.get();
                return Err(OracleError::Page { txid, page, what });
            }
        }
        Ok(())
    }

    /// Steps back from the newest state to the empty one and compares each state on the way; answers how
    /// many there were.
    pub fn replay_backward(&self) -> Result<usize, OracleError> {
        let mut pages = self.pages.clone();
        let mut at = self.head;
        while let (Some(step), Some(before)) = (self.steps.get(&at), at.prev()) {
            let back = Step {
                n_before: step.n_after,
                n_after: step.n_before,
                pages: step.pages.clone(),
            };
            step_pages(&mut pages, self.page_size, &back, at)?;
            let n = count(pages.len());
            self.check_pages(before, n, "the backward replay", |page| {
                pages[index(page)].as_slice()
            })?;
            at = before;
        }
        if pages.is_empty() && at == TxId::ZERO {
            Ok(self.steps.len())
        } else {
            Err(sequence(at, "the backward replay ends here".to_owned()))
        }
    }

    fn state(&self, txid: TxId) -> Result<&State, OracleError> {
        self.states
            .get(&txid)
            .ok_or_else(|| sequence(txid, "no such state".to_owned()))
    }
}

/// Applies a step to pages in place and answers which pages it names.
fn step_pages(
    pages: &mut Vec<Vec<u8>>,
    page_size: PageSize,
    step: &Step,
    txid: TxId,
) -> Result<Vec<PageNo>, OracleError> {
    if count(pages.len()) != step.n_before {
        let what = format!(
            "starts at {} pages, have {}",
            step.n_before.get(),
            pages.len()
        );
        return Err(sequence(txid, what));
    }
    let longest = step.n_before.max(step.n_after).get() as usize;
    pages.resize(longest, vec![0; page_size.bytes()]);
    let mut named = Vec::new();
    for page in PageReader::new(&step.pages, page_size, step.n_before, step.n_after) {
        let page = page.map_err(|source| OracleError::Delta { txid, source })?;
        page.apply(&mut pages[index(page.page)]);
        named.push(page.page);
    }
    for (cut, image) in pages.iter().enumerate().skip(step.n_after.get() as usize) {
        if image.iter().any(|byte| *byte != 0) {
            return Err(sequence(
                txid,
                format!("page {} goes without zeros", cut + 1),
            ));
        }
    }
    pages.truncate(step.n_after.get() as usize);
    Ok(named)
}

fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

fn hash_page1(page: &[u8]) -> Hash {
    let mut masked = page.to_vec();
    masked[SCHEMA_COOKIE].fill(0);
    hash(&masked)
}

fn index(page: PageNo) -> usize {
    page.get() as usize - 1
}

fn count(pages: usize) -> PageCount {
    PageCount::new(u32::try_from(pages).expect("SQLite counts pages in 32 bits"))
}

fn sequence(txid: TxId, what: String) -> OracleError {
    OracleError::Sequence { txid, what }
}
