//! What is tested, and on what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::runtime::Runtime;

use zc::memory::Usage;
use zc::transport::{Caps, LaneLimits, Scope};
use zc::{BufPool, Connection, ConnectionOptions, Deadlines, FabricBuilder, Listener};

use crate::run::{GUARD, Skipped};

/// The largest message of the suite, bytes.
const MAX_MESSAGE: usize = 64 << 20;
/// The most memory that one end may map.
const POOL_BYTES: usize = 512 << 20;
/// Connections opened and closed by one behaviour.
const CONNECTIONS: usize = 2000;

/// A transport under test.
///
/// ```
/// use zc_conformance::{Setup, behaviours};
///
/// let setup = Setup::new(zc::Fabric::auto_builder, "zc+mem://{}")
///     .max_message(1 << 20)
///     .connections(100)
///     .without("a_slow_peer_is_not_declared_dead", "takes seconds");
/// zc_conformance::run("doc::close_tells_code_and_reason", setup, behaviours::close_tells_code_and_reason);
/// ```
#[derive(Clone)]
pub struct Setup {
    builder: Arc<dyn Fn() -> FabricBuilder + Send + Sync>,
    /// The listening side's, if it is another one.
    server: Option<Arc<dyn Fn() -> FabricBuilder + Send + Sync>>,
    one_thread: bool,
    uri: String,
    max_message: usize,
    connections: usize,
    without: BTreeMap<&'static str, &'static str>,
    absent: Option<&'static str>,
}

impl Setup {
    /// `builder` names transports and links; the suite sets pool, limits, options and deadlines itself.
    ///
    /// `uri` is where each behaviour listens: with port 0, or with `{}` where a unique name belongs, as in
    /// `zc+unix://@{}`.
    pub fn new(builder: impl Fn() -> FabricBuilder + Send + Sync + 'static, uri: impl Into<String>) -> Self {
        Self {
            builder: Arc::new(builder),
            server: None,
            one_thread: false,
            uri: uri.into(),
            max_message: MAX_MESSAGE,
            connections: CONNECTIONS,
            without: BTreeMap::new(),
            absent: None,
        }
    }

    /// Has the listening side use other transports than the connecting one.
    pub fn server(mut self, builder: impl Fn() -> FabricBuilder + Send + Sync + 'static) -> Self {
        self.server = Some(Arc::new(builder));
        self
    }

    /// Runs everything on a runtime of one thread.
    pub fn on_one_thread(mut self) -> Self {
        self.one_thread = true;
        self
    }

    /// Sends no message larger than this, for transports that are slow on purpose.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }

    /// Opens and closes so many connections instead of 2000.
    pub fn connections(mut self, count: usize) -> Self {
        self.connections = count;
        self
    }

    /// Leaves a behaviour out; the reason is shown.
    pub fn without(mut self, behaviour: &'static str, why: &'static str) -> Self {
        self.without.insert(behaviour, why);
        self
    }

    /// Leaves all behaviours out, where there is nothing to test; the reason is shown.
    pub fn absent(mut self, why: &'static str) -> Self {
        self.absent = Some(why);
        self
    }

    pub(crate) fn left_out(&self, behaviour: &str) -> Option<&'static str> {
        self.absent.or_else(|| self.without.get(behaviour).copied())
    }

    fn unique_uri(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        self.uri.replace("{}", &format!("conformance-{}-{n}", std::process::id()))
    }
}

/// What a behaviour works with: the setup, and a pool for either end that is watched.
///
/// ```
/// use zc_conformance::{Bench, Setup, Verdict, behaviours};
///
/// /// What `suite!` makes of a behaviour: the bench is all that it is given.
/// async fn twice(bench: &Bench) -> Verdict {
///     behaviours::half_close_in_both_orders(bench).await?;
///     behaviours::half_close_in_both_orders(bench).await
/// }
/// zc_conformance::run("doc::twice", Setup::new(zc::Fabric::auto_builder, "zc+mem://{}"), twice);
/// ```
pub struct Bench {
    setup: Setup,
    name: &'static str,
    client_pool: BufPool,
    server_pool: BufPool,
}

