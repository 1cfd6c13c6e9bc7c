/* One operation of the benchmark, timed inside the container: `ops NAME [DIRECTORY [COUNT]]` prints nanoseconds per operation
 * (for transfers: per KiB). Every measurement repeats until it has lasted long enough for the clock, or is made COUNT times. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *directory = "/tmp";
static char path[256], block[1 << 20];
static int file, to_child[2], to_parent[2];
static const size_t FILE_SIZE = 32 << 20;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void check(long result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static void prepare_file(size_t size) {
    snprintf(path, sizeof path, "%s/bench-file", directory);
    file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    check(file, path);
    memset(block, 'x', sizeof block);
    for (size_t done = 0; done < size; done += sizeof block)
        check(write(file, block, sizeof block), "write");
}

static void op_getpid(long count) {
    while (count--)
        syscall(SYS_getpid);
}

static void op_clock(long count) {
    struct timespec time;
    while (count--)
        clock_gettime(CLOCK_MONOTONIC, &time);
}

static void op_pread(long count) {
    while (count--)
        check(pread(file, block, 64, 0), "pread");
}

static void op_pwrite(long count) {
    while (count--)
        check(pwrite(file, block, 4096, 0), "pwrite");
}

/* A file that comes with the root. */
static void use_existing(void) {
    strcpy(path, "/etc/passwd");
}

static void op_pipe(long count) {
    char byte = 0;
    while (count--) {
        check(write(to_child[1], &byte, 1), "write");
        check(read(to_child[0], &byte, 1), "read");
    }
}

static void op_unix(long count) {
    while (count--) {
        check(write(to_child[1], block, 64), "write");
        check(read(to_child[0], block, 64), "read");
    }
}

static void op_open(long count) {
    while (count--) {
        int fd = open(path, O_RDONLY);
        check(fd, "open");
        close(fd);
    }
}

static void op_stat(long count) {
    struct stat status;
    while (count--)
        check(stat(path, &status), "stat");
}

static void op_pingpong(long count) {
    char byte = 0;
    while (count--) {
        check(write(to_child[1], &byte, 1), "write");
        check(read(to_parent[0], &byte, 1), "read");
    }
}

static void *echo(void *unused) {
    char byte;
    while (read(to_child[0], &byte, 1) == 1)
        check(write(to_parent[1], &byte, 1), "write");
    return unused;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static volatile int turn;

static void *partner(void *unused) {
    pthread_mutex_lock(&lock);
    for (;;) {
        while (turn != 1)
            pthread_cond_wait(&changed, &lock);
        turn = 0;
        pthread_cond_signal(&changed);
    }
    return unused;
}

/* A word that two threads on two processors hand each other: what the machine itself takes for an answer. */
static struct {
    _Alignas(128) atomic_ulong word;
} line;

static void stay_on(int which) {
    cpu_set_t all, one;
    CPU_ZERO(&one);
    check(sched_getaffinity(0, sizeof all, &all), "sched_getaffinity");
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &all) && which-- == 0)
            CPU_SET(i, &one);
    if (CPU_COUNT(&one))
        check(sched_setaffinity(0, sizeof one, &one), "sched_setaffinity");
}

static void *answerer(void *unused) {
    stay_on(1);
    for (;;)
        if (atomic_load(&line.word) & 1)
            atomic_fetch_add(&line.word, 1);
        else
            __builtin_ia32_pause();
    return unused;
}

static void op_line(long count) {
    while (count-- > 0) {
        atomic_fetch_add(&line.word, 1);
        while (atomic_load(&line.word) & 1)
            __builtin_ia32_pause();
    }
}

static void op_switch(long count) {
    pthread_mutex_lock(&lock);
    while (count--) {
        turn = 1;
        pthread_cond_signal(&changed);
        while (turn != 0)
            pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
}

static void op_fork(long count) {
    while (count--) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        check(pid, "fork");
        waitpid(pid, NULL, 0);
    }
}

static char *self;
static void op_exec(long count) {
    while (count--) {
        pid_t pid = fork();
        if (pid == 0) {
            char *args[] = {self, "nothing", NULL}, *none[] = {NULL};
            execve(self, args, none);
            _exit(1);
        }
        check(pid, "fork");
        int status;
        waitpid(pid, &status, 0);
        if (status)
            check(-1, "exec");
    }
}

