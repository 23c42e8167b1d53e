//! Store URLs, and the object stores they name.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, Checksum, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::prefix::Prefix;
use super::{FileStore, StoreError, StoreSettings};

/// An object store, and the part of it that is ours.
pub(crate) struct Place {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) prefix: Prefix,
}

fn invalid(what: &'static str, detail: impl Into<String>) -> StoreError {
    StoreError::Invalid {
        what,
        detail: detail.into(),
    }
}

fn unusable(error: &object_store::Error) -> StoreError {
    invalid("the store cannot be opened", error.to_string())
}

/// Opens the store that `url` names.
pub(crate) fn open(url: &str, settings: &StoreSettings) -> Result<Place, StoreError> {
    let (scheme, rest) = url
        .split_once(':')
        .ok_or_else(|| invalid("a store URL begins with a scheme, such as s3:", url))?;
    match scheme {
        "memory" => Ok(Place {
            objects: Arc::new(InMemory::new()),
            prefix: Prefix::new(rest)?,
        }),
        "file" => Ok(Place {
            objects: Arc::new(FileStore::open(&folder(url, rest)?)?),
            prefix: Prefix::default(),
        }),
        "s3" | "gs" | "az" => {
            let bucket = Bucket::parse(url)?;
            let objects = match scheme {
                "s3" => s3(&bucket, settings)?,
                "gs" => gcs(&bucket, settings)?,
                _ => azure(&bucket, settings)?,
            };
            Ok(Place {
                objects,
                prefix: bucket.prefix,
            })
        }
        _ => Err(invalid("unknown kind of store", scheme)),
    }
}

/// The folder of a file URL: `file:///absolute` or `file://./relative`.
fn folder(url: &str, rest: &str) -> Result<PathBuf, StoreError> {
    let malformed = || invalid("a file store is file:///absolute or file://./relative", url);
    let path = rest.strip_prefix("//").ok_or_else(malformed)?;
    if path == "." || path.starts_with("./") || path.starts_with("../") {
        return Ok(PathBuf::from(path));
    }
    Url::parse(url)
        .ok()
        .filter(|url| url.query().is_none())
        .and_then(|url| url.to_file_path().ok())
        .ok_or_else(malformed)
}

/// What a bucket's URL says.
#[derive(Debug)]
struct Bucket {
    name: String,
    prefix: Prefix,
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    /// Plain http beyond this machine is meant.
    allow_http: bool,
    /// What S3 is asked to encrypt with, beside what is sealed already.
    sse: Option<String>,
    sse_kms_key_id: Option<String>,
    /// A checksum header with every PUT, which buckets with Object Lock ask for.
    checksum: bool,
}

impl Bucket {
    fn parse(text: &str) -> Result<Self, StoreError> {
        let url = Url::parse(text).map_err(|error| invalid("malformed URL", error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(
                "credentials come from the environment, not from the URL",
                url.scheme(),
            ));
        }
        let name = url.host_str().filter(|host| !host.is_empty());
        let mut bucket = Self {
            name: name
                .ok_or_else(|| invalid("the URL names no bucket", text))?
                .to_owned(),
            prefix: Prefix::new(url.path())?,
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: false,
            sse: None,
            sse_kms_key_id: None,
            checksum: false,
        };
        for (name, value) in url.query_pairs() {
            match (url.scheme(), name.as_ref()) {
                (_, "endpoint") => bucket.endpoint = Some(value.into_owned()),
                (_, "allow_http") => {
                    bucket.allow_http = value
                        .parse()
                        .map_err(|_| invalid("allow_http is true or false", value.into_owned()))?;
                }
                ("s3", "region") => bucket.region = Some(value.into_owned()),
                ("s3", "path_style") => {
                    bucket.path_style =
                        Some(value.parse().map_err(|_| {
                            invalid("path_style is true or false", value.into_owned())
                        })?);
                }
                ("s3", "sse") if ["AES256", "aws:kms", "aws:kms:dsse"].contains(&&*value) => {
                    bucket.sse = Some(value.into_owned());
                }
                ("s3", "sse") => {
                    let what = "sse is AES256, aws:kms or aws:kms:dsse";
                    return Err(invalid(what, value.into_owned()));
                }
                ("s3", "sse_kms_key_id") => bucket.sse_kms_key_id = Some(value.into_owned()),
                ("s3", "checksum") if value == "sha256" => bucket.checksum = true,
                ("s3", "checksum") => {
                    return Err(invalid("checksum is sha256", value.into_owned()));
                }
                _ => return Err(invalid("unknown option in the store's URL", name)),
            }
        }
        if bucket.is_http() && !bucket.allow_http && !bucket.is_loopback() {
            let what =
                "an endpoint beyond this machine is reached by https, unless allow_http=true";
            return Err(invalid(what, bucket.endpoint.unwrap_or_default()));
        }
        if bucket.sse_kms_key_id.is_some() && bucket.sse.as_deref().unwrap_or("AES256") == "AES256"
        {
            let what = "sse_kms_key_id needs sse=aws:kms or sse=aws:kms:dsse";
            return Err(invalid(what, text));
        }
        Ok(bucket)
    }

