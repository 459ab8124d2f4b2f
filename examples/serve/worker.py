"""Answers each message with its body in capitals. Framing: u32be+4."""

import os
import struct

# One read is one message, header included; at the end there is nothing to read.
while message := os.read(0, 256 << 10):
    body = message[4:].upper()
    # One write is one reply. (print() would be one too: debug on the standard error.)
    os.write(1, struct.pack("!I", len(body)) + body)
