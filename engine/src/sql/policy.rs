//! What tenant SQL may do, decided by SQLite's authorizer when a statement is prepared.
//!
//! Everything that reaches outside the one database file is an *allow list*: pragmas, functions, virtual
//! table modules (HAZARDS W32: a deny list forgets). ATTACH, extensions, transaction control and the engine's
//! own tables (`_tidelog_...`) are refused whatever the role.
//!
//! The verdict depends on [`Permission`] bits that the engine sets before it prepares: a statement cache is
//! therefore flushed when they change ([`super::connection`]). The reason of the last refusal is kept, so
//! that the caller hears which rule it met and not just "not authorized".

use std::collections::HashSet;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization, TransactionOperation};

/// Tables whose name starts so belong to the engine.
pub const ENGINE_TABLE_PREFIX: &str = "_tidelog_";

/// What the statement being prepared may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission(u8);

impl Permission {
    /// SELECT and what only reads.
    pub const READ: Self = Self(0);
    /// INSERT, UPDATE, DELETE too.
    pub const WRITE: Self = Self(1);
    /// CREATE, DROP, ALTER, REINDEX, ANALYZE, VACUUM too.
    pub const DDL: Self = Self(1 | 2);
    /// The engine itself: everything.
    pub const ENGINE: Self = Self(8);

    /// The engine while SQLite runs a VACUUM, which attaches a nameless file to itself.
    pub const VACUUM: Self = Self(16);

    /// The same on a connection that is one client's own: transaction control, settings of the connection and
    /// TEMP objects too.
    #[must_use]
    pub const fn in_stream(self) -> Self {
        Self(self.0 | 32)
    }

    const fn is_in_stream(self) -> bool {
        self.0 & 32 != 0
    }

    /// Whether it holds all of `needed`.
    pub(crate) const fn allows(self, needed: Self) -> bool {
        self.0 & 8 != 0 || self.0 & needed.0 == needed.0
    }
}

/// Why a statement was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// BEGIN, COMMIT, ROLLBACK, SAVEPOINT: the engine opens transactions.
    TransactionControl,
    /// The role may not write.
    Write,
    /// The role or the token may not change the schema.
    Ddl,
    /// A rule that no role is exempt from; names the thing.
    Forbidden(String),
}

/// What a statement does to the transaction of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// BEGIN or SAVEPOINT.
    Opens,
    /// COMMIT, END or RELEASE: a transaction may become a commit.
    Ends,
    /// ROLLBACK, of all or to a savepoint.
    Undoes,
}

/// What the authorizer saw of a statement beside its verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    /// It is transaction control.
    pub(crate) control: Option<Control>,
    /// It leaves something on the connection: a setting, a TEMP object.
    pub(crate) leaves: bool,
}

/// The bits and the last refusal of one connection.
#[derive(Debug, Default)]
pub struct Policy {
    permission: AtomicU8,
    refusal: Mutex<Option<Refusal>>,
    seen: Mutex<Seen>,
}

impl Policy {
    /// Sets what the next statements may do.
    pub fn set(&self, permission: Permission) {
        self.permission.store(permission.0, Ordering::Relaxed);
    }

    /// What statements may do now.
    pub fn get(&self) -> Permission {
        Permission(self.permission.load(Ordering::Relaxed))
    }

    /// Takes the reason of the last refusal.
    pub fn take_refusal(&self) -> Option<Refusal> {
        self.refusal
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
    }

    /// Takes what was seen since the last time. Only preparing shows it: a statement from the cache shows nothing.
    pub(crate) fn take_seen(&self) -> Seen {
        let mut seen = self
            .seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(&mut seen)
    }

    fn see(&self, action: &AuthAction<'_>) {
        let control = match action {
            AuthAction::Transaction { operation } | AuthAction::Savepoint { operation, .. } => {
                Some(match operation {
                    TransactionOperation::Begin => Control::Opens,
                    TransactionOperation::Rollback => Control::Undoes,
                    _ => Control::Ends,
                })
            }
            _ => None,
        };
        let leaves = match action {
            AuthAction::Pragma {
                pragma_name,
                pragma_value: Some(_),
            } => is_listed(&STREAM_PRAGMAS, pragma_name),
            AuthAction::CreateTempIndex { .. }
            | AuthAction::CreateTempTable { .. }
            | AuthAction::CreateTempTrigger { .. }
            | AuthAction::CreateTempView { .. } => true,
            _ => false,
        };
        if control.is_some() || leaves {
            let mut seen = self
                .seen
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            seen.control = seen.control.or(control);
            seen.leaves |= leaves;
        }
    }

