#!/usr/bin/env python3
"""Makes the streams beside it: bytes that other implementations sent.

    python3 make.py [NAME...]       all, or those protocols

Each NAME-SIDE.txt has a line that says who made it, the lengths of the messages
as that program counted them (or how many they were), and the bytes in
hexadecimal. No length is read out of the bytes here, so a test against these
files is a test against the program that made them.

From PyPI: cassandra-driver h2 kafka-python ldap3 ldaptor pamqp paho-mqtt
psycopg[binary] pymongo PyMySQL mysql-mimic python-binary-memcached
python-qpid-proton scapy smpplib thrift websockets dnspython.
From Debian: diod gcc libiscsi-bin libtirpc-dev memcached mosquitto postgresql
tgt tshark. Some of the servers must be started by root.

Two are built from their documents, as nothing that speaks them can be run
without a kernel that has them: rds and nvme-tcp.
"""

import asyncio
import os
import re
import socket
import struct
import sys
import threading
import time
from importlib.metadata import version

from recording import HERE, Daemon, Proxy, counted_by_tshark, free_port, run, save, scratch


def made_by(package, what):
    return f"{package} {version(package)}: {what}"


def thrift():
    from thrift.protocol import TBinaryProtocol, THeaderProtocol
    from thrift.Thrift import TMessageType, TType
    from thrift.transport import THeaderTransport, TTransport

    def calls(protocol, buffer):
        seen = 0
        for sequence, text in enumerate(["ping", "x" * 300, ""]):
            protocol.writeMessageBegin("echo", TMessageType.CALL, sequence)
            protocol.writeStructBegin("args")
            protocol.writeFieldBegin("text", TType.STRING, 1)
            protocol.writeString(text)
            protocol.writeFieldEnd()
            protocol.writeFieldStop()
            protocol.writeStructEnd()
            protocol.writeMessageEnd()
            protocol.trans.flush()
            yield buffer.getvalue()[seen:]
            seen = len(buffer.getvalue())

    buffer = TTransport.TMemoryBuffer()
    framed = TBinaryProtocol.TBinaryProtocol(TTransport.TFramedTransport(buffer))
    save("thrift-framed", made_by("thrift", "TFramedTransport"), list(calls(framed, buffer)))
    buffer = TTransport.TMemoryBuffer()
    kinds = [THeaderTransport.THeaderClientType.HEADERS]
    header = THeaderProtocol.THeaderProtocol(buffer, kinds)
    save("thrift-header", made_by("thrift", "THeaderProtocol"), list(calls(header, buffer)))


def p9():
    directory = scratch()
    (directory / "file").write_text("some text\n" * 50)
    port = free_port()
    listen = f"127.0.0.1:{port}"
    with Daemon("diod", "-f", "-n", "-d", "1", "-l", listen, "-e", directory, port=port) as diod:
        proxy = Proxy(port)
        run("diodcat", "-s", f"127.0.0.1:{proxy.port}", "-a", directory, "file")
        run("diodls", "-s", f"127.0.0.1:{proxy.port}", "-a", directory)
    names = re.findall(r"^diod: P9_([TR])[A-Z]", diod.text(), re.M)
    how = "diod 1.0.24 (Debian), diodcat and diodls; counted in diod's log"
    save("9p-client", how, raw=proxy.to_server, count=names.count("T"))
    save("9p-server", how, raw=proxy.to_client, count=names.count("R"))


def rds():
    def message(sequence, data):
        ports = dict(source=4000, target=4001)
        header = struct.pack(">QQIHHBB4xH16x", sequence, 0, len(data), *ports.values(), 0, 0, 0)
        return header + data

    how = "built from the structure of the header: no program speaks it without the kernel's module"
    save("rds-built", how, [message(1, b"hello"), message(2, b""), message(3, b"\xff" * 1000)])


