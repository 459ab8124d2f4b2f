"""An LDAP server that prints the length of each message it makes."""

import sys
from ldaptor.inmemory import fromLDIFFile
from ldaptor.interfaces import IConnectedLDAPEntry
from ldaptor.protocols.ldap.ldapserver import LDAPServer
from ldaptor.protocols import pureldap
from twisted.internet import reactor
from twisted.internet.protocol import ServerFactory
from twisted.python.components import registerAdapter
import io

LDIF = b'''dn: dc=example,dc=org
objectClass: dcObject
dc: example
description: ''' + b"d" * 300 + b'''

dn: cn=somebody,dc=example,dc=org
objectClass: person
cn: somebody
sn: body

'''

class Factory(ServerFactory):
    protocol = LDAPServer
    root = None

registerAdapter(lambda factory: factory.root, Factory, IConnectedLDAPEntry)
factory = Factory()

to_wire = pureldap.LDAPMessage.toWire
def listen_in(self):
    wire = to_wire(self)
    print("wrote", len(wire), flush=True)
    return wire
pureldap.LDAPMessage.toWire = listen_in

def start(root):
    factory.root = root
    reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1")

fromLDIFFile(io.BytesIO(LDIF)).addCallback(start)
reactor.run()
