/* NVMe over TCP: the length of the PDU, header included, 32 bits at 4, little
 * endian. NVM Express TCP Transport Specification, section 3.6.
 */
#include "parser.h"

PARSER int nvme_tcp(struct __sk_buff *skb)
{
    return swap32(load_word(skb, 4));
}
