//! Buckets of a kind on the S3 servers of a run, made over the wire: ones that keep versions, with Object Lock, with a
//! policy; users with the rights of a policy and no others; and what stands in a bucket, version by version.
//!
//! A server is what a URL of [`crate::s3`] names. Requests are signed with the keys of the environment, which
//! `scripts/test` sets; users are made on SeaweedFS alone, the one server of a run that checks rights.

use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use reqwest::{Client, Response};

const XMLNS: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// A server, asked as its owner.
#[derive(Debug)]
pub struct Buckets {
    endpoint: String,
    owner: AwsCredential,
    client: Client,
}

/// One version of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The object's key.
    pub key: String,
    /// The version's name.
    pub id: String,
    /// Whether a read without a version finds it.
    pub latest: bool,
    /// It is no object: it says that there is none.
    pub marker: bool,
}

/// The keys of a user.
#[derive(Debug, Clone)]
pub struct User {
    /// Its access key.
    pub id: String,
    /// Its secret.
    pub secret: String,
    name: String,
}

impl User {
    /// What a process is told so that it acts as this user.
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        [
            ("AWS_ACCESS_KEY_ID", &self.id),
            ("AWS_SECRET_ACCESS_KEY", &self.secret),
        ]
    }
}

impl Buckets {
    /// The server that the URL of a store names.
    pub fn on(url: &str) -> Self {
        let (_, rest) = url.split_once("endpoint=").expect("an endpoint");
        let variable = |name| std::env::var(name).expect("the keys of the servers are set");
        Self {
            endpoint: rest.split('&').next().unwrap_or_default().to_owned(),
            owner: AwsCredential {
                key_id: variable("AWS_ACCESS_KEY_ID"),
                secret_key: variable("AWS_SECRET_ACCESS_KEY"),
                token: None,
            },
            client: Client::new(),
        }
    }

    /// Whether it checks rights: then there are users and policies.
    pub fn checks_rights(url: &str) -> bool {
        url.contains("/seaweedfs/")
    }

    /// The URL of a store below `history/` in a bucket of this server.
    pub fn url(&self, bucket: &str) -> String {
        let endpoint = &self.endpoint;
        format!(
            "s3://{bucket}/history?endpoint={endpoint}&region=us-east-1&path_style=true&checksum=sha256"
        )
    }

    /// Sends a signed request; `service` is `s3` or `iam`.
    async fn send(
        &self,
        service: &str,
        method: &str,
        target: &str,
        headers: &[(&'static str, &'static str)],
        body: &str,
    ) -> Response {
        let url = format!("{}{target}", self.endpoint);
        let mut request = HttpRequest::new(HttpRequestBody::from(body.to_owned()));
        *request.uri_mut() = url.parse().expect("a URL");
        *request.method_mut() = method.parse().expect("a method");
        for (name, value) in headers {
            let value = value.parse().expect("a header");
            request.headers_mut().insert(*name, value);
        }
        AwsAuthorizer::new(&self.owner, service, "us-east-1")
            .try_authorize(&mut request, None)
            .expect("a request can be signed");
        let mut sent = self
            .client
            .request(request.method().clone(), &url)
            .body(body.to_owned());
        for (name, value) in request.headers() {
            sent = sent.header(name, value);
        }
        sent.send().await.expect("the server answers")
    }

    async fn done(&self, method: &str, target: &str, body: &str) -> String {
        let answer = self.send("s3", method, target, &[], body).await;
        let status = answer.status();
        let said = answer.text().await.expect("a text");
        assert!(status.is_success(), "{target}: {status} {said}");
        said
    }

    async fn make(&self, kind: &str, headers: &[(&'static str, &'static str)]) -> String {
        let bucket = format!("{kind}-{:016x}", rand::random::<u64>());
        let target = format!("/{bucket}");
        let made = self.send("s3", "PUT", &target, headers, "").await;
        assert_eq!(made.status(), 200, "a bucket is made");
        bucket
    }

    /// A new bucket, as the server makes them.
    pub async fn plain(&self) -> String {
        self.make("plain", &[]).await
    }

    /// A new bucket that keeps versions.
    pub async fn versioned(&self) -> String {
        let bucket = self.make("versions", &[]).await;
        self.set_versions(&bucket, "Enabled").await;
        bucket
    }

    /// Has a bucket keep versions, or, `Suspended`, no new ones.
    pub async fn set_versions(&self, bucket: &str, status: &str) {
        let body = format!(
            r#"<VersioningConfiguration xmlns="{XMLNS}"><Status>{status}</Status></VersioningConfiguration>"#
        );
        self.done("PUT", &format!("/{bucket}?versioning="), &body)
            .await;
    }

