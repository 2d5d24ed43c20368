//! Where backups are: an object store and a prefix in it.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Once};

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::directory::Directory;
use super::error::{BackupError, Result};
use super::runtime::OwnRuntime;
use crate::error::Detail;
use crate::vfs::{OsVfs, Vfs, absolute, create_dir_durably};

/// How long one request may take, when the environment does not say (`TIMEOUT` of the store's own settings).
const TIMEOUT: &str = "5m";
/// Beginnings of the environment's settings of the object stores.
const SETTINGS: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// Where backups are: an object store and a prefix in it.
#[derive(Clone, Debug)]
pub struct BackupTarget {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    directory: Option<Directory>,
    runtime: Arc<OwnRuntime>,
}

impl BackupTarget {
    /// From a URL: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `file:///DIR`, or the path of a
    /// directory. Credentials and endpoints come from the environment variables that the stores' own tools use
    /// (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`, …).
    ///
    /// A directory must exist; [`Self::create`] makes it.
    ///
    /// # Errors
    /// `InvalidInput` for a URL that means no object store, or has credentials, `?` or `#` in it, and for a path that begins
    /// as a mistyped URL does (`s3:/`); `Local` for a directory that is not there.
    pub fn parse(url: &str) -> Result<Self> {
        match local_path(url)? {
            Some(dir) => Self::directory(&dir, url),
            None => {
                let known = |key: &String| SETTINGS.iter().any(|known| key.starts_with(known));
                let settings = std::env::vars_os().filter_map(|(key, value)| {
                    Some((
                        key.into_string().ok().filter(known)?.to_ascii_lowercase(),
                        value.into_string().ok()?,
                    ))
                });
                Self::service(url, settings)
            }
        }
    }

    /// As [`Self::parse`], with credentials, endpoint and whatever else there is to set in place of the environment, by the
    /// names that the crate `object_store` gives them (`aws_access_key_id`, `aws_endpoint`, `timeout`, …).
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_with<'a>(url: &str, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        match local_path(url)? {
            Some(dir) => Self::directory(&dir, url),
            None => Self::service(url, settings.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()))),
        }
    }

    /// As [`Self::parse`]; a directory is created when it is missing.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn create(url: &str) -> Result<Self> {
        if let Some(dir) = local_path(url)? {
            create_dir_durably(&OsVfs::new(), &dir)
                .map_err(BackupError::local("could not create the directory for backups", &dir))?;
        }
        Self::parse(url)
    }

    /// The directory of this machine that a URL or a path means; none for a place elsewhere. Whether it exists is not looked at.
    ///
    /// # Errors
    /// `InvalidInput`, as [`Self::parse`].
    pub fn directory_of(url: &str) -> Result<Option<PathBuf>> {
        local_path(url)
    }

    /// From any object store; `name` is how messages call it. A client that keeps connections must not be used elsewhere:
    /// they are driven only while something is done with this target or a clone of it.
    ///
    /// # Errors
    /// `Local` when the system does not allow to begin.
    pub fn from_store(store: Arc<dyn ObjectStore>, prefix: Path, name: impl Into<String>) -> Result<Self> {
        Ok(Self { store, prefix, url: name.into(), directory: None, runtime: Arc::new(OwnRuntime::new()?) })
    }

    /// Says that the object store keeps its objects in this directory of the machine, as [`LocalFileSystem`] does: every name in
    /// it, as far as they are below the target's prefix, is synced before a backup counts, and what a killed process left there
    /// half written is removed. Targets from URLs and paths know it by themselves.
    #[must_use]
    pub fn in_directory(mut self, vfs: Arc<dyn Vfs>, dir: &FilePath) -> Self {
        let folders = self.prefix.parts();
        let root = Directory::new(vfs, dir);
        self.directory = Some(folders.fold(root, |place, folder| place.below(folder.as_ref())));
        self
    }

    fn directory(dir: &FilePath, url: &str) -> Result<Self> {
        if !dir.exists() {
            let detail = Detail::new("there is no such directory of backups").at_path(dir);
            return Err(BackupError::Local(Box::new(
                detail.remedy("Check the path; whoever makes backups creates it."),
            )));
        }
        let store = LocalFileSystem::new_with_prefix(dir).map_err(|e| {
            let detail =
                Detail::new(format!("could not open the directory of the backups: {e}")).at_path(dir);
            BackupError::Local(Box::new(detail.remedy("Check the path.")))
        })?;
        // What was put must be there after a power cut.
        let target = Self::from_store(Arc::new(store.with_fsync(true)), Path::default(), url)?;
        Ok(target.in_directory(Arc::new(OsVfs::new()), dir))
    }

    fn service(text: &str, settings: impl Iterator<Item = (String, String)>) -> Result<Self> {
        let unusable = |why: String| {
            let remedy =
                "Use s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///DIR, or a path.";
            BackupError::invalid(format!("this is no place for backups: {why}"), shown(text), remedy)
        };
        let url = Url::parse(text).map_err(|e| unusable(e.to_string()))?;
        let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|e| unusable(e.to_string()))?;
        install_tls();
        let settings: Vec<_> =
            [("timeout".to_owned(), TIMEOUT.to_owned())].into_iter().chain(settings).collect();
        for (key, value) in &settings {
            if key.contains("endpoint") && shown(value) != *value {
                // It is part of what is said of a request that fails.
                let what = "this endpoint has credentials, ? or # in it, which errors would repeat";
                let remedy = "Set the credentials by their own variables, and the endpoint without.";
                return Err(BackupError::invalid(what, key.to_uppercase(), remedy));
            }
        }
        // Whoever asks knows better what may be done twice, and tries again itself.
        let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        macro_rules! built {
            ($builder:ty) => {{
                let mut builder = <$builder>::new().with_url(url.as_str()).with_retry(once);
                for (key, value) in settings {
                    // Settings of other stores are not ours to know.
                    if let Ok(key) = key.parse() {
                        builder = builder.with_config(key, value);
                    }
                }
                builder.build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
            }};
        }
        let store = match scheme {
            ObjectStoreScheme::AmazonS3 => built!(AmazonS3Builder),
            ObjectStoreScheme::GoogleCloudStorage => built!(GoogleCloudStorageBuilder),
            ObjectStoreScheme::MicrosoftAzure => built!(MicrosoftAzureBuilder),
            _ => return Err(unusable(format!("backups in {}:// are not supported", url.scheme()))),
        };
        Self::from_store(store.map_err(|e| unusable(e.to_string()))?, prefix, text)
    }

    /// The place `folder` below this one, under this URL.
    pub(super) fn below(&self, folder: &str, url: String) -> Self {
        let (store, runtime) = (Arc::clone(&self.store), Arc::clone(&self.runtime));
        let directory = self.directory.as_ref().map(|directory| directory.below(folder));
        Self { store, prefix: self.prefix.clone().join(folder), url, directory, runtime }
    }

    pub(super) fn on_this_machine(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }

    pub(super) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(super) fn runtime(&self) -> &Arc<OwnRuntime> {
        &self.runtime
    }

    pub(super) fn prefix(&self) -> &Path {
        &self.prefix
    }
}