def dns():
    import dns.message
    import dns.query

    class Wire:
        """As much of a socket as send_tcp uses."""

        type = socket.SOCK_STREAM

        def __init__(self):
            self.sent = []

        def send(self, data):
            self.sent.append(bytes(data))
            return len(data)

    queries, answers = Wire(), Wire()
    for name, kind, text in [
        ("example.org.", "A", "192.0.2.1"),
        ("example.org.", "TXT", '"' + "t" * 200 + '"'),
        (".", "NS", "a.root-servers.net."),
    ]:
        query = dns.message.make_query(name, kind, use_edns=True, want_dnssec=True)
        answer = dns.message.make_response(query)
        answer.answer.append(dns.rrset.from_text(name, 60, "IN", kind, text))
        dns.query.send_tcp(queries, query)
        dns.query.send_tcp(answers, answer)
    save("dns-client", made_by("dnspython", "query.send_tcp"), queries.sent)
    save("dns-server", made_by("dnspython", "query.send_tcp"), answers.sent)


def kafka():
    from kafka.protocol.consumer import FetchRequest
    from kafka.protocol.metadata import ApiVersionsRequest, MetadataRequest
    from kafka.protocol.parser import KafkaProtocol

    protocol = KafkaProtocol(client_id="a client")
    sent = []
    for request in [
        ApiVersionsRequest(version=3, client_software_name="x", client_software_version="1.0"),
        ApiVersionsRequest(version=0),
        MetadataRequest(version=1, topics=[]),
        FetchRequest(version=0, replica_id=-1, max_wait_ms=100, min_bytes=1, topics=[]),
    ]:
        protocol.send_request(request)
        sent.append(bytes(protocol.send_bytes()))
    save("kafka-client", made_by("kafka-python", "KafkaProtocol.send_request"), sent)


def mysql():
    import mysql_mimic
    import pymysql

    class Session(mysql_mimic.Session):
        async def query(self, expression, sql, attrs):
            return [(n, "row" * n) for n in range(60)], ["number", "text"]

    port = free_port()
    loop = asyncio.new_event_loop()
    server = mysql_mimic.MysqlServer(session_factory=Session)
    asyncio.run_coroutine_threadsafe(server.start_server(host="127.0.0.1", port=port), loop)
    threading.Thread(target=loop.run_forever, daemon=True).start()
    time.sleep(0.5)

    sent, read = [], []

    class Connection(pymysql.connections.Connection):
        def _write_bytes(self, data):
            sent.append(bytes(data))
            super()._write_bytes(data)

        def _read_packet(self, *args, **kwargs):
            read.append(b"")
            return super()._read_packet(*args, **kwargs)

        def _read_bytes(self, count):
            data = super()._read_bytes(count)
            read[-1] += data
            return data

    with Connection(host="127.0.0.1", port=port, user="me", database="d") as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT number, text FROM somewhere")
            assert len(cursor.fetchall()) == 60
        connection.ping()
    save("mysql-client", made_by("PyMySQL", "with mysql-mimic as server"), sent)
    how = f"mysql-mimic {version('mysql-mimic')}, as PyMySQL {version('PyMySQL')} read it"
    save("mysql-server", how, read)


