//! The wire between clients and the API, which can be made to break: a relay that, while it is told to, cuts connections in
//! the middle of requests and answers.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Runtime;

/// One chunk in so many is the last of its connection, while connections are cut.
const CUT_ONE_IN: u8 = 4;

/// See the module. It ends with its runtime.
#[derive(Debug, Clone, Default)]
pub struct Wire {
    cutting: Arc<AtomicBool>,
}

impl Wire {
    /// From a unix socket at `near` to one at `far`.
    pub fn unix(runtime: &Runtime, near: &std::path::Path, far: PathBuf) -> io::Result<Self> {
        let wire = Self::default();
        let _context = runtime.enter();
        let listener = UnixListener::bind(near)?;
        let cutting = wire.cutting.clone();
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (far, cutting) = (far.clone(), cutting.clone());
                tokio::spawn(async move {
                    if let Ok(far) = UnixStream::connect(far).await {
                        relay(near, far, &cutting).await;
                    }
                });
            }
        });
        Ok(wire)
    }

    /// From a port of this machine, which is given back, to another.
    pub fn tcp(runtime: &Runtime, far: u16) -> io::Result<(Self, u16)> {
        let wire = Self::default();
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let near = listener.local_addr()?.port();
        let cutting = wire.cutting.clone();
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let cutting = cutting.clone();
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(("127.0.0.1", far)).await {
                        relay(near, far, &cutting).await;
                    }
                });
            }
        });
        Ok((wire, near))
    }

    /// Starts or stops to cut.
    pub fn cut(&self, cutting: bool) {
        self.cutting.store(cutting, Ordering::Release);
    }
}

/// Until one side ends, or it is cut.
async fn relay(
    near: impl AsyncRead + AsyncWrite + Unpin,
    far: impl AsyncRead + AsyncWrite + Unpin,
    cutting: &AtomicBool,
) {
    let ((near_read, near_write), (far_read, far_write)) = (tokio::io::split(near), tokio::io::split(far));
    tokio::select! {
        () = pass(near_read, far_write, cutting) => {}
        () = pass(far_read, near_write, cutting) => {}
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, cutting: &AtomicBool) {
    let mut chunk = vec![0; 16 << 10];
    loop {
        let Ok(n @ 1..) = from.read(&mut chunk).await else { return };
        if cutting.load(Ordering::Acquire) && fastrand::u8(..CUT_ONE_IN) == 0 {
            // A part of it gets through, or nothing.
            let _ = to.write_all(&chunk[..fastrand::usize(..n)]).await;
            return;
        }
        if to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}
