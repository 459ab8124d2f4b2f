/* WebSocket frames, after the upgrade: a length of 7 bits, or of 16 or 64 bits
 * behind it, and 4 bytes of mask if the bit above it says so. RFC 6455,
 * section 5.2.
 */
#include "parser.h"

PARSER int websocket(struct __sk_buff *skb)
{
    u32 second = load_byte(skb, 1);
    u32 header = second & 0x80 ? 6 : 2;
    u32 len = second & 0x7f;
    if (len == 126)
        return load_half(skb, 2) + header + 2;
    if (len == 127) {
        if (load_word(skb, 2) != 0)
            return TOO_LONG;
        return message(load_word(skb, 6) + header + 8);
    }
    return len + header;
}
