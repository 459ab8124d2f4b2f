/* Cassandra, version 3 and 4: a header of 9 bytes that ends with the length of
 * the body. https://cassandra.apache.org/doc/latest/cassandra/reference/native-protocol.html
 */
#include "parser.h"

PARSER int cassandra(struct __sk_buff *skb)
{
    return load_word(skb, 5) + 9;
}