static void op_touch(long count) {
    /* 16 MiB at a time, 4096 pages. */
    while (count > 0) {
        long pages = count < 4096 ? count : 4096;
        char *memory = mmap(NULL, (size_t)pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (long i = 0; i < pages; i++)
            *(volatile char *)(memory + i * 4096) = 1;
        munmap(memory, (size_t)pages * 4096);
        count -= pages;
    }
}

static void op_mmap(long count) {
    while (count--) {
        void *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(memory, 65536);
    }
}

static void op_mmap_touch(long count) {
    while (count--) {
        char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *(volatile char *)memory = 1;
        munmap(memory, 4096);
    }
}

/* Transfers: one operation is a KiB. */
static void op_seqread(long count) {
    for (long offset = 0; count > 0; count -= 1024, offset = (offset + (1 << 20)) % (long)FILE_SIZE)
        check(pread(file, block, 1 << 20, offset), "pread");
}

static void op_seqwrite(long count) {
    for (long offset = 0; count > 0; count -= 1024, offset = (offset + (1 << 20)) % (long)FILE_SIZE)
        check(pwrite(file, block, 1 << 20, offset), "pwrite");
}

static unsigned seed = 1;
static long random_offset(void) {
    seed = seed * 1664525 + 1013904223;
    return (long)(seed >> 8) % (long)(FILE_SIZE / 4096) * 4096;
}

static void op_randread(long count) {
    for (; count > 0; count -= 4)
        check(pread(file, block, 4096, random_offset()), "pread");
}

static void op_randwrite(long count) {
    for (; count > 0; count -= 4)
        check(pwrite(file, block, 4096, random_offset()), "pwrite");
}

static const struct {
    const char *name;
    void (*run)(long);
    size_t file_size;
} operations[] = {
    {"getpid", op_getpid, 0},       {"clock_gettime", op_clock, 0}, {"pread", op_pread, 1 << 20},
    {"open+close", op_open, 4096},  {"stat", op_stat, 4096},        {"pipe-ping-pong", op_pingpong, 0},
    {"line-round-trip", op_line, 0}, {"thread-switch", op_switch, 0}, {"fork+exit+wait", op_fork, 0}, {"fork+exec+wait", op_exec, 0},
    {"open+close-root", op_open, 0}, {"stat-root", op_stat, 0}, {"pwrite", op_pwrite, 1 << 20},
    {"pipe-write+read", op_pipe, 0}, {"unix-write+read", op_unix, 0}, {"mmap+touch+munmap", op_mmap_touch, 0},
    {"page-touch", op_touch, 0},    {"mmap+munmap", op_mmap, 0},    {"seq-read", op_seqread, FILE_SIZE},
    {"seq-write", op_seqwrite, FILE_SIZE}, {"rand-read", op_randread, FILE_SIZE}, {"rand-write", op_randwrite, FILE_SIZE},
};

int main(int argc, char **argv) {
    self = argv[0];
    if (argc < 2 || strcmp(argv[1], "nothing") == 0)
        return 0;
    if (argc > 2)
        directory = argv[2];
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        if (strcmp(operations[i].name, argv[1]))
            continue;
        if (operations[i].file_size)
            prepare_file(operations[i].file_size);
        if (strstr(argv[1], "-root"))
            use_existing();
        if (operations[i].run == op_pipe)
            check(pipe(to_child), "pipe");
        if (operations[i].run == op_unix)
            check(socketpair(AF_UNIX, SOCK_STREAM, 0, to_child), "socketpair");
        pthread_t thread;
        if (operations[i].run == op_pingpong) {
            check(pipe(to_child) | pipe(to_parent), "pipe");
            pid_t pid = fork();
            if (pid == 0) {
                close(to_child[1]);
                echo(NULL);
                _exit(0);
            }
            close(to_child[0]);
        }
        if (operations[i].run == op_switch)
            pthread_create(&thread, NULL, partner, NULL);
        if (operations[i].run == op_line) {
            pthread_create(&thread, NULL, answerer, NULL);
            stay_on(0);
        }
        operations[i].run(64);
        long count = argc > 3 ? atol(argv[3]) : 64;
        double took;
        for (;;) {
            double start = now();
            operations[i].run(count);
            took = now() - start;
            if (argc > 3 || took > 150e6 || count > 200000000)
                break;
            long more = took > 1e6 ? (long)((double)count * 200e6 / took) + 64 : count * 8;
            count = more;
        }
        printf("%.1f\n", took / (double)count);
        if (path[0] && file)
            unlink(path);
        fflush(stdout);
        _exit(0);
    }
    fprintf(stderr, "no operation %s\n", argv[1]);
    return 2;
}
