/* 9P2000: a 32-bit length that counts itself, little endian. Packet loads are
 * big endian, so that the bytes have to be swapped.
 * http://man.cat-v.org/plan_9/5/intro
 */
#include "parser.h"

PARSER int p9(struct __sk_buff *skb)
{
    return swap32(load_word(skb, 0));
}