def mongodb():
    import bson
    import pymongo
    from pymongo.synchronous import pool

    def read(connection, count):
        data = b""
        while len(data) < count:
            data += connection.recv(count - len(data)) or sys.exit("gone")
        return data

    def serve(connection):
        """Knows just enough to be taken for a server."""
        while header := connection.recv(16, socket.MSG_WAITALL):
            length, number, _, opcode = struct.unpack("<iiii", header)
            read(connection, length - 16)
            hello = dict(ok=1, helloOk=True, isWritablePrimary=True, maxWireVersion=21)
            body = bson.encode(hello | dict(maxBsonObjectSize=1 << 24, minWireVersion=0, n=1))
            if opcode == 2013:
                kind, body = 2013, struct.pack("<IB", 0, 0) + body
            else:
                kind, body = 1, struct.pack("<iqii", 8, 0, 0, 1) + body
            connection.sendall(struct.pack("<iiii", 16 + len(body), 1, number, kind) + body)

    def accept():
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    sent = []
    sendall = pool.sendall

    def listen_in(connection, data):
        if threading.current_thread() is threading.main_thread():
            sent.append(bytes(data))
        return sendall(connection, data)

    pool.sendall = listen_in
    client = pymongo.MongoClient("127.0.0.1", listener.getsockname()[1])
    for size in (1, 2000):
        client.shop.orders.insert_one({"_id": size, "text": "t" * size})
    client.shop.command("ping")
    client.close()
    save("mongodb-client", made_by("pymongo", "MongoClient, of its main thread"), sent)


def cassandra():
    from cassandra import ConsistencyLevel
    from cassandra.protocol import OptionsMessage, ProtocolHandler, QueryMessage, StartupMessage

    def encoded(level):
        messages = [
            OptionsMessage(),
            StartupMessage(cqlversion="3.4.5", options={}),
            QueryMessage("SELECT * FROM t WHERE k = 1", ConsistencyLevel.ONE),
            QueryMessage("INSERT " + "x" * 1000, ConsistencyLevel.QUORUM),
        ]
        for stream, message in enumerate(messages):
            yield ProtocolHandler.encode_message(message, stream, level, None, False)

    for level in (3, 4):
        how = made_by("cassandra-driver", f"ProtocolHandler, version {level}")
        save(f"cassandra-v{level}", how, list(encoded(level)))


def mqtt():
    import paho.mqtt.client as paho

    sent, read = [], []

    class Client(paho.Client):
        def _packet_queue(self, command, packet, *args, **kwargs):
            sent.append(bytes(packet))
            return super()._packet_queue(command, packet, *args, **kwargs)

        def _packet_handle(self):
            packet = self._in_packet
            read.append(1 + len(packet["remaining_count"]) + len(packet["packet"]))
            return super()._packet_handle()

    port = free_port()
    configuration = scratch() / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with Daemon("mosquitto", "-c", configuration, port=port):
        proxy = Proxy(port)
        client = Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        arrived = threading.Semaphore(0)
        client.on_connect = client.on_message = lambda *_: arrived.release()
        client.on_subscribe = client.on_publish = lambda *_: arrived.release()
        client.connect("127.0.0.1", proxy.port)
        client.loop_start()
        arrived.acquire(timeout=5)
        client.subscribe("topic", qos=1)
        arrived.acquire(timeout=5)
        for size in (0, 100, 2000):
            client.publish("topic", b"m" * size, qos=1)
            arrived.acquire(timeout=5)
            arrived.acquire(timeout=5)
        time.sleep(0.5)
        client.disconnect()
        client.loop_stop()
    assert proxy.to_server == b"".join(sent) and len(proxy.to_client) == sum(read)
    save("mqtt-client", made_by("paho-mqtt", "with mosquitto as broker"), sent)
    server, at = [], 0
    for length in read:
        server.append(proxy.to_client[at : at + length])
        at += length
    save("mqtt-server", f"mosquitto (Debian), as paho-mqtt {version('paho-mqtt')} read it", server)


