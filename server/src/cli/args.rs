//! The arguments of every command.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tidelog_engine::Durability;
use tidelog_wal::{Position, Timestamp};

use super::archive::ArchiveCommand;
use super::client::Client;
use super::exit::Failure;
use crate::time;

/// Run, rewind and never lose `SQLite` databases at scale.
#[derive(Debug, Parser)]
#[command(name = "tidelog", version, propagate_version = true)]
pub(crate) struct Arguments {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What a command talks to.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The bucket: `file:///path`, `file://./path`, `s3://bucket/prefix?endpoint=...&region=...&path_style=true`,
    /// `gs://...`, `az://...` or `memory:` [env: `TIDELOG_STORE`]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// The server, for instance <http://127.0.0.1:8080> [env: `TIDELOG_URL`]
    #[arg(long, global = true, value_name = "URL", conflicts_with = "store")]
    pub(crate) url: Option<String>,
    /// The token for the server [env: `TIDELOG_TOKEN`]
    #[arg(long, global = true, value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// A master key of the bucket, `ID=PATH`: 32 random bytes, raw or in base64; once a key, the newest last
    /// [env: `TIDELOG_MASTER_KEY_FILES`, separated by commas; or `TIDELOG_MASTER_KEYS` with `ID=BASE64`]
    #[arg(long, global = true, value_name = "ID=PATH")]
    pub(crate) master_key_file: Vec<String>,
}

impl Place {
    /// Whether the bucket is meant: a flag counts before the environment, and a server before a bucket there.
    pub(crate) fn names_bucket(&self) -> bool {
        self.store.is_some()
            || (self.url.is_none()
                && variable("TIDELOG_URL").is_none()
                && variable("TIDELOG_STORE").is_some())
    }

    /// Whether a server is meant or could be.
    pub(crate) fn names_server(&self) -> bool {
        self.url.is_some() || variable("TIDELOG_URL").is_some()
    }

    /// The bucket, if it is named.
    pub(crate) fn named_store(self) -> Option<String> {
        self.store.or_else(|| variable("TIDELOG_STORE"))
    }

    /// The bucket, which has to be named.
    pub(crate) fn bucket(self) -> Result<String, Failure> {
        if self.url.is_some() {
            return Err(Failure::usage(
                "this command reads the bucket: give --store, not --url",
            ));
        }
        self.store
            .or_else(|| variable("TIDELOG_STORE"))
            .ok_or_else(|| Failure::usage("name the bucket with --store URL or TIDELOG_STORE"))
    }

    /// A client of the server, which has to be named.
    pub(crate) fn server(self) -> Result<Client, Failure> {
        if self.store.is_some() {
            return Err(Failure::usage(
                "this command asks a server: give --url, not --store",
            ));
        }
        let url = self
            .url
            .or_else(|| variable("TIDELOG_URL"))
            .ok_or_else(|| Failure::usage("name the server with --url URL or TIDELOG_URL"))?;
        let token = self
            .token
            .or_else(|| variable("TIDELOG_TOKEN"))
            .ok_or_else(|| Failure::usage("give the token with --token or TIDELOG_TOKEN"))?;
        Client::new(&url, token)
    }
}

pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server
    Serve(ServeOptions),
    /// Look at the settings a server would run with
    #[command(subcommand)]
    Config(ConfigCommand),
    /// List the databases in a bucket
    List,
    /// List the commits of a database, from a bucket or a server
    History(HistoryOptions),
    /// Restore a database: from a bucket to a new file, or on a server in place
    Restore(RestoreOptions),
    /// Take a restore on a server back
    Undo(UndoOptions),
    /// Make a database that begins at a state of another
    Fork(ForkOptions),
    /// Make a fork independent of the database it was made from
    Detach(DetachOptions),
    /// List the long work of a namespace, or cancel some of it
    Operations(OperationsOptions),
    /// Prove what a bucket holds, or have a server prove it
    Verify(VerifyOptions),
    /// Look at the store itself
    #[command(subcommand)]
    Store(StoreCommand),
    /// Show and rotate the keys a bucket is sealed with
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Make, list and revoke tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make namespaces, with the server token
    #[command(subcommand)]
    Namespace(NamespaceCommand),
    /// Create, list, show, delete and bring back databases
    #[command(subcommand)]
    Db(DbCommand),
    /// Run one statement
    Query(QueryOptions),
    /// Bring in an existing `SQLite` file as a new database
    Import(ImportOptions),
    /// Write a database, as it is or was, to a file
    Export(ExportOptions),
    /// Make, list, download, prove, hold, restore and delete archives
    #[command(subcommand)]
    Archive(ArchiveCommand),
    /// Show where a database stands, or stood at a time
    Bookmark(BookmarkOptions),
    /// Name commits of a database
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Show what the retention window lets go, with the server token
    Gc(GcOptions),
}

