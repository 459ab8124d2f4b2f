/* BGP: a marker of 16 bytes, then a 16-bit length that counts all. RFC 4271,
 * section 4.1.
 */
#include "parser.h"

PARSER int bgp(struct __sk_buff *skb)
{
    return load_half(skb, 16);
}
