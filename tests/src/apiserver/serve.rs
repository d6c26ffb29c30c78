//! Connections: accepted, cut and refused as the switches say.

use std::{convert::Infallible, net::TcpListener, sync::Arc, time::Duration};

use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};
use tokio_rustls::TlsAcceptor;

use super::{control::Control, http::Body};

/// Whoever answers requests.
pub(crate) trait Answers: Send + Sync + 'static {
    /// The switches.
    fn control(&self) -> &Control;

    /// Answers one; never fails, as every failure is an answer.
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send;
}

/// Serves until it is told to stop.
pub(crate) async fn serve<A: Answers>(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    service: Arc<A>,
    mut stopped: oneshot::Receiver<()>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the API server cannot use its listener");
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, or the peer is gone again: there will be other connections.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if service.control().is_paused() {
            // Closed with a reset, as nobody has been listening.
            let _reset = stream.set_zero_linger();
            continue;
        }
        let _faster = stream.set_nodelay(true);
        let (service, acceptor) = (Arc::clone(&service), acceptor.clone());
        tokio::spawn(async move {
            let mut cut = service.control().cut.subscribe();
            let connection = async {
                match acceptor {
                    None => converse(stream, service).await,
                    Some(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => converse(stream, service).await,
                        Err(error) => tracing::debug!(%error, "TLS handshake"),
                    },
                }
            };
            tokio::select! {
                () = connection => {}
                _ = cut.changed() => {}
            }
        });
    }
}

async fn converse<A: Answers>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: Arc<A>) {
    let answer = service_fn(move |request| Arc::clone(&service).answer(request));
    let served =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), answer).await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection");
    }
}