def tls():
    import ssl

    directory = scratch()
    key, certificate = directory / "key", directory / "certificate"
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=localhost")
    records = {"read": [], "write": []}

    def listen_in(_connection, direction, _version, content_type, _message, data):
        if content_type == 0x100:  # the header of a record, as OpenSSL sees it
            records[direction].append(5 + int.from_bytes(data[3:5], "big"))

    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)
    client_side = ssl.create_default_context(cafile=certificate)
    client_side._msg_callback = listen_in
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname="localhost")
    incoming = ssl.MemoryBIO()
    outgoing = ssl.MemoryBIO()
    server = server_side.wrap_bio(incoming, outgoing, server_side=True)
    streams = {"client": b"", "server": b""}

    def turn(action, *args):
        for _ in range(10):
            done = None
            for step in ((action, *args), (server.do_handshake,)):
                try:
                    done = step[0](*step[1:]) or done
                except ssl.SSLWantReadError:
                    pass
                sent, answered = to_server.read(), outgoing.read()
                streams["client"] += sent
                streams["server"] += answered
                incoming.write(sent)
                to_client.write(answered)
            if not sent and not answered:
                return

    turn(client.do_handshake)
    turn(client.write, b"request" * 300)
    turn(server.read, 100)
    turn(server.write, b"answer" * 500)
    turn(client.read, 50_000)
    turn(client.read, 50_000)
    for side, lengths in (("client", records["write"]), ("server", records["read"])):
        data, messages = streams[side], []
        for length in lengths:
            messages.append(data[:length])
            data = data[length:]
        assert not data, (side, len(data))
        how = f"{ssl.OPENSSL_VERSION}: records as its message callback tells them"
        save(f"tls-{side}", how, messages)


def bgp():
    from scapy.contrib import bgp as layer

    layer.bgp_module_conf.use_2_bytes_asn = False
    path = [layer.BGPPathAttr(type_code="ORIGIN", attribute=layer.BGPPAOrigin(origin="IGP"))]
    networks = [layer.BGPNLRI_IPv4(prefix=f"10.{n}.0.0/16") for n in range(100)]
    messages = [
        layer.BGPHeader() / layer.BGPOpen(my_as=64512, bgp_id="192.0.2.1"),
        layer.BGPHeader() / layer.BGPKeepAlive(),
        layer.BGPHeader() / layer.BGPUpdate(path_attr=path, nlri=networks),
        layer.BGPHeader() / layer.BGPNotification(error_code=6, error_subcode=2),
    ]
    save("bgp-client", made_by("scapy", "contrib.bgp"), [bytes(message) for message in messages])


def diameter():
    from scapy.contrib import diameter as layer

    messages = [
        layer.DiamReq("Capabilities-Exchange", avpList=[
            layer.AVP("Origin-Host", val="client.example.org"),
            layer.AVP("Origin-Realm", val="example.org"),
        ]),
        layer.DiamReq("Device-Watchdog", avpList=[]),
        layer.DiamAns("Device-Watchdog", avpList=[layer.AVP("Origin-Host", val="h" * 300)]),
    ]
    save("diameter-both", made_by("scapy", "contrib.diameter"), [bytes(m) for m in messages])


def smpp():
    from smpplib import smpp as pdus
    from smpplib.client import SimpleSequenceGenerator
    from smpplib.client import Client

    client = Client("127.0.0.1", 0, allow_unknown_opt_params=True)
    client.sequence_generator = SimpleSequenceGenerator()
    messages = [
        pdus.make_pdu("bind_transceiver", client=client, system_id="me", password="secret"),
        pdus.make_pdu("enquire_link", client=client),
        pdus.make_pdu("submit_sm", client=client, source_addr="1", destination_addr="2",
                      short_message=b"text" * 30),
        pdus.make_pdu("unbind", client=client),
    ]
    save("smpp-client", made_by("smpplib", "PDU.generate"), [pdu.generate() for pdu in messages])


def memcached_binary():
    import bmemcached

    sent, read = [], []
    protocol = bmemcached.protocol.Protocol
    send, respond, take = protocol._send, protocol._get_response, protocol._read_socket

    def listen_send(self, data):
        sent.append(bytes(data))
        return send(self, data)

    def listen_respond(self):
        read.append(b"")
        return respond(self)

    def listen_take(self, size):
        data = take(self, size)
        read[-1] += data
        return data

    protocol._send, protocol._get_response = listen_send, listen_respond
    protocol._read_socket = listen_take
    port = free_port()
    with Daemon("memcached", "-l", "127.0.0.1", "-p", str(port), "-B", "binary", "-u", "nobody",
                port=port):
        client = bmemcached.Client([f"127.0.0.1:{port}"])
        client.set("key", "value" * 100)
        assert client.get("key") == "value" * 100
        assert client.get("nothing") is None
        client.delete("key")
        client.flush_all()
    save("memcached-binary-client", made_by("python-binary-memcached", "with memcached"), sent)
    how = f"memcached (Debian), as python-binary-memcached {version('python-binary-memcached')} read it"
    save("memcached-binary-server", how, read)


