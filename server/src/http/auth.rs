//! Who calls, and whether this route is theirs: decided before anything is looked up or opened.
//!
//! The namespace in the path must equal the credential's. It is compared, never looked up, so an answer does not
//! tell whether another tenant or its database exists.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::http::{HeaderMap, StatusCode, header};
use tidelog_engine::system::tokens::Principal;

use super::rates::Key;
use super::signed::{Claims, looks_signed};
use super::{Access, Route};
use crate::app::App;
use crate::problem::{Code, Problem};

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let missing = || {
        Problem::new(
            Code::Unauthenticated,
            "send the token as `Authorization: Bearer TOKEN`",
        )
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values
        .next()
        .ok_or_else(missing)?
        .to_str()
        .map_err(|_| missing())?;
    if values.next().is_some() {
        return Err(Problem::new(
            Code::Unauthenticated,
            "Authorization is given twice",
        ));
    }
    let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(missing());
    }
    Ok(token)
}

/// The caller of a route, or why the route is not theirs.
///
/// The caller is given back with the refusal where they are known: a refused call is theirs, too.
pub(crate) async fn admit(
    app: &App,
    route: &Route,
    headers: &HeaderMap,
    origin: Option<IpAddr>,
    names: &BTreeMap<String, String>,
) -> Result<Option<Principal>, (Option<Box<Principal>>, Problem)> {
    if route.access == Access::Public {
        return Ok(None);
    }
    let mut principal = authenticate(app, headers, origin)
        .await
        .map_err(|problem| (None, problem))?;
    let name = |placeholder: &str| names.get(placeholder).map(String::as_str);
    let implied = principal
        .namespace_name
        .clone()
        .filter(|_| route.implies_namespace());
    let (namespace, database) = (name("ns").or(implied.as_deref()), name("db"));
    // The namespace first: what the caller may do elsewhere is not looked up.
    let own = namespace.is_some() && principal.namespace_name.as_deref() == namespace;
    let limited = route.whole_namespace && principal.token.databases.is_some();
    let allowed = if own && limited {
        Err(lacks("a token for the whole namespace"))
    } else if own {
        match app.engine.role_of(&principal, database).await {
            Ok(role) => {
                principal.token.role = role;
                allow(&principal, route.access, namespace, database)
                    .and_then(|()| served(app, route, &principal))
            }
            Err(error) => Err(error.into()),
        }
    } else {
        allow(&principal, route.access, namespace, database)
    };
    match allowed {
        Ok(()) => Ok(Some(principal)),
        Err(problem) => Err((Some(Box::new(principal)), problem)),
    }
}

/// Refuses what is not served in a namespace that is deleted.
fn served(app: &App, route: &Route, principal: &Principal) -> Result<(), Problem> {
    match principal.token.namespace {
        Some(namespace) if !route.when_deleted => Ok(app.engine.refuse_ended(namespace)?),
        _ => Ok(()),
    }
}

fn lacks(required: &str) -> Problem {
    Problem::new(
        Code::InsufficientPermissions,
        format!("this call needs {required}"),
    )
    .with("required", required)
}

/// Who sends the bearer token, of our own or signed by somebody we trust.
///
/// An address that was refused too often in the last minute gets no unknown token of our own looked at: each costs a
/// read.
async fn authenticate(
    app: &App,
    headers: &HeaderMap,
    origin: Option<IpAddr>,
) -> Result<Principal, Problem> {
    let now = app.clock.wall();
    let failures = origin.map(Key::Failures);
    let limit = app.limits.auth_failures_per_minute;
    let spent = failures.and_then(|key| app.guards.rates.is_used_up(key, limit, now));
    let outcome = match bearer(headers) {
        Err(problem) => Err(problem),
        // A signature is proven without a read: whoever has a good one is no guesser.
        Ok(token) => match (&app.signed, spent) {
            (Some(signed), spent) if looks_signed(token) => match signed.prove(token, now) {
                Ok(claims) => vouched(app, &claims).await,
                Err(problem) if has_expired(&problem) => Err(problem),
                Err(problem) => match spent {
                    Some(wait) => return Err(throttled(wait)),
                    None => Err(problem),
                },
            },
            (_, Some(wait)) if !app.engine.knows(token) => return Err(throttled(wait)),
            _ => app.engine.authenticate(token).await.map_err(Problem::from),
        },
    };
    // Whose token has expired had a good one.
    if let Err(problem) = &outcome
        && problem.status() == StatusCode::UNAUTHORIZED
        && !has_expired(problem)
        && let Some(key) = failures
    {
        // Beyond the limit it counts no more, which changes nothing.
        let _ = app.guards.rates.take(&[(key, limit)], now);
    }
    outcome
}

fn has_expired(problem: &Problem) -> bool {
    problem.code() == Code::TokenExpired.as_str()
}

