/* MQTT as in mqtt.c, with a loop that stays one.
 */
#include "parser.h"

PARSER int mqtt_loop(struct __sk_buff *skb)
{
    u32 len = 0;
#pragma nounroll
    for (u32 i = 0; i < 4; i++) {
        u32 byte = load_byte(skb, 1 + i);
        len |= (byte & 0x7f) << (7 * i);
        if (byte < 0x80)
            return len + i + 2;
    }
    return BAD_MESSAGE;
}
