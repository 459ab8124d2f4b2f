/* DNS over TCP: a 16-bit length, then so many bytes. RFC 1035, section 4.2.2.
 */
#include "parser.h"

PARSER int dns(struct __sk_buff *skb)
{
    return load_half(skb, 0) + 2;
}
