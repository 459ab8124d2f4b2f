/* The sample program with which KCM was announced in 2015. It takes RDS's
 * header for 40 bytes long.
 */
#include "parser.h"

PARSER int rds_announcement(struct __sk_buff *skb)
{
    return load_word(skb, 16) + 40;
}
