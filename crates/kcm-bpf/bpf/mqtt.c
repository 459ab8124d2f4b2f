/* MQTT: a type, then a length of 1 to 4 bytes with 7 bits each, lowest first;
 * the high bit says that there is one more. MQTT 5.0, sections 1.5.5 and 2.1.
 *
 * Unrolled, as compilers make it of a loop over so few.
 */
#include "parser.h"

PARSER int mqtt(struct __sk_buff *skb)
{
    u32 len = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 byte = load_byte(skb, 1 + i);
        len |= (byte & 0x7f) << (7 * i);
        if (byte < 0x80)
            return len + i + 2;
    }
    return BAD_MESSAGE;
}
