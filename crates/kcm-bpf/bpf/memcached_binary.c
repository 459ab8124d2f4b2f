/* Memcached, binary: a header of 24 bytes with the length of the body at 8.
 * https://docs.memcached.org/protocols/binary/
 */
#include "parser.h"

PARSER int memcached_binary(struct __sk_buff *skb)
{
    return load_word(skb, 8) + 24;
}
