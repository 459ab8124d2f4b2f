/* Sums as many bytes as the first of them says. Where there are no instructions of 32 bits, that is
 * counted in numbers that are shifted up and down.
 */
#include "../../bpf/parser.h"

PARSER int checksum(struct __sk_buff *skb)
{
    u8 bytes[16];
    if (bpf_skb_load_bytes(skb, 0, bytes, sizeof bytes) < 0)
        return 0;
    int last = bytes[0] - 3;
    if (last < 0 || last > 12)
        return BAD_MESSAGE;
    u32 sum = 0;
#pragma clang loop unroll(disable)
    for (int at = 0; at <= last; at++)
        sum += bytes[at];
    return sum + 16;
}