/// What is done with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// How every database is sealed, how old its newest data key is, and by which master keys
    Status,
    /// Print the lines of a sealed audit object
    Audit {
        /// Its key in the bucket: tenants/NAMESPACE/audit/DATE/NAME.jsonl
        key: String,
    },
    /// Wrap every data key by the newest master key; with --data-keys make new data keys instead
    Rotate {
        /// Give databases a new data key; a plain one gets its first
        #[arg(long)]
        data_keys: bool,
        /// NAMESPACE/DATABASE; every database when left out
        database: Option<Name>,
    },
}

/// A database by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) database: String,
}

/// The namespace a name has when it names none: the one that the first start of a server makes.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

impl std::str::FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, database) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
        if namespace.is_empty() || database.is_empty() || database.contains('/') {
            return Err(format!("{text:?} is not NAMESPACE/DATABASE"));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            database: database.to_owned(),
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.namespace, self.database)
    }
}

/// A point in a database's history; the newest when none is given.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "fields are flags: --at is one")]
pub(crate) struct At {
    /// At or before this time: RFC 3339 or Unix milliseconds
    #[arg(long, value_name = "TIME", value_parser = time::parse, conflicts_with_all = ["bookmark", "snapshot"])]
    pub(crate) at: Option<Timestamp>,
    /// At this bookmark
    #[arg(long, value_name = "BOOKMARK", conflicts_with = "snapshot")]
    pub(crate) bookmark: Option<Position>,
    /// At the snapshot of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) snapshot: Option<String>,
}

impl At {
    /// Whether no point is named.
    pub(crate) const fn is_newest(&self) -> bool {
        self.at.is_none() && self.bookmark.is_none() && self.snapshot.is_none()
    }
}

/// What `serve` and `config check` read settings from.
#[derive(Debug, Args)]
pub(crate) struct ConfigOptions {
    /// A TOML file with settings; the environment and flags are stronger
    #[arg(long, value_name = "FILE", env = "TIDELOG_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Which figures hold where nothing else is said: development, production or strict
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// The data folder [default: ./tidelog-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The address to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// The address of the operator's routes, which take the server token [default: not served]
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// When a write is answered unless its database or request says otherwise: memory, local or remote
    #[arg(long, value_name = "LEVEL")]
    pub(crate) durability: Option<Durability>,
    /// The certificate chain of the server, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Listen beyond loopback although this speaks plain HTTP
    #[arg(long)]
    pub(crate) insecure_listen: bool,
    /// How long commits are collected before they are shipped, in milliseconds
    #[arg(long, value_name = "MS")]
    pub(crate) ship_interval_ms: Option<u64>,
    /// Bytes the local journal may hold while the store is away; beyond it writes are refused
    #[arg(long, value_name = "BYTES")]
    pub(crate) journal_max_bytes: Option<u64>,
    /// How long a write waits for its durability, in milliseconds
    #[arg(long, value_name = "MS")]
    pub(crate) durability_timeout_ms: Option<u64>,
    /// Prove, every so many seconds, that the database proven longest ago restores; 0 for never
    #[arg(long, value_name = "SECONDS")]
    pub(crate) drill_every_seconds: Option<u64>,
    /// How long an unused database stays open, in milliseconds
    #[arg(long, value_name = "MS")]
    pub(crate) idle_close_ms: Option<u64>,
    /// Log lines as JSON
    #[arg(long)]
    pub(crate) log_json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    #[command(flatten)]
    pub(crate) settings: ConfigOptions,
    /// Close the terms of a dead node, or of all others, and take their databases over
    #[arg(long, value_name = "NODE|all")]
    pub(crate) take_over: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the effective settings, secrets masked, or say what is wrong with them
    Check(ConfigOptions),
}

