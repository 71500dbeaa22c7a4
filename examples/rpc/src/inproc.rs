//! The tonic service in this process, without a transport: what calls would cost if carrying them were free.

use std::future::poll_fn;
use std::sync::mpsc;
use std::thread::JoinHandle;

use http_body_util::BodyExt;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::Service;

use crate::grpc::GrpcChannel;
use crate::{BoxError, echo, process};

/// The service on a thread of its own, pinned to the first core. It ends when this is dropped.
pub struct Beside {
    runtime: Handle,
    thread: u32,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Beside {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread.
    pub fn start() -> Result<Self, BoxError> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::Builder::new().name("service".to_owned()).spawn(move || {
            process::pin(0);
            // Nobody asks any more: then it ends at once.
            let _ = tell.send(process::this_thread());
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { runtime: handle, thread: told.recv()?, running: Some((stop, thread)) })
    }

    /// The time that its thread has run, nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        process::thread_cpu_ns(self.thread)
    }

    /// Calls the service through tower. Each side encodes its own messages: over a transport it would, too.
    pub fn channel(&self) -> impl GrpcChannel + Clone + use<> {
        let (runtime, service) = (self.runtime.clone(), echo::service());
        tower::service_fn(move |request: http::Request<Body>| {
            let (runtime, mut service) = (runtime.clone(), service.clone());
            async move {
                let (parts, body) = request.into_parts();
                let request = http::Request::from_parts(parts, encoded(body).await?);
                let answering = async move {
                    poll_fn(|cx| Service::<http::Request<Body>>::poll_ready(&mut service, cx)).await?;
                    let (parts, body) = service.call(request).await?.into_parts();
                    Ok::<_, BoxError>(http::Response::from_parts(parts, encoded(body).await?))
                };
                runtime.spawn(answering).await?
            }
        })
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

/// A body of which nothing is left to do. Only for bodies that end without the other side.
async fn encoded(body: Body) -> Result<Body, BoxError> {
    Ok(Body::new(body.collect().await?))
}
