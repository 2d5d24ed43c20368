//! An S3 server in this process, on a port that the system chooses, over a directory.
//!
//! Google Cloud Storage has an API that is S3's in all that backups use, but for the condition that an object is not there
//! yet and for the versions of objects. [`Server::start_google`] translates these, so that clients of the one can be tried on a
//! server of the other. It shows that our requests and what we make of the answers fit what Google documents, and nothing
//! of how Google's servers behave.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::{self, JoinHandle};

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue, IF_NONE_MATCH};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use laminar_storage::backup::BackupTarget;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::proxy::Proxy;

/// The credentials.
pub const ACCESS: &str = "AKIDEXAMPLE";
pub const SECRET: &str = "a-secret-of-the-tests";
/// The bucket.
pub const BUCKET: &str = "backups";

/// In a request for Google: only if the object has this generation, where 0 means that there is none.
static IF_GENERATION: HeaderName = HeaderName::from_static("x-goog-if-generation-match");
/// In Google's answers: the version of an object.
static GENERATION: HeaderName = HeaderName::from_static("x-goog-generation");

/// The server; it ends when this is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one that keeps its objects in a directory.
    pub fn start(root: &Path) -> Self {
        let mut builder = S3ServiceBuilder::new(files(root));
        builder.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
        let service = builder.build();
        Self::serve(move |request| answer(service.clone(), request))
    }

    /// As [`Self::start`], for clients of Google Cloud Storage, whoever they are.
    pub fn start_google(root: &Path) -> Self {
        let service = S3ServiceBuilder::new(files(root)).build();
        Self::serve(move |mut request: Request<Incoming>| {
            // Google's tokens mean nothing to S3.
            request.headers_mut().remove(AUTHORIZATION);
            if let Some(generation) = request.headers_mut().remove(&IF_GENERATION) {
                assert_eq!(generation, "0", "backups replace nothing");
                request.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
            }
            let answered = answer(service.clone(), request);
            async move {
                let mut response = answered.await?;
                response.headers_mut().insert(&GENERATION, HeaderValue::from_static("1"));
                Ok(response)
            }
        })
    }

    fn serve<F>(answers: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = Result<Response<Body>, HttpError>> + Send + 'static,
    {
        let (stop, mut stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    let socket = tokio::select! {
                        accepted = listener.accept() => accepted.unwrap().0,
                        _ = &mut stopped => break,
                    };
                    let answers = answers.clone();
                    tokio::spawn(async move {
                        let http = Builder::new(TokioExecutor::new());
                        // A connection that breaks off is the client's to notice.
                        let _ = http.serve_connection(TokioIo::new(socket), service_fn(answers)).await;
                    });
                }
            });
        });
        Self { address: told.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL that clients are configured with.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where a client finds it.
    pub fn target(&self, prefix: &str) -> BackupTarget {
        self.target_as(prefix, SECRET)
    }

    /// As [`Self::target`], with another secret.
    pub fn target_as(&self, prefix: &str, secret: &str) -> BackupTarget {
        Self::target_at(&self.endpoint(), prefix, secret)
    }

    /// Where a client finds it whose requests go through a proxy.
    pub fn target_through(&self, prefix: &str, proxy: &Proxy) -> BackupTarget {
        Self::target_at(&format!("http://{}", proxy.address()), prefix, SECRET)
    }

    fn target_at(endpoint: &str, prefix: &str, secret: &str) -> BackupTarget {
        let settings = [
            ("aws_endpoint", endpoint),
            ("aws_allow_http", "true"),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", ACCESS),
            ("aws_secret_access_key", secret),
        ];
        BackupTarget::parse_with(&format!("s3://{BUCKET}/{prefix}"), settings).unwrap()
    }

    /// Where a client of Google Cloud Storage finds it, if it was started for those.
    pub fn google_target(&self, prefix: &str) -> BackupTarget {
        let endpoint = self.endpoint();
        // A key that asks nobody for a token.
        let key = format!(
            r#"{{"private_key":"","private_key_id":"","client_email":"","disable_oauth":true,"gcs_base_url":"{endpoint}"}}"#
        );
        let settings = [("google_service_account_key", key.as_str())];
        BackupTarget::parse_with(&format!("gs://{BUCKET}/{prefix}"), settings).unwrap()
    }
}

/// What the server keeps.
fn files(root: &Path) -> FileSystem {
    std::fs::create_dir_all(root.join(BUCKET)).unwrap();
    FileSystem::new(root).unwrap()
}

async fn answer(service: S3Service, request: Request<Incoming>) -> Result<Response<Body>, HttpError> {
    service.call(request.map(Body::from)).await
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
