/* Refused: counts in a map. */
#include "../../bpf/parser.h"

struct {
    int (*type)[2];
    u32 *key;
    u64 *value;
    int (*max_entries)[1];
} counters __attribute__((section(".maps"), used));

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;

PARSER int map(struct __sk_buff *skb)
{
    u32 key = 0;
    u64 *value = bpf_map_lookup_elem(&counters, &key);
    if (value)
        *value += 1;
    return load_word(skb, 0);
}
