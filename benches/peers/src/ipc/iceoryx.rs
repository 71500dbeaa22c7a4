//! What both patterns of iceoryx2 share: a node with a prefix of this run, so that nothing is left behind.

use iceoryx2::prelude::*;

use crate::Result;
use crate::job::Job;

pub(super) type IpcNode = Node<ipc::Service>;

pub(super) fn node(job: &Job) -> Result<IpcNode> {
    set_log_level(LogLevel::Error);
    let directory = job.directory().join("iceoryx2");
    std::fs::create_dir_all(&directory)?;
    let mut config = Config::default();
    config.global.prefix = FileName::new(format!("{}_", job.tag).as_bytes())?;
    config.global.set_root_path(&Path::new(directory.as_os_str().as_encoded_bytes())?);
    Ok(NodeBuilder::new().config(&config).signal_handling_mode(SignalHandlingMode::Disabled).create()?)
}

/// A name for the points of this job: what a killed one left cannot be taken for it.
pub(super) fn service(job: &Job, direction: &str, client_id: u32) -> Result<ServiceName> {
    Ok(format!("{}/{:?}/{}/{client_id}/{direction}", job.contender, job.test, job.size)
        .as_str()
        .try_into()?)
}