#[derive(Debug, Args)]
pub(crate) struct HistoryOptions {
    /// NAMESPACE/DATABASE
    pub(crate) database: Name,
    /// From this bookmark on
    #[arg(long, value_name = "BOOKMARK")]
    pub(crate) from: Option<Position>,
    /// Up to this bookmark
    #[arg(long, value_name = "BOOKMARK")]
    pub(crate) to: Option<Position>,
    /// The most commits to list
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreOptions {
    /// NAMESPACE/DATABASE
    pub(crate) database: Name,
    #[command(flatten)]
    pub(crate) at: At,
    /// On a server: back to what this archive of the database holds, by its id
    #[arg(long, value_name = "ID", conflicts_with_all = ["at", "bookmark", "snapshot"])]
    pub(crate) archive: Option<String>,
    /// The file to write, from a bucket
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// On a server: only show what would happen
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// On a server: do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// On a server: refuse if anything was committed since what would happen was looked at
    #[arg(long)]
    pub(crate) if_unchanged: bool,
    /// On a server: why, for the record
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// On a server: keep the state before as a pinned snapshot of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) preserve_as: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UndoOptions {
    /// NAMESPACE/DATABASE
    pub(crate) database: Name,
    /// Which restore; the newest when left out
    pub(crate) restore: Option<String>,
    /// Take back what came after it, too: the present bookmark
    #[arg(long, value_name = "BOOKMARK")]
    pub(crate) force: Option<Position>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ForkOptions {
    /// NAMESPACE/DATABASE
    pub(crate) database: Name,
    /// The name of the fork
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) at: At,
    /// Tables, indexes, views and triggers without rows
    #[arg(long)]
    pub(crate) schema_only: bool,
    /// Delete it after so many days, 1 to 30
    #[arg(long, value_name = "DAYS")]
    pub(crate) ttl_days: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct DetachOptions {
    /// NAMESPACE/DATABASE
    pub(crate) database: Name,
}

#[derive(Debug, Args)]
pub(crate) struct OperationsOptions {
    /// The namespace
    #[arg(default_value = DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
    /// Cancel this one
    #[arg(long, value_name = "ID")]
    pub(crate) cancel: Option<String>,
    /// The most operations to list
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
}

/// How much a verification looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Every object is there and its checksum is right
    Objects,
    /// And chain and numbering have no break
    Chain,
    /// And every database restores to its newest recorded digest
    Restore,
    /// And SQLite finds what was restored sound; against a server also that the live database is what was recorded
    Full,
}

impl Level {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::Chain => "chain",
            Self::Restore => "restore",
            Self::Full => "full",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct VerifyOptions {
    /// NAMESPACE/DATABASE; every database when left out
    pub(crate) database: Option<Name>,
    /// How much to look at
    #[arg(long, value_enum, default_value_t = Level::Chain)]
    pub(crate) level: Level,
    #[command(flatten)]
    pub(crate) at: At,
    /// Against a server: have it verify by itself so often (30m, 24h, 7d), or `never` again
    #[arg(long, value_name = "SPAN", conflicts_with_all = ["at", "bookmark", "snapshot"])]
    pub(crate) every: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Prove that the store does what Tidelog needs
    Check,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; its secret is shown once
    Create {
        /// What it may do: read, write or admin; may be given more than once
        #[arg(long = "scope", required = true)]
        scopes: Vec<String>,
        /// live, test or cli
        #[arg(long, default_value = "live")]
        kind: String,
        /// Only for this database; may be given more than once
        #[arg(long = "database")]
        databases: Vec<String>,
        /// When it ends
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
        /// The namespace
        #[arg(long, default_value = DEFAULT_NAMESPACE)]
        namespace: String,
    },
    /// List the tokens of a namespace
    List {
        /// The namespace
        #[arg(long, default_value = DEFAULT_NAMESPACE)]
        namespace: String,
    },
    /// Make an owner token with the bucket's credentials alone, when every token is lost
    Recover {
        /// The namespace; the server token when `server`
        #[arg(long, default_value = DEFAULT_NAMESPACE)]
        namespace: String,
        /// Close the term of a dead node, or of all, that holds the bucket
        #[arg(long, value_name = "NODE|all")]
        take_over: Option<String>,
    },
    /// Revoke a token
    Revoke {
        /// Its id
        id: String,
        /// The namespace
        #[arg(long, default_value = DEFAULT_NAMESPACE)]
        namespace: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NamespaceCommand {
    /// Make a namespace and its first owner token
    Create {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Create an empty database
    Create {
        /// NAMESPACE/DATABASE
        database: Name,
        /// Bytes of a page: a power of two from 512 to 65536
        #[arg(long)]
        page_size: Option<u32>,
    },
    /// List the databases of a namespace
    List {
        /// The namespace
        #[arg(default_value = DEFAULT_NAMESPACE)]
        namespace: String,
    },
    /// Show a database
    Show {
        /// NAMESPACE/DATABASE
        database: Name,
    },
    /// Delete a database; it can be brought back for a while
    Delete {
        /// NAMESPACE/DATABASE
        database: Name,
        /// Destroy it for good, at once
        #[arg(long)]
        purge: bool,
        /// Make its forks independent first: a database with forks is not destroyed
        #[arg(long, requires = "purge")]
        detach_forks: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Bring a deleted database back
    Undelete {
        /// NAMESPACE/DATABASE
        database: Name,
    },
}

#[derive(Debug, Args)]
pub(crate) struct GcOptions {
    /// NAMESPACE/DATABASE; every database when left out
    pub(crate) database: Option<Name>,
    /// Mark and delete; without it nothing is changed
    #[arg(long)]
    pub(crate) apply: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Name a commit: the newest, or that of a time or bookmark
    Create {
        /// NAMESPACE/DATABASE
        database: Name,
        /// The name, 1 to 80 characters
        snapshot: String,
        /// Free text
        #[arg(long)]
        note: Option<String>,
        /// The last commit at or before this time: RFC 3339 or Unix milliseconds
        #[arg(long, value_name = "TIME", value_parser = time::parse, conflicts_with = "bookmark")]
        at: Option<Timestamp>,
        /// This commit
        #[arg(long, value_name = "BOOKMARK")]
        bookmark: Option<Position>,
        /// Keep the state beyond the retention window
        #[arg(long)]
        pin: bool,
        /// Remove the snapshot then
        #[arg(long, value_name = "TIME", value_parser = time::parse)]
        expires_at: Option<Timestamp>,
    },
    /// List the snapshots of a database
    List {
        /// NAMESPACE/DATABASE
        database: Name,
    },
    /// Delete a snapshot; the history stays
    Delete {
        /// NAMESPACE/DATABASE
        database: Name,
        /// Its name
        snapshot: String,
        /// Also if it is pinned: what it keeps beyond the window expires then
        #[arg(long)]
        unpin: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct QueryOptions {
    /// NAMESPACE/DATABASE
    pub(crate) database: Name,
    /// One SQL statement
    pub(crate) sql: String,
    /// Its parameters: a JSON array by position, or a JSON object by name
    #[arg(long, value_name = "JSON")]
    pub(crate) params: Option<String>,
    /// When the write is answered: memory, local or remote
    #[arg(long)]
    pub(crate) durability: Option<Durability>,
}

#[derive(Debug, Args)]
pub(crate) struct ImportOptions {
    /// NAMESPACE/DATABASE, which must not exist unless --replace is given
    pub(crate) database: Name,
    /// The `SQLite` file
    pub(crate) file: PathBuf,
    /// Replace the existing database by the file, as one commit that can be taken back
    #[arg(long)]
    pub(crate) replace: bool,
    /// Do not ask
    #[arg(long, requires = "replace")]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportOptions {
    /// NAMESPACE/DATABASE
    pub(crate) database: Name,
    #[command(flatten)]
    pub(crate) at: At,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BookmarkOptions {
    /// NAMESPACE/DATABASE
    pub(crate) database: Name,
    /// The last commit at or before this time: RFC 3339 or Unix milliseconds
    #[arg(long, value_name = "TIME", value_parser = time::parse, conflicts_with = "wait_durable_ms")]
    pub(crate) at: Option<Timestamp>,
    /// Wait so long for the newest commit to be in the store
    #[arg(long, value_name = "MS")]
    pub(crate) wait_durable_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn names_default_to_the_default_namespace() {
        let name: Name = "orders".parse().expect("a bare name");
        assert_eq!(name.to_string(), "default/orders");
        assert_eq!(
            "acme/orders"
                .parse::<Name>()
                .expect("a full name")
                .namespace,
            "acme"
        );
        for bad in ["", "/", "acme/", "/orders", "a/b/c"] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bucket_and_server_together_are_wrong_usage() {
        let both = [
            "tidelog", "bookmark", "a/b", "--store", "memory:", "--url", "http://x",
        ];
        assert!(Arguments::try_parse_from(both).is_err());
        assert!(Arguments::try_parse_from(&both[..5]).is_ok());
    }
}
