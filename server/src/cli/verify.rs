//! `tidelog verify` against a server: what it holds can be had back, and when that was last shown.

use reqwest::Method;
use serde_json::{Value as Json, json};

use super::archive::target;
use super::args::VerifyOptions;
use super::client::Client;
use super::exit::{Exit, Failure};
use super::operation::followed;
use super::output::{Output, cell};
use super::remote::{database, fields};

/// An outcome as an exit code.
pub(super) fn judge(outcome: &str) -> Result<(), Failure> {
    match outcome {
        "verified" => Ok(()),
        "inconclusive" => {
            let text = "inconclusive: not everything could be looked at";
            Err(Failure::new(Exit::Failed, text))
        }
        other => Err(Failure::new(
            Exit::Damaged,
            format!("{other}: what is stored is damaged or missing"),
        )),
    }
}

pub(super) async fn verify(
    client: &Client,
    options: VerifyOptions,
    output: &Output,
) -> Result<(), Failure> {
    let name = options
        .database
        .ok_or_else(|| Failure::usage("name the database: a server verifies one at a time"))?;
    if let Some(every) = options.every {
        let path = database(&name, &["verification-schedule"]);
        let answer = if every == "never" {
            client.json(client.request(Method::DELETE, &path)).await?;
            json!({ "schedule": Json::Null })
        } else {
            let body = json!({ "every": every, "level": options.level.as_str() });
            client
                .json(client.request(Method::PUT, &path).json(&body))
                .await?
        };
        let none = json!({ "every": "never" });
        let shown = &answer["schedule"];
        fields(*output, if shown.is_null() { &none } else { shown });
        return Ok(());
    }
    let mut body = json!({ "level": options.level.as_str() });
    if let Some(target) = target(&options.at) {
        body["target"] = target;
    }
    let path = database(&name, &["verifications"]);
    let request = client.request(Method::POST, &path).json(&body);
    let done = followed(client, &name.namespace, request, output).await?;
    let found = &done["verification"];
    fields(*output, found);
    judge(&cell(&found["outcome"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_looked_at_is_no_damage() {
        let exit = |outcome| judge(outcome).err().map(|failure| failure.exit);
        assert_eq!(exit("verified"), None);
        assert_eq!(exit("inconclusive"), Some(Exit::Failed));
        assert_eq!(exit("error"), Some(Exit::Damaged));
        assert_eq!(exit("mismatch"), Some(Exit::Damaged));
    }
}