impl Bench {
    pub(crate) fn new(setup: Setup, name: &'static str) -> Self {
        let pool = || BufPool::builder().max_bytes(POOL_BYTES).build();
        Self { setup, name, client_pool: pool(), server_pool: pool() }
    }

    /// The behaviour's whole path.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn max_message(&self) -> usize {
        self.setup.max_message
    }

    pub(crate) fn connections(&self) -> usize {
        self.setup.connections
    }

    pub(crate) fn runtime(&self) -> Runtime {
        let mut builder = match self.setup.one_thread {
            true => tokio::runtime::Builder::new_current_thread(),
            false => tokio::runtime::Builder::new_multi_thread(),
        };
        // Two workers: enough for races.
        builder.worker_threads(2).enable_all().build().expect("a runtime")
    }

    fn prepared(&self, builder: &dyn Fn() -> FabricBuilder) -> FabricBuilder {
        // Nothing fails because the machine is busy.
        let mut deadlines = Deadlines::default();
        deadlines.connect = GUARD;
        deadlines.hello = GUARD;
        deadlines.offers = GUARD;
        deadlines.join = GUARD;
        deadlines.total = GUARD;
        builder().options(options()).deadlines(deadlines)
    }

    /// The connecting side.
    pub(crate) fn client(&self) -> FabricBuilder {
        self.prepared(&*self.setup.builder).pool(self.client_pool.clone())
    }

    /// The listening side.
    pub(crate) fn server(&self) -> FabricBuilder {
        let builder = self.setup.server.as_ref().unwrap_or(&self.setup.builder);
        self.prepared(&**builder).pool(self.server_pool.clone())
    }

    pub(crate) async fn listen(&self, server: FabricBuilder) -> Listener {
        server.build().unwrap().listen(&self.setup.unique_uri()).await.unwrap()
    }

    pub(crate) async fn pair_of(
        &self,
        client: FabricBuilder,
        server: FabricBuilder,
    ) -> (Connection, Connection) {
        let mut listener = self.listen(server).await;
        let uri = listener.local_uri().to_string();
        let client = client.build().unwrap();
        tokio::try_join!(client.connect(&uri), listener.accept()).unwrap()
    }

    pub(crate) async fn pair(&self) -> (Connection, Connection) {
        self.pair_of(self.client(), self.server()).await
    }

    /// Both ends with these limits.
    pub(crate) async fn pair_within(&self, limits: LaneLimits) -> (Connection, Connection) {
        self.pair_of(self.client().limits(limits), self.server().limits(limits)).await
    }

    /// What the transport of this connection claims.
    pub(crate) fn claims(&self, connection: &Connection) -> Caps {
        let fabric = self.client().build().unwrap();
        let chosen = connection.report().chosen();
        let found = fabric.probe().into_iter().find(|(name, _)| *name == chosen);
        found.unwrap().1.unwrap()
    }

    /// Skips unless two processes can be connected.
    pub(crate) async fn needs_processes(&self) -> Result<(), Skipped> {
        let (client, _server) = self.pair().await;
        match self.claims(&client).scope {
            Scope::Process => Err(Skipped("the transport stays inside one process".into())),
            _ => Ok(()),
        }
    }

    pub(crate) fn server_pool(&self) -> &BufPool {
        &self.server_pool
    }

    /// Bytes lent by both pools.
    pub(crate) fn in_use_bytes(&self) -> u64 {
        self.client_pool.stats().in_use_bytes + self.server_pool.stats().in_use_bytes
    }

    /// Who still has buffers.
    pub(crate) fn outstanding(&self) -> Vec<(&'static str, Usage)> {
        let pools = [&self.client_pool, &self.server_pool];
        pools.into_iter().flat_map(BufPool::outstanding_by_origin).collect()
    }
}

/// Without keepalive: its pings would hide a wake-up that was lost.
pub(crate) fn options() -> ConnectionOptions {
    let mut options = ConnectionOptions::default();
    options.keepalive_interval = Duration::ZERO;
    options.drain = Duration::from_secs(10);
    options
}

/// A receive window of so many bytes.
pub(crate) fn window(bytes: u32) -> LaneLimits {
    let mut limits = LaneLimits::default();
    limits.recv_window = bytes;
    limits
}
