/* Apache Kafka: a 32-bit length, then so many bytes.
 * https://kafka.apache.org/protocol#protocol_common
 */
#include "parser.h"

PARSER int kafka(struct __sk_buff *skb)
{
    return load_word(skb, 0) + 4;
}