impl fmt::Display for BackupTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// A URL without what may be a secret in it: credentials, and whatever stands behind `?` or `#`.
fn shown(text: &str) -> String {
    let plain = text.split(['?', '#']).next().unwrap_or_default();
    match (plain.split_once("://"), plain.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
        _ => plain.to_owned(),
    }
}

/// Whether a path begins with what may be the scheme of a URL; a single letter is a drive.
fn begins_as_url(path: &str) -> bool {
    path.split_once(":/").is_some_and(|(scheme, _)| {
        scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// The directory that a URL or a path means; none for what is elsewhere.
fn local_path(text: &str) -> Result<Option<PathBuf>> {
    if text.is_empty() {
        // As where a variable is not set that should name it.
        return Err(BackupError::invalid(
            "no place for backups is named",
            text,
            "Name a URL or a directory.",
        ));
    }
    if !text.contains("://") {
        if begins_as_url(text) {
            let remedy = "Write SCHEME://… for a URL; for a directory of this name, put ./ in front of it.";
            return Err(BackupError::invalid("this path begins as a URL does", text, remedy));
        }
        return Ok(Some(absolute(FilePath::new(text))));
    }
    // They would be left out, and another place be meant; and credentials would be in every message.
    let authority = text.split_once("://").and_then(|(_, rest)| rest.split('/').next());
    if text.contains(['?', '#']) || authority.is_some_and(|authority| authority.contains('@')) {
        let what = "a URL of backups has no credentials, no ? and no #";
        let remedy =
            "Leave them out; credentials are set in the environment. Write %3F or %23 for ? or # in a name.";
        return Err(BackupError::invalid(what, shown(text), remedy));
    }
    if !text.starts_with("file:") {
        return Ok(None);
    }
    let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
    path.map(Some).ok_or_else(|| {
        BackupError::invalid("this URL means no directory", text, "Use file:///DIR, or the path itself.")
    })
}

/// The client speaks TLS with the provider of the process; where the program has chosen none, ring.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // An error means that somebody was faster, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
    });
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn urls_say_what_is_wrong_with_them() {
        for (url, why) in [
            ("http://example.com/x", "not supported"),
            ("memory:///", "not supported"),
            ("ftp://example.com/x", "recognise"),
            ("s3://", "no place for backups"),
            ("file://host/x", "means no directory"),
        ] {
            let error = BackupTarget::parse(url).unwrap_err();
            assert!(matches!(error, BackupError::InvalidInput(_)), "{error}");
            assert!(error.to_string().contains(why) && error.to_string().contains(url), "{error}");
        }
        let missing = BackupTarget::parse("/nowhere/at/all").unwrap_err();
        assert!(matches!(missing, BackupError::Local(_)), "{missing}");
    }

    #[test]
    fn services_are_known_by_their_urls() {
        let s3 = BackupTarget::parse("s3://bucket/some/prefix").unwrap();
        assert_eq!(
            (s3.prefix().as_ref(), s3.to_string().as_str()),
            ("some/prefix", "s3://bucket/some/prefix")
        );
        assert!(format!("{:?}", s3.store()).contains("bucket"));
    }
}
