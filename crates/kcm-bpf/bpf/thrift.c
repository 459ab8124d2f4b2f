/* Apache Thrift, framed or with THeader: a 32-bit length, then so many bytes.
 * https://github.com/apache/thrift/blob/master/doc/specs/thrift-rpc.md
 */
#include "parser.h"

PARSER int thrift(struct __sk_buff *skb)
{
    return load_word(skb, 0) + 4;
}
