//! SQL values as JSON and back, without loss where JSON has room.
//!
//! | SQL | JSON out | JSON in |
//! | --- | --- | --- |
//! | NULL | `null` | `null` |
//! | INTEGER | number, or a string when the request says `"integers":"string"` | number without fraction or exponent; boolean as 0 or 1 |
//! | REAL | number; infinities as `{"real":"inf"}` and `{"real":"-inf"}` (SQLite stores NaN as NULL) | number with fraction or exponent, or that object |
//! | TEXT | string | string |
//! | BLOB | `{"base64":"..."}` | the same |
//!
//! An integer beyond 64 bits becomes a REAL, as in a literal of SQLite's own SQL. A TEXT that is not UTF-8 never
//! leaves the engine as text.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::{Map, Number, Value as Json, json};
use tidelog_engine::{Params, Value};

use crate::problem::{Code, Problem};

/// How INTEGER leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Integers {
    /// As JSON numbers, exact to 64 bits in the text; a reader with doubles loses what is beyond 2^53.
    #[default]
    Number,
    /// As decimal strings.
    String,
}

/// One SQL value as JSON.
pub fn to_json(value: Value, integers: Integers) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(number) => match integers {
            Integers::Number => json!(number),
            Integers::String => json!(number.to_string()),
        },
        Value::Real(number) => match Number::from_f64(number) {
            Some(number) => Json::Number(number),
            None if number.is_nan() => Json::Null,
            None => json!({ "real": if number > 0.0 { "inf" } else { "-inf" } }),
        },
        Value::Text(text) => Json::String(text),
        Value::Blob(bytes) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// One JSON value as SQL; `pointer` says where it stands in the request.
pub fn from_json(value: Json, pointer: &str) -> Result<Value, Problem> {
    match value {
        Json::Null => Ok(Value::Null),
        Json::Bool(value) => Ok(Value::Integer(i64::from(value))),
        Json::String(text) => Ok(Value::Text(text)),
        Json::Number(number) => number.as_i64().map(Value::Integer).map_or_else(
            || {
                number
                    .as_f64()
                    .map(Value::Real)
                    .ok_or_else(|| refused(pointer, "the number is out of range"))
            },
            Ok,
        ),
        Json::Object(object) => from_object(&object, pointer),
        Json::Array(_) => Err(refused(pointer, "a parameter cannot be an array")),
    }
}

fn from_object(object: &Map<String, Json>, pointer: &str) -> Result<Value, Problem> {
    let mut members = object.iter();
    match (members.next(), members.next()) {
        (Some((name, Json::String(text))), None) if name == "base64" => STANDARD
            .decode(text)
            .or_else(|_| STANDARD_NO_PAD.decode(text))
            .map(Value::Blob)
            .map_err(|_| refused(&format!("{pointer}/base64"), "this is not base64")),
        (Some((name, Json::String(text))), None) if name == "real" => match text.as_str() {
            "inf" => Ok(Value::Real(f64::INFINITY)),
            "-inf" => Ok(Value::Real(f64::NEG_INFINITY)),
            _ => Err(refused(
                &format!("{pointer}/real"),
                "only inf and -inf are written so",
            )),
        },
        _ => Err(refused(
            pointer,
            "an object parameter is {\"base64\":\"...\"} or {\"real\":\"inf\"}",
        )),
    }
}

/// The parameters of a statement: absent, an array by position, or an object by name.
pub fn params(value: Option<Json>, pointer: &str) -> Result<Params, Problem> {
    match value {
        None | Some(Json::Null) => Ok(Params::None),
        Some(Json::Array(values)) => values
            .into_iter()
            .enumerate()
            .map(|(index, value)| from_json(value, &format!("{pointer}/{index}")))
            .collect::<Result<_, _>>()
            .map(Params::Positional),
        Some(Json::Object(values)) => values
            .into_iter()
            .map(|(name, value)| {
                let at = format!("{pointer}/{}", escape(&name));
                Ok((name, from_json(value, &at)?))
            })
            .collect::<Result<_, Problem>>()
            .map(Params::Named),
        Some(_) => Err(refused(pointer, "params is an array or an object")),
    }
}

/// A member name inside a JSON pointer (RFC 6901).
pub fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn refused(pointer: &str, detail: &str) -> Problem {
    Problem::invalid(Code::InvalidRequest, pointer, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Value {
        let json = serde_json::from_str(text).expect("a JSON text");
        from_json(json, "/params/0").expect("a value")
    }

    #[test]
    fn integers_are_exact_to_the_last_bit() {
        for number in [0, -1, i64::MAX, i64::MIN, (1 << 53) + 1] {
            let out = to_json(Value::Integer(number), Integers::Number).to_string();
            assert_eq!(out, number.to_string());
            assert_eq!(parsed(&out), Value::Integer(number));
            let text = to_json(Value::Integer(number), Integers::String);
            assert_eq!(text, json!(number.to_string()));
        }
    }

    #[test]
    fn reals_are_exact_and_stay_reals() {
        for number in [
            0.1,
            -0.0,
            1.0,
            1e300,
            5e-324,
            f64::MAX,
            0.1 + 0.2,
            9_007_199_254_740_993.0,
        ] {
            let text = to_json(Value::Real(number), Integers::Number).to_string();
            let Value::Real(back) = parsed(&text) else {
                panic!("{text} came back as no REAL")
            };
            assert_eq!(back.to_bits(), number.to_bits(), "{text}");
        }
        for number in [f64::INFINITY, f64::NEG_INFINITY] {
            let text = to_json(Value::Real(number), Integers::Number).to_string();
            assert_eq!(parsed(&text), Value::Real(number));
        }
        assert_eq!(to_json(Value::Real(f64::NAN), Integers::Number), Json::Null);
    }

    #[test]
    fn blobs_texts_booleans_and_nulls_pass() {
        let blob = Value::Blob(vec![0, 255, 7]);
        assert_eq!(
            parsed(&to_json(blob.clone(), Integers::Number).to_string()),
            blob
        );
        assert_eq!(parsed("{\"base64\":\"AP8H\"}"), blob);
        assert_eq!(parsed("true"), Value::Integer(1));
        assert_eq!(parsed("null"), Value::Null);
        assert_eq!(parsed("\"x\\u0000y\""), Value::Text("x\0y".to_owned()));
    }

    #[test]
    fn a_bad_parameter_is_named_by_its_pointer() {
        let bad = json!([1, { "base64": "***" }]);
        let problem = params(Some(bad), "/params").expect_err("bad base64");
        assert_eq!(
            problem.document("", "")["errors"][0]["pointer"],
            "/params/1/base64"
        );
        let bad = json!({ "a/b": [1] });
        let problem = params(Some(bad), "/params").expect_err("an array");
        assert_eq!(
            problem.document("", "")["errors"][0]["pointer"],
            "/params/a~1b"
        );
        assert!(params(Some(json!("x")), "/params").is_err());
        assert!(params(Some(json!([{ "base64": "", "x": 1 }])), "/params").is_err());
    }
}