    /// The authorizer callback for this policy.
    pub fn authorizer(
        self: &Arc<Self>,
    ) -> impl FnMut(AuthContext<'_>) -> Authorization + Send + use<> {
        let policy = Arc::clone(self);
        move |context| match judge(policy.get(), &context.action) {
            None => {
                if policy.get().is_in_stream() {
                    policy.see(&context.action);
                }
                Authorization::Allow
            }
            Some(refusal) => {
                let mut last = policy
                    .refusal
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                last.get_or_insert(refusal);
                Authorization::Deny
            }
        }
    }
}

fn judge(permission: Permission, action: &AuthAction<'_>) -> Option<Refusal> {
    if permission.allows(Permission::ENGINE) {
        return None;
    }
    if permission == Permission::VACUUM {
        // VACUUM INTO attaches a named file.
        return match *action {
            AuthAction::Attach { filename } if !filename.is_empty() => {
                Some(Refusal::Forbidden("VACUUM INTO".to_owned()))
            }
            _ => None,
        };
    }
    let write = || (!permission.allows(Permission::WRITE)).then_some(Refusal::Write);
    let ddl = || (!permission.allows(Permission::DDL)).then_some(Refusal::Ddl);
    let forbidden = |what: &str| Some(Refusal::Forbidden(what.to_owned()));
    let in_stream = permission.is_in_stream();
    match *action {
        AuthAction::Select | AuthAction::Recursive => None,
        AuthAction::Read { table_name, .. } => table(table_name),
        AuthAction::Insert { table_name }
        | AuthAction::Delete { table_name }
        | AuthAction::Update { table_name, .. } => table(table_name).or_else(write),
        AuthAction::CreateIndex { table_name, .. }
        | AuthAction::CreateTable { table_name }
        | AuthAction::CreateTrigger { table_name, .. }
        | AuthAction::DropIndex { table_name, .. }
        | AuthAction::DropTable { table_name }
        | AuthAction::DropTrigger { table_name, .. }
        | AuthAction::DropVtable { table_name, .. }
        | AuthAction::AlterTable { table_name, .. }
        | AuthAction::Analyze { table_name } => table(table_name).or_else(ddl),
        AuthAction::CreateView { view_name } | AuthAction::DropView { view_name } => {
            table(view_name).or_else(ddl)
        }
        AuthAction::Reindex { .. } => ddl(),
        AuthAction::CreateVtable {
            table_name,
            module_name,
        } => {
            if is_listed(&CREATABLE_MODULES, module_name) {
                table(table_name).or_else(ddl)
            } else {
                forbidden(&format!("virtual table module {module_name}"))
            }
        }
        AuthAction::Function { function_name } => {
            let allowed = is_listed(&FUNCTIONS, function_name)
                || INTERNAL_FUNCTION_PREFIXES
                    .iter()
                    .any(|p| function_name.starts_with(p));
            if allowed {
                None
            } else {
                forbidden(&format!("function {function_name}"))
            }
        }
        AuthAction::Pragma {
            pragma_name,
            pragma_value: Some(_),
        } if in_stream && is_listed(&STREAM_PRAGMAS, pragma_name) => None,
        AuthAction::Pragma {
            pragma_name,
            pragma_value,
        } => pragma(pragma_name, pragma_value)
            .map(Refusal::Forbidden)
            .or_else(|| {
                let writes = is_listed(&WRITING_PRAGMAS, pragma_name)
                    && (pragma_value.is_some() || !is_listed(&READABLE_PRAGMAS, pragma_name));
                if writes { write() } else { None }
            }),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } if in_stream => None,
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
            Some(Refusal::TransactionControl)
        }
        AuthAction::Attach { .. } => forbidden("ATTACH"),
        AuthAction::Detach { .. } => forbidden("DETACH"),
        AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. }
        | AuthAction::DropTempIndex { .. }
        | AuthAction::DropTempTable { .. }
        | AuthAction::DropTempTrigger { .. }
        | AuthAction::DropTempView { .. } => {
            if in_stream {
                write()
            } else {
                forbidden("TEMP objects outside a stream")
            }
        }
        _ => forbidden("this statement"),
    }
}

fn table(name: &str) -> Option<Refusal> {
    let lower = name.to_ascii_lowercase();
    let allowed_module = is_listed(&READABLE_MODULES, &lower)
        || lower
            .strip_prefix("pragma_")
            .is_some_and(|p| is_listed(&READABLE_PRAGMAS, p));
    let builtin_module = lower.starts_with("pragma_") || is_listed(&BUILTIN_MODULES, &lower);
    let refused = lower.starts_with(ENGINE_TABLE_PREFIX) || (builtin_module && !allowed_module);
    refused.then(|| Refusal::Forbidden(format!("table {name}")))
}

