"""An asyncio client of the `echo` example that sends every byte on its own.

    python3 byte_by_byte.py HOST PORT

Several connections at once; each sends messages of many lengths (a 32-bit big-endian body length,
then the body) and reads them back while it sends. Exits with 0 if all came back as they were.
"""

import asyncio
import random
import socket
import sys

CONNECTIONS = 4
MESSAGES = 40


def message(choice: random.Random) -> bytes:
    body = choice.randbytes(choice.choice([0, 1, 3, 4, 5, 60, 200]))
    return len(body).to_bytes(4, "big") + body


async def send(writer: asyncio.StreamWriter, messages: list[bytes]) -> None:
    for byte in b"".join(messages):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write_eof()


async def receive(reader: asyncio.StreamReader) -> list[bytes]:
    messages = []
    while True:
        try:
            header = await reader.readexactly(4)
        except asyncio.IncompleteReadError as end:
            assert not end.partial, "the stream was cut in a header"
            return messages
        messages.append(header + await reader.readexactly(int.from_bytes(header, "big")))


async def client(host: str, port: int, seed: int) -> None:
    choice = random.Random(seed)
    messages = [message(choice) for _ in range(MESSAGES)]
    reader, writer = await asyncio.open_connection(host, port)
    # Else the system would gather the bytes again.
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _, replies = await asyncio.gather(send(writer, messages), receive(reader))
    # Several workers answer; the order is theirs.
    assert sorted(replies) == sorted(messages), f"{len(replies)} of {len(messages)} came back"
    writer.close()


async def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    clients = (client(host, port, seed) for seed in range(CONNECTIONS))
    await asyncio.wait_for(asyncio.gather(*clients), timeout=30)
    print(f"{CONNECTIONS * MESSAGES} messages, byte by byte")


asyncio.run(main())