def nvme_tcp():
    def pdu(kind, header_length, length, offset=0):
        common = struct.pack("<BBBBI", kind, 0, header_length, offset, length)
        return common + bytes(length - len(common))

    how = "built from the document: initialisation, a command, and data with a padded header"
    requests = [pdu(0x00, 128, 128), pdu(0x04, 72, 72), pdu(0x06, 24, 128 + 4096, offset=128)]
    save("nvme-tcp-built", how, requests)


def http2():
    import h2.config
    import h2.connection
    import hyperframe.frame

    frames = {}
    serialize = hyperframe.frame.Frame.serialize

    def listen_in(frame):
        made.append(serialize(frame))
        return made[-1]

    hyperframe.frame.Frame.serialize = listen_in
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    streams = {"client": [], "server": []}
    made = []

    def deliver(side, source, sink):
        data = source.data_to_send()
        messages = list(made)
        made.clear()
        if side == "client" and not streams[side]:
            messages.insert(0, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert data == b"".join(messages)
        streams[side] += messages
        events = sink.receive_data(data)
        return events

    client.initiate_connection()
    deliver("client", client, server)
    server.initiate_connection()
    deliver("server", server, client)
    request = [(":method", "POST"), (":path", "/"), (":scheme", "https"), (":authority", "x")]
    client.send_headers(1, request)
    client.send_data(1, b"d" * 3000, end_stream=True)
    client.ping(b"12345678")
    deliver("client", client, server)
    server.send_headers(1, [(":status", "200"), ("text", "t" * 200)])
    server.send_data(1, b"", end_stream=True)
    deliver("server", server, client)
    client.close_connection()
    deliver("client", client, server)
    for side, messages in streams.items():
        save(f"http2-{side}", made_by("h2", "H2Connection; each frame as hyperframe made it"), messages)


def rpc():
    directory = scratch()
    program = directory / "echo"
    run("gcc", "-I/usr/include/tirpc", HERE / "rpc_echo.c", "-o", program, "-ltirpc")
    with Daemon(program) as server:
        time.sleep(0.5)
        proxy = Proxy(int(server.text()))
        calls = int(run(program, str(proxy.port)))
    how = "libtirpc (Debian) with fragments of 400 bytes; counted are its calls"
    save("rpc-client", how, raw=proxy.to_server, count=calls)
    save("rpc-server", how, raw=proxy.to_client, count=calls)


def postgres():
    from psycopg import pq

    directory = scratch()
    data, trace = directory / "data", directory / "trace"
    programs = run("pg_config", "--bindir").strip()
    os.chown(directory, 65534, 65534)
    as_nobody = dict(user=65534, group=65534, env=os.environ | {"HOME": str(directory)})
    run(f"{programs}/initdb", "-D", data, "-A", "trust", "-U", "me", "-N", **as_nobody)
    port = free_port()
    server = Daemon(f"{programs}/postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1",
                    "-k", directory, port=port, **as_nobody)
    with server, open(trace, "w+") as log:
        proxy = Proxy(port)
        options = f"host=127.0.0.1 port={proxy.port} user=me dbname=postgres sslmode=prefer"
        connection = pq.PGconn.connect_start(options.encode())
        connection.trace(log.fileno())
        connection.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
        while connection.connect_poll() not in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
            time.sleep(0.01)
        assert connection.status == pq.ConnStatus.OK, connection.error_message
        connection.exec_(b"SELECT n, repeat('x', n) FROM generate_series(1, 20) AS n")
        connection.exec_(b"nonsense")
        connection.exec_params(b"SELECT $1::text", [b"parameter"])
        connection.untrace()
        connection.finish()
        time.sleep(0.2)
        log.seek(0)
        lines = [line.split("\t") for line in log.read().splitlines()]
    sides = {"F": [], "B": []}
    for direction, length, name, *_ in lines:
        # libpq's trace does not count the byte of the type, where there is one.
        untyped = name in ("SSLRequest", "GSSENCRequest", "StartupMessage", "SSLResponse",
                           "GSSENCResponse")
        sides[direction].append(int(length) + (not untyped))
        if name == "SSLResponse":
            # libpq does not trace what it sees before it knows the version of the protocol.
            sides["B"].append(9)
    # Terminate is sent when the trace is over.
    sides["F"].append(5)
    how = f"libpq {pq.version()} and PostgreSQL (Debian); lengths of libpq's own trace, but for \
AuthenticationOk and Terminate"
    for side, raw in (("F", proxy.to_server), ("B", proxy.to_client)):
        messages, at = [], 0
        for length in sides[side]:
            messages.append(raw[at : at + length])
            at += length
        assert at == len(raw), (side, at, len(raw), lines)
        save("postgres-client" if side == "F" else "postgres-server", how, messages)


def amqp():
    from pamqp import body, commands, frame, header, heartbeat
    from pamqp.header import ProtocolHeader

    def frames(*parts):
        return [frame.marshal(part, channel) for channel, part in parts]

    start = commands.Connection.Start(0, 9, {"product": "x" * 100}, "PLAIN", "en_US")
    client = frames(
        (0, ProtocolHeader(0, 9, 1)),
        (0, commands.Connection.StartOk({"product": "p"}, "PLAIN", "\0me\0me", "en_US")),
        (0, commands.Connection.TuneOk(10, 131072, 60)),
        (0, commands.Connection.Open("/")),
        (1, commands.Channel.Open()),
        (1, commands.Basic.Publish(0, "exchange", "key")),
        (1, header.ContentHeader(0, 1000)),
        (1, body.ContentBody(b"\xce" * 1000)),
        (0, heartbeat.Heartbeat()),
    )
    server = frames(
        (0, start),
        (0, commands.Connection.Tune(10, 131072, 60)),
        (0, commands.Connection.OpenOk()),
        (1, commands.Channel.OpenOk()),
        (0, heartbeat.Heartbeat()),
    )
    save("amqp-091-client", made_by("pamqp", "frame.marshal"), client)
    save("amqp-091-server", made_by("pamqp", "frame.marshal"), server)

    port = free_port()
    server = Daemon(sys.executable, HERE / "proton_server.py", str(port), port=port)
    with server:
        proxy = Proxy(port)
        traced = Daemon(sys.executable, HERE / "proton_client.py", str(proxy.port),
                        env=os.environ | {"PN_TRACE_FRM": "1"})
        assert traced.process.wait(30) == 0, traced.text()
    # (The end of the stream is in the trace too, and is no frame.)
    names = re.findall(r" (->|<-) (?!EOS)", traced.text())
    how = made_by("python-qpid-proton", "both ends, with SASL; counted in the client's trace")
    save("amqp-10-client", how, raw=proxy.to_server, count=names.count("->"))
    save("amqp-10-server", how, raw=proxy.to_client, count=names.count("<-"))


def websocket():
    from websockets.client import ClientProtocol
    from websockets.frames import Frame
    from websockets.protocol import State
    from websockets.server import ServerProtocol
    from websockets.uri import parse_uri

    serialize = Frame.serialize
    made = []

    def listen_in(frame, **kwargs):
        made.append(serialize(frame, **kwargs))
        return made[-1]

    Frame.serialize = listen_in
    for side, protocol in (
        ("client", ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN)),
        ("server", ServerProtocol(state=State.OPEN)),
    ):
        made.clear()
        protocol.send_text(b"hello")
        protocol.send_text(b"first ", fin=False)
        protocol.send_ping(b"between")
        protocol.send_continuation(b"last", fin=True)
        for size in (0, 125, 126, 1000, 65_536):
            protocol.send_binary(b"b" * size)
        protocol.send_close(1000, "done")
        assert b"".join(protocol.data_to_send()) == b"".join(made)
        save(f"websocket-{side}", made_by("websockets", "after the handshake"), list(made))


