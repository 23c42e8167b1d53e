//! The effective settings as TOML, fit to be shown: whatever may be a secret is masked.

use toml::{Table, Value};

use super::Config;
use crate::redact::{MASK, is_secret_name};

/// The settings as TOML text without secrets.
pub fn shown(config: &Config) -> String {
    let Ok(mut table) = Table::try_from(config) else {
        return String::new();
    };
    mask(&mut table);
    toml::to_string_pretty(&table).unwrap_or_default()
}

fn mask(table: &mut Table) {
    for (key, value) in table.iter_mut() {
        match value {
            Value::Table(inner) => mask(inner),
            Value::String(text) if key == "store" || key == "otlp_endpoint" => {
                *text = masked_url(text);
            }
            _ => {}
        }
    }
}

/// A URL with the values of its secret settings, and who logs in, masked.
pub fn masked_url(url: &str) -> String {
    let (bare, query) = url
        .split_once('?')
        .map_or((url, None), |(bare, query)| (bare, Some(query)));
    let bare = match bare.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest
                .rsplit_once('@')
                .map(|(_, host)| format!("{MASK}@{host}"));
            format!("{scheme}://{}", host.unwrap_or_else(|| rest.to_owned()))
        }
        None => bare.to_owned(),
    };
    let Some(query) = query else { return bare };
    let pairs = query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let hide = !value.is_empty() && is_secret_name(name);
        format!("{name}={}", if hide { MASK } else { value })
    });
    format!("{bare}?{}", pairs.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    #[test]
    fn secrets_of_a_store_url_are_masked_and_the_rest_reads_back() {
        let mut config = Preset::Production.config();
        config.store =
            "s3://id:pw@b/p?region=r&access_key_id=AK&secret_access_key=SK&session_token=ST"
                .to_owned();
        let text = shown(&config);
        for secret in ["AK", "SK", "ST", "pw@", "id:"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert!(text.contains("region=r"));
        let back: Config = toml::from_str(&text).expect("its own text reads");
        assert_eq!(back.limits, config.limits);
    }
}
