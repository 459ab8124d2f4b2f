/* Diameter: a version, then a 24-bit length that counts all. RFC 6733, section 3.
 */
#include "parser.h"

PARSER int diameter(struct __sk_buff *skb)
{
    return load_word(skb, 0) & 0xffffff;
}