fn pragma(name: &str, value: Option<&str>) -> Option<String> {
    if is_listed(&WRITING_PRAGMAS, name) || is_listed(&ARGUMENT_PRAGMAS, name) {
        return None;
    }
    match value {
        None if is_listed(&READABLE_PRAGMAS, name) => None,
        Some(_) if is_listed(&READABLE_PRAGMAS, name) => Some(format!("setting PRAGMA {name}")),
        _ => Some(format!("PRAGMA {name}")),
    }
}

type Names = LazyLock<HashSet<&'static str>>;

fn is_listed(names: &Names, name: &str) -> bool {
    names.contains(name) || names.contains(name.to_ascii_lowercase().as_str())
}

fn names(lists: &[&'static str]) -> HashSet<&'static str> {
    lists
        .iter()
        .flat_map(|list| list.split_ascii_whitespace())
        .collect()
}

/// Pragmas that write to the database file.
static WRITING_PRAGMAS: Names =
    LazyLock::new(|| names(&["user_version application_id optimize incremental_vacuum"]));

/// Pragmas whose value is an argument, not a setting; `defer_foreign_keys` ends with the transaction.
static ARGUMENT_PRAGMAS: Names = LazyLock::new(|| {
    names(&[
        "table_info table_xinfo table_list index_list index_info index_xinfo foreign_key_list",
        "foreign_key_check integrity_check quick_check defer_foreign_keys",
    ])
});

/// Settings of a connection, which whoever has one to themselves may change.
static STREAM_PRAGMAS: Names =
    LazyLock::new(|| names(&["foreign_keys recursive_triggers query_only case_sensitive_like"]));

/// Pragmas that may be read.
static READABLE_PRAGMAS: Names = LazyLock::new(|| {
    names(&[
        "foreign_keys defer_foreign_keys table_info table_xinfo table_list index_list index_info",
        "index_xinfo foreign_key_list foreign_key_check query_only integrity_check quick_check",
        "user_version application_id recursive_triggers page_count page_size freelist_count encoding",
        "schema_version auto_vacuum collation_list data_version",
    ])
});

/// Modules a tenant may create tables with.
static CREATABLE_MODULES: Names =
    LazyLock::new(|| names(&["fts5 fts5vocab fts4 fts3 rtree rtree_i32 geopoly"]));

/// Table-valued functions a tenant may read.
static READABLE_MODULES: Names =
    LazyLock::new(|| names(&["json_each json_tree jsonb_each jsonb_tree"]));

/// Modules that exist without being created: all that are not readable are refused by name.
static BUILTIN_MODULES: Names = LazyLock::new(|| {
    names(&[
        "json_each json_tree jsonb_each jsonb_tree dbstat sqlite_dbpage sqlite_stmt bytecode",
        "tables_used fts3tokenize carray sqlite_dbdata sqlite_dbptr fsdir generate_series",
    ])
});

/// Functions that SQLite's own ALTER TABLE, VACUUM and shadow tables call; they are marked internal, so that
/// tenant SQL cannot name them.
const INTERNAL_FUNCTION_PREFIXES: [&str; 3] = ["sqlite_rename_", "sqlite_drop_", "sqlite_alter_"];

static FUNCTIONS: Names = LazyLock::new(|| {
    names(&[
        "abs changes char coalesce concat concat_ws format glob hex ifnull if iif instr",
        "last_insert_rowid length like likelihood likely lower ltrim max min nullif octet_length",
        "printf quote random randomblob replace round rtrim sign soundex sqlite_version",
        "sqlite_source_id substr substring subtype total_changes trim typeof unhex unicode unistr",
        "unistr_quote unlikely upper zeroblob match",
        "avg count group_concat string_agg sum total median percentile percentile_cont percentile_disc",
        "row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value",
        "nth_value",
        "date time datetime julianday unixepoch strftime timediff current_date current_time",
        "current_timestamp",
        "acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10",
        "log2 mod pi pow power radians sin sinh sqrt tan tanh trunc",
        "json json_array json_array_insert json_array_length json_error_position json_extract -> ->>",
        "json_group_array json_group_object json_insert json_object json_patch json_pretty json_quote",
        "json_remove json_replace json_set json_type json_valid",
        "jsonb jsonb_array jsonb_array_insert jsonb_extract jsonb_group_array jsonb_group_object",
        "jsonb_insert jsonb_object jsonb_patch jsonb_remove jsonb_replace jsonb_set",
        "bm25 highlight snippet matchinfo offsets fts5_get_locale fts5_locale fts5_insttoken",
        "rtreenode rtreedepth rtreecheck geopoly_area geopoly_bbox geopoly_blob geopoly_ccw",
        "geopoly_contains_point geopoly_group_bbox geopoly_json geopoly_overlap geopoly_regular",
        "geopoly_svg geopoly_within geopoly_xform",
    ])
});
