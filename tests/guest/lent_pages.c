/* vmsplice: how much one call moves, when it waits, and what its own flag and the descriptor's say about waiting. */
#include "check.h"

#define PAGE 4096
static _Alignas(PAGE) char block[40 * PAGE];

static long move(int fd, char *from, size_t length, unsigned flags) {
    struct iovec part = {from, length};
    return vmsplice(fd, &part, 1, flags);
}

static void fills(void) {
    int ends[2];
    pipe(ends);
    /* More than fits: what fits is moved, nobody waits for the rest. */
    TRY(move(ends[1], block, sizeof block, 0));
    TRY(move(ends[1], block, PAGE, SPLICE_F_NONBLOCK));
    TRY(read(ends[0], block, 3 * PAGE));
    TRY(move(ends[1], block, sizeof block, SPLICE_F_NONBLOCK));
    TRY(move(ends[1], block, 0, SPLICE_F_NONBLOCK));
    TRY(move(ends[1], block, 1, 0x100));
    close(ends[0]);
    signal(SIGPIPE, SIG_IGN);
    TRY(move(ends[1], block, 1, 0));
    close(ends[1]);
}

static void waits(void) {
    int ends[2];
    pipe(ends);
    move(ends[1], block, sizeof block, 0);
    pid_t pid = fork();
    if (pid == 0) {
        /* Waits for room. */
        _exit(move(ends[1], block, PAGE, 0) == PAGE ? 7 : 1);
    }
    nap(50);
    TRY(waitpid(pid, NULL, WNOHANG));
    TRY(read(ends[0], block, 2 * PAGE));
    reap("filler", pid);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    while (read(ends[0], block, sizeof block) > 0)
        ;
    fcntl(ends[0], F_SETFL, 0);
    TRY(move(ends[0], block, 10, SPLICE_F_NONBLOCK));
    TRY(write(ends[1], "abcdef", 6));
    memset(block, 0, 10);
    TRY(move(ends[0], block, 10, 0));
    printf("got %s\n", block);
    pid = fork();
    if (pid == 0)
        _exit(move(ends[0], block, 10, 0) == 3 ? 8 : 1);
    nap(50);
    TRY(waitpid(pid, NULL, WNOHANG));
    TRY(write(ends[1], "xyz", 3));
    reap("reader", pid);
}

static void descriptors(void) {
    int ends[2], file = open("plain", O_RDWR | O_CREAT, 0644);
    TRY(move(file, block, 1, 0));
    TRY(move(99, block, 1, 0));
    pipe(ends);
    TRY(move(ends[1], NULL, 1, 0));
    TRY(move(ends[1], block, sizeof block, 0));
    /* All of it through the pipe into a file, bit by bit. */
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (char)(i * 7 >> 3);
    char drain[16 * PAGE];
    read(ends[0], drain, sizeof drain);
    size_t done = 0;
    int calls = 0;
    while (done < sizeof block) {
        long moved = move(ends[1], block + done, sizeof block - done, 0);
        if (moved <= 0 || splice(ends[0], NULL, file, NULL, moved, 0) != moved)
            break;
        done += moved;
        calls++;
    }
    printf("moved %zu in %d calls\n", done, calls);
    static char copy[sizeof block];
    TRY(pread(file, copy, sizeof copy, 0));
    printf("same %d\n", memcmp(copy, block, sizeof block) == 0);
    TRY(unlink("plain"));
}

int main(void) {
    fills();
    waits();
    descriptors();
    return 0;
}
