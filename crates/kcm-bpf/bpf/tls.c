/* TLS records: a type, a version, a 16-bit length, then so many bytes.
 * RFC 8446, section 5.1.
 */
#include "parser.h"

PARSER int tls(struct __sk_buff *skb)
{
    return load_half(skb, 3) + 5;
}
