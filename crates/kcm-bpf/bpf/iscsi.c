/* iSCSI without digests: a header of 48 bytes, more headers of so many words as
 * byte 4 says, then data of so many bytes as the 24 bits behind it say, padded
 * to whole words. RFC 7143, section 11.2.
 */
#include "parser.h"

PARSER int iscsi(struct __sk_buff *skb)
{
    u32 lengths = load_word(skb, 4);
    u32 more_header_words = lengths >> 24;
    u32 data = lengths & 0xffffff;
    return 48 + 4 * more_header_words + ((data + 3) & ~3u);
}
