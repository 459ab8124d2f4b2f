/* MySQL: a 24-bit length, little endian, a sequence number, then so many bytes.
 * https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_packets.html
 */
#include "parser.h"

PARSER int mysql(struct __sk_buff *skb)
{
    return (swap32(load_word(skb, 0)) & 0xffffff) + 4;
}