    fn is_http(&self) -> bool {
        self.endpoint
            .as_deref()
            .and_then(|endpoint| endpoint.split_once("://"))
            .is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("http"))
    }

    /// Whether the endpoint is on this machine.
    fn is_loopback(&self) -> bool {
        let endpoint = self.endpoint.as_deref().map(Url::parse);
        match endpoint.and_then(Result::ok).as_ref().and_then(Url::host) {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        }
    }

    /// Time limits for one request; plain http only if the URL asks for it.
    fn client(&self, settings: &StoreSettings) -> ClientOptions {
        ClientOptions::new()
            .with_timeout(settings.request_timeout)
            .with_connect_timeout(settings.connect_timeout)
            .with_allow_http(self.is_http())
    }
}

/// The library's own retries, off: ours decide, and they read back before they repeat a write.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

fn s3(bucket: &Bucket, settings: &StoreSettings) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let built = s3_builder(bucket, settings).build();
    Ok(Arc::new(built.map_err(|error| unusable(&error))?))
}

fn s3_builder(bucket: &Bucket, settings: &StoreSettings) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&bucket.name)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_client_options(bucket.client(settings))
        .with_retry(no_retries());
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder
            .with_endpoint(endpoint)
            .with_allow_http(bucket.is_http());
    }
    if let Some(region) = &bucket.region {
        builder = builder.with_region(region);
    }
    if let Some(path_style) = bucket.path_style {
        builder = builder.with_virtual_hosted_style_request(!path_style);
    }
    let keys = [
        ("aws_server_side_encryption", &bucket.sse),
        ("aws_sse_kms_key_id", &bucket.sse_kms_key_id),
    ];
    for (key, value) in keys {
        if let (Ok(key), Some(value)) = (key.parse(), value) {
            builder = builder.with_config(key, value);
        }
    }
    if bucket.checksum {
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    builder
}

fn gcs(bucket: &Bucket, settings: &StoreSettings) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&bucket.name)
        .with_client_options(bucket.client(settings))
        .with_retry(no_retries());
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    Ok(Arc::new(builder.build().map_err(|error| unusable(&error))?))
}

