//! The kernel's helper functions: which of them a parser has, and the names of those that it might
//! miss.

/// Copies bytes of the message to the stack.
pub(crate) const SKB_LOAD_BYTES: i32 = 26;
/// The same, relative to a header of the packet.
pub(crate) const SKB_LOAD_BYTES_RELATIVE: i32 = 68;
/// Nanoseconds of a clock that never goes back.
pub(crate) const KTIME_GET_NS: i32 = 5;

/// What there is, for a message to the user.
pub(crate) const AVAILABLE: &str =
    "bpf_skb_load_bytes, bpf_skb_load_bytes_relative and bpf_ktime_get_ns only";

/// The name of a helper function that a socket filter may call in the kernel, or that its author
/// might have thought of.
pub(crate) const fn name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "bpf_map_lookup_elem",
        2 => "bpf_map_update_elem",
        3 => "bpf_map_delete_elem",
        KTIME_GET_NS => "bpf_ktime_get_ns",
        6 => "bpf_trace_printk",
        7 => "bpf_get_prandom_u32",
        8 => "bpf_get_smp_processor_id",
        9 => "bpf_skb_store_bytes",
        12 => "bpf_tail_call",
        25 => "bpf_perf_event_output",
        SKB_LOAD_BYTES => "bpf_skb_load_bytes",
        28 => "bpf_csum_diff",
        39 => "bpf_skb_pull_data",
        42 => "bpf_get_numa_node_id",
        46 => "bpf_get_socket_cookie",
        47 => "bpf_get_socket_uid",
        SKB_LOAD_BYTES_RELATIVE => "bpf_skb_load_bytes_relative",
        87..=89 => "a map helper",
        112..=115 => "bpf_probe_read",
        118 => "bpf_jiffies64",
        125 => "bpf_ktime_get_boot_ns",
        130..=134 => "a ring buffer helper",
        160 => "bpf_ktime_get_coarse_ns",
        177 => "bpf_trace_vprintk",
        181 => "bpf_loop",
        _ => return None,
    })
}
