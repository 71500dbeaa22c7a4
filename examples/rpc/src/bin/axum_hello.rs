//! A JSON service with axum: over TCP for curl, and over zc for everyone else.
//!
//! ```text
//! axum_hello                                        serves both, and calls itself over zc
//! axum_hello server zc://127.0.0.1:7000 127.0.0.1:8000
//! axum_hello client zc://127.0.0.1:7000 World
//! curl http://127.0.0.1:8000/hello/World
//! ```

#![allow(clippy::print_stdout, reason = "a program")]

use axum::extract::{Json, Path};
use axum::routing::{get, post};
use axum::{Router, body::Bytes};
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use serde::{Deserialize, Serialize};
use tower::ServiceExt;
use zc::Fabric;
use zc_examples_rpc::{BoxError, process};
use zc_http::Channel;

#[derive(Debug, Serialize, Deserialize)]
struct Greeting {
    text: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Sum {
    numbers: Vec<i64>,
}

fn router() -> Router {
    let hello = |Path(name): Path<String>| async move { Json(Greeting { text: format!("Hello, {name}!") }) };
    let sum = |Json(Sum { numbers }): Json<Sum>| async move { Json(numbers.iter().sum::<i64>()) };
    Router::new().route("/hello/{name}", get(hello)).route("/sum", post(sum))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => both().await,
        ["server", uri, address] => serve(uri, address).await,
        ["client", uri, name] => client(uri, name).await,
        _ => Err("usage: axum_hello [server URI ADDRESS | client URI NAME]".into()),
    }
}

async fn serve(uri: &str, address: &str) -> Result<(), BoxError> {
    let listener = Fabric::auto()?.listen(uri).await?;
    let tcp = tokio::net::TcpListener::bind(address).await?;
    println!("{}\nhttp://{}/hello/World", listener.local_uri(), tcp.local_addr()?);
    // The same router, twice.
    tokio::select! {
        served = axum::serve(tcp, router()) => served?,
        () = zc_http::Server::new().serve_with_shutdown(listener, router(), process::stopped(false)) => {}
    }
    Ok(())
}

async fn client(uri: &str, name: &str) -> Result<(), BoxError> {
    let channel = Channel::new(&Fabric::auto()?, uri)?;
    let request = Request::get(format!("/hello/{name}")).body(Full::new(Bytes::new()))?;
    let greeting: Greeting = call(&channel, request).await?;
    println!("{}", greeting.text);
    let numbers = serde_json::to_vec(&Sum { numbers: vec![1, 2, 3, 36] })?;
    let request = Request::post("/sum").header(header::CONTENT_TYPE, "application/json");
    let sum: i64 = call(&channel, request.body(Full::new(numbers.into()))?).await?;
    println!("the sum is {sum}");
    Ok(())
}

async fn call<T: serde::de::DeserializeOwned>(
    channel: &Channel,
    request: Request<Full<Bytes>>,
) -> Result<T, BoxError> {
    let response = channel.clone().oneshot(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(serde_json::from_slice(&body)?)
}

async fn both() -> Result<(), BoxError> {
    let listener = Fabric::auto()?.listen("zc://127.0.0.1:0").await?;
    let uri = listener.local_uri().to_string();
    tokio::select! {
        () = zc_http::Server::new().serve(listener, router()) => Ok(()),
        done = client(&uri, "World") => done,
    }
}
