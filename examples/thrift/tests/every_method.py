"""Every method, with one protocol, as one of several clients: every_method.py HOST PORT PROTOCOL NAME"""

import sys

from thrift.Thrift import TApplicationException, TMessageType

from client import connect
from store.ttypes import Calculation, CannotCalculate, Entry, NotFound, Operation

host, port, protocol, name = sys.argv[1:]
client, transport = connect(host, port, protocol)


def raises(kind, call, *arguments):
    try:
        result = call(*arguments)
    except kind as error:
        return error
    raise AssertionError(f"{call} gave {result!r}")


def key(n):
    return f"{name}/{n:04}"


assert client.ping() is None

# The calculator, with its exception and the edges of 64 bits.
for operation, left, right, result in [
    (Operation.ADD, 2, 3, 5),
    (Operation.SUBTRACT, 2, 3, -1),
    (Operation.MULTIPLY, -(2**62), 2, -(2**63)),
    (Operation.DIVIDE, -7, 2, -3),
]:
    assert client.calculate(Calculation(operation, left, right)) == result
for operation, left, right, why in [
    (Operation.DIVIDE, 1, 0, "division by zero"),
    (Operation.DIVIDE, -(2**63), -1, "beyond 64 bits"),
    (Operation.ADD, 2**63 - 1, 1, "beyond 64 bits"),
    (99, 1, 1, "unknown operation"),
]:
    error = raises(CannotCalculate, client.calculate, Calculation(operation, left, right))
    assert error.why == why, error
    assert error.calculation == Calculation(operation, left, right), error

# Lists: none, and many.
assert client.sum([]) == 0
assert client.sum(list(range(100_000))) == 100_000 * 99_999 // 2

# Structs with binary, maps, what is optional.
value = bytes(range(256))
for n in range(100):
    labels = {"n": str(n), "ü": "日本"} if n % 2 else None
    entry = Entry(key(n), value + str(n).encode(), labels)
    assert client.put(entry) is False
    assert client.put(entry) is True
    assert client.get(key(n)) == entry
assert client.find(name + "/", 1000) == [key(n) for n in range(100)]
assert client.find(name + "/", 3) == [key(n) for n in range(3)]
assert client.find(name + "/", -1) == []
found = client.getAll([key(7), key(8), "nothing/" + name])
assert found == {key(7): value + b"7", key(8): value + b"8"}, found

# A oneway call is done before the next one of its connection.
for n in range(100):
    client.forget(key(n))
    assert raises(NotFound, client.get, key(n)).key == key(n)
assert client.find(name + "/", 1000) == []

# A large value, there and back; all of ten such ones are too much for a reply.
large = b"x" * 200_000
for n in range(10):
    client.put(Entry(key(n), large))
    assert client.get(key(n)).value == large
error = raises(TApplicationException, client.getAll, [key(n) for n in range(10)])
assert error.type == TApplicationException.INTERNAL_ERROR, error
assert "too long" in error.message, error
for n in range(10):
    client.forget(key(n))

# A method that nobody knows. The connection goes on.
out = client._oprot
out.writeMessageBegin("fly", TMessageType.CALL, 17)
out.writeStructBegin("fly_args")
out.writeFieldStop()
out.writeStructEnd()
out.writeMessageEnd()
out.trans.flush()
called, kind, sequence = client._iprot.readMessageBegin()
assert (called, kind, sequence) == ("fly", TMessageType.EXCEPTION, 17)
error = TApplicationException()
error.read(client._iprot)
client._iprot.readMessageEnd()
assert error.type == TApplicationException.UNKNOWN_METHOD, error

# Arguments of the wrong type are an exception, and a required one that is missing.
raises(TApplicationException, client.put, Entry(key(0), None))
assert client.ping() is None

transport.close()
print("all right")
