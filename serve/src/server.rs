//! Connections: how many, for how long, with TLS or without.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::options::Bounds;
use crate::routes::App;

/// How long to wait where the system has no room for another connection.
const WITHOUT_ROOM: Duration = Duration::from_millis(50);

/// Connections by address.
type Addresses = Arc<Mutex<HashMap<IpAddr, u32>>>;

/// An open connection, counted as long as it lives.
struct Counted {
    address: IpAddr,
    addresses: Addresses,
    app: Arc<App>,
    _permit: OwnedSemaphorePermit,
}

impl Counted {
    /// Counts a connection, unless there are too many.
    fn new(
        address: IpAddr,
        addresses: &Addresses,
        all: &Arc<Semaphore>,
        app: &Arc<App>,
    ) -> Option<Self> {
        let permit = Arc::clone(all).try_acquire_owned().ok()?;
        let mut counts = addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= app.bounds().max_connections_per_address {
            return None;
        }
        *count += 1;
        app.metrics().connections.inc();
        Some(Self {
            address,
            addresses: Arc::clone(addresses),
            app: Arc::clone(app),
            _permit: permit,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.app.metrics().connections.dec();
        let mut counts = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Reads a certificate and its key.
pub(crate) fn tls(certificate: &Path, key: &Path) -> anyhow::Result<TlsAcceptor> {
    let open = |path: &Path| {
        File::open(path)
            .map(BufReader::new)
            .with_context(|| path.display().to_string())
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(open(certificate)?).collect();
    let chain = chain.with_context(|| certificate.display().to_string())?;
    if chain.is_empty() {
        bail!("{}: expected a certificate, PEM", certificate.display());
    }
    let private =
        PrivateKeyDer::from_pem_reader(open(key)?).with_context(|| key.display().to_string())?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Answers until `end` comes, then what has been asked.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    tls: Option<TlsAcceptor>,
    end: impl Future<Output = ()>,
) {
    let bounds = *app.bounds();
    let all = Arc::new(Semaphore::new(bounds.max_connections as usize));
    let (addresses, graceful) = (Addresses::default(), GracefulShutdown::new());
    let routes = Arc::clone(&app).routes();
    tokio::pin!(end);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => break,
        };
        let Ok((stream, from)) = accepted else {
            sleep(WITHOUT_ROOM).await;
            continue;
        };
        // Closed at once: an answer would take what there is too little of.
        let Some(counted) = Counted::new(from.ip(), &addresses, &all, &app) else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(bounds.answer_timeout));
        let stream = Box::pin(stream);
        let (routes, watcher, tls) = (routes.clone(), graceful.watcher(), tls.clone());
        tokio::spawn(async move {
            let _counted = counted;
            match tls {
                None => answer(stream, routes, &bounds, watcher).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = timeout(bounds.header_timeout, tls.accept(stream)).await
                    {
                        answer(stream, routes, &bounds, watcher).await;
                    }
                }
            }
        });
    }
    drop(listener);
    let _ = timeout(bounds.request_timeout, graceful.shutdown()).await;
}

/// Answers the requests of a connection.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: Router,
    bounds: &Bounds,
    watcher: Watcher,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Counts from the last answer, so that it ends idle connections as well.
        .header_read_timeout(bounds.header_timeout)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // A client that breaks off is no error of this server.
    let _ = watcher.watch(connection).await;
}

/// Binds to an address.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("listening at {address} (another port: --port)"))
}
