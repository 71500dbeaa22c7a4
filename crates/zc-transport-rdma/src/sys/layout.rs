//! Our idea of the header, compared with the C compiler's.
//!
//! One list gives both our figures and the C program that prints the header's. `cargo xtask test --only rdma` fetches the
//! headers and says where they are in `ZC_VERBS_INCLUDE`; without it, and without a C compiler, there is nothing to compare.

use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::process::Command;

use super::abi::*;

/// Lines that both print, and the C expressions for the values.
struct Both {
    ours: String,
    program: String,
}

macro_rules! layout {
    ($both:ident; $($name:ident $kind:ident { $($($field:ident).+),* })*) => {$(
        // Those that only the library allocates may be longer than what we know of them.
        if stringify!($kind) == "whole" {
            $both.line(
                concat!("sizeof ", stringify!($name)),
                size_of::<$name>() as i64,
                concat!("sizeof(struct ", stringify!($name), ")"),
            );
        }
        $($both.line(
            concat!(stringify!($name), " ", $(".", stringify!($field)),+),
            offset_of!($name, $($field).+) as i64,
            &format!("offsetof(struct {}, {})", stringify!($name), [$(stringify!($field)),+].join(".").replace("r#", "")),
        );)*
    )*};
}

impl Both {
    fn new() -> Self {
        let program =
            "#include <infiniband/verbs.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n";
        Self { ours: String::new(), program: program.to_owned() }
    }

    fn line(&mut self, name: &str, ours: i64, in_c: &str) {
        writeln!(self.ours, "{name} {ours}").unwrap();
        writeln!(self.program, "printf(\"%s %lld\\n\", \"{name}\", (long long)({in_c}));").unwrap();
    }
}

fn both() -> Both {
    let mut both = Both::new();
    layout! { both;
        ibv_device part { node_type, transport_type }
        ibv_context_ops whole { alloc_mw, dealloc_mw, poll_cq, req_notify_cq, post_srq_recv, post_send }
        ibv_context part { device, cmd_fd, async_fd }
        ibv_device_attr whole {
            fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id, vendor_part_id, hw_ver, max_qp,
            max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom,
            max_ee_rd_atom, max_res_rd_atom, max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd,
            max_mw, max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach, max_total_mcast_qp_attach,
            max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr, max_srq_sge, max_pkeys, local_ca_ack_delay,
            phys_port_cnt
        }
        ibv_port_attr whole {
            state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz, bad_pkey_cntr, qkey_viol_cntr,
            pkey_tbl_len, lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout, init_type_reply, active_width,
            active_speed, phys_state, link_layer, flags, port_cap_flags2
        }
        ibv_gid_entry whole { gid.raw, gid_index, port_num, gid_type, ndev_ifindex }
        ibv_pd part { context, handle }
        ibv_mr whole { context, pd, addr, length, handle, lkey, rkey }
        ibv_mw whole { context, pd, rkey, handle, r#type }
        ibv_comp_channel whole { context, fd, refcnt }
        ibv_cq part { context, channel, cq_context, handle, cqe }
        ibv_srq part { context, srq_context, pd, handle }
        ibv_qp part { context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type }
        ibv_sge whole { addr, length, lkey }
        ibv_send_wr whole {
            wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data, wr, wr.rdma.remote_addr, wr.rdma.rkey,
            wr.atomic.remote_addr, wr.atomic.compare_add, wr.atomic.swap, wr.atomic.rkey, qp_type, bind_mw.mw,
            bind_mw.rkey, bind_mw.bind_info.mr, bind_mw.bind_info.addr, bind_mw.bind_info.length,
            bind_mw.bind_info.mw_access_flags
        }
        ibv_recv_wr whole { wr_id, next, sg_list, num_sge }
        ibv_wc whole {
            wr_id, status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp, wc_flags, pkey_index, slid, sl,
            dlid_path_bits
        }
        ibv_qp_cap whole { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        ibv_qp_init_attr whole { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
        ibv_srq_attr whole { max_wr, max_sge, srq_limit }
        ibv_srq_init_attr whole { srq_context, attr }
        ibv_global_route whole { dgid, flow_label, sgid_index, hop_limit, traffic_class }
        ibv_ah_attr whole { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num }
        ibv_qp_attr whole {
            qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, cap,
            ah_attr, alt_ah_attr, pkey_index, alt_pkey_index, en_sqd_async_notify, sq_draining, max_rd_atomic,
            max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout,
            rate_limit
        }
        ibv_async_event whole { element, element.qp, element.port_num, event_type }
    }
    both.line("ibv_context .ops", offset_of!(ibv_context, ops) as i64, "offsetof(struct ibv_context, ops)");
    both.line("alignof ibv_gid", align_of::<ibv_gid>() as i64, "_Alignof(union ibv_gid)");
    for &(name, value) in CONSTANTS {
        both.line(name, value, name);
    }
    both.program.push_str("return 0;\n}\n");
    both
}

#[test]
fn layout_is_that_of_the_header() {
    let both = both();
    let Some(include) = std::env::var_os("ZC_VERBS_INCLUDE") else {
        println!("ZC_VERBS_INCLUDE does not say where the headers of libibverbs are: nothing compared");
        return;
    };
    let dir = std::env::temp_dir().join(format!("zc-layout-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (source, program) = (dir.join("layout.c"), dir.join("layout"));
    std::fs::write(&source, &both.program).unwrap();
    let compiled = Command::new("cc").arg("-I").arg(include).arg("-o").arg(&program).arg(&source).output();
    let printed = Command::new(&program).output();
    std::fs::remove_dir_all(&dir).unwrap();
    let compiled = compiled.unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let theirs = String::from_utf8(printed.unwrap().stdout).unwrap();
    let differ: Vec<_> =
        both.ours.lines().zip(theirs.lines()).filter(|(ours, theirs)| ours != theirs).collect();
    assert!(differ.is_empty(), "ours, the header's: {differ:#?}");
    assert_eq!(both.ours.lines().count(), theirs.lines().count());
    println!("{} offsets, sizes and constants are those of the header", both.ours.lines().count());
}
