/* ONC RPC: a record is a chain of fragments, each with a 32-bit header of its
 * length and, at the top, whether it is the last. RFC 5531, section 11.
 *
 * All fragments of a record are one message. The program sees only what has
 * come, so that it can follow the chain when all but the last fragment are
 * there; the headers of more fragments than here are no record. What comes
 * before the last header counts as header: where that may be more than the
 * limit of it (64 KiB unless set otherwise), the protocol "rpc" is to be used,
 * which follows the chain piece by piece.
 */
#include "parser.h"

#define MAX_FRAGMENTS 64

PARSER int rpc(struct __sk_buff *skb)
{
    u64 end = 0;
#pragma nounroll
    for (u32 i = 0; i < MAX_FRAGMENTS; i++) {
        u32 header = load_word(skb, end);
        end += (header & 0x7fffffff) + 4ull;
        if (end > 0x7fffffff)
            return TOO_LONG;
        if (header & 0x80000000)
            return end;
    }
    return BAD_MESSAGE;
}
