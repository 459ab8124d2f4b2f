#!/bin/sh
# Answers each message with its body in capitals. Framing: u32be+4.
message=$(mktemp) && trap 'rm -f "$message"' EXIT

# One read is one message: dd reads once. (A shell's own read takes single bytes, and loses the rest.)
while dd bs=256K count=1 of="$message" 2>/dev/null && [ -s "$message" ]; do
    # One write is one reply: dd puts it together.
    { head -c 4 "$message"; tail -c +5 "$message" | tr a-z A-Z; } | dd obs=256K 2>/dev/null
done
