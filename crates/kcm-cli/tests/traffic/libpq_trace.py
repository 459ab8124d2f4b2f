"""Talks to a PostgreSQL server and lets libpq write down each message of the connection.

libpq_trace.py CONNINFO FILE
"""

import ctypes
import select
import sys

POLLING_FAILED, POLLING_READING, POLLING_OK = 0, 1, 3
CONNECTION_OK = 0

pq = ctypes.CDLL("libpq.so.5")
pq.PQconnectStart.restype = ctypes.c_void_p
pq.PQexec.restype = ctypes.c_void_p
pq.PQexecParams.restype = ctypes.c_void_p
pq.PQgetResult.restype = ctypes.c_void_p
pq.PQerrorMessage.restype = ctypes.c_char_p
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p

conninfo, path = (argument.encode() for argument in sys.argv[1:])
connection = ctypes.c_void_p(pq.PQconnectStart(conninfo))
trace = ctypes.c_void_p(libc.fopen(path, b"w"))
# Begun before the first message leaves, or the start-up would be missing.
pq.PQtrace(connection, trace)

descriptors = [pq.PQsocket(connection)]
select.select([], descriptors, [], 10)
while (state := pq.PQconnectPoll(connection)) != POLLING_OK:
    assert state != POLLING_FAILED, pq.PQerrorMessage(connection)
    descriptors = [pq.PQsocket(connection)]
    reads = descriptors if state == POLLING_READING else []
    writes = [] if reads else descriptors
    select.select(reads, writes, [], 10)
assert pq.PQstatus(connection) == CONNECTION_OK, pq.PQerrorMessage(connection)


def execute(sql):
    pq.PQclear(ctypes.c_void_p(pq.PQexec(connection, sql)))


def execute_with(sql, parameter):
    values = (ctypes.c_char_p * 1)(parameter)
    result = pq.PQexecParams(connection, sql, 1, None, values, None, None, 0)
    pq.PQclear(ctypes.c_void_p(result))


execute(b"SELECT 1")
execute(b"SELECT n, repeat('x', n) FROM generate_series(1, 1000) AS n")
execute(b"SELECT repeat('long', 100000)")
execute(b"SELECT no_such_column")
execute(b"DO $$BEGIN RAISE NOTICE 'hello'; END$$")
execute(b"")
execute_with(b"SELECT $1::text", b"parameter" * 1000)
execute(b"CREATE TABLE t (a int); COPY t FROM STDIN")
for number in range(100):
    row = b"%d\n" % number
    assert pq.PQputCopyData(connection, row, len(row)) == 1
assert pq.PQputCopyEnd(connection, None) == 1
while result := pq.PQgetResult(connection):
    pq.PQclear(ctypes.c_void_p(result))
execute(b"SELECT count(*) FROM t")

pq.PQfinish(connection)
libc.fclose(trace)