fn azure(bucket: &Bucket, settings: &StoreSettings) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(&bucket.name)
        .with_client_options(bucket.client(settings))
        .with_retry(no_retries());
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder
            .with_endpoint(endpoint.clone())
            .with_allow_http(bucket.is_http());
    }
    Ok(Arc::new(builder.build().map_err(|error| unusable(&error))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> String {
        match open(url, &StoreSettings::default()) {
            Ok(_) => panic!("{url} must be refused"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn bucket_urls_carry_prefix_and_options() {
        let url = "s3://b/p/q?endpoint=http://127.0.0.1:1&region=eu-1&path_style=true";
        let bucket = Bucket::parse(url).unwrap();
        assert_eq!(bucket.name, "b");
        assert_eq!(bucket.prefix.path("k").unwrap().as_ref(), "p/q/k");
        assert!(bucket.is_http());
        assert_eq!(bucket.region.as_deref(), Some("eu-1"));
        assert_eq!(bucket.path_style, Some(true));
        assert!(open(url, &StoreSettings::default()).is_ok());
    }

    /// Goal: what the URL asks of S3 is in the request. Method: a listener that answers one PUT and hands out its head.
    #[tokio::test]
    async fn server_side_encryption_and_checksums_are_asked_for_in_headers() {
        use object_store::ObjectStoreExt as _;
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answering = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let mut piece = [0; 4096];
            while !seen.ends_with(b"the body") {
                let read = client.read(&mut piece).unwrap();
                assert!(read > 0, "the body comes");
                seen.extend_from_slice(&piece[..read]);
            }
            let answer =
                "HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            client.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&seen).to_lowercase()
        });
        let url = format!(
            "s3://b?endpoint=http://127.0.0.1:{port}&region=eu-1&path_style=true&sse=aws:kms&\
             sse_kms_key_id=my-key&checksum=sha256"
        );
        let bucket = Bucket::parse(&url).unwrap();
        let store = s3_builder(&bucket, &StoreSettings::default())
            .with_access_key_id("id")
            .with_secret_access_key("secret")
            .build()
            .unwrap();
        let put = store.put(&"key".into(), "the body".into()).await;
        let head = answering.join().unwrap();
        put.unwrap();
        for wanted in [
            "x-amz-server-side-encryption: aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id: my-key",
            "x-amz-checksum-sha256: ",
        ] {
            assert!(head.contains(wanted), "{wanted} is not in {head}");
        }
    }

    #[test]
    fn wrong_urls_are_refused_with_a_reason() {
        assert!(error("/var/lib").contains("scheme"));
        assert!(error("ftp://x").contains("unknown kind"));
        assert!(error("s3://b/p?colour=red").contains("colour"));
        assert!(error("s3://key:secret@b/p").contains("environment"));
        assert!(!error("s3://key:secret@b/p").contains("secret"));
        assert!(error("s3:///p").contains("bucket"));
        assert!(error("s3://b/p?path_style=maybe").contains("maybe"));
        assert!(error("s3://b/p?sse=rot13").contains("rot13"));
        assert!(error("s3://b/p?sse_kms_key_id=k").contains("sse=aws:kms"));
        assert!(error("s3://b/p?checksum=md5").contains("md5"));
        assert!(error("file:relative").contains("file:///"));
        assert!(error("s3://b/../..//x y").contains("prefix"));
    }

    #[test]
    fn plain_http_is_used_only_when_asked_for() {
        let https = Bucket::parse("s3://b?endpoint=https://x.example").unwrap();
        assert!(!https.is_http());
        for scheme in ["s3", "gs", "az"] {
            for far in [
                "http://x.example",
                "HTTP://10.0.0.1:9000",
                "http://127.0.0.1.example",
            ] {
                let refused = error(&format!("{scheme}://b?endpoint={far}"));
                assert!(refused.contains("allow_http=true"), "{refused}");
                let asked = format!("{scheme}://b?endpoint={far}&allow_http=true");
                assert!(Bucket::parse(&asked).unwrap().is_http());
            }
            for near in [
                "http://localhost:9000",
                "http://127.0.0.1:1",
                "http://[::1]:9000",
            ] {
                let url = format!("{scheme}://b?endpoint={near}");
                assert!(Bucket::parse(&url).unwrap().is_http(), "{near}");
            }
        }
        assert!(error("s3://b?allow_http=perhaps").contains("perhaps"));
    }

    #[test]
    fn relative_folders_are_allowed() {
        assert_eq!(
            folder("file://./a/b", "//./a/b").unwrap(),
            PathBuf::from("./a/b")
        );
        assert_eq!(
            folder("file:///a%20b", "///a%20b").unwrap(),
            PathBuf::from("/a b")
        );
    }
}
