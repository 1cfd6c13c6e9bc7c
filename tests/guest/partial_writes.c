/* Writes that have to wait after a part of their bytes: every byte arrives once, in order, and the call returns the whole length. The calls in
 * between keep whatever answers calls busy, so that all ways of making a call are met. */
#include "check.h"

enum { ROUNDS = 3000 };

static unsigned char next_byte(unsigned *state) {
    *state = *state * 1103515245 + 12345;
    return *state >> 16;
}

static void fill(unsigned char *to, size_t length, unsigned *state) {
    while (length--)
        *to++ = next_byte(state);
}

static ssize_t by_writev(int fd, unsigned char *block) {
    struct iovec parts[3] = {{block, 1000}, {block + 1000, 4500}, {block + 5500, 500}};
    return writev(fd, parts, 3);
}

static ssize_t by_write(int fd, unsigned char *block) { return write(fd, block, 4096); }

static ssize_t by_send(int fd, unsigned char *block) { return send(fd, block, 3000, 0); }

static ssize_t by_sendmsg(int fd, unsigned char *block) {
    struct iovec parts[2] = {{block, 2000}, {block + 2000, 4000}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    return sendmsg(fd, &message, 0);
}

static void transfer(const char *what, int in, int out, ssize_t (*send_block)(int, unsigned char *), size_t length) {
    pid_t pid = fork();
    if (pid == 0) {
        unsigned char block[6000];
        unsigned state = 1;
        close(in);
        for (int round = 0; round < ROUNDS; round++) {
            fill(block, length, &state);
            for (int n = 0; n < round % 7; n++)
                syscall(SYS_getppid);
            ssize_t done = send_block(out, block);
            if (done != (ssize_t)length) {
                printf("%s: round %d wrote %zd\n", what, round, done);
                _exit(1);
            }
        }
        _exit(0);
    }
    close(out);
    unsigned char got[5000];
    unsigned state = 1, sizes = 7;
    size_t total = 0, wrong = 0;
    for (;;) {
        ssize_t done = read(in, got, 1 + next_byte(&sizes) * 19 % sizeof got);
        if (done <= 0)
            break;
        for (ssize_t n = 0; n < done; n++)
            wrong += got[n] != next_byte(&state);
        total += done;
        for (int n = 0; n < (int)(total % 5); n++)
            syscall(SYS_getppid);
    }
    close(in);
    reap(what, pid);
    printf("%s: %zu bytes, %zu wrong\n", what, total, wrong);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    int ends[2];
    pipe(ends);
    fcntl(ends[1], F_SETPIPE_SZ, 4096);
    transfer("pipe, writev", ends[0], ends[1], by_writev, 6000);
    pipe(ends);
    fcntl(ends[1], F_SETPIPE_SZ, 4096);
    transfer("pipe, write", ends[0], ends[1], by_write, 4096);
    int least = 1;
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &least, sizeof least);
    transfer("socket, send", ends[0], ends[1], by_send, 3000);
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &least, sizeof least);
    transfer("socket, sendmsg", ends[0], ends[1], by_sendmsg, 6000);
    return 0;
}
