"""What make.py makes its files with: a proxy that listens in, and the format."""

import itertools
import os
import pathlib
import socket
import subprocess
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).parent


def save(stream, how, messages=None, raw=None, count=None):
    """One direction of one connection.

    `messages` are the byte strings that the implementation made one by one; or
    `raw` is what it sent, and `count` how many messages it says that this was.
    """
    if messages is not None:
        raw = b"".join(messages)
        told = "lengths: " + " ".join(str(len(message)) for message in messages)
        count = len(messages)
    else:
        told = f"count: {count}"
    assert raw and count, stream
    digits = raw.hex()
    lines = [digits[i : i + 96] for i in range(0, len(digits), 96)]
    # "78*3" is "78" three times.
    runs = [(line, len(list(same))) for line, same in itertools.groupby(lines)]
    lines = [line if times == 1 else f"{line}*{times}" for line, times in runs]
    text = "\n".join([f"# {how}", told, *lines]) + "\n"
    (HERE / f"{stream}.txt").write_text(text)
    print(f"{stream}: {count} messages, {len(raw)} bytes")


class Proxy:
    """Forwards one connection after the other and keeps both directions."""

    def __init__(self, port):
        self.to_server, self.to_client = b"", b""
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection(("127.0.0.1", self.target))
            pumps = [
                threading.Thread(target=self._pump, args=args, daemon=True)
                for args in ((client, server, "to_server"), (server, client, "to_client"))
            ]
            for pump in pumps:
                pump.start()

    def _pump(self, source, sink, name):
        try:
            while data := source.recv(65536):
                setattr(self, name, getattr(self, name) + data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Daemon:
    """A program that runs until the end of a `with`; its output is kept."""

    def __init__(self, *command, port=None, **kwargs):
        self.output = tempfile.TemporaryFile("w+")
        out = dict(stdout=self.output, stderr=subprocess.STDOUT)
        self.process = subprocess.Popen(command, **(out | kwargs))
        if port:
            wait_for(port)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        time.sleep(0.3)
        self.process.terminate()
        self.process.wait(10)

    def text(self):
        self.output.seek(0)
        return self.output.read()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for(port):
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nobody listens on port {port}")


def run(*command, **kwargs):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, **kwargs).stdout


def scratch():
    """A directory that other users may enter."""
    directory = tempfile.mkdtemp(prefix="protocols-")
    os.chmod(directory, 0o755)
    return pathlib.Path(directory)


def counted_by_tshark(data, port, to_server, layer, field):
    """How often tshark sees `field` in a stream, for programs that do not say."""
    from scapy.all import IP, TCP, Raw, wrpcap

    sport, dport = (50000, port) if to_server else (port, 50000)
    ends = dict(sport=sport, dport=dport)
    address = IP(src="127.0.0.1", dst="127.0.0.1")
    packets = [address / TCP(**ends, flags="S", seq=999)]
    for at in range(0, len(data), 1000):
        segment = TCP(**ends, flags="PA", seq=1000 + at, ack=1)
        packets.append(address / segment / Raw(data[at : at + 1000]))
    path = scratch() / "stream.pcap"
    wrpcap(str(path), packets)
    decode = f"tcp.port=={port},{layer}"
    seen = run("tshark", "-r", str(path), "-d", decode, "-T", "fields", "-E", "occurrence=a", "-e", field)
    return sum(len(line.split(",")) for line in seen.split("\n") if line)
