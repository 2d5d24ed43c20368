//! An S3 server in this process, on a port that the system chooses, over a directory.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::{self, JoinHandle};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use laminar_storage::backup::BackupTarget;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The credentials.
pub const ACCESS: &str = "AKIDEXAMPLE";
pub const SECRET: &str = "a-secret-of-the-tests";
/// The bucket.
pub const BUCKET: &str = "backups";

/// The server; it ends when this is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one that keeps its objects in a directory.
    pub fn start(root: &Path) -> Self {
        std::fs::create_dir_all(root.join(BUCKET)).unwrap();
        let service = {
            let mut builder = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
            builder.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
            builder.build()
        };
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
                    let service = service.clone();
                    tokio::spawn(async move {
                        let http = Builder::new(TokioExecutor::new());
                        // A connection that breaks off is the client's to notice.
                        let _ = http.serve_connection(TokioIo::new(socket), service).await;
                    });
                }
            });
        });
        Self { address: told.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
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
        let endpoint = self.endpoint();
        let settings = [
            ("aws_endpoint", endpoint.as_str()),
            ("aws_allow_http", "true"),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", ACCESS),
            ("aws_secret_access_key", secret),
        ];
        BackupTarget::parse_with(&format!("s3://{BUCKET}/{prefix}"), settings).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
