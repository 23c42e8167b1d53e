//! The root of a bucket prefix: `root`, created once, rewritten by compare-and-swap.
//!
//! Payload:
//!
//! | field | form |
//! | --- | --- |
//! | cluster id | 16 |
//! | format version | varint: the newest that any node of the cluster may write |
//! | system namespace, system database | 16, 16 |
//! | highest term known | varint; a hint where to begin looking for a free one |
//! | nodes | varint count, then (node id 16, last term varint)*, ascending by id |

use bytes::Bytes;
use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::{ClusterId, DatabaseId, DecodeError, NamespaceId, NodeId, Term};

use crate::envelope::{
    Expect, Finished, FormatError, ObjectKind, VERSION, WriteId, decode_payload, encode_payload,
};
use crate::seal::{Keyring, Stamp};

/// A node that has claimed terms in this prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootNode {
    /// Its id.
    pub node: NodeId,
    /// The last term it is known to have claimed.
    pub last_term: Term,
}

/// The root of a bucket prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The cluster this prefix belongs to.
    pub cluster: ClusterId,
    /// The newest format version any node may write.
    pub format_version: u16,
    /// The namespace of the system database.
    pub system_namespace: NamespaceId,
    /// The system database.
    pub system_database: DatabaseId,
    /// The highest term known when this was written. Higher ones may exist.
    pub highest_term: Term,
    /// The nodes, ascending by id.
    pub nodes: Vec<RootNode>,
}

impl Root {
    /// Notes that `node` claimed `term`.
    pub fn note_claim(&mut self, node: NodeId, term: Term) {
        self.highest_term = self.highest_term.max(term);
        match self.nodes.binary_search_by_key(&node, |known| known.node) {
            Ok(at) => {
                if let Some(known) = self.nodes.get_mut(at) {
                    known.last_term = known.last_term.max(term);
                }
            }
            Err(at) => self.nodes.insert(
                at,
                RootNode {
                    node,
                    last_term: term,
                },
            ),
        }
    }

    /// The object.
    pub fn encode(&self, write_id: WriteId) -> Result<Finished, FormatError> {
        if !self.nodes.is_sorted_by(|a, b| a.node < b.node) {
            return Err(FormatError::Unwritable {
                what: "the nodes of a root do not ascend",
            });
        }
        let mut out = Vec::new();
        out.extend_from_slice(self.cluster.as_bytes());
        put_varint(&mut out, u64::from(self.format_version));
        out.extend_from_slice(self.system_namespace.as_bytes());
        out.extend_from_slice(self.system_database.as_bytes());
        put_varint(&mut out, u64::from(self.highest_term.get()));
        put_varint(&mut out, self.nodes.len() as u64);
        for node in &self.nodes {
            out.extend_from_slice(node.node.as_bytes());
            put_varint(&mut out, u64::from(node.last_term.get()));
        }
        encode_payload(Expect::node(ObjectKind::Root), Stamp::plain(write_id), out)
    }

    /// Reads a root, with the write id of the PUT that wrote it. One of a newer format is refused by name.
    pub fn decode(bytes: &Bytes) -> Result<(Self, WriteId), FormatError> {
        let expect = Expect::node(ObjectKind::Root);
        let (root, object) = decode_payload(bytes, expect, &Keyring::off(), |_, payload| {
            Self::payload(payload)
        })?;
        Ok((root, object.header.write_id))
    }

    fn payload(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let cluster = ClusterId::from_bytes(reader.array()?);
        let version = reader.varint_u32("format version")?;
        let format_version = u16::try_from(version)
            .ok()
            .filter(|version| *version <= VERSION)
            .ok_or(DecodeError::Version {
                what: "bucket",
                found: version,
                supported: u32::from(VERSION),
            })?;
        let system_namespace = NamespaceId::from_bytes(reader.array()?);
        let system_database = DatabaseId::from_bytes(reader.array()?);
        let highest_term = Term::new(reader.varint_u32("term")?);
        let count = reader.count("nodes", reader.remaining() / 17)?;
        let mut nodes: Vec<RootNode> = Vec::with_capacity(count);
        for _ in 0..count {
            let offset = reader.offset();
            let node = NodeId::from_bytes(reader.array()?);
            if nodes.last().is_some_and(|last| last.node >= node) {
                return Err(DecodeError::Invalid {
                    offset,
                    what: "order of nodes",
                });
            }
            nodes.push(RootNode {
                node,
                last_term: Term::new(reader.varint_u32("term")?),
            });
        }
        reader.finish()?;
        Ok(Self {
            cluster,
            format_version,
            system_namespace,
            system_database,
            highest_term,
            nodes,
        })
    }
}
