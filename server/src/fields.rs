//! Strict reading of what a caller sends: every field is taken by name, and what is left over is refused.
//!
//! A field that is silently ignored does harm (`dry_run`, misspelt), so a body or a query with a field nobody
//! asked for fails with `unknown-field` and a JSON pointer to it. A query string is read the same way, its
//! values being texts.

use serde_json::{Map, Value as Json};
use tidelog_wal::Timestamp;

use crate::problem::{Code, Problem};
use crate::time;
use crate::values::escape;

/// The fields of one object that have not been taken yet.
#[derive(Debug, Default)]
pub struct Fields {
    pointer: String,
    left: Map<String, Json>,
}

impl Fields {
    /// The fields of a request body; an empty body has none.
    pub fn of_body(body: &[u8]) -> Result<Self, Problem> {
        if body.is_empty() {
            return Ok(Self {
                pointer: String::new(),
                left: Map::new(),
            });
        }
        let value: Json = serde_json::from_slice(body)
            .map_err(|error| invalid("", format!("the body is not JSON: {error}")))?;
        Self::of_value(value, "")
    }

    /// The fields of an object inside a body.
    pub fn of_value(value: Json, pointer: &str) -> Result<Self, Problem> {
        match value {
            Json::Object(left) => Ok(Self {
                pointer: pointer.to_owned(),
                left,
            }),
            _ => Err(invalid(pointer, "an object is expected here")),
        }
    }

    /// The parameters of a query string; one given twice is refused.
    pub fn of_query(query: &str) -> Result<Self, Problem> {
        let mut left = Map::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if left
                .insert(name.to_string(), Json::String(value.into_owned()))
                .is_some()
            {
                return Err(invalid(
                    &format!("/{}", escape(&name)),
                    "the parameter is given twice",
                ));
            }
        }
        Ok(Self {
            pointer: String::new(),
            left,
        })
    }

    /// The pointer of a field of this object.
    pub fn at(&self, name: &str) -> String {
        format!("{}/{}", self.pointer, escape(name))
    }

    /// Whether a field that is left is `true`; it stays to be taken.
    pub fn says(&self, name: &str) -> bool {
        self.left.get(name) == Some(&Json::Bool(true))
    }

    /// The names of the fields that are left.
    pub fn names(&self) -> Vec<String> {
        self.left.keys().cloned().collect()
    }

    /// Takes a field as it is; `null` counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Json> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field if it is `null`: a setting that is taken back.
    pub fn cleared(&mut self, name: &str) -> bool {
        let is_null = self.left.get(name).is_some_and(Json::is_null);
        if is_null {
            self.left.remove(name);
        }
        is_null
    }

    /// Takes a limit: a whole number that is not negative, or `null`, which lifts it.
    pub fn limit(&mut self, name: &str) -> Result<Option<Option<u64>>, Problem> {
        if self.cleared(name) {
            return Ok(Some(None));
        }
        Ok(self.number(name)?.map(Some))
    }

    /// Takes a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// Takes a text that has to be there.
    pub fn required_text(&mut self, name: &str) -> Result<String, Problem> {
        let text = self.text(name)?;
        text.ok_or_else(|| invalid(&self.at(name), format!("{name} is required")))
    }

    /// Takes a boolean; from a query, `true` or `false`.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(value)),
            Some(Json::String(text)) if text == "true" => Ok(Some(true)),
            Some(Json::String(text)) if text == "false" => Ok(Some(false)),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    /// Takes a whole number that is not negative; from a query, its decimal text.
    pub fn number(&mut self, name: &str) -> Result<Option<u64>, Problem> {
        let number = match self.take(name) {
            None => return Ok(None),
            Some(Json::Number(number)) => number.as_u64(),
            Some(Json::String(text)) => text.parse().ok(),
            Some(_) => None,
        };
        number
            .map(Some)
            .ok_or_else(|| self.wrong(name, "a whole number, not negative"))
    }

    /// Takes a time: RFC 3339 or Unix milliseconds.
    pub fn time(&mut self, name: &str) -> Result<Option<Timestamp>, Problem> {
        let text = match self.take(name) {
            None => return Ok(None),
            Some(Json::String(text)) => text,
            Some(Json::Number(number)) => number.to_string(),
            Some(_) => return Err(self.wrong(name, "a time")),
        };
        time::parse(&text)
            .map(Some)
            .map_err(|detail| invalid(&self.at(name), detail))
    }

    /// Takes one of a few words, parsed by `parse`.
    pub fn word<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        parse(&text)
            .map(Some)
            .map_err(|detail| invalid(&self.at(name), detail))
    }

    /// Takes an array of texts.
    pub fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, Problem> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let Json::Array(values) = value else {
            return Err(self.wrong(name, "an array of strings"));
        };
        let texts = values.into_iter().map(|value| match value {
            Json::String(text) => Some(text),
            _ => None,
        });
        let texts: Option<Vec<String>> = texts.collect();
        texts
            .map(Some)
            .ok_or_else(|| self.wrong(name, "an array of strings"))
    }

    /// Ends the reading: whatever was not taken is refused, each by its pointer.
    pub fn finish(self) -> Result<(), Problem> {
        let Some(first) = self.left.keys().next() else {
            return Ok(());
        };
        let errors: Vec<Json> = self
            .left
            .keys()
            .map(|name| {
                serde_json::json!({ "pointer": self.at(name), "detail": "the field is not known here" })
            })
            .collect();
        let detail = format!("{first:?} is not a field of this request");
        Err(Problem::new(Code::UnknownField, detail).with("errors", errors))
    }

    fn wrong(&self, name: &str, wanted: &str) -> Problem {
        invalid(&self.at(name), format!("{name} must be {wanted}"))
    }
}

