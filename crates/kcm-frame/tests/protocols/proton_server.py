"""An AMQP 1.0 peer that accepts whatever it is sent."""

import sys
from proton.handlers import MessagingHandler
from proton.reactor import Container

class Server(MessagingHandler):
    def on_start(self, event):
        event.container.listen(f"127.0.0.1:{sys.argv[1]}")

Container(Server()).run()
