/* madvise, mincore, mlock, msync, process_vm_*, membarrier, and system calls with bad addresses. */
#include "probe.h"
#include <linux/membarrier.h>

static void advice(char *p, char *shared) {
    memset(p + 8 * PAGE, 1, 4 * PAGE);
    TRY(madvise(p + 8 * PAGE, 2 * PAGE, MADV_DONTNEED));
    printf("discarded: %d, kept: %d\n", p[8 * PAGE], p[10 * PAGE]);
    TRY(madvise(p + 1, PAGE, MADV_DONTNEED));
    TRY(madvise(p, PAGE, 9999));
    TRY(madvise(p, 0, MADV_DONTNEED));
    TRY(madvise(p + 3 * PAGE, 3 * PAGE, MADV_DONTNEED));
    TRY(madvise(p + 8 * PAGE, PAGE, MADV_FREE));
    TRY(madvise(shared, PAGE, MADV_FREE));
    shared[0] = 1;
    TRY(madvise(shared, PAGE, MADV_REMOVE));
    printf("removed: %d\n", shared[0]);
    TRY(madvise(p + 8 * PAGE, PAGE, MADV_REMOVE));
    TRY(madvise(shared, PAGE, MADV_WIPEONFORK));
    TRY(madvise(p + 8 * PAGE, PAGE, MADV_WILLNEED));
    TRY(madvise(p + 8 * PAGE, PAGE, MADV_COLD));
    TRY(madvise(p + 8 * PAGE, PAGE, MADV_PAGEOUT));
    TRY(madvise(p + 8 * PAGE, 4 * PAGE, MADV_POPULATE_WRITE));
    mprotect(p + 8 * PAGE, PAGE, PROT_READ);
    TRY(madvise(p + 8 * PAGE, PAGE, MADV_POPULATE_WRITE));
    TRY(madvise(p + 3 * PAGE, 3 * PAGE, MADV_POPULATE_READ));
    TRY(madvise(p + 8 * PAGE, PAGE, MADV_HUGEPAGE));
    TRY(madvise(p + 8 * PAGE, PAGE, MADV_DONTDUMP));
    TRY(madvise(p, -PAGE, MADV_DONTNEED));
}

static void residence(char *p) {
    unsigned char there[16];
    TRY(mincore(p + 9 * PAGE, 2 * PAGE, there));
    printf("in memory: %d %d\n", there[0] & 1, there[1] & 1);
    TRY(mincore(p + 3 * PAGE, 3 * PAGE, there));
    TRY(mincore(p + 1, PAGE, there));
    TRY(mincore(p + 9 * PAGE, PAGE, (void *)8));
    TRY(mlock(p + 9 * PAGE + 5, PAGE));
    TRY(mlock(p + 3 * PAGE, 3 * PAGE));
    TRY(munlock(p + 9 * PAGE, 2 * PAGE));
    TRY(munlock(p + 3 * PAGE, 3 * PAGE));
    TRY(syscall(SYS_mlock2, p + 9 * PAGE, PAGE, 4));
    TRY(syscall(SYS_mlock2, p + 9 * PAGE, PAGE, 1));
    TRY(madvise(p + 9 * PAGE, PAGE, MADV_DONTNEED));
    TRY(mlockall(0));
    TRY(mlockall(8));
    TRY(mlockall(4));
    TRY(munlockall());
    TRY(mlock(p, -PAGE));
    TRY(mlock(p, 0));
}

static void write_back(char *p, char *shared) {
    TRY(msync(shared, PAGE, MS_SYNC));
    TRY(msync(shared, PAGE, MS_SYNC | MS_ASYNC));
    TRY(msync(shared, PAGE, 64));
    TRY(msync(p + 3 * PAGE, 3 * PAGE, MS_ASYNC));
    TRY(msync(shared + 1, PAGE, MS_SYNC));
}

static void other_processes(char *shared) {
    char buffer[16];
    struct iovec mine = {buffer, 5}, theirs = {shared, 5};
    TRY(process_vm_readv(getpid(), &mine, 1, &theirs, 1, 0));
    TRY(process_vm_readv(getpid(), &mine, 1, &theirs, 1, 1));
    TRY(process_vm_readv(getpid(), &mine, 2000, &theirs, 1, 0));
    TRY(process_vm_readv(999999, &mine, 1, &theirs, 1, 0));
    theirs.iov_base = (void *)8;
    TRY(process_vm_readv(getpid(), &mine, 1, &theirs, 1, 0));
    theirs.iov_base = buffer + 5;
    TRY(process_vm_writev(getpid(), &mine, 1, &theirs, 1, 0));
}

static void bad_addresses(char *p) {
    /* Where the compiler cannot see that they are bad. */
    char *volatile low = (char *)8, *volatile high = (char *)0xffff888000000000;
    int zero = open("/dev/zero", O_RDWR), null = open("/dev/null", O_RDWR);
    TRY(read(zero, low, 10));
    TRY(read(zero, p + 3 * PAGE + 4000, PAGE));
    TRY(write(null, p + 3 * PAGE + 4000, PAGE));
    TRY(read(zero, high, 10));
    TRY_OK(syscall(SYS_getcwd, 8, 4096));
    close(zero);
    close(null);
}

static void inheritance(char *shared) {
    char *many = map_pages(600, RW, PRIVATE), *wiped = map_pages(1, RW, PRIVATE), *kept = map_pages(1, RW, PRIVATE);
    for (int i = 0; i < 600; i++)
        many[i * PAGE] = (char)i;
    *wiped = *kept = 1;
    TRY(madvise(wiped, PAGE, MADV_WIPEONFORK));
    TRY(madvise(kept, PAGE, MADV_DONTFORK));
    IN_CHILD("child") {
        int wrong = 0;
        for (int i = 0; i < 600; i++)
            wrong += many[i * PAGE] != (char)i;
        for (int i = 0; i < 600; i += 3)
            many[i * PAGE] = 99;
        for (int i = 0; i < 600; i++)
            wrong += many[i * PAGE] != (char)(i % 3 ? i : 99);
        shared[7] = 42;
        printf("wrong in the child: %d, wiped: %d\n", wrong, *wiped);
        LOAD(kept);
    }
    int wrong = 0;
    for (int i = 0; i < 600; i++)
        wrong += many[i * PAGE] != (char)i;
    printf("wrong in the parent: %d, shared: %d\n", wrong, shared[7]);
}

static void barriers(void) {
    TRY(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0));
    TRY(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0));
    TRY(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0));
    TRY(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 77, 0));
    TRY(syscall(SYS_membarrier, 1 << 20, 0, 0));
}

int main(void) {
    char *p = map_pages(16, RW, PRIVATE), *shared = map_pages(2, RW, SHARED);
    make_hole(p + 4 * PAGE);
    advice(p, shared);
    residence(p);
    write_back(p, shared);
    other_processes(shared);
    bad_addresses(p);
    inheritance(shared);
    barriers();
    return 0;
}
