/* Thrift as in thrift.c, with steering: calls whose methods begin with the same
 * four letters go to one socket, and what is shorter than 1 KiB goes out before
 * what is longer. The name stands behind the frame's length, the version and its
 * own length.
 */
#include "parser.h"

PARSER int steering(struct __sk_buff *skb)
{
    u32 len = load_word(skb, 0);
    skb->cb[0] = load_word(skb, 12);
    skb->cb[1] = len < 1024;
    return len + 4;
}
