//! Signed tokens (JWT) of somebody the server trusts: who they speak of, proven by a key from a file.
//!
//! `EdDSA`, RS256 and HS256, and only the algorithm its key was configured for: a token does not choose how it is
//! proven. `exp`, `aud`, `sub` and the namespace claim must be there; `nbf` and `iss` count where they are. Keys
//! come from single files or a JWKS file and are read again on SIGHUP and when a file has changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::Value as Json;
use tidelog_wal::Timestamp;

use crate::config::Jwt;
use crate::problem::{Code, Problem};

/// The longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// How far clocks may differ, in seconds.
const LEEWAY: u64 = 30;

/// A key and what it proves.
struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    proves: DecodingKey,
}

/// Whose signed tokens count.
pub(crate) struct Signed {
    settings: Jwt,
    keys: RwLock<Arc<Loaded>>,
}

struct Loaded {
    keys: Vec<Key>,
    /// The files with the times of their last changes.
    files: Vec<(PathBuf, Option<SystemTime>)>,
}

impl std::fmt::Debug for Signed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Signed")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// What a proven token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) subject: String,
    pub(crate) namespace: String,
    pub(crate) issued: Option<Timestamp>,
    pub(crate) expires: Timestamp,
}

/// Whether a bearer token is meant to be a signed one: our own have no dots.
pub(crate) fn looks_signed(token: &str) -> bool {
    token.bytes().filter(|byte| *byte == b'.').count() == 2 && !token.starts_with("tl_")
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|found| found.modified())
        .ok()
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    match name {
        "EdDSA" => Ok(Algorithm::EdDSA),
        "RS256" => Ok(Algorithm::RS256),
        "HS256" => Ok(Algorithm::HS256),
        _ => Err(format!("alg is EdDSA, RS256 or HS256, not {name:?}")),
    }
}

