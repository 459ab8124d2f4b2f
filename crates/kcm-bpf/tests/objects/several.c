/* Refused: which of the two is meant? */
#include "../../bpf/parser.h"

PARSER int one(struct __sk_buff *skb)
{
    return load_half(skb, 0);
}

PARSER int two(struct __sk_buff *skb)
{
    return load_word(skb, 0);
}