fn invalid(pointer: &str, detail: impl Into<String>) -> Problem {
    Problem::invalid(Code::InvalidRequest, pointer, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_nobody_takes_is_refused_with_its_pointer() {
        let mut fields = Fields::of_body(br#"{"name":"a","dry_run":true,"x/y":1}"#).expect("JSON");
        assert_eq!(fields.required_text("name").expect("a text"), "a");
        let document = fields.finish().expect_err("two are left").document("", "");
        assert_eq!(document["code"], "unknown-field");
        assert_eq!(document["errors"][0]["pointer"], "/dry_run");
        assert_eq!(document["errors"][1]["pointer"], "/x~1y");
    }

    #[test]
    fn wrong_types_name_the_field_inside_its_object() {
        let value = serde_json::json!({ "n": -1, "t": 5, "b": "yes", "s": [1] });
        let mut fields = Fields::of_value(value, "/statements/3").expect("an object");
        let document = fields.number("n").expect_err("negative").document("", "");
        assert_eq!(document["errors"][0]["pointer"], "/statements/3/n");
        assert!(fields.text("t").is_err() && fields.boolean("b").is_err());
        assert!(fields.texts("s").is_err());
        assert!(
            fields.finish().is_ok(),
            "a refused field is taken all the same"
        );
    }

    #[test]
    fn queries_are_read_like_bodies_and_refuse_doubles() {
        let mut fields = Fields::of_query("limit=20&cursor=a%2Fb&x=").expect("a query");
        assert_eq!(fields.number("limit").expect("a number"), Some(20));
        assert_eq!(
            fields.text("cursor").expect("a text").as_deref(),
            Some("a/b")
        );
        assert!(fields.finish().is_err(), "x is left");
        assert!(Fields::of_query("a=1&a=2").is_err());
        assert!(Fields::of_query("").expect("none").finish().is_ok());
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        for body in [&b"[]"[..], b"1", b"{", b"{} {}", b"\xff"] {
            assert!(Fields::of_body(body).is_err(), "{body:?}");
        }
    }
}
