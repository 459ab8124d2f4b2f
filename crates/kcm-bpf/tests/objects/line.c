/* A line of at most 64 bytes. With -mcpu=v3 its length is clamped by comparing one 32-bit copy and
 * using another.
 */
#include "../../bpf/parser.h"

PARSER int line(struct __sk_buff *skb)
{
    u8 bytes[64] = {0};
    u32 have = skb->len < 64 ? skb->len : 64;
    if (have == 0 || bpf_skb_load_bytes(skb, 0, bytes, have) < 0)
        return 0;
#pragma clang loop unroll(disable)
    for (int at = 0; at < 63; at++)
        if (bytes[at] == '\r' && bytes[at + 1] == '\n')
            return at + 2;
    return have == 64 ? BAD_MESSAGE : 0;
}
