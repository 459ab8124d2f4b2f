/* MongoDB: a 32-bit length that counts itself, little endian.
 * https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
 */
#include "parser.h"

PARSER int mongodb(struct __sk_buff *skb)
{
    return swap32(load_word(skb, 0));
}
