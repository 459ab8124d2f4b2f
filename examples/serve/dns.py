"""A DNS server for whom every name has the address 127.0.0.1. Framing: dns (RFC 1035, 4.2.2)."""

import os
import struct

while message := os.read(0, 64 << 10):
    query = message[2:]
    end = query.find(b"\0", 12) + 5  # of the question: a name, type and class
    is_response, known = query[2] & 0x80, query[end - 4 : end] == b"\0\1\0\1"
    if is_response or end < 17:
        os.write(1, b"")  # an empty write: no reply to this one
        continue
    reply = query[:2] + struct.pack("!BBHHHH", 0x84 | query[2] & 0x79, 0, 1, known, 0, 0)
    reply += query[12:end]
    if known:  # the question's name, type A, class IN, a minute to live
        reply += struct.pack("!HHHIH4B", 0xC00C, 1, 1, 60, 4, 127, 0, 0, 1)
    os.write(1, struct.pack("!H", len(reply)) + reply)
