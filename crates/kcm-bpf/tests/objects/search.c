/* A delimiter of four bytes, somewhere in the first 2000. */
#include "../../bpf/parser.h"

PARSER int search(struct __sk_buff *skb)
{
    u32 word = 0, have = skb->len < 2000 ? skb->len : 2000;
#pragma clang loop unroll(disable)
    for (u32 at = 0; at < have; at++) {
        word = word << 8 | load_byte(skb, at);
        if (word == 0x0d0a0d0a)
            return at + 1;
    }
    return 0;
}
