/* RDS over TCP: a header of 48 bytes with the length of what follows, 32 bits
 * at offset 16. struct rds_header of Linux, net/rds/rds.h.
 */
#include "parser.h"

PARSER int rds(struct __sk_buff *skb)
{
    return load_word(skb, 16) + 48;
}
