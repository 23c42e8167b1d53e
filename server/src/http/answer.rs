//! What a handler answers, before the layer adds its headers.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Value as Json, json};
use tidelog_wal::Position;

use super::rows::Rows;

/// The header with the position after the call.
pub(crate) const BOOKMARK: HeaderName = HeaderName::from_static("db-bookmark");
/// The header with the highest position proven to be in object storage.
pub(crate) const DURABLE_BOOKMARK: HeaderName = HeaderName::from_static("db-durable-bookmark");

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Content {
    Empty,
    Json(Json),
    /// A document with rows in it.
    Rows(Box<Rows>),
    /// A body of another type, which its headers name.
    Other(Body),
}

/// A successful answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) content: Content,
    pub(crate) bookmark: Option<Position>,
    pub(crate) durable_bookmark: Option<Position>,
    /// The call changed the schema of a database, for the audit log.
    pub(crate) schema_changed: bool,
}

impl Answer {
    fn with(status: StatusCode, content: Content) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            content,
            bookmark: None,
            durable_bookmark: None,
            schema_changed: false,
        }
    }

    /// 200 with a document.
    pub(crate) fn ok(document: Json) -> Self {
        Self::with(StatusCode::OK, Content::Json(document))
    }

    /// 200 with a document that holds results.
    pub(crate) fn rows(rows: Rows) -> Self {
        Self::with(StatusCode::OK, Content::Rows(Box::new(rows)))
    }

    /// 201 with a document.
    pub(crate) fn created(document: Json) -> Self {
        Self::with(StatusCode::CREATED, Content::Json(document))
    }

    /// 204.
    pub(crate) fn nothing() -> Self {
        Self::with(StatusCode::NO_CONTENT, Content::Empty)
    }

    /// 200 with a body of another type.
    pub(crate) fn other(content_type: &'static str, body: Body) -> Self {
        Self::with(StatusCode::OK, Content::Other(body))
            .header(header::CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    /// One page of a list; `link` is the path and query of the next one without its cursor.
    pub(crate) fn page(items: &[Json], next_cursor: Option<&str>, link: &str) -> Self {
        let mut answer = Self::ok(json!({ "items": items, "next_cursor": next_cursor }));
        if let Some(cursor) = next_cursor {
            let cursor: String = form_urlencoded::byte_serialize(cursor.as_bytes()).collect();
            // A link that is no header value would be a cursor outside ASCII, which is encoded above.
            if let Ok(value) =
                HeaderValue::try_from(format!("<{link}cursor={cursor}>; rel=\"next\""))
            {
                answer.headers.insert(header::LINK, value);
            }
        }
        answer
    }

    /// The same with a header.
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The same with the positions of the database it speaks of.
    pub(crate) fn at(mut self, bookmark: Option<Position>, durable: Option<Position>) -> Self {
        self.bookmark = bookmark;
        self.durable_bookmark = durable;
        self
    }

    /// The HTTP answer.
    pub(crate) fn into_response(self) -> Response<Body> {
        let (body, json) = match self.content {
            Content::Empty => (Body::empty(), false),
            Content::Json(document) => (Body::from(document.to_string()), true),
            Content::Rows(rows) => (rows.into_body(), true),
            Content::Other(body) => (body, false),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if json {
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        positions(response.headers_mut(), self.bookmark, self.durable_bookmark);
        response
    }

    /// The same, marked as a replay.
    pub(crate) fn replayed(self) -> Self {
        const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
        self.header(REPLAYED, HeaderValue::from_static("true"))
    }
}

/// Sets the two bookmark headers.
pub(crate) fn positions(headers: &mut HeaderMap, now: Option<Position>, durable: Option<Position>) {
    for (name, position) in [(BOOKMARK, now), (DURABLE_BOOKMARK, durable)] {
        // A position is hex digits and dashes: always a header value.
        if let Some(Ok(value)) = position.map(|at| HeaderValue::try_from(at.to_string())) {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_with_a_successor_links_to_it() {
        let answer = Answer::page(&[json!(1)], Some("a/b="), "/v1/x?limit=1&");
        assert_eq!(
            answer.headers[header::LINK],
            "</v1/x?limit=1&cursor=a%2Fb%3D>; rel=\"next\""
        );
        assert!(Answer::page(&[], None, "/v1/x?").headers.is_empty());
    }
}