    /// A new bucket with Object Lock, which nobody can lift for a day.
    pub async fn locked(&self) -> String {
        let lock = [("x-amz-bucket-object-lock-enabled", "true")];
        let bucket = self.make("locked", &lock).await;
        let rule = "<Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule>";
        let body = format!(
            r#"<ObjectLockConfiguration xmlns="{XMLNS}"><ObjectLockEnabled>Enabled</ObjectLockEnabled>{rule}</ObjectLockConfiguration>"#
        );
        self.done("PUT", &format!("/{bucket}?object-lock="), &body)
            .await;
        bucket
    }

    /// Forbids every user `action` below the `prefixes` in a bucket.
    pub async fn forbid(&self, bucket: &str, action: &str, prefixes: &[&str]) {
        let below = prefixes.iter();
        let below: Vec<String> = below
            .map(|prefix| format!(r#""arn:aws:s3:::{bucket}/{prefix}*""#))
            .collect();
        let below = below.join(",");
        let body = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Sid":"Forbidden","Effect":"Deny","Principal":"*",
            "Action":["{action}"],"Resource":[{below}]}}]}}"#
        );
        self.done("PUT", &format!("/{bucket}?policy="), &body).await;
    }

    /// Takes back what was forbidden.
    pub async fn allow(&self, bucket: &str) {
        self.done("DELETE", &format!("/{bucket}?policy="), "").await;
    }

    /// Every version of every object of a bucket, a thousand at most.
    pub async fn versions(&self, bucket: &str) -> Vec<Version> {
        let listed = self.done("GET", &format!("/{bucket}?versions="), "").await;
        assert!(!listed.contains("<IsTruncated>true"), "too many objects");
        let mut versions = Vec::new();
        for (tag, marker) in [("Version", false), ("DeleteMarker", true)] {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            versions.extend(listed.split(&open).skip(1).map(|rest| {
                let one = rest.split(&close).next().unwrap_or_default();
                Version {
                    key: within(one, "Key"),
                    id: within(one, "VersionId"),
                    latest: within(one, "IsLatest") == "true",
                    marker,
                }
            }));
        }
        versions
    }

    /// Deletes one version for good; the status of the answer.
    pub async fn destroy(&self, bucket: &str, version: &Version) -> u16 {
        let target = format!("/{bucket}/{}?versionId={}", version.key, version.id);
        let answer = self.send("s3", "DELETE", &target, &[], "").await;
        answer.status().as_u16()
    }

    /// A header of the answer to a HEAD of an object, if it has it.
    pub async fn header(&self, bucket: &str, key: &str, name: &str) -> Option<String> {
        let target = format!("/{bucket}/{key}");
        let answer = self.send("s3", "HEAD", &target, &[], "").await;
        let value = answer.headers().get(name)?;
        Some(value.to_str().expect("text").to_owned())
    }

    /// A new user who may do nothing.
    pub async fn user(&self) -> User {
        let name = format!("user-{:016x}", rand::random::<u64>());
        self.iam(&format!("Action=CreateUser&UserName={name}"))
            .await;
        let made = self
            .iam(&format!("Action=CreateAccessKey&UserName={name}"))
            .await;
        User {
            id: within(&made, "AccessKeyId"),
            secret: within(&made, "SecretAccessKey"),
            name,
        }
    }

    /// From now on a user may do what `policy` says, and nothing else.
    pub async fn permit(&self, user: &User, policy: &str) {
        let policy: String = url::form_urlencoded::byte_serialize(policy.as_bytes()).collect();
        let name = &user.name;
        self.iam(&format!(
            "Action=PutUserPolicy&UserName={name}&PolicyName=rights&PolicyDocument={policy}"
        ))
        .await;
    }

    async fn iam(&self, form: &str) -> String {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let form = format!("{form}&Version=2010-05-08");
        let answer = self.send("iam", "POST", "/", &headers, &form).await;
        let status = answer.status();
        let said = answer.text().await.expect("a text");
        assert_eq!(status, 200, "{said}");
        said
    }
}

/// The text of the first element of that name; empty if there is none.
fn within(xml: &str, name: &str) -> String {
    let rest = xml.split_once(&format!("<{name}>"));
    let text = rest.and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
    text.map(|(text, _)| text.replace("&#34;", "\"").replace("&quot;", "\""))
        .unwrap_or_default()
}
