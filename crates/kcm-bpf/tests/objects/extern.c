/* Refused: calls what is in no object that we have. */
#include "../../bpf/parser.h"

int elsewhere(struct __sk_buff *skb);

PARSER int with_extern(struct __sk_buff *skb)
{
    return elsewhere(skb) + 1;
}
