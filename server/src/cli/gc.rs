//! `tidelog gc`: what the retention window lets go, and with `--apply` letting it go.

use reqwest::Method;
use serde_json::{Value as Json, json};

use super::args::GcOptions;
use super::client::Client;
use super::exit::Failure;
use super::output::{Output, bytes, cell, table};
use super::remote::paged;

fn total(objects: &Json) -> (usize, u64) {
    let objects = objects.as_array().map(Vec::as_slice).unwrap_or_default();
    let sizes = objects.iter().filter_map(|object| object["bytes"].as_u64());
    (objects.len(), sizes.sum())
}

pub(super) async fn gc(
    client: &Client,
    options: GcOptions,
    output: &Output,
) -> Result<(), Failure> {
    let mut body = json!({ "apply": options.apply });
    if let Some(name) = &options.database {
        body["database"] = json!(name.to_string());
    }
    let page = |_| client.request(Method::POST, &["retention"]).json(&body);
    let items = paged(client, usize::MAX, page).await?;
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            let ((marked, marks), (deleted, freed)) =
                (total(&item["marked"]), total(&item["deleted"]));
            vec![
                cell(&item["database"]),
                cell(&item["horizon"]),
                format!("{marked} ({})", bytes(marks)),
                format!("{deleted} ({})", bytes(freed)),
                cell(&item["image_at"]),
                cell(&item["next_look_at"]),
            ]
        })
        .collect();
    output.result(&json!({ "applied": options.apply, "items": items }), || {
        let headings = [
            "database",
            "horizon",
            "to mark",
            "to delete",
            "image at",
            "next look",
        ];
        let mut text = table(&headings, &rows);
        if !options.apply {
            text.push_str("nothing was changed: --apply does it\n");
        }
        text
    });
    Ok(())
}
