//! What stands in front of a real API server, so that it can be away, slow or broken on demand as the lab's own can.

use std::{convert::Infallible, io, net::TcpListener, sync::Arc, thread};

use anyhow::Context;
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    control::Control,
    http::{Body, refuse},
    remote::Remote,
    serve::{Answers, serve},
    status::ApiError,
    tls::Tls,
};

/// A server that hands requests on to another one, unless it is told otherwise; on a thread of its own.
pub(crate) struct Front {
    control: Arc<Control>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Front {
    pub(crate) fn start(
        listener: TcpListener,
        tls: Tls,
        control: Arc<Control>,
        behind: Remote,
    ) -> anyhow::Result<Self> {
        listener.set_nonblocking(true).context("listener")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let handing_on = Arc::new(HandingOn { control: Arc::clone(&control), behind });
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("API server's front".to_owned()).spawn(move || {
            runtime.block_on(serve(listener, Some(tls.acceptor), handing_on, stopped));
            runtime.shutdown_background();
        })?;
        Ok(Self { control, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // One that has ended already needs no telling.
            let _told = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread of the API server's front panicked");
        }
    }
}

struct HandingOn {
    control: Arc<Control>,
    behind: Remote,
}

impl Answers for HandingOn {
    fn control(&self) -> &Control {
        &self.control
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        self.control.log(format!("{} {}", request.method(), request.uri()));
        let delay = self.control.settings().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Ok(match self.hand_on(request).await {
            Ok(response) => response,
            Err(error) => refuse(&error),
        })
    }
}

impl HandingOn {
    async fn hand_on(&self, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        if let Some(status) = self.control.take_failure() {
            return Err(ApiError::injected(status));
        }
        let given = request.headers().get(AUTHORIZATION).and_then(|it| it.to_str().ok());
        let given = given.and_then(|it| it.strip_prefix("Bearer ")).map(str::trim);
        if given.is_none() || given != self.control.settings().token.as_deref() {
            return Err(ApiError::unauthorized());
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|error| ApiError::bad_request(error.to_string()))?.to_bytes();
        let mut onward = Request::builder().method(head.method).uri(head.uri);
        for name in [ACCEPT, CONTENT_TYPE] {
            if let Some(value) = head.headers.get(&name) {
                onward = onward.header(name, value);
            }
        }
        let onward = onward.body(body.to_vec()).map_err(|error| ApiError::bad_request(error.to_string()))?;
        let (head, pieces) = self.behind.hand_on(onward, self.control.broken.subscribe()).await?;
        let mut answer = Response::builder().status(head.status);
        for name in [CONTENT_TYPE, RETRY_AFTER] {
            if let Some(value) = head.headers.get(&name) {
                answer = answer.header(name, value);
            }
        }
        let pieces = stream::unfold(pieces, |mut pieces: Pieces| async {
            pieces.recv().await.map(|piece| (piece.map(Frame::data), pieces))
        });
        let refused = |_| Response::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed());
        Ok(answer.body(StreamBody::new(pieces).boxed()).unwrap_or_else(refused))
    }
}

/// A body on its way.
pub(crate) type Pieces = mpsc::Receiver<io::Result<Bytes>>;
