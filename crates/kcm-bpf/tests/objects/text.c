/* In no section of its own, as whoever forgets it writes it. */
#include "../../bpf/parser.h"

static __attribute__((noinline)) int half(struct __sk_buff *skb, u32 offset)
{
    return load_half(skb, offset);
}

int plain(struct __sk_buff *skb)
{
    return half(skb, skb->len & 1) + 2;
}
