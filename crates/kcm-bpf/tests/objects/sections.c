/* Two programs. A section has to be named. */
#include "../../bpf/parser.h"

static __attribute__((noinline)) int half(struct __sk_buff *skb, u32 offset)
{
    return load_half(skb, offset);
}

static __attribute__((noinline)) int unused_by_first(struct __sk_buff *skb, u32 offset)
{
    return load_word(skb, offset);
}

__attribute__((section("first"), used)) int one(struct __sk_buff *skb)
{
    return half(skb, skb->len & 1);
}

__attribute__((section("second"), used)) int two(struct __sk_buff *skb)
{
    return unused_by_first(skb, skb->len & 1) + half(skb, skb->len & 3);
}