fn throttled(wait: u64) -> Problem {
    let detail = format!("too many refused tokens from this address; wait {wait} s");
    Problem::new(Code::RateLimited, detail).with("retry_after", wait)
}

async fn vouched(app: &App, claims: &Claims) -> Result<Principal, Problem> {
    let (namespace, subject) = (&claims.namespace, &claims.subject);
    let vouched = app
        .engine
        .vouched(namespace, subject, claims.issued, claims.expires);
    Ok(vouched.await?)
}

/// Whether the principal may use a route of that access in that namespace and database.
fn allow(
    principal: &Principal,
    access: Access,
    namespace: Option<&str>,
    database: Option<&str>,
) -> Result<(), Problem> {
    let is_server = principal.token.namespace.is_none();
    let minimum = match access {
        Access::Public => return Ok(()),
        Access::Server if is_server => return Ok(()),
        Access::Server => return Err(lacks("server")),
        Access::Role(role) => role,
    };
    if is_server {
        let detail = "the server token makes namespaces; it opens no database";
        return Err(
            Problem::new(Code::NamespaceMismatch, detail).with("required", minimum.as_str())
        );
    }
    if namespace.is_none() || principal.namespace_name.as_deref() != namespace {
        let detail = "the namespace in the path is not the token's";
        return Err(
            Problem::new(Code::NamespaceMismatch, detail).with("required", minimum.as_str())
        );
    }
    if principal.token.role < minimum {
        return Err(lacks(minimum.as_str()));
    }
    if let (Some(listed), Some(database)) = (&principal.token.databases, database)
        && !listed.iter().any(|listed| listed == database)
    {
        return Err(lacks("a token for this database"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::http::HeaderValue;
    use tidelog_engine::Role;
    use tidelog_engine::system::tokens::{TokenInfo, TokenKind};
    use tidelog_wal::{NamespaceId, Timestamp};

    use super::*;

    pub(crate) fn principal(role: Role) -> Principal {
        let token = TokenInfo {
            id: [7; 16],
            namespace: Some(NamespaceId::from_bytes([1; 16])),
            display: String::new(),
            kind: TokenKind::Live,
            role,
            scopes: Vec::new(),
            databases: None,
            allow_ddl: true,
            created_at: Timestamp::ZERO,
            expires_at: None,
            revoked_at: None,
            rate: None,
            principal: None,
            last_used_at: None,
        };
        Principal {
            token,
            namespace_name: Some("acme".to_owned()),
        }
    }

    fn code(result: Result<(), Problem>) -> &'static str {
        result.expect_err("refused").code()
    }

    #[test]
    fn each_role_reaches_itself_and_those_below() {
        let roles = [
            Role::Viewer,
            Role::Analyst,
            Role::Operator,
            Role::Admin,
            Role::Owner,
        ];
        for (held, role) in roles.into_iter().enumerate() {
            for (needed, minimum) in roles.into_iter().enumerate() {
                let result = allow(&principal(role), Access::Role(minimum), Some("acme"), None);
                assert_eq!(result.is_ok(), held >= needed, "{role:?} for {minimum:?}");
            }
        }
    }

    #[test]
    fn another_namespace_is_refused_whatever_the_role() {
        for namespace in [Some("other"), Some("ACME"), Some(""), None] {
            let result = allow(
                &principal(Role::Owner),
                Access::Role(Role::Viewer),
                namespace,
                None,
            );
            assert_eq!(code(result), "namespace-mismatch");
        }
    }

    #[test]
    fn the_server_token_and_tenant_tokens_never_swap_places() {
        let mut server = principal(Role::Owner);
        (server.token.namespace, server.namespace_name) = (None, None);
        assert!(allow(&server, Access::Server, None, None).is_ok());
        let result = allow(&server, Access::Role(Role::Viewer), Some("acme"), None);
        assert_eq!(code(result), "namespace-mismatch");
        let result = allow(&principal(Role::Owner), Access::Server, None, None);
        assert_eq!(code(result), "insufficient-permissions");
    }

    #[test]
    fn a_token_for_some_databases_opens_no_other() {
        let mut some = principal(Role::Owner);
        some.token.databases = Some(vec!["orders".to_owned()]);
        let access = Access::Role(Role::Viewer);
        assert!(allow(&some, access, Some("acme"), Some("orders")).is_ok());
        assert!(allow(&some, access, Some("acme"), Some("order")).is_err());
    }

    #[test]
    fn only_one_bearer_token_counts() {
        let mut headers = HeaderMap::new();
        assert!(bearer(&headers).is_err());
        for (value, token) in [("Bearer abc", Some("abc")), ("bearer  abc", Some("abc"))] {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(bearer(&headers).ok(), token);
        }
        for value in ["Basic abc", "Bearer", "Bearer ", "abc"] {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert!(bearer(&headers).is_err(), "{value}");
        }
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        assert!(bearer(&headers).is_err());
    }
}
