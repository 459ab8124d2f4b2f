/* Answers each message with its body in capitals. Framing: u32be+4. */
#include <ctype.h>
#include <unistd.h>

int main(void)
{
    static unsigned char message[256 << 10];
    ssize_t len;

    while ((len = read(0, message, sizeof message)) > 0) { /* one read is one message */
        for (ssize_t i = 4; i < len; i++)
            message[i] = toupper(message[i]);
        if (write(1, message, len) != len) /* one write is one reply */
            return 1;
    }
    return 0;
}
