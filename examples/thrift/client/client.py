"""Talks to the server with Apache Thrift's Python client: client.py HOST PORT [binary|compact]"""

import sys

from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TFramedTransport

from store import Store
from store.ttypes import Calculation, CannotCalculate, Entry, NotFound, Operation

PROTOCOLS = {"binary": TBinaryProtocol, "compact": TCompactProtocol}


def connect(host, port, protocol="compact"):
    """A client, and its transport, which is to be closed."""
    socket = TSocket(host, int(port))
    socket.setTimeout(20_000)
    transport = TFramedTransport(socket)
    transport.open()
    return Store.Client(PROTOCOLS[protocol](transport)), transport


def main():
    client, transport = connect(*sys.argv[1:])
    client.ping()
    client.put(Entry("greeting", b"hello", {"language": "en"}))
    print(client.get("greeting"))
    print("6 * 7 =", client.calculate(Calculation(Operation.MULTIPLY, 6, 7)))
    try:
        client.calculate(Calculation(Operation.DIVIDE, 1, 0))
    except CannotCalculate as error:
        print("1 / 0:", error.why)
    client.forget("greeting")
    try:
        client.get("greeting")
    except NotFound as error:
        print("forgotten:", error.key)
    transport.close()


if __name__ == "__main__":
    main()
