//! The S3 server of the tests, for trying backups by hand: `s3-server DIR` keeps a bucket in a directory until it is killed, and
//! prints what a client needs in its environment, then the place for backups.

use std::path::Path;

use laminar_backup_tests::server::{ACCESS, BUCKET, SECRET, Server};

fn main() {
    let Some(dir) = std::env::args().nth(1) else { return eprintln!("usage: s3-server DIR") };
    let server = Server::start(Path::new(&dir));
    println!("export AWS_ENDPOINT={} AWS_ALLOW_HTTP=true AWS_REGION=us-east-1", server.endpoint());
    println!("export AWS_ACCESS_KEY_ID={ACCESS} AWS_SECRET_ACCESS_KEY={SECRET}");
    println!("place=s3://{BUCKET}/job");
    loop {
        std::thread::park();
    }
}
