/* LDAP: a sequence in BER, whose length is of one byte, or of as many as the
 * low bits of that byte say. RFC 4511, section 5.1.
 *
 * The length is read by a function of its own. A load beyond the end would end
 * only that one with 0, so that the program makes sure first.
 */
#include "parser.h"

static __attribute__((noinline)) u32 big_endian(struct __sk_buff *skb, u32 offset, u32 width)
{
    switch (width) {
    case 1:
        return load_byte(skb, offset);
    case 2:
        return load_half(skb, offset);
    case 3:
        return load_half(skb, offset) << 8 | load_byte(skb, offset + 2);
    default:
        return load_word(skb, offset);
    }
}

PARSER int ldap(struct __sk_buff *skb)
{
    u32 head = load_half(skb, 0);
    u32 first = head & 0xff;
    if (head >> 8 != 0x30)
        return BAD_MESSAGE;
    if (first < 0x80)
        return first + 2;
    u32 width = first & 0x7f;
    if (width < 1 || width > 4)
        return BAD_MESSAGE;
    if (skb->len < 2 + width)
        return 0;
    return message((u64)big_endian(skb, 2, width) + 2 + width);
}
