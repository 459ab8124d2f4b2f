/* MQTT as in mqtt.c, with a copy of the length on the stack.
 */
#include "parser.h"

PARSER int mqtt_load_bytes(struct __sk_buff *skb)
{
    u8 byte;
    u32 len = 0;
#pragma nounroll
    for (u32 i = 0; i < 4; i++) {
        if (bpf_skb_load_bytes(skb, 1 + i, &byte, 1) < 0)
            return 0;
        len |= (byte & 0x7f) << (7 * i);
        if (byte < 0x80)
            return len + i + 2;
    }
    return BAD_MESSAGE;
}
