/* Addresses that are not there, or not with the rights that a call needs: EFAULT, short counts, never more. */
#include "check.h"
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/utsname.h>

int main(void) {
    char *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *edge = pages + 4096;
    munmap(edge, 4096);
    char *constant = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* getcwd's errors depend on the length of the path. */
    mkdir("/tmp/bad-pointers", 0755);
    TRY(chdir("/tmp/bad-pointers"));
    TRY(rmdir("/tmp/bad-pointers"));
    TRY(chdir("/tmp"));
    void *kernel = (void *)0xffffffff81000000ul, *odd = (void *)0x800000000000ul;
    int file = open("data", O_RDWR | O_CREAT | O_TRUNC, 0600), ends[2];
    static char block[8192];
    memset(block, 'b', sizeof block);
    write(file, block, sizeof block);
    pipe(ends);
    void *places[] = {NULL, constant, none, kernel, odd, edge};
    const char *names[] = {"null", "read-only", "none", "kernel", "non-canonical", "unmapped"};
    for (int i = 0; i < 6; i++) {
        void *bad = places[i];
        struct stat *status = bad;
        printf("== %s\n", names[i]);
        TRY(pread(file, bad, 10, 0));
        TRY(pwrite(file, i == 1 ? none : bad, 10, 0));
        TRY(fstat(file, status));
        TRY(uname(bad));
        TRY(pipe(bad));
        TRY(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, bad));
        TRY(syscall(SYS_getcwd, bad, 100));
        TRY(syscall(SYS_wait4, -1, bad, WNOHANG, NULL));
        TRY(readlink("/proc/self/exe", bad, 50));
        TRY(getrlimit(RLIMIT_CORE, bad));
        TRY(ioctl(ends[0], FIONREAD, bad));
        TRY(syscall(SYS_rt_sigaction, SIGUSR1, i == 1 ? none : bad, NULL, 8) == 0 && bad ? 0 : -1);
        TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, bad));
        TRY(syscall(SYS_poll, bad, 1, 0));
        TRY(syscall(SYS_getrandom, bad, 10, 0));
        if (i != 1) {
            TRY(open(bad, O_RDONLY));
            TRY(mkdir(bad, 0700));
            TRY(syscall(SYS_nanosleep, bad, NULL));
            TRY(writev(ends[1], bad, 1));
            TRY(syscall(SYS_bind, 999, bad, 10));
        }
    }
    puts("== across an edge");
    TRY(pread(file, edge - 100, 200, 0));
    TRY(pwrite(file, edge - 100, 200, 0));
    memcpy(edge - 5, "name", 5);
    TRY(open(edge - 5, O_RDONLY));
    memcpy(edge - 4, "name", 4);
    TRY(open(edge - 4, O_RDONLY));
    TRY(write(ends[1], edge - 100, 200));
    TRY(write(ends[1], block, 150));
    TRY(read(ends[0], edge - 100, 200));
    static char pages_of_data[12288];
    char *half = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(half + 8192, 4096, PROT_NONE);
    int left;
    pipe2(ends, O_NONBLOCK);
    TRY(write(ends[1], half + 8000, 400));
    TRY(write(ends[1], "short", 5));
    TRY(write(ends[1], half + 8000, 400));
    TRY((ioctl(ends[0], FIONREAD, &left), left));
    TRY(read(ends[0], half, 400));
    TRY(write(ends[1], half, 12288));
    TRY((ioctl(ends[0], FIONREAD, &left), left));
    TRY(read(ends[0], pages_of_data, 12288));
    TRY(write(ends[1], pages_of_data, 12288));
    TRY(read(ends[0], half + 100, 12288));
    TRY(read(ends[0], half + 4097, 12288));
    TRY(read(ends[0], half + 4096, 12288));
    TRY(read(ends[0], half, 12288));
    for (left = 0; write(ends[1], pages_of_data, 3000) == 3000; left++)
        ;
    printf("writes of 3000: %d\n", left);
    TRY(write(ends[1], pages_of_data, 1000));
    TRY(write(ends[1], pages_of_data, 1000));
    struct iovec parts[] = {{block, 10}, {edge, 10}, {block, 10}};
    TRY(writev(file, parts, 3));
    TRY(preadv(file, parts, 3, 0));
    struct iovec wide[] = {{block, SIZE_MAX}, {block, 10}};
    TRY(writev(file, wide, 2));
    TRY(read(file, block, SIZE_MAX));
    TRY(syscall(SYS_write, file, block, -1L));
    TRY(syscall(SYS_mmap, 1, SIZE_MAX, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    TRY(syscall(SYS_munmap, 0, SIZE_MAX));
    TRY(syscall(SYS_mprotect, pages, SIZE_MAX & ~4095ul, PROT_READ));
    TRY(syscall(SYS_madvise, pages, SIZE_MAX, 4));
    puts("still here");
    return 0;
}
