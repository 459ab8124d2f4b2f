"""Sends three messages by AMQP 1.0, after a SASL exchange."""

import sys
from proton import Message
from proton.handlers import MessagingHandler
from proton.reactor import Container

class Client(MessagingHandler):
    def on_start(self, event):
        connection = event.container.connect(f"127.0.0.1:{sys.argv[1]}", sasl_enabled=True,
                                             allowed_mechs="ANONYMOUS", reconnect=False)
        event.container.create_sender(connection, "somewhere")
    sent = 0
    def on_sendable(self, event):
        while self.sent < 3:
            event.sender.send(Message(body="text" * 100 * self.sent))
            self.sent += 1
    settled = 0
    def on_accepted(self, event):
        self.settled += 1
        if self.settled == 3:
            event.connection.close()

Container(Client()).run()
