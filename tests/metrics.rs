//! What the metrics adapter records.

#![cfg(all(feature = "testing", feature = "metrics"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use zc::transport::{
    BoxFuture, Caps, ControlLink, Lane, Offer, OfferContext, Role, Transport, Unavailable, WireupError,
};
use zc::{CloseCode, Fabric, MetricsObserver};

type Values = Arc<Mutex<BTreeMap<String, f64>>>;

/// Sums everything up by name and labels.
#[derive(Default)]
struct Sums {
    values: Values,
    units: Mutex<BTreeMap<String, Option<Unit>>>,
}

struct Cell(Values, String);

impl Cell {
    fn add(&self, value: f64) {
        *self.0.lock().unwrap().entry(self.1.clone()).or_default() += value;
    }
}

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.add(value as f64);
    }
    fn absolute(&self, _value: u64) {}
}

impl GaugeFn for Cell {
    fn increment(&self, value: f64) {
        self.add(value);
    }
    fn decrement(&self, value: f64) {
        self.add(-value);
        if self.0.lock().unwrap()[&self.1] < 0.0 {
            self.0.lock().unwrap().insert(format!("{} was negative", self.1), 1.0);
        }
    }
    fn set(&self, _value: f64) {}
}

impl HistogramFn for Cell {
    /// Counts.
    fn record(&self, _value: f64) {
        self.add(1.0);
    }
}

impl Sums {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Cell(self.values.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
    }

    fn unit(&self, name: &KeyName, unit: Option<Unit>) {
        self.units.lock().unwrap().insert(name.as_str().into(), unit);
    }
}

impl Recorder for Sums {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.unit(&name, unit);
    }
    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.unit(&name, unit);
    }
    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.unit(&name, unit);
    }
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell(key))
    }
}

/// What would be taken, if there were a device.
struct Absent;

impl Transport for Absent {
    fn name(&self) -> &'static str {
        "shm"
    }
    fn probe(&self) -> Result<Caps, Unavailable> {
        Err(Unavailable::NoDevice)
    }
    fn offer(&self, _: &OfferContext) -> Result<Offer, Unavailable> {
        Err(Unavailable::NoDevice)
    }
    fn join<'a>(
        &'a self,
        _: Role,
        _: Offer,
        _: Offer,
        _: &'a mut Option<Box<dyn ControlLink>>,
        _: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async { Err(Unavailable::NoDevice.into()) })
    }
}

async fn one_orderly_and_one_failed() {
    let fabric = Fabric::auto_builder().observer(Arc::new(MetricsObserver::new())).build().unwrap();
    assert!(fabric.connect("zc+mem://metrics-nobody").await.is_err());
    let (client, mut server) = zc::testing::pair(&fabric).await.unwrap();
    client.send(vec![1; 5000]).await.unwrap();
    drop(client);
    while server.recv().await.unwrap().is_some() {}
    drop(server);
    let (client, server) = zc::testing::pair(&fabric).await.unwrap();
    client.close(CloseCode::INTERNAL, "broken").await;
    drop(server);
    // Simulated: the drivers of all four ends have time to end.
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
}

#[test]
fn connections_and_bytes_are_counted() {
    let sums = Sums::default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&sums, || runtime.block_on(one_orderly_and_one_failed()));
    let values = sums.values.lock().unwrap().clone();
    let value = |name: &str| *values.get(name).unwrap_or_else(|| panic!("no {name} in {values:#?}"));
    let closed = "zc_connections_closed_total{role=";
    assert_eq!(value(&format!("{closed}client,transport=mem,outcome=orderly}}")), 2.0);
    assert_eq!(value(&format!("{closed}server,transport=mem,outcome=orderly}}")), 1.0);
    assert_eq!(value(&format!("{closed}server,transport=mem,outcome=failed}}")), 1.0);
    for role in ["client", "server"] {
        let ends = format!("{{role={role},transport=mem}}");
        assert_eq!(value(&format!("zc_connections_opened_total{ends}")), 2.0);
        assert_eq!(value(&format!("zc_connections_open{ends}")), 0.0);
        assert_eq!(value(&format!("zc_handshake_duration_seconds{ends}")), 2.0);
    }
    assert_eq!(value("zc_handshake_failures_total{role=client,stage=connect}"), 1.0);
    assert!(values.keys().all(|name| !name.contains("negative")), "{values:#?}");
    assert_eq!(value("zc_connection_lifetime_seconds{transport=mem}"), 4.0);
    assert_eq!(value("zc_payload_moved_bytes_total{transport=mem}"), 10_000.0, "both ends count");
    let units = sums.units.lock().unwrap();
    assert_eq!(units["zc_payload_moved_bytes_total"], Some(Unit::Bytes));
    assert_eq!(units["zc_connection_lifetime_seconds"], Some(Unit::Seconds));
    assert!(units.keys().all(|name| name.starts_with("zc_")));
    for name in units.keys().filter(|name| name.ends_with("_seconds")) {
        assert_eq!(units[name], Some(Unit::Seconds), "{name}");
    }
}

#[test]
fn fallbacks_are_counted() {
    let sums = Sums::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async {
        let builder = zc::testing::fabric_over(zc::testing::stream_transport()).transport(Arc::new(Absent));
        let fabric = builder.observer(Arc::new(MetricsObserver::new())).build().unwrap();
        let mut listener = fabric.listen("zc://127.0.0.1:0").await.unwrap();
        let uri = listener.local_uri().to_string();
        drop(tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap());
    };
    metrics::with_local_recorder(&sums, || runtime.block_on(test));
    let values = sums.values.lock().unwrap().clone();
    assert_eq!(values.get("zc_fallbacks_total{transport=tcp}"), Some(&2.0), "at both ends: {values:#?}");
}
