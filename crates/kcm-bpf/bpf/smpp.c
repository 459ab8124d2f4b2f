/* SMPP: a 32-bit length that counts itself. SMPP 3.4, section 3.2.
 */
#include "parser.h"

PARSER int smpp(struct __sk_buff *skb)
{
    return load_word(skb, 0);
}
