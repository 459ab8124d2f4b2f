/* Refused: keeps something from one message to the next. */
#include "../../bpf/parser.h"

u32 seen;

PARSER int global(struct __sk_buff *skb)
{
    seen += 1;
    return load_word(skb, 0) + seen;
}
