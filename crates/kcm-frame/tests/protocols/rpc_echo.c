/* An ONC RPC server and its client, which send records of several fragments. */
#include <arpa/inet.h>
#include <rpc/rpc.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PROGRAM = 0x20000000 + 77, ECHO = 1, LONGEST = 1 << 20, FRAGMENT = 400 };

static bool_t xdr_text(XDR *xdrs, char **text) { return xdr_string(xdrs, text, LONGEST); }

static void serve(struct svc_req *request, SVCXPRT *transport)
{
    char *text = NULL;
    if (request->rq_proc == NULLPROC) { svc_sendreply(transport, (xdrproc_t)xdr_void, NULL); return; }
    if (!svc_getargs(transport, (xdrproc_t)xdr_text, (char *)&text)) { svcerr_decode(transport); return; }
    svc_sendreply(transport, (xdrproc_t)xdr_text, (char *)&text);
    svc_freeargs(transport, (xdrproc_t)xdr_text, (char *)&text);
}

int main(int argc, char **argv)
{
    if (argc == 1) {
        struct sockaddr_in address = { .sin_family = AF_INET };
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        socklen_t length = sizeof address;
        bind(listener, (struct sockaddr *)&address, length);
        listen(listener, 5);
        getsockname(listener, (struct sockaddr *)&address, &length);
        SVCXPRT *transport = svc_vc_create(listener, FRAGMENT, FRAGMENT);
        svc_reg(transport, PROGRAM, 1, serve, NULL);
        printf("%d\n", ntohs(address.sin_port));
        fflush(stdout);
        svc_run();
        return 1;
    }
    struct sockaddr_in address = { .sin_family = AF_INET };
    int port, calls = 0, fd = RPC_ANYSOCK;
    sscanf(argv[1], "%d", &port);
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CLIENT *client = clnttcp_create(&address, PROGRAM, 1, &fd, FRAGMENT, FRAGMENT);
    struct timeval soon = { 10, 0 };
    static char text[3000], *sent = text, *back;
    for (int length = 0; client && length < 3000; length = 2 * length + 100) {
        memset(text, 'x', length);
        text[length] = 0;
        back = NULL;
        enum clnt_stat stat = length == 0
            ? clnt_call(client, NULLPROC, (xdrproc_t)xdr_void, NULL, (xdrproc_t)xdr_void, NULL, soon)
            : clnt_call(client, ECHO, (xdrproc_t)xdr_text, (char *)&sent, (xdrproc_t)xdr_text,
                        (char *)&back, soon);
        if (stat != RPC_SUCCESS || (back && strcmp(back, text))) { clnt_perror(client, "call"); return 1; }
        calls++;
    }
    printf("%d\n", calls);
    return 0;
}
