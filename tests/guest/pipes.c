/* Pipes and FIFOs: capacity, atomicity, ends of input and output, splice and tee, packets. */
#include "check.h"
#include <sys/inotify.h>

static void capacity(void) {
    int ends[2], left;
    TRY(pipe2(ends, O_NONBLOCK | O_CLOEXEC));
    printf("flags %x %x\n", fcntl(ends[0], F_GETFD), fcntl(ends[1], F_GETFL) & (O_NONBLOCK | O_ACCMODE));
    TRY(fcntl(ends[0], F_GETPIPE_SZ));
    static char block[200000];
    TRY(write(ends[1], block, sizeof block));
    TRY(write(ends[1], block, 1));
    TRY(ioctl(ends[0], FIONREAD, &left));
    printf("left %d\n", left);
    TRY(read(ends[0], block, 100));
    /* Not a whole page is free: an atomic write of a page does not fit. */
    TRY(write(ends[1], block, 4096));
    TRY(read(ends[0], block, 4096));
    TRY(write(ends[1], block, 4096));
    TRY(fcntl(ends[1], F_SETPIPE_SZ, 4096));
    while (read(ends[0], block, sizeof block) > 0)
        ;
    TRY(fcntl(ends[1], F_SETPIPE_SZ, 5000));
    TRY(write(ends[1], block, 9000));
    TRY(read(ends[1], block, 1));
    TRY(write(ends[0], block, 1));
    TRY(lseek(ends[0], 0, SEEK_SET));
    TRY(pread(ends[0], block, 1, 0));
    close(ends[1]);
    while (read(ends[0], block, sizeof block) > 0)
        ;
    TRY(read(ends[0], block, 1));
    close(ends[0]);
}

static void broken(void) {
    int ends[2];
    pipe(ends);
    close(ends[0]);
    IN_CHILD("broken pipe") { write(ends[1], "x", 1); }
    signal(SIGPIPE, SIG_IGN);
    TRY(write(ends[1], "x", 1));
    TRY(write(ends[1], "", 0));
    struct pollfd poll_me = {.fd = ends[1], .events = POLLOUT};
    TRY(poll(&poll_me, 1, 0));
    printf("events %#x\n", poll_me.revents);
    close(ends[1]);
}

static void interleaved(void) {
    int ends[2];
    pipe(ends);
    for (int writer = 0; writer < 4; writer++)
        if (fork() == 0) {
            char line[512];
            memset(line, 'a' + writer, sizeof line);
            for (int i = 0; i < 500; i++)
                write(ends[1], line, sizeof line);
            _exit(0);
        }
    close(ends[1]);
    char line[512];
    int torn = 0, counts[4] = {0};
    for (;;) {
        size_t have = 0;
        ssize_t got;
        while (have < sizeof line && (got = read(ends[0], line + have, sizeof line - have)) > 0)
            have += (size_t)got;
        if (have < sizeof line)
            break;
        counts[line[0] - 'a']++;
        for (size_t i = 1; i < sizeof line; i++)
            torn += line[i] != line[0];
    }
    close(ends[0]);
    while (wait(NULL) > 0)
        ;
    printf("counts %d %d %d %d torn %d\n", counts[0], counts[1], counts[2], counts[3], torn);
}

static void splices(void) {
    int one[2], two[2], file = open("spliced", O_RDWR | O_CREAT | O_TRUNC, 0600);
    pipe(one);
    pipe(two);
    write(one[1], "hello world", 11);
    TRY(tee(one[0], two[1], 5, 0));
    char text[32] = "";
    TRY(read(two[0], text, sizeof text));
    printf("%.5s\n", text);
    loff_t offset = 3;
    TRY(splice(one[0], NULL, file, &offset, 11, 0));
    printf("offset %ld\n", (long)offset);
    offset = 3;
    TRY(splice(file, &offset, two[1], NULL, 100, 0));
    TRY(read(two[0], text, sizeof text));
    printf("%.11s\n", text);
    TRY(splice(file, NULL, file, NULL, 1, 0));
    TRY(tee(one[0], one[1], 1, 0));
    struct iovec part = {"vm", 2};
    TRY(vmsplice(one[1], &part, 1, 0));
    TRY(read(one[0], text, sizeof text));
    close(file);
}

static void packets(void) {
    int ends[2];
    char text[16];
    TRY(pipe2(ends, O_DIRECT));
    write(ends[1], "first", 5);
    write(ends[1], "second", 6);
    TRY(read(ends[0], text, 3));
    TRY(read(ends[0], text, sizeof text));
}

static void fifos(void) {
    TRY(mkfifo("fifo", 0600));
    TRY(mkfifo("fifo", 0600));
    TRY(open("fifo", O_WRONLY | O_NONBLOCK));
    int reader = open("fifo", O_RDONLY | O_NONBLOCK);
    char text[16];
    TRY(read(reader, text, 1));
    int writer = open("fifo", O_WRONLY | O_NONBLOCK);
    TRY(read(reader, text, 1));
    TRY(write(writer, "abc", 3));
    TRY(read(reader, text, sizeof text));
    close(writer);
    TRY(read(reader, text, 1));
    close(reader);
    pid_t pid = fork();
    if (pid == 0) {
        int end = open("fifo", O_WRONLY);
        write(end, "met", 3);
        _exit(0);
    }
    reader = open("fifo", O_RDONLY);
    TRY(read(reader, text, sizeof text));
    TRY(read(reader, text, sizeof text));
    reap("writer", pid);
    int both = open("fifo", O_RDWR);
    write(both, "self", 4);
    TRY(read(both, text, sizeof text));
    struct stat status;
    fstat(both, &status);
    printf("mode %o size %ld\n", status.st_mode, (long)status.st_size);
    TRY(unlink("fifo"));
}

int main(void) {
    capacity();
    broken();
    interleaved();
    splices();
    packets();
    fifos();
    int ends[2];
    TRY(pipe2(ends, 0x40000000));
    TRY(pipe((int *)8));
    return 0;
}
