/* What a parser program needs, and nothing else. Compile with
 *
 *     clang -O2 -target bpf -c FILE.c -o FILE.o
 *
 * A parser is called with the bytes of a message as far as they have come. It
 * returns the message's length in bytes, header included; 0 if it needs more
 * bytes to know; a negative errno if this is no message.
 */
#ifndef PARSER_H
#define PARSER_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* The context, as the kernel's struct __sk_buff begins. A parser reads the
 * length; it may leave a key in cb[0] and a class in cb[1].
 */
struct __sk_buff {
    u32 len; /* bytes that have come */
    u32 other[11];
    u32 cb[5];
};

/* The section that the program goes to. Any name but .text serves; with this one
 * libbpf would load the same object into the kernel.
 */
#define PARSER __attribute__((section("socket"), used))

/* Integers in network byte order at an offset of the message. If they have not
 * all come, the function that stands here ends with 0.
 */
u64 load_byte(void *skb, u64 offset) __asm__("llvm.bpf.load.byte");
u64 load_half(void *skb, u64 offset) __asm__("llvm.bpf.load.half");
u64 load_word(void *skb, u64 offset) __asm__("llvm.bpf.load.word");

/* Copies bytes of the message. Returns a negative errno if they have not all
 * come; the program goes on.
 */
static long (*bpf_skb_load_bytes)(const void *skb, u32 offset, void *to, u32 len) = (void *)26;

static inline u16 swap16(u16 value) { return __builtin_bswap16(value); }
static inline u32 swap32(u32 value) { return __builtin_bswap32(value); }

/* This is no message (EPROTO). */
#define BAD_MESSAGE (-71)
/* This message is longer than a parser can say (EMSGSIZE). */
#define TOO_LONG (-90)

/* A length that may be beyond what an int can say. */
static inline int message(u64 len)
{
    return len > 0x7fffffff ? TOO_LONG : (int)len;
}

#endif