def ldap():
    import ldap3
    import ldap3.strategy.base as strategy

    port = free_port()
    sent = []
    encode = strategy.encode

    def listen_in(message):
        sent.append(bytes(encode(message)))
        return sent[-1]

    strategy.encode = listen_in
    server = Daemon(sys.executable, HERE / "ldap_server.py", str(port), port=port)
    with server:
        proxy = Proxy(port)
        connection = ldap3.Connection(ldap3.Server("127.0.0.1", port=proxy.port, get_info=None))
        connection.bind()
        connection.search("dc=example,dc=org", "(objectClass=*)", attributes=["description"])
        connection.search("dc=example,dc=org", "(|" + "(cn=somebody)" * 30 + ")")
        connection.unbind()
    lengths = [int(line) for line in re.findall(r"^wrote (\d+)$", server.text(), re.M)]
    save("ldap-client", made_by("ldap3", "with ldaptor as server"), sent)
    assert proxy.to_server == b"".join(sent)
    messages, at = [], 0
    for length in lengths:
        messages.append(proxy.to_client[at : at + length])
        at += length
    assert at == len(proxy.to_client), (at, len(proxy.to_client), server.text())
    save("ldap-server", made_by("ldaptor", "an LDAPServer in memory"), messages)


def iscsi():
    directory = scratch()
    disk = directory / "disk"
    disk.write_bytes(b"d" * 65536)
    port, control = free_port(), str(30000 + os.getpid() % 2000)
    name = "iqn.2000-01.org.example:disk"

    def administer(*words):
        run("tgtadm", "-C", control, "--lld", "iscsi", *words)

    portal = f"portal=127.0.0.1:{port}"
    with Daemon("tgtd", "-f", "-C", control, "--iscsi", portal, port=port):
        administer("--op", "new", "--mode", "target", "--tid", "1", "-T", name)
        administer("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", str(disk))
        administer("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
        proxy = Proxy(port)
        url = f"iscsi://127.0.0.1:{proxy.port}/{name}/1"
        run("iscsi-inq", url)
        run("iscsi-readcapacity16", url)
        time.sleep(0.3)
        administer("--op", "delete", "--mode", "target", "--tid", "1", "--force")
        administer("--op", "delete", "--mode", "system")
    how = "libiscsi-bin and tgt (Debian), login, inquiry and read capacity; counted by tshark"
    for side, raw in (("client", proxy.to_server), ("server", proxy.to_client)):
        count = counted_by_tshark(raw, 3260, side == "client", "iscsi", "iscsi.opcode")
        save(f"iscsi-{side}", how, raw=raw, count=count)


ALL = {
    "9p": p9, "amqp": amqp, "bgp": bgp, "cassandra": cassandra, "diameter": diameter, "dns": dns,
    "http2": http2, "iscsi": iscsi, "kafka": kafka, "ldap": ldap,
    "memcached-binary": memcached_binary, "mongodb": mongodb, "mqtt": mqtt, "mysql": mysql,
    "nvme-tcp": nvme_tcp, "postgres": postgres, "rds": rds, "rpc": rpc, "smpp": smpp,
    "thrift": thrift, "tls": tls, "websocket": websocket,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or ALL:
        ALL[name]()
