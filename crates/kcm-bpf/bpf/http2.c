/* HTTP/2: a 24-bit length, then a header of 6 more bytes and so many bytes. The
 * client's first 24 bytes are its preface. RFC 9113, sections 3.4 and 4.1.
 *
 * As frame the preface would announce five million bytes of an unknown type;
 * no frame begins like it.
 */
#include "parser.h"

PARSER int http2(struct __sk_buff *skb)
{
    u32 first = load_word(skb, 0);
    if (first == 0x50524920 /* "PRI " */ && load_word(skb, 4) == 0x2a204854 /* "* HT" */)
        return 24;
    return (first >> 8) + 9;
}
