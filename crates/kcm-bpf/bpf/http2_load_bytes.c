/* HTTP/2 as in http2.c, from a copy of the frame's header on the stack.
 */
#include "parser.h"

PARSER int http2_load_bytes(struct __sk_buff *skb)
{
    u8 header[9];
    if (bpf_skb_load_bytes(skb, 0, header, sizeof(header)) < 0)
        return 0;
    if (header[0] == 'P' && header[1] == 'R' && header[2] == 'I' && header[3] == ' ' &&
        header[4] == '*' && header[5] == ' ' && header[6] == 'H' && header[7] == 'T')
        return 24;
    return (header[0] << 16 | header[1] << 8 | header[2]) + 9;
}
