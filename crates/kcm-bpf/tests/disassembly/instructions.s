	.text
	.globl f
	.type f,@function
f:
	r1 = r2
	w1 = w2
	r1 = -7
	w3 = 2147483647
	r1 = 81985529216486895 ll
	r1 = -1 ll
	r1 += r2
	r1 -= 5
	w1 *= w3
	r1 /= 7
	r1 |= r4
	r1 &= 255
	r1 <<= 3
	r1 >>= r5
	r1 s>>= 56
	r1 ^= r1
	w1 ^= -1
	r1 = -r1
	w1 = -w1
	r0 = be16 r0
	r0 = be32 r0
	r0 = be64 r0
	r0 = le16 r0
	r0 = *(u8 *)skb[16]
	r0 = *(u16 *)skb[0]
	r0 = *(u32 *)skb[1000]
	r0 = *(u8 *)skb[r7]
	r0 = *(u16 *)skb[r1]
	r0 = *(u32 *)skb[r2]
	r1 = *(u8 *)(r10 - 1)
	r1 = *(u16 *)(r2 + 8)
	r1 = *(u32 *)(r2 + 0)
	r1 = *(u64 *)(r10 - 512)
	*(u8 *)(r10 - 1) = r3
	*(u16 *)(r10 - 2) = r3
	*(u32 *)(r1 + 48) = r3
	*(u64 *)(r10 - 8) = r3
	lock *(u64 *)(r1 + 0) += r2
	lock *(u32 *)(r1 + 4) += w2
	r2 = atomic_fetch_add((u64 *)(r1 + 0), r2)
	w2 = atomic_fetch_or((u32 *)(r1 - 4), w2)
	r0 = cmpxchg_64(r1 + 8, r0, r2)
	w0 = cmpxchg32_32(r1 + 8, w0, w2)
	r2 = xchg_64(r1 + 8, r2)
	w2 = xchg32_32(r1 + 8, w2)
	if r1 == r2 goto +1
	if r1 > 5 goto +3
	if r1 >= 5 goto -2
	if r1 != -1 goto +0
	if r1 < 9 goto +1
	if r1 <= r0 goto +1
	if r1 s> -2 goto -3
	if r1 s>= 1 goto +1
	if r1 s< 1 goto +1
	if r1 s<= 1 goto +1
	if w1 == w2 goto +1
	if w1 > 5 goto +3
	if w1 s< -5 goto +3
	goto +2
	goto -2
	call 5
	call 26
	call 68
	call 7
	if r1 & 5 goto +1
	if r1 & r5 goto +1
	if w1 & 5 goto +1
	r1 s/= r2
	w1 s%= 3
	r1 %= 3
	w1 %= w3
	r1 = (s8)r2
	w1 = (s16)w2
	r1 = (s32)r2
	r1 = bswap16 r1
	r1 = bswap64 r1
	r1 = *(s8 *)(r2 + 1)
	r1 = *(s32 *)(r2 - 1)
	*(u8 *)(r10 - 1) = 3
	*(u64 *)(r10 - 8) = -3
	gotol +5
	r0 = le32 r0
	exit
