/* Refused: takes the address of a function. */
#include "../../bpf/parser.h"

__attribute__((noinline)) int length(struct __sk_buff *skb)
{
    return load_half(skb, 0);
}

PARSER int address(struct __sk_buff *skb)
{
    return length(skb) + (u32)(u64)&length;
}
