//! libibverbs, loaded once and kept for the life of the process.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use zc_core::transport::Unavailable;

use super::abi::*;

/// The file that the loader looks for.
const LIBRARY: &str = "libibverbs.so.1";

macro_rules! functions {
    ($($name:ident as $symbol:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions that are no inline functions of the header.
        pub(crate) struct Verbs {
            $(pub(crate) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            /// Never unloaded: the fields above lie in it.
            _library: Library,
        }

        impl Verbs {
            /// Loads the library of this name.
            fn open(name: &'static str) -> Result<Self, Unavailable> {
                let missing = |error: libloading::Error| {
                    tracing::debug!(%error, "libibverbs can't be used");
                    Unavailable::LibraryMissing { library: name }
                };
                // SAFETY: what runs while it is loaded are the initialisers of the system's own library; nothing of
                // ours is in its hands yet (M1).
                let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(missing)?;
                $(
                    // SAFETY: the header declares the function so; the library stays loaded as long as the pointer
                    // is reachable, as both are fields of one static value (M4).
                    let $name = unsafe {
                        let found = library.get::<unsafe extern "C" fn($($arg),*) $(-> $ret)?>(
                            concat!(stringify!($symbol), "\0").as_bytes(),
                        );
                        *found.map_err(missing)?
                    };
                )*
                Ok(Self { $($name,)* _library: library })
            }
        }
    };
}

functions! {
    fork_init as ibv_fork_init: fn() -> c_int;
    get_device_list as ibv_get_device_list: fn(*mut c_int) -> *mut *mut ibv_device;
    free_device_list as ibv_free_device_list: fn(*mut *mut ibv_device);
    get_device_name as ibv_get_device_name: fn(*mut ibv_device) -> *const c_char;
    open_device as ibv_open_device: fn(*mut ibv_device) -> *mut ibv_context;
    close_device as ibv_close_device: fn(*mut ibv_context) -> c_int;
    query_device as ibv_query_device: fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    query_port as ibv_query_port: fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    query_gid_table as _ibv_query_gid_table:
        fn(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize;
    get_async_event as ibv_get_async_event: fn(*mut ibv_context, *mut ibv_async_event) -> c_int;
    ack_async_event as ibv_ack_async_event: fn(*mut ibv_async_event);
    alloc_pd as ibv_alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd;
    dealloc_pd as ibv_dealloc_pd: fn(*mut ibv_pd) -> c_int;
    reg_mr as ibv_reg_mr: fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    dereg_mr as ibv_dereg_mr: fn(*mut ibv_mr) -> c_int;
    create_comp_channel as ibv_create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel;
    destroy_comp_channel as ibv_destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int;
    create_cq as ibv_create_cq:
        fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    destroy_cq as ibv_destroy_cq: fn(*mut ibv_cq) -> c_int;
    get_cq_event as ibv_get_cq_event:
        fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ack_cq_events as ibv_ack_cq_events: fn(*mut ibv_cq, c_uint);
    create_srq as ibv_create_srq: fn(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
    destroy_srq as ibv_destroy_srq: fn(*mut ibv_srq) -> c_int;
    create_qp as ibv_create_qp: fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    modify_qp as ibv_modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    destroy_qp as ibv_destroy_qp: fn(*mut ibv_qp) -> c_int;
}

/// The library; a process that has it once keeps it. One that lacks it may try again, so that it can be installed later.
pub(crate) fn verbs() -> Result<&'static Verbs, Unavailable> {
    static VERBS: OnceLock<Verbs> = OnceLock::new();
    if let Some(verbs) = VERBS.get() {
        return Ok(verbs);
    }
    let verbs = Verbs::open(LIBRARY)?;
    Ok(VERBS.get_or_init(|| {
        // SAFETY: before any other call of the library. Kernels from 5.12 on keep pinned pages the parent's over a
        // fork; for older ones the library then keeps its own queues from children, as we keep regions (M8).
        let refused = unsafe { (verbs.fork_init)() };
        if refused != 0 {
            tracing::debug!(errno = refused, "ibv_fork_init");
        }
        verbs
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let why = Verbs::open("libzc-is-not-there.so.1").err();
        assert_eq!(why, Some(Unavailable::LibraryMissing { library: "libzc-is-not-there.so.1" }));
        assert!(why.is_some_and(|why| why.remedy().contains("libzc-is-not-there")));
    }

    #[test]
    fn another_library_is_not_taken_for_it() {
        let why = Verbs::open("libc.so.6").err();
        assert_eq!(why, Some(Unavailable::LibraryMissing { library: "libc.so.6" }));
    }
}