fn load(settings: &Jwt) -> Result<Loaded, String> {
    let mut loaded = Loaded {
        keys: Vec::new(),
        files: Vec::new(),
    };
    for one in &settings.keys {
        loaded.files.push((one.file.clone(), changed(&one.file)));
        let bytes = std::fs::read(&one.file)
            .map_err(|error| format!("cannot read {}: {error}", one.file.display()))?;
        let algorithm = algorithm(&one.alg)?;
        let key = match algorithm {
            Algorithm::EdDSA => DecodingKey::from_ed_pem(&bytes),
            Algorithm::RS256 => DecodingKey::from_rsa_pem(&bytes),
            _ => {
                let secret = bytes.trim_ascii_end();
                if secret.len() < 32 {
                    let file = one.file.display();
                    return Err(format!(
                        "the HS256 secret in {file} is shorter than 32 bytes"
                    ));
                }
                Ok(DecodingKey::from_secret(secret))
            }
        };
        let key = key
            .map_err(|error| format!("{} holds no {} key: {error}", one.file.display(), one.alg))?;
        loaded.keys.push(Key {
            kid: one.kid.clone(),
            algorithm,
            proves: key,
        });
    }
    if let Some(file) = &settings.jwks_file {
        loaded.files.push((file.clone(), changed(file)));
        let bytes = std::fs::read(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let set: JwkSet = serde_json::from_slice(&bytes)
            .map_err(|error| format!("{} is no JWKS: {error}", file.display()))?;
        for jwk in &set.keys {
            if jwk.common.public_key_use == Some(PublicKeyUse::Encryption) {
                continue;
            }
            let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
                (AlgorithmParameters::OctetKeyPair(_), None | Some(KeyAlgorithm::EdDSA)) => {
                    Algorithm::EdDSA
                }
                (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
                (AlgorithmParameters::OctetKey(_), Some(KeyAlgorithm::HS256)) => Algorithm::HS256,
                // A set may hold keys for others.
                _ => continue,
            };
            let key = DecodingKey::from_jwk(jwk)
                .map_err(|error| format!("a key in {} cannot be used: {error}", file.display()))?;
            loaded.keys.push(Key {
                kid: jwk.common.key_id.clone(),
                algorithm,
                proves: key,
            });
        }
    }
    if loaded.keys.is_empty() {
        return Err("no key for signed tokens was found".to_owned());
    }
    Ok(loaded)
}

impl Signed {
    /// Reads the keys.
    pub(crate) fn new(settings: Jwt) -> Result<Self, String> {
        let keys = RwLock::new(Arc::new(load(&settings)?));
        Ok(Self { settings, keys })
    }

    /// Reads the keys again; on an error the old ones stay.
    pub(crate) fn reload(&self) -> Result<(), String> {
        let loaded = load(&self.settings)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        Ok(())
    }

    /// Whether a file has changed since it was read.
    pub(crate) fn is_stale(&self) -> bool {
        let loaded = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        loaded
            .files
            .iter()
            .any(|(file, known)| changed(file) != *known)
    }

    /// Proves a token at `now`.
    pub(crate) fn prove(&self, token: &str, now: Timestamp) -> Result<Claims, Problem> {
        // One sentence for every kind of wrong: a forger learns nothing from it.
        let refused = || Problem::new(Code::Unauthenticated, "the signed token is not valid here");
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused());
        }
        let header = decode_header(token).map_err(|_| refused())?;
        let loaded = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        let fits = |key: &&Key| {
            key.algorithm == header.alg
                && (key.kid.is_none() || header.kid.is_none() || key.kid == header.kid)
        };
        let claims = loaded
            .keys
            .iter()
            .filter(fits)
            .find_map(|key| {
                decode::<Json>(token, &key.proves, &self.validation(key.algorithm)).ok()
            })
            .ok_or_else(refused)?
            .claims;
        let text = |name: &str| {
            claims[name]
                .as_str()
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        // RFC 7519: seconds, with or without a fraction.
        let time = |name: &str| {
            let seconds = claims[name]
                .as_f64()
                .filter(|seconds| (0.0..1e11).contains(seconds))?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "in range by the filter"
            )]
            let micros = (seconds * 1e6) as u64;
            Some(Timestamp::from_micros(micros))
        };
        let leeway = LEEWAY * 1_000_000;
        let expires = time("exp").ok_or_else(refused)?;
        if expires.micros().saturating_add(leeway) <= now.micros() {
            return Err(Problem::new(
                Code::TokenExpired,
                "the signed token has expired",
            ));
        }
        match (&claims["nbf"], time("nbf")) {
            (Json::Null, _) => {}
            (_, Some(from)) if from.micros() <= now.micros().saturating_add(leeway) => {}
            _ => return Err(refused()),
        }
        Ok(Claims {
            subject: text("sub").ok_or_else(refused)?,
            namespace: text(&self.settings.namespace_claim).ok_or_else(refused)?,
            issued: time("iat"),
            expires,
        })
    }

    /// Times are judged by the server's clock above, everything else by the library.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.validate_exp = false;
        let mut required = vec!["exp", "aud", "sub"];
        validation.set_audience(&[&self.settings.audience]);
        if let Some(issuer) = &self.settings.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;
    use crate::config::JwtKey;

    const SECRET: &[u8] = b"a secret of at least thirty-two bytes!";
    const NOW: u64 = 1_800_000_000;

    fn signed(folder: &Path) -> Signed {
        let file = folder.join("hs256");
        std::fs::write(&file, SECRET).expect("written");
        let settings = Jwt {
            audience: "tidelog".to_owned(),
            issuer: Some("https://id.example".to_owned()),
            namespace_claim: "tenant_id".to_owned(),
            jwks_file: None,
            keys: vec![JwtKey {
                alg: "HS256".to_owned(),
                file,
                kid: None,
            }],
        };
        Signed::new(settings).expect("a key")
    }

    fn claims() -> Json {
        json!({ "sub": "ana", "tenant_id": "acme", "aud": "tidelog", "iss": "https://id.example",
                "exp": NOW + 100, "iat": NOW - 10 })
    }

    fn token(claims: &Json) -> String {
        encode(
            &Header::new(Algorithm::HS256),
            claims,
            &EncodingKey::from_secret(SECRET),
        )
        .expect("signed")
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_token_counts_only_with_every_claim_in_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let signed = signed(folder.path());
        let good = signed.prove(&token(&claims()), at(NOW)).expect("good");
        assert_eq!(
            (good.subject.as_str(), good.namespace.as_str()),
            ("ana", "acme")
        );
        assert_eq!(
            (good.issued, good.expires),
            (Some(at(NOW - 10)), at(NOW + 100))
        );
        for missing in ["sub", "tenant_id", "aud", "iss", "exp"] {
            let mut claims = claims();
            claims.as_object_mut().expect("an object").remove(missing);
            assert!(signed.prove(&token(&claims), at(NOW)).is_err(), "{missing}");
        }
        for (name, value) in [
            ("aud", json!("other")),
            ("iss", json!("https://evil.example")),
            ("exp", json!("soon")),
            ("nbf", json!(NOW + 1_000)),
            ("nbf", json!("never")),
            ("sub", json!("")),
            ("sub", json!(7)),
        ] {
            let mut claims = claims();
            claims[name] = value;
            assert!(
                signed.prove(&token(&claims), at(NOW)).is_err(),
                "{name} {}",
                claims[name]
            );
        }
        let late = signed
            .prove(&token(&claims()), at(NOW + 1_000))
            .expect_err("expired");
        assert_eq!(late.code(), "token-expired");
    }

    #[test]
    fn a_token_does_not_choose_its_algorithm() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let signed = signed(folder.path());
        let good = token(&claims());
        let (_, rest) = good.split_once('.').expect("three parts");
        // {"alg":"none"}, and HS512 with the right secret.
        for forged in [
            format!("eyJhbGciOiJub25lIn0.{rest}"),
            format!(
                "eyJhbGciOiJub25lIn0.{}.",
                rest.split('.').next().expect("a part")
            ),
            encode(
                &Header::new(Algorithm::HS512),
                &claims(),
                &EncodingKey::from_secret(SECRET),
            )
            .expect("signed"),
            format!("{good}x"),
            "a.b.c".to_owned(),
        ] {
            assert!(signed.prove(&forged, at(NOW)).is_err(), "{forged}");
        }
    }

    /// Base64 as a set of keys has it.
    fn text(bytes: &[u8]) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
    }

    /// A pair for RS256: what signs, and modulus and exponent of what proves.
    fn rsa() -> (EncodingKey, String, String) {
        let size = rcgen::RsaKeySize::_2048;
        let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
        let pair = pair.expect("a key pair");
        let signs = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).expect("our key");
        // A sequence of two integers (PKCS #1): the modulus behind 9 bytes, the exponent behind 2 more.
        let public = pair.public_key_raw();
        assert_eq!(public.len(), 9 + 256 + 2 + 3, "{public:?}");
        (
            signs,
            text(&public[9..9 + 256]),
            text(&public[9 + 256 + 2..]),
        )
    }

    /// A pair for `EdDSA`: what signs, and what proves.
    fn ed25519() -> (EncodingKey, String) {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key pair");
        let signs = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).expect("our key");
        (signs, text(pair.public_key_raw()))
    }

    fn token_by(algorithm: Algorithm, kid: Option<&str>, key: &EncodingKey) -> String {
        let mut header = Header::new(algorithm);
        header.kid = kid.map(str::to_owned);
        encode(&header, &claims(), key).expect("signed")
    }

    /// Goal: the keys of a JWKS file count by name and algorithm, those meant for something else do not, and a file that
    /// is replaced is noticed: the old keys end. Method: a set as an identity provider has it, with keys of three kinds
    /// that prove tokens and three that do not.
    #[test]
    fn keys_of_a_set_count_for_what_they_are_meant_until_the_file_is_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("jwks.json");
        let (rsa, n, e) = rsa();
        let (sealing, sealing_n, sealing_e) = self::rsa();
        let (ed, x) = ed25519();
        let (other, other_x) = ed25519();
        let set = json!({ "keys": [
            { "kty": "RSA", "kid": "r", "use": "sig", "alg": "RS256", "n": n, "e": e },
            { "kty": "OKP", "kid": "e", "crv": "Ed25519", "x": x },
            { "kty": "OKP", "kid": "other", "crv": "Ed25519", "x": other_x },
            { "kty": "oct", "kid": "h", "alg": "HS256", "k": text(SECRET) },
            { "kty": "EC", "kid": "c", "crv": "P-256", "alg": "ES256", "x": text(&[1; 32]), "y": text(&[2; 32]) },
            { "kty": "RSA", "kid": "strong", "alg": "RS512", "n": n, "e": e },
            { "kty": "RSA", "kid": "sealing", "use": "enc", "n": sealing_n, "e": sealing_e },
        ] });
        std::fs::write(&file, set.to_string()).expect("written");
        let settings = Jwt {
            audience: "tidelog".to_owned(),
            issuer: None,
            namespace_claim: "tenant_id".to_owned(),
            jwks_file: Some(file.clone()),
            keys: Vec::new(),
        };
        let signed = Signed::new(settings).expect("keys");
        let counts = |token: &str| signed.prove(token, at(NOW)).is_ok();
        let secret = EncodingKey::from_secret(SECRET);
        let (rs, hs) = (Algorithm::RS256, Algorithm::HS256);
        for kid in [Some("r"), None] {
            assert!(counts(&token_by(rs, kid, &rsa)), "{kid:?}");
        }
        for (kid, key) in [("e", &ed), ("other", &other)] {
            assert!(counts(&token_by(Algorithm::EdDSA, Some(kid), key)), "{kid}");
            assert!(
                counts(&token_by(Algorithm::EdDSA, None, key)),
                "{kid} unnamed"
            );
        }
        assert!(counts(&token_by(hs, Some("h"), &secret)));
        for (why, token) in [
            (
                "a key of that set by another name",
                token_by(Algorithm::EdDSA, Some("other"), &ed),
            ),
            ("a name that is not there", token_by(rs, Some("x"), &rsa)),
            (
                "a key meant for sealing",
                token_by(rs, Some("sealing"), &sealing),
            ),
            ("the same without its name", token_by(rs, None, &sealing)),
            (
                "an algorithm that is not ours",
                token_by(Algorithm::RS512, Some("strong"), &rsa),
            ),
            (
                "a key for that other algorithm",
                token_by(rs, Some("strong"), &rsa),
            ),
        ] {
            assert!(!counts(&token), "{why}");
        }
        assert!(!signed.is_stale());

        let set =
            json!({ "keys": [{ "kty": "OKP", "kid": "other", "crv": "Ed25519", "x": other_x }] });
        std::fs::write(&file, set.to_string()).expect("written");
        let written = std::fs::File::options().append(true).open(&file);
        let later = changed(&file).expect("a time") + std::time::Duration::from_secs(7);
        written.expect("a file").set_modified(later).expect("set");
        assert!(signed.is_stale());
        assert!(counts(&token_by(rs, Some("r"), &rsa)), "not read again yet");
        signed.reload().expect("good keys");
        assert!(!signed.is_stale());
        assert!(!counts(&token_by(rs, Some("r"), &rsa)));
        assert!(counts(&token_by(Algorithm::EdDSA, Some("other"), &other)));
    }

    #[test]
    fn keys_are_read_again_and_a_bad_file_changes_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let signed = signed(folder.path());
        let old = token(&claims());
        let file = folder.path().join("hs256");
        std::fs::write(&file, b"short").expect("written");
        assert!(signed.reload().is_err());
        assert!(signed.prove(&old, at(NOW)).is_ok());
        std::fs::write(&file, b"another secret of at least thirty-two bytes").expect("written");
        signed.reload().expect("a good key");
        assert!(signed.prove(&old, at(NOW)).is_err());
        assert!(!signed.is_stale());
    }
}
