/* MQTT as in mqtt.c, with functions: one that other files could call too, and a
 * static one behind it.
 */
#include "parser.h"

static __attribute__((noinline)) u32 bits(struct __sk_buff *skb, u32 index)
{
    u8 byte;
    if (bpf_skb_load_bytes(skb, 1 + index, &byte, 1) < 0)
        return 0x100;
    return byte;
}

__attribute__((noinline)) int length(struct __sk_buff *skb)
{
    u32 len = 0;
    for (u32 i = 0; i < 4; i++) {
        u32 byte = bits(skb, i);
        if (byte == 0x100)
            return 0;
        len |= (byte & 0x7f) << (7 * i);
        if (byte < 0x80)
            return len + i + 2;
    }
    return BAD_MESSAGE;
}

PARSER int subprogram(struct __sk_buff *skb)
{
    return length(skb);
}
